//! What is done with a volume apart from archives: look, label, list, verify, erase.
//!
//! Imports: `error`, the modules of tapes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use super::drive::{Access, Drive};
use super::positioned_drive::{PositionedDrive, ReadOutcome, interrupted};
use super::reader::{PartSummary, check_part};
use super::record::{TapeBlock, VolumeLabel};
use super::tape_catalog::TapeCatalog;
use super::volume::{self, NewLabel, Overwrite, VolumeContent, VolumeContents, walk};
use virtfold_archive::stream::Cancel;
use virtfold_base::error::{Error, ErrorKind, Result, sentence};

/// A drive that is being looked after, and who remembers.
pub struct VolumeAdmin<'a> {
    deck: PositionedDrive,
    ledger: &'a dyn TapeCatalog,
    patience: Duration,
    cancel: Cancel,
}

/// How a drive and the tape in it stand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TapeStatus {
    /// The device.
    pub device: String,
    /// Whether a tape is in it, and ready.
    pub ready: bool,
    /// Whether that is write-protected.
    pub protected: bool,
    /// What is at its beginning: `none`, `blank`, `ours` or `foreign`.
    pub tape: &'static str,
    /// The label, of one of ours.
    pub label: Option<VolumeLabel>,
    /// Who wrote a foreign one.
    pub foreign: Option<String>,
    /// Why nothing more is written to one of ours.
    pub failed: Option<String>,
    /// Blocks and filemarks on it.
    pub blocks: Option<u64>,
}

/// What reading all of a volume came to.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeReport {
    /// The volume.
    pub label: VolumeLabel,
    /// Its parts, in their order.
    pub parts: Vec<PartReport>,
    /// Whether all of it is what was written.
    pub sound: bool,
}

/// What reading a part came to.
#[derive(Clone, Debug, Serialize)]
pub struct PartReport {
    /// The archive.
    pub archive: String,
    /// Number of the part.
    pub part: u32,
    /// Bytes read.
    pub bytes: u64,
    /// Whether the part has an end.
    pub ended: bool,
    /// Whether its run went on here, and wrote it again: then it is not the archive's, whatever it is like.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub superseded: bool,
    /// What is wrong with it.
    pub fault: Option<String>,
}

impl<'a> VolumeAdmin<'a> {
    /// Takes a drive that is not open.
    pub fn new(
        drive: Box<dyn Drive>,
        ledger: &'a dyn TapeCatalog,
        patience: Duration,
        cancel: Cancel,
    ) -> Self {
        Self { deck: PositionedDrive::new(drive), ledger, patience, cancel }
    }

    fn load(&mut self, access: Access) -> Result<()> {
        self.deck.load(access, self.patience, &self.cancel)
    }

    /// Looks. No tape is no error.
    ///
    /// # Errors
    /// The drive does not answer, somebody else has it, or the tape can't be read.
    pub fn status(mut self) -> Result<TapeStatus> {
        let mut status = TapeStatus {
            device: self.deck.name().to_owned(),
            ready: false,
            protected: false,
            tape: "none",
            label: None,
            foreign: None,
            failed: None,
            blocks: None,
        };
        match self.load(Access::Read) {
            Ok(()) => {}
            Err(error) if self.deck.is_empty(&error) => return Ok(status),
            Err(error) => return Err(error),
        }
        status.ready = true;
        status.protected = self.deck.state()?.protected;
        match volume::face(&mut self.deck)? {
            VolumeContent::Blank => status.tape = "blank",
            VolumeContent::Foreign(who) => (status.tape, status.foreign) = ("foreign", Some(who)),
            VolumeContent::Ours(label) => {
                status.failed = self.ledger.failure(label.volume)?;
                status.blocks = Some(self.deck.end_of_data()?);
                (status.tape, status.label) = ("ours", Some(label));
            }
        }
        self.deck.rewind()?;
        self.deck.close()?;
        Ok(status)
    }

    /// Fails unless the tape may be overwritten. The volume of ours that is on it.
    fn may_overwrite(&mut self, overwrite: Overwrite) -> Result<Option<Uuid>> {
        volume::may_overwrite(&mut self.deck, overwrite)?;
        let label = match volume::face(&mut self.deck) {
            Ok(VolumeContent::Ours(label)) => label,
            Ok(_) => return Ok(None),
            // What can't be read is overwritten when somebody said so.
            Err(_) if overwrite == Overwrite::Force => return Ok(None),
            Err(error) => return Err(error),
        };
        match self.ledger.failure(label.volume)? {
            Some(why) if overwrite == Overwrite::Refuse => {
                let what =
                    format!("volume '{}' in '{}' has failed before: {why}", label.label, self.deck.name());
                Err(Error::new(ErrorKind::Io, what).with_hint("use another tape; --force uses it again"))
            }
            _ => Ok(Some(label.volume)),
        }
    }

