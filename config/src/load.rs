//! Files to configuration: which files there are, in what order, and which are refused.
//!
//! `config.yaml` comes first, then the files `conf.d/*.yaml` beside it, by name (byte order). Files that
//! begin with a dot (editors' own) and files of other endings are left alone, save `.yml`, which is more
//! likely a slip than a wish. A file, or `conf.d` itself, that everybody may write is refused: whoever may
//! write it decides what virtfold does as root. The mode is taken from the open file, so that it can't be
//! changed in between.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::check;
use crate::error::{ConfigError, Position};
use crate::keys::{Config, Origins};
use crate::yaml_tree::{self, YamlEntry, YamlNode};
use std::collections::BTreeMap;

/// The largest file, bytes.
pub const MAX_FILE: u64 = 1 << 20;
/// The most entries that `conf.d` may have.
pub const MAX_FILES: usize = 1000;

/// Reads the configuration at `path` (usually `/etc/virtfold/config.yaml`) and in `conf.d` beside it.
///
/// # Errors
/// The first thing that is wrong; see [`ConfigError`].
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let mut texts = vec![(Arc::from(path), read_file(path, OthersAccess::MayRead)?)];
    for extra in conf_d(&path.with_file_name("conf.d"))? {
        let text = read_file(&extra, OthersAccess::MayRead)?;
        texts.push((Arc::from(extra), text));
    }
    build(&texts)
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

/// The files of `conf.d` by name; none where there is no such directory.
fn conf_d(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: dir.to_owned(), source };
    match fs::metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
        Ok(metadata) => check_mode(dir, &metadata, OthersAccess::MayRead)?,
    }
    let mut files = Vec::new();
    for (count, entry) in fs::read_dir(dir).map_err(unreadable)?.enumerate() {
        if count == MAX_FILES {
            return Err(refused(dir, format!("has more than {MAX_FILES} entries")));
        }
        let path = entry.map_err(unreadable)?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let ending = path.extension().map(|ending| ending.as_encoded_bytes());
        match ending {
            Some(b"yaml") if !hidden => files.push(path),
            Some(b"yml") if !hidden => {
                return Err(refused(&path, "would be passed over; rename it to end in .yaml".to_owned()));
            }
            _ => {}
        }
    }
    files.sort();
    Ok(files)
}

/// What others than owner and group may do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OthersAccess {
    /// Read it.
    MayRead,
    /// Nothing: it holds secrets.
    Nothing,
}

/// Reads a regular file of bounded size, as UTF-8.
pub(crate) fn read_file(path: &Path, others: OthersAccess) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    // Opening a pipe would wait for its writer, so the kind is looked at first, and again when open.
    check_kind(path, &fs::metadata(path).map_err(unreadable)?)?;
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    check_kind(path, &metadata)?;
    check_mode(path, &metadata, others)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(refused(path, "is larger than 1 MiB".to_owned()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes().iter().take(good).filter(|byte| **byte == b'\n').count() + 1;
        refused(path, format!("is not UTF-8 text: see line {line}"))
    })
}

fn check_kind(path: &Path, metadata: &Metadata) -> Result<(), ConfigError> {
    if metadata.is_file() { Ok(()) } else { Err(refused(path, "is not a regular file".to_owned())) }
}

fn check_mode(path: &Path, metadata: &Metadata, others: OthersAccess) -> Result<(), ConfigError> {
    let file = path.display();
    if others == OthersAccess::Nothing && metadata.mode() & 0o007 != 0 {
        return Err(refused(
            path,
            format!("may be read or written by everybody, and holds secrets; do 'chmod o= {file}'"),
        ));
    }
    if metadata.mode() & 0o002 != 0 {
        return Err(refused(path, format!("may be written by everybody; do 'chmod o-w {file}'")));
    }
    Ok(())
}

pub(crate) fn refused(path: &Path, why: String) -> ConfigError {
    ConfigError::Refused { path: path.to_owned(), why }
}
