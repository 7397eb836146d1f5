//! The head of an archive, `virtfold.json`: what was backed up, when, how, and what a reader must understand.
//!
//! It is JSON for people and programs. Fields that a reader does not know are ignored, so a later version may
//! add some; what a reader must not ignore is named in `requires`, and a reader that does not know a name
//! there refuses the archive. A change that cannot be said that way raises `version`.
//!
//! The head says what the members must be; whoever reads them holds them against it ([`Disk::check_member`]).
//! Strings of the head come from the host that made the archive: they are checked for control characters
//! where they are names, and whoever prints a path escapes it.
//!
//! Imports: `units`, `error`; `layout`, `sparse`, `tar`, `tar_parser` of this room.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bounded_vec::{few, is_deeper};
use crate::layout::{self, BackupKind, DiskMembers, Layout, MemberOrder};
use crate::sparse::MapEntry;
use crate::tar::{ALIGNMENT, MAX_OCTAL, MAX_SIZE};
use crate::tar_parser::Member;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::{BlockSize, StreamOffset};

/// The version of the head and of the archive.
pub const VERSION: u32 = 1;
/// The longest head, bytes.
pub const MAX_LEN: u64 = 16 << 20;
/// The most disks in one archive.
pub const MAX_DISKS: usize = 1024;
/// The most features that an archive may require.
pub const MAX_REQUIRES: usize = 64;
/// The most images below a disk's own; a source has 200 at most.
pub const MAX_BACKING: usize = 1024;
/// The most warnings of a disk.
pub const MAX_WARNINGS: usize = 1024;
/// The longest name in the head, bytes.
pub const MAX_TEXT: usize = 1024;
/// Digits of a host's id.
pub const HOST_ID_LEN: usize = 32;
/// How deep the head may be nested.
const MAX_DEPTH: usize = 128;
/// Names in `requires` that this version understands.
const UNDERSTOOD: [&str; 0] = [];
const TIME_FORMAT: &str = "%Y-%m-%dT%H:%M:%S%:z";

/// The head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// Features that a reader must understand.
    #[serde(default, deserialize_with = "few::<_, _, MAX_REQUIRES>")]
    pub requires: Vec<String>,
    /// The archive's id.
    pub archive: Uuid,
    /// Time of the backup, RFC 3339 with seconds and offset: `2026-11-22T15:04:05+01:00`.
    pub created: String,
    /// The host that made it.
    pub host: String,
    /// What tells that host from others of its name: [`HOST_ID_LEN`] hexadecimal digits in lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_id: Option<String>,
    /// Name and version of the program that made it.
    pub tool: String,
    /// What was backed up.
    pub subject: BackupSubject,
    /// Full or incremental.
    pub kind: BackupKind,
    /// The archive that an incremental one continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// How the stream was compressed; for information, the stream itself tells.
    pub compression: CompressionNote,
    /// How the guest was frozen, where one was running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<ConsistencyInfo>,
    /// The disks, in the order of their members.
    #[serde(deserialize_with = "few::<_, _, MAX_DISKS>")]
    pub disks: Vec<Disk>,
}

/// What was backed up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupSubject {
    /// A domain of libvirt.
    Domain {
        /// Its name.
        name: String,
        /// Its uuid.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uuid: Option<Uuid>,
    },
    /// Images named by path.
    Images {
        /// What they are called.
        name: String,
        /// Whether a person gave the name: then it says what the archive is of, else the paths do.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        labelled: bool,
        /// Their paths on the host that made the archive, in the order of the disks; empty where they are not
        /// known.
        #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "few::<_, _, MAX_DISKS>")]
        paths: Vec<String>,
    },
}

impl BackupSubject {
    /// The name of the domain or the set.
    pub fn name(&self) -> &str {
        match self {
            Self::Domain { name, .. } | Self::Images { name, .. } => name,
        }
    }
}

/// The parent of an incremental archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// The parent's id.
    pub id: Uuid,
    /// The parent's root, 64 hexadecimal digits in lower case.
    pub root: String,
}

/// How the stream was compressed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompressionNote {
    /// `none` or `zstd`.
    pub method: String,
    /// The level of Zstandard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<i32>,
}

