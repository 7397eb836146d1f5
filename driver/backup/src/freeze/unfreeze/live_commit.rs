//! The way back of disks whose guest runs: begin all commits, wait for all, stand still once, pivot all,
//! look, go on.
//!
//! All commits are begun before the first pivot. A pivot has libvirt restore labels, and where AppArmor
//! confines the guest that writes its rules anew, with a denial of writes for each image below an overlay: a
//! commit that begins after it is refused, one that has its base open goes on. What else writes the rules
//! anew (a CD that is ejected, a start on the overlay) may come before: then the denial is lifted for the one
//! call that begins the commit.
//!
//! In the pause: a pivot is asked for only of jobs that are level (everything written is in the base), and
//! the overlays' marks of that moment go into the journal first. A mark is taken before the level is read, so
//! a write in between shows. What does not fit into the budget keeps its job and has the next pause.
//!
//! A guest that writes faster than the commit never gets the job level by itself. It is made to stand still
//! after the commit has gone on for [`FreezeTimings::stall`](super::super::FreezeTimings) without getting
//! nearer, or is ready; the rest then fits into the budget or the guest goes on and it is tried again.
//!
//! A disk whose commit keeps failing is given up for now. The others come home all the same.
//!
//! Imports: `error`, `catalog`, `hypervisor`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::super::domain_view::DomainView;
use super::{Unfreeze, note};
use virtfold_base::error::{Error, ErrorKind, Result, sentence};
use virtfold_catalog::{JournalEntry, SessionState, UnfreezeState};
use virtfold_hypervisor::host_files::ImageStamp;
use virtfold_hypervisor::watchdog::GuestHold;
use virtfold_hypervisor::{
    BlockJob, BlockJobEnd, BlockJobKind, BlockJobStatus, CommitBase, CommitRequest, DomainEvent, DomainState,
    HypervisorError, code,
};

/// Commits of one disk before it is given up for now.
const COMMITS: u32 = 4;
/// Looks at a ready job are this far apart: the guest stands still.
const QUICK: Duration = Duration::from_millis(2);
/// The part of the budget that may be over when the last pivot is asked for, and when it is waited no more
/// for disks that are not level while others are.
const LAST: f64 = 0.7;
const OTHERS: f64 = 0.35;

/// What became of commits.
enum CommitProgress {
    /// All are ready, or as near as they get.
    Ready,
    /// One is not there any more.
    Gone,
}

/// A commit that is waited for.
struct PendingCommit {
    index: usize,
    target: String,
    /// The least that was left, and since when.
    least: u64,
    since: Instant,
    up: bool,
}

/// A disk whose base had everything when its overlay had this mark.
struct SyncedDisk {
    index: usize,
    mark: Option<ImageStamp>,
}

