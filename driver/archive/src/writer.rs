//! Writes a whole archive: the members in their order, the disks' bytes in between, the tail.
//!
//! The order is that of FORMAT.md. Each disk's tables are walked twice, once to measure and once to write,
//! since a tar header says its size first; the dense bytes are only named here and read by the stream's
//! workers.
//!
//! Imports: `units`, `error`; `stream` and the member modules of this room.

use crate::allocation_csv::{AllocationRow, CsvShape};
use crate::block_digests::{BlockDigests, DigestingSource};
use crate::end_record::{self, ArchiveTotals, EndRecord};
use crate::layout::{self, BackupKind, Layout};
use crate::manifest::Manifest;
use crate::recovery::RecoveryHead;
use crate::sign::Seal;
use crate::sparse::{MapEntry, MapShape};
use crate::stream::{
    ChunkLog, DataSource, NoChunkLog, Sink, StreamOptions, StreamTotals, StreamWriter, write_stream_from,
};
use crate::tar::{self, HeaderEncoder};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::{DenseOffset, StreamOffset};

/// Rows of a disk's allocation table, ascending.
pub type Rows<'a> = Box<dyn Iterator<Item = Result<AllocationRow>> + 'a>;
/// Runs of a disk's correspondence table, ascending.
pub type MapEntries<'a> = Box<dyn Iterator<Item = Result<MapEntry>> + 'a>;

/// The tables of one disk, as often as they are asked for.
pub trait DiskTables {
    /// The allocation table.
    fn rows(&self) -> Rows<'_>;
    /// The correspondence table.
    fn runs(&self) -> MapEntries<'_>;
}

/// A member beside the head and the disks, small enough for memory: `domain.xml`, `nvram.fd`.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Its name, checked as [`layout::check_name`] does.
    pub name: String,
    /// Its content.
    pub content: Vec<u8>,
}

/// Everything that goes into an archive.
pub struct ArchiveContents<'a> {
    /// The head; its disks are those of `disks`, in the same order.
    pub head: &'a Manifest,
    /// What follows the head.
    pub attachments: &'a [Attachment],
    /// The tables of each disk.
    pub disks: Vec<&'a dyn DiskTables>,
    /// The dense bytes of each disk.
    pub data: &'a dyn DataSource,
    /// The digests of each disk's blocks, as far as they are known, where the head says that there are some;
    /// all of them when the archive is written. Empty where no disk has them.
    pub blocks: &'a [Option<BlockDigests>],
    /// What it is signed with, where it is.
    pub seal: Option<Seal<'a>>,
}

/// A finished archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenArchive {
    /// Sizes.
    pub stream: StreamTotals,
    /// The root digest, by which a child names its parent.
    pub root: [u8; 32],
}

/// Writes the whole archive to `sink`. What is there when this fails is incomplete, and says so itself.
///
/// # Errors
/// Those of the tables, the data, the sink; [`ErrorKind::Interrupted`] when cancelled.
pub fn write_archive(
    contents: &ArchiveContents<'_>,
    sink: &mut dyn Sink,
    options: &StreamOptions,
) -> Result<WrittenArchive> {
    write_archive_from(contents, sink, &mut NoChunkLog, options)
}

/// As [`write_archive`], behind the chunks that `log` keeps of the same archive: `sink` gets what follows
/// them.
///
/// # Errors
/// As [`write_archive`]; those of [`write_stream_from`].
pub fn write_archive_from(
    contents: &ArchiveContents<'_>,
    sink: &mut dyn Sink,
    log: &mut dyn ChunkLog,
    options: &StreamOptions,
) -> Result<WrittenArchive> {
    if contents.disks.len() != contents.head.disks.len() {
        return Err(different());
    }
    let has_blocks = |index| contents.blocks.get(index).is_some_and(Option::is_some);
    let mut disks = contents.head.disks.iter().enumerate();
    if disks.any(|(index, disk)| disk.digest_block.is_some() != has_blocks(index)) {
        return Err(Error::new(
            ErrorKind::Internal,
            "the head and the digests of blocks are of different disks",
        ));
    }
    let time = contents.head.time()?;
    let source = DigestingSource { data: contents.data, blocks: contents.blocks };
    let plan = |stream: &mut StreamWriter<'_>| {
        let headers = HeaderEncoder::new(time)?;
        Writer { stream, headers, source: &source, totals: ArchiveTotals::default() }.archive(contents, time)
    };
    let (root, stream) = write_stream_from(&source, sink, log, options, plan)?;
    Ok(WrittenArchive { stream, root })
}

fn different() -> Error {
    Error::new(ErrorKind::Internal, "the head and the tables name different disks")
}

/// What the recovery copies of a disk's tables need from the first ones.
struct FirstCopies {
    csv: CsvShape,
    shape: MapShape,
    dense_at: StreamOffset,
}

struct Writer<'a, 'b> {
    stream: &'a mut StreamWriter<'b>,
    headers: HeaderEncoder,
    source: &'a DigestingSource<'a>,
    totals: ArchiveTotals,
}

