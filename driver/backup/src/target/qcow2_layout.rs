//! The tables of a new qcow2 file, planned before the first byte is written: since the correspondence table
//! is known in advance, header, refcounts, L1 and L2 all precede the data, and the file is one sequential
//! write.
//!
//! ```text
//! header | refcount table | refcount blocks | L1 table | L2 tables in use | data clusters in guest order
//! ```
//!
//! Every cluster has refcount 1, every L2 entry is the host offset with the COPIED bit; an extended L2 entry
//! has all 32 subclusters allocated. Clusters without data have no entry and read as zeros, for there is no
//! backing file.
//!
//! Source: `docs/interop/qcow2.rst` of QEMU. QEMU's own limits (L1 of 32 MiB, refcount table of 8 MiB)
//! are checked here, so that no image is written that QEMU would not open.
//! Imports: `units`, `error`, `table`.

use std::io::Write;

use serde::{Deserialize, Serialize};

use virtfold_archive::table::{Builder, CorrespondenceTable};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::{GuestOffset, HostOffset, KIB, MIB};

const MAGIC: u32 = 0x5146_49fb;
const COPIED: u64 = 1 << 63;
/// Incompatible feature bit 4: extended L2 entries.
const EXTENDED_L2: u64 = 1 << 4;
/// Compatible feature bit 0: lazy refcounts.
const LAZY_REFCOUNTS: u64 = 1;
/// All 32 subclusters allocated, none reading as zeros.
const ALL_SUBCLUSTERS: u64 = 0xffff_ffff;
const MAX_L1: u64 = 32 * MIB;
const MAX_REFCOUNT_TABLE: u64 = 8 * MIB;

/// The `compat` level of a qcow2 image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compat {
    /// Version 2.
    #[serde(rename = "0.10")]
    V2,
    /// Version 3.
    #[default]
    #[serde(rename = "1.1")]
    V3,
}

/// What `qemu-img create -o` would be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qcow2Options {
    /// Version of the format.
    pub compat: Compat,
    /// Cluster size: a power of two from 512 B to 2 MiB.
    pub cluster_size: u64,
    /// Extended L2 entries; needs `compat` 1.1 and clusters of 16 KiB or more.
    pub extended_l2: bool,
    /// Lazy refcounts; needs `compat` 1.1.
    pub lazy_refcounts: bool,
}

impl Default for Qcow2Options {
    fn default() -> Self {
        Self { compat: Compat::V3, cluster_size: 64 * KIB, extended_l2: false, lazy_refcounts: false }
    }
}

/// Where everything of the new file goes. All positions are in clusters, and in this order.
#[derive(Debug)]
pub struct Qcow2Layout {
    options: Qcow2Options,
    capacity: u64,
    /// The table again, but of whole clusters: its dense order is the order of the data clusters.
    clusters: CorrespondenceTable,
    refcount_table: u64,
    refcount_blocks: u64,
    l1_table: u64,
    l1_entries: u64,
    l2_tables: u64,
    data_clusters: u64,
}

impl Qcow2Layout {
    /// Plans the file for a disk with the runs of `table`.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when the options contradict each other or QEMU could not open an image of this
    /// capacity with them.
    pub fn plan(table: &CorrespondenceTable, options: Qcow2Options) -> Result<Self> {
        check(&options)?;
        let size = options.cluster_size;
        let clusters = widen(table, size)?;
        let capacity = table.capacity().checked_next_multiple_of(512).ok_or_else(|| too_large(&options))?;
        let data_clusters = clusters.dense_len().div_ceil(size);
        let mut layout = Self {
            options,
            capacity,
            clusters,
            refcount_table: 0,
            refcount_blocks: 0,
            l1_table: 0,
            l1_entries: 0,
            l2_tables: 0,
            data_clusters,
        };
        layout.l1_entries = capacity.div_ceil(layout.l2_span());
        layout.l1_table = (layout.l1_entries * 8).div_ceil(size);
        if layout.l1_entries * 8 > MAX_L1 {
            return Err(too_large(&options));
        }
        let mut l2_tables = 0;
        for index in layout.l2_indices() {
            index?;
            l2_tables += 1;
        }
        layout.l2_tables = l2_tables;
        layout.size_refcounts()?;
        Ok(layout)
    }

    /// The refcounts count themselves: grows them until they cover the file.
    fn size_refcounts(&mut self) -> Result<()> {
        let size = self.options.cluster_size;
        loop {
            let blocks = self.total_clusters().div_ceil(size / 2);
            let table = (blocks * 8).div_ceil(size);
            if table * size > MAX_REFCOUNT_TABLE {
                return Err(too_large(&self.options));
            }
            if (blocks, table) == (self.refcount_blocks, self.refcount_table) {
                return Ok(());
            }
            (self.refcount_blocks, self.refcount_table) = (blocks, table);
        }
    }

