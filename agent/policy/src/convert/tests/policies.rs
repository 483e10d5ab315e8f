//! Isolation and directions: S5 to S9.

use serde_json::json;

use super::{
    anything, assert_error, assert_fine, assert_problem, closed, label, policy, whole_policy, written,
};
use crate::model::{DirectionSpec, Peers, Ports, Rule, Selector, Severity, Subject};

fn everyone() -> Subject {
    Subject::Pods(Selector::default())
}

#[test]
fn s5_no_rules_deny_and_an_empty_rule_allows_all() {
    for ingress in [json!(null), json!([])] {
        let (denying, problems) = policy(json!({"podSelector": {}, "ingress": ingress}));
        assert_eq!(denying.ingress, written(vec![]), "{ingress}");
        assert_eq!(denying.egress, DirectionSpec::Ignored);
        assert_fine(&problems);
    }
    let (absent, _) = policy(json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
    assert_eq!((absent.ingress, absent.egress), (written(vec![]), written(vec![])));
    let (allowing, problems) =
        policy(json!({"policyTypes": ["Ingress", "Egress"], "ingress": [{}], "egress": [{}]}));
    assert_eq!(allowing.ingress, written(vec![anything()]));
    assert_eq!(allowing.egress, written(vec![anything()]));
    assert_fine(&problems);
}

#[test]
fn s6_policy_types_default_to_ingress_and_to_egress_where_it_has_rules() {
    for types in [json!(null), json!([])] {
        let (p, problems) = policy(json!({"policyTypes": types}));
        assert_eq!((p.ingress, p.egress), (written(vec![]), DirectionSpec::Ignored));
        assert_fine(&problems);
        let (p, _) = policy(json!({"policyTypes": types, "egress": []}));
        assert_eq!(p.egress, DirectionSpec::Ignored);
        let (p, _) = policy(json!({"policyTypes": types, "egress": [{}]}));
        assert_eq!((p.ingress, p.egress), (written(vec![]), written(vec![anything()])));
    }
}

#[test]
fn s6_egress_of_a_wrong_type_counts_as_egress_rules() {
    let (p, problems) = policy(json!({"egress": {"to": []}}));
    assert_eq!((p.ingress, p.egress), (written(vec![]), written(vec![])));
    assert_error(&problems, "spec.egress", "a mapping");
}

#[test]
fn s6_an_unknown_type_isolates_both_and_rules_of_the_unnamed_direction_do_not_count() {
    for unknown in [json!("Igress"), json!("ingress"), json!(5), json!(null)] {
        let (p, problems) =
            policy(json!({"policyTypes": ["Ingress", unknown], "ingress": [{}], "egress": [{}, {}]}));
        assert_eq!(p.ingress, written(vec![anything()]), "{unknown}");
        assert_eq!(p.egress, closed(2), "{unknown}");
        assert_eq!(p.subject, everyone());
        assert_error(&problems, "spec.policyTypes[1]", "isolates both");
    }
    let (p, _) = policy(json!({"policyTypes": ["x"], "ingress": [{}]}));
    assert_eq!((p.ingress, p.egress), (closed(1), closed(0)));
    let (p, _) = policy(json!({"policyTypes": ["x", "Egress"], "egress": [{}]}));
    assert_eq!((p.ingress, p.egress), (closed(0), written(vec![anything()])));
}

#[test]
fn s6_policy_types_of_a_wrong_type_isolate_both() {
    let (p, problems) = policy(json!({"policyTypes": "Ingress", "ingress": [{}]}));
    assert_eq!((p.ingress, p.egress), (closed(1), closed(0)));
    assert_error(&problems, "spec.policyTypes", "a string and must be a list");
}

#[test]
fn s7_policy_types_win_over_rules() {
    let (p, problems) = policy(json!({"policyTypes": ["Ingress"], "egress": [{}]}));
    assert_eq!((p.ingress, p.egress), (written(vec![]), DirectionSpec::Ignored));
    assert_problem(&problems, Severity::Warning, "spec.egress", "Egress");
    let (p, problems) = policy(json!({"policyTypes": ["Egress"], "ingress": "x"}));
    assert_eq!((p.ingress, p.egress), (DirectionSpec::Ignored, written(vec![])));
    assert_problem(&problems, Severity::Warning, "spec.ingress", "Ingress");
}

#[test]
fn s8_an_absent_null_or_empty_pod_selector_selects_everyone() {
    for spec in [json!({}), json!({"podSelector": null}), json!({"podSelector": {}})] {
        let (p, problems) = policy(spec);
        assert_eq!(p.subject, everyone());
        assert_fine(&problems);
    }
    let (p, _) = policy(json!({"podSelector": {"matchLabels": {"a": "b"}}}));
    assert_eq!(p.subject, Subject::Pods(label("a", "b")));
}

#[test]
fn a_missing_spec_selects_everyone_for_ingress_and_warns() {
    for object in [json!({"metadata": {"name": "p"}}), json!({"spec": null}), json!("x")] {
        let (p, problems) = whole_policy(&object);
        assert_eq!(p.subject, everyone());
        assert_eq!((p.ingress, p.egress), (written(vec![]), DirectionSpec::Ignored));
        assert_problem(&problems, Severity::Warning, "spec", "missing");
    }
}

#[test]
fn a_spec_of_a_wrong_type_isolates_the_namespace_both_ways() {
    for spec in [json!("x"), json!([]), json!(1), json!(false)] {
        let (p, problems) = policy(spec);
        assert_eq!(p.subject, Subject::Unreadable);
        assert_eq!((p.ingress, p.egress), (closed(0), closed(0)));
        assert_error(&problems, "spec", "must be a mapping");
    }
}

#[test]
fn rules_of_a_wrong_type_isolate_their_direction_only() {
    let (p, problems) = policy(json!({"policyTypes": ["Ingress", "Egress"], "ingress": {}, "egress": [{}]}));
    assert_eq!((p.ingress, p.egress), (written(vec![]), written(vec![anything()])));
    assert_error(&problems, "spec.ingress", "nothing in it is allowed");
}

#[test]
fn a_rule_of_a_wrong_type_matches_nothing_and_keeps_its_index() {
    for wrong in [json!("x"), json!(null), json!([])] {
        let (p, problems) = policy(json!({"ingress": [wrong, {}]}));
        assert_eq!(p.ingress, written(vec![Rule::nothing(), anything()]));
        assert_error(&problems, "spec.ingress[0]", "matches nothing");
    }
}

#[test]
fn s22_each_rule_keeps_its_own_peers_and_ports() {
    let (p, _) = policy(json!({"egress": [{"to": []}, {"ports": [{"port": 1}]}]}));
    let DirectionSpec::Isolated { rules, .. } = p.egress else { panic!("egress must be isolated") };
    assert_eq!(rules[0], anything());
    assert_eq!(rules[1].peers, Peers::Any);
    assert!(matches!(&rules[1].ports, Ports::Only(ports) if ports.len() == 1));
}
