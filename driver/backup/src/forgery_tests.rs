//! 1,000 forged and spliced archives against what verifies and what restores, with a signature required: none
//! is taken.

use std::sync::Arc;

use super::*;
use crate::Control;
use crate::destinations::Destinations;
use crate::options::BackupOptions;
use crate::restore::{RestoreRequest, Selection, VerifyMode};
use crate::resume::StateDirectories;
use crate::session::{BackupSession, ImageSpec, ImagesRequest};
use crate::verify::{self, VerifyRequest};
use virtfold_archive::crypt::{ArchiveFile, Identities};
use virtfold_archive::end_record::{self, EndRecord};
use virtfold_archive::index::{ArchiveIndex, Trust};
use virtfold_archive::sign::{ChainLink, SigningKey};
use virtfold_archive::source::Source;
use virtfold_archive::stream::{Compression, ReadAt};
use virtfold_image::Format;
use virtfold_medium::Location;

const FORGERIES: u64 = 1000;
const BLOCK: usize = 512;

#[derive(Debug)]
struct InMemory(Arc<Vec<u8>>);

impl ReadAt for InMemory {
    fn read_exact_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let from = usize::try_from(at).unwrap();
        buf.copy_from_slice(&self.0[from..from + buf.len()]);
        Ok(())
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn name(&self) -> &str {
        "forged.tar"
    }
}

impl Source for InMemory {}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % end as u64).unwrap()
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let at = self.below(all.len());
        &all[at]
    }
}

/// A plain archive, and what its tail says.
#[derive(Clone)]
struct Archive {
    bytes: Vec<u8>,
    record: EndRecord,
    root: [u8; 32],
}

impl Archive {
    /// An archive of an image with this byte in it; each is as long as the others.
    fn make(
        folder: &std::path::Path,
        byte: u8,
        key: Option<&SigningKey>,
        compression: Compression,
    ) -> Vec<u8> {
        Self::make_of(folder, &vec![byte; 16 << 10], key, compression)
    }

    fn make_of(
        folder: &std::path::Path,
        disk: &[u8],
        key: Option<&SigningKey>,
        compression: Compression,
    ) -> Vec<u8> {
        let path = folder.join("a.raw");
        std::fs::write(&path, disk).unwrap();
        let image = ImageSpec { path, format: Format::Raw, target: "vda".to_owned() };
        let signing_key = key.map(|key| Arc::new(key.clone()));
        let options = BackupOptions { compression, signing_key, workers: 1, ..BackupOptions::default() };
        let destinations = Destinations::local([Location::Path(folder.to_owned())]);
        let (state, control) = (StateDirectories::new(folder.join("state")), Control::default());
        let session = BackupSession {
            options: &options,
            destinations: &destinations,
            state: &state,
            control: &control,
        };
        let report = session.images(&ImagesRequest::of(vec![image])).unwrap();
        let bytes = std::fs::read(&report.archive).unwrap();
        std::fs::remove_file(&report.archive).unwrap();
        bytes
    }

    fn of(bytes: Vec<u8>) -> Self {
        let source = InMemory(Arc::new(bytes.clone()));
        let index = ArchiveIndex::open(&source, &crate::inspect::read_options(), Trust::Strict).unwrap();
        let tail = index.tail().unwrap();
        Self { bytes, record: tail.record.clone(), root: tail.root }
    }

    fn body(&self) -> usize {
        usize::try_from(self.record.body_len).unwrap()
    }

    /// The same body with a tail of its own.
    fn sealed(&self, chain: Option<ChainLink>, key: Option<&SigningKey>) -> Vec<u8> {
        let body = &self.bytes[..self.body()];
        let record = EndRecord { chain, ..self.record.clone() };
        let digests = body.chunks(1 << 20).map(|chunk| Ok(*blake3::hash(chunk).as_bytes()));
        let mut out = body.to_vec();
        end_record::write_tail(&record, digests, key, &mut |bytes| {
            out.extend_from_slice(bytes);
            Ok(())
        })
        .unwrap();
        out
    }

