//! The persistent bitmaps of a qcow2 image: what was written to since each of them was made.
//!
//! The facts are those of QEMU's docs/interop/qcow2 ("Bitmaps extension", "Bitmaps"). The header extension
//! says where the directory is and how many entries it has; each entry has a name, flags, a granularity and
//! the place of a table; the table has an entry for each cluster of the bitmap: its place, or that all its
//! bits are zeros or ones. A bit stands for 2^granularity bytes of the guest's disk, the lowest bit of a byte
//! first.
//!
//! Whoever trusts a bitmap leaves out of a backup what it does not mark. So what contradicts itself, what
//! QEMU itself would not trust, and what was not recording to the end makes a bitmap unusable, with a
//! sentence; never are its bits taken as far as they go.
//!
//! Invariants: every place and length is checked against the file before it is read; a bitmap has 512 MiB at
//! most, as QEMU has it; the ranges lie in a packed list.
//!
//! Imports: `error`, `units`, `file`, `header`, `refcounts`, `dirty_ranges`.

use super::{Header, refcounts};
use crate::dirty_ranges::{DirtyRanges, RangeBuilder};
use crate::file::HostFile;
use virtfold_base::error::{Error, Result, sentence};
use virtfold_base::units::{BlockSize, HostOffset};

/// Bytes of the extension's body.
const EXTENSION: usize = 24;
/// Bytes of a directory entry before its extra data and its name.
const ENTRY: usize = 24;
/// The longest directory: four thousand bitmaps with long names.
const MAX_DIRECTORY: u64 = 4 << 20;
/// QEMU's limits.
const MAX_BITMAP: u64 = 512 << 20;
const MAX_NAME: usize = 1023;
const GRANULARITIES: std::ops::RangeInclusive<u8> = 9..=31;
/// Flags of an entry.
const IN_USE: u32 = 1;
const AUTO: u32 = 1 << 1;
const EXTRA_COMPATIBLE: u32 = 1 << 2;
/// The type of a bitmap that marks writes.
const DIRTY_TRACKING: u8 = 1;
/// Parts of a table entry: the place, all ones, and what must be zero.
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;
const ALL_ONES: u64 = 1;
const RESERVED: u64 = 0xff00_0000_0000_01fe;
/// Bytes of a table or a bitmap that are read at once.
const PIECE: u64 = 64 << 10;

/// What a bitmap says.
#[derive(Debug)]
pub enum BitmapState {
    /// Nothing outside of these ranges was written to since it was made.
    Usable(DirtyRanges),
    /// The image has no bitmap of this name.
    Missing,
    /// It can't be relied on, for this reason.
    Unusable(String),
}

/// Why there are no ranges.
enum Stop {
    Missing,
    Unusable(String),
    /// The ranges can't be kept.
    Failed(Error),
}

type Checked<T> = std::result::Result<T, Stop>;

fn unusable<T>(what: impl Into<String>) -> Checked<T> {
    Err(Stop::Unusable(what.into()))
}

