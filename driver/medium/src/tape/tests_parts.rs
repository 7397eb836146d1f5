//! Several parts on one volume, and runs that go on behind a volume that failed.

use std::sync::Arc;

use super::tests::*;
use super::*;
use crate::{Medium, TapeArchive};
use virtfold_archive::stream::Sink;
use virtfold_base::error::{ErrorKind, Result};

const EVERY: u64 = 300_000;

/// Writes an archive as `backup::backup` does: where the medium breaks, it is asked to go on, and gets what
/// it does not have. Returns how often it went on.
fn write(bench: &Bench, archive: &[u8], every: u64, slots: &[usize]) -> Result<(u32, TapeReport)> {
    let setup = TapeWriteOptions { commit_every: every, ..bench.setup(slots) };
    let mut medium = Box::new(TapeMedium::begin(setup, NAME)?);
    let (mut from, mut went_on) = (0, 0);
    loop {
        let mut pieces = archive[from..].chunks(50_000);
        let done = pieces.try_for_each(|piece| medium.write(piece)).and_then(|()| medium.sync());
        let Err(error) = done else { break };
        let Some(durable) = medium.resume_after_failure()? else { return Err(error) };
        assert!(durable % (64 << 10) == 0 && durable <= archive.len() as u64);
        (from, went_on) = (usize::try_from(durable).unwrap(), went_on + 1);
        assert!(went_on < 20);
    }
    let finished = medium.finish()?;
    assert_eq!(finished.bytes, archive.len() as u64);
    Ok((went_on, finished.tapes[0].clone()))
}

/// What dd gives of the parts with an end, in the order of their numbers, the later of two.
fn committed(bench: &Bench) -> Vec<u8> {
    let mut placed = bench.notes.archives("5f1c2d3e").unwrap();
    placed.retain(|placed| placed.part.end.is_some());
    let bytes = placed.iter().flat_map(|placed| {
        let objects = bench.objects(placed.label.label[1..].parse().unwrap());
        let start = usize::try_from(placed.part.start).unwrap();
        objects[start..].iter().map_while(Clone::clone).collect::<Vec<_>>().concat()
    });
    bytes.collect()
}

fn without_memory() -> Arc<dyn TapeCatalog> {
    Arc::new(NoTapeCatalog)
}

#[test]
fn parts_follow_each_other_on_a_volume() {
    for len in [0, 1, EVERY - 1, EVERY, 5 * 65_536, 10 * 65_536, 3_000_000] {
        let bench = Bench::new(1, 64 * MIB);
        let archive = bytes(len, len);
        write(&bench, &archive, EVERY, &[]).unwrap();
        assert!(
            data(&bench.objects(0)) == archive,
            "{len}: the data files, one after the other, are the archive"
        );
        let contents = bench.care().list().unwrap();
        let count = len.div_ceil(5 * 65_536).max(1);
        assert_eq!(contents.parts.len() as u64, count, "{len}");
        assert!(contents.parts.iter().zip(1..).all(|(part, number)| part.begin.part == number));
        assert!(bench.care().verify(&|_| ()).unwrap().sound);
        for which in [id("5f1c2d3e"), TapeArchive::Latest] {
            assert!(
                bench.read_from(&which, &[], Arc::clone(&bench.notes) as Arc<dyn TapeCatalog>).unwrap()
                    == archive
            );
            assert!(bench.read_from(&which, &[], without_memory()).unwrap() == archive, "{len}");
        }
    }
}

#[test]
fn parts_go_over_volumes_and_the_last_one_names_those_before() {
    let bench = Bench::new(4, 2 * MIB);
    let archive = bytes(6 * MIB, 3);
    let (_, report) = write(&bench, &archive, EVERY, &[1, 2, 3]).unwrap();
    assert_eq!(report.volumes, ["T0", "T1", "T2", "T3"]);
    assert!((0..4).flat_map(|slot| data(&bench.objects(slot))).collect::<Vec<u8>>() == archive);
    bench.drive.load(3);
    assert!(bench.read_from(&TapeArchive::Latest, &[0, 1, 2, 3], without_memory()).unwrap() == archive);
    bench.drive.load(0);
    assert!(bench.read(&[1, 2, 3]).unwrap() == archive);
    bench.drive.load(0);
    assert!(bench.read_from(&id("5f1c2d3e"), &[1, 2, 3], without_memory()).unwrap() == archive);
}

