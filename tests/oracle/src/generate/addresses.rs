//! The addresses of a generated cluster, and ipBlocks over them. It knows neither pods nor policies.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::rng::SplitMix64;

/// Where pods get their addresses: one host part of 1 to 14 below one of these.
const V4: [[u8; 3]; 4] = [[10, 0, 0], [10, 0, 1], [10, 1, 0], [192, 168, 1]];
const V6: [u128; 3] = [
    0xfd00_0000_0000_0000_0000_0000_0000_0000,
    0xfd00_0000_0000_0000_0000_0000_0001_0000,
    0x2001_0db8_0000_0001_0000_0000_0000_0000,
];

/// The node's own addresses.
pub(super) const NODES: [&str; 4] = ["172.18.0.2", "172.18.0.3", "fd01::2", "fd01::3"];

/// Which families the cluster has, and which addresses it has used.
pub(super) struct Addresses {
    pub(super) v4: bool,
    pub(super) v6: bool,
    used: BTreeSet<IpAddr>,
    interest: BTreeSet<IpAddr>,
}

/// A prefix, its address perhaps with host bits.
#[derive(Clone, Copy)]
struct Prefix {
    address: IpAddr,
    length: u32,
}

impl Addresses {
    pub(super) fn new(rng: &mut SplitMix64) -> Addresses {
        let (v4, v6) = *rng.pick(&[(true, false), (true, true), (true, true), (false, true)]);
        let mut interest = BTreeSet::new();
        let world = ["192.0.2.1", "8.8.8.8", "2001:db8::1"];
        interest.extend(world.iter().filter_map(|text| text.parse::<IpAddr>().ok()));
        interest.extend(NODES.iter().filter_map(|text| text.parse::<IpAddr>().ok()));
        Addresses { v4, v6, used: BTreeSet::new(), interest }
    }

    /// An IPv4 address that nobody had before.
    pub(super) fn fresh_v4(&mut self, rng: &mut SplitMix64) -> IpAddr {
        loop {
            let [a, b, c] = *rng.pick(&V4);
            let host = u8::try_from(rng.between(1, 14)).unwrap_or(1);
            let address = IpAddr::V4(Ipv4Addr::new(a, b, c, host));
            if self.used.insert(address) {
                return self.note(address);
            }
        }
    }

    /// An IPv6 address that nobody had before.
    pub(super) fn fresh_v6(&mut self, rng: &mut SplitMix64) -> IpAddr {
        loop {
            let host = u128::try_from(rng.between(1, 14)).unwrap_or(1);
            let address = IpAddr::V6(Ipv6Addr::from(*rng.pick(&V6) + host));
            if self.used.insert(address) {
                return self.note(address);
            }
        }
    }

    /// An address that somebody has.
    pub(super) fn used(&self, rng: &mut SplitMix64) -> Option<IpAddr> {
        self.used.iter().nth(rng.below(self.used.len())).copied()
    }

    /// Remembers an address to ask about.
    pub(super) fn note(&mut self, address: IpAddr) -> IpAddr {
        self.interest.insert(address);
        address
    }

    /// All that was noted, with some neighbours.
    pub(super) fn of_interest(&self, rng: &mut SplitMix64) -> Vec<IpAddr> {
        let mut addresses = self.interest.clone();
        for address in &self.interest {
            if rng.chance(300) {
                addresses.insert(step(*address, 1));
            }
        }
        addresses.into_iter().collect()
    }

    /// A readable block: its cidr, and its excepts inside, at the edges, nested, adjacent, wider or elsewhere.
    pub(super) fn block(&mut self, rng: &mut SplitMix64) -> (String, Vec<String>) {
        let cidr = self.prefix(rng);
        self.note_edges(cidr);
        let mut excepts = Vec::new();
        for _ in 0..*rng.pick(&[0, 0, 0, 1, 1, 2, 3]) {
            let except = match (rng.below(10), excepts.last().copied()) {
                (0, _) => self.prefix_of(rng, cidr.address.is_ipv4()),
                (1, _) => cidr,
                (2, _) => Prefix { length: cidr.length.saturating_sub(2), ..cidr },
                (3 | 4, Some(last)) => sibling(last),
                (5 | 6, Some(last)) => inside(rng, last),
                _ => inside(rng, cidr),
            };
            self.note_edges(except);
            excepts.push(except);
        }
        (spell(rng, cidr), excepts.into_iter().map(|except| spell(rng, except)).collect())
    }

