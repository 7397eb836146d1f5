//! Random disks go out and come back: by every method, compression, block size and pipe, and `qemu-img` says
//! whether a guest could tell the difference.
//!
//! A failing case prints its seed and the commands that made its disk. Run it alone with
//! `VIRTFOLD_CASE=<n> cargo test --test images differential::`; `VIRTFOLD_SEED` gives other disks,
//! `VIRTFOLD_CASES` more.

use std::path::Path;

use crate::common::archive::{Method, backup, backup_args, restore, restore_args, verify};
use crate::common::disk::{Disk, disk_on_paper, random_disk};
use crate::common::image::{Format, Image};
use crate::common::map::assert_maps_agree;
use crate::common::qcow2::Options;
use crate::common::rng::{Rng, number_from_env, run_seed};
use crate::common::run::{exit, pipe, run, text, tool, virtfold};
use crate::common::scratch::{Scratch, names};
use crate::common::{KIB, MIB};

/// Random disks in a run.
const CASES: u64 = 240;
/// How many tests share them, so that every core has work.
const SHARDS: u64 = 12;

macro_rules! shards {
    ($($name:ident: $shard:expr),+ $(,)?) => {
        $(#[test]
        fn $name() {
            run_shard($shard);
        })+
    };
}

shards! {
    shard_00: 0, shard_01: 1, shard_02: 2, shard_03: 3, shard_04: 4, shard_05: 5,
    shard_06: 6, shard_07: 7, shard_08: 8, shard_09: 9, shard_10: 10, shard_11: 11,
}

fn run_shard(shard: u64) {
    if let Some(only) = number_from_env("VIRTFOLD_CASE") {
        if only % SHARDS == shard {
            run_case(only);
        }
        return;
    }
    let cases = number_from_env("VIRTFOLD_CASES").unwrap_or(CASES);
    // A case that fails does not keep the others from being tried.
    let fails = |case: &u64| std::panic::catch_unwind(|| run_case(*case)).is_err();
    let failed: Vec<u64> = (0..cases).filter(|case| case % SHARDS == shard).filter(fails).collect();
    assert!(failed.is_empty(), "cases {failed:?} of seed {} failed, see above", run_seed());
}

/// Prints what a failing case was; drops silently when it passed.
struct Witness<'a>(u64, &'a Disk);

impl Drop for Witness<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("case {} of seed {}: {} bytes, {:?}", self.0, run_seed(), self.1.size, self.1.options);
            eprintln!(
                "  again: VIRTFOLD_SEED={} VIRTFOLD_CASE={} cargo test --test images differential::",
                run_seed(),
                self.0
            );
            eprintln!("  made by:\n{}", self.1.recipe);
        }
    }
}

fn run_case(case: u64) {
    let mut rng = Rng::of_case("differential", case);
    let scratch = Scratch::new(&format!("case{case}"));
    let disk = random_disk(&mut rng, scratch.path());
    let _witness = Witness(case, &disk);
    assert_maps_agree(&disk.top);
    let plan = Plan::random(&mut rng, &disk);
    let archives = scratch.folder("archives");
    let archive = backup(&disk.top, &archives, &plan.backup_args());
    assert_eq!(
        names(&archives),
        [archive.file_name().unwrap().to_str().unwrap()],
        "something was left behind"
    );
    verify(&archive).ok();
    rewrite_to_raw(&disk, &archive, &scratch);
    rewrite_to_qcow2(&disk, &archive, &scratch);
    if plan.layout == "compact" {
        remap_to_qcow2(&disk, &archive, &scratch, &plan);
    }
    if plan.piped {
        through_pipes(&disk, &scratch, &plan);
    }
}

/// How a case is backed up.
struct Plan {
    compress: &'static str,
    layout: &'static str,
    block_size: Option<String>,
    workers: Option<&'static str>,
    piped: bool,
}

impl Plan {
    fn random(rng: &mut Rng, disk: &Disk) -> Self {
        Self {
            compress: rng.pick(&["none", "none", "zstd", "zstd:1", "zstd:9"]),
            layout: if !disk.is_huge() && rng.chance(12) { "full" } else { "compact" },
            block_size: rng.chance(40).then(|| (rng.pick(&[4, 8, 64, 128, 512, 2048]) * KIB).to_string()),
            workers: rng.pick(&[None, None, Some("1"), Some("3")]),
            piped: rng.chance(35),
        }
    }

    /// The block size, where it was asked for and is smaller than the source's clusters (64 KiB for raw).
    fn blocks_below_clusters(&self, disk: &Disk) -> Option<u64> {
        let cluster = disk.options.as_ref().map_or(64 * KIB, |options| options.cluster_size);
        self.block_size.as_ref().map(|size| size.parse().unwrap()).filter(|block| *block < cluster)
    }

    fn backup_args(&self) -> Vec<&str> {
        let mut args = vec!["--compress", self.compress, "--layout", self.layout];
        if let Some(size) = &self.block_size {
            args.extend(["--block-size", size]);
        }
        if let Some(workers) = self.workers {
            args.extend(["--workers", workers]);
        }
        args
    }
}

