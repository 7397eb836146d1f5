//! Remap on a file system that shares blocks: the dense bytes of a plain archive are not copied at all.
//!
//! XFS over a loop device; needs root and fails without it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::MIB;
use crate::common::archive::{Method, backup, restore, restore_args, verify};
use crate::common::image::{Format, Image};
use crate::common::mount::Mount;
use crate::common::rng::Rng;
use crate::common::run::{run, text, tool, virtfold};
use crate::common::scratch::Scratch;

/// Data in the disk, MiB.
const DATA: u64 = 128;

fn xfs(scratch: &Scratch) -> Mount {
    let mkfs = ["mkfs.xfs", "-q", "-m", "reflink=1"];
    Mount::made(&scratch.join("xfs"), &scratch.join("xfs.img"), 640 * MIB, &mkfs)
}

/// A disk of 100 GiB with `DATA` MiB in it, in scattered pieces.
fn source(folder: &Path, options: &str) -> Image {
    let noise = folder.join("noise");
    fs::write(&noise, Rng::of_case("reflink", 0).bytes(4 << 20)).unwrap();
    let image = Image::create(folder.join("source.qcow2"), Format::Qcow2, options, 100 << 30);
    let write = |i| format!("write -s {} {}M 4M", text(&noise), i * 701);
    image.io(&(0..DATA / 4).map(write).collect::<Vec<_>>());
    image
}

fn has_shared_extents(path: &Path) -> bool {
    run(&mut tool("filefrag", ["-v", text(path)])).ok().text().contains("shared")
}

#[test]
fn remap_shares_the_dense_bytes() {
    let scratch = Scratch::new("reflink");
    let disk = source(scratch.path(), "");
    let mount = xfs(&scratch);
    let archive = backup(&disk, mount.path(), &["--compress", "none"]);
    let target = Image::new(mount.path().join("remapped.qcow2"), Format::Qcow2);
    let before = mount.free();
    let start = Instant::now();
    restore(&archive, &target, Method::Remap).ok();
    let took = start.elapsed();
    let used = before.saturating_sub(mount.free());
    target.assert_clean();
    disk.assert_same_disk(&target);
    assert!(has_shared_extents(&target.path), "no extent of {} is shared", target.text());
    assert!(used < DATA * MIB / 10, "{used} bytes were used to restore {DATA} MiB that could be shared");
    eprintln!("restored {DATA} MiB by sharing in {took:?}, {used} bytes used");
    // The archive's digests are read before success is reported; the copy itself is what must be quick.
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn what_is_shared_stays_apart() {
    let scratch = Scratch::new("reflink-apart");
    let disk = source(scratch.path(), "cluster_size=32k,extended_l2=on");
    let mount = xfs(&scratch);
    let archive = backup(&disk, mount.path(), &["--compress", "none"]);
    let target = Image::new(mount.path().join("remapped.qcow2"), Format::Qcow2);
    restore(&archive, &target, Method::Remap).ok();
    disk.assert_same_disk(&target);
    target.io(&["write -P 9 0 64M"]);
    target.assert_clean();
    // A write into the restored disk must not reach the archive.
    verify(&archive).ok();
}

#[test]
fn a_compressed_or_encrypted_archive_or_another_file_system_is_copied() {
    let scratch = Scratch::new("reflink-copy");
    let disk = source(scratch.path(), "");
    let mount = xfs(&scratch);
    let compressed = backup(&disk, mount.path(), &["--compress", "zstd"]);
    let plain = backup(&disk, &scratch.folder("elsewhere"), &["--compress", "none"]);
    let key = scratch.join("key");
    run(&mut tool("age-keygen", ["-o", text(&key)])).ok();
    let public = run(&mut tool("age-keygen", ["-y", text(&key)])).ok().last_line().to_owned();
    let more = ["--compress", "none", "--encrypt-to", &public];
    let encrypted = backup(&disk, mount.path(), &more);
    for archive in [compressed, plain, encrypted] {
        let target = Image::new(mount.path().join("remapped.qcow2"), Format::Qcow2);
        let to = format!("vda={}", target.text());
        let mut args = restore_args(text(&archive), &to, Format::Qcow2, Method::Remap);
        args.extend(["--identity", text(&key)]);
        run(&mut virtfold(args)).ok();
        assert!(!has_shared_extents(&target.path), "{} is shared", archive.display());
        target.assert_clean();
        disk.assert_same_disk(&target);
        fs::remove_file(&target.path).unwrap();
    }
}
