//! People with root's rights on a bad day: they put files in each other's place, set clocks back, take
//! snapshots, plug disks.

use std::path::{Path, PathBuf};

use super::super::*;
use super::cases::{THREE, dies_at, meanwhile, only, remains};
use super::scene::{PLAIN, Scene};
use crate::RunMode;
use virtfold_base::error::ErrorKind;
use virtfold_hypervisor::simulated::{
    CallPhase, Injected, InjectionPoint, Operation, SimAgent, SimImage, SimSpec, ThirdPartyAction,
};
use virtfold_hypervisor::{DomainState, PausedReason, XmlView};

/// Puts another file in the place of the base, with the time of the old one's last write.
fn replace_base(scene: &Scene) -> SimImage {
    let base = scene.bases().remove(0);
    let copy = SimImage { writes: [0].into(), ..scene.world.image(&base).unwrap() };
    scene.world.put_image_as_old_as(&base, copy.clone(), &base);
    copy
}

#[test]
fn an_overlay_is_never_committed_into_a_base_that_was_replaced() {
    // Its job was taking the snapshot, reading, committing, pivoting.
    for operation in
        [Operation::Hold, Operation::Look, Operation::Commit, Operation::Suspend, Operation::Pivot]
    {
        for ends in [
            &[][..],
            &[ThirdPartyAction::ShutDown],
            &[ThirdPartyAction::Redefine, ThirdPartyAction::ShutDown],
        ] {
            let scene = dies_at(PLAIN, operation, 1);
            if scene.world.tops(scene.id) != scene.overlays() {
                continue;
            }
            ends.iter().for_each(|end| scene.world.happens(*end));
            // Another size as well: else it would be the same for all that can be seen.
            scene.world.domains().unwrap();
            let copy = replace_base(&scene);
            let recovery = only(scene.recover());
            let said = remains(&recovery);
            assert_eq!(
                scene.world.image(&scene.bases()[0]),
                Some(copy),
                "{operation:?} {ends:?}: {recovery:#?}"
            );
            let kept = scene.world.images().iter().any(|p| p.to_string_lossy().contains(".overlay"));
            assert!(kept, "{operation:?} {ends:?}: {recovery:#?}");
            match ends.len() {
                2 => assert_eq!(
                    recovery.verdict,
                    RecoveryStatus::NeedsAttention,
                    "{operation:?}: {recovery:#?}"
                ),
                _ => assert_eq!(recovery.verdict, RecoveryStatus::Undecided, "{operation:?}: {recovery:#?}"),
            }
            assert!(!said.is_empty(), "{recovery:#?}");
        }
    }
}

#[test]
fn an_overlay_is_not_committed_into_a_base_that_somebody_wrote_to() {
    let scene = Scene::new(PLAIN);
    let error = meanwhile(&scene, |scene| {
        scene.world.happens(ThirdPartyAction::ShutDown);
        // In place, as `cp` does.
        let inode = scene.world.identity(&scene.bases()[0]).unwrap();
        replace_base(scene);
        scene.world.set_identity(&scene.bases()[0], inode.unwrap().1);
    });
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(scene.world.image(&scene.bases()[0]).unwrap().writes, [0].into());
    assert!(scene.world.image(&scene.overlays()[0]).is_some());
}

#[test]
fn a_clock_that_was_set_back_decides_nothing() {
    for undefined in [false, true] {
        let scene = dies_at(PLAIN, Operation::Suspend, 1);
        scene.world.happens(ThirdPartyAction::ShutDown);
        scene.world.set_clock_back(1000);
        scene.world.happens(ThirdPartyAction::Redefine);
        scene.world.happens(ThirdPartyAction::Start);
        for _ in 0..100 {
            scene.world.domains().unwrap();
        }
        if undefined {
            scene.world.happens(ThirdPartyAction::Undefine);
        }
        scene.world.happens(ThirdPartyAction::ShutDown);
        let before = scene.world.images();
        let recovery = only(scene.recover());
        assert_eq!(recovery.verdict, RecoveryStatus::Undecided, "{recovery:#?}");
        assert!(!scene.world.was_clobbered());
        assert_eq!(scene.world.images(), before);
    }
}

#[test]
fn a_run_of_the_same_number_proves_nothing() {
    let scene = dies_at(PLAIN, Operation::Pivot, 1);
    // The guard has let the guest go, and it writes to the overlay.
    for _ in 0..10 {
        scene.world.domains().unwrap();
    }
    scene.world.happens(ThirdPartyAction::Redefine);
    scene.world.happens(ThirdPartyAction::ShutDown);
    scene.world.count_runs_anew();
    scene.world.happens(ThirdPartyAction::Start);
    let recovery = only(scene.recover());
    assert!(remains(&recovery).contains(".quarantined"), "{recovery:#?}");
    let mut all = scene.bases();
    all.extend(scene.leftovers());
    let holds = scene.world.holds(&all);
    assert!((0..scene.world.written(scene.id)).all(|n| holds.contains(&n)));
}

