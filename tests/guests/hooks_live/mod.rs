//! The real libvirtd calls the real hook: what arrives, in which order, how long it takes, and when a start
//! is refused.
//!
//! - `life`: start, shutdown, destroy, managed save and restore, with and without a service that listens,
//!   with a full spool, in a storm of other hooks, over a restart of libvirtd; the spool and the service's
//!   intake.
//! - `refusals`: `prepare` during a backup of a shut-off guest and a restore over it; a killed owner.
//!
//! The hook is installed as a package does it, as a file of `qemu.d`. What libvirt waits for it is measured
//! between two scripts that libvirtd calls right before and right after it; a third shows what such a step
//! costs without a hook in between.

mod install;
mod life;
mod refusals;
