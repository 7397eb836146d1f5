//! A backup of disk images: open, fold, stream, seal.
//!
//! Nothing is written before every image has been opened and its tables read whole; the archive has its final
//! name only when the medium vouches for every byte of it.
//!
//! [`run`] does it for images named by path. A backup of a guest opens its images itself, once they are
//! frozen, and calls [`write()`]; what comes back is not finished, so that the caller can first make sure
//! that nothing was written to the images meanwhile.

mod reports;
mod sources;
mod write;

use std::path::{Path, PathBuf};
use std::time::Instant;

use uuid::Uuid;

use self::reports::report;
pub use self::reports::{BackupReport, CopyReport, DiskReport};
pub use self::sources::{DetectZeroes, RawHeaderCheck};
use self::sources::{fold_all, open_all};
use self::write::stream;
use super::Control;
use super::folded_disk::{DiskSet, FoldedDisk};
use super::host_identity;
use super::resume::{NewArchive, OpenArchive, ResumeContext, ResumeDecision, ResumeRecord, SavedAllocation};
use virtfold_archive::crypt::{self, Envelope, Recipients};
use virtfold_archive::layout::BackupKind;
use virtfold_archive::manifest::{
    self, Backing, BackupSubject, CompressionNote, ConsistencyInfo, Disk, Manifest, Qcow2, Source,
};
use virtfold_archive::stream::{Cancel, Compression};
use virtfold_archive::table::Layout;
use virtfold_archive::writer::{ArchiveContents, Attachment, DiskTables, MapEntries, Rows, WrittenArchive};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::units::BlockSize;
use virtfold_image::{self as image, DiskImage, Format, ImageAccess};
use virtfold_medium::{
    self as medium, ArchiveLabel, EncryptingMedium, Location, Medium, MediumOutcomes, RateLimit, RateLimited,
    name_part,
};

/// The longest label in an archive's file name, bytes.
const MAX_LABEL: usize = 128;

/// One image to back up.
#[derive(Clone, Debug)]
pub struct ImageSpec {
    /// The top image of the chain.
    pub path: PathBuf,
    /// Its format; never guessed.
    pub format: Format,
    /// The disk's name in the archive.
    pub target: String,
}

/// How images become an archive.
#[derive(Clone, Debug)]
pub struct ArchiveOptions {
    /// How it is compressed.
    pub compression: Compression,
    /// Whom it is encrypted to; without them, it is not.
    pub encrypt_to: Option<Recipients>,
    /// Used blocks or all.
    pub layout: Layout,
    /// The granularity; without it, each source's own.
    pub block_size: Option<BlockSize>,
    /// Whether blocks of zeros are looked for.
    pub detect_zeroes: DetectZeroes,
    /// Bytes a second at most.
    pub limit_rate: Option<RateLimit>,
    /// Worker threads.
    pub workers: usize,
}

/// What is put into an archive.
#[derive(Debug)]
pub struct BackupInput {
    /// What the archive is of.
    pub subject: BackupSubject,
    /// How the guest was frozen, as far as it is known when the archive begins.
    pub freeze: Option<ConsistencyInfo>,
    /// The members beside the disks.
    pub attachments: Vec<Attachment>,
    /// Each disk's name in the archive, and its image.
    pub disks: Vec<(String, DiskImage)>,
}

/// An archive that is written, all of it, and has no name yet. Dropped, it is gone.
#[must_use = "an archive that is not finished is gone"]
pub struct UnnamedArchive {
    medium: Box<dyn Medium>,
    head: Manifest,
    sealed: WrittenArchive,
    encrypted: bool,
    /// Where it was gone on with.
    resumed_at: Option<u64>,
    started: Instant,
    /// Goes last: as long as the medium is there, so is the record.
    _record: Option<ResumeRecord>,
}

