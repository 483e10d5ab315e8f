//! What cannot be understood closes: S13 for the subject, S49 for unknown fields; and what a tenant writes
//! is reported without harm.

use std::collections::BTreeSet;

use serde_json::json;

use super::{
    anything, assert_error, assert_fine, assert_problem, closed, label, policy, rule, whole_policy, written,
};
use crate::model::{DirectionSpec, Operator, Requirement, Rule, Selector, Severity, Subject};

#[test]
fn s13_an_unreadable_requirement_isolates_the_namespace_in_the_policys_directions() {
    let selector = json!({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]});
    let (p, problems) = policy(json!({"podSelector": selector, "ingress": [{}, {}]}));
    assert_eq!(p.subject, Subject::Unreadable);
    assert_eq!((p.ingress, p.egress), (closed(2), DirectionSpec::Ignored));
    assert_error(&problems, "spec.podSelector.matchExpressions[0].operator", "unknown");
    let (p, _) = policy(json!({"podSelector": selector, "policyTypes": ["Egress"], "egress": [{}]}));
    assert_eq!((p.ingress, p.egress), (DirectionSpec::Ignored, closed(1)));
    let (p, _) = policy(json!({"podSelector": selector, "policyTypes": ["Egress", "x"]}));
    assert_eq!((p.ingress, p.egress), (closed(0), closed(0)));
}

#[test]
fn s13_a_subject_of_a_wrong_type_isolates_the_namespace_both_ways() {
    for selector in [json!("x"), json!([]), json!({"matchLabels": []}), json!({"matchLabels": {"a": 1}})] {
        let (p, problems) = policy(json!({"podSelector": selector, "ingress": [{}]}));
        assert_eq!(p.subject, Subject::Unreadable, "{selector}");
        assert_eq!((p.ingress, p.egress), (closed(1), closed(0)), "{selector}");
        assert!(problems.iter().all(|p| p.severity == Severity::Error && p.message.contains("closes")));
    }
}

#[test]
fn s49_an_unknown_field_in_the_spec_isolates_both_ways_and_allows_nothing() {
    for unknown in [json!({}), json!(null), json!("x")] {
        let (p, problems) = policy(json!({"podSelector": {"matchLabels": {"a": "b"}},
            "policyTypes": ["Ingress"], "ingress": [{}], "ingres": unknown}));
        assert_eq!(p.subject, Subject::Pods(label("a", "b")), "what it selects can be read");
        assert_eq!((p.ingress, p.egress), (closed(1), closed(0)));
        assert_error(&problems, "spec.ingres", "allows nothing");
    }
}

#[test]
fn s49_an_unknown_field_in_the_subject_closes_what_its_known_fields_select() {
    let typo = json!({"matchLables": {"a": "b"}});
    let inner = json!({"matchExpressions": [{"key": "a", "operator": "Exists", "value": "x"}]});
    let exists = Requirement { key: "a".to_owned(), operator: Operator::Exists };
    for (selector, field, selects) in [
        (typo, "matchLables", BTreeSet::new()),
        (inner, "matchExpressions[0].value", BTreeSet::from([exists])),
    ] {
        let (p, problems) = policy(json!({"podSelector": selector, "ingress": [{}]}));
        assert_eq!(p.subject, Subject::Pods(Selector { requirements: selects }));
        assert_eq!((p.ingress, p.egress), (closed(1), closed(0)));
        assert_error(&problems, &format!("spec.podSelector.{field}"), "is unknown");
    }
}

#[test]
fn s49_an_unknown_field_anywhere_in_a_rule_makes_it_match_nothing() {
    let rules = [
        (json!({"port": [{"port": 80}]}), "port"),
        (json!({"form": []}), "form"),
        (json!({"to": []}), "to"),
        (json!({"from": [{"podSelector": {}, "x": null}]}), "from[0].x"),
        (
            json!({"from": [{"podSelector": {}}, {"podSelector": {"matchLabel": {}}}]}),
            "from[1].podSelector.matchLabel",
        ),
        (
            json!({"from": [{"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "x": 1}]}}]}),
            "from[0].namespaceSelector.matchExpressions[0].x",
        ),
        (json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "excpt": []}}]}), "from[0].ipBlock.excpt"),
        (json!({"ports": [{"port": 80}, {"port": 81, "endport": 90}]}), "ports[1].endport"),
    ];
    for (given, field) in rules {
        let (p, problems) = policy(json!({"ingress": [{}, given.clone(), {}]}));
        assert_eq!(p.ingress, written(vec![anything(), Rule::nothing(), anything()]), "{given}");
        assert_error(&problems, &format!("spec.ingress[1].{field}"), "the rule matches nothing");
    }
    let (p, _) = policy(json!({"egress": [{"from": []}, {"to": []}]}));
    assert_eq!(p.egress, written(vec![Rule::nothing(), anything()]));
}

#[test]
fn s49_goes_before_s13_and_s24() {
    let (given, problems) =
        rule(json!({"x": 1, "from": [{"podSelector": {"matchLabels": 1}}], "ports": [{"port": 0}]}));
    assert_eq!(given, Rule::nothing());
    assert_eq!(problems.len(), 1, "{problems:#?}");
}

#[test]
fn s49_outside_the_spec_an_unknown_field_is_a_warning() {
    let (p, problems) = whole_policy(&json!({"kind": "NetworkPolicy", "specs": {}, "status": {},
        "metadata": {"name": "p", "namspace": "x", "labels": {"any": "thing"}}, "spec": {"ingress": [{}]}}));
    assert_eq!(p.ingress, written(vec![anything()]));
    assert_problem(&problems, Severity::Warning, "specs", "no effect");
    assert_problem(&problems, Severity::Warning, "metadata.namspace", "no effect");
    assert_eq!(problems.len(), 2);
}

#[test]
fn t22_what_a_tenant_writes_cannot_reach_the_terminal_or_fill_memory() {
    let evil = "\u{1b}[31m\u{202e}".repeat(100);
    let ports: Vec<_> = (0..1_000).map(|_| json!({"port": evil})).collect();
    let (_, problems) = policy(json!({"ingress": [{"ports": ports}]}));
    assert_eq!(problems.len(), 201);
    let (_, in_field) = policy(json!({(evil): 1}));
    for problem in problems.iter().chain(&in_field) {
        let shown = problem.to_string();
        assert!(!shown.contains(['\u{1b}', '\u{202e}']) && shown.len() < 2_000, "{shown:?}");
    }
    assert_problem(&problems, Severity::Warning, "", "more problems");
}

#[test]
fn a_problem_names_object_field_and_place() {
    let (_, problems) = policy(json!({"ingress": [{"ports": [{"port": 80, "endPort": 79}]}]}));
    let [problem] = &problems[..] else { panic!("{problems:#?}") };
    assert_eq!(
        problem.to_string(),
        "p.yaml:1: NetworkPolicy ns/p spec.ingress[0].ports[0].endPort: \"79\" ends no range: the entry \
         matches nothing; write a whole number from 80 to 65535"
    );
}

#[test]
fn a_policy_as_the_api_server_stores_it_is_fine() {
    let (_, problems) = whole_policy(&json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"annotations": {"a": "b"}, "creationTimestamp": "2024-01-01T00:00:00Z", "generation": 1,
            "managedFields": [], "name": "p", "namespace": "ns", "resourceVersion": "1", "uid": "u"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {},
            "namespaceSelector": null}], "ports": [{"protocol": "TCP", "port": 80}]}]}}));
    assert_fine(&problems);
}
