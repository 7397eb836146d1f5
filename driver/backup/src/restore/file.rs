//! A restore from a medium that can be read anywhere: by the archive's index, and only what is wanted.

use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::opened_chain::OpenedChain;
use super::{
    RestoreReport, RestoreRequest, RestoredDisk, Selection, VerifyMode, expect_known, format_name, lost,
    method_name, note_lost, read_options, refuse, selected,
};
use crate::Control;
use crate::parents;
use crate::target::{TargetDisk, TargetSpec};
use crate::trust::Authenticity;
use virtfold_archive::crypt::ArchiveFile;
use virtfold_archive::index::{ArchiveIndex, DiskPiece, IndexedDisk, Trust};
use virtfold_archive::layout::BackupKind;
use virtfold_archive::source::Source;
use virtfold_archive::stream::ReadAt;
use virtfold_archive::table::Run;
use virtfold_base::error::{Error, ErrorKind, IoContext, OrInternal, Result, sentence};
use virtfold_base::units::{DenseOffset, GuestOffset};
use virtfold_medium::{self as medium, LostRanges, SpooledSource};

/// Restores from the archive that the request names.
pub(super) fn restore(request: &RestoreRequest, control: &Control) -> Result<RestoreReport> {
    let name = request.archive.to_string();
    control.progress.enter("opening", 0);
    let source = ArchiveFile::salvage(medium::open(&request.archive)?, &request.identities)?;
    restore_opened(request, control, &source, name)
}

/// Restores what is intact of an archive that comes once, front to back. It is taken into a file without a
/// name first, for what is damaged is found by what stands at its end.
pub(super) fn restore_spooled(
    request: &RestoreRequest,
    control: &Control,
    input: impl Read,
    gaps: &LostRanges,
) -> Result<RestoreReport> {
    let archive = request.archive.to_string();
    let name = if archive == "-" { "standard input".to_owned() } else { archive.clone() };
    control.progress.enter("reading", 0);
    let spooled = SpooledSource::take(input, &name, room(request), &control.cancel)?;
    let spooled = Arc::new(spooled);
    let source: Arc<dyn Source> = Arc::clone(&spooled) as _;
    let opened = ArchiveFile::salvage(source, &request.identities).inspect(|source| {
        if !source.is_encrypted() {
            spooled.mind(gaps);
        }
    });
    let restored = opened.and_then(|source| restore_opened(request, control, &source, name));
    let mut report = restored.map_err(|error| match spooled.broken() {
        // What is missing of it may be why.
        Some(broken) => error.within(sentence(broken)),
        None => error,
    })?;
    report.archive = archive;
    if let Some(broken) = spooled.broken() {
        report.complete = false;
        report.notes.insert(0, sentence(broken));
    }
    report.notes.extend(gaps.notes());
    Ok(report)
}

/// Where there is room for disks there may be room for their archive: the directory of the first target that
/// is no device.
fn room(request: &RestoreRequest) -> Option<PathBuf> {
    match &request.selection {
        Selection::All(directory) => Some(directory.clone()),
        Selection::Disks(disks) => {
            let is_device =
                |path: &Path| path.metadata().is_ok_and(|found| found.file_type().is_block_device());
            let path = disks.iter().map(|(_, path)| path).find(|path| !is_device(path))?;
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            Some(parent.unwrap_or(Path::new(".")).to_owned())
        }
    }
}

fn restore_opened(
    request: &RestoreRequest,
    control: &Control,
    source: &ArchiveFile,
    name: String,
) -> Result<RestoreReport> {
    let trust = if request.checking == VerifyMode::Partial { Trust::Salvage } else { Trust::Strict };
    let proven = source.proven();
    if let (Err(error), Trust::Strict) = (&proven, trust) {
        return Err(refuse(&name, Error::new(error.kind(), error.to_string())));
    }
    let options = read_options(request, control);
    let index = ArchiveIndex::open(source, &options, trust).map_err(|e| match trust {
        Trust::Strict => refuse(&name, e),
        Trust::Salvage => e.within(format!("nothing of '{name}' can be restored")),
    })?;
    expect_known(request, source, &index)?;
    let authenticity = request.trust.admit(&name, request.trust.judge_end(index.tail()))?;
    let specs = selected(request, index.head())?;
    for (_, spec) in &specs {
        refuse_source(source, spec)?;
    }
    let mut report = report(name, authenticity, &index);
    if let Err(error) = proven {
        report.complete = false;
        report.notes.insert(0, error.to_string());
    }
    let found = parents::find(&request.archive, index.head(), &request.identities, &request.parents, trust)?;
    for parent in &found.parents {
        specs.iter().try_for_each(|(_, spec)| refuse_source(&parent.source, spec))?;
    }
    let opened = OpenedChain::open(index, &found, &options, trust)?;
    // A root that the child names vouches for its parent; without one the parent is anybody's.
    for (index, parent) in opened.indexes.iter().skip(1).zip(&found.parents) {
        if index.tail().is_none_or(|tail| !tail.is_sound()) {
            request.trust.admit(&parent.entry.archive, request.trust.judge_end(index.tail()))?;
        }
    }
    report.take_chain(&found, &opened);
    let mut restorer = Restorer { request, control, source, indexes: &opened.indexes, report };
    let wanted = specs.iter().filter_map(|(target, _)| restorer.index()?.head().disk(target));
    control.progress.enter("restoring", wanted.map(|disk| disk.dense_length).fold(0, u64::saturating_add));
    let mut finished = Vec::with_capacity(specs.len());
    for (target, spec) in &specs {
        finished.extend(restorer.disk(target, spec)?);
    }
    control.progress.enter("syncing", 0);
    for disk in finished {
        disk.finish()?;
    }
    Ok(restorer.report)
}

