//! Pods: S25, S32, S50.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{assert_error, assert_fine, assert_problem};
use crate::convert::{Report, pod};
use crate::model::{HostPort, LabelsRead, ObjectKey, Phase, Pod, PodNetwork, Problem, Protocol, Severity};

fn read(object: &Value) -> (Pod, Vec<Problem>) {
    let mut report = Report::new("Pod ns/p", None);
    let pod = pod(object, &ObjectKey::new("ns", "p"), &mut report);
    (pod, report.into_problems())
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn a_whole_pod_is_read() {
    let (pod, problems) = read(&json!({"metadata": {"uid": "u", "labels": {"a": "b"}},
        "spec": {"nodeName": "n", "hostNetwork": false},
        "status": {"phase": "Running", "startTime": "1970-01-01T00:01:00Z", "podIP": "10.0.0.1",
            "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}, {"ip": "10.0.0.1"}]}}));
    assert_fine(&problems);
    assert_eq!(pod.uid, "u");
    assert_eq!(pod.labels["a"], "b");
    assert_eq!(pod.node.as_deref(), Some("n"));
    assert_eq!(pod.addresses, [ip("10.0.0.1"), ip("fd00::1")], "S32: all of podIPs, each once");
    assert_eq!(pod.start_time, Some(60));
    assert!(pod.is_live() && pod.has_own_network());
}

#[test]
fn an_empty_pod_is_live_without_address() {
    for object in [json!({}), json!("x"), json!({"metadata": null, "spec": null, "status": null})] {
        let (pod, problems) = read(&object);
        assert_fine(&problems);
        assert_eq!((pod.phase, pod.network, pod.start_time), (Phase::Live, PodNetwork::Own, None));
        assert!(pod.addresses.is_empty());
        assert_eq!(pod.uid, "manifest:ns/p");
    }
}

#[test]
fn pod_ip_counts_where_pod_ips_are_absent() {
    for ips in [json!(null), json!([])] {
        let (pod, problems) = read(&json!({"status": {"podIP": "10.0.0.1", "podIPs": ips}}));
        assert_eq!(pod.addresses, [ip("10.0.0.1")]);
        assert_fine(&problems);
    }
    let (pod, _) = read(&json!({"status": {"podIP": ""}}));
    assert!(pod.addresses.is_empty());
}

#[test]
fn addresses_that_cannot_be_read_are_left_out_and_reported() {
    let (pod, problems) =
        read(&json!({"status": {"podIPs": [{"ip": "x"}, {"ip": 1}, "10.0.0.9", {}, {"ip": "10.0.0.1"}]}}));
    assert_eq!(pod.addresses, [ip("10.0.0.1")]);
    assert_error(&problems, "status.podIPs[0].ip", "no address");
    assert_error(&problems, "status.podIPs[1].ip", "must be a string");
    assert_error(&problems, "status.podIPs[2]", "must be a mapping");
    assert_eq!(problems.len(), 3);
    let (pod, problems) = read(&json!({"status": {"podIPs": "10.0.0.1", "podIP": "10.0.0.2"}}));
    assert_eq!(pod.addresses, [ip("10.0.0.2")]);
    assert_error(&problems, "status.podIPs", "must be a list");
}

#[test]
fn s32_only_succeeded_and_failed_finish_a_pod() {
    for (status, phase) in [
        (json!({"phase": "Succeeded"}), Phase::Finished),
        (json!({"phase": "Failed"}), Phase::Finished),
        (json!({"phase": "failed"}), Phase::Live),
        (json!({"phase": "Pending"}), Phase::Live),
        (json!({"phase": 5}), Phase::Live),
        (json!(null), Phase::Live),
    ] {
        let (pod, _) =
            read(&json!({"metadata": {"deletionTimestamp": "2024-01-01T00:00:00Z"}, "status": status}));
        assert_eq!(pod.phase, phase, "{status}");
    }
}

#[test]
fn s50_a_start_time_that_cannot_be_read_is_the_oldest() {
    for (time, expected) in [
        (json!("2024-02-29T12:00:00+02:00"), Some(1_709_200_800)),
        (json!("2024-02-30T12:00:00Z"), None),
        (json!("yesterday"), None),
        (json!(17), None),
    ] {
        let (pod, problems) = read(&json!({"status": {"startTime": time}}));
        assert_eq!(pod.start_time, expected);
        assert_eq!(problems.is_empty(), expected.is_some(), "{problems:?}");
    }
}

#[test]
fn only_what_plainly_says_so_is_host_network() {
    for (value, network, severity) in [
        (json!(true), PodNetwork::Host, None),
        (json!("yes"), PodNetwork::Host, Some(Severity::Warning)),
        (json!("On"), PodNetwork::Host, Some(Severity::Warning)),
        (json!("no"), PodNetwork::Own, None),
        (json!(null), PodNetwork::Own, None),
        (json!("true "), PodNetwork::Own, Some(Severity::Error)),
        (json!(1), PodNetwork::Own, Some(Severity::Error)),
    ] {
        let (pod, problems) = read(&json!({"spec": {"hostNetwork": value}}));
        assert_eq!(pod.network, network, "{value}");
        assert_eq!(problems.first().map(|p| p.severity), severity, "{value}");
    }
}

#[test]
fn s25_named_ports_by_name_and_protocol_the_first_container_wins() {
    let (pod, problems) = read(&json!({"spec": {
        "initContainers": [
            {"restartPolicy": "Always", "ports": [{"name": "web", "containerPort": 9}, {"name": "side", "containerPort": 10}]},
            {"ports": [{"name": "once", "containerPort": 11}]},
            {"restartPolicy": "Never", "ports": [{"name": "never", "containerPort": 12}]}],
        "containers": [
            {"ports": [{"name": "web", "containerPort": 80}, {"name": "web", "protocol": "UDP", "containerPort": 81}]},
            {"ports": [{"name": "web", "containerPort": 82}, {"containerPort": 83, "protocol": "SCTP", "name": ""}]},
            {"ports": null}, {}]}}));
    assert_fine(&problems);
    let named: Vec<_> = pod.named_ports.iter().map(|((n, p), port)| (n.as_str(), *p, *port)).collect();
    assert_eq!(named, [("side", Protocol::Tcp, 10), ("web", Protocol::Tcp, 80), ("web", Protocol::Udp, 81)]);
    let declared: Vec<_> = pod.container_ports.iter().copied().collect();
    assert_eq!(
        declared,
        [
            (Protocol::Tcp, 9),
            (Protocol::Tcp, 10),
            (Protocol::Tcp, 80),
            (Protocol::Tcp, 82),
            (Protocol::Udp, 81),
            (Protocol::Sctp, 83)
        ]
    );
}

#[test]
fn container_ports_that_cannot_be_read_are_left_out() {
    let (pod, problems) = read(
        &json!({"spec": {"initContainers": {}, "containers": ["x", {"ports": {}}, {"ports": [
        "x", {"containerPort": 0}, {"containerPort": "80"}, {"name": "web"}, {"containerPort": 80, "protocol": "tcp"},
        {"containerPort": 81, "name": 5}]}]}}),
    );
    assert!(pod.named_ports.is_empty());
    assert_eq!(pod.container_ports.into_iter().collect::<Vec<_>>(), [(Protocol::Tcp, 81)]);
    for field in ["initContainers", "containers[0]", "containers[1].ports", "containers[2].ports[0]"] {
        assert_error(&problems, &format!("spec.{field}"), "left out");
    }
    for index in 1..4 {
        let field = format!("spec.containers[2].ports[{index}].containerPort");
        assert_problem(&problems, Severity::Warning, &field, "left out");
    }
    assert_error(&problems, "spec.containers[2].ports[4].protocol", "no protocol");
    assert_error(&problems, "spec.containers[2].ports[5].name", "no name");
}

#[test]
fn labels_that_are_no_strings_compare_as_their_text() {
    let (pod, problems) = read(&json!({"metadata": {"labels": {"b": true, "n": 1.5, "z": null, "s": "on"}}}));
    let labels: Vec<_> = pod.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(labels, [("b", "true"), ("n", "1.5"), ("s", "on")]);
    assert_problem(&problems, Severity::Warning, "metadata.labels.b", "compares as \"true\"");
    assert_problem(&problems, Severity::Warning, "metadata.labels.n", "compares as \"1.5\"");
    assert_problem(&problems, Severity::Warning, "metadata.labels.z", "absent");
    assert_eq!(pod.labels_read, LabelsRead::Whole);
}

#[test]
fn labels_that_cannot_be_read_close_the_pod() {
    for (metadata, field) in [
        (json!({"labels": "x"}), "metadata.labels"),
        (json!({"labels": [{"app": "web"}]}), "metadata.labels"),
        (json!({"labels": {"app": "web", "l": []}}), "metadata.labels.l"),
        (json!({"labels": {"app": {"x": "y"}}}), "metadata.labels.app"),
        (json!("x"), "metadata"),
    ] {
        let (pod, problems) = read(&json!({"metadata": metadata}));
        assert_eq!(pod.labels_read, LabelsRead::Unreadable, "{metadata}");
        assert_error(&problems, field, "isolated both ways");
    }
    let (pod, _) = read(&json!({"metadata": {"labels": null}}));
    assert_eq!(pod.labels_read, LabelsRead::Whole);
}

#[test]
fn host_ports_are_those_that_somebody_translates() {
    let object = |host_network: bool| {
        json!({"spec": {"hostNetwork": host_network,
            "initContainers": [{"ports": [{"containerPort": 1, "hostPort": 1}]},
                {"restartPolicy": "Always", "ports": [{"containerPort": 9, "hostPort": 9009, "hostIP": "::"}]}],
            "containers": [{"ports": [
                {"containerPort": 80, "hostPort": 8080}, {"containerPort": 81, "hostPort": 0},
                {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1"},
                {"containerPort": 82, "hostPort": 70000}, {"containerPort": 83, "hostPort": 83, "hostIP": "x"},
                {"containerPort": 84, "hostPort": 84, "hostIP": ""}]}]}})
    };
    let (pod, problems) = read(&object(false));
    let port = |protocol, host_port, host_ip: Option<&str>, container_port| HostPort {
        protocol,
        host_port,
        host_ip: host_ip.map(ip),
        container_port,
    };
    assert_eq!(
        *pod.host_ports,
        [
            port(Protocol::Tcp, 84, None, 84),
            port(Protocol::Tcp, 8080, None, 80),
            port(Protocol::Tcp, 9009, Some("::"), 9),
            port(Protocol::Udp, 53, Some("127.0.0.1"), 53),
        ]
    );
    assert_problem(&problems, Severity::Warning, "spec.containers[0].ports[3].hostPort", "left out");
    assert_error(&problems, "spec.containers[0].ports[4].hostIP", "no address");
    assert_eq!(problems.len(), 2);
    let (pod, _) = read(&object(true));
    assert!(pod.host_ports.is_empty(), "nobody translates for who shares the node's network");
}

#[test]
fn only_a_mirror_that_its_node_owns_names_another_uid() {
    let mirror = json!({"metadata": {"uid": "u1",
        "annotations": {"kubernetes.io/config.hash": "u2", "kubernetes.io/config.mirror": "u2"},
        "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u3"}]},
        "spec": {"nodeName": "n1"}});
    assert_eq!(read(&mirror).0.static_uid.as_deref(), Some("u2"));
    for (pointer, other) in [
        ("/metadata/annotations", json!({"kubernetes.io/config.hash": "u2"})),
        ("/metadata/annotations/kubernetes.io~1config.mirror", json!("u4")),
        ("/metadata/ownerReferences", json!([])),
        ("/metadata/ownerReferences/0/kind", json!("ReplicaSet")),
        ("/metadata/ownerReferences/0/name", json!("n2")),
        ("/metadata/ownerReferences/0/apiVersion", json!("v2")),
        ("/spec/nodeName", json!("n2")),
        ("/spec", json!({})),
    ] {
        let mut forged = mirror.clone();
        *forged.pointer_mut(pointer).unwrap() = other;
        assert_eq!(read(&forged).0.static_uid, None, "{pointer}");
    }
}
