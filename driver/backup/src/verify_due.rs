//! Verification of what has not been verified for long, at a place, a part of it at a time.
//!
//! The catalog says what is there and when each copy was verified. Those that never were come first, the
//! oldest before the others; then those whose verification is the longest ago. A call takes them in that
//! order until it has the share of the place's bytes that it may read, and at least one: so many calls of
//! 1/N each see all of it. Each result is in the catalog before the next archive is begun: whatever ends the
//! call, the next one goes on behind it.
//!
//! A verification that is dated in the future was noted by a clock that was wrong, and counts for nothing.
//!
//! Imports: `error`, `catalog`, `medium` (`Location`), and of this crate `known_copy`, `trust`, `verify`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::known_copy::KnownCopy;
use crate::retention::PruneFailure;
use crate::trust::{SignatureRequirement, TrustPolicy};
use crate::verify::{VerifyReport, VerifyRequest};
use virtfold_archive::crypt::Identities;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_catalog::{BackupCopy, Catalog, Verification, VerifyOutcome};
use virtfold_medium::Location;

/// A part of a whole: 1/30.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    part: u32,
    of: u32,
}

impl Share {
    /// All of it.
    pub const ALL: Self = Self { part: 1, of: 1 };

    /// So much of a number, rounded up.
    fn of(self, number: u64) -> u64 {
        let part = u128::from(number) * u128::from(self.part);
        u64::try_from(part.div_ceil(u128::from(self.of.max(1)))).unwrap_or(u64::MAX)
    }
}

impl std::str::FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let read = text.split_once('/').and_then(|(part, of)| Some((part.parse().ok()?, of.parse().ok()?)));
        match read {
            Some((part, of)) if 0 < part && part <= of => Ok(Self { part, of }),
            _ => Err(format!("invalid share '{text}'; write a part of all archives, such as 1/30")),
        }
    }
}

