//! Guests: what there is to back up, and the hypervisor's calls that freeze, thaw and restore it.
//!
//! - [`Hypervisor`]: everything that jobs ask of a hypervisor, in our own words ([`types`]). No libvirt type
//!   crosses it.
//! - `libvirt`: the real one (feature `libvirt`). `simulated` (feature `simulated`): one in memory, with
//!   crash points, that misbehaves as libvirt was seen to. One suite of assertions runs against both.
//! - [`domain_xml`]: reading domain XML, and edits that keep every other byte.
//! - [`disk_rules`]: which disk is copied, skipped or refused and why; what speaks against a backup before
//!   anything is touched.
//! - [`host_files`]: the images as files of this host: QEMU's locks on them, their removal, the room around
//!   them.
//! - [`config_repair`]: a running guest's configuration follows what QEMU does.
//! - [`apparmor`]: the rule that keeps a commit from its base, lifted for one call.
//! - [`watchdog`]: the process that thaws and resumes a guest when nobody else does.
//!
//! The rule for every caller: a return code of a changing call is a hint. After a lost connection
//! ([`HypervisorError::lost`]) and in every recovery the truth is asked for: [`Hypervisor::query_block`] says
//! which file QEMU writes to, the live and the inactive XML say what libvirt believes.
//!
//! Imports: `error`, `safe_path`, `image` (headers and contents of images).

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam_channel::Receiver;

use virtfold_base::error::Result;

pub mod apparmor;
pub mod call_error;
pub mod config_repair;
mod config_stamps;
pub mod disk_rules;
pub mod domain_xml;
mod event_hub;
pub mod host_files;
#[cfg(feature = "libvirt")]
pub mod libvirt;
#[cfg(any(test, feature = "simulated"))]
pub mod simulated;
pub mod types;
pub mod watchdog;

pub use apparmor::LiftedDenials;
pub use call_error::{HypervisorError, code};
pub use config_stamps::ConfigStamps;
pub use types::{
    Activity, BlockJob, BlockJobEnd, BlockJobKind, BlockJobStatus, Checkpoint, CheckpointParts,
    CheckpointRequest, CommitBase, CommitRequest, DomainEvent, DomainId, DomainInfo, DomainState, Lifecycle,
    PausedReason, Persistence, QemuDisk, SnapshotDisk, SnapshotQuiesce, SnapshotRequest, StartMode,
    StartedDetail, StoppedDetail, XmlView, is_our_checkpoint,
};

/// What a backup, a recovery and a restore ask of a hypervisor.
///
/// Calls block until the hypervisor answers. All take `&self` and may be made by several threads at once.
/// Errors carry a [`HypervisorError`] as their source where the hypervisor itself said no. Reading calls
/// connect again by themselves; a changing call whose connection breaks is never repeated, because it may
/// have been done.
pub trait Hypervisor: Debug + Send + Sync {
    /// Every domain, running or not, in the order of their names.
    ///
    /// # Errors
    /// No connection.
    fn domains(&self) -> Result<Vec<DomainInfo>>;

    /// Whether the hypervisor answers. It is asked nothing of any domain.
    ///
    /// # Errors
    /// No connection.
    fn check(&self) -> Result<()>;

    /// A domain by name or by uuid.
    ///
    /// # Errors
    /// [`virtfold_base::error::ErrorKind::NotFound`] where there is none.
    fn lookup(&self, name_or_uuid: &str) -> Result<DomainInfo>;

    /// Whether the domain runs, and why not.
    ///
    /// # Errors
    /// [`virtfold_base::error::ErrorKind::NotFound`] where there is none (a transient domain that ended is
    /// gone).
    fn domain_state(&self, domain: DomainId) -> Result<DomainState>;

    /// The domain XML, with its secrets (a VNC password lost in a redefinition is a guest that nobody can
    /// look at).
    ///
    /// # Errors
    /// No such domain, or [`XmlView::Live`] of one that does not run.
    fn xml(&self, domain: DomainId, config: XmlView) -> Result<String>;

    /// What shows which configurations change from now on, so that nobody has to ask for each; of no domain
    /// where this libvirt's files are not to be found.
    ///
    /// # Errors
    /// They are, and can't be read.
    fn config_stamps(&self) -> Result<ConfigStamps> {
        Ok(ConfigStamps::default())
    }

