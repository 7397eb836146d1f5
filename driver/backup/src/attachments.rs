//! What goes into an archive beside the disks, so that a guest can be defined and started again: its XML, its
//! firmware's variables, its TPM's state, and the files of a direct boot. Their names are FORMAT.md's.
//!
//! When: at the moment of the freeze, while the guest stands still or right behind the snapshot, because
//! firmware variables and TPM state belong to the same point in time as the disks. A guest may write both
//! while they are read, so each is read until two readings in a row agree.
//!
//! How: nothing is followed that could surprise. A file is opened without waiting (a FIFO would) and must be
//! a regular one. NVRAM and TPM state lie in directories that QEMU's and swtpm's users may write, so links
//! are not followed there, neither at a path's end nor, where others can have made them, on the way; a kernel
//! is the administrator's, and links to it are usual. Everything is held in memory, and bounded: [`limit_of`]
//! says how much each member may have, [`TOTAL_LIMIT`] how much all of them, and the same limits hold when an
//! archive is read back.
//!
//! What is not there: a guest that never started has no NVRAM and no TPM state yet. One that runs has both,
//! and then it is an error that they are missing, as is everything that cannot be read: a backup without them
//! would restore a guest that does not boot, or that cannot open its own disk.
//!
//! Imports: `error`, `archive` (its member type), `hypervisor` (its XML).

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use rustix::fs::OFlags;

use virtfold_archive::layout;
use virtfold_archive::writer::Attachment;
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::safe_path::{self, Directory, Entry};
use virtfold_base::units::MIB;
use virtfold_hypervisor::domain_xml::{DomainXml, MAX_BYTES, Nvram, Tpm, TpmStorage};

/// The domain XML that the next start uses.
pub const DOMAIN_XML: &str = "domain.xml";
/// The domain XML of what ran.
pub const LIVE_XML: &str = "domain.live.xml";
/// Firmware variables, raw.
pub const NVRAM_RAW: &str = "nvram.fd";
/// Firmware variables in a qcow2 image.
pub const NVRAM_QCOW2: &str = "nvram.qcow2";
/// What precedes the names of a TPM's files.
pub const TPM: &str = "tpm/";
/// A TPM's state that is one file.
pub const TPM_FILE: &str = "tpm/state";
/// Direct boot: element of the XML's `<os>`, member, limit in bytes.
pub const BOOT: [(&str, &str, u64); 3] = [
    ("kernel", "boot/kernel", 256 * MIB),
    ("initrd", "boot/initrd", 512 * MIB),
    ("dtb", "boot/dtb", 16 * MIB),
];

/// OVMF's largest is 4 MiB, AAVMF's 64 MiB.
const NVRAM_LIMIT: u64 = 64 * MIB + MIB;
/// swtpm's state has some KiB.
const TPM_LIMIT: u64 = 4 * MIB;
/// More files in a TPM's directory are refused.
const TPM_FILES: usize = 16;
/// All of them together, in memory and in an archive: one whose members each keep to their limits may have a
/// thousand of them.
pub const TOTAL_LIMIT: u64 = 512 * MIB;
/// How often a file that changes is read again, and the pause in between.
const TRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// Bytes that the member `name` may have; `None` for members that no restore knows.
pub fn limit_of(name: &str) -> Option<u64> {
    match name {
        DOMAIN_XML | LIVE_XML => u64::try_from(MAX_BYTES).ok(),
        NVRAM_RAW | NVRAM_QCOW2 => Some(NVRAM_LIMIT),
        _ => match name.strip_prefix(TPM) {
            Some(file) => (!file.contains('/')).then_some(TPM_LIMIT),
            None => BOOT.iter().find(|(_, member, _)| *member == name).map(|(_, _, limit)| *limit),
        },
    }
}

/// Where libvirt keeps what domain XML does not name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibvirtDirectories {
    /// TPM states: `UUID/tpm2` below it.
    pub swtpm: PathBuf,
    /// Firmware variables: `NAME_VARS.fd` in it.
    pub nvram: PathBuf,
    /// Disks that nobody gave another place.
    pub images: PathBuf,
}

impl LibvirtDirectories {
    /// Those of a system's libvirtd, whose state directory is `state`: `/var/lib/libvirt`, but for one with a
    /// mount namespace of its own.
    pub fn system(state: &Path) -> Self {
        Self { swtpm: state.join("swtpm"), nvram: state.join("qemu/nvram"), images: state.join("images") }
    }

    /// Those of a user's libvirtd. `config` is the user's `XDG_CONFIG_HOME`, `data` the `XDG_DATA_HOME`.
    pub fn session(config: &Path, data: &Path) -> Self {
        let qemu = config.join("libvirt/qemu");
        Self { swtpm: qemu.join("swtpm"), nvram: qemu.join("nvram"), images: data.join("libvirt/images") }
    }

    /// The state of the TPM of domain `uuid`, where the XML names no place.
    pub fn tpm_state(&self, uuid: &str, tpm: &Tpm) -> PathBuf {
        let version = if tpm.version.as_deref() == Some("1.2") { "tpm1.2" } else { "tpm2" };
        self.swtpm.join(uuid).join(version)
    }
}

