//! Why the rules of one direction match a packet or do not: each rule of the policies that isolate the subject,
//! with what it wants and what is there instead. It reads the model, where labels and ranges still have their
//! names; the verdict itself comes from the tables and never from here.

use std::net::IpAddr;

use ipnet::IpNet;
use portcullis_common::event::Direction;

use crate::compile::ruleset::{Isolating, isolating};
use crate::frame::Traffic;
use crate::model::{
    Cluster, IpBlock, IsolationCause, LOOPBACK_V4, LOOPBACK_V6, Labels, NamespaceScope, Node, ObjectKey,
    Operator, Peer, Peers, Pod, PolicyRef, PortMatch, PortSpec, Ports, Requirement, Rule, Selector,
};
use crate::select::{Directory, PodFacts, Subject, block_holds};

/// One direction of a flow, as the policies of its subject see it.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    /// The objects.
    pub cluster: &'a Cluster,
    /// Who owns which address, of the same objects.
    pub directory: &'a Directory<'a>,
    /// The pod or node whose policies are asked.
    pub subject: &'a ObjectKey,
    /// Which way.
    pub direction: Direction,
    /// The address at the other end.
    pub remote: IpAddr,
    /// What is sent.
    pub traffic: Traffic,
}

/// What a direction is before any rule is asked.
#[derive(Clone, Debug)]
pub enum Standing<'a> {
    /// No policy isolates the subject.
    Open,
    /// Nobody knows which policies select it: not all of its labels can be read.
    Unknown,
    /// Nothing declares the subject's namespace (S34).
    Undeclared,
    /// These isolate it, in order of their names; at least one.
    Isolated(Vec<Isolating<'a>>),
}

/// What one rule says to the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its policy.
    pub policy: PolicyRef,
    /// Its index in `spec.ingress` or `spec.egress`.
    pub rule: u32,
    /// Why it does not match; `None`: it does.
    pub why: Option<WhyNot>,
}

/// What keeps a rule from matching.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// None of its peers is the other end.
    Peer,
    /// It names the protocol with other ports.
    Port,
    /// It names other protocols only.
    Protocol,
    /// Nothing in it could be read, so it matches nothing.
    Invalid,
}

impl Kind {
    /// The word for JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Port => "port",
            Self::Protocol => "protocol",
            Self::Invalid => "invalid",
        }
    }
}

/// Why a rule does not match. Where peer and port both differ it is of kind [`Kind::Peer`] and tells of both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WhyNot {
    /// What keeps it from matching.
    pub kind: Kind,
    /// For people, without the other end's name or address: rules say the same of pods that are alike.
    pub text: String,
    /// For each of the rule's peers what it wants and does not find.
    pub misses: Vec<Miss>,
    /// The ports that the rule names, where the packet's is none of them.
    pub ports: Vec<String>,
}

/// What a peer of a rule was compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Compared {
    /// Labels of the pod.
    Pod,
    /// Name or labels of the pod's namespace.
    Namespace,
    /// Labels of the node whose address it is.
    Node,
    /// The address.
    Address,
}

impl Compared {
    /// The word for JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Namespace => "namespace",
            Self::Node => "node",
            Self::Address => "address",
        }
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Miss {
    /// Of what.
    pub of: Compared,
    /// What the rule wants, as a selector is written: `app=db`, `tier in (a, b)`, `10.0.0.0/8`.
    pub wants: String,
    /// What is there instead; `None`: nothing.
    pub has: Option<String>,
}

impl Miss {
    fn new(of: Compared, wants: impl Into<String>, has: Option<String>) -> Self {
        Self { of, wants: wants.into(), has }
    }

