//! The host firewall, by H number. Given a node `n` with a firewall, when somebody speaks to it or to a pod in its
//! network, or they to somebody, then the verdict is what the statement says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::needless_pass_by_value,
    reason = "tests"
)]

use std::collections::{BTreeMap, BTreeSet};

use portcullis_common::event::{Action, Reason};
use portcullis_common::wire::RULESET_CLOSED;
use serde_json::{Value, json};

use crate::answer::{Answer, Answers, DirectionAnswer};
use crate::compile::{Compiler, Instead};
use crate::desired::{CounterName, RuleSource};
use crate::model::{Cluster, Failsafe, Host, HostNetworkPods, ObjectKey, PolicyRef, Protocol};
use crate::sizes::{Sizes, TableSize};
use crate::testing::{compile, host_pod, host_policy, load, namespace, node, party, pod, policy};
use crate::turn;
use crate::why::Sight;

/// Two nodes; on `n` a pod and two in its network, on `m` one of each.
fn objects() -> Vec<Value> {
    let on = |mut pod: Value, node: &str| {
        pod["spec"]["nodeName"] = json!(node);
        pod
    };
    vec![
        namespace("a", json!({"team": "a"})),
        node("n", json!({"role": "edge"}), "172.18.0.2"),
        node("m", json!({"role": "core"}), "172.18.0.3"),
        on(pod("a", "here", json!({"app": "web"}), "10.0.0.1"), "n"),
        on(pod("a", "there", json!({"app": "web"}), "10.0.1.1"), "m"),
        host_pod("a", "proxy", json!({"app": "proxy"}), "n"),
        host_pod("a", "other", json!({"app": "other"}), "n"),
        host_pod("a", "far", json!({"app": "proxy"}), "m"),
    ]
}

fn with(policies: &[Value]) -> Cluster {
    let all: Vec<Value> = objects().into_iter().chain(policies.iter().cloned()).collect();
    let mut cluster = load(&all).cluster;
    cluster.host = Some(Host::new("n"));
    cluster
}

fn ask(cluster: &Cluster, from: &str, to: &str, traffic: &str) -> Answer {
    let desired = compile(cluster);
    let answers = Answers::new(cluster, &desired);
    answers.answer(&party(&answers, from), &party(&answers, to), traffic.parse().unwrap())
}

/// Reason and who decided.
fn said(side: Option<DirectionAnswer>) -> (Reason, Option<RuleSource>) {
    let side = side.expect("a policy can select this end");
    (side.reason, side.decided_by.map(|name| name.source))
}

fn to_nodes(spec: Value) -> Value {
    let mut whole = json!({"subject": {"nodes": {}}});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    host_policy("p", whole)
}

fn closed_both_ways(subject: Value) -> Value {
    host_policy("p", json!({"subject": subject, "policyTypes": ["Ingress", "Egress"]}))
}

fn isolation() -> RuleSource {
    RuleSource::HostIsolation("p".to_owned())
}

const OPEN: (Reason, Option<RuleSource>) = (Reason::NotIsolated, None);

#[test]
fn h1_nodes_select_the_node_and_pods_select_hostnetwork_pods_and_neither_a_pod_of_its_own_network() {
    let nodes = with(&[closed_both_ways(json!({"nodes": {}}))]);
    assert_eq!(
        said(ask(&nodes, "192.0.2.1", "node", "TCP/80").ingress),
        (Reason::Isolated, Some(isolation()))
    );
    assert_eq!(said(ask(&nodes, "192.0.2.1", "a/proxy", "TCP/80").ingress), OPEN);
    assert_eq!(said(ask(&nodes, "192.0.2.1", "a/here", "TCP/80").ingress), OPEN);
    let pods = with(&[closed_both_ways(json!({"pods": {"podSelector": {"matchLabels": {"app": "proxy"}}}}))]);
    assert_eq!(
        said(ask(&pods, "a/proxy", "192.0.2.1", "TCP/80").egress),
        (Reason::Isolated, Some(isolation()))
    );
    for other in ["node", "a/other", "a/here"] {
        assert_eq!(said(ask(&pods, other, "192.0.2.1", "TCP/80").egress), OPEN, "{other}");
    }
    // Another node's policies are its agent's.
    let cluster =
        with(&[closed_both_ways(json!({"nodes": {"nodeSelector": {"matchLabels": {"role": "core"}}}}))]);
    assert_eq!(said(ask(&cluster, "192.0.2.1", "node", "TCP/80").ingress), OPEN);
    assert!(
        !Answers::new(&cluster, &compile(&cluster))
            .directory()
            .hosts
            .contains_key(&ObjectKey::new("a", "far"))
    );
}

