//! The digests of a disk's blocks, made on the way: what `TARGET.blocks` is.
//!
//! The workers read dense bytes in pieces that end where a chunk of the stream does, in any order. Whole
//! blocks are digested at once; of a block that two pieces share the first piece waits here for the other.
//! Digests go into the list in order; those that come early wait. Both wait no longer than a chunk is in
//! flight, so memory is bounded by the chunks in flight, and by a spill file for the list.
//!
//! A block that nobody has read (its chunk was put out by an earlier run) is read when its digest is asked
//! for, and before the stream goes on behind it ([`BlockDigests::fill`]).
//!
//! Imports: `units`, `error`, `stream`.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::manifest::{BLOCK_DIGEST_LEN, Disk};
use crate::stream::{DataSource, Digest, Digests};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::{BlockSize, DenseOffset, MIB};

/// Reads dense bytes of the disk.
pub type ReadDense<'a> = dyn Fn(DenseOffset, &mut [u8]) -> Result<()> + 'a;

/// The digests of one disk's blocks. Filled by many threads at once.
#[derive(Debug)]
pub struct BlockDigests {
    block: u64,
    dense_len: u64,
    known: Mutex<DigestTable>,
}

#[derive(Debug, Default)]
struct DigestTable {
    /// Those of the first blocks.
    list: Digests,
    /// Those of blocks behind one that is not known.
    early: BTreeMap<u64, Digest>,
    /// Parts of blocks, each with its place in its block.
    parts: BTreeMap<u64, Vec<(usize, Vec<u8>)>>,
}

impl BlockDigests {
    /// For a dense image of `dense_len` bytes in blocks of `block`.
    pub fn new(block: BlockSize, dense_len: u64) -> Self {
        Self { block: block.get(), dense_len, known: Mutex::default() }
    }

    /// For a disk as its head describes it; nothing for one without digests of blocks.
    pub fn of(disk: &Disk) -> Option<Self> {
        disk.digest_block().map(|block| Self::new(block, disk.dense_length))
    }

    /// How many blocks there are.
    pub fn count(&self) -> u64 {
        self.dense_len.div_ceil(self.block)
    }

    /// Bytes of all digests.
    pub fn bytes(&self) -> u64 {
        self.count().saturating_mul(BLOCK_DIGEST_LEN)
    }

