//! Opening a chain: image by image from the top, each named and given its format by the header above it.
//!
//! The chain is a list, walked in a loop with a limit; a file that is in it already (by device and inode)
//! ends the walk with an error. Each file is held against writers before anything is read from it.
//!
//! Imports: `error`, `file`, `format`, `layer`, `locks`, `qcow2`, `source`, `change_detection`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::DiskImage;
use super::change_detection;
use super::file::{FileIndex, HostFile};
use super::format::{Format, ImageAccess, OpenOptions};
use super::layer::Layer;
use super::locks;
use super::qcow2::{self, EncryptionMethod, Header, Qcow2};
use super::source::{ChainImage, ImageInfo, Qcow2Options};
use virtfold_base::error::{Error, ErrorKind, Result};

/// Who says what a chain is made of.
#[derive(Clone, Copy, Debug)]
pub(super) enum ChainSource<'a> {
    /// Each image's header.
    Headers,
    /// The caller: these images below the top one, and no others, whatever the headers say.
    Given(&'a [(PathBuf, Format)]),
}

/// Opens the chain whose top image is `top`.
pub(super) fn open(
    top: HostFile,
    format: Format,
    below: ChainSource<'_>,
    options: &OpenOptions,
) -> Result<DiskImage> {
    let mut chain =
        Chain { usage: options.usage, files: Vec::new(), layers: Vec::new(), warnings: Vec::new() };
    let (mut links, mut top_options) = (Vec::new(), None);
    let mut next = Some((top, format));
    while let Some((file, format)) = next.take() {
        if links.len() >= options.max_depth {
            let what = format!(
                "'{}' is image {} of its chain; {} is the limit",
                file.name(),
                links.len() + 1,
                options.max_depth
            );
            return Err(Error::new(ErrorKind::Unsupported, what)
                .with_hint("shorten the chain with 'virsh blockcommit' or 'qemu-img commit'"));
        }
        links.push(ChainImage { path: file.name().to_string(), format });
        let header = match format {
            Format::Raw => {
                chain.add_raw(file)?;
                None
            }
            Format::Qcow2 => Some(chain.add_qcow2(file)?),
        };
        if let Some(header) = &header {
            top_options.get_or_insert_with(|| describe(&header.header));
        }
        next = match (below, &header) {
            (ChainSource::Headers, None) => None,
            (ChainSource::Headers, Some(header)) => backing(header)?,
            (ChainSource::Given(images), header) => given(images.get(links.len() - 1), header.as_ref())?,
        };
    }
    let qcow2 = if format == Format::Qcow2 { top_options } else { None };
    let capacity = chain.layers.first().map_or(0, Layer::capacity);
    let source = ImageInfo { format, qcow2, chain: links, warnings: chain.warnings };
    Ok(DiskImage { files: chain.files, layers: chain.layers, capacity, source, options: *options })
}

struct Chain {
    usage: ImageAccess,
    files: Vec<HostFile>,
    layers: Vec<Layer>,
    warnings: Vec<String>,
}

/// A header, and the path of the file that has it.
struct Opened {
    header: Header,
    path: PathBuf,
}

impl Chain {
    /// Takes a file into the chain, held against writers.
    fn add_file(&mut self, mut file: HostFile) -> Result<FileIndex> {
        if let Some(other) = self.files.iter().find(|other| other.identity == file.identity) {
            let what = format!("'{}' and '{}' are one file: its chain is a loop", other.name(), file.name());
            return Err(Error::new(ErrorKind::BadImage, what));
        }
        self.warnings.extend(locks::hold(&file, self.usage)?);
        locks::refuse_writer(&file, self.usage)?;
        if self.usage != ImageAccess::Unlocked {
            file.flush()?;
        }
        if self.usage == ImageAccess::Locked {
            change_detection::refuse(&file)?;
        }
        let index = u32::try_from(self.files.len());
        self.files.push(file);
        index.map(FileIndex).map_err(|_| Error::new(ErrorKind::Internal, "a chain has too many files"))
    }

    fn add_raw(&mut self, file: HostFile) -> Result<()> {
        let capacity = file.len.checked_next_multiple_of(512);
        let capacity = capacity.ok_or_else(|| {
            Error::new(ErrorKind::BadImage, format!("'{}' is too long for a disk", file.name()))
        })?;
        let file = self.add_file(file)?;
        self.layers.push(Layer::Raw { file, capacity });
        Ok(())
    }

    fn add_qcow2(&mut self, file: HostFile) -> Result<Opened> {
        let path = file.path.clone();
        let index = self.add_file(file)?;
        let file = super::file_of(&self.files, index)?;
        let header = qcow2::read_header(file)?;
        refuse_encrypted(&header, &path)?;
        for (is_set, what) in [
            (header.dirty, "is marked dirty: it was not closed properly, so its refcounts may be stale"),
            (header.corrupt, "is marked corrupt: QEMU found damage in it"),
        ] {
            if is_set {
                self.warnings.push(format!("'{}' {what}", path.display()));
            }
        }
        let data = match &header.data_file {
            Some(name) => {
                let beside = beside(name, &path, "external data file")?;
                refuse_ambiguous(name, &beside, &path)?;
                let file = HostFile::open(&beside)
                    .map_err(|e| e.within(format!("'{}' has no external data file", path.display())))?;
                self.add_file(file)?
            }
            None => index,
        };
        self.layers.push(Layer::Qcow2(Box::new(Qcow2 { header: header.clone(), file: index, data })));
        Ok(Opened { header, path })
    }
}

