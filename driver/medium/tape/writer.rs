//! An archive on its way to tapes.
//!
//! The caller's thread fills the ring; one thread writes. That thread owns the drive and does, for each volume:
//!
//! 1. [`Run::take_volume`]: wait for a tape, read its label, refuse what is not for us, go to the end of its data.
//! 2. A begin, a filemark; blocks until the ring or the tape is at its end; a filemark, an end, a filemark that waits. Only when that has
//!    returned, and the drive stands where it was counted to be, is the part committed, and told to the ledger.
//! 3. At the tape's end the tape is given out, and the changer asked for the next one.
//!
//! Whatever else fails ends the run; where it was a write, the volume is noted as failed first. A run that is dropped leaves a part
//! without an end: nobody takes it for an archive.
//!
//! Imports: `error`, `archive` (`Sink`), the modules of tapes.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use super::changer::{Change, Changer};
use super::deck::{Deck, Fate, interrupted};
use super::drive::{Access, Drive};
use super::ledger::{Ledger, Placed, id_of};
use super::record::{BEFORE, Begin, End, Label, Record, now};
use super::ring::{Block, Ring};
use super::volume::{Part, go_to_end, label_of};
use crate::archive::stream::{Cancel, Sink};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::medium::{Durable, Medium};

/// Volumes in a row that may take no data before that is the end.
const IDLE_VOLUMES: u32 = 3;

/// How an archive goes to tapes.
pub struct TapeSetup {
    /// The drive, not open.
    pub drive: Box<dyn Drive>,
    /// Who changes volumes.
    pub changer: Box<dyn Changer>,
    /// What is remembered.
    pub ledger: Arc<dyn Ledger>,
    /// The pool that the first volume has to be of; any where none is said.
    pub pool: Option<String>,
    /// Bytes of the ring.
    pub ring: u64,
    /// How long to wait for a tape to be ready.
    pub patience: Duration,
    /// Ends the run.
    pub cancel: Cancel,
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TapeReport {
    /// The labels of the volumes, in their order.
    pub volumes: Vec<String>,
    /// Bytes on them.
    pub bytes: u64,
    /// How often the drive had to wait for data.
    pub underruns: u64,
}

/// An archive on its way to tapes.
pub struct TapeMedium {
    name: String,
    ring: Arc<Ring>,
    block: Option<Block>,
    written: u64,
    cancel: Cancel,
    /// Tells the writer, wherever it waits.
    stop: Cancel,
    thread: Option<JoinHandle<Result<TapeReport>>>,
    report: Arc<Mutex<TapeReport>>,
}

impl TapeMedium {
    /// Begins the archive `archive` behind what is on the tape in the drive.
    ///
    /// # Errors
    /// There is no tape, it is not one of ours, it has failed before, is of another pool or write-protected.
    pub fn begin(setup: TapeSetup, archive: &str) -> Result<Self> {
        let id = id_of(archive);
        let name = match id {
            "" => format!("tape:{}", setup.drive.name()),
            id => format!("tape:{}#{id}", setup.drive.name()),
        };
        let whole = |placed: &Placed| placed.part.end.as_ref().is_some_and(|end| end.last);
        if !id.is_empty() && setup.ledger.archives(id)?.iter().any(whole) {
            return Err(Error::new(ErrorKind::Exists, format!("an archive '{id}' is on a tape already"))
                .with_hint("begin again: the new one gets another id"));
        }
        let stop = Cancel::default();
        let (cancel, ring) = (setup.cancel, setup.ring);
        let mut run = Run {
            deck: Deck::new(setup.drive),
            changer: setup.changer,
            ledger: setup.ledger,
            pool: setup.pool,
            patience: setup.patience,
            stop: Arc::clone(&stop),
            archive: archive.to_owned(),
            run: Uuid::new_v4(),
            volumes: Vec::new(),
            part: None,
            number: 0,
            total: 0,
            report: Arc::default(),
        };
        // The first tape is waited for here, and who wants the run to end says so through the caller's flag.
        run.stop = Arc::clone(&cancel);
        let label = run.take_volume()?;
        run.stop = Arc::clone(&stop);
        let ring = Arc::new(Ring::new(ring, label.block_size.get()));
        let report = Arc::clone(&run.report);
        let far = Arc::clone(&ring);
        let write = move || run.write(&far, label);
        let thread = std::thread::Builder::new().name("tape".to_owned()).spawn(write);
        let thread = Some(thread.at(|| "cannot start a thread".to_owned())?);
        Ok(Self { name, ring, block: None, written: 0, cancel, stop, thread, report })
    }

    /// Where the report will be when the archive is finished.
    pub fn report(&self) -> Arc<Mutex<TapeReport>> {
        Arc::clone(&self.report)
    }

