//! Pods, namespaces, nodes and Services: who is in the tables, and whose an address is.

use portcullis_oracle::{Direction, Family, Reason, Traffic, World};
use serde_json::{Value, json};

use crate::builders::{
    Cluster, OUTSIDE, WEB, cluster, egress, from_peer, ingress, isolated, let_in, namespace, pod, policy,
    reaches, rule, set, who_reaches_a,
};

fn closed(kind: &str) -> Value {
    json!({"podSelector": {}, "policyTypes": [kind]})
}

fn service(spec: Value, status: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "x", "name": "svc"},
        "spec": spec, "status": status,
    })
}

#[test]
fn s30_node_addresses_are_policed_like_any_other() {
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"},
        "status": {"addresses": [{"type": "InternalIP", "address": "172.18.0.2"}]},
    });
    let open = cluster().with(node);
    let world = open.clone().policy("np", closed("Ingress")).world();
    assert_eq!(ingress(&world, "x/a", "172.18.0.2", WEB), isolated(&["np"]));
    let world = open.policy("np", from_peer(json!({"ipBlock": {"cidr": "172.18.0.0/16"}}))).world();
    assert_eq!(ingress(&world, "x/a", "172.18.0.2", WEB), rule("np", 0));
}

#[test]
fn s31_a_pod_without_an_address_is_isolated_already() {
    let cluster = cluster().with(pod("x", "new", &[], json!({}))).policy("np", closed("Ingress"));
    let world = cluster.world();
    assert!(!world.order(Family::Ipv4).contains(&"x/new".to_owned()));
    assert!(world.subjects().contains(&"x/new".to_owned()));
    assert_eq!(ingress(&world, "x/new", OUTSIDE, WEB), isolated(&["np"]));
}

#[test]
fn s32_finished_pods_are_out_of_every_table() {
    for (phase, live) in [
        (json!("Succeeded"), false),
        (json!("Failed"), false),
        (json!("Running"), true),
        (json!("Pending"), true),
        (Value::Null, true),
    ] {
        // Given x/b in that phase, still with its address
        let b = set(pod("x", "b", &["10.0.0.2"], json!({"app": "b"})), "/status/phase", phase.clone());
        let world = cluster().with(b).policy("np", from_peer(json!({"podSelector": {}}))).world();
        // Then it is subject, peer and in the matrix only if it is live
        assert_eq!(world.order(Family::Ipv4).contains(&"x/b".to_owned()), live, "{phase}");
        assert_eq!(ingress(&world, "x/a", "10.0.0.2", WEB) == rule("np", 0), live, "{phase}");
        assert_eq!(
            world.judge("x/b", Direction::Ingress, "10.0.0.1".parse().unwrap(), WEB).is_some(),
            live,
            "{phase}"
        );
    }
}

#[test]
fn s32_every_address_of_the_status_counts() {
    let spec = from_peer(json!({"podSelector": {"matchLabels": {"app": "b"}}}));
    let cluster = cluster().policy("np", spec);
    assert_eq!(let_in(&cluster, &["10.0.0.2", "fd00::2"]).len(), 2);
    // podIP counts where podIPs is absent, null or empty, and only there
    let mut b = pod("x", "b", &[], json!({"app": "b"}));
    for pod_ips in [None, Some(Value::Null), Some(json!([]))] {
        b["status"] = json!({"podIP": "10.0.0.7"});
        if let Some(pod_ips) = pod_ips {
            b["status"]["podIPs"] = pod_ips;
        }
        assert_eq!(let_in(&cluster.clone().with(b.clone()), &["10.0.0.2", "10.0.0.7"]), ["10.0.0.7"]);
    }
    b["status"] = json!({"podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.2"}, {"ip": "nonsense"}, {}]});
    assert_eq!(let_in(&cluster.with(b), &["10.0.0.2", "10.0.0.7"]), ["10.0.0.2"]);
}

#[test]
fn s33_terminating_pods_and_namespaces_stay_as_they_are() {
    let deleted = json!("2024-05-02T00:00:00Z");
    let b = set(
        pod("x", "b", &["10.0.0.2"], json!({"app": "b"})),
        "/metadata/deletionTimestamp",
        deleted.clone(),
    );
    let x = set(namespace("x", json!({"team": "x"})), "/metadata/deletionTimestamp", deleted);
    let cluster = cluster()
        .with(b)
        .with(x)
        .policy("np", json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}));
    assert_eq!(who_reaches_a(&cluster), ["x/b"]);
    assert_eq!(ingress(&cluster.world(), "x/b", OUTSIDE, WEB), isolated(&["np"]));
}

