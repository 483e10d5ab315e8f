//! Puts the same manifests to the oracle and to the compiler and compares every answer. Knows neither how
//! the one nor how the other comes to it.

use std::net::IpAddr;

use portcullis_common::event::{Action, Direction as Way, Reason};
use portcullis_oracle::generate::{self, ExternalProbe, Probe};
use portcullis_oracle::{DirVerdict, Direction, Family, Protocol, Reason as Why, Traffic, Verdict, World};
use portcullis_policy::answer::{Answer, Answers, DirectionAnswer, Family as OurFamily, Party};
use portcullis_policy::compile::Compiler;
use portcullis_policy::desired::{Desired, RuleSource};
use portcullis_policy::frame::Traffic as OurTraffic;
use portcullis_policy::manifest::{self, ManifestObject, Options, ParsedFile};
use portcullis_policy::model::{self, Cluster, ObjectKey};
use serde_json::Value;

/// Reads manifests as the agent would.
#[must_use]
pub fn cluster_of(manifests: &[Value]) -> Cluster {
    let objects = manifests.iter().map(|value| ManifestObject { line: 1, value: value.clone() }).collect();
    let file = ParsedFile { path: "case.json".to_owned(), objects };
    // Cases mean an absent address as absent.
    manifest::load(&[file], &Options { pod_cidrs: Vec::new() }).cluster
}

/// Compiles a cluster with every pod an endpoint.
#[must_use]
pub fn compile(cluster: &Cluster) -> Desired {
    let (desired, problems) =
        Compiler::new(0).compile(cluster, cluster.pods.keys()).expect("tables have room");
    assert!(problems.is_empty(), "{problems:?}");
    desired
}

/// `ns/name`.
#[must_use]
pub fn key_of(pod: &str) -> ObjectKey {
    let (namespace, name) = pod.split_once('/').expect("a pod is ns/name");
    ObjectKey::new(namespace, name)
}

/// Our word for the oracle's traffic.
#[must_use]
pub fn traffic_of(traffic: Traffic) -> OurTraffic {
    match traffic {
        Traffic::To(protocol, port) => {
            let protocol = match protocol {
                Protocol::Tcp => model::Protocol::Tcp,
                Protocol::Udp => model::Protocol::Udp,
                Protocol::Sctp => model::Protocol::Sctp,
            };
            OurTraffic::To(protocol, port)
        }
        Traffic::IcmpEcho => OurTraffic::Echo,
    }
}

/// Our word for the oracle's family.
#[must_use]
pub fn family_of(family: Family) -> OurFamily {
    match family {
        Family::Ipv4 => OurFamily::Ipv4,
        Family::Ipv6 => OurFamily::Ipv6,
    }
}

/// One compared cluster.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Answers compared.
    pub compared: u64,
    /// Differences, each with the flow and both answers.
    pub mismatches: Vec<String>,
}

/// Compares all probes of a generated cluster.
#[must_use]
pub fn compare(case: &generate::Cluster) -> Outcome {
    let cluster = cluster_of(&case.manifests);
    compare_where(case, &cluster, &compile(&cluster), |_, _| true)
}

/// Compares, of the probes of a generated cluster and for these tables, the directions of pods (`ns/name`) that are
/// to be judged.
#[must_use]
pub fn compare_where(
    case: &generate::Cluster,
    cluster: &Cluster,
    desired: &Desired,
    is_judged: impl Fn(&str, Direction) -> bool,
) -> Outcome {
    let world = World::new(&case.manifests);
    let answers = Answers::new(cluster, desired);
    let mut outcome = Outcome::default();
    for probe in &case.probes {
        pair(&world, &answers, probe, &is_judged, &mut outcome);
    }
    for probe in case.external_probes.iter().filter(|probe| is_judged(&probe.pod, probe.direction)) {
        external(&world, &answers, probe, &mut outcome);
    }
    outcome
}

/// The two pods of a probe; none if one of them has no address of the family.
#[must_use]
pub fn parties(answers: &Answers<'_>, probe: &Probe) -> Option<(Party, Party)> {
    let family = family_of(probe.family);
    let find = |pod: &str| answers.pod(&key_of(pod), family);
    Some((find(&probe.from)?, find(&probe.to)?))
}

