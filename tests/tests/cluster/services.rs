//! Services through the real kube-proxy: which backend it chose its node's table of connections says, and what policies say of
//! that one an oracle. Both ends are this process, inside the pods' namespaces, so it needs a rig's nodes on this machine.
//! `PORTCULLIS_SERVICE_CALLS=N` makes so many calls.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use portcullis_lab::netns::Netns;
use portcullis_lab::traffic::Server;
use portcullis_oracle::World;
use portcullis_oracle::rng::SplitMix64;
use portcullis_policy::model::Protocol;
use portcullis_tests::cluster::scene::{count, idle, namespace, pod, policy};
use portcullis_tests::cluster::{Cluster, DEADLINE, items, text, until};
use portcullis_tests::services::{
    Ask, Face, Field, Score, enter_cgroup_below, leave_cgroup, root_of_cgroups,
};
use serde_json::{Value, json};

const OURS: &str = "pc-services";
const CALLS: usize = 500;
const BATCH: usize = 250;
/// How many are made until they come out right, after the cluster has changed.
const FIRST: usize = 60;
const PORT: u16 = 5000;
const CLIENTS: [&str; 3] = ["pc-services/c1", "pc-services/c2", "pc-services/c3"];
/// The machine between the rig's nodes: outside of the cluster.
const OUTSIDE: (&str, [&str; 2]) = ("k8s_fabric", ["172.30.0.1", "fd00:172:30::1"]);
const EXTERNAL: &str = "198.51.100.77";

struct Rig {
    node: Netns,
    pods: BTreeMap<String, Netns>,
    world: World,
}

impl Field for Rig {
    fn node(&self) -> &Netns {
        &self.node
    }

    fn pod(&self, name: &str) -> &Netns {
        &self.pods[name]
    }

    fn world(&self) -> &World {
        &self.world
    }

    fn is_closed(&self, _: SocketAddr) -> bool {
        false
    }
}

/// Addresses of a node.
fn addresses(node: &Value) -> Vec<IpAddr> {
    let all = node.pointer("/status/addresses").and_then(Value::as_array).unwrap();
    all.iter().filter_map(|one| one["address"].as_str()?.parse().ok()).collect()
}

fn block(address: &IpAddr) -> Value {
    json!({"ipBlock": {"cidr": format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })}})
}

fn objects(here: &str, there: &str, nodes: &[Vec<IpAddr>], outside: &[IpAddr]) -> Vec<Value> {
    let at = |name: &str, node: &str, tier: &str| {
        let role = if tier == "client" { "client" } else { "backend" };
        pod(OURS, name, node, &json!({"app": name, "tier": tier, "role": role}), &idle())
    };
    let mut all = vec![
        at("c1", here, "client"),
        at("c2", here, "client"),
        at("c3", here, "client"),
        at("b1", here, "a"),
        at("b2", here, "b"),
        at("b3", there, "a"),
        at("b4", there, "b"),
    ];
    let ports = ["TCP", "UDP"]
        .map(|protocol| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": 80, "targetPort": PORT}));
    let mut service = |name: &str, selector: Value| {
        let mut spec = json!({"type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "ports": ports});
        if selector.is_object() {
            spec["selector"] = selector;
        }
        if name == "pods" {
            spec["externalIPs"] = json!([EXTERNAL]);
        }
        all.push(
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": OURS},
            "spec": spec}),
        );
    };
    service("pods", json!({"role": "backend"}));
    service("own", json!({"app": "c1"}));
    service("hosts", Value::Null);
    let mut slice = |service: &str, name: &str, family: &str, addresses: Vec<String>| {
        let endpoints: Vec<Value> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
        let ports = ["TCP", "UDP"]
            .map(|protocol| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": PORT}));
        all.push(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{service}-{name}"), "namespace": OURS,
                "labels": {"kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": "portcullis-tests"}},
            "addressType": family, "endpoints": endpoints, "ports": ports}));
    };
    for (family, is_v4) in [("IPv4", true), ("IPv6", false)] {
        let hosts = nodes.iter().flatten().chain(outside).filter(|address| address.is_ipv4() == is_v4);
        slice("hosts", &family.to_lowercase(), family, hosts.map(ToString::to_string).collect());
    }
    let tier = |tier: &str| json!({"podSelector": {"matchLabels": {"tier": tier}}});
    let ports = json!([{"port": PORT}, {"port": PORT, "protocol": "UDP"}]);
    let of = |app: &str, rules: Value| json!({"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Egress"], "egress": rules});
    let mut first = vec![tier("a")];
    first.extend(nodes[0].iter().map(block));
    let mut second = vec![tier("b")];
    second.extend(nodes[1].iter().chain(outside).map(block));
    all.push(policy(OURS, "c1", &of("c1", json!([{"to": first, "ports": ports}]))));
    all.push(policy(OURS, "c2", &of("c2", json!([{"to": second, "ports": ports}]))));
    let from = json!({"podSelector": {"matchLabels": {"app": "b3"}}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "c1"}}}]}]});
    all.push(policy(OURS, "b3", &from));
    all
}

/// The namespaces of pods by their addresses: those of all processes of this machine are looked at.
fn namespaces(wanted: &BTreeMap<String, Vec<IpAddr>>) -> BTreeMap<String, Netns> {
    let mut seen = std::collections::BTreeSet::new();
    let mut found = BTreeMap::new();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        // One that has ended meanwhile has none.
        let Ok(link) = fs::read_link(format!("/proc/{pid}/ns/net")) else { continue };
        if !seen.insert(link) {
            continue;
        }
        let Ok(netns) = Netns::of_process(pid) else { continue };
        let Ok(Ok(held)) = netns.run(portcullis_agent::attach::foreign::addresses) else { continue };
        // A node has its pods' addresses in no case.
        if let Some((name, _)) =
            wanted.iter().find(|(_, addresses)| addresses.iter().any(|a| held.contains(a)))
        {
            found.insert(name.clone(), netns);
        }
    }
    found
}

