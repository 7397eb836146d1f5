//! Maps against a naive model, and maps that lie.

use proptest::prelude::*;

use super::layout_fixture::{collect, pieces};
use super::sparse::{MapEntry, MapShape, full_runs};
use super::sparse_parser::{MapLocation, MapParser};
use virtfold_base::error::{ErrorKind, Result};
use virtfold_base::units::{GuestOffset, StreamOffset};

fn run(guest: u64, len: u64) -> MapEntry {
    MapEntry { guest: GuestOffset::new(guest), len }
}

/// Gaps and lengths, then the hole at the end.
fn tables() -> impl Strategy<Value = (u64, Vec<MapEntry>)> {
    let step = (0_u64..3, 0_u64..1 << 33, 1_u64..1 << 21);
    (proptest::collection::vec(step, 0..200), 0_u64..3, 0_u64..1 << 40).prop_map(|(steps, kind, hole)| {
        let mut end = 0;
        let mut runs = Vec::new();
        for (gap_kind, gap, len) in steps {
            // Runs that touch are one.
            let start = end + if runs.is_empty() && gap_kind == 0 { 0 } else { gap.max(1) };
            runs.push(run(start, len));
            end = start + len;
        }
        (end + if kind == 0 { 0 } else { hole }, runs)
    })
}

fn model(capacity: u64, runs: &[MapEntry]) -> String {
    let mut entries: Vec<(u64, u64)> = runs.iter().map(|r| (r.guest.get(), r.len)).collect();
    if entries.last().map_or(0, |(start, len)| start + len) < capacity {
        entries.push((capacity, 0));
    }
    let lines: String = entries.iter().map(|(start, len)| format!("{start}\n{len}\n")).collect();
    format!("{}\n{lines}", entries.len())
}

fn all(runs: &[MapEntry]) -> impl Iterator<Item = Result<MapEntry>> {
    runs.iter().copied().map(Ok)
}

/// Parses content in pieces: the runs and the bytes used.
fn parse(content: &[u8], sizes: &[usize], place: MapLocation) -> Result<(Vec<MapEntry>, u64)> {
    let mut parser = MapParser::new("vda", place, StreamOffset::new(1000));
    let mut found = Vec::new();
    for mut piece in pieces(content, sizes) {
        while let Some(run) = parser.feed(&mut piece)? {
            found.push(run);
        }
        assert!(piece.is_empty() || parser.is_complete());
    }
    parser.finish()?;
    assert_eq!(parser.runs(), found.len() as u64);
    Ok((found, parser.used()))
}

proptest! {
    #[test]
    fn maps_are_as_the_model_writes_them_and_parse_back((capacity, runs) in tables(),
                                                        sizes in proptest::collection::vec(1_usize..700, 1..4)) {
        let shape = MapShape::measure(capacity, all(&runs)).unwrap();
        let text = collect(|out| shape.write(all(&runs), out));
        let expect = model(capacity, &runs);
        prop_assert_eq!(std::str::from_utf8(&text).unwrap(), &expect);
        prop_assert_eq!(shape.text_len(), text.len() as u64);
        let dense: u64 = runs.iter().map(|r| r.len).sum();
        prop_assert_eq!(shape.dense_len(), dense);

        let mut content = collect(|out| shape.write_padded(all(&runs), out));
        prop_assert_eq!(content.len() as u64, shape.padded_len());
        prop_assert_eq!(content.len() % 512, 0);
        prop_assert_eq!(shape.member_size().unwrap(), content.len() as u64 + dense);
        content.extend(b"dense bytes");
        let place = MapLocation::member(shape.member_size().unwrap(), capacity);
        let (found, used) = parse(&content, &sizes, place).unwrap();
        prop_assert_eq!(&found, &runs);
        prop_assert_eq!(used, shape.padded_len());
        let place = MapLocation::copy(shape.text_len(), capacity, dense);
        prop_assert_eq!(parse(&text, &sizes, place).unwrap().0, runs);
    }

    #[test]
    fn a_changed_map_gives_an_error_or_a_sound_table((capacity, runs) in tables(), at in any::<prop::sample::Index>(),
                                                     byte in prop_oneof![Just(b'0'), Just(b'9'), Just(b'\n'), any::<u8>()],
                                                     sizes in proptest::collection::vec(1_usize..700, 1..4)) {
        let shape = MapShape::measure(capacity, all(&runs)).unwrap();
        let mut content = collect(|out| shape.write_padded(all(&runs), out));
        let at = at.index(content.len());
        content[at] = byte;
        match parse(&content, &sizes, MapLocation::member(shape.member_size().unwrap(), capacity)) {
            Err(error) => prop_assert_eq!(error.kind(), ErrorKind::Damaged),
            Ok((found, used)) => {
                // What is accepted must be a table, and one that fits the dense bytes.
                let again = MapShape::measure(capacity, all(&found)).unwrap();
                prop_assert_eq!(again.dense_len(), shape.dense_len());
                prop_assert_eq!(again.padded_len(), used);
                prop_assert_eq!(collect(|out| again.write_padded(all(&found), out)), content);
            }
        }
    }

    #[test]
    fn noise_is_no_map(noise in proptest::collection::vec(prop_oneof![any::<u8>(), b'0'..=b'9', Just(b'\n')], 0..400),
                       size in any::<u64>(), capacity in any::<u64>()) {
        for place in [MapLocation::member(size, capacity), MapLocation::copy(size, capacity, size / 2)] {
            if let Ok((found, _)) = parse(&noise, &[17], place) {
                prop_assert!(MapShape::measure(capacity.min(1 << 62), all(&found)).is_ok());
            }
        }
    }
}

