//! A lab without an agent: everybody reaches everybody, a drop shows as a drop, and nothing is left.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use common::{assert_gone, blackhole, cluster, is_root, key, pod, three_pods};
use portcullis_lab::{Ask, Client, Family, Lab, LabOptions, Outcome, Probe, ProbeOptions, Target};
use portcullis_policy::model::{
    Cluster, DirectionSpec, IpBlock, IsolationCause, NetworkPolicy, Peer, Peers, Phase, PodNetwork, Ports,
    Protocol, Rule, Selector, Subject,
};

const PORTS: [(Protocol, u16); 4] =
    [(Protocol::Tcp, 80), (Protocol::Udp, 80), (Protocol::Tcp, 4444), (Protocol::Udp, 4444)];

fn up(cluster: &Cluster) -> Lab {
    Lab::up(cluster, LabOptions::default()).unwrap()
}

fn rows(lab: &Lab, cluster: &Cluster, ports: &[(Protocol, u16)], family: Family) -> Vec<Vec<String>> {
    let results = lab.matrix(cluster, ports, family, &ProbeOptions::default()).unwrap();
    results.into_iter().map(|r| r.rows).collect()
}

fn probe(from: Client, to: Target, ask: Ask) -> Probe {
    Probe { from, to, ask }
}

#[test]
fn without_an_agent_all_is_open_and_down_leaves_nothing() {
    if !is_root("without_an_agent_all_is_open_and_down_leaves_nothing") {
        return;
    }
    let cluster = three_pods();
    let lab = up(&cluster);
    let id = lab.id().to_owned();

    // Served ports answer, others refuse: both are allowed.
    assert_eq!(rows(&lab, &cluster, &PORTS, Family::Ipv4), vec![vec!["-..", ".-.", "..-"]; 4]);
    assert_eq!(rows(&lab, &cluster, &PORTS, Family::Ipv6), vec![vec!["-.", ".-"]; 4]);
    assert_eq!(rows(&lab, &cluster, &[(Protocol::Sctp, 80)], Family::Ipv6), vec![vec!["-?", "?-"]]);

    let taken = lab.down().unwrap();
    assert!(taken.iter().any(|t| t.contains("bpf")), "{taken:?}");
    assert_gone(&id);
}

#[test]
fn a_dropped_lab_leaves_nothing() {
    if !is_root("a_dropped_lab_leaves_nothing") {
        return;
    }
    let lab = up(&three_pods());
    let id = lab.id().to_owned();
    drop(lab);
    assert_gone(&id);
}

#[test]
fn a_silent_drop_is_denied() {
    if !is_root("a_silent_drop_is_denied") {
        return;
    }
    let cluster = three_pods();
    let lab = up(&cluster);
    blackhole(lab.node(), "add", "10.244.0.10", "10.244.0.11");
    // Neither a's questions nor a's answers reach b.
    let begin = Instant::now();
    assert_eq!(rows(&lab, &cluster, &PORTS, Family::Ipv4), vec![vec!["-X.", "X-.", "..-"]; 4]);
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    assert_eq!(rows(&lab, &cluster, &PORTS, Family::Ipv6), vec![vec!["-.", ".-"]; 4]);
}

