//! What an encrypted archive begins with, and its key: by both, the same bytes can be made a second time.
//!
//! The header, with the file key for each recipient, is the `age` crate's; a recipient that wraps nothing and
//! looks on learns the file key from it. The payload's key is derived from that as the specification has it
//! ("Payload": HKDF-SHA-256 over the file key, with the nonce behind the header as salt).
//!
//! Invariant: one envelope is for one archive. Encrypting other bytes with it would give away both.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use age::Encryptor;
use age::secrecy::{ExposeSecret, ExposeSecretMut, SecretBox};
use age_core::format::{FileKey, Stanza};
use age_core::primitives::hkdf;

use super::Recipients;
use super::open_envelope::MAX_HEADER;
use virtfold_base::error::{Error, ErrorKind, Result};

/// Bytes of a payload's key.
pub(super) const KEY: usize = 32;
/// Bytes of the nonce between the header and the payload.
pub(super) const NONCE: usize = 16;
/// Bytes of the digest of what is kept.
const DIGEST: usize = blake3::OUT_LEN;
/// What the payload's key is derived for.
const PAYLOAD: &[u8] = b"payload";
/// What an envelope that is kept begins with.
const MAGIC: &[u8; 16] = b"virtfold key 1\n\0";

/// The beginning of an encrypted archive, nonce included, and the key of its payload. The key is wiped from
/// memory, and `Debug` does not print it.
#[derive(Clone)]
pub struct Envelope {
    head: Arc<[u8]>,
    key: Arc<SecretBox<[u8; KEY]>>,
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Envelope({} bytes)", self.head.len())
    }
}

impl Envelope {
    /// A new one, with a key that nothing else was encrypted with.
    ///
    /// # Errors
    /// Internal only.
    pub fn new(recipients: &Recipients) -> Result<Self> {
        let cannot = || Error::new(ErrorKind::Internal, "the archive can't be encrypted");
        let witness = FileKeyRecipient::default();
        let all = recipients.iter().chain([&witness as &dyn age::Recipient]);
        let encryptor = Encryptor::with_recipients(all).map_err(|e| cannot().with_source(e))?;
        let mut head = Vec::new();
        encryptor.wrap_output(&mut head).map_err(|e| cannot().with_source(e))?;
        let seen = witness.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (file_key, nonce) = seen.zip(head.last_chunk::<NONCE>()).ok_or_else(cannot)?;
        let key = Arc::new(payload_key(&file_key, nonce));
        Ok(Self { head: head.into(), key })
    }

    /// The bytes before the payload.
    pub fn head(&self) -> &Arc<[u8]> {
        &self.head
    }

    /// The payload's key.
    pub(super) fn key(&self) -> &[u8; KEY] {
        self.key.expose_secret()
    }

    /// What [`Envelope::parse`] reads: a mark, the key, the head, and the digest of all that: by a part of a
    /// head an archive would be made that nobody could open.
    pub fn encode(&self) -> SecretBox<Vec<u8>> {
        // All at once: a vector that grew would leave copies behind.
        let mut bytes = Vec::with_capacity(MAGIC.len() + KEY + self.head.len() + DIGEST);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(self.key());
        bytes.extend_from_slice(&self.head);
        bytes.extend_from_slice(blake3::hash(&bytes).as_bytes());
        SecretBox::new(Box::new(bytes))
    }

    /// The longest [`Envelope::encode`], bytes.
    pub const MAX_LEN: usize = MAGIC.len() + KEY + MAX_HEADER + NONCE + DIGEST;

    /// Reads an envelope that was kept; `None` where it is none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (bytes, digest) = bytes.split_last_chunk::<DIGEST>()?;
        if blake3::hash(bytes) != *digest {
            return None;
        }
        let (key, head) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<KEY>()?;
        let is_head = head.len() > NONCE && head.len() <= MAX_HEADER + NONCE;
        is_head.then(|| Self { head: head.into(), key: Arc::new(boxed(key)) })
    }
}

/// The key of the payload behind a header with this file key and nonce.
pub(super) fn payload_key(file_key: &FileKey, nonce: &[u8; NONCE]) -> SecretBox<[u8; KEY]> {
    boxed(&hkdf(nonce, PAYLOAD, file_key.expose_secret()))
}

/// A second one of a file key.
pub(super) fn copy_of(file_key: &FileKey) -> FileKey {
    FileKey::init_with_mut(|key| key.copy_from_slice(file_key.expose_secret()))
}

/// A key in memory that is wiped.
fn boxed(key: &[u8; KEY]) -> SecretBox<[u8; KEY]> {
    let mut out = SecretBox::new(Box::new([0; KEY]));
    out.expose_secret_mut().copy_from_slice(key);
    out
}

/// A recipient that gets no stanza, and keeps the file key.
#[derive(Default)]
struct FileKeyRecipient(Mutex<Option<FileKey>>);

impl age::Recipient for FileKeyRecipient {
    fn wrap_file_key(
        &self,
        file_key: &FileKey,
    ) -> std::result::Result<(Vec<Stanza>, HashSet<String>), age::EncryptError> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(copy_of(file_key));
        Ok(Default::default())
    }
}
