//! The simulated hypervisor, real files: what is made, what is refused, and what is left when things break.

mod forged;
mod planted;
mod world;

use age::secrecy::ExposeSecret;

use super::*;
use virtfold_archive::crypt::{Envelope, Recipients};
use virtfold_archive::stream::Sink;
use virtfold_base::error::{Error, ErrorKind};
use virtfold_catalog::{Catalog, FreezeSession, SessionKind, SessionState};
use virtfold_hypervisor::simulated::{CallPhase, Injected, InjectionPoint, Operation};
use virtfold_hypervisor::{Activity, DomainState, Persistence, StartMode};
use virtfold_medium::EncryptingMedium;
use virtfold_medium::{FileMedium, Medium};
use world::{Lab, MAC, Odd, UUID};

#[test]
fn a_lost_guest_is_itself_again() {
    let lab = Lab::new();
    lab.archive(&lab.xml(), 7);
    let mut request = lab.request();
    request.afterwards = AfterDefine::Start;
    let report = lab.run(&request).unwrap();
    assert_eq!((report.identity, report.uuid.as_str()), (DomainIdentity::Original, UUID));
    assert!(report.defined && report.started && report.verified);
    let xml = lab.defined("web");
    assert_eq!(xml.disk("vda").unwrap().image.source.path(), Some(lab.at("out/web.img").as_path()));
    assert_eq!(xml.disk("vdb").unwrap().image.source.path(), Some(lab.at("out/data.img").as_path()));
    assert_eq!(xml.macs, [MAC]);
    assert_eq!(xml.channel_paths, [lab.at("was/port")]);
    assert!(!xml.text().contains(&format!("<genid>{UUID}")), "a guest that is put back is told so");
    assert_eq!(xml.nvram.unwrap().path, Some(lab.at("out/web_VARS.fd")));
    assert_eq!(xml.boot.kernel, Some(lab.at("out/web.kernel")));
    assert_eq!((lab.first("out/web.img"), lab.first("out/web_VARS.fd")), (7, b'v'));
    assert_eq!(std::fs::read(lab.at(&format!("lib/swtpm/{UUID}/tpm2/tpm2-00.permall"))).unwrap(), b"tpm");
    assert_eq!(std::fs::read_dir(lab.at("out")).unwrap().count(), 4);
    let (kind, said) = lab.refused(&request);
    assert_eq!(kind, ErrorKind::InUse);
    assert!(said.contains("'web' is not shut off"), "{said}");
}

/// What comes once, as from a tape: one pass, and nothing has changed where its end is not what it should be.
#[test]
fn a_guest_comes_out_of_a_stream_in_one_pass() {
    let lab = Lab::new();
    let archive = std::fs::read(lab.archive(&lab.xml(), 7)).unwrap();
    std::fs::remove_file(lab.at("web.tar")).unwrap();
    let guards = lab.at("guards");
    let (host, control, request) = (lab.host(&guards), Control::default(), lab.request());
    let half = &archive[..archive.len() / 2];
    let planned = plan_from(&request, &host, &control, half).unwrap();
    let before = lab.everything();
    for cut in [0, 600, archive.len() / 2, archive.len() - 2048] {
        let error = run_from(&request, &host, &control, &archive[..cut]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Incomplete | ErrorKind::Damaged), "{cut}: {error:?}");
        assert_eq!(lab.everything(), before, "{cut}: {error:?}");
    }
    let mut broken = archive.clone();
    let place = broken.windows(1000).position(|bytes| bytes == [7; 1000]).unwrap();
    broken[place + 500] ^= 1;
    let error = run_from(&request, &host, &control, broken.as_slice()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
    assert_eq!(lab.everything(), before);
    let done = run_from(&request, &host, &control, archive.as_slice()).unwrap();
    assert!(done.defined && done.verified && !planned.defined);
    assert_eq!((planned.disks.len(), planned.files.len()), (done.disks.len(), done.files.len()));
    assert_eq!((lab.first("out/web.img"), lab.first("out/web_VARS.fd")), (7, b'v'));
    assert_eq!(std::fs::read_dir(&guards).unwrap().count(), 0);
    lab.defined("web");
}

