//! What is to be done with a disk, from what is seen and what the journal says. Looks only; a dry run ends here.
//!
//! While a QEMU runs it is the truth: its top image is the overlay (commit, pivot), or it is not (the overlay is left over).
//!
//! At rest the overlay is the truth as long as nobody has run on the base since. These show it, and nothing else does:
//!
//! | the journal says | shown by |
//! |---|---|
//! | the base had all at a moment, and the overlay is as it was then | nothing to do: the base is the truth |
//! | no pivot was asked for | what the next start uses has the overlay on top |
//! | snapshotted, base read | the base is as it was when it was frozen |
//! | planned, committing | the base was not written to after the overlay |
//! | a pivot was asked for | the next start uses the overlay (its configuration is set right before a guest goes on), and the base was not written to after it |
//!
//! Where nothing shows it, both are left as they are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::Host;
use super::super::sight::{DiskSight, Sight, is_below};
use crate::catalog::{DiskJob, DiskState, Job, JobState};
use crate::error::Result;
use crate::guest::domain_xml::DomainXml;
use crate::guest::host::ImageUse;

/// Files written to within this time of each other were written to at the same time: a mirror is that far behind.
const SAME_TIME: Duration = Duration::from_secs(1);

/// The next step of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing: its overlay is gone.
    Nothing,
    /// Commit while the guest runs, and pivot.
    Commit,
    /// The guest is on its base; this is to be done with the overlay.
    Leave(Left),
    /// The guest is on its base, and libvirt believes otherwise until the guest's next start.
    Stuck,
    /// Nothing runs: write the overlay into the base.
    CommitAtRest,
    /// Nothing runs, and base and overlay are the same: take the overlay off what the next start uses.
    TakeOff,
    /// Somebody has a file open; see again later.
    Wait(String),
    /// A person has to decide.
    Ask(String),
}

/// What is to be done with an overlay that nothing uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// The base has everything.
    Remove,
    /// It may hold what the base has not.
    Quarantine,
}

/// Decides for one disk.
pub(crate) fn decide(host: &Host<'_>, job: &Job, (sight, disk): (&Sight, &DiskJob)) -> Result<Step> {
    let Some(overlay) = disk.overlay.as_deref() else { return Ok(Step::Nothing) };
    let seen = sight.disk(host.hypervisor, disk)?;
    let case = Case { host, job, disk, overlay, seen };
    if sight.is_active() { case.running(sight) } else { case.at_rest() }
}

/// The number of a domain's run in a live XML.
fn run_of(xml: Option<&str>) -> Option<u64> {
    DomainXml::parse(xml?).ok()?.run
}

struct Case<'a> {
    host: &'a Host<'a>,
    job: &'a Job,
    disk: &'a DiskJob,
    overlay: &'a Path,
    seen: DiskSight,
}

