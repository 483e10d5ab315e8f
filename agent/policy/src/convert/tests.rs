//! Tests of the conversion, by S number. Given an object, when it is converted, then the model holds what it
//! means and every closed part is reported.
#![expect(clippy::needless_pass_by_value, reason = "a test hands over what json! has just made")]

mod cidrs;
mod closing;
mod cluster;
mod hosts;
mod modes;
mod peers;
mod pods;
mod policies;
mod ports;
mod selectors;
mod services;
mod slices;

use serde_json::{Value, json};

use super::{Report, network_policy};
use crate::model::{
    DirectionSpec, IsolationCause, NetworkPolicy, Operator, Peers, Ports, Problem, Requirement, Rule,
    Selector, Severity,
};

/// A policy of namespace `ns` with this spec.
fn policy(spec: Value) -> (NetworkPolicy, Vec<Problem>) {
    let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "ns"}, "spec": spec});
    whole_policy(&object)
}

fn whole_policy(object: &Value) -> (NetworkPolicy, Vec<Problem>) {
    let mut report = Report::new("NetworkPolicy ns/p", Some("p.yaml:1"));
    let policy = network_policy(object, "ns", &mut report);
    (policy, report.into_problems())
}

/// The only ingress rule of a policy that has this one.
fn rule(rule: Value) -> (Rule, Vec<Problem>) {
    let (policy, problems) = policy(json!({"policyTypes": ["Ingress"], "ingress": [rule]}));
    let DirectionSpec::Isolated { rules, cause: IsolationCause::Written } = policy.ingress else {
        panic!("a policy with one rule must isolate as written, not {:?}", policy.ingress);
    };
    let [rule] = <[Rule; 1]>::try_from(rules).expect("a rule keeps its index");
    (rule, problems)
}

fn peers_of(peers: Value) -> (Peers, Vec<Problem>) {
    let (rule, problems) = rule(json!({"from": peers}));
    assert_eq!(rule.ports, Ports::Any, "peers do not touch ports");
    (rule.peers, problems)
}

fn ports_of(ports: Value) -> (Ports, Vec<Problem>) {
    let (rule, problems) = rule(json!({"ports": ports}));
    assert_eq!(rule.peers, Peers::Any, "ports do not touch peers");
    (rule.ports, problems)
}

fn written(rules: Vec<Rule>) -> DirectionSpec {
    DirectionSpec::Isolated { rules, cause: IsolationCause::Written }
}

fn closed(count: usize) -> DirectionSpec {
    DirectionSpec::Isolated { rules: vec![Rule::nothing(); count], cause: IsolationCause::Invalid }
}

fn anything() -> Rule {
    Rule { peers: Peers::Any, ports: Ports::Any }
}

fn requirement(key: &str, operator: Operator) -> Requirement {
    Requirement { key: key.to_owned(), operator }
}

fn label(key: &str, value: &str) -> Selector {
    let operator = Operator::In([value.to_owned()].into());
    Selector { requirements: [requirement(key, operator)].into() }
}

/// One problem, of this severity, at this field, with these words in it.
fn assert_problem(problems: &[Problem], severity: Severity, field: &str, words: &str) {
    let found = problems.iter().any(|p| {
        p.severity == severity && p.field == field && p.message.contains(words) && p.message.contains(';')
    });
    assert!(found, "no {severity:?} at {field:?} with {words:?} and a remedy in {problems:#?}");
}

fn assert_error(problems: &[Problem], field: &str, words: &str) {
    assert_problem(problems, Severity::Error, field, words);
}

fn assert_fine(problems: &[Problem]) {
    assert!(problems.is_empty(), "unexpected {problems:#?}");
}
