//! Where the tables have no room: what is in force stays, new pods are closed, others go on, and it recovers (T17).

use std::time::Instant;

use serde_json::{Value, json};

use portcullis_common::wire::RULESET_CLOSED;

use super::*;
use crate::manifest::{self, ManifestObject, Options, ParsedFile};
use crate::sizes::TableSize;

fn cluster_of(manifests: &[Value]) -> Cluster {
    let objects = manifests.iter().map(|value| ManifestObject { line: 1, value: value.clone() }).collect();
    let file = ParsedFile { path: "case.json".to_owned(), objects };
    manifest::load(&[file], &Options { pod_cidrs: Vec::new() }).cluster
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn pod(namespace: &str, name: &str, last: u8) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
        "status": {"podIPs": [{"ip": format!("10.0.0.{last}")}]},
    })
}

/// A policy for the pod of the same name.
fn policy(namespace: &str, pod: &str, ingress: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": pod},
        "spec": {"podSelector": {"matchLabels": {"app": pod}}, "ingress": ingress},
    })
}

fn blocks(count: u32, first: u32) -> Value {
    (0..count)
        .map(|n| json!({"ipBlock": {"cidr": format!("{}/32", std::net::Ipv4Addr::from(first + 2 * n))}}))
        .collect()
}

fn single_ports(count: u32) -> Value {
    (0..count).map(|n| json!({"port": 1 + 2 * n})).collect()
}

fn sizes(size: &str) -> Sizes {
    [size.parse::<TableSize>().unwrap()].into_iter().collect()
}

/// A compiler, and what it brought into force.
struct Node {
    compiler: Compiler,
    fitted: Fitted,
}

impl Node {
    fn new(sizes: Sizes) -> Self {
        Self { compiler: Compiler::with_sizes(0, sizes), fitted: Fitted::default() }
    }

    /// Compiles and settles as the reconciler does.
    fn apply(&mut self, manifests: &[Value]) -> Result<(), CompileError> {
        let cluster = cluster_of(manifests);
        for _ in 0..6 {
            let in_force = self.fitted.desired.endpoints.clone();
            self.fitted = self.compiler.compile_what_fits(&cluster, cluster.pods.keys(), &in_force)?;
            if !self.compiler.has_unused() {
                return Ok(());
            }
            self.compiler.sweep();
        }
        panic!("it does not settle");
    }

    fn ingress(&self, pod: &str) -> u32 {
        let (namespace, name) = pod.split_once('/').unwrap();
        u32::from(self.fitted.desired.endpoints[&ObjectKey::new(namespace, name)].ingress)
    }

    fn held(&self) -> Vec<(String, Table, Instead)> {
        self.fitted.held.iter().map(|one| (one.pod.to_string(), one.table, one.instead)).collect()
    }
}

/// For each table a size at which one pod's small policy has room, and the rules of another's that have none.
fn filling() -> Vec<(&'static str, Table, Value)> {
    let cidrs = |count| json!([{"from": blocks(count, 0x6400_0000)}]);
    let ports = |count| json!([{"ports": single_ports(count)}]);
    let rules = |count: u32| -> Value { (0..count).map(|n| json!({"ports": [{"port": 100 + n}]})).collect() };
    vec![
        ("rules=30", Table::Rules, rules(6)),
        ("rows=30", Table::Rows, rules(8)),
        ("port-ranges=96", Table::PortRanges, ports(12)),
        ("peer-rows=30", Table::PeerRows, cidrs(8)),
        ("prefixes=8", Table::Prefixes, cidrs(6)),
        ("counters=9", Table::Counters, rules(6)),
    ]
}

#[test]
fn t17_each_table_when_full_keeps_what_is_in_force_closes_the_new_and_recovers() {
    for (size, table, giant) in filling() {
        let mut node = Node::new(sizes(size));
        let small = json!([{"ports": [{"port": 80}]}]);
        let mut manifests = vec![namespace("shop"), pod("shop", "old", 1), policy("shop", "old", &small)];
        node.apply(&manifests).unwrap_or_else(|error| panic!("{size}: {error}"));
        let in_force = node.ingress("shop/old");
        assert!(in_force > RULESET_CLOSED, "{size}");
        assert_eq!(node.held(), [], "{size}");

        manifests.extend([pod("shop", "new", 2), policy("shop", "new", &giant)]);
        node.apply(&manifests).unwrap();
        assert_eq!(node.ingress("shop/old"), in_force, "{size}");
        assert!(node.fitted.desired.rulesets.contains_key(&in_force), "{size}");
        assert_eq!(node.ingress("shop/new"), RULESET_CLOSED, "{size}");
        assert_eq!(node.held(), [("shop/new".to_owned(), table, Instead::Closed)], "{size}");
        let [problem] = &node.fitted.problems[..] else { panic!("{size}: {:?}", node.fitted.problems) };
        let text = problem.to_string();
        assert!(
            text.starts_with(&format!("Pod shop/new: {NO_ROOM} {table} for its ingress rules")),
            "{text}"
        );
        assert!(text.contains("of NetworkPolicy shop/new"), "{text}");
        assert!(text.contains(&format!("--map-size {table}=N")), "{text}");

        manifests.pop();
        manifests.push(policy("shop", "new", &small));
        node.apply(&manifests).unwrap();
        assert!(node.ingress("shop/new") > RULESET_CLOSED, "{size}: it recovers");
        assert_eq!((node.held(), node.fitted.problems.len()), (Vec::new(), 0), "{size}");
    }
}

