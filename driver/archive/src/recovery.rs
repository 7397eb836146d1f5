//! The second copies: the head again, and of each disk its map with the place of its dense bytes, so that a
//! damaged byte in a table costs no more than its own MiB.
//!
//! The copy of the head is the same bytes; nothing here is needed for it. The copy of a map,
//! `recovery/TARGET.map`, has one line `TARGET,CAPACITY,STREAM_OFFSET,DENSE_LENGTH` and then the text that
//! [`MapShape::write`] makes. In an incremental archive the allocation table has a copy too, byte for byte,
//! for it says what became zero.
//!
//! Imports: `units`, `error`; `sparse`, `sparse_parser`, `layout`, `tar`, `lines` of this room.

use crate::layout;
use crate::lines::{LineAssembler, damaged, parse_decimal};
use crate::sparse::{MapEntry, MapShape};
use crate::sparse_parser::{MapLocation, MapParser};
use crate::tar::Output;
use virtfold_base::error::{Error, Result};
use virtfold_base::units::StreamOffset;

/// A name, three numbers of 20 digits, three commas.
const LONGEST: usize = layout::MAX_TARGET + 3 * 20 + 3;

/// The first line of a map's copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryHead {
    /// The disk.
    pub target: String,
    /// Its size, bytes.
    pub capacity: u64,
    /// Where in the stream its dense bytes begin.
    pub dense_at: StreamOffset,
    /// How many they are.
    pub dense_len: u64,
}

impl RecoveryHead {
    /// For the disk `target` whose dense bytes begin at `dense_at`.
    ///
    /// # Errors
    /// Usage: no name for a disk.
    pub fn new(target: &str, shape: &MapShape, dense_at: StreamOffset) -> Result<Self> {
        layout::check_target(target)?;
        let (capacity, dense_len) = (shape.capacity(), shape.dense_len());
        Ok(Self { target: target.to_owned(), capacity, dense_at, dense_len })
    }

    fn line(&self) -> String {
        format!("{},{},{},{}\n", self.target, self.capacity, self.dense_at, self.dense_len)
    }

    /// Bytes of the member's content.
    pub fn member_size(&self, shape: &MapShape) -> u64 {
        self.line().len() as u64 + shape.text_len()
    }

    /// Writes the member's content, in pieces; `runs` are those that `shape` measured.
    ///
    /// # Errors
    /// As [`MapShape::write`].
    pub fn write(
        &self,
        shape: &MapShape,
        runs: impl IntoIterator<Item = Result<MapEntry>>,
        out: &mut Output<'_>,
    ) -> Result<()> {
        out(self.line().as_bytes())?;
        shape.write(runs, out)
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b',');
        let target = String::from_utf8(fields.next()?.to_vec()).ok()?;
        layout::check_target(&target).ok()?;
        let capacity = parse_decimal(fields.next()?)?;
        let dense_at = StreamOffset::new(parse_decimal(fields.next()?)?);
        let dense_len = parse_decimal(fields.next()?)?;
        let fits = dense_at.checked_add(dense_len).is_some() && dense_len <= capacity;
        (fields.next().is_none() && fits).then_some(Self { target, capacity, dense_at, dense_len })
    }
}

/// Reads a map's copy as it arrives.
#[derive(Debug)]
pub struct RecoveryParser {
    target: String,
    size: u64,
    at: StreamOffset,
    used: u64,
    lines: LineAssembler,
    parsed: Option<(RecoveryHead, MapParser)>,
}

impl RecoveryParser {
    /// For the copy of `target`'s map: a member of `size` bytes whose content begins at `at`.
    pub fn new(target: &str, size: u64, at: StreamOffset) -> Self {
        Self { target: target.to_owned(), size, at, used: 0, lines: LineAssembler::default(), parsed: None }
    }

    /// The first line, once it was read.
    pub fn head(&self) -> Option<&RecoveryHead> {
        self.parsed.as_ref().map(|(head, _)| head)
    }

    /// The next run, `None` where `input` ends before it does or the map is complete; advances `input` over
    /// what was used. After an error the parser is of no further use.
    ///
    /// # Errors
    /// Damaged.
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<Option<MapEntry>> {
        if self.parsed.is_none() && !self.feed_head(input)? {
            return Ok(None);
        }
        match &mut self.parsed {
            Some((_, map)) => map.feed(input),
            None => Ok(None),
        }
    }

    fn feed_head(&mut self, input: &mut &[u8]) -> Result<bool> {
        let before = input.len();
        let line = self.lines.take(input, LONGEST);
        self.used += (before - input.len()) as u64;
        let bad = || bad(&self.target, self.at);
        let Some(line) = line.map_err(|_| bad())? else { return Ok(false) };
        let head = RecoveryHead::parse(line).filter(|head| head.target == self.target).ok_or_else(bad)?;
        let text_len = self.size.checked_sub(self.used).ok_or_else(bad)?;
        let place = MapLocation::copy(text_len, head.capacity, head.dense_len);
        let map = MapParser::new(&self.target, place, self.at.saturating_add(self.used));
        self.parsed = Some((head, map));
        Ok(true)
    }

    /// Must be called when the content has ended.
    ///
    /// # Errors
    /// Damaged: the map is not complete.
    pub fn finish(&self) -> Result<()> {
        match &self.parsed {
            Some((_, map)) => map.finish(),
            None => Err(bad(&self.target, self.at)),
        }
    }
}

fn bad(target: &str, at: StreamOffset) -> Error {
    damaged(at, format_args!("the copy of {target}'s map has no proper first line"))
}
