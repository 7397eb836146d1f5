//! Brings a guest home: from wherever a job stands to every disk on its base, the overlays gone, the job
//! closed.
//!
//! Rounds: let the guest go where it is held, look, set the configuration right, decide for each disk
//! ([`decide()`]), take the next step, look again. A step that fails is a reason to look again; what was done
//! and not answered is seen, what was not done is done again. Nothing is remembered from one round to the
//! next but the journal, so a driver that dies in the midst leaves to the next one what it has itself.
//!
//! Order within a round: thaw before anything; the configuration before a guest goes on (while it stands,
//! base and overlay are the same; then not); live commits all together; overlays last, all at once.
//!
//! Imports: `error`, `catalog`, `hypervisor`, `domain_view`.

use std::time::Instant;

use super::domain_view::{DomainView, present};
use super::{FreezeContext, Watchdog};
use virtfold_base::error::{Error, ErrorKind, Result, sentence};
use virtfold_catalog::{
    FreezeSession, JournalEntry, SessionDisk, SessionOutcome, SessionState, UnfreezeState,
};
use virtfold_hypervisor::config_repair::{self, ConfigFix};
use virtfold_hypervisor::watchdog::{self, GuestHold};
use virtfold_hypervisor::{ConfigStamps, DomainState, PausedReason};

pub(super) mod decide;
mod detached_disk;
mod live_commit;
mod messages;
mod offline_commit;
mod remove_overlays;
pub(super) mod step;

use decide::decide;
pub(super) use messages::{DETACHED, FIRED, RESUME, THAW, UNCONFIGURED, found};
pub(super) use remove_overlays::{UncheckedDomains, users};
use step::UnfreezeStep;

/// Failures in a row before it is given up for now.
const FAILURES: u32 = 5;
/// Rounds before it is given up: somebody undoes what is done.
const ROUNDS: u32 = 200;
/// Less than this free around an overlay, in bytes, may have stopped the guest.
const TIGHT: u64 = 64 << 20;
/// Looks at a guest that a full disk may stop, and how many of them in a row must find it running. QEMU 10
/// holds an event of BLOCK_IO_ERROR back for up to a second after the one before it, and libvirt believes it
/// when it comes: by the default poll these are 1.5 s.
const STOPS: u32 = 150;
const STEADY: u32 = 30;
/// Attempts to thaw before the rest is done all the same.
const THAWS: u32 = 3;

/// How far it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnfreezeOutcome {
    /// The guest is on its disks, the job is closed.
    OnBase,
    /// The guest is on its disks; an overlay can only be removed later.
    OverlayPending,
    /// Somebody has a file open, or a person has to decide.
    NeedsAdministrator,
}

/// What was found, done, and remains: of the domain or of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RecoveryNotes {
    pub(super) found: Vec<String>,
    pub(super) done: Vec<String>,
    pub(super) remains: Vec<String>,
}

fn note(list: &mut Vec<String>, text: String) {
    if !list.contains(&text) {
        list.push(text);
    }
}

fn positions(steps: &[UnfreezeStep], wanted: impl Fn(&UnfreezeStep) -> bool) -> Vec<usize> {
    steps.iter().enumerate().filter(|(_, step)| wanted(step)).map(|(index, _)| index).collect()
}

/// A job on its way home.
pub(super) struct Unfreeze<'a> {
    pub(super) host: &'a FreezeContext<'a>,
    pub(super) job: FreezeSession,
    pub(super) domain: RecoveryNotes,
    pub(super) disks: Vec<RecoveryNotes>,
    /// The longest pause of the guest.
    pub(super) pause: Option<std::time::Duration>,
    /// The guard once it was needed.
    pub(super) sentry: Option<Box<dyn Watchdog>>,
    /// Commits that were started, for each disk.
    commits: Vec<u32>,
    /// What was said against the last commit of each disk.
    refused: Vec<Option<String>>,
    /// The configurations of all domains before the overlays were there; none of a job of another process.
    pub(super) configs: ConfigStamps,
    /// What the last look decided.
    steps: Vec<UnfreezeStep>,
    /// Thaws that failed.
    thaws: u32,
    /// Whether what was found is noted.
    looked: bool,
    /// When the guest was made to stand still.
    stands_since: Option<Instant>,
}

impl<'a> Unfreeze<'a> {
    pub(super) fn new(host: &'a FreezeContext<'a>, job: FreezeSession) -> Self {
        let disks = vec![RecoveryNotes::default(); job.disks.len()];
        let commits = vec![0; job.disks.len()];
        let refused = vec![None; job.disks.len()];
        Self {
            host,
            job,
            domain: RecoveryNotes::default(),
            disks,
            pause: None,
            sentry: None,
            commits,
            refused,
            configs: ConfigStamps::default(),
            steps: Vec::new(),
            thaws: 0,
            looked: false,
            stands_since: None,
        }
    }

