//! The host firewall, by real connections: two hostNetwork pods, a process of the node, a pod on the node, one elsewhere, another
//! node and the outside, each to each, TCP and UDP, IPv4 and IPv6, over loopback too, against the oracle.
//! `PORTCULLIS_HOST_SETS` sets how many random sets of policies are tried, [`SETS`] else; `PORTCULLIS_SEED` the first's seed.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use portcullis_lab::Hook;
use portcullis_oracle::hosts::{End, Firewall, Why};
use portcullis_oracle::rng::SplitMix64;
use portcullis_oracle::{Protocol as Transport, Traffic, Verdict, World};
use portcullis_policy::model::Protocol;
use portcullis_tests::hosts::{At, NODE, Party, Place, Stage};
use portcullis_tests::privilege::{is_root, number};
use serde_json::{Value, json};

const SETS: u64 = 30;
const SEED: u64 = 1;
/// What always passes on this stage: ports that policies speak of, too.
const FAILSAFE_IN: (Transport, u16) = (Transport::Tcp, 7021);
const FAILSAFE_OUT: (Transport, u16) = (Transport::Udp, 5001);

fn host_policy(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "HostPolicy", "metadata": {"name": name}, "spec": spec})
}

#[test]
fn two_pods_and_the_node_obey_their_own_policies() {
    if !is_root("two_pods_and_the_node_obey_their_own_policies") {
        return;
    }
    for hook in [Hook::Tcx, Hook::Clsact] {
        let mut stage = Stage::up(hook, &[]);
        // Nothing isolates: everything passes.
        stage.matrix(|_, _| true).check_all();
        // X takes nothing.
        let of = |app: &str| json!({"pods": {"podSelector": {"matchLabels": {"app": app}}}});
        stage.apply(&[host_policy("x-in", &json!({"subject": of("x"), "policyTypes": ["Ingress"]}))]);
        stage.matrix(|from, at| at.of != Party::X || matches!(from, Party::X | Party::Host)).check_all();
        // Y sends nothing, the node takes from the pod here alone.
        let from_p = json!([{"from": [{"podSelector": {"matchLabels": {"app": "p"}}}]}]);
        stage.apply(&[
            host_policy("y-out", &json!({"subject": of("y"), "policyTypes": ["Egress"]})),
            host_policy(
                "node-in",
                &json!({"subject": {"nodes": {}}, "policyTypes": ["Ingress"], "ingress": from_p}),
            ),
        ]);
        stage
            .matrix(|from, at| match (from, at.of) {
                (Party::Y, to) => to == Party::Y,
                (from, Party::Host) => matches!(from, Party::Host | Party::Pod),
                _ => true,
            })
            .check_all();
        stage.down();
    }
}

#[test]
fn random_policies_of_hosts_match_the_oracle() {
    if !is_root("random_policies_of_hosts_match_the_oracle") {
        return;
    }
    let sets = number("PORTCULLIS_HOST_SETS", SETS);
    let seed = number("PORTCULLIS_SEED", SEED);
    let arguments =
        ["--host-network-pods=network-policy", "--failsafe-in=tcp/7021", "--failsafe-out=udp/5001"];
    let mut stage = Stage::up(Hook::Tcx, &arguments);
    let span = |(protocol, port): (Transport, u16)| vec![(protocol, port, port)];
    let firewall = Firewall {
        network_policies: true,
        failsafe_ingress: span(FAILSAFE_IN),
        failsafe_egress: span(FAILSAFE_OUT),
        ..Firewall::new(NODE)
    };
    let (mut asked, mut answered, mut wrong) = (0, 0, Vec::new());
    for set in seed..seed + sets {
        let policies = policies(&mut SplitMix64::new(set));
        stage.apply(&policies);
        let world = World::new(&stage.objects(&policies));
        let score = stage.matrix(|from, at| is_allowed(&stage, &world, &firewall, from, at));
        asked += score.asked;
        answered += score.answered;
        wrong.extend(score.wrong.iter().map(|one| format!("set {set}: {one}")));
        if !wrong.is_empty() {
            eprintln!("{}", serde_json::to_string_pretty(&policies).unwrap());
            break;
        }
    }
    assert!(wrong.is_empty(), "{} of {asked}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(answered * 10 > asked && answered * 10 < asked * 9, "{answered} of {asked} were answered");
    println!("{sets} sets of policies from seed {seed}: {asked} calls, {answered} answered, 0 wrong");
    stage.down();
}

/// What the oracle says of both ends; what is only audited passes.
fn is_allowed(stage: &Stage, world: &World, firewall: &Firewall, from: Party, at: At) -> bool {
    let protocol = match at.protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
        Protocol::Sctp => Transport::Sctp,
    };
    // By the loopback device both ends have its address.
    let place = if from.is_here() && at.of.is_here() { at.place } else { Place::Address };
    let end = |party: Party| {
        let address = stage.address(party, place, at.family);
        match party {
            Party::X => End::HostPod("apps/x".to_owned(), address),
            Party::Y => End::HostPod("apps/y".to_owned(), address),
            Party::Host => End::Node(address),
            Party::Pod => End::Pod("apps/p".to_owned(), address),
            Party::RemotePod => End::Pod("apps/r".to_owned(), address),
            Party::RemoteNode | Party::Outside => End::Address(address),
        }
    };
    let (egress, ingress) =
        world.host_flow(firewall, &end(from), &end(at.of), Traffic::To(protocol, at.port));
    // What a pod elsewhere sends and gets is judged there.
    let egress = egress.filter(|_| from != Party::RemotePod);
    let ingress = ingress.filter(|_| at.of != Party::RemotePod);
    let passes =
        |why: Why| why.verdict() == Verdict::Allow || matches!(why, Why::Isolated { is_audited: true, .. });
    [egress, ingress].into_iter().flatten().all(passes)
}

