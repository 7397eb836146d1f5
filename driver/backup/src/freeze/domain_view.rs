//! What is there now: QEMU's word, both descriptions and the managed save image's, seen in one look.
//!
//! A domain may end or begin between two questions. A look that contradicts itself is taken again.
//!
//! Imports: `error`, `hypervisor`.

use std::path::{Path, PathBuf};

use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_catalog::SessionDisk;
use virtfold_hypervisor::config_repair::path_of;
use virtfold_hypervisor::domain_xml::{DomainDisk, DomainXml, Mirror};
use virtfold_hypervisor::{
    DomainId, DomainInfo, DomainState, Hypervisor, PausedReason, Persistence, QemuDisk, XmlView,
};

/// Looks before it is given up that the domain does not stay as it is for the length of one.
const LOOKS: usize = 5;

/// A look at a domain.
#[derive(Debug)]
pub(super) struct DomainView {
    /// `None`: there is no such domain.
    pub(super) info: Option<DomainInfo>,
    /// What runs.
    pub(super) live: Option<DomainXml>,
    /// What the next start uses; `None` for a transient domain.
    pub(super) config: Option<DomainXml>,
    /// What the next start goes on with, where the guest was saved.
    pub(super) saved: Option<DomainXml>,
    /// What QEMU does; empty when there is none.
    pub(super) qemu: Vec<QemuDisk>,
}

/// One disk of a look: the images of its chain, top first, as each view has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DiskView {
    pub(super) qemu: Option<Vec<PathBuf>>,
    pub(super) live: Option<Vec<PathBuf>>,
    pub(super) config: Option<Vec<PathBuf>>,
    pub(super) saved: Option<Vec<PathBuf>>,
    pub(super) mirror: Option<Mirror>,
}

impl DomainView {
    pub(super) fn look(hypervisor: &dyn Hypervisor, domain: DomainId) -> Result<Self> {
        for _ in 0..LOOKS {
            if let Some(view) = Self::try_view(hypervisor, domain)? {
                return Ok(view);
            }
        }
        let message = format!("domain {domain} begins and ends while it is looked at");
        Err(Error::new(ErrorKind::InUse, message).with_hint("try again"))
    }

    /// `None` where the domain changed meanwhile.
    fn try_view(hypervisor: &dyn Hypervisor, domain: DomainId) -> Result<Option<Self>> {
        let nothing = Self { info: None, live: None, config: None, saved: None, qemu: Vec::new() };
        let Some(info) = present(hypervisor.lookup(&domain.to_string()))? else { return Ok(Some(nothing)) };
        let mut view = Self { info: Some(info.clone()), ..nothing };
        let parse = |text: Option<String>| text.map(DomainXml::parse).transpose();
        if info.run.is_active() {
            view.live = parse(present(hypervisor.xml(domain, XmlView::Live))?)?;
            let asked = hypervisor.query_block(domain);
            let still = present(hypervisor.domain_state(domain))?.is_some_and(DomainState::is_active);
            if view.live.is_none() || !still {
                return Ok(None);
            }
            view.qemu = asked?;
        }
        if info.persistence == Persistence::Persistent {
            let Some(config) = present(hypervisor.xml(domain, XmlView::Inactive))? else { return Ok(None) };
            view.config = Some(DomainXml::parse(config)?);
            if !info.run.is_active() {
                view.saved = parse(present(hypervisor.managed_save_xml(domain))?.flatten())?;
            }
        }
        Ok(Some(view))
    }

    pub(super) fn run(&self) -> Option<DomainState> {
        self.info.as_ref().map(|i| i.run)
    }

    pub(super) fn is_active(&self) -> bool {
        self.run().is_some_and(DomainState::is_active)
    }

    /// Whether somebody made it stand still.
    pub(super) fn is_paused(&self) -> bool {
        self.run() == Some(DomainState::Paused(PausedReason::User))
    }

    /// One disk, as all views have it.
    pub(super) fn disk(&self, hypervisor: &dyn Hypervisor, disk: &SessionDisk) -> Result<DiskView> {
        let of = |xml: &Option<DomainXml>| -> Result<Option<Vec<PathBuf>>> {
            let found = xml.as_ref().and_then(|xml| xml.disk(&disk.target));
            found.map(|d| chain(hypervisor, d)).transpose()
        };
        let live = self.live.as_ref().and_then(|xml| xml.disk(&disk.target));
        let alias = live.map_or(disk.alias.as_deref(), |d| d.alias.as_deref());
        let qemu = self.qemu.iter().find(|q| Some(q.alias.as_str()) == alias);
        Ok(DiskView {
            qemu: qemu.map(|q| q.file.iter().chain(&q.backing).cloned().collect()),
            live: of(&self.live)?,
            config: of(&self.config)?,
            saved: of(&self.saved)?,
            mirror: live.and_then(|d| d.mirror.clone()),
        })
    }
}

impl DiskView {
    /// The file that the guest's writes go to.
    pub(super) fn top(&self) -> Option<&Path> {
        first(self.qemu.as_ref())
    }

    /// Whether the next start would use `overlay` as the top image.
    pub(super) fn is_named(&self, overlay: &Path) -> bool {
        [&self.config, &self.saved].into_iter().any(|view| first(view.as_ref()) == Some(overlay))
    }

    /// Whether `overlay` has something on top of it in what the next start would use.
    pub(super) fn is_buried(&self, overlay: &Path) -> bool {
        [&self.config, &self.saved].into_iter().any(|view| is_below(view.as_ref(), overlay))
    }

    /// Whether the next start is described at all.
    pub(super) fn is_described(&self) -> bool {
        self.config.is_some() || self.saved.is_some()
    }
}

/// Whether an image stands in a chain, but not on top.
pub(super) fn is_below(chain: Option<&Vec<PathBuf>>, image: &Path) -> bool {
    chain.is_some_and(|c| c.iter().skip(1).any(|path| path == image))
}

pub(super) fn first(chain: Option<&Vec<PathBuf>>) -> Option<&Path> {
    chain?.first().map(PathBuf::as_path)
}

fn chain(hypervisor: &dyn Hypervisor, disk: &DomainDisk) -> Result<Vec<PathBuf>> {
    let images = std::iter::once(&disk.image).chain(&disk.backing);
    let paths = images.map(|image| path_of(hypervisor, &image.source));
    paths.filter_map(Result::transpose).collect()
}

/// `None` where the thing asked for is not there.
pub(super) fn present<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
