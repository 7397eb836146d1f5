//! Tar headers with pax records, sparse maps, allocation tables, recovery copies: however the bytes are cut,
//! the parsers find the same.

use super::super::{flags, no_defect, tar_sums};
use virtfold::archive::allocation_csv::{AllocationRow, CsvParser};
use virtfold::archive::layout::BackupKind;
use virtfold::archive::recovery::RecoveryParser;
use virtfold::archive::sparse::MapEntry;
use virtfold::archive::sparse_parser::{MapLocation, MapParser};
use virtfold::archive::tar_parser::{Event, Member, MemberParser};
use virtfold::error::Result;
use virtfold::units::StreamOffset;

/// One input.
pub fn run(data: &[u8]) {
    let Some((flags, data)) = flags(data) else { return };
    let cut = usize::from(flags >> 3) * 37 + 1;
    match flags & 7 {
        0 => members(data, cut),
        1 => {
            let mut data = data.to_vec();
            tar_sums(&mut data);
            members(&data, cut);
        }
        kind => {
            let Some((numbers, text)) = data.split_first_chunk::<8>() else { return };
            let number = u64::from_le_bytes(*numbers);
            // Small numbers more often than chance has it.
            let capacity = number >> (number % 64);
            match kind {
                2 | 3 => map(text, capacity, cut),
                4 | 5 => csv(text, capacity, cut),
                _ => recovery(text, cut),
            }
        }
    }
}

/// The text whole and in pieces must give the same.
fn both_ways<T: PartialEq + std::fmt::Debug>(
    text: &[u8],
    cut: usize,
    mut parse: impl FnMut(&mut dyn Iterator<Item = &[u8]>) -> Result<T>,
) -> Option<T> {
    let whole = parse(&mut std::iter::once(text));
    let pieces = parse(&mut text.chunks(cut));
    match (whole, pieces) {
        (Ok(whole), Ok(pieces)) => {
            assert!(whole == pieces, "what is found depends on where the pieces end");
            Some(whole)
        }
        (Err(whole), Err(pieces)) => {
            // The sentences name how far the parser had read, which differs.
            assert_eq!(whole.kind(), pieces.kind(), "{whole:?}, in pieces: {pieces:?}");
            no_defect::<T>(Err(whole))
        }
        (whole, pieces) => panic!("whole: {whole:?}, in pieces: {pieces:?}"),
    }
}

fn members(data: &[u8], cut: usize) {
    both_ways(data, cut, |pieces| {
        let mut parser = MemberParser::new();
        let mut found: Vec<(Member, Vec<u8>)> = Vec::new();
        let mut ended = 0;
        for piece in pieces {
            let mut rest = piece;
            while let Some(event) = parser.feed(&mut rest)? {
                match event {
                    Event::Begin(member) => {
                        assert!(member.header_at < member.content_at);
                        found.push((member, Vec::new()));
                    }
                    Event::Content(bytes) => {
                        assert!(!bytes.is_empty());
                        found.last_mut().expect("content has a member").1.extend_from_slice(bytes);
                    }
                    Event::End => {
                        let (member, content) = found.last().expect("an end has a member");
                        assert_eq!(member.size, content.len() as u64);
                    }
                    Event::EndOfArchive => ended += 1,
                }
            }
            assert!(rest.is_empty());
        }
        assert!(ended <= 1);
        Ok((found, parser.finish().is_ok()))
    });
}

fn map(text: &[u8], capacity: u64, cut: usize) {
    // A member is its map and its dense bytes: the latter are as many as the first eight bytes say.
    let Some((dense, text)) = text.split_first_chunk::<4>() else { return };
    let size = (text.len() as u64).next_multiple_of(512) + u64::from(u32::from_le_bytes(*dense));
    both_ways(text, cut, |pieces| {
        let mut parser = MapParser::new("vda", MapLocation::member(size, capacity), StreamOffset::ZERO);
        let mut runs = Vec::new();
        let mut used = 0;
        for piece in pieces {
            let mut rest = piece;
            while let Some(run) = parser.feed(&mut rest)? {
                runs.push(run);
            }
            used += piece.len() - rest.len();
            if parser.is_complete() {
                break;
            }
        }
        check_runs(&runs, capacity);
        if parser.is_complete() {
            assert_eq!(parser.used(), used as u64);
            assert_eq!(parser.dense_len(), runs.iter().map(|run| run.len).sum::<u64>());
            assert_eq!(parser.used() + parser.dense_len(), size);
            parser.finish()?;
        }
        Ok((runs, parser.is_complete()))
    });
}

fn check_runs(runs: &[MapEntry], capacity: u64) {
    let mut end = 0;
    for (index, run) in runs.iter().enumerate() {
        let apart = run.guest.get() > end || index == 0;
        assert!(run.len > 0 && apart, "runs neither overlap nor touch: {runs:?}");
        end = run.guest.checked_add(run.len).expect("a run ends").get();
        assert!(end <= capacity, "a run lies on its disk");
    }
}

fn csv(text: &[u8], capacity: u64, cut: usize) {
    let rows: Option<(Vec<AllocationRow>, bool)> = both_ways(text, cut, |pieces| {
        let mut parser =
            CsvParser::new("vda.allocation.csv", capacity, StreamOffset::ZERO, BackupKind::Incremental);
        let mut rows = Vec::new();
        for piece in pieces {
            let mut rest = piece;
            while let Some(row) = parser.feed(&mut rest)? {
                rows.push(row);
            }
        }
        Ok((rows, parser.finish().is_ok()))
    });
    let Some((rows, complete)) = rows else { return };
    let mut end = 0;
    for row in &rows {
        assert_eq!(row.guest.get(), end, "rows have no gaps");
        end = row.guest.checked_add(row.len).expect("a row ends").get();
    }
    assert!(end <= capacity && (!complete || end == capacity));
}

fn recovery(text: &[u8], cut: usize) {
    let found = both_ways(text, cut, |pieces| {
        let mut parser = RecoveryParser::new("vda", text.len() as u64, StreamOffset::ZERO);
        let mut runs = Vec::new();
        for piece in pieces {
            let mut rest = piece;
            while let Some(run) = parser.feed(&mut rest)? {
                runs.push(run);
            }
        }
        let head = parser.head().map(|head| (head.capacity, head.dense_len));
        Ok((runs, head, parser.finish().is_ok()))
    });
    if let Some((runs, Some((capacity, dense_len)), complete)) = found {
        check_runs(&runs, capacity);
        let sum = runs.iter().map(|run| run.len).sum::<u64>();
        assert!(sum <= dense_len && (!complete || sum == dense_len));
    }
}
