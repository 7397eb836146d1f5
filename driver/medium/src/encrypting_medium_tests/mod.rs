//! What goes in comes out, at every place and from many threads; and nothing that was changed does.

mod keys;
mod trailing_bytes;
mod writing;

use std::io::{self, Cursor, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use age::x25519::Identity;
use tempfile::TempDir;

use crate::{self as medium, EncryptingMedium, FinishedArchive, Medium};
use virtfold_archive::crypt::*;
use virtfold_archive::stream::{ReadAt, Sink};
use virtfold_base::error::{Error, ErrorKind, Result};

const PLAIN: usize = 64 << 10;
const MARK: usize = 16;
const SEALED: usize = PLAIN + MARK;

/// A medium in memory, that takes so many bytes.
struct Memory(Arc<Mutex<Vec<u8>>>, usize);

impl Sink for Memory {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let mut kept = self.0.lock().unwrap();
        if kept.len() + bytes.len() > self.1 {
            return Err(Error::new(ErrorKind::NoSpace, "it is full").with_hint("make room"));
        }
        kept.extend_from_slice(bytes);
        Ok(())
    }
}

impl Medium for Memory {
    fn finish(self: Box<Self>) -> Result<FinishedArchive> {
        Ok(FinishedArchive::new("memory", self.0.lock().unwrap().len() as u64))
    }
}

struct Lab {
    folder: TempDir,
    key: Identity,
}

impl Lab {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), key: Identity::generate() }
    }

    fn recipients(&self) -> Recipients {
        let other = Identity::generate().to_public().to_string();
        Recipients::gather(&[other, self.key.to_public().to_string()], None).unwrap().unwrap()
    }

    fn envelope(&self) -> Envelope {
        Envelope::new(&self.recipients()).unwrap()
    }

    fn identities(&self) -> Identities {
        Identities::of(vec![Identity::generate(), self.key.clone()])
    }

    /// `plain`, encrypted.
    fn seal(&self, plain: &[u8]) -> Vec<u8> {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let memory = Box::new(Memory(Arc::clone(&kept), usize::MAX));
        let mut medium = Box::new(EncryptingMedium::begin(memory, &self.envelope()).unwrap());
        for piece in plain.chunks(100_001) {
            medium.write(piece).unwrap();
        }
        let durable = medium.finish().unwrap();
        let sealed = kept.lock().unwrap().clone();
        assert_eq!(durable.bytes, sealed.len() as u64);
        sealed
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join("a.tar.age");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn open(&self, bytes: &[u8]) -> Result<ArchiveFile> {
        ArchiveFile::open(medium::open(&self.file(bytes).into()).unwrap(), &self.identities())
    }

    fn salvage(&self, bytes: &[u8]) -> Result<ArchiveFile> {
        ArchiveFile::salvage(medium::open(&self.file(bytes).into()).unwrap(), &self.identities())
    }

    fn pipe(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut incoming = DecryptingReader::open(Drip(Cursor::new(bytes)), "pipe", &self.identities())?;
        let mut out = Vec::new();
        incoming.read_to_end(&mut out).map_err(|e| Error::io("reading", e))?;
        Ok(out)
    }
}

/// A pipe gives what it has.
struct Drip<R>(R);

impl<R: Read> Read for Drip<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = buf.len().min(4093);
        self.0.read(&mut buf[..len])
    }
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

fn kind<T>(outcome: Result<T>) -> ErrorKind {
    outcome.map(drop).unwrap_err().kind()
}

/// Bytes of the header: what is there beside the pieces.
fn header(sealed: &[u8], plain: usize) -> usize {
    sealed.len() - plain - plain.div_ceil(PLAIN).max(1) * MARK
}

#[test]
fn comes_out_as_it_went_in_at_every_place() {
    let lab = Lab::new();
    for len in [0, 1, PLAIN - 1, PLAIN, PLAIN + 1, 3 * PLAIN, 5 * PLAIN + 77] {
        let plain = noise(len);
        let sealed = lab.seal(&plain);
        assert_eq!(lab.pipe(&sealed).unwrap(), plain, "{len}");
        let file = lab.open(&sealed).unwrap();
        assert_eq!((file.len(), file.stored()), (len as u64, sealed.len() as u64));
        assert!(file.is_encrypted() && file.shareable().is_none());
        let read = |at: usize, len: usize| {
            let mut buf = vec![0; len];
            file.read_exact_at(at as u64, &mut buf).map(|()| buf)
        };
        let edges: Vec<usize> = (0..=len.div_ceil(PLAIN))
            .flat_map(|n| [n * PLAIN, n * PLAIN + 1, (n * PLAIN).saturating_sub(1)])
            .collect();
        for at in edges.iter().copied().filter(|at| *at <= len) {
            for much in [0, 1, 2, PLAIN, PLAIN + 3, len - at] {
                let much = much.min(len - at);
                assert_eq!(read(at, much).unwrap(), plain[at..at + much], "{much} at {at} of {len}");
            }
        }
        assert_eq!(kind(read(len, 1)), ErrorKind::Incomplete);
        assert_eq!(kind(read(usize::MAX, 2)), ErrorKind::Incomplete);
    }
}

