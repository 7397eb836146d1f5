//! Pruning real archives in a directory: what goes, what stays, what is noted, and in which order.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use uuid::Uuid;

use super::*;
use crate::RunMode;
use crate::destinations::{Destinations, LocalMedia};
use crate::folded_disk::DiskSet;
use virtfold_archive::crypt::{Envelope, Identities, Recipients};
use virtfold_archive::layout::BackupKind;
use virtfold_archive::manifest::{BackupSubject, CompressionNote, Manifest, Parent, VERSION};
use virtfold_archive::stream::{Cancel, Compression, StreamOptions};
use virtfold_archive::writer::{ArchiveContents, write_archive};
use virtfold_base::error::{ErrorKind, Result};
use virtfold_catalog::{Catalog, Journal, Owner, Verification, VerifyOutcome, copy_name};
use virtfold_hypervisor::DomainId;
use virtfold_medium::EncryptingMedium;
use virtfold_medium::{FileMedium, Location, Medium};

const NOW: &str = "2026-11-27T12:00:00Z";
const DOMAIN: Uuid = Uuid::from_u128(0xd0);

struct World {
    folder: tempfile::TempDir,
    catalog: Catalog,
    /// Whether that is another host's.
    has_none: bool,
    /// Age's key of whoever may read.
    key: age::x25519::Identity,
}

/// An archive to make.
struct Spec<'a> {
    id: u128,
    created: &'a str,
    host: &'a str,
    host_id: Option<&'a str>,
    name: &'a str,
    uuid: Option<Uuid>,
    parent: Option<u128>,
}

fn spec(id: u128, created: &str) -> Spec<'_> {
    Spec { id, created, host: "h1", host_id: None, name: "web", uuid: None, parent: None }
}

/// Ids differ in their first digits, which are in the names.
fn uuid(id: u128) -> Uuid {
    Uuid::from_u128(id << 96)
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(&folder.path().join("state")).unwrap();
        std::fs::create_dir(folder.path().join("backup")).unwrap();
        Self { folder, catalog, has_none: false, key: age::x25519::Identity::generate() }
    }

    fn place(&self) -> PathBuf {
        self.folder.path().join("backup")
    }

    fn path(&self, spec: &Spec<'_>, end: &str) -> PathBuf {
        let time: Timestamp = spec.created.parse().unwrap();
        let id = uuid(spec.id).simple().to_string();
        self.place().join(format!("{}-{}-{}.{end}", spec.name, time.strftime("%Y%m%dT%H%M%SZ"), &id[..8]))
    }

    fn archive(&self, spec: &Spec<'_>) -> PathBuf {
        let path = self.path(spec, "tar");
        write(spec, Box::new(FileMedium::create(&path).unwrap()));
        path
    }

    fn encrypted(&self, spec: &Spec<'_>) -> PathBuf {
        let path = self.path(spec, "tar.age");
        let recipients = Recipients::gather(&[self.key.to_public().to_string()], None).unwrap().unwrap();
        let medium = Box::new(FileMedium::create(&path).unwrap());
        write(spec, Box::new(EncryptingMedium::begin(medium, &Envelope::new(&recipients).unwrap()).unwrap()));
        path
    }

    fn identities(&self) -> Identities {
        use age::secrecy::ExposeSecret;
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.folder.path().join("key");
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&path).unwrap();
        std::io::Write::write_all(&mut file, self.key.to_string().expose_secret().as_bytes()).unwrap();
        Identities::load(&[path]).unwrap()
    }

    fn destinations(&self, identities: &Identities) -> Destinations<'static> {
        let media = LocalMedia { identities: identities.clone(), ..LocalMedia::default() };
        Destinations::new(vec![Location::Path(self.place())], media, &Cancel::default())
    }

    /// Keeps the newest `last`, with what the hosts are asked for.
    fn prune(&self, last: u32, mode: RunMode) -> PruneReport {
        self.prune_with(last, mode, &Identities::default())
    }

    fn prune_with(&self, last: u32, mode: RunMode, identities: &Identities) -> PruneReport {
        self.prune_as(None, last, mode, identities)
    }

    fn prune_as(&self, id: Option<&str>, last: u32, mode: RunMode, identities: &Identities) -> PruneReport {
        let keep = KeepRules { last: Some(last), ..KeepRules::default() };
        // A number that no rule has: somebody keeps all.
        let keep = if last == 0 {
            KeepPolicy::KeepAll("a job keeps all".to_owned())
        } else {
            KeepPolicy::Rules(keep)
        };
        let wanted = |owner: &Owner| -> Result<KeepPolicy> {
            Ok(if owner.name == "web" { keep.clone() } else { KeepPolicy::NotSelected })
        };
        let place = Location::Path(self.place());
        let request = PruneRequest {
            place: &place,
            destinations: &self.destinations(identities),
            host: &HostIdentity { name: "h1".to_owned(), id: id.map(|id| id.repeat(16)) },
            wanted: &wanted,
            now: NOW.parse().unwrap(),
            zone: &TimeZone::UTC,
            mode,
            paths: PathPolicy::default(),
            trust: &crate::trust::TrustPolicy::default(),
        };
        prune(&request, Some(&self.catalog).filter(|_| !self.has_none)).unwrap()
    }

    /// Notes what is there and can be read.
    fn look(&self) {
        self.remember(&Identities::default());
    }

    /// Notes what a verification came to.
    fn verified(&self, path: &Path, outcome: VerifyOutcome) {
        let done = Verification { checked: NOW.parse().unwrap(), root: None, outcome };
        let name = copy_name(&Location::from(path)).unwrap();
        assert!(self.catalog.record_verification(&name, &done).unwrap());
    }

    fn remember(&self, identities: &Identities) -> CatalogFillReport {
        let (place, destinations) = (Location::Path(self.place()), self.destinations(identities));
        let (place, mut listed) = (destinations.name(&place).unwrap(), destinations.list(&place).unwrap());
        fill_catalog(&place, &mut listed, &self.catalog).unwrap()
    }
}

