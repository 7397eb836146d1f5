//! What guests do, for the scheduler: two sources that each may miss something, merged into one stream.
//!
//! - The **spool**, which `virtfold-hook` writes whenever libvirt calls it, also while the service is away. A
//!   datagram on the service's socket says that there is something new.
//! - **libvirt's own events**, which also tell of definitions and block jobs, and which nobody keeps while
//!   the service or libvirtd is away.
//! - The **reconcile** finds what both missed: the list of domains is held against what was known of them. It
//!   is done at the start, after libvirtd was away, after an overflow, and now and then.
//!
//! The same thing told twice is delivered once (`guest_states`). A [`Delivery`] is done with when
//! [`Delivery::done`] was called; only then its file leaves the spool and what is known changes. One that is
//! dropped comes again: nothing gets lost, and something may come twice, after a crash above all.
//!
//! ```text
//! let (events, notices): (Events, Notices) = Events::start(settings, connect)?;
//! for delivery in &notices {            // or select! with other channels
//!     note_in_the_queue(&delivery.notice)?;
//!     delivery.done();
//! }
//! ```
//!
//! One thread does it all (`collector`), and delivers one notice at a time; another waits at the socket.
//! Dropping [`EventThread`] ends both.
//!
//! Imports: `error`, `hypervisor`, `partial_file`; `virtfold_hooks` (spool, events, domain, wake_service).

mod collector;
mod guest_states;
mod report;
mod socket;
#[cfg(test)]
mod tests;
mod types;

pub use types::{
    Delivery, EventNotice, EventSource, GuestEvent, GuestEventKind, Notices, Reconcile, ReconcileReason,
};

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use virtfold_hooks::HookOwner;
use virtfold_hooks::spool::Spool;

use virtfold_base::error::{IoContext, Result};
use virtfold_base::partial_file;
use virtfold_hypervisor::Hypervisor;

/// Connects to the hypervisor; called until it succeeds.
pub type Connect = Box<dyn Fn() -> Result<Arc<dyn Hypervisor>> + Send>;

/// Where everything lies, and how often the intake looks by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventSettings {
    /// The hooks' spool.
    pub spool: PathBuf,
    /// The socket that hooks send to.
    pub socket: PathBuf,
    /// The file that keeps what is known of guests.
    pub known: PathBuf,
    /// The longest time between two looks at the spool: a nudge may be lost.
    pub look_every: Duration,
    /// The time between two reconciles.
    pub reconcile_every: Duration,
    /// After a delivery that was not done with, and the longest wait between two tries to connect.
    pub retry_after: Duration,
}

impl EventSettings {
    /// The usual places of a libvirt, with what is known in `state`, the service's directory.
    pub fn usual(state: &Path, whose: HookOwner) -> Self {
        Self {
            spool: virtfold_hooks::spool::usual_path(whose),
            socket: virtfold_hooks::wake_service::usual_path(whose),
            known: state.join("guests.json"),
            look_every: Duration::from_secs(30),
            reconcile_every: Duration::from_secs(300),
            retry_after: Duration::from_secs(10),
        }
    }
}

/// The intake at work.
#[derive(Debug)]
pub struct EventThread {
    look: Sender<()>,
    /// Dropped, it tells the thread to end.
    alive: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl EventThread {
    /// Starts it. The first reconcile comes as soon as there is a hypervisor.
    ///
    /// # Errors
    /// The spool's directory or the socket can't be made.
    pub fn start(settings: EventSettings, connect: Connect) -> Result<(Self, Notices)> {
        let spool = Spool::at(&settings.spool);
        let making = || format!("cannot make the spool '{}'", settings.spool.display());
        partial_file::at_directory(spool.create(), &settings.spool, making)?;
        let socket = socket::Socket::bind(&settings.socket)?;
        let ((out, notices), (look, looks), (alive, ended)) = (bounded(0), bounded(1), bounded(0));
        let channels = collector::Channels { out, looks, ended };
        let intake = collector::EventCollector::new(settings, spool, connect, channels);
        let run = move || intake.run(&socket);
        let thread = std::thread::Builder::new().name("events".to_owned()).spawn(run);
        let thread = thread.at(|| "cannot start the thread that hears of guests".to_owned())?;
        Ok((Self { look, alive: Some(alive), thread: Some(thread) }, notices))
    }

    /// Asks for a reconcile.
    pub fn look(&self) {
        if self.look.try_send(()).is_err() {
            tracing::debug!("a look at all guests was asked for already");
        }
    }
}

impl Drop for EventThread {
    fn drop(&mut self) {
        drop(self.alive.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that hears of guests failed");
        }
    }
}
