//! Writes a stream: plan, make, put out.
//!
//! The caller's thread plans: [`StreamWriter::bytes`] copies into the chunk's buffer, [`StreamWriter::data`]
//! notes which dense bytes belong where. A full chunk goes to the workers, which finish in any order. Whoever
//! has finished one enters the outlet, one thread at a time, and writes what is next in order; then the
//! buffer goes back to the planner. The planner waits only for buffers, and everything in flight has one, so
//! waiting for all of them is waiting for everything planned to be written.
//!
//! A stream that goes on ([`write_stream_from`] with a log that keeps chunks): the plan is the same, for the
//! same contents give the same plan; but a chunk that was put out before has no buffer, is neither read nor
//! compressed nor put out, and what the tail needs of it comes from the log. All of these are planned before
//! the first that is made, so digests and seek table stay in order.
//!
//! Errors: the first one that a worker or the sink has takes the outlet's place. With the outlet ends the
//! supply of buffers, hence the planner, hence the workers.
//!
//! Imports: `units`, `error`.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::{DenseOffset, MIB, StreamOffset};

use super::chunk_log::{ChunkLog, ChunkRecord, NoChunkLog};
use super::digest::Digests;
use super::encoder::{DataPiece, EncodeSlot, EncodeTask, EncodedChunk, Encoder};
use super::frame::{FRAME, HEADER_LEN};
use super::reorder::Reorder;
use super::seek_table::{MAX_CHUNKS, TableWriter};
use super::{Compression, DataSource, Sink, StreamOptions, StreamTotals, check_cancel, guarded, slot_limit};

/// How far ahead of the plan the source is told what will be read, bytes.
const AHEAD: u64 = 32 * MIB;
/// How much it is told at once, bytes.
const AHEAD_STEP: u64 = 8 * MIB;

