//! `restore --plan` without `--define`: what would be written where, whether there is room, and nothing is
//! made.

use std::fs;

use crate::common::archive::backup;
use crate::common::image::{Format, Image};
use crate::common::mount::Mount;
use crate::common::rng::Rng;
use crate::common::run::{exit, run, text, virtfold};
use crate::common::scratch::{Scratch, names};
use crate::common::{KIB, MIB};

/// A disk of 64 MiB with 6 MiB of noise in it, and its archive.
fn archive(scratch: &Scratch) -> std::path::PathBuf {
    let noise = scratch.join("noise");
    fs::write(&noise, Rng::of_case("room", 0).bytes(1 << 20)).unwrap();
    let image = Image::create(scratch.join("source.qcow2"), Format::Qcow2, "", 64 * MIB);
    image.io(&(0..6).map(|n| format!("write -s {} {}M 1M", text(&noise), 10 * n)).collect::<Vec<_>>());
    backup(&image, &scratch.folder("archives"), &[])
}

#[test]
fn a_plan_forecasts_room_and_touches_nothing() {
    let scratch = Scratch::new("room");
    let archive = archive(&scratch);
    let small = Mount::tmpfs(&scratch.join("small"), 4 * MIB);
    let large = Mount::tmpfs(&scratch.join("large"), 40 * MIB);
    for format in ["raw", "qcow2"] {
        let plan = |to: &Mount, more: &[&str]| {
            let args = ["restore", text(&archive), "--plan", "--format", format, "--output", text(to.path())];
            run(&mut virtfold([&args[..], more].concat()))
        };
        // A sparse disk counts what will be written, not its size.
        let planned = plan(&large, &["--json"]).ok().json();
        let room = &planned["room"][0];
        let (needed, free) = (room["needed"].as_u64().unwrap(), room["free"].as_u64().unwrap());
        let tables = if format == "raw" { 0 } else { 6 * MIB };
        assert!((6 * MIB..=6 * MIB + tables + 64 * KIB).contains(&needed), "{planned}");
        assert!((39 * MIB..=40 * MIB).contains(&free), "{planned}");
        assert_eq!(planned["disks"][0]["capacity"], 64 * MIB);
        assert_eq!(room["directories"][0], text(large.path()));
        let said = plan(&large, &[]).ok();
        assert!(
            said.text().contains("wanted in") && said.text().ends_with("nothing was changed\n"),
            "{said}"
        );
        let short = plan(&small, &[]).exits(exit::NO_SPACE);
        assert!(
            short.stderr.contains("not enough free space in") && short.stderr.contains("hint: "),
            "{short}"
        );
        assert!(names(large.path()).is_empty() && names(small.path()).is_empty());
        let args = ["restore", text(&archive), "--format", format, "--output", text(large.path())];
        run(&mut virtfold(args)).ok();
        let used = 40 * MIB - large.free();
        assert!(used <= needed, "{format}: {used} bytes of {needed}");
        // What is there stops the plan as it would the restore.
        plan(&large, &[]).exits(exit::EXISTS);
        let over = plan(&large, &["--force"]).ok();
        assert!(over.text().contains("would replace"), "{over}");
        fs::remove_file(large.path().join(format!("vda.{format}"))).unwrap();
    }
}

#[test]
fn a_pipe_and_a_disk_of_its_own_are_planned_too() {
    let scratch = Scratch::new("room-pipe");
    let archive = archive(&scratch);
    let to = scratch.folder("there").join("vda.raw");
    let line = format!(
        "exec {} restore - --plan --disk vda={} --format raw --json < {}",
        env!("CARGO_BIN_EXE_virtfold"),
        text(&to),
        text(&archive)
    );
    let planned = run(std::process::Command::new("sh").args(["-c", &line])).ok().json();
    assert_eq!(planned["room"][0]["needed"], 6 * MIB, "{planned}");
    assert_eq!(planned["disks"][0]["path"], text(&to));
    let unknown = ["restore", text(&archive), "--plan", "--disk", "vdb=/nowhere/b"];
    run(&mut virtfold(unknown)).exits(exit::NOT_FOUND);
}
