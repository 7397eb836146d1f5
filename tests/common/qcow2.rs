//! Random options of a qcow2 image, within what QEMU takes together.

use super::image::Image;
use super::rng::Rng;
use super::{KIB, MIB};

/// The options given to `qemu-img create -o`.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) compat: &'static str,
    pub(crate) cluster_size: u64,
    pub(crate) extended_l2: bool,
    pub(crate) compression_type: &'static str,
    pub(crate) lazy_refcounts: bool,
    pub(crate) refcount_bits: u64,
    pub(crate) data_file: bool,
    pub(crate) data_file_raw: bool,
    pub(crate) preallocation: &'static str,
}

impl Options {
    /// Options for an image of `size` bytes over the backing file `below`.
    pub(crate) fn random(rng: &mut Rng, below: Option<&Image>, size: u64) -> Self {
        let backed = below.is_some();
        let huge = size > 256 * MIB;
        let smallest = if huge { 16 } else { 9 };
        let cluster_size = if rng.chance(25) { 64 * KIB } else { 1 << rng.within(smallest, 21) };
        let old = rng.chance(15);
        let extended_l2 = !old && cluster_size >= 16 * KIB && rng.chance(35);
        let data_file = !old && rng.chance(12);
        let data_file_raw = data_file && !backed && rng.chance(50);
        let may_preallocate = !huge && (!backed || extended_l2);
        let preallocation = match rng.below(100) {
            0..20 if may_preallocate => "metadata",
            20..26 if may_preallocate && !backed => "falloc",
            26..30 if may_preallocate && !backed => "full",
            _ => "off",
        };
        Self {
            compat: if old { "0.10" } else { "1.1" },
            cluster_size,
            extended_l2,
            compression_type: if !old && rng.chance(50) { "zstd" } else { "zlib" },
            lazy_refcounts: !old && rng.chance(30),
            refcount_bits: if !old && rng.chance(50) { 1 << rng.below(7) } else { 16 },
            data_file,
            data_file_raw,
            preallocation,
        }
    }

    /// For `-o`; the data file lies beside the image `path`.
    pub(crate) fn to_text(&self, path: &str) -> String {
        let switch = |on| if on { "on" } else { "off" };
        let mut text = format!("compat={},cluster_size={}", self.compat, self.cluster_size);
        if self.is_v3() {
            text += &format!(
                ",extended_l2={},compression_type={},lazy_refcounts={},refcount_bits={}",
                switch(self.extended_l2),
                self.compression_type,
                switch(self.lazy_refcounts),
                self.refcount_bits
            );
        }
        if self.data_file {
            text += &format!(",data_file={path}.data,data_file_raw={}", switch(self.data_file_raw));
        }
        if self.preallocation != "off" {
            text += &format!(",preallocation={}", self.preallocation);
        }
        text
    }

    /// Whether it is version 3 of the format.
    pub(crate) fn is_v3(&self) -> bool {
        self.compat == "1.1"
    }

    /// Whether QEMU can surely take an internal snapshot: twice the refcount of a host cluster full of
    /// compressed ones must fit, and there is no data file.
    pub(crate) fn takes_snapshots(&self) -> bool {
        self.refcount_bits >= 16 && !self.data_file
    }
}
