//! The file with the credentials of an object store: one `NAME=VALUE` a line, as systemd's `EnvironmentFile=`
//! has it. Empty lines and those that begin with `#` or `;` mean nothing; quotes around a whole value are
//! taken off. There are no other escapes, and no variables.
//!
//! Invariants: no error and no debug text repeats a value; a file that is not for its owner alone is refused
//! ([`virtfold_base::safe_path::trust`]), and so is a variable that changes what programs load or run.

use std::fmt;
use std::path::Path;

use crate::error::ConfigError;
use crate::keys::Medium;
use crate::load::{read, refused};
use virtfold_base::safe_path::trust::{self, OthersAccess};

/// The most variables of a file.
const MAX: usize = 1000;

/// Variables that change what programs load, run or believe, and are no credentials: those that the C library
/// ignores in programs with more rights than their caller, and those of shells and interpreters. A `*` stands
/// for any rest.
const REFUSED: [&str; 33] = [
    "BASHOPTS",
    "BASH_ENV",
    "BASH_FUNC_*",
    "CDPATH",
    "ENV",
    "GCONV_PATH",
    "GETCONF_DIR",
    "GLIBC_TUNABLES",
    "HOME",
    "HOSTALIASES",
    "IFS",
    "LD_*",
    "LOCALDOMAIN",
    "LOCPATH",
    "MALLOC_*",
    "NIS_PATH",
    "NLSPATH",
    "NODE_*",
    "OPENSSL_*",
    "PATH",
    "PERL*",
    "PROMPT_COMMAND",
    "PS4",
    "PYTHON*",
    "RESOLV_HOST_CONF",
    "RES_OPTIONS",
    "RUBY*",
    "SHELL",
    "SHELLOPTS",
    "TMPDIR",
    "TZDIR",
    "USER",
    "VIRTFOLD_CONFIG",
];

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
        let text = read(path, trust::open(path, OthersAccess::Nothing))?;
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
            if changes_programs(name) {
                return wrong(&format!(
                    "sets {name}, which holds no credentials and changes what programs run"
                ));
            }
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

fn changes_programs(name: &str) -> bool {
    REFUSED.iter().any(|refused| match refused.strip_suffix('*') {
        Some(begin) => name.starts_with(begin),
        None => name == *refused,
    })
}

/// A value without the quotes around it; `None` where only one of them is there.
fn unquoted(value: &str) -> Option<&str> {
    let value = value.trim();
    match value.chars().next().filter(|quote| matches!(quote, '"' | '\'')) {
        Some(quote) => value.strip_prefix(quote)?.strip_suffix(quote),
        None => Some(value),
    }
}
