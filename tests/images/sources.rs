//! What a source may be: a container that is called raw, an image that changes while it is read, one that
//! somebody has mounted.
//!
//! Mounts and loop devices need root; without it these tests fail and say so.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::common::MIB;
use crate::common::archive::{Method, backup, backup_args, restore, verify};
use crate::common::image::{Format, Image};
use crate::common::mount::{Loop, Mount};
use crate::common::rng::Rng;
use crate::common::run::{Outcome, collect, exit, line_of, run, text, tool, virtfold, wait_until};
use crate::common::scratch::{Scratch, names};

/// Long enough for anything here, even on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn raw_noise(scratch: &Scratch, name: &str, mib: usize) -> Image {
    let path = scratch.join(name);
    fs::write(&path, Rng::of_case(name, 0).bytes(mib << 20)).unwrap();
    Image::new(path, Format::Raw)
}

#[test]
fn a_container_that_is_called_raw_is_refused_unless_one_insists() {
    let scratch = Scratch::new("container");
    let archives = scratch.folder("archives");
    for (format, options) in
        [("qcow2", ""), ("vmdk", ""), ("vhdx", ""), ("vdi", ""), ("vpc", "subformat=dynamic"), ("qed", "")]
    {
        let path = scratch.join(format!("disk.{format}"));
        let mut args = vec!["create", "-q", "-f", format];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([text(&path), "4M"]);
        run(&mut tool("qemu-img", args)).ok();
        let image = Image::new(&path, Format::Raw);
        let refused = run(&mut virtfold(backup_args(&image, text(&archives), &[]))).exits(exit::USAGE);
        assert!(refused.stderr.contains(&format!("begins like a {format} image")), "{refused}");
        assert!(refused.stderr.contains("--force"), "{refused}");
        assert_eq!(refused.stderr.contains("--format qcow2"), format == "qcow2", "{refused}");
        assert_eq!(names(&archives), [] as [&str; 0]);
        let archive = backup(&image, &archives, &["--force"]);
        let back = Image::new(scratch.join("back"), Format::Raw);
        restore(&archive, &back, Method::Rewrite).ok();
        run(&mut tool(
            "cmp",
            [&format!("--bytes={}", path.metadata().unwrap().len()), image.text(), back.text()],
        ))
        .ok();
        fs::remove_file(back.path).unwrap();
        fs::remove_file(archive).unwrap();
    }
}

/// Gives the guest's cluster `to` the place of its cluster `from`, which is then counted twice, in `bits`
/// bits: as a program does that finds like clusters.
fn share(image: &Image, bits: u64, from: usize, to: usize) {
    let mut bytes = fs::read(&image.path).unwrap();
    let word = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let place = |entry: u64| usize::try_from(entry & 0x00ff_ffff_ffff_fe00).unwrap();
    let size = 1_usize << u32::from_be_bytes(bytes[20..24].try_into().unwrap());
    let l1 = place(word(&bytes, 40));
    let l2 = place(word(&bytes, l1));
    let host = place(word(&bytes, l2 + from * 8));
    let gone = place(word(&bytes, l2 + to * 8));
    for at in [from, to] {
        bytes[l2 + at * 8..l2 + at * 8 + 8].copy_from_slice(&(host as u64).to_be_bytes());
    }
    let refcounts = place(word(&bytes, usize::try_from(word(&bytes, 48)).unwrap()));
    for (cluster, count) in [(host / size, 2_u8), (gone / size, 0)] {
        match usize::try_from(bits).unwrap() {
            bits @ 8.. => {
                let width = bits / 8;
                bytes[refcounts + cluster * width + width - 1] = count;
            }
            bits => {
                let (byte, shift) = (refcounts + cluster * bits / 8, cluster * bits % 8);
                let mask = ((1_u8 << bits) - 1) << shift;
                bytes[byte] = bytes[byte] & !mask | count << shift;
            }
        }
    }
    fs::write(&image.path, bytes).unwrap();
}

