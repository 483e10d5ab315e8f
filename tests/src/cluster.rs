//! A real cluster, by kubectl: what the tests of layer `cluster` share. `cargo xtask cluster-test` says in the
//! environment how the cluster and its nodes are reached; without it these tests are skipped.

pub mod api;
pub mod probe;
pub mod scene;

use std::env;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// The words of kubectl's command line, as far as they are the same for every call.
const KUBECTL: &str = "PORTCULLIS_KUBECTL";
/// The words before `NODE COMMAND...`.
const NODE_COMMAND: &str = "PORTCULLIS_NODE_COMMAND";
/// The image's full name, and the digest of its manifest.
const IMAGE: &str = "PORTCULLIS_IMAGE";
const DIGEST: &str = "PORTCULLIS_IMAGE_DIGEST";

/// Where the agent runs.
pub const NAMESPACE: &str = "kube-system";
const DAEMONSET: &str = "daemonset/portcullis";
const CLEANUP: &str = "portcullis-cleanup";
/// Says which objects are ours.
pub const SELECTOR: &str = "app.kubernetes.io/name=portcullis";

/// For a rollout on a busy machine.
const PATIENCE: &str = "180s";
/// For the cluster to come to a state, on a busy machine.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// A cluster that can be asked.
#[derive(Clone, Debug)]
pub struct Cluster {
    kubectl: Vec<String>,
    node_command: Vec<String>,
    /// The image's full name.
    pub image: String,
    /// The digest of its manifest.
    pub digest: String,
}

/// An agent's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Its name.
    pub pod: String,
    /// Where it runs.
    pub node: String,
}

impl Cluster {
    /// The one that the environment names; prints `skipped: why` where it names none.
    ///
    /// # Panics
    ///
    /// Where it names half of one.
    #[must_use]
    pub fn of_environment() -> Option<Self> {
        let Ok(kubectl) = env::var(KUBECTL) else {
            println!("skipped: no cluster: `cargo xtask cluster-test` names one");
            return None;
        };
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        let said =
            |name: &str| env::var(name).unwrap_or_else(|_| panic!("{name} is not set, and {KUBECTL} is"));
        Some(Self {
            kubectl: words(&kubectl),
            node_command: words(&said(NODE_COMMAND)),
            image: said(IMAGE),
            digest: said(DIGEST),
        })
    }

    fn command(words: &[String], more: &[&str]) -> Command {
        let (program, first) = words.split_first().expect("a command has a program");
        let mut command = Command::new(program);
        command.args(first).args(more);
        command
    }

