//! A laboratory for tests with real guests: a private libvirtd, guests that write numbered records, and a
//! checker that says whether an image is of one point in time.
//!
//! Use: `#[path = "common/lab/mod.rs"] mod lab;` in a test file, [`Lab::start`], [`Lab::guest`], then
//! [`records::check`] on raw bytes of the guest's disks.
//!
//! - [`daemon`]: libvirtd in namespaces of its own (tests/guest/daemon). It ends, guests and all, when the
//!   [`Lab`] is dropped or the test process dies in whatever way.
//! - [`guest`]: a guest's disks, its domain XML, its life. Kernel and initramfs come from tests/guest/build.
//! - [`state`]: guests of one shape boot once, and are woken from that state ever after.
//! - [`progress`]: what the running guest tells, with the host's clock: the gaps between its writes.
//! - [`records`]: the checker.
//!
//! The harness speaks to libvirt by `virsh` alone, so that the driver's own facade is never its own judge.
//! Needs root and the packages of tests/setup-libvirt; says so where they are missing, and fails.

#![allow(dead_code, reason = "every test file uses another part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a harness fails by panicking")]

pub(crate) mod daemon;
pub(crate) mod guest;
pub(crate) mod progress;
#[path = "../../guest/record.rs"]
#[allow(clippy::cast_possible_truncation, reason = "the remainders fit")]
pub(crate) mod record;
pub(crate) mod records;
mod state;

pub(crate) use daemon::Lab;
#[allow(unused_imports, reason = "every test file uses another part of it")]
pub(crate) use guest::{Guest, GuestSpec};

use std::process::Command;

/// Runs a command to its end and returns what it printed; panics with its stderr when it fails.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; run tests/setup-libvirt"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until `ready` is true; panics with `what` after the time limit.
pub(crate) fn wait_for(what: &str, seconds: u64, mut ready: impl FnMut() -> bool) {
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    while !ready() {
        assert!(std::time::Instant::now() < limit, "not within {seconds} s: {what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
