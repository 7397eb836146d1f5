//! Reads a whole archive front to back and believes nothing of it: the one pass for a pipe, and `verify`'s.
//!
//! Every byte is checked against something: headers and padding must be what virtfold writes
//! ([`MemberParser`]), members must come in their order, tables must agree with the head and with their
//! second copies, the digests of the body with those that the archive holds, and the end record with all of
//! it. The first contradiction ends the pass with an error. Data reach the [`Visitor`] before the digests at
//! the end of a plain archive have been seen: what it makes of them counts only when
//! [`ArchiveReader::finish`] has returned.
//!
//! Imports: `units`, `error`, `table`; `stream` and the member modules of this room.

mod current_member;
mod errors;
mod visitor;

use std::sync::Arc;

use self::current_member::{CurrentMember, KnownDisk};
use self::errors::{check_bare, contradiction, digest_of};
pub use self::visitor::{VerifiedArchive, Visitor};
use crate::allocation_csv::CsvParser;
use crate::end_record::{self, ArchiveTotals, CHUNK, DigestsParser, EndRecord, RootHasher};
use crate::layout::{BackupKind, Layout, MemberOrder, MemberRole};
use crate::manifest::{self, Manifest};
use crate::recovery::RecoveryParser;
use crate::sign::{self, PublicKey, SIGNATURE_LEN};
use crate::sparse_parser::{MapLocation, MapParser};
use crate::stream::{Chunk, ChunkState, Digest, Digests};
use crate::table::{Builder, CorrespondenceTable, Run};
use crate::tar_parser::{Event, Member, MemberParser};
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::{DenseOffset, GuestOffset, StreamOffset};

/// The pass; fed with chunks in order.
pub struct ArchiveReader<'v> {
    visitor: &'v mut dyn Visitor,
    parser: MemberParser,
    current: CurrentMember,
    order: Option<MemberOrder>,
    head: Option<Manifest>,
    head_bytes: Vec<u8>,
    /// The time of the head's own header.
    head_time: u64,
    /// Of each allocation table.
    allocations: Vec<Digest>,
    disks: Vec<KnownDisk>,
    recovery_at: Option<StreamOffset>,
    /// Computed from the body's chunks.
    digests: Digests,
    body_len: Option<u64>,
    members: u64,
    hasher: Option<RootHasher>,
    end: Option<(EndRecord, [u8; 32])>,
    signer: Option<PublicKey>,
    /// Zeros behind the end.
    padding: u64,
}

impl<'v> ArchiveReader<'v> {
    /// A pass that shows `visitor` what it finds.
    pub fn new(visitor: &'v mut dyn Visitor) -> Self {
        Self {
            visitor,
            parser: MemberParser::new(),
            current: CurrentMember::None,
            order: None,
            head: None,
            head_bytes: Vec::new(),
            head_time: 0,
            allocations: Vec::new(),
            disks: Vec::new(),
            recovery_at: None,
            digests: Digests::new(),
            body_len: None,
            members: 0,
            hasher: None,
            end: None,
            signer: None,
            padding: 0,
        }
    }

    /// Takes the next chunk of the stream.
    ///
    /// # Errors
    /// Damaged, where it contradicts anything; those of the visitor.
    pub fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        let digest = digest_of(chunk)?;
        let cut_from = StreamOffset::new(self.body_len.unwrap_or(0));
        self.feed(chunk.bytes, chunk)?;
        // A plain stream is not cut, and where the tail begins its reader does not know.
        let is_cut = matches!(chunk.state, ChunkState::Intact(_)) && self.body_len != Some(chunk.at.get());
        if is_cut && !chunk.at.since(cut_from).is_multiple_of(CHUNK) {
            return Err(contradiction(format_args!("a frame begins at byte {} of its stream", chunk.at)));
        }
        if self.body_len.is_none() {
            self.digests.push(digest)?;
        }
        Ok(())
    }
}

