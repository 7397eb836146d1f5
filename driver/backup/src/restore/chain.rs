//! A disk of an increment: put together from the archives of its chain.
//!
//! Each archive is read once, the newest first, and of it only what no newer one replaces. The target does
//! not care in which order its pieces come.

use super::file::Restorer;
use super::opened_chain::OpenedChain;
use super::{RestoreReport, RestoredDisk, VerifyMode, format_name, lost, method_name, note_lost, refuse};
use crate::parents::ParentChain;
use crate::target::{Method, TargetDisk, TargetFormat, TargetSpec};
use virtfold_archive::chain::{ChainDisk, Extent};
use virtfold_archive::index::{ArchiveIndex, DiskPiece, Trust};
use virtfold_archive::table::{Run, RunCursor};
use virtfold_base::error::{OrInternal, Result};
use virtfold_base::units::{BlockSize, GuestOffset};

/// Disks that a parent has and the newest archive has not.
fn removed(chain: &[ArchiveIndex<'_>]) -> Vec<String> {
    let Some((newest, parents)) = chain.split_first() else { return Vec::new() };
    let mut removed: Vec<String> = Vec::new();
    for disk in parents.iter().flat_map(|parent| &parent.head().disks) {
        if newest.head().disk(&disk.target).is_none() && !removed.contains(&disk.target) {
            removed.push(disk.target.clone());
        }
    }
    removed
}

impl RestoreReport {
    /// Notes the archives that an increment is restored from.
    pub(super) fn take_chain(&mut self, found: &ParentChain, chain: &OpenedChain<'_>) {
        for (index, parent) in chain.indexes.iter().skip(1).zip(&found.parents) {
            self.verified &= index.is_checked();
            self.complete &= index.is_complete();
            let name = &parent.entry.archive;
            self.notes.extend(index.notes().iter().map(|note| format!("{name}: {note}")));
            self.parents.push(parent.entry.clone());
            if let Err(error) = parent.source.proven() {
                self.complete = false;
                self.notes.push(format!("{name}: {error}"));
            }
        }
        self.removed = removed(&chain.indexes);
        self.notes.extend_from_slice(&chain.notes);
    }
}

impl Restorer<'_> {
    /// As [`Restorer::disk`], of an increment.
    pub(super) fn chain_disk(&mut self, target: &str, spec: &TargetSpec) -> Result<Option<TargetDisk>> {
        let is_partial = self.request.checking == VerifyMode::Partial;
        let trust = if is_partial { Trust::Salvage } else { Trust::Strict };
        let disk = match ChainDisk::open(target, self.indexes, trust) {
            Ok(disk) => disk,
            Err(error) if is_partial => {
                self.give_up(target, &error)?;
                return Ok(None);
            }
            Err(error) => return Err(refuse(&self.report.archive, error)),
        };
        let table = disk.table(clusters(spec))?;
        let mut output =
            if is_partial { TargetDisk::open_blank(spec, &table)? } else { TargetDisk::open(spec, &table)? };
        self.control.progress.enter("restoring", disk.map().data());
        let (mut cursor, mut missing) = (table.cursor(), 0);
        disk.read(&mut |piece, data| {
            self.control.progress.add(piece.len);
            match data {
                DiskPiece::Bytes(bytes) => output.write(&placed(piece, &mut cursor)?, bytes),
                DiskPiece::Lost if is_partial => {
                    missing += piece.len;
                    note_lost(&mut self.report.damage, target, piece.guest, piece.len);
                    Ok(())
                }
                DiskPiece::Lost => Err(lost(&self.report.archive, target, piece.guest..piece.end())),
            }
        })?;
        self.report.damage.sort_by(|a, b| (&a.disk, a.start).cmp(&(&b.disk, b.start)));
        self.report.disks.push(RestoredDisk {
            target: target.to_owned(),
            path: spec.path.display().to_string(),
            format: format_name(spec.format),
            method: method_name(spec.method),
            capacity: disk.map().capacity(),
            data: (disk.map().data() + disk.map().open() + disk.map().lost()).saturating_sub(missing),
            shared: false,
        });
        Ok(Some(output))
    }
}

/// A remap needs runs of whole clusters, and the layers may have had smaller blocks.
fn clusters(spec: &TargetSpec) -> Option<BlockSize> {
    match (spec.method, spec.format) {
        (Method::Remap, TargetFormat::Qcow2(options)) => BlockSize::new(options.cluster_size),
        _ => None,
    }
}

/// The piece as the new disk's table has it.
fn placed(piece: &Extent, cursor: &mut RunCursor<'_>) -> Result<Run> {
    let dense = cursor.find_dense(piece.guest)?;
    let dense = dense.or_internal("a piece of a chain has no place in the restored disk")?;
    Ok(Run { guest: GuestOffset::new(piece.guest.get()), len: piece.len, dense })
}
