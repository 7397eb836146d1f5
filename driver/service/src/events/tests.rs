use std::sync::atomic::{AtomicU32, Ordering};

use crossbeam_channel::RecvTimeoutError;
use tempfile::TempDir;
use virtfold_hooks::event::{Event as HookEvent, EventXml, Hook};
use virtfold_hooks::spool::Limits;

use super::*;
use virtfold_base::error::{Error, ErrorKind};
use virtfold_hypervisor::simulated::{Agent, Fate, Operation, SimSpec, Simulated};
use virtfold_hypervisor::{DomainId, Start};

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
        let vm = world.add(&SimSpec { name: "vm1".to_owned(), disks, agent: Agent::Absent }).unwrap();
        let bench = Self { folder: tempfile::tempdir().unwrap(), world, vm };
        bench.spool().create().unwrap();
        bench
    }

    fn settings(&self) -> Settings {
        let at = |name: &str| self.folder.path().join(name);
        Settings {
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

    fn start(&self) -> (Events, Notices) {
        let world = self.world.clone();
        Events::start(self.settings(), Box::new(move || Ok(Arc::new(world.clone())))).unwrap()
    }

    /// What libvirt's hook would leave.
    fn hook(&self, operation: &str, sub_operation: &str, extra: &str) {
        let xml = format!("<domain><name>vm1</name><uuid>{}</uuid></domain>", self.vm);
        let words = ["vm1", operation, sub_operation, extra].map(ToOwned::to_owned);
        self.spool().put(&HookEvent::now(Hook::Qemu, &words, EventXml::Whole { text: xml })).unwrap();
    }

    fn nudge(&self) {
        virtfold_hooks::nudge::nudge(&self.settings().socket).unwrap();
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
fn next_event(notices: &Notices) -> (Trigger, Source) {
    match next(notices) {
        EventNotice::Guest(event) => {
            assert_eq!(event.domain, "vm1");
            (event.trigger, event.source)
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn next_reconcile(notices: &Notices) -> Why {
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
    assert_eq!(next_reconcile(&notices), Why::StartUp);
    bench.world.start(bench.vm, Start::Running).unwrap();
    assert_eq!(next_event(&notices), (Trigger::Started, Source::Libvirt));
    for step in ["prepare", "start", "started"] {
        bench.hook(step, "begin", "-");
    }
    bench.hook("stopped", "end", "-");
    bench.hook("release", "end", "shutdown");
    bench.nudge();
    assert_eq!(next_event(&notices), (Trigger::Shutdown, Source::Hook));
    // The same end by libvirt is no news; the next start is.
    bench.world.destroy(bench.vm).unwrap();
    bench.world.start(bench.vm, Start::Running).unwrap();
    assert_eq!(next_event(&notices), (Trigger::Started, Source::Libvirt));
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
    assert!(matches!(&delivery.notice, EventNotice::Guest(event) if event.trigger == Trigger::Started));
    // The service ends before it has noted it down: the next one gets it.
    drop(events);
    delivery.done();
    assert_eq!(notices.recv_timeout(LONG).unwrap_err(), RecvTimeoutError::Disconnected);
    assert_eq!(bench.files(), 1);
    assert!(!bench.settings().socket.exists());
    let (_events, notices) = bench.start();
    assert_eq!(next_event(&notices), (Trigger::Started, Source::Hook));
    assert_eq!(next_reconcile(&notices), Why::StartUp);
    assert_eq!(bench.files(), 0);
}

#[test]
fn what_happened_while_nobody_listened_is_found() {
    let bench = Bench::new();
    let (events, notices) = bench.start();
    assert_eq!(next_reconcile(&notices), Why::StartUp);
    bench.world.start(bench.vm, Start::Running).unwrap();
    assert_eq!(next_event(&notices), (Trigger::Started, Source::Libvirt));
    drop(events);
    bench.world.destroy(bench.vm).unwrap();
    let (events, notices) = bench.start();
    assert_eq!(next_event(&notices), (Trigger::Ended, Source::Reconcile));
    assert_eq!(next_reconcile(&notices), Why::StartUp);
    // Nothing is new: the file said so.
    drop(events);
    let (events, notices) = bench.start();
    assert_eq!(next_reconcile(&notices), Why::StartUp);
    events.look();
    assert_eq!(next_reconcile(&notices), Why::Routine);
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
    let (events, notices) = Events::start(bench.settings(), Box::new(connect)).unwrap();
    assert_eq!(next_event(&notices), (Trigger::Crashed, Source::Hook), "the spool needs no libvirtd");
    assert_eq!(next_reconcile(&notices), Why::StartUp);
    let mut kills = 2;
    bench.world.on_point(move |point| match point.operation {
        Operation::Read if kills > 0 => {
            kills -= 1;
            Fate::KillLibvirtd
        }
        _ => Fate::GoOn,
    });
    events.look();
    let why = next_reconcile(&notices);
    assert!(matches!(why, Why::Routine | Why::Reconnected), "{why:?}");
    bench.world.start(bench.vm, Start::Running).unwrap();
    loop {
        match next(&notices) {
            EventNotice::Guest(event) => break assert_eq!(event.trigger, Trigger::Started),
            EventNotice::Reconcile(reconcile) => assert_eq!(reconcile.why, Why::Reconnected),
        }
    }
}

#[test]
fn lost_events_and_a_restarted_libvirtd_ask_for_a_look() {
    let bench = Bench::new();
    let (_events, notices) = bench.start();
    assert_eq!(next_reconcile(&notices), Why::StartUp);
    let full = bench.spool().with_limits(Limits { files: 0, bytes: 0 });
    full.put(&HookEvent::now(Hook::Qemu, &[], EventXml::Absent {})).unwrap();
    bench.nudge();
    assert_eq!(next_reconcile(&notices), Why::Overflow);
    let words = ["-", "start", "-", "start"].map(ToOwned::to_owned);
    bench.spool().put(&HookEvent::now(Hook::Daemon, &words, EventXml::Absent {})).unwrap();
    bench.nudge();
    assert_eq!(next_reconcile(&notices), Why::Reconnected);
}

#[test]
fn a_lost_nudge_costs_time_and_nothing_else() {
    let bench = Bench::new();
    let settings = Settings { look_every: Duration::from_millis(20), ..bench.settings() };
    let world = bench.world.clone();
    let (_events, notices) = Events::start(settings, Box::new(move || Ok(Arc::new(world.clone())))).unwrap();
    assert_eq!(next_reconcile(&notices), Why::StartUp);
    bench.hook("release", "end", "crashed");
    assert_eq!(next_event(&notices), (Trigger::Crashed, Source::Hook));
}

#[test]
fn a_spool_that_is_gone_does_not_make_the_other_source_dumb() {
    let bench = Bench::new();
    let (_events, notices) = bench.start();
    assert_eq!(next_reconcile(&notices), Why::StartUp);
    std::fs::remove_dir(bench.spool().dir()).unwrap();
    bench.nudge();
    bench.world.start(bench.vm, Start::Running).unwrap();
    assert_eq!(next_event(&notices), (Trigger::Started, Source::Libvirt));
    bench.spool().create().unwrap();
    bench.hook("release", "end", "migrated");
    bench.nudge();
    assert_eq!(next_event(&notices), (Trigger::Left, Source::Hook));
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
    assert_eq!(Events::start(bench.settings(), connect).unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(std::fs::read(&path).unwrap(), b"somebody's");
}