/// What to back up, how and to where.
#[derive(Clone, Debug)]
pub struct BackupRequest {
    /// The disks, at least one.
    pub images: Vec<ImageSpec>,
    /// What the set is called; without it, the first image's file name without its extension.
    pub label: Option<String>,
    /// Where the archive goes: one copy to each, out of one read.
    pub destinations: Vec<Location>,
    /// How it is compressed.
    pub compression: Compression,
    /// Whom it is encrypted to; without them, it is not.
    pub encrypt_to: Option<Recipients>,
    /// Used blocks or all.
    pub layout: Layout,
    /// The granularity; without it, each source's own.
    pub block_size: Option<BlockSize>,
    /// Whether blocks of zeros are looked for.
    pub detect_zeroes: DetectZeroes,
    /// Bytes a second at most.
    pub limit_rate: Option<RateLimit>,
    /// Whether the caller vouches that the images do not change.
    pub usage: ImageAccess,
    /// What is done with a raw image that begins as a container of another format does.
    pub containers: RawHeaderCheck,
    /// Worker threads.
    pub workers: usize,
}

/// The name of disk number `index` where none is given: `vda` to `vdz`, then `vdaa` and on.
pub fn default_target(index: usize) -> String {
    const LETTERS: &[u8; 26] = b"abcdefghijklmnopqrstuvwxyz";
    let mut name = Vec::new();
    let mut rest = index + 1;
    while rest > 0 {
        rest -= 1;
        name.push(LETTERS.get(rest % 26).copied().unwrap_or(b'a'));
        rest /= 26;
    }
    name.reverse();
    format!("vd{}", String::from_utf8_lossy(&name))
}

/// Runs the backup.
///
/// # Errors
/// When an image can't be read or trusted, is in use, or the medium fails; no archive then has its
/// final name.
pub fn run(request: &BackupRequest, control: &Control) -> Result<BackupReport> {
    let copies = MediumOutcomes::default();
    let places = &request.destinations;
    let report =
        run_to(request, control, |label, cancel| medium::create_all(places, label, cancel, &copies))?;
    Ok(report.with(&copies))
}

/// As [`run`], to the medium that `open` makes, which is told of the archive and of what ends the run; the
/// request's destinations are not looked at. The medium is held to the request's rate.
///
/// # Errors
/// As [`run`]; those of `open`, which is called when all tables have been read.
pub fn run_to(
    request: &BackupRequest,
    control: &Control,
    open: impl FnOnce(&ArchiveLabel, &Cancel) -> Result<Box<dyn Medium>>,
) -> Result<BackupReport> {
    run_kept(request, (control, None), open)
}

