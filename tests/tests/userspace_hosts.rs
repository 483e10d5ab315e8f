//! HostPolicies: the compiler and the shared classification in userspace, against the oracle.
#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portcullis_common::event::{Action, Direction as Way, Reason};
use portcullis_oracle::generate::{HostCluster, host_cluster};
use portcullis_oracle::hosts::{End, Firewall, PolicyName, Why};
use portcullis_oracle::rng::SplitMix64;
use portcullis_oracle::{DirVerdict, Family, Protocol, Traffic, Verdict, World};
use portcullis_policy::answer::{Answer, Answers, DirectionAnswer, Party};
use portcullis_policy::change::apply;
use portcullis_policy::compile::Compiler;
use portcullis_policy::desired::RuleSource;
use portcullis_policy::model::{
    self, Cluster, Failsafe, Host, HostNetworkPods, ObjectKey, PolicyRef, PortSpan,
};
use portcullis_policy::turn;
use portcullis_policy::why::Sight;
use portcullis_tests::compare::{agrees, cluster_of, family_of, key_of, traffic_of};
use portcullis_tests::edits::{self, Written};
use portcullis_tests::privilege::number;
use portcullis_tests::seeds::tallied;

/// Clusters of the test; `PORTCULLIS_HOST_CLUSTERS` and `PORTCULLIS_SEED` ask for others.
const CLUSTERS: u64 = 2_000;

/// After so many wrong answers a thread asks no more.
const ENOUGH: usize = 20;

