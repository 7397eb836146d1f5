//! What an archive says of itself before its first disk: its name, its subject, its head.

use std::path::Path;

use uuid::Uuid;

use super::ImagesRequest;
use crate::folded_disk::{DiskSet, FoldedDisk};
use crate::host_identity;
use crate::increment::{FoundChanges, Parent};
use crate::options::BackupOptions;
use virtfold_archive::crypt;
use virtfold_archive::layout::BackupKind;
use virtfold_archive::manifest::{
    self, Backing, BackupSubject, CompressionNote, ConsistencyInfo, Disk, Manifest, Qcow2, Source,
};
use virtfold_archive::stream::Compression;
use virtfold_archive::writer::Attachment;
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_image as image;
use virtfold_medium::{ArchiveLabel, name_part};

/// The longest label in an archive's file name, bytes.
const MAX_LABEL: usize = 128;

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

/// What the medium is told of the archive.
pub(super) fn medium_label(
    head: &Manifest,
    options: &BackupOptions,
    attachments: &[Attachment],
) -> Result<ArchiveLabel> {
    /// A run is a line in each of two tables, one of them twice.
    const RUN: u64 = 256;
    /// Headers, records, padding.
    const REST: u64 = 1 << 20;
    let disks = head.disks.iter().map(|disk| disk.dense_length.saturating_add(disk.runs.saturating_mul(RUN)));
    let files = attachments.iter().map(|file| file.content.len() as u64);
    let digests = head.disks.iter().map(manifest::Disk::blocks_len);
    let bytes = disks.chain(files).chain(digests).fold(REST, u64::saturating_add);
    Ok(ArchiveLabel {
        name: archive_name(head, options)?,
        id: head.archive,
        host: head.host.clone(),
        subject: head.subject.name().to_owned(),
        // Digests, frames and encryption add less than this.
        estimate: bytes.saturating_add(bytes / 256),
    })
}

/// `LABEL-YYYYMMDDTHHMMSSZ-ID8.tar[.zst][.age]`: sorts by label and time, and two backups never have one
/// name.
fn archive_name(head: &Manifest, options: &BackupOptions) -> Result<String> {
    let seconds = i64::try_from(head.time()?).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_second(seconds).map_err(|e| {
        Error::new(ErrorKind::Internal, "the time of the backup is out of range").with_source(e)
    })?;
    let id = head.archive.simple().to_string();
    let mut extension = match options.compression {
        Compression::None => "tar".to_owned(),
        Compression::Zstd { .. } => "tar.zst".to_owned(),
    };
    if options.encrypt_to.is_some() {
        extension = format!("{extension}.{}", crypt::EXTENSION);
    }
    let time = time.strftime("%Y%m%dT%H%M%SZ");
    let name = file_label(head.subject.name());
    Ok(format!("{name}-{time}-{}.{extension}", id.get(..8).unwrap_or(&id)))
}

/// A name as part of a file's name. A label that [`label`] lets pass is kept as it is; a domain's name may
/// hold what a file name does not, and the archive's head has it as it is.
pub(crate) fn file_label(name: &str) -> String {
    name_part(name, MAX_LABEL, |c| c == '/' || c.is_control())
}

/// What the archive of a set of images is of.
pub(super) fn subject(request: &ImagesRequest) -> Result<BackupSubject> {
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
fn label(request: &ImagesRequest) -> Result<String> {
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

/// What a new archive is of.
pub(super) struct HeadSource<'a> {
    pub(super) subject: &'a BackupSubject,
    pub(super) freeze: Option<&'a ConsistencyInfo>,
    /// The archive that it continues.
    pub(super) parent: Option<&'a Parent>,
}

/// The head of an archive that is new.
pub(super) fn head(of: &HeadSource<'_>, options: &BackupOptions, disks: &DiskSet) -> Result<Manifest> {
    let (method, level) = match options.compression {
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
        subject: of.subject.clone(),
        kind: if of.parent.is_some() { BackupKind::Incremental } else { BackupKind::Full },
        parent: of.parent.map(Parent::note),
        compression: CompressionNote { method: method.to_owned(), level },
        freeze: of.freeze.cloned(),
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
        digest_block: Some(disk.block.get().min(manifest::MAX_DIGEST_BLOCK)),
        changes: disk.changes.as_ref().map(FoundChanges::note),
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
