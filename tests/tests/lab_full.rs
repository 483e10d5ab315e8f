//! Tables that are full, by real connections: existing pods keep what they have, a new pod is closed, it is said, and
//! it recovers by itself (T17).
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::ffi::OsString;
use std::fs;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use portcullis_lab::{
    AgentSpec, Ask, Client, Family, Hook, Lab, LabOptions, Outcome, Probe, ProbeOptions, Target,
};
use portcullis_policy::model::{ObjectKey, Protocol};
use portcullis_tests::lifecycle::{PATIENCE, PORT, agent};
use portcullis_tests::privilege::is_root;
use serde_json::{Value, json};

/// Longer than from one audit to the next.
const REST: Duration = Duration::from_millis(2_500);

struct Node {
    lab: Lab,
    dir: PathBuf,
}

impl Node {
    fn new(objects: &[Value], arguments: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("portcullis-full-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("all.json"), list(objects)).unwrap();
        let cluster = portcullis_lab::source::read(&dir, &[]).unwrap().cluster;
        let lab = Lab::up(&cluster, LabOptions::default()).unwrap();
        let mut node = Self { lab, dir };
        let arguments = arguments.iter().map(OsString::from).collect();
        let spec = AgentSpec { binary: agent(), source: node.dir.clone(), hook: Hook::Auto, arguments };
        node.lab.start_agent(&spec).unwrap();
        node
    }

    fn write(&mut self, objects: &[Value]) {
        let beside = self.dir.join(".all");
        fs::write(&beside, list(objects)).unwrap();
        fs::rename(&beside, self.dir.join("all.json")).unwrap();
        let cluster = portcullis_lab::source::read(&self.dir, &[]).unwrap().cluster;
        self.lab.apply(&cluster).unwrap();
    }

    fn ask(&self, from: &str, to: &str) -> Outcome {
        let key = |pod: &str| {
            let (namespace, name) = pod.split_once('/').unwrap();
            ObjectKey::new(namespace, name)
        };
        let probe = Probe {
            from: Client::Pod(key(from)),
            to: Target::Pod(key(to), Family::Ipv4),
            ask: Ask::Port(Protocol::Udp, PORT),
        };
        self.lab.probe(&[probe], &ProbeOptions::default()).unwrap().remove(0)
    }

    fn allowed(&self, from: &str, to: &str) {
        assert_eq!(
            self.ask(from, to),
            Outcome::Answered(Some(to.to_owned())),
            "{from} to {to}: {}",
            self.log()
        );
    }

    fn denied(&self, from: &str, to: &str) {
        assert_eq!(self.ask(from, to), Outcome::Silent, "{from} to {to}: {}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.lab.agent_log()).unwrap_or_default()
    }

    /// Waits for a line of the agent's log.
    fn said(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(Instant::now() < deadline, "the agent does not say {text:?}:\n{}", self.log());
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Temporary; a leftover does no harm.
        drop(fs::remove_dir_all(&self.dir));
    }
}

fn list(objects: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn pod(namespace: &str, name: &str, last: u8) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "ports": [{"containerPort": PORT, "protocol": "UDP"}]}]},
        "status": {"podIPs": [{"ip": format!("10.88.0.{last}")}]},
    })
}

fn policy(namespace: &str, pod: &str, ingress: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": pod},
        "spec": {"podSelector": {"matchLabels": {"app": pod}}, "ingress": ingress},
    })
}

fn from_client() -> Value {
    json!([{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"protocol": "UDP", "port": PORT}]}])
}

fn base() -> Vec<Value> {
    vec![
        namespace("shop"),
        pod("shop", "client", 1),
        pod("shop", "other", 2),
        pod("shop", "web", 3),
        policy("shop", "web", &from_client()),
    ]
}

/// Rules of which a table has no room; both the new pod's and, as a change, the old one's.
fn full(table: &str, size: &str, too_much: &Value) {
    if !is_root("a lab") {
        return;
    }
    let mut node = Node::new(&base(), &["--map-size", size]);
    node.lab.wait_applied(1, PATIENCE).unwrap();
    node.allowed("shop/client", "shop/web");
    node.denied("shop/other", "shop/web");

    let mut objects = base();
    objects.extend([pod("shop", "late", 4), policy("shop", "late", too_much)]);
    objects[4] = policy("shop", "web", too_much);
    node.write(&objects);
    node.said(&format!("Pod shop/late: no room in the table {table} for its ingress rules"));
    node.said(&format!("Pod shop/web: no room in the table {table} for its ingress rules"));
    sleep(REST);
    node.allowed("shop/client", "shop/web");
    node.denied("shop/other", "shop/web");
    node.denied("shop/client", "shop/late");
    assert_eq!(node.lab.applied(), Some(1), "{table}: the change is not in force");
    // What the objects say and what is in force differ, and that is no defect.
    let mut explain = Command::new(agent());
    explain.args(["explain", "shop/client", "shop/late", &format!("UDP/{PORT}"), "--run-dir"]);
    let output = explain.arg(node.lab.run_dir()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("kernel   -") && !text.contains("DISAGREES"), "{table}: {text}");

    // No restart: only the load shrinks.
    let mut objects = base();
    objects.extend([pod("shop", "late", 4), policy("shop", "late", &from_client())]);
    node.write(&objects);
    node.lab.wait_applied(2, PATIENCE).unwrap();
    node.allowed("shop/client", "shop/web");
    node.allowed("shop/client", "shop/late");
    node.denied("shop/other", "shop/late");
}

