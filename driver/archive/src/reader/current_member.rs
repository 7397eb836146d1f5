//! What the pass over an archive is in the middle of.

use std::sync::Arc;

use crate::allocation_csv::CsvParser;
use crate::end_record::{DigestsParser, RootHasher};
use crate::recovery::RecoveryParser;
use crate::sparse_parser::MapParser;
use crate::table::{Builder, CorrespondenceTable};
use virtfold_base::units::{DenseOffset, StreamOffset};

/// A disk whose map has been read.
#[derive(Debug)]
pub(super) struct KnownDisk {
    pub(super) table: Arc<CorrespondenceTable>,
    pub(super) dense_at: StreamOffset,
}

/// The member at hand.
pub(super) enum CurrentMember {
    Head(Vec<u8>),
    /// With the digest of what came of it, for its second copy.
    Allocation(usize, CsvParser, Box<blake3::Hasher>),
    Map {
        index: usize,
        parser: MapParser,
        builder: Builder,
    },
    Dense {
        index: usize,
        table: Arc<CorrespondenceTable>,
        at: DenseOffset,
    },
    /// A second copy of known bytes: how far it was compared.
    RecoveryHead(usize),
    RecoveryMap {
        index: usize,
        parser: RecoveryParser,
        at: DenseOffset,
    },
    RecoveryAllocation(usize, Box<blake3::Hasher>),
    Digests {
        parser: DigestsParser,
        hasher: RootHasher,
        index: u64,
    },
    End {
        bytes: Vec<u8>,
        hasher: RootHasher,
    },
    Signature(Vec<u8>),
    /// A member that is the visitor's.
    Attachment,
    /// One whose content nobody here needs.
    Skipped,
    None,
}
