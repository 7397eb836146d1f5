//! A medium held to a rate, so that a backup leaves the disk and the network to the guests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{FinishedArchive, Medium};
use virtfold_archive::stream::{Cancel, Sink, check_cancel};
use virtfold_base::error::Result;

/// The longest time whose unused allowance may be used later: bursts stay short.
const MEMORY: Duration = Duration::from_millis(250);
/// How often the run's flag is looked at.
const FLAG: Duration = Duration::from_millis(50);
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
    /// Ends the wait.
    cancel: Cancel,
    /// When what has been written so far would be done at exactly the limit.
    due: Instant,
}

impl RateLimited {
    /// Holds `inner` to `limit`, until the run is told to end.
    pub fn new(inner: Box<dyn Medium>, limit: RateLimit, cancel: &Cancel) -> Self {
        Self { inner, limit, cancel: Arc::clone(cancel), due: Instant::now() }
    }

    /// Waits until more may be written.
    fn wait(&self) -> Result<()> {
        loop {
            check_cancel(&self.cancel)?;
            let left = self.due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(FLAG));
        }
    }
}

impl Sink for RateLimited {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(PIECE) {
            let now = Instant::now();
            self.due = self.due.max(now.checked_sub(MEMORY).unwrap_or(now));
            self.wait()?;
            self.due += self.limit.time_for(piece.len());
            self.inner.write(piece)?;
        }
        Ok(())
    }
}

impl Medium for RateLimited {
    fn sync(&mut self) -> Result<()> {
        self.inner.sync()
    }

    fn resume_after_failure(&mut self) -> Result<Option<u64>> {
        self.inner.resume_after_failure()
    }

    fn finish(self: Box<Self>) -> Result<FinishedArchive> {
        self.inner.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::atomic::Ordering;
    use virtfold_base::error::ErrorKind;

    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Sink for Memory {
        fn write(&mut self, bytes: &[u8]) -> Result<()> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(())
        }
    }

    impl Medium for Memory {
        fn finish(self: Box<Self>) -> Result<FinishedArchive> {
            Ok(FinishedArchive::new("memory", self.0.lock().unwrap().len() as u64))
        }
    }

    #[test]
    fn keeps_the_bytes_and_takes_the_time() {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let limit = RateLimit::new(4 << 20).unwrap();
        let mut medium =
            Box::new(RateLimited::new(Box::new(Memory(Arc::clone(&kept))), limit, &Cancel::default()));
        let bytes: Vec<u8> = (0..=255).cycle().take(3 << 20).collect();
        let start = Instant::now();
        medium.write(&bytes).unwrap();
        // 0.75 s less the last piece and what the limit may remember; never faster.
        assert!(start.elapsed() > Duration::from_millis(450));
        assert_eq!(*kept.lock().unwrap(), bytes);
        assert_eq!(medium.finish().unwrap().bytes, 3 << 20);
        assert_eq!(RateLimit::new(0), None);
    }

    /// At a byte a second the second piece would be due in most of a day.
    #[test]
    fn a_wait_ends_with_the_run() {
        let cancel = Cancel::default();
        let limit = RateLimit::new(1).unwrap();
        let mut medium = RateLimited::new(Box::new(Memory(Arc::default())), limit, &cancel);
        let start = Instant::now();
        std::thread::scope(|scope| {
            let written = scope.spawn(|| medium.write(&[0; 2 * PIECE]));
            std::thread::sleep(Duration::from_millis(100));
            assert!(!written.is_finished());
            cancel.store(true, Ordering::Relaxed);
            assert_eq!(written.join().unwrap().unwrap_err().kind(), ErrorKind::Interrupted);
        });
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}
