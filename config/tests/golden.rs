//! The corpus of bad configurations: each folder of `golden` holds one, and beside it the error that it must
//! give. UPDATE=1 writes the errors anew; read them before you commit them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use std::error::Error;
use std::fs;
use std::path::Path;

use virtfold_base::safe_path::trust::testing::closed;
use virtfold_config::load;

/// Copies a case to where nobody else can write: configurations are read from nowhere else.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

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
    let place = tempfile::tempdir_in(closed(Path::new(env!("CARGO_TARGET_TMPDIR")))).unwrap();
    for dir in &dirs {
        let name = dir.file_name().unwrap().display();
        let case = place.path().join(dir.file_name().unwrap());
        copy(dir, &case);
        let error = match load(&case.join("config.yaml")) {
            Ok(_) => panic!("{name} was accepted"),
            Err(error) => told(&error, &case),
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
