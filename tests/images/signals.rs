//! Signals: a backup or a restore that gets one ends soon, leaves nothing that looks complete, and says so
//! with its own exit code.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::archive::{Method, backup, backup_args, restore_args, verify};
use crate::common::image::{Format, Image};
use crate::common::rng::{Rng, run_seed};
use crate::common::run::{
    Outcome, collect, collect_within, exit, line_of, run, text, tool, virtfold, wait_until,
};
use crate::common::scratch::{Scratch, names};
use crate::faults::{PATIENCE, finished, noisy_image, partial, signal, start_slow_backup};

/// Runs a slow backup and sends `which` after `delay` (counted from the moment its file is there).
fn interrupted_backup(
    image: &Image,
    folder: &Path,
    compress: &str,
    which: Signal,
    delay: Duration,
) -> Outcome {
    let (line, child) = start_slow_backup(image, folder, compress);
    wait_until("the backup's file", PATIENCE, || !names(folder).is_empty());
    std::thread::sleep(delay);
    signal(&child, which);
    collect(line, child)
}

#[test]
fn a_killed_backup_leaves_nothing_that_looks_complete() {
    let scratch = Scratch::new("sigkill");
    let mut rng = Rng::of_case("sigkill", 0);
    let image = noisy_image(&mut rng, scratch.join("source.qcow2"), 6);
    for round in 0..10 {
        let folder = scratch.folder(&format!("archives{round}"));
        let compress = rng.pick(&["none", "zstd"]);
        let delay = Duration::from_millis(rng.below(1200));
        let outcome = interrupted_backup(&image, &folder, compress, Signal::SIGKILL, delay);
        assert_eq!(outcome.shell_code(), 137, "seed {}, round {round}\n{outcome}", run_seed());
        assert_nothing_looks_complete(&folder, &format!("seed {}, round {round}, {delay:?}", run_seed()));
        assert_eq!(
            partial(&folder).len(),
            1,
            "a killed backup leaves its partial file: {:?}",
            names(&folder)
        );
    }
}

fn assert_nothing_looks_complete(folder: &Path, context: &str) {
    for archive in finished(folder) {
        let verified = verify(&archive);
        assert_eq!(verified.code(), Some(exit::OK), "a final name on a bad archive, {context}\n{verified}");
    }
    for file in partial(folder) {
        verify(&file).exits(exit::INCOMPLETE);
    }
    let listed = run(&mut virtfold(["list", text(folder)])).ok();
    let told = listed.text().matches(" incomplete ").count();
    assert_eq!(told, partial(folder).len(), "list does not name what is incomplete, {context}\n{listed}");
}

#[test]
fn a_backup_told_to_stop_cleans_up_and_says_so() {
    let scratch = Scratch::new("sigterm");
    let mut rng = Rng::of_case("sigterm", 0);
    let image = noisy_image(&mut rng, scratch.join("source.qcow2"), 6);
    for (which, code) in [(Signal::SIGTERM, exit::SIGTERM), (Signal::SIGINT, exit::SIGINT)] {
        for compress in ["none", "zstd"] {
            let folder = scratch.folder(&format!("{which}-{compress}"));
            let delay = Duration::from_millis(rng.below(700));
            let outcome = interrupted_backup(&image, &folder, compress, which, delay);
            assert_eq!(outcome.shell_code(), code, "{which} after {delay:?}\n{outcome}");
            assert_eq!(finished(&folder), [] as [PathBuf; 0], "{which} after {delay:?}\n{outcome}");
            assert_nothing_looks_complete(&folder, &format!("{which} after {delay:?}"));
        }
    }
}

/// The signals that end a process unless it catches them, by their numbers on Linux: all but a processor's
/// faults, what can't be caught, and what says that a
/// write failed. The last two are real-time ones.
const ENDING: [i32; 18] = [1, 2, 3, 5, 6, 10, 12, 14, 15, 16, 24, 26, 27, 29, 30, 31, 34, 64];

/// A command as another program starts it.
fn started_by(program: &str, args: &[&str], command: &Command) -> Command {
    let mut starter = tool(program, args);
    starter.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => starter.env(name, value),
            None => starter.env_remove(name),
        };
    }
    starter
}

