//! The backup of a domain, from beginning to end.
//!
//! 0. Where an earlier run died while it copied, and all is as it left it, its archive is gone on with
//!    (`resume_session`), and nothing of the following is done.
//! 1. What an earlier run left behind is recovered. A domain that can't be brought in order is not touched
//!    further.
//! 2. The plan. Whatever speaks against the backup ends it here, with nothing touched.
//! 3. A domain that runs is frozen ([`with_frozen_disks`]), one that is shut off is kept from starting
//!    ([`with_offline_disks`]); in either case
//!    the images are opened with QEMU's locks on them, and the archive is written.
//! 4. The archive gets its name when its images are known to have stayed as they were: for a frozen guest
//!    right after the copy, by
//!    the images' times and sizes, before the guest's way back is begun; for one at rest when it is proven
//!    that it never ran.
//! 5. The guest comes back onto its disks. Where that fails the archive is there and good, and both is said
//!    ([`DomainReport::thaw_failure`]).
//!
//! The archive's head is written before the guest comes back, so it says how the guest was frozen; the
//! longest pause, at a pivot, is in the report alone.
//!
//! Imports: `error`, `image`, `archive`, `hypervisor`, and of this crate `plan`, `freeze`, `session`,
//! `resume`, `destinations`, `attachments`; `virtfold_hooks` (start locks).

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use virtfold_hooks::start_lock::LockReason;

use super::attachments::LibvirtDirectories;
use super::destinations::Destinations;
use super::freeze::{
    AgentFreeze, FreezeContext, FreezeDisk, FreezeReport, FreezeRequest, OfflineDisk, OfflineRequest,
    RecoverScope, Recovery, RecoveryStatus, Unfrozen, recover, with_frozen_disks, with_offline_disks,
};
use super::increment::{self, ParentChoice};
use super::options::{BackupKindRule, BackupOptions, ChangeDetection, QuiesceMode};
use super::plan::{self, Consistency, Plan, PlanContext, PlannedDisk};
use super::resume;
use super::session::{BackupReport, BackupSession, UnnamedArchive};
use super::{RunMode, start_lock};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result, sentence};
use virtfold_base::partial_file;
use virtfold_catalog::BaseImage;
use virtfold_hypervisor::disk_rules::BackupMode;
use virtfold_hypervisor::host_files::HostFiles;
use virtfold_hypervisor::{DomainId, Persistence};
use virtfold_image::Format;

mod copy;
mod resume_session;
#[cfg(test)]
mod tests;

use self::copy::DomainCopy;
use self::resume_session::ResumeOutcome;

/// A domain to back up.
#[derive(Clone, Copy, Debug)]
pub struct DomainRequest<'a> {
    /// Its name or uuid.
    pub domain: &'a str,
    /// What its disks are frozen with.
    pub host: &'a FreezeContext<'a>,
    /// Where libvirt keeps firmware variables and TPM states.
    pub places: &'a LibvirtDirectories,
    /// The directory of the locks that keep a domain from starting while it is read offline.
    pub guards: &'a Path,
}

/// A disk that is not in the backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SkippedDisk {
    /// The disk.
    pub target: String,
    /// The rule's sentence.
    pub rule: String,
}

/// Why the guest is not back on its disks although the archive is good.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UnfreezeFailure {
    /// What failed.
    pub sentence: String,
    /// What a person can do.
    pub hint: String,
    /// What kind of failure it is.
    pub kind: ErrorKind,
}

/// What came of the backup of a domain.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DomainReport {
    /// The domain's name.
    pub domain: String,
    /// Its uuid.
    pub uuid: Uuid,
    /// `online`, `standing` or `offline`.
    pub way: String,
    /// How the guest was frozen and came back; nothing for one that was shut off.
    pub freeze: Option<FreezeReport>,
    /// The disks that are not in it.
    pub left_out: Vec<SkippedDisk>,
    /// What a person should know of the domain.
    pub notes: Vec<String>,
    /// What was brought in order before.
    pub recovered: Vec<Recovery>,
    /// Present when the guest is not back on its disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thaw_failure: Option<UnfreezeFailure>,
    /// How long all of it took, the guest's way back included.
    pub total_seconds: f64,
    /// The archive.
    #[serde(flatten)]
    pub backup: BackupReport,
}

