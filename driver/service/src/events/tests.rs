use std::sync::atomic::{AtomicU32, Ordering};

use crossbeam_channel::RecvTimeoutError;
use tempfile::TempDir;
use virtfold_hooks::event::{Event as HookEvent, EventXml, Hook};
use virtfold_hooks::spool::Limits;

use super::*;
use virtfold_base::error::{Error, ErrorKind};
use virtfold_hypervisor::simulated::{Injected, Operation, SimAgent, SimSpec, Simulated};
use virtfold_hypervisor::{DomainId, StartMode};

struct Bench {
    folder: TempDir,
    world: Simulated,
    vm: DomainId,
}

/// How long a test waits for what must come.
const LONG: Duration = Duration::from_secs(60);

impl Bench {
    fn new() -> Self {
        let world = Simulated::new();
        let disks = vec![("vda".to_owned(), PathBuf::from("/images/vm1"))];
        let vm = world.add(&SimSpec { name: "vm1".to_owned(), disks, agent: SimAgent::Absent }).unwrap();
        let bench = Self { folder: tempfile::tempdir().unwrap(), world, vm };
        bench.spool().create().unwrap();
        bench
    }

    fn settings(&self) -> EventSettings {
        let at = |name: &str| self.folder.path().join(name);
        EventSettings {
            spool: at("events"),
            socket: at("run/socket"),
            known: at("guests.json"),
            look_every: LONG,
            reconcile_every: LONG,
            retry_after: Duration::from_millis(50),
        }
    }

    fn spool(&self) -> Spool {
        Spool::at(self.folder.path().join("events"))
    }

    fn start(&self) -> (EventThread, Notices) {
        let world = self.world.clone();
        EventThread::start(self.settings(), Box::new(move || Ok(Arc::new(world.clone())))).unwrap()
    }

    /// What libvirt's hook would leave.
    fn hook(&self, operation: &str, sub_operation: &str, extra: &str) {
        let xml = format!("<domain><name>vm1</name><uuid>{}</uuid></domain>", self.vm);
        let words = ["vm1", operation, sub_operation, extra].map(ToOwned::to_owned);
        self.spool().put(&HookEvent::now(Hook::Qemu, &words, EventXml::Whole { text: xml })).unwrap();
    }

    fn nudge(&self) {
        virtfold_hooks::wake_service::nudge(&self.settings().socket).unwrap();
    }

    fn files(&self) -> usize {
        self.spool().read(100).unwrap().events.len()
    }
}

#[track_caller]
fn next(notices: &Notices) -> EventNotice {
    let delivery = notices.recv_timeout(LONG).unwrap();
    let notice = delivery.notice.clone();
    delivery.done();
    notice
}

