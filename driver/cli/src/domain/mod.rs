//! The verbs that speak to libvirt, and what they share: the connection, the state directory, the options of
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
use virtfold_backup::options::{BackupOptions, QuiesceMode};
use virtfold_backup::plan::PlanContext;
use virtfold_base::error::Error;
use virtfold_hypervisor::host_files::LocalFiles;

use self::connection::{ConnectFlag, StateFlag, absolute};
use super::backup_command::BackupCommand;
use super::exit::ExitStatus;
use super::report::{StdoutUse, result};
use super::{Signals, args};

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
        value_name = "auto|yes|no",
        value_parser = args::quiesce,
        requires = "domain",
        help_heading = "Domains"
    )]
    quiesce: Option<QuiesceMode>,
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

impl GuestArgs {
    /// Puts what is said of a domain's backup into the options.
    ///
    /// # Errors
    /// There is no working directory to begin from.
    pub(super) fn choose(&self, options: &mut BackupOptions) -> Result<(), Error> {
        options.exclude.clone_from(&self.exclude);
        if let Some(quiesce) = self.quiesce {
            options.quiesce = quiesce;
        }
        if let Some(budget) = self.pause_budget {
            options.pause_budget = Duration::from_millis(budget.millis());
        }
        if let Some(room) = self.min_free {
            options.min_free = room.get();
        }
        if let Some(dir) = &self.overlay_dir {
            options.overlay_dir = Some(absolute(dir)?);
        }
        Ok(())
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
    pub(super) fn run(
        &self,
        domain: &str,
        command: &BackupCommand<'_>,
        signals: &Signals,
    ) -> Result<ExitStatus> {
        let connection = self.connect.open()?;
        if self.plan {
            let context = PlanContext {
                options: command.options,
                state_dir: &command.state.state,
                archive_devices: &command.destinations.devices()?,
            };
            let plan =
                virtfold_backup::plan::plan(connection.hypervisor.as_ref(), &LocalFiles, domain, &context)?;
            result(command.style, StdoutUse::Free, &plan, &plan::text(&plan))?;
            let kind = plan.obstacles.first().map(|finding| finding.kind);
            return Ok(kind.map_or(ExitStatus::Done, ExitStatus::Failed));
        }
        let places = connection::places(self.libvirt_dir.as_deref(), &connection.uri)?;
        let done = backup::run(domain, command, &connection, &places, signals);
        let Some(directory) = &self.metrics_dir else { return done.map(|(outcome, _)| outcome) };
        backup::measure(directory, &connection, domain, done)
    }
}
