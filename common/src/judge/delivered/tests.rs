//! Services: what waits at the pod, and what is decided where it is delivered.

use std::vec::Vec;

use super::*;
use crate::addr::Addr;
use crate::flow::SERVICE_REPLY_SECONDS;
use crate::judge::tests::{allows, denies, world};
use crate::judge::{Delivery, judge};
use crate::packet::{ICMP, Link, TCP, TCP_ACK, TCP_SYN, UDP, parse};
use crate::testing::{PEER4, POD4, World, icmp, ip, ipv4_with, tcp, udp};
use crate::wire::{CLASS_CLAIMED, CLASS_VIRTUAL, FLOW_DELIVERED, MARK_SLOT, RULESET_EGRESS};

const VIRTUAL: Addr = Addr::v4([10, 96, 0, 1]);
const BACKEND: Addr = PEER4;
const OUTSIDE: Addr = Addr::v4([192, 0, 2, 1]);
const NODE: Addr = Addr::v4([172, 16, 0, 1]);
const EGRESS: u16 = crate::judge::tests::ALLOWING;

/// A pod that may send to TCP/80 and UDP/53, a Service, and a backend that some selector here matches.
fn services() -> World {
    let mut world = world(crate::judge::tests::open(), EGRESS);
    if let Some(ruleset) = world.rulesets.get_mut(&EGRESS.into()) {
        ruleset.flags = RULESET_EGRESS;
    }
    world.set_class(VIRTUAL, CLASS_VIRTUAL);
    world.set_class(BACKEND, 5);
    world.delivers.set(true);
    world
}

fn syn(to: Addr, port: u16) -> Vec<u8> {
    ip(TCP, (POD4, to), &tcp(4000, port, TCP_SYN))
}

/// Judges at the pod, and keeps what it worked on.
fn sent(world: &World, work: &mut Work, bytes: &[u8]) -> Verdict {
    parse(&bytes, Link::Ip, &mut work.packet);
    judge(world, &bytes, work, At { slot: 0, direction: Direction::Egress, origin: Origin::OwnInterface })
}

fn arrived(world: &World, work: &mut Work, bytes: &[u8]) -> Verdict {
    parse(&bytes, Link::Ip, &mut work.packet);
    delivered(world, &bytes, work, 0)
}

#[test]
fn what_goes_to_a_virtual_address_waits_and_all_of_it_is_judged_where_it_is_delivered() {
    let world = services();
    // No rule allows this port; what its target port is, nobody knows here.
    let first = world.by_pod(&syn(VIRTUAL, 443));
    allows(first, Reason::Service);
    assert_eq!((first.delivery, first.news), (Delivery::Waits, News::None));
    let next = world.by_pod(&ip(TCP, (POD4, VIRTUAL), &tcp(4000, 443, TCP_ACK)));
    allows(next, Reason::Flow);
    assert_eq!(next.delivery, Delivery::Again);
    assert!(world.flows.borrow().values().all(|entry| entry.tag & FLOW_DELIVERED != 0));
}

#[test]
fn what_goes_to_a_pod_is_judged_once_and_what_goes_elsewhere_twice() {
    let world = services();
    for (to, delivery) in [(BACKEND, Delivery::Done), (OUTSIDE, Delivery::Again)] {
        for header in [tcp(4000, 80, TCP_SYN), tcp(4000, 80, TCP_ACK)] {
            let verdict = world.by_pod(&ip(TCP, (POD4, to), &header));
            assert_eq!((verdict.action, verdict.delivery), (Action::Allow, delivery), "{to:?}");
        }
        let denied = world.by_pod(&syn(to, 81));
        denies(denied, Reason::Isolated);
        assert_eq!(denied.delivery, Delivery::Done);
    }
}

#[test]
fn where_nothing_delivers_a_virtual_address_is_denied() {
    let world = services();
    world.delivers.set(false);
    denies(world.by_pod(&syn(VIRTUAL, 80)), Reason::ServiceNotResolved);
    let outside = world.by_pod(&syn(OUTSIDE, 80));
    allows(outside, Reason::Rule);
    assert_eq!(outside.delivery, Delivery::Done);
}

