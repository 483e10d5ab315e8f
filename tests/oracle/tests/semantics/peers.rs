//! Peers: selectors and ipBlocks.

use portcullis_oracle::{Reason, World};
use serde_json::{Value, json};

use crate::builders::{
    Cluster, OUTSIDE, WEB, cluster, egress, from_peer, ingress, isolated, let_in, namespace, rule,
    who_reaches_a,
};

fn with_peer(peer: Value) -> Cluster {
    cluster().policy("np", from_peer(peer))
}

fn with_peers(peers: Value) -> Cluster {
    cluster()
        .policy("np", json!({"podSelector": {"matchLabels": {"app": "a"}}, "ingress": [{"from": peers}]}))
}

const NOBODY: [&str; 0] = [];

#[test]
fn s10_pod_selector_alone_stays_in_the_policys_namespace() {
    assert_eq!(who_reaches_a(&with_peer(json!({"podSelector": {"matchLabels": {"app": "b"}}}))), ["x/b"]);
    assert_eq!(who_reaches_a(&with_peer(json!({"podSelector": {}}))), ["x/b"]);
}

#[test]
fn s10_namespace_selector_alone_means_every_pod_there() {
    let peer = json!({"namespaceSelector": {"matchLabels": {"team": "y"}}});
    assert_eq!(who_reaches_a(&with_peer(peer)), ["y/a", "y/b"]);
}

#[test]
fn s10_both_in_one_entry_are_and_separate_entries_are_or() {
    let namespaces = json!({"matchLabels": {"team": "y"}});
    let pods = json!({"matchLabels": {"app": "b"}});
    let both = with_peers(json!([{"namespaceSelector": namespaces, "podSelector": pods}]));
    assert_eq!(who_reaches_a(&both), ["y/b"]);
    let either = with_peers(json!([{"namespaceSelector": namespaces}, {"podSelector": pods}]));
    assert_eq!(who_reaches_a(&either), ["x/b", "y/a", "y/b"]);
    // An empty selector is not an absent one
    let empty = with_peers(json!([{"namespaceSelector": {}, "podSelector": pods}]));
    assert_eq!(who_reaches_a(&empty), ["x/b", "y/b"]);
    // And null is an absent one
    let null = with_peers(json!([{"namespaceSelector": null, "podSelector": pods, "ipBlock": null}]));
    assert_eq!(who_reaches_a(&null), ["x/b"]);
}

#[test]
fn s11_an_empty_namespace_selector_means_all_pods_and_nothing_else() {
    let cluster = with_peer(json!({"namespaceSelector": {}})).with(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"},
        "status": {"addresses": [{"type": "InternalIP", "address": "172.18.0.2"}]},
    }));
    assert_eq!(who_reaches_a(&cluster), ["x/b", "y/a", "y/b"]);
    assert_eq!(let_in(&cluster, &[OUTSIDE, "172.18.0.2", "10.0.0.99"]), NOBODY);
}

#[test]
fn s12_no_from_means_anyone() {
    for rule in [json!({}), json!({"from": null}), json!({"from": []})] {
        let cluster = cluster().policy("np", json!({"podSelector": {}, "ingress": [rule]}));
        assert_eq!(who_reaches_a(&cluster).len(), 3);
        assert_eq!(let_in(&cluster, &[OUTSIDE, "2001:db8::1"]).len(), 2);
    }
}

#[test]
fn s13_a_peer_that_is_none_matches_nothing() {
    let peers = [
        json!({}),
        Value::Null,
        json!("all"),
        json!([]),
        json!({"podSelector": null}),
        json!({"ipBlock": {"cidr": "0.0.0.0/0"}, "podSelector": {}}),
        json!({"ipBlock": {"cidr": "0.0.0.0/0"}, "namespaceSelector": {}}),
        json!({"ipBlock": "0.0.0.0/0"}),
        json!({"podSelector": "all"}),
        json!({"podSelector": {}, "namespaceSelector": 1}),
    ];
    for peer in peers {
        assert_eq!(who_reaches_a(&with_peer(peer.clone())), NOBODY, "{peer}");
        // And another peer of the rule still does
        let with_other = with_peers(json!([peer, {"podSelector": {}}]));
        assert_eq!(who_reaches_a(&with_other), ["x/b"], "{peer}");
    }
}

#[test]
fn s13_an_unreadable_selector_matches_nothing_as_a_peer() {
    let expressions = [
        json!({"key": "app", "operator": "Equals", "values": ["b"]}),
        json!({"key": "app", "operator": "in", "values": ["b"]}),
        json!({"key": "app"}),
        json!({"key": "app", "operator": "In"}),
        json!({"key": "app", "operator": "In", "values": null}),
        json!({"key": "app", "operator": "NotIn", "values": []}),
        json!({"key": "app", "operator": "Exists", "values": ["b"]}),
        json!({"key": "none", "operator": "DoesNotExist", "values": ["b"]}),
        json!({"key": "", "operator": "DoesNotExist"}),
        json!({"operator": "DoesNotExist"}),
        json!({"key": "app", "operator": "In", "values": ["b", 1]}),
    ];
    for expression in expressions {
        let peer = json!({"podSelector": {"matchExpressions": [expression]}});
        assert_eq!(who_reaches_a(&with_peer(peer)), NOBODY, "{expression}");
        let peer = json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "b"}, "matchExpressions": [expression]}});
        assert_eq!(who_reaches_a(&with_peer(peer)), NOBODY, "{expression}");
    }
}

