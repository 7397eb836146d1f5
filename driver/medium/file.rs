//! A regular file as a medium: appears under its name when it is durable, and not before.

use std::io::Write;
use std::path::Path;

use super::{Durable, Medium};
use crate::archive::stream::Sink;
use crate::durable::{Existing, PartialFile};
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
    fn finish(self: Box<Self>) -> Result<Durable> {
        let name = self.partial.path().display().to_string();
        let bytes = self.written;
        self.partial.commit(Existing::Keep)?;
        Ok(Durable { name, bytes })
    }
}
