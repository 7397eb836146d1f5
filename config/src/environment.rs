//! The file with the credentials of an object store: one `NAME=VALUE` a line, as systemd's `EnvironmentFile=`
//! has it. Empty lines and those that begin with `#` or `;` mean nothing; quotes around a whole value are
//! taken off. There are no other escapes, and no variables.
//!
//! Invariants: no error and no debug text repeats a value; a file that others may read or write is refused.

use std::fmt;
use std::path::Path;

use crate::error::ConfigError;
use crate::keys::Medium;
use crate::load::{OthersAccess, read_file, refused};

/// The most variables of a file.
const MAX: usize = 1000;

/// Variables by name, in the order of the file.
#[derive(Clone, PartialEq, Eq)]
pub struct Environment(Vec<(String, String)>);

impl Environment {
    /// Names and values.
    pub fn as_slice(&self) -> &[(String, String)] {
        &self.0
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// It can't be read, others may read or write it, or a line is no variable.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read_file(path, OthersAccess::Nothing)?;
        let mut all: Vec<(String, String)> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            let wrong = |why: &str| Err(refused(path, format!("line {number} {why}")));
            let Some((name, value)) = line.split_once('=').filter(|(name, _)| is_name(name)) else {
                return wrong("is not NAME=VALUE");
            };
            let Some(value) = unquoted(value) else { return wrong("has a quote that does not end") };
            if value.contains('\0') {
                return wrong("has a zero byte");
            }
            if all.iter().any(|(other, _)| other == name) {
                return wrong(&format!("sets {name} again"));
            }
            if all.len() == MAX {
                return wrong(&format!("is one variable too many; {MAX} are the most"));
            }
            all.push((name.to_owned(), value.to_owned()));
        }
        Ok(Self(all))
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl Medium {
    /// The variables of its `environment-file`; none where it has no such key.
    ///
    /// # Errors
    /// Those of [`Environment::load`].
    pub fn environment(&self) -> Result<Environment, ConfigError> {
        self.environment_file
            .as_ref()
            .map_or(Ok(Environment(Vec::new())), |file| Environment::load(file.as_path()))
    }
}

fn is_name(name: &str) -> bool {
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    begins && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A value without the quotes around it; `None` where only one of them is there.
fn unquoted(value: &str) -> Option<&str> {
    let value = value.trim();
    match value.chars().next().filter(|quote| matches!(quote, '"' | '\'')) {
        Some(quote) => value.strip_prefix(quote)?.strip_suffix(quote),
        None => Some(value),
    }
}
