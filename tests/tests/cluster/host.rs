//! The host firewall: hostNetwork pods of one node are told apart, a policy that denies everything cuts no node off, and a new
//! hostNetwork pod is closed from its first packet. It has the agents run with `--host-firewall`, and without it afterwards.

use portcullis_tests::cluster::scene::{datagrams, idle, namespace, pod, scripted};
use portcullis_tests::cluster::{Cluster, DEADLINE, NAMESPACE, items, server, text, until};
use serde_json::{Value, json};

const OURS: &str = "pc-host";
const PORT_A: u16 = 7001;
const PORT_B: u16 = 7002;
/// How long a connection that nobody answers is waited for, in seconds.
const PATIENCE: u32 = 3;
/// For how long a node has to do well, in seconds: a kubelet that reaches nobody is told of after 40.
const WELL: u64 = 45;

/// Agents with the host firewall, and the policies of this test; both go with this value.
struct HostFirewall<'a>(&'a Cluster);

impl<'a> HostFirewall<'a> {
    fn on(cluster: &'a Cluster) -> Self {
        cluster.install().unwrap();
        let this = Self(cluster);
        let add = |flag: &str| json!({"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": flag});
        // A node that is cut off is to be seen, and not to be saved.
        let patch = json!([add("--host-firewall"), add("--rollback-after=0")]).to_string();
        let words = ["-n", NAMESPACE, "patch", "daemonset", "portcullis", "--type=json", "-p", &patch];
        cluster.kubectl(&words).unwrap();
        cluster.rolled_out().unwrap();
        this
    }
}

impl Drop for HostFirewall<'_> {
    fn drop(&mut self) {
        // Whatever went wrong, the next test has a cluster without them.
        let _ = self.0.kubectl(&["delete", "hostpolicies", "--all", "--timeout=60s"]);
        let _ = self.0.install();
    }
}

/// A HostPolicy.
fn host_policy(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "portcullis.dev/v1alpha1", "kind": "HostPolicy", "metadata": {"name": name}, "spec": spec})
}

/// A subject: hostNetwork pods of ours.
fn of_pods(app: &str) -> Value {
    let namespace = json!({"matchLabels": {"kubernetes.io/metadata.name": OURS}});
    json!({"pods": {"namespaceSelector": namespace, "podSelector": {"matchLabels": {"app": app}}}})
}

fn host_pod(name: &str, node: &str, containers: &Value) -> Value {
    let mut pod = pod(OURS, name, node, &json!({"app": name}), containers);
    pod["spec"]["hostNetwork"] = json!(true);
    pod
}

