//! What people, guests and hosts do in between, one case each.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::*;
use super::scene::{PLAIN, Scene, Setup};
use crate::RunMode;
use virtfold_base::error::{Error, ErrorKind, sentence};
use virtfold_catalog::{Catalog, SessionState};
use virtfold_hypervisor::simulated::{
    CallPhase, Injected, InjectionPoint, Operation, SimAgent, SimImage, SimSpace, SimSpec, ThirdPartyAction,
};
use virtfold_hypervisor::{CommitBase, CommitRequest, DomainState, Persistence, StartMode};

pub(super) const THREE: Setup = Setup { disks: 3, ..PLAIN };

/// A backup whose driver dies right before the `nth` call of an operation.
pub(super) fn dies_at(setup: Setup, operation: Operation, nth: usize) -> Scene {
    let scene = Scene::new(setup);
    let mut count = 0;
    scene.world.on_point(move |point| {
        count += usize::from(point == InjectionPoint { operation, when: CallPhase::Before });
        if count == nth { Injected::KillDriver } else { Injected::Nothing }
    });
    scene.backup().unwrap_err();
    scene.revive();
    scene
}

/// A backup during whose copy something happens.
pub(super) fn meanwhile(scene: &Scene, event: impl FnOnce(&Scene)) -> Result<Unfrozen<()>> {
    with_frozen_disks(&scene.host(), &scene.request(), &Control::default(), |_| {
        event(scene);
        Ok(())
    })
}

pub(super) fn only(mut recoveries: Vec<Recovery>) -> Recovery {
    assert_eq!(recoveries.len(), 1, "{recoveries:#?}");
    recoveries.remove(0)
}

pub(super) fn remains(recovery: &Recovery) -> String {
    recovery.disks.iter().flat_map(|disk| disk.remains.clone()).collect::<Vec<_>>().join("; ")
}

#[test]
fn a_backup_says_how_it_went() {
    let scene = Scene::new(Setup { agent: SimAgent::Answers, ..THREE });
    let thawed = scene.backup().unwrap();
    assert!(!thawed.value.is_empty());
    assert!(thawed.report.quiesced && thawed.report.frozen_ms.is_some() && thawed.report.pause_ms.is_some());
    assert_eq!(thawed.report.warnings, Vec::<String>::new());
    scene.is_home(Some(DomainState::Running)).unwrap();
    assert_eq!(scene.journal.entries().closed.len(), 1);
    let scene = Scene::new(Setup { agent: SimAgent::Hangs, ..PLAIN });
    let thawed = scene.backup().unwrap();
    assert!(!thawed.report.quiesced && thawed.report.frozen_ms.is_none());
    assert!(thawed.report.warnings[0].contains("crash-consistent"), "{:?}", thawed.report);
    let request = FreezeRequest { quiesce: AgentFreeze::Require(Duration::from_secs(1)), ..scene.request() };
    let refused = with_frozen_disks(&scene.host(), &request, &Control::default(), |_| Ok(())).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    scene.is_home(Some(DomainState::Running)).unwrap();
}

#[test]
fn a_guest_that_stands_is_left_standing() {
    let scene = Scene::new(Setup { start: StartMode::Paused, ..THREE });
    let points = scene.points(|scene| drop(scene.backup().unwrap()));
    let touched = |p: &InjectionPoint| matches!(p.operation, Operation::Suspend | Operation::Resume);
    assert!(!points.iter().any(touched));
    scene.is_home(Some(scene.expected())).unwrap();
}

#[test]
fn a_copy_that_fails_leaves_no_trace() {
    let scene = Scene::new(THREE);
    let error = with_frozen_disks(&scene.host(), &scene.request(), &Control::default(), |_| {
        Err::<(), _>(Error::new(ErrorKind::NoSpace, "the medium is full"))
    });
    assert_eq!(error.unwrap_err().to_string(), "the medium is full");
    scene.is_home(Some(DomainState::Running)).unwrap();
}