#[test]
fn t17_a_change_without_room_keeps_the_last_complete_rules() {
    for (size, table, giant) in filling() {
        let mut node = Node::new(sizes(size));
        let small = json!([{"ports": [{"port": 80}]}]);
        let objects = |rules| [namespace("shop"), pod("shop", "web", 1), policy("shop", "web", rules)];
        node.apply(&objects(&small)).unwrap();
        let (in_force, tables) = (node.ingress("shop/web"), node.fitted.desired.clone());
        for _ in 0..3 {
            node.apply(&objects(&giant)).unwrap();
            assert_eq!(node.ingress("shop/web"), in_force, "{size}");
            assert_eq!(node.held(), [("shop/web".to_owned(), table, Instead::Last)], "{size}");
            assert_eq!(node.fitted.desired, tables, "{size}: nothing changes");
        }
        node.apply(&objects(&json!([{"ports": [{"port": 81}]}]))).unwrap();
        assert_ne!(node.ingress("shop/web"), in_force, "{size}: it recovers");
        assert_eq!(node.held(), [], "{size}");
    }
}

#[test]
fn t17_a_ruleset_without_a_number_is_closed_until_another_goes() {
    // Four numbers in the first bank, of which two are reserved.
    let mut node = Node::new(sizes("rulesets=12"));
    let rules = json!([{"ports": [{"port": 80}]}]);
    let with = |pods: &[&str]| -> Vec<Value> {
        let pods =
            (1u8..).zip(pods).flat_map(|(n, name)| [pod("shop", name, n), policy("shop", name, &rules)]);
        [namespace("shop")].into_iter().chain(pods).collect()
    };
    node.apply(&with(&["b", "c"])).unwrap();
    let in_force = (node.ingress("shop/b"), node.ingress("shop/c"));
    node.apply(&with(&["b", "c", "a"])).unwrap();
    assert_eq!((node.ingress("shop/b"), node.ingress("shop/c")), in_force);
    assert_eq!(node.held(), [("shop/a".to_owned(), Table::Rulesets, Instead::Closed)]);
    node.apply(&with(&["b", "a"])).unwrap();
    assert_eq!(node.held(), []);
    assert!(node.ingress("shop/a") > RULESET_CLOSED);
}

#[test]
fn t17_addresses_without_room_change_nothing_of_the_node() {
    let mut node = Node::new(sizes("peers=2"));
    let everyone = json!([{"from": [{"namespaceSelector": {}}]}]);
    let mut manifests =
        vec![namespace("shop"), policy("shop", "web", &everyone), pod("shop", "web", 1), pod("shop", "b", 2)];
    node.apply(&manifests).unwrap();
    let before = node.fitted.desired.clone();

    manifests.push(pod("shop", "c", 3));
    let error = node.apply(&manifests).unwrap_err();
    assert_eq!(error, CompileError::Full { table: Table::Peers, capacity: 2 });
    assert!(error.to_string().contains("--map-size peers=N"), "{error}");
    assert_eq!(node.fitted.desired, before);
    assert!(!node.compiler.has_unused(), "what is in force stays in use");

    manifests.pop();
    node.apply(&manifests).unwrap();
    assert_eq!(node.fitted.desired, before);
}

#[test]
fn t17_a_new_policy_without_room_for_its_addresses_is_held_alone() {
    let mut node = Node::new(sizes("peers=1"));
    let one = json!([{"from": [{"podSelector": {"matchLabels": {"app": "a"}}}]}]);
    let all = json!([{"from": [{"podSelector": {}}]}]);
    let mut manifests =
        vec![namespace("shop"), pod("shop", "a", 1), pod("shop", "b", 2), policy("shop", "a", &one)];
    node.apply(&manifests).unwrap();
    manifests.push(policy("shop", "b", &all));
    node.apply(&manifests).unwrap();
    assert_eq!(node.held(), [("shop/b".to_owned(), Table::Peers, Instead::Closed)]);
    assert!(node.ingress("shop/a") > RULESET_CLOSED);
}

