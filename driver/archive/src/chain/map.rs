//! The merged map of one disk of a chain: sorted, without a gap, packed.
//!
//! It begins as one range that only an older layer knows ([`ChainMap::new`]). Each layer, the newest first,
//! fills what the ones above it have left open ([`ChainMap::below`]): with its own bytes, with zeros, or,
//! where it calls the range unchanged, with nothing. A step walks the map so far, the layer's runs and its
//! rows once, side by side; none of them is held in memory as a whole.
//!
//! Invariants: extents begin at 0, follow each other without a gap and end at the capacity of the newest
//! layer; none is empty; two that could be one are one.

use crate::allocation_csv::{AllocationKind, AllocationRow};
use crate::table::{CorrespondenceTable, Run};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::packed::{self, PackedList, Record, put_delta, put_varint, take_delta, take_varint};
use virtfold_base::units::{DenseOffset, GuestOffset};

/// What has the bytes of a range of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentSource {
    /// They are zeros.
    Zeros,
    /// A layer has them.
    Layer {
        /// Its number, the newest is 0.
        layer: usize,
        /// Where its dense image has them.
        dense: DenseOffset,
    },
    /// They are as in the layer below, which was not added.
    Unchanged,
    /// A layer calls them unchanged, and the one below it has no such place.
    Lost,
}

impl ExtentSource {
    /// Of the bytes behind the first `skip` ones.
    fn behind(self, skip: u64) -> Self {
        match self {
            Self::Layer { layer, dense } => Self::Layer { layer, dense: dense.saturating_add(skip) },
            Self::Zeros | Self::Unchanged | Self::Lost => self,
        }
    }

    /// The dense offset, where there is one.
    fn dense(self) -> DenseOffset {
        match self {
            Self::Layer { dense, .. } => dense,
            Self::Zeros | Self::Unchanged | Self::Lost => DenseOffset::ZERO,
        }
    }
}

/// `len` bytes (not zero) at `guest` on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first byte.
    pub guest: GuestOffset,
    /// How many.
    pub len: u64,
    /// What has them.
    pub source: ExtentSource,
}

impl Extent {
    /// Where it ends.
    pub fn end(&self) -> GuestOffset {
        self.guest.saturating_add(self.len)
    }

    /// Its part in `[from, to)`, if any.
    pub(super) fn clip(&self, from: GuestOffset, to: GuestOffset) -> Option<Self> {
        let skip = from.since(self.guest);
        let guest = self.guest.saturating_add(skip);
        let len = self.end().min(to).since(guest);
        (skip < self.len && len > 0).then(|| Self { guest, len, source: self.source.behind(skip) })
    }
}

/// Layers begin here in packed extents; what is below stands for what is no layer.
const FIRST_LAYER: u64 = 3;

impl Record for Extent {
    fn pack(&self, prev: &Self, out: &mut Vec<u8>) {
        put_varint(self.len, out);
        let tag = match self.source {
            ExtentSource::Zeros => 0,
            ExtentSource::Unchanged => 1,
            ExtentSource::Lost => 2,
            ExtentSource::Layer { layer, .. } => FIRST_LAYER + layer as u64,
        };
        put_varint(tag, out);
        if let ExtentSource::Layer { dense, .. } = self.source {
            put_delta(prev.source.dense().get(), dense.get(), out);
        }
    }

    fn unpack(prev: &Self, input: &mut &[u8]) -> Option<Self> {
        let len = take_varint(input)?;
        let source = match take_varint(input)? {
            0 => ExtentSource::Zeros,
            1 => ExtentSource::Unchanged,
            2 => ExtentSource::Lost,
            layer => ExtentSource::Layer {
                layer: usize::try_from(layer - FIRST_LAYER).ok()?,
                dense: DenseOffset::new(take_delta(prev.source.dense().get(), input)?),
            },
        };
        Some(Self { guest: prev.guest.checked_add(prev.len)?, len, source })
    }
}

/// What takes the rows of a layer's allocation table; see [`ChainMap::below`].
pub type TakeRow<'t> = &'t mut dyn FnMut(AllocationRow) -> Result<()>;