/// The head does not go to the end of the data and back for each part.
#[test]
fn a_part_is_read_behind_the_other_without_a_look_aside() {
    let bench = Bench::new(1, 64 * MIB);
    let archive = bytes(3 * MIB, 4);
    write(&bench, &archive, EVERY, &[]).unwrap();
    let before = bench.drive.seeks();
    assert!(bench.read(&[]).unwrap() == archive);
    assert!(bench.drive.seeks() - before < 6, "{}", bench.drive.seeks() - before);
}

/// Goes on as another process does behind one that is gone, and writes the rest.
fn go_on(bench: &Bench, archive: &[u8], slots: &[usize]) -> Result<std::result::Result<u64, String>> {
    let setup = TapeWriteOptions { commit_every: EVERY, ..bench.setup(slots) };
    let (medium, at) = match TapeMedium::resume(setup, NAME)? {
        Ok(went_on) => went_on,
        Err(why) => return Ok(Err(why)),
    };
    let mut medium = Box::new(medium);
    archive[usize::try_from(at).unwrap()..].chunks(50_000).try_for_each(|piece| medium.write(piece))?;
    assert_eq!(medium.finish()?.bytes, archive.len() as u64);
    Ok(Ok(at))
}

/// Waits until so many parts are committed.
fn wait_for_parts(bench: &Bench, least: usize) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while bench.notes.archives("5f1c2d3e").unwrap().len() < least {
        assert!(std::time::Instant::now() < deadline, "{least} parts are not committed");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// Wherever a process ended, another one goes on: on the same volume, or on the next one.
#[test]
fn behind_a_process_that_is_gone_another_one_goes_on() {
    let archive = bytes(12 * 65_536 + 7, 5);
    for (written, next) in (0..archive.len()).step_by(40_000).flat_map(|len| [(len, 0), (len, 1)]) {
        let bench = Bench::new(2, 64 * MIB);
        let setup = TapeWriteOptions { commit_every: EVERY, ring: 2 * 65_536, ..bench.setup(&[]) };
        let mut medium = TapeMedium::begin(setup, NAME).unwrap();
        archive[..written].chunks(50_000).for_each(|piece| medium.write(piece).unwrap());
        // All blocks but those in the ring are taken; a part is committed when the block behind it is to be
        // written.
        let least = (written / 65_536).saturating_sub(3) / 5;
        wait_for_parts(&bench, least);
        drop(medium);
        let left = bench.objects(0);
        bench.drive.load(next);
        match go_on(&bench, &archive, &[]).unwrap() {
            Ok(at) => {
                assert!(at >= (least as u64).max(1) * 5 * 65_536 && at % (5 * 65_536) == 0, "{written}")
            }
            Err(why) => {
                assert!(why.contains("nothing of it was committed") && least == 0, "{written}: {why}");
                continue;
            }
        }
        assert!(bench.objects(0).starts_with(&left), "{written}");
        assert!(committed(&bench) == archive, "{written} on {next}");
        bench.drive.load(0);
        assert!(bench.read(&[1]).unwrap() == archive, "{written} on {next}");
        let from = usize::from(next == 1);
        bench.drive.load(from);
        let read = bench.read_from(&TapeArchive::Latest, &[0, 1], without_memory());
        assert!(read.unwrap() == archive, "{written} on {next}, by the tapes alone");
        bench.drive.load(next);
        let why = go_on(&bench, &archive, &[]).unwrap().unwrap_err();
        assert!(why.contains("it is whole"), "{why}");
    }
}

/// Another archive may have been written behind what is gone on with.
#[test]
fn what_lies_between_the_parts_of_a_run_is_left_out() {
    const OTHER: &str = "db-20261122T040000Z-0badcafe.tar";
    let (archive, other) = (bytes(12 * 65_536 + 7, 5), bytes(100_000, 6));
    let bench = Bench::new(1, 64 * MIB);
    let setup = TapeWriteOptions { commit_every: EVERY, ring: 2 * 65_536, ..bench.setup(&[]) };
    let mut medium = TapeMedium::begin(setup, NAME).unwrap();
    archive[..10 * 65_536].chunks(50_000).for_each(|piece| medium.write(piece).unwrap());
    wait_for_parts(&bench, 1);
    drop(medium);
    bench.write(OTHER, &other, &[]).unwrap();
    assert!(go_on(&bench, &archive, &[]).unwrap().is_ok());
    let memories = [Arc::clone(&bench.notes) as Arc<dyn TapeCatalog>, without_memory()];
    for memory in memories {
        for (which, whole) in
            [(id("5f1c2d3e"), &archive), (id("0badcafe"), &other), (TapeArchive::Latest, &archive)]
        {
            let read = bench.read_from(&which, &[], Arc::clone(&memory)).unwrap();
            assert!(read == *whole, "{which:?}: {} bytes", read.len());
        }
    }
}

/// Writes the next bytes of an archive, until they are on the tape, and is gone.
fn break_off(mut medium: TapeMedium, bytes: &[u8]) {
    medium.write(bytes).unwrap();
    medium.sync().unwrap();
}

/// Label, begin, five blocks, end, and of the second part the begin and so many blocks.
fn break_off_in_the_second_part(bench: &Bench, archive: &[u8], blocks: usize) {
    let setup = TapeWriteOptions { commit_every: EVERY, ..bench.setup(&[]) };
    let medium = TapeMedium::begin(setup, NAME).unwrap();
    break_off(medium, &archive[..(5 + blocks) * 65_536]);
    assert_eq!(bench.objects(0).len(), 15 + blocks);
}

#[test]
fn what_the_memory_says_is_held_against_the_tape() {
    let archive = bytes(12 * 65_536 + 7, 5);
    let label = |label: &str, pool: &str| NewLabel {
        label: label.to_owned(),
        pool: pool.to_owned(),
        block_size: TapeBlock::new(64 << 10).unwrap(),
        retain_until: None,
    };
    let begun = || {
        let bench = Bench::new(2, 64 * MIB);
        break_off_in_the_second_part(&bench, &archive, 2);
        bench
    };
    // Labelled by somebody who knows nothing of this memory, emptied, and cut in the midst of what was
    // committed.
    let bench = begun();
    let elsewhere = VolumeAdmin::new(
        Box::new(bench.drive.clone()),
        &NoTapeCatalog,
        std::time::Duration::ZERO,
        Default::default(),
    );
    elsewhere.label(&label("T0", "default"), Overwrite::Force).unwrap();
    let why = go_on(&bench, &archive, &[]).unwrap().unwrap_err();
    assert!(why.contains("was labelled again"), "{why}");
    for left in [2, 8] {
        let bench = begun();
        bench.drive.with_tape(0, |tape| tape.objects.truncate(left)).unwrap();
        let why = go_on(&bench, &archive, &[]).unwrap().unwrap_err();
        assert!(why.contains("lacks the parts"), "{left}: {why}");
    }
    // It stays in its pool.
    let bench = begun();
    bench.drive.load(1);
    bench.care().label(&label("X1", "other"), Overwrite::Force).unwrap();
    let refused = go_on(&bench, &archive, &[]).unwrap_err();
    assert!(refused.to_string().contains("is of the pool 'other'"), "{refused}");
    let setup = TapeWriteOptions { pool: Some("other".to_owned()), ..bench.setup(&[]) };
    let why = TapeMedium::resume(setup, NAME).unwrap().err().unwrap();
    assert!(why.contains("volumes of the pool 'default'"), "{why}");
    bench.drive.load(0);
    assert_eq!(go_on(&bench, &archive, &[]).unwrap(), Ok(5 * 65_536));
}

/// A list tells the memory of the part that was open; whoever goes on does so all the same, and the volume is
/// sound then.
#[test]
fn a_volume_that_was_listed_meanwhile_is_gone_on_with() {
    let archive = bytes(12 * 65_536 + 7, 5);
    let bench = Bench::new(1, 64 * MIB);
    break_off_in_the_second_part(&bench, &archive, 3);
    assert_eq!(bench.care().list().unwrap().parts.len(), 2);
    assert!(!bench.care().verify(&|_| ()).unwrap().sound);
    assert_eq!(go_on(&bench, &archive, &[]).unwrap(), Ok(5 * 65_536));
    let contents = bench.care().list().unwrap();
    let parts: Vec<_> = contents.parts.iter().map(|part| (part.begin.part, part.worth())).collect();
    assert_eq!(parts, [(1, (0, true)), (2, (0, false)), (2, (1, true)), (3, (1, true))]);
    let superseded = contents.parts.iter().filter(|part| contents.is_superseded(part));
    assert_eq!(superseded.map(|part| part.worth()).collect::<Vec<_>>(), [(0, false)]);
    assert!(bench.care().verify(&|_| ()).unwrap().sound);
    assert!(bench.read(&[]).unwrap() == archive);
    let why = go_on(&bench, &archive, &[]).unwrap().unwrap_err();
    assert!(why.contains("it is whole"), "{why}");
}

/// Two processes died in one part, each on another volume; nothing but the tapes says so.
#[test]
fn a_part_that_was_begun_three_times_is_given_out_once() {
    let archive = bytes(12 * 65_536 + 7, 5);
    for (first, second) in [(1, 3), (2, 2), (3, 1), (3, 0)] {
        let bench = Bench::new(3, 64 * MIB);
        break_off_in_the_second_part(&bench, &archive, first);
        bench.drive.load(1);
        let setup = TapeWriteOptions { commit_every: EVERY, ..bench.setup(&[]) };
        let (medium, at) = TapeMedium::resume(setup, NAME).unwrap().unwrap();
        assert_eq!(at, 5 * 65_536);
        break_off(medium, &archive[5 * 65_536..(5 + second) * 65_536]);
        bench.drive.load(2);
        assert_eq!(go_on(&bench, &archive, &[]).unwrap(), Ok(5 * 65_536));
        for (begin, slots) in [(0, &[1, 2][..]), (0, &[2]), (2, &[0, 2])] {
            bench.drive.load(begin);
            let read = bench.read_from(&id("5f1c2d3e"), slots, without_memory());
            assert!(read.unwrap() == archive, "{first} and {second} blocks, from {begin}");
        }
    }
}

#[test]
fn a_run_that_goes_on_refuses_the_volumes_that_are_full() {
    let archive = bytes(6 * MIB, 3);
    let bench = Bench::new(4, 2 * MIB);
    let setup = TapeWriteOptions { commit_every: EVERY, ..bench.setup(&[1]) };
    let mut medium = TapeMedium::begin(setup, NAME).unwrap();
    // It ends for want of a third volume.
    let ended = archive.chunks(50_000).try_for_each(|piece| medium.write(piece)).and_then(|()| medium.sync());
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::NoSpace);
    drop(medium);
    bench.drive.load(0);
    let refused = go_on(&bench, &archive, &[]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Exists, "{refused}");
    bench.drive.load(2);
    let at = go_on(&bench, &archive, &[3]).unwrap().unwrap();
    assert!(at > 2 * MIB);
    assert!(committed(&bench) == archive);
}

