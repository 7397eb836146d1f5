//! Writing an overlay into its base while nobody runs on them, without believing what the two say.
//!
//! QEMU's user can write every byte of both, headers included, while the guest runs. A header that names an
//! external data file or another backing file would have `qemu-img` write, as root, whatever the guest's user
//! wrote, into any file of the host. So:
//!
//! 1. Every image of the chain is opened first, and everything else goes by these descriptors: a name that
//!    changes later changes nothing.
//! 2. Both headers are read from them by the crate `image`: no external data file, backing file and format
//!    exactly those of the journal, and the base is the very file (device and inode) that the journal has.
//!    Nobody but us may have the files open.
//! 3. `qemu-img` gets the chain in so many words (`json:`), by descriptor (`/dev/fd/N`), and follows no
//!    header to a backing file.
//! 4. It runs in a [`sandbox`]: not as root, with no network, and it can open these files and its own
//!    libraries, nothing else.
//!
//! Imports: `error`, `openers`, `safe_path`, `image`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use serde_json::{Value, json};

use super::sandbox::{self, Sandbox};
use virtfold_base::confine::FileAccess;
use virtfold_base::error::{Error, ErrorKind, IoContext, Result, says_full};
use virtfold_base::openers;
use virtfold_base::safe_path::{self, Entry};
use virtfold_image::{FileReferences, MAX_CHAIN};

/// A commit may take an hour, and a second for each so many bytes that the overlay has.
const HOUR: Duration = Duration::from_secs(3600);
const SLOWEST: u64 = 1 << 20;

/// What is written into what, as the journal has it.
#[derive(Clone, Copy, Debug)]
pub struct OfflineCommit<'a> {
    /// The overlay, a qcow2 image.
    pub overlay: &'a Path,
    /// The image right below it.
    pub base: &'a Path,
    /// The base's format.
    pub format: &'a str,
    /// Device and inode of the base; `None` where the journal knows nothing of it but its name.
    pub identity: Option<(u64, u64)>,
    /// The image below the base, and its format.
    pub backing: Option<(&'a Path, &'a str)>,
    /// When the journal noted all that, seconds since 1970.
    pub noted: i64,
}

/// An image of the chain.
struct OpenImage {
    file: File,
    path: PathBuf,
    format: String,
    reach: FileAccess,
    identity: (u64, u64),
    is_device: bool,
}

impl OpenImage {
    fn open(path: &Path, format: &str, reach: FileAccess) -> Result<Self> {
        let opening = || format!("cannot open '{}'", path.display());
        let access = if reach == FileAccess::Write { OFlags::RDWR } else { OFlags::RDONLY };
        let not_an_image = || {
            let what = format!("'{}' is neither a regular file nor a block device", path.display());
            Error::new(ErrorKind::BadImage, what)
        };
        let file = safe_path::open_image(path, access).at(opening)?.ok_or_else(not_an_image)?;
        let found = file.metadata().at(opening)?;
        let is_device = found.file_type().is_block_device();
        if !found.is_file() && !is_device {
            return Err(not_an_image());
        }
        let (path, format, identity) = (path.to_owned(), format.to_owned(), super::identity_of(&found));
        Ok(Self { file, path, format, reach, identity, is_device })
    }

    /// What its header says of other files; of a raw image nothing.
    fn references(&self) -> Result<FileReferences> {
        match self.format.as_str() {
            "raw" => Ok(FileReferences::default()),
            "qcow2" => virtfold_image::references(&self.file, &self.path),
            other => {
                let what = format!(
                    "'{}' has the format '{other}'; virtfold knows raw and qcow2",
                    self.path.display()
                );
                Err(Error::new(ErrorKind::Unsupported, what))
            }
        }
    }

