//! Generated clusters with a host firewall: nodes with labels, pods in their network, objects of kind HostPolicy, and
//! what the agent of one node is told.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::addresses::NODES;
use super::policies::Of;
use super::{Draft, PORTS};
use crate::hosts::Firewall;
use crate::verdict::{Protocol, Traffic};

/// A generated cluster, and the firewall of one of its nodes.
#[derive(Clone, Debug)]
pub struct HostCluster {
    /// Where it came from: `host_cluster(seed)` makes it again.
    pub seed: u64,
    /// In reading order.
    pub manifests: Vec<Value>,
    /// What the agent is told.
    pub firewall: Firewall,
    /// `namespace/name` of every pod: live, finished, in a network of its own or a node's.
    pub pods: Vec<String>,
    /// Addresses worth asking about: of nodes, loopback, Services, edges of ipBlocks, the world.
    pub externals: Vec<IpAddr>,
    /// What to send.
    pub traffics: Vec<Traffic>,
}

/// The cluster of a seed: always the same one.
#[must_use]
pub fn host_cluster(seed: u64) -> HostCluster {
    let mut draft = Draft::new(seed);
    let mut manifests = draft.namespaces();
    manifests.extend(draft.labelled_nodes());
    manifests.extend(draft.pods());
    for manifest in &mut manifests {
        draft.place(manifest);
    }
    for number in 0..draft.rng.between(1, 3) {
        let pod = draft.host_pod(number);
        manifests.push(pod);
    }
    manifests.extend(draft.services());
    for _ in 0..draft.rng.between(0, 4) {
        manifests.push(draft.policy());
    }
    for _ in 0..draft.rng.between(1, 5) {
        manifests.push(draft.host_policy());
    }
    draft.rng.shuffle(&mut manifests);
    let manifests = draft.wrap_in_lists(manifests);
    let mut externals = draft.addresses.of_interest(&mut draft.rng);
    externals.extend(["127.0.0.1", "127.9.9.9", "::1"].iter().filter_map(|text| text.parse::<IpAddr>().ok()));
    draft.rng.shuffle(&mut externals);
    externals.truncate(12);
    let firewall = draft.firewall();
    let mut traffics = draft.traffics();
    for _ in 0..3 {
        traffics.push(draft.failsafe_traffic());
    }
    let pods = draft.pods;
    HostCluster { seed, manifests, firewall, pods, externals, traffics }
}

