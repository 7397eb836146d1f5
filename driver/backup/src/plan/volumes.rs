//! `<source type='volume'>`: the hypervisor says which file or device a volume is.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::Finding;
use virtfold_base::error::{Error, ErrorKind, sentence};
use virtfold_hypervisor::Hypervisor;
use virtfold_hypervisor::domain_xml::{DomainXml, ImageSource};

/// Puts the file or device in the place of each volume of the disks' top images, and gives the disks whose
/// volume can't be found.
pub(super) fn resolve(hypervisor: &dyn Hypervisor, xml: &mut DomainXml) -> Vec<(String, Finding)> {
    let mut failed = Vec::new();
    for disk in &mut xml.disks {
        let ImageSource::Volume { pool, volume } = &disk.image.source else { continue };
        let found = hypervisor.volume_path(pool, volume).and_then(|path| {
            if path.is_absolute() {
                return Ok(path);
            }
            let what = format!("volume '{volume}' of pool '{pool}' is not a local file or device");
            Err(Error::new(ErrorKind::Unsupported, what)
                .with_hint("exclude it, or back it up inside the guest"))
        });
        match found {
            Ok(path) if is_block_device(&path) => disk.image.source = ImageSource::Block(path),
            Ok(path) => disk.image.source = ImageSource::File(path),
            Err(error) => {
                let told = format!("disk '{}': {}", disk.target, sentence(&error));
                let hint = error.hint().unwrap_or("start the pool with 'virsh pool-start'").to_owned();
                failed
                    .push((disk.target.clone(), Finding::new("volume", error.kind(), told).with_hint(hint)));
            }
        }
    }
    failed
}

/// Whether a path leads to a block device.
pub(super) fn is_block_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}
