//! The whole way of a packet: source binding, what always passes, flow state, the own node, classification.
//! One function, run by the kernel's programs for packets and for `BPF_PROG_TEST_RUN`, and by userspace for
//! `explain`, `matrix` and tests. It decides; the shell counts, reports and returns.

use crate::addr::Addr;
use crate::classify::{Decision, Tables};
use crate::event::{Action, Direction, Outcome, Reason};
use crate::packet::{
    Bytes, Embedded, ND_MAX_BYTES, Packet, PacketView, SCTP, Shape, TCP, UDP, parse_embedded,
};
use crate::wire::{
    COUNTER_NONE, ENDPOINT_HOST, ENDPOINT_QUARANTINED, ENDPOINT_UNBOUND, ENDPOINT_USED, EndpointConfig,
    EndpointWord, FLOW_KIND_FLOW, FlowEntry, FlowKey, NO_ENDPOINT, RULESET_AUDIT, RULESET_OPEN,
};

/// Where a packet came to the hook from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A device.
    Forwarded,
    /// The pod's own interface: a packet of the pod, or one that came back to it.
    OwnInterface,
    /// Another station than the pod, where its MAC address is known: from its interface a frame that bears another
    /// one, towards it a frame that is for another one.
    OtherStation,
    /// The node itself: no device, and a socket (without the socket it can be forged).
    OwnNode,
    /// The pod itself, by way of a Service that chose it. Of what a pod in the node's network sends: by way of the loopback
    /// device, to whom is known where it ends.
    Hairpin,
}

impl Origin {
    /// A number for it.
    #[inline(always)]
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The origin of this number; of one that stands for none a device.
    #[inline(always)]
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::OwnInterface,
            2 => Self::OtherStation,
            3 => Self::OwnNode,
            4 => Self::Hairpin,
            _ => Self::Forwarded,
        }
    }
}

/// A flow found in an endpoint's map.
pub trait Flows {
    /// What stands for a found entry.
    type Handle: Copy;
    /// Looks a flow up.
    fn find(&self, slot: u32, key: &FlowKey) -> Option<Self::Handle>;
    /// Stamp and tag, in one load.
    fn deciding(&self, flow: Self::Handle) -> (u32, u32);
    /// Seconds last seen, and state.
    fn age(&self, flow: Self::Handle) -> (u32, u32);
    /// Stores stamp and tag, in one store.
    fn renew(&self, flow: Self::Handle, stamp: u32, tag: u32);
    /// Stores seconds last seen and state.
    fn touch(&self, flow: Self::Handle, seen: u32, state: u32);
    /// Of a datagram: bytes that have passed, and that it has.
    fn passed(&self, flow: Self::Handle) -> (u32, u32);
    /// Stores bytes that have passed, and that a datagram has.
    fn pass(&self, flow: Self::Handle, passed: u32, total: u32);
    /// Makes or replaces an entry. A full table makes none and is counted by the implementation.
    fn insert(&self, slot: u32, key: &FlowKey, entry: &FlowEntry);
    /// Takes a datagram out.
    fn remove(&self, slot: u32, key: &FlowKey);
}

/// Everything outside the packet that a verdict depends on.
pub trait Environment: Tables + Flows {
    /// `endpoint_cfg[slot]`.
    fn config(&self, slot: u32) -> Option<&EndpointConfig>;
    /// `endpoints[slot]`, in one load.
    fn endpoint(&self, slot: u32) -> Option<EndpointWord>;
    /// `epochs[cell]`.
    fn epoch(&self, cell: u32) -> u32;
    /// The epoch of all prefixes.
    fn prefix_epoch(&self) -> u32;
    /// True if the node drops nothing: `node_state.mode`.
    fn is_audit(&self) -> bool;
    /// Seconds of the monotonic clock.
    fn now(&self) -> u32;
    /// True if packets are judged again where they are delivered. Else a virtual address is denied, and every other judged
    /// as what it is.
    fn delivers(&self) -> bool;

    /// True if this node's rules translate what is sent to this address and port: a node's, of a Service or a pod.
    fn is_node_port(&self, remote: &Addr, protocol: u8, port: u16) -> bool;

