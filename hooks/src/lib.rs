//! What libvirt's hooks tell virtfold, and what virtfold tells them.
//!
//! libvirt calls the binary `virtfold-hook` (`main.rs`) at each step of a guest's life and waits for it, so
//! it must be quick and can't fail. It leaves a file in the spool ([`spool`], format in [`event`]) and nudges
//! the service's socket ([`wake_service`]). The one thing it may say no to is the start of a guest whose
//! disks virtfold is reading or restoring: such disks have a guard ([`start_lock`]). Which disks a guest has
//! comes from its XML ([`domain`]).
//!
//! Nothing here calls libvirt or links it: a hook that asks libvirt about its own guest never ends.
//!
//! For fuzzers: [`event::Event::parse`], [`start_lock::LockedDisks::parse`] and [`domain::scan`] take any
//! bytes.

pub mod domain;
pub mod event;
pub mod spool;
pub mod start_lock;
pub mod wake_service;

mod paths;

pub use paths::HookOwner;
