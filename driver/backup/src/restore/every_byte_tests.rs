//! One flipped byte, anywhere in a small archive of each kind, costs no more than what shares its MiB (of an
//! encrypted archive: what shares the MiBs that its piece of 64 KiB touches).
//!
//! Each byte of the structure is flipped; of the disks' bytes, of which one is as good as the next, some. Set
//! VIRTFOLD_EVERY_BYTE=1 for each of them.

use std::ops::Range;
use std::sync::Arc;

use super::*;
use crate::destinations::Destinations;
use crate::options::BackupOptions;
use crate::resume::StateDirectories;
use crate::session::{BackupSession, ImageSpec, ImagesRequest};
use virtfold_archive::crypt::{ArchiveFile, Identities, Recipients};
use virtfold_archive::index::{ArchiveIndex, DiskPiece, Trust};
use virtfold_archive::sign::SigningKey;
use virtfold_archive::source::Source;
use virtfold_archive::stream::{Compression, ReadAt};
use virtfold_base::units::{DenseOffset, KIB, MIB};

/// An archive in memory; one of its bytes may be another one.
#[derive(Debug)]
struct Flipped {
    bytes: Arc<Vec<u8>>,
    flip: Option<(usize, u8)>,
}

impl ReadAt for Flipped {
    fn read_exact_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let from = usize::try_from(at).unwrap();
        buf.copy_from_slice(&self.bytes[from..from + buf.len()]);
        match self.flip {
            Some((place, mask)) if (from..from + buf.len()).contains(&place) => buf[place - from] ^= mask,
            _ => {}
        }
        Ok(())
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn name(&self) -> &str {
        "flipped.tar"
    }
}

impl Source for Flipped {}

/// What is lost of a disk; nothing, where all of it is.
type Fate = Option<Vec<Range<u64>>>;

/// Disks of so many bytes, one after the other, and their archive.
struct Subject {
    disks: Vec<Vec<u8>>,
    archive: Arc<Vec<u8>>,
    identities: Identities,
    /// Where each disk's dense bytes begin in the stream.
    dense_at: Vec<u64>,
    body: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Secrecy {
    Open,
    Encrypted,
}

impl Subject {
    fn new(sizes: &[u64], compression: Compression, secrecy: Secrecy) -> Self {
        let disks: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(n, len)| bytes_of(n, *len)).collect();
        Self::of(disks, compression, secrecy)
    }