impl BackupSession<'_> {
    /// Backs up a domain.
    ///
    /// # Errors
    /// What speaks against the backup ([`Plan::refusal`]); whatever fails before the archive is good.
    /// The guest is then back on its disks, unless the sentence says otherwise; no archive has its final
    /// name.
    pub fn domain(&self, request: &DomainRequest<'_>) -> Result<DomainReport> {
        let started = Instant::now();
        let host = request.host;
        self.control.progress.enter("planning", 0);
        let info = host.hypervisor.lookup(request.domain)?;
        if let Some(resumed) = resume_session::resume(self, request, info.id)? {
            return Ok(resumed_report(resumed, info.name, started));
        }
        let recovered = recover_first(host, info.id)?;
        discard_records(host, &self.state.state, self.destinations)?;
        let devices = self.destinations.devices()?;
        let context =
            PlanContext { options: self.options, state_dir: &self.state.state, archive_devices: &devices };
        let plan = plan::plan(host.hypervisor, host.files, request.domain, &context)?;
        if let Some(refusal) = plan.refusal() {
            return Err(refusal);
        }
        let copy = DomainCopy { session: self, request, plan: &plan };
        let parent = self.parent(&copy.subject())?;
        let done = match plan.rule() {
            BackupMode::Offline => offline(&copy, parent)?,
            _ => {
                let done = online(&copy, parent);
                increment::tidy(host, info.id, &self.state.state);
                done?
            }
        };
        let left_out = plan.disks.iter().filter(|disk| !disk.copy);
        let left_out = left_out.map(|d| SkippedDisk { target: d.target.clone(), rule: d.rule.clone() });
        Ok(DomainReport {
            domain: plan.domain.name.clone(),
            uuid: plan.domain.uuid,
            way: plan.way.to_owned(),
            freeze: done.freeze,
            left_out: left_out.collect(),
            notes: plan.notes.clone(),
            recovered,
            thaw_failure: done.thaw_failure,
            total_seconds: started.elapsed().as_secs_f64(),
            backup: done.backup,
        })
    }
}

/// The report of a backup that went on with an earlier one.
fn resumed_report(resumed: ResumeOutcome, domain: String, started: Instant) -> DomainReport {
    let ResumeOutcome { done, job } = resumed;
    DomainReport {
        domain,
        uuid: job.domain.0,
        way: resume_session::way(&job).to_owned(),
        freeze: done.freeze,
        left_out: Vec::new(),
        notes: vec!["the copy is of the moment when the earlier run froze the disks".to_owned()],
        recovered: Vec::new(),
        thaw_failure: done.thaw_failure,
        total_seconds: started.elapsed().as_secs_f64(),
        backup: done.backup,
    }
}

/// Discards the records of archives whose disks are not frozen any more.
///
/// # Errors
/// The journal or the state directory can't be read.
pub fn discard_records(
    host: &FreezeContext<'_>,
    state_dir: &Path,
    destinations: &Destinations<'_>,
) -> Result<()> {
    let open = host.journal.open_sessions(None)?;
    resume::discard_closed(state_dir, |job| open.iter().any(|open| open.id == job), destinations)
}

struct FinishedBackup {
    backup: BackupReport,
    freeze: Option<FreezeReport>,
    thaw_failure: Option<UnfreezeFailure>,
}

