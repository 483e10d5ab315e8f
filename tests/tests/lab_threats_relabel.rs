//! T25: packets judged while their tables change. Labels, policies, blocks and pods change as fast as the agent's own
//! reconciler follows, in a lab's node, while the attached programs judge at full rate on other threads: flows that
//! every version allows and flows that every version denies.
//!
//! `PORTCULLIS_RELABEL_SECONDS=600` runs it for ten minutes, `PORTCULLIS_SEED` chooses the changes.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on has failed"
)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::SchedClassifier;
use portcullis_agent::attach::Hook;
use portcullis_agent::bpf::Pins;
use portcullis_agent::bpf::figures::{Counted, Figures};
use portcullis_agent::bpf::load::{self, POD_EGRESS, POD_INGRESS};
use portcullis_agent::reconcile::Reconciler;
use portcullis_common::event::{Action, Direction, Outcome, Reason};
use portcullis_common::wire::DEFAULT_FLOWS;
use portcullis_lab::{Lab, LabOptions};
use portcullis_oracle::rng::SplitMix64;
use portcullis_policy::model::{Cluster, Mode, NetworkPolicy, ObjectKey};
use portcullis_policy::sizes::Sizes;
use portcullis_tests::attached::{Place, test_run};
use portcullis_tests::compare::cluster_of;
use portcullis_tests::frames::{self, SYN, TCP, UDP};
use portcullis_tests::privilege::{is_root, number};
use serde_json::{Value, json};

const SECONDS: u64 = 4;
const SEED: u64 = 25;
/// Pods of the node, and pods elsewhere that are always friends, always strangers, and neither.
const LOCAL: u32 = 3;
const FIXED: u32 = 8;
const CROWD: u32 = 150;
/// States of the policies.
const VARIANTS: usize = 24;
/// Labels of which everybody has some: each set of them is a class of its own.
const MARKS: usize = 10;
/// Packets of one call: long enough for the rate, short enough to meet every change.
const REPEAT: u32 = 64;
/// Ports that friends may use, by protocol, and one that nobody may.
const TCP_PORT: u16 = 80;
const UDP_PORT: u16 = 53;
const SHUT: u16 = 81;
const CLIENT: u16 = 40_000;

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("field", name)
}

fn pod(name: &str, net: u8, number: u32, labels: &Value) -> Value {
    let four = format!("10.{net}.0.{number}");
    let six = format!("fd{net}::{number:x}");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "field", "name": name, "uid": name, "labels": labels},
        "spec": {"containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": four}, {"ip": six}]},
    })
}

fn pods() -> Vec<Value> {
    let mut all = vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "field"}})];
    all.extend((1..=LOCAL).map(|n| pod(&format!("local-{n}"), 81, n, &json!({"side": "a"}))));
    for (net, role) in [(82, "good"), (83, "bad")] {
        all.extend((1..=FIXED).map(|n| pod(&format!("{role}-{n}"), net, n, &json!({"role": role}))));
    }
    all.push(pod("swing", 84, 1, &json!({"role": "good"})));
    all.extend((1..=CROWD).map(|n| pod(&format!("crowd-{n}"), 85, n, &json!({}))));
    all
}

/// A state of the policies. Each of them isolates both ways and lets friends in and out at two ports, and the block
/// that is always allowed; what else it lets is never a stranger, nor another port.
fn policies(rng: &mut SplitMix64) -> BTreeMap<ObjectKey, NetworkPolicy> {
    let ports = json!([{"port": TCP_PORT}, {"port": UDP_PORT, "protocol": "UDP"}]);
    let mut objects = Vec::new();
    for side in ["a", "b"] {
        let mut rules = Vec::new();
        for _ in 0..2 + rng.below(6) {
            let mark = format!("mark-{}", rng.below(MARKS));
            let block = format!("10.{}.0.0/16", 100 + rng.below(100));
            let hole = format!("{}.0/24", block.trim_end_matches(".0.0/16").to_owned() + ".7");
            rules.push(json!([
                {"podSelector": {"matchExpressions": [
                    {"key": mark, "operator": "Exists"},
                    {"key": "role", "operator": "NotIn", "values": ["bad"]},
                ]}},
                {"ipBlock": {"cidr": block, "except": [hole]}},
            ]));
        }
        // Wherever it stands, and whatever stands beside it.
        for always in [
            json!([{"podSelector": {"matchLabels": {"role": "good"}}}]),
            json!([
                {"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}},
                {"ipBlock": {"cidr": "2001:db8::/32", "except": ["2001:db8:ffff::/48"]}},
            ]),
        ] {
            rules.insert(rng.below(rules.len() + 1), always);
        }
        let of =
            |field: &str| rules.iter().map(|peers| json!({field: peers, "ports": ports})).collect::<Vec<_>>();
        objects.push(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "field", "name": format!("side-{side}")},
            "spec": {
                "podSelector": {"matchLabels": {"side": side}}, "policyTypes": ["Ingress", "Egress"],
                "ingress": of("from"), "egress": of("to"),
            },
        }));
    }
    cluster_of(&objects).policies
}

