//! Reads a sparse map as it arrives, and believes nothing of it.
//!
//! Every run is checked when its line is there: ascending, apart, inside the disk, no more entries than the
//! announced bytes can hold, no more dense bytes than announced. When the map is complete, the sum must be
//! exact, the closing entry must be there if and only if the disk ends in a hole, and the rest of the last
//! block must be zeros. So whoever has taken all runs holds a table that fits the dense bytes that follow.
//!
//! Imports: `units`, `error`; `sparse`, `tar`, `lines` of this room.

use crate::lines::{LineAssembler, damaged, parse_decimal};
use crate::sparse::MapEntry;
use crate::tar::BLOCK;
use virtfold_base::error::{Error, Result};
use virtfold_base::units::{GuestOffset, StreamOffset};

/// Digits of the largest number.
const LONGEST: usize = 20;
/// The shortest entry: two digits, two newlines.
const SHORTEST_ENTRY: u64 = 4;

/// Where a map stands and what was announced of it.
#[derive(Clone, Copy, Debug)]
pub struct MapLocation {
    capacity: u64,
    /// Bytes that the map's text may have at most.
    room: u64,
    end: End,
}

#[derive(Clone, Copy, Debug)]
enum End {
    /// Padded to a block; map and dense bytes together are so many bytes.
    Member(u64),
    /// The text has exactly `room` bytes, the runs this many.
    Copy { dense_len: u64 },
}

impl MapLocation {
    /// At the start of a sparse member of `size` bytes of content and `realsize` bytes unfolded.
    pub fn member(size: u64, realsize: u64) -> Self {
        Self { capacity: realsize, room: size, end: End::Member(size) }
    }

    /// In a recovery copy: the rest of the member, of `text_len` bytes.
    pub(super) fn copy(text_len: u64, capacity: u64, dense_len: u64) -> Self {
        Self { capacity, room: text_len, end: End::Copy { dense_len } }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Count,
    Offset,
    Length { offset: u64 },
    Padding { left: u64 },
    Complete,
}

/// The parser.
#[derive(Debug)]
pub struct MapParser {
    name: String,
    place: MapLocation,
    at: StreamOffset,
    state: State,
    lines: LineAssembler,
    used: u64,
    entries_left: u64,
    runs: u64,
    end: u64,
    dense_len: u64,
}

impl MapParser {
    /// For the map of disk `target` whose text begins at `at`.
    pub fn new(target: &str, place: MapLocation, at: StreamOffset) -> Self {
        Self {
            name: target.to_owned(),
            place,
            at,
            state: State::Count,
            lines: LineAssembler::default(),
            used: 0,
            entries_left: 0,
            runs: 0,
            end: 0,
            dense_len: 0,
        }
    }

    /// Whether the map and its padding were read whole: the dense bytes come next.
    pub fn is_complete(&self) -> bool {
        self.state == State::Complete
    }

    /// Bytes used so far, when complete the padded map's length.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Bytes in the runs so far.
    pub fn dense_len(&self) -> u64 {
        self.dense_len
    }

    /// Runs so far.
    pub fn runs(&self) -> u64 {
        self.runs
    }

    /// The next run; `None` where `input` ends before it does, or the map is complete. Advances `input` over
    /// what was used and never over a byte that follows the map. After an error the parser is of no further
    /// use.
    ///
    /// # Errors
    /// Damaged.
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<Option<MapEntry>> {
        loop {
            match self.state {
                State::Complete => return Ok(None),
                State::Padding { left: 0 } => self.state = State::Complete,
                State::Padding { .. } if input.is_empty() => return Ok(None),
                State::Padding { left } => self.padding(left, input)?,
                State::Count | State::Offset | State::Length { .. } => {
                    let Some(number) = self.number(input)? else { return Ok(None) };
                    if let Some(run) = self.take(number)? {
                        return Ok(Some(run));
                    }
                }
            }
        }
    }

