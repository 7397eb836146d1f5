//! Files with keys: read where nobody else can have written them, and made whole or not at all.
//!
//! The secret key is its owner's alone; the public one lies beside it (`.pub`). No link that others can have
//! made is followed (`safe_path`), and a file must belong to root or to who runs this. A key is never
//! replaced: an old one is moved aside first, under a name with the time.

use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{AllowedSigners, PublicKey, SigningKey};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::partial_file::{self, Overwrite, PartialFile};
use virtfold_base::safe_path::{self, Directory};

/// The longest file of keys, bytes.
const MAX_FILE: u64 = 1 << 20;
/// Permissions that only its owner may have of a secret key.
const SECRET: u32 = 0o077;
/// Permissions that others may not have of a list of public keys.
const SHARED: u32 = 0o022;

impl SigningKey {
    /// The key in the file at `path`; nothing where there is none.
    ///
    /// # Errors
    /// As [`SigningKey::parse`]; Denied, where others than its owner can use it, or it is another user's.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        let Some(text) = read(path, SECRET)? else { return Ok(None) };
        let unusable = |e: Error| e.within(format!("'{}' can't be used", path.display()));
        Self::parse(text.as_bytes()).map(Some).map_err(unusable)
    }

    /// Writes it to `path`, where no file may be, and its public key beside it.
    ///
    /// # Errors
    /// Exists: there is a key; it can't be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let secret = self.to_openssh()?;
        // First: who sees the secret key finds the public one, too.
        let public = format!("{} {}\n", self.public().to_openssh()?.trim_end(), self.host());
        if path.symlink_metadata().is_ok() {
            return Err(exists(path));
        }
        write(&public_path(path), public.as_bytes(), 0o644, Overwrite::Replace)?;
        write(path, secret.as_ref().as_bytes(), 0o600, Overwrite::Refuse)
    }

    /// Moves the key at `path` aside, and its public one: `suffix` tells it from others. Returns its new
    /// name.
    ///
    /// # Errors
    /// It can't be renamed; NotFound: there is none.
    pub fn move_aside(path: &Path, suffix: &str) -> Result<PathBuf> {
        let aside = with_suffix(path, suffix);
        let cannot = || format!("cannot move '{}' aside", path.display());
        let directory = Directory::open(path.parent().unwrap_or(Path::new("/"))).at(cannot)?;
        let public = public_path(path);
        for (from, to) in [(path, &*aside), (&*public, &*public_path(&aside))] {
            let (from, to) = (from.file_name().unwrap_or_default(), to.file_name().unwrap_or_default());
            if from == path.file_name().unwrap_or_default() || directory.find(from).at(cannot)?.is_some() {
                partial_file::rename(&directory, from, to, Overwrite::Refuse)?;
            }
        }
        directory.sync().at(cannot)?;
        Ok(aside)
    }
}

impl PublicKey {
    /// The public key beside the secret one at `path`, and the host that signs with it; nothing where there
    /// is none.
    ///
    /// # Errors
    /// Usage: it is none; Denied, as [`SigningKey::load`].
    pub fn load_beside(path: &Path) -> Result<Option<(String, Self)>> {
        let path = public_path(path);
        let Some(text) = read(&path, SHARED)? else { return Ok(None) };
        let none = || {
            Error::new(ErrorKind::Usage, format!("'{}' is not a public key of a host", path.display()))
                .with_hint(
                    "'ssh-keygen -y -f signing-key' prints the key that belongs there, with the host's name",
                )
        };
        let key = ssh_key::PublicKey::from_openssh(text.trim_end()).map_err(|e| none().with_source(e))?;
        let host = key.comment().to_owned();
        super::check_host(&host).map_err(|e| none().with_source(e))?;
        Ok(Some((host, Self::of(key.key_data()).ok_or_else(none)?)))
    }
}

impl AllowedSigners {
    /// The list in the file at `path`; nothing where there is none.
    ///
    /// # Errors
    /// As [`AllowedSigners::parse`]; Denied, where others can write to it.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        let Some(text) = read(path, SHARED)? else { return Ok(None) };
        Self::parse(&path.display().to_string(), &text).map(Some)
    }

    /// Adds those of `new` to the list at `path` that it does not have, which is made where there is none.
    /// Returns how many these are.
    ///
    /// # Errors
    /// Those of [`AllowedSigners::load`]; it can't be written.
    pub fn add_to(path: &Path, new: &Self) -> Result<usize> {
        let old = read(path, SHARED)?;
        let known = old.as_deref().map(|text| Self::parse(&path.display().to_string(), text)).transpose()?;
        let known = known.unwrap_or_default();
        let mut text = old.unwrap_or_default();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        let mut added = 0;
        for (host, key) in new.iter().filter(|(host, key)| !known.knows(host, key)) {
            text += &Self::line(host, key)?;
            text.push('\n');
            added += 1;
        }
        if added > 0 {
            write(path, text.as_bytes(), 0o644, Overwrite::Replace)?;
        }
        Ok(added)
    }
}

