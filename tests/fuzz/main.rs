//! libFuzzer's entry to every target: `VIRTFOLD_FUZZ` names the one that is to run.
//! `VIRTFOLD_FUZZ=seeds fuzz FOLDER` makes the seeds instead. One program, because compiling and linking is
//! what a program for each of them would cost.

#![no_main]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use virtfold_fuzz::seeds;
use virtfold_fuzz::targets::{ALL, Target};

static TARGET: OnceLock<Target> = OnceLock::new();

fuzz_target!(
    init: begin(),
    |data: &[u8]| (TARGET.get().expect("a target was chosen"))(data)
);

fn begin() {
    let wanted = std::env::var("VIRTFOLD_FUZZ").expect("VIRTFOLD_FUZZ names a target, or 'seeds'");
    if wanted == "seeds" {
        let folder =
            PathBuf::from(std::env::args_os().nth(1).expect("usage: VIRTFOLD_FUZZ=seeds fuzz FOLDER"));
        seeds::make(&folder, &Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples"));
        // There is nothing to fuzz.
        std::process::exit(0);
    }
    let target = ALL.iter().find(|(name, _)| *name == wanted);
    let (_, target) = target.unwrap_or_else(|| panic!("there is no target '{wanted}'"));
    TARGET.set(*target).expect("libFuzzer begins once");
}
