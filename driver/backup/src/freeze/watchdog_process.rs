//! The guard as a process: the library knows what a guard does, the binary which of its verbs is one.
//!
//! Imports: `error`, `hypervisor` (the watchdog).

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::{StartWatchdog, Watchdog};
use virtfold_base::error::Result;
use virtfold_hypervisor::DomainId;
use virtfold_hypervisor::watchdog::{GuestHold, WatchdogClient, WatchdogOutcome};

/// Starts a program that calls [`virtfold_hypervisor::watchdog::serve`] for the domain whose uuid is its last
/// argument.
#[derive(Clone, Debug)]
pub struct WatchdogProcess {
    /// The program.
    pub program: PathBuf,
    /// Its arguments before the uuid.
    pub arguments: Vec<OsString>,
}

impl StartWatchdog for WatchdogProcess {
    fn start(&self, domain: DomainId) -> Result<Box<dyn Watchdog>> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg(domain.to_string());
        Ok(Box::new(WatchdogClient::start(command)?))
    }
}

impl Watchdog for WatchdogClient {
    fn arm(&mut self, held: GuestHold, budget: Duration) -> Result<()> {
        // The budget runs on without its token, until `disarm`.
        WatchdogClient::arm(self, held, budget).map(|_token| ())
    }

    fn disarm(&mut self) -> Result<WatchdogOutcome> {
        WatchdogClient::disarm(self)
    }
}
