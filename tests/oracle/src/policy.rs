//! One NetworkPolicy: whom it isolates, and what its rules allow. It reads the policy once, leniently, and holds
//! the result so that what could not be read matches nothing. It does not know the other policies.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use crate::ip_block::IpBlock;
use crate::ports::Ports;
use crate::read::{field, has_unknown_field, items};
use crate::selector::{self, Flaw, Selector};
use crate::verdict::{Direction, PolicyKey, Traffic};
use crate::workload::Pod;

/// A NetworkPolicy.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) key: PolicyKey,
    subject: Subject,
    ingress: Side,
    egress: Side,
}

/// Which pods of its namespace a policy selects.
#[derive(Debug)]
enum Subject {
    WholeNamespace,
    Matching(Selector),
}

/// One direction of a policy.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) isolation: Isolation,
    /// All of them, those that match nothing too: the position names a rule.
    rules: Vec<Rule>,
}

/// Whose policy it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Owner<'a> {
    /// A namespace's.
    Namespace(&'a str),
    /// The hosts': H2 to H4.
    Hosts,
}

/// Whether, and why, a policy isolates the pods it selects in one direction (S2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// It does not.
    Open,
    /// As its author wrote.
    Stated,
    /// Because it is invalid.
    Invalid,
}

#[derive(Debug)]
enum Rule {
    Nothing,
    Allow { peers: Peers, ports: Ports },
}

#[derive(Debug)]
enum Peers {
    /// S12: external addresses included.
    Anyone,
    /// S10: separate entries are alternatives.
    Of(Vec<Peer>),
}

#[derive(Debug)]
enum Peer {
    Nothing,
    /// At least one of the two is there.
    Pods {
        namespaces: Option<Selector>,
        pods: Option<Selector>,
    },
    Block(IpBlock),
    /// H4.
    Nodes(Selector),
}

/// The other end of the connection, as a rule sees it.
#[derive(Clone, Copy)]
pub(crate) struct Remote<'a> {
    pub(crate) address: IpAddr,
    /// The live pod that owns the address.
    pub(crate) pod: Option<&'a Pod>,
    /// The labels of that pod's namespace; none if no manifest declares it.
    pub(crate) namespace_labels: Option<&'a BTreeMap<String, String>>,
    /// H4: the labels of each node whose address it is.
    pub(crate) nodes: &'a [&'a BTreeMap<String, String>],
}

impl Policy {
    /// Reads a NetworkPolicy, of whatever apiVersion.
    pub(crate) fn read(key: PolicyKey, policy: &Value) -> Policy {
        let nothing = Value::Object(serde_json::Map::new());
        let spec = field(policy, "spec").unwrap_or(&nothing);
        let closed = Side::closed;

        let (subject, flaw) = match field(spec, "podSelector") {
            // S8.
            None => (Subject::WholeNamespace, None),
            Some(selector) => match Selector::read(selector) {
                Ok(selector) => (Subject::Matching(selector), None),
                // S13: it isolates the whole namespace.
                Err(flaw) => (Subject::WholeNamespace, Some(flaw)),
            },
        };
        // No readable podSelector, or no readable spec at all: both ways.
        let unreadable = !spec.is_object() || flaw == Some(Flaw::WrongType);
        // S49: unknown fields in spec, outside the rules.
        let unknown = has_unknown_field(spec, &["podSelector", "ingress", "egress", "policyTypes"])
            || field(spec, "podSelector").is_some_and(selector::has_unknown_fields);
        if unreadable || unknown {
            return Policy { key, subject, ingress: closed(), egress: closed() };
        }

        let owner = Owner::Namespace(&key.0);
        let mut ingress = read_side(spec, Direction::Ingress, owner);
        let mut egress = read_side(spec, Direction::Egress, owner);
        if flaw == Some(Flaw::Invalid) {
            // S13: in the policy's directions, and none of its rules allows anything.
            for side in [&mut ingress, &mut egress] {
                if side.isolation != Isolation::Open {
                    *side = closed();
                }
            }
        }
        Policy { key, subject, ingress, egress }
    }

