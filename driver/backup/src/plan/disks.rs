//! One disk of a plan: its chain, its size, who uses it.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Finding;
use super::free_space;
use virtfold_archive::layout;
use virtfold_base::error::{Error, ErrorKind, Result, sentence};
use virtfold_hypervisor::disk_rules::{BackupMode, DiskRule};
use virtfold_hypervisor::domain_xml::{ChainKnowledge, Device, DomainDisk};
use virtfold_hypervisor::host_files::{HostFiles, ImageUse};
use virtfold_image::{DiskImage, Format, ImageAccess, OpenOptions};

/// An image of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChainImage {
    /// Its path; bytes that are not UTF-8 are replaced.
    pub path: String,
    /// Its format.
    pub format: Format,
}

/// A disk, and what would be done with it.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedDisk {
    /// Its name in the domain and in the archive.
    pub target: String,
    /// What the guest sees: `disk`, `cdrom`, `floppy`, `lun`.
    pub device: &'static str,
    /// Whether it is copied.
    pub copy: bool,
    /// The rule's sentence.
    pub rule: String,
    /// The file or device that the guest writes to.
    pub source: Option<String>,
    /// The top image's format.
    pub format: Option<Format>,
    /// The images below it, the nearest first.
    pub backing: Vec<ChainImage>,
    /// Bytes that the guest sees.
    pub capacity: Option<u64>,
    /// Bytes that its images take on the host, at most the capacity.
    pub allocated: Option<u64>,
    /// Where the guest writes while the disk is copied.
    pub overlay: Option<PathBuf>,
    /// What the overlay is estimated to take, bytes.
    pub overlay_estimate: Option<u64>,
    /// Who says what is below.
    #[serde(skip)]
    pub below: ChainSource,
}

/// The images below a disk's top one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainSource {
    /// The headers say it.
    Headers,
    /// libvirt says it: QEMU has these open, whatever headers say.
    Known(Vec<(PathBuf, Format)>),
    /// libvirt names one that can't be read, and this is why.
    Unreadable(String),
}

/// A host file of a disk that is copied.
#[derive(Clone, Debug)]
pub(super) struct OpenedDisk {
    pub(super) target: String,
    pub(super) path: PathBuf,
    pub(super) identity: (u64, u64),
}

impl PlannedDisk {
    pub(super) fn new(disk: &DomainDisk, verdict: DiskRule) -> Self {
        let source = disk.image.source.path().map(|path| path.to_string_lossy().into_owned());
        // Without a format QEMU, and the rule, take it for raw.
        let format = disk.image.format.as_deref().unwrap_or("raw").parse().ok();
        Self {
            target: disk.target.clone(),
            device: match disk.device {
                Device::Disk => "disk",
                Device::Cdrom => "cdrom",
                Device::Floppy => "floppy",
                Device::Lun => "lun",
            },
            copy: verdict == DiskRule::Include,
            rule: verdict.to_string(),
            format: format.filter(|_| source.is_some()),
            source,
            backing: Vec::new(),
            capacity: None,
            allocated: None,
            overlay: None,
            overlay_estimate: None,
            below: below(disk),
        }
    }

    /// Opens the image with its chain.
    ///
    /// # Errors
    /// Those of [`DiskImage::open`].
    pub fn open(&self, usage: ImageAccess) -> Result<DiskImage> {
        let (Some(source), Some(format)) = (&self.source, self.format) else {
            let message = format!("disk '{}' is not a local image", self.target);
            return Err(Error::new(ErrorKind::Internal, message));
        };
        let options = OpenOptions { usage, ..OpenOptions::default() };
        match &self.below {
            ChainSource::Known(below) => DiskImage::open_chain(Path::new(source), format, below, &options),
            ChainSource::Headers => DiskImage::open(Path::new(source), format, &options),
            ChainSource::Unreadable(why) => {
                let hint = "use --exclude, and back the disk up by other means";
                Err(Error::new(ErrorKind::Unsupported, why.clone()).with_hint(hint))
            }
        }
    }

