//! What the catalog is told of a good backup, and what it knows of an archive.

use std::collections::BTreeMap;
use std::path::Path;

use uuid::Uuid;
use virtfold_backup::known_copy::KnownCopy;
use virtfold_backup::retention;
use virtfold_backup::session::BackupReport;
use virtfold_base::error::{Error, sentence};
use virtfold_catalog::{Catalog, NoCatalog};
use virtfold_medium::Location;

use super::backup_command::BackupCommand;
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

/// Notes what became known of an archive when its head was written.
pub(crate) fn annotate(archive: Uuid, notes: &[String], command: &BackupCommand<'_>) {
    if notes.is_empty() {
        return;
    }
    if let Err(error) =
        Catalog::open(&command.state.state).and_then(|catalog| catalog.annotate(archive, notes))
    {
        say(&format!(
            "virtfold: the archive is good, but what its head does not say could not be recorded in the catalog: {}",
            printable(&sentence(&error))
        ));
    }
}

/// The notes of all archives, where there is a catalog that can be read: `list` and `show` are for whoever
/// may read the archives.
pub(crate) fn notes(catalog: &Result<Option<Catalog>, Error>) -> BTreeMap<Uuid, Vec<String>> {
    let unread = |error: &Error| {
        say(&format!("virtfold: the catalog's notes can't be read: {}", printable(&sentence(error))));
        BTreeMap::new()
    };
    match catalog {
        Ok(None) => BTreeMap::new(),
        Ok(Some(catalog)) => catalog.notes().unwrap_or_else(|error| unread(&error)),
        Err(error) => unread(error),
    }
}

/// What the catalog knows of an archive, to compare it with what is found there. Where there is a catalog
/// that can't be read that is said, and nothing is compared: on the bad day it may be damaged, or another
/// user's.
pub(crate) fn known(state: &Path, archive: &Location) -> KnownCopy {
    let opened = Catalog::open_existing(state);
    let known = opened.and_then(|catalog| {
        catalog.map_or_else(|| Ok(KnownCopy::default()), |catalog| KnownCopy::at(&catalog, archive))
    });
    known.unwrap_or_else(|error| {
        not_compared(archive, &error);
        KnownCopy::default()
    })
}

/// Says that archives are not compared with the catalog.
pub(crate) fn not_compared(place: &Location, error: &Error) {
    say(&format!(
        "virtfold: '{}' is not compared with the catalog, so a replaced archive is not noticed: {}",
        printable(&place.to_string()),
        printable(&sentence(error))
    ));
}

/// Notes each good copy of a backup. That it can't be noted is said, and makes a good archive no worse.
pub(crate) fn backup(report: &BackupReport, command: &BackupCommand<'_>, missing: StateDirPolicy) {
    let state = &command.state.state;
    if missing == StateDirPolicy::RequireExisting && NoCatalog::is_missing(state) {
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
