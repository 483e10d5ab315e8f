//! The host firewall: what HostPolicies, and NetworkPolicies where they may, say of a node and of the pods in its
//! network. `H1` to `H11` in comments are the numbered statements about it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use crate::policy::{Isolation, Owner, Policy, Remote, Side, nodes_has_unknown_fields, read_side};
use crate::read::{field, has_unknown_field, labels};
use crate::selector::{self, Selector};
use crate::verdict::{Direction, Family, PolicyKey, Protocol, Reason, Traffic, Verdict};
use crate::workload::{Pod, node_addresses};
use crate::world::World;

/// What the agent of a node is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firewall {
    /// Its node.
    pub node: String,
    /// H6: NetworkPolicies select hostNetwork pods too.
    pub network_policies: bool,
    /// H7: in.
    pub failsafe_ingress: Vec<(Protocol, u16, u16)>,
    /// H7: out.
    pub failsafe_egress: Vec<(Protocol, u16, u16)>,
    /// H7: the API server's addresses and TCP ports in use.
    pub api_servers: Vec<(IpAddr, u16)>,
}

impl Firewall {
    /// H7's lists, no API server, HostPolicies alone.
    #[must_use]
    pub fn new(node: &str) -> Firewall {
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        let all = |ports: &[(Protocol, &[u16])]| -> Vec<(Protocol, u16, u16)> {
            let each = ports.iter().flat_map(|(protocol, ports)| ports.iter().map(|port| (*protocol, *port)));
            each.map(|(protocol, port)| (protocol, port, port)).collect()
        };
        Firewall {
            node: node.to_owned(),
            network_policies: false,
            failsafe_ingress: all(&[(tcp, &[22, 179, 2379, 2380, 6443, 10250, 10256]), (udp, &[68, 546])]),
            failsafe_egress: all(&[(tcp, &[179, 2379, 2380, 6443, 53]), (udp, &[53, 67, 123, 547])]),
            api_servers: Vec::new(),
        }
    }
}

/// One end of a flow, by the address that the other end sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The firewall's node: a process that is no hostNetwork pod's.
    Node(IpAddr),
    /// A hostNetwork pod of the node, as `namespace/name`.
    HostPod(String, IpAddr),
    /// A pod with a network of its own.
    Pod(String, IpAddr),
    /// Anybody else.
    Address(IpAddr),
}

impl End {
    fn address(&self) -> IpAddr {
        match self {
            End::Node(address) | End::HostPod(_, address) | End::Pod(_, address) | End::Address(address) => {
                *address
            }
        }
    }
}

/// A policy of either kind. H11: in order of attribution.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyName {
    /// A HostPolicy.
    Host(String),
    /// A NetworkPolicy.
    Network(PolicyKey),
}

/// Why one direction of one end allows or denies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Of a pod with a network of its own: what NetworkPolicies say.
    OfPod(Reason),
    /// No policy selects it for this direction: allowed.
    NotIsolated,
    /// A rule allows it: the first by H11.
    Rule(PolicyName, usize),
    /// H7: allowed.
    Failsafe,
    /// H8: allowed.
    OwnNode,
    /// H8: to itself, allowed.
    SelfTraffic,
    /// No rule matches, and it is dropped unless all policies audit (H10).
    Isolated {
        /// Whose isolation it is: the first that is enforced, else the first.
        first: PolicyName,
        /// All of them.
        all: Vec<PolicyName>,
        /// Each of them isolates for being invalid.
        is_invalid: bool,
        /// It passes, for only audited policies isolate.
        is_audited: bool,
    },
    /// S34: nothing declares the pod's Namespace.
    UndeclaredNamespace,
    /// Nobody knows which policies select the pod.
    UnreadableLabels,
}

impl Why {
    /// What the reason means; H10's denials too are denials.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Why::OfPod(reason) => reason.verdict(),
            Why::NotIsolated | Why::Rule(..) | Why::Failsafe | Why::OwnNode | Why::SelfTraffic => {
                Verdict::Allow
            }
            Why::Isolated { .. } | Why::UndeclaredNamespace | Why::UnreadableLabels => Verdict::Deny,
        }
    }
}

/// What the host firewall knows beside pods and NetworkPolicies.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    /// Labels and addresses.
    nodes: BTreeMap<String, (BTreeMap<String, String>, Vec<IpAddr>)>,
    /// By name (H11).
    policies: BTreeMap<String, HostPolicy>,
    /// Live ones, of whatever node.
    pods: BTreeMap<PolicyKey, HostPod>,
}

#[derive(Debug)]
struct HostPod {
    pod: Pod,
    has_readable_labels: bool,
}

#[derive(Debug)]
struct HostPolicy {
    is_audited: bool,
    subject: Subject,
    ingress: Side,
    egress: Side,
}