    fn text(&self) -> String {
        let Self { of, wants, has } = self;
        match (of, has) {
            (Compared::Pod, Some(has)) => format!("wants pods with {wants}, and this one has {has}"),
            (Compared::Pod, None) => format!("wants pods with {wants}, and this one has no such label"),
            (Compared::Namespace, Some(has)) => format!("wants {wants}, and the pod is of {has}"),
            (Compared::Namespace, None) => format!("wants {wants}, and the pod's has no such label"),
            (Compared::Node, Some(has)) => format!("wants {wants}, and it is {has}"),
            (Compared::Node, None) => format!("wants {wants}, and it has no such label"),
            (Compared::Address, Some(has)) => format!("wants {wants}, and {has}"),
            (Compared::Address, None) => format!("wants {wants}, and the address is outside of it"),
        }
    }
}

impl<'a> Sight<'a> {
    /// The subject; `None` where policies select nobody by this key.
    #[must_use]
    pub fn whom(&self) -> Option<Subject<'a>> {
        self.directory.subject(self.subject)
    }

    /// The pod at the other end.
    #[must_use]
    pub fn peer(&self) -> Option<(&'a ObjectKey, &'a PodFacts<'a>)> {
        let key = *self.directory.owners.get(&self.remote)?;
        Some((key, self.directory.pods.get(key)?))
    }

    /// What the direction is before any rule is asked.
    #[must_use]
    pub fn standing(&self) -> Standing<'a> {
        let Some(subject) = self.whom() else { return Standing::Open };
        if let Some(facts) = subject.facts() {
            if !facts.pod.has_known_labels() {
                return Standing::Unknown;
            }
            if facts.namespace_labels.is_none() {
                return Standing::Undeclared;
            }
        }
        let policies: Vec<Isolating<'a>> = isolating(self.cluster, self.subject, &subject, self.direction);
        if policies.is_empty() { Standing::Open } else { Standing::Isolated(policies) }
    }

    /// Every rule that applies, in the order in which they are asked.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        match self.standing() {
            Standing::Open | Standing::Unknown | Standing::Undeclared => Vec::new(),
            Standing::Isolated(policies) => policies
                .iter()
                .flat_map(|isolating| {
                    (0u32..).zip(isolating.rules).map(|(index, rule)| Finding {
                        policy: isolating.policy.clone(),
                        rule: index,
                        why: self.why_not(rule, isolating.cause),
                    })
                })
                .collect(),
        }
    }

    /// Why a rule does not match; `None`: it does.
    #[must_use]
    pub fn why_not(&self, rule: &Rule, cause: IsolationCause) -> Option<WhyNot> {
        if let Some(text) = unreadable(rule, cause) {
            return Some(WhyNot {
                kind: Kind::Invalid,
                text: text.to_owned(),
                misses: Vec::new(),
                ports: Vec::new(),
            });
        }
        let misses = self.peer_misses(&rule.peers);
        let port = self.port_miss(&rule.ports);
        match (misses, port) {
            (None, None) => None,
            (None, Some(port)) => {
                Some(WhyNot { kind: port.kind, text: port.text, misses: Vec::new(), ports: port.ports })
            }
            (Some(misses), port) => {
                let mut texts: Vec<String> = misses.iter().map(Miss::text).collect();
                texts.dedup();
                let (also, ports) = port.map_or((None, Vec::new()), |port| (Some(port.text), port.ports));
                texts.extend(also);
                Some(WhyNot { kind: Kind::Peer, text: texts.join("; "), misses, ports })
            }
        }
    }

    /// True if the rule's ports hold the packet's.
    #[must_use]
    pub fn holds_port(&self, ports: &Ports) -> bool {
        self.port_miss(ports).is_none()
    }

    /// True if the rule's peers hold the other end.
    #[must_use]
    pub fn holds_peer(&self, peers: &Peers) -> bool {
        self.peer_misses(peers).is_none()
    }

    /// What each peer misses; `None`: one of them matches.
    fn peer_misses(&self, peers: &Peers) -> Option<Vec<Miss>> {
        let Peers::Only(peers) = peers else { return None };
        // Not the default of an `Option`: the first that matches ends it.
        peers.iter().map(|peer| self.peer_miss(peer)).collect()
    }

    fn peer_miss(&self, peer: &Peer) -> Option<Miss> {
        match peer {
            Peer::Block(block) => block_miss(block, self.remote),
            Peer::Nodes(nodes) => self.node_miss(nodes),
            Peer::Pods { namespaces, pods } => {
                let Some((_, facts)) = self.peer() else {
                    let has = Some("the other end is no pod".to_owned());
                    return Some(Miss::new(Compared::Address, "a pod", has));
                };
                namespace_miss(namespaces, facts)
                    .or_else(|| selector_miss(Compared::Pod, pods, &facts.pod.labels))
            }
        }
    }

    /// Without names of nodes: rules say the same of nodes that are alike.
    fn node_miss(&self, nodes: &Selector) -> Option<Miss> {
        if self.cluster.node_peers(nodes).iter().any(|net| net.contains(&self.remote)) {
            return None;
        }
        let own = self.cluster.host.as_ref().and_then(|host| self.cluster.nodes.get(&host.node));
        let is_loopback = [LOOPBACK_V4, LOOPBACK_V6].iter().any(|net| net.contains(&self.remote));
        let shows = |node: &&Node| node.addresses.contains(&self.remote);
        let Some(node) = self.cluster.nodes.values().find(shows).or(own.filter(|_| is_loopback)) else {
            let has = Some("the other end is no node".to_owned());
            return Some(Miss::new(Compared::Address, "a node", has));
        };
        selector_miss(Compared::Node, nodes, &node.labels).map(|miss| Miss {
            wants: format!("a node with {}", miss.wants),
            has: miss.has.map(|has| format!("one with {has}")),
            of: Compared::Node,
        })
    }

    /// Whose named ports count (S25).
    fn destination(&self) -> Option<&'a Pod> {
        match self.direction {
            Direction::Ingress => self.whom().and_then(|subject| subject.facts().map(|facts| facts.pod)),
            Direction::Egress => self.peer().map(|(_, facts)| facts.pod),
        }
    }

    fn port_miss(&self, ports: &Ports) -> Option<PortMiss> {
        let Ports::Only(entries) = ports else { return None };
        let destination = self.destination();
        let named = || entries.iter().map(|entry| port_text(entry, destination)).collect::<Vec<_>>();
        let Traffic::To(protocol, port) = self.traffic else {
            let ports = named();
            let text = format!("names {}, and a rule with ports covers no ICMP", ports.join(", "));
            return Some(PortMiss { kind: Kind::Protocol, text, ports });
        };
        let mut same_protocol = entries.iter().filter(|entry| entry.protocol == protocol).peekable();
        let kind = if same_protocol.peek().is_some() { Kind::Port } else { Kind::Protocol };
        if same_protocol.any(|entry| holds(entry, port, destination)) {
            return None;
        }
        let ports = named();
        let text = format!("names {}, and not {}", ports.join(", "), self.traffic);
        Some(PortMiss { kind, text, ports })
    }
}

