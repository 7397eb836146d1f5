//! Looks at a place, decides, removes.
//!
//! 1. Whoever prunes has a lock, so that there is one at a time.
//! 2. A look at the place, and a verdict for each archive of each subject that is asked for.
//! 3. Where something is to go, the domains' locks are taken, which running backups hold, and everything is
//!    looked at and decided again: what a backup added
//!    in between may rest on what was to go. A domain that is being backed up is left alone.
//! 4. Increments go before what they rest on. What can't be removed keeps what it rests on; the others go on.
//! 5. Each removal is noted in the catalog when it has happened.
//!
//! Imports: see the room.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use uuid::Uuid;

use super::groups::{
    GroupKey, HostIdentity, PathPolicy, count_once, mixed, settle, verified_since, verify_standing,
};
use super::policy::{KeepReason, KeepRules, Prunable, PruneCandidate, PruneDecision, decide};
use super::report::{GroupReport, PruneAction, PruneEntry, PruneFailure, PruneReport};
use super::survey::{SurveyedArchive, file_name, look};
use crate::RunMode;
use crate::destinations::Destinations;
use crate::session::file_label;
use crate::trust::TrustPolicy;
use virtfold_base::error::{ErrorKind, Result};
use virtfold_catalog::{BackupCopy, Catalog, DomainLock, Journal, Owner};
use virtfold_hypervisor::DomainId;
use virtfold_medium::Location;
use virtfold_medium::process::StoredArchive;

/// What is kept of a subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeepPolicy {
    /// It is not asked for.
    NotSelected,
    /// It is, and all of it stays, for this reason.
    KeepAll(String),
    /// What the rules keep.
    Rules(KeepRules),
}

/// What is kept of which subject.
pub type KeepPolicyOf<'a> = dyn Fn(&Owner) -> Result<KeepPolicy> + 'a;

/// What is to be pruned.
pub struct PruneRequest<'a> {
    /// Where.
    pub place: &'a Location,
    /// Who touches that: a medium may hang, and the locks are here.
    pub destinations: &'a Destinations<'a>,
    /// The host whose archives it is about.
    pub host: &'a HostIdentity,
    /// What is kept of which subject.
    pub wanted: &'a KeepPolicyOf<'a>,
    /// The time.
    pub now: Timestamp,
    /// Whose days and weeks count.
    pub zone: &'a TimeZone,
    /// Whether anything is removed.
    pub mode: RunMode,
    /// Whether labelled images may have moved.
    pub paths: PathPolicy,
    /// Whose archives count.
    pub trust: &'a TrustPolicy,
}

/// An archive and what was decided.
struct DecidedArchive {
    found: SurveyedArchive,
    verdict: PruneDecision,
}

impl DecidedArchive {
    /// Whether it pushes nothing out, for want of a verification.
    fn counts_alone(&self) -> bool {
        matches!(&self.verdict, PruneDecision::Keep(reasons) if reasons.contains(&KeepReason::CountsAlone))
    }
}

/// A subject, its archives, newest first.
struct BackupGroup {
    key: GroupKey,
    owner: Owner,
    /// Why nothing of it goes.
    mixed: Option<PruneFailure>,
    kept_whole: Option<String>,
    /// How many of its archives the catalog does not know.
    unrecorded: usize,
    archives: Vec<DecidedArchive>,
}

struct DestinationSurvey {
    subjects: Vec<BackupGroup>,
    unknown: Vec<SurveyedArchive>,
    seen: BTreeSet<String>,
    other_hosts: usize,
    not_asked: usize,
}

