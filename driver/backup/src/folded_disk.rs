//! The disks of a backup: each with its image, its allocation table and its correspondence table. They are
//! the tables that the archive writes and the source that its workers read the dense bytes from.
//!
//! Imports: `units`, `error`, `image`, `table`, `archive`.

use crate::increment::{self, FoundChanges};
use virtfold_archive::allocation_csv::{AllocationKind, AllocationRow};
use virtfold_archive::sparse;
use virtfold_archive::stream::DataSource;
use virtfold_archive::table::{self, CorrespondenceTable, Layout};
use virtfold_archive::writer::{DiskTables, MapEntries, Rows};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::{BlockSize, DenseOffset, GuestOffset};
use virtfold_image::{Allocation, AllocationTable, DiskImage, Extent};

/// One disk, folded: what FIG. 13 has at step 1307.
#[derive(Debug)]
pub struct FoldedDisk {
    /// The disk's name in the archive.
    pub target: String,
    /// The frozen image.
    pub image: DiskImage,
    /// What of it is recorded, and where.
    pub allocation: AllocationTable,
    /// Which of it is copied, and to where in the dense image.
    pub table: CorrespondenceTable,
    /// The granularity of the copy.
    pub block: BlockSize,
    /// Whether all of it is copied.
    pub layout: Layout,
    /// In an increment: what of it changed since the parent; `table` has what of that is used.
    pub(crate) changes: Option<FoundChanges>,
}

impl FoldedDisk {
    /// Reads the image's allocation table and folds it; without `block`, by the clusters of a qcow2 and by 64
    /// KiB for raw.
    ///
    /// # Errors
    /// When the image can't be read or is damaged.
    pub fn fold(target: String, image: DiskImage, block: Option<BlockSize>, layout: Layout) -> Result<Self> {
        let allocation = image.allocation()?;
        Self::of(target, image, allocation, block, layout)
    }

    /// As [`FoldedDisk::fold`], with an allocation table of the image.
    ///
    /// # Errors
    /// When the table is too large for memory and can't be kept elsewhere.
    pub fn of(
        target: String,
        image: DiskImage,
        allocation: AllocationTable,
        block: Option<BlockSize>,
        layout: Layout,
    ) -> Result<Self> {
        let block = block_of(&image, block);
        let used = allocation.iter().filter_map(|extent| match extent {
            Ok(extent) => extent.place.has_bytes().then_some(Ok((extent.guest, extent.len))),
            Err(error) => Some(Err(error)),
        });
        let table = table::fold(used, image.capacity(), block, layout)?;
        Ok(Self { target, image, allocation, table, block, layout, changes: None })
    }

    /// Leaves what changed to be copied.
    ///
    /// # Errors
    /// A table can't be read back, or the new one can't spill.
    pub(crate) fn restrict(&mut self, changes: FoundChanges) -> Result<()> {
        if let Some(changed) = &changes.changed {
            self.table = increment::clip(&self.table, changed)?;
        }
        self.changes = Some(changes);
        Ok(())
    }

    /// Fills `buf` with the dense bytes at `at`.
    ///
    /// # Errors
    /// The image can't be read; Internal: there are not so many.
    pub(crate) fn read_dense(&self, at: DenseOffset, buf: &mut [u8]) -> Result<()> {
        let mut rest = buf;
        let mut image = self.image.reader(&self.allocation);
        for piece in self.table.pieces(at, rest.len() as u64)? {
            let piece = piece?;
            let len = usize::try_from(piece.len).unwrap_or(usize::MAX).min(rest.len());
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(len);
            let read = image.read(piece.guest, part);
            read.map_err(|e| e.within(format!("cannot read disk {}", self.target)))?;
            rest = behind;
        }
        if rest.is_empty() {
            return Ok(());
        }
        let message = format!("the dense image of {} is shorter than planned", self.target);
        Err(Error::new(ErrorKind::Internal, message))
    }

    /// Says that `len` dense bytes at `at` will be read soon.
    ///
    /// # Errors
    /// The image can't be read.
    pub(crate) fn prefetch(&self, at: DenseOffset, len: u64) -> Result<()> {
        let ranges: Result<Vec<(GuestOffset, u64)>> =
            self.table.pieces(at, len)?.map(|piece| piece.map(|piece| (piece.guest, piece.len))).collect();
        self.image.prefetch(&self.allocation, &ranges?)
    }
}

