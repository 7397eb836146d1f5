//! What the simulated hypervisor, its guests and their disks are made of, and what time does to them.
//!
//! An image holds numbers instead of bytes: the guest's write `n` goes, as a number, into the file that QEMU
//! has on top of disk `n % disks`. So a set of images is of one point in time exactly when their views
//! together hold 0..=N, and a write that got lost is a number that is missing.
//!
//! Three views of each disk are kept apart, because crashes tear them apart: what QEMU does ([`Qemu`]), what
//! the live XML says and what the configuration says ([`SimXml`]).
//!
//! Imports: `types`, `call_error`, `domain_xml`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::call_error::HypervisorError;
use crate::domain_xml::{ChainKnowledge, DomainXml, ImageSource};
use crate::types::{Activity, BlockJob, BlockJobKind, BlockJobStatus, DomainId, DomainState, PausedReason};

/// Writes of a running guest each time that somebody asks the hypervisor for something, unless a test says
/// otherwise.
pub(super) const WRITES_PER_CALL: u64 = 3;

pub(super) type SimResult<T> = std::result::Result<T, HypervisorError>;

/// The disks of a description.
pub(super) fn described(parsed: &DomainXml) -> Vec<SimDisk> {
    let disks = parsed.disks.iter().filter_map(|d| match &d.image.source {
        ImageSource::File(path) | ImageSource::Block(path) => {
            let chain = if d.backing.is_empty() { d.chain } else { ChainKnowledge::Complete };
            Some(SimDisk { target: d.target.clone(), path: path.clone(), chain, mirror: None })
        }
        _ => None,
    });
    disks.collect()
}
/// A commit is ready when no more than this is left.
const READY: usize = 3;

/// An image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimImage {
    /// `raw` or `qcow2`.
    pub format: String,
    /// The image below, as the header says it.
    pub backing: Option<PathBuf>,
    /// The guest's writes in it.
    pub writes: BTreeSet<u64>,
}

/// A disk as one of libvirt's descriptions has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SimDisk {
    pub(super) target: String,
    pub(super) path: PathBuf,
    /// Whether a configuration describes the chain below, as it does since libvirt last changed it.
    pub(super) chain: ChainKnowledge,
    /// `active-commit`, and `ready` as the live XML writes it.
    pub(super) mirror: Option<Option<&'static str>>,
}

/// A block job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SimBlockJob {
    /// What is still only in the overlay.
    pub(super) dirty: BTreeSet<u64>,
    pub(super) done: u64,
    pub(super) ready: bool,
    pub(super) base: PathBuf,
}

impl SimBlockJob {
    pub(super) fn info(&self) -> BlockJob {
        // 0 of 0 would mean that it has not begun.
        let current = self.done + 1;
        BlockJob { kind: BlockJobKind::ActiveCommit, current, end: current + self.dirty.len() as u64 }
    }
}

/// A QEMU.
#[derive(Clone, Debug, Default)]
pub(super) struct SimQemu {
    /// The top image of each disk, in the domain's order.
    pub(super) tops: Vec<PathBuf>,
    pub(super) jobs: BTreeMap<String, SimBlockJob>,
    /// Images that AppArmor's rules deny it writes to: in the file, and as they are loaded.
    pub(super) rules: BTreeSet<PathBuf>,
    pub(super) loaded: BTreeSet<PathBuf>,
    /// Images that it has open for none of its disks.
    pub(super) unused: BTreeSet<PathBuf>,
    pub(super) paused: Option<PausedReason>,
    /// The guest's agent has frozen the file systems.
    pub(super) frozen: bool,
    /// The number of this run.
    pub(super) run: u64,
}

/// What libvirt says of a domain.
#[derive(Clone, Debug, Default)]
pub(super) struct SimXml {
    pub(super) live: Vec<SimDisk>,
    /// `None` for a transient domain.
    pub(super) config: Option<Vec<SimDisk>>,
}

/// How the guest's agent behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SimAgent {
    /// There is none.
    #[default]
    Absent,
    /// It answers.
    Answers,
    /// It never answers.
    Hangs,
    /// It thaws, and says that it failed: its hook did.
    FailsToThaw,
    /// It dies of a freeze, which has frozen all, and nobody thaws.
    DiesFrozen,
}