#[test]
fn a_backup_gives_way_when_room_gets_short() {
    let scene = Scene::new(PLAIN);
    let mut host = scene.host();
    host.pace.watch = Duration::from_millis(1);
    let error = with_frozen_disks(&host, &scene.request(), &Control::default(), |frozen| {
        scene.world.set_free(1000);
        while !frozen.control.cancel.load(std::sync::atomic::Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Err::<(), _>(Error::new(ErrorKind::Interrupted, "cancelled"))
    });
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains("was aborted") && error.hint().is_some(), "{error:?}");
    scene.is_home(Some(DomainState::Running)).unwrap();
}

#[test]
fn a_persons_cancel_reaches_the_copy() {
    let scene = Scene::new(PLAIN);
    let control = Control::default();
    let error = with_frozen_disks(&scene.host(), &scene.request(), &control, |frozen| {
        control.cancel.store(true, std::sync::atomic::Ordering::Relaxed);
        while !frozen.control.cancel.load(std::sync::atomic::Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Err::<(), _>(Error::new(ErrorKind::Interrupted, "cancelled"))
    });
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Interrupted);
    scene.is_home(Some(DomainState::Running)).unwrap();
}

#[test]
fn a_guest_stopped_by_a_full_overlay_goes_on() {
    let scene = Scene::new(THREE);
    meanwhile(&scene, |scene| {
        scene.world.set_room(Path::new("/overlays"), SimSpace::None);
        scene.world.domains().unwrap();
        assert_eq!(
            scene.world.domain_state(scene.id).unwrap(),
            DomainState::Paused(virtfold_hypervisor::PausedReason::IoError)
        );
    })
    .unwrap();
    scene.is_home(Some(DomainState::Running)).unwrap();
}

#[test]
fn a_full_base_keeps_the_guest_on_its_overlay_until_there_is_room() {
    let scene = Scene::new(PLAIN);
    let full = |scene: &Scene| scene.world.set_room(Path::new("/images"), SimSpace::None);
    let error = meanwhile(&scene, |scene| {
        scene.world.domains().unwrap();
        full(scene);
    });
    let error = error.unwrap_err();
    let text = sentence(&error);
    assert!(
        text.contains("the copy is complete") && text.contains("/overlays/0.qcow2.virtfold-00000007.overlay"),
        "{text}"
    );
    assert!(error.hint().unwrap().contains("virtfold recover g"), "{error:?}");
    scene.nothing_lost().unwrap();
    scene.lives(Some(DomainState::Running)).unwrap();
    assert_eq!(only(scene.recover()).verdict, RecoveryStatus::Failed);
    scene.nothing_lost().unwrap();
    // The next backup of the domain does not begin over it.
    assert_eq!(scene.backup().unwrap_err().kind(), ErrorKind::InUse);
    scene.world.set_room(Path::new("/images"), SimSpace::Enough);
    assert_eq!(only(scene.recover()).verdict, RecoveryStatus::Recovered);
    scene.is_home(Some(DomainState::Running)).unwrap();
}

#[test]
fn a_guest_that_outruns_the_commit_is_brought_home_in_the_pause() {
    let scene = Scene::new(THREE);
    scene.world.set_pace(scene.id, 60);
    scene.backup().unwrap();
    scene.is_home(Some(DomainState::Running)).unwrap();
}

#[test]
fn guests_that_end_come_home_at_rest() {
    for event in [ThirdPartyAction::ShutDown, ThirdPartyAction::KillGuests, ThirdPartyAction::Save] {
        for setup in [PLAIN, THREE] {
            let scene = Scene::new(setup);
            meanwhile(&scene, |scene| scene.world.happens(event)).unwrap();
            scene.is_home(Some(DomainState::ShutOff)).unwrap();
            scene.world.happens(ThirdPartyAction::Start);
            scene.world.domains().unwrap();
            scene.is_home(Some(DomainState::Running)).unwrap();
        }
    }
}

#[test]
fn a_guest_that_was_restarted_on_its_overlay_comes_home_live() {
    let scene = Scene::new(THREE);
    meanwhile(&scene, |scene| {
        scene.world.happens(ThirdPartyAction::ShutDown);
        scene.world.happens(ThirdPartyAction::Start);
        scene.world.domains().unwrap();
    })
    .unwrap();
    scene.is_home(Some(DomainState::Running)).unwrap();
}

