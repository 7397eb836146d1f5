//! `virtfold restore ARCHIVE --define`: a guest out of an archive.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use virtfold_archive::crypt::Identities;
use virtfold_backup::known_copy::KnownCopy;
use virtfold_backup::parents::ParentSearch;
use virtfold_backup::restore_domain::{
    self, AfterDefine, DefaultTarget, DefineContext, DiskAction, DiskPlan, DomainIdentity,
    RestoreDomainReport, RestoreDomainRequest, WriteOptions,
};
use virtfold_backup::tape::TapeOptions;
use virtfold_backup::trust::TrustPolicy;
use virtfold_backup::{Control, Progress};
use virtfold_base::error::Error;
use virtfold_base::units::Human;
use virtfold_catalog::{Catalog, Journal, NoCatalog};
use virtfold_hooks::HookOwner;
use virtfold_hypervisor::domain_xml::host_access::HostAccess;
use virtfold_hypervisor::host_files::LocalFiles;
use virtfold_medium::{Location, TapeArchive};

use super::Signals;
use super::domain::connection::{ConnectFlag, StateFlag, places};
use super::exit::ExitStatus;
use super::free_space;
use super::report::{OutputFormat, ProgressPrinter, StdoutUse, printable, result};

/// The options of a restore of a guest.
#[derive(Debug, clap::Args)]
pub(crate) struct DefineArgs {
    /// Restore the whole guest: its disks, NVRAM and TPM state, and last its definition
    #[arg(long, conflicts_with = "partial", help_heading = "Domains")]
    pub(crate) define: bool,
    /// Make a copy with this name, its own UUID and MAC addresses [default: restore the same guest]
    #[arg(long, value_name = "NAME", requires = "define", help_heading = "Domains")]
    name: Option<String>,
    /// Put the disks into the directory of this storage pool
    #[arg(
        long,
        value_name = "POOL",
        requires = "define",
        conflicts_with = "output",
        help_heading = "Domains"
    )]
    pool: Option<String>,
    /// Remove this disk from the definition; repeatable, or separated by commas
    #[arg(long, value_name = "TARGET", value_delimiter = ',', requires = "define", help_heading = "Domains")]
    without: Vec<String>,
    /// Let the definition have this of the host: script, host-device, disk, ... or all (docs/definitions.md);
    /// repeatable, or separated by commas [default: only what the guest's present definition has]
    #[arg(
        long,
        value_name = "KIND",
        value_delimiter = ',',
        value_parser = allowed,
        requires = "define",
        help_heading = "Domains"
    )]
    allow: Vec<Allowed>,
    /// Start the guest after it is defined
    #[arg(long, requires = "define", help_heading = "Domains")]
    start: bool,
    /// Print what would be written where and change nothing; the exit code is that of the restore's refusal
    #[arg(long)]
    pub(crate) plan: bool,
    /// libvirt's state directory [default: $VIRTFOLD_LIBVIRT_DIR, else /var/lib/libvirt, or the user's for
    /// qemu:///session]
    #[arg(long, value_name = "DIR", requires = "define", help_heading = "Domains")]
    libvirt_dir: Option<PathBuf>,
    #[command(flatten)]
    connect: ConnectFlag,
    #[command(flatten)]
    state: StateFlag,
}

