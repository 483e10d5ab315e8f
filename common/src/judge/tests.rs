//! The whole way of a packet, in memory: what always passes, what policies decide, and what flows remember.

use std::vec::Vec;

use super::*;
use crate::flow::{CLOSING_SECONDS, STATE_ESTABLISHED, UDP_ANSWERED_SECONDS, UDP_OPENING_SECONDS};
use crate::packet::{ICMP, ICMPV6, Link, SCTP, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, UDP};
use crate::testing::{
    LINK_LOCAL, PEER4, PEER6, POD4, POD6, Rng, TestRule, World, ethernet, icmp, ip, ipv4, ipv6_with,
    neighbour, sctp, some_packet, tcp, udp,
};
use crate::wire::ENDPOINT_MAC;
use crate::wire::{
    ACTION_ALLOW, ACTION_AUDIT, ACTION_DENY, KIND_ISOLATION, KIND_RULE, RULESET_CLOSED, Rule, port_position,
};

pub(super) const ALLOWING: u16 = 20;
pub(super) const ISOLATING: u16 = 21;
/// As [`ISOLATING`], by policies in audit mode.
const AUDITING: u16 = 22;
const TO_POD: (Addr, Addr) = (PEER4, POD4);
const FROM_POD: (Addr, Addr) = (POD4, PEER4);

fn rule(action: u8, kind: u8, counter: u32) -> TestRule {
    TestRule { peers: None, ports: None, rule: Rule { counter, action, kind, tier: 1, reserved: 0 } }
}

/// A pod whose directions have these rulesets: open, closed, [`ISOLATING`] (nothing may come), or [`ALLOWING`]
/// (TCP/80, UDP/53, SCTP/80 and ICMP may, then nothing).
pub(super) fn world(ingress: u16, egress: u16) -> World {
    let mut world = World::new();
    let isolation = rule(ACTION_DENY, KIND_ISOLATION, 1);
    let port = |protocol, port| (port_position(protocol, port), port_position(protocol, port));
    let ports = std::vec![port(TCP, 80), port(UDP, 53), port(SCTP, 80), port(ICMP, 0), port(ICMPV6, 0)];
    let allowing = TestRule { ports: Some(ports), ..rule(ACTION_ALLOW, KIND_RULE, 2) };
    world.set_ruleset(ISOLATING.into(), 0, std::slice::from_ref(&isolation), RULESET_OPEN);
    let audit = rule(ACTION_AUDIT, KIND_ISOLATION, 3);
    world.set_ruleset(AUDITING.into(), RULESET_AUDIT, std::slice::from_ref(&audit), RULESET_OPEN);
    world.set_ruleset(ALLOWING.into(), 0, &[allowing, isolation], RULESET_OPEN);
    (world.endpoint.ingress, world.endpoint.egress) = (ingress, egress);
    world
}

fn short(id: u32) -> u16 {
    u16::try_from(id).unwrap()
}

pub(super) fn open() -> u16 {
    short(RULESET_OPEN)
}

pub(super) fn closed() -> u16 {
    short(RULESET_CLOSED)
}

#[track_caller]
pub(super) fn allows(verdict: Verdict, reason: Reason) {
    assert_eq!((verdict.action, verdict.reason), (Action::Allow, reason));
}

#[track_caller]
pub(super) fn denies(verdict: Verdict, reason: Reason) {
    assert_eq!((verdict.action, verdict.reason), (Action::Deny, reason));
}

fn syn_to_pod() -> Vec<u8> {
    ip(TCP, TO_POD, &tcp(4000, 80, TCP_SYN))
}

#[test]
fn a_slot_that_holds_no_endpoint_closes() {
    let mut world = world(open(), open());
    world.config.flags = 0;
    denies(world.to_pod(&syn_to_pod()), Reason::UnknownEndpoint);
    let bytes = syn_to_pod();
    let mut work = Work::EMPTY;
    let at = At { slot: 1, direction: Direction::Ingress, origin: Origin::Forwarded };
    denies(judge(&world, &&bytes[..], &mut work, at), Reason::UnknownEndpoint);
}

#[test]
fn rules_decide_and_are_named() {
    let world = world(ALLOWING, ALLOWING);
    let verdict = world.to_pod(&syn_to_pod());
    assert_eq!(
        verdict,
        Verdict {
            action: Action::Allow,
            audited: false,
            reason: Reason::Rule,
            counter: 2,
            news: News::Event,
            delivery: Delivery::Done
        }
    );
    let verdict = world.to_pod(&ip(TCP, TO_POD, &tcp(4000, 81, TCP_SYN)));
    assert_eq!(
        verdict,
        Verdict {
            action: Action::Deny,
            audited: false,
            reason: Reason::Isolated,
            counter: 1,
            news: News::Event,
            delivery: Delivery::Done
        }
    );
    allows(world.to_pod(&ip(SCTP, TO_POD, &sctp(4000, 80, 1))), Reason::Rule);
    allows(world.to_pod(&ip(UDP, (PEER6, POD6), &udp(4000, 53))), Reason::Rule);
    allows(world.by_pod(&ip(ICMP, FROM_POD, &icmp(8, 80))), Reason::Rule);
    denies(world.by_pod(&ip(47, FROM_POD, &[0; 8])), Reason::Isolated);
}

