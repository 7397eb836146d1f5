//! What this process sees mounted, by `/proc/self/mountinfo`; and what is swapped to.
//!
//! Imports: `error`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::error::{IoContext, Result};

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// The device number that its files have. Some file systems (Btrfs) have one of their own that no device
    /// has.
    pub device: u64,
    /// Where it is mounted.
    pub at: PathBuf,
    /// Its type.
    pub kind: String,
    /// What is mounted, as the kernel calls it: a device's node, most often.
    pub source: PathBuf,
    /// Whether the file system itself can be written to, by this mount or another one.
    pub writable: bool,
}

/// All that is mounted.
///
/// # Errors
/// `/proc` can't be read.
pub fn all() -> Result<Vec<MountEntry>> {
    let path = "/proc/self/mountinfo";
    let text = std::fs::read(path).at(|| format!("cannot read '{path}'"))?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(line).collect())
}

/// The type of the mounted file system whose files have this device number.
///
/// # Errors
/// As [`all`].
pub fn kind_of(device: u64) -> Result<Option<String>> {
    Ok(all()?.into_iter().find(|mounted| mounted.device == device).map(|mounted| mounted.kind))
}

/// The files and devices that are swapped to.
///
/// # Errors
/// `/proc` can't be read.
pub fn swaps() -> Result<Vec<PathBuf>> {
    let path = "/proc/swaps";
    let text = match std::fs::read(path) {
        // A kernel without swap.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.at(|| format!("cannot read '{path}'"))?,
    };
    let lines = text.split(|byte| *byte == b'\n').skip(1);
    let names = lines.filter_map(|line| line.split(|byte| matches!(byte, b' ' | b'\t')).next());
    Ok(names.filter(|name| !name.is_empty()).map(unescape).collect())
}

/// `36 35 98:0 /root /at rw,noatime master:1 - ext4 /dev/root rw,errors=continue`.
fn line(line: &[u8]) -> Option<MountEntry> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let text = |at: usize| fields.get(at).and_then(|field| std::str::from_utf8(field).ok());
    let (major, minor) = text(2)?.split_once(':')?;
    Some(MountEntry {
        device: nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?),
        at: unescape(fields.get(4)?),
        kind: text(dash + 1)?.to_owned(),
        source: unescape(fields.get(dash + 2)?),
        writable: text(dash + 3)?.split(',').any(|option| option == "rw"),
    })
}

/// The kernel writes blanks, newlines and backslashes as `\040` and the like.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, behind)) = rest.split_first() {
        let octal = behind.get(..3).filter(|_| *byte == b'\\');
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                out.push(escaped);
                rest = behind.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*byte);
                rest = behind;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    #[test]
    fn a_line_is_taken_apart() {
        let text =
            br"36 35 98:1 /mnt1 /mnt\0402 rw,noatime master:1 shared:2 - ext3 /dev/a\134b ro,errors=continue";
        let mounted = line(text).unwrap();
        assert_eq!(mounted.device, nix::sys::stat::makedev(98, 1));
        assert_eq!((mounted.at, mounted.source), ("/mnt 2".into(), r"/dev/a\b".into()));
        assert_eq!((mounted.kind.as_str(), mounted.writable), ("ext3", false));
        for bad in [&b""[..], b"36 35 98 / / rw - ext3 x rw", b"36 35 98:1 / / rw ext3 x rw y z"] {
            assert_eq!(line(bad), None);
        }
    }

    #[test]
    fn what_is_mounted_here_is_known() {
        let proc = Path::new("/proc").metadata().unwrap().dev();
        assert_eq!(kind_of(proc).unwrap().as_deref(), Some("proc"));
        swaps().unwrap();
    }
}
