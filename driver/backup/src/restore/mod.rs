//! A restore: disks out of an archive, to files or block devices.
//!
//! From a file the archive is opened by its index, and only the disks that are wanted are read; from a pipe
//! it is read once, front to back (`pipe`). Either way a disk gets its name when all of it is written, every
//! MiB of it has had its digest, and it is durable. When anything fails, no file has appeared.
//!
//! An increment is read together with the archives that it rests on (`chain`): one pass over each of them, of
//! which only the blocks are fetched that no newer one replaces.
//!
//! [`VerifyMode::Partial`] is for the bad day: damage and cuts are noted as ranges of the disk, which stay
//! zeros, and the rest is restored.

mod chain;
#[cfg(test)]
mod chain_tests;
#[cfg(test)]
mod every_byte_tests;
mod file;
mod free_space;
mod opened_chain;
mod pipe;
mod plan;
#[cfg(test)]
mod salvage_tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use self::free_space::Room;
pub(crate) use self::free_space::{Forecast, shareable};
pub(crate) use self::opened_chain::OpenedChain;
pub use self::plan::{PlannedRestore, RestorePlan, plan, plan_from};
use super::Control;
use super::inspect::{no_disk, root_text};
use super::known_copy::{FoundArchive, KnownCopy};
use super::parents::{ChainEntry, ParentSearch};
use super::target::{Compat, Method, Qcow2Options, TargetFormat, TargetSpec};
use super::trust::{Authenticity, TrustPolicy};
use virtfold_archive::crypt::{ArchiveFile, Identities};
use virtfold_archive::index::ArchiveIndex;
use virtfold_archive::manifest::{Disk, Manifest};
use virtfold_archive::stream::ReadOptions;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::partial_file::Overwrite;
use virtfold_base::units::GuestOffset;
use virtfold_image::Format;
use virtfold_medium::{Location, LostRanges, PipeSource};

/// Which disks go where.
#[derive(Clone, Debug)]
pub enum Selection {
    /// These, each to a file or block device.
    Disks(Vec<(String, PathBuf)>),
    /// All, into a directory.
    All(PathBuf),
}

/// When data are checked against their digests, and what damage does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyMode {
    /// Before success is reported; damage is an error.
    All,
    /// As [`VerifyMode::All`], but data that are shared with the archive instead of copied are not read at
    /// all.
    Unverified,
    /// Damage is noted, and the rest restored.
    Partial,
}

/// What to restore, how and to where.
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// The archive.
    pub archive: Location,
    /// What opens it, where it is encrypted.
    pub identities: Identities,
    /// Which disks go where.
    pub selection: Selection,
    /// The format of what is made; without it, the source's.
    pub format: Option<Format>,
    /// How pieces find their place.
    pub method: Method,
    /// The cluster size of a new qcow2; without it, the source's or 64 KiB.
    pub cluster_size: Option<u64>,
    /// What happens where a target exists.
    pub existing: Overwrite,
    /// When data are checked.
    pub checking: VerifyMode,
    /// Whose archives are taken.
    pub trust: TrustPolicy,
    /// Threads.
    pub workers: usize,
    /// What the catalog knows of the archive: nothing of another one is restored from there.
    pub known: KnownCopy,
    /// Where the archives are looked for that an increment rests on.
    pub parents: ParentSearch,
}

/// What came of a restore.
#[derive(Clone, Debug, Serialize)]
pub struct RestoreReport {
    /// The archive.
    pub archive: String,
    /// Whether the archive has its end.
    pub complete: bool,
    /// Who made it, as far as its end tells.
    pub authenticity: Authenticity,
    /// Whether every byte that was restored had its digest.
    pub verified: bool,
    /// Whether data were shared with the archive and not read.
    pub unread: bool,
    /// The archives that an increment rests on, the nearest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<ChainEntry>,
    /// Disks that a parent has and the archive has no more: they are not restored.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
    /// What is not in the disks that should be.
    #[serde(skip)]
    pub damage: Vec<LostRange>,
    /// What was found wrong beside that.
    pub notes: Vec<String>,
    /// The disks.
    pub disks: Vec<RestoredDisk>,
    /// How long it took.
    pub seconds: f64,
}

/// A restored disk.
#[derive(Clone, Debug, Serialize)]
pub struct RestoredDisk {
    /// Its name in the archive.
    pub target: String,
    /// The file or device.
    pub path: String,
    /// `raw` or `qcow2`.
    pub format: &'static str,
    /// `rewrite` or `remap`.
    pub method: &'static str,
    /// Its size, bytes.
    pub capacity: u64,
    /// Bytes of data in it.
    pub data: u64,
    /// Whether those are shared with the archive's file.
    pub shared: bool,
}

