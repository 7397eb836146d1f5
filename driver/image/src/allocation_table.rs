//! The allocation table: what is recorded on a disk and where, from the guest's first byte to its last.
//!
//! Extents ascend without gaps, so only lengths need be stored; they pack to a few bytes each
//! (`packed::PackedList`). Neighbours that continue each other in guest and host are one extent.
//!
//! Invariants: the first extent begins at 0, each begins where the one before it ends, the last ends at the
//! capacity; no extent is empty; a compressed extent never spans two clusters.
//!
//! Imports: `units`, `error`, `packed`, `file`.

use super::file::FileIndex;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::packed::{self, PackedList, Record, put_delta, put_varint, take_delta, take_varint};
use virtfold_base::units::{GuestOffset, HostOffset};

/// What a part of the guest's disk is, and where on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// No image of the chain has it: reads as zeros. `reserved` is the place that the image keeps for it
    /// already (an extended-L2 subcluster that was never written, in a cluster that is allocated).
    Unallocated {
        /// Where it would be written.
        reserved: Option<HostOffset>,
    },
    /// An image says that it reads as zeros: a zero cluster, or a hole of a raw file. `host` is the space
    /// that it nevertheless keeps.
    Zero {
        /// Where the space is.
        host: Option<HostOffset>,
    },
    /// Recorded bytes, to be copied.
    Data {
        /// The file that has them.
        file: FileIndex,
        /// Where in it.
        host: HostOffset,
    },
    /// An image's tables say data, and the host file has a hole there (metadata preallocation, a sparse data
    /// file): reads as zeros, nothing to copy.
    Hole {
        /// The file that has the hole.
        file: FileIndex,
        /// Where in it.
        host: HostOffset,
    },
    /// A part of one compressed cluster: mostly all of it.
    Compressed {
        /// The file that has it.
        file: FileIndex,
        /// Where its stream begins, at any byte.
        host: HostOffset,
        /// Bytes to read there; the stream may end before them.
        stored: u32,
        /// Bytes of the inflated cluster before this extent.
        skip: u32,
    },
}

impl Allocation {
    /// Whether there are bytes to copy; everything else reads as zeros.
    pub fn has_bytes(&self) -> bool {
        matches!(self, Self::Data { .. } | Self::Compressed { .. })
    }

    /// The place `by` bytes further on in the same extent.
    fn advance(self, by: u64) -> Self {
        let on = |host: HostOffset| host.saturating_add(by);
        match self {
            Self::Unallocated { reserved } => Self::Unallocated { reserved: reserved.map(on) },
            Self::Zero { host } => Self::Zero { host: host.map(on) },
            Self::Data { file, host } => Self::Data { file, host: on(host) },
            Self::Hole { file, host } => Self::Hole { file, host: on(host) },
            // A cluster has 2 MiB at most, so `skip` stays far below its limit.
            Self::Compressed { file, host, stored, skip } => {
                let skip = skip.saturating_add(u32::try_from(by).unwrap_or(u32::MAX));
                Self::Compressed { file, host, stored, skip }
            }
        }
    }
}

/// A run of the guest's disk that is one thing in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its first byte.
    pub guest: GuestOffset,
    /// Its bytes, never 0.
    pub len: u64,
    /// The image of the chain that decides, 0 the top one.
    pub depth: u32,
    /// What and where it is.
    pub place: Allocation,
}

impl Extent {
    /// The first byte behind it.
    pub fn end(&self) -> GuestOffset {
        self.guest.saturating_add(self.len)
    }

    /// The part of the extent from `from` (not before its start) that ends before `to`; `None` where that is
    /// empty.
    #[must_use]
    pub fn clip(&self, from: GuestOffset, to: GuestOffset) -> Option<Self> {
        let (start, end) = (from.max(self.guest), to.min(self.end()));
        let len = end.since(start);
        let place = self.place.advance(start.since(self.guest));
        (len > 0).then_some(Self { guest: start, len, depth: self.depth, place })
    }

    /// Whether `next` goes on where this extent ends, in guest and host, so that both are one.
    pub(super) fn continues_in(&self, next: &Self) -> bool {
        self.end() == next.guest && self.depth == next.depth && self.place.advance(self.len) == next.place
    }

    /// The host address that deltas are taken from.
    fn anchor(&self) -> u64 {
        match self.place {
            Allocation::Unallocated { reserved: Some(host) }
            | Allocation::Zero { host: Some(host) }
            | Allocation::Data { host, .. }
            | Allocation::Hole { host, .. } => host.get().wrapping_add(self.len),
            Allocation::Compressed { host, stored, .. } => host.get().wrapping_add(u64::from(stored)),
            Allocation::Unallocated { reserved: None } | Allocation::Zero { host: None } => self.len,
        }
    }

