//! Every write, read and sync of a small job fails once: the error comes back with its kind, nothing has a
//! final name, and no thread waits for ever.
//!
//! Faults are made by wrapping what the library takes from its caller (medium, data source, reader), never in
//! it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::common::image::{Format as CommonFormat, Image};
use crate::common::mount::Mount;
use crate::common::rng::Rng;
use crate::common::run::text;
use crate::common::scratch::{Scratch, names};
use crate::common::{KIB, MIB};
use virtfold::archive::layout::{BackupKind, Layout};
use virtfold::archive::manifest::{self, BackupSubject, CompressionNote, Disk, Manifest, Source};
use virtfold::archive::stream::{Compression, DataSource, Sink, StreamOptions};
use virtfold::archive::writer::{ArchiveContents, DiskTables, write_archive};
use virtfold::backup::Control;
use virtfold::backup::destinations::Destinations;
use virtfold::backup::folded_disk::{DiskSet, FoldedDisk};
use virtfold::backup::options::BackupOptions;
use virtfold::backup::restore::{self, RestoreRequest, Selection, VerifyMode};
use virtfold::backup::resume::StateDirectories;
use virtfold::backup::session::{BackupReport, BackupSession, ImageSpec, ImagesRequest};
use virtfold::backup::target::Method;
use virtfold::backup::verify::{self, VerifyRequest};
use virtfold::crypt::Identities;
use virtfold::error::{Error, ErrorKind, Result};
use virtfold::image::{DiskImage, Format, OpenOptions};
use virtfold::medium::{FileMedium, FinishedArchive, Location, Medium};
use virtfold::partial_file::Overwrite;
use virtfold::units::DenseOffset;

const EIO: i32 = 5;
const EINTR: i32 = 4;
const ENOSPC: i32 = 28;
/// Longer than any of these jobs takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

const COMPRESSIONS: [Compression; 2] = [Compression::None, Compression::Zstd { level: 1 }];

/// Fails when `work` does not end: the test must not hang with it.
#[track_caller]
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = mpsc::channel();
    let thread = std::thread::spawn(move || done.send(work()).unwrap());
    match wait.recv_timeout(PATIENCE) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(thread.join().unwrap_err());
        }
    }
}

/// A disk of `mib` MiB that no compressor makes smaller, in pieces.
fn image(scratch: &Scratch, mib: u64) -> Image {
    let noise = scratch.join("noise");
    std::fs::write(&noise, Rng::of_case("library-faults", mib).bytes(1 << 20)).unwrap();
    let image = Image::create(scratch.join("source.qcow2"), CommonFormat::Qcow2, "", mib * 4 * MIB);
    let write = |n| format!("write -s {} {} 1M", text(&noise), n * 4 * MIB + 64 * KIB);
    image.io(&(0..mib).map(write).collect::<Vec<_>>());
    image
}

/// Backs an image up to `destinations`.
fn back_up(image: &Path, compression: Compression, destinations: &Destinations<'_>) -> Result<BackupReport> {
    let spec = ImageSpec { path: image.to_owned(), format: Format::Qcow2, target: "vda".to_owned() };
    let options = BackupOptions { compression, ..BackupOptions::default() };
    let (state, control) = (StateDirectories::new(image.with_extension("state")), Control::default());
    let session = BackupSession { options: &options, destinations, state: &state, control: &control };
    session.images(&ImagesRequest::of(vec![spec]))
}

/// How a fault comes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Nothing of the write arrives.
    Whole,
    /// Half of it does.
    Torn,
}

/// A medium that fails once, at write number `at`, and from then on; or at the end.
struct Faulty {
    inner: Box<dyn Medium>,
    writes: Arc<AtomicU64>,
    at: Option<u64>,
    errno: i32,
    fault: Fault,
}

impl Sink for Faulty {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let number = self.writes.fetch_add(1, Ordering::Relaxed);
        assert!(self.at.is_none_or(|at| number <= at), "a write follows the one that failed");
        if self.at != Some(number) {
            return self.inner.write(bytes);
        }
        if self.fault == Fault::Torn {
            self.inner.write(&bytes[..bytes.len() / 2])?;
        }
        Err(Error::io("the medium fails", io::Error::from_raw_os_error(self.errno)))
    }
}

