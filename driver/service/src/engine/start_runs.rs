//! From schedules and events to entries, and from entries to runs.

use std::sync::Arc;

use jiff::Timestamp;

use super::selections::GuestJobs;
use super::{Acknowledge, ActiveRun, BUSY, Engine, EnginePhase};
use crate::clock::later;
use crate::control::RunProgress;
use crate::job_spec::{GuestFacts, JobSpec, MediumSpec};
use crate::planner::{after, due, is_ahead, jitter, last_due, waits_until};
use crate::runner::{Chore, RunOrder};
use virtfold_base::error::{Error, Result, sentence};
use virtfold_catalog::queue::{EntryReason, EntryState, NewEntry, QueueEntry, RunEnd, RunResult};
use virtfold_hypervisor::DomainId;

/// What keeps an entry from being begun.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StartObstacle {
    /// It is not time yet.
    Until(Timestamp),
    /// Its job is no more.
    Gone,
    /// Something that ends with a run, or with somebody's word.
    Waits(String),
    /// Somebody else is at work on the domain.
    Busy(String),
}

/// Entries of the queue that are read at a time.
const PAGE: usize = 64;

/// Whether an entry is still before those that were behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moved {
    No,
    Away,
}

impl Engine {
    /// Turns schedules into entries up to now; says when the next one is due.
    pub(super) fn fire(&mut self, now: Timestamp) -> Result<Option<Timestamp>> {
        match self.quiet {
            Some((from, until)) if self.planned.is_some() && from <= now && now < until => {
                return Ok(Some(until));
            }
            _ => self.quiet = None,
        }
        if self.planned.is_none() {
            self.planned = Some(self.parts.queue.planned()?);
        }
        // Without the guests' list nobody knows whose entries to make; it is made up for.
        let known = self.guests.is_some() && self.libvirt.error.is_none();
        let mut next = None;
        for job in self.settings.jobs.clone() {
            if job.enabled {
                next = next.into_iter().chain(self.due_verification(&job, now)?).min();
            }
            if !job.enabled || job.calendars.is_empty() {
                continue;
            }
            let Some(done) = self.planned_of(&job.name) else {
                // A job that was never seen before has missed nothing.
                self.fired(&job, now, Vec::new())?;
                next = next.into_iter().chain(job.next_after(now)).min();
                continue;
            };
            if is_ahead(done, now) {
                self.set_back(&job, done, now)?;
                next = next.into_iter().chain(job.next_after(now)).min();
                continue;
            }
            if known
                && !self.pauses.holds(&job.name)
                && let Some(due) = due(&job, done, now)
            {
                let wanted = self.wanted(&job, &due.reason, due.planned);
                self.fired(&job, due.planned, wanted)?;
                self.clock_was_ahead.remove(&job.name);
            }
            next = next.into_iter().chain(job.next_after(now)).min();
        }
        self.quiet = next.map(|next| (now, next));
        Ok(next)
    }

    /// Notes that the backups of a job are to be verified, where that is due; says when it is next. A killed
    /// service forgets that it was: what was verified is in the catalog, and the next time goes on there.
    fn due_verification(&mut self, job: &JobSpec, now: Timestamp) -> Result<Option<Timestamp>> {
        if job.verify.is_empty() {
            return Ok(None);
        }
        // No job has such a name.
        let key = format!("verify:{}", job.name);
        let next = |time| job.verify_after(time);
        let done = self.planned_of(&key).filter(|done| !is_ahead(*done, now));
        let planned = match done {
            // One that was never seen before has missed nothing, nor has one that a wrong clock planned
            // ahead.
            None => Some(now),
            Some(_) if self.pauses.holds(&job.name) => None,
            Some(done) => last_due(&next, job.catch_up, done, now),
        };
        if let Some(planned) = planned {
            self.parts.queue.fire(&key, planned, &[])?;
            if let Some(all) = &mut self.planned {
                all.insert(key, planned);
            }
        }
        if planned.is_some() && done.is_some() {
            tracing::info!(job = job.name, "its backups are due to be verified");
            self.chores.insert((Chore::Verify, job.name.clone()));
        }
        Ok(next(now))
    }

    fn planned_of(&self, job: &str) -> Option<Timestamp> {
        self.planned.as_ref()?.get(job).copied()
    }