#[test]
fn t17_port_ranges() {
    let ports: Value = (0..40).map(|n| json!({"port": 1 + 2 * n})).collect();
    full("port-ranges", "port-ranges=96", &json!([{"ports": ports}]));
}

#[test]
fn t17_prefixes() {
    let blocks: Value = (0..20).map(|n| json!({"ipBlock": {"cidr": format!("100.64.{n}.0/24")}})).collect();
    full("prefixes", "prefixes=16", &json!([{"from": blocks}]));
}

#[test]
fn t17_rows() {
    let rules: Value = (0..40).map(|n| json!({"ports": [{"port": 100 + n}]})).collect();
    full("rows", "rows=36", &rules);
}

#[test]
fn t17_peers() {
    full("peers", "peers=1", &json!([{"from": [{"podSelector": {}}]}]));
}

#[test]
fn t17_endpoints() {
    if !is_root("a lab") {
        return;
    }
    let mut node = Node::new(&base(), &["--map-size", "endpoints=3"]);
    node.lab.wait_applied(1, PATIENCE).unwrap();
    let mut objects = base();
    objects.push(pod("shop", "late", 4));
    node.write(&objects);
    node.said("Pod shop/late: no room in the table endpoints: all 3 are in use: start the agent with a larger --map-size");
    sleep(REST);
    node.denied("shop/client", "shop/late");
    node.denied("shop/late", "shop/client");
    node.allowed("shop/client", "shop/web");
    node.denied("shop/other", "shop/web");

    objects.remove(2);
    node.write(&objects);
    node.lab.wait_applied(2, PATIENCE).unwrap();
    node.allowed("shop/client", "shop/late");
    node.allowed("shop/late", "shop/client");
}

#[test]
fn one_tenants_giants_do_not_keep_other_changes_out() {
    if !is_root("a lab") {
        return;
    }
    let ports: Value = (0..32_000).map(|n| json!({"port": 1 + 2 * n})).collect();
    let giant = json!([{"ports": ports}]);
    let mut objects = base();
    objects.pop();
    objects.push(namespace("evil"));
    let mut node = Node::new(&objects, &[]);
    node.lab.wait_applied(1, PATIENCE).unwrap();
    node.allowed("shop/other", "shop/web");
    for (n, name) in (10..).zip(["e1", "e2", "e3"]) {
        objects.extend([pod("evil", name, n), policy("evil", name, &giant)]);
    }
    node.write(&objects);
    node.said("no room in the table port-ranges for its ingress rules, of NetworkPolicy evil/");
    node.said("namespace evil has most of it, 65536");

    objects.push(policy("shop", "web", &from_client()));
    node.write(&objects);
    let deadline = Instant::now() + PATIENCE;
    while node.ask("shop/other", "shop/web") != Outcome::Silent {
        assert!(Instant::now() < deadline, "the shop's policy does not come into force:\n{}", node.log());
    }
    node.allowed("shop/client", "shop/web");
}

#[test]
fn flows_that_find_their_table_full_are_told() {
    if !is_root("a lab") {
        return;
    }
    let mut node = Node::new(&base(), &["--flows-per-endpoint", "16"]);
    node.lab.wait_applied(1, PATIENCE).unwrap();
    let client = node.lab.pod(&ObjectKey::new("shop", "client")).unwrap();
    client
        .run(|| {
            for _ in 0..64 {
                let socket = UdpSocket::bind("10.88.0.1:0").unwrap();
                socket.send_to(b"hello", ("10.88.0.3", PORT)).unwrap();
            }
        })
        .unwrap();
    node.said("flows were not made");
    node.said("because their pod's table was full");
    node.said("start the agent with a larger --flows-per-endpoint");
}

#[test]
fn pins_of_another_size_are_refused_with_the_way_out() {
    if !is_root("a lab") {
        return;
    }
    let mut node = Node::new(&base(), &["--map-size", "rows=300"]);
    node.lab.wait_applied(1, PATIENCE).unwrap();
    node.lab.kill(nix::sys::signal::Signal::SIGTERM).unwrap();
    let start = |node: &mut Node, arguments: &[&str]| {
        let arguments = arguments.iter().map(OsString::from).collect();
        let spec = AgentSpec { binary: agent(), source: node.dir.clone(), hook: Hook::Auto, arguments };
        node.lab.start_agent(&spec).unwrap();
    };
    start(&mut node, &[]);
    let error = node.lab.wait_applied(1, PATIENCE).unwrap_err().to_string();
    assert!(error.contains("exit status: 3"), "{error}");
    assert!(error.contains("start the agent with --map-size rows=300"), "{error}");
    node.allowed("shop/client", "shop/web");
    node.denied("shop/other", "shop/web");

    start(&mut node, &["--map-size", "rows=300,peers=7"]);
    node.lab.wait_applied(1, PATIENCE).unwrap();
    node.allowed("shop/client", "shop/web");
    node.denied("shop/other", "shop/web");
}
