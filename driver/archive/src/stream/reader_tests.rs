//! The readers against the model, and against damage of every kind.

use std::io::{self, Read};
use std::ops::Range;

use proptest::prelude::*;

use super::frame::{FrameHeader, HEADER_LEN, PREFIX};
use super::testing::*;
use super::*;
use virtfold_base::units::StreamOffset;

const ZSTD: Compression = Compression::Zstd { level: 1 };

/// A file in memory, with a range that can't be read.
struct File {
    bytes: Vec<u8>,
    bad: Range<u64>,
    kind: ErrorKind,
}

impl File {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, bad: 0..0, kind: ErrorKind::Io }
    }
}

impl ReadAt for File {
    fn read_exact_at(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let end = at + buf.len() as u64;
        if at < self.bad.end && self.bad.start < end {
            return Err(Error::new(self.kind, "the file can't be read here"));
        }
        let range = usize::try_from(at).unwrap()..usize::try_from(end).unwrap();
        let there = self.bytes.get(range).ok_or_else(|| Error::new(ErrorKind::Io, "read past the end"))?;
        buf.copy_from_slice(there);
        Ok(())
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn name(&self) -> &str {
        "test.tar.zst"
    }
}

/// A pipe that gives a few bytes at a time.
struct Drip<'a>(&'a [u8], usize);

impl Read for Drip<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.1.min(self.0.len()).min(buf.len());
        let (now, later) = self.0.split_at(len);
        buf[..len].copy_from_slice(now);
        self.0 = later;
        Ok(len)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    Pipe,
    File,
}

/// What a reading delivered: bytes with zeros for what is lost, the lost ranges, the chunks' lengths.
#[derive(Debug, Default, PartialEq)]
struct Got {
    bytes: Vec<u8>,
    lost: Vec<Damage>,
    lens: Vec<usize>,
}

impl Got {
    fn take(&mut self, chunk: Chunk<'_>) {
        assert_eq!(chunk.at.get(), self.bytes.len() as u64, "chunks are in order and without gaps");
        match chunk.state {
            ChunkState::Damaged(damage) => {
                assert!(chunk.bytes.is_empty());
                assert_eq!(damage.stream.start, chunk.at);
                assert!(damage.stream.end.get() < 1 << 30, "only for archives of tests");
                self.bytes.resize(usize::try_from(damage.stream.end.get()).unwrap(), 0);
                self.lost.push(damage.clone());
            }
            ChunkState::Intact(digest) | ChunkState::Unchecked(digest) => {
                assert_eq!(digest, Digest::of(chunk.bytes));
                self.bytes.extend_from_slice(chunk.bytes);
                self.lens.push(chunk.bytes.len());
            }
        }
    }
}

fn read_options(workers: usize, carrier: Option<Carrier>) -> ReadOptions {
    ReadOptions { workers, cancel: Cancel::default(), carrier, archive_id: None }
}

fn all() -> Range<StreamOffset> {
    StreamOffset::ZERO..StreamOffset::new(u64::MAX)
}

fn read(how: How, archive: &[u8], options: &ReadOptions) -> Result<(Got, StreamEnd)> {
    let mut got = Got::default();
    let mut take = |chunk: Chunk<'_>| {
        got.take(chunk);
        Ok(())
    };
    let end = match how {
        How::Pipe => read_pipe(Drip(archive, 70_001), "test", options, take)?,
        How::File => {
            let file = File::new(archive.to_vec());
            let stream = RandomStream::open(&file, options)?;
            stream.chunks(all(), &mut take)?;
            stream.end().clone()
        }
    };
    Ok((got, end))
}

fn read_framed(how: How, archive: &[u8]) -> (Got, StreamEnd) {
    read(how, archive, &read_options(2, None)).unwrap()
}

/// The frames of an intact archive, and where they end.
fn frames(archive: &[u8]) -> (Vec<Range<usize>>, usize) {
    let mut found = Vec::new();
    let mut at = 0;
    while let Ok(header) = FrameHeader::decode(&archive[at..]) {
        let end = at + usize::try_from(header.span()).unwrap();
        found.push(at..end);
        at = end;
    }
    (found, at)
}

