//! Taking over the frozen disks of a driver that died while it copied them: the copy goes on, and then the
//! guest comes home as from any copy.
//!
//! This is done only where it is as if the dead driver went on: the job is the domain's only open one, in the
//! state that stands while the bases are read; nothing is held and no disk is on its way back; the guest does
//! what it did; QEMU has each disk on our overlay and the base right below it; the base is the same file as
//! when the job began, held against writers, and as it was marked when it was frozen. The configuration
//! follows QEMU first, as it does after a snapshot. Where any of this is not so nothing is done, and a
//! recovery brings the guest home.
//!
//! The journal says nothing new until the bases are read: a driver that dies here leaves what it found.
//!
//! Imports: `error`, `catalog`, `hypervisor`, `snapshot`, `unfreeze`.

use super::domain_view::DomainView;
use super::snapshot::{BaseLocks, CopyContext, copy_held, end, hold_bases};
use super::unfreeze::Unfreeze;
use super::{FreezeContext, FreezeReport, Frozen, Unfrozen, checkpoint_name};
use crate::Control;
use virtfold_base::error::{Error, ErrorKind, Result, sentence};
use virtfold_catalog::{FreezeSession, SessionDisk, SessionKind, SessionState, UnfreezeState};
use virtfold_hypervisor::disk_rules::{BackupMode, run_rule};
use virtfold_hypervisor::{DomainId, DomainState};

/// Disks that are to be taken over.
#[derive(Clone, Debug)]
pub struct TakeOverRequest {
    /// The job of the dead driver, as [`interrupted_session`] has it.
    pub job: FreezeSession,
    /// How the guest was frozen, as far as it is known.
    pub report: FreezeReport,
    /// When less than this is free, in bytes, around an overlay, the backup is aborted for lack of free
    /// space.
    pub min_free: u64,
}

/// What came of taking over.
#[derive(Debug)]
pub enum TakeOver<T> {
    /// It can't be, and why. Nothing was done.
    Refused(String),
    /// The copy was run, and the guest was brought home.
    Done(Result<Unfrozen<T>>),
}

/// The job of a driver that died while it copied a guest's frozen disks, by the journal alone.
///
/// # Errors
/// The journal can't be read.
pub fn interrupted_session(host: &FreezeContext<'_>, domain: DomainId) -> Result<Option<FreezeSession>> {
    let mut jobs = host.journal.open_sessions(Some(domain))?;
    let job = jobs.pop().filter(|job| jobs.is_empty() && can_be_taken_over(job));
    Ok(job)
}

/// Whether a job stands where its bases are read.
fn can_be_taken_over(job: &FreezeSession) -> bool {
    let waits = |disk: &SessionDisk| {
        disk.state == UnfreezeState::Waiting && disk.overlay.is_some() && disk.frozen.is_some()
    };
    job.state == SessionState::Snapshotted
        && job.kind != SessionKind::AtRest
        && job.held.is_none()
        && job.disks.iter().all(waits)
}

/// Takes the frozen disks over, runs `copy` on them, and brings the guest back onto them. The copy has to
/// look at [`Frozen::control`], not at `control`.
///
/// # Errors
/// The domain or the journal can't be looked at. What fails from the copy on is in
/// [`TakeOver::Done`], as from [`super::with_frozen_disks`].
pub fn take_over<T>(
    host: &FreezeContext<'_>,
    request: &TakeOverRequest,
    control: &Control,
    copy: impl FnOnce(&Frozen) -> Result<T>,
) -> Result<TakeOver<T>> {
    let domain = request.job.domain;
    let _lock = match host.journal.lock(domain) {
        Ok(lock) => lock,
        Err(error) if error.kind() == ErrorKind::InUse => return Ok(TakeOver::Refused(sentence(&error))),
        Err(error) => return Err(error),
    };
    let Some(job) = interrupted_session(host, domain)?.filter(|job| *job == request.job) else {
        return Ok(TakeOver::Refused("its freeze session has changed".to_owned()));
    };
    let mut unfreeze = Unfreeze::new(host, job);
    let holds = match held(&mut unfreeze) {
        Ok(holds) => holds,
        Err(error) => return Ok(TakeOver::Refused(sentence(&error))),
    };
    let mut report = request.report.clone();
    // Where it can't be looked for the next increment compares.
    let name = checkpoint_name(unfreeze.job.id);
    let there = host.hypervisor.checkpoints(domain).unwrap_or_default();
    let checkpoint = there.into_iter().map(|checkpoint| checkpoint.name).find(|there| *there == name);
    let frame = CopyContext { min_free: request.min_free, holds, checkpoint };
    let copied = copy_held(&mut unfreeze, frame, control, &report, copy);
    Ok(TakeOver::Done(end(&mut unfreeze, &mut report, copied)))
}

/// Holds the bases, and makes sure that all is as it was left.
fn held(unfreeze: &mut Unfreeze<'_>) -> Result<BaseLocks> {
    unfreeze.follow()?;
    let holds = hold_bases(unfreeze)?;
    let view = DomainView::look(unfreeze.host.hypervisor, unfreeze.job.domain)?;
    let went_on = view.run().is_some_and(|run| state_unchanged(unfreeze.job.kind, run));
    if !went_on {
        return Err(changed(format!("domain '{}' is in another state than before", unfreeze.job.name)));
    }
    unfreeze.job.disks.iter().try_for_each(|disk| check(unfreeze.host, &view, disk))?;
    Ok(holds)
}

/// Whether the guest runs if it ran, and stands if it stood. One that was stopped by the full disk of its
/// overlay has to come home.
fn state_unchanged(kind: SessionKind, run: DomainState) -> bool {
    match kind {
        SessionKind::Running => run_rule(run) == BackupMode::Online,
        SessionKind::Standing => run_rule(run) == BackupMode::OnlinePaused,
        SessionKind::AtRest => false,
    }
}

/// Whether a disk is as its driver left it.
fn check(host: &FreezeContext<'_>, view: &DomainView, disk: &SessionDisk) -> Result<()> {
    let wrong = |what: &str| Err(changed(format!("disk '{}' {what}", disk.target)));
    let seen = view.disk(host.hypervisor, disk)?;
    let below = seen.qemu.as_ref().and_then(|chain| chain.get(1));
    if seen.top() != disk.overlay.as_deref() || below != Some(&disk.base.path) {
        return wrong("is not on its overlay any more, or the overlay is not on its base");
    }
    if seen.mirror.is_some() {
        return wrong("is being copied by another tool");
    }
    if host.files.identity(&disk.base.path)? != disk.base.identity {
        return wrong("has another base image now");
    }
    if host.files.mark(&disk.base.path)? != disk.frozen {
        return wrong("has a base image that was written to");
    }
    Ok(())
}

fn changed(what: String) -> Error {
    Error::new(ErrorKind::InUse, what)
}
