//! Archives to simulated drives and back: spans, faults, wrong tapes; property tests against what was
//! written.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::{Medium, TapeArchive};
use virtfold_archive::stream::{Cancel, Sink};
use virtfold_base::error::{Error, ErrorKind, Result};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const NAME: &str = "web-20261122T030000Z-5f1c2d3e.tar";

/// A ledger in memory.
#[derive(Debug, Default)]
pub(super) struct MemoryCatalog {
    placed: Mutex<Vec<PartLocation>>,
    pub(super) failed: Mutex<BTreeMap<Uuid, String>>,
}

impl TapeCatalog for MemoryCatalog {
    fn failure(&self, volume: Uuid) -> Result<Option<String>> {
        Ok(self.failed.lock().unwrap().get(&volume).cloned())
    }

    fn committed(&self, placed: &PartLocation) -> Result<()> {
        self.placed.lock().unwrap().push(placed.clone());
        Ok(())
    }

    fn failed(&self, label: &VolumeLabel, why: &str) -> Result<()> {
        self.failed.lock().unwrap().insert(label.volume, why.to_owned());
        Ok(())
    }

    fn set_contents(&self, contents: &VolumeContents, replaced: Option<Uuid>) -> Result<()> {
        let mut placed = self.placed.lock().unwrap();
        placed.retain(|p| p.label.volume != contents.label.volume && Some(p.label.volume) != replaced);
        let parts = contents.parts.iter().cloned();
        placed.extend(parts.map(|part| PartLocation { label: contents.label.clone(), part }));
        Ok(())
    }

    fn forget(&self, volume: Uuid) -> Result<()> {
        self.placed.lock().unwrap().retain(|p| p.label.volume != volume);
        Ok(())
    }

    fn archives(&self, id: &str) -> Result<Vec<PartLocation>> {
        let mut placed = self.placed.lock().unwrap().clone();
        placed.retain(|p| has_id(&p.part.begin.archive, id));
        placed.sort_by_key(|p| (p.part.begin.run, p.part.begin.part));
        Ok(placed)
    }
}

/// Puts the slots of a list in, one after the other.
struct Slots(SimulatedDrive, Vec<usize>);

impl Changer for Slots {
    fn change(&mut self, change: &VolumeRequest<'_>, _: &Cancel) -> Result<()> {
        if let Some(why) = change.refused {
            return Err(Error::new(ErrorKind::NotFound, why.to_owned()));
        }
        if self.1.is_empty() {
            return Err(Error::new(ErrorKind::NoSpace, "no more tapes"));
        }
        self.0.load(self.1.remove(0));
        Ok(())
    }
}

/// A drive with labelled tapes, and a memory.
pub(super) struct Bench {
    pub(super) drive: SimulatedDrive,
    pub(super) notes: Arc<MemoryCatalog>,
}

impl Bench {
    pub(super) fn new(tapes: usize, capacity: u64) -> Self {
        let bench = Self { drive: SimulatedDrive::with_tapes(tapes, capacity), notes: Arc::default() };
        for slot in (0..tapes).rev() {
            bench.drive.load(slot);
            bench.care().label(&new_label(&format!("T{slot}")), Overwrite::Refuse).unwrap();
        }
        bench
    }