#[test]
fn a_transient_domain_that_is_gone_comes_home_by_the_journal_alone() {
    for operation in [Operation::Hold, Operation::Commit, Operation::Suspend, Operation::Pivot] {
        let scene = dies_at(Setup { persistence: Persistence::Transient, ..THREE }, operation, 1);
        scene.world.happens(ThirdPartyAction::ShutDown);
        assert_eq!(scene.world.tops(scene.id), Vec::<PathBuf>::new());
        let recovery = only(scene.recover());
        assert_eq!(recovery.verdict, RecoveryStatus::Recovered, "{operation:?}: {recovery:#?}");
        scene.is_home(None).unwrap();
    }
}

#[test]
fn a_persons_snapshot_on_top_is_left_alone_until_it_is_merged() {
    let scene = Scene::new(THREE);
    let error = meanwhile(&scene, |scene| scene.world.happens(ThirdPartyAction::Snapshot)).unwrap_err();
    assert!(sentence(&error).contains("snapshot"), "{error:?}");
    scene.lives(Some(DomainState::Running)).unwrap();
    scene.nothing_lost().unwrap();
    for run in [DomainState::Running, DomainState::ShutOff] {
        let recovery = only(scene.recover());
        assert_eq!(recovery.verdict, RecoveryStatus::Undecided);
        assert!(remains(&recovery).contains("merge the snapshot"), "{recovery:#?}");
        scene.nothing_lost().unwrap();
        if run == DomainState::Running {
            scene.world.happens(ThirdPartyAction::ShutDown);
        }
    }
    scene.world.happens(ThirdPartyAction::Start);
    // The person merges.
    let request = CommitRequest { target: "vda".to_owned(), base: CommitBase::Shallow, bytes_per_second: 0 };
    scene.world.commit(scene.id, &request).unwrap();
    scene.world.suspend(scene.id).unwrap();
    while !scene.world.block_job(scene.id, "vda").unwrap().unwrap().is_level() {}
    scene.world.end_block_job(scene.id, "vda", virtfold_hypervisor::BlockJobEnd::Pivot).unwrap();
    scene.world.resume(scene.id).unwrap();
    let user = PathBuf::from("/overlays/0.qcow2.virtfold-00000007.overlay.user");
    scene.world.remove(&user).unwrap();
    assert_eq!(only(scene.recover()).verdict, RecoveryStatus::Recovered);
    scene.is_home(Some(DomainState::Running)).unwrap();
}

#[test]
fn a_configuration_that_was_set_back_is_set_right_at_once() {
    let scene = Scene::new(THREE);
    meanwhile(&scene, |scene| scene.world.happens(ThirdPartyAction::Redefine)).unwrap();
    scene.is_home(Some(DomainState::Running)).unwrap();
    // Redefined, and ended before anybody looked: the base is as it was frozen, so the overlay is the truth.
    let scene = Scene::new(THREE);
    meanwhile(&scene, |scene| {
        scene.world.domains().unwrap();
        scene.world.happens(ThirdPartyAction::Redefine);
        scene.world.happens(ThirdPartyAction::ShutDown);
    })
    .unwrap();
    scene.is_home(Some(DomainState::ShutOff)).unwrap();
}

#[test]
fn a_guest_that_ran_on_the_base_meanwhile_has_its_overlay_put_aside() {
    let scene = dies_at(PLAIN, Operation::Commit, 1);
    scene.world.happens(ThirdPartyAction::Redefine);
    scene.world.happens(ThirdPartyAction::ShutDown);
    scene.world.happens(ThirdPartyAction::Start);
    for _ in 0..100 {
        scene.world.domains().unwrap();
    }
    let recovery = only(scene.recover());
    assert_eq!(recovery.verdict, RecoveryStatus::NeedsAttention);
    assert!(remains(&recovery).contains(".quarantined"), "{recovery:#?}");
    scene.lives(Some(DomainState::Running)).unwrap();
    assert_eq!(scene.leftovers(), [PathBuf::from("/overlays/0.qcow2.virtfold-00000007.overlay.quarantined")]);
    // What the guest had written before is in the one or the other.
    let mut all = scene.bases();
    all.extend(scene.leftovers());
    let holds = scene.world.holds(&all);
    assert!((0..scene.world.written(scene.id)).all(|n| holds.contains(&n)));
}

