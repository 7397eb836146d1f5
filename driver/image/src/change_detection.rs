//! Who may write to a file past QEMU's locks: a loop device over it, a file system that is mounted from it,
//! swap.
//!
//! The kernel is asked by its files in `/sys` and `/proc`. What is mounted read-only is no writer. A block
//! device counts with its partitions and with what is made of it (device-mapper, RAID). A device that the
//! kernel gives to nobody else, and of which nobody here knows why, is mounted in another namespace.
//!
//! Imports: `error`, `mounts`, `file`, `device_counters`.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::stat::makedev;

use super::device_counters::sys;
use super::file::HostFile;
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::mounts;

/// The most devices that are looked at for one source.
const MOST: usize = 1024;

/// Refuses a file that is written to by what knows no image locks, or may be at any moment.
pub(super) fn refuse(file: &HostFile) -> Result<()> {
    if let Some(swap) = swap(file)? {
        let what = format!("'{}' is swapped to, as '{}'", file.name(), swap.display());
        return Err(Error::new(ErrorKind::InUse, what).with_hint("switch that off with 'swapoff' first"));
    }
    if file.is_device { refuse_device(file) } else { refuse_loops(file) }
}

/// The swap that is this file.
fn swap(file: &HostFile) -> Result<Option<PathBuf>> {
    Ok(mounts::swaps()?.into_iter().find(|swap| identity(swap) == Some(file.identity)))
}

/// As [`HostFile::identity`] has it; of what can't be looked at, nothing.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = fs::metadata(path).ok()?;
    let is_device = found.file_type().is_block_device();
    Some(if is_device { (u64::MAX, found.rdev()) } else { (found.dev(), found.ino()) })
}

fn refuse_loops(file: &HostFile) -> Result<()> {
    for entry in entries(Path::new("/sys/block"))? {
        let backing = entry.join("loop/backing_file");
        // One that is not attached has none.
        let Ok(path) = fs::read_to_string(&backing) else { continue };
        let is_it = identity(Path::new(path.trim_end_matches('\n'))) == Some(file.identity);
        if is_it && !is_read_only(&entry) {
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let what = format!("'{}' is attached to /dev/{name}, which can be written to", file.name());
            return Err(Error::new(ErrorKind::InUse, what).with_hint(format!(
                "unmount and detach it ('losetup -d /dev/{name}'), or attach it with 'losetup --read-only'; where nothing writes to it, say --frozen"
            )));
        }
    }
    Ok(())
}

fn refuse_device(file: &HostFile) -> Result<()> {
    let family = family(file.identity.1)?;
    let mounted = mounts::all()?;
    let is_of = |mount: &&mounts::MountEntry| {
        let source = || identity(&mount.source).filter(|(kind, _)| *kind == u64::MAX);
        family.contains(&mount.device) || source().is_some_and(|(_, device)| family.contains(&device))
    };
    let here: Vec<&mounts::MountEntry> = mounted.iter().filter(is_of).collect();
    let frozen =
        "unmount it or mount it read-only; where it stays as it is, for example by 'fsfreeze', say --frozen";
    if let Some(mount) = here.iter().find(|mount| mount.writable) {
        let what = format!("'{}' is mounted at '{}' and can be written to", file.name(), mount.at.display());
        return Err(Error::new(ErrorKind::InUse, what).with_hint(frozen));
    }
    for swap in mounts::swaps()? {
        if identity(&swap).is_some_and(|(kind, device)| kind == u64::MAX && family.contains(&device)) {
            let what = format!("'{}' has the swap '{}'", file.name(), swap.display());
            return Err(Error::new(ErrorKind::InUse, what).with_hint("switch that off with 'swapoff' first"));
        }
    }
    if here.is_empty() && family.len() == 1 && is_claimed(&file.path)? {
        let what = format!(
            "'{}' is in use: it is mounted where this process does not see it, or a part of something",
            file.name()
        );
        return Err(Error::new(ErrorKind::InUse, what).with_hint(frozen));
    }
    Ok(())
}

/// The device with its partitions and all that is made of them.
fn family(device: u64) -> Result<Vec<u64>> {
    let (mut family, mut next) = (vec![device], 0);
    while let Some(member) = family.get(next).copied() {
        next += 1;
        let place = sys(member);
        let parts = entries(&place)?.into_iter().filter(|entry| entry.join("partition").is_file());
        for entry in parts.chain(entries(&place.join("holders"))?) {
            if let Some(found) = number(&entry.join("dev"))
                && !family.contains(&found)
                && family.len() < MOST
            {
                family.push(found);
            }
        }
    }
    Ok(family)
}

/// Whether the kernel has given the device to somebody for good: a mount, RAID, device-mapper.
fn is_claimed(path: &Path) -> Result<bool> {
    match OpenOptions::new().read(true).custom_flags(libc::O_EXCL | libc::O_NONBLOCK).open(path) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == IoKind::ResourceBusy => Ok(true),
        Err(error) => Err(error).at(|| format!("cannot open '{}'", path.display())),
    }
}

fn is_read_only(place: &Path) -> bool {
    fs::read_to_string(place.join("ro")).is_ok_and(|text| text.trim() == "1")
}

/// `8:1`, as a file has it.
fn number(path: &Path) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// What is in a directory; nothing, where it is not there.
fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let reading = || format!("cannot read '{}'", directory.display());
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == IoKind::NotFound => return Ok(Vec::new()),
        found => found.at(reading)?,
    };
    entries.map(|entry| entry.map(|entry| entry.path()).at(reading)).collect()
}
