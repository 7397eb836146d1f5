//! Where a restored disk goes: a raw file, a qcow2 file or a block device, and where in it each piece goes.
//!
//! Three kinds of addressing, one interface: a piece of the correspondence table ([`Run`]) and its bytes are
//! written at the guest's address (raw, [`Method::Rewrite`]), at the address that the new qcow2's tables give
//! the guest's address ([`Method::Rewrite`]), or at the dense address behind the new tables
//! ([`Method::Remap`]). Remap needs runs of whole clusters; then both qcow2 methods make the same file, and
//! remap looks nothing up.
//!
//! Files appear under their name when they are whole ([`PartialFile`]). A block device has no such moment: it
//! is opened exclusively, must be overwritten on purpose ([`Overwrite::Replace`]), and reads as zeros where
//! the disk does.
//!
//! Imports: `units`, `error`, `partial_file`, `mounts`, `table`, `image` (QEMU's locks).

mod place;
mod qcow2_layout;

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::FallocateFlags;
use rustix::fs::{FileType, OFlags};

pub(crate) use self::place::refuse as refuse_new;
pub use self::qcow2_layout::{Compat, Qcow2Layout, Qcow2Options};
use virtfold_archive::table::{CorrespondenceTable, Run};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::ioctl;
use virtfold_base::partial_file::{Overwrite, PartialFile};
use virtfold_base::safe_path::{self, Entry};
use virtfold_base::units::{HostOffset, MIB};

/// The two recoveries of the specification (FIG. 14B, 14C).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// Each block goes back to its original address.
    #[default]
    Rewrite,
    /// The dense image stays as it is, and new tables point into it.
    Remap,
}

/// The format of a restored disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetFormat {
    /// The guest's bytes as they are.
    Raw,
    /// A qcow2 image without a backing file.
    Qcow2(Qcow2Options),
}

/// What to make, and where.
#[derive(Clone, Debug)]
pub struct TargetSpec {
    /// A file to make or a block device to write to.
    pub path: PathBuf,
    /// Its format.
    pub format: TargetFormat,
    /// How pieces find their place.
    pub method: Method,
    /// Whether what is there may be replaced.
    pub existing: Overwrite,
}

/// What is where a target shall be.
enum ExistingTarget {
    Nothing,
    /// A file that may be replaced; the file itself where the path given is a link.
    File(Entry),
    Device(Entry),
}

impl TargetSpec {
    /// Refuses what can be refused before anything is read or written.
    ///
    /// # Errors
    /// When the target exists and may not be replaced, or is no disk.
    pub fn check(&self) -> Result<()> {
        self.look().map(|_| ())
    }

    fn look(&self) -> Result<ExistingTarget> {
        let looking = || format!("cannot look at '{}'", self.path.display());
        let entry = match Entry::locate(&self.path) {
            // It says better what is missing.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return refuse_new(&self.path).map(|()| ExistingTarget::Nothing);
            }
            entry => entry.at(looking)?,
        };
        let Some(found) = entry.find().at(looking)? else {
            return refuse_new(&self.path).map(|()| ExistingTarget::Nothing);
        };
        match safe_path::kind(&found) {
            FileType::BlockDevice => match self.existing {
                Overwrite::Replace => Ok(ExistingTarget::Device(entry)),
                Overwrite::Refuse => Err(Error::new(
                    ErrorKind::Exists,
                    format!("'{}' is a block device, and its contents would be lost", self.path.display()),
                )
                .with_hint("use --force to write to it")),
            },
            FileType::RegularFile | FileType::Symlink if self.existing == Overwrite::Refuse => {
                Err(exists(&self.path))
            }
            FileType::RegularFile => Ok(ExistingTarget::File(entry)),
            // Somebody else's: the link is replaced, and what it points at is not touched.
            FileType::Symlink => Ok(ExistingTarget::Nothing),
            _ => Err(not_a_disk(&self.path)),
        }
    }
}

/// What of a device is zeroed before the data come. A new file is zeros anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ZeroRange {
    /// What the table leaves out: all of the rest will be written.
    Gaps,
    /// All of it: some of the data may never come.
    All,
}

