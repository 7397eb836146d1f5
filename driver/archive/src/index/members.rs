//! Finds head and tables: from the front, jumping over the disks' bytes, or in the recovery copies.
//!
//! Recovery copies are only looked for where the end record says they are, never by searching for headers: a
//! guest can put any bytes on its disk, headers of an archive among them.

use super::IndexedDisk;
use super::range_reader::VerifiedRanges;
use crate::allocation_csv::{AllocationRow, CsvParser};
use crate::end_record::EndRecord;
use crate::layout::{BackupKind, Layout, MAX_OTHERS, MemberRole};
use crate::manifest::{self, Disk, Manifest};
use crate::recovery::RecoveryParser;
use crate::sparse_parser::{MapLocation, MapParser};
use crate::stream::RandomStream;
use crate::table::{Builder, CorrespondenceTable};
use crate::tar_parser::{Event, Member, MemberParser};
use crate::writer::Attachment;
use uuid::Uuid;
use virtfold_base::error::{Error, ErrorKind, Result};
use virtfold_base::units::{GuestOffset, StreamOffset};

/// Tables are read in steps of this many bytes.
const STEP: u64 = 64 << 10;

/// What has been found so far.
#[derive(Default)]
pub(super) struct MemberIndex {
    head: Option<Manifest>,
    disks: Vec<IndexedDisk>,
}

impl MemberIndex {
    /// Head and disks, the disks in the head's order.
    ///
    /// # Errors
    /// Incomplete: there is no head.
    pub(super) fn into_parts(self) -> Result<(Manifest, Vec<IndexedDisk>)> {
        let none = || Error::new(ErrorKind::Incomplete, "the archive's head is not there");
        let head = self.head.ok_or_else(none)?;
        let mut disks = self.disks;
        let place = |disk: &IndexedDisk| head.disks.iter().position(|d| d.target == disk.disk.target);
        disks.sort_by_key(place);
        Ok((head, disks))
    }

    /// Whether all that the head names is there.
    fn is_complete(&self) -> bool {
        self.head.as_ref().is_some_and(|head| head.disks.len() == self.disks.len())
    }

    /// Whether the tables of any disk were read.
    pub(super) fn has_disks(&self) -> bool {
        !self.disks.is_empty()
    }

    fn described(&self, target: &str) -> Result<Disk> {
        let disk = self.head.as_ref().and_then(|head| head.disk(target)).cloned();
        disk.ok_or_else(|| damaged(format!("its head does not name disk {target}")))
    }

    fn take_head(&mut self, bytes: &[u8]) -> Result<()> {
        let head = Manifest::parse(bytes)?;
        self.head.get_or_insert(head);
        Ok(())
    }

    fn take_disk(&mut self, disk: Disk, table: CorrespondenceTable, dense_at: StreamOffset) -> Result<()> {
        if table.dense_len() != disk.dense_length || table.len() != disk.runs {
            return Err(damaged(format!("the map of disk {} is not as the head describes it", disk.target)));
        }
        disk.check_dense_at(dense_at)?;
        if !self.disks.iter().any(|known| known.disk.target == disk.target) {
            self.disks.push(IndexedDisk { disk, table, dense_at });
        }
        Ok(())
    }
}

fn damaged(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Damaged, format!("the archive is damaged: {what}"))
}

/// Whether an end record is not that of the archive that begins `stream`: of what lay there before, where the
/// beginning was overwritten. By the head as it is, which nothing has proven yet.
pub(super) fn is_foreign(stream: &RandomStream<'_>, record: &EndRecord) -> bool {
    let Some(head) = first_member(stream) else { return false };
    let differing = differing_bytes(head.archive, record.archive);
    let is_other_time = head.time().is_ok_and(|time| time != record.time);
    differing > DAMAGED || differing > 0 && is_other_time
}

/// Bytes of an id's 16 that damage may have changed: it does not change many, nor one of them and the time.
/// Two archives of one second have the same time, and ids that differ in more.
const DAMAGED: usize = 4;

fn differing_bytes(one: Uuid, other: Uuid) -> usize {
    one.as_bytes().iter().zip(other.as_bytes()).filter(|(a, b)| a != b).count()
}

