//! A packet at a pod's interface, before policies and flows: who may send what, and what always passes. It owns the
//! order of these questions; policies and flows are asked by whoever calls.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::{Contents, Datagram, Flaw, Inner, Link, Reading, Segment, Signal};
use crate::verdict::{Direction, Protocol, Reason, Traffic};

/// A pod's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// How its frames start.
    pub link: Link,
    /// Behind a bridge, the pod's MAC address.
    pub station: Option<[u8; 6]>,
    /// Whether an administrator left source binding on.
    pub binding: Binding,
    /// Whether it is known whose it is.
    pub owner: Owner,
}

/// Whether a pod may use other addresses than its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// It may not.
    On,
    /// An administrator said that it may.
    Off,
}

/// Whether it is known whose an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A pod's.
    Known,
    /// It may be anybody's: only who it is may be told.
    Unknown,
}

/// From where a packet comes to the hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// From a device that is not the pod's.
    Elsewhere,
    /// From the pod's own interface.
    Pod,
    /// From the pod's own node: no device, and a socket.
    Node,
}

/// Why a packet passes or does not, in the words of the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Because {
    /// A rule allows it.
    Rule,
    /// No policy selects the pod in this direction.
    NotIsolated,
    /// Policies isolate it, and no rule allows it.
    Isolated,
    /// As before, all of them being invalid.
    InvalidClosed,
    /// The own node sent it.
    OwnNode,
    /// The pod speaks to itself.
    SelfTraffic,
    /// It belongs to a flow that is allowed.
    Flow,
    /// It tells who is where.
    Discovery,
    /// An error about a flow that is allowed.
    RelatedError,
    /// It could not be read, and nothing isolates.
    UnreadableOpen,
    /// A virtual address before its translation.
    ServiceNotResolved,
    /// From an address that is not the pod's.
    SpoofedSource,
    /// From a pod, neither IPv4, IPv6 nor ARP.
    NotIp,
    /// From a pod.
    RouterAdvertisement,
    /// See [`Flaw::Truncated`].
    Truncated,
    /// See [`Flaw::BadHeader`].
    BadHeader,
    /// See [`Flaw::SourceRoute`].
    SourceRoute,
    /// See [`Flaw::Fragment`].
    Fragment,
    /// See [`Flaw::ExtensionHeader`].
    ExtensionHeader,
    /// An error about no flow that is allowed.
    UnrelatedError,
    /// Nobody knows whose interface this is.
    UnknownEndpoint,
    /// A fragment whose first has not passed.
    FragmentAhead,
}

impl Because {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::NotIsolated => "not-isolated",
            Self::Isolated => "isolated",
            Self::InvalidClosed => "invalid-closed",
            Self::OwnNode => "own-node",
            Self::SelfTraffic => "self",
            Self::Flow => "flow",
            Self::Discovery => "discovery",
            Self::RelatedError => "related-error",
            Self::UnreadableOpen => "unreadable-open",
            Self::ServiceNotResolved => "service-not-resolved",
            Self::SpoofedSource => "spoofed-source",
            Self::NotIp => "not-ip",
            Self::RouterAdvertisement => "router-advertisement",
            Self::Truncated => "truncated",
            Self::BadHeader => "bad-header",
            Self::SourceRoute => "source-route",
            Self::Fragment => "fragment",
            Self::ExtensionHeader => "extension-header",
            Self::UnrelatedError => "unrelated-error",
            Self::UnknownEndpoint => "unknown-endpoint",
            Self::FragmentAhead => "fragment-ahead",
        }
    }

    /// Whether the packet passes.
    #[must_use]
    pub const fn passes(self) -> bool {
        match self {
            Self::Rule
            | Self::NotIsolated
            | Self::OwnNode
            | Self::SelfTraffic
            | Self::Flow
            | Self::Discovery
            | Self::RelatedError
            | Self::UnreadableOpen => true,
            Self::Isolated
            | Self::InvalidClosed
            | Self::ServiceNotResolved
            | Self::SpoofedSource
            | Self::NotIp
            | Self::RouterAdvertisement
            | Self::Truncated
            | Self::BadHeader
            | Self::SourceRoute
            | Self::Fragment
            | Self::ExtensionHeader
            | Self::UnrelatedError
            | Self::UnknownEndpoint
            | Self::FragmentAhead => false,
        }
    }
}

