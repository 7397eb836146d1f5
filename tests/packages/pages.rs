//! Man pages and completions, as `virtfold generate` writes them.

use std::path::{Path, PathBuf};

use crate::common::run::{run, tool};
use crate::folder;

fn generate(what: &str, name: &str, more: &[&str]) -> PathBuf {
    let out = folder(name);
    let mut command = tool(env!("CARGO_BIN_EXE_virtfold"), ["generate", what, "--out"]);
    run(command.arg(&out).args(more)).ok();
    out
}

fn completions(name: &str) -> PathBuf {
    generate("completions", name, &[])
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn man_pages_have_no_faults() {
    let out = generate("man", "man", &["--date", "2026-11-27"]);
    let pages = sorted(&out);
    let names: Vec<_> = pages.iter().map(|page| page.file_name().unwrap().to_str().unwrap()).collect();
    for wanted in ["virtfold.1", "virtfold-backup.1", "virtfold-tape-label.1", "virtfold.yaml.5"] {
        assert!(names.contains(&wanted), "{names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("generate") || name.contains("guard")), "{names:?}");
    for page in &pages {
        let lint = run(tool("mandoc", ["-T", "lint", "-W", "warning"]).arg(page)).ok();
        assert_eq!(lint.text(), "", "{}", page.display());
        let shown = run(tool("man", ["--warnings", "-l"]).arg(page).env("MANWIDTH", "100")).ok();
        assert_eq!(shown.stderr, "", "{}", page.display());
        assert!(shown.text().contains("2026-11-27"), "{shown}");
    }
    let shown = run(tool("man", ["-l"]).arg(out.join("virtfold-backup.1")).env("MANWIDTH", "120")).ok();
    for wanted in ["EXAMPLES", "virtfold backup web --to /backup\n", "--pause-budget", "SEE ALSO"] {
        assert!(shown.text().contains(wanted), "no {wanted} in\n{shown}");
    }
}

/// What bash offers for a line.
fn bash(script: &Path, words: &[&str]) -> Vec<String> {
    let last = words.len() - 1;
    let before = words.get(last.saturating_sub(1)).unwrap();
    let ask = format!(
        "source '{}'; COMP_WORDS=({}); COMP_CWORD={last}; COMP_LINE='{}'; COMP_POINT=${{#COMP_LINE}}\n_virtfold virtfold '{}' '{before}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display(),
        words.join(" "),
        words.join(" "),
        words.last().unwrap(),
    );
    let said = run(&mut tool("bash", ["--norc", "--noprofile", "-c", &ask])).ok();
    said.text().lines().map(str::to_owned).filter(|word| !word.is_empty()).collect()
}

#[test]
fn bash_completes() {
    let script = completions("bash").join("virtfold.bash");
    assert_eq!(bash(&script, &["virtfold", "ba"]), ["backup"]);
    assert_eq!(bash(&script, &["virtfold", "backup", "--quie"]), ["--quiesce"]);
    assert_eq!(bash(&script, &["virtfold", "tape", "la"]), ["label"]);
    // What is hidden is offered to nobody.
    assert_eq!(bash(&script, &["virtfold", "gu"]), [""; 0]);
    assert_eq!(bash(&script, &["virtfold", "gen"]), [""; 0]);
}

#[test]
fn fish_completes() {
    let script = completions("fish").join("virtfold.fish");
    run(tool("fish", ["--no-config", "--no-execute"]).arg(&script)).ok();
    let ask = format!("source '{}'; complete -C 'virtfold ba'", script.display());
    let said = run(&mut tool("fish", ["--no-config", "-c", &ask])).ok();
    assert!(said.text().starts_with("backup\t") && said.text().lines().count() == 1, "{said}");
}

#[test]
fn zsh_completes() {
    let script = completions("zsh").join("_virtfold");
    run(tool("zsh", ["-f", "-n"]).arg(&script)).ok();
    let ask = format!(
        "autoload -U compinit && compinit -u -D && source '{}' && print $_comps[virtfold]",
        script.display()
    );
    let said = run(&mut tool("zsh", ["-f", "-c", &ask])).ok();
    assert_eq!(said.text().trim(), "_virtfold");
}
