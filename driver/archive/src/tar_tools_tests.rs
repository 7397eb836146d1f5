//! The archive against the two tools that must read it without virtfold: GNU tar and bsdtar.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::layout::Layout;
use super::layout_fixture::{Made, TIME, TestDisk, make, make_signed};
use super::sign::AllowedSigners;
use super::tar::{END_OF_ARCHIVE, HeaderEncoder};
use virtfold_base::units::{GIB, MIB, StreamOffset};

/// Runs a tool; one that is not there fails the test and says so.
fn run(tool: &str, args: &[&str], input: Option<&[u8]>) -> Output {
    let mut command = Command::new(tool);
    command.args(args).env("LC_ALL", "C").stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn().unwrap_or_else(|e| panic!("this test needs {tool}: {e}"));
    if let (Some(input), Some(mut pipe)) = (input, child.stdin.take()) {
        pipe.write_all(input).unwrap();
    }
    child.wait_with_output().unwrap()
}

fn quiet(tool: &str, args: &[&str], input: Option<&[u8]>) -> String {
    let output = run(tool, args, input);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{tool} {args:?}: {} {said}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

fn disks() -> Vec<TestDisk> {
    let tib = 1024 * GIB;
    vec![
        TestDisk::compact("vda", 100 * GIB, &[(0, 4096), (9 * GIB, 65_536), (50 * GIB + 4096, 512)]),
        TestDisk::compact("vdb", tib + 700, &[(4096, 8192), (tib, 700)]),
        TestDisk::compact("sda", 20 * GIB, &[]),
        TestDisk::compact("a-_Z09", 0, &[]),
        TestDisk::compact("tail", 10_000, &[(8192, 1808)]),
        TestDisk::compact("whole", 5000, &[(0, 5000)]),
        TestDisk::full("vdf", 300_001),
        TestDisk::full("empty", 0),
        TestDisk::compact("many", GIB, &(0..4000).map(|i| (i * 131_072, 512)).collect::<Vec<_>>()),
    ]
}

fn check_disk(dir: &Path, disk: &TestDisk, tool: &str) {
    let path = dir.join(format!("{}.raw", disk.target));
    let file = File::open(&path).unwrap();
    let meta = file.metadata().unwrap();
    assert_eq!(meta.len(), disk.capacity, "{tool}: size of {}", disk.target);
    assert_eq!(meta.mode() & 0o7777, 0o600);
    assert_eq!(meta.mtime(), TIME.cast_signed());
    let mut end = 0;
    for run in disk.runs.iter().copied().chain([(disk.capacity, 0)]) {
        // Holes read as zeros: looked at next to the runs, where a wrong length would show.
        let hole = (run.0 - end).min(70_000);
        for at in [end, run.0 - hole] {
            let mut zeros = vec![1; usize::try_from(hole).unwrap()];
            file.read_exact_at(&mut zeros, at).unwrap();
            assert!(zeros.iter().all(|b| *b == 0), "{tool}: hole of {} at {at}", disk.target);
        }
        let mut bytes = vec![0; usize::try_from(run.1).unwrap()];
        file.read_exact_at(&mut bytes, run.0).unwrap();
        assert!(bytes == disk.run_bytes(run), "{tool}: run of {} at {}", disk.target, run.0);
        end = run.0 + run.1;
    }
    if disk.layout == Layout::Compact && disk.capacity > MIB {
        assert!(meta.blocks() * 512 < disk.capacity / 10, "{tool}: {} has no holes", disk.target);
    }
}

fn check_all(dir: &Path, made: &Made, disks: &[TestDisk], tool: &str) {
    for disk in disks {
        check_disk(dir, disk, tool);
    }
    for (name, content) in &made.members {
        if let Some(content) = content {
            assert_eq!(&fs::read(dir.join(name)).unwrap(), content, "{tool}: {name}");
        }
    }
}

fn long_name() -> String {
    format!("{}/domain.xml", ["a-directory-name"; 9].join("/"))
}

#[test]
fn gnu_tar_and_bsdtar_unpack_identical_disks_without_a_word() {
    let disks = disks();
    for other in ["domain.xml".to_owned(), long_name()] {
        let made = make(&disks, &other);
        for at in made.dense_at.values() {
            assert_eq!(at % 4096, 0);
        }
        for tool in ["tar", "bsdtar"] {
            for from_pipe in [false, true] {
                let dir = tempfile::tempdir().unwrap();
                let archive = dir.path().join("made.tar");
                fs::write(&archive, &made.bytes).unwrap();
                let into = dir.path().join("out");
                fs::create_dir(&into).unwrap();
                let source = if from_pipe { "-" } else { archive.to_str().unwrap() };
                let pipe = from_pipe.then_some(made.bytes.as_slice());
                quiet(tool, &["-xpf", source, "-C", into.to_str().unwrap()], pipe);
                check_all(&into, &made, &disks, tool);
            }
        }
    }
}

#[test]
fn listings_show_names_and_unfolded_sizes_without_warnings() {
    let disks = disks();
    let made = make(&disks, &long_name());
    let names: Vec<&str> = made.members.iter().map(|(name, _)| name.as_str()).collect();
    let listed = quiet("tar", &["--quoting-style=literal", "-tf", "-"], Some(&made.bytes));
    assert_eq!(listed.lines().collect::<Vec<_>>(), names);
    let table = quiet("tar", &["-tvf", "-"], Some(&made.bytes));
    let row = table.lines().find(|line| line.ends_with(" vda.raw")).unwrap();
    assert!(row.starts_with("-rw------- 0/0") && row.contains(" 107374182400 "), "{row}");
    let table = quiet("bsdtar", &["-tvf", "-"], Some(&made.bytes));
    assert!(
        table.lines().any(|line| line.ends_with(" vda.raw") && line.contains(" 107374182400 ")),
        "{table}"
    );
}

/// A member of 9 GiB needs its size in a pax record; in a file with holes it costs nothing to try.
#[test]
fn both_tools_find_what_follows_a_member_of_nine_gib() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let headers = HeaderEncoder::new(TIME).unwrap();
    let size = 9 * GIB;
    let head = headers.aligned("vda.raw", size, StreamOffset::ZERO).unwrap();
    assert_eq!(head.len() % 4096, 0);
    let after = head.len() as u64 + size;
    let next = headers.plain("next", 0).unwrap();
    file.as_file().write_all_at(&head, 0).unwrap();
    file.as_file().write_all_at(&next, after).unwrap();
    file.as_file().write_all_at(&END_OF_ARCHIVE, after + next.len() as u64).unwrap();
    for tool in ["tar", "bsdtar"] {
        let table = quiet(tool, &["-tvf", file.path().to_str().unwrap()], None);
        let rows: Vec<&str> = table.lines().collect();
        assert_eq!(rows.len(), 2, "{tool}: {table}");
        assert!(rows[0].contains(&format!(" {size} ")) && rows[0].ends_with(" vda.raw"), "{tool}: {table}");
        assert!(rows[1].ends_with(" next"), "{tool}: {table}");
    }
}

