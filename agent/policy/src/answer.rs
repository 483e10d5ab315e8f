//! Verdicts for people: the judgement of the packet path, run on the compiler's tables, with what decided
//! named. `explain`, `matrix` and the tests ask here; the same frames go to the kernel.

use std::collections::BTreeMap;
use std::net::IpAddr;

use portcullis_common::addr::Addr;
use portcullis_common::classify::Tables;
use portcullis_common::event::{Action, Direction, Reason};
use portcullis_common::judge::{At, Environment, Flows, Origin, Verdict, Work, judge};
use portcullis_common::packet::{Link, parse};
use portcullis_common::wire::{
    ENDPOINT_HOST, ENDPOINT_UNBOUND, ENDPOINT_USED, EndpointConfig, EndpointWord, FlowEntry, FlowKey,
    LINK_ETHERNET, LINK_IP, MAX_ENDPOINT_ADDRS, PeerRowKey, PeerRowWord, PeerWord, PortRange, Row, Rule,
    Ruleset,
};

use crate::compile::ruleset::isolating;
use crate::desired::{CounterName, Desired, EndpointRulesets, wire_addr};
use crate::frame::{self, Traffic};
use crate::model::{Cluster, ObjectKey, PodNetwork, PolicyRef, SourceBinding};
use crate::select::{Directory, is_local};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }

    /// The word for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }

    /// `world`: documentation addresses (RFC 5737, RFC 3849) that belong to nobody.
    #[must_use]
    pub fn world(self) -> IpAddr {
        match self {
            Self::Ipv4 => IpAddr::from([192, 0, 2, 1]),
            Self::Ipv6 => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
        }
    }
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Party {
    /// A live pod with a network of its own, by the address that it owns.
    Pod(ObjectKey, IpAddr),
    /// A live pod in the own node's network, by an address of the node: judged where the host firewall is on.
    HostPod(ObjectKey, IpAddr),
    /// The pod's own node; where the host firewall is on its node, which is judged then.
    OwnNode(IpAddr),
    /// Anyone else.
    Address(IpAddr),
}

impl Party {
    /// Its address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        match self {
            Self::Pod(_, address)
            | Self::HostPod(_, address)
            | Self::OwnNode(address)
            | Self::Address(address) => *address,
        }
    }
}

/// The verdict of one direction, and what made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectionAnswer {
    /// Allowed or denied, as if everything were enforced.
    pub action: Action,
    /// True if it is denied by policies in audit mode alone, and passes.
    pub audited: bool,
    /// Why.
    pub reason: Reason,
    /// The rule or isolation that decided.
    pub decided_by: Option<CounterName>,
    /// Every policy that isolates the subject in this direction, where isolation decided.
    pub policies: Vec<PolicyRef>,
}

/// The verdict of a flow; a direction whose end no policy can select has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What the sender's policies say.
    pub egress: Option<DirectionAnswer>,
    /// What the receiver's policies say.
    pub ingress: Option<DirectionAnswer>,
}

impl Answer {
    /// Allowed only if both directions allow it (S4).
    #[must_use]
    pub fn action(&self) -> Action {
        let denied = |d: &Option<DirectionAnswer>| d.as_ref().is_some_and(|d| d.action == Action::Deny);
        if denied(&self.egress) || denied(&self.ingress) { Action::Deny } else { Action::Allow }
    }
}

/// One direction of a flow as a question to one endpoint: what userspace judges, and what the kernel is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The pod whose policies decide, or the node ([`ObjectKey::of_node`]).
    pub pod: ObjectKey,
    /// Which way.
    pub direction: Direction,
    /// Where the packet came from.
    pub origin: Origin,
    /// The packet, an Ethernet frame.
    pub frame: Vec<u8>,
}

/// Asks the compiled tables about a cluster.
#[derive(Debug)]
pub struct Answers<'a> {
    cluster: &'a Cluster,
    directory: Directory<'a>,
    desired: &'a Desired,
    configs: BTreeMap<ObjectKey, EndpointConfig>,
}

impl<'a> Answers<'a> {
    /// Of tables compiled from this cluster.
    #[must_use]
    pub fn new(cluster: &'a Cluster, desired: &'a Desired) -> Self {
        let directory = Directory::new(cluster);
        let of_pods = directory.pods.keys().map(|key| ((*key).clone(), pod_config(&directory, key)));
        let hosts = directory.hosts.keys().map(|key| (*key).clone());
        let hosts = hosts.chain(directory.node.map(ObjectKey::of_node));
        let configs = of_pods.chain(hosts.map(|key| (key, host_config()))).collect();
        Self { cluster, directory, desired, configs }
    }

