//! The walk along a framed stream, front to back: each header says where the next one is; where none is, the
//! bytes are scanned for the next one that can be right.
//!
//! 1. At the expected place there is a header of this archive, with the expected number or a later one: a
//!    frame. Numbers left out are a gap.
//! 2. There is a seek table: it is compared with the frames found, and must be the end.
//! 3. There is something else. The scan begins right behind the last good header (bytes may be missing from
//!    its frame) and takes the first header that fits behind what is known, or a table whose first entries
//!    do. A header counts only with its own check sum and the archive's id, so a copy of another archive
//!    within the data is not mistaken for frames of this one.
//! 4. Nothing is found up to the end: the file is cut here, or what is left is as long as the seek table
//!    would be and is a damaged one.
//!
//! Invariants: every byte is looked at a bounded number of times; what is kept in memory is two frames at
//! most.
//!
//! Imports: `units`, `error`.

use uuid::Uuid;

use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::StreamOffset;

use super::chunk::{Carrier, Damage, SeekTableState, StreamEnd, Truncation};
use super::frame::{FRAME, FrameHeader, HEADER_LEN, HeaderFault};
use super::frame_index::{FrameIndex, FrameStart, Span};
use super::seek_table::{self, PAIRS_BLOCK, SeekTableCheck};

/// Bytes that are scanned at once.
const BLOCK: usize = 256 << 10;
/// Of a table that is stumbled upon, so many bytes must fit: its beginning and two chunks.
const TABLE_PROBE: usize = 8 + 32;

/// Bytes that can be looked at, going forward.
pub(super) trait LookAhead {
    /// The bytes at `at`: `len` of them, or fewer where the input ends.
    fn peek(&mut self, at: u64, len: usize) -> Result<&[u8]>;
    /// Whether the input has all bytes before `end`.
    fn reaches(&mut self, end: u64) -> Result<bool>;
    /// Says that no byte before `at` will be asked for again.
    fn release(&mut self, at: u64);
    /// Goes to the end of the input and returns its length.
    fn finish(&mut self) -> Result<u64>;
    /// The input's name, for messages.
    fn name(&self) -> &str;
}

/// What the walk meets.
#[derive(Debug)]
pub(super) enum ScanStep {
    /// A frame: its header is good, its bytes are all there.
    Frame(Span),
    /// A part that is lost.
    Gap(Damage),
    /// The end.
    End(StreamEnd),
}

/// What the scan finds.
enum ScanHit {
    Frame(FrameHeader),
    Table(u32),
}

/// The walk.
pub(super) struct FrameWalker {
    id: Option<Uuid>,
    index: FrameIndex,
    /// Where a scan begins: behind the last good header.
    behind: u64,
    /// What was found behind a gap that is delivered first.
    pending: Option<ScanStep>,
}

impl FrameWalker {
    /// A walk from the beginning, of the archive `id` if that is known.
    pub(super) fn new(id: Option<Uuid>) -> Self {
        Self { id, index: FrameIndex::default(), behind: 0, pending: None }
    }

    /// The first byte that a later step may look at.
    pub(super) fn scan_from(&self) -> u64 {
        self.behind
    }

    /// The frames that were met.
    pub(super) fn into_index(self) -> FrameIndex {
        self.index
    }

    /// The next thing. Not to be called behind [`ScanStep::End`].
    pub(super) fn step(&mut self, input: &mut dyn LookAhead) -> Result<ScanStep> {
        if let Some(step) = self.pending.take() {
            return Ok(step);
        }
        let expected = self.index.end();
        let head = input.peek(expected.file, HEADER_LEN)?;
        let decoded = FrameHeader::decode(head);
        let table = seek_table::chunks_of(head);
        if let (Err(HeaderFault::Version(version)), true) = (&decoded, expected.file == 0) {
            return Err(unknown_version(input.name(), *version));
        }
        if let Ok(header) = decoded
            && self.fits(&header)
            && input.reaches(expected.file.saturating_add(header.span()))?
        {
            return self.frame(&header, expected.file);
        }
        match table {
            Some(chunks) if self.table_fits(input, expected.file, chunks)? => {
                self.table(input, expected.file, chunks)
            }
            _ => self.resync(input),
        }
    }

    /// Whether a header can be that of a frame behind those known.
    fn fits(&self, header: &FrameHeader) -> bool {
        let expected = self.index.end();
        let (Some(left_out), Some(bytes)) =
            (header.number.checked_sub(expected.number), header.at.get().checked_sub(expected.at.get()))
        else {
            return false;
        };
        self.id.is_none_or(|id| id == header.archive_id)
            && bytes >= left_out
            && bytes <= left_out.saturating_mul(FRAME as u64)
    }

