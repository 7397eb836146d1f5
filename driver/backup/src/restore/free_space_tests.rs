//! A forecast is never less than what a restore takes, and not much more.

use std::os::unix::fs::MetadataExt;

use super::*;
use crate::target::{Compat, TargetDisk, TargetSpec};
use virtfold_archive::manifest::Source;
use virtfold_archive::table::{Builder, CorrespondenceTable, Layout, Run};
use virtfold_base::partial_file::Overwrite;
use virtfold_base::units::{GuestOffset, KIB, MIB};
use virtfold_hypervisor::host_files::LocalFiles;

/// Runs of a disk of 64 MiB, of blocks of 64 KiB.
const CAPACITY: u64 = 64 * MIB;
const BLOCK: u64 = 64 * KIB;

fn table(runs: &[(u64, u64)]) -> CorrespondenceTable {
    let mut builder = Builder::new(CAPACITY);
    for (guest, len) in runs {
        builder.push(GuestOffset::new(*guest), *len).unwrap();
    }
    builder.finish().unwrap()
}

fn described(table: &CorrespondenceTable) -> Disk {
    Disk {
        target: "vda".into(),
        capacity: CAPACITY,
        source: Source { format: "qcow2".into(), qcow2: None, backing: vec![], warnings: vec![] },
        block_size: BLOCK,
        layout: Layout::Compact,
        allocated: table.dense_len(),
        dense_length: table.dense_len(),
        runs: table.len(),
        digest_block: None,
        changes: None,
    }
}

/// What the file system has given to the file that a restore of `table` makes.
fn taken(table: &CorrespondenceTable, format: TargetFormat, folder: &Path) -> u64 {
    let path = folder.join("disk");
    let spec =
        TargetSpec { path: path.clone(), format, method: Method::Rewrite, existing: Overwrite::Replace };
    let mut target = TargetDisk::open(&spec, table).unwrap();
    for run in table.iter() {
        let run: Run = run.unwrap();
        target.write(&run, &vec![7; usize::try_from(run.len).unwrap()]).unwrap();
    }
    target.finish().unwrap();
    path.metadata().unwrap().blocks() * 512
}

fn needed(disk: &Disk, format: TargetFormat, folder: &Path) -> u64 {
    let mut forecast = Forecast::new(&LocalFiles);
    forecast.disk(&folder.join("disk"), disk, format).unwrap();
    let rooms = forecast.rooms(None);
    assert_eq!((rooms.len(), &rooms[0].directories), (1, &vec![folder.display().to_string()]));
    rooms[0].needed
}

#[test]
fn a_disk_takes_no_more_than_was_forecast() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let scattered: Vec<(u64, u64)> = (0..256).map(|n| (n * 4 * BLOCK, BLOCK)).collect();
    let tables = [
        table(&[]),
        table(&[(0, BLOCK)]),
        table(&[(CAPACITY - BLOCK, BLOCK)]),
        table(&[(0, CAPACITY)]),
        table(&scattered),
    ];
    let qcow2 = |cluster_size, compat, extended_l2| {
        TargetFormat::Qcow2(Qcow2Options { cluster_size, compat, extended_l2, ..Qcow2Options::default() })
    };
    let formats = [
        TargetFormat::Raw,
        qcow2(512, Compat::V3, false),
        qcow2(4 * KIB, Compat::V2, false),
        qcow2(64 * KIB, Compat::V3, false),
        qcow2(64 * KIB, Compat::V3, true),
        qcow2(2 * MIB, Compat::V3, false),
    ];
    for table in &tables {
        let disk = described(table);
        for format in formats {
            let (needed, taken) = (needed(&disk, format, folder.path()), taken(table, format, folder.path()));
            let context = format!("{} runs, {format:?}: {taken} of {needed}", table.len());
            // Of files of a few blocks the file system takes some for itself.
            assert!(taken <= needed + 64 * KIB, "{context}");
            let clusters = match format {
                TargetFormat::Qcow2(options) if options.cluster_size > BLOCK => {
                    (4 * table.len() + SINGLE) * options.cluster_size
                }
                _ => SINGLE * BLOCK,
            };
            assert!(needed <= taken + taken / 20 + REST + clusters, "{context}");
        }
    }
}

#[test]
fn file_systems_are_counted_once_and_files_beside_the_disks_too() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let disk = described(&table(&[(0, 3 * BLOCK)]));
    let mut forecast = Forecast::new(&LocalFiles);
    // Directories that are made later lie in what is there.
    forecast.disk(&folder.path().join("a/b/vda"), &disk, TargetFormat::Raw).unwrap();
    forecast.disk(&folder.path().join("vdb"), &disk, TargetFormat::Raw).unwrap();
    forecast.disk(&memory.path().join("vdc"), &disk, TargetFormat::Raw).unwrap();
    forecast.file(&memory.path().join("nvram"), 1000).unwrap();
    let mut rooms = forecast.rooms(None);
    rooms.sort_by_key(|room| room.needed);
    let told: Vec<_> = rooms.iter().map(|room| (room.needed, room.directories.len(), room.shared)).collect();
    assert_eq!(told, [(3 * BLOCK + 1000, 1, None), (6 * BLOCK, 1, None)]);
    let free = LocalFiles.free(memory.path()).unwrap();
    assert!(rooms[0].free.abs_diff(free) < free / 2 && !rooms[0].is_short());
}

#[test]
fn what_is_shared_needs_its_tables_alone() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let device = folder.path().metadata().unwrap().dev();
    let disk = described(&table(&[(0, 512 * BLOCK)]));
    let format = TargetFormat::Qcow2(Qcow2Options::default());
    let rooms = |sharing| {
        let mut forecast = Forecast::new(&LocalFiles);
        forecast.disk(&folder.path().join("vda"), &disk, format).unwrap();
        forecast.rooms(sharing).remove(0)
    };
    let (copied, shared) = (rooms(None), rooms(Some(device)));
    assert_eq!((copied.shared, rooms(Some(device + 1)).shared), (None, None));
    assert_eq!(shared.shared.map(|tables| tables + 512 * BLOCK), Some(copied.needed));
    let room = |free| Room { free, ..shared.clone() };
    let tables = shared.shared.unwrap();
    assert!(room(tables - 1).is_short() && !room(tables).is_short());
    assert!(Room { free: tables, ..copied }.is_short());
}
