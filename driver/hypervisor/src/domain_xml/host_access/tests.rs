//! What passes, and what an attacker would write.

use std::path::Path;

use proptest::prelude::*;

use super::table::{HOST_RULES, PLAIN, Passes};
use super::*;

const WINDOWS: &str = include_str!("testdata/virt_manager_windows.xml");
const BIOS: &str = include_str!("testdata/virt_install_bios.xml");
const SERVER: &str = include_str!("testdata/cockpit_server.xml");

fn parsed(text: &str) -> DomainXml {
    DomainXml::parse(text).unwrap()
}

fn granted<'a>(restored: &[&str], own: Vec<&'a DomainXml>) -> Granted<'a> {
    let restored = restored.iter().map(|path| Path::new(path).to_owned()).collect();
    Granted { restored, channels: vec!["/var/lib/libvirt/qemu/channel".into()], own }
}

/// A domain with these elements, and devices.
fn domain(elements: &str, devices: &str) -> String {
    format!("<domain type='kvm'><name>x</name>{elements}<devices>{devices}</devices></domain>")
}

/// Kind, place and value of each finding.
fn found(text: &str) -> Vec<(HostAccess, String, String)> {
    let found = check(&parsed(text), &granted(&["/vm/a.img"], vec![])).unwrap();
    found.into_iter().map(|one| (one.kind, one.place, one.value)).collect()
}

fn only(text: &str) -> (HostAccess, String, String) {
    let found = found(text);
    assert_eq!(found.len(), 1, "{text}: {found:?}");
    found.into_iter().next().unwrap()
}

fn is(text: &str, kind: HostAccess, place: &str, value: &str) {
    assert_eq!(only(text), (kind, place.to_owned(), value.to_owned()));
}

#[test]
fn definitions_of_virt_manager_virt_install_and_cockpit_pass() {
    let disks = ["/var/lib/libvirt/images/win11.qcow2", "/var/lib/libvirt/qemu/nvram/win11_VARS.fd"];
    let all = [(WINDOWS, &disks[..]), (BIOS, &["/dev/vg0/deb11"]), (SERVER, &["/srv/vm/db.qcow2"])];
    for (text, restored) in all {
        assert_eq!(check(&parsed(text), &granted(restored, vec![])).unwrap(), []);
    }
    // And nothing of them passes that is not restored.
    let places: Vec<_> = found(WINDOWS).into_iter().map(|(_, place, _)| place).collect();
    assert_eq!(places, ["os/nvram", "devices/disk/source@file"]);
}

#[test]
fn an_ethernet_script_is_found() {
    let text = domain(
        "",
        "<interface type='ethernet'><script path='/tmp/evil.sh'/><target dev='tap0'/></interface>",
    );
    let kinds: Vec<_> = found(&text).into_iter().map(|(kind, place, _)| (kind, place)).collect();
    let expected = [
        (HostAccess::Network, "devices/interface@type"),
        (HostAccess::Script, "devices/interface/script"),
        (HostAccess::Network, "devices/interface/target@dev"),
    ];
    assert_eq!(kinds, expected.map(|(kind, place)| (kind, place.to_owned())));
    let bridge = domain("", "<interface type='bridge'><source bridge='br0'/><script path='/x'/></interface>");
    is(&bridge, HostAccess::Script, "devices/interface/script", "path=/x");
    for kind in ["direct", "hostdev", "vhostuser", "vdpa", "server", "client", "mcast", "udp", "internal"] {
        let text = domain("", &format!("<interface type='{kind}'/>"));
        is(&text, HostAccess::Network, "devices/interface@type", kind);
    }
}

