//! What others do to guests while a job is at work: their users, other tools, the guests themselves.
//!
//! Imports: `types`, `domain_xml`, `event_hub`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::state::{SimDomain, SimHost, SimQemu, described};
use super::{EventHub, SimImage, Simulated};
use crate::domain_xml::{ChainKnowledge, DomainXml};
use crate::types::{DomainEvent, DomainId, Lifecycle, PausedReason, StartedDetail, StoppedDetail, XmlView};

/// Something that is done to every domain, where it can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThirdPartyAction {
    /// The QEMU dies.
    KillGuests,
    /// The guest shuts down.
    ShutDown,
    /// It is started.
    Start,
    /// It is saved: its memory, and the XML it will go on with.
    Save,
    /// It goes on on another host; its disks are on shared storage.
    MigrateAway,
    /// An external snapshot of its first disk is taken on top of what is there.
    Snapshot,
    /// Its configuration is replaced by the text it was first defined with.
    Redefine,
    /// Its configuration is forgotten.
    Undefine,
    /// Its processors are stopped.
    Suspend,
    /// They go on.
    Resume,
    /// Its CD is ejected: libvirt restores a label.
    Eject,
    /// Its last disk is taken off the running guest; the configuration keeps it.
    DetachLive,
    /// Its last disk is taken off the guest and its configuration.
    Detach,
    /// Its last disk is detached from its configuration; the running guest keeps it.
    DetachConfig,
}

impl ThirdPartyAction {
    /// Whether it comes from the guest or its QEMU, and not by a call of libvirt's.
    pub(super) fn is_the_guests(self) -> bool {
        matches!(self, ThirdPartyAction::KillGuests | ThirdPartyAction::ShutDown)
    }
}

impl Simulated {
    /// Gives a domain that is shut off a managed save image with this XML inside.
    pub fn save(&self, id: DomainId, xml: &str) {
        if let Some(domain) = self.lock().world.domains.get_mut(&id) {
            domain.managed_save = Some(xml.to_owned());
        }
    }

    /// Confines the guests that start from now on by AppArmor.
    pub fn confine(&self) {
        self.lock().world.confined = true;
    }

    /// Lets AppArmor's rules be where nobody but libvirt can write.
    pub fn lock_rules(&self) {
        self.lock().world.rules_locked = true;
    }
}

/// A boot takes longer than a mirror is behind.
pub(super) const BOOT: u64 = 100;

/// Does it.
pub(super) fn happens(world: &mut SimHost, what: ThirdPartyAction, hub: &EventHub) {
    let ids: Vec<DomainId> = world.domains.keys().copied().collect();
    for id in ids {
        if let Some(change) = happens_to(world, id, what) {
            hub.publish(&DomainEvent::Lifecycle { domain: id, change });
        }
    }
}

