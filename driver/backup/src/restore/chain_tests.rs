//! Chains of increments: each archive of one comes back as the disks were, whatever the target; and what is
//! said where a link is missing, is another archive, or lies elsewhere.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::destinations::Destinations;
use crate::options::{BackupKindRule, BackupOptions};
use crate::restore::{Selection, VerifyMode, run};
use crate::resume::StateDirectories;
use crate::retention;
use crate::session::{BackupSession, ImageSpec, ImagesRequest};
use virtfold_archive::crypt::Recipients;
use virtfold_archive::stream::Compression;
use virtfold_base::units::{BlockSize, MIB};
use virtfold_catalog::Catalog;

const SIZE: usize = 3 << 20;

/// Two disks, the archives of them, and what the disks were at each.
struct Lab {
    folder: tempfile::TempDir,
    archives: Vec<PathBuf>,
    was: Vec<Vec<(String, Vec<u8>)>>,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("backup")).unwrap();
        let lab = Self { folder, archives: Vec::new(), was: Vec::new() };
        for (number, disk) in ["vda", "vdb"].into_iter().enumerate() {
            let mut bytes = vec![0; SIZE];
            blake3::Hasher::new().update(disk.as_bytes()).finalize_xof().fill(&mut bytes);
            bytes[1 << 20..].chunks_mut(3 << 17).step_by(2).for_each(|hole| hole.fill(0));
            std::fs::write(lab.image(disk), &bytes[number..]).unwrap();
        }
        lab
    }

    fn image(&self, disk: &str) -> PathBuf {
        self.folder.path().join(format!("{disk}.img"))
    }

    fn write(&self, disk: &str, at: u64, bytes: &[u8]) {
        let file = std::fs::OpenOptions::new().write(true).open(self.image(disk)).unwrap();
        file.write_all_at(bytes, at).unwrap();
    }

    fn backup(&mut self, disks: &[&str], options: BackupOptions) {
        let place = Location::Path(self.folder.path().join("backup"));
        let destinations = Destinations::local([place]);
        let state = StateDirectories::new(self.folder.path().join("state"));
        let control = Control::default();
        let options = BackupOptions { kind: BackupKindRule::Incremental, ..options };
        let session = BackupSession {
            options: &options,
            destinations: &destinations,
            state: &state,
            control: &control,
        };
        let image = |disk: &&str| ImageSpec {
            path: self.image(disk),
            format: Format::Raw,
            target: (*disk).to_owned(),
        };
        let images = disks.iter().map(image).collect();
        let request = ImagesRequest { label: Some("set".to_owned()), ..ImagesRequest::of(images) };
        let report = session.images(&request).unwrap();
        let copies = retention::copies(&report, &destinations, None).unwrap();
        Catalog::open(&self.folder.path().join("state")).unwrap().remember(&copies).unwrap();
        assert_eq!(report.parent.is_some(), !self.archives.is_empty(), "{:?}", report.full_reason);
        self.archives.push(PathBuf::from(&report.archive));
        let read = |disk: &&str| {
            let mut bytes = std::fs::read(self.image(disk)).unwrap();
            bytes.resize(bytes.len().next_multiple_of(512), 0);
            ((*disk).to_owned(), bytes)
        };
        self.was.push(disks.iter().map(read).collect());
    }

    /// Three archives: a full one, then two increments; blocks of other sizes, a disk that is shorter, then
    /// longer, and one that is removed.
    fn chain(options: &BackupOptions) -> Self {
        let mut lab = Self::new();
        let with = |block| BackupOptions { block_size: BlockSize::new(block), ..options.clone() };
        lab.backup(&["vda", "vdb"], with(64 << 10));
        lab.write("vda", 70_000, &[7; 90_000]);
        lab.write("vda", 2_500_000, &[0; 200_000]);
        std::fs::OpenOptions::new().write(true).open(lab.image("vdb")).unwrap().set_len(800_000).unwrap();
        lab.backup(&["vda", "vdb"], with(64 << 10));
        lab.write("vda", 100_000, &[0; 10_000]);
        lab.write("vda", 1_000_000, &[9; 5000]);
        std::fs::OpenOptions::new().write(true).open(lab.image("vda")).unwrap().set_len(4 << 20).unwrap();
        lab.backup(&["vda"], with(128 << 10));
        lab
    }

    fn request(&self, number: usize, out: &Path) -> RestoreRequest {
        RestoreRequest {
            archive: Location::from(self.archives[number].as_path()),
            identities: Identities::default(),
            selection: Selection::All(out.to_owned()),
            format: None,
            method: Method::Rewrite,
            cluster_size: None,
            existing: Overwrite::Replace,
            checking: VerifyMode::All,
            trust: Default::default(),
            workers: 2,
            known: Default::default(),
            parents: Default::default(),
        }
    }

    fn out(&self) -> PathBuf {
        let out = self.folder.path().join("out");
        std::fs::create_dir_all(&out).unwrap();
        out
    }

    /// A restored disk, as raw bytes.
    fn read(path: &Path) -> Vec<u8> {
        if path.extension().is_some_and(|format| format == "raw") {
            return std::fs::read(path).unwrap();
        }
        let raw = path.with_extension("raw");
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "qcow2", "-O", "raw"]).arg(path).arg(&raw);
        assert!(convert.status().expect("qemu-img must be installed for these tests").success());
        std::fs::read(raw).unwrap()
    }
}

