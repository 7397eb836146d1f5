//! Images as files of this host: who writes to them, whether they are there, how much room is around them.
//!
//! A trait, because the simulated hypervisor keeps its images in memory.
//!
//! QEMU marks its use of an image by open-file-description locks on single bytes (block/file-posix.c: a
//! shared lock on byte 100 + n says that permission n is in use; on 200 + n, that it is not shared).
//! Permission 1 is writing, so a lock on byte 101 means that a QEMU writes to the file. A read lock of ours
//! on 100, 201 and 203 keeps others from committing into a frozen base while it is read, and lets a guest run
//! on an overlay over it. Where locks are not to be seen, the files that a QEMU has open are (`openers`); an
//! image is free when neither says otherwise.
//!
//! The guest's user may write to the images and to the directories that they are in. So files are opened by
//! `safe_path`, headers are read by the crate `image`, and the one program of QEMU's that runs here, for a
//! commit, does so in a `sandbox` (`offline_commit`).
//!
//! Imports: `error`, `openers`, `safe_path`, `image`.

use std::fmt::Debug;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{OFlags, RenameFlags};

use super::is_our_overlay;
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::openers::{self, OpenFiles, Opened};
use virtfold_base::safe_path::{self, Entry};

mod contents;
mod offline_commit;
mod sandbox;

pub use self::offline_commit::OfflineCommit;

/// The byte that a QEMU writer has locked.
const WRITER: i64 = 101;
/// The bytes that a reader of a frozen base holds.
const READER: [i64; 3] = [100, 201, 203];

/// How a qcow2 file begins, and where its header counts the internal snapshots (docs/interop/qcow2.rst).
const QCOW2: &[u8] = b"QFI\xfb";
const SNAPSHOTS: std::ops::Range<usize> = 60..64;
/// A file of zeros that is shorter never was an image.
const BLANK: usize = 1 << 20;

/// An overlay that was touched since may be somebody's who is at work.
const FRESH: Duration = Duration::from_secs(600);

/// Who uses an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageUse {
    /// No file there.
    Absent,
    /// A file that no QEMU has open.
    Free,
    /// A QEMU has it open and does not write to it.
    Read,
    /// A QEMU writes to it.
    Written,
}

/// An image at one moment. As long as it is the same, nobody has written to the file in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageStamp {
    /// When it was last written to, since 1970.
    pub modified: Duration,
    /// Its size, bytes.
    pub size: u64,
}

/// The host's files as far as a backup and its recovery touch them.
pub trait HostFiles: Debug + Send + Sync {
    /// Who uses an image.
    ///
    /// # Errors
    /// The file can't be opened or asked.
    fn image_use(&self, path: &Path) -> Result<ImageUse>;

    /// What all QEMUs of this host have open at this moment, as far as it can be seen.
    ///
    /// # Errors
    /// The processes can't be looked at.
    fn open_files(&self) -> Result<OpenFiles>;

    /// Keeps others from writing to a frozen image until the result is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`] when somebody writes to it.
    fn hold(&self, path: &Path) -> Result<Box<dyn Debug + Send + Sync>>;

    /// Removes an overlay that is [`ImageUse::Free`], durably.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`] when a QEMU has it open.
    fn remove(&self, path: &Path) -> Result<()>;

    /// Renames a file that is [`ImageUse::Free`] to a free name beside it, durably, and returns that.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`] when a QEMU has it open.
    fn quarantine(&self, path: &Path) -> Result<PathBuf>;

    /// The file's mark; `None` when it is not there. A block device's says nothing of its contents.
    ///
    /// # Errors
    /// The file can't be asked.
    fn mark(&self, path: &Path) -> Result<Option<ImageStamp>>;

    /// Device and inode of a file, which a file that is put in its place has not (the device's own number and
    /// 0 for a block device); `None` when it is not there.
    ///
    /// # Errors
    /// The file can't be asked.
    fn identity(&self, path: &Path) -> Result<Option<(u64, u64)>>;

    /// The time by which files are marked, since 1970.
    fn now(&self) -> Duration;

    /// Whether somebody's internal snapshots lie inside a qcow2 image; they are gone with its file. `false`
    /// when it is not there.
    ///
    /// # Errors
    /// The file can't be read.
    fn has_snapshots(&self, path: &Path) -> Result<bool>;

