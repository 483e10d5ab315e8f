//! Isolation, its attribution, and what is invalid about a policy as a whole.

use portcullis_oracle::{Direction, Family, Reason, Traffic, Verdict};
use serde_json::{Value, json};

use crate::builders::{
    OUTSIDE, WEB, cluster, egress, from_peer, ingress, invalid_closed, isolated, on_port, policy, reaches,
    rule, who_reaches_a,
};

#[test]
fn s1_an_unselected_pod_is_open() {
    // Given a policy that selects x/b only
    let world = cluster().policy("np", json!({"podSelector": {"matchLabels": {"app": "b"}}})).world();
    // Then x/a is open, to pods and to the world
    assert_eq!(ingress(&world, "x/a", "10.0.1.1", WEB), Reason::NotIsolated);
    assert_eq!(ingress(&world, "x/a", OUTSIDE, WEB), Reason::NotIsolated);
    assert_eq!(egress(&world, "x/a", OUTSIDE, WEB), Reason::NotIsolated);
    // And x/b is not
    assert_eq!(ingress(&world, "x/b", OUTSIDE, WEB), isolated(&["np"]));
}

#[test]
fn s2_isolation_is_per_direction() {
    for (kind, isolates_ingress, isolates_egress) in [("Ingress", true, false), ("Egress", false, true)] {
        let world = cluster().policy("np", json!({"podSelector": {}, "policyTypes": [kind]})).world();
        assert_eq!(ingress(&world, "x/a", OUTSIDE, WEB) == isolated(&["np"]), isolates_ingress, "{kind}");
        assert_eq!(egress(&world, "x/a", OUTSIDE, WEB) == isolated(&["np"]), isolates_egress, "{kind}");
    }
}

#[test]
fn s3_rules_are_a_union_and_the_first_match_has_the_credit() {
    // Given two policies that allow the same, and one that allows nothing, in an order that is not their names'
    let world = cluster()
        .policy("z-allow", from_peer(json!({"podSelector": {}})))
        .policy("b-allow", json!({"podSelector": {}, "ingress": [{"ports": [{"port": 81}]}, {}]}))
        .policy("a-deny", json!({"podSelector": {}}))
        .world();
    // Then the first by name and position is named
    assert_eq!(ingress(&world, "x/a", "10.0.0.2", WEB), rule("b-allow", 1));
    assert_eq!(ingress(&world, "x/a", "10.0.0.2", Traffic::tcp(81)), rule("b-allow", 0));
    // And a pod that only the others select is denied by them, in the order of names
    let world = cluster()
        .policy("z", from_peer(json!({"podSelector": {}})))
        .policy("a", json!({"podSelector": {}}))
        .world();
    assert_eq!(ingress(&world, "x/a", OUTSIDE, WEB), isolated(&["a", "z"]));
}

#[test]
fn s4_both_ends_have_to_allow() {
    let egress_closed = json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"]});
    let ingress_closed = json!({"podSelector": {"matchLabels": {"app": "b"}}, "policyTypes": ["Ingress"]});
    for (spec, by_egress) in [(egress_closed, true), (ingress_closed, false)] {
        let world = cluster().policy("np", spec).world();
        let pair = world.pod_to_pod("x/a", "x/b", WEB, Family::Ipv4).unwrap();
        assert_eq!(pair.verdict(), Verdict::Deny);
        assert_eq!(pair.egress.verdict == Verdict::Deny, by_egress);
        assert_eq!(pair.ingress.verdict == Verdict::Deny, !by_egress);
    }
}

#[test]
fn s5_no_rules_deny_all_and_an_empty_rule_allows_all() {
    for (list, kind) in [("ingress", "Ingress"), ("egress", "Egress")] {
        for (rules, allows) in
            [(None, false), (Some(Value::Null), false), (Some(json!([])), false), (Some(json!([{}])), true)]
        {
            let mut spec = json!({"podSelector": {}, "policyTypes": [kind]});
            if let Some(rules) = rules.clone() {
                spec[list] = rules;
            }
            let world = cluster().policy("np", spec).world();
            let verdict = match kind {
                "Ingress" => ingress(&world, "x/a", OUTSIDE, WEB),
                _ => egress(&world, "x/a", OUTSIDE, WEB),
            };
            assert_eq!(verdict == rule("np", 0), allows, "{list}: {rules:?}");
        }
    }
}

