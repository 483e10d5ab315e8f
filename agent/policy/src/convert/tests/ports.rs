//! Ports: S21, S24, S25.

use serde_json::json;

use super::{assert_error, assert_fine, ports_of};
use crate::model::{PortMatch, PortSpec, Ports, Protocol};

fn only(protocol: Protocol, port: PortSpec) -> Ports {
    Ports::Only(vec![PortMatch { protocol, port }])
}

#[test]
fn s21_absent_and_empty_ports_mean_every_port() {
    for ports in [json!(null), json!([])] {
        let (ports, problems) = ports_of(ports);
        assert_eq!(ports, Ports::Any);
        assert_fine(&problems);
    }
}

#[test]
fn s21_an_entry_defaults_to_tcp_and_to_every_port() {
    let entries = [
        (json!({}), Protocol::Tcp, PortSpec::All),
        (json!({"protocol": null, "port": null, "endPort": null}), Protocol::Tcp, PortSpec::All),
        (json!({"protocol": "UDP"}), Protocol::Udp, PortSpec::All),
        (json!({"port": 1}), Protocol::Tcp, PortSpec::Range(1, 1)),
        (json!({"protocol": "SCTP", "port": 65535}), Protocol::Sctp, PortSpec::Range(65535, 65535)),
    ];
    for (entry, protocol, port) in entries {
        let (ports, problems) = ports_of(json!([entry]));
        assert_eq!(ports, only(protocol, port), "{entry}");
        assert_fine(&problems);
    }
}

#[test]
fn s24_end_port_is_inclusive_and_may_equal_port() {
    for (first, last) in [(80, 80), (1, 65535), (80, 81)] {
        let (ports, problems) = ports_of(json!([{"port": first, "endPort": last}]));
        assert_eq!(ports, only(Protocol::Tcp, PortSpec::Range(first, last)));
        assert_fine(&problems);
    }
}

#[test]
fn s24_an_invalid_entry_matches_nothing_and_never_all_ports() {
    let entries = [
        (json!({"port": 80, "endPort": 79}), "endPort"),
        (json!({"port": "web", "endPort": 90}), "endPort"),
        (json!({"endPort": 90}), "endPort"),
        (json!({"port": 80, "endPort": 65536}), "endPort"),
        (json!({"port": 80, "endPort": "90"}), "endPort"),
        (json!({"port": 80, "endPort": {}}), "endPort"),
        (json!({"port": 0}), "port"),
        (json!({"port": -1}), "port"),
        (json!({"port": 65536}), "port"),
        (json!({"port": 80.0}), "port"),
        (json!({"port": 1e300}), "port"),
        (json!({"port": "80"}), "port"),
        (json!({"port": ""}), "port"),
        (json!({"port": true}), "port"),
        (json!({"port": [80]}), "port"),
        (json!({"port": 80, "protocol": "tcp"}), "protocol"),
        (json!({"port": 80, "protocol": ""}), "protocol"),
        (json!({"port": 80, "protocol": "ICMP"}), "protocol"),
        (json!({"port": 80, "protocol": 6}), "protocol"),
    ];
    for (entry, field) in entries {
        let (ports, problems) = ports_of(json!([entry]));
        assert_eq!(ports, Ports::Only(vec![]), "{entry}");
        assert_error(&problems, &format!("spec.ingress[0].ports[0].{field}"), "matches nothing");
    }
    for entry in [json!(null), json!(80), json!("web")] {
        let (ports, problems) = ports_of(json!([entry]));
        assert_eq!(ports, Ports::Only(vec![]), "{entry}");
        assert_error(&problems, "spec.ingress[0].ports[0]", "matches nothing");
    }
}

#[test]
fn s24_a_valid_entry_beside_an_invalid_one_counts() {
    let (ports, problems) = ports_of(json!([{"port": 0}, {"port": 80}]));
    assert_eq!(ports, only(Protocol::Tcp, PortSpec::Range(80, 80)));
    assert_eq!(problems.len(), 1);
}

#[test]
fn s25_port_names_follow_kubernetes() {
    for name in ["http", "a", "1a", "a-1", "abcdefghijklmno"] {
        let (ports, problems) = ports_of(json!([{"port": name}]));
        assert_eq!(ports, only(Protocol::Tcp, PortSpec::Named(name.to_owned())));
        assert_fine(&problems);
    }
    for name in ["HTTP", "1", "1-2", "-a", "a-", "a--b", "a_b", "a.b", " a", "é", "abcdefghijklmnop"] {
        let (ports, problems) = ports_of(json!([{"port": name}]));
        assert_eq!(ports, Ports::Only(vec![]), "{name}");
        assert_error(&problems, "spec.ingress[0].ports[0].port", "no port name");
    }
}

#[test]
fn ports_of_a_wrong_type_match_nothing() {
    for ports in [json!({"port": 80}), json!(80), json!("80")] {
        let (ports, problems) = ports_of(ports);
        assert_eq!(ports, Ports::Only(vec![]));
        assert_error(&problems, "spec.ingress[0].ports", "the rule matches nothing");
    }
}
