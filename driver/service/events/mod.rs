//! What guests do, for the scheduler: two sources that each may miss something, merged into one stream.
//!
//! - The **spool**, which `virtfold-hook` writes whenever libvirt calls it, also while the service is away. A datagram on the
//!   service's socket says that there is something new.
//! - **libvirt's own events**, which also tell of definitions and block jobs, and which nobody keeps while the service or libvirtd is away.
//! - The **reconcile** finds what both missed: the list of domains is held against what was known of them.
//!
//! The same thing told twice is delivered once. A [`Delivery`] is done with when [`Delivery::done`] was called; only then its file leaves the
//! spool and what is known changes. One that is dropped comes again: nothing gets lost, and something may come twice.
//!
//! How it is used:
//!
//! ```text
//! let (events, notices): (Events, Notices) = Events::start(Settings::default(), connect)?;
//! //   connect: Box<dyn Fn() -> Result<Arc<dyn Hypervisor>> + Send>, called until there is a libvirtd
//! //   events.look(): asks for a reconcile; dropped, it ends the intake
//! for delivery in &notices {            // or select! with other channels
//!     note_in_the_queue(&delivery.notice)?;
//!     delivery.done();
//! }
//! ```
//!
//! Imports: `error`, `guest`, `durable`; `virtfold_hooks` (spool, events, domain).

mod types;

pub use types::{Delivery, GuestEvent, Notice, Notices, Reconcile, Source, Trigger, Why};
