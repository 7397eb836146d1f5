//! The allocation table of a disk as text: `TARGET.allocation.csv`.
//!
//! A header line, then a line for each extent: guest offset, length, kind, host offset (empty where the
//! source has none), all in canonical decimals. The extents cover the disk from 0 to its capacity without a
//! gap. In a full archive the table is for people: the map tells where bytes belong. In an incremental
//! archive its rows of kind `zero` are needed: they say which ranges became zero since the parent.
//!
//! As with the map, the rows are walked twice: [`CsvShape::measure`], then [`CsvShape::write`].
//!
//! Imports: `units`, `error`; `layout`, `tar`, `lines` of this room.

use crate::layout::BackupKind;
use crate::lines::{ChunkedOutput, LineAssembler, damaged, decimal_len, parse_decimal, put_decimal};
use crate::tar::Output;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::{GuestOffset, HostOffset, StreamOffset};

const TITLE: &[u8] = b"guest_offset,length,kind,host_offset";
/// Three numbers of 20 digits, the longest kind, three commas.
const LONGEST: usize = 3 * 20 + 11 + 3;

/// What a range of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AllocationKind {
    /// Bytes are recorded there; they are in the archive.
    Data,
    /// It reads as zeros because the source says so.
    Zero,
    /// Nothing was ever recorded there; it reads as zeros.
    Unallocated,
    /// It is as in the parent; incremental archives only.
    Unchanged,
}

impl AllocationKind {
    /// The kind's name in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Zero => "zero",
            Self::Unallocated => "unallocated",
            Self::Unchanged => "unchanged",
        }
    }

    fn parse(name: &[u8]) -> Option<Self> {
        [Self::Data, Self::Zero, Self::Unallocated, Self::Unchanged]
            .into_iter()
            .find(|kind| kind.name().as_bytes() == name)
    }
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocationRow {
    /// First byte on the guest's disk.
    pub guest: GuestOffset,
    /// Bytes; never 0.
    pub len: u64,
    /// What they are.
    pub kind: AllocationKind,
    /// Where the source file has them, where it has them in one piece.
    pub host: Option<HostOffset>,
}

/// What is known of the text before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CsvShape {
    capacity: u64,
    end: u64,
    text_len: u64,
    rows: u64,
}

impl CsvShape {
    /// Walks the rows of a disk of `capacity` bytes.
    ///
    /// # Errors
    /// The walk's own; Internal where the rows do not cover the disk (a defect of the table).
    pub fn measure(capacity: u64, rows: impl IntoIterator<Item = Result<AllocationRow>>) -> Result<Self> {
        let mut shape = Self { capacity, end: 0, text_len: TITLE.len() as u64 + 1, rows: 0 };
        for row in rows {
            shape.add(&row?)?;
        }
        if shape.end == capacity { Ok(shape) } else { Err(shape.broken()) }
    }

    fn add(&mut self, row: &AllocationRow) -> Result<()> {
        self.end = follow(self.end, self.capacity, row).ok_or_else(|| self.broken())?;
        self.rows += 1;
        self.text_len += decimal_len(row.guest.get())
            + decimal_len(row.len)
            + row.kind.name().len() as u64
            + row.host.map_or(0, |host| decimal_len(host.get()))
            + 4;
        Ok(())
    }

    fn broken(&self) -> Error {
        let message = format!("an allocation table has a gap or overlap at guest offset {}", self.end);
        Error::new(ErrorKind::Internal, message)
    }

    /// Bytes of the text.
    pub fn text_len(&self) -> u64 {
        self.text_len
    }

    /// Rows, the header line not counted.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Writes the text, in pieces; `rows` are those that were measured.
    ///
    /// # Errors
    /// The walk's and the output's own; Internal where the rows are others (a defect of the table).
    pub fn write(
        &self,
        rows: impl IntoIterator<Item = Result<AllocationRow>>,
        out: &mut Output<'_>,
    ) -> Result<()> {
        let mut again = Self { end: 0, text_len: 0, rows: 0, ..*self };
        let mut pieces = ChunkedOutput::new(out);
        pieces.buf.extend_from_slice(TITLE);
        pieces.buf.push(b'\n');
        for row in rows {
            let row = row?;
            again.add(&row)?;
            put_row(&row, &mut pieces.buf);
            pieces.settle()?;
        }
        if pieces.finish()? == self.text_len && again.end == self.capacity {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Internal, "an allocation table changed while it was written"))
    }
}