impl From<Flaw> for Because {
    fn from(flaw: Flaw) -> Because {
        match flaw {
            Flaw::Truncated => Because::Truncated,
            Flaw::BadHeader => Because::BadHeader,
            Flaw::SourceRoute => Because::SourceRoute,
            Flaw::Fragment => Because::Fragment,
            Flaw::ExtensionHeader => Because::ExtensionHeader,
        }
    }
}

impl From<&Reason> for Because {
    fn from(reason: &Reason) -> Because {
        match reason {
            Reason::NotIsolated => Because::NotIsolated,
            Reason::Rule { .. } => Because::Rule,
            // S34 isolates as a policy would.
            Reason::Isolated { .. } | Reason::UndeclaredNamespace => Because::Isolated,
            Reason::InvalidClosed { .. } => Because::InvalidClosed,
            Reason::SelfTraffic => Because::SelfTraffic,
            Reason::ServiceUnresolved => Because::ServiceNotResolved,
        }
    }
}

/// Where a packet is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// As seen from the pod.
    pub direction: Direction,
    /// From where it came.
    pub origin: Origin,
    /// Whether a policy isolates the pod in this direction.
    pub is_isolated: bool,
}

impl Hook {
    /// Towards the pod, and from it: somebody translated what it sent to another address, and chose the pod itself.
    pub(crate) fn is_from_itself(self, protocol: u8) -> bool {
        self.direction == Direction::Ingress && self.origin == Origin::Pod && matches!(protocol, 6 | 17 | 132)
    }
}

/// What is left to be asked about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Nothing.
    Decided(Because),
    /// Flows, and then policies.
    Segment(Segment, Ends),
    /// Whether its first fragment has passed.
    LaterPiece(Ends),
    /// Whether it is about a live flow.
    Error(Option<Inner>, Ends),
}

/// The two ends of a packet, as the pod sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Here: not always the pod's (multicast, or without source binding).
    pub local: IpAddr,
    /// There.
    pub remote: IpAddr,
    /// Whether `local` is the pod's.
    pub is_own: bool,
}

/// Asks everything of a packet that neither policies nor flows are asked.
#[must_use]
pub fn admit(endpoint: &Endpoint, reading: &Reading<'_>, hook: Hook) -> Admission {
    let egress = hook.direction == Direction::Egress;
    if endpoint.owner == Owner::Unknown {
        return Admission::Decided(tells_who_it_is(reading, hook.direction));
    }
    let unread = |flaw: Because| {
        // From a pod nothing passes that shows no source; towards it, policies have the say.
        Admission::Decided(if egress || hook.is_isolated { flaw } else { Because::UnreadableOpen })
    };
    match reading {
        Reading::NotIp => unread(Because::NotIp),
        Reading::Broken(flaw) => unread((*flaw).into()),
        Reading::Arp { .. } if !egress => Admission::Decided(Because::Discovery),
        Reading::Arp { station, sender } => {
            let bound = endpoint.binding == Binding::Off
                || *sender == Ipv4Addr::UNSPECIFIED
                || endpoint.addresses.contains(&IpAddr::V4(*sender));
            let own_station = endpoint.station.is_none_or(|own| own == *station);
            Admission::Decided(if bound && own_station { Because::Discovery } else { Because::SpoofedSource })
        }
        Reading::Ip(datagram) => ip(endpoint, datagram, hook),
    }
}

