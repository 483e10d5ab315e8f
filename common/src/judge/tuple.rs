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
    CLASS_VIRTUAL, COUNTER_NONE, EPOCH_ANY, EPOCH_CELLS, EndpointWord, FLOW_DELIVERED, FLOW_KIND_FLOW,
    FLOW_KIND_SOCKET, FLOW_OPENED_INGRESS, FLOW_OWN_NODE, FLOW_TAG_FLAGS, FlowEntry, FlowKey, MARK_SLOT,
    NO_ENDPOINT, RULESET_CLOSED,
};

/// Judges a packet whose tuple the work holds: an ICMP error by the flow whose key is there, everything else by its own
/// ports, which a later fragment has from its datagram's first.
#[inline(always)]
pub fn by_tuple<E: Environment>(env: &E, work: &mut Work, at: At) -> Packed {
    let mut judge = ByTuple::new(env, work.word, at, work.is_host);
    work.slot = at.slot;
    match work.packet.shape {
        Shape::IcmpError => return judge.of_error(work),
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
        judge.origin = Origin::Hairpin;
    }
    let verdict = judge.of_tuple(work);
    if verdict.0 & Packed::AGAIN != 0 {
        // What an unbound pod sends for others has no key.
        let sender = if work.own == NOT_OWN { NO_ENDPOINT } else { at.slot };
        work.sent_by = sender;
        work.sent = work.key;
    }
    if let Part::First = work.packet.part
        && !verdict.drops()
    {
        judge.remember(work);
    }
    verdict
}

/// What the flow says that the work's key stands for; [`by_tuple`] asks.
#[inline(always)]
pub fn existing<E: Environment>(env: &E, work: &mut Work, at: At) -> Packed {
    ByTuple::new(env, work.word, at, work.is_host).existing(work)
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
    if leads_on { WAITS } else { verdict }
}

/// It is judged where it ends, and nowhere before.
const WAITS: Packed = Packed(Packed::new(Verdict::allow(Reason::Service)).0 | Packed::WAITS | Packed::AGAIN);

pub(super) struct ByTuple<'a, E> {
    pub(super) env: &'a E,
    word: EndpointWord,
    pub(super) slot: u32,
    pub(super) direction: Direction,
    origin: Origin,
    /// The endpoint is the node, or a pod in its network. Here, beside other bytes, it takes no word of the stack for itself.
    is_host: bool,
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

impl<'a, E: Environment> ByTuple<'a, E> {
    #[inline(always)]
    pub(super) const fn new(env: &'a E, word: EndpointWord, at: At, is_host: bool) -> Self {
        Self { env, word, slot: at.slot, direction: at.direction, origin: at.origin, is_host }
    }

    #[inline(always)]
    const fn at(&self) -> At {
        At { slot: self.slot, direction: self.direction, origin: self.origin }
    }