#[test]
fn every_signal_that_ends_a_process_lets_it_clean_up_first() {
    let scratch = Scratch::new("signals");
    let image = noisy_image(&mut Rng::of_case("signals", 0), scratch.join("source.qcow2"), 6);
    for number in ENDING {
        let folder = scratch.folder(&number.to_string());
        let (line, child) = start_slow_backup(&image, &folder, "none");
        wait_until("the backup's file", PATIENCE, || !names(&folder).is_empty());
        run(&mut tool("kill", ["-s", &number.to_string(), &child.id().to_string()])).ok();
        let outcome = collect(line, child);
        assert_eq!(outcome.code(), Some(128 + number), "signal {number}\n{outcome}");
        assert_eq!(names(&folder), [] as [&str; 0], "signal {number} leaves something\n{outcome}");
    }
}

#[test]
fn a_write_over_the_limit_of_a_file_s_size_is_a_failed_write() {
    let scratch = Scratch::new("xfsz");
    let image = noisy_image(&mut Rng::of_case("xfsz", 0), scratch.join("source.qcow2"), 6);
    let folder = scratch.folder("archives");
    let plain = virtfold(backup_args(&image, text(&folder), &["--compress", "none"]));
    let outcome = run(&mut started_by("prlimit", &["--fsize=2097152"], &plain)).exits(exit::FAILURE);
    assert!(outcome.stderr.contains(text(&folder)) && outcome.stderr.contains("too large"), "{outcome}");
    // The same as a FAT says of 4 GiB.
    assert!(outcome.stderr.contains("hint: a file can't be larger there"), "{outcome}");
    assert_eq!(names(&folder), [] as [&str; 0], "{outcome}");
}

/// `nohup` has a process ignore SIGHUP, and that stays so.
#[test]
fn a_closed_terminal_does_not_end_what_nohup_started() {
    let scratch = Scratch::new("nohup");
    let image = noisy_image(&mut Rng::of_case("nohup", 0), scratch.join("source.qcow2"), 6);
    let folder = scratch.folder("archives");
    let plain = virtfold(backup_args(&image, text(&folder), &["--limit-rate", "4MiB"]));
    let mut command = started_by("nohup", &[], &plain);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the backup's file", PATIENCE, || !names(&folder).is_empty());
    signal(&child, Signal::SIGHUP);
    let outcome = collect(line_of(&command), child).ok();
    verify(Path::new(outcome.last_line())).ok();
}

#[test]
fn a_restore_told_to_stop_leaves_no_disk() {
    let scratch = Scratch::new("restore-sigterm");
    let mut rng = Rng::of_case("restore-sigterm", 0);
    let image = noisy_image(&mut rng, scratch.join("source.qcow2"), 4);
    let archive = backup(&image, &scratch.folder("archives"), &[]);
    let head = fs::read(&archive).unwrap();
    for (method, format) in
        [(Method::Rewrite, Format::Raw), (Method::Rewrite, Format::Qcow2), (Method::Remap, Format::Qcow2)]
    {
        let folder = scratch.folder(&format!("{}-{format}", method.name()));
        let to = format!("vda={}", text(&folder.join("disk")));
        // Three quarters of the archive through a pipe that then stays open: the restore is in its midst.
        let mut command = virtfold(restore_args("-", &to, format, method));
        let line = line_of(&command);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(&head[..head.len() / 4 * 3]).unwrap();
        wait_until("the restore's file", PATIENCE, || !names(&folder).is_empty());
        signal(&child, Signal::SIGTERM);
        // Its input stays open and silent: the signal alone must end it.
        wait_until("the restore to end", PATIENCE, || child.try_wait().unwrap().is_some());
        let outcome = collect(line, child);
        drop(input);
        assert_eq!(outcome.shell_code(), exit::SIGTERM, "{outcome}");
        assert_eq!(finished(&folder), [] as [PathBuf; 0], "a half disk under its final name\n{outcome}");
    }
}

/// The least rate has the next piece wait for most of a day.
#[test]
fn a_signal_ends_the_wait_for_a_limited_rate() {
    let scratch = Scratch::new("limited");
    let image = noisy_image(&mut Rng::of_case("limited", 0), scratch.join("source.qcow2"), 6);
    let folder = scratch.folder("archives");
    let more = ["--compress", "none", "--limit-rate", "1KiB"];
    let mut command = virtfold(backup_args(&image, text(&folder), &more));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let written = || partial(&folder).first().is_some_and(|file| fs::metadata(file).unwrap().len() > 0);
    wait_until("the first piece", PATIENCE, written);
    let told = Instant::now();
    signal(&child, Signal::SIGTERM);
    let outcome = collect_within(PATIENCE, line_of(&command), child);
    assert_eq!(outcome.shell_code(), exit::SIGTERM, "{outcome}");
    assert!(told.elapsed() < Duration::from_secs(5), "it took {:?}\n{outcome}", told.elapsed());
    assert_eq!(names(&folder), [] as [&str; 0], "{outcome}");
}
