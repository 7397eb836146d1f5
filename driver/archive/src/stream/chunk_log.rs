//! What is remembered of chunks that were put out, so that a stream can go on behind them.
//!
//! What comes after a chunk needs three things of it: its digest (the digest list), and its two lengths (the
//! seek table, and where in the archive it ends). They are the chunk's record; a [`ChunkLog`] is told of
//! each.
//!
//! Imports: `error`, `spill_log`.

use super::digest::Digest;
use super::frame::{FRAME, FrameHeader, HEADER_LEN, STORED_MAX, Unpacker};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::spill_log::SpillLog;

/// Bytes of a record.
const LEN: usize = 40;

/// A chunk that was put out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRecord {
    /// BLAKE3 of the chunk.
    pub digest: Digest,
    /// Bytes of its Zstandard frame; 0 in a plain stream.
    pub stored: u32,
    /// Bytes of the chunk.
    pub len: u32,
}

impl ChunkRecord {
    /// Bytes that it has in the archive.
    pub fn bytes(&self) -> u64 {
        if self.stored == 0 { self.len.into() } else { HEADER_LEN as u64 + u64::from(self.stored) }
    }

    /// The record's 40 bytes.
    pub fn encode(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        let fields = self.digest.as_bytes().iter().copied();
        let fields = fields.chain(self.stored.to_le_bytes()).chain(self.len.to_le_bytes());
        out.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        out
    }

    /// Whether `bytes`, of which there are as many as [`ChunkRecord::bytes`] says, are this chunk as it was
    /// put out.
    pub fn is_of(&self, bytes: &[u8]) -> bool {
        if self.stored == 0 {
            return Digest::of(bytes) == self.digest;
        }
        let Ok(header) = FrameHeader::decode(bytes) else { return false };
        let same = (header.digest, header.stored, header.len) == (self.digest, self.stored, self.len);
        let mut chunk = vec![0; FRAME];
        let frame = bytes.get(HEADER_LEN..).unwrap_or_default();
        same && Unpacker::default().unpack(&header, frame, &mut chunk).is_ok()
    }

    /// What [`ChunkRecord::encode`] gave; `None` where no chunk has such lengths.
    pub fn decode(bytes: &[u8; LEN]) -> Option<Self> {
        let (digest, rest) = bytes.split_first_chunk()?;
        let (stored, len) = rest.split_first_chunk()?;
        let record = Self {
            digest: Digest::from_bytes(*digest),
            stored: u32::from_le_bytes(*stored),
            len: u32::from_le_bytes(*len.first_chunk()?),
        };
        let within = |len: u32, most: usize| u64::from(len) <= most as u64;
        (record.len > 0 && within(record.len, FRAME) && within(record.stored, STORED_MAX)).then_some(record)
    }
}

/// Who knows the chunks that were put out before, and is told of those that are put out now.
pub trait ChunkLog: Send {
    /// How many chunks were put out before: the stream goes on behind them.
    fn kept(&self) -> u64;

    /// Chunk number `number`, one of those that are kept.
    ///
    /// # Errors
    /// When it can't be read back.
    fn get(&self, number: u64) -> Result<ChunkRecord>;

    /// Chunk number `number` goes to the sink next. They come in order.
    ///
    /// # Errors
    /// When it can't be noted; the error ends the stream as it is.
    fn note(&mut self, number: u64, chunk: &ChunkRecord) -> Result<()>;
}

/// Nothing is kept and nothing noted.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoChunkLog;

impl ChunkLog for NoChunkLog {
    fn kept(&self) -> u64 {
        0
    }

    fn get(&self, _: u64) -> Result<ChunkRecord> {
        Err(unknown())
    }

    fn note(&mut self, _: u64, _: &ChunkRecord) -> Result<()> {
        Ok(())
    }
}

fn unknown() -> Error {
    Error::new(ErrorKind::Internal, "a chunk was asked for that is not kept")
}

/// Records of chunks from the first one on, in a [`SpillLog`], so that their number does not matter.
#[derive(Debug, Default)]
pub struct ChunkRecords {
    spool: SpillLog,
    /// How many count; behind them are the records of chunks that are to be put out again.
    kept: u64,
}

impl ChunkRecords {
    /// Records in it.
    pub fn len(&self) -> u64 {
        self.spool.len() / LEN as u64
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.spool.is_empty()
    }

    /// Appends a record.
    ///
    /// # Errors
    /// When the spool can't spill to its temporary file.
    pub fn push(&mut self, chunk: &ChunkRecord) -> Result<()> {
        self.spool.append(&chunk.encode())
    }

    /// Keeps the chunks that lie wholly in the archive's first `durable` bytes. Returns where the last of
    /// them ends.
    ///
    /// # Errors
    /// When the spool can't be read back.
    pub fn keep_within(&mut self, durable: u64) -> Result<u64> {
        self.kept = self.len();
        let mut end = 0_u64;
        for number in 0..self.len() {
            let next = end.saturating_add(self.get(number)?.bytes());
            if next > durable {
                self.kept = number;
                break;
            }
            end = next;
        }
        Ok(end)
    }
}

impl ChunkLog for ChunkRecords {
    fn kept(&self) -> u64 {
        self.kept
    }

    fn get(&self, number: u64) -> Result<ChunkRecord> {
        let mut bytes = [0; LEN];
        let at = number.checked_mul(LEN as u64).ok_or_else(unknown)?;
        self.spool.read_at(at, &mut bytes)?;
        ChunkRecord::decode(&bytes).ok_or_else(unknown)
    }

    /// A chunk that is put out again is the same as before, so its record is not noted twice.
    fn note(&mut self, number: u64, chunk: &ChunkRecord) -> Result<()> {
        if number == self.len() {
            return self.push(chunk);
        }
        if self.get(number)? == *chunk {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Internal, "a chunk of the archive is not the same when it is made again"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u32) -> ChunkRecord {
        ChunkRecord { digest: Digest::of(&number.to_le_bytes()), stored: number, len: 1 << 20 }
    }

    #[test]
    fn records_round_trip() {
        assert_eq!(ChunkRecord::decode(&record(7).encode()), Some(record(7)));
        assert_eq!((record(0).bytes(), record(5).bytes()), (1 << 20, 105));
    }

    #[test]
    fn what_lies_wholly_in_the_durable_part_is_kept() {
        let mut chunks = ChunkRecords::default();
        (1..=3).for_each(|n| chunks.push(&record(n * 100)).unwrap());
        for (durable, end, kept) in
            [(0, 0, 0), (199, 0, 0), (200, 200, 1), (499, 200, 1), (500, 500, 2), (u64::MAX, 900, 3)]
        {
            assert_eq!((chunks.keep_within(durable).unwrap(), chunks.kept()), (end, kept), "{durable}");
        }
    }

    #[test]
    fn a_chunk_that_is_made_again_has_to_be_the_same() {
        let mut chunks = ChunkRecords::default();
        chunks.note(0, &record(1)).unwrap();
        chunks.note(1, &record(2)).unwrap();
        chunks.note(0, &record(1)).unwrap();
        assert_eq!(chunks.note(1, &record(3)).unwrap_err().kind(), ErrorKind::Internal);
        assert_eq!(chunks.len(), 2);
    }
}
