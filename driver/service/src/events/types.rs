//! The words between the intake of events and the scheduler.
//!
//! Imports: `hypervisor` (plain types).

use std::fmt;
use std::time::SystemTime;

use crossbeam_channel::{Receiver, Sender};
use uuid::Uuid;

use virtfold_hypervisor::{BlockJobStatus, DomainInfo};

/// What happened to a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEventKind {
    /// It was booted.
    Started,
    /// It goes on from a saved state or a snapshot.
    Restored,
    /// It came here from another host, running.
    Migrated,
    /// It shut down by itself, or because it was asked to. Its disks are closed.
    Shutdown,
    /// Its plug was pulled. Its disks are closed.
    Destroyed,
    /// It, or its QEMU, crashed. Its disks are closed.
    Crashed,
    /// Its memory was saved to a file. Its disks are closed, and belong to that memory.
    Saved,
    /// It went to another host, where it uses its disks.
    Left,
    /// It does not run any more; how it ended nobody saw.
    Ended,
    /// It could not be started.
    NotStarted,
    /// It is new: nobody knew it before.
    Defined,
    /// Its definition was changed, by virtfold itself, too: a backup of a running guest does that.
    Redefined,
    /// Its definition is gone.
    Undefined,
    /// A block job on one of its disks is ready or over; also virtfold's own.
    BlockJob {
        /// The disk.
        target: String,
        /// What became of it.
        status: BlockJobStatus,
    },
}

impl GuestEventKind {
    /// Whether the guest runs since.
    pub fn is_start(&self) -> bool {
        matches!(self, Self::Started | Self::Restored | Self::Migrated)
    }

    /// Whether the guest does not run here since.
    pub fn is_end(&self) -> bool {
        matches!(
            self,
            Self::Shutdown | Self::Destroyed | Self::Crashed | Self::Saved | Self::Left | Self::Ended
        )
    }
}

/// Who told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventSource {
    /// libvirt called `virtfold-hook`.
    Hook,
    /// libvirt's own events.
    Libvirt,
    /// A look at all domains.
    Reconcile,
}

impl fmt::Display for EventSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hook => "hook",
            Self::Libvirt => "libvirt",
            Self::Reconcile => "reconcile",
        })
    }
}

/// Something that happened to a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestEvent {
    /// The guest's name at that time.
    pub domain: String,
    /// Its uuid, where whoever told knew it.
    pub uuid: Option<Uuid>,
    /// What happened.
    pub trigger: GuestEventKind,
    /// When: by the hook's clock, else when it was heard of.
    pub at: SystemTime,
    /// Who told first.
    pub source: EventSource,
}

/// Why all domains were looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReconcileReason {
    /// The service has just started.
    StartUp,
    /// libvirtd was away, or the host's hooks say that it has been restarted.
    Reconnected,
    /// The spool was full, so events were lost; or libvirt told more than could be kept.
    Overflow,
    /// It was time, or somebody asked.
    Routine,
}

/// All domains as they are now. What this differed in from what was known was delivered just before, as
/// events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconcile {
    /// Why they were looked at.
    pub why: ReconcileReason,
    /// Every domain, by name.
    pub domains: Vec<DomainInfo>,
}

/// What the scheduler hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventNotice {
    /// Something happened to a guest.
    Guest(GuestEvent),
    /// All domains as they are.
    Reconcile(Reconcile),
}

/// A notice that waits for its receipt; the next one comes only then.
#[derive(Debug)]
#[must_use = "a delivery that is not done comes again"]
pub struct Delivery {
    /// What it says.
    pub notice: EventNotice,
    receipt: Sender<()>,
}

impl Delivery {
    /// Says that the notice is acted on, or durably noted.
    pub fn done(self) {
        if self.receipt.try_send(()).is_err() {
            tracing::debug!("a notice was done with when nobody waited for it any more; it will come again");
        }
    }

    /// A delivery and what says that it is done with; the latter ends without a word where the delivery is
    /// dropped.
    pub fn new(notice: EventNotice) -> (Self, Receiver<()>) {
        let (receipt, given) = crossbeam_channel::bounded(1);
        (Self { notice, receipt }, given)
    }
}

/// Where the scheduler gets its notices from.
pub type Notices = Receiver<Delivery>;
