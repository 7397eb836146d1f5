//! virtfold folds the empty space out of virtual disks: it backs them up by copying only what is recorded on
//! them, densely and in order, with the table that says where each piece belongs, and unfolds them again.
//!
//! Each room is a crate of its own, and this one gives them together. ARCHITECTURE.md draws the floors and
//! tells the way of one block through them.

pub use virtfold_archive as archive;
pub use virtfold_archive::{crypt, table};
pub use virtfold_backup as backup;
pub use virtfold_backup::metrics;
pub use virtfold_base::{error, ioctl, mounts, openers, packed, partial_file, spill_log, units};
pub use virtfold_catalog as catalog;
pub use virtfold_hypervisor as hypervisor;
pub use virtfold_image as image;
pub use virtfold_medium as medium;
pub use virtfold_service as service;