    /// Refuses an external data file.
    fn expect_own_data(&self, references: &FileReferences) -> Result<()> {
        let Some(data) = &references.data_file else { return Ok(()) };
        let (image, data) = (self.path.display(), data.display());
        let what = format!(
            "the header of '{image}' names an external data file, '{data}': nothing is committed by it"
        );
        Err(Error::new(ErrorKind::BadImage, what).with_hint(
            "the guest's QEMU may have been made to write that. Look at both with 'qemu-img info'; where the data file is meant, commit by hand with 'qemu-img commit -d'",
        ))
    }

    fn node(&self, backing: &Value) -> Value {
        let driver = if self.is_device { "host_device" } else { "file" };
        let file = json!({"driver": driver, "filename": format!("/dev/fd/{}", self.file.as_raw_fd())});
        match self.format.as_str() {
            "raw" => json!({"driver": "raw", "file": file}),
            _ => json!({"driver": "qcow2", "file": file, "backing": backing}),
        }
    }
}

/// Commits; the overlay keeps its contents. Done again after a failure, it does the rest.
///
/// # Errors
/// What the images say is not what the journal says; one of them is in use, or full.
pub(super) fn commit(request: &OfflineCommit<'_>) -> Result<()> {
    let doing = || format!("cannot commit '{}' into '{}'", request.overlay.display(), request.base.display());
    let chain = checked_chain(request).map_err(|e| e.within(doing()))?;
    let mut output = run(&chain, "none").map_err(|e| e.within(doing()))?;
    if output.said.contains("O_DIRECT") {
        // A file system without it (tmpfs): through the page cache, with a flush at the end.
        output = run(&chain, "writeback").map_err(|e| e.within(doing()))?;
    }
    match output.success {
        true => Ok(()),
        false => Err(failed(doing(), &output.said)),
    }
}

fn run(chain: &[OpenImage], cache: &str) -> Result<sandbox::Ended> {
    let name = chain.iter().rev().fold(Value::Null, |below, image| image.node(&below));
    let arguments = ["commit", "-q", "-d", "-t", cache, &format!("json:{name}")].map(Into::into).to_vec();
    let overlay = chain.first().map_or(0, |image| image.file.metadata().map_or(0, |found| found.len()));
    let limit = HOUR + Duration::from_secs(overlay / SLOWEST);
    let images = chain.iter().map(|image| (&image.file, image.reach)).collect();
    Sandbox { arguments, images, limit }.run()
}

fn failed(doing: String, said: &str) -> Error {
    let kind = if says_full(said) {
        ErrorKind::NoSpace
    } else if said.contains("\" lock") {
        ErrorKind::InUse
    } else {
        ErrorKind::Io
    };
    Error::new(kind, doing).with_source(said.to_owned())
}

/// The chain from the overlay down, each image open and as the journal has it.
fn checked_chain(request: &OfflineCommit<'_>) -> Result<Vec<OpenImage>> {
    let overlay = OpenImage::open(request.overlay, "qcow2", FileAccess::Write)?;
    let base = OpenImage::open(request.base, request.format, FileAccess::Write)?;
    expect_base(&base, request)?;
    let references = overlay.references()?;
    overlay.expect_own_data(&references)?;
    expect_below(&overlay, &references, Some((request.base, request.format)))?;
    let references = base.references()?;
    base.expect_own_data(&references)?;
    if request.identity.is_some() {
        expect_below(&base, &references, request.backing)?;
    }
    let mut chain = vec![overlay, base];
    let format = request.backing.map(|(_, format)| format.to_owned());
    let mut next = references.backing.map(|path| (path, references.backing_format.or(format)));
    while let Some((path, format)) = next.take() {
        let above = chain.last().map_or_else(String::new, |image| image.path.display().to_string());
        let format = format.ok_or_else(|| {
            let what =
                format!("'{above}' does not say which format its backing file '{}' has", path.display());
            Error::new(ErrorKind::Unsupported, what)
        })?;
        let image = OpenImage::open(&path, &format, FileAccess::Read)?;
        if chain.len() >= MAX_CHAIN || chain.iter().any(|other| other.identity == image.identity) {
            let what = format!("the chain below '{above}' is a loop, or longer than {MAX_CHAIN} images");
            return Err(Error::new(ErrorKind::BadImage, what));
        }
        let references = image.references()?;
        image.expect_own_data(&references)?;
        next = references.backing.map(|path| (path, references.backing_format));
        chain.push(image);
    }
    for image in chain.iter().filter(|image| image.reach == FileAccess::Write) {
        expect_unused(image)?;
    }
    Ok(chain)
}

