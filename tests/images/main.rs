//! Disks, archives and the command line, without a hypervisor: images out and back by every way, judged by
//! foreign tools; faults, flips, forgeries. Each module says what it shows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test program has no public items")]

#[path = "../common/mod.rs"]
mod common;

mod attacks;
mod bad_images;
mod cli_golden;
mod confined;
mod differential;
mod directories;
mod encryption;
mod faults;
mod flips;
mod forbidden;
mod foreign_tools;
mod forgeries;
mod free_space;
mod fuzz;
mod gone_reader;
mod hanging;
mod increments;
mod library_faults;
mod mount_check;
mod reflink;
mod replaced;
mod retention;
mod second_readers;
mod signals;
mod signatures;
mod sources;
mod targets;
mod trailing_bytes;
