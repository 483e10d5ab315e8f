//! What the host firewall knows beside the cluster: HostPolicies, and what the agent of a node was told.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Cluster, DirectionSpec, Mode, ObjectKey, Protocol, Selector};

/// Loopback of IPv4 (RFC 1122 section 3.2.1.3): by address the own node (H4).
pub const LOOPBACK_V4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));
/// Loopback of IPv6 (RFC 4291 section 2.5.3).
pub const LOOPBACK_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128));

/// A HostPolicy, read and defaulted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPolicy {
    /// What happens to what it denies (H10).
    pub mode: Mode,
    /// Whom it selects.
    pub subject: HostSubject,
    /// What it says about ingress.
    pub ingress: DirectionSpec,
    /// What it says about egress.
    pub egress: DirectionSpec,
}

/// Whom a HostPolicy selects: never a pod with a network of its own (H1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostSubject {
    /// Nodes by label: every process of the node's network that is no hostNetwork pod's. A selector that could
    /// not be read matches every node, and no rule allows anything (H3).
    Nodes(Selector),
    /// Live hostNetwork pods, by the labels of their namespaces and their own. A selector that could not be read
    /// matches each, and no rule allows anything (H3).
    Pods {
        /// Whose namespaces; an undeclared one is never matched (S34).
        namespaces: Selector,
        /// Which pods there.
        pods: Selector,
    },
    /// Nobody knows whom: every node and every hostNetwork pod, and no rule allows anything (H3).
    Unreadable,
}

/// What the host firewall of a node is told beside the objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The node that the agent runs on, by the name of its object.
    pub node: String,
    /// What selects its hostNetwork pods.
    pub selects: HostNetworkPods,
    /// What always passes.
    pub failsafe: Failsafe,
    /// Addresses and TCP ports at which the node reaches the API server: always open on the way out (H7).
    pub api_servers: BTreeSet<(IpAddr, u16)>,
}

impl Host {
    /// With the usual failsafe ports, no API server, and HostPolicies alone for hostNetwork pods.
    #[must_use]
    pub fn new(node: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            selects: HostNetworkPods::default(),
            failsafe: Failsafe::default(),
            api_servers: BTreeSet::new(),
        }
    }

    /// The node's key as a subject.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        ObjectKey::of_node(self.node.clone())
    }
}

/// What selects hostNetwork pods beside HostPolicies (H6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostNetworkPods {
    /// Nothing.
    #[default]
    Ignore,
    /// The NetworkPolicies of their namespaces, as of other pods.
    NetworkPolicy,
}

impl HostNetworkPods {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ignore, Self::NetworkPolicy];

    /// The word of `--host-network-pods`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ignore => "ignore",
            Self::NetworkPolicy => "network-policy",
        }
    }

    /// What a word means, in exactly this spelling.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }
}

/// A protocol, and its ports from the first to the second, inclusive.
pub type PortSpan = (Protocol, u16, u16);

/// Ports that always pass in an isolated direction of a host subject (H7): without them a mistake in a policy would
/// take the node from the cluster, and its owner from the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failsafe {
    /// To the host.
    pub ingress: Vec<PortSpan>,
    /// From the host.
    pub egress: Vec<PortSpan>,
}

impl Failsafe {
    /// None at all.
    pub const NONE: Self = Self { ingress: Vec::new(), egress: Vec::new() };
}

impl Default for Failsafe {
    /// In: SSH 22, BGP 179, etcd 2379 and 2380, the API server 6443, the kubelet 10250, kube-proxy's health 10256
    /// (ports and protocols of the Kubernetes documentation), answers of DHCP 68 and `DHCPv6` 546. Out: BGP, etcd and
    /// the API server as above, DNS 53, DHCP 67, NTP 123, `DHCPv6` 547 (numbers of the IANA registry).
    fn default() -> Self {
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        Self {
            ingress: vec![
                (tcp, 22, 22),
                (tcp, 179, 179),
                (tcp, 2379, 2380),
                (tcp, 6443, 6443),
                (tcp, 10250, 10250),
                (tcp, 10256, 10256),
                (udp, 68, 68),
                (udp, 546, 546),
            ],
            egress: vec![
                (tcp, 179, 179),
                (tcp, 2379, 2380),
                (tcp, 6443, 6443),
                (tcp, 53, 53),
                (udp, 53, 53),
                (udp, 67, 67),
                (udp, 123, 123),
                (udp, 547, 547),
            ],
        }
    }
}

impl Cluster {
    /// True if the selector matches a node as a subject. One whose object nobody has shown is matched by each: in
    /// doubt it is isolated.
    #[must_use]
    pub fn subject_node(&self, selector: &Selector, node: &str) -> bool {
        self.nodes.get(node).is_none_or(|node| selector.matches(&node.labels))
    }

    /// The addresses that a peer of nodes holds (H4), sorted, each once.
    #[must_use]
    pub fn node_peers(&self, selector: &Selector) -> BTreeSet<IpNet> {
        let mut nets = BTreeSet::new();
        for (name, node) in self.nodes.iter().filter(|(_, node)| selector.matches(&node.labels)) {
            nets.extend(node.addresses.iter().copied().map(IpNet::from));
            if self.host.as_ref().is_some_and(|host| host.node == *name) {
                nets.extend([LOOPBACK_V4, LOOPBACK_V6]);
            }
        }
        nets
    }
}

/// A policy of either kind. Orders as verdicts are attributed (H11): HostPolicies by name, then NetworkPolicies by
/// namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyRef {
    /// A HostPolicy.
    Host(String),
    /// A NetworkPolicy.
    Network(ObjectKey),
}

impl PolicyRef {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Host(_) => "HostPolicy",
            Self::Network(_) => "NetworkPolicy",
        }
    }

    /// Its namespace; a HostPolicy has none.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::Host(_) => None,
            Self::Network(key) => Some(&key.namespace),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Host(name) => name,
            Self::Network(key) => &key.name,
        }
    }

    /// The key, where it is a NetworkPolicy.
    #[must_use]
    pub const fn network(&self) -> Option<&ObjectKey> {
        match self {
            Self::Host(_) => None,
            Self::Network(key) => Some(key),
        }
    }

    /// The object as problems call it: `KIND NAMESPACE/NAME`, or `KIND NAME`.
    #[must_use]
    pub fn object(&self) -> String {
        format!("{} {self}", self.kind())
    }
}

impl fmt::Display for PolicyRef {
    /// `NAMESPACE/NAME`, or `NAME`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(name) => f.write_str(name),
            Self::Network(key) => key.fmt(f),
        }
    }
}
