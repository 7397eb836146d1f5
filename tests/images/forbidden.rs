//! What FORMAT.md forbids, each in an archive that is else sound to the last digest: `verify` refuses it, and
//! so does the second reader. And what it allows, though virtfold does not write it: both take it. The
//! archives are made here, by hand, from the text.

use std::fs;
use std::path::Path;

use crate::common::archive::verify;
use crate::common::run::{Outcome, exit, run, text, tool};
use crate::common::scratch::Scratch;

const TIME: u64 = 1_795_356_245;
const CREATED: &str = "2026-11-22T14:04:05+00:00";
const ID: &str = "12345678-1234-4234-8234-123456789abc";
const CAPACITY: u64 = 1 << 20;
const MIB: usize = 1 << 20;

/// A tar member.
#[derive(Clone)]
struct Member {
    name: String,
    /// What the ustar header says, where it is not the name.
    ustar: Option<String>,
    content: Vec<u8>,
    records: Vec<(String, Vec<u8>)>,
    time: u64,
    /// Of the records' own header.
    records_time: u64,
    /// The bytes begin so far behind where they should.
    shift: usize,
    /// Bytes of content before what is aligned; a disk alone is.
    aligned: Option<usize>,
}

fn member(name: &str, content: impl Into<Vec<u8>>) -> Member {
    let (name, content) = (name.to_owned(), content.into());
    let (ustar, records, aligned) = (None, Vec::new(), None);
    Member { name, ustar, content, records, time: TIME, records_time: TIME, shift: 0, aligned }
}

