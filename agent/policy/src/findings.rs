//! What is odd about policies that can be read: a policy that selects nothing, a peer that matches nothing, a
//! rule that an earlier one makes needless. Pure; `policies`, `status` and `policies lint` show what it finds.
//! What cannot be read is a [`crate::model::Problem`] of the conversion and not told again here.

mod covers;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use portcullis_common::event::Direction;

use crate::compile::ruleset::selectors;
use crate::model::{
    Cluster, DirectionSpec, HostPolicy, HostSubject, IpBlock, IsolationCause, NamespaceScope, NetworkPolicy,
    ObjectKey, Operator, Peer, Peers, Pod, PolicyRef, PortSpec, Ports, Protocol, Rule, Selector, Severity,
    Subject,
};
use crate::select::{Base, Directory, PeerSelector, PodFacts, facts};
use covers::{rule_covers, subject_covers};

/// The port of DNS, UDP and TCP (RFC 1035, 4.2).
const DNS: u16 = 53;

/// Rules of one namespace and direction that are compared with each other. Past it no rule is called shadowed: the
/// work grows with the square, and whoever writes policies would choose how long others wait.
const MAX_COMPARED: usize = 2_000;

/// What kind of finding it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingKind {
    /// The policy selects no live pod.
    SelectsNothing,
    /// A rule whose peers or ports were all unreadable.
    RuleMatchesNothing,
    /// A peer that matches no live pod, or an ipBlock whose excepts leave nothing.
    PeerMatchesNothing,
    /// A named port that no destination declares.
    PortMatchesNothing,
    /// Whatever the rule allows, an earlier rule for the same pods allows.
    RuleShadowed,
    /// Egress is isolated, and no rule lets DNS out.
    NoDns,
}

impl FindingKind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::SelectsNothing,
        Self::RuleMatchesNothing,
        Self::PeerMatchesNothing,
        Self::PortMatchesNothing,
        Self::RuleShadowed,
        Self::NoDns,
    ];

    /// The word for people and for JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SelectsNothing => "selects-nothing",
            Self::RuleMatchesNothing => "rule-matches-nothing",
            Self::PeerMatchesNothing => "peer-matches-nothing",
            Self::PortMatchesNothing => "port-matches-nothing",
            Self::RuleShadowed => "rule-shadowed",
            Self::NoDns => "no-dns",
        }
    }
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something odd about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// [`Severity::Warning`] where it is likely a mistake, [`Severity::Note`] where it may be meant.
    pub severity: Severity,
    /// The object, `KIND NAMESPACE/NAME`, as in a problem.
    pub object: String,
    /// The field's path, empty where it is the whole object.
    pub field: String,
    /// What kind.
    pub kind: FindingKind,
    /// What is odd, what it means for verdicts, and the remedy.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.object)?;
        if !self.field.is_empty() {
            write!(f, " {}", self.field)?;
        }
        write!(f, ": {} ({})", self.message, self.kind)
    }
}

/// The object of a policy's findings and problems.
#[must_use]
pub fn policy_object(key: &ObjectKey) -> String {
    format!("NetworkPolicy {key}")
}

/// The live pods that a policy selects, in order of their names.
#[must_use]
pub fn selected<'a>(
    directory: &Directory<'a>,
    key: &ObjectKey,
    policy: &NetworkPolicy,
) -> Vec<&'a ObjectKey> {
    let first = ObjectKey::new(key.namespace.clone(), "");
    directory
        .pods
        .range::<ObjectKey, _>(&first..)
        .take_while(|(pod, _)| pod.namespace == key.namespace)
        .filter(|(_, facts)| match &policy.subject {
            Subject::Pods(selector) => selector.matches(&facts.pod.labels),
            Subject::Unreadable => true,
        })
        .map(|(pod, _)| *pod)
        .collect()
}

