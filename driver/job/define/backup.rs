//! What an archive says of its guest: the head, the definition, the files beside the disks. All of it is read by the
//! index, so every byte had its digest; every member has the bound that `attachments` gives it.

use super::DefineRequest;
use super::run::PARTIAL;
use crate::archive::index::{ArchiveIndex, Trust};
use crate::archive::manifest::{Manifest, Subject};
use crate::archive::stream::ReadOptions;
use crate::archive::writer::Attachment;
use crate::crypt::ArchiveFile;
use crate::error::{Error, ErrorKind, Result};
use crate::guest::domain_xml::DomainXml;
use crate::job::Control;
use crate::job::attachments::{DOMAIN_XML, LIVE_XML, limit_of};
use crate::medium::Location;

/// A guest in an archive.
pub(super) struct Backup {
    /// The archive's head.
    pub(super) head: Manifest,
    /// The definition.
    pub(super) xml: DomainXml,
    /// Everything else that is no disk.
    pub(super) attachments: Vec<Attachment>,
}

impl Backup {
    /// Reads it; the disks are not looked at.
    pub(super) fn open(request: &DefineRequest, control: &Control) -> Result<Self> {
        let name = request.archive.to_string();
        if request.archive == Location::Pipe {
            let what = "a guest's definition is checked before its disks are read, and a pipe comes once";
            return Err(Error::new(ErrorKind::Usage, what).with_hint("write the archive to a file first"));
        }
        let cancel = std::sync::Arc::clone(&control.cancel);
        let options =
            ReadOptions { workers: request.writing.workers, cancel, carrier: None, archive_id: None };
        let cannot = |e: Error| {
            let doubtful = matches!(e.kind(), ErrorKind::Damaged | ErrorKind::Incomplete);
            let e = e.within(format!("no guest can be restored from '{name}'"));
            if doubtful { e.with_hint(PARTIAL) } else { e }
        };
        let source = ArchiveFile::open(&request.archive, &request.identities).map_err(cannot)?;
        let index = ArchiveIndex::open(&source, &options, Trust::Strict).map_err(cannot)?;
        let mut attachments =
            index.attachments(&|member| limit_of(member).filter(|_| member != LIVE_XML)).map_err(cannot)?;
        let head = index.head().clone();
        let place = attachments.iter().position(|a| a.name == DOMAIN_XML);
        let xml =
            place.map(|at| attachments.swap_remove(at).content).ok_or_else(|| no_guest(&name, &head))?;
        let damaged = |e| Error::new(ErrorKind::Damaged, "its domain.xml is not UTF-8").with_source(e);
        let xml = String::from_utf8(xml).map_err(damaged).and_then(DomainXml::parse).map_err(cannot)?;
        if let (Subject::Domain { uuid: Some(head), .. }, Some(id)) = (&head.subject, xml.id)
            && *head != id.0
        {
            let what =
                format!("'{name}' contradicts itself: its head is of domain {head}, its domain.xml of {id}");
            return Err(Error::new(ErrorKind::Damaged, what));
        }
        if let Some(odd) = head.disks.iter().find(|disk| xml.disk(&disk.target).is_none()) {
            let what = format!("'{name}' has a disk {}, and its domain.xml does not", odd.target);
            return Err(
                Error::new(ErrorKind::Damaged, what).with_hint("restore the disks alone, without --define")
            );
        }
        Ok(Self { head, xml, attachments })
    }

    /// The content of a member.
    pub(super) fn member(&self, name: &str) -> Option<&[u8]> {
        self.attachments.iter().find(|a| a.name == name).map(|a| a.content.as_slice())
    }
}

fn no_guest(name: &str, head: &Manifest) -> Error {
    let what = match &head.subject {
        Subject::Images { .. } => "it was made of images",
        Subject::Domain { .. } => "it has no domain.xml",
    };
    Error::new(ErrorKind::NotFound, format!("'{name}' holds no guest's definition: {what}"))
        .with_hint("restore its disks with --output or --disk, without --define")
}