#[test]
fn random_host_policies_get_the_oracles_verdicts_and_attributions() {
    let (clusters, seed) = (number("PORTCULLIS_HOST_CLUSTERS", CLUSTERS), number("PORTCULLIS_SEED", 1));
    let started = std::time::Instant::now();
    let tally = tallied(&(seed..seed + clusters), one, Tally::plus);
    let Tally { compared, turned, rules, wrong, whys, .. } = tally;
    println!(
        "{clusters} clusters from seed {seed}, {compared} answers, {} wrong, {turned} turned, {rules} rules explained, \
         {:.1} s; {whys:?}",
        wrong.len(),
        started.elapsed().as_secs_f64()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for why in
        ["rule", "rule of a NetworkPolicy", "failsafe", "own-node", "self", "isolated", "audited", "invalid"]
    {
        assert!(clusters < CLUSTERS || whys.contains_key(why), "nothing was {why}: {whys:?}");
    }
}

#[derive(Default)]
struct Tally {
    compared: u64,
    asked: u64,
    turned: u64,
    rules: u64,
    wrong: Vec<String>,
    whys: BTreeMap<&'static str, u64>,
}

impl Tally {
    fn plus(mut self, other: Self) -> Self {
        self.compared += other.compared;
        self.asked += other.asked;
        self.turned += other.turned;
        self.rules += other.rules;
        self.wrong.extend(other.wrong);
        for (why, count) in other.whys {
            *self.whys.entry(why).or_default() += count;
        }
        self
    }
}

fn one(seed: u64, tally: &mut Tally) {
    if tally.wrong.len() <= ENOUGH {
        compare(&host_cluster(seed), tally);
    }
}

fn compare(case: &HostCluster, tally: &mut Tally) {
    let mut cluster = cluster_of(&case.manifests);
    cluster.host = Some(host_of(&case.firewall));
    let world = World::new(&case.manifests);
    let node = ObjectKey::of_node(case.firewall.node.clone());
    let subjects: Vec<ObjectKey> = cluster.pods.keys().cloned().chain([node]).collect();
    let (desired, problems) = Compiler::new(0).compile(&cluster, &subjects).expect("tables have room");
    assert!(problems.is_empty(), "{problems:?}");
    let answers = Answers::new(&cluster, &desired);
    let hosts: Vec<String> = answers.directory().hosts.keys().map(ToString::to_string).collect();
    if hosts != world.host_pods(&case.firewall) {
        tally.wrong.push(format!("seed {}: hosts {hosts:?}", case.seed));
    }
    for family in [Family::Ipv4, Family::Ipv6] {
        let ends = ends(case, &world, &answers, family, tally);
        let mut place = 0usize;
        for (from, ours_from) in &ends {
            for (to, ours_to) in &ends {
                if matches!((from, to), (End::Address(_), End::Address(_))) {
                    continue;
                }
                // Each pair with some of the traffics, each traffic with many pairs.
                for traffic in case.traffics.iter().cycle().skip(place % case.traffics.len()).take(3) {
                    place += 1;
                    let ours = answers.answer(ours_from, ours_to, traffic_of(*traffic));
                    let (egress, ingress) = world.host_flow(&case.firewall, from, to, *traffic);
                    tally.asked += 1;
                    if tally.asked.is_multiple_of(TURNED) {
                        let flow = Flow {
                            case,
                            answers: &answers,
                            from,
                            to,
                            ours: [ours_from, ours_to],
                            sent: *traffic,
                        };
                        flow.explained(&ours, tally);
                        flow.turned(ours.action(), tally);
                    }
                    for (way, ours, theirs) in
                        [("egress", &ours.egress, &egress), ("ingress", &ours.ingress, &ingress)]
                    {
                        tally.compared += 1;
                        if let Some(theirs) = theirs {
                            *tally.whys.entry(name_of(theirs)).or_default() += 1;
                        }
                        let same = match (ours, theirs) {
                            (None, None) => true,
                            (Some(ours), Some(theirs)) => agree(ours, theirs),
                            (None, Some(_)) | (Some(_), None) => false,
                        };
                        if !same {
                            let flow = format!("seed {}: {from:?} -> {to:?} {traffic} {way}", case.seed);
                            tally.wrong.push(format!("{flow}: {ours:?} but oracle {theirs:?}"));
                        }
                    }
                }
            }
        }
    }
}

/// Every so many flows each rule is explained and the verdict turned: that compiles anew.
const TURNED: u64 = 97;

/// A flow in both words.
struct Flow<'a> {
    case: &'a HostCluster,
    answers: &'a Answers<'a>,
    from: &'a End,
    to: &'a End,
    ours: [&'a Party; 2],
    sent: Traffic,
}

impl Flow<'_> {
    fn name(&self) -> String {
        format!("seed {}: {:?} -> {:?} {}", self.case.seed, self.from, self.to, self.sent)
    }

    /// What is said of each rule is so: the first that matches decided.
    fn explained(&self, answer: &Answer, tally: &mut Tally) {
        let [from, to] = self.ours;
        let sides = [(Way::Egress, &answer.egress, from, to), (Way::Ingress, &answer.ingress, to, from)];
        for (direction, judged, subject, remote) in sides {
            let (Some(judged), Some(subject)) = (judged, self.answers.subject(subject)) else { continue };
            let sight = Sight {
                cluster: self.answers.cluster(),
                directory: self.answers.directory(),
                subject: &subject,
                direction,
                remote: remote.address(),
                traffic: traffic_of(self.sent),
            };
            let findings = sight.findings();
            tally.rules += findings.len() as u64;
            let first = findings.iter().find(|finding| finding.why.is_none());
            let first = first.map(|finding| RuleSource::rule(&finding.policy, finding.rule));
            let source = judged.decided_by.as_ref().map(|name| name.source.clone());
            let is_closed = source == Some(RuleSource::Closed);
            let fits = if judged.reason == Reason::Rule {
                first == source
            } else if judged.reason == Reason::NotIsolated {
                findings.is_empty()
            } else {
                // What passes always is behind the rules; what a host says to itself asks none.
                first.is_none()
                    || is_closed
                    || matches!(
                        judged.reason,
                        Reason::OwnNode | Reason::SelfTraffic | Reason::ServiceNotResolved
                    )
            };
            if !fits {
                tally.wrong.push(format!("{} {direction:?}: {judged:?} but {findings:#?}", self.name()));
            }
        }
    }

    /// What is proposed turns the verdict, in our eyes and, done to the manifests, in the oracle's.
    fn turned(&self, before: Action, tally: &mut Tally) {
        let [from, to] = self.ours;
        let traffic = traffic_of(self.sent);
        let change = turn::change(self.answers, from, to, traffic, &[]);
        if change.edits.is_empty() {
            if change.text.is_none() {
                tally.wrong.push(format!("{}: no edit and no reason", self.name()));
            }
            return;
        }
        let after = apply(self.answers.cluster(), &change);
        let (desired, _) = Compiler::new(0).compile(&after, &after.subjects()).expect("tables have room");
        let ours = Answers::new(&after, &desired).answer(from, to, traffic).action();
        let mut manifests = self.case.manifests.clone();
        for edit in &change.edits {
            edits::edit(&mut manifests, &Written::from(edit));
        }
        let (egress, ingress) =
            World::new(&manifests).host_flow(&self.case.firewall, self.from, self.to, self.sent);
        let denied = [egress, ingress].iter().flatten().any(|why| why.verdict() == Verdict::Deny);
        let theirs = if denied { Action::Deny } else { Action::Allow };
        if ours == before || theirs == before {
            tally.wrong.push(format!(
                "{}: {before:?}, ours {ours:?}, oracle {theirs:?} after {change:#?}",
                self.name()
            ));
        }
        tally.turned += 1;
    }
}

