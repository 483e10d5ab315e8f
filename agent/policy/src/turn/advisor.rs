//! What opens or closes one direction: the proposals that [`super::change`] chooses from, and that a page of many
//! flows asks for one by one.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use portcullis_common::event::Direction;

use crate::change::{Edit, Spec};
use crate::compile::ruleset::{Isolating, selects_host};
use crate::convert::{METADATA_NAME, printable};
use crate::frame::Traffic;
use crate::model::{
    Cluster, DirectionSpec, HostPolicy, HostSubject, IpBlock, IsolationCause, Labels, Mode, NamespaceScope,
    NetworkPolicy, ObjectKey, Operator, Peer, Peers, PolicyRef, PortMatch, PortSpec, Ports, Problem,
    Requirement, Rule, Selector, Subject,
};
use crate::select::{Directory, PodFacts, Subject as Whom};
use crate::why::{Sight, Standing};

/// Labels that controllers give to pods and change with each rollout or run: a selector on one of them would
/// soon match nothing. From `apps/v1` (`DefaultDeploymentUniqueLabelKey`, `ControllerRevisionHashLabelKey`,
/// `DeprecatedTemplateGeneration`) and `batch/v1` (`ControllerUidLabel`, and its forerunner) of Kubernetes.
const PASSING_LABELS: [&str; 5] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "batch.kubernetes.io/controller-uid",
    "controller-uid",
];

/// The label by which a node is known (`corev1.LabelHostname` of Kubernetes).
const HOST_NAME: &str = "kubernetes.io/hostname";

/// The value of a label that only has to be there.
const ANY_VALUE: &str = "true";

/// How much of a pod's name the name of a proposed policy holds: an object's name has 253 characters at most.
const NAME_PART: usize = 200;

/// Proposes changes. It keeps what it counted, for many questions about one cluster.
#[derive(Debug)]
pub struct Advisor<'a> {
    cluster: &'a Cluster,
    directory: &'a Directory<'a>,
    problems: &'a [Problem],
    subjects: RefCell<BTreeMap<PolicyRef, usize>>,
    matched: RefCell<BTreeMap<(PolicyRef, Direction, u32), usize>>,
    alike: RefCell<BTreeMap<(String, Selector), usize>>,
}

/// Edits, and the other pairs that they may turn at the same protocol and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// What to do.
    pub edits: Vec<Edit>,
    /// At most so many pairs of pods get another verdict.
    pub pairs: usize,
}

impl<'a> Advisor<'a> {
    /// For questions about this cluster.
    #[must_use]
    pub fn new(cluster: &'a Cluster, directory: &'a Directory<'a>, problems: &'a [Problem]) -> Self {
        Self {
            cluster,
            directory,
            problems,
            subjects: RefCell::default(),
            matched: RefCell::default(),
            alike: RefCell::default(),
        }
    }

    /// What makes an isolated direction allow this; `None` where it is open, allows it already, or waits for its
    /// namespace.
    #[must_use]
    pub fn opening(&self, sight: &Sight<'_>) -> Option<Proposal> {
        let Standing::Isolated(policies) = sight.standing() else { return None };
        if sight.findings().iter().any(|finding| finding.why.is_none()) {
            return None;
        }
        let label = self.missing_label(sight, &policies);
        let rule = self.added_rule(sight, &policies)?;
        Some(match label {
            Some(label) if label.pairs <= rule.pairs => label,
            Some(_) | None => rule,
        })
    }

    /// What makes a direction that allows this deny it.
    #[must_use]
    pub fn closing(&self, sight: &Sight<'_>) -> Proposal {
        match sight.standing() {
            Standing::Isolated(policies) => self.without_rules(sight, &policies),
            Standing::Open | Standing::Unknown | Standing::Undeclared => self.isolation(sight),
        }
    }

