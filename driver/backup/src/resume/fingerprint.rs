//! What an archive is made of, as far as it has to be the same for the archive to be gone on with.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::SavedEnvelope;
use super::{NewArchive, ResumeContext};
use crate::folded_disk::DiskSet;
use crate::signing;
use virtfold_archive::crypt::Recipients;
use virtfold_archive::layout;
use virtfold_archive::manifest::Disk;
use virtfold_archive::sign::ChainLink;
use virtfold_archive::stream::Digest;
use virtfold_archive::writer::{Attachment, DiskTables};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_medium::Location;

/// The version of a record.
const VERSION: u32 = 1;
/// The longest origin, bytes.
pub(super) const MAX_LEN: u64 = 16 << 20;
/// The most members beside the disks that are believed.
const MAX_MEMBERS: usize = 1024;

/// What an archive is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    version: u32,
    /// The archive's id.
    pub(super) archive: Uuid,
    /// Its file name.
    pub(super) name: String,
    /// Where it goes.
    pub(super) place: String,
    /// The job that has its disks frozen.
    pub(super) job: Option<Uuid>,
    /// Where its key is kept, where it is encrypted.
    #[serde(default)]
    pub(super) keys: Option<PathBuf>,
    /// The digest of its head.
    pub(super) head: Digest,
    /// The members beside the disks: name, length, digest.
    pub(super) members: Vec<(String, u64, Digest)>,
    /// Of a signed archive: its place in its chain.
    #[serde(default)]
    pub(super) link: Option<ChainLink>,
    facts: FingerprintFields,
}

/// What has to be the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FingerprintFields {
    /// The program: another version may plan and compress otherwise.
    tool: String,
    /// The name of the domain or set, and whether it is a domain.
    subject: (String, bool),
    compression: String,
    /// Whom the archive is encrypted to; empty where it is not.
    #[serde(default)]
    encrypted_to: Vec<String>,
    /// Whose key it is signed with, where it is.
    #[serde(default)]
    signed_by: Option<String>,
    disks: Vec<Disk>,
    files: Vec<SourceStamp>,
    /// Of all runs of all disks.
    runs: Digest,
    /// The archive that it continues.
    #[serde(default)]
    parent: Option<Uuid>,
}

/// A file of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourceStamp {
    path: PathBuf,
    identity: (u64, u64),
    size: u64,
    /// Seconds and nanoseconds of the last write.
    modified: (i64, i64),
    /// Of the last change of anything.
    changed: (i64, i64),
}

impl SourceStamp {
    /// `None` for a block device: it does not say when it was written to.
    ///
    /// # Errors
    /// It can't be looked at.
    pub(crate) fn of(path: &Path) -> Result<Option<Self>> {
        let cannot = || format!("cannot look at '{}'", path.display());
        let found = path.metadata().at(cannot)?;
        if found.file_type().is_block_device() {
            return Ok(None);
        }
        Ok(Some(Self {
            path: std::path::absolute(path).at(cannot)?,
            identity: (found.dev(), found.ino()),
            size: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }))
    }

    /// Whether `other` is the same file, whatever is in it now.
    pub(crate) fn is_same_file(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// Whether `other` is the same file with the same bytes in it, whoever owns it now.
    pub(crate) fn is_as_written(&self, other: &Self) -> bool {
        (self.identity, self.size, self.modified) == (other.identity, other.size, other.modified)
    }

    /// When anything of it changed last, seconds since 1970.
    pub(crate) fn last_change(&self) -> i64 {
        self.modified.0.max(self.changed.0)
    }
}

impl FingerprintFields {
    fn of(candidate: &NewArchive<'_>) -> Result<Option<Self>> {
        let NewArchive { head, disks, .. } = *candidate;
        let mut files = Vec::new();
        for (path, _) in disks.0.iter().flat_map(|disk| disk.image.host_files()) {
            match SourceStamp::of(path)? {
                Some(mark) => files.push(mark),
                None => return Ok(None),
            }
        }
        let subject = (
            head.subject.name().to_owned(),
            matches!(head.subject, virtfold_archive::manifest::BackupSubject::Domain { .. }),
        );
        Ok(Some(Self {
            tool: head.tool.clone(),
            subject,
            compression: format!("{:?}", head.compression),
            encrypted_to: candidate.recipients.map(Recipients::names).unwrap_or_default(),
            signed_by: candidate.seal.map(|seal| signing::signer(seal.key)),
            // What is allocated below whole blocks is what the file system says of holes, which it says in
            // one way now and in another then.
            disks: head
                .disks
                .iter()
                .map(|disk| Disk { allocated: 0, changes: None, ..disk.clone() })
                .collect(),
            files,
            runs: runs(disks)?,
            parent: head.parent.as_ref().map(|parent| parent.id),
        }))
    }