/// As [`run_to`], with a record of the archive, by which a later run goes on should this one be killed; where
/// such a record lies there, this run goes on.
///
/// # Errors
/// As [`run_to`]; what an earlier run left can't be looked at.
pub fn run_kept(
    request: &BackupRequest,
    (control, keep): (&Control, Option<&ResumeContext<'_>>),
    open: impl FnOnce(&ArchiveLabel, &Cancel) -> Result<Box<dyn Medium>>,
) -> Result<BackupReport> {
    let material = BackupInput {
        subject: subject(request)?,
        freeze: None,
        attachments: Vec::new(),
        disks: open_all(request, control)?,
    };
    write_kept(material, &request.manner(), (control, keep), open)?.finish(control)
}

/// Reads the tables of all disks and writes the whole archive to the medium that `open` makes, which is told
/// of the archive and of what ends the copy. The archive has its name when [`UnnamedArchive::finish`] has returned.
///
/// # Errors
/// When an image can't be read or trusted, or the medium fails; those of `open`, which is called
/// when all tables have been read.
pub fn write(
    material: BackupInput,
    manner: &ArchiveOptions,
    control: &Control,
    open: impl FnOnce(&ArchiveLabel, &Cancel) -> Result<Box<dyn Medium>>,
) -> Result<UnnamedArchive> {
    write_kept(material, manner, (control, None), open)
}

/// As [`write()`], with a record as [`run_kept`] has it.
///
/// # Errors
/// As [`write()`] and [`run_kept`].
pub fn write_kept(
    material: BackupInput,
    manner: &ArchiveOptions,
    (control, keep): (&Control, Option<&ResumeContext<'_>>),
    open: impl FnOnce(&ArchiveLabel, &Cancel) -> Result<Box<dyn Medium>>,
) -> Result<UnnamedArchive> {
    let started = Instant::now();
    let BackupInput { subject, freeze, attachments, disks } = material;
    let keep = keep.filter(|keep| keep.is_possible());
    let disks = fold_all(disks, manner, control)?;
    let head = head((subject, freeze), manner, &disks)?;
    let label = medium_label(&head, manner, &attachments)?;
    let recipients = manner.encrypt_to.as_ref();
    let candidate =
        NewArchive { head: &head, attachments: &attachments, disks: &disks, label: &label, recipients };
    let tables: Vec<&dyn DiskTables> = disks.0.iter().map(|disk| disk as &dyn DiskTables).collect();
    let start = keep.map(|keep| keep.start(&candidate, &control.cancel)).transpose()?;
    let begun = match start {
        Some(ResumeDecision::Resume(gone_on)) => *gone_on,
        start => {
            let mut medium = open(&label, &control.cancel)?;
            let envelope = recipients.map(Envelope::new).transpose()?;
            let (record, log) = match (start, keep) {
                (Some(ResumeDecision::StartOver(origin)), Some(keep)) => keep.begin(
                    (origin.as_deref(), envelope.as_ref()),
                    (&head, &attachments, &tables),
                    medium.as_mut(),
                ),
                _ => Default::default(),
            };
            OpenArchive { record, head, attachments, medium, envelope, rows: Vec::new(), log, at: None }
        }
    };
    let OpenArchive { record, head, attachments, medium, envelope, rows, log, at } = begun;
    let (mut medium, reached) = outward(medium, (manner, control), (envelope.as_ref(), at))?;
    let as_begun: Vec<ResumedTables<'_>> =
        rows.iter().zip(&tables).map(|(rows, now)| ResumedTables { rows, now: *now }).collect();
    let as_begun = as_begun.iter().map(|disk| disk as &dyn DiskTables);
    let tables = if rows.is_empty() { tables.clone() } else { as_begun.collect() };
    let contents = ArchiveContents { head: &head, attachments: &attachments, disks: tables, data: &disks };
    let sealed = stream(&contents, (manner, control), medium.as_mut(), (log, reached))?;
    disks.0.iter().try_for_each(|disk| disk.image.check_unchanged())?;
    let encrypted = manner.encrypt_to.is_some();
    let resumed_at = at.map(|_| reached);
    Ok(UnnamedArchive { medium, head, sealed, encrypted, resumed_at, started, _record: record })
}

/// What the archive goes through on its way to a medium that has so many bytes of it; and the byte of the
/// archive that comes next.
fn outward(
    mut medium: Box<dyn Medium>,
    (manner, control): (&ArchiveOptions, &Control),
    (envelope, at): (Option<&Envelope>, Option<u64>),
) -> Result<(Box<dyn Medium>, u64)> {
    let at = at.unwrap_or_default();
    if let Some(limit) = manner.limit_rate {
        medium = Box::new(RateLimited::new(medium, limit, &control.cancel));
    }
    let Some(envelope) = envelope else { return Ok((medium, at)) };
    let (encrypting, reached) = EncryptingMedium::resume(medium, envelope, at)?;
    Ok((Box::new(encrypting), reached))
}

/// The tables of a disk whose archive is gone on with: its rows are those of the beginning.
struct ResumedTables<'a> {
    rows: &'a SavedAllocation,
    now: &'a dyn DiskTables,
}

impl DiskTables for ResumedTables<'_> {
    fn rows(&self) -> Rows<'_> {
        self.rows.rows()
    }

    fn runs(&self) -> MapEntries<'_> {
        self.now.runs()
    }
}

