//! What people and programs call a place for archives, or an archive: the one grammar of `--to` and of every
//! verb that takes an archive.
//!
//! - `-`: standard output or input.
//! - `s3://BUCKET` or `s3://BUCKET/PREFIX`: an object store. An archive in it is called by its whole key.
//! - `tape:DEVICE`: a tape in a drive; `tape:DEVICE#ID` and `tape:DEVICE#latest` are archives on it.
//! - everything else: a path. A file whose name looks like one of the others is `./NAME`.
//!
//! Whether the place is there is not looked at. An address holds no secrets: one that seems to is refused,
//! and not repeated.
//!
//! Imports: `error`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use virtfold_base::error::{Error, ErrorKind};

/// The shortest and longest names that S3 allows for a bucket, bytes.
const BUCKET: std::ops::RangeInclusive<usize> = 3..=63;
/// The longest key that S3 allows, bytes.
const MAX_KEY: usize = 1024;
/// Digits of an archive's id that name it: as few as are in its file's name, at most all with their hyphens.
const ID: std::ops::RangeInclusive<usize> = 8..=36;

/// A place for archives, or an archive.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Location {
    /// Standard output or input.
    Pipe,
    /// A directory for archives, or an archive's file.
    Path(PathBuf),
    /// A place in an object store, or an archive in it.
    Object(ObjectAddress),
    /// A tape in a drive, or an archive on it.
    Tape(TapeAddress),
}

/// A bucket and what keys in it begin with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectAddress {
    /// The bucket.
    pub bucket: String,
    /// Parts of a key with `/` between them, none at its ends; empty for the whole bucket.
    pub key: String,
}

/// A tape drive, and which archive of the tape in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TapeAddress {
    /// The drive's no-rewind device.
    pub device: PathBuf,
    /// The archive; none for the tape itself.
    pub archive: Option<TapeArchive>,
}

/// An archive on a tape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TapeArchive {
    /// The last one.
    Latest,
    /// The one with this id, or with an id that begins so: 8 or more hexadecimal digits in lower case, with
    /// hyphens as a UUID has them.
    Id(String),
}

/// Why a text is no location.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocationError {
    /// Nothing is there.
    Empty,
    /// It begins like an address of a kind that is not known.
    Scheme,
    /// It is not UTF-8, and no path.
    Encoding,
    /// There is a user or password in it.
    Secret,
    /// No bucket can be called so.
    Bucket,
    /// No key can be like that.
    Key,
    /// The device is not an absolute path.
    Device,
    /// The device rewinds the tape each time it is closed.
    Rewinding,
    /// What stands behind `#` is neither `latest` nor an id.
    Archive,
}

impl LocationError {
    /// What can be done about it.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Empty => "say a directory, s3://BUCKET/PREFIX, tape:/dev/nst0 or -",
            Self::Scheme => {
                "s3://BUCKET/PREFIX, tape:/dev/nst0, - and paths are known; a file of that name is ./NAME"
            }
            Self::Encoding => "an address is UTF-8; a file of that name is ./NAME",
            Self::Secret => {
                "keys come from the environment, a file or the machine: AWS_ACCESS_KEY_ID and the like; change a key that was shown here"
            }
            Self::Bucket => {
                "write s3://BUCKET or s3://BUCKET/PREFIX; a bucket has 3 to 63 letters, digits, '.', '-' or '_'"
            }
            Self::Key => {
                "write parts with one '/' between them, none of them '.' or '..', without control characters, 1024 bytes at most"
            }
            Self::Device => "write the whole path: tape:/dev/nst0, or one of /dev/tape/by-id ending in -nst",
            Self::Rewinding => "use the device that does not rewind: /dev/nst0 instead of /dev/st0",
            Self::Archive => {
                "write #latest, or # and 8 or more digits of the archive's id as 'list' shows them"
            }
        }
    }
}

impl fmt::Display for LocationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "it is empty",
            Self::Scheme => "it looks like an address of a kind that virtfold does not know",
            Self::Encoding => "it looks like an address and is not UTF-8",
            Self::Secret => "an address must not hold a user, a password or a key",
            Self::Bucket => "no bucket can be called so",
            Self::Key => "no key of an object can be like that",
            Self::Device => "a tape's device is an absolute path",
            Self::Rewinding => "this device rewinds the tape each time it is closed",
            Self::Archive => "what follows '#' does not name an archive",
        })
    }
}

impl std::error::Error for LocationError {}

impl From<LocationError> for Error {
    fn from(why: LocationError) -> Self {
        Self::new(ErrorKind::Usage, format!("this names no place for archives: {why}")).with_hint(why.hint())
    }
}