/// Where the public key lies of a secret one.
pub fn public_path(path: &Path) -> PathBuf {
    with_suffix(path, "pub")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

fn exists(path: &Path) -> Error {
    Error::new(ErrorKind::Exists, format!("'{}' exists: this host has a key", path.display()))
        .with_hint("--force makes a new one and keeps the old one aside; whoever trusts the old one must then trust the new one, too")
}

/// The text of a file that is its owner's, and of which others have none of `forbidden`.
fn read(path: &Path, forbidden: u32) -> Result<Option<String>> {
    let cannot = || format!("cannot read '{}'", path.display());
    let file: File = match safe_path::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(cannot(), error)),
    };
    let found = file.metadata().at(cannot)?;
    let name = path.display();
    if !found.is_file() {
        return Err(Error::new(ErrorKind::Usage, format!("'{name}' is not a regular file")));
    }
    let owner = found.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        let what = format!("'{name}' belongs to user {owner}, who could put another key there");
        return Err(Error::new(ErrorKind::Denied, what).with_hint(format!("chown root '{name}'")));
    }
    if found.mode() & forbidden != 0 {
        let mode = found.mode() & 0o7777;
        let what = format!("others than its owner can use '{name}' (mode {mode:04o})");
        let right = if forbidden == SECRET { "600" } else { "644" };
        return Err(Error::new(ErrorKind::Denied, what).with_hint(format!("chmod {right} '{name}'")));
    }
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).at(cannot)?;
    if text.len() as u64 > MAX_FILE {
        return Err(Error::new(ErrorKind::Usage, format!("'{name}' is too long for a file of keys")));
    }
    Ok(Some(text))
}

fn write(path: &Path, bytes: &[u8], mode: u32, existing: Overwrite) -> Result<()> {
    let file = PartialFile::create(path, existing)?;
    let cannot = || format!("cannot write '{}'", path.display());
    let mut out = file.file();
    out.write_all(bytes).at(cannot)?;
    out.set_permissions(Permissions::from_mode(mode)).at(cannot)?;
    file.commit_or_drop(existing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_key_is_made_once_and_moved_aside_before_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signing-key");
        assert!(SigningKey::load(&path).unwrap().is_none());
        let (one, two) = (SigningKey::new("web").unwrap(), SigningKey::new("web").unwrap());
        one.save(&path).unwrap();
        let refused = two.save(&path).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Exists);
        let known = |path: &Path| SigningKey::load(path).unwrap().unwrap().public();
        assert_eq!(known(&path), one.public());
        let beside = PublicKey::load_beside(&path).unwrap();
        assert_eq!(beside, Some(("web".to_owned(), one.public())));
        let aside = SigningKey::move_aside(&path, "old-1").unwrap();
        two.save(&path).unwrap();
        assert_eq!((known(&path), known(&aside)), (two.public(), one.public()));
        assert_eq!(PublicKey::load_beside(&path).unwrap().unwrap().1, two.public());
        assert_eq!(PublicKey::load_beside(&aside).unwrap().unwrap().1, one.public());
    }

    #[test]
    fn a_key_that_others_can_use_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signing-key");
        SigningKey::new("web").unwrap().save(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        for mode in [0o640, 0o604, 0o620] {
            set_mode(&path, mode);
            assert_eq!(SigningKey::load(&path).unwrap_err().kind(), ErrorKind::Denied, "{mode:o}");
        }
        set_mode(&path, 0o600);
        std::os::unix::fs::chown(&path, Some(1), None).unwrap();
        assert_eq!(SigningKey::load(&path).unwrap_err().kind(), ErrorKind::Denied);
        // A link that others can have made.
        set_mode(folder.path(), 0o777);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/etc/hostname", &link).unwrap();
        SigningKey::load(&link).unwrap_err();
    }

    #[test]
    fn a_list_grows_by_what_it_does_not_have() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("allowed-signers");
        assert!(AllowedSigners::load(&path).unwrap().is_none());
        let line = |host: &str| AllowedSigners::line(host, &SigningKey::new(host).unwrap().public()).unwrap();
        let list = |text: &str| AllowedSigners::parse("given", text).unwrap();
        let (one, two) = (line("a"), line("b"));
        assert_eq!(AllowedSigners::add_to(&path, &list(&one)).unwrap(), 1);
        std::fs::write(&path, format!("# ours\n{one}")).unwrap();
        assert_eq!(AllowedSigners::add_to(&path, &list(&format!("{one}\n{two}"))).unwrap(), 1);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("# ours\n{one}\n{two}\n"));
        set_mode(&path, 0o666);
        assert_eq!(AllowedSigners::load(&path).unwrap_err().kind(), ErrorKind::Denied);
    }
}
