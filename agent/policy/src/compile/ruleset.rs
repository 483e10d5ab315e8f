//! From the policies that select a subject to the ordered rules of one direction. Named ports end here: on
//! ingress the subject resolves them, on egress they become part of the peer (S25, S26).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use portcullis_common::event::Direction;
use portcullis_common::packet::{ICMP, ICMPV6};
use portcullis_common::wire::{
    ACTION_ALLOW, ACTION_AUDIT, ACTION_DENY, KIND_FAILSAFE, KIND_INVALID, KIND_ISOLATION, KIND_OWN_NODE,
    KIND_RULE, port_position,
};

use crate::desired::{CounterName, RuleSource};
use crate::frame::Traffic;
use crate::model::{
    Cluster, DirectionSpec, HostNetworkPods, HostPolicy, HostSubject, IsolationCause, LOOPBACK_V4,
    LOOPBACK_V6, Mode, NetworkPolicy, ObjectKey, Peer, Peers, PolicyRef, PortMatch, PortSpec, Ports,
    Protocol, Rule as PolicyRule,
};
use crate::select::{Base, Directory, NamedPort, PeerSelector, Subject, is_local};

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

/// A policy that isolates its subject in a direction.
#[derive(Clone, Debug)]
pub struct Isolating<'a> {
    /// Which.
    pub policy: PolicyRef,
    /// Its rules of the direction.
    pub rules: &'a [PolicyRule],
    /// Why it isolates.
    pub cause: IsolationCause,
    /// Whether what it denies is dropped.
    pub mode: Mode,
}

/// The policies that isolate a subject in a direction, in order of attribution (H11).
#[must_use]
pub fn isolating<'a>(
    cluster: &'a Cluster,
    key: &ObjectKey,
    subject: &Subject<'_>,
    direction: Direction,
) -> Vec<Isolating<'a>> {
    let of_hosts = subject.is_host().then_some(&cluster.host_policies).into_iter().flatten();
    let of_hosts =
        of_hosts.filter(|(_, policy)| selects_host(cluster, policy, subject)).map(|(name, policy)| {
            (PolicyRef::Host(name.clone()), [&policy.ingress, &policy.egress], policy.mode)
        });
    let by_namespace = match subject {
        Subject::Pod(facts) => Some(facts),
        Subject::HostPod(facts) => match cluster.host.as_ref().map(|host| host.selects) {
            Some(HostNetworkPods::NetworkPolicy) => Some(facts),
            Some(HostNetworkPods::Ignore) | None => None,
        },
        Subject::Node(_) | Subject::Unknown => None,
    };
    let first = ObjectKey::new(key.namespace.clone(), "");
    let of_namespace = by_namespace.into_iter().flat_map(|facts| {
        let own = cluster.policies.range(first.clone()..);
        let own = own.take_while(|(policy, _)| policy.namespace == key.namespace);
        own.filter(|(_, policy)| selects(policy, &facts.pod.labels))
    });
    let of_namespace = of_namespace.map(|(name, policy)| {
        (PolicyRef::Network(name.clone()), [&policy.ingress, &policy.egress], cluster.mode(name, policy))
    });
    of_hosts
        .chain(of_namespace)
        .filter_map(|(policy, [ingress, egress], mode)| {
            let spec = match direction {
                Direction::Ingress => ingress,
                Direction::Egress => egress,
            };
            match spec {
                DirectionSpec::Ignored => None,
                DirectionSpec::Isolated { rules, cause } => {
                    Some(Isolating { policy, rules, cause: *cause, mode })
                }
            }
        })
        .collect()
}

fn selects(policy: &NetworkPolicy, labels: &crate::model::Labels) -> bool {
    match &policy.subject {
        crate::model::Subject::Pods(selector) => selector.matches(labels),
        crate::model::Subject::Unreadable => true,
    }
}

/// Whether a HostPolicy selects this host, or pod of it (H1, H3).
#[must_use]
pub fn selects_host(cluster: &Cluster, policy: &HostPolicy, subject: &Subject<'_>) -> bool {
    match (&policy.subject, subject) {
        (_, Subject::Pod(_) | Subject::Unknown)
        | (HostSubject::Nodes(_), Subject::HostPod(_))
        | (HostSubject::Pods { .. }, Subject::Node(_)) => false,
        (HostSubject::Unreadable, Subject::HostPod(_) | Subject::Node(_)) => true,
        (HostSubject::Nodes(selector), Subject::Node(name)) => cluster.subject_node(selector, name),
        (HostSubject::Pods { namespaces, pods }, Subject::HostPod(facts)) => {
            facts.namespace_labels.is_some_and(|labels| namespaces.matches(labels))
                && pods.matches(&facts.pod.labels)
        }
    }
}

