//! Puts back in order what several workers finish in any order.
//!
//! The number of things held is bounded by whoever numbers them: a pipeline numbers no more chunks than it
//! has buffers.

use std::collections::BTreeMap;

/// Things waiting for the ones before them.
#[derive(Debug)]
pub struct Reorder<T> {
    next: u64,
    waiting: BTreeMap<u64, T>,
}

impl<T> Reorder<T> {
    /// Nothing waits; number 0 comes first.
    #[allow(clippy::new_without_default, reason = "what comes first is to be said")]
    pub fn new() -> Self {
        Self::from(0)
    }

    /// Nothing waits; number `next` comes first.
    pub fn from(next: u64) -> Self {
        Self { next, waiting: BTreeMap::new() }
    }

    /// How many things wait.
    pub fn waiting(&self) -> u64 {
        self.waiting.len() as u64
    }

    /// Takes thing number `number` in.
    pub fn put(&mut self, number: u64, thing: T) {
        self.waiting.insert(number, thing);
    }

    /// The next thing in order, when it is there.
    pub fn take(&mut self) -> Option<T> {
        let thing = self.waiting.remove(&self.next)?;
        self.next += 1;
        Some(thing)
    }
}
