//! What the host's domains have already: names, MACs, sockets, and every file that any of them rests on, in
//! live and inactive definitions. libvirt accepts a second domain on the same disk, so it is looked for here.
//!
//! XML tells a chain only in part; [`Inventory::files`] reads the headers below, which takes no lock and
//! changes nothing.

use std::path::{Path, PathBuf};

use crate::restore::DistinctFiles;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_hypervisor::domain_xml::{DomainDisk, DomainXml, ImageSource};
use virtfold_hypervisor::{DomainId, DomainInfo, Hypervisor, XmlView};
use virtfold_image::{DiskImage, Format, ImageAccess, OpenOptions};

/// A domain that is there.
pub(super) struct HostDomain {
    pub(super) info: DomainInfo,
    /// The inactive definition, and the live one where it runs.
    pub(super) xmls: Vec<DomainXml>,
}

/// Every domain.
pub(super) struct Inventory {
    domains: Vec<HostDomain>,
}

/// How deep [`Inventory::files`] looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// What definitions name.
    Definitions,
    /// Also what the images' headers name.
    Headers,
}

/// A file that a domain rests on.
#[derive(Clone, Debug)]
pub(super) struct UsedFile {
    pub(super) id: DomainId,
    /// For people: `disk 'vda' of domain 'web'`.
    pub(super) what: String,
    pub(super) path: PathBuf,
}

impl Inventory {
    /// Asks for all of them.
    pub(super) fn read(hypervisor: &dyn Hypervisor) -> Result<Self> {
        let mut domains = Vec::new();
        for info in hypervisor.domains()? {
            let mut xmls = Vec::new();
            for config in [XmlView::Inactive, XmlView::Live] {
                match hypervisor.xml(info.id, config) {
                    Ok(text) => xmls
                        .push(DomainXml::parse(text).map_err(|e| {
                            e.within(format!("cannot tell what domain '{}' uses", info.name))
                        })?),
                    // It does not run, or it has just gone.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            domains.push(HostDomain { info, xmls });
        }
        Ok(Self { domains })
    }

    /// The domain with this uuid.
    pub(super) fn by_id(&self, id: DomainId) -> Option<&HostDomain> {
        self.domains.iter().find(|known| known.info.id == id)
    }

    /// The domain with this name.
    pub(super) fn by_name(&self, name: &str) -> Option<&HostDomain> {
        self.domains.iter().find(|known| known.info.name == name)
    }

    /// Whether a domain other than `except` has what `has` looks for; its name.
    pub(super) fn other(&self, except: Option<DomainId>, has: impl Fn(&DomainXml) -> bool) -> Option<&str> {
        let mut others = self.domains.iter().filter(|known| Some(known.info.id) != except);
        others.find(|known| known.xmls.iter().any(&has)).map(|known| known.info.name.as_str())
    }

    /// Every file that domains other than `except` rest on.
    ///
    /// # Errors
    /// With [`Depth::Headers`]: a chain can't be followed to its end.
    pub(super) fn files(
        &self,
        except: Option<DomainId>,
        from: (&dyn Hypervisor, Depth),
    ) -> Result<Vec<UsedFile>> {
        let (hypervisor, depth) = from;
        let mut found = Vec::new();
        for known in self.domains.iter().filter(|known| Some(known.info.id) != except) {
            let mut add = |what: &str, path: PathBuf| {
                let what = format!("{what} of domain '{}'", known.info.name);
                found.push(UsedFile { id: known.info.id, what, path });
            };
            for xml in &known.xmls {
                named(xml).for_each(|(what, path)| add(&what, path));
                for disk in &xml.disks {
                    let what = format!("disk '{}'", disk.target);
                    let volume = match &disk.image.source {
                        ImageSource::Volume { pool, volume } => hypervisor.volume_path(pool, volume).ok(),
                        _ => None,
                    };
                    volume.iter().for_each(|path| add(&what, path.clone()));
                    if depth == Depth::Headers {
                        let below = below(disk, volume.as_deref());
                        let below = below.map_err(|e| unknown(&known.info.name, &disk.target, e))?;
                        below.into_iter().for_each(|path| add(&what, path));
                    }
                }
            }
        }
        Ok(found)
    }
}

impl Inventory {
    /// Kernels and the like of domains other than `except`. They are no disks: where they lie nothing is
    /// restored to for that.
    pub(super) fn boot_files(&self, except: Option<DomainId>) -> Vec<UsedFile> {
        let others = self.domains.iter().filter(|known| Some(known.info.id) != except);
        let of = |known: &HostDomain, xml: &DomainXml| {
            let boot =
                ["kernel", "initrd", "dtb"].map(|element| Some((element, xml.boot.of(element)?.clone())));
            let (id, name) = (known.info.id, known.info.name.clone());
            boot.into_iter().flatten().map(move |(element, path)| {
                let what = format!("the {element} of domain '{name}'");
                UsedFile { id, what, path }
            })
        };
        others.flat_map(|known| known.xmls.iter().flat_map(move |xml| of(known, xml))).collect()
    }
}

/// Every path that a definition has for its disks and their chains, its NVRAM and its TPM.
fn named(xml: &DomainXml) -> impl Iterator<Item = (String, PathBuf)> + '_ {
    let disks = xml.disks.iter().flat_map(|disk| {
        let images = std::iter::once(&disk.image).chain(&disk.backing);
        images.filter_map(move |i| Some((format!("disk '{}'", disk.target), i.source.path()?.to_owned())))
    });
    let nvram = xml.nvram.iter().filter_map(|n| n.path.clone()).map(|path| ("the NVRAM".to_owned(), path));
    let tpms = xml.tpms.iter().filter_map(|t| t.source.clone()).map(|path| ("the TPM".to_owned(), path));
    disks.chain(nvram).chain(tpms)
}

/// What the headers of a qcow2 name, all the way down. An image that is not there rests on nothing.
fn below(disk: &DomainDisk, volume: Option<&Path>) -> Result<Vec<PathBuf>> {
    let path = disk.image.source.path().or(volume);
    let (Some(path), Some("qcow2")) = (path, disk.image.format.as_deref()) else { return Ok(Vec::new()) };
    if !path.exists() {
        return Ok(Vec::new());
    }
    let options = OpenOptions { usage: ImageAccess::Unlocked, ..OpenOptions::default() };
    let image = DiskImage::open(path, Format::Qcow2, &options)?;
    let source = image.source();
    let data = source.qcow2.as_ref().and_then(|q| q.data_file.as_ref());
    let data = data.map(|name| path.parent().unwrap_or(Path::new("/")).join(name));
    Ok(source.chain.iter().skip(1).map(|link| PathBuf::from(&link.path)).chain(data).collect())
}

fn unknown(domain: &str, target: &str, error: Error) -> Error {
    let what = format!("cannot tell which images disk '{target}' of domain '{domain}' rests on");
    error.within(what).with_hint(
        "a file that exists is replaced only when no other guest rests on it; restore to new files with --output",
    )
}

/// Who uses which file.
pub(super) struct FileUsers<'a> {
    used: &'a [UsedFile],
    files: DistinctFiles,
}

impl<'a> FileUsers<'a> {
    pub(super) fn of(used: &'a [UsedFile]) -> Self {
        let mut files = DistinctFiles::default();
        for used in used {
            files.insert(&used.path);
        }
        Self { used, files }
    }

    /// The first that is the file `path`.
    pub(super) fn of_file(&self, path: &Path) -> Option<&'a UsedFile> {
        self.used.get(self.files.find(path)?)
    }
}
