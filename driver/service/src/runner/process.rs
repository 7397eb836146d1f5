//! Runs as processes: this program again, with a command line that a person could type.
//!
//! 1. The files of variables of the job's media are read, for this run's environment alone. Where two of them
//!    contradict each other the run fails.
//! 2. The command before; if it fails, the backup is not made.
//! 3. `virtfold backup UUID --json ...`. Where it fails or was killed, `virtfold recover UUID` brings the
//!    guest home.
//! 4. The command after.
//!
//! A child is told who its parent is (`--parent`, hidden): the kernel sends it SIGTERM when that process is
//! gone, so that a service that was killed leaves nothing running that its successor does not know; the
//! successor waits for the domain's lock meanwhile. The signal comes when the parent's *thread* ends, so each
//! run has a thread that stays until its child has ended.
//!
//! Imports: `error`, `hypervisor` (plain types), `catalog` (plain types, locks), `job_spec`, `engine` (its
//! inputs), `child_process`, `output`.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::child_process::{self, ChildExit, OutputListener, RunningChild, SignalScope};
use super::output::{CommandOutput, RunOutput, archives_in, failure_in, measure_in, needs_administrator};
use super::{Chore, ChoreOrder, Handle, RunOrder, Runner};
use crate::engine::Input;
use crate::job_spec::{CommandSpec, MediumSpec};
use virtfold_backup::domain::DomainReport;
use virtfold_backup::freeze::RecoverReport;
use virtfold_base::error::{Error, ErrorKind, IoContext, Result, sentence};
use virtfold_catalog::queue::RunResult;
use virtfold_catalog::{Catalog, Journal};
use virtfold_config::CommandCondition;
use virtfold_hypervisor::DomainId;

/// How long a recovery may take: a commit writes what the guest has written since.
const RECOVERY: Duration = Duration::from_secs(3600);
/// How long pruning may take.
const PRUNING: Duration = Duration::from_secs(3600);
/// How long the verification of a medium may take. What was read by then is noted, and the next one goes on.
const VERIFYING: Duration = Duration::from_secs(24 * 3600);
/// Of how many archives a failed verification tells.
const TOLD_OF: usize = 5;
/// How long ago the last verification of an archive may be.
const DUE: &str = "30d";

/// Where a run finds everything.
#[derive(Clone, Debug)]
pub struct RunPaths {
    /// This program.
    pub program: PathBuf,
    /// The libvirt.
    pub uri: String,
    /// The state directory.
    pub state_dir: PathBuf,
    /// The configuration file, where there is one.
    pub config: Option<PathBuf>,
}

/// Characters of an error that the command after a backup is told.
const TOLD: usize = 8000;

/// Runs each order as a process.
#[derive(Clone, Debug)]
pub struct ProcessRunner {
    paths: Arc<RunPaths>,
    catalog: Arc<Catalog>,
    /// A configuration without a word: a run's options are all on its command line.
    blank: PathBuf,
    kind_of: fn(i32) -> ErrorKind,
}

#[derive(Debug)]
struct RunProcess(Arc<RunningChild>);

impl Handle for RunProcess {
    fn end(&self) {
        self.0.end();
    }

    fn kill(&self) {
        self.0.kill();
    }
}

/// A configuration that says nothing, for runs whose command line says all. Made anew and for its owner
/// alone, whatever the umask is and an earlier one was: else the runs would not believe it.
fn write_blank(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(b"version: 1\n")
}

impl ProcessRunner {
    /// A runner; `kind_of` says what an exit code of this program means.
    ///
    /// # Errors
    /// The state directory can't be written.
    pub fn new(paths: RunPaths, catalog: Arc<Catalog>, kind_of: fn(i32) -> ErrorKind) -> Result<Self> {
        let blank = paths.state_dir.join("service.yaml");
        write_blank(&blank).at(|| format!("cannot write '{}'", blank.display()))?;
        Ok(Self { paths: Arc::new(paths), catalog, blank, kind_of })
    }