/// How the guest was frozen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsistencyInfo {
    /// The method: `agent`, `snapshot` or `standing`.
    pub method: String,
    /// How long the freeze kept the guest from writing at most, milliseconds.
    pub pause_ms: u64,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its name: 1 to 32 of `A-Z a-z 0-9 _ -`.
    pub target: String,
    /// Its size, bytes.
    pub capacity: u64,
    /// What it was read from.
    pub source: Source,
    /// The granularity of the fold, bytes: a power of two from 4 KiB to 2 MiB.
    pub block_size: u64,
    /// How it lies in the archive.
    pub layout: Layout,
    /// Bytes that the source has allocated.
    pub allocated: u64,
    /// Bytes of the dense image.
    pub dense_length: u64,
    /// Runs of the map.
    pub runs: u64,
    /// Bytes of the pieces that have a digest of their own in `TARGET.blocks`, where that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest_block: Option<u64>,
    /// Of an incremental archive: how it was found what changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<Changes>,
}

/// How the changes of a disk were found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// `bitmap`, `unchanged`, `compare` or `full`.
    pub method: String,
    /// Why no better method could be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The largest piece that has a digest of its own, bytes.
pub const MAX_DIGEST_BLOCK: u64 = 64 << 10;
/// Bytes of such a digest.
pub const BLOCK_DIGEST_LEN: u64 = 32;

/// What a disk was read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// `raw` or `qcow2`.
    pub format: String,
    /// Options of a qcow2 image that a restore to qcow2 keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qcow2: Option<Qcow2>,
    /// The images that were read through, the nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "few::<_, _, MAX_BACKING>")]
    pub backing: Vec<Backing>,
    /// What was doubtful about the source, for example that it was marked dirty.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "few::<_, _, MAX_WARNINGS>")]
    pub warnings: Vec<String>,
}

/// Options of a qcow2 image, named as `qemu-img create -o` names them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qcow2 {
    /// `0.10` (version 2) or `1.1` (version 3).
    pub compat: String,
    /// Bytes in a cluster.
    pub cluster_size: u64,
    /// Whether L2 entries have subclusters.
    #[serde(default)]
    pub extended_l2: bool,
    /// `zlib` or `zstd`.
    pub compression_type: String,
    /// Whether refcounts may lag behind.
    #[serde(default)]
    pub lazy_refcounts: bool,
    /// Width of a refcount.
    pub refcount_bits: u32,
    /// The external data file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_file: Option<String>,
}

/// An image of a backing chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backing {
    /// Its path on the host that made the archive.
    pub path: String,
    /// Its format.
    pub format: String,
}

fn damaged(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Damaged, format!("the archive's head is damaged: {what}"))
}

/// The time now in the form of [`Manifest::created`].
pub fn now() -> String {
    jiff::Zoned::now().strftime(TIME_FORMAT).to_string()
}

