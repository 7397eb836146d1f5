//! The seek table that closes a framed stream: the Zstandard seekable format, version 0.1.0, in its own
//! skippable frame, without check sums. It has two entries a chunk, because that format wants one for every
//! frame of the file: the skippable frame (100 bytes, decompresses to nothing) and the Zstandard frame.
//!
//! A reader believes a table of a file at hand ([`load`]) when its sums are those of the file and of the last
//! frame's header, which no flipped byte leaves so. Behind frames that were read one by one it is compared
//! with the table that they would give ([`SeekTableCheck`]).
//!
//! Imports: `units`, `error`, `spill_log`.

use virtfold_base::error::Result;
use virtfold_base::spill_log::SpillLog;
use virtfold_base::units::StreamOffset;

use super::Sink;
use super::chunk::ReadAt;
use super::frame::{FRAME, FrameHeader, HEADER_LEN, STORED_MAX};
use super::frame_index::{FrameIndex, FrameStart, Span};

/// Magic number of the skippable frame that holds a seek table.
const FRAME_MAGIC: [u8; 4] = 0x184D_2A5E_u32.to_le_bytes();
/// Magic number that ends a file with a seek table.
pub(crate) const SEEKABLE_MAGIC: [u8; 4] = 0x8F92_EAB1_u32.to_le_bytes();
/// Number of frames, descriptor, magic number.
const FOOTER_LEN: u32 = 9;
/// Bytes of the two entries of a chunk.
const PAIR_LEN: u32 = 16;
/// The most chunks whose entries fit in a skippable frame, whose size is a 32-bit number: 256 TiB of stream.
pub(super) const MAX_CHUNKS: u32 = (u32::MAX - FOOTER_LEN) / PAIR_LEN;

/// The two entries of a chunk.
fn pair(stored: u32, len: u32) -> [u8; PAIR_LEN as usize] {
    let mut out = [0; PAIR_LEN as usize];
    let header_len = HEADER_LEN as u64;
    let fields = [header_len, 0, u64::from(stored), u64::from(len)];
    for (place, field) in out.chunks_exact_mut(4).zip(fields) {
        for (to, from) in place.iter_mut().zip(field.to_le_bytes()) {
            *to = from;
        }
    }
    out
}

/// The table's beginning: magic number and size.
fn head(chunks: u32) -> [u8; 8] {
    let [a, b, c, d] = FRAME_MAGIC;
    let [e, f, g, h] = (chunks * PAIR_LEN + FOOTER_LEN).to_le_bytes();
    [a, b, c, d, e, f, g, h]
}

/// The table's end: number of frames (two a chunk), descriptor (no check sums), magic number.
fn footer(chunks: u32) -> [u8; FOOTER_LEN as usize] {
    let [a, b, c, d] = (chunks * 2).to_le_bytes();
    let [e, f, g, h] = SEEKABLE_MAGIC;
    [a, b, c, d, 0, e, f, g, h]
}

/// Reads two entries back: bytes of the Zstandard frame and of its chunk; `None` where they are not those of
/// a chunk.
fn unpair(bytes: &[u8]) -> Option<(u32, u32)> {
    let (size, rest) = bytes.get(8..)?.split_first_chunk()?;
    let (stored, len) = (u32::from_le_bytes(*size), u32::from_le_bytes(*rest.first_chunk()?));
    let bounded =
        (1..=STORED_MAX as u64).contains(&stored.into()) && (1..=FRAME as u64).contains(&len.into());
    (bounded && pair(stored, len).as_slice() == bytes).then_some((stored, len))
}

/// The number of chunks of the table that begins with `bytes`, if one does.
pub(super) fn chunks_of(bytes: &[u8]) -> Option<u32> {
    let (magic, rest) = bytes.split_first_chunk()?;
    let pairs = u32::from_le_bytes(*rest.first_chunk()?).checked_sub(FOOTER_LEN)?;
    (*magic == FRAME_MAGIC && pairs.is_multiple_of(PAIR_LEN)).then_some(pairs / PAIR_LEN)
}

/// Bytes of a table of so many chunks.
pub(super) fn table_len(chunks: u64) -> u64 {
    chunks.saturating_mul(PAIR_LEN.into()).saturating_add(8 + u64::from(FOOTER_LEN))
}