#[test]
fn an_echo_to_a_virtual_address_is_nothing_that_is_translated() {
    denies(services().by_pod(&ip(ICMP, (POD4, VIRTUAL), &icmp(8, 1))), Reason::ServiceNotResolved);
}

#[test]
fn an_endpoint_that_the_mark_has_no_room_for_sends_only_to_pods() {
    let mut world = services();
    for (slot, virtual_passes) in [(MARK_SLOT, true), (MARK_SLOT + 1, false)] {
        world.slot = slot;
        let passes = |to| world.by_pod(&syn(to, 80)).action == Action::Allow;
        assert_eq!(
            (passes(VIRTUAL), passes(OUTSIDE), passes(BACKEND)),
            (virtual_passes, virtual_passes, true)
        );
    }
}

#[test]
fn a_pod_that_the_mark_has_no_room_for_answers_itself_by_its_policies_and_under_no_other_ones_name() {
    let mut world = services();
    world.slot = MARK_SLOT + 1;
    let request = ip(TCP, (NODE, POD4), &tcp(61_000, 8080, TCP_SYN));
    allows(world.judge(Direction::Ingress, Origin::OwnInterface, &request), Reason::SelfTraffic);
    denies(world.by_pod(&ip(TCP, (POD4, NODE), &tcp(8080, 61_000, TCP_SYN | TCP_ACK))), Reason::Isolated);
    world.endpoint.egress = crate::judge::tests::open();
    let answer = world.by_pod(&ip(TCP, (POD4, NODE), &tcp(8080, 61_000, TCP_SYN | TCP_ACK)));
    assert_eq!((answer.action, answer.delivery), (Action::Allow, Delivery::Done));
}

#[test]
fn a_node_port_waits_and_behind_its_translation_the_node_is_the_node() {
    let mut world = services();
    world.node_ports.insert((NODE, TCP, 80));
    world.node_ports.insert((NODE, TCP, 443));
    let mut work = Work::EMPTY;
    for port in [80, 443] {
        let first = sent(&world, &mut work, &syn(NODE, port));
        allows(first, Reason::Service);
        assert_eq!(first.delivery, Delivery::Waits);
    }
    denies(sent(&world, &mut work, &syn(NODE, 81)), Reason::Isolated);
    // Nobody translated it: the rules say what they say of the node.
    allows(arrived(&world, &mut work, &syn(NODE, 80)), Reason::Rule);
    denies(arrived(&world, &mut work, &syn(NODE, 443)), Reason::Isolated);
    // Towards the pod the node's port is nobody's door.
    world.endpoint.ingress = EGRESS;
    let back = ip(TCP, (NODE, POD4), &tcp(443, 9, TCP_SYN));
    denies(world.judge(Direction::Ingress, Origin::Forwarded, &back), Reason::Isolated);
    // Without room in the mark, and where nothing delivers.
    world.slot = MARK_SLOT + 1;
    denies(world.by_pod(&syn(NODE, 443)), Reason::Isolated);
    world.slot = 0;
    world.delivers.set(false);
    denies(world.by_pod(&syn(NODE, 443)), Reason::Isolated);
    world.delivers.set(true);
    world.endpoint.egress = crate::wire::RULESET_CLOSED.try_into().unwrap();
    denies(world.by_pod(&ip(TCP, (POD4, NODE), &tcp(4_444, 443, TCP_SYN))), Reason::InvalidClosed);
}

#[test]
fn a_pod_reaches_itself_through_a_service_whatever_isolates_it() {
    for egress in [crate::judge::tests::open(), EGRESS] {
        let mut world = services();
        world.endpoint.ingress = EGRESS;
        world.endpoint.egress = egress;
        let request = ip(TCP, (NODE, POD4), &tcp(61_000, 8080, TCP_SYN));
        denies(world.judge(Direction::Ingress, Origin::Forwarded, &request), Reason::Isolated);
        allows(world.judge(Direction::Ingress, Origin::OwnInterface, &request), Reason::SelfTraffic);
        allows(world.by_pod(&ip(TCP, (POD4, NODE), &tcp(8080, 61_000, TCP_SYN | TCP_ACK))), Reason::Flow);
    }
}

