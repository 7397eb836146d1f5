//! The head: its spelling, what it ignores, what it refuses.

use serde_json::{Value, json};
use uuid::Uuid;

use super::layout::{BackupKind, Layout};
use super::layout_fixture::{TIME, TestDisk, manifest};
use super::manifest::{
    Backing, BackupSubject, ConsistencyInfo, MAX_LEN, Manifest, Parent, Qcow2, Source, now,
};
use super::sparse::MapEntry;
use virtfold_base::error::ErrorKind;
use virtfold_base::units::{GuestOffset, StreamOffset};

fn rich() -> Manifest {
    let mut head = manifest(&[TestDisk::compact("vda", 1 << 30, &[(0, 4096)]), TestDisk::full("vdb", 4096)]);
    head.kind = BackupKind::Incremental;
    head.parent = Some(Parent { id: Uuid::from_u128(7), root: "0f".repeat(32) });
    head.subject = BackupSubject::Domain { name: "web".into(), uuid: Some(Uuid::from_u128(9)) };
    head.host_id = Some("0a".repeat(16));
    head.freeze = Some(ConsistencyInfo { method: "agent".into(), pause_ms: 12 });
    head.disks[0].source = Source {
        format: "qcow2".into(),
        qcow2: Some(Qcow2 {
            compat: "1.1".into(),
            cluster_size: 65_536,
            extended_l2: false,
            compression_type: "zlib".into(),
            lazy_refcounts: true,
            refcount_bits: 16,
            data_file: None,
        }),
        backing: vec![Backing { path: "/a\nb".into(), format: "raw".into() }],
        warnings: vec!["the image was marked dirty".into()],
    };
    head
}

fn value() -> Value {
    serde_json::to_value(rich()).unwrap()
}

fn parse(value: &Value) -> virtfold_base::error::Result<Manifest> {
    Manifest::parse(&serde_json::to_vec(value).unwrap())
}

#[test]
fn heads_round_trip_and_have_one_spelling() {
    for head in [rich(), manifest(&[]), manifest(&[TestDisk::compact("x", 0, &[])])] {
        let bytes = head.encode().unwrap();
        assert_eq!(bytes.last(), Some(&b'\n'));
        let again = Manifest::parse(&bytes).unwrap();
        assert_eq!(again, head);
        assert_eq!(again.encode().unwrap(), bytes);
        assert_eq!(again.time().unwrap(), TIME);
    }
    let subject = &value()["subject"];
    assert_eq!(*subject, json!({"domain": {"name": "web", "uuid": Uuid::from_u128(9).to_string()}}));
    assert_eq!(value()["disks"][1]["layout"], "full");
}

#[test]
fn what_is_known_of_images_may_be_absent() {
    let mut head = manifest(&[]);
    head.subject = BackupSubject::Images { name: "a".into(), labelled: true, paths: vec!["/a\n".into()] };
    assert_eq!(Manifest::parse(&head.encode().unwrap()).unwrap(), head);
    let mut old = serde_json::to_value(&head).unwrap();
    old["subject"] = json!({"images": {"name": "a"}});
    let subject = parse(&old).unwrap().subject;
    assert_eq!(subject, BackupSubject::Images { name: "a".into(), labelled: false, paths: Vec::new() });
    old["subject"] = json!({"images": {"name": "a", "paths": vec!["/"; 1025]}});
    assert_eq!(parse(&old).unwrap_err().kind(), ErrorKind::Damaged);
}

#[test]
fn the_time_now_is_a_time_of_a_backup() {
    let mut head = rich();
    head.created = now();
    assert!(head.time().unwrap() > 1_700_000_000, "{}", head.created);
    for utc in ["2026-11-22T14:04:05+00:00", "2026-11-22T14:04:05Z"] {
        head.created = utc.into();
        assert_eq!(head.time().unwrap(), TIME);
    }
}

#[test]
fn unknown_fields_are_ignored_and_unknown_features_are_not() {
    let mut later = value();
    later["weather"] = json!({"rain": [1, 2]});
    later["disks"][0]["colour"] = json!("red");
    assert_eq!(parse(&later).unwrap(), rich());

    // What is refused may look any way at all otherwise.
    let error = parse(&json!({"version": 1, "requires": ["holes2"], "disks": 7})).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.to_string(), "the archive requires 'holes2', which this virtfold does not know");
    let error = parse(&json!({"version": 2})).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.to_string(), "the archive has version 2, virtfold knows 1");
    assert_eq!(error.hint(), Some("use a newer virtfold to read this archive"));
}