    /// Where the signature's member begins, of a signed one.
    fn signature_at(&self) -> usize {
        self.bytes.len() - 2 * BLOCK - 2 * BLOCK
    }
}

/// One forgery.
fn forge(random: &mut Random, good: &[Archive], strange: &[Archive], evil: &SigningKey) -> Vec<u8> {
    let one = random.of(good).clone();
    let other = random.of(good).clone();
    let foreign = random.of(strange).clone();
    let claim =
        |sequence| one.record.chain.clone().map(|chain| ChainLink { sequence, previous: None, ..chain });
    match random.below(10) {
        // Any byte is another one.
        0 => {
            let mut bytes = one.bytes.clone();
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
            bytes
        }
        // The beginning of one and the end of another, at the body's end or anywhere.
        1 => [&foreign.bytes[..foreign.body()], &one.bytes[one.body()..]].concat(),
        2 => {
            let at = random.below(one.bytes.len() / BLOCK) * BLOCK;
            let from = at.min(foreign.bytes.len());
            [&one.bytes[..at], &foreign.bytes[from..]].concat()
        }
        3 => {
            let at = random.below(one.bytes.len() / BLOCK) * BLOCK;
            [&one.bytes[..at], &other.bytes[at.min(other.bytes.len())..]].concat()
        }
        // The attacker's own key, by the host's name.
        4 => one.sealed(claim(random.below(100) as u64 + 1), Some(evil)),
        5 => foreign.sealed(claim(random.below(100) as u64 + 1), Some(evil)),
        // The signature taken away, with all that says that there was one.
        6 => one.sealed(None, None),
        // The signature of another record, or of this one behind a record that was changed.
        7 => {
            let mut bytes = one.sealed(claim(random.below(1000) as u64 + 1), Some(evil));
            let end = bytes.len() - 4 * BLOCK;
            bytes.truncate(end);
            bytes.extend_from_slice(&other.bytes[other.signature_at()..]);
            bytes
        }
        // A range of it that is another archive's.
        8 => {
            let mut bytes = one.bytes.clone();
            let at = random.below(bytes.len() / BLOCK) * BLOCK;
            let len = (BLOCK << random.below(5)).min(bytes.len() - at);
            let end = (at + len).min(foreign.bytes.len());
            if at < end {
                bytes[at..end].copy_from_slice(&foreign.bytes[at..end]);
            }
            bytes
        }
        // Cut, and a tail that goes with what is left.
        _ => {
            let mut bytes = foreign.sealed(None, None);
            bytes.truncate(random.below(bytes.len()));
            bytes
        }
    }
}

/// Takes what `key` has signed and nothing else.
fn requiring(key: &SigningKey) -> TrustPolicy {
    let line = AllowedSigners::line(key.host(), &key.public()).unwrap();
    let signers = AllowedSigners::parse("signers", &line).unwrap();
    TrustPolicy { signers, own: None, requirement: SignatureRequirement::Required }
}

fn restoring(
    archive: &Location,
    out: &std::path::Path,
    checking: VerifyMode,
    trust: TrustPolicy,
) -> RestoreRequest {
    RestoreRequest {
        archive: archive.clone(),
        identities: Identities::default(),
        selection: Selection::All(out.to_owned()),
        format: None,
        method: crate::target::Method::Rewrite,
        cluster_size: None,
        existing: virtfold_base::partial_file::Overwrite::Refuse,
        checking,
        trust,
        workers: 1,
        known: Default::default(),
        parents: Default::default(),
    }
}

