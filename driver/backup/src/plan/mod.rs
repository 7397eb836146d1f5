//! What a backup of a guest would do: looked at, decided and said, with nothing touched.
//!
//! 1. What is known: run state, live and inactive XML, QEMU's own answer, what else goes on
//!    ([`DomainSnapshotInfo`]). Volumes of storage pools are looked up.
//! 2. Each disk by its rule ([`disk_rules::disk_rule`]); for those that are copied the chain, the size, and
//!    the overlay's place (`disks`, `overlay`).
//! 3. How the guest's file systems get clean, or that they do not (`quiesce`); whether the overlays have room
//!    (`free_space`); whether another running guest writes to an image of the chain (`other_writers`).
//! 4. Everything that speaks against it, each as a [`Finding`] with the rule's sentence and what a person can
//!    do.
//!
//! The chain is what libvirt says where it says all of it, and what the images' headers say otherwise. The
//! format of the top image is always libvirt's; without one it is raw, as for QEMU. Nothing is probed.
//!
//! The backup itself makes a plan, too, and does what it says: `--plan` and the deed can't differ in their
//! rules. What may change in between is looked at again by the freeze.
//!
//! Imports: `error`, `image`, `hypervisor`; `archive` for the names that its members can have.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;
use uuid::Uuid;

use crate::options::BackupOptions;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_hypervisor::disk_rules::{self, BackupMode, DiskChoice, DiskRule, DomainFacts};
use virtfold_hypervisor::domain_xml::{DiskDifference, DomainXml, changed_disks};
use virtfold_hypervisor::host_files::HostFiles;
use virtfold_hypervisor::{
    Activity, DomainInfo, DomainState, Hypervisor, PausedReason, Persistence, QemuDisk, XmlView,
};

mod disks;
mod findings;
mod free_space;
mod other_writers;
mod overlay;
mod quiesce;
mod volumes;

#[cfg(test)]
mod tests;

pub use disks::{ChainImage, ChainSource, PlannedDisk};
pub use findings::Finding;
pub use free_space::FreeSpace;
pub use other_writers::OtherWriters;
pub use quiesce::{Consistency, QuiesceDecision};

/// What a plan goes by.
#[derive(Clone, Copy, Debug)]
pub struct PlanContext<'a> {
    /// What was chosen.
    pub options: &'a BackupOptions,
    /// virtfold's own directory: overlays of block devices go into `overlays` in it.
    pub state_dir: &'a Path,
    /// The device numbers of the file systems that the archive goes to, as far as they are known. Another
    /// process queries them: a medium may hang.
    pub archive_devices: &'a [u64],
}

/// A domain in a plan.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedDomain {
    /// Its name.
    pub name: String,
    /// Its uuid.
    pub uuid: Uuid,
    /// Whether it outlives its end.
    pub persistent: bool,
    /// Whether it runs, in words.
    pub state: &'static str,
}

/// What would be done.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The domain.
    pub domain: PlannedDomain,
    /// `online`, `standing`, `offline` or `not-now`.
    pub way: &'static str,
    /// What that means.
    pub way_rule: String,
    /// Every disk of the domain, in its order.
    pub disks: Vec<PlannedDisk>,
    /// How clean its file systems will be.
    pub quiesce: QuiesceDecision,
    /// How long the guest may stand still at one time, ms.
    pub pause_budget_ms: u64,
    /// The file systems that overlays go to.
    pub room: Vec<FreeSpace>,
    /// What speaks against it.
    pub obstacles: Vec<Finding>,
    /// What a person should know.
    pub notes: Vec<String>,
    /// What the plan was made from.
    #[serde(skip)]
    pub known: DomainSnapshotInfo,
}

/// What is known of a domain before anything is touched.
#[derive(Clone, Debug)]
pub struct DomainSnapshotInfo {
    /// The domain.
    pub info: DomainInfo,
    /// What runs now, its volumes looked up.
    pub live: Option<DomainXml>,
    /// What the next start uses, its volumes looked up; `None` for a transient domain.
    pub inactive: Option<DomainXml>,
    /// What QEMU says.
    pub qemu: Vec<QemuDisk>,
    /// What else is going on.
    pub activity: Activity,
    /// The XML inside of the managed save image, where there is one.
    pub saved: Option<DomainXml>,
}

/// Makes the plan for a backup of `domain`, a name or a uuid. Touches nothing.
///
/// # Errors
/// [`ErrorKind::NotFound`] for a domain that is not there and for an excluded disk that it has not; what the
/// hypervisor says. What merely speaks against the backup is no error but a [`Finding`] of the plan.
pub fn plan(
    hypervisor: &dyn Hypervisor,
    files: &dyn HostFiles,
    domain: &str,
    context: &PlanContext<'_>,
) -> Result<Plan> {
    let info = hypervisor.lookup(domain)?;
    let neighbours = OtherWriters::of(hypervisor, files)?;
    Planner { hypervisor, files, neighbours: &neighbours, context }.plan(info)
}