impl UnnamedArchive {
    /// Makes the archive durable under its final name.
    ///
    /// # Errors
    /// Those of [`Medium::finish`].
    pub fn finish(self, control: &Control) -> Result<BackupReport> {
        control.progress.enter("syncing", 0);
        let durable = self.medium.finish()?;
        Ok(BackupReport {
            archive: durable.name,
            id: self.head.archive,
            archive_bytes: durable.bytes,
            encrypted: self.encrypted,
            resumed_at: self.resumed_at,
            root: blake3::Hash::from_bytes(self.sealed.root).to_hex().to_string(),
            seconds: self.started.elapsed().as_secs_f64(),
            tapes: Vec::new(),
            disks: self.head.disks.iter().map(report).collect(),
            copies: Vec::new(),
            head: Some(self.head),
        })
    }
}

impl BackupRequest {
    fn manner(&self) -> ArchiveOptions {
        ArchiveOptions {
            compression: self.compression,
            encrypt_to: self.encrypt_to.clone(),
            layout: self.layout,
            block_size: self.block_size,
            detect_zeroes: self.detect_zeroes,
            limit_rate: self.limit_rate,
            workers: self.workers,
        }
    }
}

/// What the medium is told of the archive.
fn medium_label(
    head: &Manifest,
    manner: &ArchiveOptions,
    attachments: &[Attachment],
) -> Result<ArchiveLabel> {
    /// A run is a line in each of two tables, one of them twice.
    const RUN: u64 = 256;
    /// Headers, records, padding.
    const REST: u64 = 1 << 20;
    let disks = head.disks.iter().map(|disk| disk.dense_length.saturating_add(disk.runs.saturating_mul(RUN)));
    let files = attachments.iter().map(|file| file.content.len() as u64);
    let bytes = disks.chain(files).fold(REST, u64::saturating_add);
    Ok(ArchiveLabel {
        name: archive_name(head, manner)?,
        id: head.archive,
        host: head.host.clone(),
        subject: head.subject.name().to_owned(),
        // Digests, frames and encryption add less than this.
        estimate: bytes.saturating_add(bytes / 256),
    })
}

/// `LABEL-YYYYMMDDTHHMMSSZ-ID8.tar[.zst][.age]`: sorts by label and time, and two backups never have one
/// name.
fn archive_name(head: &Manifest, manner: &ArchiveOptions) -> Result<String> {
    let seconds = i64::try_from(head.time()?).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_second(seconds).map_err(|e| {
        Error::new(ErrorKind::Internal, "the time of the backup is out of range").with_source(e)
    })?;
    let id = head.archive.simple().to_string();
    let mut extension = match manner.compression {
        Compression::None => "tar".to_owned(),
        Compression::Zstd { .. } => "tar.zst".to_owned(),
    };
    if manner.encrypt_to.is_some() {
        extension = format!("{extension}.{}", crypt::EXTENSION);
    }
    let time = time.strftime("%Y%m%dT%H%M%SZ");
    let name = file_label(head.subject.name());
    Ok(format!("{name}-{time}-{}.{extension}", id.get(..8).unwrap_or(&id)))
}

/// A name as part of a file's name. A label that [`label`] lets pass is kept as it is; a domain's name may
/// hold what a file name does not, and the archive's head has it as it is.
pub(super) fn file_label(name: &str) -> String {
    name_part(name, MAX_LABEL, |c| c == '/' || c.is_control())
}

/// What the archive of a set of images is of.
fn subject(request: &BackupRequest) -> Result<BackupSubject> {
    let paths =
        request.images.iter().map(|image| place_of(&image.path)).collect::<Result<Option<Vec<_>>>>()?;
    let labelled = request.label.is_some();
    Ok(BackupSubject::Images { name: label(request)?, labelled, paths: paths.unwrap_or_default() })
}

