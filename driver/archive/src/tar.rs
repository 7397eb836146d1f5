//! Tar headers: the 512-byte ustar block, and a member's whole header with its pax records.
//!
//! Everything about a header that is not the member's name, size or place is fixed (mode 0600, owner 0, time
//! of the backup), so that one member has one header and a reader can hold a header against its own encoding.
//! The bytes of disks begin at a multiple of [`ALIGNMENT`] of the stream: a restore can then share whole
//! blocks of an uncompressed archive instead of copying them.
//!
//! Layout of the block: POSIX.1-2017, pax, "ustar Interchange Format". Sparse members: GNU tar manual,
//! "Storing Sparse Files", version 1.0.
//!
//! Imports: `units`, `error`; `pax`, `sparse`, `layout`, `lines` of this room.

pub(super) use crate::block::BLOCK_LEN;
pub use crate::block::{ALIGNMENT, BLOCK, END_OF_ARCHIVE, MAX_SIZE, Output, padding};
use crate::layout;
use crate::pax::{Records, SparseRecords};
use crate::sparse::MapShape;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::StreamOffset;

/// The largest number in a ustar header's 11 octal digits: 8 GiB - 1.
pub const MAX_OCTAL: u64 = (1 << 33) - 1;
/// Bytes in a ustar header's name field.
pub(super) const NAME_LEN: usize = 100;
/// What GNU tar puts before the name of a sparse member in the ustar header.
pub(super) const SPARSE_PREFIX: &str = "GNUSparseFile.0/";
/// What precedes the name of a pax header.
const PAX_PREFIX: &str = "PaxHeaders.0/";

/// One header block.
pub(super) type Block = [u8; BLOCK_LEN];

/// What a ustar header is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    /// A regular file, type `0`.
    File,
    /// Pax records of the next header, type `x`.
    Pax,
}

/// What varies between headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) mtime: u64,
    pub(super) kind: Type,
}

/// Fields of a header block: name, first byte, length.
const FIELDS: [(&str, usize, usize); 17] = [
    ("name", 0, NAME_LEN),
    ("mode", 100, 8),
    ("uid", 108, 8),
    ("gid", 116, 8),
    ("size", 124, 12),
    ("mtime", 136, 12),
    ("type", 156, 1),
    ("link name", 157, 100),
    ("magic", 257, 6),
    ("version", 263, 2),
    ("user name", 265, 32),
    ("group name", 297, 32),
    ("device major", 329, 8),
    ("device minor", 337, 8),
    ("prefix", 345, 155),
    ("padding", 500, 12),
    // Last, for it differs whenever another field does.
    ("checksum", 148, 8),
];

fn put(block: &mut Block, at: usize, bytes: &[u8]) {
    for (to, from) in block.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// The sum of the block's bytes with the checksum field taken as spaces.
fn checksum(block: &Block) -> u32 {
    let counted = |(at, byte): (usize, &u8)| match at {
        148..156 => u32::from(b' '),
        _ => u32::from(*byte),
    };
    block.iter().enumerate().map(counted).sum()
}

impl Header {
    /// The header's block. The name is at most [`NAME_LEN`] bytes, size and time at most [`MAX_OCTAL`].
    pub(super) fn encode(&self) -> Block {
        let mut block = [0; BLOCK_LEN];
        put(&mut block, 0, self.name.as_bytes().get(..NAME_LEN).unwrap_or(self.name.as_bytes()));
        put(&mut block, 100, b"0000600\x000000000\x000000000\0");
        put(&mut block, 124, format!("{:011o}\0{:011o}\0", self.size, self.mtime).as_bytes());
        put(&mut block, 156, if self.kind == Type::Pax { b"x" } else { b"0" });
        put(&mut block, 257, b"ustar\x0000");
        put(&mut block, 329, b"0000000\x000000000\0");
        let sum = checksum(&block);
        put(&mut block, 148, format!("{sum:06o}\0 ").as_bytes());
        block
    }

    /// Reads a block that holds what [`Header::encode`] makes and nothing else; the error says what is wrong.
    pub(super) fn decode(block: &Block) -> std::result::Result<Self, String> {
        let field = |at: usize, len: usize| block.get(at..at + len).unwrap_or_default();
        let stated = octal(field(148, 6)).ok_or("a tar header's checksum is not an octal number")?;
        if stated != u64::from(checksum(block)) {
            return Err("a tar header does not match its checksum".to_owned());
        }
        let kind = match field(156, 1) {
            b"0" => Type::File,
            b"x" => Type::Pax,
            [other] => {
                return Err(format!("a tar header has type '{}', not '0' or 'x'", other.escape_ascii()));
            }
            _ => return Err("a tar header has no type".to_owned()),
        };
        let name = field(0, NAME_LEN).split(|byte| *byte == 0).next().unwrap_or_default();
        let name = String::from_utf8(name.to_vec()).map_err(|_| "a tar header's name is not UTF-8")?;
        let size = octal(field(124, 11)).ok_or("a tar header's size is not an octal number")?;
        let mtime = octal(field(136, 11)).ok_or("a tar header's mtime is not an octal number")?;
        let header = Self { name, size, mtime, kind };
        let canonical = header.encode();
        let differs =
            |(_, at, len): &&(&str, usize, usize)| block.get(*at..at + len) != canonical.get(*at..at + len);
        match FIELDS.iter().find(differs) {
            Some((field, ..)) => Err(format!("a tar header's {field} field is not as virtfold writes it")),
            None => Ok(header),
        }
    }
}

fn octal(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|d| *d <= 7)?;
        value.checked_mul(8)?.checked_add(u64::from(digit))
    })
}

