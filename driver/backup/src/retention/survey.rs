//! What there is at a place, and what of it may be decided on.
//!
//! An archive is recognised when all of this is so: it is a regular file or an object; its head can be read,
//! or the catalog knows it by name and size; it is whole; this host made it; its name is the one that
//! virtfold gave it, with the time and the id of its head. A file that a person has renamed is that person's.
//! It counts when the catalog knows it, too, and it did not fail its last verification.
//!
//! Imports: see the room.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use jiff::Timestamp;
use uuid::Uuid;

use super::policy::Prunable;
use crate::destinations::Destinations;
use crate::inspect::{ArchiveStatus, ArchiveSummary, ListedArchive};
use crate::known_copy::judge_all;
use crate::session::BackupReport;
use crate::trust::{SignatureRequirement, TrustPolicy};
use virtfold_archive::manifest::{BackupSubject, Manifest};
use virtfold_base::error::{Error, ErrorKind, OrInternal, Result};
use virtfold_catalog::{BackupCopy, Catalog, Owner, Source, Verification, VerifyOutcome};
use virtfold_medium::process::StoredArchive;
use virtfold_medium::{Location, TapeAddress, TapeArchive};

/// How a time is written in an archive's name.
const STAMP: &str = "%Y%m%dT%H%M%SZ";

/// An archive at a place.
#[derive(Clone, Debug)]
pub(super) struct SurveyedArchive {
    pub(super) stored: StoredArchive,
    /// Its name in the catalog; nothing where the catalog can't hold it.
    pub(super) name: Option<String>,
    /// What it is of, as far as that is known.
    pub(super) facts: Option<ArchiveFacts>,
    pub(super) standing: Prunable,
    /// Whether it is encrypted.
    pub(super) encrypted: bool,
    /// What its last verification came to.
    pub(super) verified: Option<Verification>,
    /// Why it is not known to be of who it says, where that is asked for.
    pub(super) doubt: Option<String>,
    /// What its name says, where it is one that virtfold gives.
    pub(super) named: Option<ParsedName>,
}

/// What a head says, or the catalog in its place.
#[derive(Clone, Debug)]
pub(super) struct ArchiveFacts {
    pub(super) id: Uuid,
    pub(super) owner: Owner,
    pub(super) source: Source,
    pub(super) host: String,
    pub(super) created: Timestamp,
    pub(super) parent: Option<Uuid>,
}

/// The parts of a name that virtfold gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ParsedName {
    /// The subject's name, as far as a file's name can hold it.
    pub(super) label: String,
    pub(super) created: Timestamp,
    /// The first eight digits of the id.
    pub(super) id: String,
}

/// Takes a name apart: `LABEL-YYYYMMDDTHHMMSSZ-ID8.tar[.zst][.age]`.
pub(super) fn named(file: &str) -> Option<ParsedName> {
    let stem =
        [".tar.zst.age", ".tar.age", ".tar.zst", ".tar"].iter().find_map(|end| file.strip_suffix(end))?;
    let (rest, id) = stem.rsplit_once('-')?;
    let (label, stamp) = rest.rsplit_once('-')?;
    let time = jiff::civil::DateTime::strptime(STAMP, stamp).ok()?;
    let created = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
    let fits =
        id.len() == 8 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) && !label.is_empty();
    let exact = created.strftime(STAMP).to_string() == stamp;
    (fits && exact).then(|| ParsedName { label: label.to_owned(), created, id: id.to_owned() })
}