    /// What kubectl prints.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        output(&mut Self::command(&self.kubectl, words), None)
    }

    /// The same, as JSON.
    pub fn get(&self, words: &[&str]) -> Result<Value> {
        let words: Vec<&str> = ["get", "-o", "json"].iter().chain(words).copied().collect();
        serde_json::from_str(&self.kubectl(&words)?).context("reading kubectl's JSON")
    }

    /// What kubectl prints with this on its stdin.
    pub fn kubectl_with(&self, words: &[&str], input: &str) -> Result<String> {
        output(&mut Self::command(&self.kubectl, words), Some(input))
    }

    /// How kubectl is called.
    #[must_use]
    pub fn kubectl_line(&self) -> String {
        self.kubectl.join(" ")
    }

    /// A kubectl that goes on by itself.
    #[must_use]
    pub fn kubectl_command(&self, words: &[&str]) -> Command {
        Self::command(&self.kubectl, words)
    }

    /// Applies objects.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        if objects.is_empty() {
            return Ok(());
        }
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.kubectl_with(&["apply", "-f", "-"], &list.to_string()).map(drop)
    }

    /// Applies a file of this tree.
    pub fn apply_file(&self, path: &str) -> Result<()> {
        let path = tree(path);
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        self.kubectl_with(&["apply", "-f", "-"], &text).map(drop)
    }

    /// What a command prints on a node.
    pub fn on_node(&self, node: &str, words: &[&str]) -> Result<String> {
        let words: Vec<&str> = [node].iter().chain(words).copied().collect();
        output(&mut Self::command(&self.node_command, &words), None)
    }

    /// The names of the nodes that pods can be put on.
    pub fn nodes(&self) -> Result<Vec<String>> {
        let nodes = self.get(&["nodes"])?;
        let schedulable = |node: &&Value| {
            let taints = node.pointer("/spec/taints").and_then(Value::as_array);
            taints.is_none_or(|taints| taints.iter().all(|taint| taint["effect"] != "NoSchedule"))
        };
        Ok(items(&nodes).iter().filter(schedulable).map(|node| text(node, "/metadata/name")).collect())
    }

    /// Has the agent run and ready on every node, by our manifests.
    pub fn install(&self) -> Result<()> {
        self.apply_file("deploy/manifests/hostpolicies.yaml")?;
        self.apply_file("deploy/manifests/portcullis.yaml")?;
        self.rolled_out()
    }

    /// Waits until every agent is ready; tells what the others say if they do not get so.
    pub fn rolled_out(&self) -> Result<()> {
        let timeout = format!("--timeout={PATIENCE}");
        let waited = self.kubectl(&["-n", NAMESPACE, "rollout", "status", DAEMONSET, &timeout]);
        waited.map(drop).map_err(|error| {
            let logs = self.kubectl(&["-n", NAMESPACE, "logs", "-l", SELECTOR, "--prefix", "--tail=30"]);
            let pods = self.kubectl(&["-n", NAMESPACE, "describe", "pods", "-l", SELECTOR]);
            error.context(format!("{}\n{}", pods.unwrap_or_default(), logs.unwrap_or_default()))
        })
    }

    /// True if the DaemonSet is there.
    #[must_use]
    pub fn is_installed(&self) -> bool {
        self.kubectl(&["-n", NAMESPACE, "get", DAEMONSET]).is_ok()
    }

    /// Takes the agent's objects away, and waits until its pods are gone. Enforcement goes on.
    pub fn delete_agent(&self) -> Result<()> {
        let path = tree("deploy/manifests/portcullis.yaml");
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        self.kubectl_with(&["delete", "--ignore-not-found", "-f", "-"], &text)?;
        let agents = "app.kubernetes.io/name=portcullis,app.kubernetes.io/component=agent";
        let gone = until(DEADLINE, || {
            let left = self.get(&["-n", NAMESPACE, "pods", "-l", agents])?;
            Ok(items(&left).is_empty().then_some(()))
        })?;
        gone.context("the agent's pods do not end")
    }

    /// Cleans every node, as docs/operations.md says; returns by node what was taken.
    pub fn clean_up(&self) -> Result<Vec<(String, String)>> {
        self.apply_file("deploy/cleanup.yaml")?;
        let daemonset = format!("daemonset/{CLEANUP}");
        let timeout = format!("--timeout={PATIENCE}");
        let selector = "app.kubernetes.io/component=cleanup";
        let waited = self.kubectl(&["-n", NAMESPACE, "rollout", "status", &daemonset, &timeout]);
        let pods = self.get(&["-n", NAMESPACE, "pods", "-l", selector])?;
        let mut said = Vec::new();
        for pod in items(&pods) {
            let name = text(pod, "/metadata/name");
            let log = self.kubectl(&["-n", NAMESPACE, "logs", &name, "-c", "cleanup"])?;
            said.push((text(pod, "/spec/nodeName"), log));
        }
        waited.with_context(|| format!("{said:?}"))?;
        self.kubectl(&["-n", NAMESPACE, "delete", &daemonset, "--wait=true"])?;
        let gone = until(DEADLINE, || {
            let left = self.get(&["-n", NAMESPACE, "pods", "-l", selector])?;
            Ok(items(&left).is_empty().then_some(()))
        })?;
        gone.context("the cleanup's pods do not end")?;
        Ok(said)
    }

    /// As after `docs/operations.md`, "Removal".
    pub fn remove(&self) -> Result<Vec<(String, String)>> {
        self.delete_agent()?;
        self.clean_up()
    }

    /// The agents.
    pub fn agents(&self) -> Result<Vec<Agent>> {
        let selector = "app.kubernetes.io/name=portcullis,app.kubernetes.io/component=agent";
        let pods = self.get(&["-n", NAMESPACE, "pods", "-l", selector])?;
        let agent =
            |pod: &Value| Agent { pod: text(pod, "/metadata/name"), node: text(pod, "/spec/nodeName") };
        Ok(items(&pods).iter().map(agent).collect())
    }

    /// What a verb prints on the agent of a node, and its exit status.
    pub fn portcullis(&self, agent: &Agent, words: &[&str]) -> Result<(i32, String)> {
        let first = ["-n", NAMESPACE, "exec", &agent.pod, "-c", "agent", "--", "portcullis"];
        let words: Vec<&str> = first.iter().chain(words).copied().collect();
        let ran = Self::command(&self.kubectl, &words).stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
        Ok((ran.status.code().unwrap_or(-1), said))
    }

    /// Takes namespaces away, with all that is in them.
    pub fn delete_namespaces(&self, names: &[&str]) -> Result<()> {
        let words: Vec<&str> = ["delete", "namespace", "--ignore-not-found", "--timeout=120s"]
            .iter()
            .chain(names)
            .copied()
            .collect();
        self.kubectl(&words).map(drop)
    }
}

/// A pod of servers and a shell, from the image of the upstream tests.
pub const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";

/// A container that answers on a port by TCP (HTTP) and UDP.
#[must_use]
pub fn server(name: &str, port: u16, ports: &Value) -> Value {
    json!({
        "name": name,
        "image": AGNHOST,
        "args": ["netexec", format!("--http-port={port}"), format!("--udp-port={port}")],
        "ports": ports,
    })
}

/// The file of this tree.
#[must_use]
pub fn tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The items of a list.
#[must_use]
pub fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

/// The text at a pointer; empty where there is none.
#[must_use]
pub fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Asks again until there is an answer; none at the deadline.
pub fn until<T>(deadline: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(answer) = ask()? {
            return Ok(Some(answer));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn output(command: &mut Command, input: Option<&str>) -> Result<String> {
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    if let (Some(input), Some(mut pipe)) = (input, child.stdin.take()) {
        // Inputs are smaller than what the program reads before it writes; one that ends early says why itself.
        let _ = pipe.write_all(input.as_bytes());
    }
    let ran = child.wait_with_output()?;
    if !ran.status.success() {
        let errors = String::from_utf8_lossy(&ran.stderr);
        bail!("{command:?}: {}: {}", ran.status, errors.trim());
    }
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}
