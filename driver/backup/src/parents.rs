//! The archives that an increment rests on: where they are, and whether they are these.
//!
//! An archive names its parent by id and root digest, never by a file's name. Looked for is, in this order,
//! in what a person gave (`--parent`), where the catalog knows a copy, and in the place of the child: first
//! under names that have the parent's id in them, then under all others. What has the id and another root is
//! not the parent but a replacement, and is passed over and named. The root is checked again when the archive
//! is opened for its bytes; so a signed child vouches for all that it rests on.
//!
//! A chain that has a gap is an error; salvaging, it ends there and says so.
//!
//! Imports: `error`, `archive`, `catalog`, `medium`, and of this crate `inspect`; `restore` and
//! `verify_chain` import it.

use std::path::PathBuf;

use serde::Serialize;
use uuid::Uuid;

use crate::inspect::{self, ArchiveStatus, ArchiveSummary, ListedArchive, root_text};
use virtfold_archive::chain::MAX_CHAIN;
use virtfold_archive::crypt::{ArchiveFile, Identities};
use virtfold_archive::index::{ArchiveIndex, Trust};
use virtfold_archive::manifest::{Manifest, Parent};
use virtfold_base::error::{Error, ErrorKind, Result, sentence};
use virtfold_catalog::{BackupCopy, Catalog};
use virtfold_medium::{self as medium, Location, ObjectAddress};

/// Where parents are looked for beside the child's own place.
#[derive(Clone, Debug, Default)]
pub struct ParentSearch {
    /// Archives that a person names.
    pub given: Vec<Location>,
    /// The directory of the catalog that may know copies.
    pub state: Option<PathBuf>,
}

/// An archive of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChainEntry {
    /// Where it is.
    pub archive: String,
    /// Its id.
    pub id: Uuid,
    /// When it was made.
    pub created: String,
    /// Its bytes.
    pub bytes: u64,
}

/// A parent, opened.
pub(crate) struct FoundParent {
    pub(crate) entry: ChainEntry,
    pub(crate) place: Location,
    pub(crate) source: ArchiveFile,
    expected: Parent,
}

/// The archives below an increment.
pub(crate) struct ParentChain {
    /// The nearest first, down to the full one.
    pub(crate) parents: Vec<FoundParent>,
    /// Why it ends before that, where it does.
    pub(crate) gap: Option<Error>,
}

/// Finds the parents of the archive at `location` whose head is `head`; none of a full one.
///
/// # Errors
/// A place can't be read. Strict: NotFound, where a parent is not there; Damaged, where it is.
pub(crate) fn find(
    location: &Location,
    head: &Manifest,
    identities: &Identities,
    search: &ParentSearch,
    trust: Trust,
) -> Result<ParentChain> {
    let mut looking = Looking { search, identities, catalog: catalog(search), trust, notes: Vec::new() };
    let (mut parents, mut gap) = (Vec::<FoundParent>::new(), None);
    let (mut child, mut wanted) = (location.clone(), head.parent.clone());
    while let Some(parent) = wanted {
        if parents.len() + 1 >= MAX_CHAIN {
            let what = format!("'{location}' rests on more than {MAX_CHAIN} archives");
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        let found = looking.parent(&child, &parent)?;
        let Some((place, summary)) = found else {
            gap = Some(looking.missing(&child, &parent));
            break;
        };
        match opened(&place, &summary, parent, identities) {
            Ok(found) => parents.push(found),
            Err(error) if trust == Trust::Salvage => {
                gap = Some(error);
                break;
            }
            Err(error) => return Err(error),
        }
        wanted = summary.head.and_then(|head| head.parent);
        child = place;
    }
    match gap {
        Some(gap) if trust == Trust::Strict => Err(gap),
        gap => Ok(ParentChain { parents, gap }),
    }
}

/// What an increment rests on, as far as a look tells.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Chain {
    /// The nearest first.
    pub parents: Vec<ChainEntry>,
    /// Why it ends before a full archive, where it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap: Option<String>,
}

/// Looks at what the archive at `location` rests on.
///
/// # Errors
/// A place can't be read.
pub fn chain(
    location: &Location,
    head: &Manifest,
    identities: &Identities,
    search: &ParentSearch,
) -> Result<Chain> {
    let found = find(location, head, identities, search, Trust::Salvage)?;
    let parents = found.parents.into_iter().map(|parent| parent.entry).collect();
    Ok(Chain { parents, gap: found.gap.as_ref().map(|gap| sentence(gap)) })
}

/// Nothing of a catalog that can't be read: the place itself has the archives.
fn catalog(search: &ParentSearch) -> Option<Catalog> {
    let opened = search.state.as_deref().map(Catalog::open_existing)?;
    opened.unwrap_or_else(|error| {
        tracing::warn!(
            "the catalog can't be read, and parents are looked for without it: {}",
            sentence(&error)
        );
        None
    })
}

