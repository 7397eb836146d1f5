//! What a medium that was broken off leaves for another process to go on with.
//!
//! A medium that can be gone on with by another process says while it is written what of it is durable, in
//! [`DurableMark`]s, to whoever keeps them ([`DurableMarks`]). Each mark is true by itself and stays true, so
//! marks that were lost cost work and nothing else. All of them together are the [`PartialArchive`], with
//! which the medium is opened again.
//!
//! Imports: `error`.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Medium;
use virtfold_base::error::{IoContext, Result};

/// The most parts that are believed.
const MAX_PARTS: usize = 10_000;

/// Something that has become true of a medium.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DurableMark {
    /// The archive is written to a file under a name that is not its own yet.
    File {
        /// That name.
        temporary: PathBuf,
        /// The file's device and inode.
        identity: (u64, u64),
    },
    /// So many bytes of the file are on the disk.
    Synced {
        /// Bytes from its beginning.
        bytes: u64,
    },
    /// The archive is uploaded. What was uploaded before counts no more.
    Upload {
        /// The upload's id, as the store gave it.
        id: String,
        /// What the object will be marked with.
        mark: String,
        /// Bytes of a usual part.
        part: u64,
    },
    /// A part is in the store.
    Part {
        /// Which, from 0.
        number: u64,
        /// What the store calls it.
        id: String,
        /// Its bytes.
        bytes: u64,
    },
}

/// Who keeps marks. One that can't be kept is lost, which is the keeper's to tell of: the archive goes on.
pub trait DurableMarks: Debug + Send + Sync {
    /// Keeps a mark.
    fn note(&self, mark: &DurableMark);

    /// What is there could not be taken away when the medium failed: another process may go on with it.
    fn left_behind(&self);
}

/// What a broken-off medium has left, by its marks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartialArchive {
    /// The unfinished file, and its device and inode.
    pub file: Option<(PathBuf, (u64, u64))>,
    /// Bytes of it that are on the disk.
    pub synced: u64,
    /// The upload: its id, what it is marked with, bytes of a usual part.
    pub upload: Option<(String, String, u64)>,
    /// The parts that are in the store, by their numbers: what the store calls them, and their bytes.
    pub parts: BTreeMap<u64, (String, u64)>,
}

impl PartialArchive {
    /// Takes in the next mark.
    pub fn take(&mut self, mark: DurableMark) {
        match mark {
            DurableMark::File { temporary, identity } => {
                *self = Self { file: Some((temporary, identity)), ..Self::default() };
            }
            DurableMark::Synced { bytes } => self.synced = self.synced.max(bytes),
            DurableMark::Upload { id, mark, part } => {
                *self = Self { upload: Some((id, mark, part)), ..Self::default() };
            }
            DurableMark::Part { number, id, bytes } if self.parts.len() < MAX_PARTS => {
                self.parts.insert(number, (id, bytes));
            }
            DurableMark::Part { .. } => {}
        }
    }
}

impl PartialArchive {
    /// The unfinished file, to read; nothing, where it is not there, or another one is.
    ///
    /// # Errors
    /// It can't be opened or looked at: that it is there or not is not known then.
    pub fn opened(&self) -> Result<Option<File>> {
        let Some((path, identity)) = &self.file else { return Ok(None) };
        let opening = || format!("cannot open the unfinished archive '{}'", path.display());
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let file = match OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path) {
            // A link is not what was left, and is not followed.
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(nix::libc::ELOOP) =>
            {
                return Ok(None);
            }
            opened => opened.at(opening)?,
        };
        let found = file.metadata().at(opening)?;
        Ok((found.is_file() && (found.dev(), found.ino()) == *identity).then_some(file))
    }
}

/// What came of going on with remains.
pub enum Resumed {
    /// The medium takes the archive's bytes from here on.
    From(Box<dyn Medium>, u64),
    /// There is nothing to go on with, and why.
    NotPossible(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_opened_is_not_one_that_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let left = |name: &str, identity| PartialArchive {
            file: Some((folder.path().join(name), identity)),
            ..PartialArchive::default()
        };
        std::fs::write(folder.path().join("there"), "bytes").unwrap();
        std::os::unix::fs::symlink("there", folder.path().join("link")).unwrap();
        let found = std::fs::metadata(folder.path().join("there")).unwrap();
        let identity = (found.dev(), found.ino());
        assert!(left("there", identity).opened().unwrap().is_some());
        for (name, identity) in [("there", (1, 2)), ("gone", identity), ("link", identity)] {
            assert!(left(name, identity).opened().unwrap().is_none(), "{name}");
        }
        let error = left(&"n".repeat(300), identity).opened().unwrap_err();
        assert!(error.to_string().starts_with("cannot open the unfinished archive"), "{error}");
    }

    #[test]
    fn marks_add_up_and_a_new_beginning_forgets() {
        let mut remains = PartialArchive::default();
        remains.take(DurableMark::Upload { id: "a".into(), mark: "m".into(), part: 5 });
        for number in [1, 0, 1] {
            remains.take(DurableMark::Part { number, id: format!("p{number}"), bytes: 5 });
        }
        assert_eq!(remains.parts.len(), 2);
        remains.take(DurableMark::Upload { id: "b".into(), mark: "m".into(), part: 5 });
        assert_eq!((remains.upload.as_ref().unwrap().0.as_str(), remains.parts.len()), ("b", 0));
        remains.take(DurableMark::File { temporary: "/x".into(), identity: (1, 2) });
        [7, 3].into_iter().for_each(|bytes| remains.take(DurableMark::Synced { bytes }));
        assert_eq!((remains.synced, remains.upload), (7, None));
    }
}
