//! Freezing: all disks in one snapshot, and the frozen bases held while they are read.
//!
//! The agent's freeze, the snapshot and the thaw are three calls, so that the guard can thaw at any time
//! between. A snapshot whose answer was lost is looked for; one that did not happen is taken again, after
//! what it left is removed.
//!
//! Imports: `error`, `catalog`, `hypervisor`, `unfreeze`, `free_space_monitor`.

use std::fmt::Debug;
use std::path::Path;
use std::time::{Duration, Instant};

use super::domain_view::DomainView;
use super::free_space_monitor::FreeSpaceMonitor;
use super::start::NewSession;
use super::unfreeze::{DETACHED, FIRED, UNCONFIGURED, Unfreeze, UnfreezeOutcome};
use super::{
    AgentFreeze, FreezeContext, FreezeReport, FreezeRequest, Frozen, FrozenDisk, Unfrozen, checkpoint_name,
};
use crate::Control;
use virtfold_base::error::{Error, ErrorKind, Result, sentence};
use virtfold_catalog::{
    FreezeSession, JournalEntry, SessionDisk, SessionKind, SessionOutcome, SessionState, UnfreezeState,
};
use virtfold_hypervisor::disk_rules::{BackupMode, run_rule};
use virtfold_hypervisor::watchdog::{self, GuestHold, ReleaseOutcome};
use virtfold_hypervisor::{CheckpointRequest, ConfigStamps, HypervisorError, SnapshotRequest, types};

/// Attempts at a snapshot whose answers are lost and that turn out not to have happened.
const SNAPSHOTS: u32 = 3;
/// Attempts to thaw before it is left to the guard, at least, and how many polls' time an agent has that died
/// to come back: as long as it is away nobody knows whether the guest is frozen, and only it can thaw.
const THAWS: u32 = 5;
const THAW_POLLS: u32 = 200;

/// Freezes the disks of a running domain, runs `copy` on the frozen bases, and brings the guest back onto
/// them. The copy has to look at [`Frozen::control`], not at `control`.
///
/// # Errors
/// Whatever failed, `copy` among it: [`ErrorKind::NoSpace`] where it had to give way,
/// [`ErrorKind::InUse`] where an earlier job of this domain is open. The guest is then back on its disks,
/// unless the sentence says otherwise.
pub fn with_frozen_disks<T>(
    host: &FreezeContext<'_>,
    request: &FreezeRequest,
    control: &Control,
    copy: impl FnOnce(&Frozen) -> Result<T>,
) -> Result<Unfrozen<T>> {
    let _lock = host.journal.lock(request.domain)?;
    let beginning = NewSession::look(host, request.domain)?;
    let job = plan(host, request, &beginning)?;
    beginning.journal(host, &job)?;
    let mut unfreeze = Unfreeze::new(host, job);
    unfreeze.configs = stamps(host);
    let mut report = FreezeReport::default();
    let copied = copy_frozen(&mut unfreeze, request, control, &mut report, copy);
    end(&mut unfreeze, &mut report, copied)
}

/// The configurations before the snapshot. Without them all are read before an overlay goes.
fn stamps(host: &FreezeContext<'_>) -> ConfigStamps {
    host.hypervisor.config_stamps().unwrap_or_else(|error| {
        tracing::debug!(?error, "libvirt's files of configurations can't be seen");
        ConfigStamps::default()
    })
}

