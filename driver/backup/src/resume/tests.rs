//! Records that are torn, damaged, in use.

use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::Control;
use crate::increment::ChangeHint;
use crate::options::{BackupKindRule, BackupOptions};
use crate::session::{BackupInput, BackupSession, InputDisk};
use virtfold_archive::sign::SigningKey;
use virtfold_archive::stream::{ChunkLog, ChunkRecord, Compression, Digest};
use virtfold_image::{DiskImage, Format, OpenOptions};
use virtfold_medium::{DurableMark, Location, PartialArchive};

fn chunk(number: u32) -> ChunkRecord {
    ChunkRecord { digest: Digest::of(&number.to_le_bytes()), stored: number, len: 1 << 20 }
}

/// An image, a place for archives, and the state directory.
struct Lab {
    folder: tempfile::TempDir,
    keys: std::path::PathBuf,
    memory: tempfile::TempDir,
    place: [Location; 1],
    encrypt_to: Option<Recipients>,
    signing_key: Option<Arc<SigningKey>>,
    kind: BackupKindRule,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut image = std::fs::File::create(folder.path().join("a.raw")).unwrap();
        (0..3_u8).for_each(|n| image.write_all(&vec![n + 1; 1 << 20]).unwrap());
        std::fs::create_dir(folder.path().join("archives")).unwrap();
        let place = [Location::Path(folder.path().join("archives"))];
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let keys = memory.path().join("keys");
        Self { folder, keys, memory, place, encrypt_to: None, signing_key: None, kind: BackupKindRule::Full }
    }

    fn destinations(&self) -> Destinations<'static> {
        Destinations::local(self.place.clone())
    }

    fn state(&self) -> StateDirectories {
        StateDirectories { state: self.folder.path().to_owned(), keys: self.keys.clone() }
    }

    fn records(&self) -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(self.folder.path().join("resume")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// A backup; `meanwhile` is done when it has begun.
    fn backup(&self, policy: ResumePolicy, meanwhile: impl FnOnce()) -> Result<crate::session::BackupReport> {
        let image = DiskImage::open(&self.folder.path().join("a.raw"), Format::Raw, &OpenOptions::default())?;
        let subject = virtfold_archive::manifest::BackupSubject::Images {
            name: "a".to_owned(),
            labelled: true,
            paths: Vec::new(),
        };
        let options = BackupOptions {
            compression: Compression::None,
            encrypt_to: self.encrypt_to.clone(),
            signing_key: self.signing_key.clone(),
            workers: 1,
            resume: policy,
            kind: self.kind,
            ..BackupOptions::default()
        };
        let control = Control::default();
        let (destinations, state) = (self.destinations(), self.state());
        let session = BackupSession {
            options: &options,
            destinations: &destinations,
            state: &state,
            control: &control,
        };
        let material = BackupInput {
            parent: session.parent(&subject)?,
            subject,
            freeze: None,
            attachments: vec![Attachment { name: "x".to_owned(), content: vec![1, 2, 3] }],
            disks: vec![InputDisk { target: "vda".to_owned(), image, hint: ChangeHint::Unknown }],
            checkpoint: None,
            session: None,
        };
        let written = session.write(material)?;
        meanwhile();
        written.finish(&control)
    }

    /// A backup that is killed at its very end: what it leaves is put back when it has cleaned up.
    fn killed(&self) {
        let root = self.folder.path();
        let aside = root.join("aside");
        let link = |from: &Path, to: &Path| {
            std::fs::create_dir_all(to).unwrap();
            for entry in std::fs::read_dir(from).unwrap() {
                let path = entry.unwrap().path();
                let to = to.join(path.file_name().unwrap());
                if !to.exists() {
                    std::fs::hard_link(&path, to).unwrap();
                }
            }
        };
        let mut record = std::path::PathBuf::new();
        let done = self.backup(ResumePolicy::Never, || {
            record = self.records().remove(0);
            link(&record, &aside.join("record"));
            if self.encrypt_to.is_some() {
                link(&self.keys, &self.memory.path().join("aside"));
            }
            link(&root.join("archives"), &aside.join("archives"));
        });
        std::fs::remove_file(done.unwrap().archive).unwrap();
        link(&aside.join("record"), &record);
        link(&aside.join("archives"), &root.join("archives"));
        if self.encrypt_to.is_some() {
            link(&self.memory.path().join("aside"), &self.keys);
        }
        std::fs::remove_dir_all(&aside).unwrap();
    }

    fn keys(&self) -> usize {
        std::fs::read_dir(&self.keys).map_or(0, Iterator::count)
    }

    fn archives(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("archives")).unwrap().count()
    }
}

