//! The real guard: a process.
//!
//! Imports: `error`, `guest::guard`.

use std::fmt;
use std::process::Command;
use std::time::Duration;

use super::{Sentry, StartGuard};
use crate::error::Result;
use crate::guest::DomainId;
use crate::guest::guard::{Guard, Held, Outcome};

/// Starts a process for each guard.
pub struct GuardProcess<F> {
    command: F,
}

impl<F: Fn(DomainId) -> Command + Send + Sync> GuardProcess<F> {
    /// `command` makes the command for a domain; what it runs has to call [`crate::guest::guard::serve`].
    pub fn new(command: F) -> Self {
        Self { command }
    }
}

impl<F> fmt::Debug for GuardProcess<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardProcess").finish_non_exhaustive()
    }
}

impl<F: Fn(DomainId) -> Command + Send + Sync> StartGuard for GuardProcess<F> {
    fn start(&self, domain: DomainId) -> Result<Box<dyn Sentry>> {
        Ok(Box::new(Guard::start((self.command)(domain))?))
    }
}

impl Sentry for Guard {
    fn arm(&mut self, held: Held, budget: Duration) -> Result<()> {
        // The budget runs on without its token, until `disarm`.
        Guard::arm(self, held, budget).map(|_token| ())
    }

    fn disarm(&mut self) -> Result<Outcome> {
        Guard::disarm(self)
    }
}
