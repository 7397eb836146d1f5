//! The merged map against a model that keeps every sector of every version.

use proptest::prelude::*;
use std::ops::Range;

use super::map::{ChainMap, ExtentSource, LayerRows};
use crate::allocation_csv::{AllocationKind, AllocationRow};
use crate::table::{Builder, CorrespondenceTable};
use virtfold_base::units::GuestOffset;

pub(super) const SECTOR: u64 = 16 << 10;

/// What happens to a disk between two archives, in sectors.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Write {
        at: usize,
        len: usize,
        value: u32,
    },
    Zero {
        at: usize,
        len: usize,
    },
    Resize {
        to: usize,
    },
    /// It is replaced by an empty one of the same name.
    Vanish,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0_usize..200, 1_usize..24, 1_u32..1000).prop_map(|(at, len, value)| Event::Write { at, len, value }),
        3 => (0_usize..200, 1_usize..40).prop_map(|(at, len)| Event::Zero { at, len }),
        1 => (0_usize..220).prop_map(|to| Event::Resize { to }),
        1 => Just(Event::Vanish),
    ]
}

/// A version: what happened before it, sectors of its blocks, and how often a block is called changed that is
/// none.
#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) events: Vec<Event>,
    pub(super) block: usize,
    pub(super) extra: usize,
}

pub(super) fn version() -> impl Strategy<Value = Version> {
    (proptest::collection::vec(event(), 0..6), prop::sample::select(vec![1_usize, 2, 8, 16]), 2_usize..9)
        .prop_map(|(events, block, extra)| Version { events, block, extra })
}

/// What an archive of the version has: its tables, and the sectors of its dense image.
pub(super) struct Layer {
    pub(super) table: CorrespondenceTable,
    pub(super) rows: Vec<AllocationRow>,
    pub(super) dense: Vec<u32>,
    pub(super) is_full: bool,
    pub(super) block: u64,
}

impl Layer {
    /// Of `now`, where the parent has `before`; `None` makes it all of the disk.
    fn make(version: &Version, before: Option<&[u32]>, now: &[u32]) -> Self {
        let mut builder = Builder::new(now.len() as u64 * SECTOR);
        let (mut rows, mut dense) = (Vec::new(), Vec::new());
        for (number, start) in (0..now.len()).step_by(version.block).enumerate() {
            let range = start..(start + version.block).min(now.len());
            let same = before.and_then(|before| before.get(range.clone())) == now.get(range.clone());
            let is_zero = now[range.clone()].iter().all(|sector| *sector == 0);
            let (at, len) = (range.start as u64 * SECTOR, range.len() as u64 * SECTOR);
            let mut kind = match (same && !number.is_multiple_of(version.extra), is_zero) {
                (true, _) => AllocationKind::Unchanged,
                (false, true) if number.is_multiple_of(2) => AllocationKind::Unallocated,
                (false, true) => AllocationKind::Zero,
                (false, false) => AllocationKind::Data,
            };
            if kind == AllocationKind::Data {
                builder.push(GuestOffset::new(at), len).unwrap();
                dense.extend_from_slice(&now[range]);
                // A row is finer than a block: what is in a run counts, whatever its rows say.
                kind = [AllocationKind::Data, AllocationKind::Zero, AllocationKind::Unchanged][number % 3];
            }
            rows.push(AllocationRow { guest: GuestOffset::new(at), len, kind, host: None });
        }
        Self {
            table: builder.finish().unwrap(),
            rows,
            dense,
            is_full: before.is_none(),
            block: version.block as u64 * SECTOR,
        }
    }

    fn below(&self, map: &ChainMap) -> ChainMap {
        if self.is_full {
            return map.below(&self.table, LayerRows::Full).unwrap();
        }
        let mut rows = |take: super::map::TakeRow<'_>| self.rows.iter().try_for_each(|row| take(*row));
        map.below(&self.table, LayerRows::Table(&mut rows)).unwrap()
    }
}

fn live(disk: &[u32], at: usize, len: usize) -> Range<usize> {
    at.min(disk.len())..(at + len).min(disk.len())
}

/// The versions of a disk, the oldest first, and the layers of their archives.
pub(super) fn history(versions: &[Version]) -> (Vec<Vec<u32>>, Vec<Layer>) {
    let mut disk: Vec<u32> = (0..150).map(|sector| if sector % 7 < 3 { sector + 1 } else { 0 }).collect();
    let (mut states, mut layers) = (Vec::<Vec<u32>>::new(), Vec::new());
    for version in versions {
        let mut before = states.last().map(Vec::as_slice);
        for event in &version.events {
            match *event {
                Event::Write { at, len, value } => {
                    let range = live(&disk, at, len);
                    disk[range].iter_mut().zip(value..).for_each(|(sector, value)| *sector = value);
                }
                Event::Zero { at, len } => {
                    let range = live(&disk, at, len);
                    disk[range].fill(0);
                }
                Event::Resize { to } => disk.resize(to, 0),
                Event::Vanish => {
                    disk = vec![0; 90];
                    before = None;
                }
            }
        }
        layers.push(Layer::make(version, before, &disk));
        states.push(disk.clone());
    }
    (states, layers)
}

