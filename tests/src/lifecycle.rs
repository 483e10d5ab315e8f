//! An agent's life under traffic: killed, ended, started again, and given policies, while datagrams and held
//! connections tell whether a denied one ever arrives and an allowed one is ever lost.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use portcullis_lab::{
    AgentSpec, Ask, Client, Family, Hook, Lab, LabOptions, Outcome, Probe, ProbeOptions, Target,
};
use portcullis_policy::model::{Cluster, ObjectKey, Protocol};

use crate::live::Rig;

/// The port that pods serve.
pub const PORT: u16 = 5000;
/// Between two new connections: a client has 28,000 ports, each of which rests a minute after use.
const PACE: Duration = Duration::from_millis(10);
/// How long a change may take on a loaded machine before it counts as lost.
pub const PATIENCE: Duration = Duration::from_secs(30);

const PODS: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: life}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: life, labels: {app: server}}
spec: {containers: [{name: c, ports: [{containerPort: 5000}, {containerPort: 5000, protocol: UDP}]}]}
status: {podIPs: [{ip: 10.77.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: friend, namespace: life, labels: {app: friend}}
spec: {containers: [{name: c}]}
status: {podIPs: [{ip: 10.77.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: life, labels: {app: stranger}}
spec: {containers: [{name: c}]}
status: {podIPs: [{ip: 10.77.0.3}]}
";

/// Only the friend reaches the server.
const POLICY: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friends-only, namespace: life}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]
";

/// Three pods, and a directory of manifests that an agent watches.
#[derive(Debug)]
pub struct Life {
    /// The lab.
    pub lab: Lab,
    /// Further arguments of agents that start from here on.
    pub arguments: Vec<OsString>,
    dir: PathBuf,
    hook: Hook,
}

impl Life {
    /// Pods without a policy, and no agent.
    #[must_use]
    pub fn new(rig: impl Into<Rig>) -> Self {
        let Rig { hook, cni } = rig.into();
        let dir = std::env::temp_dir().join(format!(
            "portcullis-life-{}-{}-{cni}",
            std::process::id(),
            hook.name()
        ));
        fs::create_dir_all(&dir).expect("a directory for manifests");
        fs::write(dir.join("pods.yaml"), PODS).expect("the pods are written");
        let lab =
            Lab::up(&cluster(&dir), LabOptions { cni, ..LabOptions::default() }).expect("the lab comes up");
        Self { lab, arguments: Vec::new(), dir, hook }
    }

    /// Starts an agent.
    pub fn start(&mut self) {
        let spec = AgentSpec {
            binary: agent(),
            source: self.dir.clone(),
            hook: self.hook,
            arguments: self.arguments.clone(),
        };
        self.lab.start_agent(&spec).expect("the agent starts");
    }

    /// Starts an agent and waits until it enforces.
    pub fn start_and_wait(&mut self) {
        self.start();
        self.lab.wait_applied(1, PATIENCE).expect("the agent enforces");
    }

    /// Writes the policy, without waiting.
    pub fn write_policy(&self) {
        self.write("policy.yaml", POLICY);
    }

    /// Writes a file of manifests, without waiting.
    pub fn write(&self, name: &str, text: &str) {
        let beside = self.dir.join(".beside");
        fs::write(&beside, text).expect("the manifests are written");
        fs::rename(&beside, self.dir.join(name)).expect("the manifests are put in place");
    }

    /// Writes a file of manifests and waits until it is in force.
    pub fn apply(&mut self, name: &str, text: &str) {
        let before = self.lab.applied().unwrap_or(0);
        self.write(name, text);
        self.lab.wait_applied(before + 1, PATIENCE).expect("the manifests are applied");
    }

    /// Writes the policy and waits until it is in force.
    pub fn apply_policy(&mut self) {
        self.apply("policy.yaml", POLICY);
    }

    /// New connections while something else happens: keeps trying until told to stop, and returns how many were
    /// allowed, and what went wrong.
    #[must_use]
    pub fn try_until(lab: &Lab, stop: &AtomicBool) -> (usize, Vec<String>) {
        let options = ProbeOptions { timeout: Duration::from_millis(500), ..ProbeOptions::default() };
        let (mut allowed, mut wrong) = (0, Vec::new());
        while !stop.load(Ordering::Relaxed) {
            // A denied one takes its whole time; allowed ones are tried one after another meanwhile.
            let denied = std::thread::scope(|scope| {
                let stranger = scope.spawn(|| lab.probe(&[to_server("stranger", Protocol::Tcp)], &options));
                while !stranger.is_finished() {
                    std::thread::sleep(PACE);
                    let friend = lab.probe(&[to_server("friend", Protocol::Tcp)], &options);
                    match friend.expect("probes can be made").first() {
                        Some(Outcome::Answered(_)) => allowed += 1,
                        other => wrong.push(format!("the friend: {other:?}")),
                    }
                }
                stranger.join().expect("the thread ends").expect("probes can be made")
            });
            if denied != [Outcome::Silent] {
                wrong.push(format!("the stranger: {denied:?}"));
            }
        }
        (allowed, wrong)
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // Temporary; a leftover does no harm.
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// Traffic of a pod to the server.
#[must_use]
pub fn to_server(from: &str, protocol: Protocol) -> Probe {
    Probe {
        from: Client::Pod(ObjectKey::new("life", from)),
        to: Target::Pod(ObjectKey::new("life", "server"), Family::Ipv4),
        ask: Ask::Port(protocol, PORT),
    }
}

fn cluster(dir: &Path) -> Cluster {
    portcullis_lab::source::read(dir, &[]).expect("the manifests are good").cluster
}

/// The agent that was built with the tests: beside their directory.
///
/// # Panics
///
/// Where it was not built.
#[must_use]
pub fn agent() -> PathBuf {
    let tests = std::env::current_exe().expect("a test has a path");
    let built = tests.ancestors().nth(2).expect("tests lie in target/PROFILE/deps").join("portcullis");
    assert!(built.exists(), "{} is missing: `cargo build --release --bins` first", built.display());
    built
}