    /// Why the writer has given up.
    fn failure(&mut self) -> Error {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => error,
            Some(Ok(Ok(_)) | Err(_)) => {
                Error::new(ErrorKind::Internal, "the thread that writes the tape is gone")
            }
            None => Error::new(ErrorKind::Io, "the run to tape has failed before"),
        }
    }
}

impl Sink for TapeMedium {
    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        while !bytes.is_empty() {
            let mut block = match self.block.take() {
                Some(block) => block,
                None => match self.ring.empty(|| self.cancel.load(Ordering::Relaxed)) {
                    Some(block) => block,
                    None if self.cancel.load(Ordering::Relaxed) => return Err(interrupted()),
                    None => return Err(self.failure()),
                },
            };
            bytes = block.fill(bytes);
            if block.is_full() {
                self.ring.put(block);
            } else {
                self.block = Some(block);
            }
        }
        Ok(())
    }
}

impl Medium for TapeMedium {
    fn finish(mut self: Box<Self>) -> Result<Durable> {
        if let Some(block) = self.block.take().filter(|block| !block.is_empty()) {
            self.ring.put(block);
        }
        self.ring.close();
        let ended = self.thread.take().map(JoinHandle::join);
        let Some(Ok(ended)) = ended else { return Err(self.failure()) };
        ended?;
        Ok(Durable { name: self.name.clone(), bytes: self.written })
    }
}

impl Drop for TapeMedium {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.ring.end();
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join)
            && error.kind() != ErrorKind::Interrupted
        {
            tracing::warn!(%error, "a run to tape was given up");
        }
    }
}

/// What is at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// The archive.
    Archive,
    /// The volume.
    Volume,
}

/// The part that is being written.
struct Open {
    begin: Begin,
    file: u64,
    start: u64,
    blocks: u64,
    bytes: u64,
    hasher: blake3::Hasher,
}

/// The writing thread.
struct Run {
    deck: Deck,
    changer: Box<dyn Changer>,
    ledger: Arc<dyn Ledger>,
    pool: Option<String>,
    patience: Duration,
    stop: Cancel,
    archive: String,
    run: Uuid,
    /// The volumes so far, the one in the drive last.
    volumes: Vec<Label>,
    part: Option<Open>,
    /// Parts so far.
    number: u32,
    /// Bytes in the parts that are committed.
    total: u64,
    report: Arc<Mutex<TapeReport>>,
}

