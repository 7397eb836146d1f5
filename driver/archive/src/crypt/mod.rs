//! Encryption: an archive as a standard age v1 file (<https://age-encryption.org/v1>), between the archive
//! and the medium.
//!
//! Writing ([`PieceCipher`], by `virtfold_medium::EncryptingMedium`): a medium that encrypts what it is given
//! to the [`Recipients`], all of them X25519 public keys, and hands it on. The host that writes holds no key
//! that could read. Reading: [`ArchiveFile`] is an archive in a file, encrypted or not, to be read at any
//! place; [`DecryptingReader`] one that comes front to back. Both see by the first bytes whether it is
//! encrypted, and open it with the [`Identities`].
//!
//! age's payload is a row of pieces of 64 KiB, each with an authenticator over its bytes, its number and
//! whether it is the last. So no byte is given out that was not written in that place of that archive; and a
//! file's length is proven by its last piece, before anything else of it is believed. What age can't prove is
//! who wrote: a recipient's key is public.
//!
//! Secrets: identities are read from files that nobody but their owner can read, and are printed nowhere: not
//! in messages, not by `Debug`. The `age` crate wipes its keys from memory.
//!
//! What knows bytes of the format is the `age` crate's, but for the writing of pieces: an archive that is
//! gone on with begins with any of them (`writer`), with its key out of memory (`kept`). Beside that: the
//! bound on the header, the pool of readers that makes a reader of one place one of many, and the words for
//! what goes wrong.
//!
//! Imports: `error`, and of this crate the traits `Sink` and `ReadAt`.

mod decrypting_reader;
mod envelope;
mod file;
mod identities;
mod open_envelope;
mod payload;
mod pieces;
mod reader_pool;
mod recipients;

pub use self::decrypting_reader::DecryptingReader;
pub use self::envelope::Envelope;
pub use self::file::ArchiveFile;
pub use self::identities::Identities;
pub use self::pieces::{PieceCipher, Place};
pub use self::recipients::Recipients;
pub use age::secrecy::ExposeSecret;

/// What an encrypted archive's name ends in.
pub const EXTENSION: &str = "age";

/// Plain bytes in each piece but the last, which may be shorter.
const PIECE: u64 = 64 << 10;
/// What an authenticator adds to a piece.
const TAG: u64 = 16;

/// Whether an archive of this name says that it is encrypted.
pub fn is_encrypted_name(name: &str) -> bool {
    name.strip_suffix(EXTENSION).is_some_and(|rest| rest.ends_with('.'))
}