impl Medium for Faulty {
    fn finish(self: Box<Self>) -> Result<FinishedArchive> {
        if self.at == Some(self.writes.load(Ordering::Relaxed)) {
            return Err(Error::io("the medium fails to sync", io::Error::from_raw_os_error(self.errno)));
        }
        self.inner.finish()
    }
}

/// Backs up to a file in `folder` whose write number `at` fails; how many writes there were.
fn backup_failing(
    image: &Image,
    compression: Compression,
    folder: &Path,
    at: Option<u64>,
    errno: i32,
    fault: Fault,
) -> (Result<BackupReport>, u64) {
    let (image, folder) = (image.path.clone(), folder.to_owned());
    let writes = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&writes);
    let outcome = in_time(move || {
        // What counts as a pipe leaves no record.
        let destinations = Destinations::custom(Location::Pipe, |label, _| {
            let inner = Box::new(FileMedium::create(&folder.join(&label.name))?);
            Ok(Box::new(Faulty { inner, writes, at, errno, fault }))
        });
        back_up(&image, compression, &destinations)
    });
    (outcome, counter.load(Ordering::Relaxed))
}

#[test]
fn every_write_and_the_sync_fail_once() {
    let scratch = Scratch::new("faulty-medium");
    let image = image(&scratch, 9);
    let folder = scratch.folder("archives");
    for compression in COMPRESSIONS {
        let (good, writes) = backup_failing(&image, compression, &folder, None, EIO, Fault::Whole);
        let archive = PathBuf::from(good.unwrap().archive);
        let verified = verify::run(
            &VerifyRequest {
                archive: archive.clone().into(),
                identities: Identities::default(),
                trust: Default::default(),
                workers: 1,
                known: Default::default(),
            },
            &Control::default(),
        );
        assert!(verified.unwrap().sound);
        std::fs::remove_file(archive).unwrap();
        assert!(writes > 10, "{writes} writes are too few for this test");
        // Number `writes` is the sync at the end.
        for at in 0..=writes {
            for (errno, kind) in [(EIO, ErrorKind::Io), (ENOSPC, ErrorKind::NoSpace)] {
                for fault in [Fault::Whole, Fault::Torn] {
                    let (outcome, _) = backup_failing(&image, compression, &folder, Some(at), errno, fault);
                    let context = format!("{compression:?}, write {at} of {writes}, {fault:?}");
                    assert_eq!(outcome.expect_err(&context).kind(), kind, "{context}");
                    assert!(names(&folder).is_empty(), "{context}: {:?}", names(&folder));
                }
            }
        }
    }
}

/// A source that fails from read number `at` on, or from hint number `at` on.
struct FaultySource<'a> {
    inner: &'a DiskSet,
    reads: AtomicU64,
    hints: AtomicU64,
    read_fails: Option<u64>,
    hint_fails: Option<u64>,
}

fn count(counter: &AtomicU64, limit: Option<u64>) -> Result<()> {
    let number = counter.fetch_add(1, Ordering::Relaxed);
    match limit {
        Some(limit) if number >= limit => Err(Error::io("the disk fails", io::Error::from_raw_os_error(EIO))),
        _ => Ok(()),
    }
}

impl DataSource for FaultySource<'_> {
    fn read_dense(&self, disk: usize, at: DenseOffset, buf: &mut [u8]) -> Result<()> {
        count(&self.reads, self.read_fails)?;
        self.inner.read_dense(disk, at, buf)
    }

    fn prefetch(&self, disk: usize, at: DenseOffset, len: u64) -> Result<()> {
        count(&self.hints, self.hint_fails)?;
        self.inner.prefetch(disk, at, len)
    }
}

fn head(disk: &FoldedDisk, compression: Compression) -> Manifest {
    let (method, level) = match compression {
        Compression::None => ("none", None),
        Compression::Zstd { level } => ("zstd", Some(level)),
    };
    Manifest {
        version: manifest::VERSION,
        requires: Vec::new(),
        archive: uuid::Uuid::new_v4(),
        created: manifest::now(),
        host: "test".to_owned(),
        host_id: None,
        tool: "test".to_owned(),
        subject: BackupSubject::Images { name: "test".to_owned(), labelled: false, paths: Vec::new() },
        kind: BackupKind::Full,
        parent: None,
        compression: CompressionNote { method: method.to_owned(), level },
        freeze: None,
        disks: vec![Disk {
            target: disk.target.clone(),
            capacity: disk.image.capacity(),
            source: Source {
                format: "raw".to_owned(),
                qcow2: None,
                backing: Vec::new(),
                warnings: Vec::new(),
            },
            block_size: disk.block.get(),
            layout: disk.layout,
            allocated: disk.allocation.allocated(),
            dense_length: disk.table.dense_len(),
            runs: disk.table.len(),
            digest_block: None,
            changes: None,
        }],
    }
}

