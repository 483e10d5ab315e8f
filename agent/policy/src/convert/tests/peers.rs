//! Peers: S10 to S13, S16 to S20.

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{assert_error, assert_fine, assert_problem, label, peers_of, policy};
use crate::model::{DirectionSpec, IpBlock, NamespaceScope, Peer, Peers, Selector, Severity};

fn net(text: &str) -> IpNet {
    text.parse().expect("a CIDR")
}

fn own() -> NamespaceScope {
    NamespaceScope::Named("ns".to_owned())
}

fn pods(namespaces: NamespaceScope, pods: Selector) -> Peers {
    Peers::Only(vec![Peer::Pods { namespaces, pods }])
}

fn block(cidr: &str, except: &[&str]) -> Peers {
    Peers::Only(vec![Peer::Block(IpBlock {
        net: net(cidr),
        except: except.iter().map(|e| net(e)).collect(),
    })])
}

fn nothing() -> Peers {
    Peers::Only(vec![])
}

fn ip_block(block: Value) -> (Peers, Vec<crate::model::Problem>) {
    peers_of(json!([{"ipBlock": block}]))
}

#[test]
fn s10_selectors_combine_and_an_absent_one_is_not_an_empty_one() {
    let a = json!({"matchLabels": {"a": "1"}});
    let any = Selector::default();
    let cases = [
        (json!({"podSelector": a}), pods(own(), label("a", "1"))),
        (json!({"podSelector": {}}), pods(own(), any.clone())),
        (json!({"namespaceSelector": a}), pods(NamespaceScope::Matching(label("a", "1")), any.clone())),
        (
            json!({"namespaceSelector": a, "podSelector": {}, "ipBlock": null}),
            pods(NamespaceScope::Matching(label("a", "1")), any.clone()),
        ),
        (json!({"namespaceSelector": null, "podSelector": a}), pods(own(), label("a", "1"))),
    ];
    for (peer, expected) in cases {
        let (peers, problems) = peers_of(json!([peer]));
        assert_eq!(peers, expected, "{peer}");
        assert_fine(&problems);
    }
    let (peers, _) = peers_of(json!([{"podSelector": a}, {"namespaceSelector": a}]));
    assert!(matches!(peers, Peers::Only(peers) if peers.len() == 2), "separate entries are separate peers");
}

#[test]
fn s11_an_empty_namespace_selector_is_pods_of_every_namespace() {
    let (peers, _) = peers_of(json!([{"namespaceSelector": {}}]));
    assert_eq!(peers, pods(NamespaceScope::Matching(Selector::default()), Selector::default()));
}

#[test]
fn s12_absent_null_and_empty_peers_mean_anyone() {
    for peers in [json!(null), json!([])] {
        let (peers, problems) = peers_of(peers);
        assert_eq!(peers, Peers::Any);
        assert_fine(&problems);
    }
    let (p, _) = policy(json!({"egress": [{"to": []}]}));
    assert!(matches!(p.egress, DirectionSpec::Isolated { rules, .. } if rules[0].peers == Peers::Any));
}

#[test]
fn t18_peers_that_cannot_be_read_never_become_anyone() {
    let list = [
        (json!([{}]), "[0]", "no field"),
        (json!([null]), "[0]", "must be a mapping"),
        (json!(["x"]), "[0]", "must be a mapping"),
        (json!([{"podSelector": null}]), "[0]", "no field"),
        (json!({"podSelector": {}}), "", "must be a list"),
        (json!([{"podSelector": "x"}]), "[0].podSelector", "must be a mapping"),
        (json!([{"podSelector": {}, "namespaceSelector": []}]), "[0].namespaceSelector", "must be a mapping"),
        (json!([{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]), "[0].ipBlock", "beside a selector"),
        (json!([{"ipBlock": {"cidr": "10.0.0.0/8"}, "namespaceSelector": {}}]), "[0].ipBlock", "beside"),
        (json!([{"ipBlock": "10.0.0.0/8"}]), "[0].ipBlock", "must be a mapping"),
    ];
    for (given, field, words) in list {
        let (peers, problems) = peers_of(given.clone());
        assert_eq!(peers, nothing(), "{given}");
        assert_error(&problems, &format!("spec.ingress[0].from{field}"), words);
    }
}

#[test]
fn s13_a_readable_peer_beside_an_unreadable_one_counts() {
    let unreadable = json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "?"}]}});
    let (peers, problems) = peers_of(json!([unreadable, {"podSelector": {}}]));
    assert_eq!(peers, pods(own(), Selector::default()));
    assert_eq!(problems.len(), 1);
}

#[test]
fn s17_s18_excepts_are_kept_sorted_once_and_nested() {
    let (peers, problems) = ip_block(
        json!({"cidr": "10.0.0.0/8", "except": ["10.2.0.0/16", "10.1.0.0/16", "10.1.1.0/24", "10.2.0.0/16"]}),
    );
    assert_eq!(peers, block("10.0.0.0/8", &["10.1.0.0/16", "10.1.1.0/24", "10.2.0.0/16"]));
    assert_fine(&problems);
    let (peers, _) = ip_block(json!({"cidr": "::/0", "except": null}));
    assert_eq!(peers, block("::/0", &[]));
}

#[test]
fn s13_an_except_outside_takes_nothing_away_and_one_that_covers_takes_all() {
    let (peers, problems) = ip_block(json!({"cidr": "10.0.0.0/8", "except": ["11.0.0.0/8"]}));
    assert_eq!(peers, block("10.0.0.0/8", &[]));
    assert_problem(&problems, Severity::Warning, "spec.ingress[0].from[0].ipBlock.except[0]", "outside");
    for (except, warnings) in [("10.0.0.0/8", 0), ("0.0.0.0/0", 1)] {
        let (peers, problems) = ip_block(json!({"cidr": "10.0.0.0/8", "except": [except]}));
        assert_eq!(peers, block("10.0.0.0/8", &["10.0.0.0/8"]));
        assert_eq!(problems.len(), warnings);
    }
}

#[test]
fn s13_an_unreadable_block_matches_nothing() {
    let blocks = [
        (json!({}), "cidr"),
        (json!({"cidr": null}), "cidr"),
        (json!({"cidr": 10}), "cidr"),
        (json!({"cidr": "10.0.0.1"}), "cidr"),
        (json!({"cidr": ""}), "cidr"),
        (json!({"cidr": "::ffff:10.0.0.0/104"}), "cidr"),
        (json!({"cidr": "10.0.0.0/8", "except": "10.1.0.0/16"}), "except"),
        (json!({"cidr": "10.0.0.0/8", "except": [null]}), "except[0]"),
        (json!({"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "x"]}), "except[1]"),
        (json!({"cidr": "10.0.0.0/8", "except": ["fd00::/8"]}), "except[0]"),
        (json!({"cidr": "::/0", "except": ["10.0.0.0/8"]}), "except[0]"),
    ];
    for (given, field) in blocks {
        let (peers, problems) = ip_block(given.clone());
        assert_eq!(peers, nothing(), "{given}");
        assert_error(&problems, &format!("spec.ingress[0].from[0].ipBlock.{field}"), "matches nothing");
    }
}

#[test]
fn s20_host_bits_and_leading_zeros_are_read_leniently() {
    let (peers, problems) = ip_block(json!({"cidr": "10.1.2.3/8", "except": ["010.001.2.3/016"]}));
    assert_eq!(peers, block("10.0.0.0/8", &["10.1.0.0/16"]));
    assert_fine(&problems);
}
