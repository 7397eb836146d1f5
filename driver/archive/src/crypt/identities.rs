//! The secret keys that open archives: from files, and never anywhere else.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use age::secrecy::{ExposeSecret, SecretSlice};
use age::x25519::Identity;

use virtfold_base::error::{Error, ErrorKind, IoContext, Result};

/// The longest key file, bytes.
const MAX_FILE: usize = 64 << 10;
/// What stands in files that hold other keys than these, in the file's first line or in a line of it.
const OTHERS: [(&str, &str); 5] = [
    ("age-encryption.org/", PASSPHRASE),
    ("-----BEGIN AGE ENCRYPTED FILE-----", PASSPHRASE),
    ("-----BEGIN ", "an SSH or PEM key, which virtfold does not support"),
    ("AGE-PLUGIN-", "a plugin's key, which virtfold does not support"),
    ("AGE-SECRET-KEY-PQ-", "a post-quantum key, which virtfold does not support"),
];
const PASSPHRASE: &str = "encrypted with a passphrase, which virtfold does not support";

/// Secret keys; none of them is printed by anything.
#[derive(Clone, Default)]
pub struct Identities(Arc<Vec<Identity>>);

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identities({} keys)", self.0.len())
    }
}

impl Identities {
    /// Reads the keys of all `files`, as age-keygen writes them: one a line, with empty lines and lines that
    /// begin with `#` passed over.
    ///
    /// # Errors
    /// Usage, where group or others can read a file, or where it holds no key or something else;
    /// Unsupported, where it is encrypted or holds keys of another kind. Messages name the file and the line,
    /// never what stands in it.
    pub fn load(files: &[PathBuf]) -> Result<Self> {
        let mut keys = Vec::new();
        for path in files {
            let found = read(path)?;
            if found.is_empty() {
                let what = format!("no key in '{}'", path.display());
                return Err(Error::new(ErrorKind::Usage, what)
                    .with_hint("a key file is what age-keygen writes: AGE-SECRET-KEY-1..."));
            }
            keys.extend(found);
        }
        Ok(Self(Arc::new(keys)))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, as the `age` crate wants them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.0.iter().map(|identity| identity as &dyn age::Identity)
    }

    /// These keys.
    pub fn of(keys: Vec<Identity>) -> Self {
        Self(Arc::new(keys))
    }
}

/// The keys in one file.
fn read(path: &Path) -> Result<Vec<Identity>> {
    let name = path.display();
    let reading = || format!("cannot read the identities in '{name}'");
    // Opening a FIFO would wait for a writer, were it not for O_NONBLOCK.
    let opened = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let file = opened.at(reading)?;
    let metadata = file.metadata().at(reading)?;
    if !metadata.is_file() {
        let what = format!("'{name}' is not a regular file: it can't be a key file");
        return Err(Error::new(ErrorKind::Usage, what));
    }
    if metadata.mode() & 0o077 != 0 {
        let what = format!(
            "the key file '{name}' can be used by others than its owner (mode {:04o})",
            metadata.mode() & 0o7777
        );
        return Err(Error::new(ErrorKind::Usage, what).with_hint(format!("chmod 600 '{name}'")));
    }
    // One buffer that never moves, so that no copy of a key is left behind.
    let mut bytes = Box::new([0; MAX_FILE]);
    let mut len = 0;
    loop {
        let got = (&file).read(bytes.get_mut(len..).unwrap_or_default());
        match got {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(reading(), error)),
        }
    }
    let bytes = SecretSlice::from(bytes as Box<[u8]>);
    if len == MAX_FILE {
        let what = format!("'{name}' is longer than 64 KiB: not a key file");
        return Err(Error::new(ErrorKind::Usage, what));
    }
    parse(bytes.expose_secret().get(..len).unwrap_or_default(), &name.to_string())
}

/// The keys in the text of a file called `name`.
fn parse(bytes: &[u8], name: &str) -> Result<Vec<Identity>> {
    let mut keys = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        if let Some((_, what)) = OTHERS.iter().find(|(mark, _)| line.starts_with(mark.as_bytes())) {
            let message = format!("the key file '{name}' can't be used: line {} is of {what}", index + 1);
            let message =
                if *what == PASSPHRASE { format!("the key file '{name}' is {what}") } else { message };
            return Err(Error::new(ErrorKind::Unsupported, message)
                .with_hint("'age -d' decrypts a key file, into one with mode 600; age-keygen makes a key"));
        }
        let key = std::str::from_utf8(line).ok().and_then(|line| line.parse().ok());
        keys.push(key.ok_or_else(|| {
            let what = format!("line {} of the key file '{name}' is not an age secret key", index + 1);
            Error::new(ErrorKind::Usage, what)
                .with_hint("a key file is what age-keygen writes: AGE-SECRET-KEY-1...")
        })?);
    }
    Ok(keys)
}