    /// This program, with a verb.
    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.paths.program);
        command.arg("--parent").arg(std::process::id().to_string()).arg(verb).arg("--json");
        command.arg("--state-dir").arg(&self.paths.state_dir);
        command
    }

    fn backup(&self, order: &RunOrder, variables: Vec<(String, String)>) -> Command {
        let mut command = self.command("backup");
        command.arg(order.guest.id.to_string()).arg("--connect").arg(&self.paths.uri);
        command.arg("--config").arg(&self.blank).arg("--job").arg(&order.job.name).args(&order.job.options);
        for medium in &order.media {
            command.arg("--to").arg(&medium.to).args(&medium.options);
        }
        for disk in order.guest.disks.iter().filter(|disk| !order.job.pick.disk(disk)) {
            command.arg("--exclude").arg(disk);
        }
        command.envs(variables);
        command
    }

    fn work(&self, order: &RunOrder, hold: &RunningChild, reports: &Sender<Input>) -> RunResult {
        let mut result = self.before_and_backup(order, hold, reports).unwrap_or_else(|error| failure(&error));
        if let Some((command, when)) = &order.job.after
            && (*when == CommandCondition::Always
                || (*when == CommandCondition::Success) == result.kind.is_none())
        {
            let told = outcome_of(&result);
            // What it says changes nothing about the backup.
            if let Err(error) = command_of(command, order, &RunningChild::default(), &told) {
                result.sentence.push_str(&format!("; its `after` command: {}", sentence(&error)));
            }
        }
        result
    }

    fn before_and_backup(
        &self,
        order: &RunOrder,
        hold: &RunningChild,
        reports: &Sender<Input>,
    ) -> Result<RunResult> {
        let variables = variables(&order.media)?;
        if let Some(command) = &order.job.before {
            command_of(command, order, hold, &[]).map_err(|error| match hold.is_asked() {
                true => interrupted(),
                false => error.within("the backup was not started: its `before` command failed"),
            })?;
        }
        if hold.is_asked() {
            return Err(interrupted());
        }
        let said = Arc::new(RunOutput::<DomainReport>::new(Some((order.id, reports.clone()))));
        let hear: Arc<dyn OutputListener> = said.clone();
        let ended =
            child_process::run(self.backup(order, variables), hold, SignalScope::Process, None, &hear);
        let ended = ended.at(|| format!("cannot run '{}'", self.paths.program.display()))?;
        let mut result = self.result(&said, ended, hold);
        if result.kind.is_some() {
            self.recover_guest(order, &said, &mut result);
        }
        Ok(result)
    }

    /// What came of the process of a backup.
    fn result(&self, said: &RunOutput<DomainReport>, ended: ChildExit, hold: &RunningChild) -> RunResult {
        let code = ended.status.code();
        let mut result = RunResult { exit_code: code, ..RunResult::default() };
        let summary = said.summary();
        result.archives = summary.as_ref().map(archives_in).unwrap_or_default();
        match (code, &summary) {
            (Some(0), Some(summary)) => {
                result.sentence = result.archives.join(", ");
                result.measure = Some(measure_in(summary));
            }
            (Some(0), None) => {
                // Nobody knows what it has done: never a good backup, after which others may be pruned.
                result.kind = Some(ErrorKind::Internal);
                let error = said.error(ErrorKind::Internal).map(|error| error.message);
                let what = error.unwrap_or_else(|| "it said nothing".to_owned());
                result.sentence = format!("the backup ended without a report of its archive: {what}");
            }
            (Some(code), _) => {
                let error = said.error((self.kind_of)(code));
                result.kind = Some(error.as_ref().map_or((self.kind_of)(code), |error| error.kind));
                let told = summary.as_ref().and_then(failure_in);
                let sentence = told.or_else(|| error.as_ref().map(|error| error.message.clone()));
                result.sentence = sentence.unwrap_or_else(|| format!("it ended with exit code {code}"));
                result.hint = error.and_then(|error| error.hint);
            }
            (None, _) => {
                let signal = ended.status.signal();
                let by_us = hold.is_asked();
                result.kind = Some(if by_us { ErrorKind::Interrupted } else { ErrorKind::Internal });
                result.sentence = format!("its process was ended by signal {}", signal.unwrap_or(0));
            }
        }
        result
    }

    /// A recovery of the run's guest. Where the archive was good and only the guest was not home, everything
    /// is fine then.
    fn recover_guest(&self, order: &RunOrder, said: &RunOutput<DomainReport>, result: &mut RunResult) {
        let home = self.recover_one(Some(order.guest.id));
        let only_home = said.summary().is_some_and(|summary| {
            summary.thaw_failure.is_some() && summary.backup.copies.iter().all(|copy| copy.failure.is_none())
        });
        match home {
            Ok(undecided) if undecided.is_empty() => {
                if only_home {
                    result.kind = None;
                    result.measure = said.summary().as_ref().map(measure_in);
                    result.sentence.push_str("; a recovery put the guest back on its disks");
                }
            }
            Ok(undecided) => result.sentence.push_str(&format!("; {}", undecided.join("; "))),
            Err(error) => {
                result.sentence.push_str(&format!("; the recovery failed: {}", sentence(&error)));
                result.hint = Some(format!("run 'virtfold recover {}'", order.guest.name));
            }
        }
    }

    /// A recovery, of one domain or of all; says what a person has to decide.
    fn recover_one(&self, domain: Option<DomainId>) -> Result<Vec<String>> {
        let mut command = self.command("recover");
        command.arg("--connect").arg(&self.paths.uri);
        command.args(domain.map(|domain| domain.to_string()));
        let said = Arc::new(RunOutput::<RecoverReport>::new(None));
        let ended = self.finish(command, &(said.clone() as Arc<dyn OutputListener>), RECOVERY)?;
        match said.summary() {
            Some(summary) => Ok(needs_administrator(&summary)),
            // A domain that is gone, and of which no journal knows, is home.
            None if domain.is_some() && self.kind(ended) == ErrorKind::NotFound => Ok(Vec::new()),
            None => Err(self.error(&said, ended)),
        }
    }

    fn finish(&self, command: Command, hear: &Arc<dyn OutputListener>, limit: Duration) -> Result<ChildExit> {
        let ended =
            child_process::run(command, &RunningChild::default(), SignalScope::Process, Some(limit), hear);
        ended.at(|| format!("cannot run '{}'", self.paths.program.display()))
    }

    fn kind(&self, ended: ChildExit) -> ErrorKind {
        ended.status.code().map_or(ErrorKind::Internal, self.kind_of)
    }

    fn error<S: DeserializeOwned + Clone>(&self, said: &RunOutput<S>, ended: ChildExit) -> Error {
        let kind = self.kind(ended);
        said.error(kind)
            .map_or_else(|| Error::new(kind, format!("it ended with {}", ended.status)), Error::from)
    }

    fn prune_job(&self, job: &str) -> Result<()> {
        let mut command = self.command("prune");
        if let Some(config) = &self.paths.config {
            command.arg("--config").arg(config);
        }
        command.arg("--").arg(job);
        let said = Arc::new(RunOutput::<IgnoredAny>::new(None));
        let ended = self.finish(command, &(said.clone() as Arc<dyn OutputListener>), PRUNING)?;
        if ended.status.success() { Ok(()) } else { Err(self.error(&said, ended)) }
    }

    /// Verifies what is due on each medium of a job. What one of them fails at keeps nothing from the others.
    fn verify_job(&self, order: &ChoreOrder) -> Result<()> {
        let mut done = Ok(());
        for medium in order.media.iter().filter(|medium| !is_tape(medium)) {
            done = done.and(self.verify_medium(medium, order));
        }
        done
    }

    fn verify_medium(&self, medium: &MediumSpec, order: &ChoreOrder) -> Result<()> {
        let mut command = self.command("verify");
        command.arg(&medium.to).arg("--due").arg(DUE).envs(variables(std::slice::from_ref(medium))?);
        if let Some(config) = &self.paths.config {
            command.arg("--config").arg(config);
        }
        if let Some(directory) = &order.metrics_dir {
            command.arg("--metrics-dir").arg(directory);
        }
        let said = Arc::new(RunOutput::<serde_json::Value>::new(None));
        let ended = self.finish(command, &(said.clone() as Arc<dyn OutputListener>), VERIFYING)?;
        if ended.status.success() {
            return Ok(());
        }
        let what = said.summary().as_ref().map(unsound_in).unwrap_or_default();
        if what.is_empty() {
            return Err(self
                .error(&said, ended)
                .within(format!("the medium '{}' was not verified", medium.name)));
        }
        let hint =
            "'virtfold verify ARCHIVE' says what is wrong; such an archive counts for no rule of `keep`";
        let more = what.len().saturating_sub(TOLD_OF);
        let first = what.get(..TOLD_OF).unwrap_or(&what).join("; ");
        let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
        let message = format!("on the medium '{}': {first}{rest}", medium.name);
        Err(Error::new(self.kind(ended), message).with_hint(hint))
    }

    /// Starts a thread that reports in the end.
    fn report(
        &self,
        reports: &Sender<Input>,
        name: &str,
        work: impl FnOnce(&Self) -> Input + Send + 'static,
    ) -> Result<()> {
        let (runner, reports) = (self.clone(), reports.clone());
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            if reports.send(work(&runner)).is_err() {
                tracing::debug!("the service has ended already");
            }
        });
        thread.map(|_| ()).at(|| "cannot start a thread".to_owned())
    }
}

