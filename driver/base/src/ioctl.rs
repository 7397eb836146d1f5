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
    #![allow(missing_docs, unreachable_pub)]
    // linux/fs.h: FICLONERANGE is _IOW(0x94, 13, struct file_clone_range).
    nix::ioctl_write_ptr!(ficlonerange, 0x94, 13, nix::libc::file_clone_range);

    // linux/mtio.h: MTIOCTOP is _IOW('m', 1, struct mtop), MTIOCGET _IOR('m', 2, struct mtget), MTIOCPOS
    // _IOR('m', 3, struct mtpos).
    #[repr(C)]
    pub struct MtOp {
        pub op: nix::libc::c_short,
        pub count: nix::libc::c_int,
    }
    #[repr(C)]
    #[derive(Default)]
    pub struct MtGet {
        pub kind: nix::libc::c_long,
        pub residual: nix::libc::c_long,
        pub register: nix::libc::c_long,
        pub state: nix::libc::c_long,
        pub error: nix::libc::c_long,
        pub file: nix::libc::c_int,
        pub block: nix::libc::c_int,
    }
    #[repr(C)]
    #[derive(Default)]
    pub struct MtPos {
        pub block: nix::libc::c_long,
    }
    nix::ioctl_write_ptr!(mtioctop, b'm', 1, MtOp);
    nix::ioctl_read!(mtiocget, b'm', 2, MtGet);
    nix::ioctl_read!(mtiocpos, b'm', 3, MtPos);
}

/// Operations of `MTIOCTOP`, with their numbers in linux/mtio.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TapeOp {
    /// `MTFSF`: behind the next filemarks.
    ForwardFiles = 1,
    /// `MTBSR`: back over blocks.
    BackBlocks = 4,
    /// `MTWEOF`: write filemarks and wait.
    WriteMarks = 5,
    /// `MTREW`: rewind.
    Rewind = 6,
    /// `MTOFFL`: rewind and unload.
    Offline = 7,
    /// `MTEOM`: to the end of what is recorded.
    EndOfData = 12,
    /// `MTERASE`: erase from here; a count of 0 does it quickly.
    Erase = 13,
    /// `MTSETBLK`: length of blocks, 0 for variable ones.
    SetBlock = 20,
    /// `MTSEEK`: to a block.
    Seek = 22,
    /// `MTSETDRVBUFFER`: the drive's buffer, and options of the st driver.
    SetBuffer = 24,
    /// `MTCOMPRESSION`: compression in the drive on (1) or off (0).
    Compression = 32,
    /// `MTWEOFI`: write filemarks without waiting.
    WriteMarksAtOnce = 35,
}

/// Tells a tape drive to do something: `MTIOCTOP` of st(4).
///
/// # Errors
/// What the driver says.
pub fn tape(file: &File, op: TapeOp, count: i32) -> io::Result<()> {
    let request = raw::MtOp { op: op as libc::c_short, count };
    // SAFETY: `request` has the layout that the kernel reads, lives during the call and is not kept after it;
    // the descriptor is open, borrowed from a file that outlives the call. A file that is no tape answers
    // ENOTTY.
    unsafe { raw::mtioctop(file.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// The bits `mt_gstat` of `MTIOCGET`.
///
/// # Errors
/// What the driver says.
pub fn tape_state(file: &File) -> io::Result<u64> {
    let mut answer = raw::MtGet::default();
    // SAFETY: `answer` has the layout that the kernel fills in, and lives during the call; the descriptor is
    // open.
    unsafe { raw::mtiocget(file.as_raw_fd(), &raw mut answer) }?;
    // Bits, not a number.
    Ok(u64::from_ne_bytes(answer.state.to_ne_bytes()))
}

/// Where a tape drive says that it stands: `MTIOCPOS`.
///
/// # Errors
/// What the driver says.
pub fn tape_position(file: &File) -> io::Result<u64> {
    let mut answer = raw::MtPos::default();
    // SAFETY: as in `tape_state`.
    unsafe { raw::mtiocpos(file.as_raw_fd(), &raw mut answer) }?;
    u64::try_from(answer.block).map_err(io::Error::other)
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
    // SAFETY: `request` is the structure that the kernel reads, alive during the call and not kept after it;
    // both descriptors are open, borrowed from files that outlive the call.
    unsafe { raw::ficlonerange(target.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// Writes the dirty pages of `file` to its place on the disk and waits for them: `sync_file_range(2)`.
/// Neither the file's metadata nor the disk's cache is flushed, so this makes nothing durable; it only makes
/// pages clean.
///
/// # Errors
/// When a page could not be written. The kernel then has told it, and need not tell it again to an fsync
/// through the same descriptor. A kernel that does not have this call (a sandbox) is no error.
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
