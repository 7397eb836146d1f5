//! What the tests of this layer share: disks in memory, sinks and sources that fail when told to, and the
//! naive model of a stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use uuid::Uuid;

use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::DenseOffset;

use super::{
    ChunkLog, Compression, DataSource, Digest, FRAME, NoChunkLog, Sink, StreamOptions, StreamTotals,
    write_stream_from,
};

pub(super) const ID: Uuid = Uuid::from_bytes(*b"the test archive");

/// Counts down to a failure; 0 is the first call.
pub(super) struct Fuse(AtomicU64);

impl Fuse {
    pub(super) fn new(calls: u64) -> Self {
        Self(AtomicU64::new(calls))
    }

    pub(super) fn never() -> Self {
        Self::new(u64::MAX)
    }

    fn burn(&self, kind: ErrorKind, message: &str) -> Result<()> {
        if self.0.fetch_sub(1, Ordering::Relaxed) == 0 {
            return Err(Error::new(kind, message));
        }
        Ok(())
    }
}

/// Dense images in memory.
pub(super) struct Disks {
    pub(super) images: Vec<Vec<u8>>,
    pub(super) fuse: Fuse,
    pub(super) panics: bool,
}

impl Disks {
    pub(super) fn new(images: Vec<Vec<u8>>) -> Self {
        Self { images, fuse: Fuse::never(), panics: false }
    }

    fn range(&self, disk: usize, at: DenseOffset, len: usize) -> &[u8] {
        let at = usize::try_from(at.get()).unwrap();
        &self.images[disk][at..at + len]
    }
}

impl DataSource for Disks {
    fn read_dense(&self, disk: usize, at: DenseOffset, buf: &mut [u8]) -> Result<()> {
        if let Err(error) = self.fuse.burn(ErrorKind::BadImage, "the source says no") {
            if self.panics {
                panic!("the source panics");
            }
            return Err(error);
        }
        buf.copy_from_slice(self.range(disk, at, buf.len()));
        Ok(())
    }

    fn prefetch(&self, disk: usize, at: DenseOffset, len: u64) -> Result<()> {
        self.range(disk, at, usize::try_from(len).unwrap());
        Ok(())
    }
}

/// An archive in memory.
pub(super) struct Memory {
    pub(super) bytes: Vec<u8>,
    pub(super) fuse: Fuse,
}

impl Default for Memory {
    fn default() -> Self {
        Self { bytes: Vec::new(), fuse: Fuse::never() }
    }
}

impl Sink for Memory {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.fuse.burn(ErrorKind::NoSpace, "the sink is full")?;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

/// A part of a stream.
#[derive(Clone, Debug)]
pub(super) enum Part {
    Bytes(Vec<u8>),
    Data { disk: usize, at: usize, len: usize },
    Tail,
}

/// Bytes that compress somewhat and are not the same anywhere.
pub(super) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 16);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
        out.extend_from_slice(&[7; 8]);
    }
    out.truncate(len);
    out
}

/// A whole stream: its disks and its parts.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) images: Vec<Vec<u8>>,
    pub(super) parts: Vec<Part>,
}

impl Script {
    /// A body of some chunks and a short one, and a tail: small enough to try every byte of it, because
    /// nearly all of it is the same byte.
    pub(super) fn small() -> Self {
        let mut image = vec![3; 3 * FRAME];
        for (place, byte) in image.iter_mut().step_by(30_011).zip(0..) {
            *place = byte;
        }
        let data = Part::Data { disk: 0, at: 0, len: 3 * FRAME - 1234 };
        let parts = vec![Part::Bytes(noise(300, 1)), data, Part::Tail, Part::Bytes(noise(200, 2))];
        Self { images: vec![image], parts }
    }

    pub(super) fn write(
        &self,
        source: &Disks,
        sink: &mut Memory,
        options: &StreamOptions,
    ) -> Result<Written> {
        self.write_from(source, sink, &mut NoChunkLog, options)
    }

