//! A regular file as a medium: appears under its name when it is durable, and not before.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use super::{Durable, Mark, Medium, Notes, Remains, Reopened};
use crate::archive::stream::Sink;
use crate::durable::{self, Existing, PartialFile};
use crate::error::{IoContext, Result};

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
        Ok(Self { partial: PartialFile::create(path, Existing::Keep)?, written: 0 })
    }

    /// Goes on with the file that was to be `path`, behind what is known to be on the disk.
    ///
    /// # Errors
    /// The file can't be looked at or cut.
    pub(super) fn reopen(path: &Path, remains: &Remains) -> Result<Reopened> {
        let Some((temporary, identity)) = &remains.file else {
            return Ok(Reopened::Gone("nothing is known of its file".to_owned()));
        };
        if path.symlink_metadata().is_ok() {
            return Ok(Reopened::Gone(format!("'{}' is there", path.display())));
        }
        let place = durable::Left { path, temporary, identity: *identity };
        let Some(partial) = PartialFile::reopen(&place, remains.synced)? else {
            return Ok(Reopened::Gone(format!("'{}' is not there as it was left", temporary.display())));
        };
        Ok(Reopened::At(Box::new(Self { partial, written: remains.synced }), remains.synced))
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
    fn keep(&mut self, notes: Arc<dyn Notes>) -> bool {
        let Ok(identity) = self.partial.identity() else { return false };
        notes.note(&Mark::File { temporary: self.partial.temporary().to_owned(), identity });
        if self.written > 0 {
            notes.note(&Mark::Synced { bytes: self.written });
        }
        self.partial.on_synced(Box::new(move |bytes| notes.note(&Mark::Synced { bytes })));
        true
    }

    fn finish(self: Box<Self>) -> Result<Durable> {
        let name = self.partial.path().display().to_string();
        let bytes = self.written;
        self.partial.commit(Existing::Keep)?;
        Ok(Durable { name, bytes })
    }
}