/// Everything odd about the policies of a cluster: HostPolicies, then NetworkPolicies, each in order of their names.
///
/// What it says holds; it does not find everything. A rule is called shadowed only if each of its peers and ports
/// is covered by a single peer, and the ports, of one earlier rule, by how they are written.
#[must_use]
pub fn findings(cluster: &Cluster) -> Vec<Finding> {
    let directory = Directory::new(cluster);
    let mut dns = Dns { cluster, directory: &directory, known: BTreeMap::new() };
    let mut matching = Matching { cluster, directory: &directory, known: BTreeMap::new() };
    let mut found = Vec::new();
    for (name, policy) in &cluster.host_policies {
        let object = PolicyRef::Host(name.clone()).object();
        host_policy(cluster, policy, &mut OfPolicy { object, found: &mut found }, &mut matching);
    }
    let mut last: Option<(&str, Shadows)> = None;
    for (key, policy) in &cluster.policies {
        let mut of = OfPolicy { object: policy_object(key), found: &mut found };
        let pods = selected(&directory, key, policy);
        if pods.is_empty() {
            of.warn(
                "spec.podSelector",
                FindingKind::SelectsNothing,
                "it selects no pod, so it isolates and allows nothing; mend the selector or the namespace, or \
                 ignore this if its pods are yet to come",
            );
        }
        let shadows = match &last {
            Some((namespace, shadows)) if *namespace == key.namespace => shadows,
            Some(_) | None => {
                &last.insert((&key.namespace, Shadows::of_namespace(cluster, &key.namespace))).1
            }
        };
        for direction in [Direction::Ingress, Direction::Egress] {
            let DirectionSpec::Isolated { rules, cause: IsolationCause::Written } = spec(policy, direction)
            else {
                continue;
            };
            let selected: Vec<&Pod> =
                pods.iter().filter_map(|pod| directory.pods.get(*pod)).map(|facts| facts.pod).collect();
            for (index, rule) in rules.iter().enumerate() {
                of.rule(rule, direction, index, &Destinations::Pods(&selected), &mut matching);
                if let Some(by) = shadows.by(key, direction, index) {
                    of.warn(
                        &format!("spec.{}[{index}]", direction.name()),
                        FindingKind::RuleShadowed,
                        &format!(
                            "{by} allows all that it allows, to the same pods: it decides nothing; remove it, or \
                             narrow the other"
                        ),
                    );
                }
            }
        }
        match policy.egress {
            DirectionSpec::Ignored => {}
            DirectionSpec::Isolated { .. } => of.dns(policy, &dns.missing(key, policy, &pods)),
        }
    }
    found
}

/// Of any node: which are the agent's own does not matter here.
fn host_policy(cluster: &Cluster, policy: &HostPolicy, of: &mut OfPolicy<'_>, matching: &mut Matching<'_>) {
    let selects = |facts: &PodFacts<'_>| match &policy.subject {
        HostSubject::Nodes(_) => false,
        HostSubject::Unreadable => true,
        HostSubject::Pods { namespaces, pods } => {
            facts.namespace_labels.is_some_and(|labels| namespaces.matches(labels))
                && facts.pod.has_known_labels()
                && pods.matches(&facts.pod.labels)
        }
    };
    let hosts = cluster.pods.iter().filter(|(_, pod)| pod.is_live() && !pod.has_own_network());
    let hosts = hosts.map(|(key, pod)| facts(cluster, key, pod));
    let pods: Vec<&Pod> = hosts.filter(selects).map(|facts| facts.pod).collect();
    let (field, nothing, destinations) = match &policy.subject {
        HostSubject::Nodes(selector) => {
            let mut nodes = cluster.nodes.values();
            // Without any nobody has shown them.
            let nothing = !cluster.nodes.is_empty() && !nodes.any(|node| selector.matches(&node.labels));
            ("spec.subject.nodes", nothing.then_some("no node"), Destinations::Nodes)
        }
        HostSubject::Pods { .. } => {
            ("spec.subject.pods", pods.is_empty().then_some("no hostNetwork pod"), Destinations::Pods(&pods))
        }
        HostSubject::Unreadable => ("", None, Destinations::Pods(&pods)),
    };
    if let Some(what) = nothing {
        let message = format!(
            "it selects {what}, so it isolates and allows nothing; mend its labels, or ignore this if such are yet to \
             come"
        );
        of.warn(field, FindingKind::SelectsNothing, &message);
    }
    for (direction, spec) in [(Direction::Ingress, &policy.ingress), (Direction::Egress, &policy.egress)] {
        let DirectionSpec::Isolated { rules, cause: IsolationCause::Written } = spec else { continue };
        for (index, rule) in rules.iter().enumerate() {
            of.rule(rule, direction, index, &destinations, matching);
        }
    }
}

