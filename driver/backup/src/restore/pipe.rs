//! A restore from a pipe or any other reader: one pass, front to back. The targets are written as the data
//! arrive and get their names when the pass has found the whole archive sound.

use std::io::Read;
use std::os::unix::fs::FileTypeExt;

use super::{RestoreReport, RestoreRequest, RestoredDisk, format_name, method_name, read_options, selected};
use crate::Control;
use crate::inspect::root_text;
use crate::known_copy::FoundArchive;
use crate::target::{TargetDisk, TargetSpec};
use crate::trust::SignatureRequirement;
use virtfold_archive::crypt::DecryptingReader;
use virtfold_archive::layout::BackupKind;
use virtfold_archive::manifest::Manifest;
use virtfold_archive::reader::{ArchiveReader, Visitor};
use virtfold_archive::stream::{read_pipe, tell_zeros};
use virtfold_archive::table::{CorrespondenceTable, Run};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_medium::PipeSource;

/// Restores from `input`.
pub(super) fn restore(
    request: &RestoreRequest,
    control: &Control,
    input: impl Read + Send,
) -> Result<RestoreReport> {
    let archive = request.archive.to_string();
    let name = if archive == "-" { "standard input" } else { &archive };
    let mut disks =
        SequentialRestore { request, control, wanted: Vec::new(), targets: Vec::new(), done: Vec::new() };
    let options = read_options(request, control);
    // The source ends its wait for a silent sender with an error of its own.
    let interrupted = |error: Error| match PipeSource::was_told_to_end(&error) {
        true => Error::new(ErrorKind::Interrupted, "the restore was interrupted"),
        false => error,
    };
    let input = DecryptingReader::open(input, name, &request.identities).map_err(interrupted)?;
    let encrypted = Some(input.is_encrypted());
    let mut reader = ArchiveReader::new(&mut disks);
    let end = read_pipe(input, name, &options, |chunk| reader.chunk(&chunk)).map_err(interrupted)?;
    end.check(name)?;
    let sound = reader.finish()?;
    end.check_id(sound.head.archive)?;
    let (id, root) = (Some(sound.head.archive), Some(root_text(sound.root)));
    request.known.expect(name, &FoundArchive { id, root, encrypted, ..FoundArchive::default() })?;
    tell_zeros(name, end.padding + sound.padding);
    // Dropped, the targets are gone.
    let authenticity = request.trust.admit(name, request.trust.judge(sound.signature().as_ref()))?;
    control.progress.enter("syncing", 0);
    for target in disks.targets.into_iter().flatten() {
        target.finish()?;
    }
    Ok(RestoreReport {
        archive,
        complete: true,
        authenticity,
        verified: true,
        unread: false,
        parents: Vec::new(),
        removed: Vec::new(),
        damage: Vec::new(),
        notes: Vec::new(),
        disks: disks.done,
        seconds: 0.0,
    })
}

/// The disks that are wanted, as the pass reaches them.
struct SequentialRestore<'a> {
    request: &'a RestoreRequest,
    control: &'a Control,
    /// By disk number; `None` where a disk is not wanted.
    wanted: Vec<Option<(String, TargetSpec)>>,
    targets: Vec<Option<TargetDisk>>,
    done: Vec<RestoredDisk>,
}

impl SequentialRestore<'_> {
    /// A device is written to in its place, and the signature comes last.
    fn refuse_device(&self, spec: &TargetSpec) -> Result<()> {
        let is_device = || spec.path.metadata().is_ok_and(|found| found.file_type().is_block_device());
        if self.request.trust.requirement == SignatureRequirement::Optional || !is_device() {
            return Ok(());
        }
        let what =
            "is a device, and the signature of what comes from a pipe or a tape is known at its end alone";
        let error = Error::new(ErrorKind::Refused, format!("'{}' {what}", spec.path.display()));
        Err(error.with_hint(
            "the configuration requires signatures: copy the archive to a file and restore from there",
        ))
    }
}

impl Visitor for SequentialRestore<'_> {
    fn head(&mut self, head: &Manifest) -> Result<()> {
        let found = FoundArchive { id: Some(head.archive), ..FoundArchive::default() };
        self.request.known.expect(&self.request.archive.to_string(), &found)?;
        if head.kind == BackupKind::Incremental {
            let name = self.request.archive.to_string();
            let what = format!("'{name}' is an increment, and comes front to back and once");
            return Err(Error::new(ErrorKind::Unsupported, what).with_hint(
                "copy it and the archives that it rests on into a directory, and restore it from there",
            ));
        }
        let mut specs = selected(self.request, head)?;
        for disk in &head.disks {
            let place = specs.iter().position(|(target, _)| *target == disk.target);
            self.wanted.push(place.map(|place| specs.swap_remove(place)));
            self.targets.push(None);
        }
        let data = head.disks.iter().zip(&self.wanted).filter(|(_, wanted)| wanted.is_some());
        self.control
            .progress
            .enter("restoring", data.map(|(disk, _)| disk.dense_length).fold(0, u64::saturating_add));
        Ok(())
    }

    fn disk(&mut self, index: usize, table: &CorrespondenceTable) -> Result<()> {
        let Some(Some((target, spec))) = self.wanted.get(index) else { return Ok(()) };
        self.refuse_device(spec)?;
        let slot = self.targets.get_mut(index);
        let slot = slot.ok_or_else(|| Error::new(ErrorKind::Internal, "a disk has no place"))?;
        *slot = Some(TargetDisk::open(spec, table)?);
        self.done.push(RestoredDisk {
            target: target.clone(),
            path: spec.path.display().to_string(),
            format: format_name(spec.format),
            method: method_name(spec.method),
            capacity: table.capacity(),
            data: table.dense_len(),
            shared: false,
        });
        Ok(())
    }

    fn data(&mut self, index: usize, piece: &Run, bytes: &[u8]) -> Result<()> {
        let Some(Some(target)) = self.targets.get_mut(index) else { return Ok(()) };
        self.control.progress.add(piece.len);
        target.write(piece, bytes)
    }
}
