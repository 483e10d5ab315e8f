//! Datagrams in pieces: every order of them, and what must not ride on them.

use std::vec::Vec;

use crate::addr::Addr;
use crate::event::{Action, Reason};
use crate::flow::FRAGMENT_SECONDS;
use crate::judge::tests::{ALLOWING, ISOLATING, allows, closed, denies, open, world};
use crate::packet::{ICMPV6, SCTP, TCP, TCP_ACK, TCP_SYN, UDP};
use crate::testing::{PEER4, PEER6, POD4, POD6, World, ipv4_with, ipv6, sctp, tcp, udp};

const TO_POD: [(Addr, Addr); 2] = [(PEER4, POD4), (PEER6, POD6)];
const FROM_POD: [(Addr, Addr); 2] = [(POD4, PEER4), (POD6, PEER6)];

/// One piece of a datagram; IPv4 has 16 bits of identification.
fn piece(ends: (Addr, Addr), protocol: u8, id: u16, offset: u16, more: bool, bytes: &[u8]) -> Vec<u8> {
    if ends.0.is_v4() {
        let mut packet = ipv4_with(&[], offset | if more { 0x2000 } else { 0 }, protocol, ends, bytes);
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        packet
    } else {
        let mut payload = std::vec![protocol, 0];
        payload.extend((offset << 3 | u16::from(more)).to_be_bytes());
        payload.extend(u32::from(id).to_be_bytes());
        payload.extend(bytes);
        ipv6(44, ends, &payload)
    }
}

/// A datagram in this many pieces of 24 bytes.
fn pieces(ends: (Addr, Addr), protocol: u8, id: u16, header: &[u8], number: u16) -> Vec<Vec<u8>> {
    (0..number)
        .map(|index| {
            let mut bytes = if index == 0 { header.to_vec() } else { Vec::new() };
            bytes.resize(24, 0x5a);
            piece(ends, protocol, id, index * 3, index + 1 < number, &bytes)
        })
        .collect()
}

fn orders(of: usize) -> Vec<Vec<usize>> {
    if of == 0 {
        return std::vec![Vec::new()];
    }
    orders(of - 1)
        .into_iter()
        .flat_map(|order| {
            (0..of).map(move |at| {
                let mut longer = order.clone();
                longer.insert(at, of - 1);
                longer
            })
        })
        .collect()
}

/// What a datagram starts with, as a tuple that [`ALLOWING`] allows and one that it does not.
fn headers() -> [(u8, Vec<u8>, Vec<u8>); 3] {
    [
        (UDP, udp(4000, 53), udp(4000, 54)),
        (TCP, tcp(4000, 80, TCP_SYN), tcp(4000, 81, TCP_SYN)),
        (SCTP, sctp(4000, 80, 1), sctp(4000, 81, 1)),
    ]
}

#[test]
fn t2_in_every_order_what_follows_the_first_passes_and_nothing_else() {
    let world = world(ALLOWING, ALLOWING);
    for number in 2..=8 {
        for order in orders(number) {
            // All pairs of families and directions up to five pieces; of more, the longest datagrams of one.
            for (ends, to_pod) in
                [(TO_POD[0], true), (TO_POD[1], true), (FROM_POD[0], false), (FROM_POD[1], false)]
            {
                if number > 5 && (!to_pod || !ends.0.is_v4()) {
                    continue;
                }
                world.flows.borrow_mut().clear();
                let all = pieces(ends, UDP, 9, &udp(4000, 53), u16::try_from(number).unwrap());
                let mut first_passed = false;
                for index in &order {
                    let verdict =
                        if to_pod { world.to_pod(&all[*index]) } else { world.by_pod(&all[*index]) };
                    first_passed |= *index == 0;
                    match (*index, first_passed) {
                        (0, _) => allows(verdict, Reason::Rule),
                        (_, true) => allows(verdict, Reason::Flow),
                        (_, false) => denies(verdict, Reason::FragmentAhead),
                    }
                }
                let whole = order[0] == 0;
                let left = world.flow_count() - 1;
                assert_eq!(left, usize::from(!whole), "{order:?}: a whole datagram is forgotten");
            }
        }
    }
}

#[test]
fn t2_no_piece_of_a_denied_datagram_passes() {
    for (ends, to_pod) in [(TO_POD[0], true), (TO_POD[1], true), (FROM_POD[0], false), (FROM_POD[1], false)] {
        for (protocol, allowed, denied) in headers() {
            for order in orders(4) {
                let world = world(ALLOWING, ALLOWING);
                for index in order {
                    let all = pieces(ends, protocol, 9, &denied, 4);
                    let verdict = if to_pod { world.to_pod(&all[index]) } else { world.by_pod(&all[index]) };
                    assert_eq!(verdict.action, Action::Deny, "{protocol}");
                }
                assert_eq!(world.flow_count(), 0, "T11: what is denied leaves nothing");
                // Nor does it take one along that was allowed, with another identification.
                for (index, bytes) in pieces(ends, protocol, 10, &allowed, 2).iter().enumerate() {
                    let verdict = if to_pod { world.to_pod(bytes) } else { world.by_pod(bytes) };
                    assert_eq!(verdict.action, Action::Allow, "{protocol} {index}");
                }
            }
        }
    }
}

/// A world towards whose pod the first piece of a datagram with identification 9 has passed.
fn begun(ends: (Addr, Addr)) -> World {
    let world = world(ALLOWING, ALLOWING);
    allows(world.to_pod(&pieces(ends, UDP, 9, &udp(4000, 53), 3)[0]), Reason::Rule);
    world
}

