//! What is measured: manifests of so many rules and peers, and the packets that are put to them. Knows nothing
//! of loads and clocks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use portcullis_common::event::{Action, Direction, Reason};
use portcullis_common::packet::{TCP, TCP_ACK, TCP_SYN};
use portcullis_oracle::rng::SplitMix64;
use portcullis_policy::compile::Compiler;
use portcullis_policy::desired::Desired;
use portcullis_policy::frame;
use portcullis_policy::model::{Cluster, ObjectKey};
use portcullis_tests::compare::cluster_of;
use serde_json::{Value, json};

/// The numbers to combine.
#[derive(Clone, Debug)]
pub(crate) struct Sizes {
    pub(crate) rules: Vec<u32>,
    pub(crate) peers: Vec<u32>,
}

impl Sizes {
    /// The size that stands for the others where not all are measured.
    pub(crate) fn typical(&self) -> (u32, u32) {
        let middle = |sizes: &[u32]| sizes.get(sizes.len() / 2).copied().unwrap_or(0);
        (middle(&self.rules), middle(&self.peers))
    }

    pub(crate) fn is_typical(&self, subject: &Subject) -> bool {
        let (rules, peers) = self.typical();
        subject.peer_count == peers && (subject.rules == rules || subject.peers == Peers::Open)
    }
}

/// Whom a subject's rules name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peers {
    /// No policy selects it.
    Open,
    /// Pods, by label.
    Pods,
    /// CIDRs.
    Blocks,
}

/// What a packet meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Case {
    /// An ACK of an established flow.
    Established,
    /// A SYN that a rule, the last, allows (or, without a policy, nothing denies): it is judged, makes its flow
    /// anew and is reported, each time.
    Allowed,
    /// A SYN from an allowed peer to a port that no rule names: judged, reported, dropped.
    Denied,
}

impl Case {
    pub(crate) const ALL: [Self; 3] = [Self::Established, Self::Allowed, Self::Denied];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::Allowed => "syn-allowed",
            Self::Denied => "syn-denied",
        }
    }
}

impl Peers {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Open => "no policy",
            Self::Pods => "pods",
            Self::Blocks => "cidrs",
        }
    }
}

/// A pod to which packets are put.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) peers: Peers,
    /// 0 without a policy.
    pub(crate) rules: u32,
    /// Of its cluster.
    pub(crate) peer_count: u32,
    pub(crate) key: ObjectKey,
    /// Its own addresses, and one of a peer that its last rule allows, for each family.
    pub(crate) ends: [(IpAddr, IpAddr); 2],
}

/// A cluster, its tables, and the pods to ask.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) desired: Desired,
    pub(crate) subjects: Vec<Subject>,
}

const NAMESPACE: &str = "bench";
/// Port of rule 0; every rule has its own.
const FIRST_PORT: u32 = 10_000;
/// No rule's.
const CLOSED_PORT: u16 = 9;
/// Subjects: `10.1.0.0/16`. Peers: `10.128.0.0/9`. CIDRs: one in each /24 of `100.64.0.0/10`.
const SUBJECTS: u32 = 0x0a01_0000;
const PEERS: u32 = 0x0a80_0000;
const BLOCKS: u32 = 0x6440_0000;
const BLOCK_ROOM: u32 = 16_384;
/// Their IPv6 addresses: the IPv4 one in the lowest 32 bits.
const V6: u128 = 0xfd00_0000_0000_0000_0000_0000_0000_0000;