#[test]
fn s6_policy_types_default_to_ingress_and_egress_if_it_has_rules() {
    for types in [None, Some(Value::Null), Some(json!([]))] {
        for (egress_rules, isolates_egress) in [
            (None, false),
            (Some(Value::Null), false),
            (Some(json!([])), false),
            (Some(json!([{"ports": [{"port": 1}]}])), true),
        ] {
            let mut spec = json!({"podSelector": {}});
            if let Some(types) = types.clone() {
                spec["policyTypes"] = types;
            }
            if let Some(rules) = egress_rules.clone() {
                spec["egress"] = rules;
            }
            let world = cluster().policy("np", spec).world();
            assert_eq!(ingress(&world, "x/a", OUTSIDE, WEB), isolated(&["np"]));
            assert_eq!(
                egress(&world, "x/a", OUTSIDE, WEB) == isolated(&["np"]),
                isolates_egress,
                "{egress_rules:?}"
            );
        }
    }
    // Egress rules that cannot be read are rules all the same
    let world = cluster().policy("np", json!({"podSelector": {}, "egress": "all"})).world();
    assert_eq!(egress(&world, "x/a", OUTSIDE, WEB), isolated(&["np"]));
}

#[test]
fn s6_an_unknown_type_isolates_both_and_unnamed_rules_stay_ignored() {
    // Given rules that allow all in both directions
    let spec =
        |types: Value| json!({"podSelector": {}, "policyTypes": types, "ingress": [{}], "egress": [{}]});
    // When one type is known and one is not
    let world = cluster().policy("np", spec(json!(["Ingress", "Foo"]))).world();
    // Then the known one keeps its rules, and the other is closed
    assert_eq!(ingress(&world, "x/a", OUTSIDE, WEB), rule("np", 0));
    assert_eq!(egress(&world, "x/a", OUTSIDE, WEB), invalid_closed(&["np"]));
    // And where none is known, both are closed
    for types in [json!(["Foo"]), json!(["ingress"]), json!([1]), json!([null]), json!("Ingress"), json!({})]
    {
        let world = cluster().policy("np", spec(types.clone())).world();
        assert_eq!(ingress(&world, "x/a", OUTSIDE, WEB), invalid_closed(&["np"]), "{types}");
        assert_eq!(egress(&world, "x/a", OUTSIDE, WEB), invalid_closed(&["np"]), "{types}");
    }
}

#[test]
fn s7_policy_types_win_over_rules() {
    let world = cluster()
        .policy(
            "np",
            json!({"podSelector": {}, "policyTypes": ["Ingress"], "egress": [{"ports": [{"port": 1}]}]}),
        )
        .world();
    assert_eq!(egress(&world, "x/a", OUTSIDE, WEB), Reason::NotIsolated);
    let world = cluster()
        .policy("np", json!({"podSelector": {}, "policyTypes": ["Egress"], "ingress": [{}]}))
        .world();
    assert_eq!(ingress(&world, "x/a", OUTSIDE, WEB), Reason::NotIsolated);
    assert_eq!(egress(&world, "x/a", OUTSIDE, WEB), isolated(&["np"]));
}

#[test]
fn s8_s9_no_pod_selector_selects_the_whole_namespace_and_no_other() {
    for spec in [json!({}), json!({"podSelector": null}), json!({"podSelector": {}}), Value::Null] {
        let world = cluster().policy("np", spec.clone()).world();
        for pod in ["x/a", "x/b"] {
            assert_eq!(ingress(&world, pod, OUTSIDE, WEB), isolated(&["np"]), "{spec}");
        }
        for pod in ["y/a", "y/b"] {
            assert_eq!(ingress(&world, pod, OUTSIDE, WEB), Reason::NotIsolated, "{spec}");
        }
    }
}

