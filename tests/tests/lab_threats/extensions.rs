//! T3: chains of IPv6 extension headers. What is expected of each is worked out by a walk of this file's own.

use portcullis_common::event::{Direction, Reason};
use portcullis_lab::{Cni, Family};
use portcullis_oracle::rng::SplitMix64;
use portcullis_tests::field::{Conntrack, Fate, Field, OPEN, SHUT, Shot};
use portcullis_tests::frames::{self, AH, DESTINATION, FRAGMENT, HOP_BY_HOP, Ipv6, Path, ROUTING, UDP};
use portcullis_tests::privilege::number;

use crate::{WAYS, Way};

/// Chains for each way; `PORTCULLIS_CHAINS` and `PORTCULLIS_SEED` ask for others.
const CHAINS: u64 = 400;
const SEED: u64 = 3;
/// The most headers that are walked.
const MOST: usize = 8;

/// One header of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Header {
    HopByHop(u8),
    Destination(u8),
    /// Type and segments left.
    Routing(u8, u8),
    Authentication(u8),
    /// A fragment header of a whole packet.
    Atomic,
    /// A kind that is not walked.
    Unknown(u8),
}

impl Header {
    const fn number(self) -> u8 {
        match self {
            Self::HopByHop(_) => HOP_BY_HOP,
            Self::Destination(_) => DESTINATION,
            Self::Routing(..) => ROUTING,
            Self::Authentication(_) => AH,
            Self::Atomic => FRAGMENT,
            Self::Unknown(number) => number,
        }
    }

    fn bytes(self, next: u8) -> Vec<u8> {
        match self {
            // An option that pads, and another that nobody knows and may be skipped.
            Self::HopByHop(words) | Self::Destination(words) => {
                let mut bytes = vec![next, words];
                let room = usize::from(words) * 8 + 4;
                bytes.extend([0x1e, room.min(255) as u8]);
                bytes.resize(usize::from(words) * 8 + 8, 0);
                bytes
            }
            Self::Routing(kind, left) => {
                let mut bytes = vec![next, 2, kind, left];
                bytes.resize(24, 0);
                bytes
            }
            Self::Authentication(words) => {
                let mut bytes = vec![next, words];
                bytes.resize((usize::from(words) + 2) * 4, 0x77);
                bytes
            }
            Self::Atomic => vec![next, 0, 0, 0, 0, 0, 0, 9],
            Self::Unknown(_) => vec![next, 0, 0, 0, 0, 0, 0, 0],
        }
    }

    fn any(rng: &mut SplitMix64) -> Self {
        match rng.below(12) {
            0 => Self::HopByHop(rng.below(3) as u8),
            1..=4 => Self::Destination(rng.below(4) as u8),
            5 | 6 => Self::Routing(2 + rng.below(3) as u8, 0),
            7 => Self::Routing(rng.below(5) as u8, rng.below(2) as u8),
            8 | 9 => Self::Authentication(2 + 2 * rng.below(4) as u8),
            10 => Self::Atomic,
            _ => Self::Unknown(*rng.pick(&[135, 139, 140])),
        }
    }
}

/// Why a chain is not read; none if it is.
fn refused(chain: &[Header]) -> Option<Reason> {
    for (place, header) in chain.iter().enumerate() {
        match header {
            _ if place == MOST => return Some(Reason::ExtensionHeader),
            Header::HopByHop(_) | Header::Atomic if place > 0 => return Some(Reason::ExtensionHeader),
            Header::Unknown(_) => return Some(Reason::ExtensionHeader),
            Header::Routing(0, _) | Header::Routing(_, 1..) => return Some(Reason::SourceRoute),
            Header::HopByHop(_)
            | Header::Destination(_)
            | Header::Routing(..)
            | Header::Authentication(_)
            | Header::Atomic => {}
        }
    }
    None
}

/// The chain, and behind it a protocol's bytes; first what the IP header has to say comes next.
fn chained(chain: &[Header], last: u8, payload: &[u8]) -> (u8, Vec<u8>) {
    let nexts = chain.iter().skip(1).map(|header| header.number()).chain([last]);
    let mut bytes: Vec<u8> = chain.iter().zip(nexts).flat_map(|(header, next)| header.bytes(next)).collect();
    bytes.extend(payload);
    (chain.first().map_or(last, |header| header.number()), bytes)
}

pub(crate) fn attack(field: &mut Field) {
    let (count, seed) = (number("PORTCULLIS_CHAINS", CHAINS), number("PORTCULLIS_SEED", SEED));
    for way in WAYS {
        let mut rng = SplitMix64::new(seed);
        // Each kind alone and as long as it goes.
        let kinds = [
            Header::Destination(0),
            Header::Routing(2, 0),
            Header::Routing(4, 0),
            Header::Authentication(2),
            Header::HopByHop(0),
            Header::Atomic,
            Header::Unknown(135),
            Header::Unknown(139),
            Header::Unknown(140),
            Header::Routing(0, 0),
            Header::Routing(0, 1),
            Header::Routing(2, 1),
            Header::Routing(3, 2),
            Header::Routing(4, 1),
        ];
        for header in kinds {
            for length in 1..=10 {
                judged(field, way, &vec![header; length]);
            }
        }
        for _ in 0..count {
            let length = 1 + rng.below(10);
            let chain: Vec<Header> = (0..length).map(|_| Header::any(&mut rng)).collect();
            judged(field, way, &chain);
        }
        ends(field, way);
        hidden(field, way);
    }
}

