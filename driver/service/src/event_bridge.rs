//! From what is heard of guests ([`events`](super::events)) to the engine's inputs: who the guests are, with
//! their tags and disks; which events jobs wait for; whether libvirt can be reached.
//!
//! A delivery is done with when the engine has it in the queue. The list of guests is made anew at each
//! reconcile and mended at each event.
//!
//! Imports: `error`, `hypervisor`, `events`, `engine` (its inputs), `job_spec`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender};

use super::engine::Input;
use super::events::{Delivery, EventNotice, GuestEvent, GuestEventKind, Notices};
use super::job_spec::GuestFacts;
use virtfold_base::error::{Error, ErrorKind, Result, sentence};
use virtfold_hypervisor::domain_xml::DomainXml;
use virtfold_hypervisor::{DomainEvent, DomainId, DomainInfo, Hypervisor, Persistence, XmlView};

/// How often libvirt is asked for a sign of life while it answers, and while it does not.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LAST: Duration = Duration::from_secs(15);

/// The word that jobs have for what happened, where they have one.
pub fn word(trigger: &GuestEventKind) -> Option<&'static str> {
    Some(match trigger {
        GuestEventKind::Started | GuestEventKind::Restored => "started",
        GuestEventKind::Migrated => "migrated",
        GuestEventKind::Shutdown
        | GuestEventKind::Destroyed
        | GuestEventKind::Crashed
        | GuestEventKind::Ended => "shutdown",
        GuestEventKind::Defined => "defined",
        _ => return None,
    })
}

/// A guest as libvirt describes it now. One whose description can't be had or read has no tags and no disks,
/// and says why: the others are looked at all the same.
///
/// # Errors
/// libvirt can't be reached, or it is gone.
pub fn describe(hypervisor: &dyn Hypervisor, info: &DomainInfo) -> Result<GuestFacts> {
    let config = if info.persistence == Persistence::Persistent { XmlView::Inactive } else { XmlView::Live };
    let read = hypervisor.xml(info.id, config).and_then(DomainXml::parse);
    let guest =
        |tags, disks, trouble| GuestFacts { id: info.id, name: info.name.clone(), tags, disks, trouble };
    match read {
        Ok(xml) => Ok(guest(xml.tags.clone(), xml.targets(), None)),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(error),
        Err(error) => {
            // Whether libvirt speaks at all, or not of this guest.
            hypervisor.lookup(&info.id.to_string())?;
            let why = sentence(&error);
            tracing::warn!(domain = info.name, error = why, "its description can't be read");
            Ok(guest(Vec::new(), Vec::new(), Some(why)))
        }
    }
}

/// Gives the hypervisor, always the same one once there is one.
pub type SharedConnection = Arc<dyn Fn() -> Result<Arc<dyn Hypervisor>> + Send + Sync>;

/// A link that opens by `open`, and keeps what it has opened: it connects again by itself.
pub fn link(open: impl Fn() -> Result<Arc<dyn Hypervisor>> + Send + Sync + 'static) -> SharedConnection {
    let kept: Mutex<Option<Arc<dyn Hypervisor>>> = Mutex::new(None);
    Arc::new(move || {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        match kept.as_ref() {
            Some(hypervisor) => Ok(Arc::clone(hypervisor)),
            None => Ok(Arc::clone(kept.insert(open()?))),
        }
    })
}

/// Turns notices into inputs until nobody sends any more.
pub struct EventBridge {
    link: SharedConnection,
    to: Sender<Input>,
    known: BTreeMap<DomainId, GuestFacts>,
}

impl std::fmt::Debug for EventBridge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventBridge").field("known", &self.known).finish_non_exhaustive()
    }
}

impl EventBridge {
    /// An intake for an engine.
    pub fn new(link: SharedConnection, to: Sender<Input>) -> Self {
        Self { link, to, known: BTreeMap::new() }
    }

