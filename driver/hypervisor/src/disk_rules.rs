//! The rules: which disk is copied, skipped or refused and why; in which run state a backup is taken how; and
//! what speaks against a backup before anything is touched. Each rule is stated once, here, and `backup
//! --plan` prints it.
//!
//! A skipped disk is left out and named in the manifest. A refused one stops the backup, because leaving it
//! out unasked would make a backup that looks whole and is not; a person can exclude it.
//!
//! Imports: `domain_xml`, `types`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::domain_xml::{Device, DomainDisk, DomainXml, ImageSource};
use super::is_our_overlay;
use super::types::{Activity, DomainState, PausedReason, QemuDisk};

/// What is done with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskRule {
    /// It is copied.
    Include,
    /// It is left out.
    Skip(SkipReason),
    /// The backup is refused until the disk is excluded.
    Refuse(RefuseReason),
}

/// Why a disk is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// A person said so.
    Excluded,
    /// A CD or DVD: removable, and never written.
    Cdrom,
    /// A floppy: removable.
    Floppy,
    /// An empty drive.
    Empty,
    /// The guest cannot have written to it.
    ReadOnly,
    /// The running guest has not got it: the configuration names it for the next start.
    NotPlugged,
}

/// Why a disk stops the backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefuseReason {
    /// Another guest may write to it at the same time; libvirt takes no snapshot of such a disk.
    Shareable,
    /// It lies on the network: there is no local file to read.
    Network,
    /// It is of a kind that has no file or block device (vhost-user, NVMe, a directory).
    NoFile,
    /// SCSI commands go to the device past QEMU's block layer: nothing can be frozen.
    PassedThrough,
    /// What the guest writes is thrown away at its end; libvirt has an overlay of its own on it.
    Transient,
    /// QEMU decrypts it; an overlay would hold plain text.
    Encrypted,
    /// Its format is neither raw nor qcow2.
    Format,
    /// It is a part of its file: a copy of the file would be another disk.
    Sliced,
}

impl fmt::Display for DiskRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DiskRule::Include => "copied",
            DiskRule::Skip(SkipReason::Excluded) => "left out: excluded",
            DiskRule::Skip(SkipReason::Cdrom) => "left out: a CD drive",
            DiskRule::Skip(SkipReason::Floppy) => "left out: a floppy drive",
            DiskRule::Skip(SkipReason::Empty) => "left out: an empty drive",
            DiskRule::Skip(SkipReason::ReadOnly) => "left out: read-only",
            DiskRule::Skip(SkipReason::NotPlugged) => "left out: the running guest does not have it",
            DiskRule::Refuse(RefuseReason::Shareable) => "refused: shareable, another guest may write to it",
            DiskRule::Refuse(RefuseReason::Network) => {
                "refused: a network disk, there is no local file to read"
            }
            DiskRule::Refuse(RefuseReason::NoFile) => "refused: neither a file nor a block device",
            DiskRule::Refuse(RefuseReason::PassedThrough) => {
                "refused: a SCSI device passed through to the guest"
            }
            DiskRule::Refuse(RefuseReason::Transient) => "refused: transient, its changes are thrown away",
            DiskRule::Refuse(RefuseReason::Encrypted) => {
                "refused: encrypted by QEMU, an overlay would be plain text"
            }
            DiskRule::Refuse(RefuseReason::Format) => "refused: its format is neither raw nor qcow2",
            DiskRule::Refuse(RefuseReason::Sliced) => {
                "refused: a part of its file (<slices>); virtfold reads whole files"
            }
        })
    }
}

/// Whether a person excluded the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskChoice {
    /// Nothing was said against it.
    Wanted,
    /// Excluded.
    Excluded,
}

