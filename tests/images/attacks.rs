//! Who may write to the directories where root reads and writes, and plants links there: the owner of a
//! directory, QEMU's user. Root's own links stay usable. More of it stands beside the code:
//! `safe_path_tests`, `partial_file/tests`, `host_files/offline_commit_tests` and `sandbox_tests`,
//! `restore_domain/tests/planted`, `attachments_tests`, and `media/objects/hostile.rs` for the store.

use std::fs;
use std::os::unix::fs::{lchown, symlink};
use std::path::Path;

use crate::common::MIB;
use crate::common::archive::{Method, backup, backup_args, restore_args};
use crate::common::image::{Format, Image};
use crate::common::run::{Outcome, exit, run, text, virtfold};
use crate::common::scratch::{Scratch, names};

/// A link of somebody who is not root.
fn plant(target: &Path, link: &Path) {
    symlink(target, link).unwrap();
    lchown(link, Some(65_533), None).unwrap();
}

fn image(scratch: &Scratch) -> Image {
    let path = scratch.join("disk.raw");
    fs::write(&path, vec![7; usize::try_from(MIB).unwrap()]).unwrap();
    Image { path, format: Format::Raw }
}

fn restore_to(archive: &Path, target: &Path) -> Outcome {
    let disk = format!("vda={}", text(target));
    let mut args = restore_args(text(archive), &disk, Format::Raw, Method::Rewrite);
    args.push("--force");
    run(&mut virtfold(args))
}

#[test]
fn a_restore_replaces_a_planted_link_and_goes_through_none() {
    let scratch = Scratch::new("attack-restore");
    let archive = backup(&image(&scratch), &scratch.folder("archives"), &[]);
    let (theirs, root) = (scratch.folder("theirs"), scratch.folder("root"));
    fs::write(root.join("shadow"), b"root's own").unwrap();
    plant(&root.join("shadow"), &theirs.join("disk"));
    restore_to(&archive, &theirs.join("disk")).ok();
    assert_eq!(fs::read(root.join("shadow")).unwrap(), b"root's own");
    assert!(theirs.join("disk").symlink_metadata().unwrap().is_file());
    assert_eq!(fs::read(theirs.join("disk")).unwrap(), vec![7; usize::try_from(MIB).unwrap()]);
    plant(&root, &theirs.join("folder"));
    for name in ["folder/new", "folder/shadow"] {
        let said = restore_to(&archive, &theirs.join(name)).exits(exit::DENIED);
        assert!(said.stderr.contains("others can have made"), "{said}");
    }
    assert_eq!(names(&root), ["shadow"]);
    assert_eq!(fs::read(root.join("shadow")).unwrap(), b"root's own");
}

#[test]
fn a_backup_copies_nothing_through_a_planted_link() {
    let scratch = Scratch::new("attack-backup");
    let archives = scratch.folder("archives");
    let secret = image(&scratch);
    let link = Image { path: scratch.join("planted"), format: Format::Raw };
    plant(&secret.path, &link.path);
    let said = run(&mut virtfold(backup_args(&link, text(&archives), &[]))).exits(exit::DENIED);
    assert!(said.stderr.contains("others can have made"), "{said}");
    assert_eq!(names(&archives), Vec::<String>::new());
    // And into a directory of root's that somebody else's link leads to.
    plant(&archives, &scratch.join("place"));
    run(&mut virtfold(backup_args(&secret, text(&scratch.join("place")), &[]))).exits(exit::DENIED);
    assert_eq!(names(&archives), Vec::<String>::new());
}

#[test]
fn an_image_behind_a_link_of_root_s_own_is_backed_up_and_restored() {
    let scratch = Scratch::new("attack-own-link");
    let real = image(&scratch);
    let link = Image { path: scratch.join("own"), format: Format::Raw };
    symlink(&real.path, &link.path).unwrap();
    symlink(scratch.folder("archives"), scratch.join("place")).unwrap();
    let archive = backup(&link, &scratch.join("place"), &[]);
    fs::write(&real.path, b"gone").unwrap();
    restore_to(&archive, &link.path).ok();
    assert_eq!(fs::read(&real.path).unwrap().len() as u64, MIB);
    assert!(link.path.symlink_metadata().unwrap().is_symlink());
}

/// Names and arguments of others come out as text that a terminal does not obey and that reads as it is; in
/// JSON they are what they are.
#[test]
fn names_of_others_do_nothing_to_a_terminal() {
    let scratch = Scratch::new("names");
    let name = "a\u{202e}\u{9b}31m\u{7f}.tar";
    std::fs::write(scratch.join(name), "x").unwrap();
    let (folder, file) = (text(scratch.path()), scratch.join(name));
    let is_harmless = |text: &str| text.chars().all(|c| c == '\n' || !(c.is_control() || c == '\u{202e}'));
    for args in [
        vec!["list", folder],
        vec!["show", text(&file)],
        vec!["show", "/none\u{202e}"],
        vec!["show", "--x\u{202e}"],
    ] {
        let done = run(&mut virtfold(&args));
        assert!(is_harmless(done.text()) && is_harmless(&done.stderr), "{args:?}: {done}");
        assert!((done.text().to_string() + &done.stderr).contains("\\u{202e}"), "{args:?}: {done}");
    }
    let listed = run(&mut virtfold(["list", "--json", folder])).json_lines().pop().unwrap();
    assert_eq!(listed["archives"][0]["archive"], text(&file));
}