    /// [`by_tuple`]. The kernel's programs have it as a global function.
    #[inline(always)]
    fn by_tuple(&self, work: &mut Work, at: At) -> Packed
    where
        Self: Sized,
    {
        by_tuple(self, work, at)
    }

    /// [`existing`]. The kernel's programs have it as a global function.
    #[inline(always)]
    fn existing(&self, work: &mut Work, at: At) -> Packed
    where
        Self: Sized,
    {
        existing(self, work, at)
    }

    /// [`ahead`]. The kernel's programs have it as a global function.
    #[inline(always)]
    fn ahead(&self, work: &Work, verdict: Packed) -> Packed
    where
        Self: Sized,
    {
        ahead(self, work, verdict)
    }

    /// [`decide`]. The kernel's programs have it as a global function.
    #[inline(always)]
    fn decide(&self, remote: &Addr, ruleset: u16, protocol: u8, port: u16) -> Packed
    where
        Self: Sized,
    {
        decide(self, remote, ruleset, protocol, port)
    }
}

/// Whether a verdict is news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// A denial, or a flow that was made: worth an event.
    Event,
    /// One packet of many.
    None,
}

/// Where else a packet is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Nowhere.
    Done,
    /// Again where it is delivered, for it may be translated.
    Again,
    /// Only there: it is for a virtual address, and of no flow yet.
    Waits,
}

/// What happens to a packet, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Allowed or denied, as if everything were enforced.
    pub action: Action,
    /// True if it is denied and passes nevertheless: the node, or every policy that isolates, is in audit mode.
    pub audited: bool,
    /// Why.
    pub reason: Reason,
    /// The rule that decided, or [`COUNTER_NONE`].
    pub counter: u32,
    /// Whether to tell.
    pub news: News,
    /// Where else it is judged.
    pub delivery: Delivery,
}

/// A [`Verdict`] in one register: what functions return that are their own in eBPF, where a value in memory
/// would cost stack in every caller.
#[derive(Clone, Copy, Debug)]
pub struct Packed(pub u64);

impl Packed {
    /// The tables could not be read.
    pub const UNREADABLE: Self = Self::new(Verdict::deny(Reason::TablesUnreadable));
    const REASON: u64 = 0xff;
    const DENIED: u64 = 1 << 8;
    const NEWS: u64 = 1 << 9;
    /// No verdict: there is no flow.
    const NO_FLOW: u64 = 1 << 10;
    /// The packet may open one.
    const MAY_OPEN: u64 = 1 << 11;
    /// Denied, and passes.
    const AUDITED: u64 = 1 << 12;
    /// The address may be translated: judged again where it is delivered.
    const AGAIN: u64 = 1 << 13;
    /// It is virtual: judged only there.
    const WAITS: u64 = 1 << 14;
    /// No verdict: there is a flow, of these flags (in the place of the counter), that the policies have to be asked about anew.
    const STALE: u64 = 1 << 15;
    /// Nobody has asked.
    const NOT_ASKED: Self = Self(Self::STALE);

    #[inline(always)]
    const fn new(verdict: Verdict) -> Self {
        let denied = match verdict.action {
            Action::Allow => 0,
            Action::Deny => Self::DENIED,
        };
        let news = match verdict.news {
            News::Event => Self::NEWS,
            News::None => 0,
        };
        let audited = if verdict.audited { Self::AUDITED } else { 0 };
        Self(verdict.reason as u64 | denied | news | audited | ((verdict.counter as u64) << 32))
    }

    /// The policies have to be asked about a flow of these flags.
    #[inline(always)]
    const fn stale(flags: u32) -> Self {
        Self(Self::STALE | ((flags as u64) << 32))
    }

    /// True where a flow decided.
    #[inline(always)]
    #[must_use]
    pub const fn is_of_flow(self) -> bool {
        self.0 & Self::REASON == Reason::Flow as u64 && !self.drops()
    }

