//! How long libvirt waits for the hook: 1,000 calls one by one, from the spawn to the exit, with an XML of 8
//! KiB, a service that listens, and a spool on the disk under `target`. Beside each call one of `true`, which
//! is what starting any program costs just then. `cargo bench -p virtfold-hooks --bench hook [CALLS]`; a
//! quiet machine is needed for figures that mean anything.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark may fail")]

use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use virtfold_hooks::spool::Spool;

fn main() {
    let calls = std::env::args().filter_map(|word| word.parse().ok()).next().unwrap_or(1000);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let spool = Spool::at(dir.path().join("events"));
    spool.create().unwrap();
    let socket = UnixDatagram::bind(dir.path().join("socket")).unwrap();
    let xml = format!("<domain><name>vm1</name><!--{}--></domain>", "x".repeat(8000));
    let (mut hooks, mut others) = (Vec::new(), Vec::new());
    for _ in 0..calls {
        let mut hook = Command::new(env!("CARGO_BIN_EXE_virtfold-hook"));
        hook.arg0("/etc/libvirt/hooks/qemu.d/50-virtfold").args(["vm1", "prepare", "begin", "-"]);
        hook.env_clear().env("VIRTFOLD_SPOOL", spool.dir());
        hook.env("VIRTFOLD_GUARDS", dir.path().join("guards"))
            .env("VIRTFOLD_SOCKET", dir.path().join("socket"));
        hooks.push(timed(&mut hook, xml.as_bytes()));
        others.push(timed(&mut Command::new("/usr/bin/true"), &[]));
        let mut byte = [0];
        assert_eq!(socket.recv(&mut byte).unwrap(), 1);
        let events = spool.read(10).unwrap().events;
        assert_eq!(events.len(), 1);
        spool.remove(&events[0]).unwrap();
    }
    report("virtfold-hook", &mut hooks);
    report("true(1)", &mut others);
}

fn timed(command: &mut Command, input: &[u8]) -> Duration {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = Instant::now();
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    assert!(child.wait().unwrap().success());
    started.elapsed()
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() * part / 1000).min(times.len() - 1)].as_secs_f64() * 1000.0;
    println!(
        "{} calls of {what:<14} p50 {:6.2} ms   p90 {:6.2} ms   p99 {:6.2} ms   max {:6.2} ms",
        times.len(),
        at(500),
        at(900),
        at(990),
        at(1000)
    );
}
