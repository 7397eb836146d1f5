//! A regular file as a medium: appears under its name when it is durable, and not before.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Durable, Medium};
use crate::archive::stream::{ReadAt, Sink};
use crate::durable::{Existing, PartialFile};
use crate::error::{Error, ErrorKind, IoContext, Result};

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

/// An archive in a file, to be read at any place.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    len: u64,
    name: String,
}

impl FileSource {
    /// Opens the archive `path`.
    ///
    /// # Errors
    /// When it can't be opened or is no regular file.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).at(|| format!("cannot open '{name}'"))?;
        let metadata = file.metadata().at(|| format!("cannot open '{name}'"))?;
        if !metadata.is_file() {
            return Err(Error::new(ErrorKind::Usage, format!("'{name}' is not a regular file"))
                .with_hint("say - as the archive to read from a pipe"));
        }
        Ok(Self { file, len: metadata.len(), name })
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl ReadAt for FileSource {
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let read = self.file.read_exact_at(buf, offset);
        read.at(|| format!("cannot read '{}' at offset {offset}", self.name))
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn name(&self) -> &str {
        &self.name
    }
}
