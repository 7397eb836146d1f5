//! Reading on behind what can't be read: a block is stepped over, and zeros take its place; a volume that
//! can't be had is left out, and where nothing of the archive is known behind it, the archive ends there.
//! What was left out is in [`LostRanges`].
//!
//! The block behind a damaged one is gone to by its position. When many in a row can't be read, the steps get
//! longer, so that a torn stretch of tape takes minutes and not days; what lies between is given up.

use super::{Error, ErrorKind, Result, TapeBlock, TapeSource};
use crate::LostRanges;
use virtfold_base::error::sentence;

/// After so many failures in a row the step doubles, up to so many times.
const PATIENCE: u32 = 8;
const DOUBLINGS: u32 = 10;

/// What is needed to read on.
#[derive(Debug, Default)]
pub(super) struct SalvageState {
    pub(super) gaps: LostRanges,
    /// Zeros that are still to be given out.
    zeros: u64,
    /// Failures in a row.
    failures: u32,
}

impl SalvageState {
    pub(super) fn new(gaps: LostRanges) -> Self {
        Self { gaps, ..Self::default() }
    }

    /// A block was read.
    pub(super) fn read_one(&mut self) {
        self.failures = 0;
    }
}

impl TapeSource {
    /// Puts zeros that are to come into the buffer; false where none are.
    pub(super) fn give_zeros(&mut self) -> bool {
        let Some(salvage) = self.salvage.as_mut().filter(|salvage| salvage.zeros > 0) else { return false };
        let now =
            usize::try_from(salvage.zeros).unwrap_or(usize::MAX).min(TapeBlock::LARGEST).min(self.buf.len());
        salvage.zeros -= now as u64;
        self.buf.iter_mut().take(now).for_each(|byte| *byte = 0);
        self.rest = 0..now;
        true
    }

    /// So many bytes are lost here.
    fn lose(&mut self, from: u64, len: u64, why: &str) {
        let Some(salvage) = &mut self.salvage else { return };
        salvage.gaps.add(from..from.saturating_add(len));
        salvage.zeros += len;
        tracing::warn!(
            "bytes {from} to {} of '{}' can't be read: {why}",
            from.saturating_add(len),
            self.archive
        );
    }

    /// A block can't be read: on to the next one. The error comes back where that can't be.
    pub(super) fn step_over(&mut self, error: Error) -> Result<()> {
        let expected = self.expected();
        let (Some(salvage), Some(open)) = (&mut self.salvage, &mut self.open) else { return Err(error) };
        if error.kind() == ErrorKind::Interrupted {
            return Err(error);
        }
        let step = 1_u64 << (salvage.failures / PATIENCE).min(DOUBLINGS);
        salvage.failures += 1;
        let size = open.part.begin.block_size.get() as u64;
        let left = expected.map(|expected| expected.saturating_sub(open.bytes));
        let lost = (step * size).min(left.unwrap_or(u64::MAX));
        let from = open.part.begin.offset.saturating_add(open.bytes);
        open.blocks += lost.div_ceil(size);
        open.bytes += lost;
        let to = open.part.start.saturating_add(open.blocks);
        let gone = self.deck.seek(to);
        if lost == 0 || gone.is_err() {
            self.note(format!("part {} can't be read further: {}", self.number, sentence(&error)));
            self.lose(from, left.unwrap_or(0).max(lost), &sentence(&error));
            self.doubt_part();
            return self.skip_on();
        }
        self.lose(from, lost, &sentence(&error));
        Ok(())
    }

    /// Bytes that the open part should have, where that is known.
    fn expected(&self) -> Option<u64> {
        let open = self.open.as_ref()?;
        let own = open.part.end.as_ref().map(|end| end.bytes);
        let known = self.hints.get(&self.number).filter(|hint| hint.start == Some(open.part.start));
        own.or(known.and_then(|hint| hint.bytes))
    }

    pub(super) fn note(&self, text: String) {
        if let Some(salvage) = &self.salvage {
            salvage.gaps.note(text);
        }
    }

    /// On to the next part that can be had; without one, the archive ends here.
    pub(super) fn skip_on(&mut self) -> Result<()> {
        let mut number = self.number;
        loop {
            self.number = number;
            let error = match self.next_part() {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                Err(error) => error,
            };
            self.note(sentence(&error));
            // A later part of the same volume is no better; one of another volume may be there.
            let label = self.hints.get(&(number + 1)).map(|hint| hint.label.clone());
            let other = self.hints.range(number + 2..).find(|(_, hint)| Some(&hint.label) != label.as_ref());
            match other {
                Some((next, _)) => {
                    let next = *next;
                    number = next - 1;
                    // Where this fails, so does the look at the drive, which says it.
                    if let Err(error) = self.change(next, None)
                        && error.kind() == ErrorKind::Interrupted
                    {
                        return Err(error);
                    }
                }
                None => {
                    self.ended = true;
                    return Ok(());
                }
            }
        }
    }

    /// A part that begins behind a gap: zeros for it. False where it begins before what was given out, or
    /// nobody salvages.
    pub(super) fn bridge(&mut self, offset: u64) -> bool {
        if self.salvage.is_none() || offset < self.total {
            return false;
        }
        let (from, len) = (self.total, offset - self.total);
        self.lose(from, len, "the part that holds them is not there");
        self.total = offset;
        true
    }
}