impl Draft {
    fn labelled_nodes(&mut self) -> Vec<Value> {
        let [a4, b4, a6, b6] = NODES;
        let mut nodes = Vec::new();
        for (name, v4, v6) in [("node-a", a4, a6), ("node-b", b4, b6)] {
            // Now and then nobody has shown a node's object.
            if self.rng.chance(80) {
                continue;
            }
            let mut labels = Map::new();
            for (key, values) in [("role", ["edge", "core", ""]), ("zone", ["a", "b", "a"])] {
                if self.rng.chance(800) {
                    labels.insert(key.to_owned(), json!(self.rng.pick(&values)));
                }
            }
            let mut addresses = vec![json!({"type": "Hostname", "address": name})];
            for address in [v4, v6] {
                if self.rng.chance(850) {
                    addresses.push(json!({"type": "InternalIP", "address": address}));
                }
            }
            nodes.push(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
                "status": {"addresses": addresses},
            }));
        }
        nodes
    }

    /// Puts a pod on a node, mostly.
    fn place(&mut self, manifest: &mut Value) {
        if manifest.get("kind").and_then(Value::as_str) != Some("Pod") {
            return;
        }
        let node = match self.rng.below(10) {
            0..5 => "node-a",
            5..8 => "node-b",
            8 => "node-c",
            _ => return,
        };
        if let Some(spec) = manifest.get_mut("spec").and_then(Value::as_object_mut) {
            spec.insert("nodeName".to_owned(), json!(node));
        }
    }

    fn host_pod(&mut self, number: usize) -> Value {
        let namespace = *self.rng.pick(&self.namespaces);
        let name = format!("h{number}");
        self.pods.push(format!("{namespace}/{name}"));
        let mut labels = self.pod_labels();
        if self.rng.chance(60)
            && let Some(labels) = labels.as_object_mut()
        {
            labels.insert("app".to_owned(), json!(["web"]));
        }
        let [a4, b4, a6, b6] = NODES;
        let (node, shown) = if self.rng.chance(800) { ("node-a", [a4, a6]) } else { ("node-b", [b4, b6]) };
        let mut spec = Map::new();
        let containers: Vec<Value> = (0..self.rng.between(1, 2)).map(|_| self.container()).collect();
        spec.insert("containers".to_owned(), Value::Array(containers));
        spec.insert("hostNetwork".to_owned(), json!(true));
        if self.rng.chance(900) {
            spec.insert("nodeName".to_owned(), json!(node));
        }
        let mut status = json!({"phase": if self.rng.chance(50) { "Failed" } else { "Running" }});
        if self.rng.chance(850) {
            status = json!({"phase": "Running", "podIPs": shown.map(|ip| json!({"ip": ip}))});
        }
        json!({"apiVersion": "v1", "kind": "Pod", "status": status, "spec": spec,
            "metadata": {"name": name, "namespace": namespace, "labels": labels}})
    }

    fn host_policy(&mut self) -> Value {
        // Few names: the later of one name wins.
        let name = format!("{}{}", self.rng.pick(&["hp", "hp-", "z"]), self.rng.below(12));
        let version = if self.dirty() { "portcullis.dev/v1" } else { "portcullis.dev/v1alpha1" };
        let mut policy = Map::new();
        policy.insert("apiVersion".to_owned(), json!(version));
        policy.insert("kind".to_owned(), json!("HostPolicy"));
        policy.insert("metadata".to_owned(), json!({"name": name}));
        match self.rng.below(100) {
            0 if self.dirt > 0 => {}
            1 if self.dirt > 0 => {
                policy.insert("spec".to_owned(), Value::Null);
            }
            _ => {
                let spec = self.host_spec();
                self.put(&mut policy, "spec", spec);
            }
        }
        self.put_unknown(&mut policy, &["status", "specs"]);
        Value::Object(policy)
    }

    fn host_spec(&mut self) -> Value {
        let mut spec = Map::new();
        match self.rng.below(12) {
            0..3 => self.put(&mut spec, "mode", json!("Audit")),
            3 => self.put(&mut spec, "mode", Value::Null),
            4 | 5 => self.put(&mut spec, "mode", json!("Enforce")),
            _ if self.dirty() => {
                let invalid = [json!("audit"), json!(""), json!("Off"), json!(0), json!({})];
                spec.insert("mode".to_owned(), self.rng.pick(&invalid).clone());
            }
            _ => {}
        }
        if self.rng.chance(1000 - self.dirt / 2) {
            let subject = self.host_subject();
            self.put(&mut spec, "subject", subject);
        }
        if let Some(types) = self.policy_types() {
            self.put(&mut spec, "policyTypes", types);
        }
        for (list, peers) in [("ingress", "from"), ("egress", "to")] {
            if self.rng.chance(750) {
                let rules = (0..self.rng.between(1, 3)).map(|_| self.host_rule(peers)).collect();
                self.put_list(&mut spec, list, rules);
            }
        }
        self.put_unknown(&mut spec, &["podSelector", "Ingress", "policyType", "priority"]);
        Value::Object(spec)
    }

    fn host_subject(&mut self) -> Value {
        if self.dirty() {
            let invalid = [
                json!({}),
                Value::Null,
                json!([]),
                json!({"nodes": {}, "pods": {}}),
                json!({"nodes": null, "pods": null}),
                json!({"nodes": "all"}),
                json!({"pods": []}),
                json!({"nodes": {"nodeSelector": {"matchExpressions": [{"key": "", "operator": "Exists"}]}}}),
                json!({"pods": {"podSelector": {"matchLabels": {"app": 1}}}}),
                json!({"pods": {"namespaceSelector": "all"}}),
                json!({"node": {}}),
                json!({"nodes": {}, "node": {}}),
                json!({"nodes": {"selector": {}}}),
                json!({"pods": {"nodeSelector": {}}}),
            ];
            return self.rng.pick(&invalid).clone();
        }
        let mut subject = Map::new();
        if self.rng.chance(500) {
            let nodes = self.nodes_by_label();
            self.put(&mut subject, "nodes", nodes);
            if self.rng.chance(50) {
                subject.insert("pods".to_owned(), Value::Null);
            }
        } else {
            let mut pods = Map::new();
            for (name, of) in [("namespaceSelector", Of::Namespaces), ("podSelector", Of::Pods)] {
                match self.rng.below(10) {
                    0..4 => {}
                    4 => {
                        pods.insert(name.to_owned(), Value::Null);
                    }
                    _ => {
                        let selector = self.selector(of);
                        self.put(&mut pods, name, selector);
                    }
                }
            }
            self.put_unknown(&mut pods, &["nodeSelector", "podselector"]);
            self.put(&mut subject, "pods", Value::Object(pods));
        }
        self.put_unknown(&mut subject, &["Nodes", "pod"]);
        Value::Object(subject)
    }

    fn nodes_by_label(&mut self) -> Value {
        let mut nodes = Map::new();
        match self.rng.below(10) {
            0..3 => {}
            3 => {
                nodes.insert("nodeSelector".to_owned(), Value::Null);
            }
            _ => {
                let selector = self.selector(Of::Nodes);
                self.put(&mut nodes, "nodeSelector", selector);
            }
        }
        self.put_unknown(&mut nodes, &["podSelector", "selector"]);
        Value::Object(nodes)
    }

    fn host_rule(&mut self, peers_name: &str) -> Value {
        if self.rng.chance(60) {
            return json!({});
        }
        if self.rng.chance(self.dirt / 4) {
            return self.rng.pick(&[Value::Null, json!("rule"), json!([])]).clone();
        }
        let mut rule = Map::new();
        if self.rng.chance(850) {
            let peers = (0..self.rng.between(1, 3)).map(|_| self.host_peer()).collect();
            self.put_list(&mut rule, peers_name, peers);
        }
        if self.rng.chance(650) {
            let ports = (0..self.rng.between(1, 3)).map(|_| self.port()).collect();
            self.put_list(&mut rule, "ports", ports);
        }
        let other = if peers_name == "from" { "to" } else { "from" };
        self.put_unknown(&mut rule, &[other, "port", "form", "action"]);
        Value::Object(rule)
    }

    fn host_peer(&mut self) -> Value {
        if self.dirty() {
            let invalid = [
                json!({}),
                Value::Null,
                json!("peer"),
                json!({"nodes": {}, "podSelector": {}}),
                json!({"nodes": {}, "ipBlock": {"cidr": "0.0.0.0/0"}}),
                json!({"ipBlock": {"cidr": "0.0.0.0/0"}, "podSelector": {}}),
                json!({"nodes": []}),
                json!({"nodes": {"nodeSelector": {"matchLabels": {"role": 1}}}}),
                json!({"nodes": {"labels": {}}}),
                json!({"nodes": null}),
            ];
            return self.rng.pick(&invalid).clone();
        }
        let mut peer = Map::new();
        match self.rng.below(10) {
            0..4 => {
                let nodes = self.nodes_by_label();
                self.put(&mut peer, "nodes", nodes);
            }
            4 | 5 => {
                let block = self.ip_block();
                self.put(&mut peer, "ipBlock", block);
            }
            kind => {
                if kind < 9 {
                    let selector = self.selector(Of::Pods);
                    self.put(&mut peer, "podSelector", selector);
                }
                if kind > 7 {
                    let selector = self.selector(Of::Namespaces);
                    self.put(&mut peer, "namespaceSelector", selector);
                }
            }
        }
        if self.rng.chance(50) {
            let name = *self.rng.pick(&["podSelector", "namespaceSelector", "ipBlock", "nodes"]);
            peer.entry(name).or_insert(Value::Null);
        }
        self.put_unknown(&mut peer, &["podSelectors", "node", "ipblock"]);
        Value::Object(peer)
    }

    fn firewall(&mut self) -> Firewall {
        let mut firewall = Firewall::new("node-a");
        firewall.network_policies = self.rng.chance(500);
        if self.rng.chance(300) {
            let some = |draft: &mut Draft| -> Vec<(Protocol, u16, u16)> {
                let count = draft.rng.below(3);
                let one = |draft: &mut Draft| {
                    let port = *draft.rng.pick(&PORTS);
                    (draft.protocol(), port, port.saturating_add(u16::from(draft.rng.chance(300)) * 40))
                };
                (0..count).map(|_| one(draft)).collect()
            };
            firewall.failsafe_ingress = some(self);
            firewall.failsafe_egress = some(self);
        }
        for _ in 0..self.rng.below(4) {
            let known = self.addresses.of_interest(&mut self.rng);
            let address = *self.rng.pick(&known);
            firewall.api_servers.push((address, *self.rng.pick(&[443, 6443, 80])));
        }
        firewall
    }

    fn failsafe_traffic(&mut self) -> Traffic {
        let all = [
            Traffic::tcp(22),
            Traffic::tcp(2380),
            Traffic::tcp(6443),
            Traffic::tcp(443),
            Traffic::tcp(80),
            Traffic::udp(53),
            Traffic::udp(68),
            Traffic::udp(123),
            Traffic::sctp(22),
        ];
        *self.rng.pick(&all)
    }
}
