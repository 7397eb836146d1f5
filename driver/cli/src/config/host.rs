//! `virtfold config check --host`: the configuration tried on this host. Each medium is tried, each job's
//! domains are looked up, each of its files and programs is looked for, and its next runs are told. Nothing
//! is left anywhere.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use virtfold_backup::host_identity;
use virtfold_backup::mount_check::{CheckedDirectory, agrees};
use virtfold_base::error::{Error, ErrorKind, IoContext, sentence};
use virtfold_base::partial_file;
use virtfold_catalog::Catalog;
use virtfold_config::{Config, Medium, NamedGuest};
use virtfold_medium::Location;
use virtfold_service::event_bridge::describe;
use virtfold_service::job_spec::{GuestFacts, JobSpec};
use virtfold_service::settings::settings;

use crate::control::text::{columns, time};
use crate::destinations::{Terminating, environment};
use crate::domain::connection::{ConnectFlag, StateFlag};
use crate::encryption::IdentityArgs;
use crate::exit::ExitStatus;
use crate::mount_check;
use crate::output::{line, say};
use crate::report::printable;

/// How many runs of each job are told.
const RUNS: usize = 3;

/// What is tried.
#[derive(Debug)]
pub(super) struct HostCheck<'a> {
    /// The configuration.
    pub(super) config: &'a Config,
    /// The libvirt.
    pub(super) connect: &'a ConnectFlag,
    /// Where the catalog is, which knows what was mounted where.
    pub(super) state: &'a StateFlag,
}

/// What was found wrong: what, and the first kind of it.
#[derive(Debug, Default)]
struct HostCheckFailure {
    first: Option<ErrorKind>,
}

impl HostCheckFailure {
    /// Notes an error, and gives its words.
    fn note(&mut self, error: &Error) -> String {
        self.first.get_or_insert(error.kind());
        let hint = error.hint().map_or_else(String::new, |hint| format!(" ({})", printable(hint)));
        format!("NO: {}{hint}", printable(&sentence(error)))
    }

    fn take(&mut self, tried: Result<String, Error>) -> String {
        tried.unwrap_or_else(|error| self.note(&error))
    }
}

impl HostCheck<'_> {
    /// Tries it all and says how it stands.
    pub(super) fn run(&self) -> Result<ExitStatus> {
        let mut wrong = HostCheckFailure::default();
        self.media(&mut wrong)?;
        let guests = self.guests(&mut wrong)?;
        self.jobs(guests.as_deref(), &mut wrong)?;
        for advice in self.advice(guests.as_deref()) {
            say(&format!("virtfold: warning: {}", printable(&advice)));
        }
        Ok(wrong.first.map_or(ExitStatus::Done, ExitStatus::Failed))
    }

    /// What has no effect, on the guests of this host where they are known.
    fn advice(&self, guests: Option<&[GuestFacts]>) -> Vec<String> {
        let seen: Option<Vec<NamedGuest<'_>>> = guests.map(|guests| {
            guests.iter().map(|guest| NamedGuest { name: &guest.name, tags: &guest.tags }).collect()
        });
        self.config.advice(seen.as_deref()).iter().map(ToString::to_string).collect()
    }

    fn media(&self, wrong: &mut HostCheckFailure) -> Result<()> {
        let mut rows = Vec::new();
        let (catalog, terminating) = (self.catalog()?, Terminating::default());
        for (name, medium) in &self.config.media {
            let tried = try_medium(name.as_str(), medium, &terminating, catalog.as_ref());
            rows.push(vec![name.to_string(), printable(medium.to.as_str()), wrong.take(tried)]);
        }
        section("media", &rows)
    }

    /// What knows which file systems the media were on; nothing, where there is none, or somebody asks who
    /// may not read it.
    fn catalog(&self) -> Result<Option<Catalog>, Error> {
        match Catalog::open_existing(&self.state.path_of(self.connect.whose())?) {
            Err(error) if error.kind() == ErrorKind::Denied => Ok(None),
            catalog => catalog,
        }
    }

    /// All domains of this host; `None` where libvirt does not say them.
    fn guests(&self, wrong: &mut HostCheckFailure) -> Result<Option<Vec<GuestFacts>>> {
        let (uri, _) = self.connect.uri();
        let listed = self.connect.open().and_then(|connection| {
            let all = connection.hypervisor.domains()?;
            all.iter()
                .map(|info| describe(connection.hypervisor.as_ref(), info))
                .collect::<Result<Vec<_>, _>>()
        });
        let (said, guests) = match listed {
            Ok(guests) => (format!("connected, {} domains", guests.len()), Some(guests)),
            Err(error) => (wrong.note(&error), None),
        };
        section("libvirt", &[vec![printable(&uri), said]])?;
        for guest in guests.iter().flatten() {
            if let Some(why) = &guest.trouble {
                let error = Error::new(ErrorKind::Refused, why.clone());
                line(&format!("  {}  {}", printable(&guest.name), wrong.note(&error)))?;
            }
        }
        Ok(guests)
    }

    fn jobs(&self, guests: Option<&[GuestFacts]>, wrong: &mut HostCheckFailure) -> Result<()> {
        let settings = settings(self.config, &TimeZone::system());
        let mut rows = Vec::new();
        for job in &settings.jobs {
            let head = if job.enabled { job.name.clone() } else { format!("{} (switched off)", job.name) };
            rows.push(vec![head, format!("domains: {}", selected(job, guests))]);
            rows.extend(next_runs(job).into_iter().map(|run| vec![String::new(), run]));
            rows.extend(self.files(job).iter().map(|error| vec![String::new(), wrong.note(error)]));
        }
        section("jobs", &rows)?;
        let enabled = || settings.jobs.iter().filter(|job| job.enabled);
        let bare =
            guests.unwrap_or_default().iter().filter(|guest| !enabled().any(|job| job.pick.guest(guest)));
        let on_purpose = |guest: &GuestFacts| {
            settings
                .jobs
                .iter()
                .any(|job| job.pick.leaves_out(guest) || (!job.enabled && job.pick.guest(guest)))
        };
        let (left_out, forgotten): (Vec<&GuestFacts>, Vec<&GuestFacts>) =
            bare.partition(|guest| on_purpose(guest));
        let mut rows = Vec::new();
        for (title, guests) in [("excluded on purpose", left_out), ("in no job", forgotten)] {
            if !guests.is_empty() {
                rows.push(vec![title.to_owned(), names(guests.iter().map(|guest| guest.name.as_str()))]);
            }
        }
        section("domains without a backup", &rows)
    }

    /// What a job names on this host and that is not there, or not what it has to be.
    fn files(&self, job: &JobSpec) -> Vec<Error> {
        let Some(resolved) = self.config.job(&job.name) else { return Vec::new() };
        let mut wrong = Vec::new();
        let commands = job.before.iter().chain(job.after.iter().map(|(command, _)| command));
        wrong.extend(
            commands
                .filter_map(|command| command.words.first())
                .filter_map(|program| not_a_program(Path::new(program))),
        );
        if let Some(directory) = &resolved.settings.overlay_dir {
            wrong.extend(partial_file::expect_directory(directory.as_path()).err());
        }
        if let Some(file) = &resolved.settings.recipients {
            let path = file.as_path();
            wrong.extend(
                std::fs::File::open(path)
                    .at(|| format!("cannot read the recipients in '{}'", path.display()))
                    .err(),
            );
        }
        wrong
    }
}

