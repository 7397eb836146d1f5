//! `virtfold guard`: the process that lets a guest go when the pause budget is over or the driver is dead.
//! Hidden: the driver starts it. Standard input is the socket to the driver; nothing here reads or closes it
//! before the guard does.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;
use virtfold_backup::freeze::WatchdogProcess;
use virtfold_hypervisor::{DomainId, watchdog};

use super::connection;
use crate::exit::ExitStatus;

/// Let a guest go when its pause is over (started by virtfold itself)
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The libvirt to speak to
    #[arg(long, value_name = "URI")]
    uri: String,
    /// The domain's uuid
    uuid: String,
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitStatus> {
    let domain: DomainId = args.uuid.parse()?;
    let connection = connection::open(&args.uri)?;
    watchdog::serve(connection.hypervisor.as_ref(), domain)?;
    Ok(ExitStatus::Done)
}

/// How this program starts its guards. `/proc/self/exe` is this very program, also when its file was replaced
/// since.
pub(super) fn program(uri: &str) -> WatchdogProcess {
    let arguments = ["guard", "--uri", uri].map(OsString::from).to_vec();
    WatchdogProcess { program: PathBuf::from("/proc/self/exe"), arguments }
}
