//! Values that several verbs take, read as people write them. The grammar of sizes, rates, levels and thread
//! counts is the configuration file's (`virtfold_config`), so that both are one.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use virtfold_backup::options::{ChangeDetection, QuiesceMode};
use virtfold_base::error::{Error, ErrorKind};
use virtfold_image::Format;
use virtfold_medium::Location;

/// `raw` or `qcow2`.
pub(crate) fn format(text: &str) -> Result<Format, String> {
    text.parse()
}

/// `on` or `off`.
pub(crate) fn detect_zeroes(text: &str) -> Result<virtfold_config::DetectZeroes, String> {
    match text {
        "on" => Ok(virtfold_config::DetectZeroes::On),
        "off" => Ok(virtfold_config::DetectZeroes::Off),
        _ => Err("write on or off".to_owned()),
    }
}

/// `auto`, `yes` or `no`.
pub(crate) fn quiesce(text: &str) -> Result<QuiesceMode, String> {
    match text {
        "auto" => Ok(QuiesceMode::Auto),
        "yes" => Ok(QuiesceMode::Yes),
        "no" => Ok(QuiesceMode::No),
        _ => Err("write auto, yes or no".to_owned()),
    }
}

/// `auto` or `compare`.
pub(crate) fn changes(text: &str) -> Result<ChangeDetection, String> {
    match text {
        "auto" => Ok(ChangeDetection::Auto),
        "compare" => Ok(ChangeDetection::Compare),
        _ => Err("write auto or compare".to_owned()),
    }
}

/// A place for archives, or an archive.
pub(crate) fn location() -> impl TypedValueParser<Value = Location> {
    OsStringValueParser::new()
        .try_map(|text| Location::try_from(text).map_err(|why| format!("{why}; {}", why.hint())))
}

/// `TARGET=PATH`, for example `vda=/srv/vm/disk.qcow2`.
pub(crate) fn disk(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((target, path)) if !target.is_empty() && !path.is_empty() => {
            Ok((target.to_owned(), PathBuf::from(path)))
        }
        _ => Err("write TARGET=PATH, for example vda=/srv/vm/disk.qcow2".to_owned()),
    }
}

/// The number of worker threads: as given, or a core each.
pub(crate) fn workers(given: Option<virtfold_config::Workers>) -> usize {
    const MOST: usize = 256;
    let cores = || std::thread::available_parallelism().map_or(2, std::num::NonZeroUsize::get).min(MOST);
    given.map_or_else(cores, virtfold_config::Workers::get)
}

/// The error of a value that the configuration's grammar allows and the library does not: a defect.
pub(crate) fn mismatch(what: &str) -> Error {
    Error::new(ErrorKind::Internal, format!("the configuration's {what} is out of range for a backup"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_named_targets() {
        assert_eq!(disk("vda=/a=b"), Ok(("vda".to_owned(), PathBuf::from("/a=b"))));
        assert!(disk("vda").is_err() && disk("=x").is_err() && disk("vda=").is_err());
    }
}
