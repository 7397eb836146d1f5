//! The keys that archives are encrypted to: public, so they may be seen.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use age::x25519::Recipient;

use virtfold_base::error::{Error, ErrorKind, IoContext, Result};

/// More would not fit into the header that readers accept.
const MOST: usize = 256;
/// The longest file of recipients, bytes.
const MAX_FILE: u64 = 1 << 20;
/// What a secret key begins with, in either case.
const SECRET: &str = "AGE-SECRET-KEY-";

/// Public keys, at least one, none twice. Each of their secret keys opens what is encrypted to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipients(Arc<[Recipient]>);

impl Recipients {
    /// Reads recipients as people write them: `age1...`; and those of a file, one a line, with empty lines
    /// and lines that begin with `#` passed over. `None` where neither names any.
    ///
    /// # Errors
    /// Usage, where one is no X25519 recipient, or where everybody may write the file; the message
    /// repeats nothing that could be a secret key. Those of reading the file; a file without a recipient.
    pub fn gather(given: &[String], file: Option<&Path>) -> Result<Option<Self>> {
        let mut all = Vec::new();
        for (index, text) in given.iter().enumerate() {
            all.push(parse(text, &format!("recipient number {}", index + 1))?);
        }
        if let Some(path) = file {
            let name = path.display();
            let before = all.len();
            for (index, line) in read(path)?.lines().enumerate() {
                let line = line.trim();
                if !line.is_empty() && !line.starts_with('#') {
                    all.push(parse(line, &format!("line {} of '{name}'", index + 1))?);
                }
            }
            if all.len() == before {
                let what = format!("no recipient in '{name}'");
                return Err(Error::new(ErrorKind::Usage, what).with_hint("one a line, age1..."));
            }
        }
        let mut unique: Vec<Recipient> = Vec::with_capacity(all.len());
        for recipient in all {
            if !unique.contains(&recipient) {
                unique.push(recipient);
            }
        }
        if unique.len() > MOST {
            let what = format!("an archive has at most {MOST} recipients, not {}", unique.len());
            return Err(Error::new(ErrorKind::Usage, what));
        }
        Ok((!unique.is_empty()).then(|| Self(unique.into())))
    }

    /// All of them, as people write them.
    pub fn names(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    /// All of them, as the `age` crate wants them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &dyn age::Recipient> {
        self.0.iter().map(|recipient| recipient as &dyn age::Recipient)
    }
}

/// Reads one recipient; `place` says where it stands.
fn parse(text: &str, place: &str) -> Result<Recipient> {
    let text = text.trim();
    if text.get(..SECRET.len()).is_some_and(|start| start.eq_ignore_ascii_case(SECRET)) {
        // It stood on a command line or in a file for public keys: others have seen it.
        let what = format!(
            "{place} is a secret key (AGE-SECRET-KEY-...), and archives are encrypted to public ones"
        );
        return Err(Error::new(ErrorKind::Usage, what).with_hint(
            "treat it as compromised: make a new one with age-keygen, and use its public key, age1...",
        ));
    }
    text.parse::<Recipient>().map_err(|_| {
        let hint = match text.get(..4) {
            Some("ssh-") => "SSH keys are not supported: make an age key with age-keygen",
            Some("age1") => "an X25519 recipient is 'age1' and 58 characters, as age-keygen prints it",
            _ => "a recipient is a public key, age1..., as age-keygen prints it",
        };
        Error::new(ErrorKind::Usage, format!("{place} is not an age X25519 recipient")).with_hint(hint)
    })
}

/// Reads a file of recipients.
fn read(path: &Path) -> Result<String> {
    let name = path.display();
    let reading = || format!("cannot read the recipients in '{name}'");
    let file = File::open(path).at(reading)?;
    if file.metadata().at(reading)?.mode() & 0o002 != 0 {
        let what = format!("everybody may write '{name}', and so choose who can read the backups");
        return Err(Error::new(ErrorKind::Usage, what).with_hint(format!("chmod o-w '{name}'")));
    }
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).at(reading)?;
    if text.len() as u64 > MAX_FILE {
        let what = format!("'{name}' is longer than 1 MiB: not a recipients file");
        return Err(Error::new(ErrorKind::Usage, what));
    }
    Ok(text)
}
