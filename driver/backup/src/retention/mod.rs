//! Which backups are kept, and how the others go.
//!
//! - `policy` decides, and does nothing else: backups and rules in, a verdict with its reasons for each.
//! - `survey` finds out what there is at a place, and what of it may be decided on: whole archives of this
//!   host, under the names that virtfold gave them. Everything else is left alone.
//! - `groups` says which archives are backups of one thing.
//! - `prune` looks, decides and removes, increments before what they rest on, and notes what is gone in the
//!   catalog.
//!
//! What is at the place counts, not what the catalog believes; but for encrypted archives that no identity
//! opens, of which the catalog says what the head would. Of what is there only that counts for a rule which
//! the catalog knows: anybody who can write to the place can put archives there.
//!
//! Removal is noted when it has happened: an archive that is gone and still in the catalog is found at the
//! next look.
//!
//! Invariants: the newest whole backup stays; what rests on another archive that stays keeps that one; an
//! archive that can't be read, whose name says that it is of the same subject, keeps everything that is
//! older, for it may rest on it.
//!
//! Imports: `error`, `catalog`, `medium`, `archive` (the head), and of this crate `destinations`, `inspect`,
//! `session`.

mod groups;
mod policy;
#[cfg(test)]
mod policy_tests;
mod prune;
#[cfg(test)]
mod prune_tests;
mod report;
mod survey;

pub(crate) use self::groups::is_same_subject;
pub use self::groups::{HostIdentity, PathPolicy};
pub use self::policy::{
    KeepReason, KeepRule, KeepRules, Prunable, PruneCandidate, PruneDecision, VerifyStanding, decide,
};
pub use self::prune::{KeepPolicy, KeepPolicyOf, PruneRequest, prune};
pub use self::report::{GroupReport, PruneAction, PruneEntry, PruneFailure, PruneReport};
pub use self::survey::{CatalogFillReport, copies, fill_catalog};
pub(crate) use self::survey::{owner, source};