fn pair(
    world: &World,
    answers: &Answers<'_>,
    probe: &Probe,
    is_judged: impl Fn(&str, Direction) -> bool,
    outcome: &mut Outcome,
) {
    let ours =
        parties(answers, probe).map(|(from, to)| answers.answer(&from, &to, traffic_of(probe.traffic)));
    let theirs = world.pod_to_pod(&probe.from, &probe.to, probe.traffic, probe.family);
    outcome.compared += 1;
    let flow = || format!("{} -> {} {} {:?}", probe.from, probe.to, probe.traffic, probe.family);
    match (ours, theirs) {
        (None, None) => {}
        (Some(Answer { egress: Some(egress), ingress: Some(ingress) }), Some(theirs)) => {
            if is_judged(&probe.from, Direction::Egress) {
                same(&egress, &theirs.egress, || format!("{} egress", flow()), outcome);
            }
            if is_judged(&probe.to, Direction::Ingress) {
                same(&ingress, &theirs.ingress, || format!("{} ingress", flow()), outcome);
            }
        }
        (ours, theirs) => outcome.mismatches.push(format!("{}: {ours:?} but oracle {theirs:?}", flow())),
    }
}

/// The flow of one direction between a pod and any address.
#[must_use]
pub fn ends(
    answers: &Answers<'_>,
    pod: &str,
    direction: Direction,
    remote: IpAddr,
) -> Option<(Party, Party)> {
    let (key, address) =
        answers.order(OurFamily::of(remote)).into_iter().find(|(key, _)| key.to_string() == pod)?;
    let pod = Party::Pod(key, address);
    let peer = answers.party_at(remote);
    Some(match direction {
        Direction::Ingress => (peer, pod),
        Direction::Egress => (pod, peer),
    })
}

fn external(world: &World, answers: &Answers<'_>, probe: &ExternalProbe, outcome: &mut Outcome) {
    let Some((from, to)) = ends(answers, &probe.pod, probe.direction, probe.remote) else {
        return;
    };
    let answer = answers.answer(&from, &to, traffic_of(probe.traffic));
    let ours = match probe.direction {
        Direction::Ingress => answer.ingress,
        Direction::Egress => answer.egress,
    };
    let theirs = world.judge(&probe.pod, probe.direction, probe.remote, probe.traffic);
    outcome.compared += 1;
    let flow = || format!("{} {:?} {} {}", probe.pod, probe.direction, probe.remote, probe.traffic);
    match (ours, theirs) {
        (Some(ours), Some(theirs)) => same(&ours, &theirs, flow, outcome),
        (ours, theirs) => outcome.mismatches.push(format!("{}: {ours:?} but oracle {theirs:?}", flow())),
    }
}

fn same(ours: &DirectionAnswer, theirs: &DirVerdict, flow: impl Fn() -> String, outcome: &mut Outcome) {
    if !agrees(ours, theirs) {
        outcome.mismatches.push(format!("{}: {ours:?} but oracle {theirs:?}", flow()));
    }
}

/// Verdict, reason, and what it is attributed to.
#[must_use]
pub fn agrees(ours: &DirectionAnswer, theirs: &DirVerdict) -> bool {
    let verdict = match theirs.verdict {
        Verdict::Allow => Action::Allow,
        Verdict::Deny => Action::Deny,
    };
    let key = |policy: &(String, String)| ObjectKey::new(policy.0.clone(), policy.1.clone());
    let policy = |policy: &(String, String)| model::PolicyRef::Network(key(policy));
    let source = ours.decided_by.as_ref().map(|name| &name.source);
    let why = match (&theirs.reason, ours.reason) {
        (Why::NotIsolated, Reason::NotIsolated)
        | (Why::SelfTraffic, Reason::SelfTraffic)
        | (Why::ServiceUnresolved, Reason::ServiceNotResolved) => true,
        (Why::Rule { policy: of, index }, Reason::Rule) => {
            source == Some(&RuleSource::NetworkPolicy(key(of), u32::try_from(*index).unwrap_or(u32::MAX)))
        }
        (Why::Isolated { first, all }, Reason::Isolated)
        | (Why::InvalidClosed { first, all }, Reason::InvalidClosed) => {
            source == Some(&RuleSource::Isolation(key(first)))
                && ours.policies == all.iter().map(policy).collect::<Vec<_>>()
        }
        (Why::UndeclaredNamespace, Reason::Isolated) => {
            matches!(source, Some(RuleSource::UndeclaredNamespace(_)))
        }
        _ => false,
    };
    verdict == ours.action && why
}

/// Which way the oracle's direction goes.
#[must_use]
pub fn way_of(direction: Direction) -> Way {
    match direction {
        Direction::Ingress => Way::Ingress,
        Direction::Egress => Way::Egress,
    }
}
