//! Whether the overlays have room. While an image is copied the guest's writes go to its overlay, and a full
//! file system stops guests.
//!
//! The estimate of an overlay: a tenth of what the disk's images take on the host, at least 16 MiB, at most
//! the disk's capacity. Of each file system the estimates of its overlays must fit in what is free, and
//! `min_free` bytes more.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::volumes::is_block_device;
use super::{Finding, PlanContext, PlannedDisk};
use virtfold_base::error::{ErrorKind, IoContext, Result};
use virtfold_base::units::Human;
use virtfold_hypervisor::host_files::HostFiles;

/// The least that an overlay is estimated to take.
const LEAST: u64 = 16 << 20;
/// An overlay is estimated to take this part of the allocated bytes.
const SHARE: u64 = 10;

/// A file system that overlays go to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FreeSpace {
    /// The directories.
    pub directories: Vec<String>,
    /// The disks whose overlays go there.
    pub disks: Vec<String>,
    /// What they are estimated to take, bytes.
    pub estimate: u64,
    /// What must stay free, bytes.
    pub min_free: u64,
    /// What is free, bytes.
    pub free: u64,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub(super) struct FreeSpaceFindings {
    pub(super) rooms: Vec<FreeSpace>,
    pub(super) obstacles: Vec<Finding>,
    pub(super) notes: Vec<String>,
}

/// What an overlay is estimated to take.
pub(super) fn estimate(capacity: u64, allocated: u64) -> u64 {
    (allocated / SHARE).max(LEAST).min(capacity)
}

/// Looks at the file systems of the overlays.
pub(super) fn look(
    disks: &[PlannedDisk],
    files: &dyn HostFiles,
    context: &PlanContext<'_>,
) -> Result<FreeSpaceFindings> {
    let min_free = context.options.min_free;
    let mut found = FreeSpaceFindings::default();
    let mut rooms: BTreeMap<u64, FreeSpace> = BTreeMap::new();
    for disk in disks {
        let (Some(overlay), Some(bytes)) = (&disk.overlay, disk.overlay_estimate) else { continue };
        let directory = overlay.parent().unwrap_or(Path::new("/"));
        let there = existing(directory);
        let device = device(&there)?;
        let room = match rooms.entry(device) {
            Entry::Occupied(room) => room.into_mut(),
            Entry::Vacant(place) => {
                let free = files.free(&there)?;
                place.insert(FreeSpace {
                    directories: Vec::new(),
                    disks: Vec::new(),
                    estimate: 0,
                    min_free,
                    free,
                })
            }
        };
        let shown = directory.display().to_string();
        if !room.directories.contains(&shown) {
            room.directories.push(shown);
        }
        room.disks.push(disk.target.clone());
        room.estimate = room.estimate.saturating_add(bytes);
        found.notes.extend(elsewhere(disk, device));
    }
    let mut devices = context.archive_devices.to_vec();
    devices.sort_unstable();
    devices.dedup();
    for room in devices.iter().filter_map(|device| rooms.get(device)) {
        found.notes.extend(beside_archive(room, disks));
    }
    found.rooms = rooms.into_values().collect();
    found.obstacles = found.rooms.iter().filter_map(short).collect();
    Ok(found)
}

/// An archive beside the overlays takes from their room. How much is not known before it is compressed, so it
/// is no obstacle.
fn beside_archive(room: &FreeSpace, disks: &[PlannedDisk]) -> Option<String> {
    let most =
        disks.iter().filter(|disk| disk.copy).filter_map(|disk| disk.allocated).fold(0, u64::saturating_add);
    let wanted = room.estimate.saturating_add(room.min_free).saturating_add(most);
    (room.free < wanted).then(|| {
        format!(
            "the archive goes to the file system of the overlays, '{}': if it grows as large as the disks, {}, the backup will be aborted",
            room.directories.join("', '"),
            Human(most)
        )
    })
}

/// The directory, or the nearest above it that is there.
fn existing(directory: &Path) -> PathBuf {
    directory.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn device(directory: &Path) -> Result<u64> {
    let metadata = directory.metadata().at(|| format!("cannot look at '{}'", directory.display()))?;
    Ok(metadata.dev())
}

fn short(room: &FreeSpace) -> Option<Finding> {
    let wanted = room.estimate.saturating_add(room.min_free);
    (room.free < wanted).then(|| {
        let told = format!(
            "not enough free space for the overlays of {} in '{}': {} free, {} needed ({} estimated, and {} to stay free)",
            room.disks.join(", "),
            room.directories.join("', '"),
            Human(room.free),
            Human(wanted),
            Human(room.estimate),
            Human(room.min_free),
        );
        let hint = "free some space, or use --overlay-dir or --min-free";
        Finding::new("room", ErrorKind::NoSpace, told).with_hint(hint)
    })
}

/// QEMU sees only what was mounted before the guest was started. A block device has no file system of its own
/// to compare with.
fn elsewhere(disk: &PlannedDisk, device: u64) -> Option<String> {
    let source = Path::new(disk.source.as_deref()?);
    if is_block_device(source) {
        return None;
    }
    let parent = source.parent()?.metadata().ok()?;
    (parent.dev() != device).then(|| {
        format!(
            "the overlay of '{}' is on another file system than its image: it must be mounted before the guest starts",
            disk.target
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_is_a_tenth_within_bounds() {
        assert_eq!(estimate(1 << 40, 1 << 30), (1 << 30) / 10);
        assert_eq!(estimate(1 << 40, 0), LEAST);
        assert_eq!(estimate(1 << 20, 1 << 20), 1 << 20);
    }

    #[test]
    fn what_is_free_must_hold_the_estimates_and_the_rest() {
        let room = |free| FreeSpace {
            directories: vec!["/images".to_owned()],
            disks: vec!["vda".to_owned()],
            estimate: 16 << 20,
            min_free: 1 << 30,
            free,
        };
        let wanted = (16 << 20) + (1 << 30);
        assert!(short(&room(wanted)).is_none());
        let told = short(&room(wanted - 1)).unwrap().sentence;
        let expected = "not enough free space for the overlays of vda in '/images': 1.0 GiB free, 1.0 GiB needed (16.0 MiB estimated, and 1.0 GiB to stay free)";
        assert_eq!(told, expected);
        assert!(beside_archive(&room(wanted), &[]).is_none());
        assert!(beside_archive(&room(wanted - 1), &[]).is_some());
    }
}
