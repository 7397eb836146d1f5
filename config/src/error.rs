//! What can be wrong with a configuration. Each error is one sentence that begins with the place, as
//! compilers write it (`FILE:LINE:COLUMN: ...`), so that editors jump there, and ends with what to do where
//! that is known.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::position::Position;

/// Why a configuration can't be used.
#[derive(Debug)]
pub enum ConfigError {
    /// A file or the directory `conf.d` can't be read.
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that can't be part of a configuration: not a regular file, too large, not UTF-8, a wrong name.
    Refused {
        /// The file or directory.
        path: PathBuf,
        /// The rest of the sentence that begins with the path.
        why: String,
    },
    /// The text is not YAML, or not the part of YAML that a configuration may use.
    Syntax {
        /// Where the parser stopped.
        place: Position,
        /// What it says.
        message: String,
    },
    /// A key that virtfold does not know.
    UnknownKey {
        /// Where it stands.
        place: Position,
        /// Its path, dotted.
        key: String,
        /// The keys that may stand there.
        known: &'static [&'static str],
        /// The known key that it looks like.
        meant: Option<&'static str>,
    },
    /// A key with a value that it can't have.
    BadValue {
        /// Where the key stands.
        place: Position,
        /// Its path, dotted; empty for the whole document.
        key: String,
        /// What is wrong with the value.
        message: String,
        /// The word that it looks like.
        meant: Option<String>,
    },
    /// A key that must be there is not.
    Missing {
        /// The file, or the mapping in it, that lacks the key.
        place: Position,
        /// Its path, dotted.
        key: String,
    },
    /// A key is set twice, in one file or in two.
    Twice {
        /// Its path, dotted.
        key: String,
        /// Where it is set first.
        first: Position,
        /// Where it is set again.
        second: Position,
    },
}

impl ConfigError {
    /// Whether a file is there that who asks may not read.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Unreadable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, .. } => write!(f, "{}: cannot be read", path.display()),
            Self::Refused { path, why } => write!(f, "{}: {why}", path.display()),
            Self::Syntax { place, message } => write!(f, "{place}: not valid YAML: {message}"),
            Self::UnknownKey { place, key, known, meant } => {
                write!(f, "{place}: `{key}` is not a key; ")?;
                match meant {
                    Some(word) => {
                        write!(f, "did you mean `{word}`?")?;
                        let example = crate::examples::section(word);
                        example.map_or(Ok(()), |example| write!(f, " For example `{example}`"))
                    }
                    None => write!(f, "known here: {}", known.join(", ")),
                }
            }
            Self::BadValue { place, key, message, meant } => {
                write!(f, "{place}: ")?;
                if !key.is_empty() {
                    write!(f, "`{key}`: ")?;
                }
                f.write_str(message)?;
                meant.as_ref().map_or(Ok(()), |word| write!(f, "; did you mean `{word}`?"))
            }
            Self::Missing { place, key } => write!(f, "{place}: the key `{key}` is missing"),
            Self::Twice { key, first, second } => {
                write!(f, "{second}: `{key}` is set again; it was set at {first}")
            }
        }
    }
}

impl Error for ConfigError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unreadable { source, .. } => Some(source),
            _ => None,
        }
    }
}
