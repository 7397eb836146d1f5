//! Chains of increments of real files against a model: random writes, zeros, holes, resizes, disks that come
//! and go, killed states. A naive reader puts the disks together, newest archive last.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::FallocateFlags;

use super::*;
use crate::Control;
use crate::destinations::Destinations;
use crate::options::{BackupKindRule, BackupOptions, ChangeDetection};
use crate::resume::StateDirectories;
use crate::retention;
use crate::session::{BackupReport, BackupSession, ImageSpec, ImagesRequest};
use virtfold_archive::allocation_csv::AllocationKind;
use virtfold_archive::index::{ArchiveIndex, DiskPiece, Trust};
use virtfold_archive::layout::BackupKind;
use virtfold_archive::source::FileSource;
use virtfold_archive::stream::{Compression, ReadOptions};
use virtfold_base::units::{BlockSize, DenseOffset};
use virtfold_catalog::Catalog;
use virtfold_image::Format;
use virtfold_medium::Location;

const BLOCK: u64 = 4096;
const SIZE: u64 = 48 * BLOCK;

/// One change of a disk.
#[derive(Clone, Debug)]
enum Change {
    Write(u64, u64, u8),
    Zero(u64, u64),
    Hole(u64, u64),
    Resize(u64),
}

fn change() -> impl Strategy<Value = Change> {
    let range = || (0..SIZE, 1..6 * BLOCK);
    prop_oneof![
        4 => (range(), 1..=255_u8).prop_map(|((at, len), byte)| Change::Write(at, len, byte)),
        1 => range().prop_map(|(at, len)| Change::Zero(at, len)),
        2 => range().prop_map(|(at, len)| Change::Hole(at, len)),
        1 => (1..80_u64).prop_map(|sectors| Change::Resize(sectors * 3 * 1024)),
    ]
}

/// What happens between two backups.
#[derive(Clone, Debug)]
struct Step {
    changes: Vec<(usize, Change)>,
    kind: BackupKindRule,
    has_second: bool,
    loses_state: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        5 => Just(BackupKindRule::Incremental),
        1 => Just(BackupKindRule::Differential),
        1 => Just(BackupKindRule::Full),
    ];
    let changes = proptest::collection::vec((0..2_usize, change()), 0..5);
    (changes, kind, proptest::bool::weighted(0.7), proptest::bool::weighted(0.1))
        .prop_map(|(changes, kind, has_second, loses_state)| Step { changes, kind, has_second, loses_state })
}

struct World {
    folder: tempfile::TempDir,
    disks: [PathBuf; 2],
    archives: Vec<PathBuf>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disks = ["a.raw", "b.raw"].map(|name| folder.path().join(name));
        for disk in &disks {
            File::create(disk).unwrap().set_len(SIZE).unwrap();
        }
        std::fs::create_dir(folder.path().join("backup")).unwrap();
        Self { folder, disks, archives: Vec::new() }
    }

    fn apply(&self, disk: usize, change: &Change) {
        let file = OpenOptions::new().read(true).write(true).open(&self.disks[disk]).unwrap();
        let len = file.metadata().unwrap().len();
        let clip = |at: u64, size: u64| (at.min(len), size.min(len.saturating_sub(at)));
        match *change {
            Change::Write(at, size, byte) => {
                let (at, size) = clip(at, size);
                file.write_all_at(&vec![byte; usize::try_from(size).unwrap()], at).unwrap();
            }
            Change::Zero(at, size) => {
                let (at, size) = clip(at, size);
                file.write_all_at(&vec![0; usize::try_from(size).unwrap()], at).unwrap();
            }
            Change::Hole(at, size) => {
                let (at, size) = clip(at, size);
                if size > 0 {
                    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    rustix::fs::fallocate(&file, flags, at, size).unwrap();
                }
            }
            Change::Resize(size) => file.set_len(size).unwrap(),
        }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn backup(&mut self, step: &Step) -> BackupReport {
        let place = Location::from(self.folder.path().join("backup").as_path());
        let destinations = Destinations::local([place]);
        let options = BackupOptions {
            compression: Compression::None,
            block_size: BlockSize::new(BLOCK),
            kind: step.kind,
            changes: ChangeDetection::Auto,
            max_chain: 4,
            ..BackupOptions::default()
        };
        let state = StateDirectories::new(self.state());
        let control = Control::default();
        let session = BackupSession {
            options: &options,
            destinations: &destinations,
            state: &state,
            control: &control,
        };
        let count = if step.has_second { 2 } else { 1 };
        let image = |(number, path): (usize, &PathBuf)| ImageSpec {
            path: path.clone(),
            format: Format::Raw,
            target: format!("vd{}", ["a", "b"][number]),
        };
        let images = self.disks.iter().take(count).enumerate().map(image).collect();
        let request = ImagesRequest { label: Some("set".to_owned()), ..ImagesRequest::of(images) };
        let report = session.images(&request).unwrap();
        let copies = retention::copies(&report, &destinations, None).unwrap();
        Catalog::open(&self.state()).unwrap().remember(&copies).unwrap();
        self.archives.push(PathBuf::from(&report.archive));
        report
    }

    fn check(&self) {
        let newest = self.archives.last().unwrap();
        for (number, target) in ["vda", "vdb"].into_iter().enumerate() {
            let Some(restored) = restored(&self.archives, newest, target) else { continue };
            let mut expected = std::fs::read(&self.disks[number]).unwrap();
            expected.resize(expected.len().next_multiple_of(512), 0);
            assert!(restored == expected, "{target} of {}", newest.display());
        }
    }
}