    fn known(&self) -> MutexGuard<'_, DigestTable> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where block `number` begins, and its bytes.
    fn place(&self, number: u64) -> (DenseOffset, usize) {
        let at = number.saturating_mul(self.block);
        let len = self.dense_len.saturating_sub(at).min(self.block);
        (DenseOffset::new(at), usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// Takes the dense bytes at `at`.
    ///
    /// # Errors
    /// When the list can't spill to its temporary file.
    pub fn add(&self, at: DenseOffset, bytes: &[u8]) -> Result<()> {
        let (mut whole, mut parts) = (Vec::new(), Vec::new());
        let (mut at, mut rest) = (at.get(), bytes);
        while !rest.is_empty() {
            let number = at / self.block;
            let (start, len) = self.place(number);
            let inside = usize::try_from(at - start.get()).map_err(|_| beyond())?;
            let left = len.checked_sub(inside).filter(|left| *left > 0).ok_or_else(beyond)?;
            let (now, later) = rest.split_at(left.min(rest.len()));
            match now.len() == len {
                true => whole.push((number, Digest::of(now))),
                false => parts.push((number, inside, now)),
            }
            at += now.len() as u64;
            rest = later;
        }
        let mut known = self.known();
        whole.into_iter().try_for_each(|(number, digest)| known.put(number, digest))?;
        parts.into_iter().try_for_each(|(number, inside, part)| {
            known.put_part(number, self.place(number).1, (inside, part.to_vec()))
        })
    }

    /// The digest of block `number`; where it is not known, `read` is asked for the block.
    ///
    /// # Errors
    /// Those of `read`; the list can't be read back.
    pub fn digest(&self, number: u64, read: &ReadDense<'_>) -> Result<Digest> {
        if let Some(digest) = self.known().find(number)? {
            return Ok(digest);
        }
        let (at, len) = self.place(number);
        if len == 0 {
            return Err(beyond());
        }
        let mut bytes = vec![0; len];
        read(at, &mut bytes)?;
        let digest = Digest::of(&bytes);
        self.known().put(number, digest)?;
        Ok(digest)
    }

    /// Fills `buf` with the bytes of the digests at `at`, which are those of `TARGET.blocks`.
    ///
    /// # Errors
    /// As [`BlockDigests::digest`].
    pub fn read(&self, at: DenseOffset, buf: &mut [u8], read: &ReadDense<'_>) -> Result<()> {
        let (mut at, mut rest) = (at.get(), buf);
        while !rest.is_empty() {
            let digest = self.digest(at / BLOCK_DIGEST_LEN, read)?;
            let inside = usize::try_from(at % BLOCK_DIGEST_LEN).map_err(|_| beyond())?;
            let from = digest.as_bytes().get(inside..).ok_or_else(beyond)?;
            let len = from.len().min(rest.len());
            let (now, later) = std::mem::take(&mut rest).split_at_mut(len);
            now.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            rest = later;
            at += len as u64;
        }
        Ok(())
    }

    /// Makes the digests of all blocks that begin before `end` and are not known. `look` is called now and
    /// then and may end it.
    ///
    /// # Errors
    /// Those of `read` and `look`; the list can't spill.
    pub fn fill(&self, end: DenseOffset, read: &ReadDense<'_>, look: &dyn Fn() -> Result<()>) -> Result<()> {
        let step = (MIB / self.block).max(1);
        let blocks = end.get().min(self.dense_len).div_ceil(self.block);
        let mut number = self.known().list.len();
        while number < blocks {
            look()?;
            for number in number..(number + step).min(blocks) {
                self.digest(number, read)?;
            }
            number += step;
        }
        Ok(())
    }
}

impl DigestTable {
    fn find(&self, number: u64) -> Result<Option<Digest>> {
        match number < self.list.len() {
            true => self.list.get(number).map(Some),
            false => Ok(self.early.get(&number).copied()),
        }
    }

    fn put(&mut self, number: u64, digest: Digest) -> Result<()> {
        self.parts.remove(&number);
        if number >= self.list.len() {
            self.early.insert(number, digest);
        }
        while let Some(next) = self.early.remove(&self.list.len()) {
            self.list.push(next)?;
        }
        Ok(())
    }

    fn put_part(&mut self, number: u64, len: usize, part: (usize, Vec<u8>)) -> Result<()> {
        if self.find(number)?.is_some() {
            return Ok(());
        }
        let parts = self.parts.entry(number).or_default();
        if parts.iter().any(|(at, _)| *at == part.0) {
            return Ok(());
        }
        parts.push(part);
        parts.sort_unstable_by_key(|(at, _)| *at);
        let mut bytes = Vec::with_capacity(len);
        for (at, part) in parts.iter() {
            if *at == bytes.len() {
                bytes.extend_from_slice(part);
            }
        }
        if bytes.len() == len { self.put(number, Digest::of(&bytes)) } else { Ok(()) }
    }
}

fn beyond() -> Error {
    Error::new(ErrorKind::Internal, "the digests of a disk's blocks were asked for past their end")
}

/// The disks' dense bytes as the stream reads them: with their digests made on the way, and these digests
/// behind them as if they were disks.
pub(crate) struct DigestingSource<'a> {
    /// The disks.
    pub(crate) data: &'a dyn DataSource,
    /// One for each disk, or none for all.
    pub(crate) blocks: &'a [Option<BlockDigests>],
}

impl DigestingSource<'_> {
    /// The number under which the digests of disk `index` are read.
    pub(crate) fn number(&self, index: usize) -> usize {
        self.blocks.len() + index
    }

    pub(crate) fn of(&self, index: usize) -> Option<&BlockDigests> {
        self.blocks.get(index).and_then(Option::as_ref)
    }
}

