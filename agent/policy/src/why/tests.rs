//! Given one policy on `a/db`, when a flow to it is looked at, then each rule says what it misses.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::needless_pass_by_value,
    reason = "tests"
)]

use portcullis_common::event::Direction;
use serde_json::{Value, json};

use super::*;
use crate::answer::Answers;
use crate::testing::{compile, load, namespace, party, pod, policy};

/// What the rules of an ingress policy on `a/db` say to `from`.
fn said(rules: Value, from: &str, traffic: &str) -> Vec<Option<WhyNot>> {
    let cluster = load(&[
        namespace("a", json!({"team": "one"})),
        namespace("b", json!({"team": "two"})),
        pod("a", "db", json!({"app": "db"}), "10.0.0.1"),
        pod("a", "web", json!({"app": "web"}), "10.0.0.2"),
        pod("b", "other", json!({}), "10.0.1.3"),
        policy("a", "np", json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": rules})),
    ])
    .cluster;
    let desired = compile(&cluster);
    let answers = Answers::new(&cluster, &desired);
    let subject = ObjectKey::new("a", "db");
    let sight = Sight {
        cluster: &cluster,
        directory: answers.directory(),
        subject: &subject,
        direction: Direction::Ingress,
        remote: party(&answers, from).address(),
        traffic: traffic.parse().unwrap(),
    };
    sight.findings().into_iter().map(|finding| finding.why).collect()
}

fn only(rule: Value, from: &str, traffic: &str) -> WhyNot {
    let mut said = said(json!([rule]), from, traffic);
    assert_eq!(said.len(), 1);
    said.remove(0).expect("the rule does not match")
}

#[test]
fn a_label_that_differs_is_named_with_what_is_there() {
    let rule = json!({"from": [{"podSelector": {"matchLabels": {"app": "api"}}}]});
    let why = only(rule, "a/web", "TCP/80");
    assert_eq!(why.kind, Kind::Peer);
    assert_eq!(why.text, "wants pods with app=api, and this one has app=web");
    let has = Some("app=web".to_owned());
    assert_eq!(why.misses, [Miss { of: Compared::Pod, wants: "app=api".to_owned(), has }]);
}

#[test]
fn every_expression_that_fails_is_written_as_a_selector_is() {
    let expressions = json!([
        {"key": "app", "operator": "NotIn", "values": ["web"]},
        {"key": "tier", "operator": "In", "values": ["back", "front"]},
        {"key": "zone", "operator": "Exists"},
        {"key": "gone", "operator": "DoesNotExist"},
    ]);
    let why = only(json!({"from": [{"podSelector": {"matchExpressions": expressions}}]}), "a/web", "TCP/80");
    assert_eq!(why.misses.len(), 1);
    assert_eq!(why.misses[0].wants, "app!=web, tier in (back, front), zone");
    assert_eq!(why.misses[0].has.as_deref(), Some("app=web"));
}

#[test]
fn another_namespace_is_told_by_name_or_by_label() {
    let why = only(json!({"from": [{"podSelector": {}}]}), "b/other", "TCP/80");
    assert_eq!(why.text, "wants namespace a, and the pod is of namespace b");
    let why =
        only(json!({"from": [{"namespaceSelector": {"matchLabels": {"team": "one"}}}]}), "b/other", "TCP/80");
    assert_eq!(why.text, "wants a namespace with team=one, and the pod is of one with team=two");
    assert_eq!(why.misses[0].of, Compared::Namespace);
}

#[test]
fn a_range_is_told_with_the_except_that_takes_the_address_away() {
    let block = json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/16", "except": ["10.0.1.0/24"]}}]});
    let why = only(block.clone(), "b/other", "TCP/80");
    assert_eq!(why.text, "wants 10.0.0.0/16, and the address is in its except 10.0.1.0/24");
    assert_eq!(
        only(block, "192.0.2.1", "TCP/80").text,
        "wants 10.0.0.0/16, and the address is outside of it"
    );
    let why = only(json!({"from": [{"podSelector": {}}]}), "192.0.2.1", "TCP/80");
    assert_eq!(why.text, "wants a pod, and the other end is no pod");
}

#[test]
fn ports_and_protocols_are_told_apart_and_named_ports_resolved() {
    let ports = |ports: Value| json!({"ports": ports});
    let why =
        only(ports(json!([{"port": 80, "endPort": 90}, {"protocol": "UDP", "port": 53}])), "a/web", "TCP/99");
    assert_eq!((why.kind, why.ports), (Kind::Port, vec!["TCP/80-90".to_owned(), "UDP/53".to_owned()]));
    let why = only(ports(json!([{"port": "web"}, {"port": "metrics"}])), "a/web", "TCP/80");
    assert_eq!(why.text, "names TCP/web (8080 there), TCP/metrics (not declared there), and not TCP/80");
    assert_eq!(only(ports(json!([{"protocol": "UDP"}])), "a/web", "TCP/80").kind, Kind::Protocol);
    let why = only(ports(json!([{}])), "a/web", "ICMP");
    assert_eq!(
        (why.kind, why.text.as_str()),
        (Kind::Protocol, "names TCP/*, and a rule with ports covers no ICMP")
    );
}

#[test]
fn a_rule_that_misses_peer_and_port_tells_of_both() {
    let rule = json!({"from": [{"podSelector": {"matchLabels": {"app": "api"}}}], "ports": [{"port": 81}]});
    let why = only(rule, "a/web", "TCP/80");
    assert_eq!(why.kind, Kind::Peer);
    assert!(why.text.ends_with("; names TCP/81, and not TCP/80"), "{}", why.text);
    assert_eq!(why.ports, ["TCP/81"]);
}

#[test]
fn what_could_not_be_read_is_invalid_and_the_others_are_still_asked() {
    let rules = json!([{"form": []}, {"from": [{"podSelector": {}}]}, {}, {"ports": [{"port": 0}]}]);
    let said = said(rules, "a/web", "TCP/80");
    let kinds: Vec<Option<Kind>> = said.iter().map(|why| why.as_ref().map(|why| why.kind)).collect();
    assert_eq!(kinds, [Some(Kind::Invalid), None, None, Some(Kind::Invalid)]);
}
