//! A backup that goes on after its process has died.
//!
//! While an archive is written, a record of it lies in `resume/ARCHIVE/` of the state directory: what it is
//! made of (`fingerprint`), the chunks that were put out, and what its medium says is durable (`record`). The
//! record goes when the archive is finished or has failed; what is left of it was left by a process that was
//! killed. The next backup of the same things to the same place finds it. Where the sources are as they were,
//! by device, inode, size and times, and the same of them is used, it makes the same archive from the last
//! chunk that the medium has; else it says why not, takes away what is there, and starts anew. What is there
//! of a file is read first and held against its digests (`verified_prefix`): of an object the store holds
//! what it took, and of a tape its drive.
//!
//! Invariants: nobody goes on with the archive of a process that lives (it holds a lock on its record); each
//! entry of a record is true by itself, so what is lost of a record costs work and nothing else; whatever is
//! not proven to be the same starts anew.
//!
//! An encrypted archive needs its key, which lies in memory apart from the record ([`SavedEnvelope`]): where
//! the host was restarted, it starts anew.
//!
//! One medium at a time: several copies and pipes are not gone on with by another process, nor are block
//! devices as sources, which don't tell when they were written to. What a tape has of an archive the catalog
//! knows, and no mark is kept of it.
//!
//! Imports: `error`, `archive`, `crypt`, `medium`, and of this crate `destinations`, `folded_disk`.

mod fingerprint;
mod key_store;
mod record;
mod saved_allocation;
#[cfg(test)]
mod tests;
mod verified_prefix;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

pub use self::fingerprint::Fingerprint;
use self::fingerprint::FingerprintFields;
pub(crate) use self::fingerprint::SourceStamp;
pub use self::key_store::SavedEnvelope;
pub(crate) use self::record::ResumeRecord;
use self::record::SavedRecord;
pub use self::record::{ChunkJournal, read_chunks, read_marks};
pub(crate) use self::saved_allocation::{ReadFrom, SavedAllocation};
use super::destinations::Destinations;
use super::folded_disk::DiskSet;
use super::options::ResumePolicy;
use virtfold_archive::crypt::{Envelope, Recipients};
use virtfold_archive::manifest::Manifest;
use virtfold_archive::sign::{ChainLink, Seal};
use virtfold_archive::stream::Cancel;
use virtfold_archive::writer::{Attachment, DiskTables};
use virtfold_base::error::{Error, ErrorKind, Result, sentence};
use virtfold_base::units::Human;
use virtfold_medium::{ArchiveLabel, DurableMarks, Medium, Resumed};

/// Where a backup keeps what a later run needs.
#[derive(Clone, Debug)]
pub struct StateDirectories {
    /// virtfold's own directory, with the records of archives in `resume`.
    pub state: PathBuf,
    /// Where keys of encrypted archives are kept: a directory in memory.
    pub keys: PathBuf,
}

impl StateDirectories {
    /// With the usual directory for keys.
    pub fn new(state: impl Into<PathBuf>) -> Self {
        Self { state: state.into(), keys: SavedEnvelope::usual_directory() }
    }
}

/// What is there to resume, and whether it is to be.
#[derive(Clone, Copy, Debug)]
pub struct ResumeContext<'a> {
    /// Where the records are.
    pub state: &'a StateDirectories,
    /// Where the archive goes.
    pub destinations: &'a Destinations<'a>,
    /// The freeze session that has the disks frozen.
    pub session: Option<Uuid>,
    /// What is done with a record that is there.
    pub policy: ResumePolicy,
}

/// What an archive is going to be made of.
pub(super) struct NewArchive<'a> {
    pub(super) head: &'a Manifest,
    pub(super) attachments: &'a [Attachment],
    pub(super) disks: &'a DiskSet,
    pub(super) label: &'a ArchiveLabel,
    /// Whom it is encrypted to.
    pub(super) recipients: Option<&'a Recipients>,
    /// What it is signed with.
    pub(super) seal: Option<Seal<'a>>,
}

/// An archive that is begun or resumed.
pub(crate) struct OpenArchive {
    pub(super) medium: Box<dyn Medium>,
    /// The head and the key of one that is encrypted.
    pub(super) envelope: Option<Envelope>,
    /// Where it is resumed: its head and members as they were when it was begun.
    pub(super) saved: Option<SavedArchive>,
    /// Where it is resumed: the rows of the disks' allocation tables.
    pub(super) rows: Vec<SavedAllocation>,
    pub(super) log: ChunkJournal,
    /// Bytes that the medium has of an earlier run.
    pub(super) at: Option<u64>,
    /// Dropped behind the medium, so that a medium that can't take away what it has written can say so.
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
    /// Of a signed one: its place in its chain.
    pub link: Option<ChainLink>,
}

