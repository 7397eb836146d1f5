//! What the two processes say to each other.

use std::io::{ErrorKind as IoKind, Read, Write};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::mount_point::MountPoint;
use crate::{ArchiveLabel, DurableMark, FinishedArchive, Location, Medium, PartialArchive, Resumed};
use virtfold_base::error::{Error, ErrorKind, IoContext, Result, WireError};

/// The most bytes of a message.
pub(super) const MAX_MESSAGE: usize = 1 << 20;
/// The most bytes of a line: an archive's head of 16 MiB, each byte of which may be six in JSON.
pub(super) const MAX_LINE: usize = 96 << 20;
/// Bytes before a message: what it is, and its length.
pub(super) const HEAD: usize = 5;

/// What a process is started for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MediumRequest {
    /// A medium for a new archive.
    Create(ArchiveLabel),
    /// The medium that a dead process has left.
    Reopen(ArchiveLabel, PartialArchive),
    /// Nothing but the device number of the directory's file system.
    Look,
    /// What the directory is on.
    Mount,
    /// What the catalog calls the place.
    Name,
    /// What a dead process has left of a file, as far as it is on the disk: it goes into standard output.
    ReadBack(PartialArchive),
    /// What a dead process has left is taken away.
    Discard(PartialArchive),
    /// All archives at the destination: each is an item.
    List,
    /// This archive, as one look tells: an item.
    Glance(#[serde(with = "crate::location::as_bytes")] Location),
    /// These archives are removed, in their order. Each is an item when it is gone, or can't be removed.
    Remove(Vec<StoredArchive>),
    /// Whether the destination can be used, as archives of this host.
    Probe(String),
}

/// An archive at a destination.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredArchive {
    /// Where it is.
    #[serde(with = "crate::location::as_bytes")]
    pub location: Location,
    /// Its size: another one is another archive.
    pub bytes: u64,
}

/// What comes of several things, one by one: it gives each item to who asks, and says how it ends.
pub type Items = Box<dyn FnOnce(&mut dyn FnMut(Value) -> Result<()>) -> Result<()>>;

/// What comes of it.
pub enum MediumReply {
    /// A medium for a new archive.
    New(Box<dyn Medium>),
    /// The medium that a dead process has left.
    Resumed(Resumed),
    /// What a dead process has left of a file; nothing, where it is not there.
    Left(Option<Box<dyn Read>>),
    /// What was asked for is known, or done.
    Known(ProbeReply),
    /// What was asked for comes item by item.
    Items(Items),
}

impl MediumRequest {
    /// What the archive is of.
    pub(super) fn subject(&self) -> Option<&str> {
        match self {
            Self::Create(label) | Self::Reopen(label, _) => Some(&label.subject),
            _ => None,
        }
    }
}

/// What the driver says behind the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MessageTag {
    Request,
    Keep,
    Data,
    Settle,
    GoOn,
    Finish,
}

const WORDS: [(MessageTag, u8); 6] = [
    (MessageTag::Request, b'r'),
    (MessageTag::Keep, b'k'),
    (MessageTag::Data, b'd'),
    (MessageTag::Settle, b's'),
    (MessageTag::GoOn, b'g'),
    (MessageTag::Finish, b'f'),
];

/// What the process says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Reply {
    Ready,
    At(u64),
    Gone(String),
    Known(ProbeReply),
    /// What was left of a file is there, and follows.
    Follows,
    /// One of several things.
    Item(Value),
    Kept(bool),
    Mark(DurableMark),
    Left,
    Settled,
    Resumed(Option<u64>),
    Finished(FinishedArchive),
    Failed(WireError),
}

/// What the driver is told of a place apart from the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeReply {
    /// The device number of a directory's file system; none where it is not there.
    Device(Option<u64>),
    /// What a directory is on; none where it is not there.
    Mount(Option<MountPoint>),
    /// What the catalog calls a place.
    Name(String),
    /// How a destination stands, in words.
    Usable(String),
    /// It is done.
    Done,
}