/// The base is the file that the journal has. A device's number counts only since the host was started: on
/// NFS, Btrfs or LVM it is another one afterwards.
fn expect_base(base: &OpenImage, request: &OfflineCommit<'_>) -> Result<()> {
    let Some(then) = request.identity else { return Ok(()) };
    let now = base.identity;
    let is_same = now.1 == then.1 && (now.0 == then.0 || !is_same_boot(request.noted)?);
    if is_same {
        return Ok(());
    }
    let what = format!(
        "'{}' is another file than when the backup began (then device {} inode {}, now device {} inode {})",
        base.path.display(),
        then.0,
        then.1,
        now.0,
        now.1
    );
    Err(Error::new(ErrorKind::BadImage, what).with_hint(
        "nothing was written. Put the file of then back, or see which of the two holds the guest's data and commit by hand with 'qemu-img commit -d'",
    ))
}

/// Whether the host runs since before that time.
fn is_same_boot(noted: i64) -> Result<bool> {
    let reading = || "cannot read '/proc/stat'".to_owned();
    let text = std::fs::read_to_string("/proc/stat").at(reading)?;
    let booted = text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<i64>().ok());
    // One that is not told counts as the same: the stricter.
    Ok(booted.is_none_or(|booted| booted <= noted))
}

/// The header of `image` names this image as the one below, and no other.
fn expect_below(image: &OpenImage, header: &FileReferences, expected: Option<(&Path, &str)>) -> Result<()> {
    let shown = |below: Option<(&Path, Option<&str>)>| match below {
        None => "none".to_owned(),
        Some((path, None)) => format!("'{}'", path.display()),
        Some((path, Some(format))) => format!("'{}' ({})", path.display(), format.escape_debug()),
    };
    let found = header.backing.as_deref().map(|path| (path, header.backing_format.as_deref()));
    let is_it = match (found, expected) {
        (None, None) => true,
        (Some((path, format)), Some((expected, of))) => {
            format.is_none_or(|format| format == of) && is_same_file(path, expected)?
        }
        _ => false,
    };
    if is_it {
        return Ok(());
    }
    let what = format!(
        "the header of '{}' names another backing file than the journal: {}, not {}",
        image.path.display(),
        shown(found),
        shown(expected.map(|(path, format)| (path, Some(format))))
    );
    Err(Error::new(ErrorKind::BadImage, what).with_hint(
        "nothing was written: the guest's QEMU may have been made to write that header. Look at it with 'qemu-img info --backing-chain'; where it is right, commit by hand with 'qemu-img commit -d'",
    ))
}

/// Whether two paths lead to one file.
fn is_same_file(one: &Path, other: &Path) -> Result<bool> {
    if one == other {
        return Ok(true);
    }
    let found = |path: &Path| -> std::io::Result<_> {
        let found = Entry::locate(path)?.find()?;
        Ok(found.map(|found| safe_path::identity(&found)))
    };
    let looking = |path: &Path| format!("cannot look at '{}'", path.display());
    let (one, other) = (found(one).at(|| looking(one))?, found(other).at(|| looking(other))?);
    Ok(one.is_some() && one == other)
}

/// Nobody else has it open for writing: who had could change its header after it was read.
fn expect_unused(image: &OpenImage) -> Result<()> {
    let Some(process) = openers::other_writer(&image.file)? else { return Ok(()) };
    let what = format!("process {process} has '{}' open for writing", image.path.display());
    Err(Error::new(ErrorKind::InUse, what).with_hint("end it, then run 'virtfold recover'"))
}

#[cfg(test)]
#[path = "offline_commit_tests.rs"]
mod tests;