fn write(spec: &Spec<'_>, mut medium: Box<dyn Medium>) {
    let created: Timestamp = spec.created.parse().unwrap();
    let parent = spec.parent.map(|id| Parent { id: uuid(id), root: "ab".repeat(32) });
    let head = Manifest {
        version: VERSION,
        requires: Vec::new(),
        archive: uuid(spec.id),
        created: created.strftime("%Y-%m-%dT%H:%M:%S+00:00").to_string(),
        host: spec.host.to_owned(),
        host_id: spec.host_id.map(|id| id.repeat(16)),
        tool: "virtfold 0".to_owned(),
        subject: BackupSubject::Domain {
            name: spec.name.to_owned(),
            uuid: spec.uuid.or((spec.name == "web").then_some(DOMAIN)),
        },
        kind: if parent.is_some() { BackupKind::Incremental } else { BackupKind::Full },
        parent,
        compression: CompressionNote { method: "none".to_owned(), level: None },
        freeze: None,
        disks: Vec::new(),
    };
    let options = StreamOptions {
        compression: Compression::None,
        workers: 1,
        archive_id: head.archive,
        cancel: Cancel::default(),
        progress: std::sync::Arc::default(),
    };
    let data = DiskSet(Vec::new());
    let contents = ArchiveContents {
        head: &head,
        attachments: &[],
        disks: Vec::new(),
        data: &data,
        blocks: &[],
        seal: None,
    };
    write_archive(&contents, medium.as_mut(), &options).unwrap();
    medium.finish().unwrap();
}

fn there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn entry<'a>(report: &'a PruneReport, path: &Path) -> &'a PruneEntry {
    let name = path.display().to_string();
    let mut entries = report.subjects.iter().flat_map(|group| &group.archives).chain(&report.unknown);
    entries.find(|entry| entry.archive == name).unwrap_or_else(|| panic!("{name} is not in {report:#?}"))
}

