//! Egress to the own node: policed as any address, unless the agent is told to let it pass.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use portcullis_lab::{
    AgentSpec, Ask, Client, Family, Hook, Lab, LabOptions, Outcome, Probe, ProbeOptions, Target,
};
use portcullis_policy::model::{ObjectKey, Protocol};
use portcullis_tests::lifecycle::{PATIENCE, PORT, agent};
use portcullis_tests::privilege::is_root;

const MANIFESTS: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: life}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: life}
status: {podIPs: [{ip: 10.73.0.1}, {ip: 'fd73::1'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: life}
spec: {containers: [{name: c, ports: [{containerPort: 5000}]}]}
status: {podIPs: [{ip: 10.73.0.2}, {ip: 'fd73::2'}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: silent, namespace: life}
spec: {podSelector: {}, policyTypes: [Egress]}
";

/// An address that the node gets while the agent runs.
const LATER: &str = "10.98.0.1";

fn probe(to: Target, ask: Ask) -> Probe {
    Probe { from: Client::Pod(ObjectKey::new("life", "client")), to, ask }
}

#[test]
fn egress_to_the_own_node_is_policed_unless_the_agent_is_told_to_let_it_pass() {
    if !is_root("an agent in a network namespace") {
        return;
    }
    let dir = std::env::temp_dir().join(format!("portcullis-own-node-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("all.yaml"), MANIFESTS).unwrap();
    let cluster = portcullis_lab::source::read(&dir, &[]).unwrap().cluster;
    let ports = BTreeSet::from([(Protocol::Tcp, PORT)]);
    let mut lab = Lab::up(&cluster, LabOptions { ports, ..LabOptions::default() }).unwrap();
    let tcp = Ask::Port(Protocol::Tcp, PORT);
    let server = || Target::Pod(ObjectKey::new("life", "server"), Family::Ipv4);
    let probes = [
        probe(Target::Node(Family::Ipv4), tcp),
        probe(Target::Node(Family::Ipv6), tcp),
        probe(Target::Node(Family::Ipv4), Ask::Echo),
        probe(server(), tcp),
        probe(Target::Address(lab.state().link.outside4.into()), Ask::Echo),
    ];
    let later = [probe(Target::Address(LATER.parse().unwrap()), Ask::Echo)];
    let passes = |lab: &Lab, probes: &[Probe]| -> Vec<bool> {
        let outcomes = lab.probe(probes, &ProbeOptions::default()).unwrap();
        outcomes.iter().map(|one| matches!(one, Outcome::Answered(_))).collect()
    };
    assert_eq!(passes(&lab, &probes), [true; 5], "without an agent");
    for (mode, expected) in [("policy", false), ("allow", true), ("policy", false)] {
        let arguments = ["--own-node-egress", mode].map(OsString::from).to_vec();
        let spec = AgentSpec { binary: agent(), source: dir.clone(), hook: Hook::Auto, arguments };
        lab.start_agent(&spec).unwrap();
        lab.wait_applied(1, PATIENCE).unwrap();
        assert_eq!(passes(&lab, &probes), [expected, expected, expected, false, false], "{mode}");
        if expected {
            let mut add = Command::new("ip");
            add.args(["addr", "add", &format!("{LATER}/32"), "dev", "lo"]);
            assert!(lab.node().run(|| add.status()).unwrap().unwrap().success());
            let begun = Instant::now();
            while passes(&lab, &later) != [true] {
                assert!(begun.elapsed() < PATIENCE, "an address that came later");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        lab.kill(Signal::SIGTERM).unwrap();
    }
    // Temporary; a leftover does no harm.
    drop(fs::remove_dir_all(&dir));
}
