//! Data that are zeros: what a raw file without holes or a block device has where its guest has nothing.
//!
//! Nobody but the bytes tells, so they are read: one more read of all that the tables call data, before the
//! copy, for the tables must be whole before the first byte of an archive. Blocks that are zeros become
//! [`Allocation::Zero`] with the place that they keep.
//!
//! Imports: `units`, `error`, `layer`, `allocation_table`.

use super::allocation_table::{Allocation, AllocationTable, Extent, TableBuilder};
use super::layer::Layer;
use super::raw::next_hole;
use super::{DiskImage, file_of};
use virtfold_base::error::Result;
use virtfold_base::units::{BlockSize, GuestOffset};

/// Bytes that are read at once, as long as a block is not larger.
const PIECE: u64 = 1 << 20;
/// Bytes that are compared at once.
const STEP: usize = 4096;
const ZEROS: [u8; STEP] = [0; STEP];

impl DiskImage {
    /// Whether the image itself tells where its disk is zeros: not one with a block device or a file without
    /// holes for a raw disk in its chain.
    ///
    /// # Errors
    /// When the file system can't be asked for holes.
    pub fn tells_zeros(&self) -> Result<bool> {
        for layer in &self.layers {
            let Layer::Raw { file, .. } = layer else { continue };
            let file = file_of(&self.files, *file)?;
            if file.is_device || next_hole(file, 0)? >= file.len {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The allocation table `of` this image without the data that are zeros, block by block. `step` is told
    /// of what was read, and ends it with its error.
    ///
    /// # Errors
    /// Those of reading, and of `step`.
    pub fn without_zeros(
        &self,
        of: &AllocationTable,
        block: BlockSize,
        step: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<AllocationTable> {
        let mut found = TableBuilder::default();
        let mut buffer = vec![0; usize::try_from(PIECE.max(block.get())).unwrap_or(STEP)];
        for extent in of.iter() {
            let extent = extent?;
            let Allocation::Data { file, host } = extent.place else {
                found.push(extent)?;
                continue;
            };
            let file = file_of(&self.files, file)?;
            let mut at = extent.guest;
            while let Some(piece) = extent.clip(at, piece_end(at, block)) {
                let len = usize::try_from(piece.len).unwrap_or(usize::MAX).min(buffer.len());
                let bytes = buffer.get_mut(..len).unwrap_or_default();
                file.read(host.saturating_add(at.since(extent.guest)), bytes)?;
                push_blocks(&piece, bytes, block, &mut found)?;
                at = piece.end();
                step(piece.len)?;
            }
        }
        found.finish()
    }
}

/// Where a read that begins at `at` ends: at a block's end.
fn piece_end(at: GuestOffset, block: BlockSize) -> GuestOffset {
    let size = PIECE.max(block.get());
    GuestOffset::new((at.get() / size).saturating_add(1).saturating_mul(size))
}

/// Appends the blocks of `piece`, whose bytes are `bytes`.
fn push_blocks(piece: &Extent, bytes: &[u8], block: BlockSize, found: &mut TableBuilder) -> Result<()> {
    let (mut at, mut rest) = (piece.guest, bytes);
    while !rest.is_empty() {
        let end = GuestOffset::new((at.get() / block.get()).saturating_add(1).saturating_mul(block.get()));
        let Some(part) = piece.clip(at, end) else { break };
        let (these, behind) = rest.split_at(usize::try_from(part.len).unwrap_or(usize::MAX).min(rest.len()));
        let place = match part.place {
            Allocation::Data { host, .. } if is_zero(these) => Allocation::Zero { host: Some(host) },
            place => place,
        };
        found.push(Extent { place, ..part })?;
        (at, rest) = (part.end(), behind);
    }
    Ok(())
}

/// Whether all bytes are zero. Random data are seen through in one step.
fn is_zero(bytes: &[u8]) -> bool {
    let (steps, rest) = bytes.as_chunks::<STEP>();
    steps.iter().all(|step| *step == ZEROS) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

    use super::*;
    use crate::{Format, OpenOptions};

    #[test]
    fn one_byte_makes_a_block() {
        for len in [1, 7, STEP, STEP + 1, 3 * STEP + 511] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            for at in [0, len / 2, len - 1] {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{at} of {len}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn blocks_of_zeros_leave_the_table_and_the_disk_reads_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.raw");
        let mut file = std::fs::File::create(&path).unwrap();
        let len = (3 << 20) + 1000;
        file.write_all(&vec![0; len]).unwrap();
        for at in [4095_u64, 2 << 20, (3 << 20) + 999] {
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(b"x").unwrap();
        }
        let image = DiskImage::open(&path, Format::Raw, &OpenOptions::default()).unwrap();
        assert!(!image.tells_zeros().unwrap());
        let table = image.allocation().unwrap();
        for block in [BlockSize::MIN, BlockSize::DEFAULT, BlockSize::new(2 << 20).unwrap()] {
            let (mut read, all) = (0, table.allocated());
            let tell = &mut |bytes| {
                read += bytes;
                Ok(())
            };
            let found = image.without_zeros(&table, block, tell).unwrap();
            assert_eq!((read, found.capacity()), (all, table.capacity()));
            let kept = match block.get() {
                4096 => 2 * 4096 + 1000,
                65536 => 2 * 65536 + 1000,
                _ => all,
            };
            assert_eq!(found.allocated(), kept, "{block:?}");
            let mut bytes = (vec![1; len], vec![1; len]);
            image.read(&table, GuestOffset::ZERO, &mut bytes.0).unwrap();
            image.read(&found, GuestOffset::ZERO, &mut bytes.1).unwrap();
            assert!(bytes.0 == bytes.1);
        }
        let told = image.without_zeros(&table, BlockSize::MIN, &mut |_| {
            Err(virtfold_base::error::Error::new(virtfold_base::error::ErrorKind::Interrupted, "enough"))
        });
        assert_eq!(told.unwrap_err().kind(), virtfold_base::error::ErrorKind::Interrupted);
    }
}
