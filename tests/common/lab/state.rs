//! Guests that have booted before. A guest of each shape boots once, up to where its init waits for its
//! words, and is saved there (`virsh save`). Each other one of that shape is woken from that file, in a
//! second or two instead of the five of processor time that a boot takes. What is in it is a kernel with its
//! modules and an init: no disk is open, no file system mounted and no record looked for, so it goes on on
//! whatever its disks hold.
//!
//! The file is written anew for each guest, with that guest's description in place of the one that was saved.
//! libvirt's file is a header, the description, libvirt's cookie, and QEMU's stream; libvirt does not care
//! where the description came from.
//!
//! States lie in `target/lab/states`. Their names are digests of all that they are made of, so no old one is
//! ever woken.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::guest::{boot_files, domain_xml, make_disk, words};
use super::{Guest, GuestSpec, Lab, wait_for};

/// libvirt's header: 16 bytes of magic; five numbers: version, length of description and cookie, was running,
/// compression, where the cookie is; 14 that are unused. All of 32 bits, as the processor has them.
const HEADER: usize = 16 + 4 * (5 + 14);
const LENGTH: usize = 16 + 4;
const COOKIE: usize = 16 + 4 * 4;

/// Whether a guest can be woken: what its firmware or its TPM keeps is another one's, and a device with a
/// source is a file that only this one has.
pub(super) fn can_wake(spec: &GuestSpec) -> bool {
    !spec.ovmf && !spec.tpm && !spec.devices.contains("<source")
}

/// Starts a guest that is defined and shut off from the state of its shape.
pub(super) fn wake(guest: &Guest<'_>) {
    let (lab, spec) = (guest.lab, &guest.spec);
    let state = state_of(lab, spec);
    let own = lab.folder().join(format!("{}.state", spec.name));
    rewrite(&state, &own, &lab.virsh(&["dumpxml", "--inactive", &spec.name]));
    lab.virsh(&["restore", &own.to_string_lossy()]);
    fs::remove_file(&own).unwrap();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let run = uuid::Uuid::new_v4().simple();
    guest.progress.say(&format!("now={now} run={run}{}\n", words(spec)));
}

/// The state of a shape, made where there is none.
fn state_of(lab: &Lab, spec: &GuestSpec) -> PathBuf {
    // Formats and contents of the disks are nothing that a guest sees, or not yet.
    let disks = vec!["qcow2"; spec.disks.len()];
    let shape = GuestSpec { name: "shape".to_owned(), disks, golden: None, ..spec.clone() };
    let boot = boot_files();
    let states = boot.join("states");
    fs::create_dir_all(&states).unwrap();
    let mut digest = blake3::Hasher::new();
    for file in ["vmlinuz", "initrd"] {
        digest.update(&fs::read(boot.join(file)).unwrap());
    }
    digest.update(lab.virsh(&["version", "--daemon"]).as_bytes());
    let kernel = digest.finalize().to_hex()[..16].to_owned();
    digest.update(domain_xml(&shape, Path::new("/"), "hold").as_bytes());
    let state = states.join(format!("{kernel}-{}", &digest.finalize().to_hex()[..16]));
    let lock = File::create(state.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    if !state.exists() {
        remove_others(&states, &kernel);
        make(lab, &shape, &state);
    }
    state
}

/// Removes the states of other kernels, which nobody wakes any more.
fn remove_others(states: &Path, kernel: &str) {
    let files = fs::read_dir(states).unwrap().map(|entry| entry.unwrap().path());
    for old in files.filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with(kernel)) {
        fs::remove_file(old).unwrap_or_default();
    }
}

fn make(lab: &Lab, shape: &GuestSpec, state: &Path) {
    let folder = lab.folder().join(&shape.name);
    fs::create_dir_all(&folder).unwrap();
    (0..shape.disks.len()).for_each(|disk| make_disk(shape, &folder, disk));
    let (xml, console) = (folder.join("domain.xml"), folder.join("console.log"));
    fs::write(&xml, domain_xml(shape, &folder, "hold")).unwrap();
    lab.virsh(&["create", "--validate", &xml.to_string_lossy()]);
    let text = || String::from_utf8_lossy(&fs::read(&console).unwrap_or_default()).into_owned();
    wait_for("a guest is held in its init", 90, || text().contains("init: held"));
    let half = state.with_extension("half");
    lab.virsh(&["save", &shape.name, &half.to_string_lossy()]);
    fs::rename(half, state).unwrap();
    fs::remove_dir_all(folder).unwrap();
}

/// A state with another description.
fn rewrite(state: &Path, target: &Path, description: &str) {
    let mut file = File::open(state).unwrap();
    let mut header = [0; HEADER];
    file.read_exact(&mut header).unwrap();
    assert_eq!(&header[..16], b"LibvirtQemudSave");
    let number =
        |at: usize| usize::try_from(u32::from_ne_bytes(header[at..at + 4].try_into().unwrap())).unwrap();
    let mut data = vec![0; number(LENGTH)];
    file.read_exact(&mut data).unwrap();
    let cookie = match number(COOKIE) {
        0 => &[][..],
        at => data[at..].split_inclusive(|byte| *byte == 0).next().unwrap(),
    };
    let place = description.len() + 1;
    let mut set = |at: usize, value: usize| {
        header[at..at + 4].copy_from_slice(&u32::try_from(value).unwrap().to_ne_bytes());
    };
    set(LENGTH, place + cookie.len());
    set(COOKIE, if cookie.is_empty() { 0 } else { place });
    let mut target = File::create(target).unwrap();
    target.write_all(&[&header[..], description.as_bytes(), &[0], cookie].concat()).unwrap();
    std::io::copy(&mut file, &mut target).unwrap();
}