    /// Looks at the headers of a disk that is copied, and at who uses its files.
    pub(super) fn examine(
        &mut self,
        files: &dyn HostFiles,
        way: BackupMode,
    ) -> std::result::Result<Vec<OpenedDisk>, Finding> {
        // A volume that was not found has a finding already.
        if !self.copy || self.source.is_none() {
            return Ok(Vec::new());
        }
        self.look(files, way).map_err(|error| {
            let told = format!("disk '{}': {}", self.target, sentence(&error));
            let finding = Finding::new("image", error.kind(), told);
            match error.hint() {
                Some(hint) => finding.with_hint(hint),
                None => finding,
            }
        })
    }

    fn look(&mut self, files: &dyn HostFiles, way: BackupMode) -> Result<Vec<OpenedDisk>> {
        layout::check_target(&self.target)
            .map_err(|error| Error::new(ErrorKind::Unsupported, error.to_string()))?;
        let image = self.open(ImageAccess::Unlocked)?;
        image.check_writers()?;
        let chain = image.chain()?;
        let link = |(path, format): &(PathBuf, Format)| ChainImage {
            path: path.to_string_lossy().into_owned(),
            format: *format,
        };
        self.backing = chain.iter().skip(1).map(link).collect();
        let capacity = image.capacity();
        let mut allocated = 0_u64;
        for (path, (device, _)) in image.host_files() {
            // A block device has no holes that anybody tells of.
            let taken = if device == u64::MAX { capacity } else { files.allocated(path)? };
            allocated = allocated.saturating_add(taken);
        }
        self.capacity = Some(capacity);
        self.allocated = Some(allocated.min(capacity));
        self.overlay_estimate = Some(free_space::estimate(capacity, allocated.min(capacity)));
        self.check_use(files, way, &chain)?;
        let opened = image.host_files().map(|(path, identity)| OpenedDisk {
            target: self.target.clone(),
            path: path.to_owned(),
            identity,
        });
        Ok(opened.collect())
    }

    /// Nobody writes to an image below; nobody but the guest itself to the top one.
    fn check_use(&self, files: &dyn HostFiles, way: BackupMode, chain: &[(PathBuf, Format)]) -> Result<()> {
        let own_guest_writes = usize::from(way != BackupMode::Offline);
        for (path, _) in chain.iter().skip(own_guest_writes) {
            if files.image_use(path)? == ImageUse::Written {
                let message = format!("'{}' is being written to by another QEMU", path.display());
                let hint = "a copy would be inconsistent; stop that QEMU first, or exclude the disk";
                return Err(Error::new(ErrorKind::InUse, message).with_hint(hint));
            }
        }
        Ok(())
    }
}

/// The chain below as libvirt says it, where it says all of it. Live XML does.
fn below(disk: &DomainDisk) -> ChainSource {
    if disk.chain == ChainKnowledge::Partial {
        return ChainSource::Headers;
    }
    let mut links = Vec::with_capacity(disk.backing.len());
    for image in &disk.backing {
        let Some(path) = image.source.path() else {
            return ChainSource::Unreadable("an image below its top one is not a local file".to_owned());
        };
        // Without a format the header above has it.
        let Some(format) = &image.format else { return ChainSource::Headers };
        match format.parse() {
            Ok(format) => links.push((path.to_owned(), format)),
            Err(_) => {
                let format = format.escape_debug();
                let why =
                    format!("the image '{}' below its top one has the format '{format}'", path.display());
                return ChainSource::Unreadable(why);
            }
        }
    }
    ChainSource::Known(links)
}

/// Disks of the domain that share a file under different names. (The same name is found by the rules.) A file
/// below that both only read is no harm.
pub(super) fn twice(opened: &[OpenedDisk]) -> Option<Finding> {
    let mut tops: Vec<&OpenedDisk> = Vec::new();
    for file in opened {
        if tops.iter().any(|top| top.target == file.target) {
            continue;
        }
        if let Some(other) = tops.iter().find(|top| top.identity == file.identity && top.path != file.path) {
            let told = format!(
                "disks '{}' and '{}' share one file: '{}' and '{}'",
                other.target,
                file.target,
                other.path.display(),
                file.path.display()
            );
            let finding = Finding::new("shared-file", ErrorKind::Unsupported, told);
            return Some(finding.with_hint("exclude one of them with --exclude"));
        }
        tops.push(file);
    }
    None
}
