//! The ioctls that no library wraps safely: the only room of the crate with unsafe code.
//!
//! Imports: nothing of the crate.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use nix::libc::file_clone_range;

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
