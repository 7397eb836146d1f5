//! Bodies become archives: a tail that fits them, frames around both.

use uuid::Uuid;
use virtfold::archive::end_record::{ArchiveTotals, EndRecord, write_tail};
use virtfold::archive::layout::{self, MemberRole};
use virtfold::archive::manifest::Manifest;
use virtfold::archive::reader::{ArchiveReader, Visitor};
use virtfold::archive::stream::{
    Compression, DataSource, Sink, StreamOptions, StreamTotals, read_pipe, write_stream,
};
use virtfold::archive::tar_parser::{Event, MemberParser};
use virtfold::error::{Error, ErrorKind, Result};
use virtfold::table::{CorrespondenceTable, Run};
use virtfold::units::{DenseOffset, StreamOffset};

/// A body with the tail that it would have: digests of what is there, the place of its recovery copies, the
/// sums of its head. `None` where it is no body: not of whole blocks, or without a member that can be found.
pub fn seal(body: &[u8]) -> Option<Vec<u8>> {
    let record = record(body)?;
    let digests = body.chunks(1 << 20).map(|chunk| Ok(*blake3::hash(chunk).as_bytes()));
    let mut out = body.to_vec();
    let put = &mut |bytes: &[u8]| {
        out.extend_from_slice(bytes);
        Ok(())
    };
    write_tail(&record, digests, None, put).ok()?;
    Some(out)
}

fn record(body: &[u8]) -> Option<EndRecord> {
    if body.is_empty() || !body.len().is_multiple_of(512) {
        return None;
    }
    let mut parser = MemberParser::new();
    let mut rest = body;
    let (mut head, mut role) = (Vec::new(), MemberRole::Other);
    let (mut members, mut recovery_at, mut time) = (0, 512, 0);
    let mut name;
    // As far as it can be read; what is behind an error counts for nothing.
    while let Ok(Some(event)) = parser.feed(&mut rest) {
        match event {
            Event::Begin(member) => {
                members += 1;
                time = member.mtime;
                name = member.name;
                role = MemberRole::of(&name);
                if role == MemberRole::RecoveryHead {
                    recovery_at = member.header_at.get();
                }
                role = if role == MemberRole::Head { MemberRole::Head } else { MemberRole::Other };
            }
            Event::Content(bytes) if role == MemberRole::Head => head.extend_from_slice(bytes),
            Event::Content(_) | Event::End | Event::EndOfArchive => {}
        }
    }
    let head = Manifest::parse(&head).ok();
    let sum = |field: fn(&virtfold::archive::manifest::Disk) -> u64| {
        head.iter().flat_map(|head| &head.disks).map(field).fold(0, u64::saturating_add)
    };
    Some(EndRecord {
        archive: head.as_ref().map_or(Uuid::nil(), |head| head.archive),
        time,
        body_len: body.len() as u64,
        recovery_at: StreamOffset::new(recovery_at),
        totals: ArchiveTotals {
            members,
            disks: head.as_ref().map_or(0, |head| head.disks.len() as u64),
            capacity: sum(|disk| disk.capacity),
            allocated: sum(|disk| disk.allocated),
            dense: sum(|disk| disk.dense_length),
            runs: sum(|disk| disk.runs),
        },
        chain: None,
    })
}

struct Nothing;

impl DataSource for Nothing {
    fn read_dense(&self, _: usize, _: DenseOffset, _: &mut [u8]) -> Result<()> {
        Err(Error::new(ErrorKind::Internal, "there is no disk"))
    }

    fn prefetch(&self, _: usize, _: DenseOffset, _: u64) -> Result<()> {
        Ok(())
    }
}

struct Bytes(Vec<u8>);

impl Sink for Bytes {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// A sealed stream as frames; its tail begins at `body_len`.
pub fn frame(stream: &[u8], body_len: usize, id: Uuid) -> Vec<u8> {
    let mut sink = Bytes(Vec::new());
    let options = StreamOptions {
        compression: Compression::Zstd { level: 1 },
        workers: 1,
        archive_id: id,
        cancel: Default::default(),
        progress: Default::default(),
    };
    let (body, tail) = stream.split_at(body_len);
    let written: Result<((), StreamTotals)> = write_stream(&Nothing, &mut sink, &options, |writer| {
        writer.bytes(body)?;
        writer.begin_tail()?;
        writer.bytes(tail)
    });
    written.expect("bytes become frames");
    sink.0
}

/// The dense bytes of one disk, as a reader gave them out.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct DiskBytes {
    /// Guest offset and length of each piece, neighbours joined.
    pub runs: Vec<(u64, u64)>,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Whether something was lost.
    pub lost: bool,
}

impl DiskBytes {
    /// Takes a piece; holds it against the one before.
    pub fn push(&mut self, piece: &Run, bytes: &[u8]) {
        assert_eq!(piece.len, bytes.len() as u64, "a piece has its length in bytes");
        assert_eq!(piece.dense.get(), self.bytes.len() as u64, "pieces come in dense order");
        let start = piece.guest.get();
        match self.runs.last_mut() {
            Some((from, len)) if *from + *len == start => *len += piece.len,
            Some((from, len)) => {
                assert!(*from + *len < start, "pieces ascend");
                self.runs.push((start, piece.len));
            }
            None => self.runs.push((start, piece.len)),
        }
        self.bytes.extend_from_slice(bytes);
    }
}

/// What the one pass saw.
#[derive(Default)]
pub struct Survey {
    /// By disk number.
    pub disks: Vec<DiskBytes>,
    capacities: Vec<u64>,
}

impl Visitor for Survey {
    fn head(&mut self, head: &Manifest) -> Result<()> {
        self.disks = head.disks.iter().map(|_| DiskBytes::default()).collect();
        for disk in &head.disks {
            layout::check_target(&disk.target).expect("a head's disks have proper names");
        }
        Ok(())
    }

    fn disk(&mut self, index: usize, table: &CorrespondenceTable) -> Result<()> {
        assert_eq!(index, self.capacities.len(), "disks come in order");
        self.capacities.push(table.capacity());
        Ok(())
    }

    fn data(&mut self, index: usize, piece: &Run, bytes: &[u8]) -> Result<()> {
        assert!(piece.guest.get() + piece.len <= self.capacities[index], "a piece lies on its disk");
        self.disks[index].push(piece, bytes);
        Ok(())
    }
}

/// The whole pass over an archive; what it saw where the archive is sound.
pub fn survey_pass(archive: &[u8]) -> Result<Survey> {
    let mut survey = Survey::default();
    let mut reader = ArchiveReader::new(&mut survey);
    let end = read_pipe(archive, "fuzz", &super::options(), |chunk| reader.chunk(&chunk))?;
    end.check("fuzz")?;
    let sound = reader.finish()?;
    end.check_id(sound.head.archive)?;
    Ok(survey)
}