#[test]
fn a_base_that_was_used_after_a_commit_began_is_for_a_person_to_decide() {
    let scene = dies_at(PLAIN, Operation::Suspend, 1);
    scene.world.happens(ThirdPartyAction::Redefine);
    scene.world.happens(ThirdPartyAction::ShutDown);
    scene.world.happens(ThirdPartyAction::Start);
    for _ in 0..100 {
        scene.world.domains().unwrap();
    }
    scene.world.happens(ThirdPartyAction::ShutDown);
    let before = scene.world.images();
    for _ in 0..2 {
        let recovery = only(scene.recover());
        assert_eq!(recovery.verdict, RecoveryStatus::Undecided);
        assert!(remains(&recovery).contains("move the overlay away"), "{recovery:#?}");
        assert_eq!(scene.world.images(), before);
    }
    // The person keeps the base and moves the overlay away.
    scene.world.quarantine(&scene.overlays()[0]).unwrap();
    assert_eq!(only(scene.recover()).verdict, RecoveryStatus::Recovered);
    assert_eq!(scene.journal.open_sessions(None).unwrap(), []);
}

#[test]
fn a_guest_that_went_to_another_host_is_not_touched() {
    let scene = dies_at(THREE, Operation::Commit, 1);
    scene.world.happens(ThirdPartyAction::MigrateAway);
    let before = scene.world.images();
    let recovery = only(scene.recover());
    assert_eq!(recovery.verdict, RecoveryStatus::Undecided);
    assert!(remains(&recovery).contains("another host"), "{recovery:#?}");
    assert_eq!(scene.world.images(), before);
}

#[test]
fn a_domain_undefined_meanwhile_comes_home() {
    let scene = dies_at(PLAIN, Operation::Commit, 1);
    scene.world.happens(ThirdPartyAction::Undefine);
    assert_eq!(only(scene.recover()).verdict, RecoveryStatus::Recovered);
    scene.is_home(Some(DomainState::Running)).unwrap();
    let scene = dies_at(PLAIN, Operation::Commit, 1);
    scene.world.happens(ThirdPartyAction::ShutDown);
    scene.world.happens(ThirdPartyAction::Undefine);
    assert_eq!(only(scene.recover()).verdict, RecoveryStatus::Recovered);
    scene.is_home(None).unwrap();
}

#[test]
fn a_deleted_guest_leaves_its_overlay_for_a_person() {
    let scene = dies_at(PLAIN, Operation::Commit, 1);
    scene.world.happens(ThirdPartyAction::ShutDown);
    scene.world.happens(ThirdPartyAction::Undefine);
    scene.world.remove(&scene.bases()[0]).unwrap();
    let recovery = only(scene.recover());
    assert_eq!(recovery.verdict, RecoveryStatus::Undecided);
    assert!(remains(&recovery).contains("is missing"), "{recovery:#?}");
    scene.world.remove(&scene.overlays()[0]).unwrap();
    assert_eq!(only(scene.recover()).verdict, RecoveryStatus::Recovered);
}

#[test]
fn an_overlay_that_no_journal_knows_is_taken_on() {
    for off in [false, true] {
        let mut scene = dies_at(THREE, Operation::Commit, 1);
        scene.forget();
        if off {
            scene.world.happens(ThirdPartyAction::ShutDown);
        }
        let recovery = only(scene.recover());
        assert_eq!(recovery.verdict, RecoveryStatus::Recovered, "{recovery:#?}");
        assert!(recovery.found[0].contains("the journal does not know"), "{recovery:#?}");
        scene.is_home(Some(if off { DomainState::ShutOff } else { DomainState::Running })).unwrap();
    }
}

