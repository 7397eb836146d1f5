//! What a guard must know of a guest's XML: its uuid, its name and the paths of its disks.
//!
//! A tolerant scan in one pass over the bytes, linear in time, bounded in depth and memory, for any bytes: it
//! stops at the first thing that it can't read and keeps what it found so far. So an XML that is cut or
//! damaged still protects the disks that it names before that place. (A parser of whole documents would find
//! nothing then, and the one at hand takes quadratic time for an element of many attributes.)
//!
//! Only elements at their place count: `domain/uuid`, `domain/name`, and `source` under
//! `domain/devices/disk`; a path in a comment, in metadata or in a description is text. A disk counts when
//! its element has ended, because `readonly` may come after `source`.

use std::borrow::Cow;

/// Elements in elements; deeper documents are not libvirt's.
const MAX_DEPTH: usize = 128;
/// Disk paths kept; libvirt knows no guest with as many.
const MAX_DISKS: usize = 4096;

/// What the guest does to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskAccess {
    /// It writes it: a disk of its own.
    Written,
    /// It only reads it: a read-only disk, or what backs another image.
    Read,
}

/// A file or device that a disk uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPath {
    /// As the XML has it.
    pub path: String,
    /// What for.
    pub role: DiskAccess,
}

/// A guest, as far as its XML could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookDomain {
    /// Its uuid.
    pub uuid: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// Its disks in files and devices of this host; network disks and pool volumes have no path here.
    pub disks: Vec<DiskPath>,
}

/// Reads what can be read.
pub fn scan(xml: &[u8]) -> HookDomain {
    let mut scan = Scan { rest: xml, ..Scan::default() };
    while scan.step().is_some() {}
    scan.found
}

#[derive(Default)]
struct Scan<'a> {
    rest: &'a [u8],
    /// Open elements, outermost first.
    stack: Vec<&'a [u8]>,
    /// Text of the child of `domain` at hand, if it is one whose text counts.
    text: Vec<u8>,
    /// Paths of the disk at hand.
    disk: Vec<DiskPath>,
    readonly: bool,
    found: HookDomain,
}

impl<'a> Scan<'a> {
    /// Takes one piece of markup or text; `None` at the end or at what can't be read.
    fn step(&mut self) -> Option<()> {
        let open = self.rest.iter().position(|c| *c == b'<')?;
        let (text, rest) = self.rest.split_at_checked(open)?;
        self.keep_text(&decode(text));
        self.rest = rest;
        if self.skip(b"<!--", b"-->")? || self.skip(b"<?", b"?>")? {
            return Some(());
        }
        if let Some(rest) = self.rest.strip_prefix(b"<![CDATA[") {
            let end = find(rest, b"]]>")?;
            self.keep_text(rest.get(..end)?);
            self.rest = rest.get(end + 3..)?;
            return Some(());
        }
        if let Some(rest) = self.rest.strip_prefix(b"</") {
            let end = find(rest, b">")?;
            self.rest = rest.get(end + 1..)?;
            let name = rest.get(..end)?.trim_ascii_end();
            return (self.stack.last().copied() == Some(name)).then(|| self.close());
        }
        // A document type (`<!`) ends it here: libvirt writes none.
        self.rest = self.rest.get(1..)?;
        self.element()
    }

    /// Passes over a comment or an instruction, if there is one; `None` where it does not end.
    fn skip(&mut self, start: &[u8], end: &[u8]) -> Option<bool> {
        let Some(rest) = self.rest.strip_prefix(start) else { return Some(false) };
        self.rest = rest.get(find(rest, end)? + end.len()..)?;
        Some(true)
    }

    /// Reads a start tag behind its `<`.
    fn element(&mut self) -> Option<()> {
        let name = self.word()?;
        if self.stack.len() == MAX_DEPTH || (self.stack.is_empty() && name != b"domain") {
            return None;
        }
        self.stack.push(name);
        if self.stack.len() == 2 {
            self.text.clear();
        }
        let mut path = None;
        loop {
            self.rest = self.rest.trim_ascii_start();
            if let Some(rest) = self.rest.strip_prefix(b"/>") {
                self.rest = rest;
                self.open(path);
                self.close();
                return Some(());
            }
            if let Some(rest) = self.rest.strip_prefix(b">") {
                self.rest = rest;
                self.open(path);
                return Some(());
            }
            let (key, value) = self.attribute()?;
            if path.is_none() && matches!(key, b"file" | b"dev" | b"dir") {
                path = Some(value);
            }
        }
    }

