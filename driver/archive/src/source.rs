//! Sources: archives that can be read at any place. A regular file is one, a block device, and the first
//! bytes of another source.
//!
//! Imports: `error`, `safe_path`, `stream` (the trait `ReadAt`).

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::sync::Arc;

use super::stream::ReadAt;
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::safe_path;

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
    /// When it can't be opened or is neither a regular file nor a block device; a link that others can have
    /// made is on the way or at the end.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = safe_path::open(path).at(|| format!("cannot open '{name}'"))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_not_read_through_a_planted_link() {
        let folder = tempfile::tempdir().unwrap();
        let (secret, own, planted) =
            (folder.path().join("secret"), folder.path().join("own"), folder.path().join("planted"));
        std::fs::write(&secret, "x").unwrap();
        for link in [&own, &planted] {
            std::os::unix::fs::symlink(&secret, link).unwrap();
        }
        std::os::unix::fs::lchown(&planted, Some(65_533), None).unwrap();
        assert_eq!(FileSource::open(&own).unwrap().len(), 1);
        assert_eq!(FileSource::open(&planted).unwrap_err().kind(), ErrorKind::Denied);
    }
}
