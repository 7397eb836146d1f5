//! What a process that is gone has committed of an archive: by what the ledger knows, its run goes on.
//!
//! What the ledger says is held against the tape that is in the drive ([`gone`]): a volume may have been
//! labelled or erased where nobody told this ledger.
//!
//! Imports: `error`, the modules of tapes.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::part_index::begin_at;
use super::positioned_drive::PositionedDrive;
use super::record::VolumeLabel;
use super::tape_catalog::{PartLocation, TapeCatalog};
use virtfold_base::error::Result;

/// The committed parts of a run that has no end, from the first on without a gap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CommittedParts {
    pub(super) run: Uuid,
    /// The volumes that they are on, in their order, and the number of the first part on each.
    pub(super) volumes: Vec<(VolumeLabel, u32)>,
    /// How many there are.
    pub(super) parts: u32,
    /// Bytes in them.
    pub(super) total: u64,
    /// How often the run had gone on.
    pub(super) again: u32,
    /// The last of them.
    pub(super) last: PartLocation,
}

impl CommittedParts {
    /// What there is of `archive`; or why there is nothing to go on behind.
    ///
    /// # Errors
    /// The memory can't be read.
    pub(super) fn of(ledger: &dyn TapeCatalog, archive: &str) -> Result<std::result::Result<Self, String>> {
        let mut parts = ledger.archives(super::id_of(archive))?;
        parts.retain(|placed| placed.part.begin.archive == archive);
        Ok(Self::from(&parts).map_err(ToOwned::to_owned))
    }

    fn from(parts: &[PartLocation]) -> std::result::Result<Self, &'static str> {
        const NOTHING: &str = "nothing of it was committed to tape";
        const ODD: &str = "the catalog's records of it are inconsistent";
        let first = parts.first().ok_or(NOTHING)?;
        let (run, again) = (first.part.begin.run, parts.iter().map(again).max().unwrap_or_default());
        if parts.iter().any(|placed| placed.part.begin.run != run) {
            return Err(ODD);
        }
        let mut committed: Option<Self> = None;
        for placed in counting(parts) {
            // Who listed a volume told the ledger of the part that was open, too.
            let Some(end) = &placed.part.end else { break };
            let (label, begin) = (&placed.label, &placed.part.begin);
            let (behind, total) = committed.as_ref().map_or((0, 0), |before| (before.parts, before.total));
            let follows = begin.part.checked_sub(1) == Some(behind)
                && begin.offset == total
                && total.checked_add(end.bytes) == Some(end.total)
                && label.block_size == first.label.block_size
                && label.pool == first.label.pool;
            if !follows {
                return Err(ODD);
            }
            if end.last {
                return Err("it is whole, on tapes");
            }
            let mut volumes = committed.map(|before| before.volumes).unwrap_or_default();
            if volumes.last().is_none_or(|(last, _)| last.volume != label.volume) {
                volumes.push((label.clone(), begin.part));
            }
            let last = placed.clone();
            committed = Some(Self { run, volumes, parts: begin.part, total: end.total, again, last });
        }
        committed.ok_or(NOTHING)
    }
}

fn again(placed: &PartLocation) -> u32 {
    placed.part.begin.earlier.again
}

/// Of each number the part that counts, in their order.
fn counting(parts: &[PartLocation]) -> impl Iterator<Item = &PartLocation> {
    let mut counting: BTreeMap<u32, &PartLocation> = BTreeMap::new();
    for placed in parts {
        let best = counting.entry(placed.part.begin.part).or_insert(placed);
        if best.part.worth() <= placed.part.worth() {
            *best = placed;
        }
    }
    counting.into_values()
}

/// Why what was committed is not there any more, by the volume in the drive, where that tells.
///
/// # Errors
/// The tape can't be read.
pub(super) fn gone(
    committed: &CommittedParts,
    deck: &mut PositionedDrive,
    label: &VolumeLabel,
) -> Result<Option<String>> {
    let anew = |old: &(VolumeLabel, u32)| old.0.label == label.label && old.0.volume != label.volume;
    if committed.volumes.iter().any(anew) {
        return Ok(Some(format!("volume '{}' was labelled again since then", label.label)));
    }
    let PartLocation { label: last, part } = &committed.last;
    if last.volume != label.volume {
        return Ok(None);
    }
    let blocks = part.end.as_ref().map_or(0, |end| end.blocks);
    let begun = begin_at(deck, part.start)?.is_some_and(|there| {
        (there.begin.volume, there.begin.run, there.begin.part)
            == (last.volume, committed.run, committed.parts)
    });
    // Its data and the filemark behind them; its end may have had no room.
    let is_there = begun && deck.end_of_data()? > part.start.saturating_add(blocks);
    Ok((!is_there).then(|| format!("volume '{}' lacks the parts that were committed to it", label.label)))
}
