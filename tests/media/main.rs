//! The media behind archives: one contract for all of them, object stores over HTTP and tapes behind the
//! kernel's `st`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test program has no public items")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/s3/mod.rs"]
mod s3;

mod medium_conformance;
mod objects;
mod tape;
