//! Domains through the binary: real guests are planned, listed, backed up while they write, and restored.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::cli::{backup, everything, overlays, restore, virtfold_in};
use crate::common::MIB;
use crate::common::image::{Format, Image};
use crate::common::mount::Loop;
use crate::common::run::{collect, exit, run, text, virtfold};
use crate::lab::records::{Prefix, check_images, take_from_ext4};
use crate::lab::{Guest, GuestSpec, Lab};
use virtfold::hypervisor::host_files::{HostFiles, ImageUse, LocalFiles};

#[test]
fn a_plan_says_what_would_be_done_and_touches_nothing() {
    let lab = Lab::start();
    let cdrom = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>";
    let spec = GuestSpec { disks: vec!["qcow2", "raw"], devices: cdrom.to_owned(), ..GuestSpec::default() };
    let guest = lab.guest(spec);
    let off = virtfold_in(&lab, &["backup", "writer", "--plan"]).ok();
    assert!(off.text().contains("mode        offline"), "{off}");
    guest.start();
    let before = everything(&guest);
    let plan = virtfold_in(&lab, &["backup", "writer", "--plan"]).ok();
    println!("{plan}");
    for line in [
        "mode        online",
        "vda      copied",
        "vdb      copied",
        "sda      left out: a CD drive",
        ".overlay, ",
    ] {
        assert!(plan.text().contains(line), "'{line}' is missing\n{plan}");
    }
    assert_eq!(plan.stderr, "");
    let json = virtfold_in(&lab, &["backup", "writer", "--plan", "--json"]).ok().json();
    assert_eq!((&json["way"], &json["disks"][1]["format"]), (&"online".into(), &"raw".into()));
    assert_eq!(json["obstacles"], serde_json::json!([]));
    let greedy =
        virtfold_in(&lab, &["backup", "writer", "--plan", "--min-free", "4000T"]).exits(exit::NO_SPACE);
    assert!(
        greedy.text().contains("obstacle    not enough free space for the overlays of vda, vdb"),
        "{greedy}"
    );
    virtfold_in(&lab, &["backup", "writer", "--plan", "--quiesce", "yes"]).exits(exit::REFUSED);
    let domains = virtfold_in(&lab, &["domains"]).ok();
    println!("{domains}");
    assert!(domains.text().contains("writer running  2 of 3"), "{domains}");
    let listed = virtfold_in(&lab, &["domains", "--json"]).ok().json();
    assert_eq!(
        (&listed["domains"][0]["name"], &listed["domains"][0]["possible"]),
        (&"writer".into(), &true.into())
    );
    assert_eq!(everything(&guest), before);
    assert!(!lab.folder().join("state").exists(), "a plan made the state directory");
    guest.progress.wait_more(50);
}

#[test]
fn refusals_name_their_reason() {
    let lab = Lab::start();
    let guest = lab.guest(GuestSpec { pause_us: None, ..GuestSpec::default() });
    let missing = virtfold_in(&lab, &["backup", "nobody", "--plan"]).exits(exit::NOT_FOUND);
    assert!(
        missing.stderr.contains("there is no domain 'nobody'") && missing.stderr.contains("libvirt error 42")
    );
    assert_eq!(missing.stderr.lines().count(), 1, "{missing}");
    let unknown =
        virtfold_in(&lab, &["backup", "writer", "--plan", "--exclude", "vdx"]).exits(exit::NOT_FOUND);
    assert!(unknown.stderr.contains("hint: its disks are vda"), "{unknown}");
    let none = virtfold_in(&lab, &["backup", "writer", "--plan", "--exclude", "vda"]).exits(exit::BAD_IMAGE);
    assert!(none.text().contains("no disk to copy"), "{none}");
    let remote = virtfold_in(&lab, &["domains", "-c", "qemu+ssh://host/system"]).exits(exit::BAD_IMAGE);
    assert!(remote.stderr.contains("it is remote"), "{remote}");
    lab.stop();
    let away = virtfold_in(&lab, &["domains"]).exits(exit::REFUSED);
    assert_eq!(away.stderr.lines().count(), 2, "{away}");
    lab.restart();
    drop(guest);
}

