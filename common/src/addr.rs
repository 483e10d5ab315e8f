//! One address type for both families: 16 bytes, IPv4 in its mapped form `::ffff:a.b.c.d`. The parser
//! refuses IPv6 packets that carry mapped addresses (RFC 4291 section 2.5.5.2 gives them no meaning on the
//! wire), so a mapped address always stands for IPv4 and no prefix of one family matches the other (S19).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Prefix bits that the mapped form puts before an IPv4 prefix.
pub const V4_PREFIX_BITS: u32 = 96;

/// An address of either family.
#[repr(C, align(8))]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
pub struct Addr {
    /// Network byte order.
    pub bytes: [u8; 16],
}

impl Addr {
    /// `::`, which also stands for "no address".
    pub const UNSPECIFIED: Self = Self { bytes: [0; 16] };

    /// An IPv4 address in its mapped form.
    #[inline(always)]
    #[must_use]
    pub const fn v4(a: [u8; 4]) -> Self {
        Self { bytes: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]] }
    }

    /// An IPv6 address.
    #[inline(always)]
    #[must_use]
    pub const fn v6(bytes: [u8; 16]) -> Self {
        Self { bytes }
    }

    /// The two halves as integers in the machine's byte order: for comparing and hashing only.
    #[inline(always)]
    #[must_use]
    pub const fn halves(&self) -> (u64, u64) {
        let b = &self.bytes;
        (
            u64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
            u64::from_ne_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]),
        )
    }

    /// The address of these [`Addr::halves`].
    #[inline(always)]
    #[must_use]
    pub const fn from_halves(high: u64, low: u64) -> Self {
        Self { bytes: zerocopy::transmute!([high, low]) }
    }

    /// True for an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        let b = &self.bytes;
        self.halves().0 == 0 && b[8] == 0 && b[9] == 0 && b[10] == 0xff && b[11] == 0xff
    }

    /// The same address; written so that it compiles to two comparisons in eBPF, not to `memcmp`.
    #[inline(always)]
    #[must_use]
    pub const fn same(&self, other: &Self) -> bool {
        let (a, b) = self.halves();
        let (c, d) = other.halves();
        a == c && b == d
    }

    /// `fe80::/10`.
    #[inline(always)]
    #[must_use]
    pub const fn is_link_local_v6(&self) -> bool {
        self.bytes[0] == 0xfe && self.bytes[1] & 0xc0 == 0x80
    }

    /// True for a group's address of IPv6, `ff00::/8`.
    #[inline(always)]
    #[must_use]
    pub const fn is_multicast_v6(&self) -> bool {
        self.bytes[0] == 0xff
    }

    /// True for groups of both families, the IPv4 broadcast address included.
    #[inline(always)]
    #[must_use]
    pub const fn is_multicast(&self) -> bool {
        if self.is_v4() { self.bytes[12] >= 0xe0 } else { self.is_multicast_v6() }
    }

    /// A 32-bit mix of the address: the tag of exact peer entries, and what chooses the epoch cell.
    #[inline(always)]
    #[must_use]
    #[allow(clippy::cast_possible_truncation)]
    pub const fn hash(&self) -> u32 {
        self.mix() as u32
    }

    /// A 64-bit mix of the address. A multiplication for each half and one finaliser: every packet pays for it.
    #[inline(always)]
    #[must_use]
    pub(crate) const fn mix(&self) -> u64 {
        let (a, b) = self.halves();
        mix64(a.wrapping_mul(GOLDEN) ^ b.wrapping_mul(SILVER).rotate_left(29))
    }
}

/// Odd numbers to multiply with: that of splitmix64, and the last of its finaliser.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const SILVER: u64 = 0x94d0_49bb_1331_11eb;

/// splitmix64's finaliser.
#[inline(always)]
#[must_use]
pub(crate) const fn mix64(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests;