    /// The objects that this answers about.
    #[must_use]
    pub fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    /// Who owns which address.
    #[must_use]
    pub fn directory(&self) -> &Directory<'a> {
        &self.directory
    }

    /// Live pods with a network of their own that own an address of the family, by namespace, then name.
    #[must_use]
    pub fn order(&self, family: Family) -> Vec<(ObjectKey, IpAddr)> {
        self.directory
            .pods
            .keys()
            .filter_map(|key| self.address(key, family).map(|address| ((*key).clone(), address)))
            .collect()
    }

    /// Where the host firewall is on: the node and the live pods in its network, in this order, by the addresses
    /// of the family that the node has, or shows by one of these pods.
    #[must_use]
    pub fn hosts(&self, family: Family) -> Vec<Party> {
        let Some(node) = self.directory.node else { return Vec::new() };
        let of_family = |addresses: &[IpAddr]| addresses.iter().copied().find(|a| Family::of(*a) == family);
        let own = self.cluster.nodes.get(node).and_then(|node| of_family(&node.addresses));
        let shown = || self.directory.hosts.values().find_map(|facts| of_family(&facts.pod.addresses));
        let of_pods = self.directory.hosts.iter().filter_map(|(key, facts)| {
            let address = own.or_else(|| of_family(&facts.pod.addresses))?;
            Some(Party::HostPod((*key).clone(), address))
        });
        own.or_else(shown).map(Party::OwnNode).into_iter().chain(of_pods).collect()
    }

    /// The key by which an end is a subject; `None`: no policy here selects it.
    #[must_use]
    pub fn subject(&self, party: &Party) -> Option<ObjectKey> {
        match party {
            Party::Pod(key, _) => Some(key.clone()),
            Party::HostPod(key, _) => self.directory.hosts.contains_key(key).then(|| key.clone()),
            Party::OwnNode(_) => self.directory.node.map(ObjectKey::of_node),
            Party::Address(_) => None,
        }
    }

    /// Where what one end sends comes to the other from.
    fn origin(&self, from: &Party, to: &Party) -> Origin {
        let sends_itself = || self.subject(from).is_some() && self.subject(from) == self.subject(to);
        let is_of_node = || match from {
            Party::OwnNode(_) => true,
            // Another node's nobody knows here.
            Party::HostPod(key, _) => self.directory.hosts.contains_key(key),
            Party::Pod(..) | Party::Address(_) => false,
        };
        // Where nobody says which node it is, it is the one that the receiver runs on.
        let is_local = |pod: &ObjectKey| {
            let facts = self.directory.pods.get(pod);
            self.directory.node.is_none_or(|node| facts.is_some_and(|facts| is_local(facts.pod, node)))
        };
        match (from, to) {
            (Party::Pod(from, _), Party::Pod(to, _)) if from == to => Origin::OwnInterface,
            (Party::HostPod(..) | Party::OwnNode(_), Party::HostPod(..) | Party::OwnNode(_))
                if sends_itself() =>
            {
                Origin::OwnInterface
            }
            (Party::OwnNode(_), Party::HostPod(..) | Party::OwnNode(_) | Party::Address(_)) => {
                Origin::OwnNode
            }
            (Party::OwnNode(_) | Party::HostPod(..), Party::Pod(to, _)) if is_of_node() && is_local(to) => {
                Origin::OwnNode
            }
            // One hostNetwork pod to another too: by address each is the node, and neither's process is (H8).
            (Party::Pod(..) | Party::HostPod(..) | Party::OwnNode(_) | Party::Address(_), _) => {
                Origin::Forwarded
            }
        }
    }

    fn address(&self, pod: &ObjectKey, family: Family) -> Option<IpAddr> {
        owned_addresses(&self.directory, pod).into_iter().find(|address| Family::of(*address) == family)
    }

    /// A pod by its address of a family; none if it has none.
    #[must_use]
    pub fn pod(&self, pod: &ObjectKey, family: Family) -> Option<Party> {
        self.address(pod, family).map(|address| Party::Pod(pod.clone(), address))
    }

    /// The pod that owns an address, or the address itself.
    #[must_use]
    pub fn party_at(&self, address: IpAddr) -> Party {
        match self.directory.owners.get(&address) {
            Some(key) => Party::Pod((*key).clone(), address),
            None => Party::Address(address),
        }
    }

    /// The same, where it may be known which pod is meant: of a pod in the node's network the address does not tell.
    #[must_use]
    pub fn party_of(&self, pod: Option<&ObjectKey>, address: IpAddr) -> Party {
        match pod.filter(|pod| self.directory.hosts.contains_key(*pod)) {
            Some(pod) => Party::HostPod(pod.clone(), address),
            None => self.party_at(address),
        }
    }

    /// The questions that a flow puts to the sender's and to the receiver's endpoint.
    #[must_use]
    pub fn questions(
        &self,
        from: &Party,
        to: &Party,
        traffic: Traffic,
    ) -> (Option<Question>, Option<Question>) {
        let Some(frame) = frame::opening(from.address(), to.address(), traffic) else {
            return (None, None);
        };
        let origin = self.origin(from, to);
        let egress = self.subject(from).map(|pod| Question {
            pod,
            direction: Direction::Egress,
            // A host has no interface of its own: of what it sends only what it says to itself comes from there.
            origin: match from {
                Party::OwnNode(_) | Party::HostPod(..) if origin != Origin::OwnInterface => Origin::Forwarded,
                Party::OwnNode(_) | Party::HostPod(..) | Party::Pod(..) | Party::Address(_) => {
                    Origin::OwnInterface
                }
            },
            frame: frame.clone(),
        });
        let ingress =
            self.subject(to).map(|pod| Question { pod, direction: Direction::Ingress, origin, frame });
        (egress, ingress)
    }

    /// Judges a flow.
    #[must_use]
    pub fn answer(&self, from: &Party, to: &Party, traffic: Traffic) -> Answer {
        let (egress, ingress) = self.questions(from, to, traffic);
        Answer { egress: egress.map(|q| self.direction(&q)), ingress: ingress.map(|q| self.direction(&q)) }
    }

    /// The raw verdict of a question.
    #[must_use]
    pub fn verdict(&self, question: &Question) -> Verdict {
        let rulesets = self.desired.endpoints.get(&question.pod).copied().unwrap_or(EndpointRulesets::CLOSED);
        let config = self.configs.get(&question.pod).copied().unwrap_or_default();
        let at = At { slot: 0, direction: question.direction, origin: question.origin };
        verdict_at(self.desired, config, rulesets, at, &question.frame)
    }

    /// Judges one direction.
    #[must_use]
    pub fn direction(&self, question: &Question) -> DirectionAnswer {
        let verdict = self.verdict(question);
        let policies = if matches!(verdict.reason, Reason::Isolated | Reason::InvalidClosed) {
            self.isolating(&question.pod, question.direction)
        } else {
            Vec::new()
        };
        DirectionAnswer {
            action: verdict.action,
            audited: verdict.audited,
            reason: verdict.reason,
            decided_by: self.desired.counters.get(&verdict.counter).cloned(),
            policies,
        }
    }

    /// Every policy that isolates a subject in a direction.
    #[must_use]
    pub fn isolating(&self, subject: &ObjectKey, direction: Direction) -> Vec<PolicyRef> {
        let Some(found) = self.directory.subject(subject) else { return Vec::new() };
        if found.facts().is_some_and(|facts| !facts.pod.has_known_labels()) {
            return Vec::new();
        }
        let policies = isolating(self.cluster, subject, &found, direction);
        policies.into_iter().map(|isolating| isolating.policy).collect()
    }
}