#[test]
fn directions_have_rulesets_of_their_own() {
    allows(world(open(), ISOLATING).to_pod(&syn_to_pod()), Reason::NotIsolated);
    denies(world(ISOLATING, open()).to_pod(&syn_to_pod()), Reason::Isolated);
    denies(world(closed(), open()).to_pod(&syn_to_pod()), Reason::InvalidClosed);
    denies(world(99, open()).to_pod(&syn_to_pod()), Reason::TablesUnreadable);
}

#[test]
fn an_answer_passes_where_the_opening_did() {
    for (protocol, ends) in [(TCP, FROM_POD), (UDP, FROM_POD), (SCTP, FROM_POD), (TCP, (POD6, PEER6))] {
        let header = |from: u16, to: u16, opening: bool| match protocol {
            TCP => tcp(from, to, if opening { TCP_SYN } else { TCP_SYN | TCP_ACK }),
            UDP => udp(from, to),
            _ => sctp(from, to, if opening { 1 } else { 2 }),
        };
        let answer = ip(protocol, (ends.1, ends.0), &header(9999, 4000, false));
        let world = world(ISOLATING, open());
        denies(world.to_pod(&answer), Reason::Isolated);
        allows(world.by_pod(&ip(protocol, ends, &header(4000, 9999, true))), Reason::NotIsolated);
        let verdict = world.to_pod(&answer);
        allows(verdict, Reason::Flow);
        assert_eq!(verdict.news, News::None);
        // Another port, another peer: no answer.
        denies(world.to_pod(&ip(protocol, (ends.1, ends.0), &header(9998, 4000, false))), Reason::Isolated);
        denies(world.to_pod(&ip(protocol, (ends.1, ends.0), &header(9999, 4001, false))), Reason::Isolated);
    }
}

#[test]
fn only_an_opening_packet_makes_a_flow() {
    for flags in 0..=u8::MAX {
        let world = world(ISOLATING, open());
        allows(world.by_pod(&ip(TCP, FROM_POD, &tcp(4000, 80, flags))), Reason::NotIsolated);
        let opens = flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN) == TCP_SYN;
        assert_eq!(world.flow_count(), usize::from(opens), "flags {flags:#x}");
    }
    let world = world(open(), open());
    for bytes in [
        ip(ICMP, FROM_POD, &icmp(0, 1)),
        ip(ICMP, FROM_POD, &icmp(13, 1)),
        ip(ICMPV6, (POD6, PEER6), &icmp(129, 1)),
        ip(SCTP, FROM_POD, &sctp(1, 2, 0)),
    ] {
        allows(world.by_pod(&bytes), Reason::NotIsolated);
    }
    assert_eq!(world.flow_count(), 0);
}

#[test]
fn a_denied_packet_makes_none() {
    let world = world(ISOLATING, ISOLATING);
    denies(world.to_pod(&syn_to_pod()), Reason::Isolated);
    denies(world.by_pod(&ip(UDP, FROM_POD, &udp(4000, 53))), Reason::Isolated);
    assert_eq!(world.flow_count(), 0);
}

#[test]
fn a_syn_into_a_flow_is_judged_again() {
    let world = world(ISOLATING, open());
    allows(world.by_pod(&ip(TCP, FROM_POD, &tcp(4000, 80, TCP_SYN))), Reason::NotIsolated);
    denies(world.to_pod(&ip(TCP, TO_POD, &tcp(80, 4000, TCP_SYN))), Reason::Isolated);
}

#[test]
fn an_echo_request_is_no_answer_to_one() {
    for (protocol, ends, request, reply) in [(ICMP, FROM_POD, 8, 0), (ICMPV6, (POD6, PEER6), 128, 129)] {
        let back = (ends.1, ends.0);
        let world = world(ISOLATING, open());
        allows(world.by_pod(&ip(protocol, ends, &icmp(request, 77))), Reason::NotIsolated);
        allows(world.to_pod(&ip(protocol, back, &icmp(reply, 77))), Reason::Flow);
        denies(world.to_pod(&ip(protocol, back, &icmp(reply, 78))), Reason::Isolated);
        denies(world.to_pod(&ip(protocol, back, &icmp(request, 77))), Reason::Isolated);
        // Nor does it take the flow away.
        allows(world.to_pod(&ip(protocol, back, &icmp(reply, 77))), Reason::Flow);
        allows(world.by_pod(&ip(protocol, ends, &icmp(request, 77))), Reason::Flow);
    }
}

#[test]
fn two_who_ping_each_other_by_one_identifier_both_get_answers() {
    let world = world(ALLOWING, open());
    allows(world.by_pod(&ip(ICMP, FROM_POD, &icmp(8, 77))), Reason::NotIsolated);
    allows(world.to_pod(&ip(ICMP, TO_POD, &icmp(8, 77))), Reason::Rule);
    allows(world.to_pod(&ip(ICMP, TO_POD, &icmp(0, 77))), Reason::Flow);
    allows(world.by_pod(&ip(ICMP, FROM_POD, &icmp(0, 77))), Reason::Flow);
}