impl Location {
    /// Reads a location as the command line has it.
    ///
    /// # Errors
    /// When it is none; the error never repeats the text.
    pub fn parse(text: &OsStr) -> Result<Self, LocationError> {
        let lossy = text.to_string_lossy();
        if lossy.is_empty() {
            return Err(LocationError::Empty);
        }
        if lossy == "-" {
            return Ok(Self::Pipe);
        }
        let Some((scheme, _)) = lossy.split_once(':').filter(|(scheme, _)| is_scheme(scheme)) else {
            return Ok(Self::Path(PathBuf::from(text)));
        };
        let is_address = matches!(scheme, "s3" | "tape") || lossy[scheme.len()..].starts_with("://");
        if !is_address {
            return Ok(Self::Path(PathBuf::from(text)));
        }
        let text = text.to_str().ok_or(LocationError::Encoding)?;
        match text.split_once(':') {
            Some(("s3", rest)) => object(rest).map(Self::Object),
            Some(("tape", rest)) => tape(rest).map(Self::Tape),
            _ => Err(LocationError::Scheme),
        }
    }

    /// As an argument that is read as this location.
    pub fn argument(&self) -> OsString {
        self.path().map_or_else(|| self.to_string().into(), |path| path.as_os_str().to_owned())
    }

    /// The path, where it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            _ => None,
        }
    }
}

/// What stands before `:` in an address: letters first, as URLs have it, and more than one, so that `a:b` is
/// a file.
fn is_scheme(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    text.len() > 1 && text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(allowed)
}

fn object(rest: &str) -> Result<ObjectAddress, LocationError> {
    let rest = rest.strip_prefix("//").ok_or(LocationError::Bucket)?;
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.contains('@') || bucket.contains(':') {
        return Err(LocationError::Secret);
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let begins = bucket.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !BUCKET.contains(&bucket.len()) || !begins || !bucket.chars().all(allowed) {
        return Err(LocationError::Bucket);
    }
    let key = key.strip_suffix('/').unwrap_or(key);
    let part = |part: &str| !matches!(part, "" | "." | "..") && !part.chars().any(char::is_control);
    if key.len() > MAX_KEY || !(key.is_empty() || key.split('/').all(part)) {
        return Err(LocationError::Key);
    }
    Ok(ObjectAddress { bucket: bucket.to_owned(), key: key.to_owned() })
}

fn tape(rest: &str) -> Result<TapeAddress, LocationError> {
    let (device, archive) = match rest.split_once('#') {
        Some((device, archive)) => (device, Some(tape_archive(archive)?)),
        None => (rest, None),
    };
    let path = Path::new(device);
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    if !path.is_absolute() || name.is_empty() || device.ends_with('/') {
        return Err(LocationError::Device);
    }
    let number = name.strip_prefix("st").map(|rest| rest.trim_end_matches(['l', 'm', 'a']));
    if number.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())) {
        return Err(LocationError::Rewinding);
    }
    Ok(TapeAddress { device: path.to_owned(), archive })
}

fn tape_archive(text: &str) -> Result<TapeArchive, LocationError> {
    if text == "latest" {
        return Ok(TapeArchive::Latest);
    }
    let id = text.to_ascii_lowercase();
    if ID.contains(&id.len()) && id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
        return Ok(TapeArchive::Id(id));
    }
    Err(LocationError::Archive)
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        Self::parse(OsStr::new(text))
    }
}

impl TryFrom<OsString> for Location {
    type Error = LocationError;

    fn try_from(text: OsString) -> Result<Self, LocationError> {
        Self::parse(&text)
    }
}

/// A path is a path, whatever it looks like.
impl From<PathBuf> for Location {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

/// A path is a path, whatever it looks like.
impl From<&Path> for Location {
    fn from(path: &Path) -> Self {
        Self::Path(path.to_owned())
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pipe => f.write_str("-"),
            Self::Path(path) => path.display().fmt(f),
            Self::Object(address) => address.fmt(f),
            Self::Tape(address) => address.fmt(f),
        }
    }
}

impl fmt::Display for ObjectAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bucket, key } = self;
        if key.is_empty() { write!(f, "s3://{bucket}") } else { write!(f, "s3://{bucket}/{key}") }
    }
}

impl fmt::Display for TapeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tape:{}", self.device.display())?;
        match &self.archive {
            None => Ok(()),
            Some(TapeArchive::Latest) => f.write_str("#latest"),
            Some(TapeArchive::Id(id)) => write!(f, "#{id}"),
        }
    }
}