fn ip(endpoint: &Endpoint, datagram: &Datagram<'_>, hook: Hook) -> Admission {
    let egress = hook.direction == Direction::Egress;
    let (local, remote) = if egress { (datagram.src, datagram.dst) } else { (datagram.dst, datagram.src) };
    let ends = Ends { local, remote, is_own: endpoint.addresses.contains(&local) };
    // Towards the pod only, whoever it may speak for.
    if egress && matches!(datagram.contents, Contents::RouterAdvertisement) {
        return Admission::Decided(Because::RouterAdvertisement);
    }
    if egress
        && endpoint.binding == Binding::On
        && let Some(because) = unbound(endpoint, datagram)
    {
        return Admission::Decided(because);
    }
    let refused =
        |flaw: Flaw| Admission::Decided(if hook.is_isolated { flaw.into() } else { Because::UnreadableOpen });
    if let Some(flaw) = datagram.hidden {
        return refused(flaw);
    }
    let from_link = is_link_local(datagram.src) || datagram.src == Ipv6Addr::UNSPECIFIED;
    // A pod reports to groups; who is far away can arrange for a hop limit of 1.
    let on_its_link = if egress { datagram.dst.is_multicast() } else { from_link };
    match datagram.contents {
        Contents::Dhcp | Contents::RouterAdvertisement => return Admission::Decided(Because::Discovery),
        Contents::Neighbour(message) if !egress || stays_on_link(datagram, message) => {
            return Admission::Decided(Because::Discovery);
        }
        Contents::Listener if on_its_link => return Admission::Decided(Because::Discovery),
        Contents::Unreadable(flaw) => return refused(flaw),
        Contents::Listener
        | Contents::Neighbour(_)
        | Contents::LaterPiece
        | Contents::Segment(_)
        | Contents::Error(_) => {}
    }
    let to_itself = egress || hook.origin == Origin::Pod;
    if to_itself && endpoint.addresses.contains(&remote) {
        return Admission::Decided(Because::SelfTraffic);
    }
    match datagram.contents {
        Contents::Segment(segment) => Admission::Segment(segment, ends),
        Contents::LaterPiece => Admission::LaterPiece(ends),
        Contents::Error(inner) => Admission::Error(inner, ends),
        Contents::Listener
        | Contents::Dhcp
        | Contents::Neighbour(_)
        | Contents::RouterAdvertisement
        | Contents::Unreadable(_) => {
            Admission::Segment(Segment { ports: (0, 0), signal: Signal::Alone }, ends)
        }
    }
}

/// Why a pod may not send this, if it may not.
fn unbound(endpoint: &Endpoint, datagram: &Datagram<'_>) -> Option<Because> {
    let own = |address: IpAddr| endpoint.addresses.contains(&address);
    // Duplicate address detection comes from no address, and the first listener report too.
    let on_link =
        own(datagram.src) || is_link_local(datagram.src) || datagram.src == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let bound = match datagram.contents {
        Contents::Dhcp => true,
        Contents::Listener => on_link,
        Contents::Neighbour(message) => {
            on_link
                && advertises_own(endpoint, message)
                && speaks_for_own_station(endpoint, datagram.src, message)
        }
        Contents::RouterAdvertisement
        | Contents::Unreadable(_)
        | Contents::LaterPiece
        | Contents::Segment(_)
        | Contents::Error(_) => own(datagram.src),
    };
    // What does not pass for discovery has no more freedom than any other packet.
    let bound = bound && (datagram.hidden.is_none() || own(datagram.src));
    (!bound).then_some(Because::SpoofedSource)
}

/// A node forwards what is for others, and with it whatever stands in it: then a message asks about its own destination or
/// answers, and holds one link-layer address at most.
fn stays_on_link(datagram: &Datagram<'_>, message: &[u8]) -> bool {
    let IpAddr::V6(dst) = datagram.dst else { return true };
    if dst.is_multicast() || is_link_local(datagram.dst) {
        return true;
    }
    let short = message.len() <= 24 + 8;
    match message.first() {
        Some(135) => short && target(message) == Some(datagram.dst),
        Some(136) => short,
        _ => false,
    }
}

/// A neighbour advertisement is about the pod's own address, or one of the link.
fn advertises_own(endpoint: &Endpoint, message: &[u8]) -> bool {
    match (message.first(), target(message)) {
        (Some(136), Some(target)) => is_link_local(target) || endpoint.addresses.contains(&target),
        (Some(136), None) => false,
        _ => true,
    }
}

