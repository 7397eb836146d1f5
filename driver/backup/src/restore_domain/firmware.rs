//! The files of a guest's firmware in the plan of a restore: its variables (NVRAM), its TPM's state, its
//! kernel.
//!
//! Imports: `plan` and what that imports.

use std::io::Write as _;
use std::path::Path;

use super::identity::DomainIdentity;
use super::plan::{FileContent, RestorePlanner};
use super::target_paths::{TargetPath, TargetPaths};
use crate::attachments::{
    BOOT, LibvirtDirectories, NVRAM_QCOW2, NVRAM_RAW, SymlinkPolicy, TPM, TPM_FILE, read_file,
};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result};
use virtfold_hypervisor::domain_xml::TpmStorage;
use virtfold_hypervisor::domain_xml::edit::Editor;

impl RestorePlanner<'_> {
    pub(super) fn nvram(
        &mut self,
        placer: &TargetPaths<'_>,
        home: &Path,
        edit: &mut Editor<'_>,
    ) -> Result<()> {
        let members = [(NVRAM_RAW, "fd"), (NVRAM_QCOW2, "qcow2")];
        let found = members.iter().find_map(|(name, end)| Some((self.backup.member(name)?, *end)));
        let old = self.backup.xml.nvram.as_ref();
        let was = old.and_then(|nvram| nvram.path.as_deref());
        let copy = self.who.identity == DomainIdentity::Copy;
        if found.is_none() && (!copy || old.is_none_or(|nvram| nvram.elsewhere.is_some())) {
            return Ok(());
        }
        if let Some((bytes, _)) = found {
            check_alone(bytes, &self.backup.xml.name)?;
        }
        let end = found.map_or("fd", |(_, end)| end);
        let spot = placer.file(was, home, &format!("{}_VARS.{end}", self.who.name))?;
        if was != Some(spot.path.as_path()) {
            edit.set_nvram(&spot.path)?;
        }
        match found {
            Some((bytes, _)) => self.file("NVRAM", spot, FileContent::File(bytes.to_vec())),
            None => {
                self.placed.push(spot.path.clone());
                spot.must_be_free("the copy's NVRAM")
            }
        }
    }

    pub(super) fn tpm(&mut self, placer: &TargetPaths<'_>, home: &Path, edit: &mut Editor<'_>) -> Result<()> {
        let members: Vec<_> = self.backup.attachments.iter().filter(|a| a.name.starts_with(TPM)).collect();
        let Some(tpm) = self.backup.xml.tpms.first() else {
            return if members.is_empty() {
                Ok(())
            } else {
                let what = "the archive has the state of a TPM, and its domain.xml has no TPM";
                Err(Error::new(ErrorKind::Damaged, what))
            };
        };
        let spot = match &tpm.source {
            Some(was) => {
                let spot = placer.file(Some(was), home, &format!("{}_tpm", self.who.name))?;
                if spot.path != *was {
                    edit.set_tpm_source(0, &spot.path)?;
                }
                spot
            }
            None if members.is_empty() => return Ok(()),
            None => default_tpm(self.host.places, &self.who.id.to_string(), tpm)?,
        };
        if members.is_empty() {
            if self.who.identity != DomainIdentity::Copy {
                return Ok(());
            }
            self.placed.push(spot.path.clone());
            return spot.must_be_free("the copy's TPM state");
        }
        let content = match tpm.storage {
            TpmStorage::File => {
                let state = self.backup.member(TPM_FILE).ok_or_else(|| {
                    Error::new(ErrorKind::Damaged, format!("the archive's TPM state is not in '{TPM_FILE}'"))
                })?;
                FileContent::File(state.to_vec())
            }
            TpmStorage::Directory => {
                let name = |member: &str| member.strip_prefix(TPM).unwrap_or(member).to_owned();
                FileContent::Directory(members.iter().map(|a| (name(&a.name), a.content.clone())).collect())
            }
        };
        self.file("TPM state", spot, content)
    }

    pub(super) fn boot(
        &mut self,
        placer: &TargetPaths<'_>,
        home: &Path,
        edit: &mut Editor<'_>,
    ) -> Result<()> {
        let boot = &self.backup.xml.boot;
        for ((element, member, limit), was) in BOOT.iter().zip([&boot.kernel, &boot.initrd, &boot.dtb]) {
            let (Some(was), Some(bytes)) = (was, self.backup.member(member)) else { continue };
            let same = |path: &Path| {
                read_file(path, *limit, SymlinkPolicy::Follow)
                    .is_ok_and(|there| there.as_deref() == Some(bytes))
            };
            // libvirt gives the file to QEMU's user: one that the archive names must be this guest's already.
            if same(was) && self.own.iter().any(|own| own.boot.of(element) == Some(was)) {
                continue;
            }
            let spot = placer.file(None, home, &format!("{}.{element}", self.who.name))?;
            edit.set_boot_file(element, &spot.path)?;
            self.placed.push(spot.path.clone());
            if !same(&spot.path) {
                self.file(element, spot, FileContent::File(bytes.to_vec()))?;
            }
        }
        Ok(())
    }
}

/// NVRAM may be a qcow2 image, whose header can name other files: QEMU would read the one and write to the
/// other, and its user can write to the disks of all guests.
fn check_alone(bytes: &[u8], guest: &str) -> Result<()> {
    const QCOW2: &[u8] = b"QFI\xfb";
    if !bytes.starts_with(QCOW2) {
        return Ok(());
    }
    let named = (|| {
        let looking = || "cannot look at the NVRAM".to_owned();
        let memory = rustix::fs::memfd_create("nvram", rustix::fs::MemfdFlags::CLOEXEC);
        let mut file = std::fs::File::from(memory.map_err(std::io::Error::from).at(looking)?);
        file.write_all(bytes).at(looking)?;
        virtfold_image::references(&file, Path::new("/nvram"))
    })();
    let cannot = |error: Error| error.within(format!("the NVRAM of '{guest}' in the archive can't be used"));
    let named = named.map_err(cannot)?;
    let Some(other) = named.backing.or(named.data_file) else { return Ok(()) };
    let what = format!(
        "the NVRAM of '{guest}' in the archive is a qcow2 image that names another file, '{}'",
        other.display()
    );
    Err(Error::new(ErrorKind::Refused, what).with_hint(
        "QEMU would open that file; restore the disks alone, without --define, and define the guest with new NVRAM",
    ))
}

fn default_tpm(
    places: &LibvirtDirectories,
    id: &str,
    tpm: &virtfold_hypervisor::domain_xml::Tpm,
) -> Result<TargetPath> {
    if places.swtpm.parent().is_some_and(Path::is_dir) {
        return TargetPath::look_or_free(&places.tpm_state(id, tpm));
    }
    let what = format!("'{}', where libvirt keeps the state of TPMs, is not there", places.swtpm.display());
    Err(Error::new(ErrorKind::NotFound, what).with_hint("say --libvirt-dir DIR: libvirt's state directory"))
}
