//! Chains of increments in an object store.

use super::{PLACE, World, key_of};
use crate::common::MIB;
use crate::common::archive::backup_args;
use crate::common::run::{Outcome, run};

/// An increment of the image in the bucket.
fn increment(world: &World, image: &crate::common::image::Image) -> Outcome {
    let more = ["--kind", "incremental", "--label", "web", "--json"];
    let mut command = world.command(backup_args(image, PLACE, &more));
    run(command.env("VIRTFOLD_STATE_DIR", world.scratch.join("state"))).ok()
}

#[test]
fn an_increment_continues_what_the_store_has_and_comes_back() {
    let world = World::new("s3-increments");
    let image = world.image("web.qcow2", 8 * MIB);
    let report = |done: &Outcome| done.json_lines().pop().unwrap();
    let full = report(&increment(&world, &image));
    assert_eq!(full["kind"], "full");
    image.io(&["write -P 3 1M 64k", "discard 3M 128k"]);
    let second = report(&increment(&world, &image));
    assert_eq!((&second["kind"], &second["parent"]), (&"incremental".into(), &full["id"]), "{second}");
    assert_eq!(second["disks"][0]["dense_length"], 65536, "{second}");
    world.comes_back(second["archive"].as_str().unwrap(), &image, &[]);
    // What somebody has taken out of the bucket is not continued.
    std::fs::remove_file(world.server.object(key_of(second["archive"].as_str().unwrap()))).unwrap();
    let third = report(&increment(&world, &image));
    assert!(third["full_reason"].as_str().unwrap().contains("is not there"), "{third}");
    world.comes_back(third["archive"].as_str().unwrap(), &image, &[]);
}
