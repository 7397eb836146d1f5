//! The sizes that a tar is made of, and what takes its bytes.

use virtfold_base::error::Result;

/// Bytes in a tar block.
pub const BLOCK: u64 = 512;
/// The dense bytes of a disk begin at a multiple of this many bytes of the stream.
pub const ALIGNMENT: u64 = 4096;

/// The largest size of anything: tar's offsets are signed.
pub const MAX_SIZE: u64 = i64::MAX.cast_unsigned();

/// What ends an archive: two blocks of zeros.
pub const END_OF_ARCHIVE: [u8; 1024] = [0; 1024];

/// Takes pieces of encoded bytes, in order.
pub type Output<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// Bytes in a tar block, as a length of arrays.
pub(super) const BLOCK_LEN: usize = 512;

/// The zeros that fill the last block of `len` bytes of content.
pub fn padding(len: u64) -> &'static [u8] {
    let used = usize::try_from(len % BLOCK).unwrap_or(0);
    let zeros: &'static [u8] = &END_OF_ARCHIVE;
    zeros.get(..(BLOCK_LEN - used) % BLOCK_LEN).unwrap_or_default()
}
