//! Puts check sums right that a mutation has broken.

/// What a frame's header begins with, and how long it is.
const PREFIX: &[u8; 16] = b"\x55\x2a\x4d\x18\x5c\x00\x00\x00VIRTFOLD";
const HEADER: usize = 100;
/// Offsets of the fields behind the offset.
const STORED: usize = 56;
const CRC: usize = 60;
const DIGEST: usize = 64;
const OWN_CRC: usize = 96;
const CHUNK: usize = 1 << 20;

/// Gives every frame header the check sums and the digest of what stands behind it.
pub fn frames(bytes: &mut [u8]) {
    let mut from = 0;
    while let Some(found) = bytes.get(from..).and_then(|rest| find(rest, PREFIX)) {
        let start = from + found;
        from = start + PREFIX.len();
        let Some((header, rest)) = bytes.get_mut(start..).and_then(|b| b.split_at_mut_checked(HEADER)) else {
            return;
        };
        let stored = header[STORED..CRC].try_into().map_or(0, u32::from_le_bytes);
        if let Some(stored) = usize::try_from(stored).ok().and_then(|stored| rest.get(..stored)) {
            header[CRC..DIGEST].copy_from_slice(&crc32c::crc32c(stored).to_le_bytes());
            if let Ok(chunk) = zstd::bulk::decompress(stored, CHUNK) {
                header[DIGEST..OWN_CRC].copy_from_slice(blake3::hash(&chunk).as_bytes());
            }
        }
        let own = crc32c::crc32c(&header[..OWN_CRC]);
        header[OWN_CRC..].copy_from_slice(&own.to_le_bytes());
    }
}

/// Gives every tar header its sum.
pub fn tar_sums(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512) {
        if &block[257..262] != b"ustar" {
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// Where `needle` first stands.
pub(crate) fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}