    /// True where a rule allows it, a policy's or that of failsafe ports.
    #[inline(always)]
    const fn is_of_rule(self) -> bool {
        let reason = self.0 & Self::REASON;
        self.0 & Self::DENIED == 0 && (reason == Reason::Rule as u64 || reason == Reason::Failsafe as u64)
    }

    /// True where the tables could not be read.
    #[inline(always)]
    const fn is_unreadable(self) -> bool {
        self.0 & Self::REASON == Reason::TablesUnreadable as u64
    }

    /// True if the packet does not go on.
    #[inline(always)]
    #[must_use]
    pub const fn drops(self) -> bool {
        self.0 & (Self::DENIED | Self::AUDITED) == Self::DENIED
    }

    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)]
    const fn counter(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// What it stands for.
    #[inline(always)]
    #[must_use]
    #[allow(clippy::cast_possible_truncation)]
    pub fn verdict(self) -> Verdict {
        Verdict {
            action: if self.0 & Self::DENIED == 0 { Action::Allow } else { Action::Deny },
            audited: self.0 & Self::AUDITED != 0,
            reason: Reason::from_number(self.0 as u8).unwrap_or(Reason::TablesUnreadable),
            counter: self.counter(),
            news: if self.0 & Self::NEWS == 0 { News::None } else { News::Event },
            delivery: match self.0 & (Self::AGAIN | Self::WAITS) {
                0 => Delivery::Done,
                Self::AGAIN => Delivery::Again,
                _ => Delivery::Waits,
            },
        }
    }
}

impl Verdict {
    #[inline(always)]
    const fn allow(reason: Reason) -> Self {
        Self {
            action: Action::Allow,
            audited: false,
            reason,
            counter: COUNTER_NONE,
            news: News::None,
            delivery: Delivery::Done,
        }
    }

    #[inline(always)]
    const fn deny(reason: Reason) -> Self {
        Self { action: Action::Deny, news: News::Event, ..Self::allow(reason) }
    }

    /// What comes of the packet.
    #[inline(always)]
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match (self.action, self.audited) {
            (Action::Allow, _) => Outcome::Allow,
            (Action::Deny, false) => Outcome::Deny,
            (Action::Deny, true) => Outcome::Audit,
        }
    }

    #[inline(always)]
    const fn of(decision: Decision) -> Self {
        match decision {
            Decision::Open | Decision::Default(_) => Self::allow(Reason::NotIsolated),
            Decision::Rule { action, audited, reason, counter, peer: _ } => {
                let news = match action {
                    Action::Allow => News::None,
                    Action::Deny => News::Event,
                };
                Self { action, audited, counter, news, ..Self::allow(reason) }
            }
            Decision::Virtual { audited } => Self { audited, ..Self::deny(Reason::ServiceNotResolved) },
            Decision::Unreadable => Self::deny(Reason::TablesUnreadable),
        }
    }
}

/// Where a packet is judged.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// The endpoint.
    pub slot: u32,
    /// Which way.
    pub direction: Direction,
    /// From where.
    pub origin: Origin,
}

/// What one judgement works on: the frame that [`crate::packet::parse`] read, and places for what is looked
/// up and made. Eight-byte aligned; about 220 bytes, which the eBPF stack does not have to spare.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// The frame.
    pub packet: Packet,
    embedded: Embedded,
    key: FlowKey,
    entry: FlowEntry,
    /// The endpoint's rulesets and generation, read once.
    word: EndpointWord,
    /// The endpoint.
    slot: u32,
    /// Which of the endpoint's addresses the packet is to or from.
    own: u8,
    /// `epochs[EPOCH_ANY]`, read before the tables.
    any: u32,
    /// The last packet here that is judged again where it is delivered: its endpoint and its flow.
    sent_by: u32,
    sent: FlowKey,
    /// What the policies say now of the flow that the packet belongs to, where they were asked.
    again: Packed,
    /// Which of the CPU's places this is.
    pub place: u32,
    /// The endpoint opened the packet's flow.
    is_opener: bool,
    /// The endpoint is the node, or a pod in its network.
    is_host: bool,
    /// What the sender's socket says, where it is a socket of the node's network.
    pub ends: SocketEnds,
}

