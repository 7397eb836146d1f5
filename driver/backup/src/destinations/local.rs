//! Media that this process touches itself: also what the process of a medium does.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use virtfold_archive::crypt::Identities;
use virtfold_base::error::{Error, ErrorKind, Result, WireError};
use virtfold_base::partial_file;
use virtfold_catalog::destination_name;
use virtfold_medium::process::{MediumReply, MediumRequest, ProbeReply};
use virtfold_medium::{
    self as medium, ArchiveLabel, FileMedium, Location, Medium, PartialArchive, PipeMedium, Resumed,
    TapeAddress, mount_point, object,
};

use super::{Destination, MediumAccess};
use crate::inspect;
use crate::tape::TapeOptions;

/// Touches media in this process.
#[derive(Clone, Debug, Default)]
pub struct LocalMedia {
    /// How tapes are used.
    pub tape: TapeOptions,
    /// What opens encrypted archives.
    pub identities: Identities,
}

impl MediumAccess for LocalMedia {
    fn open(&self, to: Destination<'_>, request: MediumRequest) -> Result<MediumReply> {
        if let (Some(path), Some(mount)) = (to.location.path(), to.mount) {
            // It was checked before anything was frozen: what was mounted then may be gone.
            mount.check(path)?;
        }
        Ok(match request {
            MediumRequest::Create(label) => MediumReply::New(self.create(to, &label)?),
            MediumRequest::Reopen(label, left) => MediumReply::Resumed(self.resume(to, &label, &left)?),
            MediumRequest::ReadBack(left) => {
                let file = left.opened()?;
                MediumReply::Left(file.map(|file| Box::new(file.take(left.synced)) as Box<dyn Read>))
            }
            MediumRequest::Discard(left) => {
                if let Some((temporary, identity)) = &left.file {
                    partial_file::remove_partial(temporary, *identity);
                }
                MediumReply::Known(ProbeReply::Done)
            }
            MediumRequest::List => {
                let (location, identities) = (to.location.clone(), self.identities.clone());
                MediumReply::Items(Box::new(move |take| {
                    inspect::list(&location, &identities, &mut |listed| take(value(&listed)?))
                }))
            }
            MediumRequest::Glance(archive) => {
                let identities = self.identities.clone();
                MediumReply::Items(Box::new(move |take| {
                    take(value(&inspect::glance(&archive, &identities)?)?)
                }))
            }
            MediumRequest::Remove(archives) => {
                // Objects go many in a request; of files each is reported as it goes.
                let together =
                    if matches!(to.location, Location::Object(_)) { archives.len().max(1) } else { 1 };
                MediumReply::Items(Box::new(move |take| {
                    for some in archives.chunks(together) {
                        let wanted: Vec<_> =
                            some.iter().map(|one| (one.location.clone(), one.bytes)).collect();
                        let failed = medium::remove(&wanted).into_iter().map(std::result::Result::err);
                        failed
                            .map(|failed| value(&failed.as_ref().map(WireError::from)))
                            .try_for_each(|item| take(item?))?;
                    }
                    Ok(())
                }))
            }
            MediumRequest::Probe(host) => {
                MediumReply::Known(ProbeReply::Usable(medium::probe(to.location, &host)?))
            }
            MediumRequest::Look => {
                let found = to.location.path().and_then(|directory| directory.metadata().ok());
                MediumReply::Known(ProbeReply::Device(found.map(|found| found.dev())))
            }
            MediumRequest::Mount => {
                let found = to.location.path().map(mount_point::of).transpose()?.flatten();
                MediumReply::Known(ProbeReply::Mount(found))
            }
            MediumRequest::Name => MediumReply::Known(ProbeReply::Name(destination_name(to.location)?)),
        })
    }
}

/// An item on its way.
fn value(item: &impl Serialize) -> Result<Value> {
    serde_json::to_value(item).map_err(|error| {
        Error::new(ErrorKind::Internal, "what was found can't be passed on").with_source(error)
    })
}

impl LocalMedia {
    fn create(&self, to: Destination<'_>, label: &ArchiveLabel) -> Result<Box<dyn Medium>> {
        Ok(match to.location {
            Location::Pipe => Box::new(PipeMedium::stdout()?),
            Location::Path(directory) => {
                partial_file::expect_directory(directory)?;
                Box::new(FileMedium::create(&directory.join(&label.name))?)
            }
            Location::Object(address) => object::create(address, label, to.cancel)?,
            Location::Tape(address) => Box::new(self.drive(address, to).begin(&label.name)?),
        })
    }

    fn resume(&self, to: Destination<'_>, label: &ArchiveLabel, left: &PartialArchive) -> Result<Resumed> {
        match to.location {
            Location::Path(directory) => FileMedium::resume(&directory.join(&label.name), left),
            Location::Object(address) => object::reopen(address, label, to.cancel, left),
            Location::Pipe => Ok(Resumed::NotPossible("a pipe is gone with its process".to_owned())),
            Location::Tape(address) => {
                let resumed = self.drive(address, to).resume(&label.name)?;
                Ok(match resumed {
                    Ok((tape, at)) => Resumed::From(Box::new(tape), at),
                    Err(why) => Resumed::NotPossible(why),
                })
            }
        }
    }

    fn drive(&self, address: &TapeAddress, to: Destination<'_>) -> TapeOptions {
        TapeOptions { device: address.device.clone(), cancel: Arc::clone(to.cancel), ..self.tape.clone() }
    }
}
