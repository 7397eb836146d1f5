//! The calls that crashes can tear: snapshot, commit, pivot; each in the order in which libvirt and QEMU do
//! it.
//!
//! Imports: `types`, `call_error`, `domain_xml`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::state::{SimAgent, SimBlockJob, SimDisk, SimDomain, SimImage, SimResult};
use super::{CallPhase, SimCall, code, refused};
use crate::domain_xml::ChainKnowledge;
use crate::is_our_overlay;
use crate::types::{
    BlockJobEnd, BlockJobKind, BlockJobStatus, CommitBase, CommitRequest, DomainEvent, DomainId,
    SnapshotDisk, SnapshotQuiesce, SnapshotRequest,
};

/// A call, as the hook sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names are those of the trait's calls")]
pub enum Operation {
    Read,
    Define,
    Undefine,
    Start,
    Destroy,
    ManagedSave,
    Snapshot,
    Checkpoint,
    Commit,
    Pivot,
    Abort,
    Cap,
    Threshold,
    Suspend,
    Resume,
    AgentLimit,
    AgentPing,
    Freeze,
    Thaw,
    CloseUnused,
    Refresh,
    /// An edit of AppArmor's rules.
    Rules,
    /// A look at a file.
    Look,
    Hold,
    Remove,
    Quarantine,
    /// The commit of an overlay that no QEMU has open.
    CommitFile,
}

