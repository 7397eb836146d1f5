//! The writer against its model, and what it does when something fails.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::testing::*;
use super::*;

const ZSTD: Compression = Compression::Zstd { level: 1 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn what_is_written_is_the_model(script in any_script(), compression in any_compression(),
                                    workers in 1_usize..5) {
        let (body, tail) = script.model();
        let disks = Disks::new(script.images.clone());
        let mut sink = Memory::default();
        let options = options(compression, workers);
        let written = script.write(&disks, &mut sink, &options).unwrap();
        let data: usize = script.parts.iter().map(|p| if let Part::Data { len, .. } = p { *len } else { 0 }).sum();
        prop_assert_eq!(written.digests, digests_of(&body));
        prop_assert_eq!(options.progress.load(Ordering::Relaxed), data as u64);
        prop_assert_eq!(written.totals.chunks, (body.len() + tail.len()) as u64);
        prop_assert_eq!(written.totals.written, sink.bytes.len() as u64);
        prop_assert_eq!(written.totals.stream_len, script.stream().len() as u64);
        let stream = match compression {
            Compression::None => sink.bytes,
            Compression::Zstd { .. } => zstd::stream::decode_all(sink.bytes.as_slice()).unwrap(),
        };
        prop_assert!(stream == script.stream());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Broken off at any byte, the stream goes on at the last whole chunk before it, and is the same in the
    /// end.
    #[test]
    fn what_goes_on_is_the_same_as_what_was_never_broken_off(
        script in any_script(), compression in any_compression(), workers in 1_usize..4, places in any::<[u64; 3]>(),
    ) {
        let disks = Disks::new(script.images.clone());
        let mut whole = Memory::default();
        let mut chunks = ChunkRecords::default();
        let first = script.write_from(&disks, &mut whole, &mut chunks, &options(compression, workers)).unwrap();
        let len = whole.bytes.len() as u64;
        for durable in places.map(|place| place % (len + 1)) {
            let end = chunks.keep_within(durable).unwrap();
            let (kept, mut rest) = (chunks.kept(), Memory::default());
            let options = options(compression, workers);
            let again = script.write_from(&disks, &mut rest, &mut chunks, &options).unwrap();
            prop_assert!(whole.bytes[usize::try_from(end).unwrap()..] == rest.bytes, "from chunk {} on", kept);
            prop_assert_eq!(again.totals, first.totals);
            prop_assert_eq!(&again.digests, &first.digests);
            let data: usize = script.parts.iter().map(|p| if let Part::Data { len, .. } = p { *len } else { 0 }).sum();
            prop_assert_eq!(options.progress.load(Ordering::Relaxed), data as u64);
        }
    }
}

/// Every place to go on from, and nothing of what is there already is read again.
#[test]
fn a_stream_goes_on_behind_any_of_its_chunks() {
    let script = Script::small();
    for compression in [Compression::None, ZSTD] {
        let (mut whole, mut chunks) = (Memory::default(), ChunkRecords::default());
        let disks = Disks::new(script.images.clone());
        script.write_from(&disks, &mut whole, &mut chunks, &options(compression, 2)).unwrap();
        let mut end = 0;
        for kept in 0..=chunks.len() {
            assert_eq!(chunks.keep_within(end as u64).unwrap(), end as u64);
            assert_eq!(chunks.kept(), kept);
            // Three chunks have bytes of the disk, the fourth is the tail.
            let fuse = Fuse::new(3_u64.saturating_sub(kept));
            let disks = Disks { fuse, ..Disks::new(script.images.clone()) };
            let mut rest = Memory::default();
            script.write_from(&disks, &mut rest, &mut chunks, &options(compression, 2)).unwrap();
            assert!(rest.bytes == whole.bytes[end..], "{compression:?} from chunk {kept} on");
            if kept < chunks.len() {
                end += usize::try_from(chunks.get(kept).unwrap().bytes()).unwrap();
            }
        }
    }
}

#[test]
fn chunks_of_another_stream_are_refused() {
    let script = Script::small();
    let mut chunks = ChunkRecords::default();
    let disks = Disks::new(script.images.clone());
    script.write_from(&disks, &mut Memory::default(), &mut chunks, &options(ZSTD, 2)).unwrap();
    chunks.keep_within(u64::MAX).unwrap();
    for (script, compression) in [(script, Compression::None), (long(), ZSTD)] {
        let disks = Disks::new(script.images.clone());
        let outcome =
            script.write_from(&disks, &mut Memory::default(), &mut chunks, &options(compression, 1));
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Internal);
    }
}

