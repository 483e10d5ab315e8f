//! What tests of a cluster that go on for a while share: pods of shell scripts, what arrived at a pod by its own
//! kernel's counters, shells that go on until they are told to stop.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{AGNHOST, Cluster, NAMESPACE, text};

/// Where nobody listens: what arrives there is counted all the same.
pub const DISCARD: u16 = 9;

/// A pod on a node.
#[must_use]
pub fn pod(namespace: &str, name: &str, node: &str, labels: &Value, containers: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": containers},
    })
}

/// A container that does nothing by itself.
#[must_use]
pub fn idle() -> Value {
    json!([{"name": "shell", "image": AGNHOST}])
}

/// A container of a script.
#[must_use]
pub fn scripted(script: &str) -> Value {
    json!([{"name": "shell", "image": AGNHOST, "command": ["/bin/bash", "-c", script]}])
}

/// A namespace.
#[must_use]
pub fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// A policy.
#[must_use]
pub fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

/// A shell's words that send a datagram to each address, where nobody listens.
#[must_use]
pub fn datagrams(addresses: &[String]) -> String {
    let one = |address: &String| format!("echo x > /dev/udp/{address}/{DISCARD}; ");
    addresses.iter().map(one).collect::<Vec<_>>().concat()
}

/// A number from the environment: how far a test goes.
#[must_use]
pub fn count(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Something that goes on elsewhere until a line on its stdin, or the end of it, stops it.
#[derive(Debug)]
pub struct Going(Child);

impl Going {
    fn start(mut command: Command) -> Result<Self> {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Ok(Self(child.with_context(|| format!("starting {command:?}"))?))
    }

    /// Stops it; returns what it said.
    pub fn stop(mut self) -> Result<String> {
        // One that has ended says why itself.
        let _ = writeln!(self.0.stdin.take().context("its stdin is taken once")?, "stop");
        let ran = self.0.wait_with_output()?;
        let (said, errors) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        anyhow::ensure!(ran.status.success(), "{}: {said} {errors}", ran.status);
        Ok(said.into_owned())
    }
}

impl Cluster {
    /// Objects of a namespace that is made anew; its pods are ready when it returns.
    pub fn stage(&self, name: &str, objects: &[Value]) -> Result<()> {
        self.delete_namespaces(&[name])?;
        self.apply(&[namespace(name)])?;
        self.apply(objects)?;
        self.pods_ready(name)
    }

    /// Waits until all pods of a namespace are ready.
    pub fn pods_ready(&self, namespace: &str) -> Result<()> {
        let words = ["-n", namespace, "wait", "--for=condition=Ready", "--timeout=120s", "pods", "--all"];
        self.kubectl(&words).map(drop)
    }

    /// A pod's addresses.
    pub fn addresses(&self, namespace: &str, pod: &str) -> Result<Vec<String>> {
        let pod = self.get(&["-n", namespace, "pod", pod])?;
        let all =
            pod.pointer("/status/podIPs").and_then(Value::as_array).context("the pod has no addresses")?;
        Ok(all.iter().map(|address| text(address, "/ip")).collect())
    }

    /// A script in a pod, which reads its stdin to know when to stop.
    pub fn in_pod(&self, namespace: &str, pod: &str, script: &str) -> Result<Going> {
        Going::start(self.kubectl_command(&[
            "-n",
            namespace,
            "exec",
            "-i",
            pod,
            "--",
            "/bin/bash",
            "-c",
            script,
        ]))
    }

    /// The same on a node.
    pub fn going_on_node(&self, node: &str, script: &str) -> Result<Going> {
        Going::start(Self::command(&self.node_command, &[node, "bash", "-c", script]))
    }

    /// How many datagrams and TCP segments ever arrived at a pod, by its own kernel's counters (`proc_net(5)`, snmp):
    /// listened for or not.
    pub fn arrived(&self, namespace: &str, pod: &str) -> Result<u64> {
        let files = ["/proc/net/snmp", "/proc/net/snmp6"];
        let words = [&["-n", namespace, "exec", pod, "--", "/bin/busybox", "cat"], &files[..]].concat();
        let text = self.kubectl(&words)?;
        let mut sum = 0;
        let mut names: Vec<&str> = Vec::new();
        let mut seen = 0;
        for line in text.lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let wanted: &[&str] = match fields.first() {
                Some(&"Tcp:") => &["InSegs"],
                Some(&"Udp:") => &["InDatagrams", "NoPorts", "InErrors"],
                Some(&("Udp6InDatagrams" | "Udp6NoPorts" | "Udp6InErrors")) => {
                    sum += fields[1].parse::<u64>()?;
                    seen += 1;
                    continue;
                }
                Some(_) | None => continue,
            };
            // A line of names, then one of numbers.
            if fields[1].parse::<i64>().is_err() {
                names = fields;
                continue;
            }
            for (name, value) in names.iter().zip(&fields) {
                if wanted.contains(name) {
                    sum += value.parse::<u64>()?;
                    seen += 1;
                }
            }
        }
        anyhow::ensure!(seen == 7, "the counters of {namespace}/{pod} are not what was expected: {text}");
        Ok(sum)
    }

    /// Ends the agent's process of a node as a lack of memory would.
    pub fn kill_agent(&self, node: &str) -> Result<()> {
        let script = "k=1; for p in /proc/[0-9]*; do case $(tr '\\0' ' ' < $p/cmdline 2>/dev/null) in \
            *portcullis\\ agent\\ --source=kube*) kill -9 ${p#/proc/} && k=0;; esac; done; exit $k";
        self.on_node(node, &["bash", "-c", script]).map(drop)
    }

    /// Evicts a pod, as a drain does.
    pub fn evict(&self, pod: &str) -> Result<()> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction");
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"namespace": NAMESPACE, "name": pod}});
        self.kubectl_with(&["create", "--raw", &path, "-f", "-"], &eviction.to_string()).map(drop)
    }
}