/// The head, if the stream begins with one.
fn first_member(stream: &RandomStream<'_>) -> Option<Manifest> {
    let mut block = [0; 512];
    stream.read_at(StreamOffset::ZERO, &mut block).ok()?;
    let mut rest = &block[..];
    let Ok(Some(Event::Begin(member))) = MemberParser::new().feed(&mut rest) else { return None };
    let is_head = MemberRole::of(&member.name) == MemberRole::Head && member.size <= manifest::MAX_LEN;
    let mut bytes = vec![0; usize::try_from(member.size).ok().filter(|_| is_head)?];
    stream.read_at(member.content_at, &mut bytes).ok()?;
    Manifest::parse(&bytes).ok()
}

/// Reads the members from the front until all disks are known. What was found before an error stays.
///
/// # Errors
/// Damaged or Incomplete, at the first thing that can't be read.
pub(super) fn from_front(stream: &VerifiedRanges<'_>, found: &mut MemberIndex) -> Result<()> {
    let mut cursor = MemberCursor::new(stream, StreamOffset::ZERO);
    while !found.is_complete() {
        let member = cursor.next_member()?.ok_or_else(|| damaged("it lacks disks that its head names"))?;
        match MemberRole::of(&member.name) {
            MemberRole::Head => found.take_head(&cursor.whole(&member, manifest::MAX_LEN)?)?,
            MemberRole::Disk(target) => {
                let disk = found.described(target)?;
                disk.check_member(&member)?;
                let (table, dense_at) = cursor.disk(&disk, &member)?;
                found.take_disk(disk, table, dense_at)?;
            }
            MemberRole::Digests | MemberRole::End | MemberRole::Signature => {
                return Err(damaged("it lacks disks that its head names"));
            }
            _ => {}
        }
        cursor.skip_rest();
    }
    Ok(())
}

/// Reads the members that are neither head, table, disk nor tail and that `wanted` gives a limit in bytes.
///
/// # Errors
/// Damaged: one of them comes twice, is longer than its limit, or can't be read; there are too many of them.
pub(super) fn attachments(
    stream: &VerifiedRanges<'_>,
    wanted: &dyn Fn(&str) -> Option<u64>,
    most: u64,
) -> Result<Vec<Attachment>> {
    let mut cursor = MemberCursor::new(stream, StreamOffset::ZERO);
    let (mut found, mut seen, mut left) = (Vec::<Attachment>::new(), 0, most);
    // The digests vouch for the body alone; behind its last content there is only padding.
    let block = crate::tar::BLOCK;
    while cursor.parser.position().get().next_multiple_of(block) < stream.body_len() {
        let Some(member) = cursor.next_member()? else { break };
        match MemberRole::of(&member.name) {
            MemberRole::Digests | MemberRole::End | MemberRole::Signature => break,
            MemberRole::Other => {
                seen += 1;
                if seen > MAX_OTHERS {
                    return Err(damaged(format!("it has more than {MAX_OTHERS} members beside its disks")));
                }
                if let Some(limit) = wanted(&member.name) {
                    if found.iter().any(|other| other.name == member.name) {
                        return Err(damaged(format!("it has member '{}' twice", member.name)));
                    }
                    left = left.checked_sub(member.size).ok_or_else(|| {
                        damaged(format!("its members beside the disks have more than {} MiB", most >> 20))
                    })?;
                    let content = cursor.whole(&member, limit)?;
                    found.push(Attachment { name: member.name, content });
                }
            }
            _ => {}
        }
        cursor.skip_rest();
    }
    Ok(found)
}

