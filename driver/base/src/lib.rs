//! What every other room stands on: typed errors, units that can't be mixed up, files that are durable when
//! they are said to be, paths that others can write to,
//! processes that can do less (`confine`), tables that spill to a file, and what the kernel tells of mounts
//! and devices.
//!
//! Imports no other room.

pub mod confine;
pub mod error;
pub mod ioctl;
pub mod mounts;
pub mod openers;
pub mod packed;
pub mod partial_file;
pub mod printable;
pub mod safe_path;
pub mod spill_log;
pub mod units;