/// Every fault at every object of a run with several parts: the archive goes on on the next volume and is the
/// same, or somebody says what is wrong.
#[test]
fn behind_any_fault_the_archive_goes_on_or_it_is_said() {
    let archive = bytes(600_000, 9);
    let clean = Bench::new(1, 64 * MIB);
    write(&clean, &archive, EVERY, &[]).unwrap();
    let objects = clean.objects(0).len() as u64;
    // What a drive has committed it does not lose.
    let ends = clean.care().list().unwrap().parts.into_iter().map(|part| part.end.unwrap());
    let commits: Vec<u64> = ends.map(|end| end.start + end.blocks + 3).collect();
    let lost =
        |at: u64| 3.min(at - commits.iter().copied().filter(|commit| *commit <= at).max().unwrap_or(2));
    let (mut went_on, mut said) = (0, Vec::new());
    for at in 2..objects {
        for fault in [
            TapeFault::WriteError(at),
            TapeFault::Drop(at),
            TapeFault::Deferred(at, lost(at)),
            TapeFault::Reset(at),
        ] {
            let bench = Bench::new(2, 64 * MIB);
            bench.drive.fault(fault);
            let done = write(&bench, &archive, EVERY, &[1]);
            bench.drive.clear_faults();
            let failed = bench.notes.failed.lock().unwrap().len();
            match done {
                Ok((count, report)) => {
                    assert_eq!(failed, usize::from(count > 0), "{fault:?}");
                    assert_eq!(report.failed.len(), failed, "{fault:?}");
                    went_on += count;
                    assert!(committed(&bench) == archive, "{fault:?}");
                    bench.drive.load(0);
                    assert!(bench.read(&[1]).unwrap() == archive, "{fault:?}: by the memory");
                    bench.drive.load(if count > 0 { 1 } else { 0 });
                    let from_last = bench.read_from(&TapeArchive::Latest, &[0, 1], without_memory());
                    // A reset has the label overwritten at worst, and that the volume can't be read is said.
                    assert!(
                        from_last.is_err() || from_last.unwrap() == archive,
                        "{fault:?}: from the last volume"
                    );
                    bench.drive.load(0);
                    let from_first = bench.read_from(&id("5f1c2d3e"), &[1], without_memory());
                    assert!(
                        from_first.is_err() || from_first.unwrap() == archive,
                        "{fault:?}: from the first"
                    );
                    bench.drive.load(0);
                    let listed = bench.care().list();
                    assert!(listed.is_ok(), "{fault:?}: {listed:?}");
                }
                Err(error) => {
                    assert_eq!(failed, 1, "{fault:?}: {error:?}");
                    said.push(fault);
                }
            }
        }
    }
    assert!(went_on > 30, "{went_on} went on");
    // What can't be gone on with is the archive's own end.
    assert!(said.len() < 16, "{said:?}");
}