#[test]
fn a_label_of_root_is_found() {
    let label =
        |kind: &str| domain(&format!("<seclabel {kind} model='dac'><label>+0:+0</label></seclabel>"), "");
    let kinds = found(&label("type='static' relabel='no'"));
    assert!(kinds.iter().all(|(kind, ..)| *kind == HostAccess::Seclabel), "{kinds:?}");
    assert_eq!(kinds.len(), 3, "{kinds:?}");
    assert_eq!(kinds[2].2, "+0:+0");
    // libvirt does not read it again.
    assert_eq!(found(&label("type='dynamic'")), []);
    is(&domain("<seclabel type='none'/>", ""), HostAccess::Seclabel, "seclabel@type", "none");
    let disk = "<disk type='file'><source file='/vm/a.img'><seclabel model='dac'><label>+0:+0</label>\
         </seclabel></source><target dev='vda'/></disk>";
    is(&domain("", disk), HostAccess::Seclabel, "devices/disk/source/seclabel/label", "+0:+0");
}

#[test]
fn a_file_for_fw_cfg_is_found() {
    let text = domain(
        "<sysinfo type='fwcfg'><entry name='opt/a'>said here</entry>\
         <entry name='opt/b' file='/etc/shadow'/></sysinfo>",
        "",
    );
    is(&text, HostAccess::FwCfg, "sysinfo/entry@file", "/etc/shadow");
}

#[test]
fn images_that_are_not_restored_are_found() {
    let disk = |more: &str, source: &str| {
        domain("", &format!("<disk type='file' {more}><source {source}/><target dev='sdb'/></disk>"))
    };
    assert_eq!(found(&disk("device='cdrom'", "file='/vm/a.img'")), []);
    let root = "file='/etc/shadow'";
    is(&disk("device='cdrom'", root), HostAccess::Cdrom, "devices/disk/source@file", "/etc/shadow");
    is(&disk("device='disk'", root), HostAccess::Disk, "devices/disk/source@file", "/etc/shadow");
    is(&disk("", "file='/vm/../vm/a.img'"), HostAccess::Disk, "devices/disk/source@file", "/vm/../vm/a.img");
    let below = "<disk type='file'><source file='/vm/a.img'/><backingStore type='file'><format type='raw'/>\
         <source file='/b'/><backingStore type='file'><source file='/c'/></backingStore></backingStore>\
         <target dev='vda'/></disk>";
    let found: Vec<_> =
        found(&domain("", below)).into_iter().map(|(_, place, value)| (place, value)).collect();
    let place = "devices/disk/backingStore/source@file".to_owned();
    assert_eq!(found, [(place.clone(), "/b".to_owned()), (place, "/c".to_owned())]);
    let remote = "<disk type='network' device='cdrom'><source protocol='http' name='x'>\
         <host name='h'/></source><target dev='sdb'/></disk>";
    assert!(self::found(&domain("", remote)).iter().all(|(kind, ..)| *kind == HostAccess::Cdrom));
    let of = check(&parsed(&disk("device='floppy'", root)), &Granted::default()).unwrap();
    assert_eq!(of[0].disk.as_deref(), Some("sdb"));
    for kind in ["dir", "nvme", "vhostuser", "vhostvdpa"] {
        let text = domain("", &format!("<disk type='{kind}'><target dev='sdb'/></disk>"));
        is(&text, HostAccess::HostDevice, "devices/disk@type", kind);
    }
}