/// What one `--allow` allows.
#[derive(Clone, Copy, Debug)]
struct Allowed(&'static [HostAccess]);

fn allowed(text: &str) -> Result<Allowed, String> {
    if text == "all" {
        return Ok(Allowed(HostAccess::ALL));
    }
    let found = HostAccess::ALL.chunks(1).find(|kind| kind.iter().any(|kind| kind.name() == text));
    found.map(Allowed).ok_or_else(|| {
        let names: Vec<_> = HostAccess::ALL.iter().map(|kind| kind.name()).collect();
        format!("it is 'all' or one of {}", names.join(", "))
    })
}

/// What a restore of a guest has in common with one of disks.
pub(super) struct CommonArgs {
    /// The archive.
    pub(super) archive: Location,
    /// What opens it, where it is encrypted.
    pub(super) identities: Identities,
    /// Whose archives are taken.
    pub(super) trust: TrustPolicy,
    /// The drive, and which archive on its tape, where it is on one.
    pub(super) tape: Option<(TapeOptions, TapeArchive)>,
    /// Disks with a place of their own.
    pub(super) disks: Vec<(String, PathBuf)>,
    /// The directory for the others.
    pub(super) output: Option<PathBuf>,
    /// How they are written.
    pub(super) writing: WriteOptions,
    /// Whether what is there may be replaced.
    pub(super) existing: virtfold_base::partial_file::Overwrite,
    /// What the catalog knows of the archive.
    pub(super) known: KnownCopy,
    /// Where the archives are looked for that an increment rests on.
    pub(super) parents: ParentSearch,
}

impl DefineArgs {
    /// The state directory.
    ///
    /// # Errors
    /// Those of [`StateFlag::path`].
    pub(super) fn state_dir(&self) -> Result<PathBuf, Error> {
        self.state.path_of(self.connect.whose())
    }

    /// Runs it, or says what it would do.
    pub(super) fn run(
        self,
        common: CommonArgs,
        style: OutputFormat,
        signals: &Signals,
    ) -> Result<ExitStatus> {
        let connection = self.connect.open()?;
        let places = places(self.libvirt_dir.as_deref(), &connection.uri)?;
        let guards = virtfold_hooks::start_lock::usual_path(HookOwner::of(&connection.uri));
        let journal = self.journal()?;
        let host = DefineContext {
            hypervisor: connection.hypervisor.as_ref(),
            files: &LocalFiles,
            places: &places,
            guards: &guards,
            journal: journal.as_ref().map(|catalog| catalog as &dyn Journal),
        };
        let rest = match (common.output, self.pool) {
            (_, Some(pool)) => DefaultTarget::Pool(pool),
            (Some(directory), None) => DefaultTarget::Directory(directory),
            (None, None) => DefaultTarget::OriginalPath,
        };
        let request = RestoreDomainRequest {
            archive: common.archive,
            identities: common.identities,
            trust: common.trust,
            name: self.name,
            disks: common.disks,
            rest,
            without: self.without,
            writing: common.writing,
            existing: common.existing,
            known: common.known,
            parents: common.parents,
            afterwards: if self.start { AfterDefine::Start } else { AfterDefine::Leave },
            allow: self.allow.iter().flat_map(|kinds| kinds.0).copied().collect(),
        };
        let progress = Arc::new(Progress::default());
        let control = Control { cancel: Arc::clone(&signals.stop), progress: Arc::clone(&progress) };
        let ticker =
            if self.plan { None } else { Some(ProgressPrinter::start(style, StdoutUse::Free, &progress)?) };
        let tape = common.tape.map(|(drive, which)| drive.open(&which)).transpose()?;
        let report = match (tape, self.plan) {
            (Some(tape), true) => restore_domain::plan_from(&request, &host, &control, tape),
            (Some(tape), false) => restore_domain::run_from(&request, &host, &control, tape),
            (None, true) => restore_domain::plan(&request, &host, &control),
            (None, false) => restore_domain::run(&request, &host, &control),
        };
        drop(ticker);
        let report = report?;
        result(style, StdoutUse::Free, &report, &text(&report))?;
        // A restore that is done had room.
        if self.plan {
            restore_domain::check_allowed(&report)?;
            free_space::check(&report.room)?;
        }
        Ok(ExitStatus::Done)
    }

    /// The journal; a plan makes none where there is none.
    fn journal(&self) -> Result<Option<Catalog>, Error> {
        let state = self.state.path_of(self.connect.whose())?;
        if self.plan && NoCatalog::is_missing(&state) {
            return Ok(None);
        }
        Catalog::open(&state).map(Some)
    }
}

fn text(report: &RestoreDomainReport) -> String {
    let what = match report.identity {
        DomainIdentity::Original => "as it was".to_owned(),
        DomainIdentity::Copy => format!("a copy of '{}'", printable(&report.guest)),
        DomainIdentity::Replacement => "replacing the existing one".to_owned(),
    };
    let mut text = format!("domain '{}' ({}), {what}\n", printable(&report.domain), report.uuid);
    let verb = |replaces: bool| match (report.defined, replaces) {
        (true, false) => "written to",
        (true, true) => "replaced",
        (false, false) => "would be written to",
        (false, true) => "would replace",
    };
    for disk in &report.disks {
        text += &format!("{}: {}\n", disk.target, printable(&disk_text(disk, verb(disk.replaces))));
    }
    for file in &report.files {
        let (what, size) = (&file.what, Human(file.bytes));
        text += &printable(&format!("{what}: {size} {} {}", verb(file.replaces), file.path));
        text.push('\n');
    }
    for (what, changes) in [("MAC address", &report.macs), ("channel", &report.channels)] {
        for change in changes {
            text += &printable(&format!("{what} {}: {} now", change.from, change.to));
            text.push('\n');
        }
    }
    if !report.defined {
        text += &free_space::text(&report.room);
    }
    for one in &report.host_access {
        let may = if one.allowed { "allowed".to_owned() } else { format!("needs --allow {}", one.kind) };
        text += &printable(&format!("host access: {} '{}', {may}: {}", one.place, one.value, one.reason));
        text.push('\n');
    }
    for note in &report.notes {
        text += &format!("note: {}\n", printable(note));
    }
    if let Some(authenticity) = &report.authenticity {
        text += &format!("the archive: {authenticity}\n");
    }
    if report.defined && !report.verified {
        text += "the data were not checked: run 'virtfold verify' on the archive\n";
    }
    text + &match (report.defined, report.started) {
        (false, _) => "nothing was changed".to_owned(),
        (true, false) => format!("defined, shut off; restored in {:.1} s", report.seconds),
        (true, true) => format!("defined and started; restored in {:.1} s", report.seconds),
    }
}

fn disk_text(disk: &DiskPlan, verb: &str) -> String {
    let path = disk.path.as_deref();
    match disk.action {
        DiskAction::Restore => format!(
            "{} of {} {verb} {} ({})",
            Human(disk.data.unwrap_or(0)),
            Human(disk.capacity.unwrap_or(0)),
            path.unwrap_or("-"),
            disk.format.as_deref().unwrap_or("-"),
        ),
        DiskAction::Keep => path.map_or_else(|| "kept".to_owned(), |path| format!("kept, {path}")),
        DiskAction::Remove => "left out of the definition".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use virtfold_backup::restore_domain::{DefinitionChange, FilePlan, HostAccessFinding, Room};

    use super::*;

    fn report() -> RestoreDomainReport {
        let disk = |target: &str, action| DiskPlan {
            target: target.into(),
            action,
            path: (action != DiskAction::Remove).then(|| format!("/vm/{target}")),
            format: (action == DiskAction::Restore).then(|| "qcow2".into()),
            capacity: Some(10 << 30),
            data: Some(1 << 30),
            replaces: false,
        };
        RestoreDomainReport {
            archive: "web.tar".into(),
            guest: "web".into(),
            domain: "web2".into(),
            uuid: "3b51a0a6-3c5a-4c1e-9d0b-2b4f6f1f8f11".into(),
            identity: DomainIdentity::Copy,
            disks: vec![
                disk("vda", DiskAction::Restore),
                disk("sda", DiskAction::Keep),
                disk("vdb", DiskAction::Remove),
            ],
            files: vec![FilePlan { what: "NVRAM".into(), path: "/vm/V".into(), bytes: 4096, replaces: true }],
            macs: vec![DefinitionChange { from: "52:54:00:00:00:01".into(), to: "52:54:00:00:00:02".into() }],
            channels: vec![],
            host_access: vec![HostAccessFinding {
                kind: "script",
                place: "devices/interface/script".into(),
                value: "path=/x".into(),
                reason: "libvirt runs it as root",
                allowed: false,
            }],
            room: vec![Room {
                directories: vec!["/vm".into()],
                needed: 1 << 30,
                shared: None,
                free: 5 << 30,
            }],
            authenticity: None,
            notes: vec!["odd \u{1b}[31m".into()],
            defined: false,
            started: false,
            verified: false,
            seconds: 0.0,
        }
    }

    #[test]
    fn a_plan_reads_as_one_and_a_restore_as_done() {
        let expected = "domain 'web2' (3b51a0a6-3c5a-4c1e-9d0b-2b4f6f1f8f11), a copy of 'web'
vda: 1.0 GiB of 10.0 GiB would be written to /vm/vda (qcow2)
sda: kept, /vm/sda
vdb: left out of the definition
NVRAM: 4.0 KiB would replace /vm/V
MAC address 52:54:00:00:00:01: 52:54:00:00:00:02 now
room: 1.0 GiB wanted in /vm, 5.0 GiB free
host access: devices/interface/script 'path=/x', needs --allow script: libvirt runs it as root
note: odd \\u{1b}[31m
nothing was changed";
        assert_eq!(text(&report()), expected);
        let done = text(&RestoreDomainReport {
            defined: true,
            started: true,
            verified: true,
            seconds: 2.0,
            ..report()
        });
        assert!(
            done.contains("1.0 GiB of 10.0 GiB written to /vm/vda")
                && done.contains("4.0 KiB replaced /vm/V")
        );
        assert!(done.ends_with("defined and started; restored in 2.0 s"), "{done}");
    }
}
