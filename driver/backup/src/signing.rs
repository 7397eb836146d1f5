//! Which archive of its subject a backup makes, and whose: what a signed archive's end record says
//! (FORMAT.md, "Signed archives").
//!
//! Order: a backup takes its number before it begins (`begin`); it and the archive before it are kept with
//! the record of a backup that may be resumed, so that a resumed archive is signed as it would have been.
//! When the archive has its name, it is noted as the last of its chain (`SignedBackup::finished`).
//!
//! Imports: `error`, `archive`, `catalog`, and of this crate `destinations`.

use std::path::{Path, PathBuf};

use virtfold_archive::manifest::{BackupSubject, Manifest};
use virtfold_archive::sign::{ChainLink, PreviousArchive, SigningKey};
use virtfold_base::error::{Result, sentence};
use virtfold_catalog::{Catalog, ChainEntry, ChainName};
use virtfold_medium::Location;

use crate::destinations::Destinations;

/// What a digest of a subject is for, so that no other digest is the same.
const CONTEXT: &str = "virtfold 2026-11-30 subject of a signed archive";
/// Characters of it that are used.
const DIGEST_LEN: usize = 32;

/// An archive that is signed, and where that is noted.
#[derive(Debug)]
pub(crate) struct SignedBackup {
    /// What its end record says.
    pub(crate) link: ChainLink,
    destination: String,
    state: PathBuf,
}

/// Takes a number for the archive of `head`; nothing where archives are not signed.
///
/// # Errors
/// The catalog can't be written; a destination can't be asked for its name.
pub(crate) fn begin(
    head: &Manifest,
    key: Option<&SigningKey>,
    destinations: &Destinations<'_>,
    state: &Path,
) -> Result<Option<SignedBackup>> {
    let Some(key) = key else { return Ok(None) };
    let destination = destination(destinations)?;
    let (subject, state) = (subject(head), state.to_owned());
    let chain = ChainName { subject, signer: key.host().to_owned(), destination };
    let next = Catalog::open(&state)?.next_in_chain(&chain)?;
    let previous = next.previous.map(|ChainEntry { archive, root, sequence }| PreviousArchive {
        root,
        archive,
        sequence,
    });
    let ChainName { subject, signer, destination } = chain;
    let link = ChainLink { subject, host: signer, sequence: next.sequence, previous };
    Ok(Some(SignedBackup { link, destination, state }))
}

/// What a chain's destination is called: each that the archive goes to, in one order.
fn destination(destinations: &Destinations<'_>) -> Result<String> {
    let name = |place: &Location| match place {
        Location::Pipe => Ok(place.to_string()),
        place => destinations.name(place),
    };
    let mut names = destinations.locations().iter().map(name).collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names.join("\n"))
}

/// What an archive is of, the same in all archives of it: what retention goes by.
pub fn subject(head: &Manifest) -> String {
    let name = match &head.subject {
        BackupSubject::Domain { uuid: Some(uuid), .. } => format!("domain:{uuid}"),
        BackupSubject::Domain { name, uuid: None } => format!("domain:{}", digest(name, &[])),
        BackupSubject::Images { name, labelled: true, .. } => format!("images:{}", digest(name, &[])),
        BackupSubject::Images { name, labelled: false, paths } => format!("images:{}", digest(name, paths)),
    };
    match &head.host_id {
        Some(host) => format!("{name}@{host}"),
        None => name,
    }
}

fn digest(name: &str, paths: &[String]) -> String {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    for part in std::iter::once(name).chain(paths.iter().map(String::as_str)) {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    hasher.finalize().to_hex().chars().take(DIGEST_LEN).collect()
}

impl SignedBackup {
    /// The same place in the chain as an archive that is resumed was begun with.
    pub(crate) fn resumed(self, link: ChainLink) -> Self {
        Self { link, ..self }
    }

    /// The archive has its name. Where that can't be noted the archive is as good; the next one names the one
    /// before it.
    pub(crate) fn finished(&self, head: &Manifest, root: &str) {
        let ChainLink { subject, host, sequence, .. } = self.link.clone();
        let chain = ChainName { subject, signer: host, destination: self.destination.clone() };
        let entry = ChainEntry { archive: head.archive, root: root.to_owned(), sequence };
        if let Err(error) =
            Catalog::open(&self.state).and_then(|catalog| catalog.note_in_chain(&chain, &entry))
        {
            tracing::warn!(
                "the archive is good and signed, but the catalog could not note it as the last of '{}', so its removal \
                 would not be noticed: {}",
                head.subject.name().escape_debug(),
                sentence(&error)
            );
        }
    }
}

/// Whose key an archive is signed with, as a record of a resumable backup has it.
pub(crate) fn signer(key: &SigningKey) -> String {
    format!("{} {}", key.host(), key.public().fingerprint())
}
