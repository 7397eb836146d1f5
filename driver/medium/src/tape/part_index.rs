//! Where the parts of an archive are: by what is remembered, and by what the tape in the drive says.
//!
//! Imports: `error`, the modules of tapes.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::positioned_drive::{PositionedDrive, ReadOutcome};
use super::record::{RECORD, TapeBlock, TapeRecord};
use super::tape_catalog::{PartLocation, TapeCatalog};
use super::volume::{VolumeContents, VolumePart, walk};
use crate::TapeArchive;
use virtfold_base::error::{Error, ErrorKind, Result};

/// Parts of one volume whose place is remembered by another one's word.
const PARTS: u32 = 1 << 16;

/// What is known of a part: its volume's label, and where its first data block is.
#[derive(Clone, Debug, Default)]
pub(super) struct PartHint {
    pub(super) label: Option<String>,
    pub(super) volume: Option<Uuid>,
    pub(super) start: Option<u64>,
    /// How often the run had gone on.
    pub(super) again: u32,
    /// Whether it has an end.
    pub(super) ended: bool,
    /// Bytes of its data, where that is known.
    pub(super) bytes: Option<u64>,
}

/// By number of the part.
pub(super) type PartHints = BTreeMap<u32, PartHint>;

/// Takes what is known of a part, where it is not less than what was known.
pub(super) fn learn(hints: &mut PartHints, number: u32, hint: PartHint) {
    let worth = |hint: &PartHint| (hint.again, hint.ended, hint.start.is_some());
    if hints.get(&number).is_none_or(|known| worth(known) <= worth(&hint)) {
        hints.insert(number, hint);
    }
}

/// What is known of the archive that is wanted.
pub(super) struct WantedArchive {
    pub(super) run: Uuid,
    pub(super) archive: String,
    pub(super) hints: PartHints,
    pub(super) contents: Option<VolumeContents>,
    /// Bytes of the archive, where its end is known.
    pub(super) vouched: Option<u64>,
}

/// The part whose first data block is at `start`, where its begin is there.
pub(super) fn begin_at(deck: &mut PositionedDrive, start: u64) -> Result<Option<VolumePart>> {
    let Some(at) = start.checked_sub(2) else { return Ok(None) };
    if deck.end_of_data()? < start {
        return Ok(None);
    }
    deck.seek(at)?;
    let mut buf = vec![0; TapeBlock::LARGEST];
    let ReadOutcome::Block(RECORD) = deck.read(&mut buf)? else { return Ok(None) };
    let Ok(TapeRecord::Begin(begin)) = TapeRecord::decode(buf.get(..RECORD).unwrap_or_default()) else {
        return Ok(None);
    };
    Ok(Some(VolumePart { file: 0, start, begin, end: None }))
}

pub(super) fn hint(placed: &PartLocation) -> PartHint {
    PartHint {
        label: Some(placed.label.label.clone()),
        volume: Some(placed.label.volume),
        start: Some(placed.part.start),
        again: placed.part.begin.earlier.again,
        ended: placed.part.end.is_some(),
        bytes: placed.part.end.as_ref().map(|end| end.bytes),
    }
}

/// Bytes of the archive that ends with this part, where it does.
pub(super) fn bytes_of(part: &VolumePart) -> Option<u64> {
    part.end.as_ref().filter(|end| end.last).map(|end| end.total)
}

fn several(id: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("several archives have ids that begin with {id}")).with_hint(
        "load the volume with the archive's first part, and restore without the catalog (--state-dir)",
    )
}

pub(super) fn by_ledger(id: &str, ledger: &dyn TapeCatalog) -> Result<Option<WantedArchive>> {
    let placed: Vec<PartLocation> = ledger.archives(id)?;
    let Some(first) = placed.first() else { return Ok(None) };
    let run = first.part.begin.run;
    if placed.iter().any(|other| other.part.begin.run != run) {
        return Err(several(id));
    }
    let mut hints = PartHints::new();
    placed.iter().for_each(|placed| learn(&mut hints, placed.part.begin.part, hint(placed)));
    let vouched = placed.iter().find_map(|placed| bytes_of(&placed.part));
    Ok(Some(WantedArchive { run, archive: first.part.begin.archive.clone(), hints, contents: None, vouched }))
}

pub(super) fn by_tape(
    deck: &mut PositionedDrive,
    fits: impl Fn(&VolumePart) -> bool,
    which: &TapeArchive,
) -> Result<WantedArchive> {
    let (contents, _) = walk(deck)?;
    let found = contents.parts.iter().rev().find(|part| fits(part));
    let Some(found) = found else {
        let what = match which {
            TapeArchive::Latest => "no complete archive".to_owned(),
            TapeArchive::Id(id) => format!("no archive '{id}'"),
        };
        let what = format!(
            "{what} is known, and none ends on volume '{}' in '{}'",
            contents.label.label,
            deck.name()
        );
        return Err(Error::new(ErrorKind::NotFound, what)
            .with_hint("load the right volume; 'virtfold tape list' shows what is on it"));
    };
    let run = found.begin.run;
    let archive = found.begin.archive.clone();
    if let TapeArchive::Id(id) = which
        && contents.parts.iter().any(|part| fits(part) && part.begin.run != run)
    {
        return Err(several(id));
    }
    let mut hints = PartHints::new();
    for part in contents.parts.iter().filter(|part| part.begin.run == run) {
        let here = PartLocation { label: contents.label.clone(), part: part.clone() };
        learn(&mut hints, part.begin.part, hint(&here));
    }
    // The begin of its first part here names the volumes before this one.
    if let Some(first) = contents.parts.iter().find(|part| part.begin.run == run) {
        let mut behind = first.begin.part;
        for (number, label) in first.begin.earlier.backwards(behind) {
            let there = PartHint { label: Some(label.clone()), ended: true, ..PartHint::default() };
            let from = number.max(1).max(behind.saturating_sub(PARTS));
            (from..behind).for_each(|number| learn(&mut hints, number, there.clone()));
            behind = behind.min(number);
        }
    }
    let vouched = contents.parts.iter().filter(|part| part.begin.run == run).find_map(bytes_of);
    Ok(WantedArchive { run, archive, hints, contents: Some(contents), vouched })
}
