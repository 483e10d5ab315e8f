//! Generated objects of kind NetworkPolicy, from plain to hopeless.

use serde_json::{Map, Value, json};

use super::{Draft, NAMESPACES, PORT_NAMES, PORTS};

/// Whose labels a selector is for.
#[derive(Clone, Copy)]
pub(super) enum Of {
    Pods,
    Namespaces,
    Nodes,
}

impl Draft {
    pub(super) fn policy(&mut self) -> Value {
        let namespace =
            if self.rng.chance(30) { *self.rng.pick(&NAMESPACES) } else { *self.rng.pick(&self.namespaces) };
        // Few names: now and then the same one comes twice, and the later wins.
        let name = format!("{}{}", self.rng.pick(&["np", "np-", "a"]), self.rng.below(20));
        let mut metadata = Map::new();
        metadata.insert("name".to_owned(), json!(name));
        if namespace != "default" || self.rng.chance(700) {
            metadata.insert("namespace".to_owned(), json!(namespace));
        }
        let mut policy = Map::new();
        let version = if self.dirty() { "extensions/v1beta1" } else { "networking.k8s.io/v1" };
        policy.insert("apiVersion".to_owned(), json!(version));
        policy.insert("kind".to_owned(), json!("NetworkPolicy"));
        policy.insert("metadata".to_owned(), Value::Object(metadata));
        match self.rng.below(100) {
            0 if self.dirt > 0 => {}
            1 if self.dirt > 0 => {
                policy.insert("spec".to_owned(), Value::Null);
            }
            _ => {
                let spec = self.spec();
                self.put(&mut policy, "spec", spec);
            }
        }
        // Outside the spec: a warning, nothing more.
        self.put_unknown(&mut policy, &["status", "specs"]);
        Value::Object(policy)
    }

    fn spec(&mut self) -> Value {
        let mut spec = Map::new();
        match self.rng.below(25) {
            0 => {}
            1 => {
                spec.insert("podSelector".to_owned(), Value::Null);
            }
            _ => {
                let selector = self.selector(Of::Pods);
                self.put(&mut spec, "podSelector", selector);
            }
        }
        if let Some(types) = self.policy_types() {
            self.put(&mut spec, "policyTypes", types);
        }
        for (list, peers) in [("ingress", "from"), ("egress", "to")] {
            if self.rng.chance(750) {
                let rules = (0..self.rng.between(1, 3)).map(|_| self.rule(peers)).collect();
                self.put_list(&mut spec, list, rules);
            }
        }
        self.put_unknown(&mut spec, &["podSelectors", "Ingress", "policyType", "priority"]);
        Value::Object(spec)
    }

    pub(super) fn policy_types(&mut self) -> Option<Value> {
        if self.dirty() {
            let invalid = [
                json!(["Foo"]),
                json!(["Ingress", "Foo"]),
                json!(["ingress"]),
                json!([5, "Egress"]),
                json!([null]),
                json!({}),
                json!("Ingress"),
            ];
            return Some(self.rng.pick(&invalid).clone());
        }
        match self.rng.below(20) {
            0..4 => None,
            4 => Some(Value::Null),
            5 => Some(json!([])),
            6..10 => Some(json!(["Ingress"])),
            10..13 => Some(json!(["Egress"])),
            13 => Some(json!(["Egress", "Ingress", "Egress"])),
            _ => Some(json!(["Ingress", "Egress"])),
        }
    }