#[derive(Debug)]
enum Subject {
    /// None: every node.
    Nodes(Option<Selector>),
    /// None: every namespace, every pod there.
    Pods(Option<Selector>, Option<Selector>),
    /// H3.
    Everyone,
}

/// Whom policies are asked about.
enum Whom<'a> {
    Node,
    Pod(&'a HostPod),
}

impl Hosts {
    pub(crate) fn read_node(&mut self, name: String, node: &Value) {
        let labels = field(node, "metadata").map(|metadata| labels(metadata, "labels")).unwrap_or_default();
        self.nodes.insert(name, (labels, node_addresses(node)));
    }

    pub(crate) fn read_pod(&mut self, key: &PolicyKey, pod: &Value) {
        let Some(live) = Pod::read_host(&key.0, &key.1, pod) else { return };
        let labels = field(pod, "metadata").and_then(|metadata| field(metadata, "labels"));
        let has_readable_labels = match labels {
            None => true,
            // Numbers have a text; a list or a mapping says nothing.
            Some(labels) => labels
                .as_object()
                .is_some_and(|all| all.values().all(|value| !value.is_array() && !value.is_object())),
        };
        self.pods.insert(key.clone(), HostPod { pod: live, has_readable_labels });
    }

    pub(crate) fn read_policy(&mut self, name: String, policy: &Value) {
        self.policies.insert(name, HostPolicy::read(policy));
    }

    /// H4: by status, and loopback is the own node. Labels of each node that has the address.
    fn nodes_at(&self, address: IpAddr, own: &str) -> Vec<&BTreeMap<String, String>> {
        let has = |name: &str, addresses: &[IpAddr]| {
            addresses.contains(&address) || (name == own && is_loopback(address))
        };
        self.nodes.iter().filter(|(name, node)| has(name, &node.1)).map(|(_, node)| &node.0).collect()
    }
}

fn is_loopback(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[0] == 127,
        IpAddr::V6(address) => address.octets() == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    }
}

impl HostPolicy {
    fn read(policy: &Value) -> HostPolicy {
        let everything_closed = || HostPolicy {
            is_audited: false,
            subject: Subject::Everyone,
            ingress: Side::closed(),
            egress: Side::closed(),
        };
        let nothing = Value::Object(serde_json::Map::new());
        let spec = field(policy, "spec").unwrap_or(&nothing);
        if !spec.is_object() {
            return everything_closed();
        }
        let (subject, is_readable) = read_subject(spec);
        let mode = field(spec, "mode").map(Value::as_str);
        let is_known_mode = matches!(mode, None | Some(Some("Enforce" | "Audit")));
        // S49, in spec outside the rules; H3: of the mode too.
        if !is_known_mode || has_unknown_fields(spec) {
            let closed = everything_closed();
            return HostPolicy { is_audited: mode == Some(Some("Audit")), subject, ..closed };
        }
        let mut ingress = read_side(spec, Direction::Ingress, Owner::Hosts);
        let mut egress = read_side(spec, Direction::Egress, Owner::Hosts);
        if !is_readable {
            // H3: in the policy's directions, and nothing is allowed.
            for side in [&mut ingress, &mut egress] {
                if side.isolation != Isolation::Open {
                    *side = Side::closed();
                }
            }
        }
        HostPolicy { is_audited: mode == Some(Some("Audit")), subject, ingress, egress }
    }

    fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// H1.
    fn selects(&self, world: &World, firewall: &Firewall, whom: &Whom<'_>) -> bool {
        let matches = |selector: &Option<Selector>, labels: Option<&BTreeMap<String, String>>| match selector
        {
            None => true,
            Some(selector) => labels.is_some_and(|labels| selector.matches(labels)),
        };
        match (&self.subject, whom) {
            (Subject::Everyone, _) => true,
            (Subject::Nodes(selector), Whom::Node) => match world.hosts.nodes.get(&firewall.node) {
                Some((labels, _)) => matches(selector, Some(labels)),
                // In doubt it is isolated.
                None => true,
            },
            (Subject::Pods(namespaces, pods), Whom::Pod(host)) => {
                matches(namespaces, world.namespaces.get(&host.pod.namespace))
                    && matches(pods, Some(&host.pod.labels))
            }
            (Subject::Nodes(_), Whom::Pod(_)) | (Subject::Pods(..), Whom::Node) => false,
        }
    }
}

fn has_unknown_fields(spec: &Value) -> bool {
    let in_pods = |pods: &Value| {
        has_unknown_field(pods, &["namespaceSelector", "podSelector"])
            || field(pods, "namespaceSelector").is_some_and(selector::has_unknown_fields)
            || field(pods, "podSelector").is_some_and(selector::has_unknown_fields)
    };
    let in_subject = |subject: &Value| {
        has_unknown_field(subject, &["nodes", "pods"])
            || field(subject, "nodes").is_some_and(nodes_has_unknown_fields)
            || field(subject, "pods").is_some_and(in_pods)
    };
    has_unknown_field(spec, &["mode", "subject", "policyTypes", "ingress", "egress"])
        || field(spec, "subject").is_some_and(in_subject)
}

