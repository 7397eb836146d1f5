//! How far a job is: counters that workers add to and whoever shows them reads, at its own pace.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A job's progress. Cheap to add to from any thread.
#[derive(Debug, Default)]
pub struct Progress {
    phase: Mutex<&'static str>,
    total: AtomicU64,
    done: Arc<AtomicU64>,
}

/// One look at a [`Progress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What is being done, a word.
    pub phase: &'static str,
    /// Bytes of data in all; zero while not known.
    pub total: u64,
    /// Bytes of data done.
    pub done: u64,
}

impl Progress {
    /// Enters a phase of `total` bytes (zero where not known); the count begins anew.
    pub fn enter(&self, phase: &'static str, total: u64) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
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
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            phase: *self.phase.lock().unwrap_or_else(PoisonError::into_inner),
            total: self.total.load(Ordering::Relaxed),
            done: self.done.load(Ordering::Relaxed),
        }
    }
}
