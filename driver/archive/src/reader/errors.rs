//! What the pass refuses, in words.

use crate::stream::{Chunk, ChunkState, Digest};
use crate::tar::BLOCK;
use crate::tar_parser::Member;
use virtfold_base::error::{Error, ErrorKind, Result};

/// A member of the tail has no pax header: nothing covers one there.
pub(super) fn check_bare(member: &Member) -> Result<()> {
    if member.content_at.since(member.header_at) == BLOCK {
        return Ok(());
    }
    Err(contradiction(format_args!("member '{}' has a header that nothing covers", member.name)))
}

pub(super) fn digest_of(chunk: &Chunk<'_>) -> Result<Digest> {
    match chunk.state {
        ChunkState::Intact(digest) | ChunkState::Unchecked(digest) => Ok(digest),
        ChunkState::Damaged(damage) => Err(contradiction(format_args!(
            "bytes {} to {} of the file: {}",
            damage.file.start, damage.file.end, damage.why
        ))),
    }
}

pub(super) fn contradiction(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Damaged, format!("the archive is damaged: {what}"))
}