/// Prunes a place. `catalog` is none where there is none yet: then nothing is known, and nothing goes.
///
/// # Errors
/// The place or the catalog can't be read; somebody else prunes. What can't be removed is in the report.
pub fn prune(request: &PruneRequest<'_>, catalog: Option<&Catalog>) -> Result<PruneReport> {
    let apply = request.mode == RunMode::Apply;
    let _lock = catalog.filter(|_| apply).map(Catalog::lock_pruning).transpose()?;
    let mut survey = request.survey(catalog)?;
    let mut locks = DomainLocks::default();
    if apply && survey.subjects.iter().any(BackupGroup::loses) {
        locks = DomainLocks::take(&survey.subjects, catalog);
        survey = request.survey(catalog)?;
    }
    let mut not_noted = None;
    if let (true, Some(catalog)) = (apply, catalog) {
        note_gone(request, &survey.seen, catalog)?;
    }
    let mut removal = Removal { place: request.place, destinations: request.destinations, unanswered: None };
    let mut subjects = Vec::new();
    for subject in survey.subjects {
        let failure = locks.failures.remove(&subject.key).or_else(|| subject.mixed.clone());
        let free = locks.has(&subject.key);
        let mut group = subject.group(failure);
        if apply && free {
            let removed = removal.of(&subject, &mut group.archives);
            if let Some(Err(error)) = catalog.map(|catalog| catalog.pruned(&removed, request.now)) {
                not_noted.get_or_insert(PruneFailure::from(&error));
            }
        }
        subjects.push(group);
    }
    let unrecorded = nothing_recorded(request.place, &subjects);
    Ok(PruneReport {
        place: request.place.to_string(),
        subjects,
        unrecorded,
        unknown: survey.unknown.iter().map(|found| entry(found, &left_alone(found))).collect(),
        other_hosts: survey.other_hosts,
        not_asked: survey.not_asked,
        not_noted,
    })
}

/// Why nothing went: of all archives that were asked for the catalog knows none.
fn nothing_recorded(place: &Location, subjects: &[GroupReport]) -> Option<PruneFailure> {
    let archives: usize = subjects.iter().map(|group| group.archives.len()).sum();
    let unrecorded: usize = subjects.iter().map(|group| group.unrecorded).sum();
    (archives > 0 && archives == unrecorded).then(|| PruneFailure {
        sentence: format!(
            "nothing of '{place}' was removed: this host's catalog knows none of its {archives} archives, and what it does not know may be forged"
        ),
        hint: Some(format!("'virtfold list --remember {place}' records them, with --identity for encrypted ones")),
        kind: ErrorKind::NotFound,
    })
}

