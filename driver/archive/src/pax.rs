//! Pax extended headers: the records that say what a ustar header cannot, and the comment that moves the
//! disk's bytes to where they can be shared.
//!
//! A record is `LEN KEYWORD=VALUE\n`, where LEN counts the whole record, itself included. Keywords written,
//! in this order: `path` (a name longer than 100 bytes), `size` (8 GiB and more),
//! `GNU.sparse.major`, `.minor`, `.name`, `.realsize`, `comment`. Read are the same in any order, and
//! keywords of other vendors (upper case before a dot) are ignored; anything else would change what the
//! member means and is refused.
//!
//! Facts: POSIX.1-2017, pax, "pax Extended Header"; GNU tar manual, "Storing Sparse Files", version 1.0.
//!
//! Imports: `units`; `lines`, `tar` of this room.

use std::collections::BTreeSet;

use crate::block::{ALIGNMENT, BLOCK};
use crate::lines::{decimal_len, parse_decimal};
use virtfold_base::units::StreamOffset;

/// The longest pax header that a reader takes, bytes.
pub const MAX_LEN: u64 = 1 << 20;

/// What marks a member as a sparse file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SparseRecords {
    pub(super) name: String,
    /// Size of the file when it is unfolded, bytes.
    pub(super) realsize: u64,
}

/// The records of one header that virtfold gives a meaning to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) path: Option<String>,
    pub(super) size: Option<u64>,
    pub(super) sparse: Option<SparseRecords>,
}

fn put_record(keyword: &str, value: &str, out: &mut Vec<u8>) {
    let bare = keyword.len() as u64 + value.len() as u64 + 3;
    let mut len = bare + decimal_len(bare);
    // One more digit in the length may make the length need it.
    len = bare + decimal_len(len);
    out.extend_from_slice(format!("{len} {keyword}={value}\n").as_bytes());
}

/// A comment record of `len` bytes; 14 at least.
fn put_comment(len: u64, out: &mut Vec<u8>) {
    let dots = len.saturating_sub(decimal_len(len) + " comment=\n".len() as u64);
    out.extend_from_slice(format!("{len} comment=").as_bytes());
    out.extend((0..dots).map(|_| b'.'));
    out.push(b'\n');
}

impl Records {
    /// The records' bytes, none where there are no records.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(path) = &self.path {
            put_record("path", path, &mut out);
        }
        if let Some(size) = self.size {
            put_record("size", &size.to_string(), &mut out);
        }
        if let Some(sparse) = &self.sparse {
            put_record("GNU.sparse.major", "1", &mut out);
            put_record("GNU.sparse.minor", "0", &mut out);
            put_record("GNU.sparse.name", &sparse.name, &mut out);
            put_record("GNU.sparse.realsize", &sparse.realsize.to_string(), &mut out);
        }
        out
    }

    /// The records' bytes with a comment that makes the dense bytes begin at a multiple of [`ALIGNMENT`];
    /// `before` is where they would begin if the records took no room (a multiple of [`BLOCK`]).
    pub(super) fn encode_before(&self, before: StreamOffset) -> Vec<u8> {
        let mut out = self.encode();
        let len = out.len() as u64;
        let blocks = len.next_multiple_of(BLOCK);
        let behind = before.saturating_add(blocks).get() % ALIGNMENT;
        let mut missing = (ALIGNMENT - behind) % ALIGNMENT;
        if len == 0 && missing == 0 {
            missing = ALIGNMENT;
        }
        if missing > 0 {
            put_comment(blocks - len + missing, &mut out);
        }
        out
    }

    /// Reads the records of one header; the error says what is wrong.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, String> {
        let mut reader = PaxRecordReader::default();
        let mut seen = BTreeSet::new();
        while !bytes.is_empty() {
            let (keyword, value) = take_record(&mut bytes).ok_or("a pax record is malformed")?;
            if !seen.insert(keyword) {
                return Err(format!("a pax header has '{}' twice", keyword.escape_debug()));
            }
            reader.record(keyword, value)?;
        }
        reader.finish()
    }
}

/// A keyword and its value. Only what is known has to be text: vendors may put any bytes into theirs.
fn take_record<'a>(bytes: &mut &'a [u8]) -> Option<(&'a str, &'a [u8])> {
    let space = bytes.iter().take(21).position(|byte| *byte == b' ')?;
    let len = usize::try_from(parse_decimal(bytes.get(..space)?)?).ok()?;
    let record = bytes.get(space + 1..len)?.strip_suffix(b"\n")?;
    *bytes = bytes.get(len..)?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let keyword = std::str::from_utf8(record.get(..equals)?).ok()?;
    (!keyword.is_empty()).then_some((keyword, record.get(equals + 1..)?))
}

/// Puts records together that come in any order.
#[derive(Default)]
struct PaxRecordReader {
    path: Option<String>,
    size: Option<u64>,
    major: Option<u64>,
    minor: Option<u64>,
    name: Option<String>,
    realsize: Option<u64>,
}

impl PaxRecordReader {
    fn record(&mut self, keyword: &str, value: &[u8]) -> Result<(), String> {
        match keyword {
            "comment" => {}
            "path" => self.path = Some(text(keyword, value)?),
            "size" => self.size = Some(number(keyword, value)?),
            "GNU.sparse.major" => self.major = Some(number(keyword, value)?),
            "GNU.sparse.minor" => self.minor = Some(number(keyword, value)?),
            "GNU.sparse.name" => self.name = Some(text(keyword, value)?),
            "GNU.sparse.realsize" => self.realsize = Some(number(keyword, value)?),
            _ if is_vendor(keyword) => {}
            _ => return Err(format!("a pax header has the keyword '{}'", keyword.escape_debug())),
        }
        Ok(())
    }

    fn finish(self) -> Result<Records, String> {
        let sparse = match (self.major, self.minor, self.name, self.realsize) {
            (None, None, None, None) => None,
            (Some(1), Some(0), Some(name), Some(realsize)) => Some(SparseRecords { name, realsize }),
            _ => return Err("a pax header describes no sparse member of format 1.0".to_owned()),
        };
        Ok(Records { path: self.path, size: self.size, sparse })
    }
}

fn text(keyword: &str, value: &[u8]) -> Result<String, String> {
    String::from_utf8(value.to_vec()).map_err(|_| format!("pax record '{keyword}' is not UTF-8"))
}

fn number(keyword: &str, value: &[u8]) -> Result<u64, String> {
    parse_decimal(value).ok_or_else(|| format!("pax record '{keyword}' is not a decimal number"))
}

/// POSIX reserves `VENDOR.keyword`, upper case, for vendors; GNU's sparse keywords change the content.
fn is_vendor(keyword: &str) -> bool {
    keyword.split_once('.').is_some_and(|(vendor, rest)| {
        !vendor.is_empty()
            && vendor.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
            && !(vendor == "GNU" && rest.starts_with("sparse."))
    })
}
