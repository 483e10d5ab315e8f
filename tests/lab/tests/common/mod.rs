//! Small builders, and what every test here needs: root, or a word that it was skipped.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use portcullis_lab::netns::Netns;
use portcullis_policy::model::{
    AddressesFrom, Cluster, LabelsRead, ObjectKey, Phase, Pod, PodNetwork, Protocol,
};

/// False, with a word, where the test cannot run; in CI that is a failure.
pub(crate) fn is_root(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} needs root");
    println!("skipped: {test} needs root");
    false
}

/// A pod in namespace `x` that declares TCP/80, UDP/80 and SCTP/80.
pub(crate) fn pod(addresses: &[&str]) -> Pod {
    let ports = [(Protocol::Tcp, 80), (Protocol::Udp, 80), (Protocol::Sctp, 80)];
    Pod {
        uid: String::new(),
        labels: BTreeMap::new(),
        labels_read: LabelsRead::Whole,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        addresses_from: AddressesFrom::Status,
        static_uid: None,
        node: None,
        network: PodNetwork::Own,
        phase: Phase::Live,
        start_time: None,
        named_ports: BTreeMap::new(),
        container_ports: BTreeSet::from(ports),
        host_ports: Box::default(),
    }
}

/// A cluster of pods in namespace `x`, by name.
pub(crate) fn cluster(pods: &[(&str, Pod)]) -> Cluster {
    let pods = pods.iter().map(|(name, pod)| (key(name), pod.clone())).collect();
    Cluster { pods, ..Cluster::default() }
}

/// Three pods: `a` and `b` with both families, `c` with IPv4 only.
pub(crate) fn three_pods() -> Cluster {
    cluster(&[
        ("a", pod(&["10.244.0.10", "fd00:10:244::a"])),
        ("b", pod(&["10.244.0.11", "fd00:10:244::b"])),
        ("c", pod(&["192.168.1.3"])),
    ])
}

pub(crate) fn key(name: &str) -> ObjectKey {
    ObjectKey::new("x", name)
}

/// Adds (`add`) or takes away (`del`) a silent drop of what one address sends to another.
pub(crate) fn blackhole(node: &Netns, what: &str, from: &str, to: &str) {
    let args = ["rule", what, "from", from, "to", to, "blackhole"];
    let status = node.run(|| Command::new("ip").args(args).status()).unwrap().unwrap();
    assert!(status.success());
}

/// Asserts that a lab left nothing: no namespace, mount, directory.
pub(crate) fn assert_gone(id: &str) {
    let names = portcullis_lab::netns::names().unwrap();
    let left: Vec<&String> = names.iter().filter(|n| n.starts_with(&format!("pcl-{id}-"))).collect();
    assert!(left.is_empty(), "namespaces left: {left:?}");
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let left: Vec<&str> = mounts
        .lines()
        .filter(|l| l.contains(&format!("/{id}/")) || l.contains(&format!("pcl-{id}-")))
        .collect();
    assert!(left.is_empty(), "mounts left: {left:?}");
    assert!(!portcullis_lab::state::dir(id).exists());
}