/// Writes to `sink` the stream that `plan` describes, with the dense bytes it names taken from `source`.
/// All threads have ended when this returns.
///
/// # Errors
/// The first error of the source, the sink or `plan`, as it is; [`ErrorKind::Interrupted`] when cancelled;
/// [`ErrorKind::Usage`] for a compression level that there is not. What the sink then has is incomplete.
pub fn write_stream<T>(
    source: &dyn DataSource,
    sink: &mut dyn Sink,
    options: &StreamOptions,
    plan: impl FnOnce(&mut StreamWriter<'_>) -> Result<T>,
) -> Result<(T, StreamTotals)> {
    write_stream_from(source, sink, &mut NoChunkLog, options, plan)
}

/// As [`write_stream`], and goes on behind the chunks that `log` keeps: `sink` gets the bytes that follow
/// them, and is the same in the end as if it had been written in one go, as long as `plan`, `source` and
/// `options` are what they were. `log` is told of each chunk that is put out.
///
/// # Errors
/// As [`write_stream`]; [`ErrorKind::Internal`] where the kept chunks are not those of this stream; those of
/// `log`.
pub fn write_stream_from<T>(
    source: &dyn DataSource,
    sink: &mut dyn Sink,
    log: &mut dyn ChunkLog,
    options: &StreamOptions,
    plan: impl FnOnce(&mut StreamWriter<'_>) -> Result<T>,
) -> Result<(T, StreamTotals)> {
    if let Compression::Zstd { level } = options.compression
        && !(1..=22).contains(&level)
    {
        let message = format!("zstd has no compression level {level}");
        return Err(Error::new(ErrorKind::Usage, message).with_hint("choose a level from 1 to 22"));
    }
    let (back, free) = bounded(crew(options).1);
    let digests = Mutex::new(Some(Digests::new()));
    let kept = log.kept();
    let outlet = ChunkOutput {
        sink,
        log,
        options,
        back,
        order: Reorder::from(kept),
        digests: &digests,
        table: TableWriter::default(),
        written: 0,
    };
    let outlet = Mutex::new(Ok(outlet));
    let inputs = WriterShared { source, options, digests: &digests, free, kept };
    let planned = run(inputs, &outlet, plan);
    // When the outlet has failed, an error of the planner is only the echo of that.
    let outlet = outlet.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    let (value, chunks, end) = planned?;
    Ok((value, StreamTotals { stream_len: end.get(), written: outlet.close()?, chunks }))
}

/// What the threads work on.
struct WriterShared<'a> {
    source: &'a dyn DataSource,
    options: &'a StreamOptions,
    digests: &'a BodyDigests,
    free: Receiver<EncodeSlot>,
    /// Chunks that were put out before.
    kept: u64,
}

/// The part of [`write_stream`] that has threads. Returns also the number of chunks and the stream's end.
fn run<T>(
    inputs: WriterShared<'_>,
    outlet: &Shared<'_>,
    plan: impl FnOnce(&mut StreamWriter<'_>) -> Result<T>,
) -> Result<(T, u64, StreamOffset)> {
    let WriterShared { source, options, digests, free, kept } = inputs;
    let take_over = |chunk: &PlannedChunk| match lock(outlet).as_mut() {
        Ok(outlet) => outlet.take_over(chunk),
        Err(_) => Err(stopped()),
    };
    let (threads, limit) = crew(options);
    // Room for every chunk in flight: sending never waits.
    let (plans, planned) = bounded(limit);
    thread::scope(|scope| {
        for _ in 0..threads {
            let planned = planned.clone();
            scope.spawn(move || work(source, options, &planned, outlet));
        }
        drop(planned);
        let slots = Slots { free, spare: Vec::new(), allocated: 0, limit };
        let mut writer = StreamWriter {
            source,
            options,
            digests,
            slots,
            plans,
            kept,
            take_over: &take_over,
            chunk: None,
            chunks: 0,
            position: StreamOffset::ZERO,
            ahead: None,
        };
        let value = plan(&mut writer)?;
        writer.end_chunk()?;
        Ok((value, writer.chunks, writer.position))
        // Here the planner's channel goes, and with it the workers.
    })
}

/// Threads, and buffers in flight. Compressing takes long, so there is one thread more than workers: one may
/// wait for the sink at any time. A plain stream is limited by the copies into and out of the page cache, so
/// it has few buffers, which stay in the processor's cache, and at least two threads, one reading while the
/// other writes.
fn crew(options: &StreamOptions) -> (usize, usize) {
    match options.compression {
        Compression::None => {
            let threads = options.workers.max(2);
            (threads, threads.saturating_mul(2))
        }
        Compression::Zstd { .. } => {
            let threads = options.workers.max(1).saturating_add(1);
            (threads, slot_limit(threads))
        }
    }
}

/// A worker thread's life: until there are no more plans, or somebody fails.
fn work(
    source: &dyn DataSource,
    options: &StreamOptions,
    planned: &Receiver<EncodeTask>,
    outlet: &Shared<'_>,
) {
    let mut worker = match Encoder::new(source, options) {
        Ok(worker) => worker,
        Err(error) => {
            deliver(outlet, Err(error));
            return;
        }
    };
    for plan in planned {
        let outcome = guarded(|| worker.make(plan));
        if !deliver(outlet, outcome) {
            return;
        }
    }
}

/// The outlet, or the first error, which ended it.
type Shared<'a> = Mutex<Result<ChunkOutput<'a>>>;

/// Of the body's chunks, as far as the sink has them; gone once [`StreamWriter::begin_tail`] has taken them.
type BodyDigests = Mutex<Option<Digests>>;

/// A panic of a thread that held the lock is an error that [`guarded`] has made; the lock says it again.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands a chunk on, and puts out what is next in order. Returns whether the work goes on.
fn deliver(outlet: &Shared<'_>, outcome: Result<EncodedChunk>) -> bool {
    let mut outlet = lock(outlet);
    let Ok(open) = outlet.as_mut() else { return false };
    match outcome.and_then(|done| guarded(|| open.accept(done))) {
        Ok(()) => true,
        Err(error) => {
            // With the outlet goes the supply of buffers, which ends the planner.
            *outlet = Err(error);
            false
        }
    }
}

/// Where the chunks go out, one thread at a time: most often the one that made the chunk, whose cache still
/// has it.
struct ChunkOutput<'a> {
    sink: &'a mut dyn Sink,
    log: &'a mut dyn ChunkLog,
    options: &'a StreamOptions,
    back: Sender<EncodeSlot>,
    order: Reorder<EncodedChunk>,
    digests: &'a BodyDigests,
    table: TableWriter,
    written: u64,
}

impl ChunkOutput<'_> {
    fn accept(&mut self, done: EncodedChunk) -> Result<()> {
        self.order.put(done.number, done);
        while let Some(next) = self.order.take() {
            check_cancel(&self.options.cancel)?;
            self.put_out(next)?;
        }
        Ok(())
    }

    fn put_out(&mut self, done: EncodedChunk) -> Result<()> {
        let EncodedChunk { number, len, stored, digest, slot, data_len } = done;
        let bytes = match self.options.compression {
            Compression::None => slot.input.get(..len),
            Compression::Zstd { .. } => slot.output.get(..HEADER_LEN + stored),
        };
        let bytes = bytes.ok_or_else(oversized)?;
        let size = |n: usize| u32::try_from(n).map_err(|_| oversized());
        let record = ChunkRecord { digest, stored: size(stored)?, len: size(len)? };
        // First: a chunk that is not what it was must not get to a sink that would encrypt it as it did the
        // other one.
        self.log.note(number, &record)?;
        self.sink.write(bytes)?;
        self.count(&record, data_len)?;
        // The planner may be gone; then nobody needs the buffers.
        drop(self.back.send(slot));
        Ok(())
    }

    /// Takes over a chunk that was put out before.
    fn take_over(&mut self, chunk: &PlannedChunk) -> Result<()> {
        let record = self.log.get(chunk.number)?;
        let is_framed = self.options.compression != Compression::None;
        if u64::from(record.len) != chunk.len as u64 || (record.stored > 0) != is_framed {
            return Err(Error::new(ErrorKind::Internal, "the chunks that are kept are of another archive"));
        }
        self.count(&record, chunk.data_len)
    }

    /// Keeps what the stream's end needs of a chunk that is put out.
    fn count(&mut self, record: &ChunkRecord, data_len: u64) -> Result<()> {
        self.written += record.bytes();
        if let Some(digests) = &mut *lock(self.digests) {
            digests.push(record.digest)?;
        }
        if self.options.compression != Compression::None {
            self.table.push(record.stored, record.len)?;
        }
        self.options.progress.fetch_add(data_len, Ordering::Relaxed);
        Ok(())
    }

    /// Ends the stream, when all of it is out; returns the bytes that the sink has.
    fn close(mut self) -> Result<u64> {
        if self.options.compression != Compression::None {
            self.written += self.table.write(self.sink)?;
        }
        Ok(self.written)
    }
}