/// A TCP connection to port 80 of the pod, established.
fn established(world: &World) {
    world.to_pod(&syn_to_pod());
    allows(world.by_pod(&ip(TCP, FROM_POD, &tcp(80, 4000, TCP_SYN | TCP_ACK))), Reason::Flow);
    allows(world.to_pod(&ip(TCP, TO_POD, &tcp(4000, 80, TCP_ACK))), Reason::Flow);
    assert!(world.flows.borrow().values().all(|flow| flow.state == STATE_ESTABLISHED));
}

#[test]
fn a_flow_that_new_policies_still_allow_goes_on() {
    for change in 0..3 {
        let mut world = world(open(), ISOLATING);
        established(&world);
        world.endpoint.ingress = ALLOWING;
        match change {
            0 => world.endpoint.generation += 1,
            1 => world.epochs.set(1),
            _ => world.prefix_epoch.set(1),
        }
        allows(world.by_pod(&ip(TCP, FROM_POD, &tcp(80, 4000, TCP_ACK))), Reason::Flow);
        allows(world.to_pod(&ip(TCP, TO_POD, &tcp(4000, 80, TCP_ACK))), Reason::Flow);
    }
}

#[test]
fn a_flow_that_new_policies_deny_ends_both_ways_and_lives_again_with_them() {
    let mut world = world(open(), ISOLATING);
    established(&world);
    (world.endpoint.ingress, world.endpoint.generation) = (ISOLATING, 2);
    denies(world.to_pod(&ip(TCP, TO_POD, &tcp(4000, 80, TCP_ACK))), Reason::Isolated);
    denies(world.by_pod(&ip(TCP, FROM_POD, &tcp(80, 4000, TCP_ACK))), Reason::Isolated);
    (world.endpoint.ingress, world.endpoint.generation) = (ALLOWING, 3);
    allows(world.to_pod(&ip(TCP, TO_POD, &tcp(4000, 80, TCP_ACK))), Reason::Flow);
}

#[test]
fn a_stale_flow_does_not_close_what_the_other_direction_allows() {
    // given: a flow that the pod opened
    let mut world = world(ALLOWING, open());
    let from_pod = ip(UDP, FROM_POD, &udp(53, 4000));
    allows(world.by_pod(&from_pod), Reason::NotIsolated);
    // when: it may no longer
    (world.endpoint.egress, world.endpoint.generation) = (ISOLATING, 2);
    denies(world.by_pod(&from_pod), Reason::Isolated);
    // then: the peer may still ask, and is answered
    allows(world.to_pod(&ip(UDP, TO_POD, &udp(4000, 53))), Reason::Rule);
    allows(world.by_pod(&from_pod), Reason::Flow);
}

#[test]
fn a_flow_ends_with_its_time() {
    let world = world(ISOLATING, open());
    let (ask, answer) = (ip(UDP, FROM_POD, &udp(4000, 9999)), ip(UDP, TO_POD, &udp(9999, 4000)));
    world.by_pod(&ask);
    world.now.set(world.now.get() + UDP_OPENING_SECONDS);
    allows(world.to_pod(&answer), Reason::Flow);
    world.now.set(world.now.get() + UDP_ANSWERED_SECONDS);
    allows(world.to_pod(&answer), Reason::Flow);
    world.now.set(world.now.get() + UDP_ANSWERED_SECONDS + 1);
    denies(world.to_pod(&answer), Reason::Isolated);
}

#[test]
fn a_closed_connection_ends_sooner() {
    let world = world(ALLOWING, ISOLATING);
    established(&world);
    allows(world.to_pod(&ip(TCP, TO_POD, &tcp(4000, 80, TCP_FIN | TCP_ACK))), Reason::Flow);
    world.now.set(world.now.get() + CLOSING_SECONDS);
    allows(world.by_pod(&ip(TCP, FROM_POD, &tcp(80, 4000, TCP_ACK))), Reason::Flow);
    world.now.set(world.now.get() + CLOSING_SECONDS + 1);
    denies(world.by_pod(&ip(TCP, FROM_POD, &tcp(80, 4000, TCP_ACK))), Reason::Isolated);
}

#[test]
fn an_entry_of_another_flow_is_not_believed() {
    let world = world(ISOLATING, open());
    world.by_pod(&ip(UDP, FROM_POD, &udp(4000, 9999)));
    world.flows.borrow_mut().values_mut().for_each(|flow| flow.tag ^= 1 << 20);
    denies(world.to_pod(&ip(UDP, TO_POD, &udp(9999, 4000))), Reason::TablesUnreadable);
}

#[test]
fn the_own_node_always_comes_in_and_gets_its_answers() {
    let world = world(ISOLATING, ISOLATING);
    let answer = ip(TCP, FROM_POD, &tcp(80, 4000, TCP_SYN | TCP_ACK));
    denies(world.by_pod(&answer), Reason::Isolated);
    allows(world.judge(Direction::Ingress, Origin::OwnNode, &syn_to_pod()), Reason::OwnNode);
    allows(world.by_pod(&answer), Reason::Flow);
    // The same tuple from a device is somebody else's.
    denies(world.to_pod(&ip(TCP, TO_POD, &tcp(4000, 80, TCP_ACK))), Reason::Isolated);
    denies(world.to_pod(&syn_to_pod()), Reason::Isolated);
    // The pod opens nothing by it.
    denies(world.by_pod(&ip(TCP, FROM_POD, &tcp(80, 4000, TCP_SYN))), Reason::Isolated);
}

