//! AppArmor's rules for a guest's QEMU, as libvirt's virt-aa-helper writes them, and the one edit of ours.
//!
//! libvirt keeps the rules of a domain's files in `/etc/apparmor.d/libvirt/libvirt-UUID.files`. At each
//! start, and whenever it restores the label of an image (a CD is ejected, a disk is unplugged, a commit has
//! pivoted), it writes them anew: the top images may be written to, and each image below an overlay gets a
//! line `deny "PATH" w,`. A denial beats every permission, also the one that libvirt itself adds when a
//! commit begins. So the commit of an overlay is refused, though libvirt wants it.
//!
//! What can be done: the line is taken out, the commit is begun (libvirt then adds its permission to the file
//! and loads the whole of it), and the line is put back. QEMU has the base open from then on, and rules that
//! are loaded later do not close it. One line, of one image, of one domain, for one call. Nothing is loaded
//! by us.
//!
//! Imports: `error`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::DomainId;
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};

/// Where libvirt keeps the rules.
pub const RULES: &str = "/etc/apparmor.d/libvirt";

/// A guest with thousands of files has less.
const LARGEST: u64 = 4 << 20;
/// Attempts at an edit that libvirt gets in the way of.
const EDITS: u32 = 5;

/// Denials that were lifted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiftedDenials {
    /// The file with the rules.
    pub rules: PathBuf,
    /// The lines that were taken out of it.
    pub lines: Vec<String>,
}

/// Takes the lines out that deny a domain's QEMU writes to `image`. `None` where there is none.
///
/// # Errors
/// The file can't be read or written.
pub fn lift(folder: &Path, domain: DomainId, image: &Path) -> Result<Option<LiftedDenials>> {
    let rules = folder.join(format!("libvirt-{domain}.files"));
    // libvirt writes the name that a link leads to.
    let real = image.canonicalize().unwrap_or_else(|_| image.to_owned());
    let names = |path: &str| [image, &real].contains(&Path::new(path));
    let denies = |line: &str| denied(line).is_some_and(|path| names(path) || names(&plain(path)));
    for _ in 0..EDITS {
        let Some(text) = read(&rules)? else { return Ok(None) };
        let (out, kept): (Vec<&str>, Vec<&str>) = text.split_inclusive('\n').partition(|line| denies(line));
        if out.is_empty() {
            return Ok(None);
        }
        if replace(&rules, &text, &kept.concat())? {
            return Ok(Some(LiftedDenials { rules, lines: out.into_iter().map(str::to_owned).collect() }));
        }
    }
    Err(restless(&rules))
}

/// Puts lines back that libvirt has not put back itself.
///
/// # Errors
/// The file can't be read or written.
pub fn restore(denial: &LiftedDenials) -> Result<()> {
    let rules = &denial.rules;
    for _ in 0..EDITS {
        // With the guest its rules are gone.
        let Some(text) = read(rules)? else { return Ok(()) };
        let has = |wanted: &&String| !text.lines().any(|line| line.trim() == wanted.trim());
        let missing: Vec<&str> = denial.lines.iter().filter(has).map(String::as_str).collect();
        if missing.is_empty() || replace(rules, &text, &format!("{text}{}", missing.concat()))? {
            return Ok(());
        }
    }
    Err(restless(rules))
}

fn restless(rules: &Path) -> Error {
    let message = format!("'{}' keeps changing", rules.display());
    Error::new(ErrorKind::InUse, message).with_hint("try again")
}

/// The path of a line `deny "PATH" w,`.
fn denied(line: &str) -> Option<&str> {
    let quoted = line.trim().strip_prefix("deny ")?.trim_start().strip_prefix('"')?;
    let (path, rest) = quoted.rsplit_once('"')?;
    (rest.trim() == "w,").then_some(path)
}

/// A path as it is without the backslashes that take their meaning from letters which stand for many files.
/// libvirt writes none so far.
fn plain(path: &str) -> String {
    let mut plain = String::new();
    let mut letters = path.chars();
    while let Some(letter) = letters.next() {
        let escaped = (letter == '\\').then(|| letters.next()).flatten();
        plain.push(escaped.unwrap_or(letter));
    }
    plain
}

fn read(rules: &Path) -> Result<Option<String>> {
    let reading = || format!("cannot read AppArmor's rules in '{}'", rules.display());
    let file = match File::open(rules) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(reading(), e)),
    };
    let mut text = String::new();
    file.take(LARGEST + 1).read_to_string(&mut text).at(reading)?;
    if text.len() as u64 > LARGEST {
        return Err(Error::new(ErrorKind::Unsupported, format!("{}: it is too large", reading())));
    }
    Ok(Some(text))
}