fn oversized() -> Error {
    Error::new(ErrorKind::Internal, "a chunk of the archive is larger than its buffer")
}

/// The planner's supply of buffers.
struct Slots {
    free: Receiver<EncodeSlot>,
    spare: Vec<EncodeSlot>,
    allocated: usize,
    limit: usize,
}

impl Slots {
    /// A slot: one that was used before, else a new one within the limit, else the next that comes back.
    fn take(&mut self, compression: Compression) -> Result<EncodeSlot> {
        if let Some(slot) = self.spare.pop() {
            return Ok(slot);
        }
        if let Ok(slot) = self.free.try_recv() {
            return Ok(slot);
        }
        if self.allocated < self.limit {
            self.allocated += 1;
            return Ok(EncodeSlot::new(compression));
        }
        self.free.recv().map_err(|_| stopped())
    }

    /// Waits until every slot is back: everything planned is written.
    fn wait_for_all(&mut self) -> Result<()> {
        while self.spare.len() < self.allocated {
            self.spare.push(self.free.recv().map_err(|_| stopped())?);
        }
        Ok(())
    }
}

/// What the planner meets when the threads behind it have ended; their error takes its place.
fn stopped() -> Error {
    Error::new(ErrorKind::Internal, "the archive's writer has stopped")
}

/// The chunk that is being planned.
struct PlannedChunk {
    number: u64,
    at: StreamOffset,
    len: usize,
    data_len: u64,
    /// None, where the chunk was put out before.
    slot: Option<EncodeSlot>,
}

/// Takes the stream's contents, front to back. See [`write_stream`].
pub struct StreamWriter<'a> {
    source: &'a dyn DataSource,
    options: &'a StreamOptions,
    digests: &'a BodyDigests,
    slots: Slots,
    plans: Sender<EncodeTask>,
    /// Chunks that were put out before.
    kept: u64,
    take_over: &'a dyn Fn(&PlannedChunk) -> Result<()>,
    chunk: Option<PlannedChunk>,
    chunks: u64,
    position: StreamOffset,
    /// The disk and the dense offset up to which the source was told.
    ahead: Option<(usize, DenseOffset)>,
}

