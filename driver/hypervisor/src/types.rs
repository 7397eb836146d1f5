//! The words between jobs and a hypervisor. Requests are shaped so that the calls known to destroy data
//! cannot be expressed: a commit always says how far down it goes, a snapshot always lists its disks.
//!
//! Imports: nothing of the crate but `error`.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use uuid::Uuid;

use virtfold_base::error::{Error, ErrorKind, Result};

/// Events that are kept for a subscriber that does not read them.
pub const EVENTS_KEPT: usize = 4096;

/// A domain's uuid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(pub Uuid);

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.hyphenated())
    }
}

impl FromStr for DomainId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let uuid = Uuid::parse_str(text.trim());
        uuid.map(Self).map_err(|_| Error::new(ErrorKind::Usage, format!("'{text}' is not a domain's UUID")))
    }
}

/// Whether a domain is still there once it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// It has a configuration.
    Persistent,
    /// It is gone with its end: the journal is then the only pointer to an overlay.
    Transient,
}

/// A domain in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainInfo {
    /// Its uuid.
    pub id: DomainId,
    /// Its name, which may change; the uuid does not.
    pub name: String,
    /// Whether it outlives its end.
    pub persistence: Persistence,
    /// Whether it runs.
    pub run: DomainState,
}

/// What a domain does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainState {
    /// It runs (or waits for input or output, which libvirt calls blocked).
    Running,
    /// Its processors stand still, its QEMU is there.
    Paused(PausedReason),
    /// The guest sleeps in its own suspend-to-RAM.
    PmSuspended,
    /// It is about to end.
    ShuttingDown,
    /// There is no QEMU.
    ShutOff,
    /// It crashed; whether its QEMU is there is not said.
    Crashed,
}

impl DomainState {
    /// Whether there is a QEMU that has the disks open.
    pub fn is_active(self) -> bool {
        !matches!(self, DomainState::ShutOff | DomainState::Crashed)
    }
}

/// Why a domain is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PausedReason {
    /// Somebody asked for it.
    User,
    /// A disk failed or is full. Commit and pivot work in this state.
    IoError,
    /// A migration, a save or a dump is going on.
    Busy,
    /// It is being started.
    Starting,
    /// The guest crashed and is kept for a look.
    Crashed,
    /// Anything else; libvirt's number of the reason.
    Other(i32),
}

/// Which of a domain's two descriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum XmlView {
    /// What runs now, as libvirt believes.
    Live,
    /// What the next start uses.
    Inactive,
}

/// How a domain starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartMode {
    /// Running.
    Running,
    /// With its processors standing still.
    Paused,
}

/// Whether the guest's agent freezes the file systems around a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotQuiesce {
    /// The image is what a power cut would leave.
    No,
    /// File systems are clean. Set the agent's time limit first.
    ByAgent,
}

/// What a snapshot does with one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotDisk {
    /// The guest goes on in a new qcow2 at `overlay`, whose path must be free.
    External {
        /// The disk, `vda`.
        target: String,
        /// The overlay's path.
        overlay: PathBuf,
    },
    /// The disk is left alone.
    Skip {
        /// The disk.
        target: String,
    },
}

/// An external snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRequest {
    disks: Vec<SnapshotDisk>,
    quiesce: SnapshotQuiesce,
}

impl SnapshotRequest {
    /// A request for every disk in `all`: those in `overlays` get theirs, the others are named as left alone.
    ///
    /// # Errors
    /// An overlay for a disk that is not in `all`; none at all; a path that is not absolute or not text.
    pub fn new(all: &[String], overlays: &[(String, PathBuf)], quiesce: SnapshotQuiesce) -> Result<Self> {
        let mistake = |text: String| Err(Error::new(ErrorKind::Internal, text));
        let known: BTreeSet<&String> = all.iter().collect();
        if let Some((target, _)) = overlays.iter().find(|(target, _)| !known.contains(target)) {
            return mistake(format!("a snapshot of disk '{target}', which the domain has not"));
        }
        let unusable = |path: &Path| !path.is_absolute() || path.to_str().is_none();
        if let Some((target, path)) = overlays.iter().find(|(_, path)| unusable(path)) {
            return mistake(format!("disk '{target}' cannot have an overlay at '{}'", path.display()));
        }
        if overlays.is_empty() {
            return mistake("a snapshot of no disk".to_owned());
        }
        let disks =
            known.into_iter().map(|target| match overlays.iter().find(|(wanted, _)| wanted == target) {
                Some((_, overlay)) => {
                    SnapshotDisk::External { target: target.clone(), overlay: overlay.clone() }
                }
                None => SnapshotDisk::Skip { target: target.clone() },
            });
        Ok(Self { disks: disks.collect(), quiesce })
    }

    /// Every disk of the domain.
    pub fn disks(&self) -> &[SnapshotDisk] {
        &self.disks
    }

    /// Whether the agent freezes.
    pub fn quiesce(&self) -> SnapshotQuiesce {
        self.quiesce
    }
}

/// How far down an active commit goes. libvirt's own default, the bottom of the chain, would overwrite a
/// golden image that other guests share; it can't be expressed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommitBase {
    /// Into the image right below the overlay.
    Shallow,
    /// Into this image of the chain.
    Explicit(PathBuf),
}

/// An active commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitRequest {
    /// The disk.
    pub target: String,
    /// How far down.
    pub base: CommitBase,
    /// A cap in bytes a second; 0 for none.
    pub bytes_per_second: u64,
}

/// What a block job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockJobKind {
    /// The one that [`CommitRequest`] starts.
    ActiveCommit,
    /// A commit of lower images.
    Commit,
    /// A pull.
    Pull,
    /// A copy or mirror.
    Copy,
    /// A backup by the hypervisor.
    Backup,
    /// Not known.
    Other(i32),
}