/// The ends of a connection as its socket knows them: what it sends is seen after translation, what it gets before the socket
/// sees it too, so that only these tell which answers belong to what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketEnds {
    /// Whom it is connected to.
    pub remote: Addr,
    /// At which port; 0: it is not connected.
    pub remote_port: u16,
    /// Its own port.
    pub local_port: u16,
    /// Its cookie, of UDP where it is not connected; else 0.
    pub cookie: u64,
}

impl SocketEnds {
    /// Of no socket, or of one that is not connected.
    pub const NONE: Self = Self { remote: Addr::UNSPECIFIED, remote_port: 0, local_port: 0, cookie: 0 };
}

impl Work {
    const NO_KEY: FlowKey = FlowKey {
        remote: Addr::UNSPECIFIED,
        local_port: 0,
        remote_port: 0,
        protocol: 0,
        local: 0,
        kind: FLOW_KIND_FLOW,
    };
    /// Before parsing.
    pub const EMPTY: Self = Self {
        packet: Packet::OTHER,
        embedded: Embedded::NONE,
        key: Self::NO_KEY,
        entry: FlowEntry { stamp: 0, tag: 0, seen: 0, state: 0, counter: 0, opened: 0 },
        word: EndpointWord { ingress: 0, egress: 0, generation: 0 },
        slot: NO_ENDPOINT,
        own: NOT_OWN,
        any: 0,
        sent_by: NO_ENDPOINT,
        sent: Self::NO_KEY,
        again: Packed::NOT_ASKED,
        place: 0,
        is_opener: false,
        is_host: false,
        ends: SocketEnds::NONE,
    };
}

/// Judges a parsed frame at an endpoint.
#[inline(always)]
pub fn judge<E: Environment, V: PacketView>(env: &E, view: &V, work: &mut Work, at: At) -> Verdict {
    let mut verdict = judged(env, view, work, at);
    // What no policy decides, as source binding: the node's mode alone lets it pass.
    if let Action::Deny = verdict.action
        && !verdict.audited
    {
        verdict.audited = env.is_audit();
    }
    verdict
}

#[inline(always)]
fn judged<E: Environment, V: PacketView>(env: &E, view: &V, work: &mut Work, at: At) -> Verdict {
    let Some(config) = env.config(at.slot) else {
        return Verdict::deny(Reason::UnknownEndpoint);
    };
    let Some(rulesets) = env.endpoint(at.slot) else {
        return Verdict::deny(Reason::UnknownEndpoint);
    };
    if config.flags & ENDPOINT_USED == 0 {
        return Verdict::deny(Reason::UnknownEndpoint);
    }
    work.word = rulesets;
    let packet = &work.packet;
    if let Origin::OtherStation = at.origin {
        return match at.direction {
            Direction::Egress => Verdict::deny(Reason::SpoofedSource),
            Direction::Ingress => Verdict { news: News::None, ..Verdict::deny(Reason::OtherStation) },
        };
    }
    if config.flags & ENDPOINT_QUARANTINED != 0 {
        return quarantined(packet, at.direction);
    }
    match packet.shape {
        Shape::BrokenIp => match at.direction {
            Direction::Egress => Verdict::deny(packet.error.reason()),
            Direction::Ingress => unreadable(env, rulesets.ingress, packet.error.reason()),
        },
        Shape::Arp => match at.direction {
            Direction::Ingress => Verdict::allow(Reason::Discovery),
            Direction::Egress if !of_station(config, view, packet) => Verdict::deny(Reason::SpoofedSource),
            Direction::Egress => arp(config, &packet.src),
        },
        Shape::Other => match at.direction {
            Direction::Egress => Verdict::deny(Reason::NotIp),
            Direction::Ingress => unreadable(env, rulesets.ingress, Reason::NotIp),
        },
        Shape::Opening
        | Shape::Ongoing
        | Shape::Stray
        | Shape::Later
        | Shape::DhcpDiscover
        | Shape::Neighbour
        | Shape::NeighbourAdvertisement
        | Shape::RouterAdvertisement
        | Shape::ListenerDiscovery
        | Shape::IcmpError
        | Shape::Unreadable => Judge { env, view, config, word: rulesets, at }.packet(work),
    }
}

