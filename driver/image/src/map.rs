//! The allocation table in the words of `qemu-img map --output=json`: for people and programs that know
//! those, and for tests, because QEMU is the judge.
//!
//! A row is what one image of the chain decides alone. `present` is false where no image has anything, and
//! the depth is then that of the last image asked. Holes under preallocated metadata are `zero` and `data` at
//! once, but only in an image that QEMU takes for a preallocated one. Neighbours that agree in all columns
//! and go on in the host file are one row.
//!
//! Imports: `error`, `layer`, `qcow2`, `allocation_table`.

use serde::Serialize;

use super::allocation_table::{Allocation, AllocationTable, Extent, ExtentIter};
use super::layer::Layer;
use super::{DiskImage, file_of, qcow2};
use virtfold_base::error::Result;

/// One row. Offsets and lengths are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Guest address.
    pub start: u64,
    /// Guest bytes.
    pub length: u64,
    /// The image that decides, 0 the top one.
    pub depth: u32,
    /// Whether an image has anything recorded here.
    pub present: bool,
    /// Whether it reads as zeros for sure.
    pub zero: bool,
    /// Whether the image's tables say data.
    pub data: bool,
    /// Whether the data is compressed.
    pub compressed: bool,
    /// Where it lies in its file, where that can be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
}

impl Row {
    fn continues_in(&self, next: &Self) -> bool {
        let ours = (self.depth, self.present, self.zero, self.data, self.compressed);
        let theirs = (next.depth, next.present, next.zero, next.data, next.compressed);
        ours == theirs && self.offset.map(|at| at.saturating_add(self.length)) == next.offset
    }
}

/// The rows of an image, ascending.
#[derive(Debug)]
pub struct Rows<'a> {
    extents: ExtentIter<'a>,
    /// By depth, whether QEMU takes the image for one with preallocated metadata.
    preallocated: Vec<bool>,
    next: Option<Row>,
}

/// The rows that `qemu-img map --output=json` prints for `image`, whose allocation table is `table`.
///
/// # Errors
/// When a host file can't be examined.
pub fn rows<'a>(image: &DiskImage, table: &'a AllocationTable) -> Result<Rows<'a>> {
    let preallocated = |layer: &Layer| match layer {
        Layer::Raw { .. } => Ok(false),
        Layer::Qcow2(qcow2) => {
            qcow2::refcounts::looks_preallocated(&qcow2.header, file_of(&image.files, qcow2.file)?)
        }
    };
    let preallocated = image.layers.iter().map(preallocated).collect::<Result<_>>()?;
    Ok(Rows { extents: table.iter(), preallocated, next: None })
}

impl Rows<'_> {
    fn row(&self, extent: &Extent) -> Row {
        let row = Row {
            start: extent.guest.get(),
            length: extent.len,
            depth: extent.depth,
            present: true,
            zero: false,
            data: false,
            compressed: false,
            offset: None,
        };
        match extent.place {
            Allocation::Unallocated { reserved } => {
                Row { present: false, zero: true, offset: reserved.map(|host| host.get()), ..row }
            }
            Allocation::Zero { host } => Row { zero: true, offset: host.map(|host| host.get()), ..row },
            Allocation::Data { host, .. } => Row { data: true, offset: Some(host.get()), ..row },
            Allocation::Hole { host, .. } => {
                let depth = usize::try_from(extent.depth).unwrap_or(usize::MAX);
                let zero = self.preallocated.get(depth).copied().unwrap_or(false);
                Row { data: true, zero, offset: Some(host.get()), ..row }
            }
            Allocation::Compressed { .. } => Row { data: true, compressed: true, ..row },
        }
    }
}

impl Iterator for Rows<'_> {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let extent = match self.extents.next() {
                Some(Ok(extent)) => extent,
                Some(Err(error)) => return Some(Err(error)),
                None => return self.next.take().map(Ok),
            };
            let row = self.row(&extent);
            match &mut self.next {
                Some(open) if open.continues_in(&row) => open.length += row.length,
                Some(open) => return Some(Ok(std::mem::replace(open, row))),
                None => self.next = Some(row),
            }
        }
    }
}
