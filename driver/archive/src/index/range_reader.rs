//! Reading at any place of a stream, with every byte checked.
//!
//! Every MiB is held against the digest list of the tail; the last one that was checked is kept, for tables
//! are read in small steps. Where a cut or damage has taken that list, a framed stream still checks its
//! frames against their own headers, and of a plain one what is read is what is there.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::tail::ArchiveTail;
use crate::end_record::CHUNK;
use crate::stream::{Carrier, Chunk, ChunkState, Digest, RandomStream, StreamEnd};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::StreamOffset;

pub(super) struct VerifiedRanges<'a> {
    stream: RandomStream<'a>,
    /// Where the tail is sound: the digests of the body.
    tail: Option<Arc<ArchiveTail>>,
    /// The chunk number and bytes of the last chunk that was checked.
    last: Mutex<Option<(u64, Vec<u8>)>>,
}

/// What a range of the stream gives: its bytes, or how many bytes are lost.
pub(super) type RangeBytes<'a> = std::result::Result<&'a [u8], u64>;

impl<'a> VerifiedRanges<'a> {
    pub(super) fn new(stream: RandomStream<'a>, tail: Option<Arc<ArchiveTail>>) -> Self {
        Self { stream, tail, last: Mutex::new(None) }
    }

    pub(super) fn end(&self) -> &StreamEnd {
        self.stream.end()
    }

    pub(super) fn carrier(&self) -> Carrier {
        self.stream.end().carrier
    }

    pub(super) fn is_checked(&self) -> bool {
        self.carrier() == Carrier::Framed || self.tail.is_some()
    }

    /// Bytes of the stream as far as it goes.
    pub(super) fn len(&self) -> u64 {
        self.stream.len()
    }

    /// Where the body ends; the stream's end where the tail is not known.
    pub(super) fn body_len(&self) -> u64 {
        self.tail.as_ref().map_or(self.len(), |tail| tail.record.body_len)
    }

    /// The digest that the tail gives chunk number `index` of the body.
    fn expected(&self, index: u64) -> Result<Option<Digest>> {
        self.tail.as_ref().map(|tail| tail.digests.get(index)).transpose()
    }

    /// The part of the stream that chunk number `index` of the body is.
    fn chunk_range(&self, index: u64) -> Range<u64> {
        let end = self.body_len();
        let start = index.saturating_mul(CHUNK);
        start..start.saturating_add(CHUNK).min(end)
    }

    /// Fills `buf` from `at`, which lies in the body.
    ///
    /// # Errors
    /// Damaged, where the bytes are not what was written; Incomplete behind the end of the stream.
    pub(super) fn read_at(&self, at: StreamOffset, buf: &mut [u8]) -> Result<()> {
        if at.checked_add(buf.len() as u64).is_none_or(|end| end.get() > self.len()) {
            return Err(Error::new(
                ErrorKind::Incomplete,
                format!("the archive is cut before byte {at} of its stream"),
            ));
        }
        if self.tail.is_none() {
            return self.stream.read_at(at, buf);
        }
        let (mut at, mut rest) = (at.get(), buf);
        while !rest.is_empty() {
            let index = at / CHUNK;
            let len = usize::try_from((index + 1) * CHUNK - at).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = std::mem::take(&mut rest).split_at_mut(len);
            self.read_from_chunk(index, at % CHUNK, now)?;
            rest = later;
            at += len as u64;
        }
        Ok(())
    }

