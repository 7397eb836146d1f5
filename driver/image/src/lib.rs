//! Disk images: which parts of a guest's disk are recorded, where they lie on the host, and their bytes.
//!
//! An image is a chain: a qcow2 overlay on a backing file, on a backing file, down to a qcow2 or raw file
//! that has none. [`DiskImage::open`] opens all of it read-only and checks every header;
//! [`DiskImage::allocation`] walks the tables once and gives the allocation table of the whole chain (FIG. 10
//! of the method: logical address to physical block); [`DiskImage::read`] reads guest bytes with it.
//!
//! Guests write the images, so images are hostile. No format is ever guessed from contents: the caller names
//! the top image's format and a qcow2 header names its backing file's. Every length is bounded before memory
//! is allocated for it, and an address that contradicts the format is an error that names image, guest offset
//! and host offset, never zeros.
//!
//! Parts: `format` and `source` (words), `file`, `locks` and `change_detection` (host files and who else
//! writes to them), `chain` (opening), `qcow2/` (that
//! format), `raw`, `layer` (one image of the chain seen as ascending runs), `allocation_walk` (the chain's
//! runs become one table), `holes`, `container` (formats that a raw image may
//! look like), `overlap` (two things in one
//! place), `zeros` (data that are none), `dirty_ranges` (what bitmaps mark), `allocation_table`, `read`,
//! `references` (the files that a header names), and `map` (what `qemu-img map` would print).
//!
//! Imports: `units`, `error`, `mounts`, `openers`, `safe_path`, `spill_log`, `packed`.

mod allocation_table;
mod allocation_walk;
mod chain;
mod change_detection;
mod container;
mod device_counters;
mod dirty_ranges;
mod file;
mod format;
mod holes;
mod image_lock;
mod layer;
mod locks;
pub mod map;
mod overlap;
mod qcow2;
mod raw;
mod read;
mod read_ahead;
mod references;
mod source;
mod zeros;

#[cfg(test)]
mod tests;

pub use allocation_table::{Allocation, AllocationTable, Extent, ExtentIter};
pub use dirty_ranges::{DirtyRange, DirtyRanges};
pub use file::FileIndex;
pub use format::{ChangeSensitivity, Format, ImageAccess, MAX_CHAIN, OpenOptions};
pub use locks::is_used;
pub use qcow2::bitmaps::BitmapState;
pub use read::ImageReader;
pub use references::{FileReferences, files_below, references};
pub use source::{ChainImage, CompressionType, ImageInfo, Qcow2Options};

use std::fs::File;
use std::path::{Path, PathBuf};

use virtfold_base::error::{OrInternal, Result};
use virtfold_base::units::BlockSize;

/// A disk image with all that it rests on, opened read-only. While it lives no QEMU can begin to write into
/// any of its files.
#[derive(Debug)]
pub struct DiskImage {
    /// Every host file, images and external data files.
    files: Vec<file::HostFile>,
    /// The chain, top image first; never empty.
    layers: Vec<layer::Layer>,
    capacity: u64,
    source: ImageInfo,
    options: OpenOptions,
}

impl DiskImage {
    /// Opens the image at `path` and its whole chain. The caller vouches for `format`; it is never guessed.
    ///
    /// # Errors
    /// `InUse` where a QEMU is writing into it, `BadImage` where a header contradicts the format,
    /// `Unsupported` where it asks for what virtfold does not do, `NotFound` and `Io` as they come.
    pub fn open(path: &Path, format: Format, options: &OpenOptions) -> Result<Self> {
        chain::open(file::HostFile::open(path)?, format, chain::ChainSource::Headers, options)
    }

    /// Opens a chain that the caller knows, for example from a hypervisor that has it open: `below` are the
    /// images under the top one, the nearest first, and no others. What the headers say of backing files is
    /// not looked at.
    ///
    /// # Errors
    /// As [`DiskImage::open`].
    pub fn open_chain(
        top: &Path,
        format: Format,
        below: &[(PathBuf, Format)],
        options: &OpenOptions,
    ) -> Result<Self> {
        chain::open(file::HostFile::open(top)?, format, chain::ChainSource::Given(below), options)
    }

    /// As [`DiskImage::open`], for a file that is open already (an unlinked or in-memory one, say); `path` is
    /// its name in messages, and names of backing files are relative to its directory.
    ///
    /// # Errors
    /// As [`DiskImage::open`].
    pub fn from_file(file: File, path: &Path, format: Format, options: &OpenOptions) -> Result<Self> {
        chain::open(file::HostFile::new(file, path)?, format, chain::ChainSource::Headers, options)
    }

