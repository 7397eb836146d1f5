//! An append-only byte log that stays in memory while it is small and moves to an unlinked temporary file
//! when it is not: tables and digests of any disk cost bounded memory.
//!
//! The file has no name, so nothing of it outlives the process, whatever ends the process. It lies in
//! `$TMPDIR`, and where that is not set in `/var/tmp`: `/tmp` is memory on many hosts.
//!
//! Imports: `error`.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::safe_path::Directory;

/// How much a spool keeps in memory, bytes.
pub const MEMORY_LIMIT: usize = 4 << 20;

/// The log. Written by one owner, then read at any place by many.
#[derive(Debug, Default)]
pub struct SpillLog {
    /// Bytes not yet in the file; all of them while there is no file.
    tail: Vec<u8>,
    file: Option<File>,
    in_file: u64,
    /// Where the file lies, unless `$TMPDIR` says; without it in `/var/tmp`.
    near: Option<PathBuf>,
}

impl SpillLog {
    /// An empty log in memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty log in memory that moves to a file in `directory`, unless `$TMPDIR` names another.
    pub fn near(directory: PathBuf) -> Self {
        Self { near: Some(directory), ..Self::default() }
    }

    /// Where its file is, or would be.
    pub fn directory(&self) -> PathBuf {
        let set = std::env::var_os("TMPDIR").filter(|name| !name.is_empty()).map(PathBuf::from);
        set.or_else(|| self.near.clone()).unwrap_or_else(|| "/var/tmp".into())
    }

    /// Bytes in the log.
    pub fn len(&self) -> u64 {
        self.in_file + self.tail.len() as u64
    }

    /// Whether nothing was appended.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends all of `bytes`.
    ///
    /// # Errors
    /// When the temporary file can't be made or written.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.tail.extend_from_slice(bytes);
        if self.tail.len() > MEMORY_LIMIT { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> Result<()> {
        let directory = self.directory();
        let mut file = match self.file.take() {
            Some(file) => file,
            None => Directory::open(&directory)
                .and_then(|opened| tempfile::tempfile_in(opened.by_descriptor()))
                .at(|| format!("cannot make a temporary file in '{}'", directory.display()))?,
        };
        file.write_all(&self.tail)
            .at(|| format!("cannot write a temporary file in '{}'", directory.display()))?;
        self.in_file += self.tail.len() as u64;
        self.tail.clear();
        self.file = Some(file);
        Ok(())
    }

    /// Fills `buf` with the bytes at `offset`.
    ///
    /// # Errors
    /// When the range is not in the log (a defect of the caller) or the temporary file can't be read.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let beyond = || Error::new(ErrorKind::Internal, "a table was read past its end");
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.len()).ok_or_else(beyond)?;
        let from_file = end.min(self.in_file).saturating_sub(offset);
        let split = usize::try_from(from_file).map_err(|_| beyond())?;
        let (stored, fresh) = buf.split_at_mut(split);
        if let (Some(file), false) = (&self.file, stored.is_empty()) {
            file.read_exact_at(stored, offset).at(|| "cannot read back a temporary file".to_owned())?;
        }
        if !fresh.is_empty() {
            let start = usize::try_from(offset.saturating_sub(self.in_file)).map_err(|_| beyond())?;
            fresh.copy_from_slice(self.tail.get(start..start + fresh.len()).ok_or_else(beyond)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_across_the_spill() {
        let mut spool = SpillLog::new();
        let mut model = Vec::new();
        for i in 0..3_000_u32 {
            let piece = vec![u8::try_from(i % 251).unwrap(); 2_000 + i as usize % 777];
            spool.append(&piece).unwrap();
            model.extend_from_slice(&piece);
        }
        assert!(spool.file.is_some() && !spool.tail.is_empty());
        assert_eq!(spool.len(), model.len() as u64);
        let edge = usize::try_from(spool.in_file).unwrap();
        for (start, len) in [(0, 10), (edge - 5, 10), (edge, 7), (edge - 10, 10), (model.len() - 3, 3)] {
            let mut buf = vec![0; len];
            spool.read_at(start as u64, &mut buf).unwrap();
            assert_eq!(buf, model[start..start + len]);
        }
        assert!(spool.read_at(model.len() as u64 - 1, &mut [0; 2]).is_err());
        assert!(spool.read_at(u64::MAX, &mut [0; 2]).is_err());
    }
}