#[test]
fn clusters_that_two_addresses_share_by_their_refcount_are_read_and_restored() {
    let scratch = Scratch::new("shared");
    let archives = scratch.folder("archives");
    for bits in [2, 4, 8, 16, 64] {
        let options = format!("refcount_bits={bits}");
        let image = Image::create(scratch.join(format!("{bits}.qcow2")), Format::Qcow2, &options, 4 * MIB);
        image.io(&["write -P 1 0 64k", "write -P 2 64k 64k", "write -P 3 1M 128k"]);
        share(&image, bits, 0, 17);
        // QEMU finds nothing wrong.
        image.assert_clean();
        let archive = backup(&image, &archives, &[]);
        for (method, format) in
            [(Method::Rewrite, Format::Raw), (Method::Rewrite, Format::Qcow2), (Method::Remap, Format::Qcow2)]
        {
            let back = Image::new(scratch.join("back"), format);
            restore(&archive, &back, method).ok();
            back.assert_clean();
            image.assert_same_disk(&back);
            // Each address has its own copy.
            back.io(&["write -P 9 0 64k", "read -P 1 1088k 64k"]);
            fs::remove_file(back.path).unwrap();
        }
        // Three that refer to what is counted twice are damage.
        let mut bytes = fs::read(&image.path).unwrap();
        let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
        let place = |entry: u64| usize::try_from(entry & 0x00ff_ffff_ffff_fe00).unwrap();
        let l2 = place(word(place(word(40))));
        let (entry, at) = (word(l2).to_be_bytes(), l2 + 16 * 8);
        bytes[at..at + 8].copy_from_slice(&entry);
        fs::write(&image.path, bytes).unwrap();
        let refused = run(&mut virtfold(backup_args(&image, text(&archives), &[]))).exits(exit::BAD_IMAGE);
        assert!(refused.stderr.contains("lies over something else"), "{refused}");
    }
}

/// Begins a backup that takes seconds, and waits until it has written something.
fn slow_backup(image: &Image, folder: &Path, more: &[&str]) -> (String, Child) {
    let more = [&["--compress", "none", "--limit-rate", "2MiB"], more].concat();
    let mut command = virtfold(backup_args(image, text(folder), &more));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = || {
        names(folder).iter().any(|name| folder.join(name).metadata().is_ok_and(|file| file.len() > 1 << 20))
    };
    wait_until("the backup's first MiB", PATIENCE, begun);
    (line_of(&command), child)
}

fn refused_as_changed(outcome: Outcome, file: &Path, folder: &Path) {
    let outcome = outcome.exits(exit::IN_USE);
    assert!(outcome.stderr.contains(text(file)) && outcome.stderr.contains("while it was read"), "{outcome}");
    assert_eq!(names(folder), [] as [&str; 0], "{outcome}");
}

#[test]
fn an_image_that_is_written_to_while_it_is_read_makes_no_archive() {
    let scratch = Scratch::new("changes");
    let base = raw_noise(&scratch, "base.raw", 6);
    let top = Image::new(scratch.join("top.qcow2"), Format::Qcow2);
    let args = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", base.text(), top.text()];
    run(&mut tool("qemu-img", args)).ok();
    let write = |path: &Path| {
        OpenOptions::new()
            .write(true)
            .open(path)
            .unwrap()
            .write_all_at(b"dd knows no locks", 5 << 20)
            .unwrap();
    };
    let keep_the_time = |path: &Path| {
        let modified = path.metadata().unwrap().modified().unwrap();
        write(path);
        File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
    };
    let grow = |path: &Path| OpenOptions::new().write(true).open(path).unwrap().set_len(7 << 20).unwrap();
    /// The image, the file of it that changes, how, and the options.
    type Case<'a> = (&'a Image, &'a Image, &'a dyn Fn(&Path), &'a [&'a str]);
    let cases: [Case<'_>; 5] = [
        (&base, &base, &write, &[]),
        (&top, &base, &write, &[]),
        (&base, &base, &keep_the_time, &[]),
        (&base, &base, &write, &["--frozen"]),
        (&base, &base, &grow, &[]),
    ];
    for (number, (image, file, change, more)) in cases.into_iter().enumerate() {
        let folder = scratch.folder(&number.to_string());
        let (line, child) = slow_backup(image, &folder, more);
        change(&file.path);
        refused_as_changed(collect(line, child), &file.path, &folder);
    }
    // Whoever only reads changes nothing.
    let folder = scratch.folder("read");
    let (line, child) = slow_backup(&base, &folder, &[]);
    fs::read(&base.path).unwrap();
    verify(Path::new(collect(line, child).ok().last_line())).ok();
}