#[test]
fn the_destination_that_was_chosen_decides() {
    let world = services();
    let mut work = Work::EMPTY;
    allows(arrived(&world, &mut work, &syn(BACKEND, 80)), Reason::Rule);
    denies(arrived(&world, &mut work, &syn(BACKEND, 81)), Reason::Isolated);
    // Whatever the source is by now.
    allows(arrived(&world, &mut work, &ip(TCP, (NODE, BACKEND), &tcp(61_000, 80, TCP_ACK))), Reason::Rule);
    denies(arrived(&world, &mut work, &syn(VIRTUAL, 80)), Reason::ServiceNotResolved);
    // And what cannot be read does not.
    denies(arrived(&world, &mut work, &syn(BACKEND, 80)[..30]), Reason::Truncated);
}

#[test]
fn a_flow_whose_backend_is_denied_is_forgotten() {
    let world = services();
    let mut work = Work::EMPTY;
    allows(sent(&world, &mut work, &syn(VIRTUAL, 443)), Reason::Service);
    assert_eq!(world.flow_count(), 1);
    // Another one's packet, by its source port: the flow stays.
    denies(arrived(&world, &mut work, &ip(TCP, (POD4, BACKEND), &tcp(4001, 81, TCP_SYN))), Reason::Isolated);
    assert_eq!(world.flow_count(), 1);
    denies(arrived(&world, &mut work, &syn(BACKEND, 81)), Reason::Isolated);
    assert_eq!(world.flow_count(), 0);
}

#[test]
fn later_fragments_have_the_ports_of_their_first_there_too() {
    let world = services();
    let mut work = Work::EMPTY;
    let first = |port| {
        let mut payload = udp(61_000, port);
        payload.extend([0; 40]);
        ipv4_with(&[], 0x2000, UDP, (NODE, BACKEND), &payload)
    };
    let later = ipv4_with(&[], 6, UDP, (NODE, BACKEND), &[0; 8]);
    denies(arrived(&world, &mut work, &later), Reason::FragmentAhead);
    denies(arrived(&world, &mut work, &first(54)), Reason::Isolated);
    denies(arrived(&world, &mut work, &later), Reason::FragmentAhead);
    allows(arrived(&world, &mut work, &first(53)), Reason::Rule);
    allows(arrived(&world, &mut work, &later), Reason::Rule);
}

#[test]
fn an_error_is_judged_by_the_flow_that_it_is_about() {
    let world = services();
    let mut work = Work::EMPTY;
    for (port, passes) in [(80, true), (81, false)] {
        let mut error = icmp(3, 0);
        error.extend(ip(TCP, (BACKEND, POD4), &tcp(port, 4000, TCP_ACK)));
        let verdict = arrived(&world, &mut work, &ip(ICMP, (POD4, BACKEND), &error));
        assert_eq!(verdict.action == Action::Allow, passes, "{port}");
    }
    denies(arrived(&world, &mut work, &ip(ICMP, (POD4, BACKEND), &icmp(3, 0))), Reason::UnrelatedError);
}

#[test]
fn answers_pass_for_some_time_once_anything_has_changed_and_longer_if_the_pod_goes_on() {
    let mut world = services();
    world.endpoint.ingress = crate::judge::tests::ISOLATING;
    let out = ip(UDP, (POD4, VIRTUAL), &udp(4000, 443));
    let back = ip(UDP, (VIRTUAL, POD4), &udp(443, 4000));
    allows(world.by_pod(&out), Reason::Service);
    allows(world.to_pod(&back), Reason::Flow);
    world.epochs.set(1);
    // In doubt from here on; each answer comes in time for the flow itself.
    for _ in 0..=SERVICE_REPLY_SECONDS / 60 {
        allows(world.to_pod(&back), Reason::Flow);
        world.now.set(world.now.get() + 60);
    }
    denies(world.to_pod(&back), Reason::Isolated);
    // The pod goes on: whether it may is decided where that is delivered.
    let again = world.by_pod(&out);
    assert_eq!((again.action, again.delivery), (Action::Allow, Delivery::Again));
    allows(world.to_pod(&back), Reason::Flow);
}