#[test]
fn a_guest_comes_out_of_an_encrypted_archive_with_its_key_alone() {
    let lab = Lab::new();
    lab.archive(&lab.xml(), 7);
    let key = age::x25519::Identity::generate();
    let recipients = Recipients::gather(&[key.to_public().to_string()], None).unwrap().unwrap();
    let sealed = lab.at("web.tar.age");
    let file = Box::new(FileMedium::create(&sealed).unwrap());
    let mut medium = Box::new(EncryptingMedium::begin(file, &Envelope::new(&recipients).unwrap()).unwrap());
    medium.write(&std::fs::read(lab.at("web.tar")).unwrap()).unwrap();
    medium.finish().unwrap();
    let mut request = RestoreDomainRequest { archive: sealed.into(), ..lab.request() };
    assert_eq!(lab.refused(&request).0, ErrorKind::Locked);
    // Made for its owner alone, as every file here is.
    let mut keys = Box::new(FileMedium::create(&lab.at("key")).unwrap());
    keys.write(key.to_string().expose_secret().as_bytes()).unwrap();
    keys.finish().unwrap();
    request.identities = Identities::load(&[lab.at("key")]).unwrap();
    assert!(lab.run(&request).unwrap().verified);
    assert_eq!((lab.first("out/web.img"), lab.first("out/web_VARS.fd")), (7, b'v'));
}

/// Plugged in, taken off and exchanged since the configuration was last what ran.
#[test]
fn a_guest_comes_back_with_the_disks_that_it_ran_with() {
    let lab = Lab::new();
    let ran = lab.xml();
    let disk = |file: &str, target: &str| {
        let file = lab.text(file);
        format!(
            "<disk type='file'><driver name='qemu' type='raw'/><source file='{file}'/><target dev='{target}'/></disk>"
        )
    };
    let without = ran.replace(&disk("was/data.img", "vdb"), "");
    let other = ran.replace("was/data.img", "was/other.img");
    let more = ran.replace("<interface", &format!("{}<interface", disk("was/later.img", "vdc")));
    for (configured, told) in [(without, "did not have it"), (other, "another image"), (more, "without it")] {
        assert_ne!(configured, ran);
        let lab = Lab::new();
        let here = |text: &str| text.replace(&lab_folder(&ran), &lab.at("").display().to_string());
        lab.archive_of(&here(&configured), &here(&ran), 7);
        let report = lab.run(&lab.request()).unwrap();
        assert!(
            report.notes.iter().any(|note| note.contains(told) && note.contains("as it ran")),
            "{:?}",
            report.notes
        );
        let xml = lab.defined("web");
        assert_eq!(xml.targets().len(), 3, "{}", xml.text());
        assert_eq!(xml.disk("vdb").unwrap().image.source.path(), Some(lab.at("out/data.img").as_path()));
        assert_eq!(lab.first("out/data.img"), 7);
    }
    // The configuration of another guest is nobody's.
    lab.archive_of(&ran, &ran.replace(UUID, "00000000-0000-4000-8000-000000000001"), 7);
    assert_eq!(lab.refused(&lab.request()).0, ErrorKind::Damaged);
}

/// The folder that an XML was made for, with its slash.
fn lab_folder(xml: &str) -> String {
    let path = xml.split("<nvram>").nth(1).unwrap();
    path.split("was/").next().unwrap().to_owned()
}

#[test]
fn a_part_of_a_file_is_not_defined_as_the_whole() {
    let lab = Lab::new();
    let source = format!("<source file='{}'/>", lab.text("was/data.img"));
    let slice = "<slices><slice type='storage' offset='512' size='1024'/></slices>";
    let xml = lab.xml().replace(&source, &source.replace("/>", &format!(">{slice}</source>")));
    assert_ne!(xml, lab.xml());
    lab.archive(&xml, 7);
    let (kind, said) = lab.refused(&lab.request());
    assert!(kind == ErrorKind::Unsupported && said.contains("vdb") && said.contains("<slices>"), "{said}");
}