impl StreamWriter<'_> {
    /// Where the next byte will stand in the stream.
    pub fn position(&self) -> StreamOffset {
        self.position
    }

    /// Bytes of the body that an earlier run has put out, to the end of their last chunk as if it were whole.
    pub fn kept_bytes(&self) -> u64 {
        self.kept.saturating_mul(FRAME as u64)
    }

    /// Whether the work goes on.
    ///
    /// # Errors
    /// Interrupted: it was cancelled.
    pub fn check(&self) -> Result<()> {
        check_cancel(&self.options.cancel)
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// When the pipeline has failed or was cancelled.
    pub fn bytes(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let chunk = self.open_chunk()?;
            let (now, later) = bytes.split_at(bytes.len().min(FRAME - chunk.len));
            let place = chunk.len..chunk.len + now.len();
            if let Some(room) = chunk.slot.as_mut().and_then(|slot| slot.input.get_mut(place)) {
                room.copy_from_slice(now);
            }
            bytes = later;
            self.advance(now.len())?;
        }
        Ok(())
    }

    /// Appends `len` dense bytes of disk number `disk`, from `at` on. They are read later, by a worker.
    ///
    /// # Errors
    /// When the pipeline has failed or was cancelled, or the source can't prefetch.
    pub fn data(&mut self, disk: usize, mut at: DenseOffset, mut len: u64) -> Result<()> {
        let beyond = || Error::new(ErrorKind::Internal, "dense bytes were planned past the last address");
        let end = at.checked_add(len).ok_or_else(beyond)?;
        while len > 0 {
            if self.chunks - u64::from(self.chunk.is_some()) >= self.kept {
                self.look_ahead(disk, at, end)?;
            }
            let chunk = self.open_chunk()?;
            let start = chunk.len;
            let now = usize::try_from(len).unwrap_or(FRAME).min(FRAME - start);
            chunk.data_len += now as u64;
            if let Some(slot) = &mut chunk.slot {
                slot.pieces.push(DataPiece { disk, from: at, place: start..start + now });
            }
            self.advance(now)?;
            at = at.saturating_add(now as u64);
            len -= now as u64;
        }
        Ok(())
    }

    /// Ends the body: its last chunk, short or not, goes out, and what follows is cut into chunks from here.
    /// Waits until all of the body is written and returns the digests of its chunks.
    ///
    /// # Errors
    /// When the pipeline has failed or was cancelled, or this was called before.
    pub fn begin_tail(&mut self) -> Result<Digests> {
        self.end_chunk()?;
        self.slots.wait_for_all()?;
        let again = || Error::new(ErrorKind::Internal, "the archive's tail was begun twice");
        lock(self.digests).take().ok_or_else(again)
    }

    fn open_chunk(&mut self) -> Result<&mut PlannedChunk> {
        if self.chunk.is_none() {
            check_cancel(&self.options.cancel)?;
            if self.options.compression != Compression::None && self.chunks >= MAX_CHUNKS.into() {
                return Err(too_long());
            }
            let is_kept = self.chunks < self.kept;
            let slot = if is_kept { None } else { Some(self.slots.take(self.options.compression)?) };
            self.chunk =
                Some(PlannedChunk { number: self.chunks, at: self.position, len: 0, data_len: 0, slot });
            self.chunks += 1;
        }
        self.chunk.as_mut().ok_or_else(stopped)
    }

    /// The open chunk has grown by `len` bytes.
    fn advance(&mut self, len: usize) -> Result<()> {
        self.position = self.position.checked_add(len as u64).ok_or_else(too_long)?;
        let Some(chunk) = &mut self.chunk else { return Ok(()) };
        chunk.len += len;
        if chunk.len < FRAME { Ok(()) } else { self.end_chunk() }
    }

    fn end_chunk(&mut self) -> Result<()> {
        let Some(mut chunk) = self.chunk.take() else { return Ok(()) };
        let Some(slot) = chunk.slot.take() else { return (self.take_over)(&chunk) };
        let PlannedChunk { number, at, len, data_len, .. } = chunk;
        self.plans.send(EncodeTask { number, at, len, data_len, slot }).map_err(|_| stopped())
    }

    /// Keeps the source told of what follows `at` up to `end`, [`AHEAD`] bytes in advance.
    fn look_ahead(&mut self, disk: usize, at: DenseOffset, end: DenseOffset) -> Result<()> {
        let told = match self.ahead {
            Some((d, told)) if d == disk && at <= told && told.since(at) <= AHEAD => told,
            _ => at,
        };
        let to = at.saturating_add(AHEAD).min(end);
        let len = to.since(told);
        if len > 0 && (len >= AHEAD_STEP || to == end) {
            self.source.prefetch(disk, told, len)?;
            self.ahead = Some((disk, to));
        }
        Ok(())
    }
}

fn too_long() -> Error {
    Error::new(ErrorKind::Unsupported, "the archive would have more chunks than its seek table can name")
        .with_hint("write it uncompressed, or back up the disks one by one")
}