/// A location from process to process, whatever its path holds.
pub(crate) mod as_bytes {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};

    use super::{Location, OsString};
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(location: &Location, to: S) -> Result<S::Ok, S::Error> {
        location.argument().as_bytes().serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Location, D::Error> {
        let bytes = Vec::<u8>::deserialize(from)?;
        Location::parse(&OsString::from_vec(bytes)).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn parse(text: &str) -> Result<Location, LocationError> {
        text.parse()
    }

    #[test]
    fn each_kind_is_read_and_written_as_people_do() {
        for text in [
            "-",
            "/backup",
            "a.tar",
            "./s3://x",
            "dir/tape:x",
            "a:b",
            "C:/x",
            "web:1.tar",
            "s3://bucket",
            "s3://my.bucket-1/a/b c/ü.tar.zst",
            "tape:/dev/nst0",
            "tape:/dev/nst0#latest",
            "tape:/dev/tape/by-id/scsi-123-nst#5f1c2d3e",
            "tape:/dev/nst0#3b51a0a6-3c5a-4c1e-9d0b-2b4f6f1f8f11",
        ] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        assert_eq!(parse("-"), Ok(Location::Pipe));
        assert_eq!(parse("web:1.tar"), Ok(Location::Path("web:1.tar".into())));
        let object = |bucket: &str, key: &str| {
            Ok(Location::Object(ObjectAddress { bucket: bucket.into(), key: key.into() }))
        };
        assert_eq!(parse("s3://bucket/"), object("bucket", ""));
        assert_eq!(parse("s3://bucket/a/b/"), object("bucket", "a/b"));
        let tape = |archive| Ok(Location::Tape(TapeAddress { device: "/dev/nst1".into(), archive }));
        assert_eq!(parse("tape:/dev/nst1"), tape(None));
        assert_eq!(parse("tape:/dev/nst1#latest"), tape(Some(TapeArchive::Latest)));
        assert_eq!(parse("tape:/dev/nst1#5F1C2D3E"), tape(Some(TapeArchive::Id("5f1c2d3e".into()))));
    }

    #[test]
    fn what_is_none_says_why() {
        for (text, why) in [
            ("", LocationError::Empty),
            ("http://host/x", LocationError::Scheme),
            ("gopher://x", LocationError::Scheme),
            ("s3://", LocationError::Bucket),
            ("s3:/bucket/x", LocationError::Bucket),
            ("s3:///key", LocationError::Bucket),
            ("s3://ab", LocationError::Bucket),
            ("s3://-abc", LocationError::Bucket),
            ("s3://a b c", LocationError::Bucket),
            ("s3://AKIA:hunter2@bucket/x", LocationError::Secret),
            ("s3://bucket//x", LocationError::Key),
            ("s3://bucket/a/../b", LocationError::Key),
            ("s3://bucket/a\n", LocationError::Key),
            ("tape:", LocationError::Device),
            ("tape:nst0", LocationError::Device),
            ("tape:/dev/", LocationError::Device),
            ("tape:/dev/st0", LocationError::Rewinding),
            ("tape:/dev/st1m#latest", LocationError::Rewinding),
            ("tape:/dev/nst0#", LocationError::Archive),
            ("tape:/dev/nst0#last", LocationError::Archive),
            ("tape:/dev/nst0#1234567", LocationError::Archive),
        ] {
            assert_eq!(parse(text), Err(why), "{text}");
        }
        let long = format!("s3://bucket/{}", "k".repeat(MAX_KEY + 1));
        assert_eq!(parse(&long), Err(LocationError::Key));
        let error = Error::from(parse("s3://AKIA:hunter2@bucket/x").unwrap_err());
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(!format!("{error:?} {:?}", error.hint()).contains("hunter2"));
    }

    #[test]
    fn paths_need_no_utf8_and_addresses_do() {
        assert_eq!(
            Location::parse(OsStr::from_bytes(b"/x\xff")),
            Ok(Location::Path(PathBuf::from(OsStr::from_bytes(b"/x\xff"))))
        );
        assert_eq!(Location::parse(OsStr::from_bytes(b"s3://bucket/\xff")), Err(LocationError::Encoding));
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics_and_what_is_read_reads_again_as_the_same(text in "(s3://|tape:|)[-a-zA-Z0-9/#:@. ü\\n]{0,40}") {
            if let Ok(location) = parse(&text) {
                proptest::prop_assert_eq!(parse(&location.to_string()), Ok(location));
            }
        }
    }
}
