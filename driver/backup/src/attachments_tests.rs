//! Gathering from real files, and what must be refused.

use std::sync::Arc;

use super::*;
use crate::Control;
use crate::destinations::Destinations;
use crate::increment::{ChangeHint, ParentChoice};
use crate::options::BackupOptions;
use crate::resume::StateDirectories;
use crate::session::{BackupInput, BackupSession, InputDisk};
use virtfold_archive::index::{ArchiveIndex, Trust};
use virtfold_archive::manifest::BackupSubject;
use virtfold_archive::source::FileSource;
use virtfold_archive::stream::{Compression, ReadOptions};
use virtfold_image::{DiskImage, Format, OpenOptions};
use virtfold_medium::{FileMedium, Location};

struct Place {
    folder: tempfile::TempDir,
    places: LibvirtDirectories,
}

const UUID: &str = "3b51a0a6-3c5a-4c1e-9d0b-2b4f6f1f8f11";

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let places = LibvirtDirectories::system(folder.path());
    Place { folder, places }
}

impl Place {
    fn put(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    fn xml(&self) -> DomainXml {
        let here = self.folder.path().display();
        let text = format!(
            "<domain><name>web</name><uuid>{UUID}</uuid><os><nvram>{here}/web_VARS.fd</nvram>\
             <kernel>{here}/vmlinuz</kernel></os><devices><tpm><backend type='emulator' version='2.0'/></tpm></devices></domain>"
        );
        DomainXml::parse(text).unwrap()
    }
}

fn names(found: &[Attachment]) -> Vec<&str> {
    found.iter().map(|a| a.name.as_str()).collect()
}

#[test]
fn everything_of_a_running_guest_is_read() {
    let place = place();
    place.put("web_VARS.fd", b"vars");
    place.put("kernel-6", b"kernel");
    std::os::unix::fs::symlink("kernel-6", place.folder.path().join("vmlinuz")).unwrap();
    place.put(&format!("swtpm/{UUID}/tpm2/tpm2-00.permall"), b"state");
    place.put(&format!("swtpm/{UUID}/tpm2/.lock"), b"");
    let xml = place.xml();
    let found = gather(GuestXml { inactive: Some(&xml), live: Some(&xml) }, &place.places).unwrap();
    let expected = ["domain.xml", "domain.live.xml", "nvram.fd", "tpm/tpm2-00.permall", "boot/kernel"];
    assert_eq!(names(&found), expected);
    assert_eq!(found[2].content, b"vars");
    assert_eq!(found[3].content, b"state");
    assert_eq!(found[4].content, b"kernel");
    assert!(found.iter().all(|a| limit_of(&a.name).is_some_and(|limit| a.content.len() as u64 <= limit)));
    assert_eq!(limit_of("tpm/../x"), None);
    assert_eq!(limit_of("other"), None);
}

#[test]
fn what_is_missing_matters_only_to_a_guest_that_has_it() {
    let place = place();
    place.put("vmlinuz", b"kernel");
    let xml = place.xml();
    let never_started = gather(GuestXml { inactive: Some(&xml), live: None }, &place.places).unwrap();
    assert_eq!(names(&never_started), ["domain.xml", "boot/kernel"]);
    let running = GuestXml { inactive: None, live: Some(&xml) };
    let error = gather(running, &place.places).unwrap_err();
    assert!(error.to_string().contains("NVRAM of domain 'web'"), "{error}");
    place.put("web_VARS.fd", b"vars");
    let error = gather(running, &place.places).unwrap_err();
    assert!(error.to_string().contains("TPM state of domain 'web'"), "{error}");
    assert!(error.hint().unwrap().contains("--libvirt-dir"));
}

#[test]
fn surprises_are_refused_and_nothing_hangs() {
    let place = place();
    let vars = place.folder.path().join("web_VARS.fd");
    let xml = place.xml();
    let guest = GuestXml { inactive: Some(&xml), live: None };
    place.put("vmlinuz", b"kernel");
    let secret = place.put("secret", b"shadow");
    std::os::unix::fs::symlink(&secret, &vars).unwrap();
    let said = |place: &Place| format!("{:?}", gather(guest, &place.places).unwrap_err());
    assert!(said(&place).contains("is a link"), "{}", said(&place));
    std::fs::remove_file(&vars).unwrap();
    nix::unistd::mkfifo(&vars, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(said(&place).contains("not a regular file"), "{}", said(&place));
    std::fs::remove_file(&vars).unwrap();
    File::create(&vars).unwrap().set_len(NVRAM_LIMIT + 1).unwrap();
    assert!(said(&place).contains("larger than 65 MiB"), "{}", said(&place));
    std::fs::remove_file(&vars).unwrap();
    for n in 0..=TPM_FILES {
        place.put(&format!("swtpm/{UUID}/tpm2/{n}"), b"");
    }
    assert!(said(&place).contains("more than 16 files"), "{}", said(&place));
}

/// An archive of one small disk and these members.
fn written(place: &Place, members: &[(&str, &[u8])], compression: Compression) -> PathBuf {
    let path = place.folder.path().join("archive");
    std::fs::remove_file(&path).unwrap_or_default();
    let image = place.put("disk.raw", &[5; 9000]);
    let image = DiskImage::open(&image, Format::Raw, &OpenOptions::default()).unwrap();
    let material = BackupInput {
        subject: BackupSubject::Domain { name: "web".into(), uuid: None },
        freeze: None,
        attachments: members.iter().map(|(name, content)| attachment(name, content.to_vec())).collect(),
        disks: vec![InputDisk { target: "vda".into(), image, hint: ChangeHint::Unknown }],
        parent: ParentChoice::Full(None),
        checkpoint: None,
        session: None,
    };
    let options = BackupOptions { compression, ..BackupOptions::default() };
    let (state, control) = (StateDirectories::new("/nowhere"), Control::default());
    // What counts as a pipe leaves no record.
    let destinations = Destinations::custom(Location::Pipe, |_, _| Ok(Box::new(FileMedium::create(&path)?)));
    let session =
        BackupSession { options: &options, destinations: &destinations, state: &state, control: &control };
    session.write(material).unwrap().finish(&control).unwrap();
    drop(destinations);
    path
}

fn read_back(path: &Path, wanted: &dyn Fn(&str) -> Option<u64>) -> Result<Vec<Attachment>> {
    let source = FileSource::open(path)?;
    let options = ReadOptions { workers: 2, cancel: Arc::default(), carrier: None, archive_id: None };
    ArchiveIndex::open(&source, &options, Trust::Strict)?.attachments(wanted, TOTAL_LIMIT)
}

#[test]
fn members_come_back_bounded_and_checked() {
    let place = place();
    // Longer than a chunk, and of no round length.
    let nvram: Vec<u8> = (0..3_000_001_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let members: [(&str, &[u8]); 4] =
        [("domain.xml", b"<x/>"), ("nvram.fd", &nvram), ("tpm/a", b""), ("unknown/file", b"kept")];
    for compression in [Compression::None, Compression::Zstd { level: 1 }] {
        let path = written(&place, &members, compression);
        let found = read_back(&path, &limit_of).unwrap();
        assert_eq!(names(&found), ["domain.xml", "nvram.fd", "tpm/a"]);
        assert!(found[1].content == nvram && found[2].content.is_empty());
        let all = read_back(&path, &|_| Some(u64::MAX)).unwrap();
        assert_eq!(names(&all)[3], "unknown/file");
        let error = read_back(&path, &|name| (name == "nvram.fd").then_some(3_000_000)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(read_back(&path, &|name| (name == "nvram.fd").then_some(3_000_001)).is_ok());
    }
    let path = written(&place, &members, Compression::None);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1_500_000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(read_back(&path, &limit_of).unwrap_err().kind(), ErrorKind::Damaged);
    let twice = written(&place, &[("domain.xml", b"<x/>"), ("domain.xml", b"<y/>")], Compression::None);
    assert!(read_back(&twice, &limit_of).unwrap_err().to_string().contains("twice"));
    let without = written(&place, &[], Compression::None);
    assert!(read_back(&without, &limit_of).unwrap().is_empty());
}

/// Links that QEMU's or swtpm's user has made where root reads the state of firmware and TPM.
#[test]
fn nothing_is_copied_through_a_planted_link() {
    let plant = |target: &Path, link: &Path| {
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(target, link).unwrap();
        std::os::unix::fs::lchown(link, Some(65_533), None).unwrap();
    };
    for (planted, target) in [
        (format!("swtpm/{UUID}/tpm2"), "root"),
        (format!("swtpm/{UUID}"), "root"),
        ("swtpm".to_owned(), "root"),
        (format!("swtpm/{UUID}/tpm2/tpm2-00.permall"), "root/shadow"),
        ("web_VARS.fd".to_owned(), "root/shadow"),
        ("vmlinuz".to_owned(), "root/shadow"),
    ] {
        let place = place();
        for name in ["root/shadow", "root/tpm2/shadow", &format!("root/{UUID}/tpm2/shadow")] {
            place.put(name, b"root's own");
        }
        if planted != "vmlinuz" {
            place.put("vmlinuz", b"kernel");
        }
        plant(&place.folder.path().join(target), &place.folder.path().join(&planted));
        let xml = place.xml();
        let guest = GuestXml { inactive: Some(&xml), live: None };
        let error = gather(guest, &place.places).unwrap_err();
        let said = format!("{error:?}");
        assert!(said.contains("is a link"), "{planted}: {said}");
    }
}

#[test]
fn all_of_them_together_have_a_limit() {
    let place = place();
    let members: Vec<(String, Vec<u8>)> = (0..5).map(|n| (format!("tpm/{n}"), vec![0; 1 << 20])).collect();
    let members: Vec<(&str, &[u8])> =
        members.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
    let path = written(&place, &members, Compression::Zstd { level: 1 });
    assert!(path.metadata().unwrap().len() < 64 << 10, "small, and yet much");
    let source = FileSource::open(&path).unwrap();
    let options = ReadOptions { workers: 2, cancel: Arc::default(), carrier: None, archive_id: None };
    let index = ArchiveIndex::open(&source, &options, Trust::Strict).unwrap();
    assert_eq!(index.attachments(&limit_of, 5 << 20).unwrap().len(), 5);
    let error = index.attachments(&limit_of, (5 << 20) - 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.to_string().contains("beside the disks have more than 4 MiB"), "{error}");
}
