//! A clock that was ahead and is right again: what was noted by it would hold everything up until its times
//! have come.
//!
//! Nothing that was noted as past and lies in the future is believed: a schedule that was planned up to there
//! goes on from now, an entry waits no longer than its job has entries wait, a run that ended there is not
//! the last one. All of it is said.

use jiff::Timestamp;

use super::{Engine, RECOVER_AGAIN};
use crate::control::{Warning, WarningKind};
use crate::job_spec::JobSpec;
use crate::planner::{AHEAD, after};
use virtfold_base::error::Result;

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

    /// A time to come that is kept in memory can't be further away than it was made. What a run may take is
    /// measured by a clock that does not leap.
    pub(super) fn bound(&mut self, now: Timestamp) {
        self.recover_at = self.recover_at.map(|at| at.min(after(now, RECOVER_AGAIN)));
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
        for entry in self.parts.queue.last_ends_after(after(now, AHEAD))? {
            let Some(ended) = entry.ended else { continue };
            let name = &entry.wanted.name;
            let sentence = format!(
                "a backup of '{name}' is dated {ended}, which is in the future: the clock was ahead, or is behind now; it does not count as the last one"
            );
            warnings.push(about(name, sentence));
        }
        Ok(warnings)
    }
}

fn schedule_words(job: &str, done: Timestamp) -> String {
    format!(
        "the schedule of '{job}' was planned up to {done}, which is in the future: the clock was ahead, or is behind now; it continues from now"
    )
}
