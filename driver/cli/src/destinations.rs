//! The destinations of a backup, each touched by a process of its own (`medium`).

use std::path::Path;

use virtfold_archive::stream::Cancel;
use virtfold_backup::destinations::{Destinations, MediumProcesses};
use virtfold_base::error::Error;
use virtfold_medium::Location;
use virtfold_medium::process::TerminatingProcesses;

use super::domain::connection::StateFlag;
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
        Ok(Destinations::new(locations.to_vec(), processes, cancel))
    }

    /// No destination: for who only discards what was left at any.
    pub(crate) fn anywhere(&self) -> Destinations<'static> {
        Destinations::new(Vec::new(), self.processes(), &Cancel::default())
    }

    /// This program; see `guard` for `/proc/self/exe`.
    fn processes(&self) -> MediumProcesses {
        let arguments = vec!["medium".into()];
        MediumProcesses { program: "/proc/self/exe".into(), arguments, terminating: self.0.clone() }
    }
}
