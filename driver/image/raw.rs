//! A raw image as runs: data where the host file has blocks, zeros where it has holes.
//!
//! The file system is asked (SEEK_DATA, SEEK_HOLE) as the walk goes, so nothing is kept however fragmented the
//! file is. One that can't tell, and every block device, is all data.
//!
//! Imports: `error`, `units`, `file`, `table`.

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::file::{FileIndex, HostFile};
use super::table::{Extent, Place};
use crate::error::{IoContext, Result};
use crate::units::{GuestOffset, HostOffset};

/// A stretch of a host file with blocks behind it, or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stretch {
    /// Data up to this offset.
    Data(u64),
    /// A hole up to this offset.
    Hole(u64),
}

/// What begins at `at` of `file`. Behind the end is a hole without end.
pub(super) fn stretch(file: &HostFile, at: u64) -> Result<Stretch> {
    if at >= file.len {
        return Ok(Stretch::Hole(u64::MAX));
    }
    if file.is_device {
        return Ok(Stretch::Data(file.len));
    }
    let cannot = || format!("cannot look for holes in '{}'", file.name());
    let seek = |whence| lseek(&file.file, at.cast_signed(), whence).map(i64::cast_unsigned);
    match seek(Whence::SeekData) {
        Ok(data) if data > at => {
            return Ok(if data < file.len { Stretch::Hole(data) } else { Stretch::Hole(u64::MAX) });
        }
        Ok(_) => {}
        Err(Errno::ENXIO) => return Ok(Stretch::Hole(u64::MAX)),
        Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(Stretch::Data(file.len)),
        Err(error) => return Err(error).at(cannot),
    }
    let hole = seek(Whence::SeekHole).at(cannot)?;
    // A file that shrinks under the walk must not stop it.
    Ok(Stretch::Data(if hole > at { hole.min(file.len) } else { file.len }))
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
            Stretch::Data(end) => (end, Place::Data { file: self.index, host }),
            Stretch::Hole(end) => (end, Place::Zero { host: Some(host) }),
        };
        let len = end.min(self.capacity) - at.get();
        Ok(Extent { guest: at, len, depth: self.depth, place })
    }
}
