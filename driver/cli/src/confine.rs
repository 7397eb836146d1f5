//! What is left to a verb that meets bytes that others wrote.
//!
//! A reader (`verify`, `show`, `table`) of a file or a pipe loads keys and configuration first, and confines
//! itself before it opens an archive and has a second thread. It may then open the archive, the directories
//! it writes to and that of spilled tables, starts no program and has no socket. `map` may read all files,
//! for headers name them, and write none. Readers of object stores and drives are not confined yet.
//!
//! Where the kernel lacks a part, the verb runs with the rest and says so (`base`'s `confine`): on the bad
//! day an old rescue system has to be able to read.

use std::path::Path;

use virtfold_base::confine::{Confinement, FileAccess, Network};
use virtfold_base::error::Result;
use virtfold_base::spill_log::SpillLog;
use virtfold_medium::Location;

/// What anything here reads, whoever wrote it: times, mounts, devices, itself.
const COMMON: [&str; 8] = [
    "/proc/self",
    "/proc/mounts",
    "/proc/sys",
    "/sys",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/etc/machine-id",
    "/etc/hostname",
];
/// Confines a verb that reads `archive`, an archive or a place of them, and writes to `directories`: where
/// the catalog is, for one.
///
/// # Errors
/// The kernel knows how and refuses.
pub(crate) fn to_archive(archive: &Location, directories: &[&Path]) -> Result<()> {
    let rules = match archive {
        Location::Tape(_) | Location::Object(_) => return Ok(()),
        Location::Path(path) => common(Network::Nowhere).path(path, FileAccess::Read),
        Location::Pipe => common(Network::Nowhere),
    };
    let rules = directories.iter().fold(rules, |rules, directory| rules.path(directory, FileAccess::Write));
    rules.apply().map(drop)
}

/// Confines a verb that reads an image, whose headers name further files: it reads and passes nothing on.
///
/// # Errors
/// The kernel knows how and refuses.
pub(crate) fn to_images() -> Result<()> {
    common(Network::Nowhere).path(Path::new("/"), FileAccess::Read).apply().map(drop)
}

/// What every reader has: the names in directories, which a path is walked by, and a place for tables.
fn common(network: Network) -> Confinement {
    let spill = SpillLog::default().directory();
    let rules = Confinement::new(network).with_devices();
    let rules = rules.path(Path::new("/"), FileAccess::Names).path(&spill, FileAccess::Write);
    COMMON.iter().fold(rules, |rules, path| rules.path(Path::new(path), FileAccess::Read))
}
