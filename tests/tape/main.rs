//! Tapes, against the kernel's real `st` driver: a machine in user mode (`machine`) with a tape drive in software
//! (`drive`) runs virtfold as a user does. `bench` holds what the cases share.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test program has no public items")]

#[path = "../common/mod.rs"]
mod common;

mod archives;
mod bench;
mod drive;
mod faults;
mod machine;
mod refusals;
mod st;
