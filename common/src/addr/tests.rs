//! Both families in one type.

use core::net::{Ipv4Addr, Ipv6Addr};
use std::collections::BTreeSet;

use super::*;
use crate::testing::Rng;

fn some_addr(rng: &mut Rng) -> Addr {
    let mut bytes = [0; 16];
    // Few values, so that equal and nearly equal ones come.
    bytes.fill_with(|| if rng.one_in(4) { rng.byte() } else { rng.pick(&[0, 0xff, 0xfe, 0x80]) });
    match rng.below(3) {
        0 => Addr::v4([bytes[0], bytes[1], bytes[2], bytes[3]]),
        _ => Addr::v6(bytes),
    }
}

#[test]
fn the_form_is_that_of_the_standard_library() {
    let mut rng = Rng::new(4);
    for _ in 0..10_000 {
        let octets = [rng.byte(), rng.byte(), rng.byte(), rng.byte()];
        let mapped = Ipv4Addr::from(octets).to_ipv6_mapped();
        assert_eq!(Addr::v4(octets).bytes, mapped.octets());
        let addr = some_addr(&mut rng);
        let theirs = Ipv6Addr::from(addr.bytes);
        assert_eq!(addr.is_v4(), theirs.to_ipv4_mapped().is_some(), "{theirs}");
        assert_eq!(addr.is_link_local_v6(), theirs.is_unicast_link_local(), "{theirs}");
    }
}

#[test]
fn every_byte_of_the_mapped_prefix_counts() {
    let mapped = Addr::v4([10, 0, 0, 1]);
    for at in 0..12 {
        let mut other = mapped;
        other.bytes[at] ^= 1;
        assert!(!other.is_v4(), "byte {at}");
    }
    for at in 12..16 {
        let mut other = mapped;
        other.bytes[at] ^= 0xff;
        assert!(other.is_v4(), "byte {at}");
    }
}

#[test]
fn same_is_equality() {
    let mut rng = Rng::new(5);
    for _ in 0..10_000 {
        let (a, b) = (some_addr(&mut rng), some_addr(&mut rng));
        assert_eq!(a.same(&b), a == b);
        assert!(a.same(&a));
        for at in 0..16 {
            let mut other = a;
            other.bytes[at] ^= 1 << rng.below(8);
            assert!(!a.same(&other), "byte {at}");
        }
    }
}

#[test]
fn hashes_of_neighbours_differ() {
    let hashes: BTreeSet<u32> =
        (0..=u16::MAX).map(|n| Addr::v4([10, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]]).hash()).collect();
    // Of 65,536 random 32-bit numbers one pair in two runs is equal.
    assert!(hashes.len() >= 65_536 - 4, "{}", hashes.len());
}

#[test]
fn halves_make_the_address_again() {
    for addr in [Addr::v4([10, 0, 0, 1]), Addr::v6([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16])] {
        let (high, low) = addr.halves();
        assert_eq!(Addr::from_halves(high, low), addr);
    }
}
