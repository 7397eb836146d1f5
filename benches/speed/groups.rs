//! Who runs against whom.

use std::path::{Path, PathBuf};

use crate::contest::{Contender, Result, clear, duel, run};
use crate::data::{Place, text, tool};
use crate::mount::Mount;
use crate::report::{Limit, Ratio, Report};

/// virtfold as this build made it.
const VIRTFOLD: &str = env!("CARGO_BIN_EXE_virtfold");

/// A command from its words.
pub(crate) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A virtfold command; `line` is split at spaces, `{}` stands for the paths in their order.
pub(crate) fn virtfold(line: &str, paths: &[&Path]) -> Vec<String> {
    let mut paths = paths.iter();
    let fill = |word: &str| match word.contains("{}") {
        true => word.replace("{}", &text(paths.next().expect("a path for each {}"))),
        false => word.to_owned(),
    };
    std::iter::once(VIRTFOLD.to_owned()).chain(line.split(' ').map(fill)).collect()
}

/// The only file in `folder`.
pub(crate) fn only_file(folder: &Path) -> PathBuf {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "one file is expected in '{}': {files:?}", folder.display());
    files.remove(0)
}

/// Backs `disk` up into the new folder `into`, untimed, and names the archive.
fn archive(disk: &Path, compress: &str, into: &Path) -> PathBuf {
    clear(into);
    let line = format!("backup --image {{}} --format qcow2 --to {{}} --compress {compress} --workers 2");
    let command = virtfold(&line, &[disk, into]);
    tool(&command.iter().map(String::as_str).collect::<Vec<_>>());
    only_file(into)
}

/// Fails unless QEMU finds the two disks identical.
fn compare(disk: PathBuf, format: &'static str, target: PathBuf) -> impl Fn() {
    move || {
        tool(&["qemu-img", "compare", "-q", "-f", "qcow2", "-F", format, &text(&disk), &text(&target)]);
        if format == "qcow2" {
            tool(&["qemu-img", "check", "-q", "-f", format, &text(&target)]);
        }
    }
}

const BACKUP: &str = "backup --image {} --format qcow2 --to {} --workers 2 --compress";

/// Backups and restores against `cp`, `qemu-img convert` and `zstd`.
pub(crate) fn copy(place: &Place, rounds: usize, report: &mut Report) {
    let (payload, disk) = (place.payload(), place.disk_100g());
    let plain = archive(&disk, "none", &place.dir.join("plain"));
    let packed = archive(&disk, "zstd:1", &place.dir.join("packed"));
    let out = place.out();
    let copied = out.join("copy");
    let backup = |name: &str, disk: &Path, how: &str| {
        Contender::new(name, virtfold(&format!("{BACKUP} {how}"), &[disk, &out])).reads(disk)
    };
    let restore = |name: &str, source: &Path, how: &str| {
        let command =
            virtfold(&format!("restore {{}} --disk vda={{}} --workers 2 {how}"), &[source, &copied]);
        let format = if how.contains("raw") { "raw" } else { "qcow2" };
        Contender::new(name, command).reads(source).checked(compare(disk.clone(), format, copied.clone()))
    };
    let contenders = [
        Contender::new("cp of the bytes", words(&["cp", &text(&payload), &text(&copied)]))
            .reads(&payload)
            .synced(&copied),
        backup("backup, 100 GiB disk", &disk, "none"),
        Contender::new(
            "qemu-img convert -O qcow2",
            words(&["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", &text(&disk), &text(&copied)]),
        )
        .reads(&disk)
        .synced(&copied),
        restore("restore, rewrite to raw", &plain, "--format raw"),
        restore("restore, rewrite to qcow2", &plain, "--format qcow2"),
        restore("restore, remap to qcow2", &plain, "--format qcow2 --method remap"),
        Contender::new(
            "zstd -1 -T2 of the bytes",
            words(&["zstd", "-q", "-1", "-T2", &text(&payload), "-o", &text(&copied)]),
        )
        .reads(&payload)
        .synced(&copied),
        backup("backup, zstd level 1", &disk, "zstd:1"),
        restore("restore from zstd, rewrite to raw", &packed, "--format raw"),
    ];
    let results = run(&contenders, rounds, &out);
    report.times("Copying", &results);
    judge_copies(&results, report);
    let size = std::fs::metadata(&plain).unwrap().len();
    report.size("plain archive, against the allocated bytes", size, place.data, 1.001);
    let (small, zstd) = (std::fs::metadata(&packed).unwrap().len(), zstd_size(&payload, &out));
    report.size("zstd archive, against zstd's file", small, zstd, f64::INFINITY);
    for folder in [plain, packed].iter().filter_map(|file| file.parent()) {
        std::fs::remove_dir_all(folder).unwrap();
    }
}

/// Bytes that zstd itself makes of the payload.
fn zstd_size(payload: &Path, out: &Path) -> u64 {
    let file = out.join("size");
    tool(&["zstd", "-q", "-1", "-T2", &text(payload), "-o", &text(&file)]);
    let len = std::fs::metadata(&file).unwrap().len();
    std::fs::remove_file(file).unwrap();
    len
}

