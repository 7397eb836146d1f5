//! Definitions that an attacker writes into an archive.

use super::world::Lab;
use std::sync::Arc;

use super::*;
use virtfold_archive::sign::SigningKey;

/// What each of them adds before `</devices>` or behind it, and the kinds that it needs.
const FORGED: [(&str, &[&str]); 8] = [
    (
        "<interface type='ethernet'><script path='/tmp/evil.sh'/></interface></devices>",
        &["network", "script"],
    ),
    (
        "</devices><seclabel type='static' model='dac' relabel='yes'><label>+0:+0</label></seclabel>",
        &["seclabel"],
    ),
    ("</devices><sysinfo type='fwcfg'><entry name='opt/x' file='/etc/shadow'/></sysinfo>", &["fw-cfg"]),
    ("<serial type='file'><source path='/etc/cron.d/x'/></serial></devices>", &["character-device"]),
    ("<serial type='pty'><log file='/etc/cron.d/x'/></serial></devices>", &["log-file"]),
    ("<filesystem><source dir='/'/><target dir='x'/></filesystem></devices>", &["filesystem"]),
    ("</devices><q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'/>", &["namespace"]),
    ("<newfangled/></devices>", &["unknown"]),
];

fn kinds(names: &[&str]) -> Vec<HostAccess> {
    HostAccess::ALL.iter().copied().filter(|kind| names.contains(&kind.name())).collect()
}

#[test]
fn a_forged_definition_is_refused_before_anything_is_written() {
    for (forged, names) in FORGED {
        let lab = Lab::new();
        // No socket of its own, so that nothing is allowed from the start.
        let plain = lab.xml().replace(&format!("<source mode='bind' path='{}'/>", lab.text("was/port")), "");
        lab.archive(&plain.replacen("</devices>", forged, 1), 7);
        let mut request = RestoreDomainRequest { allow: vec![], ..lab.request() };
        let (kind, said) = lab.refused(&request);
        assert_eq!(kind, ErrorKind::Refused, "{forged}: {said}");
        let guards = lab.at("guards");
        let planned = plan(&request, &lab.host(&guards), &Control::default()).unwrap();
        assert!(!planned.host_access.is_empty());
        assert_eq!(check_allowed(&planned).unwrap_err().kind(), ErrorKind::Refused);
        for name in names {
            assert!(said.contains(&format!("--allow {name}")), "{forged}: {said}");
            // Each kind is needed, and no other helps.
            let others = HostAccess::ALL.iter().copied().filter(|kind| kind.name() != *name);
            request.allow = others.collect();
            assert_eq!(lab.refused(&request).0, ErrorKind::Refused, "{forged} without {name}");
        }
        request.allow = kinds(names);
        let report = lab.run(&request).unwrap();
        assert!(report.defined && report.host_access.iter().all(|one| one.allowed), "{forged}");
    }
}

#[test]
fn an_ordinary_definition_needs_no_word() {
    let lab = Lab::new();
    let plain = lab.xml().replace(&format!("<source mode='bind' path='{}'/>", lab.text("was/port")), "");
    lab.archive(&plain, 7);
    let report = lab.run(&RestoreDomainRequest { allow: vec![], ..lab.request() }).unwrap();
    assert_eq!(report.host_access, []);
}

fn with_medium(lab: &Lab, medium: &str) -> String {
    let empty = "<driver name='qemu' type='raw'/><target dev='sda'/>";
    let full = format!("<driver name='qemu' type='raw'/><source file='{medium}'/><target dev='sda'/>");
    let xml = lab.xml().replace(empty, &full);
    assert_ne!(xml, lab.xml());
    xml
}

/// A CD of a forged archive may be any file: libvirt would give it to QEMU's user.
#[test]
fn a_drive_is_emptied_unless_the_guest_has_the_medium_here() {
    let lab = Lab::new();
    let secret = lab.text("lib/secret");
    std::fs::write(&secret, b"root's own").unwrap();
    lab.archive(&with_medium(&lab, &secret), 7);
    let medium = |name: &str| lab.defined(name).disk("sda").unwrap().image.source.clone();
    let mut request = lab.request();
    request.name = Some("copy".into());
    request.rest = DefaultTarget::Directory(lab.at("out"));
    let report = lab.run(&request).unwrap();
    assert_eq!(medium("copy"), virtfold_hypervisor::domain_xml::ImageSource::Empty);
    assert!(report.notes.iter().any(|note| note.contains("drive sda is emptied") && note.contains(&secret)));
    assert_eq!(report.disks.iter().find(|disk| disk.target == "sda").unwrap().path, None);
    // A person says so.
    request.name = Some("second".into());
    request.allow.push(HostAccess::Cdrom);
    let report = lab.run(&request).unwrap();
    assert!(report.host_access.iter().any(|one| one.kind == "cdrom" && one.allowed));
    assert_eq!(medium("second").path(), Some(Path::new(&secret)));
}

/// The simulated hypervisor spells disks in files its own way, so this medium is on the network.
#[test]
fn a_guest_keeps_the_medium_that_it_has_here() {
    let lab = Lab::new();
    let drive = "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>";
    let full = "<disk type='network' device='cdrom'><driver name='qemu' type='raw'/><source protocol='http' \
         name='/a.iso'><host name='media' port='80'/></source>";
    let xml = lab.xml().replace(drive, full);
    lab.hypervisor.define(&xml).unwrap();
    let request = RestoreDomainRequest { existing: Overwrite::Replace, allow: vec![], ..lab.request() };
    lab.archive(&xml.replace("name='media'", "name='evil'"), 7);
    let report = plan(&request, &lab.host(&lab.at("guards")), &Control::default()).unwrap();
    assert!(report.notes.iter().any(|note| note.contains("drive sda is emptied")), "{:?}", report.notes);
    lab.archive(&xml, 7);
    lab.run(&request).unwrap();
    assert!(lab.defined("web").text().contains(full));
}

