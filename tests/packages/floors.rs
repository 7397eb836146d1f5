//! The floors that ARCHITECTURE.md draws are those that the crates keep.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::common::run::run;

/// Crates by name, each with those of this workspace that it is built with; what its tests alone use is left
/// out.
fn built() -> BTreeMap<String, BTreeSet<String>> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    let told = run(cargo.current_dir(env!("CARGO_MANIFEST_DIR"))).ok().json();
    let short = |value: &Value| value.as_str().unwrap().trim_start_matches("virtfold-").to_owned();
    let packages = told["packages"].as_array().unwrap();
    let members: BTreeSet<String> = packages.iter().map(|package| short(&package["name"])).collect();
    let imports = |package: &Value| {
        let used = package["dependencies"].as_array().unwrap().iter();
        let used = used.filter(|one| one["kind"].is_null()).map(|one| short(&one["name"]));
        used.filter(|name| members.contains(name)).collect()
    };
    packages.iter().map(|package| (short(&package["name"]), imports(package))).collect()
}

/// The rows of the table below `## Rooms`: a crate, what it knows, what it imports.
fn drawn() -> BTreeMap<String, BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let text = std::fs::read_to_string(path).unwrap();
    let section = text.split("\n## Rooms\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let [name, _, imports] = cells.as_slice() else { panic!("no row of three cells: {row}") };
        (names(name).pop_first().unwrap(), names(imports))
    })
    .collect()
}

#[test]
fn the_drawing_is_what_is_built() {
    assert_eq!(drawn(), built());
}

/// What reads an archive in 30 years must not need today's libvirt or today's object stores.
#[test]
fn the_archive_stands_alone() {
    let built = built();
    assert_eq!(built["archive"], BTreeSet::from(["base".to_owned()]));
    assert_eq!(built["base"], BTreeSet::new());
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["tree", "--offline", "--edges", "normal", "--prefix", "none", "-p", "virtfold-archive"]);
    let tree = run(cargo.current_dir(env!("CARGO_MANIFEST_DIR"))).ok();
    for heavy in ["tokio", "object_store", "virt ", "virt-sys", "rusqlite", "clap"] {
        assert!(!tree.text().lines().any(|line| line.starts_with(heavy)), "{heavy}: {tree}");
    }
}
