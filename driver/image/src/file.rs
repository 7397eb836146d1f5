//! A host file of a chain: a regular file or a block device, opened read-only.
//!
//! What it was like at the opening is kept ([`ImageFileStamp`]), to be held against what it is when all has
//! been read: QEMU's locks keep no `dd` away.
//!
//! Opening never blocks and never follows a name to anything else (a FIFO, a terminal): names of backing
//! files come from headers. A link is followed only where nobody but root can have made it (`safe_path`). The
//! length is taken once, at opening; a block device tells it by seeking to its end.
//!
//! Imports: `error`, `units`, `format`, `device_counters`, `image_lock`.

use std::fs::File;
use std::io::{ErrorKind as IoKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::device_counters;
use super::format::ChangeSensitivity;
use super::image_lock;
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::safe_path;
use virtfold_base::units::HostOffset;

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
    /// What it was like when it was opened, before anything was read.
    opened: ImageFileStamp,
}

impl Drop for HostFile {
    fn drop(&mut self) {
        image_lock::release(&self.file);
    }
}

/// What changes with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ImageFileStamp {
    len: u64,
    /// The last write, in seconds and nanoseconds; of a block device nothing.
    modified: (i64, i64),
    /// The last change of anything of it: a write, an owner, a name.
    changed: (i64, i64),
    /// Of a block device, what was written to it since it is there, where the kernel counts that.
    written: Option<device_counters::DeviceWriteCounters>,
}

impl ImageFileStamp {
    fn of(file: &File, len: u64) -> std::io::Result<Self> {
        let meta = file.metadata()?;
        if meta.file_type().is_block_device() {
            let written = device_counters::written(meta.rdev())?;
            return Ok(Self { len, modified: (0, 0), changed: (0, 0), written });
        }
        let (modified, changed) = ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
        Ok(Self { len: meta.len(), modified, changed, written: None })
    }
}

impl HostFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let opened = safe_path::open_image(path, OFlags::RDONLY);
        let file =
            opened.at(|| format!("cannot open '{}'", path.display()))?.ok_or_else(|| not_a_disk(path))?;
        Self::new(file, path)
    }

    pub(super) fn new(mut file: File, path: &Path) -> Result<Self> {
        let meta = file.metadata().at(|| format!("cannot examine '{}'", path.display()))?;
        let kind = meta.file_type();
        let is_device = kind.is_block_device();
        if !is_device && !kind.is_file() {
            return Err(not_a_disk(path));
        }
        let examining = || format!("cannot examine '{}'", path.display());
        let (len, identity) = if is_device {
            let end = file.seek(SeekFrom::End(0)).at(|| format!("cannot measure '{}'", path.display()))?;
            // Two nodes of one device are one device: `rdev` tells, not the node's inode.
            (end, (u64::MAX, meta.rdev()))
        } else {
            (meta.len(), (meta.dev(), meta.ino()))
        };
        let opened = ImageFileStamp::of(&file, len).at(examining)?;
        Ok(Self { file, path: path.to_owned(), len: opened.len, identity, is_device, opened })
    }

    /// Has a block device take what was written to it before: it would count as written later.
    pub(super) fn flush(&mut self) -> Result<()> {
        if self.is_device {
            self.file.sync_all().at(|| format!("cannot flush what was written to '{}'", self.name()))?;
            self.opened = ImageFileStamp::of(&self.file, self.len)
                .at(|| format!("cannot examine '{}'", self.name()))?;
        }
        Ok(())
    }

    /// Fails where the file is not what it was when it was opened.
    pub(super) fn check_unchanged(&self, counts: ChangeSensitivity) -> Result<()> {
        let looking = || format!("cannot examine '{}'", self.name());
        let now = ImageFileStamp::of(&self.file, self.len).at(looking)?;
        let counted = match counts {
            ChangeSensitivity::Any => now,
            ChangeSensitivity::Write => ImageFileStamp { changed: self.opened.changed, ..now },
        };
        if counted == self.opened {
            return Ok(());
        }
        let was_written =
            now.modified != self.opened.modified || now.len != self.opened.len || self.is_device;
        let (what, hint) = if was_written {
            (
                "was written to while it was read",
                "something wrote to it past QEMU's locks: end that, and back up again",
            )
        } else {
            (
                "had its times, owner, permissions or names changed while it was read",
                "leave it alone during the backup; where it surely stays as it is, say --frozen",
            )
        };
        let what = format!("'{}' {what}: the copy would not be of one point in time", self.name());
        Err(Error::new(ErrorKind::InUse, what).with_hint(hint))
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
