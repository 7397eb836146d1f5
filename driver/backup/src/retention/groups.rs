//! Which archives are backups of one thing, and where that can't be told.
//!
//! - Of a domain: its uuid, for names change; its name where the head has no uuid.
//! - Of images that a person named (`--label`): that name. Where their paths differ, two things may have got
//!   one name: nothing goes, unless a person
//!   says that they are one.
//! - Of other images: their paths and their name. Older archives don't say the paths: any image of that file
//!   name may be in them, so they are left alone.
//! - An archive is this host's by the host's id; where its head has none, by the host's name. Where another
//!   host of that name has archives of the
//!   same thing there, nothing goes.
//!
//! Imports: see the room.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::policy::{Prunable, VerifyStanding};
use super::report::PruneFailure;
use super::survey::{ArchiveFacts, SurveyedArchive};
use virtfold_base::error::ErrorKind;
use virtfold_catalog::{BackupCopy, Owner, Source, VerifyOutcome};

/// A host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostIdentity {
    /// What it is called.
    pub name: String,
    /// What tells it from others of that name.
    pub id: Option<String>,
}

/// Whether labelled images whose paths differ are one subject.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathPolicy {
    /// Nobody says so: nothing of theirs goes.
    #[default]
    MustAgree,
    /// A person does: they were moved.
    MayDiffer,
}

/// What makes two archives of one subject.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum GroupKey {
    /// A domain's uuid, or its name.
    Domain(String),
    /// What a person calls some images.
    Label(String),
    /// What images are called, and where they are.
    Images(String, Vec<String>),
}

impl GroupKey {
    pub(super) fn of(owner: &Owner, source: &Source) -> Self {
        match (owner.images, owner.uuid) {
            (false, Some(uuid)) => Self::Domain(uuid.to_string()),
            (false, None) => Self::Domain(format!("name {}", owner.name)),
            (true, _) if source.labelled => Self::Label(owner.name.clone()),
            (true, _) => Self::Images(owner.name.clone(), source.paths.clone()),
        }
    }
}

/// Whether two backups are of one thing on one host.
pub(crate) fn is_same_subject(one: (&Owner, &Source), other: (&Owner, &Source)) -> bool {
    one.1.host_id == other.1.host_id && GroupKey::of(one.0, one.1) == GroupKey::of(other.0, other.1)
}

impl HostIdentity {
    /// Whether an archive is of this host. One without an id is, when it has this host's name.
    pub(super) fn made(&self, facts: &ArchiveFacts) -> bool {
        match &facts.source.host_id {
            Some(id) => self.id.as_ref() == Some(id),
            None => facts.host == self.name,
        }
    }

    /// The things of which another host of this name has archives.
    pub(super) fn of_namesakes<'a>(&self, all: impl Iterator<Item = &'a ArchiveFacts>) -> BTreeSet<GroupKey> {
        let others = all.filter(|facts| !self.made(facts) && facts.host == self.name);
        others.map(|facts| GroupKey::of(&facts.owner, &facts.source)).collect()
    }
}

/// Leaves archives alone of which nobody can tell what they are of.
pub(super) fn settle(found: &mut SurveyedArchive) {
    let Some(facts) = &found.facts else { return };
    let unknown = facts.owner.images && !facts.source.labelled && facts.source.paths.is_empty();
    if unknown && found.standing == Prunable::Yes {
        let why =
            "made by an older virtfold, which did not record the image's path: it may be any of that name";
        found.standing = Prunable::No(why.to_owned());
    }
}

/// Of several copies of one archive one counts: one that was verified, where there is one. Copied under other
/// names, the newest archive would push out all others.
pub(super) fn count_once(archives: &mut [SurveyedArchive]) {
    let is_sound =
        |found: &SurveyedArchive| found.verified.as_ref().is_some_and(|v| v.outcome == VerifyOutcome::Sound);
    let mut first: BTreeMap<uuid::Uuid, usize> = BTreeMap::new();
    for (index, found) in archives.iter().enumerate().filter(|(_, found)| found.standing == Prunable::Yes) {
        let Some(facts) = &found.facts else { continue };
        let best = first.entry(facts.id).or_insert(index);
        if is_sound(found) && !archives.get(*best).is_some_and(is_sound) {
            *best = index;
        }
    }
    for (index, found) in archives.iter_mut().enumerate().filter(|(_, found)| found.standing == Prunable::Yes)
    {
        let Some(facts) = &found.facts else { continue };
        if first.get(&facts.id).is_some_and(|best| *best != index) {
            found.standing = Prunable::No("another copy of an archive that counts".to_owned());
        }
    }
}

