//! The writing of an archive to tapes, volume after volume.
//!
//! 1. [`DriveThread::take_volume`]: wait for a tape, read its label, refuse what is not for us, go to the end
//!    of its data.
//! 2. A begin, a filemark; blocks; a filemark, an end, a filemark that waits. Only when that has returned,
//!    and the drive stands where it was
//!    counted to be, is the part committed, and told to the ledger. So it is whenever `commit_every` bytes
//!    are written, and the next part then begins on the same volume.
//! 3. At the tape's end the tape is given out, and the changer asked for the next one.
//! 4. When all is written, a filemark that waits ([`DriveThread::write`] returns then); the end comes with
//!    [`DriveThread::finish`].
//!
//! Whatever else fails ends the run; where it was a write, the volume is noted as failed first.
//! [`DriveThread::go_on`] goes on behind the last committed part, on another volume: the part that was open
//! begins again there, under its number. A run that is dropped leaves a part without an end: nobody takes it
//! for an archive.
//!
//! A run of a process that is gone goes on, too ([`DriveThread::behind`]): behind what the ledger knows, on
//! the volume that has its last committed part or on another one.
//!
//! Imports: `error`, the modules of tapes.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::changer::{Changer, VolumeRequest};
use super::committed_parts::{self, CommittedParts};
use super::drive::Access;
use super::positioned_drive::{PositionedDrive, WriteOutcome, interrupted};
use super::record::{BEFORE, EarlierParts, PartHeader, PartTrailer, TapeRecord, VolumeLabel, now};
use super::ring::Ring;
use super::tape_catalog::{PartLocation, TapeCatalog};
use super::volume::{VolumePart, go_to_end, label_of};
use super::write_options::{TapeReport, TapeWriteOptions};
use virtfold_archive::stream::Cancel;
use virtfold_base::error::{Error, ErrorKind, Result};

/// Volumes in a row that may take no data before that is the end.
const IDLE_VOLUMES: u32 = 3;

/// Why a part ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PartEnd {
    /// The archive is at its end.
    Archive,
    /// The volume is.
    Volume,
    /// It is long enough.
    Length,
}

/// The part that is being written.
struct OpenPart {
    begin: PartHeader,
    file: u64,
    start: u64,
    blocks: u64,
    bytes: u64,
    hasher: blake3::Hasher,
    /// Its data file has its filemark.
    closed: bool,
}

/// A volume with parts of the archive that are committed.
struct HeldVolume {
    volume: Uuid,
    label: String,
    /// Number of the first of them.
    first: u32,
}

/// An archive that is being written.
pub(super) struct DriveThread {
    deck: PositionedDrive,
    changer: Box<dyn Changer>,
    ledger: Arc<dyn TapeCatalog>,
    pool: Option<String>,
    patience: Duration,
    commit_every: u64,
    /// Ends the run, wherever it waits.
    pub(super) stop: Cancel,
    archive: String,
    run: Uuid,
    /// The volumes so far, the one in the drive last.
    volumes: Vec<VolumeLabel>,
    /// One of them that may be written to again: the run of a process that is gone ended on it.
    reusable: Option<Uuid>,
    /// Those that hold something.
    held: Vec<HeldVolume>,
    failed: Vec<String>,
    part: Option<OpenPart>,
    /// Parts that are committed.
    parts: u32,
    /// Bytes in them.
    total: u64,
    /// How often it went on behind a failure.
    again: u32,
    underruns: u64,
}

impl DriveThread {
    /// A run that has written nothing yet. Its waits end with the caller's flag.
    pub(super) fn new(setup: TapeWriteOptions, archive: &str) -> Self {
        Self {
            deck: PositionedDrive::new(setup.drive),
            changer: setup.changer,
            ledger: setup.ledger,
            pool: setup.pool,
            patience: setup.patience,
            commit_every: setup.commit_every,
            stop: setup.cancel,
            archive: archive.to_owned(),
            run: Uuid::new_v4(),
            volumes: Vec::new(),
            reusable: None,
            held: Vec::new(),
            failed: Vec::new(),
            part: None,
            parts: 0,
            total: 0,
            again: 0,
            underruns: 0,
        }
    }

