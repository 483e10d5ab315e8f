//! Flow state and policies: what is judged by the packet's tuple. Nothing here reads the packet's bytes, so that in eBPF
//! this part is a global function, which the verifier looks at once whatever ways the parser has.

use super::{Environment, NOT_OWN, Packed, Verdict, Work, isolated, ruleset, unreadable};
use crate::addr::Addr;
use crate::classify::classify;
use crate::event::{Direction, Reason};
use crate::flow::{STATE_OPENING, Side, expired, next_state};
use crate::judge::{At, Origin};
use crate::packet::{ICMP, ICMPV6, Packet, Part, SCTP, Shape, TCP};
use crate::wire::{
    COUNTER_NONE, EPOCH_CELLS, EndpointWord, FLOW_KIND_FLOW, FLOW_OPENED_INGRESS, FLOW_OWN_NODE,
    FLOW_TAG_FLAGS, FlowEntry, FlowKey,
};

/// Judges a packet whose tuple the work holds: an ICMP error by the flow whose key is there, everything else by its own
/// ports, which a later fragment has from its datagram's first.
#[inline(always)]
pub fn by_tuple<E: Environment>(env: &E, work: &mut Work, at: At) -> Packed {
    let judge = ByTuple { env, word: work.word, at };
    match work.packet.shape {
        Shape::IcmpError => return Packed::new(judge.related(work)),
        Shape::Later => {
            if let Some(reason) = judge.recalled(work).reason() {
                return Packed::new(unreadable(env, judge.ruleset(at.direction), reason));
            }
        }
        Shape::Opening
        | Shape::Ongoing
        | Shape::Stray
        | Shape::DhcpDiscover
        | Shape::Neighbour
        | Shape::NeighbourAdvertisement
        | Shape::RouterAdvertisement
        | Shape::ListenerDiscovery
        | Shape::Unreadable
        | Shape::BrokenIp
        | Shape::Arp
        | Shape::Other => {}
    }
    let verdict = judge.of_tuple(work);
    if let Part::First = work.packet.part
        && !verdict.drops()
    {
        judge.remember(work);
    }
    verdict
}

/// What the policies of one direction say: `port` is the destination's.
#[inline(always)]
pub fn decide<E: Environment>(env: &E, remote: &Addr, ruleset: u16, protocol: u8, port: u16) -> Packed {
    let verdict = Packed::new(Verdict::of(classify(env, u32::from(ruleset), remote, protocol, port)));
    // After the tables, and after the stamp of a flow that this may open: a change of the mode meanwhile ages it.
    if verdict.drops() && env.is_audit() { Packed(verdict.0 | Packed::AUDITED) } else { verdict }
}

pub(super) struct ByTuple<'a, E> {
    pub(super) env: &'a E,
    word: EndpointWord,
    pub(super) at: At,
}

/// What a look at the flow table says.
enum Held<H> {
    /// An entry, expired or not: its stamp and flags.
    Flow(H, u32, u32),
    None,
    /// An entry that is being recycled, twice.
    Unreadable,
}

/// The direction that opened a flow.
#[inline(always)]
const fn opener(flags: u32) -> Direction {
    if flags & FLOW_OPENED_INGRESS == 0 { Direction::Egress } else { Direction::Ingress }
}

