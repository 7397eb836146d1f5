//! The header parser with hand-made headers, and mutated real ones: it may refuse, never panic.

use proptest::prelude::*;

use super::Lab;
use crate::CompressionType;
use crate::qcow2::{Header, parse};

const FILE: u64 = 1 << 20;

/// A version 3 header of a 1 MiB disk with 64 KiB clusters, as a file's first 1 KiB.
fn version_3() -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    put(&mut bytes, 0, &0x5146_49fb_u32.to_be_bytes());
    put(&mut bytes, 4, &3_u32.to_be_bytes());
    put(&mut bytes, 20, &16_u32.to_be_bytes());
    put(&mut bytes, 24, &FILE.to_be_bytes());
    put(&mut bytes, 36, &1_u32.to_be_bytes());
    put(&mut bytes, 40, &0x30000_u64.to_be_bytes());
    put(&mut bytes, 48, &0x10000_u64.to_be_bytes());
    put(&mut bytes, 56, &1_u32.to_be_bytes());
    put(&mut bytes, 96, &4_u32.to_be_bytes());
    put(&mut bytes, 100, &112_u32.to_be_bytes());
    bytes
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

/// A header extension with its padding.
fn extension(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_be_bytes().to_vec();
    bytes.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn with_fields(fields: &[(usize, &[u8])]) -> Result<Header, String> {
    let mut bytes = version_3();
    for (at, field) in fields {
        put(&mut bytes, *at, field);
    }
    parse(&bytes, FILE).map_err(|problem| format!("{problem:?}"))
}

#[test]
fn a_plain_header_parses() {
    let header = with_fields(&[]).unwrap();
    assert_eq!((header.version, header.cluster_size(), header.capacity), (3, 65536, FILE));
    assert_eq!((header.l1_offset, header.l1_entries, header.l2_span()), (0x30000, 1, 512 << 20));
    assert_eq!(header.compression, CompressionType::Zlib);
    assert_eq!(header.backing, None);
}

#[test]
fn feature_bits_are_told_apart() {
    let zstd = with_fields(&[(79, &[8]), (104, &[1])]).unwrap();
    assert_eq!(zstd.compression, CompressionType::Zstd);
    let marks = with_fields(&[(79, &[3]), (87, &[1])]).unwrap();
    assert!(marks.dirty && marks.corrupt && marks.lazy_refcounts);
    assert!(with_fields(&[(79, &[16])]).unwrap().extended_l2);
    assert!(with_fields(&[(79, &[16]), (23, &[13])]).unwrap_err().contains("subclusters"));
    assert!(with_fields(&[(79, &[8])]).unwrap_err().contains("contradict"));
    assert!(with_fields(&[(79, &[8]), (104, &[9])]).unwrap_err().contains("type 9"));
    assert!(with_fields(&[(79, &[4])]).unwrap_err().contains("does not name"));
}

#[test]
fn unknown_features_are_named_by_the_table() {
    assert!(with_fields(&[(78, &[1])]).unwrap_err().contains("bit 8"));
    let mut row = [0; 48];
    put(&mut row, 0, &[0, 8]);
    put(&mut row, 2, b"time travel\x1b");
    let names = extension(0x6803_f857, &row);
    let said = with_fields(&[(78, &[1]), (112, &names)]).unwrap_err();
    assert!(said.contains("'time travel'"), "{said}");
}

#[test]
fn backing_name_and_format_are_read() {
    let format = extension(0xe279_2aca, b"raw");
    let name = b"base.img";
    let place = 200_u64.to_be_bytes();
    let len = 8_u32.to_be_bytes();
    let header = with_fields(&[(8, &place), (16, &len), (112, &format), (200, name)]).unwrap();
    assert_eq!(header.backing.as_deref(), Some(&name[..]));
    assert_eq!(header.backing_format.as_deref(), Some(&b"raw"[..]));
    // The extensions must end before the name.
    let cut = with_fields(&[(8, &116_u64.to_be_bytes()), (16, &len), (112, &format)]);
    assert_eq!(cut.unwrap().backing_format, None);
    let long = extension(0xe279_2aca, &[b'x'; 100]);
    assert!(with_fields(&[(8, &place), (16, &len), (112, &long)]).unwrap_err().contains("longer"));
}

#[test]
fn capacity_is_whole_sectors() {
    assert_eq!(with_fields(&[(24, &1000_u64.to_be_bytes())]).unwrap().capacity, 512);
}

/// The first clusters of real images.
fn real_headers() -> Vec<Vec<u8>> {
    let lab = Lab::new();
    std::fs::write(lab.path("b.raw"), [1; 4096]).unwrap();
    let all = [
        "-o compat=0.10,cluster_size=512",
        "-o compat=0.10 -b b.raw -F raw",
        "-o cluster_size=4096,refcount_bits=1 -b b.raw -F raw",
        "-o extended_l2=on,compression_type=zstd,lazy_refcounts=on",
        "-o data_file=x.data,data_file_raw=on,cluster_size=4096",
    ];
    all.iter()
        .map(|options| {
            lab.img(&format!("create -q -f qcow2 {options} x.qcow2 64k"));
            let mut bytes = std::fs::read(lab.path("x.qcow2")).unwrap();
            bytes.truncate(4096);
            bytes
        })
        .collect()
}

#[test]
fn mutated_real_headers_never_panic() {
    let headers = real_headers();
    for header in &headers {
        assert!(parse(header, FILE).is_ok());
    }
    let mutation =
        (0..headers.len(), proptest::collection::vec((0_usize..700, any::<u8>()), 1..6), 0_usize..4097);
    proptest!(ProptestConfig::with_cases(20_000), |((which, changes, len) in mutation)| {
        let mut bytes = headers[which].clone();
        for (at, value) in changes {
            bytes[at % 700] = value;
        }
        bytes.truncate(len.max(1));
        if let Ok(header) = parse(&bytes, FILE) {
            prop_assert!((9..=21).contains(&header.cluster_bits));
            prop_assert!(header.l1_offset + header.l1_entries * 8 <= FILE || header.l1_entries == 0);
            prop_assert!(header.l1_entries * header.l2_span() >= header.capacity);
        }
    });
}