/// A domain's XML at the moment of the freeze; at least one of the two.
#[derive(Clone, Copy, Debug)]
pub struct GuestXml<'a> {
    /// What the next start uses; `None` for a transient domain.
    pub inactive: Option<&'a DomainXml>,
    /// What runs; `None` where nothing does.
    pub live: Option<&'a DomainXml>,
}

/// Reads everything of a guest that is no disk; see the module's description.
///
/// # Errors
/// Something is there and can't be read, or is larger than its limit; something is missing that a
/// running guest has.
pub fn gather(guest: GuestXml<'_>, places: &LibvirtDirectories) -> Result<Vec<Attachment>> {
    let none = || Error::new(ErrorKind::Internal, "a guest without XML cannot be backed up");
    let lasting = guest.inactive.or(guest.live).ok_or_else(none)?;
    let current = guest.live.unwrap_or(lasting);
    let gatherer = AttachmentCollector { name: &current.name, runs: guest.live.is_some(), places };
    let mut found = vec![attachment(DOMAIN_XML, lasting.text().as_bytes().to_vec())];
    found.extend(guest.live.map(|live| attachment(LIVE_XML, live.text().as_bytes().to_vec())));
    if let Some(nvram) = &current.nvram {
        found.extend(gatherer.nvram(nvram)?);
    }
    found.extend(gatherer.tpm(current)?);
    let boot = &current.boot;
    for ((element, member, limit), path) in BOOT.iter().zip([&boot.kernel, &boot.initrd, &boot.dtb]) {
        let Some(path) = path else { continue };
        let content = read_file(path, *limit, SymlinkPolicy::Follow);
        let content = content.and_then(|c| c.ok_or_else(|| missing(path)));
        found.push(attachment(member, content.map_err(|e| e.within(gatherer.cannot(element)))?));
    }
    let total: u64 = found.iter().map(|one| one.content.len() as u64).sum();
    if total > TOTAL_LIMIT {
        let what = format!(
            "{}: they have more than {} MiB",
            gatherer.cannot("files beside the disks"),
            TOTAL_LIMIT / MIB
        );
        return Err(Error::new(ErrorKind::Unsupported, what).with_hint("give it a smaller initrd or kernel"));
    }
    Ok(found)
}

fn attachment(name: &str, content: Vec<u8>) -> Attachment {
    Attachment { name: name.to_owned(), content }
}

struct AttachmentCollector<'a> {
    name: &'a str,
    runs: bool,
    places: &'a LibvirtDirectories,
}

impl AttachmentCollector<'_> {
    fn cannot(&self, what: &str) -> String {
        format!("cannot back up the {what} of domain '{}'", self.name)
    }

    fn nvram(&self, nvram: &Nvram) -> Result<Option<Attachment>> {
        let cannot = || self.cannot("NVRAM");
        if let Some(kind) = &nvram.elsewhere {
            let why = format!("{}: it is of the type '{kind}', and virtfold reads files only", cannot());
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        let Some(path) = &nvram.path else {
            return match self.runs {
                true => Err(Error::new(
                    ErrorKind::NotFound,
                    format!("{}: the live XML does not say where it is", cannot()),
                )),
                false => Ok(None),
            };
        };
        let member = match nvram.format.as_deref().unwrap_or("raw") {
            "raw" => NVRAM_RAW,
            "qcow2" => NVRAM_QCOW2,
            other => {
                let why = format!("{}: '{}' has the format '{other}'", cannot(), path.display());
                return Err(Error::new(ErrorKind::Unsupported, why));
            }
        };
        let content = read_settled(path, NVRAM_LIMIT).map_err(|e| e.within(cannot()))?;
        match content {
            None if self.runs => Err(missing(path).within(cannot())),
            content => Ok(content.map(|content| attachment(member, content))),
        }
    }

    fn tpm(&self, xml: &DomainXml) -> Result<Vec<Attachment>> {
        let cannot = || self.cannot("TPM state");
        let tpm = match xml.tpms.as_slice() {
            [] => return Ok(Vec::new()),
            [one] => one,
            // libvirt itself takes one emulator only.
            _ => return Err(Error::new(ErrorKind::Unsupported, format!("{}: it has several", cannot()))),
        };
        let named = || Error::new(ErrorKind::Unsupported, format!("{}: the domain has no uuid", cannot()));
        let place = match (&tpm.source, xml.id) {
            (Some(path), _) => path.clone(),
            (None, Some(id)) => self.places.tpm_state(&id.to_string(), tpm),
            (None, None) => return Err(named()),
        };
        let found = match tpm.storage {
            TpmStorage::File => {
                let content = read_settled(&place, TPM_LIMIT).map_err(|e| e.within(cannot()))?;
                content.map(|content| attachment(TPM_FILE, content)).into_iter().collect()
            }
            TpmStorage::Directory => tpm_directory(&place).map_err(|e| e.within(cannot()))?,
        };
        if found.is_empty() && self.runs {
            let hint = "if libvirt's state directory is not /var/lib/libvirt, use --libvirt-dir";
            return Err(missing(&place).within(cannot()).with_hint(hint));
        }
        Ok(found)
    }
}