impl SimCall<'_> {
    fn running(&mut self, id: DomainId) -> SimResult<&mut SimDomain> {
        let domain = self.domain(id)?;
        if domain.qemu.is_none() {
            return Err(refused(code::OPERATION_INVALID, "domain is not running"));
        }
        Ok(domain)
    }

    /// The place of a disk that has no job and that libvirt has not lost track of.
    fn free_disk(&mut self, id: DomainId, target: &str) -> SimResult<usize> {
        let domain = self.running(id)?;
        let position = domain.position(target).ok_or_else(|| refused(code::INVALID_ARG, "no such disk"))?;
        if domain.views.live.get(position).is_some_and(|d| d.mirror.is_some()) {
            return Err(refused(code::BLOCK_COPY_ACTIVE, "disk already in active block job"));
        }
        Ok(position)
    }

    /// 'Freeze' by the agent, as both the call of its own and the quiesced snapshot do it.
    pub(super) fn agent_call(&mut self, id: DomainId) -> SimResult<()> {
        let domain = self.running(id)?;
        match (domain.agent, domain.agent_limited) {
            (SimAgent::Answers | SimAgent::FailsToThaw | SimAgent::DiesFrozen, _) => Ok(()),
            (SimAgent::Absent, _) => {
                Err(refused(code::AGENT_UNRESPONSIVE, "QEMU guest agent is not connected"))
            }
            (SimAgent::Hangs, true) => Err(refused(code::AGENT_COMMAND_TIMEOUT, "guest agent timed out")),
            (SimAgent::Hangs, false) => {
                Err(refused(code::INTERNAL, "a hung agent without a limit blocks for good"))
            }
        }
    }

    pub(super) fn set_frozen(&mut self, id: DomainId, frozen: FileSystemFreeze) -> SimResult<u32> {
        self.agent_call(id)?;
        let domain = self.running(id)?;
        let disks = u32::try_from(domain.views.live.len()).unwrap_or(0);
        let Some(qemu) = &mut domain.qemu else { return Ok(0) };
        let (was, now) = (qemu.frozen, frozen == FileSystemFreeze::Yes);
        if was && now {
            return Err(refused(code::AGENT_UNRESPONSIVE, "the guest is frozen already"));
        }
        qemu.frozen = now;
        match (domain.agent, frozen) {
            (SimAgent::FailsToThaw, FileSystemFreeze::No) => {
                return Err(refused(
                    code::INTERNAL,
                    "unable to execute QEMU agent command 'guest-fsfreeze-thaw'",
                ));
            }
            (SimAgent::DiesFrozen, FileSystemFreeze::Yes) => {
                domain.agent = SimAgent::Absent;
                return Err(refused(
                    code::AGENT_UNRESPONSIVE,
                    "Guest agent disappeared while executing command",
                ));
            }
            _ => {}
        }
        Ok(if was == now { 0 } else { disks })
    }

    pub(super) fn snapshot(&mut self, id: DomainId, request: &SnapshotRequest) -> SimResult<()> {
        let mut overlays = Vec::new();
        for disk in request.disks() {
            let SnapshotDisk::External { target, overlay } = disk else { continue };
            let position = self.free_disk(id, target)?;
            if self.world.images.contains_key(overlay) {
                return Err(refused(code::CONFIG_UNSUPPORTED, "external snapshot file already exists"));
            }
            overlays.push((position, overlay.clone()));
        }
        // libvirt counts its nodes on from where it was when it last wrote its own state down.
        if self.running(id)?.qemu.as_ref().is_some_and(|qemu| !qemu.unused.is_empty()) {
            return Err(refused(code::INTERNAL, "Duplicate nodes with node-name='libvirt-2-storage'"));
        }
        if request.quiesce() == SnapshotQuiesce::ByAgent {
            self.set_frozen(id, FileSystemFreeze::Yes)?;
        }
        let tops = self.running(id)?.qemu.as_ref().map(|q| q.tops.clone()).unwrap_or_default();
        for (position, overlay) in &overlays {
            let image = SimImage {
                format: "qcow2".to_owned(),
                backing: tops.get(*position).cloned(),
                writes: BTreeSet::new(),
            };
            self.world.images.insert(overlay.clone(), image);
            self.world.touched.insert(overlay.clone(), self.world.clock);
        }
        if self.reaches(CallPhase::Half) {
            // A guest that ended in that moment has closed all.
            if let Some(qemu) = self.domain(id)?.qemu.as_mut() {
                qemu.unused.extend(overlays.into_iter().map(|(_, overlay)| overlay));
            }
            return Ok(());
        }
        for switched in [PivotStage::Qemu, PivotStage::Live, PivotStage::Config] {
            let domain = self.running(id)?;
            for (position, overlay) in &overlays {
                domain.switch(*position, overlay, &switched);
            }
            let over = match switched {
                PivotStage::Qemu => self.reaches(CallPhase::Early),
                PivotStage::Live => self.reaches(CallPhase::Late),
                PivotStage::Config => false,
            };
            if over {
                return Ok(());
            }
        }
        if request.quiesce() == SnapshotQuiesce::ByAgent {
            self.set_frozen(id, FileSystemFreeze::No)?;
        }
        Ok(())
    }

    pub(super) fn commit(&mut self, id: DomainId, request: &CommitRequest) -> SimResult<()> {
        let position = self.free_disk(id, &request.target)?;
        let qemu = self.running(id)?.qemu.clone().unwrap_or_default();
        let top = qemu.tops.get(position).cloned().unwrap_or_default();
        let believed = self.running(id)?.views.live.get(position).map(|d| d.path.clone());
        let ours = is_our_overlay(&top) && request.base == CommitBase::Shallow;
        if believed.as_ref() != Some(&top) && !ours {
            return Err(refused(code::INVALID_ARG, "the chain is not what it should be"));
        }
        let chain = self.world.chain(&top);
        let depth = match &request.base {
            CommitBase::Shallow => 1,
            CommitBase::Explicit(path) => chain.iter().position(|image| image == path).unwrap_or(0),
        };
        let base = chain.get(depth).filter(|_| depth > 0).cloned();
        let base = base.ok_or_else(|| refused(code::INVALID_ARG, "could not find the base in the chain"))?;
        if self.world.held.get(&base).is_some_and(|n| *n > 0) {
            return Err(refused(code::INTERNAL, "Failed to get \"write\" lock"));
        }
        // libvirt adds a permission and loads the file as it is; a denial beats it.
        if let Some(qemu) = &mut self.running(id)?.qemu {
            qemu.loaded.clone_from(&qemu.rules);
            if qemu.loaded.contains(&base) {
                let text = format!("'block-commit': Could not open '{}': Permission denied", base.display());
                return Err(refused(code::INTERNAL, &text));
            }
        }
        self.world.note_commit(&top, &base);
        let between = chain.iter().take(depth).filter_map(|p| self.world.images.get(p));
        let dirty = between.flat_map(|i| i.writes.iter().copied()).collect();
        let domain = self.running(id)?;
        // Of a commit that QEMU itself was told to do the descriptions have nothing.
        if let Some(disk) = domain.views.live.get_mut(position).filter(|disk| disk.path == top) {
            disk.mirror = Some(None);
        }
        if let Some(qemu) = &mut domain.qemu {
            qemu.jobs.insert(request.target.clone(), SimBlockJob { dirty, done: 0, ready: false, base });
        }
        Ok(())
    }

    /// Lets a job get on, and tells when it gets ready or fails.
    pub(super) fn progress(&mut self, id: DomainId, target: &str) {
        let Some(status) = self.world.advance(id, target) else { return };
        if let Some(domain) = self.world.domains.get_mut(&id)
            && let Some(disk) =
                domain.views.live.iter_mut().find(|d| d.target == target && d.mirror.is_some())
        {
            disk.mirror = (status == BlockJobStatus::Ready).then_some(Some("yes"));
        }
        self.tell(id, target, status);
    }

    fn tell(&mut self, domain: DomainId, target: &str, status: BlockJobStatus) {
        let kind = BlockJobKind::ActiveCommit;
        self.hub.publish(&DomainEvent::BlockJob { domain, target: target.to_owned(), kind, status });
    }

    pub(super) fn end_job(&mut self, id: DomainId, target: &str, end: BlockJobEnd) -> SimResult<()> {
        let domain = self.running(id)?;
        let position = domain.position(target).ok_or_else(|| refused(code::INVALID_ARG, "no such disk"))?;
        let job = domain.qemu.as_ref().and_then(|q| q.jobs.get(target)).cloned();
        let Some(job) = job else {
            let stuck = domain.views.live.get(position).is_some_and(|d| d.mirror.is_some());
            let code = if stuck { code::BLOCK_COPY_ACTIVE } else { code::INVALID_ARG };
            return Err(refused(code, "no block job that could be ended"));
        };
        if end == BlockJobEnd::Abort {
            self.forget_job(id, position, target)?;
            self.world.write_rules(id);
            self.tell(id, target, BlockJobStatus::Cancelled);
            return Ok(());
        }
        if !job.ready {
            return Err(refused(code::BLOCK_COPY_ACTIVE, "disk not ready for pivot yet"));
        }
        let known = |disk: &&mut SimDisk| disk.mirror.is_some();
        if let Some(disk) = domain.views.live.get_mut(position).filter(known) {
            disk.mirror = Some(Some("pivot"));
        }
        if self.reaches(CallPhase::Half) {
            // libvirtd comes back, sees the job in QEMU, and takes the mark back.
            if let Some(disk) = self.running(id)?.views.live.get_mut(position).filter(known) {
                disk.mirror = Some(Some("yes"));
            }
            return Ok(());
        }
        // QEMU drains what is left and switches.
        job.dirty.iter().for_each(|write| self.world.write(&job.base, *write));
        if let Some(qemu) = &mut self.running(id)?.qemu {
            qemu.jobs.remove(target);
            if let Some(top) = qemu.tops.get_mut(position) {
                top.clone_from(&job.base);
            }
        }
        if self.reaches(CallPhase::Late) {
            return Ok(());
        }
        let followed = self.running(id)?.views.live.get_mut(position).is_some_and(|disk| known(&disk));
        self.forget_job(id, position, target)?;
        let domain = self.running(id)?;
        if followed {
            domain.switch(position, &job.base, &PivotStage::Live);
            domain.switch(position, &job.base, &PivotStage::Config);
        }
        self.world.write_rules(id);
        self.tell(id, target, BlockJobStatus::Completed);
        Ok(())
    }

    fn forget_job(&mut self, id: DomainId, position: usize, target: &str) -> SimResult<()> {
        let domain = self.running(id)?;
        if let Some(qemu) = &mut domain.qemu {
            qemu.jobs.remove(target);
        }
        if let Some(disk) = domain.views.live.get_mut(position) {
            disk.mirror = None;
        }
        Ok(())
    }
}

/// Whether file systems are to be frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileSystemFreeze {
    Yes,
    No,
}

/// The steps of a switch to another image.
#[derive(Clone, Copy)]
enum PivotStage {
    /// What QEMU writes to.
    Qemu,
    /// What the live XML says.
    Live,
    /// The configuration, where it names what the live XML named.
    Config,
}

impl SimDomain {
    fn switch(&mut self, position: usize, path: &PathBuf, which: &PivotStage) {
        match which {
            PivotStage::Qemu => {
                if let Some(top) = self.qemu.as_mut().and_then(|q| q.tops.get_mut(position)) {
                    top.clone_from(path);
                }
            }
            PivotStage::Live => {
                if let Some(disk) = self.views.live.get_mut(position) {
                    disk.path.clone_from(path);
                }
            }
            PivotStage::Config => {
                let target = self.views.live.get(position).map(|d| d.target.clone());
                let config = self.views.config.iter_mut().flatten();
                for disk in config.filter(|d| Some(&d.target) == target.as_ref()) {
                    disk.path.clone_from(path);
                    disk.chain = ChainKnowledge::Complete;
                }
            }
        }
    }
}
