//! The Debian package.

use crate::room::Room;
use crate::{HOOK, packages};

const XML: &str =
    "<domain type=\"qemu\"><name>web</name><uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid></domain>";

const WANTED: &str = "/etc/systemd/system/multi-user.target.wants/virtfold.service";

fn room(name: &str) -> Room {
    Room::new(name, packages())
}

fn install(room: &Room, version: &str) {
    room.says(&format!("dpkg -i /tmp/packages/virtfold_{version}_amd64.deb 2>&1"));
    assert_eq!(
        room.says("dpkg-query -W -f '${Version} ${Status}' virtfold"),
        format!("{version} install ok installed")
    );
}

#[test]
fn a_package_is_installed_upgraded_removed_and_installed_again() {
    let room = room("deb");
    fresh(&room);
    the_hook_keeps_an_event(&room);
    // Also looks for the man pages that the unit names.
    assert_eq!(room.says("systemd-analyze verify /usr/lib/systemd/system/virtfold.service 2>&1"), "");
    upgraded(&room);
    removed_and_installed_again(&room);
}

fn fresh(room: &Room) {
    install(room, "0.1.0");
    assert_eq!(room.stat("/usr/bin/virtfold"), "regular file 755 root:root");
    assert_eq!(room.stat("/etc/virtfold/config.yaml"), "regular file 644 root:root");
    assert_eq!(room.stat("/etc/virtfold/conf.d"), "directory 755 root:root");
    assert_eq!(room.stat("/etc/virtfold/signing-key"), "regular file 600 root:root");
    assert!(room.says("virtfold key show").contains(" namespaces=\"virtfold-archive\" ssh-ed25519 "));
    assert_eq!(room.stat("/var/lib/virtfold"), "directory 711 root:root");
    assert_eq!(room.stat("/var/spool/virtfold/events"), "directory 700 root:root");
    assert_eq!(room.stat("/run/virtfold"), "directory 750 root:virtfold");
    assert_eq!(room.stat(HOOK), "/usr/sbin/virtfold-hook");
    assert!(room.stat(WANTED).ends_with("/lib/systemd/system/virtfold.service"));
    let conffiles = room.says("dpkg-query -W -f '${Conffiles}' virtfold");
    let paths: Vec<_> = conffiles.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(paths, ["/etc/virtfold/config.yaml"]);
    let depends = room.says("dpkg-query -W -f '${Depends}' virtfold");
    for package in ["libc6", "libvirt0", "qemu-utils", "systemd"] {
        assert!(depends.contains(package), "{depends}");
    }
    assert!(room.says("virtfold --version").starts_with("virtfold 0."));
    assert_eq!(room.says("virtfold config check"), "/etc/virtfold/config.yaml: ok");
    // Nothing of the package may be written by others than root.
    let open = "dpkg -L virtfold | xargs stat -c '%U %a %n' | grep -v '^root [0-7][0145][0145] ' || true";
    assert_eq!(room.says(open), "");
}

fn the_hook_keeps_an_event(room: &Room) {
    room.says(&format!("echo '{XML}' | {HOOK} web started begin -"));
    let kept = room.says("cat /var/spool/virtfold/events/*");
    assert!(kept.contains("\"web\"") && kept.contains("qemu"), "{kept}");
}

fn upgraded(room: &Room) {
    room.says("echo '# mine' >> /etc/virtfold/config.yaml");
    room.says(
        "echo 'version: 1' > /etc/virtfold/conf.d/mine.yaml; echo state > /var/lib/virtfold/service.yaml",
    );
    room.says(&format!("rm {HOOK}; systemctl disable virtfold 2>&1"));
    install(room, "0.2.0");
    assert_eq!(room.says("tail -n 1 /etc/virtfold/config.yaml"), "# mine");
    let kept = room.says("cat /etc/virtfold/conf.d/mine.yaml /var/lib/virtfold/service.yaml");
    assert_eq!(kept, "version: 1\nstate");
    // What an administrator took away stays away.
    assert_eq!(room.stat(HOOK), "gone");
    assert_eq!(room.stat(WANTED), "gone");
}

fn removed_and_installed_again(room: &Room) {
    room.says("/usr/lib/virtfold/hook install; touch /var/lib/virtfold/archive.tar");
    room.says("dpkg -r virtfold");
    assert_eq!(room.stat(HOOK), "gone");
    assert_eq!(room.stat("/usr/bin/virtfold"), "gone");
    assert_eq!(room.says("tail -n 1 /etc/virtfold/config.yaml"), "# mine");
    assert_eq!(room.stat("/var/lib/virtfold/archive.tar"), "regular empty file 644 root:root");
    install(room, "0.2.0");
    assert_eq!(room.stat(HOOK), "/usr/sbin/virtfold-hook");
    assert_eq!(room.says("tail -n 1 /etc/virtfold/config.yaml"), "# mine");
}

#[test]
fn a_purge_removes_what_is_virtfolds_own_and_no_more() {
    let room = room("deb-purge");
    install(&room, "0.1.0");
    // libvirt does not run here, so nobody can say that all guests are home: their journal stays.
    room.says("touch /var/lib/virtfold/catalog.sqlite");
    assert!(room.says("dpkg -P virtfold 2>&1").contains("may not be on their own disks"));
    assert_eq!(room.stat("/var/lib/virtfold/catalog.sqlite"), "regular empty file 644 root:root");
    assert_eq!(room.stat("/etc/virtfold"), "gone");

    // An overlay that a guest may write to, an archive, somebody's own hook and configuration.
    room.says("rm /var/lib/virtfold/catalog.sqlite");
    install(&room, "0.1.0");
    room.says("cd /var/lib/virtfold; mkdir overlays locks; touch overlays/web.qcow2 web.tar locks/a.lock service.yaml");
    room.says(&format!(
        "rm {HOOK} && echo mine > {HOOK}; echo 'version: 1' > /etc/virtfold/conf.d/mine.yaml"
    ));
    room.says("dpkg -P virtfold");
    assert_eq!(
        room.says("find /var/lib/virtfold /etc/virtfold /etc/libvirt/hooks/qemu.d -type f | sort"),
        format!(
            "{HOOK}\n/etc/virtfold/conf.d/mine.yaml\n/var/lib/virtfold/overlays/web.qcow2\n/var/lib/virtfold/web.tar"
        )
    );

    room.says("rm -r /var/lib/virtfold/* /etc/virtfold/conf.d/mine.yaml");
    install(&room, "0.1.0");
    room.says("dpkg -P virtfold");
    for path in ["/etc/virtfold", "/var/lib/virtfold", "/var/spool/virtfold"] {
        assert_eq!(room.stat(path), "gone", "{path}");
    }
}