    pub(super) fn write_from(
        &self,
        source: &Disks,
        sink: &mut Memory,
        log: &mut dyn ChunkLog,
        options: &StreamOptions,
    ) -> Result<Written> {
        let run = |writer: &mut super::StreamWriter<'_>| {
            let mut body = None;
            for part in &self.parts {
                match part {
                    Part::Bytes(bytes) => writer.bytes(bytes)?,
                    Part::Data { disk, at, len } => {
                        writer.data(*disk, DenseOffset::new(*at as u64), *len as u64)?;
                    }
                    Part::Tail => body = Some(writer.begin_tail()?),
                }
            }
            let blocks: Result<Vec<Vec<u8>>> = body.unwrap_or_default().blocks().collect();
            Ok(blocks?.concat())
        };
        let (digests, totals) = write_stream_from(source, sink, log, options, run)?;
        Ok(Written { digests, totals })
    }

    /// The archive, whole.
    pub(super) fn archive(&self, compression: Compression, workers: usize) -> Vec<u8> {
        let mut sink = Memory::default();
        self.write(&Disks::new(self.images.clone()), &mut sink, &options(compression, workers)).unwrap();
        sink.bytes
    }

    /// The chunks of the body and those of the tail, made without any of the machinery.
    pub(super) fn model(&self) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let mut streams = [Vec::new(), Vec::new()];
        let mut tail = 0;
        for part in &self.parts {
            match part {
                Part::Bytes(bytes) => streams[tail].extend_from_slice(bytes),
                Part::Data { disk, at, len } => {
                    streams[tail].extend_from_slice(&self.images[*disk][*at..at + len]);
                }
                Part::Tail => tail = 1,
            }
        }
        let chunks = |stream: &Vec<u8>| stream.chunks(FRAME).map(<[u8]>::to_vec).collect();
        (chunks(&streams[0]), chunks(&streams[1]))
    }

    /// The stream's bytes, by the model.
    pub(super) fn stream(&self) -> Vec<u8> {
        let (body, tail) = self.model();
        [body.concat(), tail.concat()].concat()
    }
}

/// What a run of the writer gave.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) digests: Vec<u8>,
    pub(super) totals: StreamTotals,
}

pub(super) fn options(compression: Compression, workers: usize) -> StreamOptions {
    StreamOptions { compression, workers, archive_id: ID, cancel: Arc::default(), progress: Arc::default() }
}

pub(super) fn digests_of(chunks: &[Vec<u8>]) -> Vec<u8> {
    chunks.iter().flat_map(|chunk| *Digest::of(chunk).as_bytes()).collect()
}

pub(super) fn any_compression() -> impl Strategy<Value = Compression> {
    prop_oneof![Just(Compression::None), (1..4).prop_map(|level| Compression::Zstd { level })]
}

fn any_part(disk_len: usize) -> impl Strategy<Value = Part> {
    let bytes = (0_usize..1_500_000, any::<u64>()).prop_map(|(len, seed)| Part::Bytes(noise(len, seed)));
    let few = (0_usize..600, any::<u64>()).prop_map(|(len, seed)| Part::Bytes(noise(len, seed)));
    let data = (0_usize..2, 0..disk_len, 0..disk_len).prop_map(move |(disk, at, len)| Part::Data {
        disk,
        at,
        len: len.min(disk_len - at),
    });
    prop_oneof![few, bytes, data]
}

pub(super) fn any_script() -> impl Strategy<Value = Script> {
    const DISK: usize = 5 << 20;
    let parts = || proptest::collection::vec(any_part(DISK), 0..5);
    (parts(), proptest::collection::vec(any_part(DISK), 0..2), any::<u64>()).prop_map(|(body, tail, seed)| {
        let parts = body.into_iter().chain([Part::Tail]).chain(tail).collect();
        Script { images: vec![noise(DISK, seed), noise(DISK, !seed)], parts }
    })
}
