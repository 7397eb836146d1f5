//! Whole archives: names and order, all members read and held against each other, the tail, the frozen form.

use proptest::prelude::*;

use super::allocation_csv::CsvParser;
use super::end_record::{self, DigestsParser, EndRecord, MAX_LEN, RootHasher};
use super::layout::{self, BackupKind, DiskMembers, Layout, MemberOrder, MemberRole};
use super::layout_fixture::{Made, TIME, TestDisk, digests, make, make_signed, pieces};
use super::manifest::Manifest;
use super::recovery::RecoveryParser;
use super::sign;
use super::sparse_parser::{MapLocation, MapParser};
use super::tar_parser::{Event, Member, MemberParser};
use virtfold_base::error::{ErrorKind, Result};
use virtfold_base::units::StreamOffset;

fn plain(target: &str) -> DiskMembers<'_> {
    DiskMembers { target, has_blocks: false }
}

fn disks() -> Vec<TestDisk> {
    vec![
        TestDisk::compact("vda", 1 << 40, &[(0, 4096), (1 << 33, 700)]),
        TestDisk::full("vdb", 5000),
        TestDisk::compact("big", 1 << 22, &[(4096, (3 << 20) - 5)]),
    ]
}

fn read(bytes: &[u8]) -> Vec<(Member, Vec<u8>)> {
    let mut parser = MemberParser::new();
    let mut found: Vec<(Member, Vec<u8>)> = Vec::new();
    let mut input = bytes;
    while let Some(event) = parser.feed(&mut input).unwrap() {
        match event {
            Event::Begin(member) => found.push((member, Vec::new())),
            Event::Content(content) => found.last_mut().unwrap().1.extend_from_slice(content),
            Event::End | Event::EndOfArchive => {}
        }
    }
    parser.finish().unwrap();
    found
}

fn runs_of(
    parse: &mut dyn FnMut(&mut &[u8]) -> Result<Option<super::sparse::MapEntry>>,
    content: &[u8],
) -> Vec<(u64, u64)> {
    let mut runs = Vec::new();
    for mut piece in pieces(content, &[333]) {
        while let Some(run) = parse(&mut piece).unwrap() {
            runs.push((run.guest.get(), run.len));
        }
    }
    runs
}

#[test]
fn every_member_says_what_was_put_in() {
    let disks = disks();
    let made = make(&disks, "domain.xml");
    let members = read(&made.bytes);
    let head = Manifest::parse(&members[0].1).unwrap();
    let mut order = head.member_order().unwrap();
    for (member, content) in &members {
        order.take(&member.name).unwrap();
        let disk = |target: &str| disks.iter().find(|disk| disk.target == target).unwrap();
        match MemberRole::of(&member.name) {
            MemberRole::Disk(target) => {
                let (disk, described) = (disk(target), head.disk(target).unwrap());
                described.check_member(member).unwrap();
                let mut used = 0;
                if disk.layout == Layout::Compact {
                    let place = MapLocation::member(member.size, described.capacity);
                    let mut map = MapParser::new(target, place, member.content_at);
                    assert_eq!(runs_of(&mut |piece| map.feed(piece), content), disk.runs);
                    map.finish().unwrap();
                    assert_eq!((map.dense_len(), map.runs()), (described.dense_length, described.runs));
                    used = map.used();
                }
                assert_eq!(member.content_at.get() + used, made.dense_at[target]);
                let dense: Vec<u8> = disk.runs.iter().flat_map(|run| disk.run_bytes(*run)).collect();
                assert!(content[usize::try_from(used).unwrap()..] == dense);
            }
            MemberRole::Allocation(target) => {
                let mut csv =
                    CsvParser::new(&member.name, disk(target).capacity, member.content_at, BackupKind::Full);
                let mut input = content.as_slice();
                let mut rows = Vec::new();
                while let Some(row) = csv.feed(&mut input).unwrap() {
                    rows.push(row);
                }
                csv.finish().unwrap();
                assert_eq!(rows, disk(target).rows().into_iter().map(Result::unwrap).collect::<Vec<_>>());
            }
            MemberRole::RecoveryMap(target) => {
                let mut copy = RecoveryParser::new(target, member.size, member.content_at);
                assert_eq!(runs_of(&mut |piece| copy.feed(piece), content), disk(target).runs);
                copy.finish().unwrap();
                let head = copy.head().unwrap();
                assert_eq!((head.target.as_str(), head.capacity), (target, disk(target).capacity));
                assert_eq!(head.dense_at.get(), made.dense_at[target]);
            }
            MemberRole::RecoveryHead => {
                assert_eq!(*content, members[0].1);
                assert_eq!(member.header_at, made.end.recovery_at);
            }
            MemberRole::End => {
                let parsed = EndRecord::parse(content, member.content_at).unwrap();
                assert_eq!(parsed, (made.end.clone(), made.root));
            }
            _ => {}
        }
    }
    assert!(order.is_complete());
}

