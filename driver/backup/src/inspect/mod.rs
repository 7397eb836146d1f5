//! Looking into archives without reading their disks: what is in one, what is in a directory of them.
//!
//! What is shown was checked against the archive's own digests where it has them. An archive that is cut,
//! unfinished or damaged is named as that, never shown as a whole one.

mod list;

use std::cell::Cell;
use std::fmt;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::list::list;
pub(super) use self::list::list_named;
use virtfold_archive::allocation_csv::AllocationRow;
use virtfold_archive::crypt::{self, ArchiveFile, DecryptingReader, Identities};
use virtfold_archive::index::{ArchiveIndex, ArchiveTail, Trust};
use virtfold_archive::manifest::Manifest;
use virtfold_archive::reader::{ArchiveReader, Visitor};
use virtfold_archive::sign::ArchiveSignature;
use virtfold_archive::source::Source;
use virtfold_archive::stream::{Cancel, ChunkState, ReadOptions, read_pipe};
use virtfold_archive::table::{CorrespondenceTable, Run};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::StreamOffset;
use virtfold_catalog::copy_name;
use virtfold_medium::process::StoredArchive;
use virtfold_medium::{self as medium, Location};

/// How an archive stands, as far as its tables tell: `verify` reads all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArchiveStatus {
    /// It has its end, and its tables are sound.
    Complete,
    /// It is cut, or was never finished.
    Incomplete,
    /// Its tables or its end are damaged.
    Damaged,
    /// It is encrypted, and no identity that was given opens it.
    Encrypted,
    /// It is no archive that this version reads.
    Unreadable,
    /// It is whole, and not the one that the catalog knows there.
    Replaced,
}

impl fmt::Display for ArchiveStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Complete => "complete",
            Self::Incomplete => "incomplete",
            Self::Damaged => "damaged",
            Self::Encrypted => "encrypted",
            Self::Unreadable => "unreadable",
            Self::Replaced => "replaced",
        })
    }
}

/// What one look at an archive tells.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArchiveSummary {
    /// Its name, as `restore` takes it.
    pub archive: String,
    /// How it stands.
    pub status: ArchiveStatus,
    /// What is wrong with it.
    pub faults: Vec<String>,
    /// Its size, bytes.
    pub bytes: u64,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// Its head, where that can be read.
    pub head: Option<Manifest>,
    /// The root digest of a complete archive, hexadecimal.
    pub root: Option<String>,
    /// The signature of a complete archive that is signed; whose it is its reader judges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<ArchiveSignature>,
}

/// An archive of a list, as who touches its medium finds it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListedArchive {
    /// Where it is, and its size.
    #[serde(flatten)]
    pub stored: StoredArchive,
    /// Its name in the catalog; nothing where the catalog can't hold it.
    pub name: Option<String>,
    /// Whether it is the thing itself: an object, or a regular file and no link to one.
    pub is_regular: bool,
    /// What its head and its end say.
    pub summary: ArchiveSummary,
}

impl ListedArchive {
    /// Whether it has the name that an archive has until it is finished.
    pub fn is_partial(&self) -> bool {
        let name = self.stored.location.to_string();
        is_partial_name(name.rsplit('/').next().unwrap_or_default())
    }

    fn of(location: Location, summary: ArchiveSummary) -> Result<Self> {
        let is_file = |path: &Path| path.symlink_metadata().is_ok_and(|found| found.is_file());
        let name = match copy_name(&location) {
            Err(error) if error.kind() == ErrorKind::Usage => None,
            name => Some(name?),
        };
        Ok(Self {
            name,
            is_regular: location.path().is_none_or(is_file),
            stored: StoredArchive { location, bytes: summary.bytes },
            summary,
        })
    }
}

/// Options for reading a little: one worker, never cancelled.
pub fn read_options() -> ReadOptions {
    ReadOptions { workers: 1, cancel: Cancel::default(), carrier: None, archive_id: None }
}

/// Looks at the archive at `location`, with `identities` where it is encrypted.
///
/// # Errors
/// When the file can't be read. What is wrong with the archive is in the result.
pub fn glance(location: &Location, identities: &Identities) -> Result<ArchiveSummary> {
    summary(location, medium::open(location)?, identities)
}

