//! The end of overlays, and of the job. An overlay goes only when no QEMU has it open and no chain of any
//! domain has it.
//!
//! With thousands of domains it is the reading of their XML that costs, so two kinds are not read. The live
//! XML of a guest whose QEMU was seen: what that has open shows in the overlay's own use, which is asked
//! last. And a configuration that nobody has changed since before the overlay was made: it can't name it. (An
//! image that was rebased onto the overlay of a running guest below such a configuration is not looked for;
//! with every write of that guest it holds something else.)
//!
//! Imports: `error`, `openers`, `catalog`, `hypervisor`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::super::FreezeContext;
use super::super::domain_view::present;
use super::step::{UnfreezeStep, UnusedOverlay};
use super::{Unfreeze, UnfreezeOutcome, note};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::openers::OpenFiles;
use virtfold_catalog::{JournalEntry, SessionOutcome, UnfreezeState};
use virtfold_hypervisor::domain_xml::edit::escape;
use virtfold_hypervisor::domain_xml::{ChainKnowledge, DomainXml};
use virtfold_hypervisor::host_files::ImageUse;
use virtfold_hypervisor::{ConfigStamps, DomainId, DomainInfo, Persistence, XmlView};

/// Looks at an overlay that QEMU has just left, before it is left for later.
pub(super) const LOOKS: u32 = 20;

impl Unfreeze<'_> {
    /// Removes or puts aside what is left over, and closes the job when nothing is.
    pub(super) fn leave(
        &mut self,
        steps: &[UnfreezeStep],
        outcome: SessionOutcome,
    ) -> Result<UnfreezeOutcome> {
        let overlays: Vec<PathBuf> = self.job.disks.iter().filter_map(|d| d.overlay.clone()).collect();
        let leaves = steps.iter().any(|step| matches!(step, UnfreezeStep::DropOverlay(_)));
        let users = if leaves { users(self.host, &overlays, &self.unchecked()?)? } else { Vec::new() };
        let mut arrival = UnfreezeOutcome::OnBase;
        for (index, step) in steps.iter().enumerate() {
            let gone = match step {
                UnfreezeStep::Nothing => true,
                UnfreezeStep::DropOverlay(left) => {
                    let gone = self.part(index, *left, &users)?;
                    if gone {
                        self.note_all(index, step);
                    }
                    gone
                }
                UnfreezeStep::Stuck => {
                    self.move_disk(index, UnfreezeState::Pivoted)?;
                    false
                }
                UnfreezeStep::Commit
                | UnfreezeStep::OfflineCommit
                | UnfreezeStep::RemoveFromConfig
                | UnfreezeStep::Wait(_)
                | UnfreezeStep::AskAdministrator(_) => false,
            };
            if gone {
                self.move_disk(index, UnfreezeState::Done)?;
            } else {
                arrival = UnfreezeOutcome::OverlayPending;
            }
        }
        if self.job.held.is_some() {
            arrival = UnfreezeOutcome::OverlayPending;
        }
        if arrival == UnfreezeOutcome::OnBase {
            self.record(&[JournalEntry::Close(outcome)])?;
        }
        Ok(arrival)
    }

    /// The domains that can't have an overlay of this job in a chain.
    fn unchecked(&self) -> Result<UncheckedDomains> {
        let mut unchecked = UncheckedDomains { own: Some(self.job.domain), ..UncheckedDomains::default() };
        if self.configs != ConfigStamps::default() {
            unchecked.open = self.host.files.open_files()?;
            unchecked.configs =
                self.host.hypervisor.config_stamps()?.unchanged(&self.configs, &self.job.name);
        }
        Ok(unchecked)
    }

    /// Whether an overlay is gone.
    fn part(&mut self, index: usize, left: UnusedOverlay, users: &[(PathBuf, String)]) -> Result<bool> {
        let Some(overlay) = self.disk(index)?.overlay.clone() else { return Ok(true) };
        if let Some((_, user)) = users.iter().find(|(path, _)| *path == overlay) {
            self.remains(index, format!("{user} still has the overlay '{}' in a chain", overlay.display()));
            return Ok(false);
        }
        if !self.is_free(&overlay)? {
            self.remains(
                index,
                format!("another process still has the overlay '{}' open", overlay.display()),
            );
            return Ok(false);
        }
        match left {
            UnusedOverlay::Remove => present(self.host.files.remove(&overlay)).map(|_| true),
            UnusedOverlay::Quarantine => {
                let Some(aside) = present(self.host.files.quarantine(&overlay))? else { return Ok(true) };
                let base = self.disk(index)?.base.path.clone();
                self.remains(
                    index,
                    format!(
                        "'{}' may hold data of the guest that '{}' lacks; compare them, or remove it",
                        aside.display(),
                        base.display()
                    ),
                );
                Ok(true)
            }
        }
    }

    fn remains(&mut self, index: usize, text: String) {
        if let Some(notes) = self.disks.get_mut(index) {
            note(&mut notes.remains, text);
        }
    }

    /// Whether no QEMU has it open any more. It closes what it has left a moment after it was told to, and
    /// what it was never told to use when we say so.
    fn is_free(&self, overlay: &Path) -> Result<bool> {
        if self.closes(overlay)? {
            return Ok(true);
        }
        if let Err(error) = self.host.hypervisor.close_unused(self.job.domain, overlay) {
            tracing::debug!(domain = %self.job.domain, ?error, "who has '{}' open is not this guest", overlay.display());
        }
        self.closes(overlay)
    }

    fn closes(&self, overlay: &Path) -> Result<bool> {
        for _ in 0..LOOKS {
            match self.host.files.image_use(overlay)? {
                ImageUse::Free | ImageUse::Absent => return Ok(true),
                ImageUse::Read | ImageUse::Written => std::thread::sleep(self.host.pace.poll),
            }
        }
        Ok(false)
    }
}

