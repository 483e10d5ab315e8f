//! Flow state and policies: what is judged by the packet's tuple. Nothing here reads the packet's bytes, so that in eBPF
//! this part is a global function, which the verifier looks at once whatever ways the parser has.

use super::{Environment, NOT_OWN, Packed, Verdict, Work, isolated, unreadable};
use crate::addr::Addr;
use crate::classify::{Decision, Peer, classify};
use crate::event::{Direction, Reason};
use crate::flow::{STATE_OPENING, Side, Stage, expired, next_state};
use crate::judge::{At, Origin};
use crate::packet::{ICMP, ICMPV6, Packet, Part, SCTP, Shape, TCP, UDP};
use crate::wire::{
    COUNTER_NONE, EPOCH_ANY, EPOCH_CELLS, EndpointWord, FLOW_DELIVERED, FLOW_KIND_FLOW, FLOW_OPENED_INGRESS,
    FLOW_OWN_NODE, FLOW_TAG_FLAGS, FlowEntry, FlowKey, MARK_SLOT, NO_ENDPOINT, RULESET_CLOSED,
};

/// Judges a packet whose tuple the work holds: an ICMP error by the flow whose key is there, everything else by its own
/// ports, which a later fragment has from its datagram's first.
#[inline(always)]
pub fn by_tuple<E: Environment>(env: &E, work: &mut Work, at: At) -> Packed {
    let mut judge = ByTuple { env, word: work.word, at };
    work.slot = at.slot;
    match work.packet.shape {
        Shape::IcmpError => return judge.related(work),
        Shape::Later => {
            if let Some(reason) = judge.recalled(work).reason() {
                return Packed::new(unreadable(env, judge.word.ruleset(at.direction), reason));
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
    // It came from this pod, so a translator chose this pod, and put another's address in the place of its own.
    if let (Direction::Ingress, Origin::OwnInterface, TCP | UDP | SCTP) =
        (at.direction, at.origin, work.packet.protocol)
    {
        judge.at.origin = Origin::Hairpin;
    }
    let verdict = judge.of_tuple(work);
    if verdict.0 & Packed::AGAIN != 0 {
        // What an unbound pod sends for others has no key.
        let sender = if work.own == NOT_OWN { NO_ENDPOINT } else { at.slot };
        (work.sent_by, work.sent) = (sender, work.key);
    }
    if let Part::First = work.packet.part
        && !verdict.drops()
    {
        judge.remember(work);
    }
    verdict
}

/// What the policies of one direction say.
#[inline(always)]
pub fn decide<E: Environment>(env: &E, remote: &Addr, ruleset: u16, protocol: u8, port: u16) -> Packed {
    let decision = classify(env, u32::from(ruleset), remote, protocol, port);
    let mut verdict = Packed::new(Verdict::of(decision));
    let (again, waits) = match decision {
        // Nothing else is translated: echo is answered by whoever has the address.
        Decision::Virtual { .. } => (false, matches!(protocol, TCP | UDP | SCTP)),
        Decision::Rule { peer: Peer::Anybody, .. } | Decision::Default(Peer::Anybody) => {
            (verdict.0 & Packed::DENIED == 0, false)
        }
        Decision::Rule { peer: Peer::Pod, .. }
        | Decision::Default(Peer::Pod)
        | Decision::Open
        | Decision::Unreadable => (false, false),
    };
    if (again || waits) && env.delivers() {
        if waits {
            // Whether what is denied there passes has to be known there.
            let audited = verdict.0 & Packed::AUDITED;
            verdict = Packed(Packed::new(Verdict::allow(Reason::Service)).0 | Packed::WAITS | audited);
        }
        verdict.0 |= Packed::AGAIN;
    }
    // After the tables, and after the stamp of a flow that this may open: a change of the mode meanwhile ages it.
    if verdict.drops() && env.is_audit() { Packed(verdict.0 | Packed::AUDITED) } else { verdict }
}

/// What comes of a verdict on what the pod sends to the address of the work's key, before anybody translates it: where it is a
/// node's and this node translates that port of it, it waits, whatever the policies say of the node, unless they could not be read.
#[inline(always)]
pub fn ahead<E: Environment>(env: &E, work: &Work, verdict: Packed) -> Packed {
    let key = &work.key;
    // What may pass and is not judged again is a pod's, and what waits does already.
    let may_be = verdict.0 & (Packed::AGAIN | Packed::DENIED) != 0 && verdict.0 & Packed::WAITS == 0;
    let leads_on = may_be
        && !verdict.is_unreadable()
        && u32::from(work.word.egress) > RULESET_CLOSED
        && work.slot <= MARK_SLOT
        && env.delivers()
        && env.is_node_port(&key.remote, key.protocol, key.remote_port);
    if leads_on {
        Packed(Packed::new(Verdict::allow(Reason::Service)).0 | Packed::WAITS | Packed::AGAIN)
    } else {
        verdict
    }
}

pub(super) struct ByTuple<'a, E> {
    pub(super) env: &'a E,
    pub(super) word: EndpointWord,
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
                Origin::Forwarded | Origin::OwnInterface | Origin::OtherStation | Origin::Hairpin => {
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
        work.any = self.env.epoch(EPOCH_ANY);
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
        // What comes back to the pod always passes, and its answers need a flow that says so: also of a connection that is
        // older than the policies.
        let comes_back = matches!((self.at.direction, self.at.origin), (Direction::Ingress, Origin::Hairpin));
        let none =
            Packed(if opening || comes_back { Packed::NO_FLOW | Packed::MAY_OPEN } else { Packed::NO_FLOW });
        let (flow, held_stamp, mut flags) = match self.held(key, tag) {
            Held::None => return none,
            Held::Unreadable => return Packed::new(Verdict::deny(Reason::TablesUnreadable)),
            Held::Flow(flow, stamp, flags) => (flow, stamp, flags),
        };
        let (seen, held_stage) = self.env.age(flow);
        let mut stage = Stage::of(held_stage);
        if expired(key.protocol, stage.state, seen, now) {
            return none;
        }
        let opener = opener(flags);
        let side = if opener.index() == self.at.direction.index() { Side::Opener } else { Side::Responder };
        // A request is no answer: from the side that answers it is judged by its own direction, and leaves none.
        if opening && matches!(side, Side::Responder) && matches!(packet.protocol, ICMP | ICMPV6) {
            return Packed(Packed::NO_FLOW);
        }
        if comes_back && flags & FLOW_OWN_NODE == 0 {
            return none;
        }
        let mut told = Packed(0);
        if flags & FLOW_OWN_NODE != 0 {
            let is_unseen = self.at.slot > MARK_SLOT || !self.env.delivers();
            if matches!(side, Side::Responder) && flags & FLOW_DELIVERED != 0 && is_unseen {
                // What the pod answers itself is judged by its policies, for nobody sees where it goes.
                return Packed(Packed::NO_FLOW);
            }
            if matches!(side, Side::Opener) && !matches!(self.at.origin, Origin::OwnNode | Origin::Hairpin) {
                // The node's flow, from a device: judged as if there were none, and leaves none.
                return Packed(Packed::NO_FLOW);
            }
        } else if held_stamp != stamped(stamp, flags, work.any) {
            let again = self.judged_again(work, opener);
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
            if again.0 & Packed::WAITS != 0 && matches!(side, Side::Responder) {
                // Whether the backend is still allowed is judged with what the pod sends next.
                stage = stage.doubted(now);
                if stage.is_over(now) {
                    return none;
                }
            } else {
                flags = (flags & !FLOW_DELIVERED) | delivered(again);
                self.env.renew(flow, stamped(stamp, flags, work.any), tag | flags);
                stage.doubt = 0;
                // Told once: the flow goes on.
                told = again;
            }
        }
        stage.state = next_state(key.protocol, stage.state, side, packet.tcp_flags);
        if stage.word() != held_stage || seen != now {
            self.env.touch(flow, now, stage.word());
        }
        let again = self.goes_again(flags);
        if told.0 & (Packed::AUDITED | Packed::DENIED) == Packed::AUDITED | Packed::DENIED {
            told
        } else {
            Packed(Packed::new(Verdict::allow(Reason::Flow)).0 | again)
        }
    }

    /// [`Packed::AGAIN`] for what the pod sends in such a flow.
    #[inline(always)]
    const fn goes_again(&self, flags: u32) -> u64 {
        match self.at.direction {
            // The mark has no room for other slots: what opened such a flow was denied, or did not leave the pod's own interface.
            Direction::Egress if flags & FLOW_DELIVERED != 0 && self.at.slot <= MARK_SLOT => Packed::AGAIN,
            Direction::Egress | Direction::Ingress => 0,
        }
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
            (Direction::Ingress, Origin::Hairpin) => {
                // The source is what translation made of the pod's: what the pod sends there can come to somebody else.
                work.entry.tag |= FLOW_OPENED_INGRESS | FLOW_OWN_NODE | FLOW_DELIVERED;
                Packed::new(Verdict::allow(Reason::SelfTraffic))
            }
            (Direction::Ingress, Origin::Forwarded | Origin::OwnInterface | Origin::OtherStation) => {
                work.entry.tag |= FLOW_OPENED_INGRESS;
                self.classified(&work.packet, &key.remote)
            }
            (Direction::Egress, _) => self.env.ahead(work, self.classified(&work.packet, &key.remote)),
        };
        if verdict.drops() || held.0 & Packed::MAY_OPEN == 0 {
            return verdict;
        }
        let flags = delivered(verdict);
        work.entry.tag |= flags;
        work.entry.stamp = stamped(work.entry.stamp, flags, work.any);
        work.entry.counter = verdict.counter();
        self.env.insert(self.at.slot, &work.key, &work.entry);
        // What waits is told where it is decided.
        if verdict.0 & Packed::WAITS != 0 { verdict } else { Packed(verdict.0 | Packed::NEWS) }
    }

    /// What the policies of this direction say of this packet.
    #[inline(always)]
    fn classified(&self, packet: &Packet, remote: &Addr) -> Packed {
        self.decided(self.at.direction, remote, packet.protocol, packet.dst_port)
    }

    /// What the policies say now of the work's flow, which an older state of them allowed.
    #[inline(always)]
    fn judged_again(&self, work: &Work, opener: Direction) -> Packed {
        let key = &work.key;
        match opener {
            Direction::Ingress => self.decided(opener, &key.remote, key.protocol, key.local_port),
            Direction::Egress => {
                self.env.ahead(work, self.decided(opener, &key.remote, key.protocol, key.remote_port))
            }
        }
    }

    #[inline(always)]
    pub(super) fn decided(&self, direction: Direction, remote: &Addr, protocol: u8, port: u16) -> Packed {
        // An echo's identifier is no port: ICMP follows the rules that name none.
        let port = match protocol {
            ICMP | ICMPV6 => 0,
            _ => port,
        };
        let verdict = self.env.decide(remote, self.word.ruleset(direction), protocol, port);
        match direction {
            // The mark has no room for this endpoint: what may be translated cannot be judged again.
            Direction::Egress if verdict.0 & Packed::AGAIN != 0 && self.at.slot > MARK_SLOT => {
                let denied = Packed::new(Verdict::deny(Reason::ServiceNotResolved));
                Packed(denied.0 | verdict.0 & Packed::AUDITED)
            }
            Direction::Egress => verdict,
            Direction::Ingress => Packed(verdict.0 & !(Packed::AGAIN | Packed::WAITS)),
        }
    }

    /// An ICMP error passes an isolated direction only with a live, allowed flow inside; it makes nothing. The work's key
    /// is that flow's.
    #[inline(never)]
    fn related(&self, work: &Work) -> Packed {
        let unrelated =
            Packed::new(isolated(self.env, self.word.ruleset(self.at.direction), Reason::UnrelatedError));
        let key = &work.key;
        match self.held(key, key.tag()) {
            Held::Flow(flow, held, flags) => {
                let (seen, held_stage) = self.env.age(flow);
                let stage = Stage::of(held_stage);
                let now = self.env.now();
                let live = !expired(key.protocol, stage.state, seen, now)
                    && (stage.doubt == 0 || !stage.is_over(now));
                let stamp = stamped(self.stamp(&key.remote), flags, self.env.epoch(EPOCH_ANY));
                let current = flags & FLOW_OWN_NODE != 0
                    || held == stamp
                    || !self.judged_again(work, opener(flags)).drops();
                if live && current {
                    Packed(Packed::new(Verdict::allow(Reason::RelatedError)).0 | self.goes_again(flags))
                } else {
                    unrelated
                }
            }
            Held::None => unrelated,
            Held::Unreadable => Packed::UNREADABLE,
        }
    }
}

/// The flag of a flow whose packets are judged again where they are delivered.
#[inline(always)]
const fn delivered(verdict: Packed) -> u32 {
    if verdict.0 & Packed::AGAIN == 0 { 0 } else { FLOW_DELIVERED }
}

/// The stamp of a flow with these flags: of one whose backend nobody knows any change makes it old.
#[inline(always)]
const fn stamped(stamp: u32, flags: u32, any: u32) -> u32 {
    if flags & FLOW_DELIVERED == 0 { stamp } else { stamp.wrapping_add(any) }
}
