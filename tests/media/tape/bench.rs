//! A drive with cartridges, a machine at it, and a changer that the machine's commands can ask.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::drive::{Cartridge, Object, TapeDrive, Unit};
use crate::common::image::{Format, Image};
use crate::common::machine::{Kind, Machine, Running};
use crate::common::rng::Rng;
use crate::common::run::{Outcome, text, virtfold};
use crate::common::scratch::Scratch;

/// The drive's device in the machine.
pub(crate) const TAPE: &str = "tape:/dev/nst0";

/// A machine with the drive behind `socket`. Without `st` it does not come up.
fn boot(folder: &Path, socket: &Path) -> Machine {
    let prelude = "M=/usr/lib/uml/modules/$(uname -r)/kernel/drivers/scsi
for m in scsi_common scsi_mod virtio_scsi st sg; do insmod $M/$m.ko || echo \"no module $m\"; done
n=0; while [ ! -c /dev/nst0 ] && [ $n -lt 500 ]; do sleep 0.02; n=$((n+1)); done
[ -c /dev/nst0 ] || exit 1";
    let arguments = vec![format!("virtio_uml.device={}:8", socket.display())];
    Machine::boot(folder, &Kind { memory: "320M", arguments, prelude })
}

/// All of it. The order of the fields is the order of their ends.
pub(crate) struct Bench {
    machine: Option<Machine>,
    changer: Changer,
    pub(crate) drive: TapeDrive,
    pub(crate) scratch: Scratch,
}

struct Changer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Changer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Bench {
    /// So many cartridges of MiBs, the first one loaded, and a machine. The early warning comes half a MiB
    /// before the end.
    pub(crate) fn new(cartridges: usize, mib: u64) -> Self {
        Self::with(vec![Cartridge::new(mib << 20, 512 << 10); cartridges])
    }

    /// These cartridges, the first one loaded, and a machine.
    pub(crate) fn with(shelf: Vec<Cartridge>) -> Self {
        let scratch = Scratch::new("tape");
        let socket = scratch.join("drive");
        let drive = TapeDrive::start(&socket, shelf);
        drive.unit().insert(0);
        let asked = scratch.folder("asked");
        // Asks the test's own process, and waits for its answer.
        let script = format!(
            "#!/bin/bash\ncd '{}'\nf=$$.$RANDOM\necho \"$*\" > new.$f; mv new.$f ask.$f\n\
             while [ ! -e done.$f ]; do sleep 0.02; done\nexit $(cat done.$f)\n",
            asked.display()
        );
        fs::write(scratch.join("changer"), script).unwrap();
        let changer = Self::serve(asked, drive.clone());
        let machine = boot(scratch.path(), &socket);
        Self { machine: Some(machine), changer, drive, scratch }
    }