fn opened(
    place: &Location,
    summary: &ArchiveSummary,
    expected: Parent,
    identities: &Identities,
) -> Result<FoundParent> {
    let source = ArchiveFile::salvage(medium::open(place)?, identities)?;
    let entry = ChainEntry {
        archive: place.to_string(),
        id: expected.id,
        created: summary.head.as_ref().map(|head| head.created.clone()).unwrap_or_default(),
        bytes: source.stored(),
    };
    Ok(FoundParent { entry, place: place.clone(), source, expected })
}

impl FoundParent {
    /// Refuses what is not the parent any more, now that it is open for its bytes. Salvaging, one whose end
    /// is lost is the parent by its id.
    ///
    /// # Errors
    /// Damaged.
    pub(crate) fn check(&self, index: &ArchiveIndex<'_>, trust: Trust) -> Result<()> {
        let root = index.tail().map(|tail| root_text(tail.root));
        let is_same_root = match (&root, trust) {
            (Some(root), _) => *root == self.expected.root,
            (None, trust) => trust == Trust::Salvage,
        };
        if is_same_root && index.head().archive == self.expected.id {
            return Ok(());
        }
        let what =
            format!("'{}' was replaced by another archive while it was being read", self.entry.archive);
        Err(Error::new(ErrorKind::Damaged, what))
    }
}

/// What a place is asked for, and what was passed over there.
struct Looking<'a> {
    search: &'a ParentSearch,
    identities: &'a Identities,
    catalog: Option<Catalog>,
    trust: Trust,
    /// What was passed over, and what it is.
    notes: Vec<(ErrorKind, String)>,
}

/// An archive that is the one that was looked for.
type Match = Option<(Location, ArchiveSummary)>;

impl Looking<'_> {
    fn parent(&mut self, child: &Location, parent: &Parent) -> Result<Match> {
        self.notes.clear();
        for given in &self.search.given {
            let summary = inspect::glance(given, self.identities)?;
            if self.is_it(given, &summary, parent) {
                return Ok(Some((given.clone(), summary)));
            }
        }
        for place in self.known(child, parent)? {
            // What the catalog knows may be gone by now.
            let Ok(summary) = inspect::glance(&place, self.identities) else { continue };
            if self.is_it(&place, &summary, parent) {
                return Ok(Some((place, summary)));
            }
        }
        self.beside(child, parent)
    }

    /// Where the catalog knows copies: those in the child's own place first.
    fn known(&self, child: &Location, parent: &Parent) -> Result<Vec<Location>> {
        let Some(catalog) = &self.catalog else { return Ok(Vec::new()) };
        let copies = catalog.copies_of(parent.id)?;
        let mut places: Vec<Location> = copies.iter().filter_map(place_of).collect();
        let own = folder(child);
        places.sort_by_key(|place| folder(place) != own);
        Ok(places)
    }

    /// In the place of the child.
    fn beside(&mut self, child: &Location, parent: &Parent) -> Result<Match> {
        let Some(folder) = folder(child) else { return Ok(None) };
        let mut found = None;
        let identities = self.identities;
        inspect::list_named(&folder, identities, &id_in_names(parent.id), &mut |listed| {
            self.consider(listed, parent, &mut found);
            Ok(())
        })?;
        if found.is_none() {
            inspect::list(&folder, identities, &mut |listed| {
                self.consider(listed, parent, &mut found);
                Ok(())
            })?;
        }
        Ok(found)
    }

    fn consider(&mut self, listed: ListedArchive, parent: &Parent, found: &mut Match) {
        if found.is_none() && self.is_it(&listed.stored.location, &listed.summary, parent) {
            *found = Some((listed.stored.location, listed.summary));
        }
    }

    /// Whether an archive is the parent, as far as a look at it tells.
    fn is_it(&mut self, place: &Location, summary: &ArchiveSummary, parent: &Parent) -> bool {
        if summary.head.as_ref().is_none_or(|head| head.archive != parent.id) {
            let is_meant =
                self.search.given.contains(place) || place.to_string().contains(&id_in_names(parent.id));
            if summary.status == ArchiveStatus::Encrypted && is_meant {
                let what = format!("'{place}' is encrypted, and no identity that was given opens it");
                self.note(ErrorKind::Locked, what);
            }
            return false;
        }
        match &summary.root {
            Some(root) if *root != parent.root => {
                let what = format!(
                    "'{place}' is not it, though it has its id: its root is {root}, not {}",
                    parent.root
                );
                self.note(ErrorKind::Damaged, what);
                false
            }
            Some(_) if summary.status == ArchiveStatus::Complete => true,
            _ => {
                self.trust == Trust::Salvage || {
                    let what = format!("'{place}' is {}: {}", summary.status, summary.faults.join("; "));
                    self.note(ErrorKind::Damaged, what);
                    false
                }
            }
        }
    }

    fn note(&mut self, kind: ErrorKind, note: String) {
        if !self.notes.iter().any(|(_, known)| *known == note) {
            self.notes.push((kind, note));
        }
    }

    /// The error of a parent that is not there.
    fn missing(&self, child: &Location, parent: &Parent) -> Error {
        let mut what = format!("'{child}' is an increment on archive {}", parent.id);
        let known = self.catalog.as_ref().and_then(|catalog| catalog.copies_of(parent.id).ok());
        if let Some(copy) = known.as_deref().and_then(<[BackupCopy]>::first) {
            what += &format!(" ('{}' of {})", copy.name, copy.created);
        }
        let notes: Vec<&str> = self.notes.iter().map(|(_, note)| note.as_str()).collect();
        what += &match folder(child) {
            _ if !notes.is_empty() => format!(", which can't be used: {}", notes.join("; ")),
            Some(place) => format!(", which is not in '{place}'"),
            None => String::new(),
        };
        what += ". Without it nothing can be had of what did not change since";
        let kind = self.notes.first().map_or(ErrorKind::NotFound, |(kind, _)| *kind);
        Error::new(kind, what).with_hint(
            "give it with --parent where it lies elsewhere; --partial restores what there is, and lists what is lost",
        )
    }
}

