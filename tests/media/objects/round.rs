//! There and back, and what each verb reads of an archive.

use super::{PLACE, World, key_of};
use crate::common::archive::backup_args;
use crate::common::image::{Format, Image};
use crate::common::run::{exit, run, tool};
use crate::common::{KIB, MIB};

#[test]
fn an_archive_goes_there_and_comes_back_by_every_verb() {
    let world = World::new("s3-round");
    let image = world.image("web.qcow2", 20 * MIB);
    for more in [&[][..], &["--compress", "none"]] {
        let archive = world.backup(&image, more);
        assert!(archive.starts_with("s3://backups/vm/") && archive.contains("/web/web-"), "{archive}");
        let stored = std::fs::read(world.server.object(key_of(&archive))).unwrap();
        assert!(world.server.unfinished().is_empty(), "{:?}", world.server.unfinished());
        assert!(!world.server.keys().iter().any(|key| key.contains(".partial")), "{:?}", world.server.keys());

        // The object is the archive, and nothing but that.
        let copy = world.scratch.join(archive.rsplit('/').next().unwrap());
        std::fs::write(&copy, &stored).unwrap();
        run(&mut super::virtfold(["verify", copy.to_str().unwrap()])).ok();

        world.comes_back(&archive, &image, &[]);
        world.comes_back(&archive, &image, &["--method", "remap"]);
        let verified = world.run(["verify", &archive, "--json"]).ok();
        let summary = verified.json_lines().pop().unwrap();
        assert_eq!((&summary["sound"], &summary["bytes"]), (&true.into(), &stored.len().into()));
        let shown = world.run(["show", "--json", &archive]).ok().json_lines().pop().unwrap();
        assert_eq!((&shown["status"], &shown["archive"]), (&"complete".into(), &archive.clone().into()));
        let table = world.run(["table", &archive, "--disk", "vda", "--csv"]).ok();
        assert!(table.text().lines().any(|line| line.starts_with("place,")), "{table}");
        let listed = world.run(["list", "--json", "s3://backups"]).ok().json_lines().pop().unwrap();
        let names: Vec<&str> = listed["archives"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|glance| glance["archive"].as_str())
            .collect();
        assert!(names.contains(&archive.as_str()), "{names:?}");
    }
}

#[test]
fn single_disks_and_tables_are_read_by_ranges() {
    let world = World::new("s3-ranges");
    let (large, small) = (world.image("large.qcow2", 48 * MIB), world.image("small.qcow2", MIB));
    let mut args = backup_args(&large, PLACE, &["--compress", "none", "--image"]);
    args.extend([small.text(), "--name", "vda", "--name", "vdb", "--label", "two"]);
    let archive = world.run(args).ok().last_line().to_owned();
    let read = |args: &[&str]| {
        world.proxy.log();
        world.run(args.iter().copied()).ok();
        let log = world.proxy.log();
        let gets: Vec<_> = log.iter().filter(|request| request.method == "GET").collect();
        let bytes = gets.iter().map(|request| {
            let range = request.field("range").expect("a request for all of it").trim_start_matches("bytes=");
            let (from, to) = range.split_once('-').unwrap();
            to.parse::<u64>().unwrap() + 1 - from.parse::<u64>().unwrap()
        });
        bytes.sum::<u64>()
    };
    let disk = format!("vdb={}", world.scratch.join("b.qcow2").display());
    for args in [
        &["show", &archive][..],
        &["table", &archive, "--disk", "vda"],
        &["restore", &archive, "--disk", &disk],
    ] {
        let bytes = read(args);
        assert!(bytes < 24 * MIB, "{args:?} read {} KiB of 49 MiB", bytes / KIB);
    }
    super::same(&world.scratch.join("b.qcow2"), &small);
}

#[test]
fn encrypted_archives_are_read_at_any_place() {
    let world = World::new("s3-age");
    let key = world.scratch.join("key");
    run(&mut tool("age-keygen", ["-o", key.to_str().unwrap()])).ok();
    let public = run(&mut tool("age-keygen", ["-y", key.to_str().unwrap()])).ok();
    let image = world.image("web.qcow2", 12 * MIB);
    let archive = world.backup(&image, &["--encrypt-to", public.text().trim()]);
    assert!(archive.ends_with(".tar.zst.age"));
    world.comes_back(&archive, &image, &["--identity", key.to_str().unwrap()]);
    world.run(["verify", &archive, "--identity", key.to_str().unwrap()]).ok();
    world.run(["restore", &archive, "--output", "/nowhere"]).exits(exit::LOCKED);
    let listed = world.run(["list", PLACE]).ok();
    assert!(listed.text().contains("encrypted"), "{listed}");
}

#[test]
fn hosts_share_a_bucket_and_a_list_sees_all() {
    let world = World::new("s3-hosts");
    let image = world.image("web.qcow2", MIB);
    let mut archives = Vec::new();
    for host in ["alpha", "beta"] {
        let script = format!("hostname {host}; exec \"$@\"");
        let mut command =
            tool("unshare", ["--uts", "sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_virtfold")]);
        command.args(backup_args(&image, PLACE, &["--label", "web"]));
        let done = run(super::account(&mut command, world.proxy.port)).ok();
        archives.push(done.last_line().to_owned());
        assert!(done.last_line().starts_with(&format!("s3://backups/vm/{host}/web/web-")), "{done}");
    }
    let all = world.run(["list", PLACE]).ok();
    assert!(archives.iter().all(|archive| all.text().contains(archive)), "{all}");
    assert_eq!(all.text().matches(" complete ").count(), 2, "{all}");
    let beta = world.run(["list", "s3://backups/vm/beta"]).ok();
    assert!(beta.text().contains(&archives[1]) && !beta.text().contains(&archives[0]), "{beta}");
    let nothing = world.run(["list", "s3://backups/other"]).ok();
    assert_eq!(nothing.text().trim(), "no archives");
}

#[test]
fn an_empty_disk_is_an_archive_of_one_small_part() {
    let world = World::new("s3-empty");
    let image = Image::create(world.scratch.join("empty.qcow2"), Format::Qcow2, "", MIB);
    let archive = world.backup(&image, &[]);
    world.comes_back(&archive, &image, &[]);
}

#[test]
fn wrong_addresses_say_what_to_do() {
    let world = World::new("s3-wrong");
    let image = world.image("web.qcow2", MIB);
    let to = |place: &str| world.run(backup_args(&image, place, &[]));
    world.run(["list", "s3://no-such-bucket/x"]).exits(exit::NOT_FOUND);
    to("s3://KEY:secret@bucket/x").exits(exit::USAGE);
    world.run(["show", "s3://backups"]).exits(exit::USAGE);
    let missing = world.run(["verify", "s3://backups/vm/nothing.tar"]).exits(exit::NOT_FOUND);
    assert!(missing.stderr.contains("hint: "), "{missing}");
    // Nobody listens there.
    let mut command = world.command(["list", PLACE]);
    run(command.env("AWS_ENDPOINT_URL", "http://127.0.0.1:9")).exits(exit::FAILURE);
}
