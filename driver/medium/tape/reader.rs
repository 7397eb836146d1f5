//! An archive that comes from tapes: one pass, front to back, volume after volume.
//!
//! Where an archive is, the ledger may know; without it, the tape in the drive is walked. Either way each part is taken from its begin on the
//! tape, which has to be the one that is wanted, and starts at the byte where the part before ended. A part with an end has to
//! have its blocks, bytes and digest. A part without an end at the end of its volume may have been cut by the medium's end: the next volume is asked for, where anybody can change volumes.
//! Any other part without an end, behind which nothing is known, is where the archive ends: it is
//! for the archive's own end record to say that it is incomplete.
//!
//! Imports: `error`, the modules of tapes.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use uuid::Uuid;

use super::changer::{Change, Changer};
use super::deck::{Deck, Found, interrupted};
use super::drive::{Access, Drive};
use super::ledger::{Ledger, Placed, has_id, id_of};
use super::record::{End, RECORD, Record, TapeBlock};
use super::volume::{Part, VolumeContents, label_of, walk};
use crate::archive::stream::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::medium::TapeArchive;

/// How an archive comes from tapes.
pub struct TapeReading {
    /// The drive, not open.
    pub drive: Box<dyn Drive>,
    /// Who changes volumes.
    pub changer: Box<dyn Changer>,
    /// What is remembered.
    pub ledger: Arc<dyn Ledger>,
    /// How long to wait for a tape to be ready.
    pub patience: Duration,
    /// Ends the run.
    pub cancel: Cancel,
}

/// What is known of a part: its volume's label, and where its first data block is.
#[derive(Clone, Debug, Default)]
struct Hint {
    label: Option<String>,
    volume: Option<Uuid>,
    start: Option<u64>,
}

/// The part that is being read.
struct Open {
    part: Part,
    blocks: u64,
    bytes: u64,
    hasher: blake3::Hasher,
}

/// An archive on tapes. Its errors are [`io::Error`]s whose cause is the library's.
pub struct TapeSource {
    deck: Deck,
    changer: Box<dyn Changer>,
    patience: Duration,
    cancel: Cancel,
    pool: String,
    run: Uuid,
    archive: String,
    /// By number of the part.
    hints: BTreeMap<u32, Hint>,
    /// The volume in the drive, once it was looked at.
    contents: Option<VolumeContents>,
    loaded: Option<String>,
    number: u32,
    total: u64,
    open: Option<Open>,
    buf: Vec<u8>,
    /// What of `buf` has not been given out.
    rest: std::ops::Range<usize>,
    ended: bool,
    vouched: Option<u64>,
}

/// What is known of the archive that is wanted.
struct Wanted {
    run: Uuid,
    archive: String,
    hints: BTreeMap<u32, Hint>,
    contents: Option<VolumeContents>,
    /// Bytes of the archive, where its end is known.
    vouched: Option<u64>,
}

impl TapeSource {
    /// Finds an archive: by the ledger, else on the tape in the drive.
    ///
    /// # Errors
    /// There is no tape, or not one of ours; no such archive is known; several are.
    pub fn open(reading: TapeReading, which: &TapeArchive) -> Result<Self> {
        let mut deck = Deck::new(reading.drive);
        let (ledger, cancel) = (reading.ledger, reading.cancel);
        deck.load(Access::Read, reading.patience, &cancel)?;
        let wanted = match which {
            TapeArchive::Id(id) => match by_ledger(id, ledger.as_ref())? {
                Some(known) => known,
                None => by_tape(&mut deck, |part| has_id(&part.begin.archive, id), which)?,
            },
            TapeArchive::Latest => {
                by_tape(&mut deck, |part| part.end.as_ref().is_some_and(|end| end.last), which)?
            }
        };
        let Wanted { run, archive, mut hints, contents, mut vouched } = wanted;
        // The ledger may know volumes that the tape in the drive does not name.
        for placed in ledger.archives(id_of(&archive))?.into_iter().filter(|p| p.part.begin.run == run) {
            vouched = vouched.or_else(|| bytes_of(&placed.part));
            hints.insert(placed.part.begin.part, hint(&placed));
        }
        let pool = contents.as_ref().map(|c| c.label.pool.clone()).unwrap_or_default();
        let mut source = Self {
            deck,
            changer: reading.changer,
            patience: reading.patience,
            cancel,
            pool,
            run,
            archive,
            hints,
            loaded: contents.as_ref().map(|c| c.label.label.clone()),
            contents,
            number: 0,
            total: 0,
            open: None,
            buf: vec![0; TapeBlock::LARGEST],
            rest: 0..0,
            ended: false,
            vouched,
        };
        source.next_part()?;
        Ok(source)
    }