fn zstd() -> BackupOptions {
    BackupOptions { compression: Compression::Zstd { level: 1 }, ..BackupOptions::default() }
}

#[test]
fn each_archive_of_a_chain_comes_back_as_the_disks_were() {
    for options in [zstd(), BackupOptions { compression: Compression::None, ..BackupOptions::default() }] {
        let lab = Lab::chain(&options);
        let targets = [
            (Format::Raw, Method::Rewrite),
            (Format::Qcow2, Method::Rewrite),
            (Format::Qcow2, Method::Remap),
        ];
        for (number, was) in lab.was.iter().enumerate() {
            for (format, method) in targets {
                let out = lab.out();
                let request = RestoreRequest { format: Some(format), method, ..lab.request(number, &out) };
                let report = run(&request, &Control::default()).unwrap();
                assert!(report.complete && report.verified && report.notes.is_empty(), "{report:?}");
                assert_eq!(report.parents.len(), number);
                assert_eq!(report.removed, if number == 2 { vec!["vdb"] } else { vec![] });
                for (disk, bytes) in was {
                    let name = if format == Format::Raw { "raw" } else { "qcow2" };
                    let path = out.join(format!("{disk}.{name}"));
                    assert!(Lab::read(&path) == *bytes, "{number}: {disk} as {name}, {method:?}");
                }
            }
        }
    }
}

#[test]
fn a_plan_of_an_increment_counts_what_all_archives_of_its_chain_give() {
    let lab = Lab::chain(&zstd());
    let request = lab.request(2, &lab.out());
    let planned = plan(&request, &Control::default(), &virtfold_hypervisor::host_files::LocalFiles).unwrap();
    let restored = run(&request, &Control::default()).unwrap();
    assert_eq!(planned.disks[0].data, restored.disks[0].data);
    assert!(planned.disks[0].data > MIB, "{planned:?}");
}