/// Which of the archives of a group were verified, and which should have been. `since` is when the oldest one
/// was made that ever was, gone ones included.
pub(super) fn verify_standing(found: &SurveyedArchive, since: Option<Timestamp>) -> VerifyStanding {
    let created = found.facts.as_ref().map(|facts| facts.created);
    match (&found.verified, since, created) {
        (Some(done), ..) if done.outcome == VerifyOutcome::Sound => VerifyStanding::Sound,
        (_, Some(since), Some(created)) if since < created => VerifyStanding::Overdue,
        _ => VerifyStanding::Unverified,
    }
}

/// When the oldest archive of each group was made that was sound when it was verified.
pub(super) fn verified_since(copies: &[BackupCopy]) -> BTreeMap<GroupKey, Timestamp> {
    let mut since: BTreeMap<GroupKey, Timestamp> = BTreeMap::new();
    for copy in copies {
        let oldest = since.entry(GroupKey::of(&copy.owner, &copy.source)).or_insert(copy.created);
        *oldest = copy.created.min(*oldest);
    }
    since
}

/// Why nothing of a subject goes: its archives may belong to several groups.
pub(super) fn mixed(
    archives: &[SurveyedArchive],
    host: &HostIdentity,
    namesakes: &BTreeSet<GroupKey>,
    paths: PathPolicy,
) -> Option<PruneFailure> {
    let all = || archives.iter().filter_map(|found| found.facts.as_ref());
    let first = all().next()?;
    let key = GroupKey::of(&first.owner, &first.source);
    let name = &first.owner.name;
    let refusal = |sentence: String, hint: String| {
        Some(PruneFailure { sentence, hint: Some(hint), kind: ErrorKind::Refused })
    };
    if let Some(of) = all().find(|facts| facts.source.host_id.is_none()).filter(|_| namesakes.contains(&key))
    {
        let sentence = format!(
            "nothing of '{name}' was removed: two hosts called '{}' have archives of it there, and that of {} does not say which one made it",
            host.name, of.created
        );
        let hint = "remove old archives yourself; give each host its own name and directory";
        return refusal(sentence, hint.to_owned());
    }
    let mut places: BTreeMap<&[String], &ArchiveFacts> = BTreeMap::new();
    for facts in all() {
        places.entry(facts.source.paths.as_slice()).or_insert(facts);
    }
    let mut differ = places.into_keys().map(|paths| paths.join(", "));
    let (Some(one), Some(other), PathPolicy::MustAgree, GroupKey::Label(_)) =
        (differ.next(), differ.next(), paths, key)
    else {
        return None;
    };
    let sentence = format!("nothing of '{name}' was removed: its archives are of '{one}' and of '{other}'");
    let hint =
        "if these are different images, give each its own --label; if they were moved, use 'prune --moved'";
    refusal(sentence, hint.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtfold_catalog::Owner;

    fn found(source: Source) -> SurveyedArchive {
        let owner = Owner { uuid: None, name: "disk".to_owned(), images: true };
        let facts = ArchiveFacts {
            id: uuid::Uuid::nil(),
            owner,
            source,
            host: "h".to_owned(),
            created: jiff::Timestamp::UNIX_EPOCH,
            parent: None,
        };
        let location = std::path::PathBuf::from("/a").into();
        let stored = virtfold_medium::process::StoredArchive { location, bytes: 1 };
        SurveyedArchive {
            stored,
            name: None,
            facts: Some(facts),
            standing: Prunable::Yes,
            encrypted: false,
            verified: None,
            doubt: None,
            named: None,
        }
    }

    #[test]
    fn images_that_may_be_any_of_their_name_are_left_alone() {
        let mut unknown = found(Source::default());
        settle(&mut unknown);
        assert!(matches!(unknown.standing, Prunable::No(_)));
        let mut known = found(Source { paths: vec!["/vm/disk.raw".to_owned()], ..Source::default() });
        settle(&mut known);
        assert_eq!(known.standing, Prunable::Yes);
    }
}