impl Manifest {
    /// The head's bytes: JSON with indentation and a newline at the end.
    ///
    /// # Errors
    /// Internal: it would not be read back (a defect of the caller); Unsupported: it would be too long.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let internal = |what: String| Error::new(ErrorKind::Internal, format!("the head is wrong: {what}"));
        self.check().map_err(internal)?;
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|e| internal(e.to_string()))?;
        bytes.push(b'\n');
        if bytes.len() as u64 > MAX_LEN {
            let message = format!("the archive's head would have {} bytes, more than {MAX_LEN}", bytes.len());
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        Ok(bytes)
    }

    /// Reads a head, or the recovery copy of one.
    ///
    /// # Errors
    /// Damaged: no proper head. Unsupported: a version or a required feature that this program does not know.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() as u64 > MAX_LEN {
            return Err(damaged("it is too long"));
        }
        // Of fields that it does not know the JSON reader checks neither.
        let text = std::str::from_utf8(bytes).map_err(|_| damaged("it is not UTF-8"))?;
        if is_deeper(text, MAX_DEPTH) {
            return Err(damaged(format_args!("it is nested more than {MAX_DEPTH} deep")));
        }
        let needs: RequiredFeatures = serde_json::from_str(text).map_err(damaged)?;
        needs.check()?;
        let head: Self = serde_json::from_str(text).map_err(damaged)?;
        head.check().map_err(damaged)?;
        Ok(head)
    }

    /// Time of the backup, seconds since 1970: the mtime of every member.
    ///
    /// # Errors
    /// Damaged: `created` is no time that an archive can have.
    pub fn time(&self) -> Result<u64> {
        seconds(&self.created).map_err(damaged)
    }

    /// The order that the archive's members must have.
    ///
    /// # Errors
    /// Usage: a disk has a name that none may have.
    pub fn member_order(&self) -> Result<MemberOrder> {
        let disks: Vec<DiskMembers<'_>> = self.disks.iter().map(Disk::members).collect();
        MemberOrder::new(&disks, self.kind)
    }

    /// The disk called `target`.
    pub fn disk(&self, target: &str) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.target == target)
    }

    fn check(&self) -> std::result::Result<(), String> {
        seconds(&self.created)?;
        for (what, text) in [("host", &self.host), ("tool", &self.tool), ("method", &self.compression.method)]
        {
            check_text(what, text)?;
        }
        check_text("name", self.subject.name())?;
        if self.host_id.as_ref().is_some_and(|id| !is_hex(id, HOST_ID_LEN)) {
            return Err(format!("its host's id is not {HOST_ID_LEN} hexadecimal digits"));
        }
        if let Some(freeze) = &self.freeze {
            check_text("method", &freeze.method)?;
        }
        match (self.kind, &self.parent) {
            (BackupKind::Full, None) => {}
            (BackupKind::Incremental, Some(parent)) => check_root(&parent.root)?,
            (BackupKind::Full, Some(_)) => return Err("a full archive has a parent".to_owned()),
            (BackupKind::Incremental, None) => return Err("an incremental archive has no parent".to_owned()),
        }
        if self.disks.len() > MAX_DISKS {
            return Err(format!("it has {} disks, more than {MAX_DISKS}", self.disks.len()));
        }
        let mut targets: Vec<&str> = self.disks.iter().map(|disk| disk.target.as_str()).collect();
        targets.sort_unstable();
        if let Some([twice, _]) = targets.array_windows().find(|[a, b]| a == b) {
            return Err(format!("disk '{twice}' is there twice"));
        }
        self.disks.iter().try_for_each(Disk::check)
    }
}

/// What is read of a head before anything else may be believed.
#[derive(Deserialize)]
struct RequiredFeatures {
    version: u32,
    #[serde(default, deserialize_with = "few::<_, _, MAX_REQUIRES>")]
    requires: Vec<String>,
}

impl RequiredFeatures {
    fn check(&self) -> Result<()> {
        let unsupported = |what: String| {
            Err(Error::new(ErrorKind::Unsupported, what)
                .with_hint("use a newer virtfold to read this archive"))
        };
        if self.version != VERSION {
            return unsupported(format!(
                "the archive has version {}, virtfold knows {VERSION}",
                self.version
            ));
        }
        match self.requires.iter().find(|name| !UNDERSTOOD.contains(&name.as_str())) {
            Some(name) => unsupported(format!(
                "the archive requires '{}', which this virtfold does not know",
                shown(name)
            )),
            None => Ok(()),
        }
    }
}

impl Disk {
    /// The granularity of the fold.
    ///
    /// # Errors
    /// Damaged: not one that an archive can have.
    pub fn block(&self) -> Result<BlockSize> {
        BlockSize::new(self.block_size).ok_or_else(|| {
            damaged(format_args!("disk {} has blocks of {} bytes", self.target, self.block_size))
        })
    }

