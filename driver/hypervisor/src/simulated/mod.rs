//! A hypervisor in memory, which crashes on demand and then leaves behind what libvirt was seen to leave.
//!
//! Before, in the midst of and after each call a hook is asked what becomes of the world ([`Injected`]); that
//! is how a test reaches every crash point of a job without a QEMU. What is simulated, and where libvirt 11.3
//! showed it:
//!
//! - libvirtd killed in the midst of a snapshot: an overlay that nobody uses and QEMU has open
//!   ([`CallPhase::Half`]), a QEMU that writes to the overlay and descriptions that both name the base
//!   ([`CallPhase::Early`]), or a live XML with the overlay and a configuration without it
//!   ([`CallPhase::Late`]); with quiesce, a guest that stays frozen in any case.
//! - libvirtd killed in the midst of a pivot: nothing happened ([`CallPhase::Half`]), or QEMU writes to the
//!   base while both descriptions name the overlay, the mirror's mark says `pivot`, there is no job, and
//!   every further job on the disk fails ([`CallPhase::Late`]).
//! - A lost connection says error although the call may have been done.
//! - Where AppArmor confines the guests, whatever restores labels denies QEMU writes to the images below
//!   overlays.
//! - A guest's end keeps the configuration that is there; a transient domain is gone.
//! - A hung agent without a time limit blocks for good: here, a fault that says so.
//!
//! Guests write all the time (see `state`); [`Simulated::holds`] and [`Simulated::written`] are what a test
//! judges by. What others do to a guest is in `third_party`. Not simulated: internal snapshots, the agent's
//! answer in time.
//!
//! Imports: `types`, `call_error`, `domain_xml`, `event_hub`, `host_files`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::call_error::{ErrorOrigin, HypervisorError, code};
use super::event_hub::EventHub;
use super::types::DomainId;
use virtfold_base::error::{Error, ErrorKind, Result};

mod calls;
mod files;
mod operations;
mod state;
mod third_party;
mod xml;

pub use operations::Operation;
pub use state::{SimAgent, SimImage};
use state::{SimDomain, SimHost, SimXml};
pub use third_party::ThirdPartyAction;

impl Operation {
    /// Whether it is done without libvirtd.
    fn is_local(self) -> bool {
        use Operation::{CommitFile, Hold, Look, Quarantine, Remove, Rules};
        matches!(self, Look | Hold | Remove | Quarantine | CommitFile | Rules)
    }
}

/// A moment of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CallPhase {
    /// Nothing was done yet.
    Before,
    /// Something was done, QEMU did not switch. Snapshot, pivot, and a commit at rest of which half was done.
    Half,
    /// QEMU switched, and libvirt knows nothing of it. Snapshot only.
    Early,
    /// QEMU switched, libvirt has not written all of it down. Snapshot and pivot only.
    Late,
    /// All is done, the answer is on its way.
    After,
}

/// Where a hook is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InjectionPoint {
    /// The call.
    pub operation: Operation,
    /// The moment.
    pub when: CallPhase,
}

/// What becomes of the world at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injected {
    /// Nothing.
    Nothing,
    /// The driver dies: this and every further call fails, and changes nothing, until [`Simulated::revive`].
    /// libvirtd finishes the call at hand.
    KillDriver,
    /// libvirtd dies and is there again for the next call; this one is lost.
    KillLibvirtd,
    /// Every guest's QEMU dies.
    KillGuests,
    /// The host loses power: driver, libvirtd and guests at once.
    CrashHost,
    /// Somebody does something to every domain; the driver goes on.
    Outside(ThirdPartyAction),
}

/// Whether a file system has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimSpace {
    /// It is full: a guest that writes there is paused, a commit into it fails.
    None,
    /// It has.
    Enough,
}

/// Asked at each point.
pub type InjectionHook = Box<dyn FnMut(InjectionPoint) -> Injected + Send>;

/// The hypervisor in memory. Clones are the same one.
#[derive(Clone)]
pub struct Simulated {
    state: Arc<Mutex<State>>,
    hub: Arc<EventHub>,
}

struct State {
    world: SimHost,
    hook: InjectionHook,
    dead: bool,
}

