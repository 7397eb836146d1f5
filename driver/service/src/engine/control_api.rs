//! The control API: what people and programs ask is answered between two turns of the loop.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use jiff::Timestamp;
use uuid::Uuid;

use super::start_runs::StartObstacle;
use super::{Engine, EnginePhase, Input, Question};
use crate::control::{
    ControlApi, DomainStatus, EntryId, EntryOrigin, EntryState, EntryStatus, JobStatus, LastFailure,
    LastSuccess, LibvirtStatus, RunningEntry, ServiceState, ServiceStatus, Status,
};
use crate::job_spec::{GuestFacts, JobSpec};
use crate::planner::{AHEAD, after};
use virtfold_backup::metrics::BackupMetrics;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_catalog::queue::{self, EntryReason, NewEntry, Pause, RunResult};

/// How long an answer may take; the catalog itself waits 30 s for another process.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks the engine, from any thread.
#[derive(Clone, Debug)]
pub struct EngineControlApi {
    sender: Sender<Input>,
}

impl EngineControlApi {
    /// That of the engine that gets these inputs.
    pub fn new(sender: Sender<Input>) -> Self {
        Self { sender }
    }

    fn ask<T: Send + 'static>(
        &self,
        kind: fn(Question) -> Input,
        question: impl FnOnce(&mut Engine) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = bounded(1);
        let asked = self.sender.send(kind(Box::new(move |engine| {
            if answer.send(question(engine)).is_err() {
                tracing::debug!("nobody waits for the answer any more");
            }
        })));
        let given = asked.ok().and_then(|()| answered.recv_timeout(PATIENCE).ok());
        given.unwrap_or_else(|| {
            Err(Error::new(ErrorKind::Refused, "the service does not answer; it may be stopping"))
        })
    }
}

impl ControlApi for EngineControlApi {
    fn status(&self) -> Result<Status> {
        self.ask(Input::Look, |engine| engine.status())
    }

    fn queue(&self) -> Result<Vec<EntryStatus>> {
        self.ask(Input::Look, |engine| {
            let open = engine.parts.queue.open_entries()?;
            Ok(open.iter().map(|entry| engine.told(entry)).collect())
        })
    }

    fn entry(&self, id: EntryId) -> Result<EntryStatus> {
        self.ask(Input::Look, move |engine| engine.parts.queue.entry(id.0).map(|entry| engine.told(&entry)))
    }

    fn run(&self, job: &str, domain: Option<&str>) -> Result<Vec<EntryId>> {
        let (job, domain) = (job.to_owned(), domain.map(str::to_owned));
        self.ask(Input::Ask, move |engine| engine.request(&job, domain.as_deref()))
    }

    fn pause(&self, job: Option<&str>) -> Result<()> {
        let job = job.map(str::to_owned);
        self.ask(Input::Ask, move |engine| engine.pause(job.as_deref(), Pause::On))
    }

    fn resume(&self, job: Option<&str>) -> Result<()> {
        let job = job.map(str::to_owned);
        self.ask(Input::Ask, move |engine| engine.pause(job.as_deref(), Pause::Off))
    }

    fn cancel(&self, id: EntryId) -> Result<()> {
        self.ask(Input::Ask, move |engine| engine.cancel(id.0))
    }

    fn reload(&self) -> Result<()> {
        self.ask(Input::Ask, Engine::reload)
    }
}

impl Engine {
    fn job_named(&self, name: &str) -> Result<std::sync::Arc<JobSpec>> {
        let job = self.settings.job(name).cloned();
        job.ok_or_else(|| {
            let error = Error::new(ErrorKind::NotFound, format!("there is no job '{name}'"));
            error.with_hint("'virtfold status' lists the jobs")
        })
    }

    pub(super) fn request(&self, job: &str, domain: Option<&str>) -> Result<Vec<EntryId>> {
        if matches!(self.phase, EnginePhase::Stopping(_)) {
            return Err(Error::new(ErrorKind::Refused, "the service is stopping"));
        }
        let job = self.job_named(job)?;
        let unknown = || {
            let error =
                Error::new(ErrorKind::Refused, "no guests are known yet: libvirt was not queried yet");
            error.with_hint("'virtfold status' shows why; a service that has just started knows them soon")
        };
        let guests = self.guests.as_ref().ok_or_else(unknown)?;
        let is =
            |guest: &GuestFacts| domain.is_none_or(|name| name == guest.name || guest.id.to_string() == name);
        let guests: Vec<&GuestFacts> =
            guests.iter().filter(|guest| job.pick.guest(guest) && is(guest)).collect();
        if guests.is_empty() {
            let what = domain.map_or_else(
                || format!("the job '{}' has no guests", job.name),
                |domain| format!("job '{}' has no guest '{domain}'", job.name),
            );
            return Err(Error::new(ErrorKind::NotFound, what));
        }
        let now = self.parts.clock.now();
        let wanted = |guest: &GuestFacts| NewEntry {
            job: job.name.clone(),
            domain: guest.id,
            name: guest.name.clone(),
            reason: EntryReason::Request,
            due: now,
            not_before: now,
        };
        let wanted: Vec<NewEntry> = guests.into_iter().map(wanted).collect();
        Ok(self.parts.queue.add_all(&wanted)?.into_iter().map(EntryId).collect())
    }

