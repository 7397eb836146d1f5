//! The tail of an archive: the digests of its body, the end record, the end of the tar. An archive with this
//! tail is complete; one without is not.
//!
//! The body is everything before the header of `virtfold.digests`, cut into chunks of 1 MiB, the last one
//! short. `virtfold.digests` holds the BLAKE3 digest of each, raw. The end record is one line of JSON with
//! fixed fields in a fixed order; its last field is the root: BLAKE3 over all digests and then the record's
//! own bytes before `,"root":"`. So the root stands for every byte of the body and every field of the record,
//! and a child archive names its parent by it.
//!
//! A signed archive's record has a [`ChainLink`] before its root, and the signature of all its bytes stands
//! behind it, in a member of its own.
//!
//! The tail has one spelling. Nothing in it covers its own headers and padding, so a verifier makes the tail
//! again with [`write_tail`] from what it parsed and compares every byte.
//!
//! Imports: `units`, `error`; `tar`, `layout`, `lines`, `sign` of this room.

use serde::Deserialize;
use uuid::Uuid;

use crate::layout;
use crate::lines::{ChunkedOutput, damaged};
use crate::sign::{ChainLink, PreviousArchive, SIGNATURE_LEN, SigningKey};
use crate::tar::{BLOCK, END_OF_ARCHIVE, HeaderEncoder, MAX_SIZE, Output, padding};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::{MIB, StreamOffset};

/// The version of the end record.
pub const VERSION: u64 = 1;
/// Bytes in a chunk of the body, all but the last.
pub const CHUNK: u64 = MIB;
/// Bytes in a digest.
pub const DIGEST_LEN: usize = 32;
/// The longest end record, bytes.
pub const MAX_LEN: u64 = 4096;

const ROOT: &str = ",\"root\":\"";

/// Sums over the whole archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArchiveTotals {
    /// Members of the body.
    pub members: u64,
    /// Disks.
    pub disks: u64,
    /// Bytes of all disks' capacities.
    pub capacity: u64,
    /// Bytes that the sources have allocated.
    pub allocated: u64,
    /// Bytes of all dense images.
    pub dense: u64,
    /// Runs of all maps.
    pub runs: u64,
}

/// What the end record says, without the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndRecord {
    /// The archive's id, as in its head.
    pub archive: Uuid,
    /// Time of the backup, seconds since 1970: the mtime of every member.
    pub time: u64,
    /// Bytes of the body: where the tail begins.
    pub body_len: u64,
    /// Where the header of `recovery/virtfold.json` begins.
    pub recovery_at: StreamOffset,
    /// Sums.
    pub totals: ArchiveTotals,
    /// Of a signed archive: who signs it, and which one of its subject it is.
    pub chain: Option<ChainLink>,
}

/// The record as it is spelt.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EndRecordJson {
    #[serde(rename = "version")]
    _version: u64,
    archive: Uuid,
    time: u64,
    body: u64,
    #[serde(rename = "chunk_size")]
    _chunk_size: u64,
    #[serde(rename = "chunks")]
    _chunks: u64,
    recovery: u64,
    members: u64,
    disks: u64,
    capacity: u64,
    allocated: u64,
    dense: u64,
    runs: u64,
    subject: Option<String>,
    host: Option<String>,
    sequence: Option<u64>,
    previous: Option<PreviousArchive>,
    root: String,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u64,
}

impl EndRecord {
    /// Chunks of the body, and so digests.
    pub fn chunks(&self) -> u64 {
        self.body_len.div_ceil(CHUNK)
    }

    /// The bytes that the root covers: all before `,"root":"`.
    fn covered(&self) -> String {
        let ArchiveTotals { members, disks, capacity, allocated, dense, runs } = self.totals;
        format!(
            "{{\"version\":{VERSION},\"archive\":\"{}\",\"time\":{},\"body\":{},\"chunk_size\":{CHUNK},\
             \"chunks\":{},\"recovery\":{},\"members\":{members},\"disks\":{disks},\
             \"capacity\":{capacity},\"allocated\":{allocated},\"dense\":{dense},\"runs\":{runs}{}",
            self.archive.hyphenated(),
            self.time,
            self.body_len,
            self.chunks(),
            self.recovery_at,
            self.chain.as_ref().map(ChainLink::encode).unwrap_or_default(),
        )
    }