/// T6: a bridge believes every frame where its sender is; it must not see one that lies.
#[test]
fn a_frame_with_another_mac_address_is_forged_whatever_it_carries() {
    let world = world(open(), open());
    for frame in
        [ethernet(0x0800, &ip(TCP, FROM_POD, &tcp(80, 4000, TCP_SYN))), arp(POD4), ethernet(0x88cc, &[0; 46])]
    {
        let judged = world.judge_frame(Link::Ethernet, Direction::Egress, Origin::OtherStation, &frame);
        denies(judged, Reason::SpoofedSource);
        // What a bridge floods is not for this pod, and no news.
        let judged = world.judge_frame(Link::Ethernet, Direction::Ingress, Origin::OtherStation, &frame);
        denies(judged, Reason::OtherStation);
        assert_eq!(judged.news, News::None);
    }
    assert_eq!(world.flow_count(), 0);
}

#[test]
fn an_interface_that_may_be_anybodys_carries_neighbour_discovery_only() {
    let mut world = world(open(), open());
    world.config.flags |= ENDPOINT_QUARANTINED;
    world.config.addr_count = 0;
    let judge =
        |direction, frame: &[u8]| world.judge_frame(Link::Ethernet, direction, Origin::OwnInterface, frame);
    for direction in [Direction::Egress, Direction::Ingress] {
        allows(judge(direction, &arp(PEER4)), Reason::Discovery);
        for frame in [
            ethernet(0x0800, &syn_to_pod()),
            ethernet(0x0800, &ip(UDP, FROM_POD, &udp(68, 67))),
            ethernet(0x88cc, &[0; 46]),
            ethernet(0x0800, &[0; 3]),
        ] {
            denies(judge(direction, &frame), Reason::UnknownEndpoint);
        }
    }
    denies(world.judge(Direction::Ingress, Origin::OwnNode, &syn_to_pod()), Reason::UnknownEndpoint);
    assert_eq!(world.flow_count(), 0);
}

#[test]
fn a_pod_reaches_itself() {
    let world = world(ISOLATING, ISOLATING);
    for ends in [(POD4, POD4), (POD6, POD6)] {
        let bytes = ip(TCP, ends, &tcp(4000, 80, TCP_SYN));
        allows(world.by_pod(&bytes), Reason::SelfTraffic);
        allows(world.judge(Direction::Ingress, Origin::OwnInterface, &bytes), Reason::SelfTraffic);
        // From elsewhere with the pod's source it is forged.
        denies(world.to_pod(&bytes), Reason::Isolated);
    }
}

#[test]
fn a_pod_has_no_other_source_than_its_own() {
    let mut world = world(open(), open());
    for (ends, payload) in [
        ((PEER4, POD4), tcp(1, 2, TCP_SYN)),
        ((PEER4, PEER4), tcp(1, 2, TCP_ACK)),
        ((Addr::v4([0; 4]), PEER4), tcp(1, 2, TCP_SYN)),
        ((PEER6, PEER6), tcp(1, 2, TCP_SYN)),
        ((LINK_LOCAL, PEER6), tcp(1, 2, TCP_SYN)),
        ((Addr::UNSPECIFIED, PEER6), tcp(1, 2, TCP_SYN)),
    ] {
        denies(world.by_pod(&ip(TCP, ends, &payload)), Reason::SpoofedSource);
    }
    assert_eq!(world.flow_count(), 0);
    // Addresses beyond the count are none.
    world.config.addrs[2] = PEER4;
    denies(world.by_pod(&ip(TCP, (PEER4, POD4), &tcp(1, 2, TCP_SYN))), Reason::SpoofedSource);
    world.config.addr_count = 3;
    let other = Addr::v4([10, 0, 0, 3]);
    allows(world.by_pod(&ip(TCP, (PEER4, other), &tcp(1, 2, TCP_SYN))), Reason::NotIsolated);
}

#[test]
fn an_unbound_endpoint_is_still_isolated() {
    let mut world = world(open(), ISOLATING);
    world.config.flags |= ENDPOINT_UNBOUND;
    let other = Addr::v4([10, 9, 9, 9]);
    denies(world.by_pod(&ip(TCP, (other, PEER4), &tcp(1, 2, TCP_SYN))), Reason::Isolated);
    world.endpoint.egress = ALLOWING;
    allows(world.by_pod(&ip(TCP, (other, PEER4), &tcp(1, 80, TCP_SYN))), Reason::Rule);
}

