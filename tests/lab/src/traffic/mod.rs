//! Real packets between the lab's namespaces: probes, long-lived connections, streams of datagrams, and the
//! servers that answer them. Knows namespaces and addresses; must not know what a policy is.

mod engine;
mod held;
mod server;
mod socket;
mod stream;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use portcullis_policy::model::{ObjectKey, Protocol};
use serde::{Deserialize, Serialize};

pub(crate) use engine::{Attempt, run};
pub use held::{Held, Liveness};
pub use server::{Server, Tally};
pub(crate) use socket::Path;
pub use stream::{StreamReport, UdpStream};

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }

    /// The name as verbs take it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Client {
    /// A pod, from its first address of the target's family.
    Pod(ObjectKey),
    /// The outside, from its end of the uplink.
    Outside,
    /// The outside, from one of its addresses.
    OutsideFrom(IpAddr),
    /// The pods' own node, from the address that its routes choose.
    Node,
}

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// A pod, at its first address of the family.
    Pod(ObjectKey, Family),
    /// Any address: one of the outside's, or a pod's.
    Address(IpAddr),
    /// The node, at its end of the uplink.
    Node(Family),
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ask {
    /// A connection, or a datagram and its answer.
    Port(Protocol, u16),
    /// An ICMP or ICMPv6 echo.
    Echo,
}

/// One try to reach somebody.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Probe {
    /// Who asks.
    pub from: Client,
    /// Who is asked.
    pub to: Target,
    /// What is asked.
    pub ask: Ask,
}

/// How probes are judged.
#[derive(Clone, Copy, Debug)]
pub struct ProbeOptions {
    /// How long silence lasts before it counts as a drop. Datagrams are sent three times within it.
    pub timeout: Duration,
    /// How many probes are under way at once.
    pub in_flight: usize,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(1), in_flight: 2000 }
    }
}

/// What became of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer came; of a server of the lab, its name: `NS/POD`, `node`, `outside`.
    Answered(Option<String>),
    /// A reset, or an ICMP port unreachable: the target was reached, and has no server there.
    Refused,
    /// Nothing came.
    Silent,
    /// The handshake was finished, and then nothing came.
    Stalled,
    /// A server of the lab answered that was not asked; its name.
    Misdelivered(String),
    /// The probe could not be made, or ended in an error of the network (no route); why.
    Failed(String),
}

impl Outcome {
    /// The cell of a matrix: `.` allowed, `X` denied, `?` neither can be said.
    #[must_use]
    pub const fn cell(&self) -> char {
        match self {
            Self::Answered(_) | Self::Refused => '.',
            Self::Silent => 'X',
            Self::Stalled | Self::Misdelivered(_) | Self::Failed(_) => '?',
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(Some(by)) => write!(f, "answered by {by}"),
            Self::Answered(None) => f.write_str("answered"),
            Self::Refused => f.write_str("refused (reset or port unreachable)"),
            Self::Silent => f.write_str("no answer"),
            Self::Stalled => f.write_str("connected, then no answer"),
            Self::Misdelivered(by) => write!(f, "answered by {by}, which was not asked"),
            Self::Failed(why) => write!(f, "not probed: {why}"),
        }
    }
}

/// The two ends of a connection, as the client sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// The client's.
    pub local: SocketAddr,
    /// The server's.
    pub remote: SocketAddr,
}
