//! A drive that is watched: every step is counted here, and the drive is asked where it stands.
//!
//! Invariants:
//! - `at` is what this side counts; [`PositionedDrive::check`] holds the drive's own position against it.
//!   `MTIOCGET` is never asked for a position: it is wrong after several calls.
//! - After a failed write, or a position that is not the one counted, nothing is written any more
//!   ([`PositionedDrive::broken`]). The one exception is `ENOSPC`, behind which the position says what is on
//!   the tape.
//! - A block that this side has not counted is never assumed to be on the tape.
//!
//! Imports: `error`, the drive.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::libc;

use super::drive::{Access, Drive, DriveState, TapeCommand};
use virtfold_archive::stream::Cancel;
use virtfold_base::error::{Error, ErrorKind, Result};

/// Blocks between two looks at the position within a file.
const LOOK_EVERY: u64 = 4096;
/// How often it is looked whether a tape is there: soon at first, and then less and less often.
const POLL: std::ops::Range<Duration> = Duration::from_millis(10)..Duration::from_millis(500);
/// The longest block that is read, bytes: no writer goes beyond it.
const LONGEST: usize = 16 << 20;

/// What became of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteOutcome {
    /// It is written.
    Written,
    /// It is written, and the tape is full.
    EarlyWarning,
    /// It is not written: the tape is full.
    EndOfMedium,
}

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadOutcome {
    /// A block of this length.
    Block(usize),
    /// A filemark.
    Filemark,
    /// The end of what is recorded.
    End,
}

/// A drive with a tape, and where it stands.
pub(super) struct PositionedDrive {
    drive: Box<dyn Drive>,
    at: u64,
    unchecked: u64,
    broken: Option<String>,
    /// The last thing that was written was a block: the kernel ends it with a filemark when the drive is
    /// closed.
    unmarked: bool,
}

impl PositionedDrive {
    /// Takes a drive that is not open.
    pub(super) fn new(drive: Box<dyn Drive>) -> Self {
        Self { drive, at: 0, unchecked: 0, broken: None, unmarked: false }
    }

    /// The device, for messages.
    pub(super) fn name(&self) -> &str {
        self.drive.name()
    }

    /// Position of the next block, as it is counted here.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Why nothing may be written any more.
    pub(super) fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// Opens the drive, waits for a tape until `patience` is over, and goes to its beginning.
    pub(super) fn load(&mut self, access: Access, patience: Duration, stop: &Cancel) -> Result<()> {
        self.wait(access, patience, stop)?;
        self.broken = None;
        let settings: &[TapeCommand] = match access {
            Access::Read => &[TapeCommand::VariableBlocks],
            Access::Write => {
                &[TapeCommand::VariableBlocks, TapeCommand::BufferInDrive, TapeCommand::NoCompression]
            }
        };
        for setting in settings {
            match self.drive.run(*setting) {
                // A drive that can't compress refuses to be told not to.
                Err(_) if *setting == TapeCommand::NoCompression => {}
                done => done.map_err(|e| self.said("can't be set up", e))?,
            }
        }
        self.rewind()
    }

    /// Whether an error of [`PositionedDrive::load`] is that no tape is there, and not that no drive is.
    pub(super) fn is_empty(&self, error: &Error) -> bool {
        error.kind() == ErrorKind::NotFound && std::error::Error::source(error).is_none()
    }

    /// How the drive stands.
    pub(super) fn state(&mut self) -> Result<DriveState> {
        self.drive.state().map_err(|e| self.said("does not answer", e))
    }

    /// Looks until a tape is ready. A tape that was changed under an open descriptor needs a new one, so each
    /// look opens anew.
    fn wait(&mut self, access: Access, patience: Duration, stop: &Cancel) -> Result<()> {
        let until = Instant::now() + patience;
        let mut pause = POLL.start;
        loop {
            match self.drive.open(access).and_then(|()| self.drive.state()) {
                Ok(state) if state.online && !(access == Access::Write && state.protected) => return Ok(()),
                Ok(DriveState { online: true, .. }) => return Err(self.protected()),
                Ok(_) => {}
                Err(e) => match e.raw_os_error() {
                    Some(libc::EROFS) => return Err(self.protected()),
                    Some(libc::EBUSY) => return Err(self.busy(e)),
                    // ENOMEDIUM and EIO come while a tape is being loaded.
                    Some(libc::ENOMEDIUM | libc::EIO) => {}
                    _ => return Err(self.said("can't be opened", e)),
                },
            }
            if stop.load(Ordering::Relaxed) {
                return Err(interrupted());
            }
            if Instant::now() >= until {
                let what = format!("there is no tape in '{}'", self.name());
                return Err(Error::new(ErrorKind::NotFound, what)
                    .with_hint("load a tape, and wait until it is ready"));
            }
            std::thread::sleep(pause.min(patience));
            pause = (pause * 2).min(POLL.end);
        }
    }

