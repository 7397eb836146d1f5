//! Recovery: ends what dead drivers began, and finds overlays that no journal knows.
//!
//! A job in the journal goes the same way as a living driver's: `unfreeze`. A run that is alive holds its
//! domain's lock, and is left alone. Every step can be broken off and done again. A dry run decides for each
//! disk, says the words of the decision and stops there.
//!
//! Imports: `error`, `catalog`, `hypervisor`, `unfreeze`.

use serde::{Deserialize, Serialize};

use super::FreezeContext;
use super::domain_view::DomainView;
use super::unfreeze::{RecoveryNotes, Unfreeze, UnfreezeOutcome, found};
use crate::RunMode;
use virtfold_base::error::{Error, ErrorKind, Result, sentence};
use virtfold_catalog::{FreezeSession, JournalEntry, SessionOutcome, SessionState};
use virtfold_hypervisor::watchdog::GuestHold;
use virtfold_hypervisor::{DomainId, config_repair};

mod unknown_overlays;

/// Whose jobs are recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoverScope {
    /// All of them, and all domains are searched for forgotten overlays.
    All,
    /// One domain's.
    Domain(DomainId),
}

/// What came of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecoveryStatus {
    /// The guest is on its own disks and nothing is left to do.
    Recovered,
    /// The guest is on its own disks and the job is closed; a person should look at what remains, an overlay
    /// that was put aside.
    #[serde(rename = "attention")]
    NeedsAttention,
    /// The guest is on its own disks; something can only be done later, and the job stays open.
    #[serde(rename = "later")]
    OverlayPending,
    /// A run of virtfold is working on it.
    Busy,
    /// A person has to decide, or somebody has a file open; what is not decided is as it was.
    Undecided,
    /// Something failed; run it again.
    Failed,
    /// What would be done, by [`RunMode::DryRun`].
    Planned,
}

/// What was found of all domains that were asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverReport {
    /// Each with something to recover.
    pub domains: Vec<Recovery>,
}

/// What was found of a domain, done about it, and remains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// The domain's uuid.
    pub domain: String,
    /// Its name, as the journal or the hypervisor has it.
    pub name: String,
    /// The job in the journal; `None` for overlays that no job knows.
    pub job: Option<String>,
    /// What came of it.
    pub verdict: RecoveryStatus,
    /// What was found of the domain.
    pub found: Vec<String>,
    /// What was done to the domain.
    pub done: Vec<String>,
    /// What remains for a person.
    pub remains: Vec<String>,
    /// Its disks.
    pub disks: Vec<DiskRecovery>,
}

/// What was found of a disk, done about it, and remains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecovery {
    /// The disk.
    pub target: String,
    /// The image that the guest belongs on.
    pub base: String,
    /// The overlay.
    pub overlay: Option<String>,
    /// What was found.
    pub found: Vec<String>,
    /// What was done.
    pub done: Vec<String>,
    /// What remains.
    pub remains: Vec<String>,
}

/// Ends what dead drivers began.
///
/// # Errors
/// The hypervisor or the journal can't be asked at all. What fails for one domain is in its [`Recovery`].
pub fn recover(host: &FreezeContext<'_>, which: RecoverScope, mode: RunMode) -> Result<Vec<Recovery>> {
    let domain = match which {
        RecoverScope::All => None,
        RecoverScope::Domain(domain) => Some(domain),
    };
    let mut recoveries = Vec::new();
    for job in host.journal.open_sessions(domain)? {
        recoveries.extend(locked(host, &job, mode)?);
    }
    recoveries.extend(unknown_overlays::search(host, domain, mode)?);
    Ok(recoveries)
}

/// One job, under its domain's lock. `None` where its own driver closed it meanwhile.
fn locked(host: &FreezeContext<'_>, job: &FreezeSession, mode: RunMode) -> Result<Option<Recovery>> {
    let _lock = match host.journal.lock(job.domain) {
        Ok(lock) => lock,
        Err(error) if error.kind() == ErrorKind::InUse => {
            let domain = RecoveryNotes { remains: vec![sentence(&error)], ..RecoveryNotes::default() };
            return Ok(Some(report(job, domain, Vec::new(), RecoveryStatus::Busy)));
        }
        Err(error) => return Err(error),
    };
    let fresh = host.journal.open_sessions(Some(job.domain))?;
    let Some(job) = fresh.into_iter().find(|fresh| fresh.id == job.id) else { return Ok(None) };
    Ok(Some(one(host, job, mode)))
}