/// What cannot be read: dropped where a policy isolates, passed and counted where none does.
#[inline(always)]
fn unreadable<E: Environment>(env: &E, ruleset: u16, reason: Reason) -> Verdict {
    if u32::from(ruleset) == RULESET_OPEN {
        Verdict::allow(Reason::UnreadableOpen)
    } else {
        isolated(env, ruleset, reason)
    }
}

/// Of an interface that may be anybody's: what tells whose it is, and nothing that carries more.
#[inline(always)]
const fn quarantined(packet: &Packet, direction: Direction) -> Verdict {
    match (packet.shape, direction) {
        _ if packet.hidden => Verdict::deny(Reason::UnknownEndpoint),
        (Shape::Arp | Shape::Neighbour | Shape::NeighbourAdvertisement, _)
        | (Shape::RouterAdvertisement, Direction::Ingress) => Verdict::allow(Reason::Discovery),
        (
            Shape::RouterAdvertisement
            | Shape::Opening
            | Shape::Ongoing
            | Shape::Stray
            | Shape::Later
            | Shape::DhcpDiscover
            | Shape::ListenerDiscovery
            | Shape::IcmpError
            | Shape::Unreadable
            | Shape::BrokenIp
            | Shape::Other,
            _,
        ) => Verdict::deny(Reason::UnknownEndpoint),
    }
}

/// Denied because the direction is isolated, where no rule was asked.
#[inline(always)]
fn isolated<E: Environment>(env: &E, ruleset: u16, reason: Reason) -> Verdict {
    let audited = env.ruleset(ruleset.into()).is_some_and(|found| found.flags & RULESET_AUDIT != 0);
    Verdict { audited, ..Verdict::deny(reason) }
}

/// ARP from a pod: its own address, or none (a probe, RFC 5227).
#[inline(always)]
fn arp(config: &EndpointConfig, sender: &Addr) -> Verdict {
    if sender.same(&Addr::v4([0; 4]))
        || own_index(config, sender).is_some()
        || config.flags & ENDPOINT_UNBOUND != 0
    {
        Verdict::allow(Reason::Discovery)
    } else {
        Verdict::deny(Reason::SpoofedSource)
    }
}

/// Which of the endpoint's addresses this is.
#[inline(always)]
fn own_index(config: &EndpointConfig, addr: &Addr) -> Option<u8> {
    match position_of(config, addr) {
        NOT_OWN => None,
        index => Some(index),
    }
}

/// [`own_index`] at an endpoint of the node's network: there all addresses are one, for what leaves may bear another than its
/// socket does. What is for a group has no flows.
#[inline(always)]
fn host_index(direction: Direction, local: &Addr) -> u8 {
    match direction {
        Direction::Ingress if local.is_multicast() => NOT_OWN,
        Direction::Ingress | Direction::Egress => 0,
    }
}

/// No index: there are fewer addresses.
const NOT_OWN: u8 = u8::MAX;

/// [`own_index`] as a number: in eBPF a function of its own.
#[inline(never)]
// A counter of its own is a byte; `enumerate` counts in 64 bits and would need a cast.
#[allow(clippy::explicit_counter_loop)]
fn position_of(config: &EndpointConfig, addr: &Addr) -> u8 {
    let mut index = 0u8;
    for own in &config.addrs {
        if u32::from(index) >= config.addr_count {
            break;
        }
        if own.same(addr) {
            return index;
        }
        index += 1;
    }
    NOT_OWN
}

/// Most options of a neighbour discovery message: each has 8 bytes at least.
const ND_OPTIONS: u32 = ND_MAX_BYTES / 8;
/// Types of messages (RFC 4861 section 4).
const ND_ROUTER_SOLICITATION: u8 = 133;
const ND_SOLICITATION: u8 = 135;
const ND_ADVERTISEMENT: u8 = 136;
const ND_REDIRECT: u8 = 137;
/// Bytes of a solicitation or an advertisement with one link-layer address.
const ND_UNICAST_BYTES: u32 = 24 + 8;
/// Options that hold a link-layer address, of the sender or of the target (RFC 4861 section 4.6.1).
const ND_LINK_ADDRESS: [u8; 2] = [1, 2];