#[test]
fn serial_lines_and_logs_to_files_are_found() {
    let text = domain("", "<serial type='file'><source path='/etc/cron.d/x'/></serial>");
    let seen: Vec<_> = found(&text).into_iter().map(|(kind, place, _)| (kind, place)).collect();
    let (kind, line) = (HostAccess::CharacterDevice, "devices/serial@type".to_owned());
    assert_eq!(seen, [(kind, line), (kind, "devices/serial/source@path".to_owned())]);
    let log = domain("", "<console type='pty'><log file='/etc/cron.d/x' append='on'/></console>");
    is(&log, HostAccess::LogFile, "devices/console/log@file", "/etc/cron.d/x");
    let channel = |path: &str| {
        let source = format!("<source mode='bind' path='{path}'/><target type='virtio' name='a.0'/>");
        domain("", &format!("<channel type='unix'>{source}</channel>"))
    };
    assert_eq!(found(&channel("/var/lib/libvirt/qemu/channel/target/domain-3-x/a.0")), []);
    for path in [
        "/run/docker.sock",
        "/var/lib/libvirt/qemu/channel/../../a.0",
        "/var/lib/libvirt/qemu/channel/target/domain-3-x/b.0",
        "/a.0",
    ] {
        is(&channel(path), HostAccess::CharacterDevice, "devices/channel/source@path", path);
    }
    let theirs = "<channel type='unix'><source mode='connect'/></channel>";
    is(&domain("", theirs), HostAccess::CharacterDevice, "devices/channel/source@mode", "connect");
    for kind in ["dev", "pipe", "stdio", "tcp", "udp", "nmdm", "dbus"] {
        let text = domain("", &format!("<parallel type='{kind}'/>"));
        is(&text, HostAccess::CharacterDevice, "devices/parallel@type", kind);
    }
    let terminal = "<console type='pty' tty='/dev/pts/../sda'/>";
    is(&domain("", terminal), HostAccess::CharacterDevice, "devices/console@tty", "/dev/pts/../sda");
}

#[test]
fn devices_directories_and_memory_of_the_host_are_found() {
    let devices = [
        ("<hostdev mode='subsystem' type='pci'/>", HostAccess::HostDevice),
        ("<filesystem type='mount'><source dir='/'/></filesystem>", HostAccess::Filesystem),
        ("<shmem name='a'/>", HostAccess::SharedMemory),
        ("<lease><target path='/x'/></lease>", HostAccess::File),
        ("<pstore backend='acpi-erst'><path>/x</path></pstore>", HostAccess::File),
        ("<rng model='virtio'><backend model='random'>/dev/hwrng</backend></rng>", HostAccess::HostDevice),
        ("<rng model='virtio'><backend model='egd'/></rng>", HostAccess::CharacterDevice),
        ("<input type='evdev'/>", HostAccess::HostDevice),
        ("<input type='passthrough'/>", HostAccess::HostDevice),
        ("<tpm model='tpm-tis'><backend type='passthrough'/></tpm>", HostAccess::HostDevice),
        ("<tpm><backend type='emulator'><source type='file' path='/x'/></backend></tpm>", HostAccess::File),
        ("<tpm><backend type='emulator'><encryption secret='u'/></backend></tpm>", HostAccess::Secret),
        ("<memory model='nvdimm'/>", HostAccess::HostDevice),
        ("<memory model='dimm'><source><path>/x</path></source></memory>", HostAccess::File),
        ("<graphics type='vnc' listen='0.0.0.0'/>", HostAccess::Listen),
        ("<graphics type='spice'><listen type='address' address='::'/></graphics>", HostAccess::Listen),
        ("<graphics type='vnc' socket='/x'/>", HostAccess::Listen),
        ("<graphics type='sdl'/>", HostAccess::Listen),
        ("<graphics type='spice'><gl enable='yes'/></graphics>", HostAccess::HostDevice),
        ("<audio id='1' type='file'/>", HostAccess::HostDevice),
        ("<watchdog model='itco' action='dump'/>", HostAccess::Dump),
        ("<smartcard mode='host'/>", HostAccess::HostDevice),
        ("<emulator>/tmp/qemu-system-x86_64</emulator>", HostAccess::Emulator),
        ("<emulator>/usr/bin/python3</emulator>", HostAccess::Emulator),
        ("<emulator>/usr/bin/../../tmp/kvm</emulator>", HostAccess::Emulator),
        ("<emulator>/usr/bin/kvm<!-- --> /x</emulator>", HostAccess::Emulator),
        ("<interface type='user'><portForward proto='tcp'/></interface>", HostAccess::Listen),
        ("<interface type='user'><backend type='passt' logFile='/x'/></interface>", HostAccess::LogFile),
        ("<interface type='bridge'><rom file='/x'/></interface>", HostAccess::BootFile),
        ("<interface type='bridge'><target dev='eth0'/></interface>", HostAccess::Network),
        ("<interface type='bridge'><backend vhost='/dev/sda'/></interface>", HostAccess::HostDevice),
    ];
    for (device, kind) in devices {
        assert_eq!(only(&domain("", device)).0, kind, "{device}");
    }
}

