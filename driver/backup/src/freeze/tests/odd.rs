//! Disks that are taken off their guest in mid-copy, and agents that break in the freeze.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::super::*;
use super::cases::{THREE, meanwhile, only, remains};
use super::scene::{PLAIN, Scene, Setup};
use virtfold_base::error::ErrorKind;
use virtfold_hypervisor::simulated::{Injected, SimAgent, SimImage, SimSpec, ThirdPartyAction};
use virtfold_hypervisor::{DomainState, XmlView};

/// A backup during whose copy the last disk is taken off.
fn taken_off(scene: &Scene, how: ThirdPartyAction) -> Result<Unfrozen<()>> {
    meanwhile(scene, |scene| {
        drop(scene.world.domains());
        scene.world.happens(how);
    })
}

/// Every write is on the bases, nothing is left over, and no description names an overlay.
fn all_is_on_the_bases(scene: &Scene) -> std::result::Result<(), String> {
    let holds = scene.world.holds(&scene.bases());
    let lost: BTreeSet<u64> = (0..scene.world.written(scene.id)).filter(|n| !holds.contains(n)).collect();
    let open = scene.journal.open_sessions(None).unwrap();
    let named = scene.world.xml(scene.id, XmlView::Inactive).unwrap().contains(".overlay");
    if lost.is_empty()
        && scene.leftovers().is_empty()
        && open.is_empty()
        && !named
        && !scene.world.was_clobbered()
    {
        return Ok(());
    }
    Err(format!("lost {lost:?}, left over {:?}, named {named}, open {open:#?}", scene.leftovers()))
}

/// The report says which disk was detached, and what became of its overlay; and nothing of the others.
fn told(scene: &Scene, report: &FreezeReport, how: &str) {
    let base = scene.bases().pop().unwrap();
    let [warning] = report.warnings.as_slice() else { panic!("{:?}", report.warnings) };
    for words in [how, "disk 'vdc'", "commit", &base.display().to_string(), "remove the overlay"] {
        assert!(warning.contains(words), "{words}: {warning}");
    }
    let [note] = report.detached.as_slice() else { panic!("{:?}", report.detached) };
    assert!(note.contains("disk 'vdc'") && note.contains(how) && !note.contains("commit"), "{note}");
}

/// A guest keeps what only its configuration has lost, and its overlay comes home as any.
#[test]
fn a_disk_detached_from_the_configuration_in_mid_copy_comes_home() {
    let scene = Scene::new(THREE);
    let thawed = taken_off(&scene, ThirdPartyAction::DetachConfig).unwrap();
    told(&scene, &thawed.report, "was detached from the configuration");
    all_is_on_the_bases(&scene).unwrap();
    assert_eq!(scene.world.tops(scene.id), scene.bases());
    let next = scene.world.xml(scene.id, XmlView::Inactive).unwrap();
    assert!(!next.contains("vdc"), "it is back in the configuration: {next}");
}

#[test]
fn a_disk_taken_off_in_mid_copy_has_its_last_writes() {
    for how in [ThirdPartyAction::DetachLive, ThirdPartyAction::Detach] {
        let scene = Scene::new(THREE);
        let thawed = taken_off(&scene, how).unwrap();
        told(&scene, &thawed.report, "was detached from the guest");
        all_is_on_the_bases(&scene).unwrap();
        assert_eq!(scene.world.tops(scene.id), scene.bases()[..2]);
        // The next backup is one of the disks that are left.
        let mut request = scene.request();
        request.disks.truncate(2);
        with_frozen_disks(&scene.host(), &request, &Control::default(), |_| Ok(())).unwrap();
        all_is_on_the_bases(&scene).unwrap();
    }
}

/// The points of such a backup that come after the disk was taken off: the earlier ones are those of any
/// backup.
fn points_after(how: ThirdPartyAction) -> std::ops::Range<usize> {
    let scene = Scene::new(THREE);
    let points = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&points);
    scene.world.on_point(move |_| {
        seen.fetch_add(1, Ordering::Relaxed);
        Injected::Nothing
    });
    let mut first = 0;
    let thawed = meanwhile(&scene, |scene| {
        drop(scene.world.domains());
        scene.world.happens(how);
        first = points.load(Ordering::Relaxed);
    });
    thawed.unwrap();
    first..points.load(Ordering::Relaxed)
}

/// Whatever dies at whatever moment.
#[test]
fn a_disk_taken_off_has_its_last_writes_after_a_crash() {
    for how in [ThirdPartyAction::DetachLive, ThirdPartyAction::Detach] {
        let points = points_after(how);
        assert!(points.len() > 50, "{points:?}");
        for index in points {
            // Each moment once with the one and once with the other.
            let crash = (index % 2 == 0) == (how == ThirdPartyAction::Detach);
            let fate = if crash { Injected::CrashHost } else { Injected::KillDriver };
            let scene = Scene::new(THREE);
            scene.set_fate(index, fate);
            drop(taken_off(&scene, how));
            scene.revive();
            let recoveries = scene.recover();
            all_is_on_the_bases(&scene)
                .unwrap_or_else(|why| panic!("{how:?} {index} {fate:?}: {why}\n{recoveries:#?}"));
        }
    }
}

