//! The archive: one backup as one stream of bytes, a POSIX tar that `tar` alone can restore.
//!
//! FORMAT.md beside this file is the specification. The members are built and parsed here, each in its own
//! module: [`tar`] and [`pax`] know headers, [`tar_parser`] finds members in a stream, [`sparse`] is the
//! block correspondence table as the archive holds it, [`manifest`] the head, [`allocation_csv`] the
//! allocation table, [`recovery`] the second copies, [`end_record`] what makes an archive complete,
//! [`layout`] names and order. [`source`] is what an archive is read from, [`crypt`] its encryption,
//! [`sign`] its signature, [`block_digests`] what later backups tell changes by, [`table`] the correspondence
//! table in memory, [`chain`] increments read as one disk.
//!
//! Encoders know every size before the first byte, for a tar header comes before its content; they hand out
//! bounded pieces. Parsers are pushed: they take the bytes that there are and ask for more.
//!
//! Imports: `virtfold_base`. An archive knows tables of bytes, not images and not media.

pub mod allocation_csv;
mod archive_end;
mod block;
pub mod block_digests;
mod bounded_vec;
pub mod chain;
pub mod crypt;
pub mod end_record;
pub mod index;
pub mod layout;
mod lines;
pub mod manifest;
pub mod pax;
pub mod reader;
pub mod recovery;
pub mod sign;
pub mod source;
pub mod sparse;
pub mod sparse_parser;
pub mod stream;
pub mod table;
pub mod tar;
pub mod tar_parser;
pub mod writer;

pub use archive_end::end_on_device;

// Whoever reads archives alone needs no other crate.
pub use virtfold_base::{error, units};

#[cfg(test)]
mod allocation_csv_tests;
#[cfg(test)]
mod layout_fixture;
#[cfg(test)]
mod layout_tests;
#[cfg(test)]
mod manifest_tests;
#[cfg(test)]
mod sparse_tests;
#[cfg(test)]
mod tar_parser_tests;
#[cfg(test)]
mod tar_tools_tests;
