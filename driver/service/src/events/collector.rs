//! The thread that hears of everything and delivers it, one notice at a time.
//!
//! In this order, again and again: connect and subscribe where that is not so; deliver what the spool has;
//! reconcile where there is a reason; write down what is known; then wait for an event, a nudge, a request,
//! the next look, or the end. The subscription comes before the list of domains, so nothing falls between
//! them.
//!
//! Imports: `error`, `hypervisor`; `guest_states`, `socket`, `report`, `types`; `virtfold_hooks` (spool).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, never, select};
use virtfold_hooks::spool::{Spool, SpooledEvent};

use super::guest_states::GuestStates;
use super::report::{self, EventReport, EventReportKind};
use super::socket::Socket;
use super::types::{Delivery, EventNotice, GuestEventKind, Reconcile, ReconcileReason};
use super::{Connect, EventSettings};
use virtfold_base::error::sentence;
use virtfold_hypervisor::{DomainEvent, Hypervisor};

/// Events of the spool that are read in one go.
const BATCH: usize = 256;
const FIRST_RETRY: Duration = Duration::from_millis(200);

/// The intake's ends of its channels.
pub(super) struct Channels {
    pub(super) out: Sender<Delivery>,
    pub(super) looks: Receiver<()>,
    /// Disconnected when it is time to end.
    pub(super) ended: Receiver<()>,
}

/// The hypervisor and its events.
struct EventConnection {
    hypervisor: Arc<dyn Hypervisor>,
    events: Receiver<DomainEvent>,
}

/// What stands in the way of going on.
#[derive(Debug, PartialEq, Eq)]
enum CollectorStop {
    /// The service ends, or nobody listens any more.
    End,
    /// A delivery was dropped: later again.
    Later,
}

type Flow = std::result::Result<(), CollectorStop>;

pub(super) struct EventCollector {
    settings: EventSettings,
    spool: Spool,
    connect: Connect,
    channels: Channels,
    known: GuestStates,
    link: Option<EventConnection>,
    /// Whether the link, where there is one, has broken since.
    is_broken: bool,
    /// Files of the spool that are done with and can't be removed: as many as a spool has at most.
    stuck: HashSet<String>,
    /// Why to reconcile, where there is a reason.
    reason: Option<ReconcileReason>,
    /// The wait before the next try to connect.
    retry: Duration,
    reconciled: Instant,
}

impl EventCollector {
    pub(super) fn new(settings: EventSettings, spool: Spool, connect: Connect, channels: Channels) -> Self {
        let known = GuestStates::load(&settings.known).unwrap_or_else(|error| {
            tracing::warn!(
                "the record of guests is unusable; starting from their present state: {}",
                sentence(&error)
            );
            GuestStates::default()
        });
        Self {
            settings,
            spool,
            connect,
            channels,
            known,
            link: None,
            is_broken: false,
            stuck: HashSet::new(),
            reason: Some(ReconcileReason::StartUp),
            retry: FIRST_RETRY,
            reconciled: Instant::now(),
        }
    }

    /// Runs until the end.
    pub(super) fn run(mut self, socket: &Socket) {
        loop {
            let done = self.turn();
            if let Err(error) = self.known.save(&self.settings.known) {
                tracing::warn!("{}", sentence(&error));
            }
            let wait = match done {
                Err(CollectorStop::End) => return,
                Err(CollectorStop::Later) => self.settings.retry_after,
                Ok(()) if self.link.is_none() || self.is_broken => self.retry,
                Ok(()) => self.settings.look_every,
            };
            let ended = match done {
                Ok(()) => self.wait(socket, wait),
                Err(_) => self.pause(wait),
            };
            if ended == Err(CollectorStop::End) {
                return;
            }
        }
    }

    fn turn(&mut self) -> Flow {
        self.link_up();
        self.drain()?;
        if self.reconciled.elapsed() >= self.settings.reconcile_every {
            self.reason.get_or_insert(ReconcileReason::Routine);
        }
        match self.reason {
            Some(why) if self.link.is_some() && !self.is_broken => self.reconcile(why),
            _ => Ok(()),
        }
    }

    /// Connects, or connects again, and subscribes. What fails is tried again later, less and less often.
    fn link_up(&mut self) {
        if self.link.is_some() && !self.is_broken {
            return;
        }
        let linked = match self.link.take() {
            Some(link) => Ok(link.hypervisor),
            None => (self.connect)(),
        };
        let linked = linked.and_then(|hypervisor| {
            let events = hypervisor.subscribe()?;
            Ok(EventConnection { hypervisor, events })
        });
        match linked {
            Ok(link) => {
                self.link = Some(link);
                self.is_broken = false;
                self.retry = FIRST_RETRY;
            }
            Err(error) => {
                tracing::warn!("libvirt's events can't be received: {}", sentence(&error));
                self.reason.get_or_insert(ReconcileReason::Reconnected);
                self.retry = (self.retry * 2).min(self.settings.retry_after);
            }
        }
    }

