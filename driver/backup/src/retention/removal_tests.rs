//! What a prune removes, in which order, and what it keeps where a removal fails.

use super::super::survey::ArchiveFacts;
use super::*;

#[test]
fn what_can_t_be_removed_keeps_what_it_rests_on_and_the_others_go() {
    let folder = tempfile::tempdir().unwrap();
    let owner = Owner { uuid: None, name: "web".to_owned(), images: true };
    let decided = |id: u128, parent: Option<u128>, bytes: u64| {
        let path = folder.path().join(id.to_string());
        std::fs::write(&path, b"12345").unwrap();
        let facts = ArchiveFacts {
            id: Uuid::from_u128(id),
            owner: owner.clone(),
            source: virtfold_catalog::Source::default(),
            host: "h1".to_owned(),
            created: Timestamp::UNIX_EPOCH,
            parent: parent.map(Uuid::from_u128),
        };
        let found = SurveyedArchive {
            name: Some(path.display().to_string()),
            stored: StoredArchive { location: path.into(), bytes },
            facts: Some(facts),
            standing: Prunable::Yes,
            encrypted: false,
            verified: None,
            doubt: None,
            named: None,
        };
        DecidedArchive { found, verdict: PruneDecision::Remove }
    };
    // The second one is not what was looked at.
    let archives = vec![decided(3, None, 5), decided(2, Some(1), 4), decided(1, None, 5)];
    let key = GroupKey::of(&owner, &virtfold_catalog::Source::default());
    let subject =
        BackupGroup { key, owner: owner.clone(), mixed: None, kept_whole: None, unrecorded: 0, archives };
    let mut entries = subject.group(None).archives;
    let place = Location::from(folder.path());
    let destinations = Destinations::local([place.clone()]);
    let mut removal = Removal { place: &place, destinations: &destinations, unanswered: None };
    let gone = removal.of(&subject, &mut entries);
    assert_eq!(gone.len(), 1);
    let actions: Vec<PruneAction> = entries.iter().map(|entry| entry.action).collect();
    assert_eq!(actions, [PruneAction::Removed, PruneAction::Remove, PruneAction::Keep]);
    let failure = entries[1].failure.as_ref().unwrap();
    assert!(failure.sentence.contains(&entries[1].archive), "{}", failure.sentence);
    let there: Vec<bool> = ["1", "2", "3"].iter().map(|name| folder.path().join(name).exists()).collect();
    assert_eq!(there, [true, true, false]);
}

/// A medium that has answered no more.
struct Silent(std::cell::Cell<u32>);

impl crate::destinations::MediumAccess for &Silent {
    fn open(
        &self,
        to: crate::destinations::Destination<'_>,
        _: virtfold_medium::process::MediumRequest,
    ) -> Result<virtfold_medium::process::MediumReply> {
        self.0.set(self.0.get() + 1);
        let what = format!("'{}' does not answer", to.location);
        Err(virtfold_base::error::Error::new(virtfold_base::error::ErrorKind::Io, what))
    }
}

/// Each question takes minutes then, and the locks of domains are held meanwhile.
#[test]
fn a_medium_that_does_not_answer_is_asked_once() {
    let place = Location::from(std::path::Path::new("/nowhere"));
    let silent = Silent(std::cell::Cell::new(0));
    let destinations = Destinations::new(vec![place.clone()], &silent, &Default::default());
    let mut removal = Removal { place: &place, destinations: &destinations, unanswered: None };
    let owner = Owner { uuid: None, name: "web".to_owned(), images: true };
    for id in 1..3 {
        let found = SurveyedArchive {
            name: None,
            stored: StoredArchive { location: place.clone(), bytes: id },
            facts: None,
            standing: Prunable::Yes,
            encrypted: false,
            verified: None,
            doubt: None,
            named: None,
        };
        let archives = vec![DecidedArchive { found, verdict: PruneDecision::Remove }];
        let key = GroupKey::of(&owner, &virtfold_catalog::Source::default());
        let group =
            BackupGroup { key, owner: owner.clone(), mixed: None, kept_whole: None, unrecorded: 0, archives };
        let mut entries = group.group(None).archives;
        assert!(removal.of(&group, &mut entries).is_empty());
        let failure = entries[0].failure.as_ref().unwrap();
        assert!(failure.sentence.contains("does not answer"), "{}", failure.sentence);
    }
    assert_eq!(silent.0.get(), 1);
}

#[test]
fn circles_end() {
    let id = Uuid::from_u128;
    let parents = BTreeMap::from([(id(1), id(2)), (id(2), id(3)), (id(3), id(2))]);
    assert_eq!(ancestors(id(1), &parents).len(), 2);
}