    /// Judges a packet by its tuple.
    #[inline(always)]
    fn of_tuple(&self, work: &mut Work) -> Packed {
        let packet = &work.packet;
        let own = work.own;
        let ends = &work.ends;
        let (remote, local_port, remote_port) = match self.direction {
            Direction::Ingress => (&packet.src, packet.dst_port, packet.src_port),
            // As answers will come to the socket. By UDP a socket that is connected may send elsewhere: it is believed of virtual
            // addresses alone.
            Direction::Egress
                if self.is_host
                    && ends.remote_port != 0
                    && (packet.protocol == TCP || self.is_virtual(&ends.remote, UDP, ends.remote_port)) =>
            {
                (&ends.remote, ends.local_port, ends.remote_port)
            }
            Direction::Egress if self.is_host && ends.local_port != 0 => {
                (&packet.dst, ends.local_port, packet.dst_port)
            }
            Direction::Egress => (&packet.dst, packet.src_port, packet.dst_port),
        };
        if own == NOT_OWN {
            // Multicast and broadcast towards the pod, and what a pod without source binding sends for others: judged one by
            // one, without state.
            return match self.origin {
                Origin::OwnNode => Packed::new(Verdict::allow(Reason::OwnNode)),
                Origin::Forwarded | Origin::OwnInterface | Origin::OtherStation | Origin::Hairpin => {
                    self.classified(packet, remote)
                }
            };
        }
        // Field by field, as an entry.
        let key = &mut work.key;
        key.remote = *remote;
        key.local_port = local_port;
        key.remote_port = remote_port;
        key.protocol = packet.protocol;
        key.local = own;
        key.kind = FLOW_KIND_FLOW;
        work.again = Packed::NOT_ASKED;
        let mut held = self.env.existing(work, self.at());
        // Asked from here and not from where the flow is, for the stack.
        if held.0 & Packed::STALE != 0 {
            let flags = held.counter();
            work.again = self.judged_again(work, opener(flags), flags);
            held = self.env.existing(work, self.at());
        }
        let verdict = if held.0 & Packed::NO_FLOW == 0 { held } else { self.opened(work, held) };
        if self.is_host && work.ends.cookie != 0 && self.asked(work, verdict) != 0 {
            return Packed::new(Verdict::allow(Reason::Flow));
        }
        verdict
    }

    /// Of a socket that is not connected: remembers that it has sent, or lets in what a virtual address answers. Nobody else's
    /// answers are told apart so, and none after [`crate::flow::UDP_OPENING_SECONDS`] in which it was silent. 1: it is let in.
    #[inline(never)]
    fn asked(&self, work: &mut Work, verdict: Packed) -> u32 {
        let key = FlowKey {
            remote: Addr::from_halves(work.ends.cookie, 0),
            local_port: work.ends.local_port,
            remote_port: 0,
            protocol: UDP,
            local: 0,
            kind: FLOW_KIND_SOCKET,
        };
        let tag = key.tag();
        let now = self.env.now();
        match self.direction {
            Direction::Egress if work.is_opener && !verdict.drops() => {
                match self.held(&key, tag) {
                    Held::Flow(flow, ..) => self.env.touch(flow, now, STATE_OPENING),
                    Held::None | Held::Unreadable => {
                        work.entry = FlowEntry {
                            stamp: 0,
                            tag,
                            seen: now,
                            state: STATE_OPENING,
                            counter: 0,
                            opened: now,
                        };
                        self.env.insert(self.slot, &key, &work.entry);
                    }
                }
                0
            }
            Direction::Ingress
                if verdict.drops() && self.is_virtual(&work.packet.src, UDP, work.packet.src_port) =>
            {
                match self.held(&key, tag) {
                    Held::Flow(flow, ..) => {
                        let (seen, _) = self.env.age(flow);
                        u32::from(!expired(UDP, STATE_OPENING, seen, now))
                    }
                    Held::None | Held::Unreadable => 0,
                }
            }
            Direction::Egress | Direction::Ingress => 0,
        }
    }

    /// True if the sender's address is a Service's, or a port of a node that leads on.
    #[inline(always)]
    fn is_virtual(&self, addr: &Addr, protocol: u8, port: u16) -> bool {
        self.leads_on(addr, protocol, port) != 0
    }

    /// [`Self::is_virtual`] as a function of its own, for its stack.
    #[inline(never)]
    fn leads_on(&self, addr: &Addr, protocol: u8, port: u16) -> u32 {
        // Of the bank that the endpoint's rulesets are of; where neither direction has one, it does not matter.
        let either =
            if u32::from(self.word.ingress) > RULESET_CLOSED { self.word.ingress } else { self.word.egress };
        let bank = self.env.ruleset(either.into()).map_or(0, |ruleset| ruleset.bank);
        let peer = self.env.peer(bank, addr);
        let is_virtual = peer.is_some_and(|peer| peer.tag == addr.hash() && peer.class & CLASS_VIRTUAL != 0);
        u32::from(is_virtual || self.env.is_node_port(addr, protocol, port))
    }