#[test]
fn t2_only_the_same_datagram_rides_on_its_first() {
    for ends in TO_POD {
        let other = if ends.0.is_v4() { Addr::v4([10, 0, 0, 77]) } else { crate::testing::LINK_LOCAL };
        let cases = [
            ("another identification", piece(ends, UDP, 10, 3, true, &[0; 24])),
            ("another protocol", piece(ends, TCP, 9, 3, true, &[0; 24])),
            ("another source", piece((other, ends.1), UDP, 9, 3, true, &[0; 24])),
        ];
        for (what, bytes) in cases {
            let verdict = begun(ends).to_pod(&bytes);
            assert_eq!((verdict.action, verdict.reason), (Action::Deny, Reason::FragmentAhead), "{what}");
        }
        if !ends.0.is_v4() {
            let mut bytes = piece(ends, UDP, 9, 3, true, &[0; 24]);
            bytes[44] = 1;
            let verdict = begun(ends).to_pod(&bytes);
            assert_eq!(
                (verdict.action, verdict.reason),
                (Action::Deny, Reason::FragmentAhead),
                "the upper half"
            );
        }
        let back = (ends.1, ends.0);
        denies(begun(ends).by_pod(&piece(back, UDP, 9, 3, true, &[0; 24])), Reason::FragmentAhead);
        for (offset, more) in [(2, true), (2, false), (1, false)] {
            let verdict = begun(ends).to_pod(&piece(ends, UDP, 9, offset, more, &[0; 24]));
            assert_eq!(
                (verdict.action, verdict.reason),
                (Action::Deny, Reason::Fragment),
                "overlap at {offset}"
            );
        }
        allows(begun(ends).to_pod(&piece(ends, UDP, 9, 3, true, &[0; 24])), Reason::Flow);
    }
}

#[test]
fn a_datagram_is_forgotten_in_time() {
    for ends in TO_POD {
        let world = begun(ends);
        world.now.set(world.now.get() + FRAGMENT_SECONDS);
        allows(world.to_pod(&piece(ends, UDP, 9, 3, true, &[0; 24])), Reason::Flow);
        world.now.set(world.now.get() + 1);
        denies(world.to_pod(&piece(ends, UDP, 9, 6, true, &[0; 24])), Reason::FragmentAhead);
    }
}

#[test]
fn s29_the_rest_of_a_datagram_follows_the_policies_that_are_in_force() {
    for ends in TO_POD {
        let mut world = begun(ends);
        world.endpoint.generation += 1;
        allows(world.to_pod(&piece(ends, UDP, 9, 3, true, &[0; 24])), Reason::Flow);
        (world.endpoint.ingress, world.endpoint.generation) = (ISOLATING, world.endpoint.generation + 1);
        denies(world.to_pod(&piece(ends, UDP, 9, 6, true, &[0; 24])), Reason::Isolated);
    }
}

#[test]
fn s28_pieces_of_an_answer_pass() {
    for (ends, back) in TO_POD.into_iter().zip(FROM_POD) {
        let world = world(closed(), ALLOWING);
        allows(world.by_pod(&piece(back, UDP, 1, 0, true, &pad(&udp(4000, 53)))), Reason::Rule);
        for bytes in pieces(ends, UDP, 2, &udp(53, 4000), 4) {
            allows(world.to_pod(&bytes), Reason::Flow);
        }
        denies(world.to_pod(&piece(ends, UDP, 3, 0, true, &pad(&udp(53, 4001)))), Reason::InvalidClosed);
    }
}

#[test]
fn an_open_direction_passes_pieces_and_makes_flows_of_firsts_only() {
    for ends in TO_POD {
        let world = world(open(), open());
        let all = pieces(ends, UDP, 9, &udp(4000, 53), 3);
        allows(world.to_pod(&all[1]), Reason::UnreadableOpen);
        allows(world.to_pod(&all[0]), Reason::NotIsolated);
        allows(world.to_pod(&all[1]), Reason::Flow);
        allows(world.to_pod(&all[2]), Reason::Flow);
        assert_eq!(world.flow_count(), 1);
    }
}

#[test]
fn pieces_to_a_group_are_judged_one_by_one() {
    let group = (PEER4, Addr::v4([224, 0, 0, 251]));
    let world = world(ALLOWING, ALLOWING);
    let all = pieces(group, UDP, 9, &udp(4000, 53), 2);
    allows(world.to_pod(&all[0]), Reason::Rule);
    denies(world.to_pod(&all[1]), Reason::FragmentAhead);
    assert_eq!(world.flow_count(), 0);
}

#[test]
fn t9_pieces_open_nothing_by_themselves() {
    for ends in TO_POD {
        let world = world(ALLOWING, ALLOWING);
        allows(world.to_pod(&piece(ends, TCP, 9, 0, true, &pad(&tcp(4000, 80, TCP_ACK)))), Reason::Rule);
        allows(world.to_pod(&piece(ends, TCP, 9, 3, false, &[0; 24])), Reason::Rule);
        assert_eq!(world.flow_count(), 0, "neither a flow nor a datagram is left");
    }
}

#[test]
fn t6_discovery_in_pieces_or_behind_headers_does_not_always_pass() {
    let hidden = |kind| {
        let mut payload = std::vec![ICMPV6, 0, 1, 4, 0, 0, 0, 0];
        payload.extend(crate::testing::neighbour(kind, POD6));
        crate::testing::ipv6_with(60, 255, (POD6, PEER6), &payload)
    };
    denies(world(ISOLATING, ISOLATING).by_pod(&hidden(136)), Reason::ExtensionHeader);
    allows(world(open(), open()).by_pod(&hidden(136)), Reason::UnreadableOpen);
    denies(world(open(), open()).by_pod(&hidden(134)), Reason::RouterAdvertisement);
}

fn pad(header: &[u8]) -> Vec<u8> {
    let mut bytes = header.to_vec();
    bytes.resize(24, 0);
    bytes
}