#[test]
fn many_threads_read_at_once() {
    let lab = Lab::new();
    let plain = noise(20 * PLAIN + 5);
    let file = lab.open(&lab.seal(&plain)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..6_usize {
            let (file, plain) = (&file, &plain);
            scope.spawn(move || {
                for step in 0..40 {
                    let at = (thread * 7919 + step * 104_729) % (plain.len() - 90_000);
                    let mut buf = vec![0; 1 + (step * 2221) % 90_000];
                    file.read_exact_at(at as u64, &mut buf).unwrap();
                    assert_eq!(buf, plain[at..at + buf.len()]);
                }
            });
        }
    });
}

#[test]
fn a_cut_is_refused_and_what_is_before_it_can_be_had() {
    let lab = Lab::new();
    let plain = noise(3 * PLAIN + 500);
    let sealed = lab.seal(&plain);
    let head = header(&sealed, plain.len());
    let edges = (0..4).flat_map(|n| [0, 1, 17, 40_000].map(|more| head + n * SEALED + more));
    for cut in edges.filter(|cut| *cut < sealed.len()).chain([sealed.len() - 1]) {
        assert_eq!(kind(lab.open(&sealed[..cut])), ErrorKind::Incomplete, "{cut}");
        assert_eq!(kind(lab.pipe(&sealed[..cut])), ErrorKind::Incomplete, "{cut}");
        let rest = lab.salvage(&sealed[..cut]).unwrap();
        assert_eq!(rest.proven().unwrap_err().kind(), ErrorKind::Incomplete);
        assert_eq!(rest.len(), ((cut - head) / SEALED * PLAIN) as u64, "{cut}");
        let mut buf = vec![0; usize::try_from(rest.len()).unwrap()];
        rest.read_exact_at(0, &mut buf).unwrap();
        assert_eq!(buf, plain[..buf.len()]);
        for at in (0..buf.len()).step_by(PLAIN) {
            let mut one = [0];
            rest.read_exact_at(at as u64, &mut one).unwrap();
            assert_eq!(one[0], plain[at]);
        }
    }
    for cut in 0..head {
        let refused = kind(lab.open(&sealed[..cut]));
        assert!(matches!(refused, ErrorKind::Incomplete | ErrorKind::Damaged), "{cut}: {refused:?}");
        assert_eq!(refused, kind(lab.salvage(&sealed[..cut])), "{cut}");
    }
}

/// What reading all of `bytes` piece by piece gives where it is not `plain`: the numbers of the pieces that
/// are refused.
fn refused_pieces(file: &ArchiveFile, plain: &[u8]) -> Vec<usize> {
    let check = |(number, piece): (usize, &[u8])| {
        let mut buf = vec![0; piece.len()];
        match file.read_exact_at((number * PLAIN) as u64, &mut buf) {
            Ok(()) => {
                assert_eq!(buf, piece, "piece {number}");
                None
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Damaged);
                Some(number)
            }
        }
    };
    plain.chunks(PLAIN).enumerate().filter_map(check).collect()
}

#[test]
fn a_flipped_bit_costs_its_piece_and_is_never_given_out() {
    let lab = Lab::new();
    let plain = noise(3 * PLAIN + 500);
    let sealed = lab.seal(&plain);
    let head = header(&sealed, plain.len());
    for place in (0..head).chain((head..sealed.len()).step_by(9973)).chain([sealed.len() - 1]) {
        let mut bad = sealed.clone();
        bad[place] ^= 1 << (place % 8);
        // Where it no longer begins as an age file, a pipe has no name that says that it should.
        assert!(lab.pipe(&bad).is_err() || place < 19 && lab.pipe(&bad).unwrap() == bad, "byte {place}");
        let number = (place.max(head) - head) / SEALED;
        match lab.open(&bad) {
            Err(error) if place < head => {
                let kinds =
                    [ErrorKind::Damaged, ErrorKind::Incomplete, ErrorKind::Locked, ErrorKind::Unsupported];
                assert!(kinds.contains(&error.kind()) || place >= head - 16, "byte {place}: {error:?}");
            }
            Err(error) => {
                assert_eq!((number, error.kind()), (3, ErrorKind::Incomplete), "byte {place}");
                assert!(refused_pieces(&lab.salvage(&bad).unwrap(), &plain[..3 * PLAIN]).is_empty());
            }
            Ok(file) => assert_eq!(refused_pieces(&file, &plain), [number], "byte {place}"),
        }
    }
}

