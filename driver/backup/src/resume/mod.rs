//! A backup that goes on after its process has died.
//!
//! While an archive is written, a record of it lies in `resume/ARCHIVE/` of the state directory: what it is made of (`fingerprint`), the chunks that were put
//! out, and what its medium says is durable (`record`). The record goes when the archive is finished or has failed; what is left of it
//! was left by a process that was killed. The next backup of the same things to the same place finds it. Where the sources are as they were, by
//! device, inode, size and times, and the same of them is used, it makes the same archive from the last chunk that the medium has; else it says why not, takes away what
//! is there, and starts anew. What is there of a file is read first and held against its digests (`verified_prefix`): of an object the store holds what it took, and of a tape its drive.
//!
//! Invariants: nobody goes on with the archive of a process that lives (it holds a lock on its record); each entry of a record is true by itself, so what is
//! lost of a record costs work and nothing else; whatever is not proven to be the same starts anew.
//!
//! An encrypted archive needs its key, which lies in memory apart from the record ([`SavedEnvelope`]): where the host was restarted, it starts anew.
//!
//! One medium at a time: several copies and pipes are not gone on with by another process, nor are block devices as sources, which don't tell when they
//! were written to. What a tape has of an archive the catalog knows, and no mark is kept of it.
//!
//! Imports: `error`, `archive`, `crypt`, `medium`, and of this crate `folded_disk`.

mod fingerprint;
mod key_store;
mod record;
mod saved_allocation;
#[cfg(test)]
mod tests;
mod verified_prefix;

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

pub use self::fingerprint::Fingerprint;
use self::fingerprint::FingerprintFields;
pub use self::key_store::SavedEnvelope;
pub(crate) use self::record::ResumeRecord;
pub use self::record::{ChunkJournal, read_chunks, read_marks};
use self::record::{RecordParts, SavedRecord};
pub(crate) use self::saved_allocation::SavedAllocation;
use super::folded_disk::DiskSet;
use virtfold_archive::crypt::{Envelope, Recipients};
use virtfold_archive::manifest::Manifest;
use virtfold_archive::stream::Cancel;
use virtfold_archive::writer::Attachment;
use virtfold_base::error::{Error, ErrorKind, Result, sentence};
use virtfold_base::units::Human;
use virtfold_medium::{ArchiveLabel, DurableMarks, Location, Medium, PartialArchive, Resumed};

/// What is done with a record that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumePolicy {
    /// It is gone on with, if that can be.
    IfPossible,
    /// It is gone on with, or nothing is done.
    Required,
    /// It is discarded.
    Never,
}

/// Opens again what a dead process has left at a place: [`virtfold_medium::reopen`], or what knows a tape's drive, too.
pub type Reopen<'a> = &'a dyn Fn(&Location, &ArchiveLabel, &Cancel, &PartialArchive) -> Result<Resumed>;

/// Reads what a dead process has left of a file at a place; nothing, where it is not there:
/// [`virtfold_medium::read_back`], or who has another process do it.
pub type ReadBack<'a> = &'a dyn Fn(&Location, &Cancel, &PartialArchive) -> Result<Option<Box<dyn Read>>>;

/// Takes away what a dead process has left and nobody goes on with: [`virtfold_medium::discard`], or who has another process do it.
pub type Discard<'a> = &'a dyn Fn(&PartialArchive) -> Result<()>;

/// Where a backup keeps its record.
#[derive(Clone, Copy)]
pub struct ResumeContext<'a> {
    /// The state directory.
    pub state_dir: &'a Path,
    /// Where keys of encrypted archives are kept: a directory in memory.
    pub key_dir: &'a Path,
    /// Where the archive goes.
    pub places: &'a [Location],
    /// The job in the journal that has the disks frozen.
    pub job: Option<Uuid>,
    /// What is done with a record that is there.
    pub wish: ResumePolicy,
    /// Opens the place again.
    pub reopen: Reopen<'a>,
    /// Reads what is there before that.
    pub read_back: ReadBack<'a>,
    /// Takes away what is not gone on with.
    pub discard: Discard<'a>,
}

impl fmt::Debug for ResumeContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keep({:?} in '{}')", self.wish, self.state_dir.display())
    }
}

/// What an archive is going to be made of.
pub(super) struct NewArchive<'a> {
    pub(super) head: &'a Manifest,
    pub(super) attachments: &'a [Attachment],
    pub(super) disks: &'a DiskSet,
    pub(super) label: &'a ArchiveLabel,
    /// Whom it is encrypted to.
    pub(super) recipients: Option<&'a Recipients>,
}

