//! Verification of an increment with all that it rests on.
//!
//! Each archive of the chain is verified as `verify` does, the newest first. One that is not sound, or not
//! there, takes with it what rests on it: of those nothing can be had but what changed since.
//!
//! Imports: `error`, `medium`, and of this crate `verify`, `parents`, `inspect`.

use serde::Serialize;

use crate::Control;
use crate::inspect;
use crate::known_copy::KnownCopy;
use crate::parents::{self, ParentSearch};
use crate::verify::{self, VerifyReport, VerifyRequest};
use virtfold_archive::index::Trust;
use virtfold_base::error::{Error, ErrorKind, Result, sentence};
use virtfold_medium::Location;

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct ChainReport {
    /// Whether every archive of the chain is there and sound.
    pub sound: bool,
    /// Each archive that is there, the newest first.
    pub archives: Vec<VerifyReport>,
    /// Why the chain ends before a full archive, where it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap: Option<String>,
    /// Archives that rest on one that is not sound or not there.
    pub dependent: Vec<String>,
}

/// Verifies the archive of the request and those that it rests on; `known` is what the catalog knows of each.
///
/// # Errors
/// As [`verify::run`]; Damaged, where the archive's head can't be read, and with it what it rests on.
pub fn run(
    request: &VerifyRequest,
    search: &ParentSearch,
    known: &dyn Fn(&Location) -> KnownCopy,
    control: &Control,
) -> Result<ChainReport> {
    let found = inspect::glance(&request.archive, &request.identities)?;
    let head = found.head.ok_or_else(|| {
        let what = format!("the head of '{}' can't be read, and with it what it rests on", request.archive);
        Error::new(ErrorKind::Damaged, what)
    })?;
    let chain = parents::find(&request.archive, &head, &request.identities, search, Trust::Salvage)?;
    let mut archives = vec![verify::run(request, control)?];
    for parent in &chain.parents {
        let archive = parent.place.clone();
        let known = known(&archive);
        archives.push(verify::run(&VerifyRequest { archive, known, ..request.clone() }, control)?);
    }
    // Whatever is above the lowest fault rests on it.
    let lowest = match &chain.gap {
        Some(_) => archives.len(),
        None => archives.iter().rposition(|archive| !archive.sound).unwrap_or(0),
    };
    let dependent = archives.iter().take(lowest).map(|archive| archive.archive.clone()).collect();
    let sound = chain.gap.is_none() && archives.iter().all(|archive| archive.sound);
    Ok(ChainReport { sound, archives, gap: chain.gap.as_ref().map(|gap| sentence(gap)), dependent })
}