/// The form of an archive is a promise. If this test fails, archives of today would be written otherwise:
/// that needs a new version, not a new number here.
#[test]
fn the_form_of_an_archive_is_frozen() {
    let made = make(&disks(), "domain.xml");
    assert_eq!(
        blake3::hash(&made.bytes).to_hex().as_str(),
        "a85ed9cedad521a650181eb433f1044698665b0a44db7c4883ed0ca615d6533d"
    );
}

#[test]
fn the_tail_is_made_again_byte_for_byte_from_what_was_parsed() {
    let made = make(&disks(), "domain.xml");
    let members = read(&made.bytes);
    let content = |name| &members.iter().find(|(member, _)| member.name == name).unwrap().1;
    let (record, root) = EndRecord::parse(content(layout::END), StreamOffset::ZERO).unwrap();
    for size in [1, 31, 32, 33, 1000] {
        let mut parser = DigestsParser::new();
        let mut found = Vec::new();
        for mut piece in pieces(content(layout::DIGESTS), &[size]) {
            while let Some(digest) = parser.feed(&mut piece) {
                found.push(Ok(digest));
            }
        }
        assert!(parser.is_between());
        assert_eq!(found.len() as u64, record.chunks());
        let mut tail = Vec::new();
        let again = end_record::write_tail(&record, found, None, &mut |piece| {
            tail.extend_from_slice(piece);
            Ok(())
        });
        assert_eq!(again.unwrap(), root);
        assert!(tail == made.bytes[usize::try_from(record.body_len).unwrap()..]);
    }
    let mut cut = DigestsParser::new();
    assert_eq!(cut.feed(&mut [7; 31].as_slice()), None);
    assert!(!cut.is_between());
}

#[test]
fn the_root_is_blake3_of_digests_and_record() {
    let made = make(&disks(), "domain.xml");
    let line = String::from_utf8(made.end.encode(&made.root)).unwrap();
    let (covered, root) = line.split_once(",\"root\":\"").unwrap();
    let body = &made.bytes[..usize::try_from(made.end.body_len).unwrap()];
    let mut bytes: Vec<u8> = digests(body).into_iter().flat_map(Result::unwrap).collect();
    bytes.extend_from_slice(covered.as_bytes());
    assert_eq!(root, format!("{}\"}}\n", blake3::hash(&bytes).to_hex()));
    let expect = format!(
        "{{\"version\":1,\"archive\":\"00000000-0000-0000-0000-000012345678\",\"time\":{TIME},\"body\":{},\
         \"chunk_size\":1048576,\"chunks\":4,\"recovery\":{},\"members\":12,\"disks\":3,\"capacity\":1099515827080,\
         \"allocated\":0,\"dense\":3155519,\"runs\":4",
        made.end.body_len, made.end.recovery_at
    );
    assert_eq!(covered, expect);
    let error = RootHasher::new().root(&made.end).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
}

