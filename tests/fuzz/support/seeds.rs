//! Makes the seeds with the product itself and `qemu-img`: small archives of small disks, and small images
//! with every feature.

use std::fs;
use std::path::Path;
use std::process::Command;

use virtfold::archive::manifest::Manifest;
use virtfold::archive::stream::Compression;
use virtfold::archive::tar_parser::{Event, MemberParser};
use virtfold::backup::Control;
use virtfold::backup::destinations::Destinations;
use virtfold::backup::options::BackupOptions;
use virtfold::backup::resume::{Fingerprint, StateDirectories, read_chunks, read_marks};
use virtfold::backup::session::{self, BackupSession, ImageSpec, ImagesRequest};
use virtfold::image::Format;
use virtfold::table::Layout;
use virtfold::units::BlockSize;
use virtfold_hooks::event::{Event as HookEvent, EventXml, Hook};
use virtfold_hooks::start_lock::LockedDisks;

/// Writes them into a folder for each target in `folder`; the configurations are those of `examples`.
pub fn make(folder: &Path, examples: &Path) {
    let work = folder.join("work");
    fs::create_dir_all(&work).unwrap();
    images(folder, &work);
    archives(folder, &work);
    configurations(folder, examples);
    control(folder);
    hooks(folder);
    records(folder);
    fs::remove_dir_all(&work).unwrap();
}

/// The record of an archive that was broken off.
fn records(folder: &Path) {
    let digest = "0".repeat(64);
    let origin = format!(
        r#"{{"version":1,"archive":"c7a5fdbd-edaf-9455-926a-d65c16db1809","name":"a.tar","place":"/a","job":null,"head":"{digest}",
        "members":[["x",1,"{digest}"]],"facts":{{"tool":"t","subject":["a",false],"compression":"c","disks":[],"files":[{{"path":"/a",
        "identity":[1,2],"size":3,"modified":[4,5],"changed":[6,7]}}],"runs":"{digest}"}}}}"#
    );
    Fingerprint::parse(origin.as_bytes()).unwrap();
    seed(folder, "record", "origin", &[0], origin.as_bytes());
    let marks = [
        r#"{"file":{"temporary":"/a","identity":[1,2]}}"#,
        r#"{"synced":{"bytes":7}}"#,
        r#"{"upload":{"id":"i","mark":"m","part":6291456}}"#,
        r#"{"part":{"number":0,"id":"e","bytes":6291456}}"#,
    ];
    let lines = marks.map(|mark| format!("{:08x} {mark}\n", crc32c::crc32c(mark.as_bytes()))).concat();
    assert_eq!(read_marks(lines.as_bytes()).1, lines.len() as u64);
    seed(folder, "record", "marks", &[1], lines.as_bytes());
    let mut entry = [[7; 36].as_slice(), &(1_u32 << 20).to_le_bytes()].concat();
    entry[32..36].copy_from_slice(&4711_u32.to_le_bytes());
    let guarded = [[0; 16].as_slice(), &0_u64.to_le_bytes(), &entry].concat();
    entry.extend_from_slice(&crc32c::crc32c(&guarded).to_le_bytes());
    assert_eq!(read_chunks(uuid::Uuid::nil(), entry.as_slice()).unwrap().1, 44);
    seed(folder, "record", "chunks", &[3], &entry);
    let key = [b"virtfold key 1\n\0".as_slice(), &[7; 32], b"age-encryption.org/v1\n"].concat();
    seed(folder, "record", "key", &[2], &key);
}

