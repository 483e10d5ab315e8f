//! Whose a cgroup is, and that nobody else can claim it.

use std::path::Path;

use portcullis_policy::manifest::{Options, SourceFile, load_sources};
use portcullis_policy::model::Host;
use serde_json::{Value, json};

use super::*;

const NODE: &str = "n1";

fn side(cgroups: &[(&str, u64)]) -> HostSide {
    let pods = cgroups.iter().map(|(uid, cgroup)| ((*uid).to_owned(), *cgroup)).collect();
    let cgroups = PodCgroups { root: 1, pods, directories: Vec::new() };
    HostSide { cgroups, ..HostSide::new(Root::new(Path::new("/"), Path::new("/")), UnknownPod::Deny) }
}

fn pod(name: &str, uid: &str, host_network: bool, node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "x", "uid": uid},
        "spec": {"nodeName": node, "hostNetwork": host_network, "containers": [{"name": "c"}]},
        "status": {"phase": "Running"}})
}

/// The mirror of a static pod, or what looks like one.
fn mirror(mut pod: Value, of: &str, started: Option<&str>) -> Value {
    pod["metadata"]["annotations"] =
        json!({"kubernetes.io/config.hash": of, "kubernetes.io/config.mirror": of});
    pod["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Node", "name": pod["spec"]["nodeName"]}]);
    if let Some(started) = started {
        pod["status"]["startTime"] = json!(started);
    }
    pod
}

/// Cgroups of endpoints by pod, and those of pods with networks of their own.
fn owners(side: &HostSide, pods: &[Value]) -> (BTreeMap<String, u64>, BTreeSet<u64>) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string();
    let file = SourceFile { path: "pods.yaml", content: list.as_bytes() };
    let mut cluster = load_sources(&[file], &Options::default()).cluster;
    cluster.host = Some(Host::new(NODE));
    let wanted = side.endpoints(&Directory::new(&cluster), &cluster, &mut Vec::new());
    let pods = wanted.into_iter().filter(|(_, config)| config.cgroup != 0);
    (pods.map(|(key, config)| (key.to_string(), config.cgroup)).collect(), side.elsewhere(&cluster))
}

fn only(name: &str, cgroup: u64) -> BTreeMap<String, u64> {
    BTreeMap::from([(format!("x/{name}"), cgroup)])
}

#[test]
fn a_pods_cgroup_is_nobody_elses() {
    let side = side(&[("u1", 7)]);
    let victim = pod("victim", "u1", true, NODE);
    assert_eq!(owners(&side, std::slice::from_ref(&victim)), (only("victim", 7), BTreeSet::new()));
    for host_network in [false, true] {
        for node in [NODE, "n2"] {
            // The first by name, and the first that started.
            let decoy = mirror(pod("a", "u2", host_network, node), "u1", Some("2020-01-01T00:00:00Z"));
            assert_eq!(owners(&side, &[victim.clone(), decoy]), (only("victim", 7), BTreeSet::new()));
        }
    }
    let own = pod("own", "u1", false, NODE);
    assert_eq!(owners(&side, &[own]), (BTreeMap::new(), BTreeSet::from([7])));
}

#[test]
fn a_static_pods_cgroup_is_that_of_the_mirror_that_runs() {
    let side = side(&[("hash", 9)]);
    let real = mirror(pod("real", "u1", true, NODE), "hash", Some("2026-01-01T00:00:00Z"));
    assert_eq!(owners(&side, std::slice::from_ref(&real)), (only("real", 9), BTreeSet::new()));
    for decoy in [
        mirror(pod("a", "u2", false, NODE), "hash", None),
        mirror(pod("a", "u2", true, NODE), "hash", Some("2026-01-02T00:00:00Z")),
        mirror(pod("a", "u2", true, "n2"), "hash", Some("2020-01-01T00:00:00Z")),
    ] {
        assert_eq!(owners(&side, &[real.clone(), decoy]), (only("real", 9), BTreeSet::new()));
    }
}
