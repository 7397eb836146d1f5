//! Overlays that no journal knows: the state directory was lost, or another one was in use.
//!
//! - One that a domain's next start, or its QEMU, has on top is taken on: a job is made up for it, one that
//!   knows nothing, so
//!   that only what QEMU or the files themselves show decides.
//! - One that lies in the directory of a domain's disk, rests on an image of a domain of this host and is in
//!   no chain is put aside;
//!   its contents are not looked at. One that rests on none is only told of: storage may be shared with
//!   another host.
//!
//! Imports: `error`, `catalog`, `hypervisor`, `unfreeze`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::super::FreezeContext;
use super::super::domain_view::{DomainView, present};
use super::super::start::now;
use super::super::unfreeze::{UncheckedDomains, users};
use super::{Recovery, RecoveryStatus, advice, one};
use crate::RunMode;
use virtfold_base::error::{Error, ErrorKind, Result, sentence};
use virtfold_catalog::{BaseImage, FreezeSession, SessionDisk, SessionKind, SessionState, UnfreezeState};
use virtfold_hypervisor::config_repair::path_of;
use virtfold_hypervisor::domain_xml::{DomainDisk, DomainXml};
use virtfold_hypervisor::host_files::ImageUse;
use virtfold_hypervisor::{DomainId, DomainInfo, is_our_overlay};

/// Looks through the domains, or through one.
pub(super) fn search(
    host: &FreezeContext<'_>,
    domain: Option<DomainId>,
    mode: RunMode,
) -> Result<Vec<Recovery>> {
    let mut recoveries = Vec::new();
    let mut places = ReferencedFiles::default();
    let infos = match domain {
        None => host.hypervisor.domains()?,
        Some(domain) => present(host.hypervisor.lookup(&domain.to_string()))?.into_iter().collect(),
    };
    for info in infos {
        // One that can't be looked at must not keep the others from being found.
        match adopt(host, &info, mode, &mut places) {
            Ok(adopted) => recoveries.extend(adopted),
            Err(error) => recoveries.push(failed(info.id.to_string(), info.name, &error)),
        }
    }
    // After the domains: an adopted overlay is in a chain no longer, and gone.
    let known = known(host)?;
    for directory in std::mem::take(&mut places.directories) {
        let overlays = match present(host.files.overlays(&directory)) {
            Ok(overlays) => overlays.unwrap_or_default(),
            Err(error) => {
                recoveries.push(failed(String::new(), directory.display().to_string(), &error));
                continue;
            }
        };
        let strays: Vec<PathBuf> = overlays.into_iter().filter(|path| !known.contains(path)).collect();
        recoveries.extend(quarantine(host, &strays, mode, &places)?);
    }
    Ok(recoveries)
}

/// What the domains' descriptions name.
#[derive(Debug, Default)]
struct ReferencedFiles {
    /// Where their disks' images lie.
    directories: BTreeSet<PathBuf>,
    /// The images.
    images: BTreeSet<PathBuf>,
}

/// The overlays of all open jobs.
fn known(host: &FreezeContext<'_>) -> Result<BTreeSet<PathBuf>> {
    let jobs = host.journal.open_sessions(None)?;
    Ok(jobs.into_iter().flat_map(|job| job.disks).filter_map(|disk| disk.overlay).collect())
}

/// Takes on what a domain has; notes where its disks are.
fn adopt(
    host: &FreezeContext<'_>,
    info: &DomainInfo,
    mode: RunMode,
    places: &mut ReferencedFiles,
) -> Result<Option<Recovery>> {
    if find(host, info.id, places)?.1.is_empty() {
        return Ok(None);
    }
    let _lock = match host.journal.lock(info.id) {
        Ok(lock) => lock,
        // A run is at work on it: what it has is its own.
        Err(error) if error.kind() == ErrorKind::InUse => return Ok(None),
        Err(error) => return Err(error),
    };
    // Seen under the lock: a run that has just ended takes its overlays along.
    let (view, disks) = find(host, info.id, places)?;
    if disks.is_empty() {
        return Ok(None);
    }
    let job = FreezeSession {
        id: Uuid::new_v4(),
        domain: info.id,
        name: info.name.clone(),
        persistence: info.persistence,
        live: view.live.as_ref().map(|xml: &DomainXml| xml.text().to_owned()),
        inactive: view.config.as_ref().map(|xml| xml.text().to_owned()),
        kind: SessionKind::Standing,
        created: now(host),
        state: SessionState::Committing,
        held: None,
        disks,
    };
    if mode == RunMode::Apply {
        host.journal.begin(&job)?;
    }
    let mut recovery = one(host, job, mode);
    recovery.found.insert(0, "an overlay of virtfold is in use that the journal does not know".to_owned());
    Ok(Some(recovery))
}

