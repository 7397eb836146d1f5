//! Reads a stream that comes front to back and only once: from a pipe, a socket or a tape.
//!
//! A feeder thread reads and cuts ([`FrameWalker`] for a framed stream), workers check, the caller's thread
//! hands the chunks to the consumer in order. As in the writer, the buffers are all that anybody waits for.
//!
//! Imports: `units`, `error`.

use std::io::{self, Read};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::units::StreamOffset;

use super::chunk::{Carrier, Chunk, ReadOptions, SeekTableState, StreamEnd};
use super::decoder::{DecodeSlot, DecodeTask, DecodedChunk, Decoder};
use super::frame::FRAME;
use super::frame_index::Span;
use super::reorder::Reorder;
use super::scan::{FrameWalker, LookAhead, ScanStep};
use super::{check_cancel, detect, guarded, panicked, slot_limit, unrecognised};

/// Bytes that are read at once, and let go at once.
const STEP: usize = 256 << 10;
/// Bytes that tell how the stream is carried.
const PROBE: usize = 512;

/// Reads the stream that comes from `input`, called `name` in messages, and hands its chunks in order to
/// `consume`. A plain stream is delivered up to the input's end in chunks of [`FRAME`] bytes from its
/// beginning: where the tail begins this layer does not know.
///
/// When `consume` fails, the input is read no further than one read that is under way.
///
/// # Errors
/// Those of `input` and `consume`; [`ErrorKind::Damaged`] when the input is no archive by its first bytes;
/// [`ErrorKind::Unsupported`] for frames of a later layout; [`ErrorKind::Interrupted`] when cancelled.
pub fn read_pipe(
    input: impl Read + Send,
    name: &str,
    options: &ReadOptions,
    mut consume: impl FnMut(Chunk<'_>) -> Result<()>,
) -> Result<StreamEnd> {
    let mut input = Pipe { input, name, bytes: Vec::new(), start: 0, unneeded: 0, ended: false };
    let first = input.peek(0, PROBE)?;
    let carrier = options.carrier.or_else(|| detect(first)).ok_or_else(|| unrecognised(name, first))?;
    let workers = options.workers.max(1);
    let limit = slot_limit(workers);
    thread::scope(|scope| {
        // Made in here so that they end in here, and with them the threads, whatever the reason.
        let (jobs, todo) = bounded(limit);
        let (checked, done) = bounded(limit + workers);
        let (back, free) = bounded(limit);
        for _ in 0..workers {
            let (todo, checked) = (todo.clone(), checked.clone());
            let checker =
                Decoder { file: None, carrier, archive_id: options.archive_id, cancel: &options.cancel };
            scope.spawn(move || checker.work(&todo, &checked));
        }
        drop(todo);
        let feeder = scope.spawn(move || {
            let slots = Slots { free, allocated: 0, limit, carrier };
            let mut feeder = Feeder { slots, jobs, checked, number: 0, options };
            let end = guarded(|| feeder.feed(&mut input));
            match end {
                Ok(end) => Some(end),
                Err(error) => {
                    // Nobody hears it when the consumer has failed, whose error goes first.
                    drop(feeder.checked.send(Err(error)));
                    None
                }
            }
        });
        put_in_order(&done, &back, &mut consume)?;
        drop((done, back));
        feeder.join().unwrap_or_default().ok_or_else(panicked)
    })
}

/// Hands on what was checked, until all is done or something fails.
fn put_in_order(
    done: &Receiver<Result<DecodedChunk>>,
    back: &Sender<DecodeSlot>,
    consume: &mut dyn FnMut(Chunk<'_>) -> Result<()>,
) -> Result<()> {
    let mut order = Reorder::new();
    for checked in done {
        let checked = checked?;
        order.put(checked.number, checked);
        while let Some(next) = order.take() {
            next.deliver(consume)?;
            if let Some(slot) = next.slot {
                // The feeder may be at its end; then nobody needs the buffers.
                drop(back.send(slot));
            }
        }
    }
    Ok(())
}

/// The feeder's supply of buffers.
struct Slots {
    free: Receiver<DecodeSlot>,
    allocated: usize,
    limit: usize,
    carrier: Carrier,
}

impl Slots {
    fn take(&mut self) -> Result<DecodeSlot> {
        if let Ok(slot) = self.free.try_recv() {
            return Ok(slot);
        }
        if self.allocated < self.limit {
            self.allocated += 1;
            return Ok(DecodeSlot::new(self.carrier));
        }
        self.free.recv().map_err(|_| stopped())
    }
}

/// What the feeder meets when the consumer has ended; its error takes this one's place.
fn stopped() -> Error {
    Error::new(ErrorKind::Internal, "the archive's reader has stopped")
}

/// The thread that reads.
struct Feeder<'a> {
    slots: Slots,
    jobs: Sender<DecodeTask>,
    checked: Sender<Result<DecodedChunk>>,
    number: u64,
    options: &'a ReadOptions,
}

impl Feeder<'_> {
    fn feed<R: Read>(&mut self, input: &mut Pipe<'_, R>) -> Result<StreamEnd> {
        match self.slots.carrier {
            Carrier::Plain => self.plain(input),
            Carrier::Framed => self.framed(input),
        }
    }

    fn framed<R: Read>(&mut self, input: &mut Pipe<'_, R>) -> Result<StreamEnd> {
        let mut walker = FrameWalker::new(self.options.archive_id);
        loop {
            check_cancel(&self.options.cancel)?;
            match walker.step(input)? {
                ScanStep::End(end) => return Ok(end),
                ScanStep::Gap(damage) => {
                    let gap = DecodedChunk::gap(self.number, damage);
                    self.number += 1;
                    self.checked.send(Ok(gap)).map_err(|_| stopped())?;
                }
                ScanStep::Frame(span) => {
                    let mut slot = self.slots.take()?;
                    let len = usize::try_from(span.file.end - span.file.start).unwrap_or_default();
                    let frame = input.peek(span.file.start, len)?;
                    slot.stored.get_mut(..frame.len()).ok_or_else(stopped)?.copy_from_slice(frame);
                    input.release(walker.scan_from());
                    self.send(span, slot)?;
                }
            }
        }
    }

    fn plain<R: Read>(&mut self, input: &mut Pipe<'_, R>) -> Result<StreamEnd> {
        let mut at = 0;
        loop {
            check_cancel(&self.options.cancel)?;
            let mut slot = self.slots.take()?;
            let len = input.fill(&mut slot.chunk)? as u64;
            if len > 0 {
                let end = at + len;
                let stream = StreamOffset::new(at)..StreamOffset::new(end);
                self.send(Span { numbers: 0..0, stream, file: at..end, lost: false }, slot)?;
                at = end;
            }
            if len < FRAME as u64 {
                return Ok(plain_end(at));
            }
        }
    }

    fn send(&mut self, span: Span, slot: DecodeSlot) -> Result<()> {
        let number = self.number;
        self.number += 1;
        self.jobs.send(DecodeTask { number, span, slot }).map_err(|_| stopped())
    }
}