/// The same ends in both words.
fn ends(
    case: &HostCluster,
    world: &World,
    answers: &Answers<'_>,
    family: Family,
    tally: &mut Tally,
) -> Vec<(End, Party)> {
    let mut ends: Vec<(End, Party)> = Vec::new();
    let (theirs, ours) = (world.host_ends(&case.firewall, family), answers.hosts(family_of(family)));
    let name = |party: &Party| match party {
        Party::HostPod(key, address) => End::HostPod(key.to_string(), *address),
        Party::OwnNode(address) => End::Node(*address),
        Party::Pod(..) | Party::Address(_) => panic!("no host: {party:?}"),
    };
    if theirs != ours.iter().map(name).collect::<Vec<_>>() {
        tally.wrong.push(format!("seed {}: hosts {ours:?} but oracle {theirs:?}", case.seed));
    }
    ends.extend(theirs.into_iter().zip(ours));
    for pod in &case.pods {
        let (ours, theirs) = (answers.pod(&key_of(pod), family_of(family)), world.address(pod, family));
        if ours.as_ref().map(Party::address) != theirs {
            tally.wrong.push(format!("seed {}: {pod} {ours:?} but oracle {theirs:?}", case.seed));
        }
        ends.extend(ours.map(|party| (End::Pod(pod.clone(), party.address()), party)));
    }
    let others = case.externals.iter().filter(|address| Family::of(**address) == family);
    ends.extend(others.map(|address| (end_at(world, *address), answers.party_at(*address))));
    ends
}

fn end_at(world: &World, address: IpAddr) -> End {
    match world.owner(address) {
        Some(pod) => End::Pod(pod, address),
        None => End::Address(address),
    }
}

fn host_of(firewall: &Firewall) -> Host {
    let spans = |all: &[(Protocol, u16, u16)]| -> Vec<PortSpan> {
        let protocol = |protocol: Protocol| match protocol {
            Protocol::Tcp => model::Protocol::Tcp,
            Protocol::Udp => model::Protocol::Udp,
            Protocol::Sctp => model::Protocol::Sctp,
        };
        all.iter().map(|(of, from, to)| (protocol(*of), *from, *to)).collect()
    };
    let selects =
        if firewall.network_policies { HostNetworkPods::NetworkPolicy } else { HostNetworkPods::Ignore };
    let failsafe =
        Failsafe { ingress: spans(&firewall.failsafe_ingress), egress: spans(&firewall.failsafe_egress) };
    let api_servers = firewall.api_servers.iter().copied().collect();
    Host { node: firewall.node.clone(), selects, failsafe, api_servers }
}

fn policy_of(policy: &PolicyName) -> PolicyRef {
    match policy {
        PolicyName::Host(name) => PolicyRef::Host(name.clone()),
        PolicyName::Network((namespace, name)) => {
            PolicyRef::Network(ObjectKey::new(namespace.clone(), name.clone()))
        }
    }
}

