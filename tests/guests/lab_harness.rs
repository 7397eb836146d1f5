//! The laboratory itself: guests boot, write, tell, power off; the checker agrees; nothing is left over.

#[path = "../common/lab/records_tests.rs"]
mod records_tests;

use std::time::Instant;

use crate::lab::records::{check_images, take_from_ext4};
use crate::lab::{GuestSpec, Lab};

fn images<'a>(all: &'a [(std::path::PathBuf, &'static str)]) -> Vec<(&'a std::path::Path, &'static str)> {
    all.iter().map(|(path, format)| (path.as_path(), *format)).collect()
}

#[test]
fn guests_write_and_the_checker_agrees() {
    let lab = Lab::start();
    let disks = vec!["qcow2", "raw", "qcow2", "raw"];
    let guest = lab.guest(GuestSpec { disks, pause_us: Some(0), ..GuestSpec::default() });
    let begun = Instant::now();
    guest.boot();
    println!("booted in {:?}", begun.elapsed());
    let from = Instant::now();
    guest.progress.wait_more(2000);
    let (gap, count) = guest.progress.gap_between(from, Instant::now());
    println!("{count} records in {:?}, largest gap {gap:?}", from.elapsed());
    // libvirtd's death does not stop the guest.
    lab.kill();
    guest.progress.wait_more(100);
    lab.restart();
    assert_eq!(guest.state(), "running");
    guest.power_off();
    let first = check_images(&images(&guest.images()), guest.layout()).unwrap();
    assert_eq!(first.last, guest.progress.last());
    // It goes on where it ended, and wraps round without mixing laps. One that is woken from a state does,
    // too.
    let begun = Instant::now();
    guest.start();
    println!("woken in {:?}", begun.elapsed());
    guest.progress.wait_more(500);
    lab.signal_qemu(guest.name(), "KILL");
    crate::lab::wait_for("the domain is off", 20, || guest.state() == "shut off");
    let second = check_images(&images(&guest.images()), guest.layout()).unwrap();
    assert!(second.last >= guest.progress.last() && second.last > first.last, "{first:?} {second:?}");
    let folder = lab.folder().to_owned();
    drop(lab);
    assert!(!folder.exists(), "{} was left over", folder.display());
}

#[test]
fn ext4_is_clean_after_a_power_off_and_the_agent_answers() {
    let lab = Lab::start();
    let spec = GuestSpec { ext4: true, agent: true, disks: vec!["raw"], ..GuestSpec::default() };
    let guest = lab.guest(spec);
    guest.start();
    let answers = || {
        let ping = ["qemu-agent-command", guest.name(), r#"{"execute":"guest-ping"}"#];
        std::process::Command::new("virsh")
            .args(["-q", "-c", &lab.uri()])
            .args(ping)
            .output()
            .unwrap()
            .status
            .success()
    };
    crate::lab::wait_for("the agent answers", 30, answers);
    lab.virsh(&["domfsfreeze", guest.name()]);
    lab.virsh(&["domfsthaw", guest.name()]);
    guest.progress.wait_more(100);
    guest.power_off();
    let taken = lab.folder().join("records");
    take_from_ext4(&guest.disk(0), &taken).unwrap();
    let prefix = crate::lab::records::check(&[&taken], guest.layout()).unwrap();
    assert_eq!(prefix.last, guest.progress.last());
}
