//! What the policy crate knows of a cluster: validated objects of our own, in which an unreadable
//! selector, port or address cannot be held. Where a manifest holds one, [`crate::convert`] leaves it out,
//! closes what depended on it and says so in a [`Problem`]. This module must not know Kubernetes' own types.

mod host;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

pub use host::{
    Failsafe, Host, HostNetworkPods, HostPolicy, HostSubject, LOOPBACK_V4, LOOPBACK_V6, PolicyRef, PortSpan,
};
use ipnet::IpNet;
pub use service::{
    EndpointSlice, Families, Readiness, Service, ServiceKind, ServicePort, SliceEndpoint, SliceMaker,
    SlicePort, TargetPort,
};

/// Labels of a pod, namespace or node.
pub type Labels = BTreeMap<String, String>;

/// Namespace and name of a namespaced object. Orders by namespace, then name, bytewise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// `metadata.namespace`, `default` where a manifest leaves it out.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl ObjectKey {
    /// A key from its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// What stands for a node where a pod's key would: nothing namespaced has an empty namespace.
    pub fn of_node(name: impl Into<String>) -> Self {
        Self { namespace: String::new(), name: name.into() }
    }

    /// What stands for pods of which nothing is known yet, in the node's network: no node is without a name.
    #[must_use]
    pub fn of_unknown() -> Self {
        Self { namespace: String::new(), name: String::new() }
    }

    /// True for that.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.namespace.is_empty() && self.name.is_empty()
    }

    /// The pod or the node as problems call it.
    #[must_use]
    pub fn object(&self) -> String {
        if self.is_unknown() {
            "Pods that are not known yet".to_owned()
        } else if self.is_node() {
            format!("Node {}", self.name)
        } else {
            format!("Pod {self}")
        }
    }

    /// True for a node's.
    #[must_use]
    pub fn is_node(&self) -> bool {
        self.namespace.is_empty() && !self.name.is_empty()
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_unknown() {
            return f.write_str("unknown pods");
        }
        let namespace = if self.is_node() { "node" } else { &self.namespace };
        write!(f, "{namespace}/{}", self.name)
    }
}

/// Everything that verdicts depend on, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Namespaces by name.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Live and finished pods; [`Pod::is_live`] tells them apart.
    pub pods: BTreeMap<ObjectKey, Pod>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// NetworkPolicies.
    pub policies: BTreeMap<ObjectKey, NetworkPolicy>,
    /// HostPolicies by name. Without [`Cluster::host`] they change nothing.
    pub host_policies: BTreeMap<String, HostPolicy>,
    /// What the host firewall of the agent's node is told; `None`: it is off.
    pub host: Option<Host>,
    /// Services, with a virtual address or without.
    pub services: BTreeMap<ObjectKey, Service>,
    /// EndpointSlices of Services. No verdict depends on them: they tell whom a Service leads to.
    pub slices: BTreeMap<ObjectKey, EndpointSlice>,
    /// Addresses of the agent's own node, where pods may reach it whatever their policies say; empty where not.
    pub own_node: BTreeSet<IpAddr>,
}

impl Cluster {
    /// Whom policies can select: every pod, and with the host firewall the node.
    #[must_use]
    pub fn subjects(&self) -> Vec<ObjectKey> {
        self.pods.keys().cloned().chain(self.host.as_ref().map(Host::key)).collect()
    }

    /// The mode of a policy: its own, else its namespace's, else it is enforced.
    #[must_use]
    pub fn mode(&self, key: &ObjectKey, policy: &NetworkPolicy) -> Mode {
        let of_namespace = || self.namespaces.get(&key.namespace).and_then(|namespace| namespace.mode);
        policy.mode.or_else(of_namespace).unwrap_or_default()
    }
}

/// A Namespace. Its labels always hold `kubernetes.io/metadata.name` (S15), and that one is never taken from
/// the manifest (T13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Labels, with `kubernetes.io/metadata.name` set to the namespace's name.
    pub labels: Labels,
    /// The mode of its policies that say none themselves.
    pub mode: Option<Mode>,
    /// Whether its pods send from their own addresses only, where somebody says so.
    pub source_binding: Option<SourceBinding>,
}

/// Whether pods send from their own addresses only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceBinding {
    /// What bears another source is dropped.
    #[default]
    On,
    /// An administrator lets them send from any.
    Off,
}

impl SourceBinding {
    /// Both.
    pub const ALL: [Self; 2] = [Self::On, Self::Off];

    /// The word of the annotation.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
        }
    }

    /// What a word means, in exactly this spelling.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|binding| binding.name() == name)
    }
}

/// What happens to what a policy denies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It is dropped.
    #[default]
    Enforce,
    /// It passes, counted and told.
    Audit,
}