/// The raw verdict on a frame at any endpoint, without flows.
#[must_use]
pub fn verdict_at(
    tables: &Desired,
    config: EndpointConfig,
    rulesets: EndpointRulesets,
    at: At,
    frame: &[u8],
) -> Verdict {
    let link = if config.link == LINK_IP { Link::Ip } else { Link::Ethernet };
    let EndpointRulesets { ingress, egress } = rulesets;
    let tables = Offline { tables, config, word: EndpointWord { ingress, egress, generation: 0 } };
    let mut work = Work::EMPTY;
    parse(&frame, link, &mut work.packet);
    judge(&tables, &frame, &mut work, at)
}

/// The addresses of a pod that no other live pod owns.
#[must_use]
pub fn owned_addresses(directory: &Directory<'_>, key: &ObjectKey) -> Vec<IpAddr> {
    let Some(facts) = directory.pods.get(key) else {
        return Vec::new();
    };
    match facts.pod.network {
        PodNetwork::Host => Vec::new(),
        PodNetwork::Own => facts
            .pod
            .addresses
            .iter()
            .filter(|address| directory.owners.get(*address).is_some_and(|owner| *owner == key))
            .copied()
            .collect(),
    }
}

/// A pod's endpoint, behind no particular interface.
#[must_use]
pub fn pod_config(directory: &Directory<'_>, key: &ObjectKey) -> EndpointConfig {
    let mut config = endpoint_config(&owned_addresses(directory, key));
    config.flags |= binding_flags(directory.source_binding(key));
    config
}

