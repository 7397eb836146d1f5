//! Archives out and back: by virtfold, by dd and tar alone, over several volumes, without a catalog.

use std::fs;

use super::bench::{Bench, TAPE, name_of};
use super::drive::{Fault, Object};
use crate::common::image::{Format, Image};
use crate::common::run::{exit, text};

#[test]
fn out_and_back_by_every_way() {
    let mut bench = Bench::new(1, 64);
    bench.label(0);
    let image = bench.image("disk.raw", 5);
    let archive = name_of(&bench.backup(&image, &[]).ok());
    assert!(!bench.unit(|unit| unit.compression), "the drive compresses what is compressed");
    let other = Image::create(bench.scratch.join("b.qcow2"), Format::Qcow2, "cluster_size=65536", 8 << 20);
    other.io(&["write -P 7 1M 512k", "write -P 8 6M 192k"]);
    let second = name_of(&bench.backup(&other, &["--compress", "none"]).ok());
    bench.assert_restores(&archive, &image, &[]);
    bench.assert_restores(&archive, &image, &["--state-dir", text(&bench.scratch.join("empty"))]);
    // A remap is one pass, too.
    let back = Image::new(bench.scratch.join("back.qcow2"), Format::Qcow2);
    let disk = format!("vda={}", back.text());
    bench.virtfold(&["restore", &format!("{TAPE}#latest"), "--disk", &disk, "--method", "remap"]).ok();
    let same = crate::common::run::tool("qemu-img", ["compare", other.text(), back.text()]);
    crate::common::run::run(&mut { same }).ok();
    bench.virtfold(&["verify", &archive]).ok();
    bench.virtfold(&["verify", &second]).ok();
    bench.virtfold(&["tape", "verify", TAPE]).ok();
    let shown = bench.virtfold(&["show", &archive, "--json"]).ok().json();
    assert_eq!(shown["head"]["disks"][0]["capacity"], 5 << 20, "{shown}");
    let tables = bench.virtfold(&["table", &archive, "--disk", "vda", "--csv"]).ok();
    assert!(tables.text().contains("correspondence,0,0,5242880,,"), "{tables}");
    let listed = bench.virtfold(&["list", TAPE, "--json"]).ok().json();
    let names: Vec<&str> =
        listed["archives"].as_array().unwrap().iter().map(|a| a["archive"].as_str().unwrap()).collect();
    assert_eq!(names, [archive.as_str(), second.as_str()], "list prints the names that restore takes");
    assert_eq!(bench.virtfold(&["tape", "status", TAPE, "--json"]).ok().json()["label"]["label"], "T0");
    bench.virtfold(&["restore", &format!("{TAPE}#00000000"), "--output", "/run/tmp"]).exits(exit::NOT_FOUND);
    bench.virtfold(&["restore", TAPE, "--output", "/run/tmp"]).exits(exit::USAGE);
}

/// What can't be read is stepped over, and a volume that is gone left out: the rest comes, and what is lost
/// is said.
#[test]
fn what_is_intact_comes_from_a_tape_that_is_not() {
    let mut bench = Bench::new(2, 5);
    (0..2).rev().for_each(|slot| bench.label(slot));
    let image = bench.image("disk.raw", 8);
    let change = bench.change();
    let archive = name_of(&bench.backup(&image, &[&change, "--tape-commit-every", "2MiB"]).ok());
    let was = fs::read(image.text()).unwrap();
    let mut salvaged = |volumes: &[&str], code: i32| {
        let target = bench.scratch.join("salvaged.raw");
        let disk = format!("vda={}", text(&target));
        let mut args = vec!["restore", &archive, "--disk", &disk, "--partial", "--force", "--json"];
        args.extend(volumes);
        bench.unit(|unit| {
            unit.insert(0);
            unit.faults = vec![Fault::ReadError(8)];
        });
        let done = bench.virtfold(&args).exits(code);
        assert!(bench.unit(|unit| unit.faults.is_empty()), "{done}");
        let is = fs::read(&target).unwrap();
        let other = |at: &usize| is[*at] != was[*at];
        (0..is.len()).filter(other).inspect(|at| assert_eq!(is[*at], 0, "byte {at}")).count()
    };
    let lost = salvaged(&[&change], exit::DAMAGED);
    assert!((1..3 << 20).contains(&lost), "{lost} bytes are lost with one block");
    let lost = salvaged(&[], exit::INCOMPLETE);
    assert!((3 << 20..6 << 20).contains(&lost), "{lost} bytes are lost with the second volume");
}

