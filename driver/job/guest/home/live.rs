//! The way back of a disk whose guest runs: commit, wait, stand still, pivot, look, go on.
//!
//! In the pause: only when the job is level (everything written is in the base) the pivot is asked for, and the overlay's mark of
//! that moment goes into the journal first. The mark is taken before the level is read, so a write in between shows.
//!
//! A guest that writes faster than the commit never gets the job level by itself. It is made to stand still after the commit has
//! gone on for [`Pace::stall`](super::super::Pace) without getting nearer, or is ready; the rest then fits into the budget or the guest goes on and it
//! is tried again.
//!
//! Imports: `error`, `catalog`, `guest`.

use std::time::{Duration, Instant};

use super::super::sight::Sight;
use super::Homing;
use crate::catalog::{Change, DiskState, JobState};
use crate::error::{Error, ErrorKind, Result, sentence};
use crate::guest::guard::Held;
use crate::guest::host::Mark;
use crate::guest::{
    BlockJob, BlockJobKind, BlockJobStatus, CommitBase, CommitRequest, Event, Fault, JobEnd, Run, code,
};

/// Commits of one disk before it is given up for now.
const COMMITS: u32 = 4;
/// Looks at a ready job are this far apart: the guest stands still.
const QUICK: Duration = Duration::from_millis(2);

/// What became of a commit.
enum Caught {
    /// It is ready, or as near as it gets.
    Up,
    /// There is none any more.
    Gone,
}