impl ResumeContext<'_> {
    /// Opens the archive: behind what a killed run has left of it, or a new one.
    pub(super) fn open(&self, new: &NewArchive<'_>, cancel: &Cancel) -> Result<OpenArchive> {
        let origin = match self.start(new, cancel)? {
            ResumeDecision::Resume(resumed) => return Ok(*resumed),
            ResumeDecision::StartOver(origin) => origin,
        };
        let mut medium = self.destinations.create(new.label, cancel)?;
        let envelope = new.recipients.map(Envelope::new).transpose()?;
        let (record, log) = match origin {
            Some(origin) => self.begin(&origin, envelope.as_ref(), new, medium.as_mut()),
            None => Default::default(),
        };
        Ok(OpenArchive { medium, envelope, saved: None, rows: Vec::new(), log, at: None, record })
    }

    /// Whether the archive goes on, and if so, where.
    pub(super) fn start(&self, candidate: &NewArchive<'_>, cancel: &Cancel) -> Result<ResumeDecision> {
        let origin = match self.destinations.resumable() {
            Some(place) => Fingerprint::of(candidate, place, self)?,
            None => None,
        };
        let Some(origin) = origin else {
            return self.refuse("it can't be resumed").map(|()| ResumeDecision::StartOver(None));
        };
        for saved in record::all(&self.state.state)? {
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
        match self.policy {
            ResumePolicy::Required => {
                Err(Error::new(ErrorKind::InUse, format!("the earlier archive can't be resumed: {why}")))
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
        let why_not = match self.policy {
            ResumePolicy::Never => Some("a new start was requested".to_owned()),
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
                let reopened = self.destinations.resume(&label, cancel, &saved.remains);
                reopened.inspect_err(|_| saved.record.keep_for_resume())?
            }
        };
        match reopened {
            Resumed::From(mut medium, at) => {
                tracing::warn!("resuming '{name}' at {}", Human(at));
                let SavedRecord { record, origin, head, attachments, rows, log, .. } = saved;
                let envelope = envelope.ok().flatten();
                medium.report_marks(Arc::clone(&record.notes) as Arc<dyn DurableMarks>);
                let (at, record) = (Some(at), Some(record));
                let saved = Some(SavedArchive { head, attachments, link: origin.link });
                Ok(Some(OpenArchive { medium, envelope, saved, rows, log, at, record }))
            }
            Resumed::NotPossible(why) => {
                tracing::warn!("'{name}' was interrupted and is not resumed: {why}");
                discard(&mut saved, self.destinations);
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
        // Where there is no file, or another one, whoever opens it says so.
        let Some(input) = self.destinations.read_back(cancel, &saved.remains)? else { return Ok(()) };
        let proof = verified_prefix::of(input, saved.remains.synced, &mut saved.log, envelope, cancel)?;
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
    fn begin(
        &self,
        origin: &Fingerprint,
        envelope: Option<&Envelope>,
        new: &NewArchive<'_>,
        medium: &mut dyn Medium,
    ) -> (Option<ResumeRecord>, ChunkJournal) {
        let tables: Vec<&dyn DiskTables> = new.disks.0.iter().map(|disk| disk as &dyn DiskTables).collect();
        let parts = (new.head, new.attachments, tables.as_slice());
        let begun = record::begin(&self.state.state, origin, parts).and_then(|(mut record, log)| {
            // Behind the record: a key that no record knows would stay.
            if let Some(envelope) = envelope {
                record.hold(&self.state.keys, origin.archive, envelope)?;
            }
            Ok((record, log))
        });
        match begun {
            Ok((record, log)) if medium.report_marks(Arc::clone(&record.notes) as Arc<dyn DurableMarks>) => {
                (Some(record), log)
            }
            Ok(_) => Default::default(),
            Err(error) => {
                tracing::debug!("if this backup is interrupted, it starts over: {}", sentence(&error));
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

/// The archive that a dead process was writing for a freeze session, if there is one.
///
/// # Errors
/// The state directory can't be read.
pub fn of_job(keep: &ResumeContext<'_>) -> Result<Option<SavedArchive>> {
    let (Some(job), Some(place)) = (keep.session, keep.destinations.resumable()) else { return Ok(None) };
    for found in record::all(&keep.state.state)? {
        if found.origin.job == Some(job) && found.origin.place == FingerprintFields::place(place)? {
            let Some(mut saved) = found.open()? else { return Ok(None) };
            saved.record.keep_for_resume();
            let link = saved.origin.link.clone();
            return Ok(Some(SavedArchive { head: saved.head, attachments: saved.attachments, link }));
        }
    }
    Ok(None)
}

/// Removes what an archive's destination has of it. Where that can't be done now the record stays, and the
/// next run does it.
fn discard(saved: &mut SavedRecord, destinations: &Destinations<'_>) {
    if let Err(error) = destinations.discard(&saved.remains) {
        tracing::warn!("what is left of '{}' stays for now: {}", saved.origin.name, sentence(&error));
        saved.record.keep_for_resume();
    }
}

/// Discards the records of freeze sessions that are not open any more: their disks are not frozen now.
///
/// # Errors
/// The state directory can't be read.
pub fn discard_closed(
    state_dir: &Path,
    is_open: impl Fn(Uuid) -> bool,
    destinations: &Destinations<'_>,
) -> Result<()> {
    for found in record::all(state_dir)? {
        if found.origin.job.is_none_or(&is_open) {
            continue;
        }
        if let Some(mut saved) = found.open()? {
            discard(&mut saved, destinations);
        }
    }
    Ok(())
}
