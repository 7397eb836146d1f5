//! The service: what runs when nobody is looking.
//!
//! - [`engine`]: the loop. It turns schedules and events into entries of the catalog's queue, begins what is
//!   due, and says how everything stands.
//! - [`planner`]: what a schedule asks for at a time.
//! - [`runner`]: each run is this program again, as a process of its own.
//! - [`event_bridge`]: what guests do, made into the engine's inputs.
//! - [`clock`]: the time; tests bring another one.
//! - [`job_spec`]: what the service works by; [`settings`]: that, out of the configuration.
//! - [`control`]: how people and programs ask it, over a socket.
//! - [`metrics`]: the page for Prometheus.
//! - [`notify`]: what systemd is told.
//! - [`serve`]: all of it put together, as `virtfold serve` runs it.
//! - [`events`]: what guests do, as libvirt's hooks and libvirt's own events tell it.
//!
//! Whatever is begun stands in the queue before, and whatever ended stands there before it is acted on; see
//! `catalog::queue`.
//!
//! Imports: everything of the library.

mod acceptor;
pub mod clock;
pub mod control;
pub mod engine;
pub mod event_bridge;
pub mod events;
pub mod job_spec;
pub mod metrics;
pub mod notify;
pub mod planner;
pub mod runner;
pub mod serve;
pub mod settings;