    pub(super) fn pause(&mut self, job: Option<&str>, to: Pause) -> Result<()> {
        // What is paused may have left the configuration since.
        if let (Some(job), Pause::On) = (job, to) {
            self.job_named(job)?;
        }
        self.parts.queue.set_pause(job, to)?;
        self.quiet = None;
        self.pauses = self.parts.queue.pauses()?;
        Ok(())
    }

    pub(super) fn cancel(&mut self, id: i64) -> Result<()> {
        let entry = self.parts.queue.entry(id)?;
        if entry.state.is_end() {
            return Err(Error::new(ErrorKind::Exists, format!("entry {id} has ended")));
        }
        let now = self.parts.clock.now();
        if self.running.contains_key(&id) {
            self.cancel_run(id);
            return Ok(());
        }
        self.parts.queue.cancel(id, now, "somebody cancelled it")
    }

    pub(super) fn status(&mut self) -> Result<Status> {
        let waiting = self.parts.queue.waiting()?;
        let now = self.parts.clock.now();
        let (jobs, mut domains) = (self.job_status(now), self.domain_status(now)?);
        let running = self.running.values();
        let replaced = self.take_replaced(&mut domains);
        Ok(Status {
            service: ServiceStatus {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                since: self.since.as_second(),
                now: now.as_second(),
                state: match self.phase {
                    EnginePhase::Starting => ServiceState::Starting,
                    EnginePhase::Working => ServiceState::Running,
                    EnginePhase::Stopping(_) => ServiceState::Stopping,
                },
            },
            libvirt: LibvirtStatus {
                uri: self.libvirt.uri.clone(),
                error: self.libvirt.error.clone(),
                since: self.libvirt.since.as_second(),
            },
            guests: self.guest_status(),
            paused: self.pauses.all,
            running: running
                .map(|active| RunningEntry {
                    entry: self.told(&active.entry),
                    progress: active.progress.clone(),
                })
                .collect(),
            queued: waiting.count,
            queued_since: waiting.since.map(|since| since.min(now).as_second()),
            jobs,
            domains,
            replaced,
            warnings: self.warnings().into_iter().chain(self.ahead(now)?).collect(),
        })
    }

    fn job_status(&mut self, now: Timestamp) -> Vec<JobStatus> {
        let mut domains: Vec<Vec<String>> = vec![Vec::new(); self.settings.jobs.len()];
        for guest in self.guests.iter().flatten() {
            for job in &self.selections.of(guest.id).jobs {
                if let Some(domains) = domains.get_mut(*job) {
                    domains.push(guest.name.clone());
                }
            }
        }
        let (next_due, pauses) = (&mut self.next_due, &self.pauses);
        let status = |(job, domains): (&std::sync::Arc<JobSpec>, Vec<String>)| JobStatus {
            job: job.name.clone(),
            enabled: job.enabled,
            paused: pauses.jobs.contains(&job.name),
            domains,
            next_due: next_due.of(job, now).filter(|_| job.enabled).map(Timestamp::as_second),
        };
        self.settings.jobs.iter().zip(domains).map(status).collect()
    }

    /// Takes those out that are no more because another guest has the name of each: one that was defined anew
    /// is another one.
    fn take_replaced(&self, domains: &mut Vec<DomainStatus>) -> Vec<Uuid> {
        let guests = || self.guests.iter().flatten();
        let there: BTreeSet<Uuid> = guests().map(|guest| guest.id.0).collect();
        let taken: BTreeSet<&str> = guests().map(|guest| guest.name.as_str()).collect();
        let is_there = |uuid: Option<Uuid>| uuid.is_some_and(|uuid| there.contains(&uuid));
        let gone =
            domains.extract_if(.., |domain| !is_there(domain.uuid) && taken.contains(domain.domain.as_str()));
        gone.filter_map(|domain| domain.uuid).collect()
    }