/// What of a layer is unchanged.
pub enum LayerRows<'a> {
    /// Nothing: it is full.
    Full,
    /// Nobody knows: its table is lost. What is not in its runs is lost, too.
    Unreadable,
    /// What the rows of its allocation table say, which are given out in order.
    Table(&'a mut dyn FnMut(TakeRow<'_>) -> Result<()>),
}

/// The map; see the module's description.
#[derive(Debug)]
pub struct ChainMap {
    extents: PackedList<Extent>,
    capacity: u64,
    layers: usize,
    data: u64,
    open: u64,
    lost: u64,
}

impl ChainMap {
    /// Of a disk of `capacity` bytes, without any layer.
    ///
    /// # Errors
    /// When the list can't spill.
    pub fn new(capacity: u64) -> Result<Self> {
        let mut builder = Builder::default();
        builder.push(GuestOffset::ZERO, capacity, ExtentSource::Unchanged)?;
        builder.finish(capacity, 0)
    }

    /// The map with one more layer below those that it has.
    ///
    /// # Errors
    /// Those of `rows`; Internal, where they do not cover the layer's disk; the list can't spill.
    pub fn below(&self, table: &CorrespondenceTable, rows: LayerRows<'_>) -> Result<Self> {
        let mut merge = Merge {
            above: Walk::new(self.extents.iter())?,
            runs: Walk::new(table.iter())?,
            layer: self.layers,
            builder: Builder::default(),
            end: GuestOffset::ZERO,
        };
        let end = GuestOffset::new(table.capacity());
        match rows {
            LayerRows::Full => merge.row(end, ExtentSource::Zeros)?,
            LayerRows::Unreadable => merge.row(end, ExtentSource::Lost)?,
            LayerRows::Table(rows) => rows(&mut |row| {
                if row.guest != merge.end {
                    return Err(Error::new(ErrorKind::Internal, "rows of an allocation table have a gap"));
                }
                let otherwise = match row.kind {
                    AllocationKind::Unchanged => ExtentSource::Unchanged,
                    AllocationKind::Data | AllocationKind::Zero | AllocationKind::Unallocated => {
                        ExtentSource::Zeros
                    }
                };
                merge.row(row.guest.saturating_add(row.len), otherwise)
            })?,
        }
        if merge.end != end {
            return Err(Error::new(ErrorKind::Internal, "an allocation table is not of the disk's size"));
        }
        // What lies behind this layer's disk it can't have: nor can a still older one.
        merge.segment(GuestOffset::new(u64::MAX), ExtentSource::Lost)?;
        merge.builder.finish(self.capacity, self.layers + 1)
    }

    /// The disk's size, bytes: that of the newest layer.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// How many layers it was made of.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Bytes that layers have.
    pub fn data(&self) -> u64 {
        self.data
    }

    /// Bytes that only a layer below the last one would know.
    pub fn open(&self) -> u64 {
        self.open
    }

    /// Bytes that no layer can have.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Extents.
    pub fn len(&self) -> u64 {
        self.extents.len()
    }

    /// Whether the disk has no byte.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// All extents, ascending.
    pub fn iter(&self) -> packed::Iter<'_, Extent> {
        self.extents.iter()
    }

    /// A look-up of one range after the other.
    pub fn cursor(&self) -> ExtentCursor<'_> {
        ExtentCursor(self.extents.iter())
    }

    /// The first range that no layer has, open or lost.
    ///
    /// # Errors
    /// When the list can't be read back.
    pub fn first_missing(&self) -> Result<Option<Extent>> {
        if self.open == 0 && self.lost == 0 {
            return Ok(None);
        }
        let is_missing = |extent: &Result<Extent>| match extent {
            Ok(extent) => matches!(extent.source, ExtentSource::Unchanged | ExtentSource::Lost),
            Err(_) => true,
        };
        self.iter().find(is_missing).transpose()
    }
}

/// Looks up one range after the other, and keeps its place.
#[derive(Debug)]
pub struct ExtentCursor<'a>(packed::Iter<'a, Extent>);