/// Files 0 and 1 of the tape are passed over by reading them; the next is the archive.
const DD: &str = "dd if=/dev/nst0 bs=1M of=/dev/null status=none; dd if=/dev/nst0 bs=1M of=/dev/null status=none; dd if=/dev/nst0 bs=1M status=none";

#[test]
fn over_three_volumes_and_back_by_virtfold_and_by_dd_alone() {
    let mut bench = Bench::new(3, 3);
    (0..3).rev().for_each(|slot| bench.label(slot));
    let image = bench.image("disk.raw", 6);
    let change = bench.change();
    let done = bench.backup(&image, &[&change]).ok();
    let archive = name_of(&done);
    assert!(done.text().contains("on volume T0, T1, T2"), "{done}");
    assert_eq!(bench.questions(), ["2 - T0", "3 - T1"]);
    bench.unit(|unit| unit.insert(0));
    bench.assert_restores(&archive, &image, &[&change]);
    assert_eq!(bench.questions()[2..], ["2 T1 T0", "3 T2 T1"], "asked by their labels");
    by_dd_alone(&mut bench, &image);
    lost_catalog(&mut bench, &archive, &image);
    // Nobody to change volumes: that is said, and nothing is made.
    bench.unit(|unit| unit.insert(0));
    let out = format!("vda={}", text(&bench.scratch.join("none.raw")));
    bench.virtfold(&["restore", &archive, "--disk", &out]).exits(exit::NOT_FOUND);
    assert!(!bench.scratch.join("none.raw").exists());
    // An archive goes on behind the last part.
    let small = bench.image("small.raw", 0);
    fs::write(small.text(), [7; 4096]).unwrap();
    bench.unit(|unit| unit.insert(2));
    let third = name_of(&bench.backup(&small, &[]).ok());
    bench.assert_restores(&third, &small, &[]);
}

fn by_dd_alone(bench: &mut Bench, image: &Image) {
    let whole = bench.scratch.join("archive");
    for slot in 0..3 {
        bench.unit(|unit| unit.insert(slot));
        // The first command after a change is told of it.
        bench
            .sh(&format!(
                "dd if=/dev/st0 bs=1M count=1 of=/dev/null status=none; ({DD}) >> '{}'",
                text(&whole)
            ))
            .ok();
    }
    let out = bench.scratch.folder("tar");
    bench.sh(&format!("tar --zstd -xf '{}' -C '{}'", text(&whole), text(&out))).ok();
    assert!(
        fs::read(out.join("vda.raw")).unwrap() == fs::read(image.text()).unwrap(),
        "tar gives other bytes"
    );
}

/// The catalog is gone: an archive is found by what the tapes say, and reading them brings the catalog back.
fn lost_catalog(bench: &mut Bench, archive: &str, image: &Image) {
    let change = bench.change();
    fs::remove_dir_all(bench.scratch.join("state")).unwrap();
    bench.unit(|unit| unit.insert(0));
    bench.assert_restores(archive, image, &[&change]);
    assert!(!bench.scratch.join("state").exists(), "who reads makes no catalog");
    let asked = bench.questions().len();
    bench.unit(|unit| unit.insert(2));
    bench.assert_restores(&format!("{TAPE}#latest"), image, &[&change]);
    assert_eq!(
        bench.questions()[asked..],
        ["1 T0 T2", "2 T1 T0", "3 T2 T1"],
        "the last volume names those before"
    );
    for slot in 0..3 {
        bench.unit(|unit| unit.insert(slot));
        bench.virtfold(&["tape", "list", TAPE]).ok();
    }
    bench.unit(|unit| unit.insert(1));
    let asked = bench.questions().len();
    bench.assert_restores(archive, image, &[&change]);
    assert_eq!(bench.questions()[asked..], ["1 T0 T1", "2 T1 T0", "3 T2 T1"], "the catalog knows them again");
}

