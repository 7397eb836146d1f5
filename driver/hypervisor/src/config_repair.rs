//! Sets a running guest's configuration right: QEMU says which image a disk has, the configuration says which
//! one the next start uses, and a libvirtd that dies in a snapshot or in a pivot leaves them apart. Only the
//! overlays of virtfold are looked at: what else a configuration says is its owner's will.
//!
//! - QEMU is on an overlay, the configuration on the image right below: the next start would lose what the
//!   overlay has. The overlay is put on.
//! - The configuration is on an overlay, QEMU on the image right below: the next start would lose what the
//!   image has. The overlay is taken off.
//!
//! Imports: `error`, `domain_xml`, `types`, and the trait.

use std::path::{Path, PathBuf};

use super::domain_xml::edit::Editor;
use super::domain_xml::{DomainDisk, DomainXml, ImageSource};
use super::types::{DomainId, Persistence, QemuDisk, XmlView};
use super::{Hypervisor, is_our_overlay};
use virtfold_base::error::{Error, ErrorKind, Result};

/// What is wrong with a configuration's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigFix {
    /// The overlay is to be put on.
    Push {
        /// The disk.
        target: String,
        /// The overlay.
        overlay: PathBuf,
    },
    /// The overlay is to be taken off.
    Pop {
        /// The disk.
        target: String,
        /// The overlay.
        overlay: PathBuf,
    },
}

/// Looks at a running domain and sets its configuration right; returns what was wrong.
///
/// # Errors
/// What the hypervisor says; a configuration that does not describe the image below.
pub fn repair_config(hypervisor: &dyn Hypervisor, domain: DomainId) -> Result<Vec<ConfigFix>> {
    let info = hypervisor.lookup(&domain.to_string())?;
    if info.persistence == Persistence::Transient || !info.run.is_active() {
        return Ok(Vec::new());
    }
    let live = DomainXml::parse(hypervisor.xml(domain, XmlView::Live)?)?;
    let qemu = hypervisor.query_block(domain)?;
    let config = DomainXml::parse(hypervisor.xml(domain, XmlView::Inactive)?)?;
    let fixes = fixes(hypervisor, &live, &qemu, &config)?;
    if !fixes.is_empty() {
        hypervisor.define(&apply(&config, &fixes)?)?;
    }
    Ok(fixes)
}

/// What is wrong with `config`, seen from what QEMU does.
///
/// # Errors
/// A volume that can't be looked up.
pub fn fixes(
    hypervisor: &dyn Hypervisor,
    live: &DomainXml,
    qemu: &[QemuDisk],
    config: &DomainXml,
) -> Result<Vec<ConfigFix>> {
    let mut fixes = Vec::new();
    for disk in &config.disks {
        let target = disk.target.clone();
        let alias = live.disk(&target).and_then(|d| d.alias.as_deref());
        let Some(actual) = qemu.iter().find(|q| Some(q.alias.as_str()) == alias) else { continue };
        let Some(running) = actual.file.as_deref() else { continue };
        let Some(believed) = path_of(hypervisor, &disk.image.source)? else { continue };
        let goes_down_to = |below: Option<&Path>, image: &Path| below == Some(image);
        if is_our_overlay(running) && goes_down_to(actual.backing.first().map(PathBuf::as_path), &believed) {
            fixes.push(ConfigFix::Push { target, overlay: running.to_owned() });
        } else if is_our_overlay(&believed) && goes_down_to(below(hypervisor, disk)?.as_deref(), running) {
            fixes.push(ConfigFix::Pop { target, overlay: believed });
        }
    }
    Ok(fixes)
}

/// The XML with the fixes made.
///
/// # Errors
/// XML that does not describe the image below an overlay that is to be taken off.
pub fn apply(xml: &DomainXml, fixes: &[ConfigFix]) -> Result<String> {
    let mut editor = Editor::new(xml)?;
    for fix in fixes {
        match fix {
            ConfigFix::Push { target, overlay } => editor.push_image(target, overlay)?,
            ConfigFix::Pop { target, .. } => editor.pop_image(target)?,
        };
    }
    Ok(editor.finish()?.text().to_owned())
}

fn below(hypervisor: &dyn Hypervisor, disk: &DomainDisk) -> Result<Option<PathBuf>> {
    disk.backing.first().map_or(Ok(None), |image| path_of(hypervisor, &image.source))
}

/// The local file or device of a source; a volume is looked up in its pool.
///
/// # Errors
/// What the hypervisor says of the pool; a volume that is not there has no path.
pub fn path_of(hypervisor: &dyn Hypervisor, source: &ImageSource) -> Result<Option<PathBuf>> {
    match source {
        ImageSource::Volume { pool, volume } => match hypervisor.volume_path(pool, volume) {
            Ok(path) => Ok(Some(path)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err::<_, Error>(error),
        },
        other => Ok(other.path().map(Path::to_owned)),
    }
}
