//! Which bitmaps count for an increment, and which checkpoints go.

use std::path::Path;
use std::time::Duration;

use uuid::Uuid;

use super::state::NewState;
use super::*;
use crate::freeze::{FreezeContext, FreezeTimings, StartWatchdog, Watchdog, checkpoint_name};
use virtfold_base::error::Result;
use virtfold_catalog::{Catalog, FreezeSession, Journal, SessionKind, SessionState};
use virtfold_hypervisor::simulated::{CallPhase, Injected, InjectionPoint, Operation, Simulated};
use virtfold_hypervisor::{CheckpointRequest, DomainId, Hypervisor, Persistence, StartMode};

/// No guest is held here.
#[derive(Debug)]
struct NoGuard;

impl StartWatchdog for NoGuard {
    fn start(&self, _domain: DomainId) -> Result<Box<dyn Watchdog>> {
        unreachable!("no guest is held")
    }
}

struct Lab {
    folder: tempfile::TempDir,
    world: Simulated,
    journal: Catalog,
    id: DomainId,
}

impl Lab {
    fn new() -> Self {
        let (folder, world) = (tempfile::tempdir().unwrap(), Simulated::new());
        let id = world.define("<domain><name>web</name><devices/></domain>").unwrap();
        world.start(id, StartMode::Running).unwrap();
        let journal = Catalog::open(folder.path()).unwrap();
        Self { folder, world, journal, id }
    }

    fn make(&self, name: &str) {
        let request = CheckpointRequest { name: name.to_owned(), tracked: Vec::new(), others: Vec::new() };
        self.world.create_checkpoint(self.id, &request).unwrap();
    }

    fn there(&self) -> Vec<String> {
        self.world.checkpoints(self.id).unwrap().into_iter().map(|checkpoint| checkpoint.name).collect()
    }

    fn tidy(&self) {
        let host = FreezeContext {
            hypervisor: &self.world,
            files: &self.world,
            journal: &self.journal,
            guard: &NoGuard,
            pace: FreezeTimings { poll: Duration::ZERO, ..FreezeTimings::default() },
        };
        tidy(&host, self.id, self.folder.path());
    }

    fn hint(&self, parent: &Parent) -> ChangeHint {
        hint(&self.world, self.id, Some(parent))
    }
}

fn ours(number: u128) -> String {
    checkpoint_name(Uuid::from_u128(number))
}

/// The parent that was made with a checkpoint, or without.
fn parent(state_dir: &Path, checkpoint: Option<String>) -> Parent {
    let archive = Uuid::from_u128(77);
    let (root, disks) = (String::new(), Vec::new());
    let new = NewState { state_dir, archive, root, depth: 1, checkpoint, disks };
    PendingState::write(new, &mut |_| unreachable!("it has no disks")).unwrap().keep().unwrap();
    Parent { state: BlockState::open(state_dir, archive).unwrap().unwrap() }
}

#[test]
fn the_bitmaps_from_the_parents_on_count() {
    let lab = Lab::new();
    let names = [ours(1), ours(2), "theirs".to_owned(), ours(3)];
    names.iter().for_each(|name| lab.make(name));
    let second = parent(lab.folder.path(), Some(ours(2)));
    assert_eq!(lab.hint(&second), ChangeHint::Bitmaps(vec![ours(2), ours(3)]));
    assert_eq!(hint(&lab.world, lab.id, None), ChangeHint::Unknown);
    assert_eq!(hint_of(&lab.hint(&second), "raw"), ChangeHint::Unknown);
    assert_eq!(hint_of(&lab.hint(&second), "qcow2"), lab.hint(&second));
}

#[test]
fn without_the_parents_checkpoint_no_bitmap_counts() {
    let lab = Lab::new();
    lab.make(&ours(1));
    let because = |parent: &Parent| match lab.hint(parent) {
        ChangeHint::NoBitmap(why) => why,
        hint => panic!("{hint:?}"),
    };
    assert!(because(&parent(lab.folder.path(), None)).contains("without a checkpoint"));
    let deleted = parent(lab.folder.path(), Some(ours(2)));
    assert!(because(&deleted).contains(&format!("'{}' was deleted", ours(2))));
    lab.world.kill_driver();
    assert!(!because(&deleted).contains("was deleted"), "nobody knows");
}

#[test]
fn what_no_state_and_no_session_names_goes() {
    let lab = Lab::new();
    ["theirs".to_owned(), ours(1), ours(2), ours(3)].iter().for_each(|name| lab.make(name));
    parent(lab.folder.path(), Some(ours(2)));
    let session = FreezeSession {
        id: Uuid::from_u128(3),
        domain: lab.id,
        name: "web".to_owned(),
        kind: SessionKind::Running,
        state: SessionState::Snapshotted,
        persistence: Persistence::Persistent,
        live: None,
        inactive: None,
        created: 0,
        held: None,
        disks: Vec::new(),
    };
    lab.journal.begin(&session).unwrap();
    lab.tidy();
    assert_eq!(lab.there(), ["theirs".to_owned(), ours(2), ours(3)]);
    // A guest that is off keeps what there is: only QEMU deletes a bitmap.
    lab.make(&ours(4));
    lab.world.destroy(lab.id).unwrap();
    lab.tidy();
    assert!(lab.there().contains(&ours(4)));
    forget(&lab.world, lab.id).unwrap();
    assert_eq!(lab.there(), ["theirs"]);
}

/// The bitmaps can't be deleted: what libvirt knows of the checkpoint goes all the same.
#[test]
fn a_checkpoint_whose_bitmaps_stay_is_forgotten() {
    let lab = Lab::new();
    lab.make(&ours(1));
    let mut alive = true;
    lab.world.on_point(move |point| {
        let now = point == InjectionPoint { operation: Operation::Checkpoint, when: CallPhase::Before };
        if now && std::mem::take(&mut alive) { Injected::KillLibvirtd } else { Injected::Nothing }
    });
    lab.tidy();
    assert_eq!(lab.there(), Vec::<String>::new());
}