#[test]
fn discovery_passes_where_all_is_closed() {
    let world = world(closed(), closed());
    let group = crate::testing::v6([0xff02, 0, 0, 0, 0, 0, 0, 0x16]);
    let ask = |src, target| ipv6_with(ICMPV6, 255, (src, group), &neighbour(135, target));
    let say = |src, target| ipv6_with(ICMPV6, 255, (src, group), &neighbour(136, target));
    let listen = |src| ipv6_with(ICMPV6, 1, (src, group), &icmp(143, 0));
    let dhcp = ipv4(UDP, (Addr::v4([0; 4]), Addr::v4([255; 4])), &udp(68, 67));
    for bytes in [
        ask(POD6, PEER6),
        ask(LINK_LOCAL, PEER6),
        ask(Addr::UNSPECIFIED, POD6),
        say(POD6, POD6),
        say(LINK_LOCAL, POD6),
        say(POD6, LINK_LOCAL),
        listen(LINK_LOCAL),
        listen(Addr::UNSPECIFIED),
        listen(POD6),
        dhcp,
    ] {
        allows(world.by_pod(&bytes), Reason::Discovery);
    }
    for bytes in [ask(PEER6, POD6), say(PEER6, PEER6), listen(LINK_LOCAL), listen(Addr::UNSPECIFIED)] {
        allows(world.to_pod(&bytes), Reason::Discovery);
    }
    let router = ipv6_with(ICMPV6, 255, (LINK_LOCAL, group), &neighbour(134, LINK_LOCAL));
    allows(world.to_pod(&router), Reason::Discovery);
    assert_eq!(world.flow_count(), 0);
}

#[test]
fn discovery_is_no_way_round_binding_and_policies() {
    let world = world(ISOLATING, ISOLATING);
    let discovery = |kind, hops, ends, target| ipv6_with(ICMPV6, hops, ends, &neighbour(kind, target));
    let from_pod = |kind, ends, target| world.by_pod(&discovery(kind, 255, ends, target));
    denies(from_pod(135, (PEER6, LINK_LOCAL), POD6), Reason::SpoofedSource);
    denies(from_pod(136, (PEER6, LINK_LOCAL), PEER6), Reason::SpoofedSource);
    denies(from_pod(136, (POD6, LINK_LOCAL), PEER6), Reason::SpoofedSource);
    denies(from_pod(134, (LINK_LOCAL, PEER6), LINK_LOCAL), Reason::RouterAdvertisement);
    denies(from_pod(134, (POD6, PEER6), POD6), Reason::RouterAdvertisement);
    denies(world.by_pod(&discovery(135, 64, (POD6, PEER6), PEER6)), Reason::BadHeader);
    denies(world.to_pod(&discovery(135, 254, (PEER6, POD6), POD6)), Reason::BadHeader);
    // Listener discovery that came through a router, or would go through one.
    denies(world.to_pod(&ipv6_with(ICMPV6, 1, (PEER6, POD6), &icmp(143, 0))), Reason::Isolated);
    denies(world.to_pod(&ipv6_with(ICMPV6, 64, (PEER6, POD6), &icmp(143, 0))), Reason::BadHeader);
    denies(world.by_pod(&ipv6_with(ICMPV6, 64, (POD6, PEER6), &icmp(143, 0))), Reason::BadHeader);
    // To one host in particular a pod reports nothing.
    denies(world.by_pod(&ipv6_with(ICMPV6, 1, (POD6, PEER6), &icmp(143, 0))), Reason::Isolated);
    let routers = crate::testing::v6([0xff02, 0, 0, 0, 0, 0, 0, 0x16]);
    allows(world.by_pod(&ipv6_with(ICMPV6, 1, (POD6, routers), &icmp(143, 0))), Reason::Discovery);
}

fn arp(sender: Addr) -> Vec<u8> {
    let mut body = std::vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2];
    body.extend(&sender.bytes[12..]);
    body.extend([0; 10]);
    ethernet(0x0806, &body)
}

#[test]
fn arp_tells_the_own_address_or_none() {
    let world = world(closed(), closed());
    let judge =
        |direction, sender| world.judge_frame(Link::Ethernet, direction, Origin::Forwarded, &arp(sender));
    allows(judge(Direction::Egress, POD4), Reason::Discovery);
    allows(judge(Direction::Egress, Addr::v4([0; 4])), Reason::Discovery);
    denies(judge(Direction::Egress, PEER4), Reason::SpoofedSource);
    allows(judge(Direction::Ingress, PEER4), Reason::Discovery);
}

#[test]
fn what_cannot_be_read_closes_from_pods_and_where_isolated() {
    let fragment = crate::testing::ipv4_with(&[], 0x2001, TCP, TO_POD, &tcp(1, 2, TCP_SYN));
    let from_pod = crate::testing::ipv4_with(&[], 0x2001, TCP, FROM_POD, &tcp(1, 2, TCP_SYN));
    let cut = &syn_to_pod()[..10];
    let vlan = ethernet(0x8100, &[0; 46]);
    let judge = |world: &World, direction, frame: &[u8]| {
        world.judge_frame(Link::Ethernet, direction, Origin::Forwarded, frame)
    };
    let isolated = world(ISOLATING, ISOLATING);
    denies(isolated.to_pod(&fragment), Reason::Fragment);
    denies(isolated.by_pod(&from_pod), Reason::Fragment);
    denies(isolated.to_pod(cut), Reason::Truncated);
    denies(judge(&isolated, Direction::Ingress, &vlan), Reason::NotIp);
    let open = world(open(), open());
    allows(open.to_pod(&fragment), Reason::UnreadableOpen);
    allows(open.by_pod(&from_pod), Reason::UnreadableOpen);
    allows(open.to_pod(cut), Reason::UnreadableOpen);
    allows(judge(&open, Direction::Ingress, &vlan), Reason::UnreadableOpen);
    // From a pod, open or not.
    denies(open.by_pod(cut), Reason::Truncated);
    denies(judge(&open, Direction::Egress, &vlan), Reason::NotIp);
}