fn policies(rng: &mut SplitMix64) -> Vec<Value> {
    let mut all: Vec<Value> = (0..rng.between(1, 4))
        .map(|number| {
            let subject = match rng.below(6) {
                0 | 1 => json!({"nodes": {"nodeSelector": {"matchLabels": {"role": rng.pick(&["n1", "n1", "n2"])}}}}),
                2 => json!({"nodes": {}}),
                3 => json!({"pods": {"podSelector": {"matchLabels": {"app": "x"}}}}),
                4 => json!({"pods": {"podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["x"]}]}}}),
                _ => json!({"pods": {"namespaceSelector": {"matchLabels": {"team": rng.pick(&["a", "a", "b"])}}}}),
            };
            let mut spec = spec(rng, true);
            spec["subject"] = subject;
            if rng.chance(80) {
                spec["mode"] = json!("Audit");
            }
            host_policy(&format!("h{number}"), &spec)
        })
        .collect();
    for number in 0..rng.between(0, 2) {
        let mut spec = spec(rng, false);
        spec["podSelector"] = match rng.below(3) {
            0 => json!({}),
            1 => json!({"matchLabels": {"app": rng.pick(&["x", "y"])}}),
            _ => json!({"matchLabels": {"app": "p"}}),
        };
        all.push(json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": format!("n{number}"), "namespace": "apps"}, "spec": spec}));
    }
    all
}

fn spec(rng: &mut SplitMix64, with_nodes: bool) -> Value {
    let types = *rng.pick(&[&["Ingress"][..], &["Egress"], &["Ingress", "Egress"]]);
    let mut spec = json!({"policyTypes": types});
    for (list, peers) in [("ingress", "from"), ("egress", "to")] {
        let rules: Vec<Value> = (0..rng.between(0, 3))
            .map(|_| {
                let mut rule = json!({});
                if rng.chance(850) {
                    rule[peers] = (0..rng.between(1, 2)).map(|_| peer(rng, with_nodes)).collect();
                }
                if rng.chance(600) {
                    rule["ports"] = (0..rng.between(1, 2)).map(|_| port(rng)).collect();
                }
                rule
            })
            .collect();
        spec[list] = rules.into();
    }
    spec
}

fn peer(rng: &mut SplitMix64, with_nodes: bool) -> Value {
    let block = |cidr: &str| json!({"ipBlock": {"cidr": cidr}});
    match rng.below(if with_nodes { 12 } else { 9 }) {
        0 => json!({"podSelector": {}}),
        1 => json!({"podSelector": {"matchLabels": {"app": rng.pick(&["p", "r", "x"])}}}),
        2 => json!({"namespaceSelector": {"matchLabels": {"team": rng.pick(&["a", "b"])}}}),
        3 => json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["192.0.2.0/24", "127.0.0.0/8"]}}),
        4 => json!({"ipBlock": {"cidr": "::/0", "except": ["fd60::/64"]}}),
        5 => block(rng.pick::<&str>(&["127.0.0.0/8", "::1/128", "192.168.0.0/16", "fd00::/8"])),
        6 => block(rng.pick::<&str>(&["192.0.2.1/32", "2001:db8::/32"])),
        7 => block("0.0.0.0/0"),
        8 => block("::/0"),
        _ => json!({"nodes": {"nodeSelector": {"matchLabels": {"role": rng.pick(&["n1", "n2"])}}}}),
    }
}

fn port(rng: &mut SplitMix64) -> Value {
    let protocol = rng.pick(&["TCP", "UDP"]);
    match rng.below(4) {
        0 => json!({"protocol": protocol}),
        1 => json!({"protocol": protocol, "port": 7000, "endPort": rng.pick(&[7000, 7011, 7020])}),
        2 => json!({"protocol": protocol, "port": "main"}),
        _ => json!({"protocol": protocol, "port": rng.pick(&[7000, 7001, 7010, 7011, 7020, 5000])}),
    }
}
