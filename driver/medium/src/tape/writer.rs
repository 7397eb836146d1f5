//! An archive on its way to tapes.
//!
//! The caller's thread fills the ring; one thread writes (`drive_thread`), and ends when all is on the tape,
//! or when it fails. The archive's end is said by [`Medium::finish`] alone: what was settled and is dropped
//! is no archive.
//!
//! After a failed write the run can go on ([`Medium::resume_after_failure`]): the volume is noted as failed
//! and given out, the next one is asked for, and the archive goes on there behind its last committed byte.
//! What was in the ring is forgotten: the caller gives it again.
//!
//! Imports: `error`, `archive` (`Sink`), the modules of tapes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use super::committed_parts::CommittedParts;
use super::drive_thread::DriveThread;
use super::positioned_drive::interrupted;
use super::record::VolumeLabel;
use super::ring::{Ring, RingBlock};
use super::tape_catalog::{PartLocation, id_of};
use super::write_options::TapeWriteOptions;
use crate::{DurableMarks, FinishedArchive, Medium};
use virtfold_archive::stream::{Cancel, Sink};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};

/// How often it is looked whether the run is to end, while the tape takes what is left.
const POLL: Duration = Duration::from_millis(5);

/// The thread that writes; the run comes back from it.
type DriveThreadHandle = JoinHandle<(DriveThread, Result<()>)>;

/// An archive on its way to tapes.
pub struct TapeMedium {
    name: String,
    ring: Arc<Ring>,
    /// Bytes that a ring is to have.
    room: u64,
    block: Option<RingBlock>,
    written: u64,
    cancel: Cancel,
    /// Tells the writer, wherever it waits.
    stop: Cancel,
    writer: Option<DriveThreadHandle>,
    /// The run, when its thread has ended.
    run: Option<DriveThread>,
    /// Who is told that something is left to go on with, and whether it is.
    notes: Option<Arc<dyn DurableMarks>>,
    leaves: bool,
}

impl TapeMedium {
    /// Begins the archive `archive` behind what is on the tape in the drive.
    ///
    /// # Errors
    /// There is no tape, it is not one of ours, it has failed before, is of another pool or write-protected.
    pub fn begin(setup: TapeWriteOptions, archive: &str) -> Result<Self> {
        let (id, name) = (id_of(archive), name_of(&setup, archive));
        let whole = |placed: &PartLocation| placed.part.end.as_ref().is_some_and(|end| end.last);
        if !id.is_empty() && setup.ledger.archives(id)?.iter().any(whole) {
            return Err(Error::new(ErrorKind::Exists, format!("an archive '{id}' is on a tape already"))
                .with_hint("start again: the new archive gets another id"));
        }
        let (cancel, room) = (Arc::clone(&setup.cancel), setup.ring);
        let mut run = DriveThread::new(setup, archive);
        let label = run.take_volume()?;
        Self::with(run, label, name, room, cancel)
    }

    /// Goes on with the archive `archive`, which another process has begun and committed some of, behind
    /// that: on the volume in the drive, or the one that is put in instead. Also says how many bytes of it
    /// there are; or why there is nothing to go on with.
    ///
    /// # Errors
    /// No volume for it is in the drive and nobody can change it; the memory can't be read.
    pub fn resume(
        setup: TapeWriteOptions,
        archive: &str,
    ) -> Result<std::result::Result<(Self, u64), String>> {
        let committed = match CommittedParts::of(setup.ledger.as_ref(), archive)? {
            Ok(committed) => committed,
            Err(why) => return Ok(Err(why)),
        };
        let pool = &committed.last.label.pool;
        if setup.pool.as_ref().is_some_and(|wished| wished != pool) {
            return Ok(Err(format!("it was begun on volumes of the pool '{pool}'")));
        }
        let (total, name) = (committed.total, name_of(&setup, archive));
        let (cancel, room) = (Arc::clone(&setup.cancel), setup.ring);
        let mut run = DriveThread::behind(setup, archive, &committed);
        let label = run.take_any_volume()?;
        if let Some(why) = run.gone(&committed, &label)? {
            return Ok(Err(why));
        }
        Ok(Ok((Self::with(run, label, name, room, cancel)?, total)))
    }

