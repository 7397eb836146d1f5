//! The walk of one image's tables: L1 entry by L1 entry, L2 table by L2 table, in guest order.
//!
//! A window of the L1 table and a slice of one L2 table are in memory at a time (64 KiB each), so the walk
//! costs the same memory for any image. Runs of entries that continue each other come out as one extent; runs
//! of zero entries, which are most of a sparse disk's tables, are skipped 64 bytes at a time. The kernel
//! is told some tables ahead which ones come next, in host order.
//!
//! Every address is checked before it is used: tables are whole clusters inside the file, data begins inside
//! its file. A cluster's tail may lie behind the end of the file: QEMU writes no more of the last cluster
//! than it must, and reads the rest as zeros.
//!
//! Imports: `error`, `units`, `entry`, `file`, `allocation_table`.

use super::entry::{self, Cluster, OFFSET_MASK, SUBCLUSTERS, Subcluster};
use super::{Qcow2, damaged};
use crate::allocation_table::{Allocation, Extent};
use crate::file::HostFile;
use crate::read_ahead;
use virtfold_base::error::Result;
use virtfold_base::units::{GuestOffset, HostOffset};

/// Bytes of an L2 table that are read at once.
const SLICE: u64 = 64 << 10;
/// Entries of the L1 table that are read at once.
const WINDOW: u64 = 8 << 10;
/// Bytes of L2 tables that the kernel is asked to read ahead.
const AHEAD: u64 = 32 << 20;

/// A place in the walk of one image. Asked for ascending addresses.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    image: &'a Qcow2,
    tables: &'a HostFile,
    data: &'a HostFile,
    depth: u32,
    /// The L1 entries from `l1_first` on.
    l1: Vec<u64>,
    l1_first: u64,
    /// The tables below this L1 index were asked for.
    asked: u64,
    /// The bytes of the L2 slice at host offset `slice_at`; nothing is at 0 but the header.
    slice: Vec<u8>,
    slice_at: u64,
}

impl<'a> Cursor<'a> {
    /// A walk of `image`, whose files are `files`, at `depth` of the chain.
    pub(crate) fn new(image: &'a Qcow2, files: &'a [HostFile], depth: u32) -> Result<Self> {
        let of = |index| crate::file_of(files, index);
        Ok(Self {
            image,
            tables: of(image.file)?,
            data: of(image.data)?,
            depth,
            l1: Vec::new(),
            l1_first: 0,
            asked: 0,
            slice: Vec::new(),
            slice_at: 0,
        })
    }

    /// The run that begins at `at`, below the capacity. It ends at the capacity at the latest.
    pub(crate) fn extent_at(&mut self, at: GuestOffset) -> Result<Extent> {
        let header = &self.image.header;
        let span = header.l2_span();
        let index = at.get() / span;
        self.load_l1(index)?;
        if index >= self.asked {
            self.ask_ahead(index)?;
        }
        let left = header.capacity - at.get();
        match self.l2_table(index)? {
            None => {
                let absent = self.absent_tables(index);
                let len = (absent * span - at.get() % span).min(left);
                Ok(self.extent(at, len, Allocation::Unallocated { reserved: None }))
            }
            Some(table) => {
                let found = self.in_table(at, table)?;
                Ok(Extent { len: found.len.min(left), ..found })
            }
        }
    }

    fn extent(&self, guest: GuestOffset, len: u64, place: Allocation) -> Extent {
        Extent { guest, len, depth: self.depth, place }
    }

    fn damage<T>(&self, guest: GuestOffset, host: u64, what: &str) -> Result<T> {
        Err(damaged(self.tables, format_args!("{what}: guest offset {guest}, host offset {host}")))
    }

    fn load_l1(&mut self, index: u64) -> Result<()> {
        if index >= self.l1_first && index - self.l1_first < self.l1.len() as u64 {
            return Ok(());
        }
        self.l1 = l1_window(self.image, self.tables, index)?;
        self.l1_first = index;
        Ok(())
    }

    /// Asks for the tables of the window from `index` on, as many as [`AHEAD`] allows.
    fn ask_ahead(&mut self, index: u64) -> Result<()> {
        let size = self.image.header.cluster_size();
        let window_end = self.l1_first + self.l1.len() as u64;
        let end = window_end.min(index.saturating_add((AHEAD / size).max(1)));
        let tables = (index..end).map(|i| self.l1_entry(i)).filter(|offset| *offset != 0);
        let mut ranges: Vec<_> = tables.map(|offset| (self.image.file, offset, size)).collect();
        ranges.sort_unstable();
        for (_, offset, len) in read_ahead::merge(&ranges, 0) {
            read_ahead::ask(self.tables, offset, len)?;
        }
        self.asked = end;
        Ok(())
    }

