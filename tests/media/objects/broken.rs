//! Connections that drop, stores that are busy, answers that are lost, writers that die.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{PLACE, World, key_of};
use crate::common::MIB;
use crate::common::archive::backup_args;
use crate::common::image::Image;
use crate::common::run::{collect, exit, line_of, run, wait_until};
use crate::s3::proxy::Fault;

/// Four parts and a bit.
pub(super) const LEN: u64 = 28 * MIB;
pub(super) const PLAIN: [&str; 2] = ["--compress", "none"];

/// An image, and what an unbroken backup of it writes beside what differs from run to run: its length.
fn image(world: &World) -> Image {
    world.image("web.qcow2", LEN)
}

/// Nothing is left but whole archives.
pub(super) fn tidy(world: &World) {
    assert!(world.server.unfinished().is_empty(), "{:?}", world.server.unfinished());
    assert!(!world.server.keys().iter().any(|key| key.contains(".partial")), "{:?}", world.server.keys());
}

#[test]
fn what_fails_for_the_moment_is_done_again() {
    let world = World::new("s3-again");
    let image = image(&world);
    let part = |n: &'static str| move |r: &crate::s3::proxy::Request| r.is_part() && r.target.contains(n);
    world.proxy.fail(3, Fault::Status(503), part("partNumber=1&"));
    world.proxy.fail(1, Fault::Status(500), |r| r.method == "POST" && r.target.contains("uploads"));
    world.proxy.fail(2, Fault::CutRequest(5_000_000), part("partNumber=2&"));
    world.proxy.fail(1, Fault::LoseAnswer, part("partNumber=3&"));
    // The store finds that this is not what was sent, by its digest.
    world.proxy.fail(1, Fault::Flip(1_000_000), part("partNumber=3&"));
    world.proxy.fail(1, Fault::Status(503), |r| r.is_completion());
    let archive = world.backup(&image, &PLAIN);
    assert_eq!(world.proxy.heal(), 0, "a fault was not met");
    tidy(&world);
    world.proxy.fail(2, Fault::CutAnswer(300_000), |r| r.method == "GET" && r.field("range").is_some());
    world.proxy.fail(2, Fault::Status(503), |r| r.method == "GET" && r.field("range").is_some());
    world.comes_back(&archive, &image, &[]);
    assert_eq!(world.proxy.heal(), 0, "a fault was not met");
}

#[test]
fn a_completion_whose_answer_was_lost_is_looked_up() {
    let world = World::new("s3-lost");
    let image = image(&world);
    world.proxy.fail(1, Fault::LoseAnswer, |r| r.is_completion());
    let archive = world.backup(&image, &PLAIN);
    tidy(&world);
    world.comes_back(&archive, &image, &[]);
}

/// The connection is gone for longer than single requests are repeated: the upload goes on at its last part.
#[test]
fn an_upload_that_broke_goes_on_where_it_broke() {
    let world = World::new("s3-resume");
    let image = image(&world);
    // Five attempts of the client at a time.
    world.proxy.fail(12, Fault::CutRequest(100), |r| r.is_part() && r.target.contains("partNumber=3&"));
    let args = backup_args(&image, PLACE, &PLAIN);
    let done = world.run(args).ok();
    assert!(done.stderr.contains("trying again"), "{done}");
    assert_eq!(world.proxy.heal(), 0);
    let log = world.proxy.log();
    let sent = |n: &str| log.iter().filter(|r| r.is_part() && r.target.contains(n)).count();
    assert_eq!((sent("partNumber=1&"), sent("partNumber=2&")), (1, 1), "what was there was not sent again");
    assert_eq!(sent("partNumber=3&"), 13);
    tidy(&world);
    world.run(["verify", done.last_line()]).ok();
    world.comes_back(done.last_line(), &image, &[]);
}

/// The copy that went through the outage is the copy that did not, byte for byte.
#[test]
fn a_store_that_dies_and_comes_back_gets_the_same_archive() {
    let mut world = World::new("s3-outage");
    let image = image(&world);
    let folder = world.scratch.folder("archives");
    world
        .proxy
        .fail(1, Fault::Delay(Duration::from_secs(2)), |r| r.is_part() && r.target.contains("partNumber=3&"));
    let more = ["--compress", "none", "--to", folder.to_str().unwrap()];
    let mut command = world.command(backup_args(&image, PLACE, &more));
    let line = line_of(&command);
    let pipe = std::process::Stdio::piped;
    let child = command.stdout(pipe()).stderr(pipe()).spawn().unwrap();
    wait_until("the third part", Duration::from_secs(60), || world.proxy.pending() == 0);
    let root = world.scratch.join("store");
    world.server.stop();
    std::thread::sleep(Duration::from_secs(8));
    world.server = super::Server::start(&root);
    world.proxy.point_to(world.server.port);
    let done = collect(line, child).ok();
    assert!(done.stderr.contains("trying again"), "{done}");
    let [file, object] = done.text().lines().rev().take(2).collect::<Vec<_>>()[..] else { panic!("{done}") };
    let (file, object) =
        (std::fs::read(file).unwrap(), std::fs::read(world.server.object(key_of(object))).unwrap());
    assert!(file == object, "{} bytes and {} bytes", file.len(), object.len());
    let log = world.proxy.log();
    let begun = log.iter().filter(|r| r.method == "POST" && r.target.contains("uploads")).count();
    assert_eq!(begun, 1, "the upload began anew");
    tidy(&world);
}

