//! Guests out of archives, with real ones: firmware variables and a TPM come back, a replacement boots, a
//! copy boots beside the original, and both write on from the same point in time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::run::{Outcome, exit, run, text, virtfold};
use crate::lab::progress::Progress;
use crate::lab::records::check_images;
use crate::lab::{Guest, GuestSpec, Lab};
use virtfold::archive::manifest::BackupSubject;
use virtfold::archive::stream::Compression;
use virtfold::backup::Control;
use virtfold::backup::attachments::{GuestXml, LibvirtDirectories, gather};
use virtfold::backup::destinations::Destinations;
use virtfold::backup::increment::{ChangeHint, ParentChoice};
use virtfold::backup::options::BackupOptions;
use virtfold::backup::resume::StateDirectories;
use virtfold::backup::session::{BackupInput, BackupSession, InputDisk};
use virtfold::hypervisor::domain_xml::DomainXml;
use virtfold::hypervisor::libvirt::{Libvirt, LocalUri};
use virtfold::hypervisor::{Hypervisor, XmlView};
use virtfold::image::{DiskImage, OpenOptions};
use virtfold::medium::{FileMedium, Location};
use virtfold_hooks::start_lock::alive;

const TEMPLATE: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// As many kills as these have to fall between a restore's first written byte and its end.
const AMID: usize = 8;

/// virtfold against the lab's libvirtd, with everything of its own in the lab's folder.
fn command(lab: &Lab, args: &[&str]) -> Command {
    let folder = lab.folder();
    let mut command = virtfold(args);
    command.env("VIRTFOLD_CONNECT", lab.uri()).env("VIRTFOLD_LIBVIRT_DIR", folder.join("lib"));
    command.env("VIRTFOLD_STATE_DIR", folder.join("state")).env("VIRTFOLD_GUARDS", folder.join("guards"));
    command
}

fn restore(lab: &Lab, archive: &Path, args: &[&str]) -> Outcome {
    run(&mut command(lab, &[&["restore", text(archive), "--define"], args].concat()))
}

/// An archive of a guest that runs and writes, by the program itself.
fn backup(guest: &Guest<'_>) -> PathBuf {
    let folder = guest.lab.folder().join("archives");
    fs::create_dir(&folder).unwrap();
    let done = run(&mut command(guest.lab, &["backup", guest.name(), "--to", text(&folder), "--json"])).ok();
    println!("{done}");
    let archives: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(archives.len(), 1, "{archives:?}");
    archives[0].clone()
}

fn places(lab: &Lab) -> LibvirtDirectories {
    LibvirtDirectories::system(&lab.folder().join("lib"))
}

fn xml(lab: &Lab, name: &str, config: XmlView) -> DomainXml {
    let libvirt = Libvirt::open(LocalUri::parse(&lab.uri()).unwrap()).unwrap();
    let id = libvirt.lookup(name).unwrap().id;
    DomainXml::parse(libvirt.xml(id, config).unwrap()).unwrap()
}

/// An archive of a guest that is shut off, with its definition.
fn archive(guest: &Guest<'_>) -> PathBuf {
    archive_with(guest, &xml(guest.lab, guest.name(), XmlView::Inactive), "archive.tar")
}

/// An archive of a guest that is shut off, with this for its definition.
fn archive_with(guest: &Guest<'_>, inactive: &DomainXml, name: &str) -> PathBuf {
    let path = guest.lab.folder().join(name);
    let attachments = gather(GuestXml { inactive: Some(inactive), live: None }, &places(guest.lab)).unwrap();
    let images = guest.images().into_iter().enumerate().map(|(number, (path, format))| {
        let image = DiskImage::open(&path, format.parse().unwrap(), &OpenOptions::default()).unwrap();
        InputDisk { target: crate::lab::guest::target(number), image, hint: ChangeHint::Unknown }
    });
    let subject = BackupSubject::Domain { name: guest.name().to_owned(), uuid: inactive.id.map(|id| id.0) };
    let material = BackupInput {
        subject,
        freeze: None,
        attachments,
        disks: images.collect(),
        parent: ParentChoice::Full(None),
        checkpoint: None,
        session: None,
    };
    let options = BackupOptions { compression: Compression::Zstd { level: 1 }, ..BackupOptions::default() };
    let (state, control) = (StateDirectories::new("/nowhere"), Control::default());
    // What counts as a pipe leaves no record.
    let destinations = Destinations::custom(Location::Pipe, |_, _| Ok(Box::new(FileMedium::create(&path)?)));
    let session =
        BackupSession { options: &options, destinations: &destinations, state: &state, control: &control };
    session.write(material).unwrap().finish(&control).unwrap();
    drop(destinations);
    path
}

