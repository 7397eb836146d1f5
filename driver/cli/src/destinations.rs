//! The destinations of a backup, each touched by a process of its own (`medium`).

use std::path::Path;

use virtfold_archive::stream::Cancel;
use virtfold_backup::destinations::{Destinations, MediumProcesses};
use virtfold_base::error::{Error, ErrorKind};
use virtfold_config::Medium;
use virtfold_medium::Location;
use virtfold_medium::process::TerminatingProcesses;

use super::domain::connection::StateFlag;
use super::encryption::IdentityArgs;
use super::output::say;
use super::report::printable;
use super::tape::options::{WriteArgs, device_only};

/// The processes of media that are still to end. Made before the destinations and dropped behind them: only
/// then, with the guest on its disks and all reported, are these waited for.
#[derive(Debug, Default)]
pub(crate) struct Terminating(TerminatingProcesses);

impl Drop for Terminating {
    /// Waits, and says which could not be ended.
    fn drop(&mut self) {
        for left in self.0.wait() {
            let what = left.subject.map_or_else(|| "it".to_owned(), |name| format!("the copy of '{name}'"));
            say(&format!(
                "virtfold: '{}' does not answer: {} was abandoned; process {} hangs in the kernel until it does",
                printable(&left.place),
                printable(&what),
                left.pid
            ));
        }
    }
}

impl Terminating {
    /// The destinations at `locations`; `cancel` ends the run. The catalog of tapes is in `state_dir`.
    ///
    /// # Errors
    /// One of them is an archive on a tape.
    pub(crate) fn destinations(
        &self,
        locations: &[Location],
        tapes: &WriteArgs,
        state_dir: &Path,
        cancel: &Cancel,
    ) -> Result<Destinations<'static>, Error> {
        let mut processes = self.processes();
        for location in locations {
            let Location::Tape(address) = location else { continue };
            device_only(address)?;
            processes.arguments.truncate(1);
            processes.arguments.extend(tapes.arguments());
            processes.arguments.extend(StateFlag::argument(state_dir));
        }
        let mut destinations = Destinations::new(locations.to_vec(), processes, cancel);
        destinations.consult_catalog(state_dir);
        Ok(destinations)
    }

    /// No destination: for who only discards what was left at any.
    pub(crate) fn anywhere(&self, state_dir: &Path) -> Destinations<'static> {
        let mut destinations = Destinations::new(Vec::new(), self.processes(), &Cancel::default());
        destinations.consult_catalog(state_dir);
        destinations
    }

    /// One destination to list, remove from or try, whose archives `identities` open. A medium of the
    /// configuration has variables of its own: credentials are a process's environment.
    pub(crate) fn one(
        &self,
        location: &Location,
        identities: &IdentityArgs,
        environment: Vec<(String, String)>,
    ) -> Destinations<'static> {
        let mut processes = self.processes();
        processes.arguments.extend(identities.arguments());
        processes.environment = environment;
        Destinations::new(vec![location.clone()], processes, &Cancel::default())
    }

    /// This program; see `domain::watchdog` for `/proc/self/exe`.
    fn processes(&self) -> MediumProcesses {
        let arguments = vec!["medium".into()];
        let environment = Vec::new();
        MediumProcesses {
            program: "/proc/self/exe".into(),
            arguments,
            environment,
            terminating: self.0.clone(),
        }
    }
}

/// The variables of a medium.
///
/// # Errors
/// Its file of variables can't be read.
pub(crate) fn environment(medium: &Medium) -> Result<Vec<(String, String)>, Error> {
    let environment = medium.environment().map_err(|error| {
        Error::new(ErrorKind::Usage, "its environment file can't be read").with_source(error)
    })?;
    Ok(environment.as_slice().to_vec())
}