/// The rule for one disk: the first line that fits decides. The attribute `snapshot` of a `<disk>` decides
/// nothing; it is for libvirt's own snapshots.
pub fn disk_rule(disk: &DomainDisk, choice: DiskChoice) -> DiskRule {
    match (choice, disk.device, &disk.image.source) {
        (DiskChoice::Excluded, _, _) => return DiskRule::Skip(SkipReason::Excluded),
        (_, Device::Cdrom, _) => return DiskRule::Skip(SkipReason::Cdrom),
        (_, Device::Floppy, _) => return DiskRule::Skip(SkipReason::Floppy),
        (_, Device::Lun, _) => return DiskRule::Refuse(RefuseReason::PassedThrough),
        (_, Device::Disk, ImageSource::Empty) => return DiskRule::Skip(SkipReason::Empty),
        _ => {}
    }
    if disk.marks.shareable {
        return DiskRule::Refuse(RefuseReason::Shareable);
    }
    if disk.marks.readonly {
        return DiskRule::Skip(SkipReason::ReadOnly);
    }
    match disk.image.source {
        ImageSource::Network { .. } => return DiskRule::Refuse(RefuseReason::Network),
        ImageSource::Other(_) => return DiskRule::Refuse(RefuseReason::NoFile),
        _ => {}
    }
    if disk.marks.transient {
        return DiskRule::Refuse(RefuseReason::Transient);
    }
    if disk.marks.encrypted {
        return DiskRule::Refuse(RefuseReason::Encrypted);
    }
    if disk.marks.sliced {
        return DiskRule::Refuse(RefuseReason::Sliced);
    }
    // libvirt takes a disk without a format for raw, and so do we: nothing is ever probed.
    match disk.image.format.as_deref().unwrap_or("raw") {
        "raw" | "qcow2" => DiskRule::Include,
        _ => DiskRule::Refuse(RefuseReason::Format),
    }
}

/// How a domain is backed up in its run state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupMode {
    /// Snapshot, copy, commit; the driver suspends the guest for the pivot and resumes it.
    Online,
    /// The same, but the guest stands still already: the driver neither suspends nor resumes it, and freezes
    /// nothing. It may go on at any time, and nothing depends on its not doing so but the length of the
    /// pivot's pause.
    OnlinePaused,
    /// The disks are read as they are, and the domain must not start meanwhile.
    Offline,
    /// Not now.
    NotPossible(&'static str),
}

/// The rule for a run state.
pub fn run_rule(run: DomainState) -> BackupMode {
    match run {
        DomainState::Running => BackupMode::Online,
        DomainState::Paused(PausedReason::User | PausedReason::IoError | PausedReason::Other(_))
        | DomainState::PmSuspended => BackupMode::OnlinePaused,
        DomainState::Paused(PausedReason::Busy) => {
            BackupMode::NotPossible("it is being migrated, saved or dumped")
        }
        DomainState::Paused(PausedReason::Starting) => BackupMode::NotPossible("it is being started"),
        DomainState::Paused(PausedReason::Crashed) | DomainState::Crashed => {
            BackupMode::NotPossible("it has crashed")
        }
        DomainState::ShuttingDown => BackupMode::NotPossible("it is shutting down"),
        DomainState::ShutOff => BackupMode::Offline,
    }
}

/// Something that speaks against a backup now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupObstacle {
    /// A disk stops it.
    Disk {
        /// The disk.
        target: String,
        /// Why.
        why: RefuseReason,
    },
    /// The run state stops it.
    State(&'static str),
    /// No disk is left to copy.
    NoDisk,
    /// A disk has a block job.
    BlockJob {
        /// The disk.
        target: String,
        /// What the live XML calls it.
        job: String,
    },
    /// The hypervisor's own backup runs.
    BackupRunning,
    /// An overlay of virtfold's is in a chain: an earlier backup has not been cleaned up. `recover` does it.
    LeftoverOverlay {
        /// The disk.
        target: String,
        /// The overlay.
        overlay: PathBuf,
    },
    /// QEMU writes to another file than the live XML says: libvirt has lost track, and block jobs fail until
    /// the guest's next power cycle.
    Untracked {
        /// The disk.
        target: String,
        /// What the live XML says.
        believed: PathBuf,
        /// What QEMU says.
        actual: Option<PathBuf>,
    },
    /// Two disks share one file.
    SharedFile {
        /// The disks.
        targets: [String; 2],
        /// The file.
        file: PathBuf,
    },
}

