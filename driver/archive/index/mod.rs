//! An archive in a file, opened at once: its head, its tables and where each disk's bytes lie, found without reading
//! the bytes; and then the bytes of the disks that are asked for.
//!
//! Opening: the end record and the digests are read from the tail ([`tail`]), then the members from the front,
//! jumping over the disks' bytes ([`members`]). Where the front is damaged, the recovery copies take its place.
//! Every byte that is believed was checked ([`checked`]): a frame by its own header, a plain archive's MiB by the
//! digest list, and nothing at all only where a cut has taken that list; [`ArchiveIndex::is_checked`] tells.
//!
//! Whether damage is an error is the caller's to say ([`Trust`]). A strict opening fails at the first
//! contradiction; a salvaging one notes it and goes on with what is left.
//!
//! Imports: `units`, `error`, `table`; `stream` and the member modules of this room.

mod checked;
mod members;
mod tail;

use std::ops::Range;
use std::sync::Arc;

use self::checked::Checked;
pub use self::tail::Tail;
use crate::archive::manifest::{Disk, Manifest};
use crate::archive::stream::{Cancel, Chunk, RandomStream, ReadAt};
use crate::error::{Error, ErrorKind, Result};
use crate::table::{CorrespondenceTable, Run};
use crate::units::{DenseOffset, GuestOffset, MIB, StreamOffset};

/// What damage does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It is an error.
    Strict,
    /// It is noted, and what is intact is used.
    Salvage,
}

/// One disk of an archive.
#[derive(Debug)]
pub struct IndexedDisk {
    /// As the head describes it.
    pub disk: Disk,
    /// Where its bytes belong.
    pub table: CorrespondenceTable,
    /// Where its dense bytes begin in the stream.
    pub dense_at: StreamOffset,
}

/// An opened archive; see the module's description.
pub struct ArchiveIndex {
    stream: Checked,
    head: Manifest,
    disks: Vec<IndexedDisk>,
    tail: Option<Tail>,
    notes: Vec<String>,
}

/// A piece of a disk, as read.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// Its bytes.
    Bytes(&'a [u8]),
    /// They are damaged, or behind the cut.
    Lost,
}

impl ArchiveIndex {
    /// Opens the archive in `source`.
    ///
    /// # Errors
    /// Strict: Damaged or Incomplete at the first contradiction. Salvage: the same where neither the front nor
    /// the recovery copies give a head and a table to go by.
    pub fn open(source: Arc<dyn ReadAt>, trust: Trust) -> Result<Self> {
        let stream = RandomStream::open(source)?;
        let mut notes = Vec::new();
        let tail = match tail::read(&stream) {
            Ok(tail) => Some(tail),
            Err(error) if trust == Trust::Strict => return Err(error),
            Err(error) => {
                notes.push(describe(&error));
                None
            }
        };
        let stream = Checked::new(stream, tail.as_ref().map(Tail::digests));
        let mut found = members::Found::default();
        if let Err(error) = members::from_front(&stream, &mut found) {
            let recovery_at = tail.as_ref().map(|tail| tail.record.recovery_at);
            let (Trust::Salvage, Some(recovery_at)) = (trust, recovery_at) else {
                return Self::with_what_is_left(stream, found, tail, notes, error, trust);
            };
            notes.push(describe(&error));
            members::from_recovery(&stream, recovery_at, &mut found)?;
        }
        let (head, disks) = found.into_parts()?;
        Ok(Self { stream, head, disks, tail, notes })
    }

    /// The front has ended at a cut or in damage, and there are no copies to go by: the disks whose tables had been
    /// read by then can still be had.
    fn with_what_is_left(
        stream: Checked,
        found: members::Found,
        tail: Option<Tail>,
        mut notes: Vec<String>,
        error: Error,
        trust: Trust,
    ) -> Result<Self> {
        if trust == Trust::Strict {
            return Err(error);
        }
        notes.push(describe(&error));
        match found.into_parts() {
            Ok((head, disks)) if !disks.is_empty() => Ok(Self { stream, head, disks, tail, notes }),
            _ => Err(error),
        }
    }

