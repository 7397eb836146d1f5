//! A byte buffer that begins at a page boundary.
//!
//! Copies between the page cache and a buffer that begins 16 bytes into a page, as large allocations do, take
//! several times as long on some processors (their string copy instruction is slow for such offsets).

use std::ops::{Deref, DerefMut};

const PAGE: usize = 4096;

/// A fixed number of bytes, zeros at first, page-aligned.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// `len` zero bytes.
    pub(super) fn new(len: usize) -> Self {
        if len == 0 {
            return Self { bytes: Vec::new(), start: 0, len };
        }
        let bytes = vec![0; len + PAGE];
        // Documented to be allowed not to know; then the buffer works as well, only slower.
        let start = Some(bytes.as_ptr().align_offset(PAGE)).filter(|n| *n < PAGE).unwrap_or(0);
        Self { bytes, start, len }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(self.start..self.start + self.len).unwrap_or_default()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.start + self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_as_long_as_asked() {
        for len in [1, 4096, 1 << 20, (1 << 20) + 4196] {
            let mut buffer = Buffer::new(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr().align_offset(PAGE), 0);
            buffer.fill(7);
            assert!(buffer.iter().all(|byte| *byte == 7));
        }
        assert!(Buffer::new(0).is_empty());
    }
}