    /// Works until there are no more notices.
    pub fn run(&mut self, notices: &Notices) {
        for delivery in notices {
            if let Err(error) = self.deliver(delivery) {
                // It was not done with, so it comes again.
                tracing::warn!(error = sentence(&error), "what happened to a guest can't be looked up");
            }
        }
    }

    fn deliver(&mut self, delivery: Delivery) -> Result<()> {
        match &delivery.notice {
            EventNotice::Guest(event) => {
                let guest = self.look(&event.clone())?;
                let input = match (guest, word(&event.trigger)) {
                    (Some(guest), Some(word)) => {
                        Input::Event(guest, word.to_owned(), Box::new(move || delivery.done()))
                    }
                    _ => {
                        delivery.done();
                        return Ok(());
                    }
                };
                self.send(input);
            }
            EventNotice::Reconcile(seen) => {
                let hypervisor = (self.link)()?;
                let mut known = BTreeMap::new();
                for info in &seen.domains {
                    if let Some(guest) = gone_is_none(describe(hypervisor.as_ref(), info))? {
                        known.insert(info.id, guest);
                    }
                }
                self.known = known;
                self.tell_all();
                delivery.done();
            }
        }
        Ok(())
    }

    /// Looks at the guest of an event; the list follows.
    fn look(&mut self, event: &GuestEvent) -> Result<Option<GuestFacts>> {
        let key = event.uuid.map_or_else(|| event.domain.clone(), |uuid| uuid.to_string());
        let hypervisor = (self.link)()?;
        let info = gone_is_none(hypervisor.lookup(&key))?;
        let guest = match &info {
            Some(info) => gone_is_none(describe(hypervisor.as_ref(), info))?,
            None => None,
        };
        let changed = match (&guest, event.uuid) {
            (Some(guest), _) => self.known.insert(guest.id, guest.clone()).as_ref() != Some(guest),
            (None, Some(uuid)) => self.known.remove(&DomainId(uuid)).is_some(),
            (None, None) => {
                let before = self.known.len();
                self.known.retain(|_, guest| guest.name != event.domain);
                self.known.len() != before
            }
        };
        if changed {
            self.tell_all();
        }
        Ok(guest)
    }

    fn tell_all(&self) {
        let mut guests: Vec<GuestFacts> = self.known.values().cloned().collect();
        guests.sort_by(|a, b| a.name.cmp(&b.name));
        self.send(Input::Guests(guests));
    }

    fn send(&self, input: Input) {
        if self.to.send(input).is_err() {
            tracing::debug!("the service has ended already");
        }
    }
}

fn sentence_of(error: &Error) -> String {
    sentence(error)
}

fn gone_is_none<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Watches whether libvirt can be reached, and says so whenever that changes. Ends with its engine.
pub fn watch(link: &SharedConnection, to: &Sender<Input>) {
    let mut events = None;
    let mut wait = RETRY_FIRST;
    let mut told: Option<Option<String>> = None;
    loop {
        let hypervisor = link();
        let asked =
            hypervisor.as_ref().map_err(sentence_of).and_then(|it| it.check().map_err(|e| sentence_of(&e)));
        let now = asked.err();
        if told.as_ref().map(Option::is_some) != Some(now.is_some()) {
            if to.send(Input::Libvirt(now.clone())).is_err() {
                return;
            }
            told = Some(now.clone());
        }
        if now.is_some() {
            events = None;
            std::thread::sleep(wait);
            wait = (wait * 2).min(RETRY_LAST);
            continue;
        }
        wait = RETRY_FIRST;
        if events.is_none() {
            events = hypervisor.ok().and_then(|hypervisor| hypervisor.subscribe().ok());
        }
        let Some(heard) = &events else {
            std::thread::sleep(SIGN_OF_LIFE);
            continue;
        };
        // Other events are no news; a lost connection is looked into at once.
        let until = std::time::Instant::now() + SIGN_OF_LIFE;
        loop {
            match heard.recv_deadline(until) {
                Ok(DomainEvent::ConnectionLost) | Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    events = None;
                    std::thread::sleep(RETRY_FIRST);
                    break;
                }
                Ok(_) => {}
            }
        }
    }
}