#[test]
fn a_disk_taken_off_that_others_have_or_wrote_to_is_for_a_person() {
    let scene = Scene::new(THREE);
    let (base, overlay) = (scene.bases().remove(2), scene.overlays().remove(2));
    let mut other = None;
    let error = meanwhile(&scene, |scene| {
        drop(scene.world.domains());
        scene.world.happens(ThirdPartyAction::Detach);
        let disks = vec![("vdx".to_owned(), base.clone())];
        other = Some(
            scene.world.add(&SimSpec { name: "other".to_owned(), disks, agent: SimAgent::Absent }).unwrap(),
        );
    });
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InUse);
    let before = scene.world.image(&base);
    let said = remains(&only(scene.recover()));
    for words in ["disk 'vdx' of domain 'other'", "/overlays/2.qcow2", "qemu-img commit"] {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(scene.world.image(&base), before);
    // It runs on the base and writes to it: the two have parted.
    scene.world.set_pace(other.unwrap(), 0);
    scene.world.start(other.unwrap(), virtfold_hypervisor::StartMode::Running).unwrap();
    assert!(remains(&only(scene.recover())).contains("domain 'other'"));
    scene.world.destroy(other.unwrap()).unwrap();
    scene.world.undefine(other.unwrap()).unwrap();
    let (mut image, inode) = (before.unwrap(), scene.world.identity(&base).unwrap().unwrap().1);
    image.writes.insert(1 << 50);
    scene.world.put_image(&base, image);
    scene.world.set_identity(&base, inode);
    let recovery = only(scene.recover());
    assert_eq!(recovery.verdict, RecoveryStatus::Undecided, "{recovery:#?}");
    assert!(remains(&recovery).contains("be determined which") && scene.world.image(&overlay).is_some());
    // One that nobody wrote to is committed.
    let scene = Scene::new(THREE);
    let image =
        || SimImage { format: "qcow2".to_owned(), backing: Some(base.clone()), writes: BTreeSet::new() };
    let error = meanwhile(&scene, |scene| {
        drop(scene.world.domains());
        scene.world.happens(ThirdPartyAction::Detach);
        scene.world.put_image(&PathBuf::from("/images/clone.qcow2"), image());
        let disks = vec![("vda".to_owned(), PathBuf::from("/images/clone.qcow2"))];
        other = Some(
            scene.world.add(&SimSpec { name: "clone".to_owned(), disks, agent: SimAgent::Absent }).unwrap(),
        );
    });
    assert!(format!("{:?}", error.unwrap_err()).contains("domain 'clone'"));
    scene.world.undefine(other.unwrap()).unwrap();
    scene.world.remove(&PathBuf::from("/images/clone.qcow2")).unwrap();
    assert_eq!(only(scene.recover()).verdict, RecoveryStatus::Recovered);
    all_is_on_the_bases(&scene).unwrap();
}

#[test]
fn an_agent_that_thaws_and_says_no_costs_the_clean_copy_alone() {
    let scene = Scene::new(Setup { agent: SimAgent::FailsToThaw, ..PLAIN });
    let report = scene.backup().unwrap().report;
    assert!(!report.quiesced && report.frozen_ms.is_none());
    let warnings = report.warnings.join("; ");
    assert!(
        warnings.contains("that the file systems are thawed") && warnings.contains("crash-consistent"),
        "{warnings}"
    );
    scene.is_home(Some(DomainState::Running)).unwrap();
    let request = FreezeRequest { quiesce: AgentFreeze::Require(Duration::from_secs(1)), ..scene.request() };
    let refused = with_frozen_disks(&scene.host(), &request, &Control::default(), |_| Ok(())).unwrap_err();
    assert!(refused.kind() == ErrorKind::Unsupported && refused.hint().unwrap().contains("--quiesce auto"));
    scene.is_home(Some(DomainState::Running)).unwrap();
}

/// Nobody knows then that the guest is thawed, and it is not.
#[test]
fn an_agent_that_dies_with_the_guest_frozen_ends_the_backup() {
    let scene = Scene::new(Setup { agent: SimAgent::DiesFrozen, ..PLAIN });
    let error = scene.backup().unwrap_err();
    assert!(
        error.to_string().contains("may still be frozen") && error.hint().unwrap().contains("recover"),
        "{error:?}"
    );
    assert!(scene.world.is_frozen(scene.id) && scene.leftovers().is_empty());
    scene.world.set_agent(scene.id, SimAgent::Answers);
    assert_eq!(only(scene.recover()).verdict, RecoveryStatus::Recovered);
    scene.is_home(Some(DomainState::Running)).unwrap();
}
