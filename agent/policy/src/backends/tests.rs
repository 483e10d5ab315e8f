//! Backends from pods and from slices, case by case, and against a naive reading of the manifests.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::needless_pass_by_value, reason = "tests")]

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::testing::{load, namespace, pod};

fn web(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "a", "name": "web"}, "spec": spec})
}

fn slice(name: &str, maker: Option<&str>, endpoints: Value, ports: Value) -> Value {
    let mut labels = json!({"kubernetes.io/service-name": "web"});
    if let Some(maker) = maker {
        labels["endpointslice.kubernetes.io/managed-by"] = json!(maker);
    }
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "a", "name": name, "labels": labels}, "endpoints": endpoints, "ports": ports})
}

const CONTROLLER: Option<&str> = Some("endpointslice-controller.k8s.io");

/// The backends of the port of `a/web` that is called so, as `ADDRESS:PORT POD`.
fn of(manifests: &[Value], port: &str) -> Vec<String> {
    let cluster = load(manifests).cluster;
    let key = ObjectKey::new("a", "web");
    let service = &cluster.services[&key];
    let port = find_port(service, PortName::read(port), None).unwrap();
    let found = backends(&cluster, &Directory::new(&cluster), &key, service, port);
    let name = |pod: &Option<ObjectKey>| pod.as_ref().map_or("-".to_owned(), ToString::to_string);
    found.iter().map(|one| format!("{}:{} {}", one.address, one.port, name(&one.pod))).collect()
}

/// Two pods of the Service, one with the port `web` under another number, and one that is not meant.
fn cluster() -> Vec<Value> {
    let mut other_number = pod("a", "two", json!({"app": "web"}), "10.0.0.2");
    other_number["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(9090);
    vec![
        namespace("a", json!({})),
        namespace("b", json!({})),
        pod("a", "one", json!({"app": "web", "x": "y"}), "10.0.0.1"),
        other_number,
        pod("a", "db", json!({"app": "db"}), "10.0.0.3"),
        pod("b", "one", json!({"app": "web"}), "10.0.0.4"),
    ]
}

fn with(mut manifests: Vec<Value>, more: &[Value]) -> Vec<Value> {
    manifests.extend_from_slice(more);
    manifests
}

#[test]
fn pods_are_found_by_labels_and_ports_by_number_or_each_pods_name() {
    let service = web(json!({"selector": {"app": "web"}, "ports": [
        {"name": "http", "port": 80, "targetPort": "web"}, {"name": "raw", "port": 81, "targetPort": 5000},
        {"name": "none", "port": 82, "targetPort": "missing"},
        {"name": "udp", "port": 83, "targetPort": "web", "protocol": "UDP"}]}));
    let all = with(cluster(), &[service]);
    assert_eq!(of(&all, "80"), ["10.0.0.1:8080 a/one", "10.0.0.2:9090 a/two"]);
    assert_eq!(of(&all, "http"), of(&all, "80"));
    assert_eq!(of(&all, "raw"), ["10.0.0.1:5000 a/one", "10.0.0.2:5000 a/two"]);
    assert!(of(&all, "none").is_empty() && of(&all, "udp").is_empty());
}

#[test]
fn finished_pods_and_those_of_unknown_labels_are_none() {
    let mut finished = pod("a", "done", json!({"app": "web"}), "10.0.0.8");
    finished["status"]["phase"] = json!("Succeeded");
    let unreadable = pod("a", "odd", json!({"app": "web", "l": []}), "10.0.0.9");
    let service = web(json!({"selector": {"app": "web"}, "ports": [{"port": 80}]}));
    let all = with(cluster(), &[finished, unreadable, service]);
    assert_eq!(of(&all, "80"), ["10.0.0.1:80 a/one", "10.0.0.2:80 a/two"]);
}

#[test]
fn a_pod_of_the_host_is_at_its_nodes_address() {
    let host = |name: &str, status: Value| {
        json!({"apiVersion": "v1", "kind": "Pod", "status": status, "spec": {"hostNetwork": true, "nodeName": "n1"},
            "metadata": {"namespace": "a", "name": name, "labels": {"app": "host"}}})
    };
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "status": {"addresses": [
        {"address": "192.168.1.1"}, {"address": "203.0.113.1"}, {"address": "fd01::1"}]}});
    let service = web(json!({"selector": {"app": "host"}, "ports": [{"port": 80}]}));
    let all = with(cluster(), &[host("h", json!({})), node.clone(), service.clone()]);
    assert_eq!(of(&all, "80"), ["192.168.1.1:80 a/h", "fd01::1:80 a/h"]);
    let shown = host("h", json!({"podIPs": [{"ip": "192.168.1.7"}]}));
    assert_eq!(of(&with(cluster(), &[shown, node, service]), "80"), ["192.168.1.7:80 a/h"]);
}

