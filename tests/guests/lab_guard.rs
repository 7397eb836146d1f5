//! The guard as a process against the real libvirt: a guest is let go when its driver is late, and when it is
//! dead.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::lab::{GuestSpec, Lab, wait_for};
use virtfold::hypervisor::libvirt::{Libvirt, LocalUri};
use virtfold::hypervisor::watchdog::{GuestHold, WatchdogClient, WatchdogOutcome, serve};
use virtfold::hypervisor::{DomainState, Hypervisor};

const ROLE: &str = "VIRTFOLD_LAB_GUARD";

fn open(uri: &str) -> Libvirt {
    Libvirt::open(LocalUri::parse(uri).unwrap()).unwrap()
}

/// This test binary again, in the guard's or the driver's part.
fn again(part: &str, uri: &str, domain: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", part]).env(ROLE, format!("{domain} {uri}"));
    command
}

fn role() -> Option<(String, String)> {
    let role = std::env::var(ROLE).ok()?;
    role.split_once(' ').map(|(domain, uri)| (domain.to_owned(), uri.to_owned()))
}

/// Not a test: the guard's process.
#[test]
fn part_of_the_guard() {
    if let Some((domain, uri)) = role() {
        let libvirt = open(&uri);
        let id = libvirt.lookup(&domain).unwrap().id;
        serve(&libvirt, id).unwrap();
    }
}

/// Not a test: a driver that suspends or freezes the guest and then hangs.
#[test]
fn part_of_a_driver_that_hangs() {
    if let Some((domain, uri)) = role() {
        let libvirt = open(&uri);
        let id = libvirt.lookup(&domain).unwrap().id;
        let mut guard = WatchdogClient::start(again("lab_guard::part_of_the_guard", &uri, &domain)).unwrap();
        let armed = guard.arm(GuestHold::Paused, Duration::from_secs(600)).unwrap();
        libvirt.suspend(id).unwrap();
        std::thread::sleep(Duration::from_secs(600));
        armed.disarm().unwrap();
    }
}

#[test]
fn the_guard_lets_the_guest_go() {
    let lab = Lab::start();
    let guest = lab.guest(GuestSpec { agent: true, ext4: true, disks: vec!["raw"], ..GuestSpec::default() });
    guest.start();
    let libvirt = open(&lab.uri());
    let id = libvirt.lookup(guest.name()).unwrap().id;
    let mut guard =
        WatchdogClient::start(again("lab_guard::part_of_the_guard", &lab.uri(), guest.name())).unwrap();

    let armed = guard.arm(GuestHold::Paused, Duration::from_secs(10)).unwrap();
    libvirt.suspend(id).unwrap();
    libvirt.resume(id).unwrap();
    assert_eq!(armed.disarm().unwrap(), WatchdogOutcome::InTime);

    let armed = guard.arm(GuestHold::Paused, Duration::from_millis(500)).unwrap();
    libvirt.suspend(id).unwrap();
    let from = Instant::now();
    wait_for("the guard resumes", 10, || libvirt.domain_state(id).unwrap() == DomainState::Running);
    println!("late driver, paused: resumed after {:?}", from.elapsed());
    assert!(from.elapsed() < Duration::from_millis(1500));
    assert_eq!(armed.disarm().unwrap(), WatchdogOutcome::Expired);

    wait_for("the agent answers", 60, || libvirt.ping_agent(id, Duration::from_secs(2)).is_ok());
    guest.progress.wait_more(20);
    let armed = guard.arm(GuestHold::Frozen, Duration::from_millis(500)).unwrap();
    libvirt.set_agent_time_limit(id, Duration::from_secs(5)).unwrap();
    libvirt.freeze(id).unwrap();
    let from = Instant::now();
    guest.progress.wait_more(20);
    println!("late driver, frozen: writes again after {:?}", from.elapsed());
    assert_eq!(armed.disarm().unwrap(), WatchdogOutcome::Expired);
    drop(guard);

    let mut driver =
        again("lab_guard::part_of_a_driver_that_hangs", &lab.uri(), guest.name()).spawn().unwrap();
    wait_for("the driver suspends", 30, || libvirt.domain_state(id).unwrap() != DomainState::Running);
    driver.kill().unwrap();
    driver.wait().unwrap();
    let from = Instant::now();
    wait_for("the guard resumes", 10, || libvirt.domain_state(id).unwrap() == DomainState::Running);
    println!("dead driver: resumed after {:?}", from.elapsed());
    guest.progress.wait_more(20);
}
