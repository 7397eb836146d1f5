//! The service with a real libvirtd and a guest that writes all the time: missed and asked-for runs, kills in
//! the midst of a backup, an end, a reload, a libvirtd that goes and comes.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::cli::{everything, restore, virtfold_in};
use crate::common::rng::Rng;
use crate::common::run::{run, text, virtfold};
use crate::lab::records::check_images;
use crate::lab::{Guest, GuestSpec, Lab, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use virtfold_base::safe_path::trust::testing::closed;

const JOB: &str = "nightly";

/// A service at work.
struct Service<'a> {
    lab: &'a Lab,
    child: Child,
}

fn socket(lab: &Lab) -> PathBuf {
    lab.folder().join("control.sock")
}

/// Where the configuration and the state are, with the runs' own configuration. Not in the lab's folder,
/// which lies below `/tmp`: a configuration is not read where others can write.
fn closed_folder(lab: &Lab) -> PathBuf {
    closed(Path::new(env!("CARGO_TARGET_TMPDIR"))).join(lab.folder().file_name().unwrap())
}

fn config(lab: &Lab) -> PathBuf {
    closed_folder(lab).join("config.yaml")
}

/// The minute of the hour that is furthest from the test's beginning: no run is due while it goes on.
fn minute() -> u64 {
    static MINUTE: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *MINUTE.get_or_init(|| {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        (now.as_secs() / 60 + 30) % 60
    })
}