/// Restores all disks of an archive and says which records they hold.
fn restored(guest: &Guest<'_>, archive: &Path) -> Prefix {
    let to = restore(guest, archive);
    let disks = guest.spec.disks.iter().enumerate();
    let images: Vec<_> = disks
        .map(|(n, format)| (to.join(format!("{}.{format}", crate::lab::guest::target(n))), *format))
        .collect();
    let images: Vec<_> = images.iter().map(|(path, format)| (path.as_path(), *format)).collect();
    check_images(&images, guest.layout()).unwrap()
}

#[test]
fn a_running_guest_is_backed_up_while_it_writes() {
    let lab = Lab::start();
    let guest = lab.guest(GuestSpec { disks: vec!["qcow2", "raw"], ..GuestSpec::default() });
    guest.start();
    guest.progress.wait_more(300);
    let before = everything(&guest);
    let from = (guest.progress.last(), Instant::now());
    let metrics = lab.folder().join("metrics");
    fs::create_dir(&metrics).unwrap();
    let (archive, report) = backup(&guest, &["--metrics-dir", text(&metrics)]);
    let to = (guest.progress.last(), Instant::now());
    println!("largest gap {:?}", guest.progress.gap_between(from.1, to.1));
    guest.progress.wait_more(300);
    // The guest is as it was: same descriptions, same chain, no overlay, and it writes.
    assert_eq!(everything(&guest), before);
    assert_eq!(overlays(&guest.folder), Vec::<PathBuf>::new());
    assert_eq!((&report["way"], &report["freeze"]["quiesced"]), (&"online".into(), &false.into()));
    let snapshot = report["freeze"]["snapshot_ms"].as_f64().unwrap();
    assert!(report["freeze"]["pause_ms"].as_f64().unwrap() < 2000.0 && snapshot < 2000.0);
    let shown = virtfold_in(&lab, &["show", text(&archive), "--json"]).ok().json();
    let noted = shown["head"]["freeze"]["pause_ms"].as_f64().unwrap();
    assert!((noted - snapshot).abs() < 1.0, "{noted} {snapshot}");
    measured(&guest, &metrics);
    virtfold_in(&lab, &["verify", text(&archive)]).ok();
    let seen = restored(&guest, &archive);
    assert!(
        seen.last >= from.0 && seen.last < to.0,
        "{seen:?} is not of the time of the backup: {from:?} to {to:?}"
    );
    let nothing = virtfold_in(&lab, &["recover", "--dry-run"]).ok();
    assert_eq!(nothing.last_line(), "nothing to recover");
    guest.power_off();
    let images = guest.images();
    let images: Vec<_> = images.iter().map(|(path, format)| (path.as_path(), *format)).collect();
    assert_eq!(check_images(&images, guest.layout()).unwrap().last, guest.progress.last());
    // Shut off, it is read as it is.
    let (archive, report) = backup(&guest, &[]);
    assert_eq!((&report["way"], &report["freeze"]), (&"offline".into(), &serde_json::Value::Null));
    assert_eq!(restored(&guest, &archive).last, guest.progress.last());
}

#[test]
fn a_running_guest_goes_into_an_object_store_and_comes_back_as_a_copy() {
    let lab = Lab::start();
    let guest = lab.guest(GuestSpec { disks: vec!["qcow2"], ..GuestSpec::default() });
    let server = crate::s3::Server::start(&lab.folder().join("store"));
    let with_store = |args: &[&str]| {
        let mut command = virtfold(args);
        command.env("VIRTFOLD_CONNECT", lab.uri()).env("VIRTFOLD_STATE_DIR", lab.folder().join("state"));
        run(crate::s3::account(&mut command, server.port).env("VIRTFOLD_GUARDS", lab.folder().join("guards")))
            .ok()
    };
    guest.start();
    guest.progress.wait_more(100);
    let before = (everything(&guest), guest.progress.last());
    let report = with_store(&["backup", "writer", "--to", "s3://backups/vm", "--json"]);
    let report = report.json_lines().pop().unwrap();
    let after = guest.progress.last();
    assert_eq!((everything(&guest), &report["way"]), (before.0, &"online".into()));
    let archive = report["archive"].as_str().unwrap();
    let to = lab.folder().join("copy");
    fs::create_dir(&to).unwrap();
    with_store(&["restore", archive, "--define", "--name", "copy", "--output", text(&to)]);
    assert!(lab.virsh(&["dumpxml", "copy"]).contains("<name>copy</name>"));
    let disk = to.join("copy-vda.qcow2");
    let seen = check_images(&[(disk.as_path(), "qcow2")], guest.layout()).unwrap();
    assert!((before.1..=after).contains(&seen.last), "{seen:?} is not of {:?} to {after:?}", before.1);
    lab.virsh(&["undefine", "copy"]);
}

