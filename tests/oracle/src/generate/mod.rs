//! Random clusters from a seed: manifests, and questions worth asking about them.
//!
//! It owns the vocabulary (few labels, few ports, few addresses, so that things match) and the mischief: about half
//! of the clusters are clean, the others hold what users and old API servers leave behind. It must not know how
//! anything is judged: it never asks a [`World`](crate::World).

mod addresses;
mod hosts;
mod policies;
mod workloads;

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::rng::SplitMix64;
use crate::verdict::{Direction, Family, Protocol, Traffic};
use addresses::Addresses;
pub use hosts::{HostCluster, host_cluster};

const NAMESPACES: [&str; 5] = ["blue", "default", "green", "green-2", "red"];
/// The ports of containers, rules and probes.
const PORTS: [u16; 7] = [80, 81, 443, 53, 8080, 1, 65535];
const PORT_NAMES: [&str; 4] = ["web", "dns", "metrics", "http-alt2"];

/// A generated cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Where it came from: `cluster(seed)` makes it again.
    pub seed: u64,
    /// In reading order; some are lists, some come twice, some of no interest.
    pub manifests: Vec<Value>,
    /// Traffic worth a whole matrix.
    pub traffics: Vec<Traffic>,
    /// Addresses worth asking about: pods' (live, finished, hostNetwork), neighbours, nodes, Services, edges of the
    /// ipBlocks, and the world.
    pub externals: Vec<IpAddr>,
    /// Pairs of pods; some of them are finished or without an address of the family.
    pub probes: Vec<Probe>,
    /// Pods and other addresses.
    pub external_probes: Vec<ExternalProbe>,
}

/// A question for [`World::pod_to_pod`](crate::World::pod_to_pod).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The source, as `namespace/name`.
    pub from: String,
    /// The destination.
    pub to: String,
    /// What is sent.
    pub traffic: Traffic,
    /// By which of the pods' addresses.
    pub family: Family,
}

/// A question for [`World::judge`](crate::World::judge).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalProbe {
    /// The pod that is judged, as `namespace/name`.
    pub pod: String,
    /// In which direction.
    pub direction: Direction,
    /// The other end.
    pub remote: IpAddr,
    /// What is sent; its port is the destination's.
    pub traffic: Traffic,
}

/// Every object, in reading order: those of lists too.
#[must_use]
pub fn flat(manifests: &[Value]) -> Vec<Value> {
    let mut objects = Vec::new();
    for manifest in manifests {
        match (manifest["kind"].as_str(), manifest["items"].as_array()) {
            (Some("List"), Some(items)) => objects.extend(flat(items)),
            _ => objects.push(manifest.clone()),
        }
    }
    objects
}

/// The cluster of a seed: always the same one.
#[must_use]
pub fn cluster(seed: u64) -> Cluster {
    let mut draft = Draft::new(seed);
    let mut manifests = draft.namespaces();
    manifests.extend(draft.nodes());
    manifests.extend(draft.pods());
    manifests.extend(draft.services());
    for _ in 0..draft.rng.between(0, 8) {
        manifests.push(draft.policy());
    }
    if draft.rng.chance(100) {
        manifests.push(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "unrelated"}, "data": {"a": "b"},
        }));
    }
    draft.rng.shuffle(&mut manifests);
    let manifests = draft.wrap_in_lists(manifests);

    let traffics = draft.traffics();
    let externals = draft.addresses.of_interest(&mut draft.rng);
    let (mut probes, mut external_probes) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        let (from, mut to) = (draft.rng.pick(&draft.pods).clone(), draft.rng.pick(&draft.pods).clone());
        if from == to {
            // A second try: self traffic is not that interesting.
            to.clone_from(draft.rng.pick(&draft.pods));
        }
        probes.push(Probe { from, to, traffic: draft.traffic(), family: draft.family() });
        external_probes.push(ExternalProbe {
            pod: draft.rng.pick(&draft.pods).clone(),
            direction: *draft.rng.pick(&[Direction::Ingress, Direction::Egress]),
            remote: *draft.rng.pick(&externals),
            traffic: draft.traffic(),
        });
    }
    Cluster { seed, manifests, traffics, externals, probes, external_probes }
}