/// The last part of an archive's name.
pub(super) fn file_name(location: &Location) -> String {
    match location {
        Location::Path(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        Location::Object(address) => address.key.rsplit('/').next().unwrap_or_default().to_owned(),
        Location::Pipe | Location::Tape(_) => String::new(),
    }
}

/// What an archive's head says it is of.
pub(crate) fn owner(subject: &BackupSubject) -> Owner {
    match subject {
        BackupSubject::Domain { name, uuid } => Owner { uuid: *uuid, name: name.clone(), images: false },
        BackupSubject::Images { name, .. } => Owner { uuid: None, name: name.clone(), images: true },
    }
}

/// What an archive's head says of where that comes from.
pub(crate) fn source(subject: &BackupSubject, host_id: Option<&str>) -> Source {
    let (labelled, paths) = match subject {
        BackupSubject::Domain { .. } => (false, Vec::new()),
        BackupSubject::Images { labelled, paths, .. } => (*labelled, paths.clone()),
    };
    Source { host_id: host_id.map(ToOwned::to_owned), labelled, paths }
}

fn facts(head: &Manifest) -> Result<ArchiveFacts> {
    let second = i64::try_from(head.time()?).unwrap_or(i64::MAX);
    let created = Timestamp::from_second(second).map_err(|e| {
        Error::new(ErrorKind::Damaged, "the time in the archive's head is out of range").with_source(e)
    })?;
    Ok(ArchiveFacts {
        id: head.archive,
        owner: owner(&head.subject),
        source: source(&head.subject, head.host_id.as_deref()),
        host: head.host.clone(),
        created,
        parent: head.parent.as_ref().map(|parent| parent.id),
    })
}

/// Surveys all archives at `place` that this host may have made. The catalog, where there is one, says what
/// encrypted heads can't.
///
/// # Errors
/// The destination or the catalog can't be read.
pub(super) fn look(
    destinations: &Destinations<'_>,
    place: &Location,
    host: &str,
    catalog: Option<&Catalog>,
    trust: &TrustPolicy,
) -> Result<Vec<SurveyedArchive>> {
    let mut listed = destinations.list(&narrowed(place, host))?;
    let mut verified = BTreeMap::new();
    if let Some(catalog) = catalog {
        let name = destinations.name(place)?;
        judge_all(catalog, &name, &mut listed)?;
        verified = catalog.verifications(&name)?;
    }
    listed.into_iter().map(|listed| found(listed, catalog, &mut verified, trust)).collect()
}

/// In an object store each host has its own folder, and nobody else's has to be read.
fn narrowed(place: &Location, host: &str) -> Location {
    match place {
        Location::Object(address) => Location::Object(virtfold_medium::object::host_folder(address, host)),
        other => other.clone(),
    }
}

fn found(
    listed: ListedArchive,
    catalog: Option<&Catalog>,
    verified: &mut BTreeMap<String, Verification>,
    trust: &TrustPolicy,
) -> Result<SurveyedArchive> {
    let glance = &listed.summary;
    let named = named(&file_name(&listed.stored.location));
    let (facts, standing) = match (&glance.head, glance.status) {
        (Some(head), ArchiveStatus::Complete) => (Some(facts(head)?), Prunable::Yes),
        (Some(head), _) => (facts(head).ok(), Prunable::No(words(glance))),
        (None, ArchiveStatus::Encrypted) => match known(&listed, catalog)? {
            Some(facts) => (Some(facts), Prunable::Yes),
            None => {
                let why = "encrypted, and not in the catalog: use --identity, or record it with 'virtfold list --remember'";
                (None, Prunable::Unreadable(why.to_owned()))
            }
        },
        // Nobody vouches for an archive that has no end and no head: nothing is lost with what it would have
        // rested on.
        (None, ArchiveStatus::Incomplete) => (None, Prunable::No(words(glance))),
        (None, _) => (None, Prunable::Unreadable(words(glance))),
    };
    let verified = listed.name.as_ref().and_then(|name| verified.remove(name));
    let standing = match (&facts, standing) {
        (Some(facts), Prunable::Yes) => match name_fits(&listed, facts, named.as_ref()) {
            Prunable::Yes if !is_recorded(&listed, facts, catalog)? => Prunable::NotRecorded,
            Prunable::Yes => last_verification(verified.as_ref()),
            standing => standing,
        },
        (_, standing) => standing,
    };
    let ListedArchive { stored, name, summary, .. } = listed;
    Ok(SurveyedArchive {
        stored,
        name,
        facts,
        standing,
        encrypted: summary.encrypted,
        verified,
        doubt: doubt(&summary, trust),
        named,
    })
}

/// Why an archive is not known to be of who it says, where signatures are required. Of one that no identity
/// opens nobody can say.
fn doubt(summary: &ArchiveSummary, trust: &TrustPolicy) -> Option<String> {
    let is_asked = trust.requirement == SignatureRequirement::Required;
    let found = (is_asked && summary.status == ArchiveStatus::Complete)
        .then(|| trust.judge(summary.signature.as_ref()))?;
    (!found.is_authentic()).then(|| found.to_string())
}

/// Whether the catalog knows an archive: under its name, where it was compared already, or as a copy of one
/// elsewhere, by id and root.
fn is_recorded(listed: &ListedArchive, facts: &ArchiveFacts, catalog: Option<&Catalog>) -> Result<bool> {
    let Some(catalog) = catalog else { return Ok(false) };
    if let Some(name) = &listed.name
        && catalog.copy(name)?.is_some()
    {
        return Ok(true);
    }
    let root = listed.summary.root.as_ref();
    Ok(root.is_some() && catalog.copies_of(facts.id)?.iter().any(|copy| copy.root.as_ref() == root))
}

/// One that failed its last verification is no backup to rely on.
fn last_verification(verified: Option<&Verification>) -> Prunable {
    match verified.filter(|done| done.outcome == VerifyOutcome::Failed) {
        Some(done) => Prunable::No(format!("failed its verification of {}", done.checked.strftime(STAMP))),
        None => Prunable::Yes,
    }
}

/// A whole archive is ours to remove under the name that it was given, and as the file itself.
fn name_fits(listed: &ListedArchive, facts: &ArchiveFacts, named: Option<&ParsedName>) -> Prunable {
    let id = facts.id.simple().to_string();
    let fits = named.is_some_and(|named| id.starts_with(&named.id) && named.created == facts.created);
    if !fits {
        return Prunable::No("renamed".to_owned());
    }
    if listed.is_regular { Prunable::Yes } else { Prunable::No("not a regular file".to_owned()) }
}

fn words(glance: &ArchiveSummary) -> String {
    match (glance.status, glance.faults.first()) {
        // Its fault says so.
        (ArchiveStatus::Replaced, _) => glance.faults.join("; "),
        (status, Some(fault)) => format!("{status}: {fault}"),
        (status, None) => status.to_string(),
    }
}

/// Whether an archive that can't be opened is the one that the catalog knows under its name. Another size is
/// another archive.
fn is_same(copy: &BackupCopy, bytes: u64) -> bool {
    copy.encrypted && copy.bytes == bytes
}

/// What the catalog knows of an archive that can't be opened.
fn known(listed: &ListedArchive, catalog: Option<&Catalog>) -> Result<Option<ArchiveFacts>> {
    let (Some(catalog), Some(name)) = (catalog, &listed.name) else { return Ok(None) };
    let copy = catalog.copy(name)?.filter(|copy| is_same(copy, listed.stored.bytes));
    Ok(copy.map(|copy| ArchiveFacts {
        id: copy.archive,
        owner: copy.owner,
        source: copy.source,
        host: copy.host,
        created: copy.created,
        parent: copy.parent,
    }))
}

/// What the catalog was told of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CatalogFillReport {
    /// Whole archives there that it knows now.
    pub known: usize,
    /// Encrypted ones that it does not know.
    pub unread: usize,
    /// Those that are not what it knows under their names: they change nothing of that.
    pub replaced: usize,
}