/// True unless ARP or neighbour discovery tells others on the link of another station than the endpoint's, where that is
/// known: behind a bridge they would send there. A link-local address has to be the station's (EUI-64, RFC 4291
/// appendix A): nobody knows the others', and the gateway's is one. No pod redirects.
#[inline(never)]
fn of_station<V: PacketView>(config: &EndpointConfig, view: &V, packet: &Packet) -> bool {
    if !config.is_bound_to_mac() {
        return true;
    }
    let [mac0, mac1, mac2, mac3, mac4, mac5, _, _] = config.mac;
    let station = [mac0, mac1, mac2, mac3, mac4, mac5];
    if let Shape::Arp = packet.shape {
        return view.load_far::<6>(packet.inner).is_some_and(|Bytes(sender)| sender == station);
    }
    let own = Addr::v6([0xfe, 0x80, 0, 0, 0, 0, 0, 0, mac0 ^ 2, mac1, mac2, 0xff, 0xfe, mac3, mac4, mac5]);
    let is_own = |addr: &Addr| !addr.is_link_local_v6() || addr.same(&own);
    let Some(Bytes([kind])) = view.load_far::<1>(packet.inner.wrapping_sub(8)) else {
        return false;
    };
    if kind == ND_REDIRECT || !is_own(&packet.src) {
        return false;
    }
    let mut at = packet.inner;
    if kind != ND_ROUTER_SOLICITATION {
        if let Shape::NeighbourAdvertisement = packet.shape
            && !view.load_far::<16>(at).is_some_and(|Bytes(target)| is_own(&Addr::v6(target)))
        {
            return false;
        }
        at += 16;
    }
    for _ in 0..ND_OPTIONS {
        let Some(Bytes([kind, length, address @ ..])) = view.load_far::<8>(at) else {
            return true;
        };
        if length == 0 || (ND_LINK_ADDRESS.contains(&kind) && address != station) {
            return false;
        }
        at += u32::from(length) * 8;
    }
    true
}

/// Leaves in `place` which of the endpoint's addresses this is. There, because the verifier would go on with each of the
/// numbers that a function returns as a case of its own; what comes from memory is one number.
#[inline(never)]
fn locate(config: &EndpointConfig, addr: &Addr, place: &mut u8) {
    *place = position_of(config, addr);
}

struct Judge<'a, E, V> {
    env: &'a E,
    view: &'a V,
    config: &'a EndpointConfig,
    word: EndpointWord,
    at: At,
}