    /// A run that goes on behind what another process has committed.
    pub(super) fn behind(setup: TapeWriteOptions, archive: &str, committed: &CommittedParts) -> Self {
        let held = |(label, first): &(VolumeLabel, u32)| HeldVolume {
            volume: label.volume,
            label: label.label.clone(),
            first: *first,
        };
        Self {
            run: committed.run,
            held: committed.volumes.iter().map(held).collect(),
            reusable: committed.volumes.last().map(|(label, _)| label.volume),
            volumes: committed.volumes.iter().map(|(label, _)| label.clone()).collect(),
            // An archive's volumes are of one pool, whatever is in the drive now.
            pool: Some(committed.last.label.pool.clone()),
            parts: committed.parts,
            total: committed.total,
            // A part that was open may lie behind the last one that was committed.
            again: committed.again.saturating_add(1),
            ..Self::new(setup, archive)
        }
    }

    /// Takes the volume in the drive, or has another one put in where it is none for this run.
    pub(super) fn take_any_volume(&mut self) -> Result<VolumeLabel> {
        match self.take_volume() {
            Err(error) if error.kind() != ErrorKind::Interrupted && self.changer.can_change() => {
                self.ask(Some(error))
            }
            taken => taken,
        }
    }

    /// As [`committed_parts::gone`].
    pub(super) fn gone(&mut self, committed: &CommittedParts, label: &VolumeLabel) -> Result<Option<String>> {
        committed_parts::gone(committed, &mut self.deck, label)
    }

    /// Bytes of the archive that are committed.
    pub(super) fn committed(&self) -> u64 {
        self.total
    }

    /// Writes all that comes through the ring, beginning on the volume in the drive. What was written is on
    /// the medium then, and the last part open.
    pub(super) fn write(mut self, ring: &Ring, label: VolumeLabel) -> (Self, Result<()>) {
        let done = self.all(ring, label);
        self.underruns += ring.underruns();
        if done.is_err() {
            self.note_failure();
            ring.end();
        }
        (self, done)
    }

    /// Says that the archive is at its end.
    pub(super) fn finish(mut self) -> Result<TapeReport> {
        let done = self.seal();
        if done.is_err() {
            self.note_failure();
        }
        done?;
        Ok(TapeReport {
            volumes: self.held.iter().map(|held| held.label.clone()).collect(),
            failed: self.failed,
            bytes: self.total,
            underruns: self.underruns,
        })
    }

    /// Behind a failed write: puts the next volume in, where the archive goes on behind its last committed
    /// byte. `None` where what failed was not a volume, or nobody can change it.
    pub(super) fn go_on(&mut self) -> Result<Option<VolumeLabel>> {
        if self.deck.broken().is_none() || !self.changer.can_change() {
            return Ok(None);
        }
        if let (Some(why), Some(label)) = (self.deck.broken(), self.volumes.last()) {
            tracing::warn!(
                "volume '{}' is not used any more: {why}; the archive continues on the next volume",
                label.label
            );
        }
        self.part = None;
        self.again += 1;
        self.deck.let_go();
        self.ask(None).map(Some)
    }

    /// A volume that failed is noted as that, whatever else is wrong.
    fn note_failure(&mut self) {
        if let (Some(why), Some(label)) = (self.deck.broken(), self.volumes.last()) {
            self.failed.push(label.label.clone());
            if let Err(error) = self.ledger.failed(label, why) {
                tracing::error!(volume = %label.label, %error, "a failed volume could not be recorded: do not use it again");
            }
        }
    }

    fn all(&mut self, ring: &Ring, label: VolumeLabel) -> Result<()> {
        self.begin(label)?;
        loop {
            let Some(block) = ring.take().map_err(|_| interrupted())? else { break };
            self.block(block.bytes()?)?;
            ring.give_back(block);
        }
        self.deck.commit()?;
        self.part.as_mut().map(|part| part.closed = true).ok_or_else(no_part)
    }

    fn seal(&mut self) -> Result<()> {
        while self.end(PartEnd::Archive)? == WriteOutcome::EndOfMedium {
            self.turn()?;
        }
        self.deck.close()
    }

