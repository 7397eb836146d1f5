//! `virtfold resume`: takes a pause back.

use anyhow::Result;
use virtfold_service::control::ControlApi;

use super::{SocketFlag, changed};
use crate::exit::ExitStatus;
use crate::report::{JsonFlag, printable};

/// Resume paused jobs
///
/// 'virtfold resume' without a job undoes 'virtfold pause' without a job; jobs that were paused by name stay
/// paused.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold resume
  virtfold resume nightly")]
pub(crate) struct Args {
    /// The job [default: the pause of all jobs]
    #[arg(value_name = "JOB")]
    job: Option<String>,
    #[command(flatten)]
    socket: SocketFlag,
    #[command(flatten)]
    json: JsonFlag,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitStatus> {
    let job = args.job.as_deref();
    args.socket.client().resume(job)?;
    let text = match job {
        None => "the jobs are resumed, except those paused by name".to_owned(),
        Some(job) => format!("job '{}' is resumed, unless all are paused", printable(job)),
    };
    changed(&args.json, "resumed", job, &text)
}
