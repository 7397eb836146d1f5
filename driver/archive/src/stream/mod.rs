//! Layer 1 of the archive: an uncompressed byte stream, cut into chunks of one MiB, carried as it is or as
//! Zstandard frames. FORMAT.md, section 'Stream and frames', gives the bytes.
//!
//! Writing ([`write_stream`]): the caller's thread plans chunks, workers read, digest and compress them and
//! write them in order; [`write_stream_from`] goes on where an earlier run was broken off. Reading:
//! [`read_pipe`] takes what comes, front to back; [`RandomStream`] reads a file at any place, or a range of
//! it in order with all workers. Either way every byte of a framed stream is checked, and damage is delivered
//! as a range of the stream, with reading going on behind it.
//!
//! Invariants: memory is bounded by the number of chunks in flight (two for each thread, and four more at
//! most), never by the stream; no length from an archive is believed before it is bounded; an error of any
//! thread ends all of them and is returned as it is.
//!
//! Imports: `units`, `error`, `spill_log`, `packed`.

mod buffer;
mod chunk;
mod chunk_log;
mod decoder;
mod digest;
mod encoder;
mod frame;
mod frame_index;
mod padding;
mod random;
mod reorder;
mod scan;
mod seek_table;
mod sequential;
mod writer;

#[cfg(test)]
mod reader_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod writer_tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use uuid::Uuid;

use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::DenseOffset;

pub use chunk::{
    Carrier, Chunk, ChunkState, Damage, ReadAt, ReadOptions, SeekTableState, StreamEnd, Truncation,
};
pub use chunk_log::{ChunkLog, ChunkRecord, ChunkRecords, NoChunkLog};
pub use digest::{Digest, Digests};
pub use frame::FRAME;
pub use padding::{end_before_zeros, end_of_content, tell_zeros};
pub use random::RandomStream;
pub(crate) use random::{carrier_of, end_of_frames};
pub use reorder::Reorder;
pub(crate) use seek_table::SEEKABLE_MAGIC;
pub use sequential::read_pipe;
pub use writer::{StreamWriter, write_stream, write_stream_from};

/// How the chunks of a stream are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// As they are.
    None,
    /// Each as one Zstandard frame of this level, 1 to 22.
    Zstd {
        /// The compression level of the reference library.
        level: i32,
    },
}

/// Set by whoever wants the work to end: every thread looks at it once a chunk.
pub type Cancel = Arc<AtomicBool>;

/// Where the dense bytes of the disks come from. Many threads read at once.
pub trait DataSource: Sync {
    /// Fills `buf` with the dense bytes of disk number `disk` at `at`.
    ///
    /// # Errors
    /// When the disk can't be read; the error ends the stream as it is.
    fn read_dense(&self, disk: usize, at: DenseOffset, buf: &mut [u8]) -> Result<()>;

    /// Says that `len` dense bytes at `at` will be read soon.
    ///
    /// # Errors
    /// When the disk can't be read; the error ends the stream as it is.
    fn prefetch(&self, disk: usize, at: DenseOffset, len: u64) -> Result<()>;
}

/// Where the bytes of an archive go, front to back.
pub trait Sink: Send {
    /// Takes all of `bytes`; the next call continues behind them.
    ///
    /// # Errors
    /// When the medium fails or is full; the error ends the stream as it is.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;
}

/// How to write a stream.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// How the chunks are carried.
    pub compression: Compression,
    /// Threads that read, digest and compress; at least one is used. The planning thread waits most of the
    /// time.
    pub workers: usize,
    /// Names the archive in each frame.
    pub archive_id: Uuid,
    /// Ends the work with [`ErrorKind::Interrupted`].
    pub cancel: Cancel,
    /// Grows by the bytes that came from the [`DataSource`], once the sink has them.
    pub progress: Arc<AtomicU64>,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamTotals {
    /// Bytes of the uncompressed stream.
    pub stream_len: u64,
    /// Bytes that the sink took.
    pub written: u64,
    /// Chunks.
    pub chunks: u64,
}

/// What every plain archive begins with: the name of its first member.
const FIRST_MEMBER: &[u8] = b"virtfold.json\0";

/// Chunks in flight, hence buffers, with so many workers: each works on one and has one ready, and both ends
/// have two each.
fn slot_limit(workers: usize) -> usize {
    workers.saturating_mul(2).saturating_add(4)
}

/// How a stream that begins with `first` is carried, if it is one. Either mark may have a damaged byte or be
/// half lost.
fn detect(first: &[u8]) -> Option<Carrier> {
    let same = |at: usize, mark: &[u8]| {
        let there = first.get(at..).unwrap_or_default();
        there.iter().zip(mark).filter(|(a, b)| a == b).count()
    };
    if same(0, &frame::PREFIX) >= 8 || seek_table::chunks_of(first) == Some(0) {
        return Some(Carrier::Framed);
    }
    (same(257, b"ustar") >= 4).then_some(Carrier::Plain)
}

/// What is said of a file that begins with `first` and ends there or goes on; it is not known what it is.
fn unrecognised(name: &str, first: &[u8]) -> Error {
    /// Before this many bytes a plain archive does not show what it is.
    const PLAIN_MARK_END: usize = 262;
    let begins = |mark: &[u8]| first.iter().zip(mark).all(|(a, b)| a == b);
    if first.len() < PLAIN_MARK_END && (begins(&frame::PREFIX) || begins(FIRST_MEMBER)) {
        let message = format!("'{name}' is incomplete: it ends within its first header");
        return Error::new(ErrorKind::Incomplete, message);
    }
    Error::new(ErrorKind::Unsupported, format!("'{name}' does not begin as a virtfold archive does"))
        .with_hint("it is something else, or nothing of its first 512 bytes is left")
}

/// The error of a cancelled run, when `cancel` is set.
///
/// # Errors
/// [`ErrorKind::Interrupted`], when it is.
pub fn check_cancel(cancel: &AtomicBool) -> Result<()> {
    if cancel.load(Ordering::Relaxed) {
        return Err(Error::new(ErrorKind::Interrupted, "the work was interrupted"));
    }
    Ok(())
}

/// Runs `work` and turns a panic, which is a defect of virtfold, into an error that the other threads can be
/// ended with.
///
/// # Errors
/// Those of `work`; Internal for a panic.
pub fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|_| Err(panicked()))
}

fn panicked() -> Error {
    Error::new(ErrorKind::Internal, "a thread panicked")
        .with_hint("this is a defect of virtfold; please report it with the lines above")
}
