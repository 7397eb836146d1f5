//! The Debian package.

use crate::room::Room;
use crate::{HOOK, packages};

const XML: &str = "<domain type=\"qemu\"><name>web</name><uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid></domain>";

fn room(name: &str) -> Room {
    Room::new(name, packages())
}

fn install(room: &Room, version: &str) {
    room.says(&format!("dpkg -i /tmp/packages/virtfold_{version}_amd64.deb 2>&1"));
    assert_eq!(room.says("dpkg-query -W -f '${Version} ${Status}' virtfold"), format!("{version} install ok installed"));
}

#[test]
fn a_fresh_installation_is_whole() {
    let room = room("deb-fresh");
    install(&room, "0.1.0");
    assert_eq!(room.stat("/usr/bin/virtfold"), "regular file 755 root:root");
    assert_eq!(room.stat("/etc/virtfold/config.yaml"), "regular file 644 root:root");
    assert_eq!(room.stat("/etc/virtfold/conf.d"), "directory 755 root:root");
    assert_eq!(room.stat("/var/lib/virtfold"), "directory 711 root:root");
    assert_eq!(room.stat("/var/spool/virtfold/events"), "directory 700 root:root");
    assert_eq!(room.stat("/run/virtfold"), "directory 750 root:virtfold");
    assert_eq!(room.stat(HOOK), "/usr/sbin/virtfold-hook");
    assert_eq!(
        room.stat("/etc/systemd/system/multi-user.target.wants/virtfold.service"),
        "/lib/systemd/system/virtfold.service"
    );
    let conffiles = room.says("dpkg-query -W -f '${Conffiles}' virtfold");
    let paths: Vec<_> = conffiles.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(paths, ["/etc/virtfold/config.yaml"]);
    let depends = room.says("dpkg-query -W -f '${Depends}' virtfold");
    for package in ["libc6", "libvirt0", "qemu-utils", "systemd"] {
        assert!(depends.contains(package), "{depends}");
    }
    assert!(room.says("virtfold --version").starts_with("virtfold 0."));
    assert_eq!(room.says("virtfold config check"), "/etc/virtfold/config.yaml: ok");
    assert_eq!(room.says("virtfold config check --config /usr/share/doc/virtfold/examples/config-minimal.yaml | grep -c ok"), "1");
    // Nothing of the package may be written by others than root.
    assert_eq!(room.says("dpkg -L virtfold | xargs stat -c '%U %a %n' | grep -v '^root [0-7][0145][0145] ' || true"), "");
}

#[test]
fn the_hook_keeps_an_event_and_exits_0() {
    let room = room("deb-hook");
    install(&room, "0.1.0");
    room.says(&format!("echo '{XML}' | {HOOK} web started begin -"));
    let kept = room.says("cat /var/spool/virtfold/events/*");
    assert!(kept.contains("\"web\"") && kept.contains("qemu"), "{kept}");
}

#[test]
fn systemd_finds_nothing_wrong_with_the_installed_unit() {
    let room = room("deb-unit");
    install(&room, "0.1.0");
    assert_eq!(room.says("systemd-analyze verify /usr/lib/systemd/system/virtfold.service 2>&1"), "");
}

#[test]
fn an_upgrade_keeps_the_configuration_and_the_state() {
    let room = room("deb-upgrade");
    install(&room, "0.1.0");
    room.says("echo '# mine' >> /etc/virtfold/config.yaml");
    room.says("echo 'version: 1' > /etc/virtfold/conf.d/mine.yaml; echo state > /var/lib/virtfold/catalog.sqlite");
    room.says(&format!("rm {HOOK}; systemctl disable virtfold 2>&1"));
    install(&room, "0.2.0");
    assert_eq!(room.says("tail -n 1 /etc/virtfold/config.yaml"), "# mine");
    assert_eq!(room.says("cat /etc/virtfold/conf.d/mine.yaml /var/lib/virtfold/catalog.sqlite"), "version: 1\nstate");
    // What an administrator took away stays away.
    assert_eq!(room.stat(HOOK), "gone");
    assert_eq!(room.stat("/etc/systemd/system/multi-user.target.wants/virtfold.service"), "gone");
}

#[test]
fn a_removal_keeps_the_configuration_and_takes_the_hook_away() {
    let room = room("deb-remove");
    install(&room, "0.1.0");
    room.says("echo '# mine' >> /etc/virtfold/config.yaml; touch /var/lib/virtfold/archive.tar");
    room.says("dpkg -r virtfold");
    assert_eq!(room.stat(HOOK), "gone");
    assert_eq!(room.stat("/usr/bin/virtfold"), "gone");
    assert_eq!(room.says("tail -n 1 /etc/virtfold/config.yaml"), "# mine");
    assert_eq!(room.stat("/var/lib/virtfold/archive.tar"), "regular empty file 644 root:root");
    install(&room, "0.2.0");
    assert_eq!(room.stat(HOOK), "/usr/sbin/virtfold-hook");
    assert_eq!(room.says("tail -n 1 /etc/virtfold/config.yaml"), "# mine");
}

#[test]
fn a_purge_removes_what_is_virtfolds_own_and_no_more() {
    let room = room("deb-purge");
    install(&room, "0.1.0");
    room.says("mkdir /var/lib/virtfold/locks && touch /var/lib/virtfold/locks/a.lock /var/lib/virtfold/service.yaml");
    room.says("dpkg -P virtfold");
    for path in ["/etc/virtfold", "/var/lib/virtfold", "/var/spool/virtfold", HOOK] {
        assert_eq!(room.stat(path), "gone", "{path}");
    }

    // An overlay that a guest may write to, an archive, and somebody's own hook.
    install(&room, "0.1.0");
    room.says("mkdir /var/lib/virtfold/overlays && touch /var/lib/virtfold/overlays/web.qcow2 /var/lib/virtfold/web.tar");
    room.says(&format!("rm {HOOK} && echo mine > {HOOK} && echo 'version: 1' > /etc/virtfold/conf.d/mine.yaml"));
    room.says("dpkg -P virtfold");
    let kept = "find /var/lib/virtfold /etc/virtfold /etc/libvirt/hooks/qemu.d -type f | sort";
    assert_eq!(
        room.says(kept),
        format!("{HOOK}\n/etc/virtfold/conf.d/mine.yaml\n/var/lib/virtfold/overlays/web.qcow2\n/var/lib/virtfold/web.tar")
    );
}

/// libvirt does not run here, so nobody can say that all guests are home: their journal stays.
#[test]
fn a_purge_keeps_the_journal_of_guests_that_are_not_home() {
    let room = room("deb-unfinished");
    install(&room, "0.1.0");
    room.says("touch /var/lib/virtfold/catalog.sqlite");
    assert!(room.says("dpkg -P virtfold 2>&1").contains("may not be on their own disks"));
    assert_eq!(room.stat("/var/lib/virtfold/catalog.sqlite"), "regular empty file 644 root:root");
}
