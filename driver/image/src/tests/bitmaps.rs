//! Bitmaps: what QEMU says of those that it made itself, and hand-made ones that contradict themselves or
//! their image.

use std::os::unix::fs::FileExt;

use serde_json::Value;

use super::Lab;
use crate::{BitmapState, DiskImage, Format, OpenOptions};
use virtfold_base::units::BlockSize;

fn open(lab: &Lab, name: &str) -> DiskImage {
    DiskImage::open(&lab.path(name), Format::Qcow2, &OpenOptions::default()).unwrap()
}

fn state(lab: &Lab, name: &str, bitmap: &str) -> BitmapState {
    open(lab, name).dirty_bitmap(bitmap, BlockSize::MIN).unwrap()
}

/// The sentence why a bitmap is not usable.
fn reason(lab: &Lab, name: &str, bitmap: &str) -> String {
    match state(lab, name, bitmap) {
        BitmapState::Unusable(why) => why,
        other => panic!("{name}: {other:?}"),
    }
}

/// Which blocks of 4 KiB are dirty.
fn ours(state: &BitmapState, capacity: u64) -> Vec<bool> {
    let BitmapState::Usable(ranges) = state else { panic!("{state:?}") };
    let mut blocks = vec![false; usize::try_from(capacity.div_ceil(4096)).unwrap()];
    for range in ranges.iter().map(|range| range.unwrap()) {
        assert!(range.end().get() <= capacity);
        mark(&mut blocks, range.guest.get(), range.len);
    }
    blocks
}

fn mark(blocks: &mut [bool], at: u64, len: u64) {
    let (from, to) = (at / 4096, (at + len).div_ceil(4096));
    blocks[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()].fill(true);
}

/// The same as QEMU's server for network block devices shows it: what is dirty is 'not data'.
fn theirs(lab: &Lab, name: &str, bitmap: &str, capacity: u64) -> Vec<bool> {
    // It ends with its first client, and takes its socket with it: each has its own.
    let socket = lab.path(&format!("{name}-{bitmap}")).display().to_string();
    lab.run("qemu-nbd", &["--fork", "-r", "-k", &socket, "-B", bitmap, "-f", "qcow2", name]);
    let from =
        format!("driver=nbd,server.type=unix,server.path={socket},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}");
    let text = lab.run("qemu-img", &["map", "--output=json", "--image-opts", &from]);
    let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
    let mut blocks = vec![false; usize::try_from(capacity.div_ceil(4096)).unwrap()];
    for row in rows.iter().filter(|row| row["data"] == false) {
        mark(&mut blocks, row["start"].as_u64().unwrap(), row["length"].as_u64().unwrap());
    }
    blocks
}

#[test]
fn bitmaps_say_what_qemu_says_they_say() {
    let lab = Lab::new();
    let cases = [
        ("cluster_size=512", 512, 6_u64 << 20),
        ("cluster_size=4096", 4096, (64 << 20) - 512),
        ("cluster_size=64k", 65536, 64 << 20),
        ("cluster_size=64k,lazy_refcounts=on", 512, 300 << 20),
        ("cluster_size=2M,extended_l2=on", 1 << 20, 64 << 20),
        ("cluster_size=512", 1 << 30, 5 << 20),
    ];
    for (number, (options, grain, size)) in cases.into_iter().enumerate() {
        let name = format!("{number}.qcow2");
        lab.img(&format!("create -q -f qcow2 -o {options} {name} {size}"));
        lab.io("qcow2", &name, &["write -P 1 0 1M"]);
        lab.img(&format!("bitmap --add -g {grain} {name} empty"));
        lab.img(&format!("bitmap --add -g {grain} {name} b0"));
        lab.io("qcow2", &name, &["write -P 2 70k 130k", "discard 1M 64k", "write -z 3M 5k"]);
        let end = format!("write -P 3 {} 512", size - 512);
        lab.io("qcow2", &name, &["write -P 1 1234k 2M", &end]);
        lab.img(&format!("bitmap --add -g {grain} {name} b1"));
        lab.io("qcow2", &name, &["write -P 1 2000k 9k"]);
        for bitmap in ["empty", "b0", "b1"] {
            let found = ours(&state(&lab, &name, bitmap), size);
            assert!(found == theirs(&lab, &name, bitmap, size), "{name} {bitmap}");
            assert!(found.contains(&true));
        }
        assert!(matches!(state(&lab, &name, "other"), BitmapState::Missing));
    }
}

