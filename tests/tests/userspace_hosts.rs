//! HostPolicies: the compiler and the shared classification in userspace, against the oracle.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use portcullis_common::event::{Action, Reason};
use portcullis_oracle::generate::{HostCluster, host_cluster};
use portcullis_oracle::hosts::{End, Firewall, PolicyName, Why};
use portcullis_oracle::{DirVerdict, Family, Protocol, Verdict, World};
use portcullis_policy::answer::{Answers, DirectionAnswer, Party};
use portcullis_policy::compile::Compiler;
use portcullis_policy::desired::RuleSource;
use portcullis_policy::model::{
    self, Cluster, Failsafe, Host, HostNetworkPods, ObjectKey, PolicyRef, PortSpan,
};
use portcullis_tests::compare::{agrees, cluster_of, family_of, key_of, traffic_of};

/// Clusters of the test; `PORTCULLIS_HOST_CLUSTERS` and `PORTCULLIS_SEED` ask for others.
const CLUSTERS: u64 = 2_000;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn random_host_policies_get_the_oracles_verdicts_and_attributions() {
    let (clusters, seed) = (number("PORTCULLIS_HOST_CLUSTERS", CLUSTERS), number("PORTCULLIS_SEED", 1));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let started = std::time::Instant::now();
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let run = |thread| {
            let mut tally = Tally::default();
            for n in (thread..clusters).step_by(threads) {
                compare(&host_cluster(seed + n), &mut tally);
                if tally.wrong.len() > 20 {
                    break;
                }
            }
            tally
        };
        let handles: Vec<_> = (0u64..).take(threads).map(|thread| scope.spawn(move || run(thread))).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    let (mut compared, mut wrong, mut whys) = (0, Vec::new(), BTreeMap::<&str, u64>::new());
    for tally in tallies {
        compared += tally.compared;
        wrong.extend(tally.wrong);
        for (why, count) in tally.whys {
            *whys.entry(why).or_default() += count;
        }
    }
    println!(
        "{clusters} clusters from seed {seed}, {compared} answers, {} wrong, {:.1} s; {whys:?}",
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
    wrong: Vec<String>,
    whys: BTreeMap<&'static str, u64>,
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
        let mut turn = 0usize;
        for (from, ours_from) in &ends {
            for (to, ours_to) in &ends {
                if matches!((from, to), (End::Address(_), End::Address(_))) {
                    continue;
                }
                // Each pair with some of the traffics, each traffic with many pairs.
                for traffic in case.traffics.iter().cycle().skip(turn % case.traffics.len()).take(3) {
                    turn += 1;
                    let ours = answers.answer(ours_from, ours_to, traffic_of(*traffic));
                    let (egress, ingress) = world.host_flow(&case.firewall, from, to, *traffic);
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