/// What libvirt's hooks leave, and the guards that they look at.
fn hooks(folder: &Path) {
    let xml = "<domain type='kvm'><name>a&amp;b</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid><devices>\
        <!-- > --><disk type='file'><source file=\"/a&#x2f;b\"/><backingStore><source file='/c'/></backingStore><readonly/>\
        </disk><disk><source dev='/dev/d'/></disk></devices></domain>";
    seed(folder, "hooks", "domain", &[2], xml.as_bytes());
    seed(folder, "hooks", "cdata", &[2], b"<?xml?><domain><name><![CDATA[x]]>&lt;</name></domain>");
    let words = ["vm", "release", "end", "shutdown"].map(str::to_owned);
    for (name, xml) in [("whole", EventXml::Whole { text: xml.to_owned() }), ("late", EventXml::Late {})] {
        seed(folder, "hooks", name, &[0], &HookEvent::now(Hook::Qemu, &words, xml).encode().unwrap());
    }
    let guard = r#"{"version":1,"uuid":"c7a5fdbd-edaf-9455-926a-d65c16db1809","name":"vm","disk":"/a",
        "file":{"inode":[1,2]},"access":"reading","reason":"a backup","pid":1}"#;
    assert!(LockedDisks::parse(guard.as_bytes()).is_some());
    seed(folder, "hooks", "guard", &[1], guard.as_bytes());
}

/// Writes `bytes`, behind each of `flags`, for `target`.
fn seed(folder: &Path, target: &str, name: &str, flags: &[u8], bytes: &[u8]) {
    let folder = folder.join(target);
    fs::create_dir_all(&folder).unwrap();
    for flag in flags {
        fs::write(folder.join(format!("{name}-{flag}")), [&[*flag], bytes].concat()).unwrap();
    }
}

/// What the control protocol's specification shows.
fn control(folder: &Path) {
    let asks = [
        "\"status\"",
        "{\"run\":{\"job\":\"nightly\",\"domain\":\"web\"}}",
        "{\"pause\":{}}",
        "{\"cancel\":{\"id\":17}}",
    ];
    for (number, ask) in asks.iter().enumerate() {
        let line = format!("{{\"version\":1,\"ask\":{ask}}}");
        seed(folder, "control", &format!("ask{number}"), &[0], line.as_bytes());
    }
    let entry = r#"{"version":1,"answer":{"entry":{"id":1,"job":"a","domain":"b","uuid":null,"state":"waiting","trigger":{"event":"shutdown"},
        "due":1,"not_before":null,"waits_for":null,"started":null,"ended":null,"attempts":1,"failure":null,"archives":["/a"]}}}"#;
    let error = r#"{"version":1,"error":{"kind":"not-found","sentence":"no job","hint":"none"}}"#;
    for (name, line) in [("entry", entry), ("error", error)] {
        seed(folder, "control", name, &[1], line.as_bytes());
    }
}

fn tool(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).output();
    let done = done.unwrap_or_else(|error| panic!("cannot start {program}: {error}; install qemu-utils"));
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn create(image: &Path, options: &str, size: &str, requests: &[&str]) {
    let image = image.to_str().unwrap();
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, image, size]);
    let mut args = vec!["-f", "qcow2", "-d", "unmap"];
    args.extend(requests.iter().flat_map(|request| ["-c", request]));
    args.push(image);
    if !requests.is_empty() {
        tool("qemu-io", &args);
    }
}

/// The samples, and the schedules that the reference names.
fn configurations(folder: &Path, examples: &Path) {
    for sample in fs::read_dir(examples).unwrap() {
        let path = sample.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "yaml") {
            let seeds = folder.join("config");
            fs::create_dir_all(&seeds).unwrap();
            fs::copy(&path, seeds.join(path.file_name().unwrap())).unwrap();
        }
    }
    for (number, text) in [
        "daily 02:30",
        "mon..fri 22:30 Europe/Berlin",
        "*-*-1,15 04:00",
        "sat *-*-1..7 0/6:0/15",
        "30 2 1-7/2 jan,7 mon-fri",
        "*/15 * * * * UTC",
        "@weekly",
        "hourly",
        "*-test[!a-c]?",
    ]
    .iter()
    .enumerate()
    {
        seed(folder, "schedule", &format!("text{number}"), &[0, 5, 10, 15], text.as_bytes());
    }
}