#[test]
fn a_power_cut_in_mid_write_costs_that_archive_alone() {
    let mut bench = Bench::new(1, 256);
    bench.label(0);
    let first = bench.image("first.raw", 2);
    let kept = name_of(&bench.backup(&first, &[]).ok());
    let large = bench.image("large.raw", 64);
    let before = bench.unit(|unit| unit.writes);
    let args = ["backup", "--image", large.text(), "--format", "raw", "--to", TAPE, "--tape-buffer", "1MiB"];
    let running = bench.start(&args);
    bench.wait_for_writes(before + 20);
    assert!(!running.has_ended());
    bench.cut_power();
    let left = bench.objects(0);
    assert!(matches!(left.last(), Some(Object::Block(_))), "cut in the midst of a file");
    let listed = bench.virtfold(&["tape", "list", TAPE, "--json"]).ok().json();
    assert_eq!(listed["archives"][1]["complete"], false, "{listed}");
    bench.virtfold(&["tape", "verify", TAPE]).exits(exit::INCOMPLETE);
    bench.assert_restores(&format!("{TAPE}#latest"), &first, &[]);
    let second = name_of(&bench.backup(&first, &[]).ok());
    bench.assert_restores(&second, &first, &[]);
    bench.assert_restores(&kept, &first, &[]);
    assert_eq!(bench.objects(0)[..left.len()], left, "nothing that was on the tape was overwritten");
    let broken = format!("{}{}", "tape:/dev/nst0#", id_in(&listed, 1));
    bench.virtfold(&["verify", &broken]).exits(exit::INCOMPLETE);
}

/// The process is killed, and the kernel closes the tape: it writes a filemark by itself. Or it is told to
/// end.
#[test]
fn a_killed_run_costs_that_archive_alone() {
    let mut bench = Bench::new(1, 256);
    bench.label(0);
    let small = bench.image("small.raw", 1);
    let large = bench.image("large.raw", 64);
    for (signal, code) in [("KILL", 128 + 9), ("INT", exit::SIGINT)] {
        let before = bench.unit(|unit| unit.writes);
        let args = [
            "backup",
            "--image",
            large.text(),
            "--format",
            "raw",
            "--to",
            TAPE,
            "--tape-buffer",
            "1MiB",
            "--limit-rate",
            "4MiB",
        ];
        let running = bench.start(&args);
        bench.wait_for_writes(before + 20);
        bench.signal(signal);
        let ended = running.wait();
        assert_eq!(ended.shell_code(), code, "{ended}");
        let left = bench.objects(0);
        assert_eq!(left.last(), Some(&Object::Mark));
        bench
            .virtfold(&["restore", &format!("{TAPE}#latest"), "--output", "/run/tmp"])
            .exits_one_of(&[exit::NOT_FOUND, exit::OK]);
        let archive = name_of(&bench.backup(&small, &[]).ok());
        bench.assert_restores(&archive, &small, &[]);
        assert_eq!(bench.objects(0)[..left.len()], left, "nothing that was on the tape was overwritten");
    }
}