/// What is to be verified.
#[derive(Clone, Debug)]
pub struct DueRequest {
    /// The destination, as the catalog calls it.
    pub place: String,
    /// How long ago a verification may be.
    pub older_than: Duration,
    /// How much of the place is read at most.
    pub share: Share,
    /// What opens encrypted archives.
    pub identities: Identities,
    /// Whose archives are taken.
    pub trust: TrustPolicy,
    /// Threads.
    pub workers: usize,
    /// The time.
    pub now: Timestamp,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct DueReport {
    /// The destination.
    pub place: String,
    /// Archives there that the catalog knows.
    pub known: usize,
    /// How many of them were due.
    pub due: usize,
    /// Those that were read.
    pub verified: Vec<VerifyReport>,
    /// Those that could not be.
    pub failed: Vec<DueFailure>,
    /// How many archives of the place are known to have failed their last verification, now.
    pub unsound: usize,
}

/// An archive that could not be read, or must not be taken.
#[derive(Clone, Debug, Serialize)]
pub struct DueFailure {
    /// The archive.
    pub archive: String,
    /// Why.
    #[serde(flatten)]
    pub failure: PruneFailure,
}

impl DueReport {
    /// How many are due still.
    pub fn left(&self) -> usize {
        self.due.saturating_sub(self.verified.len())
    }
}

/// The copies that are due, in their order.
fn due(
    known: &[BackupCopy],
    verified: &BTreeMap<String, Verification>,
    request: &DueRequest,
) -> Vec<BackupCopy> {
    let since = SignedDuration::try_from(request.older_than).ok();
    let since = since.and_then(|span| request.now.checked_sub(span).ok()).unwrap_or(Timestamp::MIN);
    let last = |copy: &BackupCopy| verified.get(&copy.name).map(|done| done.checked);
    let mut due: Vec<(Option<Timestamp>, &BackupCopy)> = known
        .iter()
        .map(|copy| (last(copy).filter(|checked| *checked <= request.now), copy))
        .filter(|(checked, _)| checked.is_none_or(|checked| checked <= since))
        .collect();
    due.sort_by_key(|(checked, copy)| (*checked, copy.created));
    due.into_iter().map(|(_, copy)| copy.clone()).collect()
}

/// Verifies what is due by `verify`, and notes each result.
///
/// # Errors
/// NotFound: the catalog knows nothing there; it can't be read or written; interrupted. What can't be
/// verified is in the report.
pub fn run(
    request: &DueRequest,
    catalog: &Catalog,
    verify: &mut dyn FnMut(&VerifyRequest) -> Result<VerifyReport>,
) -> Result<DueReport> {
    let known = catalog.copies_at(&request.place)?;
    if known.is_empty() {
        let message = format!("the catalog knows no archives at '{}'", request.place);
        let hint = format!("'virtfold list --remember {}' records those that are there", request.place);
        return Err(Error::new(ErrorKind::NotFound, message).with_hint(hint));
    }
    let copies = due(&known, &catalog.verifications(&request.place)?, request);
    let most = request.share.of(known.iter().map(|copy| copy.bytes).fold(0, u64::saturating_add));
    let mut read = 0u64;
    let mut report = DueReport {
        place: request.place.clone(),
        known: known.len(),
        due: copies.len(),
        verified: Vec::new(),
        failed: Vec::new(),
        unsound: 0,
    };
    for copy in copies {
        if read >= most.max(1) {
            break;
        }
        let archive = location(&copy.name)?;
        let known = KnownCopy::at(catalog, &archive)?;
        let one = VerifyRequest {
            archive,
            identities: request.identities.clone(),
            // What must not be taken is verified all the same, or it would be read anew each time.
            trust: TrustPolicy { requirement: SignatureRequirement::Optional, ..request.trust.clone() },
            workers: request.workers,
            known: known.clone(),
        };
        match verify(&one) {
            Ok(mut done) => {
                done.record(&known, catalog, Timestamp::now())?;
                read = read.saturating_add(copy.bytes.max(1));
                let refused = match done.authenticity.clone().filter(|_| done.replaced.is_none()) {
                    Some(found) => request.trust.admit(&copy.name, found).err(),
                    None => None,
                };
                report.failed.extend(
                    refused
                        .map(|error| DueFailure { archive: copy.name, failure: PruneFailure::from(&error) }),
                );
                report.verified.push(done);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            // It was not read, and stays due; the others have their turn.
            Err(error) => {
                report.failed.push(DueFailure { archive: copy.name, failure: PruneFailure::from(&error) });
            }
        }
    }
    let all = catalog.verifications(&request.place)?;
    let there = known.iter().filter_map(|copy| all.get(&copy.name));
    report.unsound = there.filter(|done| done.outcome == VerifyOutcome::Failed).count();
    Ok(report)
}

/// An archive by its name in the catalog.
fn location(name: &str) -> Result<Location> {
    if name.starts_with('/') {
        return Ok(Location::Path(PathBuf::from(name)));
    }
    let odd = || format!("the catalog has an archive '{}', which is no location", name.escape_debug());
    name.parse().map_err(|error| Error::new(ErrorKind::Damaged, odd()).with_source(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;
    use virtfold_catalog::{Owner, Source};

    const DAY: i64 = 86_400;

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + day * DAY).unwrap()
    }

    fn copy(name: &str, day: i64, bytes: u64) -> BackupCopy {
        BackupCopy {
            name: format!("/backup/{name}"),
            place: "/backup".to_owned(),
            archive: Uuid::new_v4(),
            owner: Owner { uuid: None, name: "web".to_owned(), images: true },
            source: Source::default(),
            host: "h1".to_owned(),
            created: at(day),
            parent: None,
            bytes,
            root: None,
            encrypted: false,
            job: None,
        }
    }

    fn request(share: &str) -> DueRequest {
        DueRequest {
            place: "/backup".to_owned(),
            older_than: Duration::from_secs(30 * 86_400),
            share: share.parse().unwrap(),
            identities: Identities::default(),
            trust: TrustPolicy::default(),
            workers: 1,
            now: at(100),
        }
    }

    fn done(day: i64, outcome: VerifyOutcome) -> Verification {
        Verification { checked: at(day), root: None, outcome }
    }

    /// Never verified before verified long ago, the oldest first; what is recent is not due, and a time to
    /// come is none.
    #[test]
    fn the_oldest_come_first() {
        let copies =
            [copy("new", 99, 10), copy("old", 10, 10), copy("a", 1, 10), copy("b", 2, 10), copy("c", 3, 10)];
        let of = |name: &str, day| (format!("/backup/{name}"), done(day, VerifyOutcome::Sound));
        let verified = BTreeMap::from([of("a", 60), of("b", 71), of("c", 101)]);
        let due = due(&copies, &verified, &request("1/1"));
        let names: Vec<&str> = due.iter().map(|copy| copy.name.trim_start_matches("/backup/")).collect();
        assert_eq!(names, ["c", "old", "new", "a"]);
    }

    #[test]
    fn a_share_is_a_part_rounded_up() {
        let of = |share: &str, number| share.parse::<Share>().unwrap().of(number);
        assert_eq!((of("1/30", 31), of("1/1", 7), of("2/3", 9), of("1/30", 0)), (2, 7, 6, 0));
        assert_eq!(of("1/1", u64::MAX), u64::MAX);
        for odd in ["0/3", "4/3", "1", "", "1/0", "-1/2", "a/b"] {
            odd.parse::<Share>().unwrap_err();
        }
    }

    /// Each result is noted, what can't be read is told and stays due, and call by call all are seen.
    #[test]
    fn results_are_noted_and_the_next_call_goes_on() {
        let state = tempfile::tempdir().unwrap();
        let place = state.path().canonicalize().unwrap().display().to_string();
        let catalog = Catalog::open(state.path()).unwrap();
        let request = |share| DueRequest { place: place.clone(), ..request(share) };
        let copy = |name, day| {
            let copy = copy(name, day, 10);
            BackupCopy { name: format!("{place}/{name}"), place: place.clone(), ..copy }
        };
        let empty = run(&request("1/1"), &catalog, &mut |_| panic!("nothing is there")).unwrap_err();
        assert_eq!(empty.kind(), ErrorKind::NotFound);
        catalog.remember(&[copy("a", 1), copy("b", 2), copy("c", 3)]).unwrap();
        let mut seen = Vec::new();
        let mut call = || {
            let request = DueRequest { now: Timestamp::now(), ..request("1/3") };
            let report = run(&request, &catalog, &mut |one| {
                let name = one.archive.to_string().replace(&format!("{place}/"), "");
                seen.push(name.clone());
                match name.as_str() {
                    "b" => Err(Error::new(ErrorKind::NotFound, "it is gone")),
                    _ => Ok(VerifyReport { sound: name == "a", ..VerifyReport::of(one) }),
                }
            });
            report.unwrap()
        };
        let first = call();
        assert_eq!((first.due, first.left(), first.unsound), (3, 2, 0));
        assert!(first.verified[0].recorded);
        let second = call();
        assert_eq!((second.failed.len(), second.verified.len()), (1, 1), "what is gone takes no one's share");
        assert_eq!((second.left(), second.unsound), (1, 1), "it stays due");
        let request = DueRequest { now: Timestamp::now(), ..request("1/1") };
        let all = run(&request, &catalog, &mut |one| Ok(VerifyReport::of(one))).unwrap();
        assert_eq!((all.verified.len(), all.left(), all.unsound), (1, 0, 2));
        assert_eq!(seen, ["a", "b", "c"]);
        assert_eq!(catalog.verified_copies(&place).unwrap().len(), 1);
    }
}