#[test]
fn a_block_device_that_is_written_to_while_it_is_read_makes_no_archive() {
    let scratch = Scratch::new("device-changes");
    let file = raw_noise(&scratch, "device.img", 6);
    let device = Loop::attach(&file.path);
    let image = Image::new(device.device(), Format::Raw);
    let write = || {
        let node = OpenOptions::new().write(true).open(device.device()).unwrap();
        node.write_all_at(&[7; 4096], 5 << 20).unwrap();
        node
    };
    // What was written before, and is still on its way, is not meant.
    write();
    let folder = scratch.folder("archives");
    let (line, child) = slow_backup(&image, &folder, &[]);
    write().sync_all().unwrap();
    refused_as_changed(collect(line, child), device.device(), &folder);
    verify(&backup(&image, &folder, &[])).ok();
}

#[test]
fn what_somebody_has_mounted_or_attached_is_refused() {
    let scratch = Scratch::new("mounted");
    let archives = scratch.folder("archives");
    let refused = |image: &Image, why: &str| {
        let outcome = run(&mut virtfold(backup_args(image, text(&archives), &[]))).exits(exit::IN_USE);
        assert!(outcome.stderr.contains(why) && outcome.stderr.contains("hint: "), "{outcome}");
        assert_eq!(names(&archives), [] as [&str; 0]);
    };
    let file = scratch.join("fs.img");
    let mount = Mount::made(&scratch.join("mnt"), &file, 16 * MIB, &["mkfs.ext4", "-q"]);
    let found = run(&mut tool("findmnt", ["-n", "-o", "SOURCE", text(mount.path())])).ok();
    let (image, device) = (Image::new(&file, Format::Raw), Image::new(found.text().trim(), Format::Raw));
    refused(&image, "is attached to /dev/loop");
    refused(&device, "is mounted at '");
    // Frozen is what the caller says it is.
    fs::write(mount.path().join("a"), b"a").unwrap();
    run(&mut tool("fsfreeze", ["--freeze", text(mount.path())])).ok();
    let frozen = run(&mut virtfold(backup_args(&device, text(&archives), &["--frozen"])));
    run(&mut tool("fsfreeze", ["--unfreeze", text(mount.path())])).ok();
    fs::remove_file(frozen.ok().last_line()).unwrap();
    // Mounted read-only it is nobody's.
    run(&mut tool("mount", ["-o", "remount,ro", text(mount.path())])).ok();
    fs::remove_file(backup(&device, &archives, &[])).unwrap();
    drop(mount);
    fs::remove_file(backup(&image, &archives, &[])).unwrap();

    let swap = raw_noise(&scratch, "swap.img", 1);
    let device = Loop::attach(&swap.path);
    run(&mut tool("mkswap", [device.device()])).ok();
    run(&mut tool("swapon", [device.device()])).ok();
    let outcome =
        run(&mut virtfold(backup_args(&Image::new(device.device(), Format::Raw), text(&archives), &[])));
    run(&mut tool("swapoff", [device.device()])).ok();
    assert!(outcome.exits(exit::IN_USE).stderr.contains("swap"));
}

/// What an archive of `image` copied, bytes.
fn copied(image: &Image, folder: &Path, more: &[&str]) -> u64 {
    let done = run(&mut virtfold(backup_args(image, text(folder), &[more, &["--json"]].concat()))).ok();
    let summary = done.json_lines().pop().unwrap();
    let archive = summary["archive"].as_str().unwrap_or_else(|| panic!("{done}")).to_owned();
    verify(Path::new(&archive)).ok();
    let back = Image::new(folder.join("back.raw"), Format::Raw);
    restore(Path::new(&archive), &back, Method::Rewrite).ok();
    image.assert_same_disk(&back);
    fs::remove_file(back.path).unwrap();
    summary["disks"][0]["dense_length"].as_u64().unwrap()
}

