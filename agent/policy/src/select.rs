//! Which addresses a peer selector matches. Owns the facts about pods that selectors ask for: labels with
//! their namespace's, addresses and who owns them, named ports. Knows nothing of rules or numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{
    Cluster, IpBlock, Labels, Namespace, NamespaceScope, ObjectKey, Pod, Protocol, Selector, SourceBinding,
};

/// What a rule's peer becomes: whom it matches, and which named port must mean what there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerSelector {
    /// Whom.
    pub base: Base,
    /// On egress: the destination must declare this port (S25).
    pub named: Option<NamedPort>,
}

/// Whom a peer selector matches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Base {
    /// Any pod: an egress rule without peers but with a named port (S26).
    AnyPod,
    /// Pods by label.
    Pods(NamespaceScope, Selector),
    /// Addresses.
    Block(IpBlock),
    /// Addresses of nodes, or of a node's pods: what one of these holds. In one selector, so that they share a class.
    Blocks(BTreeSet<IpBlock>),
}

impl Base {
    /// These addresses, each by itself.
    pub(crate) fn of_nets(nets: impl IntoIterator<Item = IpNet>) -> Self {
        Self::Blocks(nets.into_iter().map(|net| IpBlock { net, except: Vec::new() }).collect())
    }

    /// The blocks that it is made of; none where it is of pods.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = &IpBlock> {
        let (one, several) = match self {
            Self::Block(block) => (Some(block), None),
            Self::Blocks(blocks) => (None, Some(blocks)),
            Self::AnyPod | Self::Pods(..) => (None, None),
        };
        one.into_iter().chain(several.into_iter().flatten())
    }
}

/// A containerPort's name and protocol, and the number that it stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedPort {
    /// Name.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Number.
    pub number: u16,
}

/// A live pod with a network of its own, as peers see it.
#[derive(Clone, Copy, Debug)]
pub struct PodFacts<'a> {
    /// Its namespace's name.
    pub namespace: &'a str,
    /// Its namespace's labels; `None` where nothing declares the namespace (S34).
    pub namespace_labels: Option<&'a Labels>,
    /// The pod.
    pub pod: &'a Pod,
}

/// Whom policies select.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// A pod with a network of its own: NetworkPolicies do.
    Pod(PodFacts<'a>),
    /// A pod in this node's network: HostPolicies do, and NetworkPolicies where the agent was told so (H6).
    HostPod(PodFacts<'a>),
    /// This node, by name: HostPolicies do.
    Node(&'a str),
    /// Pods in this node's network of which nothing is known yet: closed but for what always passes.
    Unknown,
}

impl<'a> Subject<'a> {
    /// What is known of it as a pod.
    #[must_use]
    pub const fn facts(&self) -> Option<&PodFacts<'a>> {
        match self {
            Self::Pod(facts) | Self::HostPod(facts) => Some(facts),
            Self::Node(_) | Self::Unknown => None,
        }
    }

    /// True for what the host firewall judges.
    #[must_use]
    pub const fn is_host(&self) -> bool {
        match self {
            Self::Pod(_) => false,
            Self::HostPod(_) | Self::Node(_) | Self::Unknown => true,
        }
    }
}

/// Pods and addresses at one moment.
#[derive(Debug)]
pub struct Directory<'a> {
    /// Live pods with a network of their own.
    pub pods: BTreeMap<&'a ObjectKey, PodFacts<'a>>,
    /// Where the host firewall is on, its node by name, and ...
    pub node: Option<&'a str>,
    /// ... the live hostNetwork pods of that node, those included that name no node. They are nobody's peers (H5).
    pub hosts: BTreeMap<&'a ObjectKey, PodFacts<'a>>,
    /// Who owns an address (S50).
    pub owners: BTreeMap<IpAddr, &'a ObjectKey>,
    /// Numbers that a named port stands for anywhere.
    pub named: BTreeMap<(&'a str, Protocol), BTreeSet<u16>>,
    /// Services' virtual addresses but for those of nodes, those that a pod owns too.
    pub services: BTreeSet<IpAddr>,
    /// Services' virtual addresses that no pod owns.
    pub virtual_addresses: BTreeSet<IpAddr>,
    /// Namespaces whose pods may send from any address.
    pub unbound: BTreeSet<&'a str>,
}

impl<'a> Directory<'a> {
    /// Reads the cluster.
    #[must_use]
    pub fn new(cluster: &'a Cluster) -> Self {
        let mut pods = BTreeMap::new();
        let mut owners: BTreeMap<IpAddr, &ObjectKey> = BTreeMap::new();
        let mut named: BTreeMap<(&str, Protocol), BTreeSet<u16>> = BTreeMap::new();
        for (key, pod) in cluster.pods.iter().filter(|(_, pod)| pod.is_live() && pod.has_own_network()) {
            for address in &pod.addresses {
                let owner = owners.entry(*address).or_insert(key);
                if cluster.pods.get(*owner).is_some_and(|held| seniority(held) < seniority(pod)) {
                    *owner = key;
                }
            }
            for ((name, protocol), number) in &pod.named_ports {
                named.entry((name, *protocol)).or_default().insert(*number);
            }
            pods.insert(key, facts(cluster, key, pod));
        }
        let node = cluster.host.as_ref().map(|host| host.node.as_str());
        let hosts = cluster.pods.iter().filter(|(_, pod)| node.is_some_and(|node| is_host_of(pod, node)));
        let hosts = hosts.map(|(key, pod)| (key, facts(cluster, key, pod))).collect();
        let mut services: BTreeSet<IpAddr> =
            cluster.services.values().flat_map(|service| service.addresses.iter().copied()).collect();
        // A load balancer on the nodes themselves: what is sent to a node may as well be meant for it.
        for address in cluster.nodes.values().flat_map(|node| &node.addresses) {
            services.remove(address);
        }
        let virtual_addresses =
            services.iter().filter(|address| !owners.contains_key(*address)).copied().collect();
        let is_unbound = |namespace: &Namespace| namespace.source_binding == Some(SourceBinding::Off);
        let unbound = cluster.namespaces.iter().filter(|(_, namespace)| is_unbound(namespace));
        let unbound = unbound.map(|(name, _)| name.as_str()).collect();
        Self { pods, node, hosts, owners, named, services, virtual_addresses, unbound }
    }

    /// Whether a pod sends from its own addresses only.
    #[must_use]
    pub fn source_binding(&self, pod: &ObjectKey) -> SourceBinding {
        if self.unbound.contains(pod.namespace.as_str()) { SourceBinding::Off } else { SourceBinding::On }
    }

    /// Who is behind a key, whom policies can select; `None`: nobody.
    #[must_use]
    pub fn subject(&self, key: &ObjectKey) -> Option<Subject<'a>> {
        if key.is_unknown() {
            return self.node.map(|_| Subject::Unknown);
        }
        if key.is_node() {
            return self.node.filter(|node| *node == key.name).map(Subject::Node);
        }
        let pod = self.pods.get(key).copied().map(Subject::Pod);
        pod.or_else(|| self.hosts.get(key).copied().map(Subject::HostPod))
    }

    /// The pod that owns an address.
    #[must_use]
    pub fn owner(&self, address: IpAddr) -> Option<&PodFacts<'a>> {
        self.owners.get(&address).and_then(|key| self.pods.get(*key))
    }
}

