//! Keys out of a file: AWS's shared credentials file, which the other tools of the field read, too.
//!
//! `AWS_SHARED_CREDENTIALS_FILE`, else `~/.aws/credentials`; the profile `AWS_PROFILE`, else `default`. The
//! file is refused unless only its owner can use it. Nothing of it is printed anywhere.
//!
//! Imports: `error`.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use virtfold_base::error::{Error, ErrorKind, IoContext, Result};

/// No file of keys is longer, bytes.
const MAX_FILE: u64 = 1 << 20;

/// Keys of an account. It has no `Debug`: they are shown to nobody.
pub(super) struct Credentials {
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) token: Option<String>,
}

/// The keys of the file and profile that the environment names; nothing where there is no such file.
///
/// # Errors
/// A file that was named is not there or can't be read; it is open to others; it has no such profile, or half
/// of one.
pub(super) fn from_file() -> Result<Option<Credentials>> {
    let named = std::env::var_os("AWS_SHARED_CREDENTIALS_FILE").filter(|path| !path.is_empty());
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".aws/credentials"));
    let Some(path) = named.clone().map(PathBuf::from).or_else(home) else { return Ok(None) };
    if named.is_none() && !path.exists() {
        return Ok(None);
    }
    let profile = std::env::var("AWS_PROFILE").ok().filter(|profile| !profile.is_empty());
    let text = read(&path)?;
    match find(&text, profile.as_deref().unwrap_or("default")) {
        ProfileLookup::Keys(keys) => Ok(Some(keys)),
        ProfileLookup::Nothing if profile.is_none() && named.is_none() => Ok(None),
        found => {
            let what = if matches!(found, ProfileLookup::Half) { "half of its keys" } else { "no keys" };
            let profile = profile.as_deref().unwrap_or("default").escape_debug();
            let message = format!("'{}' has {what} of profile '{profile}'", path.display());
            Err(Error::new(ErrorKind::NotFound, message).with_hint(
                "it needs aws_access_key_id and aws_secret_access_key; AWS_PROFILE names the profile",
            ))
        }
    }
}

fn read(path: &Path) -> Result<String> {
    let reading = || format!("cannot read the keys in '{}'", path.display());
    let file = File::open(path).at(reading)?;
    let metadata = file.metadata().at(reading)?;
    let others = metadata.mode() & 0o077;
    let owner = metadata.uid();
    if metadata.is_file() && (others != 0 || owner != 0 && owner != nix::unistd::geteuid().as_raw()) {
        let message = format!("'{}' holds keys and is not its reader's alone", path.display());
        return Err(Error::new(ErrorKind::Usage, message)
            .with_hint("chmod 600, and let it belong to who runs virtfold"));
    }
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text).at(reading)?;
    Ok(text)
}

enum ProfileLookup {
    Keys(Credentials),
    Half,
    Nothing,
}

/// The keys of a profile: the lines `name = value` below `[profile]`.
fn find(text: &str, profile: &str) -> ProfileLookup {
    let (mut id, mut secret, mut token) = (None, None, None);
    let mut here = false;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            let name = name.0.trim();
            here = name == profile || name.strip_prefix("profile ").map(str::trim) == Some(profile);
        } else if let Some((name, value)) =
            line.split_once('=').filter(|_| here && !line.starts_with(['#', ';']))
        {
            let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
            match name.trim() {
                "aws_access_key_id" => id = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    match (id, secret) {
        (Some(id), Some(secret)) => ProfileLookup::Keys(Credentials { id, secret, token }),
        (None, None) => ProfileLookup::Nothing,
        _ => ProfileLookup::Half,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const FILE: &str = "# a comment\n[default]\naws_access_key_id = A\naws_secret_access_key=S=/+\n\n[backup]\n\
        ; aws_access_key_id = no\naws_access_key_id=B\n aws_secret_access_key = T \naws_session_token = X\n\
        [half]\naws_access_key_id = C\n[none]\nregion = eu\n";

    fn keys(profile: &str) -> Option<(String, String, Option<String>)> {
        match find(FILE, profile) {
            ProfileLookup::Keys(keys) => Some((keys.id, keys.secret, keys.token)),
            _ => None,
        }
    }

    #[test]
    fn each_profile_has_its_own_keys() {
        assert_eq!(keys("default"), Some(("A".into(), "S=/+".into(), None)));
        assert_eq!(keys("backup"), Some(("B".into(), "T".into(), Some("X".into()))));
        assert!(matches!(find(FILE, "half"), ProfileLookup::Half));
        assert!(matches!(find(FILE, "none"), ProfileLookup::Nothing));
        assert!(matches!(find(FILE, "other"), ProfileLookup::Nothing));
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials");
        std::fs::write(&path, FILE).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), ErrorKind::Usage);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read(&path).unwrap(), FILE);
    }
}
