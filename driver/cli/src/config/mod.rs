//! `virtfold config`: the configuration, checked, shown, described.

mod host;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Subcommand;
use serde_json::json;
use virtfold_base::error::{Error, ErrorKind};
use virtfold_config::{Config, ConfigError, Trust, ValueOrigin};
use virtfold_medium::Location;

use self::host::HostCheck;
use super::domain::connection::{ConnectFlag, StateFlag};
use super::exit::ExitStatus;
use super::output::{line, say};
use super::report::{JsonFlag, OutputFormat, StdoutUse, printable, result};

/// Where the configuration is when nobody says otherwise.
const USUAL: &str = "/etc/virtfold/config.yaml";

/// Check, show and describe the configuration
///
/// The configuration is one file and the files `*.yaml` of the directory `conf.d` beside it. It holds the
/// defaults of backups, and what the service backs up, when and to where: virtfold.yaml(5).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  virtfold config check
  virtfold config check --host
  virtfold config show --config ./config.yaml
  virtfold config schema > virtfold.schema.json")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check it, with the credentials files that it names, and print what is wrong or has no effect
    #[command(after_help = "\
Examples:
  virtfold config check
  virtfold config check --host        before the first night")]
    Check {
        #[command(flatten)]
        config: ConfigFlag,
        /// Try it on this host, too: every medium, the jobs' domains and commands; and say when the jobs run
        /// next. Leaves nothing anywhere and moves no tape
        #[arg(long)]
        host: bool,
        #[command(flatten)]
        connect: ConnectFlag,
        #[command(flatten)]
        state: StateFlag,
    },
    /// Print every value in effect and where it is set
    Show {
        #[command(flatten)]
        config: ConfigFlag,
        #[command(flatten)]
        json: JsonFlag,
    },
    /// Print the JSON Schema of the configuration, for editors
    Schema,
}

/// The option that names the configuration file.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ConfigFlag {
    /// The configuration file [default: $VIRTFOLD_CONFIG, else /etc/virtfold/config.yaml where there is one]
    #[arg(long = "config", value_name = "FILE")]
    file: Option<PathBuf>,
}

impl ConfigFlag {
    /// Where it is: a file that was named, by option or environment, must be there.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        let named = self.file.clone().or_else(|| std::env::var_os("VIRTFOLD_CONFIG").map(PathBuf::from));
        named.or_else(|| Some(PathBuf::from(USUAL)).filter(|usual| usual.exists()))
    }

    /// The configuration in effect.
    ///
    /// # Errors
    /// Usage, with file, line and column, when it is wrong.
    pub(crate) fn load(&self) -> Result<Config, Error> {
        let Some(path) = self.path() else { return Ok(Config::default()) };
        let config = virtfold_config::load(&path).map_err(unusable)?;
        check_media(&config)?;
        Ok(config)
    }

    /// Whose archives are taken. An ordinary user whom root's configuration is not for has none of it.
    ///
    /// # Errors
    /// As of [`ConfigFlag::load`], but for the commands and recipients that it names: these verbs use none.
    pub(crate) fn trust(&self) -> Result<Trust, Error> {
        let Some(path) = self.path() else { return Ok(Trust::default()) };
        match virtfold_config::load_settings(&path) {
            Ok(config) => Ok(config.trust),
            Err(error) if path == Path::new(USUAL) && error.is_denied() => {
                tracing::info!("'{USUAL}' is not readable by this user; its 'trust' does not count");
                Ok(Trust::default())
            }
            Err(error) => Err(unusable(error)),
        }
    }
}

/// The addresses of media have a grammar of their own, which the configuration's crate knows the beginnings
/// of.
fn check_media(config: &Config) -> Result<(), Error> {
    for (name, medium) in &config.media {
        medium.to.as_str().parse::<Location>().map_err(|why| {
            let message = format!("{why}; {}", why.hint());
            unusable(config.refusal(&["media", name.as_str(), "to"], message))
        })?;
    }
    Ok(())
}

fn unusable(error: ConfigError) -> Error {
    Error::new(ErrorKind::Usage, "the configuration can't be used")
        .with_source(error)
        .with_hint("'virtfold config schema' lists the keys; 'virtfold config check' tries again")
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<ExitStatus> {
    match &args.what {
        ConfigCommand::Check { config, host, connect, state } => {
            let read = config.load()?;
            // What holds credentials is read when it is needed; here is the time to say that it can't be.
            for medium in read.media.values() {
                medium.environment().map_err(unusable)?;
            }
            match config.path() {
                Some(path) => line(&format!("{}: ok", path.display()))?,
                None => line("no configuration: all values are the defaults")?,
            }
            if *host {
                return HostCheck { config: &read, connect, state }.run();
            }
            for advice in read.advice(None) {
                say(&format!("virtfold: warning: {}", printable(&advice.to_string())));
            }
        }
        ConfigCommand::Show { config, json } => show(&config.load()?, OutputFormat::from_flag(json))?,
        ConfigCommand::Schema => {
            let schema = serde_json::to_string_pretty(&virtfold_config::schema());
            line(&schema.context("cannot write the schema")?)?;
        }
    }
    Ok(ExitStatus::Done)
}

fn show(config: &Config, style: OutputFormat) -> Result<()> {
    let values = config.show();
    let lines: Vec<String> = values.iter().map(ToString::to_string).collect();
    let values: Vec<serde_json::Value> = values
        .iter()
        .map(|shown| {
            let origin = match &shown.origin {
                ValueOrigin::Default => "default".to_owned(),
                ValueOrigin::File(place) => place.to_string(),
            };
            json!({"key": shown.key, "value": shown.value, "origin": origin})
        })
        .collect();
    result(style, StdoutUse::Free, &json!({ "values": values }), &lines.join("\n"))
}
