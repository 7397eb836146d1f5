//! The rows of a disk's allocation table as its archive has them, saved in a file.
//!
//! They can't be had again from the image: which parts of a block are holes is what the file system says, and
//! a range that was set aside and never written is a hole for it until somebody's read-ahead has it in
//! memory, and then data. What is used, in whole blocks, stays the same.
//!
//! A row is 17 bytes (length, kind, host offset) and begins where the one before it ends; behind the rows is
//! their BLAKE3.
//!
//! Imports: `error`, `units`, `archive`.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use virtfold_archive::allocation_csv::{AllocationKind, AllocationRow};
use virtfold_archive::writer::{DiskTables, Rows};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::units::{GuestOffset, HostOffset};

/// Rows of an allocation table in a file.
#[derive(Debug)]
pub(crate) struct SavedAllocation {
    file: File,
    count: u64,
}

/// Bytes of a row: length, kind, host offset.
const ROW: usize = 17;
/// The most rows that are saved: a disk in more pieces is not gone on with.
const MAX_ROWS: u64 = 4 << 20;
/// Bytes of the digest behind the rows.
const DIGEST: u64 = 32;

fn encode_row(row: &AllocationRow) -> [u8; ROW] {
    let kind = match row.kind {
        AllocationKind::Data => 0_u8,
        AllocationKind::Zero => 1,
        AllocationKind::Unallocated => 2,
        AllocationKind::Unchanged => 3,
    };
    let host = row.host.map_or(u64::MAX, HostOffset::get);
    let fields = row.len.to_le_bytes().into_iter().chain([kind]).chain(host.to_le_bytes());
    let mut out = [0; ROW];
    out.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    out
}

/// A row that begins at `guest`.
fn decode_row(guest: GuestOffset, bytes: &[u8; ROW]) -> Option<AllocationRow> {
    let (len, rest) = bytes.split_first_chunk()?;
    let (kind, host) = rest.split_first()?;
    let kind = match kind {
        0 => AllocationKind::Data,
        1 => AllocationKind::Zero,
        2 => AllocationKind::Unallocated,
        3 => AllocationKind::Unchanged,
        _ => return None,
    };
    let host = u64::from_le_bytes(*host.first_chunk()?);
    let host = (host != u64::MAX).then(|| HostOffset::new(host));
    Some(AllocationRow { guest, len: u64::from_le_bytes(*len), kind, host })
}

impl SavedAllocation {
    /// Saves the rows of a table.
    pub(super) fn write(path: &Path, tables: &dyn DiskTables) -> Result<()> {
        let cannot = || format!("cannot write '{}'", path.display());
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).at(cannot)?;
        let mut out = BufWriter::new(made);
        let mut hasher = blake3::Hasher::new();
        for (number, row) in (0..).zip(tables.rows()) {
            if number == MAX_ROWS {
                return Err(Error::new(ErrorKind::Unsupported, "a disk is in too many pieces"));
            }
            let bytes = encode_row(&row?);
            hasher.update(&bytes);
            out.write_all(&bytes).at(cannot)?;
        }
        out.write_all(hasher.finalize().as_bytes()).at(cannot)?;
        out.into_inner()
            .map_err(std::io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all())
            .at(cannot)
    }

    /// Opens saved rows, and holds them against their digest.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let cannot = || format!("cannot read '{}'", path.display());
        let wrong = || Error::new(ErrorKind::Damaged, format!("'{}' is damaged", path.display()));
        let file = File::open(path).at(cannot)?;
        let bytes = file.metadata().at(cannot)?.len().checked_sub(DIGEST).ok_or_else(wrong)?;
        let count = bytes / ROW as u64;
        if !bytes.is_multiple_of(ROW as u64) || count > MAX_ROWS {
            return Err(wrong());
        }
        let saved = Self { file, count };
        let mut hasher = blake3::Hasher::new();
        let mut at = BufReader::new(ReadFrom { file: &saved.file, at: 0 });
        std::io::copy(&mut Read::by_ref(&mut at).take(bytes), &mut hasher).at(cannot)?;
        let mut digest = [0; 32];
        at.read_exact(&mut digest).at(cannot)?;
        if hasher.finalize() == blake3::Hash::from_bytes(digest) { Ok(saved) } else { Err(wrong()) }
    }

    /// The rows.
    pub(crate) fn rows(&self) -> Rows<'_> {
        let mut input = BufReader::new(ReadFrom { file: &self.file, at: 0 });
        let mut guest = GuestOffset::ZERO;
        Box::new((0..self.count).map(move |_| {
            let mut bytes = [0; ROW];
            input.read_exact(&mut bytes).at(|| "cannot read back the rows of a disk".to_owned())?;
            let damaged = || Error::new(ErrorKind::Damaged, "the saved rows of a disk are damaged");
            let row = decode_row(guest, &bytes).ok_or_else(damaged)?;
            guest = guest.checked_add(row.len).ok_or_else(damaged)?;
            Ok(row)
        }))
    }
}

/// A file from a place on, whatever others do with it.
pub(crate) struct ReadFrom<'a> {
    pub(crate) file: &'a File,
    pub(crate) at: u64,
}

impl Read for ReadFrom<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let got = self.file.read_at(buf, self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtfold_archive::writer::MapEntries;

    struct Table(Vec<AllocationRow>);

    impl DiskTables for Table {
        fn rows(&self) -> Rows<'_> {
            Box::new(self.0.iter().map(|row| Ok(*row)))
        }

        fn runs(&self) -> MapEntries<'_> {
            Box::new(std::iter::empty())
        }
    }

    #[test]
    fn rows_come_back_as_they_were_and_no_flipped_byte_passes() {
        let mut guest = GuestOffset::ZERO;
        let kinds = [AllocationKind::Data, AllocationKind::Zero, AllocationKind::Unallocated];
        let rows = (1..=5_u64).zip(kinds.into_iter().cycle()).map(|(n, kind)| {
            let host = (n % 2 == 0).then(|| HostOffset::new(n << 40));
            let row = AllocationRow { guest, len: n * 512, kind, host };
            guest = guest.saturating_add(row.len);
            row
        });
        let rows: Vec<_> = rows.collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows");
        SavedAllocation::write(&path, &Table(rows.clone())).unwrap();
        let saved = SavedAllocation::open(&path).unwrap();
        for _ in 0..2 {
            assert_eq!(saved.rows().collect::<Result<Vec<_>>>().unwrap(), rows);
        }
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert_eq!(SavedAllocation::open(&path).unwrap_err().kind(), ErrorKind::Damaged, "{at}");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(SavedAllocation::open(&path).is_err(), "cut at {at}");
        }
    }
}
