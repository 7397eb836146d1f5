//! Guests that AppArmor confines, for real: Debian's user-mode-linux has AppArmor, so a machine of it loads
//! Debian's rules and runs a confined libvirtd with a confined QEMU. The guest has two disks and a CD drive
//! and idles in its firmware; QEMU's monitor writes to its disks for it.
//!
//! A copy goes into a pipe that nobody reads until the test wants it to end.

use std::path::Path;
use std::process::Command;

use crate::common::machine::{Kind, Machine, Running};
use crate::common::run::{Outcome, text, tool};
use crate::common::scratch::Scratch;

const UUID: &str = "5f3c2a10-0d3e-4b5f-9a53-1d0c8f6f7a01";
const IMAGES: &str = "/var/lib/libvirt/images";

/// libvirt's folders and rules are this machine's copies; its rules for libvirtd and its helper are loaded.
const PRELUDE: &str = r#"hostname confined; ip link set lo up
mount -t securityfs sec /sys/kernel/security; mount -t cgroup2 cg /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm /run/lock /run/libvirt; mount -t devpts pts /dev/pts; mount -t tmpfs shm /dev/shm
for d in /etc/libvirt /etc/apparmor.d/libvirt; do mkdir -p /run/copy$d; cp -a $d/. /run/copy$d; mount --bind /run/copy$d $d; done
rm -rf /etc/libvirt/qemu/* /etc/libvirt/storage/* /etc/apparmor.d/libvirt/libvirt-*
for d in /var/lib/libvirt /var/log/libvirt /var/cache/libvirt /var/tmp; do mount -t tmpfs tmp $d || exit 1; done
mkdir -p /var/lib/libvirt/images /var/lib/libvirt/qemu /var/lib/libvirt/boot /var/log/libvirt/qemu
chown libvirt-qemu /var/lib/libvirt/qemu
for p in usr.lib.libvirt.virt-aa-helper usr.sbin.libvirtd; do
  apparmor_parser -K -r /etc/apparmor.d/$p || { echo "no rules $p: the package apparmor has the parser"; exit 1; }
done
echo 'stdio_handler = "file"' > /etc/libvirt/qemu.conf
printf 'auth_unix_ro = "none"\nauth_unix_rw = "none"\n' > /etc/libvirt/libvirtd.conf
libvirtd -d || exit 1
n=0; until virsh -q version > /dev/null 2>&1 || [ $n -gt 300 ]; do sleep 0.1; n=$((n+1)); done"#;

struct Host {
    machine: Machine,
    _scratch: Scratch,
}

impl Host {
    fn boot() -> Self {
        let scratch = Scratch::new("apparmor");
        let arguments = ["lsm=apparmor", "apparmor=1", "security=apparmor"].map(str::to_owned).to_vec();
        let kind = Kind { memory: "1G", arguments, prelude: PRELUDE };
        let machine = Machine::boot(scratch.path(), &kind);
        let mut host = Self { machine, _scratch: scratch };
        host.define();
        host
    }

    fn sh(&mut self, script: &str) -> Outcome {
        self.machine.run(&shell(script))
    }

    fn text(&mut self, script: &str) -> String {
        self.sh(script).ok().text().to_owned()
    }

    fn define(&mut self) {
        let disk = |name: &str| {
            format!(
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{IMAGES}/{name}.qcow2'/>\
                 <target dev='vd{name}' bus='virtio'/></disk>"
            )
        };
        let xml = format!(
            "<domain type='qemu'><name>confined</name><uuid>{UUID}</uuid><memory unit='MiB'>32</memory>\
             <os><type arch='x86_64' machine='q35'>hvm</type></os><devices>{}{}\
             <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='{IMAGES}/cd.iso'/>\
             <target dev='sda' bus='sata'/></disk><memballoon model='none'/></devices></domain>",
            disk("a"),
            disk("b")
        );
        let script = format!(
            "cd {IMAGES}; truncate -s 1M cd.iso
             for d in a b; do qemu-img create -q -f qcow2 $d.qcow2 16M; qemu-io -f qcow2 -c 'write -P 7 8M 4M' $d.qcow2; done
             cat > /run/xml <<'X'\n{xml}\nX\nvirsh -q define /run/xml && virsh -q start confined"
        );
        self.text(&script);
        let label = self.text("cat /proc/$(pgrep -x qemu-system-x86)/attr/current");
        assert_eq!(label.trim(), format!("libvirt-{UUID} (enforce)"), "the guest is not confined");
    }

    /// The guest writes to both disks, at so many MiB.
    fn write(&mut self, at: u32) {
        for disk in 0..2 {
            let words = format!(
                "qemu-io -d /machine/peripheral/virtio-disk{disk}/virtio-backend \"write -P {at} {at}M 64k\""
            );
            let said = self.text(&format!("virsh -q qemu-monitor-command confined --hmp '{words}'"));
            assert_eq!(said.trim(), "", "{words}");
        }
    }

    fn virtfold(&mut self, words: &str) -> Outcome {
        let script = virtfold(words);
        self.sh(&script)
    }

    /// A backup that stands in its copy until [`Host::go_on`].
    fn begin(&mut self) -> Running {
        let reader = "{ until [ -e /run/go ]; do sleep 0.05; done; cat > /dev/null; }";
        let backup = virtfold("backup confined --to - --compress none --min-free 0");
        let script = format!("set -o pipefail; rm -f /run/go; {backup} | {reader}");
        let running = self.machine.start(&shell(&script));
        self.text("n=0; until [ $(virsh -q domblklist confined | grep -c virtfold-) = 2 ]; do sleep 0.1; n=$((n+1)); [ $n -lt 600 ]; done");
        running
    }

    fn go_on(&mut self, running: Running) -> Outcome {
        self.text("touch /run/go");
        running.wait()
    }

    /// The guest is on its own disks, may write to them by AppArmor's rules, and nothing is left.
    fn is_home(&mut self) {
        let disks = self.text("virsh -q domblklist confined; virsh -q domblklist confined --inactive; virsh -q domstate confined");
        assert_eq!(disks.matches(".qcow2\n").count(), 4, "{disks}");
        assert!(disks.contains("running"), "{disks}");
        let files = self.text(&format!("ls -A {IMAGES}"));
        assert_eq!(files.split_whitespace().collect::<Vec<_>>(), ["a.qcow2", "b.qcow2", "cd.iso"]);
        let rules = self.text(&format!("cat /etc/apparmor.d/libvirt/libvirt-{UUID}.files"));
        for disk in ["a", "b"] {
            assert!(rules.contains(&format!("\"{IMAGES}/{disk}.qcow2\" rwk,")), "{rules}");
            assert!(!rules.contains(&format!("deny \"{IMAGES}/{disk}.qcow2\"")), "{rules}");
        }
    }
}

fn shell(script: &str) -> Command {
    let mut command = tool("bash", ["-c", script]);
    for (name, value) in [("STATE_DIR", "/run/state"), ("GUARDS", "/run/guards"), ("KEYS", "/run/keys")] {
        command.env(format!("VIRTFOLD_{name}"), value);
    }
    command
}

fn virtfold(words: &str) -> String {
    format!("'{}' {words}", text(Path::new(env!("CARGO_BIN_EXE_virtfold"))))
}

#[test]
fn confined_guests_come_back_onto_their_disks() {
    let mut host = Host::boot();
    // The pivot of the one disk denies the other one its base.
    host.virtfold("backup confined --to /run --min-free 0").ok();
    host.is_home();

    // So does a CD that is ejected in the copy, to both.
    let running = host.begin();
    host.write(1);
    host.text("virsh -q change-media confined sda --eject --live");
    host.go_on(running).ok();
    host.is_home();

    // And a start on the overlays.
    let running = host.begin();
    host.write(2);
    host.text("pkill -KILL -x virtfold; virsh -q destroy confined");
    assert!(host.go_on(running).code() != Some(0));
    host.text("virsh -q start confined");
    host.write(3);
    let denied = host.text(&format!("grep -c 'deny .*qcow2' /etc/apparmor.d/libvirt/libvirt-{UUID}.files"));
    assert_eq!(denied.trim(), "2", "nothing would be shown");
    let recovered = host.virtfold("recover").ok();
    println!("{recovered}");
    assert_eq!(recovered.text().matches("lift that denial in").count(), 2, "{recovered}");
    host.is_home();
    assert!(host.virtfold("recover").ok().text().contains("nothing to recover"));

    host.text("virsh -q destroy confined");
    for disk in ["a", "b"] {
        let reads: String = [1, 2, 3].map(|at| format!("-c 'read -P {at} {at}M 64k' ")).concat();
        let read =
            host.text(&format!("qemu-io -r -f qcow2 {reads} -c 'read -P 7 8M 4M' {IMAGES}/{disk}.qcow2"));
        assert!(!read.contains("failed"), "{disk}: {read}");
    }
}