#[test]
fn what_a_failed_volume_has_behind_its_last_commit_is_not_the_archive() {
    let bench = Bench::new(3, 64 * MIB);
    let archive = bytes(MIB, 5);
    // In the midst of the second part, and again in the third one on the next volume.
    bench.drive.fault(TapeFault::WriteError(16));
    let setup = TapeWriteOptions { commit_every: EVERY, ..bench.setup(&[1, 2]) };
    let mut medium = Box::new(TapeMedium::begin(setup, NAME).unwrap());
    let done = medium.write(&archive).and_then(|()| medium.sync());
    assert!(done.is_err());
    assert_eq!(medium.resume_after_failure().unwrap(), Some(5 * 65_536));
    bench.drive.fault(TapeFault::Deferred(16, 2));
    let done = medium.write(&archive[5 * 65_536..]).and_then(|()| medium.sync());
    assert!(done.is_err());
    assert_eq!(medium.resume_after_failure().unwrap(), Some(10 * 65_536));
    medium.write(&archive[10 * 65_536..]).unwrap();
    medium.sync().unwrap();
    medium.finish().unwrap();
    let contents = |slot| {
        bench.drive.load(slot);
        let parts = bench.care().list().unwrap().parts;
        parts.iter().map(|p| (p.begin.part, p.begin.earlier.again, p.end.is_some())).collect::<Vec<_>>()
    };
    assert_eq!(contents(0), [(1, 0, true), (2, 0, false)]);
    assert_eq!(contents(1), [(2, 1, true), (3, 1, false)]);
    assert_eq!(contents(2), [(3, 2, true), (4, 2, true)]);
    // The lists have told the memory of the unfinished parts, too.
    for ledger in [Arc::clone(&bench.notes) as Arc<dyn TapeCatalog>, without_memory()] {
        for (first, slots) in [(0, &[1, 2][..]), (2, &[0, 1, 2])] {
            bench.drive.load(first);
            assert!(
                bench.read_from(&id("5f1c2d3e"), slots, Arc::clone(&ledger)).unwrap() == archive,
                "{first}"
            );
        }
    }
    assert_eq!(bench.notes.failed.lock().unwrap().len(), 2);
    // What was given out of a part without an end has to be the beginning of the part that comes again.
    bench.drive.with_tape(0, |tape| {
        let block = tape.objects.iter_mut().flatten().next_back().unwrap();
        block[0] ^= 1;
    });
    bench.drive.load(0);
    let error = bench.read_from(&id("5f1c2d3e"), &[1, 2], without_memory()).unwrap_err();
    assert!(format!("{error:?}").contains("failed, and what is there is not"), "{error:?}");
}

