//! The seeds of every fuzz target, and a few hundred mutations of them that are the same in each run, through
//! the bodies that libFuzzer calls: whatever is hostile there is tried in every run of the tests. The hunt
//! with coverage is `make fuzz`.

#[path = "../fuzz/support/lib.rs"]
#[allow(unreachable_pub, dead_code, unused_imports, reason = "a crate of its own, where libFuzzer calls it")]
mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use support::targets::{ALL, Target};

use crate::common::rng::Rng;
use crate::common::scratch::{Scratch, names};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// How often each seed is mutated.
const MUTATIONS: u64 = 24;

/// The targets that `tests/fuzz/run` knows, with the code of each.
fn listed() -> Vec<(String, Vec<String>)> {
    let text = std::fs::read_to_string(Path::new(ROOT).join("tests/fuzz/targets")).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.split_whitespace().map(str::to_owned);
            (words.next().unwrap(), words.collect())
        })
        .collect()
}

#[test]
fn every_target_is_listed_with_code_that_exists() {
    let names: BTreeSet<&str> = ALL.iter().map(|(name, _)| *name).collect();
    let listed = listed();
    assert_eq!(names, listed.iter().map(|(name, _)| name.as_str()).collect());
    for (name, code) in &listed {
        assert!(!code.is_empty(), "{name} drives no code");
        for path in code {
            assert!(Path::new(ROOT).join(path).exists(), "{name} names {path}, which is not there");
        }
    }
    let bodies = std::fs::read_dir(Path::new(ROOT).join("tests/fuzz/support/targets")).unwrap();
    assert_eq!(bodies.count(), ALL.len() + 1, "a body that no target runs");
}

/// `tests/fuzz/found/TARGET-WHAT.bin`: inputs that a hunt found, each of something that was mended.
#[test]
fn what_a_hunt_found_once_stays_mended() {
    let found = Path::new(ROOT).join("tests/fuzz/found");
    let files = names(&found);
    assert!(!files.is_empty());
    for file in files {
        let (name, _) = file.split_once('-').unwrap();
        let (_, target) = ALL.iter().find(|(known, _)| *known == name).unwrap();
        tried(*target, &std::fs::read(found.join(&file)).unwrap(), || file.clone());
    }
}

#[test]
fn seeds_and_mutations_of_them_go_through_every_target() {
    let folder = Scratch::new("fuzz");
    support::seeds::make(folder.path(), &Path::new(ROOT).join("examples"));
    for (name, target) in ALL {
        let begun = Instant::now();
        let seeds = names(&folder.join(name));
        assert!(seeds.len() >= 3, "{name} has {} seeds", seeds.len());
        for (number, seed) in seeds.iter().enumerate() {
            let bytes = std::fs::read(folder.join(name).join(seed)).unwrap();
            tried(target, &bytes, || format!("{name}, seed {seed}"));
            for mutation in 0..MUTATIONS {
                let mut rng = Rng::of_case(name, (number as u64) << 16 | mutation);
                let mutated = mutate(&bytes, &mut rng);
                tried(target, &mutated, || format!("{name}, seed {seed}, mutation {mutation}"));
            }
        }
        println!("{name}: {} seeds, {} inputs in {:?}", seeds.len(), seeds.len() * 25, begun.elapsed());
    }
}

/// Runs one input; says which it was where it fails.
fn tried(target: Target, bytes: &[u8], which: impl FnOnce() -> String) {
    if let Err(why) = std::panic::catch_unwind(|| target(bytes)) {
        eprintln!("the input that failed: {}, {} bytes", which(), bytes.len());
        std::panic::resume_unwind(why);
    }
}

/// One to three changes of the kinds that break parsers: bits, numbers at their bounds, cuts, repeats.
fn mutate(bytes: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..rng.within(1, 3) {
        if bytes.len() < 2 {
            break;
        }
        // The first byte says what is to be repaired, and stays.
        let at = usize::try_from(rng.within(1, bytes.len() as u64 - 1)).unwrap();
        let len = usize::try_from(rng.within(1, 16)).unwrap().min(bytes.len() - at);
        match rng.below(6) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at..at + len].fill(rng.pick(&[0x00, 0x7f, 0x80, 0xff, b'0', b'9'])),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..at + len)),
            4 => {
                let piece = bytes[at..at + len].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let noise = rng.bytes(len);
                bytes[at..at + len].copy_from_slice(&noise);
            }
        }
    }
    bytes
}
