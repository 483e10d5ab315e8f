//! What leaves the node and comes from none of its sockets: answers that the kernel gives by itself, and what processes write
//! to devices past it.

use super::{At, Environment, NOT_OWN, Origin, Packed, SocketEnds, Verdict, Work, isolated};
use crate::event::{Direction, Reason};
use crate::packet::Shape;
use crate::wire::RULESET_OPEN;

/// Judges a parsed packet that the node's kernel sends: by its flows and its policies for egress. What tells others where the
/// node is, and what became of their packets, always passes.
#[inline(always)]
pub fn leaving<E: Environment>(env: &E, work: &mut Work, slot: u32) -> Packed {
    let Some(rulesets) = env.endpoint(slot) else {
        return nobodys(env);
    };
    match work.packet.shape {
        Shape::Opening | Shape::Ongoing | Shape::Stray | Shape::Later => {}
        Shape::Unreadable | Shape::BrokenIp if u32::from(rulesets.egress) != RULESET_OPEN => {
            let verdict = isolated(env, rulesets.egress, work.packet.error.reason());
            return Packed::new(Verdict { audited: verdict.audited || env.is_audit(), ..verdict });
        }
        Shape::IcmpError
        | Shape::DhcpDiscover
        | Shape::Neighbour
        | Shape::NeighbourAdvertisement
        | Shape::RouterAdvertisement
        | Shape::ListenerDiscovery
        | Shape::Arp
        | Shape::Other
        | Shape::Unreadable
        | Shape::BrokenIp => return Packed::new(Verdict::allow(Reason::Discovery)),
    }
    work.word = rulesets;
    work.is_host = true;
    work.own = if work.packet.dst.is_multicast() { NOT_OWN } else { 0 };
    work.ends = SocketEnds::NONE;
    env.by_tuple(work, At { slot, direction: Direction::Egress, origin: Origin::Forwarded })
}

/// What comes of an answer: it is judged as what it answers, by what the policies for ingress say of who gets it.
#[inline(always)]
pub fn answering<E: Environment>(env: &E, work: &Work, slot: u32, port: u16) -> Packed {
    match env.endpoint(slot) {
        Some(rulesets) => env.decide(&work.packet.dst, rulesets.ingress, work.packet.protocol, port),
        None => nobodys(env),
    }
}

/// There is no endpoint to ask about: closed, unless the node drops nothing.
#[inline(always)]
fn nobodys<E: Environment>(env: &E) -> Packed {
    Packed::new(Verdict { audited: env.is_audit(), ..Verdict::deny(Reason::TablesUnreadable) })
}