#[test]
fn a_service_of_one_family_has_backends_of_it_alone() {
    let mut both = pod("a", "one", json!({"app": "web"}), "10.0.0.1");
    both["status"]["podIPs"] = json!([{"ip": "fd00::1"}, {"ip": "10.0.0.1"}]);
    let all = |spec: Value| {
        let mut spec = spec;
        spec["selector"] = json!({"app": "web"});
        spec["ports"] = json!([{"port": 80}]);
        vec![namespace("a", json!({})), both.clone(), web(spec)]
    };
    assert_eq!(of(&all(json!({"clusterIP": "10.96.0.1"})), "80"), ["10.0.0.1:80 a/one"]);
    assert_eq!(of(&all(json!({"clusterIP": "fd96::1"})), "80"), ["fd00::1:80 a/one"]);
    assert_eq!(of(&all(json!({"clusterIP": "None"})), "80"), ["10.0.0.1:80 a/one", "fd00::1:80 a/one"]);
}

#[test]
fn slices_of_the_controller_count_in_place_of_pods_and_others_beside() {
    let service = web(
        json!({"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "web"}]}),
    );
    let own = slice("own", None, json!([{"addresses": ["192.0.2.9"]}]), json!([{"name": "http", "port": 1}]));
    let all = with(cluster(), &[service, own]);
    assert_eq!(of(&all, "80"), ["10.0.0.1:8080 a/one", "10.0.0.2:9090 a/two", "192.0.2.9:1 -"]);
    let made = slice(
        "made",
        CONTROLLER,
        json!([{"addresses": ["10.0.0.2"], "conditions": {"ready": true}},
            {"addresses": ["10.0.0.1"], "conditions": {"ready": false}}]),
        json!([{"name": "http", "port": 9090}, {"name": "other", "port": 5}, {"name": "http", "protocol": "UDP", "port": 6}]),
    );
    assert_eq!(of(&with(all.clone(), &[made]), "80"), ["10.0.0.2:9090 a/two", "192.0.2.9:1 -"]);
    // It is known that nobody is ready.
    let nobody = slice("made", CONTROLLER, json!([]), json!([]));
    assert_eq!(of(&with(all, &[nobody]), "80"), ["192.0.2.9:1 -"]);
}

#[test]
fn who_ends_counts_where_nobody_is_ready() {
    let ends = json!({"ready": false, "serving": true, "terminating": true});
    let endpoints = |first: Value| {
        json!([{"addresses": ["10.0.0.1"], "conditions": first}, {"addresses": ["10.0.0.2"], "conditions": ends},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": false}}])
    };
    let all = |first: Value| {
        let made = slice("made", CONTROLLER, endpoints(first), json!([{"port": 80}]));
        with(cluster(), &[web(json!({"selector": {"app": "web"}, "ports": [{"port": 80}]})), made])
    };
    assert_eq!(of(&all(json!({})), "80"), ["10.0.0.1:80 a/one"]);
    assert_eq!(of(&all(json!({"ready": false})), "80"), ["10.0.0.2:80 a/two"]);
}

#[test]
fn a_stale_slice_names_whoever_has_the_address_now() {
    let service = web(json!({"ports": [{"port": 80}]}));
    let gone = json!({"kind": "Pod", "name": "gone"});
    let endpoints = json!([{"addresses": ["10.0.0.3"], "targetRef": gone}, {"addresses": ["10.0.0.77"], "targetRef": gone}]);
    let all = with(cluster(), &[service, slice("s", None, endpoints, json!([{"port": 80}]))]);
    assert_eq!(of(&all, "80"), ["10.0.0.3:80 a/db", "10.0.0.77:80 -"]);
}

#[test]
fn a_port_is_found_by_number_or_name_and_by_protocol_where_that_is_needed() {
    let manifests = [web(json!({"ports": [{"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53}, {"name": "metrics", "port": 9153}, {"port": 1}]}))];
    let cluster = load(&manifests).cluster;
    let service = &cluster.services[&ObjectKey::new("a", "web")];
    let find =
        |text, protocol| find_port(service, PortName::read(text), protocol).map(|port| port.name.to_string());
    assert_eq!(find("53", None), Err(NoPort::Ambiguous));
    assert_eq!(find("53", Some(Protocol::Udp)).as_deref(), Ok("dns"));
    assert_eq!(find("53", Some(Protocol::Sctp)), Err(NoPort::Unknown));
    assert_eq!(find("dns-tcp", None).as_deref(), Ok("dns-tcp"));
    assert_eq!(find("dns-tcp", Some(Protocol::Udp)), Err(NoPort::Unknown));
    assert_eq!(find("9153", None).as_deref(), Ok("metrics"));
    for unknown in ["0", "", "70000", "dn"] {
        assert_eq!(find(unknown, None), Err(NoPort::Unknown), "{unknown}");
    }
}

/// A pod of the property test: labels, phase, the named port's number, and what somebody's slice says of it.
#[derive(Clone, Debug)]
struct Drawn {
    labels: [u8; 2],
    finished: bool,
    named: Option<u16>,
    conditions: Option<(Option<bool>, Option<bool>, Option<bool>)>,
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let conditions = prop::option::of((any::<Option<bool>>(), any::<Option<bool>>(), any::<Option<bool>>()));
    let parts = (any::<[bool; 2]>(), prop::bool::weighted(0.1), prop::option::of(8000u16..8003), conditions);
    parts.prop_map(|(labels, finished, named, conditions)| Drawn {
        labels: labels.map(u8::from),
        finished,
        named,
        conditions,
    })
}

proptest! {
    /// Naive: each pod is asked by itself, from what was drawn.
    #[test]
    fn backends_are_those_that_a_naive_reading_finds(
        pods in prop::collection::vec(drawn(), 0..6),
        selector in prop::option::of(any::<(Option<bool>, Option<bool>)>()),
        by_name in any::<bool>(),
        maker in any::<Option<bool>>(),
    ) {
        let selector = selector.map(|(x, y)| [x.map(u8::from), y.map(u8::from)]);
        let mut manifests = vec![namespace("a", json!({}))];
        for (number, drawn) in pods.iter().enumerate() {
            let [x, y] = drawn.labels;
            let labels = json!({"x": x.to_string(), "y": y.to_string()});
            let mut one = pod("a", &format!("p{number}"), labels, &format!("10.0.0.{}", number + 1));
            one["spec"]["containers"][0]["ports"] =
                drawn.named.map_or(json!([]), |named| json!([{"name": "web", "containerPort": named}]));
            if drawn.finished {
                one["status"]["phase"] = json!("Failed");
            }
            manifests.push(one);
        }
        let mut wanted = serde_json::Map::new();
        for (label, value) in ["x", "y"].into_iter().zip(selector.unwrap_or_default()) {
            wanted.extend(value.map(|value| (label.to_owned(), json!(value.to_string()))));
        }
        let target = if by_name { json!("web") } else { json!(7000) };
        manifests.push(web(json!({"selector": wanted, "ports": [{"port": 80, "targetPort": target}]})));
        if let Some(controller) = maker {
            let listed = pods.iter().enumerate().filter_map(|(number, drawn)| {
                let (ready, serving, terminating) = drawn.conditions?;
                Some(json!({"addresses": [format!("10.0.0.{}", number + 1)], "conditions":
                    {"ready": ready, "serving": serving, "terminating": terminating}}))
            });
            let maker = controller.then_some("endpointslice-controller.k8s.io");
            manifests.push(slice("s", maker, listed.collect(), json!([{"port": 6000}])));
        }
        let mut ready = BTreeSet::new();
        let mut ending = BTreeSet::new();
        for (number, drawn) in pods.iter().enumerate() {
            let at = |port: u16| (number, port);
            let chosen = [0, 1].iter().all(|n| {
                selector.unwrap_or_default()[*n].is_none_or(|value| drawn.labels[*n] == value)
            });
            let named = if by_name { drawn.named } else { Some(7000) };
            if let Some(port) = named
                && chosen && !wanted.is_empty() && !drawn.finished && maker != Some(true)
            {
                ready.insert(at(port));
            }
            if let (Some((is_ready, serving, terminating)), Some(_)) = (drawn.conditions, maker) {
                if is_ready != Some(false) {
                    ready.insert(at(6000));
                } else if serving == Some(true) && terminating == Some(true) {
                    ending.insert(at(6000));
                }
            }
        }
        let expected = if ready.is_empty() { ending } else { ready };
        let expected: Vec<String> = expected.iter().map(|(number, port)| {
            let pod = if pods[*number].finished { "-".to_owned() } else { format!("a/p{number}") };
            format!("10.0.0.{}:{port} {pod}", number + 1)
        }).collect();
        prop_assert_eq!(of(&manifests, "80"), expected);
    }
}
