//! Steps 1302 to 1307: the images are opened and held, what may not be read is refused, and every table is
//! read before anything is written.
//!
//! Imports: `error`, `archive`, `image`, `table`.

use std::sync::atomic::Ordering;

use super::{BackupSession, ImageSpec, ImagesRequest, InputDisk};
use crate::Control;
use crate::folded_disk::{DiskSet, FoldedDisk, block_of};
use crate::increment::{ChangeHint, ChangeQuery, Parent, SourceFiles, find_changes};
use crate::options::{BackupOptions, DetectZeroes};
use virtfold_archive::layout;
use virtfold_archive::table::Layout;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_image::{AllocationTable, ChangeSensitivity, DiskImage, Format, ImageAccess, OpenOptions};

/// What is done with a raw image that looks like a container of another format. A guest may write what it
/// likes to its raw disk, and a person may give a qcow2 for raw: only the caller knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RawHeaderCheck {
    /// It is refused.
    #[default]
    Refuse,
    /// It is what it is called: raw.
    Ignore,
}

/// Opens the images of a request.
pub(super) fn open_all(request: &ImagesRequest, control: &Control) -> Result<Vec<InputDisk>> {
    // What is frozen may be a running guest's, whose files libvirt gives other owners meanwhile.
    let change =
        if request.usage == ImageAccess::Locked { ChangeSensitivity::Any } else { ChangeSensitivity::Write };
    let options = OpenOptions { usage: request.usage, change, ..OpenOptions::default() };
    // What is frozen may have been written to in ways that no time tells.
    let hint = if request.usage == ImageAccess::Locked { ChangeHint::AtRest } else { ChangeHint::Unknown };
    control.progress.enter("reading", 0);
    let open = |spec: &ImageSpec| {
        let image = DiskImage::open(&spec.path, spec.format, &options)?;
        match image.looks_like()?.filter(|_| request.containers == RawHeaderCheck::Refuse) {
            Some(format) => Err(no_container(spec, format)),
            None => Ok(InputDisk { target: spec.target.clone(), image, hint: hint.clone() }),
        }
    };
    request.images.iter().map(open).collect()
}

fn no_container(spec: &ImageSpec, looks: &str) -> Error {
    let what = format!("'{}' is given as raw but begins like a {looks} image", spec.path.display());
    let other = match looks.parse::<Format>() {
        Ok(format) => format!("use --format {format} to back up the disk in it"),
        Err(_) => format!("convert it with 'qemu-img convert -f {looks}' to back up the disk in it"),
    };
    let hint = format!("{other}; if a guest wrote this to its raw disk, use --force");
    Error::new(ErrorKind::Usage, what).with_hint(hint)
}

/// How disks are folded.
#[derive(Clone, Copy)]
pub(super) struct FoldOptions<'a> {
    pub(super) session: &'a BackupSession<'a>,
    /// The archive that the backup continues.
    pub(super) parent: Option<&'a Parent>,
}

/// Steps 1302 to 1307: every table is read before anything is written, and in an increment it is found what
/// changed. `files` are those of the images.
pub(super) fn fold_all(
    images: Vec<InputDisk>,
    files: &[Option<SourceFiles>],
    how: &FoldOptions<'_>,
) -> Result<DiskSet> {
    let BackupSession { options, control, .. } = *how.session;
    control.progress.enter("reading", 0);
    let mut disks: Vec<FoldedDisk> = Vec::with_capacity(images.len());
    for (InputDisk { target, image, hint }, files) in images.into_iter().zip(files) {
        layout::check_target(&target)?;
        if disks.iter().any(|disk| disk.target == target) {
            return Err(Error::new(ErrorKind::Usage, format!("two disks are called {target}")));
        }
        // A comparison takes zeros for what they are, and is a read by itself.
        let is_known = how.parent.is_some_and(|parent| parent.knows(&target));
        let allocation = match is_known {
            true => image.allocation()?,
            false => allocation(&image, options, control)?,
        };
        let mut disk = FoldedDisk::of(target, image, allocation, options.block_size, options.layout)?;
        if let Some(parent) = how.parent {
            let query = ChangeQuery { parent, hint: &hint, files: files.as_ref(), options };
            disk.restrict(find_changes(&disk, &query, control)?)?;
        }
        disks.push(disk);
    }
    Ok(DiskSet(disks))
}

/// The image's allocation table; without blocks of zeros, where they are looked for.
fn allocation(image: &DiskImage, options: &BackupOptions, control: &Control) -> Result<AllocationTable> {
    let allocation = image.allocation()?;
    let detect = match options.detect_zeroes {
        DetectZeroes::On => true,
        DetectZeroes::Off => false,
        DetectZeroes::Auto => !image.tells_zeros()?,
    };
    // Where every block is copied there is nothing to leave out.
    if !detect || options.layout == Layout::Full {
        return Ok(allocation);
    }
    control.progress.enter("looking for zeros", allocation.allocated());
    let found = image.without_zeros(&allocation, block_of(image, options.block_size), &mut |bytes| {
        control.progress.add(bytes);
        match control.cancel.load(Ordering::Relaxed) {
            true => Err(Error::new(ErrorKind::Interrupted, "the backup was interrupted")),
            false => Ok(()),
        }
    })?;
    control.progress.enter("reading", 0);
    Ok(found)
}
