//! The qcow2 header: parsed from the bytes of the first cluster, every field checked against the others and
//! against the file's length before anything is read by it.
//!
//! Pure: bytes in, header or [`HeaderError`] out, so that it can be tested and fuzzed without files.
//!
//! Imports: `error`, `source`, `extensions`.

use super::extensions::{Extensions, Incompatible};
use super::header_error::{HeaderError, bad};
use crate::source::CompressionType;

/// Bytes of a version 2 header, and of the part of a version 3 header that must be there.
const V2_LEN: u64 = 72;
const V3_LEN: u64 = 104;
/// The most that parsing needs before it knows the cluster size.
pub(super) const FIXED: u64 = 112;
const MAGIC: u32 = 0x5146_49fb;
/// QEMU's limits on what one table may take, bytes.
const MAX_L1: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
/// The longest name of a backing file.
const MAX_NAME: u64 = 1023;

/// Incompatible feature bits.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION | EXTENDED_L2;
/// Compatible and autoclear bits.
const LAZY_REFCOUNTS: u64 = 1;
const BITMAPS_CONSISTENT: u64 = 1;
const RAW_EXTERNAL: u64 = 1 << 1;

/// How the guest's payload is encrypted by the image itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EncryptionMethod {
    None,
    Aes,
    Luks,
}

/// A header that holds together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) cluster_bits: u32,
    /// Guest bytes, rounded down to whole sectors as QEMU does.
    pub(crate) capacity: u64,
    pub(crate) l1_offset: u64,
    pub(crate) l1_entries: u64,
    pub(crate) refcount_offset: u64,
    pub(crate) refcount_table_len: u64,
    pub(crate) refcount_order: u32,
    pub(crate) crypt: EncryptionMethod,
    pub(crate) dirty: bool,
    pub(crate) corrupt: bool,
    pub(crate) lazy_refcounts: bool,
    pub(crate) extended_l2: bool,
    pub(crate) external_data: bool,
    pub(crate) external_raw: bool,
    pub(crate) compression: CompressionType,
    /// The backing file's name as it stands.
    pub(crate) backing: Option<Vec<u8>>,
    /// The backing file's format as it stands.
    pub(crate) backing_format: Option<Vec<u8>>,
    /// The external data file's name as it stands.
    pub(crate) data_file: Option<Vec<u8>>,
    /// The header extension for bitmaps as it stands.
    pub(crate) bitmaps: Option<Vec<u8>>,
    /// Whether whoever wrote to the image last kept its bitmaps.
    pub(crate) bitmaps_consistent: bool,
}

impl Header {
    /// Bytes in a cluster.
    pub(crate) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of an L2 entry.
    pub(crate) fn entry_len(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Guest bytes that one L2 table covers. At most 2^39.
    pub(crate) fn l2_span(&self) -> u64 {
        (self.cluster_size() / self.entry_len()) << self.cluster_bits
    }
}

/// Big-endian fields at fixed places.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N], HeaderError> {
        let end = at.saturating_add(N);
        match self.0.get(at..end).and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) => Ok(bytes),
            None => bad(format!("it ends within its header, at byte {}", self.0.len())),
        }
    }
    fn u32(&self, at: usize) -> Result<u32, HeaderError> {
        self.bytes(at).map(u32::from_be_bytes)
    }
    fn u64(&self, at: usize) -> Result<u64, HeaderError> {
        self.bytes(at).map(u64::from_be_bytes)
    }
}

/// The cluster size, from the first bytes of the file.
pub(super) fn cluster_size(start: &[u8]) -> Result<u64, HeaderError> {
    let fields = Fields(start);
    if start.len() < 4 || fields.u32(0)? != MAGIC {
        return bad("it does not begin as a qcow2 image does; is its format another one?");
    }
    let version = fields.u32(4)?;
    if !(2..=3).contains(&version) {
        return Err(HeaderError::Unsupported(format!("is qcow2 version {version}; virtfold reads 2 and 3")));
    }
    match fields.u32(20)? {
        bits @ 9..=21 => Ok(1 << bits),
        bits => bad(format!("its cluster size of 2^{bits} bytes is not between 512 bytes and 2 MiB")),
    }
}