/// What earlier runs left behind is cleaned up before anything new is begun.
fn recover_first(host: &FreezeContext<'_>, domain: DomainId) -> Result<Vec<Recovery>> {
    let found = recover(host, RecoverScope::Domain(domain), RunMode::Apply)?;
    let stuck = |recovery: &&Recovery| {
        matches!(recovery.verdict, RecoveryStatus::Busy | RecoveryStatus::Undecided | RecoveryStatus::Failed)
    };
    let Some(first) = found.iter().find(stuck) else { return Ok(found) };
    let disks = first.disks.iter().flat_map(|disk| &disk.remains);
    let remains: Vec<&str> = first.remains.iter().chain(disks).map(String::as_str).collect();
    let (kind, what) = match first.verdict {
        RecoveryStatus::Busy => (ErrorKind::InUse, "another run of virtfold is working on it"),
        RecoveryStatus::Undecided => {
            (ErrorKind::InUse, "an earlier backup left it in a state that an administrator has to decide on")
        }
        _ => (ErrorKind::Refused, "what an earlier backup left behind could not be cleaned up"),
    };
    let message = format!("'{}' can't be backed up now: {what}", first.name);
    let error = Error::new(
        kind,
        if remains.is_empty() { message } else { format!("{message}: {}", remains.join("; ")) },
    );
    Err(error.with_hint(format!("'virtfold recover {}' says more", first.domain)))
}

/// A domain that runs.
fn online(copy: &DomainCopy<'_>, parent: ParentChoice) -> Result<FinishedBackup> {
    let (session, host) = (copy.session, copy.request.host);
    let request = freeze_request(copy.plan, session.options, host.files)?;
    make_overlay_directories(&request, &session.state.state)?;
    let mut good: Option<(BackupReport, FreezeReport)> = None;
    session.control.progress.enter("freezing", 0);
    let thawed = with_frozen_disks(host, &request, session.control, |frozen| {
        let written = copy.write(frozen, parent)?;
        // From here on the archive is there, whatever becomes of the guest's way back.
        good = Some((written.finish(&frozen.control)?, frozen.report.clone()));
        session.control.progress.enter("thawing", 0);
        Ok(())
    });
    conclude(thawed, good, &copy.plan.domain.name)
}

/// What came of a frozen guest's copy and of its way back.
fn conclude(
    thawed: Result<Unfrozen<()>>,
    good: Option<(BackupReport, FreezeReport)>,
    name: &str,
) -> Result<FinishedBackup> {
    match (thawed, good) {
        (Ok(thawed), Some((backup, _))) => {
            Ok(FinishedBackup { backup, freeze: Some(thawed.report), thaw_failure: None })
        }
        (Err(error), Some((backup, report))) => {
            let hint = error.hint().map_or_else(|| format!("run 'virtfold recover {name}'"), str::to_owned);
            let failure = UnfreezeFailure { sentence: sentence(&error), hint, kind: error.kind() };
            Ok(FinishedBackup { backup, freeze: Some(report), thaw_failure: Some(failure) })
        }
        (Err(error), None) => Err(error),
        (Ok(_), None) => Err(Error::new(ErrorKind::Internal, "the guest was frozen and nothing was copied")),
    }
}

/// A domain that is shut off.
fn offline(copy: &DomainCopy<'_>, parent: ParentChoice) -> Result<FinishedBackup> {
    let (control, host) = (copy.session.control, copy.request.host);
    let disks = copy
        .plan
        .copied()
        .map(|disk| Ok(OfflineDisk { target: disk.target.clone(), base: base(disk, host.files)? }));
    let request = OfflineRequest { domain: copy.plan.known.info.id, disks: disks.collect::<Result<_>>()? };
    // Where libvirt's hook is installed it refuses a start; without it QEMU's locks do, or the proof at the
    // end says what happened.
    let domain = &copy.plan.domain;
    let reason = format!("'{}' is being backed up while it is shut off", domain.name);
    let paths = request.disks.iter().map(|disk| disk.base.path.as_path());
    let _guards = start_lock::hold(
        copy.request.guards,
        domain.uuid,
        &domain.name,
        LockReason::Reading,
        &reason,
        paths,
    )?;
    let written: UnnamedArchive =
        with_offline_disks(host, &request, control, |frozen| copy.write(frozen, parent))?;
    // Only now is it known that the domain did not run meanwhile.
    Ok(FinishedBackup { backup: written.finish(control)?, freeze: None, thaw_failure: None })
}

