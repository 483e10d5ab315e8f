//! The node, the world outside and echoes against an isolated pod, by real packets: what no Cyclonus case asks.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::Path;

use portcullis_lab::{Ask, Client, Cni, Family, Hook, Probe, ProbeOptions, Target};
use portcullis_policy::model::{ObjectKey, Protocol};
use portcullis_tests::lifecycle::{Life, PORT};
use portcullis_tests::live::Rig;
use portcullis_tests::privilege::is_root;

fn pod(name: &str) -> ObjectKey {
    ObjectKey::new("life", name)
}

fn probe(from: Client, to: &str, ask: Ask) -> Probe {
    Probe { from, to: Target::Pod(pod(to), Family::Ipv4), ask }
}

fn cells(rig: impl Into<Rig>) {
    cells_with(rig.into(), None);
}

/// With what a sysctl of the node's is set to.
fn cells_with(rig: Rig, setting: Option<(&str, &str)>) {
    if !is_root("an agent in a network namespace") {
        return;
    }
    let mut life = Life::new(rig);
    if let Some((path, value)) = setting {
        life.lab.node().run(|| fs::write(path, value)).unwrap().unwrap();
    }
    life.write_policy();
    life.start_and_wait();
    let tcp = Ask::Port(Protocol::Tcp, PORT);
    let udp = Ask::Port(Protocol::Udp, PORT);
    let asked = [
        ("the own node, TCP", probe(Client::Node, "server", tcp), '.'),
        ("the own node, UDP", probe(Client::Node, "server", udp), '.'),
        ("the own node, echo", probe(Client::Node, "server", Ask::Echo), '.'),
        ("the outside, TCP", probe(Client::Outside, "server", tcp), 'X'),
        ("the outside, UDP", probe(Client::Outside, "server", udp), 'X'),
        ("the outside, echo", probe(Client::Outside, "server", Ask::Echo), 'X'),
        ("world, TCP", probe(Client::OutsideFrom([192, 0, 2, 1].into()), "server", tcp), 'X'),
        ("the outside to an open pod", probe(Client::Outside, "stranger", Ask::Echo), '.'),
        ("a denied pod, echo", probe(Client::Pod(pod("stranger")), "server", Ask::Echo), 'X'),
        (
            "an allowed pod, echo: the rule has no ports",
            probe(Client::Pod(pod("friend")), "server", Ask::Echo),
            '.',
        ),
        ("replies to what the isolated pod opened", probe(Client::Pod(pod("server")), "stranger", tcp), '.'),
        ("replies by UDP", probe(Client::Pod(pod("server")), "stranger", udp), '.'),
    ];
    let probes: Vec<Probe> = asked.iter().map(|(_, probe, _)| probe.clone()).collect();
    let outcomes = life.lab.probe(&probes, &ProbeOptions::default()).unwrap();
    let wrong: Vec<String> = asked
        .iter()
        .zip(&outcomes)
        .filter(|((_, _, expected), outcome)| outcome.cell() != *expected)
        .map(|((what, _, expected), outcome)| format!("{what}: {outcome}, not {expected}"))
        .collect();
    println!("{}: {} probes", rig.name(), probes.len());
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn node_world_and_echoes_on_tcx() {
    cells(Hook::Tcx);
}

#[test]
fn node_world_and_echoes_on_clsact() {
    cells(Hook::Clsact);
}

/// Whether bridged packets go through netfilter. Through it they lose their sender's socket; else they keep it, in
/// another network namespace than that of the socket.
const BRIDGED_BY_NETFILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

fn behind_a_bridge(hook: Hook) {
    let rig = Rig { hook, cni: Cni::Bridge };
    if !Path::new(BRIDGED_BY_NETFILTER).exists() {
        return cells(rig);
    }
    for value in ["0", "1"] {
        cells_with(rig, Some((BRIDGED_BY_NETFILTER, value)));
    }
}

#[test]
fn node_world_and_echoes_behind_a_bridge_on_tcx() {
    behind_a_bridge(Hook::Tcx);
}

#[test]
fn node_world_and_echoes_behind_a_bridge_on_clsact() {
    behind_a_bridge(Hook::Clsact);
}
