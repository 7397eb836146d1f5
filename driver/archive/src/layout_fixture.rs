//! For tests: archives made by hand in memory, with every kind of member, and what is in them.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::allocation_csv::{AllocationKind, AllocationRow, CsvShape};
use crate::end_record::{self, ArchiveTotals, CHUNK, EndRecord};
use crate::layout::{self, BackupKind, Layout};
use crate::manifest::{BackupSubject, CompressionNote, Disk, Manifest, Source, VERSION};
use crate::recovery::RecoveryHead;
use crate::sign::{ChainLink, PreviousArchive, SigningKey};
use crate::sparse::{MapEntry, MapShape};
use crate::tar::{HeaderEncoder, padding};
use virtfold_base::error::Result;
use virtfold_base::units::{GuestOffset, StreamOffset};

/// 2026-11-22T14:04:05Z.
pub(super) const TIME: u64 = 1_795_356_245;

/// A disk: its name, its size, its runs.
#[derive(Clone, Debug)]
pub(super) struct TestDisk {
    pub(super) target: String,
    pub(super) capacity: u64,
    pub(super) layout: Layout,
    pub(super) runs: Vec<(u64, u64)>,
}

impl TestDisk {
    pub(super) fn compact(target: &str, capacity: u64, runs: &[(u64, u64)]) -> Self {
        Self { target: target.to_owned(), capacity, layout: Layout::Compact, runs: runs.to_vec() }
    }

    pub(super) fn full(target: &str, capacity: u64) -> Self {
        let runs = if capacity > 0 { vec![(0, capacity)] } else { Vec::new() };
        Self { target: target.to_owned(), capacity, layout: Layout::Full, runs }
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = Result<MapEntry>> {
        self.runs.iter().map(|(guest, len)| Ok(MapEntry { guest: GuestOffset::new(*guest), len: *len }))
    }

    pub(super) fn rows(&self) -> Vec<Result<AllocationRow>> {
        let mut rows = Vec::new();
        let mut end = 0;
        let row =
            |guest, len, kind| Ok(AllocationRow { guest: GuestOffset::new(guest), len, kind, host: None });
        for (guest, len) in &self.runs {
            if *guest > end {
                rows.push(row(end, guest - end, AllocationKind::Unallocated));
            }
            rows.push(row(*guest, *len, AllocationKind::Data));
            end = guest + len;
        }
        if end < self.capacity {
            rows.push(row(end, self.capacity - end, AllocationKind::Zero));
        }
        rows
    }

    /// The byte at a guest offset that is in a run.
    pub(super) fn byte(&self, guest: u64) -> u8 {
        let salt = u64::from(self.target.as_bytes()[0]);
        u8::try_from((guest.wrapping_mul(31) ^ (guest >> 9) ^ salt) % 255).unwrap() + 1
    }

    pub(super) fn run_bytes(&self, run: (u64, u64)) -> Vec<u8> {
        (run.0..run.0 + run.1).map(|at| self.byte(at)).collect()
    }

    fn manifest(&self, shape: &MapShape) -> Disk {
        Disk {
            target: self.target.clone(),
            capacity: self.capacity,
            source: Source { format: "raw".into(), qcow2: None, backing: vec![], warnings: vec![] },
            block_size: 4096,
            layout: self.layout,
            allocated: shape.dense_len(),
            dense_length: shape.dense_len(),
            runs: shape.runs(),
            digest_block: None,
            changes: None,
        }
    }
}

/// The archive and what its members are.
pub(super) struct Made {
    pub(super) bytes: Vec<u8>,
    pub(super) end: EndRecord,
    pub(super) root: [u8; 32],
    /// Names in order, and content of all but the disks.
    pub(super) members: Vec<(String, Option<Vec<u8>>)>,
    /// Where each disk's dense bytes begin.
    pub(super) dense_at: BTreeMap<String, u64>,
}

struct Maker {
    bytes: Vec<u8>,
    headers: HeaderEncoder,
    members: Vec<(String, Option<Vec<u8>>)>,
}

impl Maker {
    fn at(&self) -> StreamOffset {
        StreamOffset::new(self.bytes.len() as u64)
    }

    fn plain(&mut self, name: &str, content: Vec<u8>) {
        self.bytes.extend(self.headers.plain(name, content.len() as u64).unwrap());
        self.bytes.extend(&content);
        self.bytes.extend(padding(content.len() as u64));
        self.members.push((name.to_owned(), Some(content)));
    }