impl Run {
    fn write(mut self, ring: &Ring, label: Label) -> Result<TapeReport> {
        let done = self.all(ring, label);
        if done.is_err() {
            self.note_failure();
            ring.end();
        }
        done?;
        let report = TapeReport {
            volumes: self.volumes.iter().map(|label| label.label.clone()).collect(),
            bytes: self.total,
            underruns: ring.underruns(),
        };
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&report);
        Ok(report)
    }

    /// A volume that failed is noted as that, whatever else is wrong.
    fn note_failure(&mut self) {
        if let (Some(why), Some(label)) = (self.deck.broken(), self.volumes.last())
            && let Err(error) = self.ledger.failed(label, why)
        {
            tracing::error!(volume = %label.label, %error, "a failed volume could not be noted: do not use it again");
        }
    }

    fn all(&mut self, ring: &Ring, label: Label) -> Result<()> {
        self.begin(label)?;
        loop {
            let Some(block) = ring.take().map_err(|_| interrupted())? else { break };
            self.block(block.bytes())?;
            ring.give_back(block);
        }
        while !self.end(Whose::Archive)? {
            self.turn()?;
        }
        self.deck.close()
    }

    /// Writes one block, to this volume or to the next.
    fn block(&mut self, bytes: &[u8]) -> Result<()> {
        for _ in 0..IDLE_VOLUMES {
            let fate = self.deck.write(bytes, "writing a block")?;
            if fate != Fate::NoRoom
                && let Some(part) = &mut self.part
            {
                part.blocks += 1;
                part.bytes += bytes.len() as u64;
                part.hasher.update(bytes);
            }
            if fate != Fate::Written {
                self.end(Whose::Volume)?;
                self.turn()?;
            }
            if fate != Fate::NoRoom {
                return Ok(());
            }
        }
        let what = format!("{IDLE_VOLUMES} volumes one after the other have no room for a block");
        Err(Error::new(ErrorKind::NoSpace, what).with_hint("label or erase volumes, and begin again"))
    }

    /// Writes the begin of the next part; goes on to other volumes where there is no room for it.
    fn begin(&mut self, mut label: Label) -> Result<()> {
        for _ in 0..IDLE_VOLUMES {
            let file = go_to_end(&mut self.deck, &label)?;
            // The volumes before, and of them those that hold a part: all are in `volumes`, for a volume without one was taken out.
            let before = self.volumes.iter().map(|label| label.label.clone()).collect::<Vec<_>>();
            let begin = Begin {
                volume: label.volume,
                run: self.run,
                archive: self.archive.clone(),
                part: self.number + 1,
                offset: self.total,
                before: before.get(before.len().saturating_sub(BEFORE)..).unwrap_or_default().to_vec(),
                block_size: label.block_size,
                created: now(),
            };
            self.volumes.push(label);
            match self.deck.write(&Record::Begin(begin.clone()).encode()?, "beginning an archive")? {
                Fate::NoRoom => {}
                Fate::Written | Fate::LastOne => {
                    self.deck.mark()?;
                    self.number += 1;
                    let start = self.deck.at();
                    let hasher = blake3::Hasher::new();
                    self.part = Some(Open { begin, file: file + 1, start, blocks: 0, bytes: 0, hasher });
                    return Ok(());
                }
            }
            label = self.next_volume()?;
            let place = self.volumes.len().saturating_sub(1);
            self.volumes.remove(place);
        }
        let what = format!("{IDLE_VOLUMES} volumes one after the other have no room for an archive");
        Err(Error::new(ErrorKind::NoSpace, what).with_hint("label or erase volumes, and begin again"))
    }

    /// Closes the part and commits it. False, when it was to be the archive's last one, and there is no room to say so: it is
    /// committed as one that others follow.
    fn end(&mut self, whose: Whose) -> Result<bool> {
        let last = whose == Whose::Archive;
        let Some(open) = self.part.take() else {
            return Err(Error::new(ErrorKind::Internal, "a part ends that was not begun"));
        };
        // At the end of a tape it is looked what is durable before anything is said of it.
        if last {
            self.deck.mark()?
        } else {
            self.deck.commit()?
        }
        let total = self.total + open.bytes;
        let end = End {
            volume: open.begin.volume,
            run: self.run,
            part: open.begin.part,
            file: open.file,
            start: open.start,
            blocks: open.blocks,
            bytes: open.bytes,
            digest: open.hasher.finalize().to_hex().to_string(),
            total,
            last,
        };
        let record = Record::End(end.clone()).encode()?;
        let mut fate = Fate::NoRoom;
        // After an early warning the drive says no once, with nothing written, and then takes what fits.
        for _ in 0..2 {
            if fate == Fate::NoRoom {
                fate = self.deck.write(&record, "ending an archive")?;
            }
        }
        let said = fate != Fate::NoRoom;
        self.deck.commit()?;
        if let Some(label) = self.volumes.last() {
            let part = Part {
                file: open.file,
                start: open.start,
                begin: open.begin,
                end: Some(End { last: last && said, ..end }),
            };
            self.ledger.committed(&Placed { label: label.clone(), part })?;
        }
        self.total = total;
        Ok(said)
    }

    /// On to the next volume.
    fn turn(&mut self) -> Result<()> {
        let label = self.next_volume()?;
        self.begin(label)
    }

    /// Gives the volume out, and has the next one put in.
    fn next_volume(&mut self) -> Result<Label> {
        if self.changer.can_change() {
            self.deck.eject()?;
        }
        let mut refused: Option<Error> = None;
        loop {
            let old = self.volumes.last().map(|label| label.label.clone());
            let pool = self.pool.clone().unwrap_or_default();
            let why = refused.as_ref().map(|error| crate::error::sentence(error));
            let number = u32::try_from(self.volumes.len()).unwrap_or(u32::MAX).saturating_add(1);
            let device = self.deck.name().to_owned();
            let change = Change {
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
    fn take_volume(&mut self) -> Result<Label> {
        self.deck.load(Access::Write, self.patience, &self.stop)?;
        let label = label_of(&mut self.deck)?;
        let called = format!("volume '{}' in '{}'", label.label, self.deck.name());
        if let Some(why) = self.ledger.failure(label.volume)? {
            return Err(Error::new(ErrorKind::Io, format!("{called} has failed before: {why}"))
                .with_hint("take another one; what is on it may still be read"));
        }
        let wanted = self.pool.get_or_insert_with(|| label.pool.clone());
        if *wanted != label.pool {
            let what = format!("{called} is of the pool '{}', not of '{wanted}'", label.pool);
            return Err(Error::new(ErrorKind::Usage, what).with_hint("take a volume of that pool"));
        }
        if self.volumes.iter().any(|used| used.volume == label.volume) {
            return Err(Error::new(ErrorKind::Exists, format!("{called} was written in this run already"))
                .with_hint("take another one"));
        }
        if self.volumes.first().is_some_and(|first| first.block_size != label.block_size) {
            let what = format!(
                "{called} has blocks of {} bytes, the volumes before it others",
                label.block_size.get()
            );
            return Err(Error::new(ErrorKind::Usage, what).with_hint("take a volume of the same kind"));
        }
        Ok(label)
    }
}
