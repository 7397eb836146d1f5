//! Where each disk's overlay goes: beside the image, or where the person says; that of a block device, which
//! has no place beside it, into the state directory. All overlays of a backup have names of their own, and
//! nothing is there yet.
//!
//! The state directory's `overlays` may be missing: the backup makes it. Any other directory must be there,
//! because QEMU sees only what was mounted before the guest was started.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::volumes::is_block_device;
use super::{Finding, PlanContext, PlannedDisk};
use virtfold_base::error::ErrorKind;
use virtfold_base::partial_file;
use virtfold_hypervisor::overlay_path;

/// The longest file name, bytes.
const MAX_NAME: usize = 255;
/// Names are drawn anew this often when one is taken; more than once is next to impossible.
const DRAWS: usize = 8;

/// Gives each disk that is copied its overlay.
pub(super) fn choose(disks: &mut [PlannedDisk], context: &PlanContext<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for _ in 0..DRAWS {
        findings.clear();
        let unique = Uuid::new_v4();
        let (tag, ..) = unique.as_fields();
        let mut next = tag;
        for disk in disks.iter_mut().filter(|disk| disk.copy) {
            let Some(source) = disk.source.as_deref().map(Path::new) else { continue };
            match place(source, &disk.target, context, next) {
                Ok(path) => disk.overlay = Some(path),
                Err(finding) => findings.push(finding),
            }
            next = next.wrapping_add(1);
        }
        if findings.iter().all(|finding| finding.kind != ErrorKind::Exists) {
            break;
        }
    }
    findings
}

/// The directory for the overlay of an image.
pub(super) fn directory(source: &Path, context: &PlanContext<'_>) -> PathBuf {
    match (&context.options.overlay_dir, source.parent()) {
        (Some(directory), _) => directory.clone(),
        (None, Some(parent)) if !is_block_device(source) => parent.to_owned(),
        _ => overlays_of(context.state_dir),
    }
}

/// The state directory's own place for overlays.
pub(super) fn overlays_of(state_dir: &Path) -> PathBuf {
    state_dir.join("overlays")
}

fn place(source: &Path, target: &str, context: &PlanContext<'_>, tag: u32) -> Result<PathBuf, Finding> {
    let directory = directory(source, context);
    let shown = directory.display();
    let made_by_us = directory == overlays_of(context.state_dir);
    if !directory.is_dir() && !made_by_us {
        if let Some(file) = partial_file::file_in_the_way(&directory) {
            let told = format!("no overlay of disk '{target}' is possible in '{shown}': {file}");
            return Err(Finding::new("overlay", ErrorKind::Usage, told).with_hint("say --overlay-dir"));
        }
        let told = format!("the directory '{shown}' for the overlay of disk '{target}' does not exist");
        let hint = "create it, and mount its file system before the guest is started";
        return Err(Finding::new("overlay", ErrorKind::NotFound, told).with_hint(hint));
    }
    let mut path = overlay_path(&directory, source, tag);
    if path.file_name().is_none_or(|name| name.len() > MAX_NAME) {
        path = overlay_path(&directory, Path::new(target), tag);
    }
    let is_text = path.to_str().is_some_and(|text| !text.chars().any(char::is_control));
    if !is_text || !path.is_absolute() {
        let told = format!(
            "the overlay of disk '{target}' can't be in '{shown}': it must be an absolute path in UTF-8"
        );
        return Err(Finding::new("overlay", ErrorKind::Unsupported, told).with_hint("say --overlay-dir"));
    }
    if path.symlink_metadata().is_ok() {
        let told = format!("'{}' exists already", path.display());
        return Err(Finding::new("overlay", ErrorKind::Exists, told).with_hint("try again"));
    }
    Ok(path)
}