#[test]
fn all_zeros_all_ones_and_resized_disks() {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 -o cluster_size=512 a.qcow2 8M");
    lab.img("bitmap --add -g 512 a.qcow2 b0");
    assert_eq!(ours(&state(&lab, "a.qcow2", "b0"), 8 << 20).iter().filter(|dirty| **dirty).count(), 0);
    // A cluster of the bitmap is 512 * 8 sectors: 2 MiB.
    lab.io("qcow2", "a.qcow2", &["write -z 0 8M"]);
    let all = ours(&state(&lab, "a.qcow2", "b0"), 8 << 20);
    assert!(all.iter().all(|dirty| *dirty));
    lab.img("resize -q -f qcow2 a.qcow2 12M");
    assert_eq!(ours(&state(&lab, "a.qcow2", "b0"), 12 << 20), theirs(&lab, "a.qcow2", "b0", 12 << 20));
    // Only the top image's own bitmaps count.
    lab.img("create -q -f qcow2 -b a.qcow2 -F qcow2 over.qcow2");
    assert!(matches!(state(&lab, "over.qcow2", "b0"), BitmapState::Missing));
}

#[test]
fn several_bitmaps_are_one() {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 a.qcow2 16M");
    lab.img("bitmap --add -g 4096 a.qcow2 b0");
    lab.io("qcow2", "a.qcow2", &["write 1M 4k"]);
    lab.img("bitmap --add -g 65536 a.qcow2 b1");
    lab.io("qcow2", "a.qcow2", &["write 9M 4k"]);
    let image = open(&lab, "a.qcow2");
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let both = image.dirty_bitmaps(&names(&["b1", "b0"]), BlockSize::MIN).unwrap();
    let mut want = vec![false; 4096];
    mark(&mut want, 1 << 20, 4096);
    mark(&mut want, 9 << 20, 65536);
    assert_eq!(ours(&both, 16 << 20), want);
    let lost = image.dirty_bitmaps(&names(&["b0", "b7"]), BlockSize::MIN).unwrap();
    assert!(matches!(lost, BitmapState::Unusable(why) if why.contains("'b7'")));
    assert!(matches!(image.dirty_bitmaps(&[], BlockSize::MIN).unwrap(), BitmapState::Missing));
}

#[test]
fn what_did_not_record_to_the_end_is_not_usable() {
    let lab = Lab::new();
    let fresh = |name: &str| {
        lab.img(&format!("create -q -f qcow2 {name} 16M"));
        lab.img(&format!("bitmap --add {name} b0"));
    };
    fresh("off.qcow2");
    lab.img("bitmap --disable off.qcow2 b0");
    assert!(reason(&lab, "off.qcow2", "b0").contains("switched off"));
    // A QEMU that is killed leaves it 'in use'.
    fresh("crash.qcow2");
    let killed = std::process::Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write 1M 64k", "-c", "flush", "-c", "sigraise 9"])
        .arg(lab.path("crash.qcow2"))
        .output()
        .unwrap();
    assert!(!killed.status.success());
    assert!(reason(&lab, "crash.qcow2", "b0").contains("abruptly"));
    // A program that does not know bitmaps clears the bit.
    fresh("old.qcow2");
    patch(&lab, "old.qcow2", 95, &[0]);
    assert!(reason(&lab, "old.qcow2", "b0").contains("does not keep bitmaps"));
}

