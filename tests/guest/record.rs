//! The record that the test guest writes, 4 KiB each, and where each one lies. Shared by the guest's writer,
//! which `rustc` compiles alone, and by the checker on the host; uses the standard library only.
//!
//! Record `n` goes to disk `n % disks`, there to slot `(n / disks) * ODD % slots`, at `slot * stride`. The
//! odd factor scatters neighbours over the disk and, `slots` being a power of two, visits every slot before
//! the first one comes round again. So the set of records 0..=N fixes the contents of every slot of every
//! disk.
//!
//! | at | bytes | what, little-endian |
//! |---|---|---|
//! | 0 | 8 | `VFRECORD` |
//! | 8 | 8 | n |
//! | 16 | 8 | the guest's monotonic clock at the write, ns |
//! | 24 | 4 | disk |
//! | 28 | 4 | disks |
//! | 32 | 4 | slots |
//! | 36 | 4 | stride, bytes |
//! | 40 | 8 | run: another one at each start, so that clocks of two starts are not compared |
//! | 48 | 4040 | filling, made from n |
//! | 4088 | 8 | checksum of the bytes before |

/// Bytes of a record.
pub(crate) const RECORD: usize = 4096;
const MAGIC: &[u8; 8] = b"VFRECORD";
/// See the module's description.
pub(crate) const ODD: u64 = 0x9E37_79B1;

/// How records lie on the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Number of disks, 1 to 4.
    pub(crate) disks: u32,
    /// Slots on each disk, a power of two.
    pub(crate) slots: u32,
    /// Bytes from one slot to the next.
    pub(crate) stride: u32,
}

impl Layout {
    /// The disk of record `n`.
    pub(crate) fn disk(&self, n: u64) -> u32 {
        (n % u64::from(self.disks)) as u32
    }

    /// The slot of record `n` on its disk.
    pub(crate) fn slot(&self, n: u64) -> u32 {
        ((n / u64::from(self.disks)).wrapping_mul(ODD) % u64::from(self.slots)) as u32
    }
}

/// A record's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) number: u64,
    pub(crate) clock_ns: u64,
    pub(crate) disk: u32,
    pub(crate) layout: Layout,
    pub(crate) run: u64,
}

impl Record {
    /// The record's bytes.
    pub(crate) fn encode(&self, out: &mut [u8; RECORD]) {
        out[0..8].copy_from_slice(MAGIC);
        out[8..16].copy_from_slice(&self.number.to_le_bytes());
        out[16..24].copy_from_slice(&self.clock_ns.to_le_bytes());
        out[24..28].copy_from_slice(&self.disk.to_le_bytes());
        out[28..32].copy_from_slice(&self.layout.disks.to_le_bytes());
        out[32..36].copy_from_slice(&self.layout.slots.to_le_bytes());
        out[36..40].copy_from_slice(&self.layout.stride.to_le_bytes());
        out[40..48].copy_from_slice(&self.run.to_le_bytes());
        let mut state = self.number ^ 0x5DEE_CE66_D1CE_4E5B;
        for word in out[48..4088].chunks_exact_mut(8) {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            word.copy_from_slice(&state.to_le_bytes());
        }
        let sum = checksum(&out[..4088]);
        out[4088..].copy_from_slice(&sum.to_le_bytes());
    }

    /// `Ok(None)` where the slot was never written.
    pub(crate) fn decode(bytes: &[u8; RECORD]) -> Result<Option<Record>, String> {
        if bytes.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default());
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        if &bytes[0..8] != MAGIC {
            return Err("holds something that is no record".to_owned());
        }
        if u64_at(4088) != checksum(&bytes[..4088]) {
            return Err(format!("holds a torn record {}", u64_at(8)));
        }
        let layout = Layout { disks: u32_at(28), slots: u32_at(32), stride: u32_at(36) };
        let record =
            Record { number: u64_at(8), clock_ns: u64_at(16), disk: u32_at(24), layout, run: u64_at(40) };
        Ok(Some(record))
    }
}

/// FNV-1a over 64-bit words: cheap under software emulation, and good enough to see torn or mixed records.
fn checksum(bytes: &[u8]) -> u64 {
    let mut sum = 0xCBF2_9CE4_8422_2325u64;
    for word in bytes.chunks_exact(8) {
        sum = (sum ^ u64::from_le_bytes(word.try_into().unwrap_or_default())).wrapping_mul(0x0100_0000_01B3);
        sum ^= sum >> 29;
    }
    sum
}
