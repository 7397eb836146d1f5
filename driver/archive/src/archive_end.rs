//! Where an archive ends that has something else behind it: a device is larger than what was written to it,
//! and has behind that what was there before, which may be the end of an older archive.
//!
//! So nothing at the device's end tells, and the way is from the front: along the frames to their seek table,
//! or along the members to the end of the tar. Where a member's header is damaged, the first end record
//! behind it counts that is of the archive that the head names and says of itself that it stands there.
//!
//! Imports: `error`, `units`; `stream` and the member modules of this room.

use uuid::Uuid;

use super::end_record::{self, EndRecord};
use super::index::tail::end_member;
use super::layout::{self, MemberRole};
use super::manifest::{self, Manifest};
use super::stream::{Carrier, ReadAt, carrier_of, end_of_frames};
use super::tar::{BLOCK, BLOCK_LEN, END_OF_ARCHIVE};
use super::tar_parser::{Event, MemberParser};
use virtfold_base::units::{MIB, StreamOffset};

/// Where the archive at the beginning of `device` ends; nothing, where that can't be told: then whoever reads
/// it says why.
pub fn end_on_device(device: &dyn ReadAt) -> Option<u64> {
    match carrier_of(device).ok()? {
        Carrier::Framed => end_of_frames(device).ok()?,
        Carrier::Plain => {
            let mut walk = Walk { parser: MemberParser::new(), head: None, last: false };
            let ended = walk.end(device);
            ended.or_else(|| end_of_record(device, &walk))
        }
    }
}

/// The way along the members' headers.
struct Walk {
    parser: MemberParser,
    /// Where the head's content is.
    head: Option<(u64, u64)>,
    /// The member at hand is the last one of an archive.
    last: bool,
}

impl Walk {
    /// Where the tar ends; nothing, where a header is none. The parser then stands about there.
    fn end(&mut self, device: &dyn ReadAt) -> Option<u64> {
        let mut block = [0; BLOCK_LEN];
        while !self.parser.has_ended() {
            // No byte behind the end is fed: it is not the archive's.
            let at = self.parser.position().get();
            let left = block.get_mut(..usize::try_from(BLOCK - at % BLOCK).ok()?)?;
            device.read_exact_at(at, left).ok()?;
            let mut rest = &*left;
            while let Some(event) = self.parser.feed(&mut rest).ok()? {
                if let Event::Begin(member) = event {
                    let role = MemberRole::of(&member.name);
                    self.last = matches!(role, MemberRole::End | MemberRole::Signature);
                    if role == MemberRole::Head {
                        self.head = Some((member.content_at.get(), member.size));
                    }
                }
            }
            let content = self.parser.content_left();
            self.parser.skip_content(content);
        }
        self.last.then(|| self.parser.position().get())
    }

    /// The archive that the head names, where it can be read.
    fn archive(&self, device: &dyn ReadAt) -> Option<Uuid> {
        let (at, size) = self.head.filter(|(_, size)| *size <= manifest::MAX_LEN)?;
        let mut bytes = vec![0; usize::try_from(size).ok()?];
        device.read_exact_at(at, &mut bytes).ok()?;
        Manifest::parse(&bytes).ok().map(|head| head.archive)
    }
}

/// Where the tail ends of the first end record behind the walk that stands where it says, and is of the same
/// archive where that is known.
fn end_of_record(device: &dyn ReadAt, walk: &Walk) -> Option<u64> {
    let mut at = walk.parser.position().get() / BLOCK * BLOCK;
    let archive = walk.archive(device);
    let mut bytes = Vec::new();
    while at < device.len() {
        bytes.resize(usize::try_from((device.len() - at).min(MIB)).ok()?, 0);
        device.read_exact_at(at, &mut bytes).ok()?;
        for (place, block) in (at..).step_by(BLOCK_LEN).zip(bytes.chunks(BLOCK_LEN)) {
            if is_record(block)
                && let Some((end, of)) = proven_end(device, place)
                && archive.is_none_or(|archive| archive == of)
            {
                return Some(end);
            }
        }
        at += bytes.len() as u64;
    }
    None
}

/// Whether a block can be the header of an end record.
fn is_record(block: &[u8]) -> bool {
    block.strip_prefix(layout::END.as_bytes()).is_some_and(|rest| rest.starts_with(&[0]))
}

/// Where the tail ends whose end record has its header at `at`, and the archive that it is of.
fn proven_end(device: &dyn ReadAt, at: u64) -> Option<(u64, Uuid)> {
    let most = BLOCK + end_record::MAX_LEN.next_multiple_of(BLOCK);
    let mut bytes = vec![0; usize::try_from(most.min(device.len().checked_sub(at)?)).ok()?];
    device.read_exact_at(at, &mut bytes).ok()?;
    let at = StreamOffset::new(at);
    let content = end_member(at, &bytes)?;
    let (record, _): (EndRecord, _) = EndRecord::parse(&content, at).ok()?;
    let end = record.body_len.checked_add(end_record::tail_len(&record).ok()?)?;
    let behind = end_record::signature_member_len(&record) + END_OF_ARCHIVE.len() as u64;
    let here = at.get() + BLOCK + (content.len() as u64).next_multiple_of(BLOCK) + behind;
    (end == here && end <= device.len()).then_some((end, record.archive))
}