fn images(folder: &Path, work: &Path) {
    let small: &[&str] = &["write -P 1 0 3k", "write -P 2 40k 9k", "write -z 64k 8k", "discard 41k 2k"];
    let packed: &[&str] = &["write -c -P 3 0 4k", "write -c -P 4 8k 4k", "write -P 5 20k 4k"];
    let split: &[&str] =
        &["write -P 1 0 3k", "write -P 2 40k 900", "write -z 64k 8k", "write -c -P 3 80k 16k"];
    let cases: &[(&str, &str, &str, &[&str])] = &[
        ("v2", "compat=0.10,cluster_size=512", "100k", small),
        ("v3", "cluster_size=512", "100500", small),
        ("empty", "cluster_size=512", "1M", &[]),
        ("large", "cluster_size=4k", "1T", &["write -P 1 900G 8k", "write -P 1 0 1k"]),
        ("zlib", "cluster_size=4k", "64k", packed),
        ("zstd", "cluster_size=4k,compression_type=zstd", "64k", packed),
        ("subclusters", "cluster_size=16k,extended_l2=on", "200k", split),
        ("wide", "cluster_size=1k,refcount_bits=64,lazy_refcounts=on", "100k", small),
        ("narrow", "cluster_size=1k,refcount_bits=1", "100k", small),
    ];
    for (name, options, size, requests) in cases {
        let image = work.join(format!("{name}.qcow2"));
        create(&image, options, size, requests);
        seed(folder, "qcow2_walk", name, &[0], &fs::read(&image).unwrap());
    }
    let image = work.join("v3.qcow2");
    let path = image.to_str().unwrap();
    tool("qemu-img", &["snapshot", "-c", "s", path]);
    tool("qemu-img", &["bitmap", "-f", "qcow2", "--add", path, "b"]);
    seed(folder, "qcow2_walk", "snapshot", &[0, 128], &fs::read(&image).unwrap());
    for (name, grain) in [("zlib", "512"), ("subclusters", "64k")] {
        let image = work.join(format!("{name}.qcow2"));
        let path = image.to_str().unwrap();
        tool("qemu-img", &["bitmap", "-f", "qcow2", "-g", grain, "--add", path, "b"]);
        tool("qemu-io", &["-f", "qcow2", "-c", "write -P 9 1k 2k", "-c", "write -P 9 40k 9k", path]);
        seed(folder, "qcow2_walk", &format!("bitmap-{name}"), &[0], &fs::read(&image).unwrap());
    }
}

/// One way to back a set of images up.
struct Case {
    name: &'static str,
    images: &'static [&'static str],
    compression: Compression,
    layout: Layout,
}

fn archives(folder: &Path, work: &Path) {
    let zstd = Compression::Zstd { level: 1 };
    let cases = [
        Case { name: "plain", images: &["v2"], compression: Compression::None, layout: Layout::Compact },
        Case {
            name: "two",
            images: &["zlib", "large"],
            compression: Compression::None,
            layout: Layout::Compact,
        },
        Case { name: "full", images: &["wide"], compression: Compression::None, layout: Layout::Full },
        Case { name: "none", images: &["empty"], compression: Compression::None, layout: Layout::Compact },
        Case { name: "framed", images: &["v2"], compression: zstd, layout: Layout::Compact },
        Case { name: "frames", images: &["zlib", "large"], compression: zstd, layout: Layout::Compact },
    ];
    for case in cases {
        let archive = back_up(work, &case);
        if case.compression != Compression::None {
            seed(folder, "frame_scanner", case.name, &[0, 1], &archive);
            seed(folder, "archive", case.name, &[0, 1], &archive);
            continue;
        }
        seed(folder, "frame_scanner", case.name, &[0], &archive);
        seed(folder, "archive", case.name, &[0], &archive);
        seed(folder, "pax_sparse", case.name, &[0, 1, 9], &archive);
        members(folder, case.name, &archive);
    }
    many_frames(folder, work);
}

