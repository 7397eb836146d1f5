//! What crashes leave behind, and that nothing is ever lost when the right thing is done afterwards.

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::Hypervisor;
use crate::domain_xml::DomainXml;
use crate::host_files::{HostFiles, ImageUse};
use crate::types::{
    BlockJobEnd, BlockJobStatus, CommitBase, CommitRequest, DomainEvent, DomainState, SnapshotQuiesce,
    SnapshotRequest, StartMode, XmlView,
};

const BASES: [&str; 2] = ["/a.qcow2", "/b.qcow2"];
const OVERLAYS: [&str; 2] = ["/a.o", "/b.o"];
const TARGETS: [&str; 2] = ["vda", "vdb"];

fn paths(list: [&str; 2]) -> Vec<PathBuf> {
    list.iter().map(PathBuf::from).collect()
}

fn running() -> (Simulated, DomainId) {
    let world = Simulated::new();
    let disks = TARGETS.iter().zip(paths(BASES)).map(|(t, p)| ((*t).to_owned(), p)).collect();
    let id = world.add(&SimSpec { name: "g".into(), disks, agent: SimAgent::Answers }).unwrap();
    world.start(id, StartMode::Running).unwrap();
    (world, id)
}

fn request(quiesce: SnapshotQuiesce) -> SnapshotRequest {
    let all = TARGETS.map(str::to_owned);
    let overlays: Vec<_> = all.iter().cloned().zip(paths(OVERLAYS)).collect();
    SnapshotRequest::new(&all, &overlays, quiesce).unwrap()
}

fn is_prefix(holds: &BTreeSet<u64>) -> bool {
    holds.iter().copied().eq(0..holds.len() as u64)
}

fn fail_at(world: &Simulated, operation: Operation, when: CallPhase, fate: Injected) {
    world.on_point(move |p| if p == (InjectionPoint { operation, when }) { fate } else { Injected::Nothing });
}

/// `(QEMU, live XML, configuration)` of the first disk.
fn first_disk(world: &Simulated, id: DomainId) -> [PathBuf; 3] {
    let of = |config| {
        let xml = DomainXml::parse(world.xml(id, config).unwrap()).unwrap();
        xml.disk("vda").unwrap().image.source.path().unwrap().to_owned()
    };
    let qemu = world.query_block(id).unwrap()[0].file.clone().unwrap();
    [qemu, of(XmlView::Live), of(XmlView::Inactive)]
}

fn commit_all(world: &Simulated, id: DomainId) {
    for target in TARGETS {
        let request = CommitRequest { target: target.into(), base: CommitBase::Shallow, bytes_per_second: 0 };
        world.commit(id, &request).unwrap();
    }
    world.suspend(id).unwrap();
    for target in TARGETS {
        while !world.block_job(id, target).unwrap().unwrap().is_level() {}
    }
}

#[test]
fn a_whole_round_loses_nothing() {
    let (world, id) = running();
    let events = world.subscribe().unwrap();
    world.domains().unwrap();
    world.snapshot(id, &request(SnapshotQuiesce::No)).unwrap();
    let frozen = world.holds(&paths(BASES));
    assert!(is_prefix(&frozen) && !frozen.is_empty());
    world.domains().unwrap();
    assert_eq!(world.holds(&paths(BASES)), frozen);
    assert_eq!(world.image_use(Path::new("/a.qcow2")).unwrap(), ImageUse::Read);
    let hold = world.hold(Path::new("/a.qcow2")).unwrap();
    let commit = CommitRequest { target: "vda".into(), base: CommitBase::Shallow, bytes_per_second: 0 };
    assert!(world.commit(id, &commit).is_err(), "the hold keeps committers out");
    drop(hold);
    commit_all(&world, id);
    for target in TARGETS {
        world.end_block_job(id, target, BlockJobEnd::Pivot).unwrap();
    }
    world.resume(id).unwrap();
    assert_eq!(first_disk(&world, id), [BASES[0]; 3].map(PathBuf::from));
    for overlay in paths(OVERLAYS) {
        world.remove(&overlay).unwrap();
    }
    world.domains().unwrap();
    let holds = world.holds(&paths(BASES));
    assert!(is_prefix(&holds) && holds.len() as u64 == world.written(id));
    let ready = events
        .try_iter()
        .filter(|e| matches!(e, DomainEvent::BlockJob { status: BlockJobStatus::Ready, .. }));
    assert_eq!(ready.count(), 2);
}

#[test]
fn libvirtds_death_in_a_snapshot_tears_the_descriptions_apart() {
    let (world, id) = running();
    fail_at(&world, Operation::Snapshot, CallPhase::Late, Injected::KillLibvirtd);
    let error = world.snapshot(id, &request(SnapshotQuiesce::No)).unwrap_err();
    assert!(HypervisorError::lost(&error));
    assert_eq!(first_disk(&world, id), [OVERLAYS[0], OVERLAYS[0], BASES[0]].map(PathBuf::from));
    let (world, id) = running();
    fail_at(&world, Operation::Snapshot, CallPhase::Half, Injected::KillLibvirtd);
    world.snapshot(id, &request(SnapshotQuiesce::ByAgent)).unwrap_err();
    assert_eq!(first_disk(&world, id), [BASES[0]; 3].map(PathBuf::from));
    assert_eq!(world.image_use(Path::new(OVERLAYS[0])).unwrap(), ImageUse::Written);
    world.close_unused(id, Path::new(OVERLAYS[0])).unwrap();
    assert_eq!(world.image_use(Path::new(OVERLAYS[0])).unwrap(), ImageUse::Free);
    assert!(world.is_frozen(id));
    assert_eq!(world.thaw(id).unwrap(), 2);
}

