//! The RPM package, by `rpm` itself. Its dependencies are names of other distributions, so they are looked at
//! and not asked for.

use crate::room::Room;
use crate::{HOOK, packages};

/// Debian's rpm wants to be told that it is meant; the room has an empty database.
fn rpm(room: &Room, what: &str) {
    room.says(&format!("rpm --force-debian --nodeps {what} 2>&1"));
}

#[test]
fn an_rpm_is_installed_upgraded_and_erased() {
    let room = Room::new("rpm", packages());
    let file = |version: &str| format!("/tmp/packages/virtfold-{version}-1.x86_64.rpm");
    let requires = room.says(&format!("rpm -qp --requires {}", file("0.1.0")));
    for wanted in ["libvirt.so.0", "qemu-img", "systemd"] {
        assert!(requires.contains(wanted), "{requires}");
    }

    rpm(&room, &format!("-i {}", file("0.1.0")));
    assert_eq!(room.stat("/etc/virtfold/config.yaml"), "regular file 644 root:root");
    assert_eq!(room.stat("/run/virtfold"), "directory 750 root:virtfold");
    assert_eq!(room.stat(HOOK), "/usr/sbin/virtfold-hook");
    assert!(room.says("virtfold --version").starts_with("virtfold 0."));
    assert_eq!(room.says("virtfold config check"), "/etc/virtfold/config.yaml: ok");

    room.says("echo '# mine' >> /etc/virtfold/config.yaml; touch /var/lib/virtfold/archive.tar");
    room.says(&format!("rm {HOOK}"));
    rpm(&room, &format!("-U {}", file("0.2.0")));
    assert_eq!(room.says("rpm -q --qf '%{VERSION}' virtfold"), "0.2.0");
    assert_eq!(room.says("tail -n 1 /etc/virtfold/config.yaml"), "# mine");
    assert_eq!(room.stat(HOOK), "gone");

    room.says("/usr/lib/virtfold/hook install");
    rpm(&room, "-e virtfold");
    assert_eq!(room.stat(HOOK), "gone");
    assert_eq!(room.stat("/usr/bin/virtfold"), "gone");
    assert_eq!(room.says("tail -n 1 /etc/virtfold/config.yaml.rpmsave"), "# mine");
    assert_eq!(room.stat("/var/lib/virtfold/archive.tar"), "regular empty file 644 root:root");
}
