//! What the black-box tests share: a seeded source of chance, commands that tell everything when they fail,
//! scratch folders and mounts that clean up after themselves, and a maker of random disk images.
//!
//! Nothing here links the library: the tests see virtfold as a user does, and `qemu-img` is the judge.

#![allow(dead_code, reason = "each test program uses a part of this")]

pub(crate) mod archive;
pub(crate) mod disk;
pub(crate) mod image;
pub(crate) mod machine;
pub(crate) mod map;
pub(crate) mod mount;
pub(crate) mod qcow2;
pub(crate) mod rng;
pub(crate) mod run;
pub(crate) mod scratch;
pub(crate) mod service;

/// One KiB.
pub(crate) const KIB: u64 = 1 << 10;
/// One MiB: also the length of an archive's chunk.
pub(crate) const MIB: u64 = 1 << 20;
/// One TiB.
pub(crate) const TIB: u64 = 1 << 40;
