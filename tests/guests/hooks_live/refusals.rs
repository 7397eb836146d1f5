//! A guest whose disks virtfold is reading or writing does not start; any other does, and so does this one a
//! moment later.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::install::Hooked;
use crate::common::run::{collect, line_of, run, text, tool, virtfold};
use crate::lab::{Guest, GuestSpec};

fn command(hooked: &Hooked, args: &[&str]) -> Command {
    let (folder, mut command) = (hooked.lab.folder(), virtfold(args));
    command.env("VIRTFOLD_CONNECT", hooked.lab.uri()).env("VIRTFOLD_LIBVIRT_DIR", folder.join("lib"));
    command.env("VIRTFOLD_STATE_DIR", folder.join("state"));
    command.env("VIRTFOLD_GUARDS", hooked.run_file("guards"));
    command
}

/// Starts virtfold and holds it in the midst of its work, when its guards are up. It may be too fast once or
/// twice.
fn held(hooked: &Hooked, mut command: impl FnMut() -> Command) -> (String, Child) {
    for _ in 0..20 {
        let mut command = command();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        let guards = || virtfold_hooks::start_lock::alive(&hooked.run_file("guards"));
        while guards().is_empty() && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "no guard is put up");
            std::thread::sleep(Duration::from_micros(200));
        }
        signal(&child, Signal::SIGSTOP);
        // Stopped or ended, it does nothing more; what is there now stays.
        std::thread::sleep(Duration::from_millis(20));
        if !guards().is_empty() && child.try_wait().unwrap().is_none() {
            return (line_of(&command), child);
        }
        signal(&child, Signal::SIGCONT);
        child.wait().unwrap();
    }
    panic!("virtfold is too fast to be held");
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

fn try_start(guest: &Guest<'_>) -> Result<(), String> {
    let uri = guest.lab.uri();
    let output = run(&mut tool("virsh", ["-q", "-c", &uri, "start", guest.name(), "--paused"]));
    match output.code() {
        Some(0) => {
            guest.lab.virsh(&["destroy", guest.name()]);
            Ok(())
        }
        _ => Err(output.stderr),
    }
}

/// The start of the guest is refused, with a reason that says who does what.
#[track_caller]
fn is_refused(guest: &Guest<'_>, child: &Child, does: &str) {
    let said = try_start(guest).unwrap_err();
    println!("{said}");
    let process = format!("virtfold (process {}) {does} '", child.id());
    assert!(said.contains(&process) && said.contains(text(&guest.folder)), "{said}");
    assert_eq!(guest.state(), "shut off");
}

fn fill(disk: &Path) {
    let write = ["-f", "qcow2", "-c", "write -q -P 7 0 64M", "-c", "write -q -P 9 100M 32M"];
    run(tool("qemu-io", write).arg(disk)).ok();
}

#[test]
fn a_guest_is_refused_while_its_disks_are_in_use_and_not_a_moment_longer() {
    let hooked = Hooked::start();
    let spec = |name: &str| GuestSpec { name: name.to_owned(), pause_us: None, ..GuestSpec::default() };
    let (guest, other) = (hooked.lab.guest(spec("guarded")), hooked.lab.guest(spec("other")));
    fill(&guest.disk(0));
    assert_eq!(try_start(&guest), Ok(()));

    // A backup of the guest that is shut off.
    let archives = hooked.lab.folder().join("archives");
    fs::create_dir(&archives).unwrap();
    let backup = || command(&hooked, &["backup", "guarded", "--to", text(&archives), "--compress", "none"]);
    let (line, child) = held(&hooked, backup);
    is_refused(&guest, &child, "is reading");
    assert_eq!(try_start(&other), Ok(()));
    signal(&child, Signal::SIGCONT);
    collect(line, child).ok();
    assert_eq!(try_start(&guest), Ok(()));

    // A restore over it; its owner is killed, and then another one comes to its end.
    let archive = fs::read_dir(&archives).unwrap().map(|entry| entry.unwrap().path()).next().unwrap();
    let restore = || command(&hooked, &["restore", text(&archive), "--define", "--force"]);
    let (_, mut child) = held(&hooked, restore);
    is_refused(&guest, &child, "is restoring");
    assert_eq!(try_start(&other), Ok(()));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(fs::read_dir(hooked.run_file("guards")).unwrap().count() > 0, "its guards are still there");
    assert_eq!(try_start(&guest), Ok(()));
    let (line, child) = held(&hooked, restore);
    is_refused(&guest, &child, "is restoring");
    signal(&child, Signal::SIGCONT);
    collect(line, child).ok();
    assert_eq!(try_start(&guest), Ok(()));
    assert_eq!(
        fs::read_dir(hooked.run_file("guards")).unwrap().count(),
        0,
        "the killed one's guards are swept"
    );
    let refused = hooked.take("guarded").iter().filter(|word| *word == "release end failed").count();
    println!("{refused} refused starts were told of");
}
