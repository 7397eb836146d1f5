//! An archive in a file, opened at once: its head, its tables and where each disk's bytes lie, found without
//! reading the bytes; and then the bytes of the disks that are asked for.
//!
//! Opening: the end record and the digests are read from the tail (`tail`), then the members from the front,
//! jumping over the disks' bytes (`members`). Where the front is damaged, the recovery copies take its place.
//! Every byte that is believed was checked (`range_reader`): each MiB by the digest list, without it a frame
//! by its own header, and nothing at all only where a cut has taken the list of a plain archive;
//! [`ArchiveIndex::is_checked`] tells.
//!
//! Whether damage is an error is the caller's to say ([`Trust`]). A strict opening fails at the first
//! contradiction; a salvaging one notes it and goes on with what is left.
//!
//! Imports: `units`, `error`, `table`; `stream` and the member modules of this room.

mod members;
mod range_reader;
pub(crate) mod tail;

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use self::range_reader::VerifiedRanges;
pub use self::tail::ArchiveTail;
use crate::allocation_csv::AllocationRow;
use crate::layout::BackupKind;
use crate::manifest::{Disk, Manifest};
use crate::stream::{Carrier, RandomStream, ReadAt, ReadOptions};
use crate::table::{CorrespondenceTable, Run};
use crate::writer::Attachment;
use virtfold_base::error::{Error, ErrorKind, Result, sentence};
use virtfold_base::units::{DenseOffset, GuestOffset, StreamOffset};

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
pub struct ArchiveIndex<'a> {
    stream: VerifiedRanges<'a>,
    head: Manifest,
    disks: Vec<IndexedDisk>,
    tail: Option<Arc<ArchiveTail>>,
    complete: bool,
    notes: Vec<String>,
}

/// A piece of a disk, as read.
#[derive(Clone, Copy, Debug)]
pub enum DiskPiece<'a> {
    /// Its bytes.
    Bytes(&'a [u8]),
    /// They are damaged, or behind the cut.
    Lost,
}

impl<'a> ArchiveIndex<'a> {
    /// Opens the archive in `source`.
    ///
    /// # Errors
    /// Strict: Damaged or Incomplete at the first contradiction. Salvage: the same where neither the
    /// front nor the recovery copies give a head and a table to go by.
    pub fn open(source: &'a dyn ReadAt, options: &ReadOptions, trust: Trust) -> Result<Self> {
        let stream = RandomStream::open(source, options)?;
        let mut notes = Vec::new();
        let mut whole = true;
        match stream.end().check(source.name()) {
            Err(error) if trust == Trust::Strict => return Err(error),
            Err(error) => {
                whole = error.kind() != ErrorKind::Incomplete;
                notes.push(error.to_string());
            }
            Ok(()) => {}
        }
        let read = tail::read(&stream).and_then(|tail| match members::is_foreign(&stream, &tail.record) {
            true => Err(Error::new(
                ErrorKind::Incomplete,
                "the archive is incomplete: what stands at the end is the end of another one",
            )),
            false => Ok(tail),
        });
        let (tail, complete) = match read {
            Ok(tail) => {
                match tail.fault() {
                    Some(error) if trust == Trust::Strict => return Err(error),
                    fault => notes.extend(fault.map(|error| error.to_string())),
                }
                (Some(Arc::new(tail)), true)
            }
            Err(error) if trust == Trust::Strict => return Err(error),
            Err(error) => {
                notes.push(sentence(&error));
                (None, error.kind() == ErrorKind::Damaged)
            }
        };
        let stream = VerifiedRanges::new(stream, tail.clone());
        let mut found = members::MemberIndex::default();
        match members::from_front(&stream, &mut found) {
            Err(error) if trust == Trust::Strict => return Err(error),
            Err(error) => {
                notes.push(sentence(&error));
                notes.extend(salvage(&stream, tail.as_deref(), &mut found, error)?);
            }
            Ok(()) => {}
        }
        let (head, disks) = found.into_parts()?;
        if let Err(error) = stream.end().check_id(head.archive) {
            match trust {
                Trust::Strict => return Err(error),
                Trust::Salvage => notes.push(error.to_string()),
            }
        }
        Ok(Self { stream, head, disks, tail, complete: complete && whole, notes })
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
        Err(Error::new(ErrorKind::NotFound, format!("the archive has no disk '{}'", target.escape_debug()))
            .with_hint(format!("it has: {}", names.join(", "))))
    }

    /// Whether the archive ends as archives do, be it damaged or not: it is not cut.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The tail, where it fits the stream.
    pub fn tail(&self) -> Option<&ArchiveTail> {
        self.tail.as_deref()
    }

    /// Whether every byte that this gives out was checked against a digest.
    pub fn is_checked(&self) -> bool {
        self.stream.is_checked()
    }

    /// Whether the stream lies in the file as it is, so that the disks' bytes can be shared with other files.
    pub fn is_plain(&self) -> bool {
        self.stream.carrier() == Carrier::Plain
    }

