//! How large the parts of an upload are, and how many are in memory.
//!
//! S3 takes at most 10,000 parts and 5 TiB in one object, and 5 MiB at least in each part but the last. So
//! parts are 6 MiB, and larger where the archive is expected not to fit. Should it outgrow that, the last
//! parts grow.

use virtfold_base::units::MIB;

/// The most that S3 takes in one upload.
pub(super) const MOST: u64 = 10_000;
/// The largest object, bytes.
pub(super) const LARGEST: u64 = 5 << 40;
/// What a part has where that is enough, bytes.
const USUAL: u64 = 6 * MIB;
/// A part has no more than this, bytes.
const LARGEST_PART: u64 = 5 << 30;
/// Parts that the expected size is laid out for.
const PLANNED: u64 = 9_000;
/// Parts after which those behind the planned ones double.
const STEP: u64 = 100;
/// What all buffers together have where parts are small, bytes.
const BUDGET: u64 = 24 * MIB;
/// The most parts on their way at one time.
const PARALLEL: u64 = 8;

/// The sizes of an upload's parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartSizes {
    size: u64,
}

impl PartSizes {
    /// For an archive of `expected` bytes, by estimate.
    pub(super) fn for_size(expected: u64) -> Self {
        let wanted = expected.min(LARGEST).div_ceil(PLANNED).next_multiple_of(MIB);
        Self { size: wanted.clamp(USUAL, LARGEST_PART) }
    }

    /// As it was for an earlier process; `None` for a size that no part can have.
    pub(super) fn of_size(size: u64) -> Option<Self> {
        (USUAL..=LARGEST_PART).contains(&size).then_some(Self { size })
    }

    /// Bytes of part `number`, counted from zero, unless it is the last.
    pub(super) fn size_of(self, number: u64) -> u64 {
        match number.checked_sub(PLANNED) {
            None => self.size,
            Some(beyond) => {
                let doublings = u32::try_from(beyond / STEP + 1).unwrap_or(u32::MAX).min(20);
                (self.size << doublings).min(LARGEST_PART)
            }
        }
    }

    /// How many are on their way at one time, beside the one that is being filled: with that one they stay
    /// within the budget, or are one.
    pub(super) fn in_flight(self) -> usize {
        let fit = (BUDGET / self.size).saturating_sub(1).clamp(1, PARALLEL);
        usize::try_from(fit).unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(parts: PartSizes) -> u64 {
        (0..MOST).map(|number| parts.size_of(number)).sum()
    }

    #[test]
    fn every_size_fits() {
        for expected in [0, 1, 1 << 30, 52 << 30, 53 << 30, 1 << 40, LARGEST - 1, LARGEST, u64::MAX] {
            let parts = PartSizes::for_size(expected);
            assert!(room(parts) >= expected.min(LARGEST), "{expected}");
            assert!((0..MOST).all(|n| (5 * MIB..=LARGEST_PART).contains(&parts.size_of(n))), "{expected}");
            assert!(
                parts.size_of(0) * 9_000 >= expected.min(LARGEST),
                "{expected}: the planned ones are alike"
            );
        }
    }

    #[test]
    fn memory_is_bounded_where_it_can_be() {
        let small = PartSizes::for_size(2 << 30);
        assert_eq!((small.size_of(0), small.in_flight()), (6 * MIB, 3));
        let large = PartSizes::for_size(LARGEST);
        assert_eq!((large.size_of(0), large.in_flight()), (583 * MIB, 1));
    }

    #[test]
    fn an_estimate_that_was_too_low_costs_memory_and_no_archive() {
        let parts = PartSizes::for_size(0);
        assert!(room(parts) > 1 << 40);
    }
}