#[test]
fn s13_label_values_compare_as_strings_whatever_validation_says() {
    let odd = "-not a valid value!-";
    let cluster = with_peer(json!({"podSelector": {"matchLabels": {"odd": odd}}}))
        .with(crate::builders::pod("x", "b", &["10.0.0.2"], json!({"odd": odd})));
    assert_eq!(who_reaches_a(&cluster), ["x/b"]);
}

#[test]
fn s14_operators_and_missing_keys() {
    let all = |expression: Value| {
        who_reaches_a(&with_peer(
            json!({"namespaceSelector": {}, "podSelector": {"matchExpressions": [expression]}}),
        ))
    };
    assert_eq!(all(json!({"key": "app", "operator": "In", "values": ["b", "z"]})), ["x/b", "y/b"]);
    assert_eq!(all(json!({"key": "app", "operator": "NotIn", "values": ["b"]})), ["y/a"]);
    // y/b alone has the key "empty"
    assert_eq!(all(json!({"key": "empty", "operator": "In", "values": ["", "z"]})), ["y/b"]);
    assert_eq!(all(json!({"key": "empty", "operator": "NotIn", "values": [""]})), ["x/b", "y/a"]);
    assert_eq!(all(json!({"key": "empty", "operator": "Exists"})), ["y/b"]);
    assert_eq!(all(json!({"key": "empty", "operator": "Exists", "values": []})), ["y/b"]);
    assert_eq!(all(json!({"key": "empty", "operator": "DoesNotExist"})), ["x/b", "y/a"]);
    let labels = json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"empty": ""}}});
    assert_eq!(who_reaches_a(&with_peer(labels)), ["y/b"]);
}

#[test]
fn s15_namespaces_carry_their_real_name() {
    // Given a namespace that claims to be another
    let cluster =
        with_peer(json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "x"}}}))
            .with(namespace("y", json!({"kubernetes.io/metadata.name": "x"})));
    // Then only the real one matches
    assert_eq!(who_reaches_a(&cluster), ["x/b"]);
}

#[test]
fn s16_an_ip_block_matches_pods_and_others() {
    let cluster = with_peer(json!({"ipBlock": {"cidr": "10.0.0.0/16"}}));
    assert_eq!(who_reaches_a(&cluster), ["x/b", "y/a", "y/b"]);
    assert_eq!(let_in(&cluster, &["10.0.255.255", "10.1.0.0", "9.255.255.255", OUTSIDE]), ["10.0.255.255"]);
    let union = with_peers(json!([{"ipBlock": {"cidr": "10.0.1.1/32"}}, {"podSelector": {}}]));
    assert_eq!(who_reaches_a(&union), ["x/b", "y/a"]);
}

#[test]
fn s17_except_takes_away_from_its_own_entry_only() {
    let block = json!({"ipBlock": {"cidr": "10.0.0.0/16", "except": ["10.0.1.0/24"]}});
    assert_eq!(who_reaches_a(&with_peers(json!([block]))), ["x/b"]);
    // Another peer, rule or policy may allow it again
    let again = json!({"namespaceSelector": {"matchLabels": {"team": "y"}}});
    assert_eq!(who_reaches_a(&with_peers(json!([block, again]))).len(), 3);
    let again = json!({"ipBlock": {"cidr": "10.0.1.2/32"}});
    assert_eq!(who_reaches_a(&with_peers(json!([block, again]))), ["x/b", "y/b"]);
    let spec = json!({"podSelector": {}, "ingress": [{"from": [block]}, {"from": [again]}]});
    let world = cluster().policy("np", spec).world();
    assert_eq!(ingress(&world, "x/a", "10.0.1.2", WEB), rule("np", 1));
    let two = with_peers(json!([block])).policy("other", from_peer(again));
    assert_eq!(ingress(&two.world(), "x/a", "10.0.1.2", WEB), rule("other", 0));
}