#[test]
fn a_copy_shares_nothing_with_the_original() {
    let lab = Lab::new();
    let xml = lab.xml();
    lab.archive(&xml, 7);
    for name in ["was/web.img", "was/data.img", "was/web_VARS.fd"] {
        std::fs::write(lab.at(name), [1; 10]).unwrap();
    }
    std::fs::write(lab.at("was/vmlinuz"), b"kernel").unwrap();
    let original = lab.hypervisor.define(&xml).unwrap();
    lab.hypervisor.start(original, StartMode::Running).unwrap();
    // Its channel and its kernel are the original's, which the host has: nobody has to allow them.
    let request = RestoreDomainRequest {
        name: Some("web2".into()),
        rest: DefaultTarget::OriginalPath,
        allow: vec![],
        ..lab.request()
    };
    let report = lab.run(&request).unwrap();
    assert_eq!(report.identity, DomainIdentity::Copy);
    assert_eq!((report.macs[0].from.as_str(), report.macs[0].to.len()), (MAC, 17));
    assert_eq!(
        report.channels,
        [DefinitionChange { from: lab.text("was/port"), to: lab.text("was/web2-port") }]
    );
    let xml = lab.defined("web2");
    assert_ne!(xml.id, Some(original));
    assert_eq!(xml.disk("vdb").unwrap().image.source.path(), Some(lab.at("was/web2-vdb.raw").as_path()));
    assert_eq!(xml.nvram.unwrap().path, Some(lab.at("was/web2_VARS.fd")));
    assert!(xml.macs[0].starts_with("52:54:00:") && xml.macs[0] != MAC);
    assert_eq!(xml.boot.kernel, Some(lab.at("was/vmlinuz")), "the same kernel is there");
    assert!(lab.at(&format!("lib/swtpm/{}/tpm2/tpm2-00.permall", report.uuid)).exists());
    assert_eq!((lab.first("was/web.img"), lab.first("was/web2-vda.raw")), (1, 7));
    let (kind, said) = lab.refused(&request);
    assert_eq!(kind, ErrorKind::Exists);
    assert!(said.contains("called 'web2' already"), "{said}");
}

/// A domain in its place, shut off, with old contents.
fn in_place(lab: &Lab) -> RestoreDomainRequest {
    lab.archive(&lab.xml(), 7);
    for name in ["was/web.img", "was/data.img", "was/web_VARS.fd"] {
        std::fs::write(lab.at(name), [1; 10]).unwrap();
    }
    let old = lab.at(&format!("lib/swtpm/{UUID}/tpm2"));
    std::fs::create_dir_all(&old).unwrap();
    std::fs::write(old.join("old"), [1]).unwrap();
    lab.hypervisor.define(&lab.xml()).unwrap();
    RestoreDomainRequest { rest: DefaultTarget::OriginalPath, existing: Overwrite::Replace, ..lab.request() }
}

#[test]
fn a_replacement_takes_the_old_ones_place() {
    let lab = Lab::new();
    let request = in_place(&lab);
    let careful = RestoreDomainRequest { existing: Overwrite::Refuse, ..request.clone() };
    let (kind, said) = lab.refused(&careful);
    assert_eq!(kind, ErrorKind::Exists);
    assert!(said.contains("--force") && said.contains("--name NEW"), "{said}");
    let report = lab.run(&request).unwrap();
    assert_eq!(report.identity, DomainIdentity::Replacement);
    assert!(report.disks.iter().filter(|d| d.action == DiskAction::Restore).all(|d| d.replaces));
    assert_eq!(
        [lab.first("was/web.img"), lab.first("was/data.img"), lab.first("was/web_VARS.fd")],
        [7, 7, b'v']
    );
    let tpm = lab.at(&format!("lib/swtpm/{UUID}/tpm2"));
    assert_eq!(std::fs::read(tpm.join("tpm2-00.permall")).unwrap(), b"tpm");
    assert!(!tpm.join("old").exists());
    let hidden = lab.everything().into_iter().filter(|(p, ..)| p.to_string_lossy().contains(".restoring"));
    assert_eq!(hidden.count(), 0);
    // Elsewhere: the old disks stay, and that is said.
    let elsewhere = RestoreDomainRequest { rest: DefaultTarget::Directory(lab.at("out")), ..request };
    let report = lab.run(&elsewhere).unwrap();
    assert!(
        report.notes.iter().any(|n| n.contains("was/web.img") && n.contains("stays")),
        "{:?}",
        report.notes
    );
}