#[test]
fn a_settled_archive_that_is_dropped_is_none_and_nobody_goes_on_without_a_changer() {
    let bench = Bench::new(1, 64 * MIB);
    let mut medium = TapeMedium::begin(bench.setup(&[]), NAME).unwrap();
    medium.write(&[1; 100_000]).unwrap();
    medium.sync().unwrap();
    drop(medium);
    assert!(bench.read_from(&TapeArchive::Latest, &[], without_memory()).is_err());
    let setup = TapeWriteOptions { changer: Box::new(NoChanger), ..bench.setup(&[]) };
    bench.drive.fault(TapeFault::WriteError(bench.objects(0).len() as u64 + 3));
    let mut medium = TapeMedium::begin(setup, NAME).unwrap();
    medium.write(&[1; 100_000]).unwrap();
    medium.sync().unwrap_err();
    assert_eq!(medium.resume_after_failure().unwrap(), None);
}

/// Reads what can be read, with the gaps.
fn salvage(bench: &Bench, slots: &[usize], ledger: Arc<dyn TapeCatalog>) -> (Vec<u8>, crate::LostRanges) {
    let mut source = TapeSource::open(bench.reading(slots, ledger), &id("5f1c2d3e")).unwrap();
    let gaps = source.salvage();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut source, &mut bytes).unwrap();
    (bytes, gaps)
}