#[test]
fn old_ones_go_and_are_noted_and_a_dry_run_touches_nothing() {
    let world = World::new();
    let days =
        ["2026-11-20T01:00:00Z", "2026-11-21T01:00:00Z", "2026-11-22T01:00:00Z", "2026-11-23T01:00:00Z"];
    let paths: Vec<PathBuf> = (1..).zip(days).map(|(id, day)| world.archive(&spec(id, day))).collect();
    assert_eq!(
        world.remember(&Identities::default()),
        CatalogFillReport { known: 4, unread: 0, replaced: 0 }
    );
    let dry = world.prune(2, RunMode::DryRun);
    assert!(paths.iter().all(|path| there(path)));
    assert_eq!(entry(&dry, &paths[0]).action, PruneAction::Remove);
    assert_eq!(entry(&dry, &paths[3]).reasons, ["last 1", "newest complete"]);
    let done = world.prune(2, RunMode::Apply);
    assert_eq!(paths.iter().map(|path| there(path)).collect::<Vec<_>>(), [false, false, true, true]);
    assert_eq!(entry(&done, &paths[1]).action, PruneAction::Removed);
    assert_eq!(done.failures().count(), 0);
    let place = virtfold_catalog::destination_name(&Location::Path(world.place())).unwrap();
    assert_eq!(world.catalog.pruned_archives(&place).unwrap(), BTreeSet::from([uuid(1), uuid(2)]));
    let known = world.catalog.copies_at(&place).unwrap();
    assert_eq!(known.iter().map(|copy| copy.archive).collect::<Vec<_>>(), [uuid(3), uuid(4)]);
    let again = world.prune(2, RunMode::Apply);
    assert!(again.subjects[0].archives.iter().all(|entry| entry.action == PruneAction::Keep), "{again:#?}");
    // What a person removed is found to be gone.
    std::fs::remove_file(&paths[2]).unwrap();
    world.prune(2, RunMode::Apply);
    assert_eq!(world.catalog.last_backups(Timestamp::MAX).unwrap().len(), 1);
    assert_eq!(world.catalog.copies_at(&place).unwrap().len(), 1);
    // Nobody is to take that for pruned.
    assert_eq!(world.catalog.pruned_archives(&place).unwrap().len(), 2);
}

#[test]
fn what_is_not_surely_ours_stays() {
    let world = World::new();
    let old = "2020-01-01T00:00:00Z";
    let newest = world.archive(&spec(1, "2026-11-20T00:00:00Z"));
    let other_host = world.archive(&Spec { host: "h2", ..spec(2, old) });
    let other_domain = world.archive(&Spec { name: "db", ..spec(3, old) });
    let original = world.archive(&spec(4, old));
    let renamed = world.place().join("before-the-upgrade.tar");
    std::fs::rename(&original, &renamed).unwrap();
    world.look();
    let hostile: Vec<PathBuf> =
        [".tar", "..tar", "web-20200101T000000Z-00000009.tar.zst", "a\nb.tar", "-.tar"]
            .iter()
            .map(|name| world.place().join(name))
            .collect();
    hostile.iter().for_each(|path| std::fs::write(path, b"not an archive").unwrap());
    let bytes = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"web-\xff.tar");
    std::fs::write(world.place().join(bytes), b"x").unwrap();
    let target = world.folder.path().join("elsewhere.tar");
    std::fs::rename(world.archive(&spec(5, old)), &target).unwrap();
    let link = world.path(&spec(5, old), "tar");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let cut = world.archive(&spec(6, old));
    std::fs::OpenOptions::new().write(true).open(&cut).unwrap().set_len(3000).unwrap();
    let partial = world.place().join(".web-20200101T000000Z-00000007.tar.0a0b0c0d.partial");
    std::fs::copy(&newest, &partial).unwrap();
    let future = world.archive(&spec(8, "2031-01-01T00:00:00Z"));

    let report = world.prune(1, RunMode::Apply);
    let kept = [&newest, &other_host, &other_domain, &renamed, &link, &target, &cut, &partial, &future];
    for path in kept.into_iter().chain(&hostile) {
        assert!(there(path), "{}", path.display());
    }
    assert!(there(&world.place().join(bytes)));
    assert_eq!((report.other_hosts, report.not_asked), (1, 1));
    assert_eq!(entry(&report, &renamed).reasons, ["renamed"]);
    assert!(
        entry(&report, &newest).reasons.contains(&"newest complete".to_owned()),
        "not the one of the future"
    );
    assert_eq!(report.failures().count(), 0, "{report:#?}");
}

