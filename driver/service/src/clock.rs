//! The time, and the one place where the service waits: for a time, or for something to happen.
//!
//! Imports: `engine` (its inputs).

use std::fmt::Debug;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use jiff::Timestamp;

use super::engine::Input;

/// The longest wait in one go: the wall clock may be set, and a host that sleeps wakes up late.
const LONGEST: Duration = Duration::from_secs(15);
/// Longer than any service works.
const NEVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A moment that is later by a span; as good as never, where no clock goes so far.
pub fn later(moment: Instant, span: Duration) -> Instant {
    moment.checked_add(span).unwrap_or_else(|| moment + NEVER)
}

/// A clock.
pub trait Clock: Debug + Send + Sync {
    /// The time, as people have it; it may leap.
    fn now(&self) -> Timestamp;

    /// The time of a clock that nobody sets: how long something may take is measured by it.
    fn steady(&self) -> Instant;

    /// Waits for an input, at the longest until a time. `None`: look at the clock again.
    fn wait(&self, inputs: &Receiver<Input>, until: Option<Timestamp>) -> Option<Input>;
}

/// The host's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostClock;

impl Clock for HostClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn steady(&self) -> Instant {
        Instant::now()
    }

    fn wait(&self, inputs: &Receiver<Input>, until: Option<Timestamp>) -> Option<Input> {
        let left = until.map_or(LONGEST, |until| {
            let left = until.duration_since(self.now());
            Duration::try_from(left).unwrap_or(Duration::ZERO).min(LONGEST)
        });
        match inputs.recv_timeout(left) {
            Ok(input) => Some(input),
            Err(RecvTimeoutError::Timeout) => None,
            // The service holds a sender itself, so this does not happen; without the wait it would spin.
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(left);
                None
            }
        }
    }
}