#[test]
fn what_speaks_against_a_replacement_is_said() {
    let mut lab = Lab::new();
    let request = in_place(&lab);
    lab.hypervisor.saved = Some("<domain/>".into());
    assert!(lab.refused(&request).1.contains("managedsave-remove web"));
    lab.hypervisor.saved = None;
    lab.hypervisor.activity.checkpoints = vec!["c1".into()];
    assert!(lab.refused(&request).1.contains("checkpoint-delete web c1 --metadata"));
    lab.hypervisor.activity = Activity::default();
    let id = lab.hypervisor.lookup("web").unwrap().id;
    lab.hypervisor.undefine(id).unwrap();
    lab.hypervisor.define(&lab.xml().replace("<name>web<", "<name>other<")).unwrap();
    assert!(lab.refused(&request).1.contains("'other'"), "the uuid under another name");
    lab.hypervisor.undefine(id).unwrap();
    let other = lab.xml().replace(UUID, "00000000-0000-4000-8000-000000000001");
    let other = lab.hypervisor.define(&other).unwrap();
    assert!(lab.refused(&request).1.contains("has its name and another uuid"));
    lab.hypervisor.undefine(other).unwrap();
    // The same disk, the same MAC: libvirt would take both.
    let request = RestoreDomainRequest { rest: DefaultTarget::Directory(lab.at("was")), ..request };
    let mac = format!(
        "<domain><name>m</name><devices><interface><mac address='{}'/></interface></devices></domain>",
        MAC.to_uppercase()
    );
    let mac = lab.hypervisor.define(&mac).unwrap();
    assert!(lab.refused(&request).1.contains("is that of domain 'm'"));
    lab.hypervisor.undefine(mac).unwrap();
    let disk = lab.text("was/data.img");
    let disk = format!(
        "<domain><name>d</name><devices><disk type='file'><source file='{disk}'/><target dev='vdz'/></disk></devices></domain>"
    );
    lab.hypervisor.define(&disk).unwrap();
    let (kind, said) = lab.refused(&request);
    assert_eq!(kind, ErrorKind::InUse);
    assert!(said.contains("belongs to disk 'vdz' of domain 'd'"), "{said}");
}

#[test]
fn sockets_that_libvirt_chose_are_left_to_it() {
    let lab = Lab::new();
    let chosen = "/run/libvirt/qemu/channel/3-web/org.qemu.guest_agent.0";
    let xml = lab.xml().replace(&lab.text("was/port"), chosen);
    lab.archive(&xml, 7);
    let id = lab.hypervisor.define(&xml.replace(MAC, "52:54:00:00:00:09")).unwrap();
    lab.hypervisor.start(id, StartMode::Running).unwrap();
    let request = RestoreDomainRequest { name: Some("copy".into()), ..lab.request() };
    assert_eq!(lab.run(&request).unwrap().channels, []);
}

