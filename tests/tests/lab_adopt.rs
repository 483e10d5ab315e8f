//! Flows that are older than their endpoint: pods talk before there is an agent, and afterwards what the policies allow
//! goes on, what they deny is cut, and who opened a flow is still who opened it.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::ffi::OsString;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use portcullis_lab::traffic::{Held, Liveness};
use portcullis_lab::{AgentSpec, Ask, Client, Cni, Family, Hook, Lab, LabOptions, Probe, Target};
use portcullis_policy::model::{ObjectKey, Protocol};
use portcullis_tests::lifecycle::{PATIENCE, PORT, agent};
use portcullis_tests::live::Rig;
use portcullis_tests::privilege::is_root;
use serde_json::Value;

/// Held connections of each kind and family.
const EACH: usize = 13;
/// How long a word and its echo may take.
const PING: Duration = Duration::from_secs(5);
/// How long a datagram may take that passes, and how long one is waited for that must not.
const DATAGRAM: Duration = Duration::from_secs(2);

const PODS: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: life}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: life, labels: {app: server}}
spec: {containers: [{name: c, ports: [{containerPort: 5000}]}]}
status: {podIPs: [{ip: 10.76.0.1}, {ip: 'fd76::1'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: friend, namespace: life, labels: {app: friend}}
spec: {containers: [{name: c, ports: [{containerPort: 5000}]}]}
status: {podIPs: [{ip: 10.76.0.2}, {ip: 'fd76::2'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: life, labels: {app: stranger}}
spec: {containers: [{name: c, ports: [{containerPort: 5000}]}]}
status: {podIPs: [{ip: 10.76.0.3}, {ip: 'fd76::3'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: target, namespace: life, labels: {app: target}}
spec: {containers: [{name: c, ports: [{containerPort: 5000}]}]}
status: {podIPs: [{ip: 10.76.0.4}, {ip: 'fd76::4'}]}
";

/// The server hears the friend and calls the target; nobody may answer but by state.
const POLICIES: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: life}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]
  egress: [{to: [{podSelector: {matchLabels: {app: target}}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friend, namespace: life}
spec: {podSelector: {matchLabels: {app: friend}}, policyTypes: [Ingress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: target, namespace: life}
spec: {podSelector: {matchLabels: {app: target}}, policyTypes: [Egress]}
";

/// Who talks to whom, and whether the policies allow it.
const KINDS: [(&str, &str, bool); 4] = [
    ("friend", "server", true),
    ("server", "target", true),
    ("stranger", "server", false),
    ("server", "stranger", false),
];

fn pod(name: &str) -> ObjectKey {
    ObjectKey::new("life", name)
}

/// Whether the node tracks connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tracking {
    On,
    Off,
}

struct Node {
    lab: Lab,
    dir: PathBuf,
    hook: Hook,
}

impl Node {
    fn up(name: &str, rig: Rig, tracking: Tracking) -> Self {
        let dir = std::env::temp_dir().join(format!("portcullis-adopt-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("pods.yaml"), PODS).unwrap();
        let cluster = portcullis_lab::source::read(&dir, &[]).unwrap().cluster;
        let lab = Lab::up(&cluster, LabOptions { cni: rig.cni, ..LabOptions::default() }).unwrap();
        if let Tracking::On = tracking {
            // A rule that asks for it is what makes the kernel track connections in a namespace.
            for rule in [
                "add table inet lab",
                "add chain inet lab forward { type filter hook forward priority 0; }",
                "add rule inet lab forward ct state established counter",
            ] {
                let status = lab.node().run(|| Command::new("nft").arg(rule).status()).unwrap().unwrap();
                assert!(status.success(), "nft {rule}");
            }
        }
        Self { lab, dir, hook: rig.hook }
    }

    fn write_policies(&self) {
        let beside = self.dir.join(".beside");
        fs::write(&beside, POLICIES).unwrap();
        fs::rename(&beside, self.dir.join("policies.yaml")).unwrap();
    }

    fn start(&mut self) {
        let arguments: Vec<OsString> = vec!["--log".into(), "info,portcullis_agent::older=debug".into()];
        let spec = AgentSpec { binary: agent(), source: self.dir.clone(), hook: self.hook, arguments };
        self.lab.start_agent(&spec).unwrap();
        self.lab.wait_applied(1, PATIENCE).unwrap();
    }

    fn hold(&self) -> Held {
        let probe = |from: &str, to: &str, family| Probe {
            from: Client::Pod(pod(from)),
            to: Target::Pod(pod(to), family),
            ask: Ask::Port(Protocol::Tcp, PORT),
        };
        let mut probes = Vec::new();
        for (from, to, _) in KINDS {
            for family in [Family::Ipv4, Family::Ipv6] {
                probes.extend(std::iter::repeat_n(probe(from, to, family), EACH));
            }
        }
        // What the node itself opens reaches the pod, and is answered, whatever the policies say.
        for family in [Family::Ipv4, Family::Ipv6] {
            probes.push(Probe { from: Client::Node, ..probe("server", "server", family) });
        }
        self.lab.hold(&probes).unwrap()
    }

    fn status(&self) -> Value {
        let mut command = Command::new(agent());
        command.args(["status", "-o", "json", "--run-dir"]).arg(self.lab.run_dir());
        serde_json::from_slice(&command.output().unwrap().stdout).unwrap()
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

fn expected() -> Vec<Liveness> {
    let of = |(_, _, allowed): (_, _, bool)| if allowed { Liveness::Alive } else { Liveness::Silent };
    let held = KINDS.into_iter().flat_map(|kind| std::iter::repeat_n(of(kind), 2 * EACH));
    held.chain([Liveness::Alive; 2]).collect()
}

/// A flow of datagrams: opened and answered once.
struct Datagrams {
    name: String,
    opener: UdpSocket,
    responder: UdpSocket,
    to: SocketAddr,
    allowed: bool,
}

impl Datagrams {
    fn open(node: &Node) -> Vec<Self> {
        let mut flows = Vec::new();
        for (port, (from, to, allowed)) in (6000..).zip(KINDS) {
            for place in 0..2 {
                let end = |name: &str| {
                    let address = node.lab.pod_state(&pod(name)).unwrap().addresses[place];
                    let at = SocketAddr::new(address, port);
                    let socket = node.lab.pod(&pod(name)).unwrap().run(|| UdpSocket::bind(at)).unwrap();
                    let socket = socket.unwrap();
                    socket.set_read_timeout(Some(DATAGRAM)).unwrap();
                    (socket, at)
                };
                let ((opener, here), (responder, there)) = (end(from), end(to));
                let flow = Self { name: format!("{here} to {there}"), opener, responder, to: there, allowed };
                assert!(flow.asks() && flow.answers(here), "{}", flow.name);
                flows.push(flow);
            }
        }
        flows
    }

    fn asks(&self) -> bool {
        self.opener.send_to(b"ask", self.to).unwrap();
        self.responder.recv(&mut [0; 8]).is_ok()
    }

    fn answers(&self, to: SocketAddr) -> bool {
        // A reply that is denied may be refused where it is sent.
        let _ = self.responder.send_to(b"answer", to);
        self.opener.recv(&mut [0; 8]).is_ok()
    }

    /// The next packet of each flow is its responder's: it passes only by state.
    fn check(&self) {
        assert_eq!(
            self.answers(self.opener.local_addr().unwrap()),
            self.allowed,
            "the answer of {}",
            self.name
        );
        assert_eq!(self.asks(), self.allowed, "{}", self.name);
    }
}

fn check(flows: &[Datagrams]) {
    // What must not come is waited for: side by side.
    std::thread::scope(|scope| flows.iter().for_each(|flow| drop(scope.spawn(|| flow.check()))));
}

/// Pods talk, then comes the agent with the policies, or the policies after the agent.
fn older_flows(name: &str, rig: Rig, policies_first: bool) {
    if !is_root("an agent in a network namespace") {
        return;
    }
    let mut node = Node::up(name, rig, Tracking::On);
    let mut held = node.hold();
    let datagrams = Datagrams::open(&node);
    let before = held.ping(PING).unwrap();
    assert!(before.iter().all(|one| *one == Liveness::Alive), "{before:?}");

    if policies_first {
        node.write_policies();
        node.start();
    } else {
        node.start();
        node.write_policies();
        node.lab.wait_applied(2, PATIENCE).unwrap();
    }
    let older = node.status()["older_flows"].clone();
    // Two ends of what pods hold, one of what the node does.
    let at_least = 2 * (KINDS.len() * (2 * EACH + 2)) + 2;
    println!("{name}: {} connections held, {older}", held.len());
    assert!(older["adopted"].as_u64().unwrap() >= at_least as u64, "{older}");
    assert_eq!((older["unknown"].as_u64(), &older["why"]), (Some(0), &Value::Null), "{older}");
    check(&datagrams);
    assert_eq!(held.ping(PING).unwrap(), expected(), "{name}");

    node.lab.kill(Signal::SIGKILL).unwrap();
    assert_eq!(held.ping(PING).unwrap(), expected(), "{name}: without an agent");
    node.start();
    assert_eq!(node.status()["older_flows"]["adopted"], Value::from(0), "the predecessor had them already");
    check(&datagrams);
    assert_eq!(held.ping(PING).unwrap(), expected(), "{name}: with the next agent");
}

#[test]
fn flows_older_than_the_agent_and_its_policies() {
    older_flows("tcx", Rig { hook: Hook::Auto, cni: Cni::Routed }, true);
}

#[test]
fn flows_older_than_the_agent_on_clsact() {
    older_flows("clsact", Rig { hook: Hook::Clsact, cni: Cni::Routed }, true);
}

#[test]
fn flows_older_than_the_agent_that_policies_come_after() {
    older_flows("later", Rig { hook: Hook::Auto, cni: Cni::Routed }, false);
}

#[test]
fn flows_older_than_the_agent_behind_a_bridge() {
    older_flows("bridge", Rig { hook: Hook::Auto, cni: Cni::Bridge }, true);
}

#[test]
fn without_connection_tracking_the_loss_is_told() {
    if !is_root("an agent in a network namespace") {
        return;
    }
    let mut node = Node::up("untracked", Rig { hook: Hook::Auto, cni: Cni::Routed }, Tracking::Off);
    let mut held = node.hold();
    node.write_policies();
    node.start();
    let older = node.status()["older_flows"].clone();
    assert_eq!((older["adopted"].as_u64(), older["unknown"].as_u64()), (Some(0), Some(4)), "{older}");
    assert_eq!(older["why"], "no connection tracking in this network namespace");
    let after = held.ping(PING).unwrap();
    assert!(
        after.iter().take(4 * EACH).all(|one| *one == Liveness::Silent),
        "nothing knows their opener: {after:?}"
    );
}
