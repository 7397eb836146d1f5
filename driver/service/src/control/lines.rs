//! Lines from a stream, bounded.
//!
//! Imports: `service::acceptor`.

use std::io::{self, Read};

use crate::acceptor::PeerDeadline;

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A line without its line feed, or what stood before the end.
    Whole(Vec<u8>),
    /// More than a line may have.
    TooLong,
    /// Nothing more.
    End,
}

/// Cuts a stream into lines.
#[derive(Debug)]
pub(super) struct LineReader {
    most: usize,
    held: Vec<u8>,
    ended: bool,
}

impl LineReader {
    /// Of at most `most` bytes, the line feed included.
    pub(super) fn new(most: usize) -> Self {
        Self { most, held: Vec::new(), ended: false }
    }

    /// The next one.
    pub(super) fn next(&mut self, stream: &mut impl Read, patience: &PeerDeadline<'_>) -> io::Result<Line> {
        let mut seen = 0;
        loop {
            let fresh = self.held.get(seen..).unwrap_or_default();
            if let Some(at) = fresh.iter().position(|byte| *byte == b'\n') {
                let rest = self.held.split_off(seen + at + 1);
                let mut line = std::mem::replace(&mut self.held, rest);
                line.pop();
                return Ok(if line.len() < self.most { Line::Whole(line) } else { Line::TooLong });
            }
            if self.held.len() >= self.most {
                return Ok(Line::TooLong);
            }
            if self.ended {
                let line = std::mem::take(&mut self.held);
                return Ok(if line.is_empty() { Line::End } else { Line::Whole(line) });
            }
            seen = self.held.len();
            let mut chunk = [0; 8192];
            let count = patience.read(stream, &mut chunk)?;
            self.ended = count == 0;
            self.held.extend_from_slice(chunk.get(..count).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::atomic::AtomicBool;
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    /// Gives out pieces of a length each.
    struct Pieces(VecDeque<u8>, usize);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(buffer.len()).min(self.0.len());
            for slot in &mut buffer[..count] {
                *slot = self.0.pop_front().unwrap();
            }
            Ok(count)
        }
    }

    fn all(bytes: &[u8], piece: usize, most: usize) -> Vec<Line> {
        let stop = AtomicBool::new(false);
        let patience = PeerDeadline { until: Instant::now() + Duration::from_secs(60), stop: &stop };
        let mut stream = Pieces(bytes.iter().copied().collect(), piece);
        let (mut lines, mut found) = (LineReader::new(most), Vec::new());
        loop {
            match lines.next(&mut stream, &patience).unwrap() {
                Line::End => return found,
                Line::TooLong => {
                    found.push(Line::TooLong);
                    return found;
                }
                line @ Line::Whole(_) => found.push(line),
            }
        }
    }

    proptest! {
        /// As a naive split says, however the bytes come.
        #[test]
        fn lines_are_those_of_a_naive_split(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'a'), any::<u8>()], 0..200),
            piece in 1_usize..50,
            most in 1_usize..40,
        ) {
            let mut naive = Vec::new();
            let mut parts: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
            // Without a line feed at the end the last part is a line, if anything is in it.
            let last = parts.pop().unwrap();
            for part in parts {
                naive.push(if part.len() < most { Line::Whole(part.to_vec()) } else { Line::TooLong });
            }
            if last.len() >= most {
                naive.push(Line::TooLong);
            } else if !last.is_empty() {
                naive.push(Line::Whole(last.to_vec()));
            }
            if let Some(cut) = naive.iter().position(|line| *line == Line::TooLong) {
                naive.truncate(cut + 1);
            }
            prop_assert_eq!(all(&bytes, piece, most), naive);
        }
    }
}