    fn protected(&self) -> Error {
        let what = format!("the tape in '{}' is write-protected", self.name());
        Error::new(ErrorKind::Io, what).with_hint("move its write-protect tab, or use another tape")
    }

    fn busy(&self, e: io::Error) -> Error {
        let what = format!("another process has '{}' open", self.name());
        Error::new(ErrorKind::InUse, what).with_source(e).with_hint("wait until it is done; 'fuser' names it")
    }

    /// An error of the drive.
    fn said(&self, what: &str, e: io::Error) -> Error {
        Error::io(format!("the tape drive '{}' {what}", self.name()), e)
    }

    /// Ends all writing: what happened, and where.
    fn fail(&mut self, doing: &str, e: Option<io::Error>) -> Error {
        let stands = match self.drive.position() {
            Ok(at) => format!("block {at}"),
            Err(_) => "an unknown block".to_owned(),
        };
        let what = format!(
            "{doing} failed on the tape in '{}': virtfold counted to block {}, the drive is at {stands}",
            self.name(),
            self.at
        );
        self.drive.write_no_more();
        self.unmarked = false;
        self.broken.get_or_insert_with(|| what.clone());
        let hint = "data after the last commit are lost, and this volume is not used any more; back up again, to another one";
        let error = Error::new(ErrorKind::Io, what).with_hint(hint);
        match e {
            Some(e) => error.with_source(e),
            None => error,
        }
    }

    fn may_write(&self) -> Result<()> {
        match &self.broken {
            None => Ok(()),
            Some(why) => Err(Error::new(ErrorKind::Io, format!("this volume is not used any more: {why}"))),
        }
    }

    /// Holds the drive's position against the count.
    pub(super) fn check(&mut self, doing: &str) -> Result<()> {
        self.unchecked = 0;
        match self.drive.position() {
            Ok(at) if at == self.at => Ok(()),
            Ok(_) => Err(self.fail(doing, None)),
            Err(e) => Err(self.fail(doing, Some(e))),
        }
    }

    /// Writes a block.
    pub(super) fn write(&mut self, block: &[u8], what: &str) -> Result<WriteOutcome> {
        self.may_write()?;
        self.unmarked = true;
        match self.drive.write(block) {
            Ok(len) if len == block.len() => {
                self.at += 1;
                self.unchecked += 1;
                if self.unchecked >= LOOK_EVERY {
                    self.check(what)?;
                }
                Ok(WriteOutcome::Written)
            }
            Ok(_) => Err(self.fail(what, None)),
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => match self.drive.position() {
                Ok(at) if at == self.at => Ok(WriteOutcome::EndOfMedium),
                Ok(at) if at == self.at + 1 => {
                    self.at = at;
                    Ok(WriteOutcome::EarlyWarning)
                }
                _ => Err(self.fail(what, Some(e))),
            },
            Err(e) => Err(self.fail(what, Some(e))),
        }
    }

    /// Writes a filemark, and goes on.
    pub(super) fn mark(&mut self) -> Result<()> {
        self.filemark(TapeCommand::WriteFilemark)
    }

    /// Writes a filemark, and returns when everything up to here is on the medium, at the position that was
    /// counted.
    pub(super) fn commit(&mut self) -> Result<()> {
        self.filemark(TapeCommand::WriteFilemarkSync)
    }

    fn filemark(&mut self, motion: TapeCommand) -> Result<()> {
        const DOING: &str = "writing a filemark";
        self.may_write()?;
        match self.drive.run(motion) {
            Ok(()) => {}
            // Near the end the mark may be written all the same: the position tells.
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => {}
            Err(e) => return Err(self.fail(DOING, Some(e))),
        }
        self.at += 1;
        self.unmarked = false;
        self.check(DOING)
    }

    /// Reads what comes next; `buf` grows where a block is longer, up to 16 MiB.
    pub(super) fn read(&mut self, buf: &mut Vec<u8>) -> Result<ReadOutcome> {
        loop {
            let error = match self.drive.read(buf) {
                Ok(0) => {
                    let at =
                        self.drive.position().map_err(|e| self.said("does not report its position", e))?;
                    let found = if at == self.at { ReadOutcome::End } else { ReadOutcome::Filemark };
                    self.at += u64::from(found == ReadOutcome::Filemark);
                    self.check_read()?;
                    return Ok(found);
                }
                Ok(len) => {
                    self.at += 1;
                    return Ok(ReadOutcome::Block(len));
                }
                Err(e) => e,
            };
            if error.raw_os_error() == Some(libc::ENOMEM) && buf.len() < LONGEST {
                self.step_back(error)?;
                buf.resize((buf.len() * 2).clamp(1 << 20, LONGEST), 0);
                continue;
            }
            return self.end_or_error(error);
        }
    }

    /// The tape is behind a block that was too long: one back.
    fn step_back(&mut self, error: io::Error) -> Result<()> {
        let at = self.drive.position();
        if !at.is_ok_and(|at| at == self.at + 1) {
            return Err(self.unreadable(error));
        }
        self.drive.run(TapeCommand::BackBlock).map_err(|e| self.said("can't go back one block", e))?;
        self.check_read()
    }

