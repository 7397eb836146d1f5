//! How it is found what of a disk changed, the best method that can be used first.
//!
//! - `bitmap`: the image's own bitmaps, of which none can miss a write.
//! - `unchanged`: an image that nobody writes to, whose files are those that the parent was made of: same
//!   device, inode, size and times. Files that were written to just before they were looked at then prove
//!   nothing: a later write can have the same time.
//! - `compare`: every block that is used is read and held against the digest of the parent's.
//! - `full`: all of it is copied.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::ChangedBlocks;
use super::bitmaps::{self, BitmapAnswer, ParentDisk};
use super::compare::{self, Granularity, UsedBlocks};
use super::parent::Parent;
use crate::Control;
use crate::folded_disk::FoldedDisk;
use crate::options::{BackupOptions, ChangeDetection};
use crate::resume::SourceStamp;
use virtfold_archive::manifest::{Changes, MAX_DIGEST_BLOCK};
use virtfold_archive::table::Builder;
use virtfold_base::error::Result;
use virtfold_base::units::BlockSize;
use virtfold_image::DiskImage;

/// How long a file must not have been written to before its times tell a later write, seconds: what the
/// coarsest file systems count in, and a clock that is off a little.
const SETTLED: i64 = 3;

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

/// What whoever opened an image knows of its changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ChangeHint {
    /// Nothing.
    #[default]
    Unknown,
    /// Nobody writes to it: its files tell whether somebody did since.
    AtRest,
    /// These bitmaps of its top image mark, together, all that was written since the parent.
    Bitmaps(Vec<String>),
    /// No bitmap does, for this reason.
    NoBitmap(String),
}

/// The files of an image, as they are when it is backed up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourceFiles {
    stamps: Vec<SourceStamp>,
    /// When they were looked at, seconds since 1970.
    looked: i64,
}

impl SourceFiles {
    /// Looks at the files of an image; nothing where one of them does not say when it was written to.
    ///
    /// # Errors
    /// A file can't be looked at.
    pub(crate) fn of(image: &DiskImage) -> Result<Option<Self>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let looked = i64::try_from(now).unwrap_or(i64::MAX);
        let mut stamps = Vec::new();
        for (path, _) in image.host_files() {
            match SourceStamp::of(path)? {
                Some(stamp) => stamps.push(stamp),
                None => return Ok(None),
            }
        }
        Ok(Some(Self { stamps, looked }))
    }

    /// Whether the images below the top one, which comes first, are those of `now`, and none was written to.
    pub(super) fn below_is_as_written(&self, now: &Self) -> bool {
        let (then, now) = (self.stamps.get(1..), now.stamps.get(1..));
        let (Some(then), Some(now)) = (then, now) else { return false };
        then.len() == now.len() && then.iter().zip(now).all(|(then, now)| then.is_as_written(now))
    }

    /// Whether nothing was written to them between `then` and `now`.
    fn prove(then: &Self, now: &Self) -> bool {
        let settled = then.looked.saturating_sub(SETTLED);
        then.stamps == now.stamps && then.stamps.iter().all(|stamp| stamp.last_change() < settled)
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

/// The pieces of a disk that have digests.
pub(crate) fn digest_block(copy: BlockSize) -> BlockSize {
    BlockSize::new(copy.get().min(MAX_DIGEST_BLOCK)).unwrap_or(BlockSize::MIN)
}

/// What a disk is compared with.
pub(crate) struct ChangeQuery<'a> {
    pub(crate) parent: &'a Parent,
    pub(crate) hint: &'a ChangeHint,
    /// Its files now.
    pub(crate) files: Option<&'a SourceFiles>,
    pub(crate) options: &'a BackupOptions,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A write in the tick of the look has the same time as the file had.
    #[test]
    fn files_written_to_just_before_prove_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.raw");
        std::fs::write(&path, [7; 4096]).unwrap();
        let stamp = SourceStamp::of(&path).unwrap().unwrap();
        let looked =
            |after: i64| SourceFiles { stamps: vec![stamp.clone()], looked: stamp.last_change() + after };
        assert!(SourceFiles::prove(&looked(60), &looked(90)));
        assert!(!SourceFiles::prove(&looked(1), &looked(90)));
        std::fs::write(&path, [8; 4096]).unwrap();
        let written =
            SourceFiles { stamps: vec![SourceStamp::of(&path).unwrap().unwrap()], looked: i64::MAX };
        assert!(!SourceFiles::prove(&looked(60), &written));
    }
}
