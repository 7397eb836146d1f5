//! Telling the kernel what of a file is read next.
//!
//! Imports: `error`, `file`.

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::file::{FileIndex, HostFile};
use virtfold_base::error::{IoContext, Result};

/// Asks the kernel to read `len` bytes of `file` at `at` soon.
pub(super) fn ask(file: &HostFile, at: u64, len: u64) -> Result<()> {
    let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
    posix_fadvise(&file.file, at.cast_signed(), len.cast_signed(), advice)
        .at(|| format!("cannot read ahead in '{}'", file.name()))
}

/// Sorted host ranges with those made one that lie `near` bytes apart or less.
pub(super) fn merge(sorted: &[(FileIndex, u64, u64)], near: u64) -> Vec<(FileIndex, u64, u64)> {
    let mut merged: Vec<(FileIndex, u64, u64)> = Vec::new();
    for &(file, at, len) in sorted {
        match merged.last_mut() {
            Some(last) if last.0 == file && at <= last.1.saturating_add(last.2).saturating_add(near) => {
                last.2 = last.2.max((at - last.1).saturating_add(len));
            }
            _ => merged.push((file, at, len)),
        }
    }
    merged
}