/// Makes a plan for every domain. One that can't be looked at has its error.
///
/// # Errors
/// The domains can't be listed.
pub fn plan_all(
    hypervisor: &dyn Hypervisor,
    files: &dyn HostFiles,
    context: &PlanContext<'_>,
) -> Result<Vec<(DomainInfo, Result<Plan>)>> {
    let neighbours = OtherWriters::of(hypervisor, files)?;
    let planner = Planner { hypervisor, files, neighbours: &neighbours, context };
    Ok(hypervisor.domains()?.into_iter().map(|info| (info.clone(), planner.plan(info))).collect())
}

impl Plan {
    /// The error that the backup ends with, where something speaks against it.
    pub fn refusal(&self) -> Option<Error> {
        let first = self.obstacles.first()?;
        let all: Vec<&str> = self.obstacles.iter().map(|finding| finding.sentence.as_str()).collect();
        let message = format!("'{}' can't be backed up now: {}", self.domain.name, all.join("; "));
        let error = Error::new(first.kind, message);
        let hint = self.obstacles.iter().find_map(|finding| finding.hint.as_ref());
        Some(match hint {
            Some(hint) => error.with_hint(hint.clone()),
            None => error,
        })
    }

    /// The disks that are copied.
    pub fn copied(&self) -> impl Iterator<Item = &PlannedDisk> {
        self.disks.iter().filter(|disk| disk.copy)
    }

    /// How it is done.
    pub fn rule(&self) -> BackupMode {
        disk_rules::run_rule(self.known.info.run)
    }
}

/// Makes plans.
#[derive(Clone, Copy, Debug)]
struct Planner<'a> {
    hypervisor: &'a dyn Hypervisor,
    files: &'a dyn HostFiles,
    neighbours: &'a OtherWriters,
    context: &'a PlanContext<'a>,
}

impl Planner<'_> {
    fn plan(&self, info: DomainInfo) -> Result<Plan> {
        let way = disk_rules::run_rule(info.run);
        let (known, unresolved) = self.know(info, way)?;
        let Some(current) = known.live.as_ref().or(known.inactive.as_ref()) else {
            return Err(Error::new(ErrorKind::Internal, "a domain has no description"));
        };
        self.check_excluded(&known)?;
        let mut obstacles = findings::of_facts(&known.facts(), |target| self.choice(target));
        obstacles.extend(findings::of_saved(known.saved.as_ref()));
        obstacles.extend(
            unresolved.into_iter().filter(|(target, _)| self.is_copied(current, target)).map(|(_, f)| f),
        );
        let mut disks = Vec::with_capacity(current.disks.len());
        let mut opened = Vec::new();
        for disk in &current.disks {
            let mut planned = PlannedDisk::new(disk, disk_rules::disk_rule(disk, self.choice(&disk.target)));
            match planned.examine(self.files, way) {
                Ok(seen) => opened.extend(seen),
                Err(finding) => obstacles.push(finding),
            }
            disks.push(planned);
        }
        obstacles.extend(self.neighbours.findings(self.hypervisor, known.info.id, &opened)?);
        obstacles.extend(disks::twice(&opened));
        disks.extend(not_plugged(&known));
        let mut notes = findings::notes(&known, way, &disks);
        notes.extend(self.neighbours.unseen(known.info.id));
        let mut rooms = Vec::new();
        if matches!(way, BackupMode::Online | BackupMode::OnlinePaused) {
            obstacles.extend(overlay::choose(&mut disks, self.context));
            let found = free_space::look(&disks, self.files, self.context)?;
            (rooms, obstacles) = (found.rooms, [obstacles, found.obstacles].concat());
            notes.extend(found.notes);
        }
        let (quiesce, refused) = quiesce::decide(self.context.options.quiesce, way, current.agent);
        obstacles.extend(refused);
        Ok(Plan {
            domain: PlannedDomain {
                name: known.info.name.clone(),
                uuid: known.info.id.0,
                persistent: known.info.persistence == Persistence::Persistent,
                state: state_words(known.info.run),
            },
            way: way_word(way),
            way_rule: way_rule(way),
            disks,
            quiesce,
            pause_budget_ms: u64::try_from(self.context.options.pause_budget.as_millis()).unwrap_or(u64::MAX),
            room: rooms,
            obstacles,
            notes,
            known,
        })
    }

    /// Everything that is asked of the hypervisor, and the volumes that could not be found.
    fn know(
        &self,
        info: DomainInfo,
        way: BackupMode,
    ) -> Result<(DomainSnapshotInfo, Vec<(String, Finding)>)> {
        let (id, hypervisor) = (info.id, self.hypervisor);
        let read = |config| DomainXml::parse(hypervisor.xml(id, config)?);
        let mut live = info.run.is_active().then(|| read(XmlView::Live)).transpose()?;
        let persistent = info.persistence == Persistence::Persistent;
        let mut inactive = persistent.then(|| read(XmlView::Inactive)).transpose()?;
        let monitored = matches!(way, BackupMode::Online | BackupMode::OnlinePaused);
        let qemu = if monitored { hypervisor.query_block(id)? } else { Vec::new() };
        let activity = hypervisor.activity(id)?;
        let saved = if persistent && live.is_none() { hypervisor.managed_save_xml(id)? } else { None };
        let saved = saved.map(DomainXml::parse).transpose()?;
        let mut unresolved = Vec::new();
        for xml in [&mut live, &mut inactive].into_iter().flatten() {
            unresolved.extend(volumes::resolve(hypervisor, xml));
        }
        // Live and inactive XML name the same volume twice.
        unresolved.sort_by(|a, b| a.0.cmp(&b.0));
        unresolved.dedup_by(|a, b| a.0 == b.0);
        Ok((DomainSnapshotInfo { info, live, inactive, qemu, activity, saved }, unresolved))
    }

    fn choice(&self, target: &str) -> DiskChoice {
        let excluded = self.context.options.exclude.iter().any(|name| name == target);
        if excluded { DiskChoice::Excluded } else { DiskChoice::Wanted }
    }

    fn is_copied(&self, xml: &DomainXml, target: &str) -> bool {
        let disk = xml.disk(target);
        disk.is_some_and(|d| disk_rules::disk_rule(d, self.choice(target)) == DiskRule::Include)
    }

    /// A disk that is excluded by a wrong name would be copied all the same, and nobody would know.
    fn check_excluded(&self, known: &DomainSnapshotInfo) -> Result<()> {
        let xmls = || [&known.live, &known.inactive].into_iter().flatten();
        let has = |target: &String| xmls().any(|xml| xml.disk(target).is_some());
        let Some(unknown) = self.context.options.exclude.iter().find(|target| !has(target)) else {
            return Ok(());
        };
        let name = &known.info.name;
        let message = format!("'{name}' has no disk '{}' to leave out", unknown.escape_debug());
        let mut targets: Vec<String> = xmls().flat_map(DomainXml::targets).collect();
        let mut seen = BTreeSet::new();
        targets.retain(|target| seen.insert(target.clone()));
        let hint = format!("its disks are {}", targets.join(", "));
        Err(Error::new(ErrorKind::NotFound, message).with_hint(hint))
    }
}