impl Unfreeze<'_> {
    /// One attempt to bring disks home together.
    pub(super) fn commit(&mut self, disks: &[usize]) -> Result<()> {
        let events = self.host.hypervisor.subscribe()?;
        let mut failed = None;
        for index in disks {
            if let Err(error) = self.underway(*index) {
                failed.get_or_insert(error);
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let disks: Vec<usize> = disks.iter().copied().filter(|index| !self.is_given_up(*index)).collect();
        if disks.is_empty() {
            return Ok(());
        }
        match self.wait_ready(&disks, &events)? {
            CommitProgress::Gone => Ok(()),
            CommitProgress::Ready => self.pivot(&disks),
        }
    }

    pub(super) fn name_of(&self, target: &str) -> String {
        format!("disk '{target}' of domain '{}'", self.job.name)
    }

    /// Whether the commit of a disk has failed too often.
    pub(super) fn is_given_up(&self, index: usize) -> bool {
        self.commits.get(index).is_some_and(|count| *count > COMMITS)
    }

    /// What is to be said of a disk that is given up.
    pub(super) fn given_up(&self, index: usize) -> Result<Error> {
        let disk = self.disk(index)?;
        let message = format!("the commit of {} keeps failing", self.name_of(&disk.target));
        let why = self.refused.get(index).cloned().flatten();
        let denied = why.as_ref().is_some_and(|why| why.contains("Permission denied"));
        let hint = if denied {
            format!(
                "the guest runs on its overlay, nothing is lost. AppArmor, SELinux or the owner of '{}' keeps QEMU from writing to it: shut \
                 the guest down, then run `virtfold recover` as root, which commits without QEMU",
                disk.base.path.display()
            )
        } else {
            "is the base's file system full? The guest runs on its overlay, nothing is lost; free space, then run `virtfold recover`"
                .to_owned()
        };
        let error = Error::new(ErrorKind::Io, message).with_hint(hint);
        Ok(match why {
            Some(why) => error.with_source(why),
            None => error,
        })
    }

    /// Sees to it that a disk has its commit.
    fn underway(&mut self, index: usize) -> Result<()> {
        let target = self.disk(index)?.target.clone();
        match self.host.hypervisor.block_job(self.job.domain, &target)? {
            Some(BlockJob { kind: BlockJobKind::ActiveCommit, .. }) => {
                // Also where a pivot was asked for: QEMU says that it did not happen.
                match self.disk(index)?.state {
                    UnfreezeState::Committing | UnfreezeState::Ready => Ok(()),
                    _ => self.begin(index),
                }
            }
            Some(other) => {
                let message =
                    format!("{} has a block job of another tool ({:?})", self.name_of(&target), other.kind);
                Err(Error::new(ErrorKind::InUse, message).with_hint("wait for its end"))
            }
            None => self.start(index, &target),
        }
    }

    /// From here on the base is no valid source of a backup.
    fn begin(&mut self, index: usize) -> Result<()> {
        let target = self.disk(index)?.target.clone();
        self.record(&[
            JournalEntry::State(SessionState::Committing),
            JournalEntry::Disk { target, state: UnfreezeState::Committing },
        ])
    }

    fn start(&mut self, index: usize, target: &str) -> Result<()> {
        if let Some(count) = self.commits.get_mut(index) {
            *count += 1;
        }
        if self.is_given_up(index) {
            return Ok(());
        }
        self.begin(index)?;
        let base = CommitBase::Shallow;
        let request = CommitRequest { target: target.to_owned(), base, bytes_per_second: 0 };
        let started = match self.host.hypervisor.commit(self.job.domain, &request) {
            Err(error) if !HypervisorError::lost(&error) => self.start_allowed(index, &request, error),
            answer => answer,
        };
        if let Some(refused) = self.refused.get_mut(index) {
            *refused = started.as_ref().err().map(|error| sentence(error));
        }
        started
    }

    /// A commit that was refused, with the rule lifted that denies QEMU its base, where there is one. QEMU
    /// opens the base in this call and has it open from then on, so the rule is put back right after it.
    fn start_allowed(&mut self, index: usize, request: &CommitRequest, refused: Error) -> Result<()> {
        let (hypervisor, domain) = (self.host.hypervisor, self.job.domain);
        let base = self.disk(index)?.base.path.clone();
        let denial = match hypervisor.lift_denial(domain, &base) {
            Ok(Some(denial)) => denial,
            Ok(None) => return Err(refused),
            Err(error) => {
                let both = format!("{}; {}", sentence(&refused), sentence(&error));
                let message = format!("AppArmor keeps QEMU from writing to '{}'", base.display());
                return Err(Error::new(error.kind(), message).with_source(both));
            }
        };
        let started = hypervisor.commit(domain, request);
        if let Err(error) = hypervisor.restore_denial(domain, &denial) {
            // libvirt writes all rules anew with the pivot, and at each start.
            tracing::warn!(%domain, ?error, "the denial of writes could not be restored");
        }
        started?;
        if let Some(notes) = self.disks.get_mut(index) {
            note(&mut notes.found, format!("AppArmor denied QEMU writes to '{}'", base.display()));
            let rules = denial.rules.display();
            note(&mut notes.done, format!("lift that denial in '{rules}' while the commit starts"));
        }
        Ok(())
    }

    /// Waits until each job has caught up with the guest once, or does not get nearer any more.
    fn wait_ready(&mut self, disks: &[usize], events: &Receiver<DomainEvent>) -> Result<CommitProgress> {
        let (hypervisor, pace) = (self.host.hypervisor, self.host.pace);
        let mut awaited = Vec::new();
        for index in disks {
            let target = self.disk(*index)?.target.clone();
            awaited.push(PendingCommit {
                index: *index,
                target,
                least: u64::MAX,
                since: Instant::now(),
                up: false,
            });
        }
        let mut told = BTreeSet::new();
        loop {
            told.extend(events.try_iter().filter_map(ready_disk));
            for disk in &mut awaited {
                let Some(job) = hypervisor.block_job(self.job.domain, &disk.target)? else {
                    return Ok(CommitProgress::Gone);
                };
                let rest = job.end.saturating_sub(job.current);
                if job.is_level() || told.contains(&disk.target) {
                    self.move_disk(disk.index, UnfreezeState::Ready)?;
                    disk.up = true;
                } else if rest < disk.least {
                    (disk.least, disk.since) = (rest, Instant::now());
                } else if disk.since.elapsed() >= pace.stall {
                    disk.up = true;
                }
            }
            if awaited.iter().all(|disk| disk.up) {
                return Ok(CommitProgress::Ready);
            }
            // An event ends the wait early; a missed one costs no more than the poll.
            if let Ok(event) = events.recv_timeout(pace.poll) {
                told.extend(ready_disk(event));
            }
        }
    }

    /// Stands still, pivots, looks, goes on. A guest that stands still already is left so.
    fn pivot(&mut self, disks: &[usize]) -> Result<()> {
        let domain = self.job.domain;
        // Asked now: the commits may have taken hours, and somebody who has suspended the guest meanwhile
        // wants it to stand.
        if self.host.hypervisor.domain_state(domain)? == DomainState::Running {
            self.record(&[JournalEntry::Held(Some(GuestHold::Paused))])?;
            self.arm(GuestHold::Paused)?;
            self.stands_since = Some(Instant::now());
            self.host.hypervisor.suspend(domain)?;
        }
        let mut answered = Vec::new();
        let turned = self.pivot_round(disks, &mut answered);
        // From here on as every round begins: look, set the configuration right, and only then let the guest
        // go on.
        let view = DomainView::look(self.host.hypervisor, domain)?;
        let view = self.repair_config(view)?;
        let mut changes = Vec::new();
        for index in answered {
            let disk = self.disk(index)?;
            let seen = view.disk(self.host.hypervisor, disk)?;
            if seen.top() == Some(disk.base.path.as_path()) {
                changes
                    .push(JournalEntry::Disk { target: disk.target.clone(), state: UnfreezeState::Pivoted });
            }
        }
        self.resume(&view)?;
        if !changes.is_empty() {
            self.record(&changes)?;
        }
        turned
    }

    /// Waits until nothing is left, and asks for the pivots, as many as fit. Notes which were answered.
    fn pivot_round(&mut self, disks: &[usize], answered: &mut Vec<usize>) -> Result<()> {
        let (from, budget) = (Instant::now(), self.host.pace.pause_budget);
        for index in disks {
            let target = &self.disk(*index)?.target;
            self.host.hypervisor.cap_block_job(self.job.domain, target, 0)?;
        }
        let level = self.wait_until_ready(disks, from)?;
        let mut changes = Vec::new();
        for SyncedDisk { index, mark } in &level {
            let target = self.disk(*index)?.target.clone();
            changes.push(JournalEntry::Disk { target, state: UnfreezeState::Pivoting { level: *mark } });
        }
        self.record(&changes)?;
        let until = from + budget.mul_f64(LAST);
        let (mut longest, mut asked) = (Duration::ZERO, 0);
        let mut turned = Ok(());
        for SyncedDisk { index, .. } in &level {
            let since = Instant::now();
            if turned.is_err() || asked > 0 && since + longest > until {
                break;
            }
            asked += 1;
            let target = self.disk(*index)?.target.clone();
            turned = self.end_commit(&target, until);
            longest = longest.max(since.elapsed());
            answered.extend(turned.is_ok().then_some(*index));
        }
        let unasked = level.iter().skip(asked);
        let unasked = unasked.map(|level| {
            Ok(JournalEntry::Disk {
                target: self.disk(level.index)?.target.clone(),
                state: UnfreezeState::Ready,
            })
        });
        let unasked = unasked.collect::<Result<Vec<JournalEntry>>>()?;
        if !unasked.is_empty() {
            self.record(&unasked)?;
        }
        turned
    }

    fn end_commit(&self, target: &str, until: Instant) -> Result<()> {
        let (hypervisor, domain) = (self.host.hypervisor, self.job.domain);
        loop {
            match hypervisor.end_block_job(domain, target, BlockJobEnd::Pivot) {
                // Level, and not told ready yet.
                Err(error)
                    if HypervisorError::code_of(&error) == Some(code::BLOCK_COPY_ACTIVE)
                        && !HypervisorError::lost(&error)
                        && Instant::now() < until =>
                {
                    std::thread::sleep(QUICK);
                    if hypervisor.block_job(domain, target)?.is_none() {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }

    /// The disks that are level: all of them, or after a while those that are, and their overlays' marks at a
    /// moment when the base had everything.
    fn wait_until_ready(&self, disks: &[usize], from: Instant) -> Result<Vec<SyncedDisk>> {
        let budget = self.host.pace.pause_budget;
        let mut level: Vec<SyncedDisk> = Vec::new();
        let mut waiting = Vec::new();
        for index in disks {
            waiting.push(SyncedDisk { index: *index, mark: self.mark_of(*index)? });
        }
        loop {
            let mut rest = 0;
            let mut still = Vec::new();
            for SyncedDisk { index, mark } in waiting {
                let target = &self.disk(index)?.target;
                let job = self.host.hypervisor.block_job(self.job.domain, target)?;
                let gone = || {
                    Error::new(ErrorKind::Io, format!("the commit of {} was aborted", self.name_of(target)))
                };
                let job = job.ok_or_else(gone)?;
                let after = self.mark_of(index)?;
                if job.is_level() && after == mark {
                    level.push(SyncedDisk { index, mark });
                } else {
                    rest = job.end.saturating_sub(job.current);
                    still.push(SyncedDisk { index, mark: after });
                }
            }
            let Some(SyncedDisk { index, .. }) = still.first() else { return Ok(level) };
            if !level.is_empty() && from.elapsed() >= budget.mul_f64(OTHERS) {
                return Ok(level);
            }
            if from.elapsed() >= budget.mul_f64(LAST) {
                let message = format!(
                    "{} writes faster than the commit: {rest} bytes were left at the end of the pause budget",
                    self.name_of(&self.disk(*index)?.target)
                );
                let hint = "run `virtfold recover` when the guest is quieter, or use a larger --pause-budget";
                return Err(Error::new(ErrorKind::InUse, message).with_hint(hint));
            }
            waiting = still;
            std::thread::sleep(QUICK.min(self.host.pace.poll));
        }
    }

    fn mark_of(&self, index: usize) -> Result<Option<ImageStamp>> {
        let overlay = self.disk(index)?.overlay.as_deref();
        overlay.map_or(Ok(None), |overlay| self.host.files.mark(overlay))
    }
}

fn ready_disk(event: DomainEvent) -> Option<String> {
    match event {
        DomainEvent::BlockJob { target, status: BlockJobStatus::Ready, .. } => Some(target),
        _ => None,
    }
}