impl Homing<'_> {
    /// One attempt to bring one disk home.
    pub(super) fn commit(&mut self, index: usize) -> Result<()> {
        let target = self.disk(index)?.target.clone();
        let job = self.host.hypervisor.block_job(self.job.domain, &target)?;
        match job {
            Some(BlockJob { kind: BlockJobKind::ActiveCommit, .. }) => {
                // Also where a pivot was asked for: QEMU says that it did not happen.
                if !matches!(self.disk(index)?.state, DiskState::Committing | DiskState::Ready) {
                    self.begin(index)?;
                }
            }
            Some(other) => {
                let message =
                    format!("{} has a block job of somebody else ({:?})", self.name_of(&target), other.kind);
                return Err(Error::new(ErrorKind::InUse, message).with_hint("wait for its end"));
            }
            None => self.start(index, &target)?,
        }
        match self.wait_ready(index, &target)? {
            Caught::Gone => Ok(()),
            Caught::Up => self.pivot(index),
        }
    }

    pub(super) fn name_of(&self, target: &str) -> String {
        format!("disk '{target}' of domain '{}'", self.job.name)
    }

    /// From here on the base is no valid source of a backup.
    fn begin(&mut self, index: usize) -> Result<()> {
        let target = self.disk(index)?.target.clone();
        self.record(&[
            Change::State(JobState::Committing),
            Change::Disk { target, state: DiskState::Committing },
        ])
    }

    fn start(&mut self, index: usize, target: &str) -> Result<()> {
        if let Some(count) = self.commits.get_mut(index) {
            *count += 1;
            if *count > COMMITS {
                let message = format!("the commit of {} fails again and again", self.name_of(target));
                let hint = "is the base's file system full? The guest runs on in its overlay, nothing is lost; make room, then run \
                            `virtfold recover`";
                let error = Error::new(ErrorKind::Io, message).with_hint(hint);
                return Err(match self.refused.take() {
                    Some(why) => error.with_source(why),
                    None => error,
                });
            }
        }
        self.begin(index)?;
        let base = CommitBase::Shallow;
        let request = CommitRequest { target: target.to_owned(), base, bytes_per_second: 0 };
        let started = self.host.hypervisor.commit(self.job.domain, &request);
        self.refused = started.as_ref().err().map(|error| sentence(error));
        started
    }

    /// Waits until the job has caught up with the guest once, or does not get nearer any more.
    fn wait_ready(&mut self, index: usize, target: &str) -> Result<Caught> {
        let (hypervisor, pace) = (self.host.hypervisor, self.host.pace);
        let events = hypervisor.subscribe()?;
        let (mut least, mut since) = (u64::MAX, Instant::now());
        loop {
            let Some(job) = hypervisor.block_job(self.job.domain, target)? else { return Ok(Caught::Gone) };
            let rest = job.end.saturating_sub(job.current);
            let said_so = events.try_iter().any(|event| is_ready(&event, target));
            if job.is_level() || said_so {
                self.move_disk(index, DiskState::Ready)?;
                return Ok(Caught::Up);
            }
            if rest < least {
                (least, since) = (rest, Instant::now());
            } else if since.elapsed() >= pace.stall {
                return Ok(Caught::Up);
            }
            // An event ends the wait early; a missed one costs no more than the poll.
            if let Ok(event) = events.recv_timeout(pace.poll)
                && is_ready(&event, target)
            {
                self.move_disk(index, DiskState::Ready)?;
                return Ok(Caught::Up);
            }
        }
    }

    /// Stands still, pivots, looks, goes on. A guest that stands still already is left so.
    fn pivot(&mut self, index: usize) -> Result<()> {
        let domain = self.job.domain;
        // Asked now: the commit may have taken hours, and somebody who has suspended the guest meanwhile wants it to stand.
        if self.host.hypervisor.run_state(domain)? == Run::Running {
            self.record(&[Change::Held(Some(Held::Paused))])?;
            self.arm(Held::Paused)?;
            self.stands_since = Some(Instant::now());
            self.host.hypervisor.suspend(domain)?;
        }
        let turned = self.turn(index);
        // From here on as every round begins: look, set the configuration right, and only then let the guest go on.
        let sight = Sight::look(self.host.hypervisor, domain)?;
        let sight = self.settle(sight)?;
        let base = self.disk(index)?.base.path.clone();
        let seen = sight.disk(self.host.hypervisor, self.disk(index)?)?;
        let is_home = seen.top() == Some(base.as_path());
        self.resume(&sight)?;
        if is_home && turned.is_ok() {
            return self.move_disk(index, DiskState::Pivoted);
        }
        turned
    }

    /// Waits until nothing is left, and asks for the pivot.
    fn turn(&mut self, index: usize) -> Result<()> {
        let target = self.disk(index)?.target.clone();
        let (hypervisor, domain) = (self.host.hypervisor, self.job.domain);
        hypervisor.cap_block_job(domain, &target, 0)?;
        let until = Instant::now() + self.host.pace.pause_budget.mul_f64(0.7);
        let level = self.wait_level(index, until)?;
        self.move_disk(index, DiskState::Pivoting { level })?;
        loop {
            match hypervisor.end_block_job(domain, &target, JobEnd::Pivot) {
                // Level, and not told ready yet.
                Err(error)
                    if Fault::code_of(&error) == Some(code::BLOCK_COPY_ACTIVE)
                        && !Fault::lost(&error)
                        && Instant::now() < until =>
                {
                    std::thread::sleep(QUICK);
                    if hypervisor.block_job(domain, &target)?.is_none() {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }

    /// The overlay's mark at a moment when the base had everything.
    fn wait_level(&mut self, index: usize, until: Instant) -> Result<Option<Mark>> {
        let disk = self.disk(index)?;
        let (target, overlay) = (disk.target.clone(), disk.overlay.clone().unwrap_or_default());
        let mut mark = self.host.files.mark(&overlay)?;
        loop {
            let job = self.host.hypervisor.block_job(self.job.domain, &target)?;
            let gone =
                || Error::new(ErrorKind::Io, format!("the commit of {} broke off", self.name_of(&target)));
            let job = job.ok_or_else(gone)?;
            let after = self.host.files.mark(&overlay)?;
            if job.is_level() && after == mark {
                return Ok(mark);
            }
            if Instant::now() >= until {
                let rest = job.end.saturating_sub(job.current);
                let message = format!(
                    "{} writes faster than it can be committed: {rest} bytes were left at the end of the pause budget",
                    self.name_of(&target)
                );
                let hint = "run `virtfold recover` when it is quieter, or with a larger --pause-budget";
                return Err(Error::new(ErrorKind::InUse, message).with_hint(hint));
            }
            mark = after;
            std::thread::sleep(QUICK.min(self.host.pace.poll));
        }
    }
}

fn is_ready(event: &Event, disk: &str) -> bool {
    matches!(event, Event::BlockJob { target, status: BlockJobStatus::Ready, .. } if target == disk)
}
