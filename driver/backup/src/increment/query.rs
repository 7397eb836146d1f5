//! What is known of a disk before it is found what changed: its parent, its files, what whoever opened it
//! says.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::parent::Parent;
use crate::options::BackupOptions;
use crate::resume::SourceStamp;
use virtfold_archive::manifest::MAX_DIGEST_BLOCK;
use virtfold_base::error::Result;
use virtfold_base::units::BlockSize;
use virtfold_image::DiskImage;

/// How long a file must not have been written to before its times tell a later write, seconds: what the
/// coarsest file systems count in, and a clock that is off a little.
const SETTLED: i64 = 3;

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

    /// Whether the top image is the same file, whatever was written to it since.
    pub(super) fn has_the_top_of(&self, now: &Self) -> bool {
        let (then, now) = (self.stamps.first(), now.stamps.first());
        then.zip(now).is_some_and(|(then, now)| then.is_same_file(now))
    }

    /// Whether the images below the top one, which comes first, are those of `now`, and none was written to.
    pub(super) fn below_is_as_written(&self, now: &Self) -> bool {
        let (then, now) = (self.stamps.get(1..), now.stamps.get(1..));
        let (Some(then), Some(now)) = (then, now) else { return false };
        then.len() == now.len() && then.iter().zip(now).all(|(then, now)| then.is_as_written(now))
    }

    /// Whether nothing was written to them between `then` and `now`.
    pub(super) fn prove(then: &Self, now: &Self) -> bool {
        let settled = then.looked.saturating_sub(SETTLED);
        then.stamps == now.stamps && then.stamps.iter().all(|stamp| stamp.last_change() < settled)
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
