//! Disks that are not as the configuration says, or not as a disk usually is: plugged into the running guest
//! alone, taken off in mid-copy, read through a filter, a part of a file. And agents that break in the
//! freeze.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::cli::{backup, everything, overlays, restore, virtfold_in};
use crate::common::run::{Outcome, collect, exit, run, text, tool, virtfold};
use crate::lab::{Guest, GuestSpec, Lab, wait_for};

/// Disks of this bus come and go without the guest's help.
const SCSI: &str = "<controller type='scsi' index='0' model='virtio-scsi'/>";

/// An image of 16 MiB, full of a byte.
fn image(lab: &Lab, name: &str, byte: u8) -> PathBuf {
    let path = lab.folder().join(name);
    run(&mut tool("qemu-img", ["create", "-q", "-f", "qcow2", text(&path), "16M"])).ok();
    run(&mut tool("qemu-io", ["-f", "qcow2", "-c", &format!("write -P {byte} 0 16M"), text(&path)])).ok();
    path
}

/// Whether an image has nothing but this byte from `at` on for a MiB.
fn has(image: &Path, at: &str, byte: u8) -> bool {
    let read = format!("read -P {byte} {at} 1M");
    let done =
        Command::new("qemu-io").args(["-r", "-U", "-f", "qcow2", "-c", &read, text(image)]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success() || said.contains("Pattern verification failed"), "{said}");
    !said.contains("Pattern verification failed")
}

fn attach(guest: &Guest<'_>, image: &Path, target: &str, where_to: &[&str]) {
    let disk = ["attach-disk", guest.name(), text(image), target, "--targetbus", "scsi"];
    let format = ["--driver", "qemu", "--subdriver", "qcow2"];
    guest.lab.virsh(&[&disk[..], &format, where_to].concat());
}

/// Changes the definition of a guest that is shut off.
fn redefine(guest: &Guest<'_>, change: impl FnOnce(String) -> String) {
    let xml = guest.folder.join("domain.xml");
    fs::write(&xml, change(guest.lab.virsh(&["dumpxml", "--inactive", guest.name()]))).unwrap();
    guest.lab.virsh(&["define", "--validate", text(&xml)]);
}

