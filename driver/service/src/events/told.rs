//! What each source's words mean.
//!
//! A guest has ended for us when its disks are closed and nothing of it is left: the hook's `release` and libvirt's `Stopped`, not the `stopped` and
//! `Shutdown` before them. That it comes from another host or out of a file libvirt's hooks say (`migrate`, `restore`) before
//! they say `started`.
//!
//! Imports: `hypervisor` (plain types), `types`; `virtfold_hooks` (event, domain).

use std::time::{Duration, SystemTime};

use uuid::Uuid;
use virtfold_hooks::domain;
use virtfold_hooks::event::{Event as HookEvent, EventXml, Hook};

use super::types::{Source, Trigger, Why};
use virtfold_hypervisor::{Begin, End, Event, Lifecycle};

/// Something that a source tells, before it is held against what is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) name: Option<String>,
    pub(super) uuid: Option<Uuid>,
    pub(super) what: What,
    pub(super) at: SystemTime,
    pub(super) source: Source,
}

/// What it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Something that the scheduler may want to hear of.
    Happened(Trigger),
    /// How the guest's next start is to be called.
    Arrives(Trigger),
    /// A reason to look at all domains.
    Look(Why),
    /// Nothing.
    Nothing,
}

/// What libvirt said to the hook.
pub(super) fn by_hook(event: &HookEvent) -> Heard {
    let found = match &event.xml {
        EventXml::Whole { text } => domain::scan(text.as_bytes()),
        _ => domain::Domain::default(),
    };
    Heard {
        name: Some(event.object.clone()),
        uuid: found.uuid.and_then(|text| Uuid::parse_str(&text).ok()),
        what: of_hook(event),
        at: SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_micros(event.time))
            .unwrap_or(SystemTime::UNIX_EPOCH),
        source: Source::Hook,
    }
}

fn of_hook(event: &HookEvent) -> What {
    let step = (event.operation.as_str(), event.sub_operation.as_str());
    match (event.hook, step) {
        (Hook::Qemu, ("started", "begin")) => What::Happened(Trigger::Started),
        (Hook::Qemu, ("release", "end")) => What::Happened(match event.extra.as_str() {
            "shutdown" => Trigger::Shutdown,
            "destroyed" => Trigger::Destroyed,
            "crashed" => Trigger::Crashed,
            "saved" => Trigger::Saved,
            "migrated" => Trigger::Left,
            "failed" => Trigger::NotStarted,
            _ => Trigger::Ended,
        }),
        (Hook::Qemu, ("migrate", "begin")) => What::Arrives(Trigger::Migrated),
        (Hook::Qemu, ("restore", "begin")) => What::Arrives(Trigger::Restored),
        (Hook::Daemon, ("start", _)) => What::Look(Why::Reconnected),
        _ => What::Nothing,
    }
}

/// What libvirt's events say; `None` where a domain is not what they are about.
pub(super) fn by_libvirt(event: &Event, at: SystemTime) -> Option<Heard> {
    let (domain, what) = match event {
        Event::Lifecycle { domain, change } => (domain, of_lifecycle(*change)),
        Event::BlockJob { domain, target, status, .. } => {
            (domain, What::Happened(Trigger::BlockJob { target: target.clone(), status: *status }))
        }
        Event::BlockThreshold { .. } | Event::Missed | Event::ConnectionLost => return None,
    };
    Some(Heard { name: None, uuid: Some(domain.0), what, at, source: Source::Libvirt })
}

fn of_lifecycle(change: Lifecycle) -> What {
    What::Happened(match change {
        Lifecycle::Defined => Trigger::Defined,
        Lifecycle::Undefined => Trigger::Undefined,
        Lifecycle::Started(Begin::Migration) => Trigger::Migrated,
        Lifecycle::Started(Begin::Restore) => Trigger::Restored,
        Lifecycle::Started(Begin::Boot | Begin::Other(_)) => Trigger::Started,
        Lifecycle::Stopped(End::Shutdown) => Trigger::Shutdown,
        Lifecycle::Stopped(End::Destroyed) => Trigger::Destroyed,
        Lifecycle::Stopped(End::Crashed) => Trigger::Crashed,
        Lifecycle::Stopped(End::Migration) => Trigger::Left,
        Lifecycle::Stopped(End::Saved) => Trigger::Saved,
        Lifecycle::Stopped(End::NotStarted) => Trigger::NotStarted,
        Lifecycle::Stopped(End::Other(_)) => Trigger::Ended,
        Lifecycle::Suspended
        | Lifecycle::Resumed
        | Lifecycle::Shutdown
        | Lifecycle::PmSuspended
        | Lifecycle::Crashed
        | Lifecycle::Other(_) => return What::Nothing,
    })
}
