//! Reads the stream of a file: at any place, or a range of it in order with all workers.
//!
//! Where the frames lie the seek table tells; without a table that can be right the file is walked once,
//! header by header. A range is read by workers that fetch, check and decompress by themselves; the caller's
//! thread keeps as many chunks in flight as there are buffers and hands them on in order.
//!
//! Imports: `units`, `error`.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::thread;

use crossbeam_channel::bounded;
use uuid::Uuid;

use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::StreamOffset;

use super::chunk::{Carrier, Chunk, Damage, ReadAt, ReadOptions, SeekTableState, StreamEnd};
use super::decoder::{ChunkCheck, DecodeSlot, DecodeTask, DecodedChunk, Decoder};
use super::frame::{FRAME, FrameHeader, HEADER_LEN, HeaderFault, Unpacker};
use super::frame_index::{FrameIndex, Span};
use super::padding::{end_before_zeros, ends_as_plain};
use super::reorder::Reorder;
use super::scan::{FrameWalker, LookAhead, ScanStep, unknown_version};
use super::sequential::plain_end;
use super::{Cancel, check_cancel, detect, panicked, seek_table, slot_limit, unrecognised};

/// Frames at the beginning that are asked for the archive's id.
const ID_TRIES: usize = 3;

/// The stream of a file. Shared by threads as it is.
pub struct RandomStream<'a> {
    file: &'a dyn ReadAt,
    options: ReadOptions,
    index: FrameIndex,
    end: StreamEnd,
    /// The frame that was read last, for reads that go on in it.
    last: Mutex<Option<(StreamOffset, DecodedChunk)>>,
}

impl<'a> RandomStream<'a> {
    /// Opens the stream in `file`. Reads the seek table, or the header of every frame where that is damaged
    /// or missing; [`RandomStream::end`] says which.
    ///
    /// # Errors
    /// When `file` can't be read; [`ErrorKind::Damaged`] when it is no archive by its first and last bytes;
    /// [`ErrorKind::Unsupported`] for frames of a later layout; [`ErrorKind::Interrupted`] when cancelled.
    pub fn open(file: &'a dyn ReadAt, options: &ReadOptions) -> Result<Self> {
        let mut options = options.clone();
        let carrier = match options.carrier {
            Some(carrier) => carrier,
            None => carrier_of(file)?,
        };
        let (index, end) = match carrier {
            Carrier::Plain => {
                let len = end_before_zeros(file).unwrap_or_else(|| file.len());
                (FrameIndex::default(), plain_end(len))
            }
            Carrier::Framed => match seek_table(file)? {
                Some(index) => by_table(file, index, &options)?,
                None => by_walk(file, &options)?,
            },
        };
        options.archive_id = end.archive_id;
        Ok(Self { file, options, index, end, last: Mutex::new(None) })
    }

    /// Bytes of the stream, damaged ones counted in.
    pub fn len(&self) -> u64 {
        self.end.stream_len
    }

    /// Whether the stream has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was found at the file's end.
    pub fn end(&self) -> &StreamEnd {
        &self.end
    }

    /// Fills `buf` with the bytes of the stream at `at`. Those of a framed stream are checked.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when some of them are lost; [`ErrorKind::Incomplete`] when the stream ends
    /// before; those of reading the file.
    pub fn read_at(&self, at: StreamOffset, mut buf: &mut [u8]) -> Result<()> {
        let end = at.checked_add(buf.len() as u64).filter(|end| end.get() <= self.len());
        let end = end.ok_or_else(|| self.beyond(at))?;
        if self.end.carrier == Carrier::Plain {
            return self.file.read_exact_at(at.get(), buf);
        }
        let mut at = at;
        while at < end {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let known = last.take().filter(|(frame_end, frame)| frame.at <= at && at < *frame_end);
            let (frame_end, frame) = match known {
                Some(known) => known,
                None => self.load(at)?,
            };
            let mut taken = 0;
            frame.deliver(&mut |chunk| {
                let from = usize::try_from(at.since(chunk.at)).unwrap_or(usize::MAX);
                let known = chunk.bytes.get(from..).unwrap_or_default();
                taken = known.len().min(buf.len());
                let (now, _) = buf.split_at_mut(taken);
                now.copy_from_slice(known.get(..taken).unwrap_or_default());
                Ok(())
            })?;
            *last = Some((frame_end, frame));
            buf = buf.get_mut(taken..).unwrap_or_default();
            at = at.saturating_add(taken as u64);
        }
        Ok(())
    }

