//! Ranges of a guest's disk that may have changed: whole blocks, ascending, apart, packed.
//!
//! Imports: `units`, `error`, `packed`.

use virtfold_base::error::Result;
use virtfold_base::packed::{self, PackedList, Record, put_varint, take_varint};
use virtfold_base::units::{BlockSize, GuestOffset};

/// A range that may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyRange {
    /// Its first byte.
    pub guest: GuestOffset,
    /// Its bytes, never 0.
    pub len: u64,
}

impl DirtyRange {
    /// The first byte behind it.
    pub fn end(&self) -> GuestOffset {
        self.guest.saturating_add(self.len)
    }
}

impl Record for DirtyRange {
    fn pack(&self, prev: &Self, out: &mut Vec<u8>) {
        put_varint(self.guest.since(prev.end()), out);
        put_varint(self.len, out);
    }

    fn unpack(prev: &Self, input: &mut &[u8]) -> Option<Self> {
        let gap = take_varint(input)?;
        Some(Self { guest: prev.end().saturating_add(gap), len: take_varint(input)? })
    }
}

/// The ranges. No two of them touch, none reaches past the capacity.
#[derive(Debug)]
pub struct DirtyRanges {
    list: PackedList<DirtyRange>,
    bytes: u64,
}

impl DirtyRanges {
    /// All of them, ascending.
    pub fn iter(&self) -> packed::Iter<'_, DirtyRange> {
        self.list.iter()
    }

    /// Bytes in all of them.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What is in any of `sets`, which are of one disk of `capacity` bytes.
    ///
    /// # Errors
    /// The lists can't be read back, or the new one can't spill.
    pub fn union(sets: &[Self], capacity: u64) -> Result<Self> {
        let mut walks: Vec<_> = sets.iter().map(Self::iter).collect();
        let mut heads = Vec::new();
        for walk in &mut walks {
            heads.push(walk.next().transpose()?);
        }
        let mut builder = RangeBuilder::new(BlockSize::MIN, capacity);
        loop {
            let first = heads.iter().enumerate().filter_map(|(at, head)| head.map(|head| (head.guest, at)));
            let Some((_, at)) = first.min() else { break };
            let (Some(head), Some(walk)) = (heads.get_mut(at), walks.get_mut(at)) else { break };
            if let Some(range) = std::mem::replace(head, walk.next().transpose()?) {
                builder.push(range.guest.get(), range.len)?;
            }
        }
        builder.finish()
    }
}

/// Takes ranges in the order of their starts; they may overlap.
#[derive(Debug)]
pub(super) struct RangeBuilder {
    made: DirtyRanges,
    block: BlockSize,
    capacity: u64,
    /// First byte, and the first one behind, of the range that may still grow.
    open: Option<(u64, u64)>,
}

impl RangeBuilder {
    /// Ranges of whole blocks of `block`, on a disk of `capacity` bytes.
    pub(super) fn new(block: BlockSize, capacity: u64) -> Self {
        Self { made: DirtyRanges { list: PackedList::new(), bytes: 0 }, block, capacity, open: None }
    }

    pub(super) fn push(&mut self, start: u64, len: u64) -> Result<()> {
        // Widened to blocks an end may lie behind the capacity, at most by a block.
        let end = start.saturating_add(len).min(self.capacity);
        if start >= end {
            return Ok(());
        }
        let (start, end) = (self.block.floor(start), self.block.ceil(end).min(self.capacity));
        match &mut self.open {
            Some((_, open)) if start <= *open => *open = end.max(*open),
            _ => {
                self.close()?;
                self.open = Some((start, end));
            }
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let Some((start, end)) = self.open.take() else { return Ok(()) };
        self.made.bytes += end - start;
        self.made.list.push(DirtyRange { guest: GuestOffset::new(start), len: end - start })
    }

    pub(super) fn finish(mut self) -> Result<DirtyRanges> {
        self.close()?;
        Ok(self.made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCKS: usize = 48;
    const CAPACITY: u64 = 48 * 4096 - 7;

    fn marks(ranges: &DirtyRanges) -> Vec<bool> {
        let mut marks = vec![false; BLOCKS];
        let mut last = None;
        for range in ranges.iter().map(|range| range.unwrap()) {
            assert!(last.is_none_or(|end| end < range.guest), "two ranges that are one");
            assert!(range.end().get() <= CAPACITY && range.len > 0);
            let (from, to) = (range.guest.get() / 4096, range.end().get().div_ceil(4096));
            marks[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()].fill(true);
            last = Some(range.end());
        }
        marks
    }

    proptest! {
        /// A flag for each block is the model.
        #[test]
        fn a_union_has_what_any_of_them_has(
            sets in proptest::collection::vec(proptest::collection::vec(any::<bool>(), BLOCKS), 0..5),
        ) {
            let mut made = Vec::new();
            for set in &sets {
                let mut builder = RangeBuilder::new(BlockSize::MIN, CAPACITY);
                for (number, _) in (0_u64..).zip(set).filter(|(_, dirty)| **dirty) {
                    builder.push(number * 4096 + 513, 100).unwrap();
                }
                made.push(builder.finish().unwrap());
                prop_assert_eq!(&marks(made.last().unwrap()), set);
            }
            let union = DirtyRanges::union(&made, CAPACITY).unwrap();
            let any: Vec<bool> = (0..BLOCKS).map(|at| sets.iter().any(|set| set[at])).collect();
            prop_assert_eq!(marks(&union), any);
            prop_assert_eq!(union.bytes(), union.iter().map(|range| range.unwrap().len).sum::<u64>());
        }
    }
}
