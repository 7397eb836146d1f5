//! What changed by an image's own bitmaps, and when they are not believed.
//!
//! The bitmap of the parent's checkpoint has all that was written since a moment before the parent's
//! snapshot. It is not believed where the disk has another size than in the parent, where the image is
//! another file, where an image below was written to (no bitmap of the top one knows), and where a block is
//! gone or is another one that it calls unchanged: then the disk is compared, and the sentence says why.
//!
//! A disk that shrank and grew back has the size that it had, and QEMU has forgotten what was marked behind
//! the cut. What lay there whole is gone, unless it was written to again and so is marked: hence, where no
//! block is gone, the last one that is called unchanged is the only one that the cut can have gone through.
//! It is read and held against the parent's digests.

use super::ChangedBlocks;
use super::query::{ChangeQuery, digest_block};
use super::state::StateDisk;
use crate::folded_disk::FoldedDisk;
use virtfold_archive::stream::Digest;
use virtfold_archive::table::Builder;
use virtfold_base::error::Result;
use virtfold_base::units::GuestOffset;
use virtfold_image::{BitmapState, DirtyRanges};

/// The blocks that bitmaps mark, or why they are not believed.
pub(super) enum BitmapAnswer {
    Changed(ChangedBlocks),
    NotBelieved(String),
}

/// A disk as the parent has it.
#[derive(Clone, Copy)]
pub(super) struct ParentDisk<'a> {
    /// Its number.
    pub(super) index: usize,
    pub(super) disk: &'a StateDisk,
}

/// What the bitmaps `names` of a disk's top image say of it.
///
/// # Errors
/// The parent's state can't be read; the list can't be kept.
pub(super) fn changed(
    disk: &FoldedDisk,
    query: &ChangeQuery<'_>,
    then: ParentDisk<'_>,
    names: &[String],
) -> Result<BitmapAnswer> {
    let no = |why: &str| Ok(BitmapAnswer::NotBelieved(why.to_owned()));
    let capacity = disk.table.capacity();
    if then.disk.capacity != capacity {
        return no("the disk has another size than in the parent");
    }
    if let (Some(then), Some(now)) = (&then.disk.files, query.files)
        && !then.has_the_top_of(now)
    {
        return no("its image is another file than in the parent");
    }
    let alone = disk.image.host_files().count() == 1;
    let as_written = match (&then.disk.files, query.files) {
        (Some(then), Some(now)) => then.below_is_as_written(now),
        _ => alone,
    };
    if !as_written {
        return no("an image below its own is not the one that it was in the parent");
    }
    let ranges = match disk.image.dirty_bitmaps(names, disk.block)? {
        BitmapState::Usable(ranges) => ranges,
        BitmapState::Missing => return no("no bitmap of its image belongs to the parent"),
        BitmapState::Unusable(why) => return Ok(BitmapAnswer::NotBelieved(why)),
    };
    let changed = table(&ranges, capacity)?;
    if let Some(why) = contradiction(disk, query, then.index, &changed)? {
        return no(why);
    }
    Ok(BitmapAnswer::Changed(changed))
}

fn table(ranges: &DirtyRanges, capacity: u64) -> Result<ChangedBlocks> {
    let mut builder = Builder::new(capacity);
    for range in ranges.iter() {
        let range = range?;
        builder.push(range.guest, range.len)?;
    }
    builder.finish()
}

/// What the blocks of the parent that are called unchanged say against it.
fn contradiction(
    disk: &FoldedDisk,
    query: &ChangeQuery<'_>,
    index: usize,
    changed: &ChangedBlocks,
) -> Result<Option<&'static str>> {
    let block = digest_block(disk.block).get();
    let (mut used, mut marked) = (disk.table.cursor(), changed.cursor());
    // The digests of the last block that is copied as one.
    let (mut last, mut digests) = (GuestOffset::new(0), Vec::new());
    for known in query.parent.state.blocks(index) {
        let known = known?;
        let at = GuestOffset::new(known.number.saturating_mul(block));
        if marked.covers(at)? {
            continue;
        }
        if !used.covers(at)? {
            return Ok(Some("its bitmap calls a block unchanged that is not there any more"));
        }
        let copied = GuestOffset::new(disk.block.floor(at.get()));
        if copied != last {
            (last, digests) = (copied, Vec::new());
        }
        digests.push((at, known.digest));
    }
    let mut image = disk.image.reader(&disk.allocation);
    let mut bytes = Vec::new();
    for (at, digest) in digests {
        let len = disk.table.capacity().saturating_sub(at.get()).min(block);
        bytes.resize(usize::try_from(len).unwrap_or_default(), 0);
        image.read(at, &mut bytes).map_err(|e| e.within(format!("cannot read disk {}", disk.target)))?;
        if Digest::of(&bytes) != digest {
            return Ok(Some("its bitmap calls a block unchanged that is another one now"));
        }
    }
    Ok(None)
}