#[test]
fn a_hostile_archive_names_no_places() {
    let lab = Lab::new();
    std::fs::create_dir(lab.at("etc")).unwrap();
    let request = RestoreDomainRequest {
        rest: DefaultTarget::OriginalPath,
        existing: Overwrite::Replace,
        ..lab.request()
    };
    for (path, found) in [("etc/cron", "no guest of this host"), ("out/../etc/cron", "does not say where")] {
        lab.archive(&lab.xml().replace(&lab.text("was/web.img"), &lab.text(path)), 7);
        let (kind, said) = lab.refused(&request);
        assert_eq!(kind, ErrorKind::Usage);
        assert!(said.contains(found) && said.contains("--output"), "{said}");
    }
    lab.archive(&lab.xml().replace("<name>web<", "<name>../web<"), 7);
    assert!(lab.refused(&lab.request()).1.contains("cannot be a restored domain's name"));
    // Its NVRAM goes beside the disks, not to where the archive says.
    let mut request = lab.request();
    request.disks = vec![("vda".into(), lab.at("out/a.img")), ("vdb".into(), lab.at("out/b.img"))];
    request.rest = DefaultTarget::OriginalPath;
    lab.archive(&lab.xml().replace(&lab.text("was/web_VARS.fd"), &lab.text("etc/VARS")), 7);
    lab.run(&request).unwrap();
    assert_eq!(lab.defined("web").nvram.unwrap().path, Some(lab.at("out/web_VARS.fd")));
    assert_eq!(std::fs::read_dir(lab.at("etc")).unwrap().count(), 0);
}

#[test]
fn disks_that_are_not_in_the_archive_are_decided_on() {
    let lab = Lab::new();
    let extra = format!(
        "<disk type='file'><driver name='qemu' type='raw'/><source file='{}'/><target dev='vdc'/></disk><interface",
        lab.text("was/extra.img")
    );
    lab.archive(&lab.xml().replacen("<interface", &extra, 1), 7);
    let mut request = lab.request();
    let (kind, said) = lab.refused(&request);
    assert_eq!(kind, ErrorKind::NotFound);
    assert!(said.contains("disk vdc is not in the archive") && said.contains("--without vdc"), "{said}");
    std::fs::write(lab.at("was/extra.img"), [3]).unwrap();
    request.name = Some("copy".into());
    assert!(lab.refused(&request).1.contains("must not write to the original's"));
    request.without = vec!["vdc".into(), "vdb".into()];
    lab.run(&request).unwrap();
    assert_eq!(lab.defined("copy").targets(), ["vda", "sda"]);
    request.name = None;
    request.without = vec![];
    let (kind, said) = lab.refused(&request);
    assert!(kind == ErrorKind::Refused && said.contains("--allow disk"), "{said}");
    request.allow.push(HostAccess::Disk);
    let report = lab.run(&request).unwrap();
    assert!(report.notes.iter().any(|note| note.contains("disk vdc is not in the archive")));
    request.without = vec!["vdx".into()];
    assert!(
        lab.refused(&request).1.contains("it has: vda, vdb, sda, vdc")
            || lab.refused(&request).0 == ErrorKind::Exists
    );
}

#[test]
fn a_definition_that_is_refused_leaves_everything_as_it_was() {
    let mut lab = Lab::new();
    let request = in_place(&lab);
    lab.hypervisor.refuse_define = true;
    let (kind, said) = lab.refused(&request);
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(said.contains("nothing was replaced"), "{said}");
    let fresh = Lab::new();
    fresh.archive(&fresh.xml(), 7);
    let fresh = Lab { hypervisor: Odd { refuse_define: true, ..fresh.hypervisor }, ..fresh };
    assert_eq!(fresh.refused(&fresh.request()).0, ErrorKind::Unsupported);
    assert!(!fresh.at("lib/swtpm").exists());
}

fn at(
    operation: Operation,
    when: CallPhase,
    fate: Injected,
) -> impl FnMut(InjectionPoint) -> Injected + Send + 'static {
    let mut once = Some(fate);
    move |point| {
        if point == (InjectionPoint { operation, when }) {
            once.take().unwrap_or(Injected::Nothing)
        } else {
            Injected::Nothing
        }
    }
}

