//! The words of what is found, done and remains; the same whether it is done or only said.

use std::path::Path;

use super::step::{UnfreezeStep, UnusedOverlay};
use super::{Unfreeze, note};
use virtfold_catalog::{FreezeSession, SessionState};
use virtfold_hypervisor::config_repair::ConfigFix;
use virtfold_hypervisor::watchdog::GuestHold;

pub(in super::super) const THAW: &str = "thaw the guest's file systems";
pub(in super::super) const RESUME: &str = "resume the guest";
pub(super) const STOPPED: &str =
    "an I/O error keeps stopping the guest on its own disks: free space on their file system, then resume it";
pub(super) const FULL: &str = "the guest was stopped by a full disk while it was on an overlay";
pub(in super::super) const FIRED: &str = "the pause budget expired; the watchdog resumed the guest";

pub(in super::super) const DETACHED: &str = "it was detached from the guest while it was copied";
pub(in super::super) const UNCONFIGURED: &str =
    "it was detached from the configuration while it was copied, and the guest has it until it is shut off";

pub(super) fn frozen(why: &str) -> String {
    format!(
        "the guest's file systems may still be frozen, its agent does not thaw them: {why}. Run `virsh domfsthaw`"
    )
}

/// What the journal has of a job that somebody left.
pub(in super::super) fn found(job: &FreezeSession) -> Vec<String> {
    let state = match job.state {
        SessionState::Planned => "a backup was interrupted while it took its snapshot",
        SessionState::Snapshotted => "a backup was interrupted while it read the frozen disks",
        SessionState::ReadDone => "a backup was interrupted after it had read the frozen disks",
        SessionState::Committing => "a backup was interrupted while it put the guest back on its disks",
        SessionState::Reading => {
            "a backup was interrupted while it read the disks of the domain, which was shut off"
        }
        SessionState::Closed => "a backup is over",
    };
    let mut found = vec![state.to_owned()];
    match job.held {
        Some(GuestHold::Frozen) => {
            found.push("it had frozen the guest's file systems, or was about to".to_owned())
        }
        Some(GuestHold::Paused) => found.push("it had paused the guest, or was about to".to_owned()),
        None => {}
    }
    found
}

impl Unfreeze<'_> {
    pub(in super::super) fn note_fix(&mut self, fix: &ConfigFix) {
        let (target, found, done) = match fix {
            ConfigFix::Push { target, overlay } => (
                target,
                format!(
                    "the configuration lacks the overlay '{}' that the guest writes to",
                    overlay.display()
                ),
                "add the overlay to the configuration",
            ),
            ConfigFix::Pop { target, overlay } => (
                target,
                format!(
                    "the configuration names the overlay '{}' that the guest does not use any more",
                    overlay.display()
                ),
                "remove the overlay from the configuration",
            ),
        };
        let disks = self.job.disks.iter().zip(&mut self.disks).filter(|(disk, _)| disk.target == *target);
        for (_, notes) in disks {
            note(&mut notes.found, found.clone());
            note(&mut notes.done, done.to_owned());
        }
    }

    /// What is found, and what stays as it is.
    pub(in super::super) fn note_found(&mut self, index: usize, step: &UnfreezeStep) {
        let first_look = !self.looked;
        let Some((found, _)) = self.words_of(index, step) else { return };
        let overlay = self.job.disks.get(index).and_then(|disk| disk.overlay.clone()).unwrap_or_default();
        let Some(notes) = self.disks.get_mut(index) else { return };
        if first_look {
            found.into_iter().for_each(|text| note(&mut notes.found, text));
        }
        notes.remains.clear();
        match step {
            UnfreezeStep::AskAdministrator(why) | UnfreezeStep::Wait(why) => notes.remains.push(why.clone()),
            UnfreezeStep::Stuck => notes.remains.push(format!(
                "libvirt has lost track of this disk: until the guest is shut down and started again it takes no block job, snapshot \
                 or backup, and the overlay '{}', which nobody needs, stays. Then run `virtfold recover`",
                overlay.display()
            )),
            _ => {}
        }
    }

    /// What was done, as the next look shows it: of a step's words those that it has left behind.
    pub(super) fn note_done(&mut self, index: usize, before: Option<&UnfreezeStep>, now: &UnfreezeStep) {
        let Some(before) = before else { return };
        let count = match (before, now) {
            (
                UnfreezeStep::Commit,
                UnfreezeStep::DropOverlay(_) | UnfreezeStep::Nothing | UnfreezeStep::Stuck,
            ) => 1,
            (UnfreezeStep::OfflineCommit, UnfreezeStep::RemoveFromConfig) => 1,
            (UnfreezeStep::OfflineCommit, UnfreezeStep::DropOverlay(_) | UnfreezeStep::Nothing) => 2,
            (UnfreezeStep::RemoveFromConfig, UnfreezeStep::DropOverlay(_) | UnfreezeStep::Nothing) => 1,
            _ => 0,
        };
        self.note_words(index, before, count);
    }

    /// All that a step does and leads to, once it is done or where it is only said.
    pub(in super::super) fn note_all(&mut self, index: usize, step: &UnfreezeStep) {
        self.note_words(index, step, usize::MAX);
    }

    fn note_words(&mut self, index: usize, step: &UnfreezeStep, count: usize) {
        let Some((_, done)) = self.words_of(index, step) else { return };
        let Some(notes) = self.disks.get_mut(index) else { return };
        done.into_iter().take(count).for_each(|text| note(&mut notes.done, text));
    }

    fn words_of(&self, index: usize, step: &UnfreezeStep) -> Option<(Vec<String>, Vec<String>)> {
        let disk = self.job.disks.get(index)?;
        Some(words(step, disk.overlay.as_deref()?, &disk.base.path))
    }
}

fn words(step: &UnfreezeStep, overlay: &Path, base: &Path) -> (Vec<String>, Vec<String>) {
    let (overlay, base) = (format!("'{}'", overlay.display()), format!("'{}'", base.display()));
    let list = |texts: &[String]| texts.to_vec();
    let remove = format!("remove the overlay {overlay}");
    let take_off = format!("set {base} in the configuration");
    match step {
        UnfreezeStep::Nothing => (Vec::new(), Vec::new()),
        UnfreezeStep::Commit => (
            list(&[format!("the guest writes to the overlay {overlay}")]),
            list(&[format!("commit {overlay} into {base} while the guest runs, and pivot"), remove]),
        ),
        UnfreezeStep::DropOverlay(UnusedOverlay::Remove) => {
            (list(&[format!("the overlay {overlay} is left over; {base} has all data")]), list(&[remove]))
        }
        UnfreezeStep::DropOverlay(UnusedOverlay::Quarantine) => (
            list(&[format!("nothing uses the overlay {overlay}, and it may hold data that {base} lacks")]),
            list(&[format!("rename the overlay {overlay} to a name that ends in .quarantined")]),
        ),
        UnfreezeStep::Stuck => (
            list(&[format!("the guest writes to {base}, but libvirt believes that it writes to {overlay}")]),
            Vec::new(),
        ),
        UnfreezeStep::OfflineCommit => (
            list(&[format!("no guest runs on {base} or its overlay {overlay}, which has the newest data")]),
            list(&[format!("commit {overlay} into {base}"), take_off, remove]),
        ),
        UnfreezeStep::RemoveFromConfig => (
            list(&[format!("no guest runs on them, and {base} has all data of {overlay}")]),
            list(&[take_off, remove]),
        ),
        UnfreezeStep::Wait(_) | UnfreezeStep::AskAdministrator(_) => {
            (list(&[format!("the overlay {overlay} exists")]), Vec::new())
        }
    }
}
