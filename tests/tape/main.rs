//! Tapes, against the kernel's real `st` driver: a machine in user mode (`machine`) with a tape drive in software
//! (`drive`) runs virtfold as a user does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test program has no public items")]

#[path = "../common/mod.rs"]
mod common;
mod drive;
mod machine;

use common::run::tool;
use common::scratch::Scratch;
use drive::{Cartridge, TapeDrive};
use machine::Machine;

#[test]
fn smoke() {
    let scratch = Scratch::new("tape");
    let socket = scratch.join("s");
    let drive = TapeDrive::start(&socket, vec![Cartridge::new(64 << 20, 1 << 20)]);
    drive.unit().insert(0);
    let mut machine = Machine::boot(scratch.path(), &socket);
    let script = "uname -r; dd if=/dev/zero of=/dev/nst0 bs=64k count=3; dd if=/dev/urandom of=/dev/nst0 bs=1M count=2; ls -l /dev/nst0";
    println!("{}", machine.run(&tool("sh", ["-c", script])));
    let count = drive.unit().cartridge(0).objects.len();
    println!("{count}");
    machine.cut();
    let mut machine = Machine::boot(scratch.path(), &socket);
    println!("{}", machine.run(&tool("sh", ["-c", "dd if=/dev/nst0 bs=1M | wc -c;dd if=/dev/nst0 bs=1M | wc -c"])));
}
