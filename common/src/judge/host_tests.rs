//! Endpoints of the node's network: flows by the socket's own ends, loopback, and tuples that go from one socket to another.

use crate::addr::Addr;
use crate::event::{Direction, Reason};
use crate::judge::tests::{ALLOWING, ISOLATING, allows, denies, open, world};
use crate::judge::{At, Delivery, Origin, SocketEnds, Verdict, Work, judge};
use crate::packet::{Link, TCP, TCP_ACK, TCP_SYN, UDP, parse};
use crate::testing::{PEER4, World, ip, tcp, udp};
use crate::wire::{CLASS_VIRTUAL, ENDPOINT_HOST, ENDPOINT_UNBOUND};

const NODE: Addr = Addr::v4([192, 168, 50, 1]);
const LOOPBACK: Addr = Addr::v4([127, 0, 0, 1]);
const VIRTUAL: Addr = Addr::v4([10, 96, 0, 1]);
const OUTSIDE: Addr = Addr::v4([192, 0, 2, 1]);

/// A host that may take, and send to, TCP/80 and UDP/53 where a ruleset allows.
fn host(ingress: u16, egress: u16) -> World {
    let mut world = world(ingress, egress);
    world.config.flags |= ENDPOINT_HOST | ENDPOINT_UNBOUND;
    world.set_class(VIRTUAL, CLASS_VIRTUAL);
    world
}

fn asked(world: &World, direction: Direction, origin: Origin, ends: SocketEnds, bytes: &[u8]) -> Verdict {
    let mut work = Work { ends, ..Work::EMPTY };
    parse(&bytes, Link::Ip, &mut work.packet);
    judge(world, &bytes, &mut work, At { slot: 0, direction, origin })
}

fn sent(world: &World, ends: SocketEnds, bytes: &[u8]) -> Verdict {
    asked(world, Direction::Egress, Origin::Forwarded, ends, bytes)
}

fn ends(remote: Addr, remote_port: u16, local_port: u16) -> SocketEnds {
    SocketEnds { remote, remote_port, local_port, cookie: 0 }
}

#[test]
fn answers_find_the_flow_by_the_sockets_ends_whatever_translation_made_of_them() {
    let world = host(ISOLATING, ALLOWING);
    // To a Service; another source port than the socket's.
    let to_backend = ip(TCP, (NODE, PEER4), &tcp(61_000, 80, TCP_SYN));
    allows(sent(&world, ends(VIRTUAL, 8080, 4000), &to_backend), Reason::Rule);
    let answer = ip(TCP, (VIRTUAL, NODE), &tcp(8080, 4000, TCP_SYN | TCP_ACK));
    allows(world.to_pod(&answer), Reason::Flow);
    let to_another = ip(TCP, (VIRTUAL, NODE), &tcp(8080, 4001, TCP_ACK));
    denies(world.to_pod(&to_another), Reason::Isolated);
}

#[test]
fn a_connected_socket_that_sends_elsewhere_is_judged_by_where() {
    let world = host(open(), ALLOWING);
    let connected = ends(PEER4, 53, 4000);
    allows(sent(&world, connected, &ip(UDP, (NODE, PEER4), &udp(4000, 53))), Reason::Rule);
    denies(sent(&world, connected, &ip(UDP, (NODE, OUTSIDE), &udp(4000, 9999))), Reason::Isolated);
    // Behind a virtual address another backend may be chosen at any time.
    let to_service = ends(VIRTUAL, 53, 4001);
    allows(sent(&world, to_service, &ip(UDP, (NODE, PEER4), &udp(4001, 53))), Reason::Rule);
    denies(sent(&world, to_service, &ip(UDP, (NODE, PEER4), &udp(4001, 9999))), Reason::Isolated);
}

