//! Chains of whole archives: what is read of them is the disk, and what is damaged costs what it hits.

use std::ops::Range;

use proptest::prelude::*;
use uuid::Uuid;

use super::disk::ChainDisk;
use super::map_tests::{Event, Layer, SECTOR, Version, history, version};
use crate::allocation_csv::AllocationRow;
use crate::index::{ArchiveIndex, DiskPiece, Trust};
use crate::layout::{BackupKind, Layout};
use crate::layout_fixture::{TestDisk, manifest};
use crate::manifest::Parent;
use crate::sparse::MapEntry;
use crate::stream::{Cancel, Compression, DataSource, ReadAt, ReadOptions, Sink, StreamOptions};
use crate::table::CorrespondenceTable;
use crate::writer::{ArchiveContents, DiskTables, MapEntries, Rows, write_archive};
use virtfold_base::error::{ErrorKind, Result};
use virtfold_base::units::{DenseOffset, GuestOffset};

/// The bytes of sectors, which their values tell.
fn bytes(sectors: &[u32]) -> Vec<u8> {
    let sector = |value: &u32| value.wrapping_mul(2_654_435_761).to_le_bytes();
    sectors.iter().flat_map(|value| sector(value).repeat(usize::try_from(SECTOR).unwrap() / 4)).collect()
}

struct Tables<'a>(&'a CorrespondenceTable, &'a [AllocationRow]);

impl DiskTables for Tables<'_> {
    fn rows(&self) -> Rows<'_> {
        Box::new(self.1.iter().map(|row| Ok(*row)))
    }

    fn runs(&self) -> MapEntries<'_> {
        Box::new(self.0.iter().map(|run| run.map(|run| MapEntry { guest: run.guest, len: run.len })))
    }
}

struct Dense(Vec<u8>);

impl DataSource for Dense {
    fn read_dense(&self, _: usize, at: DenseOffset, buf: &mut [u8]) -> Result<()> {
        let at = usize::try_from(at.get()).unwrap();
        buf.copy_from_slice(&self.0[at..at + buf.len()]);
        Ok(())
    }

    fn prefetch(&self, _: usize, _: DenseOffset, _: u64) -> Result<()> {
        Ok(())
    }
}

struct Out(Vec<u8>);

impl Sink for Out {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// An archive in memory, and which of its bytes were asked for.
struct InMemory(Vec<u8>, std::sync::Mutex<Vec<Range<u64>>>);

impl InMemory {
    fn new(bytes: Vec<u8>) -> Self {
        Self(bytes, std::sync::Mutex::default())
    }
}

impl ReadAt for InMemory {
    fn read_exact_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.1.lock().unwrap().push(at..at + buf.len() as u64);
        let at = usize::try_from(at).unwrap();
        buf.copy_from_slice(&self.0[at..at + buf.len()]);
        Ok(())
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn name(&self) -> &str {
        "web.tar"
    }
}

/// The archives of these layers of disk vda, the oldest first.
fn archives(layers: &[Layer], compression: Compression) -> Vec<InMemory> {
    let mut parent: Option<Parent> = None;
    let mut made = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let mut head = manifest(&[TestDisk::compact("vda", layer.table.capacity(), &[])]);
        head.archive = Uuid::from_u128(0x1111_2222_3333_4444 << 64 | number as u128);
        head.parent = parent.take().filter(|_| !layer.is_full);
        head.kind = if layer.is_full { BackupKind::Full } else { BackupKind::Incremental };
        let disk = &mut head.disks[0];
        (disk.layout, disk.block_size) = (Layout::Compact, layer.block);
        (disk.dense_length, disk.runs) = (layer.table.dense_len(), layer.table.len());
        let tables = Tables(&layer.table, &layer.rows);
        let data = Dense(bytes(&layer.dense));
        let disks: Vec<&dyn DiskTables> = vec![&tables];
        let contents =
            ArchiveContents { head: &head, attachments: &[], disks, data: &data, blocks: &[], seal: None };
        let options = StreamOptions {
            compression,
            workers: 1,
            archive_id: head.archive,
            cancel: Cancel::default(),
            progress: Default::default(),
        };
        let mut out = Out(Vec::new());
        let written = write_archive(&contents, &mut out, &options).unwrap();
        let root = blake3::Hash::from_bytes(written.root).to_hex().to_string();
        parent = Some(Parent { id: head.archive, root });
        made.push(InMemory::new(out.0));
    }
    made
}

