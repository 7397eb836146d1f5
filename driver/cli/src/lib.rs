//! The command line: one file per verb. A verb turns its arguments into a request, hands it to `backup`, and
//! prints what comes back; it decides nothing about data.
//!
//! `exit` is the one place that maps errors to exit codes, `report` the one that prints progress.

mod args;
mod audit;
mod backup;
mod backup_command;
mod catalog_fill;
mod config;
mod confine;
mod control;
mod destinations;
mod domain;
mod encryption;
mod exit;
mod forget;
mod free_space;
mod generate;
mod key;
mod list;
mod log;
mod map;
mod medium;
mod mount_check;
mod output;
mod pin;
mod prune;
mod report;
mod restore;
mod restore_domain;
mod serve;
mod show;
mod signals;
mod table;
mod tape;
mod trust;
mod verify;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::exit::ExitStatus;
use self::report::StdoutUse;
pub(crate) use self::signals::Signals;

/// Back up libvirt/QEMU guests and disk images by copying only their used blocks, and restore them.
#[derive(Debug, Parser)]
#[command(name = "virtfold", version, max_term_width = 100, after_help = exit::HELP)]
struct Cli {
    /// The process that this one is not to outlive (the service says it)
    #[arg(long, hide = true, value_name = "PID")]
    parent: Option<u32>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Backup(Box<backup::Args>),
    Restore(Box<restore::Args>),
    Verify(verify::Args),
    Audit(audit::Args),
    List(list::Args),
    Show(show::Args),
    Table(table::Args),
    Map(map::Args),
    Tape(Box<tape::Args>),
    Domains(domain::domains::Args),
    Recover(domain::recover::Args),
    Prune(Box<prune::Args>),
    Pin(pin::PinArgs),
    Unpin(pin::UnpinArgs),
    Forget(forget::Args),
    Status(control::status::Args),
    Queue(control::queue::Args),
    Run(control::run::Args),
    Pause(control::pause::PauseArgs),
    Resume(control::pause::ResumeArgs),
    Cancel(control::cancel::Args),
    Key(key::Args),
    Config(config::Args),
    Serve(Box<serve::Args>),
    #[command(hide = true)]
    Guard(domain::watchdog::Args),
    #[command(hide = true)]
    Medium(Box<medium::Args>),
    #[command(hide = true)]
    Generate(generate::Args),
}

/// Runs the command.
pub fn main() -> ExitCode {
    let matches = <Cli as clap::CommandFactory>::command().try_get_matches().unwrap_or_else(|e| misused(&e));
    let cli = <Cli as clap::FromArgMatches>::from_arg_matches(&matches).unwrap_or_else(|e| misused(&e));
    let events = wants_events(&matches).then(|| cli.verb.stdout_use());
    log::start(cli.verb.usual_log());
    raise_open_files();
    let signals = Signals::default();
    let caught = if cli.verb.is_long() { signals.install() } else { Ok(()) };
    let parent = cli.parent;
    let outcome =
        caught.and_then(|()| parent.map_or(Ok(()), serve::end_with)).and_then(|()| cli.verb.run(&signals));
    exit::report(outcome, signals.exit_code(), events)
}

/// Ends with what the parser of the command line says, help included. It repeats arguments as they are, and a
/// script may have them from others.
fn misused(error: &clap::Error) -> ! {
    let text = error.render().to_string();
    if text.chars().all(|c| c == '\n' || virtfold_base::printable::is_printable(c)) {
        error.exit();
    }
    output::say(text.trim_end());
    std::process::exit(error.exit_code())
}

/// Whether the verb has `--json`, and has it set.
fn wants_events(matches: &clap::ArgMatches) -> bool {
    let own = matches.try_get_one::<bool>("json").ok().flatten().copied().unwrap_or(false);
    own || matches.subcommand().is_some_and(|(_, matches)| wants_events(matches))
}

/// Lets this process have as many open files as it may: a guest with hundreds of disks has each of them open,
/// and its archives. The usual soft limit of 1024 is for programs that still use `select`.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::debug!(%error, "the limit of open files could not be raised");
    }
}

impl Verb {
    /// Whether it looks at the flags while it works; the others are ended by a signal as any program is.
    fn is_long(&self) -> bool {
        matches!(self, Self::Backup(_) | Self::Restore(_) | Self::Verify(_) | Self::Tape(_))
    }

    /// Whether its standard output carries an archive.
    fn stdout_use(&self) -> StdoutUse {
        match self {
            Self::Backup(args) => args.stdout_use(),
            _ => StdoutUse::Free,
        }
    }

    /// What is logged where nobody says otherwise: what runs for months says what it does.
    fn usual_log(&self) -> &'static str {
        if matches!(self, Self::Serve(_)) { "info" } else { "warn" }
    }

    fn run(self, signals: &Signals) -> Result<ExitStatus> {
        match self {
            Self::Backup(args) => backup::run(&args, signals),
            Self::Restore(args) => restore::run(*args, signals),
            Self::Verify(args) => verify::run(&args, signals),
            Self::Audit(args) => audit::run(&args),
            Self::List(args) => list::run(&args, signals),
            Self::Show(args) => show::run(&args, signals),
            Self::Table(args) => table::run(&args, signals),
            Self::Map(args) => map::run(&args),
            Self::Tape(args) => tape::run(&args, signals),
            Self::Domains(args) => domain::domains::run(&args),
            Self::Recover(args) => domain::recover::run(&args),
            Self::Prune(args) => prune::run(&args),
            Self::Pin(args) => pin::pin(&args),
            Self::Unpin(args) => pin::unpin(&args),
            Self::Forget(args) => forget::run(&args),
            Self::Status(args) => control::status::run(&args),
            Self::Queue(args) => control::queue::run(&args),
            Self::Run(args) => control::run::run(&args),
            Self::Pause(args) => control::pause::pause(&args),
            Self::Resume(args) => control::pause::resume(&args),
            Self::Cancel(args) => control::cancel::run(&args),
            Self::Key(args) => key::run(&args),
            Self::Config(args) => config::run(&args),
            Self::Serve(args) => serve::run(&args),
            Self::Guard(args) => domain::watchdog::run(&args),
            Self::Medium(args) => medium::run(&args, signals),
            Self::Generate(args) => generate::run(&args, <Cli as clap::CommandFactory>::command()),
        }
    }
}
