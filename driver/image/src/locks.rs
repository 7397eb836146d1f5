//! QEMU's image locks: whether somebody writes, and keeping others from beginning to.
//!
//! QEMU locks single bytes of each image file with open-file-description locks, all of them shared: byte
//! 100 + n says "I use permission n", byte 200 + n "I do not let others use permission n" (its
//! block/file-posix.c). Permission 0 is consistent reading, 1 is writing, 3 is resizing. So a lock on byte
//! 101 means a writer, and locks on 201 and 203 keep any QEMU from becoming one. A file system without locks
//! gives a warning, as QEMU itself does.
//!
//! Imports: `error`, `openers`, `file`, `format`, `image_lock`.

use std::fs::File;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::file::HostFile;
use super::format::ImageAccess;
use super::image_lock::{WRITER, is_locked, lock_type, one_byte};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::openers::{self, Opened};

/// We read; nobody else may write or resize.
const OURS: [i64; 3] = [100, 201, 203];

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