/// Whose ports the names in an ingress rule mean.
enum Destinations<'a> {
    /// Of these pods; of none there is nothing to say.
    Pods(&'a [&'a Pod]),
    /// Of nodes, which declare none (H2).
    Nodes,
}

fn spec(policy: &NetworkPolicy, direction: Direction) -> &DirectionSpec {
    match direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    }
}

/// Which peers match a live pod, remembered: rules repeat each other's peers.
struct Matching<'a> {
    cluster: &'a Cluster,
    directory: &'a Directory<'a>,
    known: BTreeMap<Peer, bool>,
}

impl Matching<'_> {
    fn anything(&mut self, peer: &Peer) -> bool {
        if let Some(known) = self.known.get(peer) {
            return *known;
        }
        let matches = match peer {
            Peer::Block(block) => !is_empty(block),
            Peer::Nodes(nodes) => !self.cluster.node_peers(nodes).is_empty(),
            Peer::Pods { namespaces, pods } => {
                let selector =
                    PeerSelector { base: Base::Pods(namespaces.clone(), pods.clone()), named: None };
                self.peers().any(|facts| owned_by(&selector, facts))
            }
        };
        self.known.insert(peer.clone(), matches);
        matches
    }

    fn peers(&self) -> impl Iterator<Item = &PodFacts<'_>> {
        self.directory.pods.values()
    }

    /// True if a pod that the peers match declares the port.
    fn declared(&self, peers: &Peers, name: &str, protocol: Protocol) -> bool {
        let port = (name.to_owned(), protocol);
        let declares = |facts: &&PodFacts<'_>| facts.pod.named_ports.contains_key(&port);
        match peers {
            Peers::Any => self.peers().any(|facts| declares(&facts)),
            Peers::Only(list) => {
                let bases: Vec<PeerSelector> = selectors(self.cluster, list, None).into_iter().collect();
                self.peers().filter(declares).any(|facts| {
                    facts
                        .pod
                        .addresses
                        .iter()
                        .any(|address| bases.iter().any(|base| base.matches(*address, Some(facts))))
                })
            }
        }
    }
}

/// Selectors of pods ask for no address.
fn owned_by(selector: &PeerSelector, facts: &PodFacts<'_>) -> bool {
    let any = IpAddr::from([0, 0, 0, 0]);
    selector.matches(facts.pod.addresses.first().copied().unwrap_or(any), Some(facts))
}

/// True if the excepts leave nothing of the block.
fn is_empty(block: &IpBlock) -> bool {
    IpNet::aggregate(&block.except).iter().any(|except| except.contains(&block.net))
}

/// The findings of one policy.
struct OfPolicy<'a> {
    object: String,
    found: &'a mut Vec<Finding>,
}

