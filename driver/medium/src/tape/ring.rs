//! The memory between whoever makes the archive and the tape: a ring of blocks, which keeps the drive
//! streaming.
//!
//! The writer begins when the ring is filled to the high mark, and goes on until it has fallen to the low
//! mark; then it waits for the high mark again, and an underrun is counted: the drive stops, and has to go
//! back before it goes on. Blocks are allocated once, at the addresses of pages, so that the kernel takes
//! them as they are.
//!
//! Imports: `error`.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use virtfold_base::error::{OrInternal, Result};

/// How long anybody waits before looking whether the run is to end.
const PATIENCE: Duration = Duration::from_millis(200);
const PAGE: usize = 4096;

/// A block on its way: room for `size` bytes, at a page's address.
#[derive(Debug)]
pub(super) struct RingBlock {
    memory: Vec<u8>,
    start: usize,
    size: usize,
    filled: usize,
}

impl RingBlock {
    fn new(size: usize) -> Self {
        let memory = vec![0; size + PAGE];
        let start = memory.as_ptr().align_offset(PAGE).min(PAGE);
        Self { memory, start, size, filled: 0 }
    }

    /// Takes as many of `bytes` as fit, and returns the rest.
    pub(super) fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (now, later) = bytes.split_at(bytes.len().min(self.size - self.filled));
        let from = self.start + self.filled;
        if let Some(room) = self.memory.get_mut(from..from + now.len()) {
            room.copy_from_slice(now);
        }
        self.filled += now.len();
        later
    }

    pub(super) fn is_full(&self) -> bool {
        self.filled == self.size
    }

    pub(super) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    pub(super) fn bytes(&self) -> Result<&[u8]> {
        self.memory
            .get(self.start..self.start + self.filled)
            .or_internal("a tape block lies outside of its memory")
    }
}

#[derive(Debug, Default)]
struct RingState {
    full: VecDeque<RingBlock>,
    free: Vec<RingBlock>,
    allocated: usize,
    /// The writer waits for the high mark.
    filling: bool,
    /// All is in it.
    closed: bool,
    /// One of the two sides has given up.
    ended: bool,
    underruns: u64,
}

/// The ring.
#[derive(Debug)]
pub(super) struct Ring {
    state: Mutex<RingState>,
    changed: Condvar,
    size: usize,
    blocks: usize,
    high: usize,
    low: usize,
}

impl Ring {
    /// A ring of `bytes` in blocks of `size`; at least four of them.
    pub(super) fn new(bytes: u64, size: usize) -> Self {
        let blocks = usize::try_from(bytes / size as u64).unwrap_or(usize::MAX).max(4);
        let state = RingState { filling: true, ..RingState::default() };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            size,
            blocks,
            high: blocks - blocks / 4,
            low: blocks / 32,
        }
    }

    fn state(&self) -> MutexGuard<'_, RingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, RingState>) -> MutexGuard<'a, RingState> {
        self.changed.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner).0
    }

    /// An empty block; nothing when the other side has given up, or `stop` says so.
    pub(super) fn empty(&self, stop: impl Fn() -> bool) -> Option<RingBlock> {
        let mut state = self.state();
        loop {
            if state.ended || stop() {
                return None;
            }
            if let Some(mut block) = state.free.pop() {
                block.filled = 0;
                return Some(block);
            }
            if state.allocated < self.blocks {
                state.allocated += 1;
                drop(state);
                return Some(RingBlock::new(self.size));
            }
            state = self.wait(state);
        }
    }

    /// Puts a filled block in.
    pub(super) fn put(&self, block: RingBlock) {
        self.state().full.push_back(block);
        self.changed.notify_all();
    }

    /// Says that all is in.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// Gives up; both sides are told.
    pub(super) fn end(&self) {
        self.state().ended = true;
        self.changed.notify_all();
    }

    /// The next block to write; `Ok(None)` when there is no more, an error when the other side has given up.
    pub(super) fn take(&self) -> std::result::Result<Option<RingBlock>, RingClosed> {
        let mut state = self.state();
        loop {
            if state.ended {
                return Err(RingClosed);
            }
            let fill = state.full.len();
            if !state.filling && fill <= self.low && !state.closed {
                state.filling = true;
                state.underruns += 1;
            }
            if state.closed || fill >= self.high {
                state.filling = false;
            }
            if !state.filling {
                match state.full.pop_front() {
                    Some(block) => return Ok(Some(block)),
                    None if state.closed => return Ok(None),
                    None => {}
                }
            }
            state = self.wait(state);
        }
    }

    /// Gives a written block back.
    pub(super) fn give_back(&self, block: RingBlock) {
        self.state().free.push(block);
        self.changed.notify_all();
    }

    /// How often the writer had to wait.
    pub(super) fn underruns(&self) -> u64 {
        self.state().underruns
    }
}

/// The other side has given up.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RingClosed;

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn block(ring: &Ring, byte: u8) -> RingBlock {
        let mut block = ring.empty(|| false).unwrap();
        assert_eq!(block.bytes().unwrap().as_ptr().align_offset(PAGE), 0);
        assert!(block.fill(&vec![byte; ring.size]).is_empty());
        assert!(block.is_full());
        block
    }

    #[test]
    fn keeps_order_in_bounded_memory_and_counts_underruns() {
        let ring = Arc::new(Ring::new(16 * 4096, 4096));
        let writer = Arc::clone(&ring);
        let thread = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while let Some(block) = writer.take().unwrap() {
                seen.push(block.bytes().unwrap()[0]);
                writer.give_back(block);
            }
            seen
        });
        (0..200).for_each(|n| ring.put(block(&ring, n)));
        ring.close();
        assert_eq!(thread.join().unwrap(), (0..200).collect::<Vec<u8>>());
        assert!(ring.state().allocated <= 16);
    }

    #[test]
    fn begins_at_the_high_mark_and_counts_when_it_runs_low() {
        let ring = Ring::new(16 * 4096, 4096);
        (0..12).for_each(|n| ring.put(block(&ring, n)));
        (0..12).for_each(|_| drop(ring.take().unwrap().unwrap()));
        assert_eq!(ring.underruns(), 0);
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| ring.take());
            while ring.underruns() == 0 {
                std::thread::yield_now();
            }
            ring.close();
            assert!(taken.join().unwrap().unwrap().is_none());
        });
        assert_eq!(ring.underruns(), 1);
    }

    #[test]
    fn both_sides_hear_of_the_end() {
        let ring = Ring::new(0, 4096);
        (0..4).for_each(|n| ring.put(block(&ring, n)));
        assert!(ring.empty(|| true).is_none());
        ring.end();
        assert!(ring.empty(|| false).is_none());
        assert_eq!(ring.take().unwrap_err(), RingClosed);
    }
}
