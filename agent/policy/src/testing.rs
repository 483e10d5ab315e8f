//! Small clusters for tests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::needless_pass_by_value,
    reason = "tests"
)]

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::answer::{Answers, Party};
use crate::compile::Compiler;
use crate::desired::Desired;
use crate::manifest::{self, Loaded, ManifestObject, Options, ParsedFile};
use crate::model::{Cluster, ObjectKey};

/// What manifests say.
pub(crate) fn load(manifests: &[Value]) -> Loaded {
    let objects = manifests.iter().map(|value| ManifestObject { line: 1, value: value.clone() }).collect();
    let file = ParsedFile { path: "test.json".to_owned(), objects };
    manifest::load(&[file], &Options { pod_cidrs: Vec::new() })
}

/// Tables with every pod an endpoint, and the node where it has a firewall.
pub(crate) fn compile(cluster: &Cluster) -> Desired {
    Compiler::new(0).compile(cluster, &cluster.subjects()).unwrap().0
}

/// A namespace.
pub(crate) fn namespace(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A pod that declares the containerPort `web` as TCP/8080.
pub(crate) fn pod(namespace: &str, name: &str, labels: Value, ip: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {"podIP": ip}})
}

/// A NetworkPolicy.
pub(crate) fn policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

/// A Node with one address.
pub(crate) fn node(name: &str, labels: Value, ip: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
        "status": {"addresses": [{"type": "InternalIP", "address": ip}]}})
}

/// A pod in the network of this node; it declares `web` as [`pod`] does.
pub(crate) fn host_pod(namespace: &str, name: &str, labels: Value, node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "spec": {"hostNetwork": true, "nodeName": node,
            "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]}})
}

/// A HostPolicy.
pub(crate) fn host_policy(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "HostPolicy", "metadata": {"name": name}, "spec": spec})
}

/// The pod `ns/name`, an address, or, where the host firewall is on, `node` and a hostNetwork pod `ns/name`.
pub(crate) fn party(answers: &Answers<'_>, text: &str) -> Party {
    let mut hosts = answers.hosts(crate::answer::Family::Ipv4).into_iter();
    let named = |party: &Party| match party {
        Party::OwnNode(_) => text == "node",
        Party::HostPod(key, _) => key.to_string() == text,
        Party::Pod(..) | Party::Address(_) => false,
    };
    if let Some(host) = hosts.find(named) {
        return host;
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return answers.party_at(address);
    }
    let (namespace, name) = text.split_once('/').unwrap();
    let key = ObjectKey::new(namespace, name);
    let address = *answers.cluster().pods[&key].addresses.first().unwrap();
    Party::Pod(key, address)
}