impl OfPolicy<'_> {
    fn warn(&mut self, field: &str, kind: FindingKind, message: &str) {
        self.push(Severity::Warning, field, kind, message);
    }

    fn push(&mut self, severity: Severity, field: &str, kind: FindingKind, message: &str) {
        self.found.push(Finding {
            severity,
            object: self.object.clone(),
            field: field.to_owned(),
            kind,
            message: message.to_owned(),
        });
    }

    fn rule(
        &mut self,
        rule: &Rule,
        direction: Direction,
        index: usize,
        destinations: &Destinations<'_>,
        matching: &mut Matching<'_>,
    ) {
        let path = format!("spec.{}[{index}]", direction.name());
        if covers::is_nothing(rule) {
            self.warn(
                &path,
                FindingKind::RuleMatchesNothing,
                "none of its peers or none of its ports can be read, so it allows nothing; mend what is reported \
                 of it",
            );
            return;
        }
        let side = match direction {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        };
        if let Peers::Only(list) = &rule.peers {
            for peer in list.iter().collect::<BTreeSet<_>>() {
                if !matching.anything(peer) {
                    let remedy = match peer {
                        Peer::Pods { .. } => "mend its labels, or ignore this if such pods are yet to come",
                        Peer::Block(_) => "mend cidr or except",
                        Peer::Nodes(_) => "mend its labels, or ignore this if such nodes are yet to come",
                    };
                    let message = format!("the peer {} matches nothing; {remedy}", describe(peer));
                    self.warn(&format!("{path}.{side}"), FindingKind::PeerMatchesNothing, &message);
                }
            }
        }
        let Ports::Only(entries) = &rule.ports else { return };
        for entry in entries {
            let PortSpec::Named(name) = &entry.port else { continue };
            let (declared, who) = match direction {
                Direction::Ingress => {
                    let port = (name.clone(), entry.protocol);
                    match destinations {
                        // Without a pod there is nothing to say but that.
                        Destinations::Pods(pods) => (
                            pods.is_empty() || pods.iter().any(|pod| pod.named_ports.contains_key(&port)),
                            "no pod that the policy selects",
                        ),
                        Destinations::Nodes => (false, "no node"),
                    }
                }
                Direction::Egress => {
                    (matching.declared(&rule.peers, name, entry.protocol), "no pod that its peers match")
                }
            };
            if !declared {
                let message = format!(
                    "{who} has a containerPort named \"{}\" with protocol {}, so the name allows nothing; mend the \
                     name or the protocol",
                    crate::convert::printable(name),
                    entry.protocol
                );
                self.warn(&format!("{path}.ports"), FindingKind::PortMatchesNothing, &message);
            }
        }
    }

    fn dns(&mut self, policy: &NetworkPolicy, missing: &BTreeSet<Protocol>) {
        let DirectionSpec::Isolated { rules, cause: IsolationCause::Written } = &policy.egress else {
            return;
        };
        if missing.is_empty() {
            return;
        }
        let which: Vec<String> = missing.iter().map(|protocol| format!("{protocol}/{DNS}")).collect();
        // A policy that lets nothing out may well mean it.
        let severity = if rules.is_empty() { Severity::Note } else { Severity::Warning };
        let message = format!(
            "egress of its pods is isolated, and no rule of any policy lets {} out to anything, so names may not \
             resolve; allow both UDP/{DNS} and TCP/{DNS} to the DNS server, or ignore this if no pod resolves names",
            which.join(" and ")
        );
        self.push(severity, "spec.egress", FindingKind::NoDns, &message);
    }
}

/// Which protocols of DNS pods cannot send, remembered: policies share pods.
struct Dns<'a> {
    cluster: &'a Cluster,
    directory: &'a Directory<'a>,
    known: BTreeMap<&'a ObjectKey, BTreeSet<Protocol>>,
}

impl<'a> Dns<'a> {
    /// Of the pods of a policy. The rules of every policy that isolates a pod count: one of them is often there
    /// for DNS alone. Without pods, those count that select whatever it will select.
    fn missing(
        &mut self,
        key: &ObjectKey,
        policy: &NetworkPolicy,
        pods: &[&'a ObjectKey],
    ) -> BTreeSet<Protocol> {
        if pods.is_empty() {
            let applying = of_namespace(self.cluster, &key.namespace)
                .filter(|(_, other)| subject_covers(&other.subject, &policy.subject));
            return no_dns(applying.map(|(_, other)| &other.egress));
        }
        let (cluster, directory) = (self.cluster, self.directory);
        let mut missing = BTreeSet::new();
        for pod in pods {
            let of_pod = self.known.entry(pod).or_insert_with(|| {
                let labels = directory.pods.get(*pod).map(|facts| &facts.pod.labels);
                let applying =
                    of_namespace(cluster, &pod.namespace).filter(|(_, other)| match &other.subject {
                        Subject::Pods(selector) => labels.is_some_and(|labels| selector.matches(labels)),
                        Subject::Unreadable => true,
                    });
                no_dns(applying.map(|(_, other)| &other.egress))
            });
            missing.extend(of_pod.iter().copied());
        }
        missing
    }
}

/// The policies of a namespace, in order of their names.
fn of_namespace<'a>(
    cluster: &'a Cluster,
    namespace: &str,
) -> impl Iterator<Item = (&'a ObjectKey, &'a NetworkPolicy)> {
    let first = ObjectKey::new(namespace, "");
    cluster.policies.range(first..).take_while(move |(key, _)| key.namespace == namespace)
}