/// How a piece finds its place in the target.
#[derive(Debug)]
enum Addressing {
    Guest,
    /// The new tables say where.
    Clusters(Box<Qcow2Layout>),
    /// In dense order behind the new tables.
    Dense(Box<Qcow2Layout>),
}

#[derive(Debug)]
enum TargetOutput {
    New(PartialFile),
    Device(File, PathBuf),
}

/// A disk on its way back.
#[derive(Debug)]
pub struct TargetDisk {
    output: TargetOutput,
    addressing: Addressing,
    existing: Overwrite,
}

impl TargetDisk {
    /// Opens the target and writes what precedes the data.
    ///
    /// # Errors
    /// When the target exists and may not be replaced, is in use, is too small, when the method does
    /// not suit the disk, or when writing fails.
    pub fn open(spec: &TargetSpec, table: &CorrespondenceTable) -> Result<Self> {
        Self::open_over(spec, table, ZeroRange::Gaps)
    }

    /// As [`TargetDisk::open`], for a restore that may not have all of the data: what is never written reads
    /// as zeros, whatever was on the device before.
    ///
    /// # Errors
    /// As [`TargetDisk::open`].
    pub fn open_blank(spec: &TargetSpec, table: &CorrespondenceTable) -> Result<Self> {
        Self::open_over(spec, table, ZeroRange::All)
    }

    fn open_over(spec: &TargetSpec, table: &CorrespondenceTable, blank: ZeroRange) -> Result<Self> {
        let (addressing, len) = plan(spec, table)?;
        let output = match spec.look()? {
            ExistingTarget::Device(entry) => open_device(spec, &entry, len)?,
            ExistingTarget::File(entry) => {
                let path = entry.path();
                let file = entry.open(OFlags::RDONLY | OFlags::NONBLOCK);
                refuse_used(&file.at(|| format!("cannot open '{}'", path.display()))?, &path)?;
                TargetOutput::New(PartialFile::create(&path, Overwrite::Replace)?)
            }
            ExistingTarget::Nothing => TargetOutput::New(PartialFile::create(&spec.path, spec.existing)?),
        };
        let mut target = Self { output, addressing, existing: spec.existing };
        target.prepare(table, len, blank)?;
        Ok(target)
    }

    /// The file or device as a person knows it.
    pub fn path(&self) -> &Path {
        match &self.output {
            TargetOutput::New(partial) => partial.path(),
            TargetOutput::Device(_, path) => path,
        }
    }

    fn file(&self) -> &File {
        match &self.output {
            TargetOutput::New(partial) => partial.file(),
            TargetOutput::Device(file, _) => file,
        }
    }

    fn prepare(&mut self, table: &CorrespondenceTable, len: u64, blank: ZeroRange) -> Result<()> {
        let name = self.path().display().to_string();
        match &self.output {
            TargetOutput::New(partial) => {
                partial.file().set_len(len).at(|| format!("cannot set the size of '{name}'"))?;
            }
            TargetOutput::Device(file, _) => match self.addressing {
                Addressing::Guest => {
                    match blank {
                        ZeroRange::Gaps => zero_gaps(file, table, &name)?,
                        ZeroRange::All => zero(file, 0, len, &name)?,
                    }
                    // Behind the disk's end the guest would find what was there before: an old GPT, a volume
                    // label.
                    let size = device_size(file).at(|| format!("cannot tell the size of '{name}'"))?;
                    zero(file, len, size.saturating_sub(len), &name)?;
                }
                Addressing::Clusters(_) | Addressing::Dense(_) => zero(file, 0, len, &name)?,
            },
        }
        match &self.addressing {
            Addressing::Guest => {}
            Addressing::Clusters(layout) | Addressing::Dense(layout) => {
                write_tables(layout, self.file(), &name)?;
            }
        }
        Ok(())
    }