#[test]
fn an_internal_snapshot_keeps_its_overlay() {
    let scene = Scene::new(THREE);
    let overlay = scene.overlays().remove(0);
    let error = meanwhile(&scene, |scene| scene.world.put_snapshot(&overlay)).unwrap_err();
    assert!(
        error.to_string().contains("internal snapshot") || format!("{error:?}").contains("internal snapshot")
    );
    assert!(scene.world.image(&overlay).is_some());
    scene.lives(Some(DomainState::Running)).unwrap();
    for run in [DomainState::Running, DomainState::ShutOff] {
        assert_eq!(only(scene.recover()).verdict, RecoveryStatus::Undecided);
        assert!(scene.world.image(&overlay).is_some());
        if run == DomainState::Running {
            scene.world.happens(ThirdPartyAction::ShutDown);
        }
    }
    scene.world.delete_snapshots(&overlay);
    assert_eq!(only(scene.recover()).verdict, RecoveryStatus::Recovered);
    scene.is_home(Some(DomainState::ShutOff)).unwrap();
    // One in an overlay that nobody needs any more is put aside with it.
    let scene = dies_at(PLAIN, Operation::Remove, 1);
    scene.world.put_snapshot(&scene.overlays()[0]);
    assert!(remains(&only(scene.recover())).contains(".quarantined"));
    assert_eq!(scene.leftovers(), [PathBuf::from("/overlays/0.qcow2.virtfold-00000007.overlay.quarantined")]);
}

#[test]
fn a_disk_that_was_plugged_in_since_the_plan_ends_it() {
    let scene = Scene::new(THREE);
    let mut request = scene.request();
    let plugged = request.disks.pop().unwrap().target;
    request.targets.retain(|target| *target != plugged);
    let points = scene.points(|scene| {
        let error = with_frozen_disks(&scene.host(), &request, &Control::default(), |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse);
        assert!(error.to_string().contains("'vdc'"), "{error}");
    });
    assert!(!points.iter().any(|point| point.operation == Operation::Snapshot));
    scene.is_home(Some(DomainState::Running)).unwrap();
}

#[test]
fn a_guest_that_a_person_suspends_during_the_commit_stays_so() {
    let scene = Scene::new(PLAIN);
    let mut commits = 0;
    let read = InjectionPoint { operation: Operation::Read, when: CallPhase::Before };
    scene.world.on_point(move |point| {
        commits +=
            u32::from(point == InjectionPoint { operation: Operation::Commit, when: CallPhase::After });
        if commits == 1 && point == read {
            commits += 1;
            return Injected::Outside(ThirdPartyAction::Suspend);
        }
        Injected::Nothing
    });
    scene.backup().unwrap();
    scene.is_home(Some(DomainState::Paused(PausedReason::User))).unwrap();
}

#[test]
fn a_configuration_that_does_not_say_what_is_below_is_set_right_by_the_journal() {
    let scene = dies_at(PLAIN, Operation::Commit, 1);
    scene.world.happens(ThirdPartyAction::ShutDown);
    let config = scene.world.xml(scene.id, XmlView::Inactive).unwrap();
    let (before, rest) = config.split_once("<backingStore").unwrap();
    let (_, after) = rest.split_once("</disk>").unwrap();
    let (target, overlay) = ("<target dev='vda'/>", scene.overlays().remove(0));
    let text = if before.contains(target) { String::new() } else { target.to_owned() };
    scene.world.define(&format!("{before}{text}</disk>{after}")).unwrap();
    let named = scene.world.xml(scene.id, XmlView::Inactive).unwrap();
    assert!(named.contains(overlay.to_str().unwrap()) && !named.contains("backingStore"), "{named}");
    let recovery = only(scene.recover());
    assert_eq!(recovery.verdict, RecoveryStatus::Recovered, "{recovery:#?}");
    scene.is_home(Some(DomainState::ShutOff)).unwrap();
}

#[test]
fn a_directory_that_is_gone_keeps_nothing_from_being_recovered() {
    // That of a CD which was ejected on the host's side, perhaps.
    let scene = Scene::new(PLAIN);
    scene.world.lose_directory(Path::new("/images"));
    assert_eq!(scene.recover(), []);
    let scene = dies_at(PLAIN, Operation::Commit, 1);
    scene.world.lose_directory(Path::new("/images"));
    scene.world.lose_directory(Path::new("/overlays"));
    assert_eq!(
        only(recover(&scene.host(), RecoverScope::All, RunMode::Apply).unwrap()).verdict,
        RecoveryStatus::Recovered
    );
    scene.is_home(Some(DomainState::Running)).unwrap();
}

#[test]
fn a_domain_that_cannot_be_looked_at_is_named_and_the_others_are_found() {
    let mut scene = dies_at(PLAIN, Operation::Commit, 1);
    scene.forget();
    let spec = SimSpec { name: "broken".to_owned(), disks: Vec::new(), agent: SimAgent::Absent };
    let broken = scene.world.add(&spec).unwrap();
    scene.world.make_odd(broken);
    let recoveries = recover(&scene.host(), RecoverScope::All, RunMode::Apply).unwrap();
    let verdict = |name: &str| recoveries.iter().find(|r| r.name == name).map(|r| r.verdict);
    assert_eq!(verdict("broken"), Some(RecoveryStatus::Failed), "{recoveries:#?}");
    assert_eq!(verdict("g"), Some(RecoveryStatus::Recovered), "{recoveries:#?}");
    scene.is_home(Some(DomainState::Running)).unwrap();
}