/// Whether a medium can be used, and a directory is on the file system that it has to be on, as a backup
/// looks. It may hang: another process tries it.
fn try_medium(
    name: &str,
    medium: &Medium,
    terminating: &Terminating,
    catalog: Option<&Catalog>,
) -> Result<String, Error> {
    let location: Location = medium.to.as_str().parse()?;
    let destinations = terminating.one(&location, &IdentityArgs::default(), environment(medium)?);
    if let Some(path) = location.path() {
        let directory =
            CheckedDirectory { path, medium: Some(name), mounted: mount_check::requirement(medium) };
        agrees(&directory, catalog, &|_| destinations.mount(&location))?;
    }
    destinations.probe(&location, &host_identity::name()?)
}

fn not_a_program(path: &Path) -> Option<Error> {
    let shown = path.display();
    match std::fs::metadata(path).at(|| format!("the command '{shown}' does not exist")) {
        Err(error) => Some(error),
        Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => None,
        Ok(_) => Some(
            Error::new(ErrorKind::Usage, format!("'{shown}' is not executable"))
                .with_hint("make it executable: chmod +x"),
        ),
    }
}

fn selected(job: &JobSpec, guests: Option<&[GuestFacts]>) -> String {
    let Some(guests) = guests else { return "not known".to_owned() };
    let names = names(guests.iter().filter(|guest| job.pick.guest(guest)).map(|guest| guest.name.as_str()));
    if names.is_empty() { "none".to_owned() } else { names }
}

fn names<'n>(all: impl Iterator<Item = &'n str>) -> String {
    all.map(printable).collect::<Vec<_>>().join(", ")
}

fn next_runs(job: &JobSpec) -> Vec<String> {
    if !job.enabled {
        return Vec::new();
    }
    let mut at = Timestamp::now();
    let mut runs = Vec::new();
    while let Some(next) = job.next_after(at).filter(|next| *next > at && runs.len() < RUNS) {
        let word = if runs.is_empty() { "next run" } else { "then" };
        runs.push(format!("{word}: {}", time(next.as_second())));
        at = next;
    }
    if runs.is_empty() {
        let on = if job.on.is_empty() { String::new() } else { format!(", but on {}", job.on.join(", ")) };
        runs.push(format!("no schedule{on}"));
    }
    runs
}

fn section(title: &str, rows: &[Vec<String>]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    line(title)?;
    line(columns("  ", rows).trim_end())
}
