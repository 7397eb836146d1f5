//! One suite of assertions that both hypervisors pass: the simulated one must behave as the real one does, or
//! the tests of jobs against it prove nothing.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::lab::{GuestSpec, Lab};
use virtfold::error::ErrorKind;
use virtfold::hypervisor::domain_xml::DomainXml;
use virtfold::hypervisor::domain_xml::edit::Editor;
use virtfold::hypervisor::host_files::{HostFiles, ImageUse, LocalFiles};
use virtfold::hypervisor::libvirt::{Libvirt, LocalUri};
use virtfold::hypervisor::simulated::{
    CallPhase, Injected, InjectionPoint, Operation, SimAgent, SimImage, SimSpec, Simulated,
};
use virtfold::hypervisor::{
    BlockJobEnd, BlockJobStatus, CommitBase, CommitRequest, DomainEvent, DomainId, DomainState, Hypervisor,
    HypervisorError, PausedReason, SnapshotQuiesce, SnapshotRequest, StartMode, XmlView, code, watchdog,
};

/// A hypervisor with one domain that is shut off: disks vda (on a golden image) and vdb, qcow2, no agent
/// channel in use.
struct Subject<'a> {
    hypervisor: &'a dyn Hypervisor,
    files: &'a dyn HostFiles,
    id: DomainId,
    folder: PathBuf,
    golden: PathBuf,
    /// Kills libvirtd and lets it come back.
    restart: &'a dyn Fn(),
}

