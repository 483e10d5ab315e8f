//! HostPolicy: its subject, its mode, and the peers that a NetworkPolicy has not.

use super::*;
use crate::convert::host_policy;
use crate::model::{HostPolicy, HostSubject, Mode, NamespaceScope, Peer};

fn read(spec: Value) -> (HostPolicy, Vec<Problem>) {
    let mut report = Report::new("HostPolicy p", Some("p.yaml:1"));
    let object = json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "HostPolicy",
        "metadata": {"name": "p"}, "spec": spec});
    let policy = host_policy(&object, &mut report);
    (policy, report.into_problems())
}

fn all_pods() -> HostSubject {
    HostSubject::Pods { namespaces: Selector::default(), pods: Selector::default() }
}

#[test]
fn h1_a_subject_is_nodes_or_pods() {
    let (policy, problems) =
        read(json!({"subject": {"nodes": {"nodeSelector": {"matchLabels": {"role": "edge"}}}}}));
    assert_fine(&problems);
    assert_eq!((policy.subject, policy.mode), (HostSubject::Nodes(label("role", "edge")), Mode::Enforce));
    assert_eq!((policy.ingress, policy.egress), (written(vec![]), DirectionSpec::Ignored));
    for all in [json!({"nodes": {}}), json!({"nodes": {"nodeSelector": null}, "pods": null})] {
        let (policy, problems) = read(json!({"subject": all}));
        assert_fine(&problems);
        assert_eq!(policy.subject, HostSubject::Nodes(Selector::default()));
    }
    let (policy, problems) = read(json!({"mode": "Audit", "egress": [{}],
        "subject": {"pods": {"namespaceSelector": {"matchLabels": {"team": "a"}}}}}));
    assert_fine(&problems);
    let subject = HostSubject::Pods { namespaces: label("team", "a"), pods: Selector::default() };
    assert_eq!((policy.subject, policy.mode), (subject, Mode::Audit));
    assert_eq!(policy.egress, written(vec![anything()]));
}

#[test]
fn h3_a_subject_that_cannot_be_read_is_everyone_in_the_policys_directions_and_allows_nothing() {
    let cases = [
        (json!({}), "spec.subject"),
        (json!({"subject": null}), "spec.subject"),
        (json!({"subject": []}), "spec.subject"),
        (json!({"subject": {}}), "spec.subject"),
        (json!({"subject": {"nodes": {}, "pods": {}}}), "spec.subject"),
        (json!({"subject": {"nodes": "all"}}), "spec.subject.nodes"),
        (json!({"subject": {"pods": []}}), "spec.subject.pods"),
    ];
    for (mut spec, field) in cases {
        spec["policyTypes"] = json!(["Egress"]);
        spec["egress"] = json!([{}, {}]);
        let (policy, problems) = read(spec.clone());
        assert_error(&problems, field, "selects every node and every hostNetwork pod");
        assert_eq!(policy.subject, HostSubject::Unreadable, "{spec}");
        assert_eq!((policy.ingress, policy.egress), (DirectionSpec::Ignored, closed(2)), "{spec}");
    }
}

#[test]
fn h3_an_unreadable_selector_selects_all_of_its_kind() {
    let wrong = json!({"matchExpressions": [{"key": "a", "operator": "Near"}]});
    let (policy, problems) = read(json!({"subject": {"nodes": {"nodeSelector": wrong}}, "ingress": [{}]}));
    assert_error(&problems, "spec.subject.nodes.nodeSelector.matchExpressions[0].operator", "unknown");
    assert_eq!(policy.subject, HostSubject::Nodes(Selector::default()));
    assert_eq!((policy.ingress, policy.egress), (closed(1), DirectionSpec::Ignored));
    for pods in [
        json!({"podSelector": wrong, "namespaceSelector": {"matchLabels": {"team": "a"}}}),
        json!({"namespaceSelector": "a"}),
    ] {
        let (policy, problems) = read(json!({"subject": {"pods": pods}}));
        assert!(!problems.is_empty());
        assert_eq!((policy.subject, policy.ingress), (all_pods(), closed(0)), "{pods}");
    }
}