/// Refuses to replace the archive by what is in it.
fn refuse_source(source: &ArchiveFile, spec: &TargetSpec) -> Result<()> {
    let Some(file) = source.file() else { return Ok(()) };
    let archive = file.metadata().at(|| format!("cannot examine '{}'", source.name()))?;
    match std::fs::metadata(&spec.path) {
        Ok(target) if (target.dev(), target.ino()) == (archive.dev(), archive.ino()) => {
            Err(Error::new(ErrorKind::Usage, format!("'{}' is the archive itself", spec.path.display())))
        }
        _ => Ok(()),
    }
}

fn report(archive: String, authenticity: Authenticity, index: &ArchiveIndex<'_>) -> RestoreReport {
    RestoreReport {
        archive,
        complete: index.is_complete(),
        authenticity,
        verified: index.is_checked(),
        unread: false,
        parents: Vec::new(),
        removed: Vec::new(),
        damage: Vec::new(),
        notes: index.notes().to_vec(),
        disks: Vec::new(),
        seconds: 0.0,
    }
}

pub(super) struct Restorer<'a> {
    pub(super) request: &'a RestoreRequest,
    pub(super) control: &'a Control,
    source: &'a ArchiveFile,
    /// The archive, and those that it rests on.
    pub(super) indexes: &'a [ArchiveIndex<'a>],
    pub(super) report: RestoreReport,
}

impl<'a> Restorer<'a> {
    /// The archive itself.
    fn index(&self) -> Option<&'a ArchiveIndex<'a>> {
        self.indexes.first()
    }

    /// Notes a disk of which nothing can be had.
    pub(super) fn give_up(&mut self, target: &str, error: &Error) -> Result<()> {
        let head = self.index().or_internal("a restore has no archive")?.head();
        let capacity = head.disk(target).map_or(0, |disk| disk.capacity);
        note_lost(&mut self.report.damage, target, GuestOffset::ZERO, capacity);
        self.report.notes.push(error.to_string());
        Ok(())
    }

    /// Restores one disk, up to giving it its name; `None` where nothing of it can be had.
    fn disk(&mut self, target: &str, spec: &TargetSpec) -> Result<Option<TargetDisk>> {
        let index = self.index().or_internal("a restore has no archive")?;
        if index.head().kind == BackupKind::Incremental {
            return self.chain_disk(target, spec);
        }
        let disk = match index.disk(target) {
            Ok(disk) => disk,
            Err(error) if self.request.checking == VerifyMode::Partial => {
                self.give_up(target, &error)?;
                return Ok(None);
            }
            Err(error) => return Err(refuse(&self.report.archive, error)),
        };
        let mut output = match self.request.checking {
            VerifyMode::Partial => TargetDisk::open_blank(spec, &disk.table)?,
            VerifyMode::All | VerifyMode::Unverified => TargetDisk::open(spec, &disk.table)?,
        };
        let dense_len = disk.table.dense_len();
        let shared = self.share(&mut output, index, disk)?;
        let from = DenseOffset::new(match (shared, self.request.checking) {
            (Some(shared), VerifyMode::Unverified) => {
                self.report.verified = false;
                self.report.unread = true;
                shared
            }
            _ => 0,
        });
        let shared_to = DenseOffset::new(shared.unwrap_or(0));
        index.read_dense(disk, from..DenseOffset::new(dense_len), &mut |piece, data| {
            self.control.progress.add(piece.len);
            match data {
                DiskPiece::Bytes(bytes) => write_behind(&mut output, piece, bytes, shared_to),
                DiskPiece::Lost if self.request.checking == VerifyMode::Partial => {
                    note_lost(&mut self.report.damage, target, piece.guest, piece.len);
                    Ok(())
                }
                DiskPiece::Lost => {
                    let range = piece.guest..piece.guest.saturating_add(piece.len);
                    Err(lost(&self.report.archive, target, range))
                }
            }
        })?;
        let lost_here = self
            .report
            .damage
            .iter()
            .filter(|range| range.disk == target)
            .map(|range| range.length)
            .fold(0, u64::saturating_add);
        self.report.disks.push(RestoredDisk {
            target: target.to_owned(),
            path: spec.path.display().to_string(),
            format: format_name(spec.format),
            method: method_name(spec.method),
            capacity: disk.table.capacity(),
            data: dense_len.saturating_sub(lost_here),
            shared: shared.is_some(),
        });
        Ok(Some(output))
    }

    /// Shares the dense bytes with the archive where that is possible: not with one that is encrypted. A
    /// partial restore copies, for what is damaged must not come along.
    fn share(
        &self,
        output: &mut TargetDisk,
        index: &ArchiveIndex<'_>,
        disk: &IndexedDisk,
    ) -> Result<Option<u64>> {
        let Some(file) = self.source.shareable() else { return Ok(None) };
        if !index.is_plain() || self.request.checking == VerifyMode::Partial {
            return Ok(None);
        }
        output.share(file, disk.dense_at.get(), disk.table.dense_len())
    }
}

/// Writes the part of a piece that is not shared already.
fn write_behind(output: &mut TargetDisk, piece: &Run, bytes: &[u8], shared_to: DenseOffset) -> Result<()> {
    let skip = shared_to.since(piece.dense).min(piece.len);
    if skip == 0 {
        return output.write(piece, bytes);
    }
    let rest = usize::try_from(skip).ok().and_then(|skip| bytes.get(skip..));
    let rest = rest.or_internal("more of a piece is shared than it has")?;
    if rest.is_empty() {
        return Ok(());
    }
    let (guest, dense) = (piece.guest.saturating_add(skip), piece.dense.saturating_add(skip));
    output.write(&Run { guest, len: piece.len - skip, dense }, rest)
}
