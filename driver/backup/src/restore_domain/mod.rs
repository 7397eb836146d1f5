//! A guest out of an archive: its disks, its firmware's variables, its TPM and its definition.
//!
//! The order is that of a bad day. All that can be refused is refused before anything is touched (`plan`);
//! then everything is written beside its place under a hidden name (`run`), with guards up that keep guests
//! from starting on it; then the names are exchanged (`file_swap`); then the domain is defined; only then is
//! what was there before removed; last of all the guest is started. A failure before the definition puts all
//! names back.
//!
//! - `archived_domain`: what the archive says of the guest.
//! - `inventory`: every domain of the host, its disks with their chains, MACs, sockets.
//! - `identity`: as it was, a copy, or a replacement; what speaks against each.
//! - `target_paths`: where each disk and file goes. An archive is hostile: a path that it names is used only
//!   where guests of this host keep their disks already; everything else a person has to name.
//! - `host_access`: what the definition has of the host beyond its disks; refused unless it is allowed.
//! - `shared_files`: what two domains cannot share.
//! - `plan`: the definition's edits, and all of it as a report that `--plan` prints.
//!
//! An archive that comes once, front to back (a tape, a pipe), needs one pass: what the plan needs comes
//! before the disks.
//!
//! What is promised: nothing is overwritten without [`Overwrite::Replace`]; nothing that a guest uses, in
//! whatever chain, is written to; the domain is defined as a whole or not at all. One moment is not covered:
//! a process killed between two of the exchanges of a replacement leaves old and new files under their names,
//! all of them whole; the same restore made again ends it. A block device is written in place.
//!
//! Imports: `error`, `archive`, `medium`, `image`, `partial_file`, `catalog`, `hypervisor`; of this room
//! `restore` and `attachments`; `virtfold_hooks` (guards).

mod archived_domain;
mod file_swap;
mod firmware;
mod host_access;
mod identity;
mod inventory;
mod plan;
mod run;
mod shared_files;
mod target_paths;

#[cfg(test)]
mod tests;

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;

use self::archived_domain::ArchivedDomain;
pub use self::host_access::{HostAccessFinding, check_allowed};
pub use self::identity::DomainIdentity;
pub use self::run::{run, run_from};
use super::Control;
use super::attachments::LibvirtDirectories;
use super::known_copy::KnownCopy;
use super::parents::ParentSearch;
pub use super::restore::Room;
use super::restore::{VerifyMode, Wanted};
use super::target::Method;
use super::trust::{Authenticity, TrustPolicy};
use virtfold_archive::crypt::Identities;
use virtfold_base::error::Result;
use virtfold_base::partial_file::Overwrite;
use virtfold_catalog::Journal;
use virtfold_hypervisor::Hypervisor;
use virtfold_hypervisor::domain_xml::host_access::HostAccess;
use virtfold_hypervisor::host_files::HostFiles;
use virtfold_image::Format;
use virtfold_medium::{Location, PipeSource};

/// Where the disks go that were not given a place of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DefaultTarget {
    /// Where they were; those of a copy beside that.
    OriginalPath,
    /// Into this directory.
    Directory(PathBuf),
    /// Into the directory of this storage pool.
    Pool(String),
}

/// What becomes of the guest once it is defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterDefine {
    /// It stays shut off.
    Leave,
    /// It is started.
    Start,
}

/// How disks are written; see [`super::restore::RestoreRequest`].
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    /// The format of what is made; without it, the source's.
    pub format: Option<Format>,
    /// How pieces find their place.
    pub method: Method,
    /// The cluster size of a new qcow2; without it, the source's or 64 KiB.
    pub cluster_size: Option<u64>,
    /// When data are checked; not [`VerifyMode::Partial`].
    pub checking: VerifyMode,
    /// Threads.
    pub workers: usize,
}

impl WriteOptions {
    fn wanted(&self) -> Wanted {
        Wanted { format: self.format, method: self.method, cluster_size: self.cluster_size }
    }
}

/// Which guest to restore, as what and to where.
#[derive(Clone, Debug)]
pub struct RestoreDomainRequest {
    /// The archive.
    pub archive: Location,
    /// What opens it, where it is encrypted.
    pub identities: Identities,
    /// Whose archives are taken.
    pub trust: TrustPolicy,
    /// The name of a copy; without it the guest is itself again.
    pub name: Option<String>,
    /// Disks with a place of their own: a file or a block device each.
    pub disks: Vec<(String, PathBuf)>,
    /// Where the others go.
    pub rest: DefaultTarget,
    /// Disks that the definition is to have no more.
    pub without: Vec<String>,
    /// How they are written.
    pub writing: WriteOptions,
    /// Whether a domain that is shut off, and files that are there, may be replaced.
    pub existing: Overwrite,
    /// Whether it is started.
    pub afterwards: AfterDefine,
    /// What the catalog knows of the archive: nothing of another one is restored from there.
    pub known: KnownCopy,
    /// Where the archives are looked for that an increment rests on.
    pub parents: ParentSearch,
    /// What the definition may have of the host beyond its disks.
    pub allow: Vec<HostAccess>,
}

