//! The host firewall, by real connections: two hostNetwork pods, a process of the node, a pod on the node, one elsewhere, another
//! node and the outside, each to each, TCP and UDP, IPv4 and IPv6, over loopback too.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use portcullis_lab::Hook;
use portcullis_tests::hosts::{Party, Stage};
use portcullis_tests::privilege::is_root;
use serde_json::json;

#[test]
fn two_pods_and_the_node_obey_their_own_policies() {
    if !is_root("two_pods_and_the_node_obey_their_own_policies") {
        return;
    }
    let mut stage = Stage::up(Hook::Tcx, &[]);
    // Nothing isolates: everything passes.
    stage.matrix(|_, _| true).check_all();
    // X takes nothing.
    stage.apply(&[json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "HostPolicy", "metadata": {"name": "x-in"},
        "spec": {"subject": {"pods": {"podSelector": {"matchLabels": {"app": "x"}}}}, "policyTypes": ["Ingress"]}})]);
    stage.matrix(|from, at| at.of != Party::X || matches!(from, Party::X | Party::Host)).check_all();
    // Y sends nothing, the node takes from the pod here alone.
    stage.apply(&[
        json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "HostPolicy", "metadata": {"name": "y-out"},
            "spec": {"subject": {"pods": {"podSelector": {"matchLabels": {"app": "y"}}}}, "policyTypes": ["Egress"]}}),
        json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "HostPolicy", "metadata": {"name": "node-in"},
            "spec": {"subject": {"nodes": {}}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "p"}}}]}]}}),
    ]);
    stage
        .matrix(|from, at| match (from, at.of) {
            (Party::Y, to) => to == Party::Y,
            (from, Party::Host) => matches!(from, Party::Host | Party::Pod),
            _ => true,
        })
        .check_all();
    stage.down();
}
