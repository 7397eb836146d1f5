//! The simulated hypervisor's calls; the ones that crashes can tear are in `operations`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam_channel::Receiver;
use uuid::Uuid;

use super::operations::FileSystemFreeze;
use super::state::{SimHost, SimQemu, SimResult, described};
use super::{BTreeMap, Operation, SimCall, SimDomain, SimImage, SimXml, Simulated, code, refused, xml};
use crate::domain_xml::DomainXml;
use crate::types::{
    Activity, BlockJob, BlockJobEnd, Checkpoint, CheckpointParts, CheckpointRequest, CommitRequest,
    DomainEvent, DomainId, DomainInfo, DomainState, Lifecycle, PausedReason, Persistence, QemuDisk,
    SnapshotRequest, StartMode, StartedDetail, StoppedDetail, XmlView,
};
use crate::{ConfigStamps, Hypervisor, LiftedDenials, is_our_checkpoint};
use virtfold_base::error::{Error, ErrorKind, Result};

fn info(id: DomainId, domain: &SimDomain) -> DomainInfo {
    let persistence = match domain.views.config {
        Some(_) => Persistence::Persistent,
        None => Persistence::Transient,
    };
    DomainInfo { id, name: domain.name.clone(), persistence, run: domain.run() }
}

impl Simulated {
    fn lifecycle(&self, domain: DomainId, change: Lifecycle) {
        self.hub.publish(&DomainEvent::Lifecycle { domain, change });
    }

    fn set_paused(&self, operation: Operation, domain: DomainId, paused: Option<PausedReason>) -> Result<()> {
        self.call(operation, |turn| {
            let off = || refused(code::OPERATION_INVALID, "domain is not running");
            turn.domain(domain)?.qemu.as_mut().ok_or_else(off)?.paused = paused;
            Ok(())
        })?;
        self.lifecycle(domain, if paused.is_some() { Lifecycle::Suspended } else { Lifecycle::Resumed });
        Ok(())
    }
}

fn define(world: &mut SimHost, parsed: &DomainXml) -> SimResult<DomainId> {
    let by_name = world.domains.iter().find(|(_, d)| d.name == parsed.name).map(|(id, _)| *id);
    let id = parsed.id.or(by_name).unwrap_or_else(|| DomainId(Uuid::new_v4()));
    let known = world.domains.get(&id).map(|d| d.name.clone());
    if by_name.is_some_and(|other| other != id) || known.is_some_and(|name| name != parsed.name) {
        return Err(refused(code::OPERATION_FAILED, "domain already exists with another uuid or name"));
    }
    let config = described(parsed);
    let images: BTreeMap<_, _> =
        parsed.disks.iter().map(|d| (d.image.source.path(), &d.image.format)).collect();
    for disk in &config {
        let format = images.get(&Some(disk.path.as_path())).and_then(|f| f.as_deref()).unwrap_or("raw");
        let image = SimImage { format: format.to_owned(), ..SimImage::default() };
        world.images.entry(disk.path.clone()).or_insert(image);
    }
    let fresh = || SimDomain {
        name: parsed.name.clone(),
        text: String::new(),
        original: parsed.text().to_owned(),
        views: SimXml::default(),
        qemu: None,
        agent: super::SimAgent::Absent,
        agent_limited: false,
        managed_save: None,
        activity: Activity::default(),
        next: 0,
        pace: super::state::WRITES_PER_CALL,
    };
    let domain = world.domains.entry(id).or_insert_with(fresh);
    domain.text = parsed.text().to_owned();
    domain.views.config = Some(config);
    Ok(id)
}

fn start(turn: &mut SimCall<'_>, id: DomainId, how: StartMode) -> SimResult<()> {
    let domain = turn.domain(id)?;
    if domain.qemu.is_some() {
        return Err(refused(code::OPERATION_INVALID, "domain is already running"));
    }
    let saved = domain.managed_save.clone().and_then(|xml| DomainXml::parse(xml).ok());
    let disks = saved.map_or_else(|| domain.views.config.clone().unwrap_or_default(), |s| described(&s));
    let tops: Vec<PathBuf> = disks.iter().map(|d| d.path.clone()).collect();
    if let Some(gone) = tops.iter().find(|path| !turn.world.images.contains_key(*path)) {
        let text = format!("Cannot access storage file '{}'", gone.display());
        return Err(refused(code::SYSTEM, &text));
    }
    let held = |top: &PathBuf| turn.world.held.get(top).is_some_and(|n| *n > 0);
    if tops.iter().any(|top| held(top) || turn.world.elsewhere.contains(top)) {
        return Err(refused(code::INTERNAL, "Failed to get \"write\" lock"));
    }
    turn.world.runs += 1;
    turn.world.clock += super::third_party::BOOT;
    let run = turn.world.runs;
    let paused = (how == StartMode::Paused).then_some(PausedReason::User);
    let domain = turn.domain(id)?;
    domain.views.live = disks;
    domain.managed_save = None;
    domain.qemu = Some(SimQemu { tops, paused, run, ..SimQemu::default() });
    turn.world.write_rules(id);
    Ok(())
}