impl fmt::Display for BackupObstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackupObstacle::Disk { target, why } => {
                write!(f, "disk '{target}' is {}", DiskRule::Refuse(*why))
            }
            BackupObstacle::State(why) => f.write_str(why),
            BackupObstacle::NoDisk => f.write_str("no disk to copy"),
            BackupObstacle::BlockJob { target, job } => write!(f, "disk '{target}' has a block job ({job})"),
            BackupObstacle::BackupRunning => f.write_str("another backup of it is running"),
            BackupObstacle::LeftoverOverlay { target, overlay } => {
                write!(
                    f,
                    "disk '{target}' still has the overlay '{}' of an earlier backup",
                    overlay.display()
                )
            }
            BackupObstacle::Untracked { target, believed, actual } => write!(
                f,
                "libvirt believes that disk '{target}' is '{}', but QEMU writes to '{}'",
                believed.display(),
                actual.as_deref().unwrap_or(Path::new("nothing")).display()
            ),
            BackupObstacle::SharedFile { targets: [one, other], file } => {
                write!(f, "disks '{one}' and '{other}' share '{}'", file.display())
            }
        }
    }
}

/// What is known of a domain before anything is touched.
#[derive(Clone, Copy, Debug)]
pub struct DomainFacts<'a> {
    /// Whether it runs.
    pub run: DomainState,
    /// What runs now; `None` when nothing does.
    pub live: Option<&'a DomainXml>,
    /// What the next start uses; `None` for a transient domain.
    pub inactive: Option<&'a DomainXml>,
    /// What QEMU says; empty when it does not run.
    pub qemu: &'a [QemuDisk],
    /// What else is going on.
    pub activity: &'a Activity,
}

impl<'a> DomainFacts<'a> {
    /// The description that counts now.
    pub fn current(&self) -> Option<&'a DomainXml> {
        self.live.or(self.inactive)
    }

    /// Everything that speaks against a backup; nothing when it may begin. `choice` tells what a person said
    /// of each disk.
    pub fn obstacles(&self, choice: impl Fn(&str) -> DiskChoice) -> Vec<BackupObstacle> {
        let mut found = Vec::new();
        if let BackupMode::NotPossible(why) = run_rule(self.run) {
            found.push(BackupObstacle::State(why));
        }
        if self.activity.backup.is_some() {
            found.push(BackupObstacle::BackupRunning);
        }
        let disks = self.current().map_or(&[][..], |xml| &xml.disks);
        let verdicts: Vec<_> = disks.iter().map(|d| (d, disk_rule(d, choice(&d.target)))).collect();
        for (disk, verdict) in &verdicts {
            if let DiskRule::Refuse(why) = verdict {
                found.push(BackupObstacle::Disk { target: disk.target.clone(), why: *why });
            }
        }
        let copied: Vec<&DomainDisk> =
            verdicts.iter().filter(|(_, v)| *v == DiskRule::Include).map(|(disk, _)| *disk).collect();
        if copied.is_empty() {
            found.push(BackupObstacle::NoDisk);
        }
        found.extend(shared_file(&copied));
        found.extend(copied.iter().filter_map(|d| self.in_the_way(d)));
        found
    }

    /// What is wrong with one disk that would be copied.
    fn in_the_way(&self, disk: &DomainDisk) -> Option<BackupObstacle> {
        let target = disk.target.clone();
        let views = [self.live, self.inactive].into_iter().flatten().filter_map(|xml| xml.disk(&target));
        let images = views.flat_map(|d| std::iter::once(&d.image).chain(&d.backing));
        let qemu = self.qemu_disk(disk);
        let in_xml = images.filter_map(|i| i.source.path());
        let in_qemu = qemu.into_iter().flat_map(|q| q.file.iter().chain(&q.backing)).map(PathBuf::as_path);
        if let Some(overlay) = in_xml.chain(in_qemu).find(|path| is_our_overlay(path)) {
            return Some(BackupObstacle::LeftoverOverlay { target, overlay: overlay.to_owned() });
        }
        if let Some(mirror) = &disk.mirror {
            return Some(BackupObstacle::BlockJob { target, job: mirror.job.clone() });
        }
        let (believed, qemu) = (disk.image.source.path()?, qemu?);
        (qemu.file.as_deref() != Some(believed)).then(|| BackupObstacle::Untracked {
            target,
            believed: believed.to_owned(),
            actual: qemu.file.clone(),
        })
    }

    /// QEMU's view of a disk of the live XML.
    pub fn qemu_disk(&self, disk: &DomainDisk) -> Option<&'a QemuDisk> {
        let alias = disk.alias.as_deref()?;
        self.qemu.iter().find(|q| q.alias == alias)
    }
}

