//! The blocks of a disk after an archive: those that it has, and of the parent's those that did not change.

use std::path::Path;

use uuid::Uuid;

use super::compare::UsedBlocks;
use super::methods::FoundChanges;
use super::parent::{Parent, needed};
use super::query::{SourceFiles, digest_block};
use super::state::{BlockState, NewState, PendingState, StateBlock, StateBlocks, StateDisk};
use crate::folded_disk::{DiskSet, FoldedDisk};
use crate::options::BackupKindRule;
use virtfold_archive::block_digests::BlockDigests;
use virtfold_archive::table::RunCursor;
use virtfold_base::error::{Error, ErrorKind, Result, sentence};
use virtfold_catalog::Catalog;

/// An archive that is written.
pub(crate) struct WrittenBlocks<'a> {
    pub(crate) archive: Uuid,
    /// Its root, hexadecimal.
    pub(crate) root: &'a str,
    pub(crate) disks: &'a DiskSet,
    /// Of each disk.
    pub(crate) digests: &'a [Option<BlockDigests>],
    /// Of each disk.
    pub(crate) files: Vec<Option<SourceFiles>>,
    pub(crate) parent: Option<&'a Parent>,
    pub(crate) checkpoint: Option<String>,
}

/// Writes what the next backup needs to tell what changed. Where that can't be done the archive is as good,
/// and the next one is full. A state directory is made for an increment's sake alone: images are backed up
/// without one, too.
pub(crate) fn write(
    state_dir: &Path,
    kind: BackupKindRule,
    written: WrittenBlocks<'_>,
) -> Option<PendingState> {
    if kind == BackupKindRule::Full && !state_dir.is_dir() {
        return None;
    }
    let done = try_write(state_dir, written);
    done.inspect_err(|error| {
        tracing::warn!("the archive is good; the next backup will be full: {}", sentence(error));
    })
    .ok()
}

fn try_write(state_dir: &Path, written: WrittenBlocks<'_>) -> Result<PendingState> {
    let WrittenBlocks { archive, root, disks, digests, files, parent, checkpoint } = written;
    let described = disks.0.iter().zip(files).map(|(disk, files)| StateDisk {
        target: disk.target.clone(),
        capacity: disk.table.capacity(),
        block: digest_block(disk.block).get(),
        files,
    });
    let new = NewState {
        state_dir,
        archive,
        root: root.to_owned(),
        depth: parent.map_or(1, |parent| parent.state.head.depth.saturating_add(1)),
        checkpoint,
        disks: described.collect(),
    };
    PendingState::write(new, &mut |index| {
        let lost = || Error::new(ErrorKind::Internal, "a disk's blocks have no digests");
        let disk = disks.0.get(index).ok_or_else(lost)?;
        let digests = digests.get(index).and_then(Option::as_ref).ok_or_else(lost)?;
        blocks(disk, digests, parent)
    })
}

type Blocks<'a> = Box<dyn Iterator<Item = Result<StateBlock>> + 'a>;

fn blocks<'a>(
    disk: &'a FoldedDisk,
    digests: &'a BlockDigests,
    parent: Option<&'a Parent>,
) -> Result<Blocks<'a>> {
    let new = UsedBlocks::new(&disk.table, digests, digest_block(disk.block));
    let kept = disk.changes.as_ref().and_then(|changes| Unchanged::of(disk, changes, parent?));
    Ok(match kept {
        None => Box::new(new),
        Some(kept) => Box::new(Both { new: new.peekable(), kept: kept.peekable() }),
    })
}

/// The parent's blocks that did not change.
struct Unchanged<'a> {
    blocks: StateBlocks<'a>,
    changed: RunCursor<'a>,
    block: u64,
    capacity: u64,
}

impl<'a> Unchanged<'a> {
    fn of(disk: &'a FoldedDisk, changes: &'a FoundChanges, parent: &'a Parent) -> Option<Self> {
        let (changed, index) = (changes.changed.as_ref()?, changes.index?);
        let block = digest_block(disk.block).get();
        let capacity = disk.table.capacity();
        Some(Self { blocks: parent.state.blocks(index), changed: changed.cursor(), block, capacity })
    }
}

impl Iterator for Unchanged<'_> {
    type Item = Result<StateBlock>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let block = match self.blocks.next()? {
                Ok(block) => block,
                Err(error) => return Some(Err(error)),
            };
            let at = block.number.saturating_mul(self.block);
            if at >= self.capacity {
                return None;
            }
            match self.changed.covers(virtfold_base::units::GuestOffset::new(at)) {
                Ok(true) => {}
                Ok(false) => return Some(Ok(block)),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// Two ascending walks that have no block in common, as one.
struct Both<N: Iterator, K: Iterator> {
    new: std::iter::Peekable<N>,
    kept: std::iter::Peekable<K>,
}

impl<N, K> Iterator for Both<N, K>
where
    N: Iterator<Item = Result<StateBlock>>,
    K: Iterator<Item = Result<StateBlock>>,
{
    type Item = Result<StateBlock>;

    fn next(&mut self) -> Option<Self::Item> {
        match (self.new.peek(), self.kept.peek()) {
            (Some(Ok(new)), Some(Ok(kept))) if kept.number < new.number => self.kept.next(),
            (Some(_), _) => self.new.next(),
            (None, _) => self.kept.next(),
        }
    }
}

/// Keeps the state of an archive that has its name, and removes those that no backup will ask for.
pub(crate) fn keep(state_dir: &Path, archive: Uuid, pending: Option<PendingState>) {
    let Some(pending) = pending else { return };
    let kept = pending.keep().and_then(|()| {
        let Some(catalog) = Catalog::open_existing(state_dir)? else { return Ok(()) };
        let needed = needed(&catalog, archive)?;
        BlockState::retain(state_dir, |id| needed.contains(&id))
    });
    if let Err(error) = kept {
        tracing::warn!(
            "the archive is good; what changed since could not be kept in order: {}",
            sentence(&error)
        );
    }
}
