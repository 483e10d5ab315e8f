//! The state of a cluster, as manifests describe it, and the verdicts in it. It owns who is who (namespaces, pods,
//! addresses and their owners, virtual addresses) and the order of policies; what a policy says is in `policy`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;

use crate::hosts::Hosts;
use crate::policy::{Isolation, Policy, Remote};
use crate::read::{field, items, labels, text};
use crate::verdict::{DirVerdict, Direction, Family, PairVerdict, Reason, Traffic, Verdict};
use crate::workload::{Pod, node_addresses, virtual_addresses};

/// The label that names a namespace.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// A cluster at one moment.
///
/// It has no history: a change is a new `World` (S15, S29), a policy isolates a pod before the pod has an address
/// (S31), and only the opening direction of a connection is ever asked about, so replies are nobody's question
/// (S28).
#[derive(Debug)]
pub struct World {
    /// Labels of the declared namespaces.
    pub(crate) namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Live pods with a network of their own, by namespace and name. Node and hostNetwork addresses are judged
    /// as any other address that is no pod's (S30), whatever node the pod is on.
    pods: BTreeMap<(String, String), Pod>,
    /// By namespace and name, the order in which rules are attributed.
    pub(crate) policies: BTreeMap<(String, String), Policy>,
    /// What the host firewall knows beside.
    pub(crate) hosts: Hosts,
    virtual_addresses: BTreeSet<IpAddr>,
}

impl World {
    /// Reads manifests in reading order: of the same kind, namespace and name the later wins.
    ///
    /// Namespace, Pod, NetworkPolicy and Service count, and lists of them; everything else is passed over.
    #[must_use]
    pub fn new(manifests: &[Value]) -> World {
        let mut objects = BTreeMap::new();
        for manifest in manifests {
            collect(manifest, None, &mut objects);
        }
        let mut world = World {
            namespaces: BTreeMap::new(),
            pods: BTreeMap::new(),
            policies: BTreeMap::new(),
            hosts: Hosts::default(),
            virtual_addresses: BTreeSet::new(),
        };
        for ((kind, namespace, name), object) in objects {
            let key = (namespace, name);
            match kind {
                // S33: a terminating namespace is as any other, its policies stay.
                Kind::Namespace => {
                    let mut labels = field(object, "metadata")
                        .map(|metadata| labels(metadata, "labels"))
                        .unwrap_or_default();
                    // S15: its real name, whatever the manifest says.
                    labels.insert(NAMESPACE_NAME.to_owned(), key.1.clone());
                    world.namespaces.insert(key.1, labels);
                }
                Kind::Pod => {
                    world.hosts.read_pod(&key, object);
                    if let Some(pod) = Pod::read(&key.0, &key.1, object) {
                        world.pods.insert(key, pod);
                    }
                }
                Kind::NetworkPolicy => {
                    world.policies.insert(key.clone(), Policy::read(key, object));
                }
                Kind::Service => world.virtual_addresses.extend(virtual_addresses(object)),
                // After all Services: what a node has is not virtual.
                Kind::HostPolicy => world.hosts.read_policy(key.1, object),
                Kind::Node => {
                    world.hosts.read_node(key.1, object);
                    for address in node_addresses(object) {
                        world.virtual_addresses.remove(&address);
                    }
                }
            }
        }
        world
    }

    /// The pods of a matrix, as `namespace/name`: live, not hostNetwork, owning an address of the family, sorted
    /// by namespace, then name, bytewise each.
    #[must_use]
    pub fn order(&self, family: Family) -> Vec<String> {
        self.pods.values().filter(|pod| self.address_of(pod, family).is_some()).map(Pod::key).collect()
    }

    /// Every pod that [`World::judge`] knows, with an address or not, in the same order.
    #[must_use]
    pub fn subjects(&self) -> Vec<String> {
        self.pods.values().map(Pod::key).collect()
    }

    /// The address of the family that the pod owns; the first, if its status shows several.
    #[must_use]
    pub fn address(&self, pod: &str, family: Family) -> Option<IpAddr> {
        self.address_of(self.pod(pod)?, family)
    }

    /// Every address that the pod owns.
    #[must_use]
    pub fn addresses(&self, pod: &str) -> Vec<IpAddr> {
        let Some(pod) = self.pod(pod) else { return Vec::new() };
        let owns = |address: &IpAddr| self.owner_of(*address).is_some_and(|owner| std::ptr::eq(owner, pod));
        pod.shown.iter().copied().filter(owns).collect()
    }

    /// The pod that owns the address, as `namespace/name`.
    #[must_use]
    pub fn owner(&self, address: IpAddr) -> Option<String> {
        self.owner_of(address).map(Pod::key)
    }

    /// S4: a new connection between two pods of [`World::order`]; none if either is not in it.
    #[must_use]
    pub fn pod_to_pod(&self, from: &str, to: &str, traffic: Traffic, family: Family) -> Option<PairVerdict> {
        let from_address = self.address(from, family)?;
        let to_address = self.address(to, family)?;
        Some(PairVerdict {
            egress: self.judge(from, Direction::Egress, to_address, traffic)?,
            ingress: self.judge(to, Direction::Ingress, from_address, traffic)?,
        })
    }

    /// One direction of one pod against any remote address, for a new connection; its port is the destination's.
    /// None if there is no such pod, or policies do not select it (finished, hostNetwork).
    #[must_use]
    pub fn judge(
        &self,
        pod: &str,
        direction: Direction,
        remote: IpAddr,
        traffic: Traffic,
    ) -> Option<DirVerdict> {
        let subject = self.pod(pod)?;
        // A pod always reaches its own addresses.
        if self.owner_of(remote).is_some_and(|peer| std::ptr::eq(peer, subject)) {
            return Some(Reason::SelfTraffic.into());
        }
        Some(self.reason(subject, direction, remote, traffic).into())
    }

