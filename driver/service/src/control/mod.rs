//! The control socket: how people and programs ask the service.
//!
//! `PROTOCOL.md` beside this file specifies it. [`ControlApi`] is what can be asked; the service implements
//! it, and a server hands each request to it. A desk is asked by several threads at once and answers in
//! moments: it never waits for a run or for libvirt.
//!
//! - `types`: what is said; `wire`: how, as lines; `lines`: cuts them.
//! - [`Server`]: hands requests to a desk. [`Client`]: a desk whose answers come from a server.
//!
//! Imports: `error`, `metrics` (measures), `service::acceptor`.

mod client;
#[cfg(test)]
pub(crate) mod fake_api;
mod lines;
mod server;
#[cfg(test)]
mod tests;
mod types;
mod wire;

pub use client::Client;
pub use server::{Limits, Server};
pub use wire::{MAX_ANSWER, MAX_REQUEST, Reply, Request, RequestKind, Response, VERSION};

pub use types::{
    DomainStatus, EntryId, EntryOrigin, EntryState, EntryStatus, GuestCounts, JobStatus, LastFailure,
    LastSuccess, LibvirtStatus, RunProgress, RunningEntry, ServiceState, ServiceStatus, Status, Warning,
    WarningKind,
};

use virtfold_base::error::Result;

/// The socket that the service listens at unless told otherwise, in the runtime directory.
pub const SOCKET: &str = "control.sock";

/// What can be asked of the service. Each answer comes in moments, whatever runs.
pub trait ControlApi: Send + Sync {
    /// How everything stands.
    ///
    /// # Errors
    /// The catalog can't be read.
    fn status(&self) -> Result<Status>;

    /// What waits and what runs, in the order in which it is taken.
    ///
    /// # Errors
    /// The catalog can't be read.
    fn queue(&self) -> Result<Vec<EntryStatus>>;

    /// One entry, also one that has ended.
    ///
    /// # Errors
    /// [`virtfold_base::error::ErrorKind::NotFound`]: there is none, or it is not kept any more.
    fn entry(&self, id: EntryId) -> Result<EntryStatus>;

    /// Puts a job's domains, or one of them (by name or uuid), at the head of the queue, though it is paused.
    /// An entry that waits already is taken, not a second one made. Durable when it returns.
    ///
    /// # Errors
    /// [`virtfold_base::error::ErrorKind::NotFound`]: no such job, or the domain is not in it;
    /// [`virtfold_base::error::ErrorKind::Refused`]: the service is stopping, or does not know a job's
    /// domains because libvirt was never reached.
    fn run(&self, job: &str, domain: Option<&str>) -> Result<Vec<EntryId>>;

    /// Begins no scheduled run any more, of all jobs or of the one; what runs goes on. Holds over restarts.
    /// Twice is the same as once.
    ///
    /// # Errors
    /// [`virtfold_base::error::ErrorKind::NotFound`]: no such job.
    fn pause(&self, job: Option<&str>) -> Result<()>;

    /// Takes [`ControlApi::pause`] back. All and one are counted apart: resuming all leaves the jobs paused
    /// that were paused by name.
    ///
    /// # Errors
    /// [`virtfold_base::error::ErrorKind::NotFound`]: no such job.
    fn resume(&self, job: Option<&str>) -> Result<()>;

    /// Takes an entry out of the queue; one that runs is asked to end. Does not wait for that.
    ///
    /// # Errors
    /// [`virtfold_base::error::ErrorKind::NotFound`]: there is no such entry;
    /// [`virtfold_base::error::ErrorKind::Exists`]: it has ended.
    fn cancel(&self, id: EntryId) -> Result<()>;

    /// Reads the configuration anew. A bad one is refused, and the old one stays.
    ///
    /// # Errors
    /// The configuration's.
    fn reload(&self) -> Result<()>;
}