/// Where a copy is that can be read at any place.
fn place_of(copy: &BackupCopy) -> Option<Location> {
    let place = Location::parse(copy.name.as_ref()).ok()?;
    matches!(place, Location::Path(_) | Location::Object(_)).then_some(place)
}

/// The id as names of archives have it.
fn id_in_names(id: Uuid) -> String {
    id.simple().to_string().chars().take(8).collect()
}

/// The directory or prefix that an archive is in.
fn folder(archive: &Location) -> Option<Location> {
    match archive {
        Location::Path(path) => {
            let parent = path.parent()?;
            let here = if parent.as_os_str().is_empty() { std::path::Path::new(".") } else { parent };
            Some(Location::from(here))
        }
        Location::Object(address) => {
            let key = address.key.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
            Some(Location::Object(ObjectAddress { bucket: address.bucket.clone(), key }))
        }
        Location::Pipe | Location::Tape(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtfold_archive::layout::BackupKind;
    use virtfold_archive::manifest::{BackupSubject, CompressionNote, VERSION};

    fn summary(id: Uuid, root: &str) -> ArchiveSummary {
        let head = Manifest {
            version: VERSION,
            requires: vec![],
            archive: id,
            created: "2026-11-22T15:04:05Z".into(),
            host: "host1".into(),
            host_id: None,
            tool: "virtfold".into(),
            subject: BackupSubject::Images { name: "set".into(), labelled: false, paths: Vec::new() },
            kind: BackupKind::Full,
            parent: None,
            compression: CompressionNote { method: "none".into(), level: None },
            freeze: None,
            disks: vec![],
        };
        ArchiveSummary {
            archive: "/backup/a.tar".into(),
            status: ArchiveStatus::Complete,
            faults: vec![],
            bytes: 5,
            encrypted: false,
            head: Some(head),
            root: Some(root.into()),
            signature: None,
        }
    }

    /// The id alone is what anybody can write.
    #[test]
    fn another_root_is_another_archive_and_is_named() {
        let (search, identities) = (ParentSearch::default(), Identities::default());
        let parent = Parent { id: Uuid::from_u128(5), root: "ab".repeat(32) };
        for trust in [Trust::Strict, Trust::Salvage] {
            let mut looking =
                Looking { search: &search, identities: &identities, catalog: None, trust, notes: Vec::new() };
            let place = Location::from(std::path::Path::new("/backup/a.tar"));
            assert!(looking.is_it(&place, &summary(parent.id, &parent.root), &parent));
            assert!(!looking.is_it(&place, &summary(Uuid::from_u128(6), &parent.root), &parent));
            assert!(looking.notes.is_empty());
            assert!(!looking.is_it(&place, &summary(parent.id, &"cd".repeat(32)), &parent));
            let error = looking.missing(&place, &parent);
            assert!(error.to_string().contains("though it has its id: its root is cdcd"), "{error}");
            let lost =
                ArchiveSummary { root: None, status: ArchiveStatus::Damaged, ..summary(parent.id, "") };
            assert_eq!(looking.is_it(&place, &lost, &parent), trust == Trust::Salvage);
        }
    }
}