/// The rows of a full archive can't be unchanged.
fn whole(mut layers: Vec<Layer>) -> Vec<Layer> {
    use crate::allocation_csv::AllocationKind::{Data, Unchanged};
    for layer in layers.iter_mut().filter(|layer| layer.is_full) {
        layer.rows.iter_mut().filter(|row| row.kind == Unchanged).for_each(|row| row.kind = Data);
    }
    layers
}

/// The chain of the newest of `archives`, the newest first.
fn opened<'a>(archives: &'a [InMemory], trust: Trust) -> Vec<ArchiveIndex<'a>> {
    let options = ReadOptions { workers: 2, cancel: Cancel::default(), carrier: None, archive_id: None };
    let mut chain = Vec::new();
    for archive in archives.iter().rev() {
        let index = ArchiveIndex::open(archive, &options, trust).unwrap();
        let kind = index.head().kind;
        chain.push(index);
        if kind == BackupKind::Full {
            break;
        }
    }
    chain
}

/// What is read of the disk, and what of it is lost.
fn read(disk: &ChainDisk<'_>) -> (Vec<u8>, Vec<Range<usize>>) {
    let mut found = vec![0; usize::try_from(disk.map().capacity()).unwrap()];
    let mut lost = Vec::new();
    disk.read(&mut |extent, data| {
        let at = usize::try_from(extent.guest.get()).unwrap();
        match data {
            DiskPiece::Bytes(bytes) => found[at..at + bytes.len()].copy_from_slice(bytes),
            DiskPiece::Lost => lost.push(at..at + usize::try_from(extent.len).unwrap()),
        }
        Ok(())
    })
    .unwrap();
    (found, lost)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_disk_of_a_chain_reads_as_it_was(
        versions in proptest::collection::vec(version(), 1..6),
        compressed in any::<bool>(),
        probe in (0_usize..200, 1_usize..60, 0_usize..5000),
    ) {
        let compression = if compressed { Compression::Zstd { level: 1 } } else { Compression::None };
        let (states, layers) = history(&versions);
        let archives = archives(&whole(layers), compression);
        let chain = opened(&archives, Trust::Strict);
        let disk = ChainDisk::open("vda", &chain, Trust::Strict).unwrap();
            let state = bytes(states.last().unwrap());
        let (found, lost) = read(&disk);
        prop_assert!(found == state && lost.is_empty());
        let table = disk.table(None).unwrap();
        prop_assert_eq!(table.dense_len(), disk.map().data());
        let sector = usize::try_from(SECTOR).unwrap();
        let from = (probe.0 * sector + probe.2).min(state.len());
        let mut buf = vec![0xee; (probe.1 * sector).min(state.len() - from)];
        disk.read_at(GuestOffset::new(from as u64), &mut buf).unwrap();
        prop_assert!(buf == state[from..from + buf.len()]);
    }
}

fn write(at: usize, len: usize, value: u32) -> Version {
    Version { events: vec![Event::Write { at, len, value }], block: 1, extra: usize::MAX }
}

/// A disk of 150 sectors; then sectors 5 to 149 are written, then 110 to 114.
fn three() -> (Vec<Vec<u32>>, Vec<Layer>) {
    let nothing = Version { events: Vec::new(), block: 1, extra: usize::MAX };
    let (states, layers) = history(&[nothing, write(5, 145, 5000), write(110, 5, 9000)]);
    (states, whole(layers))
}