#[test]
fn what_the_host_boots_or_runs_is_found() {
    let elements = [
        ("<os><kernel>/x</kernel></os>", HostAccess::BootFile),
        ("<os><initrd>/vm/<!-- -->b.img</initrd></os>", HostAccess::BootFile),
        ("<os><loader>/x</loader></os>", HostAccess::BootFile),
        ("<os><loader>/usr/share/../../x</loader></os>", HostAccess::BootFile),
        ("<os><nvram template='/x'/></os>", HostAccess::BootFile),
        ("<os><nvram>/usr/share/x</nvram></os>", HostAccess::BootFile),
        ("<os><nvram type='file'><source file='/x'/></nvram></os>", HostAccess::BootFile),
        ("<os><acpi><table type='slic'>/x</table></acpi></os>", HostAccess::BootFile),
        ("<os><type>exe</type></os>", HostAccess::Hypervisor),
        ("<os><init>/bin/sh</init></os>", HostAccess::Hypervisor),
        ("<os><smbios mode='host'/></os>", HostAccess::HostInfo),
        ("<bootloader>/bin/sh</bootloader>", HostAccess::Script),
        ("<on_crash>coredump-restart</on_crash>", HostAccess::Dump),
        ("<idmap/>", HostAccess::Hypervisor),
        ("<cputune><vcpusched scheduler='fifo' priority='99'/></cputune>", HostAccess::Resources),
        ("<resource><partition>/system.slice</partition></resource>", HostAccess::Resources),
        ("<q:commandline xmlns:q='urn:q'><q:arg value='-x'/></q:commandline>", HostAccess::Namespace),
        ("<memory xmlns:q='urn:q' q:unit='KiB'>1</memory>", HostAccess::Namespace),
        ("<metadata xmlns='urn:q'/>", HostAccess::Namespace),
        ("<newfangled/>", HostAccess::Unknown),
        ("<memory newfangled='1'>1</memory>", HostAccess::Unknown),
        ("<os newfangled='1'/>", HostAccess::Unknown),
        ("<os><kernel newfangled='1'>/vm/a.img</kernel></os>", HostAccess::Unknown),
    ];
    for (element, kind) in elements {
        assert_eq!(only(&domain(element, "")).0, kind, "{element}");
    }
    let xen = domain("", "").replace("type='kvm'", "type='xen'");
    is(&xen, HostAccess::Hypervisor, "@type", "xen");
    let foreign = "<a:domain type='kvm' xmlns:a='urn:x'><name>x</name></a:domain>";
    assert_eq!(only(foreign).0, HostAccess::Namespace);
    let inside = domain("<metadata><a:b xmlns:a='urn:a' script='/x'><a:c/></a:b><d/></metadata>", "");
    assert_eq!(found(&inside), []);
}

/// What the domain that is there has already is nothing new; anything else about it is.
#[test]
fn what_the_hosts_own_definition_has_passes_to_the_letter() {
    let shared = "<filesystem type='mount'><source dir='/srv'/><target dir='s'/><readonly/></filesystem>";
    let own =
        domain("<qa:x xmlns:qa='urn:q'/><os><kernel>/k</kernel></os>", &format!("{shared}<shmem name='a'/>"));
    let own = parsed(&own);
    let with = |text: &str| check(&parsed(text), &granted(&[], vec![&own])).unwrap();
    assert_eq!(with(own.text()), []);
    let spaced = shared.replace("><", ">\n  <!-- same -->\n<").replace("type='mount'", "type=\"mount\"");
    assert_eq!(with(&domain("<qa:x xmlns:qa='urn:q'></qa:x>", &spaced)), []);
    let more = [
        shared.replace("<readonly/>", ""),
        shared.replace("/srv", "/srv/.."),
        shared.replace("<source", "<source newfangled='1'"),
        "<shmem name='b'/>".to_owned(),
    ];
    for device in more {
        assert_eq!(with(&domain("", &device)).len(), 1, "{device}");
    }
    assert_eq!(with(&domain("<os><kernel>/k2</kernel></os>", "")).len(), 1);
    // A copy's MAC address is another one.
    let direct = |mac: &str, of: &str| {
        format!(
            "<interface type='direct'><mac address='{mac}'/><source dev='{of}' mode='bridge'/></interface>"
        )
    };
    let mine = parsed(&domain("", &direct("52:54:00:00:00:01", "eth0")));
    let with_mine = |text: &str| check(&parsed(text), &granted(&[], vec![&mine])).unwrap();
    assert_eq!(with_mine(&domain("", &direct("52:54:00:00:00:02", "eth0"))), []);
    assert_ne!(with_mine(&domain("", &direct("52:54:00:00:00:01", "eth1"))), []);
    // A device's element somewhere else is another thing.
    assert_eq!(with(&domain(shared, "")).len(), 1);
}

