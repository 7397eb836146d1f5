//! The holes of a host file that qcow2 tables point into: what the tables call data and the host never
//! stored.
//!
//! The file is asked once, in its own order, before the walk: data extents come scattered, and asking for
//! each would cost a look through the file system's map every time. The list is bounded; holes behind a
//! million of them count as data, which costs a copy of zeros and nothing else.
//!
//! Imports: `error`, `file`, `raw`.

use super::file::HostFile;
use super::raw::{RawExtent, next_data, next_hole};
use virtfold_base::error::Result;

/// The most holes kept of one file: 16 MiB of memory.
const LIMIT: usize = 1 << 20;

/// The holes of one file, ascending; the last one is all that lies behind its end.
#[derive(Debug)]
pub(super) struct Holes {
    ranges: Vec<(u64, u64)>,
}

impl Holes {
    /// Asks the file system.
    pub(super) fn of(file: &HostFile) -> Result<Self> {
        let mut ranges = Vec::new();
        let mut at = next_data(file, 0)?;
        if at > 0 {
            ranges.push((0, at));
        }
        while at < file.len && ranges.len() < LIMIT {
            let hole = next_hole(file, at)?;
            at = next_data(file, hole)?;
            ranges.push((hole, at));
        }
        if at < file.len {
            ranges.push((file.len, u64::MAX));
        }
        Ok(Self { ranges })
    }

    /// What begins at `at`.
    pub(super) fn at(&self, at: u64) -> RawExtent {
        let next = self.ranges.partition_point(|(_, end)| *end <= at);
        match self.ranges.get(next) {
            Some((start, end)) if *start <= at => RawExtent::Hole(*end),
            Some((start, _)) => RawExtent::Data(*start),
            None => RawExtent::Data(u64::MAX),
        }
    }
}