    /// Writes what a qcow2 overlay has into the image right below it, and leaves the overlay as it is. Both
    /// have the same contents then. Nobody can open them meanwhile. One that was broken off is done again.
    ///
    /// # Errors
    /// [`ErrorKind::BadImage`] where an image or its header is not what the journal has; somebody has one of
    /// them open; the base is full.
    fn offline_commit(&self, commit: &OfflineCommit<'_>) -> Result<()>;

    /// Whether an overlay has nothing of its own: whoever reads it sees the image below.
    ///
    /// # Errors
    /// It can't be read.
    fn is_empty(&self, overlay: &Path) -> Result<bool>;

    /// Whether a qcow2 overlay and its base, of `format`, have the same contents. Reads both; nobody may
    /// write to them.
    ///
    /// # Errors
    /// One of them can't be read, or is in use.
    fn same(&self, overlay: &Path, base: &Path, format: &str) -> Result<bool>;

    /// The images below a qcow2 image, as the headers say, the next one first.
    ///
    /// # Errors
    /// One of them can't be read.
    fn below(&self, path: &Path) -> Result<Vec<PathBuf>>;

    /// The overlays by virtfold's names in a directory that were not touched for a while; a fresh one may be
    /// somebody's who is at work.
    ///
    /// # Errors
    /// The directory can't be read.
    fn overlays(&self, directory: &Path) -> Result<Vec<PathBuf>>;

    /// Bytes that the file takes on its file system.
    ///
    /// # Errors
    /// The file can't be asked.
    fn allocated(&self, path: &Path) -> Result<u64>;

    /// Bytes free for QEMU in a directory's file system.
    ///
    /// # Errors
    /// The file system can't be asked.
    fn free(&self, directory: &Path) -> Result<u64>;
}

/// This host's own files.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalFiles;

impl HostFiles for LocalFiles {
    fn image_use(&self, path: &Path) -> Result<ImageUse> {
        let file = match safe_path::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(ImageUse::Absent),
            Err(e) => return Err(Error::io(format!("cannot open '{}'", path.display()), e)),
        };
        if is_locked(&file, WRITER, path)? {
            return Ok(ImageUse::Written);
        }
        let opened = openers::of(&file)?;
        if opened == Opened::Written {
            return Ok(ImageUse::Written);
        }
        for byte in READER {
            if is_locked(&file, byte, path)? {
                return Ok(ImageUse::Read);
            }
        }
        Ok(if opened == Opened::Read { ImageUse::Read } else { ImageUse::Free })
    }

    fn open_files(&self) -> Result<OpenFiles> {
        OpenFiles::look()
    }

    fn hold(&self, path: &Path) -> Result<Box<dyn Debug + Send + Sync>> {
        let file = safe_path::open(path).at(|| format!("cannot open '{}'", path.display()))?;
        let held = LockedImage(file);
        for byte in READER {
            let taken = fcntl(&held.0, FcntlArg::F_OFD_SETLK(&lock(libc::F_RDLCK, byte)));
            taken.map_err(|e| in_use(path).with_source(std::io::Error::from(e)))?;
        }
        // Only now, so that nobody can become a writer in between.
        if is_locked(&held.0, WRITER, path)? || openers::of(&held.0)? == Opened::Written {
            return Err(in_use(path));
        }
        Ok(Box::new(held))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        let LockedEntry { entry, file: _locked } = lock_all(path)?;
        let directory = entry.directory();
        directory.remove_file(entry.name()).at(|| format!("cannot remove '{}'", path.display()))?;
        directory.sync().at(|| format!("cannot sync the directory '{}'", directory.path().display()))
    }

    fn quarantine(&self, path: &Path) -> Result<PathBuf> {
        let LockedEntry { entry, file: _locked } = lock_all(path)?;
        let doing = || format!("cannot rename '{}'", path.display());
        let (directory, from) = (entry.directory(), entry.name());
        for number in 0..1000 {
            let mut to = from.to_os_string();
            to.push(if number == 0 { ".quarantined".to_owned() } else { format!(".quarantined-{number}") });
            match directory.rename(from, &to, RenameFlags::NOREPLACE) {
                Ok(()) => {
                    let syncing = || format!("cannot sync the directory '{}'", directory.path().display());
                    return directory.sync().at(syncing).map(|()| path.with_file_name(to));
                }
                Err(rustix::io::Errno::EXIST) => {}
                Err(errno) => return Err(Error::io(doing(), errno.into())),
            }
        }
        Err(Error::new(ErrorKind::Exists, doing()))
    }

