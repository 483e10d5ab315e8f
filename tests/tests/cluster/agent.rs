//! What runs on the nodes: the image that was built, with the rights that the manifests give, and no others.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Command;

use portcullis_tests::cluster::{Cluster, NAMESPACE, items, text};
use portcullis_tests::lifecycle::agent;

/// `linux/capability.h`: `NET_ADMIN`, PERFMON and BPF.
const CAPABILITIES: u64 = 1 << 12 | 1 << 38 | 1 << 39;

#[test]
fn nodes_have_the_image_by_its_digest() {
    let Some(cluster) = Cluster::of_environment() else { return };
    for node in cluster.nodes().unwrap() {
        let listed = cluster.on_node(&node, &["ctr", "-n", "k8s.io", "images", "list"]).unwrap();
        let line = listed.lines().find(|line| line.split_whitespace().next() == Some(&cluster.image));
        let line = line.unwrap_or_else(|| panic!("{node} has no {}:\n{listed}", cluster.image));
        assert!(line.contains(&cluster.digest), "{node}: {line} is not {}", cluster.digest);
        // What containerd took in is whole.
        let checked = ["ctr", "-n", "k8s.io", "images", "check", &format!("name=={}", cluster.image)];
        let checked = cluster.on_node(&node, &checked).unwrap();
        assert!(checked.contains("complete"), "{node}: {checked}");
    }
}

#[test]
fn agents_run_with_three_capabilities_and_none_has_ended() {
    let Some(cluster) = Cluster::of_environment() else { return };
    // when
    cluster.install().unwrap();
    let agents = cluster.agents().unwrap();
    // then there is one on each node
    let mut nodes: Vec<String> = agents.iter().map(|agent| agent.node.clone()).collect();
    nodes.sort();
    let all = cluster.get(&["nodes"]).unwrap();
    let mut expected: Vec<String> = items(&all).iter().map(|node| text(node, "/metadata/name")).collect();
    expected.sort();
    assert_eq!(nodes, expected);
    // with these rights
    let pods = cluster.get(&["-n", NAMESPACE, "pods", "-l", "app.kubernetes.io/component=agent"]).unwrap();
    let restarts: BTreeMap<String, u64> = items(&pods)
        .iter()
        .map(|pod| {
            let count =
                pod.pointer("/status/containerStatuses/0/restartCount").and_then(serde_json::Value::as_u64);
            (text(pod, "/metadata/name"), count.unwrap())
        })
        .collect();
    assert!(restarts.values().all(|count| *count == 0), "{restarts:?}");
    for agent in &agents {
        let (_, said) = cluster.portcullis(agent, &["preflight"]).unwrap();
        assert!(said.contains("BPF, NET_ADMIN and PERFMON are there"), "{}: {said}", agent.node);
        // exec into a container has the container's rights, so what its own status says is the agent's.
        let script = "for p in /proc/[0-9]*; do case $(cat $p/cmdline 2>/dev/null | tr '\\0' ' ') in \
            *portcullis\\ agent\\ --source=kube*) grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' $p/status;; esac; done";
        let status = cluster.on_node(&agent.node, &["sh", "-c", script]).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim_start_matches(':').trim().to_owned()
        };
        for set in ["CapEff", "CapBnd"] {
            let mask = u64::from_str_radix(&field(set), 16).unwrap_or_else(|_| panic!("{status}"));
            assert_eq!(mask, CAPABILITIES, "{}: {set} {mask:x}", agent.node);
        }
        assert_eq!(field("NoNewPrivs"), "1", "{}", agent.node);
        assert_eq!(field("Seccomp"), "2", "{}: no filter of system calls", agent.node);
    }
}

#[test]
fn agents_say_that_they_are_ready_and_tell_their_pods() {
    let Some(cluster) = Cluster::of_environment() else { return };
    cluster.install().unwrap();
    for agent in cluster.agents().unwrap() {
        let (status, said) = cluster.portcullis(&agent, &["status", "-o", "json"]).unwrap();
        assert_eq!(status, 0, "{}: {said}", agent.node);
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(text(&said, "/node"), agent.node, "{said}");
        assert_eq!(said["ready"], true, "{said}");
    }
}

#[test]
fn kubectl_portcullis_asks_the_agents_of_all_nodes() {
    let Some(cluster) = Cluster::of_environment() else { return };
    cluster.install().unwrap();
    // given the program under the plugin's name, and a kubectl
    let dir = std::env::temp_dir().join(format!("portcullis-plugin-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    symlink(agent(), dir.join("kubectl-portcullis")).unwrap();
    let kubectl = dir.join("kubectl");
    fs::write(&kubectl, format!("#!/bin/sh\nexec {} \"$@\"\n", cluster.kubectl_line())).unwrap();
    fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap_or_default());
    // when
    let asked = Command::new(dir.join("kubectl-portcullis")).args(["status"]).env("PATH", path).output();
    fs::remove_dir_all(&dir).unwrap();
    // then
    let asked = asked.unwrap();
    let said = String::from_utf8_lossy(&asked.stdout);
    assert!(asked.status.success(), "{said} {}", String::from_utf8_lossy(&asked.stderr));
    for agent in cluster.agents().unwrap() {
        assert!(said.lines().any(|line| line == format!("node {}", agent.node)), "{said}");
    }
}
