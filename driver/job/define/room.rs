//! Whether what is restored has room where it goes: a forecast, by the archive's head.
//!
//! A disk needs the blocks that the archive has of it, and a qcow2 its tables: by either method the same. Where a remap can share the data
//! with the archive it needs the tables alone. What is replaced goes when all is written, so it takes its room until then.
//! A file system that compresses may need less: a restore is not refused for this, a plan says it.
//!
//! Imports: see the room; `mounts`.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use super::places::Found;
use super::plan::Plan;
use super::{DefineRequest, Host};
use crate::archive::manifest::{Disk, Manifest};
use crate::error::{IoContext, Result};
use crate::job::target::Method;
use crate::mounts;
use crate::units::KIB;

/// Header, L1 table and what is rounded up to whole clusters.
const REST: u64 = 4 << 20;

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

/// What the plan needs, file system by file system.
pub(super) fn forecast(
    plan: &Plan,
    head: &Manifest,
    request: &DefineRequest,
    host: &Host<'_>,
) -> Result<Vec<Room>> {
    let mut rooms: BTreeMap<u64, Room> = BTreeMap::new();
    for (target, spot) in plan.disks.iter().filter(|(_, spot)| spot.found != Found::Device) {
        let Some(disk) = head.disk(target) else { continue };
        let tables = tables(disk, request);
        let room = room(&mut rooms, &spot.real, host)?;
        room.needed = room.needed.saturating_add(disk.dense_length).saturating_add(tables);
        room.shared = Some(room.shared.unwrap_or_default().saturating_add(tables));
    }
    for file in &plan.files {
        let room = room(&mut rooms, &file.spot.real, host)?;
        room.needed = room.needed.saturating_add(file.content.len());
        room.shared = room.shared.map(|bytes| bytes.saturating_add(file.content.len()));
    }
    let archive = shareable(head, request)?;
    let rooms = rooms
        .into_iter()
        .map(|(device, room)| Room { shared: room.shared.filter(|_| archive == Some(device)), ..room });
    Ok(rooms.collect())
}

fn room<'a>(rooms: &'a mut BTreeMap<u64, Room>, path: &Path, host: &Host<'_>) -> Result<&'a mut Room> {
    // One that is missing is made later, in what is there.
    let directory = path.ancestors().skip(1).find(|above| above.is_dir()).unwrap_or(Path::new("/"));
    let looking = || format!("cannot look at the directory '{}'", directory.display());
    let device = directory.metadata().at(looking)?.dev();
    let free = host.files.free(directory)?;
    let room = rooms.entry(device).or_insert(Room { directories: Vec::new(), needed: 0, shared: None, free });
    let shown = directory.display().to_string();
    if !room.directories.contains(&shown) {
        room.directories.push(shown);
    }
    Ok(room)
}

/// What the tables of the disk's new image take at most: an entry for each cluster of the disk that has data, a refcount for each, and the
/// cluster that each L2 table fills up.
fn tables(disk: &Disk, request: &DefineRequest) -> u64 {
    let wanted = request.writing.format.map(|format| format.to_string());
    if wanted.as_deref().unwrap_or(&disk.source.format) == "raw" {
        return 0;
    }
    let source = disk.source.qcow2.as_ref();
    let cluster = request
        .writing
        .cluster_size
        .or(source.map(|options| options.cluster_size))
        .unwrap_or(64 * KIB)
        .max(512);
    let entry = if source.is_some_and(|options| options.extended_l2) { 16 } else { 8 };
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
        .saturating_add(REST)
}

/// The file system that a remap can share an archive's data on: XFS or Btrfs, with a plain archive in it.
fn shareable(head: &Manifest, request: &DefineRequest) -> Result<Option<u64>> {
    let plain = head.compression.method == "none" && request.writing.method == Method::Remap;
    let Some(path) = request.archive.path().filter(|_| plain) else { return Ok(None) };
    let device = path.metadata().at(|| format!("cannot look at '{}'", path.display()))?.dev();
    let kind = mounts::kind_of(device)?;
    Ok(matches!(kind.as_deref(), Some("xfs" | "btrfs")).then_some(device))
}