/// Parses the header from `first`, the file's first cluster (or all of a shorter file), of a file with
/// `file_len` bytes.
pub(crate) fn parse(first: &[u8], file_len: u64) -> Result<Header, HeaderError> {
    let cluster = cluster_size(first)?;
    let fields = Fields(first);
    let mut header = fixed_fields(&fields, cluster)?;
    let header_len = if header.version == 2 { V2_LEN } else { version_3(&fields, cluster, &mut header)?.0 };
    let (backing, extensions_end) = backing_name(&fields, first, cluster)?;
    let extensions = Extensions::parse(first, header_len, extensions_end)?;
    if header.version == 3 {
        features(&fields, header_len, &extensions.names, &mut header)?;
    }
    if header.external_data {
        match extensions.data_file {
            Some(name) if !name.is_empty() => header.data_file = Some(name),
            _ => return bad("it has an external data file and does not name it"),
        }
    }
    header.bitmaps = extensions.bitmaps;
    header.backing_format = backing.is_some().then_some(extensions.backing_format).flatten();
    header.backing = backing;
    check_tables(&header, file_len)?;
    Ok(header)
}

/// The fields that both versions have.
fn fixed_fields(fields: &Fields<'_>, cluster: u64) -> Result<Header, HeaderError> {
    let crypt = match fields.u32(32)? {
        0 => EncryptionMethod::None,
        1 => EncryptionMethod::Aes,
        2 => EncryptionMethod::Luks,
        other => {
            return Err(HeaderError::Unsupported(format!(
                "is encrypted by method {other}, which is unknown"
            )));
        }
    };
    Ok(Header {
        version: fields.u32(4)?,
        cluster_bits: cluster.trailing_zeros(),
        capacity: fields.u64(24)? & !511,
        l1_offset: fields.u64(40)?,
        l1_entries: u64::from(fields.u32(36)?),
        refcount_offset: fields.u64(48)?,
        refcount_table_len: u64::from(fields.u32(56)?) * cluster,
        refcount_order: 4,
        crypt,
        dirty: false,
        corrupt: false,
        lazy_refcounts: false,
        extended_l2: false,
        external_data: false,
        external_raw: false,
        compression: CompressionType::Zlib,
        backing: None,
        backing_format: None,
        data_file: None,
        bitmaps: None,
        bitmaps_consistent: false,
    })
}

/// The length that a version 3 header gives itself.
struct HeaderLen(u64);

/// The fields of version 3 that need no names from the extensions.
fn version_3(fields: &Fields<'_>, cluster: u64, header: &mut Header) -> Result<HeaderLen, HeaderError> {
    let header_len = u64::from(fields.u32(100)?);
    if header_len < V3_LEN || header_len > cluster {
        return bad(format!(
            "its header length of {header_len} is not between {V3_LEN} and its cluster size"
        ));
    }
    header.refcount_order = fields.u32(96)?;
    if header.refcount_order > 6 {
        return bad(format!("its refcounts are 2^{} bits wide; 64 is the most", header.refcount_order));
    }
    Ok(HeaderLen(header_len))
}

