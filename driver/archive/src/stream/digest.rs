//! The digest of one chunk, and the list of all of them.
//!
//! Imports: `error`, `spill_log`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::spill_log::SpillLog;

/// Bytes of a digest.
const LEN: u64 = 32;
/// Bytes in a block of [`Digests::blocks`]: a whole number of digests.
const BLOCK: u64 = 64 << 10;

/// A BLAKE3 digest of 32 bytes; shown, parsed and serialised as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The digest that these bytes are.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes of the digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        blake3::Hash::from_hex(text).map(|hash| Self(*hash.as_bytes())).map_err(|source| {
            Error::new(ErrorKind::Damaged, "a digest is not 64 hexadecimal digits").with_source(source)
        })
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// The digests of a stream's chunks, in order; kept in a [`SpillLog`], so that their number does not matter.
#[derive(Debug, Default)]
pub struct Digests {
    spool: SpillLog,
}

impl Digests {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Digests in the list.
    pub fn len(&self) -> u64 {
        self.spool.len() / LEN
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.spool.is_empty()
    }

    /// Appends a digest.
    ///
    /// # Errors
    /// When the spool can't spill to its temporary file.
    pub fn push(&mut self, digest: Digest) -> Result<()> {
        self.spool.append(&digest.0)
    }

    /// Digest number `index`, from 0.
    ///
    /// # Errors
    /// When there is none (a defect of the caller) or the spool can't be read back.
    pub fn get(&self, index: u64) -> Result<Digest> {
        let beyond = || Error::new(ErrorKind::Internal, "a digest was asked for that is not in the list");
        let mut bytes = [0; 32];
        self.spool.read_at(index.checked_mul(LEN).ok_or_else(beyond)?, &mut bytes)?;
        Ok(Digest(bytes))
    }

    /// All digests in order, raw, 32 bytes each, in blocks of at most 64 KiB; each block is a whole number of
    /// digests and may fail to be read back.
    pub fn blocks(&self) -> impl Iterator<Item = Result<Vec<u8>>> + '_ {
        let total = self.spool.len();
        let mut at = 0;
        std::iter::from_fn(move || {
            let len = total.saturating_sub(at).min(BLOCK);
            let mut block = vec![0; usize::try_from(len).ok().filter(|len| *len > 0)?];
            let read = self.spool.read_at(at, &mut block);
            at += len;
            Some(read.map(|()| block))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_shown_and_parsed_as_hex() {
        let digest = Digest::of(b"fold");
        let shown = digest.to_string();
        assert_eq!(shown.len(), 64);
        assert_eq!(shown, blake3::hash(b"fold").to_hex().as_str());
        assert_eq!(shown.parse::<Digest>().unwrap(), digest);
        assert!(shown[1..].parse::<Digest>().is_err());
        assert!("z".repeat(64).parse::<Digest>().is_err());
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
    }

    #[test]
    fn a_list_gives_back_what_was_pushed_one_by_one_and_in_blocks() {
        let mut list = Digests::new();
        let mut model = Vec::new();
        for i in 0..5_000_u32 {
            let digest = Digest::of(&i.to_le_bytes());
            list.push(digest).unwrap();
            model.extend_from_slice(digest.as_bytes());
        }
        assert_eq!(list.len(), 5_000);
        assert_eq!(list.get(4_999).unwrap(), Digest::of(&4_999_u32.to_le_bytes()));
        assert!(list.get(5_000).is_err());
        assert!(list.get(u64::MAX).is_err());
        let blocks: Vec<Vec<u8>> = list.blocks().collect::<Result<_>>().unwrap();
        assert!(blocks.iter().all(|block| block.len().is_multiple_of(32)));
        assert_eq!(blocks.concat(), model);
    }
}