    fn read_from_chunk(&self, index: u64, inside: u64, buf: &mut [u8]) -> Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, bytes) = match last.take() {
            Some((number, bytes)) if number == index => (number, bytes),
            _ => (index, self.load_chunk(index)?),
        };
        let start = usize::try_from(inside).unwrap_or(usize::MAX);
        let wanted = start.checked_add(buf.len()).and_then(|end| bytes.get(start..end));
        let wanted = wanted
            .ok_or_else(|| Error::new(ErrorKind::Damaged, "a table reaches behind the archive's body"))?;
        buf.copy_from_slice(wanted);
        *last = Some((number, bytes));
        Ok(())
    }

    fn load_chunk(&self, index: u64) -> Result<Vec<u8>> {
        let range = self.chunk_range(index);
        let len = range.end.saturating_sub(range.start).min(CHUNK);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.stream.read_at(StreamOffset::new(range.start), &mut bytes)?;
        match self.expected(index)? {
            Some(expected) if expected != Digest::of(&bytes) => Err(Error::new(
                ErrorKind::Damaged,
                format!(
                    "bytes {} to {} of the archive's stream are not what was written",
                    range.start, range.end
                ),
            )),
            _ => Ok(bytes),
        }
    }

    /// Gives `take` the bytes of `range` of the body, in order; what is damaged or behind the end as a number
    /// of lost bytes.
    ///
    /// # Errors
    /// Those of the source and of `take`.
    pub(super) fn read(
        &self,
        range: Range<StreamOffset>,
        take: &mut dyn FnMut(StreamOffset, RangeBytes<'_>) -> Result<()>,
    ) -> Result<()> {
        // Whole chunks, or their digests say nothing.
        let end = self.body_len();
        let from = range.start.get() / CHUNK * CHUNK;
        let to = range.end.get().checked_next_multiple_of(CHUNK).unwrap_or(end).min(end);
        if from >= to {
            return Ok(());
        }
        self.stream.chunks(StreamOffset::new(from)..StreamOffset::new(to), |chunk: Chunk<'_>| {
            let (at, taken) = self.judge(&chunk)?;
            let Some((at, taken)) = clip(at, taken, &range) else { return Ok(()) };
            take(at, taken)
        })
    }

    fn judge<'c>(&self, chunk: &Chunk<'c>) -> Result<(StreamOffset, RangeBytes<'c>)> {
        let taken = match &chunk.state {
            // A frame vouches for itself only; that it is the archive's own, and where it belongs, the tail
            // says.
            ChunkState::Intact(found) => match self.expected(chunk.at.get() / CHUNK)? {
                Some(expected) if expected != *found || !chunk.at.get().is_multiple_of(CHUNK) => {
                    Err(chunk.bytes.len() as u64)
                }
                _ => Ok(chunk.bytes),
            },
            ChunkState::Unchecked(found) => self.judge_plain(chunk, *found)?,
            ChunkState::Damaged(damage) => Err(damage.stream.end.since(damage.stream.start)),
        };
        Ok((chunk.at, taken))
    }

    /// A chunk of a plain stream; the one in which the body ends has the digest of its part of the body.
    fn judge_plain<'c>(&self, chunk: &Chunk<'c>, found: Digest) -> Result<RangeBytes<'c>> {
        let Some(expected) = self.expected(chunk.at.get() / CHUNK)? else { return Ok(Ok(chunk.bytes)) };
        let body_end = self.tail.as_ref().map_or(u64::MAX, |tail| tail.record.body_len);
        let inside = usize::try_from(body_end.saturating_sub(chunk.at.get())).unwrap_or(usize::MAX);
        let (bytes, found) = match chunk.bytes.get(..inside) {
            Some(body) if body.len() < chunk.bytes.len() => (body, Digest::of(body)),
            _ => (chunk.bytes, found),
        };
        Ok(if found == expected { Ok(bytes) } else { Err(bytes.len() as u64) })
    }
}

/// The part of a chunk that lies in `range`.
fn clip<'a>(
    at: StreamOffset,
    taken: RangeBytes<'a>,
    range: &Range<StreamOffset>,
) -> Option<(StreamOffset, RangeBytes<'a>)> {
    let len = taken.map_or_else(|lost| lost, |bytes| bytes.len() as u64);
    let start = at.max(range.start);
    let end = at.saturating_add(len).min(range.end);
    let (skip, keep) = (start.since(at), end.since(start));
    if keep == 0 {
        return None;
    }
    let taken = match taken {
        Ok(bytes) => {
            let skip = usize::try_from(skip).ok()?;
            Ok(bytes.get(skip..skip + usize::try_from(keep).ok()?)?)
        }
        Err(_) => Err(keep),
    };
    Some((start, taken))
}