/// The granularity of a disk's copy.
pub(super) fn block_of(image: &DiskImage, asked: Option<BlockSize>) -> BlockSize {
    asked.unwrap_or_else(|| natural_block(image))
}

/// The source's own granularity: every run is then of whole clusters, and a remap fits.
fn natural_block(image: &DiskImage) -> BlockSize {
    let cluster = image.source().qcow2.as_ref().map(|options| options.cluster_size);
    cluster.map_or(BlockSize::DEFAULT, |bytes| BlockSize::new(bytes).unwrap_or(BlockSize::MIN))
}

impl DiskTables for FoldedDisk {
    fn rows(&self) -> Rows<'_> {
        let rows = Box::new(self.allocation.iter().map(|extent| extent.map(row)));
        match self.changes.as_ref().and_then(|changes| changes.changed.as_ref()) {
            Some(changed) => increment::rows(rows, changed),
            None => rows,
        }
    }

    fn runs(&self) -> MapEntries<'_> {
        Box::new(
            self.table.iter().map(|run| run.map(|run| sparse::MapEntry { guest: run.guest, len: run.len })),
        )
    }
}

fn row(extent: Extent) -> AllocationRow {
    let (kind, host) = match extent.place {
        Allocation::Unallocated { reserved } => (AllocationKind::Unallocated, reserved),
        Allocation::Zero { host } => (AllocationKind::Zero, host),
        Allocation::Data { host, .. } | Allocation::Compressed { host, .. } => {
            (AllocationKind::Data, Some(host))
        }
        Allocation::Hole { host, .. } => (AllocationKind::Zero, Some(host)),
    };
    AllocationRow { guest: extent.guest, len: extent.len, kind, host }
}

/// The disks as the source of the dense bytes.
#[derive(Debug)]
pub struct DiskSet(pub Vec<FoldedDisk>);

impl DiskSet {
    fn disk(&self, index: usize) -> Result<&FoldedDisk> {
        self.0
            .get(index)
            .ok_or_else(|| Error::new(ErrorKind::Internal, format!("there is no disk number {index}")))
    }
}

impl DataSource for DiskSet {
    fn read_dense(&self, disk: usize, at: DenseOffset, buf: &mut [u8]) -> Result<()> {
        self.disk(disk)?.read_dense(at, buf)
    }

    fn prefetch(&self, disk: usize, at: DenseOffset, len: u64) -> Result<()> {
        self.disk(disk)?.prefetch(at, len)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use virtfold_base::packed::testing::decoded_pages;
    use virtfold_image::{Format, ImageAccess, OpenOptions};

    #[test]
    fn scattered_clusters_decode_no_table_anew_for_each_of_them() {
        const CLUSTERS: u64 = 2000;
        const STEP: u64 = 2 * 65536;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scattered.raw");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(CLUSTERS * STEP).unwrap();
        (0..CLUSTERS).for_each(|number| file.write_all_at(&[7; 65536], number * STEP).unwrap());
        let options = OpenOptions { usage: ImageAccess::Frozen, ..OpenOptions::default() };
        let image = DiskImage::open(&path, Format::Raw, &options).unwrap();
        let disk = FoldedDisk::fold("vda".to_owned(), image, None, Layout::Compact).unwrap();
        assert_eq!(disk.table.len(), CLUSTERS, "this file system keeps no holes of 64 KiB");
        let (bytes, set) = (disk.table.dense_len(), DiskSet(vec![disk]));
        let before = decoded_pages();
        let mut piece = vec![0; 1 << 20];
        for at in (0..bytes).step_by(1 << 20) {
            set.read_dense(0, DenseOffset::new(at), &mut piece).unwrap();
            set.prefetch(0, DenseOffset::new(at), 1 << 20).unwrap();
        }
        assert!(piece.iter().all(|byte| *byte == 7));
        // Two tables, and now and then a piece that goes on in the next page.
        let pieces = bytes >> 20;
        assert!(
            decoded_pages() - before <= 5 * pieces,
            "{} pages for {pieces} pieces",
            decoded_pages() - before
        );
    }
}