impl Subject<'_> {
    fn xml(&self, config: XmlView) -> DomainXml {
        DomainXml::parse(self.hypervisor.xml(self.id, config).unwrap()).unwrap()
    }

    /// QEMU's, the live XML's and the configuration's file of a disk.
    fn views(&self, target: &str) -> [PathBuf; 3] {
        let (live, config) = (self.xml(XmlView::Live), self.xml(XmlView::Inactive));
        let alias = live.disk(target).unwrap().alias.clone().unwrap();
        let qemu = self.hypervisor.query_block(self.id).unwrap();
        let of = |xml: &DomainXml| xml.disk(target).unwrap().image.source.path().unwrap().to_owned();
        [qemu.into_iter().find(|q| q.alias == alias).unwrap().file.unwrap(), of(&live), of(&config)]
    }

    fn base(&self, target: &str) -> PathBuf {
        self.folder.join(format!("{target}.qcow2"))
    }

    fn overlay(&self, target: &str) -> PathBuf {
        self.folder.join(format!("{target}.overlay"))
    }

    fn snapshot(&self, targets: &[&str]) -> Result<(), Option<i32>> {
        let overlays: Vec<_> = targets.iter().map(|t| ((*t).to_owned(), self.overlay(t))).collect();
        let all = ["vda".to_owned(), "vdb".to_owned()];
        let request = SnapshotRequest::new(&all, &overlays, SnapshotQuiesce::No).unwrap();
        self.hypervisor.snapshot(self.id, &request).map_err(|e| HypervisorError::code_of(&e))
    }

    fn commit(&self, target: &str, base: CommitBase) -> Result<(), Option<i32>> {
        let request = CommitRequest { target: target.to_owned(), base, bytes_per_second: 0 };
        self.hypervisor.commit(self.id, &request).map_err(|e| HypervisorError::code_of(&e))
    }

    fn end(&self, target: &str, end: BlockJobEnd) -> Result<(), Option<i32>> {
        self.hypervisor.end_block_job(self.id, target, end).map_err(|e| HypervisorError::code_of(&e))
    }

    fn wait_level(&self, target: &str) {
        let until = Instant::now() + Duration::from_secs(30);
        let level = || self.hypervisor.block_job(self.id, target).unwrap().unwrap().is_level();
        while !level() {
            assert!(Instant::now() < until, "the job of {target} does not get level");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Pivots as the state machine does, trying again until the job calls itself ready.
    fn pivot(&self, target: &str) {
        self.hypervisor.suspend(self.id).unwrap();
        self.wait_level(target);
        let until = Instant::now() + Duration::from_secs(10);
        while let Err(fault) = self.end(target, BlockJobEnd::Pivot) {
            assert!(fault == Some(code::BLOCK_COPY_ACTIVE) && Instant::now() < until, "{fault:?}");
        }
        self.hypervisor.resume(self.id).unwrap();
    }

    fn all_at(&self, target: &str, path: &Path) {
        assert_eq!(self.views(target), [path, path, path].map(|p| p.to_path_buf()), "{target}");
    }
}

fn conforms(subject: &Subject<'_>) {
    shut_off(subject);
    subject.hypervisor.start(subject.id, StartMode::Running).unwrap();
    run_states(subject);
    snapshots(subject);
    commits(subject);
    a_libvirtd_that_comes_back(subject);
    a_guest_that_ends(subject);
}

fn shut_off(subject: &Subject<'_>) {
    let hypervisor = subject.hypervisor;
    let info = hypervisor.lookup(&subject.id.to_string()).unwrap();
    assert_eq!((info.id, info.run), (subject.id, DomainState::ShutOff));
    assert_eq!(hypervisor.domains().unwrap(), [info]);
    assert_eq!(hypervisor.lookup("nobody").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(hypervisor.xml(subject.id, XmlView::Live).unwrap_err().kind(), ErrorKind::NotFound);
    let off = Some(code::OPERATION_INVALID);
    assert_eq!(HypervisorError::code_of(&hypervisor.query_block(subject.id).unwrap_err()), off);
    assert_eq!(subject.commit("vda", CommitBase::Shallow), Err(off));
    assert_eq!(HypervisorError::code_of(&hypervisor.destroy(subject.id).unwrap_err()), off);
    let other = "00000000-0000-4000-8000-000000000001";
    let clash = subject.xml(XmlView::Inactive).text().replace(&subject.id.to_string(), other);
    assert_eq!(
        HypervisorError::code_of(&hypervisor.define(&clash).unwrap_err()),
        Some(code::OPERATION_FAILED)
    );
    assert_eq!(hypervisor.define(subject.xml(XmlView::Inactive).text()).unwrap(), subject.id);
    assert_eq!(subject.files.image_use(&subject.base("vda")).unwrap(), ImageUse::Free);
    assert_eq!(subject.files.image_use(&subject.overlay("vda")).unwrap(), ImageUse::Absent);
}

fn run_states(subject: &Subject<'_>) {
    let (hypervisor, id) = (subject.hypervisor, subject.id);
    assert_eq!(hypervisor.domain_state(id).unwrap(), DomainState::Running);
    hypervisor.suspend(id).unwrap();
    assert_eq!(hypervisor.domain_state(id).unwrap(), DomainState::Paused(PausedReason::User));
    watchdog::release(hypervisor, id, watchdog::GuestHold::Paused).unwrap();
    assert_eq!(hypervisor.domain_state(id).unwrap(), DomainState::Running);
    assert_eq!(
        HypervisorError::code_of(&hypervisor.start(id, StartMode::Running).unwrap_err()),
        Some(code::OPERATION_INVALID)
    );
    assert_eq!(subject.files.image_use(&subject.base("vda")).unwrap(), ImageUse::Written);
    assert_eq!(subject.files.image_use(&subject.golden).unwrap(), ImageUse::Read);
    assert_eq!(subject.files.hold(&subject.base("vda")).unwrap_err().kind(), ErrorKind::InUse);
    hypervisor.freeze(id).unwrap_err();
}

fn snapshots(subject: &Subject<'_>) {
    subject.all_at("vda", &subject.base("vda"));
    let live = subject.xml(XmlView::Live);
    let below: Vec<_> =
        live.disk("vda").unwrap().backing.iter().map(|i| i.source.path().unwrap().to_owned()).collect();
    assert!(below.iter().eq([&subject.golden]));
    subject.snapshot(&["vda"]).unwrap();
    subject.all_at("vda", &subject.overlay("vda"));
    subject.all_at("vdb", &subject.base("vdb"));
    assert_eq!(subject.files.image_use(&subject.base("vda")).unwrap(), ImageUse::Read);
    assert_eq!(subject.files.image_use(&subject.overlay("vda")).unwrap(), ImageUse::Written);
    // The overlay's path is taken; nothing happens to either disk.
    assert_eq!(subject.snapshot(&["vda", "vdb"]), Err(Some(code::CONFIG_UNSUPPORTED)));
    subject.all_at("vdb", &subject.base("vdb"));
    assert_eq!(subject.files.image_use(&subject.overlay("vdb")).unwrap(), ImageUse::Absent);
    subject.snapshot(&["vdb"]).unwrap();
}

fn commits(subject: &Subject<'_>) {
    let events = subject.hypervisor.subscribe().unwrap();
    assert_eq!(subject.hypervisor.block_job(subject.id, "vda").unwrap(), None);
    subject.end("vda", BlockJobEnd::Pivot).unwrap_err();
    // Whoever reads the base keeps committers out of it, and the guest goes on in the overlay.
    let hold = subject.files.hold(&subject.base("vda")).unwrap();
    subject.commit("vda", CommitBase::Shallow).unwrap_err();
    assert_eq!(subject.hypervisor.block_job(subject.id, "vda").unwrap(), None);
    drop(hold);
    subject.commit("vda", CommitBase::Shallow).unwrap();
    assert_eq!(subject.commit("vda", CommitBase::Shallow), Err(Some(code::BLOCK_COPY_ACTIVE)));
    assert_eq!(subject.snapshot(&["vda"]), Err(Some(code::BLOCK_COPY_ACTIVE)));
    subject.wait_level("vda");
    assert!(subject.xml(XmlView::Live).disk("vda").unwrap().mirror.is_some());
    let ready = |e: &DomainEvent| matches!(e, DomainEvent::BlockJob { target, status: BlockJobStatus::Ready, .. } if target == "vda");
    let until = Instant::now() + Duration::from_secs(10);
    while !events.try_iter().any(|e| ready(&e)) {
        assert!(Instant::now() < until, "no event");
        subject.hypervisor.block_job(subject.id, "vda").unwrap();
    }
    subject.end("vda", BlockJobEnd::Abort).unwrap();
    subject.all_at("vda", &subject.overlay("vda"));
    assert!(subject.xml(XmlView::Live).disk("vda").unwrap().mirror.is_none());
    subject.commit("vda", CommitBase::Explicit(subject.base("vda"))).unwrap();
    subject.pivot("vda");
    subject.all_at("vda", &subject.base("vda"));
    assert_eq!(subject.files.image_use(&subject.overlay("vda")).unwrap(), ImageUse::Free);
    assert_eq!(subject.files.image_use(&subject.golden).unwrap(), ImageUse::Read);
    subject.files.remove(&subject.overlay("vda")).unwrap();
    assert_eq!(subject.files.remove(&subject.overlay("vdb")).unwrap_err().kind(), ErrorKind::InUse);
}

fn a_libvirtd_that_comes_back(subject: &Subject<'_>) {
    (subject.restart)();
    assert_eq!(subject.hypervisor.domain_state(subject.id).unwrap(), DomainState::Running);
    subject.all_at("vdb", &subject.overlay("vdb"));
    subject.commit("vdb", CommitBase::Shallow).unwrap();
    subject.wait_level("vdb");
    (subject.restart)();
    subject.wait_level("vdb");
    subject.pivot("vdb");
    subject.all_at("vdb", &subject.base("vdb"));
    subject.files.remove(&subject.overlay("vdb")).unwrap();
}

fn a_guest_that_ends(subject: &Subject<'_>) {
    subject.snapshot(&["vda", "vdb"]).unwrap();
    subject.commit("vda", CommitBase::Shallow).unwrap();
    subject.hypervisor.destroy(subject.id).unwrap();
    // The configuration stays on the overlay, which holds what the base has not.
    let config = subject.xml(XmlView::Inactive);
    assert_eq!(config.disk("vda").unwrap().image.source.path(), Some(subject.overlay("vda").as_path()));
    assert_eq!(subject.files.image_use(&subject.overlay("vda")).unwrap(), ImageUse::Free);
    // Whoever reads the base of a guest that is off does not keep it from running on its overlay, only off
    // the base itself.
    let hold = subject.files.hold(&subject.base("vdb")).unwrap();
    subject.hypervisor.start(subject.id, StartMode::Running).unwrap();
    subject.all_at("vda", &subject.overlay("vda"));
    subject.hypervisor.destroy(subject.id).unwrap();
    // The configuration describes the chain, too; naming the base alone would give it itself as its backing.
    let mut edit = Editor::new(&config).unwrap();
    edit.pop_image("vda").unwrap().pop_image("vdb").unwrap();
    subject.hypervisor.define(edit.finish().unwrap().text()).unwrap();
    let refused = subject.hypervisor.start(subject.id, StartMode::Running).unwrap_err();
    assert!(format!("{refused:?}").contains("Failed to get \"write\" lock"), "{refused:?}");
    drop(hold);
    subject.hypervisor.start(subject.id, StartMode::Running).unwrap();
    subject.hypervisor.destroy(subject.id).unwrap();
}

#[test]
fn the_simulated_one_conforms() {
    let world = Simulated::new();
    let (folder, golden) = (PathBuf::from("/images"), PathBuf::from("/golden.qcow2"));
    let made = |backing| SimImage { format: "qcow2".to_owned(), backing, ..SimImage::default() };
    world.put_image(&golden, made(None));
    world.put_image(&folder.join("vda.qcow2"), made(Some(golden.clone())));
    let disks = ["vda", "vdb"].map(|t| (t.to_owned(), folder.join(format!("{t}.qcow2")))).to_vec();
    let id = world.add(&SimSpec { name: "guest".to_owned(), disks, agent: SimAgent::Absent }).unwrap();
    let restart = || {
        let mut once = true;
        world.on_point(move |point| {
            let now =
                once && point == (InjectionPoint { operation: Operation::Read, when: CallPhase::Before });
            once &= !now;
            if now { Injected::KillLibvirtd } else { Injected::Nothing }
        });
        world.domains().unwrap_err();
    };
    conforms(&Subject { hypervisor: &world, files: &world, id, folder, golden, restart: &restart });
}

#[test]
fn the_real_one_conforms() {
    let lab = Lab::start();
    let golden = lab.folder().join("golden.qcow2");
    crate::lab::run(
        std::process::Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&golden).arg("192M"),
    );
    let spec =
        GuestSpec { disks: vec!["qcow2", "qcow2"], golden: Some(golden.clone()), ..GuestSpec::default() };
    let guest = lab.guest(spec);
    let libvirt = Libvirt::open(LocalUri::parse(&lab.uri()).unwrap()).unwrap();
    let id = libvirt.lookup(guest.name()).unwrap().id;
    let restart = || {
        lab.kill();
        lab.restart();
    };
    let folder = guest.folder.clone();
    conforms(&Subject { hypervisor: &libvirt, files: &LocalFiles, id, folder, golden, restart: &restart });
}