/// Notes the whole archives of a place in the catalog, of whatever host, as far as their heads can be read;
/// and that those are gone which are not there. One that was replaced stays what it was in the catalog.
/// `listed` is all that is there, `place` what the catalog calls it.
///
/// # Errors
/// A name is none that the catalog can hold; the catalog can't be read or written.
pub fn fill_catalog(
    place: &str,
    listed: &mut [ListedArchive],
    catalog: &Catalog,
) -> Result<CatalogFillReport> {
    judge_all(catalog, place, listed)?;
    let mut copies = Vec::new();
    let (mut unread, mut replaced) = (0, 0);
    let mut seen = BTreeSet::new();
    for ListedArchive { stored, name, summary: glance, .. } in &*listed {
        let name = name.clone().ok_or_else(|| no_name(&stored.location))?;
        seen.insert(name.clone());
        match (&glance.head, glance.status) {
            (Some(head), ArchiveStatus::Complete) => {
                let (bytes, root) = (glance.bytes, glance.root.clone());
                let stored = StoredBytes { bytes, root, encrypted: glance.encrypted };
                copies.push(facts(head)?.copy(name, place, stored));
            }
            (_, ArchiveStatus::Encrypted) => {
                match catalog.copy(&name)?.filter(|copy| is_same(copy, glance.bytes)) {
                    Some(copy) => copies.push(copy),
                    None => unread += 1,
                }
            }
            (_, ArchiveStatus::Replaced) => replaced += 1,
            _ => {}
        }
    }
    let known = catalog.copies_at(place)?;
    let gone =
        known.into_iter().map(|copy| copy.name).filter(|name| !seen.contains(name)).collect::<Vec<_>>();
    catalog.remember(&copies)?;
    catalog.gone(&gone, Timestamp::now())?;
    Ok(CatalogFillReport { known: copies.len(), unread, replaced })
}

