//! Signed archives, as the configuration asks for them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::archive::{Method, backup_args, restore_args};
use crate::common::image::{Format, Image};
use crate::common::mount::Loop;
use crate::common::run::{Outcome, exit, run, text, virtfold};
use crate::common::scratch::Scratch;

struct World {
    scratch: Scratch,
    image: Image,
    config: PathBuf,
}

impl World {
    fn new(label: &str) -> Self {
        let scratch = Scratch::new(label);
        let (config, path) = (scratch.join("config.yaml"), scratch.join("disk.raw"));
        let key = scratch.join("key");
        let trust = format!("trust: {{signing-key: {}, require-signature: true}}", key.display());
        fs::write(&config, format!("version: 1\n{trust}\n")).unwrap();
        fs::write(&path, [7; 64 << 10]).unwrap();
        let world = Self { image: Image::new(path, Format::Raw), config, scratch };
        world.virtfold(&["key", "new", "--host", "web"]).ok();
        world
    }

    /// By the configuration that asks for signatures.
    fn virtfold(&self, args: &[&str]) -> Outcome {
        let args = [args, &["--config", text(&self.config)]].concat();
        run(virtfold(args).env("VIRTFOLD_STATE_DIR", self.scratch.join("state")))
    }

    fn signed(&self) -> PathBuf {
        let place = self.scratch.folder("signed");
        let made = self.virtfold(&backup_args(&self.image, text(&place), &[])).ok();
        made.last_line().into()
    }

    /// By somebody else, who calls himself the same.
    fn foreign(&self) -> PathBuf {
        let (place, config) = (self.scratch.folder("foreign"), self.scratch.join("foreign.yaml"));
        let key = self.scratch.join("foreign-key");
        fs::write(&config, format!("version: 1\ntrust: {{signing-key: {}}}\n", key.display())).unwrap();
        run(&mut virtfold(["key", "new", "--host", "web", "--config", text(&config)])).ok();
        let args = backup_args(&self.image, text(&place), &["--config", text(&config)]);
        run(virtfold(args).env("VIRTFOLD_STATE_DIR", self.scratch.join("none"))).ok().last_line().into()
    }

    fn piped(&self, archive: &Path, args: &[&str]) -> Outcome {
        let program = env!("CARGO_BIN_EXE_virtfold");
        let (args, config) = (args.join(" "), text(&self.config));
        let line = format!("exec {program} {args} --config {config} < {}", text(archive));
        run(std::process::Command::new("sh").args(["-c", &line]))
    }
}

#[test]
fn an_archive_of_nobody_that_is_known_is_refused_before_anything_is_made() {
    let world = World::new("signatures");
    let (signed, foreign) = (world.signed(), world.foreign());
    let out = world.scratch.folder("out");
    let told = world.virtfold(&["verify", text(&signed)]).ok();
    assert!(told.text().contains("signed by web"), "{told}");
    world.virtfold(&["audit", text(&world.scratch.join("signed"))]).ok();
    world.virtfold(&["audit", text(&world.scratch.join("foreign"))]).exits(exit::DAMAGED);
    let restore = ["restore", text(&foreign), "--output", text(&out)];
    let verbs: [&[&str]; 4] = [
        &["verify", text(&foreign)],
        &restore,
        &[&restore[..], &["--plan"]].concat(),
        &[&restore[..], &["--partial"]].concat(),
    ];
    for verb in verbs {
        let refused = world.virtfold(verb).exits(exit::REFUSED);
        assert!(refused.stderr.contains("unknown key"), "{refused}");
    }
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "nothing of it was restored");
    world.virtfold(&["restore", text(&signed), "--output", text(&out)]).ok();
    assert!(fs::read(out.join("vda.raw")).unwrap() == [7; 64 << 10], "another disk");
}

/// What comes once has its signature at its end, and a device is written to in its place.
#[test]
fn no_device_is_written_to_from_a_pipe_where_signatures_are_required() {
    let world = World::new("signatures-device");
    let backing = world.scratch.join("device");
    fs::write(&backing, [9; 64 << 10]).unwrap();
    let device = Loop::attach(&backing);
    let to = format!("vda={}", text(device.device()));
    let mut args = restore_args("-", &to, Format::Raw, Method::Rewrite);
    args.push("--force");
    for archive in [world.signed(), world.foreign()] {
        let refused = world.piped(&archive, &args).exits(exit::REFUSED);
        assert!(refused.stderr.contains("is a device"), "{refused}");
    }
    assert!(fs::read(device.device()).unwrap() == [9; 64 << 10], "the device was written to");
    let signed = world.signed();
    let mut args = restore_args(text(&signed), &to, Format::Raw, Method::Rewrite);
    args.push("--force");
    world.virtfold(&args).ok();
    assert!(fs::read(device.device()).unwrap() == [7; 64 << 10], "another disk");
}