/// Whether bytes that begin with `first` and end with `last` are, by one of these, the table of so many
/// chunks with some damage.
pub(super) fn resembles(chunks: u64, first: &[u8], last: &[u8]) -> bool {
    u32::try_from(chunks).is_ok_and(|n| n <= MAX_CHUNKS && (first == head(n) || last == footer(n)))
}

/// Whether `bytes` end as a file with a seek table ends.
pub(super) fn is_end(bytes: &[u8]) -> bool {
    bytes.ends_with(&SEEKABLE_MAGIC)
}

/// The frames of `file` by its seek table; `None` where it has none that can be right.
pub(super) fn load(file: &dyn ReadAt) -> Result<Option<FrameIndex>> {
    let mut end = [0; FOOTER_LEN as usize];
    let Some(end_at) = file.len().checked_sub(end.len() as u64) else { return Ok(None) };
    file.read_exact_at(end_at, &mut end)?;
    let frames = end.first_chunk().map_or(0, |n| u32::from_le_bytes(*n));
    let chunks = frames / 2;
    let Some(start) = file.len().checked_sub(table_len(chunks.into())) else { return Ok(None) };
    if chunks > MAX_CHUNKS || !frames.is_multiple_of(2) || end != footer(chunks) {
        return Ok(None);
    }
    let mut first = [0; 8];
    file.read_exact_at(start, &mut first)?;
    if first != head(chunks) {
        return Ok(None);
    }
    match load_pairs(file, start + 8..end_at)? {
        Some(index) if index.end().file == start && agrees(file, &index)? => Ok(Some(index)),
        _ => Ok(None),
    }
}

/// Whether the last frame that has an undamaged header is where the table says: that header's offset in the
/// stream is the sum of all lengths before it. When none of the last frames has one, the table stands.
fn agrees(file: &dyn ReadAt, index: &FrameIndex) -> Result<bool> {
    const TRIES: u64 = 8;
    let from = index.end().at.get().saturating_sub(TRIES * FRAME as u64);
    let last: Vec<Span> = index.spans(StreamOffset::new(from))?.collect::<Result<_>>()?;
    for span in last.iter().rev() {
        let mut head = [0; HEADER_LEN];
        file.read_exact_at(span.file.start, &mut head)?;
        if let Ok(header) = FrameHeader::decode(&head) {
            return Ok((header.number, header.at, header.end(), header.span())
                == (
                    span.numbers.start,
                    span.stream.start,
                    span.stream.end,
                    span.file.end - span.file.start,
                ));
        }
    }
    Ok(true)
}

fn load_pairs(file: &dyn ReadAt, place: std::ops::Range<u64>) -> Result<Option<FrameIndex>> {
    const BLOCK: u64 = 64 << 10;
    let mut index = FrameIndex::default();
    let mut bytes = Vec::new();
    let mut at = place.start;
    let mut short = 0;
    while at < place.end {
        bytes.resize(usize::try_from((place.end - at).min(BLOCK)).unwrap_or_default(), 0);
        file.read_exact_at(at, &mut bytes)?;
        at += bytes.len() as u64;
        for pair in bytes.chunks(PAIR_LEN as usize) {
            let Some((stored, len)) = unpair(pair) else { return Ok(None) };
            // Only the last chunks of body and tail are short.
            short += u32::from(u64::from(len) < FRAME as u64);
            if short > 2 {
                return Ok(None);
            }
            let entry = index.end();
            let end = FrameStart {
                number: entry.number + 1,
                at: entry.at.saturating_add(len.into()),
                file: entry.file + HEADER_LEN as u64 + u64::from(stored),
                lost: false,
            };
            index.push(entry, end)?;
        }
    }
    Ok(Some(index))
}

/// Compares a table, block by block, with the frames that were found before it.
pub(super) struct SeekTableCheck<S> {
    spans: S,
    span: Option<Span>,
    number: u64,
    chunks: u64,
    lost: u64,
    fault: Option<String>,
}

