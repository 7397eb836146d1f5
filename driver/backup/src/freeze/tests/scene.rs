//! A world with a guest, a journal in memory and a guard that acts when the driver is dead.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use uuid::Uuid;

use super::super::*;
use crate::RunMode;
use virtfold_base::error::{Error, ErrorKind};
use virtfold_catalog::{DomainLock, FreezeSession, JournalEntry, SessionOutcome as Ended, UnfreezeState};
use virtfold_hypervisor::domain_xml::DomainXml;
use virtfold_hypervisor::simulated::{Injected, InjectionPoint, SimAgent, SimImage, SimSpec, Simulated};
use virtfold_hypervisor::watchdog;
use virtfold_hypervisor::{DomainState, PausedReason, StartMode, XmlView, overlay_path};

/// A write of nobody: what the golden image has.
const GOLDEN: u64 = 1 << 60;

/// A journal that a dead driver can't write to.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    pub(super) world: Simulated,
    state: Arc<Mutex<Entries>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Entries {
    open: Vec<FreezeSession>,
    pub(super) closed: Vec<(FreezeSession, Ended)>,
    /// Writes so far, and the one after which the driver dies.
    writes: u64,
    last: Option<u64>,
    locked: BTreeSet<DomainId>,
}

#[derive(Debug)]
struct MemoryLock(Arc<Mutex<Entries>>, DomainId);

impl DomainLock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.0.lock().unwrap().locked.remove(&self.1);
    }
}

impl Memory {
    fn new(world: &Simulated) -> Self {
        Self { world: world.clone(), state: Arc::default() }
    }

    fn fork(&self, world: &Simulated) -> Self {
        let mut entries = self.entries().clone();
        entries.locked.clear();
        Self { world: world.clone(), state: Arc::new(Mutex::new(entries)) }
    }

    pub(super) fn entries(&self) -> MutexGuard<'_, Entries> {
        self.state.lock().unwrap()
    }

    /// The driver dies after this many more writes.
    pub(super) fn die_after(&self, writes: u64) {
        let mut entries = self.entries();
        entries.last = Some(entries.writes + writes);
    }

    fn write(&self, work: impl FnOnce(&mut Entries) -> Result<()>) -> Result<()> {
        let dead = || Error::new(ErrorKind::Interrupted, "the driver was killed here");
        if self.world.is_dead() {
            return Err(dead());
        }
        let mut entries = self.entries();
        work(&mut entries)?;
        entries.writes += 1;
        if entries.last == Some(entries.writes) {
            self.world.kill_driver();
            return Err(dead());
        }
        Ok(())
    }
}

impl Journal for Memory {
    fn lock(&self, domain: DomainId) -> Result<Box<dyn DomainLock>> {
        if !self.entries().locked.insert(domain) {
            return Err(Error::new(ErrorKind::InUse, "process 1 of virtfold is working"));
        }
        Ok(Box::new(MemoryLock(Arc::clone(&self.state), domain)))
    }

    fn begin(&self, job: &FreezeSession) -> Result<()> {
        self.write(|entries| {
            entries.open.push(job.clone());
            Ok(())
        })
    }