/// A link that is not there is named, with what it was; `--parent` gives it, the catalog knows it, and a
/// partial restore has the rest.
#[test]
fn a_parent_is_found_elsewhere_and_a_missing_one_is_named() {
    let lab = Lab::chain(&zstd());
    let (moved, out) = (lab.folder.path().join("moved.tar.zst"), lab.out());
    std::fs::rename(&lab.archives[0], &moved).unwrap();
    let request = lab.request(2, &out);
    let error = run(&request, &Control::default()).unwrap_err();
    let id = inspect_id(&moved);
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains(&id), "{error}");
    assert!(!out.join("vda.raw").exists());

    let given = vec![Location::from(lab.archives[1].as_path()), Location::from(moved.as_path())];
    let parents = ParentSearch { given, state: None };
    run(&RestoreRequest { parents: parents.clone(), ..request.clone() }, &Control::default()).unwrap();
    assert!(Lab::read(&out.join("vda.raw")) == lab.was[2][0].1);

    // Under another name in the same place, and where the catalog says.
    let renamed = lab.folder.path().join("backup/old.tar.zst");
    std::fs::rename(&moved, &renamed).unwrap();
    run(&request, &Control::default()).unwrap();
    std::fs::rename(&renamed, &lab.archives[0]).unwrap();
    let alone = lab.folder.path().join("alone.tar.zst");
    std::fs::rename(&lab.archives[2], &alone).unwrap();
    let parents = ParentSearch { given: Vec::new(), state: Some(lab.folder.path().join("state")) };
    let request = RestoreRequest { archive: Location::from(alone.as_path()), ..request };
    assert_eq!(run(&request, &Control::default()).unwrap_err().kind(), ErrorKind::NotFound);
    run(&RestoreRequest { parents, ..request.clone() }, &Control::default()).unwrap();
    assert!(Lab::read(&out.join("vda.raw")) == lab.was[2][0].1);

    let partial = RestoreRequest { checking: VerifyMode::Partial, ..request };
    let report = run(&partial, &Control::default()).unwrap();
    assert!(report.notes.iter().any(|note| note.contains("is an increment on archive")), "{report:?}");
    let (was, mut is) = (&lab.was[2][0].1, Lab::read(&out.join("vda.raw")));
    let lost: u64 = report.damage.iter().map(|range| range.length).sum();
    assert!(lost > MIB && lost < 4 * MIB, "{report:?}");
    for range in &report.damage {
        let place = |at: u64| usize::try_from(at).unwrap();
        let range = place(range.start)..place(range.start + range.length);
        assert!(is[range.clone()].iter().all(|byte| *byte == 0));
        is[range.clone()].copy_from_slice(&was[range]);
    }
    assert!(is == *was);
}

fn inspect_id(archive: &Path) -> String {
    let found = crate::inspect::glance(&Location::from(archive), &Identities::default()).unwrap();
    found.head.unwrap().archive.to_string()
}

