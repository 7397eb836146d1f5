//! The verbs that speak to libvirt, and what they share: the connection, the state directory, the wishes for
//! a backup.

mod backup;
pub(crate) mod connection;
pub(crate) mod domains;
mod plan;
pub(crate) mod recover;
pub(crate) mod watchdog;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use virtfold_backup::plan::{QuiesceWish, Wishes};
use virtfold_backup::resume::ResumePolicy;
use virtfold_backup::session::ArchiveOptions;
use virtfold_base::error::Error;
use virtfold_config::Defaults;
use virtfold_hypervisor::host_files::LocalFiles;

use self::connection::{ConnectFlag, StateFlag, absolute};
use super::Signals;
use super::exit::ExitStatus;
use super::report::{OutputFormat, StdoutUse, result};
use super::tape::media::Destinations;

/// The options of a backup of a domain.
#[derive(Debug, clap::Args)]
pub(crate) struct GuestArgs {
    /// Leave this disk out; repeatable, or separated by commas
    #[arg(long, value_name = "TARGET", value_delimiter = ',', requires = "domain", help_heading = "Domains")]
    exclude: Vec<String>,
    /// Have qemu-guest-agent freeze the guest's file systems: if it answers (auto), or else refuse the backup
    /// (yes), or never (no) [default: the configuration's; auto]
    #[arg(
        long,
        value_enum,
        value_name = "auto|yes|no",
        hide_possible_values = true,
        requires = "domain",
        help_heading = "Domains"
    )]
    quiesce: Option<QuiesceArg>,
    /// How long the guest may be paused at a time, 100ms to 60s [default: the configuration's; 2s]
    #[arg(long, value_name = "TIME", requires = "domain", help_heading = "Domains")]
    pause_budget: Option<virtfold_config::PauseDuration>,
    /// Directory for the overlays that the guest writes to during the copy [default: the configuration's;
    /// beside each image, and the state directory for block devices]
    #[arg(long, value_name = "DIR", requires = "domain", help_heading = "Domains")]
    overlay_dir: Option<PathBuf>,
    /// Free space to keep on the file systems of the overlays [default: the configuration's; 1GiB]
    #[arg(long, value_name = "SIZE", requires = "domain", help_heading = "Domains")]
    min_free: Option<virtfold_config::ByteSize>,
    /// Print what would be done and change nothing; the exit code is that of the backup's refusal
    #[arg(long, requires = "domain", help_heading = "Domains")]
    plan: bool,
    /// Write metrics for node_exporter's textfile collector into this directory
    #[arg(long, value_name = "DIR", requires = "domain", help_heading = "Domains")]
    metrics_dir: Option<PathBuf>,
    /// libvirt's state directory [default: $VIRTFOLD_LIBVIRT_DIR, else /var/lib/libvirt, or the user's for
    /// qemu:///session]
    #[arg(long, value_name = "DIR", requires = "domain", help_heading = "Domains")]
    libvirt_dir: Option<PathBuf>,
    #[command(flatten)]
    connect: ConnectFlag,
    #[command(flatten)]
    state: StateFlag,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum QuiesceArg {
    Auto,
    Yes,
    No,
}

/// A backup of a domain as the command line says it.
#[derive(Debug)]
pub(super) struct DomainBackupOptions<'a> {
    /// The domain.
    pub(super) domain: &'a str,
    /// The job of the configuration that it is for.
    pub(super) name: Option<&'a str>,
    /// How the archive is made.
    pub(super) manner: ArchiveOptions,
    /// Where it goes; not needed for a plan.
    pub(super) media: Destinations,
    /// What is done with an earlier run's archive.
    pub(super) wish: ResumePolicy,
    /// Text or JSON.
    pub(super) style: OutputFormat,
    /// What the configuration says.
    pub(super) defaults: &'a Defaults,
}

/// The wishes by the configuration alone.
pub(super) fn wishes_of(defaults: &Defaults, state_dir: PathBuf) -> Wishes {
    Wishes {
        exclude: Vec::new(),
        quiesce: match defaults.quiesce {
            virtfold_config::QuiesceMode::Auto => QuiesceWish::Auto,
            virtfold_config::QuiesceMode::Yes => QuiesceWish::Yes,
            virtfold_config::QuiesceMode::No => QuiesceWish::No,
        },
        pause_budget: Duration::from_millis(defaults.pause_budget.millis()),
        overlay_dir: defaults.overlay_dir.as_ref().map(|dir| dir.as_path().to_owned()),
        min_free: defaults.min_free.get(),
        state_dir,
        archive_devices: Vec::new(),
    }
}

impl GuestArgs {
    fn wishes(&self, defaults: &Defaults) -> Result<Wishes, Error> {
        let mut wishes = wishes_of(defaults, self.state_dir()?);
        wishes.exclude.clone_from(&self.exclude);
        if let Some(quiesce) = self.quiesce {
            wishes.quiesce = match quiesce {
                QuiesceArg::Auto => QuiesceWish::Auto,
                QuiesceArg::Yes => QuiesceWish::Yes,
                QuiesceArg::No => QuiesceWish::No,
            };
        }
        if let Some(budget) = self.pause_budget {
            wishes.pause_budget = Duration::from_millis(budget.millis());
        }
        if let Some(room) = self.min_free {
            wishes.min_free = room.get();
        }
        if let Some(dir) = &self.overlay_dir {
            wishes.overlay_dir = Some(absolute(dir)?);
        }
        Ok(wishes)
    }

    /// Whether it is only told what would be done.
    pub(super) fn is_plan(&self) -> bool {
        self.plan
    }

    /// The state directory.
    ///
    /// # Errors
    /// Those of [`StateFlag::path`].
    pub(super) fn state_dir(&self) -> Result<PathBuf, Error> {
        self.state.path_of(self.connect.whose())
    }

    /// Runs the backup of a domain, or says what it would do.
    pub(super) fn run(&self, job: DomainBackupOptions<'_>, signals: &Signals) -> Result<ExitStatus> {
        let connection = self.connect.open()?;
        let mut wishes = self.wishes(job.defaults)?;
        wishes.archive_devices = job.media.devices()?;
        if self.plan {
            let plan = virtfold_backup::plan::plan(
                connection.hypervisor.as_ref(),
                &LocalFiles,
                job.domain,
                &wishes,
            )?;
            result(job.style, StdoutUse::Free, &plan, &plan::text(&plan))?;
            let kind = plan.obstacles.first().map(|finding| finding.kind);
            return Ok(kind.map_or(ExitStatus::Done, ExitStatus::Failed));
        }
        let places = connection::places(self.libvirt_dir.as_deref(), &connection.uri)?;
        let done = backup::run(&job, &wishes, (&connection, &places), signals);
        let Some(directory) = &self.metrics_dir else { return done.map(|(outcome, _)| outcome) };
        backup::measure(directory, (&connection, job.domain), done)
    }
}
