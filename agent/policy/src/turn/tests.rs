//! Given a small cluster, when a verdict is to be turned, then the edit is the one that the order of this module
//! says, and it turns the verdict.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::needless_pass_by_value,
    reason = "tests"
)]

use serde_json::{Value, json};

use super::*;
use crate::change::apply;
use crate::testing::{compile, load, namespace, party, pod, policy};

/// The change for a flow; it has been tried.
fn turned(manifests: &[Value], from: &str, to: &str, traffic: &str) -> Change {
    let loaded = load(manifests);
    let desired = compile(&loaded.cluster);
    let answers = Answers::new(&loaded.cluster, &desired);
    let (from, to, traffic) = (party(&answers, from), party(&answers, to), traffic.parse().unwrap());
    let change = change(&answers, &from, &to, traffic, &loaded.problems);
    let before = answers.answer(&from, &to, traffic).action();
    assert_ne!(change.becomes, before);
    let after = apply(&loaded.cluster, &change);
    let desired = compile(&after);
    let action = Answers::new(&after, &desired).answer(&from, &to, traffic).action();
    assert_eq!(action == change.becomes, !change.edits.is_empty(), "{change:?}");
    change
}

fn told(change: &Change) -> Vec<(String, String, &'static str, Value)> {
    change.edits.iter().map(|edit| (edit.object(), edit.field(), edit.op(), edit.value())).collect()
}

fn pods() -> Vec<Value> {
    vec![
        namespace("a", json!({})),
        pod("a", "db", json!({"app": "db"}), "10.0.0.1"),
        pod("a", "web", json!({"app": "web", "pod-template-hash": "7f"}), "10.0.0.2"),
        pod("a", "bare", json!({}), "10.0.0.3"),
    ]
}

fn with(policies: &[Value]) -> Vec<Value> {
    pods().into_iter().chain(policies.iter().cloned()).collect()
}