#[test]
fn none_of_a_thousand_forged_archives_is_taken_where_a_signature_is_required() {
    let folder = tempfile::tempdir().unwrap();
    let (web, evil) = (SigningKey::new("web").unwrap(), SigningKey::new("web").unwrap());
    let policy = requiring(&web);
    let make = |byte, key: Option<&SigningKey>| {
        Archive::of(Archive::make(folder.path(), byte, key, Compression::None))
    };
    let good = [make(1, Some(&web)), make(2, Some(&web)), make(1, Some(&web))];
    let strange = [make(3, None), make(1, None), make(4, Some(&evil))];
    let framed = Archive::make(folder.path(), 1, Some(&web), Compression::Zstd { level: 1 });
    let request = VerifyRequest {
        archive: Location::Pipe,
        identities: Identities::default(),
        trust: policy.clone(),
        workers: 1,
        known: Default::default(),
    };
    let verified = |bytes: &[u8]| {
        verify::run_from(&request, &Control::default(), bytes).is_ok_and(|report| report.sound)
    };
    // By its end alone, as a restore opens it: what is taken is an end that the host has signed.
    let taken = |bytes: &[u8]| -> Result<Option<[u8; 32]>> {
        let source = ArchiveFile::open(Arc::new(InMemory(Arc::new(bytes.to_vec()))), &Identities::default())?;
        let index = ArchiveIndex::open(&source, &crate::inspect::read_options(), Trust::Strict)?;
        policy.admit("forged", policy.judge_end(index.tail()))?;
        Ok(index.tail().map(|tail| tail.root))
    };
    for archive in &good {
        assert!(verified(&archive.bytes) && taken(&archive.bytes).is_ok());
    }
    assert!(verified(&framed));
    let mut roots = vec![taken(&framed).unwrap()];
    roots.extend(good.iter().map(|archive| Some(archive.root)));
    let mut random = Random(4711);
    let mut forged = 0;
    while forged < FORGERIES {
        let bytes = match random.below(8) {
            0 => {
                let mut bytes = framed.clone();
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
                bytes
            }
            _ => forge(&mut random, &good, &strange, &evil),
        };
        // What came out as one that the host did make is no forgery.
        if good.iter().any(|archive| archive.bytes == bytes) {
            continue;
        }
        forged += 1;
        assert!(!verified(&bytes), "forgery {forged} is taken");
        if let Ok(root) = taken(&bytes) {
            assert!(roots.contains(&root), "forgery {forged} is taken");
        }
    }
}

/// By whatever way it comes, an archive that is refused has made nothing.
#[test]
fn a_restore_of_an_archive_that_is_not_authentic_makes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (web, evil) = (SigningKey::new("web").unwrap(), SigningKey::new("web").unwrap());
    let trust = requiring(&web);
    let path = folder.path().join("archive.tar");
    for (key, is_taken) in [(Some(&web), true), (Some(&evil), false), (None, false)] {
        let bytes = Archive::make(folder.path(), 7, key, Compression::None);
        std::fs::write(&path, &bytes).unwrap();
        for (archive, checking) in [
            (Location::Path(path.clone()), VerifyMode::All),
            (Location::Path(path.clone()), VerifyMode::Partial),
            (Location::Pipe, VerifyMode::All),
            (Location::Pipe, VerifyMode::Partial),
        ] {
            let out = tempfile::tempdir().unwrap();
            let request = restoring(&archive, out.path(), checking, trust.clone());
            let restored = match archive {
                Location::Pipe => crate::restore::run_from(&request, &Control::default(), bytes.as_slice()),
                _ => crate::restore::run(&request, &Control::default()),
            };
            let made = std::fs::read_dir(out.path()).unwrap().count();
            match is_taken {
                true => {
                    assert!(restored.unwrap().authenticity.is_authentic());
                    assert_eq!(made, 1);
                }
                false => {
                    assert_eq!(restored.unwrap_err().kind(), ErrorKind::Refused, "{archive}, {checking:?}");
                    assert_eq!(made, 0, "{archive}, {checking:?}");
                }
            }
        }
    }
}

