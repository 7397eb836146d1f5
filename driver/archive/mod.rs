//! The archive: one byte stream, written strictly front to back, that holds the disks of a domain densely
//! together with the tables that say where each piece belongs. FORMAT.md gives every byte.
//!
//! Layer 1 ([`stream`]) cuts the stream into chunks, digests and compresses them, and reads them back.
//! The layers above give the stream its members.
//!
//! Imports: `units`, `error`, `spool`, `packed`.

pub mod stream;
