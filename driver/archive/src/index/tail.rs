//! The tail of an archive in a file: found from the end, for only the end says where it begins.
//!
//! The last two blocks are zeros; before them lies, in two blocks, the signature of a signed archive, and
//! before that the end record, padded to whole blocks, and before that
//! its header block. So the header is searched block by block, from the end, over the few blocks that the
//! record may have. The record says where the body ends and how many digests follow it; the root then proves
//! both. The tail's headers, padding and end are held against what virtfold writes, byte for byte, by the
//! parser.

use crate::end_record::{self, DIGEST_LEN, DigestsParser, EndRecord, RootHasher};
use crate::layout::{self, MemberRole};
use crate::sign::{self, ArchiveSignature, PublicKey, SIGNATURE_LEN};
use crate::stream::{Digest, Digests, RandomStream};
use crate::tar::{BLOCK, END_OF_ARCHIVE};
use crate::tar_parser::{Event, MemberParser};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::{MIB, StreamOffset};

/// A tail that fits its stream.
#[derive(Debug)]
pub struct ArchiveTail {
    /// Whether the digests give the root; where not, one of them or the record is damaged.
    pub proven: bool,
    /// The end record.
    pub record: EndRecord,
    /// The digests of the body's chunks.
    pub digests: Digests,
    /// The root digest.
    pub root: [u8; DIGEST_LEN],
    /// Of a signed one: the key of the signature, where it is sound.
    pub signer: Option<PublicKey>,
    /// What is wrong with the signature.
    signature_fault: Option<&'static str>,
}

impl ArchiveTail {
    /// Whether nothing in it is damaged: then it says whether the archive is signed.
    pub fn is_sound(&self) -> bool {
        self.proven && self.signature_fault.is_none()
    }

    /// Its signature, where the archive is signed and nothing in the tail is damaged.
    pub fn signature(&self) -> Option<ArchiveSignature> {
        let (chain, key) = self.record.chain.clone().zip(self.signer.clone()).filter(|_| self.proven)?;
        Some(ArchiveSignature { chain, key })
    }

    /// What in it is damaged; the digests and the record may be of use all the same.
    pub(super) fn fault(&self) -> Option<Error> {
        let damaged = |what| Error::new(ErrorKind::Damaged, what);
        if !self.proven {
            let what = "the archive's digests do not give the root of its end record";
            return Some(damaged(what.to_owned()));
        }
        self.signature_fault.map(|what| damaged(format!("the archive's signature {what}")))
    }
}

fn incomplete(what: &str) -> Error {
    Error::new(ErrorKind::Incomplete, format!("the archive is incomplete: {what}"))
}

/// Reads the tail of `stream`.
///
/// # Errors
/// Incomplete, where the stream does not end as an archive does; Damaged, where its tail contradicts itself.
pub(super) fn read(stream: &RandomStream<'_>) -> Result<ArchiveTail> {
    let (record, root) = find_record(stream)?;
    let len = end_record::tail_len(&record)?;
    if record.body_len.checked_add(len) != Some(stream.len()) {
        return Err(Error::new(
            ErrorKind::Damaged,
            "the archive's end record names another place for its tail",
        ));
    }
    let mut pass =
        TailParser { digests: Digests::new(), hasher: RootHasher::new(), parser: DigestsParser::new() };
    let mut members = MemberParser::at(StreamOffset::new(record.body_len));
    let mut role = None;
    let mut signature = Vec::new();
    while members.position().get() < stream.len() {
        let left = (stream.len() - members.position().get()).min(MIB);
        let mut bytes = vec![0; usize::try_from(left).unwrap_or(0)];
        stream.read_at(members.position(), &mut bytes)?;
        let mut rest = bytes.as_slice();
        while let Some(event) = members.feed(&mut rest)? {
            match event {
                Event::Begin(member) => {
                    let expected = match role {
                        None => layout::DIGESTS,
                        Some(layout::DIGESTS) => layout::END,
                        Some(_) => layout::SIGNATURE,
                    };
                    let bare = member.content_at.since(member.header_at) == BLOCK;
                    if member.name != expected || member.mtime != record.time || !bare {
                        return Err(Error::new(
                            ErrorKind::Damaged,
                            "the archive's tail has a member it must not have",
                        ));
                    }
                    role = Some(expected);
                }
                Event::Content(content) if role == Some(layout::DIGESTS) => pass.take(content)?,
                Event::Content(content) if role == Some(layout::SIGNATURE) => {
                    signature.extend_from_slice(content);
                }
                Event::Content(_) | Event::End | Event::EndOfArchive => {}
            }
        }
    }
    members.finish()?;
    if pass.digests.len() != record.chunks() {
        return Err(Error::new(ErrorKind::Damaged, "the archive has not one digest for each MiB"));
    }
    let proven = pass.hasher.root(&record)? == root;
    let (signer, signature_fault) = match &record.chain {
        None => (None, None),
        Some(_) => match sign::check(&signature, &record.encode(&root)) {
            Ok(key) => (Some(key), None),
            Err(what) => (None, Some(what)),
        },
    };
    Ok(ArchiveTail { proven, record, digests: pass.digests, root, signer, signature_fault })
}

struct TailParser {
    digests: Digests,
    hasher: RootHasher,
    parser: DigestsParser,
}

impl TailParser {
    fn take(&mut self, content: &[u8]) -> Result<()> {
        let mut rest = content;
        while let Some(digest) = self.parser.feed(&mut rest) {
            self.hasher.digest(&digest);
            self.digests.push(Digest::from_bytes(digest))?;
        }
        Ok(())
    }
}

/// Finds the end record from the end of the stream.
fn find_record(stream: &RandomStream<'_>) -> Result<(EndRecord, [u8; DIGEST_LEN])> {
    let none = || incomplete("its end record is not there");
    let end = stream.len().checked_sub(END_OF_ARCHIVE.len() as u64).ok_or_else(none)?;
    if !end.is_multiple_of(BLOCK) {
        return Err(none());
    }
    let signature = BLOCK + SIGNATURE_LEN.next_multiple_of(BLOCK);
    let reach = (BLOCK + end_record::MAX_LEN.next_multiple_of(BLOCK) + signature).min(end);
    let start = end - reach;
    let mut bytes = vec![0; usize::try_from(reach + END_OF_ARCHIVE.len() as u64).unwrap_or(0)];
    stream.read_at(StreamOffset::new(start), &mut bytes)?;
    let (window, zeros) = bytes.split_at(usize::try_from(reach).unwrap_or(0));
    if zeros.iter().any(|byte| *byte != 0) {
        return Err(none());
    }
    let step = usize::try_from(BLOCK).unwrap_or(512);
    for place in (0..window.len()).step_by(step).rev() {
        let at = StreamOffset::new(start + place as u64);
        if let Some(content) = window.get(place..).and_then(|bytes| end_member(at, bytes)) {
            return EndRecord::parse(&content, at);
        }
    }
    Err(none())
}

/// The content of the end record's member, where `bytes` begin with its header.
pub(crate) fn end_member(at: StreamOffset, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut parser = MemberParser::at(at);
    let mut rest = bytes;
    let mut content = None;
    while let Ok(Some(event)) = parser.feed(&mut rest) {
        match event {
            Event::Begin(member) if MemberRole::of(&member.name) == MemberRole::End => {
                content = Some(Vec::new())
            }
            Event::Begin(_) => return None,
            Event::Content(bytes) => content.as_mut()?.extend_from_slice(bytes),
            Event::End | Event::EndOfArchive => return content,
        }
    }
    None
}
