//! What this host signs with, and whose archives it takes: by the configuration, else at the usual places.
//!
//! Root's are in `/etc/virtfold`, an ordinary user's in `virtfold` of his `$XDG_CONFIG_HOME`; what root
//! trusts an ordinary user trusts, too. A host's own key is always one of those that it trusts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use virtfold_archive::sign::{AllowedSigners, PublicKey, SigningKey};
use virtfold_backup::inspect::{ArchiveStatus, ArchiveSummary};
use virtfold_backup::trust::{Authenticity, SignatureRequirement, TrustPolicy};
use virtfold_base::error::{Error, ErrorKind};
use virtfold_config::Trust;

use super::domain::connection::in_home;

/// Root's keys, and the hosts that it trusts.
const SYSTEM: &str = "/etc/virtfold";
const KEY: &str = "signing-key";
const SIGNERS: &str = "allowed-signers";

/// Where keys are of who runs this, when nobody says otherwise.
///
/// # Errors
/// An ordinary user who has no home.
fn usual() -> Result<PathBuf, Error> {
    match rustix::process::geteuid().is_root() {
        true => Ok(PathBuf::from(SYSTEM)),
        false => Ok(in_home("XDG_CONFIG_HOME", ".config")?.join("virtfold")),
    }
}

/// Where the private key is.
///
/// # Errors
/// As [`usual`].
pub(crate) fn key_path(trust: &Trust) -> Result<PathBuf, Error> {
    match &trust.signing_key {
        Some(path) => Ok(path.as_path().to_owned()),
        None => Ok(usual()?.join(KEY)),
    }
}

/// Where the list of trusted hosts is.
///
/// # Errors
/// As [`usual`].
pub(crate) fn signers_path(trust: &Trust) -> Result<PathBuf, Error> {
    match &trust.allowed_signers {
        Some(path) => Ok(path.as_path().to_owned()),
        None => Ok(usual()?.join(SIGNERS)),
    }
}

/// What archives are signed with; nothing where there is no key and none is asked for.
///
/// # Errors
/// NotFound: the configuration names a file that is not there; those of [`SigningKey::load`].
pub(crate) fn signing_key(trust: &Trust) -> Result<Option<Arc<SigningKey>>, Error> {
    let Some(named) = &trust.signing_key else {
        // A user without a home has no key.
        let Ok(directory) = usual() else { return Ok(None) };
        return Ok(SigningKey::load(&directory.join(KEY))?.map(Arc::new));
    };
    let path = named.as_path();
    SigningKey::load(path)?.map(Arc::new).map(Some).ok_or_else(|| {
        let what = format!("the signing key '{}' of the configuration is not there", path.display());
        Error::new(ErrorKind::NotFound, what).with_hint("'virtfold key new' makes it")
    })
}

/// Whose archives are taken.
///
/// # Errors
/// A list can't be read, or is none; one that the configuration names is not there.
pub(crate) fn policy(trust: &Trust) -> Result<TrustPolicy, Error> {
    let mut signers = AllowedSigners::default();
    let mut own = None;
    // The key of who runs this, and root's.
    for path in [key_path(trust).unwrap_or_else(|_| Path::new(SYSTEM).join(KEY)), Path::new(SYSTEM).join(KEY)]
    {
        if let Some((host, key)) = PublicKey::load_beside(&path)? {
            signers.add(host, key.clone());
            own = own.or(Some(key));
        }
    }
    for text in &trust.keys {
        signers.extend(AllowedSigners::parse("trust.keys", text.as_str())?);
    }
    match &trust.allowed_signers {
        Some(path) => signers.extend(AllowedSigners::load(path.as_path())?.ok_or_else(|| {
            let what = format!("the list '{}' of the configuration is not there", path.as_path().display());
            Error::new(ErrorKind::NotFound, what).with_hint("'virtfold key trust' makes it")
        })?),
        None => {
            let directories = [Some(PathBuf::from(SYSTEM)), usual().ok()];
            for directory in directories.into_iter().flatten() {
                signers.extend(AllowedSigners::load(&directory.join(SIGNERS))?.unwrap_or_default());
            }
        }
    }
    let requirement = match trust.require_signature {
        true => SignatureRequirement::Required,
        false => SignatureRequirement::Optional,
    };
    Ok(TrustPolicy { signers, own, requirement })
}

/// Who made an archive that was looked at, of a complete one whose end was.
pub(crate) fn judge(policy: &TrustPolicy, summary: &ArchiveSummary) -> Option<Authenticity> {
    let looked = summary.status == ArchiveStatus::Complete && summary.root.is_some();
    looked.then(|| policy.judge(summary.signature.as_ref()))
}
