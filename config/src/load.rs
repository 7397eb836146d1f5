//! Files to configuration: which files there are, in what order, and which are refused.
//!
//! `config.yaml` comes first, then the files `conf.d/*.yaml` beside it, by name (byte order). Files that
//! begin with a dot (editors' own) and files of other endings are left alone, save `.yml`, which is more
//! likely a slip than a wish.
//!
//! Whoever may write one of them decides what virtfold does as root. So each, `conf.d` and each directory
//! above belong to root or the user who runs this, and nobody else may write to them ([`trust`]); what is
//! read is the very file that was checked. The same holds for the files of recipients that the configuration
//! names, and as root for its commands.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use crate::check;
use crate::error::ConfigError;
use crate::keys::{Config, Origins};
use crate::position::Position;
use crate::values::NonEmptyText;
use crate::yaml_node::{YamlEntry, YamlNode};
use crate::yaml_tree;
use std::collections::BTreeMap;
use virtfold_base::safe_path::Directory;
use virtfold_base::safe_path::trust::{self, OthersAccess, Untrusted};

/// The largest file, bytes.
pub const MAX_FILE: u64 = 1 << 20;
/// The most entries that `conf.d` may have.
pub const MAX_FILES: usize = 1000;

/// Reads the configuration at `path` (usually `/etc/virtfold/config.yaml`) and in `conf.d` beside it.
///
/// # Errors
/// The first thing that is wrong; see [`ConfigError`].
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let config = load_settings(path)?;
    expect_trusted_names(&config)?;
    Ok(config)
}

/// As [`load`], for who runs no command of it and encrypts to nobody: a hook that others can write is no
/// reason not to restore.
///
/// # Errors
/// As there, but for the files that it names.
pub fn load_settings(path: &Path) -> Result<Config, ConfigError> {
    let mut texts = vec![(Arc::from(path), read(path, trust::open(path, OthersAccess::MayRead))?)];
    let folder = path.with_file_name("conf.d");
    if let Some((directory, names)) = conf_d(&folder)? {
        for name in names {
            let path = folder.join(&name);
            let text = read(&path, directory.open_trusted(&name, OthersAccess::MayRead))?;
            texts.push((Arc::from(path), text));
        }
    }
    build(&texts)
}

/// Refuses files of recipients that others may write, and as root commands that others may. What is not there
/// others can't put there: that is told when it is needed.
fn expect_trusted_names(config: &Config) -> Result<(), ConfigError> {
    let check = |keys: &[&str], path: &Path| match trust::expect(path) {
        Err(error) => match Untrusted::of(&error) {
            Some(untrusted) => Err(config.refusal(keys, untrusted.to_string())),
            None => Ok(()),
        },
        Ok(()) => Ok(()),
    };
    let is_root = trust::is_root();
    if let Some(file) = &config.defaults.recipients {
        check(&["defaults", "recipients"], file.as_path())?;
    }
    for (name, job) in &config.jobs {
        let section = ["jobs", name.as_str()];
        if let Some(file) = &job.recipients {
            check(&[&section[..], &["recipients"]].concat(), file.as_path())?;
        }
        let before = job.before.as_ref().map(|before| ("before", &before.command));
        let after = job.after.as_ref().map(|after| ("after", &after.command));
        for (key, command) in before.into_iter().chain(after).filter(|_| is_root) {
            let keys = [&section[..], &[key, "command"]].concat();
            command.as_slice().first().map_or(Ok(()), |program| check(&keys, Path::new(program)))?;
        }
    }
    for (name, medium) in config.media.iter().filter(|_| is_root) {
        let keys = ["media", name.as_str(), "change-command"];
        let command = medium.change_command.as_ref().map(NonEmptyText::as_str);
        match command.and_then(|command| command.split_whitespace().next()) {
            Some(program) if program.starts_with('/') => check(&keys, Path::new(program))?,
            Some(program) => {
                let why = format!("'{program}' is not the absolute path of a program, and is run as root");
                return Err(config.refusal(&keys, why));
            }
            None => {}
        }
    }
    Ok(())
}

