//! Where each frame lies: the list that the seek table gives, or that a walk along the frames finds.
//!
//! Invariants: entries ascend in frame number, stream offset and file offset, except that an entry that says
//! 'lost' may repeat the number and offset of the next; the end comes last.
//!
//! Imports: `units`, `error`, `packed`.

use std::ops::Range;

use virtfold_base::error::Result;
use virtfold_base::packed::{self, PackedList, Record};
use virtfold_base::units::StreamOffset;

/// Where a frame, or a gap in which frames are lost, begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FrameStart {
    pub(super) number: u64,
    pub(super) at: StreamOffset,
    pub(super) file: u64,
    /// Whether it is a gap.
    pub(super) lost: bool,
}

impl Record for FrameStart {
    fn pack(&self, prev: &Self, out: &mut Vec<u8>) {
        packed::put_delta(prev.number, self.number, out);
        packed::put_delta(prev.at.get(), self.at.get(), out);
        packed::put_delta(prev.file, self.file, out);
        packed::put_varint(self.lost.into(), out);
    }

    fn unpack(prev: &Self, input: &mut &[u8]) -> Option<Self> {
        Some(Self {
            number: packed::take_delta(prev.number, input)?,
            at: StreamOffset::new(packed::take_delta(prev.at.get(), input)?),
            file: packed::take_delta(prev.file, input)?,
            lost: packed::take_varint(input)? != 0,
        })
    }
}

/// A frame, or a gap, with both its ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Numbers of the frames: one, unless it is a gap.
    pub(super) numbers: Range<u64>,
    pub(super) stream: Range<StreamOffset>,
    pub(super) file: Range<u64>,
    pub(super) lost: bool,
}

/// The list.
#[derive(Debug, Default)]
pub(super) struct FrameIndex {
    list: PackedList<FrameStart>,
    end: FrameStart,
}

impl FrameIndex {
    /// Takes in the next frame or gap, which begins where the end was or later, and the new end.
    pub(super) fn push(&mut self, entry: FrameStart, end: FrameStart) -> Result<()> {
        self.end = end;
        self.list.push(entry)
    }

    /// Where the frames end: number of the frame that would come next, the stream's and the file's offset.
    pub(super) fn end(&self) -> FrameStart {
        self.end
    }

    /// All spans in order, from the one that holds `from`.
    pub(super) fn spans(&self, from: StreamOffset) -> Result<impl Iterator<Item = Result<Span>> + '_> {
        let mut entries = if from == StreamOffset::ZERO {
            self.list.iter()
        } else {
            self.list.iter_from(|entry| entry.at <= from)?
        };
        let mut current = entries.next();
        Ok(std::iter::from_fn(move || {
            let this = current.take()?;
            current = entries.next();
            let next = match &current {
                Some(Ok(next)) => *next,
                // The error comes out on the next call.
                Some(Err(_)) | None => self.end,
            };
            Some(this.map(|this| Span {
                numbers: this.number..next.number,
                stream: this.at..next.at,
                file: this.file..next.file,
                lost: this.lost,
            }))
        }))
    }
}