/// QEMU looks for a relative external data file in its own working directory, people expect it beside the
/// image. Where both are there and are not one file, nobody but the caller knows which one is meant.
fn refuse_ambiguous(name: &[u8], beside: &Path, image: &Path) -> Result<()> {
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let here = Path::new(OsStr::from_bytes(name));
    if here.is_absolute() || identity(here).is_none() || identity(here) == identity(beside) {
        return Ok(());
    }
    let what = format!(
        "'{}' names its external data file '{}', which is beside it and, another one, in the working directory",
        image.display(),
        here.display()
    );
    Err(Error::new(ErrorKind::Unsupported, what)
        .with_hint("run virtfold from the directory of the image, or give the image an absolute data_file with 'qemu-img amend'"))
}

fn refuse_encrypted(header: &Header, path: &Path) -> Result<()> {
    let method = match header.crypt {
        EncryptionMethod::None => return Ok(()),
        EncryptionMethod::Aes => "AES",
        EncryptionMethod::Luks => "LUKS",
    };
    let what = format!("the data in '{}' is encrypted by the image itself ({method})", path.display());
    Err(Error::new(ErrorKind::Unsupported, what).with_hint(
        "virtfold has no key for it; encrypt inside the guest, or convert the image with 'qemu-img convert' and its secret",
    ))
}

/// The image that `above` rests on.
fn backing(above: &Opened) -> Result<Option<(HostFile, Format)>> {
    let Some(name) = &above.header.backing else { return Ok(None) };
    let shown = above.path.display();
    let path = beside(name, &above.path, "backing file")?;
    let Some(format) = &above.header.backing_format else {
        let what = format!("'{shown}' does not say which format its backing file '{}' has", path.display());
        return Err(Error::new(ErrorKind::Unsupported, what).with_hint(format!(
            "virtfold never guesses a format; record it with 'qemu-img rebase -u -b BACKING -F FORMAT {shown}'"
        )));
    };
    let word = String::from_utf8_lossy(format);
    let format: Format = word.parse().map_err(|_| {
        let what = format!(
            "the backing file '{}' of '{shown}' has the format '{}'",
            path.display(),
            word.escape_debug()
        );
        Error::new(ErrorKind::Unsupported, what).with_hint("virtfold reads raw and qcow2")
    })?;
    let file =
        HostFile::open(&path).map_err(|e| e.within(format!("cannot open the backing file of '{shown}'")))?;
    Ok(Some((file, format)))
}

/// The next image as the caller names it. A raw image rests on nothing.
fn given(next: Option<&(PathBuf, Format)>, above: Option<&Opened>) -> Result<Option<(HostFile, Format)>> {
    match (next, above) {
        (None, _) => Ok(None),
        (Some((path, format)), Some(_)) => Ok(Some((HostFile::open(path)?, *format))),
        (Some((path, _)), None) => {
            let what =
                format!("'{}' is named as the backing file of a raw image, which has none", path.display());
            Err(Error::new(ErrorKind::Unsupported, what))
        }
    }
}

/// The path of a file that the header of `image` names: as it stands, or from the directory of `image`.
pub(super) fn beside(name: &[u8], image: &Path, role: &str) -> Result<PathBuf> {
    let shown = || String::from_utf8_lossy(name).escape_debug().to_string();
    if name.contains(&0) {
        let what = format!("'{}' is damaged: the name of its {role} is '{}'", image.display(), shown());
        return Err(Error::new(ErrorKind::BadImage, what));
    }
    // QEMU's rule: a colon before the first slash ends the name of a protocol, and `file:` is no protocol.
    let plain = name.strip_prefix(b"file:").unwrap_or(name);
    let first = plain.iter().find(|byte| matches!(byte, b':' | b'/'));
    if first == Some(&b':') {
        let what = format!("the {role} of '{}' is not a file: '{}'", image.display(), shown());
        return Err(Error::new(ErrorKind::Unsupported, what).with_hint(
            "virtfold reads files and block devices; give the image a plain path with 'qemu-img rebase -u'",
        ));
    }
    let path = Path::new(OsStr::from_bytes(plain));
    Ok(image.parent().map_or_else(|| path.to_owned(), |directory| directory.join(path)))
}

fn describe(header: &Header) -> Qcow2Options {
    Qcow2Options {
        compat: if header.version == 2 { "0.10" } else { "1.1" }.to_owned(),
        cluster_size: header.cluster_size(),
        extended_l2: header.extended_l2,
        compression_type: header.compression,
        lazy_refcounts: header.lazy_refcounts,
        refcount_bits: 1 << header.refcount_order,
        data_file: header.data_file.as_ref().map(|name| String::from_utf8_lossy(name).into_owned()),
        data_file_raw: header.external_raw,
    }
}