fn back_up(work: &Path, case: &Case) -> Vec<u8> {
    let images = case.images.iter().enumerate().map(|(index, name)| ImageSpec {
        path: work.join(format!("{name}.qcow2")),
        format: Format::Qcow2,
        target: session::default_target(index),
    });
    let mut request = ImagesRequest::of(images.collect());
    request.label = Some(case.name.to_owned());
    let options = BackupOptions {
        compression: case.compression,
        layout: case.layout,
        block_size: Some(BlockSize::MIN),
        workers: 1,
        ..BackupOptions::default()
    };
    let destinations = Destinations::local([work.into()]);
    let (state, control) = (StateDirectories::new(work.join("state")), Control::default());
    let session =
        BackupSession { options: &options, destinations: &destinations, state: &state, control: &control };
    let report = session.images(&request).unwrap();
    fs::read(report.archive).unwrap()
}

/// The parts of an archive as seeds of their parsers, and its body as one that is sealed anew.
fn members(folder: &Path, case: &str, archive: &[u8]) {
    let mut parser = MemberParser::new();
    let mut rest = archive;
    let mut at = None;
    let mut found = Vec::new();
    while let Some(event) = parser.feed(&mut rest).unwrap() {
        match event {
            Event::Begin(member) => {
                if member.name == "virtfold.digests" {
                    at = Some(member.header_at.get());
                }
                found.push((member, Vec::new()));
            }
            Event::Content(bytes) => found.last_mut().unwrap().1.extend_from_slice(bytes),
            Event::End | Event::EndOfArchive => {}
        }
    }
    let body = usize::try_from(at.unwrap()).unwrap();
    seed(folder, "archive", &format!("{case}-body"), &[2, 3, 7], &archive[..body]);
    let head = Manifest::parse(&found[0].1).unwrap();
    let capacity = |target: &str| head.disk(target).map_or(0, |disk| disk.capacity);
    for (member, content) in &found {
        let name = format!("{case}-{}", member.name.replace('/', "-"));
        // The parsers' capacity is a number shifted by its own low bits; one below 2^57 comes out of its top.
        let number = |wanted: u64| {
            let shift = (0..64).find(|s| (wanted << s) >> s == wanted && (wanted << s) % 64 == *s);
            shift.map_or(wanted << 6, |s| wanted << s).to_le_bytes()
        };
        let target = member.name.split('.').next().unwrap_or_default();
        match member.name.as_str() {
            "virtfold.json" => seed(folder, "manifest", &name, &[0], content),
            "virtfold.end.json" => seed(folder, "manifest", &name, &[1], content),
            n if n.ends_with(".csv") => {
                let text = [&number(capacity(target))[..], content].concat();
                seed(folder, "pax_sparse", &name, &[4, 12], &text);
            }
            n if n.ends_with(".map") => {
                seed(folder, "pax_sparse", &name, &[6, 14], &[&[0; 8][..], content].concat());
            }
            n if n.ends_with(".raw") => {
                let capacity = member.realsize.unwrap_or(0);
                let map = content.get(..512).unwrap_or(content);
                let dense = u32::try_from(content.len() - map.len()).unwrap();
                let text = [&number(capacity)[..], &dense.to_le_bytes(), map].concat();
                seed(folder, "pax_sparse", &name, &[2, 10], &text);
            }
            _ => {}
        }
    }
}

/// A stream of three chunks and a tail that compresses to little.
fn many_frames(folder: &Path, work: &Path) {
    create(&work.join("long.qcow2"), "cluster_size=64k", "3M", &["write -P 7 0 3M"]);
    let case = Case {
        name: "long",
        images: &["long"],
        compression: Compression::Zstd { level: 1 },
        layout: Layout::Compact,
    };
    let archive = back_up(work, &case);
    seed(folder, "frame_scanner", case.name, &[0, 1], &archive);
    seed(folder, "archive", case.name, &[0, 1], &archive);
    // The same without its seek table, and without its first frame.
    seed(folder, "frame_scanner", "long-cut", &[0, 1], &archive[..archive.len() - 40]);
    seed(folder, "frame_scanner", "long-headless", &[0, 1], &archive[300..]);
}