/// What is to be said at the end of a plain stream of `len` bytes.
pub(super) fn plain_end(len: u64) -> StreamEnd {
    StreamEnd {
        carrier: Carrier::Plain,
        archive_id: None,
        stream_len: len,
        file_len: len,
        table: SeekTableState::Plain,
        cut: None,
        trailing: None,
        padding: 0,
    }
}

/// The input, with the part of it in memory that can still be asked for.
struct Pipe<'a, R> {
    input: R,
    name: &'a str,
    bytes: Vec<u8>,
    /// Where `bytes` begins in the input.
    start: u64,
    /// How many of `bytes` are released.
    unneeded: usize,
    ended: bool,
}

impl<R: Read> Pipe<'_, R> {
    /// Fills `buf` with what comes next and returns how much there was.
    fn fill(&mut self, buf: &mut [u8]) -> Result<usize> {
        let known = self.bytes.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(self.bytes.drain(..known)) {
            *to = from;
        }
        let mut len = known;
        while let Some(room) = buf.get_mut(len..).filter(|room| !room.is_empty()) {
            match self.read(room)? {
                0 => break,
                n => len += n,
            }
        }
        Ok(len)
    }

    fn read(&mut self, room: &mut [u8]) -> Result<usize> {
        loop {
            match self.input.read(room) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) => {
                    self.ended = true;
                    return Ok(0);
                }
                other => return other.at(|| format!("cannot read '{}'", self.name)),
            }
        }
    }

    /// Reads on until everything before `end` is in memory or the input ends.
    fn reach(&mut self, end: u64) -> Result<()> {
        while !self.ended && self.start + (self.bytes.len() as u64) < end {
            let mut more = std::mem::take(&mut self.bytes);
            let mut known = more.len();
            more.resize(known + STEP, 0);
            // Room is made once for all the reads that it takes: an input may come byte by byte.
            let got = loop {
                match self.read(more.get_mut(known..).unwrap_or_default()) {
                    Ok(0) => break Ok(()),
                    Ok(n) => known += n,
                    Err(error) => break Err(error),
                }
                if known == more.len() || self.start + known as u64 >= end {
                    break Ok(());
                }
            };
            more.truncate(known);
            self.bytes = more;
            got?;
        }
        Ok(())
    }
}

impl<R: Read> LookAhead for Pipe<'_, R> {
    fn peek(&mut self, at: u64, len: usize) -> Result<&[u8]> {
        self.reach(at.saturating_add(len as u64))?;
        let from = usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let known = self.bytes.get(from..).unwrap_or_default();
        Ok(known.get(..len).unwrap_or(known))
    }

    fn reaches(&mut self, end: u64) -> Result<bool> {
        self.reach(end)?;
        Ok(self.start + self.bytes.len() as u64 >= end)
    }

    fn release(&mut self, at: u64) {
        let from = usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX);
        self.unneeded = self.unneeded.max(from.min(self.bytes.len()));
        // Moving what remains to the front costs; so not for every frame.
        if self.unneeded >= 4 * STEP {
            self.bytes.drain(..self.unneeded);
            self.start += self.unneeded as u64;
            self.unneeded = 0;
        }
    }

    fn finish(&mut self) -> Result<u64> {
        while !self.ended {
            self.start += self.bytes.len() as u64;
            self.bytes.clear();
            self.unneeded = 0;
            self.reach(self.start.saturating_add(1))?;
        }
        Ok(self.start + self.bytes.len() as u64)
    }

    fn name(&self) -> &str {
        self.name
    }
}
