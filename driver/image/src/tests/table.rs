//! The table against a plain list of extents.

use proptest::prelude::*;

use crate::allocation_table::TableBuilder;
use crate::file::FileIndex;
use crate::{Allocation, Extent};
use virtfold_base::units::{GuestOffset, HostOffset};

fn place() -> impl Strategy<Value = Allocation> {
    let host = (0_u64..1 << 56).prop_map(HostOffset::new);
    prop_oneof![
        Just(Allocation::Unallocated { reserved: None }),
        host.clone().prop_map(|host| Allocation::Unallocated { reserved: Some(host) }),
        Just(Allocation::Zero { host: None }),
        host.clone().prop_map(|host| Allocation::Zero { host: Some(host) }),
        (0_u32..5, host.clone()).prop_map(|(file, host)| Allocation::Data { file: FileIndex(file), host }),
        (0_u32..5, host.clone()).prop_map(|(file, host)| Allocation::Hole { file: FileIndex(file), host }),
        (0_u32..5, host, 1_u32..1 << 22).prop_map(|(file, host, stored)| Allocation::Compressed {
            file: FileIndex(file),
            host,
            stored,
            skip: 0
        }),
    ]
}

/// Extents one behind the other, some cut in two so that they continue each other.
fn extents() -> impl Strategy<Value = Vec<Extent>> {
    proptest::collection::vec((1_u64..1 << 21, 0_u32..3, place(), 0_u64..3), 0..700).prop_map(|rows| {
        let mut at = GuestOffset::ZERO;
        let mut out = Vec::new();
        for (len, depth, place, cut) in rows {
            let whole = Extent { guest: at, len, depth, place };
            let middle = at.saturating_add(len / (cut + 1));
            at = whole.end();
            out.extend(whole.clip(whole.guest, middle));
            out.extend(whole.clip(middle, at));
        }
        out
    })
}

proptest! {
    #[test]
    fn a_table_is_its_extents_joined(input in extents(), probes in proptest::collection::vec(any::<u64>(), 20)) {
        let mut builder = TableBuilder::default();
        let mut model: Vec<Extent> = Vec::new();
        for extent in &input {
            builder.push(*extent).unwrap();
            match model.last_mut() {
                Some(last) if last.continues_in(extent) => last.len += extent.len,
                _ => model.push(*extent),
            }
        }
        let table = builder.finish().unwrap();
        let all: Vec<Extent> = table.iter().map(Result::unwrap).collect();
        prop_assert_eq!(&all, &model);
        let capacity: u64 = input.iter().map(|extent| extent.len).sum();
        let bytes: u64 = input.iter().filter(|e| e.place.has_bytes()).map(|e| e.len).sum();
        prop_assert_eq!((table.capacity(), table.allocated(), table.len()), (capacity, bytes, model.len() as u64));
        for probe in probes {
            let at = GuestOffset::new(probe % (capacity + 10));
            let want = model.iter().find(|e| e.guest <= at && at < e.end()).copied();
            prop_assert_eq!(table.find(at).ok(), want);
            let mut walk = table.iter();
            walk.seek(|extent| extent.guest <= at).unwrap();
            let rest: Vec<Extent> = walk.map(Result::unwrap).collect();
            prop_assert_eq!(&rest[..], &model[model.partition_point(|e| e.guest <= at).saturating_sub(1)..]);
        }
    }
}

#[test]
fn clipping_moves_the_host_along() {
    let host = HostOffset::new(1000);
    let extent = Extent {
        guest: GuestOffset::new(100),
        len: 50,
        depth: 1,
        place: Allocation::Data { file: FileIndex(2), host },
    };
    let part = extent.clip(GuestOffset::new(110), GuestOffset::new(120)).unwrap();
    assert_eq!((part.guest.get(), part.len), (110, 10));
    assert_eq!(part.place, Allocation::Data { file: FileIndex(2), host: HostOffset::new(1010) });
    assert_eq!(extent.clip(GuestOffset::new(150), GuestOffset::new(160)), None);
    assert_eq!(extent.clip(GuestOffset::new(0), GuestOffset::new(100)), None);
    let packed = Allocation::Compressed { file: FileIndex(0), host, stored: 9, skip: 0 };
    let part = Extent { place: packed, ..extent }.clip(GuestOffset::new(110), GuestOffset::new(120)).unwrap();
    assert_eq!(part.place, Allocation::Compressed { file: FileIndex(0), host, stored: 9, skip: 10 });
}