fn no_name(location: &Location) -> Error {
    let message = format!("'{location}' is not UTF-8, and the catalog can't hold it");
    Error::new(ErrorKind::Usage, message).with_hint("rename the directory")
}

/// What the medium has of an archive.
struct StoredBytes {
    bytes: u64,
    root: Option<String>,
    encrypted: bool,
}

impl ArchiveFacts {
    /// The catalog's row of the copy that is called `name`, at the destination `place`.
    fn copy(self, name: String, place: &str, stored: StoredBytes) -> BackupCopy {
        BackupCopy {
            name,
            place: place.to_owned(),
            archive: self.id,
            owner: self.owner,
            source: self.source,
            host: self.host,
            created: self.created,
            parent: self.parent,
            bytes: stored.bytes,
            root: stored.root,
            encrypted: stored.encrypted,
            job: None,
        }
    }
}

/// What the catalog is told of a backup: each good copy on a medium that keeps it.
///
/// # Errors
/// A copy's name is none that the catalog can hold; those of [`Destinations::name`].
pub fn copies(
    report: &BackupReport,
    destinations: &Destinations<'_>,
    job: Option<&str>,
) -> Result<Vec<BackupCopy>> {
    let named = |place: &Location| -> Option<String> {
        // Where there are several, each says for itself what became of it.
        if report.copies.is_empty() {
            return Some(report.archive.clone());
        }
        let to = place.to_string();
        report.copies.iter().find(|copy| copy.to == to).and_then(|copy| copy.archive.clone())
    };
    let copy = |place: &Location| -> Option<Result<BackupCopy>> {
        let archive = named(place).filter(|_| *place != Location::Pipe)?;
        Some(destinations.name(place).and_then(|known| good_copy(report, place, &known, &archive, job)))
    };
    destinations.locations().iter().filter_map(copy).collect()
}

