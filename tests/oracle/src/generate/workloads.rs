//! Generated namespaces, nodes, pods and Services.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::addresses::NODES;
use super::{Draft, PORT_NAMES, PORTS};

const TIMES: [&str; 4] =
    ["2024-05-01T10:00:00Z", "2024-05-01T11:30:00+02:00", "2024-05-01T10:00:01Z", "2023-12-31T23:59:59Z"];

impl Draft {
    pub(super) fn namespaces(&mut self) -> Vec<Value> {
        let mut manifests = Vec::new();
        for name in self.namespaces.clone() {
            // S34: some are used and never declared.
            if self.rng.chance(60) {
                continue;
            }
            for _ in 0..if self.rng.chance(40) { 2 } else { 1 } {
                manifests.push(self.namespace(name));
            }
        }
        manifests
    }

    fn namespace(&mut self, name: &str) -> Value {
        let mut labels = Map::new();
        for (key, values) in [("team", ["a", "b", ""]), ("env", ["prod", "prod", "dev"])] {
            if self.rng.chance(650) {
                labels.insert(key.to_owned(), json!(self.rng.pick(&values)));
            }
        }
        // S15: true, absent, or a lie.
        match self.rng.below(6) {
            0 => labels.insert("kubernetes.io/metadata.name".to_owned(), json!(name)),
            1 => labels.insert("kubernetes.io/metadata.name".to_owned(), json!("blue")),
            _ => None,
        };
        let mut metadata = Map::new();
        metadata.insert("name".to_owned(), json!(name));
        if self.rng.chance(900) {
            metadata.insert("labels".to_owned(), Value::Object(labels));
        }
        if self.rng.chance(50) {
            metadata.insert("deletionTimestamp".to_owned(), json!("2024-05-02T00:00:00Z"));
        }
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    }

