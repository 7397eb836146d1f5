//! The archive outlives virtfold: GNU tar, bsdtar and zstd alone give the disks back, byte for byte, without
//! a word of complaint.

use std::path::Path;

use crate::common::archive::{backup, second_reader};
use crate::common::disk::{Disk, random_disk};
use crate::common::image::{Format, Image};
use crate::common::rng::Rng;
use crate::common::run::{run, text, tool};
use crate::common::scratch::{Scratch, names};

/// Random disks for each compression.
const DISKS: u64 = 14;

#[test]
fn plain_archives_are_sparse_tars() {
    for_each_disk("none", |archive, out| {
        quietly("tar", &["-xf", text(archive), "-C", text(&out.folder("gnu"))]);
        quietly("bsdtar", &["-xf", text(archive), "-C", text(&out.folder("bsd"))]);
        vec!["gnu", "bsd"]
    });
}

#[test]
fn compressed_archives_are_zstandard_over_sparse_tars() {
    for_each_disk("zstd", |archive, out| {
        quietly("tar", &["--zstd", "-xf", text(archive), "-C", text(&out.folder("gnu"))]);
        quietly("bsdtar", &["-xf", text(archive), "-C", text(&out.folder("bsd"))]);
        quietly("zstd", &["-q", "-t", text(archive)]);
        vec!["gnu", "bsd"]
    });
}

/// A tool that has something to say is a tool that has found something odd.
fn quietly(program: &str, args: &[&str]) {
    let outcome = run(&mut tool(program, args)).ok();
    assert!(outcome.stderr.is_empty(), "it complains\n{outcome}");
}

/// Archives random disks, lets `extract` unpack each into folders it names, compares the disks.
fn for_each_disk(compress: &str, extract: impl Fn(&Path, &Scratch) -> Vec<&'static str>) {
    for case in 0..DISKS {
        let scratch = Scratch::new(&format!("foreign-{compress}-{case}"));
        let mut rng = Rng::of_case("foreign", case);
        let disk = random_disk(&mut rng, &scratch.folder("source"));
        let layout = if case % 5 == 4 && !disk.is_huge() { "full" } else { "compact" };
        let archive =
            backup(&disk.top, &scratch.folder("archives"), &["--compress", compress, "--layout", layout]);
        let context = format!("case {case}, {compress}, {layout}, made by\n{}", disk.recipe);
        let read = scratch.folder("reader");
        second_reader(&archive, &["--extract", text(&read)]);
        let same = std::panic::catch_unwind(|| {
            disk.top.assert_same_disk(&Image::new(read.join("vda.raw"), Format::Raw))
        });
        assert!(same.is_ok(), "the second reader has another disk\n{context}");
        for folder in extract(&archive, &scratch) {
            assert_extracted(&disk, &scratch.join(folder), &context);
        }
    }
}

fn assert_extracted(disk: &Disk, folder: &Path, context: &str) {
    let found = names(folder);
    for name in ["virtfold.json", "vda.allocation.csv", "vda.raw", "virtfold.digests", "virtfold.end.json"] {
        assert!(found.iter().any(|n| n == name), "{name} is not in {found:?}\n{context}");
    }
    let extracted = Image::new(folder.join("vda.raw"), Format::Raw);
    let same = std::panic::catch_unwind(|| disk.top.assert_same_disk(&extracted));
    assert!(same.is_ok(), "{} is another disk\n{context}", extracted.text());
}

#[test]
fn a_second_look_byte_for_byte() {
    // `qemu-img compare` above is quick on sparse disks of TiBs; this one trusts nothing but `cmp`.
    let scratch = Scratch::new("cmp");
    let source = Image::create(scratch.join("source.qcow2"), Format::Qcow2, "extended_l2=on", 40 << 20);
    source.io(&["write -P 1 0 3M", "write -P 2 8191k 70000", "write -z 1M 64k", "write -c -P 5 20M 128k"]);
    let raw = source.convert_to_raw(&scratch.join("source.raw"));
    for compress in ["none", "zstd"] {
        let archive = backup(&source, &scratch.folder("archives"), &["--compress", compress]);
        for program in ["tar", "bsdtar"] {
            let out = scratch.folder(&format!("{program}-{compress}"));
            quietly(program, &["-xf", text(&archive), "-C", text(&out)]);
            quietly("cmp", &[raw.text(), text(&out.join("vda.raw"))]);
        }
    }
}
