//! A source without what lies behind its archive.
//!
//! Imports: `error`; `archive` (the trait `ReadAt`).

use std::fs::File;
use std::sync::Arc;

use super::Source;
use crate::archive::stream::ReadAt;
use crate::error::{Error, ErrorKind, Result};

/// The first bytes of a source.
#[derive(Debug)]
pub struct Trimmed {
    source: Arc<dyn Source>,
    len: u64,
}

impl Trimmed {
    /// The first `len` bytes of `source`, which has no fewer.
    pub fn new(source: Arc<dyn Source>, len: u64) -> Self {
        Self { len: len.min(source.len()), source }
    }
}

impl Source for Trimmed {
    fn file(&self) -> Option<&File> {
        self.source.file()
    }
}

impl ReadAt for Trimmed {
    fn read_exact_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        if at.saturating_add(buf.len() as u64) > self.len {
            return Err(Error::new(ErrorKind::Incomplete, format!("'{}' ends before that", self.name())));
        }
        self.source.read_exact_at(at, buf)
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn name(&self) -> &str {
        self.source.name()
    }
}
