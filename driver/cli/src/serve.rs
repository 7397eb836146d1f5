//! `virtfold serve`: its arguments; `virtfold_service::serve` is the service.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use virtfold_base::error::{Error, ErrorKind};
use virtfold_hypervisor::Hypervisor;
use virtfold_service::runner::RunPaths;
use virtfold_service::serve::{ServeRequest, serve};

use super::config::ConfigFlag;
use super::control::SocketFlag;
use super::domain::connection::{ConnectFlag, StateFlag};
use super::exit::{self, ExitStatus};

/// Run the service, which makes backups when they are due
///
/// Runs the jobs of the configuration: backs up guests when they are due or when something happens to them,
/// makes up for missed runs, retries, prunes. Each backup is a process of its own. On SIGTERM running backups
/// may finish within `service.stop-timeout`; then they are parked: the guest is put back on its disks, and
/// the next service starts the backup over. SIGHUP reloads the configuration. systemd starts it as
/// virtfold.service.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold serve
  virtfold serve --config ./config.yaml --state-dir ./state --socket ./control.sock
  virtfold status")]
pub(crate) struct Args {
    #[command(flatten)]
    config: ConfigFlag,
    #[command(flatten)]
    socket: SocketFlag,
    #[command(flatten)]
    connect: ConnectFlag,
    #[command(flatten)]
    state: StateFlag,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitStatus> {
    let whose = args.connect.whose();
    let (config, connect) = (args.config.clone(), args.connect.clone());
    serve(ServeRequest {
        paths: RunPaths {
            program: PathBuf::from("/proc/self/exe"),
            uri: args.connect.uri().0,
            state_dir: args.state.path_of(whose)?,
            config: args.config.path(),
        },
        whose,
        socket: args.socket.path(whose),
        kind_of: exit::kind,
        load: Box::new(move || config.load()),
        connect: Box::new(move || {
            connect.open().map(|connection| -> Arc<dyn Hypervisor> { Arc::from(connection.hypervisor) })
        }),
    })?;
    Ok(ExitStatus::Done)
}

/// Ends this process with its parent: the kernel sends SIGTERM, as a person would.
pub(crate) fn end_with(parent: u32) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        .context("cannot ask the kernel to end this process with its parent")?;
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    if now.and_then(|pid| u32::try_from(pid).ok()) == Some(parent) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Refused, format!("the parent process {parent} has ended")).into())
}
