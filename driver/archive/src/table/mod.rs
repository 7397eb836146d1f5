//! The block correspondence table: which dense address X holds which guest address A.
//!
//! A fold takes the used ranges of a disk in guest order, widens each to whole blocks (the disk's tail block
//! may be short), merges what touches, and lays the resulting runs end to end: a run's X is the sum of the
//! lengths before it. So X ascends with A, both look-ups are one binary search, and the table is nothing
//! but a list of (guest offset, length), which is what the archive's sparse map holds.
//!
//! Invariants: runs ascend, never touch or overlap, are not empty and end within the capacity; all but the
//! one at the disk's end start and end on multiples of the block size when they come from [`fold`].
//!
//! Source of the method: FIG. 11 of the patent specification that ARCHITECTURE.md names. Imports: `units`,
//! `error`, `packed`.

use serde::{Deserialize, Serialize};

use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::packed::{self, PackedList, Record, put_varint, take_varint};
use virtfold_base::units::{BlockSize, DenseOffset, GuestOffset};

/// Which blocks a backup copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Used blocks only.
    #[default]
    Compact,
    /// Every block of the disk: the conventional all-block copy.
    Full,
}

/// `len` bytes (not zero) at `guest` on the disk are the bytes at `dense` of the dense image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// A: where the bytes belong.
    pub guest: GuestOffset,
    /// How many bytes.
    pub len: u64,
    /// X: where the bytes are.
    pub dense: DenseOffset,
}

impl Run {
    /// The part of the run that lies in the dense range `[from, to)`, if any.
    fn clip_dense(&self, from: DenseOffset, to: DenseOffset) -> Option<Self> {
        let skip = from.since(self.dense);
        let end = self.dense.saturating_add(self.len).min(to);
        let dense = self.dense.saturating_add(skip);
        let len = end.since(dense);
        (len > 0).then(|| Self { guest: self.guest.saturating_add(skip), len, dense })
    }
}

impl Run {
    /// Where the byte at `guest` is, if it is of the run.
    fn dense_of(&self, guest: GuestOffset) -> Option<DenseOffset> {
        let inside = (guest >= self.guest).then(|| guest.since(self.guest))?;
        (inside < self.len).then(|| self.dense.saturating_add(inside))
    }
}

impl Record for Run {
    fn pack(&self, prev: &Self, out: &mut Vec<u8>) {
        put_varint(self.guest.since(prev.guest.saturating_add(prev.len)), out);
        put_varint(self.len, out);
    }

    fn unpack(prev: &Self, input: &mut &[u8]) -> Option<Self> {
        let gap = take_varint(input)?;
        let len = take_varint(input)?;
        let guest = prev.guest.checked_add(prev.len)?.checked_add(gap)?;
        Some(Self { guest, len, dense: prev.dense.checked_add(prev.len)? })
    }
}

/// The table of one disk; see the module's description.
#[derive(Debug)]
pub struct CorrespondenceTable {
    runs: PackedList<Run>,
    capacity: u64,
    dense_len: u64,
}

impl CorrespondenceTable {
    /// The disk's size, bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The dense image's size, bytes.
    pub fn dense_len(&self) -> u64 {
        self.dense_len
    }

    /// How many runs there are.
    pub fn len(&self) -> u64 {
        self.runs.len()
    }

    /// Whether nothing of the disk is copied.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// All runs, ascending.
    pub fn iter(&self) -> packed::Iter<'_, Run> {
        self.runs.iter()
    }

    /// A to X; `None` where the table holds nothing at `guest`, which then reads as zeros.
    ///
    /// # Errors
    /// When a spilled table can't be read back.
    pub fn find_dense(&self, guest: GuestOffset) -> Result<Option<DenseOffset>> {
        let run = self.runs.find_last(|run| run.guest <= guest)?;
        Ok(run.and_then(|run| run.dense_of(guest)))
    }

    /// X to A; `None` behind the end of the dense image.
    ///
    /// # Errors
    /// When a spilled table can't be read back.
    pub fn find_guest(&self, dense: DenseOffset) -> Result<Option<GuestOffset>> {
        let run = self.runs.find_last(|run| run.dense <= dense)?;
        Ok(run.and_then(|run| {
            let inside = dense.since(run.dense);
            (inside < run.len).then(|| run.guest.saturating_add(inside))
        }))
    }

    /// A look-up of one run after the other.
    pub fn cursor(&self) -> RunCursor<'_> {
        RunCursor(self.runs.iter())
    }

    /// The pieces of runs that make up `len` dense bytes at `at`, in order.
    ///
    /// # Errors
    /// When a spilled table can't be read back; each piece may fail so, too.
    pub fn pieces(&self, at: DenseOffset, len: u64) -> Result<impl Iterator<Item = Result<Run>>> {
        let end = at.saturating_add(len);
        let from = self.runs.iter_from(|run| run.dense <= at)?;
        Ok(from
            .take_while(move |run| run.as_ref().map_or(true, |run| run.dense < end))
            .filter_map(move |run| run.map(|run| run.clip_dense(at, end)).transpose()))
    }
}

