//! Addresses as types: a place on the guest's disk is not a place in a host file, in the dense image or in
//! the archive's stream, and the compiler knows it.
//!
//! Lengths are plain `u64` byte counts; an address plus a length is an address of the same kind, and the
//! difference of two addresses of one kind is a length. All arithmetic is checked: an address that would
//! overflow is an error of the caller's input, never a wrap.
//!
//! This module imports nothing of the crate; everything may import it.

use std::fmt;

/// One MiB in bytes: the archive's digest unit and default frame.
pub const MIB: u64 = 1 << 20;
/// One KiB in bytes.
pub const KIB: u64 = 1 << 10;
/// One GiB in bytes.
pub const GIB: u64 = 1 << 30;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// The first address.
            pub const ZERO: Self = Self(0);

            /// The address `bytes` bytes from the start.
            pub const fn new(bytes: u64) -> Self {
                Self(bytes)
            }

            /// Bytes from the start.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The address `len` bytes further on; `None` where that overflows.
            pub const fn checked_add(self, len: u64) -> Option<Self> {
                match self.0.checked_add(len) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// The address `len` bytes further on, or the last one there is.
            pub const fn saturating_add(self, len: u64) -> Self {
                Self(self.0.saturating_add(len))
            }

            /// Bytes from `earlier` to here; zero when `earlier` lies behind.
            pub const fn since(self, earlier: Self) -> u64 {
                self.0.saturating_sub(earlier.0)
            }

            /// Whether the address is a multiple of `unit` (not zero) bytes.
            pub const fn is_aligned(self, unit: u64) -> bool {
                self.0.is_multiple_of(unit)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

address!(
    /// An address on the guest's disk: A in the block correspondence table.
    GuestOffset
);
address!(
    /// An address in a file or device of the host.
    HostOffset
);
address!(
    /// An address in the dense image: X in the block correspondence table.
    DenseOffset
);
address!(
    /// An address in the uncompressed stream of an archive.
    StreamOffset
);

/// The granularity of a fold: a power of two from 4 KiB to 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockSize(u64);

impl BlockSize {
    /// 4 KiB, the smallest.
    pub const MIN: Self = Self(4 * KIB);
    /// 2 MiB, the largest.
    pub const MAX: Self = Self(2 * MIB);
    /// 64 KiB.
    pub const DEFAULT: Self = Self(64 * KIB);

    /// `None` unless `bytes` is a power of two from 4 KiB to 2 MiB.
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= Self::MIN.0 && bytes <= Self::MAX.0 {
            Some(Self(bytes))
        } else {
            None
        }
    }

    /// The size in bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The last multiple of the block size at or before `offset`.
    pub const fn floor(self, offset: u64) -> u64 {
        offset & !(self.0 - 1)
    }

    /// The first multiple of the block size at or after `offset`; saturates at the last one.
    pub const fn ceil(self, offset: u64) -> u64 {
        match offset.checked_next_multiple_of(self.0) {
            Some(up) => up,
            None => self.floor(u64::MAX),
        }
    }
}

/// A byte count for people: `10.0 GiB`, `4.0 KiB`, `17 B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Human(pub u64);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < KIB {
            return write!(f, "{} B", self.0);
        }
        // In tenths of a unit, rounded to nearest, so that no float is needed.
        let mut tenths = u128::from(self.0) * 10;
        for unit in UNITS {
            tenths = (tenths + 512) >> 10;
            if tenths < 10_240 || unit == "EiB" {
                return write!(f, "{}.{} {unit}", tenths / 10, tenths % 10);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn human_sizes_round_to_tenths_and_carry() {
        let shown = |n| Human(n).to_string();
        assert_eq!(shown(0), "0 B");
        assert_eq!(shown(1023), "1023 B");
        assert_eq!(shown(1024), "1.0 KiB");
        assert_eq!(shown(1536), "1.5 KiB");
        assert_eq!(shown(10 * GIB), "10.0 GiB");
        assert_eq!(shown(MIB - 1), "1.0 MiB");
        assert_eq!(shown(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn block_sizes_are_bounded_powers_of_two() {
        assert_eq!(BlockSize::new(2048), None);
        assert_eq!(BlockSize::new(5000), None);
        assert_eq!(BlockSize::new(4 * MIB), None);
        let block = BlockSize::DEFAULT;
        assert_eq!(block.floor(65_537), 65_536);
        assert_eq!(block.ceil(65_537), 131_072);
        assert_eq!(block.ceil(u64::MAX), block.floor(u64::MAX));
    }
}
