//! Which blocks changed, by their digests: all that is used is read once.
//!
//! A block that is not used now and was zeros before is unchanged; one that is used now and whose digest is
//! the parent's is, too; every other block changed. Bytes that are zeros count as not there, on both sides.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::ChangedBlocks;
use super::state::StateBlock;
use crate::Control;
use crate::folded_disk::FoldedDisk;
use virtfold_archive::block_digests::BlockDigests;
use virtfold_archive::stream::{Digest, check_cancel, guarded};
use virtfold_archive::table::{Builder, CorrespondenceTable};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::{BlockSize, DenseOffset, GuestOffset, MIB};

/// How far ahead of the reading the source is told what will be read, bytes.
const AHEAD: u64 = 8 * MIB;

/// The digests of all that is used on a disk, in blocks of `block`.
pub(super) fn digests(
    disk: &FoldedDisk,
    block: BlockSize,
    workers: usize,
    control: &Control,
) -> Result<BlockDigests> {
    let len = disk.table.dense_len();
    let digests = BlockDigests::new(block, len);
    let next = AtomicU64::new(0);
    let work = || -> Result<()> {
        let mut piece = vec![0; usize::try_from(MIB).unwrap_or_default()];
        loop {
            check_cancel(&control.cancel)?;
            let at = next.fetch_add(MIB, Ordering::Relaxed);
            let Some(left) = len.checked_sub(at).filter(|left| *left > 0) else { return Ok(()) };
            if at.is_multiple_of(AHEAD) {
                let from = if at == 0 { 0 } else { at.saturating_add(AHEAD) };
                let ahead = at.saturating_add(2 * AHEAD).min(len).saturating_sub(from);
                disk.prefetch(DenseOffset::new(from), ahead)?;
            }
            let bytes = piece.get_mut(..usize::try_from(left.min(MIB)).unwrap_or_default());
            let bytes = bytes.unwrap_or_default();
            disk.read_dense(DenseOffset::new(at), bytes)?;
            digests.add(DenseOffset::new(at), bytes)?;
            control.progress.add(bytes.len() as u64);
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers.max(1)).map(|_| scope.spawn(|| guarded(work))).collect();
        let ends = threads.into_iter().map(|thread| {
            thread.join().unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "a thread panicked")))
        });
        ends.collect::<Vec<_>>().into_iter().collect::<Result<()>>()
    })?;
    Ok(digests)
}

/// Walks the blocks of a table that are not zeros, ascending, each with its digest.
pub(super) struct UsedBlocks<'a> {
    runs: virtfold_base::packed::Iter<'a, virtfold_archive::table::Run>,
    digests: &'a BlockDigests,
    block: u64,
    capacity: u64,
    zero: Digest,
    /// The next block of the run at hand, the first one behind the run, and the digest's number.
    at: u64,
    end: u64,
    number: u64,
}

impl<'a> UsedBlocks<'a> {
    pub(super) fn new(table: &'a CorrespondenceTable, digests: &'a BlockDigests, block: BlockSize) -> Self {
        let zero = zeros(block.get());
        let (block, capacity) = (block.get(), table.capacity());
        Self { runs: table.iter(), digests, block, capacity, zero, at: 0, end: 0, number: 0 }
    }

    fn step(&mut self) -> Result<Option<StateBlock>> {
        loop {
            if self.at == self.end {
                let Some(run) = self.runs.next().transpose()? else { return Ok(None) };
                self.at = run.guest.get() / self.block;
                self.end = run.guest.saturating_add(run.len).get().div_ceil(self.block);
                continue;
            }
            let digest = self.digests.digest(self.number, &|_, _| {
                Err(Error::new(ErrorKind::Internal, "a block was digested before it was read"))
            })?;
            let number = self.at;
            self.at += 1;
            self.number += 1;
            let len = self.capacity.saturating_sub(number.saturating_mul(self.block)).min(self.block);
            let zero = if len == self.block { self.zero } else { zeros(len) };
            if digest != zero {
                return Ok(Some(StateBlock { number, digest }));
            }
        }
    }
}

impl Iterator for UsedBlocks<'_> {
    type Item = Result<StateBlock>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

/// The digest of so many zeros, at most a block's.
fn zeros(len: u64) -> Digest {
    Digest::of(&vec![0; usize::try_from(len).unwrap_or_default()])
}

/// The blocks of a disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granularity {
    /// Those that have digests.
    pub(super) digest: BlockSize,
    /// Those that are copied; not smaller.
    pub(super) copy: BlockSize,
    /// The disk's size, bytes.
    pub(super) capacity: u64,
    /// Its size in the parent: what is behind it has changed.
    pub(super) before: u64,
}

/// The blocks that are not the same on both sides, widened to those that are copied.
pub(super) fn differing(
    now: &mut dyn Iterator<Item = Result<StateBlock>>,
    then: &mut dyn Iterator<Item = Result<StateBlock>>,
    blocks: Granularity,
) -> Result<ChangedBlocks> {
    let Granularity { digest, copy, capacity, before } = blocks;
    let new_from = if before < capacity { copy.floor(before) } else { capacity };
    let mut builder = Builder::new(capacity);
    let mut push = |number: u64| -> Result<()> {
        let at = number.saturating_mul(digest.get());
        let start = copy.floor(at);
        let end = copy.ceil(at.saturating_add(1)).min(new_from);
        // What is behind has changed anyway, or is not there any more: the disk has shrunk.
        if start < end { builder.push(GuestOffset::new(start), end - start) } else { Ok(()) }
    };
    let (mut here, mut there) = (now.next().transpose()?, then.next().transpose()?);
    loop {
        match (&here, &there) {
            (None, None) => break,
            (Some(a), Some(b)) if a.number == b.number => {
                if a.digest != b.digest {
                    push(a.number)?;
                }
                here = now.next().transpose()?;
                there = then.next().transpose()?;
            }
            (Some(a), b) if b.as_ref().is_none_or(|b| a.number < b.number) => {
                push(a.number)?;
                here = now.next().transpose()?;
            }
            (_, Some(b)) => {
                push(b.number)?;
                there = then.next().transpose()?;
            }
            (Some(_), None) => {}
        }
    }
    builder.push(GuestOffset::new(new_from), capacity.saturating_sub(new_from))?;
    builder.finish()
}