#[track_caller]
fn next_event(notices: &Notices) -> (GuestEventKind, EventSource) {
    match next(notices) {
        EventNotice::Guest(event) => {
            assert_eq!(event.domain, "vm1");
            (event.trigger, event.source)
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn next_reconcile(notices: &Notices) -> ReconcileReason {
    match next(notices) {
        EventNotice::Reconcile(reconcile) => {
            assert_eq!(reconcile.domains.len(), 1);
            reconcile.why
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_thing_is_told_once_by_whoever_is_first() {
    let bench = Bench::new();
    let (_events, notices) = bench.start();
    assert_eq!(next_reconcile(&notices), ReconcileReason::StartUp);
    bench.world.start(bench.vm, StartMode::Running).unwrap();
    assert_eq!(next_event(&notices), (GuestEventKind::Started, EventSource::Libvirt));
    for step in ["prepare", "start", "started"] {
        bench.hook(step, "begin", "-");
    }
    bench.hook("stopped", "end", "-");
    bench.hook("release", "end", "shutdown");
    bench.nudge();
    assert_eq!(next_event(&notices), (GuestEventKind::Shutdown, EventSource::Hook));
    // The same end by libvirt is no news; the next start is.
    bench.world.destroy(bench.vm).unwrap();
    bench.world.start(bench.vm, StartMode::Running).unwrap();
    assert_eq!(next_event(&notices), (GuestEventKind::Started, EventSource::Libvirt));
    assert_eq!(bench.files(), 0);
}

#[test]
fn an_event_stays_in_the_spool_until_it_is_done_with() {
    let bench = Bench::new();
    bench.hook("started", "begin", "-");
    let (events, notices) = bench.start();
    let delivery = notices.recv_timeout(LONG).unwrap();
    assert_eq!(bench.files(), 1);
    // The scheduler could not note it down: it comes again.
    drop(delivery);
    let delivery = notices.recv_timeout(LONG).unwrap();
    assert!(
        matches!(&delivery.notice, EventNotice::Guest(event) if event.trigger == GuestEventKind::Started)
    );
    // The service ends before it has noted it down: the next one gets it.
    drop(events);
    delivery.done();
    assert_eq!(notices.recv_timeout(LONG).unwrap_err(), RecvTimeoutError::Disconnected);
    assert_eq!(bench.files(), 1);
    assert!(!bench.settings().socket.exists());
    let (_events, notices) = bench.start();
    assert_eq!(next_event(&notices), (GuestEventKind::Started, EventSource::Hook));
    assert_eq!(next_reconcile(&notices), ReconcileReason::StartUp);
    assert_eq!(bench.files(), 0);
}

#[test]
fn what_happened_while_nobody_listened_is_found() {
    let bench = Bench::new();
    let (events, notices) = bench.start();
    assert_eq!(next_reconcile(&notices), ReconcileReason::StartUp);
    bench.world.start(bench.vm, StartMode::Running).unwrap();
    assert_eq!(next_event(&notices), (GuestEventKind::Started, EventSource::Libvirt));
    drop(events);
    bench.world.destroy(bench.vm).unwrap();
    let (events, notices) = bench.start();
    assert_eq!(next_event(&notices), (GuestEventKind::Ended, EventSource::Reconcile));
    assert_eq!(next_reconcile(&notices), ReconcileReason::StartUp);
    // Nothing is new: the file said so.
    drop(events);
    let (events, notices) = bench.start();
    assert_eq!(next_reconcile(&notices), ReconcileReason::StartUp);
    events.look();
    assert_eq!(next_reconcile(&notices), ReconcileReason::Routine);
}

#[test]
fn a_libvirtd_that_goes_away_is_connected_to_again() {
    let bench = Bench::new();
    let (world, tries) = (bench.world.clone(), AtomicU32::new(0));
    let connect = move || match tries.fetch_add(1, Ordering::SeqCst) {
        0..2 => Err(Error::new(ErrorKind::Refused, "libvirtd is not there")),
        _ => Ok(Arc::new(world.clone()) as Arc<dyn Hypervisor>),
    };
    bench.hook("release", "end", "crashed");
    let (events, notices) = EventThread::start(bench.settings(), Box::new(connect)).unwrap();
    assert_eq!(
        next_event(&notices),
        (GuestEventKind::Crashed, EventSource::Hook),
        "the spool needs no libvirtd"
    );
    assert_eq!(next_reconcile(&notices), ReconcileReason::StartUp);
    let mut kills = 2;
    bench.world.on_point(move |point| match point.operation {
        Operation::Read if kills > 0 => {
            kills -= 1;
            Injected::KillLibvirtd
        }
        _ => Injected::Nothing,
    });
    events.look();
    let why = next_reconcile(&notices);
    assert!(matches!(why, ReconcileReason::Routine | ReconcileReason::Reconnected), "{why:?}");
    bench.world.start(bench.vm, StartMode::Running).unwrap();
    loop {
        match next(&notices) {
            EventNotice::Guest(event) => break assert_eq!(event.trigger, GuestEventKind::Started),
            EventNotice::Reconcile(reconcile) => assert_eq!(reconcile.why, ReconcileReason::Reconnected),
        }
    }
}

#[test]
fn lost_events_and_a_restarted_libvirtd_ask_for_a_look() {
    let bench = Bench::new();
    let (_events, notices) = bench.start();
    assert_eq!(next_reconcile(&notices), ReconcileReason::StartUp);
    let full = bench.spool().with_limits(Limits { files: 0, bytes: 0 });
    full.put(&HookEvent::now(Hook::Qemu, &[], EventXml::Absent {})).unwrap();
    bench.nudge();
    assert_eq!(next_reconcile(&notices), ReconcileReason::Overflow);
    let words = ["-", "start", "-", "start"].map(ToOwned::to_owned);
    bench.spool().put(&HookEvent::now(Hook::Daemon, &words, EventXml::Absent {})).unwrap();
    bench.nudge();
    assert_eq!(next_reconcile(&notices), ReconcileReason::Reconnected);
}

#[test]
fn a_lost_nudge_costs_time_and_nothing_else() {
    let bench = Bench::new();
    let settings = EventSettings { look_every: Duration::from_millis(20), ..bench.settings() };
    let world = bench.world.clone();
    let (_events, notices) =
        EventThread::start(settings, Box::new(move || Ok(Arc::new(world.clone())))).unwrap();
    assert_eq!(next_reconcile(&notices), ReconcileReason::StartUp);
    bench.hook("release", "end", "crashed");
    assert_eq!(next_event(&notices), (GuestEventKind::Crashed, EventSource::Hook));
}

#[test]
fn a_spool_that_is_gone_does_not_make_the_other_source_dumb() {
    let bench = Bench::new();
    let (_events, notices) = bench.start();
    assert_eq!(next_reconcile(&notices), ReconcileReason::StartUp);
    std::fs::remove_dir(bench.spool().dir()).unwrap();
    bench.nudge();
    bench.world.start(bench.vm, StartMode::Running).unwrap();
    assert_eq!(next_event(&notices), (GuestEventKind::Started, EventSource::Libvirt));
    bench.spool().create().unwrap();
    bench.hook("release", "end", "migrated");
    bench.nudge();
    assert_eq!(next_event(&notices), (GuestEventKind::Left, EventSource::Hook));
}

#[test]
fn a_socket_of_another_service_is_left_alone() {
    let bench = Bench::new();
    let (events, _notices) = bench.start();
    let path = bench.settings().socket;
    std::fs::remove_file(&path).unwrap();
    let _theirs = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    drop(events);
    assert!(path.exists());
}

#[test]
fn the_socket_replaces_a_stale_one_and_nothing_else() {
    let bench = Bench::new();
    let path = bench.settings().socket;
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixDatagram::bind(&path).unwrap());
    drop(bench.start());
    std::fs::write(&path, "somebody's").unwrap();
    let world = bench.world.clone();
    let connect: Connect = Box::new(move || Ok(Arc::new(world.clone())));
    assert_eq!(EventThread::start(bench.settings(), connect).unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(std::fs::read(&path).unwrap(), b"somebody's");
}