    fn tag(&self) -> u64 {
        match self.place {
            Allocation::Unallocated { reserved: None } => 0,
            Allocation::Unallocated { reserved: Some(_) } => 1,
            Allocation::Zero { host: None } => 2,
            Allocation::Zero { host: Some(_) } => 3,
            Allocation::Data { .. } => 4,
            Allocation::Hole { .. } => 5,
            Allocation::Compressed { .. } => 6,
        }
    }
}

impl Record for Extent {
    fn pack(&self, prev: &Self, out: &mut Vec<u8>) {
        put_varint(self.tag() | u64::from(self.depth) << 3, out);
        put_varint(self.len, out);
        match self.place {
            Allocation::Unallocated { reserved: None } | Allocation::Zero { host: None } => {}
            Allocation::Unallocated { reserved: Some(host) } | Allocation::Zero { host: Some(host) } => {
                put_delta(prev.anchor(), host.get(), out);
            }
            Allocation::Data { file, host } | Allocation::Hole { file, host } => {
                put_varint(u64::from(file.0), out);
                put_delta(prev.anchor(), host.get(), out);
            }
            Allocation::Compressed { file, host, stored, skip } => {
                put_varint(u64::from(file.0), out);
                put_delta(prev.anchor(), host.get(), out);
                put_varint(u64::from(stored), out);
                put_varint(u64::from(skip), out);
            }
        }
    }

    fn unpack(prev: &Self, input: &mut &[u8]) -> Option<Self> {
        let head = take_varint(input)?;
        let len = take_varint(input)?;
        let small = |input: &mut &[u8]| u32::try_from(take_varint(input)?).ok();
        let host = |input: &mut &[u8]| take_delta(prev.anchor(), input).map(HostOffset::new);
        let place = match head & 7 {
            0 => Allocation::Unallocated { reserved: None },
            1 => Allocation::Unallocated { reserved: Some(host(input)?) },
            2 => Allocation::Zero { host: None },
            3 => Allocation::Zero { host: Some(host(input)?) },
            4 => Allocation::Data { file: FileIndex(small(input)?), host: host(input)? },
            5 => Allocation::Hole { file: FileIndex(small(input)?), host: host(input)? },
            6 => Allocation::Compressed {
                file: FileIndex(small(input)?),
                host: host(input)?,
                stored: small(input)?,
                skip: small(input)?,
            },
            _ => return None,
        };
        Some(Self { guest: prev.end(), len, depth: u32::try_from(head >> 3).ok()?, place })
    }
}

/// A walk along an [`AllocationTable`].
pub type ExtentIter<'a> = packed::Iter<'a, Extent>;

/// The table. Made once by [`super::DiskImage::allocation`], then read by many threads.
#[derive(Debug, Default)]
pub struct AllocationTable {
    list: PackedList<Extent>,
    capacity: u64,
    allocated: u64,
}

impl AllocationTable {
    /// Bytes of the guest's disk.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Guest bytes that have to be copied: data and compressed clusters.
    pub fn allocated(&self) -> u64 {
        self.allocated
    }

    /// Extents in the table.
    pub fn len(&self) -> u64 {
        self.list.len()
    }

    /// Whether the disk has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// All extents, ascending.
    pub fn iter(&self) -> ExtentIter<'_> {
        self.list.iter()
    }

    /// The extent that has `at` in it.
    ///
    /// # Errors
    /// `Usage` when `at` is not on the disk.
    pub fn find(&self, at: GuestOffset) -> Result<Extent> {
        let found = self.list.find_last(|extent| extent.guest <= at)?;
        found.filter(|extent| at < extent.end()).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("offset {at} is behind the disk's end at {}", self.capacity))
        })
    }
}

/// Makes a table from extents that come in order.
#[derive(Debug, Default)]
pub(super) struct TableBuilder {
    table: AllocationTable,
    /// The extent that may still grow.
    open: Option<Extent>,
}

impl TableBuilder {
    /// Takes the next extent; it begins where the last one ended.
    pub(super) fn push(&mut self, next: Extent) -> Result<()> {
        match &mut self.open {
            Some(open) if open.continues_in(&next) => open.len += next.len,
            Some(open) => {
                let done = std::mem::replace(open, next);
                self.close(done)?;
            }
            None => self.open = Some(next),
        }
        Ok(())
    }

    fn close(&mut self, extent: Extent) -> Result<()> {
        self.table.capacity += extent.len;
        if extent.place.has_bytes() {
            self.table.allocated += extent.len;
        }
        self.table.list.push(extent)
    }

    /// The finished table.
    pub(super) fn finish(mut self) -> Result<AllocationTable> {
        if let Some(last) = self.open.take() {
            self.close(last)?;
        }
        Ok(self.table)
    }
}