    /// Goes all the way, and closes the job with `outcome`.
    pub(super) fn run(&mut self, outcome: SessionOutcome) -> Result<UnfreezeOutcome> {
        let mut failures = 0;
        for _ in 0..ROUNDS {
            match self.round(outcome) {
                Ok(Some(arrival)) => return Ok(arrival),
                Ok(None) => failures = 0,
                Err(error) => {
                    failures += 1;
                    if failures == FAILURES {
                        self.release_guest();
                        return Err(error);
                    }
                    tracing::debug!(domain = %self.job.domain, ?error, "looking again");
                    std::thread::sleep(self.host.pace.poll);
                }
            }
        }
        self.release_guest();
        let message =
            format!("domain '{}' can't be put back on its disks: somebody keeps undoing it", self.job.name);
        Err(Error::new(ErrorKind::InUse, message))
    }

    /// A guest that stands still helps nobody, whatever else is wrong.
    fn release_guest(&mut self) {
        let Some(held) = self.job.held else { return };
        match watchdog::release(self.host.hypervisor, self.job.domain, held) {
            Ok(()) => self.journal_quietly(&[JournalEntry::Held(None)]),
            Err(error) => {
                tracing::error!(domain = %self.job.domain, ?error, "the guest could not be resumed")
            }
        }
    }

    fn journal_quietly(&mut self, changes: &[JournalEntry]) {
        if let Err(error) = self.record(changes) {
            tracing::error!(domain = %self.job.domain, ?error, "the journal could not be written");
        }
    }

    fn round(&mut self, outcome: SessionOutcome) -> Result<Option<UnfreezeOutcome>> {
        self.thaw()?;
        let view = DomainView::look(self.host.hypervisor, self.job.domain)?;
        let view = self.repair_config(view)?;
        self.resume(&view)?;
        let steps = self.decide(&view)?;
        let before = std::mem::replace(&mut self.steps, steps.clone());
        for (index, step) in steps.iter().enumerate() {
            self.note_done(index, before.get(index), step);
            self.note_found(index, step);
        }
        self.note_detached(&view);
        self.looked = true;
        let commits = positions(&steps, |step| *step == UnfreezeStep::Commit);
        let next: Vec<usize> = commits.iter().copied().filter(|index| !self.is_given_up(*index)).collect();
        if !next.is_empty() {
            self.commit(&next)?;
            return Ok(None);
        }
        if let Some(first) = commits.first() {
            // Overlays of disks that are home may take the room that is wanted.
            self.leave(&steps, outcome)?;
            return Err(self.given_up(*first)?);
        }
        if steps.iter().any(|step| matches!(step, UnfreezeStep::AskAdministrator(_) | UnfreezeStep::Wait(_)))
        {
            return Ok(Some(UnfreezeOutcome::NeedsAdministrator));
        }
        if steps
            .iter()
            .any(|step| matches!(step, UnfreezeStep::OfflineCommit | UnfreezeStep::RemoveFromConfig))
        {
            self.take_offline_steps(&steps)?;
            return Ok(None);
        }
        self.wait_until_running(&view)?;
        self.leave(&steps, outcome).map(Some)
    }

    pub(super) fn decide(&self, view: &DomainView) -> Result<Vec<UnfreezeStep>> {
        self.job.disks.iter().map(|disk| decide(self.host, &self.job, view, disk)).collect()
    }

    /// Notes changes: in the journal first, then in our own copy of it.
    pub(super) fn record(&mut self, changes: &[JournalEntry]) -> Result<()> {
        self.host.journal.record(self.job.id, changes)?;
        for change in changes {
            match change {
                JournalEntry::State(state) => self.job.state = *state,
                JournalEntry::Held(held) => self.job.held = *held,
                JournalEntry::Frozen { target, mark } => {
                    self.disk_mut(target, |disk| disk.frozen = Some(*mark));
                }
                JournalEntry::Disk { target, state } => self.disk_mut(target, |disk| disk.state = *state),
                JournalEntry::Close(_) => self.job.state = SessionState::Closed,
            }
        }
        Ok(())
    }

    fn disk_mut(&mut self, target: &str, change: impl Fn(&mut SessionDisk)) {
        self.job.disks.iter_mut().filter(|d| d.target == target).for_each(change);
    }

    fn disk(&self, index: usize) -> Result<&SessionDisk> {
        let missing = || Error::new(ErrorKind::Internal, format!("the job has no disk number {index}"));
        self.job.disks.get(index).ok_or_else(missing)
    }

    fn move_disk(&mut self, index: usize, state: UnfreezeState) -> Result<()> {
        let disk = self.disk(index)?;
        if disk.state == state {
            return Ok(());
        }
        let target = disk.target.clone();
        self.record(&[JournalEntry::Disk { target, state }])
    }

    /// Thaws what we froze. A guest whose agent does not answer is brought home all the same; its job then
    /// stays open.
    fn thaw(&mut self) -> Result<()> {
        if self.job.held != Some(GuestHold::Frozen) || self.thaws == THAWS {
            return Ok(());
        }
        match watchdog::release(self.host.hypervisor, self.job.domain, GuestHold::Frozen) {
            Ok(()) => {
                note(&mut self.domain.done, messages::THAW.to_owned());
                self.disarm();
                self.record(&[JournalEntry::Held(None)])
            }
            Err(error) => {
                self.thaws += 1;
                if self.thaws == THAWS {
                    note(&mut self.domain.remains, messages::frozen(&sentence(&error)));
                    return Ok(());
                }
                Err(error)
            }
        }
    }

