//! What libvirtd or the agent leave half done: an overlay that is open for nothing, a thaw that nobody
//! confirms.

use super::super::*;
use super::cases::{THREE, only};
use super::scene::{Scene, Setup};
use virtfold_hypervisor::DomainState;
use virtfold_hypervisor::simulated::{CallPhase, Injected, InjectionPoint, Operation, SimAgent};

#[test]
fn a_thaw_that_is_owed_keeps_no_later_backup_away() {
    let scene = Scene::new(Setup { agent: SimAgent::Answers, ..THREE });
    let no_thaw = |point: InjectionPoint| match point {
        InjectionPoint { operation: Operation::Thaw, when: CallPhase::Before } => Injected::KillLibvirtd,
        _ => Injected::Nothing,
    };
    scene.world.on_point(no_thaw);
    scene.backup().unwrap_err();
    assert!(scene.world.is_frozen(scene.id));
    let owed = only(scene.recover());
    assert_eq!(owed.verdict, RecoveryStatus::OverlayPending);
    assert!(owed.remains.iter().any(|text| text.contains("domfsthaw")), "{owed:?}");
    // The agent is gone, perhaps for good: the guest is copied as it is, and is still owed its thaw.
    scene.world.set_agent(scene.id, SimAgent::Absent);
    for _ in 0..2 {
        let thawed = scene.backup().unwrap();
        assert!(thawed.report.warnings.iter().any(|text| text.contains("domfsthaw")), "{:?}", thawed.report);
        assert_eq!(scene.journal.open_sessions(None).unwrap().len(), 1);
    }
    scene.world.on_point(|_| Injected::Nothing);
    scene.world.set_agent(scene.id, SimAgent::Answers);
    assert_eq!(only(scene.recover()).verdict, RecoveryStatus::Recovered);
    assert!(!scene.world.is_frozen(scene.id));
    scene.is_home(Some(DomainState::Running)).unwrap();
}

#[test]
fn an_overlay_that_qemu_has_open_for_nothing_is_closed() {
    let scene = Scene::new(THREE);
    let mut deaths = 0;
    scene.world.on_point(move |point| {
        deaths +=
            usize::from(point == InjectionPoint { operation: Operation::Snapshot, when: CallPhase::Half });
        match point {
            InjectionPoint { operation: Operation::Snapshot, when: CallPhase::Half } if deaths == 1 => {
                Injected::KillLibvirtd
            }
            _ => Injected::Nothing,
        }
    });
    // The second attempt takes the names of the first.
    scene.backup().unwrap();
    scene.is_home(Some(DomainState::Running)).unwrap();
}
