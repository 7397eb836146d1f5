//! Tapes as a medium. FORMAT.md says what is on them.
//!
//! From below: a [`Drive`] does what `st` does ([`StDrive`]; [`SimulatedDrive`] in memory, with faults); `deck` counts every step of it and asks it
//! where it stands; `record` and `volume` know what is on a volume; [`TapeMedium`] writes archives (`run` is its thread), [`TapeSource`] reads them,
//! [`VolumeAdmin`] looks after volumes. A [`Changer`] changes volumes, a [`TapeCatalog`] remembers them.
//!
//! The contract beyond that of a medium: what [`TapeCatalog::committed`] was told is on the medium, at that place. A write that failed is never
//! repeated on the same volume, and that volume is never written to again: the archive goes on behind its last committed byte on another one.
//!
//! Imports: `error`, `ioctl`, `archive` (its traits for bytes).

mod care;
mod changer;
mod deck;
mod drive;
mod earlier;
mod ledger;
mod places;
mod reader;
mod record;
mod ring;
mod run;
mod simulated;
mod st;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_full;
#[cfg(test)]
mod tests_parts;
mod volume;
mod writer;

pub use self::care::{PartReport, TapeStatus, VolumeAdmin, VolumeReport};
pub use self::changer::{Changer, CommandChanger, NoChanger, PromptChanger, VolumeRequest};
pub use self::drive::{Access, Drive, DriveState, TapeCommand};
pub use self::ledger::{NoTapeCatalog, PartLocation, TapeCatalog, has_id, id_of};
pub use self::reader::{TapeReadOptions, TapeSource};
pub use self::record::{EarlierParts, PartHeader, PartTrailer, TapeBlock, VolumeLabel, check_label};
pub use self::simulated::{SimulatedDrive, SimulatedTape, TapeFault};
pub use self::st::StDrive;
pub use self::volume::{NewLabel, Overwrite, VolumeContents, VolumePart};
pub use self::writer::{TapeMedium, TapeReport, TapeWriteOptions};