    /// The configuration follows QEMU. The second look is needed only where something was wrong.
    fn repair_config(&mut self, view: DomainView) -> Result<DomainView> {
        let hypervisor = self.host.hypervisor;
        let (Some(live), Some(config)) = (&view.live, &view.config) else { return Ok(view) };
        let mut fixes = config_repair::fixes(hypervisor, live, &view.qemu, config)?;
        fixes.retain(|fix| self.is_ours(fix));
        if fixes.is_empty() {
            return Ok(view);
        }
        hypervisor.define(&config_repair::apply(config, &fixes)?)?;
        fixes.iter().for_each(|fix| self.note_fix(fix));
        DomainView::look(hypervisor, self.job.domain)
    }

    /// Looks, and sets the configuration right.
    pub(super) fn follow(&mut self) -> Result<()> {
        let view = DomainView::look(self.host.hypervisor, self.job.domain)?;
        self.repair_config(view).map(drop)
    }

    pub(super) fn is_ours(&self, fix: &ConfigFix) -> bool {
        let (ConfigFix::Push { overlay, .. } | ConfigFix::Pop { overlay, .. }) = fix;
        self.job.disks.iter().any(|disk| disk.overlay.as_ref() == Some(overlay))
    }

    /// Lets a guest go on that we made stand still.
    fn resume(&mut self, view: &DomainView) -> Result<()> {
        if self.job.held != Some(GuestHold::Paused) {
            return Ok(());
        }
        if view.run() == Some(DomainState::Paused(PausedReason::User)) {
            self.host.hypervisor.resume(self.job.domain)?;
            // The pauses of our own pivots are no news.
            if self.stands_since.is_none() {
                note(&mut self.domain.done, messages::RESUME.to_owned());
            }
        }
        if let Some(since) = self.stands_since.take() {
            self.pause = self.pause.max(Some(since.elapsed()));
        }
        self.disarm();
        // A thaw that failed is still owed after the guest has stood still for something else.
        let owed = (self.thaws == THAWS).then_some(GuestHold::Frozen);
        self.record(&[JournalEntry::Held(owed)])
    }

    /// A guest that ran when the job began and is on its disks again runs on, also where the overlays' file
    /// system was full: that stops it while it is on an overlay, or a moment after it has left it. A write
    /// that failed while the guest was held stops it when it goes on again, and libvirt may take that event
    /// for a stop that came after its own resume. So where room is short it is looked at for a while.
    fn wait_until_running(&mut self, view: &DomainView) -> Result<()> {
        use virtfold_catalog::SessionKind;
        let stopped = DomainState::Paused(PausedReason::IoError);
        if self.job.kind != SessionKind::Running || (view.run() != Some(stopped) && !self.is_short_of_space())
        {
            return Ok(());
        }
        let mut running = 0;
        for _ in 0..STOPS {
            if present(self.host.hypervisor.domain_state(self.job.domain))? == Some(stopped) {
                note(&mut self.domain.found, messages::FULL.to_owned());
                self.host.hypervisor.resume(self.job.domain)?;
                note(&mut self.domain.done, messages::RESUME.to_owned());
                running = 0;
            } else {
                running += 1;
            }
            if running == STEADY {
                return Ok(());
            }
            std::thread::sleep(self.host.pace.poll);
        }
        note(&mut self.domain.remains, messages::STOPPED.to_owned());
        Ok(())
    }

    /// Whether an overlay's file system is full, or nearly. One that can't be asked is taken for one.
    fn is_short_of_space(&self) -> bool {
        let folders = self.job.disks.iter().filter_map(|disk| disk.overlay.as_deref()?.parent());
        folders.into_iter().any(|folder| self.host.files.free(folder).map_or(true, |free| free < TIGHT))
    }

    /// Ends the guard's budget. A guard that is gone has nothing to end.
    fn disarm(&mut self) {
        let Some(sentry) = &mut self.sentry else { return };
        match sentry.disarm() {
            Ok(watchdog::WatchdogOutcome::InTime) => {}
            Ok(watchdog::WatchdogOutcome::Expired) => {
                note(&mut self.domain.found, messages::FIRED.to_owned())
            }
            Err(error) => {
                tracing::warn!(domain = %self.job.domain, ?error, "the watchdog has ended");
                self.sentry = None;
            }
        }
    }

    /// Begins the guard's budget; starts the guard where there is none yet.
    pub(super) fn arm(&mut self, held: GuestHold) -> Result<()> {
        let budget = self.host.pace.pause_budget;
        if let Some(sentry) = &mut self.sentry {
            match sentry.arm(held, budget) {
                Ok(()) => return Ok(()),
                Err(error) => tracing::warn!(domain = %self.job.domain, ?error, "the watchdog has ended"),
            }
        }
        let mut fresh = self.host.guard.start(self.job.domain)?;
        let armed = fresh.arm(held, budget);
        self.sentry = Some(fresh);
        armed
    }
}
