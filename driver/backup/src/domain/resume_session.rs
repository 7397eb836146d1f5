//! A backup of a running domain that goes on with what a driver was writing when it died.
//!
//! The dead driver's record says what its archive is made of; its journal says that the guest is still on its
//! overlays and the bases are as they were. Then the bases are taken over ([`take_over`]), and the archive
//! goes on, as it would have been: its head, the guest's description, its firmware's variables are those of
//! the moment of the snapshot. Whatever does not fit ends here, with the guest home or for a recovery to
//! bring home, and a new backup follows.

use super::copy::{check, marks};
use super::{DomainRequest, FinishedBackup, conclude};
use crate::freeze::{
    FreezeContext, FreezeReport, Frozen, TakeOver, TakeOverRequest, interrupted_session, take_over,
};
use crate::increment::{self, ChangeHint};
use crate::options::{BackupOptions, ResumePolicy};
use crate::resume::{self, SavedArchive};
use crate::session::{BackupInput, BackupReport, BackupSession, InputDisk, UnnamedArchive};
use virtfold_base::error::{Error, ErrorKind, Result, sentence};
use virtfold_catalog::{FreezeSession, SessionKind};
use virtfold_hypervisor::DomainId;
use virtfold_image::{DiskImage, Format, OpenOptions};

/// What came of going on.
pub(super) struct ResumeOutcome {
    pub(super) done: FinishedBackup,
    pub(super) job: FreezeSession,
}

/// Resumes the interrupted backup of a domain; nothing, where there is none, or it can't be resumed.
pub(super) fn resume(
    session: &BackupSession<'_>,
    request: &DomainRequest<'_>,
    domain: DomainId,
) -> Result<Option<ResumeOutcome>> {
    if session.options.resume != ResumePolicy::IfPossible {
        return Ok(None);
    }
    let (host, control) = (request.host, session.control);
    let Some(job) = interrupted_session(host, domain)? else { return Ok(None) };
    let options = BackupOptions { resume: ResumePolicy::Required, ..session.options.clone() };
    let session = BackupSession { options: &options, ..*session };
    let Some(known) = resume::of_job(&session.resume_context(Some(job.id)))? else { return Ok(None) };
    let freeze = known.head.freeze.as_ref();
    let report = FreezeReport {
        quiesced: freeze.is_some_and(|freeze| freeze.method == "agent"),
        ..FreezeReport::default()
    };
    let adopting = TakeOverRequest { job: job.clone(), report, min_free: options.min_free };
    let mut good: Option<(BackupReport, FreezeReport)> = None;
    let adoption = take_over(host, &adopting, control, |frozen| {
        let session = BackupSession { control: &frozen.control, ..session };
        let written = write(&session, host, &job, frozen, &known)?;
        good = Some((written.finish(&frozen.control)?, frozen.report.clone()));
        control.progress.enter("thawing", 0);
        Ok(())
    })?;
    let why = match adoption {
        TakeOver::Refused(why) => why,
        TakeOver::Done(thawed) => match conclude(thawed, good, &job.name) {
            Ok(done) => return Ok(Some(ResumeOutcome { done, job })),
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::NoSpace) => {
                return Err(error);
            }
            Err(error) => sentence(&error),
        },
    };
    tracing::warn!("the interrupted backup of '{}' is not resumed: {why}", job.name);
    Ok(None)
}

/// What the report calls the way.
pub(super) fn way(job: &FreezeSession) -> &'static str {
    match job.kind {
        SessionKind::Standing => "standing",
        SessionKind::Running | SessionKind::AtRest => "online",
    }
}

/// Writes the rest of the archive.
fn write(
    session: &BackupSession<'_>,
    host: &FreezeContext<'_>,
    job: &FreezeSession,
    frozen: &Frozen,
    known: &SavedArchive,
) -> Result<UnnamedArchive> {
    let parent = session.parent(&known.head.subject)?;
    let hint = increment::hint(host.hypervisor, job.domain, parent.parent());
    let disks = open(frozen, known, &hint)?;
    let before = marks(host.files, &disks)?;
    let input = BackupInput {
        subject: known.head.subject.clone(),
        freeze: known.head.freeze.clone(),
        attachments: known.attachments.clone(),
        disks,
        parent,
        checkpoint: frozen.checkpoint.clone(),
        session: Some(frozen.job),
    };
    let written = session.write(input)?;
    check(host.files, &before)?;
    Ok(written)
}

/// Opens the frozen images with the chains that the archive's head names.
fn open(frozen: &Frozen, known: &SavedArchive, hint: &ChangeHint) -> Result<Vec<InputDisk>> {
    let options = OpenOptions::default();
    let mut images = Vec::new();
    for disk in &frozen.disks {
        let Some(told) = known.head.disks.iter().find(|told| told.target == disk.target) else {
            return Err(Error::new(
                ErrorKind::InUse,
                format!("disk '{}' is not in the archive", disk.target),
            ));
        };
        let below = told.source.backing.iter().map(|link| Ok(((&link.path).into(), format(&link.format)?)));
        let below = below.collect::<Result<Vec<_>>>()?;
        let image = DiskImage::open_chain(&disk.path, format(&disk.format)?, &below, &options)?;
        images.push(InputDisk {
            target: disk.target.clone(),
            image,
            hint: increment::hint_of(hint, &disk.format),
        });
    }
    Ok(images)
}

fn format(text: &str) -> Result<Format> {
    text.parse().map_err(|_| Error::new(ErrorKind::Unsupported, format!("'{text}' is not an image format")))
}
