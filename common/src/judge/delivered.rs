//! Where a packet is delivered: what a pod sent to an address that may be translated is judged again, once it is. The
//! packet's mark says who sent it; its source may be another by now, its destination is the one that was chosen.

use super::tuple::ByTuple;
use super::{
    At, Delivery, EMBEDDED_KEY, EMBEDDED_NONE, Environment, NOT_OWN, News, Origin, Packed, Verdict, Work,
    isolated,
};
use crate::event::{Action, Direction, Reason};
use crate::packet::{Packet, PacketView, Part, Shape, parse_embedded};
use crate::wire::{ENDPOINT_HOST, ENDPOINT_USED, FlowKey, RULESET_OPEN};

impl Work {
    /// Where the endpoint sent this packet to, if it was translated on its way here: it is the last that was judged on this CPU
    /// to be judged again. Its source may be another by now, and then so is its port.
    #[inline(always)]
    #[must_use]
    pub fn via(&self, slot: u32) -> Option<&FlowKey> {
        let (packet, sent) = (&self.packet, &self.sent);
        let is_same = self.sent_by == slot && sent.protocol == packet.protocol;
        let was_translated = !sent.remote.same(&packet.dst) || sent.remote_port != packet.dst_port;
        (is_same && was_translated).then_some(sent)
    }
}

/// Stands for an address of the endpoint in the keys of datagrams: the packet's source may have been translated too.
const TRANSLATED: u8 = NOT_OWN - 1;

/// Judges a parsed packet that the endpoint sent, by its policies for egress and the destination that it has here.
#[inline(always)]
pub fn delivered<E: Environment, V: PacketView>(env: &E, view: &V, work: &mut Work, slot: u32) -> Verdict {
    let mut verdict = judged(env, view, work, slot);
    let Action::Deny = verdict.action else {
        return verdict;
    };
    verdict.audited = verdict.audited || env.is_audit();
    let packet = &work.packet;
    // The flow that it belongs to is over. A packet that is not the last that was seen here leaves it to its time.
    if !verdict.audited
        && work.sent_by == slot
        && work.sent.protocol == packet.protocol
        && work.sent.local_port == packet.src_port
    {
        env.remove(slot, &work.sent);
    }
    verdict
}

#[inline(always)]
fn judged<E: Environment, V: PacketView>(env: &E, view: &V, work: &mut Work, slot: u32) -> Verdict {
    let (Some(config), Some(rulesets)) = (env.config(slot), env.endpoint(slot)) else {
        return Verdict::deny(Reason::UnknownEndpoint);
    };
    if config.flags & ENDPOINT_USED == 0 {
        return Verdict::deny(Reason::UnknownEndpoint);
    }
    let ruleset = rulesets.egress;
    if u32::from(ruleset) == RULESET_OPEN {
        return Verdict::allow(Reason::NotIsolated);
    }
    let at = At { slot, direction: Direction::Egress, origin: Origin::OwnInterface };
    let by_tuple = ByTuple::new(env, rulesets, at, config.flags & ENDPOINT_HOST != 0);
    work.word = rulesets;
    work.own = TRANSLATED;
    match work.packet.shape {
        Shape::Opening | Shape::Ongoing | Shape::Stray => {}
        Shape::Later => {
            if let Some(reason) = by_tuple.recalled(work).reason() {
                return isolated(env, ruleset, reason);
            }
        }
        Shape::IcmpError => {
            // About a packet that the pod got: from whom, and by which port.
            if embedded(view, work) == EMBEDDED_NONE {
                return isolated(env, ruleset, Reason::UnrelatedError);
            }
            let inner = &work.embedded;
            return resolved(by_tuple.decided(Direction::Egress, &inner.src, inner.protocol, inner.src_port));
        }
        // Nothing of this is ever marked.
        Shape::DhcpDiscover
        | Shape::Neighbour
        | Shape::NeighbourAdvertisement
        | Shape::RouterAdvertisement
        | Shape::ListenerDiscovery
        | Shape::Arp
        | Shape::Other => return Verdict::deny(Reason::NotIp),
        Shape::Unreadable | Shape::BrokenIp => {
            return isolated(env, ruleset, work.packet.error.reason());
        }
    }
    let Packet { dst, protocol, dst_port, .. } = work.packet;
    let verdict = resolved(by_tuple.decided(Direction::Egress, &dst, protocol, dst_port));
    if let (Part::First, Action::Allow) = (work.packet.part, verdict.action) {
        by_tuple.remember(work);
    }
    verdict
}

#[inline(never)]
fn embedded<V: PacketView>(view: &V, work: &mut Work) -> u32 {
    let (at, protocol) = (work.packet.inner, work.packet.protocol);
    match parse_embedded(view, at, protocol, &mut work.embedded) {
        None => EMBEDDED_NONE,
        Some(()) => EMBEDDED_KEY,
    }
}

/// What is still a virtual address here nobody has translated.
#[inline(always)]
fn resolved(verdict: Packed) -> Verdict {
    let found = verdict.verdict();
    if verdict.0 & Packed::WAITS != 0 {
        return Verdict { audited: found.audited, ..Verdict::deny(Reason::ServiceNotResolved) };
    }
    let news = match found.action {
        Action::Allow => News::None,
        Action::Deny => News::Event,
    };
    Verdict { news, delivery: Delivery::Done, ..found }
}

#[cfg(test)]
mod tests;
