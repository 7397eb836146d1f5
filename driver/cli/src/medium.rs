//! `virtfold medium`: the process that writes to a medium, which its driver can abandon. Hidden: the driver
//! starts it. Standard input is the socket to the driver; nothing here reads or closes it before the medium
//! does.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::Arc;

use anyhow::Result;
use virtfold_archive::stream::Cancel;
use virtfold_base::error::{Error, ErrorKind};
use virtfold_catalog::destination_name;
use virtfold_medium::process::{
    self, MediumRequest, ProbeReply, ProcessDestination, ServeOutcome, TerminatingProcesses,
};
use virtfold_medium::{self as medium, ArchiveLabel, Location, PartialArchive, Resumed, mount_point};

use super::args;
use super::domain::connection::StateFlag;
use super::exit::ExitStatus;
use super::mounted::Expected;
use super::output::say;
use super::report::printable;
use super::signals::Signals;
use super::tape::options::WriteArgs;

/// Write to a medium what the driver says (started by virtfold itself)
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The place; nothing where only what was left is to be taken away
    #[arg(long, value_name = "PLACE", value_parser = args::location())]
    to: Option<Location>,
    #[command(flatten)]
    tape: WriteArgs,
    #[command(flatten)]
    state: StateFlag,
    #[command(flatten)]
    expected: Expected,
}

/// Runs the verb.
pub(crate) fn run(args: &Args, signals: &Signals) -> Result<ExitStatus> {
    signals.take_as_wishes()?;
    process::serve(|request| args.open(request, &signals.stop))?;
    Ok(ExitStatus::Done)
}

/// How this program starts the process of a place; see `guard` for `/proc/self/exe`.
pub(super) fn program(place: &Location, more: &[OsString]) -> Command {
    let mut command = Command::new("/proc/self/exe");
    // With `=`: a directory's name may begin with a hyphen.
    let mut to = OsString::from("--to=");
    to.push(place.argument());
    command.arg("medium").arg(to).args(more);
    command
}

/// Has another process take away what a dead one has left.
///
/// # Errors
/// The medium does not answer.
pub(super) fn discard(remains: &PartialArchive) -> Result<(), Error> {
    let Some((temporary, _)) = &remains.file else { return Ok(()) };
    let mut command = Command::new("/proc/self/exe");
    command.arg("medium");
    let (location, leaving) = (Location::Path(temporary.clone()), TerminatingProcesses::default());
    let place =
        ProcessDestination { command, location: &location, cancel: &Cancel::default(), leaving: &leaving };
    let done = process::ask(place, &MediumRequest::Discard(remains.clone()));
    part(&leaving);
    done.map(drop)
}

/// Waits for the processes of media to end, and says which could not be ended.
pub(super) fn part(leaving: &TerminatingProcesses) {
    for left in leaving.wait() {
        let what = left.subject.map_or_else(|| "it".to_owned(), |name| format!("the copy of '{name}'"));
        say(&format!(
            "virtfold: '{}' does not answer: {} was abandoned; process {} hangs in the kernel until it does",
            printable(&left.place),
            printable(&what),
            left.pid
        ));
    }
}

impl Args {
    fn open(&self, request: MediumRequest, cancel: &Cancel) -> Result<ServeOutcome, Error> {
        if let MediumRequest::Discard(remains) = request {
            return medium::discard(&remains).map(|()| ServeOutcome::Known(ProbeReply::Done));
        }
        let nowhere = || Error::new(ErrorKind::Usage, "--to says where the archive goes");
        let place = self.to.as_ref().ok_or_else(nowhere)?;
        if let Some(path) = place.path() {
            // The driver looked before it froze anything: what was mounted then may be gone.
            self.expected.check(path)?;
        }
        match request {
            MediumRequest::Create(label) => self.create(place, &label, cancel),
            MediumRequest::Reopen(label, remains) => self.reopen(place, (&label, &remains), cancel),
            MediumRequest::Look => {
                let found = place.path().and_then(|directory| directory.metadata().ok());
                Ok(ServeOutcome::Known(ProbeReply::Device(found.map(|found| found.dev()))))
            }
            MediumRequest::Mount => {
                let found = place.path().map(mount_point::of).transpose()?.flatten();
                Ok(ServeOutcome::Known(ProbeReply::Mount(found)))
            }
            MediumRequest::Name => {
                destination_name(place).map(|name| ServeOutcome::Known(ProbeReply::Name(name)))
            }
            MediumRequest::ReadBack(remains) => Ok(match remains.opened() {
                Some(file) => ServeOutcome::Left(file, remains.synced),
                None => ServeOutcome::Gone("its file is not there as it was left".to_owned()),
            }),
            MediumRequest::Discard(_) => Ok(ServeOutcome::Known(ProbeReply::Done)),
        }
    }

    fn create(&self, place: &Location, label: &ArchiveLabel, cancel: &Cancel) -> Result<ServeOutcome, Error> {
        let Location::Tape(address) = place else {
            return Ok(ServeOutcome::New(medium::create(place, label, cancel)?, None));
        };
        let tape = self.tape.drive(address, self.state.path()?, cancel)?.begin(&label.name, cancel)?;
        let report = tape.report();
        Ok(ServeOutcome::New(Box::new(tape), Some(report)))
    }

    fn reopen(
        &self,
        place: &Location,
        (label, remains): (&ArchiveLabel, &PartialArchive),
        cancel: &Cancel,
    ) -> Result<ServeOutcome, Error> {
        let Location::Tape(address) = place else {
            return Ok(match medium::reopen(place, label, cancel, remains)? {
                Resumed::From(medium, at) => ServeOutcome::At(medium, at, None),
                Resumed::NotPossible(why) => ServeOutcome::Gone(why),
            });
        };
        let drive = self.tape.drive(address, self.state.path()?, cancel)?;
        Ok(match drive.go_on_with(&label.name, cancel)? {
            Ok((tape, at)) => {
                let report = Arc::clone(&tape.report());
                ServeOutcome::At(Box::new(tape), at, Some(report))
            }
            Err(why) => ServeOutcome::Gone(why),
        })
    }
}