impl ArchiveReader<'_> {
    /// Takes bytes of a chunk.
    fn feed(&mut self, bytes: &[u8], chunk: &Chunk<'_>) -> Result<()> {
        let mut rest = bytes;
        // Events borrow from the chunk, not from the parser, so the pass may act on each at once.
        loop {
            let is_plain = matches!(chunk.state, ChunkState::Unchecked(_));
            if is_plain && self.parser.has_ended() && rest.iter().all(|byte| *byte == 0) {
                // What a medium of blocks puts behind a file.
                self.padding += rest.len() as u64;
                return Ok(());
            }
            match self.parser.feed(&mut rest)? {
                Some(Event::Begin(member)) => self.begin(&member, chunk)?,
                Some(Event::Content(content)) => self.content(content)?,
                Some(Event::End) => self.end_member()?,
                Some(Event::EndOfArchive) => {}
                None => return Ok(()),
            }
        }
    }

    fn begin(&mut self, member: &Member, chunk: &Chunk<'_>) -> Result<()> {
        match &mut self.order {
            Some(order) => order.take(&member.name)?,
            None if MemberRole::of(&member.name) == MemberRole::Head => {}
            None => return Err(contradiction("it does not begin with its head")),
        }
        if let Some(head) = &self.head
            && member.mtime != head.time()?
        {
            return Err(contradiction(format_args!(
                "member '{}' has another time than the head",
                member.name
            )));
        }
        self.current = self.current_of(member, chunk)?;
        if self.body_len.is_none() {
            self.members += 1;
        }
        Ok(())
    }

    /// What is done with the content of a member that begins.
    fn current_of(&mut self, member: &Member, chunk: &Chunk<'_>) -> Result<CurrentMember> {
        Ok(match MemberRole::of(&member.name) {
            MemberRole::Head if member.size > manifest::MAX_LEN => {
                return Err(contradiction("its head is too long"));
            }
            MemberRole::Head => {
                self.head_time = member.mtime;
                CurrentMember::Head(Vec::new())
            }
            MemberRole::Allocation(target) => {
                let (index, disk) = self.described(target)?;
                let kind = self.head.as_ref().map_or(BackupKind::Full, |head| head.kind);
                let parser = CsvParser::new(&member.name, disk.capacity, member.content_at, kind);
                CurrentMember::Allocation(index, parser, Box::default())
            }
            MemberRole::Disk(target) => self.begin_disk(target, member)?,
            MemberRole::RecoveryHead => {
                self.recovery_at = Some(member.header_at);
                CurrentMember::RecoveryHead(0)
            }
            MemberRole::RecoveryMap(target) => {
                let (index, _) = self.described(target)?;
                let parser = RecoveryParser::new(target, member.size, member.content_at);
                CurrentMember::RecoveryMap { index, parser, at: DenseOffset::ZERO }
            }
            MemberRole::Digests => self.begin_tail(member, chunk)?,
            MemberRole::End => {
                check_bare(member)?;
                let hasher = self.hasher.take().unwrap_or_default();
                CurrentMember::End { bytes: Vec::new(), hasher }
            }
            MemberRole::Signature => {
                check_bare(member)?;
                CurrentMember::Signature(Vec::new())
            }
            MemberRole::RecoveryAllocation(target) => {
                CurrentMember::RecoveryAllocation(self.described(target)?.0, Box::default())
            }
            MemberRole::Blocks(target) => {
                if self.described(target)?.1.blocks_len() != member.size {
                    return Err(contradiction(format_args!(
                        "it has not one digest for each block of disk {target}"
                    )));
                }
                CurrentMember::Skipped
            }
            MemberRole::Other => {
                self.visitor.other(&member.name, member.size)?;
                CurrentMember::Attachment
            }
        })
    }

    fn described(&self, target: &str) -> Result<(usize, &manifest::Disk)> {
        let disks = self.head.iter().flat_map(|head| &head.disks).enumerate();
        let found = disks.into_iter().find(|(_, disk)| disk.target == target);
        found.ok_or_else(|| contradiction(format_args!("its head does not name disk {target}")))
    }

    fn begin_disk(&mut self, target: &str, member: &Member) -> Result<CurrentMember> {
        let (index, disk) = self.described(target)?;
        disk.check_member(member)?;
        let mut builder = Builder::new(disk.capacity);
        if disk.layout == Layout::Compact {
            let place = MapLocation::member(member.size, disk.capacity);
            return Ok(CurrentMember::Map {
                index,
                parser: MapParser::new(target, place, member.content_at),
                builder,
            });
        }
        builder.push(GuestOffset::ZERO, disk.capacity)?;
        self.begin_dense(index, builder.finish()?, member.content_at)
    }

    /// The disk's table is whole; its bytes follow at `dense_at`.
    fn begin_dense(
        &mut self,
        index: usize,
        table: CorrespondenceTable,
        dense_at: StreamOffset,
    ) -> Result<CurrentMember> {
        let disk = self.head.as_ref().and_then(|head| head.disks.get(index));
        let agrees = |d: &manifest::Disk| d.dense_length == table.dense_len() && d.runs == table.len();
        if !disk.is_some_and(agrees) {
            return Err(contradiction("a disk's map is not as the head describes it"));
        }
        disk.map_or(Ok(()), |disk| disk.check_dense_at(dense_at))?;
        let table = Arc::new(table);
        self.disks.push(KnownDisk { table: Arc::clone(&table), dense_at });
        self.visitor.dense_at(index, dense_at);
        self.visitor.disk(index, &table)?;
        Ok(CurrentMember::Dense { index, table, at: DenseOffset::ZERO })
    }

    /// The body has ended where the digests' header begins: so has its last chunk.
    fn begin_tail(&mut self, member: &Member, chunk: &Chunk<'_>) -> Result<CurrentMember> {
        check_bare(member)?;
        let body = member.header_at;
        self.body_len = Some(body.get());
        let inside = usize::try_from(body.since(chunk.at)).unwrap_or(usize::MAX);
        if inside > 0 {
            let head = chunk.bytes.get(..inside).filter(|_| matches!(chunk.state, ChunkState::Unchecked(_)));
            let head = head.ok_or_else(|| contradiction("its tail does not begin a frame"))?;
            self.digests.push(Digest::of(head))?;
        }
        let expected = self.digests.len() * 32;
        if self.digests.len() != body.get().div_ceil(CHUNK) || member.size != expected {
            return Err(contradiction("it has not one digest for each MiB"));
        }
        Ok(CurrentMember::Digests { parser: DigestsParser::new(), hasher: RootHasher::new(), index: 0 })
    }

    fn content(&mut self, content: &[u8]) -> Result<()> {
        let mut rest = content;
        while !rest.is_empty() {
            let current = std::mem::replace(&mut self.current, CurrentMember::None);
            self.current = self.advance(current, &mut rest)?;
        }
        Ok(())
    }

    /// Takes content off the front of `rest`, all of it or up to where the member's next part begins.
    fn advance(&mut self, current: CurrentMember, rest: &mut &[u8]) -> Result<CurrentMember> {
        match current {
            CurrentMember::Map { index, mut parser, mut builder } => {
                while let Some(run) = parser.feed(rest)? {
                    let disk = self.head.as_ref().and_then(|head| head.disks.get(index));
                    disk.map_or(Ok(()), |disk| disk.check_run(&run))?;
                    builder.push(run.guest, run.len)?;
                }
                if !parser.is_complete() {
                    return Ok(CurrentMember::Map { index, parser, builder });
                }
                let dense_at = self.parser.position().get().saturating_sub(rest.len() as u64);
                self.begin_dense(index, builder.finish()?, StreamOffset::new(dense_at))
            }
            CurrentMember::Dense { index, table, at } => {
                let bytes = std::mem::take(rest);
                self.dense(index, &table, at, bytes)?;
                Ok(CurrentMember::Dense { index, table, at: at.saturating_add(bytes.len() as u64) })
            }
            mut other => {
                self.small(&mut other, rest)?;
                *rest = &[];
                Ok(other)
            }
        }
    }

    fn dense(
        &mut self,
        index: usize,
        table: &CorrespondenceTable,
        at: DenseOffset,
        bytes: &[u8],
    ) -> Result<()> {
        let mut bytes = bytes;
        for piece in table.pieces(at, bytes.len() as u64)? {
            let piece = piece?;
            let len = usize::try_from(piece.len).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(len);
            self.visitor.data(index, &piece, now)?;
            bytes = later;
        }
        if bytes.is_empty() { Ok(()) } else { Err(contradiction("a disk has more bytes than its map")) }
    }

    /// Content of everything but disks.
    fn small(&mut self, current: &mut CurrentMember, rest: &mut &[u8]) -> Result<()> {
        match current {
            CurrentMember::Head(bytes) => bytes.extend_from_slice(rest),
            CurrentMember::Allocation(index, parser, hasher) => {
                hasher.update(rest);
                while let Some(row) = parser.feed(rest)? {
                    self.visitor.allocation(*index, &row)?;
                }
            }
            CurrentMember::Attachment => self.visitor.content(rest)?,
            CurrentMember::Skipped => {}
            CurrentMember::RecoveryAllocation(_, hasher) => {
                hasher.update(rest);
            }
            CurrentMember::RecoveryHead(compared) => {
                let expected = self.head_bytes.get(*compared..*compared + rest.len());
                if expected != Some(*rest) {
                    return Err(contradiction("the two copies of its head differ"));
                }
                *compared += rest.len();
            }
            CurrentMember::RecoveryMap { index, parser, at } => {
                let table = self.disks.get(*index).map(|disk| Arc::clone(&disk.table));
                let mut known = table.as_ref().map(|table| table.cursor());
                while let Some(run) = parser.feed(rest)? {
                    let first = match &mut known {
                        Some(known) => known.first_piece(*at, run.len)?,
                        None => None,
                    };
                    if first != Some(Run { guest: run.guest, len: run.len, dense: *at }) {
                        return Err(contradiction("the two copies of a disk's map differ"));
                    }
                    *at = at.saturating_add(run.len);
                }
            }
            CurrentMember::Digests { parser, hasher, index } => {
                while let Some(digest) = parser.feed(rest) {
                    if self.digests.get(*index)? != Digest::from_bytes(digest) {
                        let what = format!("MiB {index} of its stream is not what was written");
                        return Err(contradiction(what));
                    }
                    hasher.digest(&digest);
                    *index += 1;
                }
            }
            CurrentMember::End { bytes, .. } => {
                bytes.extend_from_slice(rest);
                if bytes.len() as u64 > end_record::MAX_LEN {
                    return Err(contradiction("its end record is too long"));
                }
            }
            CurrentMember::Signature(bytes) => {
                bytes.extend_from_slice(rest);
                if bytes.len() as u64 > SIGNATURE_LEN {
                    return Err(contradiction("its signature is too long"));
                }
            }
            CurrentMember::Map { .. } | CurrentMember::Dense { .. } | CurrentMember::None => {}
        }
        Ok(())
    }

    fn end_member(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.current, CurrentMember::None) {
            CurrentMember::Head(bytes) => self.end_head(bytes),
            CurrentMember::Allocation(_, parser, hasher) => {
                parser.finish()?;
                self.allocations.push(Digest::from_bytes(*hasher.finalize().as_bytes()));
                Ok(())
            }
            CurrentMember::RecoveryAllocation(index, hasher) => {
                let copy = Digest::from_bytes(*hasher.finalize().as_bytes());
                if self.allocations.get(index) == Some(&copy) {
                    return Ok(());
                }
                Err(contradiction("the two copies of a disk's allocation table differ"))
            }
            CurrentMember::Map { parser, .. } => {
                parser.finish()?;
                Err(contradiction("a disk's map is cut short"))
            }
            CurrentMember::RecoveryHead(compared) if compared != self.head_bytes.len() => {
                Err(contradiction("the two copies of its head differ"))
            }
            CurrentMember::RecoveryMap { index, parser, at } => {
                parser.finish()?;
                let copy = parser.head();
                let agrees = self.disks.get(index).zip(copy).is_some_and(|(disk, copy)| {
                    copy.capacity == disk.table.capacity()
                        && copy.dense_at == disk.dense_at
                        && copy.dense_len == disk.table.dense_len()
                        && at.get() == copy.dense_len
                });
                if agrees { Ok(()) } else { Err(contradiction("the two copies of a disk's map differ")) }
            }
            CurrentMember::Digests { hasher, .. } => {
                self.hasher = Some(hasher);
                Ok(())
            }
            CurrentMember::End { bytes, hasher } => self.end_archive(&bytes, hasher),
            CurrentMember::Signature(bytes) => self.end_signature(&bytes),
            CurrentMember::RecoveryHead(_)
            | CurrentMember::Dense { .. }
            | CurrentMember::Attachment
            | CurrentMember::Skipped
            | CurrentMember::None => Ok(()),
        }
    }

    fn end_head(&mut self, bytes: Vec<u8>) -> Result<()> {
        let head = Manifest::parse(&bytes)?;
        if self.head_time != head.time()? {
            return Err(contradiction("its head has another time than it says"));
        }
        let mut order = head.member_order()?;
        order.take(crate::layout::HEAD)?;
        self.visitor.head(&head)?;
        self.order = Some(order);
        self.head_bytes = bytes;
        self.head = Some(head);
        Ok(())
    }

    fn end_archive(&mut self, bytes: &[u8], hasher: RootHasher) -> Result<()> {
        let (record, root) = EndRecord::parse(bytes, self.parser.position())?;
        if hasher.root(&record)? != root {
            return Err(contradiction("its end record has another root than its digests give"));
        }
        self.end = Some((record, root));
        Ok(())
    }

    fn end_signature(&mut self, bytes: &[u8]) -> Result<()> {
        let record = self.end.as_ref().map(|(record, root)| record.encode(root)).unwrap_or_default();
        let signer = sign::check(bytes, &record);
        self.signer = Some(signer.map_err(|what| contradiction(format_args!("its signature {what}")))?);
        Ok(())
    }

    /// The stream has ended: is the archive whole?
    ///
    /// # Errors
    /// Incomplete, where its end is not there; Damaged, where the end record contradicts what was read.
    pub fn finish(self) -> Result<VerifiedArchive> {
        self.parser.finish()?;
        let (Some(head), Some((end, root))) = (self.head, self.end) else {
            return Err(Error::new(ErrorKind::Incomplete, "the archive ends before its end record"));
        };
        let sum = |of: fn(&manifest::Disk) -> u64| head.disks.iter().map(of).fold(0, u64::saturating_add);
        let found = EndRecord {
            archive: head.archive,
            time: head.time()?,
            body_len: self.body_len.unwrap_or(0),
            recovery_at: self.recovery_at.unwrap_or(StreamOffset::ZERO),
            totals: ArchiveTotals {
                members: self.members,
                disks: head.disks.len() as u64,
                capacity: sum(|disk| disk.capacity),
                allocated: sum(|disk| disk.allocated),
                dense: sum(|disk| disk.dense_length),
                runs: sum(|disk| disk.runs),
            },
            chain: end.chain.clone(),
        };
        if found != end || !self.order.is_some_and(|order| order.is_complete()) {
            return Err(contradiction("its end record does not describe what is in it"));
        }
        if end.chain.is_some() != self.signer.is_some() {
            return Err(contradiction(sign::MISSING));
        }
        Ok(VerifiedArchive { head, end, root, signer: self.signer, padding: self.padding })
    }
}