impl Runner for ProcessRunner {
    fn start(&self, order: RunOrder, reports: &Sender<Input>) -> Result<Box<dyn Handle>> {
        let hold = Arc::new(RunningChild::default());
        let (held, progress) = (Arc::clone(&hold), reports.clone());
        self.report(reports, "run", move |runner| {
            Input::Ended(order.id, runner.work(&order, &held, &progress))
        })?;
        Ok(Box::new(RunProcess(hold)))
    }

    fn recover(&self, reports: &Sender<Input>) {
        let started = self.report(reports, "recover", |runner| Input::Recovered(runner.recover_one(None)));
        if let Err(error) = started
            && reports.send(Input::Recovered(Err(error))).is_err()
        {
            tracing::debug!("the service has ended already");
        }
    }

    fn chore(&self, order: ChoreOrder, reports: &Sender<Input>) {
        let (chore, again) = (order.chore, order.job.clone());
        let started = self.report(reports, "chore", move |runner| {
            let outcome = match chore {
                Chore::Prune => runner.prune_job(&order.job),
                Chore::Verify => runner.verify_job(&order),
            };
            Input::ChoreDone(chore, order.job, outcome)
        });
        if let Err(error) = started
            && reports.send(Input::ChoreDone(chore, again, Err(error))).is_err()
        {
            tracing::debug!("the service has ended already");
        }
    }