struct PortMiss {
    kind: Kind,
    text: String,
    ports: Vec<String>,
}

fn unreadable(rule: &Rule, cause: IsolationCause) -> Option<&'static str> {
    match cause {
        IsolationCause::Invalid => return Some("matches nothing, for its policy could not be read"),
        IsolationCause::Written => {}
    }
    let no_peers = matches!(&rule.peers, Peers::Only(peers) if peers.is_empty());
    let no_ports = matches!(&rule.ports, Ports::Only(ports) if ports.is_empty());
    match (no_peers, no_ports) {
        (true, true) => Some("matches nothing, for it could not be read"),
        (true, false) => Some("matches nothing, for none of its peers could be read"),
        (false, true) => Some("matches nothing, for none of its ports could be read"),
        (false, false) => None,
    }
}

fn holds(entry: &PortMatch, port: u16, destination: Option<&Pod>) -> bool {
    match &entry.port {
        PortSpec::All => true,
        PortSpec::Range(from, to) => (*from..=*to).contains(&port),
        PortSpec::Named(_) => resolved(entry, destination) == Some(port),
    }
}

/// The number that a named port stands for at the destination.
fn resolved(entry: &PortMatch, destination: Option<&Pod>) -> Option<u16> {
    let PortSpec::Named(name) = &entry.port else { return None };
    destination?.named_ports.get(&(name.clone(), entry.protocol)).copied()
}

