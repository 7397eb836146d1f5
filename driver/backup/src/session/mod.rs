//! A backup: open, fold, stream, seal.
//!
//! [`BackupSession`] is the one way in: [`BackupSession::images`] for images named by path,
//! [`BackupSession::domain`] for the disks of a domain. Both end in [`BackupSession::write`], whatever the
//! number of destinations, new or resumed.
//!
//! Nothing is written before every image has been opened and its tables read whole; the archive has its final
//! name only when the medium vouches for every byte of it. The backup of a domain opens its images itself,
//! once they are frozen; what `write` returns is not finished, so that it can first make sure that nothing
//! was written to the images meanwhile.

mod head;
mod reports;
mod sources;
mod write;

use std::path::PathBuf;
use std::time::Instant;

use uuid::Uuid;

pub use self::head::default_target;
pub(crate) use self::head::file_label;
use self::head::{HeadSource, head, medium_label, subject};
use self::reports::report;
pub use self::reports::{BackupReport, DiskReport};
pub use self::sources::RawHeaderCheck;
use self::sources::{FoldOptions, fold_all, open_all};
use self::write::stream;
use super::Control;
use super::destinations::Destinations;
use super::folded_disk::{DiskSet, FoldedDisk};
use super::host_identity;
use super::increment::{
    self, ChangeHint, Parent, ParentChoice, ParentQuery, PendingState, SourceFiles, WrittenBlocks,
    choose_parent,
};
use super::options::BackupOptions;
use super::resume::{
    NewArchive, OpenArchive, ResumeContext, ResumeRecord, SavedAllocation, StateDirectories,
};
use super::retention;
use super::signing::{self, SignedBackup};
use virtfold_archive::block_digests::BlockDigests;
use virtfold_archive::crypt::Envelope;
use virtfold_archive::manifest::{BackupSubject, ConsistencyInfo, Manifest};
use virtfold_archive::sign::Seal;
use virtfold_archive::writer::{ArchiveContents, Attachment, DiskTables, MapEntries, Rows, WrittenArchive};
use virtfold_base::error::Result;
use virtfold_image::{DiskImage, Format, ImageAccess};
pub use virtfold_medium::CopyReport;
use virtfold_medium::{EncryptingMedium, Medium, RateLimited};

/// A backup, from beginning to end.
#[derive(Clone, Copy, Debug)]
pub struct BackupSession<'a> {
    /// How it is made.
    pub options: &'a BackupOptions,
    /// Where its archive goes.
    pub destinations: &'a Destinations<'a>,
    /// Where it keeps what a later run needs to resume it.
    pub state: &'a StateDirectories,
    /// How it is watched and stopped.
    pub control: &'a Control,
}

/// One image to back up.
#[derive(Clone, Debug)]
pub struct ImageSpec {
    /// The top image of the chain.
    pub path: PathBuf,
    /// Its format; never guessed.
    pub format: Format,
    /// The disk's name in the archive.
    pub target: String,
}

/// Images to back up.
#[derive(Clone, Debug)]
pub struct ImagesRequest {
    /// The disks, at least one.
    pub images: Vec<ImageSpec>,
    /// What the set is called; without it, the first image's file name without its extension.
    pub label: Option<String>,
    /// Whether the caller vouches that the images do not change.
    pub usage: ImageAccess,
    /// What is done with a raw image that begins as a container of another format does.
    pub containers: RawHeaderCheck,
}

impl ImagesRequest {
    /// These images as they are, with nobody writing to them.
    pub fn of(images: Vec<ImageSpec>) -> Self {
        Self { images, label: None, usage: ImageAccess::default(), containers: RawHeaderCheck::default() }
    }
}

/// An image that is open, and what is known of its changes.
#[derive(Debug)]
pub struct InputDisk {
    /// The disk's name in the archive.
    pub target: String,
    /// Its image.
    pub image: DiskImage,
    /// What tells what changed.
    pub hint: ChangeHint,
}

/// What is put into an archive.
#[derive(Debug)]
pub struct BackupInput {
    /// What the archive is of.
    pub subject: BackupSubject,
    /// How the guest was frozen, as far as it is known when the archive begins.
    pub freeze: Option<ConsistencyInfo>,
    /// The members beside the disks.
    pub attachments: Vec<Attachment>,
    /// The disks.
    pub disks: Vec<InputDisk>,
    /// The archive that it continues.
    pub parent: ParentChoice,
    /// The checkpoint that was made when the disks were frozen.
    pub checkpoint: Option<String>,
    /// The freeze session that has them frozen.
    pub session: Option<Uuid>,
}