/// Verdict, reason, and what it is attributed to.
fn agree(ours: &DirectionAnswer, theirs: &Why) -> bool {
    let source = ours.decided_by.as_ref().map(|name| &name.source);
    let action = match theirs.verdict() {
        Verdict::Allow => Action::Allow,
        Verdict::Deny => Action::Deny,
    };
    let why = match (theirs, ours.reason) {
        (Why::OfPod(reason), _) => agrees(ours, &DirVerdict::from(reason.clone())),
        (Why::NotIsolated, Reason::NotIsolated) | (Why::SelfTraffic, Reason::SelfTraffic) => source.is_none(),
        // By its origin, or by a rule for it.
        (Why::OwnNode, Reason::OwnNode) => matches!(source, None | Some(RuleSource::OwnNode)),
        (Why::Rule(policy, index), Reason::Rule) => {
            let index = u32::try_from(*index).unwrap_or(u32::MAX);
            source == Some(&RuleSource::rule(&policy_of(policy), index))
        }
        (Why::Failsafe, Reason::Failsafe) => source == Some(&RuleSource::Failsafe),
        (Why::Isolated { first, all, is_invalid, is_audited }, reason) => {
            let wanted = if *is_invalid { Reason::InvalidClosed } else { Reason::Isolated };
            reason == wanted
                && source == Some(&RuleSource::isolation(&policy_of(first)))
                && ours.policies == all.iter().map(policy_of).collect::<Vec<_>>()
                && ours.audited == *is_audited
        }
        (Why::UndeclaredNamespace, Reason::Isolated) => {
            matches!(source, Some(RuleSource::UndeclaredNamespace(_)))
        }
        (Why::UnreadableLabels, Reason::InvalidClosed) => source == Some(&RuleSource::Closed),
        _ => false,
    };
    ours.action == action && why
}

fn name_of(why: &Why) -> &'static str {
    match why {
        Why::OfPod(_) => "of a pod",
        Why::NotIsolated => "not-isolated",
        Why::Rule(PolicyName::Host(_), _) => "rule",
        Why::Rule(PolicyName::Network(_), _) => "rule of a NetworkPolicy",
        Why::Failsafe => "failsafe",
        Why::OwnNode => "own-node",
        Why::SelfTraffic => "self",
        Why::Isolated { is_audited: true, .. } => "audited",
        Why::Isolated { is_invalid: true, .. } => "invalid",
        Why::Isolated { .. } => "isolated",
        Why::UndeclaredNamespace => "undeclared namespace",
        Why::UnreadableLabels => "unreadable labels",
    }
}

/// HostPolicies mean nothing where nobody asked for a host firewall.
#[test]
fn without_the_host_firewall_host_policies_change_nothing() {
    for seed in 1..=50 {
        let case = host_cluster(seed);
        let cluster = cluster_of(&case.manifests);
        let without = Cluster { host_policies: BTreeMap::new(), ..cluster.clone() };
        let tables = |cluster: &Cluster| {
            let node = ObjectKey::of_node(case.firewall.node.clone());
            let subjects: Vec<ObjectKey> = cluster.pods.keys().cloned().chain([node]).collect();
            Compiler::new(0).compile(cluster, &subjects).expect("tables have room").0
        };
        assert_eq!(tables(&cluster), tables(&without), "seed {seed}");
    }
}

