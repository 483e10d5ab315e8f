//! Ports: numbers, ranges, names, protocols and ICMP echo.

use portcullis_oracle::{Traffic, Verdict, World};
use serde_json::{Value, json};

use crate::builders::{
    Cluster, OUTSIDE, WEB, cluster, egress, ingress, isolated, on_port, pod, reaches, rule, set,
};

/// Whether the outside is let into x/a.
fn lets_in(cluster: &Cluster, traffic: Traffic) -> bool {
    ingress(&cluster.world(), "x/a", OUTSIDE, traffic).verdict() == Verdict::Allow
}

fn allowed_of(port: Value, asked: &[Traffic]) -> Vec<Traffic> {
    let cluster = cluster().policy("np", on_port(port));
    asked.iter().copied().filter(|traffic| lets_in(&cluster, *traffic)).collect()
}

/// A world where x may send only as the port says, to anyone.
fn egress_on(port: Value) -> World {
    cluster()
        .policy("np", json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [port]}]}))
        .world()
}

#[test]
fn s21_no_ports_mean_everything() {
    for rule in [json!({}), json!({"ports": null}), json!({"ports": []})] {
        let cluster = cluster().policy("np", json!({"podSelector": {}, "ingress": [rule]}));
        for traffic in [Traffic::tcp(1), Traffic::udp(65535), Traffic::sctp(80), Traffic::IcmpEcho] {
            assert!(lets_in(&cluster, traffic), "{rule} {traffic}");
        }
    }
}

#[test]
fn s21_defaults_of_an_entry() {
    let asked = [Traffic::tcp(80), Traffic::tcp(81), Traffic::udp(80), Traffic::sctp(80)];
    assert_eq!(allowed_of(json!({"port": 80}), &asked), [Traffic::tcp(80)]);
    assert_eq!(allowed_of(json!({"port": 80, "protocol": null}), &asked), [Traffic::tcp(80)]);
    assert_eq!(allowed_of(json!({}), &asked), [Traffic::tcp(80), Traffic::tcp(81)]);
    assert_eq!(allowed_of(json!({"protocol": "UDP"}), &asked), [Traffic::udp(80)]);
    assert_eq!(allowed_of(json!({"protocol": "SCTP", "port": null}), &asked), [Traffic::sctp(80)]);
}

#[test]
fn s22_peer_and_port_of_one_rule_never_of_two() {
    let spec = json!({"podSelector": {"matchLabels": {"app": "a"}}, "ingress": [
        {"from": [{"podSelector": {}}], "ports": [{"port": 80}, {"protocol": "UDP", "port": 53}]},
        {"from": [{"namespaceSelector": {"matchLabels": {"team": "y"}}}], "ports": [{"port": 81}]},
    ]});
    let world = cluster().policy("np", spec).world();
    assert!(reaches(&world, "x/b", "x/a", Traffic::tcp(80)));
    assert!(reaches(&world, "x/b", "x/a", Traffic::udp(53)));
    assert!(!reaches(&world, "x/b", "x/a", Traffic::tcp(81)));
    assert!(reaches(&world, "y/b", "x/a", Traffic::tcp(81)));
    assert!(!reaches(&world, "y/b", "x/a", Traffic::tcp(80)));
}

#[test]
fn s24_end_port_is_inclusive() {
    let asked = [
        Traffic::tcp(79),
        Traffic::tcp(80),
        Traffic::tcp(85),
        Traffic::tcp(90),
        Traffic::tcp(91),
        Traffic::udp(85),
    ];
    let range = allowed_of(json!({"port": 80, "endPort": 90}), &asked);
    assert_eq!(range, [Traffic::tcp(80), Traffic::tcp(85), Traffic::tcp(90)]);
    assert_eq!(allowed_of(json!({"port": 80, "endPort": 80}), &asked), [Traffic::tcp(80)]);
    assert_eq!(allowed_of(json!({"port": 1, "endPort": 65535}), &asked).len(), 5);
    assert_eq!(allowed_of(json!({"port": 80, "endPort": null}), &asked), [Traffic::tcp(80)]);
}

#[test]
fn s24_invalid_entries_match_nothing_never_everything() {
    let entries = [
        json!({"port": 90, "endPort": 80}),
        json!({"endPort": 80}),
        json!({"port": "web", "endPort": 80}),
        json!({"port": 80, "endPort": 65536}),
        json!({"port": 80, "endPort": "90"}),
        json!({"port": 0}),
        json!({"port": 65536}),
        json!({"port": -80}),
        json!({"port": 80.0}),
        json!({"port": "80"}),
        json!({"port": ""}),
        json!({"port": true}),
        json!({"protocol": "tcp", "port": 80}),
        json!({"protocol": "ICMP"}),
        json!({"protocol": ""}),
        json!({"protocol": 6, "port": 80}),
        Value::Null,
        json!(80),
        json!("TCP/80"),
    ];
    let asked = [Traffic::tcp(80), Traffic::tcp(443), Traffic::udp(80), Traffic::IcmpEcho];
    for entry in entries {
        assert_eq!(allowed_of(entry.clone(), &asked), [], "{entry}");
        // And a valid one beside it still matches
        let both = cluster()
            .policy("np", json!({"podSelector": {}, "ingress": [{"ports": [entry, {"port": 443}]}]}));
        assert!(lets_in(&both, Traffic::tcp(443)), "{entry}");
        assert!(!lets_in(&both, Traffic::tcp(80)), "{entry}");
    }
}