/// Every block of the data that can't be read costs itself, and nothing else.
#[test]
fn what_can_t_be_read_is_stepped_over() {
    let bench = Bench::new(1, 64 * MIB);
    let archive = bytes(MIB + 1000, 6);
    write(&bench, &archive, EVERY, &[]).unwrap();
    let parts = bench.care().list().unwrap().parts;
    for part in &parts {
        let end = part.end.as_ref().unwrap();
        for block in 0..end.blocks {
            let from = part.begin.offset + block * 65_536;
            let lost = from..(from + 65_536).min(end.total);
            for ledger in [Arc::clone(&bench.notes) as Arc<dyn TapeCatalog>, without_memory()] {
                bench.drive.fault(TapeFault::ReadError(part.start + block));
                let (read, gaps) = salvage(&bench, &[], ledger);
                assert_eq!(read.len(), archive.len());
                assert_eq!(gaps.within(0..u64::MAX), std::slice::from_ref(&lost));
                let same =
                    |at: u64| read[usize::try_from(at).unwrap()] == archive[usize::try_from(at).unwrap()];
                assert!((0..end.total).all(|at| lost.contains(&at) || same(at)), "{lost:?}");
            }
            bench.drive.clear_faults();
        }
    }
}

#[test]
fn what_is_not_there_any_more_is_left_out() {
    let bench = Bench::new(4, 2 * MIB);
    let archive = bytes(6 * MIB, 3);
    write(&bench, &archive, EVERY, &[1, 2, 3]).unwrap();
    let memory = || Arc::clone(&bench.notes) as Arc<dyn TapeCatalog>;
    let first_of = |slot: usize| {
        let placed = bench.notes.archives("5f1c2d3e").unwrap();
        placed.iter().find(|p| p.label.label == format!("T{slot}")).unwrap().part.begin.offset
    };
    let at = |offset: u64| usize::try_from(offset).unwrap();
    // The last volumes are lost: all before them.
    bench.drive.load(0);
    let (read, gaps) = salvage(&bench, &[1], memory());
    assert!(read == archive[..at(first_of(2))]);
    assert!(!gaps.notes().is_empty() && gaps.within(0..u64::MAX).is_empty());
    // One in the midst is: zeros, and all behind them in its place.
    bench.drive.load(0);
    bench.drive.with_tape(1, |tape| tape.objects.clear());
    let (read, gaps) = salvage(&bench, &[1, 2, 3], memory());
    let lost = first_of(1)..first_of(2);
    assert_eq!(gaps.within(0..u64::MAX), std::slice::from_ref(&lost));
    assert!(read.len() == archive.len() && read[at(lost.end)..] == archive[at(lost.end)..]);
    assert!(read[..at(lost.start)] == archive[..at(lost.start)]);
    assert!(read[at(lost.start)..at(lost.end)].iter().all(|byte| *byte == 0));
}