/// The same at every start: the giants are left out, whatever the order of names.
#[test]
fn one_tenant_does_not_fill_the_tables_for_others() {
    for evil in ["a-evil", "z-evil"] {
        let mut node = Node::new(Sizes::default());
        let giant = json!([{"ports": single_ports(32_000)}]);
        let small = json!([{"from": [{"podSelector": {}}], "ports": [{"port": 80}]}]);
        let mut manifests = vec![namespace(evil), namespace("good")];
        for n in 1..=3u8 {
            let name = format!("giant-{n}");
            manifests.extend([pod(evil, &name, n), policy(evil, &name, &giant)]);
        }
        manifests.extend([pod("good", "web", 9), policy("good", "web", &small)]);
        node.apply(&manifests).unwrap();
        assert!(node.ingress("good/web") > RULESET_CLOSED);
        let held = node.held();
        assert_eq!(held.len(), 2, "{held:?}");
        assert!(held.iter().all(|(pod, table, _)| pod.starts_with(evil) && *table == Table::PortRanges));
        let text = node.fitted.problems[0].to_string();
        assert!(text.contains(&format!("namespace {evil} has most of it, 65536")), "{text}");

        // A neighbour's pod that comes later finds room too, and what is in force stays.
        let kept = node.fitted.desired.endpoints.clone();
        manifests.extend([pod("good", "late", 10), policy("good", "late", &small)]);
        node.apply(&manifests).unwrap();
        assert!(node.ingress("good/late") > RULESET_CLOSED);
        for (pod, rulesets) in kept {
            assert_eq!(node.fitted.desired.endpoints[&pod], rulesets, "{pod}");
        }
    }
}