    /// Writes one block, to this volume or to the next.
    fn block(&mut self, bytes: &[u8]) -> Result<()> {
        if self.part.as_ref().is_some_and(|part| part.bytes >= self.commit_every) {
            self.next_part()?;
        }
        for _ in 0..IDLE_VOLUMES {
            let fate = self.deck.write(bytes, "writing a block")?;
            if fate != WriteOutcome::EndOfMedium
                && let Some(part) = &mut self.part
            {
                part.blocks += 1;
                part.bytes += bytes.len() as u64;
                part.hasher.update(bytes);
            }
            if fate != WriteOutcome::Written {
                self.end(PartEnd::Volume)?;
                self.turn()?;
            }
            if fate != WriteOutcome::EndOfMedium {
                return Ok(());
            }
        }
        let what = format!("{IDLE_VOLUMES} volumes in a row have no space for a block");
        Err(Error::new(ErrorKind::NoSpace, what).with_hint("label or erase volumes, and start again"))
    }

    /// Commits the part and begins the next one, on this volume where there is room.
    fn next_part(&mut self) -> Result<()> {
        let file = self.part.as_ref().map(|part| part.file).ok_or_else(no_part)?;
        if self.end(PartEnd::Length)? == WriteOutcome::Written && self.open(file + 2)? {
            return Ok(());
        }
        self.turn()
    }

    /// Begins the next part on the volume in the drive; goes on to other volumes where there is no room for
    /// it.
    fn begin(&mut self, mut label: VolumeLabel) -> Result<()> {
        for _ in 0..IDLE_VOLUMES {
            self.volumes.push(label.clone());
            let file = go_to_end(&mut self.deck, &label)?;
            if self.open(file)? {
                return Ok(());
            }
            label = self.next_volume()?;
            // It holds nothing of the archive.
            let place = self.volumes.len().saturating_sub(1);
            self.volumes.remove(place);
        }
        let what = format!("{IDLE_VOLUMES} volumes in a row have no space for an archive");
        Err(Error::new(ErrorKind::NoSpace, what).with_hint("label or erase volumes, and start again"))
    }

    /// Writes the begin of the next part, as file `file` of the volume in the drive; false where there is no
    /// room for it.
    fn open(&mut self, file: u64) -> Result<bool> {
        let label = self.volumes.last().ok_or_else(no_part)?;
        let others: Vec<&HeldVolume> = self.held.iter().filter(|held| held.volume != label.volume).collect();
        let others = others.get(others.len().saturating_sub(BEFORE)..).unwrap_or_default();
        let begin = PartHeader {
            volume: label.volume,
            run: self.run,
            archive: self.archive.clone(),
            part: self.parts + 1,
            offset: self.total,
            earlier: EarlierParts {
                volumes: others.iter().map(|held| held.label.clone()).collect(),
                firsts: others.iter().map(|held| held.first).collect(),
                again: self.again,
            },
            block_size: label.block_size,
            created: now(),
        };
        if self.deck.write(&TapeRecord::Begin(begin.clone()).encode()?, "beginning an archive")?
            == WriteOutcome::EndOfMedium
        {
            return Ok(false);
        }
        self.deck.mark()?;
        let (start, hasher) = (self.deck.at(), blake3::Hasher::new());
        self.part =
            Some(OpenPart { begin, file: file + 1, start, blocks: 0, bytes: 0, hasher, closed: false });
        Ok(true)
    }

    /// Ends the part and commits it. `NoRoom` where there was none to say so: then it is committed as one
    /// that others follow.
    fn end(&mut self, why: PartEnd) -> Result<WriteOutcome> {
        let open = self.part.take().ok_or_else(no_part)?;
        // At the end of a tape it is looked what is durable before anything is said of it.
        match why {
            _ if open.closed => {}
            PartEnd::Volume => self.deck.commit()?,
            PartEnd::Archive | PartEnd::Length => self.deck.mark()?,
        }
        let total = self.total + open.bytes;
        let end = PartTrailer {
            volume: open.begin.volume,
            run: self.run,
            part: open.begin.part,
            file: open.file,
            start: open.start,
            blocks: open.blocks,
            bytes: open.bytes,
            digest: open.hasher.finalize().to_hex().to_string(),
            total,
            last: why == PartEnd::Archive,
        };
        let record = TapeRecord::End(end.clone()).encode()?;
        let mut fate = WriteOutcome::EndOfMedium;
        // After an early warning the drive says no once, with nothing written, and then takes what fits.
        for _ in 0..2 {
            if fate == WriteOutcome::EndOfMedium {
                fate = self.deck.write(&record, "ending an archive")?;
            }
        }
        self.deck.commit()?;
        let end = PartTrailer { last: end.last && fate != WriteOutcome::EndOfMedium, ..end };
        let part = VolumePart { file: open.file, start: open.start, begin: open.begin, end: Some(end) };
        self.committed_part(part)?;
        self.total = total;
        Ok(fate)
    }