    /// A rule with this peer and port, in the policy of the fewest pods; where none can be read, the first of
    /// them, written again.
    fn added_rule(&self, sight: &Sight<'_>, policies: &[Isolating<'_>]) -> Option<Proposal> {
        let readable = |isolating: &&Isolating<'_>| isolating.cause == IsolationCause::Written;
        let chosen = policies.iter().filter(readable).min_by_key(|one| self.subjects(&one.policy));
        let (policy, cause) = match (chosen, policies.first()) {
            (Some(chosen), _) => (&chosen.policy, chosen.cause),
            (None, Some(first)) => (&first.policy, first.cause),
            (None, None) => return None,
        };
        let (peer, peers) = self.peer_of(sight, policy.namespace());
        let ports = match sight.traffic {
            Traffic::To(protocol, port) => {
                Ports::Only(vec![PortMatch { protocol, port: PortSpec::Range(port, port) }])
            }
            // Only a rule without ports covers it.
            Traffic::Echo => Ports::Any,
        };
        let rule = Rule { peers: Peers::Only(vec![peer]), ports };
        let pairs = (self.subjects(policy) * peers).saturating_sub(1);
        let direction = sight.direction;
        let edit = match cause {
            IsolationCause::Written => Edit::AppendRule { policy: policy.clone(), direction, rule },
            IsolationCause::Invalid => self.mended(policy, sight, rule)?,
        };
        Some(Proposal { edits: vec![edit], pairs })
    }

    /// An unreadable policy with this rule and otherwise as closed as it was.
    fn mended(&self, policy: &PolicyRef, sight: &Sight<'_>, rule: Rule) -> Option<Edit> {
        let mut spec = Spec::of(self.cluster, policy)?;
        match &mut spec {
            Spec::Network(_, policy) if matches!(policy.subject, Subject::Unreadable) => {
                policy.subject = Subject::Pods(Selector::default());
            }
            Spec::Host(_, policy) if matches!(policy.subject, HostSubject::Unreadable) => {
                policy.subject = match sight.whom() {
                    Some(Whom::HostPod(_)) => {
                        let all = Selector::default;
                        HostSubject::Pods { namespaces: all(), pods: all() }
                    }
                    Some(Whom::Pod(_) | Whom::Node(_) | Whom::Unknown) | None => {
                        HostSubject::Nodes(Selector::default())
                    }
                };
            }
            Spec::Network(..) | Spec::Host(..) => {}
        }
        for side in spec.directions_mut() {
            if let DirectionSpec::Isolated { rules, cause } = side {
                if matches!(cause, IsolationCause::Invalid) {
                    rules.clear();
                }
                *cause = IsolationCause::Written;
            }
        }
        let [ingress, egress] = spec.directions_mut();
        let side = match sight.direction {
            Direction::Ingress => ingress,
            Direction::Egress => egress,
        };
        if let DirectionSpec::Isolated { rules, .. } = side {
            rules.push(rule);
        }
        let object = printable(&policy.object());
        let of_it = self.problems.iter().filter(|problem| problem.object == object);
        let mend = of_it.map(|problem| (problem.field.clone(), problem.message.clone())).collect();
        Some(Edit::ReplaceSpec { spec, mend })
    }

    /// A peer that is the other end, and how many pods it matches.
    fn peer_of(&self, sight: &Sight<'_>, namespace: Option<&str>) -> (Peer, usize) {
        if let Some((key, facts)) = sight.peer()
            && !is_named_by_address(facts)
        {
            let pods = own_labels(facts);
            let count = self.alike(&key.namespace, &pods);
            let namespaces = match namespace {
                Some(own) if key.namespace == own => NamespaceScope::Named(own.to_owned()),
                Some(_) | None => NamespaceScope::Matching(only(METADATA_NAME, &key.namespace)),
            };
            return (Peer::Pods { namespaces, pods }, count);
        }
        (Peer::Block(IpBlock { net: IpNet::from(sight.remote), except: Vec::new() }), 1)
    }

    /// One label that makes the other end match a rule of these, and changes nothing else.
    fn missing_label(&self, sight: &Sight<'_>, policies: &[Isolating<'_>]) -> Option<Proposal> {
        let (key, facts) = sight.peer()?;
        let mut best: Option<Proposal> = None;
        for isolating in policies.iter().filter(|i| i.cause == IsolationCause::Written) {
            for rule in isolating.rules.iter().filter(|rule| sight.holds_port(&rule.ports)) {
                let Peers::Only(peers) = &rule.peers else { continue };
                for (label, value) in peers.iter().filter_map(|peer| lacking(peer, facts)) {
                    let pairs = self.subjects(&isolating.policy).saturating_sub(1);
                    let better = best.as_ref().is_none_or(|held| pairs < held.pairs);
                    if better && self.touches_only(facts, (&label, &value), rule) {
                        let edit = Edit::AddLabel { pod: key.clone(), key: label, value };
                        best = Some(Proposal { edits: vec![edit], pairs });
                    }
                }
            }
        }
        best
    }

    /// True if with the label the pod is selected as before, and matches no other rule's selector.
    fn touches_only(&self, facts: &PodFacts<'_>, (key, value): (&str, &str), meant: &Rule) -> bool {
        let before = &facts.pod.labels;
        let mut after = before.clone();
        after.insert(key.to_owned(), value.to_owned());
        let same = |selector: &Selector| selector.matches(before) == selector.matches(&after);
        let peers_same = |rule: &Rule| match &rule.peers {
            Peers::Any => true,
            Peers::Only(peers) => peers.iter().all(|peer| match peer {
                Peer::Pods { pods, .. } => same(pods),
                Peer::Block(_) | Peer::Nodes(_) => true,
            }),
        };
        // By place, not by value: an equal rule elsewhere would open elsewhere too.
        let side_same = |side: &DirectionSpec| match side {
            DirectionSpec::Ignored => true,
            DirectionSpec::Isolated { rules, .. } => {
                rules.iter().all(|rule| std::ptr::eq(rule, meant) || peers_same(rule))
            }
        };
        self.cluster.policies.iter().all(|(policy, spec)| {
            let subject_same = match &spec.subject {
                Subject::Pods(selector) => policy.namespace != facts.namespace || same(selector),
                Subject::Unreadable => true,
            };
            subject_same && side_same(&spec.ingress) && side_same(&spec.egress)
        }) && self
            .cluster
            .host_policies
            .values()
            .all(|spec| side_same(&spec.ingress) && side_same(&spec.egress))
    }

    /// Every rule that matches goes, the last first, so that indices stay.
    fn without_rules(&self, sight: &Sight<'_>, policies: &[Isolating<'_>]) -> Proposal {
        let direction = sight.direction;
        let mut proposal = Proposal { edits: Vec::new(), pairs: 0 };
        for Isolating { policy, rules, cause, .. } in policies.iter().rev() {
            let matches = |(_, rule): &(u32, &Rule)| sight.why_not(rule, *cause).is_none();
            let matching: Vec<(u32, &Rule)> = (0u32..).zip(*rules).filter(matches).collect();
            let mut peers = 0;
            for (index, rule) in matching.iter().rev() {
                peers += self.matched(policy, direction, (*index, rule));
                let edit = Edit::RemoveRule { policy: policy.clone(), direction, rule: *index };
                proposal.edits.push(edit);
            }
            // Rules that hold the same peers close the same pairs.
            proposal.pairs += self.subjects(policy) * peers.min(self.everyone());
            let none_left = matching.len() == rules.len() && !rules.is_empty();
            if none_left && direction == Direction::Egress && self.may_be_defaulted(policy) {
                proposal.edits.push(Edit::WriteTypes(policy.clone()));
            }
        }
        proposal.pairs = proposal.pairs.saturating_sub(1);
        proposal
    }

    /// True if policyTypes may have been left out: the default names Ingress always (S6).
    fn may_be_defaulted(&self, policy: &PolicyRef) -> bool {
        let ingress = match policy {
            PolicyRef::Host(name) => self.cluster.host_policies.get(name).map(|policy| &policy.ingress),
            PolicyRef::Network(key) => self.cluster.policies.get(key).map(|policy| &policy.ingress),
        };
        matches!(ingress, Some(DirectionSpec::Isolated { cause: IsolationCause::Written, .. }))
    }

    /// A new policy that isolates the subject, and with it the pods that carry its labels.
    #[must_use]
    pub fn isolation(&self, sight: &Sight<'_>) -> Proposal {
        let facts = match sight.whom() {
            None | Some(Whom::Unknown) => return Proposal { edits: Vec::new(), pairs: 0 },
            Some(whom @ (Whom::HostPod(_) | Whom::Node(_))) => return self.host_isolation(sight, &whom),
            Some(Whom::Pod(facts)) => facts,
        };
        let subject = own_labels(&facts);
        let pairs = self.alike(&sight.subject.namespace, &subject) * self.everyone();
        let isolated = DirectionSpec::Isolated { rules: Vec::new(), cause: IsolationCause::Written };
        let (ingress, egress, verb) = match sight.direction {
            Direction::Ingress => (isolated, DirectionSpec::Ignored, "to"),
            Direction::Egress => (DirectionSpec::Ignored, isolated, "from"),
        };
        let pod: String = sight.subject.name.chars().take(NAME_PART).collect();
        let key = self.free_name(&sight.subject.namespace, &format!("deny-{verb}-{pod}"));
        let policy = NetworkPolicy { mode: None, subject: Subject::Pods(subject), ingress, egress };
        Proposal { edits: vec![Edit::CreatePolicy(key, policy)], pairs: pairs.saturating_sub(1) }
    }

    /// A new HostPolicy that isolates this host, or the pods in its network that carry its labels.
    fn host_isolation(&self, sight: &Sight<'_>, whom: &Whom<'_>) -> Proposal {
        let subject = if let Some(facts) = whom.facts() {
            let namespaces = only(METADATA_NAME, &sight.subject.namespace);
            HostSubject::Pods { namespaces, pods: own_labels(facts) }
        } else {
            let labels = self.cluster.nodes.get(&sight.subject.name).map(|node| &node.labels);
            let name = labels.and_then(|labels| labels.get(HOST_NAME));
            HostSubject::Nodes(name.map_or_else(Selector::default, |name| only(HOST_NAME, name)))
        };
        let isolated = DirectionSpec::Isolated { rules: Vec::new(), cause: IsolationCause::Written };
        let (ingress, egress, verb) = match sight.direction {
            Direction::Ingress => (isolated, DirectionSpec::Ignored, "to"),
            Direction::Egress => (DirectionSpec::Ignored, isolated, "from"),
        };
        let policy = HostPolicy { mode: Mode::Enforce, subject, ingress, egress };
        let pairs = self.hosts_of(&policy) * self.everyone();
        let host: String = sight.subject.name.chars().take(NAME_PART).collect();
        let is_taken = |name: &str| self.cluster.host_policies.contains_key(name);
        let name = free_name(&format!("deny-{verb}-{host}"), is_taken);
        Proposal { edits: vec![Edit::CreateHostPolicy(name, policy)], pairs: pairs.saturating_sub(1) }
    }

    /// How many hosts and pods of this one a HostPolicy selects.
    fn hosts_of(&self, policy: &HostPolicy) -> usize {
        let pods = self.directory.hosts.values().copied().map(Whom::HostPod);
        let all = pods.chain(self.directory.node.map(Whom::Node));
        all.filter(|whom| selects_host(self.cluster, policy, whom)).count()
    }

    fn free_name(&self, namespace: &str, name: &str) -> ObjectKey {
        let is_taken = |name: &str| self.cluster.policies.contains_key(&ObjectKey::new(namespace, name));
        ObjectKey::new(namespace, free_name(name, is_taken))
    }

    /// All pods, and those outside as one.
    fn everyone(&self) -> usize {
        self.directory.pods.len() + 1
    }

    /// How many pods a policy selects.
    fn subjects(&self, policy: &PolicyRef) -> usize {
        *self.subjects.borrow_mut().entry(policy.clone()).or_insert_with(|| {
            let key = match policy {
                PolicyRef::Host(name) => {
                    return self.cluster.host_policies.get(name).map_or(0, |policy| self.hosts_of(policy));
                }
                PolicyRef::Network(key) => key,
            };
            let subject = self.cluster.policies.get(key).map(|policy| &policy.subject);
            self.pods_of(&key.namespace)
                .filter(|facts| match subject {
                    Some(Subject::Pods(selector)) => selector.matches(&facts.pod.labels),
                    Some(Subject::Unreadable) => true,
                    None => false,
                })
                .count()
        })
    }

    /// How many pods a rule's peers hold; one more for those outside, where it reaches there.
    fn matched(&self, policy: &PolicyRef, direction: Direction, (index, rule): (u32, &Rule)) -> usize {
        // Peers are the same whoever asks.
        let nobody = ObjectKey::of_node("");
        let key = (policy.clone(), direction, index);
        *self.matched.borrow_mut().entry(key).or_insert_with(|| match &rule.peers {
            Peers::Any => self.everyone(),
            Peers::Only(peers) => {
                let holds = |address: &IpAddr| {
                    let sight = Sight {
                        cluster: self.cluster,
                        directory: self.directory,
                        subject: &nobody,
                        direction,
                        remote: *address,
                        traffic: Traffic::Echo,
                    };
                    sight.holds_peer(&rule.peers)
                };
                let owned = self.directory.owners.iter().filter(|(address, _)| holds(address));
                let pods: BTreeSet<&ObjectKey> = owned.map(|(_, pod)| *pod).collect();
                let outside = peers.iter().any(|peer| matches!(peer, Peer::Block(_) | Peer::Nodes(_)));
                pods.len() + usize::from(outside)
            }
        })
    }

    /// How many pods of a namespace a selector matches.
    fn alike(&self, namespace: &str, selector: &Selector) -> usize {
        let key = (namespace.to_owned(), selector.clone());
        *self.alike.borrow_mut().entry(key).or_insert_with(|| {
            self.pods_of(namespace).filter(|facts| selector.matches(&facts.pod.labels)).count()
        })
    }

    fn pods_of(&self, namespace: &str) -> impl Iterator<Item = &PodFacts<'a>> {
        self.directory.pods.values().filter(move |facts| facts.namespace == namespace)
    }
}

