//! A test guest: its disks, its domain XML, its life.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::progress::Progress;
use super::record::Layout;
use super::{Lab, run, state, wait_for};

/// What a guest is to be. `Default`: one qcow2 disk that is written some hundred times a second, so that the
/// guest, which is emulated in software, leaves some of a processor to the others.
#[derive(Clone, Debug)]
pub(crate) struct GuestSpec {
    /// The domain's name.
    pub(crate) name: String,
    /// The format of each disk, `qcow2` or `raw`; 1 to 4.
    pub(crate) disks: Vec<&'static str>,
    /// A qcow2 image that the first disk is to have as its backing file.
    pub(crate) golden: Option<PathBuf>,
    /// Records to a disk, and where.
    pub(crate) slots: u32,
    pub(crate) stride: u32,
    /// Pause between two records, 0 for as fast as the guest can; `None` writes nothing at all.
    pub(crate) pause_us: Option<u32>,
    /// ext4 on each disk and records in a file on it.
    pub(crate) ext4: bool,
    /// qemu-guest-agent.
    pub(crate) agent: bool,
    /// How it behaves: `1` as it should, `hangs`, `late`, `breaks` (see tests/guest/init).
    pub(crate) agent_habit: &'static str,
    /// OVMF with an NVRAM file of its own.
    pub(crate) ovmf: bool,
    /// A software TPM 2.0.
    pub(crate) tpm: bool,
    /// More elements for `<devices>`.
    pub(crate) devices: String,
}

impl Default for GuestSpec {
    fn default() -> Self {
        Self {
            name: "writer".to_owned(),
            disks: vec!["qcow2"],
            golden: None,
            slots: 512,
            stride: 48 << 10,
            pause_us: Some(3000),
            ext4: false,
            agent: false,
            agent_habit: "1",
            ovmf: false,
            tpm: false,
            devices: String::new(),
        }
    }
}

/// A defined guest; gone with its lab.
pub(crate) struct Guest<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) spec: GuestSpec,
    pub(crate) folder: PathBuf,
    pub(crate) progress: Progress,
}

/// Guest bytes of each disk.
const CAPACITY: &str = "192M";

impl Lab {
    /// Makes disks and defines the domain; does not start it.
    pub(crate) fn guest(&self, spec: GuestSpec) -> Guest<'_> {
        let folder = self.folder().join("guests").join(&spec.name);
        std::fs::create_dir_all(&folder).unwrap();
        for disk in 0..spec.disks.len() {
            make_disk(&spec, &folder, disk);
        }
        let xml = folder.join("domain.xml");
        std::fs::write(&xml, domain_xml(&spec, &folder, &words(&spec))).unwrap();
        self.virsh(&["define", "--validate", &xml.to_string_lossy()]);
        let progress = Progress::listen(folder.join("port"));
        Guest { lab: self, spec, folder, progress }
    }
}

