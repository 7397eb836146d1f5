//! Media that break and can be gone on with, against one that never broke.

use std::io::Write;
use std::sync::atomic::Ordering;

use super::*;
use crate::folded_disk::{DiskSet, FoldedDisk};
use crate::session::{HeadSource, head};
use virtfold_archive::block_digests::BlockDigests;
use virtfold_archive::manifest::{BackupSubject, Manifest};
use virtfold_archive::stream::Compression;
use virtfold_archive::writer::DiskTables;
use virtfold_base::units::MIB;
use virtfold_image::{DiskImage, Format, OpenOptions};
use virtfold_medium::FinishedArchive;

/// How a medium breaks: after so many bytes, keeping so many of them.
type Break = (usize, usize);

/// Keeps what it gets, and breaks as told.
struct Brittle {
    bytes: Vec<u8>,
    /// Bytes given in all, over all attempts.
    given: usize,
    breaks: Vec<Break>,
    at_end: u32,
    kind: ErrorKind,
    never: bool,
    asked: u32,
    /// A file that is written to while it is made ready again.
    changes: Option<std::path::PathBuf>,
}

impl Brittle {
    fn new(breaks: &[Break]) -> Self {
        let mut breaks = breaks.to_vec();
        breaks.reverse();
        Self {
            bytes: Vec::new(),
            given: 0,
            breaks,
            at_end: 0,
            kind: ErrorKind::Io,
            never: false,
            asked: 0,
            changes: None,
        }
    }

    fn broken(&self) -> Error {
        Error::new(self.kind, "the medium broke")
    }
}

impl Sink for Brittle {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.given += bytes.len();
        self.bytes.extend_from_slice(bytes);
        match self.breaks.last() {
            Some((after, _)) if self.given > *after => Err(self.broken()),
            _ => Ok(()),
        }
    }
}

impl Medium for Brittle {
    fn sync(&mut self) -> Result<()> {
        if self.at_end == 0 {
            return Ok(());
        }
        self.at_end -= 1;
        self.breaks.push((0, 3 << 20));
        Err(self.broken())
    }

    fn resume_after_failure(&mut self) -> Result<Option<u64>> {
        self.asked += 1;
        if let Some(path) = &self.changes {
            let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            file.write_all(&vec![7; 4 << 20]).unwrap();
        }
        let Some((_, keeps)) = self.breaks.pop().filter(|_| !self.never) else { return Ok(None) };
        self.bytes.truncate(keeps);
        self.given = self.bytes.len();
        Ok(Some(self.bytes.len() as u64))
    }

    fn finish(self: Box<Self>) -> Result<FinishedArchive> {
        Ok(FinishedArchive::new("memory", self.bytes.len() as u64))
    }
}

/// A folded disk, and the head of its archive.
struct Lab {
    folder: tempfile::TempDir,
    disks: DiskSet,
    head: Manifest,
    options: BackupOptions,
    control: Control,
}

impl Lab {
    fn new(compression: Compression) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.raw");
        let mut file = std::fs::File::create(&path).unwrap();
        let mut state = 1_u32;
        let mut noise = |len: u64| -> Vec<u8> {
            let next = |_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                u8::try_from(state >> 24).unwrap()
            };
            (0..len).map(next).collect()
        };
        file.write_all(&noise(4 * MIB + 4096)).unwrap();
        file.set_len(16 * MIB).unwrap();
        let image = DiskImage::open(&path, Format::Raw, &OpenOptions::default()).unwrap();
        let options = BackupOptions { compression, ..BackupOptions::default() };
        let control = Control::default();
        let disk = FoldedDisk::fold("vda".to_owned(), image, None, options.layout).unwrap();
        let disks = DiskSet(vec![disk]);
        let subject = BackupSubject::Images { name: "a".to_owned(), labelled: false, paths: Vec::new() };
        let head =
            head(&HeadSource { subject: &subject, freeze: None, parent: None }, &options, &disks).unwrap();
        Self { folder, disks, head, options, control }
    }

    fn write(&self, medium: &mut Brittle) -> Result<WrittenArchive> {
        let blocks: Vec<_> = self.head.disks.iter().map(BlockDigests::of).collect();
        let contents = ArchiveContents {
            head: &self.head,
            attachments: &[],
            disks: self.disks.0.iter().map(|disk| disk as &dyn DiskTables).collect(),
            data: &self.disks,
            blocks: &blocks,
            seal: None,
        };
        stream(&contents, &self.options, &self.control, medium, ChunkJournal::default(), 0)
    }

    fn whole(&self) -> (Vec<u8>, WrittenArchive) {
        let mut medium = Brittle::new(&[]);
        let sealed = self.write(&mut medium).unwrap();
        (medium.bytes, sealed)
    }
}

