//! From the policies that select a pod to the ordered rules of one direction. Named ports end here: on
//! ingress the subject resolves them, on egress they become part of the peer (S25, S26).

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use portcullis_common::event::Direction;
use portcullis_common::wire::{
    ACTION_ALLOW, ACTION_AUDIT, ACTION_DENY, KIND_INVALID, KIND_ISOLATION, KIND_OWN_NODE, KIND_RULE,
    port_position,
};

use crate::desired::{CounterName, RuleSource};
use crate::model::{
    Cluster, DirectionSpec, IpBlock, IsolationCause, Mode, NetworkPolicy, ObjectKey, Peer, Peers, PortMatch,
    PortSpec, Ports, Protocol, Rule as PolicyRule, Subject,
};
use crate::select::{Base, Directory, NamedPort, PeerSelector, PodFacts};

/// Tier of NetworkPolicy rules.
pub const TIER_NETWORK: u8 = 1;
/// The last position that a protocol and port can have.
pub const LAST_POSITION: u32 = port_position(u8::MAX, u16::MAX);

/// A rule as a ruleset holds it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleContent {
    /// Whom it matches; anyone is not the same as nobody (T18).
    pub peers: PeerSet,
    /// Ranges of positions that it matches, inclusive, sorted, apart from each other.
    pub ports: Vec<(u32, u32)>,
    /// `ACTION_` of the wire.
    pub action: u8,
    /// `KIND_` of the wire.
    pub kind: u8,
    /// Its tier.
    pub tier: u8,
    /// What it is called.
    pub name: CounterName,
}

/// Whom a rule matches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerSet {
    /// Anyone.
    Anyone,
    /// What one of these matches; never empty.
    Selected(BTreeSet<PeerSelector>),
}

/// A policy that isolates a pod in a direction.
#[derive(Clone, Copy, Debug)]
pub struct Isolating<'a> {
    /// Its name.
    pub name: &'a ObjectKey,
    /// Its rules of the direction.
    pub rules: &'a [PolicyRule],
    /// Why it isolates.
    pub cause: IsolationCause,
    /// Whether what it denies is dropped.
    pub mode: Mode,
}

/// The policies of a namespace that isolate a pod in a direction, in order of their names.
#[must_use]
pub fn isolating<'a>(
    cluster: &'a Cluster,
    key: &ObjectKey,
    labels: &crate::model::Labels,
    direction: Direction,
) -> Vec<Isolating<'a>> {
    let first = ObjectKey::new(key.namespace.clone(), "");
    cluster
        .policies
        .range(first..)
        .take_while(|(policy, _)| policy.namespace == key.namespace)
        .filter(|(_, policy)| selects(policy, labels))
        .filter_map(|(name, policy)| {
            let spec = match direction {
                Direction::Ingress => &policy.ingress,
                Direction::Egress => &policy.egress,
            };
            match spec {
                DirectionSpec::Ignored => None,
                DirectionSpec::Isolated { rules, cause } => {
                    Some(Isolating { name, rules, cause: *cause, mode: cluster.mode(name, policy) })
                }
            }
        })
        .collect()
}

fn selects(policy: &NetworkPolicy, labels: &crate::model::Labels) -> bool {
    match &policy.subject {
        Subject::Pods(selector) => selector.matches(labels),
        Subject::Unreadable => true,
    }
}

/// The rules of a pod and direction, in the order in which they are asked; `None`: nothing isolates it.
///
/// A policy in audit mode allows what its rules match, as an enforced one does, and its isolation drops nothing: so
/// no packet is dropped that would pass if it were enforced. Where it is the only one that isolates, what no rule
/// matches is denied and passes.
#[must_use]
pub fn rules_of(
    cluster: &Cluster,
    directory: &Directory<'_>,
    key: &ObjectKey,
    facts: &PodFacts<'_>,
    direction: Direction,
) -> Option<Vec<RuleContent>> {
    if facts.namespace_labels.is_none() {
        let source = RuleSource::UndeclaredNamespace(key.namespace.clone());
        return Some(vec![closing(source, direction, KIND_ISOLATION)]);
    }
    let policies = isolating(cluster, key, &facts.pod.labels, direction);
    let is_enforced = |policy: &&Isolating<'_>| matches!(policy.mode, Mode::Enforce);
    let closes = policies.iter().find(is_enforced).or(policies.first())?;
    let mut contents = Vec::new();
    for policy in &policies {
        for (index, rule) in (0u32..).zip(policy.rules) {
            let source = RuleSource::NetworkPolicy(policy.name.clone(), index);
            let name = CounterName { source, direction };
            contents.extend(expand(rule, directory, facts, &name));
        }
    }
    if let Direction::Egress = direction {
        contents.extend(to_own_node(cluster));
    }
    let invalid = policies.iter().all(|policy| matches!(policy.cause, IsolationCause::Invalid));
    let kind = if invalid { KIND_INVALID } else { KIND_ISOLATION };
    let mut last = closing(RuleSource::Isolation(closes.name.clone()), direction, kind);
    last.action = match closes.mode {
        Mode::Enforce => ACTION_DENY,
        Mode::Audit => ACTION_AUDIT,
    };
    contents.push(last);
    Some(contents)
}