#[test]
fn a_pod_that_a_service_chose_for_itself_is_reached_and_answers() {
    let mut world = services();
    world.endpoint.ingress = crate::judge::tests::ISOLATING;
    let request = ip(TCP, (NODE, POD4), &tcp(61_000, 8080, TCP_SYN));
    denies(world.to_pod(&request), Reason::Isolated);
    allows(world.judge(Direction::Ingress, Origin::Hairpin, &request), Reason::SelfTraffic);
    let answer = ip(TCP, (POD4, NODE), &tcp(8080, 61_000, TCP_SYN | TCP_ACK));
    let verdict = world.by_pod(&answer);
    allows(verdict, Reason::Flow);
    assert_eq!(verdict.delivery, Delivery::Again);
    // Nobody else goes on with it.
    denies(world.to_pod(&ip(TCP, (NODE, POD4), &tcp(61_000, 8080, TCP_ACK))), Reason::Isolated);
}

#[test]
fn what_a_pod_answers_itself_is_judged_if_it_goes_to_somebody_else() {
    let mut world = services();
    world.endpoint.ingress = crate::judge::tests::ISOLATING;
    // Through a Service that chose the pod, with the source that masquerading gave: a port of the node, or one that
    // somebody's NodePort has.
    let request = ip(UDP, (NODE, POD4), &udp(30_053, 8080));
    allows(world.judge(Direction::Ingress, Origin::Hairpin, &request), Reason::SelfTraffic);
    // Connection tracking has forgotten it by now, or never took it for an answer.
    let mut work = Work::EMPTY;
    let verdict = sent(&world, &mut work, &ip(UDP, (POD4, NODE), &udp(8080, 30_053)));
    allows(verdict, Reason::Flow);
    assert_eq!(verdict.delivery, Delivery::Again);
    denies(arrived(&world, &mut work, &ip(UDP, (POD4, BACKEND), &udp(8080, 5353))), Reason::Isolated);
    // Where nobody judges what is delivered, it is judged at the pod.
    allows(world.judge(Direction::Ingress, Origin::Hairpin, &request), Reason::SelfTraffic);
    world.delivers.set(false);
    denies(world.by_pod(&ip(UDP, (POD4, NODE), &udp(8080, 30_053))), Reason::Isolated);
}

#[test]
fn a_pod_that_a_policy_isolates_goes_on_with_itself() {
    let mut world = services();
    // Open: it came back as anybody's.
    world.endpoint.ingress = crate::judge::tests::open();
    let request = |flags| ip(TCP, (NODE, POD4), &tcp(61_000, 8080, flags));
    let answer = ip(TCP, (POD4, NODE), &tcp(8080, 61_000, TCP_ACK));
    allows(world.to_pod(&request(TCP_SYN)), Reason::NotIsolated);
    world.endpoint.ingress = crate::judge::tests::ISOLATING;
    world.endpoint.generation += 1;
    allows(world.judge(Direction::Ingress, Origin::Hairpin, &request(TCP_ACK)), Reason::SelfTraffic);
    allows(world.by_pod(&answer), Reason::Flow);
}

#[test]
fn an_error_goes_to_nobody_but_the_peer_of_its_flow() {
    let world = services();
    allows(world.by_pod(&ip(UDP, (POD4, OUTSIDE), &udp(4000, 53))), Reason::Rule);
    let mut error = icmp(3, 0);
    error.extend(ip(UDP, (OUTSIDE, POD4), &udp(53, 4000)));
    allows(world.by_pod(&ip(ICMP, (POD4, OUTSIDE), &error)), Reason::RelatedError);
    // Somebody to whom nothing may go.
    let other = Addr::v4([198, 51, 100, 7]);
    denies(world.by_pod(&ip(ICMP, (POD4, other), &error)), Reason::UnrelatedError);
}

#[test]
fn t21_what_goes_to_a_pod_whose_address_a_service_claims_is_judged_twice() {
    let mut world = services();
    world.set_class(BACKEND, 5 | CLASS_CLAIMED);
    let verdict = world.by_pod(&syn(BACKEND, 80));
    assert_eq!((verdict.action, verdict.delivery), (Action::Allow, Delivery::Again));
    denies(world.by_pod(&syn(BACKEND, 81)), Reason::Isolated);
    // Nobody translated it.
    let mut work = Work::EMPTY;
    allows(arrived(&world, &mut work, &syn(BACKEND, 80)), Reason::Rule);
}