    /// Bytes the guest sees. As QEMU has it, whole sectors of 512 bytes: a raw file's last sector is filled
    /// up with zeros.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// What the image is, for the record.
    pub fn source(&self) -> &ImageInfo {
        &self.source
    }

    /// The images of the chain, top image first, each with the path it was opened by.
    ///
    /// # Errors
    /// Internal only.
    pub fn chain(&self) -> Result<Vec<(PathBuf, Format)>> {
        let link = |layer: &layer::Layer| {
            let (index, format) = match layer {
                layer::Layer::Raw { file, .. } => (*file, Format::Raw),
                layer::Layer::Qcow2(image) => (image.file, Format::Qcow2),
            };
            Ok((file_of(&self.files, index)?.path.clone(), format))
        };
        self.layers.iter().map(link).collect()
    }

    /// Every host file of it, images and external data files, and what tells one from another whatever its
    /// name: device and inode of a file, `(u64::MAX, device)` of a block device.
    pub fn host_files(&self) -> impl Iterator<Item = (&Path, (u64, u64))> {
        self.files.iter().map(|file| (file.path.as_path(), file.identity))
    }

    /// The format that a raw image looks like, and whose name it was not given: a container that was taken
    /// for the disk in it, or a guest that wrote such a header. Only a caller knows which.
    ///
    /// # Errors
    /// When its first sector can't be read.
    pub fn looks_like(&self) -> Result<Option<&'static str>> {
        let Some(layer::Layer::Raw { file, .. }) = self.layers.first() else { return Ok(None) };
        container::of(file_of(&self.files, *file)?)
    }

    /// Fails where something that knows no image locks may write to a file of it: a mount, a loop device,
    /// swap.
    ///
    /// # Errors
    /// `InUse`, where that is so; those of looking.
    pub fn check_writers(&self) -> Result<()> {
        self.files.iter().try_for_each(change_detection::refuse)
    }

    /// Fails where a file of it was changed since it was opened, or somebody has it in use by now: a call
    /// behind the last read tells that all that was read is of one point in time.
    ///
    /// # Errors
    /// `InUse`, where that is so; those of looking at the files.
    pub fn check_unchanged(&self) -> Result<()> {
        for file in &self.files {
            file.check_unchanged(self.options.change)?;
            locks::refuse_writer(file, self.options.usage)?;
        }
        match self.options.usage {
            ImageAccess::Locked => self.check_writers(),
            ImageAccess::Frozen | ImageAccess::Unlocked => Ok(()),
        }
    }

    /// Walks the tables of the whole chain once. The result covers `[0, capacity)` without gaps, ascending.
    ///
    /// # Errors
    /// `BadImage` where a table contradicts the format or points outside its file.
    pub fn allocation(&self) -> Result<AllocationTable> {
        allocation_walk::walk(self)
    }

    /// What the bitmap `name` of the top image says, in whole blocks of `block`. Whatever is wrong with it or
    /// with the image is said in the answer. Images below have bitmaps of their own, which tell nothing of
    /// what the top one has.
    ///
    /// # Errors
    /// The ranges can't be kept in memory or in their temporary file.
    pub fn dirty_bitmap(&self, name: &str, block: BlockSize) -> Result<BitmapState> {
        match self.layers.first() {
            Some(layer::Layer::Qcow2(image)) => {
                qcow2::bitmaps::find(&image.header, file_of(&self.files, image.file)?, name, block)
            }
            _ => Ok(BitmapState::Missing),
        }
    }

    /// What any of the bitmaps `names` marks. The answer is usable where each of them is; else it is that of
    /// the first one that is not, with its name in the reason.
    ///
    /// # Errors
    /// As [`DiskImage::dirty_bitmap`].
    pub fn dirty_bitmaps(&self, names: &[String], block: BlockSize) -> Result<BitmapState> {
        let mut sets = Vec::new();
        for name in names {
            match self.dirty_bitmap(name, block)? {
                BitmapState::Usable(ranges) => sets.push(ranges),
                BitmapState::Missing => {
                    return Ok(BitmapState::Unusable(format!("the image has no bitmap '{name}'")));
                }
                BitmapState::Unusable(why) => {
                    return Ok(BitmapState::Unusable(format!("its bitmap '{name}' can't be used: {why}")));
                }
            }
        }
        if sets.is_empty() {
            return Ok(BitmapState::Missing);
        }
        Ok(BitmapState::Usable(DirtyRanges::union(&sets, self.capacity)?))
    }
}

/// The file of an index that a table or layer of the same image has.
fn file_of(files: &[file::HostFile], index: FileIndex) -> Result<&file::HostFile> {
    let found = usize::try_from(index.0).ok().and_then(|at| files.get(at));
    found.or_internal("an allocation table is used with another image")
}