/// Puts a new text in the place of an old one, whole; `false` where the old one is not there any more.
fn replace(rules: &Path, old: &str, new: &str) -> Result<bool> {
    let writing = || format!("cannot write AppArmor's rules in '{}'", rules.display());
    let unique = uuid::Uuid::new_v4().simple().to_string();
    let beside = rules.with_extension(format!("{}.virtfold", unique.get(..8).unwrap_or(&unique)));
    let made = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&beside);
    let written = made.and_then(|mut file| {
        file.write_all(new.as_bytes())?;
        // Whatever our own umask is.
        file.set_permissions(rules.metadata()?.permissions())
    });
    let replaced = match written {
        Err(e) => Err(Error::io(writing(), e)),
        Ok(()) if read(rules)?.as_deref() != Some(old) => Ok(false),
        Ok(()) => std::fs::rename(&beside, rules).at(writing).map(|()| true),
    };
    if !matches!(replaced, Ok(true))
        && let Err(error) = std::fs::remove_file(&beside)
    {
        tracing::debug!(%error, "'{}' is not there", beside.display());
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# DO NOT EDIT THIS FILE DIRECTLY. IT IS MANAGED BY LIBVIRT.\n  \"/i/a.overlay\" rwk,\n  \"/i/a.qcow2\" rk,\n  \
                        # don't audit writes to readonly files\n  deny \"/i/a.qcow2\" w,\n  \"/i/b [1].qcow2\" rk,\n  \
                        deny \"/i/b \\[1\\].qcow2\" w,\n  \"/i/cd.iso\" rk,\n  deny \"/i/cd.iso\" w,\n";

    fn domain() -> DomainId {
        "11111111-2222-3333-4444-555555555555".parse().unwrap()
    }

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let rules = folder.path().join("libvirt-11111111-2222-3333-4444-555555555555.files");
        std::fs::write(&rules, TEXT).unwrap();
        (folder, rules)
    }

    #[test]
    fn one_image_is_allowed_and_no_other() {
        for (image, line) in [
            ("/i/a.qcow2", "  deny \"/i/a.qcow2\" w,\n"),
            ("/i/b [1].qcow2", "  deny \"/i/b \\[1\\].qcow2\" w,\n"),
        ] {
            let (folder, rules) = folder();
            let denial = lift(folder.path(), domain(), Path::new(image)).unwrap().unwrap();
            assert_eq!(denial, LiftedDenials { rules: rules.clone(), lines: vec![line.to_owned()] });
            assert_eq!(std::fs::read_to_string(&rules).unwrap(), TEXT.replace(line, ""));
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
            assert_eq!(lift(folder.path(), domain(), Path::new(image)).unwrap(), None);
            // libvirt has added its permission meanwhile.
            let mut file = OpenOptions::new().append(true).open(&rules).unwrap();
            file.write_all(b"  \"/i/a.qcow2\" rwk,\n").unwrap();
            restore(&denial).unwrap();
            let now = std::fs::read_to_string(&rules).unwrap();
            assert_eq!(now, format!("{}  \"/i/a.qcow2\" rwk,\n{line}", TEXT.replace(line, "")));
            restore(&denial).unwrap();
            assert_eq!(std::fs::read_to_string(&rules).unwrap(), now, "it is there already");
        }
    }

    #[test]
    fn what_is_not_denied_is_left_alone() {
        let (folder, rules) = folder();
        for image in ["/i/a.overlay", "/i/a", "/i/a.qcow2\" w", "/j/a.qcow2"] {
            assert_eq!(lift(folder.path(), domain(), Path::new(image)).unwrap(), None, "{image}");
        }
        assert_eq!(std::fs::read_to_string(&rules).unwrap(), TEXT);
        let nobody: DomainId = "99999999-2222-3333-4444-555555555555".parse().unwrap();
        assert_eq!(lift(folder.path(), nobody, Path::new("/i/a.qcow2")).unwrap(), None);
        let gone = LiftedDenials { rules: folder.path().join("gone"), lines: vec!["x\n".to_owned()] };
        restore(&gone).unwrap();
        assert!(!gone.rules.exists());
    }

    #[test]
    fn a_link_is_known_by_where_it_leads() {
        let (folder, rules) = folder();
        let (link, real) = (folder.path().join("link"), folder.path().join("real"));
        std::fs::write(&real, "").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let real = real.canonicalize().unwrap();
        std::fs::write(&rules, format!("  deny \"{}\" w,\n", real.display())).unwrap();
        assert!(lift(folder.path(), domain(), &link).unwrap().is_some());
        assert_eq!(std::fs::read_to_string(&rules).unwrap(), "");
    }
}