    fn busy(&self, domain: DomainId) -> Option<String> {
        self.catalog.lock(domain).err().map(|error| sentence(&error))
    }
}

/// A tape needs somebody who changes volumes.
fn is_tape(medium: &MediumSpec) -> bool {
    medium.to.as_encoded_bytes().starts_with(b"tape:")
}

/// What a verification found wrong, a sentence for each archive.
fn unsound_in(report: &serde_json::Value) -> Vec<String> {
    let list = |key: &str| report[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let unsound = list("verified").iter().filter(|done| done["sound"] == false);
    let unsound = unsound
        .map(|done| format!("'{}' is not sound: {}", text(&done["archive"]), text(&done["faults"][0])));
    let failed =
        list("failed").iter().map(|one| format!("'{}': {}", text(&one["archive"]), text(&one["sentence"])));
    unsound.chain(failed).collect()
}

fn interrupted() -> Error {
    Error::new(ErrorKind::Interrupted, "it was stopped before the backup started")
}

fn failure(error: &Error) -> RunResult {
    RunResult {
        sentence: sentence(error),
        hint: error.hint().map(str::to_owned),
        kind: Some(error.kind()),
        ..RunResult::default()
    }
}

/// What the command after a backup is told of it. Each variable is there, if only empty.
fn outcome_of(result: &RunResult) -> [(&'static str, String); 5] {
    let failed = result.kind.is_some();
    // No variable can have a NUL, and the kernel takes 128 KiB of each.
    let text = |text: &str| text.chars().filter(|c| *c != '\0').take(TOLD).collect::<String>();
    let when_failed = |of: &str| if failed { text(of) } else { String::new() };
    [
        ("VIRTFOLD_RESULT", if failed { "failure" } else { "success" }.to_owned()),
        ("VIRTFOLD_ARCHIVES", result.archives.join("\n")),
        ("VIRTFOLD_ERROR", when_failed(&result.sentence)),
        ("VIRTFOLD_HINT", when_failed(result.hint.as_deref().unwrap_or_default())),
        ("VIRTFOLD_EXIT_CODE", result.exit_code.map_or_else(String::new, |code| code.to_string())),
    ]
}

/// Runs a command of the configuration.
fn command_of(
    spec: &CommandSpec,
    order: &RunOrder,
    hold: &RunningChild,
    told: &[(&str, String)],
) -> Result<()> {
    let Some((program, arguments)) = spec.words.split_first() else { return Ok(()) };
    let name = program.to_string_lossy().into_owned();
    let mut command = Command::new(program);
    command.args(arguments).env("VIRTFOLD_JOB", &order.job.name).env("VIRTFOLD_DOMAIN", &order.guest.name);
    command
        .env("VIRTFOLD_UUID", order.guest.id.to_string())
        .envs(told.iter().map(|(name, value)| (name, value)));
    let said = Arc::new(CommandOutput::new(&order.job.name, &order.guest.name, &name));
    let hear: Arc<dyn OutputListener> = said.clone();
    let ended = child_process::run(command, hold, SignalScope::Group, Some(spec.limit), &hear);
    let ended = ended.at(|| format!("cannot run '{name}'"))?;
    if ended.status.success() && !ended.overdue {
        return Ok(());
    }
    let message = if ended.overdue {
        format!("'{name}' timed out after {} s", spec.limit.as_secs())
    } else {
        format!("'{name}' ended with {}", ended.status)
    };
    let error = Error::new(ErrorKind::Io, message);
    Err(match said.last() {
        Some(words) => error.with_source(words),
        None => error,
    })
}

/// The variables of a run's media, which have one process and so one environment. A name that two of them
/// give different values is refused: one medium would be written to with the other one's keys. They hold
/// keys: no error repeats one.
fn variables(media: &[MediumSpec]) -> Result<Vec<(String, String)>> {
    let mut all: BTreeMap<String, (String, &MediumSpec, &Path)> = BTreeMap::new();
    for medium in media {
        let Some(path) = medium.environment.as_deref() else { continue };
        let read = virtfold_config::Environment::load(path).map_err(|error| {
            let message = format!("the environment file '{}' can't be used", path.display());
            Error::new(ErrorKind::Usage, message).with_source(error)
        })?;
        for (name, value) in read.as_slice() {
            match all.get(name) {
                Some((same, ..)) if same == value => {}
                Some((_, other, file)) => return Err(contradiction(name, (other, file), (medium, path))),
                None => {
                    all.insert(name.clone(), (value.clone(), medium, path));
                }
            }
        }
    }
    Ok(all.into_iter().map(|(name, (value, ..))| (name, value)).collect())
}

fn contradiction(name: &str, first: (&MediumSpec, &Path), second: (&MediumSpec, &Path)) -> Error {
    let message = format!(
        "the media '{}' and '{}' have different values for {name}, in '{}' and '{}'",
        first.0.name,
        second.0.name,
        first.1.display(),
        second.1.display()
    );
    let hint = "the media of a job are written to by one process with one environment: give each medium a job of its own";
    Error::new(ErrorKind::Usage, message).with_hint(hint)
}