/// The next run goes on behind what the killed one had committed, on the same volume or on another one, and
/// the archive is the same.
#[test]
fn a_killed_run_is_gone_on_with_by_the_next_one() {
    let mut bench = Bench::new(2, 256);
    (0..2).rev().for_each(|slot| bench.label(slot));
    let large = bench.image("large.raw", 48);
    let change = bench.change();
    for next in [0, 1] {
        let before = bench.unit(|unit| unit.writes);
        let args = ["backup", "--image", large.text(), "--format", "raw", "--to", TAPE];
        let more = ["--compress", "none", "--tape-commit-every", "4MiB", "--limit-rate", "6MiB"];
        let running = bench.start(&[args.as_slice(), &more, &["--tape-buffer", "1MiB"]].concat());
        // Two parts and a bit: 256 KiB a block, a begin and an end each.
        bench.wait_for_writes(before + 50);
        bench.signal("KILL");
        let ended = running.wait();
        assert_eq!(ended.shell_code(), 128 + 9, "not killed at its work: {ended}");
        let left = bench.objects(0);
        bench.unit(|unit| unit.insert(next));
        let done = bench.backup(&large, &["--compress", "none", "--tape-commit-every", "4MiB"]).ok();
        assert!(done.stderr.contains("resuming"), "{done}");
        // At the end of its last part. How many it got to write until the signal came is up to the machine.
        let at = done.text().split("resumed at ").nth(1).and_then(|text| text.split(".0 MiB").next());
        let at: usize = at.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{done}"));
        let blocks = left.iter().filter(|object| matches!(object, Object::Block(_))).count();
        assert!((8..48).contains(&at) && at.is_multiple_of(4) && at * 4 <= blocks, "{blocks} blocks\n{done}");
        assert_eq!(bench.objects(0)[..left.len()], left, "nothing that was on the tape was overwritten");
        let archive = name_of(&done);
        bench.unit(|unit| unit.insert(0));
        bench.assert_restores(&archive, &large, &[&change]);
        // By what the tapes say alone.
        let nobody = bench.scratch.join("empty");
        bench.unit(|unit| unit.insert(next));
        bench.assert_restores(&archive, &large, &[&change, "--state-dir", text(&nobody)]);
        bench.unit(|unit| unit.insert(0));
    }
}

/// At a terminal a person is asked, and asked again where there is no tape, or the wrong one.
#[test]
fn a_person_at_the_terminal_changes_volumes() {
    let mut bench = Bench::new(3, 3);
    (0..2).rev().for_each(|slot| bench.label(slot));
    let image = bench.image("disk.raw", 4);
    let line = format!(
        "VIRTFOLD_STATE_DIR={} {} backup --image {} --format raw --to {TAPE} --tape-wait 300ms",
        text(&bench.scratch.join("state")),
        env!("CARGO_BIN_EXE_virtfold"),
        image.text()
    );
    // Presses Enter every now and then.
    let script = format!(
        "mkdir -p /dev/pts; mount -t devpts devpts /dev/pts; (while sleep 1; do echo; done) | timeout 60 script -qec '{line}' /dev/null"
    );
    let running = bench.start_tool(&crate::common::run::tool("bash", ["-c", &script]));
    let gone = |bench: &Bench| {
        crate::common::run::wait_until(
            "a tape that is given out",
            std::time::Duration::from_secs(60),
            || bench.unit(|unit| unit.is_empty()),
        );
        std::thread::sleep(std::time::Duration::from_millis(1500));
    };
    gone(&bench);
    // Blank.
    bench.unit(|unit| unit.insert(2));
    std::thread::sleep(std::time::Duration::from_millis(3000));
    bench.unit(|unit| unit.insert(1));
    let done = running.wait().ok();
    assert!(done.text().contains("Please put a volume of the pool 'default'"), "{done}");
    assert!(done.text().contains("Can't continue: there is no tape"), "{done}");
    assert!(done.text().contains("is blank"), "{done}");
    bench.unit(|unit| unit.insert(0));
    let change = bench.change();
    let name = done.text().lines().find(|line| line.contains("tape:/dev/nst0#")).unwrap().trim().to_owned();
    bench.assert_restores(&name, &image, &[&change]);
}

fn id_in(listed: &serde_json::Value, index: usize) -> String {
    let name = listed["archives"][index]["archive"].as_str().unwrap();
    name.rsplit('#').next().unwrap().to_owned()
}

#[test]
fn an_encrypted_archive_goes_over_volumes_and_age_and_tar_open_it() {
    let mut bench = Bench::new(2, 3);
    (0..2).rev().for_each(|slot| bench.label(slot));
    let image = bench.image("disk.raw", 4);
    let (key, recipient) = bench.key();
    let change = bench.change();
    let archive = name_of(&bench.backup(&image, &[&change, "--encrypt-to", &recipient]).ok());
    bench.unit(|unit| unit.insert(0));
    bench.virtfold(&["show", &archive]).exits(exit::LOCKED);
    bench.assert_restores(&archive, &image, &[&change, "--identity", text(&key)]);
}