    fn committed_part(&mut self, part: VolumePart) -> Result<()> {
        let Some(label) = self.volumes.last() else { return Err(no_part()) };
        let number = part.begin.part;
        self.ledger.committed(&PartLocation { label: label.clone(), part })?;
        self.parts = number;
        if self.held.last().is_none_or(|held| held.volume != label.volume) {
            self.held.push(HeldVolume { volume: label.volume, label: label.label.clone(), first: number });
        }
        Ok(())
    }

    /// On to the next volume.
    fn turn(&mut self) -> Result<()> {
        let label = self.next_volume()?;
        self.begin(label)
    }

    /// Gives the volume out, and has the next one put in.
    fn next_volume(&mut self) -> Result<VolumeLabel> {
        if self.changer.can_change() {
            self.deck.eject()?;
        }
        self.ask(None)
    }

    /// Has the next volume put in. What was wrong with the one that is there is told.
    fn ask(&mut self, mut refused: Option<Error>) -> Result<VolumeLabel> {
        loop {
            let old = self.volumes.last().map(|label| label.label.clone());
            let pool = self.pool.clone().unwrap_or_default();
            let why = refused.as_ref().map(|error| virtfold_base::error::sentence(error));
            let number = u32::try_from(self.volumes.len()).unwrap_or(u32::MAX).saturating_add(1);
            let device = self.deck.name().to_owned();
            let change = VolumeRequest {
                device: &device,
                number,
                old: old.as_deref(),
                wanted: None,
                pool: &pool,
                refused: why.as_deref(),
            };
            match self.changer.change(&change, &self.stop) {
                Ok(()) => {}
                // What was wrong with the tape says more than that nobody can put another one in.
                Err(error) => {
                    return Err(refused.filter(|_| error.kind() != ErrorKind::Interrupted).unwrap_or(error));
                }
            }
            match self.take_volume() {
                Ok(label) => return Ok(label),
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                Err(error) => refused = Some(error),
            }
        }
    }

    /// Waits for the tape in the drive, and looks whether it is one for this run.
    pub(super) fn take_volume(&mut self) -> Result<VolumeLabel> {
        self.deck.load(Access::Write, self.patience, &self.stop)?;
        let label = label_of(&mut self.deck)?;
        let called = format!("volume '{}' in '{}'", label.label, self.deck.name());
        if let Some(why) = self.ledger.failure(label.volume)? {
            return Err(Error::new(ErrorKind::Io, format!("{called} has failed before: {why}"))
                .with_hint("use another volume; its data may still be readable"));
        }
        let wanted = self.pool.get_or_insert_with(|| label.pool.clone());
        if *wanted != label.pool {
            let what = format!("{called} is of the pool '{}', not of '{wanted}'", label.pool);
            return Err(Error::new(ErrorKind::Usage, what).with_hint("use a volume of that pool"));
        }
        let is_used = self.volumes.iter().any(|used| used.volume == label.volume);
        if is_used && self.reusable != Some(label.volume) {
            return Err(Error::new(ErrorKind::Exists, format!("{called} was already written in this run"))
                .with_hint("take another one"));
        }
        if self.volumes.first().is_some_and(|first| first.block_size != label.block_size) {
            let what = format!(
                "{called} has blocks of {} bytes, the volumes before it others",
                label.block_size.get()
            );
            return Err(Error::new(ErrorKind::Usage, what).with_hint("use a volume with the same block size"));
        }
        // Whatever it is, it is written to now.
        self.reusable = None;
        Ok(label)
    }
}

fn no_part() -> Error {
    Error::new(ErrorKind::Internal, "a part of an archive on tape ends that was not begun")
}