/// One tenant's blocks make a class each, and a row each for everyone who lets the whole world in.
#[test]
fn classes_times_rulesets_are_bounded_and_the_many_blocks_are_left_out() {
    let mut node = Node::new(sizes("peer-rows=300"));
    let world = json!([{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]);
    let mut manifests = vec![namespace("evil"), namespace("good"), pod("evil", "e", 1)];
    manifests.push(policy("evil", "e", &json!([{"from": blocks(40, 0x6400_0000)}])));
    for n in 2..=9u8 {
        let name = format!("p{n}");
        manifests.extend([pod("good", &name, n), policy("good", &name, &world)]);
    }
    node.apply(&manifests).unwrap();
    assert_eq!(node.held(), [("evil/e".to_owned(), Table::PeerRows, Instead::Closed)]);
    assert!((2..=9).all(|n| node.ingress(&format!("good/p{n}")) > RULESET_CLOSED));
}

#[test]
fn rules_in_force_that_outgrow_the_table_are_left_out_from_the_largest_on() {
    // Two pods that differ for the labels that policies ask for make a class each, and each ruleset that matches
    // both has a row for each.
    let mut node = Node::new(sizes("peer-rows=12"));
    let from = |apps: &[&str]| -> Value {
        let peers: Value = apps.iter().map(|a| json!({"podSelector": {"matchLabels": {"app": a}}})).collect();
        json!([{"from": peers}])
    };
    let base = vec![
        namespace("shop"),
        namespace("other"),
        pod("shop", "big", 1),
        pod("other", "small", 2),
        policy("shop", "big", &from(&["a", "b", "c", "d"])),
        policy("other", "small", &from(&["a"])),
        pod("other", "a", 3),
        pod("shop", "a", 4),
    ];
    node.apply(&base).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(node.held(), []);
    let grown: Vec<Value> =
        base.into_iter().chain([pod("shop", "b", 5), pod("shop", "c", 6), pod("shop", "d", 7)]).collect();
    node.apply(&grown).unwrap();
    assert_eq!(node.held(), [("shop/big".to_owned(), Table::PeerRows, Instead::Closed)]);
    assert!(node.ingress("other/small") > RULESET_CLOSED);
}

#[test]
fn who_only_asks_gets_all_or_an_error() {
    let manifests = [
        namespace("shop"),
        pod("shop", "web", 1),
        policy("shop", "web", &json!([{"ports": single_ports(12)}])),
    ];
    let cluster = cluster_of(&manifests);
    let mut compiler = Compiler::with_sizes(0, sizes("port-ranges=48"));
    let error = compiler.compile(&cluster, cluster.pods.keys()).unwrap_err();
    assert_eq!(error, CompileError::Full { table: Table::PortRanges, capacity: 16 });
    assert_eq!(
        error.to_string(),
        "the table port-ranges is full (16 entries): start the agent with a larger --map-size port-ranges=N, or \
         split the load over more nodes"
    );
}

/// Not a measurement that can fail by time; `cargo test -- --nocapture` prints it.
#[test]
fn many_blocks_compile() {
    for count in [1_000, 10_000, 30_000] {
        let rules = json!([{"from": blocks(count, 0x6400_0000)}]);
        let cluster = cluster_of(&[namespace("shop"), pod("shop", "web", 1), policy("shop", "web", &rules)]);
        let started = Instant::now();
        let mut compiler = Compiler::new(0);
        let (desired, _) = compiler.compile(&cluster, cluster.pods.keys()).unwrap();
        println!("{count} ipBlocks: {:.3} s", started.elapsed().as_secs_f64());
        assert_eq!(desired.prefixes.len(), count as usize);
    }
}

#[test]
fn blocks_that_lie_in_each_other_are_a_share_of_their_namespace_too() {
    // Each except is held by every block but its own: 2,040 blocks are 4 million places, though 2,041 prefixes.
    let wide = |count: u32, first: u32| -> Value {
        let except = |n: u32| format!("{}/24", std::net::Ipv4Addr::from(0x0b00_0000 + ((first + n) << 8)));
        (0..count).map(|n| json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": [except(n)]}})).collect()
    };
    let mut node = Node::new(Sizes::default());
    let mut manifests = vec![namespace("evil"), namespace("good"), pod("good", "a", 1)];
    // In one ruleset, and spread over many.
    manifests.extend([pod("evil", "one", 2), policy("evil", "one", &json!([{"from": wide(2_040, 0)}]))]);
    for n in 0..8 {
        let name = format!("many-{n}");
        manifests.push(pod("evil", &name, 10 + n));
        manifests.push(policy("evil", &name, &json!([{"from": wide(255, 4_000 + u32::from(n) * 255)}])));
    }
    node.apply(&manifests).unwrap();
    assert_eq!(node.ingress("evil/one"), RULESET_CLOSED);
    let held = node.held();
    assert!(!held.is_empty() && held.iter().all(|(pod, ..)| pod.starts_with("evil/")), "{held:?}");

    manifests.push(policy("good", "a", &json!([{"from": blocks(30, 0x6400_0000)}])));
    node.apply(&manifests).unwrap();
    assert!(node.ingress("good/a") > RULESET_CLOSED);
    assert!(node.held().iter().all(|(pod, ..)| pod.starts_with("evil/")), "{:?}", node.held());
}

#[test]
fn peer_rows_are_shared_by_what_rulesets_really_take() {
    // A ruleset that asks for everything has a row for each prefix of anybody: 3 x 22 rows of the 100 of a bank.
    let mut node = Node::new(sizes("peer-rows=300"));
    let mut manifests = vec![namespace("evil"), namespace("good"), pod("good", "a", 1)];
    for n in 0..3u8 {
        let name = format!("many-{n}");
        let Value::Array(mut peers) = blocks(7, 0x0b00_0000 + u32::from(n) * 64) else { unreachable!() };
        peers.push(json!({"ipBlock": {"cidr": "0.0.0.0/0"}}));
        manifests.extend([pod("evil", &name, 10 + n), policy("evil", &name, &json!([{"from": peers}]))]);
    }
    node.apply(&manifests).unwrap();
    let held = node.held();
    assert!(!held.is_empty(), "one namespace has more than half");
    assert!(held.iter().all(|(_, table, _)| *table == Table::PeerRows), "{held:?}");
    assert!(node.fitted.desired.peer_rows.len() <= 50, "{}", node.fitted.desired.peer_rows.len());

    manifests.push(policy("good", "a", &json!([{"from": blocks(10, 0x6400_0000)}])));
    node.apply(&manifests).unwrap();
    assert!(node.ingress("good/a") > RULESET_CLOSED);
    assert!(node.held().iter().all(|(pod, ..)| pod.starts_with("evil/")), "{:?}", node.held());
}

#[test]
fn t21_a_pods_address_that_a_service_claims_may_be_translated() {
    let mut node = Node::new(Sizes::default());
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "evil", "name": "claims"},
        "spec": {"clusterIPs": ["10.96.0.9"], "externalIPs": ["10.0.0.1"]},
    });
    let to_a = json!([{"from": [{"podSelector": {"matchLabels": {"app": "a"}}}]}]);
    let mut manifests = vec![
        namespace("good"),
        namespace("evil"),
        pod("good", "a", 1),
        pod("good", "b", 2),
        policy("good", "b", &to_a),
    ];
    let claimed = |node: &Node| {
        let word = node.fitted.desired.peers.get(&crate::desired::wire_addr("10.0.0.1".parse().unwrap()));
        word.unwrap().class & CLASS_CLAIMED != 0
    };
    node.apply(&manifests).unwrap();
    assert!(!claimed(&node));
    manifests.push(service);
    node.apply(&manifests).unwrap();
    assert!(claimed(&node));
}