/// The files of a TPM's directory, but for hidden ones (swtpm's lock); none where there is no directory.
fn tpm_directory(directory: &Path) -> Result<Vec<Attachment>> {
    let reading = || format!("cannot read the directory '{}'", directory.display());
    let opened =
        match Entry::locate(directory).and_then(|entry| entry.directory().open_directory(entry.name())) {
            Ok(opened) => opened,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(_) if is_link(directory) => return Err(refused_link(directory)),
            Err(error) => return Err(Error::io(reading(), error)),
        };
    let too_many = || {
        let why = format!("'{}' has more than {TPM_FILES} files", directory.display());
        Error::new(ErrorKind::Unsupported, why)
    };
    // Hidden ones count here: what was not read may be a file of the TPM.
    let all = opened.names(2 * TPM_FILES).at(reading)?;
    if all.len() > 2 * TPM_FILES {
        return Err(too_many());
    }
    let mut names = Vec::new();
    for name in all {
        let name = name.into_string().map_err(|name| {
            let shown = name.to_string_lossy().escape_debug().to_string();
            Error::new(
                ErrorKind::Unsupported,
                format!("'{shown}' in '{}' has an unusable name", directory.display()),
            )
        })?;
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    if names.len() > TPM_FILES {
        return Err(too_many());
    }
    names.sort();
    let mut found = Vec::new();
    for name in names {
        let member = format!("{TPM}{name}");
        layout::check_name(&member).map_err(|why| Error::new(ErrorKind::Unsupported, why))?;
        // swtpm writes a new state beside the old one and renames it: a file may be gone again.
        let read = || read_entry(&opened, name.as_ref(), &directory.join(&name), TPM_LIMIT);
        if let Some(content) = settled(&directory.join(&name), read)? {
            found.push(attachment(&member, content));
        }
    }
    Ok(found)
}

/// Whether links are followed at a path's end, where nobody but root can have made them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SymlinkPolicy {
    Follow,
    Refuse,
}

/// Reads a file that may be written to meanwhile until two readings in a row agree; `None` where there is
/// none.
fn read_settled(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    settled(path, || read_file(path, limit, SymlinkPolicy::Refuse))
}

fn settled(path: &Path, read: impl Fn() -> Result<Option<Vec<u8>>>) -> Result<Option<Vec<u8>>> {
    let mut last = read()?;
    for _ in 0..TRIES {
        let again = read()?;
        if again == last {
            return Ok(again);
        }
        last = again;
        std::thread::sleep(PAUSE);
    }
    Err(Error::new(ErrorKind::InUse, format!("'{}' keeps changing", path.display()))
        .with_hint("retry when the guest does not write its firmware variables or TPM state"))
}

/// Reads a regular file of at most `limit` bytes; `None` where there is none.
///
/// # Errors
/// It is not a regular file, longer, a link where none may be, or can't be read.
pub(super) fn read_file(path: &Path, limit: u64, links: SymlinkPolicy) -> Result<Option<Vec<u8>>> {
    let opening = || format!("cannot open '{}'", path.display());
    if links == SymlinkPolicy::Follow {
        return match safe_path::open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            file => bounded(&file.at(opening)?, path, limit).map(Some),
        };
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    match Directory::open(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        opened => {
            let name = path.file_name().unwrap_or_default();
            read_entry(&opened.at(opening)?, name, path, limit)
        }
    }
}

/// The file `name` in `directory`, called `path` in messages, which is no link.
fn read_entry(directory: &Directory, name: &OsStr, path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    match directory.open_file(name, OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(file) => bounded(&file, path, limit).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => Err(refused_link(path)),
        Err(error) => Err(Error::io(format!("cannot open '{}'", path.display()), error)),
    }
}

fn is_link(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_symlink())
}

fn refused_link(path: &Path) -> Error {
    Error::new(ErrorKind::Unsupported, format!("'{}' is a link", path.display()))
        .with_hint("replace the link by the file itself")
}

fn bounded(file: &File, path: &Path, limit: u64) -> Result<Vec<u8>> {
    let metadata = file.metadata().at(|| format!("cannot examine '{}'", path.display()))?;
    if !metadata.is_file() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("'{}' is not a regular file", path.display()),
        ));
    }
    let mut content = Vec::new();
    if metadata.len() <= limit {
        let read = file.take(limit.saturating_add(1)).read_to_end(&mut content);
        read.at(|| format!("cannot read '{}'", path.display()))?;
    }
    if metadata.len() > limit || content.len() as u64 > limit {
        let why = format!("'{}' is larger than {} MiB", path.display(), limit / MIB);
        return Err(Error::new(ErrorKind::Unsupported, why));
    }
    Ok(content)
}

fn missing(path: &Path) -> Error {
    Error::new(ErrorKind::NotFound, format!("'{}' is not there", path.display()))
}

#[cfg(test)]
#[path = "attachments_tests.rs"]
mod tests;