#[test]
fn bad_end_records_are_named() {
    let made = make(&disks(), "domain.xml");
    let good = String::from_utf8(made.end.encode(&made.root)).unwrap();
    let root = good.split("\"root\":\"").nth(1).unwrap();
    let cases = [
        ("{", "x{", "is not an end record"),
        ("\"time\":", "\"when\":", "is not an end record"),
        ("\"disks\":3", "\"disks\":-3", "is not an end record"),
        ("\"disks\":3", "\"disks\":3,\"new\":1", "is not an end record"),
        ("\"disks\":3", "\"disks\": 3", "is not spelt as virtfold spells it"),
        ("}\n", "}", "is not spelt as virtfold spells it"),
        ("}\n", "}\n\n", "is not spelt as virtfold spells it"),
        ("\"chunks\":4", "\"chunks\":5", "is not spelt as virtfold spells it"),
        ("\"chunk_size\":1048576", "\"chunk_size\":512", "is not spelt as virtfold spells it"),
        ("\"recovery\":", "\"recovery\":1", "has an impossible place of the recovery copies"),
        (root, "00\"}\n", "has no root"),
    ];
    for (from, to, message) in cases {
        let bad = good.replacen(from, to, 1);
        let error = EndRecord::parse(bad.as_bytes(), StreamOffset::new(7)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        let expect = format!("the archive is damaged at byte 7 of its stream: the end record {message}");
        assert_eq!(error.to_string(), expect, "{bad}");
    }
    let later = good.replacen("\"version\":1", "\"version\":2", 1);
    let error = EndRecord::parse(later.as_bytes(), StreamOffset::ZERO).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let long = vec![b' '; usize::try_from(MAX_LEN).unwrap() + 1];
    assert!(EndRecord::parse(&long, StreamOffset::ZERO).unwrap_err().to_string().ends_with("is too long"));
    let upper = good.replace(root, &root.to_uppercase());
    assert!(EndRecord::parse(upper.as_bytes(), StreamOffset::ZERO).is_err());
}

#[test]
fn a_signed_record_says_who_and_which_and_has_one_spelling() {
    let made = make_signed(&disks(), "domain.xml");
    let good = String::from_utf8(made.end.encode(&made.root)).unwrap();
    let (_, fields) = good.split_once("\"runs\":4,").unwrap();
    let (fields, _) = fields.split_once(",\"root\":\"").unwrap();
    let previous = format!("{{\"root\":\"{}\",\"archive\":\"{}\",\"sequence\":6}}", "0f".repeat(32), {
        "00000000-0000-0000-0000-000000000007"
    });
    assert_eq!(
        fields,
        format!(
            "\"subject\":\"images:0123456789abcdef0123456789abcdef\",\"host\":\"web.example\",\"sequence\":8,\
             \"previous\":{previous}"
        )
    );
    assert_eq!(good.matches(",\"root\":\"").count(), 1);
    let first = good.replacen(&previous, "null", 1);
    let (record, root) = EndRecord::parse(first.as_bytes(), StreamOffset::ZERO).unwrap();
    assert_eq!((record.chain.as_ref().unwrap().previous.clone(), root), (None, made.root));
    for (from, to) in [
        ("\"subject\":\"images:0123456789abcdef0123456789abcdef\",", ""),
        ("\"host\":\"web.example\",", ""),
        ("\"sequence\":8,", ""),
        (&*format!(",\"previous\":{previous}"), ""),
        ("\"sequence\":8,", "\"sequence\":6,"),
        ("\"sequence\":8,", "\"sequence\":0,"),
        ("\"sequence\":6", "\"sequence\":0"),
        ("web.example", "web example"),
        ("web.example", ""),
        ("images:", "images*"),
        ("0f0f", "0F0F"),
        ("\"sequence\":6", "\"sequence\":6,\"more\":1"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good);
        let error = EndRecord::parse(bad.as_bytes(), StreamOffset::ZERO).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{bad}");
    }
}

#[test]
fn a_signed_archive_ends_with_its_signature() {
    let made = make_signed(&disks(), "domain.xml");
    let members = read(&made.bytes);
    let content = |name| &members.iter().find(|(member, _)| member.name == name).unwrap().1;
    assert_eq!(members.last().unwrap().0.name, layout::SIGNATURE);
    let key = sign::check(content(layout::SIGNATURE), content(layout::END)).unwrap();
    assert_eq!(key.fingerprint().len(), 50);
    let tail = made.bytes.len() as u64 - made.end.body_len;
    assert_eq!(end_record::tail_len(&made.end).unwrap(), tail);
    // Neither a key without the fields nor the fields without a key.
    let fail = end_record::write_tail(&made.end, digests(&made.bytes), None, &mut |_| Ok(()));
    assert_eq!(fail.unwrap_err().kind(), ErrorKind::Internal);
}

#[test]
fn bad_recovery_copies_are_named() {
    let parse = |text: &str| {
        let mut parser = RecoveryParser::new("vda", text.len() as u64, StreamOffset::new(512));
        for mut piece in pieces(text.as_bytes(), &[9]) {
            while parser.feed(&mut piece)?.is_some() {}
        }
        parser.finish()
    };
    parse("vda,1000,4096,600\n2\n0\n600\n1000\n0\n").unwrap();
    let first =
        "the archive is damaged at byte 512 of its stream: the copy of vda's map has no proper first line";
    let long = format!("vda,{}", "1".repeat(200));
    for bad in [
        "",
        "vda",
        "vdb,1000,4096,600\n",
        "vda,1000,4096\n",
        "vda,1000,4096,600,1\n",
        "vda,1000,4096,0600\n",
        "vda,1000,4096,1001\n",
        "vda,1000,18446744073709551615,600\n",
        "\u{e4},1,1,1\n",
        &long,
    ] {
        assert_eq!(parse(bad).unwrap_err().to_string(), first, "{bad}");
    }
    let error = parse("vda,1000,4096,600\n2\n0\n601\n1000\n0\n").unwrap_err();
    let expect = "the archive is damaged at byte 538 of its stream: the map of vda has more dense bytes than \
                  announced";
    assert_eq!(error.to_string(), expect);
    assert!(
        parse("vda,1000,4096,600\n2\n0\n600\n1000\n0").unwrap_err().to_string().ends_with("is cut short")
    );
}

#[test]
fn names_have_roles_and_an_order() {
    let cases = [
        ("virtfold.json", MemberRole::Head),
        ("vda.raw", MemberRole::Disk("vda")),
        ("vda.allocation.csv", MemberRole::Allocation("vda")),
        ("recovery/virtfold.json", MemberRole::RecoveryHead),
        ("recovery/vda.map", MemberRole::RecoveryMap("vda")),
        ("recovery/vda.allocation.csv", MemberRole::RecoveryAllocation("vda")),
        ("vda.blocks", MemberRole::Blocks("vda")),
        ("virtfold.digests", MemberRole::Digests),
        ("virtfold.end.json", MemberRole::End),
        ("virtfold.end.json.sig", MemberRole::Signature),
        ("domain.xml", MemberRole::Other),
        (".raw", MemberRole::Other),
        ("a b.raw", MemberRole::Other),
        ("dir/vda.raw", MemberRole::Other),
        ("recovery/vda.raw", MemberRole::Other),
    ];
    for (name, role) in cases {
        assert_eq!(MemberRole::of(name), role, "{name}");
    }
    let disks = [plain("a"), DiskMembers { target: "b", has_blocks: true }];
    let order = MemberOrder::new(&disks, BackupKind::Incremental).unwrap();
    let names = [
        "virtfold.json",
        "a.allocation.csv",
        "a.raw",
        "b.allocation.csv",
        "b.raw",
        "recovery/virtfold.json",
        "recovery/a.map",
        "recovery/a.allocation.csv",
        "recovery/b.map",
        "recovery/b.allocation.csv",
        "b.blocks",
        "virtfold.digests",
        "virtfold.end.json",
    ];
    assert_eq!(order.names(), names);
    assert!(MemberOrder::new(&[plain("a/b")], BackupKind::Full).is_err());
}

#[test]
fn no_name_is_there_twice_and_no_names_without_end() {
    let mut order = MemberOrder::new(&[plain("vda")], BackupKind::Full).unwrap();
    order.take("virtfold.json").unwrap();
    order.take("domain.xml").unwrap();
    let twice = order.take("domain.xml").unwrap_err();
    assert_eq!(twice.to_string(), "the archive has member 'domain.xml' twice");
    (1..layout::MAX_OTHERS).for_each(|n| order.take(&format!("tpm/{n}")).unwrap());
    assert!(order.take("tpm/one-more").unwrap_err().to_string().contains("more than 4096 members"));
}

#[test]
fn members_out_of_order_are_damage() {
    let taken = |names: &[&str]| {
        let mut order = MemberOrder::new(&[plain("vda")], BackupKind::Full).unwrap();
        names.iter().try_for_each(|name| order.take(name)).map(|()| order.is_complete())
    };
    let all = [
        "virtfold.json",
        "domain.xml",
        "vda.allocation.csv",
        "nvram.fd",
        "vda.raw",
        "recovery/virtfold.json",
        "recovery/other",
        "recovery/vda.map",
        "virtfold.digests",
        "virtfold.end.json",
    ];
    assert!(taken(&all).unwrap());
    assert!(taken(&[&all[..], &["virtfold.end.json.sig"]].concat()).unwrap());
    assert!(!taken(&all[..9]).unwrap());
    for (names, message) in [
        (vec!["domain.xml"], "the archive has member 'domain.xml' where 'virtfold.json' should be"),
        (
            vec!["virtfold.json", "vda.raw"],
            "the archive has member 'vda.raw' where 'vda.allocation.csv' should be",
        ),
        (
            vec!["virtfold.json", "virtfold.json"],
            "the archive has member 'virtfold.json' where 'vda.allocation.csv' should be",
        ),
        ([&all[..9], &["x"]].concat(), "the archive has member 'x' where 'virtfold.end.json' should be"),
        ([&all[..], &["x"]].concat(), "the archive has member 'x' behind its end record"),
        (
            [&all[..], &["virtfold.end.json.sig", "virtfold.end.json.sig"]].concat(),
            "the archive has member 'virtfold.end.json.sig' behind its end record",
        ),
        (
            [&all[..9], &["virtfold.end.json.sig"]].concat(),
            "the archive has member 'virtfold.end.json.sig' where 'virtfold.end.json' should be",
        ),
    ] {
        let error = taken(&names).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Damaged, message));
    }
}

