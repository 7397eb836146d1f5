//! The archives of a chain, opened for their bytes.

use super::refuse;
use crate::parents::{FoundParent, ParentChain};
use virtfold_archive::chain::ChainDisk;
use virtfold_archive::index::{ArchiveIndex, Trust};
use virtfold_archive::layout::BackupKind;
use virtfold_archive::manifest::Manifest;
use virtfold_archive::stream::ReadOptions;
use virtfold_base::error::{OrInternal, Result, sentence};

/// An archive with those that it rests on, opened.
pub(crate) struct OpenedChain<'a> {
    /// It first, then the nearest; of a full one there is but one.
    pub(crate) indexes: Vec<ArchiveIndex<'a>>,
    /// What was found wrong with the others.
    pub(super) notes: Vec<String>,
}

impl<'a> OpenedChain<'a> {
    /// Opens the parents that were found of `index`. Salvaging, the chain ends before the first one that
    /// can't be.
    ///
    /// # Errors
    /// Strict: those of opening them.
    pub(crate) fn open(
        index: ArchiveIndex<'a>,
        found: &'a ParentChain,
        options: &ReadOptions,
        trust: Trust,
    ) -> Result<Self> {
        let mut this = Self { indexes: vec![index], notes: Vec::new() };
        for parent in &found.parents {
            match open_parent(parent, options, trust) {
                Ok(index) => this.indexes.push(index),
                Err(error) if trust == Trust::Salvage => {
                    this.notes.push(sentence(&error));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        this.notes.extend(found.gap.as_ref().map(|gap| sentence(gap)));
        Ok(this)
    }

    /// The archive's head with what each disk has in the whole chain, as a full archive of it would say.
    ///
    /// # Errors
    /// Strict: the chain has a gap.
    pub(crate) fn whole_head(&self, trust: Trust) -> Result<Manifest> {
        let newest = self.indexes.first().or_internal("a chain has no archive")?;
        let mut head = newest.head().clone();
        if head.kind == BackupKind::Full {
            return Ok(head);
        }
        for disk in &mut head.disks {
            let table = match ChainDisk::open(&disk.target, &self.indexes, trust) {
                Ok(whole) => whole.table(None)?,
                Err(_) if trust == Trust::Salvage => continue,
                Err(error) => return Err(error),
            };
            (disk.dense_length, disk.runs) = (table.dense_len(), table.len());
        }
        Ok(head)
    }
}

/// Opens a parent for its bytes.
fn open_parent<'a>(parent: &'a FoundParent, options: &ReadOptions, trust: Trust) -> Result<ArchiveIndex<'a>> {
    let name = &parent.entry.archive;
    if trust == Trust::Strict {
        parent.source.proven().map_err(|error| refuse(name, error))?;
    }
    let index = ArchiveIndex::open(&parent.source, options, trust).map_err(|error| refuse(name, error))?;
    parent.check(&index, trust)?;
    Ok(index)
}
