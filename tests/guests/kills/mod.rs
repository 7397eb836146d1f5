//! The driver stopped dead at every entry of its journal, alone and with everything else that can happen in
//! that moment; then a recovery. Afterwards the guest writes on its own disks, no record is lost, no overlay
//! is left.
//!
//! As a test: each entry once, its two moments (before it, after it) in turn. `tests/soak` runs each ten
//! times (`VIRTFOLD_SOAK=N`), and prints the counts.

mod agent;
mod driver;
mod matrix;

use matrix::{Event, run};

#[test]
fn killed() {
    run(Event::Nothing);
}

#[test]
fn killed_while_libvirtd_was_killed() {
    run(Event::LibvirtdKilled);
}

#[test]
fn killed_while_the_guest_was_destroyed() {
    run(Event::GuestDestroyed);
}

#[test]
fn killed_while_the_guest_shut_down() {
    run(Event::GuestShutDown);
}

#[test]
fn killed_while_the_overlays_file_system_was_full() {
    run(Event::Full);
}