#[test]
fn s18_nested_and_adjacent_excepts_hide_no_wider_allow_of_another_entry() {
    let nested = with_peer(json!({"ipBlock": {
        "cidr": "10.0.0.0/8", "except": ["10.0.0.0/24", "10.0.0.0/30", "10.0.1.0/25", "10.0.1.128/25"],
    }}));
    let asked = ["10.0.0.2", "10.0.0.200", "10.0.1.1", "10.0.1.200", "10.0.2.0", "10.255.255.255"];
    assert_eq!(let_in(&nested, &asked), ["10.0.2.0", "10.255.255.255"]);
    // Given an except that is longer than the wide allow of another entry
    let wide = with_peers(json!([
        {"ipBlock": {"cidr": "10.0.0.0/24", "except": ["10.0.0.2/32"]}}, {"ipBlock": {"cidr": "0.0.0.0/0"}},
    ]));
    assert_eq!(let_in(&wide, &["10.0.0.2", "10.0.0.3"]), ["10.0.0.2", "10.0.0.3"]);
}

#[test]
fn s13_excepts_that_are_unreadable_or_elsewhere() {
    let block = |except: Value| {
        let_in(
            &with_peer(json!({"ipBlock": {"cidr": "10.0.0.0/24", "except": except}})),
            &["10.0.0.2", "10.0.0.9"],
        )
    };
    for except in [Value::Null, json!([]), json!(["10.0.9.0/24"])] {
        assert_eq!(block(except), ["10.0.0.2", "10.0.0.9"]);
    }
    assert_eq!(block(json!(["10.0.0.0/29"])), ["10.0.0.9"]);
    // The whole block, or more than it
    for except in [json!(["10.0.0.0/24"]), json!(["10.0.0.0/8"])] {
        assert_eq!(block(except), NOBODY);
    }
    for except in [
        json!(["fd00::/64"]),
        json!(["10.0.9.0"]),
        json!(["10.0.9.0/33"]),
        json!([1]),
        json!([null]),
        json!("10.0.9.0/24"),
    ] {
        assert_eq!(block(except.clone()), NOBODY, "{except}");
    }
}

#[test]
fn s13_an_unreadable_cidr_matches_nothing() {
    let texts = [
        "",
        "/",
        "/8",
        "10.0.0.2",
        "10.0.0.0/",
        "10.0.0.0/33",
        "10.0.0.0/-1",
        "10.0.0.0/+8",
        "10.0.0.0/8/8",
        "10.0.0/8",
        "10.0.0.0.0/8",
        "10.0.0.256/8",
        " 10.0.0.0/8",
        "10.0.0.0/8 ",
        "0xa.0.0.0/8",
        "10..0.0/8",
        "fd00::/129",
        "fd00:::/8",
        "world",
        "10.0.0.99999999999999999999/8",
    ];
    for text in texts {
        let cluster = with_peer(json!({"ipBlock": {"cidr": text}}));
        assert_eq!(let_in(&cluster, &["10.0.0.2", "fd00::2", OUTSIDE]), NOBODY, "{text:?}");
    }
    for block in [json!({}), json!({"cidr": null}), json!({"cidr": 10}), json!({"except": ["10.0.0.0/8"]})] {
        assert_eq!(let_in(&with_peer(json!({"ipBlock": block})), &["10.0.0.2"]), NOBODY, "{block}");
    }
}

#[test]
fn s19_each_family_has_its_own_everything() {
    let asked = ["10.0.0.2", OUTSIDE, "fd00::2", "2001:db8::1"];
    assert_eq!(let_in(&with_peer(json!({"ipBlock": {"cidr": "0.0.0.0/0"}})), &asked), ["10.0.0.2", OUTSIDE]);
    assert_eq!(let_in(&with_peer(json!({"ipBlock": {"cidr": "::/0"}})), &asked), ["fd00::2", "2001:db8::1"]);
}

#[test]
fn s20_host_bits_are_masked_and_leading_zeros_are_decimal() {
    for cidr in ["10.1.2.3/8", "010.001.002.003/8", "00010.1.2.3/08", "10.0.0.0/8"] {
        let cluster = with_peer(json!({"ipBlock": {"cidr": cidr}}));
        assert_eq!(
            let_in(&cluster, &["10.0.0.2", "10.255.0.1", "8.0.0.1", "11.0.0.0"]),
            ["10.0.0.2", "10.255.0.1"],
            "{cidr}"
        );
    }
    let cluster = with_peer(json!({"ipBlock": {"cidr": "fd00::2/64"}}));
    assert_eq!(let_in(&cluster, &["fd00::1:1", "fd00:0:0:1::"]), ["fd00::1:1"]);
}

#[test]
fn egress_peers_are_judged_as_ingress_peers_are() {
    let spec = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
        {"to": [{"ipBlock": {"cidr": "8.0.0.0/8"}}]}, {"to": [{"namespaceSelector": {"matchLabels": {"team": "y"}}}]},
    ]});
    let world: World = cluster().policy("np", spec).world();
    assert_eq!(egress(&world, "x/a", OUTSIDE, WEB), rule("np", 0));
    assert_eq!(egress(&world, "x/a", "10.0.1.1", WEB), rule("np", 1));
    assert_eq!(egress(&world, "x/a", "10.0.0.2", WEB), isolated(&["np"]));
    assert_eq!(egress(&world, "y/a", "10.0.0.2", WEB), Reason::NotIsolated);
}