/// A range of a disk that could not be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostRange {
    /// The disk.
    pub disk: String,
    /// Its first byte.
    pub start: u64,
    /// Its bytes.
    pub length: u64,
}

impl std::fmt::Display for LostRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let end = self.start.saturating_add(self.length);
        write!(
            f,
            "disk {}, bytes {} to {end} ({})",
            self.disk,
            self.start,
            virtfold_base::units::Human(self.length)
        )
    }
}

/// Adds a lost range, joined with the one before it where they touch.
pub(super) fn note_lost(damage: &mut Vec<LostRange>, disk: &str, guest: GuestOffset, length: u64) {
    let start = guest.get();
    match damage.last_mut() {
        Some(last) if last.disk == disk && last.start.checked_add(last.length) == Some(start) => {
            last.length += length;
        }
        _ => damage.push(LostRange { disk: disk.to_owned(), start, length }),
    }
}

/// Runs the restore.
///
/// # Errors
/// When the archive is damaged or incomplete (unless a partial restore was asked for), does not have
/// the disks, or when a target can't be made. No file has then appeared, except where the last step, the
/// naming of the finished disks one after the other, fails in its midst: those named by then are whole.
pub fn run(request: &RestoreRequest, control: &Control) -> Result<RestoreReport> {
    if request.archive == Location::Pipe {
        let input = PipeSource::stdin(std::sync::Arc::clone(&control.cancel))?;
        return run_from(request, control, input);
    }
    let started = Instant::now();
    let mut report = file::restore(request, control)?;
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// As [`run`], from an archive that comes front to back from `input`; the request's archive is its name in
/// messages. A partial restore keeps all of it in a file without a name, beside the first target or in
/// `$TMPDIR`: it finds as much as from a file.
///
/// # Errors
/// As [`run`], and those of `input`.
pub fn run_from(
    request: &RestoreRequest,
    control: &Control,
    input: impl std::io::Read + Send,
) -> Result<RestoreReport> {
    run_over(request, control, input, &LostRanges::default())
}

/// As [`run_from`], where the medium puts zeros in the place of what it can't read, and says in `gaps` where.
///
/// # Errors
/// As [`run_from`].
pub fn run_over(
    request: &RestoreRequest,
    control: &Control,
    input: impl std::io::Read + Send,
    gaps: &LostRanges,
) -> Result<RestoreReport> {
    let started = Instant::now();
    let mut report = match request.checking {
        VerifyMode::Partial => file::restore_spooled(request, control, input, gaps)?,
        VerifyMode::All | VerifyMode::Unverified => pipe::restore(request, control, input)?,
    };
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Refuses an archive that is not the one that the catalog knows there. Of one that is restored in part the
/// size may have changed.
fn expect_known(request: &RestoreRequest, source: &ArchiveFile, index: &ArchiveIndex<'_>) -> Result<()> {
    let whole = request.checking != VerifyMode::Partial;
    let found = FoundArchive {
        id: Some(index.head().archive),
        root: index.tail().map(|tail| root_text(tail.root)),
        bytes: Some(source.stored()).filter(|_| whole),
        encrypted: Some(source.is_encrypted()),
    };
    request.known.expect(&request.archive.to_string(), &found)
}

/// What an archive that is not whole and sound is told.
fn refuse(name: &str, error: Error) -> Error {
    let doubtful = matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Incomplete);
    let error = error.within(format!("'{name}' can't be restored completely"));
    if doubtful && error.hint().is_none() {
        return error.with_hint("--partial restores what is intact and lists what is lost");
    }
    error
}

/// The error of bytes that are not what was written.
fn lost(archive: &str, target: &str, range: Range<GuestOffset>) -> Error {
    let (start, end) = (range.start, range.end);
    Error::new(
        ErrorKind::Damaged,
        format!("'{archive}' is damaged: bytes {start} to {end} of disk {target} are not what was written"),
    )
    .with_hint("'virtfold verify' lists all damage; --partial restores the rest")
}

fn read_options(request: &RestoreRequest, control: &Control) -> ReadOptions {
    let cancel = std::sync::Arc::clone(&control.cancel);
    ReadOptions { workers: request.workers, cancel, carrier: None, archive_id: None }
}

/// The disks that are wanted, with their targets: checked against the head before anything is made.
fn selected(request: &RestoreRequest, head: &Manifest) -> Result<Vec<(String, TargetSpec)>> {
    let wanted: Vec<(&str, Option<&Path>)> = match &request.selection {
        Selection::Disks(disks) => {
            disks.iter().map(|(name, path)| (name.as_str(), Some(path.as_path()))).collect()
        }
        Selection::All(_) => head.disks.iter().map(|disk| (disk.target.as_str(), None)).collect(),
    };
    let mut specs: Vec<(String, TargetSpec)> = Vec::with_capacity(wanted.len());
    let (mut names, mut files) = (BTreeSet::new(), DistinctFiles::default());
    for (name, path) in wanted {
        let disk = head.disk(name).ok_or_else(|| no_disk(name, head))?;
        let format = target_format(&request.wanted(), disk)?;
        let path = match (&request.selection, path) {
            (Selection::All(directory), _) => directory.join(format!("{name}.{}", format_name(format))),
            (Selection::Disks(_), path) => path.unwrap_or(Path::new("")).to_owned(),
        };
        let (is_new, twin) = (names.insert(name), files.insert(&path));
        if !is_new || twin.is_some() {
            return Err(Error::new(ErrorKind::Usage, format!("'{}' is given twice", path.display())));
        }
        let (method, existing) = (request.method, request.existing);
        let spec = TargetSpec { path, format, method, existing };
        spec.check()?;
        specs.push((name.to_owned(), spec));
    }
    Ok(specs)
}

/// A file's directory and name.
type FilePlace = (PathBuf, Option<OsString>);
/// Its device and inode.
type FileIdentity = (u64, u64);

/// Files, whatever they are called, be they there already or not. Each is looked up by what it is, for there
/// may be a thousand.
#[derive(Debug, Default)]
pub(crate) struct DistinctFiles {
    count: usize,
    places: BTreeMap<FilePlace, usize>,
    identities: BTreeMap<FileIdentity, usize>,
}

impl DistinctFiles {
    /// Takes a file in; the number of the first one of those before that is the same.
    pub(crate) fn insert(&mut self, path: &Path) -> Option<usize> {
        let number = self.count;
        self.count += 1;
        let (place, identity) = Self::keys(path);
        let by_place = *self.places.entry(place).or_insert(number);
        let by_identity = identity.map(|identity| *self.identities.entry(identity).or_insert(number));
        Some(by_place.min(by_identity.unwrap_or(number))).filter(|first| *first < number)
    }

    /// The number of the first one that is the same.
    pub(crate) fn find(&self, path: &Path) -> Option<usize> {
        let (place, identity) = Self::keys(path);
        let by_identity = identity.and_then(|identity| self.identities.get(&identity));
        self.places.get(&place).into_iter().chain(by_identity).min().copied()
    }

    fn keys(path: &Path) -> (FilePlace, Option<FileIdentity>) {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = std::fs::canonicalize(parent).unwrap_or_else(|_| parent.to_owned());
        let identity = std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
        ((directory, path.file_name().map(ToOwned::to_owned)), identity)
    }
}

fn format_name(format: TargetFormat) -> &'static str {
    match format {
        TargetFormat::Raw => "raw",
        TargetFormat::Qcow2(_) => "qcow2",
    }
}

