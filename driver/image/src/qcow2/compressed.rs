//! Compressed clusters: raw deflate streams or Zstandard frames that inflate to one cluster exactly.
//!
//! The stored bytes are rounded up to whole sectors, so anything may follow the stream. Output never exceeds
//! the cluster, whatever the stream says, and a Zstandard window is bounded, so a hostile stream costs no
//! more memory or time than a good one.
//!
//! Imports: `source`.

use flate2::{Decompress, FlushDecompress};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use crate::source::CompressionType;

/// The largest Zstandard window taken: 8 MiB, four times the largest cluster.
const WINDOW_LOG: u32 = 23;

/// Inflates `stored` into all of `cluster`. The sentence says what is wrong.
pub(crate) fn inflate(kind: CompressionType, stored: &[u8], cluster: &mut [u8]) -> Result<(), String> {
    let len = cluster.len();
    let made = match kind {
        CompressionType::Zlib => deflate(stored, cluster)?,
        CompressionType::Zstd => zstandard(stored, cluster)?,
    };
    if made == len { Ok(()) } else { Err(format!("its stream ends after {made} of {len} bytes")) }
}

fn deflate(stored: &[u8], cluster: &mut [u8]) -> Result<usize, String> {
    // QEMU's window is 4 KiB; an inflater with the largest window reads every smaller one.
    let mut state = Decompress::new(false);
    state
        .decompress(stored, cluster, FlushDecompress::Finish)
        .map_err(|error| format!("its deflate stream is broken ({error})"))?;
    usize::try_from(state.total_out()).map_err(|_| "its stream is too long".to_owned())
}

fn zstandard(stored: &[u8], cluster: &mut [u8]) -> Result<usize, String> {
    let broken = |error: std::io::Error| format!("its Zstandard frame is broken ({error})");
    let mut decoder = Decoder::new().map_err(broken)?;
    decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG)).map_err(broken)?;
    let mut input = InBuffer::around(stored);
    let mut output = OutBuffer::around(cluster);
    loop {
        let before = (input.pos(), output.pos());
        let wanted = decoder.run(&mut input, &mut output).map_err(broken)?;
        let full = output.pos() == output.capacity();
        if full && wanted != 0 {
            return Err("its Zstandard frame holds more than a cluster".to_owned());
        }
        if full || wanted == 0 || (input.pos(), output.pos()) == before {
            return Ok(output.pos());
        }
    }
}
