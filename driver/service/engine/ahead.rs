//! A clock that was ahead and is right again: what was noted by it would hold everything up until its times have come.
//!
//! Nothing that was noted as past and lies in the future is believed: a schedule that was planned up to there goes on from now, an entry waits no longer
//! than its job has entries wait, a run that ended there is not the last one. All of it is said.

use jiff::Timestamp;

use super::{Engine, GRACE, Phase, RECOVER_AGAIN};
use crate::error::Result;
use crate::service::control::{Warning, WarningKind};
use crate::service::model::JobSpec;
use crate::service::planner::{after, is_ahead};

impl Engine {
    /// A schedule goes on from now: whatever was noted as done was noted before now, whatever the clock said.
    pub(super) fn set_back(&mut self, job: &JobSpec, done: Timestamp, now: Timestamp) -> Result<()> {
        self.parts.queue.fire(&job.name, now, &[])?;
        if let Some(all) = &mut self.planned {
            all.insert(job.name.clone(), now);
        }
        tracing::error!(job = job.name, "{}", schedule_words(&job.name, done));
        self.clock_was_ahead.insert(job.name.clone(), done);
        Ok(())
    }

    /// Times to come that are kept in memory can't be further away than they were made.
    pub(super) fn bound(&mut self, now: Timestamp) {
        for active in self.running.values_mut() {
            let job = self.settings.job(&active.entry.wanted.job);
            if let Some(limit) = job.and_then(|job| job.timeout) {
                active.deadline = active.deadline.map(|deadline| deadline.min(after(now, limit)));
            }
            if let Some((_, Some(at))) = &mut active.ending {
                *at = (*at).min(after(now, GRACE));
            }
        }
        self.recover_at = self.recover_at.map(|at| at.min(after(now, RECOVER_AGAIN)));
        if let Phase::Stopping(until) = &mut self.phase {
            *until = (*until).min(after(now, self.settings.stop_timeout));
        }
    }

    /// What a person should know of a clock that was ahead.
    pub(super) fn ahead(&self, now: Timestamp) -> Result<Vec<Warning>> {
        let about = |subject: &str, sentence: String| Warning {
            kind: WarningKind::Clock,
            subject: subject.to_owned(),
            sentence,
        };
        let jobs = self.clock_was_ahead.iter();
        let mut warnings: Vec<Warning> =
            jobs.map(|(job, done)| about(job, schedule_words(job, *done))).collect();
        for entry in self.parts.queue.last_ends(Timestamp::MAX)? {
            let Some(ended) = entry.ended.filter(|ended| is_ahead(*ended, now)) else { continue };
            let name = &entry.wanted.name;
            let sentence = format!(
                "a backup of '{name}' is dated {ended}, which is still to come: the clock was ahead, or is behind now; it does not count as the last one"
            );
            warnings.push(about(name, sentence));
        }
        Ok(warnings)
    }
}

fn schedule_words(job: &str, done: Timestamp) -> String {
    format!(
        "the schedule of '{job}' was planned up to {done}, which is still to come: the clock was ahead, or is behind now; it goes on from now"
    )
}