#[test]
fn the_zstd_command_reads_a_framed_stream() {
    let script = Script::small();
    let mut child = Command::new("zstd")
        .args(["-d", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the command zstd must be installed for this test");
    let mut input = child.stdin.take().unwrap();
    let archive = script.archive(ZSTD, 2);
    let feeder = std::thread::spawn(move || input.write_all(&archive).unwrap());
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    assert!(output.status.success());
    assert!(output.stdout == script.stream());
}

#[test]
fn a_failing_source_or_sink_gives_its_own_error_wherever_it_fails() {
    let script = Script::small();
    for compression in [Compression::None, ZSTD] {
        for workers in 1..4 {
            for call in 0..8 {
                let mut disks = Disks::new(script.images.clone());
                disks.fuse = Fuse::new(call);
                let outcome = script.write(&disks, &mut Memory::default(), &options(compression, workers));
                let kind = outcome.map_err(|error| error.kind()).err();
                assert_eq!(kind, (call < 3).then_some(ErrorKind::BadImage), "read {call}");

                let mut sink = Memory { fuse: Fuse::new(call), ..Memory::default() };
                let disks = Disks::new(script.images.clone());
                let outcome = script.write(&disks, &mut sink, &options(compression, workers));
                let writes = if compression == Compression::None { 4 } else { 6 };
                let kind = outcome.map_err(|error| error.kind()).err();
                assert_eq!(kind, (call < writes).then_some(ErrorKind::NoSpace), "write {call}");
            }
        }
    }
}

/// Long enough that every buffer is in flight when the failure comes.
fn long() -> Script {
    let image = noise(40 << 20, 9);
    let len = image.len();
    Script { images: vec![image], parts: vec![Part::Data { disk: 0, at: 0, len }, Part::Tail] }
}

#[test]
fn failures_amid_full_buffers_end_all_threads() {
    let script = long();
    for call in [0, 1, 7, 20, 39] {
        let mut disks = Disks::new(script.images.clone());
        disks.fuse = Fuse::new(call);
        let outcome = script.write(&disks, &mut Memory::default(), &options(Compression::None, 3));
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::BadImage);
        disks.fuse = Fuse::new(call);
        disks.panics = true;
        let outcome = script.write(&disks, &mut Memory::default(), &options(Compression::None, 3));
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Internal);
        disks.fuse = Fuse::never();
        let mut sink = Memory { fuse: Fuse::new(call), ..Memory::default() };
        let outcome = script.write(&disks, &mut sink, &options(Compression::None, 3));
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::NoSpace);
    }
}

#[test]
fn a_cancelled_run_is_interrupted() {
    let script = long();
    let options = options(Compression::None, 2);
    options.cancel.store(true, Ordering::Relaxed);
    let outcome = script.write(&Disks::new(script.images.clone()), &mut Memory::default(), &options);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Interrupted);
}

#[test]
fn an_error_of_the_plan_is_returned_as_it_is() {
    let disks = Disks::new(Vec::new());
    let refuse = |writer: &mut StreamWriter<'_>| -> Result<()> {
        writer.bytes(&noise(9 << 20, 1))?;
        Err(Error::new(ErrorKind::Exists, "the plan says no"))
    };
    let outcome = write_stream(&disks, &mut Memory::default(), &options(ZSTD, 2), refuse);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Exists);
}

#[test]
fn a_second_tail_and_an_unknown_level_are_refused() {
    let disks = Disks::new(Vec::new());
    let twice = |writer: &mut StreamWriter<'_>| writer.begin_tail().and_then(|_| writer.begin_tail());
    let outcome = write_stream(&disks, &mut Memory::default(), &options(ZSTD, 1), twice);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Internal);
    let level = Compression::Zstd { level: 23 };
    let outcome = write_stream(&disks, &mut Memory::default(), &options(level, 1), |_| Ok(()));
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Usage);
}