/// A backup that takes some seconds for each disk.
fn slow_backup(guest: &Guest<'_>) -> Child {
    let to = guest.lab.folder().join("archives");
    fs::create_dir_all(&to).unwrap();
    let mut command = virtfold(["backup", guest.name(), "--to", text(&to), "--compress", "none", "--json"]);
    command.args(["--limit-rate", "4MiB"]).env("VIRTFOLD_CONNECT", guest.lab.uri());
    command.env("VIRTFOLD_STATE_DIR", guest.lab.folder().join("state"));
    command.env("VIRTFOLD_GUARDS", guest.lab.folder().join("guards"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// QEMU writes to a disk of the running guest, as the guest's own writes would.
fn write_as_the_guest(guest: &Guest<'_>, target: &str, byte: u8) {
    let xml = guest.lab.virsh(&["dumpxml", guest.name()]);
    let after = xml.split(&format!("<target dev='{target}'")).nth(1).unwrap();
    let alias = after.split("<alias name='").nth(1).unwrap().split('\'').next().unwrap();
    for command in [format!("write -P {byte} 1M 1M"), "flush".to_owned()] {
        let command = format!("qemu-io -d {alias} \"{command}\"");
        let said = guest.lab.virsh(&["qemu-monitor-command", guest.name(), "--hmp", &command]);
        assert_eq!(said.trim(), "");
    }
}

/// Takes a disk off in the midst of a backup, after the guest has written to it once more.
fn backup_with_a_disk_taken_off(guest: &Guest<'_>, target: &str, byte: u8, from: &[&str]) -> Outcome {
    let child = slow_backup(guest);
    let image = guest.lab.folder().join("b.qcow2");
    let is_frozen = || overlays(guest.lab.folder()).len() == 1 && overlays(&guest.folder).len() == 1;
    wait_for("the disks are on their overlays", 30, is_frozen);
    wait_for("the copy has begun", 30, || {
        let names = fs::read_dir(guest.lab.folder().join("archives")).unwrap();
        names.map(|entry| entry.unwrap().path()).any(|path| text(&path).ends_with(".partial"))
    });
    write_as_the_guest(guest, target, byte);
    let overlay = overlays(guest.lab.folder()).remove(0);
    assert!(
        has(&overlay, "1M", byte) && !has(&image, "1M", byte),
        "the newest write is in the overlay alone"
    );
    guest.lab.virsh(&[&["detach-disk", guest.name(), target], from].concat());
    collect("backup, a disk taken off".to_owned(), child)
}

#[test]
fn a_disk_taken_off_in_mid_copy_loses_nothing_and_is_in_nobodys_way() {
    let lab = Lab::start();
    // What it writes is copied at the same low rate.
    let guest = lab.guest(GuestSpec { devices: SCSI.to_owned(), slots: 128, ..GuestSpec::default() });
    guest.start();
    let data = image(&lab, "b.qcow2", 1);
    for (byte, to, from) in [
        (2, &["--live"][..], &["--live"][..]),
        (3, &["--live", "--config"], &["--live", "--config"]),
        // The guest goes on with it, and has it no more when it is started again.
        (4, &["--live", "--config"], &["--config"]),
        // The configuration still names the overlay.
        (5, &["--live", "--config"], &["--live"]),
    ] {
        attach(&guest, &data, "sda", to);
        let done = backup_with_a_disk_taken_off(&guest, "sda", byte, from).ok();
        println!("{done}");
        let how = if from == ["--config"] { "from the configuration" } else { "from the guest" };
        let told = done.json_lines().pop().unwrap()["freeze"]["warnings"].to_string();
        for words in ["disk 'sda'", &format!("detached {how}"), "commit", "b.qcow2", "remove the overlay"] {
            assert!(told.contains(words), "{words}: {told}");
            assert!(done.stderr.contains(words), "{words}: {done}");
        }
        if from == ["--config"] {
            // Its images are its own again.
            lab.virsh(&["detach-disk", guest.name(), "sda", "--live"]);
        }
        assert!(has(&data, "1M", byte) && has(&data, "0", 1), "{from:?}: its last write is lost");
        assert_eq!((overlays(lab.folder()), overlays(&guest.folder)), (Vec::new(), Vec::new()));
        let next = lab.virsh(&["dumpxml", "--inactive", guest.name()]);
        assert!(!next.contains(".overlay"), "{next}");
        assert_eq!(next.contains("b.qcow2"), to.len() > 1 && !from.contains(&"--config"));
        let nothing = virtfold_in(&lab, &["recover", "--dry-run"]).ok();
        assert_eq!(nothing.last_line(), "nothing to recover");
        let progress = guest.progress.last();
        let (archive, report) = backup(&guest, &[]);
        assert_eq!((&report["way"], report["disks"].as_array().unwrap().len()), (&"online".into(), 1));
        assert!(archive.is_file() && guest.progress.last() >= progress);
    }
}

#[test]
fn disks_of_the_running_guest_alone_come_back_and_odd_ones_are_told_apart() {
    let lab = Lab::start();
    let golden = image(&lab, "golden.qcow2", 0);
    run(&mut tool("qemu-img", ["resize", "-q", "-f", "qcow2", text(&golden), "192M"])).ok();
    let spec = GuestSpec { devices: SCSI.to_owned(), golden: Some(golden.clone()), ..GuestSpec::default() };
    let guest = lab.guest(spec);
    // QEMU has a filter above each image of such a disk.
    redefine(&guest, |xml| {
        xml.replacen(
            "<driver name='qemu' type='qcow2'",
            "<driver name='qemu' type='qcow2' copy_on_read='on'",
            1,
        )
    });
    guest.start();
    guest.progress.wait_more(100);
    let (data, later) = (image(&lab, "b.qcow2", 1), image(&lab, "c.qcow2", 2));
    attach(&guest, &data, "sda", &["--live"]);
    attach(&guest, &later, "sdb", &["--config"]);
    let before = everything(&guest);
    let plan = virtfold_in(&lab, &["backup", "writer", "--plan"]).ok();
    println!("{plan}");
    for line in [
        "disk 'sda' was attached to the running guest only: it is in the backup, and a restore defines the guest with it",
        "disk 'sdb' is in the configuration only, for the next start: it is not in the backup, and a restore defines the guest without it",
        "sdb      left out: the running guest does not have it",
    ] {
        assert!(plan.text().contains(line), "'{line}' is missing\n{plan}");
    }
    let (archive, report) = backup(&guest, &[]);
    assert_eq!(everything(&guest), before);
    assert_eq!(report["disks"].as_array().unwrap().len(), 2);
    assert!(
        report["notes"].to_string().contains("sda") && report["left_out"].to_string().contains("sdb"),
        "{report}"
    );
    guest.progress.wait_more(50);
    let there = restore(&guest, &archive);
    assert!(has(&there.join("sda.qcow2"), "15M", 1));
    comes_back(&lab, &archive);
    refuses_a_slice(&guest);
    // The copy's console lies beside the guest's.
    assert_eq!(everything(&guest).1, before.1);
    assert_eq!((overlays(lab.folder()), overlays(&guest.folder)), (Vec::new(), Vec::new()));
    let golden_before = has(&golden, "0", 0);
    assert!(golden_before, "the golden image was written to");
    guest.power_off();
}

/// A copy of the guest, with the disks that it had when it ran.
fn comes_back(lab: &Lab, archive: &Path) {
    let to = lab.folder().join("copy");
    fs::create_dir(&to).unwrap();
    let define = ["restore", text(archive), "--define", "--name", "copy", "--output", text(&to)];
    let planned = virtfold_in(lab, &[&define[..], &["--plan"]].concat()).ok();
    println!("{planned}");
    assert!(planned.text().contains("sda") && planned.text().contains("as it ran"), "{planned}");
    virtfold_in(lab, &define).ok();
    let xml = lab.virsh(&["dumpxml", "copy"]);
    assert!(
        xml.contains("copy-sda.qcow2") && !xml.contains("dev='sdb'") && xml.contains("copy_on_read='on'"),
        "{xml}"
    );
    assert!(has(&to.join("copy-sda.qcow2"), "1M", 1));
    lab.virsh(&["start", "copy"]);
    lab.virsh(&["destroy", "copy"]);
}

/// A disk that is a part of its file: a backup of the file would be read at the wrong place after a restore.
fn refuses_a_slice(guest: &Guest<'_>) {
    let lab = guest.lab;
    let file = lab.folder().join("sliced.raw");
    fs::write(&file, vec![7; 4 << 20]).unwrap();
    let disk = lab.folder().join("slice.xml");
    let slice = "<slices><slice type='storage' offset='1048576' size='2097152'/></slices>";
    let xml = format!(
        "<disk type='file'><driver name='qemu' type='raw'/><source file='{}'>{slice}</source><target dev='sdc' bus='scsi'/></disk>",
        text(&file)
    );
    fs::write(&disk, xml).unwrap();
    lab.virsh(&["attach-device", guest.name(), text(&disk), "--live"]);
    let refused = virtfold_in(lab, &["backup", "writer", "--plan"]).exits(exit::BAD_IMAGE);
    println!("{refused}");
    for words in ["disk 'sdc'", "<slices>", "qemu-img convert", "--exclude"] {
        assert!(refused.text().contains(words), "'{words}' is missing\n{refused}");
    }
    let to = lab.folder().join("archives");
    virtfold_in(lab, &["backup", "writer", "--to", text(&to)]).exits(exit::BAD_IMAGE);
    virtfold_in(lab, &["backup", "writer", "--to", text(&to), "--exclude", "sdc"]).ok();
    lab.virsh(&["detach-disk", guest.name(), "sdc", "--live"]);
}

/// The agent dies of the first freeze, and its hook fails at each thaw.
#[test]
fn an_agent_that_breaks_costs_the_clean_copy_and_not_the_backup() {
    let lab = Lab::start();
    let spec = GuestSpec {
        ext4: true,
        agent: true,
        agent_habit: "breaks",
        disks: vec!["raw"],
        slots: 256,
        ..GuestSpec::default()
    };
    let guest = lab.guest(spec);
    guest.start();
    wait_for("the agent answers", 60, || lab.agent_answers(guest.name()));
    for (why, hint) in [("did not freeze", "dies"), ("reported an error in the thaw", "thaws and says no")] {
        wait_for("the agent answers", 60, || lab.agent_answers(guest.name()));
        let before = everything(&guest);
        let (archive, report) = backup(&guest, &["--quiesce", "auto"]);
        println!("{hint}: {report}");
        let warnings = report["freeze"]["warnings"].to_string();
        assert_eq!(report["freeze"]["quiesced"], false);
        assert!(warnings.contains(why) && warnings.contains("crash-consistent"), "{hint}: {warnings}");
        guest.progress.wait_more(20);
        assert_eq!((everything(&guest), archive.is_file()), (before, true));
        assert_eq!(virtfold_in(&lab, &["recover", "--dry-run"]).ok().last_line(), "nothing to recover");
    }
    let to = lab.folder().join("archives");
    let count = || fs::read_dir(&to).unwrap().count();
    let before = (everything(&guest), count());
    let refused = virtfold_in(&lab, &["backup", "writer", "--to", text(&to), "--quiesce", "yes"]);
    println!("{refused}");
    assert!(refused.code() != Some(0) && refused.stderr.contains("--quiesce auto"), "{refused}");
    assert_eq!((everything(&guest), count()), before);
    guest.progress.wait_more(20);
    assert_eq!(virtfold_in(&lab, &["recover", "--dry-run"]).ok().last_line(), "nothing to recover");
}