    fn disk(&mut self, disk: &TestDisk, shape: &MapShape) -> u64 {
        let name = layout::disk_name(&disk.target).unwrap();
        match disk.layout {
            Layout::Full => {
                let header = self.headers.aligned(&name, disk.capacity, self.at()).unwrap();
                self.bytes.extend(header);
            }
            Layout::Compact => {
                let header = self.headers.sparse(&disk.target, shape, self.at()).unwrap();
                self.bytes.extend(header);
                self.bytes.extend(collect(|out| shape.write_padded(disk.runs(), out)));
            }
        }
        let dense_at = self.bytes.len() as u64;
        for run in &disk.runs {
            self.bytes.extend(disk.run_bytes(*run));
        }
        self.bytes.extend(padding(shape.dense_len()));
        self.members.push((name, None));
        dense_at
    }
}

pub(super) fn collect(write: impl FnOnce(&mut crate::tar::Output<'_>) -> Result<()>) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    })
    .unwrap();
    bytes
}

pub(super) fn manifest(disks: &[TestDisk]) -> Manifest {
    let shape = |disk: &TestDisk| MapShape::measure(disk.capacity, disk.runs()).unwrap();
    Manifest {
        version: VERSION,
        requires: vec![],
        archive: Uuid::from_u128(0x1234_5678),
        created: "2026-11-22T15:04:05+01:00".into(),
        host: "host1".into(),
        host_id: None,
        tool: "virtfold 0.1.0".into(),
        subject: BackupSubject::Images { name: "set1".into(), labelled: false, paths: Vec::new() },
        kind: BackupKind::Full,
        parent: None,
        compression: CompressionNote { method: "none".into(), level: None },
        freeze: None,
        disks: disks.iter().map(|disk| disk.manifest(&shape(disk))).collect(),
    }
}

/// An archive of `disks`, with another member of name `other` behind the head.
pub(super) fn make(disks: &[TestDisk], other: &str) -> Made {
    make_with(disks, other, None)
}

/// The same as a host signs it.
pub(super) fn make_signed(disks: &[TestDisk], other: &str) -> Made {
    make_with(disks, other, Some(&SigningKey::new("web.example").unwrap()))
}

fn make_with(disks: &[TestDisk], other: &str, key: Option<&SigningKey>) -> Made {
    let mut maker =
        Maker { bytes: Vec::new(), headers: HeaderEncoder::new(TIME).unwrap(), members: Vec::new() };
    let head = manifest(disks).encode().unwrap();
    maker.plain(layout::HEAD, head.clone());
    maker.plain(other, b"<domain/>\n".to_vec());
    let mut dense_at = BTreeMap::new();
    let mut totals = ArchiveTotals { disks: disks.len() as u64, ..ArchiveTotals::default() };
    for disk in disks {
        let csv = CsvShape::measure(disk.capacity, disk.rows()).unwrap();
        let name = layout::allocation_name(&disk.target).unwrap();
        maker.plain(&name, collect(|out| csv.write(disk.rows(), out)));
        let shape = MapShape::measure(disk.capacity, disk.runs()).unwrap();
        dense_at.insert(disk.target.clone(), maker.disk(disk, &shape));
        totals.capacity += disk.capacity;
        totals.dense += shape.dense_len();
        totals.runs += shape.runs();
    }
    let recovery_at = maker.at();
    maker.plain(layout::RECOVERY_HEAD, head);
    for disk in disks {
        let shape = MapShape::measure(disk.capacity, disk.runs()).unwrap();
        let head =
            RecoveryHead::new(&disk.target, &shape, StreamOffset::new(dense_at[&disk.target])).unwrap();
        let content = collect(|out| head.write(&shape, disk.runs(), out));
        assert_eq!(content.len() as u64, head.member_size(&shape));
        maker.plain(&layout::recovery_map_name(&disk.target).unwrap(), content);
    }
    totals.members = maker.members.len() as u64;
    let body_len = maker.bytes.len() as u64;
    let chain = key.map(chain);
    let archive = Uuid::from_u128(0x1234_5678);
    let end = EndRecord { archive, time: TIME, body_len, recovery_at, totals, chain };
    let mut tail = Vec::new();
    let root = end_record::write_tail(&end, digests(&maker.bytes), key, &mut |piece| {
        tail.extend_from_slice(piece);
        Ok(())
    })
    .unwrap();
    assert_eq!(tail.len() as u64, end_record::tail_len(&end).unwrap());
    maker.members.push((
        layout::DIGESTS.to_owned(),
        Some(digests(&maker.bytes).into_iter().flat_map(Result::unwrap).collect()),
    ));
    let record = end.encode(&root);
    let signature = key.map(|key| (layout::SIGNATURE.to_owned(), Some(key.sign(&record).unwrap())));
    maker.members.push((layout::END.to_owned(), Some(record)));
    maker.members.extend(signature);
    maker.bytes.extend(tail);
    Made { bytes: maker.bytes, end, root, members: maker.members, dense_at }
}

fn chain(key: &SigningKey) -> ChainLink {
    let previous = PreviousArchive { root: "0f".repeat(32), archive: Uuid::from_u128(7), sequence: 6 };
    ChainLink {
        subject: "images:0123456789abcdef0123456789abcdef".to_owned(),
        host: key.host().to_owned(),
        sequence: 8,
        previous: Some(previous),
    }
}

pub(super) fn digests(body: &[u8]) -> Vec<Result<[u8; 32]>> {
    body.chunks(usize::try_from(CHUNK).unwrap()).map(|chunk| Ok(*blake3::hash(chunk).as_bytes())).collect()
}

/// `bytes` in pieces of the given sizes, over and over.
pub(super) fn pieces<'a>(bytes: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let mut rest = bytes;
    let mut pieces = Vec::new();
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at((*size).min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}
