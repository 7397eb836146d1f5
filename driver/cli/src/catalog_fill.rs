//! What the catalog is told of a good backup.

use virtfold_backup::retention;
use virtfold_backup::session::BackupReport;
use virtfold_base::error::sentence;
use virtfold_catalog::{Catalog, NoCatalog};

use super::backup::BackupCommand;
use super::output::say;
use super::report::printable;

/// Whether a state directory is made for the catalog's sake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StateDirPolicy {
    /// It is: the backup is a domain's.
    Create,
    /// It is not: images are backed up without one, too.
    RequireExisting,
}

/// Notes each good copy of a backup. That it can't be noted is said, and makes a good archive no worse.
pub(crate) fn backup(report: &BackupReport, command: &BackupCommand<'_>, missing: StateDirPolicy) {
    let state = &command.state.state;
    if missing == StateDirPolicy::RequireExisting && NoCatalog::for_missing(state) {
        return;
    }
    let copies = retention::copies(report, command.destinations, command.job);
    let noted = copies.and_then(|copies| Catalog::open(state)?.remember(&copies));
    if let Err(error) = noted {
        say(&format!(
            "virtfold: the archive is good, but could not be recorded in the catalog: {}",
            printable(&sentence(&error))
        ));
        say(
            "hint: 'virtfold list --remember PLACE' records it; prune ignores encrypted archives that are not in the catalog",
        );
    }
}
