//! What an archive says of its guest: the head, the definition, the files beside the disks; every member has
//! the bound that `attachments` gives it.
//!
//! Where the archive can be read at any place, that is done by the index, and every byte had its digest.
//! Where it comes once, front to back, its beginning is read up to the first disk and kept
//! ([`ReplayReader`]), and read again with the rest when the disks are restored: then every byte has its
//! digest before anything takes its place.

use std::io::{Cursor, Read};

use super::RestoreDomainRequest;
use crate::Control;
use crate::attachments::{DOMAIN_XML, LIVE_XML, TOTAL_LIMIT, limit_of};
use crate::inspect::root_text;
use crate::known_copy::FoundArchive;
use crate::parents;
use crate::restore::OpenedChain;
use crate::trust::Authenticity;
use virtfold_archive::crypt::{ArchiveFile, DecryptingReader};
use virtfold_archive::index::{ArchiveIndex, Trust};
use virtfold_archive::manifest::{BackupSubject, Manifest};
use virtfold_archive::reader::{ArchiveReader, Visitor};
use virtfold_archive::stream::{ReadOptions, read_pipe};
use virtfold_archive::table::{CorrespondenceTable, Run};
use virtfold_archive::writer::Attachment;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::MIB;
use virtfold_hypervisor::domain_xml::{DiskDifference, DomainXml, changed_disks, with_live_disks};
use virtfold_medium::{self as medium, PipeSource};

/// What is told when the archive is not whole and sound.
pub(super) const PARTIAL: &str =
    "nothing was replaced; restore what is intact of its disks with --output DIR --partial, without --define";

/// Bytes that are kept of a stream: what all members before the disks may have, and the head.
const MOST: u64 = TOTAL_LIMIT + 64 * MIB;

/// A guest in an archive.
pub(super) struct ArchivedDomain {
    /// The archive's head.
    pub(super) head: Manifest,
    /// The definition; its disks are those that the guest ran with.
    pub(super) xml: DomainXml,
    /// Where these are not the ones of its configuration.
    pub(super) notes: Vec<String>,
    /// Everything else that is no disk.
    pub(super) attachments: Vec<Attachment>,
    /// Who made it; not known yet of one that comes front to back.
    pub(super) authenticity: Authenticity,
    /// Which archive that was, where it can be opened again.
    pub(super) found: Option<FoundArchive>,
}

impl ArchivedDomain {
    /// Reads it by the index; the disks are not looked at.
    pub(super) fn open(request: &RestoreDomainRequest, control: &Control) -> Result<Self> {
        let name = request.archive.to_string();
        let options = options(request, control);
        let cannot = |e: Error| cannot(&name, e);
        let source = medium::open(&request.archive)
            .and_then(|source| ArchiveFile::open(source, &request.identities))
            .map_err(cannot)?;
        let index = ArchiveIndex::open(&source, &options, Trust::Strict).map_err(cannot)?;
        let found = FoundArchive {
            id: Some(index.head().archive),
            root: index.tail().map(|tail| root_text(tail.root)),
            bytes: Some(source.stored()),
            encrypted: Some(source.is_encrypted()),
        };
        request.known.expect(&name, &found)?;
        let authenticity = request.trust.admit(&name, request.trust.judge_end(index.tail()))?;
        let attachments = index.attachments(&limit_of, TOTAL_LIMIT).map_err(cannot)?;
        let trust = Trust::Strict;
        let below =
            parents::find(&request.archive, index.head(), &request.identities, &request.parents, trust);
        let below = below.map_err(cannot)?;
        let chain = OpenedChain::open(index, &below, &options, trust).map_err(cannot)?;
        let head = chain.whole_head(trust).map_err(cannot)?;
        Ok(Self { authenticity, found: Some(found), ..Self::new(&name, head, attachments)? })
    }

    /// Reads it from the front, up to the first disk.
    pub(super) fn read(
        request: &RestoreDomainRequest,
        control: &Control,
        input: impl Read + Send,
    ) -> Result<Self> {
        let name = request.archive.to_string();
        let mut front = HeadVisitor::default();
        let mut reader = ArchiveReader::new(&mut front);
        let incoming =
            DecryptingReader::open(input, &name, &request.identities).map_err(|e| cannot(&name, e))?;
        let read = read_pipe(incoming, &name, &options(request, control), |chunk| reader.chunk(&chunk));
        let read = read.and_then(|end| end.check(&name).and_then(|()| reader.finish()));
        if let Some(head) = &front.head {
            let found = FoundArchive { id: Some(head.archive), ..FoundArchive::default() };
            request.known.expect(&name, &found)?;
        }
        match (front.head, read) {
            (Some(head), _) if front.ended => Self::new(&name, head, front.attachments),
            (Some(head), Ok(_)) => Self::new(&name, head, front.attachments),
            (_, Err(error)) => Err(cannot(&name, error)),
            (None, Ok(_)) => Err(Error::new(ErrorKind::Damaged, format!("'{name}' has no head"))),
        }
    }

