//! A regular file as a medium: appears under its name when it is durable, and not before; and goes again.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FileType, Stat};

use super::{DurableMark, DurableMarks, FinishedArchive, Medium, PartialArchive, Resumed};
use virtfold_archive::stream::Sink;
use virtfold_base::error::{IoContext, Result};
use virtfold_base::partial_file::{self, Overwrite, PartialFile};
use virtfold_base::safe_path::{self, Directory};

/// An archive on its way into a directory.
#[derive(Debug)]
pub struct FileMedium {
    partial: PartialFile,
    written: u64,
}

impl FileMedium {
    /// Starts the file that will be `path`; an existing one is never replaced.
    ///
    /// # Errors
    /// When it exists, or the directory can't be written.
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self { partial: PartialFile::create(path, Overwrite::Refuse)?, written: 0 })
    }

    /// Resumes the file that was to be `path`, behind what is known to be on the disk. The caller sees to it
    /// that the process that wrote it is dead and that nobody else does the same.
    ///
    /// # Errors
    /// The file can't be looked at or cut.
    pub fn resume(path: &Path, remains: &PartialArchive) -> Result<Resumed> {
        let Some((temporary, identity)) = &remains.file else {
            return Ok(Resumed::NotPossible("nothing is known of its file".to_owned()));
        };
        if path.symlink_metadata().is_ok() {
            return Ok(Resumed::NotPossible(format!("'{}' is there", path.display())));
        }
        let place = partial_file::LeftoverFile { path, temporary, identity: *identity };
        let Some(partial) = PartialFile::reopen(&place, remains.synced)? else {
            return Ok(Resumed::NotPossible(format!(
                "'{}' is not there as it was left",
                temporary.display()
            )));
        };
        Ok(Resumed::From(Box::new(Self { partial, written: remains.synced }), remains.synced))
    }
}

impl Sink for FileMedium {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.partial.file().write_all(bytes);
        written.at(|| format!("cannot write '{}'", self.partial.path().display()))?;
        self.written += bytes.len() as u64;
        self.partial.wrote(bytes.len() as u64)
    }
}

impl Medium for FileMedium {
    fn report_marks(&mut self, notes: Arc<dyn DurableMarks>) -> bool {
        let Ok(identity) = self.partial.identity() else { return false };
        notes.note(&DurableMark::File { temporary: self.partial.temporary().to_owned(), identity });
        if self.written > 0 {
            notes.note(&DurableMark::Synced { bytes: self.written });
        }
        self.partial.on_synced(Box::new(move |bytes| notes.note(&DurableMark::Synced { bytes })));
        true
    }

    fn finish(self: Box<Self>) -> Result<FinishedArchive> {
        let name = self.partial.path().display().to_string();
        let bytes = self.written;
        self.partial.commit(Overwrite::Refuse)?;
        Ok(FinishedArchive::new(name, bytes))
    }
}

/// Removes the regular file `path` of `bytes`; see [`super::remove`].
pub(super) fn remove(path: &Path, bytes: u64) -> Result<()> {
    let removing = || format!("cannot remove '{}'", path.display());
    let name = path.file_name().ok_or_else(|| super::changed(&path.display()))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = match Directory::open(parent.unwrap_or_else(|| Path::new("."))) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => opened.at(removing)?,
    };
    let is_it = |found: &Stat| {
        safe_path::kind(found) == FileType::RegularFile && u64::try_from(found.st_size) == Ok(bytes)
    };
    match directory.find(name).at(removing)? {
        Some(found) if is_it(&found) => {}
        Some(_) => return Err(super::changed(&path.display())),
        None => return Ok(()),
    }
    match directory.remove_file(name) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).at(removing),
        _ => {}
    }
    directory.sync().at(|| format!("'{}' is removed, but its directory could not be synced", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtfold_base::error::ErrorKind;

    #[test]
    fn only_what_was_looked_at_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("a.tar"), folder.path().join("link.tar"));
        std::fs::write(&file, b"12345").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for (path, bytes) in [(&file, 4), (&link, 5), (&folder.path().to_owned(), 5)] {
            let error = remove(path, bytes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io);
            assert!(path.symlink_metadata().is_ok(), "{error}");
        }
        remove(&file, 5).unwrap();
        assert!(!file.exists() && link.symlink_metadata().is_ok());
        remove(&file, 5).unwrap();
    }
}