#[test]
fn s34_a_pod_of_an_undeclared_namespace_is_listed_and_isolated_both_ways() {
    for name in ["z", "default"] {
        let lost = format!("{name}/lost");
        let cluster = cluster().with(pod(name, "lost", &["10.0.2.1"], json!({"app": "b"})));
        let world = cluster.world();
        assert!(world.order(Family::Ipv4).contains(&lost));
        assert_eq!(ingress(&world, &lost, "10.0.0.1", WEB), Reason::UndeclaredNamespace);
        assert_eq!(egress(&world, &lost, OUTSIDE, WEB), Reason::UndeclaredNamespace);
        assert!(!reaches(&world, "x/a", &lost, WEB) && !reaches(&world, &lost, "x/a", WEB));
        // It is not judged with empty labels as a peer; a policy of its own does not free it
        let all = from_peer(
            json!({"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}}),
        );
        let own = policy(name, "allow", json!({"podSelector": {}, "ingress": [{}], "egress": [{}]}));
        let world = cluster.clone().policy("np", all).with(own).world();
        assert_eq!(ingress(&world, "x/a", "10.0.2.1", WEB), isolated(&["np"]));
        assert_eq!(ingress(&world, &lost, "10.0.0.1", WEB), Reason::UndeclaredNamespace);
        // And declaring the namespace does
        let world = cluster.with(namespace(name, json!({}))).world();
        assert!(reaches(&world, "x/a", &lost, WEB));
    }
}

fn showing(name: &str, uid: &str, started: Option<&str>) -> Value {
    let pod = set(pod("x", name, &["10.0.3.1"], json!({"app": name})), "/metadata/uid", json!(uid));
    set(pod, "/status/startTime", json!(started))
}

#[test]
fn s50_the_later_start_owns_a_shared_address_then_the_greater_uid() {
    let early = Some("2024-05-01T10:00:00Z");
    let cases = [
        // Later by a second; by zone, though its text is greater; absent is oldest; the year counts
        (("old", "9", early), ("new", "1", Some("2024-05-01T10:00:01Z"))),
        (("old", "9", Some("2024-05-01T11:00:00+02:00")), ("new", "1", early)),
        (("old", "9", None), ("new", "1", Some("1999-12-31T23:59:59.5Z"))),
        (("old", "9", Some("2023-12-31T23:59:59Z")), ("new", "1", Some("2024-01-01T00:00:00Z"))),
        (("old", "9", Some("2024-02-29T23:59:59Z")), ("new", "1", Some("2024-03-01T00:00:00Z"))),
        // The same moment: the greater UID
        (("old", "1", early), ("new", "2", Some("2024-05-01T12:00:00+02:00"))),
        (("old", "1", None), ("new", "2", None)),
    ];
    for (old, new) in cases {
        for order in [[old, new], [new, old]] {
            let [first, second] = order.map(|(name, uid, started)| showing(name, uid, started));
            let world = cluster().with(first).with(second).world();
            assert_eq!(world.owner("10.0.3.1".parse().unwrap()), Some("x/new".to_owned()), "{old:?} {new:?}");
            // The address is not the other's: it has none, and is not in the matrix
            assert_eq!(world.address("x/old", Family::Ipv4), None);
            assert!(!world.order(Family::Ipv4).contains(&"x/old".to_owned()));
        }
    }
}

#[test]
fn s50_only_the_owner_is_the_peer() {
    let old = showing("old", "9", Some("2024-05-01T10:00:00Z"));
    let new = showing("new", "1", Some("2024-05-01T10:00:01Z"));
    let two = cluster()
        .with(old.clone())
        .with(new.clone())
        .policy("np", from_peer(json!({"podSelector": {"matchLabels": {"app": "old"}}})));
    assert_eq!(ingress(&two.world(), "x/a", "10.0.3.1", WEB), isolated(&["np"]));
    // A finished or hostNetwork pod owns nothing
    for (field, value) in [("/status/phase", json!("Failed")), ("/spec/hostNetwork", json!(true))] {
        let world = two.clone().with(set(new.clone(), field, value)).world();
        assert_eq!(ingress(&world, "x/a", "10.0.3.1", WEB), rule("np", 0));
    }
}

#[test]
fn host_network_pods_are_neither_subjects_nor_peers() {
    let host = set(pod("x", "host", &["172.18.0.2"], json!({"app": "b"})), "/spec/hostNetwork", json!(true));
    let cluster = cluster().with(host);
    let world = cluster.clone().policy("np", from_peer(json!({"podSelector": {}}))).world();
    assert!(!world.order(Family::Ipv4).contains(&"x/host".to_owned()));
    assert!(world.judge("x/host", Direction::Egress, OUTSIDE.parse().unwrap(), WEB).is_none());
    assert_eq!(ingress(&world, "x/a", "172.18.0.2", WEB), isolated(&["np"]));
    // By address it can be allowed, and it declares no named port
    let spec = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
        {"ports": [{"port": "web"}]}, {"to": [{"ipBlock": {"cidr": "172.18.0.2/32"}}], "ports": [{"port": 81}]},
    ]});
    let world: World = cluster.policy("np", spec).world();
    assert_eq!(egress(&world, "x/a", "172.18.0.2", WEB), isolated(&["np"]));
    assert_eq!(egress(&world, "x/a", "172.18.0.2", Traffic::tcp(81)), rule("np", 1));
}