/// The metrics of a backup, and of one that fails after it.
fn measured(guest: &Guest<'_>, metrics: &Path) {
    let refused = ["backup", "writer", "--to", "/", "--min-free", "4000T", "--metrics-dir", text(metrics)];
    virtfold_in(guest.lab, &refused).exits(exit::NO_SPACE);
    let mut files: Vec<_> = fs::read_dir(metrics).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let texts: Vec<_> = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    println!("{texts:#?}");
    let [failure, success] = texts.as_slice() else { panic!("{files:?}") };
    assert!(failure.contains("virtfold_backup_last_failure_timestamp_seconds{domain=\"writer\""));
    for name in [
        "last_success_timestamp_seconds",
        "last_duration_seconds",
        "last_capacity_bytes",
        "last_read_bytes",
        "last_archive_bytes",
        "last_thaw_failed",
        "last_pause_seconds",
    ] {
        assert!(success.contains(&format!("virtfold_backup_{name}{{domain=\"writer\"")), "{name}");
    }
    assert!(success.contains("phase=\"pivot\"") && success.contains("phase=\"snapshot\""));
}

#[test]
fn a_backup_that_is_stopped_leaves_the_guest_as_it_was_and_no_archive() {
    let lab = Lab::start();
    let guest = lab.guest(GuestSpec { disks: vec!["raw"], ..GuestSpec::default() });
    guest.start();
    guest.progress.wait_more(300);
    let before = everything(&guest);
    let to = lab.folder().join("archives");
    fs::create_dir(&to).unwrap();
    // SIGHUP is what a closed terminal sends.
    for signal in [Signal::SIGINT, Signal::SIGHUP] {
        let args = ["backup", "writer", "--to", text(&to), "--limit-rate", "64KiB", "--compress", "none"];
        // Under nohup the signal would be ignored, as it should be.
        let plain = virtfold(args);
        let mut heeding = crate::common::run::tool("env", ["--default-signal=HUP"]);
        heeding.arg(plain.get_program()).args(plain.get_args());
        let child = in_lab(&lab, &mut heeding).spawn().unwrap();
        crate::lab::wait_for("the overlay is there", 30, || !overlays(&guest.folder).is_empty());
        crate::lab::wait_for("the archive has begun", 30, || fs::read_dir(&to).unwrap().count() > 0);
        nix::sys::signal::kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        let ended = collect(format!("backup, {signal}"), child).exits(128 + signal as i32);
        println!("{ended}");
        guest.progress.wait_more(100);
        assert_eq!(everything(&guest), before);
        assert_eq!(fs::read_dir(&to).unwrap().count(), 0, "something is left of the archive");
    }
    // A limit of files' sizes: SIGXFSZ, and the write fails.
    let plain = virtfold(["backup", "writer", "--to", text(&to), "--compress", "none"]);
    let mut limited = crate::common::run::tool("prlimit", ["--fsize=4194304"]);
    limited.arg(plain.get_program()).args(plain.get_args());
    let ended = run(in_lab(&lab, &mut limited)).exits(exit::FAILURE);
    assert!(ended.stderr.contains("too large"), "{ended}");
    guest.progress.wait_more(100);
    assert_eq!(everything(&guest), before);
    assert_eq!(fs::read_dir(&to).unwrap().count(), 0, "something is left of the archive");
}

