//! A host file of a chain: a regular file or a block device, opened read-only.
//!
//! Opening never blocks and never follows a name to anything else (a FIFO, a terminal): names of backing
//! files come from headers. The length is taken once, at opening; a block device tells it by seeking to its end.
//!
//! Imports: `error`, `units`.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind as IoKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::units::HostOffset;

/// Which file of a [`super::DiskImage`] an extent lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileIndex(pub(super) u32);

/// A regular file or block device. Its name in messages is its path.
#[derive(Debug)]
pub(super) struct HostFile {
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// Bytes, as of the opening.
    pub(super) len: u64,
    /// Device and inode: what tells one file from another whatever its name.
    pub(super) identity: (u64, u64),
    pub(super) is_device: bool,
}

impl HostFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        // The name may come from a header. Opening some devices does something (a watchdog, a tape), so what
        // it is, is asked first; O_NONBLOCK and O_NOCTTY are for a name that changes in between.
        let opening = || format!("cannot open '{}'", path.display());
        let kind = std::fs::metadata(path).at(opening)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(not_a_disk(path));
        }
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).at(opening)?;
        Self::new(file, path)
    }

    pub(super) fn new(mut file: File, path: &Path) -> Result<Self> {
        let meta = file.metadata().at(|| format!("cannot examine '{}'", path.display()))?;
        let kind = meta.file_type();
        let is_device = kind.is_block_device();
        if !is_device && !kind.is_file() {
            return Err(not_a_disk(path));
        }
        let (len, identity) = if is_device {
            let end = file.seek(SeekFrom::End(0)).at(|| format!("cannot measure '{}'", path.display()))?;
            // Two nodes of one device are one device: `rdev` tells, not the node's inode.
            (end, (u64::MAX, meta.rdev()))
        } else {
            (meta.len(), (meta.dev(), meta.ino()))
        };
        Ok(Self { file, path: path.to_owned(), len, identity, is_device })
    }

    /// The name for messages.
    pub(super) fn name(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// Fills `buf` from `at`. A file that ends before is damaged: whoever asks has looked at its length.
    pub(super) fn read(&self, at: HostOffset, buf: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buf, at.get()).map_err(|error| {
            if error.kind() == IoKind::UnexpectedEof {
                let what = format!("'{}' ends within {} bytes at host offset {at}", self.name(), buf.len());
                return Error::new(ErrorKind::BadImage, what)
                    .with_hint("the file was cut short; restore it from a copy");
            }
            Error::io(
                format!("cannot read {} bytes at host offset {at} of '{}'", buf.len(), self.name()),
                error,
            )
        })
    }
}

fn not_a_disk(path: &Path) -> Error {
    let what = format!("'{}' is neither a regular file nor a block device", path.display());
    Error::new(ErrorKind::Unsupported, what)
}