/// An archive that is begun or gone on with.
pub(super) struct OpenArchive {
    /// Dropped behind the medium, so that a medium that can't take away what it has written can say so.
    pub(super) head: Manifest,
    pub(super) attachments: Vec<Attachment>,
    pub(super) medium: Box<dyn Medium>,
    /// The head and the key of one that is encrypted.
    pub(super) envelope: Option<Envelope>,
    /// The rows of the disks' allocation tables, where it is gone on with.
    pub(super) rows: Vec<SavedAllocation>,
    pub(super) log: ChunkJournal,
    /// Bytes that the medium has of an earlier run.
    pub(super) at: Option<u64>,
    pub(super) record: Option<ResumeRecord>,
}

/// How an archive begins.
pub(super) enum ResumeDecision {
    /// Where an earlier process was.
    Resume(Box<OpenArchive>),
    /// At its beginning, and this is what its record is to say; nothing, where it can have none.
    StartOver(Option<Box<Fingerprint>>),
}

/// What was saved of a job's archive.
#[derive(Clone, Debug)]
pub struct SavedArchive {
    /// The archive's head.
    pub head: Manifest,
    /// Its members beside the disks.
    pub attachments: Vec<Attachment>,
}

impl ResumeContext<'_> {
    /// The place, where it is one that another process can go on with.
    fn place(&self) -> Option<&Location> {
        match self.places {
            [Location::Pipe] => None,
            [place] => Some(place),
            _ => None,
        }
    }

    /// Whether an archive can be gone on with by another process at all.
    pub(super) fn is_possible(&self) -> bool {
        self.place().is_some()
    }

    /// Whether the archive goes on, and if so, where.
    pub(super) fn start(&self, candidate: &NewArchive<'_>, cancel: &Cancel) -> Result<ResumeDecision> {
        let origin = match self.place() {
            Some(place) => Fingerprint::of(candidate, place, self)?,
            None => None,
        };
        let Some(origin) = origin else {
            return self.refuse("it can't be gone on with").map(|()| ResumeDecision::StartOver(None));
        };
        for saved in record::all(self.state_dir)? {
            if !saved.origin.is_of_the_same(&origin) {
                continue;
            }
            // One of a living process is left alone.
            let Some(saved) = saved.open()? else { continue };
            if let Some(gone_on) = self.resume(saved, &origin, candidate, cancel)? {
                return Ok(ResumeDecision::Resume(Box::new(gone_on)));
            }
        }
        self.refuse("nothing is left of it").map(|()| ResumeDecision::StartOver(Some(Box::new(origin))))
    }

    fn refuse(&self, why: &str) -> Result<()> {
        match self.wish {
            ResumePolicy::Required => {
                Err(Error::new(ErrorKind::InUse, format!("the earlier archive can't be gone on with: {why}")))
            }
            ResumePolicy::IfPossible | ResumePolicy::Never => Ok(()),
        }
    }

    /// Goes on with an archive, or discards what is there.
    fn resume(
        &self,
        mut saved: SavedRecord,
        origin: &Fingerprint,
        candidate: &NewArchive<'_>,
        cancel: &Cancel,
    ) -> Result<Option<OpenArchive>> {
        let name = saved.origin.name.clone();
        let why_not = match self.wish {
            ResumePolicy::Never => Some("that is wished".to_owned()),
            ResumePolicy::IfPossible | ResumePolicy::Required => saved.origin.difference(origin),
        };
        let envelope = why_not.map_or_else(|| envelope_of(&saved), Err);
        if let Ok(envelope) = &envelope {
            let proven = self.verify_prefix(&mut saved, envelope.as_ref(), cancel);
            // What can't be looked at now may be gone on with later.
            proven.inspect_err(|_| saved.record.keep_for_resume())?;
        }
        let reopened = match &envelope {
            Err(why) => Resumed::NotPossible(why.clone()),
            Ok(_) => {
                let label =
                    ArchiveLabel { name: name.clone(), id: saved.head.archive, ..candidate.label.clone() };
                let place = self.place().ok_or_else(unplaced)?;
                let reopened = (self.reopen)(place, &label, cancel, &saved.remains);
                reopened.inspect_err(|_| saved.record.keep_for_resume())?
            }
        };
        match reopened {
            Resumed::From(mut medium, at) => {
                tracing::warn!("going on with '{name}' at {}", Human(at));
                let SavedRecord { record, head, attachments, rows, log, .. } = saved;
                let envelope = envelope.ok().flatten();
                medium.detach(Arc::clone(&record.notes) as Arc<dyn DurableMarks>);
                let (at, record) = (Some(at), Some(record));
                Ok(Some(OpenArchive { head, attachments, medium, envelope, rows, log, at, record }))
            }
            Resumed::NotPossible(why) => {
                tracing::warn!("'{name}' was broken off and is not gone on with: {why}");
                discard(&mut saved, self.discard);
                Ok(None)
            }
        }
    }

    /// Leaves of what the medium is said to have only what is what was written.
    fn verify_prefix(
        &self,
        saved: &mut SavedRecord,
        envelope: Option<&Envelope>,
        cancel: &Cancel,
    ) -> Result<()> {
        if saved.remains.file.is_none() {
            return Ok(());
        }
        let place = self.place().ok_or_else(unplaced)?;
        // Where there is no file, or another one, whoever opens it says so.
        let Some(input) = (self.read_back)(place, cancel, &saved.remains)? else { return Ok(()) };
        let proof = verified_prefix::of((input, saved.remains.synced), &mut saved.log, envelope, cancel)?;
        if proof.is_damaged {
            tracing::warn!(
                "what is there of '{}' is damaged behind its first {}: the rest is made again",
                saved.origin.name,
                Human(proof.right)
            );
        }
        saved.remains.synced = proof.right;
        Ok(())
    }

    /// Begins the record of an archive. Where it can't be kept the archive is made all the same.
    pub(super) fn begin(
        &self,
        (origin, envelope): (Option<&Fingerprint>, Option<&Envelope>),
        parts: RecordParts<'_>,
        medium: &mut dyn Medium,
    ) -> (Option<ResumeRecord>, ChunkJournal) {
        let Some(origin) = origin else { return Default::default() };
        let begun = record::begin(self.state_dir, origin, parts).and_then(|(mut record, log)| {
            // Behind the record: a key that no record knows would stay.
            if let Some(envelope) = envelope {
                record.hold(self.key_dir, origin.archive, envelope)?;
            }
            Ok((record, log))
        });
        match begun {
            Ok((record, log)) if medium.detach(Arc::clone(&record.notes) as Arc<dyn DurableMarks>) => {
                (Some(record), log)
            }
            Ok(_) => Default::default(),
            Err(error) => {
                tracing::debug!("should this backup be broken off, it starts anew: {}", sentence(&error));
                Default::default()
            }
        }
    }
}