/// What is known of a pod.
pub(crate) fn facts<'a>(cluster: &'a Cluster, key: &'a ObjectKey, pod: &'a Pod) -> PodFacts<'a> {
    let namespace_labels = cluster.namespaces.get(&key.namespace).map(|n| &n.labels);
    PodFacts { namespace: &key.namespace, namespace_labels, pod }
}

/// A live hostNetwork pod of this node.
fn is_host_of(pod: &Pod, node: &str) -> bool {
    pod.is_live() && !pod.has_own_network() && is_local(pod, node)
}

/// True for a pod of this node, and for one that names none.
#[must_use]
pub fn is_local(pod: &Pod, node: &str) -> bool {
    pod.node.as_ref().is_none_or(|name| name == node)
}

/// Of two pods that show one address the greater owns it: later start, then greater UID (S50).
pub(crate) fn seniority(pod: &Pod) -> (Option<i64>, &str) {
    (pod.start_time, &pod.uid)
}

impl PeerSelector {
    /// True if the selector matches this address, owned by this pod if by any.
    #[must_use]
    pub fn matches(&self, address: IpAddr, owner: Option<&PodFacts<'_>>) -> bool {
        let named = match &self.named {
            None => true,
            Some(port) => owner.is_some_and(|facts| declares(facts.pod, port)),
        };
        named
            && match &self.base {
                Base::AnyPod => owner.is_some(),
                Base::Pods(namespaces, pods) => {
                    owner.is_some_and(|facts| in_scope(namespaces, facts) && selected(pods, facts.pod))
                }
                Base::Block(block) => block_holds(block, address),
                Base::Blocks(blocks) => blocks.iter().any(|block| block_holds(block, address)),
            }
    }

    /// True if the selector matches this pod whatever its addresses; never for blocks.
    #[must_use]
    pub fn matches_pod(&self, facts: &PodFacts<'_>) -> bool {
        self.named.as_ref().is_none_or(|port| declares(facts.pod, port))
            && match &self.base {
                Base::AnyPod => true,
                Base::Pods(namespaces, pods) => in_scope(namespaces, facts) && selected(pods, facts.pod),
                Base::Block(_) | Base::Blocks(_) => false,
            }
    }
}

/// Without all of its labels nobody knows whether a selector means the pod.
fn selected(selector: &Selector, pod: &Pod) -> bool {
    pod.has_known_labels() && selector.matches(&pod.labels)
}

fn declares(pod: &Pod, port: &NamedPort) -> bool {
    // The key borrows nothing: a pod declares few ports.
    pod.named_ports.get(&(port.name.clone(), port.protocol)) == Some(&port.number)
}

fn in_scope(scope: &NamespaceScope, facts: &PodFacts<'_>) -> bool {
    match scope {
        NamespaceScope::Named(name) => facts.namespace_labels.is_some() && name == facts.namespace,
        NamespaceScope::Matching(selector) => {
            facts.namespace_labels.is_some_and(|labels| selector.matches(labels))
        }
    }
}

/// In the block, and in none of its own excepts (S17).
#[must_use]
pub fn block_holds(block: &IpBlock, address: IpAddr) -> bool {
    block.net.contains(&address) && !block.except.iter().any(|except| except.contains(&address))
}

/// True if the whole prefix lies in the block and outside of its excepts. For prefixes among which are the
/// block and its excepts, that tells for every address whose longest prefix it is.
#[must_use]
pub fn block_holds_prefix(block: &IpBlock, prefix: &IpNet) -> bool {
    block.net.contains(prefix) && !block.except.iter().any(|except| except.contains(prefix))
}
