//! What each source's words mean.
//!
//! A guest has ended for us when its disks are closed and nothing of it is left: the hook's `release` and
//! libvirt's `Stopped`, not the `stopped` and `Shutdown` before them. That it comes from another host or out
//! of a file libvirt's hooks say (`migrate`, `restore`) before they say `started`.
//!
//! Imports: `hypervisor` (plain types), `types`; `virtfold_hooks` (event, domain).

use std::time::{Duration, SystemTime};

use uuid::Uuid;
use virtfold_hooks::domain;
use virtfold_hooks::event::{Event as HookEvent, EventXml, Hook};

use super::types::{EventSource, GuestEventKind, ReconcileReason};
use virtfold_hypervisor::{DomainEvent, Lifecycle, StartedDetail, StoppedDetail};

/// Something that a source tells, before it is held against what is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EventReport {
    pub(super) name: Option<String>,
    pub(super) uuid: Option<Uuid>,
    pub(super) what: EventReportKind,
    pub(super) at: SystemTime,
    pub(super) source: EventSource,
}

/// What it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EventReportKind {
    /// Something that the scheduler may want to hear of.
    Happened(GuestEventKind),
    /// How the guest's next start is to be called.
    Arrives(GuestEventKind),
    /// A reason to look at all domains.
    Look(ReconcileReason),
    /// Nothing.
    Nothing,
}

/// What libvirt said to the hook.
pub(super) fn by_hook(event: &HookEvent) -> EventReport {
    let found = match &event.xml {
        EventXml::Whole { text } => domain::scan(text.as_bytes()),
        _ => domain::HookDomain::default(),
    };
    EventReport {
        name: Some(event.object.clone()),
        uuid: found.uuid.and_then(|text| Uuid::parse_str(&text).ok()),
        what: of_hook(event),
        at: SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_micros(event.time))
            .unwrap_or(SystemTime::UNIX_EPOCH),
        source: EventSource::Hook,
    }
}

fn of_hook(event: &HookEvent) -> EventReportKind {
    let step = (event.operation.as_str(), event.sub_operation.as_str());
    match (event.hook, step) {
        (Hook::Qemu, ("started", "begin")) => EventReportKind::Happened(GuestEventKind::Started),
        (Hook::Qemu, ("release", "end")) => EventReportKind::Happened(match event.extra.as_str() {
            "shutdown" => GuestEventKind::Shutdown,
            "destroyed" => GuestEventKind::Destroyed,
            "crashed" => GuestEventKind::Crashed,
            "saved" => GuestEventKind::Saved,
            "migrated" => GuestEventKind::Left,
            "failed" => GuestEventKind::NotStarted,
            _ => GuestEventKind::Ended,
        }),
        (Hook::Qemu, ("migrate", "begin")) => EventReportKind::Arrives(GuestEventKind::Migrated),
        (Hook::Qemu, ("restore", "begin")) => EventReportKind::Arrives(GuestEventKind::Restored),
        (Hook::Daemon, ("start", _)) => EventReportKind::Look(ReconcileReason::Reconnected),
        _ => EventReportKind::Nothing,
    }
}

/// What libvirt's events say; `None` where a domain is not what they are about.
pub(super) fn by_libvirt(event: &DomainEvent, at: SystemTime) -> Option<EventReport> {
    let (domain, what) = match event {
        DomainEvent::Lifecycle { domain, change } => (domain, of_lifecycle(*change)),
        DomainEvent::BlockJob { domain, target, status, .. } => (
            domain,
            EventReportKind::Happened(GuestEventKind::BlockJob { target: target.clone(), status: *status }),
        ),
        DomainEvent::BlockThreshold { .. } | DomainEvent::Missed | DomainEvent::ConnectionLost => {
            return None;
        }
    };
    Some(EventReport { name: None, uuid: Some(domain.0), what, at, source: EventSource::Libvirt })
}

fn of_lifecycle(change: Lifecycle) -> EventReportKind {
    EventReportKind::Happened(match change {
        Lifecycle::Defined => GuestEventKind::Defined,
        Lifecycle::Undefined => GuestEventKind::Undefined,
        Lifecycle::Started(StartedDetail::Migration) => GuestEventKind::Migrated,
        Lifecycle::Started(StartedDetail::Restore) => GuestEventKind::Restored,
        Lifecycle::Started(StartedDetail::Boot | StartedDetail::Other(_)) => GuestEventKind::Started,
        Lifecycle::Stopped(StoppedDetail::Shutdown) => GuestEventKind::Shutdown,
        Lifecycle::Stopped(StoppedDetail::Destroyed) => GuestEventKind::Destroyed,
        Lifecycle::Stopped(StoppedDetail::Crashed) => GuestEventKind::Crashed,
        Lifecycle::Stopped(StoppedDetail::Migration) => GuestEventKind::Left,
        Lifecycle::Stopped(StoppedDetail::Saved) => GuestEventKind::Saved,
        Lifecycle::Stopped(StoppedDetail::NotStarted) => GuestEventKind::NotStarted,
        Lifecycle::Stopped(StoppedDetail::Other(_)) => GuestEventKind::Ended,
        Lifecycle::Suspended
        | Lifecycle::Resumed
        | Lifecycle::Shutdown
        | Lifecycle::PmSuspended
        | Lifecycle::Crashed
        | Lifecycle::Other(_) => return EventReportKind::Nothing,
    })
}
