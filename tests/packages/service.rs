//! The service as it is installed, under a real systemd with the unit's whole sandbox: it becomes ready, is
//! asked, reloads, backs guests up that run and that are shut off, hears of guests, comes back when it is
//! killed, and ends. Then once more with a filter of system calls that kills: as packaged it refuses, and a
//! refusal might go unnoticed.

use std::time::Duration;

use serde_json::{Value, json};

use crate::common::run::wait_until;
use crate::machine::Machine;
use crate::{HOOK, packages};

/// Two guests. Without a system they stay in their firmware, so `web`'s disk is in use by a QEMU and nobody
/// writes to it.
const GUESTS: &str = r#"
mkdir -p /srv/vm /backup
head -c 12M /dev/urandom > /srv/vm/raw
for name in web db; do
    qemu-img convert -O qcow2 /srv/vm/raw "/srv/vm/$name.qcow2"
    # As an image of a guest is that has run: its user's alone.
    chown libvirt-qemu:kvm "/srv/vm/$name.qcow2"; chmod 600 "/srv/vm/$name.qcow2"
    cat > /tmp/guest.xml <<XML
<domain type='qemu'><name>$name</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os><on_poweroff>destroy</on_poweroff>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/srv/vm/$name.qcow2'/><target dev='vda' bus='virtio'/></disk>
<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>
XML
    virsh -q -c qemu:///system define /tmp/guest.xml
done
rm /srv/vm/raw
virsh -q -c qemu:///system start web
"#;

/// What the packaged file has in comments, and more. A command before a backup is inside of the sandbox; this
/// one tries what must not go.
const CONFIGURE: &str = r#"
sed -i 's/^# \?\(media:\|jobs:\|  .*\)$/\1/' /etc/virtfold/config.yaml
cat > /usr/local/sbin/probe <<'SCRIPT'
#!/bin/bash
try() { if out=$("${@:2}" 2>&1); then echo "$1: done"; else out=${out%%$'\n'*}; echo "$1: ${out##*: }"; fi; }
{
try usr touch /usr/probe
try etc touch /etc/probe
try control-groups mkdir /sys/fs/cgroup/probe
try mount mount -t tmpfs none /mnt
try namespace unshare --mount true
try device head -c 1 /dev/mem
try null head -c 0 /dev/null
try setuid chmod u+s /backup
try archive touch /backup/touched
echo "tmp: $(ls /tmp | wc -l)"
} > "/backup/probe-$VIRTFOLD_DOMAIN"
SCRIPT
chmod 755 /usr/local/sbin/probe
age-keygen -o /root/backup.key 2> /root/public
key=$(sed 's/.*: //' /root/public)
cat > /etc/virtfold/conf.d/more.yaml <<YAML
defaults: { min-free: 0 }
jobs:
  nightly: { before: { command: [/usr/local/sbin/probe] } }
  sealed: { domains: { names: web }, schedule: manual, to: disk, encrypt-to: $key }
  slow: { domains: { names: web }, schedule: manual, to: disk, encrypt-to: $key, limit-rate: 3MiB, compress: none }
  at-shutdown: { domains: { names: db }, on: shutdown, to: disk }
YAML
"#;

/// What the probe finds.
const PROBED: &str = "usr: Read-only file system
etc: Read-only file system
control-groups: Read-only file system
mount: permission denied.
namespace: Operation not permitted
device: Operation not permitted
null: done
setuid: Operation not permitted
archive: done
tmp: 0";

/// Each call that the filter refuses kills who makes it; a main loop that stands still for two seconds is
/// noticed.
const STRICTER: &str = "
mkdir -p /etc/systemd/system/virtfold.service.d
printf '[Service]\nSystemCallErrorNumber=kill\nWatchdogSec=2s\n' > /etc/systemd/system/virtfold.service.d/stricter.conf
systemctl daemon-reload
# Which would be killed, as it should.
ln -sf /bin/true /usr/local/sbin/probe
";

#[test]
fn the_packaged_unit_runs_under_systemd() {
    let machine = Machine::boot("service", packages());
    installed(&machine);
    reloaded(&machine);
    asked_by_the_group_alone(&machine);
    backs_up(&machine);
    for guest in ["web", "db"] {
        assert_eq!(machine.says(&format!("cat /backup/probe-{guest}")), PROBED);
    }
    hears_of_guests(&machine);
    killed_in_a_run(&machine);
    stopped(&machine);

    machine.says(STRICTER);
    machine.says("systemctl start virtfold");
    backs_up(&machine);
    brings_a_guest_home_that_died_too(&machine);
    watched(&machine);
    stopped(&machine);
    nothing_was_refused(&machine);
}

