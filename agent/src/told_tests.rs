#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::net::IpAddr;

use portcullis_policy::manifest::{ManifestObject, Options, ParsedFile, load};
use serde_json::{Value, json};

use super::*;
use crate::scratch::Scratch;

fn made(pod: &str, uid: Option<&str>, interface: u32) -> Made {
    Made {
        network: "pods".to_owned(),
        attachment: Attachment { container: format!("c{interface}"), ifname: "eth0".to_owned() },
        namespace: "shop".to_owned(),
        pod: pod.to_owned(),
        uid: uid.map(str::to_owned),
        interface,
        name: format!("veth{interface}"),
        station: Some([2, 0, 0, 0, 0, 1]),
        addresses: vec![address("10.9.0.1")],
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn cluster(pods: &[Value]) -> Arc<Cluster> {
    let objects = pods.iter().map(|value| ManifestObject { line: 1, value: value.clone() }).collect();
    let file = ParsedFile { path: "case.json".to_owned(), objects };
    let pod_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
    Arc::new(load(&[file], &Options { pod_cidrs }).cluster)
}

fn pod(name: &str, uid: Option<&str>, status: &Value) -> Value {
    let mut metadata = json!({"namespace": "shop", "name": name, "labels": {"app": name}});
    if let Some(uid) = uid {
        metadata["uid"] = json!(uid);
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status})
}

fn memory(dir: &Scratch) -> Memory {
    Memory::open(dir.path().join("told.json"))
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

#[test]
fn told_addresses_hold_until_the_source_shows_some() {
    let dir = Scratch::new();
    let mut memory = memory(&dir);
    let unshown = cluster(&[pod("web", Some("u1"), &json!({}))]);
    assert!(Arc::ptr_eq(&memory.over(&unshown), &unshown), "nothing was told");
    memory.take(made("web", Some("u1"), 7), 1000).unwrap();
    let over = memory.over(&unshown);
    assert_eq!(over.pods[&key("web")].addresses, [address("10.9.0.1")]);
    assert_eq!(over.pods[&key("web")].start_time, Some(1000), "later than who had the address before");
    assert!(Arc::ptr_eq(&memory.over(&unshown), &over), "the same objects, the same result");
    assert_eq!(memory.ports(&unshown).of[&key("web")].interface, 7);
    let shown = cluster(&[pod("web", Some("u1"), &json!({"podIPs": [{"ip": "10.9.0.2"}]}))]);
    assert!(Arc::ptr_eq(&memory.over(&shown), &shown), "the source's word counts");
    assert_eq!(memory.ports(&shown).of[&key("web")].interface, 7, "the interface stays");
}

#[test]
fn an_earlier_pod_of_the_same_name_is_not_meant() {
    let dir = Scratch::new();
    let mut memory = memory(&dir);
    memory.take(made("web", Some("u2"), 8), 1000).unwrap();
    for other in [
        cluster(&[pod("web", Some("u1"), &json!({}))]),
        cluster(&[pod("web", Some("u2"), &json!({"phase": "Failed"}))]),
        cluster(&[]),
    ] {
        let ports = memory.ports(&other);
        assert!(ports.of.is_empty());
        assert_eq!(ports.closed, BTreeMap::from([(8, "veth8".to_owned())]), "closed until its pod is known");
        assert!(Arc::ptr_eq(&memory.over(&other), &other));
    }
    // A static pod is known to its node by another UID than its mirror has.
    let mut mirror = pod("web", Some("u9"), &json!({}));
    let hash = json!({"kubernetes.io/config.hash": "u2", "kubernetes.io/config.mirror": "u2"});
    mirror["metadata"]["annotations"] = hash;
    mirror["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Node", "name": "n1"}]);
    mirror["spec"]["nodeName"] = json!("n1");
    assert!(memory.ports(&cluster(&[mirror])).closed.is_empty());
    // A manifest that has no UID is meant by its name.
    assert!(memory.ports(&cluster(&[pod("web", None, &json!({}))])).closed.is_empty());
}

#[test]
fn of_two_sandboxes_of_a_pod_the_newer_counts_and_the_older_is_closed() {
    let dir = Scratch::new();
    let mut memory = memory(&dir);
    let cluster = cluster(&[pod("web", Some("u1"), &json!({}))]);
    memory.take(made("web", Some("u1"), 7), 1000).unwrap();
    memory.take(made("web", Some("u1"), 8), 1001).unwrap();
    let ports = memory.ports(&cluster);
    assert_eq!(ports.of[&key("web")].interface, 8);
    assert_eq!(ports.closed.keys().copied().collect::<Vec<_>>(), [7]);
    assert!(memory.retain(|told| told.made.interface != 8));
    assert_eq!(memory.ports(&cluster).of[&key("web")].interface, 7);
}

#[test]
fn what_was_told_is_remembered_and_not_into_the_next_life_of_the_kernel() {
    let dir = Scratch::new();
    memory(&dir).take(made("web", Some("u1"), 7), 1000).unwrap();
    let again = memory(&dir);
    assert_eq!(again.told().len(), 1);
    assert_eq!(again.told()[0].made, made("web", Some("u1"), 7));
    let text = fs::read_to_string(again.path()).unwrap();
    let boot = fs::read_to_string(BOOT_ID).unwrap();
    fs::write(again.path(), text.replace(boot.trim(), "another")).unwrap();
    assert!(memory(&dir).told().is_empty());
    fs::write(again.path(), "{").unwrap();
    assert!(memory(&dir).told().is_empty());
}

#[test]
fn asked_twice_is_told_once_and_an_index_belongs_to_the_last() {
    let dir = Scratch::new();
    let mut memory = memory(&dir);
    memory.take(made("web", Some("u1"), 7), 1000).unwrap();
    memory.take(made("db", Some("u2"), 8), 1000).unwrap();
    memory.take(made("web", Some("u1"), 7), 1005).unwrap();
    assert_eq!(memory.told().iter().map(|told| told.since).collect::<Vec<_>>(), [1000, 1000]);
    let other = Made { interface: 7, ..made("job", Some("u3"), 9) };
    memory.take(other, 1010).unwrap();
    let pods: Vec<&str> = memory.told().iter().map(|told| told.made.pod.as_str()).collect();
    assert_eq!(pods, ["db", "job"]);
}
