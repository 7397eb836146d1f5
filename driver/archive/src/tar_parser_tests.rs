//! The member parser: whole archives in any pieces, headers that lie, streams that end early.

use proptest::prelude::*;

use super::layout_fixture::{Made, TIME, TestDisk, make, pieces};
use super::pax::Records;
use super::tar::{ALIGNMENT, BLOCK, END_OF_ARCHIVE, Header, HeaderEncoder, MAX_OCTAL, Type, padding};
use super::tar_parser::{Event, Member, MemberParser};
use crate::sparse::MapShape;
use virtfold_base::error::{ErrorKind, Result};
use virtfold_base::units::{GIB, StreamOffset};

fn small() -> Made {
    let disks = [
        TestDisk::compact("vda", 100 * GIB, &[(0, 4096), (9 * GIB, 700)]),
        TestDisk::full("vdb", 5000),
        TestDisk::compact("vdc", 0, &[]),
    ];
    make(&disks, "long/".repeat(30).trim_end_matches('/'))
}

/// All members with their content; the flag says whether the end was seen.
type Found = (Vec<(Member, Vec<u8>)>, bool);

fn read(bytes: &[u8], sizes: &[usize]) -> Result<Found> {
    let mut parser = MemberParser::new();
    let mut found = Vec::new();
    let mut open = false;
    let mut ended = false;
    for mut piece in pieces(bytes, sizes) {
        while let Some(event) = parser.feed(&mut piece)? {
            match event {
                Event::Begin(member) => {
                    assert!(!open && !ended);
                    found.push((member, Vec::new()));
                    open = true;
                }
                Event::Content(content) => {
                    assert!(open && !content.is_empty());
                    found.last_mut().unwrap().1.extend_from_slice(content);
                }
                Event::End => {
                    let (member, content) = found.last().unwrap();
                    assert!(open && content.len() as u64 == member.size);
                    open = false;
                }
                Event::EndOfArchive => ended = true,
            }
        }
        assert!(piece.is_empty());
    }
    parser.finish()?;
    assert_eq!(parser.position().get(), bytes.len() as u64);
    Ok((found, ended))
}

#[test]
fn finds_every_member_however_the_stream_is_cut() {
    let made = small();
    let whole = read(&made.bytes, &[1 << 20]).unwrap();
    assert!(whole.1);
    let names: Vec<&str> = whole.0.iter().map(|(member, _)| member.name.as_str()).collect();
    assert_eq!(names, made.members.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>());
    for ((member, content), (_, expect)) in whole.0.iter().zip(&made.members) {
        assert_eq!(member.mtime, TIME);
        let at = usize::try_from(member.content_at.get()).unwrap();
        assert_eq!(&made.bytes[at..at + content.len()], content);
        assert!(member.header_at.is_aligned(BLOCK) && member.header_at < member.content_at);
        if let Some(expect) = expect {
            assert_eq!((content, member.realsize), (expect, None));
        }
    }
    assert_eq!(whole.0[3].0.realsize, Some(100 * GIB));
    assert_eq!(whole.0[5].0.realsize, None);
    for sizes in [vec![1], vec![511], vec![512], vec![513, 1, 7]] {
        assert_eq!(read(&made.bytes, &sizes).unwrap(), whole);
    }
}

#[test]
fn content_can_be_skipped_and_reading_can_begin_at_any_member() {
    let made = small();
    let (members, _) = read(&made.bytes, &[4096]).unwrap();
    for (first, (member, _)) in members.iter().enumerate() {
        let mut parser = MemberParser::at(member.header_at);
        let mut at = usize::try_from(member.header_at.get()).unwrap();
        let mut found = Vec::new();
        loop {
            let mut input = &made.bytes[at..(at + 512).min(made.bytes.len())];
            let event = parser.feed(&mut input).unwrap();
            if let Some(Event::Begin(member)) = &event {
                assert_eq!(parser.content_left(), member.size);
                assert_eq!(parser.skip_content(u64::MAX), member.size);
                assert_eq!(parser.skip_content(1), 0);
                found.push(member.clone());
            }
            at = usize::try_from(parser.position().get()).unwrap();
            if event == Some(Event::EndOfArchive) {
                break;
            }
        }
        let expect: Vec<Member> = members[first..].iter().map(|(member, _)| member.clone()).collect();
        assert_eq!(found, expect);
    }
}

