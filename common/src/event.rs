//! What a program tells userspace of a new verdict, and the reasons that verdicts have.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::Addr;

/// Which way a packet goes, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    /// 0 ingress, 1 egress: as in events, counter keys and the index of `verdicts`.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> u8 {
        match self {
            Self::Ingress => 0,
            Self::Egress => 1,
        }
    }

    /// The word for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// It goes on.
    Allow,
    /// It is dropped.
    Deny,
}

/// What came of a packet, in events and as the index of `verdicts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// Allowed.
    Allow,
    /// Denied and dropped.
    Deny,
    /// Denied and passed: audit.
    Audit,
}

impl Outcome {
    /// All of them, in order of their numbers.
    pub const ALL: [Self; 3] = [Self::Allow, Self::Deny, Self::Audit];

    /// 0 allowed, 1 dropped, 2 denied and passed.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> u8 {
        match self {
            Self::Allow => 0,
            Self::Deny => 1,
            Self::Audit => 2,
        }
    }

    /// The outcome of this number.
    #[must_use]
    pub fn from_index(index: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.index() == index)
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $value:literal, $action:ident, $text:literal;)*) => {
        /// Why a packet was allowed or denied.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[doc = $doc])+ $name = $value,)* }

        impl Reason {
            /// All of them, in order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The word for people and for `-o json`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What it is for, one line, for `--help`.
            #[must_use]
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii(),)* }
            }

            /// The reason of this number.
            #[must_use]
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($value => Some(Self::$name),)* _ => None }
            }

            /// What happens for this reason; `None` where the rule's own action tells.
            #[must_use]
            pub const fn usual_action(self) -> Action {
                match self { $(Self::$name => Action::$action,)* }
            }
        }
    };
}

reasons! {
    /// A rule of a policy decided.
    Rule = 0, Allow, "rule";
    /// No policy selects the pod for this direction.
    NotIsolated = 1, Allow, "not-isolated";
    /// A policy isolates the pod in this direction and no rule allows the packet.
    Isolated = 2, Deny, "isolated";
    /// A policy that could not be read isolates the pod, and no rule allows the packet.
    InvalidClosed = 3, Deny, "invalid-closed";
    /// The pod's own node generated the packet.
    OwnNode = 4, Allow, "own-node";
    /// The pod speaks to itself.
    SelfTraffic = 5, Allow, "self";
    /// The packet belongs to a flow that was allowed when it opened and still is.
    Flow = 6, Allow, "flow";
    /// Neighbour discovery, multicast listener discovery, address resolution or DHCP discovery.
    Discovery = 7, Allow, "discovery";
    /// An ICMP error about an allowed flow.
    RelatedError = 8, Allow, "related-error";
    /// The packet could not be read, in a direction that nothing isolates.
    UnreadableOpen = 9, Allow, "unreadable-open";
    /// A Service's virtual address that nobody has translated, from a pod whose egress is isolated.
    ServiceNotResolved = 10, Deny, "service-not-resolved";
    /// The source address is not the pod's.
    SpoofedSource = 11, Deny, "spoofed-source";
    /// From a pod, something that is neither IPv4, IPv6 nor ARP, or is tagged.
    NotIp = 12, Deny, "not-ip";
    /// A router advertisement from a pod.
    RouterAdvertisement = 13, Deny, "router-advertisement";
    /// The packet ends before its headers do.
    Truncated = 14, Deny, "truncated";
    /// A header contradicts itself.
    BadHeader = 15, Deny, "bad-header";
    /// Source routing: IPv4's options, an IPv6 routing header of type 0 or with segments left.
    SourceRoute = 16, Deny, "source-route";
    /// A fragment that no honest sender makes: without the whole transport header, or over it.
    Fragment = 17, Deny, "fragment";
    /// IPv6 extension headers that are too many, unknown or out of place.
    ExtensionHeader = 18, Deny, "extension-header";
    /// An ICMP error about no allowed flow.
    UnrelatedError = 19, Deny, "unrelated-error";
    /// The policy tables could not be read at this moment; the packet makes no state.
    TablesUnreadable = 20, Deny, "tables-unreadable";
    /// The interface is ours and no endpoint is programmed for it.
    UnknownEndpoint = 21, Deny, "unknown-endpoint";
    /// A bridge did not know where the receiver is, and copied the packet to every port; counted, not told.
    OtherStation = 22, Deny, "other-station";
    /// A later fragment of a datagram whose first fragment has not passed here, or not yet.
    FragmentAhead = 23, Deny, "fragment-ahead";
    /// To a Service: judged again where the backend that was chosen gets it.
    Service = 24, Allow, "service";
    /// One of the ports that always stay open, of the node or of a pod in its network.
    Failsafe = 25, Allow, "failsafe";
}

/// In place of a reason: no verdict, but word that the endpoint's table of flows is half full.
pub const NOTICE_FLOWS_HALF: u8 = u8::MAX;

/// Number of reasons.
#[allow(clippy::cast_possible_truncation)]
pub const REASONS: u32 = Reason::ALL.len() as u32;

/// Entries of `verdicts`: by direction, outcome and reason.
pub const VERDICT_CELLS: u32 = 6 * REASONS;

/// Index into `verdicts`.
#[inline(always)]
#[must_use]
pub const fn verdict_cell(direction: Direction, outcome: Outcome, reason: Reason) -> u32 {
    (reason as u32) * 6 + (direction.index() as u32) * 3 + outcome.index() as u32
}

/// One verdict in the ring.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Event {
    /// Nanoseconds of the monotonic clock.
    pub time: u64,
    /// The endpoint.
    pub slot: u32,
    /// The rule that decided, [`crate::wire::COUNTER_NONE`] if none did.
    pub counter: u32,
    /// The pod's address; unspecified where the packet could not be read so far.
    pub local: Addr,
    /// The peer's address.
    pub remote: Addr,
    /// The pod's port.
    pub local_port: u16,
    /// The peer's port.
    pub remote_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// [`Direction::index`].
    pub direction: u8,
    /// [`Outcome::index`].
    pub outcome: u8,
    /// Number of the [`Reason`].
    pub reason: u8,
    /// Bytes from the IP header.
    pub bytes: u32,
    /// TCP flags.
    pub tcp_flags: u8,
    /// Not used; 0.
    pub reserved: u8,
    /// Where a packet was sent to that was translated before it was delivered here: the port ...
    pub via_port: u16,
    /// ... and the address; unspecified where it was not, or nobody knows.
    pub via: Addr,
}

#[cfg(test)]
mod tests;