impl PruneRequest<'_> {
    /// Looks and decides.
    fn survey(&self, catalog: Option<&Catalog>) -> Result<DestinationSurvey> {
        let mut found = look(self.destinations, self.place, &self.host.name, catalog, self.trust)?;
        found.iter_mut().for_each(settle);
        let namesakes = self.host.of_namesakes(found.iter().filter_map(|found| found.facts.as_ref()));
        let mut survey = DestinationSurvey {
            subjects: Vec::new(),
            unknown: Vec::new(),
            seen: found.iter().filter_map(|found| found.name.clone()).collect(),
            other_hosts: 0,
            not_asked: 0,
        };
        let mut subjects: BTreeMap<GroupKey, Vec<SurveyedArchive>> = BTreeMap::new();
        let mut unread = Vec::new();
        for found in found {
            match &found.facts {
                None => unread.push(found),
                Some(facts) if !self.host.made(facts) => survey.other_hosts += 1,
                Some(facts) => {
                    subjects.entry(GroupKey::of(&facts.owner, &facts.source)).or_default().push(found);
                }
            }
        }
        let elsewhere = self.elsewhere(catalog)?;
        let mut claimed = BTreeSet::new();
        let pinned = catalog.map(Catalog::pins).transpose()?.unwrap_or_default();
        let since = verified_since(&self.verified(catalog)?);
        for (key, mut archives) in subjects {
            let Some(owner) = self.owner(&archives) else { continue };
            count_once(&mut archives);
            let (keep, kept_whole) = match (self.wanted)(&owner)? {
                KeepPolicy::NotSelected => {
                    survey.not_asked += archives.len();
                    continue;
                }
                KeepPolicy::KeepAll(why) => (KeepRules::default(), Some(why)),
                KeepPolicy::Rules(keep) => (keep, None),
            };
            let labels: BTreeSet<String> = archives
                .iter()
                .filter_map(|found| found.facts.as_ref())
                .map(|facts| file_label(&facts.owner.name))
                .collect();
            let is_ours = |found: &SurveyedArchive| {
                found.named.as_ref().is_some_and(|named| labels.contains(&named.label))
            };
            // What can't be read may be of each of those that are called so.
            let mixed = mixed(&archives, self.host, &namesakes, self.paths);
            let ours = unread.iter().enumerate().filter(|(_, found)| is_ours(found));
            let ours: Vec<(usize, SurveyedArchive)> =
                ours.map(|(index, found)| (index, found.clone())).collect();
            claimed.extend(ours.iter().map(|(index, _)| *index));
            archives.extend(ours.into_iter().map(|(_, found)| found));
            let unrecorded = archives.iter().filter(|found| found.standing == Prunable::NotRecorded).count();
            let known =
                GroupKnowledge { elsewhere: &elsewhere, pinned: &pinned, since: since.get(&key).copied() };
            let archives = self.decide(archives, &keep, &known);
            survey.subjects.push(BackupGroup { key, owner, mixed, kept_whole, unrecorded, archives }.whole());
        }
        let rest = unread.into_iter().enumerate().filter(|(index, _)| !claimed.contains(index));
        survey.unknown = rest.map(|(_, found)| found).collect();
        Ok(survey)
    }

    /// Whose archives these are. A domain may have been renamed: what it is called last counts, where the
    /// catalog knows an archive that says so; a forged one would choose the rules.
    fn owner(&self, archives: &[SurveyedArchive]) -> Option<Owner> {
        let rank = |found: &&SurveyedArchive| {
            let created = found.facts.as_ref().map(|facts| facts.created);
            (found.standing == Prunable::Yes, created.is_some_and(|created| created <= self.now), created)
        };
        archives.iter().max_by_key(rank)?.facts.as_ref().map(|facts| facts.owner.clone())
    }

    /// The copies at the place that were sound when they were verified last, gone ones included.
    fn verified(&self, catalog: Option<&Catalog>) -> Result<Vec<BackupCopy>> {
        let Some(catalog) = catalog else { return Ok(Vec::new()) };
        catalog.verified_copies(&self.destinations.name(self.place)?)
    }

    /// Increments at other places that rest on archives here.
    fn elsewhere(&self, catalog: Option<&Catalog>) -> Result<Vec<(Uuid, Uuid)>> {
        let Some(catalog) = catalog else { return Ok(Vec::new()) };
        let copies = catalog.resting_elsewhere(&self.destinations.name(self.place)?)?;
        Ok(copies.into_iter().filter_map(|copy| Some((copy.archive, copy.parent?))).collect())
    }

    fn decide(
        &self,
        archives: Vec<SurveyedArchive>,
        keep: &KeepRules,
        known: &GroupKnowledge<'_>,
    ) -> Vec<DecidedArchive> {
        let backups: Vec<PruneCandidate> = archives.iter().map(|found| backup(found, known)).collect();
        let verdicts = decide(&backups, keep, self.now, self.zone, known.elsewhere);
        let decided =
            archives.into_iter().zip(verdicts).map(|(found, verdict)| DecidedArchive { found, verdict });
        let mut archives: Vec<DecidedArchive> = decided.collect();
        archives.sort_by_key(|decided| std::cmp::Reverse(created(&decided.found)));
        archives
    }
}

/// When an archive was made, by its head, else by its name.
fn created(found: &SurveyedArchive) -> Option<Timestamp> {
    let by_name = || found.named.as_ref().map(|named| named.created);
    found.facts.as_ref().map(|facts| facts.created).or_else(by_name)
}

/// What the catalog knows of a group beside its archives here.
struct GroupKnowledge<'a> {
    /// Increments at other places, and what they rest on.
    elsewhere: &'a [(Uuid, Uuid)],
    /// What a person keeps.
    pinned: &'a BTreeSet<Uuid>,
    /// When the oldest one was made that ever was verified.
    since: Option<Timestamp>,
}

fn backup(found: &SurveyedArchive, known: &GroupKnowledge<'_>) -> PruneCandidate {
    let id = found.facts.as_ref().map(|facts| facts.id);
    PruneCandidate {
        id,
        pinned: id.is_some_and(|id| known.pinned.contains(&id)),
        encrypted: found.encrypted,
        verified: verify_standing(found, known.since),
        doubt: found.doubt.clone(),
        created: created(found).unwrap_or(Timestamp::MAX),
        parent: found.facts.as_ref().and_then(|facts| facts.parent),
        standing: found.standing.clone(),
    }
}