/// What the freeze is to do, by the plan.
fn freeze_request(plan: &Plan, options: &BackupOptions, files: &dyn HostFiles) -> Result<FreezeRequest> {
    let missing = |disk: &PlannedDisk, what: &str| {
        Error::new(ErrorKind::Internal, format!("disk '{}' of a running domain has no {what}", disk.target))
    };
    let Some(live) = &plan.known.live else {
        return Err(Error::new(ErrorKind::Internal, "a running domain has no live XML"));
    };
    let mut disks = Vec::new();
    for disk in plan.copied() {
        let alias = live.disk(&disk.target).and_then(|d| d.alias.clone());
        disks.push(FreezeDisk {
            target: disk.target.clone(),
            alias: alias.ok_or_else(|| missing(disk, "alias"))?,
            base: base(disk, files)?,
            overlay: disk.overlay.clone().ok_or_else(|| missing(disk, "place for its overlay"))?,
        });
    }
    // libvirt counts the agent's limit in whole seconds.
    let limit = options.pause_budget.max(std::time::Duration::from_secs(1));
    let quiesce = match (options.quiesce, plan.quiesce.how) {
        (QuiesceMode::Yes, _) => AgentFreeze::Require(limit),
        (QuiesceMode::Auto, Consistency::FileSystem) => AgentFreeze::Try(limit),
        _ => AgentFreeze::Skip,
    };
    let targets = live.targets();
    let domain = plan.known.info.id;
    let tracked = tracked(plan, options);
    Ok(FreezeRequest { domain, disks, targets, tracked, quiesce, min_free: options.min_free })
}

/// The disks whose writes are recorded for the next increment. A transient domain has no checkpoints.
fn tracked(plan: &Plan, options: &BackupOptions) -> Vec<String> {
    let wanted = options.kind != BackupKindRule::Full
        && options.changes == ChangeDetection::Auto
        && plan.known.info.persistence == Persistence::Persistent;
    let disks = plan.copied().filter(|disk| wanted && disk.format == Some(Format::Qcow2));
    disks.map(|disk| disk.target.clone()).collect()
}

/// The image that a disk has, as the journal keeps it.
fn base(disk: &PlannedDisk, files: &dyn HostFiles) -> Result<BaseImage> {
    let (Some(path), Some(format)) = (disk.source.as_ref().map(PathBuf::from), disk.format) else {
        return Err(Error::new(ErrorKind::Internal, format!("disk '{}' is not a local image", disk.target)));
    };
    let identity = files.identity(&path)?;
    let backing = disk.backing.first().map(|link| (PathBuf::from(&link.path), link.format.to_string()));
    Ok(BaseImage { path, format: format.to_string(), identity, backing })
}

/// The state directory's own place for overlays is made when it is needed. QEMU runs as a user of its own and
/// must get through to it, so the state directory lets everybody pass; what is in it, the catalog and the
/// locks, it keeps to itself.
fn make_overlay_directories(request: &FreezeRequest, state_dir: &Path) -> Result<()> {
    let ours = state_dir.join("overlays");
    if !request.disks.iter().any(|disk| disk.overlay.parent() == Some(&ours)) {
        return Ok(());
    }
    let making = || format!("cannot make '{}'", ours.display());
    for private in ["catalog.sqlite", "locks"] {
        let path = state_dir.join(private);
        if let Ok(found) = path.metadata() {
            let mut permissions = found.permissions();
            permissions.set_mode(permissions.mode() & 0o7700);
            std::fs::set_permissions(&path, permissions).at(making)?;
        }
    }
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&ours);
    partial_file::at_directory(made, &ours, making)?;
    let mut permissions = state_dir.metadata().at(making)?.permissions();
    permissions.set_mode(permissions.mode() | 0o011);
    std::fs::set_permissions(state_dir, permissions).at(making)
}