impl World {
    /// One policy a subject, both ways alike; of CIDRs towards the pod only, and IPv4 only, for each CIDR takes
    /// room in the tables for each ruleset. Peers are dealt out to the rules in turn, from the last rule on.
    pub(crate) fn new(peers: u32, rules: &[u32], rng: &mut SplitMix64) -> Result<Self> {
        let blocks = blocks(peers, rng);
        let mut manifests = vec![json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE},
        })];
        let mut subjects = Vec::new();
        let kinds = rules.iter().flat_map(|rules| [(Peers::Pods, *rules), (Peers::Blocks, *rules)]);
        for (number, (kind, rules)) in (1u32..).zip([(Peers::Open, 0)].into_iter().chain(kinds)) {
            let name = format!("subject-{number}");
            let first = match kind {
                Peers::Open | Peers::Pods => PEERS,
                Peers::Blocks => blocks.first().context("no CIDR")?.address,
            };
            manifests.push(pod(&name, SUBJECTS + number, [("subject", name.clone())]));
            match kind {
                Peers::Open => {}
                Peers::Pods => manifests.push(policy(&name, rules, &["Ingress", "Egress"], |rule| {
                    json!([{"podSelector": {"matchLabels": {format!("of-{rules}"): format!("r{rule}")}}}])
                })),
                Peers::Blocks => {
                    manifests.push(policy(&name, rules, &["Ingress"], |rule| of_rule(&blocks, rules, rule)));
                }
            }
            let v6 = |address| IpAddr::V6(Ipv6Addr::from(V6 | u128::from(address)));
            let v4 = |address| IpAddr::V4(Ipv4Addr::from(address));
            let own = SUBJECTS + number;
            subjects.push(Subject {
                peers: kind,
                rules,
                peer_count: peers,
                key: ObjectKey::new(NAMESPACE, name),
                ends: [(v4(own), v4(first)), (v6(own), v6(first))],
            });
        }
        for peer in 0..peers {
            let labels =
                rules.iter().map(|rules| (format!("of-{rules}"), format!("r{}", dealt(peer, *rules))));
            manifests.push(pod(&format!("peer-{peer}"), PEERS + peer, labels));
        }
        let cluster = cluster_of(&manifests);
        let keys: Vec<&ObjectKey> = subjects.iter().map(|subject| &subject.key).collect();
        let (desired, problems) = Compiler::new(0).compile(&cluster, keys)?;
        ensure!(problems.is_empty(), "the compiler has problems: {problems:?}");
        Ok(Self { cluster, desired, subjects })
    }
}

/// The rule that a peer is dealt to: peer 0 to the last.
fn dealt(peer: u32, rules: u32) -> u32 {
    rules - 1 - peer % rules
}

/// An IPv4 prefix.
#[derive(Clone, Copy, Debug)]
struct Block {
    address: u32,
    bits: u32,
}

/// Prefixes of random lengths in random places, none inside another.
fn blocks(count: u32, rng: &mut SplitMix64) -> Vec<Block> {
    let mut places: Vec<u32> = (0..BLOCK_ROOM).collect();
    rng.shuffle(&mut places);
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let block = |place: u32| {
        let bits = 24 + u32::try_from(rng.below(9)).unwrap_or(0);
        Block { address: BLOCKS + place * 256, bits }
    };
    places.into_iter().take(count).map(block).collect()
}

/// The peers of a rule; where there are fewer CIDRs than rules, some stand in several.
fn of_rule(blocks: &[Block], rules: u32, rule: u32) -> Value {
    let indexed = || (0u32..).zip(blocks);
    let mut found: Vec<&Block> =
        indexed().filter(|(index, _)| dealt(*index, rules) == rule).map(|(_, block)| block).collect();
    if found.is_empty() {
        let turn = (rules - 1 - rule) % u32::try_from(blocks.len()).unwrap_or(u32::MAX).max(1);
        found.extend(indexed().filter(|(index, _)| *index == turn).map(|(_, block)| block));
    }
    let cidr = |block: &&Block| format!("{}/{}", Ipv4Addr::from(block.address), block.bits);
    found.iter().map(|block| json!({"ipBlock": {"cidr": cidr(block)}})).collect()
}

fn pod(name: &str, address: u32, labels: impl IntoIterator<Item = (impl Into<String>, String)>) -> Value {
    let labels: serde_json::Map<String, Value> =
        labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    let (v4, v6) = (Ipv4Addr::from(address), Ipv6Addr::from(V6 | u128::from(address)));
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": NAMESPACE, "name": name, "labels": labels},
        "status": {"phase": "Running", "podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}]},
    })
}

fn policy(subject: &str, rules: u32, types: &[&str], peers: impl Fn(u32) -> Value) -> Value {
    // Rules of a direction that is not in `types` do not count.
    let side = |word: &str| -> Vec<Value> {
        (0..rules)
            .map(|rule| json!({word: peers(rule), "ports": [{"protocol": "TCP", "port": FIRST_PORT + rule}]}))
            .collect()
    };
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": NAMESPACE, "name": subject},
        "spec": {
            "podSelector": {"matchLabels": {"subject": subject}},
            "policyTypes": types,
            "ingress": side("from"),
            "egress": side("to"),
        },
    })
}

