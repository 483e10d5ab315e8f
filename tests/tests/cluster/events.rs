//! A policy that the API server would refuse today, and has stored: its owners are told by one Event, and what it selects
//! is closed.

use portcullis_tests::cluster::scene::namespace;
use portcullis_tests::cluster::{Cluster, DEADLINE, items, text, until};
use serde_json::json;

const OURS: &str = "pc-events";
const NAME: &str = "older-than-its-rules";

/// Puts an object where the API server keeps it, past its validation. etcd answers JSON beside gRPC.
const STORE: &str = "curl -sf http://127.0.0.1:2379/v3/kv/put -d \
    \"{\\\"key\\\": \\\"$(printf %s \"$1\" | base64 -w0)\\\", \\\"value\\\": \\\"$(printf %s \"$2\" | base64 -w0)\\\"}\"";

#[test]
fn a_stored_policy_that_cannot_be_read_has_one_event() {
    let Some(cluster) = Cluster::of_environment() else { return };
    if cluster.on_node("fabric", &["curl", "-sf", "http://127.0.0.1:2379/health"]).is_err() {
        println!("skipped: no etcd that could be written to: the control plane is not the rig's");
        return;
    }
    cluster.install().unwrap();
    cluster.delete_namespaces(&[OURS]).unwrap();
    cluster.apply(&[namespace(OURS)]).unwrap();
    // when
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": OURS, "name": NAME, "uid": "5a6b0f86-7d0c-4a40-9f61-0c6c3d1f2f11", "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/99"}}]}]}});
    let key = format!("/registry/networkpolicies/{OURS}/{NAME}");
    cluster.on_node("fabric", &["bash", "-c", STORE, "store", &key, &policy.to_string()]).unwrap();
    cluster.kubectl(&["-n", OURS, "get", "networkpolicy", NAME]).unwrap();
    // then
    let told = || cluster.get(&["-n", OURS, "events", "--field-selector", "reason=NotUnderstood"]);
    let first = until(DEADLINE, || {
        let events = told()?;
        Ok(items(&events).first().cloned())
    });
    let event = first.unwrap().expect("no Event was written");
    assert_eq!(text(&event, "/involvedObject/name"), NAME);
    assert_eq!(text(&event, "/involvedObject/kind"), "NetworkPolicy");
    assert_eq!(text(&event, "/type"), "Warning");
    let message = text(&event, "/message");
    assert!(message.contains("spec.ingress[0].from[0]"), "{message}");
    // Agents wait up to 10 s before they tell: after twice that the others have found that it was told.
    std::thread::sleep(std::time::Duration::from_secs(20));
    let all = told().unwrap();
    assert_eq!(items(&all).len(), 1, "{all}");
    println!("{}", cluster.kubectl(&["-n", OURS, "get", "events"]).unwrap());
    cluster.kubectl(&["-n", OURS, "delete", "networkpolicy", NAME]).unwrap();
    cluster.delete_namespaces(&[OURS]).unwrap();
}
