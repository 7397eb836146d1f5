//! `virtfold key`: the key that this host signs archives with, and the hosts that it trusts.

use std::fs::{self, DirBuilder};
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;
use virtfold_archive::sign::{AllowedSigners, PublicKey, SigningKey};
use virtfold_backup::host_identity;
use virtfold_base::error::{Error, ErrorKind, IoContext};
use virtfold_base::partial_file::Overwrite;
use virtfold_config::Trust;

use super::config::ConfigFlag;
use super::exit::ExitStatus;
use super::report::{JsonFlag, OutputFormat, StdoutUse, printable, result};
use super::trust;

/// The longest list of keys that is read from standard input, bytes.
const MAX_INPUT: u64 = 1 << 20;

/// Show, make and trust the keys that archives are signed with
///
/// A host signs each archive with its key, so that 'verify', 'restore' and 'audit' tell its archives from
/// those of others. Whoever reads them needs public keys alone: print this host's with 'key show', and have
/// other hosts trust it with 'key trust'.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold key show
  virtfold key new
  ssh web virtfold key show | virtfold key trust -")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Print this host's public key, as a line for the hosts that are to trust it
    #[command(after_help = "\
Examples:
  virtfold key show
  virtfold key show >> allowed_signers        for 'ssh-keygen -Y verify'")]
    Show {
        #[command(flatten)]
        config: ConfigFlag,
        #[command(flatten)]
        json: JsonFlag,
    },
    /// Make this host's key, where it has none
    #[command(after_help = "\
Examples:
  virtfold key new
  virtfold key new --host web.example.org
  virtfold key new --force        keeps the old key aside")]
    New {
        /// The name that this host signs by [default: its host name]
        #[arg(long, value_name = "NAME")]
        host: Option<String>,
        /// Make a new one though there is one; that one is kept aside, and whoever trusts it must trust the
        /// new one, too
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        config: ConfigFlag,
        #[command(flatten)]
        json: JsonFlag,
    },
    /// Trust another host's public key
    #[command(after_help = "\
Examples:
  ssh web virtfold key show | virtfold key trust -
  virtfold key trust web.pub
  virtfold key trust 'web namespaces=\"virtfold-archive\" ssh-ed25519 AAAA...'")]
    Trust {
        /// A file with lines of 'key show', - for standard input, or such a line
        #[arg(value_name = "FILE|-|LINE")]
        keys: String,
        #[command(flatten)]
        config: ConfigFlag,
        #[command(flatten)]
        json: JsonFlag,
    },
}

/// A key, as it is shown.
#[derive(Serialize)]
struct Shown {
    host: String,
    fingerprint: String,
    /// The line for the hosts that are to trust it.
    line: String,
    /// The file with the private key.
    file: PathBuf,
    /// Where the key is that it takes the place of.
    #[serde(skip_serializing_if = "Option::is_none")]
    old: Option<PathBuf>,
}

impl Shown {
    fn of(host: &str, key: &PublicKey, file: PathBuf) -> Result<Self, Error> {
        let line = AllowedSigners::line(host, key)?;
        Ok(Self { host: host.to_owned(), fingerprint: key.fingerprint(), line, file, old: None })
    }