/// Damage of a parent is an error, or costs its own MiB; no archive of a chain is overwritten by what is
/// restored from it.
#[test]
fn a_damaged_parent_costs_what_is_damaged_and_an_archive_is_no_target() {
    let lab = Lab::chain(&BackupOptions { compression: Compression::None, ..BackupOptions::default() });
    let out = lab.out();
    let (request, full) = (lab.request(1, &out), &lab.archives[0]);
    let target = RestoreRequest {
        selection: Selection::Disks(vec![("vda".to_owned(), full.clone())]),
        format: Some(Format::Raw),
        ..request.clone()
    };
    assert_eq!(run(&target, &Control::default()).unwrap_err().kind(), ErrorKind::Usage);

    let whole = std::fs::read(full).unwrap();
    let mut damaged = whole.clone();
    let at = damaged.len() / 3;
    damaged[at] ^= 1;
    std::fs::write(full, &damaged).unwrap();
    let error = run(&request, &Control::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    assert!(!out.join("vda.raw").exists());
    let partial = RestoreRequest { checking: VerifyMode::Partial, ..request.clone() };
    let report = run(&partial, &Control::default()).unwrap();
    let lost: u64 = report.damage.iter().map(|range| range.length).sum();
    assert!(lost > 0 && lost <= MIB, "{report:?}");

    // Its end says another root than what it was: nothing proves that it is the parent.
    let end = whole.windows(8).rposition(|window| window == b"\"root\":\"").unwrap() + 8;
    let mut forged = whole;
    forged[end] = if forged[end] == b'0' { b'1' } else { b'0' };
    std::fs::write(full, &forged).unwrap();
    let error = run(&request, &Control::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    assert!(error.to_string().contains("which can't be used"), "{error}");
}

/// Each archive of a chain may have a key of its own.
#[test]
fn an_encrypted_chain_opens_with_all_its_keys_and_says_which_one_is_missing() {
    let mut lab = Lab::new();
    let keys = [age::x25519::Identity::generate(), age::x25519::Identity::generate()];
    for (number, key) in keys.iter().enumerate() {
        let encrypt_to = Recipients::gather(&[key.to_public().to_string()], None).unwrap();
        lab.write("vda", 4096 * number as u64, &[7; 4096]);
        lab.backup(&["vda"], BackupOptions { encrypt_to, ..zstd() });
    }
    let out = lab.out();
    let both = RestoreRequest { identities: Identities::of(keys.to_vec()), ..lab.request(1, &out) };
    let report = run(&both, &Control::default()).unwrap();
    assert_eq!(report.parents.len(), 1);
    assert!(Lab::read(&out.join("vda.raw")) == lab.was[1][0].1);
    let [_, newest] = keys;
    let one = RestoreRequest { identities: Identities::of(vec![newest]), ..lab.request(1, &out) };
    let error = run(&one, &Control::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(error.to_string().contains("no identity that was given opens it"), "{error}");
}

/// Whatever rests on a bad link is named.
#[test]
fn a_chain_is_verified_as_a_whole() {
    let lab = Lab::chain(&zstd());
    let request = crate::verify::VerifyRequest {
        archive: Location::from(lab.archives[2].as_path()),
        identities: Identities::default(),
        trust: Default::default(),
        workers: 1,
        known: Default::default(),
    };
    let search = ParentSearch::default();
    let verify = || {
        let unknown = |_: &Location| KnownCopy::default();
        crate::verify_chain::run(&request, &search, &unknown, &Control::default()).unwrap()
    };
    let report = verify();
    assert!(report.sound && report.gap.is_none() && report.dependent.is_empty(), "{report:?}");
    assert_eq!(report.archives.len(), 3);

    let name = |number: usize| lab.archives[number].display().to_string();
    let mut damaged = std::fs::read(&lab.archives[0]).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&lab.archives[0], &damaged).unwrap();
    let report = verify();
    assert!(!report.sound && !report.archives[2].sound && report.archives[1].sound, "{report:?}");
    assert_eq!((report.gap.as_ref(), &report.dependent), (None, &vec![name(2), name(1)]));

    std::fs::remove_file(&lab.archives[0]).unwrap();
    let report = verify();
    assert!(!report.sound && report.gap.as_ref().unwrap().contains("is an increment on"), "{report:?}");
    assert_eq!(report.dependent, [name(2), name(1)]);
}

/// A signed child vouches for its parent by the root. One whose end is lost has none to show: where
/// signatures are required nothing of it is taken, be its id the right one.
#[test]
fn a_parent_without_its_end_is_not_taken_where_signatures_are_required() {
    let key = std::sync::Arc::new(virtfold_archive::sign::SigningKey::new("web").unwrap());
    let options = BackupOptions { signing_key: Some(key.clone()), compression: Compression::None, ..zstd() };
    let lab = Lab::chain(&options);
    let line = virtfold_archive::sign::AllowedSigners::line("web", &key.public()).unwrap();
    let trust = TrustPolicy {
        signers: virtfold_archive::sign::AllowedSigners::parse("signers", &line).unwrap(),
        own: None,
        requirement: crate::trust::SignatureRequirement::Required,
    };
    let checking = VerifyMode::Partial;
    let request = RestoreRequest { trust, checking, ..lab.request(1, &lab.out()) };
    assert!(run(&request, &Control::default()).unwrap().damage.is_empty());
    let whole = std::fs::read(&lab.archives[0]).unwrap();
    std::fs::write(&lab.archives[0], &whole[..whole.len() - 4096]).unwrap();
    let error = run(&request, &Control::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    let lenient = RestoreRequest { trust: TrustPolicy::default(), ..request };
    assert!(!run(&lenient, &Control::default()).unwrap().complete);
}