    fn rule(&mut self, peers_name: &str) -> Value {
        if self.rng.chance(60) {
            return json!({});
        }
        if self.rng.chance(self.dirt / 4) {
            return self.rng.pick(&[Value::Null, json!("rule"), json!([])]).clone();
        }
        let mut rule = Map::new();
        if self.rng.chance(850) {
            let peers = (0..self.rng.between(1, 3)).map(|_| self.peer()).collect();
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

    fn peer(&mut self) -> Value {
        if self.dirty() {
            let (cidr, _) = self.addresses.block(&mut self.rng);
            let invalid = [
                json!({}),
                Value::Null,
                json!("peer"),
                json!({"podSelector": null}),
                json!({"ipBlock": {"cidr": cidr}, "podSelector": {}}),
                json!({"ipBlock": {"cidr": cidr}, "namespaceSelector": {}}),
                json!({"ipBlock": {}, "podSelector": {}, "namespaceSelector": {}}),
            ];
            return self.rng.pick(&invalid).clone();
        }
        let mut peer = Map::new();
        let kind = self.rng.below(10);
        if kind < 6 {
            if kind < 4 {
                let selector = self.selector(Of::Pods);
                self.put(&mut peer, "podSelector", selector);
            }
            if kind > 2 {
                let selector = self.selector(Of::Namespaces);
                self.put(&mut peer, "namespaceSelector", selector);
            }
        } else {
            let block = self.ip_block();
            self.put(&mut peer, "ipBlock", block);
        }
        // An explicit null is an absent field.
        if self.rng.chance(50) {
            let name = *self.rng.pick(&["podSelector", "namespaceSelector", "ipBlock"]);
            peer.entry(name).or_insert(Value::Null);
        }
        self.put_unknown(&mut peer, &["podSelectors", "namespaces", "ipblock"]);
        Value::Object(peer)
    }

    pub(super) fn ip_block(&mut self) -> Value {
        let (mut cidr, mut excepts) = self.addresses.block(&mut self.rng);
        if self.dirty() {
            let unreadable = [
                "10.0.0.1",
                "10.0.0.0/33",
                "256.0.0.0/8",
                "10.0.0/24",
                "10.0.0.0.0/8",
                "fd00::/129",
                "fd00:::/64",
                "10.0.0.0/-1",
                "10.0.0.0/+8",
                " 10.0.0.0/8",
                "10.0.0.0/",
                "/8",
                "",
                "world",
                "0x0a.0.0.0/8",
            ];
            let text = (*self.rng.pick(&unreadable)).to_owned();
            match self.rng.below(3) {
                0 => cidr = text,
                1 => excepts.push(text),
                _ => excepts.push(self.addresses.other_family(&mut self.rng, &cidr)),
            }
        }
        let mut block = Map::new();
        if !self.rng.chance(self.dirt / 4) {
            self.put(&mut block, "cidr", json!(cidr));
        }
        if !excepts.is_empty() {
            let excepts = excepts.into_iter().map(Value::String).collect();
            self.put(&mut block, "except", Value::Array(excepts));
        } else if self.rng.chance(100) {
            let empty = self.rng.pick(&[json!([]), Value::Null]).clone();
            self.put(&mut block, "except", empty);
        }
        self.put_unknown(&mut block, &["excepts", "Cidr"]);
        Value::Object(block)
    }

    pub(super) fn port(&mut self) -> Value {
        if self.rng.chance(self.dirt / 4) {
            return self.rng.pick(&[Value::Null, json!(80), json!("TCP/80")]).clone();
        }
        let mut port = Map::new();
        if self.dirty() {
            let protocol = self.rng.pick(&["tcp", "", "ICMP", "Udp"]);
            port.insert("protocol".to_owned(), json!(protocol));
        } else if self.rng.chance(700) {
            let protocol = self.protocol().to_string();
            self.put(&mut port, "protocol", json!(protocol));
        } else if self.rng.chance(100) {
            port.insert("protocol".to_owned(), Value::Null);
        }
        let number = *self.rng.pick(&PORTS);
        let kind = self.rng.below(20);
        match kind {
            0..3 => {}
            3..8 => {
                let name = *self.rng.pick(&PORT_NAMES);
                port.insert("port".to_owned(), json!(name));
            }
            8 => {
                port.insert("port".to_owned(), json!("unknown-name"));
            }
            _ => self.put(&mut port, "port", json!(number)),
        }
        if self.dirty() {
            let invalid = [
                json!(0),
                json!(65536),
                json!(-80),
                json!("80"),
                json!(80.5),
                json!("Web"),
                json!("no--name"),
                json!(""),
                json!("a-name-far-too-long"),
                Value::Null,
            ];
            port.insert("port".to_owned(), self.rng.pick(&invalid).clone());
        }
        if kind > 15 {
            let end = if self.rng.chance(300) { number } else { number.saturating_add(400) };
            self.put(&mut port, "endPort", json!(end));
        } else if self.dirty() {
            let invalid = [json!(number - 1), json!(65536), json!(0), json!("90"), json!(number)];
            port.insert("endPort".to_owned(), self.rng.pick(&invalid).clone());
        }
        self.put_unknown(&mut port, &["endport", "targetPort", "name"]);
        Value::Object(port)
    }

    pub(super) fn selector(&mut self, of: Of) -> Value {
        let mut selector = Map::new();
        let kind = self.rng.below(10);
        if (2..7).contains(&kind) {
            let mut labels = Map::new();
            for _ in 0..self.rng.between(1, 2) {
                let (key, values) = self.label(of);
                let value =
                    if self.rng.chance(self.dirt / 4) { json!(1) } else { json!(self.rng.pick(values)) };
                labels.insert(key.to_owned(), value);
            }
            if self.rng.chance(self.dirt / 4) {
                labels.insert(String::new(), json!("x"));
            }
            self.put(&mut selector, "matchLabels", Value::Object(labels));
        }
        if kind >= 6 {
            let expressions = (0..self.rng.between(1, 2)).map(|_| self.expression(of)).collect();
            self.put(&mut selector, "matchExpressions", Value::Array(expressions));
        }
        if kind < 2 && self.rng.chance(200) {
            let empty = [json!([]), Value::Null];
            selector.insert("matchExpressions".to_owned(), self.rng.pick(&empty).clone());
            selector.insert("matchLabels".to_owned(), Value::Null);
        }
        self.put_unknown(&mut selector, &["matchLabel", "matchexpressions", "app"]);
        Value::Object(selector)
    }

    fn expression(&mut self, of: Of) -> Value {
        let (key, values) = self.label(of);
        let operator = *self.rng.pick(&["In", "In", "NotIn", "NotIn", "Exists", "DoesNotExist"]);
        let mut expression = Map::new();
        let wants_values = matches!(operator, "In" | "NotIn");
        let mut listed: Vec<Value> =
            (0..self.rng.between(1, 2)).map(|_| json!(self.rng.pick(values))).collect();
        self.put(&mut expression, "key", json!(key));
        self.put(&mut expression, "operator", json!(operator));
        // S13: with and without values, the wrong way round if dirty.
        if wants_values != self.dirty() {
            if self.rng.chance(self.dirt / 4) {
                listed.push(json!(3));
            }
            self.put(&mut expression, "values", Value::Array(listed));
        } else if self.rng.chance(400) {
            let empty = [json!([]), Value::Null];
            expression.insert("values".to_owned(), self.rng.pick(&empty).clone());
        }
        if self.dirty() {
            let operators = [json!("in"), json!("Gt"), json!(""), json!("Equals"), Value::Null];
            expression.insert("operator".to_owned(), self.rng.pick(&operators).clone());
        }
        if self.rng.chance(self.dirt / 3) {
            expression.insert("key".to_owned(), json!(""));
        }
        self.put_unknown(&mut expression, &["value", "Key"]);
        Value::Object(expression)
    }

    /// A label key, and values that it may have; the last value of each is one that nobody has.
    fn label(&mut self, of: Of) -> (&'static str, &'static [&'static str]) {
        match (of, self.rng.below(12)) {
            (_, 0) => ("ghost", &["x", ""]),
            (Of::Pods, 1..8) => ("app", &["web", "web", "db", "", "api"]),
            (Of::Pods, _) => ("tier", &["front", "back", "middle"]),
            (Of::Namespaces, 1..5) => ("team", &["a", "b", "", "c"]),
            (Of::Namespaces, 5..8) => ("env", &["prod", "prod", "dev", "test"]),
            (Of::Nodes, 1..6) => ("role", &["edge", "core", "core", ""]),
            (Of::Nodes, _) => ("zone", &["a", "b", "c"]),
            (Of::Namespaces, _) => ("kubernetes.io/metadata.name", &NAMESPACES),
        }
    }
}