/// An ICMP error between these ends about a packet.
fn error(ends: (Addr, Addr), about: &[u8]) -> Vec<u8> {
    let v4 = ends.0.is_v4();
    let mut message = icmp(if v4 { 3 } else { 1 }, 0);
    message.extend(about);
    ip(if v4 { ICMP } else { ICMPV6 }, ends, &message)
}

#[test]
fn an_error_passes_with_a_live_flow_inside() {
    let router = Addr::v4([10, 0, 0, 254]);
    let mut world = world(ISOLATING, open());
    let sent = ip(TCP, FROM_POD, &tcp(4000, 80, TCP_SYN));
    denies(world.to_pod(&error((router, POD4), &sent)), Reason::UnrelatedError);
    world.by_pod(&sent);
    allows(world.to_pod(&error((router, POD4), &sent)), Reason::RelatedError);
    // About another port, the other way round, and to another address of the pod than the flow's.
    let other = ip(TCP, FROM_POD, &tcp(4001, 80, TCP_SYN));
    denies(world.to_pod(&error((router, POD4), &other)), Reason::UnrelatedError);
    let turned = ip(TCP, TO_POD, &tcp(80, 4000, TCP_SYN));
    denies(world.to_pod(&error((router, POD4), &turned)), Reason::UnrelatedError);
    denies(world.to_pod(&error((PEER6, POD6), &sent)), Reason::UnrelatedError);
    assert_eq!(world.flow_count(), 1);
    // Not when the flow is no longer allowed, nor when its time is over.
    (world.endpoint.egress, world.endpoint.generation) = (ISOLATING, 2);
    denies(world.to_pod(&error((router, POD4), &sent)), Reason::UnrelatedError);
    (world.endpoint.egress, world.endpoint.generation) = (open(), 3);
    allows(world.to_pod(&error((router, POD4), &sent)), Reason::RelatedError);
    world.now.set(world.now.get() + 10_000);
    denies(world.to_pod(&error((router, POD4), &sent)), Reason::UnrelatedError);
}

#[test]
fn a_pod_tells_errors_about_what_it_got_only() {
    let world = world(open(), ISOLATING);
    let got = ip(UDP, TO_POD, &udp(4000, 9999));
    denies(world.by_pod(&error(FROM_POD, &got)), Reason::UnrelatedError);
    world.to_pod(&got);
    allows(world.by_pod(&error(FROM_POD, &got)), Reason::RelatedError);
    let six = ip(UDP, (PEER6, POD6), &udp(4000, 9999));
    denies(world.by_pod(&error((POD6, PEER6), &six)), Reason::UnrelatedError);
    world.to_pod(&six);
    allows(world.by_pod(&error((POD6, PEER6), &six)), Reason::RelatedError);
}

#[test]
fn t8_an_error_is_for_who_sent_what_it_is_about() {
    let second = Addr::v4([10, 0, 0, 9]);
    let mut world = world(ISOLATING, open());
    world.config.addrs[2] = second;
    world.config.addr_count = 3;
    let sent = ip(UDP, (second, PEER4), &udp(4000, 9999));
    world.by_pod(&sent);
    denies(world.to_pod(&error((PEER4, POD4), &sent)), Reason::UnrelatedError);
    allows(world.to_pod(&error((PEER4, second), &sent)), Reason::RelatedError);
}