    fn mark(&self, path: &Path) -> Result<Option<ImageStamp>> {
        let metadata = match path.metadata() {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => return Ok(None),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(format!("cannot look at '{}'", path.display()), e)),
        };
        let modified = metadata.modified().at(|| format!("cannot look at '{}'", path.display()))?;
        // A time before 1970 is nobody's last write.
        let modified = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Some(ImageStamp { modified, size: metadata.len() }))
    }

    fn identity(&self, path: &Path) -> Result<Option<(u64, u64)>> {
        match path.metadata() {
            Ok(found) => Ok(Some(identity_of(&found))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(format!("cannot look at '{}'", path.display()), e)),
        }
    }

    fn now(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn has_snapshots(&self, path: &Path) -> Result<bool> {
        let start = match start_of(path, SNAPSHOTS.end) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            start => start?,
        };
        let count = start.get(SNAPSHOTS).unwrap_or_default();
        Ok(start.starts_with(QCOW2) && count.iter().any(|byte| *byte != 0))
    }

    fn offline_commit(&self, commit: &OfflineCommit<'_>) -> Result<()> {
        offline_commit::commit(commit)
    }

    fn is_empty(&self, overlay: &Path) -> Result<bool> {
        // What a libvirtd leaves that is killed before QEMU has written the header.
        let start = start_of(overlay, BLANK)?;
        if start.len() < BLANK && start.iter().all(|byte| *byte == 0) {
            return Ok(true);
        }
        contents::is_empty(overlay)
    }

    fn same(&self, overlay: &Path, base: &Path, format: &str) -> Result<bool> {
        contents::same(overlay, base, format)
    }

    fn below(&self, path: &Path) -> Result<Vec<PathBuf>> {
        virtfold_image::files_below(path)
    }

    fn overlays(&self, directory: &Path) -> Result<Vec<PathBuf>> {
        let reading = || format!("cannot read the directory '{}'", directory.display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir(directory).at(reading)? {
            let path = entry.at(reading)?.path();
            if !is_our_overlay(&path) {
                continue;
            }
            let touched = path.symlink_metadata().and_then(|m| m.modified());
            if touched.is_ok_and(|t| t.elapsed().is_ok_and(|age| age > FRESH)) {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }

    fn allocated(&self, path: &Path) -> Result<u64> {
        let metadata = path.metadata().at(|| format!("cannot look at '{}'", path.display()))?;
        Ok(metadata.blocks().saturating_mul(512))
    }

    fn free(&self, directory: &Path) -> Result<u64> {
        let stat = rustix::fs::statvfs(directory);
        let stat = stat.at(|| format!("cannot look at the file system of '{}'", directory.display()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// An image with locks on it. They go with it: a process that is just being started may have its file open
/// for a moment longer.
#[derive(Debug)]
struct LockedImage(File);

impl Drop for LockedImage {
    fn drop(&mut self) {
        let mut all = lock(libc::F_UNLCK, 100);
        all.l_len = 200;
        if let Err(error) = fcntl(&self.0, FcntlArg::F_OFD_SETLK(&all)) {
            tracing::debug!(%error, "an image's locks go with its file");
        }
    }
}

/// The first bytes of a file, at most `most`.
fn start_of(path: &Path, most: usize) -> Result<Vec<u8>> {
    let reading = || format!("cannot read '{}'", path.display());
    let mut start = Vec::new();
    let file = safe_path::open(path).at(reading)?;
    file.take(most as u64).read_to_end(&mut start).at(reading)?;
    Ok(start)
}

/// What tells an image from another: device and inode, of a block device its number.
fn identity_of(found: &Metadata) -> (u64, u64) {
    if found.file_type().is_block_device() { (found.rdev(), 0) } else { (found.dev(), found.ino()) }
}

/// A file that is locked, and where it was found.
struct LockedEntry {
    entry: Entry,
    file: File,
}

/// Write locks on all of QEMU's bytes: refused when any QEMU has the file open, and none that locks can open
/// it while the result lives.
fn lock_all(path: &Path) -> Result<LockedEntry> {
    let opening = || format!("cannot open '{}'", path.display());
    let entry = Entry::locate(path).at(opening)?;
    let file = entry.open(OFlags::RDWR | OFlags::NONBLOCK).at(opening)?;
    let mut all = lock(libc::F_WRLCK, 100);
    all.l_len = 200;
    let taken = fcntl(&file, FcntlArg::F_OFD_SETLK(&all));
    taken.map_err(|e| in_use(path).with_source(std::io::Error::from(e)))?;
    if openers::of(&file)? != Opened::No {
        return Err(in_use(path));
    }
    Ok(LockedEntry { entry, file })
}

fn in_use(path: &Path) -> Error {
    Error::new(ErrorKind::InUse, format!("'{}' is in use by a virtual machine", path.display()))
}

fn lock(kind: i32, byte: i64) -> libc::flock {
    let kind = i16::try_from(kind).unwrap_or_default();
    let whence = i16::try_from(libc::SEEK_SET).unwrap_or_default();
    libc::flock { l_type: kind, l_whence: whence, l_start: byte, l_len: 1, l_pid: 0 }
}

/// Whether another open file description holds any lock on the byte.
fn is_locked(file: &File, byte: i64, path: &Path) -> Result<bool> {
    let mut probe = lock(libc::F_WRLCK, byte);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe))
        .map_err(std::io::Error::from)
        .at(|| format!("cannot ask for the locks of '{}'", path.display()))?;
    Ok(i32::from(probe.l_type) != libc::F_UNLCK)
}

#[cfg(test)]
mod tests;