impl Guest<'_> {
    /// Starts the domain, from the state of another one of its shape where there is one, and waits until the
    /// writer has written (or, without a writer, until init is ready).
    pub(crate) fn start(&self) -> &Self {
        if state::can_wake(&self.spec) { self.ready_after(|| state::wake(self)) } else { self.boot() }
    }

    /// The same, as a host starts it: the kernel boots.
    pub(crate) fn boot(&self) -> &Self {
        self.ready_after(|| drop(self.lab.virsh(&["start", &self.spec.name])))
    }

    fn ready_after(&self, start: impl FnOnce()) -> &Self {
        let before = self.progress.last();
        start();
        if self.spec.pause_us.is_some() {
            let ready = || {
                assert!(!self.console().contains("FAILED"), "{}", self.console());
                self.progress.last() > before
            };
            wait_for(&format!("the guest writes; console: {}", self.console()), 90, ready);
        } else {
            wait_for("the guest is ready", 90, || self.console().contains("init: ready"));
        }
        self
    }

    /// The domain's name.
    pub(crate) fn name(&self) -> &str {
        &self.spec.name
    }

    /// `running`, `shut off`, ...
    pub(crate) fn state(&self) -> String {
        self.lab.virsh(&["domstate", &self.spec.name]).trim().to_owned()
    }

    /// What the guest printed on its console since its last start.
    pub(crate) fn console(&self) -> String {
        let bytes = std::fs::read(self.folder.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The image file of a disk as the guest was made.
    pub(crate) fn disk(&self, disk: usize) -> PathBuf {
        disk_path(&self.spec, &self.folder, disk)
    }

    /// `(path, format)` of all disks, for [`super::records::check_images`].
    pub(crate) fn images(&self) -> Vec<(PathBuf, &'static str)> {
        self.spec.disks.iter().enumerate().map(|(n, format)| (self.disk(n), *format)).collect()
    }

    /// How the records lie.
    pub(crate) fn layout(&self) -> Layout {
        let disks = u32::try_from(self.spec.disks.len()).unwrap();
        assert!(self.spec.slots.is_power_of_two(), "else the records would not visit every slot");
        Layout { disks, slots: self.spec.slots, stride: self.spec.stride }
    }

    /// Lets the guest end by itself, and waits for it.
    pub(crate) fn power_off(&self) {
        self.progress.tell(b'q');
        wait_for("the guest powers off", 60, || self.state() == "shut off");
    }
}

/// The guest's name of a disk.
pub(crate) fn target(disk: usize) -> String {
    format!("vd{}", ["a", "b", "c", "d"][disk])
}

fn disk_path(spec: &GuestSpec, folder: &Path, disk: usize) -> PathBuf {
    folder.join(format!("{}.{}", target(disk), spec.disks[disk]))
}

pub(super) fn make_disk(spec: &GuestSpec, folder: &Path, disk: usize) {
    let (path, format) = (disk_path(spec, folder, disk), spec.disks[disk]);
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", format]);
    if let (Some(golden), 0) = (&spec.golden, disk) {
        create.args(["-F", "qcow2", "-b"]).arg(golden);
    }
    run(create.arg(&path).arg(CAPACITY));
    if spec.ext4 {
        let raw = folder.join("new.raw");
        run(Command::new("truncate").args(["-s", CAPACITY]).arg(&raw));
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&raw));
        run(Command::new("qemu-img").args(["convert", "-O", format]).arg(&raw).arg(&path));
        std::fs::remove_file(&raw).unwrap();
    }
}

/// The folder with `vmlinuz` and `initrd`, made when something of it changed, and by one test for all.
pub(super) fn boot_files() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = root.join("target/lab");
    std::fs::create_dir_all(&target).unwrap();
    let lock = std::fs::File::create(target.join("lock")).unwrap();
    lock.lock().unwrap();
    run(Command::new(root.join("tests/guest/build")).arg(&target));
    target
}

/// What init is to do (tests/guest/init).
pub(super) fn words(spec: &GuestSpec) -> String {
    let mut line = String::new();
    if let Some(pause) = spec.pause_us {
        write!(line, " records={},{},{pause}", spec.slots, spec.stride).unwrap();
    }
    if spec.ext4 {
        line.push_str(" fs=1");
    }
    if spec.agent {
        write!(line, " agent={}", spec.agent_habit).unwrap();
    }
    line
}

pub(super) fn domain_xml(spec: &GuestSpec, folder: &Path, words: &str) -> String {
    let boot = boot_files();
    let (boot, here) = (boot.display(), folder.display());
    let firmware = if spec.ovmf {
        format!(
            "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>\
             <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>{here}/nvram.fd</nvram>"
        )
    } else {
        String::new()
    };
    format!(
        "<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>192</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type>{firmware}
    <kernel>{boot}/vmlinuz</kernel><initrd>{boot}/initrd</initrd><cmdline>console=ttyS0 quiet panic=-1 {words}</cmdline></os>
  <features><acpi/></features>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
{disks}    <controller type='virtio-serial' index='0'/>
    <channel type='unix'><source mode='bind' path='{here}/port'/><target type='virtio' name='virtfold.lab.0'/></channel>
{agent}{tpm}    <serial type='file'><source path='{here}/console.log'/><target port='0'/></serial>
    <memballoon model='none'/>
{more}  </devices>
</domain>
",
        name = spec.name,
        disks = disks_xml(spec, folder),
        agent = if spec.agent { AGENT } else { "" },
        tpm = if spec.tpm { "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>" } else { "" },
        more = spec.devices,
    )
}

const AGENT: &str =
    "    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\n";

fn disks_xml(spec: &GuestSpec, folder: &Path) -> String {
    let mut xml = String::new();
    for (disk, format) in spec.disks.iter().enumerate() {
        let path = disk_path(spec, folder, disk);
        writeln!(
            xml,
            "    <disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{}'/>\
             <target dev='{}' bus='virtio'/></disk>",
            path.display(),
            target(disk)
        )
        .unwrap();
    }
    xml
}