    fn new(name: &str, head: Manifest, mut attachments: Vec<Attachment>) -> Result<Self> {
        let cannot = |e: Error| cannot(name, e);
        let mut take = |member: &str| {
            let place = attachments.iter().position(|a| a.name == member);
            let text = place.map(|at| String::from_utf8(attachments.swap_remove(at).content));
            let damaged =
                |e| Error::new(ErrorKind::Damaged, format!("its {member} is not UTF-8")).with_source(e);
            text.map(|text| text.map_err(damaged).and_then(DomainXml::parse).map_err(cannot)).transpose()
        };
        let xml = take(DOMAIN_XML)?.ok_or_else(|| no_guest(name, &head))?;
        let (xml, notes) = match take(LIVE_XML)? {
            Some(live) if live.id == xml.id => {
                let notes = changed_disks(&live, &xml).into_iter().map(of_changed).collect();
                (with_live_disks(&xml, &live).map_err(cannot)?, notes)
            }
            Some(_) => {
                let what = format!("'{name}' contradicts itself: its domain.live.xml is of another domain");
                return Err(Error::new(ErrorKind::Damaged, what));
            }
            None => (xml, Vec::new()),
        };
        if let (BackupSubject::Domain { uuid: Some(head), .. }, Some(id)) = (&head.subject, xml.id)
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
        Ok(Self { head, xml, notes, attachments, authenticity: Authenticity::Unsigned, found: None })
    }

    /// The content of a member.
    pub(super) fn member(&self, name: &str) -> Option<&[u8]> {
        self.attachments.iter().find(|a| a.name == name).map(|a| a.content.as_slice())
    }
}

fn options(request: &RestoreDomainRequest, control: &Control) -> ReadOptions {
    let cancel = std::sync::Arc::clone(&control.cancel);
    ReadOptions { workers: request.writing.workers, cancel, carrier: None, archive_id: None }
}

fn cannot(name: &str, error: Error) -> Error {
    if PipeSource::was_told_to_end(&error) {
        return Error::new(ErrorKind::Interrupted, "the restore was interrupted");
    }
    let doubtful = matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Incomplete);
    let error = error.within(format!("no guest can be restored from '{name}'"));
    if doubtful { error.with_hint(PARTIAL) } else { error }
}

fn of_changed(changed: DiskDifference<'_>) -> String {
    let (target, image) = (&changed.disk().target, changed.disk().image.source.path());
    let image = image.map_or_else(String::new, |path| format!(" ('{}')", path.display()));
    let what = match changed {
        DiskDifference::Live(_) => "the configuration did not have it",
        DiskDifference::Other(_) => "the configuration had another image for it",
        DiskDifference::Next(_) => {
            return format!(
                "disk {target}{image} was in the configuration only: the guest is defined without it, as it ran"
            );
        }
    };
    format!("disk {target}{image}: {what}; the guest is defined with it, as it ran")
}

/// What comes before the disks.
#[derive(Default)]
pub(super) struct HeadVisitor {
    head: Option<Manifest>,
    attachments: Vec<Attachment>,
    /// Bytes that these have.
    size: u64,
    /// Whether the content that comes is that of the last of them.
    taking: bool,
    ended: bool,
}

impl Visitor for HeadVisitor {
    fn head(&mut self, head: &Manifest) -> Result<()> {
        self.head = Some(head.clone());
        Ok(())
    }

    fn other(&mut self, name: &str, size: u64) -> Result<()> {
        let limit = limit_of(name);
        self.taking = limit.is_some();
        let Some(limit) = limit else { return Ok(()) };
        if size > limit || self.attachments.iter().any(|other| other.name == name) {
            let what = format!("its member '{name}' is too long, or there twice");
            return Err(Error::new(ErrorKind::Damaged, what));
        }
        self.size = self.size.saturating_add(size);
        if self.size > TOTAL_LIMIT {
            let what = format!("its members beside the disks have more than {} MiB", TOTAL_LIMIT / MIB);
            return Err(Error::new(ErrorKind::Damaged, what));
        }
        self.attachments.push(Attachment { name: name.to_owned(), content: Vec::new() });
        Ok(())
    }

    fn content(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(last) = self.attachments.last_mut().filter(|_| self.taking) {
            last.content.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn disk(&mut self, _: usize, _: &CorrespondenceTable) -> Result<()> {
        self.ended = true;
        Err(Error::new(ErrorKind::Interrupted, "no more is wanted"))
    }

    fn data(&mut self, _: usize, _: &Run, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// A stream whose beginning is kept while it is read, so that it can be read once more.
pub(super) struct ReplayReader<R> {
    input: R,
    kept: Vec<u8>,
}

impl<R: Read> ReplayReader<R> {
    /// Keeps what is read of `input`.
    pub(super) fn new(input: R) -> Self {
        Self { input, kept: Vec::new() }
    }

    /// All of it, from the beginning.
    pub(super) fn again(self) -> impl Read {
        Cursor::new(self.kept).chain(self.input)
    }
}

impl<R: Read> Read for ReplayReader<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let len = self.input.read(out)?;
        if self.kept.len() as u64 > MOST {
            let what = format!("what comes before its disks is longer than {} MiB", MOST / MIB);
            return Err(std::io::Error::other(what));
        }
        self.kept.extend_from_slice(out.get(..len).unwrap_or_default());
        Ok(len)
    }
}

fn no_guest(name: &str, head: &Manifest) -> Error {
    let what = match &head.subject {
        BackupSubject::Images { .. } => "it was made of images",
        BackupSubject::Domain { .. } => "it has no domain.xml",
    };
    Error::new(ErrorKind::NotFound, format!("'{name}' holds no guest's definition: {what}"))
        .with_hint("restore its disks with --output or --disk, without --define")
}
