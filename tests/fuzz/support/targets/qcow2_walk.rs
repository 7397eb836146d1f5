//! A qcow2 image without a chain: header, L1, L2, compressed clusters. What opens has a table without gaps,
//! and reading in pieces gives what reading at once gives.

use std::path::Path;

use super::super::{flags, memory_file, no_defect};
use virtfold::image::{AllocationTable, BitmapState, DiskImage, Format, OpenOptions, map};
use virtfold::units::{BlockSize, GuestOffset};

/// Extents that are read.
const EXTENTS: usize = 48;
/// Bytes of each.
const LEN: u64 = 40_000;

/// One input.
pub fn run(data: &[u8]) {
    let Some((flags, data)) = flags(data) else { return };
    let format = if flags & 128 == 0 { Format::Qcow2 } else { Format::Raw };
    // One image: a header can name any file of this machine as its backing file.
    let options = OpenOptions { max_depth: 1, ..OpenOptions::default() };
    let name = Path::new("/nowhere/fuzz");
    let image = no_defect(DiskImage::from_file(memory_file(data), name, format, &options));
    let Some(image) = image else { return };
    let Some(table) = no_defect(image.allocation()) else { return };
    check_table(&image, &table);
    check_map(&image, &table);
    check_bitmap(&image);
    let extents = table.iter().take(EXTENTS).map(|extent| extent.expect("a table in memory").guest.get());
    let starts = extents.chain([image.capacity().saturating_sub(LEN), image.capacity() / 2]);
    for start in starts.collect::<Vec<_>>() {
        let len = (image.capacity() - start).min(LEN);
        check_read(&image, &table, start, usize::try_from(len).unwrap());
    }
}

fn check_table(image: &DiskImage, table: &AllocationTable) {
    assert_eq!(table.capacity(), image.capacity());
    let (mut end, mut allocated, mut count) = (0, 0, 0);
    for extent in table.iter() {
        let extent = extent.expect("a table in memory");
        assert!(extent.guest.get() == end && extent.len > 0, "gap or overlap at {end}: {extent:?}");
        assert_eq!(table.find(extent.guest).expect("it is there"), extent);
        end = extent.end().get();
        count += 1;
        if extent.place.has_bytes() {
            allocated += extent.len;
        }
    }
    assert_eq!((end, allocated, count), (image.capacity(), table.allocated(), table.len()));
}

fn check_map(image: &DiskImage, table: &AllocationTable) {
    let Some(rows) = no_defect(map::rows(image, table)) else { return };
    let mut end = 0;
    for row in rows {
        let Some(row) = no_defect(row) else { return };
        assert!(row.start == end && row.length > 0, "gap or overlap at {end}");
        end += row.length;
    }
    assert_eq!(end, image.capacity());
}

fn check_bitmap(image: &DiskImage) {
    let mut bytes = 0;
    for block in [BlockSize::MIN, BlockSize::MAX] {
        let state = image.dirty_bitmap("b", block).expect("a list in memory");
        let BitmapState::Usable(ranges) = state else { return };
        let mut end = None;
        for range in ranges.iter().map(|range| range.expect("a list in memory")) {
            assert!(end.is_none_or(|end| end < range.guest) && range.len > 0, "{range:?} behind {end:?}");
            assert!(range.end().get() <= image.capacity(), "{range:?} is not on the disk");
            end = Some(range.end());
        }
        assert!(ranges.bytes() >= bytes);
        bytes = ranges.bytes();
    }
}

fn check_read(image: &DiskImage, table: &AllocationTable, start: u64, len: usize) {
    let mut whole = vec![1; len];
    if no_defect(image.read(table, GuestOffset::new(start), &mut whole)).is_none() {
        return;
    }
    let mut pieces = vec![2; len];
    for (index, piece) in pieces.chunks_mut(7001).enumerate() {
        let at = GuestOffset::new(start + index as u64 * 7001);
        image.read(table, at, piece).expect("a part of what can be read can be read");
    }
    assert!(whole == pieces, "reading in pieces differs at {start}");
}
