//! A writer that is killed in mid-upload, and the next one, which goes on.

use std::time::Duration;

use super::broken::{LEN, PLAIN, hanging, tidy};
use super::{PLACE, World, key_of};
use crate::common::archive::{backup_args, marks_of, records_of};
use crate::common::image::Image;
use crate::common::run::{exit, run, wait_until};
use crate::s3::proxy::Fault;

/// A backup that was killed when its first two parts were there and noted; the third never was.
fn killed(world: &World, image: &Image) {
    let (mut child, _) = hanging(world, image, 60);
    wait_until("the record of two parts", Duration::from_secs(60), || {
        marks_of(image).matches("\"part\":{").count() >= 2
    });
    child.kill().unwrap();
    child.wait().unwrap();
    world.server.wait_until_still();
    assert!(!world.server.unfinished().is_empty());
}

/// How often each of the first parts was sent since the last look.
fn sent(world: &World) -> Vec<usize> {
    let log = world.proxy.log();
    let count = |n: u32| {
        let part = format!("partNumber={n}&");
        log.iter().filter(|r| r.is_part() && r.target.contains(&part)).count()
    };
    (1..=5).map(count).collect()
}

fn begun(world: &World) -> usize {
    let log = world.proxy.log();
    log.iter().filter(|r| r.method == "POST" && r.target.contains("uploads")).count()
}

#[test]
fn a_killed_upload_goes_on_at_the_parts_that_are_there() {
    let world = World::new("s3-goes-on");
    let image = world.image("goes-on.qcow2", LEN);
    let before = world.backup(&image, &PLAIN);
    killed(&world, &image);
    world.proxy.log();
    let done = world.run(backup_args(&image, PLACE, &PLAIN)).ok();
    assert!(done.stderr.contains("resuming"), "{done}");
    assert!(done.text().contains("resumed at 12.0 MiB"), "{done}");
    assert_eq!(sent(&world), [0, 0, 1, 1, 1], "what was there was sent again, or what was not there was not");
    tidy(&world);
    assert!(records_of(&image).is_empty());
    let archive = done.last_line();
    world.run(["verify", archive]).ok();
    world.comes_back(archive, &image, &[]);
    // But for names, ids and times it is the archive that was never broken off; both have the same parts in
    // the same places.
    let [one, other] =
        [&before, archive].map(|name| std::fs::read(world.server.object(key_of(name))).unwrap());
    assert_eq!(one.len(), other.len());
    let differing = one.iter().zip(&other).filter(|(a, b)| a != b).count();
    assert!(differing < 4096, "{differing} bytes differ");
}

#[test]
fn a_source_that_has_changed_starts_anew_and_leaves_no_upload() {
    let world = World::new("s3-changed");
    let image = world.image("changed.qcow2", LEN);
    killed(&world, &image);
    image.io(&["write -P 7 2M 64k"]);
    world.proxy.log();
    let done = world.run(backup_args(&image, PLACE, &PLAIN)).ok();
    assert!(done.stderr.contains("has changed since"), "{done}");
    assert_eq!(sent(&world), [1; 5]);
    tidy(&world);
    assert!(records_of(&image).is_empty());
    world.comes_back(done.last_line(), &image, &[]);
}

#[test]
fn an_upload_that_is_gone_is_begun_anew() {
    let world = World::new("s3-gone");
    let image = world.image("gone.qcow2", LEN);
    killed(&world, &image);
    world.proxy.fail(1, Fault::Status(404), |r| r.is_part() && r.target.contains("partNumber=3&"));
    world.proxy.log();
    let done = world.run(backup_args(&image, PLACE, &PLAIN)).ok();
    assert!(done.stderr.contains("resuming at 0 B"), "{done}");
    assert_eq!(begun(&world), 1);
    world.run(["verify", done.last_line()]).ok();
    world.comes_back(done.last_line(), &image, &[]);
}

/// The store was away for longer than the writer had patience: the parts could not be taken away, and are
/// gone on with.
#[test]
fn an_upload_that_could_not_be_ended_goes_on_in_the_next_run() {
    let world = World::new("s3-away");
    let image = world.image("away.qcow2", LEN);
    world.proxy.fail(usize::MAX, Fault::Status(503), |r| {
        r.is_part() && r.target.contains("partNumber=3&") || r.method == "DELETE"
    });
    let mut command = world.command(backup_args(&image, PLACE, &PLAIN));
    run(command.env("VIRTFOLD_S3_PATIENCE", "2")).exits(exit::FAILURE);
    assert_eq!(records_of(&image).len(), 1);
    world.proxy.heal();
    world.proxy.log();
    let done = world.run(backup_args(&image, PLACE, &PLAIN)).ok();
    assert!(done.stderr.contains("resuming"), "{done}");
    assert_eq!(sent(&world)[..3], [0, 0, 1]);
    tidy(&world);
    world.comes_back(done.last_line(), &image, &[]);
}