    fn fired(&mut self, job: &JobSpec, planned: Timestamp, wanted: Vec<NewEntry>) -> Result<()> {
        self.parts.queue.fire(&job.name, planned, &wanted)?;
        for wanted in &wanted {
            tracing::info!(job = job.name, domain = wanted.name, not_before = %wanted.not_before, "is due");
        }
        if let Some(all) = &mut self.planned {
            all.insert(job.name.clone(), planned);
        }
        Ok(())
    }

    fn wanted(&self, job: &JobSpec, reason: &EntryReason, planned: Timestamp) -> Vec<NewEntry> {
        let guests = self.guests.iter().flatten().filter(|guest| job.pick.guest(guest));
        guests
            .map(|guest| {
                let not_before = after(planned, jitter(job, guest.id));
                let (job, name) = (job.name.clone(), guest.name.clone());
                NewEntry { job, domain: guest.id, name, reason: reason.clone(), due: planned, not_before }
            })
            .collect()
    }

    /// Something happened to a guest: the jobs that wait for that get an entry. The event is done with once
    /// they are in the queue.
    pub(super) fn event(&mut self, guest: &GuestFacts, word: &str, receipt: Acknowledge, now: Timestamp) {
        let jobs = self.settings.jobs.iter().filter(|job| job.enabled && job.pick.guest(guest));
        let jobs = jobs.filter(|job| job.on.iter().any(|on| on == word));
        let wanted = jobs.map(|job| NewEntry {
            job: job.name.clone(),
            domain: guest.id,
            name: guest.name.clone(),
            reason: EntryReason::Event(word.to_owned()),
            due: now,
            not_before: now,
        });
        let wanted: Vec<NewEntry> = wanted.collect();
        let added = if wanted.is_empty() { Ok(Vec::new()) } else { self.parts.queue.add_all(&wanted) };
        match added {
            Ok(_) => receipt(),
            // It comes again, because nobody says that it is done with.
            Err(error) => tracing::error!(error = sentence(&error), "an event could not be noted"),
        }
        if GuestJobs::of(guest, &self.settings.jobs).is_forgotten() && guest.trouble.is_none() {
            tracing::warn!("the guest '{}' is in no job: nothing backs it up", guest.name);
        }
    }

    /// Begins what may begin; says when it is to be looked again. The queue is read a page at a time, and no
    /// further than to where the host has as many runs as it may have: nothing behind that can begin before
    /// one of them ends.
    pub(super) fn begin(&mut self, now: Timestamp) -> Result<Option<Timestamp>> {
        let mut wake: Option<Timestamp> = None;
        let mut seen = 0;
        while self.running.len() < self.settings.concurrency {
            let page = self.parts.queue.open_page(seen, PAGE)?;
            for entry in &page {
                seen += 1;
                if self.running.len() >= self.settings.concurrency {
                    break;
                }
                let (again, moved) = self.try_begin(entry, now)?;
                wake = wake.into_iter().chain(again).min();
                // What was taken out of the order lets those behind it move up.
                seen -= u64::from(moved == Moved::Away);
            }
            if page.len() < PAGE {
                break;
            }
        }
        Ok(if self.ended.is_empty() { wake } else { Some(now) })
    }

    /// Begins an entry if nothing keeps it; says when it is to be looked at again.
    fn try_begin(&mut self, entry: &QueueEntry, now: Timestamp) -> Result<(Option<Timestamp>, Moved)> {
        if entry.state == EntryState::Running {
            if self.running.contains_key(&entry.id) {
                return Ok((None, Moved::No));
            }
            // It was noted, and the answer got lost: nothing was begun.
            self.parts.queue.end(entry.id, now, &RunEnd::Parked)?;
            return Ok((Some(now), Moved::Away));
        }
        Ok(match self.obstacle(entry, now) {
            None => {
                self.start(entry, now)?;
                (None, Moved::No)
            }
            Some(StartObstacle::Gone) => {
                let why = format!("the job '{}' is not in the configuration any more", entry.wanted.job);
                self.parts.queue.cancel(entry.id, now, &why)?;
                (None, Moved::Away)
            }
            Some(StartObstacle::Until(time)) => (Some(time), Moved::No),
            Some(StartObstacle::Busy(_)) => (Some(after(now, BUSY)), Moved::No),
            Some(StartObstacle::Waits(_)) => (None, Moved::No),
        })
    }