fn good_copy(
    report: &BackupReport,
    place: &Location,
    known: &str,
    archive: &str,
    job: Option<&str>,
) -> Result<BackupCopy> {
    let facts = facts(report.head.as_ref().or_internal("a backup's report has no head")?)?;
    let name = match place {
        // It was made in that directory.
        Location::Path(_) => {
            let name = Path::new(archive).file_name().unwrap_or_default();
            Path::new(known).join(name).display().to_string()
        }
        Location::Tape(tape) => {
            let archive = Some(TapeArchive::Id(report.id.to_string()));
            TapeAddress { archive, ..tape.clone() }.to_string()
        }
        _ => archive.to_owned(),
    };
    let (bytes, root) = (report.archive_bytes, Some(report.root.clone()));
    let stored = StoredBytes { bytes, root, encrypted: report.encrypted };
    Ok(BackupCopy { job: job.map(ToOwned::to_owned), ..facts.copy(name, known, stored) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What nobody that is known has signed counts for no rule where signatures are required.
    #[test]
    fn an_archive_of_nobody_that_is_known_is_doubtful_where_signatures_are_required() {
        use virtfold_archive::sign::{AllowedSigners, ArchiveSignature, ChainLink, SigningKey};
        let key = SigningKey::new("web").unwrap();
        let chain = ChainLink { subject: "s".into(), host: "web".into(), sequence: 1, previous: None };
        let signature = Some(ArchiveSignature { chain, key: key.public() });
        let summary = |status, signature| ArchiveSummary {
            archive: "a".to_owned(),
            status,
            faults: Vec::new(),
            bytes: 1,
            encrypted: false,
            head: None,
            root: None,
            signature,
        };
        let line = AllowedSigners::line("web", &key.public()).unwrap();
        let known = AllowedSigners::parse("k", &line).unwrap();
        let policy = |signers: &AllowedSigners, requirement| TrustPolicy {
            signers: signers.clone(),
            own: None,
            requirement,
        };
        let (optional, required) = (SignatureRequirement::Optional, SignatureRequirement::Required);
        let (whole, nobody) = (ArchiveStatus::Complete, AllowedSigners::default());
        let judged = |signers: &AllowedSigners, requirement, status, signature: &Option<ArchiveSignature>| {
            doubt(&summary(status, signature.clone()), &policy(signers, requirement))
        };
        assert_eq!(judged(&known, required, whole, &signature), None);
        assert_eq!(judged(&known, optional, whole, &signature), None);
        assert!(judged(&nobody, required, whole, &signature).is_some());
        assert_eq!(judged(&known, required, whole, &None), Some("unsigned".to_owned()));
        assert_eq!(judged(&known, optional, whole, &None), None);
        // Encrypted, and not opened: the catalog knows it.
        assert_eq!(judged(&known, required, ArchiveStatus::Encrypted, &None), None);
    }

    #[test]
    fn names_are_taken_apart() {
        let good = named("my-web-20261122T161055Z-e78234c8.tar.zst.age").unwrap();
        assert_eq!((good.label.as_str(), good.id.as_str()), ("my-web", "e78234c8"));
        assert_eq!(good.created.to_string(), "2026-11-22T16:10:55Z");
        for hostile in [
            "web-20261122T161055Z-e78234c8.tar.zst.bak",
            "web-20261122T161055Z-E78234C8.tar",
            "web-20261122T161055Z-e78234c8(1).tar",
            "web-20261322T161055Z-e78234c8.tar",
            "web-20261122T161060Z-e78234c8.tar",
            "web-2026112T161055Z-e78234c8.tar",
            "-20261122T161055Z-e78234c8.tar",
            "20261122T161055Z-e78234c8.tar",
            "web-e78234c8.tar",
            "copy of web-20261122T161055Z-e78234c.tar",
            ".web-20261122T161055Z-e78234c8.tar.zst.1a2b3c4d.partial",
            ".tar",
            "",
        ] {
            assert_eq!(named(hostile), None, "{hostile}");
        }
        assert!(
            named("web\n-20261122T161055Z-e78234c8.tar").is_some(),
            "a line break is a label's, and printed as one"
        );
    }
}
