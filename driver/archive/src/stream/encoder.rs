//! A worker of the writing pipeline: takes the plan of a chunk, reads its pieces, digests and compresses it.
//!
//! Each chunk travels in a [`EncodeSlot`], a pair of buffers that is used again and again; the number of
//! slots is what bounds the memory. A slot is given to a chunk when it is planned, so the oldest chunk always
//! has its buffers and no thread waits for another in a circle.
//!
//! Imports: `units`, `error`.

use std::ops::Range;

use uuid::Uuid;

use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::{DenseOffset, StreamOffset};

use super::buffer::Buffer;
use super::digest::Digest;
use super::frame::{FRAME, FrameHeader, HEADER_LEN, STORED_MAX};
use super::{Compression, DataSource, StreamOptions, check_cancel};

/// The buffers of a chunk in flight.
#[derive(Debug)]
pub(super) struct EncodeSlot {
    /// The chunk: [`FRAME`] bytes.
    pub(super) input: Buffer,
    /// Header and Zstandard frame, for a framed stream; else empty.
    pub(super) output: Buffer,
    /// What of the chunk is still to be read.
    pub(super) pieces: Vec<DataPiece>,
}

impl EncodeSlot {
    /// Buffers for a chunk that will be carried so.
    pub(super) fn new(compression: Compression) -> Self {
        let output = match compression {
            Compression::None => Buffer::new(0),
            Compression::Zstd { .. } => Buffer::new(HEADER_LEN + STORED_MAX),
        };
        Self { input: Buffer::new(FRAME), output, pieces: Vec::new() }
    }
}

/// A range of the chunk that a disk's dense bytes fill.
#[derive(Clone, Debug)]
pub(super) struct DataPiece {
    pub(super) disk: usize,
    pub(super) from: DenseOffset,
    pub(super) place: Range<usize>,
}

/// A chunk to be made: what of it is known lies in the slot's input already.
#[derive(Debug)]
pub(super) struct EncodeTask {
    pub(super) number: u64,
    pub(super) at: StreamOffset,
    pub(super) len: usize,
    /// Bytes of it that come from the source.
    pub(super) data_len: u64,
    pub(super) slot: EncodeSlot,
}

/// A chunk made.
#[derive(Debug)]
pub(super) struct EncodedChunk {
    pub(super) number: u64,
    pub(super) len: usize,
    /// Bytes of it that came from the source.
    pub(super) data_len: u64,
    /// Bytes of the Zstandard frame; 0 for a plain stream.
    pub(super) stored: usize,
    pub(super) digest: Digest,
    pub(super) slot: EncodeSlot,
}

/// What one worker thread holds.
pub(super) struct Encoder<'a> {
    source: &'a dyn DataSource,
    options: &'a StreamOptions,
    compressor: Option<zstd::bulk::Compressor<'static>>,
}

impl<'a> Encoder<'a> {
    /// A worker with its own compression context.
    pub(super) fn new(source: &'a dyn DataSource, options: &'a StreamOptions) -> Result<Self> {
        let compressor = match options.compression {
            Compression::None => None,
            Compression::Zstd { level } => Some(zstd::bulk::Compressor::new(level).map_err(|source| {
                Error::new(ErrorKind::Internal, format!("cannot set up compression of level {level}"))
                    .with_source(source)
            })?),
        };
        Ok(Self { source, options, compressor })
    }

    /// Makes one chunk.
    pub(super) fn make(&mut self, plan: EncodeTask) -> Result<EncodedChunk> {
        check_cancel(&self.options.cancel)?;
        let EncodeTask { number, at, len, data_len, mut slot } = plan;
        let EncodeSlot { input, output, pieces } = &mut slot;
        for piece in pieces.drain(..) {
            let place = input.get_mut(piece.place).ok_or_else(misplanned)?;
            self.source.read_dense(piece.disk, piece.from, place)?;
        }
        let chunk = input.get(..len).ok_or_else(misplanned)?;
        let digest = Digest::of(chunk);
        let stored = match &mut self.compressor {
            None => 0,
            Some(compressor) => {
                let named = FrameIdentity { archive_id: self.options.archive_id, number, at, digest };
                compress(compressor, &named, chunk, output)?
            }
        };
        Ok(EncodedChunk { number, len, data_len, stored, digest, slot })
    }
}

/// What a header says besides what compression finds out.
struct FrameIdentity {
    archive_id: Uuid,
    number: u64,
    at: StreamOffset,
    digest: Digest,
}

/// Fills `output` with header and Zstandard frame; returns the bytes of the latter. The frame is written
/// behind the room for the header, so that both go to the sink in one piece.
fn compress(
    compressor: &mut zstd::bulk::Compressor<'static>,
    named: &FrameIdentity,
    chunk: &[u8],
    output: &mut [u8],
) -> Result<usize> {
    let (head, body) = output.split_at_mut_checked(HEADER_LEN).ok_or_else(misplanned)?;
    let stored = compressor.compress_to_buffer(chunk, body).map_err(|source| {
        Error::new(ErrorKind::Internal, "cannot compress a chunk of the archive").with_source(source)
    })?;
    let header = FrameHeader {
        archive_id: named.archive_id,
        number: named.number,
        at: named.at,
        len: u32::try_from(chunk.len()).map_err(|_| misplanned())?,
        stored: u32::try_from(stored).map_err(|_| misplanned())?,
        crc: crc32c::crc32c(body.get(..stored).ok_or_else(misplanned)?),
        digest: named.digest,
    };
    for (to, from) in head.iter_mut().zip(header.encode()) {
        *to = from;
    }
    Ok(stored)
}

fn misplanned() -> Error {
    Error::new(ErrorKind::Internal, "a chunk of the archive was planned beyond its buffer")
}
