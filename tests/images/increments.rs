//! Chains of increments as an administrator makes them: random qcow2 and raw disks restored by each archive,
//! judged by `qemu-img compare` and the second reader; several destinations; encrypted ones; retention.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::common::archive::{backup_args, second_reader};
use crate::common::image::{Format, Image};
use crate::common::rng::Rng;
use crate::common::run::{exit, run, text, tool, wait_until};
use crate::retention::World;

const KIB: u64 = 1 << 10;
const SIZE: u64 = 24 << 20;

/// A backup into the world's place; its archive and its report.
fn backup(world: &World, image: &Image, more: &[&str]) -> (PathBuf, Value) {
    let kind: &[&str] = if more.contains(&"--kind") { &[] } else { &["--kind", "incremental"] };
    let more = [kind, &["--label", "disk", "--compress", "zstd:1", "--json"], more].concat();
    let done = world.virtfold(&backup_args(image, text(&world.place), &more)).ok();
    let report = done.json_lines().pop().unwrap();
    (PathBuf::from(report["archive"].as_str().unwrap()), report)
}

/// What a guest does between two backups: writes of any size, discards, zeros, now and then another size.
fn change(image: &Image, rng: &mut Rng) {
    let mut commands = Vec::new();
    for _ in 0..1 + rng.below(6) {
        let at = rng.below(SIZE / 512) * 512;
        let len = (1 + rng.below(400)) * 512;
        commands.push(match rng.below(5) {
            0 => format!("discard {at} {len}"),
            1 => format!("write -z {at} {len}"),
            2 => format!("write -z -u {at} {len}"),
            _ => format!("write -P {} {at} {len}", 1 + rng.below(255)),
        });
    }
    image.io(&commands);
    if rng.below(4) == 0 {
        let size = (SIZE + rng.below(64) * 100 * KIB).to_string();
        run(&mut tool(
            "qemu-img",
            ["resize", "-q", "--shrink", "-f", image.format.name(), image.text(), &size],
        ))
        .ok();
    }
}

/// Each archive of a chain gives back the disk as it was then.
fn chains(format: Format, options: &str, seed: u64) {
    let world = World::new(&format!("increments-{format}-{seed}"));
    let mut rng = Rng::of_case("increments", seed);
    let image = Image::create(world.scratch.join("disk"), format, options, SIZE * 3);
    image.io(&["write -P 1 0 3M", "write -P 2 10M 1M"]);
    let mut made = Vec::new();
    for number in 0..8 {
        let (archive, report) = backup(&world, &image, &["--max-chain", "6"]);
        assert_eq!(report["kind"], if number % 6 == 0 { "full" } else { "incremental" }, "{report}");
        second_reader(&archive, &[]);
        let then = image.convert_to_raw(&world.scratch.join(format!("then-{number}.raw")));
        made.push((archive, then));
        change(&image, &mut rng);
    }
    for (number, (archive, then)) in made.iter().enumerate() {
        let (to, method) = [("raw", "rewrite"), ("qcow2", "rewrite"), ("qcow2", "remap")][number % 3];
        let target = world.scratch.join(format!("restored-{number}"));
        let disk = format!("vda={}", text(&target));
        world.virtfold(&["restore", text(archive), "--disk", &disk, "--format", to, "--method", method]).ok();
        let restored = Image::new(target, if to == "raw" { Format::Raw } else { Format::Qcow2 });
        restored.assert_clean();
        then.assert_same_disk(&restored);
        world.virtfold(&["verify", text(archive)]).ok();
    }
}

#[test]
fn qcow2_by_each_archive() {
    chains(Format::Qcow2, "", 1);
    chains(Format::Qcow2, "cluster_size=4k", 2);
}

#[test]
fn raw_by_each_archive() {
    chains(Format::Raw, "", 3);
    chains(Format::Raw, "", 4);
}