fn lost_ranges(got: &Got) -> Vec<Range<u64>> {
    got.lost.iter().map(|damage| damage.stream.start.get()..damage.stream.end.get()).collect()
}

/// The stream's ranges of the chunks, by the model.
fn chunk_ranges(script: &Script) -> Vec<Range<u64>> {
    let (body, tail) = script.model();
    let mut at = 0;
    let range = |chunk: &Vec<u8>| {
        let start = at;
        at += chunk.len() as u64;
        start..at
    };
    body.iter().chain(&tail).map(range).collect()
}

fn blank(mut stream: Vec<u8>, ranges: &[Range<u64>]) -> Vec<u8> {
    for range in ranges {
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        stream[range].fill(0);
    }
    stream
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn what_was_written_is_read(script in any_script(), compression in any_compression(),
                                workers in 1_usize..5, drip in 1_usize..3_000_000, cut in any::<u64>()) {
        let archive = script.archive(compression, workers);
        let stream = script.stream();
        let (carrier, lens): (_, Vec<u64>) = match compression {
            Compression::None => (Carrier::Plain, stream.chunks(FRAME).map(|c| c.len() as u64).collect()),
            Compression::Zstd { .. } => {
                (Carrier::Framed, chunk_ranges(&script).iter().map(|r| r.end - r.start).collect())
            }
        };
        let options = read_options(workers, Some(carrier));
        for how in [How::Pipe, How::File] {
            let (got, end) = read(how, &archive, &options).unwrap();
            prop_assert!(got.bytes == stream);
            prop_assert_eq!(got.lens.iter().map(|len| *len as u64).collect::<Vec<_>>(), lens.clone());
            prop_assert!(got.lost.is_empty() && end.is_whole());
            prop_assert_eq!((end.stream_len, end.file_len), (stream.len() as u64, archive.len() as u64));
        }
        let mut got = Got::default();
        let end = read_pipe(Drip(&archive, drip.max(archive.len() / 1000)), "test", &options, |chunk| {
            got.take(chunk);
            Ok(())
        });
        prop_assert!(end.unwrap().is_whole() && got.bytes == stream);

        let file = File::new(archive);
        let random = RandomStream::open(&file, &options).unwrap();
        let mut at = cut;
        for _ in 0..20 {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let start = usize::try_from(at % (stream.len() as u64 + 1)).unwrap();
            let len = usize::try_from(at >> 42).unwrap().min(stream.len() - start);
            let mut buf = vec![0; len];
            random.read_at(StreamOffset::new(start as u64), &mut buf).unwrap();
            prop_assert!(buf == stream[start..start + len]);

            let range = StreamOffset::new(start as u64)..StreamOffset::new((start + len) as u64);
            let (mut first, mut parts) = (None, Vec::new());
            random.chunks(range.clone(), |chunk| {
                assert!(chunk.at < range.end || chunk.bytes.is_empty());
                first.get_or_insert(chunk.at.get());
                parts.extend_from_slice(chunk.bytes);
                Ok(())
            }).unwrap();
            if len > 0 {
                let skip = start - usize::try_from(first.unwrap()).unwrap();
                prop_assert!(skip < FRAME && parts.len() - skip - len < FRAME);
                prop_assert!(parts[skip..skip + len] == stream[start..start + len]);
            }
        }
        prop_assert!(random.read_at(StreamOffset::new(stream.len() as u64), &mut [0]).is_err());
        prop_assert!(random.read_at(StreamOffset::new(u64::MAX), &mut [0]).is_err());
    }
}

#[test]
fn one_flipped_byte_anywhere_costs_its_frame_alone_or_is_told_of_the_seek_table() {
    let script = Script::small();
    let archive = script.archive(ZSTD, 2);
    let (frames, table) = frames(&archive);
    let (ranges, stream) = (chunk_ranges(&script), script.stream());
    assert_eq!(frames.len(), 4);
    for at in 0..archive.len() {
        let mut bad = archive.clone();
        bad[at] ^= 1 << (at % 8);
        for how in [How::Pipe, How::File] {
            let (got, end) = read_framed(how, &bad);
            let hit: Vec<Range<u64>> =
                frames.iter().zip(&ranges).filter(|(f, _)| f.contains(&at)).map(|(_, r)| r.clone()).collect();
            assert_eq!(lost_ranges(&got), hit, "byte {at} by {how:?}");
            assert!(got.bytes == blank(stream.clone(), &hit), "byte {at} by {how:?}");
            assert_eq!(end.is_whole(), at < table, "byte {at} by {how:?}: {end:?}");
            // A damaged length of the table can make it reach behind the file's end.
            let told = matches!(end.table, SeekTableState::Damaged(_) | SeekTableState::Cut);
            assert_eq!(told, at >= table, "byte {at} by {how:?}");
        }
    }
}

