//! What an archive's members are called and in which order they come.
//!
//! Order: the head; for each disk its allocation table and its bytes; the recovery copies; the digests of the
//! disks' blocks; digests, end record and, of a signed archive, its signature. Members with other names (the
//! domain's XML, its NVRAM) may stand anywhere behind the head and before the digests. All of a disk's bytes
//! lie before the recovery copies: FORMAT.md shows why that matters.
//!
//! Names are hostile input: they become file names where `tar` unpacks them and lines on a terminal.
//!
//! Imports: `error`.

use std::collections::BTreeSet;

pub use crate::table::Layout;
use virtfold_base::error::{Error, ErrorKind, Result};

/// The head.
pub const HEAD: &str = "virtfold.json";
/// The second copy of the head.
pub const RECOVERY_HEAD: &str = "recovery/virtfold.json";
/// The digests of the body.
pub const DIGESTS: &str = "virtfold.digests";
/// The end record.
pub const END: &str = "virtfold.end.json";
/// The signature of the end record, of a signed archive.
pub const SIGNATURE: &str = "virtfold.end.json.sig";
/// The longest name of a member, bytes.
pub const MAX_NAME: usize = 1024;
/// The longest name of a disk, bytes.
pub const MAX_TARGET: usize = 32;

/// The most members beside head, tables, disks and tail.
pub const MAX_OTHERS: usize = 4096;

const DISK: &str = ".raw";
const ALLOCATION: &str = ".allocation.csv";
const MAP: &str = ".map";
const BLOCKS: &str = ".blocks";
const RECOVERY: &str = "recovery/";

/// What a backup holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupKind {
    /// All that is recorded on the disks.
    Full,
    /// What changed since the parent.
    Incremental,
}