impl Case<'_> {
    fn running(&self, sight: &Sight) -> Result<Step> {
        let Some(chain) = &self.seen.qemu else { return self.unseen() };
        let (overlay, base) = (self.overlay, self.disk.base.path.as_path());
        if self.seen.top() == Some(overlay) {
            // Also where somebody put an image between in the moment of the snapshot: the commit goes into the one right below.
            let below = chain.iter().skip(1).take(2);
            return Ok(match below.into_iter().any(|path| path == base) {
                true => Step::Commit,
                false => Step::Ask(format!(
                    "'{}' does not rest on '{}' any more",
                    overlay.display(),
                    base.display()
                )),
            });
        }
        if is_below(Some(chain), overlay) {
            let top = self.seen.top().unwrap_or(overlay).display();
            return Ok(Step::Ask(format!(
                "somebody's snapshot '{top}' lies on top of the overlay '{}'. The guest runs well on all of them; merge the snapshot \
                 into the overlay (virsh blockcommit --active --shallow --pivot), then run `virtfold recover`",
                overlay.display()
            )));
        }
        if !chain.iter().any(|path| path == base) {
            return self.unseen();
        }
        let believed = |view: &Option<Vec<_>>| view.as_ref().is_some_and(|c| c.iter().any(|p| p == overlay));
        if believed(&self.seen.live) {
            return Ok(Step::Stuck);
        }
        if self.host.files.image_use(overlay)? == ImageUse::Absent {
            return Ok(Step::Nothing);
        }
        let same_run = sight.live.as_ref().and_then(|xml| xml.run) == run_of(self.job.live.as_deref());
        let proven = match self.disk.state {
            DiskState::Pivoted | DiskState::Done => true,
            DiskState::Pivoting { .. } if same_run => true,
            _ => self.is_level()? || self.host.files.is_empty(overlay)?,
        };
        Ok(Step::Leave(if proven { Left::Remove } else { Left::Quarantine }))
    }

    /// A running guest that has neither image: the disk was taken off it or was given another image.
    fn unseen(&self) -> Result<Step> {
        if self.host.files.image_use(self.overlay)? == ImageUse::Absent {
            return Ok(Step::Nothing);
        }
        Ok(Step::Ask(format!(
            "the running guest has neither '{}' nor '{}' as this disk. Give it its disk back, or remove the overlay if nobody needs it",
            self.overlay.display(),
            self.disk.base.path.display()
        )))
    }

    fn at_rest(&self) -> Result<Step> {
        let (overlay, base) = (self.overlay, self.disk.base.path.as_path());
        let named = self.seen.is_named(overlay);
        let uses = [self.host.files.image_use(overlay)?, self.host.files.image_use(base)?];
        let files = format!("'{}' and '{}'", overlay.display(), base.display());
        match uses {
            [ImageUse::Absent, _] if named => {
                return Ok(Step::Ask(format!(
                    "the next start would use the overlay '{}', which is not there. Put it back, or define the domain with '{}' \
                     (what was written since the backup is lost then)",
                    overlay.display(),
                    base.display()
                )));
            }
            [ImageUse::Absent, _] => return Ok(Step::Nothing),
            [_, ImageUse::Absent] => {
                return Ok(Step::Ask(format!(
                    "the base '{}' of the overlay '{}' is not there. Put it back; if the guest was deleted on purpose, remove the overlay",
                    base.display(),
                    overlay.display()
                )));
            }
            [ImageUse::Free, ImageUse::Free] => {}
            _ => return Ok(Step::Wait(format!("somebody has {files} open (on another host, perhaps)"))),
        }
        if self.seen.is_buried(overlay) {
            return Ok(Step::Ask(format!(
                "somebody's snapshot lies on top of the overlay '{}'. The guest can start and run on all of them; merge the snapshot into \
                 the overlay, then run `virtfold recover`",
                overlay.display()
            )));
        }
        if self.host.files.below(overlay)?.first().map(PathBuf::as_path) != Some(base) {
            return Ok(Step::Ask(format!(
                "the overlay '{}' does not rest on '{}' but on another image; commit it into that one by hand",
                overlay.display(),
                base.display()
            )));
        }
        let gone = if named { Step::TakeOff } else { Step::Leave(Left::Remove) };
        if self.is_level()? || self.host.files.is_empty(overlay)? {
            return Ok(gone);
        }
        let step = self.truth()?;
        // The contents decide where nothing else does: if both are the same, either is right.
        if matches!(step, Step::Ask(_) | Step::Leave(Left::Quarantine))
            && self.host.files.same(overlay, (base, &self.disk.base.format))?
        {
            return Ok(gone);
        }
        Ok(step)
    }

    /// Whether the overlay is as it was when the base had everything.
    fn is_level(&self) -> Result<bool> {
        match self.disk.state {
            DiskState::Pivoting { level: Some(level) } => {
                Ok(self.host.files.mark(self.overlay)? == Some(level))
            }
            _ => Ok(false),
        }
    }

    /// The table above, for an overlay that has something.
    fn truth(&self) -> Result<Step> {
        let named = self.seen.is_named(self.overlay);
        let described = self.seen.is_described();
        let later = self.base_is_later()?;
        Ok(match (self.disk.state, self.job.state) {
            (DiskState::AtRest, _) => Step::CommitAtRest,
            (DiskState::Pivoted | DiskState::Done, _) if !named => Step::Leave(Left::Remove),
            (DiskState::Pivoting { .. } | DiskState::Pivoted | DiskState::Done, _) => match later {
                Later::No if named || !described => Step::CommitAtRest,
                Later::Much if described && !named => Step::Leave(Left::Quarantine),
                _ => self.ask(),
            },
            _ if named => Step::CommitAtRest,
            (_, JobState::Planned) => match later {
                Later::No => Step::CommitAtRest,
                Later::Much if described => Step::Leave(Left::Quarantine),
                _ => self.ask(),
            },
            (_, JobState::Snapshotted | JobState::ReadDone) if self.is_base_as_frozen()? => {
                Step::CommitAtRest
            }
            (_, JobState::Snapshotted | JobState::ReadDone) => match later {
                Later::Much if described => Step::Leave(Left::Quarantine),
                _ => self.ask(),
            },
            _ if later == Later::No => Step::CommitAtRest,
            _ => self.ask(),
        })
    }

    fn is_base_as_frozen(&self) -> Result<bool> {
        let now = self.host.files.mark(&self.disk.base.path)?;
        Ok(now.is_some() && now == self.disk.frozen)
    }

    /// Whether the base was written to after the overlay. A block device does not say.
    fn base_is_later(&self) -> Result<Later> {
        let base = self.host.files.mark(&self.disk.base.path)?;
        let overlay = self.host.files.mark(self.overlay)?;
        Ok(match (base, overlay) {
            (Some(base), Some(overlay)) if base.modified > overlay.modified + SAME_TIME => Later::Much,
            (Some(_), Some(_)) => Later::No,
            _ => Later::Unknown,
        })
    }

    fn ask(&self) -> Step {
        let (overlay, base) = (self.overlay.display(), self.disk.base.path.display());
        Step::Ask(format!(
            "both '{overlay}' and '{base}' may hold the guest's last writes, and nothing tells which; do not start the guest before one is \
             chosen. To keep the base: move the overlay away and run `virtfold recover`. To keep the overlay: run `qemu-img commit -d -f qcow2 \
             -b {base} {overlay}`, see that the domain names the base, move the overlay away and run `virtfold recover`. Copies of both \
             first, if there is room"
        ))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Later {
    No,
    Much,
    Unknown,
}
