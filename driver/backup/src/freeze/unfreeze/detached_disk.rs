//! A disk that was taken off its running guest while it was copied, or that the guest's next start does not
//! have.
//!
//! Its last writes are in the overlay. Nobody but the journal and the files knows that the two belong
//! together, so somebody may have given one of them to another guest, or to this one as another disk: then it
//! is not ours any more.
//!
//! Imports: `error`, `catalog`, `hypervisor`.

use std::path::{Path, PathBuf};

use super::super::FreezeContext;
use super::super::domain_view::DomainView;
use super::remove_overlays::{LOOKS, descriptions};
use super::{Unfreeze, messages, note};
use virtfold_base::error::Result;
use virtfold_catalog::{SessionDisk, SessionKind};
use virtfold_hypervisor::DomainId;
use virtfold_hypervisor::config_repair::path_of;
use virtfold_hypervisor::domain_xml::edit::escape;
use virtfold_hypervisor::domain_xml::{ChainKnowledge, DomainDisk, DomainXml};
use virtfold_hypervisor::host_files::ImageUse;

impl Unfreeze<'_> {
    /// Notes which disks are not the guest's any more, or not those of its next start.
    pub(super) fn note_detached(&mut self, view: &DomainView) {
        let has = |xml: &DomainXml, target: &str| xml.disk(target).is_some();
        let began = self.job.inactive.clone().and_then(|xml| DomainXml::parse(xml).ok());
        let runs = self.job.kind == SessionKind::Running && view.is_active();
        for (disk, notes) in self.job.disks.iter().zip(&mut self.disks) {
            let live = view.live.as_ref().filter(|_| runs);
            let (began, now) = (began.as_ref(), view.config.as_ref());
            if live.is_some_and(|live| !has(live, &disk.target)) {
                note(&mut notes.found, messages::DETACHED.to_owned());
            } else if live.is_some()
                && began.is_some_and(|config| has(config, &disk.target))
                && now.is_some_and(|config| !has(config, &disk.target))
            {
                note(&mut notes.found, messages::UNCONFIGURED.to_owned());
            }
        }
    }
}

/// Waits for a QEMU that was just told to close an image.
pub(super) fn settled(host: &FreezeContext<'_>, image: &Path) -> Result<()> {
    for _ in 0..LOOKS {
        if matches!(host.files.image_use(image)?, ImageUse::Free | ImageUse::Absent) {
            return Ok(());
        }
        std::thread::sleep(host.pace.poll);
    }
    Ok(())
}

/// Who has the disk's overlay or its base in a chain, the disk itself aside: every disk of every domain, live
/// and at its next start.
pub(super) fn other_user(
    host: &FreezeContext<'_>,
    owner: DomainId,
    disk: &SessionDisk,
) -> Result<Option<String>> {
    let images: Vec<&Path> = disk.overlay.as_deref().into_iter().chain([disk.base.path.as_path()]).collect();
    for info in host.hypervisor.domains()? {
        for text in descriptions(host, &info)? {
            let Ok(xml) = DomainXml::parse(text.as_str()) else {
                // One of a kind that is not known here may have them all the same.
                let named = images
                    .iter()
                    .filter_map(|image| image.to_str())
                    .any(|name| text.contains(&*escape(name)));
                if named {
                    return Ok(Some(format!("domain '{}'", info.name)));
                }
                continue;
            };
            let others = xml.disks.iter().filter(|other| info.id != owner || other.target != disk.target);
            for other in others {
                if is_one_of(host, &images, &chain(host, other)?)? {
                    return Ok(Some(format!("disk '{}' of domain '{}'", other.target, info.name)));
                }
            }
        }
    }
    Ok(None)
}

/// Whether a chain has one of these images, by whatever name.
fn is_one_of(host: &FreezeContext<'_>, images: &[&Path], chain: &[PathBuf]) -> Result<bool> {
    for path in chain {
        let identity = host.files.identity(path)?;
        for image in images {
            if path == image || (identity.is_some() && identity == host.files.identity(image)?) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The images of a disk, those below by the headers where the XML does not follow them to the end.
fn chain(host: &FreezeContext<'_>, disk: &DomainDisk) -> Result<Vec<PathBuf>> {
    let images = std::iter::once(&disk.image).chain(&disk.backing);
    let paths = images.map(|image| path_of(host.hypervisor, &image.source)).filter_map(Result::transpose);
    let mut paths = paths.collect::<Result<Vec<_>>>()?;
    let last = disk.backing.last().unwrap_or(&disk.image);
    if let Some(path) = paths
        .last()
        .filter(|_| disk.chain == ChainKnowledge::Partial && last.format.as_deref() == Some("qcow2"))
        && host.files.image_use(path)? != ImageUse::Absent
    {
        paths.extend(host.files.below(path)?);
    }
    Ok(paths)
}