fn header(name: &str, size: usize, time: u64, kind: u8) -> Vec<u8> {
    let mut block = vec![0; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name.as_bytes()[..name.len().min(100)]);
    put(100, b"0000600\x000000000\x000000000\0");
    put(124, format!("{size:011o}\0{time:011o}\0        ").as_bytes());
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    put(329, b"0000000\x000000000\0");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn record(keyword: &str, value: &[u8]) -> Vec<u8> {
    let rest = keyword.len() + value.len() + 3;
    let len = (rest..).find(|len| len - rest == len.to_string().len()).unwrap();
    [format!("{len} {keyword}=").as_bytes(), value, b"\n"].concat()
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

impl Member {
    fn with(mut self, keyword: &str, value: impl Into<Vec<u8>>) -> Self {
        self.records.push((keyword.to_owned(), value.into()));
        self
    }

    /// Puts it behind `out`; says where its content begins.
    fn put(&self, out: &mut Vec<u8>) -> usize {
        let ustar = self.ustar.as_ref().unwrap_or(&self.name);
        let has = |keyword: &str| self.records.iter().any(|(known, _)| known == keyword);
        let mut records: Vec<u8> =
            self.records.iter().flat_map(|(keyword, value)| record(keyword, value)).collect();
        if let Some(before) = self.aligned {
            // A comment fills the block, and those that are missing.
            let comment = |dots: &usize| record("comment", &vec![b'.'; *dots]);
            let fits = |dots: &usize| {
                let records = records.len() + comment(dots).len();
                records.is_multiple_of(512) && (out.len() + 1024 + records + before) % 4096 == self.shift
            };
            records.extend(comment(&(1..5200).find(fits).unwrap()));
        }
        if !records.is_empty() {
            let last = ustar.rsplit('/').next().unwrap();
            let name = format!("PaxHeaders.0/{last}");
            out.extend(header(&name, records.len(), self.records_time, b'x'));
            out.extend(padded(records));
        }
        out.extend(header(ustar, if has("size") { 0 } else { self.content.len() }, self.time, b'0'));
        let at = out.len();
        out.extend(padded(self.content.clone()));
        at
    }
}

/// What an archive is made of.
#[derive(Clone)]
struct Forgery {
    head: String,
    /// Bytes of the head in the place of its text.
    raw_head: Option<Vec<u8>>,
    head_time: u64,
    runs: Vec<(u64, u64)>,
    table: String,
    table_copy: Option<String>,
    more: Vec<Member>,
    disk: fn(Member) -> Member,
}

impl Forgery {
    fn new() -> Self {
        let runs = vec![(65_536, 8192), (524_288, 4096)];
        let head = format!(
            "{{\"version\":1,\"archive\":\"{ID}\",\"created\":\"{CREATED}\",\"host\":\"h\",\"tool\":\"by hand\",\
             \"subject\":{{\"images\":{{\"name\":\"a\"}}}},\"kind\":\"full\",\"compression\":{{\"method\":\"none\"}},\
             \"disks\":[{{\"target\":\"vda\",\"capacity\":{CAPACITY},\"source\":{{\"format\":\"raw\"}},\"block_size\":4096,\
             \"layout\":\"compact\",\"allocated\":12288,\"dense_length\":12288,\"runs\":2}}]}}"
        );
        let table = "guest_offset,length,kind,host_offset\n0,65536,unallocated,\n65536,8192,data,65536\n\
                     73728,450560,zero,\n524288,4096,data,\n528384,520192,unallocated,\n";
        let (table, more) = (table.to_owned(), Vec::new());
        Self { head, raw_head: None, head_time: TIME, runs, table, table_copy: None, more, disk: |disk| disk }
    }

    fn incremental() -> Self {
        let parent = format!(
            "\"kind\":\"incremental\",\"parent\":{{\"id\":\"{ID}\",\"root\":\"{}\"}}",
            "ab".repeat(32)
        );
        let whole = Self::new();
        let table = whole.table.replace("unallocated", "unchanged");
        Self {
            head: whole.head.replace("\"kind\":\"full\"", &parent),
            table_copy: Some(table.clone()),
            table,
            ..whole
        }
    }

    fn with_head(mut self, from: &str, to: &str) -> Self {
        assert!(self.head.contains(from), "the head has no {from}");
        self.head = self.head.replace(from, to);
        self
    }

    fn map(&self) -> String {
        let mut numbers: Vec<u64> = self.runs.iter().flat_map(|(at, len)| [*at, *len]).collect();
        numbers.extend([CAPACITY, 0]);
        numbers.insert(0, numbers.len() as u64 / 2);
        numbers.iter().map(|number| format!("{number}\n")).collect()
    }

    /// The stream, and where its tail begins.
    fn stream(&self) -> (Vec<u8>, usize) {
        let head = self.raw_head.clone().unwrap_or_else(|| self.head.clone().into_bytes());
        let (mut out, mut members) = (Vec::new(), 0);
        let mut put = |out: &mut Vec<u8>, member: &Member| {
            members += 1;
            member.put(out)
        };
        put(&mut out, &Member { time: self.head_time, ..member("virtfold.json", head.clone()) });
        for member in &self.more {
            put(&mut out, member);
        }
        put(&mut out, &member("vda.allocation.csv", self.table.clone()));
        let dense: u64 = self.runs.iter().map(|(_, len)| len).sum();
        let map = padded(self.map().into_bytes());
        let disk = [map.clone(), vec![7; usize::try_from(dense).unwrap()]].concat();
        let disk = member("vda.raw", disk).with("GNU.sparse.major", "1").with("GNU.sparse.minor", "0");
        let disk = disk.with("GNU.sparse.name", "vda.raw").with("GNU.sparse.realsize", CAPACITY.to_string());
        let (ustar, aligned) = (Some("GNUSparseFile.0/vda.raw".to_owned()), Some(map.len()));
        let dense_at = put(&mut out, &(self.disk)(Member { ustar, aligned, ..disk })) + map.len();
        let recovery = out.len();
        put(&mut out, &member("recovery/virtfold.json", head));
        let copy = format!("vda,{CAPACITY},{dense_at},{dense}\n{}", self.map());
        put(&mut out, &member("recovery/vda.map", copy));
        if let Some(copy) = &self.table_copy {
            put(&mut out, &member("recovery/vda.allocation.csv", copy.clone()));
        }
        let body = out.len();
        let digests: Vec<u8> = out.chunks(MIB).flat_map(|chunk| *blake3::hash(chunk).as_bytes()).collect();
        let chunks = body.div_ceil(MIB);
        let runs = if self.head.contains("\"runs\":1") { 1 } else { self.runs.len() };
        let covered = format!(
            "{{\"version\":1,\"archive\":\"{ID}\",\"time\":{TIME},\"body\":{body},\"chunk_size\":1048576,\"chunks\":{chunks},\
             \"recovery\":{recovery},\"members\":{members},\"disks\":1,\"capacity\":{CAPACITY},\"allocated\":12288,\
             \"dense\":{dense},\"runs\":{runs}"
        );
        let root = blake3::hash(&[&digests, covered.as_bytes()].concat()).to_hex();
        member("virtfold.digests", digests).put(&mut out);
        member("virtfold.end.json", format!("{covered},\"root\":\"{root}\"}}\n")).put(&mut out);
        out.extend([0; 1024]);
        (out, body)
    }

    /// In frames that end at these places of the stream.
    fn framed(&self, cuts: impl Fn(usize, usize) -> Vec<usize>) -> Vec<u8> {
        let (stream, body) = self.stream();
        let (mut out, mut entries, mut from) = (Vec::new(), Vec::new(), 0);
        for (number, to) in cuts(body, stream.len()).into_iter().enumerate() {
            let chunk = &stream[from..to];
            let stored = zstd::bulk::compress(chunk, 1).unwrap();
            let lengths = [chunk.len(), stored.len()].map(|len| u32::try_from(len).unwrap().to_le_bytes());
            let mut frame = [&0x184D_2A55_u32.to_le_bytes()[..], &92_u32.to_le_bytes(), b"VIRTFOLD"].concat();
            frame.extend(1_u32.to_le_bytes());
            frame.extend(uuid::Uuid::parse_str(ID).unwrap().as_bytes());
            frame.extend([(number as u64).to_le_bytes(), (from as u64).to_le_bytes()].concat());
            frame.extend(lengths.concat());
            frame.extend(crc32c::crc32c(&stored).to_le_bytes());
            frame.extend(blake3::hash(chunk).as_bytes());
            frame.extend(crc32c::crc32c(&frame).to_le_bytes());
            out.extend([frame, stored].concat());
            entries.extend([&100_u32.to_le_bytes()[..], &[0; 4], &lengths[1], &lengths[0]].concat());
            from = to;
        }
        let count = u32::try_from(entries.len() / 8).unwrap();
        out.extend([0x184D_2A5E_u32.to_le_bytes(), (count * 8 + 9).to_le_bytes()].concat());
        out.extend(entries);
        out.extend([&count.to_le_bytes()[..], &[0], &0x8F92_EAB1_u32.to_le_bytes()].concat());
        out
    }
}

/// As FORMAT.md cuts it.
fn properly(body: usize, len: usize) -> Vec<usize> {
    vec![body, len]
}

fn second_reader(archive: &Path) -> Outcome {
    let reader = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reader/virtfold_reader.py");
    run(&mut tool("python3", [reader, text(archive), "--digests", "4"]))
}

/// What FORMAT.md says of an archive.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Is {
    Allowed,
    Forbidden,
}

/// What both readers say: the same.
fn judged(scratch: &Scratch, what: &str, bytes: &[u8], is: Is) {
    let archive = scratch.join("forged.tar");
    fs::write(&archive, bytes).unwrap();
    let (ours, other) = (verify(&archive), second_reader(&archive));
    if is == Is::Allowed {
        assert!(ours.code() == Some(exit::OK), "{what} is allowed\n{ours}");
        assert!(other.code() == Some(0), "{what} is allowed\n{other}");
    } else {
        assert!(ours.code() == Some(exit::DAMAGED), "{what} is forbidden\n{ours}");
        assert!(
            other.code() == Some(1) && !other.stderr.contains("Traceback"),
            "{what} is forbidden\n{other}"
        );
    }
}

#[test]
fn what_is_allowed_is_taken() {
    let scratch = Scratch::new("allowed");
    let sound = Forgery::new();
    let plain = |what: &str, forgery: &Forgery| judged(&scratch, what, &forgery.stream().0, Is::Allowed);
    plain("an archive", &sound);
    plain("an increment", &Forgery::incremental());
    judged(&scratch, "an archive in frames", &sound.framed(properly), Is::Allowed);
    let more = |member: Member| Forgery { more: vec![member], ..Forgery::new() };
    plain("a path that is short", &more(member("domain.xml", "<domain/>").with("path", "domain.xml")));
    plain("a size that is small", &more(member("domain.xml", "<domain/>").with("size", "9")));
    plain("a vendor's bytes", &more(member("a/b", "x").with("VENDOR.x", [0xff, 0xfe])));
    plain("Z", &sound.clone().with_head("+00:00", "Z"));
    plain("an unknown field", &sound.clone().with_head("\"host\"", "\"later\":[{}],\"host\""));
    plain("an absent level that is null", &sound.with_head("\"none\"", "\"none\",\"level\":null"));
}

#[test]
fn frames_that_are_cut_elsewhere_are_refused() {
    let scratch = Scratch::new("cut-elsewhere");
    let sound = Forgery::new();
    type Cuts = fn(usize, usize) -> Vec<usize>;
    let cases: [(&str, Cuts); 4] = [
        ("a tail in two frames", |body, len| vec![body, body + 512, len]),
        ("a body in two frames", |body, len| vec![4096, body, len]),
        ("a tail in the body's frame", |_, len| vec![len]),
        ("a tail that begins in the body's frame", |body, len| vec![body + 512, len]),
    ];
    for (what, cuts) in cases {
        judged(&scratch, what, &sound.framed(cuts), Is::Forbidden);
    }
}

#[test]
fn members_that_are_forbidden_are_refused() {
    let scratch = Scratch::new("forbidden-members");
    let sound = Forgery::new();
    let plain = |what: &str, forgery: &Forgery| judged(&scratch, what, &forgery.stream().0, Is::Forbidden);
    plain("a head with a time of its own", &Forgery { head_time: TIME + 1, ..sound.clone() });
    plain("a disk with one", &Forgery { disk: |disk| Member { time: TIME + 1, ..disk }, ..sound.clone() });
    plain(
        "records with one",
        &Forgery { disk: |disk| Member { records_time: TIME + 1, ..disk }, ..sound.clone() },
    );
    plain(
        "data off their alignment",
        &Forgery { disk: |disk| Member { shift: 512, ..disk }, ..sound.clone() },
    );
    let twice = |disk: Member| disk.with("VENDOR.x", "1").with("VENDOR.x", "1");
    plain("a keyword twice", &Forgery { disk: twice, ..sound.clone() });
    let unknown = |disk: Member| disk.with("mtime", "1");
    plain("a keyword that is nobody's", &Forgery { disk: unknown, ..sound.clone() });
    let xml = member("domain.xml", "<domain/>");
    plain("a member twice", &Forgery { more: vec![xml.clone(), xml], ..sound.clone() });
    let stray = member("recovery/vdb.map", "0\n");
    plain("a reserved name", &Forgery { more: vec![stray], ..sound.clone() });
    let table = sound.table.clone();
    plain("a full's copy of a table", &Forgery { table_copy: Some(table), ..sound });
}

#[test]
fn tables_that_are_forbidden_are_refused() {
    let scratch = Scratch::new("forbidden-tables");
    let sound = Forgery::new();
    let plain = |what: &str, forgery: &Forgery| judged(&scratch, what, &forgery.stream().0, Is::Forbidden);
    let runs = |runs: &[(u64, u64)]| Forgery { runs: runs.to_vec(), ..Forgery::new() };
    plain("runs that touch", &runs(&[(65_536, 8192), (73_728, 4096)]));
    let touching = runs(&[(65_536, 8192), (73_728, 4096)]).with_head("\"runs\":2", "\"runs\":1");
    plain("runs that touch and are counted as one", &touching);
    plain("a run off its blocks", &runs(&[(65_536, 8192), (524_800, 4096)]));
    plain("a run of half a block", &runs(&[(65_536, 8192 + 512), (524_288, 4096 - 512)]));
    let unchanged = sound.table.replacen("zero", "unchanged", 1);
    plain("unchanged in a full", &Forgery { table: unchanged, ..sound });
    let whole = Forgery::incremental();
    let other = whole.table.replacen("zero", "unchanged", 1);
    plain("an increment's other copy", &Forgery { table_copy: Some(other), ..whole.clone() });
    let short = whole.table.rsplit_once("528384").unwrap().0.to_owned();
    plain("an increment's shorter copy", &Forgery { table_copy: Some(short), ..whole.clone() });
    plain("an increment without a copy", &Forgery { table_copy: None, ..whole });
}

#[test]
fn heads_that_are_forbidden_are_refused() {
    let scratch = Scratch::new("forbidden-heads");
    let sound = Forgery::new();
    let plain = |what: &str, forgery: &Forgery| judged(&scratch, what, &forgery.stream().0, Is::Forbidden);
    let edited = |from: &str, to: &str| Forgery::new().with_head(from, to);
    plain("a field twice", &edited("\"host\"", "\"host\":\"i\",\"host\""));
    plain("warnings that are null", &edited("\"format\":\"raw\"", "\"format\":\"raw\",\"warnings\":null"));
    plain("requires that is null", &edited("\"host\"", "\"requires\":null,\"host\""));
    plain("a time without a T", &edited("22T14", "22 14"));
    plain("a time without seconds", &edited(":04:05", ":04"));
    plain("another time", &edited("04:05+", "04:06+"));
    plain("an increment without a parent", &edited("\"kind\":\"full\"", "\"kind\":\"incremental\""));
    let deep = format!("\"later\":{}{},\"host\"", "[".repeat(100_000), "]".repeat(100_000));
    plain("a head that is deep", &edited("\"host\"", &deep));
    let latin: Vec<u8> =
        sound.head.replace("\"h\"", "\"#\"").bytes().map(|b| if b == b'#' { 0xe9 } else { b }).collect();
    plain("a head in Latin-1", &Forgery { raw_head: Some(latin), ..sound });
    plain("an empty host", &edited("\"h\"", "\"\""));
    plain("a block of 1000", &edited("\"block_size\":4096", "\"block_size\":1000"));
}
