//! An archive that comes from tapes: one pass, front to back, volume after volume.
//!
//! Where an archive is, the ledger may know; without it, the tape in the drive is walked. Either way each
//! part is taken from its begin on the tape, which has to be the one that is wanted, and starts at the byte
//! where the part before ended. A part with an end has to have its blocks, bytes and digest. Parts that
//! follow each other on a volume are read without a look aside.
//!
//! Of two parts of one number the one counts that was written when the run had gone on more often; then the
//! one with an end: what a volume that failed has behind its last committed part is not the archive. Where a
//! volume is read whose failure nothing that is known tells of, the part without an end is given out, and
//! when the next volume turns out to hold that part again, what was given out has to be the beginning of it.
//!
//! A part without an end at the end of its volume may also have been cut by the medium's end: the next volume
//! is asked for, where anybody can change volumes. Any other part without an end, behind which nothing is
//! known, is where the archive ends: it is for the archive's own end record to say that it is incomplete.
//!
//! Imports: `error`, the modules of tapes.

mod rewritten_part;
mod salvage;

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use uuid::Uuid;

use self::rewritten_part::{RewrittenPart, UnfinishedPart};
use self::salvage::SalvageState;
use super::changer::{Changer, VolumeRequest};
use super::drive::{Access, Drive};
use super::part_index::{PartHints, WantedArchive, begin_at, by_ledger, by_tape, bytes_of, hint, learn};
use super::positioned_drive::{PositionedDrive, ReadOutcome, interrupted};
use super::record::{PartTrailer, RECORD, TapeBlock, TapeRecord};
use super::tape_catalog::{TapeCatalog, has_id, id_of};
use super::volume::{VolumeContents, VolumePart, label_of, walk};
use crate::{LostRanges, TapeArchive};
use virtfold_archive::stream::Cancel;
use virtfold_base::error::{Error, ErrorKind, Result};

/// How an archive comes from tapes.
pub struct TapeReadOptions {
    /// The drive, not open.
    pub drive: Box<dyn Drive>,
    /// Who changes volumes.
    pub changer: Box<dyn Changer>,
    /// What is remembered.
    pub ledger: Arc<dyn TapeCatalog>,
    /// How long to wait for a tape to be ready.
    pub patience: Duration,
    /// Ends the run.
    pub cancel: Cancel,
}

/// The part that is being read.
struct OpenPart {
    part: VolumePart,
    /// Whether it is known to have an end.
    ended: bool,
    blocks: u64,
    bytes: u64,
    hasher: blake3::Hasher,
}

/// An archive on tapes. Its errors are [`io::Error`]s whose cause is the library's.
pub struct TapeSource {
    deck: PositionedDrive,
    changer: Box<dyn Changer>,
    patience: Duration,
    cancel: Cancel,
    pool: String,
    run: Uuid,
    archive: String,
    /// By number of the part.
    hints: PartHints,
    /// The volume in the drive, once it was looked at.
    contents: Option<VolumeContents>,
    loaded: Option<String>,
    number: u32,
    total: u64,
    open: Option<OpenPart>,
    /// Where reading goes on behind what can't be read.
    salvage: Option<SalvageState>,
    doubt: Option<UnfinishedPart>,
    overlap: Option<RewrittenPart>,
    buf: Vec<u8>,
    /// What of `buf` has not been given out.
    rest: std::ops::Range<usize>,
    ended: bool,
    vouched: Option<u64>,
}