impl BackupGroup {
    fn id(&self, index: usize) -> Option<Uuid> {
        self.archives.get(index)?.found.facts.as_ref().map(|facts| facts.id)
    }

    /// What each of its increments rests on.
    fn parents(&self) -> BTreeMap<Uuid, Uuid> {
        let facts = self.archives.iter().filter_map(|decided| decided.found.facts.as_ref());
        facts.filter_map(|facts| Some((facts.id, facts.parent?))).collect()
    }

    /// Which of its archives are to go, in the order in which they have to.
    fn leaving(&self, parents: &BTreeMap<Uuid, Uuid>) -> Vec<usize> {
        let goes =
            |index: &usize| self.archives.get(*index).is_some_and(|d| d.verdict == PruneDecision::Remove);
        let mut order: Vec<usize> = (0..self.archives.len()).filter(goes).collect();
        // The archives stand newest first; those on which as many rest go oldest first.
        order.reverse();
        order.sort_by_key(|index| {
            std::cmp::Reverse(self.id(*index).map_or(0, |id| ancestors(id, parents).len()))
        });
        order
    }

    /// Where somebody keeps all of it, or it may be several things, all of it stays.
    fn whole(mut self) -> Self {
        let mixed = self.mixed.as_ref().map(|_| "its archives may belong to several groups".to_owned());
        if let Some(why) = self.kept_whole.clone().or(mixed) {
            let why = KeepReason::NotOurs(why);
            let goes = self.archives.iter_mut().filter(|decided| decided.verdict == PruneDecision::Remove);
            goes.for_each(|decided| decided.verdict = PruneDecision::Keep(vec![why.clone()]));
        }
        self
    }

    /// Whether an archive of it is to go.
    fn loses(&self) -> bool {
        self.archives.iter().any(|decided| decided.verdict == PruneDecision::Remove)
    }

    /// As it is told, before anything is removed.
    fn group(&self, failure: Option<PruneFailure>) -> GroupReport {
        let archives = self.archives.iter().map(|decided| entry(&decided.found, &decided.verdict));
        let paths = match &self.key {
            GroupKey::Images(_, paths) => paths.clone(),
            GroupKey::Domain(_) | GroupKey::Label(_) => Vec::new(),
        };
        GroupReport {
            name: self.owner.name.clone(),
            uuid: self.owner.uuid,
            paths,
            archives: archives.collect(),
            kept_whole: self.kept_whole.clone(),
            unrecorded: self.unrecorded,
            unverified: self.archives.iter().filter(|decided| decided.counts_alone()).count(),
            failure,
        }
    }
}

fn left_alone(found: &SurveyedArchive) -> PruneDecision {
    let why = match &found.standing {
        Prunable::Yes | Prunable::NotRecorded => String::new(),
        Prunable::No(why) | Prunable::Unreadable(why) => why.clone(),
    };
    PruneDecision::Keep(vec![KeepReason::NotOurs(why)])
}

fn entry(found: &SurveyedArchive, verdict: &PruneDecision) -> PruneEntry {
    let (action, reasons) = match verdict {
        PruneDecision::Keep(reasons) => {
            (PruneAction::Keep, reasons.iter().map(ToString::to_string).collect())
        }
        PruneDecision::Remove => (PruneAction::Remove, Vec::new()),
    };
    PruneEntry {
        archive: found.stored.location.to_string(),
        file: file_name(&found.stored.location),
        created: created(found).map(|time| time.to_string()),
        bytes: found.stored.bytes,
        action,
        reasons,
        failure: None,
    }
}

/// The locks of the domains that lose an archive.
#[derive(Default)]
struct DomainLocks {
    held: Vec<Box<dyn DomainLock>>,
    free: BTreeSet<GroupKey>,
    failures: BTreeMap<GroupKey, PruneFailure>,
}

impl DomainLocks {
    fn take(subjects: &[BackupGroup], catalog: Option<&Catalog>) -> Self {
        let mut locks = Self::default();
        for subject in subjects.iter().filter(|subject| subject.loses()) {
            let lock = subject.owner.uuid.zip(catalog).map(|(uuid, catalog)| catalog.lock(DomainId(uuid)));
            match lock {
                Some(Err(error)) => {
                    let message = format!("nothing of '{}' was removed", subject.owner.name);
                    locks.failures.insert(subject.key.clone(), PruneFailure::from(&error.within(message)));
                    continue;
                }
                Some(Ok(lock)) => locks.held.push(lock),
                None => {}
            }
            locks.free.insert(subject.key.clone());
        }
        locks
    }