/// This name, or the first of its like with a number that is not taken.
fn free_name(name: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let mut free = name.to_owned();
    let mut number = 2u32;
    while is_taken(&free) {
        free = format!("{name}-{number}");
        number += 1;
    }
    free
}

/// True for a pod that a proposed rule can only name by its address.
#[must_use]
pub fn is_named_by_address(facts: &PodFacts<'_>) -> bool {
    facts.namespace_labels.is_none() || own_labels(facts).requirements.is_empty()
}

/// The labels by which a pod and its like are selected; none where it has none that last.
fn own_labels(facts: &PodFacts<'_>) -> Selector {
    let lasting = |(key, _): &(&String, &String)| !key.is_empty() && !PASSING_LABELS.contains(&key.as_str());
    let labels: Labels =
        facts.pod.labels.iter().filter(lasting).map(|(k, v)| (k.clone(), v.clone())).collect();
    Selector { requirements: labels.iter().map(|(key, value)| requirement(key, value)).collect() }
}

fn only(key: &str, value: &str) -> Selector {
    Selector { requirements: BTreeSet::from([requirement(key, value)]) }
}

fn requirement(key: &str, value: &str) -> Requirement {
    Requirement { key: key.to_owned(), operator: Operator::In(BTreeSet::from([value.to_owned()])) }
}

/// The one label that a pod lacks for a peer; `None` where it lacks more, or has another value: a label that is
/// there means something to somebody.
fn lacking(peer: &Peer, facts: &PodFacts<'_>) -> Option<(String, String)> {
    let Peer::Pods { namespaces, pods } = peer else { return None };
    let labels = facts.namespace_labels?;
    let in_scope = match namespaces {
        NamespaceScope::Named(name) => name == facts.namespace,
        NamespaceScope::Matching(selector) => selector.matches(labels),
    };
    let mut failing = pods.requirements.iter().filter(|requirement| !requirement.matches(&facts.pod.labels));
    let (first, None) = (failing.next()?, failing.next()) else { return None };
    if !in_scope || facts.pod.labels.contains_key(&first.key) {
        return None;
    }
    let value = match &first.operator {
        Operator::In(values) => values.first()?.clone(),
        Operator::Exists => ANY_VALUE.to_owned(),
        // Both hold for a label that is absent.
        Operator::NotIn(_) | Operator::DoesNotExist => return None,
    };
    // Another requirement may want the label absent, or not of this value.
    let mut after = facts.pod.labels.clone();
    after.insert(first.key.clone(), value.clone());
    pods.matches(&after).then(|| (first.key.clone(), value))
}
