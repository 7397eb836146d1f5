//! Which archive of its subject a signed one is.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use virtfold_base::error::{Error, ErrorKind, Result};

/// The longest name of a subject, bytes.
const MAX_SUBJECT: usize = 256;
/// The longest name of a host, bytes.
const MAX_HOST: usize = 255;

/// What a signed archive's end record says beyond an unsigned one's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainLink {
    /// What the archive is of, the same in all archives of it.
    pub subject: String,
    /// Whose key signs it.
    pub host: String,
    /// Its number among those of this subject by this host, from 1, ascending.
    pub sequence: u64,
    /// The one that was finished before it at the same destination.
    pub previous: Option<PreviousArchive>,
}

/// The archive that another one comes behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreviousArchive {
    /// Its root, 64 hexadecimal digits in lower case.
    pub root: String,
    /// Its id.
    pub archive: Uuid,
    /// Its number.
    pub sequence: u64,
}

impl ChainLink {
    /// As the end record has it, behind its other fields.
    pub(crate) fn encode(&self) -> String {
        let Self { subject, host, sequence, previous } = self;
        let previous = match previous {
            None => "null".to_owned(),
            Some(PreviousArchive { root, archive, sequence }) => format!(
                "{{\"root\":\"{root}\",\"archive\":\"{}\",\"sequence\":{sequence}}}",
                archive.hyphenated()
            ),
        };
        format!(
            ",\"subject\":\"{subject}\",\"host\":\"{host}\",\"sequence\":{sequence},\"previous\":{previous}"
        )
    }

    /// What in it can't be so.
    ///
    /// # Errors
    /// A part of a sentence.
    pub(crate) fn check(&self) -> std::result::Result<(), &'static str> {
        if !is_name(&self.subject, MAX_SUBJECT, ".:_@-") {
            return Err("names an impossible subject");
        }
        if !is_name(&self.host, MAX_HOST, HOST) {
            return Err("names an impossible host");
        }
        let root = |text: &str| {
            text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let before = match &self.previous {
            None => 0,
            Some(previous) if previous.sequence > 0 && root(&previous.root) => previous.sequence,
            Some(_) => return Err("names an impossible archive before it"),
        };
        if self.sequence <= before { Err("has an impossible number in its sequence") } else { Ok(()) }
    }
}

/// What may stand in a host's name beside letters and digits.
const HOST: &str = "._@-";

fn is_name(text: &str, longest: usize, others: &str) -> bool {
    (1..=longest).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

/// Checks the name that a host signs by: what a list of allowed signers takes without quotes or patterns.
///
/// # Errors
/// Usage.
pub fn check_host(name: &str) -> Result<()> {
    if is_name(name, MAX_HOST, HOST) {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    Err(Error::new(ErrorKind::Usage, format!("invalid name of a signer '{}'", shown.escape_debug()))
        .with_hint("use 1 to 255 letters, digits, '.', '_', '@' or '-', for example 'web.example.org'"))
}
