//! Real images with some of their bytes changed, headers and tables alike: opened, walked, mapped and read.
//! Any error is fine; a panic, a hang or a wrong answer about the disk's size is not.

use std::io::Write;
use std::path::Path;

use proptest::prelude::*;

use super::Lab;
use crate::{DiskImage, Format, OpenOptions, map};
use virtfold_base::error::Result;
use virtfold_base::units::GuestOffset;

/// The most that is read of one mutated image.
const MOST: u64 = 1 << 20;

/// Uses an image that lies in memory, without following it anywhere.
fn use_bytes(bytes: &[u8]) -> Result<()> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let options = OpenOptions { max_depth: 1, ..OpenOptions::default() };
    let image = DiskImage::from_file(file, Path::new("mutant"), Format::Qcow2, &options)?;
    let table = image.allocation()?;
    assert_eq!(table.capacity(), image.capacity());
    let mut at = GuestOffset::ZERO;
    let mut read = 0;
    for extent in table.iter() {
        let extent = extent?;
        assert_eq!(extent.guest, at, "extents follow each other");
        at = extent.end();
        if extent.place.has_bytes() && read < MOST {
            let mut buf = vec![0; usize::try_from(extent.len.min(MOST)).unwrap()];
            read += buf.len() as u64;
            image.read(&table, extent.guest, &mut buf)?;
        }
    }
    assert_eq!(at.get(), image.capacity());
    let mut rows = 0;
    for row in map::rows(&image, &table)? {
        rows += row?.length;
    }
    assert_eq!(rows, image.capacity());
    Ok(())
}

fn images() -> Vec<Vec<u8>> {
    let lab = Lab::new();
    let all = [
        "cluster_size=512,compat=0.10",
        "cluster_size=512",
        "cluster_size=1024,refcount_bits=1",
        "cluster_size=16k,extended_l2=on",
    ];
    let mut images: Vec<Vec<u8>> = Vec::new();
    for options in all {
        lab.img(&format!("create -q -f qcow2 -o {options} x.qcow2 96k"));
        lab.io("qcow2", "x.qcow2", &["write -P 1 0 3k", "write -P 2 40k 9k", "write -P 3 90k 512"]);
        images.push(std::fs::read(lab.path("x.qcow2")).unwrap());
    }
    for kind in ["zlib", "zstd"] {
        lab.img(&format!("convert -c -O qcow2 -o cluster_size=4096,compression_type={kind} x.qcow2 c.qcow2"));
        images.push(std::fs::read(lab.path("c.qcow2")).unwrap());
    }
    images
}

#[test]
fn mutated_images_never_panic_or_hang() {
    let images = images();
    for image in &images {
        use_bytes(image).unwrap();
    }
    let change =
        (any::<prop::sample::Index>(), prop_oneof![any::<u8>(), Just(0), Just(1), Just(0x80), Just(0xff)]);
    let mutation =
        (0..images.len(), proptest::collection::vec(change, 1..8), any::<prop::sample::Index>(), 0..4);
    proptest!(ProptestConfig::with_cases(4000), |((which, changes, cut, whole) in mutation)| {
        let mut bytes = images[which].clone();
        // Most bytes are data or nothing; the tables are what matters, so half the changes go to what is set.
        let set: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] > 3).collect();
        for (index, (at, value)) in changes.into_iter().enumerate() {
            let at = if index % 2 == 0 { set[at.index(set.len())] } else { at.index(bytes.len()) };
            bytes[at] = value;
        }
        if whole == 0 {
            bytes.truncate(cut.index(bytes.len()));
        }
        // Refused or not: only that it comes to an end.
        drop(use_bytes(&bytes));
    });
}