    /// Defines or redefines a persistent domain; the XML is validated against libvirt's schema.
    ///
    /// # Errors
    /// What the hypervisor says: bad elements, a name that another uuid has.
    fn define(&self, xml: &str) -> Result<DomainId>;

    /// Forgets the configuration of a domain; its disks and NVRAM stay.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn undefine(&self, domain: DomainId) -> Result<()>;

    /// Starts a defined domain that is shut off.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn start(&self, domain: DomainId, start: StartMode) -> Result<()>;

    /// Ends a running domain as by pulling its plug. For restores over a running guest that were confirmed,
    /// and tests.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn destroy(&self, domain: DomainId) -> Result<()>;

    /// The domain XML inside of the managed save image, where there is one: a start resumes from that, not
    /// from the configuration.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn managed_save_xml(&self, domain: DomainId) -> Result<Option<String>>;

    /// Replaces the domain XML inside of the managed save image.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn define_managed_save_xml(&self, domain: DomainId, xml: &str) -> Result<()>;

    /// Takes one atomic external snapshot of the running domain's disks; without metadata, so that libvirt's
    /// list of snapshots stays the user's own. Every disk of the domain must be listed: libvirt snapshots
    /// unlisted ones too.
    ///
    /// # Errors
    /// What the hypervisor says. After a lost connection the snapshot may be there all the same.
    fn snapshot(&self, domain: DomainId, request: &SnapshotRequest) -> Result<()>;

    /// Starts an active commit: the overlay's contents go into its base while the guest runs.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn commit(&self, domain: DomainId, request: &CommitRequest) -> Result<()>;

    /// Lifts the rule by which the host's access control denies the domain's QEMU writes to an image below an
    /// overlay. It counts from the next commit on, which has the hypervisor load its rules. `None` where
    /// nothing denies them.
    ///
    /// # Errors
    /// The rules can't be read or written.
    fn lift_denial(&self, domain: DomainId, image: &Path) -> Result<Option<LiftedDenials>>;

    /// Puts a rule back that was lifted, where the hypervisor has not done so itself. It is loaded with the
    /// hypervisor's next change of the domain's rules, and takes nothing away that QEMU has open.
    ///
    /// # Errors
    /// The rules can't be read or written.
    fn restore_denial(&self, domain: DomainId, denial: &LiftedDenials) -> Result<()>;

    /// The block job of a disk, if it has one.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn block_job(&self, domain: DomainId, target: &str) -> Result<Option<BlockJob>>;

    /// Ends a block job, and returns once it has ended.
    ///
    /// # Errors
    /// [`code::BLOCK_COPY_ACTIVE`] for a pivot before the job is ready; what the hypervisor says.
    fn end_block_job(&self, domain: DomainId, target: &str, end: BlockJobEnd) -> Result<()>;

    /// Lifts or sets a block job's cap, in bytes a second; 0 lifts it.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn cap_block_job(&self, domain: DomainId, target: &str, bytes_per_second: u64) -> Result<()>;

    /// Asks for an event once the guest has written `bytes` into the file of a disk.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn set_block_threshold(&self, domain: DomainId, target: &str, bytes: u64) -> Result<()>;

    /// Stops the guest's processors.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn suspend(&self, domain: DomainId) -> Result<()>;

    /// Lets the guest's processors go on.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn resume(&self, domain: DomainId) -> Result<()>;

    /// Sets the time limit of all further calls of the guest's agent. Without one a hung agent holds the
    /// domain's lock for good. The limit is libvirt's and is lost when libvirtd restarts: set it before every
    /// freeze.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn set_agent_time_limit(&self, domain: DomainId, limit: Duration) -> Result<()>;

    /// Asks the guest's agent for a sign of life.
    ///
    /// # Errors
    /// [`code::AGENT_UNRESPONSIVE`], [`code::AGENT_COMMAND_TIMEOUT`]; a domain with no agent channel.
    fn ping_agent(&self, domain: DomainId, limit: Duration) -> Result<()>;

    /// Freezes all file systems of the guest; returns how many.
    ///
    /// # Errors
    /// As [`Hypervisor::ping_agent`].
    fn freeze(&self, domain: DomainId) -> Result<u32>;

