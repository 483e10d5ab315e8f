//! Removal, as docs/operations.md says: enforcement outlives the agent, and ends with the cleanup, which leaves nothing.

use portcullis_oracle::{Family, Traffic};
use portcullis_tests::cluster::probe::{Probe, Truth, agree, reach};
use portcullis_tests::cluster::{AGNHOST, Cluster, SELECTOR, items, server};
use serde_json::json;

const OURS: &str = "pc-removal";

#[test]
fn removal_leaves_nothing() {
    let Some(cluster) = Cluster::of_environment() else { return };
    // given a pod that is isolated
    cluster.install().unwrap();
    cluster.delete_namespaces(&[OURS]).unwrap();
    let nodes = cluster.nodes().unwrap();
    let pod = |name: &str, node: &str, containers| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": OURS, "name": name, "labels": {"app": name}},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": containers}})
    };
    let deny = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": OURS, "name": "deny"},
        "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"]}});
    let objects = [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OURS}}),
        pod("server", &nodes[0], json!([server("serve", 80, &json!([{"containerPort": 80}]))])),
        pod("client", nodes.last().unwrap(), json!([{"name": "shell", "image": AGNHOST}])),
        deny,
    ];
    cluster.apply(&objects).unwrap();
    let ready = ["-n", OURS, "wait", "--for=condition=Ready", "--timeout=90s", "pods", "--all"];
    cluster.kubectl(&ready).unwrap();
    let truth = Truth::read(&cluster).unwrap();
    let pods = ["client", "server"].map(|pod| format!("{OURS}/{pod}"));
    let probe: Vec<Probe> = truth
        .probes(&pods, &[Traffic::tcp(80)], Family::Ipv4)
        .into_iter()
        .filter(|probe| probe.to.ends_with("server"))
        .collect();
    assert_eq!(agree(&cluster, &truth, &probe).unwrap().denied, 1);
    // when the agent goes
    cluster.delete_agent().unwrap();
    // then what it enforced stays
    assert_eq!(reach(&cluster, &probe).unwrap(), [false], "enforcement ended with the agent");
    for node in &nodes {
        cluster.on_node(node, &["ls", "/sys/fs/bpf/portcullis/v1/maps"]).unwrap();
    }
    // and the CNI plugin waits for the next agent
    for node in &nodes {
        for file in ["/opt/cni/bin/portcullis-cni", "/etc/cni/net.d/00-portcullis.conflist"] {
            cluster.on_node(node, &["ls", file]).unwrap();
        }
    }
    // when the nodes are cleaned
    let taken = cluster.clean_up().unwrap();
    // then something was taken on each, and nothing is left to take
    for (node, said) in &taken {
        assert!(said.contains("took "), "{node}: {said}");
    }
    for (node, said) in cluster.clean_up().unwrap() {
        assert_eq!(said, "nothing of ours found\n", "{node}");
    }
    assert_eq!(reach(&cluster, &probe).unwrap(), [true], "something still drops");
    for node in &nodes {
        let left = cluster.on_node(node, &["find", "/sys/fs/bpf", "-name", "*portcullis*"]).unwrap();
        assert_eq!(left, "", "{node}");
        let left = cluster.on_node(node, &["find", "/run/portcullis", "-mindepth", "1"]).unwrap();
        assert_eq!(left, "", "{node}");
        let left =
            cluster.on_node(node, &["find", "/opt/cni/bin", "/etc/cni/net.d", "-name", "*portcullis*"]);
        assert_eq!(left.unwrap(), "", "{node}");
    }
    let kinds = "daemonsets,pods,serviceaccounts,clusterroles,clusterrolebindings,services,configmaps";
    let left = cluster.get(&[kinds, "-A", "-l", SELECTOR]).unwrap();
    assert!(items(&left).is_empty(), "{left}");
    cluster.delete_namespaces(&[OURS]).unwrap();
}
