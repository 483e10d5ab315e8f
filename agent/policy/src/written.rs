//! Parts of the model as a manifest writes them. It only writes what [`crate::convert`] reads back to the same
//! model; of what could not be read it knows nothing.

use serde_json::{Map, Value, json};

use portcullis_common::event::Direction;

use crate::convert::METADATA_NAME;
use crate::model::{
    DirectionSpec, HostPolicy, HostSubject, IpBlock, Mode, NamespaceScope, NetworkPolicy, ObjectKey,
    Operator, Peer, Peers, PortMatch, PortSpec, Ports, Rule, Selector, Subject,
};

/// A whole NetworkPolicy.
#[must_use]
pub fn policy(key: &ObjectKey, policy: &NetworkPolicy) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": key.namespace, "name": key.name},
        "spec": spec(policy, &key.namespace),
    })
}

/// A whole Namespace.
#[must_use]
pub fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// The spec of a policy of this namespace, with its types written out. Rules that match nothing are left out,
/// and a subject that could not be read is the whole namespace.
#[must_use]
pub fn spec(policy: &NetworkPolicy, namespace: &str) -> Value {
    let subject = match &policy.subject {
        Subject::Pods(subject) => selector(subject),
        Subject::Unreadable => json!({}),
    };
    let mut spec = Map::from_iter([("podSelector".to_owned(), subject)]);
    spec.extend(directions(&policy.ingress, &policy.egress, namespace));
    Value::Object(spec)
}

/// A whole HostPolicy.
#[must_use]
pub fn host_policy(name: &str, policy: &HostPolicy) -> Value {
    json!({
        "apiVersion": "portcullis.dev/v1alpha1",
        "kind": "HostPolicy",
        "metadata": {"name": name},
        "spec": host_spec(policy),
    })
}

/// The spec of a HostPolicy, as [`spec`] writes a NetworkPolicy's. A subject that could not be read is every node.
#[must_use]
pub fn host_spec(policy: &HostPolicy) -> Value {
    let subject = match &policy.subject {
        HostSubject::Nodes(nodes) => json!({"nodes": {"nodeSelector": selector(nodes)}}),
        HostSubject::Pods { namespaces, pods } => {
            json!({"pods": {"namespaceSelector": selector(namespaces), "podSelector": selector(pods)}})
        }
        HostSubject::Unreadable => json!({"nodes": {}}),
    };
    let mut spec = Map::from_iter([("subject".to_owned(), subject)]);
    match policy.mode {
        Mode::Enforce => {}
        Mode::Audit => {
            spec.insert("mode".to_owned(), json!("Audit"));
        }
    }
    spec.extend(directions(&policy.ingress, &policy.egress, ""));
    Value::Object(spec)
}

/// Types and rules.
fn directions(ingress: &DirectionSpec, egress: &DirectionSpec, namespace: &str) -> Map<String, Value> {
    let mut types = Vec::new();
    let mut spec = Map::new();
    for (name, direction, of) in
        [("Ingress", Direction::Ingress, ingress), ("Egress", Direction::Egress, egress)]
    {
        match of {
            DirectionSpec::Ignored => {}
            DirectionSpec::Isolated { rules, cause: _ } => {
                types.push(name);
                let rules: Vec<Value> = rules.iter().filter_map(|r| rule(r, direction, namespace)).collect();
                if !rules.is_empty() {
                    spec.insert(direction.name().to_owned(), Value::Array(rules));
                }
            }
        }
    }
    spec.insert("policyTypes".to_owned(), json!(types));
    spec
}

/// A rule of a policy of this namespace; `None` where it matches nothing.
#[must_use]
pub fn rule(rule: &Rule, direction: Direction, namespace: &str) -> Option<Value> {
    let mut written = Map::new();
    match &rule.peers {
        Peers::Any => {}
        Peers::Only(peers) if peers.is_empty() => return None,
        Peers::Only(peers) => {
            let name = match direction {
                Direction::Ingress => "from",
                Direction::Egress => "to",
            };
            written.insert(name.to_owned(), peers.iter().map(|p| peer(p, namespace)).collect());
        }
    }
    match &rule.ports {
        Ports::Any => {}
        Ports::Only(ports) if ports.is_empty() => return None,
        Ports::Only(ports) => {
            written.insert("ports".to_owned(), ports.iter().map(port).collect());
        }
    }
    Some(Value::Object(written))
}

fn peer(peer: &Peer, namespace: &str) -> Value {
    match peer {
        Peer::Block(IpBlock { net, except }) => {
            let except: Vec<String> = except.iter().map(ToString::to_string).collect();
            let cidr = net.to_string();
            if except.is_empty() {
                json!({"ipBlock": {"cidr": cidr}})
            } else {
                json!({"ipBlock": {"cidr": cidr, "except": except}})
            }
        }
        Peer::Nodes(nodes) => json!({"nodes": {"nodeSelector": selector(nodes)}}),
        Peer::Pods { namespaces, pods } => match namespaces {
            NamespaceScope::Named(name) if name == namespace => json!({"podSelector": selector(pods)}),
            NamespaceScope::Named(name) => json!({
                "namespaceSelector": {"matchLabels": {METADATA_NAME: name}}, "podSelector": selector(pods),
            }),
            NamespaceScope::Matching(namespaces) => {
                json!({"namespaceSelector": selector(namespaces), "podSelector": selector(pods)})
            }
        },
    }
}

fn port(port: &PortMatch) -> Value {
    let protocol = port.protocol.name();
    match &port.port {
        PortSpec::All => json!({"protocol": protocol}),
        PortSpec::Range(from, to) if from == to => json!({"protocol": protocol, "port": from}),
        PortSpec::Range(from, to) => json!({"protocol": protocol, "port": from, "endPort": to}),
        PortSpec::Named(name) => json!({"protocol": protocol, "port": name}),
    }
}

/// A selector; the one that matches everything is `{}`.
#[must_use]
pub fn selector(selector: &Selector) -> Value {
    let (mut labels, mut expressions) = (Map::new(), Vec::new());
    for requirement in &selector.requirements {
        let key = &requirement.key;
        match &requirement.operator {
            Operator::In(values) => match (values.first(), values.len()) {
                (Some(value), 1) if !labels.contains_key(key) => {
                    labels.insert(key.clone(), json!(value));
                }
                _ => expressions.push(json!({"key": key, "operator": "In", "values": values})),
            },
            Operator::NotIn(values) => {
                expressions.push(json!({"key": key, "operator": "NotIn", "values": values}));
            }
            Operator::Exists => expressions.push(json!({"key": key, "operator": "Exists"})),
            Operator::DoesNotExist => expressions.push(json!({"key": key, "operator": "DoesNotExist"})),
        }
    }
    let mut written = Map::new();
    if !labels.is_empty() {
        written.insert("matchLabels".to_owned(), Value::Object(labels));
    }
    if !expressions.is_empty() {
        written.insert("matchExpressions".to_owned(), Value::Array(expressions));
    }
    Value::Object(written)
}