/// Whoever every version allows, and whoever it denies.
fn peers(role: &str) -> Vec<IpAddr> {
    let (net, blocks) = match role {
        "good" => (82, ["192.0.2.1", "192.0.2.77", "2001:db8::1", "2001:db8:1::1"]),
        _ => (83, ["192.0.2.129", "198.51.100.1", "2001:db8:ffff::1", "2001:db9::1"]),
    };
    let mut all: Vec<IpAddr> = (1..=FIXED).map(|n| IpAddr::from([10, net, 0, n as u8])).collect();
    all.extend((1..=FIXED).map(|n| format!("fd{net}::{n:x}").parse::<IpAddr>().unwrap()));
    all.extend(blocks.map(|block| block.parse::<IpAddr>().unwrap()));
    all
}

/// One question: the local pod's device, and a frame.
#[derive(Clone, Debug)]
struct Ask {
    ifindex: u32,
    frame: Vec<u8>,
}

/// Frames between the local pods and peers at these ports.
fn frames_of(devices: &[u32], direction: Direction, peers: &[IpAddr], ports: &[(u8, u16)]) -> Vec<Ask> {
    let mut all = Vec::new();
    for (number, ifindex) in (1..).zip(devices) {
        for peer in peers {
            let local: IpAddr = match peer {
                IpAddr::V4(_) => [10, 81, 0, number].into(),
                IpAddr::V6(_) => format!("fd81::{number}").parse().unwrap(),
            };
            let (src, dst) = match direction {
                Direction::Ingress => (*peer, local),
                Direction::Egress => (local, *peer),
            };
            let path = frames::Path { src_mac: [2; 6], dst_mac: [4; 6], src, dst };
            for (protocol, port) in ports {
                let segment = match *protocol {
                    TCP => frames::tcp(path, (CLIENT, *port), SYN, &[]),
                    _ => frames::udp(path, (CLIENT, *port), &[]),
                };
                all.push(Ask { ifindex: *ifindex, frame: frames::frame(path, *protocol, &segment) });
            }
        }
    }
    all
}

/// The programs as the node has them.
struct Programs {
    ingress: SchedClassifier,
    egress: SchedClassifier,
}

impl Programs {
    fn open(dir: &Path) -> Self {
        let open = |name: &str| SchedClassifier::from_pin(dir.join(name)).unwrap();
        Self { ingress: open(POD_INGRESS), egress: open(POD_EGRESS) }
    }

    fn judge(&self, direction: Direction, came_from: u32, ask: &Ask, repeat: u32) -> Action {
        let (program, came_from) = match direction {
            Direction::Ingress => (&self.ingress, came_from),
            Direction::Egress => (&self.egress, 0),
        };
        let at = Place { direction, ifindex: ask.ifindex, came_from };
        test_run(program, at, &ask.frame, repeat).unwrap().action
    }
}