#[test]
fn what_no_layer_above_replaces_is_all_that_damage_costs() {
    let (states, layers) = three();
    let mut archives = archives(&layers, Compression::None);
    // The second chunk holds nothing but sectors, and those that the newest replaces are among them.
    archives[1].0[1_500_000] ^= 1;
    let chain = opened(&archives, Trust::Salvage);
    let disk = ChainDisk::open("vda", &chain, Trust::Salvage).unwrap();
    let (mut found, lost) = read(&disk);
    assert_eq!(lost.iter().map(ExactSizeIterator::len).sum::<usize>() as u64, (1 << 20) - 5 * SECTOR);
    let state = bytes(&states[2]);
    for range in &lost {
        assert!(found[range.clone()].iter().all(|byte| *byte == 0));
        found[range.clone()].copy_from_slice(&state[range.clone()]);
    }
    assert!(found == state);
    let error = disk.read_at(GuestOffset::new(lost[0].start as u64), &mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    disk.read_at(GuestOffset::new(111 * SECTOR), &mut [0; 16]).unwrap();
}

/// The first allocation table of an increment is damaged, and its second copy takes its place: it lies in
/// another chunk, and so costs nothing but its own.
#[test]
fn an_increment_has_its_rows_twice() {
    let (states, layers) = history(&[Version { events: Vec::new(), ..write(0, 1, 1) }, write(10, 140, 5000)]);
    let mut archives = archives(&whole(layers), Compression::None);
    let rows = b"guest_offset,length,kind";
    let place = archives[1].0.windows(rows.len()).position(|window| window == rows).unwrap();
    archives[1].0[place] ^= 1;
    let chain = opened(&archives, Trust::Salvage);
    let disk = ChainDisk::open("vda", &chain, Trust::Salvage).unwrap();
    let (found, lost) = read(&disk);
    let total: usize = lost.iter().map(ExactSizeIterator::len).sum();
    assert!(total > 0 && total <= 1 << 20, "{total}");
    assert!(disk.map().open() == 0 && disk.map().lost() == 0);
    let unchanged = usize::try_from(SECTOR).unwrap()..usize::try_from(10 * SECTOR).unwrap();
    let state = bytes(&states[1]);
    assert!(found[unchanged.clone()] == state[unchanged] && found[1 << 21..] == state[1 << 21..]);
}

#[test]
fn a_chain_without_its_end_is_refused_and_salvaged_it_is_lost_and_not_zeros() {
    let (_, layers) = three();
    let archives = archives(&layers, Compression::None);
    let chain = opened(&archives[1..], Trust::Strict);
    let error = ChainDisk::open("vda", &chain, Trust::Strict).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.to_string().contains("no older archive has them"), "{error}");
    let disk = ChainDisk::open("vda", &chain, Trust::Salvage).unwrap();
    let (_, lost) = read(&disk);
    let total: usize = lost.iter().map(ExactSizeIterator::len).sum();
    assert_eq!(total as u64, disk.map().open());
    assert_eq!(disk.map().open(), 4 * SECTOR);
}

/// Of the full archive only chunks are fetched that have a block which no increment replaces.
#[test]
fn chunks_that_newer_archives_replace_are_not_read() {
    let nothing =
        Version { events: vec![Event::Write { at: 0, len: 150, value: 7 }], block: 1, extra: usize::MAX };
    // 150 sectors of 16 KiB are 2.3 chunks; the middle one is replaced, and more.
    let (states, layers) = history(&[nothing, write(60, 75, 5000)]);
    let archives = archives(&whole(layers), Compression::None);
    let chain = opened(&archives, Trust::Strict);
    let disk = ChainDisk::open("vda", &chain, Trust::Strict).unwrap();
    archives[0].1.lock().unwrap().clear();
    assert!(read(&disk).0 == bytes(&states[1]));
    let read = archives[0].1.lock().unwrap();
    let second = 1_u64 << 20..2 << 20;
    assert!(!read.iter().any(|range| range.start == second.start), "{read:?}");
    assert!(read.iter().any(|range| range.start == 0), "{read:?}");
}
