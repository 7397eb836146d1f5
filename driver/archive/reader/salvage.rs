//! The pass over an archive that is damaged or cut: what is intact reaches the visitor, and what is lost is said.
//!
//! Where bytes are lost within a disk's data, the pass goes on behind them, for the disk's table says how many there are. Where they
//! are lost anywhere else, nobody knows in this pass what follows: it is adrift, and takes nothing more. (A file is searched for the second copies at its end;
//! what comes once can't be.)
//!
//! What a plain archive's bytes are worth only the digests at its end tell: a MiB that is not what was written is taken back then.

use std::ops::Range;

use super::{
    Chunk, ChunkState, Current, Digest, ErrorKind, KnownDisk, Loss, Manifest, Reader, Result, Visitor,
    contradiction,
};
use crate::archive::end::CHUNK;
use crate::units::{DenseOffset, StreamOffset};

/// Zeros in the place of what is lost, so many at once.
const ZEROS: &[u8] = &[0; 64 << 10];

/// What a pass forgives, and what it had to.
#[derive(Debug, Default)]
pub(super) struct Forgiven {
    /// The bytes at hand are lost ones.
    pub(super) losing: bool,
    /// MiBs of a plain stream that are not what was written.
    pub(super) wrong: Vec<u64>,
    adrift: Option<String>,
}

/// What is known of an archive when all that came of it was seen.
#[derive(Debug)]
pub struct Salvaged {
    /// Its head.
    pub head: Option<Manifest>,
    /// Whether all of it came, up to its end.
    pub complete: bool,
    /// Whether the archive's digests were there.
    pub checked: bool,
    /// Where the pass lost its way, and why.
    pub adrift: Option<String>,
}

impl<'v> Reader<'v> {
    /// A pass that goes on behind damage, as far as that is possible; fed by [`Reader::salvage`].
    pub fn forgiving(visitor: &'v mut dyn Visitor) -> Self {
        Self { forgiven: Some(Forgiven::default()), ..Self::new(visitor) }
    }

    /// Takes the next chunk, damaged or not. `lost` are ranges of the stream that are not what was written, whatever the chunk says.
    ///
    /// # Errors
    /// What is wrong before the head is known: then there is nothing to go by. Those of the visitor.
    pub fn salvage(&mut self, chunk: &Chunk<'_>, lost: &[Range<u64>]) -> Result<()> {
        if self.forgiven.as_ref().is_none_or(|forgiven| forgiven.adrift.is_some()) {
            return Ok(());
        }
        let taken = match chunk.state {
            ChunkState::Damaged(damage) => self.lose_frames(damage.stream.clone()),
            _ if lost.is_empty() => self.chunk(chunk),
            _ => self.riddled(chunk, lost),
        };
        match taken {
            Err(error) if self.head.is_some() && error.kind() == ErrorKind::Damaged => {
                let what = format!("behind byte {} of the stream: {error}", self.parser.position());
                self.forgiven.get_or_insert_default().adrift = Some(what);
                Ok(())
            }
            taken => taken,
        }
    }

    /// A chunk of a plain stream with holes.
    fn riddled(&mut self, chunk: &Chunk<'_>, lost: &[Range<u64>]) -> Result<()> {
        let digest = Digest::of(chunk.bytes);
        let (start, end) = (chunk.at.get(), chunk.at.get().saturating_add(chunk.bytes.len() as u64));
        let mut at = start;
        let piece = |from: u64, to: u64| {
            let place = |at: u64| usize::try_from(at - start).unwrap_or(usize::MAX);
            chunk.bytes.get(place(from)..place(to)).unwrap_or_default()
        };
        for hole in lost {
            let (from, to) = (hole.start.clamp(at, end), hole.end.clamp(at, end));
            self.feed(piece(at, from), chunk)?;
            self.lose(to - from, chunk)?;
            at = to;
        }
        self.feed(piece(at, end), chunk)?;
        if self.body_len.is_none() {
            self.digests.push(digest)?;
        }
        Ok(())
    }

    /// Frames that are lost.
    fn lose_frames(&mut self, range: Range<StreamOffset>) -> Result<()> {
        let state = ChunkState::Unchecked(Digest::of(&[]));
        self.lose(range.end.since(range.start), &Chunk { at: range.start, bytes: &[], state })?;
        let count = range.end.get().div_ceil(CHUNK).saturating_sub(range.start.get().div_ceil(CHUNK));
        (0..count).try_for_each(|_| self.digests.push(Digest::of(&[])))
    }

    fn lose(&mut self, len: u64, chunk: &Chunk<'_>) -> Result<()> {
        let mut left = len;
        while left > 0 {
            let room = match &self.current {
                Current::Dense { table, at, .. } => table.dense_len().saturating_sub(at.get()),
                _ => 0,
            };
            let now = usize::try_from(left.min(room)).unwrap_or(usize::MAX).min(ZEROS.len());
            if now == 0 {
                return Err(contradiction("what says where the next disk is was lost"));
            }
            self.forgiven.get_or_insert_default().losing = true;
            let fed = self.feed(ZEROS.get(..now).unwrap_or_default(), chunk);
            self.forgiven.get_or_insert_default().losing = false;
            fed?;
            left -= now as u64;
        }
        Ok(())
    }

    /// The stream has ended, or nothing more of it comes.
    ///
    /// # Errors
    /// Those of the visitor.
    pub fn salvaged(mut self) -> Result<Salvaged> {
        let forgiven = self.forgiven.take().unwrap_or_default();
        // What never came of the disk at hand.
        if let Current::Dense { index, table, at } = &self.current {
            for piece in table.pieces(*at, table.dense_len().saturating_sub(at.get()))? {
                self.visitor.lost(*index, &piece?, Loss::Never)?;
            }
        }
        for number in &forgiven.wrong {
            // Lost frames have been said already.
            if self.digests.get(*number)? == Digest::of(&[]) {
                continue;
            }
            let (from, to) = (number.saturating_mul(CHUNK), number.saturating_add(1).saturating_mul(CHUNK));
            for (index, disk) in self.disks.iter().enumerate() {
                disk.within(from..to, &mut |piece| self.visitor.lost(index, piece, Loss::Given))?;
            }
        }
        let checked = self.end.is_some();
        Ok(Salvaged {
            complete: forgiven.adrift.is_none() && checked && self.parser.finish().is_ok(),
            checked,
            head: self.head,
            adrift: forgiven.adrift,
        })
    }
}

impl KnownDisk {
    /// Gives `take` the pieces of the disk that lie in a range of the stream.
    fn within(
        &self,
        stream: Range<u64>,
        take: &mut dyn FnMut(&crate::table::Run) -> Result<()>,
    ) -> Result<()> {
        let first = self.dense_at.get();
        let end = first.saturating_add(self.table.dense_len());
        let (from, to) = (stream.start.clamp(first, end), stream.end.clamp(first, end));
        for piece in self.table.pieces(DenseOffset::new(from - first), to - from)? {
            take(&piece?)?;
        }
        Ok(())
    }
}
