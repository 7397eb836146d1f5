//! A medium held to a rate, so that a backup leaves the disk and the network to the guests.

use std::time::{Duration, Instant};

use super::{Durable, Medium};
use crate::archive::stream::Sink;
use crate::error::Result;

/// The longest time whose unused allowance may be used later: bursts stay short.
const MEMORY: Duration = Duration::from_millis(250);
/// The largest piece written at once, so that the rate is even and not a row of bursts.
const PIECE: usize = 64 << 10;

/// Bytes a second, not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit(std::num::NonZeroU64);

impl RateLimit {
    /// `None` for zero.
    pub fn new(bytes_per_second: u64) -> Option<Self> {
        std::num::NonZeroU64::new(bytes_per_second).map(Self)
    }

    /// How long `bytes` take.
    fn time_for(self, bytes: usize) -> Duration {
        let nanos = (bytes as u128 * 1_000_000_000).div_ceil(u128::from(self.0.get()));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// A medium that is written to no faster than the limit says.
pub struct RateLimited {
    inner: Box<dyn Medium>,
    limit: RateLimit,
    /// When what has been written so far would be done at exactly the limit.
    due: Instant,
}

impl RateLimited {
    /// Holds `inner` to `limit`.
    pub fn new(inner: Box<dyn Medium>, limit: RateLimit) -> Self {
        Self { inner, limit, due: Instant::now() }
    }
}

impl Sink for RateLimited {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(PIECE) {
            let now = Instant::now();
            self.due = self.due.max(now.checked_sub(MEMORY).unwrap_or(now));
            std::thread::sleep(self.due.saturating_duration_since(now));
            self.due += self.limit.time_for(piece.len());
            self.inner.write(piece)?;
        }
        Ok(())
    }
}

impl Medium for RateLimited {
    fn settle(&mut self) -> Result<()> {
        self.inner.settle()
    }

    fn go_on(&mut self) -> Result<Option<u64>> {
        self.inner.go_on()
    }

    fn finish(self: Box<Self>) -> Result<Durable> {
        self.inner.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Sink for Memory {
        fn write(&mut self, bytes: &[u8]) -> Result<()> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(())
        }
    }

    impl Medium for Memory {
        fn finish(self: Box<Self>) -> Result<Durable> {
            Ok(Durable { name: "memory".to_owned(), bytes: self.0.lock().unwrap().len() as u64 })
        }
    }

    #[test]
    fn keeps_the_bytes_and_takes_the_time() {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let limit = RateLimit::new(4 << 20).unwrap();
        let mut medium = Box::new(RateLimited::new(Box::new(Memory(Arc::clone(&kept))), limit));
        let bytes: Vec<u8> = (0..=255).cycle().take(3 << 20).collect();
        let start = Instant::now();
        medium.write(&bytes).unwrap();
        // 0.75 s less the last piece and what the limit may remember; never faster.
        assert!(start.elapsed() > Duration::from_millis(450));
        assert_eq!(*kept.lock().unwrap(), bytes);
        assert_eq!(medium.finish().unwrap().bytes, 3 << 20);
        assert_eq!(RateLimit::new(0), None);
    }
}