    /// Writes the bytes of `piece`, which lies within one run of the table.
    ///
    /// # Errors
    /// When the target fails, or an earlier write did not reach the disk.
    pub fn write(&mut self, piece: &Run, bytes: &[u8]) -> Result<()> {
        let host = self.place(piece)?;
        let written = self.file().write_all_at(bytes, host.get());
        written.at(|| format!("cannot write '{}' at offset {host}", self.path().display()))?;
        match &mut self.output {
            TargetOutput::New(partial) => partial.wrote(bytes.len() as u64),
            TargetOutput::Device(..) => Ok(()),
        }
    }

    fn place(&self, piece: &Run) -> Result<HostOffset> {
        let lost = || Error::new(ErrorKind::Internal, "a piece has no place in the restored disk");
        match &self.addressing {
            Addressing::Guest => Ok(HostOffset::new(piece.guest.get())),
            Addressing::Clusters(layout) => layout.host(piece.guest)?.ok_or_else(lost),
            Addressing::Dense(layout) => layout.data_start().checked_add(piece.dense.get()).ok_or_else(lost),
        }
    }

    /// Shares `len` bytes at `from` of `archive`, the whole dense image, with the new file instead of copying
    /// them: FICLONERANGE on XFS or Btrfs. Returns how many bytes from the start of the dense image are
    /// shared; the rest, less than a file system block, must be written. `None` where the file system or the
    /// alignment does not allow it.
    ///
    /// # Errors
    /// When the file system allows it and it fails.
    pub fn share(&mut self, archive: &File, from: u64, len: u64) -> Result<Option<u64>> {
        /// The largest unit in which the file systems that share extents want them.
        const UNIT: u64 = 4096;
        let (Addressing::Dense(layout), TargetOutput::New(partial)) = (&self.addressing, &self.output) else {
            return Ok(None);
        };
        let start = layout.data_start().get();
        let shared = len - len % UNIT;
        if !from.is_multiple_of(UNIT) || !start.is_multiple_of(UNIT) || shared == 0 {
            return Ok(None);
        }
        match ioctl::clone_range(partial.file(), start, archive, from..from + shared) {
            Ok(()) => Ok(Some(shared)),
            Err(error) if cannot_share(&error) => Ok(None),
            Err(error) => {
                Err(Error::io(format!("cannot share the data with '{}'", partial.path().display()), error))
            }
        }
    }

    /// Makes the disk durable and, for a file, gives it its name.
    ///
    /// # Errors
    /// When it does not reach the disk, or the name was taken meanwhile.
    pub fn finish(self) -> Result<()> {
        match self.output {
            TargetOutput::New(partial) => partial.commit(self.existing),
            TargetOutput::Device(file, path) => {
                file.sync_all().at(|| format!("cannot sync '{}'", path.display()))
            }
        }
    }
}

fn plan(spec: &TargetSpec, table: &CorrespondenceTable) -> Result<(Addressing, u64)> {
    let TargetFormat::Qcow2(options) = spec.format else {
        return if spec.method == Method::Remap {
            Err(Error::new(ErrorKind::Usage, "--method remap needs a qcow2 target")
                .with_hint("use --method rewrite, or --format qcow2"))
        } else {
            Ok((Addressing::Guest, table.capacity()))
        };
    };
    let layout = Box::new(Qcow2Layout::plan(table, options)?);
    let len = layout.file_len();
    match spec.method {
        Method::Rewrite => Ok((Addressing::Clusters(layout), len)),
        Method::Remap if layout.is_dense(table)? => Ok((Addressing::Dense(layout), len)),
        Method::Remap => Err(Error::new(
            ErrorKind::Usage,
            format!(
                "--method remap needs blocks of whole clusters, and the archive's blocks have {} bytes",
                options.cluster_size
            ),
        )
        .with_hint(if options.extended_l2 {
            // Smaller clusters than 16 KiB can't have extended L2 entries, which the disk is to keep.
            "use --method rewrite"
        } else {
            "use --method rewrite, or a smaller --cluster-size"
        })),
    }
}