    /// What was found wrong while opening, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Gives `take` all dense bytes of `disk` in `range`, in order, each with its place.
    ///
    /// # Errors
    /// Those of the source and of `take`; Interrupted when cancelled. Damage is no error here: it is
    /// given out as [`DiskPiece::Lost`].
    pub fn read_dense(
        &self,
        disk: &IndexedDisk,
        range: Range<DenseOffset>,
        take: &mut dyn FnMut(&Run, DiskPiece<'_>) -> Result<()>,
    ) -> Result<()> {
        let place = |dense: DenseOffset| disk.dense_at.saturating_add(dense.get());
        let (from, to) = (place(range.start), place(range.end));
        let mut next = from;
        self.stream.read(from..to, &mut |at, data| {
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

/// The front can't be read to its end: the recovery copies take its place where there are any. Where there
/// are none, or they are damaged too (one chunk may hold the last disk's first tables and all copies), the
/// disks whose tables had been read by then are what is left. Returns what is wrong with the copies.
fn salvage(
    stream: &VerifiedRanges<'_>,
    tail: Option<&ArchiveTail>,
    found: &mut members::MemberIndex,
    front: Error,
) -> Result<Option<String>> {
    let error = match tail.map(|tail| members::from_recovery(stream, tail.record.recovery_at, found)) {
        Some(Ok(())) => return Ok(None),
        Some(Err(error)) => error,
        None if found.has_disks() => return Ok(None),
        None => return Err(front),
    };
    match found.has_disks() {
        true => Ok(Some(format!("its recovery copies: {}", sentence(&error)))),
        false => Err(error),
    }
}

fn give(
    disk: &IndexedDisk,
    at: DenseOffset,
    bytes: &[u8],
    take: &mut dyn FnMut(&Run, DiskPiece<'_>) -> Result<()>,
) -> Result<()> {
    let mut rest = bytes;
    for piece in disk.table.pieces(at, bytes.len() as u64)? {
        let piece = piece?;
        let len = usize::try_from(piece.len).unwrap_or(usize::MAX).min(rest.len());
        let (now, later) = rest.split_at(len);
        take(&piece, DiskPiece::Bytes(now))?;
        rest = later;
    }
    Ok(())
}

fn give_lost(
    disk: &IndexedDisk,
    at: DenseOffset,
    len: u64,
    take: &mut dyn FnMut(&Run, DiskPiece<'_>) -> Result<()>,
) -> Result<()> {
    for piece in disk.table.pieces(at, len)? {
        take(&piece?, DiskPiece::Lost)?;
    }
    Ok(())
}

impl ArchiveIndex<'_> {
    /// Gives `take` the rows of the allocation table of `disk`, which stands before its bytes. Of an
    /// incremental archive, which can't be restored without them, the second copy gives what the first one
    /// does not.
    ///
    /// # Errors
    /// Damaged or Incomplete, where it can't be read; those of `take`.
    pub fn allocation(
        &self,
        disk: &IndexedDisk,
        take: &mut dyn FnMut(AllocationRow) -> Result<()>,
    ) -> Result<()> {
        let (mut next, refused) = (GuestOffset::ZERO, Cell::new(false));
        let mut fresh = |row: AllocationRow| {
            if row.guest < next {
                return Ok(());
            }
            next = row.guest.saturating_add(row.len);
            take(row).inspect_err(|_| refused.set(true))
        };
        let kind = self.head.kind;
        let from_front = members::allocation(&self.stream, &disk.disk, kind, &mut fresh);
        let (Err(error), Some(tail)) = (&from_front, &self.tail) else { return from_front };
        let is_doubtful = matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Incomplete);
        if kind == BackupKind::Full || !is_doubtful || refused.get() {
            return from_front;
        }
        members::recovery_allocation(&self.stream, tail.record.recovery_at, &disk.disk, &mut fresh)
    }

    /// Fills `buf` with the dense bytes of `disk` at `at`.
    ///
    /// # Errors
    /// Damaged or Incomplete, where they are not what was written, or not there.
    pub fn read_dense_at(&self, disk: &IndexedDisk, at: DenseOffset, buf: &mut [u8]) -> Result<()> {
        self.stream.read_at(disk.dense_at.saturating_add(at.get()), buf)
    }

    /// The members beside head, tables and disks (`domain.xml`, ...), in the archive's order: those to which
    /// `wanted` gives a limit in bytes, which is the memory that each may take; all together take `most`.
    /// Where [`ArchiveIndex::is_checked`], so is each of their bytes.
    ///
    /// # Errors
    /// Damaged or Incomplete: one can't be read, is longer than its limit, or comes twice; all are longer
    /// than `most`.
    pub fn attachments(&self, wanted: &dyn Fn(&str) -> Option<u64>, most: u64) -> Result<Vec<Attachment>> {
        members::attachments(&self.stream, wanted, most)
    }
}