#[test]
fn a_cut_stream_is_incomplete_and_a_longer_one_is_damaged() {
    let made = small();
    for len in (0..made.bytes.len()).step_by(97).chain([made.bytes.len() - 1, made.bytes.len() - 512]) {
        let error = read(&made.bytes[..len], &[1000]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Incomplete, "{len}");
        let expect = format!("the archive's stream ends after {len} bytes, before its end record");
        assert_eq!(error.to_string(), expect);
    }
    let mut longer = made.bytes.clone();
    longer.push(0);
    for size in [1, 512, 1 << 20] {
        let error = read(&longer, &[size]).unwrap_err();
        let expect = format!(
            "the archive is damaged at byte {} of its stream: something follows the end",
            made.bytes.len()
        );
        assert_eq!(error.to_string(), expect);
    }
}

/// A header block with one field overwritten and the checksum made right again.
fn forged(at: usize, bytes: &[u8]) -> Vec<u8> {
    let header = Header { name: "domain.xml".into(), size: 5, mtime: TIME, kind: Type::File };
    let mut block = header.encode().to_vec();
    block[at..at + bytes.len()].copy_from_slice(bytes);
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// A pax header of these records, then a member `domain.xml` of 5 bytes.
fn with_records(records: &str) -> Vec<u8> {
    below(
        Header { name: PAX.into(), size: 0, mtime: TIME, kind: Type::Pax },
        records.as_bytes(),
        &forged(0, b""),
    )
}

/// The name of the pax header of `domain.xml`.
const PAX: &str = "PaxHeaders.0/domain.xml";

/// A member's header below a pax header of these records.
fn below(pax: Header, records: &[u8], member: &[u8]) -> Vec<u8> {
    let len = records.len() as u64;
    [&Header { size: len, ..pax }.encode(), records, padding(len), member].concat()
}

fn record(keyword: &str, value: &str) -> String {
    let bare = keyword.len() + value.len() + 3;
    let len = bare + (bare + 2).to_string().len();
    format!("{len} {keyword}={value}\n")
}

#[test]
fn bad_header_blocks_are_named() {
    let mut unsummed = forged(0, b"");
    unsummed[0] = b'D';
    let mut no_sum = forged(0, b"");
    no_sum[148] = b'x';
    let cases = [
        (unsummed, "a tar header does not match its checksum"),
        (no_sum, "a tar header's checksum is not an octal number"),
        (forged(156, b"2"), "a tar header has type '2', not '0' or 'x'"),
        (forged(156, b"\0"), "a tar header has type '\\x00', not '0' or 'x'"),
        (forged(156, b"g"), "a tar header has type 'g', not '0' or 'x'"),
        (forged(124, b"00000000009"), "a tar header's size is not an octal number"),
        (forged(124, b"\x80\0\0\0"), "a tar header's size is not an octal number"),
        (forged(135, b" "), "a tar header's size field is not as virtfold writes it"),
        (forged(136, b"           "), "a tar header's mtime is not an octal number"),
        (forged(0, b"\xff"), "a tar header's name is not UTF-8"),
        (forged(50, b"x"), "a tar header's name field is not as virtfold writes it"),
        (forged(100, b"0000644"), "a tar header's mode field is not as virtfold writes it"),
        (forged(108, b"0001750"), "a tar header's uid field is not as virtfold writes it"),
        (forged(157, b"/etc/passwd"), "a tar header's link name field is not as virtfold writes it"),
        (forged(257, b"ustar  \0"), "a tar header's magic field is not as virtfold writes it"),
        (forged(263, b"01"), "a tar header's version field is not as virtfold writes it"),
        (forged(265, b"root"), "a tar header's user name field is not as virtfold writes it"),
        (forged(345, b"dir"), "a tar header's prefix field is not as virtfold writes it"),
        (forged(511, b"x"), "a tar header's padding field is not as virtfold writes it"),
        (forged(0, &[0; 10]), "invalid member name ''"),
        (forged(0, b"/omain.xml"), "invalid member name '/omain.xml'"),
        (forged(0, b"../ain.xml"), "invalid member name '../ain.xml'"),
        (forged(0, b"a/../b.xml"), "invalid member name 'a/../b.xml'"),
        (forged(0, b"a\nb"), "invalid member name 'a\\nbain.xml'"),
        (forged(0, b"GNUSparseFile.0/a"), "invalid member name 'GNUSparseFile.0/a'"),
        ([vec![0; 512], forged(0, b"")].concat(), "a lone block of zeros stands between members"),
    ];
    for (bytes, message) in cases {
        let at = bytes.len() - 512;
        let error = read(&bytes, &[700]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert_eq!(
            error.to_string(),
            format!("the archive is damaged at byte {at} of its stream: {message}")
        );
    }
}

#[test]
fn bad_pax_headers_are_named() {
    let sparse = |major: &str, name: &str, realsize: &str| {
        record("GNU.sparse.major", major)
            + &record("GNU.sparse.minor", "0")
            + &record("GNU.sparse.name", name)
            + &record("GNU.sparse.realsize", realsize)
    };
    let size = "a pax header and a tar header contradict each other in the size";
    let name = "a pax header and a tar header contradict each other in the name";
    let cases = [
        ("11 path=a\n".into(), "a pax record is malformed"),
        ("10 path=ab".into(), "a pax record is malformed"),
        ("99999999999999999999 a=b\n".into(), "a pax record is malformed"),
        ("18446744073709551615 a=b\n".into(), "a pax record is malformed"),
        ("0 a=b\n".into(), "a pax record is malformed"),
        ("4 a=\n".into(), "a pax record is malformed"),
        ("5 =b\n".into(), "a pax record is malformed"),
        (record("linkpath", "/etc"), "a pax header has the keyword 'linkpath'"),
        (record("mtime", "1.5"), "a pax header has the keyword 'mtime'"),
        (record("GNU.sparse.map", "0,1"), "a pax header has the keyword 'GNU.sparse.map'"),
        (record("size", "5") + &record("size", "5"), "a pax header has 'size' twice"),
        (record("comment", "a") + &record("comment", "b"), "a pax header has 'comment' twice"),
        (record("VENDOR.x", "a") + &record("VENDOR.x", "a"), "a pax header has 'VENDOR.x' twice"),
        (record("size", "05"), "pax record 'size' is not a decimal number"),
        (record("size", "6"), size),
        (record("size", "9000000000"), size),
        (record("path", "other.xml"), name),
        (record("path", "domain"), name),
        (record("path", &"x".repeat(200)), name),
        (sparse("1", "domain.xml", "5"), name),
        (sparse("0", "domain.xml", "5"), "a pax header describes no sparse member of format 1.0"),
        (record("GNU.sparse.major", "1"), "a pax header describes no sparse member of format 1.0"),
        (sparse("1", "domain.xml", "5") + &record("path", "domain.xml"), name),
    ];
    for (records, message) in cases {
        let error = read(&with_records(&records), &[700]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(error.to_string().ends_with(&format!("of its stream: {message}")), "{records}: {error}");
    }
    let mut twice = with_records(&record("comment", "x"));
    let pax = twice[..1024].to_vec();
    twice.splice(1024..1024, pax.clone());
    let ended = [pax.as_slice(), &END_OF_ARCHIVE].concat();
    for bytes in [twice, ended] {
        let error = read(&bytes, &[700]).unwrap_err();
        assert!(error.to_string().ends_with("a pax header is followed by no member"), "{error}");
    }
    for size in [0, (1 << 20) + 1] {
        let header = Header { name: "PaxHeaders.0/x".into(), size, mtime: TIME, kind: Type::Pax };
        let error = read(&header.encode(), &[700]).unwrap_err();
        assert!(error.to_string().ends_with(&format!("a pax header has {size} bytes")), "{error}");
    }
}

#[test]
fn other_vendors_and_comments_change_nothing() {
    let records =
        record("VENDOR.thing", "\u{e4}") + &record("comment", "hello") + &record("LIBARCHIVE.x", "y");
    let mut bytes = with_records(&records);
    bytes.extend(b"hello");
    bytes.extend(padding(5));
    bytes.extend(END_OF_ARCHIVE);
    let (members, ended) = read(&bytes, &[100]).unwrap();
    assert!(ended);
    assert_eq!((members[0].0.name.as_str(), members[0].1.as_slice()), ("domain.xml", b"hello".as_slice()));
    // Bytes in the padding are damage.
    for at in [1024 + 512 + 5, 1024 - 1] {
        let mut bad = bytes.clone();
        bad[at] = 1;
        assert!(
            read(&bad, &[100]).unwrap_err().to_string().ends_with("the padding of a member is not zeros")
        );
    }
}

/// What says the same twice contradicts nothing.
#[test]
fn records_may_say_what_the_header_could() {
    let pax = || Header { name: PAX.into(), size: 0, mtime: TIME, kind: Type::Pax };
    let unsized_header = forged(124, b"00000000000");
    let member = parse_one(&below(pax(), record("size", "5").as_bytes(), &unsized_header), 0);
    assert_eq!((member.name.as_str(), member.size), ("domain.xml", 5));
    let member = parse_one(&below(pax(), record("path", "domain.xml").as_bytes(), &forged(0, b"")), 0);
    assert_eq!((member.name.as_str(), member.size), ("domain.xml", 5));
    // Of other vendors, any bytes.
    let member = parse_one(&below(pax(), b"12 ABC.d=\xff\xfe\n", &forged(0, b"")), 0);
    assert_eq!(member.name, "domain.xml");
}

#[test]
fn a_pax_header_is_named_and_dated_as_its_member() {
    let pax = |name: &str, mtime| Header { name: name.into(), size: 0, mtime, kind: Type::Pax };
    for wrong in [pax(PAX, TIME + 1), pax("PaxHeaders.0/x", TIME), pax("domain.xml", TIME)] {
        let error =
            read(&below(wrong, record("comment", "x").as_bytes(), &forged(0, b"")), &[700]).unwrap_err();
        assert!(
            error.to_string().ends_with("a pax header has another name or time than its member"),
            "{error}"
        );
    }
}

fn parse_one(header: &[u8], at: u64) -> Member {
    let mut parser = MemberParser::at(StreamOffset::new(at));
    let mut input = header;
    match parser.feed(&mut input).unwrap().unwrap() {
        Event::Begin(member) => {
            assert!(input.is_empty());
            member
        }
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn disks_begin_at_multiples_of_4096(block in 0_u64..1 << 40, size in prop_oneof![0_u64..10_000, any::<u64>()],
                                        entries in 0_u64..2000, target in "[A-Za-z0-9_-]{1,32}") {
        let (at, size) = (block * BLOCK, size >> 1);
        let headers = HeaderEncoder::new(TIME).unwrap();
        let size = size - size.min(at + 8192);
        let header = headers.aligned(&format!("{target}.raw"), size, StreamOffset::new(at)).unwrap();
        prop_assert!(header.len() as u64 <= ALIGNMENT + 3 * BLOCK);
        let member = parse_one(&header, at);
        prop_assert!(member.content_at.is_aligned(ALIGNMENT));
        prop_assert_eq!((member.size, member.realsize), (size, None));

        let runs = (0..entries).map(|i| Ok(super::sparse::MapEntry { guest: virtfold_base::units::GuestOffset::new(i * 8192), len: 4096 }));
        let shape = MapShape::measure(entries * 8192 + size / 2, runs).unwrap();
        let header = headers.sparse(&target, &shape, StreamOffset::new(at)).unwrap();
        let member = parse_one(&header, at);
        prop_assert!(member.content_at.saturating_add(shape.padded_len()).is_aligned(ALIGNMENT));
        prop_assert_eq!(member.realsize, Some(shape.capacity()));
        prop_assert_eq!(member.size, shape.member_size().unwrap());
        prop_assert_eq!(member.name, format!("{}.raw", target));
    }

    #[test]
    fn plain_headers_round_trip(name in "[a-z ._-]{1,40}(/[a-z]{1,90}){0,3}", size in prop_oneof![0..=MAX_OCTAL + 1, 0..=1_u64 << 62]) {
        let headers = HeaderEncoder::new(TIME).unwrap();
        let Ok(header) = headers.plain(&name, size) else {
            let first = name.split('/').next().unwrap();
            prop_assert!(first == "." || first == "..");
            return Ok(());
        };
        prop_assert_eq!(header.len() == 512, name.len() <= 100 && size <= MAX_OCTAL);
        let member = parse_one(&header, 0);
        prop_assert_eq!((member.name, member.size), (name, size));
    }

    #[test]
    fn changed_archives_never_panic_and_noise_is_refused(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
                                                        size in 1_usize..3000) {
        static MADE: std::sync::LazyLock<Made> = std::sync::LazyLock::new(small);
        let mut bytes = MADE.bytes.clone();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Err(error) = read(&bytes, &[size]) {
            prop_assert!(matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Incomplete));
        }
    }

    #[test]
    fn noise_is_no_pax_header(noise in "[0-9]{1,2} ([a-zA-Z.]{0,9}=?[0-9a-z]{0,9}\n[0-9 ]{0,3}){0,4}") {
        if let Ok(records) = Records::parse(noise.as_bytes()) {
            prop_assert_eq!(records.sparse, None);
        }
    }
}