#[test]
fn libvirtds_death_in_a_pivot_leaves_a_stuck_mirror() {
    let (world, id) = running();
    world.snapshot(id, &request(SnapshotQuiesce::No)).unwrap();
    commit_all(&world, id);
    fail_at(&world, Operation::Pivot, CallPhase::Late, Injected::KillLibvirtd);
    world.end_block_job(id, "vda", BlockJobEnd::Pivot).unwrap_err();
    world.revive();
    assert_eq!(first_disk(&world, id), [BASES[0], OVERLAYS[0], OVERLAYS[0]].map(PathBuf::from));
    let live = DomainXml::parse(world.xml(id, XmlView::Live).unwrap()).unwrap();
    assert_eq!(live.disk("vda").unwrap().mirror.as_ref().unwrap().ready.as_deref(), Some("pivot"));
    assert_eq!(world.block_job(id, "vda").unwrap(), None);
    let code_of = |r: Result<()>| HypervisorError::code_of(&r.unwrap_err());
    assert_eq!(code_of(world.end_block_job(id, "vda", BlockJobEnd::Abort)), Some(code::BLOCK_COPY_ACTIVE));
    let again = CommitRequest { target: "vda".into(), base: CommitBase::Shallow, bytes_per_second: 0 };
    assert_eq!(code_of(world.commit(id, &again)), Some(code::BLOCK_COPY_ACTIVE));
    assert_eq!(code_of(world.snapshot(id, &request(SnapshotQuiesce::No))), Some(code::BLOCK_COPY_ACTIVE));
    // The next boot is right once the configuration is.
    world.end_block_job(id, "vdb", BlockJobEnd::Pivot).unwrap();
    world.resume(id).unwrap();
    world.define(&world.xml(id, XmlView::Inactive).unwrap().replace("/a.o", "/a.qcow2")).unwrap();
    world.domains().unwrap();
    world.destroy(id).unwrap();
    world.start(id, StartMode::Running).unwrap();
    let holds = world.holds(&paths(BASES));
    assert!(is_prefix(&holds) && holds.len() as u64 == world.written(id));
}

#[test]
fn a_dead_driver_changes_nothing_and_libvirtd_finishes() {
    let (world, id) = running();
    fail_at(&world, Operation::Snapshot, CallPhase::Half, Injected::KillDriver);
    assert_eq!(world.snapshot(id, &request(SnapshotQuiesce::No)).unwrap_err().kind(), ErrorKind::Interrupted);
    assert!(world.is_dead());
    world.resume(id).unwrap_err();
    world.remove(Path::new(OVERLAYS[0])).unwrap_err();
    world.revive();
    assert_eq!(first_disk(&world, id), [OVERLAYS[0]; 3].map(PathBuf::from));
}

#[test]
fn a_guests_end_keeps_its_configuration_or_takes_it_along() {
    let (world, id) = running();
    world.snapshot(id, &request(SnapshotQuiesce::No)).unwrap();
    fail_at(&world, Operation::Read, CallPhase::After, Injected::KillGuests);
    world.domains().unwrap();
    world.revive();
    assert_eq!(world.domain_state(id).unwrap(), DomainState::ShutOff);
    assert!(world.xml(id, XmlView::Inactive).unwrap().contains("/a.o"));
    let commit = CommitRequest { target: "vda".into(), base: CommitBase::Shallow, bytes_per_second: 0 };
    assert_eq!(
        HypervisorError::code_of(&world.commit(id, &commit).unwrap_err()),
        Some(code::OPERATION_INVALID)
    );
    let holds = world.holds(&paths(OVERLAYS));
    assert!(is_prefix(&holds) && holds.len() as u64 == world.written(id));
    world.start(id, StartMode::Running).unwrap();
    world.make_transient(id);
    world.destroy(id).unwrap();
    assert_eq!(world.domain_state(id).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(world.images().len(), 4);
}

#[test]
fn agents_answer_hang_or_are_not_there() {
    let (world, id) = running();
    let code_of = |r: Result<u32>| HypervisorError::code_of(&r.unwrap_err());
    assert_eq!(world.freeze(id).unwrap(), 2);
    let written = world.written(id);
    world.domains().unwrap();
    assert_eq!(world.written(id), written);
    assert_eq!(world.thaw(id).unwrap(), 2);
    world.set_agent(id, SimAgent::Hangs);
    assert_eq!(code_of(world.freeze(id)), Some(code::INTERNAL));
    world.set_agent_time_limit(id, Duration::from_secs(1)).unwrap();
    assert_eq!(code_of(world.freeze(id)), Some(code::AGENT_COMMAND_TIMEOUT));
    world.set_agent(id, SimAgent::Absent);
    assert_eq!(code_of(world.freeze(id)), Some(code::AGENT_UNRESPONSIVE));
}