/// As [`glance`], of the archive that is open as `file`.
fn summary(location: &Location, file: Arc<dyn Source>, identities: &Identities) -> Result<ArchiveSummary> {
    let mut glance = bare(location);
    let source = match ArchiveFile::salvage(Arc::clone(&file), identities) {
        Ok(source) => source,
        Err(error) => {
            let Some(status) = status_of(&error) else { return Err(error) };
            glance.bytes = file.len();
            glance.encrypted |= status == ArchiveStatus::Encrypted;
            return Ok(ArchiveSummary { status, faults: vec![error.to_string()], ..glance });
        }
    };
    (glance.bytes, glance.encrypted) = (source.stored(), source.is_encrypted());
    let options = read_options();
    let opened = source.proven().and_then(|()| ArchiveIndex::open(&source, &options, Trust::Strict));
    let error = match opened {
        Ok(index) => {
            glance.root = index.tail().map(|tail| root_text(tail.root));
            glance.signature = index.tail().and_then(ArchiveTail::signature);
            glance.head = Some(index.head().clone());
            return Ok(glance);
        }
        Err(error) => error,
    };
    let Some(status) = status_of(&error) else { return Err(error) };
    glance.status = status;
    glance.faults.push(error.to_string());
    if let Ok(index) = ArchiveIndex::open(&source, &options, Trust::Salvage) {
        glance.root = index.tail().map(|tail| root_text(tail.root));
        glance.head = Some(index.head().clone());
    }
    Ok(glance)
}

/// What an error says of the archive; nothing where it says something of the medium.
fn status_of(error: &Error) -> Option<ArchiveStatus> {
    Some(match error.kind() {
        ErrorKind::Incomplete => ArchiveStatus::Incomplete,
        ErrorKind::Damaged => ArchiveStatus::Damaged,
        ErrorKind::Locked => ArchiveStatus::Encrypted,
        ErrorKind::Unsupported => ArchiveStatus::Unreadable,
        _ => return None,
    })
}

/// A file that can't be read is a line of the list, not the end of it.
fn unreadable(location: &Location, error: &Error) -> ArchiveSummary {
    let faults = vec![error.to_string()];
    ArchiveSummary { status: ArchiveStatus::Unreadable, faults, ..bare(location) }
}

/// What is known of an archive before it was looked at.
fn bare(location: &Location) -> ArchiveSummary {
    ArchiveSummary {
        archive: location.to_string(),
        status: ArchiveStatus::Complete,
        faults: Vec::new(),
        bytes: 0,
        encrypted: crypt::is_encrypted_name(&location.to_string()),
        head: None,
        root: None,
        signature: None,
    }
}

fn is_archive_name(name: &str) -> bool {
    [".tar", ".tar.zst", ".tar.age", ".tar.zst.age"].iter().any(|end| name.ends_with(end))
        || is_partial_name(name)
}

fn is_partial_name(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".partial") && name.contains(".tar")
}

/// A file under its temporary name is no archive yet, whatever it holds: nobody vouched for it.
fn unfinished(path: &Path, mut glance: ArchiveSummary) -> ArchiveSummary {
    if is_partial_name(&path.file_name().unwrap_or_default().to_string_lossy()) {
        glance.status = ArchiveStatus::Incomplete;
        glance.faults.insert(0, "incomplete; remove it when no backup is running".to_owned());
    }
    glance
}

/// The head of an archive that comes front to back from `input`, called `name`; no more of it is read than
/// that needs. Nothing behind the head was looked at, and of an archive that is not compressed its digest was
/// not either.
///
/// # Errors
/// It can't be read, is damaged there, or is encrypted and does not open.
pub fn head_from(input: impl Read + Send, name: &str, identities: &Identities) -> Result<Manifest> {
    let mut seen = HeadOnly(None);
    let mut reader = ArchiveReader::new(&mut seen);
    let incoming = DecryptingReader::open(input, name, identities)?;
    let read = read_pipe(incoming, name, &read_options(), |chunk| reader.chunk(&chunk));
    drop(reader);
    match (seen.0, read) {
        (Some(head), _) => Ok(head),
        (None, Err(error)) => Err(error),
        (None, Ok(_)) => {
            Err(Error::new(ErrorKind::Incomplete, format!("'{name}' ends before its head does")))
        }
    }
}

/// Keeps the head, and wants no more.
struct HeadOnly(Option<Manifest>);

impl Visitor for HeadOnly {
    fn head(&mut self, head: &Manifest) -> Result<()> {
        self.0 = Some(head.clone());
        Err(no_more())
    }

    fn disk(&mut self, _: usize, _: &CorrespondenceTable) -> Result<()> {
        Ok(())
    }