fn write_tables(layout: &Qcow2Layout, mut file: &File, name: &str) -> Result<()> {
    file.seek(SeekFrom::Start(0)).at(|| format!("cannot write '{name}'"))?;
    let mut out = BufWriter::with_capacity(256 << 10, file);
    layout.write_metadata(&mut out, name)?;
    out.flush().at(|| format!("cannot write the tables of '{name}'"))
}

fn open_device(spec: &TargetSpec, entry: &Entry, len: u64) -> Result<TargetOutput> {
    let path = &spec.path;
    // O_EXCL on a block device: refused by the kernel while it is mounted or otherwise claimed.
    let opened = entry.open(OFlags::RDWR | OFlags::EXCL);
    let file = match opened {
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
            return Err(Error::new(ErrorKind::InUse, format!("'{}' is in use", path.display()))
                .with_hint("unmount it first")
                .with_source(error));
        }
        opened => opened.at(|| format!("cannot open '{}'", path.display()))?,
    };
    refuse_used(&file, path)?;
    let size = device_size(&file).at(|| format!("cannot tell the size of '{}'", path.display()))?;
    if size < len {
        return Err(Error::new(
            ErrorKind::NoSpace,
            format!("'{}' holds {size} bytes, and the disk needs {len}", path.display()),
        ));
    }
    Ok(TargetOutput::Device(file, path.clone()))
}

fn device_size(mut file: &File) -> std::io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// Makes the parts of a device that the table does not fill read as zeros.
fn zero_gaps(file: &File, table: &CorrespondenceTable, name: &str) -> Result<()> {
    let mut next = 0;
    for run in table.iter() {
        let run = run?;
        zero(file, next, run.guest.get() - next, name)?;
        next = run.guest.get() + run.len;
    }
    zero(file, next, table.capacity() - next, name)
}

/// Zeroes a range of a device, by the device itself where it can.
fn zero(file: &File, at: u64, len: u64, name: &str) -> Result<()> {
    if len == 0 {
        return Ok(());
    }
    let zeroing = || format!("cannot zero '{name}' at offset {at}");
    let range = (i64::try_from(at), i64::try_from(len));
    if let (Ok(start), Ok(count)) = range {
        let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match nix::fcntl::fallocate(file.as_fd(), flags, start, count) {
            Ok(()) => return Ok(()),
            Err(nix::Error::EOPNOTSUPP | nix::Error::EINVAL | nix::Error::ENOSYS) => {}
            Err(errno) => return Err(Error::io(zeroing(), errno.into())),
        }
    }
    let zeros = vec![0; usize::try_from(len.min(MIB)).unwrap_or(4096)];
    let mut done = 0;
    while done < len {
        let part = usize::try_from(len - done).unwrap_or(usize::MAX).min(zeros.len());
        file.write_all_at(zeros.get(..part).unwrap_or(&zeros), at + done).at(zeroing)?;
        done += part as u64;
    }
    Ok(())
}

/// Whether the file system says that these ranges can't be shared, rather than that something broke.
fn cannot_share(error: &std::io::Error) -> bool {
    let errno = error.raw_os_error().map(nix::Error::from_raw);
    matches!(
        errno,
        Some(
            nix::Error::EOPNOTSUPP
                | nix::Error::EXDEV
                | nix::Error::EINVAL
                | nix::Error::ENOTTY
                | nix::Error::ENOSYS
        )
    )
}

/// Refuses a file or device that a QEMU has open.
fn refuse_used(file: &File, path: &Path) -> Result<()> {
    let used = virtfold_image::is_used(file);
    if used.map_err(|e| e.within(format!("cannot tell who uses '{}'", path.display())))? {
        return Err(Error::new(
            ErrorKind::InUse,
            format!("'{}' is in use by a running QEMU", path.display()),
        )
        .with_hint("shut the guest down first, or restore under another name"));
    }
    Ok(())
}

fn exists(path: &Path) -> Error {
    Error::new(ErrorKind::Exists, format!("'{}' exists already", path.display()))
        .with_hint("choose another path, or use --force to replace it")
}

fn not_a_disk(path: &Path) -> Error {
    Error::new(ErrorKind::Usage, format!("'{}' is neither a regular file nor a block device", path.display()))
}