/// Looks up one run after the other, and keeps its place.
#[derive(Debug)]
pub struct RunCursor<'a>(packed::Iter<'a, Run>);

impl RunCursor<'_> {
    /// Whether a run has the byte at `guest`.
    ///
    /// # Errors
    /// When a spilled table can't be read back.
    pub fn covers(&mut self, guest: GuestOffset) -> Result<bool> {
        self.0.seek(|run| run.guest <= guest)?;
        let run = self.0.next().transpose()?;
        Ok(run.is_some_and(|run| run.guest <= guest && guest.since(run.guest) < run.len))
    }

    /// The first of the pieces that make up `len` dense bytes at `at`.
    ///
    /// # Errors
    /// When a spilled table can't be read back.
    pub fn first_piece(&mut self, at: DenseOffset, len: u64) -> Result<Option<Run>> {
        self.0.seek(|run| run.dense <= at)?;
        Ok(self.0.next().transpose()?.and_then(|run| run.clip_dense(at, at.saturating_add(len))))
    }

    /// As [`CorrespondenceTable::find_dense`].
    ///
    /// # Errors
    /// When a spilled table can't be read back.
    pub fn find_dense(&mut self, guest: GuestOffset) -> Result<Option<DenseOffset>> {
        self.0.seek(|run| run.guest <= guest)?;
        Ok(self.0.next().transpose()?.and_then(|run| run.dense_of(guest)))
    }
}

/// Makes a table run by run; neighbours that touch become one.
#[derive(Debug)]
pub struct Builder {
    table: CorrespondenceTable,
    pending: Option<Run>,
}