    fn data(&mut self, _: usize, _: &Run, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// Takes the tables of a disk, in the order in which they stand in an archive.
pub trait TableVisitor {
    /// A row of its allocation table.
    ///
    /// # Errors
    /// Whatever the taker has against it; ends the reading.
    fn allocation(&mut self, row: &AllocationRow) -> Result<()>;

    /// Its block correspondence table, and where in the stream its bytes begin.
    ///
    /// # Errors
    /// As [`TableVisitor::allocation`].
    fn correspondence(&mut self, table: &CorrespondenceTable, dense_at: StreamOffset) -> Result<()>;
}

/// Gives `taker` the tables of the disk `target` of an archive that comes front to back from `input`, called
/// `name` in messages. Of a compressed archive, each of whose frames vouches for itself, no more is read than
/// up to the disk's bytes; any other one is read to its end, for only there stands what its tables are
/// checked against.
///
/// # Errors
/// It can't be read, is damaged or incomplete as far as it was read, is encrypted and does not open,
/// or has no such disk; those of `taker`.
pub fn tables_from(
    input: impl Read + Send,
    name: &str,
    identities: &Identities,
    target: &str,
    taker: &mut dyn TableVisitor,
) -> Result<()> {
    let known = Cell::new(false);
    let mut seen =
        DiskTableVisitor { target, taker, index: None, dense_at: StreamOffset::ZERO, known: &known };
    let mut reader = ArchiveReader::new(&mut seen);
    let incoming = DecryptingReader::open(input, name, identities)?;
    let enough = Cell::new(false);
    let read = read_pipe(incoming, name, &read_options(), |chunk| {
        reader.chunk(&chunk)?;
        enough.set(known.get() && matches!(chunk.state, ChunkState::Intact(_)));
        if enough.get() { Err(no_more()) } else { Ok(()) }
    });
    match read {
        Err(_) if enough.get() => Ok(()),
        Err(error) => Err(error),
        Ok(end) => {
            end.check(name)?;
            end.check_id(reader.finish()?.head.archive)
        }
    }
}

fn no_more() -> Error {
    Error::new(ErrorKind::Interrupted, "no more is wanted")
}

/// Shows the tables of one disk.
struct DiskTableVisitor<'a> {
    target: &'a str,
    taker: &'a mut dyn TableVisitor,
    index: Option<usize>,
    dense_at: StreamOffset,
    known: &'a Cell<bool>,
}

impl Visitor for DiskTableVisitor<'_> {
    fn head(&mut self, head: &Manifest) -> Result<()> {
        self.index = head.disks.iter().position(|disk| disk.target == self.target);
        let known = self.index.map(drop);
        known.ok_or_else(|| no_disk(self.target, head))
    }

    fn allocation(&mut self, index: usize, row: &AllocationRow) -> Result<()> {
        if Some(index) == self.index { self.taker.allocation(row) } else { Ok(()) }
    }

    fn dense_at(&mut self, _: usize, at: StreamOffset) {
        self.dense_at = at;
    }

    fn disk(&mut self, index: usize, table: &CorrespondenceTable) -> Result<()> {
        if Some(index) != self.index {
            return Ok(());
        }
        self.known.set(true);
        self.taker.correspondence(table, self.dense_at)
    }

    fn data(&mut self, _: usize, _: &Run, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// Opens the archive at `location`, with `identities` where it is encrypted, for its tables and gives them to
/// `look`.
///
/// # Errors
/// When it can't be read, is damaged or incomplete, or is encrypted and does not open; those of `look`.
pub fn with_index<T>(
    location: &Location,
    identities: &Identities,
    look: impl FnOnce(&ArchiveIndex<'_>) -> Result<T>,
) -> Result<T> {
    let source = ArchiveFile::open(medium::open(location)?, identities)?;
    let options = read_options();
    let index = ArchiveIndex::open(&source, &options, Trust::Strict)
        .map_err(|e: Error| e.within(format!("cannot read the tables of '{location}'")))?;
    look(&index)
}

/// A root digest as people and the catalog have it.
pub(super) fn root_text(root: [u8; 32]) -> String {
    blake3::Hash::from_bytes(root).to_hex().to_string()
}

/// The error of a disk that the archive does not have.
pub(super) fn no_disk(name: &str, head: &Manifest) -> Error {
    let names: Vec<&str> = head.disks.iter().map(|disk| disk.target.as_str()).collect();
    Error::new(ErrorKind::NotFound, format!("the archive has no disk '{}'", name.escape_debug()))
        .with_hint(format!("it has: {}", names.join(", ")))
}