    fn attribute(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let key = self.word()?;
        self.rest = self.rest.trim_ascii_start().strip_prefix(b"=")?.trim_ascii_start();
        let (quote, rest) = self.rest.split_first().filter(|(quote, _)| matches!(quote, b'"' | b'\''))?;
        let end = rest.iter().position(|c| c == quote)?;
        self.rest = rest.get(end + 1..)?;
        Some((key, rest.get(..end)?))
    }

    /// A name of an element or attribute; never empty.
    fn word(&mut self) -> Option<&'a [u8]> {
        let ends = |c: &u8| c.is_ascii_whitespace() || b"<>/='\"!?&".contains(c);
        let end = self.rest.iter().position(ends).filter(|end| *end > 0)?;
        let (word, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        Some(word)
    }

    /// An element begins, which has its place on the stack.
    fn open(&mut self, path: Option<&[u8]>) {
        let [b"domain", b"devices", b"disk", inner @ ..] = self.stack.as_slice() else { return };
        match inner {
            [] => {
                self.disk.clear();
                self.readonly = false;
            }
            [b"readonly"] => self.readonly = true,
            [above @ .., b"source"] => {
                let role = if above.contains(&b"backingStore".as_slice()) {
                    DiskAccess::Read
                } else {
                    DiskAccess::Written
                };
                let path = path.map(|raw| String::from_utf8_lossy(&decode_attribute(raw)).into_owned());
                if let Some(path) = path.filter(|path| !path.is_empty())
                    && self.disk.len() + self.found.disks.len() < MAX_DISKS
                {
                    self.disk.push(DiskPath { path, role });
                }
            }
            _ => {}
        }
    }

    /// The innermost element ends.
    fn close(&mut self) {
        let text = String::from_utf8_lossy(self.text.trim_ascii());
        match self.stack.as_slice() {
            [b"domain", b"uuid"] => {
                self.found.uuid.get_or_insert_with(|| text.into_owned());
            }
            [b"domain", b"name"] => {
                self.found.name.get_or_insert_with(|| text.into_owned());
            }
            [b"domain", b"devices", b"disk"] => {
                let readonly = self.readonly;
                self.found.disks.extend(self.disk.drain(..).map(|disk| match readonly {
                    true => DiskPath { role: DiskAccess::Read, ..disk },
                    false => disk,
                }));
            }
            _ => {}
        }
        self.stack.pop();
    }

    fn keep_text(&mut self, text: &[u8]) {
        if let [b"domain", b"uuid" | b"name"] = self.stack.as_slice() {
            self.text.extend_from_slice(text);
        }
    }
}

fn find(within: &[u8], what: &[u8]) -> Option<usize> {
    within.windows(what.len()).position(|window| window == what)
}

/// An attribute's value: white space in it is spaces, but for what is written as a reference.
fn decode_attribute(raw: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(raw.len());
    let mut before = 0;
    for &c in raw {
        match c {
            // A line end of two bytes is one.
            b'\n' if before == b'\r' => {}
            b'\t' | b'\n' | b'\r' => plain.push(b' '),
            other => plain.push(other),
        }
        before = c;
    }
    decode(&plain).into_owned()
}

/// Puts characters for references; what is no reference stays as it is.
fn decode(raw: &[u8]) -> Cow<'_, [u8]> {
    if !raw.contains(&b'&') {
        return Cow::Borrowed(raw);
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((&c, after)) = rest.split_first() {
        rest = after;
        let meant = if c == b'&' { reference(after) } else { None };
        match meant {
            Some((character, behind)) => {
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                rest = behind;
            }
            None => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// The character that the reference behind an `&` means, and what follows it.
fn reference(text: &[u8]) -> Option<(char, &[u8])> {
    let end = text.iter().take(12).position(|c| *c == b';')?;
    let name = std::str::from_utf8(text.get(..end)?).ok()?;
    let character = match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix('x') {
                Some(hex) => u32::from_str_radix(hex, 16),
                None => number.parse(),
            };
            char::from_u32(code.ok()?)?
        }
    };
    Some((character, text.get(end + 1..)?))
}

#[cfg(test)]
#[path = "domain_tests.rs"]
mod tests;