/// One job for the guest, once in each hour; `more` is behind it.
fn write_config(lab: &Lab, rate: &str, more: &str) {
    let to = lab.folder().join("archives");
    fs::create_dir_all(&to).unwrap();
    fs::create_dir_all(closed_folder(lab)).unwrap();
    let minute = minute();
    let yaml = format!(
        "version: 1
service: {{concurrency: 1, stop-timeout: 1s, catch-up: 1d}}
media:
  disk: {{to: {}}}
jobs:
  {JOB}: {{domains: {{names: writer}}, schedule: \"*:{minute:02}\", to: disk, compress: none, limit-rate: {rate}}}
{more}",
        to.display()
    );
    fs::write(config(lab), yaml).unwrap();
}

/// virtfold with everything of its own in the lab's folder.
fn command(lab: &Lab, args: &[&str]) -> Command {
    let mut command = virtfold(args);
    command.env("VIRTFOLD_STATE_DIR", closed_folder(lab).join("state"));
    let places = [("GUARDS", "guards"), ("SPOOL", "spool"), ("SOCKET", "events.sock")];
    for (name, place) in places {
        command.env(format!("VIRTFOLD_{name}"), lab.folder().join(place));
    }
    command.env("VIRTFOLD_CONNECT", lab.uri());
    command
}

impl<'a> Service<'a> {
    /// Starts it and waits until it answers.
    fn start(lab: &'a Lab) -> Self {
        let log = fs::File::options().create(true).append(true).open(lab.folder().join("serve.log")).unwrap();
        let (config, socket) = (config(lab), socket(lab));
        let mut serve = command(lab, &["serve", "--config", text(&config), "--socket", text(&socket)]);
        let mut child = serve.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        wait_for("the service answers", 60, || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", log_of(lab));
            UnixStream::connect(&socket).is_ok()
        });
        Self { lab, child }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// Asks at the socket.
    fn ask(&self, what: &Value) -> Value {
        let mut stream = UnixStream::connect(socket(self.lab)).unwrap();
        writeln!(stream, "{}", json!({"version": 1, "ask": what})).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: '{line}'"));
        assert!(answer["error"].is_null(), "{answer}");
        answer["answer"].clone()
    }

    fn status(&self) -> Value {
        self.ask(&json!("status"))["status"].clone()
    }

    fn entry(&self, id: &Value) -> Value {
        self.ask(&json!({"entry": {"id": id}}))["entry"].clone()
    }

    /// Asks for a run; the entry's number.
    fn request(&self) -> Value {
        self.ask(&json!({"run": {"job": JOB}}))["entries"][0].clone()
    }

    /// Waits until the service works and knows its guest.
    fn wait_ready(&self) {
        wait_for(&format!("the service works: {}", log_of(self.lab)), 60, || {
            let status = self.status();
            status["service"]["state"] == "running" && status["jobs"][0]["domains"] == json!(["writer"])
        });
    }

    /// Waits until an entry has a good backup; its archive.
    fn wait_archive(&self, id: &Value) -> PathBuf {
        let mut entry = Value::Null;
        wait_for("a good backup", 120, || {
            entry = self.entry(id);
            assert!(entry["state"] != "failed", "{entry} {}", log_of(self.lab));
            entry["state"] == "succeeded"
        });
        PathBuf::from(entry["archives"][0].as_str().unwrap())
    }

    /// Waits until a backup has got to its copy.
    fn wait_copying(&self) {
        wait_for("a run that copies", 90, || {
            let running = &self.status()["running"];
            running[0]["progress"]["phase"] == "copying"
        });
    }

    /// Ends it and waits for that.
    fn end(mut self, signal: Signal) -> ExitStatus {
        kill(self.pid(), signal).unwrap();
        let mut status = None;
        wait_for("the service ends", 60, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        // Of a test that failed.
        if self.child.kill().is_ok() {
            self.child.wait().unwrap();
        }
        if std::thread::panicking() {
            eprintln!("{}", log_of(self.lab));
        }
    }
}

fn log_of(lab: &Lab) -> String {
    fs::read_to_string(lab.folder().join("serve.log")).unwrap_or_default()
}

/// The backups that run now and are children of a process.
fn children(parent: Pid) -> Vec<Pid> {
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let child_of = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line == format!("PPid:\t{parent}"))
    };
    processes.filter(child_of).map(Pid::from_raw).collect()
}

/// Puts the job's last time an hour and more back: the service was down since.
fn miss_an_hour(lab: &Lab) {
    let catalog = rusqlite::Connection::open(closed_folder(lab).join("state/catalog.sqlite")).unwrap();
    let changed = catalog.execute("UPDATE planned SET last = last - 2 * 3600 * 1000", []).unwrap();
    assert_eq!(changed, 1);
}

/// The records of an archive's disk are of one point in time.
fn check_archive(guest: &Guest<'_>, archive: &Path) {
    let to = restore(guest, archive);
    let disk = to.join("vda.qcow2");
    let seen = check_images(&[(&disk, "qcow2")], guest.layout()).unwrap();
    assert!(seen.last.is_some() && seen.last <= guest.progress.last(), "{seen:?}");
    fs::remove_dir_all(&to).unwrap();
}

#[test]
fn the_service_backs_up_a_running_guest_whatever_happens_to_it() {
    let lab = Lab::start();
    let spec = GuestSpec { slots: 1024, pause_us: Some(2000), ..GuestSpec::default() };
    let guest = lab.guest(spec);
    guest.start();
    guest.progress.wait_more(200);
    let before = everything(&guest);
    write_config(&lab, "16MiB", "");
    missed_runs_are_made_up_for(&lab, &guest);
    assert_eq!(everything(&guest), before);
    kills_in_the_midst(&lab, &guest, &before);
    an_end_parks_what_runs(&lab, &guest, &before);
    reloads_and_libvirtd(&lab, &guest);
    assert_eq!(everything(&guest), before);
    fs::remove_dir_all(closed_folder(&lab)).unwrap();
    guest.progress.wait_more(50);
    guest.power_off();
    let images = guest.images();
    let images: Vec<_> = images.iter().map(|(path, format)| (path.as_path(), *format)).collect();
    assert_eq!(
        check_images(&images, guest.layout()).unwrap().last,
        guest.progress.last(),
        "the guest lost a write"
    );
}

fn missed_runs_are_made_up_for(lab: &Lab, guest: &Guest<'_>) {
    let service = Service::start(lab);
    service.wait_ready();
    assert_eq!(service.ask(&json!("queue"))["queue"], json!([]), "a new job has missed nothing");
    let second =
        run(&mut command(lab, &["serve", "--config", text(&config(lab)), "--socket", "/nowhere/c.sock"]));
    assert!(second.stderr.contains("another service uses the state directory"), "{second}");
    assert!(service.end(Signal::SIGTERM).success());
    miss_an_hour(lab);
    let service = Service::start(lab);
    let id = json!(1);
    wait_for("the missed run is in the queue", 60, || {
        service.ask(&json!("queue"))["queue"].as_array().is_some_and(|queue| !queue.is_empty())
    });
    check_archive(guest, &service.wait_archive(&id));
    assert_eq!(service.entry(&id)["trigger"], "catch-up");
    let status = run(&mut command(lab, &["status", "--socket", text(&socket(lab))])).ok();
    println!("{status}");
    assert!(status.text().contains("writer"), "{status}");
    assert!(service.end(Signal::SIGTERM).success());
}

/// The service is killed four times in one run, with its backup or without: after the fifth the run is given
/// up.
fn kills_in_the_midst(lab: &Lab, guest: &Guest<'_>, before: &(Vec<PathBuf>, [String; 2])) {
    let mut rng = Rng::of_case("service kills", 0);
    let mut service = Service::start(lab);
    service.wait_ready();
    let id = service.request();
    for number in 0..4 {
        wait_for("the run begins", 90, || service.entry(&id)["state"] == "running");
        let wait = Duration::from_millis(rng.below(2000));
        std::thread::sleep(wait);
        let state = service.entry(&id)["state"].clone();
        println!("kill {number} after {wait:?}: {state}");
        if state == "succeeded" {
            break;
        }
        let backups = children(service.pid());
        assert!(!service.end(Signal::SIGKILL).success());
        if number % 2 == 0 {
            // One that is at its end is gone already.
            backups.iter().for_each(|backup| kill(*backup, Signal::SIGKILL).unwrap_or_default());
        }
        service = Service::start(lab);
    }
    let archive = service.wait_archive(&id);
    check_archive(guest, &archive);
    assert_eq!(&everything(guest), before, "{}", log_of(lab));
    let nothing = virtfold_in(lab, &["recover", "--dry-run"]).ok();
    assert_eq!(nothing.last_line(), "nothing to recover");
    assert!(service.entry(&id)["attempts"].as_u64() > Some(1), "no kill met the run");
    assert!(service.end(Signal::SIGTERM).success());
}

fn an_end_parks_what_runs(lab: &Lab, guest: &Guest<'_>, before: &(Vec<PathBuf>, [String; 2])) {
    write_config(lab, "2MiB", "");
    let service = Service::start(lab);
    service.wait_ready();
    let id = service.request();
    service.wait_copying();
    assert!(service.end(Signal::SIGTERM).success(), "{}", log_of(lab));
    assert_eq!(&everything(guest), before, "the guest is home before the service has ended");
    write_config(lab, "64MiB", "");
    let service = Service::start(lab);
    check_archive(guest, &service.wait_archive(&id));
    assert_eq!(service.entry(&id)["attempts"], 1, "a parked attempt does not count");
    assert!(service.end(Signal::SIGTERM).success());
}

fn reloads_and_libvirtd(lab: &Lab, guest: &Guest<'_>) {
    let service = Service::start(lab);
    service.wait_ready();
    write_config(lab, "64MiB", "  second: {domains: {all: true}, schedule: manual, to: disk}\n");
    kill(service.pid(), Signal::SIGHUP).unwrap();
    wait_for("the new job is there", 60, || service.status()["jobs"][1]["job"] == "second");
    write_config(lab, "64MiB", "  third: {domainss: {all: true}}\n");
    kill(service.pid(), Signal::SIGHUP).unwrap();
    let warning = |status: &Value| status["warnings"][0]["kind"].as_str() == Some("configuration");
    wait_for("the broken configuration is told", 60, || warning(&service.status()));
    assert_eq!(service.status()["jobs"][1]["job"], "second", "the old one goes on");
    lab.stop();
    wait_for("it is seen that libvirtd is gone", 60, || !service.status()["libvirt"]["error"].is_null());
    let id = service.request();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(service.entry(&id)["state"], "waiting", "nothing is begun without libvirt");
    lab.restart();
    check_archive(guest, &service.wait_archive(&id));
    assert!(service.status()["libvirt"]["error"].is_null());
    assert!(service.end(Signal::SIGTERM).success());
}
