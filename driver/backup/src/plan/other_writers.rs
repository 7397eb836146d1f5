//! The other guests that run: none of them may write to an image that is copied. QEMU's locks prevent it for
//! the top image; an image below may be shared by many guests, and one that is written to under a copy would
//! give a mixture.
//!
//! Three ways to see it: the locks of a QEMU on the file (`disks`); here the files that the QEMUs of running
//! domains have open for writing, which one pass over the host's processes shows ([`OpenFiles`]); and the
//! disks in the live XML, of each domain that runs and whose QEMU that pass could not look at. A file system
//! without locks shows none. What is compared is the file, not its name.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::Finding;
use super::disks::OpenedDisk;
use super::volumes;
use virtfold_base::error::{ErrorKind, Result, sentence};
use virtfold_base::openers::{FileId, OpenFiles};
use virtfold_hypervisor::domain_xml::{Device, DomainXml};
use virtfold_hypervisor::host_files::HostFiles;
use virtfold_hypervisor::{DomainId, DomainState, Hypervisor, XmlView};

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
    /// What QEMUs have open, and the running domains whose QEMU was seen.
    open: OpenFiles,
    seen: BTreeMap<DomainId, String>,
    /// Running domains whose XML can't be understood, and why.
    unseen: Vec<(DomainId, String)>,
}

impl OtherWriters {
    /// Looks at all domains that run.
    ///
    /// # Errors
    /// The host's processes can't be looked at, the domains can't be listed or read. One that has ended in
    /// between is passed over.
    pub fn of(hypervisor: &dyn Hypervisor, files: &dyn HostFiles) -> Result<Self> {
        let running = hypervisor.domains()?.into_iter().filter(|info| info.run.is_active());
        let mut found = Self { open: files.open_files()?, ..Self::default() };
        for info in running {
            // One that stands still may be about to be given its disks.
            if info.run == DomainState::Running && found.open.has_seen(info.id.0) {
                found.seen.insert(info.id, info.name);
            } else {
                found.add(hypervisor, info.id, &info.name)?;
            }
        }
        Ok(found)
    }

    /// Looks at the live XML of a domain.
    fn add(&mut self, hypervisor: &dyn Hypervisor, id: DomainId, name: &str) -> Result<()> {
        let text = match hypervisor.xml(id, XmlView::Live) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            text => text?,
        };
        let mut xml = match DomainXml::parse(text) {
            Ok(xml) => xml,
            Err(error) => {
                let told = format!(
                    "the running domain '{name}' can't be queried ({}): only QEMU's locks tell whether it writes to an image of this one",
                    sentence(&error)
                );
                self.unseen.push((id, told));
                return Ok(());
            }
        };
        // A volume that can't be found is a file that is not there: nobody's image.
        let lost = volumes::resolve(hypervisor, &mut xml);
        tracing::debug!(domain = %name, lost = lost.len(), "volumes of a running domain looked up");
        for disk in xml.disks.iter().filter(|d| d.device == Device::Disk && !d.marks.readonly) {
            let Some(identity) = disk.image.source.path().and_then(identity) else { continue };
            let (name, target) = (name.to_owned(), disk.target.clone());
            self.writers.entry(identity).or_default().push(FileOwner { domain: id, name, target });
        }
        Ok(())
    }

    /// What could not be seen.
    pub(super) fn unseen(&self, own: DomainId) -> impl Iterator<Item = String> {
        self.unseen.iter().filter(move |(id, _)| *id != own).map(|(_, told)| told.clone())
    }

    /// The images that another domain than `own` writes to.
    ///
    /// # Errors
    /// What the hypervisor says of a domain that was seen to do so.
    pub(super) fn findings(
        &self,
        hypervisor: &dyn Hypervisor,
        own: DomainId,
        opened: &[OpenedDisk],
    ) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        for file in opened {
            let writers = self.writers.get(&file.identity).into_iter().flatten();
            let mut told: Vec<String> = writers
                .filter(|writer| writer.domain != own)
                .map(|writer| format!("the running domain '{}' as its disk '{}'", writer.name, writer.target))
                .collect();
            let openers = self.open.writers(file_id(file.identity)).map(DomainId).filter(|id| *id != own);
            for (id, name) in openers.filter_map(|id| Some((id, self.seen.get(&id)?))) {
                let mut one = Self::default();
                one.add(hypervisor, id, name)?;
                let target = one.writers.get(&file.identity).and_then(|owners| owners.first());
                told.push(match target {
                    Some(owner) => format!("the running domain '{name}' as its disk '{}'", owner.target),
                    None => format!("the running domain '{name}'"),
                });
            }
            for writer in told {
                let (path, target) = (file.path.display(), &file.target);
                let told = format!("'{path}' of disk '{target}' is written to by {writer}");
                let hint = "a copy would be inconsistent; shut one of the two down, or exclude the disk";
                findings.push(Finding::new("written", ErrorKind::InUse, told).with_hint(hint));
            }
        }
        Ok(findings)
    }
}

fn file_id(identity: (u64, u64)) -> FileId {
    let (device, inode) = identity;
    if device == u64::MAX { FileId::Device(inode) } else { FileId::File { device, inode } }
}

/// What tells one file or device from another, as [`virtfold_image::DiskImage::host_files`] has it.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::metadata(PathBuf::from(path)).ok()?;
    let is_device = found.file_type().is_block_device();
    Some(if is_device { (u64::MAX, found.rdev()) } else { (found.dev(), found.ino()) })
}