/// The rules of a subject and direction, in the order in which they are asked; `None`: nothing isolates it.
///
/// A policy in audit mode allows what its rules match, as an enforced one does, and its isolation drops nothing: so
/// no packet is dropped that would pass if it were enforced. Where it is the only one that isolates, what no rule
/// matches is denied and passes.
#[must_use]
pub fn rules_of(
    cluster: &Cluster,
    directory: &Directory<'_>,
    key: &ObjectKey,
    subject: &Subject<'_>,
    direction: Direction,
) -> Option<Vec<RuleContent>> {
    if let Subject::Unknown = subject {
        return Some(closed(cluster, directory, subject, direction));
    }
    if let Some(facts) = subject.facts() {
        // Nobody knows which policies select it.
        if !facts.pod.has_known_labels() {
            return Some(closed(cluster, directory, subject, direction));
        }
        if facts.namespace_labels.is_none() {
            let source = RuleSource::UndeclaredNamespace(key.namespace.clone());
            let mut contents = failsafe(cluster, subject, direction);
            contents.push(closing(source, direction, KIND_ISOLATION));
            return Some(contents);
        }
    }
    let policies = isolating(cluster, key, subject, direction);
    let is_enforced = |policy: &&Isolating<'_>| matches!(policy.mode, Mode::Enforce);
    let closes = policies.iter().find(is_enforced).or(policies.first())?;
    let mut contents = Vec::new();
    for isolating in &policies {
        for (index, rule) in (0u32..).zip(isolating.rules) {
            let name = CounterName { source: RuleSource::rule(&isolating.policy, index), direction };
            contents.extend(expand(cluster, rule, directory, subject, &name));
        }
    }
    contents.extend(always(cluster, directory, subject, direction));
    let invalid = policies.iter().all(|policy| matches!(policy.cause, IsolationCause::Invalid));
    let kind = if invalid { KIND_INVALID } else { KIND_ISOLATION };
    let mut last = closing(RuleSource::isolation(&closes.policy), direction, kind);
    last.action = match closes.mode {
        Mode::Enforce => ACTION_DENY,
        Mode::Audit => ACTION_AUDIT,
    };
    contents.push(last);
    Some(contents)
}

/// A direction in which nothing passes but what always does: what a subject has whose policies cannot be applied. Only
/// of hosts, whose owner would be cut off else; a pod is closed without rules.
#[must_use]
pub fn closed(
    cluster: &Cluster,
    directory: &Directory<'_>,
    subject: &Subject<'_>,
    direction: Direction,
) -> Vec<RuleContent> {
    let mut contents = always(cluster, directory, subject, direction);
    contents.push(closing(RuleSource::Closed, direction, KIND_INVALID));
    contents
}

/// What passes an isolated direction whatever policies say, behind their rules.
fn always(
    cluster: &Cluster,
    directory: &Directory<'_>,
    subject: &Subject<'_>,
    direction: Direction,
) -> Vec<RuleContent> {
    let nets: BTreeSet<IpNet> = match (direction, subject) {
        (Direction::Egress, Subject::Pod(_)) => cluster.own_node.iter().copied().map(IpNet::from).collect(),
        (Direction::Egress, Subject::Node(node)) => to_own_pods(cluster, directory, node),
        (Direction::Egress, Subject::HostPod(_) | Subject::Unknown) | (Direction::Ingress, _) => {
            BTreeSet::new()
        }
    };
    let own = (!nets.is_empty()).then(|| RuleContent {
        peers: PeerSet::Selected(BTreeSet::from([PeerSelector { base: Base::of_nets(nets), named: None }])),
        ports: vec![(0, LAST_POSITION)],
        action: ACTION_ALLOW,
        kind: KIND_OWN_NODE,
        tier: TIER_NETWORK,
        name: CounterName { source: RuleSource::OwnNode, direction },
    });
    own.into_iter().chain(failsafe(cluster, subject, direction)).collect()
}

/// What lets this pass an isolated direction whatever policies say; `None`: nothing.
#[must_use]
pub fn passes_always(
    cluster: &Cluster,
    directory: &Directory<'_>,
    subject: &Subject<'_>,
    direction: Direction,
    remote: IpAddr,
    traffic: Traffic,
) -> Option<RuleSource> {
    let position = match (traffic, remote) {
        (Traffic::To(protocol, port), _) => port_position(protocol.number(), port),
        (Traffic::Echo, IpAddr::V4(_)) => port_position(ICMP, 0),
        (Traffic::Echo, IpAddr::V6(_)) => port_position(ICMPV6, 0),
    };
    let holds = |rule: &RuleContent| {
        rule.ports.iter().any(|(from, to)| (*from..=*to).contains(&position))
            && match &rule.peers {
                PeerSet::Anyone => true,
                PeerSet::Selected(all) => all.iter().any(|one| one.matches(remote, directory.owner(remote))),
            }
    };
    let always = always(cluster, directory, subject, direction);
    always.into_iter().find(holds).map(|rule| rule.name.source)
}

