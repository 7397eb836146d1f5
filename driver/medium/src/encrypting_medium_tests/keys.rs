//! Keys: for their owner alone, and never repeated.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use age::secrecy::ExposeSecret;
use age::x25519::Identity;

use super::{Memory, kind};
use crate::{EncryptingMedium, Medium};
use virtfold_archive::crypt::{Envelope, Identities, Recipients};
use virtfold_base::error::ErrorKind;

fn key_file(folder: &Path, text: &[u8], mode: u32) -> PathBuf {
    let path = folder.join("key");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    path
}

#[test]
fn key_files_are_for_their_owner_and_are_never_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let secret = Identity::generate().to_string().expose_secret().to_owned();
    let load = |text: &str, mode| Identities::load(&[key_file(folder.path(), text.as_bytes(), mode)]);
    let good = format!("# created: today\n# public key: age1\n{secret}\n\n");
    for mode in [0o600, 0o400, 0o700] {
        let keys = load(&good, mode).unwrap();
        assert_eq!(format!("{keys:?}"), "Identities(1 keys)");
    }
    for mode in [0o640, 0o604, 0o620, 0o660, 0o666, 0o601] {
        let error = load(&good, mode).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{mode:o}");
        assert!(error.hint().unwrap().starts_with("chmod 600 "), "{mode:o}");
    }
    let cut = &secret[..secret.len() - 1];
    for (text, wanted) in [
        ("", ErrorKind::Usage),
        ("# nothing\n", ErrorKind::Usage),
        (cut, ErrorKind::Usage),
        (&format!("{secret} {secret}"), ErrorKind::Usage),
        ("AGE-SECRET-KEY-PQ-1QQ", ErrorKind::Unsupported),
        ("AGE-PLUGIN-YUBIKEY-1QQ", ErrorKind::Unsupported),
        ("age-encryption.org/v1\n-> scrypt x 18\n", ErrorKind::Unsupported),
        ("-----BEGIN AGE ENCRYPTED FILE-----\nYWdl\n", ErrorKind::Unsupported),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\n", ErrorKind::Unsupported),
    ] {
        let error = load(text, 0o600).unwrap_err();
        assert_eq!(error.kind(), wanted, "{text}");
        let said = format!("{error:?} {}", error.hint().unwrap());
        assert!(!said.contains(cut) && !said.contains("1QQ"), "{said}");
    }
    assert_eq!(kind(load(&"#".repeat(64 << 10), 0o600)), ErrorKind::Usage);
    assert_eq!(kind(Identities::load(&[folder.path().join("none")])), ErrorKind::NotFound);
    assert_eq!(kind(Identities::load(&[folder.path().to_owned()])), ErrorKind::Usage);
}

#[test]
fn recipients_are_public_keys_and_secret_ones_are_not_repeated() {
    let key = Identity::generate();
    let (public, secret) = (key.to_public().to_string(), key.to_string().expose_secret().to_owned());
    let given = |text: &str| Recipients::gather(&[text.to_owned()], None);
    assert!(Recipients::gather(&[], None).unwrap().is_none());
    let twice = Recipients::gather(&[public.clone(), format!(" {public}\n")], None).unwrap().unwrap();
    assert_eq!(twice.names().len(), 1);
    for bad in [
        secret.as_str(),
        &secret.to_lowercase(),
        &secret[..30],
        &public[..61],
        "",
        "ssh-ed25519 AAAAC3",
        "ågé",
    ] {
        let error = given(bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        let said = format!("{error:?} {}", error.hint().unwrap_or_default()).to_lowercase();
        assert!(bad.len() < 20 || !said.contains(&bad.to_lowercase()[..20]), "{said}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = |text: &str, mode| {
        let path = key_file(folder.path(), text.as_bytes(), mode);
        Recipients::gather(std::slice::from_ref(&public), Some(&path))
    };
    let other = Identity::generate().to_public();
    assert_eq!(file(&format!("# them\n\n{other}\r\n{public}\n"), 0o644).unwrap().unwrap().names().len(), 2);
    assert_eq!(kind(file(&other.to_string(), 0o646)), ErrorKind::Usage);
    assert_eq!(kind(file("# nobody\n", 0o644)), ErrorKind::Usage);
    let error = file(&format!("{other}\n{secret}\n"), 0o644).unwrap_err();
    assert!(
        error.to_string().starts_with("line 2 of '") && !error.to_string().contains(&secret[..30]),
        "{error}"
    );
    let many: Vec<String> = (0..257).map(|_| Identity::generate().to_public().to_string()).collect();
    assert_eq!(kind(Recipients::gather(&many, None)), ErrorKind::Usage);
    // As many as there may be fit into the header that readers take.
    let most = Recipients::gather(&many[..256], None).unwrap().unwrap();
    let kept = Arc::new(Mutex::new(Vec::new()));
    let medium = EncryptingMedium::begin(
        Box::new(Memory(Arc::clone(&kept), 64 << 10)),
        &Envelope::new(&most).unwrap(),
    )
    .unwrap();
    Box::new(medium).finish().unwrap();
}
