//! The words of questions and answers: traffic, directions, verdicts and the reasons behind them.
//! It knows nothing of manifests.

use std::fmt;
use std::net::IpAddr;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::Ipv4,
            IpAddr::V6(_) => Family::Ipv6,
        }
    }
}

/// A transport protocol that a policy can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// `TCP`.
    Tcp,
    /// `UDP`.
    Udp,
    /// `SCTP`.
    Sctp,
}

impl Protocol {
    /// Reads exactly `TCP`, `UDP` or `SCTP` (S24).
    #[must_use]
    pub fn parse(text: &str) -> Option<Protocol> {
        match text {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

/// The first packet of a connection, as far as policies can see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Traffic {
    /// A protocol and the destination's port, after translation (S23).
    To(Protocol, u16),
    /// An ICMP or `ICMPv6` echo request.
    IcmpEcho,
}

impl Traffic {
    /// TCP to a port.
    #[must_use]
    pub fn tcp(port: u16) -> Traffic {
        Traffic::To(Protocol::Tcp, port)
    }

    /// UDP to a port.
    #[must_use]
    pub fn udp(port: u16) -> Traffic {
        Traffic::To(Protocol::Udp, port)
    }

    /// SCTP to a port.
    #[must_use]
    pub fn sctp(port: u16) -> Traffic {
        Traffic::To(Protocol::Sctp, port)
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Traffic::To(protocol, port) => write!(f, "{protocol}/{port}"),
            Traffic::IcmpEcho => f.write_str("ICMP"),
        }
    }
}

/// A direction, as seen from the pod that is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Towards the pod.
    Ingress,
    /// From the pod.
    Egress,
}

/// Allowed or denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// The connection may open.
    Allow,
    /// It is dropped.
    Deny,
}

/// A policy's namespace and name.
pub type PolicyKey = (String, String);

/// Why one direction of one pod allows or denies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// No policy selects the pod for this direction: allowed.
    NotIsolated,
    /// A rule allows it: the first one that matches by policy namespace, policy name and position.
    Rule {
        /// The policy of the rule.
        policy: PolicyKey,
        /// 0-based position in `spec.ingress` or `spec.egress`.
        index: usize,
    },
    /// Policies select the pod, and no rule matches: denied.
    Isolated {
        /// The first isolating policy by namespace and name.
        first: PolicyKey,
        /// All of them, in that order.
        all: Vec<PolicyKey>,
    },
    /// As `Isolated`, and every isolating policy isolates because it is invalid.
    InvalidClosed {
        /// The first isolating policy by namespace and name.
        first: PolicyKey,
        /// All of them, in that order.
        all: Vec<PolicyKey>,
    },
    /// A pod reaches its own addresses: allowed.
    SelfTraffic,
    /// No manifest declares the pod's Namespace: denied.
    UndeclaredNamespace,
    /// Isolated egress to a virtual address of a Service, whose backend nobody has chosen here: denied.
    ServiceUnresolved,
}

impl Reason {
    /// What the reason means for the packet.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Reason::NotIsolated | Reason::Rule { .. } | Reason::SelfTraffic => Verdict::Allow,
            Reason::Isolated { .. }
            | Reason::InvalidClosed { .. }
            | Reason::UndeclaredNamespace
            | Reason::ServiceUnresolved => Verdict::Deny,
        }
    }

    /// The kebab-case name, as `explain -o json` spells reasons.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Reason::NotIsolated => "not-isolated",
            Reason::Rule { .. } => "rule",
            Reason::Isolated { .. } => "isolated",
            Reason::InvalidClosed { .. } => "invalid-closed",
            Reason::SelfTraffic => "self",
            Reason::UndeclaredNamespace => "undeclared-namespace",
            Reason::ServiceUnresolved => "service-unresolved",
        }
    }
}

/// The verdict of one direction of one pod, with its evidence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DirVerdict {
    /// Allowed or denied; always what `reason` says.
    pub verdict: Verdict,
    /// The evidence.
    pub reason: Reason,
}

impl From<Reason> for DirVerdict {
    fn from(reason: Reason) -> DirVerdict {
        DirVerdict { verdict: reason.verdict(), reason }
    }
}

/// The verdict of a connection from one pod to another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PairVerdict {
    /// The source pod's egress.
    pub egress: DirVerdict,
    /// The destination pod's ingress.
    pub ingress: DirVerdict,
}

impl PairVerdict {
    /// S4: both the source's egress and the destination's ingress have to allow.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match (self.egress.verdict, self.ingress.verdict) {
            (Verdict::Allow, Verdict::Allow) => Verdict::Allow,
            (Verdict::Deny, _) | (_, Verdict::Deny) => Verdict::Deny,
        }
    }
}