fn port_text(entry: &PortMatch, destination: Option<&Pod>) -> String {
    let protocol = entry.protocol;
    match &entry.port {
        PortSpec::All => format!("{protocol}/*"),
        PortSpec::Range(from, to) if from == to => format!("{protocol}/{from}"),
        PortSpec::Range(from, to) => format!("{protocol}/{from}-{to}"),
        PortSpec::Named(name) => match (resolved(entry, destination), destination) {
            (Some(number), _) => format!("{protocol}/{name} ({number} there)"),
            (None, Some(_)) => format!("{protocol}/{name} (not declared there)"),
            (None, None) => format!("{protocol}/{name} (declared by pods only)"),
        },
    }
}

fn block_miss(block: &IpBlock, address: IpAddr) -> Option<Miss> {
    if block_holds(block, address) {
        return None;
    }
    let hole: Option<&IpNet> = block.except.iter().find(|except| except.contains(&address));
    let has = hole.map(|except| format!("the address is in its except {except}"));
    Some(Miss::new(Compared::Address, block.net.to_string(), has))
}

fn namespace_miss(scope: &NamespaceScope, facts: &PodFacts<'_>) -> Option<Miss> {
    let of = Compared::Namespace;
    let Some(labels) = facts.namespace_labels else {
        let has = Some("one that nothing declares".to_owned());
        return Some(Miss::new(of, "a declared namespace", has));
    };
    match scope {
        NamespaceScope::Named(name) if name == facts.namespace => None,
        NamespaceScope::Named(name) => {
            let has = format!("namespace {}", facts.namespace);
            Some(Miss::new(of, format!("namespace {name}"), Some(has)))
        }
        NamespaceScope::Matching(selector) => selector_miss(of, selector, labels).map(|miss| Miss {
            wants: format!("a namespace with {}", miss.wants),
            has: miss.has.map(|has| format!("one with {has}")),
            of,
        }),
    }
}

/// The requirements that do not hold, in one difference.
fn selector_miss(of: Compared, selector: &Selector, labels: &Labels) -> Option<Miss> {
    let failing: Vec<&Requirement> = selector.requirements.iter().filter(|r| !r.matches(labels)).collect();
    if failing.is_empty() {
        return None;
    }
    let wants: Vec<String> = failing.iter().map(ToString::to_string).collect();
    let mut has: Vec<String> =
        failing.iter().filter_map(|r| Some(format!("{}={}", r.key, labels.get(&r.key)?))).collect();
    has.dedup();
    Some(Miss::new(of, wants.join(", "), (!has.is_empty()).then(|| has.join(", "))))
}

impl std::fmt::Display for Requirement {
    /// As `kubectl --selector` writes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { key, operator } = self;
        let listed = |values: &std::collections::BTreeSet<String>| {
            values.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
        };
        match operator {
            Operator::In(values) => match (values.first(), values.len()) {
                (Some(value), 1) => write!(f, "{key}={value}"),
                _ => write!(f, "{key} in ({})", listed(values)),
            },
            Operator::NotIn(values) => match (values.first(), values.len()) {
                (Some(value), 1) => write!(f, "{key}!={value}"),
                _ => write!(f, "{key} notin ({})", listed(values)),
            },
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
        }
    }
}

#[cfg(test)]
mod tests;