#[test]
fn a_record_goes_with_its_archive_and_a_second_run_goes_on_with_it() {
    let lab = Lab::new();
    lab.backup(ResumePolicy::IfPossible, || assert_eq!(lab.records().len(), 1)).unwrap();
    assert_eq!((lab.records().len(), lab.archives()), (0, 1));
    let lab = Lab::new();
    lab.killed();
    let id = lab.records()[0].file_name().unwrap().to_str().unwrap().to_owned();
    let report = lab.backup(ResumePolicy::IfPossible, || {}).unwrap();
    assert_eq!((report.id.to_string(), report.resumed_at), (id, Some(0)));
    assert_eq!((lab.records().len(), lab.archives()), (0, 1));
}

/// What is left out of a resumed increment is digested all the same: the next one tells by it.
#[test]
fn an_increment_is_resumed_and_continued() {
    let lab = Lab { kind: BackupKindRule::Incremental, ..Lab::new() };
    let remember = |report: &crate::session::BackupReport| {
        let copies = crate::retention::copies(report, &lab.destinations(), None).unwrap();
        virtfold_catalog::Catalog::open(&lab.state().state).unwrap().remember(&copies).unwrap();
    };
    let write = |at: u64, byte: u8| {
        use std::os::unix::fs::FileExt;
        let image = std::fs::OpenOptions::new().write(true).open(lab.folder.path().join("a.raw")).unwrap();
        image.write_all_at(&vec![byte; 1 << 20], at).unwrap();
    };
    let full = lab.backup(ResumePolicy::IfPossible, || {}).unwrap();
    remember(&full);
    write(1 << 20, 77);
    lab.killed();
    let killed = lab.records()[0].file_name().unwrap().to_str().unwrap().to_owned();
    std::fs::remove_file(lab.folder.path().join("blocks").join(&killed)).unwrap();
    let resumed = lab.backup(ResumePolicy::IfPossible, || {}).unwrap();
    assert_eq!((resumed.id.to_string(), resumed.parent), (killed, Some(full.id)));
    assert!(resumed.resumed_at.is_some());
    assert_eq!(resumed.disks[0].dense_length, 1 << 20);
    remember(&resumed);
    let none = lab.backup(ResumePolicy::IfPossible, || {}).unwrap();
    assert_eq!((none.parent, none.disks[0].dense_length), (Some(resumed.id), 0));

    // One that was begun before another backup ended continues nothing that is the newest.
    write(0, 78);
    lab.killed();
    remember(&none);
    let anew = lab.backup(ResumePolicy::IfPossible, || {}).unwrap();
    assert_eq!((anew.parent, anew.resumed_at), (Some(none.id), None));
}

/// What is reused is what was written, whatever has become of the file since.
#[test]
fn a_partial_file_that_was_damaged_meanwhile_makes_no_damaged_archive() {
    use std::os::unix::fs::FileExt;
    let key = age::x25519::Identity::generate();
    let public = key.to_public().to_string();
    for encrypt_to in [None, Recipients::gather(&[public], None).unwrap()] {
        for damage in [None, Some(100), Some(1_500_000)] {
            let mut lab = Lab::new();
            lab.encrypt_to = encrypt_to.clone();
            lab.killed();
            let synced = DurableMark::Synced { bytes: 2_300_000 };
            let marks = lab.records()[0].join("marks");
            let mut marks = std::fs::OpenOptions::new().append(true).open(marks).unwrap();
            marks.write_all(&record::encode_mark(&synced).unwrap()).unwrap();
            let mut entries = std::fs::read_dir(lab.folder.path().join("archives")).unwrap();
            let partial = entries.next().unwrap().unwrap().path();
            let partial = std::fs::OpenOptions::new().read(true).write(true).open(partial).unwrap();
            if let Some(at) = damage {
                let mut byte = [0];
                partial.read_exact_at(&mut byte, at).unwrap();
                partial.write_all_at(&[byte[0] ^ 1], at).unwrap();
            }
            let report = lab.backup(ResumePolicy::IfPossible, || {}).unwrap();
            let at = report.resumed_at.unwrap();
            let kept = match damage {
                None => 1 << 20..=2_300_000,
                Some(100) => 0..=0,
                Some(_) => 1 << 20..=1_500_000,
            };
            assert!(kept.contains(&at), "{damage:?}, encrypted: {}: {at}", encrypt_to.is_some());
            let request = crate::verify::VerifyRequest {
                archive: Location::Path(report.archive.into()),
                identities: virtfold_archive::crypt::Identities::of(vec![key.clone()]),
                trust: Default::default(),
                workers: 1,
                known: Default::default(),
            };
            let verified = crate::verify::run(&request, &Control::default()).unwrap();
            assert!(verified.sound, "{damage:?}, encrypted: {}: {verified:?}", encrypt_to.is_some());
        }
    }
}

