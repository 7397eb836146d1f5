//! Values that several verbs take, read as people write them.

use std::path::PathBuf;

use virtfold::archive::stream::Compression;
use virtfold::image::Format;
use virtfold::medium::RateLimit;
use virtfold::units::{BlockSize, parse_size};

/// `none`, `zstd` or `zstd:LEVEL`.
pub(crate) fn compression(text: &str) -> Result<Compression, String> {
    const DEFAULT_LEVEL: i32 = 1;
    match text.split_once(':') {
        None if text == "none" => Ok(Compression::None),
        None if text == "zstd" => Ok(Compression::Zstd { level: DEFAULT_LEVEL }),
        Some(("zstd", level)) => match level.parse() {
            Ok(level @ 1..=19) => Ok(Compression::Zstd { level }),
            _ => Err(format!("'{level}' is not a zstd level; write 1 (fast) to 19 (small)")),
        },
        _ => Err("write none, zstd or zstd:LEVEL".to_owned()),
    }
}

/// A power of two from 4 KiB to 2 MiB.
pub(crate) fn block_size(text: &str) -> Result<BlockSize, String> {
    let bytes = parse_size(text)?;
    BlockSize::new(bytes).ok_or_else(|| "a block size is a power of two from 4KiB to 2MiB".to_owned())
}

/// Bytes a second.
pub(crate) fn rate(text: &str) -> Result<RateLimit, String> {
    RateLimit::new(parse_size(text)?).ok_or_else(|| "a rate of zero would never end".to_owned())
}

/// `raw` or `qcow2`.
pub(crate) fn format(text: &str) -> Result<Format, String> {
    text.parse().map_err(|_| format!("'{text}' is not a format that virtfold knows; write raw or qcow2"))
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

/// A number of worker threads.
pub(crate) fn workers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(workers @ 1..=256) => Ok(workers),
        _ => Err("write a number of threads from 1 to 256".to_owned()),
    }
}

/// A core each, where the caller does not say.
pub(crate) fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZeroUsize::get).min(256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_levels_are_bounded() {
        assert_eq!(compression("none"), Ok(Compression::None));
        assert_eq!(compression("zstd"), Ok(Compression::Zstd { level: 1 }));
        assert_eq!(compression("zstd:19"), Ok(Compression::Zstd { level: 19 }));
        for bad in ["zstd:0", "zstd:20", "zstd:", "gzip", "none:1"] {
            assert!(compression(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn disks_are_named_targets() {
        assert_eq!(disk("vda=/a=b"), Ok(("vda".to_owned(), PathBuf::from("/a=b"))));
        assert!(disk("vda").is_err() && disk("=x").is_err() && disk("vda=").is_err());
    }
}