    /// A cidr that looks at home here, and is of the other family than `cidr`.
    pub(super) fn other_family(&self, rng: &mut SplitMix64, cidr: &str) -> String {
        let prefix = self.prefix_of(rng, cidr.contains(':'));
        spell(rng, prefix)
    }

    fn prefix(&self, rng: &mut SplitMix64) -> Prefix {
        let v4 = match (self.v4, self.v6) {
            (true, true) => rng.chance(600),
            // Now and then of the family that the cluster has not.
            (v4, _) => v4 == rng.chance(930),
        };
        self.prefix_of(rng, v4)
    }

    fn prefix_of(&self, rng: &mut SplitMix64, v4: bool) -> Prefix {
        let known: Vec<IpAddr> =
            self.interest.iter().copied().filter(|address| address.is_ipv4() == v4).collect();
        let address = *rng.pick(&known);
        let lengths: &[u32] = if v4 {
            &[0, 1, 8, 15, 16, 23, 24, 28, 29, 30, 31, 32]
        } else {
            &[0, 7, 64, 112, 124, 125, 126, 128]
        };
        Prefix { address, length: *rng.pick(lengths) }
    }

    /// The first and last address, and those just outside.
    fn note_edges(&mut self, prefix: Prefix) {
        let (first, last) = (masked(prefix), last_of(prefix));
        for address in [first, last, step(first, -1), step(last, 1)] {
            self.note(address);
        }
    }
}

fn bits(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The address of the family of `like` with that number, wrapping around.
fn numbered(like: IpAddr, number: u128) -> IpAddr {
    match like {
        IpAddr::V4(_) => {
            IpAddr::V4(Ipv4Addr::from(u32::try_from(number & u128::from(u32::MAX)).unwrap_or_default()))
        }
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

fn step(address: IpAddr, by: i128) -> IpAddr {
    numbered(address, number(address).wrapping_add_signed(by))
}

/// One bits where a prefix's hosts differ.
fn host_mask(prefix: Prefix) -> u128 {
    let hosts = bits(prefix.address) - prefix.length;
    u128::MAX.checked_shr(128 - hosts).unwrap_or(0)
}

fn masked(prefix: Prefix) -> IpAddr {
    numbered(prefix.address, number(prefix.address) & !host_mask(prefix))
}

fn last_of(prefix: Prefix) -> IpAddr {
    numbered(prefix.address, number(prefix.address) | host_mask(prefix))
}

/// A longer prefix inside, mostly one that keeps the address itself.
fn inside(rng: &mut SplitMix64, prefix: Prefix) -> Prefix {
    let length = (prefix.length + u32::try_from(rng.between(1, 4)).unwrap_or(1)).min(bits(prefix.address));
    let noise = if rng.chance(600) { 0 } else { u128::from(rng.next_u64()) & host_mask(prefix) };
    Prefix { address: numbered(prefix.address, number(prefix.address) ^ noise), length }
}

/// The other half of the prefix's parent.
fn sibling(prefix: Prefix) -> Prefix {
    let bit = 1_u128.checked_shl(bits(prefix.address) - prefix.length).unwrap_or(0);
    Prefix { address: numbered(prefix.address, number(prefix.address) ^ bit), ..prefix }
}

/// S20: as text, sometimes with host bits, sometimes with leading zeros.
fn spell(rng: &mut SplitMix64, prefix: Prefix) -> String {
    let address = if rng.chance(600) { masked(prefix) } else { prefix.address };
    match address {
        IpAddr::V4(address) if rng.chance(60) => {
            let [a, b, c, d] = address.octets();
            format!("{a:03}.{b:02}.{c}.{d:03}/{}", prefix.length)
        }
        IpAddr::V4(_) | IpAddr::V6(_) => format!("{address}/{}", prefix.length),
    }
}