    /// True where what a socket sends is not for whom its flow stands: translated by then.
    #[inline(always)]
    fn is_translated(&self, work: &Work) -> bool {
        let (key, packet) = (&work.key, &work.packet);
        self.is_host
            && matches!(self.direction, Direction::Egress)
            && (!key.remote.same(&packet.dst) || key.remote_port != packet.dst_port)
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
            let found = self.env.find(self.slot, key).or_else(|| self.env.find(self.slot, key));
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
    /// flow that this packet opens starts with. [`Packed::STALE`] where the policies are to be asked first: then it is called
    /// again, with what they say in the work.
    #[inline(always)]
    fn existing(&self, work: &mut Work) -> Packed {
        let packet = &work.packet;
        let key = &work.key;
        let tag = key.tag();
        let again = work.again;
        if again.0 & Packed::STALE != 0 {
            let now = self.env.now();
            // Before the tables are read: if they change meanwhile, the flow's stamp is already old.
            let stamp = self.stamp(&key.remote);
            work.any = self.env.epoch(EPOCH_ANY);
            // Field by field: a whole one is made on the stack first.
            let entry = &mut work.entry;
            entry.stamp = stamp;
            entry.tag = tag;
            entry.seen = now;
            entry.state = STATE_OPENING;
            entry.counter = COUNTER_NONE;
            entry.opened = now;
        }
        let (now, stamp) = (work.entry.seen, work.entry.stamp);
        let opening = matches!(packet.shape, Shape::Opening);
        if let Shape::Stray = packet.shape {
            return Packed(Packed::NO_FLOW);
        }
        if opening && (packet.protocol == TCP || packet.protocol == SCTP) {
            return Packed(Packed::NO_FLOW | Packed::MAY_OPEN);
        }
        // What comes back to the pod always passes, and its answers need a flow that says so: also of a connection that is
        // older than the policies.
        let comes_back = matches!((self.direction, self.origin), (Direction::Ingress, Origin::Hairpin));
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
        work.is_opener = opener.index() == self.direction.index();
        let side = if opener.index() == self.direction.index() { Side::Opener } else { Side::Responder };
        // A request is no answer: from the side that answers it is judged by its own direction, and leaves none.
        if opening && matches!(side, Side::Responder) && matches!(packet.protocol, ICMP | ICMPV6) {
            return Packed(Packed::NO_FLOW);
        }
        if comes_back && flags & FLOW_OWN_NODE == 0 {
            return none;
        }
        let mut told = Packed(0);
        if flags & FLOW_OWN_NODE != 0 {
            let is_unseen = self.slot > MARK_SLOT || !self.env.delivers();
            if matches!(side, Side::Responder) && flags & FLOW_DELIVERED != 0 && is_unseen {
                // What the pod answers itself is judged by its policies, for nobody sees where it goes.
                return Packed(Packed::NO_FLOW);
            }
            if matches!(side, Side::Opener) && !matches!(self.origin, Origin::OwnNode | Origin::Hairpin) {
                // The node's flow, from a device: judged as if there were none, and leaves none. Among the node's own sockets a
                // tuple goes from one to the other.
                return if self.is_host { none } else { Packed(Packed::NO_FLOW) };
            }
        } else if held_stamp != stamped(stamp, flags, work.any)
            // Another backend may have been chosen since.
            || (packet.protocol == UDP && self.is_translated(work))
        {
            if again.0 & Packed::STALE != 0 {
                return Packed::stale(flags);
            }
            if again.drops() {
                // The flow is over; what can open one may open its own, which may be the other direction's.
                if opening {
                    return none;
                }
                return match (self.direction, self.origin) {
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
                flags = (flags & !FLOW_DELIVERED) | self.delivered(again, work, flags);
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
        match self.direction {
            // The mark has no room for other slots: what opened such a flow was denied, or did not leave the pod's own interface.
            Direction::Egress
                if flags & FLOW_DELIVERED != 0
                    && self.slot <= MARK_SLOT
                    && (!self.is_host || self.loops()) =>
            {
                Packed::AGAIN
            }
            Direction::Egress | Direction::Ingress => 0,
        }
    }

    /// True for what a pod in the node's network sends by the loopback device: where it ends may be the pod itself.
    #[inline(always)]
    const fn loops(&self) -> bool {
        matches!((self.direction, self.origin), (Direction::Egress, Origin::Hairpin))
    }

    /// The flag of a flow whose backend its key does not tell.
    #[inline(always)]
    fn delivered(&self, verdict: Packed, work: &Work, held: u32) -> u32 {
        match self.direction {
            Direction::Egress if self.is_host => {
                delivered(verdict) | if self.is_translated(work) { FLOW_DELIVERED } else { 0 }
            }
            Direction::Ingress if self.is_host => held & FLOW_DELIVERED,
            Direction::Ingress | Direction::Egress => delivered(verdict),
        }
    }

    /// Judges a packet that belongs to no flow, and makes one if it may.
    #[inline(never)]
    fn opened(&self, work: &mut Work, held: Packed) -> Packed {
        work.is_opener = true;
        let key = &work.key;
        let verdict = match (self.direction, self.origin) {
            (Direction::Ingress, Origin::OwnNode) => {
                work.entry.tag |= FLOW_OPENED_INGRESS | FLOW_OWN_NODE;
                Packed::new(Verdict::allow(Reason::OwnNode))
            }
            (Direction::Ingress, Origin::Hairpin) => {
                // The source is what translation made of the pod's: what the pod sends there can come to somebody else.
                // Among the node's own sockets nothing is translated on that way.
                work.entry.tag |=
                    FLOW_OPENED_INGRESS | FLOW_OWN_NODE | if self.is_host { 0 } else { FLOW_DELIVERED };
                Packed::new(Verdict::allow(Reason::SelfTraffic))
            }
            (Direction::Ingress, Origin::Forwarded | Origin::OwnInterface | Origin::OtherStation) => {
                work.entry.tag |= FLOW_OPENED_INGRESS;
                self.classified(&work.packet, &key.remote)
            }
            (Direction::Egress, Origin::OwnNode) if self.is_host => {
                work.entry.tag |= FLOW_OWN_NODE;
                Packed::new(Verdict::allow(Reason::OwnNode))
            }
            (Direction::Egress, _) if self.is_host => {
                let verdict = self.out_of_host(&work.packet);
                if verdict.0 & Packed::DENIED != 0 && self.is_answer(work) != 0 {
                    return Packed::new(Verdict::allow(Reason::Flow));
                }
                verdict
            }
            (Direction::Egress, _) => self.env.ahead(work, self.classified(&work.packet, &key.remote)),
        };
        if verdict.drops() || held.0 & Packed::MAY_OPEN == 0 {
            return verdict;
        }
        let flags = self.delivered(verdict, work, 0);
        work.entry.tag |= flags;
        work.entry.stamp = stamped(work.entry.stamp, flags, work.any);
        work.entry.counter = verdict.counter();
        self.env.insert(self.slot, &work.key, &work.entry);
        // What waits is told where it is decided.
        if verdict.0 & Packed::WAITS != 0 { verdict } else { Packed(verdict.0 | Packed::NEWS) }
    }

    /// What the policies of this direction say of this packet.
    #[inline(always)]
    fn classified(&self, packet: &Packet, remote: &Addr) -> Packed {
        self.decided(self.direction, remote, packet.protocol, packet.dst_port)
    }

    /// What the policies say of what a socket of the node's network sends, after translation.
    #[inline(always)]
    fn out_of_host(&self, packet: &Packet) -> Packed {
        if self.loops() && u32::from(self.word.egress) > RULESET_CLOSED {
            if self.slot > MARK_SLOT {
                return Packed::new(Verdict::deny(Reason::ServiceNotResolved));
            }
            return WAITS;
        }
        self.classified(packet, &packet.dst)
    }

    /// 1: what a socket of TCP sends and no flow knows belongs to a connection that a rule for ingress lets in, as a failsafe port's when
    /// others have filled the table. Only a segment that opens nothing, and of a whole socket, which has one to send.
    #[inline(never)]
    fn is_answer(&self, work: &Work) -> u32 {
        let Packet { shape, protocol, dst, .. } = &work.packet;
        if *protocol != TCP || !matches!(shape, Shape::Ongoing) || work.ends.local_port == 0 || self.loops() {
            return 0;
        }
        let verdict = self.env.decide(dst, self.word.ingress, TCP, work.ends.local_port);
        u32::from(verdict.is_of_rule())
    }

    /// What the policies say now of the work's flow, which an older state of them allowed.
    #[inline(never)]
    fn judged_again(&self, work: &Work, opener: Direction, flags: u32) -> Packed {
        let key = &work.key;
        match opener {
            Direction::Egress if self.is_host => match self.direction {
                Direction::Egress => self.out_of_host(&work.packet),
                // Which backend it is the next packet of the opener tells.
                Direction::Ingress if flags & FLOW_DELIVERED != 0 => WAITS,
                Direction::Ingress => self.decided(opener, &key.remote, key.protocol, key.remote_port),
            },
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
            // Nobody translates it any more.
            Direction::Egress if self.is_host && verdict.0 & Packed::WAITS != 0 => {
                let denied = Packed::new(Verdict::deny(Reason::ServiceNotResolved));
                Packed(denied.0 | verdict.0 & Packed::AUDITED)
            }
            Direction::Egress if self.is_host => Packed(verdict.0 & !Packed::AGAIN),
            // The mark has no room for this endpoint: what may be translated cannot be judged again.
            Direction::Egress if verdict.0 & Packed::AGAIN != 0 && self.slot > MARK_SLOT => {
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
    fn of_error(&self, work: &Work) -> Packed {
        let mut found = self.related(work);
        if found.0 & Packed::STALE != 0 {
            let flags = found.counter();
            let goes_on = !self.judged_again(work, opener(flags), flags).drops();
            found = if goes_on { self.of_flow(flags) } else { Packed(Packed::NO_FLOW) };
        }
        if found.0 & Packed::NO_FLOW == 0 {
            return found;
        }
        Packed::new(isolated(self.env, self.word.ruleset(self.direction), Reason::UnrelatedError))
    }

    /// The verdict on an error about a flow with these flags.
    #[inline(always)]
    const fn of_flow(&self, flags: u32) -> Packed {
        Packed(Packed::new(Verdict::allow(Reason::RelatedError)).0 | self.goes_again(flags))
    }

    /// The flow that an error is about: [`Packed::NO_FLOW`] without a live one, [`Packed::STALE`] where the policies are to be
    /// asked about it.
    #[inline(never)]
    fn related(&self, work: &Work) -> Packed {
        let key = &work.key;
        match self.held(key, key.tag()) {
            Held::Flow(flow, held, flags) => {
                let (seen, held_stage) = self.env.age(flow);
                let stage = Stage::of(held_stage);
                let now = self.env.now();
                let live = !expired(key.protocol, stage.state, seen, now)
                    && (stage.doubt == 0 || !stage.is_over(now));
                let stamp = stamped(self.stamp(&key.remote), flags, self.env.epoch(EPOCH_ANY));
                if !live {
                    return Packed(Packed::NO_FLOW);
                }
                if flags & FLOW_OWN_NODE != 0 || held == stamp {
                    return self.of_flow(flags);
                }
                Packed::stale(flags)
            }
            Held::None => Packed(Packed::NO_FLOW),
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