/// The head and the key of an archive that is encrypted; why they can't be had.
fn envelope_of(saved: &SavedRecord) -> std::result::Result<Option<Envelope>, String> {
    match saved.record.envelope() {
        Ok(None) if saved.origin.keys.is_some() => Err("its key was in memory alone, and is gone".to_owned()),
        Ok(envelope) => Ok(envelope),
        Err(error) => Err(sentence(&error)),
    }
}

fn unplaced() -> Error {
    Error::new(ErrorKind::Internal, "an archive without a place was gone on with")
}

/// The archive that a dead process was writing for a job, if there is one to `places`.
///
/// # Errors
/// The state directory can't be read.
pub fn of_job(keep: &ResumeContext<'_>) -> Result<Option<SavedArchive>> {
    let (Some(job), Some(place)) = (keep.job, keep.place()) else { return Ok(None) };
    for found in record::all(keep.state_dir)? {
        if found.origin.job == Some(job) && found.origin.place == FingerprintFields::place(place)? {
            let Some(mut saved) = found.open()? else { return Ok(None) };
            saved.record.keep_for_resume();
            return Ok(Some(SavedArchive { head: saved.head, attachments: saved.attachments }));
        }
    }
    Ok(None)
}

/// Takes away what an archive's medium has of it. Where that can't be done now the record stays, and the next run does it.
fn discard(saved: &mut SavedRecord, discarding: Discard<'_>) {
    if let Err(error) = discarding(&saved.remains) {
        tracing::warn!("what is left of '{}' stays for now: {}", saved.origin.name, sentence(&error));
        saved.record.keep_for_resume();
    }
}

/// Discards the records of jobs that are not open any more: their disks are not frozen now.
///
/// # Errors
/// The state directory can't be read.
pub fn discard_closed(
    state_dir: &Path,
    is_open: impl Fn(Uuid) -> bool,
    discarding: Discard<'_>,
) -> Result<()> {
    for found in record::all(state_dir)? {
        if found.origin.job.is_none_or(&is_open) {
            continue;
        }
        if let Some(mut saved) = found.open()? {
            discard(&mut saved, discarding);
        }
    }
    Ok(())
}