#[test]
fn an_overlay_in_no_chain_that_no_journal_knows_is_put_aside() {
    let scene = Scene::new(PLAIN);
    let stray = overlay_in_images();
    // Another host's, on shared storage: its guest is shut off just now.
    let image = scene.world.image(&scene.bases()[0]).unwrap();
    let elsewhere = PathBuf::from("/images/elsewhere.qcow2");
    scene.world.put_image(&elsewhere, image.clone());
    scene.world.put_image(&stray, SimImage { backing: Some(elsewhere.clone()), ..image.clone() });
    let recovery = only(scene.recover());
    assert_eq!((recovery.verdict, recovery.done.len()), (RecoveryStatus::OverlayPending, 0));
    assert!(scene.world.image(&stray).is_some());
    scene.world.remove(&elsewhere).unwrap();
    scene.world.put_image(&stray, SimImage { backing: Some(scene.bases()[0].clone()), ..image });
    let planned = only(recover(&scene.host(), RecoverScope::All, RunMode::DryRun).unwrap());
    assert_eq!(planned.verdict, RecoveryStatus::Planned);
    assert!(scene.world.image(&stray).is_some());
    let recovery = only(scene.recover());
    assert_eq!((recovery.verdict, &recovery.done), (RecoveryStatus::NeedsAttention, &planned.done));
    assert_eq!(scene.leftovers(), [PathBuf::from("/images/x.virtfold-0000abcd.overlay.quarantined")]);
}

fn overlay_in_images() -> PathBuf {
    PathBuf::from("/images/x.virtfold-0000abcd.overlay")
}

#[test]
fn a_guest_whose_driver_and_guard_are_dead_is_let_go_by_the_recovery() {
    for (operation, agent) in [(Operation::Pivot, SimAgent::Absent), (Operation::Snapshot, SimAgent::Answers)]
    {
        let scene = Scene::new(Setup { agent, ..THREE });
        let at = InjectionPoint { operation, when: CallPhase::Before };
        scene.world.on_point(move |point| if point == at { Injected::KillDriver } else { Injected::Nothing });
        scene.backup().unwrap_err();
        scene.kill_guard();
        scene.revive();
        assert!(scene.lives(Some(DomainState::Running)).is_err());
        let recovery = only(scene.recover());
        assert_eq!(recovery.verdict, RecoveryStatus::Recovered);
        assert!(!recovery.done.is_empty(), "{recovery:#?}");
        scene.is_home(Some(DomainState::Running)).unwrap();
    }
}

#[test]
fn a_commit_at_rest_that_was_broken_off_long_after_is_done_again() {
    let scene = dies_at(Setup { persistence: Persistence::Transient, ..PLAIN }, Operation::Commit, 1);
    scene.world.happens(ThirdPartyAction::ShutDown);
    for _ in 0..200 {
        scene.world.domains().unwrap();
    }
    let half = InjectionPoint { operation: Operation::CommitFile, when: CallPhase::Half };
    scene.world.on_point(move |point| if point == half { Injected::CrashHost } else { Injected::Nothing });
    scene.recover();
    scene.revive();
    assert_eq!(only(scene.recover()).verdict, RecoveryStatus::Recovered);
    scene.is_home(None).unwrap();
}

#[test]
fn an_overlay_that_another_domain_rests_on_stays() {
    let scene = Scene::new(PLAIN);
    let (other, overlay) = (PathBuf::from("/images/other.qcow2"), scene.overlays().remove(0));
    let mut id = None;
    let thawed = meanwhile(&scene, |scene| {
        let image =
            SimImage { format: "qcow2".to_owned(), backing: Some(overlay.clone()), writes: [].into() };
        scene.world.put_image(&other, image);
        let disks = vec![("vda".to_owned(), other.clone())];
        id = Some(
            scene.world.add(&SimSpec { name: "other".to_owned(), disks, agent: SimAgent::Absent }).unwrap(),
        );
    })
    .unwrap();
    assert!(thawed.report.warnings[0].contains("domain 'other'"), "{:?}", thawed.report);
    assert!(scene.world.image(&overlay).is_some());
    let recovery = only(scene.recover());
    assert_eq!(recovery.verdict, RecoveryStatus::OverlayPending);
    // What was not done is not said to be done.
    assert!(!recovery.disks[0].done.iter().any(|text| text.contains("remove")), "{recovery:#?}");
    assert!(remains(&recovery).contains("domain 'other'"), "{recovery:#?}");
    scene.world.undefine(id.unwrap()).unwrap();
    scene.world.remove(&other).unwrap();
    assert_eq!(only(scene.recover()).verdict, RecoveryStatus::Recovered);
    scene.is_home(Some(DomainState::Running)).unwrap();
}