    /// Whether the table at `at` begins as that of the frames known must.
    fn table_fits(&self, input: &mut dyn LookAhead, at: u64, chunks: u32) -> Result<bool> {
        let probe = input.peek(at, TABLE_PROBE)?;
        let entries = probe.get(8..).unwrap_or_default();
        let wanted = (TABLE_PROBE - 8).min(chunks as usize * 16);
        let Some(entries) = entries.get(..wanted) else { return Ok(false) };
        let mut comparison = SeekTableCheck::new(self.index.spans(StreamOffset::ZERO)?, chunks.into());
        comparison.pairs(entries)?;
        Ok(comparison.outcome().0.is_none() && u64::from(chunks) >= self.index.end().number)
    }

    /// Takes in the frame at `file`, and the gap before it where there is one.
    fn frame(&mut self, header: &FrameHeader, file: u64) -> Result<ScanStep> {
        let expected = self.index.end();
        let start = FrameStart { number: header.number, at: header.at, file, lost: false };
        let end = FrameStart {
            number: header.number + 1,
            at: header.end(),
            file: file.saturating_add(header.span()),
            lost: false,
        };
        self.id = Some(header.archive_id);
        self.behind = file.saturating_add(HEADER_LEN as u64);
        let gap = start != expected;
        if gap {
            let lost = FrameStart { file: expected.file.min(file), lost: true, ..expected };
            self.index.push(lost, start)?;
        }
        self.index.push(start, end)?;
        let step = ScanStep::Frame(Span {
            numbers: start.number..end.number,
            stream: start.at..end.at,
            file: start.file..end.file,
            lost: false,
        });
        if !gap {
            return Ok(step);
        }
        self.pending = Some(step);
        Ok(ScanStep::Gap(damage(expected, start)))
    }

    /// Looks for what comes behind bytes that are nothing.
    fn resync(&mut self, input: &mut dyn LookAhead) -> Result<ScanStep> {
        let expected = self.index.end();
        let mut at = if self.behind > 0 { self.behind } else { expected.file };
        let mut from = 0;
        let first = input.peek(expected.file, 8)?.to_vec();
        loop {
            input.release(at);
            let block = input.peek(at, BLOCK)?;
            let len = block.len();
            let Some((n, found)) = self.find(block, from) else {
                if len < BLOCK {
                    let last = block.get(len.saturating_sub(9)..).unwrap_or_default().to_vec();
                    return self.nothing(input, &first, &last);
                }
                // A header may begin at the end of the block.
                at += (len - HEADER_LEN + 1) as u64;
                from = 0;
                continue;
            };
            let place = at + n as u64;
            match found {
                ScanHit::Frame(header) if input.reaches(place.saturating_add(header.span()))? => {
                    return self.frame(&header, place);
                }
                ScanHit::Table(chunks) if self.table_fits(input, place, chunks)? => {
                    return self.table(input, place, chunks);
                }
                _ => from = n + 1,
            }
        }
    }

    /// The first thing in `block`, not before `from`, that can be a frame's header or a table's beginning.
    fn find(&self, block: &[u8], mut from: usize) -> Option<(usize, ScanHit)> {
        const MAGIC_END: [u8; 3] = [0x2a, 0x4d, 0x18];
        loop {
            let rest = block.get(from..)?;
            from += rest.windows(4).position(|w| w.ends_with(&MAGIC_END))?;
            let here = block.get(from..)?;
            if let Ok(header) = FrameHeader::decode(here)
                && self.fits(&header)
            {
                return Some((from, ScanHit::Frame(header)));
            }
            if let Some(chunks) = seek_table::chunks_of(here)
                && chunks > 0
                && u64::from(chunks) >= self.index.end().number
            {
                return Some((from, ScanHit::Table(chunks)));
            }
            from += 1;
        }
    }