    /// Labels a tape; all that was on it is gone.
    ///
    /// # Errors
    /// There is something on it, and `overwrite` does not say that it may go; it can't be written.
    pub fn label(mut self, new: &NewLabel, overwrite: Overwrite) -> Result<VolumeLabel> {
        super::record::check_label(&new.label)?;
        super::record::check_label(&new.pool)?;
        self.load(Access::Write)?;
        let replaced = self.may_overwrite(overwrite)?;
        let label = volume::label(&mut self.deck, new)?;
        self.deck.close()?;
        let contents = VolumeContents { label: label.clone(), parts: Vec::new(), blocks: 2, files: 1 };
        self.ledger.set_contents(&contents, replaced)?;
        Ok(label)
    }

    /// Erases a tape, its label too. What was behind its new end is hard to read, and not gone from the
    /// medium.
    ///
    /// # Errors
    /// As [`VolumeAdmin::label`].
    pub fn erase(mut self, overwrite: Overwrite) -> Result<()> {
        self.load(Access::Write)?;
        let replaced = self.may_overwrite(overwrite)?;
        self.deck.rewind()?;
        self.deck.erase()?;
        self.deck.close()?;
        replaced.map_or(Ok(()), |volume| self.ledger.forget(volume))
    }

    /// Reads what is on a volume, and has it remembered: so a lost catalog is had again.
    ///
    /// # Errors
    /// The volume is not one of ours, or can't be read.
    pub fn list(mut self) -> Result<VolumeContents> {
        self.load(Access::Read)?;
        let (contents, _) = walk(&mut self.deck)?;
        self.deck.rewind()?;
        self.deck.close()?;
        self.ledger.set_contents(&contents, None)?;
        Ok(contents)
    }

    /// Reads every block of a volume, and holds it against what the ends say. `progress` is told the bytes.
    ///
    /// # Errors
    /// The volume is not one of ours, or its records can't be read. What is wrong with data is in the result.
    pub fn verify(mut self, progress: &dyn Fn(u64)) -> Result<VolumeReport> {
        self.load(Access::Read)?;
        let (contents, _) = walk(&mut self.deck)?;
        let mut buf = vec![0; TapeBlock::LARGEST];
        let mut parts = Vec::new();
        for part in &contents.parts {
            let mut verdict = PartReport {
                archive: part.begin.archive.clone(),
                part: part.begin.part,
                bytes: 0,
                ended: part.end.is_some(),
                superseded: contents.is_superseded(part),
                fault: None,
            };
            match self.read_part(part.start, &mut buf, progress) {
                Ok(seen) => {
                    verdict.bytes = seen.bytes;
                    let checked = part.end.as_ref().map_or(Ok(()), |end| check_part(part, end, &seen));
                    verdict.fault = checked.err().map(|error| error.to_string());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                Err(_) if verdict.superseded => {}
                Err(error) => verdict.fault = Some(sentence(&error)),
            }
            parts.push(verdict);
        }
        self.deck.rewind()?;
        self.deck.close()?;
        let sound = parts.iter().all(|part| part.superseded || part.fault.is_none() && part.ended);
        self.ledger.set_contents(&contents, None)?;
        Ok(VolumeReport { label: contents.label, parts, sound })
    }

    fn read_part(&mut self, start: u64, buf: &mut Vec<u8>, progress: &dyn Fn(u64)) -> Result<PartSummary> {
        self.deck.seek(start)?;
        let mut hasher = blake3::Hasher::new();
        let (mut blocks, mut bytes) = (0, 0);
        while let ReadOutcome::Block(len) = self.deck.read(buf)? {
            hasher.update(buf.get(..len).unwrap_or_default());
            (blocks, bytes) = (blocks + 1, bytes + len as u64);
            progress(len as u64);
            if self.cancel.load(Ordering::Relaxed) {
                return Err(interrupted());
            }
        }
        Ok(PartSummary { blocks, bytes, digest: hasher.finalize() })
    }
}
