//! A guest's life as libvirt tells it to the hook.

use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use virtfold::hypervisor::Hypervisor;
use virtfold::hypervisor::libvirt::{Libvirt, LocalUri};
use virtfold::service::events::{
    EventNotice, EventSettings, EventThread, GuestEventKind, Notices, ReconcileReason,
};

use super::install::Hooked;
use crate::lab::{Guest, GuestSpec, wait_for};

const START: [&str; 3] = ["prepare begin -", "start begin -", "started begin -"];

fn end(how: &str) -> [String; 2] {
    ["stopped end -".to_owned(), format!("release end {how}")]
}

fn expected(start: &[&str], how: &str) -> Vec<String> {
    start.iter().map(|word| (*word).to_owned()).chain(end(how)).collect()
}

/// A guest that nobody waits for.
fn idle(name: &str) -> GuestSpec {
    GuestSpec { name: name.to_owned(), pause_us: None, ..GuestSpec::default() }
}

#[test]
fn libvirt_calls_the_hook_for_each_step_of_a_guests_life() {
    let hooked = Hooked::start();
    let guest = hooked.lab.guest(GuestSpec { pause_us: Some(5000), ..GuestSpec::default() });
    without_a_service(&hooked, &guest);
    with_a_service(&hooked, &guest);
    full_spool(&hooked, &guest);
    storm(&hooked);
    report(&hooked);
}

/// Nobody listens: the socket is not there. All is kept for later, in order.
fn without_a_service(hooked: &Hooked, guest: &Guest<'_>) {
    guest.boot().power_off();
    assert_eq!(hooked.take("writer"), expected(&START, "shutdown"));
    hooked.lab.virsh(&["start", "writer", "--paused"]);
    hooked.lab.virsh(&["destroy", "writer"]);
    assert_eq!(hooked.take("writer"), expected(&START, "destroyed"));
    hooked.lab.virsh(&["start", "writer"]);
    hooked.lab.virsh(&["managedsave", "writer"]);
    assert_eq!(hooked.take("writer"), expected(&START, "saved"));
    hooked.lab.virsh(&["start", "writer"]);
    hooked.lab.virsh(&["destroy", "writer"]);
    let restored = ["restore begin -", START[0], START[1], START[2]];
    assert_eq!(hooked.take("writer"), expected(&restored, "destroyed"));
}

/// The service's intake, with both its sources.
fn with_a_service(hooked: &Hooked, guest: &Guest<'_>) {
    let settings = EventSettings {
        spool: hooked.spool().dir().to_owned(),
        socket: hooked.run_file("events.sock"),
        known: hooked.lab.folder().join("guests.json"),
        look_every: Duration::from_secs(1),
        retry_after: Duration::from_millis(500),
        ..EventSettings::usual(hooked.lab.folder(), virtfold_hooks::HookOwner::System)
    };
    let uri = hooked.lab.uri();
    let connect = move || {
        let uri = LocalUri::parse(&uri).unwrap();
        Ok(Arc::new(Libvirt::open(uri)?) as Arc<dyn Hypervisor>)
    };
    let (events, notices) = EventThread::start(settings, Box::new(connect)).unwrap();
    assert_eq!(reconciled(&notices).1, ReconcileReason::StartUp);
    let virsh = |args: &[&str]| drop(hooked.lab.virsh(args));
    virsh(&["start", "writer"]);
    virsh(&["managedsave", "writer"]);
    virsh(&["start", "writer"]);
    virsh(&["destroy", "writer"]);
    assert_eq!(
        triggers(&notices, 4),
        [GuestEventKind::Started, GuestEventKind::Saved, GuestEventKind::Restored, GuestEventKind::Destroyed]
    );
    // What the other source says of all that is no news: what comes next is the new guest.
    wait_for("the spool is empty", 30, || hooked.spool().read(1).unwrap().events.is_empty());
    let other = hooked.lab.guest(idle("other"));
    assert_eq!(triggers(&notices, 1), [GuestEventKind::Defined]);

    // libvirtd dies and comes back: it tells again, and what happened meanwhile (nobody could tell of a
    // QEMU's end) is found.
    virsh(&["start", "writer", "--paused"]);
    assert_eq!(triggers(&notices, 1), [GuestEventKind::Started]);
    hooked.lab.kill();
    hooked.lab.restart();
    let (found, why) = reconciled(&notices);
    assert_eq!((found.as_slice(), why), (&[][..], ReconcileReason::Reconnected));
    virsh(&["undefine", "other"]);
    virsh(&["destroy", "writer"]);
    assert_eq!(triggers(&notices, 2), [GuestEventKind::Undefined, GuestEventKind::Destroyed]);
    drop((events, other));
    assert!(hooked.take("writer").is_empty());
    assert_eq!(guest.state(), "shut off");
}

