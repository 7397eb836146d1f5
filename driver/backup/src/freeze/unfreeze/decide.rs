//! What is to be done with a disk, from what is seen and what the journal says. Looks only; a dry run ends
//! here.
//!
//! While a QEMU runs it is the truth: its top image is the overlay (commit, pivot), or it is not (the overlay
//! is left over).
//!
//! At rest the overlay is the truth as long as nobody has run on the base since. These show it, and nothing
//! else does:
//!
//! | the journal says | shown by |
//! |---|---|
//! | the base had all at a moment, and the overlay is as it was then | nothing to do: the base is the truth |
//! | no pivot was asked for | what the next start uses has the overlay on top |
//! | snapshotted, base read | the base is as it was when it was frozen; where the next start uses the overlay it must be, too |
//! | planned, committing | the base was not written to after the overlay |
//! | a pivot was asked for | the next start uses the overlay (its configuration is set right before a guest goes on), and the base was not written to after it |
//!
//! Where nothing shows it, both are left as they are. A base that is another file than when the job began,
//! older than when it was frozen, or of a time that can't be (a clock that was set back) shows nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::FreezeContext;
use super::super::domain_view::{DiskView, DomainView, is_below};
use super::detached_disk::{other_user, settled};
use super::step::{UnfreezeStep, UnusedOverlay};
use virtfold_base::error::Result;
use virtfold_catalog::{FreezeSession, SessionDisk, SessionState, UnfreezeState};
use virtfold_hypervisor::host_files::ImageUse;

/// Files written to within this time of each other were written to at the same time: a mirror is that far
/// behind.
const SAME_TIME: Duration = Duration::from_secs(1);

/// Decides for one disk.
pub(crate) fn decide(
    host: &FreezeContext<'_>,
    job: &FreezeSession,
    view: &DomainView,
    disk: &SessionDisk,
) -> Result<UnfreezeStep> {
    let Some(overlay) = disk.overlay.as_deref() else { return Ok(UnfreezeStep::Nothing) };
    let seen = view.disk(host.hypervisor, disk)?;
    let case = DiskCase { host, job, disk, overlay, seen, view };
    let step = if view.is_active() { case.running()? } else { case.offline()? };
    case.spare_snapshots(step)
}

struct DiskCase<'a> {
    host: &'a FreezeContext<'a>,
    job: &'a FreezeSession,
    disk: &'a SessionDisk,
    overlay: &'a Path,
    seen: DiskView,
    view: &'a DomainView,
}