/// A copy of a guest that runs in the lab: its progress, and its files.
struct Copy {
    progress: Progress,
    images: Vec<(PathBuf, &'static str)>,
    console: PathBuf,
}

impl Copy {
    fn of(guest: &Guest<'_>, name: &str, folder: &Path) -> Self {
        let image = |(number, format): (usize, &&'static str)| {
            (folder.join(format!("{name}-{}.{format}", crate::lab::guest::target(number))), *format)
        };
        Self {
            progress: Progress::listen(guest.folder.join(format!("{name}-port"))),
            images: guest.spec.disks.iter().enumerate().map(image).collect(),
            console: guest.folder.join(format!("{name}-console.log")),
        }
    }
}

/// The last record of images that must be of one point in time.
fn last(images: &[(PathBuf, &'static str)], guest: &Guest<'_>) -> u64 {
    let images: Vec<_> = images.iter().map(|(path, format)| (path.as_path(), *format)).collect();
    check_images(&images, guest.layout()).unwrap().last.unwrap()
}

/// What the firmware keeps, by the console.
fn word(console: &str) -> String {
    let found = console.lines().find_map(|line| line.split_once("init: firmware keeps "));
    found.unwrap_or_else(|| panic!("the guest did not find its variable: {console}")).1.trim().to_owned()
}

fn tpm_state(lab: &Lab, id: &str) -> Vec<u8> {
    fs::read(lab.folder().join("lib/swtpm").join(id).join("tpm2/tpm2-00.permall")).unwrap()
}

/// How much of a TPM's state is in another one, in hundredths; seeds and certificates are most of it.
fn kinship(one: &[u8], other: &[u8]) -> usize {
    let pieces: Vec<_> = one.chunks_exact(32).filter(|p| p.iter().any(|b| *b != p[0])).collect();
    let found = pieces.iter().filter(|piece| other.windows(32).any(|window| window == **piece));
    found.count() * 100 / pieces.len()
}

fn guest(lab: &Lab) -> Guest<'_> {
    let network =
        "<interface type='user'><mac address='52:54:00:12:34:56'/><model type='virtio'/></interface>";
    let spec = GuestSpec {
        disks: vec!["qcow2", "raw"],
        ovmf: true,
        tpm: true,
        devices: network.to_owned(),
        ..GuestSpec::default()
    };
    lab.guest(spec)
}

#[test]
fn a_copy_runs_beside_the_original() {
    let lab = Lab::start();
    let guest = guest(&lab);
    guest.start();
    guest.progress.wait_more(100);
    let kept = word(&guest.console());
    assert_ne!(fs::read(guest.folder.join("nvram.fd")).unwrap(), fs::read(TEMPLATE).unwrap());
    let archive = backup(&guest);
    guest.progress.wait_more(20);
    let (inactive, live) = (xml(&lab, "writer", XmlView::Inactive), xml(&lab, "writer", XmlView::Live));
    let found = gather(GuestXml { inactive: Some(&inactive), live: Some(&live) }, &places(&lab)).unwrap();
    let names: Vec<_> = found.iter().map(|member| member.name.as_str()).collect();
    let expected =
        ["domain.xml", "domain.live.xml", "nvram.fd", "tpm/tpm2-00.permall", "boot/kernel", "boot/initrd"];
    assert_eq!(names, expected);
    let id = xml(&lab, "writer", XmlView::Inactive).id.unwrap().to_string();
    // Over a running guest: no, and nothing of it changes.
    let refused = restore(&lab, &archive, &["--force"]).exits(exit::IN_USE);
    assert!(refused.stderr.contains("domain 'writer' is not shut off"), "{refused}");

    let folder = lab.folder().join("copies");
    fs::create_dir(&folder).unwrap();
    let to = ["--name", "second", "--output", text(&folder)];
    let plan = restore(&lab, &archive, &[&to[..], &["--plan"]].concat()).ok();
    println!("{plan}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    println!("{}", restore(&lab, &archive, &to).ok());
    let copy = Copy::of(&guest, "second", &folder);
    let then = last(&copy.images, &guest);
    assert!((100..guest.progress.last().unwrap()).contains(&then), "{then}");
    lab.virsh(&["start", "second"]);
    crate::lab::wait_for("the copy writes", 90, || copy.progress.last() > Some(then + 50));
    guest.progress.wait_more(50);
    assert_eq!(word(&fs::read_to_string(&copy.console).unwrap()), kept);
    let (mine, theirs) = (xml(&lab, "writer", XmlView::Live), xml(&lab, "second", XmlView::Live));
    let new = theirs.id.unwrap().to_string();
    assert_ne!((&mine.id, &mine.macs), (&theirs.id, &theirs.macs));
    assert_eq!(theirs.nvram.unwrap().path, Some(folder.join("second_VARS.fd")));
    copy.progress.tell(b'q');
    crate::lab::wait_for("the copy ends", 60, || lab.virsh(&["domstate", "second"]).trim() == "shut off");
    assert!(last(&copy.images, &guest) > then + 50);
    let (mine, theirs) = (tpm_state(&lab, &id), tpm_state(&lab, &new));
    assert!(kinship(&mine, &theirs) > 90, "the copy's TPM is another one: {}", kinship(&mine, &theirs));
    guest.power_off();
    assert!(last(&guest.images(), &guest) > then + 50);
    restore(&lab, &archive, &to).exits(exit::EXISTS);
}

#[test]
fn a_replacement_boots_as_it_was() {
    let lab = Lab::start();
    let guest = guest(&lab);
    guest.start();
    guest.progress.wait_more(100);
    guest.power_off();
    let kept = word(&guest.console());
    let then = last(&guest.images(), &guest);
    let id = xml(&lab, "writer", XmlView::Inactive).id.unwrap().to_string();
    let (vars, tpm) = (fs::read(guest.folder.join("nvram.fd")).unwrap(), tpm_state(&lab, &id));
    let archive = archive(&guest);
    // The guest goes on, and then loses its firmware's variables and its TPM.
    guest.start();
    guest.progress.wait_more(100);
    guest.power_off();
    assert!(last(&guest.images(), &guest) > then + 50);
    fs::copy(TEMPLATE, guest.folder.join("nvram.fd")).unwrap();
    fs::remove_dir_all(lab.folder().join("lib/swtpm").join(&id)).unwrap();
    restore(&lab, &archive, &[]).exits(exit::EXISTS);

    // Another guest's overlay rests on the disk: only the header of that overlay says so.
    let child = lab.folder().join("child.qcow2");
    let base = guest.disk(0);
    crate::lab::run(
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
            .arg(base)
            .arg(&child),
    );
    let xml_of_child = format!(
        "<domain type='qemu'><name>child</name><memory>1024</memory><os><type arch='x86_64'>hvm</type></os><devices>\
         <disk type='file'><driver name='qemu' type='qcow2'/><source file='{}'/><target dev='vda' bus='virtio'/></disk></devices></domain>",
        child.display()
    );
    let file = lab.folder().join("child.xml");
    fs::write(&file, xml_of_child).unwrap();
    lab.virsh(&["define", text(&file)]);
    let refused = restore(&lab, &archive, &["--force"]).exits(exit::IN_USE);
    assert!(refused.stderr.contains("belongs to disk 'vda' of domain 'child'"), "{refused}");
    lab.virsh(&["undefine", "child"]);

    println!("{}", restore(&lab, &archive, &["--force"]).ok());
    assert_eq!(last(&guest.images(), &guest), then);
    assert_eq!(fs::read(guest.folder.join("nvram.fd")).unwrap(), vars);
    assert_eq!(tpm_state(&lab, &id), tpm);
    assert_eq!(xml(&lab, "writer", XmlView::Inactive).macs, ["52:54:00:12:34:56"]);
    guest.start();
    guest.progress.wait_more(50);
    guest.power_off();
    assert_eq!(word(&guest.console()), kept);
    assert!(last(&guest.images(), &guest) > then + 50);
    assert!(kinship(&tpm, &tpm_state(&lab, &id)) > 90);

    // The host has lost all of it.
    lab.virsh(&["undefine", "writer", "--nvram", "--tpm"]);
    for (path, _) in guest.images() {
        fs::remove_file(path).unwrap();
    }
    let strange = restore(&lab, &archive, &[]).exits(exit::USAGE);
    assert!(strange.stderr.contains("where no guest of this host has its disks"), "{strange}");
    let done = allowed_only(&lab, &archive, &guest.folder);
    assert!(done.text().contains("as it was"), "{done}");
    crate::lab::wait_for("the guest writes", 90, || word_there(&guest) && guest.progress.last().is_some());
    guest.progress.wait_more(50);
    assert_eq!(word(&guest.console()), kept);
    guest.power_off();
    assert_eq!(xml(&lab, "writer", XmlView::Inactive).id.unwrap().to_string(), id);
}

/// Where nothing is known of the guest its serial line (a file) and its channel (a socket where the
/// definition says) want a person's word.
fn allowed_only(lab: &Lab, archive: &Path, to: &Path) -> Outcome {
    let to = ["--output", text(to), "--start"];
    let refused = restore(lab, archive, &to).exits(exit::REFUSED);
    assert!(refused.stderr.contains("--allow character-device"), "{refused}");
    let planned = restore(lab, archive, &[&to[..], &["--plan"]].concat()).exits(exit::REFUSED);
    assert!(planned.text().contains("host access: devices/serial/source@path"), "{planned}");
    restore(lab, archive, &[&to[..], &["--allow", "character-device"]].concat()).ok()
}

fn word_there(guest: &Guest<'_>) -> bool {
    guest.console().contains("init: firmware keeps ")
}

/// A restore that is killed leaves the old guest or the new one, and made again it ends.
#[test]
fn a_killed_replacement_leaves_whole_disks() {
    let lab = Lab::start();
    let guest = lab.guest(GuestSpec { disks: vec!["qcow2", "raw"], ..GuestSpec::default() });
    guest.start();
    guest.progress.wait_more(300);
    guest.power_off();
    let then = last(&guest.images(), &guest);
    let archive = archive(&guest);
    guest.start();
    guest.progress.wait_more(300);
    guest.power_off();
    let now = last(&guest.images(), &guest);
    assert!(now > then);
    let later = archive_with(&guest, &xml(&lab, "writer", XmlView::Inactive), "later.tar");
    let whole = std::time::Instant::now();
    restore(&lab, &archive, &["--force", "--name", "measure", "--output", text(lab.folder())]).ok();
    let whole = whole.elapsed();
    let guards = lab.folder().join("guards");
    // (killed amid its work, the archive's guest is there) for each step.
    let mut seen: Vec<(bool, bool)> = Vec::new();
    let amid = |seen: &[(bool, bool)]| seen.iter().filter(|(amid, _)| *amid).count();
    for step in 0..96_u32 {
        if step >= 24 && amid(&seen) >= AMID {
            break;
        }
        // Now to the one, now to the other, so that every step has something to exchange.
        let (from, to) = if step % 2 == 0 { (&archive, then) } else { (&later, now) };
        let mut command = command(&lab, &["restore", text(from), "--define", "--force"]);
        let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
        // With its guards up it writes disks and exchanges names, and takes them down when that is done.
        crate::lab::wait_for("the restore begins to write", 60, || {
            !alive(&guards).is_empty() || child.try_wait().unwrap().is_some()
        });
        std::thread::sleep(whole * (step % 24) / 24);
        let at_work = !alive(&guards).is_empty();
        child.kill().unwrap();
        let ended = child.wait().unwrap();
        let found = last(&guest.images(), &guest);
        assert!(found == then || found == now, "{found} is neither {then} nor {now}");
        assert!(!ended.success() || found == to);
        seen.push((at_work && ended.code().is_none(), found == to));
    }
    assert!(
        amid(&seen) >= AMID,
        "only {} of {} kills fell into a restore's work: {seen:?}",
        amid(&seen),
        seen.len()
    );
    println!("(killed at work, restored): {seen:?}");
    restore(&lab, &archive, &["--force"]).ok();
    assert_eq!(last(&guest.images(), &guest), then);
    guest.start();
    guest.power_off();
}

/// A loop device, gone with its holder.
struct Loop(String);

impl Loop {
    fn of(file: &Path) -> Self {
        crate::lab::run(Command::new("truncate").args(["-s", "256M"]).arg(file));
        Self(crate::lab::run(Command::new("losetup").args(["-f", "--show"]).arg(file)).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(error) = Command::new("losetup").args(["-d", &self.0]).status() {
            eprintln!("{}: {error}", self.0);
        }
    }
}

#[test]
fn disks_go_to_block_devices_and_pools() {
    let lab = Lab::start();
    let guest = lab.guest(GuestSpec { disks: vec!["qcow2", "raw"], agent: true, ..GuestSpec::default() });
    guest.start();
    guest.progress.wait_more(100);
    // As of a transient domain, which has no other: what libvirt chose for this run is in it.
    let live = xml(&lab, "writer", XmlView::Live);
    assert!(live.text().contains("/channel/") && live.text().contains("<alias name="));
    guest.power_off();
    let then = last(&guest.images(), &guest);
    let archive = archive_with(&guest, &live, "transient.tar");
    let pool = lab.folder().join("pool");
    fs::create_dir(&pool).unwrap();
    lab.virsh(&["pool-create-as", "files", "dir", "--target", text(&pool)]);
    let device = Loop::of(&lab.folder().join("device.img"));
    let disk = format!("vdb={}", device.0);
    let allow = "--allow=character-device";
    let to = ["--name", "third", "--pool", "files", "--disk", &disk, "--format", "raw", allow];
    let refused = restore(&lab, &archive, &to).exits(exit::EXISTS);
    assert!(refused.stderr.contains("exists already, where vdb shall be"), "{refused}");
    let done = restore(&lab, &archive, &[&to[..], &["--force", "--start"]].concat()).ok();
    assert!(done.text().contains("in place: what is on it is lost at once"), "{done}");
    assert!(lab.virsh(&["vol-list", "files"]).contains("third-vda.raw"));
    let copy = Copy::of(&guest, "third", &pool);
    crate::lab::wait_for("the copy writes", 90, || copy.progress.last() > Some(then + 20));
    // A running guest's device is not written to, whoever asks.
    let other = ["--name", "fourth", "--pool", "files", "--disk", &disk, "--force", allow];
    let refused = restore(&lab, &archive, &other).exits(exit::IN_USE);
    assert!(refused.stderr.contains("belongs to disk 'vdb' of domain 'third'"), "{refused}");
    copy.progress.tell(b'q');
    crate::lab::wait_for("the copy ends", 60, || lab.virsh(&["domstate", "third"]).trim() == "shut off");
    let images = vec![(pool.join("third-vda.raw"), "raw"), (PathBuf::from(&device.0), "raw")];
    assert!(last(&images, &guest) > then + 20);
    lab.virsh(&["undefine", "third"]);
}