    /// Whether it isolates the pod in the direction, and why.
    pub(crate) fn isolates(&self, pod: &Pod, direction: Direction) -> Isolation {
        let selected = match &self.subject {
            // S9: pods of its own namespace only.
            _ if pod.namespace != self.key.0 => false,
            Subject::WholeNamespace => true,
            Subject::Matching(selector) => selector.matches(&pod.labels),
        };
        if selected { self.side(direction).isolation } else { Isolation::Open }
    }

    /// The position of the first rule of the direction that allows the traffic.
    pub(crate) fn first_match(
        &self,
        direction: Direction,
        remote: Remote<'_>,
        traffic: Traffic,
        destination: Option<&Pod>,
    ) -> Option<usize> {
        self.side(direction).first_match(remote, traffic, destination, Owner::Namespace(&self.key.0))
    }

    fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

impl Side {
    /// Isolated for being invalid.
    pub(crate) fn closed() -> Side {
        Side { isolation: Isolation::Invalid, rules: Vec::new() }
    }

    /// The position of the first rule that allows the traffic.
    pub(crate) fn first_match(
        &self,
        remote: Remote<'_>,
        traffic: Traffic,
        destination: Option<&Pod>,
        owner: Owner<'_>,
    ) -> Option<usize> {
        self.rules.iter().position(|rule| match rule {
            Rule::Nothing => false,
            // S22: peer and port of one rule.
            Rule::Allow { peers, ports } => {
                peers.matches(remote, owner) && ports.matches(traffic, destination)
            }
        })
    }
}

/// S5, S6, S7: isolation and rules of one direction.
pub(crate) fn read_side(spec: &Value, direction: Direction, owner: Owner<'_>) -> Side {
    let (kind, list, peers) = match direction {
        Direction::Ingress => ("Ingress", "ingress", "from"),
        Direction::Egress => ("Egress", "egress", "to"),
    };
    let rules = || match field(spec, list).map(Value::as_array) {
        // S5: absent, null and [] are no rules.
        None => Vec::new(),
        // Rules of the wrong type are there, and match nothing.
        Some(None) => vec![Rule::Nothing],
        Some(Some(rules)) => rules.iter().map(|rule| read_rule(rule, peers, owner)).collect(),
    };
    let types = match field(spec, "policyTypes") {
        None => Some(Vec::new()),
        Some(types) => types.as_array().map(|types| types.iter().map(Value::as_str).collect()),
    };
    match types {
        // S6: types of the wrong type isolate both ways, and name no direction.
        None => Side { isolation: Isolation::Invalid, rules: Vec::new() },
        // S6: the default is Ingress, and Egress if there are egress rules.
        Some(types) if types.is_empty() => {
            let rules = rules();
            match direction {
                Direction::Egress if rules.is_empty() => Side { isolation: Isolation::Open, rules },
                Direction::Ingress | Direction::Egress => Side { isolation: Isolation::Stated, rules },
            }
        }
        // S7: a named direction is isolated and has its rules.
        Some(types) if types.contains(&Some(kind)) => Side { isolation: Isolation::Stated, rules: rules() },
        // S6: an unknown type isolates both; S7: rules of an unnamed direction are ignored.
        Some(types) => {
            let valid = types.iter().all(|kind| matches!(kind, Some("Ingress" | "Egress")));
            let isolation = if valid { Isolation::Open } else { Isolation::Invalid };
            Side { isolation, rules: Vec::new() }
        }
    }
}

fn read_rule(rule: &Value, peers: &str, owner: Owner<'_>) -> Rule {
    // S49 goes before S13 and S24: an unknown field anywhere in it, and the rule matches nothing.
    if !rule.is_object() || rule_has_unknown_fields(rule, peers, owner) {
        return Rule::Nothing;
    }
    let ports = Ports::read(rule);
    let peers = match field(rule, peers).map(Value::as_array) {
        None => Peers::Anyone,
        Some(None) => Peers::Of(Vec::new()),
        Some(Some(peers)) if peers.is_empty() => Peers::Anyone,
        Some(Some(peers)) => Peers::Of(peers.iter().map(|peer| read_peer(peer, owner)).collect()),
    };
    Rule::Allow { peers, ports }
}

/// S49.
fn rule_has_unknown_fields(rule: &Value, peers: &str, owner: Owner<'_>) -> bool {
    let known: &[&str] = match owner {
        Owner::Namespace(_) => &["podSelector", "namespaceSelector", "ipBlock"],
        Owner::Hosts => &["podSelector", "namespaceSelector", "ipBlock", "nodes"],
    };
    let in_peer = |peer: &Value| {
        has_unknown_field(peer, known)
            || field(peer, "nodes").is_some_and(nodes_has_unknown_fields)
            || field(peer, "podSelector").is_some_and(selector::has_unknown_fields)
            || field(peer, "namespaceSelector").is_some_and(selector::has_unknown_fields)
            || field(peer, "ipBlock").is_some_and(|block| has_unknown_field(block, &["cidr", "except"]))
    };
    has_unknown_field(rule, &[peers, "ports"])
        || items(rule, peers).any(in_peer)
        || items(rule, "ports").any(|entry| has_unknown_field(entry, &["protocol", "port", "endPort"]))
}

/// S49, of `nodes` in a peer and in a subject.
pub(crate) fn nodes_has_unknown_fields(nodes: &Value) -> bool {
    has_unknown_field(nodes, &["nodeSelector"])
        || field(nodes, "nodeSelector").is_some_and(selector::has_unknown_fields)
}

/// S13: what cannot be read, has no field, or mixes kinds matches nothing.
fn read_peer(peer: &Value, owner: Owner<'_>) -> Peer {
    if let (Owner::Hosts, Some(nodes)) = (owner, field(peer, "nodes")) {
        let others = ["podSelector", "namespaceSelector", "ipBlock"];
        if !nodes.is_object() || others.iter().any(|name| field(peer, name).is_some()) {
            return Peer::Nothing;
        }
        // H4: no selector is every node.
        let everything = Value::Object(serde_json::Map::new());
        let selector = Selector::read(field(nodes, "nodeSelector").unwrap_or(&everything));
        return selector.map_or(Peer::Nothing, Peer::Nodes);
    }
    let selector = |name: &str| field(peer, name).map(Selector::read).transpose();
    match (field(peer, "ipBlock"), selector("namespaceSelector"), selector("podSelector")) {
        (Some(block), Ok(None), Ok(None)) => IpBlock::read(block).map_or(Peer::Nothing, Peer::Block),
        (None, Ok(namespaces), Ok(pods)) if namespaces.is_some() || pods.is_some() => {
            Peer::Pods { namespaces, pods }
        }
        _ => Peer::Nothing,
    }
}

impl Peers {
    fn matches(&self, remote: Remote<'_>, owner: Owner<'_>) -> bool {
        match self {
            Peers::Anyone => true,
            Peers::Of(peers) => peers.iter().any(|peer| peer.matches(remote, owner)),
        }
    }
}

impl Peer {
    fn matches(&self, remote: Remote<'_>, owner: Owner<'_>) -> bool {
        match self {
            Peer::Nothing => false,
            Peer::Nodes(selector) => remote.nodes.iter().any(|labels| selector.matches(labels)),
            // S16, S17: union with the other peers comes from their being separate.
            Peer::Block(block) => block.contains(remote.address),
            Peer::Pods { namespaces, pods } => {
                // S11: selectors match pods, never external or node addresses.
                // S34: a pod whose Namespace nobody declared is not judged with empty labels.
                let (Some(pod), Some(namespace_labels)) = (remote.pod, remote.namespace_labels) else {
                    return false;
                };
                // S10: podSelector alone stays in the policy's namespace; both in one entry: and.
                let namespace_matches = match (namespaces, owner) {
                    (None, Owner::Namespace(own)) => pod.namespace == own,
                    // A HostPolicy has no namespace of its own: every one.
                    (None, Owner::Hosts) => true,
                    (Some(selector), _) => selector.matches(namespace_labels),
                };
                namespace_matches && pods.as_ref().is_none_or(|selector| selector.matches(&pod.labels))
            }
        }
    }
}