#[test]
fn pieces_count_in_their_own_place_of_their_own_archive_only() {
    let lab = Lab::new();
    let plain = noise(5 * PLAIN);
    let (sealed, other) = (lab.seal(&plain), lab.seal(&plain));
    let head = header(&sealed, plain.len());
    // The crate puts recipients of no meaning into each header: they are of any length.
    let piece = |of: &[u8], n: usize| {
        let start = header(of, plain.len()) + n * SEALED;
        of[start..start + SEALED].to_vec()
    };
    let with = |pieces: &[(&[u8], usize)]| {
        let mut bytes = sealed[..head].to_vec();
        pieces.iter().for_each(|(of, n)| bytes.extend(piece(of, *n)));
        bytes
    };
    let of = |numbers: [usize; 5]| with(&numbers.map(|n| (sealed.as_slice(), n)));
    // Exchanged, doubled, and out of another archive to the same keys.
    for (bytes, lost) in [
        (of([0, 2, 1, 3, 4]), vec![1, 2]),
        (of([0, 1, 1, 3, 4]), vec![2]),
        (with(&[(&sealed, 0), (&sealed, 1), (&other, 2), (&sealed, 3), (&sealed, 4)]), vec![2]),
    ] {
        assert_eq!(refused_pieces(&lab.open(&bytes).unwrap(), &plain), lost);
        assert_eq!(kind(lab.pipe(&bytes)), ErrorKind::Damaged);
    }
    // Left out, put in, followed by something, with another's end or another's header: the length is not
    // proven.
    let spliced =
        |pieces: &[usize]| with(&pieces.iter().map(|n| (sealed.as_slice(), *n)).collect::<Vec<_>>());
    let foreign = [&other[..header(&other, plain.len())], &sealed[head..]].concat();
    for bytes in [
        spliced(&[0, 1, 3, 4]),
        spliced(&[0, 1, 2, 2, 3, 4]),
        spliced(&[0, 1, 2, 3, 4, 0]),
        [&sealed[..], b"x"].concat(),
        [&sealed[..], &sealed[..]].concat(),
        with(&[(&sealed, 0), (&sealed, 1), (&sealed, 2), (&sealed, 3), (&other, 4)]),
        foreign,
    ] {
        assert_eq!(kind(lab.open(&bytes)), ErrorKind::Incomplete);
        assert!(lab.pipe(&bytes).is_err());
    }
}

#[test]
fn an_archive_that_is_not_encrypted_is_what_it_is() {
    let lab = Lab::new();
    let path = lab.folder.path().join("a.tar");
    std::fs::write(&path, b"virtfold.json").unwrap();
    let file =
        ArchiveFile::open(medium::open(&path.as_path().into()).unwrap(), &Identities::default()).unwrap();
    assert!(!file.is_encrypted() && file.shareable().is_some());
    assert_eq!(file.len(), 13);
    assert_eq!(lab.pipe(b"virtfold.json").unwrap(), b"virtfold.json");
    assert_eq!(lab.pipe(b"").unwrap(), b"");
    // But not where its name says that it is.
    assert_eq!(kind(lab.open(b"virtfold.json")), ErrorKind::Damaged);
    assert_eq!(kind(lab.open(b"age-enc")), ErrorKind::Incomplete);
    assert_eq!(kind(lab.pipe(b"age-enc")), ErrorKind::Incomplete);
    assert_eq!(kind(lab.open(b"-----BEGIN AGE ENCRYPTED FILE-----\nYWdl")), ErrorKind::Unsupported);
}

#[test]
fn without_its_key_nothing_is_said_but_that() {
    let lab = Lab::new();
    let path = lab.file(&lab.seal(b"secret"));
    let none = ArchiveFile::open(medium::open(&path.as_path().into()).unwrap(), &Identities::default())
        .map(drop)
        .unwrap_err();
    assert_eq!((none.kind(), none.hint()), (ErrorKind::Locked, Some("--identity FILE names the key file")));
    let wrong = Identities::of(vec![Identity::generate()]);
    assert_eq!(
        kind(ArchiveFile::open(medium::open(&path.as_path().into()).unwrap(), &wrong)),
        ErrorKind::Locked
    );
    let encryptor = age::Encryptor::with_user_passphrase("x".to_owned().into());
    let mut writer = encryptor.wrap_output(Vec::new()).unwrap();
    writer.write_all(b"x").unwrap();
    assert_eq!(kind(lab.open(&writer.finish().unwrap())), ErrorKind::Unsupported);
}

#[test]
fn a_header_without_end_is_refused_soon() {
    let lab = Lab::new();
    let line = b"-> X25519 aaaa\n";
    let mut endless = b"age-encryption.org/v1\n".to_vec();
    endless.extend(line.iter().copied().cycle().take(4 << 20));
    assert_eq!(kind(lab.open(&endless)), ErrorKind::Damaged);
    let mut long = b"age-encryption.org/v1\n-> ".to_vec();
    long.resize(4 << 20, b'a');
    assert_eq!(kind(lab.open(&long)), ErrorKind::Damaged);
    assert_eq!(kind(lab.pipe(&long)), ErrorKind::Damaged);
    assert_eq!(kind(lab.open(b"age-encryption.org/v1\n--- x\n")), ErrorKind::Damaged);
    assert_eq!(kind(lab.open(b"age-encryption.org/v2\n--- x\n")), ErrorKind::Unsupported);
}
