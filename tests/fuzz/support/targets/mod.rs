//! What each target does with one input: called by libFuzzer, and by an ordinary test with every seed
//! (tests/images/fuzz.rs).

mod archive;
mod config;
mod control;
mod frame_scanner;
mod hooks;
mod manifest;
mod pax_sparse;
mod qcow2_walk;
mod record;
mod schedule;

/// A target: takes one input, panics where something is wrong.
pub type Target = fn(&[u8]);

/// All of them by name. `tests/fuzz/targets` says which code each one drives.
pub const ALL: [(&str, Target); 10] = [
    ("archive", archive::run),
    ("config", config::run),
    ("control", control::run),
    ("frame_scanner", frame_scanner::run),
    ("hooks", hooks::run),
    ("manifest", manifest::run),
    ("pax_sparse", pax_sparse::run),
    ("qcow2_walk", qcow2_walk::run),
    ("record", record::run),
    ("schedule", schedule::run),
];
