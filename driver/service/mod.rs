//! The service: what runs when nobody is looking.
//!
//! - [`control`]: how people and programs ask it, over a socket.
//! - [`events`]: what guests do, as libvirt's hooks and libvirt's own events tell it.
//!
//! Imports: everything of the library but `metrics`.

pub mod control;
pub mod events;