/// Reads a configuration that is one text; `name` stands for its file in errors.
///
/// # Errors
/// The first thing that is wrong; see [`ConfigError`].
pub fn parse(text: &str, name: &Path) -> Result<Config, ConfigError> {
    build(&[(Arc::from(name), text.to_owned())])
}

fn build(texts: &[(Arc<Path>, String)]) -> Result<Config, ConfigError> {
    let mut root = BTreeMap::new();
    for (file, text) in texts {
        match yaml_tree::read(text, file)? {
            YamlNode::Map(children) => yaml_tree::unite(&mut root, children, &mut Vec::new())?,
            YamlNode::Null => {}
            _ => {
                let message = "a configuration is a section of keys, such as `version: 1`".to_owned();
                return Err(ConfigError::BadValue {
                    place: start(file),
                    key: String::new(),
                    message,
                    meant: None,
                });
            }
        }
    }
    let whole = || texts.first().map_or_else(|| start(&Arc::from(Path::new(""))), |(file, _)| start(file));
    // A later version may have other keys: say that first.
    if let Some(version) = root.get("version") {
        let only = BTreeMap::from([("version".to_owned(), version.clone())]);
        Config::deserialize(YamlNode::Map(only)).map_err(|fault| fault.finish(whole()))?;
    }
    let mut origins = Origins::new();
    collect_origins(&root, &mut Vec::new(), &mut origins);
    let mut config = Config::deserialize(YamlNode::Map(root)).map_err(|fault| fault.finish(whole()))?;
    config.origins = origins;
    check::check(&config)?;
    Ok(config)
}

fn start(file: &Arc<Path>) -> Position {
    Position { file: Arc::clone(file), line: 1, column: 1 }
}

fn collect_origins(children: &BTreeMap<String, YamlEntry>, path: &mut Vec<String>, out: &mut Origins) {
    for (key, child) in children {
        path.push(key.clone());
        out.insert(path.clone(), child.place.clone());
        if let YamlNode::Map(inner) = &child.value {
            collect_origins(inner, path, out);
        }
        path.pop();
    }
}

/// `conf.d` and the names of its files, in order; nothing where there is no such directory.
fn conf_d(path: &Path) -> Result<Option<(Directory, Vec<OsString>)>, ConfigError> {
    let directory = match Directory::open_trusted_directory(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|error| unreadable(path, error))?,
    };
    let all = directory.names(MAX_FILES).map_err(|error| unreadable(path, error))?;
    if all.len() > MAX_FILES {
        return Err(refused(path, format!("has more than {MAX_FILES} entries")));
    }
    let mut names = Vec::new();
    for name in all.into_iter().filter(|name| !name.as_encoded_bytes().starts_with(b".")) {
        match Path::new(&name).extension().map(|ending| ending.as_encoded_bytes()) {
            Some(b"yaml") => names.push(name),
            Some(b"yml") => {
                let why = "would be passed over; rename it to end in .yaml".to_owned();
                return Err(refused(&path.join(name), why));
            }
            _ => {}
        }
    }
    names.sort();
    Ok(Some((directory, names)))
}

/// Reads an opened file of bounded size, as UTF-8.
pub(crate) fn read(path: &Path, opened: io::Result<File>) -> Result<String, ConfigError> {
    let file = opened.map_err(|error| unreadable(path, error))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| unreadable(path, error))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(refused(path, "is larger than 1 MiB".to_owned()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes().iter().take(good).filter(|byte| **byte == b'\n').count() + 1;
        refused(path, format!("is not UTF-8 text: see line {line}"))
    })
}

fn unreadable(path: &Path, source: io::Error) -> ConfigError {
    match Untrusted::of(&source) {
        Some(Untrusted { path, why }) => refused(path, why.clone()),
        None => ConfigError::Unreadable { path: path.to_owned(), source },
    }
}

pub(crate) fn refused(path: &Path, why: String) -> ConfigError {
    ConfigError::Refused { path: path.to_owned(), why }
}