    fn metadata_clusters(&self) -> u64 {
        1 + self.refcount_table + self.refcount_blocks + self.l1_table + self.l2_tables
    }

    fn total_clusters(&self) -> u64 {
        self.metadata_clusters() + self.data_clusters
    }

    fn entry_bytes(&self) -> u64 {
        if self.options.extended_l2 { 16 } else { 8 }
    }

    /// Clusters that one L2 table maps.
    fn l2_entries(&self) -> u64 {
        self.options.cluster_size / self.entry_bytes()
    }

    /// Guest bytes that one L2 table maps.
    fn l2_span(&self) -> u64 {
        self.l2_entries() * self.options.cluster_size
    }

    /// The file's whole length, bytes.
    pub fn file_len(&self) -> u64 {
        self.total_clusters() * self.options.cluster_size
    }

    /// Where the data clusters begin.
    pub fn data_start(&self) -> HostOffset {
        HostOffset::new(self.metadata_clusters() * self.options.cluster_size)
    }

    /// Where the byte at `guest` lies in the file; `None` where the disk has no cluster.
    ///
    /// # Errors
    /// When a spilled table can't be read back.
    pub fn host(&self, guest: GuestOffset) -> Result<Option<HostOffset>> {
        let dense = self.clusters.find_dense(guest)?;
        Ok(dense.and_then(|dense| self.data_start().checked_add(dense.get())))
    }

