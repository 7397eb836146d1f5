//! Small text shared by the tables of an archive: canonical decimals, lines that arrive in pieces, output in
//! bounded pieces, and the one sentence that reports damage.
//!
//! A canonical decimal has no sign, no leading zero and fits 64 bits: one number, one spelling, so that a
//! table that was parsed can be written again byte for byte.
//!
//! Imports: `units`, `error`; `tar` of this room.

use crate::block::Output;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::StreamOffset;

/// Encoders hand out pieces of about this many bytes.
pub(super) const PIECE: usize = 64 << 10;

/// The error for bytes that are not what was written; `at` is where in the uncompressed stream.
pub(super) fn damaged(at: StreamOffset, what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Damaged, format!("the archive is damaged at byte {at} of its stream: {what}"))
}

/// Digits in `value`'s decimal.
pub(super) fn decimal_len(value: u64) -> u64 {
    u64::from(value.checked_ilog10().unwrap_or(0)) + 1
}

/// Appends `value` in decimal.
pub(super) fn put_decimal(mut value: u64, out: &mut Vec<u8>) {
    let start = out.len();
    loop {
        let digit = (value % 10).to_le_bytes()[0];
        out.push(b'0' + digit);
        value /= 10;
        if value == 0 {
            break;
        }
    }
    if let Some(digits) = out.get_mut(start..) {
        digits.reverse();
    }
}

/// The number that `digits` spells canonically; `None` for anything else.
pub(super) fn parse_decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || (digits.len() > 1 && digits.first() == Some(&b'0')) {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|d| *d <= 9)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Collects encoded bytes and hands them on in pieces; [`ChunkedOutput::finish`] must come last.
pub(super) struct ChunkedOutput<'a, 'b> {
    /// Where encoders append.
    pub(super) buf: Vec<u8>,
    out: &'a mut Output<'b>,
    written: u64,
}

impl<'a, 'b> ChunkedOutput<'a, 'b> {
    pub(super) fn new(out: &'a mut Output<'b>) -> Self {
        Self { buf: Vec::with_capacity(PIECE + 256), out, written: 0 }
    }

    /// Hands the buffer on when it is full.
    pub(super) fn settle(&mut self) -> Result<()> {
        if self.buf.len() < PIECE { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<()> {
        self.written += self.buf.len() as u64;
        (self.out)(&self.buf)?;
        self.buf.clear();
        Ok(())
    }

    /// Hands on what is left; the bytes handed on in all.
    pub(super) fn finish(mut self) -> Result<u64> {
        if !self.buf.is_empty() {
            self.flush()?;
        }
        Ok(self.written)
    }
}

/// A line is longer than any line of its table can be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LineTooLong;

/// Puts lines together that were cut by the edges of the pieces they came in.
#[derive(Debug, Default)]
pub(super) struct LineAssembler {
    held: Vec<u8>,
    /// `held` was handed out as a whole line and is to be forgotten.
    spent: bool,
}

impl LineAssembler {
    /// The next line without its newline, `None` where `input` ends before it does. Advances `input` over
    /// what was used. `longest` bounds the line and so what is held.
    pub(super) fn take<'s, 'b: 's>(
        &'s mut self,
        input: &mut &'b [u8],
        longest: usize,
    ) -> std::result::Result<Option<&'s [u8]>, LineTooLong> {
        if std::mem::take(&mut self.spent) {
            self.held.clear();
        }
        let Some(end) = input.iter().take(longest + 1).position(|byte| *byte == b'\n') else {
            if self.held.len() + input.len() > longest {
                return Err(LineTooLong);
            }
            self.held.extend_from_slice(input);
            *input = &[];
            return Ok(None);
        };
        let (line, rest) = input.split_at(end);
        *input = rest.get(1..).unwrap_or_default();
        if self.held.is_empty() {
            return Ok(Some(line));
        }
        if self.held.len() + line.len() > longest {
            return Err(LineTooLong);
        }
        self.held.extend_from_slice(line);
        self.spent = true;
        Ok(Some(&self.held))
    }

    /// Whether part of a line is held.
    pub(super) fn is_between(&self) -> bool {
        self.spent || self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_canonical_decimals_are_numbers() {
        for bad in ["", "00", "01", "+1", "-1", " 1", "1 ", "0x1", "18446744073709551616", "\u{661}"] {
            assert_eq!(parse_decimal(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(parse_decimal(b"18446744073709551615"), Some(u64::MAX));
    }

    proptest! {
        #[test]
        fn decimals_round_trip(value in prop_oneof![any::<u64>(), 0_u64..1000]) {
            let mut out = b"x".to_vec();
            put_decimal(value, &mut out);
            prop_assert_eq!(out[1..].to_vec(), value.to_string().into_bytes());
            prop_assert_eq!(out.len() as u64 - 1, decimal_len(value));
            prop_assert_eq!(parse_decimal(&out[1..]), Some(value));
        }

        #[test]
        fn lines_are_those_of_the_whole_text(text in "([a-c]{0,6}\n){0,20}", cut in 1_usize..9) {
            let mut lines = LineAssembler::default();
            let mut found = Vec::new();
            for mut piece in text.as_bytes().chunks(cut) {
                while let Some(line) = lines.take(&mut piece, 6).unwrap() {
                    found.push(String::from_utf8(line.to_vec()).unwrap());
                }
                prop_assert!(piece.is_empty());
            }
            prop_assert!(lines.is_between());
            let expect: Vec<String> = text.lines().map(str::to_owned).collect();
            prop_assert_eq!(found, expect);
        }
    }

    #[test]
    fn long_lines_are_refused_however_they_arrive() {
        let mut lines = LineAssembler::default();
        assert_eq!(lines.take(&mut b"1234\n".as_slice(), 3), Err(LineTooLong));
        let mut lines = LineAssembler::default();
        assert_eq!(lines.take(&mut b"12".as_slice(), 3), Ok(None));
        assert!(!lines.is_between());
        assert_eq!(lines.take(&mut b"34\n".as_slice(), 3), Err(LineTooLong));
    }
}
