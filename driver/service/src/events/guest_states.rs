//! What is known of the guests, and which word was heard already.
//!
//! **Twins.** Each start and each end is told by both sources, in any order and with any delay, and perhaps
//! found by a reconcile before. Of each event it is kept who has told it. A word of a source is dropped where
//! the same kind of thing of the same guest was delivered within [`WINDOW`] and that source has not told it
//! yet; it then has. So three starts in a row are three, whoever tells them first; and a word whose twin was
//! missed stands for it.
//!
//! **Known** is, of each guest, its name, whether it runs and whether it outlives its end. It follows what
//! was delivered and done with, is written to a file, and is what a reconcile holds the list of domains
//! against: so also what happened while nobody listened is found. Guests that a first reconcile ever finds
//! are taken as they are.
//!
//! Two words that were both missed, each by another source and within that time, may be taken for twins;
//! whether the guest runs a reconcile finds all the same. It can't see that a guest stopped and started again
//! in between, nor how one ended.
//!
//! Imports: `error`, `partial_file`, `hypervisor` (plain types), `types`, `report`.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::report::{EventReport, EventReportKind};
use super::types::{EventSource, GuestEvent, GuestEventKind};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::partial_file::{Overwrite, PartialFile};
use virtfold_hypervisor::{DomainInfo, Persistence};

/// How far apart by their own clocks two sources tell of the same thing.
pub(super) const WINDOW: Duration = Duration::from_secs(30);
/// Delivered events that may still be told by others.
const MAX_RECENT: usize = 8192;
/// Guests whose next start has a name of its own.
const MAX_ARRIVING: usize = 1024;
const MAX_FILE: u64 = 16 << 20;
const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct GuestState {
    name: String,
    runs: bool,
    persistent: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct GuestStatesFile {
    version: u32,
    guests: BTreeMap<Uuid, GuestState>,
}

/// Kinds of things that are told twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EventKind {
    Start,
    End,
    NotStarted,
    Defined,
    Undefined,
}

