//! Zeros behind an archive: media that are cut into blocks (devices, tapes, `dd conv=sync`) have them behind the end of a file.
//!
//! Imports: nothing but this room.

use super::chunk::ReadAt;
use super::seek_table;

/// Bytes that are looked at at once, going backwards.
const STEP: u64 = 64 << 10;
/// Bytes before the zeros that tell what ends there.
const LAST: usize = 4;

/// Where the last byte that is not zero ends in `file`; nothing, where that can't be read: then whoever reads it says so.
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

/// Where the archive in `file` ends that has zeros behind it, by what stands there: behind a seek table at once, behind an end record with the rest of its block
/// and two blocks of zeros. Nothing, where it is neither, or nothing follows.
pub fn end_before_zeros(file: &dyn ReadAt) -> Option<u64> {
    const BLOCK: u64 = 512;
    let content = end_of_content(file)?;
    let mut last = [0; LAST];
    file.read_exact_at(content.checked_sub(LAST as u64)?, &mut last).ok()?;
    let end = match seek_table::is_end(&last) {
        true => content,
        false if last.ends_with(b"\"}\n") => content.next_multiple_of(BLOCK).saturating_add(2 * BLOCK),
        false => return None,
    };
    (end < file.len()).then_some(end)
}
