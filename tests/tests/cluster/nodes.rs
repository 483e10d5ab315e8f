//! A node that is drained and one that is started anew: what runs there afterwards is enforced.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis_oracle::{Family, Traffic};
use portcullis_tests::cluster::probe::{Truth, agree};
use portcullis_tests::cluster::scene::{datagrams, idle, pod, policy, scripted};
use portcullis_tests::cluster::{Cluster, DEADLINE, items, server, text, until};
use serde_json::{Value, json};

const OURS: &str = "pc-nodes";
/// The directory of a rig's scripts, as `cargo xtask cluster-test` takes it.
const RIG: &str = "PORTCULLIS_CLUSTER";

fn serving() -> Value {
    json!([server("serve", 80, &json!([{"containerPort": 80}]))])
}

/// Friends reach servers and nobody else does; strangers send nothing.
fn policies() -> [Value; 2] {
    let friends = json!({"podSelector": {"matchLabels": {"app": "server"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}]});
    let silent = json!({"podSelector": {"matchLabels": {"app": "stranger"}}, "policyTypes": ["Egress"]});
    [policy(OURS, "friends", &friends), policy(OURS, "silent", &silent)]
}

/// Everybody to the servers, as the oracle says, and some of it denied.
fn servers_are_enforced(cluster: &Cluster) {
    cluster.pods_ready(OURS).unwrap();
    let truth = Truth::read(cluster).unwrap();
    let listed = cluster.get(&["-n", OURS, "pods"]).unwrap();
    let names: Vec<String> =
        items(&listed).iter().map(|pod| format!("{OURS}/{}", text(pod, "/metadata/name"))).collect();
    let to_servers = |family| truth.probes(&names, &[Traffic::tcp(80), Traffic::udp(80)], family);
    let probes: Vec<_> = [Family::Ipv4, Family::Ipv6]
        .into_iter()
        .flat_map(to_servers)
        .filter(|probe| probe.to.contains("/server"))
        .collect();
    let agreement = agree(cluster, &truth, &probes).unwrap();
    assert!(agreement.denied > 0 && agreement.agreed > agreement.denied, "{agreement:?}");
}

#[test]
fn what_moves_from_a_drained_node_and_comes_back_is_enforced() {
    let Some(cluster) = Cluster::of_environment() else { return };
    cluster.install().unwrap();
    let nodes = cluster.nodes().unwrap();
    let (first, last) = (&nodes[0], nodes.last().unwrap());
    if first == last {
        println!("skipped: a drained node's pods need another node");
        return;
    }
    let labels = json!({"app": "server"});
    let servers = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"namespace": OURS, "name": "server"},
        "spec": {"replicas": 3, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": serving()}}}});
    let [friends, silent] = policies();
    let objects = [
        servers,
        pod(OURS, "friend", first, &json!({"app": "friend"}), &idle()),
        pod(OURS, "stranger", first, &json!({"app": "stranger"}), &idle()),
        friends,
        silent,
    ];
    cluster.stage(OURS, &objects).unwrap();
    let rolled_out = ["-n", OURS, "rollout", "status", "deployment/server", "--timeout=120s"];
    cluster.kubectl(&rolled_out).unwrap();
    servers_are_enforced(&cluster);
    // when
    let drain = ["drain", last, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s"];
    let drained = cluster.kubectl(&drain);
    let moved = drained.and_then(|_| cluster.kubectl(&rolled_out)).map(|_| servers_are_enforced(&cluster));
    cluster.kubectl(&["uncordon", last]).unwrap();
    moved.unwrap();
    // and when pods are put there again
    for (name, app) in [("server-back", "server"), ("friend-back", "friend"), ("stranger-back", "stranger")] {
        let containers = if app == "server" { serving() } else { idle() };
        cluster.apply(&[pod(OURS, name, last, &json!({"app": app}), &containers)]).unwrap();
    }
    // then
    servers_are_enforced(&cluster);
    cluster.delete_namespaces(&[OURS]).unwrap();
}

/// How often the containers of a pod were started anew.
fn restarts(cluster: &Cluster, name: &str) -> anyhow::Result<u64> {
    let pod = cluster.get(&["-n", OURS, "pod", name])?;
    Ok(pod.pointer("/status/containerStatuses/0/restartCount").and_then(Value::as_u64).unwrap_or_default())
}

#[test]
fn pods_of_a_node_that_starts_anew_are_enforced_from_their_first_packet() {
    let Some(cluster) = Cluster::of_environment() else { return };
    let Some(rig) = env::var_os(RIG).map(PathBuf::from) else {
        println!("skipped: only a rig's node can be started anew: {RIG} names none");
        return;
    };
    cluster.install().unwrap();
    let nodes = cluster.nodes().unwrap();
    let (first, last) = (&nodes[0], nodes.last().unwrap());
    cluster.stage(OURS, &[pod(OURS, "listener", first, &json!({"app": "listener"}), &idle())]).unwrap();
    let sends = datagrams(&cluster.addresses(OURS, "listener").unwrap());
    let script =
        format!("exec 2>/dev/null; trap 'exit 0' TERM; while :; do {sends} /bin/busybox sleep 0.01; done");
    let [friends, silent] = policies();
    cluster.apply(&[friends, silent]).unwrap();
    let at = |name: &str, node: &String, app: &str, containers: &Value| {
        pod(OURS, name, node, &json!({"app": app}), containers)
    };
    let objects = [
        at("stranger", last, "stranger", &scripted(&script)),
        at("server", last, "server", &serving()),
        at("friend-there", last, "friend", &idle()),
        at("friend", first, "friend", &idle()),
        at("other", first, "other", &idle()),
    ];
    cluster.apply(&objects).unwrap();
    servers_are_enforced(&cluster);
    let before = cluster.arrived(OURS, "listener").unwrap();
    // when
    let there = ["stranger", "server", "friend-there"];
    let started: Vec<u64> = there.iter().map(|name| restarts(&cluster, name).unwrap()).collect();
    let init = cluster.on_node(last, &["cat", "/run/pid.outer"]).unwrap().trim().parse().unwrap();
    kill(Pid::from_raw(init), Signal::SIGKILL).unwrap();
    let up = Command::new(rig.join("up")).stdin(Stdio::null()).output().unwrap();
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stdout));
    // then its pods come again, and are enforced
    let again = until(DEADLINE * 3, || {
        for (name, before) in there.iter().zip(&started) {
            if restarts(&cluster, name)? <= *before {
                return Ok(None);
            }
        }
        Ok(Some(()))
    });
    let pods = || cluster.kubectl(&["-n", OURS, "get", "pods", "-o", "wide"]).unwrap_or_default();
    assert!(again.unwrap().is_some(), "{}", pods());
    cluster.rolled_out().unwrap();
    servers_are_enforced(&cluster);
    let arrived = cluster.arrived(OURS, "listener").unwrap() - before;
    assert_eq!(arrived, 0, "packets of a pod that may send nothing");
    cluster.delete_namespaces(&[OURS]).unwrap();
}