/// Where an image is: its directory's real path and its name there, which for a volume is the one that lasts.
/// Nothing where that is no UTF-8, which a head can't hold.
fn place_of(path: &Path) -> Result<Option<String>> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let real = folder.canonicalize().at(|| format!("cannot look at '{}'", folder.display()))?;
    Ok(real.join(path.file_name().unwrap_or_default()).to_str().map(ToOwned::to_owned))
}

/// What the set of images is called: part of a file name, so no separators, and not hidden.
fn label(request: &BackupRequest) -> Result<String> {
    let first = request.images.first().and_then(|image| image.path.file_stem());
    let label = match (&request.label, first) {
        (Some(label), _) => label.clone(),
        (None, Some(stem)) => stem.to_string_lossy().into_owned(),
        (None, None) => return Err(Error::new(ErrorKind::Usage, "no image to back up")),
    };
    let fits = !label.is_empty() && label.len() <= MAX_LABEL && !label.starts_with('.');
    if fits && !label.chars().any(|c| c == '/' || c.is_control()) {
        return Ok(label);
    }
    Err(Error::new(ErrorKind::Usage, format!("invalid archive name '{}'", label.escape_debug()))
        .with_hint("use --label NAME: up to 128 bytes, no '/', not beginning with '.'"))
}

fn head(
    (subject, freeze): (BackupSubject, Option<ConsistencyInfo>),
    manner: &ArchiveOptions,
    disks: &DiskSet,
) -> Result<Manifest> {
    let (method, level) = match manner.compression {
        Compression::None => ("none", None),
        Compression::Zstd { level } => ("zstd", Some(level)),
    };
    Ok(Manifest {
        version: manifest::VERSION,
        requires: Vec::new(),
        archive: Uuid::new_v4(),
        created: manifest::now(),
        host: host_identity::name()?,
        host_id: host_identity::id()?,
        tool: concat!("virtfold ", env!("CARGO_PKG_VERSION")).to_owned(),
        subject,
        kind: BackupKind::Full,
        parent: None,
        compression: CompressionNote { method: method.to_owned(), level },
        freeze,
        disks: disks.0.iter().map(describe).collect(),
    })
}

fn describe(disk: &FoldedDisk) -> Disk {
    Disk {
        target: disk.target.clone(),
        capacity: disk.image.capacity(),
        source: source(disk.image.source()),
        block_size: disk.block.get(),
        layout: disk.layout,
        allocated: disk.allocation.allocated(),
        dense_length: disk.table.dense_len(),
        runs: disk.table.len(),
    }
}

fn source(source: &image::ImageInfo) -> Source {
    let qcow2 = source.qcow2.as_ref().map(|options| Qcow2 {
        compat: options.compat.clone(),
        cluster_size: options.cluster_size,
        extended_l2: options.extended_l2,
        compression_type: match options.compression_type {
            image::CompressionType::Zlib => "zlib".to_owned(),
            image::CompressionType::Zstd => "zstd".to_owned(),
        },
        lazy_refcounts: options.lazy_refcounts,
        refcount_bits: options.refcount_bits,
        data_file: options.data_file.clone(),
    });
    let link =
        |link: &image::ChainImage| Backing { path: link.path.clone(), format: link.format.to_string() };
    Source {
        format: source.format.to_string(),
        qcow2,
        backing: source.chain.iter().skip(1).map(link).collect(),
        warnings: source.warnings.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_targets_count_as_linux_does() {
        assert_eq!(default_target(0), "vda");
        assert_eq!(default_target(25), "vdz");
        assert_eq!(default_target(26), "vdaa");
        assert_eq!(default_target(26 * 27), "vdaaa");
    }

    #[test]
    fn any_domain_s_name_makes_a_file_s_name() {
        for (name, file) in [("web 1", "web 1"), ("a/b\n", "a_b_"), ("..", "_"), (".x", "_x"), ("", "_")] {
            assert_eq!(file_label(name), file);
        }
        assert_eq!(file_label(&"é".repeat(100)), "é".repeat(64));
    }
}