fn shot(way: Way, what: &str, fate: Fate) -> Shot {
    let what = what.to_owned();
    Shot { threat: "T3", what, from: way.from, to: "server", family: Family::Ipv6, fate }
}

/// True where the node may have put fragments together before they are judged.
fn may_change(field: &Field, way: Way) -> bool {
    field.conntrack == Conntrack::On && way.direction == Direction::Ingress
}

/// A datagram behind a chain, to a port that is open and to one that is not.
fn judged(field: &mut Field, way: Way, chain: &[Header]) {
    // A node that puts fragments together takes the header off, and what is left is judged where it arrives.
    let changed = may_change(field, way) && chain.contains(&Header::Atomic);
    for port in [OPEN, SHUT] {
        let fate = match refused(chain) {
            _ if changed && port == OPEN => continue,
            _ if changed => Fate::Lost,
            Some(reason) => field.unreadable(way.direction, reason),
            None if port == OPEN => Fate::Arrives,
            None => Fate::Dropped(way.direction, Reason::Isolated),
        };
        field.shoot(&shot(way, &format!("{chain:?} to {port}"), fate), |path, mark| {
            let (next, bytes) = chained(chain, UDP, &frames::udp(path, (40_200, port), mark));
            vec![Ipv6::default().frame(path, next, &bytes)]
        });
    }
}

/// Headers that run past the end, and fragments that stand behind others.
fn ends(field: &mut Field, way: Way) {
    let frame = |path: Path, next, bytes: &[u8]| vec![Ipv6::default().frame(path, next, bytes)];
    for (what, header, words) in [
        ("destination options past the end", Header::Destination(0), 200),
        ("destination options to just past the end", Header::Destination(0), 3),
        ("a routing header past the end", Header::Routing(2, 0), 200),
        ("an authentication header past the end", Header::Authentication(2), 200),
    ] {
        let fate = field.unreadable(way.direction, Reason::Truncated);
        field.shoot(&shot(way, what, fate), |path, mark| {
            let (next, mut bytes) = chained(&[header], UDP, &frames::udp(path, (40_201, OPEN), mark));
            bytes[1] = words;
            frame(path, next, &bytes)
        });
    }
    for first in
        [Header::Destination(0), Header::HopByHop(0), Header::Routing(2, 0), Header::Authentication(2)]
    {
        for (offset, more) in [(0, true), (4, false)] {
            let fate = field.unreadable(way.direction, Reason::ExtensionHeader);
            let port = if may_change(field, way) { SHUT } else { OPEN };
            field.shoot(&shot(way, &format!("a fragment behind {first:?}"), fate), |path, mark| {
                let datagram = frames::udp(path, (40_202, port), &[&[0; 16][..], mark].concat());
                let piece = frames::fragment_header(UDP, 0x4000, offset, more, &datagram);
                let (next, bytes) = chained(&[first], FRAGMENT, &piece);
                frame(path, next, &bytes)
            });
        }
    }
    // A chain inside a first fragment: its ports are behind it, and have to be in it.
    let fate = field.unreadable(way.direction, Reason::Fragment);
    field.shoot(&shot(way, "a chain that fills a fragment", fate), |path, mark| {
        let (next, bytes) = chained(&[Header::Destination(1)], UDP, &frames::udp(path, (40_203, OPEN), mark));
        frame(path, FRAGMENT, &frames::fragment_header(next, 0x4001, 0, true, &bytes[..16]))
    });
}

/// Protocols without ports, and neighbour discovery that is none.
fn hidden(field: &mut Field, way: Way) {
    for protocol in [50, 59] {
        let fate = Fate::Dropped(way.direction, Reason::Isolated);
        for chain in [&[][..], &[Header::Destination(0)]] {
            field.shoot(&shot(way, &format!("protocol {protocol} behind {chain:?}"), fate), |path, mark| {
                let (next, bytes) = chained(chain, protocol, &frames::udp(path, (40_204, OPEN), mark));
                vec![Ipv6::default().frame(path, next, &bytes)]
            });
        }
    }
    for kind in [133, 135, 136, 137] {
        let fate = match (kind, field.cni) {
            // No pod redirects.
            (137, Cni::Bridge) => Fate::Dropped(Direction::Egress, Reason::SpoofedSource),
            (_, Cni::Routed | Cni::Bridge) => field.unreadable(way.direction, Reason::ExtensionHeader),
        };
        field.shoot(&shot(way, &format!("discovery {kind} behind options"), fate), |path, mark| {
            let rest = [frames::octets(path.src), vec![14, 2, 0, 0, 0, 0, 0, 0], mark.to_vec()].concat();
            let message = frames::icmp(path, kind, 0, [0; 4], &rest);
            let (next, bytes) = chained(&[Header::Destination(0)], frames::ICMPV6, &message);
            vec![frames::frame_with_hops(path, 255, next, &bytes)]
        });
    }
}