/// The domains whose descriptions need not be read, as the module's head says; none by default.
#[derive(Debug, Default)]
pub(in super::super) struct UncheckedDomains {
    /// The job's own domain, which is always read.
    own: Option<DomainId>,
    /// What the QEMUs have open that were seen.
    open: OpenFiles,
    /// Domains whose configuration is the one from before the snapshot.
    configs: BTreeSet<String>,
}

impl UncheckedDomains {
    fn has_live(&self, info: &DomainInfo) -> bool {
        Some(info.id) != self.own && self.open.has_seen(info.id.0)
    }

    fn has_config(&self, info: &DomainInfo) -> bool {
        Some(info.id) != self.own && self.configs.contains(&info.name)
    }
}

/// Who has which of these overlays in a chain: every domain but those, live and at its next start.
pub(in super::super) fn users(
    host: &FreezeContext<'_>,
    overlays: &[PathBuf],
    unchecked: &UncheckedDomains,
) -> Result<Vec<(PathBuf, String)>> {
    let mut users = Vec::new();
    for info in host.hypervisor.domains()? {
        let mut texts = Vec::new();
        if !unchecked.has_live(&info) {
            texts.extend(live(host, &info)?);
        }
        if !unchecked.has_config(&info) {
            texts.extend(next_start(host, &info)?);
        }
        for overlay in overlays {
            let name = overlay.to_str().map(escape);
            let named = name.is_some_and(|name| texts.iter().any(|text| text.contains(&*name)));
            if named || rests_on(host, &texts, overlay)? {
                users.push((overlay.clone(), format!("domain '{}'", info.name)));
            }
        }
    }
    Ok(users)
}

/// All that is described of a domain: what runs, and what its next start uses.
pub(super) fn descriptions(host: &FreezeContext<'_>, info: &DomainInfo) -> Result<Vec<String>> {
    let mut texts = next_start(host, info)?;
    texts.extend(live(host, info)?);
    Ok(texts)
}

fn live(host: &FreezeContext<'_>, info: &DomainInfo) -> Result<Option<String>> {
    if !info.run.is_active() {
        return Ok(None);
    }
    present(host.hypervisor.xml(info.id, XmlView::Live))
}

fn next_start(host: &FreezeContext<'_>, info: &DomainInfo) -> Result<Vec<String>> {
    if info.persistence != Persistence::Persistent {
        return Ok(Vec::new());
    }
    let mut texts: Vec<String> = Vec::new();
    texts.extend(present(host.hypervisor.xml(info.id, XmlView::Inactive))?);
    if !info.run.is_active() {
        texts.extend(present(host.hypervisor.managed_save_xml(info.id))?.flatten());
    }
    Ok(texts)
}

/// Whether an image that the XML does not follow to its end rests on the overlay. XML that can't be read
/// names no image to follow.
fn rests_on(host: &FreezeContext<'_>, texts: &[String], overlay: &Path) -> Result<bool> {
    let parsed = texts.iter().filter_map(|text| DomainXml::parse(text.as_str()).ok());
    let open = parsed.flat_map(|xml| xml.disks).filter(|disk| disk.chain == ChainKnowledge::Partial);
    let last = open.filter_map(|disk| {
        let image = disk.backing.last().unwrap_or(&disk.image);
        let path = image.source.path()?.to_owned();
        (image.format.as_deref() == Some("qcow2")).then_some(path)
    });
    for image in last {
        if host.files.image_use(&image)? == ImageUse::Absent {
            continue;
        }
        let below = host.files.below(&image).map_err(|e| unknown(overlay, e))?;
        if below.iter().any(|path| path == overlay) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn unknown(overlay: &Path, error: Error) -> Error {
    let message = format!(
        "it can't be determined whether an image uses the overlay '{}' as backing file",
        overlay.display()
    );
    Error::new(ErrorKind::Io, message).with_source(error)
}
