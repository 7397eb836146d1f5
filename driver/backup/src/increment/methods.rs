//! How it is found what of a disk changed, the best method that can be used first.
//!
//! - `bitmap`: the image's own bitmaps, of which none can miss a write.
//! - `unchanged`: an image that nobody writes to, whose files are those that the parent was made of: same
//!   device, inode, size and times. Files that were written to just before they were looked at then prove
//!   nothing: a later write can have the same time.
//! - `compare`: every block that is used is read and held against the digest of the parent's.
//! - `full`: all of it is copied.

use serde::{Deserialize, Serialize};

use super::ChangedBlocks;
use super::bitmaps::{self, BitmapAnswer, ParentDisk};
use super::compare::{self, Granularity, UsedBlocks};
use super::query::{ChangeHint, ChangeQuery, SourceFiles, digest_block};
use crate::Control;
use crate::folded_disk::FoldedDisk;
use crate::options::ChangeDetection;
use virtfold_archive::manifest::Changes;
use virtfold_archive::table::Builder;
use virtfold_base::error::Result;

/// How the changes of a disk were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeMethod {
    /// By bitmaps of the image.
    Bitmap,
    /// Its files are as they were.
    Unchanged,
    /// By the digests of its blocks.
    Compare,
    /// It was copied whole.
    Full,
}

impl ChangeMethod {
    /// Its name in heads and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bitmap => "bitmap",
            Self::Unchanged => "unchanged",
            Self::Compare => "compare",
            Self::Full => "full",
        }
    }
}

/// What of a disk changed.
#[derive(Debug)]
pub(crate) struct FoundChanges {
    pub(crate) method: ChangeMethod,
    /// Why no better method could be used.
    pub(crate) reason: Option<String>,
    /// The blocks; nothing where all of the disk is copied.
    pub(crate) changed: Option<ChangedBlocks>,
    /// Its number in the parent's state, where it is one of its disks.
    pub(crate) index: Option<usize>,
}

impl FoundChanges {
    fn full(reason: impl Into<String>) -> Self {
        Self { method: ChangeMethod::Full, reason: Some(reason.into()), changed: None, index: None }
    }

    /// As the archive's head has it.
    pub(crate) fn note(&self) -> Changes {
        Changes { method: self.method.name().to_owned(), reason: self.reason.clone() }
    }
}

/// Finds what of a disk changed since the parent; `disk` has all that is used.
///
/// # Errors
/// The image or the parent's state can't be read; Interrupted.
pub(crate) fn find_changes(
    disk: &FoldedDisk,
    query: &ChangeQuery<'_>,
    control: &Control,
) -> Result<FoundChanges> {
    let state = &query.parent.state;
    let Some((index, then)) = state.disk(&disk.target) else {
        return Ok(FoundChanges::full("the parent does not have this disk"));
    };
    let digest = digest_block(disk.block);
    if then.block != digest.get() {
        return Ok(FoundChanges::full("the parent was made with another block size"));
    }
    let (copy, capacity) = (disk.block, disk.table.capacity());
    let blocks = Granularity { digest, copy, capacity, before: then.capacity };
    let found = |method, reason, changed| {
        Ok(FoundChanges { method, reason, changed: Some(changed), index: Some(index) })
    };
    let reason = match (query.options.changes, query.hint) {
        (ChangeDetection::Compare, _) => Some("a comparison was requested".to_owned()),
        (ChangeDetection::Auto, ChangeHint::AtRest) => match (&then.files, query.files) {
            (Some(then_files), Some(files))
                if then.capacity == blocks.capacity && SourceFiles::prove(then_files, files) =>
            {
                let nothing = Builder::new(blocks.capacity).finish()?;
                return found(ChangeMethod::Unchanged, None, nothing);
            }
            _ => None,
        },
        (ChangeDetection::Auto, ChangeHint::Bitmaps(names)) => {
            match bitmaps::changed(disk, query, ParentDisk { index, disk: then }, names)? {
                BitmapAnswer::Changed(changed) => return found(ChangeMethod::Bitmap, None, changed),
                BitmapAnswer::NotBelieved(why) => Some(why),
            }
        }
        (ChangeDetection::Auto, ChangeHint::NoBitmap(why)) => Some(why.clone()),
        (ChangeDetection::Auto, ChangeHint::Unknown) => None,
    };
    control.progress.enter("comparing", disk.table.dense_len());
    let digests = compare::digests(disk, digest, query.options.workers, control)?;
    let mut now = UsedBlocks::new(&disk.table, &digests, digest);
    let changed = compare::differing(&mut now, &mut state.blocks(index), blocks)?;
    found(ChangeMethod::Compare, reason, changed)
}
