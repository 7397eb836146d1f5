//! From a hypervisor's events to our subscribers. Nothing here blocks or panics: it runs inside libvirt's
//! callbacks.
//!
//! A subscriber's channel holds [`EVENTS_KEPT`] events and one place more. When all but that place are taken,
//! it gets [`DomainEvent::Missed`] and then nothing until it has read some.
//!
//! Imports: `types`.

use std::sync::{Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

#[cfg(feature = "libvirt")]
use crate::types::{BlockJobKind, BlockJobStatus, DomainId, Lifecycle, StartedDetail, StoppedDetail};
use crate::types::{DomainEvent, EVENTS_KEPT};

/// Who wants to hear of events.
#[derive(Debug, Default)]
pub(crate) struct EventHub {
    subscribers: Mutex<Vec<Sender<DomainEvent>>>,
}

impl EventHub {
    pub(crate) fn subscribe(&self) -> Receiver<DomainEvent> {
        let (sender, receiver) = bounded(EVENTS_KEPT + 1);
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        receiver
    }

    pub(crate) fn publish(&self, event: &DomainEvent) {
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|subscriber| {
            let event = if subscriber.len() < EVENTS_KEPT { event.clone() } else { DomainEvent::Missed };
            !matches!(subscriber.try_send(event), Err(TrySendError::Disconnected(_)))
        });
    }

    pub(crate) fn connection_lost(&self) {
        self.publish(&DomainEvent::ConnectionLost);
    }
}

/// As libvirt numbers them.
#[cfg(feature = "libvirt")]
impl EventHub {
    /// `number` is a virDomainEventType, `detail` the number of that type's own enumeration.
    pub(crate) fn lifecycle(&self, domain: DomainId, number: i32, detail: i32) {
        let change = match number {
            0 => Lifecycle::Defined,
            1 => Lifecycle::Undefined,
            2 => Lifecycle::Started(begin(detail)),
            3 => Lifecycle::Suspended,
            4 => Lifecycle::Resumed,
            5 => Lifecycle::Stopped(end(detail)),
            6 => Lifecycle::Shutdown,
            7 => Lifecycle::PmSuspended,
            8 => Lifecycle::Crashed,
            other => Lifecycle::Other(other),
        };
        self.publish(&DomainEvent::Lifecycle { domain, change });
    }

    /// `status` is a virConnectDomainEventBlockJobStatus.
    pub(crate) fn block_job(&self, domain: DomainId, target: String, kind: BlockJobKind, status: i32) {
        let status = match status {
            0 => BlockJobStatus::Completed,
            1 => BlockJobStatus::Failed,
            2 => BlockJobStatus::Cancelled,
            3 => BlockJobStatus::Ready,
            other => BlockJobStatus::Other(other),
        };
        self.publish(&DomainEvent::BlockJob { domain, target, kind, status });
    }

    pub(crate) fn threshold(&self, domain: DomainId, target: String) {
        self.publish(&DomainEvent::BlockThreshold { domain, target });
    }
}

#[cfg(feature = "libvirt")]
fn begin(detail: i32) -> StartedDetail {
    match detail {
        0 => StartedDetail::Boot,
        1 => StartedDetail::Migration,
        2 | 3 => StartedDetail::Restore,
        other => StartedDetail::Other(other),
    }
}

#[cfg(feature = "libvirt")]
fn end(detail: i32) -> StoppedDetail {
    match detail {
        0 => StoppedDetail::Shutdown,
        1 => StoppedDetail::Destroyed,
        2 => StoppedDetail::Crashed,
        3 => StoppedDetail::Migration,
        4 => StoppedDetail::Saved,
        5 => StoppedDetail::NotStarted,
        other => StoppedDetail::Other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_subscriber_learns_that_it_missed_something() {
        let hub = EventHub::default();
        let (slow, gone) = (hub.subscribe(), hub.subscribe());
        drop(gone);
        for _ in 0..EVENTS_KEPT + 10 {
            hub.connection_lost();
        }
        let seen: Vec<DomainEvent> = slow.try_iter().collect();
        assert_eq!(seen.len(), EVENTS_KEPT + 1);
        assert_eq!(seen.last(), Some(&DomainEvent::Missed));
        hub.connection_lost();
        assert_eq!(slow.try_iter().collect::<Vec<_>>(), [DomainEvent::ConnectionLost]);
        assert_eq!(hub.subscribers.lock().unwrap().len(), 1);
    }
}