/// Where a node finds its own pods (H8): their addresses, and of those in its network its own.
fn to_own_pods(cluster: &Cluster, directory: &Directory<'_>, node: &str) -> BTreeSet<IpNet> {
    let is_own = |key: &ObjectKey| directory.pods.get(key).is_some_and(|facts| is_local(facts.pod, node));
    let owned = directory.owners.iter().filter(|(_, key)| is_own(key)).map(|(address, _)| *address);
    let of_hosts = directory.hosts.values().flat_map(|facts| &facts.pod.addresses).copied();
    let of_node = cluster.nodes.get(node).into_iter().flat_map(|node| &node.addresses).copied();
    owned.chain(of_hosts).chain(of_node).map(IpNet::from).chain([LOOPBACK_V4, LOOPBACK_V6]).collect()
}

/// What keeps a host within reach (H7). The first is there without ports too: it tells a host's ruleset from a pod's.
fn failsafe(cluster: &Cluster, subject: &Subject<'_>, direction: Direction) -> Vec<RuleContent> {
    let Some(host) = cluster.host.as_ref().filter(|_| subject.is_host()) else { return Vec::new() };
    let spans = match direction {
        Direction::Ingress => &host.failsafe.ingress,
        Direction::Egress => &host.failsafe.egress,
    };
    let spans = spans.iter().filter(|(_, from, to)| from <= to);
    let ports = merged(spans.map(|(protocol, from, to)| range(*protocol, *from, *to)).collect());
    let content = |peers, ports| RuleContent {
        peers,
        ports,
        action: ACTION_ALLOW,
        kind: KIND_FAILSAFE,
        tier: TIER_NETWORK,
        name: CounterName { source: RuleSource::Failsafe, direction },
    };
    let mut servers: BTreeMap<u16, BTreeSet<IpNet>> = BTreeMap::new();
    if let Direction::Egress = direction {
        for (address, port) in &host.api_servers {
            servers.entry(*port).or_default().insert(IpNet::from(*address));
        }
    }
    let to_servers = servers.into_iter().map(|(port, nets)| {
        let peers = BTreeSet::from([PeerSelector { base: Base::of_nets(nets), named: None }]);
        content(PeerSet::Selected(peers), vec![range(Protocol::Tcp, port, port)])
    });
    std::iter::once(content(PeerSet::Anyone, ports)).chain(to_servers).collect()
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
    cluster: &Cluster,
    rule: &PolicyRule,
    directory: &Directory<'_>,
    subject: &Subject<'_>,
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
            return peer_set(cluster, &rule.peers, None)
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
                    // A node declares none (H2).
                    let named_ports = subject.facts().map(|facts| &facts.pod.named_ports);
                    if let Some(number) = named_ports.and_then(|of| of.get(&(wanted.clone(), *protocol))) {
                        numbers.push(range(*protocol, *number, *number));
                    }
                }
                Direction::Egress => {
                    for number in directory.named.get(&(wanted.as_str(), *protocol)).into_iter().flatten() {
                        let named = NamedPort { name: wanted.clone(), protocol: *protocol, number: *number };
                        contents.extend(
                            peer_set(cluster, &rule.peers, Some(&named))
                                .map(|peers| content(peers, vec![range(*protocol, *number, *number)])),
                        );
                    }
                }
            },
        }
    }
    if !numbers.is_empty()
        && let Some(peers) = peer_set(cluster, &rule.peers, None)
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

/// The peers of a rule; `None` where none of them can match: nobody.
fn peer_set(cluster: &Cluster, peers: &Peers, named: Option<&NamedPort>) -> Option<PeerSet> {
    match peers {
        Peers::Any => Some(match named {
            None => PeerSet::Anyone,
            Some(port) => {
                let any_pod = PeerSelector { base: Base::AnyPod, named: Some(port.clone()) };
                PeerSet::Selected(BTreeSet::from([any_pod]))
            }
        }),
        Peers::Only(list) => {
            let selectors = selectors(cluster, list, named);
            (!selectors.is_empty()).then_some(PeerSet::Selected(selectors))
        }
    }
}

/// What peers are asked by. Nodes end here: they are their addresses (H4).
pub(crate) fn selectors(
    cluster: &Cluster,
    peers: &[Peer],
    named: Option<&NamedPort>,
) -> BTreeSet<PeerSelector> {
    let mut selectors = BTreeSet::new();
    let mut select = |base| selectors.insert(PeerSelector { base, named: named.cloned() });
    for peer in peers {
        match peer {
            Peer::Pods { namespaces, pods } => {
                select(Base::Pods(namespaces.clone(), pods.clone()));
            }
            Peer::Block(block) => {
                select(Base::Block(block.clone()));
            }
            Peer::Nodes(nodes) => {
                let nets = cluster.node_peers(nodes);
                if !nets.is_empty() {
                    select(Base::of_nets(nets));
                }
            }
        }
    }
    selectors
}
