//! What the kernel counts of writes to a block device, in `/sys`.

use std::fs;
use std::io::ErrorKind as IoKind;
use std::path::PathBuf;

use nix::sys::stat::{major, minor};

/// What was written to a block device: requests and sectors, and the same of what was discarded.
pub(super) type DeviceWriteCounters = [u64; 4];

/// What was written to a block device since it is there; nothing where the kernel does not say.
pub(super) fn written(device: u64) -> std::io::Result<Option<DeviceWriteCounters>> {
    let text = match fs::read_to_string(sys(device).join("stat")) {
        Err(error) if error.kind() == IoKind::NotFound => return Ok(None),
        read => read?,
    };
    let fields: Vec<u64> = text.split_ascii_whitespace().filter_map(|field| field.parse().ok()).collect();
    // Documentation/block/stat.rst: writes, sectors written, discards, sectors discarded.
    let field = |at: usize| fields.get(at).copied().unwrap_or_default();
    Ok(Some([field(4), field(6), field(11), field(13)]))
}

pub(super) fn sys(device: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)))
}
