//! `virtfold pause` and `resume`: begin no scheduled runs, and begin them again.

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
pub(crate) struct PauseArgs {
    /// The job [default: all]
    #[arg(value_name = "JOB")]
    job: Option<String>,
    #[command(flatten)]
    service: ServiceArgs,
}

/// Resume paused jobs
///
/// 'virtfold resume' without a job undoes 'virtfold pause' without a job; jobs that were paused by name stay
/// paused.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold resume
  virtfold resume nightly")]
pub(crate) struct ResumeArgs {
    /// The job [default: the pause of all jobs]
    #[arg(value_name = "JOB")]
    job: Option<String>,
    #[command(flatten)]
    service: ServiceArgs,
}

#[derive(Debug, clap::Args)]
struct ServiceArgs {
    #[command(flatten)]
    socket: SocketFlag,
    #[command(flatten)]
    json: JsonFlag,
}

/// Runs `pause`.
pub(crate) fn pause(args: &PauseArgs) -> Result<ExitStatus> {
    let job = args.job.as_deref();
    args.service.socket.client().pause(job)?;
    let text = match job {
        None => "all jobs are paused; running backups continue".to_owned(),
        Some(job) => format!("job '{}' is paused; running backups continue", printable(job)),
    };
    changed(&args.service.json, "paused", job, &text)
}

/// Runs `resume`.
pub(crate) fn resume(args: &ResumeArgs) -> Result<ExitStatus> {
    let job = args.job.as_deref();
    args.service.socket.client().resume(job)?;
    let text = match job {
        None => "the jobs are resumed, except those paused by name".to_owned(),
        Some(job) => format!("job '{}' is resumed, unless all are paused", printable(job)),
    };
    changed(&args.service.json, "resumed", job, &text)
}