/// Who may put objects and nothing else has an archive all the same, and leaves its note, which no list
/// shows.
#[test]
fn who_may_only_write_writes() {
    let world = World::new("s3-writeonly");
    let image = image(&world);
    world.proxy.fail(usize::MAX, Fault::Status(403), |r| {
        matches!(r.method.as_str(), "GET" | "HEAD" | "DELETE") && !r.target.contains("uploadId=")
    });
    let archive = world.backup(&image, &PLAIN);
    world.proxy.heal();
    let listed = world.run(["list", PLACE]).ok();
    assert!(listed.text().contains(" complete ") && !listed.text().contains("incomplete"), "{listed}");
    world.comes_back(&archive, &image, &[]);
    // The next one that may takes the note away.
    world.backup(&image, &PLAIN);
    tidy(&world);
}

#[test]
fn a_store_that_stays_broken_ends_the_backup_and_nothing_is_left() {
    let world = World::new("s3-fails");
    let image = image(&world);
    world.proxy.fail(usize::MAX, Fault::Status(503), |r| r.is_part() && r.target.contains("partNumber=2&"));
    let mut command = world.command(backup_args(&image, PLACE, &PLAIN));
    let failed = run(command.env("VIRTFOLD_S3_PATIENCE", "3")).exits(exit::FAILURE);
    assert!(failed.stderr.contains("status 503"), "{failed}");
    tidy(&world);
    assert!(world.server.keys().is_empty());
}

#[test]
fn an_upload_that_somebody_aborted_is_an_error() {
    let world = World::new("s3-aborted");
    let image = image(&world);
    world.proxy.fail(usize::MAX, Fault::Status(404), |r| r.is_completion());
    let failed = world.run(backup_args(&image, PLACE, &PLAIN)).exits(exit::FAILURE);
    assert!(failed.stderr.contains("its upload is gone"), "{failed}");
    world.proxy.heal();
    assert!(world.server.keys().is_empty());
}

/// Starts a backup, and waits until its third part hangs.
pub(super) fn hanging(world: &World, image: &Image, seconds: u64) -> (std::process::Child, String) {
    world.proxy.log();
    world.proxy.fail(1, Fault::Delay(Duration::from_secs(seconds)), |r| {
        r.is_part() && r.target.contains("partNumber=3&")
    });
    let mut command = world.command(backup_args(image, PLACE, &PLAIN));
    let line = line_of(&command);
    let pipe = std::process::Stdio::piped;
    let child = command.stdout(pipe()).stderr(pipe()).spawn().unwrap();
    wait_until("the third part", Duration::from_secs(60), || world.proxy.pending() == 0);
    (child, line)
}

#[test]
fn a_killed_writer_leaves_no_archive_and_the_next_backup_cleans_up() {
    let world = World::new("s3-killed");
    let image = image(&world);
    let whole = world.backup(&image, &PLAIN);
    let (mut child, _) = hanging(&world, &image, 30);
    wait_until("the second part", Duration::from_secs(20), || world.server.unfinished().len() > 2);
    child.kill().unwrap();
    child.wait().unwrap();
    world.server.wait_until_still();
    assert!(!world.server.unfinished().is_empty(), "nothing was left to clean up");
    let objects: Vec<String> =
        world.server.keys().into_iter().filter(|key| !key.contains("/.partial/")).collect();
    assert_eq!(objects, [key_of(&whole)], "half an archive is visible");
    let listed = world.run(["list", PLACE]).ok();
    assert_eq!(
        (listed.text().matches(" complete ").count(), listed.text().matches(" incomplete ").count()),
        (1, 1),
        "{listed}"
    );
    let second = world.backup(&image, &[PLAIN.as_slice(), &["--no-resume"]].concat());
    tidy(&world);
    world.comes_back(&second, &image, &[]);
}

#[test]
fn a_signal_ends_a_backup_that_waits_for_the_store() {
    let world = World::new("s3-signal");
    let image = image(&world);
    let (child, line) = hanging(&world, &image, 30);
    let start = Instant::now();
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    collect(line, child).exits(exit::SIGTERM);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    tidy(&world);
    assert!(world.server.keys().is_empty());
}

#[test]
fn an_upload_that_is_alive_is_left_alone() {
    let world = World::new("s3-alive");
    let image = image(&world);
    let (mut child, _) = hanging(&world, &image, 12);
    let second = world.backup(&image, &PLAIN);
    let partial = world.server.keys().iter().filter(|key| key.contains(".partial")).count();
    assert_eq!(partial, 1, "the other one's note is gone");
    world.comes_back(&second, &image, &[]);
    assert!(child.wait().unwrap().success(), "the first one was harmed");
    tidy(&world);
}
