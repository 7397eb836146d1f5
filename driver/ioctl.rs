//! The ioctls and system calls that no library wraps safely: the only room of the crate with unsafe code.
//!
//! Imports: nothing of the crate.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use nix::libc::{self, file_clone_range};

mod raw {
    #![allow(missing_docs)]
    // linux/fs.h: FICLONERANGE is _IOW(0x94, 13, struct file_clone_range).
    nix::ioctl_write_ptr!(ficlonerange, 0x94, 13, nix::libc::file_clone_range);
}

/// Shares the blocks of `from` (bytes of `source`) with `target` at `at`: `ioctl_ficlonerange(2)`. Both files
/// lie on one file system, and all three numbers are multiples of its block size.
///
/// # Errors
/// `EOPNOTSUPP`, `EXDEV` or `EINVAL` where this can't be shared, and whatever else the file system says.
pub fn clone_range(target: &File, at: u64, source: &File, from: Range<u64>) -> io::Result<()> {
    let request = file_clone_range {
        src_fd: i64::from(source.as_raw_fd()),
        src_offset: from.start,
        src_length: from.end.saturating_sub(from.start),
        dest_offset: at,
    };
    // SAFETY: `request` is the structure that the kernel reads, alive during the call and not kept after it; both
    // descriptors are open, borrowed from files that outlive the call.
    unsafe { raw::ficlonerange(target.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// Writes the dirty pages of `file` to its place on the disk and waits for them: `sync_file_range(2)`. Neither the
/// file's metadata nor the disk's cache is flushed, so this makes nothing durable; it only makes pages clean.
///
/// # Errors
/// When a page could not be written. The kernel then has told it, and need not tell it again to an fsync through
/// the same descriptor. A kernel that does not have this call (a sandbox) is no error.
pub fn write_back(file: &File) -> io::Result<()> {
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: the call takes numbers only, and the descriptor is open, borrowed from a file that outlives it.
    let done = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
    match io::Error::last_os_error() {
        error if done != 0 && error.raw_os_error() != Some(libc::ENOSYS) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn writing_back_tells_a_file_from_what_is_none() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 100_000]).unwrap();
        write_back(&file).unwrap();
        let (reader, _writer) = io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(reader));
        assert_eq!(write_back(&pipe).unwrap_err().raw_os_error(), Some(libc::ESPIPE));
    }
}