/// The bitmap `name` of an image, in whole blocks of `block`.
///
/// # Errors
/// The ranges can't be kept. An image that can't be read makes the bitmap unusable.
pub(crate) fn find(header: &Header, file: &HostFile, name: &str, block: BlockSize) -> Result<BitmapState> {
    let image = Image { header, file };
    match image.directory_entry(name).and_then(|entry| image.ranges(&entry, block)) {
        Ok(ranges) => Ok(BitmapState::Usable(ranges)),
        Err(Stop::Missing) => Ok(BitmapState::Missing),
        Err(Stop::Unusable(why)) => Ok(BitmapState::Unusable(why)),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// An entry of the directory.
#[derive(Clone, Copy, Debug)]
struct Entry {
    table: u64,
    entries: u64,
    granularity: u8,
}

struct Image<'a> {
    header: &'a Header,
    file: &'a HostFile,
}

impl Image<'_> {
    /// The entry of the bitmap `name`, whose flags let it be used.
    fn directory_entry(&self, name: &str) -> Checked<Entry> {
        let Some(extension) = &self.header.bitmaps else { return Err(Stop::Missing) };
        if self.header.version < 3 || !self.header.bitmaps_consistent {
            return unusable("the image was written to by a program that does not keep bitmaps");
        }
        if self.header.corrupt {
            return unusable("the image is marked as corrupt");
        }
        if self.header.external_data {
            return unusable("the image has an external data file, which can be written to past the bitmap");
        }
        let Some((count, directory)) = parse_extension(extension) else {
            return unusable("the image's header extension for bitmaps is damaged");
        };
        if count == 0 || directory.len > MAX_DIRECTORY {
            return unusable("the image's directory of bitmaps is damaged");
        }
        self.check_place(directory, "the directory of bitmaps")?;
        let bytes = self.read(directory)?;
        let mut found: Option<RawEntry> = None;
        let mut rest = bytes.as_slice();
        for _ in 0..count {
            let (entry, entry_name) = next_entry(&mut rest)?;
            if entry_name == name.as_bytes() && found.replace(entry).is_some() {
                return unusable("the image has two bitmaps of this name");
            }
        }
        if !rest.is_empty() {
            return unusable("the image's directory of bitmaps is longer than its bitmaps");
        }
        found.ok_or(Stop::Missing)?.check()
    }

    /// Fails where a part of the image does not lie at a cluster within the file.
    fn check_place(&self, place: Place, what: &str) -> Checked<()> {
        let inside = place.at.checked_add(place.len).is_some_and(|end| end <= self.file.len);
        if place.at == 0 || !place.at.is_multiple_of(self.header.cluster_size()) || !inside {
            return unusable(format!("{what} lies at {}, where it can't be", place.at));
        }
        if self.header.dirty {
            // Its refcounts are not up to date.
            return Ok(());
        }
        let first = place.at / self.header.cluster_size();
        for cluster in first..first + place.len.div_ceil(self.header.cluster_size()) {
            let count = readable(refcounts::of(self.header, self.file, cluster))?;
            if count != 1 {
                return unusable(format!("{what} at {} has {count} references, not 1", place.at));
            }
        }
        Ok(())
    }

    /// Reads a part of the image that lies within the file.
    fn read(&self, place: Place) -> Checked<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(place.len).unwrap_or(0)];
        readable(self.file.read(HostOffset::new(place.at), &mut bytes))?;
        Ok(bytes)
    }

    /// What a bitmap marks.
    fn ranges(&self, entry: &Entry, block: BlockSize) -> Checked<DirtyRanges> {
        let (capacity, cluster) = (self.header.capacity, self.header.cluster_size());
        let grain = 1_u64 << entry.granularity;
        let needed = capacity.div_ceil(grain).div_ceil(8).div_ceil(cluster);
        if entry.entries != needed {
            return unusable(format!(
                "its table has {} entries; the disk's size needs {needed}",
                entry.entries
            ));
        }
        if needed.checked_mul(cluster).is_none_or(|len| len > MAX_BITMAP) {
            return unusable("it is longer than 512 MiB");
        }
        let table = Place { at: entry.table, len: needed * 8 };
        if needed > 0 {
            self.check_place(table, "its table")?;
        }
        let mut marks = Marks { image: self, builder: RangeBuilder::new(block, capacity), grain, at: 0 };
        let mut places = Vec::new();
        let mut done = 0;
        while done < table.len {
            let window = Place { at: table.at + done, len: PIECE.min(table.len - done) };
            for word in self.read(window)?.as_chunks::<8>().0 {
                marks.cluster(u64::from_be_bytes(*word), &mut places)?;
            }
            done += window.len;
        }
        places.sort_unstable();
        if places.windows(2).any(|pair| pair.first() == pair.last()) {
            return unusable("two parts of it lie in one place");
        }
        marks.builder.finish().map_err(Stop::Failed)
    }
}

/// A part of the image file.
#[derive(Clone, Copy, Debug)]
struct Place {
    at: u64,
    len: u64,
}

/// What can't be read tells nothing.
fn readable<T>(read: Result<T>) -> Checked<T> {
    read.map_err(|error| Stop::Unusable(sentence(&error)))
}

/// The number of bitmaps, and where their directory is. The word between is reserved.
fn parse_extension(body: &[u8]) -> Option<(u32, Place)> {
    let body: &[u8; EXTENSION] = body.try_into().ok()?;
    let (words, _) = body.as_chunks::<8>();
    let [head, len, at] = *words else { return None };
    let [a, b, c, d, reserved @ ..] = head;
    let place = Place { at: u64::from_be_bytes(at), len: u64::from_be_bytes(len) };
    (reserved == [0; 4]).then_some((u32::from_be_bytes([a, b, c, d]), place))
}

/// An entry as it stands.
struct RawEntry {
    entry: Entry,
    flags: u32,
    kind: u8,
    extra: usize,
}