fn installed(machine: &Machine) {
    machine.says(GUESTS);
    let said = machine.says("dpkg -i /tmp/packages/virtfold_0.1.0_amd64.deb 2>&1");
    assert!(said.contains("libvirtd reloads, to see its first hook"), "{said}");
    // It is started before `dpkg` ends, and `Type=notify` makes that wait until it says that it is ready.
    assert_eq!(machine.unit("ActiveState,SubState"), "active\nrunning");
    assert_eq!(machine.says("systemctl is-enabled virtfold"), "enabled");
    let id = machine.unit("MainPID");
    let facts = machine.says(&format!("grep -E '^(NoNewPrivs|Seccomp|CapEff|CapBnd):' /proc/{id}/status"));
    // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER; SETGID, SETUID; SYS_RAWIO and SYS_ADMIN. Seccomp 2 is a
    // filter.
    let capabilities = "00000000002200cf";
    assert_eq!(
        facts,
        format!("CapEff:\t{capabilities}\nCapBnd:\t{capabilities}\nNoNewPrivs:\t1\nSeccomp:\t2")
    );
    assert!(machine.says("virtfold status").contains("libvirt  qemu:///system"));
}

fn reloaded(machine: &Machine) {
    machine.says("echo 'jobs: { nightly: 1 }' > /etc/virtfold/conf.d/bad.yaml");
    let id = machine.unit("MainPID");
    machine.script("systemctl reload virtfold").exits(1);
    machine.says(&format!("rm /etc/virtfold/conf.d/bad.yaml; {CONFIGURE}"));
    machine.says("systemctl reload virtfold");
    let status: Value = serde_json::from_str(&machine.says("virtfold status --json")).unwrap();
    let jobs: Vec<_> = status["jobs"].as_array().unwrap().iter().map(|job| job["job"].clone()).collect();
    assert_eq!(jobs, ["at-shutdown", "nightly", "sealed", "slow"], "{status}");
    assert_eq!((machine.unit("MainPID"), machine.unit("ActiveState")), (id, "active".to_owned()));
}

fn asked_by_the_group_alone(machine: &Machine) {
    let nobody = "setpriv --reuid nobody --clear-groups --regid";
    machine.says(&format!("{nobody} virtfold virtfold status"));
    machine.script(&format!("{nobody} nogroup virtfold status")).exits(10);
}

fn backs_up(machine: &Machine) {
    // A service that is ready may not have had its first look at libvirt yet.
    let known = |status: &Value| {
        status["jobs"].as_array().into_iter().flatten().any(|job| job["domains"] == json!(["db", "web"]))
    };
    until_status(machine, "the guests are known", known);
    machine.says("rm -f /backup/*");
    machine.says("virtfold run nightly --wait && virtfold run sealed --wait");
    for guest in ["web", "db"] {
        machine.says(&format!("virtfold verify /backup/{guest}-*.tar.zst"));
    }
    machine.says("virtfold verify --identity /root/backup.key /backup/web-*.tar.zst.age");
    machine.says("mkdir /tmp/back && cd /tmp && virtfold restore /backup/db-*.tar.zst --output back --force && qemu-img compare back/* /srv/vm/db.qcow2 && rm -r back");
    assert_eq!(disk_of(machine), "/srv/vm/web.qcow2");
}

/// The file that the guest writes to.
fn disk_of(machine: &Machine) -> String {
    machine.says("virsh -q -c qemu:///system domblklist web | sed -n 's/^ *vda *//p'")
}

fn hears_of_guests(machine: &Machine) {
    let empty = "[ -z \"$(ls /var/spool/virtfold/events)\" ]";
    machine.until("the spool is empty", empty);
    // By hand: libvirt tells the service nothing, so only the nudge makes it look. By itself it does so every
    // 30 s, and not twice in 20.
    for _ in 0..2 {
        machine.says(&format!("virsh -c qemu:///system dumpxml db | {HOOK} db prepare begin -"));
        wait_until("the nudge arrives", Duration::from_secs(10), || machine.script(empty).code() == Some(0));
    }
    machine.says("virsh -q -c qemu:///system start db; virsh -q -c qemu:///system destroy db");
    until_backed_up(machine, "db", "at-shutdown");
}

