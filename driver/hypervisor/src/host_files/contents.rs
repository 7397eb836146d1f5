//! What is in an overlay, read by the crate `image` and with no program of QEMU's: its user may have written
//! the headers.
//!
//! Imports: `error`, `units`, `image`.

use std::path::Path;

use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_base::safe_path;
use virtfold_base::units::{GuestOffset, MIB};
use virtfold_image::{Allocation, DiskImage, Format, ImageAccess, OpenOptions};

/// Whether the overlay has nothing of its own: without the image below, nothing is allocated in it.
pub(super) fn is_empty(overlay: &Path) -> Result<bool> {
    let doing = || format!("cannot read the tables of '{}'", overlay.display());
    let options = OpenOptions { usage: ImageAccess::Unlocked, ..OpenOptions::default() };
    let alone = without_data_file(overlay)
        .and_then(|()| DiskImage::open_chain(overlay, Format::Qcow2, &[], &options))
        .and_then(|image| image.allocation());
    for extent in alone.map_err(|e| e.within(doing()))?.iter() {
        if !matches!(extent?.place, Allocation::Unallocated { .. }) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether overlay and base have the same contents. What is not in the overlay's own tables is the base's.
pub(super) fn same(overlay: &Path, base: &Path, format: &str) -> Result<bool> {
    let doing = || format!("cannot compare '{}' with '{}'", overlay.display(), base.display());
    compare(overlay, base, format).map_err(|e| e.within(doing()))
}

fn compare(overlay: &Path, base: &Path, format: &str) -> Result<bool> {
    without_data_file(overlay)?;
    let format: Format = format.parse().map_err(|e: String| Error::new(ErrorKind::Unsupported, e))?;
    let options = OpenOptions::default();
    let below = DiskImage::open(base, format, &options)?;
    let chain = below.chain()?;
    let above = DiskImage::open_chain(overlay, Format::Qcow2, &chain, &options)?;
    if above.capacity() != below.capacity() {
        return Ok(false);
    }
    let (above_table, below_table) = (above.allocation()?, below.allocation()?);
    let (mut upper, mut lower) = (above.reader(&above_table), below.reader(&below_table));
    let (mut one, mut other) = (Vec::new(), Vec::new());
    for extent in above_table.iter() {
        let extent = extent?;
        if extent.depth != 0 || matches!(extent.place, Allocation::Unallocated { .. }) {
            continue;
        }
        let mut done = 0;
        while done < extent.len {
            let len = usize::try_from((extent.len - done).min(MIB)).unwrap_or(0);
            one.resize(len, 0);
            other.resize(len, 0);
            let at = GuestOffset::new(extent.guest.get() + done);
            upper.read(at, &mut one)?;
            lower.read(at, &mut other)?;
            if one != other {
                return Ok(false);
            }
            done += len as u64;
        }
    }
    above.check_unchanged()?;
    below.check_unchanged()?;
    Ok(true)
}

/// Refuses an overlay that names an external data file: ours have none, and nothing is opened by such a name.
fn without_data_file(overlay: &Path) -> Result<()> {
    let file = safe_path::open(overlay).at(|| format!("cannot open '{}'", overlay.display()))?;
    match virtfold_image::references(&file, overlay)?.data_file {
        None => Ok(()),
        Some(data) => {
            let (overlay, data) = (overlay.display(), data.display());
            let what = format!("the header of '{overlay}' names an external data file, '{data}'");
            Err(Error::new(ErrorKind::BadImage, what).with_hint(
                "virtfold's overlays have none: see who wrote that, and take the guest's data out by hand",
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    fn tool(name: &str, arguments: &[&str], path: &Path) {
        let output = Command::new(name).args(arguments).arg(path).output().unwrap();
        assert!(output.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn write(path: &Path, what: &str) {
        tool("qemu-io", &["-f", "qcow2", "-c", what], path);
    }

    fn on(below: &Path, image: &Path) {
        let below = below.to_str().unwrap();
        tool("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below], image);
    }

    #[test]
    fn what_an_overlay_has_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| -> PathBuf { directory.path().join(name) };
        let (golden, base, overlay) = (path("golden: x.qcow2"), path("base.qcow2"), path("o, y.qcow2"));
        tool("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "size=8M"], &golden);
        on(&golden, &base);
        on(&base, &overlay);
        assert!(is_empty(&overlay).unwrap());
        assert!(same(&overlay, &base, "qcow2").unwrap());
        write(&base, "write -P 1 0 64k");
        write(&overlay, "write -P 2 1M 64k");
        assert!(!is_empty(&overlay).unwrap());
        assert!(!same(&overlay, &base, "qcow2").unwrap());
        assert_eq!(virtfold_image::files_below(&overlay).unwrap(), [base.clone(), golden.clone()]);
        write(&base, "write -P 2 1M 64k");
        assert!(same(&overlay, &base, "qcow2").unwrap());
        // A zero cluster hides what lies below, so it is something.
        let zeros = path("zeros.qcow2");
        on(&base, &zeros);
        write(&zeros, "write -z 1M 64k");
        assert!(!is_empty(&zeros).unwrap() && !same(&zeros, &base, "qcow2").unwrap());
        // What was grown is not what lies below.
        assert!(!same(&overlay_of(&base, &path("grown"), "9M"), &base, "qcow2").unwrap());
    }

    /// An overlay that is larger than its base.
    fn overlay_of(base: &Path, overlay: &Path, size: &str) -> PathBuf {
        let below = base.to_str().unwrap();
        let arguments =
            ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below, overlay.to_str().unwrap()];
        tool("qemu-img", &arguments, Path::new(size));
        overlay.to_owned()
    }

    #[test]
    fn what_fails_says_which_file_and_nothing_is_opened_by_a_header() {
        let directory = tempfile::tempdir().unwrap();
        let nowhere = directory.path().join("nowhere");
        assert!(format!("{:?}", is_empty(&nowhere).unwrap_err()).contains("nowhere"));
        assert!(same(&nowhere, &nowhere, "raw").is_err());
        assert!(virtfold_image::files_below(&nowhere).is_err());
        let planted = directory.path().join("planted");
        let options = format!("size=8M,data_file={}", directory.path().join("data").display());
        tool("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options], &planted);
        for error in [is_empty(&planted).unwrap_err(), same(&planted, &planted, "qcow2").unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::BadImage, "{error:?}");
        }
    }
}