    /// Delivers what the spool has. One that can't be read does not keep the other source from being heard.
    fn drain(&mut self) -> Flow {
        loop {
            let batch = match self.spool.read(BATCH) {
                Ok(batch) => batch,
                Err(error) => {
                    self.warn_of_spool("cannot be read", &error);
                    return Ok(());
                }
            };
            for stranger in &batch.quarantined {
                tracing::warn!(file = stranger.name, why = stranger.why, "quarantined in the hooks' spool");
            }
            for spooled in &batch.events {
                self.take(spooled)?;
            }
            match self.spool.take_overflow() {
                Ok(None) => {}
                Ok(Some(lost)) => {
                    tracing::warn!(lost, "the hooks' spool was full; all guests are checked");
                    self.reason = Some(ReconcileReason::Overflow);
                }
                Err(error) => self.warn_of_spool("cannot be asked what it lost", &error),
            }
            if !batch.more || !self.stuck.is_empty() {
                return Ok(());
            }
        }
    }

    /// An event is delivered, and its file removed. Where that fails, the file is not taken for another
    /// event.
    fn take(&mut self, spooled: &SpooledEvent) -> Flow {
        if !self.stuck.contains(&spooled.name) {
            self.heard(report::by_hook(&spooled.event))?;
        }
        match self.spool.remove(spooled) {
            Ok(()) => drop(self.stuck.remove(&spooled.name)),
            Err(error) => {
                self.warn_of_spool("has a file that cannot be removed", &error);
                self.stuck.insert(spooled.name.clone());
            }
        }
        Ok(())
    }

    fn warn_of_spool(&self, what: &str, error: &std::io::Error) {
        tracing::warn!(%error, "the hooks' spool '{}' {what}", self.settings.spool.display());
    }

    /// What somebody told: delivered, where it is new.
    fn heard(&mut self, heard: EventReport) -> Flow {
        if let EventReportKind::Look(why) = heard.what {
            self.reason.get_or_insert(why);
            return Ok(());
        }
        let Some(event) = self.known.hear(heard) else { return Ok(()) };
        self.deliver(EventNotice::Guest(event.clone()))?;
        self.known.learn(&event);
        Ok(())
    }

    /// Hands a notice over and waits for its receipt.
    fn deliver(&self, notice: EventNotice) -> Flow {
        let (delivery, given) = Delivery::new(notice);
        let Channels { out, ended, .. } = &self.channels;
        select! {
            send(out, delivery) -> sent => sent.map_err(|_| CollectorStop::End)?,
            recv(ended) -> _ => return Err(CollectorStop::End),
        }
        select! {
            recv(given) -> receipt => receipt.map_err(|_| CollectorStop::Later),
            recv(ended) -> _ => Err(CollectorStop::End),
        }
    }

    fn reconcile(&mut self, why: ReconcileReason) -> Flow {
        let Some(link) = &self.link else { return Ok(()) };
        let domains = match link.hypervisor.domains() {
            Ok(domains) => domains,
            Err(error) => {
                tracing::warn!("guests cannot be looked at: {}", sentence(&error));
                self.is_broken = true;
                return Ok(());
            }
        };
        for event in self.known.differences(&domains, SystemTime::now()) {
            self.deliver(EventNotice::Guest(event.clone()))?;
            self.known.learn(&event);
        }
        self.deliver(EventNotice::Reconcile(Reconcile { why, domains: domains.clone() }))?;
        self.known.adopt(&domains);
        self.reason = None;
        self.reconciled = Instant::now();
        Ok(())
    }

    /// Waits where a delivery was dropped, so that it does not come again at once.
    fn pause(&self, limit: Duration) -> Flow {
        match self.channels.ended.recv_timeout(limit) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            _ => Err(CollectorStop::End),
        }
    }

    /// Waits for something to do.
    fn wait(&mut self, socket: &Socket, limit: Duration) -> Flow {
        let quiet = never();
        let events = match &self.link {
            Some(link) if !self.is_broken => &link.events,
            _ => &quiet,
        };
        let event = select! {
            recv(events) -> event => event,
            recv(socket.nudges()) -> _ => return Ok(()),
            recv(self.channels.looks) -> _ => {
                self.reason.get_or_insert(ReconcileReason::Routine);
                return Ok(());
            }
            recv(self.channels.ended) -> _ => return Err(CollectorStop::End),
            default(limit) => return Ok(()),
        };
        match event {
            Ok(event) => self.event(&event),
            Err(_) => {
                self.lost();
                Ok(())
            }
        }
    }

    fn lost(&mut self) {
        self.is_broken = true;
        self.reason = Some(ReconcileReason::Reconnected);
    }

    /// An event of libvirt's.
    fn event(&mut self, event: &DomainEvent) -> Flow {
        match event {
            DomainEvent::ConnectionLost => self.lost(),
            DomainEvent::Missed => self.reason = Some(ReconcileReason::Overflow),
            _ => {}
        }
        let Some(mut heard) = report::by_libvirt(event, SystemTime::now()) else { return Ok(()) };
        if let Some(link) = &self.link
            && let (Some(uuid), EventReportKind::Happened(what)) = (heard.uuid, &heard.what)
            && (*what == GuestEventKind::Defined || self.known.name(uuid).is_none())
        {
            // A definition may come with another name. A guest that is gone already goes by its uuid.
            heard.name = link.hypervisor.lookup(&uuid.to_string()).ok().map(|found| found.name);
        }
        // An event that is dropped is found by a reconcile.
        self.heard(heard).inspect_err(|_| {
            self.reason.get_or_insert(ReconcileReason::Overflow);
        })
    }
}