/// An increment goes nowhere where its parent is not, and the report says why it is none.
#[test]
fn all_destinations_have_the_parent_or_the_backup_is_full() {
    let world = World::new("increments-places");
    let image = world.image_of("disk.raw", 5);
    let (other, third) = (world.scratch.folder("other"), world.scratch.folder("third"));
    let kind = |more: &[&str]| {
        let (_, report) = backup(&world, &image, more);
        (report["kind"].as_str().unwrap().to_owned(), report["full_reason"].as_str().map(str::to_owned))
    };
    let both = ["--to", text(&other)];
    assert_eq!(kind(&both).0, "full");
    assert_eq!(kind(&both), ("incremental".to_owned(), None));
    assert_eq!(kind(&[]).0, "incremental");
    // The newest one is in one of them alone: both have the one before it.
    assert_eq!(kind(&both).0, "incremental");
    let (kind_of_three, why) = kind(&["--to", text(&other), "--to", text(&third)]);
    assert!(kind_of_three == "full" && why.unwrap().contains("at all destinations"));
    // The full one that just went to all three is gone from one.
    let newest = fs::read_dir(&other)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .max_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
    fs::remove_file(newest.unwrap()).unwrap();
    let (kind_of_both, why) = kind(&both);
    assert!(kind_of_both == "full" && why.unwrap().contains("is not there"));
}

/// The host has public keys alone, and still tells what changed; whoever has the key restores.
#[test]
fn encrypted_chains_are_made_without_the_key_and_restored_with_it() {
    let world = World::new("increments-age");
    let key = world.scratch.join("key.txt");
    run(&mut tool("age-keygen", ["-o", text(&key)])).ok();
    let public = run(&mut tool("age-keygen", ["-y", text(&key)])).ok().last_line().to_owned();
    let image = Image::create(world.scratch.join("disk"), Format::Qcow2, "", SIZE);
    image.io(&["write -P 9 1M 5M"]);
    backup(&world, &image, &["--encrypt-to", &public]);
    image.io(&["write -P 8 2M 100k"]);
    let (archive, report) = backup(&world, &image, &["--encrypt-to", &public]);
    assert_eq!(report["kind"], "incremental", "{report}");
    assert_eq!(report["disks"][0]["dense_length"], 128 * KIB);
    let target = world.scratch.join("restored.raw");
    let disk = format!("vda={}", text(&target));
    let restore = ["restore", text(&archive), "--disk", &disk, "--format", "raw"];
    world.virtfold(&restore).exits(exit::LOCKED);
    world.virtfold(&[&restore[..], &["--identity", text(&key)]].concat()).ok();
    image.assert_same_disk(&Image::new(target, Format::Raw));
}

/// Archives of one second have no order for retention.
fn next_second() {
    let second = || jiff::Timestamp::now().as_second();
    let now = second();
    wait_until("the next second", Duration::from_secs(5), || second() > now);
}

fn archives(place: &Path) -> usize {
    fs::read_dir(place).unwrap().count()
}

/// A chain goes when nothing that is kept rests on it.
#[test]
fn prune_keeps_what_a_kept_increment_rests_on() {
    let world = World::new("increments-prune");
    let image = world.image_of("disk.raw", 5);
    for _ in 0..3 {
        backup(&world, &image, &[]);
        next_second();
    }
    let prune = ["prune", "--place", text(&world.place), "--keep-last", "1"];
    let told = world.virtfold(&prune).ok();
    assert_eq!(archives(&world.place), 3, "{told}");
    backup(&world, &image, &["--kind", "full"]);
    world.virtfold(&prune).ok();
    assert_eq!(archives(&world.place), 1);
}

/// What the host keeps of a disk's blocks is its owner's alone, and goes with the archives that need it.
#[test]
fn the_state_of_blocks_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new("increments-state");
    let (_, report) = backup(&world, &world.image_of("disk.raw", 5), &[]);
    let blocks = world.scratch.join("state/blocks");
    let file = blocks.join(report["id"].as_str().unwrap());
    for (path, mode) in [(blocks, 0o700), (file, 0o600)] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, mode);
    }
}