#[test]
fn a_cut_archive_is_never_whole_and_gives_what_is_before_the_cut() {
    let script = Script::small();
    let archive = script.archive(ZSTD, 2);
    let (frames, table) = frames(&archive);
    let (ranges, stream) = (chunk_ranges(&script), script.stream());
    for len in 0..archive.len() {
        for how in [How::Pipe, How::File] {
            let options = read_options(2, Some(Carrier::Framed));
            let (got, end) = read(how, &archive[..len], &options).unwrap();
            let kept = frames.iter().zip(&ranges).filter(|(f, _)| f.end <= len).map(|(_, r)| r.end);
            let kept = usize::try_from(kept.max().unwrap_or(0)).unwrap();
            assert!(!end.is_whole(), "{len} by {how:?}");
            assert_eq!(got.lost, [], "{len} by {how:?}");
            assert!(got.bytes == stream[..kept], "{len} by {how:?}");
            assert_eq!(end.stream_len, kept as u64);
            assert!(len > table || end.cut.is_some(), "{len} by {how:?}");
        }
    }
}

/// An archive put together from the frames of another, and its table.
fn assemble(archive: &[u8], order: &[usize]) -> Vec<u8> {
    let (frames, table) = frames(archive);
    let mut out: Vec<u8> = order.iter().flat_map(|n| archive[frames[*n].clone()].to_vec()).collect();
    out.extend_from_slice(&archive[table..]);
    out
}

#[test]
fn frames_out_of_place_are_damage_and_the_others_are_read() {
    let script = Script::small();
    let archive = script.archive(ZSTD, 2);
    let (ranges, stream) = (chunk_ranges(&script), script.stream());
    let none = |at: u64| at..at;
    let both = ranges[1].start..ranges[2].end;
    let cases = [
        (vec![0, 1, 1, 2, 3], vec![none(ranges[1].end)]),
        (vec![0, 2, 1, 3], vec![ranges[1].clone(), none(ranges[2].end)]),
        (vec![0, 1, 3], vec![ranges[2].clone()]),
        (vec![0, 1, 2], vec![ranges[3].clone()]),
        (vec![1, 2, 3], vec![ranges[0].clone()]),
        (vec![0, 1, 2, 3, 0], vec![none(ranges[3].end)]),
        (vec![0, 3], vec![both]),
    ];
    for (order, lost) in cases {
        for how in [How::Pipe, How::File] {
            // A table of the right sums is believed, so by it both places have the wrong frame.
            let swapped = order == [0, 2, 1, 3] && how == How::File;
            let lost = if swapped { ranges[1..3].to_vec() } else { lost.clone() };
            let (got, end) = read_framed(how, &assemble(&archive, &order));
            assert_eq!(lost_ranges(&got), lost, "{order:?} by {how:?}");
            assert!(got.bytes == blank(stream.clone(), &lost), "{order:?} by {how:?}");
            assert_eq!(end.stream_len, stream.len() as u64);
        }
    }
}

#[test]
fn frames_of_another_archive_are_damage() {
    let script = Script::small();
    let archive = script.archive(ZSTD, 2);
    let mut sink = Memory::default();
    let mut other = options(ZSTD, 2);
    other.archive_id = Uuid::from_bytes(*b"another archive!");
    script.write(&Disks::new(script.images.clone()), &mut sink, &other).unwrap();
    let (frames, _) = frames(&archive);
    let mut mixed = archive.clone();
    mixed[frames[1].clone()].copy_from_slice(&sink.bytes[frames[1].clone()]);
    let lost = [chunk_ranges(&script)[1].clone()];
    for how in [How::Pipe, How::File] {
        let (got, end) = read_framed(how, &mixed);
        assert_eq!(lost_ranges(&got), lost);
        assert!(end.is_whole());
        // Who knows the archive's id is not told stories by the first frame.
        let known = ReadOptions { archive_id: Some(ID), ..read_options(2, None) };
        let (got, _) = read(how, &sink.bytes, &known).unwrap();
        assert!(got.lens.is_empty(), "{how:?}");
    }
}