/// libvirt's parser reads a text as it claims to be encoded: in UTF-7 `+ADw-` is `<`.
#[test]
fn a_text_that_claims_another_encoding_is_refused() {
    let text = |declared: &str| format!("<?xml version='1.0' {declared}?>{}", domain("", ""));
    for declared in ["", "encoding='UTF-8'", "encoding=\"utf-8\" standalone='yes'"] {
        DomainXml::parse(text(declared)).unwrap();
    }
    for declared in ["encoding='UTF-7'", "encoding = \"ISO-8859-1\"", "encoding='utf-16'"] {
        assert!(DomainXml::parse(text(declared)).is_err(), "{declared}");
        assert!(DomainXml::parse(format!("\u{feff}{}", text(declared))).is_err(), "{declared}");
    }
}

/// `docs/definitions.md` has the table; `UPDATE=1` writes it.
#[test]
fn the_documents_table_is_the_codes() {
    let mut table = String::from("\n| element | `--allow` | passes | reason |\n|---|---|---|---|\n");
    for row in HOST_RULES {
        let passes = match row.passes {
            Passes::Nothing => "nothing".to_owned(),
            Passes::OneOf(these) => these.iter().map(|one| format!("`{one}`")).collect::<Vec<_>>().join(", "),
            Passes::Restored => "a file that the restore writes".to_owned(),
            Passes::RestoredOrPackaged => "the same, or one below `/usr/share`".to_owned(),
            Passes::Emulator => "QEMU in `/usr/bin` or `/usr/libexec`".to_owned(),
            Passes::Channel => "a pseudo terminal, libvirt's own socket".to_owned(),
            Passes::ChosenName => "`vnet0` and the like".to_owned(),
            Passes::OfDynamicLabel => "where the type is `dynamic`".to_owned(),
        };
        let at = row.at.replace('|', "\\|");
        table += &format!("| `{at}` | `{}` | {passes} | {} |\n", row.kind, row.reason);
    }
    table += "\n| kind | what it is |\n|---|---|\n";
    for kind in HostAccess::ALL {
        table += &format!("| `{kind}` | {} |\n", kind.meaning());
    }
    table.push('\n');
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/definitions.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once("<!-- table -->").unwrap();
    let (there, after) = rest.split_once("<!-- end of table -->").unwrap();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, format!("{before}<!-- table -->{table}<!-- end of table -->{after}")).unwrap();
    } else {
        assert!(there == table, "docs/definitions.md is not the table; write it with UPDATE=1");
    }
}

