//! How this host is called in archives, and what tells it from others of that name.
//!
//! The id is made of `/etc/machine-id`, which systemd asks to keep confidential: a keyed digest of it tells
//! hosts apart, and nothing else. A host without a machine id has its name alone.
//!
//! Imports: `error`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use virtfold_archive::manifest::HOST_ID_LEN;
use virtfold_base::error::{Error, IoContext, Result};

const MACHINE_ID: &str = "/etc/machine-id";
/// What the digest is for, so that no other program's is the same.
const CONTEXT: &str = "virtfold 2026-11-30 host_id of an archive";
/// A machine id and a newline.
const LONGEST: u64 = 33;

/// What this host is called.
///
/// # Errors
/// It has no name.
pub fn name() -> Result<String> {
    let name = nix::unistd::gethostname().at(|| "cannot tell the host's name".to_owned())?;
    Ok(name.to_string_lossy().into_owned())
}

/// What tells this host from others of its name; nothing where it has no machine id.
///
/// # Errors
/// Its machine id can't be read.
pub fn id() -> Result<Option<String>> {
    id_in(Path::new(MACHINE_ID))
}

fn id_in(path: &Path) -> Result<Option<String>> {
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut text)) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(format!("cannot read '{}'", path.display()), e)),
    }
    let machine = text.trim_end();
    // Before its first boot is over a host has `uninitialized` there, or nothing.
    if machine.len() != 32 || !machine.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let digest = blake3::Hash::from_bytes(blake3::derive_key(CONTEXT, machine.as_bytes())).to_hex();
    Ok(digest.get(..HOST_ID_LEN).map(ToOwned::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_apart_and_keep_their_machine_ids_to_themselves() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("machine-id");
        let id = |text: &str| {
            std::fs::write(&path, text).unwrap();
            id_in(&path).unwrap()
        };
        let (one, two) = ("0123456789abcdef0123456789abcdef", "1123456789abcdef0123456789abcdef");
        let known = id(&format!("{one}\n")).unwrap();
        assert_eq!((known.len(), known == one), (HOST_ID_LEN, false));
        assert_eq!(id(one).as_ref(), Some(&known));
        assert_ne!(id(two), Some(known));
        for none in ["", "uninitialized\n", &one[1..], &format!("{one}0")] {
            assert_eq!(id(none), None, "{none}");
        }
        assert_eq!(id_in(&folder.path().join("none")).unwrap(), None);
        assert!(id_in(folder.path()).is_err());
    }
}