    /// Reads the frame that holds `at`; one that is damaged is an error.
    fn load(&self, at: StreamOffset) -> Result<(StreamOffset, DecodedChunk)> {
        let span = self.index.spans(at)?.next().transpose()?.filter(|span| span.stream.contains(&at));
        let span = span.ok_or_else(|| self.beyond(at))?;
        let frame_end = span.stream.end;
        let checked = match lost(&span) {
            Some(damage) => DecodedChunk::gap(0, damage),
            None => {
                let slot = DecodeSlot::of_frame(&span);
                let job = DecodeTask { number: 0, span, slot };
                self.checker().check(job, &mut Unpacker::default())?
            }
        };
        match &checked.outcome {
            ChunkCheck::Damaged(damage) => Err(self.damaged(damage)),
            ChunkCheck::Intact(..) | ChunkCheck::Unchecked(..) => Ok((frame_end, checked)),
        }
    }

    fn damaged(&self, damage: &Damage) -> Error {
        let Damage { stream, file, why } = damage;
        let message = format!(
            "bytes {} to {} of the stream in '{}' are damaged (bytes {} to {} of the file): {why}",
            stream.start,
            stream.end,
            self.file.name(),
            file.start,
            file.end
        );
        Error::new(ErrorKind::Damaged, message)
    }

    fn beyond(&self, at: StreamOffset) -> Error {
        let message = format!("'{}' has no byte {at} of its stream", self.file.name());
        Error::new(ErrorKind::Incomplete, message)
    }

    fn checker(&self) -> Decoder<'_> {
        Decoder {
            file: Some(self.file),
            carrier: self.end.carrier,
            archive_id: self.options.archive_id,
            cancel: &self.options.cancel,
        }
    }

    /// The chunks that touch `range`, whole, in order.
    fn spans(&self, range: Range<StreamOffset>) -> Result<Box<dyn Iterator<Item = Result<Span>> + '_>> {
        let end = range.end;
        if self.end.carrier == Carrier::Framed {
            let all = self.index.spans(range.start)?;
            let wanted = move |span: &Result<Span>| match span {
                Ok(span) => span.stream.start < end || span.stream.is_empty() && span.stream.start == end,
                Err(_) => true,
            };
            return Ok(Box::new(all.take_while(wanted)));
        }
        let first = range.start.get() / FRAME as u64;
        let last = end.get().min(self.len()).div_ceil(FRAME as u64);
        let len = self.len();
        Ok(Box::new((first..last).map(move |n| {
            let file = n * FRAME as u64..((n + 1) * FRAME as u64).min(len);
            let stream = StreamOffset::new(file.start)..StreamOffset::new(file.end);
            Ok(Span { numbers: 0..0, stream, file, lost: false })
        })))
    }

    /// Hands the chunks that touch `range` to `consume`, in order, each of them whole: of a plain stream in
    /// chunks of [`FRAME`] bytes counted from its beginning, as [`super::read_pipe`] does.
    ///
    /// # Errors
    /// Those of `consume`, and those of reading the file that say nothing about a place in it;
    /// [`ErrorKind::Interrupted`] when cancelled. A place that can't be read is a damaged chunk.
    pub fn chunks(
        &self,
        range: Range<StreamOffset>,
        mut consume: impl FnMut(Chunk<'_>) -> Result<()>,
    ) -> Result<()> {
        let workers = self.options.workers.max(1);
        let limit = slot_limit(workers);
        let mut spans = self.spans(range)?;
        thread::scope(|scope| {
            // Room for everything in flight: sending never waits. Made in here so that they end in here,
            // and with them the workers, whatever the reason.
            let (jobs, todo) = bounded(limit);
            let (checked, done) = bounded(limit + workers);
            for _ in 0..workers {
                let (todo, checked) = (todo.clone(), checked.clone());
                scope.spawn(move || self.checker().work(&todo, &checked));
            }
            drop((todo, checked));
            let mut slots: Vec<DecodeSlot> = Vec::new();
            let mut order = Reorder::new();
            let (mut sent, mut delivered) = (0, 0);
            loop {
                while sent - delivered < limit as u64 {
                    let Some(span) = spans.next().transpose()? else { break };
                    match lost(&span) {
                        Some(damage) => order.put(sent, DecodedChunk::gap(sent, damage)),
                        None => {
                            let slot = slots.pop().unwrap_or_else(|| DecodeSlot::new(self.end.carrier));
                            let job = DecodeTask { number: sent, span, slot };
                            jobs.send(job).map_err(|_| panicked())?;
                        }
                    }
                    sent += 1;
                }
                if sent == delivered {
                    return Ok(());
                }
                while let Some(next) = order.take() {
                    check_cancel(&self.options.cancel)?;
                    next.deliver(&mut consume)?;
                    delivered += 1;
                    slots.extend(next.slot);
                }
                if sent > delivered + order.waiting() {
                    let next: DecodedChunk = done.recv().map_err(|_| panicked())??;
                    order.put(next.number, next);
                }
            }
        })
    }
}