impl DiskCase<'_> {
    fn running(&self) -> Result<UnfreezeStep> {
        let Some(chain) = &self.seen.qemu else { return self.unseen() };
        let (overlay, base) = (self.overlay, self.disk.base.path.as_path());
        if self.seen.top() == Some(overlay) {
            // Also where somebody put an image between in the moment of the snapshot: the commit goes into
            // the one right below.
            let below = chain.iter().skip(1).take(2);
            if !below.into_iter().any(|path| path == base) {
                let (overlay, base) = (overlay.display(), base.display());
                return Ok(UnfreezeStep::AskAdministrator(format!(
                    "the backing file of '{overlay}' is not '{base}' any more. Merge it into the image below (virsh blockcommit --active --shallow \
                     --pivot), then run `virtfold recover`"
                )));
            }
            if self.is_replaced()? {
                return Ok(UnfreezeStep::AskAdministrator(format!(
                    "'{}' was replaced by another file, and the guest may still have the old one open, which has no name any more. Before the guest ends copy its disk to a new file (virsh blockcopy)",
                    base.display()
                )));
            }
            return Ok(UnfreezeStep::Commit);
        }
        if is_below(Some(chain), overlay) {
            let top = self.seen.top().unwrap_or(overlay).display();
            return Ok(UnfreezeStep::AskAdministrator(format!(
                "the snapshot '{top}' of somebody else lies on top of the overlay '{}'. The guest runs on all of them; merge the snapshot \
                 into the overlay (virsh blockcommit --active --shallow --pivot), then run `virtfold recover`",
                overlay.display()
            )));
        }
        if !chain.iter().any(|path| path == base) {
            return self.unseen();
        }
        let believed = |view: &Option<Vec<_>>| view.as_ref().is_some_and(|c| c.iter().any(|p| p == overlay));
        if believed(&self.seen.live) {
            return Ok(UnfreezeStep::Stuck);
        }
        if self.host.files.image_use(overlay)? == ImageUse::Absent {
            return Ok(UnfreezeStep::Nothing);
        }
        // That the run has the same number is no proof: libvirt counts anew when it is restarted.
        let proven = match self.disk.state {
            UnfreezeState::Pivoted | UnfreezeState::Done => true,
            _ => self.is_level()? || self.host.files.is_empty(overlay)?,
        };
        Ok(UnfreezeStep::DropOverlay(if proven { UnusedOverlay::Remove } else { UnusedOverlay::Quarantine }))
    }

    /// A running guest that has neither image: the disk was taken off it, or was given another image. What
    /// was written last is in the overlay; nobody but QEMU knows that, and the base alone is an old state of
    /// the disk. So the overlay goes into it, as of a domain that is shut off.
    fn unseen(&self) -> Result<UnfreezeStep> {
        for path in [self.overlay, &self.disk.base.path] {
            settled(self.host, path)?;
        }
        self.offline()
    }

    /// What is to be done where an image is missing or somebody has it open; `None` where both are there and
    /// free.
    fn missing_or_open(&self) -> Result<Option<UnfreezeStep>> {
        let (overlay, base) = (self.overlay, self.disk.base.path.as_path());
        let named = self.seen.is_named(overlay);
        let uses = [self.host.files.image_use(overlay)?, self.host.files.image_use(base)?];
        let files = format!("'{}' and '{}'", overlay.display(), base.display());
        let step = match uses {
            [ImageUse::Absent, _] if named => UnfreezeStep::AskAdministrator(format!(
                "the next start would use the overlay '{}', which is missing. Restore it, or define the domain with '{}' \
                     (what was written since the backup is lost then)",
                overlay.display(),
                base.display()
            )),
            [ImageUse::Absent, _] => UnfreezeStep::Nothing,
            [_, ImageUse::Absent] => UnfreezeStep::AskAdministrator(format!(
                "the base '{}' of the overlay '{}' is missing. Restore it; if the guest was deleted on purpose, remove the overlay",
                base.display(),
                overlay.display()
            )),
            [ImageUse::Free, ImageUse::Free] => return Ok(None),
            _ => self.of_open(&files)?,
        };
        Ok(Some(step))
    }

    fn offline(&self) -> Result<UnfreezeStep> {
        if let Some(step) = self.missing_or_open()? {
            return Ok(step);
        }
        let (overlay, base) = (self.overlay, self.disk.base.path.as_path());
        let named = self.seen.is_named(overlay);
        if self.seen.is_buried(overlay) {
            return Ok(UnfreezeStep::AskAdministrator(format!(
                "a snapshot of somebody else lies on top of the overlay '{}'. The guest can start and run on all of them; merge the snapshot into \
                 the overlay, then run `virtfold recover`",
                overlay.display()
            )));
        }
        let gone = if named {
            UnfreezeStep::RemoveFromConfig
        } else {
            UnfreezeStep::DropOverlay(UnusedOverlay::Remove)
        };
        if self.host.files.is_empty(overlay)? {
            return Ok(gone);
        }
        if self.host.files.below(overlay)?.first().map(PathBuf::as_path) != Some(base) {
            return Ok(UnfreezeStep::AskAdministrator(format!(
                "the backing file of the overlay '{}' is not '{}' but another image; commit it into that one with 'qemu-img commit'",
                overlay.display(),
                base.display()
            )));
        }
        if self.is_replaced()? {
            return Ok(match named || !self.seen.is_described() {
                true => self.ask_of_replaced(),
                false => UnfreezeStep::DropOverlay(UnusedOverlay::Quarantine),
            });
        }
        if self.is_level()? {
            return Ok(gone);
        }
        let step = self.of_taken_off(self.newest_image()?)?;
        // The contents decide where nothing else does: if both are the same, either is right.
        if matches!(
            step,
            UnfreezeStep::AskAdministrator(_) | UnfreezeStep::DropOverlay(UnusedOverlay::Quarantine)
        ) && self.host.files.same(overlay, base, &self.disk.base.format)?
        {
            return Ok(gone);
        }
        Ok(step)
    }

    /// Internal snapshots are somebody's, and lie in the overlay's file alone: neither a commit nor a copy
    /// takes them along.
    fn spare_snapshots(&self, step: UnfreezeStep) -> Result<UnfreezeStep> {
        if matches!(
            step,
            UnfreezeStep::Nothing
                | UnfreezeStep::Stuck
                | UnfreezeStep::Wait(_)
                | UnfreezeStep::AskAdministrator(_)
        ) {
            return Ok(step);
        }
        Ok(match (step, self.host.files.has_snapshots(self.overlay)?) {
            (step, false) => step,
            (UnfreezeStep::DropOverlay(_), true) => UnfreezeStep::DropOverlay(UnusedOverlay::Quarantine),
            (_, true) => UnfreezeStep::AskAdministrator(format!(
                "an internal snapshot of somebody else is in the overlay '{}' and would be lost with it. The guest can start and run on \
                 the overlay; delete the snapshot (virsh snapshot-delete), then run `virtfold recover`",
                self.overlay.display()
            )),
        })
    }

    /// Whether the base is another file than when the job began. The inode tells: a device's number does not
    /// outlive the boot on NFS, Btrfs or LVM. Some network file systems number files anew; one that is as
    /// marked when it was frozen is the same.
    fn is_replaced(&self) -> Result<bool> {
        let now = self.host.files.identity(&self.disk.base.path)?;
        let (Some((_, then)), Some((_, now))) = (self.disk.base.identity, now) else { return Ok(false) };
        Ok(then != 0 && then != now && !self.is_base_as_frozen()?)
    }

    /// Whether the overlay is as it was when the base had everything. A time in whole seconds is that of a
    /// coarse file system, where a later write may have left no trace; only the contents tell then.
    fn is_level(&self) -> Result<bool> {
        let UnfreezeState::Pivoting { level: Some(level) } = self.disk.state else { return Ok(false) };
        Ok(level.modified.subsec_nanos() != 0 && self.host.files.mark(self.overlay)? == Some(level))
    }

    /// The table above, for an overlay that has something.
    fn newest_image(&self) -> Result<UnfreezeStep> {
        let named = self.seen.is_named(self.overlay);
        let described = self.seen.is_described();
        let later = self.base_is_later()?;
        Ok(match (self.disk.state, self.job.state) {
            (UnfreezeState::AtRest, _) => UnfreezeStep::OfflineCommit,
            (UnfreezeState::Pivoted | UnfreezeState::Done, _) if !named => {
                UnfreezeStep::DropOverlay(UnusedOverlay::Remove)
            }
            (UnfreezeState::Pivoting { .. } | UnfreezeState::Pivoted | UnfreezeState::Done, _) => match later
            {
                WrittenLater::No if named || !described => UnfreezeStep::OfflineCommit,
                WrittenLater::Much if described && !named => {
                    UnfreezeStep::DropOverlay(UnusedOverlay::Quarantine)
                }
                _ => self.ask(),
            },
            (_, SessionState::Planned) if named && later == WrittenLater::Much => self.ask(),
            (_, SessionState::Snapshotted | SessionState::ReadDone) if named && self.is_base_touched()? => {
                self.ask()
            }
            _ if named && self.is_base_older()? => self.ask(),
            _ if named => UnfreezeStep::OfflineCommit,
            (_, SessionState::Planned) => match later {
                WrittenLater::No => UnfreezeStep::OfflineCommit,
                WrittenLater::Much if described => UnfreezeStep::DropOverlay(UnusedOverlay::Quarantine),
                _ => self.ask(),
            },
            (_, SessionState::Snapshotted | SessionState::ReadDone) if self.is_base_as_frozen()? => {
                UnfreezeStep::OfflineCommit
            }
            (_, SessionState::Snapshotted | SessionState::ReadDone) => match later {
                WrittenLater::Much if described => UnfreezeStep::DropOverlay(UnusedOverlay::Quarantine),
                _ => self.ask(),
            },
            _ if later == WrittenLater::No => UnfreezeStep::OfflineCommit,
            _ => self.ask(),
        })
    }

    fn is_base_as_frozen(&self) -> Result<bool> {
        let now = self.host.files.mark(&self.disk.base.path)?;
        Ok(now.is_some() && now == self.disk.frozen)
    }

    /// Whether the base is not as it was when it was frozen, though nobody should have written to it. A block
    /// device does not say.
    fn is_base_touched(&self) -> Result<bool> {
        let now = self.host.files.mark(&self.disk.base.path)?;
        Ok(now.is_some() && self.disk.frozen.is_some() && now != self.disk.frozen)
    }

    /// Whether the base is older than when it was frozen: somebody has put an older copy there, or the clock
    /// was set back.
    fn is_base_older(&self) -> Result<bool> {
        let now = self.host.files.mark(&self.disk.base.path)?;
        Ok(now.zip(self.disk.frozen).is_some_and(|(now, frozen)| now.modified < frozen.modified))
    }

    /// Whether the base was written to after the overlay. A block device does not say.
    fn base_is_later(&self) -> Result<WrittenLater> {
        let base = self.host.files.mark(&self.disk.base.path)?;
        let overlay = self.host.files.mark(self.overlay)?;
        let (Some(base), Some(overlay)) = (base, overlay) else { return Ok(WrittenLater::Unknown) };
        // A job that was made up for a forgotten overlay began after it.
        let begun = (self.job.state == SessionState::Planned).then_some(self.job.created);
        let begun = begun.and_then(|at| u64::try_from(at).ok()).map(Duration::from_secs);
        let times = WriteTimes {
            base: base.modified,
            overlay: overlay.modified,
            frozen: self.disk.frozen.map(|mark| mark.modified),
            begun,
            now: self.host.files.now(),
        };
        Ok(times.later())
    }

    fn ask_of_replaced(&self) -> UnfreezeStep {
        let (overlay, base) = (self.overlay.display(), self.disk.base.path.display());
        UnfreezeStep::AskAdministrator(format!(
            "'{base}' is another file than when '{overlay}' was created on it; they do not belong together. Do not start the guest on them. If \
             the new '{base}' is what it is to have (a restore): move the overlay away, define the domain with '{base}', and run `virtfold \
             recover`. Else put the old file back"
        ))
    }

    /// Whether the guest's next start is not this disk's: then others may have been given its images
    /// meanwhile.
    fn is_taken_off(&self) -> bool {
        self.view.is_active() || !self.seen.is_named(self.overlay)
    }

    /// Files that somebody has open.
    fn of_open(&self, files: &str) -> Result<UnfreezeStep> {
        if self.is_taken_off()
            && let Some(user) = self.other_user()?
        {
            return Ok(self.ask_of_user(&user));
        }
        Ok(UnfreezeStep::Wait(format!("{files} are open in another process (on another host, perhaps)")))
    }

    /// Committed only where nobody else has it, and nobody wrote to a base whose own commit has not begun.
    fn of_taken_off(&self, step: UnfreezeStep) -> Result<UnfreezeStep> {
        if step != UnfreezeStep::OfflineCommit || !self.is_taken_off() {
            return Ok(step);
        }
        if let Some(user) = self.other_user()? {
            return Ok(self.ask_of_user(&user));
        }
        let touched = self.disk.state == UnfreezeState::Waiting && self.is_base_touched()?;
        Ok(if touched { self.ask() } else { step })
    }

    fn other_user(&self) -> Result<Option<String>> {
        other_user(self.host, self.job.domain, self.disk)
    }

    fn ask_of_user(&self, user: &str) -> UnfreezeStep {
        let (overlay, base) = (self.overlay.display(), self.disk.base.path.display());
        UnfreezeStep::AskAdministrator(format!(
            "the disk was detached from the guest while it was copied: its last writes are in '{overlay}', '{base}' alone is older, and {user} has \
             one of them. Take it off there; then run `virtfold recover`, which writes the overlay into '{base}' if nobody has written to \
             that meanwhile (by hand: qemu-img commit -d -f qcow2 -b '{base}' '{overlay}')"
        ))
    }

    fn ask(&self) -> UnfreezeStep {
        let (overlay, base) = (self.overlay.display(), self.disk.base.path.display());
        UnfreezeStep::AskAdministrator(format!(
            "both '{overlay}' and '{base}' may hold the guest's last writes, and it can't be determined which; do not start the guest before one is \
             chosen. To keep the base: move the overlay away and run `virtfold recover`. To keep the overlay: run `qemu-img commit -d -f qcow2 \
             -b {base} {overlay}`, see that the domain names the base, move the overlay away and run `virtfold recover`. Copies of both \
             first, if there is room"
        ))
    }
}