    fn bad(&self, what: &str) -> Error {
        damaged(self.at.saturating_add(self.used), format_args!("the map of {} {what}", self.name))
    }

    fn number(&mut self, input: &mut &[u8]) -> Result<Option<u64>> {
        let before = input.len();
        let parsed = match self.lines.take(input, LONGEST) {
            Ok(Some(line)) => Some(parse_decimal(line)),
            Ok(None) => None,
            Err(_) => Some(None),
        };
        match parsed {
            Some(None) => return Err(self.bad("has a line that is not a number")),
            Some(Some(_)) | None => self.used += (before - input.len()) as u64,
        }
        if self.used > self.place.room {
            return Err(self.bad("is longer than announced"));
        }
        Ok(parsed.flatten())
    }

    fn take(&mut self, number: u64) -> Result<Option<MapEntry>> {
        match self.state {
            State::Count => {
                if number > (self.place.room - self.used) / SHORTEST_ENTRY {
                    return Err(self.bad("announces more entries than there is room for"));
                }
                self.entries_left = number;
                self.next_entry()?;
                Ok(None)
            }
            State::Length { offset } => {
                self.entries_left -= 1;
                let run = self.entry(offset, number)?;
                self.next_entry()?;
                Ok(run)
            }
            _ => {
                self.state = State::Length { offset: number };
                Ok(None)
            }
        }
    }

    fn entry(&mut self, offset: u64, len: u64) -> Result<Option<MapEntry>> {
        let capacity = self.place.capacity;
        if len == 0 {
            if offset != capacity || self.end == capacity || self.entries_left > 0 {
                return Err(self.bad("has an empty entry"));
            }
            self.end = capacity;
            return Ok(None);
        }
        // Runs that touch are one run.
        if offset < self.end || (self.runs > 0 && offset == self.end) {
            return Err(self.bad("has an entry that does not come behind the one before it"));
        }
        self.end = offset
            .checked_add(len)
            .filter(|end| *end <= capacity)
            .ok_or_else(|| self.bad("has an entry that reaches beyond the disk's end"))?;
        // Runs lie apart inside the capacity, so neither sum can overflow.
        self.dense_len += len;
        self.runs += 1;
        let announced = match self.place.end {
            End::Member(size) => size - self.used,
            End::Copy { dense_len } => dense_len,
        };
        if self.dense_len > announced {
            return Err(self.bad("has more dense bytes than announced"));
        }
        Ok(Some(MapEntry { guest: GuestOffset::new(offset), len }))
    }

    fn next_entry(&mut self) -> Result<()> {
        if self.entries_left > 0 {
            self.state = State::Offset;
            return Ok(());
        }
        if self.end != self.place.capacity {
            return Err(self.bad("ends before the disk does"));
        }
        let padded = self.used.next_multiple_of(BLOCK);
        let (expected, found, left) = match self.place.end {
            End::Member(size) => (Some(size), padded.checked_add(self.dense_len), padded - self.used),
            End::Copy { dense_len } if self.used == self.place.room => {
                (Some(dense_len), Some(self.dense_len), 0)
            }
            End::Copy { .. } => return Err(self.bad("is shorter than announced")),
        };
        if expected != found {
            return Err(self.bad("does not add up to the announced number of dense bytes"));
        }
        self.state = State::Padding { left };
        Ok(())
    }

    fn padding(&mut self, left: u64, input: &mut &[u8]) -> Result<()> {
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        let (zeros, rest) = input.split_at(len);
        if zeros.iter().any(|byte| *byte != 0) {
            return Err(self.bad("is followed by something else than zeros"));
        }
        *input = rest;
        self.used += len as u64;
        self.state = State::Padding { left: left - len as u64 };
        Ok(())
    }

    /// Must be called when the content has ended.
    ///
    /// # Errors
    /// Damaged: the map is not complete.
    pub fn finish(&self) -> Result<()> {
        match self.state {
            State::Complete | State::Padding { left: 0 } => Ok(()),
            _ => Err(self.bad("is cut short")),
        }
    }
}
