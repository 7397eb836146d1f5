//! A disk with what changed of it: the runs that are copied, and the rows of the allocation table.

use std::iter::Peekable;

use super::ChangedBlocks;
use virtfold_archive::allocation_csv::{AllocationKind, AllocationRow};
use virtfold_archive::table::{Builder, CorrespondenceTable, Run};
use virtfold_archive::writer::Rows;
use virtfold_base::error::Result;
use virtfold_base::packed;
use virtfold_base::units::{GuestOffset, HostOffset};

/// The part of a table that changed.
///
/// # Errors
/// A table can't be read back, or the new one can't spill.
pub(crate) fn clip(table: &CorrespondenceTable, changed: &ChangedBlocks) -> Result<CorrespondenceTable> {
    let mut builder = Builder::new(table.capacity());
    let mut ranges = changed.iter();
    let mut range = ranges.next().transpose()?;
    for run in table.iter() {
        let run = run?;
        let end = run.guest.saturating_add(run.len);
        while let Some(now) = range {
            let start = now.guest.max(run.guest);
            let stop = now.guest.saturating_add(now.len).min(end);
            if stop > start {
                builder.push(start, stop.since(start))?;
            }
            if now.guest.saturating_add(now.len) > end {
                break;
            }
            range = ranges.next().transpose()?;
        }
    }
    builder.finish()
}

/// The rows of an allocation table with what did not change as `unchanged`.
pub(crate) fn rows<'a>(rows: Rows<'a>, changed: &'a ChangedBlocks) -> Rows<'a> {
    let capacity = GuestOffset::new(changed.capacity());
    Box::new(ChangedRows {
        rows: rows.peekable(),
        changed: changed.iter(),
        range: None,
        capacity,
        left: None,
    })
}

/// Cuts rows where a change begins or ends, and gives each stretch of what did not change one row.
struct ChangedRows<'a> {
    rows: Peekable<Rows<'a>>,
    changed: packed::Iter<'a, Run>,
    /// The change at hand; behind the last one there is an empty one at the disk's end.
    range: Option<(GuestOffset, GuestOffset)>,
    capacity: GuestOffset,
    /// What is left of the row at hand.
    left: Option<AllocationRow>,
}

impl ChangedRows<'_> {
    fn range(&mut self) -> Result<(GuestOffset, GuestOffset)> {
        if let Some(range) = self.range {
            return Ok(range);
        }
        let next = self.changed.next().transpose()?;
        let range =
            next.map_or((self.capacity, self.capacity), |run| (run.guest, run.guest.saturating_add(run.len)));
        self.range = Some(range);
        Ok(range)
    }

    fn row(&mut self) -> Result<Option<AllocationRow>> {
        match self.left.take() {
            Some(row) => Ok(Some(row)),
            None => self.rows.next().transpose(),
        }
    }

    fn step(&mut self) -> Result<Option<AllocationRow>> {
        let Some(row) = self.row()? else { return Ok(None) };
        let (mut start, mut end) = self.range()?;
        while end <= row.guest && start < self.capacity {
            self.range = None;
            (start, end) = self.range()?;
        }
        if row.guest < start {
            return self.unchanged(row, start).map(Some);
        }
        let (now, left) = split(row, end);
        self.left = left;
        Ok(Some(now))
    }

    /// One row from `first` to `until`, where the next change begins, whatever lies there.
    fn unchanged(&mut self, first: AllocationRow, until: GuestOffset) -> Result<AllocationRow> {
        let start = first.guest;
        let mut last = first;
        loop {
            let (now, left) = split(last, until);
            self.left = left;
            let end = now.guest.saturating_add(now.len);
            if end >= until {
                break;
            }
            match self.row()? {
                Some(next) => last = next,
                None => {
                    let len = end.since(start);
                    return Ok(AllocationRow {
                        guest: start,
                        len,
                        kind: AllocationKind::Unchanged,
                        host: None,
                    });
                }
            }
        }
        let len = until.since(start);
        Ok(AllocationRow { guest: start, len, kind: AllocationKind::Unchanged, host: None })
    }
}

/// The part of a row before `at`, and the part behind.
fn split(row: AllocationRow, at: GuestOffset) -> (AllocationRow, Option<AllocationRow>) {
    let len = at.since(row.guest).min(row.len);
    if len == row.len || len == 0 {
        return (row, None);
    }
    let host = row.host.map(|host: HostOffset| host.saturating_add(len));
    let behind = AllocationRow { guest: at, len: row.len - len, kind: row.kind, host };
    (AllocationRow { len, ..row }, Some(behind))
}

impl Iterator for ChangedRows<'_> {
    type Item = Result<AllocationRow>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCK: u64 = 4096;
    const BLOCKS: u64 = 64;
    const COUNT: usize = 64;

    fn table(marks: &[bool]) -> CorrespondenceTable {
        let mut builder = Builder::new(BLOCKS * BLOCK - 5);
        for (number, _) in (0_u64..).zip(marks).filter(|(_, marked)| **marked) {
            let len = BLOCK.min(BLOCKS * BLOCK - 5 - number * BLOCK);
            builder.push(GuestOffset::new(number * BLOCK), len).unwrap();
        }
        builder.finish().unwrap()
    }

    proptest! {
        /// Each block by itself is the model.
        #[test]
        fn each_block_is_copied_or_unchanged_as_it_should_be(
            used in proptest::collection::vec(any::<bool>(), COUNT),
            changed in proptest::collection::vec(any::<bool>(), COUNT),
            cuts in proptest::collection::btree_set(1_u64..BLOCKS * BLOCK - 5, 0..40),
        ) {
            let changes = table(&changed);
            let clipped = clip(&table(&used), &changes).unwrap();
            let both: Vec<bool> = used.iter().zip(&changed).map(|(a, b)| *a && *b).collect();
            let runs = |table: &CorrespondenceTable| -> Vec<_> {
                table.iter().map(|run| run.unwrap()).map(|run| (run.guest, run.len)).collect()
            };
            prop_assert_eq!(runs(&clipped), runs(&table(&both)));

            let ends: Vec<u64> = cuts.iter().copied().chain([BLOCKS * BLOCK - 5]).collect();
            let mut start = 0;
            let mut given = Vec::new();
            for end in ends {
                let host = Some(HostOffset::new(start + 1_000_000));
                let kind = AllocationKind::Data;
                given.push(AllocationRow { guest: GuestOffset::new(start), len: end - start, kind, host });
                start = end;
            }
            let made: Vec<AllocationRow> =
                rows(Box::new(given.into_iter().map(Ok)), &changes).map(|row| row.unwrap()).collect();
            let mut at = 0;
            let mut last = None;
            for row in &made {
                prop_assert_eq!(row.guest.get(), at);
                prop_assert!(row.len > 0);
                at += row.len;
                let is_changed = |offset: u64| changed[usize::try_from(offset / BLOCK).unwrap()];
                let (first, end) = (row.guest.get(), at - 1);
                match row.kind {
                    AllocationKind::Unchanged => {
                        prop_assert!(!is_changed(first) && !is_changed(end) && row.host.is_none());
                        prop_assert!(last != Some(AllocationKind::Unchanged), "two rows that are one");
                    }
                    _ => {
                        prop_assert!(is_changed(first) && is_changed(end));
                        prop_assert_eq!(row.host, Some(HostOffset::new(first + 1_000_000)));
                    }
                }
                last = Some(row.kind);
            }
            prop_assert_eq!(at, BLOCKS * BLOCK - 5);
        }
    }
}
