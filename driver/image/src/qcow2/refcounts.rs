//! What virtfold asks an image's refcounts: how often a cluster is in use that the tables refer to more than
//! once, and how many clusters are in use.
//!
//! QEMU takes an image with notably more clusters in use than blocks on the host for one with preallocated
//! metadata, and then reports where the host file has holes. `map` does the same, so it must count the same.
//! The count stops as soon as the answer is known, and anything wrong with the refcounts means no.
//!
//! Imports: `error`, `units`, `header`, `file`.

use std::os::unix::fs::MetadataExt;

use super::Header;
use crate::file::HostFile;
use virtfold_base::error::{IoContext, Result};
use virtfold_base::units::HostOffset;

/// Bytes of a refcount block or table that are read at once.
const PIECE: u64 = 64 << 10;

/// How often the image says that a cluster is in use. One that its refcounts do not cover is in use by
/// nobody.
pub(crate) fn of(header: &Header, file: &HostFile, cluster: u64) -> Result<u64> {
    let (size, order) = (header.cluster_size(), header.refcount_order);
    let per_block = (size * 8) >> order;
    let index = cluster / per_block;
    let inside = |at: u64, len: u64| at.checked_add(len).is_some_and(|end| end <= file.len);
    let entry = header.refcount_offset.saturating_add(index * 8);
    if index >= header.refcount_table_len / 8 || !inside(entry, 8) {
        return Ok(0);
    }
    let mut block = [0; 8];
    file.read(HostOffset::new(entry), &mut block)?;
    let block = u64::from_be_bytes(block) & !511;
    let first_bit = (cluster % per_block) << order;
    let bytes = (1_u64 << order).div_ceil(8);
    if block == 0 || !block.is_multiple_of(size) || !inside(block + first_bit / 8, bytes) {
        return Ok(0);
    }
    let mut count = vec![0; usize::try_from(bytes).unwrap_or(0)];
    file.read(HostOffset::new(block + first_bit / 8), &mut count)?;
    let count = count.iter().fold(0, |count, byte| count << 8 | u64::from(*byte));
    // Narrow ones fill a byte from its low end.
    Ok(if order < 3 { count >> (first_bit % 8) & ((1 << (1_u32 << order)) - 1) } else { count })
}

/// Whether QEMU would take the image for one with preallocated metadata.
pub(crate) fn looks_preallocated(header: &Header, file: &HostFile) -> Result<bool> {
    let meta = file.file.metadata().at(|| format!("cannot examine '{}'", file.name()))?;
    let real = meta.blocks() * 512 / header.cluster_size();
    let threshold = (real.saturating_mul(10) / 9).max(real + 2);
    let clusters = file.len.div_ceil(header.cluster_size());
    if clusters < threshold {
        return Ok(false);
    }
    // A block that counts something is recorded, so there are no more of them than recorded clusters.
    let mut count = Count { header, file, used: 0, threshold, blocks: real + 2 };
    Ok(count.run(clusters).is_some() && count.used >= threshold)
}

struct Count<'a> {
    header: &'a Header,
    file: &'a HostFile,
    used: u64,
    threshold: u64,
    /// Refcount blocks that may still be read.
    blocks: u64,
}

impl Count<'_> {
    /// Counts among the first `clusters` clusters of the file; `None` where the refcounts can't be read.
    fn run(&mut self, clusters: u64) -> Option<()> {
        let per_block = (self.header.cluster_size() * 8) >> self.header.refcount_order;
        let entries = self.header.refcount_table_len / 8;
        let mut table = Vec::new();
        for index in 0..clusters.div_ceil(per_block).min(entries) {
            if index * 8 % PIECE == 0 {
                let len = PIECE.min(self.header.refcount_table_len - index * 8);
                table = self.read(self.header.refcount_offset.checked_add(index * 8)?, len)?;
            }
            let at = usize::try_from(index * 8 % PIECE).ok()?;
            let entry = u64::from_be_bytes(*table.get(at..)?.first_chunk::<8>()?) & !511;
            if entry != 0 {
                self.block(entry, (clusters - index * per_block).min(per_block))?;
            }
            if self.used >= self.threshold {
                break;
            }
        }
        Some(())
    }

    /// Counts the refcounts that are not zero among the first `count` of the block at `block`.
    fn block(&mut self, block: u64, count: u64) -> Option<()> {
        self.blocks = self.blocks.checked_sub(1)?;
        if !block.is_multiple_of(self.header.cluster_size()) {
            return None;
        }
        let bytes = (count << self.header.refcount_order).div_ceil(8);
        let mut done = 0;
        while done < bytes && self.used < self.threshold {
            let len = PIECE.min(bytes - done);
            let piece = self.read(block.checked_add(done)?, len)?;
            let first = (done * 8) >> self.header.refcount_order;
            self.used += in_use(&piece, self.header.refcount_order, count - first);
            done += len;
        }
        Some(())
    }

    fn read(&self, at: u64, len: u64) -> Option<Vec<u8>> {
        if at.checked_add(len)? > self.file.len {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        self.file.read(HostOffset::new(at), &mut bytes).is_ok().then_some(bytes)
    }
}

/// How many of the first `count` refcounts of 2^`order` bits are not zero. Narrow ones fill a byte from its
/// low end.
fn in_use(bytes: &[u8], order: u32, count: u64) -> u64 {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if let Some(shift) = order.checked_sub(3) {
        let used = |entry: &&[u8]| entry.iter().any(|byte| *byte != 0);
        return bytes.chunks_exact(1 << shift).take(count).filter(used).count() as u64;
    }
    let width = 1_u8 << order;
    let mask = (1_u8 << width) - 1;
    let slots = bytes.iter().flat_map(|byte| (0..8 / width).map(move |slot| byte >> (slot * width) & mask));
    slots.take(count).filter(|refcount| *refcount != 0).count() as u64
}