impl TapeSource {
    /// Finds an archive: by the ledger, else on the tape in the drive.
    ///
    /// # Errors
    /// There is no tape, or not one of ours; no such archive is known; several are.
    pub fn open(reading: TapeReadOptions, which: &TapeArchive) -> Result<Self> {
        let mut deck = PositionedDrive::new(reading.drive);
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
        let WantedArchive { run, archive, mut hints, contents, mut vouched } = wanted;
        // The ledger may know volumes that the tape in the drive does not name.
        for placed in ledger.archives(id_of(&archive))?.into_iter().filter(|p| p.part.begin.run == run) {
            vouched = vouched.or_else(|| bytes_of(&placed.part));
            learn(&mut hints, placed.part.begin.part, hint(&placed));
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
            salvage: None,
            doubt: None,
            overlap: None,
            buf: vec![0; TapeBlock::LARGEST],
            rest: 0..0,
            ended: false,
            vouched,
        };
        source.next_part()?;
        Ok(source)
    }

    /// From here on, what can't be read is stepped over, and zeros given in its place; what is said then
    /// tells where.
    pub fn salvage(&mut self) -> LostRanges {
        let gaps = LostRanges::default();
        self.salvage = Some(SalvageState::new(gaps.clone()));
        gaps
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
                    self.open_part(part);
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    // The tape that is in the drive when the run begins is not the fault of who changes
                    // volumes.
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

    /// The tape is at the first block of this part.
    fn open_part(&mut self, part: VolumePart) {
        let number = part.begin.part;
        if let Some(doubt) = self.doubt.take().filter(|doubt| doubt.part.begin.part == number) {
            self.total = doubt.part.begin.offset;
            self.overlap = doubt.overlap();
        }
        let known = self.hints.get(&number).filter(|hint| hint.start == Some(part.start));
        let ended = part.end.is_some() || known.is_some_and(|hint| hint.ended);
        self.number = number;
        self.open = Some(OpenPart { part, ended, blocks: 0, bytes: 0, hasher: blake3::Hasher::new() });
    }

    /// Finds a part on the volume in the drive; or the one before it, where that was in doubt and comes
    /// again.
    fn find(&mut self, number: u32) -> Result<VolumePart> {
        let hint = self.hints.get(&number).cloned().unwrap_or_default();
        let label = match &self.contents {
            Some(contents) => contents.label.clone(),
            None => label_of(&mut self.deck)?,
        };
        self.loaded = Some(label.label.clone());
        self.pool.clone_from(&label.pool);
        let run = self.run;
        let fits = |part: &VolumePart| part.begin.run == run && part.begin.part == number;
        if let Some(start) = hint.start.filter(|_| hint.volume == Some(label.volume))
            && let Some(part) = begin_at(&mut self.deck, start)?.filter(fits)
        {
            return self.check_offset(part);
        }
        let contents = match self.contents.take() {
            Some(contents) => contents,
            None => walk(&mut self.deck)?.0,
        };
        let parts = &self.contents.insert(contents).parts;
        if let Some(again) = self.doubt.as_ref().and_then(|doubt| doubt.again(parts)) {
            return Ok(again.clone());
        }
        let here = parts.iter().filter(|part| fits(part)).max_by_key(|part| part.worth()).cloned();
        // The rest of a volume that failed, where the part is known to be elsewhere.
        let elsewhere = hint.volume.is_some_and(|volume| volume != label.volume)
            || hint.label.as_ref().is_some_and(|other| *other != label.label);
        let better = |part: &VolumePart| elsewhere && (hint.again, hint.ended) > part.worth();
        match here.filter(|part| !better(part)) {
            Some(part) => self.check_offset(part),
            None => {
                let what =
                    format!("volume '{}' does not hold part {number} of '{}'", label.label, self.archive);
                Err(Error::new(ErrorKind::NotFound, what))
            }
        }
    }

    fn check_offset(&mut self, part: VolumePart) -> Result<VolumePart> {
        if part.begin.offset == self.total || self.bridge(part.begin.offset) {
            return Ok(part);
        }
        let what = format!(
            "part {} of '{}' begins at byte {}, and the part before ended at byte {}",
            part.begin.part, self.archive, part.begin.offset, self.total
        );
        Err(Error::new(ErrorKind::Incomplete, what)
            .with_hint("bytes between them are lost; 'virtfold tape verify' checks each volume"))
    }

    /// Has the volume with a part put in.
    fn change(&mut self, number: u32, refused: Option<&Error>) -> Result<()> {
        let wanted = self.hints.get(&number).and_then(|hint| hint.label.clone());
        let why = refused.map(ToString::to_string);
        let device = self.deck.name().to_owned();
        let change = VolumeRequest {
            device: &device,
            number,
            old: self.loaded.as_deref(),
            wanted: wanted.as_deref(),
            pool: &self.pool,
            refused: why.as_deref(),
        };
        self.contents = None;
        match self.changer.can_change() {
            // Behind a failure the drive may be empty already.
            true if self.salvage.is_some() => self.deck.let_go(),
            true => self.deck.eject()?,
            false => {}
        }
        self.changer.change(&change, &self.cancel)?;
        self.deck.load(Access::Read, self.patience, &self.cancel)
    }

    /// Reads the next block into the buffer, or finds the end.
    fn next_block(&mut self) -> Result<()> {
        while self.rest.is_empty() && !self.give_zeros() && !self.ended {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(interrupted());
            }
            match self.deck.read(&mut self.buf) {
                Ok(ReadOutcome::Block(len)) => self.take_block(len)?,
                Ok(found) => self.part_ended(found)?,
                // Nobody vouched for this part: it may be the rest of a volume that failed, and come again on
                // the next one.
                Err(error) if self.may_come_again() => {
                    self.doubt_part();
                    self.next_part().map_err(|_| error)?;
                }
                Err(error) => self.step_over(error)?,
            }
        }
        Ok(())
    }

