//! Tapes as a medium. FORMAT.md says what is on them.
//!
//! From below: a [`Drive`] does what `st` does ([`StDrive`]; [`SimulatedDrive`] in memory, with faults);
//! `positioned_drive` counts every step of it and asks it where it stands; `record` and `volume` know what is
//! on a volume; [`TapeMedium`] writes archives (`drive_thread` is its thread), [`TapeSource`] reads them,
//! [`VolumeAdmin`] looks after volumes. A [`Changer`] changes volumes, a [`TapeCatalog`] remembers them.
//!
//! The contract beyond that of a medium: what [`TapeCatalog::committed`] was told is on the medium, at that
//! place. A write that failed is never repeated on the same volume, and that volume is never written to
//! again: the archive goes on behind its last committed byte on another one.
//!
//! Imports: `error`, `ioctl`, `archive` (its traits for bytes).

mod changer;
mod committed_parts;
mod drive;
mod drive_thread;
mod part_index;
mod positioned_drive;
mod reader;
mod record;
mod ring;
mod simulated;
mod st;
mod tape_catalog;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_full;
#[cfg(test)]
mod tests_parts;
mod volume;
mod volume_admin;
mod write_options;
mod writer;

pub use self::changer::{Changer, CommandChanger, NoChanger, PromptChanger, VolumeRequest};
pub use self::drive::{Access, Drive, DriveState, TapeCommand};
pub use self::reader::{TapeReadOptions, TapeSource};
pub use self::record::{EarlierParts, PartHeader, PartTrailer, TapeBlock, VolumeLabel, check_label};
pub use self::simulated::{SimulatedDrive, SimulatedTape, TapeFault};
pub use self::st::StDrive;
pub use self::tape_catalog::{NoTapeCatalog, PartLocation, TapeCatalog, has_id, id_of};
pub use self::volume::{NewLabel, Overwrite, VolumeContents, VolumePart};
pub use self::volume_admin::{PartReport, TapeStatus, VolumeAdmin, VolumeReport};
pub use self::write_options::{TapeReport, TapeWriteOptions};
pub use self::writer::TapeMedium;
