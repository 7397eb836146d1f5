//! `virtfold pause`: begin no scheduled runs.

use anyhow::Result;
use virtfold_service::control::ControlApi;

use super::{SocketFlag, changed};
use crate::exit::ExitStatus;
use crate::report::{JsonFlag, printable};

/// Pause the schedules of all jobs or of one
///
/// Running backups continue, and 'virtfold run' still works. The pause survives restarts of the service,
/// until 'virtfold resume'.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold pause
  virtfold pause nightly")]
pub(crate) struct Args {
    /// The job [default: all]
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
    args.socket.client().pause(job)?;
    let text = match job {
        None => "all jobs are paused; running backups continue".to_owned(),
        Some(job) => format!("job '{}' is paused; running backups continue", printable(job)),
    };
    changed(&args.json, "paused", job, &text)
}