/// The host that the guest is restored on.
#[derive(Clone, Copy, Debug)]
pub struct DefineContext<'a> {
    /// Its hypervisor.
    pub hypervisor: &'a dyn Hypervisor,
    /// Who uses its images.
    pub files: &'a dyn HostFiles,
    /// Where libvirt keeps things.
    pub places: &'a LibvirtDirectories,
    /// The directory of the guards.
    pub guards: &'a Path,
    /// Where backups note what they are at; none where no backup was ever made here.
    pub journal: Option<&'a dyn Journal>,
}

/// What is or would be done; sizes in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct RestoreDomainReport {
    /// The archive.
    pub archive: String,
    /// The guest's name in the archive.
    pub guest: String,
    /// The domain's name.
    pub domain: String,
    /// Its uuid.
    pub uuid: String,
    /// Who it is.
    pub identity: DomainIdentity,
    /// Every disk of the archived definition.
    pub disks: Vec<DiskPlan>,
    /// Files beside the disks.
    pub files: Vec<FilePlan>,
    /// MAC addresses that change.
    pub macs: Vec<DefinitionChange>,
    /// Sockets and files of channels and serial lines that change.
    pub channels: Vec<DefinitionChange>,
    /// What the definition has of the host beyond its disks; it is restored only where all of it is allowed.
    pub host_access: Vec<HostAccessFinding>,
    /// The file systems that it is written to, and whether they have room.
    pub room: Vec<Room>,
    /// What a person should know.
    pub notes: Vec<String>,
    /// Who made the archive; nothing in a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authenticity: Option<Authenticity>,
    /// Whether it is defined now; not after a plan.
    pub defined: bool,
    /// Whether it was started.
    pub started: bool,
    /// Whether every byte that was restored had its digest.
    pub verified: bool,
    /// How long it took.
    pub seconds: f64,
}

/// What becomes of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskAction {
    /// It comes out of the archive.
    Restore,
    /// It is not in the archive; the definition names it as before.
    Keep,
    /// The definition does not have it any more.
    Remove,
}

/// A disk of the plan.
#[derive(Clone, Debug, Serialize)]
pub struct DiskPlan {
    /// Its name.
    pub target: String,
    /// What becomes of it.
    pub action: DiskAction,
    /// Its file or device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// `raw` or `qcow2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Its size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u64>,
    /// Bytes of data that the archive has of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<u64>,
    /// Whether something is there that is replaced.
    pub replaces: bool,
}

/// A file beside the disks.
#[derive(Clone, Debug, Serialize)]
pub struct FilePlan {
    /// `nvram`, `tpm`, `kernel`, ...
    pub what: String,
    /// Its path.
    pub path: String,
    /// Its bytes.
    pub bytes: u64,
    /// Whether something is there that is replaced.
    pub replaces: bool,
}

/// Something that is another than in the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DefinitionChange {
    /// In the archive.
    pub from: String,
    /// Now.
    pub to: String,
}

/// Says what [`run()`] would do, and touches nothing.
///
/// # Errors
/// Everything that `run` would refuse.
pub fn plan(
    request: &RestoreDomainRequest,
    host: &DefineContext<'_>,
    control: &Control,
) -> Result<RestoreDomainReport> {
    if request.archive == Location::Pipe {
        return plan_from(request, host, control, standard_input(control)?);
    }
    plan::make(request, host, &ArchivedDomain::open(request, control)?).map(|plan| plan.report)
}

/// As [`plan()`], for an archive that comes front to back from `input`; no more of it is read than what comes
/// before its disks.
///
/// # Errors
/// As [`plan()`], and those of `input`.
pub fn plan_from(
    request: &RestoreDomainRequest,
    host: &DefineContext<'_>,
    control: &Control,
    input: impl Read + Send,
) -> Result<RestoreDomainReport> {
    plan::make(request, host, &ArchivedDomain::read(request, control, input)?).map(|plan| plan.report)
}

/// What comes down standard input.
fn standard_input(control: &Control) -> Result<PipeSource> {
    PipeSource::stdin(std::sync::Arc::clone(&control.cancel))
}