/// What lets pods reach their own node, where the agent was told to: a rule as any other, behind those of policies, so
/// that packets to anybody else pay nothing for it.
fn to_own_node(cluster: &Cluster) -> Option<RuleContent> {
    let block = |address: &IpAddr| PeerSelector {
        base: Base::Block(IpBlock { net: IpNet::from(*address), except: Vec::new() }),
        named: None,
    };
    let peers: BTreeSet<PeerSelector> = cluster.own_node.iter().map(block).collect();
    (!peers.is_empty()).then(|| RuleContent {
        peers: PeerSet::Selected(peers),
        ports: vec![(0, LAST_POSITION)],
        action: ACTION_ALLOW,
        kind: KIND_OWN_NODE,
        tier: TIER_NETWORK,
        name: CounterName { source: RuleSource::OwnNode, direction: Direction::Egress },
    })
}

/// The deny that stands for isolation.
#[must_use]
pub fn closing(source: RuleSource, direction: Direction, kind: u8) -> RuleContent {
    RuleContent {
        peers: PeerSet::Anyone,
        ports: vec![(0, LAST_POSITION)],
        action: ACTION_DENY,
        kind,
        tier: TIER_NETWORK,
        name: CounterName { source, direction },
    }
}

/// A rule becomes one content for its numbers, and on egress one more for each number that a named port
/// stands for. A rule that matches nothing becomes none.
fn expand(
    rule: &PolicyRule,
    directory: &Directory<'_>,
    facts: &PodFacts<'_>,
    name: &CounterName,
) -> Vec<RuleContent> {
    let content = |peers, ports| RuleContent {
        peers,
        ports,
        action: ACTION_ALLOW,
        kind: KIND_RULE,
        tier: TIER_NETWORK,
        name: name.clone(),
    };
    let entries = match &rule.ports {
        Ports::Any => {
            return peer_set(&rule.peers, None)
                .map(|peers| content(peers, vec![(0, LAST_POSITION)]))
                .into_iter()
                .collect();
        }
        Ports::Only(entries) => entries,
    };
    let mut contents = Vec::new();
    let mut numbers = Vec::new();
    for PortMatch { protocol, port } in entries {
        match port {
            PortSpec::All => numbers.push(range(*protocol, 0, u16::MAX)),
            PortSpec::Range(from, to) => numbers.push(range(*protocol, *from, *to)),
            PortSpec::Named(wanted) => match name.direction {
                Direction::Ingress => {
                    if let Some(number) = facts.pod.named_ports.get(&(wanted.clone(), *protocol)) {
                        numbers.push(range(*protocol, *number, *number));
                    }
                }
                Direction::Egress => {
                    for number in directory.named.get(&(wanted.as_str(), *protocol)).into_iter().flatten() {
                        let named = NamedPort { name: wanted.clone(), protocol: *protocol, number: *number };
                        contents.extend(
                            peer_set(&rule.peers, Some(&named))
                                .map(|peers| content(peers, vec![range(*protocol, *number, *number)])),
                        );
                    }
                }
            },
        }
    }
    if !numbers.is_empty()
        && let Some(peers) = peer_set(&rule.peers, None)
    {
        contents.insert(0, content(peers, merged(numbers)));
    }
    contents
}

fn range(protocol: Protocol, from: u16, to: u16) -> (u32, u32) {
    (port_position(protocol.number(), from), port_position(protocol.number(), to))
}

/// Sorted, with overlaps and neighbours joined.
fn merged(mut ranges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    ranges.sort_unstable();
    let mut out: Vec<(u32, u32)> = Vec::new();
    for (from, to) in ranges {
        match out.last_mut() {
            Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(to),
            Some(_) | None => out.push((from, to)),
        }
    }
    out
}

/// The peers of a rule; `None` where no peer was readable: nobody.
fn peer_set(peers: &Peers, named: Option<&NamedPort>) -> Option<PeerSet> {
    let select = |base| PeerSelector { base, named: named.cloned() };
    match peers {
        Peers::Any => Some(match named {
            None => PeerSet::Anyone,
            Some(_) => PeerSet::Selected(BTreeSet::from([select(Base::AnyPod)])),
        }),
        Peers::Only(list) if list.is_empty() => None,
        Peers::Only(list) => Some(PeerSet::Selected(
            list.iter()
                .map(|peer| match peer {
                    Peer::Pods { namespaces, pods } => select(Base::Pods(namespaces.clone(), pods.clone())),
                    Peer::Block(block) => select(Base::Block(block.clone())),
                })
                .collect(),
        )),
    }
}