/// A command whose libvirt and directories are the lab's, and whose outputs are read.
fn in_lab<'a>(lab: &Lab, command: &'a mut Command) -> &'a mut Command {
    command.env("VIRTFOLD_CONNECT", lab.uri()).env("VIRTFOLD_STATE_DIR", lab.folder().join("state"));
    command.env("VIRTFOLD_GUARDS", lab.folder().join("guards")).stdout(Stdio::piped()).stderr(Stdio::piped())
}

#[test]
fn the_agent_makes_it_clean_and_a_pipe_carries_it() {
    let lab = Lab::start();
    let spec = GuestSpec { ext4: true, agent: true, disks: vec!["raw", "qcow2"], ..GuestSpec::default() };
    let guest = lab.guest(spec);
    guest.start();
    crate::lab::wait_for("the agent answers", 60, || lab.agent_answers(guest.name()));
    guest.progress.wait_more(100);
    let to = lab.folder().join("clean.tar.zst");
    let mut command =
        virtfold(["backup", "writer", "--to", "-", "--quiesce", "yes", "--exclude", "vdb", "--json"]);
    command.env("VIRTFOLD_CONNECT", lab.uri()).env("VIRTFOLD_STATE_DIR", lab.folder().join("state"));
    let done = run(&mut command).ok();
    fs::write(&to, &done.stdout).unwrap();
    let report: serde_json::Value = serde_json::from_str(done.stderr.lines().last().unwrap()).unwrap();
    println!("{report}");
    assert_eq!(report["freeze"]["quiesced"], true);
    assert_eq!(report["left_out"], serde_json::json!([{"target": "vdb", "rule": "left out: excluded"}]));
    guest.progress.wait_more(100);
    assert_eq!(overlays(&guest.folder), Vec::<PathBuf>::new());
    let show = virtfold_in(&lab, &["show", text(&to), "--json"]).ok().json();
    assert_eq!(show["head"]["freeze"]["method"], "agent", "{show}");
    let unpacked = lab.folder().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    run(&mut crate::common::run::tool("tar", ["--zstd", "-xf", text(&to), "-C", text(&unpacked)])).ok();
    for member in ["domain.xml", "domain.live.xml", "boot/kernel", "boot/initrd"] {
        assert!(unpacked.join(member).is_file(), "{member} is missing");
    }
    let live = fs::read_to_string(unpacked.join("domain.live.xml")).unwrap();
    assert!(live.contains("/vda.raw'") && !live.contains(".overlay"), "{live}");
    take_from_ext4(&unpacked.join("vda.raw"), &lab.folder().join("records")).unwrap();
}

#[test]
fn a_guest_that_stands_still_stays_so() {
    let lab = Lab::start();
    let guest = lab.guest(GuestSpec::default());
    guest.start();
    guest.progress.wait_more(100);
    lab.virsh(&["suspend", guest.name()]);
    let (archive, report) = backup(&guest, &[]);
    assert_eq!(report["way"], "standing");
    assert_eq!(guest.state(), "paused");
    assert_eq!(overlays(&guest.folder), Vec::<PathBuf>::new());
    lab.virsh(&["resume", guest.name()]);
    guest.progress.wait_more(100);
    assert!(restored(&guest, &archive).last.is_some());
}