fn method_name(method: Method) -> &'static str {
    match method {
        Method::Rewrite => "rewrite",
        Method::Remap => "remap",
    }
}

/// What image was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) format: Option<Format>,
    pub(crate) method: Method,
    pub(crate) cluster_size: Option<u64>,
}

impl RestoreRequest {
    fn wanted(&self) -> Wanted {
        Wanted { format: self.format, method: self.method, cluster_size: self.cluster_size }
    }
}

/// The format of the new disk: as asked, with the options of the source where that was a qcow2.
pub(crate) fn target_format(wanted: &Wanted, disk: &Disk) -> Result<TargetFormat> {
    let format = match wanted.format {
        Some(format) => format,
        None => disk.source.format.parse().map_err(|why: String| Error::new(ErrorKind::Unsupported, why))?,
    };
    if format == Format::Raw {
        return match wanted.cluster_size {
            None => Ok(TargetFormat::Raw),
            Some(_) => Err(Error::new(ErrorKind::Usage, "--cluster-size is for qcow2 only")
                .with_hint("omit --cluster-size, or use --format qcow2")),
        };
    }
    let mut options = Qcow2Options::default();
    if let Some(source) = &disk.source.qcow2 {
        options.compat = if source.compat == "0.10" { Compat::V2 } else { Compat::V3 };
        options.cluster_size = source.cluster_size;
        options.extended_l2 = source.extended_l2;
        options.lazy_refcounts = source.lazy_refcounts;
    } else if wanted.method == Method::Remap {
        // A raw source has blocks and no clusters: take the blocks for clusters, and a remap fits.
        options.cluster_size = disk.block_size;
    }
    options.cluster_size = wanted.cluster_size.unwrap_or(options.cluster_size);
    Ok(TargetFormat::Qcow2(options))
}
