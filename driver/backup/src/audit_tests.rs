//! Chains that are whole, and each way in which one is not.

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::Control;
use crate::destinations::Destinations;
use crate::options::BackupOptions;
use crate::resume::StateDirectories;
use crate::session::{BackupReport, BackupSession, ImageSpec, ImagesRequest};
use virtfold_archive::crypt::{Identities, Recipients};
use virtfold_archive::sign::{AllowedSigners, SigningKey};
use virtfold_catalog::Catalog;
use virtfold_image::Format;
use virtfold_medium::Location;

/// A host that backs an image up to a directory.
struct Host {
    folder: tempfile::TempDir,
    key: Arc<SigningKey>,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("archives")).unwrap();
        std::fs::write(folder.path().join("a.raw"), [7; 8192]).unwrap();
        Self { folder, key: Arc::new(SigningKey::new("web").unwrap()) }
    }

    fn place(&self) -> Location {
        Location::Path(self.folder.path().join("archives"))
    }

    fn state(&self) -> std::path::PathBuf {
        self.folder.path().join("state")
    }

    fn backup(&self, key: Option<&Arc<SigningKey>>, state: &Path) -> BackupReport {
        self.backup_with(BackupOptions { signing_key: key.cloned(), ..BackupOptions::default() }, state)
    }

    fn backup_with(&self, options: BackupOptions, state: &Path) -> BackupReport {
        let options = BackupOptions { workers: 1, ..options };
        let image = ImageSpec {
            path: self.folder.path().join("a.raw"),
            format: Format::Raw,
            target: "vda".to_owned(),
        };
        let (destinations, control) = (Destinations::local([self.place()]), Control::default());
        let state = StateDirectories::new(state);
        let session = BackupSession {
            options: &options,
            destinations: &destinations,
            state: &state,
            control: &control,
        };
        session.images(&ImagesRequest::of(vec![image])).unwrap()
    }

    fn signed(&self) -> BackupReport {
        self.backup(Some(&self.key), &self.state())
    }

    fn audit(&self, word: &CatalogWord) -> AuditReport {
        let mut listed = Vec::new();
        crate::inspect::list(&self.place(), &Identities::default(), &mut |found| {
            listed.push(found);
            Ok(())
        })
        .unwrap();
        let line = AllowedSigners::line("web", &self.key.public()).unwrap();
        let signers = AllowedSigners::parse("signers", &line).unwrap();
        audit("/archives", &listed, &TrustPolicy { signers, ..TrustPolicy::default() }, word)
    }

    fn kinds(&self, word: &CatalogWord) -> Vec<AuditFaultKind> {
        self.audit(word).subjects.iter().flat_map(|subject| &subject.faults).map(|fault| fault.kind).collect()
    }

    fn word(&self) -> CatalogWord {
        let last = Catalog::open(&self.state()).unwrap().chains().unwrap();
        CatalogWord { last, pruned: BTreeSet::new() }
    }
}

#[test]
fn a_whole_chain_has_no_fault_and_what_is_not_signed_is_one() {
    let host = Host::new();
    (0..3).for_each(|_| drop(host.signed()));
    let report = host.audit(&host.word());
    assert!(!report.is_faulty(), "{report:?}");
    assert_eq!((report.subjects.len(), report.subjects[0].archives.len()), (1, 3));
    let numbers: Vec<Option<u64>> =
        report.subjects[0].archives.iter().map(AuditedArchive::sequence).collect();
    assert_eq!(numbers, [Some(1), Some(2), Some(3)]);
    host.backup(None, &host.state());
    let report = host.audit(&host.word());
    // It is of the same thing, by its own word.
    assert!(report.is_faulty() && report.subjects.len() == 1, "{report:?}");
    let host = Host::new();
    let evil = Arc::new(SigningKey::new("web").unwrap());
    host.backup(Some(&evil), &host.state());
    let report = host.audit(&CatalogWord::default());
    assert!(report.is_faulty(), "{report:?}");
    assert!(matches!(report.subjects[0].archives[0].authenticity, Some(Authenticity::UnknownKey { .. })));
}

#[test]
fn what_is_taken_away_is_missed_by_the_one_behind_it_or_by_the_catalog() {
    let host = Host::new();
    let made: Vec<BackupReport> = (0..3).map(|_| host.signed()).collect();
    std::fs::remove_file(&made[1].archive).unwrap();
    assert_eq!(host.kinds(&CatalogWord::default()), [AuditFaultKind::Missing]);
    // Where prune did it nobody misses it.
    let pruned = CatalogWord { pruned: BTreeSet::from([made[1].id]), ..host.word() };
    assert_eq!(host.kinds(&pruned), []);
    std::fs::remove_file(&made[2].archive).unwrap();
    assert_eq!(host.kinds(&CatalogWord::default()), [], "only the catalog can know that");
    assert_eq!(host.kinds(&host.word()), [AuditFaultKind::RolledBack]);
    std::fs::remove_file(&made[0].archive).unwrap();
    assert_eq!(host.kinds(&host.word()), [AuditFaultKind::RolledBack], "though nothing is there");
}

#[test]
fn one_number_twice_is_a_fork() {
    let host = Host::new();
    host.signed();
    // The catalog was lost, or the key is used elsewhere, too.
    host.backup(Some(&host.key), &host.folder.path().join("other-state"));
    assert_eq!(host.kinds(&CatalogWord::default()), [AuditFaultKind::Forked]);
}

#[test]
fn a_copy_of_an_archive_is_no_fork_and_another_root_under_its_id_is_a_replacement() {
    let host = Host::new();
    let made: Vec<BackupReport> = (0..2).map(|_| host.signed()).collect();
    std::fs::copy(&made[0].archive, format!("{}.tar.zst", made[0].archive)).unwrap();
    assert_eq!(host.kinds(&host.word()), []);
    let mut word = host.word();
    word.last[0].1.root = "0f".repeat(32);
    assert_eq!(host.kinds(&word), [AuditFaultKind::Replaced]);
}

/// A host that encrypts to somebody else's key can open none of its own.
#[test]
fn what_can_t_be_opened_is_not_called_missing() {
    let host = Host::new();
    let public = [age::x25519::Identity::generate().to_public().to_string()];
    host.signed();
    let encrypt_to = Recipients::gather(&public, None).unwrap();
    let signing_key = Some(Arc::clone(&host.key));
    host.backup_with(BackupOptions { encrypt_to, signing_key, ..BackupOptions::default() }, &host.state());
    let report = host.audit(&host.word());
    assert!(report.has_unopened() && !report.is_faulty(), "{report:?}");
    host.signed();
    let report = host.audit(&host.word());
    assert!(report.has_unopened() && !report.is_faulty(), "{report:?}");
}