/// The service is killed while a guest's disk is copied: the run brings the guest home, systemd starts the
/// service, and that does the backup again.
fn killed_in_a_run(machine: &Machine) {
    machine.says("virtfold run slow");
    machine.until("the guest is on its overlay", ON_OVERLAY);
    machine.until("the archive's key is kept", "[ -n \"$(ls /run/virtfold/keys)\" ]");
    assert_eq!(machine.says("stat -c '%a %U' /run/virtfold/keys"), "700 root");
    machine.says("touch /run/virtfold/keys/of-another");
    let id = machine.unit("MainPID");
    machine.says("systemctl kill --kill-whom=main -s KILL virtfold");
    machine.until("the guest is at home", &format!("! {{ {ON_OVERLAY}; }}"));
    machine.until("the service is back", "systemctl is-active virtfold");
    until_backed_up(machine, "web", "slow");
    assert_ne!(machine.unit("MainPID"), id);
    assert_eq!(machine.unit("NRestarts"), "1");
    // Keys outlive the service, and go with the archive that they are for.
    assert_eq!(machine.says("ls /run/virtfold/keys"), "of-another");
    machine.says("rm /run/virtfold/keys/of-another");
}

const ON_OVERLAY: &str =
    "virsh -q -c qemu:///system domblklist web | grep vda | grep -vq '/srv/vm/web.qcow2$'";

/// Waits until the service has nothing to do, and a guest's last backup is one of a job.
fn until_backed_up(machine: &Machine, guest: &str, job: &str) {
    let done = |status: &Value| {
        let idle = status["running"] == json!([]) && status["queued"] == 0;
        let domains = status["domains"].as_array().into_iter().flatten();
        idle && domains
            .filter(|domain| domain["domain"] == guest)
            .any(|domain| domain["last_success"]["job"] == job)
    };
    until_status(machine, &format!("{job} has backed {guest} up"), done);
}

/// Waits until the service says of itself what is wanted; it need not be there yet.
fn until_status(machine: &Machine, what: &str, is: impl Fn(&Value) -> bool) {
    wait_until(what, Duration::from_secs(60), || {
        let said = machine.script("virtfold status --json");
        serde_json::from_slice(&said.stdout).is_ok_and(|status| is(&status))
    });
}

fn stopped(machine: &Machine) {
    machine.says("systemctl stop virtfold");
    assert_eq!(machine.unit("ActiveState"), "inactive");
    assert_eq!(machine.unit("Result"), "success");
    assert_eq!(machine.unit("ExecMainStatus"), "0");
    let left =
        machine.says("cat /sys/fs/cgroup/system.slice/virtfold.service/cgroup.procs 2> /dev/null || true");
    assert_eq!(left, "");
}

/// Everything of the service is killed and the guest, too, with something on its overlay: the next service
/// has `qemu-img` commit it, in the sandbox, into an image that is another user's.
fn brings_a_guest_home_that_died_too(machine: &Machine) {
    machine.says("virtfold run slow");
    machine.until("the guest is on its overlay", ON_OVERLAY);
    let overlay = disk_of(machine);
    machine.says("systemctl kill --kill-whom=all -s KILL virtfold; systemctl stop virtfold");
    machine.says("virsh -q -c qemu:///system destroy web");
    machine.says(&format!("qemu-io -c 'write -P 5 1M 64k' {overlay}"));
    machine.says("systemctl reset-failed virtfold; systemctl start virtfold");
    machine.until("the guest is at home", &format!("! [ -e {overlay} ]"));
    assert_eq!(disk_of(machine), "/srv/vm/web.qcow2");
    let read = machine.says("qemu-io -r -U -c 'read -P 5 1M 64k' /srv/vm/web.qcow2");
    assert!(!read.contains("failed"), "{read}");
    machine.until("nothing is to be done", "virtfold queue --json | grep -q '\"entries\":\\[\\]'");
}

/// The drop-in's watchdog has let the service live until now; one that stands still is started anew.
fn watched(machine: &Machine) {
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(machine.unit("NRestarts"), "0");
    machine.says("systemctl kill --kill-whom=main -s STOP virtfold");
    machine.until("the watchdog bites", "[ \"$(systemctl show --value -p NRestarts virtfold)\" = 1 ]");
    machine.until("the service is back", "systemctl is-active virtfold");
    assert!(machine.journal().contains("Watchdog timeout"));
}

/// Nobody died of a call or met a permission that it lacks.
fn nothing_was_refused(machine: &Machine) {
    let journal = machine.journal();
    let ends: Vec<_> = journal.lines().filter(|line| line.contains("Main process exited")).collect();
    // Killed twice, and once by the watchdog.
    assert!(ends.len() == 3 && !ends.iter().any(|line| line.contains("SYS")), "{ends:?}");
    for word in [
        " ERROR ",
        "not permitted",
        "EPERM",
        "ermission denied",
        "Read-only",
        "SIGSYS",
        "signal 31",
        "panicked",
    ] {
        let lines: Vec<_> = journal.lines().filter(|line| line.contains(word)).collect();
        assert!(lines.is_empty(), "{lines:?}");
    }
    println!("{} lines in the journal", journal.lines().count());
}
