//! The guard as a process of this program: the library knows what a guard does, the binary which of its verbs is one.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::error::Result;
use crate::guest::DomainId;
use crate::guest::guard::{Guard, Held, Outcome};
use crate::job::guest::{Sentry, StartGuard};

/// Starts a program that calls [`crate::guest::guard::serve`] for the domain whose uuid is its last argument.
#[derive(Clone, Debug)]
pub struct GuardProgram {
    /// The program.
    pub program: PathBuf,
    /// Its arguments before the uuid.
    pub arguments: Vec<OsString>,
}

impl StartGuard for GuardProgram {
    fn start(&self, domain: DomainId) -> Result<Box<dyn Sentry>> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg(domain.to_string());
        Ok(Box::new(Process(Guard::start(command)?)))
    }
}

#[derive(Debug)]
struct Process(Guard);

impl Sentry for Process {
    fn arm(&mut self, held: Held, budget: Duration) -> Result<()> {
        // The guard stays armed without the value that stands for it.
        self.0.arm(held, budget).map(|_armed| ())
    }

    fn disarm(&mut self) -> Result<Outcome> {
        self.0.disarm()
    }
}
