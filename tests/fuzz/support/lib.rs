//! What the fuzz targets share: files in memory, archives made of mutated bodies, and the repair of check
//! sums.
//!
//! Almost everything in an archive is guarded by a check sum, and a mutation that is found by one has tested
//! the check sum and nothing else. So the first byte of an input says which guards are put right before the
//! parser sees the rest: a mutated tar header gets its sum, a mutated frame its CRC and digest, a mutated
//! body a tail that fits it. The encodings here are written from FORMAT.md, not shared with the product.

mod archive;
mod repair;
pub mod seeds;
pub mod targets;

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use virtfold::archive::stream::{ReadAt, ReadOptions};
use virtfold::error::{Error, ErrorKind, Result};

pub use archive::{DiskBytes, Survey, frame, seal, survey_pass};
pub use repair::{frames, tar_sums};

/// The first byte, which says what to repair, and the rest.
pub fn flags(data: &[u8]) -> Option<(u8, &[u8])> {
    data.split_first().map(|(flags, rest)| (*flags, rest))
}

/// A file in memory with these bytes.
pub fn memory_file(bytes: &[u8]) -> File {
    let file = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("a file in memory");
    let mut file = File::from(file);
    file.write_all(bytes).expect("a file in memory takes its bytes");
    file
}

/// Bytes as a file that can be read at any place.
pub struct Memory<'a>(pub &'a [u8]);

impl ReadAt for Memory<'_> {
    fn read_exact_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let start = usize::try_from(at).ok();
        let range = start.and_then(|start| self.0.get(start..start.checked_add(buf.len())?));
        let range = range.ok_or_else(|| Error::new(ErrorKind::Io, "a read behind the end"))?;
        buf.copy_from_slice(range);
        Ok(())
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn name(&self) -> &str {
        "fuzz"
    }
}

/// One worker, nothing known beforehand.
pub fn options() -> ReadOptions {
    ReadOptions { workers: 1, cancel: Arc::new(AtomicBool::new(false)), carrier: None, archive_id: None }
}

/// Fails on errors that no input may bring about: they mean a defect, not a bad input.
#[track_caller]
pub fn no_defect<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            assert_ne!(error.kind(), ErrorKind::Internal, "{error:?}");
            assert!(!error.to_string().is_empty());
            None
        }
    }
}