/// Changes something of a state.
fn change(
    cluster: &mut Cluster,
    variants: &[BTreeMap<ObjectKey, NetworkPolicy>],
    gone: &mut Cluster,
    rng: &mut SplitMix64,
) {
    let crowd = |rng: &mut SplitMix64| key(&format!("crowd-{}", 1 + rng.below(CROWD as usize)));
    let relabel = |cluster: &mut Cluster, key: &ObjectKey, rng: &mut SplitMix64| {
        if let Some(pod) = cluster.pods.get_mut(key) {
            for mark in (0..MARKS).map(|number| format!("mark-{number}")) {
                if rng.below(2) == 0 {
                    pod.labels.insert(mark, String::new());
                } else {
                    pod.labels.remove(&mark);
                }
            }
        }
    };
    match rng.below(16) {
        0..=5 => {
            for _ in 0..=rng.below(10) {
                let who = crowd(rng);
                relabel(cluster, &who, rng);
            }
        }
        // Friends and strangers change class, and stay what they are.
        6..=8 => {
            for role in ["good", "bad"] {
                for number in 1..=FIXED {
                    relabel(cluster, &key(&format!("{role}-{number}")), rng);
                }
            }
        }
        // Gone and back: elements of the tables are recycled.
        9..=11 => {
            for _ in 0..=rng.below(20) {
                let who = crowd(rng);
                match cluster.pods.remove(&who) {
                    Some(pod) => drop(gone.pods.insert(who, pod)),
                    None => cluster.pods.extend(gone.pods.remove_entry(&who)),
                }
            }
        }
        // Two trade their addresses.
        12 => {
            let (one, other) = (crowd(rng), crowd(rng));
            if let (Some(first), Some(second)) = (cluster.pods.get(&one), cluster.pods.get(&other)) {
                let (first, second) = (first.addresses.clone(), second.addresses.clone());
                cluster.pods.get_mut(&one).unwrap().addresses = second;
                cluster.pods.get_mut(&other).unwrap().addresses = first;
            }
        }
        13 => {
            let side = (*rng.pick(&["a", "b"])).to_owned();
            let who = key(&format!("local-{}", 1 + rng.below(LOCAL as usize)));
            cluster.pods.get_mut(&who).unwrap().labels.insert("side".to_owned(), side);
        }
        _ => cluster.policies.clone_from(rng.pick(variants)),
    }
}

/// Packets under these verdicts, but for discovery, which the pods' own kernels send.
fn sum(counted: &[Counted], direction: Direction, outcome: Outcome, reasons: impl Fn(Reason) -> bool) -> u64 {
    let of = |one: &&Counted| {
        one.direction == direction
            && one.outcome == outcome
            && one.reason != Reason::Discovery
            && reasons(one.reason)
    };
    counted.iter().filter(of).map(|one| one.stats.packets).sum()
}