fn put_row(row: &AllocationRow, out: &mut Vec<u8>) {
    put_decimal(row.guest.get(), out);
    out.push(b',');
    put_decimal(row.len, out);
    out.push(b',');
    out.extend_from_slice(row.kind.name().as_bytes());
    out.push(b',');
    if let Some(host) = row.host {
        put_decimal(host.get(), out);
    }
    out.push(b'\n');
}

/// Where `row` ends; `None` unless it begins at `end`, has a length and stays inside `capacity`.
fn follow(end: u64, capacity: u64, row: &AllocationRow) -> Option<u64> {
    (row.guest.get() == end && row.len > 0).then_some(())?;
    end.checked_add(row.len).filter(|end| *end <= capacity)
}

/// Reads the text as it arrives.
#[derive(Debug)]
pub struct CsvParser {
    name: String,
    capacity: u64,
    end: u64,
    titled: bool,
    lines: LineAssembler,
    at: StreamOffset,
    kind: BackupKind,
}

impl CsvParser {
    /// For the member `name`, whose content begins at `at`, of a disk of `capacity` bytes in an archive of
    /// this kind.
    pub fn new(name: &str, capacity: u64, at: StreamOffset, kind: BackupKind) -> Self {
        Self {
            name: name.to_owned(),
            capacity,
            end: 0,
            titled: false,
            lines: LineAssembler::default(),
            at,
            kind,
        }
    }

    /// The next row, `None` where `input` ends before it does; advances `input` over what was used. After an
    /// error the parser is of no further use.
    ///
    /// # Errors
    /// Damaged.
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<Option<AllocationRow>> {
        loop {
            let before = input.len();
            let line = match self.lines.take(input, LONGEST) {
                Ok(Some(line)) => line,
                Ok(None) => {
                    self.at = self.at.saturating_add(before as u64);
                    return Ok(None);
                }
                Err(_) => return Err(bad(&self.name, self.at, "has a line that is too long")),
            };
            let at = self.at;
            self.at = at.saturating_add((before - input.len()) as u64);
            if !self.titled {
                if line != TITLE {
                    return Err(bad(&self.name, at, "does not begin with its header line"));
                }
                self.titled = true;
                continue;
            }
            let row = parse_row(line).ok_or_else(|| bad(&self.name, at, "has a malformed line"))?;
            self.end = follow(self.end, self.capacity, &row)
                .ok_or_else(|| bad(&self.name, at, "has a row that does not follow the one before it"))?;
            if row.kind == AllocationKind::Unchanged && self.kind == BackupKind::Full {
                return Err(bad(&self.name, at, "has an unchanged extent in a full archive"));
            }
            return Ok(Some(row));
        }
    }

    /// Must be called when the content has ended.
    ///
    /// # Errors
    /// Damaged: the table does not cover the disk.
    pub fn finish(&self) -> Result<()> {
        if self.titled && self.lines.is_between() && self.end == self.capacity {
            return Ok(());
        }
        Err(bad(&self.name, self.at, "ends before the disk does"))
    }
}

fn bad(name: &str, at: StreamOffset, what: &str) -> Error {
    damaged(at, format_args!("'{name}' {what}"))
}

fn parse_row(line: &[u8]) -> Option<AllocationRow> {
    let mut fields = line.split(|byte| *byte == b',');
    let guest = GuestOffset::new(parse_decimal(fields.next()?)?);
    let len = parse_decimal(fields.next()?)?;
    let kind = AllocationKind::parse(fields.next()?)?;
    let host = match fields.next()? {
        [] => None,
        digits => Some(HostOffset::new(parse_decimal(digits)?)),
    };
    fields.next().is_none().then_some(AllocationRow { guest, len, kind, host })
}