#[test]
fn bad_heads_are_named() {
    let cases: [(&str, Value, &str); 23] = [
        ("/created", json!("yesterday"), "invalid backup time 'yesterday'"),
        ("/created", json!("2026-11-22T15:04:05"), "invalid backup time '2026-11-22T15:04:05'"),
        ("/created", json!("1969-11-22T15:04:05+00:00"), "invalid backup time '1969-11-22T15:04:05+00:00'"),
        ("/created", json!("2300-11-22T15:04:05+00:00"), "invalid backup time '2300-11-22T15:04:05+00:00'"),
        ("/host", json!("a\u{1b}[2J"), "its host is empty, too long or has control characters"),
        ("/host_id", json!("0A".repeat(16)), "its host's id is not 32 hexadecimal digits"),
        ("/tool", json!(""), "its tool is empty, too long or has control characters"),
        (
            "/subject/domain/name",
            json!("x".repeat(2000)),
            "its name is empty, too long or has control characters",
        ),
        ("/kind", json!("full"), "a full archive has a parent"),
        ("/parent", json!(null), "an incremental archive has no parent"),
        ("/parent/root", json!("0F".repeat(32)), "its parent's root is not 64 hexadecimal digits"),
        ("/disks/1/target", json!("vda"), "disk 'vda' is there twice"),
        ("/disks/0/target", json!("../x"), "invalid disk name '../x'"),
        ("/disks/0/capacity", json!(1_u64 << 63), "disk vda is too large"),
        ("/disks/0/block_size", json!(65_535), "disk vda has an impossible block size"),
        ("/disks/1/dense_length", json!(4095), "disk vdb has layout full and is not whole"),
        ("/disks/0/dense_length", json!((1_u64 << 30) + 1), "disk vda has more bytes or runs than fit on it"),
        ("/disks/0/runs", json!(4097), "disk vda has more bytes or runs than fit on it"),
        ("/disks/0/source/qcow2/cluster_size", json!(256), "disk vda has an impossible cluster size"),
        (
            "/disks/0/source/format",
            json!("a\nb"),
            "its source format is empty, too long or has control characters",
        ),
        ("/disks/0/layout", json!("round"), "unknown variant `round`, expected `compact` or `full`"),
        ("/disks/0/capacity", json!(-1), "invalid value: integer `-1`, expected u64"),
        ("/archive", json!("no"), "UUID parsing failed"),
    ];
    for (pointer, wrong, message) in cases {
        let mut bad = value();
        *bad.pointer_mut(pointer).unwrap() = wrong;
        let error = parse(&bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{pointer}: {error}");
        let expect = format!("the archive's head is damaged: {message}");
        assert!(error.to_string().starts_with(&expect), "{pointer}: {error}");
    }
}

#[test]
fn hostile_json_is_refused() {
    let deep = format!("{{\"version\":1,\"x\":{}", "[".repeat(100_000));
    // In a field that a reader passes over.
    let passed_over = |value: &[u8]| {
        let head = rich().encode().unwrap();
        [b"{\"x\":", value, b",", head.strip_prefix(b"{").unwrap()].concat()
    };
    assert!(Manifest::parse(&passed_over(b"\"\xc3\xbc\"")).is_ok());
    let deeper = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for bad in [passed_over(b"\"\xfc\""), passed_over(deeper.as_bytes())] {
        assert_eq!(Manifest::parse(&bad).unwrap_err().kind(), ErrorKind::Damaged);
    }
    let long = vec![b' '; usize::try_from(MAX_LEN).unwrap() + 1];
    for bad in [deep.as_bytes(), b"", b"{", b"[]", b"\xff", b"{\"version\":1,\"version\":1}", &long] {
        assert_eq!(Manifest::parse(bad).unwrap_err().kind(), ErrorKind::Damaged);
    }
    let bytes = rich().encode().unwrap();
    for len in 0..bytes.len() - 2 {
        assert!(Manifest::parse(&bytes[..len]).is_err(), "{len}");
    }
}

#[test]
fn runs_and_bytes_lie_where_blocks_do() {
    let mut disk = rich().disks.remove(0);
    disk.capacity = 3 * 4096 + 512;
    let run = |guest, len| MapEntry { guest: GuestOffset::new(guest), len };
    for (guest, len, fine) in
        [(0, 4096, true), (4096, 8704, true), (512, 4096, false), (4096, 512, false), (8192, 4608, true)]
    {
        assert_eq!(disk.check_run(&run(guest, len)).is_ok(), fine, "{guest} {len}");
    }
    assert!(disk.check_dense_at(StreamOffset::new(8192)).is_ok());
    assert_eq!(disk.check_dense_at(StreamOffset::new(8704)).unwrap_err().kind(), ErrorKind::Damaged);
}

#[test]
fn a_head_that_would_not_be_read_is_not_written() {
    let mut head = rich();
    head.disks[0].layout = Layout::Full;
    assert_eq!(head.encode().unwrap_err().kind(), ErrorKind::Internal);
}