#[test]
fn increments_go_before_what_they_rest_on() {
    let world = World::new();
    let full = world.archive(&spec(1, "2026-11-20T00:00:00Z"));
    let increment = world.archive(&Spec { parent: Some(1), ..spec(2, "2026-11-21T00:00:00Z") });
    let newest = world.archive(&Spec { parent: Some(2), ..spec(3, "2026-11-22T00:00:00Z") });
    world.look();
    let report = world.prune(1, RunMode::Apply);
    assert!(there(&full) && there(&increment) && there(&newest));
    assert_eq!(entry(&report, &full).reasons, [format!("needed by {}", &uuid(2).to_string()[..8])]);
    let newer = world.archive(&spec(4, "2026-11-23T00:00:00Z"));
    world.look();
    world.prune(1, RunMode::Apply);
    assert!(!there(&full) && !there(&increment) && !there(&newest) && there(&newer));
}

#[test]
fn encrypted_ones_need_the_catalog_or_a_key_and_keep_what_is_older() {
    let world = World::new();
    let plain = world.archive(&spec(1, "2026-11-20T00:00:00Z"));
    let old = world.encrypted(&spec(2, "2026-11-21T00:00:00Z"));
    let newest = world.encrypted(&spec(3, "2026-11-22T00:00:00Z"));
    assert_eq!(
        world.remember(&Identities::default()),
        CatalogFillReport { known: 1, unread: 2, replaced: 0 }
    );
    let report = world.prune(1, RunMode::Apply);
    assert!(there(&plain) && there(&old), "what can't be read may rest on what is older");
    let reasons = &entry(&report, &plain).reasons;
    assert!(reasons.iter().any(|why| why.starts_with("may be needed by")), "{report:#?}");
    assert_eq!(world.remember(&world.identities()), CatalogFillReport { known: 3, unread: 0, replaced: 0 });
    // One that has grown since is not the one that the catalog knows.
    let length = std::fs::metadata(&old).unwrap().len();
    let file = std::fs::OpenOptions::new().write(true).open(&old).unwrap();
    file.set_len(length + 1).unwrap();
    world.prune(1, RunMode::Apply);
    assert!(there(&old));
    file.set_len(length).unwrap();
    world.prune(1, RunMode::Apply);
    assert!(!there(&plain) && !there(&old) && there(&newest));
    let again = world.encrypted(&spec(4, "2026-11-19T00:00:00Z"));
    world.prune_with(1, RunMode::Apply, &world.identities());
    assert!(there(&again), "the catalog does not know it");
    world.remember(&world.identities());
    world.prune(1, RunMode::Apply);
    assert!(!there(&again));
    let name = copy_name(&Location::Path(old)).unwrap();
    assert!(world.catalog.copy(&name).unwrap().is_some(), "what is gone is remembered");
}

#[test]
fn a_domain_that_is_being_backed_up_is_left_alone() {
    let world = World::new();
    let old = world.archive(&spec(1, "2026-11-20T00:00:00Z"));
    world.archive(&spec(2, "2026-11-21T00:00:00Z"));
    world.look();
    let lock = world.catalog.lock(DomainId(DOMAIN)).unwrap();
    let report = world.prune(1, RunMode::Apply);
    assert!(there(&old));
    let failures: Vec<ErrorKind> = report.failures().map(|failure| failure.kind).collect();
    assert_eq!(failures, [ErrorKind::InUse]);
    drop(lock);
    let other = world.catalog.lock_pruning().unwrap();
    let error = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.prune(1, RunMode::Apply)));
    assert!(error.is_err(), "somebody else prunes");
    drop(other);
    world.prune(1, RunMode::Apply);
    assert!(!there(&old));
}