impl ExtentCursor<'_> {
    /// Gives `take` the extents that make up `len` bytes at `guest`, in order, as far as the disk goes.
    ///
    /// # Errors
    /// When the list can't be read back; those of `take`.
    pub fn pieces(
        &mut self,
        guest: GuestOffset,
        len: u64,
        take: &mut dyn FnMut(Extent) -> Result<()>,
    ) -> Result<()> {
        let end = guest.saturating_add(len);
        self.0.seek(|extent| extent.guest <= guest)?;
        for extent in self.0.by_ref() {
            let extent = extent?;
            if let Some(piece) = extent.clip(guest, end) {
                take(piece)?;
            }
            if extent.end() >= end {
                break;
            }
        }
        Ok(())
    }
}

/// Makes a map; extents that can be one become one.
#[derive(Debug, Default)]
struct Builder {
    extents: PackedList<Extent>,
    pending: Option<Extent>,
    data: u64,
    open: u64,
    lost: u64,
}

impl Builder {
    fn push(&mut self, guest: GuestOffset, len: u64, source: ExtentSource) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        match source {
            ExtentSource::Unchanged => self.open += len,
            ExtentSource::Lost => self.lost += len,
            ExtentSource::Layer { .. } => self.data += len,
            ExtentSource::Zeros => {}
        }
        if let Some(last) = &mut self.pending
            && last.source.behind(last.len) == source
        {
            last.len += len;
            return Ok(());
        }
        self.flush()?;
        self.pending = Some(Extent { guest, len, source });
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.pending.take().map_or(Ok(()), |extent| self.extents.push(extent))
    }

    fn finish(mut self, capacity: u64, layers: usize) -> Result<ChainMap> {
        self.flush()?;
        let Self { extents, data, open, lost, .. } = self;
        Ok(ChainMap { extents, capacity, layers, data, open, lost })
    }
}

/// A list with its next record in hand.
struct Walk<'a, R> {
    rest: packed::Iter<'a, R>,
    next: Option<R>,
}

impl<'a, R: Record> Walk<'a, R> {
    fn new(mut rest: packed::Iter<'a, R>) -> Result<Self> {
        let next = rest.next().transpose()?;
        Ok(Self { rest, next })
    }

    fn step(&mut self) -> Result<()> {
        self.next = self.rest.next().transpose()?;
        Ok(())
    }
}

/// One layer on its way into the map.
struct Merge<'a> {
    above: Walk<'a, Extent>,
    runs: Walk<'a, Run>,
    layer: usize,
    builder: Builder,
    /// How far it has come.
    end: GuestOffset,
}

impl Merge<'_> {
    /// The layer up to `to`: its runs, and `otherwise` between them.
    fn row(&mut self, to: GuestOffset, otherwise: ExtentSource) -> Result<()> {
        while self.end < to {
            let Some(run) = self.runs.next.filter(|run| run.guest < to) else {
                return self.segment(to, otherwise);
            };
            if self.end < run.guest {
                self.segment(run.guest, otherwise)?;
            }
            let run_end = run.guest.saturating_add(run.len);
            let dense = run.dense.saturating_add(self.end.since(run.guest));
            self.segment(run_end.min(to), ExtentSource::Layer { layer: self.layer, dense })?;
            if run_end <= to {
                self.runs.step()?;
            }
        }
        Ok(())
    }

    /// Up to `to` the layer says `source`; the layers above have the first word.
    fn segment(&mut self, to: GuestOffset, source: ExtentSource) -> Result<()> {
        let from = self.end;
        while let Some(above) = self.above.next
            && self.end < to
        {
            if let Some(piece) = above.clip(self.end, to) {
                let source = match piece.source {
                    ExtentSource::Unchanged => source.behind(piece.guest.since(from)),
                    known => known,
                };
                self.builder.push(piece.guest, piece.len, source)?;
                self.end = piece.end();
            }
            if above.end() <= to {
                self.above.step()?;
            }
        }
        // The newest disk may end before this one does.
        self.end = to;
        Ok(())
    }
}