impl<E: Environment, V: PacketView> Judge<'_, E, V> {
    #[inline(always)]
    fn packet(&self, work: &mut Work) -> Verdict {
        let packet = &work.packet;
        let (local, remote) = match self.at.direction {
            Direction::Ingress => (&packet.dst, &packet.src),
            Direction::Egress => (&packet.src, &packet.dst),
        };
        work.is_host = self.is_host();
        if work.is_host {
            work.own = host_index(self.at.direction, local);
        } else {
            locate(self.config, local, &mut work.own);
        }
        let own = if work.own == NOT_OWN { None } else { Some(work.own) };
        if let Some(verdict) = self.unconditional(packet, own) {
            return verdict;
        }
        if let Shape::Unreadable = packet.shape {
            return unreadable(self.env, self.word.ruleset(self.at.direction), packet.error.reason());
        }
        if self.is_to_itself(remote, packet.protocol) {
            return Verdict::allow(Reason::SelfTraffic);
        }
        if let Shape::IcmpError = packet.shape
            && let Some(verdict) = self.unrelated(work)
        {
            return verdict;
        }
        self.env.by_tuple(work, self.at).verdict()
    }

    #[inline(always)]
    const fn is_host(&self) -> bool {
        self.config.flags & ENDPOINT_HOST != 0
    }

    /// True for what the pod says to itself.
    #[inline(always)]
    fn is_to_itself(&self, remote: &Addr, protocol: u8) -> bool {
        match (self.at.direction, self.at.origin) {
            // Nobody sends so but who asks.
            (Direction::Egress, Origin::OwnInterface) if self.is_host() => true,
            // The packet's mark said so. What has ports makes a flow: its tuple was another's before, perhaps.
            (Direction::Ingress, Origin::OwnInterface) if self.is_host() => {
                !matches!(protocol, TCP | UDP | SCTP)
            }
            (Direction::Egress, _) | (Direction::Ingress, Origin::OwnInterface) => {
                own_index(self.config, remote).is_some()
            }
            (
                Direction::Ingress,
                Origin::Forwarded | Origin::OwnNode | Origin::OtherStation | Origin::Hairpin,
            ) => false,
        }
    }

    /// What passes or is dropped whatever the policies say: source binding and discovery.
    #[inline(always)]
    fn unconditional(&self, packet: &Packet, own: Option<u8>) -> Option<Verdict> {
        let from_pod = match self.at.direction {
            Direction::Ingress => false,
            Direction::Egress => true,
        };
        if from_pod && !self.is_host() && matches!(packet.shape, Shape::RouterAdvertisement) {
            return Some(Verdict::deny(Reason::RouterAdvertisement));
        }
        if from_pod && self.config.flags & ENDPOINT_UNBOUND == 0 {
            // Discovery may come from the link-local or, before there is any, from the unspecified address.
            let link_scope =
                own.is_some() || packet.src.is_link_local_v6() || packet.src.same(&Addr::UNSPECIFIED);
            let bound = match packet.shape {
                Shape::DhcpDiscover => true,
                Shape::ListenerDiscovery => link_scope,
                Shape::Neighbour => link_scope && of_station(self.config, self.view, packet),
                Shape::NeighbourAdvertisement => {
                    link_scope && self.advertises_itself(packet) && of_station(self.config, self.view, packet)
                }
                Shape::Opening
                | Shape::Ongoing
                | Shape::Stray
                | Shape::Later
                | Shape::IcmpError
                | Shape::RouterAdvertisement
                | Shape::Unreadable
                | Shape::BrokenIp
                | Shape::Arp
                | Shape::Other => own.is_some(),
            };
            if !bound || (packet.hidden && own.is_none()) {
                return Some(Verdict::deny(Reason::SpoofedSource));
            }
        }
        match packet.shape {
            _ if packet.hidden => {
                Some(unreadable(self.env, self.word.ruleset(self.at.direction), packet.error.reason()))
            }
            // Only from the link (RFC 3810 section 5.1.14): a hop limit of 1 a sender far away can arrange for.
            Shape::ListenerDiscovery
                if !from_pod && !packet.src.is_link_local_v6() && !packet.src.same(&Addr::UNSPECIFIED) =>
            {
                None
            }
            Shape::Neighbour | Shape::NeighbourAdvertisement
                if from_pod && !self.is_host() && !self.stays_on_link(packet) =>
            {
                None
            }
            // A report is for a group (RFC 3810 section 5.2.14), and queries are a router's.
            Shape::ListenerDiscovery if from_pod && !packet.dst.is_multicast_v6() => None,
            Shape::DhcpDiscover
            | Shape::Neighbour
            | Shape::NeighbourAdvertisement
            | Shape::ListenerDiscovery
            | Shape::RouterAdvertisement => Some(Verdict::allow(Reason::Discovery)),
            Shape::Opening
            | Shape::Ongoing
            | Shape::Stray
            | Shape::Later
            | Shape::IcmpError
            | Shape::Unreadable
            | Shape::BrokenIp
            | Shape::Arp
            | Shape::Other => None,
        }
    }

    /// Discovery of a pod that nobody sends on: to a group or a link-local address; to another a question about that
    /// address, or an answer, with a link-layer address and nothing else. The node is a router: it forwards what is for
    /// others whatever the hop limit was.
    #[inline(never)]
    fn stays_on_link(&self, packet: &Packet) -> bool {
        if packet.dst.is_multicast_v6() || packet.dst.is_link_local_v6() {
            return true;
        }
        let Some(Bytes([kind])) = self.view.load_far::<1>(packet.inner.wrapping_sub(8)) else {
            return false;
        };
        let Some(Bytes(target)) = self.view.load_far::<16>(packet.inner) else {
            return false;
        };
        // To the end of the frame.
        let is_short = self.view.len().wrapping_sub(packet.inner.wrapping_sub(8)) <= ND_UNICAST_BYTES;
        match kind {
            ND_SOLICITATION => is_short && Addr::v6(target).same(&packet.dst),
            ND_ADVERTISEMENT => is_short,
            _ => false,
        }
    }

    /// A neighbour advertisement whose target is the pod's own or link-local.
    #[inline(always)]
    fn advertises_itself(&self, packet: &Packet) -> bool {
        let Some(Bytes(target)) = self.view.load_far::<16>(packet.inner) else {
            return false;
        };
        let target = Addr::v6(target);
        target.is_link_local_v6() || own_index(self.config, &target).is_some()
    }

    /// What an ICMP error is that no flow decides. `None`: the key of the flow that it is about is in the work.
    #[inline(always)]
    fn unrelated(&self, work: &mut Work) -> Option<Verdict> {
        if let (Direction::Ingress, Origin::OwnNode) = (self.at.direction, self.at.origin) {
            return Some(Verdict::allow(Reason::OwnNode));
        }
        let ruleset = self.word.ruleset(self.at.direction);
        if u32::from(ruleset) == RULESET_OPEN {
            return Some(Verdict::allow(Reason::NotIsolated));
        }
        // The node routes: it tells senders what became of packets of others, which it keeps no flows of.
        if let (Direction::Egress, true) = (self.at.direction, self.is_host()) {
            return Some(Verdict::allow(Reason::RelatedError));
        }
        (self.embedded(work) == EMBEDDED_NONE).then(|| isolated(self.env, ruleset, Reason::UnrelatedError))
    }

    /// Works out the key of the flow that an ICMP error is about.
    #[inline(never)]
    fn embedded(&self, work: &mut Work) -> u32 {
        let packet = &work.packet;
        let inner = &mut work.embedded;
        if parse_embedded(self.view, packet.inner, packet.protocol, inner).is_none() {
            return EMBEDDED_NONE;
        }
        // Towards the pod the error is about a packet that the pod sent, from it about one that it got.
        let (local, remote, local_port, remote_port, outer) = match self.at.direction {
            Direction::Ingress => (&inner.src, &inner.dst, inner.src_port, inner.dst_port, &packet.dst),
            Direction::Egress => (&inner.dst, &inner.src, inner.dst_port, inner.src_port, &packet.src),
        };
        let index = if self.is_host() {
            host_index(self.at.direction, local)
        } else {
            position_of(self.config, local)
        };
        if index == NOT_OWN {
            return EMBEDDED_NONE;
        }
        // What the pod tells is for who sent what it is about, and for nobody else.
        let is_for_another = match self.at.direction {
            Direction::Ingress => false,
            Direction::Egress => !packet.dst.same(remote),
        };
        if !outer.same(local) || is_for_another {
            return EMBEDDED_NONE;
        }
        work.key = FlowKey {
            remote: *remote,
            local_port,
            remote_port,
            protocol: inner.protocol,
            local: index,
            kind: FLOW_KIND_FLOW,
        };
        EMBEDDED_KEY
    }
}

/// The error carries no packet of this endpoint.
const EMBEDDED_NONE: u32 = 0;
/// The key of its flow is known.
const EMBEDDED_KEY: u32 = 1;

mod delivered;
mod fragments;
mod leaving;
mod tuple;

pub use delivered::delivered;
pub use leaving::{answering, leaving};
pub use tuple::{ahead, by_tuple, decide, existing};

#[cfg(test)]
pub(crate) mod tests;

#[cfg(test)]
mod host_tests;
