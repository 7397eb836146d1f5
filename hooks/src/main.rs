//! `virtfold-hook`: what libvirt calls as `/etc/libvirt/hooks/qemu.d/50-virtfold` (and in `network.d`,
//! `daemon.d`).
//!
//! In this order:
//! 1. standard input is read, bounded in size and time;
//! 2. `prepare begin` only: the guards are asked. A guest that would run into a live one is refused: reason
//!    on stderr, exit 1. libvirt then aborts the start;
//! 3. the event goes to the spool, and a datagram to the service.
//!
//! In every other case the exit is 0, whatever goes wrong, and nothing is printed: events are a help, and
//! what they miss the service finds by itself. For the same reason a defect here (a panic) exits 0 too.
//! Standard output stays empty always, because libvirt takes what `migrate` and `restore` hooks print there
//! for the guest's new XML. No child is started: one that keeps an inherited descriptor open would hang
//! libvirt.
//!
//! What touches a file system that may not answer runs on a thread with a time limit, so that a dead mount
//! holds a guest up for that long only.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use virtfold_hooks::HookOwner;
use virtfold_hooks::domain::{self, HookDomain};
use virtfold_hooks::event::{Event, EventXml, Hook, MAX_XML};
use virtfold_hooks::spool::{self, Spool};
use virtfold_hooks::start_lock::{self, LockedDisks};
use virtfold_hooks::wake_service;

/// libvirt writes the XML at once; if it takes so long, libvirt itself is stuck.
const INPUT_LIMIT: Duration = Duration::from_secs(2);
/// For a look at the guest's disks, which only happens while a guard is alive.
const DISKS_LIMIT: Duration = Duration::from_secs(1);
/// For spool and nudge. A disk that syncs slowly takes this time anyway: it can't be interrupted.
const SPOOL_LIMIT: Duration = Duration::from_secs(1);

/// The exit code that is decided on so far.
static EXIT: AtomicU8 = AtomicU8::new(0);

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|_| std::process::exit(EXIT.load(Ordering::SeqCst).into())));
    let mut arguments = std::env::args_os();
    let hook = which(arguments.next().as_deref().map(Path::new));
    let arguments: Vec<String> = arguments.take(4).map(|a| a.to_string_lossy().into_owned()).collect();
    let called = SystemTime::now();
    let (bytes, ended) = read_input();
    if hook == Hook::Qemu && arguments.get(1..3).is_some_and(|step| step == ["prepare", "begin"]) {
        let name = arguments.first().map_or("", String::as_str);
        if let Some(guard) = refused_by(name, domain::scan(&bytes)) {
            EXIT.store(1, Ordering::SeqCst);
            tell(&format!("{name} cannot start now: {}\n", guard.refusal()));
        }
    }
    let xml = if ended { EventXml::from_bytes(bytes) } else { EventXml::Late {} };
    let event = Event::at(called, hook, &arguments, xml);
    within(SPOOL_LIMIT, move || keep(&event));
    ExitCode::from(EXIT.load(Ordering::SeqCst))
}

/// Which hook this is, by the path that it is called as: `.../qemu.d/50-virtfold` or `.../qemu`.
fn which(called: Option<&Path>) -> Hook {
    let part = |path: Option<&Path>| path.and_then(Path::file_name).map(OsStr::to_owned);
    for name in [part(called), part(called.and_then(Path::parent))].into_iter().flatten() {
        match name.to_str() {
            Some("network" | "network.d") => return Hook::Network,
            Some("daemon" | "daemon.d") => return Hook::Daemon,
            _ => {}
        }
    }
    Hook::Qemu
}

/// What is on standard input, at most one byte more than an XML may have, and whether it ended (or was too
/// large) in time.
fn read_input() -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let started = Instant::now();
    // Unlike `Stdin`, a file has no buffer of its own that `poll` could not see.
    let Ok(mut input) = io::stdin().as_fd().try_clone_to_owned().map(File::from) else {
        return (bytes, true);
    };
    let mut chunk = vec![0; 64 << 10];
    while bytes.len() <= MAX_XML {
        let left = INPUT_LIMIT.saturating_sub(started.elapsed());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let ready = poll(&mut [PollFd::new(input.as_fd(), PollFlags::POLLIN)], timeout);
        match ready {
            // A read after a failed wait could wait without an end.
            Ok(0) | Err(_) => return (bytes, false),
            Ok(_) => {}
        }
        match input.read(&mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(n) => bytes.extend_from_slice(chunk.get(..n).unwrap_or_default()),
        }
    }
    (bytes, true)
}

/// The guard that forbids the start of this guest.
fn refused_by(name: &str, domain: HookDomain) -> Option<LockedDisks> {
    let guards = start_lock::alive(&start_lock::usual_path(HookOwner::caller()));
    match start_lock::conflict(&guards, name, &domain) {
        Some(guard) => Some(guard.clone()),
        None if guards.is_empty() => None,
        None => {
            within(DISKS_LIMIT, move || start_lock::conflict_by_file(&guards, &domain).cloned()).flatten()
        }
    }
}

/// Says why, if stderr is there to be written to; the exit code says it anyway.
fn tell(text: &str) {
    drop(io::stderr().write_all(text.as_bytes()));
}

/// Spools the event and wakes the service; either may fail, and nobody here could do anything about it.
fn keep(event: &Event) {
    drop(Spool::at(spool::usual_path(HookOwner::caller())).put(event));
    drop(wake_service::nudge(&wake_service::usual_path(HookOwner::caller())));
}

/// Runs `work` on a thread and waits so long for its result. The process does not wait for a thread that is
/// late.
fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, wait) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().spawn(move || drop(done.send(work())));
    // Without a thread the work is dropped, and with it the sender: there is no wait either.
    thread.ok().and_then(|_| wait.recv_timeout(limit).ok())
}