#[test]
fn a_lost_answer_is_no_failure_and_a_dead_driver_loses_nothing() {
    for when in [CallPhase::Before, CallPhase::After] {
        let lab = Lab::new();
        let request = in_place(&lab);
        lab.hypervisor.inner.on_point(at(Operation::Define, when, Injected::KillLibvirtd));
        lab.run(&request).unwrap();
        assert_eq!((lab.first("was/web.img"), lab.first("was/data.img")), (7, 7));
        // Nobody answers any more: what was there is kept, and the same restore made again ends it.
        let lab = Lab::new();
        let request = in_place(&lab);
        lab.hypervisor.inner.on_point(at(Operation::Define, when, Injected::CrashHost));
        let error = lab.run(&request).unwrap_err();
        let shown = error.to_string();
        assert!(shown.contains("nobody answers") && shown.contains(".web.img."), "{shown}");
        let old = lab
            .everything()
            .into_iter()
            .filter(|(path, first, _)| path.to_string_lossy().contains(".restoring") && *first == Some(1));
        assert_eq!(old.count(), 4);
        lab.hypervisor.inner.revive();
        lab.run(&request).unwrap();
    }
    let lab = Lab::new();
    lab.archive(&lab.xml(), 7);
    let request = RestoreDomainRequest { afterwards: AfterDefine::Start, ..lab.request() };
    lab.hypervisor.inner.on_point(at(Operation::Start, CallPhase::Before, Injected::KillLibvirtd));
    let error = lab.run(&request).unwrap_err();
    assert!(error.to_string().contains("is restored and defined, and does not start"), "{error}");
    assert_eq!(lab.hypervisor.lookup("web").unwrap().run, DomainState::ShutOff);
}

#[test]
fn archives_without_a_guest_say_so() {
    let lab = Lab::new();
    let mut request = lab.request();
    request.archive = lab.at("missing.tar").into();
    assert_eq!(lab.refused(&request).0, ErrorKind::NotFound);
    lab.archive(&lab.xml().replace("vdb", "vdq"), 7);
    let error: Error = lab.run(&lab.request()).unwrap_err();
    assert!(error.to_string().contains("has a disk vdb, and its domain.xml does not"), "{error}");
    lab.archive(&lab.xml().replace(UUID, "00000000-0000-4000-8000-000000000001"), 7);
    assert_eq!(lab.refused(&lab.request()).0, ErrorKind::Damaged);
}

#[test]
fn a_pool_gets_the_disks_and_is_refreshed() {
    let lab = Lab::new();
    lab.archive(&lab.xml(), 7);
    lab.hypervisor.inner.add_pool("files", &lab.at("out"));
    let mut request = lab.request();
    request.rest = DefaultTarget::Pool("nothing".into());
    assert_eq!(lab.refused(&request).0, ErrorKind::NotFound);
    request.rest = DefaultTarget::Pool("files".into());
    request.writing.format = Some(Format::Qcow2);
    let report = lab.run(&request).unwrap();
    assert_eq!(report.disks[0].path, Some(lab.text("out/web-vda.qcow2")));
    assert_eq!(report.disks[0].format.as_deref(), Some("qcow2"));
    assert!(report.notes.is_empty(), "{:?}", report.notes);
}

#[test]
fn a_backup_that_has_not_ended_stops_a_replacement() {
    let mut lab = Lab::new();
    let request = in_place(&lab);
    let catalog = Catalog::open(&lab.at("state")).unwrap();
    let domain = lab.hypervisor.lookup("web").unwrap().id;
    let held = catalog.lock(domain).unwrap();
    lab.journal = Some(catalog);
    let guards = lab.at("guards");
    let host = lab.host(&guards);
    let error = run(&request, &host, &Control::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    drop(held);
    let job = FreezeSession {
        id: uuid::Uuid::new_v4(),
        domain,
        name: "web".into(),
        persistence: Persistence::Persistent,
        live: None,
        inactive: None,
        kind: SessionKind::AtRest,
        created: 0,
        state: SessionState::Reading,
        held: None,
        disks: vec![],
    };
    host.journal.unwrap().begin(&job).unwrap();
    let error = plan(&request, &host, &Control::default()).unwrap_err();
    assert!(error.hint().unwrap().contains("virtfold recover web"), "{error:?}");
    // A copy has nothing to do with it.
    let copy = RestoreDomainRequest {
        name: Some("copy".into()),
        rest: DefaultTarget::Directory(lab.at("out")),
        ..request
    };
    plan(&copy, &host, &Control::default()).unwrap();
}
