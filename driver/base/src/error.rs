//! The library's one error type: a small kind that says what the caller can do, a sentence that says what
//! happened to which thing, an optional hint that says what a person can do next, and the source.
//!
//! `Display` prints the sentence alone and never repeats the source; whoever reports an error walks the
//! chain (`driver/cli/src/exit.rs` does, and maps kinds to exit codes).
//!
//! This module imports nothing of the crate; everything may import it.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// What kind of failure it is. Each kind has one exit code; programs see its name with hyphens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The request makes no sense or contradicts itself.
    Usage,
    /// An input or output failed: the file, device or pipe says no.
    Io,
    /// The medium is full.
    NoSpace,
    /// Who runs this may not: permissions, or a file system that is read-only.
    Denied,
    /// The thing is there already and may not be overwritten.
    Exists,
    /// The thing is not there.
    NotFound,
    /// Somebody else is using the thing.
    InUse,
    /// A source image contradicts its format; its data cannot be trusted.
    BadImage,
    /// A source or archive asks for a feature that virtfold does not know or does not support.
    Unsupported,
    /// Bytes of an archive are not what was written.
    Damaged,
    /// An archive ends before its end record.
    Incomplete,
    /// An archive is encrypted, and no identity that was given opens it.
    Locked,
    /// The hypervisor or the service said no, or is not there.
    Refused,
    /// The run was ended by a signal.
    Interrupted,
    /// A defect of virtfold itself.
    Internal,
}

/// A failure: kind, sentence, hint, source.
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The library's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind` with a sentence that names the thing it happened to.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, source: None }
    }

    /// A failed input or output; `ENOSPC` and its like become [`ErrorKind::NoSpace`], a missing file
    /// [`ErrorKind::NotFound`], an existing one [`ErrorKind::Exists`], what is not permitted
    /// [`ErrorKind::Denied`]. One that went through somebody else's code as the cause of an [`io::Error`]
    /// keeps its kind and its hint.
    pub fn io(message: impl Into<String>, source: io::Error) -> Self {
        let source = match source.downcast::<Self>() {
            Ok(ours) => return ours.within(message),
            Err(source) => source,
        };
        let is_too_large = source.kind() == io::ErrorKind::FileTooLarge;
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::AlreadyExists => ErrorKind::Exists,
            _ => ErrorKind::Io,
        };
        let error = Self::new(kind, message).with_source(source);
        match is_too_large {
            true => error.with_hint(
                "a file can't be larger there: FAT (vfat) ends at 4 GiB, and so may a limit of the process ('ulimit -f'); name a place on another file \
                 system (exFAT, ext4, XFS), or back up the disks one by one",
            ),
            false => error,
        }
    }

    /// Adds what a person can do next.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Puts this error under a sentence that says what was being done; kind and hint stay.
    #[must_use]
    pub fn within(mut self, message: impl Into<String>) -> Self {
        let hint = self.hint.take();
        Self { kind: self.kind, message: message.into(), hint, source: Some(Box::new(self)) }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What a person can do next, where there is something: as it was given, or what helps with every failure
    /// of the kind.
    pub fn hint(&self) -> Option<&str> {
        let of_kind = match self.kind {
            ErrorKind::NoSpace => Some(
                "free some space there or raise the quota ('df', 'quota' tell), or name another place; then run it again",
            ),
            ErrorKind::Denied => Some(
                "run it as root, or as the user whom the permissions of that file and of the directories above it let",
            ),
            _ => None,
        };
        self.hint.as_deref().or(of_kind)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, sentence(self))
    }
}

/// An error and its causes in one line, outermost first.
pub fn sentence(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|s| s as &(dyn StdError + 'static))
    }
}

/// Whether what another program said, libvirt or `qemu-img`, is that something is full: it has no number for
/// that.
pub fn says_full(text: &str) -> bool {
    ["No space left on device", "Disk quota exceeded"].iter().any(|words| text.contains(words))
}

/// Turns an [`io::Result`] into ours with a sentence.
pub trait IoContext<T> {
    /// The sentence is made only when there is an error.
    ///
    /// # Errors
    /// The one at hand, as [`Error::io`].
    fn at(self, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn at(self, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::io(message(), e.into()))
    }
}

/// An error on its way to another process, or to several who asked for the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireError {
    /// What kind of failure it is.
    pub kind: ErrorKind,
    /// What happened, with its causes.
    pub sentence: String,
    /// What can be done about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl From<&Error> for WireError {
    fn from(error: &Error) -> Self {
        Self { kind: error.kind(), sentence: sentence(error), hint: error.hint().map(ToOwned::to_owned) }
    }
}

impl From<WireError> for Error {
    fn from(told: WireError) -> Self {
        let error = Self::new(told.kind, told.sentence);
        match told.hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

/// What is there unless the code is wrong: an invariant that does not hold ends the work, and is never made
/// up for by a default, which would write something that nobody has read.
pub trait OrInternal<T> {
    /// The value.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`], which says that `what` is broken.
    fn or_internal(self, what: &'static str) -> Result<T>;
}

impl<T> OrInternal<T> for Option<T> {
    fn or_internal(self, what: &'static str) -> Result<T> {
        self.ok_or_else(|| Error::new(ErrorKind::Internal, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_errors_map_to_kinds_and_display_never_repeats_the_source() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error = Error::io("cannot write 'a.tar'", full).with_hint("free some space");
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(error.to_string(), "cannot write 'a.tar'");
        assert!(error.source().is_some());
        // Whatever is full or forbidden has a hint, and its own goes before that of the kind.
        assert_eq!(error.hint(), Some("free some space"));
        for (errno, kind) in [
            (28, ErrorKind::NoSpace),
            (122, ErrorKind::NoSpace),
            (13, ErrorKind::Denied),
            (30, ErrorKind::Denied),
        ] {
            let error = Error::io("cannot write", io::Error::from_raw_os_error(errno)).within("it ends");
            assert_eq!(error.kind(), kind);
            assert!(error.hint().is_some(), "{errno}");
        }
        // What FAT says of a file of 4 GiB.
        let large = Error::io("cannot write", io::Error::from_raw_os_error(27));
        assert_eq!(large.kind(), ErrorKind::Io);
        assert!(large.hint().is_some_and(|hint| hint.contains("4 GiB")));
        let carried = Error::io(
            "cannot write on",
            io::Error::other(Error::new(ErrorKind::Damaged, "it is cut").with_hint("look")),
        );
        assert_eq!((carried.kind(), carried.hint()), (ErrorKind::Damaged, Some("look")));
        assert_eq!(sentence(&carried), "cannot write on: it is cut");
        let outer = error.within("backup of vm1 failed");
        assert_eq!(outer.kind(), ErrorKind::NoSpace);
        assert_eq!(outer.hint(), Some("free some space"));
        assert!(format!("{outer:?}").contains("cannot write 'a.tar'"));
    }
}