#[test]
fn s13_an_invalid_pod_selector_isolates_the_namespace_in_the_policys_directions() {
    let selectors = [
        json!({"matchExpressions": [{"key": "app", "operator": "Equals", "values": ["b"]}]}),
        json!({"matchExpressions": [{"key": "app", "operator": "In"}]}),
        json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": []}]}),
        json!({"matchExpressions": [{"key": "app", "operator": "Exists", "values": ["b"]}]}),
        json!({"matchExpressions": [{"key": "", "operator": "Exists"}]}),
        json!({"matchLabels": {"": "b"}}),
    ];
    for selector in selectors {
        let world = cluster().policy("np", json!({"podSelector": selector, "ingress": [{}]})).world();
        assert_eq!(ingress(&world, "x/a", OUTSIDE, WEB), invalid_closed(&["np"]), "{selector}");
        assert_eq!(egress(&world, "x/a", OUTSIDE, WEB), Reason::NotIsolated, "{selector}");
        assert_eq!(ingress(&world, "y/a", OUTSIDE, WEB), Reason::NotIsolated, "{selector}");
    }
}

#[test]
fn a_pod_selector_or_spec_of_the_wrong_type_isolates_the_namespace_both_ways() {
    let specs = [
        json!("spec"),
        json!([]),
        json!({"podSelector": "app=b", "ingress": [{}]}),
        json!({"podSelector": [], "policyTypes": ["Ingress"], "ingress": [{}]}),
        json!({"podSelector": {"matchLabels": ["app"]}}),
        json!({"podSelector": {"matchLabels": {"app": 1}}}),
        json!({"podSelector": {"matchExpressions": {}}}),
        json!({"podSelector": {"matchExpressions": ["app"]}}),
        json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": "b"}]}}),
    ];
    for spec in specs {
        let world = cluster().policy("np", spec.clone()).world();
        for pod in ["x/a", "x/b"] {
            assert_eq!(ingress(&world, pod, OUTSIDE, WEB), invalid_closed(&["np"]), "{spec}");
            assert_eq!(egress(&world, pod, OUTSIDE, WEB), invalid_closed(&["np"]), "{spec}");
        }
    }
}

#[test]
fn s49_an_unknown_field_in_the_spec_closes_both_directions() {
    let specs = [
        json!({"podSelector": {"matchLabels": {"app": "a"}}, "ingress": [{}], "Egress": []}),
        json!({"podSelector": {"matchLabels": {"app": "a"}, "matchLabel": null}, "ingress": [{}]}),
        json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["a"], "value": "b"}]}, "ingress": [{}]}),
    ];
    for spec in specs {
        let world = cluster().policy("np", spec.clone()).world();
        assert_eq!(ingress(&world, "x/a", OUTSIDE, WEB), invalid_closed(&["np"]), "{spec}");
        assert_eq!(egress(&world, "x/a", OUTSIDE, WEB), invalid_closed(&["np"]), "{spec}");
        // And whom it selects stays as it reads
        assert_eq!(ingress(&world, "x/b", OUTSIDE, WEB), Reason::NotIsolated, "{spec}");
    }
    // Outside the spec it changes nothing
    let mut odd = policy("x", "np", from_peer(json!({"podSelector": {}})));
    odd["specs"] = json!({});
    odd["metadata"]["label"] = json!({});
    assert_eq!(who_reaches_a(&cluster().with(odd)), ["x/b"]);
}