#[test]
fn what_a_killed_backup_left_is_recovered_by_hand_and_by_the_next_one() {
    let lab = Lab::start();
    let guest = lab.guest(GuestSpec { disks: vec!["qcow2", "raw"], ..GuestSpec::default() });
    guest.start();
    guest.progress.wait_more(200);
    let before = everything(&guest);
    let to = lab.folder().join("archives");
    fs::create_dir(&to).unwrap();
    let kill_one = || {
        let mut command = virtfold(["backup", "writer", "--to", text(&to), "--limit-rate", "64KiB"]);
        command.env("VIRTFOLD_CONNECT", lab.uri()).env("VIRTFOLD_STATE_DIR", lab.folder().join("state"));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        crate::lab::wait_for("the overlays are there", 30, || overlays(&guest.folder).len() == 2);
        std::thread::sleep(Duration::from_millis(300));
        child.kill().unwrap();
        child.wait().unwrap();
        guest.progress.wait_more(50);
    };
    kill_one();
    let listed = virtfold_in(&lab, &["domains"]).ok();
    assert!(listed.text().contains("still has the overlay"), "{listed}");
    let plan = virtfold_in(&lab, &["backup", "writer", "--plan"]).exits(exit::IN_USE);
    assert!(plan.text().contains("hint: run 'virtfold recover'"), "{plan}");
    let told = virtfold_in(&lab, &["recover", "--dry-run"]).ok();
    println!("{told}");
    assert_eq!(overlays(&guest.folder).len(), 2);
    let done = virtfold_in(&lab, &["recover", "writer"]).ok();
    println!("{done}");
    assert_eq!(everything(&guest), before);
    kill_one();
    let (archive, report) = backup(&guest, &["--no-resume"]);
    assert_eq!(report["recovered"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(everything(&guest), before);
    assert!(restored(&guest, &archive).last.is_some());
    guest.progress.wait_more(100);
}

/// The driver dies in the copy; the next one takes the frozen disks over: the archive is of the moment of the
/// first one's snapshot.
#[test]
fn a_backup_that_was_killed_in_its_copy_is_gone_on_with() {
    let lab = Lab::start();
    let golden = Image::create(lab.folder().join("golden.qcow2"), Format::Qcow2, "", 192 * MIB);
    let noise = lab.folder().join("noise");
    fs::write(&noise, crate::common::rng::Rng::of_case("gone-on-with", 0).bytes(80 << 20)).unwrap();
    // Behind all records.
    golden.io(&[format!("write -s {} 110M 80M", text(&noise))]);
    let spec = GuestSpec { disks: vec!["qcow2", "raw"], golden: Some(golden.path), ..GuestSpec::default() };
    let guest = lab.guest(spec);
    guest.start();
    guest.progress.wait_more(200);
    let before = everything(&guest);
    let to = lab.folder().join("archives");
    fs::create_dir(&to).unwrap();
    let first = guest.progress.last();
    let more = ["--compress", "none", "--limit-rate", "30MiB"];
    let mut command = virtfold([["backup", "writer", "--to", text(&to)].as_slice(), &more].concat());
    command.env("VIRTFOLD_CONNECT", lab.uri()).env("VIRTFOLD_STATE_DIR", lab.folder().join("state"));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let records = lab.folder().join("state/resume");
    let synced = || {
        let record = fs::read_dir(&records).ok()?.next()?.unwrap().path();
        Some(fs::read_to_string(record.join("marks")).ok()?.contains("synced"))
    };
    crate::lab::wait_for("a part of the archive is on the disk", 60, || synced() == Some(true));
    child.kill().unwrap();
    child.wait().unwrap();
    let killed = guest.progress.last();
    guest.progress.wait_more(100);
    assert_eq!(overlays(&guest.folder).len(), 2);
    let (archive, report) = backup(&guest, &["--compress", "none"]);
    println!("{report}");
    assert!(report["resumed_at"].as_u64().unwrap() > 30 << 20, "{report}");
    assert_eq!((&report["way"], &report["recovered"]), (&"online".into(), &serde_json::json!([])));
    assert_eq!(everything(&guest), before);
    assert_eq!((fs::read_dir(&to).unwrap().count(), fs::read_dir(&records).unwrap().count()), (1, 0));
    virtfold_in(&lab, &["verify", text(&archive)]).ok();
    let seen = restored(&guest, &archive);
    assert!(
        seen.last >= first && seen.last <= killed,
        "{seen:?} is not of the snapshot: {first:?} to {killed:?}"
    );
    guest.progress.wait_more(100);
    let nothing = virtfold_in(&lab, &["recover", "--dry-run"]).ok();
    assert_eq!(nothing.last_line(), "nothing to recover");
}

#[test]
fn block_devices_and_volumes_are_backed_up() {
    let lab = Lab::start();
    let folder = lab.folder().join("pool");
    fs::create_dir(&folder).unwrap();
    let bytes = |seed: u8| (0..4 << 20).map(|n: u32| seed ^ n.to_le_bytes()[1]).collect::<Vec<u8>>();
    fs::write(folder.join("volume.raw"), bytes(7)).unwrap();
    lab.virsh(&["pool-create-as", "files", "dir", "--target", text(&folder)]);
    let behind = lab.folder().join("device");
    fs::write(&behind, bytes(9)).unwrap();
    let device = Loop::attach(&behind);
    let devices = format!(
        "<disk type='block'><driver name='qemu' type='raw'/><source dev='{}'/><target dev='sda' bus='sata'/></disk>\
         <disk type='volume'><driver name='qemu' type='raw'/><source pool='files' volume='volume.raw'/><target dev='sdb' bus='sata'/></disk>",
        text(device.device())
    );
    let guest = lab.guest(GuestSpec { devices, ..GuestSpec::default() });
    guest.start();
    guest.progress.wait_more(100);
    let before = everything(&guest);
    let (archive, report) = backup(&guest, &[]);
    assert_eq!(report["disks"].as_array().unwrap().len(), 3);
    assert_eq!(everything(&guest).1, before.1);
    // QEMU's locks on a device lie in the guest's own /dev, where nobody else sees them.
    assert_eq!(LocalFiles.image_use(device.device()).unwrap(), ImageUse::Written);
    let onto = format!("sda={}", text(device.device()));
    let refused =
        virtfold_in(&lab, &["restore", text(&archive), "--disk", &onto, "--force"]).exits(exit::IN_USE);
    assert!(refused.stderr.contains("in use by a running QEMU"), "{refused}");
    run(&mut virtfold(["backup", "--image", text(device.device()), "--format", "raw", "--to", "/dev/null"]))
        .exits(exit::IN_USE);
    assert_eq!(overlays(&folder), Vec::<PathBuf>::new());
    assert_eq!(overlays(&lab.folder().join("state/overlays")), Vec::<PathBuf>::new());
    // QEMU's user gets through to the overlays, and nobody to the journal.
    let mode = |name: &str| fs::metadata(lab.folder().join(name)).unwrap().permissions().mode() & 0o777;
    let modes = ["state", "state/overlays", "state/catalog.sqlite", "state/locks"].map(mode);
    assert_eq!(modes, [0o711, 0o711, 0o600, 0o700]);
    let to = lab.folder().join("out");
    fs::create_dir(&to).unwrap();
    virtfold_in(&lab, &["restore", text(&archive), "--output", text(&to)]).ok();
    assert!(
        fs::read(to.join("sda.raw")).unwrap() == bytes(9)
            && fs::read(to.join("sdb.raw")).unwrap() == bytes(7)
    );
    guest.progress.wait_more(100);
    lab.virsh(&["destroy", guest.name()]);
}

#[test]
fn a_good_archive_stays_when_libvirtd_is_gone_for_the_way_back() {
    let lab = Lab::start();
    let guest = lab.guest(GuestSpec { disks: vec!["raw"], pause_us: Some(20_000), ..GuestSpec::default() });
    guest.start();
    guest.progress.wait_more(200);
    let before = everything(&guest);
    let to = lab.folder().join("archives");
    fs::create_dir(&to).unwrap();
    let mut command =
        virtfold(["backup", "writer", "--to", text(&to), "--limit-rate", "4MiB", "--compress", "none"]);
    command.env("VIRTFOLD_CONNECT", lab.uri()).env("VIRTFOLD_STATE_DIR", lab.folder().join("state"));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    crate::lab::wait_for("the archive is begun", 30, || fs::read_dir(&to).unwrap().count() > 0);
    lab.stop();
    let ended = crate::common::run::collect("backup, libvirtd gone".to_owned(), child).exits(exit::REFUSED);
    println!("{ended}");
    let archive = PathBuf::from(ended.last_line());
    virtfold_in(&lab, &["verify", text(&archive)]).ok();
    assert!(ended.stderr.contains("the archive is good, but 'writer' needs attention"), "{ended}");
    assert!(ended.stderr.contains("recover") && ended.text().contains("not back on its disks"), "{ended}");
    lab.restart();
    guest.progress.wait_more(50);
    virtfold_in(&lab, &["recover"]).ok();
    assert_eq!(everything(&guest), before);
    assert!(restored(&guest, &archive).last.is_some());
}
