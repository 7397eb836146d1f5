//! Text that others wrote, on its way to a terminal or a log.
//!
//! A terminal obeys control characters, and characters that turn the direction of writing around make a line
//! read as another one. So whatever prints text for people prints it through here: names of guests and files,
//! messages of other programs, lines of the log. What is for programs (JSON, CSV) has rules of its own.
//!
//! Imports nothing.

use std::borrow::Cow;
use std::io::{self, Write};

/// Whether a character shows itself and does nothing else: no control character (C0, C1, DEL), no mark or
/// override of the direction of writing, no separator of lines or paragraphs.
pub fn is_printable(c: char) -> bool {
    !(c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
}

/// The text with all else escaped, as in Rust and JSON: `\n`, `\u{202e}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_printable) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().fold(String::new(), |mut shown, c| {
        match is_printable(c) {
            true => shown.push(c),
            false => shown.extend(c.escape_default()),
        }
        shown
    }))
}

/// Lets through what is printable, line feeds and tabs; all else is escaped, bytes that are no UTF-8 as
/// `\xff`.
#[derive(Debug)]
pub struct PrintableWriter<W> {
    to: W,
    /// The beginning of a character that is not whole yet: three bytes at most.
    begun: Vec<u8>,
}

impl<W: Write> PrintableWriter<W> {
    /// One before `to`.
    pub fn new(to: W) -> Self {
        Self { to, begun: Vec::new() }
    }
}

impl<W: Write> Write for PrintableWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let is_plain = |byte: &u8| matches!(byte, b' '..=b'~' | b'\n' | b'\t');
        if self.begun.is_empty() && bytes.iter().all(is_plain) {
            return self.to.write(bytes);
        }
        let mut all = std::mem::take(&mut self.begun);
        all.extend_from_slice(bytes);
        let mut shown = String::with_capacity(all.len());
        let mut chunks = all.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            for c in chunk.valid().chars() {
                match is_printable(c) || matches!(c, '\n' | '\t') {
                    true => shown.push(c),
                    false => shown.extend(c.escape_default()),
                }
            }
            let (invalid, is_last) = (chunk.invalid(), chunks.peek().is_none());
            let is_begun = std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if is_last && is_begun {
                self.begun = invalid.to_vec();
            } else {
                shown.extend(
                    invalid.iter().flat_map(|byte| std::ascii::escape_default(*byte)).map(char::from),
                );
            }
        }
        self.to.write_all(shown.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a terminal obeys, or what turns a line around.
    const HOSTILE: &str =
        "a\u{1b}[2Jb\r\u{7f}\u{85}\u{9b}c\u{202e}\u{2066}\u{2069}\u{200e}\u{200f}\u{61c}\u{2028}\u{2029}d";

    fn written(pieces: &[&[u8]]) -> String {
        let mut to = Vec::new();
        let mut writer = PrintableWriter::new(&mut to);
        pieces.iter().for_each(|piece| writer.write_all(piece).unwrap());
        String::from_utf8(to).unwrap()
    }

    #[test]
    fn control_characters_and_overrides_of_direction_are_escaped() {
        let expect = "a\\u{1b}[2Jb\\r\\u{7f}\\u{85}\\u{9b}c\\u{202e}\\u{2066}\\u{2069}\\u{200e}\\u{200f}\\u{61c}\\u{2028}\\u{2029}d";
        assert_eq!(printable(HOSTILE), expect);
        assert_eq!(written(&[HOSTILE.as_bytes()]), expect);
        assert_eq!(printable("a\nb\t"), "a\\nb\\t");
        assert_eq!(printable("Grüße, שלום, 日本"), "Grüße, שלום, 日本");
    }

    #[test]
    fn a_stream_is_the_same_however_it_is_cut() {
        let mut bytes = format!("x\ty\n{HOSTILE}ü€😀").into_bytes();
        bytes.extend([0xff, b'z', 0xe2, 0x82, b'\n']);
        let whole = written(&[&bytes]);
        assert!(whole.starts_with("x\ty\na\\u{1b}") && whole.ends_with("ü€😀\\xffz\\xe2\\x82\n"), "{whole}");
        for at in 0..bytes.len() {
            let (one, two) = bytes.split_at(at);
            assert_eq!(written(&[one, two]), whole, "{at}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(written(&single), whole);
    }
}
