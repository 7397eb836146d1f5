//! The way back of disks whose guest does not run.
//!
//! QEMU's own locks keep a start off while the overlay is written into its base; a hold on the overlay keeps
//! a start on it off while what the next start uses is edited. Between the two the guest may start, on
//! either, which then are the same: so the hold is followed by a look, and only a domain that does not run
//! and an overlay that is as it was are edited.
//!
//! Imports: `error`, `catalog`, `hypervisor`.

use std::path::Path;

use super::super::domain_view::DomainView;
use super::{Unfreeze, UnfreezeStep};
use virtfold_base::error::Result;
use virtfold_catalog::{BaseImage, JournalEntry, SessionDisk, SessionState, UnfreezeState};
use virtfold_hypervisor::config_repair::{self, ConfigFix};
use virtfold_hypervisor::domain_xml::DomainXml;
use virtfold_hypervisor::domain_xml::edit::{Editor, NewImage};
use virtfold_hypervisor::host_files::OfflineCommit;

impl Unfreeze<'_> {
    /// Commits what has to be, then edits what the next start uses. One that was broken off is done again.
    pub(super) fn take_offline_steps(&mut self, steps: &[UnfreezeStep]) -> Result<()> {
        for (index, step) in steps.iter().enumerate() {
            if *step == UnfreezeStep::OfflineCommit {
                self.offline_commit(index)?;
                return Ok(());
            }
        }
        let leaving =
            self.job.disks.iter().zip(steps).filter(|(_, step)| **step == UnfreezeStep::RemoveFromConfig);
        let leaving: Vec<SessionDisk> = leaving.map(|(disk, _)| disk.clone()).collect();
        let overlays: Vec<_> = leaving.iter().filter_map(|disk| disk.overlay.clone()).collect();
        let holds: Result<Vec<_>> = overlays.iter().map(|overlay| self.host.files.hold(overlay)).collect();
        let holds = holds?;
        let view = DomainView::look(self.host.hypervisor, self.job.domain)?;
        // Our hold shows as somebody's use of the overlay, so the decision is not taken again, but its
        // grounds are.
        if self.are_running(&view, &leaving)? || !self.are_level(&overlays)? {
            return Ok(());
        }
        self.take_off(&view, &leaving)?;
        drop(holds);
        Ok(())
    }

    fn offline_commit(&mut self, index: usize) -> Result<()> {
        let disk = self.disk(index)?.clone();
        let Some(overlay) = disk.overlay.as_deref() else { return Ok(()) };
        let state = |state| JournalEntry::Disk { target: disk.target.clone(), state };
        self.record(&[JournalEntry::State(SessionState::Committing), state(UnfreezeState::AtRest)])?;
        let committed = self.host.files.offline_commit(&of_journal(overlay, &disk.base, self.job.created));
        committed.map_err(|e| {
            e.within(format!("{} is not back on its base (domain shut off)", self.name_of(&disk.target)))
        })?;
        let level = self.host.files.mark(overlay)?;
        self.record(&[state(UnfreezeState::Pivoting { level })])
    }

    /// Whether the guest runs on one of these disks; it may run without them.
    fn are_running(&self, view: &DomainView, disks: &[SessionDisk]) -> Result<bool> {
        for disk in disks {
            let seen = view.disk(self.host.hypervisor, disk)?;
            let images = [disk.overlay.as_ref(), Some(&disk.base.path)];
            if view.is_active() && seen.qemu.iter().flatten().any(|path| images.contains(&Some(path))) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether each overlay is as it was when its base had everything, or has nothing.
    fn are_level(&self, overlays: &[std::path::PathBuf]) -> Result<bool> {
        for overlay in overlays {
            let disk = self.job.disks.iter().find(|d| d.overlay.as_ref() == Some(overlay));
            let level = match disk.map(|d| d.state) {
                Some(UnfreezeState::Pivoting { level }) => level,
                _ => None,
            };
            let same = level.is_some() && level == self.host.files.mark(overlay)?;
            if !same && !self.host.files.is_empty(overlay)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The configuration and the managed save image, each in one call.
    fn take_off(&mut self, view: &DomainView, leaving: &[SessionDisk]) -> Result<()> {
        let hypervisor = self.host.hypervisor;
        if let Some((config, fixes)) = named_in(view.config.as_ref(), leaving) {
            hypervisor.define(&self.popped(config, &fixes)?)?;
        }
        if let Some((saved, fixes)) = named_in(view.saved.as_ref(), leaving) {
            hypervisor.define_managed_save_xml(self.job.domain, &self.popped(saved, &fixes)?)?;
        }
        Ok(())
    }

    /// The XML without the overlays. Where a person's own XML does not say what lies below, the journal does.
    fn popped(&self, xml: &DomainXml, fixes: &[ConfigFix]) -> Result<String> {
        let is_open = |fix: &&ConfigFix| {
            let (ConfigFix::Pop { target, .. } | ConfigFix::Push { target, .. }) = fix;
            xml.disk(target).is_some_and(|disk| disk.backing.is_empty())
        };
        let mut editor = Editor::new(xml)?;
        for ConfigFix::Pop { target, .. } | ConfigFix::Push { target, .. } in fixes.iter().filter(is_open) {
            let Some(disk) = self.job.disks.iter().find(|disk| disk.target == *target) else { continue };
            let is_device = matches!(disk.base.identity, Some((_, 0)));
            let path = disk.base.path.as_path();
            let image = if is_device { NewImage::Block(path) } else { NewImage::File(path) };
            editor.set_disk(target, image, &disk.base.format)?;
        }
        let named = editor.finish()?;
        let rest: Vec<ConfigFix> = fixes.iter().filter(|fix| !is_open(fix)).cloned().collect();
        config_repair::apply(&named, &rest)
    }
}

/// What is to be committed, as the journal has it.
fn of_journal<'a>(overlay: &'a Path, base: &'a BaseImage, noted: i64) -> OfflineCommit<'a> {
    OfflineCommit {
        overlay,
        base: &base.path,
        format: &base.format,
        identity: base.identity,
        backing: base.backing.as_ref().map(|(path, format)| (path.as_path(), format.as_str())),
        noted,
    }
}

/// What is to be taken off an XML.
fn named_in<'x>(
    xml: Option<&'x DomainXml>,
    leaving: &[SessionDisk],
) -> Option<(&'x DomainXml, Vec<ConfigFix>)> {
    let xml = xml?;
    let named = leaving.iter().filter_map(|disk| {
        let overlay = disk.overlay.clone()?;
        let top = xml.disk(&disk.target)?.image.source.path()?;
        (top == overlay).then(|| ConfigFix::Pop { target: disk.target.clone(), overlay })
    });
    let fixes: Vec<ConfigFix> = named.collect();
    (!fixes.is_empty()).then_some((xml, fixes))
}