/// The frames by the seek table; `None` where that can't be right, or where the medium says that it is
/// damaged.
fn seek_table(file: &dyn ReadAt) -> Result<Option<FrameIndex>> {
    match seek_table::load(file) {
        Err(error) if error.kind() == ErrorKind::Damaged => Ok(None),
        loaded => loaded,
    }
}

/// The damage that a gap of the index is.
fn lost(span: &Span) -> Option<Damage> {
    let why = match span.numbers.end.saturating_sub(span.numbers.start) {
        _ if !span.lost => return None,
        0 => "bytes that belong to no frame".to_owned(),
        1 => "the header of its frame is damaged or missing".to_owned(),
        frames => format!("the headers of its {frames} frames are damaged or missing"),
    };
    Some(Damage { stream: span.stream.clone(), file: span.file.clone(), why })
}

/// How the stream in `file` is carried, by its first bytes, else by its last.
pub(crate) fn carrier_of(file: &dyn ReadAt) -> Result<Carrier> {
    let mut input = FilePeek::new(file);
    if let Some(carrier) = detect(input.peek(0, 512)?) {
        return Ok(carrier);
    }
    let last = input.peek(file.len().saturating_sub(4), 4)?;
    if seek_table::is_end(last) {
        return Ok(Carrier::Framed);
    }
    if ends_as_plain(file) {
        return Ok(Carrier::Plain);
    }
    Err(unrecognised(file.name(), input.peek(0, 512)?))
}

/// Takes the frames from the seek table; the archive's id from the first frames.
fn by_table(file: &dyn ReadAt, index: FrameIndex, options: &ReadOptions) -> Result<(FrameIndex, StreamEnd)> {
    let mut input = FilePeek::new(file);
    let mut ids = Vec::new();
    let last = StreamOffset::new(index.end().at.get().saturating_sub(1));
    for span in index.spans(StreamOffset::ZERO)?.take(ID_TRIES).chain(index.spans(last)?) {
        match FrameHeader::decode(input.peek(span?.file.start, HEADER_LEN)?) {
            Ok(header) => ids.push(header.archive_id),
            Err(HeaderFault::Version(version)) if ids.is_empty() => {
                return Err(unknown_version(file.name(), version));
            }
            Err(_) => {}
        }
    }
    let archive_id = options.archive_id.or_else(|| most_named(&ids));
    let end = StreamEnd {
        carrier: Carrier::Framed,
        archive_id,
        stream_len: index.end().at.get(),
        file_len: file.len(),
        table: SeekTableState::Intact,
        cut: None,
        trailing: None,
        padding: 0,
    };
    Ok((index, end))
}

