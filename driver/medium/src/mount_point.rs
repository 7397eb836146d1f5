//! Which file system a directory is on, and what was mounted there.
//!
//! `/proc/self/mountinfo` says it: of the mount points above a directory the nearest one counts, and of
//! several mounts on one point the last. A file system on a block device is known by its UUID, from udev's
//! links; numbers of devices change from boot to boot. One of the network or of a program is known by its
//! type and source. What waits there for somebody to look (autofs) is no file system yet; the look opens the
//! directory first.
//!
//! Imports: `error`.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use virtfold_base::error::{Error, ErrorKind, IoContext, Result};

const TABLE: &str = "/proc/self/mountinfo";
/// The longest table, bytes: hosts with containers have thousands of mounts.
const LONGEST: u64 = 16 << 20;
const BY_UUID: &str = "/dev/disk/by-uuid";

/// Where a directory's file system is mounted, and which it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// The mount point.
    #[serde(with = "bytes")]
    pub point: PathBuf,
    /// The file system, where something tells it from others.
    pub file_system: Option<String>,
}

/// A path from process to process, whatever it holds.
mod bytes {
    use super::{Deserialize, OsStrExt, OsString, OsStringExt, Path, PathBuf, Serialize};

    pub(super) fn serialize<S: serde::Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        path.as_os_str().as_bytes().serialize(to)
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        Vec::<u8>::deserialize(from).map(|bytes| OsString::from_vec(bytes).into())
    }
}

impl MountPoint {
    /// Whether it is one beside the root's.
    pub fn is_apart(&self) -> bool {
        self.point != Path::new("/")
    }

    /// Whether nothing speaks against both being the same file system in the same place.
    pub fn may_be(&self, other: &Self) -> bool {
        let differ = self.file_system.is_some() && other.file_system.is_some();
        self.point == other.point && !(differ && self.file_system != other.file_system)
    }
}

/// What the directory `path` is on; `None` where it is not there.
///
/// # Errors
/// The directory or the table of mounts can't be read.
pub fn of(path: &Path) -> Result<Option<MountPoint>> {
    let looking = || format!("cannot look at '{}'", path.display());
    // Opened, so that an automounter mounts.
    match File::open(path) {
        Ok(_) => {}
        // What a file is in the way of is not there either, and whoever uses it says so.
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(Error::io(looking(), e)),
    }
    let real = path.canonicalize().at(looking)?;
    let mut table = Vec::new();
    File::open(TABLE)
        .and_then(|file| file.take(LONGEST).read_to_end(&mut table))
        .at(|| format!("cannot read '{TABLE}'"))?;
    let row = nearest(&table, &real).ok_or_else(|| {
        Error::new(ErrorKind::Internal, format!("'{TABLE}' does not say what '{}' is on", real.display()))
    })?;
    Ok(Some(MountPoint { file_system: row.file_system(), point: row.point }))
}

/// A line of the table.
#[derive(Debug, PartialEq, Eq)]
struct MountRow {
    point: PathBuf,
    kind: String,
    source: OsString,
}

/// The mount that a path is on.
fn nearest(table: &[u8], path: &Path) -> Option<MountRow> {
    let rows = table.split(|byte| *byte == b'\n').filter_map(row);
    let above = rows.filter(|row| path.starts_with(&row.point) && row.kind != "autofs");
    // The last one of the longest.
    above.max_by_key(|row| row.point.components().count())
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn row(line: &[u8]) -> Option<MountRow> {
    let mut words = line.split(|byte| *byte == b' ');
    let point = PathBuf::from(plain(words.nth(4)?));
    let mut words = words.skip_while(|word| *word != b"-").skip(1);
    let kind = String::from_utf8_lossy(words.next()?).into_owned();
    Some(MountRow { point, kind, source: plain(words.next()?) })
}

/// Undoes the table's escapes: `\040` is a space.
fn plain(word: &[u8]) -> OsString {
    let digit = |at: usize| word.get(at).filter(|byte| (b'0'..=b'7').contains(byte)).map(|byte| byte - b'0');
    let mut bytes = Vec::with_capacity(word.len());
    let mut at = 0;
    while let Some(byte) = word.get(at) {
        let octal = digit(at + 1).zip(digit(at + 2)).zip(digit(at + 3));
        match (byte, octal) {
            (b'\\', Some(((high @ 0..=3, middle), low))) => {
                bytes.push(high * 64 + middle * 8 + low);
                at += 4;
            }
            _ => {
                bytes.push(*byte);
                at += 1;
            }
        }
    }
    OsString::from_vec(bytes)
}

impl MountRow {
    fn file_system(&self) -> Option<String> {
        if self.source.as_bytes().starts_with(b"/dev/") {
            return uuid_of(Path::new(&self.source));
        }
        Some(format!("{} {}", self.kind, self.source.to_string_lossy()))
    }
}

/// The UUID of the file system on a device, as udev knows it; without udev nothing is known.
fn uuid_of(device: &Path) -> Option<String> {
    let number = |path: &Path| path.metadata().map(|found| found.rdev()).ok().filter(|rdev| *rdev != 0);
    let ours = number(device)?;
    let links = std::fs::read_dir(BY_UUID).ok()?;
    let link = links.flatten().find(|link| number(&link.path()) == Some(ours))?;
    Some(format!("UUID {}", link.file_name().to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:35 / /mnt/nas rw shared:9 - autofs systemd-1 rw
41 40 0:36 / /mnt/nas rw,nosuid shared:10 master:2 - nfs4 nas:/export/vm rw,vers=4.2
42 22 0:37 / /mnt/my\\040disk rw - tmpfs one rw
43 42 0:38 / /mnt/my\\040disk rw - tmpfs two rw
44 22 0:39 / /mnt/later rw - autofs systemd-1 rw
bad line
";

    fn on(path: &str) -> (String, String) {
        let row = nearest(TABLE, Path::new(path)).unwrap();
        (row.point.to_str().unwrap().to_owned(), format!("{} {}", row.kind, row.source.to_string_lossy()))
    }

    #[test]
    fn the_nearest_and_last_mount_counts() {
        let pair = |point: &str, what: &str| (point.to_owned(), what.to_owned());
        assert_eq!(on("/mnt/nas/vm"), pair("/mnt/nas", "nfs4 nas:/export/vm"));
        assert_eq!(on("/mnt/nasty"), pair("/", "ext4 /dev/sda1"));
        assert_eq!(on("/mnt/my disk/a"), pair("/mnt/my disk", "tmpfs two"));
        assert_eq!(on("/mnt/later/a"), pair("/", "ext4 /dev/sda1"), "nothing is mounted there yet");
        assert_eq!(plain(b"a\\134b\\9\\77"), "a\\b\\9\\77");
    }

    #[test]
    fn this_host_s_own_table_is_understood() {
        let root = of(Path::new("/")).unwrap().unwrap();
        assert!(!root.is_apart());
        let proc = of(Path::new("/proc/self")).unwrap().unwrap();
        assert!(proc.is_apart() && proc.file_system.as_deref() == Some("proc proc"), "{proc:?}");
        assert_eq!(of(Path::new("/no/such/place")).unwrap(), None);
        assert_eq!(of(Path::new("/proc/self/status/below")).unwrap(), None);
        assert!(proc.may_be(&proc) && !proc.may_be(&root));
        let unknown = MountPoint { file_system: None, ..proc.clone() };
        assert!(proc.may_be(&unknown) && unknown.may_be(&proc));
        assert!(!proc.may_be(&MountPoint { file_system: Some("proc other".to_owned()), ..proc.clone() }));
    }
}