fn patch(lab: &Lab, name: &str, at: u64, bytes: &[u8]) {
    let file = std::fs::File::options().write(true).open(lab.path(name)).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Places in an image with one bitmap.
struct Places {
    extension: u64,
    directory: u64,
    table: u64,
    data: u64,
}

fn places(bytes: &[u8]) -> Places {
    let extension = bytes.windows(4).position(|four| four == 0x2385_2875_u32.to_be_bytes()).unwrap();
    let directory = word(bytes, extension + 24);
    let table = word(bytes, usize::try_from(directory).unwrap());
    let data = word(bytes, usize::try_from(table).unwrap());
    Places { extension: extension as u64, directory, table, data }
}

#[test]
fn what_contradicts_itself_is_not_usable() {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 -o cluster_size=512 a.qcow2 8M");
    lab.img("bitmap --add -g 512 a.qcow2 b0");
    lab.io("qcow2", "a.qcow2", &["write 1k 1k", "write 3M 512"]);
    let whole = std::fs::read(lab.path("a.qcow2")).unwrap();
    let Places { extension: x, directory: d, table: t, data } = places(&whole);
    assert!(matches!(state(&lab, "a.qcow2", "b0"), BitmapState::Usable(_)));
    let far = (1_u64 << 40).to_be_bytes();
    let first = (data | 1).to_be_bytes();
    let cases: &[(&str, u64, &[u8], &str)] = &[
        ("the extension's length", x + 4, &[0, 0, 0, 16], "extension"),
        ("a reserved word", x + 15, &[1], "extension"),
        ("no bitmap at all", x + 8, &[0, 0, 0, 0], "directory"),
        ("more bitmaps than there are", x + 8, &[0, 0, 0, 2], "directory"),
        ("a directory of 2^60 bytes", x + 16, &[16], "directory"),
        ("a shorter directory", x + 23, &[8], "directory"),
        ("a longer directory", x + 23, &[80], "directory"),
        ("a directory far behind", x + 24, &far, "where it can't be"),
        ("a directory off its cluster", x + 31, &[8], "where it can't be"),
        ("a directory in the header", x + 24, &[0; 8], "where it can't be"),
        ("a table far behind", d, &far, "where it can't be"),
        ("a table that is the directory", d, &[0; 8], "where it can't be"),
        ("fewer entries than needed", d + 11, &[3], "needs 4"),
        ("more entries than needed", d + 11, &[5], "needs 4"),
        ("2^32 - 1 entries", d + 8, &[0xff; 4], "needs 4"),
        ("in use", d + 15, &[3], "abruptly"),
        ("a flag of the future", d + 15, &[10], "does not know"),
        ("another type", d + 16, &[2], "does not know"),
        ("a granularity of 256 bytes", d + 17, &[8], "granularity"),
        ("a granularity of 2^32 bytes", d + 17, &[32], "granularity"),
        ("another granularity", d + 17, &[10], "needs 2"),
        ("no name", d + 18, &[0, 0], "directory"),
        ("a name longer than the directory", d + 18, &[3, 0], "directory"),
        ("a name of 1024 bytes", d + 18, &[4, 0], "directory"),
        ("extra data", d + 20, &[0xff; 4], "directory"),
        ("a reserved bit of an entry", t + 7, &[2], "impossible"),
        ("a high bit of an entry", t, &[1], "impossible"),
        ("a place and all ones", t, &first, "impossible"),
        ("a place far behind", t, &far, "where it can't be"),
        ("one place twice", t + 8, &data.to_be_bytes(), "one place"),
        ("bits that lie in the table", t, &t.to_be_bytes(), ""),
        ("bits that lie in the refcounts", 48, &data.to_be_bytes(), "references"),
    ];
    for (what, at, bytes, why) in cases {
        std::fs::write(lab.path("a.qcow2"), &whole).unwrap();
        patch(&lab, "a.qcow2", *at, bytes);
        match state(&lab, "a.qcow2", "b0") {
            BitmapState::Unusable(said) => assert!(said.contains(why), "{what}: {said}"),
            BitmapState::Usable(_) if why.is_empty() => {}
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn files_that_end_early_and_names_that_are_there_twice() {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 -o cluster_size=512 a.qcow2 8M");
    lab.img("bitmap --add -g 512 a.qcow2 b0");
    lab.img("bitmap --add -g 512 a.qcow2 b1");
    let whole = std::fs::read(lab.path("a.qcow2")).unwrap();
    let Places { directory, table, .. } = places(&whole);
    // Entries of one length: 24 bytes, a name of two, padding.
    assert_eq!(&whole[usize::try_from(directory + 56).unwrap()..][..2], b"b1");
    patch(&lab, "a.qcow2", directory + 56, b"b0");
    assert!(reason(&lab, "a.qcow2", "b0").contains("two bitmaps"));
    for cut in [directory + 30, table + 8] {
        std::fs::write(lab.path("a.qcow2"), &whole).unwrap();
        let file = std::fs::File::options().write(true).open(lab.path("a.qcow2")).unwrap();
        file.set_len(cut).unwrap();
        assert!(!matches!(state(&lab, "a.qcow2", "b0"), BitmapState::Usable(_)), "cut at {cut}");
    }
}