/// The chain of the newest version: down to the first layer that is full.
fn merged(layers: &[Layer]) -> ChainMap {
    let mut map = ChainMap::new(layers.last().unwrap().table.capacity()).unwrap();
    for layer in layers.iter().rev() {
        map = layer.below(&map);
        if layer.is_full {
            break;
        }
    }
    map
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn agrees_with_a_naive_model(
        versions in proptest::collection::vec(version(), 1..8),
        probe in (0_usize..200, 1_usize..60),
    ) {
        let (states, layers) = history(&versions);
        for count in 1..=layers.len() {
            let (layers, state) = (&layers[..count], &states[count - 1]);
            let map = merged(layers);
            prop_assert_eq!(map.capacity(), state.len() as u64 * SECTOR);
            prop_assert_eq!((map.open(), map.lost(), map.first_missing().unwrap()), (0, 0, None));
            let value = |source, inside: u64| match source {
                ExtentSource::Zeros => 0,
                ExtentSource::Layer { layer, dense } => {
                    let at = usize::try_from((dense.get() + inside) / SECTOR).unwrap();
                    layers[count - 1 - layer].dense[at]
                }
                ExtentSource::Unchanged | ExtentSource::Lost => panic!("nothing is missing"),
            };
            let mut read = Vec::new();
            let mut last = None;
            for extent in map.iter() {
                let extent = extent.unwrap();
                prop_assert_eq!(extent.guest.get(), read.len() as u64 * SECTOR);
                prop_assert!(last != Some(extent.source) || last != Some(ExtentSource::Zeros), "two are one");
                read.extend((0..extent.len / SECTOR).map(|sector| value(extent.source, sector * SECTOR)));
                last = Some(extent.source);
            }
            prop_assert_eq!(&read, state);
            let range = live(state, probe.0, probe.1);
            let (from, len) = (range.start as u64 * SECTOR, range.len() as u64 * SECTOR);
            let mut found = Vec::new();
            map.cursor().pieces(GuestOffset::new(from), len, &mut |piece| {
                found.extend((0..piece.len / SECTOR).map(|sector| value(piece.source, sector * SECTOR)));
                Ok(())
            }).unwrap();
            prop_assert_eq!(found.as_slice(), &state[range]);
        }
    }
}

fn layer(block: usize, before: Option<&[u32]>, now: &[u32]) -> Layer {
    Layer::make(&Version { events: Vec::new(), block, extra: usize::MAX }, before, now)
}

/// An archive that calls a range unchanged that its parent's disk does not have gets no bytes for it from a
/// still older archive, and no zeros.
#[test]
fn what_the_parent_can_not_have_is_lost_and_what_no_parent_was_added_for_is_open() {
    let (old, short) = ([7; 8], [7; 4]);
    let mut newest = layer(1, Some(&old), &old);
    newest.rows.truncate(1);
    newest.rows[0].kind = AllocationKind::Unchanged;
    newest.rows[0].len = 8 * SECTOR;
    newest.table = Builder::new(8 * SECTOR).finish().unwrap();
    let map = newest.below(&ChainMap::new(8 * SECTOR).unwrap());
    assert_eq!((map.open(), map.lost()), (8 * SECTOR, 0));
    let map = layer(1, Some(&old), &short).below(&map);
    assert_eq!((map.open(), map.lost()), (3 * SECTOR, 4 * SECTOR), "block 0 is no multiple and was written");
    let map = layer(1, None, &old).below(&map);
    assert_eq!((map.open(), map.lost(), map.layers()), (0, 4 * SECTOR, 3));
    let missing = map.first_missing().unwrap().unwrap();
    assert_eq!(
        (missing.guest.get(), missing.len, missing.source),
        (4 * SECTOR, 4 * SECTOR, ExtentSource::Lost)
    );
}

#[test]
fn rows_that_do_not_cover_the_disk_are_refused() {
    let mut short = layer(1, Some(&[7; 8]), &[7; 8]);
    short.rows.pop();
    let mut rows = |take: super::map::TakeRow<'_>| short.rows.iter().try_for_each(|row| take(*row));
    let map = ChainMap::new(8 * SECTOR).unwrap();
    assert!(map.below(&short.table, LayerRows::Table(&mut rows)).is_err());
}