#[test]
fn h1_without_the_host_firewall_nothing_of_it_is_judged() {
    let mut cluster = with(&[closed_both_ways(json!({}))]);
    cluster.host = None;
    let desired = compile(&cluster);
    assert!(desired.endpoints.keys().all(|key| !key.is_node()), "{:?}", desired.endpoints);
    let answers = Answers::new(&cluster, &desired);
    assert_eq!(answers.hosts(crate::answer::Family::Ipv4), []);
    let answer = ask(&cluster, "192.0.2.1", "172.18.0.2", "TCP/80");
    assert_eq!((answer.egress, answer.ingress), (None, None));
}

#[test]
fn h2_named_ports_are_the_hostnetwork_pods_and_no_nodes() {
    let rule = json!([{"ports": [{"port": "web"}]}]);
    let all = json!({"ingress": rule});
    let cluster =
        with(&[to_nodes(all.clone()), host_policy("q", json!({"subject": {"pods": {}}, "ingress": rule}))]);
    let by_rule = (Reason::Rule, Some(RuleSource::HostPolicy("q".to_owned(), 0)));
    assert_eq!(said(ask(&cluster, "192.0.2.1", "a/proxy", "TCP/8080").ingress), by_rule);
    assert_eq!(
        said(ask(&cluster, "192.0.2.1", "node", "TCP/8080").ingress),
        (Reason::Isolated, Some(isolation()))
    );
}

#[test]
fn h3_an_unreadable_subject_isolates_the_node_and_its_hostnetwork_pods_and_allows_nothing() {
    let cluster = with(&[host_policy("p", json!({"ingress": [{}]}))]);
    for host in ["node", "a/proxy", "a/other"] {
        let answer = ask(&cluster, "192.0.2.1", host, "TCP/80");
        assert_eq!(said(answer.ingress), (Reason::InvalidClosed, Some(isolation())), "{host}");
        assert_eq!(said(ask(&cluster, host, "192.0.2.1", "TCP/80").egress), OPEN, "{host}");
        assert_eq!(said(ask(&cluster, "192.0.2.1", host, "TCP/22").ingress).0, Reason::Failsafe, "{host}");
    }
}

#[test]
fn h3_a_node_whose_object_nobody_has_shown_is_isolated_in_doubt() {
    let selector = json!({"nodes": {"nodeSelector": {"matchLabels": {"role": "core"}}}});
    let mut cluster = with(&[closed_both_ways(selector)]);
    assert_eq!(said(ask(&cluster, "192.0.2.1", "node", "TCP/80").ingress), OPEN);
    let Some(shown) = cluster.nodes.remove("n") else { panic!("n is there") };
    let proxy = cluster.pods.get_mut(&ObjectKey::new("a", "proxy")).unwrap();
    proxy.addresses = shown.addresses;
    assert_eq!(said(ask(&cluster, "192.0.2.1", "node", "TCP/80").ingress).0, Reason::Isolated);
}

