//! The binary, called as libvirt calls it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test may fail")]

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use virtfold_hooks::event::{EventXml, Hook, MAX_XML};
use virtfold_hooks::spool::{Batch, Spool};
use virtfold_hooks::start_lock::{self, LockReason, LockedDisks, StartLock};

const XML: &str = "<domain type='kvm'><name>vm1</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid><devices>\
    <disk type='file' device='disk'><source file='/images/vm1.qcow2'/><target dev='vda'/></disk></devices></domain>";
const HOLDER: &str = "VIRTFOLD_TEST_HOLDER";

struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self { dir: tempfile::tempdir().unwrap() };
        host.spool().create().unwrap();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn spool(&self) -> Spool {
        Spool::at(self.path("events"))
    }

    fn events(&self) -> Batch {
        self.spool().read(10_000).unwrap()
    }

    fn environment(&self, command: &mut Command) {
        command.env_clear().env("VIRTFOLD_SPOOL", self.path("events"));
        command.env("VIRTFOLD_GUARDS", self.path("guards")).env("VIRTFOLD_SOCKET", self.path("socket"));
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_virtfold-hook"));
        command.arg0("/etc/libvirt/hooks/qemu.d/50-virtfold").args(arguments);
        self.environment(&mut command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn call(&self, arguments: &[&str], xml: &[u8]) -> Output {
        finish(self.start(arguments), xml)
    }

    fn prepare(&self, name: &str, xml: &str) -> Output {
        self.call(&[name, "prepare", "begin", "-"], xml.as_bytes())
    }
}

/// Writes the XML (the hook may have left by then) and waits.
fn finish(mut child: Child, xml: &[u8]) -> Output {
    if let Err(error) = child.stdin.take().unwrap().write_all(xml) {
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    }
    child.wait_with_output().unwrap()
}

#[track_caller]
fn silent(output: &Output) {
    assert_eq!(
        (output.status.code(), output.stdout.as_slice(), output.stderr.as_slice()),
        (Some(0), &b""[..], &b""[..])
    );
}

#[track_caller]
fn refused(output: &Output, reason: &str) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains(reason) && told.lines().count() == 1, "{told}");
    assert!(output.stdout.is_empty());
}

#[test]
fn what_libvirt_says_is_spooled_and_the_service_is_woken() {
    let host = Host::new();
    let service = UnixDatagram::bind(host.path("socket")).unwrap();
    silent(&host.call(&["vm1", "release", "end", "shutdown"], XML.as_bytes()));
    let mut got = [0; 8];
    assert_eq!(service.recv(&mut got).unwrap(), 1);
    let events = host.events().events;
    let event = &events[0].event;
    assert_eq!((events.len(), event.hook, event.object.as_str()), (1, Hook::Qemu, "vm1"));
    assert_eq!(
        (event.operation.as_str(), event.sub_operation.as_str(), event.extra.as_str()),
        ("release", "end", "shutdown")
    );
    assert_eq!(event.xml, EventXml::Whole { text: XML.into() });
}

#[test]
fn the_path_it_is_called_as_tells_which_hook_it_is() {
    let host = Host::new();
    for (path, hook) in
        [("network.d/50-virtfold", Hook::Network), ("daemon", Hook::Daemon), ("qemu", Hook::Qemu)]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_virtfold-hook"));
        command.arg0(Path::new("/etc/libvirt/hooks").join(path)).args(["-", "reload", "begin", "SIGHUP"]);
        host.environment(&mut command);
        assert!(command.stdin(Stdio::null()).status().unwrap().success());
        let batch = host.events();
        assert_eq!((batch.events[0].event.hook, &batch.events[0].event.xml), (hook, &EventXml::Absent {}));
        host.spool().remove(&batch.events[0]).unwrap();
    }
}