    fn may_come_again(&self) -> bool {
        let unended = self.open.as_ref().is_some_and(|open| !open.ended);
        unended && self.salvage.is_none() && self.changer.can_change()
    }

    fn take_block(&mut self, len: usize) -> Result<()> {
        let Some(open) = &mut self.open else { return Err(interrupted()) };
        let bytes = self.buf.get(..len).unwrap_or_default();
        open.blocks += 1;
        open.bytes += len as u64;
        open.hasher.update(bytes);
        self.rest = 0..len;
        self.salvage.iter_mut().for_each(SalvageState::read_one);
        let Some(overlap) = &mut self.overlap else { return Ok(()) };
        let again = usize::try_from(overlap.left).unwrap_or(usize::MAX).min(len);
        overlap.hasher.update(bytes.get(..again).unwrap_or_default());
        overlap.left -= again as u64;
        self.rest = again..len;
        if overlap.left == 0 {
            let same = overlap.hasher.finalize() == overlap.digest;
            self.overlap = None;
            return if same { Ok(()) } else { Err(self.other_bytes()) };
        }
        Ok(())
    }

    fn other_bytes(&self) -> Error {
        let what = format!(
            "part {} of '{}' was begun on a volume that failed, and what is there is not what was written",
            self.number, self.archive
        );
        Error::new(ErrorKind::Damaged, what)
            .with_hint("start with the archive's last volume in the drive: it says where each part is")
    }

    /// The part is at its end.
    fn part_ended(&mut self, found: ReadOutcome) -> Result<()> {
        if self.end_part(found)? {
            self.ended = true;
            if self.overlap.is_some() {
                return Err(self.other_bytes());
            }
            return self.deck.close();
        }
        match self.doubt.is_none() && self.next_here()? {
            true => Ok(()),
            false if self.salvage.is_some() => self.skip_on(),
            false => self.next_part(),
        }
    }

