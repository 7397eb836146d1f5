//! QEMU's image locks: whether somebody writes, and keeping others from beginning to.
//!
//! QEMU locks single bytes of each image file with open-file-description locks, all of them shared: byte
//! 100 + n says "I use permission n", byte 200 + n "I do not let others use permission n" (its
//! block/file-posix.c). Permission 0 is consistent reading, 1 is writing, 3 is resizing. So a lock on byte
//! 101 means a writer, and locks on 201 and 203 keep any QEMU from becoming one. A file system without locks
//! gives a warning, as QEMU itself does.
//!
//! Imports: `error`, `openers`, `file`, `format`.

use std::fs::File;
use std::ops::Range;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::file::HostFile;
use super::format::ImageAccess;
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::openers::{self, Opened};

/// Somebody writes.
const WRITER: i64 = 101;
/// All that QEMU and we lock.
const ALL: Range<i64> = 100..300;
/// We read; nobody else may write or resize.
const OURS: [i64; 3] = [100, 201, 203];

fn lock_type(value: i32) -> Result<i16> {
    i16::try_from(value).map_err(|_| Error::new(ErrorKind::Internal, "a lock type is out of range"))
}

fn one_byte(kind: i32, at: i64) -> Result<libc::flock> {
    Ok(libc::flock {
        l_type: lock_type(kind)?,
        l_whence: lock_type(libc::SEEK_SET)?,
        l_start: at,
        l_len: 1,
        l_pid: 0,
    })
}

fn in_use(file: &HostFile, what: &str) -> Error {
    Error::new(ErrorKind::InUse, format!("'{}' {what}", file.name()))
        .with_hint("shut the guest down, or freeze its disk and say --frozen")
}

/// Whether somebody else, a QEMU most likely, has `file` open as a disk: it holds an image lock, or is seen
/// with the file.
///
/// # Errors
/// When the file system or `/proc` can't be asked. A file system without locks answers that there are none.
pub fn is_used(file: &File) -> Result<bool> {
    Ok(is_locked(file).at(|| "cannot ask for the locks of an open file".to_owned())?
        || openers::of(file)? != Opened::No)
}

pub(super) fn is_locked(file: &File) -> std::io::Result<bool> {
    let Ok(mut probe) = one_byte(libc::F_WRLCK, ALL.start) else { return Ok(false) };
    probe.l_len = ALL.end - ALL.start;
    match fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe)) {
        Ok(_) => Ok(i32::from(probe.l_type) != libc::F_UNLCK),
        Err(Errno::ENOLCK | Errno::ENOSYS | Errno::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Refuses a file that a QEMU is writing into, unless the caller vouches, and holds it against new writers as
/// long as it stays open. The sentence that comes back is a warning: the file system has no locks.
///
/// The locks are taken first and the writer is looked for then. A QEMU that opens the file does the same, its
/// own lock first, so that of two at the same moment at least one sees the other.
pub(super) fn hold(file: &HostFile, usage: ImageAccess) -> Result<Option<String>> {
    if usage == ImageAccess::Unlocked {
        return Ok(None);
    }
    for byte in OURS {
        let lock = one_byte(libc::F_RDLCK, byte)?;
        match fcntl(&file.file, FcntlArg::F_OFD_SETLK(&lock)) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => {
                return Err(in_use(file, "is locked by another program"));
            }
            Err(error) => return unlocked(file, error),
        }
    }
    if usage == ImageAccess::Locked {
        let mut probe = one_byte(libc::F_WRLCK, WRITER)?;
        match fcntl(&file.file, FcntlArg::F_OFD_GETLK(&mut probe)) {
            Ok(_) if probe.l_type != lock_type(libc::F_UNLCK)? => {
                return Err(in_use(file, "is open for writing in a running QEMU"));
            }
            Ok(_) => {}
            Err(error) => return unlocked(file, error),
        }
    }
    Ok(None)
}

/// Refuses a file that a QEMU of this host has open for writing, unless the caller vouches: it may hold no
/// locks, or none that are seen here.
pub(super) fn refuse_writer(file: &HostFile, usage: ImageAccess) -> Result<()> {
    match usage {
        ImageAccess::Locked if openers::of(&file.file)? == Opened::Written => {
            Err(in_use(file, "is open for writing in a running QEMU"))
        }
        ImageAccess::Locked | ImageAccess::Frozen | ImageAccess::Unlocked => Ok(()),
    }
}

/// Gives back what [`hold`] took. Closing the file alone would not do: a process that another thread is just
/// starting has it open, too, until it is that program, and a QEMU that is to write would be refused
/// meanwhile.
pub(super) fn release(file: &File) {
    let Ok(mut all) = one_byte(libc::F_UNLCK, ALL.start) else { return };
    all.l_len = ALL.end - ALL.start;
    match fcntl(file, FcntlArg::F_OFD_SETLK(&all)) {
        Ok(_) | Err(Errno::ENOLCK | Errno::ENOSYS | Errno::EOPNOTSUPP) => {}
        Err(error) => {
            tracing::warn!(%error, "an image's locks could not be given back; they go with its file")
        }
    }
}

/// What to make of a lock call that failed for another reason than a lock.
fn unlocked(file: &HostFile, error: Errno) -> Result<Option<String>> {
    match error {
        Errno::ENOLCK | Errno::ENOSYS | Errno::EOPNOTSUPP => Ok(Some(format!(
            "'{}' lies on a file system without locks: a guest that writes into it would go unnoticed",
            file.name()
        ))),
        other => Err(other).at(|| format!("cannot lock '{}'", file.name())),
    }
}
