//! The service: what keeps virtfold going when nobody looks.
//!
//! [`control`] is its socket, through which people and programs ask; [`metrics`] is what Prometheus reads of it, [`notify`] what
//! systemd hears.
//!
//! Imports: all rooms below; nothing but `cli` imports this one.

mod acceptor;
pub mod control;
pub mod metrics;
pub mod notify;
