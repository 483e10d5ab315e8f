//! The tables as they should be, or as they are known to be: plain maps, of which the kernel's maps are an
//! image. They answer the same questions as the kernel's, so `explain` runs the same classification.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use portcullis_common::addr::{Addr, V4_PREFIX_BITS};
use portcullis_common::classify::Tables;
use portcullis_common::event::Direction;
use portcullis_common::wire::{
    PeerRowKey, PeerRowWord, PeerWord, PortRange, RULESET_CLOSED, Row, Rule, Ruleset,
};

use crate::model::{ObjectKey, PolicyRef};

/// An address as the tables hold it.
#[must_use]
pub fn wire_addr(address: IpAddr) -> Addr {
    match address {
        IpAddr::V4(v4) => Addr::v4(v4.octets()),
        IpAddr::V6(v6) => Addr::v6(v6.octets()),
    }
}

/// The address that the tables mean.
#[must_use]
pub fn ip_addr(addr: &Addr) -> IpAddr {
    let [.., a, b, c, d] = addr.bytes;
    if addr.is_v4() { IpAddr::from([a, b, c, d]) } else { IpAddr::from(addr.bytes) }
}

/// A prefix as the tables hold it: bits of the 16-byte form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WirePrefix {
    /// Its first address.
    pub addr: Addr,
    /// 0 to 128; an IPv4 prefix has [`V4_PREFIX_BITS`] more than its own.
    pub bits: u32,
}

impl From<IpNet> for WirePrefix {
    fn from(net: IpNet) -> Self {
        let bits = u32::from(net.prefix_len());
        match net {
            IpNet::V4(_) => Self { addr: wire_addr(net.network()), bits: bits + V4_PREFIX_BITS },
            IpNet::V6(_) => Self { addr: wire_addr(net.network()), bits },
        }
    }
}

impl WirePrefix {
    fn covers(&self, addr: &Addr) -> bool {
        let mask = if self.bits == 0 { 0 } else { u128::MAX << (128 - self.bits.min(128)) };
        u128::from_be_bytes(self.addr.bytes) & mask == u128::from_be_bytes(addr.bytes) & mask
    }
}

/// What a counter counts, and what a verdict is attributed to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CounterName {
    /// Who decides.
    pub source: RuleSource,
    /// Which way.
    pub direction: Direction,
}

/// Who decides.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleSource {
    /// A rule of a NetworkPolicy, by its index in `spec.ingress` or `spec.egress`.
    NetworkPolicy(ObjectKey, u32),
    /// The isolation that NetworkPolicies bring, named by the first of them.
    Isolation(ObjectKey),
    /// A namespace that nothing declares (S34).
    UndeclaredNamespace(String),
    /// The agent, which lets pods reach their own node, and the node its own pods.
    OwnNode,
    /// A rule of a HostPolicy, by its index in `spec.ingress` or `spec.egress`.
    HostPolicy(String, u32),
    /// The isolation that HostPolicies bring, named by the first of them.
    HostIsolation(String),
    /// The ports of a host that always stay open (H7).
    Failsafe,
    /// Of a host, what no policy could be applied to: its labels cannot be read, or its rules have no room.
    Closed,
}

impl RuleSource {
    /// A rule of a policy, by its index.
    #[must_use]
    pub fn rule(policy: &PolicyRef, index: u32) -> Self {
        match policy {
            PolicyRef::Host(name) => Self::HostPolicy(name.clone(), index),
            PolicyRef::Network(key) => Self::NetworkPolicy(key.clone(), index),
        }
    }

    /// The isolation that a policy brings.
    #[must_use]
    pub fn isolation(policy: &PolicyRef) -> Self {
        match policy {
            PolicyRef::Host(name) => Self::HostIsolation(name.clone()),
            PolicyRef::Network(key) => Self::Isolation(key.clone()),
        }
    }

    /// The policy, and its rule if it is not the isolation.
    #[must_use]
    pub fn policy(&self) -> Option<(PolicyRef, Option<u32>)> {
        match self {
            Self::NetworkPolicy(key, index) => Some((PolicyRef::Network(key.clone()), Some(*index))),
            Self::Isolation(key) => Some((PolicyRef::Network(key.clone()), None)),
            Self::HostPolicy(name, index) => Some((PolicyRef::Host(name.clone()), Some(*index))),
            Self::HostIsolation(name) => Some((PolicyRef::Host(name.clone()), None)),
            Self::UndeclaredNamespace(_) | Self::OwnNode | Self::Failsafe | Self::Closed => None,
        }
    }
}

/// The rulesets of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointRulesets {
    /// Of traffic to the pod.
    pub ingress: u16,
    /// Of traffic from the pod.
    pub egress: u16,
}

impl EndpointRulesets {
    /// Nothing passes: what an endpoint has that cannot be programmed.
    #[allow(clippy::cast_possible_truncation)]
    pub const CLOSED: Self = Self { ingress: RULESET_CLOSED as u16, egress: RULESET_CLOSED as u16 };

    /// The ruleset of a direction.
    #[must_use]
    pub fn of(&self, direction: Direction) -> u16 {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }

    /// The ruleset of a direction, to be set.
    pub fn of_mut(&mut self, direction: Direction) -> &mut u16 {
        match direction {
            Direction::Ingress => &mut self.ingress,
            Direction::Egress => &mut self.egress,
        }
    }
}

/// The tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Which bank of `peers` and `prefixes` these are.
    pub bank: u32,
    /// `rulesets`.
    pub rulesets: BTreeMap<u32, Ruleset>,
    /// `rules`.
    pub rules: BTreeMap<u32, Rule>,
    /// `rows`.
    pub rows: BTreeMap<u32, Row>,
    /// `port_ranges`.
    pub port_ranges: BTreeMap<u32, PortRange>,
    /// `peer_rows`.
    pub peer_rows: BTreeMap<PeerRowKey, PeerRowWord>,
    /// `peers`, this bank.
    pub peers: BTreeMap<Addr, PeerWord>,
    /// `prefixes`, this bank.
    pub prefixes: BTreeMap<WirePrefix, PeerWord>,
    /// Rulesets by pod.
    pub endpoints: BTreeMap<ObjectKey, EndpointRulesets>,
    /// Names of the counters that `rules` mention.
    pub counters: BTreeMap<u32, CounterName>,
}

impl Tables for Desired {
    fn ruleset(&self, id: u32) -> Option<&Ruleset> {
        self.rulesets.get(&id)
    }

    fn peer(&self, bank: u32, addr: &Addr) -> Option<PeerWord> {
        if bank == self.bank { self.peers.get(addr).copied() } else { None }
    }

    fn prefix(&self, bank: u32, addr: &Addr) -> Option<PeerWord> {
        if bank != self.bank {
            return None;
        }
        self.prefixes
            .iter()
            .filter(|(p, _)| p.covers(addr))
            .max_by_key(|(p, _)| p.bits)
            .map(|(_, word)| *word)
    }

    fn peer_row(&self, key: &PeerRowKey) -> Option<PeerRowWord> {
        self.peer_rows.get(key).copied()
    }

    fn row(&self, id: u32) -> Option<&Row> {
        self.rows.get(&id)
    }

    fn port_range(&self, index: u32) -> Option<PortRange> {
        self.port_ranges.get(&index).copied()
    }

    fn rule(&self, index: u32) -> Option<Rule> {
        self.rules.get(&index).copied()
    }
}
