//! Which archive a backup continues.
//!
//! It is the newest one of the same subject and host that every destination has, by the catalog and by a
//! look at the place: what lies there under its name is still it. So no increment goes where its parent is
//! not. Nothing here fails a backup: where no parent is found the backup is full, with the reason.

use std::collections::BTreeSet;
use std::path::Path;

use uuid::Uuid;

use super::BlockState;
use crate::destinations::Destinations;
use crate::inspect::ArchiveStatus;
use crate::known_copy::KnownCopy;
use crate::options::{BackupKindRule, BackupOptions};
use crate::retention::is_same_subject;
use virtfold_archive::layout::Layout;
use virtfold_archive::manifest;
use virtfold_base::error::{Error, ErrorKind, Result, sentence};
use virtfold_catalog::{BackupCopy, Catalog, Owner, Source, VerifyOutcome};
use virtfold_medium::Location;

/// The archive that a backup continues.
#[derive(Debug)]
pub struct Parent {
    /// The blocks after it.
    pub state: BlockState,
}

impl Parent {
    /// Whether it has a disk of this name.
    pub(crate) fn knows(&self, target: &str) -> bool {
        self.state.disk(target).is_some()
    }

    /// As an archive's head names it.
    pub(crate) fn note(&self) -> manifest::Parent {
        manifest::Parent { id: self.state.head.archive, root: self.state.head.root.clone() }
    }
}

/// The parent, or why there is none.
#[derive(Debug)]
pub enum ParentChoice {
    /// The backup continues it.
    Of(Box<Parent>),
    /// It is full, because a full one was asked for, or for this reason.
    Full(Option<String>),
}

impl ParentChoice {
    /// The parent, where there is one.
    pub fn parent(&self) -> Option<&Parent> {
        match self {
            Self::Of(parent) => Some(parent),
            Self::Full(_) => None,
        }
    }
}

/// Whose parent is looked for.
#[derive(Clone, Debug)]
pub(crate) struct ParentQuery<'a> {
    pub(crate) owner: Owner,
    pub(crate) source: Source,
    pub(crate) options: &'a BackupOptions,
    pub(crate) state_dir: &'a Path,
}

/// Finds the archive that a backup continues.
pub(crate) fn choose_parent(query: &ParentQuery<'_>, destinations: &Destinations<'_>) -> ParentChoice {
    if query.options.kind == BackupKindRule::Full {
        return ParentChoice::Full(None);
    }
    match look_for(query, destinations) {
        Ok(Ok(parent)) => ParentChoice::Of(Box::new(parent)),
        Ok(Err(why)) => ParentChoice::Full(Some(why)),
        Err(error) => ParentChoice::Full(Some(sentence(&error))),
    }
}

/// The parent, or why there is none.
fn look_for(
    query: &ParentQuery<'_>,
    destinations: &Destinations<'_>,
) -> Result<std::result::Result<Parent, String>> {
    if query.options.layout == Layout::Full {
        return Ok(Err("--layout full copies every block".to_owned()));
    }
    let Some(catalog) = Catalog::open_existing(query.state_dir)? else {
        return Ok(Err("no earlier backup is known".to_owned()));
    };
    let Some(copies) = newest(query, &catalog, destinations)? else {
        return Ok(Err(match destinations.locations() {
            [_] => "there is no earlier backup of it that it can continue".to_owned(),
            _ => "no earlier backup of it is at all destinations".to_owned(),
        }));
    };
    let Some(first) = copies.first() else { return Ok(Err("no destination is given".to_owned())) };
    for (copy, location) in copies.iter().zip(destinations.locations()) {
        if let Some(why) = is_missing(copy, location, &catalog, destinations)? {
            return Ok(Err(format!("its last backup '{}' {why}", copy.name)));
        }
    }
    let state = match BlockState::open(query.state_dir, first.archive) {
        Ok(Some(state)) if Some(&state.head.root) == first.root.as_ref() => state,
        Ok(_) => return Ok(Err(format!("this host does not know the blocks of '{}' any more", first.name))),
        Err(error) => return Ok(Err(sentence(&error))),
    };
    if state.head.depth >= query.options.max_chain {
        return Ok(Err(format!("its chain has {} archives (max-chain)", state.head.depth)));
    }
    Ok(Ok(Parent { state }))
}

/// The copies of the newest archive that all destinations have, in their order.
fn newest(
    query: &ParentQuery<'_>,
    catalog: &Catalog,
    destinations: &Destinations<'_>,
) -> Result<Option<Vec<BackupCopy>>> {
    let mut places = Vec::new();
    for location in destinations.locations() {
        if *location == Location::Pipe {
            return Ok(None);
        }
        let place = destinations.name(location)?;
        let damaged = damaged(catalog, &place)?;
        let counts = |copy: &BackupCopy| {
            let full = query.options.kind != BackupKindRule::Differential || copy.parent.is_none();
            full && copy.root.is_some()
                && !damaged.contains(&copy.name)
                && is_same_subject((&query.owner, &query.source), (&copy.owner, &copy.source))
        };
        places.push(catalog.copies_at(&place)?.into_iter().filter(counts).collect::<Vec<_>>());
    }
    let Some((first, others)) = places.split_first() else { return Ok(None) };
    let in_all = |copy: &&BackupCopy| others.iter().all(|place| find(place, copy).is_some());
    // Of archives of one second the last one that no other of them continues.
    let parents: BTreeSet<Uuid> = first.iter().filter(in_all).filter_map(|copy| copy.parent).collect();
    let age = |copy: &&BackupCopy| (copy.created, !parents.contains(&copy.archive));
    let newest = first.iter().filter(in_all).max_by_key(age);
    Ok(newest.map(|newest| places.iter().filter_map(|place| find(place, newest).cloned()).collect()))
}

fn find<'c>(place: &'c [BackupCopy], wanted: &BackupCopy) -> Option<&'c BackupCopy> {
    place.iter().find(|copy| copy.archive == wanted.archive && copy.root == wanted.root)
}

/// Archives of a place that were damaged when they were last verified.
fn damaged(catalog: &Catalog, place: &str) -> Result<BTreeSet<String>> {
    let all = catalog.verifications(place)?.into_iter();
    Ok(all.filter(|(_, done)| done.outcome != VerifyOutcome::Sound).map(|(name, _)| name).collect())
}

/// Why a copy that the catalog knows is not the one at its location. On a tape the catalog's word counts:
/// nobody winds a tape for that.
fn is_missing(
    copy: &BackupCopy,
    location: &Location,
    catalog: &Catalog,
    destinations: &Destinations<'_>,
) -> Result<Option<String>> {
    if matches!(location, Location::Tape(_)) {
        return Ok(None);
    }
    let archive: Location = copy.name.parse().map_err(|_| {
        Error::new(ErrorKind::Internal, format!("the catalog's name '{}' is none of a location", copy.name))
    })?;
    let mut found = match destinations.glance(location, &archive) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Some("is not there".to_owned())),
        found => found?,
    };
    KnownCopy::at(catalog, &archive)?.judge(&mut found);
    Ok(match found.status {
        ArchiveStatus::Complete | ArchiveStatus::Encrypted => None,
        status => Some(format!("is {status}")),
    })
}

/// Whose state is kept: of the archives at a destination the newest of each subject, and its newest full
/// one.
pub(crate) fn needed(catalog: &Catalog, made: Uuid) -> Result<BTreeSet<Uuid>> {
    let mut needed: BTreeSet<Uuid> = catalog.newest_copies()?.into_iter().collect();
    needed.insert(made);
    Ok(needed)
}