    /// The head.
    pub fn head(&self) -> &Manifest {
        &self.head
    }

    /// The disks whose tables could be read: all that the head names, unless the archive is damaged.
    pub fn disks(&self) -> &[IndexedDisk] {
        &self.disks
    }

    /// The disk called `target`.
    ///
    /// # Errors
    /// NotFound, with the names that there are; Incomplete, where its tables are lost.
    pub fn disk(&self, target: &str) -> Result<&IndexedDisk> {
        if let Some(disk) = self.disks.iter().find(|disk| disk.disk.target == target) {
            return Ok(disk);
        }
        if self.head.disk(target).is_some() {
            return Err(Error::new(
                ErrorKind::Incomplete,
                format!("the tables of disk {target} are lost, and with them its data"),
            ));
        }
        let names: Vec<&str> = self.head.disks.iter().map(|disk| disk.target.as_str()).collect();
        Err(Error::new(ErrorKind::NotFound, format!("the archive has no disk called {}", target.escape_debug()))
            .with_hint(format!("it has: {}", names.join(", "))))
    }

    /// The tail, where it is there and sound: the archive is complete.
    pub fn tail(&self) -> Option<&Tail> {
        self.tail.as_ref()
    }

    /// Whether every byte that this gives out was checked against a digest.
    pub fn is_checked(&self) -> bool {
        self.stream.is_checked()
    }

    /// Whether the stream lies in the file as it is, so that the disks' bytes can be shared with other files.
    pub fn is_plain(&self) -> bool {
        !self.stream.is_framed()
    }

    /// What was found wrong while opening, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Gives `take` all dense bytes of `disk` in `range`, in order, each with its place.
    ///
    /// # Errors
    /// Those of the source and of `take`; Interrupted when cancelled. Damage is no error here: it is given out
    /// as [`Data::Lost`].
    pub fn read_dense(
        &self,
        disk: &IndexedDisk,
        range: Range<DenseOffset>,
        reading: &Reading,
        take: &mut dyn FnMut(&Run, Data<'_>) -> Result<()>,
    ) -> Result<()> {
        let place = |dense: DenseOffset| disk.dense_at.saturating_add(dense.get());
        let (from, to) = (place(range.start), place(range.end));
        let mut next = from;
        self.stream.read(from..to, reading, &mut |at, data| {
            let dense = DenseOffset::new(at.since(disk.dense_at));
            next = match data {
                Ok(bytes) => {
                    give(disk, dense, bytes, take)?;
                    at.saturating_add(bytes.len() as u64)
                }
                Err(lost) => {
                    give_lost(disk, dense, lost, take)?;
                    at.saturating_add(lost)
                }
            };
            Ok(())
        })?;
        // What the stream no longer has is lost, too.
        give_lost(disk, DenseOffset::new(next.since(disk.dense_at)), to.since(next), take)
    }
}

/// How to read.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Threads that read, decompress and check.
    pub workers: usize,
    /// Ends the reading.
    pub cancel: Cancel,
}

fn give(
    disk: &IndexedDisk,
    at: DenseOffset,
    bytes: &[u8],
    take: &mut dyn FnMut(&Run, Data<'_>) -> Result<()>,
) -> Result<()> {
    let mut rest = bytes;
    for piece in disk.table.pieces(at, bytes.len() as u64)? {
        let piece = piece?;
        let len = usize::try_from(piece.len).unwrap_or(usize::MAX).min(rest.len());
        let (now, later) = rest.split_at(len);
        take(&piece, Data::Bytes(now))?;
        rest = later;
    }
    Ok(())
}

fn give_lost(
    disk: &IndexedDisk,
    at: DenseOffset,
    len: u64,
    take: &mut dyn FnMut(&Run, Data<'_>) -> Result<()>,
) -> Result<()> {
    for piece in disk.table.pieces(at, len)? {
        take(&piece?, Data::Lost)?;
    }
    Ok(())
}

/// An error and its causes in one line.
fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
