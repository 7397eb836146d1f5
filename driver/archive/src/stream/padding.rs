//! Zeros behind an archive: media that are cut into blocks (devices, tapes, `dd conv=sync`) have them behind
//! the end of a file.
//!
//! Imports: nothing but this room.

use super::chunk::ReadAt;
use super::seek_table;

/// Says that `zeros` bytes behind the end of the archive called `name` are passed over, where there are any.
pub fn tell_zeros(name: &str, zeros: u64) {
    if zeros > 0 {
        tracing::warn!(
            "'{name}' has {zeros} zeros behind its end, as media of whole blocks have: they are passed over"
        );
    }
}

/// Bytes that are looked at at once, going backwards.
const STEP: u64 = 64 << 10;
/// Bytes before the zeros that tell what ends there.
const LAST: usize = 4;

/// Where the last byte that is not zero ends in `file`; nothing, where that can't be read: then whoever reads
/// it says so.
pub fn end_of_content(file: &dyn ReadAt) -> Option<u64> {
    let mut end = file.len();
    let mut bytes = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(STEP);
        bytes.resize(usize::try_from(end - start).ok()?, 0);
        file.read_exact_at(start, &mut bytes).ok()?;
        if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
            return Some(start + last as u64 + 1);
        }
        end = start;
    }
    Some(0)
}

/// Where the archive in `file` ends that has zeros behind it, by what stands there: behind a seek table at
/// once, behind an end record or its signature with the rest of its block and two blocks of zeros. Nothing,
/// where it is neither, or nothing follows.
pub fn end_before_zeros(file: &dyn ReadAt) -> Option<u64> {
    let end = match ending(file)? {
        Ending::SeekTable(content) => content,
        Ending::EndRecord(content) => end_of_tail(content),
    };
    (end < file.len()).then_some(end)
}

/// Whether `file` ends as a plain archive does: an end record or its signature, and two blocks of zeros or
/// more.
pub(super) fn ends_as_plain(file: &dyn ReadAt) -> bool {
    matches!(ending(file), Some(Ending::EndRecord(content)) if end_of_tail(content) <= file.len())
}

/// What the last bytes that are not zero belong to, and where they end.
enum Ending {
    SeekTable(u64),
    EndRecord(u64),
}

fn ending(file: &dyn ReadAt) -> Option<Ending> {
    let content = end_of_content(file)?;
    let mut last = [0; LAST];
    file.read_exact_at(content.checked_sub(LAST as u64)?, &mut last).ok()?;
    if seek_table::is_end(&last) {
        return Some(Ending::SeekTable(content));
    }
    let is_tail = last.ends_with(b"\"}\n") || last == *b"---\n";
    is_tail.then_some(Ending::EndRecord(content))
}

/// Where the tail ends whose end record's or signature's text ends at `content`.
fn end_of_tail(content: u64) -> u64 {
    const BLOCK: u64 = 512;
    content.next_multiple_of(BLOCK).saturating_add(2 * BLOCK)
}