    /// As [`World::judge`], for a packet that bears one of the pod's own addresses and is not its own: policies are
    /// asked as about any pod with these labels.
    #[must_use]
    pub fn judge_by_policies(
        &self,
        pod: &str,
        direction: Direction,
        remote: IpAddr,
        traffic: Traffic,
    ) -> Option<DirVerdict> {
        Some(self.reason(self.pod(pod)?, direction, remote, traffic).into())
    }

    /// Reachability among [`World::order`]: a row for each source, a column for each destination, `.` allowed,
    /// `X` denied, `-` self.
    #[must_use]
    pub fn matrix(&self, traffic: Traffic, family: Family) -> Vec<String> {
        let order = self.order(family);
        let cell = |from: &str, to: &str| match self.pod_to_pod(from, to, traffic, family) {
            _ if from == to => '-',
            Some(pair) if pair.verdict() == Verdict::Allow => '.',
            Some(_) | None => 'X',
        };
        order.iter().map(|from| order.iter().map(|to| cell(from, to)).collect()).collect()
    }

    fn reason(&self, subject: &Pod, direction: Direction, address: IpAddr, traffic: Traffic) -> Reason {
        let peer = self.owner_of(address);
        // S34: isolated both ways.
        if !self.namespaces.contains_key(&subject.namespace) {
            return Reason::UndeclaredNamespace;
        }
        let isolating: Vec<(&Policy, Isolation)> = self
            .policies
            .values()
            .map(|policy| (policy, policy.isolates(subject, direction)))
            .filter(|(_, isolation)| *isolation != Isolation::Open)
            .collect();
        // S1, S2.
        let Some((first, _)) = isolating.first() else { return Reason::NotIsolated };

        // Egress is judged after Service translation, and here nobody has translated.
        if direction == Direction::Egress && peer.is_none() && self.virtual_addresses.contains(&address) {
            return Reason::ServiceUnresolved;
        }
        let remote = Remote {
            address,
            pod: peer,
            namespace_labels: peer.and_then(|peer| self.namespaces.get(&peer.namespace)),
            // Peers of HostPolicies alone.
            nodes: &[],
        };
        // S25: whose named ports count.
        let destination = match direction {
            Direction::Ingress => Some(subject),
            Direction::Egress => peer,
        };
        // S3: a union; the first match is only who gets the credit.
        for (policy, _) in &isolating {
            if let Some(index) = policy.first_match(direction, remote, traffic, destination) {
                return Reason::Rule { policy: policy.key.clone(), index };
            }
        }
        let first = first.key.clone();
        let all = isolating.iter().map(|(policy, _)| policy.key.clone()).collect();
        if isolating.iter().all(|(_, isolation)| *isolation == Isolation::Invalid) {
            Reason::InvalidClosed { first, all }
        } else {
            Reason::Isolated { first, all }
        }
    }

    pub(crate) fn pod(&self, key: &str) -> Option<&Pod> {
        let (namespace, name) = key.split_once('/')?;
        self.pods.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// S50: of the pods that show it, the newest.
    pub(crate) fn owner_of(&self, address: IpAddr) -> Option<&Pod> {
        self.pods.values().filter(|pod| pod.shown.contains(&address)).max_by(|one, other| one.newer(other))
    }

    /// The first address of the family that the pod shows and owns.
    fn address_of(&self, pod: &Pod, family: Family) -> Option<IpAddr> {
        pod.shown
            .iter()
            .copied()
            .filter(|address| Family::of(*address) == family)
            .find(|address| self.owner_of(*address).is_some_and(|owner| std::ptr::eq(owner, pod)))
    }
}

/// The kinds that count, in the order of their reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Namespace,
    Pod,
    NetworkPolicy,
    HostPolicy,
    Service,
    Node,
}

/// Puts an object, or the objects of a list, where its kind, namespace and name say: the later over the earlier.
fn collect<'a>(
    manifest: &'a Value,
    item_kind: Option<&str>,
    objects: &mut BTreeMap<(Kind, String, String), &'a Value>,
) {
    let Some(kind) = text(manifest, "kind").or(item_kind) else { return };
    if let Some(item_kind) = kind.strip_suffix("List") {
        // Items of a typed list may leave their kind out.
        for item in items(manifest, "items") {
            collect(item, Some(item_kind), objects);
        }
        return;
    }
    let core = matches!(text(manifest, "apiVersion"), None | Some("v1"));
    let kind = match kind {
        "Namespace" if core => Kind::Namespace,
        "Pod" if core => Kind::Pod,
        "Service" if core => Kind::Service,
        "Node" if core => Kind::Node,
        // Of whatever apiVersion: a policy that is passed over would open pods.
        "NetworkPolicy" => Kind::NetworkPolicy,
        "HostPolicy" => Kind::HostPolicy,
        _ => return,
    };
    let metadata = field(manifest, "metadata");
    let of = |name: &str| metadata.and_then(|metadata| text(metadata, name)).unwrap_or_default().to_owned();
    let namespace = match (kind, of("namespace")) {
        (Kind::Namespace | Kind::Node | Kind::HostPolicy, _) => String::new(),
        (_, namespace) if namespace.is_empty() => "default".to_owned(),
        (_, namespace) => namespace,
    };
    objects.insert((kind, namespace, of("name")), manifest);
}
