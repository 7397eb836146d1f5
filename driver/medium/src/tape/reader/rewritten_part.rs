//! Parts that were written again: what was given out of one without an end is the beginning of the one that
//! comes in its place.

use super::super::volume::VolumePart;
use super::OpenPart;
use crate::tape::PartHeader;

/// A part without an end that was given out: it may come again.
pub(super) struct UnfinishedPart {
    pub(super) part: VolumePart,
    /// Bytes that were given out of it, and of the ones before it that it came in the place of.
    bytes: u64,
    digest: blake3::Hash,
}

/// A part that comes again: what was given out of it is compared, and not given out twice.
pub(super) struct RewrittenPart {
    pub(super) left: u64,
    pub(super) hasher: blake3::Hasher,
    pub(super) digest: blake3::Hash,
}

impl UnfinishedPart {
    /// The part that was read so far, which ended within `overlap` or behind it.
    pub(super) fn of(open: OpenPart, overlap: Option<RewrittenPart>) -> Self {
        match overlap {
            // It has less than was given out before it came: that is still what has to come again.
            Some(RewrittenPart { left, digest, .. }) => {
                Self { part: open.part, bytes: open.bytes + left, digest }
            }
            None => Self { part: open.part, bytes: open.bytes, digest: open.hasher.finalize() },
        }
    }

    /// The byte of the archive behind what was given out.
    pub(super) fn end(&self) -> u64 {
        self.part.begin.offset + self.bytes
    }

    /// What the part that comes in its place has to begin with.
    pub(super) fn overlap(&self) -> Option<RewrittenPart> {
        let overlap = RewrittenPart { left: self.bytes, hasher: blake3::Hasher::new(), digest: self.digest };
        Some(overlap).filter(|overlap| overlap.left > 0)
    }

    /// The same part, written again when the run had gone on.
    pub(super) fn again<'a>(&self, parts: &'a [VolumePart]) -> Option<&'a VolumePart> {
        let PartHeader { run, part, offset, earlier, .. } = &self.part.begin;
        let same = |other: &&VolumePart| {
            (&other.begin.run, &other.begin.part, &other.begin.offset) == (run, part, offset)
        };
        // A run whose process died before it committed anything had gone on as often as the one behind it.
        parts
            .iter()
            .filter(same)
            .filter(|other| other.worth() > (earlier.again, false))
            .max_by_key(|p| p.worth())
    }
}