/// A disk's block job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockJob {
    /// What it does.
    pub kind: BlockJobKind,
    /// How far it is, in units that mean nothing but against `end`.
    pub current: u64,
    /// Where it ends. An active commit is at its end when `current == end`, and leaves it with the guest's
    /// next write.
    pub end: u64,
}

impl BlockJob {
    /// Whether everything written so far is in the base. 0 of 0 is a job that has not begun.
    pub fn is_level(&self) -> bool {
        self.current == self.end && self.end > 0
    }
}

/// How a block job is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockJobEnd {
    /// The guest goes on in the base.
    Pivot,
    /// The guest stays in the overlay.
    Abort,
}

/// What became of a block job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockJobStatus {
    /// Done, after a pivot for an active commit.
    Completed,
    /// Failed: the base is full, for example. The overlay is whole.
    Failed,
    /// Aborted.
    Cancelled,
    /// Ready for the pivot.
    Ready,
    /// libvirt's number.
    Other(i32),
}

/// A disk as QEMU itself has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuDisk {
    /// The device's alias in the live XML (`virtio-disk0`).
    pub alias: String,
    /// The file or device that the guest's writes go to; `None` for an empty drive or one that is not a local
    /// file.
    pub file: Option<PathBuf>,
    /// The files below it, the next one first.
    pub backing: Vec<PathBuf>,
}

/// A checkpoint of a domain: from it on bitmaps of its disks' images mark what is written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its name; the bitmaps have it, too.
    pub name: String,
    /// The one before it.
    pub parent: Option<String>,
}

/// A checkpoint that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointRequest {
    /// Its name, as [`is_our_checkpoint`] wants it.
    pub name: String,
    /// The disks whose images get a bitmap.
    pub tracked: Vec<String>,
    /// All other disks of the domain: the hypervisor would give them one where they are not named.
    pub others: Vec<String>,
}

/// What of a checkpoint is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointParts {
    /// It and its bitmaps. The domain has to run.
    All,
    /// What the hypervisor knows of it: its bitmaps are gone, or go with their images.
    Metadata,
}

/// Whether a checkpoint is one that virtfold made: `virtfold-UUID`. No other is ever deleted.
pub fn is_our_checkpoint(name: &str) -> bool {
    name.strip_prefix("virtfold-").is_some_and(|id| Uuid::try_parse(id).is_ok())
}

/// What else is going on in a domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// A description of the hypervisor's own backup job, when one runs.
    pub backup: Option<String>,
    /// Names of checkpoints.
    pub checkpoints: Vec<String>,
    /// Names of snapshots with metadata: the user's own.
    pub snapshots: Vec<String>,
}

/// How a domain came to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartedDetail {
    /// It was booted.
    Boot,
    /// It came from another host.
    Migration,
    /// It goes on from a saved state or a snapshot.
    Restore,
    /// libvirt's number of another way.
    Other(i32),
}

/// How a domain came to run no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoppedDetail {
    /// It shut down.
    Shutdown,
    /// It was destroyed.
    Destroyed,
    /// It crashed.
    Crashed,
    /// It went to another host.
    Migration,
    /// It was saved.
    Saved,
    /// It never came to run.
    NotStarted,
    /// libvirt's number of another way.
    Other(i32),
}

/// A change in a domain's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// Defined or redefined.
    Defined,
    /// Undefined.
    Undefined,
    /// It runs.
    Started(StartedDetail),
    /// Paused.
    Suspended,
    /// Goes on.
    Resumed,
    /// It does not run here any more.
    Stopped(StoppedDetail),
    /// The guest has begun to shut down.
    Shutdown,
    /// The guest sleeps.
    PmSuspended,
    /// The guest crashed.
    Crashed,
    /// libvirt's number.
    Other(i32),
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DomainEvent {
    /// A domain's life.
    Lifecycle {
        /// Whose.
        domain: DomainId,
        /// What.
        change: Lifecycle,
    },
    /// A block job.
    BlockJob {
        /// Whose.
        domain: DomainId,
        /// Which disk.
        target: String,
        /// What it did.
        kind: BlockJobKind,
        /// What became of it.
        status: BlockJobStatus,
    },
    /// The guest has written past the threshold.
    BlockThreshold {
        /// Whose.
        domain: DomainId,
        /// Which disk: its target, which libvirt may follow by an index in brackets.
        target: String,
    },
    /// The subscriber was too slow: look.
    Missed,
    /// The connection broke. The next call makes a new one; what happened in between is not told.
    ConnectionLost,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn a_snapshot_lists_every_disk() {
        let overlays = [("vdb".to_owned(), PathBuf::from("/o"))];
        let request =
            SnapshotRequest::new(&names(&["vda", "vdb", "sda"]), &overlays, SnapshotQuiesce::No).unwrap();
        let skip = |target: &str| SnapshotDisk::Skip { target: target.to_owned() };
        let external = SnapshotDisk::External { target: "vdb".to_owned(), overlay: "/o".into() };
        assert_eq!(request.disks(), [skip("sda"), skip("vda"), external]);
    }

    #[test]
    fn senseless_snapshots_cannot_be_made() {
        let all = names(&["vda"]);
        let make = |target: &str, path: &str| {
            SnapshotRequest::new(&all, &[(target.to_owned(), PathBuf::from(path))], SnapshotQuiesce::No)
        };
        assert!(make("vda", "/o").is_ok());
        assert!(make("vdb", "/o").is_err());
        assert!(make("vda", "o").is_err());
        assert!(SnapshotRequest::new(&all, &[], SnapshotQuiesce::No).is_err());
    }
}
