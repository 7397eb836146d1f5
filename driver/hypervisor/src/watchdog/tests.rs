//! The guard against a simulated hypervisor. That it works as a process, against the real one:
//! tests/lab_guard.rs.

use std::thread::JoinHandle;

use super::*;
use crate::simulated::{CallPhase, Injected, InjectionPoint, Operation, SimAgent, SimSpec, Simulated};
use crate::types::StartMode;

struct Scene {
    world: Simulated,
    id: DomainId,
    driver: BufReader<UnixStream>,
    guard: JoinHandle<Result<()>>,
}

fn scene() -> Scene {
    let world = Simulated::new();
    let disks = vec![("vda".to_owned(), "/a".into())];
    let id = world.add(&SimSpec { name: "g".into(), disks, agent: SimAgent::Answers }).unwrap();
    world.start(id, StartMode::Running).unwrap();
    let (driver, theirs) = UnixStream::pair().unwrap();
    let theirs_world = world.clone();
    let guard = std::thread::spawn(move || serve_on(theirs, &theirs_world, id));
    let mut scene = Scene { world, id, driver: BufReader::new(driver), guard };
    assert_eq!(scene.hear(), "ready");
    scene
}

impl Scene {
    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.driver.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn say(&mut self, line: &str) -> String {
        writeln!(self.driver.get_mut(), "{line}").unwrap();
        self.hear()
    }

    fn running_within(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            if self.world.domain_state(self.id).unwrap() == DomainState::Running
                && !self.world.is_frozen(self.id)
            {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

#[test]
fn a_driver_in_time_is_left_alone() {
    let mut scene = scene();
    assert_eq!(scene.say("arm paused 5000"), "armed");
    scene.world.suspend(scene.id).unwrap();
    assert!(!scene.running_within(Duration::from_millis(100)));
    scene.world.resume(scene.id).unwrap();
    assert_eq!(scene.say("disarm"), "intime");
    // A person's pause after that is none of the guard's business.
    scene.world.suspend(scene.id).unwrap();
    drop(scene.driver);
    scene.guard.join().unwrap().unwrap();
    assert_eq!(scene.world.domain_state(scene.id).unwrap(), DomainState::Paused(PausedReason::User));
}

#[test]
fn a_late_driver_is_stepped_in_for() {
    for held in ["paused", "frozen"] {
        let mut scene = scene();
        assert_eq!(scene.say(&format!("arm {held} 50")), "armed");
        let hold = |scene: &Scene| match held {
            "paused" => scene.world.suspend(scene.id).unwrap(),
            _ => assert_eq!(scene.world.freeze(scene.id).unwrap(), 1),
        };
        hold(&scene);
        assert!(scene.running_within(Duration::from_secs(1)), "{held}");
        // Held up, the driver holds the guest after the budget: it is let go again.
        hold(&scene);
        assert!(scene.running_within(Duration::from_secs(1)), "{held}");
        assert_eq!(scene.say("disarm"), "fired");
        assert_eq!(scene.say("arm paused 50000"), "armed");
        assert_eq!(scene.say("disarm"), "intime");
    }
}

#[test]
fn a_dead_drivers_guest_is_let_go_even_while_libvirtd_dies() {
    for (held, operation) in [("paused", Operation::Resume), ("frozen", Operation::Thaw)] {
        let mut scene = scene();
        assert_eq!(scene.say(&format!("arm {held} 60000")), "armed");
        if held == "paused" {
            scene.world.suspend(scene.id).unwrap()
        } else {
            assert_eq!(scene.world.freeze(scene.id).unwrap(), 1);
        }
        let mut deaths = 3;
        scene.world.on_point(move |point| {
            if point == (InjectionPoint { operation, when: CallPhase::Before }) && deaths > 0 {
                deaths -= 1;
                return Injected::KillLibvirtd;
            }
            Injected::Nothing
        });
        scene.driver.get_ref().shutdown(std::net::Shutdown::Both).unwrap();
        assert!(scene.running_within(Duration::from_secs(3)), "{held}");
        scene.guard.join().unwrap().unwrap();
    }
}

#[test]
fn a_guest_that_ended_needs_nothing() {
    let mut scene = scene();
    assert_eq!(scene.say("arm frozen 60000"), "armed");
    scene.world.destroy(scene.id).unwrap();
    scene.driver.get_ref().shutdown(std::net::Shutdown::Both).unwrap();
    scene.guard.join().unwrap().unwrap();
}

#[test]
fn nonsense_is_answered_and_changes_nothing() {
    let mut scene = scene();
    for line in ["", "arm", "arm paused", "arm paused x", "arm held 5", "disarm now", "\u{7f}"] {
        assert_eq!(scene.say(line), "what?", "{line:?}");
    }
}
