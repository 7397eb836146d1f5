//! One entry of an L2 table decoded: what a cluster or subcluster is.
//!
//! Standard entries (8 bytes): bit 62 compressed, bits 9 to 55 the host offset, bit 0 reads as zeros, bit 63
//! the cluster has one reference. Extended entries (16 bytes) have a bitmap behind that: bits 0 to 31 say
//! which of the 32 subclusters are allocated, bits 32 to 63 which read as zeros.
//!
//! Imports: `header`.

use super::header::Header;

const COMPRESSED: u64 = 1 << 62;
const COPIED: u64 = 1 << 63;
const ZERO: u64 = 1;
/// Where a host offset may have bits, in L1 and L2 entries.
pub(super) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// What an entry says of its whole cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cluster {
    Unallocated,
    Zero {
        host: Option<u64>,
    },
    Data {
        host: u64,
    },
    Compressed {
        host: u64,
        stored: u32,
    },
    /// Subclusters differ; the host cluster where there is one.
    Mixed {
        host: Option<u64>,
        bitmap: u64,
    },
}

/// What a subcluster of a mixed cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subcluster {
    Unallocated,
    Zero,
    Data,
}

/// Subclusters in a cluster.
pub(super) const SUBCLUSTERS: u64 = 32;

/// Decodes a standard entry.
pub(super) fn standard(header: &Header, entry: u64) -> Cluster {
    if entry == 0 {
        return Cluster::Unallocated;
    }
    if entry & COMPRESSED != 0 {
        return compressed(header, entry);
    }
    let host = place(header, entry);
    match (entry & ZERO != 0, host) {
        (true, _) => Cluster::Zero { host: (entry & OFFSET_MASK != 0).then_some(entry & OFFSET_MASK) },
        (false, Some(host)) => Cluster::Data { host },
        (false, None) => Cluster::Unallocated,
    }
}

/// Decodes an extended entry. The sentence is what is wrong with it.
pub(super) fn extended(header: &Header, entry: u64, bitmap: u64) -> Result<Cluster, &'static str> {
    if entry & COMPRESSED != 0 {
        return Ok(compressed(header, entry));
    }
    let host = place(header, entry);
    let (allocated, zero) = (bitmap & u64::from(u32::MAX), bitmap >> 32);
    if allocated & zero != 0 {
        return Err("a subcluster is both allocated and zero");
    }
    if host.is_none() && allocated != 0 {
        return Err("a subcluster is allocated in a cluster that is not");
    }
    let all = u64::from(u32::MAX);
    Ok(match (host, allocated, zero) {
        (None, _, 0) => Cluster::Unallocated,
        (host, _, zero) if zero == all => Cluster::Zero { host },
        (Some(host), allocated, _) if allocated == all => Cluster::Data { host },
        (host, ..) => Cluster::Mixed { host, bitmap },
    })
}

/// What subcluster `index` (below 32) of a bitmap is.
pub(super) fn sub(bitmap: u64, index: u64) -> Subcluster {
    if bitmap >> (index + SUBCLUSTERS) & 1 == 1 {
        Subcluster::Zero
    } else if bitmap >> index & 1 == 1 {
        Subcluster::Data
    } else {
        Subcluster::Unallocated
    }
}

/// The host cluster of an entry. Offset 0 means none, except in an external data file, where the reference
/// bit tells.
fn place(header: &Header, entry: u64) -> Option<u64> {
    let host = entry & OFFSET_MASK;
    (host != 0 || (header.external_data && entry & COPIED != 0)).then_some(host)
}

/// The low bits are the host offset to the byte, the bits above count the sectors that follow its first one.
fn compressed(header: &Header, entry: u64) -> Cluster {
    let offset_bits = 62 - (header.cluster_bits - 8);
    let host = entry & ((1 << offset_bits) - 1);
    let more = entry >> offset_bits & ((1 << (header.cluster_bits - 8)) - 1);
    // At most 2^13 sectors.
    let stored = u32::try_from((more + 1) * 512 - (host & 511)).unwrap_or(0);
    Cluster::Compressed { host, stored }
}
