//! Sources: archives that can be read at any place. A regular file is one, a block device, and the first
//! bytes of another source.
//!
//! Imports: `error`, `stream` (the trait `ReadAt`).

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::stream::ReadAt;
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};

/// An archive on a medium that can be read at any place, by many threads at once.
pub trait Source: ReadAt + std::fmt::Debug {
    /// The file that has the archive's bytes, where it is one of this host.
    fn file(&self) -> Option<&File> {
        None
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
    /// When it can't be opened or is neither a regular file nor a block device.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        // Opening a FIFO would wait for a writer, were it not for O_NONBLOCK.
        let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
        let file = opened.at(|| format!("cannot open '{name}'"))?;
        let metadata = file.metadata().at(|| format!("cannot open '{name}'"))?;
        let len = match metadata.file_type() {
            kind if kind.is_file() => metadata.len(),
            kind if kind.is_block_device() => {
                (&file).seek(SeekFrom::End(0)).at(|| format!("cannot tell the size of '{name}'"))?
            }
            _ => {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("'{name}' is neither a file nor a block device"),
                )
                .with_hint("say - as the archive to read from a pipe"));
            }
        };
        Ok(Self { file, len, name })
    }
}

impl Source for FileSource {
    fn file(&self) -> Option<&File> {
        Some(&self.file)
    }
}

impl ReadAt for FileSource {
    fn read_exact_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let read = self.file.read_exact_at(buf, at);
        read.at(|| format!("cannot read '{}' at offset {at}", self.name))
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// The first bytes of a source.
#[derive(Debug)]
pub struct Prefix {
    source: Arc<dyn Source>,
    len: u64,
}

impl Prefix {
    /// The first `len` bytes of `source`, which has no fewer.
    pub fn new(source: Arc<dyn Source>, len: u64) -> Self {
        Self { len: len.min(source.len()), source }
    }
}

impl Source for Prefix {
    fn file(&self) -> Option<&File> {
        self.source.file()
    }
}

impl ReadAt for Prefix {
    fn read_exact_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        if at.saturating_add(buf.len() as u64) > self.len {
            return Err(Error::new(ErrorKind::Incomplete, format!("'{}' ends before that", self.name())));
        }
        self.source.read_exact_at(at, buf)
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn name(&self) -> &str {
        self.source.name()
    }
}
