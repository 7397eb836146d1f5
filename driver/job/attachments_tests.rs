//! Gathering from real files, and what must be refused.

use super::*;

struct Place {
    folder: tempfile::TempDir,
    places: LibvirtPlaces,
}

const UUID: &str = "3b51a0a6-3c5a-4c1e-9d0b-2b4f6f1f8f11";

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let places = LibvirtPlaces::system(folder.path());
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