impl Writer<'_, '_> {
    fn archive(mut self, contents: &ArchiveContents<'_>, time: u64) -> Result<[u8; 32]> {
        let head = contents.head.encode()?;
        self.member(layout::HEAD, &head)?;
        for attachment in contents.attachments {
            self.member(&attachment.name, &attachment.content)?;
        }
        let mut placed = Vec::with_capacity(contents.disks.len());
        for (index, tables) in contents.disks.iter().enumerate() {
            placed.push(self.disk(index, contents, *tables)?);
        }
        let recovery_at = self.stream.position();
        self.member(layout::RECOVERY_HEAD, &head)?;
        for ((disk, tables), place) in contents.head.disks.iter().zip(&contents.disks).zip(&placed) {
            self.recovery(&disk.target, *tables, place)?;
            if contents.head.kind == BackupKind::Incremental {
                let name = layout::recovery_allocation_name(&disk.target)?;
                self.totals.members += 1;
                self.allocation(&name, &place.csv, *tables)?;
            }
        }
        for (index, disk) in contents.head.disks.iter().enumerate() {
            self.blocks(index, &disk.target)?;
        }
        let record = EndRecord {
            archive: contents.head.archive,
            time,
            body_len: self.stream.position().get(),
            recovery_at,
            totals: self.totals,
            chain: contents.seal.map(|seal| seal.chain.clone()),
        };
        let digests = self.stream.begin_tail()?;
        let digests = (0..digests.len()).map(|index| digests.get(index).map(|digest| *digest.as_bytes()));
        let key = contents.seal.map(|seal| seal.key);
        end_record::write_tail(&record, digests, key, &mut |bytes| self.stream.bytes(bytes))
    }

    fn member(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let header = self.headers.plain(name, content.len() as u64)?;
        self.totals.members += 1;
        self.stream.bytes(&header)?;
        self.stream.bytes(content)?;
        self.stream.bytes(tar::padding(content.len() as u64))
    }

    fn disk(
        &mut self,
        index: usize,
        contents: &ArchiveContents<'_>,
        tables: &dyn DiskTables,
    ) -> Result<FirstCopies> {
        let Some(disk) = contents.head.disks.get(index) else {
            return Err(different());
        };
        let csv = CsvShape::measure(disk.capacity, tables.rows())?;
        self.allocation(&layout::allocation_name(&disk.target)?, &csv, tables)?;

        let shape = MapShape::measure(disk.capacity, tables.runs())?;
        let at = self.stream.position();
        match disk.layout {
            Layout::Compact => {
                self.stream.bytes(&self.headers.sparse(&disk.target, &shape, at)?)?;
                shape.write_padded(tables.runs(), &mut |bytes| self.stream.bytes(bytes))?;
            }
            Layout::Full => {
                let name = layout::disk_name(&disk.target)?;
                self.stream.bytes(&self.headers.aligned(&name, disk.capacity, at)?)?;
            }
        }
        let dense_at = self.stream.position();
        if let Some(blocks) = self.source.of(index) {
            // Chunks that an earlier run has put out are not read again for themselves.
            let kept = DenseOffset::new(self.stream.kept_bytes().saturating_sub(dense_at.get()));
            let read = |at, buf: &mut [u8]| self.source.data.read_dense(index, at, buf);
            blocks.fill(kept, &read, &|| self.stream.check())?;
        }
        self.stream.data(index, DenseOffset::ZERO, shape.dense_len())?;
        self.stream.bytes(tar::padding(shape.dense_len()))?;
        self.totals.members += 2;
        self.totals.disks += 1;
        self.totals.capacity = self.totals.capacity.saturating_add(disk.capacity);
        self.totals.allocated = self.totals.allocated.saturating_add(disk.allocated);
        self.totals.dense += shape.dense_len();
        self.totals.runs += shape.runs();
        Ok(FirstCopies { csv, shape, dense_at })
    }

    fn allocation(&mut self, name: &str, csv: &CsvShape, tables: &dyn DiskTables) -> Result<()> {
        self.stream.bytes(&self.headers.plain(name, csv.text_len())?)?;
        csv.write(tables.rows(), &mut |bytes| self.stream.bytes(bytes))?;
        self.stream.bytes(tar::padding(csv.text_len()))
    }

    /// The digests of a disk's blocks: read when all that they are of has been read.
    fn blocks(&mut self, index: usize, target: &str) -> Result<()> {
        let Some(len) = self.source.of(index).map(BlockDigests::bytes) else { return Ok(()) };
        self.totals.members += 1;
        self.stream.bytes(&self.headers.plain(&layout::blocks_name(target)?, len)?)?;
        self.stream.data(self.source.number(index), DenseOffset::ZERO, len)?;
        self.stream.bytes(tar::padding(len))
    }

    fn recovery(&mut self, target: &str, tables: &dyn DiskTables, place: &FirstCopies) -> Result<()> {
        let first = RecoveryHead::new(target, &place.shape, place.dense_at)?;
        let size = first.member_size(&place.shape);
        self.totals.members += 1;
        self.stream.bytes(&self.headers.plain(&layout::recovery_map_name(target)?, size)?)?;
        first.write(&place.shape, tables.runs(), &mut |bytes| self.stream.bytes(bytes))?;
        self.stream.bytes(tar::padding(size))
    }
}