impl Hypervisor for Simulated {
    fn domains(&self) -> Result<Vec<DomainInfo>> {
        let mut list: Vec<_> = self.call(Operation::Read, |turn| {
            Ok(turn.world.domains.iter().map(|(id, d)| info(*id, d)).collect())
        })?;
        list.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(list)
    }

    fn check(&self) -> Result<()> {
        self.call(Operation::Read, |_| Ok(()))
    }

    fn lookup(&self, name_or_uuid: &str) -> Result<DomainInfo> {
        let found = self.call(Operation::Read, |turn| {
            let by_id = name_or_uuid.parse().ok().and_then(|id| turn.world.domains.get_key_value(&id));
            let by_name = || turn.world.domains.iter().find(|(_, domain)| domain.name == name_or_uuid);
            Ok(by_id.or_else(by_name).map(|(id, domain)| info(*id, domain)))
        })?;
        let missing = || refused(code::NO_DOMAIN, "Domain not found");
        found.ok_or_else(|| missing().into_error(format!("there is no domain '{name_or_uuid}'")))
    }

    fn domain_state(&self, domain: DomainId) -> Result<DomainState> {
        self.call(Operation::Read, |turn| turn.domain(domain).map(|d| d.run()))
    }

    fn xml(&self, domain: DomainId, config: XmlView) -> Result<String> {
        let found = self.call(Operation::Read, |turn| {
            let known = turn.domain(domain)?.clone();
            let odd = turn.world.odd.contains(&domain).then(|| "<domain/>".to_owned());
            Ok(odd.or_else(|| xml::render(turn.world, domain, &known, config)))
        })?;
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("domain {domain} has no live XML")))
    }

    fn config_stamps(&self) -> Result<ConfigStamps> {
        self.call(Operation::Read, |turn| {
            let mut stamps = ConfigStamps::default();
            for (id, domain) in &turn.world.domains {
                let Some(config) = &domain.views.config else { continue };
                let odd = turn.world.odd.contains(id);
                let mut hasher = DefaultHasher::new();
                format!("{config:?} {:?} {odd} {}", domain.managed_save, domain.text).hash(&mut hasher);
                stamps.note(domain.name.clone(), hasher.finish());
            }
            Ok(stamps)
        })
    }

    fn define(&self, xml: &str) -> Result<DomainId> {
        let parsed = DomainXml::parse(xml)?;
        let id = self.call(Operation::Define, |turn| define(turn.world, &parsed))?;
        self.lifecycle(id, Lifecycle::Defined);
        Ok(id)
    }

    fn undefine(&self, domain: DomainId) -> Result<()> {
        self.call(Operation::Undefine, |turn| {
            let known = turn.domain(domain)?;
            known.views.config = None;
            if known.qemu.is_none() {
                turn.world.domains.remove(&domain);
            }
            Ok(())
        })
    }

    fn start(&self, domain: DomainId, how: StartMode) -> Result<()> {
        self.call(Operation::Start, |turn| start(turn, domain, how))?;
        self.lifecycle(domain, Lifecycle::Started(StartedDetail::Boot));
        Ok(())
    }

    fn destroy(&self, domain: DomainId) -> Result<()> {
        self.call(Operation::Destroy, |turn| {
            if turn.domain(domain)?.qemu.is_none() {
                return Err(refused(code::OPERATION_INVALID, "domain is not running"));
            }
            turn.world.power_off(domain);
            Ok(())
        })?;
        self.lifecycle(domain, Lifecycle::Stopped(StoppedDetail::Destroyed));
        Ok(())
    }

    fn managed_save_xml(&self, domain: DomainId) -> Result<Option<String>> {
        self.call(Operation::Read, |turn| turn.domain(domain).map(|d| d.managed_save.clone()))
    }

    fn define_managed_save_xml(&self, domain: DomainId, xml: &str) -> Result<()> {
        self.call(Operation::ManagedSave, |turn| {
            let none = || refused(code::OPERATION_INVALID, "domain has no managed save image");
            *turn.domain(domain)?.managed_save.as_mut().ok_or_else(none)? = xml.to_owned();
            Ok(())
        })
    }

    fn snapshot(&self, domain: DomainId, request: &SnapshotRequest) -> Result<()> {
        self.call(Operation::Snapshot, |turn| turn.snapshot(domain, request))
    }

    fn commit(&self, domain: DomainId, request: &CommitRequest) -> Result<()> {
        self.call(Operation::Commit, |turn| turn.commit(domain, request))
    }

    fn lift_denial(&self, domain: DomainId, image: &Path) -> Result<Option<LiftedDenials>> {
        self.call(Operation::Rules, |turn| {
            let locked = turn.world.rules_locked;
            let Some(qemu) = &mut turn.domain(domain)?.qemu else { return Ok(None) };
            if locked && qemu.rules.contains(image) {
                return Err(refused(code::SYSTEM, "Read-only file system"));
            }
            let denial = LiftedDenials { rules: image.to_owned(), lines: vec![image.display().to_string()] };
            Ok(qemu.rules.remove(image).then_some(denial))
        })
    }

    fn restore_denial(&self, domain: DomainId, denial: &LiftedDenials) -> Result<()> {
        self.call(Operation::Rules, |turn| {
            if let Some(qemu) = &mut turn.domain(domain)?.qemu {
                qemu.rules.extend(denial.lines.iter().map(PathBuf::from));
            }
            Ok(())
        })
    }

    fn block_job(&self, domain: DomainId, target: &str) -> Result<Option<BlockJob>> {
        self.call(Operation::Read, |turn| {
            turn.progress(domain, target);
            let known = turn.domain(domain)?;
            let off = || refused(code::OPERATION_INVALID, "domain is not running");
            Ok(known.qemu.as_ref().ok_or_else(off)?.jobs.get(target).map(super::state::SimBlockJob::info))
        })
    }

    fn end_block_job(&self, domain: DomainId, target: &str, end: BlockJobEnd) -> Result<()> {
        let operation = match end {
            BlockJobEnd::Pivot => Operation::Pivot,
            BlockJobEnd::Abort => Operation::Abort,
        };
        self.call(operation, |turn| turn.end_job(domain, target, end))
    }

    fn cap_block_job(&self, domain: DomainId, target: &str, _bytes_per_second: u64) -> Result<()> {
        self.call(Operation::Cap, |turn| {
            let jobs = turn.domain(domain)?.qemu.as_ref().map(|q| q.jobs.contains_key(target));
            jobs.filter(|there| *there).map(drop).ok_or_else(|| refused(code::INVALID_ARG, "no block job"))
        })
    }

    fn set_block_threshold(&self, domain: DomainId, _target: &str, _bytes: u64) -> Result<()> {
        self.call(Operation::Threshold, |turn| turn.domain(domain).map(|_| ()))
    }

    fn suspend(&self, domain: DomainId) -> Result<()> {
        self.set_paused(Operation::Suspend, domain, Some(PausedReason::User))
    }

    fn resume(&self, domain: DomainId) -> Result<()> {
        self.set_paused(Operation::Resume, domain, None)
    }

    fn set_agent_time_limit(&self, domain: DomainId, _limit: Duration) -> Result<()> {
        self.call(Operation::AgentLimit, |turn| {
            turn.domain(domain)?.agent_limited = true;
            Ok(())
        })
    }

    fn ping_agent(&self, domain: DomainId, _limit: Duration) -> Result<()> {
        self.call(Operation::AgentPing, |turn| {
            let known = turn.domain(domain)?;
            // The ping has a limit of its own.
            let before = std::mem::replace(&mut known.agent_limited, true);
            let answer = turn.agent_call(domain);
            turn.domain(domain)?.agent_limited = before;
            answer
        })
    }

    fn freeze(&self, domain: DomainId) -> Result<u32> {
        self.call(Operation::Freeze, |turn| turn.set_frozen(domain, FileSystemFreeze::Yes))
    }

    fn thaw(&self, domain: DomainId) -> Result<u32> {
        self.call(Operation::Thaw, |turn| turn.set_frozen(domain, FileSystemFreeze::No))
    }

    fn is_thawed(&self, domain: DomainId, _limit: Duration) -> Result<bool> {
        self.call(Operation::AgentPing, |turn| {
            turn.agent_call(domain)?;
            Ok(turn.domain(domain)?.qemu.as_ref().is_none_or(|qemu| !qemu.frozen))
        })
    }

    fn query_block(&self, domain: DomainId) -> Result<Vec<QemuDisk>> {
        self.call(Operation::Read, |turn| {
            let off = || refused(code::OPERATION_INVALID, "domain is not running");
            let tops = turn.domain(domain)?.qemu.as_ref().map(|q| q.tops.clone()).ok_or_else(off)?;
            let disks = tops.iter().enumerate().map(|(position, top)| QemuDisk {
                alias: xml::alias(position),
                file: Some(top.clone()),
                backing: turn.world.chain(top).into_iter().skip(1).collect(),
            });
            Ok(disks.collect())
        })
    }

    fn close_unused(&self, domain: DomainId, image: &Path) -> Result<()> {
        self.call(Operation::CloseUnused, |turn| {
            let qemu = turn.domain(domain)?.qemu.as_mut();
            let off = || refused(code::OPERATION_INVALID, "domain is not running");
            qemu.ok_or_else(off)?.unused.remove(image);
            Ok(())
        })
    }

    fn checkpoints(&self, domain: DomainId) -> Result<Vec<Checkpoint>> {
        self.call(Operation::Read, |turn| {
            let names = turn.domain(domain)?.activity.checkpoints.clone();
            let parents = std::iter::once(None).chain(names.iter().cloned().map(Some));
            let both = names.iter().cloned().zip(parents);
            Ok(both.map(|(name, parent)| Checkpoint { name, parent }).collect())
        })
    }

    fn create_checkpoint(&self, domain: DomainId, request: &CheckpointRequest) -> Result<()> {
        self.call(Operation::Checkpoint, |turn| {
            let known = turn.domain(domain)?;
            if known.qemu.is_none() {
                return Err(refused(code::OPERATION_INVALID, "domain is not running"));
            }
            if known.activity.checkpoints.contains(&request.name) {
                return Err(refused(code::OPERATION_FAILED, "domain already has a checkpoint of this name"));
            }
            known.activity.checkpoints.push(request.name.clone());
            Ok(())
        })
    }

    fn delete_checkpoint(&self, domain: DomainId, name: &str, parts: CheckpointParts) -> Result<()> {
        self.call(Operation::Checkpoint, |turn| {
            let known = turn.domain(domain)?;
            if known.qemu.is_none() && parts == CheckpointParts::All {
                return Err(refused(code::OPERATION_INVALID, "domain is not running"));
            }
            let at =
                known.activity.checkpoints.iter().position(|there| there == name && is_our_checkpoint(name));
            let missing = || refused(code::NO_CHECKPOINT, "no domain checkpoint with matching name");
            known.activity.checkpoints.remove(at.ok_or_else(missing)?);
            Ok(())
        })
    }

    fn activity(&self, domain: DomainId) -> Result<Activity> {
        self.call(Operation::Read, |turn| turn.domain(domain).map(|d| d.activity.clone()))
    }

    fn volume_path(&self, pool: &str, volume: &str) -> Result<PathBuf> {
        let directory = self.pool_directory(pool)?;
        let path = directory.join(volume);
        let missing = || refused(code::NO_VOLUME, "Storage volume not found").into_error("no such volume");
        self.image(&path).map(|_| path).ok_or_else(missing)
    }

    fn pool_directory(&self, pool: &str) -> Result<PathBuf> {
        let missing = || refused(code::NO_POOL, "Storage pool not found");
        self.call(Operation::Read, |turn| turn.world.pools.get(pool).cloned().ok_or_else(missing))
    }

    fn refresh_pool(&self, pool: &str) -> Result<()> {
        let missing = || refused(code::NO_POOL, "Storage pool not found");
        self.call(Operation::Refresh, |turn| turn.world.pools.get(pool).map(drop).ok_or_else(missing))
    }

    fn subscribe(&self) -> Result<Receiver<DomainEvent>> {
        Ok(self.hub.subscribe())
    }
}