impl Mode {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Enforce, Self::Audit];

    /// The word of the annotation and of `--mode`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
        }
    }

    /// The mode of a word, in exactly this spelling.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Labels.
    pub labels: Labels,
    /// `status.addresses` that parse as addresses.
    pub addresses: Vec<IpAddr>,
}

/// A transport protocol that policies can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, protocol number 6.
    Tcp,
    /// UDP, protocol number 17.
    Udp,
    /// SCTP, protocol number 132.
    Sctp,
}

impl Protocol {
    /// The IANA protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The name as Kubernetes spells it; S24: exactly this spelling is valid.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// Reads the exact spelling of Kubernetes.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|p| p.name() == name)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a pod is in its life, as far as verdicts care (S32, S33).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Anything but Succeeded and Failed, a missing phase and a terminating pod included.
    Live,
    /// Succeeded or Failed: keeps its address in status, owns none.
    Finished,
}

/// Which network a pod lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodNetwork {
    /// Its own network namespace.
    Own,
    /// The node's (`spec.hostNetwork`): by address it is the node; neither subject nor peer.
    Host,
}

/// Whether an object's labels are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LabelsRead {
    /// All of them.
    #[default]
    Whole,
    /// At least one could not be read, so nobody knows what selects the object: it is closed both ways, and no
    /// selector matches it.
    Unreadable,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`; a stable made-up one where a manifest has none.
    pub uid: String,
    /// Labels.
    pub labels: Labels,
    /// Whether `labels` is all of them.
    pub labels_read: LabelsRead,
    /// Every address of `status.podIPs` (else `podIP`, else the deterministic one), without duplicates.
    pub addresses: Vec<IpAddr>,
    /// Where `addresses` are from.
    pub addresses_from: AddressesFrom,
    /// The UID that the node's runtime knows a static pod by: its mirror has another (`kubernetes.io/config.hash`).
    pub static_uid: Option<String>,
    /// `spec.nodeName`.
    pub node: Option<String>,
    /// Own network or the node's.
    pub network: PodNetwork,
    /// Live or finished.
    pub phase: Phase,
    /// `status.startTime` in seconds since the Unix epoch, `None` (oldest) if absent or unreadable. S50.
    pub start_time: Option<i64>,
    /// Named container ports: (name, protocol) to number; of duplicates the first container's (S25).
    pub named_ports: BTreeMap<(String, Protocol), u16>,
    /// Every declared containerPort.
    pub container_ports: BTreeSet<(Protocol, u16)>,
    /// Ports of its node that lead to its own; none where it shares the node's network, for nobody translates there.
    pub host_ports: Box<[HostPort]>,
}

/// A `hostPort`: what is sent to this port of the pod's node goes to the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// Protocol.
    pub protocol: Protocol,
    /// The node's port.
    pub host_port: u16,
    /// `hostIP`: the node's address that takes it, an unspecified one (`0.0.0.0`, `::`) as written; `None`: each.
    pub host_ip: Option<IpAddr>,
    /// The pod's port.
    pub container_port: u16,
}

/// Where a pod's addresses are from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressesFrom {
    /// The pod's status, which may show none yet.
    #[default]
    Status,
    /// Nobody has shown any: they are made up, for a pod that only files describe.
    MadeUp,
}

impl Pod {
    /// Live and with a network of its own: subject and peer of policies.
    #[must_use]
    pub fn is_live(&self) -> bool {
        match self.phase {
            Phase::Live => true,
            Phase::Finished => false,
        }
    }

    /// True where selectors can be asked about the pod.
    #[must_use]
    pub fn has_known_labels(&self) -> bool {
        match self.labels_read {
            LabelsRead::Whole => true,
            LabelsRead::Unreadable => false,
        }
    }

    /// True where the pod has a network namespace of its own.
    #[must_use]
    pub fn has_own_network(&self) -> bool {
        match self.network {
            PodNetwork::Own => true,
            PodNetwork::Host => false,
        }
    }
}

/// A NetworkPolicy, read and defaulted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// What it says about its own mode; [`Cluster::mode`] tells which one it has.
    pub mode: Option<Mode>,
    /// The pods of its own namespace that it selects.
    pub subject: Subject,
    /// What it says about ingress.
    pub ingress: DirectionSpec,
    /// What it says about egress.
    pub egress: DirectionSpec,
}

/// Which pods of its namespace a policy selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Those that the selector matches.
    Pods(Selector),
    /// The selector could not be read: every pod of the namespace, and (S13) no rule allows anything: the
    /// rules are kept for their indices only, each with peers and ports that match nothing.
    Unreadable,
}

/// What a policy says about one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DirectionSpec {
    /// The direction is not in policyTypes: the policy does not touch it.
    Ignored,
    /// The direction is isolated; what a rule matches is allowed.
    Isolated {
        /// Every rule of the manifest in order, invalid ones included (they match nothing), so that a
        /// rule's position is its index in `spec.ingress` or `spec.egress`.
        rules: Vec<Rule>,
        /// Why the isolation is there: told apart in verdicts (`isolated` or `invalid-closed`).
        cause: IsolationCause,
    },
}

/// Why a policy isolates a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IsolationCause {
    /// As written.
    Written,
    /// The policy could not be read and closes (S6 unknown type, S13 subject, S49 spec).
    Invalid,
}

/// One entry of `spec.ingress` or `spec.egress`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `from` or `to`.
    pub peers: Peers,
    /// `ports`.
    pub ports: Ports,
}

impl Rule {
    /// A rule that matches nothing: what an unreadable one becomes.
    #[must_use]
    pub fn nothing() -> Self {
        Self { peers: Peers::Only(Vec::new()), ports: Ports::Only(Vec::new()) }
    }
}

/// `from` or `to` of a rule. Absence is its own variant: an empty list never means anyone (T18).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Absent or empty in the manifest: anyone, external included (S12).
    Any,
    /// These; none at all where every entry was invalid.
    Only(Vec<Peer>),
}

/// One readable peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods by label.
    Pods {
        /// Whose namespaces.
        namespaces: NamespaceScope,
        /// Which pods there; an absent podSelector is the selector that matches everything.
        pods: Selector,
    },
    /// Addresses, pod addresses included (S16).
    Block(IpBlock),
    /// Every address of the nodes that the selector matches; with the agent's own node loopback too (H4). Only of
    /// a HostPolicy.
    Nodes(Selector),
}

/// The namespaces that a pod peer looks in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamespaceScope {
    /// One by name: the policy's own, where namespaceSelector is absent (S10).
    Named(String),
    /// Those that the selector matches.
    Matching(Selector),
}

/// An ipBlock. `net` and `except` are masked; excepts of another family or outside `net` are not held.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpBlock {
    /// What it matches.
    pub net: IpNet,
    /// What it takes away from `net`, sorted, without duplicates.
    pub except: Vec<IpNet>,
}

/// `ports` of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Absent or empty: every protocol and port (S21).
    Any,
    /// These; none at all where every entry was invalid (S24).
    Only(Vec<PortMatch>),
}

/// One readable entry of `ports`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortMatch {
    /// Its protocol, TCP by default.
    pub protocol: Protocol,
    /// Its port or ports.
    pub port: PortSpec,
}

/// The ports of one entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortSpec {
    /// Every port of the protocol.
    All,
    /// From the first to the second, inclusive; both 1 to 65535, first not above second.
    Range(u16, u16),
    /// A containerPort's name on the destination pod (S25).
    Named(String),
}

/// A label selector: all requirements must hold. None: matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// Sorted, without duplicates, so that equal selectors compare equal.
    pub requirements: BTreeSet<Requirement>,
}

/// One requirement of a selector; `matchLabels` become [`Operator::In`] with one value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label's key, never empty.
    pub key: String,
    /// What must hold for it.
    pub operator: Operator,
}

/// The operators of a label selector (S13, S14).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// The key is there, with one of these values.
    In(BTreeSet<String>),
    /// The key is absent or has none of these values.
    NotIn(BTreeSet<String>),
    /// The key is there.
    Exists,
    /// The key is absent.
    DoesNotExist,
}

impl Selector {
    /// True if the labels meet every requirement.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(labels))
    }
}

impl Requirement {
    /// True if the labels meet it.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|v| values.contains(v)),
            Operator::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something was skipped that users may have meant for someone else.
    Note,
    /// Something looks wrong; verdicts are as written.
    Warning,
    /// Something could not be read, and what depended on it closed.
    Error,
}

impl Severity {
    /// The word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Something in the input that is wrong: names object and field, then says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The object, `KIND NAMESPACE/NAME`, or the file where no object could be read.
    pub object: String,
    /// The field's path (`spec.ingress[0].ports[1].endPort`), empty where there is none.
    pub field: String,
    /// What is wrong, what it means for verdicts, and the remedy.
    pub message: String,
    /// Where it stands, `FILE` or `FILE:LINE`.
    pub location: Option<String>,
}

impl Problem {
    /// Of the node itself, of no object and no file.
    #[must_use]
    pub fn of_node(severity: Severity, message: String) -> Self {
        Self { severity, object: "Node".to_owned(), field: String::new(), message, location: None }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(location) = &self.location {
            write!(f, "{location}: ")?;
        }
        f.write_str(&self.object)?;
        if !self.field.is_empty() {
            write!(f, " {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}