    pub(super) fn care(&self) -> VolumeAdmin<'_> {
        let drive = Box::new(self.drive.clone());
        VolumeAdmin::new(drive, self.notes.as_ref(), Duration::ZERO, Cancel::default())
    }

    pub(super) fn setup(&self, slots: &[usize]) -> TapeWriteOptions {
        TapeWriteOptions {
            drive: Box::new(self.drive.clone()),
            changer: Box::new(Slots(self.drive.clone(), slots.to_vec())),
            ledger: Arc::clone(&self.notes) as Arc<dyn TapeCatalog>,
            pool: None,
            ring: 4 * MIB,
            commit_every: u64::MAX,
            patience: Duration::ZERO,
            cancel: Cancel::default(),
        }
    }

    pub(super) fn write(&self, name: &str, bytes: &[u8], slots: &[usize]) -> Result<()> {
        let mut medium = Box::new(TapeMedium::begin(self.setup(slots), name)?);
        for piece in bytes.chunks(100_000) {
            medium.write(piece)?;
        }
        let durable = medium.finish()?;
        assert_eq!(durable.bytes, bytes.len() as u64);
        Ok(())
    }

    pub(super) fn reading(&self, slots: &[usize], ledger: Arc<dyn TapeCatalog>) -> TapeReadOptions {
        TapeReadOptions {
            drive: Box::new(self.drive.clone()),
            changer: Box::new(Slots(self.drive.clone(), slots.to_vec())),
            ledger,
            patience: Duration::ZERO,
            cancel: Cancel::default(),
        }
    }

    pub(super) fn read_from(
        &self,
        which: &TapeArchive,
        slots: &[usize],
        ledger: Arc<dyn TapeCatalog>,
    ) -> Result<Vec<u8>> {
        let mut source = TapeSource::open(self.reading(slots, ledger), which)?;
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes).map_err(|e| Error::io("reading failed", e))?;
        Ok(bytes)
    }

    pub(super) fn read(&self, slots: &[usize]) -> Result<Vec<u8>> {
        self.read_from(&id("5f1c2d3e"), slots, Arc::clone(&self.notes) as Arc<dyn TapeCatalog>)
    }

    pub(super) fn objects(&self, slot: usize) -> Vec<Option<Vec<u8>>> {
        self.drive.with_tape(slot, |tape| tape.objects.clone()).unwrap()
    }
}

pub(super) fn id(text: &str) -> TapeArchive {
    TapeArchive::Id(text.to_owned())
}

fn new_label(label: &str) -> NewLabel {
    NewLabel {
        label: label.to_owned(),
        pool: "default".to_owned(),
        block_size: TapeBlock::new(64 << 10).unwrap(),
        retain_until: None,
    }
}