    /// The record's bytes, `root` included: one line.
    pub fn encode(&self, root: &[u8; DIGEST_LEN]) -> Vec<u8> {
        format!("{}{ROOT}{}\"}}\n", self.covered(), blake3::Hash::from_bytes(*root).to_hex()).into_bytes()
    }

    /// Reads the content of `virtfold.end.json`, which begins at `at`: the record and its root.
    ///
    /// # Errors
    /// Damaged: it is not as [`EndRecord::encode`] spells it. Unsupported: a later version.
    pub fn parse(bytes: &[u8], at: StreamOffset) -> Result<(Self, [u8; DIGEST_LEN])> {
        let bad = |what: &str| damaged(at, format_args!("the end record {what}"));
        if bytes.len() as u64 > MAX_LEN {
            return Err(bad("is too long"));
        }
        let VersionOnly { version } =
            serde_json::from_slice(bytes).map_err(|e| bad("is not an end record").with_source(e))?;
        if version != VERSION {
            let message = format!("the archive's end record has version {version}, virtfold knows {VERSION}");
            return Err(Error::new(ErrorKind::Unsupported, message).with_hint("use a newer virtfold"));
        }
        let spelt: EndRecordJson =
            serde_json::from_slice(bytes).map_err(|e| bad("is not an end record").with_source(e))?;
        let root = blake3::Hash::from_hex(&spelt.root).map_err(|e| bad("has no root").with_source(e))?;
        let record = Self::from(spelt);
        if record.encode(root.as_bytes()) != bytes {
            return Err(bad("is not spelt as virtfold spells it"));
        }
        record.check().map_err(bad)?;
        Ok((record, *root.as_bytes()))
    }

    fn check(&self) -> std::result::Result<(), &'static str> {
        let place = |offset: u64| offset.is_multiple_of(BLOCK) && offset > 0 && offset <= MAX_SIZE;
        if !place(self.body_len) {
            return Err("has an impossible length of the body");
        }
        if !place(self.recovery_at.get()) || self.recovery_at.get() >= self.body_len {
            return Err("has an impossible place of the recovery copies");
        }
        self.chain.as_ref().map_or(Ok(()), ChainLink::check)
    }
}

impl From<EndRecordJson> for EndRecord {
    fn from(spelt: EndRecordJson) -> Self {
        // With some of the four it is spelt otherwise: that is for the caller to see.
        let signer = spelt.subject.zip(spelt.host).zip(spelt.sequence);
        let previous = spelt.previous;
        let chain = signer.map(|((subject, host), sequence)| ChainLink { subject, host, sequence, previous });
        Self {
            archive: spelt.archive,
            time: spelt.time,
            body_len: spelt.body,
            recovery_at: StreamOffset::new(spelt.recovery),
            totals: ArchiveTotals {
                members: spelt.members,
                disks: spelt.disks,
                capacity: spelt.capacity,
                allocated: spelt.allocated,
                dense: spelt.dense,
                runs: spelt.runs,
            },
            chain,
        }
    }
}

/// Computes the root from the digests, in order.
#[derive(Clone, Debug, Default)]
pub struct RootHasher {
    hasher: blake3::Hasher,
    count: u64,
}

impl RootHasher {
    /// Before the first digest.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next chunk's digest.
    pub fn digest(&mut self, digest: &[u8; DIGEST_LEN]) {
        self.hasher.update(digest);
        self.count += 1;
    }

    /// The root of the archive that ends with `record`.
    ///
    /// # Errors
    /// Internal: there were more or fewer digests than the body has chunks (a defect of the caller).
    pub fn root(mut self, record: &EndRecord) -> Result<[u8; DIGEST_LEN]> {
        if self.count != record.chunks() {
            let message = format!("{} digests for {} chunks", self.count, record.chunks());
            return Err(Error::new(ErrorKind::Internal, message));
        }
        self.hasher.update(record.covered().as_bytes());
        Ok(*self.hasher.finalize().as_bytes())
    }
}