/// Behind a bridge, where others would send to whatever station is told: only the pod's own, in options (RFC 4861
/// section 4.6.1: 1 source, 2 target), and in link-local addresses, which are to be made from it (RFC 4291 appendix
/// A). Nobody redirects. What a trailer of the frame holds counts as options too: nobody sends one.
fn speaks_for_own_station(endpoint: &Endpoint, src: IpAddr, message: &[u8]) -> bool {
    let Some(station) = endpoint.station else { return true };
    let kind = message.first().copied().unwrap_or_default();
    let is_own = |address: IpAddr| !is_link_local(address) || address == link_local_of(station);
    let target_is_own = kind != 136 || target(message).is_some_and(is_own);
    let mut options = message.get(if kind == 133 { 8 } else { 24 }..).unwrap_or_default();
    while let [kind, length, address @ ..] = options {
        let Some(address) = address.get(..6) else { break };
        if *length == 0 || (matches!(kind, 1 | 2) && address != station) {
            return false;
        }
        options = options.get(usize::from(*length) * 8..).unwrap_or_default();
    }
    kind != 137 && is_own(src) && target_is_own
}

fn target(message: &[u8]) -> Option<IpAddr> {
    let bytes: [u8; 16] = message.get(8..24)?.try_into().ok()?;
    Some(IpAddr::from(bytes))
}

fn link_local_of(station: [u8; 6]) -> IpAddr {
    let [first, second, third, rest @ ..] = station;
    let [fourth, fifth, sixth] = rest;
    let identifier = [first ^ 2, second, third, 0xff, 0xfe, fourth, fifth, sixth];
    IpAddr::from(Ipv6Addr::from((0xfe80_u128 << 112) | u128::from(u64::from_be_bytes(identifier))))
}

/// `fe80::/10`.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Of an interface that may be anybody's.
fn tells_who_it_is(reading: &Reading<'_>, direction: Direction) -> Because {
    match reading {
        Reading::Arp { .. }
        | Reading::Ip(Datagram { contents: Contents::Neighbour(_), hidden: None, .. }) => Because::Discovery,
        Reading::Ip(Datagram { contents: Contents::RouterAdvertisement, hidden: None, .. })
            if direction == Direction::Ingress =>
        {
            Because::Discovery
        }
        Reading::Ip(_) | Reading::NotIp | Reading::Broken(_) => Because::UnknownEndpoint,
    }
}

/// What policies are asked about a packet of this protocol: only TCP, UDP and SCTP have ports that rules can name.
#[must_use]
pub fn traffic(protocol: u8, port: u16) -> Traffic {
    match protocol {
        6 => Traffic::To(Protocol::Tcp, port),
        17 => Traffic::To(Protocol::Udp, port),
        132 => Traffic::To(Protocol::Sctp, port),
        // As echo: the rules that name no ports.
        _ => Traffic::IcmpEcho,
    }
}

/// The verdict on a packet where no flow is known.
#[must_use]
pub fn judge_alone(
    endpoint: &Endpoint,
    reading: &Reading<'_>,
    hook: Hook,
    policies: &mut dyn FnMut(IpAddr, Traffic) -> Because,
) -> Because {
    let from_node = hook.direction == Direction::Ingress && hook.origin == Origin::Node;
    match admit(endpoint, reading, hook) {
        Admission::Decided(because) => because,
        Admission::LaterPiece(_) if hook.is_isolated => Because::FragmentAhead,
        Admission::LaterPiece(_) => Because::UnreadableOpen,
        Admission::Segment(..) | Admission::Error(..) if from_node => Because::OwnNode,
        Admission::Error(..) if hook.is_isolated => Because::UnrelatedError,
        Admission::Error(..) => Because::NotIsolated,
        Admission::Segment(segment, ends) => {
            let Reading::Ip(datagram) = reading else { return Because::NotIp };
            if ends.is_own && hook.is_from_itself(datagram.protocol) {
                return Because::SelfTraffic;
            }
            policies(ends.remote, traffic(datagram.protocol, segment.ports.1))
        }
    }
}