fn judge_copies(results: &[Result], report: &mut Report) {
    let of = |name: &str| results.iter().find(|result| result.name.starts_with(name)).expect("it ran");
    let (cp, convert, zstd) = (of("cp"), of("qemu-img"), of("zstd"));
    let backup = of("backup, 100 GiB");
    report.ratio(&Ratio::new("backup, against cp", backup, cp), Limit::AtMost(1.10));
    report.ratio(&Ratio::new("backup, against qemu-img convert", backup, convert), Limit::Below(1.0));
    report.ratio(
        &Ratio::new("backup with zstd level 1, against zstd -1 -T2", of("backup, zstd"), zstd),
        Limit::AtMost(1.10),
    );
    for name in ["restore, rewrite to raw", "restore, rewrite to qcow2", "restore, remap"] {
        let what = format!("{name}, against cp");
        report.ratio(&Ratio::new(&what, of(name), cp), Limit::AtMost(1.15));
    }
    let ours =
        results.iter().filter(|result| ["backup", "restore"].iter().any(|p| result.name.starts_with(p)));
    report.peak("copying", ours);
}

/// The same data in disks of two sizes. The two commands do the same work, so what is to be measured is
/// smaller than the noise of one run: many pairs, and the middle one of their ratios.
pub(crate) fn size(place: &Place, rounds: usize, report: &mut Report) {
    let (small, huge, out) = (place.disk_100g(), place.disk_10t(), place.out());
    let backup = |name: &str, disk: &Path| {
        Contender::new(name, virtfold(&format!("{BACKUP} none"), &[disk, &out])).reads(disk)
    };
    let contenders =
        [backup("backup, 10 TiB disk", &huge), backup("backup, 100 GiB disk, in pairs with it", &small)];
    let results = duel(&contenders, rounds * 4 + 1, &out);
    report.times("The same data in a larger disk", &results);
    let what = "backup of the 10 TiB disk, against the 100 GiB disk (pairs)";
    report.pairs(&Ratio::new(what, &results[0], &results[1]), Limit::AtMost(1.05));
}

/// A remap on a file system that shares blocks.
pub(crate) fn reflink(place: &Place, rounds: usize, report: &mut Report) {
    if !Mount::allowed() {
        report.skipped("reflink", "it mounts a file system, which needs root");
        return;
    }
    let at = place.dir.join("xfs");
    let device = place.dir.join("xfs.img");
    let mount = Mount::made(&at, &device, place.data * 3 + (2 << 30), &["mkfs.xfs", "-q", "-m", "reflink=1"]);
    let small = archive(&place.disk_100g(), "none", &at.join("small"));
    let huge = archive(&place.disk_10t(), "none", &at.join("huge"));
    let out = at.join("out");
    let copied = out.join("copy");
    let remap = |name: &str, source: &Path, how: &str| {
        let line = format!("restore {{}} --disk vda={{}} --workers 2 --format qcow2 --method remap {how}");
        Contender::new(name, virtfold(line.trim_end(), &[source, &copied])).reads(source).checked(compare(
            place.disk_100g(),
            "qcow2",
            copied.clone(),
        ))
    };
    let mut ten = remap("shared remap, 10 TiB disk", &huge, "--unverified");
    ten.check = Some(Box::new(compare(place.disk_10t(), "qcow2", copied.clone())));
    let contenders = [
        remap("shared remap, 100 GiB disk", &small, "--unverified"),
        ten,
        remap("shared remap, 100 GiB disk, digests read first", &small, ""),
    ];
    let results = run(&contenders, rounds, &out);
    drop(mount);
    std::fs::remove_file(device).unwrap();
    report.times("Remap that shares blocks with the archive (XFS)", &results);
    for result in &results[..2] {
        report.seconds(&result.name, result, 1.0);
    }
    report.peak("shared remap", results.iter());
}

/// Allocation tables.
pub(crate) fn map(place: &Place, rounds: usize, report: &mut Report) {
    let disk = place.scattered();
    let out = place.out();
    clear(&out);
    let (ours, theirs) = (place.dir.join("map-virtfold"), place.dir.join("map-qemu"));
    // Only the tables matter; the clusters are read along, which does no harm.
    let contenders = [
        Contender::new(
            "qemu-img map --output=json",
            words(&["qemu-img", "map", "--output=json", "-f", "qcow2", &text(&disk)]),
        )
        .reads(&disk)
        .stdout(&theirs),
        Contender::new("virtfold map --json", virtfold("map {} --format qcow2 --json", &[&disk]))
            .reads(&disk)
            .stdout(&ours),
    ];
    let results = run(&contenders, rounds, &out);
    let rows = |path: &Path| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(path).unwrap()).expect("a table in JSON")
    };
    assert!(rows(&ours) == rows(&theirs), "the two maps of {} differ", disk.display());
    for file in [ours, theirs] {
        std::fs::remove_file(file).unwrap();
    }
    report.times("Allocation table of a 10 TiB qcow2 with 50,000 scattered clusters", &results);
    report.ratio(
        &Ratio::new("virtfold map, against qemu-img map", &results[1], &results[0]),
        Limit::AtMost(0.2),
    );
    report.peak("mapping", results[1..].iter());
}