fn shared_file(disks: &[&DomainDisk]) -> Option<BackupObstacle> {
    let mut seen = BTreeMap::new();
    for disk in disks {
        let Some(path) = disk.image.source.path() else { continue };
        if let Some(other) = seen.insert(path, &disk.target) {
            let targets = [other.clone(), disk.target.clone()];
            return Some(BackupObstacle::SharedFile { targets, file: path.to_owned() });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disks(inner: &str) -> DomainXml {
        DomainXml::parse(format!("<domain><name>x</name><devices>{inner}</devices></domain>")).unwrap()
    }

    fn disk(attributes: &str, inner: &str) -> String {
        format!("<disk {attributes}>{inner}<target dev='vda'/><alias name='d0'/></disk>")
    }

    const FILE: &str = "<driver type='qcow2'/><source file='/a'/>";

    #[test]
    fn each_disk_has_its_rule() {
        let file = |more: &str| format!("{FILE}{more}");
        let table = [
            ("type='file'", file(""), "copied"),
            ("type='file'", "<source file='/a'/>".to_owned(), "copied"),
            ("type='file' snapshot='no'", file(""), "copied"),
            ("type='block'", "<driver type='raw'/><source dev='/dev/a'/>".to_owned(), "copied"),
            ("type='volume'", "<driver type='raw'/><source pool='p' volume='v'/>".to_owned(), "copied"),
            ("type='file' device='cdrom'", file("<readonly/>"), "left out: a CD drive"),
            ("type='file' device='floppy'", file(""), "left out: a floppy drive"),
            ("type='file'", "<driver type='raw'/>".to_owned(), "left out: an empty drive"),
            ("type='file'", file("<readonly/>"), "left out: read-only"),
            (
                "type='file'",
                file("<readonly/><shareable/>"),
                "refused: shareable, another guest may write to it",
            ),
            ("type='file'", file("<transient/>"), "refused: transient, its changes are thrown away"),
            (
                "type='file'",
                "<driver type='qcow2'/><source file='/a'><encryption/></source>".to_owned(),
                "refused: encrypted by QEMU, an overlay would be plain text",
            ),
            (
                "type='network'",
                "<driver type='raw'/><source protocol='rbd' name='x'/>".to_owned(),
                "refused: a network disk, there is no local file to read",
            ),
            ("type='nvme'", "<source/>".to_owned(), "refused: neither a file nor a block device"),
            (
                "type='block' device='lun'",
                "<source dev='/dev/a'/>".to_owned(),
                "refused: a SCSI device passed through to the guest",
            ),
            (
                "type='file'",
                "<driver type='vmdk'/><source file='/a'/>".to_owned(),
                "refused: its format is neither raw nor qcow2",
            ),
            (
                "type='file'",
                "<driver type='raw'/><source file='/a'><slices><slice type='storage' offset='512' size='512'/></slices></source>"
                    .to_owned(),
                "refused: a part of its file (<slices>); virtfold reads whole files",
            ),
            (
                "type='file'",
                file(
                    "<backingStore type='file'><format type='qcow2'/><source file='/b'/><backingStore type='file'>\
                     <format type='raw'/><source file='/c'><slices/></source><backingStore/></backingStore></backingStore>",
                ),
                "refused: a part of its file (<slices>); virtfold reads whole files",
            ),
        ];
        for (attributes, inner, expected) in table {
            let xml = disks(&disk(attributes, &inner));
            let verdict = disk_rule(&xml.disks[0], DiskChoice::Wanted);
            assert_eq!(verdict.to_string(), expected, "{attributes} {inner}");
            let excluded = disk_rule(&xml.disks[0], DiskChoice::Excluded);
            assert_eq!(excluded, DiskRule::Skip(SkipReason::Excluded));
        }
    }

    #[test]
    fn each_run_state_has_its_way() {
        let table = [
            (DomainState::Running, "Online"),
            (DomainState::Paused(PausedReason::User), "OnlinePaused"),
            (DomainState::Paused(PausedReason::IoError), "OnlinePaused"),
            (
                DomainState::Paused(PausedReason::Busy),
                "NotPossible(\"it is being migrated, saved or dumped\")",
            ),
            (DomainState::Paused(PausedReason::Starting), "NotPossible(\"it is being started\")"),
            (DomainState::Paused(PausedReason::Crashed), "NotPossible(\"it has crashed\")"),
            (DomainState::PmSuspended, "OnlinePaused"),
            (DomainState::ShuttingDown, "NotPossible(\"it is shutting down\")"),
            (DomainState::ShutOff, "Offline"),
            (DomainState::Crashed, "NotPossible(\"it has crashed\")"),
        ];
        for (run, expected) in table {
            assert_eq!(format!("{:?}", run_rule(run)), expected);
        }
    }

    fn obstacles(live: &str, inactive: &str, file: &str, activity: &Activity) -> Vec<String> {
        let (live, inactive) = (disks(live), disks(inactive));
        let qemu = [QemuDisk { alias: "d0".into(), file: Some(file.into()), backing: vec![] }];
        let run = DomainState::Running;
        let facts = DomainFacts { run, live: Some(&live), inactive: Some(&inactive), qemu: &qemu, activity };
        facts.obstacles(|_| DiskChoice::Wanted).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nothing_speaks_against_a_healthy_domain() {
        let disk = disk("", FILE);
        assert_eq!(obstacles(&disk, &disk, "/a", &Activity::default()), Vec::<String>::new());
        // Checkpoints and the user's own snapshots are carried through by libvirt.
        let activity = Activity { checkpoints: vec!["c".into()], snapshots: vec!["s".into()], backup: None };
        assert_eq!(obstacles(&disk, &disk, "/a", &activity), Vec::<String>::new());
    }

    #[test]
    fn leftovers_and_foreign_work_are_seen() {
        let plain = disk("", FILE);
        let ours = disk("", "<source file='/a.virtfold-0000beef.overlay'/>");
        let none = Activity::default();
        let leftover = "disk 'vda' still has the overlay '/a.virtfold-0000beef.overlay' of an earlier backup";
        assert_eq!(obstacles(&ours, &plain, "/a", &none), [leftover]);
        assert_eq!(obstacles(&plain, &ours, "/a", &none), [leftover]);
        assert_eq!(obstacles(&plain, &plain, "/a.virtfold-0000beef.overlay", &none), [leftover]);
        let untracked = "libvirt believes that disk 'vda' is '/a', but QEMU writes to '/b'";
        assert_eq!(obstacles(&plain, &plain, "/b", &none), [untracked]);
        let mirror = disk("", &format!("{FILE}<mirror job='copy'/>"));
        assert_eq!(obstacles(&mirror, &plain, "/a", &none), ["disk 'vda' has a block job (copy)"]);
        let activity = Activity { backup: Some("<domainbackup/>".into()), ..Activity::default() };
        assert_eq!(obstacles(&plain, &plain, "/a", &activity), ["another backup of it is running"]);
        let twice = format!("{plain}{}", plain.replace("vda", "vdb"));
        assert_eq!(obstacles(&twice, &plain, "/a", &none), ["disks 'vda' and 'vdb' share '/a'"]);
        let cdrom = disk("device='cdrom'", FILE);
        assert_eq!(obstacles(&cdrom, &plain, "/a", &none), ["no disk to copy"]);
        let lun = disk("type='block' device='lun'", "<source dev='/d'/>");
        let refused = "disk 'vda' is refused: a SCSI device passed through to the guest";
        assert_eq!(obstacles(&lun, &plain, "/a", &none), [refused, "no disk to copy"]);
    }
}
