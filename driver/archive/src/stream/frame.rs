//! One frame of a framed stream: a skippable frame that names a chunk, and the Zstandard frame that holds it.
//!
//! The skippable frame (RFC 8878, section 3.1.2) is 100 bytes, all numbers little-endian; FORMAT.md has the
//! table. Its last field is a CRC-32C of all bytes before it, and it carries a CRC-32C of the Zstandard frame
//! and the digest of what that decompresses to, so that no byte of either can change unseen.
//!
//! Invariants: a header that decodes has lengths within bounds; a chunk that unpacks has exactly the length
//! and the digest that its header says.
//!
//! Imports: `units`.

use uuid::Uuid;
use zstd::zstd_safe;

use virtfold_base::units::StreamOffset;

use super::digest::Digest;

/// Bytes of a whole chunk of the uncompressed stream.
pub const FRAME: usize = 1 << 20;
/// Bytes of the skippable frame.
pub(super) const HEADER_LEN: usize = 100;
/// The most bytes that a Zstandard frame of a chunk can have: the reference library's bound.
pub(super) const STORED_MAX: usize = FRAME + FRAME / 256 + 64;
/// The largest window of a Zstandard frame, bytes: what RFC 8878 asks every decoder to take.
const MAX_WINDOW: u64 = 8 << 20;
/// What every header begins with: the skippable frame's magic number and size, and our tag.
pub(super) const PREFIX: [u8; 16] = *b"\x55\x2a\x4d\x18\x5c\x00\x00\x00VIRTFOLD";
/// The layout of the header that this module knows.
const VERSION: u32 = 1;

/// What the skippable frame says about the Zstandard frame behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// The archive that the frame belongs to.
    pub(super) archive_id: Uuid,
    /// The chunk's number from 0.
    pub(super) number: u64,
    /// Where the chunk begins in the uncompressed stream.
    pub(super) at: StreamOffset,
    /// Bytes of the chunk, 1 to [`FRAME`].
    pub(super) len: u32,
    /// Bytes of the Zstandard frame, 1 to [`STORED_MAX`].
    pub(super) stored: u32,
    /// CRC-32C of the Zstandard frame.
    pub(super) crc: u32,
    /// BLAKE3 of the chunk.
    pub(super) digest: Digest,
}

/// Why bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderFault {
    /// Too few bytes, another beginning, or a wrong check sum.
    NoHeader,
    /// A header of a later version, undamaged as far as its check sum tells.
    Version(u32),
    /// The check sum is right and a length is not possible.
    Bounds,
}

impl FrameHeader {
    /// The header's 100 bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN);
        out.extend_from_slice(&PREFIX);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(self.archive_id.as_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.at.get().to_le_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
        out.extend_from_slice(&self.stored.to_le_bytes());
        out.extend_from_slice(&self.crc.to_le_bytes());
        out.extend_from_slice(self.digest.as_bytes());
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out
    }

    /// Reads the header at the front of `bytes`.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, HeaderFault> {
        let mut fields = Fields(bytes);
        let checked = bytes.get(..HEADER_LEN - 4).ok_or(HeaderFault::NoHeader)?;
        if fields.take::<16>()? != PREFIX {
            return Err(HeaderFault::NoHeader);
        }
        let version = fields.number()?;
        let header = Self {
            archive_id: Uuid::from_bytes(fields.take()?),
            number: u64::from_le_bytes(fields.take()?),
            at: StreamOffset::new(u64::from_le_bytes(fields.take()?)),
            len: fields.number()?,
            stored: fields.number()?,
            crc: fields.number()?,
            digest: Digest::from_bytes(fields.take()?),
        };
        if fields.number()? != crc32c::crc32c(checked) {
            return Err(HeaderFault::NoHeader);
        }
        if version != VERSION {
            return Err(HeaderFault::Version(version));
        }
        if header.is_bounded() { Ok(header) } else { Err(HeaderFault::Bounds) }
    }

    fn is_bounded(&self) -> bool {
        (1..=FRAME as u64).contains(&u64::from(self.len))
            && (1..=STORED_MAX as u64).contains(&u64::from(self.stored))
            && self.at.checked_add(self.len.into()).is_some()
            && self.number < u64::MAX
    }

    /// Where the chunk ends in the stream.
    pub(super) fn end(&self) -> StreamOffset {
        self.at.saturating_add(self.len.into())
    }

    /// Bytes of header and Zstandard frame together.
    pub(super) fn span(&self) -> u64 {
        HEADER_LEN as u64 + u64::from(self.stored)
    }
}

/// A walk along the fields of a header.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], HeaderFault> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(HeaderFault::NoHeader)?;
        self.0 = rest;
        Ok(*field)
    }

    fn number(&mut self) -> Result<u32, HeaderFault> {
        self.take().map(u32::from_le_bytes)
    }
}

/// Decompresses and checks chunks; one a thread.
#[derive(Default)]
pub(super) struct Unpacker {
    context: zstd::bulk::Decompressor<'static>,
}

