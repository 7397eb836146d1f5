//! virtfold folds the empty space out of virtual disks: it backs them up by copying only what is recorded on
//! them, densely and in order, with the table that says where each piece belongs, and unfolds them again.
//!
//! Rooms, in the order of their imports: [`units`], [`error`], [`spool`], [`packed`], [`durable`], [`ioctl`], [`mounts`], then
//! [`image`] and [`table`], then [`archive`], then [`medium`] and [`guest`], then [`crypt`] and [`catalog`], then [`job`], then [`metrics`], then [`service`]. The binary's verbs
//! (`driver/cli`) stand on top. ARCHITECTURE.md tells the way of one block through them.

pub mod archive;
pub mod catalog;
pub mod crypt;
pub mod durable;
pub mod error;
pub mod guest;
pub mod image;
pub mod ioctl;
pub mod job;
pub mod medium;
pub mod metrics;
pub mod mounts;
pub mod openers;
pub mod packed;
pub mod service;
pub mod spool;
pub mod table;
pub mod units;