/// A cluster in the making.
struct Draft {
    rng: SplitMix64,
    /// How many of 1,000 things that can be invalid are.
    dirt: usize,
    /// Namespaces in use, declared or not.
    namespaces: Vec<&'static str>,
    /// `namespace/name` of every pod.
    pods: Vec<String>,
    addresses: Addresses,
}

impl Draft {
    fn new(seed: u64) -> Draft {
        let mut rng = SplitMix64::new(seed);
        let dirt = *rng.pick(&[0, 0, 0, 0, 15, 30, 80]);
        let mut namespaces = NAMESPACES.to_vec();
        rng.shuffle(&mut namespaces);
        namespaces.truncate(rng.between(1, 4));
        let addresses = Addresses::new(&mut rng);
        Draft { rng, dirt, namespaces, pods: Vec::new(), addresses }
    }

    fn dirty(&mut self) -> bool {
        self.rng.chance(self.dirt)
    }

    /// A value of a type that nothing expects there.
    fn wrong(&mut self) -> Value {
        let wrong = [json!("wrong"), json!(7), json!(true), json!(1.5)];
        self.rng.pick(&wrong).clone()
    }

    /// Puts a field: the value, or rarely one of the wrong type.
    fn put(&mut self, object: &mut Map<String, Value>, name: &str, value: Value) {
        let value = if self.rng.chance(self.dirt / 4) { self.wrong() } else { value };
        object.insert(name.to_owned(), value);
    }

    /// Puts a list where it belongs: mostly the list, else nothing, null, or an empty one.
    fn put_list(&mut self, object: &mut Map<String, Value>, name: &str, list: Vec<Value>) {
        match self.rng.below(20) {
            0 => self.put(object, name, json!([])),
            1 => self.put(object, name, Value::Null),
            2 => {}
            _ => self.put(object, name, Value::Array(list)),
        }
    }

    /// Rarely puts a field that nobody knows.
    fn put_unknown(&mut self, object: &mut Map<String, Value>, names: &[&str]) {
        if self.rng.chance(self.dirt / 3) {
            let name = (*self.rng.pick(names)).to_owned();
            let values = [Value::Null, json!({}), json!([]), json!("x"), json!(80)];
            object.entry(name).or_insert(self.rng.pick(&values).clone());
        }
    }

    fn protocol(&mut self) -> Protocol {
        *self.rng.pick(&[Protocol::Tcp, Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
    }

    fn traffic(&mut self) -> Traffic {
        if self.rng.chance(80) {
            return Traffic::IcmpEcho;
        }
        // Mostly the ports that pods declare and rules mention, sometimes a neighbour.
        let port = *self.rng.pick(&PORTS);
        let port = if self.rng.chance(100) { port.checked_add(1).unwrap_or(2) } else { port };
        Traffic::To(self.protocol(), port)
    }

    fn traffics(&mut self) -> Vec<Traffic> {
        let mut traffics: Vec<Traffic> = (0..4).map(|_| self.traffic()).collect();
        traffics.sort();
        traffics.dedup();
        traffics
    }

    fn family(&mut self) -> Family {
        match (self.addresses.v4, self.addresses.v6) {
            (true, false) => Family::Ipv4,
            (false, true) => Family::Ipv6,
            (true, true) | (false, false) => *self.rng.pick(&[Family::Ipv4, Family::Ipv6]),
        }
    }

    /// Sometimes hides some of the manifests in lists.
    fn wrap_in_lists(&mut self, manifests: Vec<Value>) -> Vec<Value> {
        if !self.rng.chance(150) {
            return manifests;
        }
        let at = self.rng.below(manifests.len());
        let (before, after) = manifests.split_at(at);
        let mut wrapped = before.to_vec();
        wrapped.push(json!({"apiVersion": "v1", "kind": "List", "items": after}));
        wrapped
    }
}
