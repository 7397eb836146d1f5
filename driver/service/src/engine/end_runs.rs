//! How runs end: by themselves, over their time, cancelled, with the service, or with a service that was
//! killed.

use std::time::Instant;

use jiff::Timestamp;

use super::control_api::measure;
use super::start_runs::again;
use super::{ActiveRun, Engine, EngineParts, EnginePhase, GRACE, StopReason};
use crate::clock::later;
use crate::metrics::RunMetrics;
use crate::planner::after;
use crate::runner::{Chore, ChoreOrder};
use virtfold_backup::metrics::DomainLabels;
use virtfold_base::error::{ErrorKind, Result, sentence};
use virtfold_catalog::queue::{EntryState, QueueEntry, RunEnd, RunResult};

impl Engine {
    /// A run ended.
    pub(super) fn ended(&mut self, id: i64, result: RunResult, now: Timestamp) {
        let Some(active) = self.running.remove(&id) else {
            tracing::warn!(entry = id, "something ended that does not run");
            return;
        };
        let wanted = &active.entry.wanted;
        match result.kind {
            None => tracing::info!(
                entry = id,
                job = wanted.job,
                domain = wanted.name,
                "done: {}",
                result.sentence
            ),
            Some(_) => tracing::error!(
                entry = id,
                job = wanted.job,
                domain = wanted.name,
                "failed: {}",
                result.sentence
            ),
        }
        let end = self.judge(&active, result, now);
        if matches!(end, RunEnd::Succeeded(_)) && self.settings.job(&wanted.job).is_some_and(|job| job.prune)
        {
            self.chores.insert((Chore::Prune, wanted.job.clone()));
        }
        self.ended.push((id, end));
    }

    /// What becomes of an entry whose run ended.
    fn judge(&self, active: &ActiveRun, mut result: RunResult, now: Timestamp) -> RunEnd {
        if result.kind.is_none() {
            return RunEnd::Succeeded(result);
        }
        let wanted = &active.entry.wanted;
        let job = self.settings.job(&wanted.job);
        let by_us = result.kind == Some(ErrorKind::Interrupted);
        match active.ending {
            Some((StopReason::Cancelled, _)) if by_us => return RunEnd::Cancelled(result),
            Some((StopReason::Stopping, _)) if by_us => return RunEnd::Parked,
            Some((StopReason::TimedOut, _)) if by_us => {
                let limit = job.and_then(|job| job.timeout).unwrap_or_default();
                let long = limit.as_secs();
                result.sentence = format!("the backup of '{}' timed out after {long} s", wanted.name);
                result.hint = Some("the job's `timeout` sets the limit".to_owned());
            }
            _ => {}
        }
        match job {
            Some(job) => again(result, active.entry.attempts, job.attempts, after(now, job.delay)),
            None => RunEnd::Failed(result),
        }
    }

    /// Notes what ended.
    pub(super) fn note_ends(&mut self, now: Timestamp) -> Result<()> {
        while let Some((id, end)) = self.ended.first().cloned() {
            if let Err(error) = self.parts.queue.end(id, now, &end) {
                // It may have been noted all the same.
                if self.parts.queue.entry(id)?.state == EntryState::Running {
                    return Err(error);
                }
            }
            self.ended.remove(0);
            self.count(id, &end)?;
        }
        Ok(())
    }

    /// Counts a run that ended, with a backup or without.
    fn count(&self, id: i64, end: &RunEnd) -> Result<()> {
        let measure = match end {
            RunEnd::Succeeded(result) => measure(result),
            RunEnd::Failed(_) | RunEnd::Retry(..) => None,
            RunEnd::Cancelled(_) | RunEnd::Parked => return Ok(()),
        };
        let wanted = self.parts.queue.entry(id)?.wanted;
        let labels = DomainLabels { domain: &wanted.name, uuid: wanted.domain.0 };
        self.parts.metrics.run_ended(&RunMetrics { labels, measure: measure.as_ref() });
        Ok(())
    }