#[test]
fn t6_discovery_that_a_router_would_forward_carries_nothing() {
    let world = world(open(), ISOLATING);
    let far = Addr::v6([0xfd, 0x99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    let group = Addr::v6([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let with = |kind, target, to, more: usize| {
        let mut message = neighbour(kind, target);
        message.extend(std::vec![1; more]);
        world.by_pod(&ipv6_with(ICMPV6, 255, (POD6, to), &message))
    };
    for to in [LINK_LOCAL, group] {
        allows(with(135, PEER6, to, 0), Reason::Discovery);
        allows(with(136, POD6, to, 8), Reason::Discovery);
    }
    allows(with(135, far, far, 8), Reason::Discovery);
    allows(with(136, POD6, far, 8), Reason::Discovery);
    denies(with(135, PEER6, far, 8), Reason::Isolated);
    denies(with(135, far, far, 16), Reason::Isolated);
    denies(with(136, POD6, far, 16), Reason::Isolated);
    denies(with(133, far, far, 0), Reason::Isolated);
    denies(with(137, far, far, 0), Reason::Isolated);
    assert_eq!(world.flow_count(), 0);
}

/// Rules of thumb that hold for every verdict.
fn holds(verdict: Verdict, what: &dyn core::fmt::Debug) {
    if verdict.reason != Reason::Rule {
        assert_eq!(verdict.action, verdict.reason.usual_action(), "{what:?}: {verdict:?}");
    }
    // A closed ruleset is invalid without a rule that says so.
    if verdict.reason != Reason::InvalidClosed {
        let by_rule = matches!(verdict.reason, Reason::Rule | Reason::Isolated);
        assert_eq!(verdict.counter != COUNTER_NONE, by_rule, "{what:?}: {verdict:?}");
    }
    if verdict.action == Action::Deny {
        assert_eq!(verdict.news, News::Event, "{what:?}: {verdict:?}");
    }
}

const OURS: [Addr; 4] = [POD4, PEER4, Addr::v4([0; 4]), Addr::v4([255; 4])];
const OURS6: [Addr; 4] = [POD6, PEER6, LINK_LOCAL, Addr::UNSPECIFIED];

#[test]
fn nothing_but_discovery_passes_a_closed_pod() {
    let mut rng = Rng::new(8);
    let world = world(closed(), closed());
    for _ in 0..100_000 {
        let bytes = some_packet(&mut rng, &OURS, &OURS6);
        let (to, from) = (world.to_pod(&bytes), world.by_pod(&bytes));
        holds(to, &bytes);
        holds(from, &bytes);
        assert!(to.action == Action::Deny || to.reason == Reason::Discovery, "{bytes:?}: {to:?}");
        let from_self = matches!(from.reason, Reason::Discovery | Reason::SelfTraffic);
        assert!(from.action == Action::Deny || from_self, "{bytes:?}: {from:?}");
    }
    assert_eq!(world.flow_count(), 0);
}

#[test]
fn every_verdict_has_its_reason_and_every_flow_was_allowed() {
    let mut rng = Rng::new(9);
    for _ in 0..200 {
        let rulesets = [open(), closed(), ISOLATING, ALLOWING];
        let mut world = world(rng.pick(&rulesets), rng.pick(&rulesets));
        for _ in 0..500 {
            let bytes = some_packet(&mut rng, &OURS, &OURS6);
            let before = world.flow_count();
            let (direction, origin) = if rng.one_in(2) {
                (Direction::Egress, Origin::OwnInterface)
            } else {
                let origin = rng.pick(&[Origin::Forwarded, Origin::OwnNode, Origin::OwnInterface]);
                (Direction::Ingress, origin)
            };
            let verdict = world.judge(direction, origin, &bytes);
            holds(verdict, &bytes);
            let made = world.flow_count() > before;
            assert!(!made || verdict.action == Action::Allow, "{bytes:?}: {verdict:?}");
            assert!(!made || verdict.news == News::Event, "{bytes:?}: {verdict:?}");
            world.now.set(world.now.get() + rng.below(20));
            if rng.one_in(20) {
                (world.endpoint.ingress, world.endpoint.egress) = (rng.pick(&rulesets), rng.pick(&rulesets));
                world.endpoint.generation += 1;
            }
        }
    }
}

/// Denied, and passes.
#[track_caller]
fn audits(verdict: Verdict, reason: Reason, counter: u32) {
    assert_eq!((verdict.action, verdict.audited), (Action::Deny, true), "{verdict:?}");
    assert_eq!((verdict.outcome(), verdict.reason, verdict.counter), (Outcome::Audit, reason, counter));
    assert_eq!(verdict.news, News::Event);
}

#[test]
fn what_only_audited_policies_deny_passes_and_is_told_once() {
    let world = world(AUDITING, AUDITING);
    audits(world.to_pod(&syn_to_pod()), Reason::Isolated, 3);
    // Its flow is made, so that the answer is not told as a denial of the other direction.
    allows(world.by_pod(&ip(TCP, FROM_POD, &tcp(80, 4000, TCP_SYN | TCP_ACK))), Reason::Flow);
    allows(world.to_pod(&ip(TCP, TO_POD, &tcp(4000, 80, TCP_ACK))), Reason::Flow);
    // What may open no flow makes none.
    audits(world.to_pod(&ip(TCP, TO_POD, &tcp(4001, 80, TCP_ACK))), Reason::Isolated, 3);
    assert_eq!(world.flows.borrow().len(), 1);
    // The other direction as well, and what isolation drops without asking a rule.
    audits(world.by_pod(&ip(TCP, FROM_POD, &tcp(5000, 443, TCP_SYN))), Reason::Isolated, 3);
    audits(world.to_pod(&ip(TCP, TO_POD, &[0; 4])), Reason::Truncated, COUNTER_NONE);
    // Source binding is no policy's.
    denies(world.by_pod(&ip(TCP, TO_POD, &tcp(1, 2, TCP_SYN))), Reason::SpoofedSource);
}

#[test]
fn a_policy_that_comes_to_be_enforced_cuts_what_audit_let_pass() {
    let mut world = world(AUDITING, open());
    world.to_pod(&syn_to_pod());
    allows(world.to_pod(&ip(TCP, TO_POD, &tcp(4000, 80, TCP_ACK))), Reason::Flow);
    (world.endpoint.ingress, world.endpoint.generation) = (ISOLATING, 2);
    let verdict = world.to_pod(&ip(TCP, TO_POD, &tcp(4000, 80, TCP_ACK)));
    assert_eq!((verdict.outcome(), verdict.reason), (Outcome::Deny, Reason::Isolated));
    // And back: told once, then it goes on.
    (world.endpoint.ingress, world.endpoint.generation) = (AUDITING, 3);
    audits(world.to_pod(&ip(TCP, TO_POD, &tcp(4000, 80, TCP_ACK))), Reason::Isolated, 3);
    allows(world.to_pod(&ip(TCP, TO_POD, &tcp(4000, 80, TCP_ACK))), Reason::Flow);
}

#[test]
fn a_node_in_audit_mode_drops_nothing_and_switches_at_once() {
    let world = world(ISOLATING, closed());
    world.audit.set(true);
    audits(world.to_pod(&syn_to_pod()), Reason::Isolated, 1);
    allows(world.by_pod(&ip(TCP, FROM_POD, &tcp(80, 4000, TCP_SYN | TCP_ACK))), Reason::Flow);
    audits(world.by_pod(&ip(TCP, FROM_POD, &tcp(5000, 443, TCP_SYN))), Reason::InvalidClosed, COUNTER_NONE);
    audits(world.by_pod(&ip(TCP, TO_POD, &tcp(1, 2, TCP_SYN))), Reason::SpoofedSource, COUNTER_NONE);
    audits(world.to_pod(&ip(TCP, TO_POD, &[0; 4])), Reason::Truncated, COUNTER_NONE);
    // Enforced again: mode and epoch change in one store.
    world.audit.set(false);
    world.prefix_epoch.set(1);
    for packet in [&syn_to_pod(), &ip(TCP, TO_POD, &tcp(4000, 80, TCP_ACK))] {
        assert_eq!(world.to_pod(packet).outcome(), Outcome::Deny);
    }
    let mut rng = Rng::new(11);
    world.audit.set(true);
    for _ in 0..20_000 {
        let bytes = some_packet(&mut rng, &OURS, &OURS6);
        for verdict in [world.to_pod(&bytes), world.by_pod(&bytes)] {
            assert_ne!(verdict.outcome(), Outcome::Deny, "{bytes:?}: {verdict:?}");
        }
    }
}

#[test]
fn t6_behind_a_bridge_a_pod_speaks_for_its_own_station_only() {
    const STATION: [u8; 6] = [0x0a, 0x58, 10, 1, 2, 3];
    const OTHER: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
    let own = Addr::v6([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x08, 0x58, 10, 0xff, 0xfe, 1, 2, 3]);
    let gateway = Addr::v6([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let group = Addr::v6([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let mut world = world(open(), open());
    let say = |kind, src, target, option: Option<(u8, [u8; 6])>| {
        let mut message = match kind {
            133 => icmp(133, 0),
            _ => neighbour(kind, target),
        };
        if let Some((kind, address)) = option {
            message.extend([kind, 1]);
            message.extend(address);
        }
        ipv6_with(ICMPV6, 255, (src, group), &message)
    };
    let cases = [
        (say(136, POD6, POD6, Some((2, STATION))), true),
        (say(136, own, own, Some((2, STATION))), true),
        (say(136, POD6, POD6, None), true),
        (say(135, POD6, PEER6, Some((1, STATION))), true),
        (say(135, own, gateway, Some((1, STATION))), true),
        (say(135, Addr::UNSPECIFIED, own, None), true),
        (say(133, own, own, Some((1, STATION))), true),
        // Its address elsewhere, the gateway's here, somebody's link-local as a source, a route of its own.
        (say(136, POD6, POD6, Some((2, OTHER))), false),
        (say(136, own, gateway, Some((2, STATION))), false),
        (say(136, own, gateway, None), false),
        (say(135, gateway, PEER6, Some((1, STATION))), false),
        (say(135, POD6, PEER6, Some((1, OTHER))), false),
        (say(133, own, own, Some((1, OTHER))), false),
        (say(137, own, PEER6, Some((2, STATION))), false),
        // An option without length ends nothing.
        ([say(136, POD6, POD6, None), std::vec![14, 0, 0, 0, 0, 0, 0, 0]].concat(), false),
    ];
    for (bytes, _) in cases.iter().filter(|(bytes, _)| bytes.len() < 100) {
        // Where every pod has a link of its own it hurts nobody.
        assert_eq!(world.by_pod(bytes).reason, Reason::Discovery, "{bytes:?}");
    }
    world.config.flags |= ENDPOINT_MAC;
    world.config.mac[..6].copy_from_slice(&STATION);
    for (bytes, passes) in &cases {
        let reason = if *passes { Reason::Discovery } else { Reason::SpoofedSource };
        assert_eq!(world.by_pod(bytes).reason, reason, "{bytes:?}");
    }
    let arp_of = |sender: [u8; 6]| {
        let mut frame = arp(POD4);
        frame[22..28].copy_from_slice(&sender);
        world.judge_frame(Link::Ethernet, Direction::Egress, Origin::OwnInterface, &frame)
    };
    allows(arp_of(STATION), Reason::Discovery);
    denies(arp_of(OTHER), Reason::SpoofedSource);
}