/// Writes an archive of the one disk in `set` to a file; the number of reads and hints that there were.
fn write_failing(
    set: &DiskSet,
    compression: Compression,
    archive: &Path,
    fails: (Option<u64>, Option<u64>),
) -> Result<(u64, u64)> {
    let disk = &set.0[0];
    let head = head(disk, compression);
    let data = FaultySource {
        inner: set,
        reads: AtomicU64::new(0),
        hints: AtomicU64::new(0),
        read_fails: fails.0,
        hint_fails: fails.1,
    };
    let options = StreamOptions {
        compression,
        workers: 2,
        archive_id: head.archive,
        cancel: Arc::default(),
        progress: Arc::default(),
    };
    let disks: Vec<&dyn DiskTables> = vec![disk];
    let contents =
        ArchiveContents { head: &head, attachments: &[], disks, data: &data, blocks: &[], seal: None };
    let mut medium = Box::new(FileMedium::create(archive)?);
    write_archive(&contents, medium.as_mut(), &options)?;
    medium.finish()?;
    Ok((data.reads.into_inner(), data.hints.into_inner()))
}

#[test]
fn every_read_of_the_source_fails_once() {
    let scratch = Scratch::new("faulty-source");
    let image = image(&scratch, 9);
    let folder = scratch.folder("archives");
    for compression in COMPRESSIONS {
        let opened = DiskImage::open(&image.path, Format::Qcow2, &OpenOptions::default()).unwrap();
        let folded = FoldedDisk::fold("vda".to_owned(), opened, None, Layout::Compact).unwrap();
        let set = Arc::new(DiskSet(vec![folded]));
        let archive = folder.join("a.tar");
        let attempt = |fails| {
            let (set, archive) = (Arc::clone(&set), archive.clone());
            in_time(move || write_failing(&set, compression, &archive, fails))
        };
        let (reads, hints) = attempt((None, None)).unwrap();
        std::fs::remove_file(&archive).unwrap();
        assert!(reads > 8 && hints > 0, "{reads} reads, {hints} hints");
        let faults = (0..reads).map(|n| (Some(n), None)).chain((0..hints).map(|n| (None, Some(n))));
        for fails in faults {
            let error = attempt(fails).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io, "{fails:?}: {error:?}");
            assert!(error.to_string().contains("the disk fails"), "{fails:?}: {error:?}");
            assert!(names(&folder).is_empty(), "{fails:?}: {:?}", names(&folder));
        }
    }
}

/// A reader that gives few bytes at a time, is interrupted, and fails or ends at byte `at`.
struct Trickle {
    bytes: Arc<Vec<u8>>,
    place: usize,
    calls: usize,
    largest: usize,
    fails: Option<(usize, Option<i32>)>,
}

impl Read for Trickle {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.calls += 1;
        if self.calls.is_multiple_of(7) {
            return Err(io::Error::from_raw_os_error(EINTR));
        }
        let end = match self.fails {
            Some((at, errno)) if self.place >= at => {
                return errno.map_or(Ok(0), |errno| Err(io::Error::from_raw_os_error(errno)));
            }
            Some((at, _)) => at,
            None => self.bytes.len(),
        };
        let len = (end - self.place).min(buf.len()).min(1 + self.calls % self.largest);
        buf[..len].copy_from_slice(&self.bytes[self.place..self.place + len]);
        self.place += len;
        Ok(len)
    }
}

fn restore_request(target: &Path, format: Format, method: Method) -> RestoreRequest {
    RestoreRequest {
        archive: Path::new("the test's reader").into(),
        identities: Identities::default(),
        selection: Selection::Disks(vec![("vda".to_owned(), target.to_owned())]),
        format: Some(format),
        method,
        cluster_size: None,
        existing: Overwrite::Refuse,
        checking: VerifyMode::All,
        trust: Default::default(),
        workers: 2,
        known: Default::default(),
        parents: Default::default(),
    }
}