/// The protocols of DNS that no rule lets out.
fn no_dns<'a>(specs: impl Iterator<Item = &'a DirectionSpec>) -> BTreeSet<Protocol> {
    let mut missing = BTreeSet::from([Protocol::Tcp, Protocol::Udp]);
    for spec in specs {
        let DirectionSpec::Isolated { rules, .. } = spec else { continue };
        for rule in rules.iter().filter(|rule| !covers::is_nothing(rule)) {
            match &rule.ports {
                Ports::Any => missing.clear(),
                Ports::Only(entries) => {
                    for entry in entries {
                        let reaches = match &entry.port {
                            // What a name stands for is the destination's to say.
                            PortSpec::All | PortSpec::Named(_) => true,
                            PortSpec::Range(from, to) => (*from..=*to).contains(&DNS),
                        };
                        if reaches {
                            missing.remove(&entry.protocol);
                        }
                    }
                }
            }
        }
    }
    missing
}

/// Which rule of a namespace makes which needless.
struct Shadows {
    by: BTreeMap<(ObjectKey, Direction, usize), String>,
}

impl Shadows {
    fn of_namespace(cluster: &Cluster, namespace: &str) -> Self {
        let mut by = BTreeMap::new();
        let policies: Vec<(&ObjectKey, &NetworkPolicy)> = of_namespace(cluster, namespace).collect();
        for direction in [Direction::Ingress, Direction::Egress] {
            let mut rules = Vec::new();
            for (key, policy) in &policies {
                if let DirectionSpec::Isolated { rules: of, cause: IsolationCause::Written } =
                    spec(policy, direction)
                {
                    rules.extend(of.iter().enumerate().map(|(index, rule)| (*key, *policy, index, rule)));
                }
            }
            if rules.len() > MAX_COMPARED {
                continue;
            }
            for (place, (key, policy, index, rule)) in rules.iter().enumerate() {
                let earlier = rules.iter().take(place).find(|(_, other, _, wider)| {
                    subject_covers(&other.subject, &policy.subject) && rule_covers(wider, rule)
                });
                if let Some((other, _, at, _)) = earlier {
                    let place = format!("spec.{}[{at}]", direction.name());
                    let what = if other == key { place } else { format!("{} {place}", policy_object(other)) };
                    by.insert(((*key).clone(), direction, *index), what);
                }
            }
        }
        Self { by }
    }

    fn by(&self, key: &ObjectKey, direction: Direction, index: usize) -> Option<&str> {
        self.by.get(&(key.clone(), direction, index)).map(String::as_str)
    }
}

/// A peer in the words of a manifest.
#[must_use]
pub fn describe(peer: &Peer) -> String {
    let text = match peer {
        Peer::Block(block) if block.except.is_empty() => format!("ipBlock {}", block.net),
        Peer::Block(block) => {
            let except: Vec<String> = block.except.iter().map(ToString::to_string).collect();
            format!("ipBlock {} except {}", block.net, except.join(", "))
        }
        Peer::Nodes(nodes) => format!("nodes {}", requirements(nodes)),
        Peer::Pods { namespaces, pods } => {
            let scope = match namespaces {
                NamespaceScope::Named(name) => format!("namespace {name}"),
                NamespaceScope::Matching(selector) => format!("namespaces {}", requirements(selector)),
            };
            format!("pods {} of {scope}", requirements(pods))
        }
    };
    crate::convert::printable(&text)
}

/// A selector as `kubectl -l` takes it.
fn requirements(selector: &Selector) -> String {
    if selector.requirements.is_empty() {
        return "{}".to_owned();
    }
    let one = |r: &crate::model::Requirement| {
        let list = |values: &BTreeSet<String>| values.iter().cloned().collect::<Vec<_>>().join(",");
        match &r.operator {
            Operator::In(values) if values.len() == 1 => format!("{}={}", r.key, list(values)),
            Operator::In(values) => format!("{} in ({})", r.key, list(values)),
            Operator::NotIn(values) => format!("{} notin ({})", r.key, list(values)),
            Operator::Exists => r.key.clone(),
            Operator::DoesNotExist => format!("!{}", r.key),
        }
    };
    selector.requirements.iter().map(one).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;