#[test]
fn no_packet_gets_another_ones_verdict() {
    if !is_root("a lab") {
        return;
    }
    let seconds = number("PORTCULLIS_RELABEL_SECONDS", SECONDS);
    let seed = number("PORTCULLIS_SEED", SEED);
    let mut rng = SplitMix64::new(seed);
    let all = cluster_of(&pods());
    let mut here = all.clone();
    here.pods.retain(|key, _| key.name.starts_with("local-"));
    let lab = Lab::up(&here, LabOptions::default()).unwrap();
    let variants: Vec<_> = (0..VARIANTS).map(|_| policies(&mut rng)).collect();
    let mut cluster = all;
    cluster.policies.clone_from(&variants[0]);

    // The agent's own reconciler, on this thread's behalf in the node's namespace.
    let pins = Pins::new(lab.bpffs());
    pins.prepare(lab.bpffs()).unwrap();
    let dir = lab.bpffs().join("asked");
    std::fs::create_dir(&dir).unwrap();
    let (mut reconciler, devices) = lab
        .node()
        .run(|| {
            let mut reconciler =
                Reconciler::open(&pins, Hook::Clsact, DEFAULT_FLOWS, Mode::Enforce, &Sizes::default())
                    .unwrap();
            let outcome = reconciler.reconcile(&Arc::new(cluster.clone())).unwrap();
            assert!(outcome.complete && outcome.local.len() == LOCAL as usize, "{outcome:?}");
            let devices: Vec<u32> =
                (1..=LOCAL).map(|n| outcome.endpoints[&key(&format!("local-{n}"))].config.ifindex).collect();
            for name in [POD_INGRESS, POD_EGRESS] {
                load::classifier(reconciler.ebpf_mut(), name).unwrap().pin(dir.join(name)).unwrap();
            }
            (reconciler, devices)
        })
        .unwrap();

    let open = [(TCP, TCP_PORT), (UDP, UDP_PORT)];
    let mut changes = 0;
    let mut asked = [0, 0];
    let mut wrong = Vec::new();
    let mut unreadable = 0;
    let begin = Instant::now();
    // What is allowed the one way while what is denied goes the other, then the other way round: a counter that
    // moves is a wrong verdict.
    for (allowed, denied) in
        [(Direction::Ingress, Direction::Egress), (Direction::Egress, Direction::Ingress)]
    {
        let good = frames_of(&devices, allowed, &peers("good"), &open);
        let mut bad = frames_of(&devices, denied, &peers("bad"), &open);
        bad.extend(frames_of(&devices, denied, &peers("good"), &[(TCP, SHUT), (UDP, SHUT)]));
        let figures = Figures::open(&pins).unwrap();
        let before = figures.verdicts().unwrap();
        let stop = AtomicBool::new(false);
        let counts = [AtomicU64::new(0), AtomicU64::new(0)];
        let until = Instant::now() + Duration::from_secs(seconds) / 2;
        thread::scope(|scope| {
            for ((asks, direction), count) in [(&good, allowed), (&bad, denied)].into_iter().zip(&counts) {
                let (stop, dir, lab, came_from) = (&stop, &dir, &lab, 10);
                scope.spawn(move || {
                    lab.node()
                        .run(|| {
                            let programs = Programs::open(dir);
                            for ask in asks.iter().cycle() {
                                if stop.load(Ordering::Relaxed) {
                                    break;
                                }
                                programs.judge(direction, came_from, ask, REPEAT);
                                count.fetch_add(u64::from(REPEAT), Ordering::Relaxed);
                            }
                        })
                        .unwrap();
                });
            }
            lab.node()
                .run(|| {
                    let programs = Programs::open(&dir);
                    let mut gone = Cluster::default();
                    let swing = [IpAddr::from([10, 84, 0, 1]), "fd84::1".parse().unwrap()];
                    while Instant::now() < until {
                        changes += 1;
                        change(&mut cluster, &variants, &mut gone, &mut rng);
                        // One pod's role changes with every state: its packets are asked about once that is in force.
                        let role = ["good", "bad"][changes % 2];
                        cluster
                            .pods
                            .get_mut(&key("swing"))
                            .unwrap()
                            .labels
                            .insert("role".to_owned(), role.to_owned());
                        let outcome = reconciler.reconcile(&Arc::new(cluster.clone())).unwrap();
                        assert!(outcome.complete, "{:?}", outcome.problems);
                        if changes % 4 == 0 {
                            reconciler.settle().unwrap();
                        }
                        let expected = if role == "good" { Action::Allow } else { Action::Deny };
                        for ask in frames_of(&devices[..1], allowed, &swing, &[(TCP, TCP_PORT)]) {
                            if expected == Action::Allow {
                                let got = programs.judge(allowed, 10, &ask, 1);
                                if got != expected {
                                    wrong.push(format!("change {changes}: the swing is {role}: {got:?}"));
                                }
                            }
                        }
                        for ask in frames_of(&devices[..1], denied, &swing, &[(TCP, TCP_PORT)]) {
                            if expected == Action::Deny {
                                let got = programs.judge(denied, 10, &ask, 1);
                                if got != expected {
                                    wrong.push(format!("change {changes}: the swing is {role}: {got:?}"));
                                }
                            }
                        }
                    }
                })
                .unwrap();
            stop.store(true, Ordering::Relaxed);
        });
        let after = figures.verdicts().unwrap();
        let moved = |direction, outcome, reasons: &dyn Fn(Reason) -> bool| {
            sum(&after, direction, outcome, reasons) - sum(&before, direction, outcome, reasons)
        };
        let [good, bad] = counts.map(AtomicU64::into_inner);
        asked[0] += good;
        asked[1] += bad;
        let closed = moved(allowed, Outcome::Deny, &|reason| reason == Reason::TablesUnreadable);
        unreadable += closed;
        let denials = moved(allowed, Outcome::Deny, &|reason| reason != Reason::TablesUnreadable);
        let passes = moved(denied, Outcome::Allow, &|_| true);
        let heard = moved(allowed, Outcome::Allow, &|_| true) + closed + denials;
        if denials > 0 {
            wrong.push(format!("{denials} packets denied that every version allows"));
        }
        if passes > 0 {
            wrong.push(format!("{passes} packets passed that every version denies"));
        }
        if heard < good {
            wrong.push(format!("{heard} verdicts for {good} packets"));
        }
    }
    let took = begin.elapsed();
    println!(
        "seed {seed}: {changes} changes in {took:.1?}, {} packets allowed and {} denied, {} wrong, {unreadable} closed \
         because tables could not be read",
        asked[0],
        asked[1],
        wrong.len()
    );
    assert!(changes > 10, "too few changes to tell anything");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
