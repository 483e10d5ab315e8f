//! Small builders for clusters and questions. The stage is always set with the same four pods:
//!
//! | pod | addresses | labels | namespace labels |
//! |---|---|---|---|
//! | x/a | `10.0.0.1`, `fd00::1` | app=a tier=front | team=x |
//! | x/b | `10.0.0.2`, `fd00::2` | app=b | team=x |
//! | y/a | `10.0.1.1`, `fd00::1:1` | app=a | team=y |
//! | y/b | `10.0.1.2`, `fd00::1:2` | app=b empty= | team=y |
//!
//! Each of them declares `web` (TCP and UDP): 80 in namespace x, 8080 in namespace y.

use std::net::IpAddr;

use portcullis_oracle::{Direction, Family, PolicyKey, Reason, Traffic, Verdict, World};
use serde_json::{Value, json};

pub(crate) const WEB: Traffic = Traffic::To(portcullis_oracle::Protocol::Tcp, 80);
/// An address that is no pod's.
pub(crate) const OUTSIDE: &str = "8.8.8.8";

/// A cluster in the making.
#[derive(Clone)]
pub(crate) struct Cluster(Vec<Value>);

pub(crate) fn cluster() -> Cluster {
    Cluster(Vec::new())
        .with(namespace("x", json!({"team": "x"})))
        .with(namespace("y", json!({"team": "y"})))
        .with(pod("x", "a", &["10.0.0.1", "fd00::1"], json!({"app": "a", "tier": "front"})))
        .with(pod("x", "b", &["10.0.0.2", "fd00::2"], json!({"app": "b"})))
        .with(pod("y", "a", &["10.0.1.1", "fd00::1:1"], json!({"app": "a"})))
        .with(pod("y", "b", &["10.0.1.2", "fd00::1:2"], json!({"app": "b", "empty": ""})))
}

impl Cluster {
    /// Adds any manifest, after the others.
    pub(crate) fn with(mut self, manifest: Value) -> Cluster {
        self.0.push(manifest);
        self
    }

    /// Adds a NetworkPolicy of namespace x.
    pub(crate) fn policy(self, name: &str, spec: Value) -> Cluster {
        self.with(policy("x", name, spec))
    }

    pub(crate) fn world(&self) -> World {
        World::new(&self.0)
    }
}

pub(crate) fn namespace(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

pub(crate) fn pod(namespace: &str, name: &str, addresses: &[&str], labels: Value) -> Value {
    let web = if namespace == "x" { 80 } else { 8080 };
    let addresses: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "spec": {"containers": [{"name": "c", "ports": [
            {"name": "web", "containerPort": web},
            {"name": "web", "containerPort": web, "protocol": "UDP"},
        ]}]},
        "status": {"phase": "Running", "podIPs": addresses},
    })
}

pub(crate) fn policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name},
        "spec": spec,
    })
}

/// A copy of a manifest with one field, named by its JSON pointer, set; its parent has to be there.
pub(crate) fn set(mut manifest: Value, pointer: &str, value: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').unwrap_or_default();
    let parent = manifest.pointer_mut(parent).and_then(Value::as_object_mut);
    assert!(parent.is_some(), "no parent of {pointer}");
    if let Some(parent) = parent {
        parent.insert(name.to_owned(), value);
    }
    manifest
}

/// An ingress rule list that allows the peer, on x/a.
pub(crate) fn from_peer(peer: Value) -> Value {
    json!({"podSelector": {"matchLabels": {"app": "a"}}, "ingress": [{"from": [peer]}]})
}

/// An ingress rule list that allows anyone on the port, on x/a.
pub(crate) fn on_port(port: Value) -> Value {
    json!({"podSelector": {"matchLabels": {"app": "a"}}, "ingress": [{"ports": [port]}]})
}

/// Whether one pod reaches another over IPv4.
pub(crate) fn reaches(world: &World, from: &str, to: &str, traffic: Traffic) -> bool {
    let pair = world.pod_to_pod(from, to, traffic, Family::Ipv4);
    let pair = pair.unwrap_or_else(|| panic!("{from} or {to} is not in the matrix"));
    pair.verdict() == Verdict::Allow
}

/// Why traffic from the address is or is not let into the pod.
pub(crate) fn ingress(world: &World, pod: &str, from: &str, traffic: Traffic) -> Reason {
    judge(world, pod, Direction::Ingress, from, traffic)
}

/// Why traffic to the address is or is not let out of the pod.
pub(crate) fn egress(world: &World, pod: &str, to: &str, traffic: Traffic) -> Reason {
    judge(world, pod, Direction::Egress, to, traffic)
}

fn judge(world: &World, pod: &str, direction: Direction, remote: &str, traffic: Traffic) -> Reason {
    let remote: IpAddr = remote.parse().unwrap_or_else(|_| panic!("{remote} is no address"));
    let verdict = world.judge(pod, direction, remote, traffic);
    let verdict = verdict.unwrap_or_else(|| panic!("{pod} is not judged"));
    assert_eq!(verdict.verdict, verdict.reason.verdict());
    verdict.reason
}

/// Which of the four pods reach x/a on TCP/80, x/a itself left out.
pub(crate) fn who_reaches_a(cluster: &Cluster) -> Vec<&'static str> {
    let world = cluster.world();
    ["x/b", "y/a", "y/b"].into_iter().filter(|from| reaches(&world, from, "x/a", WEB)).collect()
}

/// Which addresses are let into x/a on TCP/80.
pub(crate) fn let_in<'a>(cluster: &Cluster, addresses: &[&'a str]) -> Vec<&'a str> {
    let world = cluster.world();
    let allowed = |address: &&&str| ingress(&world, "x/a", address, WEB).verdict() == Verdict::Allow;
    addresses.iter().filter(allowed).copied().collect()
}

pub(crate) fn key(name: &str) -> PolicyKey {
    ("x".to_owned(), name.to_owned())
}

pub(crate) fn rule(name: &str, index: usize) -> Reason {
    Reason::Rule { policy: key(name), index }
}

pub(crate) fn isolated(names: &[&str]) -> Reason {
    let all: Vec<PolicyKey> = names.iter().map(|name| key(name)).collect();
    Reason::Isolated { first: all.first().cloned().unwrap_or_default(), all }
}

pub(crate) fn invalid_closed(names: &[&str]) -> Reason {
    let all: Vec<PolicyKey> = names.iter().map(|name| key(name)).collect();
    Reason::InvalidClosed { first: all.first().cloned().unwrap_or_default(), all }
}
