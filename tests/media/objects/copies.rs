//! One read, several copies.

use super::{PLACE, World, key_of};
use crate::common::MIB;
use crate::common::archive::backup_args;
use crate::common::run::exit;
use crate::common::scratch::names;
use crate::s3::proxy::Fault;

#[test]
fn several_places_get_the_same_archive() {
    let world = World::new("s3-copies");
    let image = world.image("web.qcow2", 20 * MIB);
    let folder = world.scratch.folder("archives");
    let folder = folder.to_str().unwrap();
    let done = world.run(backup_args(&image, PLACE, &["--to", folder, "--to", "s3://backups/second"])).ok();
    let lines: Vec<&str> = done.text().lines().rev().take(3).collect();
    let [second, file, first] = lines[..] else { panic!("{done}") };
    let bytes = std::fs::read(file).unwrap();
    assert!(bytes == std::fs::read(world.server.object(key_of(first))).unwrap(), "{done}");
    assert!(bytes == std::fs::read(world.server.object(key_of(second))).unwrap(), "{done}");
    world.comes_back(second, &image, &[]);
}

#[test]
fn a_medium_that_fails_fails_alone() {
    let world = World::new("s3-alone");
    let image = world.image("web.qcow2", 28 * MIB);
    let folder = world.scratch.folder("archives");
    let folder = folder.to_str().unwrap();
    // It breaks in the middle, and one is not there at all.
    world.proxy.fail(usize::MAX, Fault::Status(403), |r| r.is_part() && r.target.contains("partNumber=2&"));
    let more = ["--to", folder, "--to", "/nowhere", "--compress", "none"];
    let done = world.run(backup_args(&image, PLACE, &more)).exits(exit::FAILURE);
    assert!(done.stderr.contains("no copy in 's3://backups/vm'"), "{done}");
    assert!(done.stderr.contains("no copy in '/nowhere'"), "{done}");
    let left = (world.server.keys(), world.server.unfinished());
    assert!(left.0.is_empty() && left.1.is_empty(), "{left:?}\n{:#?}", world.proxy.log());
    world.comes_back(done.last_line(), &image, &[]);
    assert_eq!(names(folder.as_ref()).len(), 1);

    let mut args = backup_args(&image, PLACE, &more);
    args.push("--json");
    let json = world.run(args).exits(exit::FAILURE).json_lines().pop().unwrap();
    let copies = json["copies"].as_array().unwrap();
    let told: Vec<_> =
        copies.iter().map(|copy| (copy["to"].as_str().unwrap(), copy["failure"].is_null())).collect();
    assert_eq!(told, [(PLACE, false), (folder, true), ("/nowhere", false)]);
    assert_eq!(json["archive"], copies[1]["archive"]);
}

#[test]
fn when_all_fail_nothing_is_there() {
    let world = World::new("s3-none");
    let image = world.image("web.qcow2", MIB);
    let none = world.run(backup_args(&image, "/nowhere", &["--to", "/neither"])).exits(exit::NOT_FOUND);
    assert!(none.stderr.contains("'/nowhere'") && none.stderr.contains("'/neither'"), "{none}");
    world.run(backup_args(&image, PLACE, &["--to", PLACE])).exits(exit::USAGE);
    assert!(world.server.keys().is_empty());
}