/// Changes of everything that hosts are compiled from: what takes the short way says what compiling anew does.
#[test]
fn changes_take_the_short_way_only_where_no_hosts_rules_differ() {
    let (mut followed, mut whole, mut wrong) = (0u64, 0u64, Vec::new());
    for seed in 1..=number("PORTCULLIS_HOST_CHANGES", 400) {
        let (case, other) = (host_cluster(seed), host_cluster(seed + 1_000_000));
        let mut rng = SplitMix64::new(seed);
        let mut before = cluster_of(&case.manifests);
        before.host = Some(host_of(&case.firewall));
        let donor = cluster_of(&other.manifests);
        let subjects: BTreeSet<ObjectKey> = before.subjects().into_iter().collect();
        // Pods that are on other nodes, or that no agent has found yet, have no tables.
        let subjects: BTreeSet<ObjectKey> =
            subjects.into_iter().filter(|key| key.is_node() || rng.below(2) == 0).collect();
        let mut compiler = Compiler::new(0);
        let (mut tables, _) = compiler.compile(&before, &subjects).expect("tables have room");
        for step in 0..8 {
            let mut after = before.clone();
            change(&mut after, &donor, &mut rng);
            if compiler.follow(&before, &after, &subjects, &mut tables).is_some() {
                followed += 1;
            } else {
                whole += 1;
                tables = compiler.compile(&after, &subjects).expect("tables have room").0;
            }
            before = after;
            let anew = Compiler::new(0).compile(&before, &subjects).expect("tables have room").0;
            let (ours, theirs) = (Answers::new(&before, &tables), Answers::new(&before, &anew));
            for family in [Family::Ipv4, Family::Ipv6] {
                let pods =
                    ours.order(family_of(family)).into_iter().map(|(key, address)| Party::Pod(key, address));
                let others = case.externals.iter().map(|address| ours.party_at(*address));
                let others = others.filter(|party| Family::of(party.address()) == family);
                let ends: Vec<Party> =
                    ours.hosts(family_of(family)).into_iter().chain(pods).chain(others).collect();
                for (from, to) in ends.iter().flat_map(|from| ends.iter().map(move |to| (from, to))) {
                    let traffic = traffic_of(*rng.pick(&case.traffics));
                    let (egress, ingress) = ours.questions(from, to, traffic);
                    for question in [egress, ingress].into_iter().flatten() {
                        if !subjects.contains(&question.pod) {
                            continue;
                        }
                        let (short, long) = (ours.direction(&question), theirs.direction(&question));
                        if short != long {
                            let flow = format!("seed {seed} step {step}: {from:?} -> {to:?} {traffic}");
                            wrong.push(format!("{flow}: {short:?} but anew {long:?}"));
                        }
                    }
                }
            }
        }
        if wrong.len() > 10 {
            break;
        }
    }
    println!("{followed} changes followed, {whole} compiled, {} wrong", wrong.len());
    assert!(wrong.is_empty(), "{}", wrong[..wrong.len().min(10)].join("\n"));
    assert!(followed > 100 && whole > 100, "{followed} and {whole} tell nothing");
}

/// One change, mostly of pods.
fn change(cluster: &mut Cluster, donor: &Cluster, rng: &mut SplitMix64) {
    let pods: Vec<ObjectKey> = cluster.pods.keys().cloned().collect();
    let (one, other) = (rng.pick(&pods).clone(), rng.pick(&pods).clone());
    match rng.below(12) {
        0..5 => {
            let labels = cluster.pods[&other].labels.clone();
            cluster.pods.get_mut(&one).expect("it is there").labels = labels;
        }
        5 | 6 => {
            let pod = cluster.pods.get_mut(&one).expect("it is there");
            pod.phase = if pod.is_live() { model::Phase::Finished } else { model::Phase::Live };
        }
        7 => drop(cluster.pods.remove(&one)),
        8 => {
            let (Some(namespace), Some(from)) =
                (cluster.namespaces.get_mut(&one.namespace), donor.namespaces.values().next())
            else {
                return;
            };
            let name = namespace.labels.remove("kubernetes.io/metadata.name");
            namespace.labels = from.labels.clone();
            namespace.labels.extend(name.map(|name| ("kubernetes.io/metadata.name".to_owned(), name)));
        }
        9 => {
            if let Some(node) = cluster.nodes.values_mut().nth(rng.below(2)) {
                node.labels = donor.nodes.values().next().map(|node| node.labels.clone()).unwrap_or_default();
            }
        }
        10 => cluster.host_policies.clone_from(&donor.host_policies),
        _ => {
            let node = cluster.pods[&other].node.clone();
            cluster.pods.get_mut(&one).expect("it is there").node = node;
        }
    }
}
