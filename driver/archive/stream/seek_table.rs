//! The seek table that closes a framed stream: the Zstandard seekable format, version 0.1.0, in its own
//! skippable frame, without check sums. It has two entries a chunk, because that format wants one for every
//! frame of the file: the skippable frame (100 bytes, decompresses to nothing) and the Zstandard frame.
//!
//! Imports: `error`, `spool`.

use crate::error::Result;
use crate::spool::Spool;

use super::Sink;
use super::frame::HEADER_LEN;

/// Magic number of the skippable frame that holds a seek table.
const FRAME_MAGIC: [u8; 4] = 0x184D_2A5E_u32.to_le_bytes();
/// Magic number that ends a file with a seek table.
const SEEKABLE_MAGIC: [u8; 4] = 0x8F92_EAB1_u32.to_le_bytes();
/// Number of frames, descriptor, magic number.
const FOOTER_LEN: u32 = 9;
/// Bytes of the two entries of a chunk.
const PAIR_LEN: u32 = 16;
/// The most chunks whose entries fit in a skippable frame, whose size is a 32-bit number: 256 TiB of stream.
pub(super) const MAX_CHUNKS: u32 = (u32::MAX - FOOTER_LEN) / PAIR_LEN;

/// The two entries of a chunk.
fn pair(stored: u32, len: u32) -> [u8; PAIR_LEN as usize] {
    let mut out = [0; PAIR_LEN as usize];
    let header_len = HEADER_LEN as u64;
    let fields = [header_len, 0, u64::from(stored), u64::from(len)];
    for (place, field) in out.chunks_exact_mut(4).zip(fields) {
        for (to, from) in place.iter_mut().zip(field.to_le_bytes()) {
            *to = from;
        }
    }
    out
}

/// The table's beginning: magic number and size.
fn head(chunks: u32) -> [u8; 8] {
    let [a, b, c, d] = FRAME_MAGIC;
    let [e, f, g, h] = (chunks * PAIR_LEN + FOOTER_LEN).to_le_bytes();
    [a, b, c, d, e, f, g, h]
}

/// The table's end: number of frames (two a chunk), descriptor (no check sums), magic number.
fn footer(chunks: u32) -> [u8; FOOTER_LEN as usize] {
    let [a, b, c, d] = (chunks * 2).to_le_bytes();
    let [e, f, g, h] = SEEKABLE_MAGIC;
    [a, b, c, d, 0, e, f, g, h]
}

/// Collects the sizes of the frames as they are written, 8 bytes a chunk in a [`Spool`].
#[derive(Debug, Default)]
pub(super) struct TableWriter {
    sizes: Spool,
    chunks: u32,
}

impl TableWriter {
    /// Takes in a chunk: bytes of its Zstandard frame and what they decompress to. The caller sees to it
    /// that there are no more than [`MAX_CHUNKS`].
    pub(super) fn push(&mut self, stored: u32, len: u32) -> Result<()> {
        self.sizes.append(&stored.to_le_bytes())?;
        self.sizes.append(&len.to_le_bytes())?;
        self.chunks += 1;
        Ok(())
    }

    /// Writes the table and returns its length.
    pub(super) fn write(&self, sink: &mut dyn Sink) -> Result<u64> {
        const BLOCK: u64 = 32 << 10;
        let mut out = head(self.chunks).to_vec();
        let mut sizes = Vec::new();
        let mut at = 0;
        let mut written = 0;
        while at < self.sizes.len() {
            let take = (self.sizes.len() - at).min(BLOCK);
            sizes.resize(usize::try_from(take).unwrap_or_default(), 0);
            self.sizes.read_at(at, &mut sizes)?;
            for size in sizes.chunks_exact(8) {
                let field = |from: usize| {
                    size.get(from..).and_then(|s| s.first_chunk()).map_or(0, |f| u32::from_le_bytes(*f))
                };
                out.extend_from_slice(&pair(field(0), field(4)));
            }
            sink.write(&out)?;
            written += out.len() as u64;
            out.clear();
            at += take;
        }
        out.extend_from_slice(&footer(self.chunks));
        sink.write(&out)?;
        Ok(written + out.len() as u64)
    }
}