#[test]
fn missing_and_added_bytes_cost_no_more_than_their_frame() {
    let script = Script::small();
    let archive = script.archive(ZSTD, 2);
    let (frames, _) = frames(&archive);
    let (ranges, stream) = (chunk_ranges(&script), script.stream());
    let mut short = archive.clone();
    short.drain(frames[1].start + 120..frames[1].start + 150);
    let mut long = archive.clone();
    let empty = ranges[2].start..ranges[2].start;
    long.splice(frames[2].start..frames[2].start, noise(100_000, 3));
    for how in [How::Pipe, How::File] {
        let (got, _) = read_framed(how, &short);
        let lost: Vec<_> = lost_ranges(&got).into_iter().filter(|range| !range.is_empty()).collect();
        assert_eq!(lost, [ranges[1].clone()], "{how:?}");
        assert!(got.bytes == blank(stream.clone(), &lost));
        let (got, _) = read_framed(how, &long);
        assert_eq!(lost_ranges(&got), std::slice::from_ref(&empty), "{how:?}");
        assert_eq!(got.lost[0].file, frames[2].start as u64..frames[2].start as u64 + 100_000);
        assert!(got.bytes == stream);
    }
}

#[test]
fn nothing_but_zeros_may_follow_the_seek_table() {
    let script = Script::small();
    let archive = script.archive(ZSTD, 2);
    let len = archive.len() as u64;
    for (how, last) in [(How::Pipe, 1), (How::File, 1), (How::Pipe, 0), (How::File, 0)] {
        let behind = [&archive[..], &[0; 300_000], &[last]].concat();
        let (got, end) = read_framed(how, &behind);
        assert!(got.lost.is_empty() && got.bytes == script.stream());
        let trailing = (last != 0).then_some(len..len + 300_001);
        assert_eq!((end.table.clone(), end.trailing.clone()), (SeekTableState::Intact, trailing));
        assert_eq!(end.is_whole(), last == 0);
    }
}

#[test]
fn a_later_layout_and_strange_files_are_refused() {
    let mut later = Script::small().archive(ZSTD, 1);
    later[16] = 2;
    let sum = crc32c::crc32c(&later[..HEADER_LEN - 4]);
    later[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&sum.to_le_bytes());
    for how in [How::Pipe, How::File] {
        let kind = |bytes: &[u8]| read(how, bytes, &read_options(1, None)).unwrap_err().kind();
        assert_eq!(kind(&later), ErrorKind::Unsupported);
        assert_eq!(kind(b""), ErrorKind::Incomplete);
        assert_eq!(kind(b"not an archive"), ErrorKind::Unsupported);
        assert_eq!(kind(&noise(5000, 4)), ErrorKind::Unsupported);
        let mut tar = vec![0; 1024];
        tar[257..262].copy_from_slice(b"ustar");
        for at in 0..tar.len() {
            let mut bad = tar.clone();
            bad[at] ^= 0x10;
            let (got, end) = read(how, &bad, &read_options(1, None)).unwrap();
            assert!(got.bytes == bad && end.carrier == Carrier::Plain);
        }
    }
}