/// Bytes of the tail.
///
/// # Errors
/// Unsupported: a time that a tar header cannot hold.
pub fn tail_len(record: &EndRecord) -> Result<u64> {
    let headers = HeaderEncoder::new(record.time)?;
    let content = |name, size: u64| {
        headers.plain(name, size).map(|header| header.len() as u64 + size.next_multiple_of(BLOCK))
    };
    let digests = content(layout::DIGESTS, digests_len(record))?;
    let end = content(layout::END, record.encode(&[0; DIGEST_LEN]).len() as u64)?;
    Ok(digests + end + signature_member_len(record) + END_OF_ARCHIVE.len() as u64)
}

/// Bytes of the signature's member, of a signed archive.
pub(crate) fn signature_member_len(record: &EndRecord) -> u64 {
    if record.chain.is_some() { BLOCK + SIGNATURE_LEN.next_multiple_of(BLOCK) } else { 0 }
}

/// Bytes of `virtfold.digests`.
pub fn digests_len(record: &EndRecord) -> u64 {
    record.chunks() * DIGEST_LEN as u64
}

/// Writes the whole tail, in pieces, and returns the root: the digests' header, the digests, the end record's
/// header, the record, with `key` the signature's header and the signature, two blocks of zeros, each with
/// its padding.
///
/// # Errors
/// Those of the digests and the output; Internal where there are more or fewer digests than chunks, and where
/// the record says that it is signed and there is no key, or the other way round.
pub fn write_tail(
    record: &EndRecord,
    digests: impl IntoIterator<Item = Result<[u8; DIGEST_LEN]>>,
    key: Option<&SigningKey>,
    out: &mut Output<'_>,
) -> Result<[u8; DIGEST_LEN]> {
    let headers = HeaderEncoder::new(record.time)?;
    let len = digests_len(record);
    out(&headers.plain(layout::DIGESTS, len)?)?;
    let mut hasher = RootHasher::new();
    let mut pieces = ChunkedOutput::new(out);
    for digest in digests {
        let digest = digest?;
        hasher.digest(&digest);
        pieces.buf.extend_from_slice(&digest);
        pieces.settle()?;
    }
    pieces.finish()?;
    let root = hasher.root(record)?;
    out(padding(len))?;
    let end = record.encode(&root);
    let len = end.len() as u64;
    out(&headers.plain(layout::END, len)?)?;
    out(&end)?;
    out(padding(len))?;
    if key.is_some() != record.chain.is_some() {
        return Err(Error::new(ErrorKind::Internal, "a key and the end record disagree on a signature"));
    }
    if let Some(key) = key {
        let signature = key.sign(&end)?;
        let len = signature.len() as u64;
        out(&headers.plain(layout::SIGNATURE, len)?)?;
        out(&signature)?;
        out(padding(len))?;
    }
    out(&END_OF_ARCHIVE)?;
    Ok(root)
}

/// Reads the content of `virtfold.digests` as it arrives.
#[derive(Debug, Default)]
pub struct DigestsParser {
    held: Vec<u8>,
}

impl DigestsParser {
    /// Before the first byte.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next digest; `None` where `input` ends before it does. Advances `input` over what was used.
    pub fn feed(&mut self, input: &mut &[u8]) -> Option<[u8; DIGEST_LEN]> {
        let missing = DIGEST_LEN.saturating_sub(self.held.len()).min(input.len());
        let (bytes, rest) = input.split_at(missing);
        *input = rest;
        self.held.extend_from_slice(bytes);
        let digest = <[u8; DIGEST_LEN]>::try_from(self.held.as_slice()).ok()?;
        self.held.clear();
        Some(digest)
    }

    /// Whether no digest is cut.
    pub fn is_between(&self) -> bool {
        self.held.is_empty()
    }
}