#[test]
fn h4_node_peers_are_their_addresses_and_loopback_is_the_own_node() {
    let of = |role: &str| {
        let peer = json!({"nodes": {"nodeSelector": {"matchLabels": {"role": role}}}});
        with(&[host_policy("p", json!({"subject": {"pods": {}}, "ingress": [{"from": [peer]}]}))])
    };
    let allowed = |cluster: &Cluster, from: &str| {
        ask(cluster, from, "a/proxy", "TCP/80").ingress.unwrap().action == Action::Allow
    };
    let (edge, core) = (of("edge"), of("core"));
    for (from, is_edge, is_core) in [
        ("172.18.0.2", true, false),
        ("127.0.0.1", true, false),
        ("127.1.2.3", true, false),
        ("172.18.0.3", false, true),
        ("10.0.0.1", false, false),
        ("192.0.2.1", false, false),
    ] {
        assert_eq!((allowed(&edge, from), allowed(&core, from)), (is_edge, is_core), "{from}");
    }
    let net = |text: &str| text.parse::<ipnet::IpNet>().unwrap();
    let nets: BTreeSet<ipnet::IpNet> = edge.node_peers(&crate::model::Selector::default());
    let all = ["127.0.0.0/8", "172.18.0.2/32", "172.18.0.3/32", "::1/128"];
    assert_eq!(nets, all.into_iter().map(net).collect());
}

#[test]
fn h5_no_pod_peer_matches_a_hostnetwork_pod() {
    let anyone = json!([{"from": [{"namespaceSelector": {}}]}]);
    let cluster = with(&[host_policy("p", json!({"subject": {"pods": {}}, "ingress": anyone}))]);
    assert_eq!(said(ask(&cluster, "a/here", "a/proxy", "TCP/80").ingress).0, Reason::Rule);
    assert_eq!(said(ask(&cluster, "a/other", "a/proxy", "TCP/80").ingress).0, Reason::Isolated);
    assert_eq!(said(ask(&cluster, "172.18.0.3", "a/proxy", "TCP/80").ingress).0, Reason::Isolated);
}

#[test]
fn h6_networkpolicies_select_hostnetwork_pods_where_they_are_told_to() {
    let rules = json!([{"ports": [{"port": 81}]}]);
    let mut cluster = with(&[
        policy("a", "np", json!({"podSelector": {"matchLabels": {"app": "proxy"}}, "ingress": rules})),
        host_policy("p", json!({"subject": {"pods": {}}, "ingress": [{"ports": [{"port": 80}]}]})),
    ]);
    let first = (Reason::Rule, Some(RuleSource::HostPolicy("p".to_owned(), 0)));
    let second = (Reason::Rule, Some(RuleSource::NetworkPolicy(ObjectKey::new("a", "np"), 0)));
    assert_eq!(
        said(ask(&cluster, "192.0.2.1", "a/proxy", "TCP/81").ingress),
        (Reason::Isolated, Some(isolation()))
    );
    cluster.host.as_mut().unwrap().selects = HostNetworkPods::NetworkPolicy;
    assert_eq!(said(ask(&cluster, "192.0.2.1", "a/proxy", "TCP/80").ingress), first);
    assert_eq!(said(ask(&cluster, "192.0.2.1", "a/proxy", "TCP/81").ingress), second);
    assert_eq!(
        said(ask(&cluster, "192.0.2.1", "a/other", "TCP/81").ingress),
        (Reason::Isolated, Some(isolation()))
    );
    let denied = ask(&cluster, "192.0.2.1", "a/proxy", "TCP/82").ingress.unwrap();
    let both = [PolicyRef::Host("p".to_owned()), PolicyRef::Network(ObjectKey::new("a", "np"))];
    assert_eq!(denied.policies, both);
}

