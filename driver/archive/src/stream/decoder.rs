//! A worker of the reading pipelines: takes the bytes of a chunk, or fetches them from the file, checks and
//! decompresses them.
//!
//! Imports: `units`, `error`.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use crossbeam_channel::{Receiver, Sender};
use uuid::Uuid;

use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::StreamOffset;

use super::buffer::Buffer;
use super::chunk::{Carrier, Chunk, ChunkState, Damage, ReadAt};
use super::digest::Digest;
use super::frame::{FRAME, FrameHeader, HEADER_LEN, STORED_MAX, Unpacker};
use super::frame_index::Span;
use super::{check_cancel, guarded};

/// The buffers of a chunk in flight.
#[derive(Debug)]
pub(super) struct DecodeSlot {
    /// Header and Zstandard frame; nothing for a plain stream.
    pub(super) stored: Buffer,
    /// The chunk.
    pub(super) chunk: Buffer,
}

impl DecodeSlot {
    /// Buffers for a chunk that is carried so.
    pub(super) fn new(carrier: Carrier) -> Self {
        let stored = match carrier {
            Carrier::Plain => 0,
            Carrier::Framed => HEADER_LEN + STORED_MAX,
        };
        Self { stored: Buffer::new(stored), chunk: Buffer::new(FRAME) }
    }

    /// Buffers for this one frame: most of a list's archives are far smaller than a whole chunk.
    pub(super) fn of_frame(span: &Span) -> Self {
        let len = |from: u64, to: u64| usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
        let stored = len(span.file.start, span.file.end).min(HEADER_LEN + STORED_MAX);
        let chunk = len(span.stream.start.get(), span.stream.end.get()).min(FRAME);
        Self { stored: Buffer::new(stored), chunk: Buffer::new(chunk) }
    }
}

/// A chunk to be checked.
pub(super) struct DecodeTask {
    pub(super) number: u64,
    pub(super) span: Span,
    pub(super) slot: DecodeSlot,
}

/// A chunk checked, or a gap.
pub(super) struct DecodedChunk {
    pub(super) number: u64,
    pub(super) at: StreamOffset,
    pub(super) outcome: ChunkCheck,
    /// None for a gap.
    pub(super) slot: Option<DecodeSlot>,
}

/// What is known of the chunk: so many bytes at the front of the slot's chunk, or that it is lost.
pub(super) enum ChunkCheck {
    Intact(usize, Digest),
    Unchecked(usize, Digest),
    Damaged(Damage),
}

impl DecodedChunk {
    /// A part of the stream that is known to be lost.
    pub(super) fn gap(number: u64, damage: Damage) -> Self {
        Self { number, at: damage.stream.start, outcome: ChunkCheck::Damaged(damage), slot: None }
    }

    /// Hands the chunk to its consumer.
    pub(super) fn deliver(&self, consume: &mut dyn FnMut(Chunk<'_>) -> Result<()>) -> Result<()> {
        let (len, state) = match &self.outcome {
            ChunkCheck::Intact(len, digest) => (*len, ChunkState::Intact(*digest)),
            ChunkCheck::Unchecked(len, digest) => (*len, ChunkState::Unchecked(*digest)),
            ChunkCheck::Damaged(damage) => (0, ChunkState::Damaged(damage)),
        };
        let bytes = self.slot.as_ref().and_then(|slot| slot.chunk.get(..len)).unwrap_or_default();
        consume(Chunk { at: self.at, bytes, state })
    }
}

/// What one worker thread holds.
pub(super) struct Decoder<'a> {
    /// Where the bytes are to be fetched; `None` where they come with the job.
    pub(super) file: Option<&'a dyn ReadAt>,
    pub(super) carrier: Carrier,
    pub(super) archive_id: Option<Uuid>,
    pub(super) cancel: &'a AtomicBool,
}