    /// Presses on what is to end.
    pub(super) fn press(&mut self, now: Instant) {
        let stopping = match self.phase {
            EnginePhase::Stopping(until) => until <= now,
            _ => false,
        };
        for active in self.running.values_mut() {
            let over = active.deadline.is_some_and(|deadline| deadline <= now);
            match active.ending {
                None if stopping => ask(active, StopReason::Stopping, now),
                None if over => ask(active, StopReason::TimedOut, now),
                Some((why, Some(at))) if at <= now => {
                    tracing::warn!(entry = active.entry.id, "did not end in time, and is ended by force");
                    active.handle.kill();
                    active.ending = Some((why, None));
                }
                _ => {}
            }
        }
    }

    /// When there is something to press next.
    pub(super) fn next_press(&self) -> Option<Instant> {
        let runs = self.running.values();
        let times = runs.filter_map(|active| match active.ending {
            None => active.deadline,
            Some((_, at)) => at,
        });
        let stop = match self.phase {
            EnginePhase::Stopping(until) if self.running.values().any(|active| active.ending.is_none()) => {
                Some(until)
            }
            _ => None,
        };
        times.chain(stop).min()
    }

    /// Asks a run to end because somebody cancels it.
    pub(super) fn cancel_run(&mut self, id: i64) {
        let now = self.parts.clock.steady();
        if let Some(active) = self.running.get_mut(&id).filter(|active| active.ending.is_none()) {
            ask(active, StopReason::Cancelled, now);
        }
    }

    /// The service is to end.
    pub(super) fn stop(&mut self) {
        let now = self.parts.clock.steady();
        let until = match self.phase {
            EnginePhase::Stopping(_) => now,
            _ => later(now, self.settings.stop_timeout),
        };
        tracing::info!(running = self.running.len(), "the service ends");
        self.phase = EnginePhase::Stopping(until);
        let limit = self.settings.stop_timeout.saturating_add(GRACE);
        self.systemd.stopping(&self.line(), limit);
    }

    /// Begins chores, of each kind one at a time, once nothing of the job runs.
    pub(super) fn begin_chores(&mut self) {
        for chore in [Chore::Prune, Chore::Verify] {
            if self.doing.contains_key(&chore) {
                continue;
            }
            let runs = |job: &str| self.running.values().any(|active| active.entry.wanted.job == job);
            let next = self.chores.iter().find(|(kind, job)| *kind == chore && !runs(job)).cloned();
            let Some((_, name)) = next else { continue };
            self.chores.remove(&(chore, name.clone()));
            let Some(job) = self.settings.job(&name) else { continue };
            let media = job.media.iter().filter_map(|name| self.settings.media.get(name)).cloned();
            let metrics_dir = self.settings.metrics_dir.clone();
            let order = ChoreOrder { chore, job: name.clone(), media: media.collect(), metrics_dir };
            self.parts.runner.chore(order, &self.parts.sender);
            self.doing.insert(chore, name);
        }
    }

    /// A chore of a job was done, or not.
    pub(super) fn chore_done(&mut self, chore: Chore, job: String, outcome: Result<()>) {
        self.doing.remove(&chore);
        match outcome {
            Ok(()) => {
                self.chore_failures.remove(&(chore, job));
            }
            Err(error) => {
                tracing::error!(job, error = sentence(&error), "{}", chore.failure());
                self.chore_failures.insert((chore, job), sentence(&error));
            }
        }
    }
}

/// What an earlier service left waits again, or has failed where services die of it.
pub(super) fn recall(parts: &EngineParts, now: Timestamp) -> Result<()> {
    for QueueEntry { id, wanted, state, result, .. } in parts.queue.recall(now)? {
        if state == EntryState::Failed {
            let why = result.map(|result| result.sentence).unwrap_or_default();
            tracing::error!(entry = id, job = wanted.job, domain = wanted.name, "failed: {why}");
            let labels = DomainLabels { domain: &wanted.name, uuid: wanted.domain.0 };
            parts.metrics.run_ended(&RunMetrics { labels, measure: None });
        } else {
            tracing::warn!(
                entry = id,
                domain = wanted.name,
                "ran when the service was killed; it is started over"
            );
        }
    }
    Ok(())
}

fn ask(active: &mut ActiveRun, why: StopReason, now: Instant) {
    tracing::info!(entry = active.entry.id, ?why, "is asked to end");
    active.handle.end();
    active.ending = Some((why, Some(later(now, GRACE))));
}
