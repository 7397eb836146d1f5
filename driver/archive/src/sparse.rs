//! The sparse map: the block correspondence table as the archive holds it, between a disk's header and its
//! dense bytes.
//!
//! It is text: the number of entries, then each entry's guest offset and length, every number on a line of
//! its own. Dense addresses are not written: they are the running sum of the lengths. Where the disk ends in
//! a hole, a last entry (capacity, 0) says so: without it GNU tar makes the disk too short. In a member,
//! zeros fill the map's last block; a recovery copy has none.
//!
//! A header needs the map's length before the map, so the runs are walked twice: [`MapShape::measure`], then
//! [`MapShape::write`]. A map of a hundred million runs is never in memory.
//!
//! Fact: GNU tar manual, "Storing Sparse Files", version 1.0.
//!
//! Imports: `units`, `error`; `tar`, `lines` of this room.

use crate::block::{BLOCK, MAX_SIZE, Output, padding};
use crate::lines::{ChunkedOutput, decimal_len, put_decimal};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::GuestOffset;

/// Bytes of the guest's disk that are in the archive, without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// Where they belong.
    pub guest: GuestOffset,
    /// How many they are, in bytes; never 0.
    pub len: u64,
}

/// What is known of a map before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    capacity: u64,
    runs: u64,
    dense_len: u64,
    /// Where the last run ends.
    end: u64,
    text_len: u64,
}

impl MapShape {
    /// Walks `runs`, ascending and apart, all inside a disk of `capacity` bytes.
    ///
    /// # Errors
    /// The walk's own; Internal where the runs are not as said (a defect of the table).
    pub fn measure(capacity: u64, runs: impl IntoIterator<Item = Result<MapEntry>>) -> Result<Self> {
        let mut shape = Self { capacity, runs: 0, dense_len: 0, end: 0, text_len: 0 };
        for run in runs {
            shape.add(run?)?;
        }
        if capacity > MAX_SIZE {
            let message = format!("a disk of {capacity} bytes is too large for an archive");
            return Err(Error::new(ErrorKind::Usage, message));
        }
        if shape.has_closing() {
            shape.text_len += decimal_len(capacity) + 3;
        }
        shape.text_len += decimal_len(shape.entries()) + 1;
        Ok(shape)
    }

    /// The map of a disk that is in the archive whole: one run (none where the disk is empty).
    ///
    /// # Errors
    /// As [`MapShape::measure`].
    pub fn full(capacity: u64) -> Result<Self> {
        Self::measure(capacity, full_runs(capacity))
    }

    fn add(&mut self, run: MapEntry) -> Result<()> {
        let start = run.guest.get();
        let end = start.checked_add(run.len).filter(|end| *end <= self.capacity);
        match end {
            Some(end) if run.len > 0 && start >= self.end => self.end = end,
            _ => {
                let message = format!("the run of {} bytes at {start} has no place in its table", run.len);
                return Err(Error::new(ErrorKind::Internal, message));
            }
        }
        self.runs += 1;
        self.dense_len += run.len;
        self.text_len += decimal_len(start) + decimal_len(run.len) + 2;
        Ok(())
    }

    fn has_closing(&self) -> bool {
        self.end < self.capacity
    }

    /// Size of the disk, bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Runs in the table.
    pub fn runs(&self) -> u64 {
        self.runs
    }

    /// Entries in the map: the runs, and the closing one where there is one.
    pub fn entries(&self) -> u64 {
        self.runs + u64::from(self.has_closing())
    }

    /// Bytes in all runs together.
    pub fn dense_len(&self) -> u64 {
        self.dense_len
    }

    /// Bytes of the map's text without padding.
    pub fn text_len(&self) -> u64 {
        self.text_len
    }

    /// Bytes of the map in a sparse member: the text and the zeros that fill its last block.
    pub fn padded_len(&self) -> u64 {
        self.text_len.next_multiple_of(BLOCK)
    }

    /// Bytes of content of the sparse member: padded map and dense bytes.
    ///
    /// # Errors
    /// Usage: more than a tar can hold.
    pub fn member_size(&self) -> Result<u64> {
        self.padded_len().checked_add(self.dense_len).filter(|size| *size <= MAX_SIZE).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("a disk of {} bytes is too large", self.capacity))
        })
    }

    /// Writes the map's text, in pieces; `runs` are those that were measured.
    ///
    /// # Errors
    /// The walk's and the output's own; Internal where the runs are others (a defect of the table).
    pub fn write(
        &self,
        runs: impl IntoIterator<Item = Result<MapEntry>>,
        out: &mut Output<'_>,
    ) -> Result<()> {
        let mut again = Self { runs: 0, dense_len: 0, end: 0, text_len: 0, ..*self };
        let mut pieces = ChunkedOutput::new(out);
        let line = |value: u64, pieces: &mut ChunkedOutput<'_, '_>| {
            put_decimal(value, &mut pieces.buf);
            pieces.buf.push(b'\n');
        };
        line(self.entries(), &mut pieces);
        for run in runs {
            let run = run?;
            again.add(run)?;
            line(run.guest.get(), &mut pieces);
            line(run.len, &mut pieces);
            pieces.settle()?;
        }
        if again.has_closing() {
            line(self.capacity, &mut pieces);
            line(0, &mut pieces);
        }
        if pieces.finish()? == self.text_len && again.runs == self.runs && again.dense_len == self.dense_len {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Internal, "a table changed while it was written"))
    }

    /// Writes the map as a sparse member holds it: [`MapShape::write`] and the padding.
    ///
    /// # Errors
    /// As [`MapShape::write`].
    pub fn write_padded(
        &self,
        runs: impl IntoIterator<Item = Result<MapEntry>>,
        out: &mut Output<'_>,
    ) -> Result<()> {
        self.write(runs, out)?;
        out(padding(self.text_len))
    }
}

/// The runs of a disk that is in the archive whole.
pub fn full_runs(capacity: u64) -> impl Iterator<Item = Result<MapEntry>> {
    (capacity > 0).then_some(Ok(MapEntry { guest: GuestOffset::ZERO, len: capacity })).into_iter()
}
