//! `qemu-img`, for what only QEMU's own code should do to an image: commit it, and say what is in it.
//!
//! Every path is absolute, so none can be taken for an option or for the name of a protocol; no format is guessed.
//!
//! Imports: `error`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use virtfold_base::error::{Error, ErrorKind, IoContext, Result, says_full};

/// Chains are followed no further.
const MAX_CHAIN: usize = 200;

fn run(path: &Path, arguments: &[&OsStr]) -> Result<Output> {
    if !path.is_absolute() {
        return Err(Error::new(ErrorKind::Internal, format!("'{}' is not absolute", path.display())));
    }
    let output = Command::new("qemu-img").args(arguments).arg(path).stdin(Stdio::null()).output();
    output.at(|| "cannot run qemu-img (package qemu-utils)".to_owned())
}

fn failed(doing: String, output: &Output) -> Error {
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let kind = if says_full(&said) {
        ErrorKind::NoSpace
    } else if said.contains("lock") {
        ErrorKind::InUse
    } else {
        ErrorKind::Io
    };
    Error::new(kind, doing).with_source(said)
}

fn options(list: &[&'static str]) -> Vec<&'static OsStr> {
    list.iter().map(|option| OsStr::new(*option)).collect()
}

/// `commit -d`: the overlay keeps its contents; with `-b` it goes no further down than the image right below.
pub(super) fn commit(overlay: &Path, base: &Path) -> Result<()> {
    let mut arguments = options(&["commit", "-q", "-d", "-f", "qcow2", "-t", "none", "-b"]);
    arguments.push(base.as_os_str());
    let mut output = run(overlay, &arguments)?;
    if String::from_utf8_lossy(&output.stderr).contains("O_DIRECT") {
        // A file system without it (tmpfs): through the page cache, with a flush at the end.
        let mut arguments = options(&["commit", "-q", "-d", "-f", "qcow2", "-t", "writeback", "-b"]);
        arguments.push(base.as_os_str());
        output = run(overlay, &arguments)?;
    }
    if output.status.success() {
        return Ok(());
    }
    let doing = format!("cannot commit '{}' into '{}'", overlay.display(), base.display());
    Err(failed(doing, &output))
}

/// `compare`: exit code 1 says that they differ.
pub(super) fn same(overlay: &Path, (base, format): (&Path, &str)) -> Result<bool> {
    let mut arguments = options(&["compare", "-q", "-f", "qcow2", "-F"]);
    arguments.push(OsStr::new(format));
    arguments.push(overlay.as_os_str());
    let output = run(base, &arguments)?;
    match output.status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => {
            let doing = format!("cannot compare '{}' with '{}'", overlay.display(), base.display());
            Err(failed(doing, &output))
        }
    }
}

/// `map` of the overlay alone: without the image below, whatever is not in it is absent.
pub(super) fn is_empty(overlay: &Path) -> Result<bool> {
    let doing = || format!("cannot read the tables of '{}'", overlay.display());
    let name = overlay.to_str().ok_or_else(|| Error::new(ErrorKind::Unsupported, doing()))?;
    let alone = serde_json::json!({
        "driver": "qcow2", "backing": null, "file": {"driver": "file", "filename": name}
    });
    let mut command = Command::new("qemu-img");
    command.args(["map", "-U", "--output=json"]).arg(format!("json:{alone}")).stdin(Stdio::null());
    let output = command.output().at(|| "cannot run qemu-img (package qemu-utils)".to_owned())?;
    if !output.status.success() {
        return Err(failed(doing(), &output));
    }
    let bad = || Error::new(ErrorKind::Damaged, doing());
    let map: Value = serde_json::from_slice(&output.stdout).map_err(|e| bad().with_source(e))?;
    let pieces = map.as_array().ok_or_else(bad)?;
    Ok(pieces.iter().all(|piece| piece.get("present").and_then(Value::as_bool) == Some(false)))
}

/// `info --backing-chain`.
pub(super) fn below(path: &Path) -> Result<Vec<PathBuf>> {
    let doing = || format!("cannot read the headers below '{}'", path.display());
    let arguments = options(&["info", "-U", "-f", "qcow2", "--backing-chain", "--output=json"]);
    let output = run(path, &arguments)?;
    if !output.status.success() {
        return Err(failed(doing(), &output));
    }
    let bad = || Error::new(ErrorKind::Damaged, doing());
    let chain: Value = serde_json::from_slice(&output.stdout).map_err(|e| bad().with_source(e))?;
    let images = chain.as_array().ok_or_else(bad)?.iter().skip(1).take(MAX_CHAIN);
    let names = images.filter_map(|image| image.get("filename").and_then(Value::as_str));
    Ok(names.filter(|name| name.starts_with('/')).map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str, arguments: &[&str], path: &Path) {
        let output = Command::new(name).args(arguments).arg(path).output().unwrap();
        assert!(output.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn write(path: &Path, what: &str) {
        tool("qemu-io", &["-f", "qcow2", "-c", what], path);
    }

    #[test]
    fn an_overlay_is_committed_into_the_image_right_below_and_no_further() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (golden, base, overlay) = (path("golden: x.qcow2"), path("base.qcow2"), path("o, y.qcow2"));
        tool("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "size=8M"], &golden);
        for (below, image) in [(&golden, &base), (&base, &overlay)] {
            let below = below.to_str().unwrap();
            tool("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below], image);
        }
        let before = std::fs::read(&golden).unwrap();
        assert!(is_empty(&overlay).unwrap());
        assert!(same(&overlay, (&base, "qcow2")).unwrap());
        write(&base, "write -P 1 0 64k");
        write(&overlay, "write -P 2 1M 64k");
        assert!(!is_empty(&overlay).unwrap());
        assert!(!same(&overlay, (&base, "qcow2")).unwrap());
        assert_eq!(below(&overlay).unwrap(), [base.clone(), golden.clone()]);
        commit(&overlay, &base).unwrap();
        assert!(same(&overlay, (&base, "qcow2")).unwrap());
        assert!(!is_empty(&overlay).unwrap(), "the overlay keeps what it has");
        write(&base, "read -P 2 1M 64k");
        write(&base, "read -P 1 0 64k");
        assert_eq!(std::fs::read(&golden).unwrap(), before);
        // A zero cluster hides what lies below, so it is something.
        let zeros = path("zeros.qcow2");
        let name = base.to_str().unwrap();
        tool("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", name], &zeros);
        write(&zeros, "write -z 1M 64k");
        assert!(!is_empty(&zeros).unwrap());
    }

    #[test]
    fn what_fails_says_which_file() {
        let directory = tempfile::tempdir().unwrap();
        let nowhere = directory.path().join("nowhere");
        assert!(format!("{:?}", commit(&nowhere, &nowhere).unwrap_err()).contains("nowhere"));
        assert!(same(&nowhere, (&nowhere, "raw")).is_err());
        assert!(is_empty(&nowhere).is_err());
        assert!(below(&nowhere).is_err());
        assert_eq!(commit(Path::new("relative"), &nowhere).unwrap_err().kind(), ErrorKind::Internal);
    }
}
