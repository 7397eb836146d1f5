//! qcow2, versions 2 and 3, for reading: header, tables, compressed clusters, bitmaps.
//!
//! The facts are those of QEMU's docs/interop/qcow2; where that leaves something open (what a reader takes,
//! what it refuses) QEMU's own reader decides, because the guest saw its disk through it.
//!
//! Imports: `error`, `units`, and of the image room `file`, `source`, `allocation_table`.

pub(super) mod bitmaps;
pub(super) mod compressed;
mod entry;
mod extensions;
mod header;
mod header_error;
pub(super) mod l2;
pub(super) mod refcounts;

pub(super) use header::{EncryptionMethod, Header, parse};

use super::file::{FileIndex, HostFile};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::HostOffset;

/// One qcow2 image of a chain, its header checked.
#[derive(Debug)]
pub(super) struct Qcow2 {
    pub(super) header: Header,
    /// The image file: tables, and data unless it is external.
    pub(super) file: FileIndex,
    /// Where the guest's bytes are.
    pub(super) data: FileIndex,
}

impl Qcow2 {
    /// Whether the guest's bytes are in a file of their own.
    pub(super) fn has_external_data(&self) -> bool {
        self.header.external_data
    }
}

/// Reads and checks the header of `file`. Never reads more than one cluster of 2 MiB at most.
pub(super) fn read_header(file: &HostFile) -> Result<Header> {
    let mut start = vec![0; usize::try_from(file.len.min(header::FIXED)).unwrap_or(0)];
    file.read(HostOffset::ZERO, &mut start)?;
    let named = |what: header_error::HeaderError| what.into_error(&file.name().to_string());
    let cluster_size = header::cluster_size(&start).map_err(named)?;
    let mut first = vec![0; usize::try_from(file.len.min(cluster_size)).unwrap_or(0)];
    file.read(HostOffset::ZERO, &mut first)?;
    parse(&first, file.len).map_err(named)
}

/// A contradiction in the tables of an image.
pub(super) fn damaged(file: &HostFile, what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::BadImage, format!("'{}' is damaged: {what}", file.name()))
        .with_hint("'qemu-img check' tells how much of it is; restore it from an older backup")
}