impl fmt::Debug for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Simulated").field("world", &state.world).field("dead", &state.dead).finish()
    }
}

impl Default for Simulated {
    fn default() -> Self {
        Self::new()
    }
}

/// A domain to be made. Its disks' images are made empty where they are not there.
#[derive(Clone, Debug)]
pub struct SimSpec {
    /// The name.
    pub name: String,
    /// `(target, image)` of each disk; images are qcow2.
    pub disks: Vec<(String, PathBuf)>,
    /// How its agent behaves.
    pub agent: SimAgent,
}

impl Simulated {
    /// A world with no domains.
    pub fn new() -> Self {
        let world = SimHost { free: 1 << 40, ..SimHost::default() };
        let state = State { world, hook: Box::new(|_| Injected::Nothing), dead: false };
        Self { state: Arc::new(Mutex::new(state)), hub: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the hook.
    pub fn on_point(&self, hook: impl FnMut(InjectionPoint) -> Injected + Send + 'static) {
        self.lock().hook = Box::new(hook);
    }

    /// A new driver: calls work again, and the hook is gone. What the old one held is free.
    pub fn revive(&self) {
        let mut state = self.lock();
        state.dead = false;
        state.world.held.clear();
        state.hook = Box::new(|_| Injected::Nothing);
    }

    /// Whether the driver was killed.
    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Defines a persistent domain, shut off.
    ///
    /// # Errors
    /// What [`super::Hypervisor::define`] says.
    pub fn add(&self, spec: &SimSpec) -> Result<DomainId> {
        let disks: String = spec.disks.iter().map(disk_text).collect();
        let name = super::domain_xml::edit::escape(&spec.name).into_owned();
        let text = format!("<domain type='qemu'><name>{name}</name><devices>{disks}</devices></domain>");
        let id = super::Hypervisor::define(self, &text)?;
        let mut state = self.lock();
        for (_, path) in &spec.disks {
            let made = SimImage { format: "qcow2".to_owned(), ..SimImage::default() };
            state.world.images.entry(path.clone()).or_insert(made);
        }
        if let Some(domain) = state.world.domains.get_mut(&id) {
            domain.agent = spec.agent;
        }
        Ok(id)
    }

    /// Makes a running domain transient.
    pub fn make_transient(&self, id: DomainId) {
        if let Some(domain) = self.lock().world.domains.get_mut(&id) {
            domain.views.config = None;
        }
    }

    /// Puts an image there, or replaces it.
    pub fn put_image(&self, path: &Path, image: SimImage) {
        let world = &mut self.lock().world;
        world.clock += 1;
        world.touched.insert(path.to_owned(), world.clock);
        let inode = world.inodes.values().max().map_or(2, |last| last + 1);
        world.inodes.insert(path.to_owned(), inode);
        world.images.insert(path.to_owned(), image);
    }

    /// As [`Simulated::put_image`], of a copy that keeps the time of another one's last write, as `cp -p`
    /// does.
    pub fn put_image_as_old_as(&self, path: &Path, image: SimImage, other: &Path) {
        self.put_image(path, image);
        let touched = &mut self.lock().world.touched;
        let old = touched.get(other).copied().unwrap_or(0);
        touched.insert(path.to_owned(), old);
    }

    /// Gives an image's file its inode, as if it had been written over in place.
    pub fn set_identity(&self, path: &Path, inode: u64) {
        self.lock().world.inodes.insert(path.to_owned(), inode);
    }

    /// Lets a domain's XML be of a kind that nobody here knows.
    pub fn make_odd(&self, id: DomainId) {
        self.lock().world.odd.insert(id);
    }

    /// Takes a directory away, as where its file system is not mounted.
    pub fn lose_directory(&self, directory: &Path) {
        self.lock().world.missing.insert(directory.to_owned());
    }

    /// Takes an internal snapshot inside of an image.
    pub fn put_snapshot(&self, path: &Path) {
        self.lock().world.inner.insert(path.to_owned());
    }

    /// Deletes the internal snapshots inside of an image.
    pub fn delete_snapshots(&self, path: &Path) {
        self.lock().world.inner.remove(path);
    }

    /// Runs are counted anew, as by a libvirtd that was restarted when no guest ran.
    pub fn count_runs_anew(&self) {
        self.lock().world.runs = 0;
    }

    /// Sets the host's clock back by so many calls.
    pub fn set_clock_back(&self, calls: u64) {
        let world = &mut self.lock().world;
        world.clock = world.clock.saturating_sub(calls);
    }

    /// An image.
    pub fn image(&self, path: &Path) -> Option<SimImage> {
        self.lock().world.images.get(path).cloned()
    }

    /// The paths of all images.
    pub fn images(&self) -> Vec<PathBuf> {
        self.lock().world.images.keys().cloned().collect()
    }

    /// What readers of these images see, all together.
    pub fn holds(&self, tops: &[PathBuf]) -> BTreeSet<u64> {
        let state = self.lock();
        tops.iter().flat_map(|top| state.world.view(top)).collect()
    }

    /// How many writes the guest has made since it was defined.
    pub fn written(&self, id: DomainId) -> u64 {
        let state = self.lock();
        let gone = || state.world.gone.get(&id).copied().unwrap_or(0);
        state.world.domains.get(&id).map_or_else(gone, |d| d.next)
    }

    /// The top images of a domain's disks: what its QEMU writes to, or what its next start would use. None
    /// for a domain that is gone.
    pub fn tops(&self, id: DomainId) -> Vec<PathBuf> {
        let state = self.lock();
        let Some(domain) = state.world.domains.get(&id) else { return Vec::new() };
        match (&domain.qemu, &domain.views.config) {
            (Some(qemu), _) => qemu.tops.clone(),
            (None, Some(config)) => config.iter().map(|disk| disk.path.clone()).collect(),
            (None, None) => Vec::new(),
        }
    }

    /// Lets everybody see what the host's QEMUs have open.
    pub fn show_qemus(&self) {
        self.lock().world.qemus_are_seen = true;
    }

    /// Lets go of all images, as on a file system without locks.
    pub fn drop_holds(&self) {
        self.lock().world.held.clear();
    }

    /// Whether a stale overlay was committed over newer writes.
    pub fn was_clobbered(&self) -> bool {
        self.lock().world.clobbered
    }

    /// Kills the driver between two calls.
    pub fn kill_driver(&self) {
        self.lock().dead = true;
    }

    /// Another world that is as this one is now, with no hook and no subscribers.
    #[must_use]
    pub fn fork(&self) -> Self {
        let state = self.lock();
        let state =
            State { world: state.world.clone(), hook: Box::new(|_| Injected::Nothing), dead: state.dead };
        Self { state: Arc::new(Mutex::new(state)), hub: Arc::default() }
    }

    /// Whether the guest's file systems are frozen.
    pub fn is_frozen(&self, id: DomainId) -> bool {
        let state = self.lock();
        state.world.domains.get(&id).and_then(|d| d.qemu.as_ref()).is_some_and(|q| q.frozen)
    }

    /// Changes what is free on the host.
    pub fn set_free(&self, bytes: u64) {
        self.lock().world.free = bytes;
    }

    /// Changes how a guest's agent behaves.
    pub fn set_agent(&self, id: DomainId, agent: SimAgent) {
        if let Some(domain) = self.lock().world.domains.get_mut(&id) {
            domain.agent = agent;
        }
    }

    /// Changes how much a guest writes each time that somebody asks for something.
    pub fn set_pace(&self, id: DomainId, writes: u64) {
        if let Some(domain) = self.lock().world.domains.get_mut(&id) {
            domain.pace = writes;
        }
    }

    /// Lets somebody do something to every domain.
    pub fn happens(&self, what: ThirdPartyAction) {
        third_party::happens(&mut self.lock().world, what, &self.hub);
    }

    /// Fills a directory's file system, or makes room in it again.
    pub fn set_room(&self, directory: &Path, room: SimSpace) {
        let full = &mut self.lock().world.full;
        match room {
            SimSpace::None => full.insert(directory.to_owned()),
            SimSpace::Enough => full.remove(directory),
        };
    }

    /// Makes a pool of files.
    pub fn add_pool(&self, name: &str, directory: &Path) {
        self.lock().world.pools.insert(name.to_owned(), directory.to_owned());
    }

    /// Runs one call of the driver. `call` gets the world and asks [`SimCall::reaches`] at the moments it
    /// knows.
    fn call<T>(
        &self,
        operation: Operation,
        call: impl FnOnce(&mut SimCall<'_>) -> std::result::Result<T, HypervisorError>,
    ) -> Result<T> {
        let mut state = self.lock();
        if state.dead {
            return Err(killed());
        }
        state.world.tick();
        let State { world, hook, .. } = &mut *state;
        let mut turn = SimCall { world, hook, operation, fate: Injected::Nothing, hub: &self.hub };
        let result = if turn.reaches(CallPhase::Before) { Err(lost()) } else { call(&mut turn) };
        if turn.fate == Injected::Nothing {
            turn.reaches(CallPhase::After);
        }
        let fate = turn.fate;
        state.dead |= matches!(fate, Injected::KillDriver | Injected::CrashHost);
        if fate == Injected::CrashHost {
            third_party::happens(&mut state.world, ThirdPartyAction::KillGuests, &self.hub);
        }
        if fate == Injected::KillLibvirtd {
            // The agent's limit is libvirtd's own.
            state.world.domains.values_mut().for_each(|d| d.agent_limited = false);
            self.hub.connection_lost();
        }
        if state.dead {
            return Err(killed());
        }
        let lost_it = fate == Injected::KillLibvirtd && !operation.is_local();
        let result = if lost_it { Err(lost()) } else { result };
        result.map_err(|fault| fault.into_error(format!("the simulated {operation:?} failed")))
    }
}

/// One call, and what became of the world in it.
struct SimCall<'a> {
    world: &'a mut SimHost,
    hook: &'a mut InjectionHook,
    operation: Operation,
    fate: Injected,
    hub: &'a EventHub,
}

impl SimCall<'_> {
    /// Asks the hook; true when the call ends here. A dying driver or guest does not end what libvirtd does,
    /// save before it began.
    fn reaches(&mut self, when: CallPhase) -> bool {
        if self.fate == Injected::Nothing {
            self.fate = (self.hook)(InjectionPoint { operation: self.operation, when });
            // What befalls the guests befalls them now; the call goes on and sees it.
            match self.fate {
                Injected::KillGuests => {
                    third_party::happens(self.world, ThirdPartyAction::KillGuests, self.hub)
                }
                // Who needs libvirt waits until the call is over.
                Injected::Outside(what)
                    if matches!(when, CallPhase::Half | CallPhase::Early | CallPhase::Late)
                        && !what.is_the_guests() =>
                {
                    self.fate = Injected::Nothing;
                }
                Injected::Outside(what) => third_party::happens(self.world, what, self.hub),
                _ => {}
            }
        }
        match self.fate {
            Injected::Nothing => false,
            Injected::Outside(_) | Injected::KillGuests => false,
            Injected::KillDriver => when == CallPhase::Before,
            Injected::KillLibvirtd => !self.operation.is_local(),
            Injected::CrashHost => true,
        }
    }

    fn domain(&mut self, id: DomainId) -> std::result::Result<&mut SimDomain, HypervisorError> {
        let missing = || refused(code::NO_DOMAIN, "Domain not found");
        self.world.domains.get_mut(&id).ok_or_else(missing)
    }
}

fn disk_text((target, path): &(String, PathBuf)) -> String {
    let path = path.to_string_lossy();
    let path = super::domain_xml::edit::escape(&path);
    format!(
        "<disk type='file'><driver name='qemu' type='qcow2'/><source file='{path}'/><target dev='{target}'/></disk>"
    )
}

fn refused(code: i32, text: &str) -> HypervisorError {
    HypervisorError { code, domain: 10, text: text.to_owned(), answer: ErrorOrigin::Answered }
}

fn lost() -> HypervisorError {
    let text = "End of file while reading data: Input/output error".to_owned();
    HypervisorError { code: code::SYSTEM, domain: 7, text, answer: ErrorOrigin::ConnectionLost }
}

fn killed() -> Error {
    let error = Error::new(ErrorKind::Interrupted, "the driver was killed here");
    error.with_source(lost())
}

#[cfg(test)]
mod tests;