#[test]
fn h7_failsafe_ports_stay_open_behind_the_policies_rules() {
    let cluster = with(&[to_nodes(
        json!({"policyTypes": ["Ingress", "Egress"], "ingress": [{"ports": [{"port": 22}]}]}),
    )]);
    let failsafe = || (Reason::Failsafe, Some(RuleSource::Failsafe));
    let by_rule = (Reason::Rule, Some(RuleSource::HostPolicy("p".to_owned(), 0)));
    assert_eq!(said(ask(&cluster, "192.0.2.1", "node", "TCP/22").ingress), by_rule);
    for port in ["TCP/179", "TCP/2379", "TCP/2380", "TCP/6443", "TCP/10250", "TCP/10256", "UDP/68", "UDP/546"]
    {
        assert_eq!(said(ask(&cluster, "192.0.2.1", "node", port).ingress), failsafe(), "{port}");
    }
    for port in
        ["TCP/179", "TCP/2379", "TCP/2380", "TCP/6443", "TCP/53", "UDP/53", "UDP/67", "UDP/123", "UDP/547"]
    {
        assert_eq!(said(ask(&cluster, "node", "192.0.2.1", port).egress), failsafe(), "{port}");
    }
    for port in ["TCP/80", "TCP/2381", "UDP/22", "ICMP"] {
        assert_eq!(said(ask(&cluster, "192.0.2.1", "node", port).ingress).0, Reason::Isolated, "{port}");
    }
    assert_eq!(said(ask(&cluster, "node", "192.0.2.1", "TCP/10250").egress).0, Reason::Isolated);
}

#[test]
fn h7_the_lists_can_be_others_and_the_api_server_stays_in_reach() {
    let mut cluster = with(&[closed_both_ways(json!({"nodes": {}}))]);
    let host = cluster.host.as_mut().unwrap();
    host.failsafe = Failsafe { ingress: vec![(Protocol::Udp, 10, 12)], egress: Vec::new() };
    host.api_servers = [("192.0.2.9".parse().unwrap(), 8443)].into();
    let reason = |from: &str, to: &str, traffic: &str| {
        let answer = ask(&cluster, from, to, traffic);
        if from == "node" { said(answer.egress).0 } else { said(answer.ingress).0 }
    };
    assert_eq!(reason("192.0.2.1", "node", "UDP/11"), Reason::Failsafe);
    assert_eq!(reason("192.0.2.1", "node", "TCP/22"), Reason::Isolated);
    assert_eq!(reason("node", "192.0.2.9", "TCP/8443"), Reason::Failsafe);
    for (to, traffic) in [("192.0.2.9", "TCP/443"), ("192.0.2.9", "UDP/8443"), ("192.0.2.8", "TCP/8443")] {
        assert_eq!(reason("node", to, traffic), Reason::Isolated, "{to} {traffic}");
    }
}

#[test]
fn h8_the_node_reaches_its_own_pods_and_itself() {
    let deny = policy("a", "deny", json!({"podSelector": {}}));
    let cluster = with(&[
        closed_both_ways(json!({"nodes": {}})),
        deny,
        host_policy("q", json!({"subject": {"pods": {}}, "policyTypes": ["Ingress", "Egress"]})),
    ]);
    let own = || (Reason::OwnNode, Some(RuleSource::OwnNode));
    let here = ask(&cluster, "node", "a/here", "TCP/80");
    assert_eq!((said(here.egress), said(here.ingress)), (own(), (Reason::OwnNode, None)));
    let proxy = ask(&cluster, "node", "a/proxy", "TCP/80");
    assert_eq!((said(proxy.egress), said(proxy.ingress)), (own(), (Reason::OwnNode, None)));
    let there = ask(&cluster, "node", "a/there", "TCP/80");
    assert_eq!((said(there.egress).0, said(there.ingress).0), (Reason::Isolated, Reason::Isolated));
    for host in ["node", "a/proxy"] {
        let itself = ask(&cluster, host, host, "TCP/80");
        let to_self = || (Reason::SelfTraffic, None);
        assert_eq!((said(itself.egress), said(itself.ingress)), (to_self(), to_self()), "{host}");
    }
    // One hostNetwork pod to another is judged on both sides, and so is what it sends to the node.
    for to in ["a/other", "node"] {
        let answer = ask(&cluster, "a/proxy", to, "TCP/80");
        assert_eq!(
            (said(answer.egress).0, said(answer.ingress).0),
            (Reason::Isolated, Reason::Isolated),
            "{to}"
        );
    }
}