    fn of(disks: Vec<Vec<u8>>, compression: Compression, secrecy: Secrecy) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = |(n, bytes): (usize, &Vec<u8>)| {
            let path = folder.path().join(format!("vd{n}.img"));
            std::fs::write(&path, bytes).unwrap();
            ImageSpec { path, format: Format::Raw, target: format!("vd{n}") }
        };
        let key = age::x25519::Identity::generate();
        let public = [key.to_public().to_string()];
        let (encrypt_to, identities) = match secrecy {
            Secrecy::Open => (None, Identities::default()),
            Secrecy::Encrypted => (Recipients::gather(&public, None).unwrap(), Identities::of(vec![key])),
        };
        let request = ImagesRequest::of(disks.iter().enumerate().map(image).collect());
        // Of two disks, whose archives have each kind of member.
        let signing_key = (disks.len() == 2).then(|| Arc::new(SigningKey::new("web").unwrap()));
        let how = BackupOptions { compression, encrypt_to, signing_key, ..BackupOptions::default() };
        let destinations = Destinations::local([Location::Path(folder.path().to_owned())]);
        let (state, control) = (StateDirectories::new(folder.path().join("state")), Control::default());
        let session =
            BackupSession { options: &how, destinations: &destinations, state: &state, control: &control };
        let report = session.images(&request).unwrap();
        let archive = Arc::new(std::fs::read(report.archive).unwrap());
        let mut subject = Self { disks, archive, identities, dense_at: Vec::new(), body: 0 };
        let source = subject.opened(None).unwrap();
        let index = ArchiveIndex::open(&source, &options(), Trust::Strict).unwrap();
        let dense_at = index.disks().iter().map(|disk| disk.dense_at.get()).collect();
        let body = index.tail().unwrap().record.body_len;
        drop(index);
        (subject.dense_at, subject.body) = (dense_at, body);
        subject
    }

    fn opened(&self, flip: Option<(usize, u8)>) -> Result<ArchiveFile> {
        let source = Arc::new(Flipped { bytes: Arc::clone(&self.archive), flip });
        ArchiveFile::salvage(source, &self.identities)
    }

    /// The archive's bytes, decrypted.
    fn in_clear(&self) -> Vec<u8> {
        let source = self.opened(None).unwrap();
        let mut bytes = vec![0; usize::try_from(source.len()).unwrap()];
        source.read_exact_at(0, &mut bytes).unwrap();
        bytes
    }

    /// What comes of the disks with that byte flipped. Nothing, where the archive gives nothing at all.
    fn rescued(&self, flip: (usize, u8)) -> Option<Vec<Fate>> {
        let source = self.opened(Some(flip)).ok()?;
        let index = ArchiveIndex::open(&source, &options(), Trust::Salvage).ok()?;
        let disks = self.disks.iter().enumerate().map(|(n, was)| {
            let disk = index.disk(&format!("vd{n}")).ok()?;
            let mut lost = Vec::new();
            let whole = DenseOffset::ZERO..DenseOffset::new(disk.table.dense_len());
            index
                .read_dense(disk, whole, &mut |piece, data| {
                    let from = usize::try_from(piece.guest.get()).unwrap();
                    match data {
                        DiskPiece::Lost => lost.push(piece.guest.get()..piece.guest.get() + piece.len),
                        DiskPiece::Bytes(bytes) => {
                            assert!(
                                was[from..from + bytes.len()] == *bytes,
                                "vd{n} at {from}: flip {flip:?}"
                            );
                        }
                    }
                    Ok(())
                })
                .unwrap();
            Some(lost)
        });
        Some(disks.collect())
    }

    /// What a partial restore of these bytes, through a pipe, into `folder` says.
    fn piped(&self, folder: &Path, bytes: &[u8]) -> Result<RestoreReport> {
        let request = RestoreRequest {
            archive: Location::Pipe,
            identities: self.identities.clone(),
            selection: Selection::All(folder.to_owned()),
            format: None,
            method: Method::Rewrite,
            cluster_size: None,
            existing: Overwrite::Refuse,
            checking: VerifyMode::Partial,
            trust: Default::default(),
            workers: 2,
            known: Default::default(),
            parents: Default::default(),
        };
        let report = run_from(&request, &Control::default(), bytes)?;
        for (n, was) in self.disks.iter().enumerate() {
            let disk = format!("vd{n}");
            let Ok(is) = std::fs::read(folder.join(format!("{disk}.raw"))) else { continue };
            let mut expected = was.clone();
            for lost in report.damage.iter().filter(|lost| lost.disk == disk) {
                let place = |at: u64| usize::try_from(at).unwrap();
                expected[place(lost.start)..place(lost.start + lost.length)].fill(0);
            }
            assert!(is == expected, "{disk}: {:?}", report.damage);
        }
        Ok(report)
    }

    /// Holds what a flip costs against what it may cost.
    fn check(&self, flip: (usize, u8), fair: &Fair) {
        let Some(rescued) = self.rescued(flip) else {
            let all = 0..self.body;
            assert!(fair.covers(&all), "flip {flip:?}: nothing can be had, and {fair:?} may be lost");
            return;
        };
        let mut total = 0;
        for (n, lost) in rescued.into_iter().enumerate() {
            let all = std::iter::once(0..self.disks[n].len() as u64).collect();
            for range in lost.unwrap_or(all) {
                let place = self.dense_at[n] + range.start..self.dense_at[n] + range.end;
                total += range.end - range.start;
                assert!(fair.covers(&place), "flip {flip:?}: vd{n} {range:?} is lost, and {fair:?} may be");
            }
        }
        assert!(*fair != Fair::OneMib || total <= MIB, "flip {flip:?}: {total} bytes are lost");
    }
}

/// What of the stream a flipped byte may cost.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fair {
    /// Nothing of the disks.
    Nothing,
    /// These MiBs of the body.
    Stream(Range<u64>),
    /// Some MiB.
    OneMib,
    /// All: what says how the file is to be read.
    All,
}

impl Fair {
    fn covers(&self, place: &Range<u64>) -> bool {
        match self {
            Self::Nothing => false,
            Self::Stream(lost) => lost.start <= place.start && place.end <= lost.end,
            Self::OneMib | Self::All => true,
        }
    }
}

/// Where the frames of a framed archive lie, and what they hold; the seek table is behind the last one.
fn frames(clear: &[u8]) -> Vec<(Range<usize>, Range<u64>)> {
    let number = |at: usize| u64::from(u32::from_le_bytes(clear[at..at + 4].try_into().unwrap()));
    let mut found: Vec<(Range<usize>, Range<u64>)> = Vec::new();
    let mut at = 0;
    while clear[at..].starts_with(&0x184D_2A55_u32.to_le_bytes()) {
        let start = found.last().map_or(0, |(_, stream)| stream.end);
        let end = at + 100 + usize::try_from(number(at + 56)).unwrap();
        found.push((at..end, start..start + number(at + 52)));
        at = end;
    }
    found
}