/// A packet and what must become of it.
#[derive(Clone, Debug)]
pub(crate) struct Put {
    pub(crate) direction: Direction,
    pub(crate) frame: Vec<u8>,
    pub(crate) action: Action,
    pub(crate) reason: Reason,
}

/// Which family a packet is of: an index into [`Subject::ends`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

/// A peer's IPv4 address.
pub(crate) fn peer(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(PEERS + number)
}

/// The packets before the measured one, and the measured one. `direction` is where the flow opens.
pub(crate) fn packets(
    subject: &Subject,
    case: Case,
    family: Family,
    direction: Direction,
) -> Result<(Vec<Put>, Put)> {
    let [v4, v6] = subject.ends;
    let (own, peer) = match family {
        Family::V4 => v4,
        Family::V6 => v6,
    };
    let (client, server) = match direction {
        Direction::Ingress => (peer, own),
        Direction::Egress => (own, peer),
    };
    // Flows of their own: a SYN would take the measured flow back to its beginning.
    let (client_port, port) = match case {
        Case::Established => (40_000, last_port(subject)?),
        Case::Allowed => (40_001, last_port(subject)?),
        Case::Denied => (40_002, CLOSED_PORT),
    };
    let forth = |flags, action, reason| -> Result<Put> {
        let frame = tcp(client, server, client_port, port, flags)?;
        Ok(Put { direction, frame, action, reason })
    };
    let back = |flags| -> Result<Put> {
        let direction = match direction {
            Direction::Ingress => Direction::Egress,
            Direction::Egress => Direction::Ingress,
        };
        let frame = tcp(server, client, port, client_port, flags)?;
        Ok(Put { direction, frame, action: Action::Allow, reason: Reason::Flow })
    };
    let allowed = match subject.peers {
        Peers::Open => Reason::NotIsolated,
        Peers::Pods | Peers::Blocks => Reason::Rule,
    };
    let syn = || forth(TCP_SYN, Action::Allow, allowed);
    let ack = || forth(TCP_ACK, Action::Allow, Reason::Flow);
    Ok(match case {
        Case::Established => (vec![syn()?, back(TCP_SYN | TCP_ACK)?, ack()?], ack()?),
        Case::Allowed => (Vec::new(), syn()?),
        Case::Denied => (Vec::new(), forth(TCP_SYN, Action::Deny, Reason::Isolated)?),
    })
}

/// The port of the last rule.
pub(crate) fn last_port(subject: &Subject) -> Result<u16> {
    u16::try_from(FIRST_PORT + subject.rules.saturating_sub(1)).context("too many rules for ports")
}

/// A TCP segment without data, and without checksums.
pub(crate) fn tcp(from: IpAddr, to: IpAddr, from_port: u16, to_port: u16, flags: u8) -> Result<Vec<u8>> {
    let mut header = Vec::new();
    header.extend(from_port.to_be_bytes());
    header.extend(to_port.to_be_bytes());
    header.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame::packet(from, to, TCP, &header).context("addresses of one family")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_has_a_peer_and_peer_0_is_the_last_rule_s() {
        assert_eq!(dealt(0, 10), 9);
        assert_eq!(dealt(10, 10), 9);
        assert_eq!((0..10).map(|peer| dealt(peer, 10)).min(), Some(0));
        let few = blocks(3, &mut SplitMix64::new(1));
        for rule in 0..10 {
            assert!(!of_rule(&few, 10, rule).as_array().unwrap().is_empty(), "rule {rule}: any peer");
        }
    }

    #[test]
    fn tables_grow_with_what_is_asked_for() {
        let world = World::new(100, &[1, 10], &mut SplitMix64::new(1)).unwrap();
        assert_eq!(world.subjects.len(), 5);
        assert_eq!(world.desired.peers.len(), 200, "100 pods, two addresses each");
        assert_eq!(world.desired.prefixes.len(), 100);
    }
}