/// Takes the next entry, and its name, off the front of the directory.
fn next_entry<'a>(rest: &mut &'a [u8]) -> Checked<(RawEntry, &'a [u8])> {
    let damaged = || Stop::Unusable("the image's directory of bitmaps is damaged".to_owned());
    let fixed: &[u8; ENTRY] = rest.first_chunk().ok_or_else(damaged)?;
    let [
        t0,
        t1,
        t2,
        t3,
        t4,
        t5,
        t6,
        t7,
        c0,
        c1,
        c2,
        c3,
        f0,
        f1,
        f2,
        f3,
        kind,
        granularity,
        n0,
        n1,
        extra @ ..,
    ] = *fixed;
    let name_len = usize::from(u16::from_be_bytes([n0, n1]));
    let extra = usize::try_from(u32::from_be_bytes(extra)).map_err(|_| damaged())?;
    let name_at = ENTRY.checked_add(extra).ok_or_else(damaged)?;
    let end = name_at.checked_add(name_len).ok_or_else(damaged)?;
    if name_len == 0 || name_len > MAX_NAME {
        return Err(damaged());
    }
    let name = rest.get(name_at..end).ok_or_else(damaged)?;
    *rest = rest.get(end.checked_next_multiple_of(8).ok_or_else(damaged)?..).ok_or_else(damaged)?;
    let entry = Entry {
        table: u64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
        entries: u64::from(u32::from_be_bytes([c0, c1, c2, c3])),
        granularity,
    };
    Ok((RawEntry { entry, flags: u32::from_be_bytes([f0, f1, f2, f3]), kind, extra }, name))
}

impl RawEntry {
    /// The entry, where it may be relied on.
    fn check(self) -> Checked<Entry> {
        if self.flags & IN_USE != 0 {
            return unusable(
                "it was not saved when the image was last in use: QEMU or its host ended abruptly",
            );
        }
        if self.flags & !(IN_USE | AUTO | EXTRA_COMPATIBLE) != 0 || self.kind != DIRTY_TRACKING {
            return unusable("it is of a kind that virtfold does not know");
        }
        if self.extra > 0 && self.flags & EXTRA_COMPATIBLE == 0 {
            return unusable("it has extra data that virtfold does not know");
        }
        // What was written while it was switched off is not in it.
        if self.flags & AUTO == 0 {
            return unusable("it was switched off, and did not record every write");
        }
        if !GRANULARITIES.contains(&self.entry.granularity) {
            return unusable(format!("its granularity of 2^{} bytes is impossible", self.entry.granularity));
        }
        Ok(self.entry)
    }
}

/// The bits of a bitmap, as far as they were walked.
struct Marks<'a> {
    image: &'a Image<'a>,
    builder: RangeBuilder,
    /// Bytes of the guest's disk that a bit stands for.
    grain: u64,
    /// Where the next bit begins.
    at: u64,
}

impl Marks<'_> {
    /// Takes the cluster of a table entry.
    fn cluster(&mut self, word: u64, places: &mut Vec<u64>) -> Checked<()> {
        let cluster = self.image.header.cluster_size();
        let (place, ones) = (word & PLACE, word & ALL_ONES != 0);
        if word & RESERVED != 0 || (place != 0 && ones) {
            return unusable(format!("its table has the entry {word:#018x}, which is impossible"));
        }
        // A cluster has 2^24 bits at most, a bit stands for 2^31 bytes at most.
        let span = (cluster * 8).saturating_mul(self.grain);
        if place == 0 {
            if ones {
                self.builder.push(self.at, span).map_err(Stop::Failed)?;
            }
            self.at = self.at.saturating_add(span);
            return Ok(());
        }
        self.image.check_place(Place { at: place, len: cluster }, "a part of it")?;
        places.push(place);
        let mut done = 0;
        while done < cluster {
            let piece = Place { at: place + done, len: PIECE.min(cluster - done) };
            for byte in self.image.read(piece)? {
                self.byte(byte)?;
            }
            done += piece.len;
        }
        Ok(())
    }

    fn byte(&mut self, byte: u8) -> Checked<()> {
        let mut left = byte;
        while left != 0 {
            let first = left.trailing_zeros();
            let count = (left >> first).trailing_ones();
            let start = self.at.saturating_add(u64::from(first).saturating_mul(self.grain));
            self.builder.push(start, u64::from(count) * self.grain).map_err(Stop::Failed)?;
            left &= !u8::try_from(((1_u32 << count) - 1) << first).unwrap_or(u8::MAX);
        }
        self.at = self.at.saturating_add(self.grain.saturating_mul(8));
        Ok(())
    }
}