/// What a flip of the byte of the archive in the clear may cost.
fn fair_in_clear(place: usize, body: u64, frames: &[(Range<usize>, Range<u64>)]) -> Fair {
    if frames.is_empty() {
        let first = place as u64 / MIB * MIB;
        return if place as u64 >= body {
            Fair::OneMib
        } else {
            Fair::Stream(first..(first + MIB).min(body))
        };
    }
    match frames.iter().find(|(file, _)| file.contains(&place)) {
        Some((_, stream)) if stream.start < body => Fair::Stream(stream.clone()),
        Some(_) | None => Fair::Nothing,
    }
}

fn options() -> ReadOptions {
    ReadOptions { workers: 1, cancel: Default::default(), carrier: None, archive_id: None }
}

/// Bytes without a zero and without a repetition.
fn bytes_of(number: usize, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    blake3::Hasher::new().update(&[u8::try_from(number).unwrap()]).finalize_xof().fill(&mut bytes);
    bytes.iter_mut().for_each(|byte| *byte |= 1);
    bytes
}

/// The places to flip: of the stream's structure each byte that is not as the one before it (of archives of
/// another number of disks than two, which have the same kinds of members, every seventh), of the rest some.
fn places(bytes: &[u8], disks: usize, is_data: impl Fn(usize) -> bool) -> Vec<usize> {
    let step = if disks == 2 { 1 } else { 7 };
    let every = std::env::var_os("VIRTFOLD_EVERY_BYTE").is_some();
    let wanted = |at: &usize| match at.checked_sub(1) {
        _ if every => true,
        _ if is_data(*at) => at.is_multiple_of(8191),
        Some(before) if bytes[before] == bytes[*at] => at.is_multiple_of(61),
        _ => at.is_multiple_of(step),
    };
    (0..bytes.len()).filter(wanted).collect()
}

const DISKS: [&[u64]; 3] = [&[1060 * KIB], &[MIB, 16 * KIB], &[600 * KIB, 440 * KIB, 20 * KIB]];
const ZSTD: Compression = Compression::Zstd { level: 1 };

fn flip_each(sizes: &[u64], compression: Compression) {
    let subject = Subject::new(sizes, compression, Secrecy::Open);
    let frames = frames(&subject.archive);
    let is_data = |at: usize| match frames.is_empty() {
        true => {
            subject.dense_at.iter().zip(sizes).any(|(from, len)| (*from..from + len).contains(&(at as u64)))
        }
        false => {
            !frames.iter().any(|(file, _)| (file.start..file.start + 160).contains(&at))
                && frames.last().is_some_and(|(file, _)| at < file.end)
        }
    };
    for at in places(&subject.archive, sizes.len(), is_data) {
        let mask = 1 << (at % 8);
        subject.check((at, mask), &fair_in_clear(at, subject.body, &frames));
    }
}

/// Of an encrypted archive every byte of a piece is as good as the next: the piece is lost, and with it what
/// shares its MiBs.
fn flip_pieces(sizes: &[u64], compression: Compression) {
    const PIECE: usize = 64 << 10;
    let subject = Subject::new(sizes, compression, Secrecy::Encrypted);
    let clear = subject.in_clear();
    let frames = frames(&clear);
    let pieces = clear.len().div_ceil(PIECE);
    let head = subject.archive.len() - clear.len() - pieces * 16;
    // The first byte of a piece, one within, and each kind of its authenticator's.
    let of_piece = |n: usize| [0, 30_001, PIECE, PIECE + 15].map(|at| head + n * (PIECE + 16) + at);
    let in_pieces = (0..pieces).flat_map(of_piece).filter(|at| *at < subject.archive.len());
    for at in (0..head).step_by(17).chain(in_pieces) {
        let fair = match at.checked_sub(head) {
            None => Fair::All,
            Some(at) => {
                let piece = at / (PIECE + 16) * PIECE;
                let last = (piece + PIECE).min(clear.len()) - 1;
                let fair = |place| fair_in_clear(place, subject.body, &frames);
                let touched: Vec<Fair> = (piece..=last).step_by(512).chain([last]).map(fair).collect();
                let ranges = touched.iter().filter_map(|fair| match fair {
                    Fair::Stream(range) => Some(range.clone()),
                    Fair::Nothing | Fair::OneMib | Fair::All => None,
                });
                ranges
                    .reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
                    .map_or(Fair::Nothing, Fair::Stream)
            }
        };
        subject.check((at, 1 << (at % 8)), &fair);
    }
}