const BOTH: [Compression; 2] = [Compression::None, Compression::Zstd { level: 1 }];

#[test]
fn what_breaks_anywhere_and_goes_on_is_the_same_in_the_end() {
    for compression in BOTH {
        let lab = Lab::new(compression);
        let (whole, sealed) = lab.whole();
        let len = whole.len();
        for breaks in [
            vec![(0, 0)],
            vec![(1, 1)],
            vec![(3 << 20, 2 << 20)],
            vec![((3 << 20) + 17, (3 << 20) + 17), (4 << 20, (3 << 20) + 500_000)],
            // It has lost what it had before: from the beginning once more.
            vec![(3 << 20, 2 << 20), (4 << 20, 0)],
            vec![(len - 1, len - 1)],
            vec![(len - 1, len)],
        ] {
            let mut medium = Brittle::new(&breaks);
            let again = lab.write(&mut medium).unwrap();
            assert!(medium.bytes == whole, "{compression:?} {breaks:?}");
            assert_eq!((again, medium.asked as usize), (sealed, breaks.len()), "{breaks:?}");
        }
        let disk = &lab.head.disks[0];
        let read = disk.dense_length + disk.blocks_len();
        assert_eq!(lab.control.progress.counter().load(Ordering::Relaxed), read);
    }
}

#[test]
fn one_that_fails_at_its_end_is_gone_on_with_too() {
    let lab = Lab::new(Compression::None);
    let mut medium = Brittle { at_end: 2, ..Brittle::new(&[]) };
    lab.write(&mut medium).unwrap();
    assert!(medium.bytes == lab.whole().0);
}

#[test]
fn one_that_can_t_go_on_does_not_get_on_or_is_told_to_end_is_given_up() {
    let lab = Lab::new(Compression::None);
    let given_up = |mut medium: Brittle| {
        let error = lab.write(&mut medium).unwrap_err();
        (error.kind(), medium.asked)
    };
    // It can't, and says so when it is asked.
    let never = Brittle { at_end: 1, never: true, ..Brittle::new(&[]) };
    assert_eq!(given_up(never), (ErrorKind::Io, 1));
    let stuck = Brittle::new(&[(2 << 20, 1 << 20); 20]);
    assert_eq!(given_up(stuck), (ErrorKind::Io, TRIES + 1));
    let told = Brittle { kind: ErrorKind::Interrupted, ..Brittle::new(&[(1 << 20, 0)]) };
    assert_eq!(given_up(told), (ErrorKind::Interrupted, 0));
}

/// Another chunk in the place of one that was put out does not get to the medium, where it could be encrypted
/// as that was.
#[test]
fn a_chunk_that_is_not_what_it_was_goes_nowhere() {
    for compression in BOTH {
        let lab = Lab::new(compression);
        let (whole, _) = lab.whole();
        let changes = Some(lab.folder.path().join("a.raw"));
        let mut medium = Brittle { changes, ..Brittle::new(&[(3 << 20, 2 << 20)]) };
        let error = lab.write(&mut medium).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
        assert!(whole.starts_with(&medium.bytes), "{compression:?}: {} bytes", medium.bytes.len());
    }
}
