//! The carrier of a stream: seek table, walk along the frames and scan; from a file and from a pipe. Both
//! end, what one calls whole and undamaged the other gives byte for byte, and reading at a place gives what
//! reading in order gave.

use super::super::{Memory, flags, frames, no_defect, options};
use virtfold::archive::stream::{Carrier, Chunk, ChunkState, RandomStream, StreamEnd, read_pipe};
use virtfold::units::StreamOffset;

/// What a reader delivered: offset, bytes; `None` where they are lost.
type Delivered = Vec<(u64, Option<Vec<u8>>)>;

/// One input.
pub fn run(data: &[u8]) {
    let Some((flags, data)) = flags(data) else { return };
    let mut data = data.to_vec();
    if flags & 1 != 0 {
        frames(&mut data);
    }
    let mut piped = Delivered::new();
    let pipe = no_defect(read_pipe(&data[..], "fuzz", &options(), |chunk| {
        take(&mut piped, &chunk);
        Ok(())
    }));
    let source = Memory(&data);
    let Some(stream) = no_defect(RandomStream::open(&source, &options())) else {
        assert!(pipe.is_none_or(|end| !end.is_whole()), "a whole stream can be opened");
        return;
    };
    let whole = StreamOffset::ZERO..StreamOffset::new(stream.len());
    let mut random = Delivered::new();
    no_defect(stream.chunks(whole, |chunk| {
        take(&mut random, &chunk);
        Ok(())
    }))
    .expect("a stream in memory can be read");
    check_places(&stream, &random);
    // Where something is damaged, the table and the walk may find different frames.
    let clean = |end: &StreamEnd, all: &Delivered| end.is_whole() && all.iter().all(|(_, b)| b.is_some());
    if stream.end().carrier == Carrier::Plain {
        // What a file has behind its archive in zeros is not of it; a pipe can't know before its end.
        let (piped, random) = (bytes_of(&piped), bytes_of(&random));
        let behind = piped.strip_prefix(&random[..]).expect("a pipe and a file give one stream");
        assert!(behind.iter().all(|byte| *byte == 0), "only zeros are left out");
        if behind.is_empty() {
            assert_eq!(pipe.as_ref(), Some(stream.end()));
        }
    } else if clean(stream.end(), &random) || pipe.as_ref().is_some_and(|end| clean(end, &piped)) {
        assert!(piped == random, "a pipe and a file give one stream");
        assert_eq!(pipe.as_ref(), Some(stream.end()));
    }
}

/// All that was delivered, in one piece.
fn bytes_of(all: &Delivered) -> Vec<u8> {
    all.iter().flat_map(|(_, bytes)| bytes.as_deref().unwrap_or_default()).copied().collect()
}

fn take(all: &mut Delivered, chunk: &Chunk<'_>) {
    let lost = matches!(chunk.state, ChunkState::Damaged(_));
    assert!(!lost || chunk.bytes.is_empty());
    if let Some((at, bytes)) = all.last() {
        let end = at + bytes.as_ref().map_or(0, Vec::len) as u64;
        assert!(chunk.at.get() >= end, "chunks ascend");
    }
    all.push((chunk.at.get(), (!lost).then(|| chunk.bytes.to_vec())));
}

/// Reads across the borders of the chunks.
fn check_places(stream: &RandomStream<'_>, random: &Delivered) {
    for pair in random.windows(2).take(16) {
        let [(at, Some(first)), (next, Some(second))] = pair else { continue };
        if at + first.len() as u64 != *next {
            continue;
        }
        let (before, behind) = (first.len().min(100), second.len().min(100));
        let mut buf = vec![0; before + behind];
        let from = StreamOffset::new(next - before as u64);
        stream.read_at(from, &mut buf).expect("what was delivered can be read");
        assert!(buf == [&first[first.len() - before..], &second[..behind]].concat(), "at {from}");
    }
    let end = StreamOffset::new(stream.len());
    assert!(stream.read_at(end, &mut [0]).is_err(), "there is nothing behind the end");
}