/// What a member is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberRole<'a> {
    /// `virtfold.json`.
    Head,
    /// `TARGET.allocation.csv`.
    Allocation(&'a str),
    /// `TARGET.raw`.
    Disk(&'a str),
    /// `recovery/virtfold.json`.
    RecoveryHead,
    /// `recovery/TARGET.map`.
    RecoveryMap(&'a str),
    /// `recovery/TARGET.allocation.csv`, in incremental archives.
    RecoveryAllocation(&'a str),
    /// `TARGET.blocks`, of a disk whose blocks have digests.
    Blocks(&'a str),
    /// `virtfold.digests`.
    Digests,
    /// `virtfold.end.json`.
    End,
    /// `virtfold.end.json.sig`, in signed archives.
    Signature,
    /// Anything else.
    Other,
}

impl<'a> MemberRole<'a> {
    /// What the member called `name` is.
    pub fn of(name: &'a str) -> Self {
        let target = |rest: &'a str, suffix| rest.strip_suffix(suffix).filter(|t| is_target(t));
        match name {
            HEAD => return Self::Head,
            RECOVERY_HEAD => return Self::RecoveryHead,
            DIGESTS => return Self::Digests,
            END => return Self::End,
            SIGNATURE => return Self::Signature,
            _ => {}
        }
        if let Some(rest) = name.strip_prefix(RECOVERY) {
            return target(rest, MAP)
                .map(Self::RecoveryMap)
                .or_else(|| target(rest, ALLOCATION).map(Self::RecoveryAllocation))
                .unwrap_or(Self::Other);
        }
        target(name, DISK)
            .map(Self::Disk)
            .or_else(|| target(name, ALLOCATION).map(Self::Allocation))
            .or_else(|| target(name, BLOCKS).map(Self::Blocks))
            .unwrap_or(Self::Other)
    }
}

fn is_target(text: &str) -> bool {
    (1..=MAX_TARGET).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Checks the name of a disk: 1 to 32 of `A-Z a-z 0-9 _ -`.
///
/// # Errors
/// Usage.
pub fn check_target(target: &str) -> Result<()> {
    if is_target(target) {
        return Ok(());
    }
    let message = format!("invalid disk name '{}'", target.escape_debug());
    Err(Error::new(ErrorKind::Usage, message)
        .with_hint("use 1 to 32 letters, digits, '_' or '-', for example 'vda'"))
}

/// Checks the name of a member: relative, printable ASCII (bsdtar fails on other characters where the locale
/// is C, as on a rescue system), at most 1024 bytes, no empty, `.` or `..` component, none that tar gives a
/// meaning of its own.
///
/// # Errors
/// A sentence.
pub fn check_name(name: &str) -> std::result::Result<(), String> {
    let component = |part: &str| match part {
        "" | "." | ".." => false,
        _ => !part.starts_with("GNUSparseFile.") && !part.starts_with("PaxHeaders."),
    };
    let printable = name.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if printable && name.len() <= MAX_NAME && name.split('/').all(component) {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    Err(format!("invalid member name '{}'", shown.escape_debug()))
}

fn named(prefix: &str, target: &str, suffix: &str) -> Result<String> {
    check_target(target)?;
    Ok(format!("{prefix}{target}{suffix}"))
}

/// `TARGET.raw`.
///
/// # Errors
/// As [`check_target`].
pub fn disk_name(target: &str) -> Result<String> {
    named("", target, DISK)
}

/// `TARGET.allocation.csv`.
///
/// # Errors
/// As [`check_target`].
pub fn allocation_name(target: &str) -> Result<String> {
    named("", target, ALLOCATION)
}

/// `recovery/TARGET.map`.
///
/// # Errors
/// As [`check_target`].
pub fn recovery_map_name(target: &str) -> Result<String> {
    named(RECOVERY, target, MAP)
}

/// `recovery/TARGET.allocation.csv`.
///
/// # Errors
/// As [`check_target`].
pub fn recovery_allocation_name(target: &str) -> Result<String> {
    named(RECOVERY, target, ALLOCATION)
}

/// `TARGET.blocks`.
///
/// # Errors
/// As [`check_target`].
pub fn blocks_name(target: &str) -> Result<String> {
    named("", target, BLOCKS)
}

/// A disk as the order of members has it.
#[derive(Clone, Copy, Debug)]
pub struct DiskMembers<'a> {
    /// Its name.
    pub target: &'a str,
    /// Whether its blocks have digests.
    pub has_blocks: bool,
}

/// Holds the members of an archive against the order they must have.
#[derive(Clone, Debug)]
pub struct MemberOrder {
    names: Vec<String>,
    next: usize,
    /// The signature was behind them.
    is_signed: bool,
    /// The members that were taken beside those.
    others: BTreeSet<String>,
}

impl MemberOrder {
    /// The order for these disks, which are those of the head, in its order.
    ///
    /// # Errors
    /// As [`check_target`].
    pub fn new(disks: &[DiskMembers<'_>], kind: BackupKind) -> Result<Self> {
        let mut names = vec![HEAD.to_owned()];
        for disk in disks {
            names.extend([allocation_name(disk.target)?, disk_name(disk.target)?]);
        }
        names.push(RECOVERY_HEAD.to_owned());
        for disk in disks {
            names.push(recovery_map_name(disk.target)?);
            if kind == BackupKind::Incremental {
                names.push(recovery_allocation_name(disk.target)?);
            }
        }
        for disk in disks.iter().filter(|disk| disk.has_blocks) {
            names.push(blocks_name(disk.target)?);
        }
        names.extend([DIGESTS.to_owned(), END.to_owned()]);
        Ok(Self { names, next: 0, is_signed: false, others: BTreeSet::new() })
    }

    /// The names that members must have, in order, those of role [`MemberRole::Other`] and the
    /// signature not counted.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Takes the next member.
    ///
    /// # Errors
    /// Damaged: it should not be there.
    pub fn take(&mut self, name: &str) -> Result<()> {
        let expected = self.names.get(self.next).map(String::as_str);
        let before_digests = expected != Some(END) && expected.is_some();
        if MemberRole::of(name) == MemberRole::Other && self.next > 0 && before_digests {
            return self.take_other(name);
        }
        if expected == Some(name) {
            self.next += 1;
            return Ok(());
        }
        if expected.is_none() && name == SIGNATURE && !self.is_signed {
            self.is_signed = true;
            return Ok(());
        }
        let message = match expected {
            Some(expected) => format!("the archive has member '{name}' where '{expected}' should be"),
            None => format!("the archive has member '{name}' behind its end record"),
        };
        Err(Error::new(ErrorKind::Damaged, message))
    }

    fn take_other(&mut self, name: &str) -> Result<()> {
        let refused = match self.others.len() {
            MAX_OTHERS.. => format!("the archive has more than {MAX_OTHERS} members beside its disks"),
            _ if self.others.insert(name.to_owned()) => return Ok(()),
            _ => format!("the archive has member '{name}' twice"),
        };
        Err(Error::new(ErrorKind::Damaged, refused))
    }

    /// Whether all members were there.
    pub fn is_complete(&self) -> bool {
        self.next == self.names.len()
    }
}
