//! Old archives go out of a store, and nothing else does.

use std::os::unix::fs::PermissionsExt;

use super::{PLACE, World, key_of};
use crate::common::MIB;
use crate::common::archive::backup_args;
use crate::common::run::{exit, run, text, virtfold};
use crate::s3::proxy::{Fault, Request};
use crate::s3::{KEY, SECRET};

#[test]
fn old_archives_go_and_nothing_else() {
    let world = World::new("s3-prune");
    let image = world.image("web.qcow2", MIB);
    let state = world.scratch.join("state");
    let run_here = |args: &[&str]| {
        let mut command = world.command(args.iter().copied());
        run(command.env("VIRTFOLD_STATE_DIR", &state))
    };
    let archives: Vec<String> =
        (0..3).map(|_| run_here(&backup_args(&image, PLACE, &[])).ok().last_line().to_owned()).collect();
    // For images alone no catalog is made.
    run_here(&["list", "--remember", PLACE]).ok();
    // Another host's, in its own folder, and something that is no archive.
    let ours = key_of(&archives[0]);
    let host = ours.split('/').nth(1).unwrap();
    let store = |key: &str, bytes: &[u8]| {
        let path = world.server.object(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    let foreign = ours.replace(&format!("/{host}/"), "/other-host/");
    store(&foreign, &std::fs::read(world.server.object(ours)).unwrap());
    store(&format!("vm/{host}/web/notes.txt"), b"mine");
    let keys = world.server.keys();

    let prune = |more: &[&str]| run_here(&[&["prune", "--place", PLACE, "--keep-last", "1"], more].concat());
    prune(&["--dry-run"]).ok();
    assert_eq!(world.server.keys(), keys);
    // A store that does not let this host delete.
    world
        .proxy
        .fail(usize::MAX, Fault::Status(403), |r| r.method == "DELETE" || r.target.contains("?delete"));
    let refused = prune(&[]).exits(exit::FAILURE);
    assert!(refused.stderr.contains("cannot remove 's3://backups/vm/"), "{refused}");
    assert_eq!(world.server.keys(), keys);
    world.proxy.heal();

    drop(world.proxy.log());
    let report = prune(&["--json"]).ok().json_lines().pop().unwrap();
    let log = world.proxy.log();
    let count = |is: &dyn Fn(&Request) -> bool| log.iter().filter(|request| is(request)).count();
    assert_eq!(count(&|r| r.method == "HEAD" || r.method == "DELETE"), 0, "{log:?}");
    assert_eq!(count(&|r| r.method == "POST" && r.target.contains("?delete")), 1, "{log:?}");
    let told = report["places"][0]["subjects"][0]["archives"].as_array().unwrap();
    let removed: Vec<&str> = told
        .iter()
        .filter(|entry| entry["action"] == "removed")
        .map(|entry| entry["archive"].as_str().unwrap())
        .collect();
    assert_eq!(removed.len(), 2, "{report}");
    let left: Vec<String> =
        keys.into_iter().filter(|key| !removed.iter().any(|archive| key_of(archive) == key)).collect();
    assert_eq!(world.server.keys(), left);
    assert!(left.contains(&foreign) && left.len() == 3, "{left:?}");
}

/// A store without `DeleteObjects` is asked for each, where the environment says so.
#[test]
fn a_store_that_removes_one_by_one_is_pruned_all_the_same() {
    let world = World::new("s3-prune-single");
    let image = world.image("web.qcow2", MIB);
    let state = world.scratch.join("state");
    let run_here = |args: &[&str], single: &str| {
        let mut command = world.command(args.iter().copied());
        run(command.env("VIRTFOLD_STATE_DIR", &state).env("AWS_DISABLE_BULK_DELETE", single))
    };
    (0..3).for_each(|_| drop(run_here(&backup_args(&image, PLACE, &[]), "false").ok()));
    run_here(&["list", "--remember", PLACE], "false").ok();
    world.proxy.fail(usize::MAX, Fault::Status(501), |r| r.target.contains("?delete"));
    let prune = ["prune", "--place", PLACE, "--keep-last", "1"];
    let refused = run_here(&prune, "false").exits(exit::FAILURE);
    assert!(refused.stderr.contains("AWS_DISABLE_BULK_DELETE=true"), "{refused}");
    assert_eq!(world.server.keys().len(), 3);
    run_here(&prune, "true").ok();
    assert_eq!(world.server.keys().len(), 1);
    assert_eq!(world.proxy.log().iter().filter(|request| request.method == "DELETE").count(), 2);
}

/// What a list has told is not asked for again, and each archive that fits takes one request.
#[test]
fn a_list_takes_a_request_an_archive() {
    let world = World::new("s3-list");
    let image = world.image("web.qcow2", 64 << 10);
    let first = world.server.object(key_of(&world.backup(&image, &[])));
    for number in 0..40 {
        std::fs::hard_link(&first, first.with_file_name(format!("copy{number}.tar"))).unwrap();
    }
    drop(world.proxy.log());
    let listed = world.run(["list", "--json", PLACE]).ok().json_lines().pop().unwrap();
    let archives = listed["archives"].as_array().unwrap();
    assert!(
        archives.len() == 41 && archives.iter().all(|archive| archive["status"] == "complete"),
        "{listed}"
    );
    let names: Vec<&str> = archives.iter().map(|archive| archive["archive"].as_str().unwrap()).collect();
    assert!(names.is_sorted(), "{names:?}");
    let log = world.proxy.log();
    let (lists, others): (Vec<_>, Vec<_>) =
        log.iter().partition(|request| request.target.contains("list-type=2"));
    assert_eq!((lists.len(), others.len()), (1, 41), "{log:?}");
    assert!(others.iter().all(|request| request.method == "GET"), "{others:?}");
}

#[test]
fn a_medium_of_the_configuration_brings_its_own_keys() {
    let world = World::new("s3-prune-job");
    let image = world.image("web.qcow2", MIB);
    world.backup(&image, &[]);
    let (keys, config) = (world.scratch.join("keys.env"), world.scratch.join("config.yaml"));
    let endpoint = format!("http://127.0.0.1:{}", world.proxy.port);
    let variables =
        format!("AWS_ACCESS_KEY_ID={KEY}\nAWS_SECRET_ACCESS_KEY={SECRET}\nAWS_ENDPOINT_URL={endpoint}\n");
    std::fs::write(&keys, variables).unwrap();
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o600)).unwrap();
    let yaml = format!(
        "version: 1\nmedia:\n  cloud: {{ to: '{PLACE}', environment-file: '{}' }}\njobs:\n  nightly: {{ domains: {{ all: true }}, schedule: manual, to: cloud, keep: {{ last: 1 }} }}\n",
        keys.display()
    );
    std::fs::write(&config, yaml).unwrap();
    let state = world.scratch.join("state");
    let args = ["prune", "nightly", "--config", text(&config), "--state-dir", text(&state)];
    for more in [&[][..], &["--json"], &["--dry-run"]] {
        let mut command = virtfold([&args[..], more].concat());
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_PROFILE"] {
            command.env_remove(name);
        }
        let done = run(&mut command).ok();
        let told = if more == ["--json"] {
            "\"not_asked\":1"
        } else {
            "left alone: 1 archive of others of this host"
        };
        assert!(done.text().contains(told), "{done}");
        assert!(!done.text().contains(SECRET) && !done.stderr.contains(SECRET), "{done}");
    }
    assert_eq!(world.server.keys().len(), 1);
}
