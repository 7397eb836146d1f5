//! The other guests that run: none of them may write to an image that is copied. QEMU's locks prevent it for
//! the top image; an image below may be shared by many guests, and one that is written to under a copy would
//! give a mixture.
//!
//! Two ways to see it: the locks of a QEMU on the file (`disks`), and here the disks of all running domains,
//! since a file system without locks shows none. What is compared is the file, not its name.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::Finding;
use super::disks::OpenedDisk;
use super::volumes;
use virtfold_base::error::{ErrorKind, Result, sentence};
use virtfold_hypervisor::domain_xml::{Device, DomainXml};
use virtfold_hypervisor::{DomainId, Hypervisor, XmlView};

/// Who a file belongs to, as far as writing goes.
#[derive(Clone, Debug)]
struct FileOwner {
    domain: DomainId,
    name: String,
    target: String,
}

/// The files that running domains write to.
#[derive(Clone, Debug, Default)]
pub struct OtherWriters {
    writers: BTreeMap<(u64, u64), Vec<FileOwner>>,
    /// Running domains whose XML can't be understood, and why.
    unseen: Vec<(DomainId, String)>,
}

impl OtherWriters {
    /// Looks at the live XML of every domain that runs.
    ///
    /// # Errors
    /// The domains can't be listed or read. One that has ended in between is passed over.
    pub fn of(hypervisor: &dyn Hypervisor) -> Result<Self> {
        let mut found = Self::default();
        for info in hypervisor.domains()?.into_iter().filter(|info| info.run.is_active()) {
            let text = match hypervisor.xml(info.id, XmlView::Live) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                text => text?,
            };
            let mut xml = match DomainXml::parse(text) {
                Ok(xml) => xml,
                Err(error) => {
                    let told = format!(
                        "the running domain '{}' can't be queried ({}): only QEMU's locks tell whether it writes to an image of this one",
                        info.name,
                        sentence(&error)
                    );
                    found.unseen.push((info.id, told));
                    continue;
                }
            };
            // A volume that can't be found is a file that is not there: nobody's image.
            let lost = volumes::resolve(hypervisor, &mut xml);
            tracing::debug!(domain = %info.name, lost = lost.len(), "volumes of a running domain looked up");
            for disk in xml.disks.iter().filter(|d| d.device == Device::Disk && !d.marks.readonly) {
                let Some(identity) = disk.image.source.path().and_then(identity) else { continue };
                let (domain, name, target) = (info.id, info.name.clone(), disk.target.clone());
                found.writers.entry(identity).or_default().push(FileOwner { domain, name, target });
            }
        }
        Ok(found)
    }

    /// What could not be seen.
    pub(super) fn unseen(&self, own: DomainId) -> impl Iterator<Item = String> {
        self.unseen.iter().filter(move |(id, _)| *id != own).map(|(_, told)| told.clone())
    }

    /// The images that another domain than `own` writes to.
    pub(super) fn findings(&self, own: DomainId, opened: &[OpenedDisk]) -> Vec<Finding> {
        let mut findings = Vec::new();
        for file in opened {
            let writers = self.writers.get(&file.identity).into_iter().flatten();
            for writer in writers.filter(|writer| writer.domain != own) {
                let told = format!(
                    "'{}' of disk '{}' is written to by the running domain '{}' as its disk '{}'",
                    file.path.display(),
                    file.target,
                    writer.name,
                    writer.target
                );
                let hint = "a copy would be inconsistent; shut one of the two down, or exclude the disk";
                findings.push(Finding::new("written", ErrorKind::InUse, told).with_hint(hint));
            }
        }
        findings
    }
}

/// What tells one file or device from another, as [`virtfold_image::DiskImage::host_files`] has it.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::metadata(PathBuf::from(path)).ok()?;
    let is_device = found.file_type().is_block_device();
    Some(if is_device { (u64::MAX, found.rdev()) } else { (found.dev(), found.ino()) })
}