#[test]
fn each_byte_of_a_plain_archive() {
    DISKS.into_iter().for_each(|sizes| flip_each(sizes, Compression::None));
}

#[test]
fn each_byte_of_a_framed_archive() {
    DISKS.into_iter().for_each(|sizes| flip_each(sizes, ZSTD));
}

/// A signature that is damaged is never no signature: no byte of the tail can be another one.
#[test]
fn no_byte_of_a_signed_tail_can_be_another_one() {
    let subject = Subject::new(&[20 * KIB, 4 * KIB], Compression::None, Secrecy::Open);
    let opened = |flip| {
        let source = subject.opened(flip)?;
        source.proven()?;
        let index = ArchiveIndex::open(&source, &options(), Trust::Strict)?;
        Ok::<_, Error>(
            index.tail().and_then(|tail| tail.signature()).map(|signature| signature.chain.sequence),
        )
    };
    assert_eq!(opened(None).unwrap(), Some(1));
    for at in usize::try_from(subject.body).unwrap()..subject.archive.len() {
        let error = opened(Some((at, 1 << (at % 8)))).expect_err(&format!("byte {at}"));
        // The record's version is one of them.
        let kinds = [ErrorKind::Damaged, ErrorKind::Incomplete, ErrorKind::Unsupported];
        assert!(kinds.contains(&error.kind()), "byte {at}: {error}");
    }
}

#[test]
fn each_piece_of_an_encrypted_archive() {
    DISKS.into_iter().for_each(|sizes| flip_pieces(sizes, Compression::None));
}

#[test]
fn each_piece_of_an_encrypted_framed_archive() {
    DISKS.into_iter().for_each(|sizes| flip_pieces(sizes, ZSTD));
}

/// By a pipe as much comes back as from a file.
#[test]
fn pipes_give_what_files_give() {
    for (compression, secrecy) in [Compression::None, ZSTD]
        .into_iter()
        .flat_map(|compression| [(compression, Secrecy::Open), (compression, Secrecy::Encrypted)])
    {
        let subject = Subject::new(&[3 * MIB, 40 * KIB], compression, secrecy);
        let len = subject.archive.len();
        // Within the first disk's bytes, and where the second one's tables and all copies share a MiB.
        for at in [700_000, 1_500_000, len - 44 * 1024, len - 20_000, len - 9_000] {
            let expected = subject.rescued((at, 4)).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let mut broken = subject.archive.to_vec();
            broken[at] ^= 4;
            let report = subject.piped(folder.path(), &broken).unwrap();
            for (n, lost) in expected.into_iter().enumerate() {
                let disk = format!("vd{n}");
                let all = std::iter::once(0..subject.disks[n].len() as u64).collect();
                let lost: Vec<Range<u64>> = joined(lost.unwrap_or(all));
                let told = report.damage.iter().filter(|lost| lost.disk == disk);
                let told: Vec<_> = told.map(|lost| lost.start..lost.start + lost.length).collect();
                assert_eq!(told, lost, "{disk}, {compression:?}, byte {at}");
            }
            assert!(report.damage.iter().map(|lost| lost.length).sum::<u64>() <= 2 * MIB, "{report:?}");
        }
        // Cut off: what came.
        let folder = tempfile::tempdir().unwrap();
        let report = subject.piped(folder.path(), &subject.archive[..2 << 20]).unwrap();
        assert!(!report.complete && !report.damage.is_empty(), "{report:?}");
        assert!(
            report.damage.iter().all(|lost| lost.start >= 15 * MIB / 10 || lost.disk == "vd1"),
            "{report:?}"
        );
    }
}

fn joined(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut().filter(|last| last.end == range.start) {
            Some(last) => last.end = range.end,
            None => joined.push(range),
        }
    }
    joined
}

/// A frame of another archive in the place of the first one costs that MiB, and gives nothing of the other.
#[test]
fn a_foreign_first_frame_is_not_believed() {
    let subject = Subject::new(&[3 * MIB], ZSTD, Secrecy::Open);
    let other = Subject::of(vec![bytes_of(9, 3 * MIB)], ZSTD, Secrecy::Open);
    let (ours, theirs) = (frames(&subject.archive), frames(&other.archive));
    let first = &other.archive[theirs[0].0.clone()];
    let spliced = [first, &subject.archive[ours[0].0.end..]].concat();
    let spliced = Subject { archive: Arc::new(spliced), ..subject };
    spliced.check((spliced.archive.len() - 1, 0), &Fair::Stream(0..MIB));
    let strict = ArchiveIndex::open(&spliced.opened(None).unwrap(), &options(), Trust::Strict).map(drop);
    assert!(strict.is_err());
}