fn on_db(name: &str, ingress: Value) -> Value {
    policy("a", name, json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": ingress}))
}

#[test]
fn isolation_opens_by_a_rule_with_this_peer_and_port_in_the_policy_of_the_fewest_pods() {
    let all = policy("a", "all", json!({"podSelector": {}}));
    let change = turned(&with(&[all, on_db("db", json!([]))]), "a/web", "a/db", "TCP/80");
    let rule = json!({"from": [{"podSelector": {"matchLabels": {"app": "web"}}}],
                      "ports": [{"protocol": "TCP", "port": 80}]});
    assert_eq!(told(&change), [("NetworkPolicy a/db".into(), "spec.ingress".into(), "append", rule)]);
}

#[test]
fn one_missing_label_is_smaller_than_a_rule() {
    let np = on_db("db", json!([{"from": [{"podSelector": {"matchLabels": {"role": "client"}}}]}]));
    let change = turned(&with(std::slice::from_ref(&np)), "a/web", "a/db", "TCP/80");
    let label = json!({"role": "client"});
    assert_eq!(told(&change), [("Pod a/web".into(), "metadata.labels".into(), "merge", label)]);
    // Another policy cares for the label: it would do more than was asked.
    let other = policy("a", "client", json!({"podSelector": {"matchLabels": {"role": "client"}}}));
    let change = turned(&with(&[np, other]), "a/web", "a/db", "TCP/80");
    assert_eq!(told(&change)[0].2, "append");
    // A label with another value means something to somebody.
    let np = on_db("db", json!([{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}]));
    assert_eq!(told(&turned(&with(&[np]), "a/web", "a/db", "TCP/80"))[0].2, "append");
}

#[test]
fn a_label_that_another_requirement_forbids_is_not_proposed() {
    let expressions =
        json!([{"key": "role", "operator": "Exists"}, {"key": "role", "operator": "DoesNotExist"}]);
    let np = on_db("db", json!([{"from": [{"podSelector": {"matchExpressions": expressions}}]}]));
    assert_eq!(told(&turned(&with(&[np]), "a/web", "a/db", "TCP/80"))[0].2, "append");
}

#[test]
fn a_peer_without_labels_and_one_from_outside_are_named_by_address() {
    let np = on_db("db", json!([]));
    for (from, address) in [("a/bare", "10.0.0.3/32"), ("192.0.2.1", "192.0.2.1/32")] {
        let change = turned(&with(std::slice::from_ref(&np)), from, "a/db", "TCP/80");
        assert_eq!(told(&change)[0].3["from"], json!([{"ipBlock": {"cidr": address}}]));
        assert_eq!(change.text.is_some(), from == "a/bare", "{:?}", change.text);
    }
}

#[test]
fn each_direction_that_denies_needs_its_edit_and_echo_a_rule_without_ports() {
    let deny = policy("a", "deny", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
    let change = turned(&with(&[deny]), "a/web", "a/db", "ICMP");
    let told = told(&change);
    let fields: Vec<&str> = told.iter().map(|edit| edit.1.as_str()).collect();
    assert_eq!(fields, ["spec.egress", "spec.ingress"]);
    assert!(told.iter().all(|edit| edit.3.get("ports").is_none()));
}

#[test]
fn a_policy_that_cannot_be_read_is_to_be_mended_and_says_where() {
    let np = policy("a", "typo", json!({"podSelectors": {}, "policyTypes": ["Ingress"]}));
    let change = turned(&with(&[np]), "a/web", "a/db", "TCP/80");
    let told = told(&change);
    assert_eq!((told[0].1.as_str(), told[0].2), ("spec", "replace"));
    // Unknown fields close both ways, so both ways need the policy; it is written again once.
    assert_eq!((told[1].1.as_str(), told[1].2), ("spec.ingress", "append"));
    assert!(change.edits[0].text().contains("spec.podSelectors is unknown"), "{}", change.edits[0].text());
}

#[test]
fn an_undeclared_namespace_is_to_be_declared() {
    let manifests = [pod("ghost", "x", json!({}), "10.0.9.9"), on_db("db", json!([]))];
    let change = turned(&with(&manifests), "ghost/x", "a/web", "TCP/80");
    assert_eq!(told(&change)[0].0, "Namespace ghost");
    assert_eq!(change.edits.len(), 1);
}

#[test]
fn every_rule_that_matches_has_to_go() {
    let rules = json!([{}, {"ports": [{"port": 81}]}, {"from": [{"podSelector": {}}]}]);
    let all = policy("a", "all", json!({"podSelector": {}, "ingress": [{}], "egress": [{}]}));
    let change = turned(&with(&[all, on_db("db", rules)]), "a/web", "a/db", "TCP/80");
    // Egress is the smaller change, one rule and the types that kept the direction isolated.
    assert_eq!(told(&change)[0].1, "spec.egress[0]");
    assert_eq!((told(&change)[1].1.as_str(), told(&change)[1].2), ("spec.policyTypes", "replace"));
    // Nothing isolates the sender: to isolate it would turn more than the receiver's rules do.
    let web = json!({"podSelector": {"matchLabels": {"app": "web"}}});
    let rules = json!([{"from": [web]}, {"ports": [{"port": 81}]}, {"from": [web], "ports": [{"port": 80}]}]);
    let change = turned(&with(&[on_db("db", rules)]), "a/web", "a/db", "TCP/80");
    let fields: Vec<String> = change.edits.iter().map(Edit::field).collect();
    assert_eq!(fields, ["spec.ingress[2]", "spec.ingress[0]"]);
}

#[test]
fn what_nothing_isolates_is_isolated_by_a_new_policy() {
    let taken = policy("a", "deny-to-db", json!({"podSelector": {"matchLabels": {"app": "none"}}}));
    let change = turned(&with(&[taken]), "a/web", "a/db", "TCP/80");
    let told = told(&change);
    assert_eq!((told[0].0.as_str(), told[0].2), ("NetworkPolicy a/deny-to-db-2", "create"));
    assert_eq!(told[0].3["spec"]["podSelector"], json!({"matchLabels": {"app": "db"}}));
}

#[test]
fn a_pod_always_reaches_itself_and_its_node_reaches_it() {
    let change = turned(&pods(), "a/db", "a/db", "TCP/80");
    assert!(change.text.is_some_and(|text| text.contains("itself")));
    let loaded = load(&pods());
    let desired = compile(&loaded.cluster);
    let answers = Answers::new(&loaded.cluster, &desired);
    let node = Party::OwnNode("10.9.9.9".parse().unwrap());
    let change = super::change(&answers, &node, &party(&answers, "a/db"), "TCP/80".parse().unwrap(), &[]);
    assert!(change.edits.is_empty() && change.text.is_some_and(|text| text.contains("own node")));
}

#[test]
fn an_isolated_pod_reaches_its_own_node_where_the_agent_says_so_and_nobody_else() {
    let isolated = policy("a", "all", json!({"podSelector": {}, "policyTypes": ["Egress"]}));
    let mut loaded = load(&with(&[isolated]));
    let own = ["10.9.9.9".parse().unwrap(), "fd99::9".parse().unwrap()];
    let answer = |cluster: &Cluster, to: IpAddr| {
        let desired = compile(cluster);
        let answers = Answers::new(cluster, &desired);
        let (from, to, traffic) = (party(&answers, "a/db"), Party::Address(to), "TCP/80".parse().unwrap());
        let egress = answers.answer(&from, &to, traffic).egress.unwrap();
        let change = change(&answers, &from, &to, traffic, &[]);
        (egress.action, egress.reason, change.text.unwrap_or_default())
    };
    assert!(matches!(answer(&loaded.cluster, own[0]), (Action::Deny, Reason::Isolated, _)));
    loaded.cluster.own_node = own.into();
    let (action, reason, text) = answer(&loaded.cluster, own[0]);
    assert_eq!((action, reason), (Action::Allow, Reason::OwnNode));
    assert!(text.contains("--own-node-egress"), "{text}");
    for other in ["10.9.9.8", "10.0.0.2", "192.0.2.1"] {
        assert!(matches!(
            answer(&loaded.cluster, other.parse().unwrap()),
            (Action::Deny, Reason::Isolated, _)
        ));
    }
}

#[test]
fn a_policy_that_allows_the_own_node_is_named_before_the_agent() {
    let rule = json!([{"to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}]}]);
    let policy = policy("a", "np", json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": rule}));
    let mut loaded = load(&with(&[policy]));
    loaded.cluster.own_node = ["10.9.9.9".parse().unwrap(), "192.168.0.1".parse().unwrap()].into();
    let desired = compile(&loaded.cluster);
    let answers = Answers::new(&loaded.cluster, &desired);
    let reason = |to: &str| {
        let (from, to) = (party(&answers, "a/db"), Party::Address(to.parse().unwrap()));
        answers.answer(&from, &to, "TCP/80".parse().unwrap()).egress.unwrap().reason
    };
    assert_eq!((reason("10.9.9.9"), reason("192.168.0.1")), (Reason::Rule, Reason::OwnNode));
    assert_eq!(reason("192.168.0.2"), Reason::Isolated);
}