impl Decoder<'_> {
    /// A worker thread's life: until there are no more jobs, nobody takes the chunks, or it fails.
    pub(super) fn work(&self, jobs: &Receiver<DecodeTask>, done: &Sender<Result<DecodedChunk>>) {
        let mut unpacker = Unpacker::default();
        for job in jobs {
            let outcome = guarded(|| self.check(job, &mut unpacker));
            let failed = outcome.is_err();
            if done.send(outcome).is_err() || failed {
                return;
            }
        }
    }

    /// Checks one chunk; an error is one that ends the work.
    pub(super) fn check(&self, job: DecodeTask, unpacker: &mut Unpacker) -> Result<DecodedChunk> {
        check_cancel(self.cancel)?;
        let DecodeTask { number, span, mut slot } = job;
        let outcome = match self.carrier {
            Carrier::Plain => self.plain(&span, &mut slot),
            Carrier::Framed => self.framed(&span, &mut slot, unpacker),
        };
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(ChunkError::Ends(error)) => return Err(error),
            Err(ChunkError::Damage(why)) => {
                let Span { stream, file, .. } = span.clone();
                ChunkCheck::Damaged(Damage { stream, file, why })
            }
        };
        Ok(DecodedChunk { number, at: span.stream.start, outcome, slot: Some(slot) })
    }

    fn plain(&self, span: &Span, slot: &mut DecodeSlot) -> std::result::Result<ChunkCheck, ChunkError> {
        let len = usize::try_from(span.file.end.saturating_sub(span.file.start)).unwrap_or(usize::MAX);
        let chunk =
            slot.chunk.get_mut(..len).ok_or_else(|| ChunkError::Damage("it is too large".to_owned()))?;
        self.fetch(&span.file, chunk)?;
        Ok(ChunkCheck::Unchecked(len, Digest::of(chunk)))
    }

    fn framed(
        &self,
        span: &Span,
        slot: &mut DecodeSlot,
        unpacker: &mut Unpacker,
    ) -> std::result::Result<ChunkCheck, ChunkError> {
        let len = span.file.end.saturating_sub(span.file.start);
        let DecodeSlot { stored, chunk } = slot;
        let stored = usize::try_from(len)
            .ok()
            .and_then(|len| stored.get_mut(..len))
            .ok_or_else(|| ChunkError::Damage("there are more bytes than its frame can have".to_owned()))?;
        self.fetch(&span.file, stored)?;
        let (header, body) = self.header(span, stored).map_err(ChunkError::Damage)?;
        let bytes = unpacker.unpack(&header, body, chunk).map_err(ChunkError::Damage)?;
        Ok(ChunkCheck::Intact(bytes.len(), header.digest))
    }

    /// Takes the header off `bytes` and compares it with what is known of the frame.
    fn header<'b>(
        &self,
        span: &Span,
        bytes: &'b [u8],
    ) -> std::result::Result<(FrameHeader, &'b [u8]), String> {
        let header = FrameHeader::decode(bytes).map_err(|_| "its frame's header is damaged".to_owned())?;
        if self.archive_id.is_some_and(|id| id != header.archive_id) {
            return Err("its frame is that of another archive".to_owned());
        }
        if (header.number, header.at..header.end()) != (span.numbers.start, span.stream.clone()) {
            return Err(format!("frame {} is in its place", header.number));
        }
        if header.span() != bytes.len() as u64 {
            return Err("bytes of its frame are missing".to_owned());
        }
        Ok((header, bytes.get(HEADER_LEN..).unwrap_or_default()))
    }

    fn fetch(&self, place: &Range<u64>, to: &mut [u8]) -> std::result::Result<(), ChunkError> {
        let Some(file) = self.file else { return Ok(()) };
        file.read_exact_at(place.start, to).map_err(ChunkError::of_reading)
    }
}

/// Why a chunk can't be had.
enum ChunkError {
    /// It alone is lost.
    Damage(String),
    /// The work ends.
    Ends(Error),
}

impl ChunkError {
    /// A medium that can't read one place may well read the next, and one that finds it damaged, too;
    /// anything else is no property of the place.
    fn of_reading(error: Error) -> Self {
        if !matches!(error.kind(), ErrorKind::Io | ErrorKind::Damaged) {
            return Self::Ends(error);
        }
        let mut why = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            why = format!("{why}: {inner}");
            cause = inner.source();
        }
        Self::Damage(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_frame_has_small_buffers() {
        let stream = StreamOffset::ZERO..StreamOffset::new(14_000);
        let span = Span { numbers: 0..1, stream, file: 0..3000, lost: false };
        let slot = DecodeSlot::of_frame(&span);
        assert_eq!((slot.stored.len(), slot.chunk.len()), (3000, 14_000));
        // What a table says is believed no further than a frame can have bytes.
        let stream = StreamOffset::ZERO..StreamOffset::new(u64::MAX);
        let slot = DecodeSlot::of_frame(&Span { stream, file: 0..u64::MAX, ..span });
        assert_eq!((slot.stored.len(), slot.chunk.len()), (HEADER_LEN + STORED_MAX, FRAME));
    }
}