/// The feature bits of version 3.
fn features(
    fields: &Fields<'_>,
    header_len: u64,
    names: &[Incompatible],
    header: &mut Header,
) -> Result<(), HeaderError> {
    let incompatible = fields.u64(72)?;
    refuse_unknown(incompatible & !KNOWN, names)?;
    header.dirty = incompatible & DIRTY != 0;
    header.corrupt = incompatible & CORRUPT != 0;
    header.external_data = incompatible & EXTERNAL_DATA != 0;
    header.extended_l2 = incompatible & EXTENDED_L2 != 0;
    header.lazy_refcounts = fields.u64(80)? & LAZY_REFCOUNTS != 0;
    header.bitmaps_consistent = fields.u64(88)? & BITMAPS_CONSISTENT != 0;
    header.external_raw = header.external_data && fields.u64(88)? & RAW_EXTERNAL != 0;
    if header.extended_l2 && header.cluster_bits < 14 {
        return bad("it has subclusters in clusters of less than 16 KiB");
    }
    let kind = if header_len > V3_LEN { fields.bytes::<1>(104)?[0] } else { 0 };
    header.compression = match (kind, incompatible & COMPRESSION != 0) {
        (0, false) => CompressionType::Zlib,
        (1, true) => CompressionType::Zstd,
        (0 | 1, _) => return bad("its compression type and the feature bit for it contradict each other"),
        (other, _) => {
            return Err(HeaderError::Unsupported(format!("has compression type {other}, which is unknown")));
        }
    };
    Ok(())
}

fn refuse_unknown(unknown: u64, names: &[Incompatible]) -> Result<(), HeaderError> {
    if unknown == 0 {
        return Ok(());
    }
    let listed: Vec<String> = (0..64_u8)
        .filter(|bit| unknown >> bit & 1 == 1)
        .map(|bit| match names.iter().find(|named| named.bit == bit) {
            Some(named) => format!("'{}'", named.name),
            None => format!("bit {bit}"),
        })
        .collect();
    let what = format!("uses incompatible features that virtfold does not know: {}", listed.join(", "));
    Err(HeaderError::Unsupported(what))
}

/// The backing file's name, and where the header extensions must end.
fn backing_name(
    fields: &Fields<'_>,
    first: &[u8],
    cluster: u64,
) -> Result<(Option<Vec<u8>>, u64), HeaderError> {
    let (offset, len) = (fields.u64(8)?, u64::from(fields.u32(16)?));
    if offset == 0 {
        return Ok((None, cluster));
    }
    if offset > cluster {
        return bad(format!("its backing file's name is said to be at {offset}, outside the first cluster"));
    }
    if len > MAX_NAME.min(cluster - offset) {
        return bad(format!("its backing file's name of {len} bytes is too long"));
    }
    let range = usize::try_from(offset).ok().zip(usize::try_from(offset + len).ok());
    match range.and_then(|(from, to)| first.get(from..to)) {
        Some([]) => Ok((None, offset)),
        Some(name) => Ok((Some(name.to_vec()), offset)),
        None => bad("it ends within its backing file's name"),
    }
}

/// Places and sizes of the tables.
fn check_tables(header: &Header, file_len: u64) -> Result<(), HeaderError> {
    let cluster = header.cluster_size();
    if header.capacity > i64::MAX.cast_unsigned() {
        return bad(format!("its capacity of {} bytes is impossible", header.capacity));
    }
    let needed = header.capacity.div_ceil(header.l2_span());
    if header.l1_entries * 8 > MAX_L1 {
        return bad(format!("its L1 table of {} entries is longer than 32 MiB", header.l1_entries));
    }
    if header.l1_entries < needed {
        let what = format!("its L1 table of {} entries is too short; it needs {needed}", header.l1_entries);
        return bad(what);
    }
    let inside = |offset: u64, len: u64| offset.checked_add(len).is_some_and(|end| end <= file_len);
    let l1_len = header.l1_entries * 8;
    if l1_len > 0 {
        if !header.l1_offset.is_multiple_of(cluster) || header.l1_offset == 0 {
            return bad(format!("its L1 table at {} is not at a cluster", header.l1_offset));
        }
        if !inside(header.l1_offset, l1_len) {
            return bad(format!("its L1 table at {} lies outside the file", header.l1_offset));
        }
    }
    if header.refcount_table_len > MAX_REFCOUNT_TABLE {
        return bad("its refcount table is longer than 8 MiB");
    }
    if !header.refcount_offset.is_multiple_of(cluster) {
        return bad(format!("its refcount table at {} is not at a cluster", header.refcount_offset));
    }
    Ok(())
}