/// Reads the recovery copies, which begin at `at`.
///
/// # Errors
/// Damaged or Incomplete: the copies can't be read either.
pub(super) fn from_recovery(
    stream: &VerifiedRanges<'_>,
    at: StreamOffset,
    found: &mut MemberIndex,
) -> Result<()> {
    let mut cursor = MemberCursor::new(stream, at);
    while !found.is_complete() {
        let member = cursor.next_member()?.ok_or_else(|| damaged("its recovery copies lack a disk"))?;
        match MemberRole::of(&member.name) {
            MemberRole::RecoveryHead => found.take_head(&cursor.whole(&member, manifest::MAX_LEN)?)?,
            MemberRole::RecoveryMap(target) => {
                let disk = found.described(target)?;
                let (table, dense_at) = cursor.recovery_map(&disk, &member)?;
                if dense_at.checked_add(table.dense_len()).is_none_or(|end| end > at) {
                    return Err(damaged("the copy of a map places its disk behind itself"));
                }
                found.take_disk(disk, table, dense_at)?;
            }
            MemberRole::RecoveryAllocation(_) => {}
            _ => return Err(damaged("its recovery copies lack a disk")),
        }
        cursor.skip_rest();
    }
    Ok(())
}

/// Reads the allocation table of `disk`, from the front.
///
/// # Errors
/// Damaged or Incomplete, where it can't be read; those of `take`.
pub(super) fn allocation(
    stream: &VerifiedRanges<'_>,
    disk: &Disk,
    kind: BackupKind,
    take: &mut dyn FnMut(AllocationRow) -> Result<()>,
) -> Result<()> {
    let wanted = MemberRole::Allocation(&disk.target);
    MemberCursor::new(stream, StreamOffset::ZERO).allocation(&wanted, disk, kind, take)
}

/// Reads the second copy of the allocation table of `disk`, of an incremental archive whose recovery copies
/// begin at `at`.
///
/// # Errors
/// As [`allocation`].
pub(super) fn recovery_allocation(
    stream: &VerifiedRanges<'_>,
    at: StreamOffset,
    disk: &Disk,
    take: &mut dyn FnMut(AllocationRow) -> Result<()>,
) -> Result<()> {
    let wanted = MemberRole::RecoveryAllocation(&disk.target);
    MemberCursor::new(stream, at).allocation(&wanted, disk, BackupKind::Incremental, take)
}

/// Reads members at any place, a step at a time, and jumps over what is not wanted.
struct MemberCursor<'a> {
    stream: &'a VerifiedRanges<'a>,
    parser: MemberParser,
}

impl<'a> MemberCursor<'a> {
    fn new(stream: &'a VerifiedRanges<'a>, at: StreamOffset) -> Self {
        Self { stream, parser: MemberParser::at(at) }
    }

    /// The next step's bytes: never more than `limit`, nor past the stream's end.
    fn step(&self, limit: u64) -> Result<Vec<u8>> {
        let at = self.parser.position();
        let left = self.stream.len().saturating_sub(at.get());
        if left == 0 {
            return Err(Error::new(
                ErrorKind::Incomplete,
                format!("the archive is cut at byte {at} of its stream"),
            ));
        }
        let mut bytes = vec![0; usize::try_from(left.min(limit).min(STEP)).unwrap_or(0)];
        self.stream.read_at(at, &mut bytes)?;
        Ok(bytes)
    }

    /// The next member's header; `None` at the end of the archive.
    fn next_member(&mut self) -> Result<Option<Member>> {
        loop {
            // Headers come in whole blocks: not a byte of content is taken with them.
            let bytes = self.step(crate::tar::BLOCK)?;
            let mut rest = bytes.as_slice();
            while let Some(event) = self.parser.feed(&mut rest)? {
                match event {
                    Event::Begin(member) => return Ok(Some(member)),
                    Event::EndOfArchive => return Ok(None),
                    Event::Content(_) | Event::End => {}
                }
            }
        }
    }

    /// Jumps over what is left of the member's content.
    fn skip_rest(&mut self) {
        let left = self.parser.content_left();
        self.parser.skip_content(left);
    }

    /// All of a small member's content.
    fn whole(&mut self, member: &Member, limit: u64) -> Result<Vec<u8>> {
        if member.size > limit {
            return Err(damaged(format!("member '{}' is too long", member.name)));
        }
        let mut content = Vec::new();
        self.content(&mut |bytes| {
            content.extend_from_slice(bytes);
            Ok(bytes.len())
        })?;
        Ok(content)
    }