#[test]
fn a_run_that_is_alive_is_left_alone() {
    let scene = Scene::new(PLAIN);
    meanwhile(&scene, |scene| {
        let recovery = only(scene.recover());
        assert_eq!(recovery.verdict, RecoveryStatus::Busy);
        assert!(recovery.remains[0].contains("process 1"), "{recovery:#?}");
    })
    .unwrap();
    scene.is_home(Some(DomainState::Running)).unwrap();
}

#[test]
fn a_dry_run_says_the_same_words_and_changes_nothing() {
    for operation in
        [Operation::Snapshot, Operation::Hold, Operation::Commit, Operation::Suspend, Operation::Pivot]
    {
        for end in [None, Some(ThirdPartyAction::ShutDown)] {
            let scene = dies_at(THREE, operation, 1);
            if let Some(end) = end {
                scene.world.happens(end);
            }
            let (images, jobs) = (scene.world.images(), scene.journal.open_sessions(None).unwrap());
            let changing = scene.points(|scene| {
                let planned = only(recover(&scene.host(), RecoverScope::All, RunMode::DryRun).unwrap());
                assert_eq!(planned.verdict, RecoveryStatus::Planned);
            });
            let question = |p: &InjectionPoint| matches!(p.operation, Operation::Read | Operation::Look);
            assert!(changing.iter().all(question), "{changing:?}");
            assert_eq!((scene.world.images(), scene.journal.open_sessions(None).unwrap()), (images, jobs));
            let planned = only(recover(&scene.host(), RecoverScope::All, RunMode::DryRun).unwrap());
            let applied = only(scene.recover());
            let words = |r: &Recovery| (r.found.clone(), r.done.clone(), r.disks.clone());
            assert_eq!(words(&planned), words(&applied), "{operation:?} {end:?}");
            assert_eq!(applied.verdict, RecoveryStatus::Recovered);
        }
    }
}

/// The same with the real catalog: what a dead driver wrote is read by another one.
#[test]
fn the_catalog_carries_a_job_over() {
    let state = tempfile::tempdir().unwrap();
    let scene = Scene::new(THREE);
    let catalog = Catalog::open(state.path()).unwrap();
    let host = FreezeContext { journal: &catalog, ..scene.host() };
    let request = scene.request();
    let error = with_frozen_disks(&host, &request, &Control::default(), |_| {
        let open = catalog.open_sessions(Some(scene.id)).unwrap();
        assert_eq!((open.len(), open[0].state), (1, SessionState::Snapshotted));
        scene.world.kill_driver();
        Err::<(), _>(Error::new(ErrorKind::Interrupted, "killed"))
    });
    error.unwrap_err();
    scene.revive();
    drop(catalog);
    let catalog = Catalog::open(state.path()).unwrap();
    let host = FreezeContext { journal: &catalog, ..scene.host() };
    let recovery = only(recover(&host, RecoverScope::Domain(scene.id), RunMode::Apply).unwrap());
    assert_eq!(recovery.verdict, RecoveryStatus::Recovered);
    let json = serde_json::to_string(&recovery).unwrap();
    assert!(json.contains("\"verdict\":\"recovered\""), "{json}");
    assert_eq!(catalog.open_sessions(None).unwrap(), []);
    scene.is_home(Some(DomainState::Running)).unwrap();
}