    /// Answers the changer's questions: `NUMBER WANTED OLD`. The volume `T2` is in slot 2; where any will do,
    /// the volume's number tells.
    fn serve(asked: PathBuf, drive: TapeDrive) -> Changer {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(10));
                for entry in fs::read_dir(&asked).unwrap() {
                    let name = entry.unwrap().file_name().into_string().unwrap();
                    let Some(id) = name.strip_prefix("ask.") else { continue };
                    let question = fs::read_to_string(asked.join(&name)).unwrap();
                    fs::rename(asked.join(&name), asked.join(format!("asked.{id}"))).unwrap();
                    let words: Vec<&str> = question.split_whitespace().collect();
                    let slot: usize = match words[1].strip_prefix('T') {
                        Some(slot) => slot.parse().unwrap(),
                        None => words[0].parse::<usize>().unwrap() - 1,
                    };
                    let known = slot < drive.unit().shelf.len();
                    if known {
                        drive.unit().insert(slot);
                    }
                    fs::write(asked.join(format!("new-done.{id}")), if known { "0" } else { "3" }).unwrap();
                    fs::rename(asked.join(format!("new-done.{id}")), asked.join(format!("done.{id}")))
                        .unwrap();
                }
            }
        });
        Changer { stop, thread: Some(thread) }
    }

    /// What the changer was asked so far.
    pub(crate) fn questions(&self) -> Vec<String> {
        assert!(self.changer.thread.is_some());
        let asked = fs::read_dir(self.scratch.join("asked")).unwrap().map(|entry| entry.unwrap().path());
        let mut asked: Vec<PathBuf> =
            asked.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("asked.")).collect();
        asked.sort_by_key(|path| path.metadata().unwrap().modified().unwrap());
        asked.iter().map(|path| fs::read_to_string(path).unwrap().trim().to_owned()).collect()
    }

    /// The option that makes virtfold ask the changer.
    pub(crate) fn change(&self) -> String {
        format!("--change-command=bash {} %n %w %o", self.scratch.join("changer").display())
    }

    fn machine(&mut self) -> &mut Machine {
        self.machine.as_mut().unwrap()
    }

    /// virtfold with the test's own catalog, and no long wait for a tape.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = virtfold(args);
        command.env("VIRTFOLD_STATE_DIR", self.scratch.join("state"));
        if !args.contains(&"--help") {
            command.args(["--tape-wait", "3s"]);
        }
        command
    }

    /// Runs virtfold in the machine.
    pub(crate) fn virtfold(&mut self, args: &[&str]) -> Outcome {
        let command = self.command(args);
        self.machine().run(&command)
    }

    /// Starts virtfold in the machine.
    pub(crate) fn start(&mut self, args: &[&str]) -> Running {
        let command = self.command(args);
        self.machine().start(&command)
    }

    /// Starts any command in the machine.
    pub(crate) fn start_tool(&mut self, command: &Command) -> Running {
        self.machine().start(command)
    }

    /// Runs any command in the machine.
    pub(crate) fn run(&mut self, command: &Command) -> Outcome {
        self.machine().run(command)
    }

    /// Runs a script in the machine.
    pub(crate) fn sh(&mut self, script: &str) -> Outcome {
        let mut command = crate::common::run::tool("bash", ["-c", script]);
        command.current_dir(self.scratch.path());
        self.run(&command)
    }

    /// Sends every virtfold in the machine a signal.
    pub(crate) fn signal(&mut self, signal: &str) {
        self.sh(&format!(
            "for p in /proc/[0-9]*; do read -r c < $p/comm; [ \"$c\" != virtfold ] || kill -{signal} ${{p#/proc/}}; done"
        ))
        .ok();
    }

    /// Waits until the drive has had more than so many writes.
    pub(crate) fn wait_for_writes(&self, count: u64) {
        crate::common::run::wait_until("blocks on the tape", std::time::Duration::from_secs(60), || {
            self.unit(|unit| unit.writes) > count
        });
    }

    /// The file of a new key, and its recipient.
    pub(crate) fn key(&mut self) -> (PathBuf, String) {
        let key = self.scratch.join("key");
        self.sh(&format!("umask 077; age-keygen -o '{}' 2> /dev/null", text(&key))).ok();
        let keys = fs::read_to_string(&key).unwrap();
        let recipient = keys.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap().to_owned();
        (key, recipient)
    }

    /// Labels the cartridge of a slot `T` and its number.
    pub(crate) fn label(&mut self, slot: usize) {
        self.drive.unit().insert(slot);
        self.virtfold(&["tape", "label", TAPE, &format!("T{slot}"), "--force"]).ok();
    }

    /// Backs up an image to the tape; more options as they come.
    pub(crate) fn backup(&mut self, image: &Image, more: &[&str]) -> Outcome {
        let mut args = vec!["backup", "--image", image.text(), "--format", image.format.name(), "--to", TAPE];
        args.extend(more);
        self.virtfold(&args)
    }

    /// Ends the machine as a power cut does, and boots it again.
    pub(crate) fn cut_power(&mut self) {
        self.machine.take().unwrap().cut();
        self.machine = Some(boot(self.scratch.path(), &self.scratch.join("drive")));
    }

    /// What is on a cartridge.
    pub(crate) fn objects(&self, slot: usize) -> Vec<Object> {
        self.unit(|unit| unit.cartridge(slot).objects.clone())
    }

    /// Does something with the drive.
    pub(crate) fn unit<T>(&self, work: impl FnOnce(&mut Unit) -> T) -> T {
        work(&mut self.drive.unit())
    }

    /// A raw image of MiBs that do not compress.
    pub(crate) fn image(&self, name: &str, mib: u64) -> Image {
        let path = self.scratch.join(name);
        let bytes = Rng::of_case(name, mib).bytes(usize::try_from(mib << 20).unwrap());
        fs::write(&path, bytes).unwrap();
        Image::new(path, Format::Raw)
    }

    /// Restores an archive's disk, and fails unless it is the image.
    pub(crate) fn assert_restores(&mut self, archive: &str, image: &Image, more: &[&str]) {
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let target = self.scratch.join(format!("back-{unique}.raw"));
        let disk = format!("vda={}", text(&target));
        let mut args = vec!["restore", archive, "--disk", &disk];
        args.extend(more);
        self.virtfold(&args).ok();
        assert!(fs::read(&target).unwrap() == fs::read(image.text()).unwrap(), "{archive}: other bytes");
        fs::remove_file(target).unwrap();
    }
}

/// The archive's name, which is the last line.
pub(crate) fn name_of(outcome: &Outcome) -> String {
    let name = outcome.last_line().to_owned();
    assert!(name.starts_with("tape:/dev/nst0#"), "{outcome}");
    name
}