/// Brings the guest home after its copy.
pub(super) fn end<T>(
    unfreeze: &mut Unfreeze<'_>,
    report: &mut FreezeReport,
    copied: Result<T>,
) -> Result<Unfrozen<T>> {
    let outcome = if copied.is_ok() { SessionOutcome::Copied } else { SessionOutcome::Failed };
    let arrived = unfreeze.run(outcome);
    report.pause_ms = unfreeze.pause.map(millis);
    report.warnings.extend(unfreeze.domain.found.iter().filter(|text| *text == FIRED).cloned());
    report.warnings.append(&mut unfreeze.domain.remains);
    for (disk, notes) in unfreeze.job.disks.iter().zip(&mut unfreeze.disks) {
        let named = |text: String| format!("disk '{}': {text}", disk.target);
        report.warnings.extend(notes.remains.drain(..).map(named));
        let detached = notes.found.iter().find(|text| [DETACHED, UNCONFIGURED].contains(&text.as_str()));
        if let Some(how) = detached {
            let done = if notes.done.is_empty() { "nothing".to_owned() } else { notes.done.join("; ") };
            let known = format!("{how}. The archive has it as it was at the snapshot");
            report.warnings.push(named(format!("{known}. Done with its overlay: {done}")));
            report.detached.push(named(known));
        }
    }
    match (arrived, copied) {
        (Ok(UnfreezeOutcome::OnBase | UnfreezeOutcome::OverlayPending), Ok(value)) => {
            Ok(Unfrozen { value, report: report.clone() })
        }
        (Ok(UnfreezeOutcome::OnBase | UnfreezeOutcome::OverlayPending), Err(error)) => Err(error),
        (Ok(UnfreezeOutcome::NeedsAdministrator), copied) => {
            let why = report.warnings.join("; ");
            Err(unfreeze_failed(&unfreeze.job, copied.err(), Error::new(ErrorKind::InUse, why)))
        }
        (Err(error), copied) => Err(unfreeze_failed(&unfreeze.job, copied.err(), error)),
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// What is to be said when the guest is not back on its disks.
fn unfreeze_failed(job: &FreezeSession, copy: Option<Error>, error: Error) -> Error {
    let left = job.disks.iter().filter(|d| !matches!(d.state, UnfreezeState::Pivoted | UnfreezeState::Done));
    let overlays = left.filter_map(|d| {
        d.overlay.as_ref().map(|overlay| format!("disk '{}' in '{}'", d.target, overlay.display()))
    });
    let overlays: Vec<String> = overlays.collect();
    let copied = match copy {
        None => "the copy is complete".to_owned(),
        Some(error) => format!("the copy failed ({})", sentence(&error)),
    };
    let message = format!(
        "{copied}, but domain '{}' could not be put back on its disks; nothing is lost, its writes are in overlays: {}",
        job.name,
        overlays.join(", ")
    );
    let hint = error.hint().map_or_else(String::new, |hint| {
        let end = if hint.ends_with(['.', '?', '!']) { "" } else { "." };
        format!("{hint}{end} ")
    });
    let hint = format!("{hint}Do not remove or move the overlays; run `virtfold recover {}`", job.name);
    Error::new(error.kind(), message).with_source(error).with_hint(hint)
}

/// The job, of a domain that is as the request believes.
fn plan(host: &FreezeContext<'_>, request: &FreezeRequest, beginning: &NewSession) -> Result<FreezeSession> {
    let (view, info) = (&beginning.view, &beginning.info);
    let kind = match run_rule(info.run) {
        BackupMode::Online => SessionKind::Running,
        BackupMode::OnlinePaused => SessionKind::Standing,
        BackupMode::Offline => {
            return Err(Error::new(
                ErrorKind::InUse,
                format!("domain '{}' is not running any more", info.name),
            ));
        }
        BackupMode::NotPossible(why) => {
            let message = format!("domain '{}' can't be backed up now: {why}", info.name);
            return Err(Error::new(ErrorKind::InUse, message));
        }
    };
    let disks = request.disks.iter().map(|disk| SessionDisk {
        target: disk.target.clone(),
        alias: Some(disk.alias.clone()),
        base: disk.base.clone(),
        overlay: Some(disk.overlay.clone()),
        frozen: None,
        state: UnfreezeState::Waiting,
    });
    let disks: Vec<SessionDisk> = disks.collect();
    check_targets(view, request)?;
    for disk in &disks {
        let seen = view.disk(host.hypervisor, disk)?;
        if seen.top() != Some(disk.base.path.as_path()) {
            let actual = seen.top().unwrap_or(Path::new("nothing")).display();
            let message = format!(
                "disk '{}' of domain '{}' is '{actual}' now, not '{}'",
                disk.target,
                info.name,
                disk.base.path.display()
            );
            return Err(Error::new(ErrorKind::InUse, message).with_hint("something changed; retry"));
        }
    }
    Ok(beginning.job(host, kind, SessionState::Planned, disks))
}

/// A disk that was plugged in since the plan is named nowhere in the request; libvirt would put it on an
/// overlay of its own.
fn check_targets(view: &DomainView, request: &FreezeRequest) -> Result<()> {
    let Some(live) = &view.live else { return Ok(()) };
    let (now, then) = (live.targets(), &request.targets);
    let Some(target) = now.iter().find(|target| !then.contains(target)) else { return Ok(()) };
    let message = format!("disk '{target}' was attached to domain '{}' at the last moment", live.name);
    Err(Error::new(ErrorKind::InUse, message).with_hint("try again"))
}

/// From the snapshot to the end of the copy.
fn copy_frozen<T>(
    unfreeze: &mut Unfreeze<'_>,
    request: &FreezeRequest,
    control: &Control,
    report: &mut FreezeReport,
    copy: impl FnOnce(&Frozen) -> Result<T>,
) -> Result<T> {
    let made = checkpoint(unfreeze, request);
    snapshot(unfreeze, request, report)?;
    let checkpoint = match made {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            let why = "no checkpoint could be made, so the next increment has to compare all that is used";
            report.warnings.push(format!("{why} ({})", sentence(&error)));
            None
        }
    };
    let holds = hold(unfreeze)?;
    let frame = CopyContext { min_free: request.min_free, holds, checkpoint };
    copy_held(unfreeze, frame, control, report, copy)
}

/// Makes the checkpoint just before the snapshot: what the guest writes between the two counts as written
/// behind it, too, so nothing is lost. The journal has its name, which is the session's. An answer that was
/// lost says nothing; a look does.
fn checkpoint(unfreeze: &Unfreeze<'_>, request: &FreezeRequest) -> Result<Option<String>> {
    if request.tracked.is_empty() {
        return Ok(None);
    }
    let (hypervisor, name) = (unfreeze.host.hypervisor, checkpoint_name(unfreeze.job.id));
    let others = request.targets.iter().filter(|target| !request.tracked.contains(target));
    let wanted = CheckpointRequest {
        name: name.clone(),
        tracked: request.tracked.clone(),
        others: others.cloned().collect(),
    };
    if let Err(error) = hypervisor.create_checkpoint(request.domain, &wanted) {
        let there = hypervisor.checkpoints(request.domain)?;
        if !there.iter().any(|checkpoint| checkpoint.name == name) {
            return Err(error);
        }
    }
    Ok(Some(name))
}

/// What a copy is made within.
pub(super) struct CopyContext {
    pub(super) min_free: u64,
    pub(super) holds: BaseLocks,
    pub(super) checkpoint: Option<String>,
}

/// Locks that keep writers off the bases.
pub(super) type BaseLocks = Vec<Box<dyn Debug + Send + Sync>>;

/// The copy of bases that are held, up to where they are read.
pub(super) fn copy_held<T>(
    unfreeze: &mut Unfreeze<'_>,
    frame: CopyContext,
    control: &Control,
    report: &FreezeReport,
    copy: impl FnOnce(&Frozen) -> Result<T>,
) -> Result<T> {
    let (host, job) = (unfreeze.host, &unfreeze.job);
    let disks = job.disks.iter().map(|disk| FrozenDisk {
        target: disk.target.clone(),
        path: disk.base.path.clone(),
        format: disk.base.format.clone(),
    });
    let (disks, id): (Vec<FrozenDisk>, _) = (disks.collect(), job.id);
    let overlays = job.disks.iter().filter_map(|disk| disk.overlay.as_deref());
    let mut directories: Vec<_> = overlays.filter_map(|path| path.parent().map(Path::to_owned)).collect();
    directories.sort();
    directories.dedup();
    let watch =
        FreeSpaceMonitor { files: host.files, directories, min_free: frame.min_free, every: host.pace.watch };
    let checkpoint = frame.checkpoint;
    let copied = watch.over(control, |inner| {
        copy(&Frozen { job: id, disks, checkpoint, control: inner.clone(), report: report.clone() })
    });
    unfreeze.record(&[JournalEntry::State(SessionState::ReadDone)])?;
    drop(frame.holds);
    copied
}

/// Takes the snapshot, frozen by the agent where that is wanted.
fn snapshot(unfreeze: &mut Unfreeze<'_>, request: &FreezeRequest, report: &mut FreezeReport) -> Result<()> {
    let wanted = unfreeze.job.kind == SessionKind::Running && request.quiesce != AgentFreeze::Skip;
    let frozen_since = Instant::now();
    let asked = if wanted { freeze(unfreeze, request, report)? } else { FreezeAnswer::NotFrozen };
    let taken = take(unfreeze, request, report);
    if asked != FreezeAnswer::NotFrozen {
        let thawed = thaw(unfreeze, report);
        if report.quiesced {
            report.frozen_ms = Some(millis(frozen_since.elapsed()));
        }
        thawed?;
    }
    taken?;
    if report.quiesced {
        return Ok(());
    }
    // All that was warned of until now is why the agent did not freeze.
    if let AgentFreeze::Require(_) = request.quiesce {
        let message =
            format!("the agent of domain '{}' could not freeze and thaw its file systems", unfreeze.job.name);
        let hint = "is qemu-guest-agent running in the guest? --quiesce auto makes a crash-consistent backup";
        let why = report.warnings.drain(..).collect::<Vec<_>>().join("; ");
        return Err(Error::new(ErrorKind::Unsupported, message).with_source(why).with_hint(hint));
    }
    report.warnings.iter_mut().for_each(|why| why.push_str(": the copy is crash-consistent"));
    Ok(())
}

/// Whether the agent froze the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FreezeAnswer {
    Frozen,
    NotFrozen,
    /// It was told to and did not answer: it may do it yet.
    Unknown,
}