    /// A list of allowed signers: what is no key in it is a comment.
    fn text(&self) -> String {
        format!("# {} of {}\n{}", self.fingerprint, self.host, self.line)
    }
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitStatus> {
    match &args.what {
        KeyCommand::Show { config, json } => show(&config.trust()?, OutputFormat::from_flag(json)),
        KeyCommand::New { host, force, config, json } => {
            let trust = config.trust()?;
            let existing = if *force { Overwrite::Replace } else { Overwrite::Refuse };
            let made = new(&trust, host.as_deref(), existing)?;
            let mut text = format!("made '{}'\n{}", made.file.display(), made.text());
            if let Some(old) = &made.old {
                text += &format!(
                    "\nthe old key is '{}': the hosts that trust it must be told the new one ('virtfold key trust'); for archives that \
                     are signed with the old one, this host, too, trusts it only by a line of its own",
                    old.display()
                );
            }
            result(OutputFormat::from_flag(json), StdoutUse::Free, &made, &text)?;
            Ok(ExitStatus::Done)
        }
        KeyCommand::Trust { keys, config, json } => {
            trust_keys(keys, &config.trust()?, OutputFormat::from_flag(json))
        }
    }
}

fn show(trust: &Trust, style: OutputFormat) -> Result<ExitStatus> {
    let path = trust::key_path(trust)?;
    let (host, key) = PublicKey::load_beside(&path)?.ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("this host has no key: '{}.pub' is not there", path.display()),
        )
        .with_hint("'virtfold key new' makes one")
    })?;
    let shown = Shown::of(&host, &key, path)?;
    result(style, StdoutUse::Free, &shown, &shown.text())?;
    Ok(ExitStatus::Done)
}

fn new(trust: &Trust, host: Option<&str>, existing: Overwrite) -> Result<Shown, Error> {
    let path = trust::key_path(trust)?;
    let name = host.map_or_else(host_identity::name, |host| Ok(host.to_owned()))?;
    let key = SigningKey::new(&name)
        .map_err(|e| if host.is_none() { e.with_hint("--host NAME names this host") } else { e })?;
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        let making = || format!("cannot make '{}'", directory.display());
        DirBuilder::new().recursive(true).mode(0o755).create(directory).at(making)?;
    }
    let there = path.symlink_metadata().is_ok();
    let old = (existing == Overwrite::Replace && there).then(|| put_aside(&path)).transpose()?;
    key.save(&path)?;
    Ok(Shown { old, ..Shown::of(key.host(), &key.public(), path)? })
}

/// Moves a key aside, under the time at which that is done.
fn put_aside(path: &Path) -> Result<PathBuf, Error> {
    let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    SigningKey::move_aside(path, &format!("old-{time}"))
}

/// What came of trusting keys.
#[derive(Serialize)]
struct Trusted {
    file: PathBuf,
    added: usize,
    keys: Vec<TrustedKey>,
}

#[derive(Serialize)]
struct TrustedKey {
    host: String,
    fingerprint: String,
}

fn trust_keys(given: &str, trust: &Trust, style: OutputFormat) -> Result<ExitStatus> {
    let (name, text) = read(given)?;
    let new = AllowedSigners::parse(&name, &text)?;
    if new.is_empty() {
        let what = format!("no key of a host in '{}'", printable(&name));
        return Err(Error::new(ErrorKind::Usage, what)
            .with_hint("'virtfold key show' on that host prints what is to be there")
            .into());
    }
    let file = trust::signers_path(trust)?;
    let added = AllowedSigners::add_to(&file, &new)?;
    let keys =
        new.iter().map(|(host, key)| TrustedKey { host: host.to_owned(), fingerprint: key.fingerprint() });
    let trusted = Trusted { file, added, keys: keys.collect() };
    let mut text = String::new();
    for TrustedKey { host, fingerprint } in &trusted.keys {
        text += &format!("{host} {fingerprint}\n");
    }
    text += &format!("{added} added to '{}'", trusted.file.display());
    result(style, StdoutUse::Free, &trusted, &text)?;
    Ok(ExitStatus::Done)
}

/// What is to be trusted, and what messages call it.
fn read(given: &str) -> Result<(String, String), Error> {
    if given.contains(' ') && given.contains("ssh-") {
        return Ok(("the command line".to_owned(), given.to_owned()));
    }
    let cannot = || format!("cannot read '{given}'");
    let mut text = String::new();
    let read = match given {
        "-" => std::io::stdin().lock().take(MAX_INPUT + 1).read_to_string(&mut text),
        _ => fs::File::open(given).and_then(|file| file.take(MAX_INPUT + 1).read_to_string(&mut text)),
    };
    read.at(cannot)?;
    let name = if given == "-" { "standard input" } else { given };
    Ok((name.to_owned(), text))
}