#[test]
fn s23_s25_a_named_port_is_each_destinations_own() {
    // Given egress to "web", which is 80 in namespace x and 8080 in namespace y
    let world = egress_on(json!({"port": "web"}));
    assert!(reaches(&world, "x/a", "x/b", Traffic::tcp(80)));
    assert!(!reaches(&world, "x/a", "x/b", Traffic::tcp(8080)));
    assert!(reaches(&world, "x/a", "y/b", Traffic::tcp(8080)));
    assert!(!reaches(&world, "x/a", "y/b", Traffic::tcp(80)));
    // And ingress on "web" means the subject's
    let world = cluster().policy("np", on_port(json!({"port": "web"}))).world();
    assert!(reaches(&world, "y/b", "x/a", Traffic::tcp(80)));
    assert!(!reaches(&world, "y/b", "x/a", Traffic::tcp(8080)));
}

#[test]
fn s25_the_key_is_name_and_protocol() {
    // Given a pod whose "dns" is UDP only, and whose "web" differs by protocol
    let ports = json!([
        {"name": "dns", "containerPort": 53, "protocol": "UDP"},
        {"name": "web", "containerPort": 80},
        {"name": "web", "containerPort": 443, "protocol": "UDP"},
    ]);
    let subject =
        set(pod("x", "a", &["10.0.0.1"], json!({"app": "a"})), "/spec/containers", json!([{"ports": ports}]));
    let asked =
        |port: Value, traffic| lets_in(&cluster().with(subject.clone()).policy("np", on_port(port)), traffic);
    assert!(!asked(json!({"port": "dns"}), Traffic::tcp(53)));
    assert!(!asked(json!({"port": "dns"}), Traffic::udp(53)));
    assert!(asked(json!({"port": "dns", "protocol": "UDP"}), Traffic::udp(53)));
    assert!(asked(json!({"port": "web"}), Traffic::tcp(80)));
    assert!(asked(json!({"port": "web", "protocol": "UDP"}), Traffic::udp(443)));
    assert!(!asked(json!({"port": "web", "protocol": "UDP"}), Traffic::udp(80)));
    assert!(!asked(json!({"port": "unknown"}), Traffic::tcp(80)));
}

#[test]
fn s25_sidecars_count_after_containers_and_the_first_declaration_wins() {
    let subject = set(
        set(
            pod("x", "a", &["10.0.0.1"], json!({"app": "a"})),
            "/spec/initContainers",
            json!([
                {"name": "setup", "ports": [{"name": "setup", "containerPort": 1000}]},
                {"name": "once", "restartPolicy": "Never", "ports": [{"name": "setup", "containerPort": 1000}]},
                {"name": "proxy", "restartPolicy": "Always", "ports": [
                    {"name": "proxy", "containerPort": 1001}, {"name": "web", "containerPort": 1002},
                ]},
            ]),
        ),
        "/spec/containers",
        json!([
            {"name": "one", "ports": [{"name": "web", "containerPort": 0}, {"name": "web", "containerPort": 80}]},
            {"name": "two", "ports": [{"name": "web", "containerPort": 81}]},
        ]),
    );
    let asked = |name: &str, port| {
        lets_in(
            &cluster().with(subject.clone()).policy("np", on_port(json!({"port": name}))),
            Traffic::tcp(port),
        )
    };
    assert!(asked("web", 80));
    assert!(!asked("web", 81) && !asked("web", 1002), "a later duplicate");
    assert!(asked("proxy", 1001));
    assert!(!asked("setup", 1000), "an init container that ends");
}

#[test]
fn a_name_that_is_no_port_name_matches_nothing_even_if_a_pod_declares_it() {
    for name in ["Web", "no--name", "-web", "web-", "a-name-far-too-long", "we_b", "80"] {
        let subject = set(
            pod("x", "a", &["10.0.0.1"], json!({"app": "a"})),
            "/spec/containers",
            json!([{"ports": [{"name": name, "containerPort": 80}]}]),
        );
        let cluster = cluster().with(subject).policy("np", on_port(json!({"port": name})));
        assert!(!lets_in(&cluster, WEB), "{name}");
    }
}

#[test]
fn s26_an_egress_named_port_without_to_matches_declaring_pods_only() {
    let world = egress_on(json!({"port": "web"}));
    assert_eq!(egress(&world, "x/a", "10.0.0.2", WEB), rule("np", 0));
    for outside in [OUTSIDE, "10.0.0.99", "172.18.0.2"] {
        assert_eq!(egress(&world, "x/a", outside, WEB), isolated(&["np"]));
    }
    // Not even where the peer is an ipBlock
    let spec = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
        {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": "web"}]},
    ]});
    let world = cluster().policy("np", spec).world();
    assert_eq!(egress(&world, "x/a", OUTSIDE, WEB), isolated(&["np"]));
    assert_eq!(egress(&world, "x/a", "10.0.0.2", WEB), rule("np", 0));
}

#[test]
fn icmp_echo_follows_the_rules_that_name_no_ports() {
    let from_pods = json!({"from": [{"podSelector": {}}]});
    let all_tcp = json!({"ports": [{"protocol": "TCP"}, {"protocol": "UDP"}, {"protocol": "SCTP"}]});
    let world = cluster().policy("np", json!({"podSelector": {}, "ingress": [all_tcp, from_pods]})).world();
    assert_eq!(ingress(&world, "x/a", "10.0.0.2", Traffic::IcmpEcho), rule("np", 1));
    assert_eq!(ingress(&world, "x/a", OUTSIDE, Traffic::IcmpEcho), isolated(&["np"]));
}