/// A signature that is damaged is said to be that, by a restore of what is left, too.
#[test]
fn a_damaged_signature_is_never_no_signature() {
    let folder = tempfile::tempdir().unwrap();
    let web = SigningKey::new("web").unwrap();
    let mut bytes = Archive::make(folder.path(), 7, Some(&web), Compression::None);
    let at = bytes.len() - 2 * BLOCK - BLOCK + 100;
    bytes[at] ^= 1;
    for requirement in [SignatureRequirement::Optional, SignatureRequirement::Required] {
        let out = tempfile::tempdir().unwrap();
        let trust = TrustPolicy { requirement, ..TrustPolicy::default() };
        let request = restoring(&Location::Pipe, out.path(), VerifyMode::Partial, trust);
        let restored = crate::restore::run_from(&request, &Control::default(), bytes.as_slice());
        match requirement {
            SignatureRequirement::Optional => {
                let report = restored.unwrap();
                assert_eq!(report.authenticity, Authenticity::Unreadable);
                assert!(report.notes.iter().any(|note| note.contains("signature")), "{:?}", report.notes);
            }
            SignatureRequirement::Required => assert_eq!(restored.unwrap_err().kind(), ErrorKind::Refused),
        }
    }
}

/// A frame of a framed archive (FORMAT.md, "Framed").
struct Frame {
    range: std::ops::Range<usize>,
    number: u64,
    at: u64,
}

fn frames(bytes: &[u8]) -> Vec<Frame> {
    let field = |at: usize, len| bytes[at..at + len].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
    let mut found = Vec::new();
    let mut at = 0;
    while bytes[at + 8..].starts_with(b"VIRTFOLD") {
        let end = at + 100 + usize::try_from(field(at + 56, 4)).unwrap();
        found.push(Frame { range: at..end, number: field(at + 36, 8), at: field(at + 44, 8) });
        at = end;
    }
    found
}

/// Frames vouch for their bytes, and nobody for where they say that those belong but the digests' order: an
/// archive that a host signed is framed anew, some of its chunks a block further on.
#[test]
fn signed_bytes_go_nowhere_but_to_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let web = SigningKey::new("web").unwrap();
    let mut random = Random(4);
    let disk: Vec<u8> = (0..8 << 20).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
    let good = Archive::make_of(folder.path(), &disk, Some(&web), Compression::Zstd { level: 1 });
    let mut forged = Vec::new();
    for Frame { range, number, at } in frames(&good) {
        let mut frame = good[range].to_vec();
        let mut forge = |number: u64, at: u64| {
            frame[36..44].copy_from_slice(&number.to_le_bytes());
            frame[44..52].copy_from_slice(&at.to_le_bytes());
            let sum = crc32c::crc32c(&frame[..96]);
            frame[96..100].copy_from_slice(&sum.to_le_bytes());
        };
        match at >> 20 {
            0 | 1 => {}
            // The first of them as if a frame of a block were missing before it.
            2..5 => forge(number + 1, at + 512),
            // What is moved leaves no room for the next one.
            5 => continue,
            _ => forge(number + 1, at),
        }
        forged.extend(frame);
    }
    let path = folder.path().join("forged.tar.zst");
    std::fs::write(&path, forged).unwrap();
    let out = tempfile::tempdir().unwrap();
    let request = restoring(&Location::Path(path), out.path(), VerifyMode::Partial, requiring(&web));
    let report = crate::restore::run(&request, &Control::default()).unwrap();
    assert!(report.authenticity.is_authentic(), "its end is the host's");
    let restored = std::fs::read(out.path().join("vda.raw")).unwrap();
    let mut expected = disk.clone();
    for lost in &report.damage {
        let range = usize::try_from(lost.start).unwrap()..usize::try_from(lost.start + lost.length).unwrap();
        expected[range].fill(0);
    }
    let lost: u64 = report.damage.iter().map(|lost| lost.length).sum();
    assert!(restored == expected, "bytes are where they do not belong");
    assert!(lost > 3 << 20 && lost < 5 << 20, "{lost} bytes are lost");
}