    /// Whether nobody else is at work on a subject. One that had nothing to lose at the first look has no
    /// lock, and loses nothing.
    fn has(&self, key: &GroupKey) -> bool {
        self.free.contains(key)
    }
}

/// Removes the archives of groups that are to go.
struct Removal<'a> {
    place: &'a Location,
    destinations: &'a Destinations<'a>,
    /// Why the medium is not asked any more.
    unanswered: Option<PruneFailure>,
}

impl Removal<'_> {
    /// Removes what is to go of a group, increments first. Returns the catalog's names of what is gone.
    fn of(&mut self, group: &BackupGroup, entries: &mut [PruneEntry]) -> Vec<String> {
        let parents = group.parents();
        let depth = |index: &usize| group.id(*index).map_or(0, |id| ancestors(id, &parents).len());
        let mut needed: BTreeSet<Uuid> = BTreeSet::new();
        let mut gone = Vec::new();
        // What rests on nothing goes together, an increment alone: what it rests on may have to stay.
        for some in group.leaving(&parents).chunk_by(|one, next| depth(one) == 0 && depth(next) == 0) {
            let (kept, leaving): (Vec<usize>, Vec<usize>) =
                some.iter().partition(|index| group.id(**index).is_some_and(|id| needed.contains(&id)));
            for index in kept {
                let Some(entry) = entries.get_mut(index) else { continue };
                entry.action = PruneAction::Keep;
                entry.reasons.push("an increment that depends on it could not be removed".to_owned());
            }
            let failures = self.remove(group, &leaving);
            for (index, failure) in leaving.into_iter().zip(failures) {
                let (Some(decided), Some(entry)) = (group.archives.get(index), entries.get_mut(index)) else {
                    continue;
                };
                match failure {
                    None => {
                        entry.action = PruneAction::Removed;
                        gone.extend(decided.found.name.clone());
                    }
                    Some(failure) => {
                        entry.failure = Some(failure);
                        needed.extend(
                            group.id(index).map(|own| ancestors(own, &parents)).into_iter().flatten(),
                        );
                    }
                }
            }
        }
        gone
    }

    /// Removes some archives of a group; why one is not gone. A medium that does not answer is not asked
    /// again.
    fn remove(&mut self, group: &BackupGroup, which: &[usize]) -> Vec<Option<PruneFailure>> {
        let stored = which.iter().filter_map(|index| group.archives.get(*index));
        let stored: Vec<StoredArchive> = stored.map(|decided| decided.found.stored.clone()).collect();
        let mut failures = Vec::with_capacity(stored.len());
        if self.unanswered.is_none() && !stored.is_empty() {
            let asked = self.destinations.remove(self.place, &stored, &mut |done| {
                failures.push(done.as_ref().err().map(PruneFailure::from));
            });
            self.unanswered = asked.err().as_ref().map(PruneFailure::from);
        }
        failures.resize(stored.len(), self.unanswered.clone());
        failures
    }
}

/// What an archive rests on, all the way down. Heads may form a circle.
fn ancestors(id: Uuid, parents: &BTreeMap<Uuid, Uuid>) -> BTreeSet<Uuid> {
    let mut found = BTreeSet::new();
    let mut next = parents.get(&id);
    while let Some(parent) = next {
        if !found.insert(*parent) {
            break;
        }
        next = parents.get(parent);
    }
    found
}

/// Notes that those of this host's copies are gone that are not at the place any more.
fn note_gone(request: &PruneRequest<'_>, seen: &BTreeSet<String>, catalog: &Catalog) -> Result<()> {
    let known = catalog.copies_at(&request.destinations.name(request.place)?)?.into_iter();
    let gone = known.filter(|copy| copy.host == request.host.name && !seen.contains(&copy.name));
    let gone: Vec<String> = gone.map(|copy| copy.name).collect();
    if gone.is_empty() { Ok(()) } else { catalog.gone(&gone, request.now) }
}

#[cfg(test)]
#[path = "removal_tests.rs"]
mod tests;
