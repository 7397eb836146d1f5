//! What a restore of disks would write where, and whether there is room: by the archive's head, nothing is
//! touched.

use std::io::Read;
use std::os::unix::fs::FileTypeExt;

use serde::Serialize;

use super::free_space::{Forecast, Room, shareable};
use super::opened_chain::OpenedChain;
use super::{RestoreRequest, VerifyMode, expect_known, format_name, method_name, read_options, selected};
use crate::known_copy::FoundArchive;
use crate::{Control, inspect, parents};
use virtfold_archive::crypt::ArchiveFile;
use virtfold_archive::index::{ArchiveIndex, Trust};
use virtfold_archive::manifest::Manifest;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_hypervisor::host_files::HostFiles;
use virtfold_medium::{self as medium, Location, PipeSource};

/// What a restore would do.
#[derive(Clone, Debug, Serialize)]
pub struct RestorePlan {
    /// The archive.
    pub archive: String,
    /// The disks.
    pub disks: Vec<PlannedRestore>,
    /// The file systems that they go to, and whether these have room.
    pub room: Vec<Room>,
}

/// A disk that would be restored.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedRestore {
    /// Its name in the archive.
    pub target: String,
    /// The file or device.
    pub path: String,
    /// `raw` or `qcow2`.
    pub format: &'static str,
    /// `rewrite` or `remap`.
    pub method: &'static str,
    /// Its size, bytes.
    pub capacity: u64,
    /// Bytes of data that would be written.
    pub data: u64,
    /// Whether something is there that would be replaced.
    pub replaces: bool,
}

/// Says what [`super::run`] would do.
///
/// # Errors
/// As [`super::run`], as far as the archive's head and the targets tell.
pub fn plan(request: &RestoreRequest, control: &Control, files: &dyn HostFiles) -> Result<RestorePlan> {
    if request.archive == Location::Pipe {
        let input = PipeSource::stdin(std::sync::Arc::clone(&control.cancel))?;
        return plan_from(request, files, input);
    }
    let source = ArchiveFile::salvage(medium::open(&request.archive)?, &request.identities)?;
    let trust = match request.checking {
        VerifyMode::Partial => Trust::Salvage,
        VerifyMode::All | VerifyMode::Unverified => {
            source.proven()?;
            Trust::Strict
        }
    };
    let index = ArchiveIndex::open(&source, &read_options(request, control), trust)?;
    expect_known(request, &source, &index)?;
    request.trust.admit(&request.archive.to_string(), request.trust.judge_end(index.tail()))?;
    let found = parents::find(&request.archive, index.head(), &request.identities, &request.parents, trust)?;
    let chain = OpenedChain::open(index, &found, &read_options(request, control), trust)?;
    make(request, &chain.whole_head(trust)?, files)
}

/// As [`plan`], of an archive that comes front to back from `input`, of which no more is read than its head.
///
/// # Errors
/// As [`plan`], and those of `input`.
pub fn plan_from(
    request: &RestoreRequest,
    files: &dyn HostFiles,
    input: impl Read + Send,
) -> Result<RestorePlan> {
    let name = request.archive.to_string();
    let head = inspect::head_from(input, &name, &request.identities)?;
    request.known.expect(&name, &FoundArchive { id: Some(head.archive), ..FoundArchive::default() })?;
    make(request, &head, files)
}

fn make(request: &RestoreRequest, head: &Manifest, files: &dyn HostFiles) -> Result<RestorePlan> {
    let mut forecast = Forecast::new(files);
    let mut disks = Vec::new();
    for (target, spec) in selected(request, head)? {
        let disk = head.disk(&target);
        let disk = disk.ok_or_else(|| Error::new(ErrorKind::Internal, "a disk was selected and is none"))?;
        let found = spec.path.metadata().ok();
        let is_device = found.as_ref().is_some_and(|found| found.file_type().is_block_device());
        if !is_device {
            // What a link leads to is replaced, not the link.
            let real = std::fs::canonicalize(&spec.path).unwrap_or_else(|_| spec.path.clone());
            forecast.disk(&real, disk, spec.format)?;
        }
        disks.push(PlannedRestore {
            target,
            path: spec.path.display().to_string(),
            format: format_name(spec.format),
            method: method_name(spec.method),
            capacity: disk.capacity,
            data: disk.dense_length,
            replaces: found.is_some(),
        });
    }
    let sharing = shareable(head, &request.archive, request.method)?;
    Ok(RestorePlan { archive: request.archive.to_string(), disks, room: forecast.rooms(sharing) })
}
