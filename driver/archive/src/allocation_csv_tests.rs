//! Allocation tables as text: against a naive model, changed, and cut.

use proptest::prelude::*;

use super::allocation_csv::{AllocationKind, AllocationRow, CsvParser, CsvShape};
use super::layout::BackupKind;
use super::layout_fixture::{collect, pieces};
use virtfold_base::error::{ErrorKind, Result};
use virtfold_base::units::{GuestOffset, HostOffset, StreamOffset};

fn tables() -> impl Strategy<Value = (u64, Vec<AllocationRow>)> {
    use AllocationKind::{Data, Unallocated, Unchanged, Zero};
    let kind = prop_oneof![Just(Data), Just(Zero), Just(Unallocated), Just(Unchanged)];
    let row = (1_u64..1 << 40, kind, proptest::option::of(any::<u64>()));
    proptest::collection::vec(row, 0..60).prop_map(|steps| {
        let mut end = 0;
        let rows = steps
            .into_iter()
            .map(|(len, kind, host)| {
                let guest = GuestOffset::new(end);
                end += len;
                AllocationRow { guest, len, kind, host: host.map(HostOffset::new) }
            })
            .collect();
        (end, rows)
    })
}

fn model(rows: &[AllocationRow]) -> String {
    let mut text = "guest_offset,length,kind,host_offset\n".to_owned();
    for row in rows {
        let kind = format!("{:?}", row.kind).to_lowercase();
        let host = row.host.map_or(String::new(), |host| host.to_string());
        text += &format!("{},{},{kind},{host}\n", row.guest, row.len);
    }
    text
}

fn all(rows: &[AllocationRow]) -> impl Iterator<Item = Result<AllocationRow>> {
    rows.iter().copied().map(Ok)
}

fn parse(text: &[u8], sizes: &[usize], capacity: u64) -> Result<Vec<AllocationRow>> {
    let mut parser =
        CsvParser::new("vda.allocation.csv", capacity, StreamOffset::new(5120), BackupKind::Incremental);
    let mut found = Vec::new();
    for mut piece in pieces(text, sizes) {
        while let Some(row) = parser.feed(&mut piece)? {
            found.push(row);
        }
        assert!(piece.is_empty());
    }
    parser.finish()?;
    Ok(found)
}

proptest! {
    #[test]
    fn tables_are_as_the_model_writes_them_and_parse_back((capacity, rows) in tables(),
                                                          sizes in proptest::collection::vec(1_usize..90, 1..4)) {
        let shape = CsvShape::measure(capacity, all(&rows)).unwrap();
        let text = collect(|out| shape.write(all(&rows), out));
        let expect = model(&rows);
        prop_assert_eq!(std::str::from_utf8(&text).unwrap(), &expect);
        prop_assert_eq!(shape.text_len(), text.len() as u64);
        prop_assert_eq!(shape.rows(), rows.len() as u64);
        prop_assert_eq!(parse(&text, &sizes, capacity).unwrap(), rows);
    }

    #[test]
    fn a_changed_table_gives_an_error_or_another_sound_table((capacity, rows) in tables(), at in any::<prop::sample::Index>(),
                                                             byte in prop_oneof![b'0'..=b'9', Just(b','), Just(b'\n'), any::<u8>()],
                                                             sizes in proptest::collection::vec(1_usize..90, 1..4)) {
        let mut text = model(&rows).into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        match parse(&text, &sizes, capacity) {
            Err(error) => prop_assert_eq!(error.kind(), ErrorKind::Damaged),
            Ok(found) => prop_assert_eq!(model(&found).into_bytes(), text),
        }
    }
}

#[test]
fn bad_tables_are_named() {
    let title = "guest_offset,length,kind,host_offset\n";
    let cases = [
        ("", 5120, "ends before the disk does"),
        ("guest_offset,length\n", 5120, "does not begin with its header line"),
        ("{t}0,100,data,0\n0,1,data,\n", 5170, "has a row that does not follow the one before it"),
        ("{t}0,50,data,0\n60,40,zero,\n", 5169, "has a row that does not follow the one before it"),
        ("{t}0,101,data,0\n", 5157, "has a row that does not follow the one before it"),
        ("{t}0,0,data,0\n", 5157, "has a row that does not follow the one before it"),
        ("{t}0,50,data,0\n", 5169, "ends before the disk does"),
        ("{t}0,100,data,0", 5169, "ends before the disk does"),
        ("{t}0,100,data\n", 5157, "has a malformed line"),
        ("{t}0,100,data,0,0\n", 5157, "has a malformed line"),
        ("{t}0,100,Data,0\n", 5157, "has a malformed line"),
        ("{t}0,0100,data,0\n", 5157, "has a malformed line"),
        ("{t}0,100,data,0\r\n", 5157, "has a malformed line"),
        ("{t}0,99999999999999999999,data,\n", 5157, "has a malformed line"),
    ];
    for (text, at, message) in cases {
        let error = parse(text.replace("{t}", title).as_bytes(), &[1000], 100).unwrap_err();
        let expect =
            format!("the archive is damaged at byte {at} of its stream: 'vda.allocation.csv' {message}");
        assert_eq!(error.to_string(), expect, "{text:?}");
    }
    let endless = format!("{title}{}", "1".repeat(10_000));
    let error = parse(endless.as_bytes(), &[7], 100).unwrap_err();
    assert!(error.to_string().ends_with("has a line that is too long"), "{error}");
}

#[test]
fn in_a_full_archive_nothing_is_unchanged() {
    for (kind, fine) in [(BackupKind::Full, false), (BackupKind::Incremental, true)] {
        let mut parser = CsvParser::new("vda.allocation.csv", 10, StreamOffset::ZERO, kind);
        let text = b"guest_offset,length,kind,host_offset\n0,10,unchanged,\n";
        assert_eq!(parser.feed(&mut text.as_slice()).is_ok(), fine, "{kind:?}");
    }
}

#[test]
fn tables_with_gaps_are_not_written() {
    let row = |guest, len| AllocationRow {
        guest: GuestOffset::new(guest),
        len,
        kind: AllocationKind::Data,
        host: None,
    };
    for rows in
        [vec![], vec![row(0, 99)], vec![row(0, 101)], vec![row(1, 99)], vec![row(0, 100), row(100, 0)]]
    {
        assert_eq!(CsvShape::measure(100, all(&rows)).unwrap_err().kind(), ErrorKind::Internal);
    }
    let shape = CsvShape::measure(100, all(&[row(0, 100)])).unwrap();
    assert!(shape.write(all(&[row(0, 10), row(10, 90)]), &mut |_| Ok(())).is_err());
}