#[test]
fn an_isolated_egress_to_a_virtual_address_is_denied_whatever_rules_say() {
    let allow_all = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]});
    let services = [
        (json!({"clusterIP": "10.96.0.1"}), json!({})),
        (json!({"clusterIP": "10.96.9.9", "clusterIPs": ["10.96.9.9", "10.96.0.1"]}), json!({})),
        (json!({"clusterIP": "None", "externalIPs": ["10.96.0.1"]}), json!({})),
        (
            json!({"clusterIP": ""}),
            json!({"loadBalancer": {"ingress": [{"hostname": "lb"}, {"ip": "10.96.0.1"}]}}),
        ),
    ];
    for (spec, status) in services {
        let cluster = cluster().with(service(spec.clone(), status));
        let isolated_world = cluster.clone().policy("np", allow_all.clone()).world();
        assert_eq!(egress(&isolated_world, "x/a", "10.96.0.1", WEB), Reason::ServiceUnresolved, "{spec}");
        assert_eq!(egress(&isolated_world, "x/a", "10.96.0.2", WEB), rule("np", 0), "{spec}");
        // Not isolated: allowed; as a source it is an address as any other
        assert_eq!(egress(&cluster.world(), "x/a", "10.96.0.1", WEB), Reason::NotIsolated, "{spec}");
        let ingress_world =
            cluster.policy("np", from_peer(json!({"ipBlock": {"cidr": "10.96.0.0/16"}}))).world();
        assert_eq!(ingress(&ingress_world, "x/a", "10.96.0.1", WEB), rule("np", 0), "{spec}");
    }
    // A live pod's own address is the pod's
    let world =
        cluster().with(service(json!({"clusterIP": "10.0.1.1"}), json!({}))).policy("np", allow_all).world();
    assert_eq!(egress(&world, "x/a", "10.0.1.1", WEB), rule("np", 0));
}

#[test]
fn the_later_of_two_manifests_wins_and_no_namespace_is_default() {
    let first = cluster().policy("np", closed("Ingress"));
    assert_eq!(who_reaches_a(&first), [""; 0]);
    assert_eq!(who_reaches_a(&first.policy("np", closed("Egress"))), ["y/a", "y/b"]);

    let mut unplaced = pod("x", "p", &["10.0.4.1"], json!({}));
    unplaced["metadata"].as_object_mut().unwrap().remove("namespace");
    let cluster = cluster().with(unplaced).with(namespace("default", json!({})));
    assert_eq!(cluster.world().order(Family::Ipv4).first().unwrap(), "default/p");
}

#[test]
fn order_is_bytewise_by_namespace_then_name() {
    let mut cluster: Cluster = cluster();
    for (number, (space, name)) in [("x-1", "a"), ("x", "a-1"), ("x", "a1"), ("X", "z")].iter().enumerate() {
        cluster = cluster.with(pod(space, name, &[&format!("10.0.5.{number}")], json!({})));
    }
    let expected = ["X/z", "x/a", "x/a-1", "x/a1", "x/b", "x-1/a", "y/a", "y/b"];
    assert_eq!(cluster.world().order(Family::Ipv4), expected);
    assert_eq!(cluster.world().order(Family::Ipv6), ["x/a", "x/b", "y/a", "y/b"]);
}
