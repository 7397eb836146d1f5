//! The bytes of a file that QEMU and we lock, and the calls on an open file; who may hold one is `locks`'.
//!
//! Imports: `error`.

use std::fs::File;
use std::ops::Range;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use virtfold_base::error::{Error, ErrorKind, Result};

/// Somebody writes.
pub(super) const WRITER: i64 = 101;
/// All that QEMU and we lock.
pub(super) const ALL: Range<i64> = 100..300;
pub(super) fn lock_type(value: i32) -> Result<i16> {
    i16::try_from(value).map_err(|_| Error::new(ErrorKind::Internal, "a lock type is out of range"))
}

pub(super) fn one_byte(kind: i32, at: i64) -> Result<libc::flock> {
    Ok(libc::flock {
        l_type: lock_type(kind)?,
        l_whence: lock_type(libc::SEEK_SET)?,
        l_start: at,
        l_len: 1,
        l_pid: 0,
    })
}

/// Whether anybody else has one of the bytes.
pub(super) fn is_locked(file: &File) -> std::io::Result<bool> {
    let Ok(mut probe) = one_byte(libc::F_WRLCK, ALL.start) else { return Ok(false) };
    probe.l_len = ALL.end - ALL.start;
    match fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe)) {
        Ok(_) => Ok(i32::from(probe.l_type) != libc::F_UNLCK),
        Err(Errno::ENOLCK | Errno::ENOSYS | Errno::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Gives back what `locks::hold` took. Closing the file alone would not do: a process that another thread is
/// just starting has it open, too, until it is that program, and a QEMU that is to write would be refused
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