/// Every row is reached, and none says the opposite of another.
#[test]
fn the_table_has_no_dead_rows() {
    let rules = Rules::of_domain();
    let known = |path: &str| {
        let (path, attribute) = path.split_once('@').map_or((path, None), |(path, name)| (path, Some(name)));
        let mut at = &rules;
        for name in path.split('/').filter(|name| !name.is_empty() && *name != "*") {
            if at.refuses() {
                return false;
            }
            at = at.child(name).unwrap();
        }
        attribute.is_none_or(|name| at.attribute(name).is_some())
    };
    let first = |at: &str| {
        let of = |part: &str| part.split('|').next().unwrap_or_default().to_owned();
        let (path, attribute) = at.split_once('@').map_or((at, ""), |(path, names)| (path, names));
        let path: Vec<_> = path.split('/').map(of).collect();
        let attribute = if attribute.is_empty() { String::new() } else { format!("@{}", of(attribute)) };
        format!("{}{attribute}", path.join("/"))
    };
    for row in PLAIN.iter().filter(|row| !row.at.contains('*')) {
        assert!(known(&first(row.at)), "{}", row.at);
    }
    for row in HOST_RULES {
        assert!(known(&first(row.at)), "{}", row.at);
        assert!(!row.reason.is_empty() && !row.reason.ends_with('.'), "{}", row.at);
    }
}

/// What is unknown is found at every place that the table knows.
#[test]
fn something_unknown_is_found_everywhere() {
    let paths: std::collections::BTreeSet<_> = PLAIN
        .iter()
        .map(|row| row.at)
        .filter(|at| !["", OPAQUE].contains(at) && !at.contains('*'))
        .map(|at| at.split('/').map(|part| part.split('|').next().unwrap()).collect::<Vec<_>>())
        .filter(|path| path.first() != Some(&"name"))
        .collect();
    assert!(paths.len() > 100, "{}", paths.len());
    for path in paths {
        for (unknown, end) in [("<newfangled/>", "/newfangled"), ("<x:source xmlns:x='urn:x'/>", "/source")] {
            let mut text = unknown.to_owned();
            for (depth, name) in path.iter().enumerate().rev() {
                let more = if (depth, *name) == (1, "disk") { "<target dev='vda'/>" } else { "" };
                text = format!("<{name}>{text}{more}</{name}>");
            }
            let text = format!("<domain type='kvm'><name>x</name>{text}</domain>");
            let Some(xml) = parsed_or_none(&text) else { continue };
            let found = check(&xml, &Granted::default()).unwrap();
            let place = format!("{}{end}", path.join("/"));
            assert!(found.iter().any(|one| one.place == place), "{text}: {found:?}");
        }
    }
}

/// Names out of the table, to get deep into it.
fn names() -> Vec<&'static str> {
    let at = PLAIN.iter().map(|row| row.at).chain(HOST_RULES.iter().map(|row| row.at));
    let paths = at.map(|at| at.split('@').next().unwrap_or_default());
    let mut names: Vec<_> = paths.flat_map(|path| path.split(['/', '|'])).collect();
    names.retain(|name| !["", "*", OPAQUE].contains(name));
    names.sort_unstable();
    names.dedup();
    names
}

/// A tree of such names with a hole in it.
fn tree() -> impl Strategy<Value = String> {
    let name = proptest::sample::select(names());
    let leaf = Just("HOLE".to_owned());
    leaf.prop_recursive(8, 64, 4, move |inner| {
        let more = proptest::collection::vec(inner, 1..4);
        (name.clone(), more, "[a-z/ ]{0,8}")
            .prop_map(|(name, inner, value)| format!("<{name} type='{value}'>{}</{name}>", inner.concat()))
    })
}

proptest! {
    #[test]
    fn no_tree_with_something_unknown_passes(tree in tree(), devices in tree()) {
        let text = domain(&tree, &devices);
        let quiet = parsed_or_none(&text.replace("HOLE", ""));
        if let Some(xml) = quiet {
            check(&xml, &Granted::default()).unwrap();
        }
        for unknown in ["<newfangled/>", "<x:serial xmlns:x='urn:x'/>", "<memory newfangled='1'/>"] {
            if let Some(xml) = parsed_or_none(&text.replacen("HOLE", unknown, 1).replace("HOLE", "")) {
                prop_assert_ne!(check(&xml, &Granted::default()).unwrap(), []);
            }
        }
    }
}

/// Not every tree is a domain: a disk wants a target.
fn parsed_or_none(text: &str) -> Option<DomainXml> {
    DomainXml::parse(text).ok()
}
