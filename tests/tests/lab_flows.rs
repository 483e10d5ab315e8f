//! Tables of flows under real connections: one pod opens more flows than its first tables hold, and nobody loses one.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use portcullis_common::wire::{DEFAULT_FLOWS, FIRST_FLOWS};
use portcullis_lab::traffic::{Held, Liveness};
use portcullis_lab::{AgentSpec, Ask, Client, Family, Hook, Lab, LabOptions, Probe, Target};
use portcullis_policy::model::{ObjectKey, Protocol};
use portcullis_tests::lifecycle::{PATIENCE, PORT, agent};
use portcullis_tests::privilege::{is_root, number};
use serde_json::Value;

/// Flows that the busy pod opens; `PORTCULLIS_FLOWS` sets another number: 1,000,000 takes about a minute.
const FLOWS: u64 = 60_000;
/// Connections that are held meanwhile, and idle.
const HELD: usize = 1_000;
/// Ports of the receiver that flows of one sender's port go to.
const PORTS: u16 = 50_000;
const FIRST_PORT: u16 = 10_000;
const PING: Duration = Duration::from_secs(20);
/// By how much the agent's memory may grow: what it has of a table at once does not depend on its size.
const MOST_KIB: u64 = 64 * 1024;

const PODS: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: life}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: life, labels: {app: server}}
spec: {containers: [{name: c, ports: [{containerPort: 5000}]}]}
status: {podIPs: [{ip: 10.75.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: idle, namespace: life, labels: {app: idle}}
spec: {containers: [{name: c, ports: [{containerPort: 5000}]}]}
status: {podIPs: [{ip: 10.75.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: busy, namespace: life, labels: {app: busy}}
status: {podIPs: [{ip: 10.75.0.3}]}
";

/// From here on the connections live by their state: neither end may answer the other else.
const POLICIES: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: life}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {app: idle}}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: idle, namespace: life}
spec: {podSelector: {matchLabels: {app: idle}}, policyTypes: [Ingress]}
";

fn pod(name: &str) -> ObjectKey {
    ObjectKey::new("life", name)
}

struct Node {
    lab: Lab,
    dir: PathBuf,
}

impl Node {
    fn up() -> Self {
        let dir = std::env::temp_dir().join(format!("portcullis-flows-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("pods.yaml"), PODS).unwrap();
        let cluster = portcullis_lab::source::read(&dir, &[]).unwrap().cluster;
        Self { lab: Lab::up(&cluster, LabOptions::default()).unwrap(), dir }
    }

    fn start(&mut self) {
        let spec = AgentSpec {
            binary: agent(),
            source: self.dir.clone(),
            hook: Hook::Auto,
            arguments: vec!["--log".into(), "info,portcullis_agent::bpf::flows=debug".into()],
        };
        self.lab.start_agent(&spec).unwrap();
        self.lab.wait_applied(1, PATIENCE).unwrap();
    }

    fn hold(&self) -> Held {
        let probe = Probe {
            from: Client::Pod(pod("idle")),
            to: Target::Pod(pod("server"), Family::Ipv4),
            ask: Ask::Port(Protocol::Tcp, PORT),
        };
        self.lab.hold(&vec![probe; HELD]).unwrap()
    }

    /// Opens flows to the server, each of another pair of ports. Returns how many datagrams were sent.
    fn flood(&self, flows: u64) -> u64 {
        let busy = self.lab.pod(&pod("busy")).unwrap();
        let mut sent = 0;
        let mut socket = None;
        for number in 0..flows {
            let port = u16::try_from(number % u64::from(PORTS)).unwrap();
            if port == 0 {
                socket = Some(busy.run(|| UdpSocket::bind("10.75.0.3:0")).unwrap().unwrap());
            }
            let to = SocketAddr::from(([10, 75, 0, 1], FIRST_PORT + port));
            // A port that nobody serves refuses, and the next call says so.
            let socket = socket.as_ref().unwrap();
            while socket.send_to(b"x", to).is_err() {}
            sent += 1;
        }
        sent
    }

    fn verb(&self, verb: &str) -> Value {
        let mut command = Command::new(agent());
        command.args([verb, "-o", "json", "--run-dir"]).arg(self.lab.run_dir());
        serde_json::from_slice(&command.output().unwrap().stdout).unwrap()
    }

    fn flows(&self, name: &str) -> (u64, u64) {
        let endpoints = self.verb("endpoints");
        let of = endpoints.as_array().unwrap().iter().find(|one| one["name"] == name).unwrap();
        (of["flows"]["entries"].as_u64().unwrap(), of["flows"]["capacity"].as_u64().unwrap())
    }

    /// Of the agent: KiB that are resident, and milliseconds of CPU.
    fn cost(&self) -> (u64, u64) {
        let pid = self.lab.agent_pid().unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // User and system time are fields 14 and 15, in 1/100 s.
        let times = stat.rsplit_once(") ").unwrap().1.split(' ').skip(11).take(2);
        let ticks: u64 = times.map(|field| field.parse::<u64>().unwrap()).sum();
        (resident.trim().trim_end_matches(" kB").parse().unwrap(), ticks * 10)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.lab.agent_log()).unwrap_or_default();
            eprintln!("the agent's log:\n{log}");
        }
        // Temporary; a leftover does no harm.
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// Waits longer than the agent takes to set counts right that two CPUs lost to each other.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < 2 * PATIENCE, "{what}: not after {:?}", 2 * PATIENCE);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn t11_a_pod_that_opens_more_flows_than_its_table_holds_costs_nobody_one() {
    if !is_root("an agent in a network namespace") {
        return;
    }
    let flows = number("PORTCULLIS_FLOWS", FLOWS);
    let mut node = Node::up();
    node.start();
    let mut held = node.hold();
    let idle = || node.flows("idle") == (HELD as u64, FIRST_FLOWS.into());
    wait_until("a flow for each held connection", idle);
    let before = node.cost();

    let begun = Instant::now();
    let sent = node.flood(flows);
    let took = begun.elapsed();
    let (refused, after) = (node.verb("status")["flows"]["refused"].as_u64(), node.cost());
    println!(
        "{sent} flows in {took:?}; busy {:?}, server {:?} entries and capacity; {refused:?} refused; the agent has \
         {} KiB, before {} KiB, and took {} ms of CPU",
        node.flows("busy"),
        node.flows("server"),
        after.0,
        before.0,
        after.1 - before.1,
    );
    wait_until("the busy pod's table has grown", || {
        let (entries, capacity) = node.flows("busy");
        capacity > FIRST_FLOWS.into() && (entries < capacity / 2 || capacity == u64::from(DEFAULT_FLOWS))
    });
    assert!(after.0 < before.0 + MOST_KIB, "the agent grew from {} to {} KiB", before.0, after.0);
    wait_until("another pod's table is as it was", || {
        node.flows("idle") == (HELD as u64, FIRST_FLOWS.into())
    });

    fs::write(node.dir.join("policies.yaml"), POLICIES).unwrap();
    node.lab.wait_applied(2, PATIENCE).unwrap();
    let alive =
        |held: &mut Held| held.ping(PING).unwrap().iter().filter(|one| **one == Liveness::Alive).count();
    assert_eq!(alive(&mut held), HELD, "held connections are alive");
    node.lab.kill(Signal::SIGKILL).unwrap();
    node.start();
    assert_eq!(alive(&mut held), HELD, "with the next agent");
    assert!(node.flows("server").1 > FIRST_FLOWS.into(), "a table that has grown stays large");
}