/// Archives of before hosts had ids go on being this host's, unless another host of its name has backups of
/// the same domain there.
#[test]
fn older_archives_go_by_the_host_s_name_unless_two_have_it() {
    let world = World::new();
    let (day, none) = ("2026-11-20T00:00:00Z", Identities::default());
    let older = world.archive(&spec(1, day));
    let ours = Spec { host_id: Some("0a"), ..spec(2, "2026-11-21T00:00:00Z") };
    world.archive(&ours);
    let renamed = Spec { host: "was-h1", ..Spec { id: 3, created: "2026-11-22T00:00:00Z", ..ours } };
    let renamed = world.archive(&renamed);
    world.look();
    let report = world.prune_as(Some("0a"), 2, RunMode::Apply, &none);
    assert!(!there(&older) && there(&renamed), "{report:#?}");
    assert_eq!((report.subjects[0].archives.len(), report.other_hosts), (3, 0));

    let older = world.archive(&spec(4, day));
    let namesake = world.archive(&Spec { host_id: Some("0b"), ..spec(5, day) });
    world.look();
    for mode in [RunMode::DryRun, RunMode::Apply] {
        let report = world.prune_as(Some("0a"), 1, mode, &none);
        let failures: Vec<&PruneFailure> = report.failures().collect();
        assert_eq!(failures.len(), 1, "{report:#?}");
        assert_eq!(failures[0].kind, ErrorKind::Refused);
        assert!(failures[0].sentence.contains("two hosts called 'h1'"), "{}", failures[0].sentence);
        assert_eq!(report.other_hosts, 1);
    }
    assert!(there(&older) && there(&namesake) && there(&renamed));
    // The other one has nothing that is in doubt of its own but for the older one.
    let report = world.prune_as(Some("0b"), 1, RunMode::Apply, &none);
    assert_eq!(report.failures().count(), 1);
    std::fs::remove_file(&older).unwrap();
    world.prune_as(Some("0a"), 1, RunMode::Apply, &none);
    assert!(there(&namesake) && there(&renamed) && std::fs::read_dir(world.place()).unwrap().count() == 2);
}

#[test]
fn where_somebody_keeps_all_nothing_goes_and_it_is_said() {
    let world = World::new();
    let old = world.archive(&spec(1, "2026-11-20T00:00:00Z"));
    world.archive(&spec(2, "2026-11-21T00:00:00Z"));
    world.look();
    let report = world.prune(0, RunMode::Apply);
    assert!(there(&old), "{report:#?}");
    assert_eq!(report.subjects[0].kept_whole.as_deref(), Some("a job keeps all"));
    assert_eq!(entry(&report, &old).reasons, ["a job keeps all"]);
    world.prune(1, RunMode::Apply);
    assert!(!there(&old));
}

/// What a person pins stays, also where only the catalog can tell what it is.
#[test]
fn what_is_pinned_stays_until_it_is_not() {
    let world = World::new();
    let old = world.encrypted(&spec(1, "2026-11-20T00:00:00Z"));
    world.encrypted(&spec(2, "2026-11-21T00:00:00Z"));
    world.remember(&world.identities());
    world.catalog.pin(uuid(1), Timestamp::UNIX_EPOCH).unwrap();
    world.catalog.pin(uuid(1), Timestamp::UNIX_EPOCH).unwrap();
    let report = world.prune(1, RunMode::Apply);
    assert_eq!(entry(&report, &old).reasons, ["pinned"]);
    assert!(world.catalog.unpin(uuid(1)).unwrap() && !world.catalog.unpin(uuid(1)).unwrap());
    world.prune(1, RunMode::Apply);
    assert!(!there(&old));
}

/// Who can write to the place puts archives there that say that they are this host's, newer than all others,
/// and in the clear: whole and sound, and worth nothing.
#[test]
fn forged_archives_push_no_known_one_out() {
    let world = World::new();
    let good: Vec<PathBuf> = (1..)
        .zip(["2026-11-20T00:00:00Z", "2026-11-21T00:00:00Z"])
        .map(|(id, day)| world.encrypted(&spec(id, day)))
        .collect();
    world.remember(&world.identities());
    let forged: Vec<PathBuf> = (3..)
        .zip(["2026-11-22T00:00:00Z", "2026-11-23T00:00:00Z"])
        .map(|(id, day)| world.archive(&spec(id, day)))
        .collect();
    let report = world.prune(2, RunMode::Apply);
    assert!(good.iter().all(|path| there(path)), "{report:#?}");
    // A look takes them for known ones. In the clear they push nothing out that is encrypted.
    world.remember(&Identities::default());
    let report = world.prune(1, RunMode::Apply);
    assert!(!there(&good[0]) && there(&good[1]) && !there(&forged[0]) && there(&forged[1]), "{report:#?}");
}