/// A host's endpoint: it sends from any address, and which are its own no table says.
#[must_use]
pub fn host_config() -> EndpointConfig {
    let flags = ENDPOINT_USED | ENDPOINT_UNBOUND | ENDPOINT_HOST;
    EndpointConfig { flags, link: LINK_ETHERNET, ..EndpointConfig::default() }
}

/// How an endpoint is marked whose pod's sources are bound, or are not.
#[must_use]
pub const fn binding_flags(binding: SourceBinding) -> u32 {
    match binding {
        SourceBinding::On => 0,
        SourceBinding::Off => ENDPOINT_UNBOUND,
    }
}

/// An endpoint with these addresses, behind no particular interface. Addresses past
/// [`MAX_ENDPOINT_ADDRS`] are left out: the pod cannot use them.
#[must_use]
pub fn endpoint_config(addresses: &[IpAddr]) -> EndpointConfig {
    let mut config =
        EndpointConfig { flags: ENDPOINT_USED, link: LINK_ETHERNET, ..EndpointConfig::default() };
    for (place, address) in config.addrs.iter_mut().zip(addresses) {
        *place = wire_addr(*address);
        config.addr_count += 1;
    }
    debug_assert!(config.addr_count as usize <= MAX_ENDPOINT_ADDRS);
    config
}

/// The tables with one endpoint and without flows.
struct Offline<'a> {
    tables: &'a Desired,
    config: EndpointConfig,
    word: EndpointWord,
}

impl Tables for Offline<'_> {
    fn ruleset(&self, id: u32) -> Option<&Ruleset> {
        self.tables.ruleset(id)
    }
    fn peer(&self, bank: u32, addr: &Addr) -> Option<PeerWord> {
        self.tables.peer(bank, addr)
    }
    fn prefix(&self, bank: u32, addr: &Addr) -> Option<PeerWord> {
        self.tables.prefix(bank, addr)
    }
    fn peer_row(&self, key: &PeerRowKey) -> Option<PeerRowWord> {
        self.tables.peer_row(key)
    }
    fn row(&self, id: u32) -> Option<&Row> {
        self.tables.row(id)
    }
    fn port_range(&self, index: u32) -> Option<PortRange> {
        self.tables.port_range(index)
    }
    fn rule(&self, index: u32) -> Option<Rule> {
        self.tables.rule(index)
    }
}

impl Flows for Offline<'_> {
    type Handle = ();
    fn find(&self, _: u32, _: &FlowKey) -> Option<()> {
        None
    }
    fn deciding(&self, (): ()) -> (u32, u32) {
        (0, 0)
    }
    fn age(&self, (): ()) -> (u32, u32) {
        (0, 0)
    }
    fn renew(&self, (): (), _: u32, _: u32) {}
    fn touch(&self, (): (), _: u32, _: u32) {}
    fn passed(&self, (): ()) -> (u32, u32) {
        (0, 0)
    }
    fn pass(&self, (): (), _: u32, _: u32) {}
    fn insert(&self, _: u32, _: &FlowKey, _: &FlowEntry) {}
    fn remove(&self, _: u32, _: &FlowKey) {}
}

impl Environment for Offline<'_> {
    fn config(&self, _: u32) -> Option<&EndpointConfig> {
        Some(&self.config)
    }
    fn endpoint(&self, _: u32) -> Option<EndpointWord> {
        Some(self.word)
    }
    fn epoch(&self, _: u32) -> u32 {
        0
    }
    fn prefix_epoch(&self) -> u32 {
        0
    }
    fn is_audit(&self) -> bool {
        false
    }
    fn delivers(&self) -> bool {
        false
    }
    fn is_node_port(&self, _: &Addr, _: u8, _: u16) -> bool {
        false
    }
    fn now(&self) -> u32 {
        0
    }
}