/// An archive's disk, by its chain, which is in `archives`.
pub(super) fn restored(archives: &[PathBuf], archive: &Path, target: &str) -> Option<Vec<u8>> {
    let source = FileSource::open(archive).unwrap();
    let options = ReadOptions { workers: 1, cancel: Default::default(), carrier: None, archive_id: None };
    let index = ArchiveIndex::open(&source, &options, Trust::Strict).unwrap();
    let disk = index.disks().iter().find(|disk| disk.disk.target == target)?;
    let capacity = usize::try_from(disk.disk.capacity).unwrap();
    let mut bytes = vec![0; capacity];
    if let Some(parent) = &index.head().parent {
        let below = archives.iter().find(|path| id(path) == parent.id).unwrap();
        let mut rows = Vec::new();
        index
            .allocation(disk, &mut |row| {
                rows.push(row);
                Ok(())
            })
            .unwrap();
        for row in rows.iter().filter(|row| row.kind == AllocationKind::Unchanged) {
            let from = restored(archives, below, target).expect("unchanged, and not in the parent");
            let range = usize::try_from(row.guest.get()).unwrap()
                ..usize::try_from(row.guest.get() + row.len).unwrap();
            bytes[range.clone()].copy_from_slice(&from[range]);
        }
    }
    index
        .read_dense(disk, DenseOffset::ZERO..DenseOffset::new(disk.table.dense_len()), &mut |run, piece| {
            let at = usize::try_from(run.guest.get()).unwrap();
            let DiskPiece::Bytes(piece) = piece else { panic!("lost") };
            bytes[at..at + piece.len()].copy_from_slice(piece);
            Ok(())
        })
        .unwrap();
    Some(bytes)
}

fn id(archive: &Path) -> uuid::Uuid {
    let source = FileSource::open(archive).unwrap();
    let options = ReadOptions { workers: 1, cancel: Default::default(), carrier: None, archive_id: None };
    ArchiveIndex::open(&source, &options, Trust::Strict).unwrap().head().archive
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn chains_give_back_each_point_in_time(steps in proptest::collection::vec(step(), 2..7)) {
        let mut world = World::new();
        for (number, step) in steps.iter().enumerate() {
            for (disk, change) in &step.changes {
                world.apply(*disk, change);
            }
            let lost = step.loses_state && world.state().join("blocks").exists();
            if lost {
                std::fs::remove_dir_all(world.state().join("blocks")).unwrap();
            }
            let report = world.backup(step);
            prop_assert_eq!(report.kind == BackupKind::Incremental, report.parent.is_some());
            if number == 0 || lost || step.kind == BackupKindRule::Full {
                prop_assert_eq!(report.kind, BackupKind::Full);
            }
            prop_assert_eq!(
                report.full_reason.is_some(),
                report.kind == BackupKind::Full && step.kind != BackupKindRule::Full
            );
            world.check();
        }
    }
}

fn incremental(changes: Vec<(usize, Change)>) -> Step {
    Step { changes, kind: BackupKindRule::Incremental, has_second: true, loses_state: false }
}

/// What changed is in it and nothing else; a chain has its end; a parent that is gone is not continued.
#[test]
fn an_increment_has_what_changed_and_rests_on_what_is_there() {
    let mut world = World::new();
    world.apply(0, &Change::Write(0, SIZE, 1));
    let full = world.backup(&incremental(Vec::new()));
    assert_eq!(full.kind, BackupKind::Full);
    assert!(full.full_reason.unwrap().contains("no earlier backup"));
    let none = world.backup(&incremental(Vec::new()));
    assert_eq!((none.kind, none.disks[0].dense_length), (BackupKind::Incremental, 0));
    world.apply(0, &Change::Write(BLOCK + 5, 10, 2));
    world.apply(0, &Change::Hole(4 * BLOCK, 2 * BLOCK));
    let some = world.backup(&incremental(Vec::new()));
    assert_eq!((some.parent, some.disks[0].dense_length), (Some(none.id), BLOCK));
    assert_eq!(some.disks[0].changes.as_ref().unwrap().method, "compare");
    let last = world.backup(&incremental(Vec::new()));
    assert_eq!(last.parent, Some(some.id));
    world.check();
    let long = world.backup(&incremental(Vec::new()));
    assert!(long.full_reason.unwrap().contains("max-chain"));

    let next = world.backup(&incremental(Vec::new()));
    std::fs::remove_file(&next.archive).unwrap();
    let anew = world.backup(&incremental(Vec::new()));
    assert!(anew.full_reason.as_ref().unwrap().contains("is not there"), "{anew:?}");
    std::fs::write(&anew.archive, std::fs::read(&full.archive).unwrap()).unwrap();
    let replaced = world.backup(&incremental(Vec::new()));
    assert!(replaced.full_reason.as_ref().unwrap().contains("replaced"), "{replaced:?}");
}

/// A damaged state is no state.
#[test]
fn a_damaged_state_counts_as_lost() {
    let mut world = World::new();
    world.apply(0, &Change::Write(0, SIZE, 1));
    let full = world.backup(&incremental(Vec::new()));
    let path = world.state().join("blocks").join(full.id.to_string());
    let whole = std::fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(7).chain([whole.len() - 1]) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(BlockState::open(&world.state(), full.id).is_err(), "{at}");
    }
    for cut in [0, 5, 12, 40, whole.len() - 33, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        assert!(BlockState::open(&world.state(), full.id).is_err(), "{cut}");
    }
    let next = world.backup(&incremental(Vec::new()));
    assert!(next.kind == BackupKind::Full && next.full_reason.unwrap().contains("damaged"));
    assert!(BlockState::open(&world.state(), uuid::Uuid::nil()).unwrap().is_none());
}