/// Disks that the running guest does not have, and will have after its next start: nothing of them is copied.
fn not_plugged(known: &DomainSnapshotInfo) -> Vec<PlannedDisk> {
    let (Some(live), Some(inactive)) = (&known.live, &known.inactive) else { return Vec::new() };
    let later = changed_disks(live, inactive).into_iter().filter_map(|changed| match changed {
        DiskDifference::Next(disk) => {
            Some(PlannedDisk::new(disk, DiskRule::Skip(disk_rules::SkipReason::NotPlugged)))
        }
        _ => None,
    });
    later.collect()
}

impl DomainSnapshotInfo {
    /// The same as the rules take it.
    pub fn facts(&self) -> DomainFacts<'_> {
        DomainFacts {
            run: self.info.run,
            live: self.live.as_ref(),
            inactive: self.inactive.as_ref(),
            qemu: &self.qemu,
            activity: &self.activity,
        }
    }
}

/// A run state in words, libvirt's own where it has them.
pub fn state_words(run: DomainState) -> &'static str {
    match run {
        DomainState::Running => "running",
        DomainState::Paused(PausedReason::IoError) => "paused by a disk error",
        DomainState::Paused(PausedReason::Busy) => "paused for a migration or save",
        DomainState::Paused(PausedReason::Starting) => "being started",
        DomainState::Paused(PausedReason::Crashed) | DomainState::Crashed => "crashed",
        DomainState::Paused(_) => "paused",
        DomainState::PmSuspended => "asleep",
        DomainState::ShuttingDown => "shutting down",
        DomainState::ShutOff => "shut off",
    }
}

/// A way in one word.
pub fn way_word(way: BackupMode) -> &'static str {
    match way {
        BackupMode::Online => "online",
        BackupMode::OnlinePaused => "standing",
        BackupMode::Offline => "offline",
        BackupMode::NotPossible(_) => "not-now",
    }
}

fn way_rule(way: BackupMode) -> String {
    match way {
        BackupMode::Online => {
            "snapshot, copy, commit; the guest runs on and is paused for a moment at each disk's pivot"
                .to_owned()
        }
        BackupMode::OnlinePaused => {
            "snapshot, copy, commit; the guest is paused already and is neither suspended nor resumed"
                .to_owned()
        }
        BackupMode::Offline => "its disks are read as they are; it must not be started meanwhile".to_owned(),
        BackupMode::NotPossible(why) => format!("not now: {why}"),
    }
}
