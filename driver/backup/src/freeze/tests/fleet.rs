//! A running guest among many others: what a backup asks of the hypervisor does not grow with them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::*;
use super::scene::{PLAIN, Scene, Setup};
use virtfold_hypervisor::simulated::{CallPhase, Injected, SimAgent, SimSpec, Simulated};
use virtfold_hypervisor::{StartMode, XmlView};

/// Another guest with one disk.
fn add(world: &Simulated, name: &str, image: &str) -> DomainId {
    let disks = vec![("vda".to_owned(), PathBuf::from(image))];
    world.add(&SimSpec { name: name.to_owned(), disks, agent: SimAgent::Absent }).unwrap()
}

/// The calls of a backup beside `others`, every second of which runs.
fn calls(setup: Setup, others: usize) -> usize {
    let scene = Scene::new(setup);
    scene.world.show_qemus();
    for number in 0..others {
        let id = add(&scene.world, &format!("other{number}"), &format!("/others/{number}.qcow2"));
        scene.world.set_pace(id, 0);
        if number % 2 == 0 {
            scene.world.start(id, StartMode::Running).unwrap();
        }
    }
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    scene.world.on_point(move |point| {
        counted.fetch_add(usize::from(point.when == CallPhase::Before), Ordering::Relaxed);
        Injected::Nothing
    });
    scene.backup().unwrap();
    scene.world.on_point(|_| Injected::Nothing);
    assert!(scene.overlays().iter().all(|overlay| scene.world.image(overlay).is_none()));
    calls.load(Ordering::Relaxed)
}

#[test]
fn a_backup_asks_no_more_of_a_host_with_more_guests() {
    let few = calls(PLAIN, 5);
    let many = calls(PLAIN, 500);
    assert!(many * 2 <= few * 3, "{few} calls beside 5 guests, {many} beside 500");
}

#[test]
fn an_overlay_stays_that_a_changed_configuration_names() {
    for saved in [false, true] {
        let scene = Scene::new(PLAIN);
        scene.world.show_qemus();
        let other = add(&scene.world, "other", "/others/0.qcow2");
        let overlay = scene.overlays().remove(0);
        let unfrozen = with_frozen_disks(&scene.host(), &scene.request(), &Control::default(), |frozen| {
            let text = scene.world.xml(other, XmlView::Inactive)?;
            let text = text.replace("/others/0.qcow2", overlay.to_str().unwrap());
            match saved {
                false => scene.world.define(&text).map(drop)?,
                true => scene.world.save(other, &text),
            }
            scene.copy(frozen)
        });
        let warnings = unfrozen.unwrap().report.warnings.join("; ");
        assert!(warnings.contains("domain 'other' still has the overlay"), "{warnings}");
        assert!(scene.world.image(&overlay).is_some());
    }
}

#[test]
fn configurations_that_do_not_show_our_own_change_are_not_believed() {
    // A transient guest has no file, so nothing shows that the files are this libvirt's.
    let transient = Setup { persistence: virtfold_hypervisor::Persistence::Transient, ..PLAIN };
    let more = calls(transient, 50) - calls(transient, 5);
    assert!(more >= 45, "{more} calls more for 45 guests more: each has to be asked for");
}