fn next(notices: &Notices) -> EventNotice {
    let delivery = notices.recv_timeout(Duration::from_secs(60)).expect("a notice");
    let notice = delivery.notice.clone();
    println!("{notice:?}");
    delivery.done();
    notice
}

/// So many events, in their order; reconciles in between find nothing.
#[track_caller]
fn triggers(notices: &Notices, count: usize) -> Vec<GuestEventKind> {
    let mut seen = Vec::new();
    while seen.len() < count {
        if let EventNotice::Guest(event) = next(notices) {
            seen.push(event.trigger);
        }
    }
    seen
}

/// What comes up to the next reconcile.
fn reconciled(notices: &Notices) -> (Vec<GuestEventKind>, ReconcileReason) {
    let mut seen = Vec::new();
    loop {
        match next(notices) {
            EventNotice::Guest(event) => seen.push(event.trigger),
            EventNotice::Reconcile(reconcile) => return (seen, reconcile.why),
        }
    }
}

/// The disk below the spool is full, to the last byte and the last inode that root may use.
fn full_spool(hooked: &Hooked, guest: &Guest<'_>) {
    let (small, spool) = (hooked.lab.small().join("events"), hooked.spool());
    fs::remove_dir_all(spool.dir()).unwrap();
    fs::create_dir(&small).unwrap();
    std::os::unix::fs::symlink(&small, spool.dir()).unwrap();
    let mut filler = fs::File::create(hooked.lab.small().join("filler")).unwrap();
    let mut piece = 1 << 20;
    while piece > 0 {
        if filler.write_all(&vec![1; piece]).is_err() {
            piece /= 2;
        }
    }
    filler.sync_all().unwrap_or_else(|error| println!("the filler: {error}"));
    hooked.lab.virsh(&["start", "writer", "--paused"]);
    hooked.lab.virsh(&["destroy", "writer"]);
    assert_eq!(guest.state(), "shut off");
    println!("a full disk: {:?} events were lost", spool.take_overflow().unwrap());
    assert!(hooked.take("writer").len() < 5, "the disk was not full");
    fs::remove_file(spool.dir()).unwrap();
    spool.create().unwrap();
}

/// Two hundred other hooks at once, some with broken XML, while a guest starts.
fn storm(hooked: &Hooked) {
    let program = hooked.lab.folder().join("etc/hooks/qemu.d/50-virtfold");
    let call = |number: usize| -> Child {
        let mut command = Command::new(&program);
        command.args([format!("storm{number}").as_str(), "prepare", "begin", "-"]);
        command.env("VIRTFOLD_SPOOL", hooked.spool().dir()).env("VIRTFOLD_GUARDS", hooked.run_file("guards"));
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let xml = ["<domain><name>storm</name></domain>", "<domain", "\u{0}", ""][number % 4];
        child.stdin.take().unwrap().write_all(xml.as_bytes()).unwrap();
        child
    };
    let children: Vec<Child> = (0..200).map(call).collect();
    hooked.lab.virsh(&["start", "writer", "--paused"]);
    hooked.lab.virsh(&["destroy", "writer"]);
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
    let batch = hooked.spool().read(10_000).unwrap();
    assert_eq!((batch.events.len(), batch.quarantined.len()), (205, 0));
    assert_eq!(hooked.take("writer"), expected(&START, "destroyed"));
}

/// Prints the times; only what no busy machine changes is asserted.
fn report(hooked: &Hooked) {
    let steps = hooked.times();
    assert!(steps.len() > 40, "{}", steps.len());
    let with = line("libvirt's step with the hook in it", steps.iter().map(|step| step.with));
    let without = line("the same without", steps.iter().map(|step| step.without));
    // Prepare, start, started.
    let starts = steps.windows(3).filter(|three| three[0].operation == "prepare");
    let share = |step: &super::install::Step| step.with.saturating_sub(step.without);
    line("the hook's share of a guest's start", starts.map(|three| three.iter().map(share).sum()));
    // A few milliseconds are the rule. A machine that is busy with other tests syncs its disk slowly; what
    // must not be is a hook that waits.
    let share = with.saturating_sub(without);
    println!("the hook's own share of a call, by medians: {share:?}");
    assert!(share < Duration::from_millis(500), "{share:?}");
}

fn line(what: &str, times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
    println!("{what}: {} times, median {:?}, p99 {:?}, longest {:?}", times.len(), at(50), at(99), at(100));
    at(50)
}
