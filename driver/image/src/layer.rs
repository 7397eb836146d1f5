//! One image of a chain, whatever its format, seen as runs of its own guest addresses.
//!
//! Imports: `error`, `units`, `file`, `qcow2`, `raw`, `allocation_table`.

use super::allocation_table::Extent;
use super::file::{FileIndex, HostFile};
use super::qcow2::{Qcow2, l2};
use super::raw;
use virtfold_base::error::Result;
use virtfold_base::units::GuestOffset;

/// An image of the chain, its header checked.
#[derive(Debug)]
pub(super) enum Layer {
    Raw { file: FileIndex, capacity: u64 },
    Qcow2(Box<Qcow2>),
}

impl Layer {
    /// Bytes of this image alone.
    pub(super) fn capacity(&self) -> u64 {
        match self {
            Self::Raw { capacity, .. } => *capacity,
            Self::Qcow2(image) => image.header.capacity,
        }
    }
}

/// A place in the walk of one layer.
#[derive(Debug)]
pub(super) enum Cursor<'a> {
    Raw(raw::Cursor<'a>),
    Qcow2(l2::Cursor<'a>),
}

impl<'a> Cursor<'a> {
    pub(super) fn new(layer: &'a Layer, files: &'a [HostFile], depth: u32) -> Result<Self> {
        Ok(match layer {
            Layer::Raw { file, capacity } => Self::Raw(raw::Cursor {
                file: super::file_of(files, *file)?,
                index: *file,
                capacity: *capacity,
                depth,
            }),
            Layer::Qcow2(image) => Self::Qcow2(l2::Cursor::new(image, files, depth)?),
        })
    }

    /// The run that begins at `at`, below the layer's capacity; calls come with ascending addresses.
    pub(super) fn extent_at(&mut self, at: GuestOffset) -> Result<Extent> {
        match self {
            Self::Raw(cursor) => cursor.extent_at(at),
            Self::Qcow2(cursor) => cursor.extent_at(at),
        }
    }
}