fn assert_restored(disk: &Disk, target: &Image) {
    target.assert_clean();
    disk.top.assert_same_disk(target);
}

fn rewrite_to_raw(disk: &Disk, archive: &Path, scratch: &Scratch) {
    let target = Image::new(scratch.join("rewrite.raw"), Format::Raw);
    restore(archive, &target, Method::Rewrite).ok();
    assert_restored(disk, &target);
    assert_no_larger_than_needed(disk, &target);
    std::fs::remove_file(&target.path).unwrap();
    let refused = Image::new(scratch.join("remap.raw"), Format::Raw);
    restore(archive, &refused, Method::Remap).exits(exit::USAGE);
    assert!(!refused.path.exists(), "a refused restore made its target");
}

/// A restored raw file has holes where the disk has nothing: it takes what `qemu-img convert` takes, and no
/// more than a block's worth for each extent on top.
fn assert_no_larger_than_needed(disk: &Disk, target: &Image) {
    let blocks = |image: &Image| image.info()["actual-size"].as_u64().unwrap();
    assert!(
        !disk.is_huge() || blocks(target) < 512 * MIB,
        "a sparse disk came back as {} bytes",
        blocks(target)
    );
}

fn rewrite_to_qcow2(disk: &Disk, archive: &Path, scratch: &Scratch) {
    let folder = scratch.folder("out");
    let args = ["restore", text(archive), "--output", text(&folder), "--format", "qcow2"];
    run(&mut virtfold(args)).ok();
    assert_eq!(names(&folder), ["vda.qcow2"]);
    let target = Image::new(folder.join("vda.qcow2"), Format::Qcow2);
    assert_restored(disk, &target);
    if let Some(options) = &disk.options {
        assert_options_kept(options, &target);
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

fn assert_options_kept(options: &Options, target: &Image) {
    let info = target.info();
    let data = &info["format-specific"]["data"];
    assert_eq!(info["cluster-size"], options.cluster_size, "cluster size of the restored image");
    assert_eq!(data["compat"], options.compat, "compat of the restored image");
    if options.is_v3() {
        assert_eq!(data["extended-l2"], options.extended_l2, "extended L2 of the restored image");
        assert_eq!(data["lazy-refcounts"], options.lazy_refcounts, "lazy refcounts of the restored image");
    }
}

fn remap_to_qcow2(disk: &Disk, archive: &Path, scratch: &Scratch, plan: &Plan) {
    let target = Image::new(scratch.join("remap.qcow2"), Format::Qcow2);
    match plan.blocks_below_clusters(disk) {
        Some(block) => remap_small_blocks(disk, archive, &target, block),
        None => {
            restore(archive, &target, Method::Remap).ok();
            if let Some(options) = &disk.options {
                assert_options_kept(options, &target);
            }
        }
    }
    if target.path.exists() {
        assert_restored(disk, &target);
        assert_maps_agree(&target);
        std::fs::remove_file(&target.path).unwrap();
    }
}

/// Dense bytes in blocks smaller than the source's clusters may be no whole clusters: then a remap is
/// refused, and the clusters must be as small as the blocks. Extended L2 entries allow for none below 16 KiB.
fn remap_small_blocks(disk: &Disk, archive: &Path, target: &Image, block: u64) {
    let first = restore(archive, target, Method::Remap).exits_one_of(&[exit::OK, exit::USAGE]);
    if first.code() == Some(exit::OK) {
        return;
    }
    assert!(!target.path.exists(), "a refused restore made its target");
    let too_small = block < 16 * KIB && disk.options.as_ref().is_some_and(|options| options.extended_l2);
    let (to, size) = (format!("vda={}", target.text()), block.to_string());
    let mut args = restore_args(text(archive), &to, Format::Qcow2, Method::Remap);
    args.extend(["--cluster-size", &size]);
    let second = run(&mut virtfold(args));
    if too_small {
        second.exits(exit::USAGE);
        assert!(!target.path.exists(), "a refused restore made its target");
    } else {
        second.ok();
        assert_eq!(target.info()["cluster-size"], block);
    }
}

/// `backup --to - | restore -`, and the archive file through a pipe.
fn through_pipes(disk: &Disk, scratch: &Scratch, plan: &Plan) {
    let target = Image::new(scratch.join("piped.qcow2"), Format::Qcow2);
    let to = format!("vda={}", target.text());
    let remap = plan.layout == "compact" && plan.blocks_below_clusters(disk).is_none();
    let method = if remap { Method::Remap } else { Method::Rewrite };
    let (first, second) = pipe(
        &mut virtfold(backup_args(&disk.top, "-", &plan.backup_args())),
        &mut virtfold(restore_args("-", &to, target.format, method)),
    );
    first.ok();
    second.ok();
    assert_restored(disk, &target);
    std::fs::remove_file(&target.path).unwrap();
}

/// The corpus is only worth what is in it: every feature in at least two of its disks.
#[test]
fn the_corpus_has_every_feature() {
    let recipe = |case| disk_on_paper(&mut Rng::of_case("differential", case)).recipe.to_string();
    let recipes: Vec<String> = (0..CASES).map(recipe).collect();
    let mut features: Vec<String> = [
        "compat=0.10",
        "extended_l2=on",
        "compression_type=zstd",
        "compression_type=zlib",
        "lazy_refcounts=on",
        "data_file_raw=on",
        "data_file_raw=off",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
        "-f raw",
        "-F raw",
        "-F qcow2",
        "layer4",
        "write -c",
        "write -z",
        "write -z -u",
        "discard",
        "snapshot -c",
        "bitmap -f",
        "--shrink",
        "resize -q -f qcow2 ./",
        "sigraise 9",
    ]
    .map(str::to_owned)
    .into();
    features.extend((9..=21).map(|bits| format!("cluster_size={},", 1 << bits)));
    features.extend((0..=6).map(|bits| format!("refcount_bits={}", 1 << bits)));
    for feature in features {
        let count = recipes.iter().filter(|recipe| recipe.contains(&feature)).count();
        assert!(count >= 2, "'{feature}' is in {count} of {CASES} disks: weigh tests/common/disk.rs anew");
    }
}

#[test]
fn an_archive_on_standard_output_is_the_same_kind_of_file() {
    let scratch = Scratch::new("stdout");
    let disk = random_disk(&mut Rng::of_case("stdout", 0), scratch.path());
    let _witness = Witness(0, &disk);
    for compress in ["none", "zstd"] {
        let file = scratch.join(format!("{compress}.archive"));
        let args = backup_args(&disk.top, "-", &["--compress", compress]);
        let (first, second) = pipe(&mut virtfold(args), &mut tool("dd", [format!("of={}", file.display())]));
        first.ok();
        second.ok();
        verify(&file).ok();
        let target = Image::new(scratch.join(format!("{compress}.raw")), Format::Raw);
        let to = format!("vda={}", target.text());
        let mut reader = virtfold(restore_args("-", &to, Format::Raw, Method::Rewrite));
        let (_, restored) = pipe(&mut tool("cat", [&file]), &mut reader);
        restored.ok();
        assert_restored(&disk, &target);
    }
}

#[test]
fn several_disks_go_into_one_archive() {
    let scratch = Scratch::new("several");
    let mut rng = Rng::of_case("several", 0);
    let (one, two) = (scratch.folder("one"), scratch.folder("two"));
    let disks = [random_disk(&mut rng, &one), random_disk(&mut rng, &two)];
    let archives = scratch.folder("archives");
    let mut args = vec!["backup", "--to", text(&archives), "--compress", "zstd"];
    for (disk, name) in disks.iter().zip(["vda", "vdb"]) {
        args.extend(["--image", disk.top.text(), "--format", disk.top.format.name(), "--name", name]);
    }
    let archive = run(&mut virtfold(args)).ok().last_line().to_owned();
    let folder = scratch.folder("out");
    run(&mut virtfold(["restore", &archive, "--output", text(&folder), "--format", "raw"])).ok();
    assert_eq!(names(&folder), ["vda.raw", "vdb.raw"]);
    for (disk, name) in disks.iter().zip(["vda.raw", "vdb.raw"]) {
        disk.top.assert_same_disk(&Image::new(folder.join(name), Format::Raw));
    }
}

#[test]
fn a_raw_disk_of_odd_bytes_comes_back_in_whole_sectors() {
    let scratch = Scratch::new("odd");
    let mut rng = Rng::of_case("odd", 0);
    for len in [1, 511, 4095, 65_537, 1_048_577] {
        let mut bytes = rng.bytes(len);
        let source = Image::new(scratch.join(format!("{len}.source")), Format::Raw);
        std::fs::write(&source.path, &bytes).unwrap();
        let archive = backup(&source, &scratch.folder("archives"), &[]);
        let target = Image::new(scratch.join(format!("{len}.target")), Format::Raw);
        restore(&archive, &target, Method::Rewrite).ok();
        // A guest sees whole sectors, and so does QEMU.
        bytes.resize(len.next_multiple_of(512), 0);
        assert_eq!(bytes, std::fs::read(&target.path).unwrap(), "{len} bytes");
    }
}

#[test]
fn an_empty_disk_and_a_full_one_come_back() {
    let scratch = Scratch::new("extremes");
    let empty = Image::create(scratch.join("empty.qcow2"), Format::Qcow2, "", 10 << 40);
    let full = Image::create(scratch.join("full.qcow2"), Format::Qcow2, "", 8 * MIB);
    full.io(&["write -P 7 0 8M"]);
    for image in [empty, full] {
        let archive = backup(&image, &scratch.folder("archives"), &["--compress", "zstd"]);
        for (method, format) in [(Method::Rewrite, Format::Raw), (Method::Remap, Format::Qcow2)] {
            let target = Image::new(image.path.with_extension(method.name()), format);
            restore(&archive, &target, method).ok();
            target.assert_clean();
            image.assert_same_disk(&target);
        }
    }
}