    /// Where the next part begins right here, goes to its data.
    fn next_here(&mut self) -> Result<bool> {
        let number = self.number + 1;
        let mut buf = vec![0; TapeBlock::LARGEST];
        if self.deck.read(&mut buf)? != ReadOutcome::Filemark {
            return Ok(false);
        }
        let ReadOutcome::Block(RECORD) = self.deck.read(&mut buf)? else { return Ok(false) };
        let Ok(TapeRecord::Begin(begin)) = TapeRecord::decode(buf.get(..RECORD).unwrap_or_default()) else {
            return Ok(false);
        };
        if begin.run != self.run || begin.part != number || self.deck.read(&mut buf)? != ReadOutcome::Filemark
        {
            return Ok(false);
        }
        let start = self.deck.at();
        let known = self.hints.get(&number);
        if known.is_some_and(|hint| hint.start != Some(start) || hint.volume != Some(begin.volume)) {
            return Ok(false);
        }
        let part = self.check_offset(VolumePart { file: 0, start, begin, end: None })?;
        self.open_part(part);
        Ok(true)
    }

    /// Ends the open part as one that nobody vouched for.
    fn doubt_part(&mut self) {
        let Some(open) = self.open.take() else { return };
        let doubt = UnfinishedPart::of(open, self.overlap.take());
        self.total = doubt.end();
        self.doubt = Some(doubt);
    }

    /// The data file is at its end: what its end says has to hold. Whether the archive ends here.
    fn end_part(&mut self, found: ReadOutcome) -> Result<bool> {
        let behind = match (found, &self.open) {
            (ReadOutcome::Filemark, Some(open)) => self.behind_data(open.part.begin.part)?,
            _ => AfterDataFile::Nothing,
        };
        let AfterDataFile::End(end) = behind else {
            // Where a next part is known, it says whether anything is missing between them.
            let next = self.number + 1;
            let mut here = self.contents.iter().flat_map(|contents| &contents.parts);
            let known = here.any(|part| part.begin.run == self.run && part.begin.part == next);
            let cut = behind == AfterDataFile::Nothing && self.changer.can_change();
            self.doubt_part();
            return Ok(!(known || cut || self.hints.contains_key(&next)));
        };
        let Some(open) = self.open.take() else { return Ok(true) };
        self.total = open.part.begin.offset + open.bytes;
        let seen = PartSummary { blocks: open.blocks, bytes: open.bytes, digest: open.hasher.finalize() };
        let checked = check_part(&open.part, &end, &seen);
        let other = format!("part {} of '{}' is not what was written", end.part, self.archive);
        match checked.map_err(|e| e.within(other)) {
            Err(error) if self.salvage.is_none() => return Err(error),
            Err(error) => self.note(error.to_string()),
            Ok(()) => {}
        }
        Ok(end.last)
    }

    /// What stands behind a data file.
    fn behind_data(&mut self, number: u32) -> Result<AfterDataFile> {
        let mut buf = vec![0; TapeBlock::LARGEST];
        let len = loop {
            match self.deck.read(&mut buf)? {
                ReadOutcome::Block(len) => break len,
                ReadOutcome::Filemark => {}
                ReadOutcome::End => return Ok(AfterDataFile::Nothing),
            }
        };
        match TapeRecord::decode(buf.get(..len).unwrap_or_default())? {
            TapeRecord::End(end) if end.run == self.run && end.part == number => Ok(AfterDataFile::End(end)),
            _ => Ok(AfterDataFile::Other),
        }
    }
}

/// What stands behind a data file.
#[derive(Debug, PartialEq, Eq)]
enum AfterDataFile {
    /// Its end.
    End(PartTrailer),
    /// Nothing more on the volume: the medium's end may have cut the end off, and the archive go on.
    Nothing,
    /// Something else: the run broke off.
    Other,
}

/// What was read of a part.
pub(super) struct PartSummary {
    pub(super) blocks: u64,
    pub(super) bytes: u64,
    pub(super) digest: blake3::Hash,
}

/// Holds what was read of a part against its end.
pub(super) fn check_part(part: &VolumePart, end: &PartTrailer, read: &PartSummary) -> Result<()> {
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

impl Read for TapeSource {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.next_block().map_err(io::Error::other)?;
        if self.rest.is_empty() || out.is_empty() {
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
