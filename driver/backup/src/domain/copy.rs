//! From frozen images to an archive that is written and has no name yet.

use std::path::PathBuf;

use super::DomainRequest;
use crate::attachments::{GuestXml, gather};
use crate::freeze::{Frozen, FrozenDisk};
use crate::increment::{self, ChangeHint, ParentChoice};
use crate::plan::Plan;
use crate::session::{BackupInput, BackupSession, InputDisk, UnnamedArchive};
use virtfold_archive::manifest::{BackupSubject, ConsistencyInfo};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_hypervisor::disk_rules::BackupMode;
use virtfold_hypervisor::host_files::{HostFiles, ImageStamp};
use virtfold_image::ImageAccess;

/// A copy that is going to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct DomainCopy<'a> {
    pub(super) session: &'a BackupSession<'a>,
    pub(super) request: &'a DomainRequest<'a>,
    pub(super) plan: &'a Plan,
}

impl DomainCopy<'_> {
    /// Writes the archive, and makes sure that no image changed meanwhile. The images are let go when it
    /// returns.
    pub(super) fn write(&self, frozen: &Frozen, parent: ParentChoice) -> Result<UnnamedArchive> {
        let known = &self.plan.known;
        // First of all: firmware and TPM go on while the disks are frozen.
        let xml = GuestXml { inactive: known.inactive.as_ref(), live: known.live.as_ref() };
        let attachments = gather(xml, self.request.places)?;
        let hint = match self.plan.rule() {
            BackupMode::Offline => ChangeHint::AtRest,
            _ => increment::hint(self.request.host.hypervisor, known.info.id, parent.parent()),
        };
        let disks = frozen.disks.iter().map(|disk| self.open(disk, &hint));
        let disks = disks.collect::<Result<Vec<_>>>()?;
        let files = self.request.host.files;
        let marks = marks(files, &disks)?;
        let subject = self.subject();
        // Whether a domain at rest is as it was its images tell; a frozen guest's are another thing after the
        // next freeze.
        let session = (self.plan.rule() != BackupMode::Offline).then_some(frozen.job);
        let input = BackupInput {
            subject,
            freeze: self.note(frozen),
            attachments,
            disks,
            parent,
            checkpoint: frozen.checkpoint.clone(),
            session,
        };
        let written = BackupSession { control: &frozen.control, ..*self.session }.write(input)?;
        check(files, &marks)?;
        Ok(written)
    }

    /// What the archive is of.
    pub(super) fn subject(&self) -> BackupSubject {
        let info = &self.plan.known.info;
        BackupSubject::Domain { name: info.name.clone(), uuid: Some(info.id.0) }
    }

    /// Opens a frozen image with its chain, held against writers. The plan knows what is below it.
    fn open(&self, frozen: &FrozenDisk, hint: &ChangeHint) -> Result<InputDisk> {
        let planned = self.plan.copied().find(|disk| {
            let path = disk.source.as_ref().map(PathBuf::from);
            disk.target == frozen.target && path.as_ref() == Some(&frozen.path)
        });
        let Some(planned) = planned else {
            let what = format!(
                "disk '{}' was frozen as '{}', which was not planned",
                frozen.target,
                frozen.path.display()
            );
            return Err(Error::new(ErrorKind::Internal, what));
        };
        let image = planned.open(ImageAccess::Locked)?;
        Ok(InputDisk { target: frozen.target.clone(), image, hint: increment::hint_of(hint, &frozen.format) })
    }

    /// How the guest was frozen, as far as it is known now.
    fn note(&self, frozen: &Frozen) -> Option<ConsistencyInfo> {
        let method = match (self.plan.rule(), frozen.report.quiesced) {
            (BackupMode::Offline | BackupMode::NotPossible(_), _) => return None,
            (_, true) => "agent",
            (BackupMode::OnlinePaused, false) => "standing",
            (BackupMode::Online, false) => "snapshot",
        };
        // Longer than the guest stood still by what libvirt needs around the snapshot.
        let measured = match method {
            "standing" => None,
            _ => frozen.report.frozen_ms.or(frozen.report.snapshot_ms),
        };
        let pause = measured.unwrap_or(0.0).clamp(0.0, 1e9).round();
        // A number of at most ten digits, without fraction: its text is the integer's.
        let pause_ms = format!("{pause:.0}").parse().unwrap_or(0);
        Some(ConsistencyInfo { method: method.to_owned(), pause_ms })
    }
}

/// Every file of the images, with its time and size; block devices have none.
pub(super) fn marks(
    files: &dyn HostFiles,
    disks: &[InputDisk],
) -> Result<Vec<(PathBuf, Option<ImageStamp>)>> {
    let all = disks.iter().flat_map(|disk| disk.image.host_files());
    all.map(|(path, _)| Ok((path.to_owned(), files.mark(path)?))).collect()
}

pub(super) fn check(files: &dyn HostFiles, marks: &[(PathBuf, Option<ImageStamp>)]) -> Result<()> {
    for (path, mark) in marks {
        if files.mark(path)? != *mark {
            let what = format!(
                "'{}' was changed while it was copied: the copy is not of one point in time",
                path.display()
            );
            let hint =
                "something bypassed QEMU's locks and wrote to it; find it ('fuser'), then back up again";
            return Err(Error::new(ErrorKind::InUse, what).with_hint(hint));
        }
    }
    Ok(())
}