    /// Starts with a run on a volume.
    fn with(run: DriveThread, label: VolumeLabel, name: String, room: u64, cancel: Cancel) -> Result<Self> {
        let mut medium = Self {
            name,
            ring: Arc::new(Ring::new(room, label.block_size.get())),
            room,
            block: None,
            written: run.committed(),
            cancel,
            stop: Cancel::default(),
            writer: None,
            run: None,
            notes: None,
            leaves: false,
        };
        medium.start(run, label)?;
        Ok(medium)
    }

    /// Starts the writer, on the volume in the drive.
    fn start(&mut self, mut run: DriveThread, label: VolumeLabel) -> Result<()> {
        // Where the caller's thread waits for a tape, it looks at the caller's flag; the writer is told by
        // this side.
        self.stop = Cancel::default();
        run.stop = Arc::clone(&self.stop);
        self.ring = Arc::new(Ring::new(self.room, label.block_size.get()));
        let far = Arc::clone(&self.ring);
        let writer =
            std::thread::Builder::new().name("tape".to_owned()).spawn(move || run.write(&far, label));
        self.writer = Some(writer.at(|| "cannot start a thread".to_owned())?);
        Ok(())
    }

    /// Waits for the writer's end, and takes the run back.
    fn join(&mut self) -> Result<()> {
        let Some(writer) = self.writer.take() else {
            return Err(Error::new(ErrorKind::Io, "the run to tape has failed before"));
        };
        while !writer.is_finished() {
            if self.cancel.load(Ordering::Relaxed) {
                self.stop.store(true, Ordering::Relaxed);
                self.ring.end();
            }
            std::thread::sleep(POLL);
        }
        let gone = |_| Error::new(ErrorKind::Internal, "the thread that writes the tape is gone");
        let (mut run, done) = writer.join().map_err(gone)?;
        run.stop = Arc::clone(&self.cancel);
        // What is on a tape can't be taken away; it can be gone on with when there is a good tape.
        self.leaves = done.as_ref().is_err_and(|e| e.kind() != ErrorKind::Interrupted) && run.committed() > 0;
        self.run = Some(run);
        done
    }

    /// Why the writer has given up.
    fn failure(&mut self) -> Error {
        match self.join() {
            Err(error) => error,
            Ok(()) => Error::new(ErrorKind::Internal, "the thread that writes the tape has ended"),
        }
    }
}

/// What an archive is called.
fn name_of(setup: &TapeWriteOptions, archive: &str) -> String {
    match id_of(archive) {
        "" => format!("tape:{}", setup.drive.name()),
        id => format!("tape:{}#{id}", setup.drive.name()),
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
    /// All data are on the medium then, in a part that has no end yet.
    fn sync(&mut self) -> Result<()> {
        if self.run.is_some() {
            return Ok(());
        }
        if let Some(block) = self.block.take().filter(|block| !block.is_empty()) {
            self.ring.put(block);
        }
        self.ring.close();
        self.join()
    }

    fn resume_after_failure(&mut self) -> Result<Option<u64>> {
        let Some(mut run) = self.run.take() else { return Ok(None) };
        self.block = None;
        let Some(label) = run.go_on()? else { return Ok(None) };
        self.leaves = false;
        self.written = run.committed();
        self.start(run, label)?;
        Ok(Some(self.written))
    }

    /// What is committed the ledger knows.
    fn report_marks(&mut self, notes: Arc<dyn DurableMarks>) -> bool {
        self.notes = Some(notes);
        true
    }

    fn finish(mut self: Box<Self>) -> Result<FinishedArchive> {
        self.sync()?;
        let run = self.run.take().ok_or_else(|| self.failure())?;
        self.leaves = run.committed() > 0;
        let report = run.finish()?;
        self.leaves = false;
        let finished = FinishedArchive::new(self.name.clone(), self.written);
        Ok(FinishedArchive { tapes: vec![report], ..finished })
    }
}

impl Drop for TapeMedium {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.ring.end();
        if self.writer.is_some()
            && let Err(error) = self.join()
            && error.kind() != ErrorKind::Interrupted
        {
            tracing::warn!(%error, "a run to tape was given up");
        }
        if self.leaves {
            self.notes.iter().for_each(|notes| notes.left_behind());
        }
    }
}