    /// How a place is called in a record.
    pub(super) fn place(place: &Location) -> Result<String> {
        let Some(path) = place.path() else { return Ok(place.to_string()) };
        let absolute = std::path::absolute(path).at(|| format!("cannot look at '{}'", path.display()))?;
        Ok(absolute.display().to_string())
    }
}

/// The digest of all runs.
fn runs(disks: &DiskSet) -> Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    for disk in &disks.0 {
        for run in disk.runs() {
            let run = run?;
            hasher.update(&run.guest.get().to_le_bytes()).update(&run.len.to_le_bytes());
        }
        hasher.update(&[0xff; 16]);
    }
    Ok(Digest::from_bytes(*hasher.finalize().as_bytes()))
}

impl Fingerprint {
    /// The origin of an archive that goes to `place`; `None` where its sources don't tell whether they have
    /// changed.
    pub(super) fn of(
        candidate: &NewArchive<'_>,
        place: &Location,
        keep: &ResumeContext<'_>,
    ) -> Result<Option<Self>> {
        let NewArchive { head, attachments, label, .. } = *candidate;
        let Some(facts) = FingerprintFields::of(candidate)? else { return Ok(None) };
        let member =
            |file: &Attachment| (file.name.clone(), file.content.len() as u64, Digest::of(&file.content));
        Ok(Some(Self {
            version: VERSION,
            archive: head.archive,
            name: label.name.clone(),
            place: FingerprintFields::place(place)?,
            job: keep.session,
            keys: candidate.recipients.map(|_| keep.state.keys.clone()),
            head: Digest::of(&head.encode()?),
            members: attachments.iter().map(member).collect(),
            link: candidate.seal.map(|seal| seal.chain.clone()),
            facts,
        }))
    }

    /// Reads an origin.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let damaged =
            |what: String| Error::new(ErrorKind::Damaged, format!("a record of a backup is damaged: {what}"));
        if bytes.len() as u64 > MAX_LEN {
            return Err(damaged("it is too long".to_owned()));
        }
        let origin: Self = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        if origin.version != VERSION {
            return Err(damaged(format!("its version is {}", origin.version)));
        }
        let is_name = layout::check_name(&origin.name).is_ok() && !origin.name.contains('/');
        if !is_name || origin.members.len() > MAX_MEMBERS {
            return Err(damaged("its names are none".to_owned()));
        }
        Ok(origin)
    }

    /// The bytes that [`Fingerprint::parse`] reads.
    ///
    /// # Errors
    /// Internal only.
    pub fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self)
            .map_err(|e| Error::new(ErrorKind::Internal, "a record can't be written").with_source(e))
    }

    /// Whether both are backups of the same things to the same place: then one of them takes the other's
    /// place.
    pub(super) fn is_of_the_same(&self, other: &Self) -> bool {
        let paths =
            |origin: &Self| origin.facts.files.iter().map(|file| file.path.clone()).collect::<Vec<_>>();
        self.place == other.place && self.facts.subject == other.facts.subject && paths(self) == paths(other)
    }

    /// The key of its archive, where that is encrypted.
    pub(super) fn key(&self) -> Option<SavedEnvelope> {
        self.keys.as_ref().map(|directory| SavedEnvelope::of(directory, self.archive))
    }

    /// Why the archive of this origin can't be gone on with by somebody who would make `now`.
    pub(super) fn difference(&self, now: &Self) -> Option<String> {
        let (then, now, other) = (&self.facts, &now.facts, now);
        if then.tool != now.tool {
            return Some(format!("it was begun by {}", then.tool));
        }
        if self.job != other.job {
            return Some("the guest's disks were frozen at another time".to_owned());
        }
        if then.compression != now.compression {
            return Some("it is compressed in another way".to_owned());
        }
        if then.encrypted_to != now.encrypted_to {
            return Some("it is encrypted to others".to_owned());
        }
        if then.signed_by != now.signed_by {
            return Some("it was to be signed with another key, or with none".to_owned());
        }
        if then.parent != now.parent {
            return Some("another backup was made since, which this one continues".to_owned());
        }
        for (then, now) in then.files.iter().zip(&now.files) {
            if then != now {
                return Some(format!("'{}' has changed since", now.path.display()));
            }
        }
        for (then, now) in then.disks.iter().zip(&now.disks) {
            if then != now {
                tracing::debug!(?then, ?now, "a disk is not the same");
                return Some(format!(
                    "disk '{}' is not the same, or would be copied in another way",
                    now.target
                ));
            }
        }
        if then != now {
            return Some("what of the disks is used is not the same".to_owned());
        }
        (self.members != other.members).then(|| "the files beside the disks are not the same".to_owned())
    }
}
