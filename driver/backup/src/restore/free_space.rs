//! Whether what is restored has room where it goes: a forecast, by the archive's head.
//!
//! A disk needs the blocks that the archive has of it, and a qcow2 its tables: by either method the same.
//! What a disk has never recorded stays a hole, except where a file system knows none (FAT, exFAT): a raw
//! disk then needs its whole size. Where a remap can share the data with the archive it needs the tables
//! alone. What is replaced goes when all is written, so it takes its room until then. A file system that
//! compresses may need less: a restore is not refused for this, a plan says it.
//!
//! Imports: see the room; `mounts`, `hypervisor` (what is free).

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use crate::target::{Method, Qcow2Options, TargetFormat};
use virtfold_archive::manifest::{Disk, Manifest};
use virtfold_base::error::{IoContext, Result};
use virtfold_base::mounts;
use virtfold_hypervisor::host_files::HostFiles;
use virtfold_medium::Location;

/// What is rounded up, beside whole clusters.
const REST: u64 = 1 << 20;
/// The header, the L1 table, the refcount table and a refcount block have at least a cluster each.
const SINGLE: u64 = 4;
/// File systems without holes.
const WITHOUT_HOLES: [&str; 5] = ["vfat", "msdos", "exfat", "hfs", "hfsplus"];

/// A file system that disks and files are written to; sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Room {
    /// The directories of it that get something.
    pub directories: Vec<String>,
    /// What is needed at most.
    pub needed: u64,
    /// What is needed where the data are shared with the archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<u64>,
    /// What is free.
    pub free: u64,
}

impl Room {
    /// Whether what is needed at the least is not there.
    pub fn is_short(&self) -> bool {
        self.free < self.shared.unwrap_or(self.needed)
    }
}

/// The file systems that something goes to, as they become known.
pub(crate) struct Forecast<'a> {
    files: &'a dyn HostFiles,
    rooms: BTreeMap<u64, Room>,
}

impl<'a> Forecast<'a> {
    pub(crate) fn new(files: &'a dyn HostFiles) -> Self {
        Self { files, rooms: BTreeMap::new() }
    }

    /// A disk of the archive goes to a file.
    pub(crate) fn disk(&mut self, path: &Path, disk: &Disk, format: TargetFormat) -> Result<()> {
        let (device, room) = self.room(path)?;
        let (data, tables) = match format {
            TargetFormat::Qcow2(options) => (disk.dense_length, tables(disk, options)),
            TargetFormat::Raw if has_holes(device)? => (disk.dense_length, 0),
            TargetFormat::Raw => (disk.capacity, 0),
        };
        room.needed = room.needed.saturating_add(data).saturating_add(tables);
        room.shared = Some(room.shared.unwrap_or_default().saturating_add(tables));
        Ok(())
    }

    /// Another file of so many bytes.
    pub(crate) fn file(&mut self, path: &Path, bytes: u64) -> Result<()> {
        let (_, room) = self.room(path)?;
        room.needed = room.needed.saturating_add(bytes);
        room.shared = room.shared.map(|shared| shared.saturating_add(bytes));
        Ok(())
    }

    /// All of them. The data are shared with the archive on the file system `sharing` alone.
    pub(crate) fn rooms(self, sharing: Option<u64>) -> Vec<Room> {
        let rooms = self.rooms.into_iter();
        rooms
            .map(|(device, room)| Room { shared: room.shared.filter(|_| sharing == Some(device)), ..room })
            .collect()
    }

    /// The file system of a file, which need not be there.
    fn room(&mut self, path: &Path) -> Result<(u64, &mut Room)> {
        // A directory that is missing is made later, in what is there.
        let above = path
            .ancestors()
            .skip(1)
            .map(|above| if above.as_os_str().is_empty() { Path::new(".") } else { above });
        let directory = above.into_iter().find(|above| above.is_dir()).unwrap_or(Path::new("/"));
        let looking = || format!("cannot look at the directory '{}'", directory.display());
        let device = directory.metadata().at(looking)?.dev();
        let free = self.files.free(directory)?;
        let room = self.rooms.entry(device).or_insert(Room {
            directories: Vec::new(),
            needed: 0,
            shared: None,
            free,
        });
        let shown = directory.display().to_string();
        if !room.directories.contains(&shown) {
            room.directories.push(shown);
        }
        Ok((device, room))
    }
}

fn has_holes(device: u64) -> Result<bool> {
    let kind = mounts::kind_of(device)?;
    Ok(!kind.is_some_and(|kind| WITHOUT_HOLES.contains(&kind.as_str())))
}

/// What the tables of the disk's new image take at most: an entry for each cluster of the disk that has data,
/// a refcount for each, and the cluster that each L2 table fills up.
fn tables(disk: &Disk, options: Qcow2Options) -> u64 {
    let cluster = options.cluster_size.max(512);
    let entry = if options.extended_l2 { 16 } else { 8 };
    // Runs begin and end within clusters; each has a table of its own at worst.
    let clusters = disk.dense_length / cluster + disk.runs.saturating_mul(2);
    let all = disk.capacity / cluster + 1;
    let spans = (all.saturating_mul(entry) / cluster + 1).min(clusters);
    let edges =
        if disk.block_size.is_multiple_of(cluster) { 0 } else { disk.runs.saturating_mul(2 * cluster) };
    let l1 = all.saturating_mul(entry) / cluster * 8;
    spans
        .saturating_mul(cluster)
        .saturating_add(clusters.min(all).saturating_mul(4))
        .saturating_add(edges)
        .saturating_add(l1)
        .saturating_add(SINGLE * cluster)
        .saturating_add(REST)
}

/// The file system that a remap can share an archive's data on: XFS or Btrfs, with a plain archive in it.
///
/// # Errors
/// The archive's file can't be looked at.
pub(crate) fn shareable(head: &Manifest, archive: &Location, method: Method) -> Result<Option<u64>> {
    let plain = head.compression.method == "none" && method == Method::Remap;
    let Some(path) = archive.path().filter(|_| plain) else { return Ok(None) };
    let device = path.metadata().at(|| format!("cannot look at '{}'", path.display()))?.dev();
    let kind = mounts::kind_of(device)?;
    Ok(matches!(kind.as_deref(), Some("xfs" | "btrfs")).then_some(device))
}

#[cfg(test)]
#[path = "free_space_tests.rs"]
mod tests;