/// The commands of FORMAT.md, by tools that know nothing of virtfold.
#[test]
fn ssh_keygen_says_who_signed_an_archive() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    let made = make_signed(&[TestDisk::compact("vda", 100_000, &[(0, 4096)])], "domain.xml");
    fs::write(folder.path().join("web.tar"), &made.bytes).unwrap();
    let (record, signature) = ("virtfold.end.json", "virtfold.end.json.sig");
    quiet("tar", &["-C", dir, "-xf", &format!("{dir}/web.tar"), record, signature], None);
    let file = |name: &str| format!("{dir}/{name}");
    let bytes = fs::read(file(record)).unwrap();
    let key = super::sign::check(&fs::read(file(signature)).unwrap(), &bytes).unwrap();
    fs::write(file("allowed_signers"), AllowedSigners::line("web.example", &key).unwrap() + "\n").unwrap();
    let verify = |host: &str, bytes: &[u8]| {
        let (signers, signature) = (file("allowed_signers"), file(signature));
        let of = ["-Y", "verify", "-f", &signers, "-I", host, "-n", "virtfold-archive", "-s", &signature];
        run("ssh-keygen", &of, Some(bytes))
    };
    let good = verify("web.example", &bytes);
    let said = String::from_utf8_lossy(&good.stdout).into_owned();
    assert!(good.status.success() && said.contains(&key.fingerprint()), "{said} {good:?}");
    assert!(!verify("other.example", &bytes).status.success());
    assert!(!verify("web.example", &bytes[1..]).status.success());
}

/// The other way round: what ssh-keygen signs with a key that it has made is what is made here.
#[test]
fn ssh_keygen_makes_the_same_keys_and_signatures() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let name = path.to_str().unwrap();
    quiet("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "web.example", "-f", name], None);
    let key = super::sign::SigningKey::parse(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(key.host(), "web.example");
    let record = folder.path().join("record");
    fs::write(&record, "a record\n").unwrap();
    let of = ["-q", "-Y", "sign", "-f", name, "-n", "virtfold-archive", record.to_str().unwrap()];
    assert!(run("ssh-keygen", &of, None).status.success());
    let theirs = fs::read(folder.path().join("record.sig")).unwrap();
    assert_eq!(
        String::from_utf8(theirs).unwrap(),
        String::from_utf8(key.sign(b"a record\n").unwrap()).unwrap()
    );
}