impl Builder {
    /// For a disk of `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        let table = CorrespondenceTable { runs: PackedList::new(), capacity, dense_len: 0 };
        Self { table, pending: None }
    }

    /// Appends `len` used bytes at `guest`; overlap with the run before is merged away.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when `guest` lies before the run before or the run ends behind the capacity:
    /// whoever reads runs from outside checks them first. Also when the table can't spill.
    pub fn push(&mut self, guest: GuestOffset, len: u64) -> Result<()> {
        let end = guest.checked_add(len).filter(|end| end.get() <= self.table.capacity);
        let end = end.ok_or_else(|| Error::new(ErrorKind::Internal, "a run ends behind the disk"))?;
        if len == 0 {
            return Ok(());
        }
        match &mut self.pending {
            Some(last) if guest < last.guest => {
                return Err(Error::new(ErrorKind::Internal, "runs are not in order"));
            }
            Some(last) if guest <= last.guest.saturating_add(last.len) => {
                last.len = last.len.max(end.since(last.guest));
            }
            _ => {
                self.flush()?;
                self.pending = Some(Run { guest, len, dense: DenseOffset::new(self.table.dense_len) });
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if let Some(run) = self.pending.take() {
            self.table.dense_len += run.len;
            self.table.runs.push(run)?;
        }
        Ok(())
    }

    /// The table.
    ///
    /// # Errors
    /// When the table can't spill.
    pub fn finish(mut self) -> Result<CorrespondenceTable> {
        self.flush()?;
        Ok(self.table)
    }
}

/// Folds a disk of `capacity` bytes: `used` are its used ranges (guest offset, bytes) in ascending order.
///
/// # Errors
/// Those of `used`, and the ones of [`Builder::push`].
pub fn fold(
    used: impl Iterator<Item = Result<(GuestOffset, u64)>>,
    capacity: u64,
    block: BlockSize,
    layout: Layout,
) -> Result<CorrespondenceTable> {
    let mut builder = Builder::new(capacity);
    if layout == Layout::Full {
        builder.push(GuestOffset::ZERO, capacity)?;
        return builder.finish();
    }
    for range in used {
        let (guest, len) = range?;
        let start = block.floor(guest.get());
        let end = block.ceil(guest.saturating_add(len).get()).min(capacity);
        if len > 0 && end > start {
            builder.push(GuestOffset::new(start), end - start)?;
        }
    }
    builder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCK: BlockSize = BlockSize::MIN;

    fn folded(used: &[(u64, u64)], capacity: u64, layout: Layout) -> CorrespondenceTable {
        let used = used.iter().map(|&(at, len)| Ok((GuestOffset::new(at), len)));
        fold(used, capacity, BLOCK, layout).unwrap()
    }

    fn runs(table: &CorrespondenceTable) -> Vec<(u64, u64, u64)> {
        table.iter().map(|r| r.unwrap()).map(|r| (r.guest.get(), r.len, r.dense.get())).collect()
    }

    #[test]
    fn widens_merges_and_sums() {
        let table = folded(&[(1, 1), (4095, 2), (8191, 1), (40_000, 10_000)], 49_000, Layout::Compact);
        assert_eq!(runs(&table), [(0, 8192, 0), (36_864, 12_136, 8192)]);
        assert_eq!(table.dense_len(), 20_328);
    }

    #[test]
    fn layout_full_is_one_run_and_an_empty_disk_none() {
        assert_eq!(runs(&folded(&[(1, 1)], 10_000, Layout::Full)), [(0, 10_000, 0)]);
        assert!(folded(&[], 10_000, Layout::Compact).is_empty());
        assert!(folded(&[], 0, Layout::Full).is_empty());
    }

    #[test]
    fn disorder_and_overruns_are_refused() {
        let mut builder = Builder::new(100);
        builder.push(GuestOffset::new(50), 10).unwrap();
        assert!(builder.push(GuestOffset::new(40), 5).is_err());
        assert!(builder.push(GuestOffset::new(90), 11).is_err());
        assert!(builder.push(GuestOffset::new(u64::MAX), 2).is_err());
    }

    proptest! {
        /// The model marks single blocks in a vector and numbers the marked ones.
        #[test]
        fn agrees_with_a_naive_model(
            marks in proptest::collection::vec((0_u64..200, 1_u64..3), 0..80),
            tail in 1_u64..4097,
            probes in proptest::collection::vec(any::<u64>(), 30),
        ) {
            let block = BLOCK.get();
            let capacity = 204 * block + tail;
            let mut used: Vec<(u64, u64)> = marks.iter().map(|m| (m.0 * block + 7, m.1 * 2000)).collect();
            used.sort_unstable();
            let table = folded(&used, capacity, Layout::Compact);

            let mut marked = vec![false; 205];
            for (at, len) in &used {
                for index in at / block..=(at + len - 1) / block {
                    marked[usize::try_from(index).unwrap()] = true;
                }
            }
            let mut dense_of = vec![None; 205];
            let mut guest_of = Vec::new();
            let mut dense = 0;
            for (index, _) in marked.iter().enumerate().filter(|(_, used)| **used) {
                let size = if index == 204 { tail } else { block };
                dense_of[index] = Some(dense);
                guest_of.push((dense, index as u64 * block, size));
                dense += size;
            }
            prop_assert_eq!(table.dense_len(), dense);
            for probe in probes {
                let guest = probe % capacity;
                let expect = dense_of[usize::try_from(guest / block).unwrap()].map(|x| x + guest % block);
                let found = table.find_dense(GuestOffset::new(guest)).unwrap();
                prop_assert_eq!(found.map(DenseOffset::get), expect);
                let x = probe % (dense + 10);
                let expect = guest_of.iter().find(|(at, _, size)| (*at..at + size).contains(&x));
                let found = table.find_guest(DenseOffset::new(x)).unwrap();
                prop_assert_eq!(found.map(GuestOffset::get), expect.map(|(at, guest, _)| guest + x - at));
            }
            // Pieces of any dense window cover it exactly, in order, and agree with the look-up.
            let (from, to) = (dense / 3, dense - dense / 4);
            let (mut at, mut cursor) = (from, table.cursor());
            for piece in table.pieces(DenseOffset::new(from), to - from).unwrap() {
                let piece = piece.unwrap();
                prop_assert_eq!(piece.dense.get(), at);
                prop_assert_eq!(cursor.first_piece(piece.dense, piece.len).unwrap(), Some(piece));
                prop_assert_eq!(table.find_guest(piece.dense).unwrap(), Some(piece.guest));
                at += piece.len;
            }
            prop_assert_eq!(at, to);
        }
    }
}