#[test]
fn bytes_full_of_things_like_headers_are_scanned_in_bounded_time() {
    let table_like = [&0x184D_2A5E_u32.to_le_bytes()[..], &(9 + 16 * 1000_u32).to_le_bytes()].concat();
    let mut junk = PREFIX.repeat(200_000);
    junk.extend_from_slice(&table_like.repeat(400_000));
    let start = std::time::Instant::now();
    for how in [How::Pipe, How::File] {
        let (got, end) = read(how, &junk, &read_options(1, Some(Carrier::Framed))).unwrap();
        assert!(got.bytes.is_empty() && end.cut.is_some());
    }
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

#[test]
fn headers_that_claim_far_away_places_cost_no_memory() {
    let script = Script::small();
    let archive = script.archive(ZSTD, 1);
    let mut header = FrameHeader::decode(&archive).unwrap();
    header.number = 1 << 43;
    header.at = StreamOffset::new(1 << 62);
    let mut bad = archive.clone();
    bad[..HEADER_LEN].copy_from_slice(&header.encode());
    let mut damage = Vec::new();
    let outcome = read_pipe(Drip(&bad, 1 << 20), "test", &read_options(1, None), |chunk| {
        if let ChunkState::Damaged(found) = chunk.state {
            damage.push(found.clone());
        }
        Ok(())
    });
    assert!(!outcome.unwrap().is_whole());
    assert_eq!(damage[0].stream.end, header.at);
}

#[test]
fn an_error_of_the_consumer_ends_the_reading() {
    let image = noise(40 << 20, 9);
    let parts = vec![Part::Data { disk: 0, at: 0, len: image.len() }, Part::Tail];
    let script = Script { images: vec![image], parts };
    for (compression, carrier) in [(Compression::None, Carrier::Plain), (ZSTD, Carrier::Framed)] {
        let archive = script.archive(compression, 2);
        let file = File::new(archive.clone());
        let options = read_options(2, Some(carrier));
        for stop in [0, 1, 20, 39] {
            let mut count = 0;
            let mut consume = |_: Chunk<'_>| {
                count += 1;
                if count > stop { Err(Error::new(ErrorKind::NoSpace, "full")) } else { Ok(()) }
            };
            let piped = read_pipe(Drip(&archive, 1 << 20), "test", &options, &mut consume);
            assert_eq!(piped.unwrap_err().kind(), ErrorKind::NoSpace);
            count = 0;
            let mut consume = |_: Chunk<'_>| {
                count += 1;
                if count > stop { Err(Error::new(ErrorKind::NoSpace, "full")) } else { Ok(()) }
            };
            let random = RandomStream::open(&file, &options).unwrap();
            assert_eq!(random.chunks(all(), &mut consume).unwrap_err().kind(), ErrorKind::NoSpace);
        }
        options.cancel.store(true, std::sync::atomic::Ordering::Relaxed);
        let piped = read_pipe(Drip(&archive, 1 << 20), "test", &options, |_| Ok(()));
        assert_eq!(piped.unwrap_err().kind(), ErrorKind::Interrupted);
    }
}

#[test]
fn a_failing_pipe_is_an_error_and_a_bad_place_of_a_file_is_damage() {
    struct Broken<'a>(Drip<'a>);
    impl Read for Broken<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buf)? {
                0 => Err(io::Error::other("gone")),
                n => Ok(n),
            }
        }
    }
    let script = Script::small();
    let archive = script.archive(ZSTD, 2);
    for len in [0, 400, archive.len() / 2, archive.len()] {
        let input = Broken(Drip(&archive[..len], 333));
        let outcome = read_pipe(input, "test", &read_options(2, None), |_| Ok(()));
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Io);
    }
    let (frames, _) = frames(&archive);
    let mut file = File::new(archive);
    file.bad = frames[1].start as u64 + 200..frames[1].start as u64 + 201;
    let options = read_options(2, None);
    let mut got = Got::default();
    let random = RandomStream::open(&file, &options).unwrap();
    random
        .chunks(all(), |chunk| {
            got.take(chunk);
            Ok(())
        })
        .unwrap();
    let lost = chunk_ranges(&script)[1].clone();
    assert_eq!(lost_ranges(&got), std::slice::from_ref(&lost));
    assert!(got.lost[0].why.contains("can't be read"));
    let error = random.read_at(StreamOffset::new(lost.end - 1), &mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    random.read_at(StreamOffset::new(lost.end), &mut [0]).unwrap();
    drop(random);
    file.kind = ErrorKind::Internal;
    let random = RandomStream::open(&file, &options).unwrap();
    assert_eq!(random.chunks(all(), |_| Ok(())).unwrap_err().kind(), ErrorKind::Internal);
}
