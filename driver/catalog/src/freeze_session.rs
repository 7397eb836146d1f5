//! What the journal says of a job.
//!
//! Imports: plain types of `hypervisor`.

use std::path::PathBuf;

use uuid::Uuid;

use virtfold_hypervisor::DomainId;
use virtfold_hypervisor::host_files::ImageStamp;
use virtfold_hypervisor::types::Persistence;
use virtfold_hypervisor::watchdog::GuestHold;

/// How a domain is backed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionKind {
    /// It runs; the driver suspends it for each pivot.
    Running,
    /// Its processors stood still when the job began, and not by us.
    Standing,
    /// It is shut off and read as it is.
    AtRest,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SessionState {
    /// A snapshot is going to be taken, or was. Nothing is known of what came of it.
    Planned,
    /// The overlays are in the chains; the bases are frozen and being read.
    Snapshotted,
    /// The bases have been read.
    ReadDone,
    /// The overlays go back into their bases, which are no valid source of a backup any more. The disks say
    /// how far.
    Committing,
    /// A shut-off domain's disks are being read.
    Reading,
    /// Nothing is left to do.
    Closed,
}

/// How far a disk's way back is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnfreezeState {
    /// Not begun.
    Waiting,
    /// A commit was started, or is about to be.
    Committing,
    /// The commit has caught up: the pivot may follow.
    Ready,
    /// The overlay was found to be the truth, and is being written into the base while nothing runs.
    AtRest,
    /// The base had all that the overlay had, and nothing ran: the pivot was asked for, or is about to be, or
    /// the commit at rest is done.
    Pivoting {
        /// The overlay at that moment. As long as it stays the same, the base has everything.
        level: Option<ImageStamp>,
    },
    /// The guest was seen on its base in all views. The overlay may be removed.
    Pivoted,
    /// The overlay is gone, or was put aside.
    Done,
}

/// What became of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionOutcome {
    /// The driver that began it ended it, and the copy was whole.
    Copied,
    /// The driver that began it cleaned up; there is no copy.
    Failed,
    /// A recovery cleaned up.
    Recovered,
}

/// The image that a disk has without virtfold's overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseImage {
    /// Its file or block device.
    pub path: PathBuf,
    /// `raw` or `qcow2`.
    pub format: String,
    /// Device and inode of the file (the device's own number and 0 for a block device).
    pub identity: Option<(u64, u64)>,
    /// The image below it, and its format.
    pub backing: Option<(PathBuf, String)>,
}

/// A disk of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionDisk {
    /// The disk, `vda`.
    pub target: String,
    /// The device's alias in the live XML.
    pub alias: Option<String>,
    /// The image that is read, and that the guest comes back to.
    pub base: BaseImage,
    /// The overlay; `None` for a disk that is read at rest.
    pub overlay: Option<PathBuf>,
    /// The base once it was frozen: as long as it stays the same, nobody has used it.
    pub frozen: Option<ImageStamp>,
    /// How far it is.
    pub state: UnfreezeState,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreezeSession {
    /// Its own id.
    pub id: Uuid,
    /// The domain.
    pub domain: DomainId,
    /// The domain's name when it began.
    pub name: String,
    /// Whether the domain outlives its end.
    pub persistence: Persistence,
    /// What ran when it began.
    pub live: Option<String>,
    /// The configuration when it began; `None` for a transient domain.
    pub inactive: Option<String>,
    /// How the domain is backed up.
    pub kind: SessionKind,
    /// When it began, seconds since 1970.
    pub created: i64,
    /// How far it is.
    pub state: SessionState,
    /// What is being done to the guest, or is about to be.
    pub held: Option<GuestHold>,
    /// Its disks.
    pub disks: Vec<SessionDisk>,
}

/// An entry in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JournalEntry {
    /// The job gets on.
    State(SessionState),
    /// The guest is about to be held, or was let go.
    Held(Option<GuestHold>),
    /// A base was found frozen.
    Frozen {
        /// The disk.
        target: String,
        /// The base now.
        mark: ImageStamp,
    },
    /// A disk gets on.
    Disk {
        /// The disk.
        target: String,
        /// Its state now.
        state: UnfreezeState,
    },
    /// Nothing is left to do.
    Close(SessionOutcome),
}