/// H3: whom it selects, and whether that could be read.
fn read_subject(spec: &Value) -> (Subject, bool) {
    let Some(subject) = field(spec, "subject") else { return (Subject::Everyone, false) };
    let part = |name: &str| field(subject, name);
    let read = |of: &Value, name: &str| field(of, name).map(Selector::read).transpose();
    match (part("nodes"), part("pods")) {
        (Some(nodes), None) if nodes.is_object() => match read(nodes, "nodeSelector") {
            Ok(selector) => (Subject::Nodes(selector), true),
            Err(_) => (Subject::Nodes(None), false),
        },
        (None, Some(pods)) if pods.is_object() => {
            match (read(pods, "namespaceSelector"), read(pods, "podSelector")) {
                (Ok(namespaces), Ok(pods)) => (Subject::Pods(namespaces, pods), true),
                _ => (Subject::Pods(None, None), false),
            }
        }
        _ => (Subject::Everyone, false),
    }
}

impl World {
    /// The live hostNetwork pods of the node, as `namespace/name`; one that names no node counts as its own.
    #[must_use]
    pub fn host_pods(&self, firewall: &Firewall) -> Vec<String> {
        let pods = self.hosts.pods.values().filter(|host| is_local(&host.pod, firewall));
        pods.map(|host| host.pod.key()).collect()
    }

    /// A flow's verdict at both ends; none where no policy can select an end.
    #[must_use]
    pub fn host_flow(
        &self,
        firewall: &Firewall,
        from: &End,
        to: &End,
        traffic: Traffic,
    ) -> (Option<Why>, Option<Why>) {
        let egress = self.at(firewall, from, to, Direction::Egress, traffic);
        let ingress = self.at(firewall, to, from, Direction::Ingress, traffic);
        (egress, ingress)
    }

    fn at(
        &self,
        firewall: &Firewall,
        subject: &End,
        other: &End,
        direction: Direction,
        traffic: Traffic,
    ) -> Option<Why> {
        let host = match subject {
            End::Address(_) => return None,
            End::Pod(pod, _) => {
                let own = self.pod(pod).is_some_and(|pod| is_local(pod, firewall));
                // H8, H9: what its own node's processes send, a hostNetwork pod's too.
                if direction == Direction::Ingress && own && matches!(other, End::Node(_) | End::HostPod(..))
                {
                    return Some(Why::OwnNode);
                }
                // A host may show an address that is the pod's: what comes from there is not the pod's own.
                let found =
                    if direction == Direction::Ingress && matches!(other, End::Node(_) | End::HostPod(..)) {
                        self.judge_by_policies(pod, direction, other.address(), traffic)
                    } else {
                        self.judge(pod, direction, other.address(), traffic)
                    };
                return found.map(|found| Why::OfPod(found.reason));
            }
            End::Node(_) => None,
            End::HostPod(pod, _) => Some(self.host_pod(firewall, pod)?),
        };
        match (subject, other) {
            (End::Node(_), End::Node(_)) => return Some(Why::SelfTraffic),
            (End::HostPod(one, _), End::HostPod(two, _)) if one == two => return Some(Why::SelfTraffic),
            (End::HostPod(..), End::Node(_)) if direction == Direction::Ingress => return Some(Why::OwnNode),
            _ => {}
        }
        let whom = host.map_or(Whom::Node, Whom::Pod);
        Some(self.host_reason(firewall, &whom, direction, other.address(), traffic))
    }

    fn host_pod(&self, firewall: &Firewall, name: &str) -> Option<&HostPod> {
        let (namespace, name) = name.split_once('/')?;
        let host = self.hosts.pods.get(&(namespace.to_owned(), name.to_owned()))?;
        is_local(&host.pod, firewall).then_some(host)
    }