#[test]
fn h9_what_a_hostnetwork_pod_sends_to_a_pod_of_its_node_is_the_own_nodes_there() {
    let deny = policy("a", "deny", json!({"podSelector": {}}));
    let cluster = with(&[deny]);
    assert_eq!(said(ask(&cluster, "a/proxy", "a/here", "TCP/80").ingress), (Reason::OwnNode, None));
    assert_eq!(said(ask(&cluster, "a/proxy", "a/there", "TCP/80").ingress).0, Reason::Isolated);
}

#[test]
fn h10_what_only_audited_policies_isolate_passes() {
    let audit = host_policy("b", json!({"mode": "Audit", "subject": {"nodes": {}}}));
    let denied = ask(&with(std::slice::from_ref(&audit)), "192.0.2.1", "node", "TCP/80").ingress.unwrap();
    assert!(denied.audited && denied.action == Action::Deny, "{denied:?}");
    let both = with(&[audit, to_nodes(json!({}))]);
    let denied = ask(&both, "192.0.2.1", "node", "TCP/80").ingress.unwrap();
    assert_eq!((denied.audited, denied.decided_by.map(|name| name.source)), (false, Some(isolation())));
}

#[test]
fn h11_hostpolicies_go_before_networkpolicies_each_by_name() {
    let any = || json!([{}]);
    let mut cluster = with(&[
        policy("a", "np", json!({"podSelector": {}, "ingress": any()})),
        host_policy("z", json!({"subject": {"pods": {}}, "ingress": any()})),
        host_policy("y", json!({"subject": {"pods": {}}, "ingress": any()})),
    ]);
    cluster.host.as_mut().unwrap().selects = HostNetworkPods::NetworkPolicy;
    let mut order = Vec::new();
    for _ in 0..3 {
        let (_, source) = said(ask(&cluster, "192.0.2.1", "a/proxy", "TCP/80").ingress);
        match source.clone() {
            Some(RuleSource::HostPolicy(name, _)) => drop(cluster.host_policies.remove(&name)),
            Some(RuleSource::NetworkPolicy(key, _)) => drop(cluster.policies.remove(&key)),
            other => panic!("{other:?}"),
        }
        order.push(source.unwrap());
    }
    let host = |name: &str| RuleSource::HostPolicy(name.to_owned(), 0);
    assert_eq!(order, [host("y"), host("z"), RuleSource::NetworkPolicy(ObjectKey::new("a", "np"), 0)]);
}

#[test]
fn s34_a_hostnetwork_pod_that_nobody_can_judge_is_closed_but_for_what_always_passes() {
    let mut cluster = with(&[]);
    cluster.namespaces.clear();
    let undeclared = Some(RuleSource::UndeclaredNamespace("a".to_owned()));
    assert_eq!(said(ask(&cluster, "192.0.2.1", "a/proxy", "TCP/80").ingress), (Reason::Isolated, undeclared));
    assert_eq!(said(ask(&cluster, "192.0.2.1", "a/proxy", "TCP/22").ingress).0, Reason::Failsafe);
    let mut proxy = host_pod("a", "proxy", json!({"app": ["proxy"]}), "n");
    proxy["metadata"]["uid"] = json!("1");
    let cluster = with(&[proxy]);
    let closed = (Reason::InvalidClosed, Some(RuleSource::Closed));
    assert_eq!(said(ask(&cluster, "192.0.2.1", "a/proxy", "TCP/80").ingress), closed);
    assert_eq!(said(ask(&cluster, "a/proxy", "192.0.2.1", "UDP/53").egress).0, Reason::Failsafe);
}