/// One job.
fn one(host: &FreezeContext<'_>, job: FreezeSession, mode: RunMode) -> Recovery {
    let mut unfreeze = Unfreeze::new(host, job);
    unfreeze.domain.found = found(&unfreeze.job);
    let ended = match (unfreeze.job.state, mode) {
        (SessionState::Reading, _) => read_only(&mut unfreeze, mode),
        (_, RunMode::DryRun) => plan(&mut unfreeze).map(|()| RecoveryStatus::Planned),
        (_, RunMode::Apply) => unfreeze.run(SessionOutcome::Recovered).map(|arrival| match arrival {
            UnfreezeOutcome::OnBase => RecoveryStatus::Recovered,
            UnfreezeOutcome::OverlayPending => RecoveryStatus::OverlayPending,
            UnfreezeOutcome::NeedsAdministrator => RecoveryStatus::Undecided,
        }),
    };
    let verdict = ended.unwrap_or_else(|error| {
        unfreeze.domain.remains.push(advice(&error));
        RecoveryStatus::Failed
    });
    let Unfreeze { job, domain, disks, .. } = unfreeze;
    let remains = std::iter::once(&domain).chain(&disks).any(|notes| !notes.remains.is_empty());
    let verdict = match verdict {
        RecoveryStatus::Recovered if remains => RecoveryStatus::NeedsAttention,
        verdict => verdict,
    };
    report(&job, domain, disks, verdict)
}

fn advice(error: &Error) -> String {
    match error.hint() {
        Some(hint) => format!("{} ({hint})", sentence(error)),
        None => sentence(error),
    }
}

/// A job that changed nothing in its domain.
fn read_only(unfreeze: &mut Unfreeze<'_>, mode: RunMode) -> Result<RecoveryStatus> {
    unfreeze.domain.done.push("close the session; it changed nothing".to_owned());
    match mode {
        RunMode::DryRun => Ok(RecoveryStatus::Planned),
        RunMode::Apply => unfreeze
            .record(&[JournalEntry::Close(SessionOutcome::Recovered)])
            .map(|()| RecoveryStatus::Recovered),
    }
}

/// What the first round would do, and what would follow from it.
fn plan(unfreeze: &mut Unfreeze<'_>) -> Result<()> {
    let view = DomainView::look(unfreeze.host.hypervisor, unfreeze.job.domain)?;
    unfreeze.plan_letting_go(&view);
    if let (Some(live), Some(config)) = (&view.live, &view.config) {
        let fixes = config_repair::fixes(unfreeze.host.hypervisor, live, &view.qemu, config)?;
        let ours: Vec<_> = fixes.into_iter().filter(|fix| unfreeze.is_ours(fix)).collect();
        ours.iter().for_each(|fix| unfreeze.note_fix(fix));
    }
    let steps = unfreeze.decide(&view)?;
    for (index, step) in steps.iter().enumerate() {
        unfreeze.note_found(index, step);
        unfreeze.note_all(index, step);
    }
    Ok(())
}

/// As the report has it.
fn report(
    job: &FreezeSession,
    domain: RecoveryNotes,
    disks: Vec<RecoveryNotes>,
    verdict: RecoveryStatus,
) -> Recovery {
    let disks = job.disks.iter().zip(disks).map(|(disk, notes)| DiskRecovery {
        target: disk.target.clone(),
        base: disk.base.path.display().to_string(),
        overlay: disk.overlay.as_ref().map(|path| path.display().to_string()),
        found: notes.found,
        done: notes.done,
        remains: notes.remains,
    });
    Recovery {
        domain: job.domain.to_string(),
        name: job.name.clone(),
        job: Some(job.id.to_string()),
        verdict,
        found: domain.found,
        done: domain.done,
        remains: domain.remains,
        disks: disks.collect(),
    }
}

impl Unfreeze<'_> {
    /// The words of letting the guest go.
    fn plan_letting_go(&mut self, view: &DomainView) {
        match self.job.held {
            Some(GuestHold::Frozen) => self.domain.done.push(super::unfreeze::THAW.to_owned()),
            Some(GuestHold::Paused) if view.is_paused() => {
                self.domain.done.push(super::unfreeze::RESUME.to_owned());
            }
            _ => {}
        }
    }
}