/// A domain.
#[derive(Clone, Debug)]
pub(super) struct SimDomain {
    pub(super) name: String,
    /// The XML it was defined with; disks are replaced when it is asked for.
    pub(super) text: String,
    /// The XML it was defined with at first.
    pub(super) original: String,
    pub(super) views: SimXml,
    pub(super) qemu: Option<SimQemu>,
    pub(super) agent: SimAgent,
    pub(super) agent_limited: bool,
    pub(super) managed_save: Option<String>,
    pub(super) activity: Activity,
    /// The guest's next write.
    pub(super) next: u64,
    /// Writes of the running guest each time that somebody asks for something.
    pub(super) pace: u64,
}

impl SimDomain {
    pub(super) fn run(&self) -> DomainState {
        match self.qemu.as_ref().map(|q| q.paused) {
            None => DomainState::ShutOff,
            Some(None) => DomainState::Running,
            Some(Some(why)) => DomainState::Paused(why),
        }
    }

    /// The place of a disk in the domain's order, by the live XML or else the configuration.
    pub(super) fn position(&self, target: &str) -> Option<usize> {
        let disks = if self.qemu.is_some() { Some(&self.views.live) } else { self.views.config.as_ref() };
        disks?.iter().position(|d| d.target == target)
    }
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub(super) struct SimHost {
    pub(super) domains: BTreeMap<DomainId, SimDomain>,
    pub(super) images: BTreeMap<PathBuf, SimImage>,
    pub(super) held: BTreeMap<PathBuf, u32>,
    pub(super) pools: BTreeMap<String, PathBuf>,
    pub(super) free: u64,
    /// Counts calls; files' times are of it.
    pub(super) clock: u64,
    /// When each image was written to last.
    pub(super) touched: BTreeMap<PathBuf, u64>,
    /// The files of images that were put there.
    pub(super) inodes: BTreeMap<PathBuf, u64>,
    /// Images with somebody's internal snapshots inside.
    pub(super) inner: BTreeSet<PathBuf>,
    /// Domains whose XML is of a kind that nobody here knows.
    pub(super) odd: BTreeSet<DomainId>,
    /// Directories that are not there any more.
    pub(super) missing: BTreeSet<PathBuf>,
    /// Directories that are full.
    pub(super) full: BTreeSet<PathBuf>,
    /// A stale overlay was committed over newer writes.
    pub(super) clobbered: bool,
    /// AppArmor confines the guests.
    pub(super) confined: bool,
    /// Its rules can't be written.
    pub(super) rules_locked: bool,
    /// Images that a QEMU on another host writes to.
    pub(super) elsewhere: BTreeSet<PathBuf>,
    /// Whether the host shows what its QEMUs have open: to root it does.
    pub(super) qemus_are_seen: bool,
    /// Runs of guests so far.
    pub(super) runs: u64,
    /// What domains that are gone had written.
    pub(super) gone: BTreeMap<DomainId, u64>,
}

impl SimHost {
    /// Puts a write into an image.
    pub(super) fn write(&mut self, path: &Path, write: u64) {
        self.images.entry(path.to_owned()).or_default().writes.insert(write);
        self.touched.insert(path.to_owned(), self.clock);
    }

    /// Notes a commit of an overlay into a base. Images hold numbers, not blocks, so nothing is overwritten
    /// here; but where the base has a later write than the overlay, older blocks would go over newer ones.
    pub(super) fn note_commit(&mut self, overlay: &Path, base: &Path) {
        let last = |path: &Path| self.images.get(path).and_then(|i| i.writes.last().copied());
        self.clobbered |= last(overlay).is_some() && last(base) > last(overlay);
    }

    pub(super) fn is_full(&self, path: &Path) -> bool {
        path.parent().is_some_and(|directory| self.full.contains(directory))
    }

    /// Lets each running guest write. A guest that is paused or frozen does not. One whose disk is full is
    /// paused by that.
    pub(super) fn tick(&mut self) {
        self.clock += 1;
        let ids: Vec<DomainId> = self.domains.keys().copied().collect();
        for id in ids {
            let pace = self.domains.get(&id).map_or(0, |d| d.pace);
            for _ in 0..pace {
                self.guest_writes(id);
            }
        }
    }