/// An archive that is written, all of it, and has no name yet. Dropped, it is gone.
#[must_use = "an archive that is not finished is gone"]
pub struct UnnamedArchive {
    medium: Box<dyn Medium>,
    head: Manifest,
    sealed: WrittenArchive,
    encrypted: bool,
    signed: Option<SignedBackup>,
    /// What the next backup needs to tell what changed, and where it is kept.
    state: Option<PendingState>,
    state_dir: PathBuf,
    /// Why it is full, where an increment was asked for.
    full_reason: Option<String>,
    /// Where it was gone on with.
    resumed_at: Option<u64>,
    started: Instant,
    /// Goes last: as long as the medium is there, so is the record.
    _record: Option<ResumeRecord>,
}

impl BackupSession<'_> {
    /// Backs up images.
    ///
    /// # Errors
    /// When an image can't be read or trusted, is in use, or the medium fails; no archive then has its
    /// final name.
    pub fn images(&self, request: &ImagesRequest) -> Result<BackupReport> {
        let subject = subject(request)?;
        let input = BackupInput {
            parent: self.parent(&subject)?,
            subject,
            freeze: None,
            attachments: Vec::new(),
            disks: open_all(request, self.control)?,
            checkpoint: None,
            session: None,
        };
        self.write(input)?.finish(self.control)
    }

    /// The archive that a backup of `subject` continues. To be asked before anything is frozen: it looks at
    /// the destinations.
    ///
    /// # Errors
    /// The host has no identity. Where no parent can be found, that is said in the choice.
    pub fn parent(&self, subject: &BackupSubject) -> Result<ParentChoice> {
        let query = ParentQuery {
            owner: retention::owner(subject),
            source: retention::source(subject, host_identity::id()?.as_deref()),
            options: self.options,
            state_dir: &self.state.state,
        };
        Ok(choose_parent(&query, self.destinations))
    }

    /// Reads the tables of all disks and writes the whole archive, or the rest of one that a killed run has
    /// left. It has its name when [`UnnamedArchive::finish`] has returned.
    ///
    /// # Errors
    /// When an image can't be read or trusted; those of the destinations, which are opened when all tables
    /// have been read; what an earlier run left can't be queried.
    pub fn write(&self, input: BackupInput) -> Result<UnnamedArchive> {
        let started = Instant::now();
        let BackupInput { subject, freeze, attachments, disks, parent, checkpoint, session } = input;
        let files = disks.iter().map(|disk| SourceFiles::of(&disk.image)).collect::<Result<Vec<_>>>()?;
        let disks = fold_all(disks, &files, &FoldOptions { session: self, parent: parent.parent() })?;
        // Where every disk is copied whole there is nothing that the archive would rest on.
        let rests = |disk: &FoldedDisk| disk.changes.as_ref().is_some_and(|found| found.changed.is_some());
        let continued = parent.parent().filter(|_| disks.0.iter().any(rests));
        let full_reason = full_reason(&parent, continued, &disks);
        let source = HeadSource { subject: &subject, freeze: freeze.as_ref(), parent: continued };
        let head = head(&source, self.options, &disks)?;
        let label = medium_label(&head, self.options, &attachments)?;
        let signed =
            signing::begin(&head, self.options.signing_key.as_deref(), self.destinations, &self.state.state)?;
        let new = NewArchive {
            head: &head,
            attachments: &attachments,
            disks: &disks,
            label: &label,
            recipients: self.options.encrypt_to.as_ref(),
            seal: self.seal(signed.as_ref()),
        };
        let opened = self.resume_context(session).open(&new, &self.control.cancel)?;
        let resumed_from = opened.at;
        let out = self.put_out(opened, OpenedFor { head, attachments, signed, disks: &disks })?;
        disks.0.iter().try_for_each(|disk| disk.image.check_unchanged())?;
        let state = increment::write(
            &self.state.state,
            self.options.kind,
            WrittenBlocks {
                archive: out.head.archive,
                root: &out.root(),
                disks: &disks,
                digests: &out.blocks,
                files,
                parent: continued,
                checkpoint,
            },
        );
        let PutOut { medium, head, sealed, signed, reached, record, .. } = out;
        Ok(UnnamedArchive {
            medium,
            head,
            sealed,
            encrypted: self.options.encrypt_to.is_some(),
            signed,
            state,
            state_dir: self.state.state.clone(),
            full_reason,
            resumed_at: resumed_from.map(|_| reached),
            started,
            _record: record,
        })
    }

    /// Writes the archive, or the rest of it, to the medium that is open for it.
    fn put_out(&self, opened: OpenArchive, new: OpenedFor<'_>) -> Result<PutOut> {
        let OpenedFor { head, attachments, signed, disks } = new;
        let (mut medium, reached) = self.outward(opened.medium, opened.envelope.as_ref(), opened.at)?;
        let now: Vec<&dyn DiskTables> = disks.0.iter().map(|disk| disk as &dyn DiskTables).collect();
        let rows = opened.rows.iter().zip(&now);
        let resumed: Vec<ResumedTables<'_>> =
            rows.map(|(rows, now)| ResumedTables { rows, now: *now }).collect();
        let tables = match resumed.is_empty() {
            true => now.clone(),
            false => resumed.iter().map(|disk| disk as &dyn DiskTables).collect(),
        };
        let (head, attachments, signed) = match opened.saved {
            Some(saved) => {
                let signed = signed.zip(saved.link).map(|(signed, link)| signed.resumed(link));
                (saved.head, saved.attachments, signed)
            }
            None => (head, attachments, signed),
        };
        let blocks: Vec<Option<BlockDigests>> = head.disks.iter().map(BlockDigests::of).collect();
        let contents = ArchiveContents {
            head: &head,
            attachments: &attachments,
            disks: tables,
            data: disks,
            blocks: &blocks,
            seal: self.seal(signed.as_ref()),
        };
        let sealed = stream(&contents, self.options, self.control, medium.as_mut(), opened.log, reached)?;
        Ok(PutOut { medium, head, sealed, signed, blocks, reached, record: opened.record })
    }

    /// What an archive is signed with that has this place in its chain.
    fn seal<'s>(&'s self, signed: Option<&'s SignedBackup>) -> Option<Seal<'s>> {
        let key = self.options.signing_key.as_deref();
        key.zip(signed).map(|(key, signed)| Seal { key, chain: &signed.link })
    }

    /// What there is to resume for disks that a freeze session has frozen, or none.
    pub(crate) fn resume_context(&self, session: Option<Uuid>) -> ResumeContext<'_> {
        let Self { options, destinations, state, .. } = *self;
        ResumeContext { state, destinations, session, policy: options.resume }
    }

    /// What the archive goes through on its way to a medium that has so many bytes of it; and the byte of the
    /// archive that comes next.
    fn outward(
        &self,
        mut medium: Box<dyn Medium>,
        envelope: Option<&Envelope>,
        at: Option<u64>,
    ) -> Result<(Box<dyn Medium>, u64)> {
        let at = at.unwrap_or_default();
        if let Some(limit) = self.options.limit_rate {
            medium = Box::new(RateLimited::new(medium, limit, &self.control.cancel));
        }
        let Some(envelope) = envelope else { return Ok((medium, at)) };
        let (encrypting, reached) = EncryptingMedium::resume(medium, envelope, at)?;
        Ok((Box::new(encrypting), reached))
    }
}

