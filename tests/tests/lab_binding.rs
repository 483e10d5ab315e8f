//! Source binding that an administrator switches off for a namespace: nobody else can, and it acts at once.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::ffi::OsString;
use std::fs;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use portcullis_lab::{AgentSpec, Hook, Lab, LabOptions};
use portcullis_policy::model::ObjectKey;
use portcullis_tests::lifecycle::{PATIENCE, agent};
use portcullis_tests::privilege::is_root;
use serde_json::{Value, json};

/// How long a datagram may take, and how long one is waited for that must not come.
const DATAGRAM: Duration = Duration::from_secs(2);
/// An address of no pod.
const FOREIGN: &str = "10.99.0.1";

/// Namespaces and the annotation of each, and of its pod.
const SENDERS: [(&str, &str, &str); 4] = [
    ("opened", "off", "on"),
    ("flagged", "", ""),
    ("closed", "", "off"),
    // Wrong: it binds, though the agent's flag names it too.
    ("mistaken", "Off", "off"),
];

fn annotated(binding: &str) -> Value {
    if binding.is_empty() { json!({}) } else { json!({"portcullis.dev/source-binding": binding}) }
}

fn namespace(name: &str, binding: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "annotations": annotated(binding)}})
}

fn pod(namespace: &str, binding: &str, address: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "pod", "namespace": namespace, "annotations": annotated(binding)},
        "status": {"podIPs": [{"ip": address}]}})
}

fn manifests(opened: &str) -> String {
    let mut items = vec![namespace("receiver", ""), pod("receiver", "", "10.74.0.1")];
    for (number, (name, binding, of_pod)) in (2..).zip(SENDERS) {
        items.push(namespace(name, if name == "opened" { opened } else { binding }));
        items.push(pod(name, of_pod, &format!("10.74.0.{number}")));
    }
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

struct Node {
    lab: Lab,
    dir: PathBuf,
}

impl Node {
    fn up() -> Self {
        let dir = std::env::temp_dir().join(format!("portcullis-binding-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("all.json"), manifests("off")).unwrap();
        let cluster = portcullis_lab::source::read(&dir, &[]).unwrap().cluster;
        let mut lab = Lab::up(&cluster, LabOptions::default()).unwrap();
        for (name, ..) in SENDERS {
            let mut add = Command::new("ip");
            add.args(["addr", "add", &format!("{FOREIGN}/32"), "dev", "lo"]);
            let netns = lab.pod(&ObjectKey::new(name, "pod")).unwrap();
            assert!(netns.run(|| add.status()).unwrap().unwrap().success());
        }
        let arguments = ["--unbound-namespaces", "flagged,mistaken"].map(OsString::from).to_vec();
        let spec = AgentSpec { binary: agent(), source: dir.clone(), hook: Hook::Auto, arguments };
        lab.start_agent(&spec).unwrap();
        lab.wait_applied(1, PATIENCE).unwrap();
        Self { lab, dir }
    }

    /// Whether what a namespace's pod sends from an address that is not its own arrives.
    fn forges(&self, namespace: &str) -> bool {
        let of = |name: &str, address: &'static str| {
            let netns = self.lab.pod(&ObjectKey::new(name, "pod")).unwrap();
            netns.run(|| UdpSocket::bind(address)).unwrap().unwrap()
        };
        let receiver = of("receiver", "10.74.0.1:9000");
        receiver.set_read_timeout(Some(DATAGRAM)).unwrap();
        of(namespace, "10.99.0.1:9001").send_to(b"forged", "10.74.0.1:9000").unwrap();
        receiver.recv_from(&mut [0; 16]).is_ok_and(|(_, from)| from.ip().to_string() == FOREIGN)
    }

    fn verb(&self, arguments: &[&str]) -> Value {
        let mut command = Command::new(agent());
        command.args(arguments).args(["-o", "json", "--run-dir"]).arg(self.lab.run_dir());
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

#[test]
fn t6_only_an_administrator_lets_a_pod_send_from_any_address() {
    if !is_root("an agent in a network namespace") {
        return;
    }
    let mut node = Node::up();
    assert_eq!(SENDERS.map(|(name, ..)| node.forges(name)), [true, true, false, false]);
    let endpoints = node.verb(&["endpoints"]);
    let bindings: Vec<_> = endpoints
        .as_array()
        .unwrap()
        .iter()
        .map(|one| format!("{} {}", one["namespace"], one["source_binding"]).replace('"', ""))
        .collect();
    assert_eq!(bindings, ["closed on", "flagged off", "mistaken on", "opened off", "receiver on"]);
    let explained = node.verb(&["explain", "opened/pod", "receiver/pod", "UDP/9000"]);
    assert_eq!(explained["from"]["source_binding"], "off", "{explained}");
    assert_eq!((&explained["verdict"], &explained["kernel"]), (&json!("allow"), &json!("allow")));
    let warnings = node.verb(&["status"])["warnings"].to_string();
    assert!(warnings.contains("is no source binding"), "{warnings}");

    let mut change = |opened: &str| {
        let before = node.lab.applied().unwrap();
        fs::write(node.dir.join("all.json"), manifests(opened)).unwrap();
        node.lab.wait_applied(before + 1, PATIENCE).unwrap();
        node.forges("opened")
    };
    assert!(!change("on"), "switched on while it runs");
    assert!(change("off"), "and off");
}
