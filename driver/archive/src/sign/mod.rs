//! Signatures: who made an archive, and which one it comes behind (FORMAT.md, "Signed archives").
//!
//! A host signs with its [`SigningKey`], an OpenSSH key (Ed25519). What it signs is the end record, whose
//! root stands for every byte of the archive and which has a [`ChainLink`]. The signature is one of OpenSSH's
//! (SSHSIG), so that `ssh-keygen -Y verify` checks it; it names its key, so [`check`] tells without any list
//! whether it is sound. Whose key that is [`AllowedSigners`] says, and nothing else.
//!
//! Invariants: given key and record a signature has one spelling (Ed25519 is deterministic, the armor is
//! compared); a secret key is printed by nothing, `Debug` neither; a list of signers with a line that cannot
//! be honoured to the letter is refused as a whole.
//!
//! What knows bytes of keys and signatures is the crate `ssh-key`.
//!
//! Imports: `error`.

mod allowed_signers;
mod chain;
mod key;
mod key_file;

pub use self::allowed_signers::{AllowedSigners, OPTIONS};
pub use self::chain::{ChainLink, PreviousArchive, check_host};
pub use self::key::{PublicKey, SigningKey};
pub use self::key_file::public_path;

use serde::{Deserialize, Serialize};
use ssh_key::{HashAlg, SshSig};

/// What a key of a host signs for: the namespace of SSHSIG.
pub const NAMESPACE: &str = "virtfold-archive";
/// Bytes of a signature, armor and all.
pub const SIGNATURE_LEN: u64 = 310;

/// What is wrong with an archive that has a signature, or says so, and not both.
pub(crate) const MISSING: &str = "its end record and its signature do not belong together";

/// What an archive is signed with.
#[derive(Clone, Copy, Debug)]
pub struct Seal<'a> {
    /// The host's key.
    pub key: &'a SigningKey,
    /// Which archive of its subject it is.
    pub chain: &'a ChainLink,
}

/// A sound signature: what its archive says of itself, and the key that says so. Whose key that is nobody has
/// said yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveSignature {
    /// Which archive of its subject it is, by the host's own word.
    #[serde(flatten)]
    pub chain: ChainLink,
    /// The key.
    pub key: PublicKey,
}

/// The key that has made `signature`, of exactly these bytes of a record.
///
/// # Errors
/// What is wrong with it: it is spelt in another way, or it is not its key's signature of the record.
pub fn check(signature: &[u8], record: &[u8]) -> std::result::Result<PublicKey, &'static str> {
    const NONE: &str = "is none that OpenSSH would have made";
    if signature.len() as u64 != SIGNATURE_LEN {
        return Err("has not the length of one");
    }
    let parsed = SshSig::from_pem(signature).map_err(|_| NONE)?;
    if parsed.namespace() != NAMESPACE || parsed.hash_alg() != HashAlg::Sha512 {
        return Err("is not one of an archive");
    }
    let spelt = parsed.to_pem(ssh_key::LineEnding::LF).map_err(|_| NONE)?;
    if spelt.as_bytes() != signature {
        return Err("is not spelt as OpenSSH spells it");
    }
    let key = PublicKey::of(parsed.public_key()).ok_or("is not of an Ed25519 key")?;
    ssh_key::PublicKey::from(parsed.public_key().clone())
        .verify(NAMESPACE, record, &parsed)
        .map_err(|_| "is not that of its end record")?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_has_one_spelling_and_a_fixed_length() {
        let key = SigningKey::new("web.example").unwrap();
        let signature = key.sign(b"record\n").unwrap();
        assert_eq!(signature.len() as u64, SIGNATURE_LEN);
        assert_eq!(key.sign(b"record\n").unwrap(), signature);
        assert_eq!(check(&signature, b"record\n").unwrap(), key.public());
        assert!(check(&signature, b"record").is_err());
        let text = std::str::from_utf8(&signature).unwrap();
        for other in [text.replace('\n', "\r\n"), text.trim_end().to_owned(), format!("{text}\n")] {
            assert!(check(other.as_bytes(), b"record\n").is_err(), "{other}");
        }
    }

    #[test]
    fn every_flipped_byte_of_a_signature_is_found() {
        let signature = SigningKey::new("web").unwrap().sign(b"record\n").unwrap();
        for at in 0..signature.len() {
            for flip in [1, 2, 4, 32, 128] {
                let mut bad = signature.clone();
                bad[at] ^= flip;
                assert!(check(&bad, b"record\n").is_err(), "byte {at} with {flip}");
            }
        }
    }

    #[test]
    fn a_signature_for_another_purpose_is_none() {
        let key = SigningKey::new("web").unwrap();
        for (namespace, hash) in [("file", HashAlg::Sha512), (NAMESPACE, HashAlg::Sha256)] {
            let other = key.sign_as(namespace, hash, b"record\n").unwrap();
            assert!(check(&other, b"record\n").is_err(), "{namespace}");
        }
    }
}
