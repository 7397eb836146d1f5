//! One disk of a chain of opened archives.

use std::ops::Range;

use super::map::{ChainMap, Extent, ExtentCursor, ExtentSource, LayerRows};
use crate::end_record::CHUNK;
use crate::index::{ArchiveIndex, DiskPiece, IndexedDisk, Trust};
use crate::layout::BackupKind;
use crate::table::{Builder, CorrespondenceTable, Run};
use virtfold_base::error::{Error, ErrorKind, OrInternal, Result};
use virtfold_base::units::{BlockSize, DenseOffset, GuestOffset};

/// A layer: an archive and the disk in it.
struct ChainLayer<'a> {
    index: &'a ArchiveIndex<'a>,
    disk: &'a IndexedDisk,
}

/// A disk as the newest archive of a chain has it; see the module's description.
pub struct ChainDisk<'a> {
    target: String,
    map: ChainMap,
    layers: Vec<ChainLayer<'a>>,
}

/// Takes a piece of the disk, and what it is.
pub type TakePiece<'t> = dyn FnMut(&Extent, DiskPiece<'_>) -> Result<()> + 't;

impl<'a> ChainDisk<'a> {
    /// The disk `target` of the first of `archives`, which are the newest one, its parent, and so on.
    /// Salvaging, what can't be had is lost.
    ///
    /// # Errors
    /// The newest one does not have the disk; strict: tables are damaged, an archive calls a range unchanged
    /// that its parent can't have.
    pub fn open(target: &str, archives: &'a [ArchiveIndex<'a>], trust: Trust) -> Result<Self> {
        let none = || Error::new(ErrorKind::Internal, "a chain has no archive");
        let newest = archives.first().ok_or_else(none)?.disk(target)?;
        let mut this = Self {
            target: target.to_owned(),
            map: ChainMap::new(newest.table.capacity())?,
            layers: Vec::new(),
        };
        for index in archives {
            // The disk may be newer than the archive, or its tables may be lost.
            let Some(disk) = index.disks().iter().find(|disk| disk.disk.target == target) else { break };
            this.map = this.merged(index, disk, trust)?;
            this.layers.push(ChainLayer { index, disk });
            if index.head().kind == BackupKind::Full || this.map.open() == 0 {
                break;
            }
        }
        match (trust, this.map.first_missing()?) {
            (Trust::Strict, Some(missing)) => Err(this.missing(&missing)),
            _ => Ok(this),
        }
    }

    fn merged(&self, index: &ArchiveIndex<'_>, disk: &IndexedDisk, trust: Trust) -> Result<ChainMap> {
        if index.head().kind == BackupKind::Full {
            return self.map.below(&disk.table, LayerRows::Full);
        }
        let merged = self.map.below(&disk.table, LayerRows::Table(&mut |take| index.allocation(disk, take)));
        match merged {
            Err(error) if trust == Trust::Salvage && is_doubt(&error) => {
                self.map.below(&disk.table, LayerRows::Unreadable)
            }
            merged => merged,
        }
    }

    fn missing(&self, missing: &Extent) -> Error {
        Error::new(
            ErrorKind::Damaged,
            format!(
                "the chain of disk {} has a gap: bytes {} to {} are called unchanged, and no older archive has them",
                self.target,
                missing.guest,
                missing.end()
            ),
        )
    }

    /// What is where.
    pub fn map(&self) -> &ChainMap {
        &self.map
    }

    /// The disk as the newest archive describes it.
    ///
    /// # Errors
    /// Internal: there is none.
    pub fn newest(&self) -> Result<&'a IndexedDisk> {
        Ok(self.layers.first().or_internal("a chain has no layer")?.disk)
    }

    /// The correspondence table of a full archive of the disk in blocks of `block`; without, its runs are
    /// what the layers have to the byte.
    ///
    /// # Errors
    /// When a table can't spill or be read back.
    pub fn table(&self, block: Option<BlockSize>) -> Result<CorrespondenceTable> {
        let mut builder = Builder::new(self.map.capacity());
        for extent in self.map.iter() {
            let extent = extent?;
            if !matches!(extent.source, ExtentSource::Layer { .. }) {
                continue;
            }
            let (start, end) = match block {
                Some(block) => (block.floor(extent.guest.get()), block.ceil(extent.end().get())),
                None => (extent.guest.get(), extent.end().get()),
            };
            builder.push(GuestOffset::new(start), end.min(self.map.capacity()) - start)?;
        }
        builder.finish()
    }

    /// Gives `take` all that is not zeros: of each archive, the newest first, what no newer one replaces, in
    /// order; and what is lost. Chunks of an archive in which nothing of that lies are not read.
    ///
    /// # Errors
    /// Those of the sources and of `take`; Interrupted when cancelled. Damage is no error here.
    pub fn read(&self, take: &mut TakePiece<'_>) -> Result<()> {
        if self.map.open() > 0 || self.map.lost() > 0 {
            for extent in self.map.iter() {
                let extent = extent?;
                if matches!(extent.source, ExtentSource::Unchanged | ExtentSource::Lost) {
                    take(&extent, DiskPiece::Lost)?;
                }
            }
        }
        (0..self.layers.len()).try_for_each(|number| self.read_layer(number, take))
    }

    fn read_layer(&self, number: usize, take: &mut TakePiece<'_>) -> Result<()> {
        let layer = self.layers.get(number).or_internal("a chain lacks a layer")?;
        let chunk = |dense: DenseOffset| layer.disk.dense_at.saturating_add(dense.get()).get() / CHUNK;
        let mut cursor = self.map.cursor();
        let mut read = |span: Range<DenseOffset>| {
            layer.index.read_dense(layer.disk, span, &mut |run, data| {
                give_live(&mut cursor, number, run, data, take)
            })
        };
        let mut pending: Option<Range<DenseOffset>> = None;
        for extent in self.map.iter() {
            let extent = extent?;
            let ExtentSource::Layer { layer: of, dense } = extent.source else { continue };
            if of != number {
                continue;
            }
            let end = dense.saturating_add(extent.len);
            pending = Some(match pending.take() {
                Some(span) if chunk(dense) <= chunk(span.end) + 1 => span.start..end,
                before => {
                    before.map_or(Ok(()), &mut read)?;
                    dense..end
                }
            });
        }
        pending.map_or(Ok(()), read)
    }

    /// Fills `buf` with the disk's bytes at `guest`.
    ///
    /// # Errors
    /// Damaged or Incomplete, where they are not what was written, or no archive has them; Internal behind
    /// the disk's end.
    pub fn read_at(&self, guest: GuestOffset, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        let mut rest = buf;
        self.map.cursor().pieces(guest, len, &mut |piece| {
            let size = usize::try_from(piece.len).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = std::mem::take(&mut rest).split_at_mut(size);
            rest = later;
            match piece.source {
                ExtentSource::Zeros => now.fill(0),
                ExtentSource::Layer { layer, dense } => {
                    let layer = self.layers.get(layer).or_internal("a chain lacks a layer")?;
                    layer.index.read_dense_at(layer.disk, dense, now)?;
                }
                ExtentSource::Unchanged | ExtentSource::Lost => return Err(self.missing(&piece)),
            }
            Ok(())
        })?;
        if rest.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Internal, "a disk of a chain was read behind its end"))
    }
}

fn is_doubt(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Incomplete)
}

/// Gives `take` what of a run no newer layer than number `layer` has.
fn give_live(
    cursor: &mut ExtentCursor<'_>,
    layer: usize,
    run: &Run,
    data: DiskPiece<'_>,
    take: &mut TakePiece<'_>,
) -> Result<()> {
    cursor.pieces(run.guest, run.len, &mut |piece| match (piece.source, data) {
        (ExtentSource::Layer { layer: of, .. }, _) if of != layer => Ok(()),
        (ExtentSource::Layer { .. }, DiskPiece::Lost) => take(&piece, DiskPiece::Lost),
        (ExtentSource::Layer { .. }, DiskPiece::Bytes(bytes)) => {
            let range =
                usize::try_from(piece.guest.since(run.guest)).ok().zip(usize::try_from(piece.len).ok());
            let part = range.and_then(|(from, len)| bytes.get(from..from.checked_add(len)?));
            take(&piece, DiskPiece::Bytes(part.or_internal("a piece of a layer is longer than its bytes")?))
        }
        _ => Ok(()),
    })
}
