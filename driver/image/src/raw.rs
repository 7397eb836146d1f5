//! A raw image as runs: data where the host file has blocks, zeros where it has holes.
//!
//! The file system is asked (SEEK_DATA, SEEK_HOLE) as the walk goes, so nothing is kept however fragmented
//! the file is. One that can't tell, and every block device, is all data.
//!
//! Imports: `error`, `units`, `file`, `allocation_table`.

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::allocation_table::{Allocation, Extent};
use super::file::{FileIndex, HostFile};
use virtfold_base::error::{IoContext, Result};
use virtfold_base::units::{GuestOffset, HostOffset};

/// A stretch of a host file with blocks behind it, or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RawExtent {
    /// Data up to this offset.
    Data(u64),
    /// A hole up to this offset.
    Hole(u64),
}

/// What begins at `at` of `file`. Behind the end is a hole without end.
pub(super) fn stretch(file: &HostFile, at: u64) -> Result<RawExtent> {
    let data = next_data(file, at)?;
    if data > at { Ok(RawExtent::Hole(data)) } else { Ok(RawExtent::Data(next_hole(file, at)?)) }
}

/// The first offset from `at` on that has data; `u64::MAX` where nothing but a hole follows.
pub(super) fn next_data(file: &HostFile, at: u64) -> Result<u64> {
    if at >= file.len {
        return Ok(u64::MAX);
    }
    if file.is_device {
        return Ok(at);
    }
    match lseek(&file.file, at.cast_signed(), Whence::SeekData).map(i64::cast_unsigned) {
        // What was appended since the opening is none of ours.
        Ok(data) => Ok(if data < file.len { data.max(at) } else { u64::MAX }),
        Err(Errno::ENXIO) => Ok(u64::MAX),
        // This file system can't tell.
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(at),
        Err(error) => Err(error).at(|| format!("cannot look for holes in '{}'", file.name())),
    }
}

/// Where the data that has `at` in it ends, at the end of the file at the latest.
pub(super) fn next_hole(file: &HostFile, at: u64) -> Result<u64> {
    if file.is_device {
        return Ok(file.len);
    }
    match lseek(&file.file, at.cast_signed(), Whence::SeekHole).map(i64::cast_unsigned) {
        // A file that changes under the walk must not stop it.
        Ok(hole) => Ok(if hole > at { hole.min(file.len) } else { file.len }),
        Err(Errno::ENXIO | Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(file.len),
        Err(error) => Err(error).at(|| format!("cannot look for holes in '{}'", file.name())),
    }
}

/// A place in the walk of one raw image.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    pub(super) file: &'a HostFile,
    pub(super) index: FileIndex,
    pub(super) capacity: u64,
    pub(super) depth: u32,
}

impl Cursor<'_> {
    /// The run that begins at `at`, below the capacity.
    pub(super) fn extent_at(&self, at: GuestOffset) -> Result<Extent> {
        let host = HostOffset::new(at.get());
        let (end, place) = match stretch(self.file, at.get())? {
            RawExtent::Data(end) => (end, Allocation::Data { file: self.index, host }),
            RawExtent::Hole(end) => (end, Allocation::Zero { host: Some(host) }),
        };
        let len = end.min(self.capacity) - at.get();
        Ok(Extent { guest: at, len, depth: self.depth, place })
    }
}