#[test]
fn two_hundred_calls_one_by_one_are_quick() {
    let host = Host::new();
    let padded = XML.replace("<devices>", &format!("<!--{}--><devices>", "x".repeat(8000)));
    let timed = |what: &str, call: &dyn Fn()| {
        let mut times: Vec<Duration> = Vec::new();
        for _ in 0..200 {
            let started = Instant::now();
            call();
            times.push(started.elapsed());
        }
        times.sort();
        println!("200 {what}: median {:?}, p99 {:?}, longest {:?}", times[99], times[197], times[199]);
        times[197]
    };
    // What starting any program costs on this machine just now.
    timed("times true(1)", &|| assert!(Command::new("true").status().unwrap().success()));
    let p99 = timed("hooks, spawn to exit", &|| silent(&host.prepare("vm1", &padded)));
    assert_eq!(host.events().events.len(), 200);
    assert!(p99 < Duration::from_millis(500), "p99 {p99:?}");
}

#[test]
fn a_storm_of_two_hundred_at_once_loses_nothing() {
    let host = Host::new();
    let started = Instant::now();
    let names: Vec<String> = (0..200).map(|i| format!("vm{i:03}")).collect();
    let children: Vec<Child> =
        names.iter().map(|name| host.start(&[name, "prepare", "begin", "-"])).collect();
    for child in children {
        silent(&finish(child, XML.as_bytes()));
    }
    println!("a storm of 200 hooks: {:?}", started.elapsed());
    let batch = host.events();
    let mut seen: Vec<_> = batch.events.iter().map(|spooled| spooled.event.object.clone()).collect();
    seen.sort();
    assert_eq!(seen, names);
    assert!(batch.quarantined.is_empty());
}

#[test]
fn a_service_that_does_not_read_its_socket_holds_nobody_up() {
    let host = Host::new();
    let service = UnixDatagram::bind(host.path("socket")).unwrap();
    let ours = UnixDatagram::unbound().unwrap();
    ours.set_nonblocking(true).unwrap();
    while ours.send_to(b"x", host.path("socket")).is_ok() {}
    let started = Instant::now();
    silent(&host.prepare("vm1", XML));
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    drop(service);
    // The socket's file is there, and nobody behind it.
    silent(&host.prepare("vm1", XML));
    assert_eq!(host.events().events.len(), 2);
}

#[test]
fn without_a_spool_nothing_is_kept_and_nothing_made() {
    let host = Host::new();
    fs::remove_dir(host.path("events")).unwrap();
    silent(&host.prepare("vm1", XML));
    assert!(!host.path("events").exists());
    fs::write(host.path("events"), "a file where a folder should be").unwrap();
    silent(&host.prepare("vm1", XML));
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").unwrap().uid() == 0
}

