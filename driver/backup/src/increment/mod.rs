//! Increments: which archive a backup continues, what of each disk changed since, and what the next backup
//! needs to tell that again.
//!
//! 1. `choose_parent`, before anything is frozen: the newest archive of the subject that every destination
//!    has, and what this host knows of the blocks after it ([`BlockState`]). Where there is none the backup
//!    is full, and says why.
//! 2. `find_changes`, disk by disk, when the images stand still ([`ChangeMethod`]): a bitmap where one is
//!    there, the files' times for images at rest, else the digests of all that is used. A method that can't
//!    be used gives way to the next one, and the sentence why goes into the archive's head. A disk that the
//!    parent has not is whole in the archive.
//! 3. `PendingState`, when the archive is written: the state of the blocks after it, kept once the archive
//!    has its name.
//!
//! Invariants: what counts as unchanged is proven to be as it was after the parent, by its digest or by what
//! cannot miss a write; a doubt makes a block changed. Losing a state costs a full backup, never a byte.
//!
//! Imports: `error`, `units`, `archive`, `catalog`, `image`, `hypervisor`, and of this crate `folded_disk`,
//! `options`, `destinations`, `signing`, the types of `freeze`; `session` and `domain` import it.

mod after;
#[cfg(test)]
mod bitmap_tests;
mod bitmaps;
mod changed_disk;
#[cfg(test)]
mod checkpoint_tests;
mod checkpoints;
mod compare;
mod methods;
#[cfg(test)]
mod model_tests;
mod parent;
mod query;
mod state;

use virtfold_archive::table::CorrespondenceTable;

pub(crate) use self::after::{WrittenBlocks, keep, write};
pub(crate) use self::changed_disk::{clip, rows};
pub(crate) use self::checkpoints::{forget, hint, hint_of, tidy};
pub use self::methods::ChangeMethod;
pub(crate) use self::methods::{FoundChanges, find_changes};
pub use self::parent::{Parent, ParentChoice};
pub(crate) use self::parent::{ParentQuery, choose_parent};
pub use self::query::ChangeHint;
pub(crate) use self::query::{ChangeQuery, SourceFiles};
pub use self::state::BlockState;
pub(crate) use self::state::PendingState;

/// Ranges of a disk that changed, of whole blocks, ascending and apart.
pub(crate) type ChangedBlocks = CorrespondenceTable;