#[test]
fn s49_an_unknown_field_in_a_rule_makes_that_rule_match_nothing() {
    let rules = [
        json!({"form": []}),
        json!({"to": []}),
        json!({"port": null}),
        json!({"from": [{"podSelector": {}, "namespaces": {}}, {"ipBlock": {"cidr": "0.0.0.0/0"}}]}),
        json!({"from": [{"podSelector": {"labels": {}}}, {"ipBlock": {"cidr": "0.0.0.0/0"}}]}),
        json!({"from": [{"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "x": 1}]}}, {"ipBlock": {"cidr": "0.0.0.0/0"}}]}),
        json!({"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "excepts": []}}]}),
        json!({"ports": [{"port": 80}, {"port": 81, "endport": 82}]}),
    ];
    for bad in rules {
        // Given the rule alone: isolated, as an author with a typo would expect, and not as invalid as a whole
        let world = cluster().policy("np", json!({"podSelector": {}, "ingress": [bad]})).world();
        assert_eq!(ingress(&world, "x/a", "10.0.0.2", WEB), isolated(&["np"]), "{bad}");
        // And beside another: that one still matches, at its own position
        let world = cluster().policy("np", json!({"podSelector": {}, "ingress": [bad, {}]})).world();
        assert_eq!(ingress(&world, "x/a", "10.0.0.2", WEB), rule("np", 1), "{bad}");
    }
}

#[test]
fn a_rule_of_the_wrong_type_matches_nothing() {
    for bad in [
        Value::Null,
        json!("all"),
        json!([]),
        json!({"from": {}}),
        json!({"from": "all"}),
        json!({"ports": 80}),
    ] {
        let world = cluster().policy("np", json!({"podSelector": {}, "ingress": [bad]})).world();
        assert_eq!(ingress(&world, "x/a", "10.0.0.2", WEB), isolated(&["np"]), "{bad}");
    }
}

#[test]
fn invalid_closed_is_said_only_if_no_valid_policy_isolates() {
    let world = cluster()
        .policy("bad", json!({"podSelector": {}, "policyTypes": ["Foo"]}))
        .policy("good", json!({"podSelector": {}, "policyTypes": ["Ingress"]}))
        .world();
    assert_eq!(ingress(&world, "x/a", OUTSIDE, WEB), isolated(&["bad", "good"]));
    assert_eq!(egress(&world, "x/a", OUTSIDE, WEB), invalid_closed(&["bad"]));
}

#[test]
fn s27_a_udp_rule_isolates_tcp() {
    let world = cluster().policy("np", on_port(json!({"protocol": "UDP", "port": 80}))).world();
    assert!(reaches(&world, "x/b", "x/a", Traffic::udp(80)));
    assert!(!reaches(&world, "x/b", "x/a", Traffic::tcp(80)));
    assert!(!reaches(&world, "x/b", "x/a", Traffic::sctp(80)));
}

#[test]
fn s28_connections_opened_the_other_way_are_not_replies() {
    // Given x/a that may be reached and may reach nobody
    let world = cluster()
        .policy("np", json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Ingress", "Egress"], "ingress": [{}]}))
        .world();
    assert!(reaches(&world, "x/b", "x/a", WEB));
    assert!(!reaches(&world, "x/a", "x/b", WEB));
}

#[test]
fn s15_s29_a_change_of_labels_or_policies_is_judged_anew() {
    // Given a policy by a label of the namespace
    let open =
        cluster().policy("np", from_peer(json!({"namespaceSelector": {"matchLabels": {"team": "y"}}})));
    assert_eq!(who_reaches_a(&open), ["y/a", "y/b"]);
    // When the label changes, the policy does, or it is replaced by a later manifest
    let relabelled = open.clone().with(crate::builders::namespace("y", json!({"team": "z"})));
    assert_eq!(who_reaches_a(&relabelled), [""; 0]);
    let replaced = open.policy("np", from_peer(json!({"podSelector": {}})));
    assert_eq!(who_reaches_a(&replaced), ["x/b"]);
}

#[test]
fn a_pod_reaches_itself() {
    let world =
        cluster().policy("np", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})).world();
    for address in ["10.0.0.1", "fd00::1"] {
        assert_eq!(egress(&world, "x/a", address, WEB), Reason::SelfTraffic);
        assert_eq!(ingress(&world, "x/a", address, WEB), Reason::SelfTraffic);
    }
    assert_eq!(world.matrix(WEB, Family::Ipv4), ["-XXX", "X-XX", "XX-.", "XX.-"]);
}

#[test]
fn another_api_version_is_read_as_if_it_were_ours() {
    let mut old = policy("x", "np", from_peer(json!({"podSelector": {}})));
    old["apiVersion"] = json!("extensions/v1beta1");
    assert_eq!(who_reaches_a(&cluster().with(old)), ["x/b"]);
}

#[test]
fn lists_are_flattened() {
    let mut item = policy("x", "np", from_peer(json!({"podSelector": {}})));
    item.as_object_mut().unwrap().remove("kind");
    let typed = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicyList", "items": [item]});
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [typed]});
    assert_eq!(who_reaches_a(&cluster().with(list)), ["x/b"]);
}

#[test]
fn questions_about_no_pod_have_no_answer() {
    let world = cluster().world();
    assert!(world.pod_to_pod("x/a", "x/nobody", WEB, Family::Ipv4).is_none());
    assert!(world.judge("nobody", Direction::Egress, OUTSIDE.parse().unwrap(), WEB).is_none());
}
