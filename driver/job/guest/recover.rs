//! Recovery.

use serde::Serialize;

use super::Host;
use crate::error::Result;
use crate::guest::DomainId;

/// Whose jobs are recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// All of them, and all domains are searched for forgotten overlays.
    All,
    /// One domain's.
    Domain(DomainId),
}

/// Whether anything is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is.
    Apply,
    /// It is only said.
    DryRun,
}

/// What came of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The guest is on its own disks and nothing is left to do.
    Recovered,
    /// The guest is on its own disks; something can only be done later.
    Later,
    /// A run of virtfold is at work on it.
    Busy,
    /// A person has to decide; everything is as it was.
    Undecided,
    /// Something failed; run it again.
    Failed,
    /// What would be done, by [`Mode::DryRun`].
    Planned,
}

/// What was found of a domain, done about it, and remains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recovery {
    /// The domain's uuid.
    pub domain: String,
    /// Its name, as the journal or the hypervisor has it.
    pub name: String,
    /// The job in the journal; `None` for overlays that no job knows.
    pub job: Option<String>,
    /// What came of it.
    pub verdict: Verdict,
    /// What was found of the domain.
    pub found: Vec<String>,
    /// What was done to the domain.
    pub done: Vec<String>,
    /// What remains for a person.
    pub remains: Vec<String>,
    /// Its disks.
    pub disks: Vec<DiskRecovery>,
}

/// What was found of a disk, done about it, and remains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiskRecovery {
    /// The disk.
    pub target: String,
    /// The image that the guest belongs on.
    pub base: String,
    /// The overlay.
    pub overlay: Option<String>,
    /// What was found.
    pub found: Vec<String>,
    /// What was done.
    pub done: Vec<String>,
    /// What remains.
    pub remains: Vec<String>,
}

/// Ends what dead drivers began.
///
/// # Errors
/// The hypervisor or the journal can't be asked at all. What fails for one domain is in its [`Recovery`].
pub fn recover(_host: &Host<'_>, _which: Which, _mode: Mode) -> Result<Vec<Recovery>> {
    Ok(Vec::new())
}
