//! Given a directory, when a flow is explained, then its lines and its JSON name the rules and the change.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use serde_json::{Value, json};

use super::super::explain;
use crate::output::Colour;
use crate::scratch::Scratch;
use crate::verbs::ask::ExplainRequest;
use crate::verbs::offline::offline;

const MANIFESTS: &str = r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: a}}
- {apiVersion: v1, kind: Pod, metadata: {name: db, namespace: a, labels: {app: db}}, status: {podIP: 10.0.0.1}}
- {apiVersion: v1, kind: Pod, metadata: {name: web, namespace: a, labels: {app: web}}, status: {podIP: 10.0.0.2}}
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: np, namespace: a}
  spec:
    podSelector: {matchLabels: {app: db}}
    ingress:
    - from: [{podSelector: {matchLabels: {app: "api\u001b[31m"}}}]
    - ports: [{port: 80}]
    - {}
"#;

fn explained(traffic: &str) -> (String, Value) {
    let dir = Scratch::new();
    dir.write("all.yaml", MANIFESTS);
    let world = offline(dir.path(), None, &[]).unwrap();
    let request = ExplainRequest {
        from: "a/web".to_owned(),
        to: "a/db".to_owned(),
        sent: Some(traffic.parse().unwrap()),
        family: None,
        namespace: None,
    };
    let result = explain(&world, None, &request).unwrap().result;
    (result.table("a/web", Colour::Plain), serde_json::to_value(&result).unwrap())
}

#[test]
fn every_other_rule_has_a_line_and_the_change_comes_last() {
    let (text, _) = explained("TCP/81");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "ALLOW a/web (10.0.0.2) -> a/db (10.0.0.1) TCP/81");
    assert_eq!(lines[2], "  ingress  allow  rule  by NetworkPolicy a/np spec.ingress[2]");
    assert_eq!(
        lines[3],
        "           NetworkPolicy a/np spec.ingress[0]  peer: wants pods with app=api\\u{1b}[31m, and this one has \
         app=web"
    );
    assert_eq!(lines[4], "           NetworkPolicy a/np spec.ingress[1]  port: names TCP/80, and not TCP/81");
    assert_eq!(lines[6], "  to deny");
    assert_eq!(lines[7], "           take spec.ingress[2] out of NetworkPolicy a/np, or narrow it");
    assert_eq!(lines.len(), 8);
}

#[test]
fn a_rule_that_matches_too_is_said_to_come_later() {
    let (text, value) = explained("TCP/80");
    assert!(text.contains("spec.ingress[2]  matches too, and comes later"), "{text}");
    let rules = value["ingress"]["rules"].as_array().unwrap();
    let matched: Vec<bool> = rules.iter().map(|rule| rule["matched"].as_bool().unwrap()).collect();
    assert_eq!(matched, [false, true, true]);
    assert_eq!(rules[0]["why"]["kind"], "peer");
    assert_eq!(rules[0]["policy"], json!({"kind": "NetworkPolicy", "namespace": "a", "name": "np"}));
    assert_eq!(rules[1]["why"], Value::Null);
    let fields: Vec<&Value> =
        value["change"]["edits"].as_array().unwrap().iter().map(|e| &e["field"]).collect();
    assert_eq!(fields, ["spec.ingress[2]", "spec.ingress[1]"]);
    assert_eq!(value["change"]["verdict"], "deny");
}
