//! A directory for archives whose medium is not mounted takes no backup, and what was in it is not forgotten.

use std::fs;

use crate::common::MIB;
use crate::common::archive::backup_args;
use crate::common::image::{Format, Image};
use crate::common::mount::Mount;
use crate::common::run::{Outcome, exit, run, text, virtfold};
use crate::common::scratch::{Scratch, names};

struct World {
    scratch: Scratch,
    image: Image,
}

impl World {
    fn new(label: &str) -> Self {
        let scratch = Scratch::new(label);
        let path = scratch.join("disk.raw");
        fs::write(&path, vec![7; 64 << 10]).unwrap();
        Self { scratch, image: Image::new(path, Format::Raw) }
    }

    fn virtfold(&self, args: &[&str]) -> Outcome {
        run(virtfold(args).env("VIRTFOLD_STATE_DIR", self.scratch.join("state")))
    }

    fn backup(&self, place: &str, more: &[&str]) -> Outcome {
        self.virtfold(&backup_args(&self.image, place, more))
    }
}

/// What was mounted at the first use has to be mounted at the next; and at once it is forgotten for who says
/// so.
#[test]
fn a_medium_that_is_not_mounted_takes_no_backup() {
    let world = World::new("mounted");
    let at = world.scratch.join("nas");
    let place = at.join("vm");
    let nas = Mount::tmpfs(&at, 4 * MIB);
    fs::create_dir(&place).unwrap();
    // The catalog of somebody who backs guests up; for images alone none is made.
    world.virtfold(&["list", "--remember", text(&place)]).ok();
    let archive = world.backup(text(&place), &[]).ok().last_line().to_owned();
    let config = world.scratch.join("config.yaml");
    let medium = format!("version: 1\nmedia:\n  nas: {{to: {}}}\n", text(&place));
    let job = "jobs:\n  nightly: {domains: {all: true}, schedule: manual, to: nas, keep: {last: 1}}\n";
    fs::write(&config, medium.clone() + job).unwrap();
    drop(nas);

    // Without its directory, and with one that somebody made in its place.
    for made in [false, true] {
        if made {
            fs::create_dir(&place).unwrap();
        }
        let refused = world.backup(text(&place), &[]).exits(exit::NOT_FOUND);
        let told = [format!("'{}' is not mounted", text(&place)), format!("mount {}", text(&at))];
        assert!(told.iter().all(|words| refused.stderr.contains(words)), "{refused}");
        let named = world.backup(text(&place), &["--config", text(&config)]).exits(exit::NOT_FOUND);
        assert!(
            named.stderr.contains(&format!("the medium 'nas' ('{}') is not mounted", text(&place))),
            "{named}"
        );
        let prune = ["prune", "--place", text(&place), "--keep-last", "1"];
        world.virtfold(&prune).exits(exit::NOT_FOUND);
        let pruned = world.virtfold(&["prune", "--config", text(&config)]).exits(exit::NOT_FOUND);
        assert!(pruned.stderr.contains("'nas'"), "{pruned}");
        world.virtfold(&["list", "--remember", text(&place)]).exits(exit::NOT_FOUND);
    }
    assert!(names(&place).is_empty());
    world.backup(text(&place), &["--require-mount"]).exits(exit::NOT_FOUND);

    // Another file system in its place is none that was asked for, unless it was.
    let other = Mount::tmpfs(&at.join("vm"), 4 * MIB);
    world.backup(text(&place), &[]).exits(exit::NOT_FOUND);
    drop(other);
    let back = Mount::tmpfs(&at, 4 * MIB);
    fs::create_dir(&place).unwrap();
    world.backup(text(&place), &[]).ok();
    drop(back);

    world.backup(text(&place), &["--no-require-mount"]).ok();
    fs::write(&config, medium.replace("}}", "}").replace("{to", "{mounted: false, to") + job).unwrap();
    world.backup(text(&place), &["--config", text(&config)]).ok();
    assert_eq!(names(&place).len(), 2);
    assert!(!std::path::Path::new(&archive).exists());
}

/// A place that never had a mount needs none, unless somebody says so.
#[test]
fn a_plain_directory_needs_no_mount() {
    let world = World::new("mounted-plain");
    // On the root's own file system, wherever scratch folders are.
    let root = std::path::PathBuf::from(format!("/virtfold-test-{}", std::process::id()));
    fs::create_dir(&root).unwrap();
    let place = text(&root).to_owned();
    let done = world.backup(&place, &[]);
    let refused = [["--require-mount".to_owned()], [format!("--require-mount={place}")]]
        .map(|[option]| world.backup(&place, &[&option]));
    let elsewhere = world.backup(&place, &["--require-mount=/elsewhere"]);
    let left = names(&root).len();
    fs::remove_dir_all(&root).unwrap();
    done.ok();
    elsewhere.ok();
    for refused in refused {
        let refused = refused.exits(exit::NOT_FOUND);
        assert!(refused.stderr.contains("is not mounted"), "{refused}");
    }
    assert_eq!(left, 2);
}
