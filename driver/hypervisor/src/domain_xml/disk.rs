//! A `<disk>` of domain XML.

use std::path::{Path, PathBuf};

use roxmltree::Node;

use super::{child, own};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_image::MAX_CHAIN;

/// What the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// A disk.
    Disk,
    /// A CD or DVD drive.
    Cdrom,
    /// A floppy drive.
    Floppy,
    /// A SCSI device passed through with its commands.
    Lun,
}

/// Where an image lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// An empty drive.
    Empty,
    /// A file.
    File(PathBuf),
    /// A block device.
    Block(PathBuf),
    /// A volume of a storage pool, still to be looked up.
    Volume {
        /// The pool.
        pool: String,
        /// The volume.
        volume: String,
    },
    /// Something on the network: `rbd`, `nbd`, `iscsi`, ...
    Network {
        /// How it is reached.
        protocol: String,
    },
    /// A type that is none of these: `nvme`, `vhostuser`, `dir`, ...
    Other(String),
}

impl ImageSource {
    /// The local file or device, where it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            ImageSource::File(path) | ImageSource::Block(path) => Some(path),
            _ => None,
        }
    }
}

/// An image of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainEntry {
    /// Where it lies.
    pub source: ImageSource,
    /// Its format as the XML says it.
    pub format: Option<String>,
}

/// A block job's mark on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// `copy`, `active-commit`.
    pub job: String,
    /// `yes`, `pivot`, `abort`; `None` while it is not ready.
    pub ready: Option<String>,
}

/// Marks of a disk that decide what may be done with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is an element of the XML that is there or not")]
pub struct DiskFlags {
    /// `<readonly/>`.
    pub readonly: bool,
    /// `<shareable/>`: another guest may write to it at the same time.
    pub shareable: bool,
    /// `<transient/>`: what the guest writes is thrown away at its end.
    pub transient: bool,
    /// `<encryption>`: QEMU decrypts; the image's bytes are cipher text.
    pub encrypted: bool,
    /// `<slices>`: it is a part of its file, or an image below it is one.
    pub sliced: bool,
}

/// A disk of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainDisk {
    /// `vda`: unique in the domain.
    pub target: String,
    /// `virtio`, `sata`, ...
    pub bus: Option<String>,
    /// What the guest sees.
    pub device: Device,
    /// The image that is written to.
    pub image: ChainEntry,
    /// The images below it, as far as the XML says; live XML says all of them.
    pub backing: Vec<ChainEntry>,
    /// Whether the XML says where the chain ends (`<backingStore/>`); otherwise the images' headers decide.
    pub chain: ChainKnowledge,
    /// What may be done with it.
    pub marks: DiskFlags,
    /// The attribute `snapshot`: `no`, `external`, `internal`, `manual`.
    pub snapshot: Option<String>,
    /// The device's name in QEMU (live XML only).
    pub alias: Option<String>,
    /// A block job's mark (live XML only).
    pub mirror: Option<Mirror>,
}

/// How far the XML tells a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKnowledge {
    /// To its end.
    Complete,
    /// Not to its end: read the headers.
    Partial,
}

pub(super) fn read(node: Node<'_, '_>) -> Result<DomainDisk> {
    let target = child(node, "target").and_then(|t| t.attribute("dev")).unwrap_or_default();
    if target.is_empty() || target.len() > 64 || target.contains(['/', '\0']) {
        return Err(super::bad(format!("a disk's target is '{}'", target.escape_default())));
    }
    let (backing, chain) = read_backing(node, target)?;
    let device = match node.attribute("device") {
        None | Some("disk") => Device::Disk,
        Some("cdrom") => Device::Cdrom,
        Some("floppy") => Device::Floppy,
        Some("lun") => Device::Lun,
        Some(other) => {
            let message = format!("disk '{target}' is a '{other}', which virtfold does not know");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
    };
    let has = |tag| child(node, tag).is_some();
    let format = child(node, "driver").and_then(|d| d.attribute("type")).map(own);
    let source = child(node, "source");
    let encrypted = has("encryption") || source.is_some_and(|s| child(s, "encryption").is_some());
    Ok(DomainDisk {
        target: target.to_owned(),
        bus: child(node, "target").and_then(|t| t.attribute("bus")).map(own),
        device,
        image: ChainEntry { source: read_source(node), format },
        backing,
        chain,
        marks: DiskFlags {
            readonly: has("readonly"),
            shareable: has("shareable"),
            transient: has("transient"),
            encrypted,
            sliced: is_sliced(node),
        },
        snapshot: node.attribute("snapshot").map(own),
        alias: child(node, "alias").and_then(|a| a.attribute("name")).map(own),
        mirror: child(node, "mirror").map(|m| Mirror {
            job: m.attribute("job").unwrap_or("copy").to_owned(),
            ready: m.attribute("ready").map(own),
        }),
    })
}

/// The source of a `<disk>` or a `<backingStore>`: both have `type` and a `<source>`.
fn read_source(holder: Node<'_, '_>) -> ImageSource {
    let Some(source) = child(holder, "source") else { return ImageSource::Empty };
    let attribute = |name| source.attribute(name).filter(|value| !value.is_empty());
    match holder.attribute("type").unwrap_or("file") {
        "file" => attribute("file").map_or(ImageSource::Empty, |path| ImageSource::File(path.into())),
        "block" => attribute("dev").map_or(ImageSource::Empty, |path| ImageSource::Block(path.into())),
        "volume" => match (attribute("pool"), attribute("volume")) {
            (Some(pool), Some(volume)) => ImageSource::Volume { pool: own(pool), volume: own(volume) },
            _ => ImageSource::Empty,
        },
        "network" => ImageSource::Network { protocol: attribute("protocol").unwrap_or_default().to_owned() },
        other => ImageSource::Other(other.to_owned()),
    }
}

/// Whether the disk's image or one below it is a part of its file.
fn is_sliced(disk: Node<'_, '_>) -> bool {
    let chain = std::iter::successors(Some(disk), |image| child(*image, "backingStore"));
    chain.filter_map(|image| child(image, "source")).any(|source| child(source, "slices").is_some())
}

fn read_backing(disk: Node<'_, '_>, target: &str) -> Result<(Vec<ChainEntry>, ChainKnowledge)> {
    let mut images = Vec::new();
    let mut holder = disk;
    while let Some(backing) = child(holder, "backingStore") {
        if backing.attribute("type").is_none() {
            return Ok((images, ChainKnowledge::Complete));
        }
        if images.len() == MAX_CHAIN {
            let message = format!("the chain of disk '{target}' has more than {MAX_CHAIN} images");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let format = child(backing, "format").and_then(|f| f.attribute("type")).map(own);
        images.push(ChainEntry { source: read_source(backing), format });
        holder = backing;
    }
    Ok((images, ChainKnowledge::Partial))
}