/// Has the agent freeze the guest. One that does not is no error yet.
fn freeze(
    unfreeze: &mut Unfreeze<'_>,
    request: &FreezeRequest,
    report: &mut FreezeReport,
) -> Result<FreezeAnswer> {
    let (hypervisor, domain) = (unfreeze.host.hypervisor, request.domain);
    let limit = match request.quiesce {
        AgentFreeze::Try(limit) | AgentFreeze::Require(limit) => limit,
        AgentFreeze::Skip => return Ok(FreezeAnswer::NotFrozen),
    };
    let there = hypervisor.set_agent_time_limit(domain, limit);
    let (asked, error) = match there.and_then(|()| hypervisor.ping_agent(domain, limit)) {
        Err(error) => (FreezeAnswer::NotFrozen, error),
        Ok(()) => {
            unfreeze.record(&[JournalEntry::Held(Some(GuestHold::Frozen))])?;
            unfreeze.arm(GuestHold::Frozen)?;
            match hypervisor.freeze(domain) {
                Ok(_) => {
                    report.quiesced = true;
                    return Ok(FreezeAnswer::Frozen);
                }
                Err(error) => (FreezeAnswer::Unknown, error),
            }
        }
    };
    report.warnings.push(format!("the guest's agent did not freeze its file systems ({})", sentence(&error)));
    Ok(asked)
}

