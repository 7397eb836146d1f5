//! What a process that is gone has committed of an archive: by what the ledger knows, its run goes on.
//!
//! Imports: `error`, the modules of tapes.

use uuid::Uuid;

use super::ledger::{Ledger, Placed};
use super::record::Label;
use crate::error::Result;

/// The committed parts of a run that has no end, from the first on without a gap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Committed {
    pub(super) run: Uuid,
    /// The volumes that they are on, in their order, and the number of the first part on each.
    pub(super) volumes: Vec<(Label, u32)>,
    /// How many there are.
    pub(super) parts: u32,
    /// Bytes in them.
    pub(super) total: u64,
    /// How often the run had gone on.
    pub(super) again: u32,
}

impl Committed {
    /// What there is of `archive`; or why there is nothing to go on behind.
    ///
    /// # Errors
    /// The memory can't be read.
    pub(super) fn of(ledger: &dyn Ledger, archive: &str) -> Result<std::result::Result<Self, String>> {
        let mut parts = ledger.archives(super::id_of(archive))?;
        parts.retain(|placed| placed.part.begin.archive == archive);
        Ok(Self::from(&parts).ok_or_else(|| match parts.is_empty() {
            true => "nothing of it was committed to a tape".to_owned(),
            false => "what the catalog knows of it on tapes does not fit together".to_owned(),
        }))
    }

    fn from(parts: &[Placed]) -> Option<Self> {
        let first = parts.first()?;
        let run = first.part.begin.run;
        let mut committed = Self { run, volumes: Vec::new(), parts: 0, total: 0, again: 0 };
        for Placed { label, part } in parts {
            let end = part.end.as_ref().filter(|end| !end.last)?;
            let begin = &part.begin;
            let follows = begin.run == run
                && begin.part == committed.parts.checked_add(1)?
                && begin.offset == committed.total
                && end.total == committed.total.checked_add(end.bytes)?
                && label.block_size == first.label.block_size;
            if !follows {
                return None;
            }
            if committed.volumes.last().is_none_or(|(last, _)| last.volume != label.volume) {
                committed.volumes.push((label.clone(), begin.part));
            }
            committed.parts = begin.part;
            committed.total = end.total;
            committed.again = committed.again.max(begin.earlier.again);
        }
        Some(committed)
    }
}