impl<E: Environment> ByTuple<'_, E> {
    /// Judges a packet by its tuple.
    #[inline(always)]
    fn of_tuple(&self, work: &mut Work) -> Packed {
        let packet = &work.packet;
        let own = work.own;
        let (remote, local_port, remote_port) = match self.at.direction {
            Direction::Ingress => (&packet.src, packet.dst_port, packet.src_port),
            Direction::Egress => (&packet.dst, packet.src_port, packet.dst_port),
        };
        if own == NOT_OWN {
            // Multicast and broadcast towards the pod, and what a pod without source binding sends for others: judged one by
            // one, without state.
            return match self.at.origin {
                Origin::OwnNode => Packed::new(Verdict::allow(Reason::OwnNode)),
                Origin::Forwarded | Origin::OwnInterface | Origin::OtherStation => {
                    self.classified(packet, remote)
                }
            };
        }
        work.key = FlowKey {
            remote: *remote,
            local_port,
            remote_port,
            protocol: packet.protocol,
            local: own,
            kind: FLOW_KIND_FLOW,
        };
        let held = self.existing(work);
        if held.0 & Packed::NO_FLOW == 0 { held } else { self.opened(work, held) }
    }

    #[inline(always)]
    fn ruleset(&self, direction: Direction) -> u16 {
        ruleset(self.word, direction)
    }

    #[inline(always)]
    fn stamp(&self, remote: &Addr) -> u32 {
        self.word
            .generation
            .wrapping_add(self.env.epoch(remote.hash() & (EPOCH_CELLS - 1)))
            .wrapping_add(self.env.prefix_epoch())
    }

    /// Looks a flow up; an entry with another key's tag is looked up again.
    #[inline(always)]
    fn held(&self, key: &FlowKey, tag: u32) -> Held<E::Handle> {
        for _ in 0..2 {
            // A miss is confirmed: an element that is being recycled can hide the one behind it.
            let found = self.env.find(self.at.slot, key).or_else(|| self.env.find(self.at.slot, key));
            let Some(flow) = found else {
                return Held::None;
            };
            let (stamp, found) = self.env.deciding(flow);
            if found & !FLOW_TAG_FLAGS == tag {
                return Held::Flow(flow, stamp, found & FLOW_TAG_FLAGS);
            }
        }
        Held::Unreadable
    }

    /// Goes on with a flow that is there; [`Packed::NO_FLOW`] if none is. Leaves in the work's entry what a
    /// flow that this packet opens starts with.
    #[inline(never)]
    fn existing(&self, work: &mut Work) -> Packed {
        let packet = &work.packet;
        let key = &work.key;
        let now = self.env.now();
        // Before the tables are read: if they change meanwhile, the flow's stamp is already old.
        let stamp = self.stamp(&key.remote);
        let tag = key.tag();
        work.entry =
            FlowEntry { stamp, tag, seen: now, state: STATE_OPENING, counter: COUNTER_NONE, opened: now };
        let opening = matches!(packet.shape, Shape::Opening);
        if let Shape::Stray = packet.shape {
            return Packed(Packed::NO_FLOW);
        }
        if opening && (packet.protocol == TCP || packet.protocol == SCTP) {
            return Packed(Packed::NO_FLOW | Packed::MAY_OPEN);
        }
        let none = Packed(if opening { Packed::NO_FLOW | Packed::MAY_OPEN } else { Packed::NO_FLOW });
        let (flow, held_stamp, flags) = match self.held(key, tag) {
            Held::None => return none,
            Held::Unreadable => return Packed::new(Verdict::deny(Reason::TablesUnreadable)),
            Held::Flow(flow, stamp, flags) => (flow, stamp, flags),
        };
        let (seen, state) = self.env.age(flow);
        if expired(key.protocol, state, seen, now) {
            return none;
        }
        let opener = opener(flags);
        let side = if opener.index() == self.at.direction.index() { Side::Opener } else { Side::Responder };
        // A request is no answer: from the side that answers it is judged by its own direction, and leaves none.
        if opening && matches!(side, Side::Responder) && matches!(packet.protocol, ICMP | ICMPV6) {
            return Packed(Packed::NO_FLOW);
        }
        let mut told = Packed(0);
        if flags & FLOW_OWN_NODE != 0 {
            if matches!(side, Side::Opener) && !matches!(self.at.origin, Origin::OwnNode) {
                // The node's flow, from a device: judged as if there were none, and leaves none.
                return Packed(Packed::NO_FLOW);
            }
        } else if held_stamp != stamp {
            let again = self.judged_again(key, opener);
            if again.drops() {
                // The flow is over; what can open one may open its own, which may be the other direction's.
                if opening {
                    return none;
                }
                return match (self.at.direction, self.at.origin) {
                    (Direction::Ingress, Origin::OwnNode) => Packed::new(Verdict::allow(Reason::OwnNode)),
                    (Direction::Ingress | Direction::Egress, _) => again,
                };
            }
            self.env.renew(flow, stamp, tag | flags);
            // Told once: the flow goes on.
            told = again;
        }
        let next = next_state(key.protocol, state, side, packet.tcp_flags);
        if next != state || seen != now {
            self.env.touch(flow, now, next);
        }
        if told.0 & Packed::AUDITED != 0 { told } else { Packed::new(Verdict::allow(Reason::Flow)) }
    }

    /// Judges a packet that belongs to no flow, and makes one if it may.
    #[inline(never)]
    fn opened(&self, work: &mut Work, held: Packed) -> Packed {
        let key = &work.key;
        let verdict = match (self.at.direction, self.at.origin) {
            (Direction::Ingress, Origin::OwnNode) => {
                work.entry.tag |= FLOW_OPENED_INGRESS | FLOW_OWN_NODE;
                Packed::new(Verdict::allow(Reason::OwnNode))
            }
            (Direction::Ingress, Origin::Forwarded | Origin::OwnInterface | Origin::OtherStation) => {
                work.entry.tag |= FLOW_OPENED_INGRESS;
                self.classified(&work.packet, &key.remote)
            }
            (Direction::Egress, _) => self.classified(&work.packet, &key.remote),
        };
        if verdict.drops() || held.0 & Packed::MAY_OPEN == 0 {
            return verdict;
        }
        work.entry.counter = verdict.counter();
        self.env.insert(self.at.slot, &work.key, &work.entry);
        Packed(verdict.0 | Packed::NEWS)
    }

    /// What the policies of this direction say of this packet.
    #[inline(always)]
    fn classified(&self, packet: &Packet, remote: &Addr) -> Packed {
        self.decided(self.at.direction, remote, packet.protocol, packet.dst_port)
    }

    /// What the policies say now of a flow that an older state of them allowed.
    #[inline(always)]
    fn judged_again(&self, key: &FlowKey, opener: Direction) -> Packed {
        let port = match opener {
            Direction::Ingress => key.local_port,
            Direction::Egress => key.remote_port,
        };
        self.decided(opener, &key.remote, key.protocol, port)
    }

    #[inline(always)]
    fn decided(&self, direction: Direction, remote: &Addr, protocol: u8, port: u16) -> Packed {
        // An echo's identifier is no port: ICMP follows the rules that name none.
        let port = match protocol {
            ICMP | ICMPV6 => 0,
            _ => port,
        };
        self.env.decide(remote, self.ruleset(direction), protocol, port)
    }

    /// An ICMP error passes an isolated direction only with a live, allowed flow inside; it makes nothing. The work's key
    /// is that flow's.
    #[inline(always)]
    fn related(&self, work: &Work) -> Verdict {
        let unrelated = isolated(self.env, self.ruleset(self.at.direction), Reason::UnrelatedError);
        let key = &work.key;
        match self.held(key, key.tag()) {
            Held::Flow(flow, stamp, flags) => {
                let (seen, state) = self.env.age(flow);
                let live = !expired(key.protocol, state, seen, self.env.now());
                let current = flags & FLOW_OWN_NODE != 0
                    || stamp == self.stamp(&key.remote)
                    || !self.judged_again(key, opener(flags)).drops();
                if live && current { Verdict::allow(Reason::RelatedError) } else { unrelated }
            }
            Held::None => unrelated,
            Held::Unreadable => Verdict::deny(Reason::TablesUnreadable),
        }
    }
}