    fn domain_status(&mut self, now: Timestamp) -> Result<Vec<DomainStatus>> {
        let mut all: BTreeMap<Uuid, DomainStatus> = BTreeMap::new();
        let blank = |name: &str, uuid| DomainStatus {
            domain: name.to_owned(),
            uuid: Some(uuid),
            jobs: Vec::new(),
            last_success: None,
            last_failure: None,
        };
        for entry in self.last_ends.by(self.parts.queue.as_ref(), after(now, AHEAD))? {
            let status = all.entry(entry.domain).or_insert_with(|| blank(&entry.name, entry.domain));
            let at = |success: &Option<LastSuccess>| success.as_ref().map(|success| success.measure.at);
            if at(&entry.success) > at(&status.last_success) {
                status.last_success.clone_from(&entry.success);
            }
            let at = |failure: &Option<LastFailure>| failure.as_ref().map(|failure| failure.at);
            if at(&entry.failure) > at(&status.last_failure) {
                status.last_failure.clone_from(&entry.failure);
            }
        }
        for guest in self.guests.iter().flatten() {
            let jobs =
                self.selections.of(guest.id).jobs.iter().filter_map(|job| self.settings.jobs.get(*job));
            let jobs: Vec<String> = jobs.filter(|job| job.enabled).map(|job| job.name.clone()).collect();
            if !jobs.is_empty() || all.contains_key(&guest.id.0) {
                let status = all.entry(guest.id.0).or_insert_with(|| blank(&guest.name, guest.id.0));
                (status.jobs, status.domain) = (jobs, guest.name.clone());
            }
        }
        let mut all: Vec<DomainStatus> = all.into_values().collect();
        all.sort_by(|a, b| a.domain.cmp(&b.domain));
        Ok(all)
    }

    /// An entry, as it is told.
    pub(super) fn told(&self, entry: &queue::QueueEntry) -> EntryStatus {
        let now = self.parts.clock.now();
        let wanted = &entry.wanted;
        let asked_to_end = self.running.get(&entry.id).is_some_and(|active| active.ending.is_some());
        let waits = !entry.state.is_end() && entry.state != queue::EntryState::Running;
        EntryStatus {
            id: EntryId(entry.id),
            job: wanted.job.clone(),
            domain: wanted.name.clone(),
            uuid: Some(wanted.domain.0),
            state: match entry.state {
                queue::EntryState::Waiting | queue::EntryState::Parked => EntryState::Waiting,
                queue::EntryState::Running if asked_to_end => EntryState::Ending,
                queue::EntryState::Running => EntryState::Running,
                queue::EntryState::Succeeded => EntryState::Succeeded,
                queue::EntryState::Failed => EntryState::Failed,
                queue::EntryState::Cancelled => EntryState::Cancelled,
            },
            trigger: match &wanted.reason {
                EntryReason::Schedule => EntryOrigin::Schedule,
                EntryReason::CatchUp => EntryOrigin::CatchUp,
                EntryReason::Event(word) => EntryOrigin::Event(word.clone()),
                EntryReason::Request => EntryOrigin::Request,
            },
            due: wanted.due.as_second(),
            not_before: (wanted.not_before != wanted.due).then(|| wanted.not_before.as_second()),
            waits_for: waits.then(|| self.obstacle(entry, now)).flatten().and_then(
                |obstacle| match obstacle {
                    StartObstacle::Waits(what) | StartObstacle::Busy(what) => Some(what),
                    StartObstacle::Until(_) | StartObstacle::Gone => None,
                },
            ),
            started: entry.started.map(Timestamp::as_second),
            ended: entry.ended.map(Timestamp::as_second),
            attempts: entry.attempts,
            failure: failure(entry),
            archives: entry.result.iter().flat_map(|result| result.archives.clone()).collect(),
        }
    }
}

pub(super) fn success(entry: &queue::QueueEntry) -> Option<LastSuccess> {
    let result = entry.result.as_ref().filter(|result| result.kind.is_none())?;
    Some(LastSuccess {
        job: entry.wanted.job.clone(),
        archives: result.archives.clone(),
        measure: measure(result)?,
    })
}

/// What a good run was like, as the runner noted it.
pub(super) fn measure(result: &RunResult) -> Option<BackupMetrics> {
    serde_json::from_value(result.measure.clone()?).ok()
}

pub(super) fn failure(entry: &queue::QueueEntry) -> Option<LastFailure> {
    let result = entry.result.as_ref()?;
    Some(LastFailure {
        at: entry.ended?.as_second(),
        job: entry.wanted.job.clone(),
        kind: result.kind?,
        sentence: result.sentence.clone(),
        hint: result.hint.clone(),
    })
}