impl<S: Iterator<Item = Result<Span>>> SeekTableCheck<S> {
    /// A comparison of a table of `chunks` chunks with the frames in `spans`.
    pub(super) fn new(spans: S, chunks: u64) -> Self {
        Self { spans, span: None, number: 0, chunks, lost: 0, fault: None }
    }

    /// Takes the next bytes of the table's entries: a whole number of pairs.
    pub(super) fn pairs(&mut self, bytes: &[u8]) -> Result<()> {
        for pair in bytes.chunks(PAIR_LEN as usize) {
            self.pair(unpair(pair))?;
        }
        Ok(())
    }

    fn pair(&mut self, told: Option<(u32, u32)>) -> Result<()> {
        let number = self.number;
        self.number += 1;
        while self.span.as_ref().is_none_or(|span| span.numbers.end <= number) {
            match self.spans.next() {
                Some(span) => self.span = Some(span?),
                None => break,
            }
        }
        let found = self.span.as_ref().filter(|span| span.numbers.contains(&number));
        let right = match (told, found) {
            (None, _) => false,
            (Some((_, len)), None) => {
                self.lost += u64::from(len);
                true
            }
            (Some((stored, len)), Some(span)) => {
                let file = HEADER_LEN as u64 + u64::from(stored);
                let same = span.stream.end.since(span.stream.start) == u64::from(len)
                    && span.file.end.checked_sub(span.file.start) == Some(file);
                // What a gap holds is not known; it is reported as damage already.
                span.lost || same
            }
        };
        if !right {
            self.fail(format!("its entry for chunk {number} is wrong"));
        }
        Ok(())
    }

    /// Takes what stands where the table's footer should be.
    pub(super) fn footer(&mut self, bytes: &[u8]) {
        if u32::try_from(self.chunks).map(footer).is_ok_and(|right| right.as_slice() == bytes) {
            return;
        }
        self.fail("its footer is wrong".to_owned());
    }

    /// The first thing that is wrong, and how many bytes of the stream the table says are behind the last
    /// frame found.
    pub(super) fn outcome(self) -> (Option<String>, u64) {
        (self.fault, self.lost)
    }

    /// Notes what is wrong, unless something was before.
    pub(super) fn fail(&mut self, why: String) {
        self.fault.get_or_insert(why);
    }
}

/// Bytes of a table's entries that [`SeekTableCheck::pairs`] is given at once, at most.
pub(super) const PAIRS_BLOCK: u64 = 1024 * PAIR_LEN as u64;

/// Collects the sizes of the frames as they are written, 8 bytes a chunk in a [`SpillLog`].
#[derive(Debug, Default)]
pub(super) struct TableWriter {
    sizes: SpillLog,
    chunks: u32,
}

impl TableWriter {
    /// Takes in a chunk: bytes of its Zstandard frame and what they decompress to. The caller sees to it
    /// that there are no more than [`MAX_CHUNKS`].
    pub(super) fn push(&mut self, stored: u32, len: u32) -> Result<()> {
        self.sizes.append(&stored.to_le_bytes())?;
        self.sizes.append(&len.to_le_bytes())?;
        self.chunks += 1;
        Ok(())
    }

    /// Writes the table and returns its length.
    pub(super) fn write(&self, sink: &mut dyn Sink) -> Result<u64> {
        const BLOCK: u64 = 32 << 10;
        let mut out = head(self.chunks).to_vec();
        let mut sizes = Vec::new();
        let mut at = 0;
        let mut written = 0;
        while at < self.sizes.len() {
            let take = (self.sizes.len() - at).min(BLOCK);
            sizes.resize(usize::try_from(take).unwrap_or_default(), 0);
            self.sizes.read_at(at, &mut sizes)?;
            for size in sizes.chunks_exact(8) {
                let field = |from: usize| {
                    size.get(from..).and_then(|s| s.first_chunk()).map_or(0, |f| u32::from_le_bytes(*f))
                };
                out.extend_from_slice(&pair(field(0), field(4)));
            }
            sink.write(&out)?;
            written += out.len() as u64;
            out.clear();
            at += take;
        }
        out.extend_from_slice(&footer(self.chunks));
        sink.write(&out)?;
        Ok(written + out.len() as u64)
    }
}
