//! Keys of hosts: OpenSSH's, Ed25519.

use std::fmt;

use serde::{Deserialize, Serialize};
use ssh_key::private::Ed25519Keypair;
use ssh_key::public::{Ed25519PublicKey, KeyData};
use ssh_key::{HashAlg, LineEnding, PrivateKey, SshSig};

use super::{NAMESPACE, check_host};
use virtfold_base::error::{Error, ErrorKind, Result};

/// A host's public key. As text it is what a line of an OpenSSH file has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(Ed25519PublicKey);

impl TryFrom<String> for PublicKey {
    type Error = &'static str;

    fn try_from(text: String) -> std::result::Result<Self, Self::Error> {
        let key = ssh_key::PublicKey::from_openssh(&text).map_err(|_| "it is not a public key")?;
        Self::of(key.key_data()).ok_or("it is not an Ed25519 key")
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        // Encoding 32 bytes can't fail; a text that is no key would be refused by who reads it.
        key.to_openssh().unwrap_or_default()
    }
}

impl PublicKey {
    /// That of a signature or a line; `None` where it is of another kind.
    pub(super) fn of(data: &KeyData) -> Option<Self> {
        data.ed25519().copied().map(Self)
    }

    /// What `ssh-keygen -l` shows of it: `SHA256:...`.
    pub fn fingerprint(&self) -> String {
        self.data().fingerprint(HashAlg::Sha256).to_string()
    }

    /// As a line of an OpenSSH file has it: `ssh-ed25519 AAAA...`.
    ///
    /// # Errors
    /// Internal: it can't be encoded.
    pub fn to_openssh(&self) -> Result<String> {
        ssh_key::PublicKey::from(self.data())
            .to_openssh()
            .map_err(|e| internal("a public key cannot be encoded", e))
    }

    fn data(&self) -> KeyData {
        KeyData::Ed25519(self.0)
    }
}

/// A host's secret key, with the name that it signs by. Printed by nothing.
#[derive(Clone)]
pub struct SigningKey {
    key: PrivateKey,
    public: PublicKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({} {})", self.host(), self.public.fingerprint())
    }
}

impl SigningKey {
    /// A new key of the host called `host`.
    ///
    /// # Errors
    /// Usage: the name is none.
    pub fn new(host: &str) -> Result<Self> {
        check_host(host)?;
        let pair = Ed25519Keypair::random(&mut ssh_key::rand_core::OsRng);
        let public = PublicKey(pair.public);
        let key = PrivateKey::new(pair.into(), host).map_err(|e| internal("a key cannot be made", e))?;
        Ok(Self { key, public })
    }

    /// The key in a file as `ssh-keygen` and [`SigningKey::to_openssh`] write it; its comment is the host's
    /// name.
    ///
    /// # Errors
    /// Usage, of another kind, with a passphrase, or with a comment that is no host's name. What stands in
    /// the file is in no message.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let bad = |what: &str| Error::new(ErrorKind::Usage, format!("the signing key {what}"));
        let key = PrivateKey::from_openssh(text)
            .map_err(|e| bad("is not an OpenSSH private key").with_source(e))?;
        if key.is_encrypted() {
            return Err(bad("is encrypted with a passphrase").with_hint("backups run unattended: use none"));
        }
        let public = PublicKey::of(key.public_key().key_data());
        let public = public.ok_or_else(|| bad("is not an Ed25519 key"))?;
        check_host(key.comment())?;
        Ok(Self { key, public })
    }

    /// The key as a file has it.
    ///
    /// # Errors
    /// Internal: it can't be encoded.
    pub fn to_openssh(&self) -> Result<impl AsRef<str>> {
        struct Wiped<T>(T);
        impl<T: std::ops::Deref<Target = String>> AsRef<str> for Wiped<T> {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        self.key.to_openssh(LineEnding::LF).map(Wiped).map_err(|e| internal("a key cannot be encoded", e))
    }

    /// The name that it signs by.
    pub fn host(&self) -> &str {
        self.key.comment()
    }

    /// What others know it by.
    pub fn public(&self) -> PublicKey {
        self.public.clone()
    }

    /// The signature of a record.
    ///
    /// # Errors
    /// Internal: it can't be made.
    pub fn sign(&self, record: &[u8]) -> Result<Vec<u8>> {
        self.sign_as(NAMESPACE, HashAlg::Sha512, record)
    }

    pub(super) fn sign_as(&self, namespace: &str, hash: HashAlg, record: &[u8]) -> Result<Vec<u8>> {
        let signature = SshSig::sign(&self.key, namespace, hash, record)
            .and_then(|signature| signature.to_pem(LineEnding::LF))
            .map_err(|e| internal("the archive cannot be signed", e))?;
        Ok(signature.into_bytes())
    }
}

fn internal(what: &str, source: ssh_key::Error) -> Error {
    Error::new(ErrorKind::Internal, what).with_source(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_goes_into_a_file_and_comes_back() {
        let key = SigningKey::new("web-1.example").unwrap();
        let text = key.to_openssh().unwrap();
        let again = SigningKey::parse(text.as_ref().as_bytes()).unwrap();
        assert_eq!((again.host(), again.public()), ("web-1.example", key.public()));
        assert_eq!(again.sign(b"x").unwrap(), key.sign(b"x").unwrap());
        assert!(!format!("{again:?}").contains("PRIVATE"));
    }

    #[test]
    fn what_is_no_key_is_refused_without_a_word_of_it() {
        for bad in
            ["", "secret", "-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n-----END OPENSSH PRIVATE KEY-----\n"]
        {
            let error = SigningKey::parse(bad.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        for host in ["", "a b", "a,b", "*", "a\"", "ü", &"x".repeat(256)] {
            assert_eq!(SigningKey::new(host).unwrap_err().kind(), ErrorKind::Usage, "{host}");
        }
    }
}