pub(super) fn bytes(len: u64, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// The data files of a tape, one after the other: what dd would give.
pub(super) fn data(objects: &[Option<Vec<u8>>]) -> Vec<u8> {
    let mut file = 0;
    let mut data = Vec::new();
    for object in objects {
        match object {
            None => file += 1,
            Some(block) if file % 3 == 2 => data.extend_from_slice(block),
            Some(_) => {}
        }
    }
    data
}

#[test]
fn goes_out_and_comes_back_and_lies_there_as_it_is() {
    let bench = Bench::new(1, 64 * MIB);
    for (number, len) in [0, 1, 65_536, 65_537, 3_000_000].into_iter().enumerate() {
        let archive = bytes(len, number as u64);
        let name = format!("web-0000000{number}.tar");
        bench.write(&name, &archive, &[]).unwrap();
        let which = id(&format!("0000000{number}"));
        for ledger in [Arc::clone(&bench.notes) as Arc<dyn TapeCatalog>, Arc::new(NoTapeCatalog)] {
            assert!(bench.read_from(&which, &[], Arc::clone(&ledger)).unwrap() == archive, "{len}");
            assert!(bench.read_from(&TapeArchive::Latest, &[], ledger).unwrap() == archive, "{len}");
        }
    }
    assert!(!bench.drive.compresses());
    let contents = bench.care().list().unwrap();
    assert_eq!(contents.parts.len(), 5);
    let files: Vec<u64> = contents.parts.iter().map(|part| part.file).collect();
    assert_eq!(files, [2, 5, 8, 11, 14]);
    assert!(
        contents
            .parts
            .iter()
            .all(|part| part.end.as_ref().is_some_and(|end| end.file == part.file && end.last))
    );
    assert_eq!(data(&bench.objects(0)).len(), 1 + 65_536 + 65_537 + 3_000_000);
    assert!(bench.care().verify(&|_| ()).unwrap().sound);
}

#[test]
fn goes_over_three_volumes_and_comes_back_from_them() {
    let bench = Bench::new(3, 4 * MIB);
    let archive = bytes(10 * MIB, 1);
    bench.write(NAME, &archive, &[1, 2]).unwrap();
    let dd: Vec<u8> = (0..3).flat_map(|slot| data(&bench.objects(slot))).collect();
    assert!(dd == archive, "the data files, one after the other, are the archive");
    bench.drive.load(0);
    assert!(bench.read(&[1, 2]).unwrap() == archive);
    // Without a memory: by what the tapes say. From the last volume on, it names the ones before.
    bench.drive.load(0);
    assert!(bench.read_from(&id("5f1c2d3e"), &[1, 2], Arc::new(NoTapeCatalog)).unwrap() == archive);
    bench.drive.load(2);
    assert!(bench.read_from(&TapeArchive::Latest, &[0, 1, 2], Arc::new(NoTapeCatalog)).unwrap() == archive);
    // Volumes in the wrong order are said.
    bench.drive.load(0);
    assert_eq!(bench.read(&[2]).unwrap_err().kind(), ErrorKind::NotFound);
    // Another archive goes on behind the last part.
    let second = bytes(100_000, 2);
    bench.drive.load(2);
    bench.write("b-00000002.tar", &second, &[]).unwrap();
    assert!(bench.read_from(&id("00000002"), &[], Arc::new(NoTapeCatalog)).unwrap() == second);
}

#[test]
fn without_more_tapes_that_is_said_and_nothing_looks_whole() {
    let bench = Bench::new(2, 4 * MIB);
    let error = bench.write(NAME, &bytes(10 * MIB, 1), &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
    bench.drive.load(0);
    assert_eq!(
        bench.read_from(&TapeArchive::Latest, &[], Arc::new(NoTapeCatalog)).unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

/// A guest whose overlays run out of room can't wait for the next tape.
#[test]
fn who_waits_for_a_tape_can_be_told_to_end() {
    struct Never;
    impl Changer for Never {
        fn change(&mut self, _: &VolumeRequest<'_>, stop: &Cancel) -> Result<()> {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(Error::new(ErrorKind::Interrupted, "told to end"))
        }
    }
    let bench = Bench::new(1, 4 * MIB);
    let cancel = Cancel::default();
    let setup =
        TapeWriteOptions { changer: Box::new(Never), cancel: Arc::clone(&cancel), ..bench.setup(&[]) };
    let mut medium = TapeMedium::begin(setup, NAME).unwrap();
    let thread = std::thread::spawn(move || {
        let piece = bytes(MIB, 1);
        (0..100).try_for_each(|_| medium.write(&piece))
    });
    std::thread::sleep(Duration::from_millis(100));
    assert!(!thread.is_finished(), "the ring is full, and no tape comes");
    cancel.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(thread.join().unwrap().unwrap_err().kind(), ErrorKind::Interrupted);
}

/// A run that is given up closes the drive, and the kernel then writes a filemark: not where another tape is
/// in the drive by now.
#[test]
fn a_run_that_is_dropped_spares_a_tape_that_was_put_in_meanwhile() {
    let bench = Bench::new(2, 64 * MIB);
    let mut medium = TapeMedium::begin(bench.setup(&[]), NAME).unwrap();
    medium.write(&bytes(20 * MIB, 5)).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let before = bench.objects(1);
    bench.drive.load(1);
    drop(medium);
    assert_eq!(bench.objects(1), before);
}

#[test]
fn a_run_that_is_dropped_leaves_no_archive_and_others_go_behind_it() {
    let bench = Bench::new(1, 64 * MIB);
    for len in [0, 10, 5_000_000] {
        let mut medium = TapeMedium::begin(bench.setup(&[]), "x-0000000a.tar").unwrap();
        medium.write(&bytes(len, 5)).unwrap();
        drop(medium);
        assert_eq!(
            bench.read_from(&TapeArchive::Latest, &[], Arc::new(NoTapeCatalog)).unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }
    let archive = bytes(100_000, 6);
    bench.write(NAME, &archive, &[]).unwrap();
    assert!(bench.read(&[]).unwrap() == archive);
    assert!(bench.care().list().unwrap().parts.len() > 1);
}

/// Whatever breaks off at whatever object: what is appended behind it is read again.
#[test]
fn a_tape_cut_at_any_object_takes_the_next_archive() {
    let whole = Bench::new(1, 64 * MIB);
    whole.write("a-0000000a.tar", &bytes(100_000, 1), &[]).unwrap();
    whole.write("b-0000000b.tar", &bytes(0, 2), &[]).unwrap();
    let objects = whole.objects(0);
    for cut in 1..=objects.len() {
        let bench = Bench::new(1, 64 * MIB);
        let kept = objects[..cut].to_vec();
        bench.drive.with_tape(0, |tape| tape.objects.clone_from(&kept));
        let archive = bytes(70_000, 3);
        bench.write(NAME, &archive, &[]).unwrap();
        assert!(bench.read(&[]).unwrap() == archive, "cut at {cut}");
        assert!(
            bench.read_from(&id("5f1c2d3e"), &[], Arc::new(NoTapeCatalog)).unwrap() == archive,
            "cut at {cut}"
        );
        assert_eq!(bench.objects(0)[..cut], kept, "nothing that was there is overwritten");
    }
}

#[test]
fn what_is_not_ours_or_is_kept_is_not_overwritten() {
    let bench = Bench::new(1, 64 * MIB);
    // Ours, without archives: may be labelled again.
    bench.care().label(&new_label("A"), Overwrite::Refuse).unwrap();
    bench.write(NAME, &bytes(10, 1), &[]).unwrap();
    assert_eq!(bench.care().label(&new_label("B"), Overwrite::Refuse).unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(bench.care().erase(Overwrite::Refuse).unwrap_err().kind(), ErrorKind::Exists);
    bench.care().label(&new_label("C"), Overwrite::Force).unwrap();
    assert_eq!(bench.read(&[]).unwrap_err().kind(), ErrorKind::NotFound, "the memory forgot what is gone");
    // Kept until a day that has come, and one that has not.
    for (until, refused) in [("2001-01-01T00:00:00Z", false), ("2999-01-01T00:00:00Z", true)] {
        let new = NewLabel { retain_until: Some(until.to_owned()), ..new_label("D") };
        bench.care().label(&new, Overwrite::Force).unwrap();
        bench.write(NAME, &bytes(10, 1), &[]).unwrap();
        assert_eq!(bench.care().label(&new_label("E"), Overwrite::Refuse).is_err(), refused, "{until}");
    }
    for foreign in [&b"VOL1X"[..], b"anything", &vec![0x55; 3 << 20]] {
        bench.drive.with_tape(0, |tape| tape.objects = vec![Some(foreign.to_vec()), None]);
        assert_eq!(
            bench.care().label(&new_label("F"), Overwrite::Refuse).unwrap_err().kind(),
            ErrorKind::Exists
        );
        assert_eq!(bench.write("g-00000007.tar", &[1], &[]).unwrap_err().kind(), ErrorKind::Exists);
        assert_eq!(bench.objects(0), vec![Some(foreign.to_vec()), None]);
    }
    bench.care().erase(Overwrite::Force).unwrap();
    assert_eq!(bench.care().status().unwrap().tape, "blank");
    assert_eq!(bench.write("g-00000007.tar", &[1], &[]).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_failed_volume_is_never_written_to_again() {
    let bench = Bench::new(1, 64 * MIB);
    bench.drive.fault(TapeFault::WriteError(10));
    let error = bench.write(NAME, &bytes(5 * MIB, 1), &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.hint().is_some());
    let before = bench.objects(0);
    let error = bench.write("b-00000001.tar", &[1], &[]).unwrap_err();
    assert!(error.to_string().contains("has failed before"), "{error}");
    assert_eq!(bench.objects(0), before);
    assert!(bench.care().status().unwrap().failed.is_some());
}

#[test]
fn tapes_that_will_not_do_are_said() {
    let bench = Bench::new(2, 64 * MIB);
    bench.drive.with_tape(0, |tape| tape.protected = true);
    let error = bench.write(NAME, &[1], &[]).unwrap_err();
    assert!(error.to_string().contains("write-protected"), "{error}");
    let mut setup = bench.setup(&[]);
    bench.drive.load(1);
    setup.pool = Some("other".to_owned());
    assert_eq!(TapeMedium::begin(setup, NAME).err().unwrap().kind(), ErrorKind::Usage);
    assert!(bench.care().status().unwrap().ready);
    // The same volume again is no next volume.
    let small = Bench::new(1, 2 * MIB);
    assert_eq!(small.write(NAME, &bytes(4 * MIB, 1), &[0]).unwrap_err().kind(), ErrorKind::Exists);
}

/// Every fault at every object of a run over two volumes: success with the right bytes, or an error. Never a
/// loss that nobody says.
#[test]
fn no_fault_at_any_block_is_a_loss_that_nobody_says() {
    let archive = bytes(3 * MIB, 9);
    let clean = Bench::new(2, 2 * MIB);
    clean.write(NAME, &archive, &[1]).unwrap();
    let objects = clean.objects(0).len().max(clean.objects(1).len()) as u64;
    let (mut told, mut harmless) = (0, 0);
    for at in 0..objects {
        let faults = [
            TapeFault::WriteError(at),
            TapeFault::Drop(at),
            TapeFault::Deferred(at, 3),
            TapeFault::Reset(at),
        ];
        for fault in faults {
            let bench = Bench::new(2, 2 * MIB);
            bench.drive.fault(fault);
            let done = bench.write(NAME, &archive, &[1]);
            bench.drive.clear_faults();
            bench.drive.load(0);
            match done {
                Ok(()) => {
                    assert!(bench.read(&[1]).unwrap() == archive, "{fault:?}");
                    harmless += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Io, "{fault:?}: {error:?}");
                    assert_eq!(bench.notes.failed.lock().unwrap().len(), 1, "{fault:?}");
                    bench.drive.load(0);
                    assert!(at < 5 || bench.care().list().is_ok(), "{fault:?}: the label is gone");
                    told += 1;
                }
            }
        }
        for fault in [TapeFault::Corrupt(at), TapeFault::ReadError(at)] {
            clean.drive.load(0);
            clean.drive.fault(fault);
            let read = clean.read(&[1]);
            clean.drive.clear_faults();
            assert!(read.is_err() || read.unwrap() == archive, "{fault:?}");
        }
    }
    assert!(told > 4 * 20, "{told} told, {harmless} harmless");
}

/// `ENOSPC` does not say whether the block is on the tape: the position does.
#[test]
fn a_block_that_is_written_and_refused_is_there_once() {
    let archive = bytes(MIB, 9);
    for at in 2..24 {
        let bench = Bench::new(3, 8 * MIB);
        bench.drive.fault(TapeFault::Full(at));
        bench.write(NAME, &archive, &[1, 2]).unwrap();
        let dd: Vec<u8> = (0..3).flat_map(|slot| data(&bench.objects(slot))).collect();
        assert!(dd == archive, "at {at}");
        bench.drive.load(0);
        assert!(bench.read(&[1, 2]).unwrap() == archive, "at {at}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 48, ..Default::default() })]

    /// Archives of any lengths, in pieces of any lengths, over volumes of any capacities, with and without a
    /// memory.
    #[test]
    fn any_archives_over_any_volumes_come_back(
        lengths in proptest::collection::vec(0_u64..2_500_000, 1..5),
        capacities in proptest::collection::vec(600_000_u64..3_000_000, 16),
        warning in 0_u64..300_000,
        piece in 1_usize..300_000,
    ) {
        let bench = Bench::new(16, 1 << 30);
        for (slot, capacity) in capacities.iter().enumerate() {
            bench.drive.with_tape(slot, |tape| (tape.capacity, tape.warning) = (*capacity, warning));
        }
        bench.drive.load(0);
        let mut written = Vec::new();
        for (number, len) in lengths.iter().enumerate() {
            let archive = bytes(*len, number as u64);
            let from = bench.drive.loaded().unwrap();
            let rest: Vec<usize> = (from + 1..16).collect();
            let mut medium = Box::new(TapeMedium::begin(bench.setup(&rest), &format!("a-0000000{number}.tar")).unwrap());
            for piece in archive.chunks(piece) {
                medium.write(piece).unwrap();
            }
            medium.finish().unwrap();
            written.push((from, bench.drive.loaded().unwrap(), archive));
        }
        for (number, (from, to, archive)) in written.iter().enumerate() {
            for ledger in [Arc::clone(&bench.notes) as Arc<dyn TapeCatalog>, Arc::new(NoTapeCatalog)] {
                let parts = bench.notes.archives(&format!("0000000{number}")).unwrap();
                let slot = |part: &PartLocation| part.label.label[1..].parse::<usize>().unwrap();
                let slots: Vec<usize> = parts.iter().map(slot).collect();
                proptest::prop_assert!(slots.iter().all(|slot| (*from..=*to).contains(slot)));
                bench.drive.load(slots[0]);
                let read = bench.read_from(&id(&format!("0000000{number}")), &slots[1..], ledger).unwrap();
                proptest::prop_assert!(read == *archive, "archive {number}: {} of {} bytes, {parts:?}", read.len(), archive.len());
            }
        }
    }
}