fn happens_to(world: &mut SimHost, id: DomainId, what: ThirdPartyAction) -> Option<Lifecycle> {
    let domain = world.domains.get_mut(&id)?;
    let runs = domain.qemu.is_some();
    match what {
        ThirdPartyAction::KillGuests | ThirdPartyAction::ShutDown if runs => world.power_off(id),
        ThirdPartyAction::Start if !runs => return start(world, id),
        ThirdPartyAction::Save if runs && domain.views.config.is_some() => {
            let known = domain.clone();
            let text = super::xml::render(world, id, &known, XmlView::Live)?;
            let run = format!(" id='{}'", known.qemu.map_or(0, |q| q.run));
            world.domains.get_mut(&id)?.managed_save = Some(text.replacen(&run, "", 1));
            world.power_off(id);
        }
        ThirdPartyAction::MigrateAway if runs => {
            let tops = domain.qemu.as_ref().map(|q| q.tops.clone())?;
            world.elsewhere.extend(tops);
            world.power_off(id);
        }
        ThirdPartyAction::Snapshot if runs => return snapshot(world, id),
        ThirdPartyAction::DetachLive | ThirdPartyAction::Detach if runs => {
            detach(domain, what);
            return None;
        }
        ThirdPartyAction::DetachConfig => {
            domain.views.config.iter_mut().for_each(|config| drop(config.pop()));
            return Some(Lifecycle::Defined);
        }
        ThirdPartyAction::Redefine if domain.views.config.is_some() => {
            let parsed = DomainXml::parse(domain.original.clone()).ok()?;
            domain.views.config = Some(described(&parsed));
            return Some(Lifecycle::Defined);
        }
        ThirdPartyAction::Undefine if domain.views.config.is_some() => {
            domain.views.config = None;
            domain.managed_save = None;
            if !runs {
                world.gone.insert(id, domain.next);
                world.domains.remove(&id);
            }
            return Some(Lifecycle::Undefined);
        }
        ThirdPartyAction::Eject => {
            world.write_rules(id);
            return None;
        }
        ThirdPartyAction::Suspend => {
            domain.qemu.as_mut()?.paused.get_or_insert(PausedReason::User);
            return Some(Lifecycle::Suspended);
        }
        ThirdPartyAction::Resume => {
            domain.qemu.as_mut()?.paused = None;
            return Some(Lifecycle::Resumed);
        }
        _ => return None,
    }
    Some(Lifecycle::Stopped(match what {
        ThirdPartyAction::KillGuests => StoppedDetail::Crashed,
        ThirdPartyAction::Save => StoppedDetail::Saved,
        ThirdPartyAction::MigrateAway => StoppedDetail::Migration,
        _ => StoppedDetail::Shutdown,
    }))
}

/// As libvirt: not a disk that has a job. A guest's only disk stays.
fn detach(domain: &mut SimDomain, what: ThirdPartyAction) {
    let (Some(qemu), true) = (&mut domain.qemu, domain.views.live.len() > 1) else { return };
    let Some(gone) = domain.views.live.pop_if(|disk| disk.mirror.is_none()) else { return };
    qemu.tops.truncate(domain.views.live.len());
    if what == ThirdPartyAction::Detach {
        domain.views.config.iter_mut().for_each(|config| config.retain(|disk| disk.target != gone.target));
    }
}

fn start(world: &mut SimHost, id: DomainId) -> Option<Lifecycle> {
    let domain = world.domains.get_mut(&id)?;
    let saved = domain.managed_save.clone().and_then(|xml| DomainXml::parse(xml).ok());
    let disks = saved.map_or_else(|| domain.views.config.clone(), |s| Some(described(&s)))?;
    let tops: Vec<PathBuf> = disks.iter().map(|d| d.path.clone()).collect();
    let barred = |top: &PathBuf| {
        world.held.get(top).is_some_and(|n| *n > 0)
            || world.elsewhere.contains(top)
            || !world.images.contains_key(top)
    };
    if tops.iter().any(barred) {
        return None;
    }
    world.runs += 1;
    world.clock += BOOT;
    let domain = world.domains.get_mut(&id)?;
    let begin = if domain.managed_save.is_some() { StartedDetail::Restore } else { StartedDetail::Boot };
    domain.managed_save = None;
    domain.views.live = disks;
    domain.qemu = Some(SimQemu { tops, run: world.runs, ..SimQemu::default() });
    world.write_rules(id);
    Some(Lifecycle::Started(begin))
}

/// As libvirt: not on a disk that has a job.
fn snapshot(world: &mut SimHost, id: DomainId) -> Option<Lifecycle> {
    let domain = world.domains.get_mut(&id)?;
    let disk = domain.views.live.first_mut().filter(|d| d.mirror.is_none())?;
    let top = domain.qemu.as_mut()?.tops.first_mut()?;
    let mut path = top.clone().into_os_string();
    path.push(".user");
    let path = PathBuf::from(path);
    if world.images.contains_key(&path) {
        return None;
    }
    let below = std::mem::replace(top, path.clone());
    disk.path.clone_from(&path);
    for disk in domain.views.config.iter_mut().flatten().take(1) {
        disk.path.clone_from(&path);
        disk.chain = ChainKnowledge::Complete;
    }
    let image = SimImage { format: "qcow2".to_owned(), backing: Some(below), writes: BTreeSet::new() };
    world.images.insert(path, image);
    None
}