    /// `EIO` at the end of data looks like a medium error. The end is where there is nothing behind.
    fn end_or_error(&mut self, error: io::Error) -> Result<ReadOutcome> {
        let here = self.drive.position().ok();
        let end = self.drive.run(TapeCommand::EndOfData).and_then(|()| self.drive.position()).ok();
        match (here, end) {
            (Some(here), Some(end)) if here == self.at && end == here => Ok(ReadOutcome::End),
            _ => Err(self.unreadable(error)),
        }
    }

    fn unreadable(&self, error: io::Error) -> Error {
        let what = format!("block {} of the tape in '{}' can't be read", self.at, self.name());
        Error::new(ErrorKind::Io, what)
            .with_source(error)
            .with_hint("clean the drive, or try another one; later blocks may be readable")
    }

    /// As [`PositionedDrive::check`], where nothing is written.
    fn check_read(&mut self) -> Result<()> {
        let at = self.drive.position().map_err(|e| self.said("does not report its position", e))?;
        if at == self.at {
            return Ok(());
        }
        let what = format!("the tape in '{}' is at block {at} instead of block {}", self.name(), self.at);
        Err(Error::new(ErrorKind::Io, what)
            .with_hint("was the tape changed, or the drive reset? Start again"))
    }

    /// Goes to the beginning.
    pub(super) fn rewind(&mut self) -> Result<()> {
        self.drive.run(TapeCommand::Rewind).map_err(|e| self.said("can't rewind", e))?;
        self.at = 0;
        self.check_read()
    }

    /// Goes to a position.
    pub(super) fn seek(&mut self, to: u64) -> Result<()> {
        let doing = format!("can't go to block {to}");
        self.drive.run(TapeCommand::Seek(to)).map_err(|e| self.said(&doing, e))?;
        self.at = to;
        self.check_read()
    }

    /// Goes to the end of what is recorded, and tells where that is.
    pub(super) fn end_of_data(&mut self) -> Result<u64> {
        let doing = "can't go to the end of the data";
        let end = self.drive.run(TapeCommand::EndOfData).and_then(|()| self.drive.position());
        self.at = end.map_err(|e| self.said(doing, e))?;
        Ok(self.at)
    }

    /// Goes behind the next filemark; false where there is none, and the tape is at the end.
    pub(super) fn forward_file(&mut self) -> Result<bool> {
        match self.drive.run(TapeCommand::ForwardFile) {
            Ok(()) => {
                let at = self.drive.position().map_err(|e| self.said("does not report its position", e))?;
                self.at = at;
                Ok(true)
            }
            Err(error) => {
                self.at = self.drive.position().map_err(|e| self.said("does not report its position", e))?;
                self.end_or_error(error).map(|_| false)
            }
        }
    }

    /// Erases from here on.
    pub(super) fn erase(&mut self) -> Result<()> {
        self.may_write()?;
        match self.drive.run(TapeCommand::Erase) {
            Ok(()) => self.check("erasing"),
            Err(e) => Err(self.fail("erasing", Some(e))),
        }
    }

    /// Gives the tape out and closes the drive. The kernel may write a filemark before that, as before
    /// closing; what is out has no position to ask for, so it is asked here: also where nothing but a block
    /// that found no room was tried.
    pub(super) fn eject(&mut self) -> Result<()> {
        if std::mem::take(&mut self.unmarked) {
            self.check("ejecting")?;
        }
        self.drive.run(TapeCommand::Eject).map_err(|e| self.said("can't eject the tape", e))?;
        self.close()
    }

    /// Gives the tape out behind a failure, as far as the drive still does what it is told: who changes
    /// volumes has to do the rest.
    pub(super) fn let_go(&mut self) {
        self.unmarked = false;
        let given = self.drive.run(TapeCommand::Eject).or_else(|_| {
            // Where the drive was reset, or the tape changed, the descriptor is no good any more.
            self.drive.close()?;
            self.drive.open(Access::Read)?;
            self.drive.run(TapeCommand::Eject)
        });
        if let Err(error) = given.and_then(|()| self.drive.close()) {
            tracing::warn!(drive = self.drive.name(), %error, "a failed tape could not be ejected");
        }
    }

    /// Closes the drive. The filemark that the kernel may write then is only let be written where the tape
    /// stands where it should.
    pub(super) fn close(&mut self) -> Result<()> {
        let checked = if std::mem::take(&mut self.unmarked) { self.check("closing") } else { Ok(()) };
        let closed = self.drive.close();
        checked?;
        match closed {
            Ok(()) => Ok(()),
            Err(e) => Err(self.fail("closing", Some(e))),
        }
    }
}

impl Drop for PositionedDrive {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(%error, "the tape drive reported an error when it was closed");
        }
    }
}

/// The end of a run that was told to end.
pub(super) fn interrupted() -> Error {
    Error::new(ErrorKind::Interrupted, "the run was told to end")
}