impl Unpacker {
    /// Decompresses `stored`, the Zstandard frame behind `header`, to the front of `out` (which must have
    /// [`FRAME`] bytes) and checks all that the header says. Returns the chunk, or a sentence why it is none.
    pub(super) fn unpack<'o>(
        &mut self,
        header: &FrameHeader,
        stored: &[u8],
        out: &'o mut [u8],
    ) -> Result<&'o [u8], String> {
        let same = |n: usize, told: u32| n as u64 == u64::from(told);
        if !same(stored.len(), header.stored) || crc32c::crc32c(stored) != header.crc {
            return Err("the check sum of the compressed bytes is wrong".to_owned());
        }
        // From here on the bytes are what somebody wrote, so a fault is his, not the medium's.
        check_descriptor(stored)?;
        let size = zstd_safe::get_frame_content_size(stored).ok().flatten();
        let whole = zstd_safe::find_frame_compressed_size(stored).is_ok_and(|n| same(n, header.stored));
        if size != Some(header.len.into()) || !whole {
            return Err("its Zstandard frame has another length than its header says".to_owned());
        }
        let len = usize::try_from(header.len).map_err(|_| "it is too large".to_owned())?;
        let room = out.get_mut(..len).ok_or_else(|| "it is larger than a chunk may be".to_owned())?;
        let got = self.context.decompress_to_buffer(stored, room);
        if !got.is_ok_and(|n| n == len) {
            return Err("its Zstandard frame does not decompress".to_owned());
        }
        if Digest::of(room) != header.digest {
            return Err("the digest of its bytes is wrong".to_owned());
        }
        Ok(room)
    }
}

/// Holds the header of a Zstandard frame against what any decoder takes (RFC 8878, section 3.1.1.1): no
/// dictionary, and a bounded window.
fn check_descriptor(frame: &[u8]) -> Result<(), String> {
    const SINGLE_SEGMENT: u8 = 1 << 5;
    const DICTIONARY: u8 = 3;
    let Some([descriptor, window]) = frame.get(4..6) else {
        return Err("its Zstandard frame is cut".to_owned());
    };
    if descriptor & DICTIONARY != 0 {
        return Err("its Zstandard frame needs a dictionary".to_owned());
    }
    let base = 1_u64 << (10 + u32::from(window >> 3));
    let window = base + base / 8 * u64::from(window & 7);
    if descriptor & SINGLE_SEGMENT == 0 && window > MAX_WINDOW {
        return Err(format!("its Zstandard frame has a window of {window} bytes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_other_decoders_may_refuse_are_refused() {
        let frame = |descriptor, window| [0x28, 0xb5, 0x2f, 0xfd, descriptor, window, 0, 0];
        assert_eq!(check_descriptor(&frame(0x80, 13 << 3)), Ok(()));
        assert_eq!(check_descriptor(&frame(0xa0, 0xff)), Ok(()), "a single segment has no window");
        assert!(check_descriptor(&frame(0x80, (13 << 3) | 1)).unwrap_err().contains("window"));
        assert!(check_descriptor(&frame(0x80, 21 << 3)).unwrap_err().contains("2147483648"));
        assert!(check_descriptor(&frame(0xa1, 0)).unwrap_err().contains("dictionary"));
        assert!(check_descriptor(&frame(0, 0)[..5]).is_err());
    }

    fn sample() -> FrameHeader {
        FrameHeader {
            archive_id: Uuid::from_bytes(*b"0123456789abcdef"),
            number: 7,
            at: StreamOffset::new(7 << 20),
            len: 1 << 20,
            stored: 4711,
            crc: 0xdead_beef,
            digest: Digest::of(b"x"),
        }
    }

    #[test]
    fn headers_round_trip_and_every_flipped_byte_is_seen() {
        let header = sample();
        let bytes = header.encode();
        assert_eq!(bytes.len(), HEADER_LEN);
        assert_eq!(FrameHeader::decode(&bytes), Ok(header));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x40;
            assert_eq!(FrameHeader::decode(&bad), Err(HeaderFault::NoHeader), "byte {at}");
            assert_eq!(FrameHeader::decode(&bytes[..at]), Err(HeaderFault::NoHeader), "cut at {at}");
        }
    }

    #[test]
    fn impossible_lengths_and_other_versions_are_told_apart() {
        let huge = |change: fn(&mut FrameHeader)| {
            let mut header = sample();
            change(&mut header);
            FrameHeader::decode(&header.encode())
        };
        assert_eq!(huge(|h| h.len = (1 << 20) + 1), Err(HeaderFault::Bounds));
        assert_eq!(huge(|h| h.len = 0), Err(HeaderFault::Bounds));
        assert_eq!(huge(|h| h.stored = u32::MAX), Err(HeaderFault::Bounds));
        assert_eq!(huge(|h| h.at = StreamOffset::new(u64::MAX)), Err(HeaderFault::Bounds));
        let mut later = sample().encode();
        later[16] = 2;
        let sum = crc32c::crc32c(&later[..HEADER_LEN - 4]);
        later[HEADER_LEN - 4..].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(FrameHeader::decode(&later), Err(HeaderFault::Version(2)));
    }

    #[test]
    fn the_bound_on_stored_bytes_is_the_librarys() {
        for len in [0, 1, 4095, 65_536, 131_071, 131_072, FRAME - 1, FRAME] {
            assert!(zstd::compress_bound(len) <= STORED_MAX, "{len}");
        }
    }

    #[test]
    fn a_frame_with_more_behind_it_or_another_size_is_refused() {
        let chunk = vec![5; 1000];
        let mut stored = zstd::bulk::compress(&chunk, 1).unwrap();
        let head = |stored: &[u8], len| FrameHeader {
            len,
            stored: u32::try_from(stored.len()).unwrap(),
            crc: crc32c::crc32c(stored),
            digest: Digest::of(&chunk),
            ..sample()
        };
        let mut out = vec![0; FRAME];
        let mut unpacker = Unpacker::default();
        assert_eq!(unpacker.unpack(&head(&stored, 1000), &stored, &mut out), Ok(chunk.as_slice()));
        assert!(unpacker.unpack(&head(&stored, 999), &stored, &mut out).is_err());
        let mut wrong = head(&stored, 1000);
        wrong.digest = Digest::of(b"");
        assert!(unpacker.unpack(&wrong, &stored, &mut out).unwrap_err().contains("digest"));
        stored.extend_from_slice(&stored.clone());
        assert!(unpacker.unpack(&head(&stored, 1000), &stored, &mut out).is_err());
    }
}
