//! Places on this host: a file that stands where a directory belongs is called that; an ordinary user's
//! things lie in his own directories; `config check --host` tries what a configuration names.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use crate::common::image::{Format, Image};
use crate::common::run::{exit, run, text, virtfold};
use crate::common::scratch::Scratch;

/// A libvirt that nobody answers at.
const NOBODY: &str = "qemu+unix:///system?socket=/nowhere/libvirt-sock";

#[test]
fn a_file_in_a_directory_s_place_is_called_that() {
    let scratch = Scratch::new("in-the-way");
    let image = Image::create(scratch.join("disk.qcow2"), Format::Qcow2, "", 1 << 20);
    let file = scratch.join("file");
    fs::write(&file, "x").unwrap();
    let (below, state) = (file.join("below"), scratch.join("state"));
    let (file_name, below, state) = (text(&file), text(&below), text(&state));
    let backup = ["backup", "--image", image.text(), "--format", "qcow2", "--to"];
    let serve = ["serve", "-c", NOBODY, "--state-dir"];
    let socket = format!("{below}/control.sock");
    let sockets = scratch.join("control.sock");
    let cases: [(Vec<&str>, &str); 7] = [
        ([&backup[..], &[file_name]].concat(), ""),
        ([&backup[..], &[below]].concat(), ""),
        (vec!["list", file_name], ""),
        ([&serve[..], &[file_name]].concat(), ""),
        ([&serve[..], &[below]].concat(), ""),
        ([&serve[..], &[state, "--socket", &socket]].concat(), ""),
        ([&serve[..], &[state, "--socket", text(&sockets)]].concat(), "VIRTFOLD_SPOOL"),
    ];
    for (line, variable) in cases {
        let mut command = virtfold(&line);
        if !variable.is_empty() {
            command.env(variable, &file);
        }
        let outcome = run(&mut command).exits(exit::USAGE);
        assert!(outcome.stderr.contains(&format!("'{file_name}' is a file, not a directory")), "{outcome}");
    }
}

/// An ordinary user's libvirt is his own; the real one is started by libvirt itself, and ended here.
#[test]
fn a_user_s_session_has_its_own_places() {
    // Not below the target folder: the way there need not be open to others.
    let reachable = tempfile::Builder::new()
        .prefix("virtfold-session-")
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir_in("/var/tmp")
        .unwrap();
    let program = reachable.path().join("virtfold");
    fs::copy(env!("CARGO_BIN_EXE_virtfold"), &program).unwrap();
    let (own, runtime) = (reachable.path().join("home"), reachable.path().join("runtime"));
    for folder in [&own, &runtime] {
        fs::create_dir(folder).unwrap();
        chown(folder, Some(65_534), Some(65_534)).unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
    }
    let run_dir = text(&runtime).to_owned();
    let user_with = |variable: &str, verb: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "env", "-i"]);
        command.args([
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "VIRTFOLD_CONNECT=qemu:///session",
            "LANG=C.UTF-8",
        ]);
        command.args([
            format!("HOME={}", text(&own)),
            format!("XDG_RUNTIME_DIR={run_dir}"),
            variable.to_owned(),
        ]);
        command.arg(&program).arg(verb);
        run(&mut command)
    };
    let user = |verb: &str| user_with("LC_ALL=C", verb);
    let ended = Ended(runtime.join("libvirt/libvirtd.pid"));
    let domains = user("domains").ok();
    assert_eq!(domains.text().trim(), "no domains");
    let status = user("status").exits(exit::REFUSED);
    assert!(
        status.stderr.contains(&format!("no service answers at {run_dir}/virtfold/control.sock")),
        "{status}"
    );
    user("recover").ok();
    assert!(own.join(".local/state/virtfold/catalog.sqlite").is_file(), "{}", own.display());
    let wanted = own.join("mine");
    let line = format!("XDG_STATE_HOME={}", text(&wanted));
    user_with(&line, "recover").ok();
    assert!(wanted.join("virtfold/catalog.sqlite").is_file());
    drop(ended);
}

/// Ends the daemon whose id is in a file.
struct Ended(std::path::PathBuf);

impl Drop for Ended {
    fn drop(&mut self) {
        let pid = fs::read_to_string(&self.0).unwrap_or_default().trim().parse::<i32>().ok();
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            let _gone_already = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
}

const JOBS: &str = "
version: 1
media:
  nas: {to: NAS}
  gone: {to: NAS/nowhere}
  lto: {to: 'tape:/dev/no-such-nst'}
jobs:
  nightly:
    domains: {names: web}
    schedule: 'daily 02:00'
    to: nas
    before: {command: [/no/such/program]}
  weekly: {domains: {all: true}, schedule: manual, to: [nas, lto], keep: {last: 3}}
  old: {enabled: false, domains: {names: attic}, schedule: daily, to: nas}
";

#[test]
fn a_configuration_is_tried_on_its_host() {
    let scratch = Scratch::new("host-check");
    let nas = scratch.folder("nas");
    let config = scratch.join("config.yaml");
    fs::write(&config, JOBS.replace("NAS", text(&nas))).unwrap();
    let check =
        |more: &[&str]| run(&mut virtfold([&["config", "check", "--config", text(&config)], more].concat()));
    // Without the host: only what is wrong whatever there is.
    let alone = check(&[]).ok();
    assert!(
        alone.stderr.contains("`jobs.weekly.keep`: it has no effect on backups of the domains that both"),
        "{alone}"
    );
    assert_eq!(alone.text().lines().count(), 1, "{alone}");
    let tried = check(&["--host", "-c", NOBODY]).exits(exit::NOT_FOUND);
    let said = tried.text();
    let line = |start: &str| {
        said.lines()
            .find(|line| line.trim_start().starts_with(start))
            .unwrap_or_else(|| panic!("no {start}: {tried}"))
    };
    assert!(line("nas ").contains("it can be written, and has "), "{tried}");
    assert!(line("gone ").contains("NO: the directory"), "{tried}");
    assert!(line("lto ").contains("NO: there is no drive"), "{tried}");
    assert!(line("qemu+unix").contains("NO: cannot connect to libvirt"), "{tried}");
    assert!(line("old (switched off)").contains("not known"), "{tried}");
    assert!(said.contains("NO: the command '/no/such/program' does not exist"), "{tried}");
    assert_eq!((said.matches(" 02:00:00 ").count(), said.matches("no schedule").count()), (3, 1), "{tried}");
    assert_eq!(fs::read_dir(&nas).unwrap().count(), 0, "something was left");
}
