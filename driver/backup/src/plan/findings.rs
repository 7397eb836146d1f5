//! What speaks against a backup, and what a person should know, as sentences.

use serde::Serialize;

use super::{DomainSnapshotInfo, PlannedDisk};
use virtfold_base::error::ErrorKind;
use virtfold_hypervisor::disk_rules::{BackupMode, BackupObstacle, DiskChoice, DomainFacts, RefuseReason};
use virtfold_hypervisor::domain_xml::{DiskDifference, DomainXml, changed_disks};
use virtfold_hypervisor::{is_our_checkpoint, is_our_overlay};

/// Something that speaks against a backup now.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// A word for programs.
    pub what: &'static str,
    /// What is wrong with which disk or file.
    pub sentence: String,
    /// What a person can do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What kind of failure it is.
    #[serde(skip)]
    pub kind: ErrorKind,
}

impl Finding {
    pub(super) fn new(what: &'static str, kind: ErrorKind, sentence: String) -> Self {
        Self { what, sentence, hint: None, kind }
    }

    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// What the rules find.
pub(super) fn of_facts(facts: &DomainFacts<'_>, choice: impl Fn(&str) -> DiskChoice) -> Vec<Finding> {
    facts.obstacles(choice).into_iter().map(of_obstacle).collect()
}

fn of_obstacle(obstacle: BackupObstacle) -> Finding {
    let (what, kind, hint) = match &obstacle {
        BackupObstacle::Disk { why: RefuseReason::Sliced, .. } => (
            "disk",
            ErrorKind::Unsupported,
            Some(
                "use --exclude; or, while the guest is shut off, copy the part into an image of its own ('qemu-img convert \
                 --image-opts driver=raw,offset=OFFSET,size=SIZE,file.filename=FILE -O qcow2 NEW') and attach that one instead",
            ),
        ),
        BackupObstacle::Disk { .. } => {
            ("disk", ErrorKind::Unsupported, Some("use --exclude, and back it up by other means"))
        }
        BackupObstacle::State(_) => ("state", ErrorKind::InUse, Some("retry later")),
        BackupObstacle::NoDisk => ("no-disk", ErrorKind::Unsupported, None),
        BackupObstacle::BlockJob { .. } => {
            ("block-job", ErrorKind::InUse, Some("'virsh blockjob' shows it; retry when it has ended"))
        }
        BackupObstacle::BackupRunning => {
            ("backup", ErrorKind::InUse, Some("'virsh domjobinfo' shows it; retry when it has ended"))
        }
        BackupObstacle::LeftoverOverlay { .. } => {
            ("leftover", ErrorKind::InUse, Some("run 'virtfold recover'"))
        }
        BackupObstacle::Untracked { .. } => (
            "untracked",
            ErrorKind::InUse,
            Some(
                "libvirt can't change the disk until the guest is shut down and started again; run 'virtfold recover' first, so that it then starts from the right image",
            ),
        ),
        BackupObstacle::SharedFile { .. } => {
            ("shared-file", ErrorKind::Unsupported, Some("exclude one of them with --exclude"))
        }
    };
    let finding = Finding::new(what, kind, obstacle.to_string());
    match hint {
        Some(hint) => finding.with_hint(hint),
        None => finding,
    }
}

/// A saved guest goes on from the XML inside of its save image: an overlay of ours in there is a leftover.
pub(super) fn of_saved(saved: Option<&DomainXml>) -> Vec<Finding> {
    let disks = saved.map_or(&[][..], |xml| &xml.disks);
    let ours = disks.iter().filter_map(|disk| {
        let mut images = std::iter::once(&disk.image).chain(&disk.backing);
        let overlay = images.find_map(|i| i.source.path().filter(|path| is_our_overlay(path)))?.to_owned();
        Some(of_obstacle(BackupObstacle::LeftoverOverlay { target: disk.target.clone(), overlay }))
    });
    ours.collect()
}

/// What a person should know, though nothing speaks against the backup.
pub(super) fn notes(known: &DomainSnapshotInfo, way: BackupMode, disks: &[PlannedDisk]) -> Vec<String> {
    let mut notes = Vec::new();
    let theirs = known.activity.checkpoints.iter().filter(|name| !is_our_checkpoint(name));
    let (checkpoints, snapshots) = (theirs.count(), known.activity.snapshots.len());
    if checkpoints > 0 {
        notes.push(format!("it has {checkpoints} checkpoints of another tool: libvirt carries their bitmaps through the backup"));
    }
    if snapshots > 0 {
        notes.push(format!(
            "it has {snapshots} snapshots of its own: they are kept, and are not in the backup"
        ));
    }
    if known.saved.is_some() {
        notes.push("its saved memory (managed save) is not in the backup; a restored guest boots".to_owned());
    }
    if known.inactive.is_none() && way != BackupMode::Offline {
        notes.push("it is transient: it disappears when it ends, and the backup has its live XML".to_owned());
    }
    let (Some(live), Some(inactive)) = (&known.live, &known.inactive) else { return notes };
    let copied: Vec<&str> = disks.iter().filter(|disk| disk.copy).map(|disk| disk.target.as_str()).collect();
    notes.extend(changed_disks(live, inactive).into_iter().map(|changed| of_changed(changed, &copied)));
    notes
}

fn of_changed(changed: DiskDifference<'_>, copied: &[&str]) -> String {
    let target = &changed.disk().target;
    let has = if copied.contains(&target.as_str()) { "is in the backup" } else { "is not in the backup" };
    match changed {
        DiskDifference::Live(_) => format!(
            "disk '{target}' was attached to the running guest only: it {has}, and a restore defines the guest with it"
        ),
        DiskDifference::Next(_) => format!(
            "disk '{target}' is in the configuration only, for the next start: it is not in the backup, and a restore defines the guest \
             without it"
        ),
        DiskDifference::Other(_) => format!(
            "disk '{target}' will be another image after its next start: the one that runs {has}, and a restore defines the guest with that"
        ),
    }
}
