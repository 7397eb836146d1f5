//! What a schedule asks for at a time, as pure functions.
//!
//! A job's schedule has been turned into entries up to a time `done`. Of all its times since then, and not
//! longer ago than the job's catch-up, the last one counts: one run makes up for however many were missed. Up
//! to [`LATE`] nothing counts as missed.
//!
//! Imports: `job_spec`, `catalog` (plain types), `hypervisor` (plain types).

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::job_spec::JobSpec;
use virtfold_catalog::queue::EntryReason;
use virtfold_hypervisor::DomainId;

/// A run that is late by less was not missed: the service was only busy.
pub const LATE: Duration = Duration::from_secs(60);
/// How far ahead of the clock a stored time may be: clocks are set back by moments all the time. What is
/// further ahead was noted by a clock that was wrong, and is not believed, or nothing would happen until
/// then.
pub const AHEAD: Duration = Duration::from_secs(600);
/// The most times of a schedule that are looked at in one go: a week of minutes.
const MOST: usize = 11_000;

/// A time of a schedule that is to become entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueTime {
    /// The schedule's time.
    pub planned: Timestamp,
    /// Whether it is on time.
    pub reason: EntryReason,
}

/// A time that is earlier by a span; at the beginning of times, that.
pub fn before(time: Timestamp, span: Duration) -> Timestamp {
    SignedDuration::try_from(span).ok().and_then(|span| time.checked_sub(span).ok()).unwrap_or(Timestamp::MIN)
}

/// A time that is later by a span; at the end of times, that.
pub fn after(time: Timestamp, span: Duration) -> Timestamp {
    SignedDuration::try_from(span).ok().and_then(|span| time.checked_add(span).ok()).unwrap_or(Timestamp::MAX)
}

/// Whether a time that was noted as past lies in the future, by more than clocks are set back by.
pub fn is_ahead(time: Timestamp, now: Timestamp) -> bool {
    time > after(now, AHEAD)
}

/// Until when an entry is to wait, where that can be: no longer than its job's jitter, or its wait before
/// another attempt.
pub fn waits_until(job: &JobSpec, not_before: Timestamp, now: Timestamp) -> Option<Timestamp> {
    let longest = after(now, job.jitter.max(job.delay).saturating_add(AHEAD));
    (not_before > now && not_before <= longest).then_some(not_before)
}

/// The last of a schedule's times up to `now` and behind `done`, not longer ago than `catch_up`; `next_after`
/// gives the times.
pub fn last_due(
    next_after: &dyn Fn(Timestamp) -> Option<Timestamp>,
    catch_up: Duration,
    done: Timestamp,
    now: Timestamp,
) -> Option<Timestamp> {
    let mut time = done.max(before(now, catch_up.max(LATE)));
    let mut last = None;
    for _ in 0..MOST {
        match next_after(time).filter(|next| *next <= now && *next > time) {
            Some(next) => (time, last) = (next, Some(next)),
            None => break,
        }
    }
    last
}

/// What is due at `now` of a job whose schedule is turned into entries up to `done`.
pub fn due(job: &JobSpec, done: Timestamp, now: Timestamp) -> Option<DueTime> {
    let planned = last_due(&|time| job.next_after(time), job.catch_up, done, now)?;
    let reason = if after(planned, LATE) >= now { EntryReason::Schedule } else { EntryReason::CatchUp };
    Some(DueTime { planned, reason })
}

/// How much later a domain's run of a job begins: the same at each run, and spread over the domains and the
/// jobs.
pub fn jitter(job: &JobSpec, domain: DomainId) -> Duration {
    let most = u64::try_from(job.jitter.as_millis()).unwrap_or(u64::MAX);
    let mut hash = blake3::Hasher::new();
    hash.update(job.name.as_bytes()).update(domain.0.as_bytes());
    let mut eight = [0; 8];
    hash.finalize_xof().fill(&mut eight);
    Duration::from_millis(u64::from_le_bytes(eight) % most.saturating_add(1).max(1))
}
