//! What a medium could not give of an archive that it gave all the same.
//!
//! Imports: nothing of the crate.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Ranges of an archive in whose place its medium gave zeros, and what it says of them. Filled in while the
/// archive is read, each range before its bytes are given out; a clone is another handle.
#[derive(Clone, Debug, Default)]
pub struct LostRanges(Arc<Mutex<LostRangeList>>);

#[derive(Debug, Default)]
struct LostRangeList {
    /// In order, without touching each other.
    ranges: Vec<Range<u64>>,
    notes: Vec<String>,
}

impl LostRanges {
    fn known(&self) -> MutexGuard<'_, LostRangeList> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a range behind those that are known.
    pub fn add(&self, range: Range<u64>) {
        let mut known = self.known();
        match known.ranges.last_mut().filter(|last| last.end >= range.start) {
            Some(last) => last.end = last.end.max(range.end),
            None => known.ranges.push(range),
        }
    }

    /// Adds what a person should know.
    pub(crate) fn note(&self, text: String) {
        self.known().notes.push(text);
    }

    /// What lies within a range of the archive, in order.
    pub fn within(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let known = self.known();
        let first = known.ranges.partition_point(|gap| gap.end <= range.start);
        let here = known.ranges.iter().skip(first).take_while(|gap| gap.start < range.end);
        here.map(|gap| gap.start.max(range.start)..gap.end.min(range.end)).collect()
    }

    /// What the medium says.
    pub fn notes(&self) -> Vec<String> {
        self.known().notes.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_and_cut_out() {
        let gaps = LostRanges::default();
        [10..20, 20..25, 40..50].into_iter().for_each(|range| gaps.add(range));
        assert_eq!(gaps.within(0..100), [10..25, 40..50]);
        assert_eq!(gaps.within(12..45), [12..25, 40..45]);
        assert!(gaps.within(25..40).is_empty() && gaps.within(50..60).is_empty());
    }
}