    fn guest_writes(&mut self, id: DomainId) {
        let Some(domain) = self.domains.get(&id) else { return };
        let Some(qemu) = domain.qemu.as_ref().filter(|q| q.paused.is_none() && !q.frozen) else { return };
        let disk = domain.next.checked_rem(qemu.tops.len() as u64).unwrap_or(0);
        let disk = usize::try_from(disk).unwrap_or(0);
        let (Some(top), Some(view)) = (qemu.tops.get(disk), domain.views.live.get(disk)) else { return };
        let (top, target, write) = (top.clone(), view.target.clone(), domain.next);
        let full = self.is_full(&top);
        if !full {
            self.write(&top, write);
        }
        let Some(domain) = self.domains.get_mut(&id) else { return };
        let Some(qemu) = &mut domain.qemu else { return };
        if full {
            qemu.paused = Some(PausedReason::IoError);
            return;
        }
        if let Some(job) = qemu.jobs.get_mut(&target) {
            job.dirty.insert(write);
        }
        domain.next += 1;
    }

    /// Lets a disk's block job get on by half of what is left, by all of it once it is ready. Says when it
    /// has just got ready, or failed because its base is full.
    pub(super) fn advance(&mut self, id: DomainId, target: &str) -> Option<BlockJobStatus> {
        let qemu = self.domains.get_mut(&id)?.qemu.as_mut()?;
        let job = qemu.jobs.get(target)?.clone();
        if !job.dirty.is_empty() && self.is_full(&job.base) {
            self.domains.get_mut(&id)?.qemu.as_mut()?.jobs.remove(target);
            return Some(BlockJobStatus::Failed);
        }
        let step = if job.ready { job.dirty.len() } else { job.dirty.len().div_ceil(2) };
        let moved: Vec<u64> = job.dirty.iter().take(step).copied().collect();
        moved.iter().for_each(|write| self.write(&job.base, *write));
        let job = self.domains.get_mut(&id)?.qemu.as_mut()?.jobs.get_mut(target)?;
        job.dirty.retain(|write| !moved.contains(write));
        job.done += moved.len() as u64;
        let ready = !job.ready && job.dirty.len() <= READY;
        job.ready |= ready;
        ready.then_some(BlockJobStatus::Ready)
    }

    /// The image and all below it, top first.
    pub(super) fn chain(&self, top: &Path) -> Vec<PathBuf> {
        let mut chain = vec![top.to_owned()];
        let mut image = self.images.get(top);
        while let Some(below) = image.and_then(|i| i.backing.as_ref()) {
            if chain.contains(below) {
                break;
            }
            chain.push(below.clone());
            image = self.images.get(below);
        }
        chain
    }

    /// What a reader of `top` sees.
    pub(super) fn view(&self, top: &Path) -> BTreeSet<u64> {
        let images = self.chain(top).into_iter().filter_map(|p| self.images.get(&p));
        images.flat_map(|i| i.writes.iter().copied()).collect()
    }

    /// What libvirt does whenever it restores a label: the rules are written anew, and loaded.
    pub(super) fn write_rules(&mut self, id: DomainId) {
        let qemu = self.domains.get(&id).and_then(|d| d.qemu.as_ref());
        let Some(qemu) = qemu.filter(|_| self.confined) else { return };
        let below = qemu.tops.iter().flat_map(|top| self.chain(top).into_iter().skip(1));
        let rules: BTreeSet<PathBuf> = below.filter(|path| !qemu.tops.contains(path)).collect();
        if let Some(qemu) = self.domains.get_mut(&id).and_then(|d| d.qemu.as_mut()) {
            qemu.loaded.clone_from(&rules);
            qemu.rules = rules;
        }
    }

    /// Ends a domain's QEMU. A transient domain is gone with it.
    pub(super) fn power_off(&mut self, id: DomainId) {
        let Some(domain) = self.domains.get_mut(&id) else { return };
        domain.qemu = None;
        domain.views.live.clear();
        if domain.views.config.is_none() {
            self.gone.insert(id, domain.next);
            self.domains.remove(&id);
        }
    }
}
