//! An archive that can be read at any place, encrypted or not.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

use super::Identities;
use super::decrypting_reader::DecryptingReader;
use super::open_envelope::{FileKind, PROBE, kind_of};
use super::payload::Payload;
use super::reader_pool::{FileCursor, ReaderPool};
use crate::end_on_device;
use crate::source::{Prefix, Source};
use crate::stream::{ReadAt, end_before_zeros, end_of_content, tell_zeros};
use virtfold_base::error::{Error, IoContext, Result};

/// An archive that can be read at any place, opened. What it gives out is the archive itself, whether it is
/// encrypted or not.
pub struct ArchiveFile {
    file: Arc<dyn Source>,
    /// Where it is encrypted.
    pool: Option<ReaderPool>,
    identities: Identities,
}

impl ArchiveFile {
    /// The archive in `source`, with `identities` where it is encrypted.
    ///
    /// # Errors
    /// As [`ArchiveFile::salvage`]; Incomplete, where it is encrypted and its end does not prove to be the
    /// end.
    pub fn open(source: Arc<dyn Source>, identities: &Identities) -> Result<Self> {
        let this = Self::salvage(source, identities)?;
        this.proven()?;
        Ok(this)
    }

    /// As [`ArchiveFile::open`], and also where its end is not proven: then it gives out the pieces before
    /// that, each of which is what was written there. Whoever calls this asks [`ArchiveFile::proven`], too.
    ///
    /// # Errors
    /// [`ErrorKind::Locked`](virtfold_base::error::ErrorKind::Locked), where it is encrypted and no identity
    /// opens it; Damaged, Incomplete or Unsupported, where the beginning of the age file is.
    pub fn salvage(file: Arc<dyn Source>, identities: &Identities) -> Result<Self> {
        let mut first = Vec::with_capacity(PROBE);
        let probe = FileCursor::new(&file).take(PROBE as u64).read_to_end(&mut first);
        probe.at(|| format!("cannot read '{}'", file.name()))?;
        let (file, pool) = match kind_of(&first, file.name())? {
            FileKind::Plain => (bare(file)?, None),
            FileKind::Encrypted => encrypted(file, identities)?,
        };
        Ok(Self { file, pool, identities: identities.clone() })
    }

    /// Whether the end is proven to be the end; of an archive that is not encrypted its own tail tells that.
    ///
    /// # Errors
    /// Incomplete, where it is not.
    pub fn proven(&self) -> Result<()> {
        match self.pool.as_ref().and_then(ReaderPool::end) {
            Some(end) => Err(Error::new(end.kind(), end.to_string())),
            None => Ok(()),
        }
    }

    /// Whether it is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.pool.is_some()
    }

    /// The file, where the archive's bytes lie in it as they are.
    pub fn shareable(&self) -> Option<&File> {
        if self.pool.is_some() { None } else { self.file.file() }
    }

    /// The file that it lies in, encrypted or not, where it is one of this host.
    pub fn file(&self) -> Option<&File> {
        self.file.file()
    }

    /// Bytes on the medium, encrypted where it is.
    pub fn stored(&self) -> u64 {
        self.file.len()
    }

    /// The archive from its beginning to its end; see [`DecryptingReader`] for its errors.
    ///
    /// # Errors
    /// As [`ArchiveFile::salvage`].
    pub fn front_to_back(&self) -> Result<impl Read + Send + use<>> {
        DecryptingReader::open(FileCursor::new(&self.file), self.file.name(), &self.identities)
    }
}

/// An archive that is not encrypted, without what is behind it.
fn bare(file: Arc<dyn Source>) -> Result<Arc<dyn Source>> {
    // First from the front: behind the archive a device may have terabytes of zeros, which need not be read.
    if is_device(file.as_ref())?
        && let Some(end) = end_on_device(file.as_ref())
    {
        return Ok(cut_from_device(file, end));
    }
    Ok(match end_before_zeros(file.as_ref()) {
        Some(end) => trimmed(file, end),
        None => file,
    })
}

/// An encrypted archive without what is behind it.
fn encrypted(
    file: Arc<dyn Source>,
    identities: &Identities,
) -> Result<(Arc<dyn Source>, Option<ReaderPool>)> {
    let pool = ReaderPool::open(Arc::clone(&file), identities)?;
    if pool.end().is_some()
        && is_device(file.as_ref())?
        && let Some(end) = Payload::end_in(&file, identities)?
    {
        let file = cut_from_device(file, end);
        let pool = ReaderPool::open(Arc::clone(&file), identities)?;
        return Ok((file, Some(pool)));
    }
    unpadded(file, pool, identities)
}

/// Whether it is a block device: that is larger than what was written to it, and has behind it what was there
/// before.
fn is_device(file: &dyn Source) -> Result<bool> {
    let Some(opened) = file.file() else { return Ok(false) };
    let found = opened.metadata().at(|| format!("cannot examine '{}'", file.name()))?;
    Ok(found.file_type().is_block_device())
}

fn cut_from_device(file: Arc<dyn Source>, end: u64) -> Arc<dyn Source> {
    let behind = file.len().saturating_sub(end);
    if behind == 0 {
        return file;
    }
    tracing::warn!(
        "'{}' has {behind} bytes behind the archive's end; they are not part of it and are ignored",
        file.name()
    );
    Arc::new(Prefix::new(file, end))
}

/// Zeros that may be an authenticator's own.
const MOST_ZEROS: usize = 16;

/// An encrypted archive without the zeros behind it: where its end is not proven, it may be that they hide
/// it. The last piece's authenticator may end with some.
fn unpadded(
    file: Arc<dyn Source>,
    pool: ReaderPool,
    identities: &Identities,
) -> Result<(Arc<dyn Source>, Option<ReaderPool>)> {
    let content = if pool.end().is_some() { end_of_content(file.as_ref()) } else { None };
    let Some(content) = content else { return Ok((file, Some(pool))) };
    for end in (content..file.len()).take(MOST_ZEROS + 1) {
        let cut: Arc<dyn Source> = Arc::new(Prefix::new(Arc::clone(&file), end));
        let Ok(shorter) = ReaderPool::open(cut, identities) else { break };
        if shorter.end().is_none() {
            return Ok((trimmed(file, end), Some(shorter)));
        }
    }
    Ok((file, Some(pool)))
}

fn trimmed(file: Arc<dyn Source>, end: u64) -> Arc<dyn Source> {
    tell_zeros(file.name(), file.len().saturating_sub(end));
    Arc::new(Prefix::new(file, end))
}

impl ReadAt for ArchiveFile {
    fn read_exact_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        match &self.pool {
            Some(pool) => pool.read_exact_at(at, buf),
            None => self.file.read_exact_at(at, buf),
        }
    }

    fn len(&self) -> u64 {
        self.pool.as_ref().map_or(self.file.len(), ReaderPool::len)
    }

    fn name(&self) -> &str {
        self.file.name()
    }
}