#[test]
fn full_maps_are_one_run() {
    let text = |capacity| {
        let shape = MapShape::full(capacity).unwrap();
        String::from_utf8(collect(|out| shape.write(full_runs(capacity), out))).unwrap()
    };
    assert_eq!(text(12_345), "1\n0\n12345\n");
    assert_eq!(text(0), "0\n");
}

#[test]
fn lies_are_named() {
    let cases = [
        ("x\n", 10_000, "has a line that is not a number"),
        ("01\n", 10_000, "has a line that is not a number"),
        ("123456789012345678901\n", 10_000, "has a line that is not a number"),
        ("18446744073709551615\n", 10_000, "announces more entries than there is room for"),
        ("128\n", 512, "announces more entries than there is room for"),
        ("1\n4096\n0\n", 10_000, "has an empty entry"),
        ("2\n10000\n0\n0\n1\n", 10_000, "has an empty entry"),
        ("2\n4096\n512\n0\n512\n", 10_000, "has an entry that does not come behind the one before it"),
        ("2\n0\n512\n511\n1\n", 10_000, "has an entry that does not come behind the one before it"),
        ("2\n0\n512\n512\n1\n", 10_000, "has an entry that does not come behind the one before it"),
        ("1\n9000\n1001\n", 10_000, "has an entry that reaches beyond the disk's end"),
        ("1\n18446744073709551615\n1\n", 10_000, "has an entry that reaches beyond the disk's end"),
        ("1\n0\n512\n", 10_000, "ends before the disk does"),
        ("0\n", 10_000, "ends before the disk does"),
        ("2\n0\n4000\n8192\n1000\n", 4096, "has more dense bytes than announced"),
        ("2\n0\n511\n10000\n0\n", 1024, "does not add up to the announced number of dense bytes"),
        ("2\n0\n512\n10000\n0\n#", 1024, "is followed by something else than zeros"),
        ("2\n0\n512\n10000\n0\n", 1024, "is cut short"),
        ("2\n0\n512\n10000\n0", 1024, "is cut short"),
        ("11111111\n", 4, "is longer than announced"),
    ];
    for (text, size, message) in cases {
        let error = parse(text.as_bytes(), &[1000], MapLocation::member(size, 10_000)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        let shown = error.to_string();
        assert!(shown.ends_with(&format!("of its stream: the map of vda {message}")), "{text:?}: {shown}");
    }
    let copy = |len, dense| parse(b"1\n0\n10000\n", &[1000], MapLocation::copy(len, 10_000, dense));
    assert!(copy(10, 10_000).is_ok());
    assert!(copy(11, 10_000).unwrap_err().to_string().ends_with("is shorter than announced"));
    assert!(copy(9, 10_000).unwrap_err().to_string().ends_with("is longer than announced"));
    assert!(copy(10, 9_999).unwrap_err().to_string().ends_with("has more dense bytes than announced"));
    assert!(copy(10, 10_001).unwrap_err().to_string().contains("does not add up"));
}

#[test]
fn tables_that_are_none_are_not_written() {
    for runs in [vec![run(0, 0)], vec![run(10, 5), run(14, 1)], vec![run(99, 2)], vec![run(u64::MAX, 2)]] {
        assert_eq!(MapShape::measure(100, all(&runs)).unwrap_err().kind(), ErrorKind::Internal);
    }
    assert_eq!(MapShape::measure(1 << 63, all(&[])).unwrap_err().kind(), ErrorKind::Usage);
    // A table that changes between the two walks.
    let shape = MapShape::measure(100, all(&[run(10, 5)])).unwrap();
    for other in [vec![], vec![run(10, 6)], vec![run(10, 5), run(20, 5)]] {
        let error = shape.write(all(&other), &mut |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
    }
}

#[test]
fn a_copy_gives_no_run_beyond_the_announced_bytes() {
    // Found by fuzzing: the last run came out before the sum was looked at.
    let text = "2\n0\n4096\n8192\n1\n";
    let mut parser =
        MapParser::new("vda", MapLocation::copy(text.len() as u64, 10_000, 4096), StreamOffset::ZERO);
    let mut rest = text.as_bytes();
    assert_eq!(parser.feed(&mut rest).unwrap(), Some(run(0, 4096)));
    assert_eq!(parser.feed(&mut rest).unwrap_err().kind(), ErrorKind::Damaged);
}
