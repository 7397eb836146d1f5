//! Why a qcow2 header is refused.
//!
//! Imports: `error`.

use virtfold_base::error::{Error, ErrorKind};

/// Why a header is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    /// It contradicts the format.
    Bad(String),
    /// It asks for what virtfold does not do.
    Unsupported(String),
}

impl HeaderError {
    /// The error for the image called `name`.
    pub(super) fn into_error(self, name: &str) -> Error {
        match self {
            Self::Bad(what) => Error::new(ErrorKind::BadImage, format!("'{name}' is damaged: {what}")),
            Self::Unsupported(what) => Error::new(ErrorKind::Unsupported, format!("'{name}' {what}")),
        }
    }
}

pub(super) fn bad<T>(what: impl Into<String>) -> Result<T, HeaderError> {
    Err(HeaderError::Bad(what.into()))
}
