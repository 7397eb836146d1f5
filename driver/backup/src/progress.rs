//! How far a job is: counters that workers add to and whoever shows them reads, at its own pace.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A job's progress. Cheap to add to from any thread.
#[derive(Debug, Default)]
pub struct Progress {
    phase: Mutex<Option<(&'static str, Instant)>>,
    total: AtomicU64,
    done: Arc<AtomicU64>,
}

/// One look at a [`Progress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgressSnapshot {
    /// What is being done, a word.
    pub phase: &'static str,
    /// Bytes of data in all; zero while not known.
    pub total: u64,
    /// Bytes of data done.
    pub done: u64,
    /// Time since the phase began.
    pub elapsed: Duration,
}

impl ProgressSnapshot {
    /// The mean rate since the phase began, bytes a second, and the time that is left at it.
    pub fn pace(&self) -> (u64, Option<Duration>) {
        let millis = self.elapsed.as_millis().max(1);
        let rate = u64::try_from(u128::from(self.done) * 1000 / millis).unwrap_or(u64::MAX);
        let left = self.total.saturating_sub(self.done).checked_div(rate).map(Duration::from_secs);
        (rate, left.filter(|_| self.total > 0))
    }
}

impl Progress {
    /// Enters a phase of `total` bytes (zero where not known); the count begins anew.
    pub fn enter(&self, phase: &'static str, total: u64) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = Some((phase, Instant::now()));
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    /// Adds `bytes` done.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The counter itself, for a pipeline that knows nothing of jobs.
    pub fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.done)
    }

    /// How it stands.
    pub fn snapshot(&self) -> ProgressSnapshot {
        let phase = *self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        ProgressSnapshot {
            phase: phase.map_or("starting", |(name, _)| name),
            total: self.total.load(Ordering::Relaxed),
            done: self.done.load(Ordering::Relaxed),
            elapsed: phase.map_or(Duration::ZERO, |(_, since)| since.elapsed()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_is_the_phase_s_own() {
        let now =
            ProgressSnapshot { phase: "copying", total: 300, done: 100, elapsed: Duration::from_secs(2) };
        assert_eq!(now.pace(), (50, Some(Duration::from_secs(4))));
        assert_eq!(ProgressSnapshot { done: 0, ..now }.pace(), (0, None));
        assert_eq!(ProgressSnapshot { total: 0, ..now }.pace(), (50, None));
    }
}