impl DataSource for DigestingSource<'_> {
    fn read_dense(&self, disk: usize, at: DenseOffset, buf: &mut [u8]) -> Result<()> {
        match disk.checked_sub(self.blocks.len()).filter(|_| !self.blocks.is_empty()) {
            Some(own) => {
                let blocks = self.of(own).ok_or_else(beyond)?;
                blocks.read(at, buf, &|at, buf| self.data.read_dense(own, at, buf))
            }
            None => {
                self.data.read_dense(disk, at, buf)?;
                self.of(disk).map_or(Ok(()), |blocks| blocks.add(at, buf))
            }
        }
    }

    fn prefetch(&self, disk: usize, at: DenseOffset, len: u64) -> Result<()> {
        match self.blocks.is_empty() || disk < self.blocks.len() {
            true => self.data.prefetch(disk, at, len),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn content(len: usize) -> Vec<u8> {
        (0..len).map(|at| u8::try_from((at * 31 + at / 4096) % 251).unwrap()).collect()
    }

    fn expected(bytes: &[u8], block: usize) -> Vec<u8> {
        bytes.chunks(block).flat_map(|block| *blake3::hash(block).as_bytes()).collect()
    }

    proptest! {
        #[test]
        fn pieces_in_any_order_give_the_same_digests(
            len in 1_usize..300_000,
            cut in 1_usize..9,
            order in any::<proptest::sample::Index>(),
            missing in any::<bool>(),
        ) {
            let bytes = content(len);
            let blocks = BlockDigests::new(BlockSize::new(8192).unwrap(), len as u64);
            // As chunks of a stream cut: first a short one, then long ones.
            let first = (cut * 4096).min(len);
            let mut places: Vec<(usize, usize)> = vec![(0, first)];
            places.extend((first..len).step_by(32768).map(|at| (at, (at + 32768).min(len))));
            let turn = order.index(places.len());
            places.rotate_left(turn);
            if missing {
                places.pop();
            }
            for (from, to) in places {
                blocks.add(DenseOffset::new(from as u64), &bytes[from..to]).unwrap();
            }
            let read = |at: DenseOffset, buf: &mut [u8]| {
                let at = usize::try_from(at.get()).unwrap();
                buf.copy_from_slice(&bytes[at..at + buf.len()]);
                Ok(())
            };
            let mut all = vec![0; usize::try_from(blocks.bytes()).unwrap()];
            // In pieces that end inside of a digest.
            let split = all.len() / 2 + 7.min(all.len() / 3);
            let (front, back) = all.split_at_mut(split);
            blocks.read(DenseOffset::ZERO, front, &read).unwrap();
            blocks.read(DenseOffset::new(front.len() as u64), back, &read).unwrap();
            prop_assert_eq!(all, expected(&bytes, 8192));
        }
    }

    #[test]
    fn what_an_earlier_run_has_put_out_is_read_once_and_nothing_waits_for_it() {
        let bytes = content(1 << 20);
        let blocks = BlockDigests::new(BlockSize::MIN, 1 << 20);
        let reads = std::cell::Cell::new(0);
        let read = |at: DenseOffset, buf: &mut [u8]| {
            reads.set(reads.get() + buf.len());
            let at = usize::try_from(at.get()).unwrap();
            buf.copy_from_slice(&bytes[at..at + buf.len()]);
            Ok(())
        };
        blocks.fill(DenseOffset::new(600_000), &read, &|| Ok(())).unwrap();
        let kept = 600_000_usize.next_multiple_of(4096);
        assert_eq!(reads.get(), kept);
        blocks.add(DenseOffset::new(600_000), &bytes[600_000..]).unwrap();
        assert!(blocks.known().early.is_empty() && blocks.known().parts.is_empty());
        let mut all = vec![0; usize::try_from(blocks.bytes()).unwrap()];
        blocks.read(DenseOffset::ZERO, &mut all, &read).unwrap();
        assert_eq!((all, reads.get()), (expected(&bytes, 4096), kept));
        assert!(blocks.read(DenseOffset::new(blocks.bytes()), &mut [0], &read).is_err());
    }
}