#[test]
fn zeros_that_nothing_tells_of_are_found_and_left_out() {
    let scratch = Scratch::new("zeros");
    let folder = scratch.folder("archives");
    let mut bytes = vec![0; 16 << 20];
    bytes[5 << 20..6 << 20].copy_from_slice(&Rng::of_case("zeros", 0).bytes(1 << 20));
    bytes[(9 << 20) + 4000] = 1;
    let (used, all) = (MIB + (64 << 10), 16 * MIB);
    let dense = Image::new(scratch.join("dense.raw"), Format::Raw);
    fs::write(&dense.path, &bytes).unwrap();
    let device = Loop::attach(&dense.path);
    let device = Image::new(device.device(), Format::Raw);
    assert_eq!(copied(&device, &folder, &[]), used);
    assert_eq!(copied(&device, &folder, &["--detect-zeroes", "off"]), all);
    assert_eq!(copied(&device, &folder, &["--layout", "full"]), all);
    let sparse = Image::new(scratch.join("sparse.raw"), Format::Raw);
    fs::write(&sparse.path, &bytes).unwrap();
    OpenOptions::new().write(true).open(&sparse.path).unwrap().set_len(17 << 20).unwrap();
    assert_eq!(copied(&sparse, &folder, &[]), all, "it has holes, which tell");
    assert_eq!(copied(&sparse, &folder, &["--detect-zeroes", "on"]), used);
    let qcow2 = Image::create(scratch.join("a.qcow2"), Format::Qcow2, "", 16 * MIB);
    qcow2.io(&["write -P 0 0 4M", "write -P 1 1M 64k"]);
    assert_eq!(copied(&qcow2, &folder, &[]), 4 * MIB);
    assert_eq!(copied(&qcow2, &folder, &["--detect-zeroes", "on"]), 64 << 10);
    let above = Image::new(scratch.join("above.qcow2"), Format::Qcow2);
    let args = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", sparse.text(), above.text()];
    run(&mut tool("qemu-img", args)).ok();
    assert_eq!(copied(&above, &folder, &["--detect-zeroes", "on"]), used);
    // By configuration, and one command line against it.
    let config = scratch.join("config.yaml");
    fs::write(&config, "version: 1\ndefaults:\n  detect-zeroes: on\n").unwrap();
    assert_eq!(copied(&qcow2, &folder, &["--config", text(&config)]), 64 << 10);
    assert_eq!(copied(&qcow2, &folder, &["--config", text(&config), "--detect-zeroes", "off"]), 4 * MIB);
}

/// `virtfold` as somebody whom permissions bind, be it root.
fn bound(args: &[&str], state: &Path) -> Outcome {
    let mut command = virtfold(["--version"]);
    let program = command.get_program().to_owned();
    command = tool("setpriv", ["--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", "--"]);
    command.arg(program).args(args).env("VIRTFOLD_STATE_DIR", state);
    run(&mut command)
}

#[test]
fn what_one_may_not_read_is_no_damage() {
    let scratch = Scratch::new("denied");
    let (state, place) = (scratch.folder("state"), scratch.folder("place"));
    let list = ["list", "--remember", text(&place)];
    bound(&list, &state).ok();
    let catalog = state.join("catalog.sqlite");
    let prune = ["prune", "--place", text(&place), "--keep-last", "1"];
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap()
    };
    for (path, closed, open) in [(&catalog, 0, 0o600), (&state, 0, 0o700)] {
        mode(path, closed);
        let outcomes = [&list[..], &prune[..]].map(|args| bound(args, &state));
        mode(path, open);
        for outcome in outcomes {
            let outcome = outcome.exits(exit::DENIED);
            assert!(
                outcome.stderr.contains(text(&state)) && outcome.stderr.contains("Permission denied"),
                "{outcome}"
            );
            assert!(
                outcome.stderr.contains("hint: run it as root") && !outcome.stderr.contains("move it away"),
                "{outcome}"
            );
        }
    }
    // What is damaged is told as that.
    fs::write(&catalog, [b'x'; 8192]).unwrap();
    assert!(bound(&prune, &state).exits(exit::DAMAGED).stderr.contains("move it away"));
}