    /// Thaws all file systems of the guest; returns how many. Harmless when none is frozen.
    ///
    /// # Errors
    /// As [`Hypervisor::ping_agent`].
    fn thaw(&self, domain: DomainId) -> Result<u32>;

    /// Whether the guest's agent says that no file system is frozen. An agent that died while they were
    /// frozen, and is there again, knows that they are.
    ///
    /// # Errors
    /// As [`Hypervisor::ping_agent`].
    fn is_thawed(&self, domain: DomainId, limit: Duration) -> Result<bool>;

    /// What QEMU itself says about each disk: the file it writes to, and the chain below.
    ///
    /// # Errors
    /// The domain does not run, or QEMU's monitor does not answer.
    fn query_block(&self, domain: DomainId) -> Result<Vec<QemuDisk>>;

    /// Has QEMU close an image that it has open and that none of its devices uses: what a libvirtd leaves
    /// that dies in the midst of a snapshot. QEMU itself refuses for an image that is in use; whether it is
    /// closed shows in its locks.
    ///
    /// # Errors
    /// The domain does not run, or QEMU's monitor does not answer.
    fn close_unused(&self, domain: DomainId, image: &Path) -> Result<()>;

    /// The checkpoints of a domain.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn checkpoints(&self, domain: DomainId) -> Result<Vec<Checkpoint>>;

    /// Makes a checkpoint of the running domain, for all of its disks or none.
    ///
    /// # Errors
    /// What the hypervisor says: a disk's image can't have bitmaps, one of the name is there. After a lost
    /// connection the checkpoint may be there all the same.
    fn create_checkpoint(&self, domain: DomainId, request: &CheckpointRequest) -> Result<()>;

    /// Deletes a checkpoint that virtfold made. What its bitmaps mark goes to the checkpoint before it.
    ///
    /// # Errors
    /// What the hypervisor says; a checkpoint of somebody else.
    fn delete_checkpoint(&self, domain: DomainId, name: &str, parts: CheckpointParts) -> Result<()>;

    /// What else is going on in the domain: other backups, checkpoints, snapshots.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn activity(&self, domain: DomainId) -> Result<Activity>;

    /// The file or device of a volume in a storage pool.
    ///
    /// # Errors
    /// No such pool or volume, or a pool that is not active.
    fn volume_path(&self, pool: &str, volume: &str) -> Result<PathBuf>;

    /// The directory of a storage pool that is one.
    ///
    /// # Errors
    /// No such pool, or a pool that has no directory.
    fn pool_directory(&self, pool: &str) -> Result<PathBuf>;

    /// Lets a pool see files that were put into its directory.
    ///
    /// # Errors
    /// What the hypervisor says.
    fn refresh_pool(&self, pool: &str) -> Result<()>;

    /// Events of all domains from now on. A subscriber that is behind by more than [`types::EVENTS_KEPT`]
    /// events gets [`DomainEvent::Missed`] and has to look for itself; so has everybody after
    /// [`DomainEvent::ConnectionLost`].
    ///
    /// # Errors
    /// No connection.
    fn subscribe(&self) -> Result<Receiver<DomainEvent>>;
}

/// Whether a path is an overlay that virtfold made: `NAME.virtfold-XXXXXXXX.overlay`.
pub fn is_our_overlay(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|n| n.to_str()) else { return false };
    name.strip_suffix(".overlay")
        .and_then(|rest| rest.rsplit_once(".virtfold-"))
        .is_some_and(|(_, tag)| tag.len() == 8 && tag.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The path of a disk's overlay in `directory`: the disk's own file name, and the job's tag of eight hex
/// digits.
pub fn overlay_path(directory: &Path, disk: &Path, tag: u32) -> PathBuf {
    let mut name = disk.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".virtfold-{tag:08x}.overlay"));
    directory.join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_overlays_are_known_by_name() {
        let path = overlay_path(Path::new("/overlays"), Path::new("/images/a.qcow2"), 0xBEEF);
        assert_eq!(path, Path::new("/overlays/a.qcow2.virtfold-0000beef.overlay"));
        assert!(is_our_overlay(&path));
        for theirs in
            ["/a.qcow2", "/a.virtfold-xyz.overlay", "/a.virtfold-0000beef.overlay2", "/a.overlay", "/"]
        {
            assert!(!is_our_overlay(Path::new(theirs)), "{theirs}");
        }
    }
}