#[test]
fn h3_unknown_fields_close_and_say_so() {
    let cases = [
        (
            json!({"subject": {"nodes": {}}, "podSelector": {}}),
            "spec.podSelector",
            HostSubject::Nodes(Selector::default()),
        ),
        (
            json!({"subject": {"nodes": {"selector": {}}}}),
            "spec.subject.nodes.selector",
            HostSubject::Nodes(Selector::default()),
        ),
        (json!({"subject": {"pods": {}, "node": {}}}), "spec.subject.node", all_pods()),
        (json!({"subject": {"node": {}}}), "spec.subject.node", HostSubject::Unreadable),
    ];
    for (spec, field, subject) in cases {
        let (policy, problems) = read(spec);
        assert_error(&problems, field, "isolates what it selects both ways and allows nothing");
        assert_eq!(
            (policy.subject, policy.ingress, policy.egress),
            (subject, closed(0), closed(0)),
            "{field}"
        );
    }
    let (policy, problems) = read(json!({"subject": {"nodes": {}}, "ingress": [{"form": []}, {}]}));
    assert_error(&problems, "spec.ingress[0].form", "the rule matches nothing");
    assert_eq!(policy.ingress, written(vec![Rule::nothing(), anything()]));
}

#[test]
fn h3_a_mode_that_means_nothing_enforces_and_closes() {
    for mode in [json!("audit"), json!(""), json!(7), json!(["Audit"])] {
        let (policy, problems) = read(json!({"mode": mode, "subject": {"nodes": {}}, "ingress": [{}]}));
        assert_error(&problems, "spec.mode", "allows nothing");
        assert_eq!(
            (policy.mode, policy.ingress, policy.egress),
            (Mode::Enforce, closed(1), closed(0)),
            "{mode}"
        );
    }
}

#[test]
fn h4_peers_are_pods_of_every_namespace_blocks_or_nodes() {
    let peers = json!([
        {"podSelector": {"matchLabels": {"app": "web"}}},
        {"nodes": {"nodeSelector": {"matchLabels": {"role": "edge"}}}},
        {"nodes": {}},
    ]);
    let (policy, problems) = read(json!({"subject": {"nodes": {}}, "ingress": [{"from": peers}]}));
    assert_fine(&problems);
    let every = NamespaceScope::Matching(Selector::default());
    let peers = vec![
        Peer::Pods { namespaces: every, pods: label("app", "web") },
        Peer::Nodes(label("role", "edge")),
        Peer::Nodes(Selector::default()),
    ];
    assert_eq!(policy.ingress, written(vec![Rule { peers: Peers::Only(peers), ports: Ports::Any }]));
}

#[test]
fn s13_a_peer_of_two_kinds_or_none_or_unreadable_matches_nothing() {
    let cases = [
        (json!({"nodes": {}, "podSelector": {}}), "spec.ingress[0].from[0].nodes"),
        (json!({"nodes": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}), "spec.ingress[0].from[0].nodes"),
        (json!({"nodes": []}), "spec.ingress[0].from[0].nodes"),
        (json!({"nodes": {"nodeSelector": 1}}), "spec.ingress[0].from[0].nodes.nodeSelector"),
        (json!({}), "spec.ingress[0].from[0]"),
    ];
    for (peer, field) in cases {
        let (policy, problems) = read(json!({"subject": {"nodes": {}}, "ingress": [{"from": [peer]}]}));
        assert!(
            problems.iter().any(|p| p.field.starts_with(field) && p.severity == Severity::Error),
            "{problems:?}"
        );
        let nobody = Rule { peers: Peers::Only(Vec::new()), ports: Ports::Any };
        assert_eq!(policy.ingress, written(vec![nobody]), "{peer}");
    }
    // A NetworkPolicy knows no such peer.
    let (network, problems) = rule(json!({"from": [{"nodes": {}}]}));
    assert_error(&problems, "spec.ingress[0].from[0].nodes", "unknown");
    assert_eq!(network, Rule::nothing());
}

#[test]
fn a_spec_that_is_none_closes_everyone() {
    let (policy, problems) = read(json!("spec"));
    assert_error(&problems, "spec", "must be a mapping");
    assert_eq!(
        (policy.subject, policy.ingress, policy.egress),
        (HostSubject::Unreadable, closed(0), closed(0))
    );
    let (policy, problems) = read(Value::Null);
    assert_error(&problems, "spec", "is missing");
    assert_eq!(
        (policy.subject, policy.ingress, policy.egress),
        (HostSubject::Unreadable, closed(0), DirectionSpec::Ignored)
    );
}

#[test]
fn what_is_written_is_read_back() {
    let spec = json!({"mode": "Audit", "policyTypes": ["Ingress", "Egress"],
        "subject": {"pods": {"namespaceSelector": {"matchLabels": {"team": "a"}}, "podSelector": {}}},
        "ingress": [{"from": [{"nodes": {"nodeSelector": {}}}], "ports": [{"protocol": "UDP", "port": 53}]}]});
    let (policy, problems) = read(spec.clone());
    assert_fine(&problems);
    assert_eq!(crate::written::host_spec(&policy), spec);
}