    fn record(&self, id: Uuid, changes: &[JournalEntry]) -> Result<()> {
        self.write(|entries| {
            let index = entries.open.iter().position(|j| j.id == id);
            let index = index.ok_or_else(|| Error::new(ErrorKind::Io, "no such open job"))?;
            let job = &mut entries.open[index];
            for change in changes {
                match change {
                    JournalEntry::State(state) => job.state = *state,
                    JournalEntry::Held(held) => job.held = *held,
                    JournalEntry::Frozen { target, mark } => {
                        job.disks.iter_mut().find(|d| d.target == *target).unwrap().frozen = Some(*mark);
                    }
                    JournalEntry::Disk { target, state } => {
                        job.disks.iter_mut().find(|d| d.target == *target).unwrap().state = *state;
                    }
                    JournalEntry::Close(outcome) => {
                        let job = entries.open.remove(index);
                        entries.closed.push((job, *outcome));
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }

    fn open_sessions(&self, domain: Option<DomainId>) -> Result<Vec<FreezeSession>> {
        let entries = self.entries();
        Ok(entries.open.iter().filter(|j| domain.is_none_or(|d| d == j.domain)).cloned().collect())
    }
}

/// A guard that acts when the scene says that its driver is dead.
#[derive(Clone, Debug)]
pub(super) struct TestGuard {
    world: Simulated,
    armed: Arc<Mutex<Option<GuestHold>>>,
}

impl TestGuard {
    fn new(world: &Simulated) -> Self {
        Self { world: world.clone(), armed: Arc::default() }
    }
}

impl StartWatchdog for TestGuard {
    fn start(&self, _domain: DomainId) -> Result<Box<dyn Watchdog>> {
        Ok(Box::new(self.clone()))
    }
}

impl Watchdog for TestGuard {
    fn arm(&mut self, held: GuestHold, _budget: Duration) -> Result<()> {
        if self.world.is_dead() {
            return Err(Error::new(ErrorKind::Interrupted, "the driver was killed here"));
        }
        *self.armed.lock().unwrap() = Some(held);
        Ok(())
    }

    fn disarm(&mut self) -> Result<WatchdogOutcome> {
        if !self.world.is_dead() {
            *self.armed.lock().unwrap() = None;
        }
        Ok(WatchdogOutcome::InTime)
    }
}

/// What a guest is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) disks: usize,
    pub(super) persistence: virtfold_hypervisor::Persistence,
    pub(super) start: StartMode,
    pub(super) agent: SimAgent,
    /// Whether AppArmor confines it.
    pub(super) confined: bool,
}

pub(super) const PLAIN: Setup = Setup {
    disks: 1,
    persistence: virtfold_hypervisor::Persistence::Persistent,
    start: StartMode::Running,
    agent: SimAgent::Absent,
    confined: false,
};

pub(super) struct Scene {
    pub(super) world: Simulated,
    pub(super) id: DomainId,
    pub(super) journal: Memory,
    pub(super) guard: TestGuard,
    pub(super) setup: Setup,
}

pub(super) fn golden() -> PathBuf {
    PathBuf::from("/golden/g.qcow2")
}

fn golden_image() -> SimImage {
    SimImage { format: "qcow2".to_owned(), backing: None, writes: BTreeSet::from([GOLDEN]) }
}

impl Scene {
    pub(super) fn new(setup: Setup) -> Self {
        let world = Simulated::new();
        let disks: Vec<_> =
            (0..setup.disks).map(|n| (target(n), PathBuf::from(format!("/images/{n}.qcow2")))).collect();
        world.put_image(&golden(), golden_image());
        for (_, path) in &disks {
            let image = SimImage { backing: Some(golden()), writes: BTreeSet::new(), ..golden_image() };
            world.put_image(path, image);
        }
        let id = world.add(&SimSpec { name: "g".to_owned(), disks, agent: setup.agent }).unwrap();
        if setup.confined {
            world.confine();
        }
        world.start(id, setup.start).unwrap();
        world.domain_state(id).unwrap();
        if setup.persistence == virtfold_hypervisor::Persistence::Transient {
            world.make_transient(id);
        }
        let (journal, guard) = (Memory::new(&world), TestGuard::new(&world));
        Self { world, id, journal, guard, setup }
    }

    /// The same, in a world of its own.
    pub(super) fn fork(&self) -> Self {
        let world = self.world.fork();
        let guard = TestGuard { world: world.clone(), armed: Arc::default() };
        *guard.armed.lock().unwrap() = *self.guard.armed.lock().unwrap();
        Self { journal: self.journal.fork(&world), guard, world, id: self.id, setup: self.setup }
    }

    pub(super) fn host(&self) -> FreezeContext<'_> {
        let pace = FreezeTimings {
            pause_budget: Duration::from_millis(200),
            poll: Duration::ZERO,
            watch: Duration::from_secs(1 << 40),
            stall: Duration::from_millis(20),
        };
        FreezeContext {
            hypervisor: &self.world,
            files: &self.world,
            journal: &self.journal,
            guard: &self.guard,
            pace,
        }
    }

    pub(super) fn bases(&self) -> Vec<PathBuf> {
        (0..self.setup.disks).map(|n| PathBuf::from(format!("/images/{n}.qcow2"))).collect()
    }

    pub(super) fn overlays(&self) -> Vec<PathBuf> {
        self.bases().iter().map(|base| overlay_path(Path::new("/overlays"), base, 7)).collect()
    }

    pub(super) fn request(&self) -> FreezeRequest {
        let disks = self.bases().into_iter().zip(self.overlays()).enumerate().map(|(n, (base, overlay))| {
            let format = "qcow2".to_owned();
            let backing = Some((golden(), "qcow2".to_owned()));
            let identity = self.world.identity(&base).unwrap();
            let base = BaseImage { path: base, format, identity, backing };
            FreezeDisk { target: target(n), alias: format!("virtio-disk{n}"), base, overlay }
        });
        FreezeRequest {
            domain: self.id,
            disks: disks.collect(),
            targets: (0..self.setup.disks).map(target).collect(),
            tracked: Vec::new(),
            quiesce: match self.setup.agent {
                SimAgent::Absent => AgentFreeze::Skip,
                _ => AgentFreeze::Try(Duration::from_secs(1)),
            },
            min_free: 1 << 20,
        }
    }

    /// A backup whose copy sees that the bases are of one moment and stay so.
    pub(super) fn backup(&self) -> Result<Unfrozen<BTreeSet<u64>>> {
        with_frozen_disks(&self.host(), &self.request(), &Control::default(), |frozen| self.copy(frozen))
    }

    /// The copy.
    pub(super) fn copy(&self, frozen: &Frozen) -> Result<BTreeSet<u64>> {
        let seen = self.frozen_moment(frozen);
        drop(self.world.domains());
        drop(self.world.domains());
        assert_eq!(self.frozen_moment(frozen), seen, "a frozen base changed");
        if self.world.is_dead() {
            return Err(Error::new(ErrorKind::Interrupted, "the driver was killed here"));
        }
        Ok(seen)
    }

    /// What the frozen bases hold.
    pub(super) fn frozen_moment(&self, frozen: &Frozen) -> BTreeSet<u64> {
        let bases: Vec<PathBuf> = frozen.disks.iter().map(|d| d.path.clone()).collect();
        self.moment(&bases)
    }

    /// What images hold; it must be of one moment.
    fn moment(&self, images: &[PathBuf]) -> BTreeSet<u64> {
        let mut holds = self.world.holds(images);
        assert!(holds.remove(&GOLDEN));
        assert!(holds.iter().copied().eq(0..holds.len() as u64), "not of one moment: {holds:?}");
        holds
    }

    /// The guard dies with its driver.
    pub(super) fn kill_guard(&self) {
        *self.guard.armed.lock().unwrap() = None;
    }

    /// Loses the journal.
    pub(super) fn forget(&mut self) {
        self.journal = Memory::new(&self.world);
    }

    /// What happens when the driver is dead: its guard lets the guest go, a new driver comes.
    pub(super) fn revive(&self) {
        let was_dead = self.world.is_dead();
        self.world.revive();
        let mut entries = self.journal.entries();
        entries.last = None;
        entries.locked.clear();
        drop(entries);
        let armed = self.guard.armed.lock().unwrap().take();
        if let Some(held) = armed.filter(|_| was_dead) {
            // A dead guest needs nothing.
            drop(watchdog::release(&self.world, self.id, held));
        }
    }

    pub(super) fn recover(&self) -> Vec<Recovery> {
        recover(&self.host(), RecoverScope::All, RunMode::Apply).unwrap_or_default()
    }

    /// Sets off `fate` at point number `index` from now on.
    pub(super) fn set_fate(&self, index: usize, fate: Injected) {
        let mut count = 0;
        self.world.on_point(move |_| {
            count += 1;
            if count == index + 1 { fate } else { Injected::Nothing }
        });
    }

    /// Sets off each fate at its point from now on.
    pub(super) fn set_fates(&self, fates: Vec<(usize, Injected)>) {
        let mut count = 0;
        self.world.on_point(move |_| {
            count += 1;
            fates.iter().find(|(index, _)| *index + 1 == count).map_or(Injected::Nothing, |(_, fate)| *fate)
        });
    }

    /// As [`Scene::nothing_lost`], where no job is open: a domain that is gone and not home yet has no view.
    pub(super) fn nothing_lost_or_open(&self) -> std::result::Result<(), String> {
        let gone = self.world.tops(self.id).is_empty();
        if gone && !self.journal.open_sessions(None).unwrap().is_empty() {
            return Ok(());
        }
        self.nothing_lost()
    }

    /// The points that `work` passes.
    pub(super) fn points(&self, work: impl FnOnce(&Scene)) -> Vec<InjectionPoint> {
        let points = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&points);
        self.world.on_point(move |point| {
            seen.lock().unwrap().push(point);
            Injected::Nothing
        });
        work(self);
        self.world.on_point(|_| Injected::Nothing);
        let points = points.lock().unwrap();
        points.clone()
    }

    /// What a recovery can tell this scene from another by.
    pub(super) fn fingerprint(&self) -> String {
        let jobs = self.journal.open_sessions(None).unwrap();
        let marks = jobs.iter().flat_map(|job| &job.disks).map(|disk| {
            let overlay = disk.overlay.as_deref().unwrap();
            let now = self.world.mark(overlay).unwrap();
            let level = matches!(disk.state, UnfreezeState::Pivoting { level } if level == now);
            let empty = self.world.image(overlay).is_some_and(|i| i.writes.is_empty());
            (std::mem::discriminant(&disk.state), level, empty, self.world.image_use(overlay).unwrap())
        });
        let marks: Vec<_> = marks.collect();
        let jobs: Vec<_> = jobs.iter().map(|job| (job.state, job.held)).collect();
        let views = [XmlView::Live, XmlView::Inactive].map(|config| self.world.xml(self.id, config).ok());
        let same = self.world.holds(&self.world.tops(self.id)) == self.world.holds(&self.bases());
        let job = self.world.block_job(self.id, "vda").ok().map(|job| job.is_some());
        let guest = (self.world.domain_state(self.id).ok(), self.world.is_frozen(self.id));
        format!("{:?}", (jobs, marks, views, same, job, guest, self.world.images(), self.world.tops(self.id)))
    }

    /// Every write is in what the guest has, or will have at its next start; those of a domain that is gone
    /// are on its bases.
    pub(super) fn nothing_lost(&self) -> std::result::Result<(), String> {
        let mut tops = self.world.tops(self.id);
        if tops.is_empty() {
            // A person's own snapshots are a person's own.
            tops = self.bases();
            tops.extend(
                self.world.images().into_iter().filter(|path| path.to_string_lossy().ends_with(".user")),
            );
        }
        let holds = self.world.holds(&tops);
        let lost: Vec<u64> = (0..self.world.written(self.id)).filter(|n| !holds.contains(n)).collect();
        if !lost.is_empty() {
            return Err(format!("lost in {tops:?}: {lost:?}"));
        }
        if self.world.was_clobbered() {
            return Err("a stale overlay was committed".to_owned());
        }
        if self.world.image(&golden()) != Some(golden_image()) {
            return Err("the golden image was written to".to_owned());
        }
        Ok(())
    }

    /// Files that a backup made.
    pub(super) fn leftovers(&self) -> Vec<PathBuf> {
        let known = self.bases();
        self.world.images().into_iter().filter(|p| !known.contains(p) && *p != golden()).collect()
    }

    /// All views name the bases, nothing is left, no job is open, the guest does what it did.
    pub(super) fn is_home(&self, expected: Option<DomainState>) -> std::result::Result<(), String> {
        self.nothing_lost()?;
        let leftovers = self.leftovers();
        if !leftovers.is_empty() {
            return Err(format!("left over: {leftovers:?}"));
        }
        let open = self.journal.open_sessions(None).unwrap();
        if !open.is_empty() {
            return Err(format!("open: {open:?}"));
        }
        self.lives(expected)?;
        let Ok(info) = self.world.lookup(&self.id.to_string()) else { return Ok(()) };
        let mut views = vec![self.world.tops(self.id)];
        let of = |config| {
            let xml = DomainXml::parse(self.world.xml(self.id, config).unwrap()).unwrap();
            xml.disks.iter().map(|d| d.image.source.path().unwrap().to_owned()).collect::<Vec<_>>()
        };
        views.push(of(XmlView::Inactive));
        if info.run.is_active() {
            views.push(of(XmlView::Live));
        }
        match views.iter().find(|view| **view != self.bases()) {
            Some(view) => Err(format!("a view is {view:?}")),
            None => Ok(()),
        }
    }

    /// The guest runs if it ran, stands if it stood, and is not frozen.
    pub(super) fn lives(&self, expected: Option<DomainState>) -> std::result::Result<(), String> {
        if self.world.is_frozen(self.id) {
            return Err("the guest is frozen".to_owned());
        }
        let run = self.world.domain_state(self.id).ok();
        match expected {
            Some(expected) if run != Some(expected) => Err(format!("the guest is {run:?}, not {expected:?}")),
            _ => Ok(()),
        }
    }

    pub(super) fn expected(&self) -> DomainState {
        match self.setup.start {
            StartMode::Running => DomainState::Running,
            StartMode::Paused => DomainState::Paused(PausedReason::User),
        }
    }
}

pub(super) fn target(n: usize) -> String {
    format!("vd{}", ["a", "b", "c", "d"][n])
}
