//! Online backup's heart: freeze a guest's disks, have them copied, bring the guest back onto them; and bring
//! back every guest whose driver did not get that far.
//!
//! - [`with_frozen_disks`] snapshots all disks at once, runs a copy of the frozen bases, commits the overlays
//!   and pivots.
//! - [`take_over()`] takes over the frozen bases of a driver that died while it copied them.
//! - [`with_offline_disks`] runs a copy of a domain that is shut off, and proves that it stayed so.
//! - [`recover()`] looks at what is there and ends what a dead driver began.
//!
//! One engine (`unfreeze`) brings a guest home for both `with_frozen_disks` and `recover`: it looks at QEMU,
//! both descriptions, the files and the journal, decides for each disk what the next step is, says it in the
//! journal, does it, and looks again. It never believes a return code, so a lost answer is a reason to look
//! and nothing more.
//!
//! Parts: `domain_view` (what is there now), `start` (no earlier job is open), `snapshot`, `take_over`,
//! `free_space_monitor` (room on the host while the copy runs), `unfreeze/` (decide, live commit and
//! pivot, offline commit, the end of overlays), `recover`, `offline`, `watchdog_process` (the pause's guard
//! as a process).
//!
//! Imports: `error`, `catalog`, `hypervisor`, and this crate's [`Control`].

use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Control;
use virtfold_base::error::Result;
use virtfold_catalog::{BaseImage, Journal};
use virtfold_hypervisor::host_files::HostFiles;
use virtfold_hypervisor::watchdog::{GuestHold, WatchdogOutcome};
use virtfold_hypervisor::{DomainId, Hypervisor};

mod domain_view;
mod free_space_monitor;
mod offline;
mod recover;
mod snapshot;
mod start;
mod take_over;
#[cfg(test)]
mod tests;
mod unfreeze;
mod watchdog_process;

pub use offline::with_offline_disks;
pub use recover::{DiskRecovery, RecoverReport, RecoverScope, Recovery, RecoveryStatus, recover};
pub use snapshot::with_frozen_disks;
pub use take_over::{TakeOver, TakeOverRequest, interrupted_session, take_over};
pub use watchdog_process::WatchdogProcess;

/// Everything that a job needs of its host.
#[derive(Clone, Copy, Debug)]
pub struct FreezeContext<'a> {
    /// The hypervisor.
    pub hypervisor: &'a dyn Hypervisor,
    /// The images as files.
    pub files: &'a dyn HostFiles,
    /// The journal.
    pub journal: &'a dyn Journal,
    /// The pause's guard.
    pub guard: &'a dyn StartWatchdog,
    /// How long things may take.
    pub pace: FreezeTimings,
}

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreezeTimings {
    /// How long the guest may stand still or be frozen at a time.
    pub pause_budget: Duration,
    /// Time between two looks.
    pub poll: Duration,
    /// Time between two looks at the room on the host while the copy runs.
    pub watch: Duration,
    /// How long a commit may go on without getting on before it is given up for now.
    pub stall: Duration,
}

impl Default for FreezeTimings {
    fn default() -> Self {
        Self {
            pause_budget: Duration::from_secs(2),
            poll: Duration::from_millis(50),
            watch: Duration::from_secs(1),
            stall: Duration::from_secs(120),
        }
    }
}

/// Starts a guard for a domain. The real one is [`WatchdogProcess`].
pub trait StartWatchdog: Debug + Send + Sync {
    /// A guard that is ready.
    ///
    /// # Errors
    /// It does not start. The guest must then not be held.
    fn start(&self, domain: DomainId) -> Result<Box<dyn Watchdog>>;
}

/// A guard at work.
pub trait Watchdog: Debug + Send {
    /// Begins a budget. Only when it returns may the guest be held.
    ///
    /// # Errors
    /// The guard is gone.
    fn arm(&mut self, held: GuestHold, budget: Duration) -> Result<()>;

    /// Ends it, after the guest was let go.
    ///
    /// # Errors
    /// The guard is gone.
    fn disarm(&mut self) -> Result<WatchdogOutcome>;
}

/// Whether the guest's agent freezes the file systems for the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentFreeze {
    /// No.
    Skip,
    /// If it answers within its limit; otherwise the copy is crash-consistent, and the report says so.
    Try(Duration),
    /// The backup is refused without.
    Require(Duration),
}

/// A disk that is to be frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreezeDisk {
    /// The disk, `vda`.
    pub target: String,
    /// Its alias in the live XML.
    pub alias: String,
    /// The image it has now.
    pub base: BaseImage,
    /// Where its overlay goes; [`virtfold_hypervisor::overlay_path`] makes the name.
    pub overlay: PathBuf,
}

/// What is to be frozen, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreezeRequest {
    /// The domain.
    pub domain: DomainId,
    /// The disks to freeze.
    pub disks: Vec<FreezeDisk>,
    /// The targets of all of the domain's disks, cdroms among them.
    pub targets: Vec<String>,
    /// The disks whose writes are recorded from the snapshot on, by a checkpoint made just before it.
    pub tracked: Vec<String>,
    /// Whether the agent freezes.
    pub quiesce: AgentFreeze,
    /// When less than this is free, in bytes, around an overlay, the backup is aborted for lack of free
    /// space.
    pub min_free: u64,
}

/// The name of the checkpoint of a freeze session: the journal has it before the checkpoint is there.
pub(crate) fn checkpoint_name(session: Uuid) -> String {
    format!("virtfold-{session}")
}

/// A frozen image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrozenDisk {
    /// The disk.
    pub target: String,
    /// The image, which does not change while the copy runs.
    pub path: PathBuf,
    /// `raw` or `qcow2`.
    pub format: String,
}

/// What a copy gets.
#[derive(Clone, Debug)]
pub struct Frozen {
    /// The job in the journal that keeps the images frozen.
    pub job: Uuid,
    /// The images, in the request's order.
    pub disks: Vec<FrozenDisk>,
    /// The checkpoint that was made just before the snapshot.
    pub checkpoint: Option<String>,
    /// The copy's own: its `cancel` is set by the person's and by a lack of room; its progress is the job's.
    pub control: Control,
    /// How the freeze went.
    pub report: FreezeReport,
}

/// How a freeze went, and how the guest came back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FreezeReport {
    /// Whether the guest's agent had its file systems frozen in the moment of the snapshot.
    pub quiesced: bool,
    /// How long they were frozen, milliseconds.
    pub frozen_ms: Option<f64>,
    /// How long the snapshot took, milliseconds; the guest's writes wait for a part of it.
    pub snapshot_ms: Option<f64>,
    /// The longest pause of the guest at a pivot, milliseconds.
    pub pause_ms: Option<f64>,
    /// What a person should know.
    pub warnings: Vec<String>,
    /// Which disks the guest or its configuration did not have any more when it was back on its disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub detached: Vec<String>,
}

/// What came of a copy, with the guest back on its disks.
#[derive(Clone, Debug)]
pub struct Unfrozen<T> {
    /// What the copy returned.
    pub value: T,
    /// How it went.
    pub report: FreezeReport,
}

/// A disk of a domain that is shut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfflineDisk {
    /// The disk.
    pub target: String,
    /// Its image.
    pub base: BaseImage,
}

/// What is to be read at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfflineRequest {
    /// The domain.
    pub domain: DomainId,
    /// The disks to read.
    pub disks: Vec<OfflineDisk>,
}