/// A message's head.
pub(super) fn head(word: MessageTag, len: usize) -> Result<[u8; HEAD]> {
    let too_long = || Error::new(ErrorKind::Internal, "a message to a medium is too long");
    let number = WORDS.iter().find(|(known, _)| *known == word).map(|(_, number)| *number);
    let len = u32::try_from(len).ok().filter(|_| len <= MAX_MESSAGE).ok_or_else(too_long)?;
    let [a, b, c, d] = len.to_le_bytes();
    Ok([number.ok_or_else(too_long)?, a, b, c, d])
}

/// Reads a message into `payload`; none where the driver says nothing more.
pub(super) fn read(input: &mut impl Read, payload: &mut Vec<u8>) -> Result<Option<MessageTag>> {
    let cannot = || "cannot read what the driver says".to_owned();
    let mut head = [0; HEAD];
    match input.read_exact(&mut head) {
        Ok(()) => {}
        Err(e) if matches!(e.kind(), IoKind::UnexpectedEof | IoKind::ConnectionReset) => return Ok(None),
        Err(e) => return Err(e).at(cannot),
    }
    let [number, a, b, c, d] = head;
    let strange = || Error::new(ErrorKind::Internal, "the driver says what nobody understands");
    let word = WORDS.iter().find(|(_, known)| *known == number).map(|(word, _)| *word).ok_or_else(strange)?;
    let len = usize::try_from(u32::from_le_bytes([a, b, c, d])).ok();
    let len = len.filter(|len| *len <= MAX_MESSAGE).ok_or_else(strange)?;
    payload.resize(len, 0);
    match input.read_exact(payload) {
        Ok(()) => Ok(Some(word)),
        // The driver broke off in the middle of a message.
        Err(e) if matches!(e.kind(), IoKind::UnexpectedEof | IoKind::ConnectionReset) => Ok(None),
        Err(e) => Err(e).at(cannot),
    }
}

/// Writes a line.
pub(super) fn say(output: &mut impl Write, answer: &Reply) -> Result<()> {
    let cannot = || "cannot answer the driver".to_owned();
    let mut line = serde_json::to_vec(answer).map_err(std::io::Error::from).at(cannot)?;
    line.push(b'\n');
    if line.len() > MAX_LINE {
        return Err(Error::new(ErrorKind::Internal, "an answer to the driver is too long"));
    }
    output.write_all(&line).at(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_said_and_nothing_else_is() {
        let mut bytes = head(MessageTag::Data, 3).unwrap().to_vec();
        bytes.extend(b"abc");
        bytes.extend(head(MessageTag::Finish, 0).unwrap());
        let (mut input, mut payload) = (bytes.as_slice(), Vec::new());
        assert_eq!(read(&mut input, &mut payload).unwrap(), Some(MessageTag::Data));
        assert_eq!(payload, b"abc");
        assert_eq!(read(&mut input, &mut payload).unwrap(), Some(MessageTag::Finish));
        assert_eq!(read(&mut input, &mut payload).unwrap(), None);
        // Broken off, in the head and behind it.
        for len in [2, HEAD, HEAD + 2] {
            assert_eq!(read(&mut &bytes[..len], &mut payload).unwrap(), None);
        }
        for strange in [*b"d\xff\xff\xff\xff", *b"x\0\0\0\0"] {
            assert_eq!(read(&mut strange.as_slice(), &mut payload).unwrap_err().kind(), ErrorKind::Internal);
        }
        head(MessageTag::Data, MAX_MESSAGE + 1).unwrap_err();
    }

    #[test]
    fn an_error_arrives_with_its_kind_and_its_hint() {
        let error =
            Error::new(ErrorKind::NoSpace, "it is full").with_hint("make room").within("cannot write");
        let told = Error::from(WireError::from(&error));
        assert_eq!((told.kind(), told.hint()), (ErrorKind::NoSpace, Some("make room")));
        assert_eq!(told.to_string(), "cannot write: it is full");
    }
}