proptest! {
    #[test]
    fn one_changed_byte_of_the_end_record_is_never_the_same_record(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        static MADE: std::sync::LazyLock<Made> = std::sync::LazyLock::new(|| make(&disks(), "x"));
        let mut bytes = MADE.end.encode(&MADE.root);
        let at = at.index(bytes.len());
        let same = bytes[at] == byte;
        bytes[at] = byte;
        if let Ok(parsed) = EndRecord::parse(&bytes, StreamOffset::ZERO) {
            prop_assert_eq!(parsed == (MADE.end.clone(), MADE.root), same);
            prop_assert_eq!(parsed.0.encode(&parsed.1), bytes);
        }
    }

    #[test]
    fn noise_is_no_recovery_copy(noise in "[a-z]{0,3},[0-9]{0,9},[0-9]{0,9},[0-9]{0,9}\n([0-9]{0,4}\n){0,5}", size in 1_usize..20) {
        let mut parser = RecoveryParser::new("a", noise.len() as u64, StreamOffset::ZERO);
        for mut piece in pieces(noise.as_bytes(), &[size]) {
            match parser.feed(&mut piece) {
                Ok(_) => {}
                Err(error) => {
                    prop_assert_eq!(error.kind(), ErrorKind::Damaged);
                    break;
                }
            }
        }
    }
}