    fn members(&self) -> DiskMembers<'_> {
        DiskMembers { target: &self.target, has_blocks: self.digest_block.is_some() }
    }

    /// The pieces that have digests of their own, where they have.
    pub fn digest_block(&self) -> Option<BlockSize> {
        self.digest_block.and_then(BlockSize::new)
    }

    /// Bytes of `TARGET.blocks`.
    pub fn blocks_len(&self) -> u64 {
        let count = self.digest_block.map_or(0, |block| self.dense_length.div_ceil(block.max(1)));
        count.saturating_mul(BLOCK_DIGEST_LEN)
    }

    /// Holds the header of the disk's member against the head.
    ///
    /// # Errors
    /// Damaged: they contradict each other.
    pub fn check_member(&self, member: &Member) -> Result<()> {
        let agrees = match self.layout {
            Layout::Full => member.realsize.is_none() && member.size == self.capacity,
            Layout::Compact => member.realsize == Some(self.capacity) && member.size > self.dense_length,
        };
        if agrees {
            return Ok(());
        }
        let message = format!("member '{}' is not as the archive's head describes it", member.name);
        Err(Error::new(ErrorKind::Damaged, message))
    }

    /// Holds a run of the disk's map against its block size.
    ///
    /// # Errors
    /// Damaged: it does not begin at a block, or ends within one before the disk ends.
    pub fn check_run(&self, run: &MapEntry) -> Result<()> {
        let end = run.guest.saturating_add(run.len).get();
        let ends = end == self.capacity || end.is_multiple_of(self.block_size);
        if run.guest.is_aligned(self.block_size) && ends {
            return Ok(());
        }
        let message = format!(
            "the archive is damaged: a run of disk {} at {} is not of whole blocks of {} bytes",
            self.target, run.guest, self.block_size
        );
        Err(Error::new(ErrorKind::Damaged, message))
    }

    /// Holds the place of the disk's dense bytes in the stream against what it must be.
    ///
    /// # Errors
    /// Damaged: it is not a multiple of [`ALIGNMENT`].
    pub fn check_dense_at(&self, at: StreamOffset) -> Result<()> {
        if at.is_aligned(ALIGNMENT) {
            return Ok(());
        }
        let message = format!(
            "the archive is damaged: the bytes of disk {} begin at {at}, not at a multiple of {ALIGNMENT}",
            self.target
        );
        Err(Error::new(ErrorKind::Damaged, message))
    }

    fn check(&self) -> std::result::Result<(), String> {
        layout::check_target(&self.target).map_err(|e| e.to_string())?;
        let target = &self.target;
        let bad = |what: &str| Err(format!("disk {target} {what}"));
        if self.capacity > MAX_SIZE {
            return bad("is too large");
        }
        if BlockSize::new(self.block_size).is_none() {
            return bad("has an impossible block size");
        }
        let fits =
            |block: u64| BlockSize::new(block).is_some() && block <= self.block_size.min(MAX_DIGEST_BLOCK);
        if self.digest_block.is_some_and(|block| !fits(block)) {
            return bad("has digests of blocks of an impossible size");
        }
        if let Some(changes) = &self.changes {
            check_text("method", &changes.method)?;
            changes.reason.iter().try_for_each(|reason| check_text("reason", reason))?;
        }
        let whole = self.dense_length == self.capacity && self.runs == u64::from(self.capacity > 0);
        if self.layout == Layout::Full && !whole {
            return bad("has layout full and is not whole");
        }
        // Runs lie apart and none is empty.
        if self.dense_length > self.capacity || self.runs > self.dense_length {
            return bad("has more bytes or runs than fit on it");
        }
        if self.source.qcow2.as_ref().is_some_and(|q| !(512..=2 << 20).contains(&q.cluster_size)) {
            return bad("has an impossible cluster size");
        }
        if self.source.backing.len() > MAX_BACKING || self.source.warnings.len() > MAX_WARNINGS {
            return bad("has more images or warnings than an archive can hold");
        }
        check_text("source format", &self.source.format)
    }
}

/// Text from an archive as a message may show it.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

fn check_text(what: &str, text: &str) -> std::result::Result<(), String> {
    if text.is_empty() || text.len() > MAX_TEXT || text.chars().any(char::is_control) {
        return Err(format!("its {what} is empty, too long or has control characters"));
    }
    Ok(())
}

fn check_root(root: &str) -> std::result::Result<(), String> {
    if is_hex(root, 64) {
        return Ok(());
    }
    Err("its parent's root is not 64 hexadecimal digits".to_owned())
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn seconds(created: &str) -> std::result::Result<u64, String> {
    let spelt = created.strip_suffix('Z').map_or_else(|| created.to_owned(), |time| format!("{time}+00:00"));
    let parsed = jiff::fmt::strtime::parse(TIME_FORMAT, spelt.as_str()).and_then(|time| time.to_timestamp());
    let seconds = parsed.ok().and_then(|time| u64::try_from(time.as_second()).ok());
    seconds
        .filter(|seconds| *seconds <= MAX_OCTAL)
        .ok_or_else(|| format!("invalid backup time '{}'", shown(created)))
}