/// A host's packets are translated before they are judged: a virtual address is an address like any other.
#[test]
fn a_virtual_address_waits_for_no_backend() {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "a", "name": "s"},
        "spec": {"clusterIP": "10.96.0.1"}});
    let cluster = with(&[service, closed_both_ways(json!({"nodes": {}}))]);
    assert_eq!(
        said(ask(&cluster, "node", "10.96.0.1", "TCP/80").egress),
        (Reason::Isolated, Some(isolation()))
    );
    assert_eq!(said(ask(&cluster, "node", "10.96.0.1", "UDP/53").egress).0, Reason::Failsafe);
}

fn sizes(size: &str) -> Sizes {
    [size.parse::<TableSize>().unwrap()].into_iter().collect()
}

#[test]
fn t17_a_host_without_room_keeps_what_always_passes() {
    let ports: Value = (0..200).map(|n| json!({"ports": [{"port": 1000 + 2 * n}]})).collect();
    let cluster = with(&[to_nodes(json!({"ingress": ports}))]);
    let mut compiler = Compiler::with_sizes(0, sizes("rules=60"));
    let node = ObjectKey::of_node("n");
    let fitted = compiler.compile_what_fits(&cluster, &cluster.subjects(), &BTreeMap::new()).unwrap();
    let held: Vec<_> = fitted.held.iter().map(|one| (one.pod.clone(), one.instead)).collect();
    assert_eq!(held, [(node.clone(), Instead::Closed)]);
    assert!(u32::from(fitted.desired.endpoints[&node].ingress) > RULESET_CLOSED);
    assert!(fitted.problems[0].to_string().starts_with("Node n: "), "{:?}", fitted.problems);
    let answers = Answers::new(&cluster, &fitted.desired);
    let ingress = |traffic: &str| {
        let (from, to) = (party(&answers, "192.0.2.1"), party(&answers, "node"));
        said(answers.answer(&from, &to, traffic.parse().unwrap()).ingress)
    };
    assert_eq!(ingress("TCP/22").0, Reason::Failsafe);
    assert_eq!(ingress("TCP/1000"), (Reason::InvalidClosed, Some(RuleSource::Closed)));
}

#[test]
fn t17_tenants_do_not_hold_the_hosts_rules_back() {
    // Each of these namespaces has less than its share; together they fill the table.
    let mut objects = vec![to_nodes(json!({"ingress": [{"ports": [{"port": 80}]}]}))];
    for n in 0..6 {
        let name = format!("tenant-{n}");
        objects.push(namespace(&name, json!({})));
        objects.push(pod(&name, "p", json!({}), &format!("10.9.0.{n}")));
        let rules: Value = (0..8).map(|p| json!({"ports": [{"port": 1000 * (n + 1) + 2 * p}]})).collect();
        objects.push(policy(&name, "np", json!({"podSelector": {}, "ingress": rules})));
    }
    let cluster = with(&objects);
    let mut compiler = Compiler::with_sizes(0, sizes("rules=120"));
    let fitted = compiler.compile_what_fits(&cluster, &cluster.subjects(), &BTreeMap::new()).unwrap();
    assert!(!fitted.held.is_empty(), "it does not fill the table");
    assert!(fitted.held.iter().all(|one| one.pod.namespace.starts_with("tenant-")), "{:?}", fitted.held);
}

fn relabel(cluster: &mut Cluster, pod: &str) {
    let labels = &mut cluster.pods.get_mut(&ObjectKey::new("a", pod)).unwrap().labels;
    labels.insert("x".to_owned(), "y".to_owned());
}