/// Waits until the agents of these nodes have written that this state of the policy is in force there.
fn realised(cluster: &Cluster, name: &str, nodes: &[String]) {
    let mut last = Value::Null;
    let done = until(DEADLINE, || {
        let policy = cluster.get(&["hostpolicy", name])?;
        let generation = policy["metadata"]["generation"].clone();
        let is_done = nodes.iter().all(|node| {
            let entry = &policy["status"]["nodes"][node];
            let conditions = entry["conditions"].as_array().map_or(&[][..], Vec::as_slice);
            let is = |kind: &str| conditions.iter().any(|one| one["type"] == kind && one["status"] == "True");
            entry["observedGeneration"] == generation && is("Accepted") && is("Realised")
        });
        last = policy["status"].clone();
        Ok(is_done.then_some(()))
    });
    assert!(done.unwrap().is_some(), "HostPolicy {name} is not in force on {nodes:?}: {last}");
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
enum From<'a> {
    /// A pod of ours.
    Pod(&'a str),
    /// A process of a node.
    Node(&'a str),
}

/// Whether a connection comes about.
fn reaches(cluster: &Cluster, from: From<'_>, address: &str, port: u16) -> bool {
    let connect = format!("exec 3<>/dev/tcp/{address}/{port}");
    let say = "&& echo yes || echo no";
    let said = match from {
        From::Pod(name) => {
            let script =
                format!("/bin/busybox timeout {PATIENCE} /bin/bash -c '{connect}' 2>/dev/null {say}");
            cluster.kubectl(&["-n", OURS, "exec", name, "--", "/bin/bash", "-c", &script])
        }
        From::Node(node) => {
            let script = format!("timeout {PATIENCE} bash -c '{connect}' 2>/dev/null {say}");
            cluster.on_node(node, &["bash", "-c", &script])
        }
    };
    match said.unwrap().trim() {
        "yes" => true,
        "no" => false,
        other => panic!("{from:?} {address}:{port}: {other}"),
    }
}

/// Each of these, as it should be: who asks, which address and port, whether it is answered.
fn expect(cluster: &Cluster, when: &str, all: &[(From<'_>, &str, u16, bool)]) {
    let wrong: Vec<String> = all
        .iter()
        .filter(|(from, address, port, is_open)| reaches(cluster, *from, address, *port) != *is_open)
        .map(|(from, address, port, is_open)| {
            format!("{from:?} -> {address}:{port}, open: should be {is_open}")
        })
        .collect();
    assert!(wrong.is_empty(), "{when}: {wrong:#?}");
}

/// The address of a node by IPv4.
fn address(cluster: &Cluster, node: &str) -> String {
    let node = cluster.get(&["node", node]).unwrap();
    let all = node.pointer("/status/addresses").and_then(Value::as_array).unwrap();
    let internal = all.iter().filter(|one| one["type"] == "InternalIP").map(|one| text(one, "/address"));
    internal.into_iter().find(|address| !address.contains(':')).unwrap()
}

fn ready(cluster: &Cluster, kind: &[&str]) -> Vec<bool> {
    let listed = cluster.get(kind).unwrap();
    let is_ready = |one: &Value| {
        let conditions = one.pointer("/status/conditions").and_then(Value::as_array);
        conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
    };
    items(&listed).iter().map(is_ready).collect()
}

/// A server with a network of its own that its kubelet asks every second, and a Service that leads to it.
fn served(node: &str) -> [Value; 2] {
    let mut served =
        pod(OURS, "served", node, &json!({"app": "served"}), &json!([server("serve", 80, &json!([]))]));
    let probe = json!({"httpGet": {"port": 80, "path": "/"}, "periodSeconds": 1, "failureThreshold": 3});
    served["spec"]["containers"][0]["readinessProbe"] = probe;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "served", "namespace": OURS},
        "spec": {"type": "NodePort", "selector": {"app": "served"}, "ports": [{"port": 80}]}});
    [served, service]
}

/// A hostNetwork pod that sends from its first instruction, for two seconds.
fn sender(name: &str, node: &str, to: &[String]) -> Value {
    let datagrams = datagrams(to);
    let script = format!(
        "exec 2>/dev/null\nfor i in {{1..60}}; do {datagrams} done\n\
         for i in {{1..20}}; do {datagrams} /bin/busybox sleep 0.1; done\nexit 0\n"
    );
    let mut pod = host_pod(name, node, &scripted(&script));
    pod["spec"]["restartPolicy"] = json!("Never");
    pod
}

/// Starts one, and waits until it has sent what it sends.
fn send(cluster: &Cluster, pod: &Value) {
    cluster.apply(std::slice::from_ref(pod)).unwrap();
    let name = text(pod, "/metadata/name");
    let words =
        ["-n", OURS, "wait", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=90s", "pod", &name];
    cluster.kubectl(&words).unwrap();
}

/// Two hostNetwork pods of a node, who asks them, and a pod that others ask.
fn stage(cluster: &Cluster, here: &str, there: &str) {
    cluster.delete_namespaces(&[OURS]).unwrap();
    cluster.apply(&[namespace(OURS)]).unwrap();
    let [served, service] = served(here);
    let objects = [
        host_pod("a", here, &json!([server("serve", PORT_A, &json!([]))])),
        host_pod("b", here, &json!([server("serve", PORT_B, &json!([]))])),
        // Of the same node: towards another the CNI plugin may hide it behind its own.
        pod(OURS, "client", here, &json!({"app": "client"}), &idle()),
        pod(OURS, "far", there, &json!({"app": "far"}), &idle()),
        pod(OURS, "listener", there, &json!({"app": "listener"}), &idle()),
        served,
        service,
    ];
    cluster.apply(&objects).unwrap();
    cluster.pods_ready(OURS).unwrap();
}

#[test]
fn host_network_pods_of_a_node_are_told_apart_and_nothing_cuts_a_node_off() {
    let Some(cluster) = Cluster::of_environment() else { return };
    let nodes = cluster.nodes().unwrap();
    if nodes.len() < 2 {
        println!("skipped: the cluster has one node");
        return;
    }
    let (here, there) = (&nodes[0], &nodes[1]);
    let firewall = HostFirewall::on(&cluster);
    // given two hostNetwork pods of a node, and who asks them
    stage(&cluster, here, there);
    let to = address(&cluster, here);
    let (pod, node) = (From::Pod("client"), From::Node(there));
    expect(
        &cluster,
        "without a policy",
        &[
            (pod, &to, PORT_A, true),
            (pod, &to, PORT_B, true),
            (node, &to, PORT_A, true),
            (node, &to, PORT_B, true),
        ],
    );

    // when each has a policy of its own
    let client = json!({"podSelector": {"matchLabels": {"app": "client"}},
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": OURS}}});
    let other = json!({"nodes": {"nodeSelector": {"matchLabels": {"kubernetes.io/hostname": there}}}});
    let rule = |peer: &Value, port: u16| json!([{"from": [peer], "ports": [{"port": port}]}]);
    cluster
        .apply(&[
            host_policy("pc-a", &json!({"subject": of_pods("a"), "ingress": rule(&client, PORT_A)})),
            host_policy("pc-b", &json!({"subject": of_pods("b"), "ingress": rule(&other, PORT_B)})),
        ])
        .unwrap();
    let only_here = std::slice::from_ref(here);
    realised(&cluster, "pc-a", only_here);
    realised(&cluster, "pc-b", only_here);
    // then the same asker has different answers of them
    expect(
        &cluster,
        "with a policy each",
        &[
            (pod, &to, PORT_A, true),
            (pod, &to, PORT_B, false),
            (node, &to, PORT_A, false),
            (node, &to, PORT_B, true),
        ],
    );
    println!("{}", cluster.kubectl(&["get", "hostpolicies"]).unwrap());

    // when everything is denied to nodes and their pods; a new one was heard before
    let arrived = || cluster.arrived(OURS, "listener").unwrap();
    let listener = cluster.addresses(OURS, "listener").unwrap();
    send(&cluster, &sender("free", here, &listener));
    let heard = arrived();
    assert!(heard >= 60, "{heard}");
    cluster.kubectl(&["delete", "hostpolicies", "pc-a", "pc-b"]).unwrap();
    let both = json!(["Ingress", "Egress"]);
    cluster
        .apply(&[
            host_policy("pc-deny-nodes", &json!({"subject": {"nodes": {}}, "policyTypes": both})),
            host_policy("pc-deny-pods", &json!({"subject": {"pods": {}}, "policyTypes": both})),
        ])
        .unwrap();
    realised(&cluster, "pc-deny-nodes", &nodes);
    realised(&cluster, "pc-deny-pods", &nodes);
    // then hosts are closed, and pods are not
    expect(
        &cluster,
        "with everything denied",
        &[
            (pod, &to, PORT_A, false),
            (pod, &to, PORT_B, false),
            (node, &to, PORT_A, false),
            (node, &to, PORT_B, false),
        ],
    );
    let service = cluster.get(&["-n", OURS, "service", "served"]).unwrap();
    let node_port = service.pointer("/spec/ports/0/nodePort").and_then(Value::as_u64).unwrap();
    let node_port = u16::try_from(node_port).unwrap();
    expect(&cluster, "a node port of a pod", &[(From::Pod("far"), &to, node_port, true)]);
    // and a new hostNetwork pod is closed from its first packet
    let before = arrived();
    for number in 0..4 {
        send(&cluster, &sender(&format!("closed-{number}"), here, &listener));
    }
    assert_eq!(arrived() - before, 0, "packets of new hostNetwork pods arrived");
    // and no node is cut off: the kubelets tell of themselves, and are reached
    std::thread::sleep(std::time::Duration::from_secs(WELL));
    assert_eq!(ready(&cluster, &["nodes"]), vec![true; ready(&cluster, &["nodes"]).len()]);
    assert_eq!(ready(&cluster, &["-n", OURS, "pods", "-l", "app=served"]), [true], "its kubelet asks it");
    for pod in ["client", "far", "a"] {
        cluster.kubectl(&["-n", OURS, "exec", pod, "--", "/bin/bash", "-c", "exit 0"]).unwrap();
    }
    // and the agents hear of changes, and write what became of them
    let audit = json!({"subject": {"nodes": {}}, "policyTypes": both, "mode": "Audit"});
    cluster.apply(&[host_policy("pc-deny-nodes", &audit)]).unwrap();
    realised(&cluster, "pc-deny-nodes", &nodes);
    cluster.kubectl(&["delete", "hostpolicies", "--all"]).unwrap();
    let open = until(DEADLINE, || Ok(reaches(&cluster, node, &to, PORT_A).then_some(())));
    assert!(open.unwrap().is_some(), "without a policy it is open again");
    cluster.delete_namespaces(&[OURS]).unwrap();
    drop(firewall);
}

#[test]
fn the_server_refuses_what_could_not_be_read() {
    let Some(cluster) = Cluster::of_environment() else { return };
    cluster.apply_file("deploy/manifests/hostpolicies.yaml").unwrap();
    let established =
        ["wait", "--for=condition=Established", "--timeout=60s", "crd", "hostpolicies.portcullis.dev"];
    cluster.kubectl(&established).unwrap();
    let nodes = json!({"nodes": {}});
    let rule = |rule: Value| json!({"subject": nodes, "ingress": [rule]});
    let labels = |requirement: Value| json!({"subject": nodes, "ingress": [{"from": [{"podSelector": {"matchExpressions": [requirement]}}]}]});
    for (spec, says) in [
        (json!({"ingress": []}), "spec.subject"),
        (json!({"subject": {}}), "exactly one of nodes and pods"),
        (json!({"subject": {"nodes": {}, "pods": {}}}), "exactly one of nodes and pods"),
        (json!({"subject": nodes, "mode": "enforce"}), "spec.mode"),
        (json!({"subject": nodes, "policyTypes": ["In"]}), "spec.policyTypes"),
        (rule(json!({"from": [{}]})), "a peer is one of"),
        (rule(json!({"from": [{"nodes": {}, "podSelector": {}}]})), "a peer is one of"),
        (rule(json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]})), "cidr"),
        (rule(json!({"ports": [{"endPort": 9}]})), "endPort needs"),
        (rule(json!({"ports": [{"port": 9, "endPort": 8}]})), "endPort must not"),
        (rule(json!({"ports": [{"port": 0}]})), "from 1 to 65535"),
        (rule(json!({"ports": [{"port": "80"}]})), "from 1 to 65535"),
        (rule(json!({"ports": [{"port": "HTTP"}]})), "from 1 to 65535"),
        (rule(json!({"ports": [{"port": "a--b"}]})), "from 1 to 65535"),
        (rule(json!({"ports": [{"port": "abcdefghijklmnop"}]})), "Too long"),
        (labels(json!({"key": "a", "operator": "In"})), "matchExpressions[0]"),
        (labels(json!({"key": "a", "operator": "NotIn", "values": []})), "matchExpressions[0]"),
        (labels(json!({"key": "a", "operator": "Exists", "values": ["b"]})), "matchExpressions[0]"),
        (labels(json!({"key": "a", "operator": "Near", "values": ["b"]})), "matchExpressions[0]"),
        (labels(json!({"key": "", "operator": "Exists"})), "key"),
        (labels(json!({"operator": "Exists"})), "key"),
    ] {
        let object = host_policy("pc-refused", &spec).to_string();
        let words = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
        let said = cluster.kubectl_with(&words, &object).expect_err(&object).to_string();
        assert!(said.contains(says), "{object}: {says} is not in {said}");
    }
    let fine = json!({"subject": nodes, "ingress": [{"from": [{"ipBlock": {"cidr": "fd00::/8", "except": ["fd00:1::/32"]}},
        {"podSelector": {}, "namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]},
            {"key": "c", "operator": "DoesNotExist"}]}}],
        "ports": [{"port": "http"}, {"port": "8-a"}, {"port": 1, "endPort": 9, "protocol": "UDP"}]}]});
    let dry_run = |spec: &Value| {
        let object = host_policy("pc-fine", spec).to_string();
        let words = ["apply", "--dry-run=server", "--validate=strict", "-o", "json", "-f", "-"];
        let taken: Value = serde_json::from_str(&cluster.kubectl_with(&words, &object).unwrap()).unwrap();
        taken["spec"].clone()
    };
    dry_run(&fine);
    // What it does not know it keeps, so that the agents see it, and close.
    let unknown = dry_run(&rule(json!({"form": []})));
    assert_eq!(unknown["ingress"], json!([{"form": []}]));
}

#[test]
fn agents_say_of_an_unknown_field_that_they_do_not_understand_it() {
    let Some(cluster) = Cluster::of_environment() else { return };
    let nodes = cluster.nodes().unwrap();
    let firewall = HostFirewall::on(&cluster);
    // given a rule that without the mistake would let nodes of a label in, and without its field everybody
    let spec = json!({"mode": "Audit", "subject": {"nodes": {}}, "ingress": [{"form": [{"nodes": {}}]}]});
    // when it is applied
    cluster.apply(&[host_policy("pc-typo", &spec)]).unwrap();
    // then every node says which field it is
    let mut last = Value::Null;
    let done = until(DEADLINE, || {
        last = cluster.get(&["hostpolicy", "pc-typo"])?["status"].clone();
        let is_told = |node: &String| {
            let conditions = last["nodes"][node]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
            let says = |one: &Value| {
                one["message"].as_str().is_some_and(|text| text.contains("spec.ingress[0].form"))
            };
            conditions.iter().any(|one| one["type"] == "Accepted" && one["status"] == "False" && says(one))
        };
        Ok(nodes.iter().all(is_told).then_some(()))
    });
    assert!(done.unwrap().is_some(), "{last}");
    drop(firewall);
}
