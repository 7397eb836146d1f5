//! An archive that was replaced by another one under its name: each verb says so and takes it for no backup.

use std::fs;

use crate::common::run::{exit, run, text, virtfold};
use crate::retention::World;

/// A backup of an image that holds `byte`.
fn backup(world: &World, byte: u8) -> String {
    world.backup(&world.image_of("disk.raw", byte), &["--label", "web"])
}

/// An older archive is copied over the newer one: a whole archive, sound, and not the one of that name.
#[test]
fn an_older_archive_under_a_newer_name_is_noticed_by_every_verb() {
    let world = World::new("replaced-older");
    let (old, new) = (backup(&world, 1), backup(&world, 2));
    for verb in ["verify", "show"] {
        world.virtfold(&[verb, &new]).ok();
    }
    let copied = world.scratch.join("copy.tar.zst");
    fs::copy(&new, &copied).unwrap();
    fs::copy(&old, &new).unwrap();
    let out = world.scratch.folder("out");
    let place = text(&world.place);
    let restore = ["restore", &new, "--output", text(&out)];
    let partial = [&restore[..], &["--partial"]].concat();
    let plan = [&restore[..], &["--plan"]].concat();
    let verbs: [&[&str]; 6] =
        [&["verify", &new], &["show", &new], &["list", place], &restore, &partial, &plan];
    for verb in verbs {
        let refused = world.virtfold(verb).exits(exit::DAMAGED);
        assert!(refused.text().contains("replaced") || refused.stderr.contains("replaced"), "{refused}");
    }
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "nothing of it was restored");
    // A look does not make it the one that was backed up.
    let listed = world.virtfold(&["list", "--remember", place]).exits(exit::DAMAGED);
    assert!(listed.text().contains("1 replaced"), "{listed}");
    world.virtfold(&["verify", &new]).exits(exit::DAMAGED);
    // It counts for no rule: the older one is the newest that there is.
    let pruned = world.virtfold(&["prune", "--place", place, "--keep-last", "1"]).ok();
    assert!(pruned.text().contains("0 removed"), "{pruned}");
    assert!([&old, &new].iter().all(|archive| fs::exists(archive).unwrap()), "{pruned}");
    // Neither a copy of it elsewhere nor a host that knows nothing of it is troubled.
    world.virtfold(&["verify", text(&copied)]).ok();
    let elsewhere = |args: &[&str]| run(virtfold(args).env("VIRTFOLD_STATE_DIR", world.scratch.join("none")));
    elsewhere(&["verify", &new]).ok();
    elsewhere(&restore).ok();
    // The right one is put back.
    fs::copy(&copied, &new).unwrap();
    world.virtfold(&["verify", &new]).ok();
    world.virtfold(&["list", place]).ok();
}