/// Thaws, also where the freeze said that it failed: an answer may have been lost. What can't be thawed is
/// the guard's.
fn thaw(unfreeze: &mut Unfreeze<'_>, report: &mut FreezeReport) -> Result<()> {
    let name = unfreeze.job.name.clone();
    let thawed = thaw_with_retries(unfreeze).map_err(|error| {
        let message = format!("the file systems of domain '{name}' may still be frozen: its agent does not thaw them");
        error.within(message).with_hint(format!(
            "make sure that qemu-guest-agent runs in the guest, then run `virtfold recover {name}`, which thaws them (or `virsh domfsthaw {name}`)"
        ))
    })?;
    if let ReleaseOutcome::DespiteAgentError(error) = thawed {
        // A program in the guest may not have got what it needs to go on, so nobody says that this copy is a
        // clean one.
        report.quiesced = false;
        let error = sentence(&error);
        let text = format!(
            "the guest's agent reported an error in the thaw, and then that the file systems are thawed ({error})"
        );
        report.warnings.push(text);
    }
    if let Some(sentry) = &mut unfreeze.sentry
        && sentry.disarm()? == watchdog::WatchdogOutcome::Expired
        && report.quiesced
    {
        report.quiesced = false;
        let text = "the watchdog thawed the guest: the snapshot took longer than the pause budget";
        report.warnings.push(text.to_owned());
    }
    unfreeze.record(&[JournalEntry::Held(None)])
}

/// Tries for a while: a service that died of the freeze is started again.
fn thaw_with_retries(unfreeze: &Unfreeze<'_>) -> Result<ReleaseOutcome> {
    let host = unfreeze.host;
    let until = Instant::now() + host.pace.poll * THAW_POLLS;
    let mut attempts = 1;
    loop {
        let thawed = watchdog::release_guest(host.hypervisor, unfreeze.job.domain, GuestHold::Frozen);
        if thawed.is_ok() || (attempts >= THAWS && Instant::now() >= until) {
            return thawed;
        }
        attempts += 1;
        std::thread::sleep(host.pace.poll);
    }
}

fn lost<T>(result: &Result<T>) -> bool {
    result.as_ref().is_err_and(HypervisorError::lost)
}