/// What the guest has here already is nothing new; what a forged archive adds to that is.
#[test]
fn a_replacement_keeps_what_it_has_and_gets_no_more() {
    let lab = Lab::new();
    let shared =
        "<filesystem type='mount'><source dir='/srv'/><target dir='s'/><readonly/></filesystem></devices>";
    let own = lab.xml().replace("</devices>", shared);
    lab.hypervisor.define(&own).unwrap();
    let request = RestoreDomainRequest { existing: Overwrite::Replace, allow: vec![], ..lab.request() };
    lab.archive(&own.replace("<readonly/></filesystem>", "</filesystem>"), 7);
    let (kind, said) = lab.refused(&request);
    assert!(kind == ErrorKind::Refused && said.contains("--allow filesystem"), "{said}");
    lab.archive(&own, 7);
    let report = lab.run(&request).unwrap();
    assert_eq!(report.host_access, [], "its socket and its directory are its own");
}

/// An archive that knows what is in a file of root's must not have it given to QEMU's user.
#[test]
fn a_kernel_of_the_hosts_is_used_by_the_guest_that_has_it_alone() {
    let lab = Lab::new();
    std::fs::write(lab.at("lib/known"), b"kernel").unwrap();
    let forged = lab.xml().replace(&lab.text("was/vmlinuz"), &lab.text("lib/known"));
    lab.archive(&forged, 7);
    lab.run(&lab.request()).unwrap();
    assert_eq!(lab.defined("web").boot.kernel, Some(lab.at("out/web.kernel")));
}

/// The header of NVRAM that is a qcow2 image can name the disk of another guest.
#[test]
fn nvram_that_names_other_files_is_refused() {
    let mut lab = Lab::new();
    let (image, other) = (lab.at("vars.qcow2"), lab.at("was/other.img"));
    std::fs::write(&other, [0; 4096]).unwrap();
    let mut make = |options: &[&str]| {
        let mut command = std::process::Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2"]).args(options).arg(&image).arg("64K");
        assert!(command.status().unwrap().success());
        lab.vars = std::fs::read(&image).unwrap();
        lab.archive(&lab.xml(), 7);
        std::fs::remove_file(&image).unwrap();
        lab.run(&lab.request())
    };
    let (backing, data) = (other.display().to_string(), format!("data_file={}", other.display()));
    for options in [["-F", "raw", "-b", &backing], ["-o", &data, "-o", "data_file_raw=on"]] {
        let error = make(&options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        assert!(error.to_string().contains("other.img"), "{error}");
    }
    assert!(make(&[]).unwrap().defined);
}

/// Whatever the archive calls a disk, it is not put in the place of another guest's kernel.
#[test]
fn a_disk_does_not_replace_the_kernel_of_another_guest() {
    let lab = Lab::new();
    let kernel = lab.at("lib/images/db.kernel");
    std::fs::write(&kernel, b"kernel").unwrap();
    let other =
        format!("<domain><name>db</name><os><kernel>{}</kernel></os><devices/></domain>", kernel.display());
    lab.hypervisor.define(&other).unwrap();
    lab.archive(&lab.xml().replace(&lab.text("was/web.img"), &kernel.display().to_string()), 7);
    let request = RestoreDomainRequest {
        rest: DefaultTarget::OriginalPath,
        disks: vec![("vdb".into(), lab.at("out/b.img"))],
        existing: Overwrite::Replace,
        ..lab.request()
    };
    let (kind, said) = lab.refused(&request);
    assert!(kind == ErrorKind::InUse && said.contains("the kernel of domain 'db'"), "{said}");
}

/// libvirt's parser reads on behind a comment.
#[test]
fn the_domain_is_called_as_it_was_looked_for() {
    let lab = Lab::new();
    lab.archive(&lab.xml().replace("<name>web<", "<name> we<!-- -->b <"), 7);
    lab.run(&lab.request()).unwrap();
    assert!(lab.defined("web").text().contains("<name>web</name>"));
}

/// What this host signed is what its libvirt said; what another host signed is of another host.
#[test]
fn a_definition_that_this_host_signed_keeps_what_it_had() {
    let shared = "<filesystem><source dir='/srv'/><target dir='s'/></filesystem></devices>";
    let mine = crate::host_identity::name().unwrap();
    let key = |host: &str| Arc::new(SigningKey::new(host).unwrap());
    let restored = |key: &Arc<SigningKey>, known: &[&Arc<SigningKey>]| {
        let lab = Lab { key: Some(Arc::clone(key)), ..Lab::new() };
        lab.archive(&lab.xml().replace("</devices>", shared), 7);
        let mut request = RestoreDomainRequest { allow: vec![], ..lab.request() };
        // The first one is this host's.
        request.trust.own = known.first().map(|key| key.public());
        for key in known {
            request.trust.signers.add(key.host().to_owned(), key.public());
        }
        let mut piped = std::fs::File::open(lab.at("web.tar")).unwrap();
        let of_pipe = plan_from(&request, &lab.host(&lab.at("guards")), &Control::default(), &mut piped);
        // What comes once has its signature at its end.
        assert!(check_allowed(&of_pipe.unwrap()).is_err());
        lab.run(&request)
    };
    let (own, forged, other) = (key(&mine), key(&mine), key(&mine));
    assert_eq!(restored(&own, &[&own]).unwrap().host_access, []);
    for (key, known) in [(&own, vec![]), (&forged, vec![&own]), (&other, vec![&own, &other])] {
        assert_eq!(restored(key, &known).unwrap_err().kind(), ErrorKind::Refused);
    }
}
