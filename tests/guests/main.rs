//! Real guests under a libvirtd of the tests' own: backups while they write, kills, restores, hooks and the
//! service.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test program has no public items")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/lab/mod.rs"]
mod lab;
#[path = "../common/s3/mod.rs"]
mod s3;

mod apparmor;
mod cli;
mod guests_restore;
mod hanging;
mod hooks_live;
mod increments;
mod kills;
mod lab_conformance;
mod lab_guard;
mod lab_harness;
mod lab_libvirt;
mod odd_disks;
mod online;
mod points;
mod service;