    fn l1_entry(&self, index: u64) -> u64 {
        let at = usize::try_from(index - self.l1_first).unwrap_or(usize::MAX);
        self.l1.get(at).map_or(0, |entry| entry & OFFSET_MASK)
    }

    /// How many tables in a row are absent from `index` on, as far as the window shows.
    fn absent_tables(&self, index: u64) -> u64 {
        let end = self.l1_first + self.l1.len() as u64;
        (index..end).take_while(|i| self.l1_entry(*i) == 0).count() as u64
    }

    /// Where the L2 table of an L1 entry in the window is.
    fn l2_table(&self, index: u64) -> Result<Option<u64>> {
        let header = &self.image.header;
        let offset = self.l1_entry(index);
        let guest = GuestOffset::new(index * header.l2_span());
        if offset == 0 {
            return Ok(None);
        }
        if !offset.is_multiple_of(header.cluster_size()) {
            return self.damage(guest, offset, "an L2 table is not at a cluster");
        }
        if offset + header.cluster_size() > self.tables.len {
            return self.damage(guest, offset, "an L2 table lies behind the end of the file");
        }
        Ok(Some(offset))
    }

    /// The run at `at`, described by the L2 table at host offset `table`.
    fn in_table(&mut self, at: GuestOffset, table: u64) -> Result<Extent> {
        let header = &self.image.header;
        let slot = (at.get() % header.l2_span()) >> header.cluster_bits;
        let in_table = slot * header.entry_len();
        self.load_slice(table + in_table / SLICE * SLICE)?;
        let start = usize::try_from(in_table % SLICE).unwrap_or(0);
        let zeros = zero_run(self.slice.get(start..).unwrap_or_default()) as u64 / header.entry_len();
        if zeros > 0 {
            let len = (zeros << header.cluster_bits) - at.get() % header.cluster_size();
            return Ok(self.extent(at, len, Allocation::Unallocated { reserved: None }));
        }
        self.entries_from(at, start)
    }

    fn load_slice(&mut self, at: u64) -> Result<()> {
        if self.slice_at == at {
            return Ok(());
        }
        let len = SLICE.min(self.image.header.cluster_size());
        self.slice.resize(usize::try_from(len).unwrap_or(0), 0);
        self.slice_at = 0;
        self.tables.read(HostOffset::new(at), &mut self.slice)?;
        self.slice_at = at;
        Ok(())
    }

    /// The run at `at`, whose entry is at byte `start` of the slice, as far as entries continue each other.
    fn entries_from(&self, at: GuestOffset, start: usize) -> Result<Extent> {
        let step = if self.image.header.extended_l2 { 16 } else { 8 };
        let mut run = self.entry_extent(at, start)?;
        let mut place = start;
        // A run that ends inside a cluster (subclusters) ends here; compressed clusters stay alone.
        while run.end().is_aligned(self.image.header.cluster_size())
            && run.end().get() < self.image.header.capacity
        {
            place += step;
            if self.word(place).is_none_or(|word| word == 0) {
                break;
            }
            let next = self.entry_extent(run.end(), place)?;
            if !run.continues_in(&next) {
                break;
            }
            run.len += next.len;
        }
        Ok(run)
    }