#[test]
fn node_and_outside_ask_and_answer() {
    if !is_root("node_and_outside_ask_and_answer") {
        return;
    }
    let mut cluster = three_pods();
    let block =
        IpBlock { net: "172.17.0.0/16".parse().unwrap(), except: vec!["172.17.1.0/24".parse().unwrap()] };
    let rule = Rule { peers: Peers::Only(vec![Peer::Block(block)]), ports: Ports::Any };
    let policy = NetworkPolicy {
        mode: None,
        subject: Subject::Pods(Selector::default()),
        ingress: DirectionSpec::Isolated { rules: vec![rule], cause: IsolationCause::Written },
        egress: DirectionSpec::Ignored,
    };
    cluster.policies.insert(key("blocks"), policy);
    let wished = "203.0.113.7".parse().unwrap();
    let lab = Lab::up(&cluster, LabOptions { outside: vec![wished], ..LabOptions::default() }).unwrap();

    let mut probes = Vec::new();
    let outside: Vec<std::net::IpAddr> = lab.state().outside.iter().copied().collect();
    for sample in ["172.17.0.1", "172.17.1.1", "192.0.2.1", "2001:db8::1", "169.254.169.254", "203.0.113.7"] {
        assert!(outside.contains(&sample.parse().unwrap()), "{sample} is not outside: {outside:?}");
    }
    for ask in [Ask::Port(Protocol::Tcp, 80), Ask::Port(Protocol::Udp, 80), Ask::Echo] {
        for address in &outside {
            probes.push(probe(Client::Pod(key("a")), Target::Address(*address), ask));
            let to = Target::Pod(key("a"), Family::of(*address));
            probes.push(probe(Client::OutsideFrom(*address), to, ask));
        }
        for family in [Family::Ipv4, Family::Ipv6] {
            probes.push(probe(Client::Node, Target::Pod(key("b"), family), ask));
            probes.push(probe(Client::Outside, Target::Pod(key("b"), family), ask));
            probes.push(probe(Client::Pod(key("b")), Target::Node(family), ask));
            probes.push(probe(Client::Pod(key("b")), Target::Pod(key("a"), family), ask));
        }
    }
    let outcomes = lab.probe(&probes, &ProbeOptions::default()).unwrap();
    let failed: Vec<String> = probes
        .iter()
        .zip(outcomes)
        .filter(|(_, outcome)| !matches!(outcome, Outcome::Answered(_)))
        .map(|(probe, outcome)| format!("{probe:?}: {outcome}"))
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn pods_come_go_and_move() {
    if !is_root("pods_come_go_and_move") {
        return;
    }
    let mut lab = up(&three_pods());

    // b goes, c moves, d comes with an address that the outside had, and all serve one port more.
    let mut d = pod(&["192.0.2.1", "fd00:10:244::d"]);
    d.container_ports = BTreeSet::from([(Protocol::Tcp, 81)]);
    let next =
        cluster(&[("a", pod(&["10.244.0.10", "fd00:10:244::a"])), ("c", pod(&["192.168.1.4"])), ("d", d)]);
    lab.apply(&next).unwrap();
    let ports = [(Protocol::Tcp, 80), (Protocol::Udp, 80), (Protocol::Tcp, 81)];
    assert_eq!(rows(&lab, &next, &ports, Family::Ipv4), vec![vec!["-..", ".-.", "..-"]; 3]);
    let probes = ["10.244.0.11", "192.168.1.3"].map(|gone| {
        probe(Client::Pod(key("a")), Target::Address(gone.parse().unwrap()), Ask::Port(Protocol::Tcp, 80))
    });
    let outcomes = lab.probe(&probes, &ProbeOptions::default()).unwrap();
    assert_eq!(outcomes.iter().map(Outcome::cell).collect::<String>(), "XX", "{outcomes:?}");
    let served = [probe(Client::Outside, Target::Pod(key("d"), Family::Ipv4), Ask::Port(Protocol::Tcp, 81))];
    let outcomes = lab.probe(&served, &ProbeOptions::default()).unwrap();
    assert_eq!(outcomes, [Outcome::Answered(Some("x/d".into()))]);

    lab.remove_pod(&key("d")).unwrap();
    lab.add_pod(&key("e"), &["192.0.2.1".parse().unwrap()]).unwrap();
    let asked = [probe(Client::Node, Target::Pod(key("e"), Family::Ipv4), Ask::Port(Protocol::Udp, 80))];
    let outcomes = lab.probe(&asked, &ProbeOptions::default()).unwrap();
    assert_eq!(outcomes, [Outcome::Answered(Some("x/e".into()))]);
}

#[test]
fn pods_without_a_network_of_their_own_get_no_namespace() {
    if !is_root("pods_without_a_network_of_their_own_get_no_namespace") {
        return;
    }
    let mut host = pod(&["192.168.50.1"]);
    host.network = PodNetwork::Host;
    let mut finished = pod(&["10.244.0.10"]);
    finished.phase = Phase::Finished;
    // S50: of two pods that show one address, the later one owns it.
    let mut late = pod(&["10.244.0.10"]);
    late.start_time = Some(10);
    let early = pod(&["10.244.0.10"]);
    let cluster = cluster(&[
        ("early", early),
        ("finished", finished),
        ("host", host),
        ("late", late),
        ("nowhere", pod(&[])),
        ("other", pod(&["10.244.0.12"])),
    ]);
    let lab = up(&cluster);
    let pods: Vec<&str> = lab.state().pods.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(pods, ["late", "other"]);
    // The early pod is listed, for it is live, and cannot be tried.
    assert_eq!(rows(&lab, &cluster, &[(Protocol::Tcp, 80)], Family::Ipv4), [["-??", "?-.", "?.-"]]);
}

#[test]
fn labs_stand_side_by_side() {
    if !is_root("labs_stand_side_by_side") {
        return;
    }
    let cluster = three_pods();
    let labs = [up(&cluster), up(&cluster)];
    for lab in &labs {
        assert_eq!(rows(lab, &cluster, &PORTS, Family::Ipv4), vec![vec!["-..", ".-.", "..-"]; 4]);
    }
    let id = labs[0].id().to_owned();
    let error = Lab::up(&cluster, LabOptions { id: Some(id), ..LabOptions::default() }).unwrap_err();
    assert!(error.to_string().contains("is up already"), "{error}");
    // The failed one took nothing of the other's.
    assert_eq!(rows(&labs[0], &cluster, &PORTS, Family::Ipv4), vec![vec!["-..", ".-.", "..-"]; 4]);
}