    /// Compares the table at `at` and ends the walk.
    fn table(&mut self, input: &mut dyn LookAhead, at: u64, chunks: u32) -> Result<ScanStep> {
        let expected = self.index.end();
        let table_end = at.saturating_add(seek_table::table_len(chunks.into()));
        let mut comparison = SeekTableCheck::new(self.index.spans(StreamOffset::ZERO)?, chunks.into());
        let footer_at = table_end.saturating_sub(9);
        let mut place = at + 8;
        while place < footer_at {
            input.release(place);
            let len = usize::try_from((footer_at - place).min(PAIRS_BLOCK)).unwrap_or_default();
            let block = input.peek(place, len)?;
            if block.len() < len {
                break;
            }
            place += len as u64;
            comparison.pairs(block)?;
        }
        let whole = input.reaches(table_end)?;
        if whole {
            comparison.footer(input.peek(footer_at, 9)?);
        } else {
            comparison.fail("it is cut".to_owned());
        }
        let (fault, lost) = comparison.outcome();
        let is_padding = whole && only_zeros(input, table_end)?;
        let file_len = input.finish()?;
        let mut end = self.end(file_len);
        let behind = table_end..file_len;
        match is_padding {
            true => end.padding = file_len.saturating_sub(table_end),
            false => end.trailing = Some(behind).filter(|behind| !behind.is_empty()),
        }
        let believed = fault.is_none();
        end.table = match fault {
            _ if !whole => SeekTableState::Cut,
            Some(fault) => SeekTableState::Damaged(fault),
            None => SeekTableState::Intact,
        };
        if (at, u64::from(chunks)) == (expected.file, expected.number) || !believed {
            // What a wrong table says of frames behind the last one is worth nothing.
            end.cut = (at != expected.file).then(|| cut_at(expected, file_len));
            return Ok(ScanStep::End(end));
        }
        let behind =
            FrameStart { number: chunks.into(), at: expected.at.saturating_add(lost), file: at, lost: false };
        self.index.push(FrameStart { file: expected.file.min(at), lost: true, ..expected }, behind)?;
        end.stream_len = behind.at.get();
        self.pending = Some(ScanStep::End(end));
        Ok(ScanStep::Gap(damage(expected, behind)))
    }

    /// Ends the walk where nothing more is found: what is left begins with `first` and ends with `last`.
    fn nothing(&mut self, input: &mut dyn LookAhead, first: &[u8], last: &[u8]) -> Result<ScanStep> {
        let expected = self.index.end();
        let file_len = input.finish()?;
        let left = file_len.saturating_sub(expected.file);
        let mut end = self.end(file_len);
        if left == seek_table::table_len(expected.number)
            && seek_table::resembles(expected.number, first, last)
        {
            end.table = SeekTableState::Damaged("its bytes are not those that the frames give".to_owned());
            return Ok(ScanStep::End(end));
        }
        end.cut = Some(cut_at(expected, file_len));
        Ok(ScanStep::End(end))
    }

    fn end(&self, file_len: u64) -> StreamEnd {
        StreamEnd {
            carrier: Carrier::Framed,
            archive_id: self.id,
            stream_len: self.index.end().at.get(),
            file_len,
            table: SeekTableState::Missing,
            cut: None,
            trailing: None,
            padding: 0,
        }
    }
}

/// Whether all that follows `at` is zeros, which media of blocks put there.
fn only_zeros(input: &mut dyn LookAhead, mut at: u64) -> Result<bool> {
    loop {
        input.release(at);
        let block = input.peek(at, BLOCK)?;
        if block.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        if block.len() < BLOCK {
            return Ok(true);
        }
        at = at.saturating_add(BLOCK as u64);
    }
}

/// What is lost between where the next frame was expected and where one was found.
fn damage(expected: FrameStart, found: FrameStart) -> Damage {
    let frames = found.number.saturating_sub(expected.number);
    let why = match frames {
        0 => "bytes that belong to no frame".to_owned(),
        1 => "the header of its frame is damaged or missing".to_owned(),
        _ => format!("the headers of its {frames} frames are damaged or missing"),
    };
    Damage { stream: expected.at..found.at, file: expected.file.min(found.file)..found.file, why }
}

/// The cut of a file that has nothing usable behind the frames before `expected`.
fn cut_at(expected: FrameStart, file_len: u64) -> Truncation {
    let why = match file_len.saturating_sub(expected.file) {
        0 => "it ends behind a frame, without a seek table".to_owned(),
        left => format!("its last {left} bytes hold no whole frame and no seek table that is right"),
    };
    Truncation { file: expected.file.min(file_len), stream: expected.at, why }
}

/// The refusal of a frame layout of a later version.
pub(super) fn unknown_version(name: &str, version: u32) -> Error {
    let message =
        format!("'{name}' has frames of layout version {version}, which this virtfold does not know");
    Error::new(ErrorKind::Unsupported, message).with_hint("use the virtfold that wrote it, or a later one")
}
