//! The walk of a whole chain: each layer's runs laid over the ones below, from the guest's first byte to its
//! last.
//!
//! At an address the top layer is asked; where it has nothing, and the layer below reaches that far, the one
//! below is asked, and so on. What one layer says is cut to what the layers above left open. Data of a qcow2
//! layer is then cut at the holes of its host file. Every layer is walked once, in ascending order, and a run
//! is kept until the walk has passed it. Places that two things claim end it.
//!
//! Imports: `error`, `units`, `holes`, `layer`, `overlap`, `raw`, `allocation_table`.

use super::DiskImage;
use super::allocation_table::{Allocation, AllocationTable, Extent, TableBuilder};
use super::holes::Holes;
use super::layer::{Cursor, Layer};
use super::overlap::Overlaps;
use super::raw::RawExtent;
use virtfold_base::error::{OrInternal, Result};
use virtfold_base::units::{GuestOffset, HostOffset};

/// The allocation table of `image`.
pub(super) fn walk(image: &DiskImage) -> Result<AllocationTable> {
    let holes = holes_of(image)?;
    let mut overlaps = Overlaps::of(image)?;
    let mut walk = Walk::new(image)?;
    let mut table = TableBuilder::default();
    let end = GuestOffset::new(image.capacity);
    let mut at = GuestOffset::ZERO;
    while at < end {
        let extent = walk.resolve(at, end)?;
        at = extent.end();
        overlaps.check(&extent)?;
        cut_at_holes(extent, &holes, &mut table)?;
    }
    table.finish()
}

/// The holes of the files that qcow2 layers keep data in, by file index.
fn holes_of(image: &DiskImage) -> Result<Vec<Option<Holes>>> {
    let mut holes: Vec<Option<Holes>> = image.files.iter().map(|_| None).collect();
    for layer in &image.layers {
        if let Layer::Qcow2(qcow2) = layer {
            let file = super::file_of(&image.files, qcow2.data)?;
            if let Some(slot) = usize::try_from(qcow2.data.0).ok().and_then(|at| holes.get_mut(at)) {
                *slot = Some(Holes::of(file)?);
            }
        }
    }
    Ok(holes)
}

/// Appends `extent`, cut where its host file begins or ends to have holes.
fn cut_at_holes(extent: Extent, holes: &[Option<Holes>], table: &mut TableBuilder) -> Result<()> {
    let Allocation::Data { file, host } = extent.place else { return table.push(extent) };
    let known = usize::try_from(file.0).ok().and_then(|at| holes.get(at));
    let Some(Some(holes)) = known else { return table.push(extent) };
    let mut done = 0;
    while done < extent.len {
        let at = host.get() + done;
        let host = HostOffset::new(at);
        let (end, place) = match holes.at(at) {
            RawExtent::Data(end) => (end, Allocation::Data { file, host }),
            RawExtent::Hole(end) => (end, Allocation::Hole { file, host }),
        };
        let len = (end - at).min(extent.len - done);
        let guest = extent.guest.saturating_add(done);
        table.push(Extent { guest, len, depth: extent.depth, place })?;
        done += len;
    }
    Ok(())
}

struct LayerExtents<'a> {
    cursor: Cursor<'a>,
    capacity: u64,
    /// The run that the walk stands in.
    run: Option<Extent>,
}

impl LayerExtents<'_> {
    /// The part of this layer's run from `at` to `to` at most.
    fn run_at(&mut self, at: GuestOffset, to: GuestOffset) -> Result<Extent> {
        let run = match self.run {
            Some(run) if run.guest <= at && at < run.end() => run,
            _ => self.cursor.extent_at(at)?,
        };
        self.run = Some(run);
        run.clip(at, to).or_internal("an image's walk makes no progress")
    }
}

struct Walk<'a> {
    layers: Vec<LayerExtents<'a>>,
}

impl<'a> Walk<'a> {
    fn new(image: &'a DiskImage) -> Result<Self> {
        let walked = |(layer, depth): (&'a Layer, u32)| {
            let cursor = Cursor::new(layer, &image.files, depth)?;
            Ok(LayerExtents { cursor, capacity: layer.capacity(), run: None })
        };
        Ok(Self { layers: image.layers.iter().zip(0..).map(walked).collect::<Result<_>>()? })
    }

    /// What the guest has at `at`, to `end` at most.
    fn resolve(&mut self, at: GuestOffset, end: GuestOffset) -> Result<Extent> {
        let mut to = end;
        let mut found = None;
        for layer in &mut self.layers {
            if at.get() >= layer.capacity {
                break;
            }
            let run = layer.run_at(at, to.min(GuestOffset::new(layer.capacity)))?;
            to = run.end();
            found = Some(run);
            if !matches!(run.place, Allocation::Unallocated { .. }) {
                break;
            }
        }
        found.or_internal("an image's walk passed its end")
    }
}