    fn host_reason(
        &self,
        firewall: &Firewall,
        whom: &Whom<'_>,
        direction: Direction,
        address: IpAddr,
        traffic: Traffic,
    ) -> Why {
        let always = self.always(firewall, whom, direction, address, traffic);
        if let Whom::Pod(host) = whom {
            if !host.has_readable_labels {
                return always.unwrap_or(Why::UnreadableLabels);
            }
            if !self.namespaces.contains_key(&host.pod.namespace) {
                return always.unwrap_or(Why::UndeclaredNamespace);
            }
        }
        // H11.
        let of_hosts = self.hosts.policies.iter().filter(|(_, policy)| {
            policy.selects(self, firewall, whom) && policy.side(direction).isolation != Isolation::Open
        });
        let of_hosts: Vec<(&String, &HostPolicy)> = of_hosts.collect();
        // H6.
        let of_pods: Vec<(&Policy, Isolation)> = match whom {
            Whom::Pod(host) if firewall.network_policies => {
                let each =
                    self.policies.values().map(|policy| (policy, policy.isolates(&host.pod, direction)));
                each.filter(|(_, isolation)| *isolation != Isolation::Open).collect()
            }
            Whom::Pod(_) | Whom::Node => Vec::new(),
        };

        let peer = self.owner_of(address);
        let nodes = self.hosts.nodes_at(address, &firewall.node);
        let remote = Remote {
            address,
            pod: peer,
            namespace_labels: peer.and_then(|peer| self.namespaces.get(&peer.namespace)),
            nodes: &nodes,
        };
        // S25; H2: a node declares no port.
        let destination = match (direction, whom) {
            (Direction::Ingress, Whom::Pod(host)) => Some(&host.pod),
            (Direction::Ingress, Whom::Node) => None,
            (Direction::Egress, _) => peer,
        };
        for (name, policy) in &of_hosts {
            let found = policy.side(direction).first_match(remote, traffic, destination, Owner::Hosts);
            if let Some(index) = found {
                return Why::Rule(PolicyName::Host((*name).clone()), index);
            }
        }
        for (policy, _) in &of_pods {
            if let Some(index) = policy.first_match(direction, remote, traffic, destination) {
                return Why::Rule(PolicyName::Network(policy.key.clone()), index);
            }
        }
        let mut all: Vec<(PolicyName, bool, bool)> = Vec::new();
        for (name, policy) in of_hosts {
            let is_invalid = policy.side(direction).isolation == Isolation::Invalid;
            all.push((PolicyName::Host(name.clone()), policy.is_audited, is_invalid));
        }
        for (policy, isolation) in of_pods {
            let name = PolicyName::Network(policy.key.clone());
            all.push((name, false, isolation == Isolation::Invalid));
        }
        let enforced = all.iter().find(|(_, is_audited, _)| !is_audited);
        let Some((first, is_audited, _)) = enforced.or(all.first()).cloned() else {
            return Why::NotIsolated;
        };
        always.unwrap_or_else(|| Why::Isolated {
            first,
            is_invalid: all.iter().all(|(_, _, is_invalid)| *is_invalid),
            is_audited,
            all: all.into_iter().map(|(name, _, _)| name).collect(),
        })
    }

    /// H7 and H8: what passes an isolated direction.
    fn always(
        &self,
        firewall: &Firewall,
        whom: &Whom<'_>,
        direction: Direction,
        address: IpAddr,
        traffic: Traffic,
    ) -> Option<Why> {
        if let (Whom::Node, Direction::Egress) = (whom, direction) {
            let of_own_pod = self.owner_of(address).is_some_and(|pod| is_local(pod, firewall));
            let own = self.hosts.nodes.get(&firewall.node).is_some_and(|(_, all)| all.contains(&address));
            let mut hosts = self.hosts.pods.values().filter(|host| is_local(&host.pod, firewall));
            let of_host_pod =
                own || is_loopback(address) || hosts.any(|host| host.pod.shown.contains(&address));
            if of_own_pod || of_host_pod {
                return Some(Why::OwnNode);
            }
        }
        let Traffic::To(protocol, port) = traffic else { return None };
        let ports = match direction {
            Direction::Ingress => &firewall.failsafe_ingress,
            Direction::Egress => &firewall.failsafe_egress,
        };
        let is_open = ports.iter().any(|(of, from, to)| *of == protocol && (*from..=*to).contains(&port));
        let is_api_server = direction == Direction::Egress
            && protocol == Protocol::Tcp
            && firewall.api_servers.contains(&(address, port));
        (is_open || is_api_server).then_some(Why::Failsafe)
    }

    /// By which address of the family the node, and each pod in its network, is known; the node's own status goes
    /// first, then what these pods show.
    #[must_use]
    pub fn host_ends(&self, firewall: &Firewall, family: Family) -> Vec<End> {
        let of = |all: &[IpAddr]| all.iter().copied().find(|address| Family::of(*address) == family);
        let own = self.hosts.nodes.get(&firewall.node).and_then(|(_, addresses)| of(addresses));
        let pods = self.hosts.pods.values().filter(|host| is_local(&host.pod, firewall));
        let of_pods: Vec<End> = pods
            .filter_map(|host| Some(End::HostPod(host.pod.key(), own.or_else(|| of(&host.pod.shown))?)))
            .collect();
        let node = own.or_else(|| of_pods.first().map(End::address));
        node.map(End::Node).into_iter().chain(of_pods).collect()
    }
}

fn is_local(pod: &Pod, firewall: &Firewall) -> bool {
    pod.node.as_ref().is_none_or(|node| *node == firewall.node)
}
