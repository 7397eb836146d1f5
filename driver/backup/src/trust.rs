//! Whose archives are taken: what a signature is worth to who reads it.
//!
//! A signature that is sound says which key has made it; whose key that is the [`TrustPolicy`] knows from
//! public keys alone. Where it requires signatures, an archive that is unsigned, or signed with a key that is
//! not known for the host that it names, is refused: by a restore before anything is made, where the archive
//! can be read at any place, and from a pipe before anything has its name.
//!
//! Imports: `error`, `archive`.

use std::fmt;

use serde::{Deserialize, Serialize};
use virtfold_archive::index::ArchiveTail;
use virtfold_archive::sign::{AllowedSigners, ArchiveSignature, PublicKey};
use virtfold_base::error::{Error, ErrorKind, Result};

/// Whose archives are taken.
#[derive(Clone, Debug, Default)]
pub struct TrustPolicy {
    /// Hosts and their keys.
    pub signers: AllowedSigners,
    /// The key of this host, where it has one.
    pub own: Option<PublicKey>,
    /// What is done with archives of others.
    pub requirement: SignatureRequirement,
}

/// Whether an archive must be signed by a host that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SignatureRequirement {
    /// What it is, is said.
    #[default]
    Optional,
    /// Every other one is refused.
    Required,
}

/// Who made an archive, as far as that is proven. Nothing of an archive that was only looked at proves more
/// than that its end is authentic: `verify` checks the rest against it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Authenticity {
    /// A host that is known.
    Signed {
        /// The host.
        host: String,
        /// The archive's number among those of its subject.
        sequence: u64,
        /// Whether that is this host: names can be the same, keys can't.
        #[serde(default)]
        by_this_host: bool,
    },
    /// Whoever has a key that is not known for that host.
    UnknownKey {
        /// The host that the archive names.
        host: String,
        /// The key.
        fingerprint: String,
    },
    /// Nobody says so.
    Unsigned,
    /// Its end is damaged or lost, and with it what would say so.
    Unreadable,
}

impl fmt::Display for Authenticity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signed { host, .. } => write!(f, "signed by {host}"),
            Self::UnknownKey { host, fingerprint } => {
                write!(f, "unknown key {fingerprint}, which says that it is {host}'s")
            }
            Self::Unsigned => f.write_str("unsigned"),
            Self::Unreadable => f.write_str("whose it is can't be told: its end is damaged or lost"),
        }
    }
}

impl Authenticity {
    /// Whether a host that is known has made it.
    pub fn is_authentic(&self) -> bool {
        matches!(self, Self::Signed { .. })
    }
}

impl TrustPolicy {
    /// What a signature is worth; `None` is an archive without.
    pub fn judge(&self, signature: Option<&ArchiveSignature>) -> Authenticity {
        let Some(ArchiveSignature { chain, key }) = signature else { return Authenticity::Unsigned };
        let (host, sequence) = (chain.host.clone(), chain.sequence);
        match self.signers.knows(&host, key) {
            true => Authenticity::Signed { host, sequence, by_this_host: self.own.as_ref() == Some(key) },
            false => Authenticity::UnknownKey { host, fingerprint: key.fingerprint() },
        }
    }

    /// What an archive is worth by its end, as far as that can be read.
    pub fn judge_end(&self, tail: Option<&ArchiveTail>) -> Authenticity {
        match tail.filter(|tail| tail.is_sound()) {
            Some(tail) => self.judge(tail.signature().as_ref()),
            None => Authenticity::Unreadable,
        }
    }

    /// Refuses what must not be taken.
    ///
    /// # Errors
    /// Refused: a signature of a known host is required, and `found` is none.
    pub fn admit(&self, archive: &str, found: Authenticity) -> Result<Authenticity> {
        if found.is_authentic() || self.requirement == SignatureRequirement::Optional {
            return Ok(found);
        }
        let what = match &found {
            Authenticity::UnknownKey { host, fingerprint } => {
                format!(
                    "'{archive}' is signed with an unknown key ({fingerprint}), which says that it is {host}'s"
                )
            }
            Authenticity::Unreadable => {
                format!("'{archive}' has no end that could be read, and so no signature")
            }
            Authenticity::Unsigned | Authenticity::Signed { .. } => format!("'{archive}' is unsigned"),
        };
        let message = format!("{what}, and the configuration requires a signature of a known host");
        Err(Error::new(ErrorKind::Refused, message).with_hint(
            "if that host made it, 'virtfold key trust' its key, as 'virtfold key show' prints it there; or take it without: \
             'trust: {require-signature: false}'",
        ))
    }
}

#[cfg(test)]
#[path = "forgery_tests.rs"]
mod forgeries;

#[cfg(test)]
mod tests {
    use super::*;
    use virtfold_archive::sign::{ChainLink, SigningKey};

    #[test]
    fn a_key_counts_for_the_host_that_it_is_known_for_and_no_other() {
        let (web, db) = (SigningKey::new("web").unwrap(), SigningKey::new("db").unwrap());
        let signed = |key: &SigningKey, host: &str| {
            let (subject, host) = ("domain:1".to_owned(), host.to_owned());
            let chain = ChainLink { subject, host, sequence: 3, previous: None };
            ArchiveSignature { chain, key: key.public() }
        };
        let line = AllowedSigners::line("web", &web.public()).unwrap();
        let signers = AllowedSigners::parse("signers", &line).unwrap();
        let required =
            TrustPolicy { signers, own: Some(web.public()), requirement: SignatureRequirement::Required };
        let good = required.admit("a.tar", required.judge(Some(&signed(&web, "web")))).unwrap();
        assert_eq!(good, Authenticity::Signed { host: "web".to_owned(), sequence: 3, by_this_host: true });
        for bad in [Some(signed(&db, "web")), Some(signed(&web, "db")), Some(signed(&db, "db")), None] {
            let error = required.admit("a.tar", required.judge(bad.as_ref())).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused, "{bad:?}");
            let optional = TrustPolicy { requirement: SignatureRequirement::Optional, ..required.clone() };
            assert!(!optional.admit("a.tar", optional.judge(bad.as_ref())).unwrap().is_authentic());
        }
    }
}