fn restore_from(request: &RestoreRequest, reader: Trickle) -> Result<()> {
    let request = request.clone();
    in_time(move || restore::run_from(&request, &Control::default(), reader).map(drop))
}

fn archive_bytes(image: &Image, scratch: &Scratch, compression: Compression) -> Arc<Vec<u8>> {
    let folder = scratch.folder("archives");
    let (report, _) = backup_failing(image, compression, &folder, None, EIO, Fault::Whole);
    Arc::new(std::fs::read(report.unwrap().archive).unwrap())
}

#[test]
fn a_reader_that_trickles_gives_the_same_disk() {
    let scratch = Scratch::new("trickle");
    let image = image(&scratch, 3);
    for compression in COMPRESSIONS {
        let bytes = archive_bytes(&image, &scratch, compression);
        for largest in [1, 5000] {
            let target = scratch.join("restored.qcow2");
            let reader = Trickle { bytes: Arc::clone(&bytes), place: 0, calls: 0, largest, fails: None };
            restore_from(&restore_request(&target, Format::Qcow2, Method::Remap), reader).unwrap();
            image.assert_same_disk(&Image::new(&target, CommonFormat::Qcow2));
            std::fs::remove_file(&target).unwrap();
        }
    }
}

#[test]
fn a_reader_that_fails_or_ends_leaves_no_disk() {
    let scratch = Scratch::new("failing-reader");
    let image = image(&scratch, 3);
    let folder = scratch.folder("disks");
    for compression in COMPRESSIONS {
        let bytes = archive_bytes(&image, &scratch, compression);
        let len = bytes.len();
        let mut rng = Rng::of_case("failing-reader", 0);
        let places = (0..24).map(|n| len * n / 24).chain([1, 512, 100, len - 1, len - 9, len - 1024]);
        let random = (0..24).map(|_| usize::try_from(rng.below(len as u64)).unwrap());
        // Each length at which an archive does not yet show what it is.
        let beginnings = (0..20).chain([99, 256, 257, 258, 260, 261]);
        for at in places.chain(random).chain(beginnings).collect::<Vec<_>>() {
            for errno in [Some(EIO), None] {
                let fails = Some((at, errno));
                let largest = 300_000;
                let reader = Trickle { bytes: Arc::clone(&bytes), place: 0, calls: 0, largest, fails };
                let request = restore_request(&folder.join("vda"), Format::Raw, Method::Rewrite);
                let error = restore_from(&request, reader).expect_err("half an archive");
                let context = format!("{compression:?}, {at} of {len}, {errno:?}: {error:?}");
                let fair = match errno {
                    Some(_) => error.kind() == ErrorKind::Io,
                    None => error.kind() == ErrorKind::Incomplete,
                };
                assert!(fair, "{context}");
                assert!(names(&folder).is_empty(), "{context}: {:?}", names(&folder));
            }
        }
    }
}

#[test]
fn a_full_file_system_ends_backups_and_restores_alike() {
    let scratch = Scratch::new("full");
    let image = image(&scratch, 6);
    let bytes = archive_bytes(&image, &scratch, Compression::None);
    // From no room at all to room for nearly everything.
    for room in [64 * KIB, MIB, 3 * MIB, 5 * MIB + 512 * KIB] {
        let mount = Mount::tmpfs(&scratch.join("small"), room);
        let ways = [
            (Format::Raw, Method::Rewrite),
            (Format::Qcow2, Method::Rewrite),
            (Format::Qcow2, Method::Remap),
        ];
        for (format, method) in ways {
            let request = restore_request(&mount.path().join("vda"), format, method);
            let reader =
                Trickle { bytes: Arc::clone(&bytes), place: 0, calls: 0, largest: 1 << 20, fails: None };
            let error = restore_from(&request, reader).expect_err("there is no room");
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{room}, {format}, {method:?}: {error:?}");
            assert!(names(mount.path()).is_empty(), "{:?}", names(mount.path()));
        }
        for compression in COMPRESSIONS {
            let (image, to) = (image.path.clone(), Location::from(mount.path()));
            let outcome = in_time(move || back_up(&image, compression, &Destinations::local([to])));
            let error = outcome.expect_err("there is no room");
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{room}, {compression:?}: {error:?}");
            assert!(names(mount.path()).is_empty(), "{:?}", names(mount.path()));
        }
    }
}