    fn word(&self, at: usize) -> Option<u64> {
        self.slice.get(at..)?.first_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes))
    }

    /// The run from `at` to the end of its cluster, or of its like subclusters.
    fn entry_extent(&self, at: GuestOffset, start: usize) -> Result<Extent> {
        let header = &self.image.header;
        let entry = self.word(start).unwrap_or(0);
        let cluster = if header.extended_l2 {
            let bitmap = self.word(start + 8).unwrap_or(0);
            match entry::extended(header, entry, bitmap) {
                Ok(cluster) => cluster,
                Err(what) => return self.damage(at, entry & OFFSET_MASK, what),
            }
        } else {
            entry::standard(header, entry)
        };
        let skip = at.get() % header.cluster_size();
        self.check(at, skip, &cluster)?;
        let whole = |place| self.extent(at, header.cluster_size() - skip, place);
        let on = |host: u64| HostOffset::new(host + skip);
        Ok(match cluster {
            Cluster::Unallocated => whole(Allocation::Unallocated { reserved: None }),
            Cluster::Zero { host } => whole(Allocation::Zero { host: host.map(on) }),
            Cluster::Data { host } => whole(Allocation::Data { file: self.image.data, host: on(host) }),
            Cluster::Compressed { host, stored } => whole(Allocation::Compressed {
                file: self.image.data,
                host: HostOffset::new(host),
                stored: u32::try_from((self.data.len - host).min(u64::from(stored))).unwrap_or(stored),
                skip: u32::try_from(skip).unwrap_or(0),
            }),
            Cluster::Mixed { host, bitmap } => self.subclusters(at, host, bitmap),
        })
    }

    /// The run of like subclusters from `at` on.
    fn subclusters(&self, at: GuestOffset, host: Option<u64>, bitmap: u64) -> Extent {
        let header = &self.image.header;
        let size = header.cluster_size() / SUBCLUSTERS;
        let skip = at.get() % header.cluster_size();
        let first = skip / size;
        let kind = entry::sub(bitmap, first);
        let like = (first..SUBCLUSTERS).take_while(|i| entry::sub(bitmap, *i) == kind).count() as u64;
        let on = host.map(|host| HostOffset::new(host + skip));
        let place = match (kind, on) {
            (Subcluster::Data, Some(host)) => Allocation::Data { file: self.image.data, host },
            (Subcluster::Zero, host) => Allocation::Zero { host },
            (Subcluster::Unallocated | Subcluster::Data, reserved) => Allocation::Unallocated { reserved },
        };
        self.extent(at, (first + like) * size - skip, place)
    }

    /// Refuses a cluster whose place contradicts the image.
    fn check(&self, at: GuestOffset, skip: u64, cluster: &Cluster) -> Result<()> {
        let header = &self.image.header;
        let begins = at.get() - skip;
        let (host, is_data) = match *cluster {
            Cluster::Zero { .. } if header.version == 2 => {
                return self.damage(at, 0, "a version 2 image has a zero cluster");
            }
            Cluster::Compressed { host, .. } if self.image.has_external_data() => {
                return self.damage(at, host, "an image with an external data file has a compressed cluster");
            }
            Cluster::Compressed { host, .. } if host >= self.data.len => {
                return self.damage(at, host, "a compressed cluster lies behind the end of the file");
            }
            Cluster::Data { host } => (host, true),
            Cluster::Mixed { host: Some(host), bitmap } => (host, bitmap & u64::from(u32::MAX) != 0),
            Cluster::Zero { host: Some(host) } => (host, false),
            _ => return Ok(()),
        };
        if !host.is_multiple_of(header.cluster_size()) {
            return self.damage(at, host, "a cluster's place is not a multiple of the cluster size");
        }
        if self.image.has_external_data() && host != begins {
            return self.damage(
                at,
                host,
                "a cluster's place in the external data file is not its guest offset",
            );
        }
        if is_data && host >= self.data.len {
            return self.damage(at, host, "a cluster lies behind the end of the file");
        }
        Ok(())
    }
}

/// The L1 entries from `index` on, [`WINDOW`] of them at most.
fn l1_window(image: &Qcow2, tables: &HostFile, index: u64) -> Result<Vec<u64>> {
    let header = &image.header;
    let count = WINDOW.min(header.l1_entries.saturating_sub(index));
    let mut bytes = vec![0; usize::try_from(count * 8).unwrap_or(0)];
    tables.read(HostOffset::new(header.l1_offset + index * 8), &mut bytes)?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
}

/// Calls `each` with the host offset of every L2 table that the guest's disk needs.
pub(crate) fn each_table(
    image: &Qcow2,
    tables: &HostFile,
    mut each: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    let needed = image.header.capacity.div_ceil(image.header.l2_span());
    let mut index = 0;
    while index < needed {
        let window = l1_window(image, tables, index)?;
        let left = usize::try_from(needed - index).unwrap_or(usize::MAX);
        for offset in window.iter().take(left).map(|entry| entry & OFFSET_MASK).filter(|offset| *offset != 0)
        {
            each(offset)?;
        }
        index += WINDOW;
    }
    Ok(())
}

/// Leading zero bytes of `bytes`, in steps of 64 while it can.
fn zero_run(bytes: &[u8]) -> usize {
    let (blocks, _) = bytes.as_chunks::<64>();
    let clear = blocks.iter().take_while(|block| **block == [0; 64]).count() * 64;
    let rest = bytes.get(clear..).unwrap_or_default();
    clear + rest.iter().take_while(|byte| **byte == 0).count()
}