#[test]
fn only_virtual_addresses_answer_a_socket_that_is_not_connected() {
    let world = host(ISOLATING, ALLOWING);
    let socket = SocketEnds { local_port: 4000, cookie: 77, ..SocketEnds::NONE };
    allows(sent(&world, socket, &ip(UDP, (NODE, PEER4), &udp(4000, 53))), Reason::Rule);
    let heard = |from: Addr, socket| {
        asked(&world, Direction::Ingress, Origin::Forwarded, socket, &ip(UDP, (from, NODE), &udp(8053, 4000)))
    };
    allows(heard(VIRTUAL, socket), Reason::Flow);
    denies(heard(OUTSIDE, socket), Reason::Isolated);
    denies(heard(VIRTUAL, SocketEnds { cookie: 78, ..socket }), Reason::Isolated);
    world.now.set(world.now.get() + crate::flow::UDP_OPENING_SECONDS + 1);
    denies(heard(VIRTUAL, socket), Reason::Isolated);
}

#[test]
fn what_an_isolated_host_sends_by_loopback_waits_for_where_it_ends() {
    let world = host(open(), ISOLATING);
    let looped = |origin, bytes: &[u8]| asked(&world, Direction::Egress, origin, SocketEnds::NONE, bytes);
    let syn = ip(TCP, (LOOPBACK, LOOPBACK), &tcp(4000, 7000, TCP_SYN));
    let waits = looped(Origin::Hairpin, &syn);
    allows(waits, Reason::Service);
    assert_eq!(waits.delivery, Delivery::Waits);
    allows(looped(Origin::OwnNode, &syn), Reason::OwnNode);
    denies(looped(Origin::Forwarded, &syn), Reason::Isolated);
}

#[test]
fn a_tuple_that_was_anothers_says_nothing_of_whose_it_is_now() {
    let mut world = host(ALLOWING, ISOLATING);
    let request = ip(UDP, (LOOPBACK, LOOPBACK), &udp(4000, 53));
    let answer = ip(UDP, (LOOPBACK, LOOPBACK), &udp(53, 4000));
    let answered =
        |world: &World| asked(world, Direction::Egress, Origin::Hairpin, SocketEnds::NONE, &answer);
    // From another pod, allowed; then policies change.
    allows(world.to_pod(&request), Reason::Rule);
    world.endpoint.ingress = ISOLATING;
    world.endpoint.generation += 1;
    // Now its own: neither it nor its answer is that pod's.
    allows(world.judge(Direction::Ingress, Origin::OwnInterface, &request), Reason::SelfTraffic);
    let own = answered(&world);
    allows(own, Reason::Flow);
    assert_eq!(own.delivery, Delivery::Done);
    // And then the node's, whose answers nobody asks about either.
    allows(world.judge(Direction::Ingress, Origin::OwnNode, &request), Reason::Flow);
    assert_eq!(answered(&world).delivery, Delivery::Done);
    // The other pod's again: judged as its own.
    denies(world.to_pod(&request), Reason::Isolated);
}

#[test]
fn what_a_full_table_does_not_know_may_still_answer_whom_a_rule_lets_in() {
    let world = host(ALLOWING, ISOLATING);
    let segment = |flags| ip(TCP, (NODE, PEER4), &tcp(80, 4000, flags));
    let listener = SocketEnds { local_port: 80, ..SocketEnds::NONE };
    allows(sent(&world, listener, &segment(TCP_SYN | TCP_ACK)), Reason::Flow);
    allows(sent(&world, ends(PEER4, 4000, 80), &segment(TCP_ACK)), Reason::Flow);
    // It opens nothing.
    denies(sent(&world, ends(PEER4, 4000, 80), &segment(TCP_SYN)), Reason::Isolated);
    // Whoever writes headers has no connection, other ports answer nobody.
    denies(sent(&world, SocketEnds::NONE, &segment(TCP_ACK)), Reason::Isolated);
    denies(sent(&world, ends(PEER4, 4000, 81), &segment(TCP_ACK)), Reason::Isolated);
    // Where no rule isolates ingress none says that this was let in.
    denies(sent(&host(open(), ISOLATING), ends(PEER4, 4000, 80), &segment(TCP_ACK)), Reason::Isolated);
}