    /// Feeds content to `take`, which says how much it used: less than it was given, and it has what it
    /// wants. Returns where the first byte stands that was not used.
    fn content(&mut self, take: &mut dyn FnMut(&[u8]) -> Result<usize>) -> Result<StreamOffset> {
        while self.parser.content_left() > 0 {
            let at = self.parser.position();
            let bytes = self.step(self.parser.content_left())?;
            let used = take(&bytes)?;
            self.parser.skip_content(used as u64);
            if used < bytes.len() {
                return Ok(at.saturating_add(used as u64));
            }
        }
        Ok(self.parser.position())
    }

    /// The rows of the allocation table that is the next member of role `wanted`.
    fn allocation(
        &mut self,
        wanted: &MemberRole<'_>,
        disk: &Disk,
        kind: BackupKind,
        take: &mut dyn FnMut(AllocationRow) -> Result<()>,
    ) -> Result<()> {
        while let Some(member) = self.next_member()? {
            if MemberRole::of(&member.name) == *wanted {
                let mut table = CsvParser::new(&member.name, disk.capacity, member.content_at, kind);
                self.content(&mut |bytes| {
                    let mut rest = bytes;
                    while let Some(row) = table.feed(&mut rest)? {
                        take(row)?;
                    }
                    Ok(bytes.len())
                })?;
                return table.finish();
            }
            self.skip_rest();
        }
        Err(damaged(format!("the allocation table of disk {} is not there", disk.target)))
    }

    /// The map of a disk's member, and where its dense bytes begin.
    fn disk(&mut self, disk: &Disk, member: &Member) -> Result<(CorrespondenceTable, StreamOffset)> {
        let mut builder = Builder::new(disk.capacity);
        if disk.layout == Layout::Full {
            builder.push(GuestOffset::ZERO, disk.capacity)?;
            return Ok((builder.finish()?, member.content_at));
        }
        let place = MapLocation::member(member.size, disk.capacity);
        let mut map = MapParser::new(&disk.target, place, member.content_at);
        let dense_at = self.content(&mut |bytes| {
            let mut rest = bytes;
            while let Some(run) = map.feed(&mut rest)? {
                disk.check_run(&run)?;
                builder.push(run.guest, run.len)?;
            }
            Ok(bytes.len() - rest.len())
        })?;
        map.finish()?;
        Ok((builder.finish()?, dense_at))
    }

    /// The second copy of a disk's map, and where it says the dense bytes begin.
    fn recovery_map(&mut self, disk: &Disk, member: &Member) -> Result<(CorrespondenceTable, StreamOffset)> {
        let mut builder = Builder::new(disk.capacity);
        let mut map = RecoveryParser::new(&disk.target, member.size, member.content_at);
        self.content(&mut |bytes| {
            let mut rest = bytes;
            while let Some(run) = map.feed(&mut rest)? {
                if run.guest.checked_add(run.len).is_none_or(|end| end.get() > disk.capacity) {
                    return Err(damaged("the copy of a map is larger than its disk"));
                }
                disk.check_run(&run)?;
                builder.push(run.guest, run.len)?;
            }
            Ok(bytes.len() - rest.len())
        })?;
        map.finish()?;
        let head = map.head().filter(|head| head.capacity == disk.capacity);
        let head = head.ok_or_else(|| damaged("the copy of a map is for another disk"))?;
        Ok((builder.finish()?, head.dense_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_of_one_second_are_told_apart_and_a_damaged_id_is_not_another() {
        let one = uuid::uuid!("7657a239-f64d-4105-b643-e4355d98efd4");
        let damaged = uuid::uuid!("7657a23d-f64d-4105-b643-e4355d98efd4");
        let other = uuid::uuid!("ead0a5c8-9c63-4947-a099-8cc70c60778b");
        assert!(differing_bytes(one, other) > DAMAGED);
        assert_eq!(differing_bytes(one, damaged), 1);
        assert_eq!(differing_bytes(one, one), 0);
    }

    #[test]
    fn nothing_found_is_incomplete() {
        let found = MemberIndex::default();
        assert!(!found.is_complete() && !found.has_disks());
        assert_eq!(found.into_parts().unwrap_err().kind(), ErrorKind::Incomplete);
    }
}
