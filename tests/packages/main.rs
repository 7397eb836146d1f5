//! What is shipped around the program: the packages, installed, upgraded and removed in a copy of this
//! machine; the unit; man pages and completions.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test program has no public items")]

#[path = "../common/mod.rs"]
mod common;

mod deb;
mod documents;
mod floors;
mod hold;
mod machine;
mod pages;
mod room;
mod rpm;
mod service;
mod unit;

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use common::run::{run, tool};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const HOOK: &str = "/etc/libvirt/hooks/qemu.d/50-virtfold";

/// The version that the packages are upgraded from, and to.
const VERSIONS: [&str; 2] = ["0.1.0", "0.2.0"];

/// A folder of this run, below the target folder.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The folder with both packages in both versions, of the binaries that cargo has made for these tests.
fn packages() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let out = folder("packages");
        // Where each test is a process of its own, the first one builds for the whole run and the others wait
        // for it.
        let built = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(out.join("built"));
        let mut built = built.unwrap();
        built.lock().unwrap();
        let (run_id, mut of_run) = (std::env::var("NEXTEST_RUN_ID").unwrap_or_default(), String::new());
        built.read_to_string(&mut of_run).unwrap();
        if !run_id.is_empty() && of_run == run_id {
            return out;
        }
        built.set_len(0).unwrap();
        let binaries = Path::new(env!("CARGO_BIN_EXE_virtfold")).parent().unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--locked", "--package", "virtfold-hooks", "--bin", "virtfold-hook"]);
        run(cargo.current_dir(ROOT).env("CARGO_TARGET_DIR", binaries.parent().unwrap())).ok();
        for version in VERSIONS {
            let mut build = tool("packaging/build", ["--profile", "dev", "--version", version]);
            build.arg("--binaries").arg(binaries).arg("--out").arg(&out);
            run(build.current_dir(ROOT)).ok();
        }
        built.write_all_at(run_id.as_bytes(), 0).unwrap();
        out
    })
}

/// Files that Debian's policy wants.
const DEBIAN_ALONE: [&str; 3] = [
    "/usr/share/doc/virtfold/copyright",
    "/usr/share/doc/virtfold/changelog",
    "/usr/share/lintian/overrides/virtfold",
];

/// The files of a package whose lists differ by name alone.
fn alike(list: &str) -> Vec<String> {
    let mut files: Vec<String> = list
        .lines()
        .map(|line| line.trim_end_matches(".gz").replace("/zsh/vendor-completions/", "/zsh/site-functions/"))
        .filter(|path| !DEBIAN_ALONE.contains(&path.as_str()))
        .collect();
    files.sort();
    files
}

#[test]
fn both_packages_hold_the_same_files() {
    let folder = packages();
    let deb =
        run(&mut tool("dpkg-deb", [Path::new("--fsys-tarfile"), &folder.join("virtfold_0.1.0_amd64.deb")]));
    let list = folder.join("files.tar");
    std::fs::write(&list, &deb.ok().stdout).unwrap();
    let listed = run(&mut tool("tar", [Path::new("-tf"), &list])).ok();
    let files: String = listed
        .text()
        .lines()
        .filter(|l| !l.ends_with('/'))
        .map(|l| format!("/{}\n", l.trim_start_matches("./")))
        .collect();
    let rpm = run(&mut tool("rpm", [Path::new("-qpl"), &folder.join("virtfold-0.1.0-1.x86_64.rpm")])).ok();
    assert_eq!(alike(&files), alike(rpm.text()));
    for wanted in [
        "/usr/bin/virtfold",
        "/usr/sbin/virtfold-hook",
        "/usr/lib/systemd/system/virtfold.service",
        "/usr/share/man/man1/virtfold-backup.1",
        "/usr/share/man/man5/virtfold.yaml.5",
        "/usr/share/man/man8/virtfold-hook.8",
        "/usr/share/doc/virtfold/examples/config-full.yaml",
        "/usr/share/doc/virtfold/grafana/virtfold.json",
        "/usr/share/doc/virtfold/prometheus/virtfold.rules.yml",
        "/usr/share/doc/virtfold/third-party",
        "/usr/share/doc/virtfold/docs/troubleshooting.md",
    ] {
        assert!(alike(&files).iter().any(|file| file == wanted), "{wanted} is missing in\n{files}");
    }
}

/// What the distributions' own judges say; what is not for them to say stands with its reason in
/// packaging/debian/lintian-overrides and packaging/rpm/rpmlint.toml.
#[test]
fn lintian_and_rpmlint_have_nothing_to_say() {
    let folder = packages();
    let mut lintian =
        tool("lintian", ["--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0"]);
    let said = run(lintian.arg(folder.join("virtfold_0.1.0_amd64.deb"))).ok();
    assert_eq!(said.text(), "", "{said}");
    let mut rpmlint = tool("rpmlint", ["--config", "packaging/rpm/rpmlint.toml"]);
    let said = run(rpmlint.arg(folder.join("virtfold-0.1.0-1.x86_64.rpm")).current_dir(ROOT)).ok();
    assert!(said.text().contains("0 errors, 0 warnings"), "{said}");
}