/// When files were last written to, since 1970, and what bounds it.
#[derive(Clone, Copy, Debug)]
struct WriteTimes {
    base: Duration,
    overlay: Duration,
    /// The base's when it was frozen.
    frozen: Option<Duration>,
    /// When the job began, before the overlay was made.
    begun: Option<Duration>,
    now: Duration,
}

impl WriteTimes {
    /// Times that can't be are those of a clock that was set back, or of copies: they tell nothing.
    fn later(self) -> WrittenLater {
        let latest = self.now.saturating_add(SAME_TIME);
        let impossible = Some(self.base) < self.frozen
            || Some(self.overlay) < self.frozen.max(self.begun)
            || self.base.max(self.overlay) > latest;
        match self.base > self.overlay.saturating_add(SAME_TIME) {
            _ if impossible => WrittenLater::Unknown,
            true => WrittenLater::Much,
            false => WrittenLater::No,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WrittenLater {
    No,
    Much,
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_cannot_be_tell_nothing() {
        let later = |[base, overlay, now]: [u64; 3], frozen: Option<u64>, begun: Option<u64>| {
            let [base, overlay, now] = [base, overlay, now].map(Duration::from_millis);
            let [frozen, begun] = [frozen, begun].map(|at| at.map(Duration::from_millis));
            WriteTimes { base, overlay, frozen, begun, now }.later()
        };
        assert_eq!(later([5000, 9000, 9900], Some(5000), Some(6000)), WrittenLater::No);
        assert_eq!(later([9900, 9000, 9900], None, None), WrittenLater::No, "a mirror is behind");
        assert_eq!(later([9900, 8000, 9900], None, None), WrittenLater::Much);
        // The guest ran on the base after the clock was set back.
        assert_eq!(later([4000, 9000, 9900], Some(5000), None), WrittenLater::Unknown);
        assert_eq!(later([8000, 9000, 7500], Some(5000), None), WrittenLater::Unknown);
        // It was set back before the overlay was written to.
        assert_eq!(later([9000, 5000, 9900], None, Some(6000)), WrittenLater::Unknown);
        assert_eq!(later([9000, 5000, 9900], Some(6000), None), WrittenLater::Unknown);
    }
}