/// The overlays that a domain has on top and no journal knows; notes where its disks are.
fn find(
    host: &FreezeContext<'_>,
    domain: DomainId,
    places: &mut ReferencedFiles,
) -> Result<(DomainView, Vec<SessionDisk>)> {
    let view = DomainView::look(host.hypervisor, domain)?;
    let known = known(host)?;
    let mut disks: Vec<SessionDisk> = Vec::new();
    for xml in [&view.live, &view.config, &view.saved].into_iter().flatten() {
        for disk in &xml.disks {
            let Some(top) = path_of(host.hypervisor, &disk.image.source)? else { continue };
            places.directories.extend(top.parent().map(Path::to_owned));
            places.images.insert(top.clone());
            places
                .images
                .extend(disk.backing.iter().filter_map(|image| image.source.path()).map(Path::to_owned));
            let new = !disks.iter().any(|d| d.target == disk.target);
            if new && is_our_overlay(&top) && !known.contains(&top) {
                disks.extend(disk_of_unknown_overlay(host, disk, top)?);
            }
        }
    }
    Ok((view, disks))
}

/// What can be told of a disk without a journal; nothing where the XML does not say what lies below.
fn disk_of_unknown_overlay(
    host: &FreezeContext<'_>,
    disk: &DomainDisk,
    overlay: PathBuf,
) -> Result<Option<SessionDisk>> {
    let Some(below) = disk.backing.first() else { return Ok(None) };
    let (Some(path), Some(format)) = (path_of(host.hypervisor, &below.source)?, &below.format) else {
        return Ok(None);
    };
    Ok(Some(SessionDisk {
        target: disk.target.clone(),
        alias: disk.alias.clone(),
        base: BaseImage { path, format: format.clone(), identity: None, backing: None },
        overlay: Some(overlay),
        frozen: None,
        state: UnfreezeState::Pivoting { level: None },
    }))
}

/// Puts overlays aside that are in no chain and that nobody has open. One that rests on no image of this
/// host's domains is only told of: on shared storage it is another host's, which may be at work on it.
fn quarantine(
    host: &FreezeContext<'_>,
    strays: &[PathBuf],
    mode: RunMode,
    places: &ReferencedFiles,
) -> Result<Vec<Recovery>> {
    if strays.is_empty() {
        return Ok(Vec::new());
    }
    let users = users(host, strays, &UncheckedDomains::default())?;
    let mut recoveries = Vec::new();
    for stray in strays {
        let used = users.iter().any(|(path, _)| path == stray);
        if used || host.files.image_use(stray)? != ImageUse::Free {
            continue;
        }
        let name = stray.display();
        let below = host.files.below(stray).unwrap_or_default();
        if !below.first().is_some_and(|image| places.images.contains(image)) {
            recoveries.push(foreign(stray));
            continue;
        }
        let mut recovery = Recovery {
            domain: String::new(),
            name: String::new(),
            job: None,
            verdict: if mode == RunMode::Apply {
                RecoveryStatus::NeedsAttention
            } else {
                RecoveryStatus::Planned
            },
            found: vec![format!("the overlay '{name}' is in no chain, and the journal does not know it")],
            done: vec![format!("rename the overlay '{name}' to a name that ends in .quarantined")],
            remains: vec![format!(
                "'{name}' may hold data of a guest; check it under its new name, or remove it"
            )],
            disks: Vec::new(),
        };
        if mode == RunMode::Apply {
            match present(host.files.quarantine(stray)) {
                Ok(_) => {}
                Err(error) => {
                    recovery.verdict = RecoveryStatus::Failed;
                    recovery.done.clear();
                    recovery.remains = vec![sentence(&error)];
                }
            }
        }
        recoveries.push(recovery);
    }
    Ok(recoveries)
}

/// A domain or a directory that can't be looked at.
fn failed(domain: String, name: String, error: &Error) -> Recovery {
    Recovery {
        domain,
        name,
        job: None,
        verdict: RecoveryStatus::Failed,
        found: Vec::new(),
        done: Vec::new(),
        remains: vec![advice(error)],
        disks: Vec::new(),
    }
}

/// An overlay that is left alone.
fn foreign(stray: &Path) -> Recovery {
    let name = stray.display();
    Recovery {
        domain: String::new(),
        name: String::new(),
        job: None,
        verdict: RecoveryStatus::OverlayPending,
        found: vec![format!(
            "the overlay '{name}' is in no chain, the journal does not know it, and its backing file is not an image of this host's domains"
        )],
        done: Vec::new(),
        remains: vec![format!(
            "'{name}' may be another host's or a deleted guest's, and hold data; check it, or remove it"
        )],
        disks: Vec::new(),
    }
}