#[test]
fn a_change_of_what_hosts_are_compiled_from_takes_the_whole_way() {
    let before = with(&[
        host_policy("p", json!({"subject": {"pods": {"namespaceSelector": {"matchLabels": {"team": "a"}}}}})),
        closed_both_ways(json!({"nodes": {}})),
    ]);
    let follows = |change: &dyn Fn(&mut Cluster)| {
        let mut after = before.clone();
        change(&mut after);
        let mut compiler = Compiler::new(0);
        let subjects: BTreeSet<ObjectKey> = before.subjects().into_iter().collect();
        let pods = subjects.into_iter().filter(|key| key.name != "there" && key.name != "here").collect();
        let (mut tables, _) = compiler.compile(&before, &pods).unwrap();
        compiler.follow(&before, &after, &pods, &mut tables).is_some()
    };
    assert!(follows(&|c| relabel(c, "there")), "another node's pod");
    assert!(!follows(&|c| relabel(c, "here")), "an own pod");
    assert!(!follows(&|c| c.host_policies.clear()));
    assert!(!follows(&|c| c.host.as_mut().unwrap().selects = HostNetworkPods::NetworkPolicy));
    assert!(!follows(&|c| drop(c.nodes.remove("m"))));
    assert!(!follows(&|c| drop(c.namespaces.get_mut("a").unwrap().labels.remove("team"))));
}

#[test]
fn why_a_rule_does_not_match_and_what_turns_a_verdict_is_told_of_hosts() {
    let peer = json!({"nodes": {"nodeSelector": {"matchLabels": {"role": "core"}}}});
    let cluster = with(&[to_nodes(json!({"ingress": [{"from": [peer], "ports": [{"port": 80}]}]}))]);
    let desired = compile(&cluster);
    let answers = Answers::new(&cluster, &desired);
    let why = |remote: &str| {
        let sight = Sight {
            cluster: &cluster,
            directory: answers.directory(),
            subject: &ObjectKey::of_node("n"),
            direction: portcullis_common::event::Direction::Ingress,
            remote: remote.parse().unwrap(),
            traffic: "TCP/80".parse().unwrap(),
        };
        let [finding] = <[_; 1]>::try_from(sight.findings()).unwrap();
        assert_eq!(finding.policy, PolicyRef::Host("p".to_owned()));
        finding.why.map(|why| why.text)
    };
    assert_eq!(why("172.18.0.3"), None);
    assert_eq!(why("127.0.0.1").unwrap(), "wants a node with role=core, and it is one with role=edge");
    assert_eq!(why("192.0.2.1").unwrap(), "wants a node, and the other end is no node");

    let (from, to) = (party(&answers, "192.0.2.1"), party(&answers, "node"));
    for traffic in ["TCP/81", "TCP/80"] {
        let change = turn::change(&answers, &from, &to, traffic.parse().unwrap(), &[]);
        let after = crate::change::apply(&cluster, &change);
        assert_eq!(change.edits[0].object(), "HostPolicy p");
        assert_eq!(ask(&after, "192.0.2.1", "node", traffic).action(), Action::Allow, "{change:?}");
    }
    let open = with(&[]);
    let desired = compile(&open);
    let answers = Answers::new(&open, &desired);
    for (from, to, object) in [
        ("192.0.2.1", "node", "HostPolicy deny-to-n"),
        ("a/proxy", "192.0.2.1", "HostPolicy deny-from-proxy"),
    ] {
        let (one, two) = (party(&answers, from), party(&answers, to));
        let change = turn::change(&answers, &one, &two, "TCP/80".parse().unwrap(), &[]);
        assert_eq!(change.edits[0].object(), object);
        assert_eq!(ask(&crate::change::apply(&open, &change), from, to, "TCP/80").action(), Action::Deny);
    }
    let failsafe = turn::change(
        &answers,
        &party(&answers, "node"),
        &party(&answers, "node"),
        "TCP/80".parse().unwrap(),
        &[],
    );
    assert!(failsafe.edits.is_empty() && failsafe.text.is_some());
}

#[test]
fn a_counter_is_one_rules() {
    let cluster =
        with(&[to_nodes(json!({"ingress": [{"ports": [{"port": 80}]}, {"ports": [{"port": 81}]}]}))]);
    let desired = compile(&cluster);
    let names: BTreeSet<&CounterName> = desired.counters.values().collect();
    assert_eq!(names.len(), desired.counters.len());
    let of = |index| RuleSource::HostPolicy("p".to_owned(), index);
    assert!([of(0), of(1)].iter().all(|source| names.iter().any(|name| name.source == *source)));
}