#[test]
fn what_a_record_does_not_prove_is_not_gone_on_with() {
    let damage =
        |name: &'static str| move |lab: &Lab| std::fs::write(lab.records()[0].join(name), b"{}").unwrap();
    let touch = |lab: &Lab| {
        let image = std::fs::OpenOptions::new().write(true).open(lab.folder.path().join("a.raw")).unwrap();
        image.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    };
    type Case<'a> = (&'a dyn Fn(&Lab), usize);
    let cases: [Case<'_>; 5] = [
        // Nobody knows what that was; it is left alone.
        (&damage("origin.json"), 1),
        (&damage("virtfold.json"), 0),
        (&damage("member-0"), 0),
        (&damage("rows-0"), 0),
        (&touch, 0),
    ];
    for (number, (change, left)) in cases.into_iter().enumerate() {
        let lab = Lab::new();
        lab.killed();
        change(&lab);
        let error = lab.backup(ResumePolicy::Required, || {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse, "{number}");
        assert_eq!(lab.records().len(), left, "{number}");
        let report = lab.backup(ResumePolicy::IfPossible, || {}).unwrap();
        assert_eq!(report.resumed_at, None, "{number}");
    }
}

#[test]
fn an_encrypted_archive_is_gone_on_with_by_whoever_has_its_key() {
    let key = || age::x25519::Identity::generate().to_public().to_string();
    let to = |keys: &[String]| Recipients::gather(keys, None).unwrap();
    let (first, second) = (key(), key());
    let begun = || {
        let lab = Lab { encrypt_to: to(&[first.clone(), second.clone()]), ..Lab::new() };
        lab.killed();
        assert_eq!((lab.records().len(), lab.keys()), (1, 1));
        lab
    };
    let lab = begun();
    let report = lab.backup(ResumePolicy::Required, || {}).unwrap();
    assert_eq!(report.resumed_at, Some(0));
    assert_eq!((lab.records().len(), lab.keys(), lab.archives()), (0, 0, 1));
    // Another key, another order of the same, none at all; no key that was kept.
    for (number, others) in [to(&[key()]), to(&[second.clone(), first.clone()]), None].into_iter().enumerate()
    {
        let lab = Lab { encrypt_to: others, ..begun() };
        let error = lab.backup(ResumePolicy::Required, || {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse, "{number}");
        assert_eq!((lab.records().len(), lab.keys(), lab.archives()), (0, 0, 0), "{number}");
    }
    let lab = begun();
    let stored = std::fs::read_dir(&lab.keys).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_file(stored).unwrap();
    let report = lab.backup(ResumePolicy::IfPossible, || {}).unwrap();
    assert_eq!((report.resumed_at, lab.archives()), (None, 1));
    // A directory on a disk is no place for a key.
    let disk = tempfile::tempdir_in("/var/tmp").unwrap();
    let lab =
        Lab { keys: disk.path().to_owned(), encrypt_to: to(std::slice::from_ref(&first)), ..Lab::new() };
    lab.backup(ResumePolicy::IfPossible, || assert_eq!((lab.records().len(), lab.keys()), (0, 0))).unwrap();
}

/// Each signed archive names the one before it, a resumed one the one that was before it when it was begun.
#[test]
fn a_resumed_archive_keeps_its_place_in_the_chain_and_its_key() {
    let key = || Some(Arc::new(SigningKey::new("web").unwrap()));
    let mut lab = Lab { signing_key: key(), ..Lab::new() };
    let link = |report: &crate::session::BackupReport| report.signed.clone().unwrap();
    let first = lab.backup(ResumePolicy::IfPossible, || {}).unwrap();
    assert_eq!((link(&first).sequence, link(&first).previous), (1, None));
    std::fs::remove_file(&first.archive).unwrap();
    lab.killed();
    let resumed = lab.backup(ResumePolicy::Required, || {}).unwrap();
    assert_eq!(resumed.resumed_at, Some(0));
    // The killed one had taken number 2; the run that resumed it took one that is nobody's.
    let second = link(&resumed);
    let previous = second.previous.clone().unwrap();
    assert_eq!((second.sequence, previous.archive, previous.sequence), (2, first.id, 1));
    assert_eq!(previous.root, first.root);
    let third = lab.backup(ResumePolicy::IfPossible, || {}).unwrap();
    assert!(link(&third).sequence > second.sequence);
    assert_eq!(link(&third).previous.unwrap().archive, resumed.id);
    // Another key's signature would not be the one that was begun.
    [resumed.archive, third.archive].iter().for_each(|archive| std::fs::remove_file(archive).unwrap());
    lab.killed();
    lab.signing_key = key();
    let error = lab.backup(ResumePolicy::Required, || {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    let anew = lab.backup(ResumePolicy::IfPossible, || {}).unwrap();
    assert_eq!(anew.resumed_at, None);
}

#[test]
fn nobody_takes_a_living_run_s_record() {
    let lab = Lab::new();
    lab.backup(ResumePolicy::IfPossible, || {
        let second = lab.backup(ResumePolicy::IfPossible, || assert_eq!(lab.records().len(), 2)).unwrap();
        assert_eq!(second.resumed_at, None);
        assert_eq!(lab.records().len(), 1);
    })
    .unwrap();
    assert_eq!(lab.archives(), 2);
}

#[test]
fn a_job_s_record_goes_when_its_job_is_closed() {
    let lab = Lab::new();
    lab.killed();
    discard_closed(lab.folder.path(), |_| false, &lab.destinations()).unwrap();
    assert_eq!(lab.records().len(), 1, "it is of no job");
    let (state, destinations) = (lab.state(), lab.destinations());
    let session = Some(Uuid::nil());
    let of_another = ResumeContext {
        state: &state,
        destinations: &destinations,
        session,
        policy: ResumePolicy::IfPossible,
    };
    assert!(of_job(&of_another).unwrap().is_none());
}

proptest! {
    /// Cut or changed anywhere, a log gives what is before that place.
    #[test]
    fn logs_end_where_they_are_wrong(count in 0_u32..20, at in any::<prop::sample::Index>(), flip in any::<bool>()) {
        let id = Uuid::from_u128(7);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chunks");
        let mut log = ChunkJournal::to(std::fs::File::create(&path).unwrap(), id);
        (0..count).for_each(|n| log.note(n.into(), &chunk(n)).unwrap());
        let whole = std::fs::read(&path).unwrap();
        prop_assert_eq!(whole.len(), count as usize * 44);
        let place = at.index(whole.len() + 1);
        let mut bytes = whole.clone();
        match bytes.get_mut(place) {
            Some(byte) if flip => *byte ^= 0x10,
            _ => bytes.truncate(place),
        }
        let (chunks, right) = read_chunks(id, bytes.as_slice()).unwrap();
        prop_assert_eq!(right, (place / 44 * 44) as u64);
        for n in 0..u32::try_from(place / 44).unwrap() {
            prop_assert_eq!(chunks.get(n.into()).unwrap(), chunk(n));
        }
        prop_assert_eq!(read_chunks(Uuid::nil(), whole.as_slice()).unwrap().1, 0, "another archive's");
    }

    #[test]
    fn marks_end_where_they_are_wrong(numbers in prop::collection::vec(0_u64..9, 0..12), at in any::<prop::sample::Index>(), flip in any::<bool>()) {
        let marks: Vec<DurableMark> = numbers.iter().map(|n| match n {
            0 => DurableMark::File { temporary: "/x".into(), identity: (1, 2) },
            1..5 => DurableMark::Synced { bytes: *n },
            5 => DurableMark::Upload { id: "u\n".into(), mark: "m".into(), part: 5 },
            _ => DurableMark::Part { number: *n, id: "\"e\"".into(), bytes: 5 },
        }).collect();
        let lines: Vec<Vec<u8>> = marks.iter().map(|mark| record::encode_mark(mark).unwrap()).collect();
        let mut bytes = lines.concat();
        let place = at.index(bytes.len() + 1);
        match bytes.get_mut(place) {
            // Letters of a CRC may be written large.
            Some(byte) if flip => *byte ^= 0x01,
            _ => bytes.truncate(place),
        }
        let mut remains = PartialArchive::default();
        let mut end = 0;
        for (mark, line) in marks.into_iter().zip(&lines) {
            if end + line.len() > place {
                break;
            }
            end += line.len();
            remains.take(mark);
        }
        prop_assert_eq!(read_marks(&bytes), (remains, end as u64));
    }

    #[test]
    fn no_bytes_are_a_defect(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        drop(Fingerprint::parse(&bytes));
        read_chunks(Uuid::nil(), bytes.as_slice()).unwrap();
        read_marks(&bytes);
    }
}