    /// What keeps a waiting entry from being begun.
    pub(super) fn obstacle(&self, entry: &QueueEntry, now: Timestamp) -> Option<StartObstacle> {
        let wanted = &entry.wanted;
        let waits = |what: &str| Some(StartObstacle::Waits(what.to_owned()));
        let Some(job) = self.settings.job(&wanted.job) else { return Some(StartObstacle::Gone) };
        if let Some(time) = waits_until(job, wanted.not_before, now) {
            return Some(StartObstacle::Until(time));
        }
        if self.phase != EnginePhase::Working || self.recovering || self.recover_at.is_some() {
            return waits("guests are being recovered");
        }
        if self.libvirt.error.is_some() {
            return waits("libvirt can't be reached");
        }
        if wanted.reason != EntryReason::Request && self.pauses.holds(&wanted.job) {
            return waits(if self.pauses.all { "everything is paused" } else { "the job is paused" });
        }
        if self.running.values().any(|active| active.entry.wanted.domain == wanted.domain) {
            return waits("another run of this guest");
        }
        if self.running.len() >= self.settings.concurrency {
            return Some(StartObstacle::Waits(format!(
                "the host's limit of {} runs is reached",
                self.running.len()
            )));
        }
        for medium in job.media.iter().filter_map(|name| self.settings.media.get(name)) {
            let runs = self.running.values().filter(|active| active.media.contains(&medium.name)).count();
            if runs >= medium.concurrency {
                return Some(StartObstacle::Waits(format!("the medium '{}' is in use", medium.name)));
            }
        }
        self.parts.runner.busy(wanted.domain).map(StartObstacle::Busy)
    }

    fn start(&mut self, entry: &QueueEntry, now: Timestamp) -> Result<()> {
        let Some(job) = self.settings.job(&entry.wanted.job).map(Arc::clone) else { return Ok(()) };
        let media: Vec<MediumSpec> =
            job.media.iter().filter_map(|name| self.settings.media.get(name)).cloned().collect();
        let names = media.iter().map(|medium| medium.name.clone()).collect();
        let deadline = job.timeout.map(|limit| later(self.parts.clock.steady(), limit));
        let guest = self.guest_of(entry.wanted.domain, &entry.wanted.name);
        if entry.wanted.not_before > now {
            tracing::warn!(
                entry = entry.id,
                job = job.name,
                "it was to wait until {}: the clock was ahead when that was recorded; it starts now",
                entry.wanted.not_before
            );
        }
        self.parts.queue.start(entry.id, now)?;
        let mut entry = entry.clone();
        entry.attempts = entry.attempts.saturating_add(1);
        entry.started = Some(now);
        entry.state = EntryState::Running;
        tracing::info!(
            entry = entry.id,
            job = job.name,
            domain = guest.name,
            attempt = entry.attempts,
            "begins"
        );
        let (tried, attempts) = (entry.attempts, job.attempts);
        match self
            .parts
            .runner
            .start(RunOrder { id: entry.id, job: Arc::clone(&job), media, guest }, &self.parts.sender)
        {
            Ok(handle) => {
                let progress = RunProgress { phase: "starting".to_owned(), done: 0, total: 0, seconds: 0 };
                let active = ActiveRun { entry, media: names, handle, progress, deadline, ending: None };
                self.running.insert(active.entry.id, active);
            }
            Err(error) => {
                let end = again(not_begun(&error), tried, attempts, after(now, job.delay));
                self.ended.push((entry.id, end));
            }
        }
        Ok(())
    }

    fn guest_of(&self, id: DomainId, name: &str) -> GuestFacts {
        let known = self.guests.iter().flatten().find(|guest| guest.id == id).cloned();
        known.unwrap_or_else(|| GuestFacts {
            id,
            name: name.to_owned(),
            tags: Vec::new(),
            disks: Vec::new(),
            trouble: None,
        })
    }
}

/// A failure: it is tried again, or not.
pub(super) fn again(result: RunResult, tried: u32, attempts: u32, at: Timestamp) -> RunEnd {
    if tried < attempts { RunEnd::Retry(result, at) } else { RunEnd::Failed(result) }
}

fn not_begun(error: &Error) -> RunResult {
    RunResult {
        sentence: sentence(error),
        hint: error.hint().map(str::to_owned),
        kind: Some(error.kind()),
        ..RunResult::default()
    }
}