/// What a medium was opened for.
struct OpenedFor<'a> {
    head: Manifest,
    attachments: Vec<Attachment>,
    signed: Option<SignedBackup>,
    disks: &'a DiskSet,
}

/// An archive that its medium has all of.
struct PutOut {
    medium: Box<dyn Medium>,
    head: Manifest,
    sealed: WrittenArchive,
    signed: Option<SignedBackup>,
    blocks: Vec<Option<BlockDigests>>,
    /// Bytes of it that were there before.
    reached: u64,
    record: Option<ResumeRecord>,
}

impl PutOut {
    fn root(&self) -> String {
        blake3::Hash::from_bytes(self.sealed.root).to_hex().to_string()
    }
}

/// Why an archive is full that was to be an increment.
fn full_reason(choice: &ParentChoice, continued: Option<&Parent>, disks: &DiskSet) -> Option<String> {
    match choice {
        ParentChoice::Full(reason) => reason.clone(),
        ParentChoice::Of(_) if continued.is_some() => None,
        ParentChoice::Of(_) => {
            disks.0.iter().find_map(|disk| disk.changes.as_ref().and_then(|found| found.reason.clone()))
        }
    }
}

/// The tables of a disk whose archive is gone on with: its rows are those of the beginning.
struct ResumedTables<'a> {
    rows: &'a SavedAllocation,
    now: &'a dyn DiskTables,
}

impl DiskTables for ResumedTables<'_> {
    fn rows(&self) -> Rows<'_> {
        self.rows.rows()
    }

    fn runs(&self) -> MapEntries<'_> {
        self.now.runs()
    }
}

impl UnnamedArchive {
    /// Makes the archive durable under its final name.
    ///
    /// # Errors
    /// Those of [`Medium::finish`].
    pub fn finish(self, control: &Control) -> Result<BackupReport> {
        control.progress.enter("syncing", 0);
        let durable = self.medium.finish()?;
        let root = blake3::Hash::from_bytes(self.sealed.root).to_hex().to_string();
        if let Some(signed) = &self.signed {
            signed.finished(&self.head, &root);
        }
        increment::keep(&self.state_dir, self.head.archive, self.state);
        Ok(BackupReport {
            archive: durable.name,
            id: self.head.archive,
            archive_bytes: durable.bytes,
            encrypted: self.encrypted,
            resumed_at: self.resumed_at,
            kind: self.head.kind,
            parent: self.head.parent.as_ref().map(|parent| parent.id),
            full_reason: self.full_reason,
            root,
            signed: self.signed.map(|signed| signed.link),
            seconds: self.started.elapsed().as_secs_f64(),
            tapes: durable.tapes,
            disks: self.head.disks.iter().map(report).collect(),
            copies: durable.copies,
            head: Some(self.head),
        })
    }
}
