//! The corpus of bad configurations: each folder of `golden` holds one, and beside it the error that it must
//! give. UPDATE=1 writes the errors anew; read them before you commit them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use std::error::Error;
use std::fs;
use std::path::Path;

use virtfold_config::load;

fn told(error: &dyn Error, dir: &Path) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    text.replace(&format!("{}/", dir.display()), "") + "\n"
}

#[test]
fn every_bad_configuration_gives_its_error() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let update = std::env::var_os("UPDATE").is_some();
    let mut dirs: Vec<_> = fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.sort();
    assert!(dirs.len() >= 40, "the corpus is gone: {} cases", dirs.len());
    let mut wrong = Vec::new();
    for dir in &dirs {
        let name = dir.file_name().unwrap().display();
        let error = match load(&dir.join("config.yaml")) {
            Ok(_) => panic!("{name} was accepted"),
            Err(error) => told(&error, dir),
        };
        let golden = dir.join("error");
        if update {
            fs::write(&golden, &error).unwrap();
        } else if fs::read_to_string(&golden).unwrap_or_default() != error {
            wrong.push(format!("{name}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{} errors changed:\n{}", wrong.len(), wrong.join(""));
}