/// `text` cut to at most `max` bytes.
fn cut(text: &str, max: usize) -> &str {
    text.get(..text.floor_char_boundary(max)).unwrap_or_default()
}

/// The name of the pax header of a member whose ustar header has this name.
pub(super) fn pax_name(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or_default();
    format!("{PAX_PREFIX}{}", cut(last, NAME_LEN - PAX_PREFIX.len()))
}

/// Makes the headers of one archive's members.
#[derive(Clone, Copy, Debug)]
pub struct HeaderEncoder {
    mtime: u64,
}

impl HeaderEncoder {
    /// `mtime` is the time of the backup, seconds since 1970, the same for every member.
    ///
    /// # Errors
    /// Unsupported: a time that a ustar header cannot hold (after the year 2242).
    pub fn new(mtime: u64) -> Result<Self> {
        if mtime > MAX_OCTAL {
            let message = format!("the time of the backup, {mtime} s, does not fit a tar header");
            return Err(Error::new(ErrorKind::Unsupported, message).with_hint("check the host's clock"));
        }
        Ok(Self { mtime })
    }

    /// The header of a plain member of `size` bytes of content.
    ///
    /// # Errors
    /// Usage: a name or size that an archive cannot hold.
    pub fn plain(&self, name: &str, size: u64) -> Result<Vec<u8>> {
        layout::check_name(name).map_err(|why| Error::new(ErrorKind::Usage, why))?;
        let (header, records) = self.describe(name, size)?;
        Ok(self.join(&header, &records.encode()))
    }

    /// The same for a member whose header begins at `at` and whose content begins at a multiple of
    /// [`ALIGNMENT`] of the stream.
    ///
    /// # Errors
    /// As [`HeaderEncoder::plain`].
    pub fn aligned(&self, name: &str, size: u64, at: StreamOffset) -> Result<Vec<u8>> {
        layout::check_name(name).map_err(|why| Error::new(ErrorKind::Usage, why))?;
        let (header, records) = self.describe(name, size)?;
        if records == Records::default() && at.saturating_add(BLOCK).is_aligned(ALIGNMENT) {
            return Ok(self.join(&header, &[]));
        }
        Ok(self.join(&header, &records.encode_before(at.saturating_add(2 * BLOCK))))
    }

    /// The header of the disk `target` in sparse format. After it come the padded map, whose length is
    /// [`MapShape::padded_len`], and the dense bytes, which begin at a multiple of [`ALIGNMENT`].
    ///
    /// # Errors
    /// As [`HeaderEncoder::plain`].
    pub fn sparse(&self, target: &str, shape: &MapShape, at: StreamOffset) -> Result<Vec<u8>> {
        let name = layout::disk_name(target)?;
        let (header, mut records) = self.describe(&format!("{SPARSE_PREFIX}{name}"), shape.member_size()?)?;
        records.sparse = Some(SparseRecords { name, realsize: shape.capacity() });
        let before = at.saturating_add(2 * BLOCK).saturating_add(shape.padded_len());
        Ok(self.join(&header, &records.encode_before(before)))
    }

    /// The ustar header and the records it needs because it cannot hold all itself.
    fn describe(&self, name: &str, size: u64) -> Result<(Header, Records)> {
        if size > MAX_SIZE {
            let message = format!("'{name}' is too large for an archive: {size} bytes");
            return Err(Error::new(ErrorKind::Usage, message));
        }
        let records = Records {
            path: (name.len() > NAME_LEN).then(|| name.to_owned()),
            size: (size > MAX_OCTAL).then_some(size),
            sparse: None,
        };
        let in_header = if records.size.is_some() { 0 } else { size };
        let name = cut(name, NAME_LEN).to_owned();
        Ok((Header { name, size: in_header, mtime: self.mtime, kind: Type::File }, records))
    }

    /// The pax header where there are records, then the member's own.
    fn join(&self, header: &Header, records: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        if !records.is_empty() {
            let name = pax_name(&header.name);
            let len = records.len() as u64;
            bytes.extend_from_slice(&Header { name, size: len, mtime: self.mtime, kind: Type::Pax }.encode());
            bytes.extend_from_slice(records);
            bytes.extend_from_slice(padding(len));
        }
        bytes.extend_from_slice(&header.encode());
        bytes
    }
}