/// An event that was delivered.
#[derive(Debug)]
struct DeliveredEvent {
    guest: GuestIdentity,
    kind: EventKind,
    at: SystemTime,
    told_by: Vec<EventSource>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum GuestIdentity {
    Uuid(Uuid),
    Name(String),
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct GuestStates {
    guests: BTreeMap<Uuid, GuestState>,
    /// Whether `guests` means anything: false until a first reconcile, ever.
    has_seen: bool,
    changed: bool,
    /// Oldest first.
    recent: VecDeque<DeliveredEvent>,
    arriving: HashMap<GuestIdentity, GuestEventKind>,
}

impl GuestStates {
    /// What the file says; a file that is not there says nothing.
    ///
    /// # Errors
    /// It can't be read or is not such a file.
    pub(super) fn load(path: &Path) -> Result<Self> {
        let message = || format!("cannot read what is known of guests from '{}'", path.display());
        let file = match std::fs::File::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other.at(message)?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut bytes).at(message)?;
        let stored: GuestStatesFile = serde_json::from_slice(&bytes)
            .map_err(|error| Error::new(ErrorKind::Damaged, message()).with_source(error))?;
        if stored.version != VERSION {
            return Err(Error::new(ErrorKind::Unsupported, message()));
        }
        Ok(Self { guests: stored.guests, has_seen: true, ..Self::default() })
    }

    /// Writes the file, if there is anything new.
    ///
    /// # Errors
    /// It can't be written; the next call tries again.
    pub(super) fn save(&mut self, path: &Path) -> Result<()> {
        if !(self.changed && self.has_seen) {
            return Ok(());
        }
        let message = || format!("cannot write what is known of guests to '{}'", path.display());
        let stored = GuestStatesFile { version: VERSION, guests: self.guests.clone() };
        let bytes = serde_json::to_vec(&stored)
            .map_err(|error| Error::new(ErrorKind::Internal, message()).with_source(error))?;
        let file = PartialFile::create(path, Overwrite::Replace)?;
        file.file().write_all(&bytes).at(message)?;
        file.commit_or_drop(Overwrite::Replace)?;
        self.changed = false;
        Ok(())
    }

    /// The name of a guest that is known.
    pub(super) fn name(&self, uuid: Uuid) -> Option<&str> {
        self.guests.get(&uuid).map(|guest| guest.name.as_str())
    }

    /// The event that a word stands for; `None` where it says nothing new. What follows from the event is
    /// known only after [`GuestStates::learn`].
    pub(super) fn hear(&mut self, heard: EventReport) -> Option<GuestEvent> {
        let uuid = heard.uuid.or_else(|| self.by_name(heard.name.as_deref()));
        let name = heard.name.or_else(|| self.name(uuid?).map(ToOwned::to_owned));
        let guest = identity(uuid, name.as_deref())?;
        let trigger = match heard.what {
            EventReportKind::Happened(trigger) => self.named(&guest, trigger),
            EventReportKind::Arrives(how) => {
                if self.arriving.len() < MAX_ARRIVING {
                    self.arriving.insert(guest, how);
                }
                return None;
            }
            EventReportKind::Look(_) | EventReportKind::Nothing => return None,
        };
        if let Some(kind) = kind(&trigger)
            && self.has_twin(&guest, kind, heard.at, heard.source)
        {
            self.arrived(&guest, heard.source);
            return None;
        }
        let domain = name.unwrap_or_else(|| uuid.map(|u| u.to_string()).unwrap_or_default());
        Some(GuestEvent { domain, uuid, trigger, at: heard.at, source: heard.source })
    }

    /// Takes in an event that was delivered and is done with.
    pub(super) fn learn(&mut self, event: &GuestEvent) {
        let uuid = event.uuid.or_else(|| self.by_name(Some(&event.domain)));
        if let Some((guest, kind)) = identity(uuid, Some(&event.domain)).zip(kind(&event.trigger)) {
            self.arrived(&guest, event.source);
            while self.recent.len() >= MAX_RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(DeliveredEvent { guest, kind, at: event.at, told_by: vec![event.source] });
        }
        let Some(uuid) = uuid else { return };
        self.changed = true;
        let name = event.domain.clone();
        if let Some(guest) = self.guests.get_mut(&uuid)
            && name != uuid.to_string()
        {
            guest.name.clone_from(&name);
        }
        match &event.trigger {
            GuestEventKind::Defined | GuestEventKind::Redefined => {
                let guest =
                    self.guests.entry(uuid).or_insert(GuestState { name, runs: false, persistent: true });
                guest.persistent = true;
            }
            GuestEventKind::Undefined => match self.guests.get_mut(&uuid) {
                Some(guest) if guest.runs => guest.persistent = false,
                _ => drop(self.guests.remove(&uuid)),
            },
            start if start.is_start() => {
                // Whoever starts undefined is transient, until somebody says otherwise.
                let guest =
                    self.guests.entry(uuid).or_insert(GuestState { name, runs: true, persistent: false });
                guest.runs = true;
            }
            end if end.is_end() => {
                if let Some(guest) = self.guests.get_mut(&uuid) {
                    guest.runs = false;
                    if !guest.persistent {
                        self.guests.remove(&uuid);
                    }
                }
            }
            _ => {}
        }
    }

    /// What is different from what is known, as events.
    pub(super) fn differences(&self, domains: &[DomainInfo], now: SystemTime) -> Vec<GuestEvent> {
        if !self.has_seen {
            return Vec::new();
        }
        let mut events = Vec::new();
        let mut tell = |uuid: Uuid, name: &str, trigger: GuestEventKind| {
            let (domain, source) = (name.to_owned(), EventSource::Reconcile);
            events.push(GuestEvent { domain, uuid: Some(uuid), trigger, at: now, source });
        };
        for domain in domains {
            let (uuid, runs) = (domain.id.0, domain.run.is_active());
            let before = self.guests.get(&uuid);
            if domain.persistence == Persistence::Persistent && before.is_none_or(|guest| !guest.persistent) {
                tell(uuid, &domain.name, GuestEventKind::Defined);
            }
            match (before.is_some_and(|guest| guest.runs), runs) {
                (false, true) => tell(uuid, &domain.name, GuestEventKind::Started),
                (true, false) => tell(uuid, &domain.name, GuestEventKind::Ended),
                _ => {}
            }
        }
        let there: BTreeSet<Uuid> = domains.iter().map(|domain| domain.id.0).collect();
        for (uuid, guest) in self.guests.iter().filter(|(uuid, _)| !there.contains(uuid)) {
            if guest.runs {
                tell(*uuid, &guest.name, GuestEventKind::Ended);
            }
            if guest.persistent {
                tell(*uuid, &guest.name, GuestEventKind::Undefined);
            }
        }
        events
    }

    /// Takes the list of domains for what is known.
    pub(super) fn adopt(&mut self, domains: &[DomainInfo]) {
        let guests: BTreeMap<Uuid, GuestState> = domains
            .iter()
            .map(|domain| {
                let guest = GuestState {
                    name: domain.name.clone(),
                    runs: domain.run.is_active(),
                    persistent: domain.persistence == Persistence::Persistent,
                };
                (domain.id.0, guest)
            })
            .collect();
        self.changed |= guests != self.guests || !self.has_seen;
        self.guests = guests;
        self.has_seen = true;
    }

    fn by_name(&self, name: Option<&str>) -> Option<Uuid> {
        self.guests.iter().find(|(_, guest)| Some(guest.name.as_str()) == name).map(|(uuid, _)| *uuid)
    }

    /// The trigger by its right name: a first definition and a changed one, a start and an arrival.
    fn named(&self, guest: &GuestIdentity, trigger: GuestEventKind) -> GuestEventKind {
        match (trigger, guest) {
            (GuestEventKind::Defined, GuestIdentity::Uuid(uuid))
                if self.guests.get(uuid).is_some_and(|g| g.persistent) =>
            {
                GuestEventKind::Redefined
            }
            (GuestEventKind::Started, _) => {
                self.arriving.get(guest).cloned().unwrap_or(GuestEventKind::Started)
            }
            (trigger, _) => trigger,
        }
    }

    /// What `migrate` and `restore` announced is over with the hook's next word of a start or an end.
    fn arrived(&mut self, guest: &GuestIdentity, source: EventSource) {
        if source == EventSource::Hook {
            self.arriving.remove(guest);
        }
    }

    /// Whether it was delivered by another's word; this source has told it then, too.
    fn has_twin(
        &mut self,
        guest: &GuestIdentity,
        kind: EventKind,
        at: SystemTime,
        source: EventSource,
    ) -> bool {
        let twin = self.recent.iter_mut().find(|word| {
            word.kind == kind
                && word.guest == *guest
                && !word.told_by.contains(&source)
                && apart(word.at, at) <= WINDOW
        });
        twin.map(|word| word.told_by.push(source)).is_some()
    }
}

fn identity(uuid: Option<Uuid>, name: Option<&str>) -> Option<GuestIdentity> {
    uuid.map(GuestIdentity::Uuid).or_else(|| name.map(|name| GuestIdentity::Name(name.to_owned())))
}

fn apart(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other).unwrap_or_else(|error| error.duration())
}

fn kind(trigger: &GuestEventKind) -> Option<EventKind> {
    match trigger {
        start if start.is_start() => Some(EventKind::Start),
        end if end.is_end() => Some(EventKind::End),
        GuestEventKind::NotStarted => Some(EventKind::NotStarted),
        GuestEventKind::Defined => Some(EventKind::Defined),
        GuestEventKind::Undefined => Some(EventKind::Undefined),
        _ => None,
    }
}

#[cfg(test)]
#[path = "guest_states_tests.rs"]
mod tests;
