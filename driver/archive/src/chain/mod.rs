//! Chains of archives: a full one and the increments on it, read as one disk.
//!
//! [`ChainMap`] says of each range of a disk which archive of its chain has it: it is merged from the tables
//! of the layers, the newest first, one after the other. [`ChainDisk`] reads by it: of each archive what no
//! newer one replaces, and every byte checked as [`crate::index`] does.
//!
//! A layer is an archive that has the disk; layer 0 is the newest. A disk's chain ends at the archive that is
//! full, or at the first one whose parent does not have the disk. What a layer calls unchanged and no older
//! one has, be it that its parent is not there or that its disk was shorter, is lost: it is never zeros, and
//! never what stood there still earlier.
//!
//! Who uses it: restores, `verify --chain`, `diff`. Imports: `units`, `error`, `packed`; `index`, `table` and
//! `allocation_csv` of this room.

mod disk;
#[cfg(test)]
mod disk_tests;
mod map;
#[cfg(test)]
mod map_tests;

pub use self::disk::{ChainDisk, TakePiece};
pub use self::map::{ChainMap, Extent, ExtentSource, LayerRows, TakeRow};

/// The most archives of a chain that are followed, so that no list of parents is endless.
pub const MAX_CHAIN: usize = 256;
