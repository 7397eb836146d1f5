//! What an image is, for the manifest: enough to make one like it.
//!
//! Imports: `format`.

use serde::{Deserialize, Serialize};

use super::format::Format;

/// The image as its headers describe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// The top image's format.
    pub format: Format,
    /// The top image's options, where it is qcow2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qcow2: Option<Qcow2Options>,
    /// The chain, top image first.
    pub chain: Vec<ChainImage>,
    /// What a person should know: the dirty and corrupt marks, missing locks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One image of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainImage {
    /// The path it was opened by; bytes that are not UTF-8 are replaced.
    pub path: String,
    /// Its format.
    pub format: Format,
}

/// How the compressed clusters of a qcow2 image are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CompressionType {
    /// Raw deflate streams.
    Zlib,
    /// Zstandard frames.
    Zstd,
}

/// The options of a qcow2 image that a restore can give its new image too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qcow2Options {
    /// `0.10` (version 2) or `1.1` (version 3), as `qemu-img create -o compat=` takes it.
    pub compat: String,
    /// Bytes in a cluster, 512 to 2 MiB.
    pub cluster_size: u64,
    /// Whether clusters have subclusters.
    pub extended_l2: bool,
    /// How clusters are compressed.
    pub compression_type: CompressionType,
    /// Whether refcount updates are put off.
    pub lazy_refcounts: bool,
    /// Width of a refcount, 1 to 64 bits.
    pub refcount_bits: u32,
    /// The external data file, as the header names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_file: Option<String>,
    /// Whether the external data file is a raw image by itself.
    #[serde(default)]
    pub data_file_raw: bool,
}