fn asks(draw: &mut SplitMix64, calls: usize, targets: &[(Face, Protocol, SocketAddr)]) -> Vec<Ask<'static>> {
    (0..calls)
        .map(|_| {
            let (face, protocol, to) = *draw.pick(targets);
            Ask { client: CLIENTS[draw.below(CLIENTS.len())], face, protocol, to, bytes: 1 }
        })
        .collect()
}

#[test]
fn of_a_services_backends_the_one_that_kube_proxy_chose_decides() {
    let Some(cluster) = Cluster::of_environment() else { return };
    if env::var_os("PORTCULLIS_CLUSTER").is_none() {
        println!("skipped: only a rig's nodes are on this machine: PORTCULLIS_CLUSTER names none");
        return;
    }
    cluster.install().unwrap();
    let nodes = cluster.nodes().unwrap();
    let (here, there) = (&nodes[0], nodes.last().unwrap());
    let listed = cluster.get(&["nodes"]).unwrap();
    let of_node = |name: &String| {
        items(&listed).iter().find(|node| text(node, "/metadata/name") == *name).map(addresses).unwrap()
    };
    let of_nodes = [of_node(here), of_node(there)];
    let outside: Vec<IpAddr> = OUTSIDE.1.iter().map(|address| address.parse().unwrap()).collect();
    // What ends at the node's own sockets is judged at the root of its cgroups.
    let cgroup = enter_cgroup_below(&root_of_cgroups().join(format!("k8s_{here}")));
    let made = objects(here, there, &of_nodes, &outside);
    cluster.delete_namespaces(&[OURS]).unwrap();
    cluster.apply(&[namespace(OURS)]).unwrap();
    cluster.apply(&made).unwrap();
    cluster.pods_ready(OURS).unwrap();
    let pods = cluster.get(&["-n", OURS, "pods"]).unwrap();
    let of_pods: BTreeMap<String, Vec<IpAddr>> = items(&pods)
        .iter()
        .map(|pod| {
            let ips = pod.pointer("/status/podIPs").and_then(Value::as_array).unwrap();
            let ips = ips.iter().filter_map(|one| one["ip"].as_str()?.parse().ok()).collect();
            (format!("{OURS}/{}", text(pod, "/metadata/name")), ips)
        })
        .collect();
    let rig_pods = namespaces(&of_pods);
    assert_eq!(rig_pods.len(), of_pods.len(), "the namespaces of all pods were found");
    let server = Server::start().unwrap();
    let ports = [(Protocol::Tcp, PORT), (Protocol::Udp, PORT)];
    for (name, netns) in &rig_pods {
        server.serve(netns, name, &of_pods[name], &ports).unwrap();
    }
    for (node, addresses) in [here, there].into_iter().zip(&of_nodes) {
        server.serve(&Netns::open(&format!("k8s_{node}")).unwrap(), node, addresses, &ports).unwrap();
    }
    server.serve(&Netns::open(OUTSIDE.0).unwrap(), "outside", &outside, &ports).unwrap();
    let truth = cluster.get(&["namespaces,pods,networkpolicies,services,nodes", "-A"]).unwrap();
    let rig = Rig {
        node: Netns::open(&format!("k8s_{here}")).unwrap(),
        pods: rig_pods,
        world: World::new(items(&truth)),
    };
    let services = cluster.get(&["-n", OURS, "services"]).unwrap();
    let mut targets = Vec::new();
    for service in items(&services) {
        let addresses = |path: &str| -> Vec<IpAddr> {
            let all = service.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default();
            all.iter().filter_map(|one| one.as_str()?.parse().ok()).collect()
        };
        let virtuals = [addresses("/spec/clusterIPs"), addresses("/spec/externalIPs")].concat();
        for (number, protocol) in [Protocol::Tcp, Protocol::Udp].into_iter().enumerate() {
            targets.extend(virtuals.iter().map(|one| (Face::Virtual, protocol, SocketAddr::new(*one, 80))));
            let node_port =
                service.pointer(&format!("/spec/ports/{number}/nodePort")).and_then(Value::as_u64);
            let node_port = u16::try_from(node_port.unwrap()).unwrap();
            let nodes = of_nodes[0].iter();
            targets.extend(nodes.map(|one| (Face::NodePort, protocol, SocketAddr::new(*one, node_port))));
        }
    }
    let mut draw = SplitMix64::new(7);
    let settled = until(DEADLINE, || {
        let mut score = Score::default();
        score.add(&rig, &asks(&mut draw, FIRST, &targets));
        Ok(score.wrong.is_empty().then_some(()))
    });
    let mut score = Score::default();
    let mut left = count("PORTCULLIS_SERVICE_CALLS", CALLS);
    while left > 0 {
        let batch = left.min(BATCH);
        left -= batch;
        score.add(&rig, &asks(&mut draw, batch, &targets));
    }
    drop(server);
    leave_cgroup(&cgroup);
    score.check();
    settled.unwrap();
    println!(
        "{} calls of {} addresses and node ports, {} answered, {} refused, 0 wrong",
        score.asked,
        targets.len(),
        score.answered,
        score.refused
    );
    cluster.delete_namespaces(&[OURS]).unwrap();
}