    /// The archive's name, as its file would have.
    pub fn archive(&self) -> &str {
        &self.archive
    }

    /// Bytes of the archive, where its end is known to be on a tape.
    pub fn complete(&self) -> Option<u64> {
        self.vouched
    }

    /// Goes to the data of the next part, on the volume in the drive or on another one.
    fn next_part(&mut self) -> Result<()> {
        let number = self.number + 1;
        let mut refused: Option<Error> = None;
        loop {
            match self.find(number) {
                Ok(part) => {
                    self.deck.seek(part.start)?;
                    self.number = number;
                    let hasher = blake3::Hasher::new();
                    self.open = Some(Open { part, blocks: 0, bytes: 0, hasher });
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    // The tape that is in the drive when the run begins is not the fault of who changes volumes.
                    let changed = refused.is_some();
                    self.change(number, changed.then_some(&error)).map_err(|told| match told.kind() {
                        ErrorKind::Interrupted => told,
                        _ => told.within(format!("part {number} of '{}' is on another volume", self.archive)),
                    })?;
                    refused = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Finds a part on the volume in the drive.
    fn find(&mut self, number: u32) -> Result<Part> {
        let hint = self.hints.get(&number).cloned().unwrap_or_default();
        let label = match &self.contents {
            Some(contents) => contents.label.clone(),
            None => label_of(&mut self.deck)?,
        };
        self.loaded = Some(label.label.clone());
        self.pool.clone_from(&label.pool);
        let fits = |part: &Part| part.begin.run == self.run && part.begin.part == number;
        if let Some(start) = hint.start.filter(|_| hint.volume == Some(label.volume))
            && let Some(part) = begin_at(&mut self.deck, start)?.filter(fits)
        {
            return self.check_offset(part);
        }
        if self.contents.is_none() {
            self.contents = Some(walk(&mut self.deck)?.0);
        }
        let mut parts = self.contents.iter().flat_map(|contents| &contents.parts);
        match parts.rfind(|part| fits(part)).cloned() {
            Some(part) => self.check_offset(part),
            None => {
                let what =
                    format!("volume '{}' does not hold part {number} of '{}'", label.label, self.archive);
                Err(Error::new(ErrorKind::NotFound, what))
            }
        }
    }

    fn check_offset(&self, part: Part) -> Result<Part> {
        if part.begin.offset == self.total {
            return Ok(part);
        }
        let what = format!(
            "part {} of '{}' begins at byte {}, and the part before ended at byte {}",
            part.begin.part, self.archive, part.begin.offset, self.total
        );
        Err(Error::new(ErrorKind::Incomplete, what).with_hint(
            "bytes between them are lost; 'virtfold tape verify' tells of each volume what is on it",
        ))
    }

    /// Has the volume with a part put in.
    fn change(&mut self, number: u32, refused: Option<&Error>) -> Result<()> {
        let wanted = self.hints.get(&number).and_then(|hint| hint.label.clone());
        let why = refused.map(ToString::to_string);
        let device = self.deck.name().to_owned();
        let change = Change {
            device: &device,
            number,
            old: self.loaded.as_deref(),
            wanted: wanted.as_deref(),
            pool: &self.pool,
            refused: why.as_deref(),
        };
        self.contents = None;
        if self.changer.can_change() {
            self.deck.eject()?;
        }
        self.changer.change(&change, &self.cancel)?;
        self.deck.load(Access::Read, self.patience, &self.cancel)
    }

    /// Reads the next block into the buffer, or finds the end.
    fn next_block(&mut self) -> Result<()> {
        loop {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(interrupted());
            }
            let found = self.deck.read(&mut self.buf)?;
            let Some(open) = &mut self.open else { return Err(interrupted()) };
            if let Found::Block(len) = found {
                open.blocks += 1;
                open.bytes += len as u64;
                open.hasher.update(self.buf.get(..len).unwrap_or_default());
                self.rest = 0..len;
                return Ok(());
            }
            let last = self.end_part(found)?;
            if last {
                self.ended = true;
                return self.deck.close();
            }
            self.next_part()?;
        }
    }

    /// The data file is at its end: what its end says has to hold. Whether the archive ends here.
    fn end_part(&mut self, found: Found) -> Result<bool> {
        let Some(open) = self.open.take() else { return Ok(true) };
        let behind = match found {
            Found::Mark => self.behind_data(&open)?,
            _ => Behind::Other,
        };
        self.total += open.bytes;
        let end = match behind {
            Behind::End(end) => end,
            // Nobody vouched for this part. Where a next one is known, it says whether anything is missing between them.
            Behind::Nothing | Behind::Other => {
                let next = self.number + 1;
                let mut here = self.contents.iter().flat_map(|contents| &contents.parts);
                let known = here.any(|part| part.begin.run == self.run && part.begin.part == next);
                let cut = behind == Behind::Nothing && self.changer.can_change();
                return Ok(!(known || cut || self.hints.contains_key(&next)));
            }
        };
        check_part(
            &open.part,
            &end,
            &Seen { blocks: open.blocks, bytes: open.bytes, digest: open.hasher.finalize() },
        )
        .map_err(|e| e.within(format!("part {} of '{}' is not what was written", end.part, self.archive)))?;
        Ok(end.last)
    }

    /// What stands behind a data file.
    fn behind_data(&mut self, open: &Open) -> Result<Behind> {
        let mut buf = vec![0; TapeBlock::LARGEST];
        let len = loop {
            match self.deck.read(&mut buf)? {
                Found::Block(len) => break len,
                Found::Mark => {}
                Found::End => return Ok(Behind::Nothing),
            }
        };
        match Record::decode(buf.get(..len).unwrap_or_default())? {
            Record::End(end) if end.run == open.part.begin.run && end.part == open.part.begin.part => {
                Ok(Behind::End(end))
            }
            _ => Ok(Behind::Other),
        }
    }
}

/// What stands behind a data file.
#[derive(Debug, PartialEq, Eq)]
enum Behind {
    /// Its end.
    End(End),
    /// Nothing more on the volume: the medium's end may have cut the end off, and the archive go on.
    Nothing,
    /// Something else: the run broke off.
    Other,
}

/// What was read of a part.
pub(super) struct Seen {
    pub(super) blocks: u64,
    pub(super) bytes: u64,
    pub(super) digest: blake3::Hash,
}

/// Holds what was read of a part against its end.
pub(super) fn check_part(part: &Part, end: &End, read: &Seen) -> Result<()> {
    let wrong = |what: String| Err(Error::new(ErrorKind::Damaged, what));
    if end.start != part.start {
        return wrong(format!(
            "its data begin at block {}, and were written at block {}",
            part.start, end.start
        ));
    }
    if (end.blocks, end.bytes) != (read.blocks, read.bytes) {
        return wrong(format!(
            "it has {} blocks with {} bytes, and had {} with {}",
            read.blocks, read.bytes, end.blocks, end.bytes
        ));
    }
    if end.digest != read.digest.to_hex().as_str() {
        return wrong("its digest is another one".to_owned());
    }
    Ok(())
}

/// The part whose first data block is at `start`, where its begin is there.
fn begin_at(deck: &mut Deck, start: u64) -> Result<Option<Part>> {
    let Some(at) = start.checked_sub(2) else { return Ok(None) };
    if deck.end_of_data()? < start {
        return Ok(None);
    }
    deck.seek(at)?;
    let mut buf = vec![0; TapeBlock::LARGEST];
    let Found::Block(RECORD) = deck.read(&mut buf)? else { return Ok(None) };
    let Ok(Record::Begin(begin)) = Record::decode(buf.get(..RECORD).unwrap_or_default()) else {
        return Ok(None);
    };
    Ok(Some(Part { file: 0, start, begin, end: None }))
}

fn hint(placed: &Placed) -> Hint {
    Hint {
        label: Some(placed.label.label.clone()),
        volume: Some(placed.label.volume),
        start: Some(placed.part.start),
    }
}

/// Bytes of the archive that ends with this part, where it does.
fn bytes_of(part: &Part) -> Option<u64> {
    part.end.as_ref().filter(|end| end.last).map(|end| end.total)
}

fn several(id: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("there are several archives whose id begins with {id}"))
        .with_hint("restore by the volume: put in the one with the archive's first part, without the catalog (--state-dir)")
}

fn by_ledger(id: &str, ledger: &dyn Ledger) -> Result<Option<Wanted>> {
    let placed: Vec<Placed> = ledger.archives(id)?;
    let Some(first) = placed.first() else { return Ok(None) };
    let run = first.part.begin.run;
    if placed.iter().any(|other| other.part.begin.run != run) {
        return Err(several(id));
    }
    let hints = placed.iter().map(|placed| (placed.part.begin.part, hint(placed))).collect();
    let vouched = placed.iter().find_map(|placed| bytes_of(&placed.part));
    Ok(Some(Wanted { run, archive: first.part.begin.archive.clone(), hints, contents: None, vouched }))
}

fn by_tape(deck: &mut Deck, fits: impl Fn(&Part) -> bool, which: &TapeArchive) -> Result<Wanted> {
    let (contents, _) = walk(deck)?;
    let found = contents.parts.iter().rev().find(|part| fits(part));
    let Some(found) = found else {
        let what = match which {
            TapeArchive::Latest => "no whole archive".to_owned(),
            TapeArchive::Id(id) => format!("no archive '{id}'"),
        };
        let what = format!(
            "{what} is known, and none ends on volume '{}' in '{}'",
            contents.label.label,
            deck.name()
        );
        return Err(Error::new(ErrorKind::NotFound, what)
            .with_hint("put the right volume in; 'virtfold tape list' shows what is on one"));
    };
    let run = found.begin.run;
    let archive = found.begin.archive.clone();
    if let TapeArchive::Id(id) = which
        && contents.parts.iter().any(|part| fits(part) && part.begin.run != run)
    {
        return Err(several(id));
    }
    let mut hints: BTreeMap<u32, Hint> = BTreeMap::new();
    // The begin of a later part names the volumes before it, one for each part.
    for part in contents.parts.iter().filter(|part| part.begin.run == run) {
        hints.insert(part.begin.part, hint(&Placed { label: contents.label.clone(), part: part.clone() }));
        for (number, label) in (1..part.begin.part).rev().zip(part.begin.before.iter().rev()) {
            hints.entry(number).or_insert_with(|| Hint { label: Some(label.clone()), ..Hint::default() });
        }
    }
    let vouched = contents.parts.iter().filter(|part| part.begin.run == run).find_map(bytes_of);
    Ok(Wanted { run, archive, hints, contents: Some(contents), vouched })
}

impl Read for TapeSource {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() && !self.ended {
            self.next_block().map_err(io::Error::other)?;
        }
        if self.ended || out.is_empty() {
            return Ok(0);
        }
        let available = self.buf.get(self.rest.clone()).unwrap_or_default();
        let len = available.len().min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..len), available.get(..len)) {
            to.copy_from_slice(from);
        }
        self.rest.start += len;
        Ok(len)
    }
}