/// Where the seek table of the framed stream in `file` ends, found along the frames: for a file that has
/// something behind it. Nothing, where no table is met.
///
/// # Errors
/// Those of reading `file`; [`ErrorKind::Unsupported`] for frames of a later layout.
pub(crate) fn end_of_frames(file: &dyn ReadAt) -> Result<Option<u64>> {
    let options = ReadOptions { workers: 1, cancel: Cancel::default(), carrier: None, archive_id: None };
    let (_, end) = by_walk(file, &options)?;
    let met = end.cut.is_none() && matches!(end.table, SeekTableState::Intact | SeekTableState::Damaged(_));
    let behind = end.trailing.as_ref().map_or(end.padding, |trailing| trailing.end - trailing.start);
    Ok(met.then(|| end.file_len - behind))
}

/// The id that most of these are, so that no single frame of another archive can pass for this one; of
/// several the first.
fn most_named(ids: &[Uuid]) -> Option<Uuid> {
    let count = |id: &Uuid| ids.iter().filter(|other| *other == id).count();
    ids.iter().rev().max_by_key(|id| count(id)).copied()
}

/// Finds the frames by their headers.
fn by_walk(file: &dyn ReadAt, options: &ReadOptions) -> Result<(FrameIndex, StreamEnd)> {
    let mut input = FilePeek::new(file);
    let mut ids = Vec::new();
    let mut at = 0_u64;
    while ids.len() < ID_TRIES && at < file.len() {
        let Ok(header) = FrameHeader::decode(input.peek(at, HEADER_LEN)?) else { break };
        ids.push(header.archive_id);
        at = at.saturating_add(header.span());
    }
    let mut walker = FrameWalker::new(options.archive_id.or_else(|| most_named(&ids)));
    loop {
        check_cancel(&options.cancel)?;
        if let ScanStep::End(end) = walker.step(&mut input)? {
            return Ok((walker.into_index(), end));
        }
    }
}

/// A file as the walk wants it.
struct FilePeek<'a> {
    file: &'a dyn ReadAt,
    bytes: Vec<u8>,
    start: u64,
}

impl<'a> FilePeek<'a> {
    fn new(file: &'a dyn ReadAt) -> Self {
        Self { file, bytes: Vec::new(), start: 0 }
    }
}

impl LookAhead for FilePeek<'_> {
    fn peek(&mut self, at: u64, len: usize) -> Result<&[u8]> {
        let there = self.file.len().saturating_sub(at).min(len as u64);
        let wanted = usize::try_from(there).unwrap_or(len);
        let known = |start: u64, have: usize| {
            let from = usize::try_from(at.checked_sub(start)?).ok()?;
            let to = from.checked_add(wanted)?;
            (to <= have).then_some(from..to)
        };
        let range = match known(self.start, self.bytes.len()) {
            Some(range) => range,
            None => {
                self.bytes.clear();
                self.bytes.resize(wanted, 0);
                self.start = at;
                match self.file.read_exact_at(at, &mut self.bytes) {
                    // Zeros make no header, so what is damaged is passed over as rubbish would be.
                    Err(error) if error.kind() == ErrorKind::Damaged => self.bytes.fill(0),
                    read => read?,
                }
                0..wanted
            }
        };
        Ok(self.bytes.get(range).unwrap_or_default())
    }

    fn reaches(&mut self, end: u64) -> Result<bool> {
        Ok(end <= self.file.len())
    }

    fn release(&mut self, _: u64) {}

    fn finish(&mut self) -> Result<u64> {
        Ok(self.file.len())
    }

    fn name(&self) -> &str {
        self.file.name()
    }
}