/// Nothing is known, so nothing goes, and that is an error with what to do, not a silent success.
#[test]
fn without_a_catalog_nothing_goes_and_it_is_said() {
    let mut world = World::new();
    let paths = [1, 2].map(|id| world.archive(&spec(id, "2026-11-20T00:00:00Z")));
    for has_none in [true, false] {
        world.has_none = has_none;
        let report = world.prune(1, RunMode::Apply);
        assert!(paths.iter().all(|path| there(path)), "{report:#?}");
        assert_eq!(entry(&report, &paths[0]).reasons, ["not in the catalog"]);
        let failures: Vec<&PruneFailure> = report.failures().collect();
        assert_eq!(failures.len(), 1);
        assert_eq!(failures[0].kind, ErrorKind::NotFound);
        assert!(failures[0].hint.as_ref().unwrap().contains("--remember"), "{:?}", failures[0].hint);
    }
    world.look();
    let report = world.prune(1, RunMode::Apply);
    assert_eq!(report.failures().count(), 0);
    assert_eq!(paths.iter().filter(|path| there(path)).count(), 1);
}

/// One damaged newest archive, and one of which nobody knows whether it is: the good ones stay.
#[test]
fn what_failed_or_missed_its_verification_pushes_nothing_out() {
    let world = World::new();
    let days =
        ["2026-11-20T00:00:00Z", "2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z", "2026-11-23T00:00:00Z"];
    let paths: Vec<PathBuf> = (1..).zip(days).map(|(id, day)| world.archive(&spec(id, day))).collect();
    world.look();
    world.verified(&paths[1], VerifyOutcome::Sound);
    world.verified(&paths[3], VerifyOutcome::Failed);
    let report = world.prune(1, RunMode::Apply);
    let left: Vec<bool> = paths.iter().map(|path| there(path)).collect();
    assert_eq!(left, [false, true, true, true], "{report:#?}");
    assert_eq!(entry(&report, &paths[3]).reasons, ["failed its verification of 20261127T120000Z"]);
    assert!(entry(&report, &paths[1]).reasons.contains(&"newest verified".to_owned()), "{report:#?}");
    // Verified, it is the newest that counts: one that is newer was not.
    world.verified(&paths[3], VerifyOutcome::Sound);
    let newest = world.archive(&spec(5, "2026-11-24T00:00:00Z"));
    world.look();
    world.prune(1, RunMode::Apply);
    assert!(!there(&paths[1]) && !there(&paths[2]) && there(&paths[3]) && there(&newest));
}

/// Copies of one archive count once: the newest, copied under other names, would push out all others. And an
/// archive that calls itself otherwise does not choose the rules.
#[test]
fn neither_copies_nor_names_that_are_made_up_change_what_stays() {
    let world = World::new();
    let days = ["2026-11-20T00:00:00Z", "2026-11-21T00:00:00Z"];
    let good: Vec<PathBuf> = (1..).zip(days).map(|(id, day)| world.archive(&spec(id, day))).collect();
    world.look();
    let copies = ["a", "b"].map(|label| world.path(&Spec { name: label, ..spec(2, days[1]) }, "tar"));
    for copy in &copies {
        std::fs::copy(&good[1], copy).unwrap();
    }
    let renamed = Spec { name: "scratch", uuid: Some(DOMAIN), ..spec(3, "2026-11-22T00:00:00Z") };
    let renamed = world.archive(&renamed);
    let report = world.prune(2, RunMode::Apply);
    assert!(good.iter().chain(&copies).all(|path| there(path)) && there(&renamed), "{report:#?}");
    assert_eq!(report.subjects[0].name, "web");
}