/// Takes the snapshot, and sees that it was taken: of all disks or of none.
fn take(unfreeze: &mut Unfreeze<'_>, request: &FreezeRequest, report: &mut FreezeReport) -> Result<()> {
    let host = unfreeze.host;
    let overlays: Vec<_> = request.disks.iter().map(|d| (d.target.clone(), d.overlay.clone())).collect();
    let wanted = SnapshotRequest::new(&request.targets, &overlays, types::SnapshotQuiesce::No)?;
    for attempt in 1.. {
        let asked = Instant::now();
        let answer = host.hypervisor.snapshot(request.domain, &wanted);
        report.snapshot_ms = Some(millis(asked.elapsed()));
        let again = lost(&answer) && attempt < SNAPSHOTS;
        let switched = patiently(host, || switched(unfreeze))?;
        match answer {
            _ if switched == unfreeze.job.disks.len() => return Ok(()),
            Err(error) if again && switched == 0 => {
                tracing::debug!(?error, "the snapshot was lost and did not happen");
                remove_orphans(unfreeze)?;
            }
            Err(error) => {
                let message =
                    format!("the disks of domain '{}' could not be put on overlays", unfreeze.job.name);
                return Err(error.within(message));
            }
            Ok(()) => {
                let message = format!("the snapshot of domain '{}' left disks out", unfreeze.job.name);
                return Err(Error::new(ErrorKind::Internal, message));
            }
        }
    }
    Ok(())
}

/// Looks again where the connection is just being made anew.
fn patiently<T>(host: &FreezeContext<'_>, look: impl Fn() -> Result<T>) -> Result<T> {
    let first = look();
    if !lost(&first) {
        return first;
    }
    std::thread::sleep(host.pace.poll);
    look()
}

/// How many disks QEMU has on their overlays. What lies below an overlay must be the image that is going to
/// be read: somebody may have put another one on it since it was looked at.
fn switched(unfreeze: &Unfreeze<'_>) -> Result<usize> {
    let view = DomainView::look(unfreeze.host.hypervisor, unfreeze.job.domain)?;
    let mut count = 0;
    for disk in &unfreeze.job.disks {
        let seen = view.disk(unfreeze.host.hypervisor, disk)?;
        if seen.top().is_none() || seen.top() != disk.overlay.as_deref() {
            continue;
        }
        let below = seen.qemu.as_ref().and_then(|chain| chain.get(1));
        if below != Some(&disk.base.path) {
            let (name, target) = (&unfreeze.job.name, &disk.target);
            let message = format!("disk '{target}' of domain '{name}' got another image at the last moment");
            return Err(Error::new(ErrorKind::InUse, message).with_hint("try again"));
        }
        count += 1;
    }
    Ok(count)
}

/// What a snapshot that did not happen left; it would be in the way of the next one.
fn remove_orphans(unfreeze: &Unfreeze<'_>) -> Result<()> {
    use virtfold_hypervisor::host_files::ImageUse;
    let files = unfreeze.host.files;
    for overlay in unfreeze.job.disks.iter().filter_map(|disk| disk.overlay.as_deref()) {
        if matches!(files.image_use(overlay)?, ImageUse::Read | ImageUse::Written) {
            unfreeze.host.hypervisor.close_unused(unfreeze.job.domain, overlay)?;
        }
        if files.image_use(overlay)? == ImageUse::Free && files.is_empty(overlay)? {
            files.remove(overlay)?;
        }
    }
    Ok(())
}

/// Takes the locks that keep writers off the bases, and notes the bases as they are.
fn hold(unfreeze: &mut Unfreeze<'_>) -> Result<BaseLocks> {
    let host = unfreeze.host;
    // A libvirtd that died in the snapshot leaves a configuration that would lose the overlay with the next
    // power-off.
    unfreeze.follow()?;
    let holds = hold_bases(unfreeze)?;
    let mut changes = vec![JournalEntry::State(SessionState::Snapshotted)];
    for disk in &unfreeze.job.disks {
        if let Some(mark) = host.files.mark(&disk.base.path)? {
            changes.push(JournalEntry::Frozen { target: disk.target.clone(), mark });
        }
    }
    unfreeze.record(&changes)?;
    Ok(holds)
}

/// Takes the locks.
pub(super) fn hold_bases(unfreeze: &Unfreeze<'_>) -> Result<BaseLocks> {
    let hold = |disk: &SessionDisk| {
        let held = unfreeze.host.files.hold(&disk.base.path);
        held.map_err(|e| e.within(format!("the base of disk '{}' is in use", disk.target)))
    };
    unfreeze.job.disks.iter().map(hold).collect()
}