    /// Whether the dense image of `table`, as it stands, is this file's data: every run is of whole clusters.
    ///
    /// # Errors
    /// When a spilled table can't be read back.
    pub fn is_dense(&self, table: &CorrespondenceTable) -> Result<bool> {
        let size = self.options.cluster_size;
        for run in table.iter() {
            let run = run?;
            let end = run.guest.saturating_add(run.len);
            if !run.guest.is_aligned(size) || !(end.is_aligned(size) || end.get() == table.capacity()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes everything that precedes the data of the image that errors call `name`.
    ///
    /// # Errors
    /// When `out` fails, or a spilled table can't be read back.
    pub fn write_metadata(&self, out: &mut impl Write, name: &str) -> Result<()> {
        let fail = |e| Error::io(format!("cannot write the tables of '{name}'"), e);
        let size = self.options.cluster_size;
        let mut out = ZeroPaddedWriter { out, position: 0 };
        out.put(&self.header()).and_then(|()| out.pad_to(size)).map_err(fail)?;
        let first_block = 1 + self.refcount_table;
        for block in 0..self.refcount_blocks {
            out.put(&((first_block + block) * size).to_be_bytes()).map_err(fail)?;
        }
        out.pad_to(size).map_err(fail)?;
        for _ in 0..self.total_clusters() {
            out.put(&1_u16.to_be_bytes()).map_err(fail)?;
        }
        out.pad_to(size).map_err(fail)?;
        self.write_l1(&mut out, name)?;
        self.write_l2(&mut out, name)?;
        if out.position == self.data_start().get() {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Internal, "the qcow2 tables did not come out at their planned size"))
        }
    }

    fn header(&self) -> Vec<u8> {
        let size = self.options.cluster_size;
        let v3 = self.options.compat == Compat::V3;
        let l1_offset = (1 + self.refcount_table + self.refcount_blocks) * size;
        let mut header = Vec::with_capacity(112);
        let put32 = |header: &mut Vec<u8>, value: u32| header.extend(value.to_be_bytes());
        let put64 = |header: &mut Vec<u8>, value: u64| header.extend(value.to_be_bytes());
        put32(&mut header, MAGIC);
        put32(&mut header, if v3 { 3 } else { 2 });
        put64(&mut header, 0); // no backing file
        put32(&mut header, 0);
        put32(&mut header, size.trailing_zeros());
        put64(&mut header, self.capacity);
        put32(&mut header, 0); // no encryption
        // Bounded by MAX_L1 and MAX_REFCOUNT_TABLE, so both fit.
        put32(&mut header, u32::try_from(self.l1_entries).unwrap_or(u32::MAX));
        put64(&mut header, l1_offset);
        put64(&mut header, size);
        put32(&mut header, u32::try_from(self.refcount_table).unwrap_or(u32::MAX));
        put32(&mut header, 0); // no snapshots
        put64(&mut header, 0);
        if v3 {
            put64(&mut header, if self.options.extended_l2 { EXTENDED_L2 } else { 0 });
            put64(&mut header, if self.options.lazy_refcounts { LAZY_REFCOUNTS } else { 0 });
            put64(&mut header, 0);
            put32(&mut header, 4); // refcounts of 16 bits
            put32(&mut header, 104);
        }
        put64(&mut header, 0); // end of header extensions
        header
    }

    /// The L2 tables that the disk needs, ascending, each once.
    fn l2_indices(&self) -> impl Iterator<Item = Result<u64>> {
        let span = self.l2_span();
        let mut next = 0;
        self.clusters.iter().flat_map(move |run| {
            let (indices, error) = match run {
                Ok(run) => {
                    let last = (run.guest.get() + run.len - 1) / span;
                    let first = (run.guest.get() / span).max(next);
                    next = last + 1;
                    (first..last + 1, None)
                }
                Err(error) => (0..0, Some(error)),
            };
            indices.map(Ok).chain(error.map(Err))
        })
    }

    fn write_l1(&self, out: &mut ZeroPaddedWriter<'_, impl Write>, name: &str) -> Result<()> {
        let fail = |e| Error::io(format!("cannot write the L1 table of '{name}'"), e);
        let size = self.options.cluster_size;
        let start = out.position;
        let first = self.metadata_clusters() - self.l2_tables;
        for (l2_table, index) in (first..).zip(self.l2_indices()) {
            out.zeros_until(start + index? * 8).map_err(fail)?;
            out.put(&((l2_table * size) | COPIED).to_be_bytes()).map_err(fail)?;
        }
        out.zeros_until(start + self.l1_table * size).map_err(fail)
    }

    fn write_l2(&self, out: &mut ZeroPaddedWriter<'_, impl Write>, name: &str) -> Result<()> {
        let fail = |e| Error::io(format!("cannot write the L2 tables of '{name}'"), e);
        let size = self.options.cluster_size;
        let mut host = self.data_start().get();
        let mut table_start = out.position;
        let mut current = None;
        for run in self.clusters.iter() {
            let run = run?;
            let first = run.guest.get() / size;
            for cluster in first..first + run.len.div_ceil(size) {
                let table = cluster / self.l2_entries();
                if current != Some(table) {
                    if current.is_some() {
                        table_start += size;
                    }
                    out.zeros_until(table_start).map_err(fail)?;
                    current = Some(table);
                }
                let slot = cluster % self.l2_entries() * self.entry_bytes();
                out.zeros_until(table_start + slot).map_err(fail)?;
                out.put(&(host | COPIED).to_be_bytes()).map_err(fail)?;
                if self.options.extended_l2 {
                    out.put(&ALL_SUBCLUSTERS.to_be_bytes()).map_err(fail)?;
                }
                host += size;
            }
        }
        out.pad_to(size).map_err(fail)
    }
}

/// The table with every run widened to whole clusters.
fn widen(table: &CorrespondenceTable, size: u64) -> Result<CorrespondenceTable> {
    let mut builder = Builder::new(table.capacity());
    for run in table.iter() {
        let run = run?;
        let start = run.guest.get() & !(size - 1);
        let end = run.guest.saturating_add(run.len).get();
        let end = end.checked_next_multiple_of(size).unwrap_or(end).min(table.capacity());
        builder.push(GuestOffset::new(start), end - start)?;
    }
    builder.finish()
}

fn check(options: &Qcow2Options) -> Result<()> {
    let refuse = |what: &str| Err(Error::new(ErrorKind::Usage, what));
    let size = options.cluster_size;
    if !size.is_power_of_two() || !(512..=2 * MIB).contains(&size) {
        return refuse("a qcow2 cluster size is a power of two from 512 B to 2 MiB");
    }
    if options.compat == Compat::V2 && (options.extended_l2 || options.lazy_refcounts) {
        return refuse("extended L2 entries and lazy refcounts need compat 1.1");
    }
    if options.extended_l2 && size < 16 * KIB {
        return refuse("extended L2 entries need a cluster size of 16 KiB or more");
    }
    Ok(())
}

fn too_large(options: &Qcow2Options) -> Error {
    let size = options.cluster_size;
    Error::new(ErrorKind::Usage, format!("the disk is too large for a qcow2 with clusters of {size} bytes"))
        .with_hint("choose a larger cluster size, or restore to raw")
}

/// A writer that knows its position and can fill up with zeros.
struct ZeroPaddedWriter<'a, W> {
    out: &'a mut W,
    position: u64,
}

impl<W: Write> ZeroPaddedWriter<'_, W> {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.position += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn zeros_until(&mut self, position: u64) -> std::io::Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.position < position {
            let len = usize::try_from(position - self.position).unwrap_or(usize::MAX).min(ZEROS.len());
            self.put(ZEROS.get(..len).unwrap_or(&ZEROS))?;
        }
        Ok(())
    }

    fn pad_to(&mut self, unit: u64) -> std::io::Result<()> {
        self.zeros_until(self.position.next_multiple_of(unit))
    }
}
