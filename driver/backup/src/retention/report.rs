//! What pruning came to, as it is told.
//!
//! Imports: `error`.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use virtfold_base::error::{Error, ErrorKind, sentence};

/// What came of it at a place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PruneReport {
    /// The place.
    pub place: String,
    /// The subjects that were asked for.
    pub subjects: Vec<GroupReport>,
    /// Why nothing goes: the catalog knows none of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unrecorded: Option<PruneFailure>,
    /// Archives that are nothing to decide on and belong to none of them, with the reason.
    pub unknown: Vec<PruneEntry>,
    /// Archives of other hosts.
    pub other_hosts: usize,
    /// Archives of this host that were not asked for.
    pub not_asked: usize,
    /// What was removed and could not be noted in the catalog.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_noted: Option<PruneFailure>,
}

/// The archives of a subject.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupReport {
    /// The domain's name, or what the set of images is called.
    pub name: String,
    /// The domain's uuid.
    pub uuid: Option<Uuid>,
    /// Where the images are that it is, unless a person named them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// Its archives, newest first.
    pub archives: Vec<PruneEntry>,
    /// Why all of it stays, where the rules don't count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_whole: Option<String>,
    /// How many of its archives the catalog does not know: they count for nothing and stay.
    #[serde(default)]
    pub unrecorded: usize,
    /// How many push nothing out because they were never verified, though an older one was.
    #[serde(default)]
    pub unverified: usize,
    /// Why nothing was removed, where something was to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<PruneFailure>,
}

/// An archive.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PruneEntry {
    /// Its name, as `restore` takes it.
    pub archive: String,
    /// Its file's name, or the last part of its key.
    pub file: String,
    /// When it was made, in UTC, where that is known.
    pub created: Option<String>,
    /// Its size, bytes.
    pub bytes: u64,
    /// What is done with it.
    pub action: PruneAction,
    /// Why it is kept.
    pub reasons: Vec<String>,
    /// Why it could not be removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<PruneFailure>,
}

/// What is done with an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PruneAction {
    /// It stays.
    Keep,
    /// It is to be removed, and was not: this was a dry run, or the failure says why.
    Remove,
    /// It was removed.
    Removed,
}

/// What went wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PruneFailure {
    /// As a sentence.
    pub sentence: String,
    /// What a person can do.
    pub hint: Option<String>,
    /// Of what kind it is.
    pub kind: ErrorKind,
}

impl From<&Error> for PruneFailure {
    fn from(error: &Error) -> Self {
        Self { sentence: sentence(error), hint: error.hint().map(ToOwned::to_owned), kind: error.kind() }
    }
}

impl PruneReport {
    /// All that failed.
    pub fn failures(&self) -> impl Iterator<Item = &PruneFailure> {
        let groups = self.subjects.iter().filter_map(|group| group.failure.as_ref());
        let entries = self.subjects.iter().flat_map(|group| &group.archives);
        groups
            .chain(entries.filter_map(|entry| entry.failure.as_ref()))
            .chain(&self.not_noted)
            .chain(&self.unrecorded)
    }
}