    pub(super) fn nodes(&mut self) -> Vec<Value> {
        let [a4, b4, a6, b6] = NODES;
        let node = |name: &str, v4: &str, v6: &str| {
            json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "status": {"addresses": [
                    {"type": "InternalIP", "address": v4}, {"type": "InternalIP", "address": v6},
                ]},
            })
        };
        let mut nodes = vec![node("node-a", a4, a6), node("node-b", b4, b6)];
        nodes.truncate(self.rng.between(0, 2));
        nodes
    }

    pub(super) fn pods(&mut self) -> Vec<Value> {
        let mut manifests = Vec::new();
        for number in 0..self.rng.between(2, 10) {
            let namespace = *self.rng.pick(&self.namespaces);
            // "p-1" sorts after "p" and before "p1": order is bytewise by name, not by "namespace/name".
            let name = format!("{}{number}", self.rng.pick(&["p", "p-", "q"]));
            self.pods.push(format!("{namespace}/{name}"));
            for turn in 0..if self.rng.chance(20) { 2 } else { 1 } {
                manifests.push(self.pod(namespace, &name, number * 2 + turn));
            }
        }
        manifests
    }

    fn pod(&mut self, namespace: &str, name: &str, number: usize) -> Value {
        let host_network = self.rng.chance(70);
        let mut metadata = Map::new();
        metadata.insert("name".to_owned(), json!(name));
        if namespace != "default" || self.rng.chance(700) {
            metadata.insert("namespace".to_owned(), json!(namespace));
        }
        metadata.insert("uid".to_owned(), json!(format!("{:04x}-{number:03}", self.rng.below(0x1_0000))));
        let labels = self.pod_labels();
        if self.rng.chance(950) {
            metadata.insert("labels".to_owned(), labels);
        }
        // S33.
        if self.rng.chance(70) {
            metadata.insert("deletionTimestamp".to_owned(), json!("2024-05-02T00:00:00Z"));
        }

        let mut spec = Map::new();
        let containers: Vec<Value> = (0..self.rng.between(1, 2)).map(|_| self.container()).collect();
        spec.insert("containers".to_owned(), Value::Array(containers));
        if self.rng.chance(250) {
            let mut init: Vec<Value> = (0..self.rng.between(1, 2)).map(|_| self.container()).collect();
            for container in &mut init {
                let policies = [json!("Always"), json!("Always"), json!("Never"), Value::Null];
                let policy = self.rng.pick(&policies).clone();
                if let Some(container) = container.as_object_mut() {
                    container.insert("restartPolicy".to_owned(), policy);
                }
            }
            spec.insert("initContainers".to_owned(), Value::Array(init));
        }
        if host_network || self.rng.chance(50) {
            spec.insert("hostNetwork".to_owned(), json!(host_network));
        }
        let status = self.pod_status(host_network);
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status})
    }

    pub(super) fn pod_labels(&mut self) -> Value {
        let mut labels = Map::new();
        for (key, values) in [("app", ["web", "web", "db", ""]), ("tier", ["front", "back", "back", "front"])]
        {
            if self.rng.chance(800) {
                labels.insert(key.to_owned(), json!(self.rng.pick(&values)));
            }
        }
        Value::Object(labels)
    }

    pub(super) fn container(&mut self) -> Value {
        let mut ports = Vec::new();
        for _ in 0..self.rng.between(0, 3) {
            let mut port = Map::new();
            let number = if self.dirty() {
                self.rng.pick(&[json!(0), json!(70000), json!("80"), json!(-1)]).clone()
            } else {
                json!(self.rng.pick(&PORTS))
            };
            port.insert("containerPort".to_owned(), number);
            if self.rng.chance(850) {
                port.insert("name".to_owned(), json!(self.rng.pick(&PORT_NAMES)));
            }
            match self.rng.below(10) {
                0..4 => {}
                4 => {
                    port.insert("protocol".to_owned(), Value::Null);
                }
                _ if self.dirty() => {
                    port.insert("protocol".to_owned(), json!("tcp"));
                }
                _ => {
                    let protocol = self.protocol().to_string();
                    port.insert("protocol".to_owned(), json!(protocol));
                }
            }
            ports.push(Value::Object(port));
        }
        json!({"name": "c", "image": "image", "ports": ports})
    }

    fn pod_status(&mut self, host_network: bool) -> Value {
        let mut status = Map::new();
        // S32: a missing phase is live.
        let phases = ["Running", "Running", "Running", "Running", "Running", "Pending", "Unknown"];
        if self.rng.chance(80) {
            status.insert("phase".to_owned(), json!(self.rng.pick(&["Succeeded", "Failed"])));
        } else if self.rng.chance(900) {
            status.insert("phase".to_owned(), json!(self.rng.pick(&phases)));
        }
        if self.rng.chance(750) {
            status.insert("startTime".to_owned(), json!(self.rng.pick(&TIMES)));
        }
        let addresses = self.pod_addresses(host_network);
        match (addresses.first(), self.rng.below(10)) {
            (None, _) => {}
            (Some(first), 0) => {
                status.insert("podIP".to_owned(), json!(first.to_string()));
            }
            (Some(first), _) => {
                let list: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
                status.insert("podIP".to_owned(), json!(first.to_string()));
                status.insert("podIPs".to_owned(), Value::Array(list));
            }
        }
        Value::Object(status)
    }

    fn pod_addresses(&mut self, host_network: bool) -> Vec<IpAddr> {
        let [a4, _, a6, _] = NODES;
        let mut addresses: Vec<IpAddr> = Vec::new();
        if self.rng.chance(40) {
            return addresses;
        }
        for (has, v4) in [(self.addresses.v4, true), (self.addresses.v6, false)] {
            if !has || (self.addresses.v4 && self.addresses.v6 && self.rng.chance(80)) {
                continue;
            }
            if host_network && self.rng.chance(800) {
                addresses.extend(if v4 { a4 } else { a6 }.parse::<IpAddr>().ok());
                continue;
            }
            // S50: sometimes one that another pod shows too.
            let shared = if self.rng.chance(90) { self.addresses.used(&mut self.rng) } else { None };
            match shared {
                Some(address) if address.is_ipv4() == v4 => addresses.push(address),
                Some(_) | None if v4 => addresses.push(self.addresses.fresh_v4(&mut self.rng)),
                Some(_) | None => addresses.push(self.addresses.fresh_v6(&mut self.rng)),
            }
        }
        if self.rng.chance(200) {
            addresses.reverse();
        }
        addresses
    }

    pub(super) fn services(&mut self) -> Vec<Value> {
        let mut services = Vec::new();
        for number in 0..*self.rng.pick(&[0, 0, 1, 2]) {
            let mut spec = Map::new();
            let address = self.service_address();
            match self.rng.below(8) {
                0 => {
                    spec.insert("clusterIP".to_owned(), json!("None"));
                    spec.insert("clusterIPs".to_owned(), json!(["None"]));
                }
                1 => {
                    spec.insert("clusterIP".to_owned(), json!(""));
                }
                2 => {
                    spec.insert("clusterIP".to_owned(), json!(address));
                }
                _ => {
                    let second = self.service_address();
                    spec.insert("clusterIP".to_owned(), json!(address));
                    spec.insert("clusterIPs".to_owned(), json!([address, second]));
                }
            }
            if self.rng.chance(300) {
                let address = self.service_address();
                spec.insert("externalIPs".to_owned(), json!([address]));
            }
            spec.insert("ports".to_owned(), json!([{"port": 80, "targetPort": 8080}]));
            let mut status = json!({});
            if self.rng.chance(300) {
                let address = self.service_address();
                status = json!({"loadBalancer": {"ingress": [{"ip": address}, {"hostname": "lb.example"}]}});
            }
            services.push(json!({
                "apiVersion": "v1", "kind": "Service", "spec": spec, "status": status,
                "metadata": {"name": format!("svc{number}"), "namespace": self.rng.pick(&self.namespaces)},
            }));
        }
        services
    }

    /// Mostly one of a range of its own; sometimes one among the pods, or a pod's or a node's very own.
    fn service_address(&mut self) -> String {
        let v4 = self.addresses.v4 && (!self.addresses.v6 || self.rng.chance(500));
        let host = self.rng.between(1, 9);
        let own = if v4 { format!("10.96.0.{host}") } else { format!("fd00:96::{host}") };
        let address: Option<IpAddr> = match self.rng.below(10) {
            0 => Some(if v4 {
                self.addresses.fresh_v4(&mut self.rng)
            } else {
                self.addresses.fresh_v6(&mut self.rng)
            }),
            1 => self.addresses.used(&mut self.rng),
            2 => self.rng.pick(&NODES).parse().ok(),
            _ => own.parse().ok(),
        };
        address.map(|address| self.addresses.note(address).to_string()).unwrap_or_default()
    }
}