#[test]
fn a_full_file_system_holds_nobody_up() {
    if !is_root() {
        println!("NOT RUN: a full file system needs root, for a mount of its own");
        return;
    }
    // No room for bytes, and no room for names. The mount is in a namespace of its own, which ends with the
    // shell.
    for (options, marked) in [("size=64k", true), ("nr_inodes=6", false)] {
        let host = Host::new();
        let script = format!(
            "mount -t tmpfs -o {options} none \"$VIRTFOLD_SPOOL\" && cd \"$VIRTFOLD_SPOOL\" || exit 99
             for i in 1 2 3 4 5 6 7 8 9 10 11 12; do printf %s \"$XML\" | \"$HOOK\" vm$i prepare begin - || exit 1; done
             ls -A"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]);
        host.environment(&mut command);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOOK", env!("CARGO_BIN_EXE_virtfold-hook"));
        let output = command.env("XML", XML.repeat(20)).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{told} {}", String::from_utf8_lossy(&output.stderr));
        let names: Vec<_> = told.lines().collect();
        assert!(names.iter().all(|name| !name.starts_with('.')), "left behind: {told}");
        assert!((3..12).contains(&names.iter().filter(|name| name.ends_with(".json")).count()), "{told}");
        assert_eq!(names.contains(&"overflow"), marked, "{told}");
        assert_eq!(fs::read_dir(host.path("events")).unwrap().count(), 0, "the mount was not private");
    }
}

#[test]
fn a_spool_over_its_limit_counts() {
    let host = Host::new();
    for i in 0..4096 {
        fs::write(host.path("events").join(format!("{i:020}-{:010}-{:08}.json", 1, 1)), "x").unwrap();
    }
    let started = Instant::now();
    silent(&host.prepare("vm1", XML));
    println!("a hook with a full spool: {:?}", started.elapsed());
    assert_eq!(host.spool().take_overflow().unwrap(), Some(1));
}

#[test]
fn no_xml_however_broken_changes_the_answer() {
    let host = Host::new();
    let _guard = StartLock::hold(&host.path("guards"), &guarded("/images/other.qcow2")).unwrap();
    let giant = XML.replace("</domain>", &"x".repeat(MAX_XML));
    let cases: [(&[u8], EventXml); 5] = [
        (b"", EventXml::Absent {}),
        (b"<domain", EventXml::Whole { text: "<domain".into() }),
        (b"\xff\xfe<\0d>", EventXml::NotText {}),
        (giant.as_bytes(), EventXml::TooLarge {}),
        (
            b"</x><domain><devices><disk><source file=",
            EventXml::Whole { text: "</x><domain><devices><disk><source file=".into() },
        ),
    ];
    for (xml, kept) in cases {
        silent(&host.call(&["vm1", "prepare", "begin", "-"], xml));
        let batch = host.events();
        assert_eq!(batch.events[0].event.xml, kept);
        host.spool().remove(&batch.events[0]).unwrap();
    }
    silent(&host.call(&[], b""));
    silent(&host.call(&["vm1", "prepare"], b""));
}

#[test]
fn an_input_that_does_not_end_is_given_up_and_its_disks_still_count() {
    let host = Host::new();
    let mut child = host.start(&["vm1", "prepare", "begin", "-"]);
    let mut input = child.stdin.take().unwrap();
    input.write_all(XML.as_bytes()).unwrap();
    let started = Instant::now();
    silent(&child.wait_with_output().unwrap());
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(host.events().events[0].event.xml, EventXml::Late {});
    let _guard = StartLock::hold(&host.path("guards"), &guarded("/images/vm1.qcow2")).unwrap();
    let mut child = host.start(&["vm1", "prepare", "begin", "-"]);
    let mut input = child.stdin.take().unwrap();
    input.write_all(XML.as_bytes()).unwrap();
    refused(&child.wait_with_output().unwrap(), "/images/vm1.qcow2");
}

fn guarded(disk: &str) -> LockedDisks {
    LockedDisks::new(Path::new(disk), LockReason::Restoring, "restore of last night's backup")
}

#[test]
fn a_live_guard_refuses_prepare_and_nothing_else() {
    let host = Host::new();
    let guard = StartLock::hold(&host.path("guards"), &guarded("/images/vm1.qcow2")).unwrap();
    refused(&host.prepare("vm1", XML), "restore of last night's backup");
    refused(&host.prepare("another name", XML), "/images/vm1.qcow2");
    silent(&host.prepare("vm1", &XML.replace("vm1.qcow2", "vm2.qcow2")));
    for operation in ["start", "started", "stopped", "release", "migrate", "restore", "reconnect", "attach"] {
        silent(&host.call(&["vm1", operation, "begin", "-"], XML.as_bytes()));
    }
    silent(&host.call(&["vm1", "prepare", "end", "-"], XML.as_bytes()));
    drop(guard);
    silent(&host.prepare("vm1", XML));
    assert_eq!(host.events().events.len(), 13, "a refusal is spooled too");
}

#[test]
fn a_guest_is_guarded_by_name_uuid_and_by_other_paths_to_its_disk() {
    let host = Host::new();
    let (disk, link) = (host.path("disk"), host.path("link"));
    fs::write(&disk, "").unwrap();
    std::os::unix::fs::symlink(&disk, &link).unwrap();
    let uuid = "C7A5FDBD-edaf-9455-926a-d65c16db1809".to_owned();
    let other = XML.replace("c7a5", "0000");
    let through_link = other.replace("/images/vm1.qcow2", link.to_str().unwrap());
    for (what, xml) in [
        (guarded("/x").of_guest(Some(uuid), None), XML),
        (guarded("/x").of_guest(None, Some("vm1".into())), other.as_str()),
        (guarded(disk.to_str().unwrap()), through_link.as_str()),
    ] {
        let guard = StartLock::hold(&host.path("guards"), &what).unwrap();
        refused(&host.prepare("vm1", xml), "virtfold (process ");
        silent(&host.prepare("vm2", "<domain><name>vm2</name></domain>"));
        drop(guard);
        silent(&host.prepare("vm1", xml));
    }
}

/// Not a test of its own: the process that the next test kills.
#[test]
fn holder() {
    if let Some(dir) = std::env::var_os(HOLDER) {
        let _guard = StartLock::hold(Path::new(&dir), &guarded("/images/vm1.qcow2")).unwrap();
        std::thread::sleep(Duration::from_secs(60));
    }
}

#[test]
fn a_killed_owner_blocks_nobody() {
    let host = Host::new();
    let guards = host.path("guards");
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut owner =
        command.args(["--exact", "holder"]).env(HOLDER, &guards).stdout(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while start_lock::alive(&guards).is_empty() {
        assert!(started.elapsed() < Duration::from_secs(20), "the owner did not come up");
        std::thread::sleep(Duration::from_millis(5));
    }
    refused(&host.prepare("vm1", XML), &format!("process {}", owner.id()));
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert_eq!(fs::read_dir(&guards).unwrap().count(), 1, "its file is still there");
    silent(&host.prepare("vm1", XML));
    assert_eq!(start_lock::sweep(&guards).unwrap(), 1);
}

#[test]
fn broken_guards_block_nobody() {
    let host = Host::new();
    let guards = host.path("guards");
    let _guard = StartLock::hold(&guards, &guarded("/images/other.qcow2")).unwrap();
    fs::write(guards.join("1-0.json"), "{\"version\":1").unwrap();
    fs::create_dir(guards.join("2-0.json")).unwrap();
    assert!(Command::new("mkfifo").arg(guards.join("3-0.json")).status().unwrap().success());
    silent(&host.prepare("vm1", XML));
    fs::remove_dir_all(&guards).unwrap();
    fs::write(&guards, "a file").unwrap();
    silent(&host.prepare("vm1", XML));
}

#[test]
fn broken_pipes_end_nothing() {
    let host = Host::new();
    let _guard = StartLock::hold(&host.path("guards"), &guarded("/images/vm1.qcow2")).unwrap();
    // Whoever reads its outputs is gone, and whoever writes its input goes in the midst of it.
    for (name, code) in [("vm1", 1), ("vm2", 0)] {
        let mut child = host.start(&[name, "prepare", "begin", "-"]);
        drop((child.stdout.take(), child.stderr.take()));
        let xml = XML.replace("vm1", name);
        child.stdin.take().unwrap().write_all(&xml.as_bytes()[..xml.len() - 10]).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(code), "{status}");
    }
    assert_eq!(host.events().events.len(), 2);
}

#[test]
fn a_closed_stderr_does_not_turn_a_refusal_into_a_yes() {
    let host = Host::new();
    let _guard = StartLock::hold(&host.path("guards"), &guarded("/images/vm1.qcow2")).unwrap();
    for redirect in ["2>&-", "2>/dev/full", ">&- 2>&-"] {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("\"$HOOK\" vm1 prepare begin - {redirect}")]);
        host.environment(&mut command);
        let mut child =
            command.env("HOOK", env!("CARGO_BIN_EXE_virtfold-hook")).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(XML.as_bytes()).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{redirect}");
    }
}

#[test]
fn it_links_nothing_of_libvirt() {
    let output = Command::new("ldd").arg(env!("CARGO_BIN_EXE_virtfold-hook")).output().unwrap();
    let libraries = String::from_utf8_lossy(&output.stdout);
    assert!(libraries.contains("libc.so") && !libraries.contains("virt"), "{libraries}");
}
