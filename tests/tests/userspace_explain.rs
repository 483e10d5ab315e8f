//! Why rules match or do not, and what turns a verdict, against the tables and the oracle.
#![allow(missing_docs)]

use std::net::IpAddr;

use portcullis_common::event::{Action, Direction as Way, Reason};
use portcullis_oracle::generate::{self, ExternalProbe, Probe};
use portcullis_oracle::{Direction, Traffic, Verdict, World};
use portcullis_policy::answer::{Answers, DirectionAnswer, Party};
use portcullis_policy::change::{Change, Edit, apply, apply_edits};
use portcullis_policy::compile::Compiler;
use portcullis_policy::desired::{Desired, RuleSource};
use portcullis_policy::model::{Cluster, DirectionSpec, IsolationCause, ObjectKey};
use portcullis_policy::turn;
use portcullis_policy::why::{Finding, Sight};
use portcullis_tests::compare::{cluster_of, compile, ends, family_of, traffic_of};
use portcullis_tests::edits::{self, Written};
use portcullis_tests::privilege::number;
use portcullis_tests::seeds::tallied;
use serde_json::Value;

/// Clusters of the property test; `PORTCULLIS_EXPLAINED` and `PORTCULLIS_SEED` ask for others.
const CLUSTERS: u64 = 500;

/// Of so many questions one has each of its rules tried alone.
const ALONE: u64 = 4;

#[derive(Default)]
struct Tally {
    questions: u64,
    turned: u64,
    unturned: u64,
    rules: u64,
    alone: u64,
    ops: std::collections::BTreeMap<String, u64>,
}

impl Tally {
    fn plus(mut self, other: Self) -> Self {
        self.questions += other.questions;
        self.turned += other.turned;
        self.unturned += other.unturned;
        self.rules += other.rules;
        self.alone += other.alone;
        for (op, count) in other.ops {
            *self.ops.entry(op).or_default() += count;
        }
        self
    }
}

/// A question, and how to put it to the oracle: the action, `None` where it knows no such pod.
struct Asked<'a> {
    manifests: &'a [Value],
    cluster: &'a Cluster,
    answers: &'a Answers<'a>,
    from: Party,
    to: Party,
    traffic: portcullis_policy::frame::Traffic,
    sent: Traffic,
    flow: String,
    oracle: &'a dyn Fn(&World) -> Option<Verdict>,
}

#[test]
fn every_proposed_change_turns_the_verdict_and_every_rule_is_told_as_it_is() {
    let (clusters, seed) = (number("PORTCULLIS_EXPLAINED", CLUSTERS), number("PORTCULLIS_SEED", 1));
    let tally = tallied(&(seed..seed + clusters), one, Tally::plus);
    println!(
        "{clusters} clusters, {} questions, {} turned, {} that nothing turns, {} rules, {} alone, {:?}",
        tally.questions, tally.turned, tally.unturned, tally.rules, tally.alone, tally.ops
    );
    assert!(tally.turned > 20 * clusters, "only {} verdicts turned", tally.turned);
    for op in ["append", "create", "merge", "remove", "replace"] {
        assert!(clusters < CLUSTERS || tally.ops.contains_key(op), "no edit was a {op}: {:?}", tally.ops);
    }
}

/// All probes of one cluster.
fn one(seed: u64, tally: &mut Tally) {
    let case = generate::cluster(seed);
    let world = World::new(&case.manifests);
    let cluster = cluster_of(&case.manifests);
    let desired = compile(&cluster);
    let answers = Answers::new(&cluster, &desired);
    for probe in &case.probes {
        let order = answers.order(family_of(probe.family));
        let party = |pod: &str| {
            let found = order.iter().find(|(key, _)| key.to_string() == pod);
            found.map(|(key, address)| Party::Pod(key.clone(), *address))
        };
        let (Some(from), Some(to)) = (party(&probe.from), party(&probe.to)) else { continue };
        let Probe { from: source, to: target, traffic, family } = probe;
        let oracle =
            |world: &World| world.pod_to_pod(source, target, *traffic, *family).map(|pair| pair.verdict());
        let flow = format!("seed {seed}: {source} -> {target} {traffic} {family:?}");
        let (sent, traffic) = (*traffic, traffic_of(*traffic));
        let (manifests, cluster, answers) = (&case.manifests, &cluster, &answers);
        let asked = Asked { manifests, cluster, answers, from, to, traffic, sent, flow, oracle: &oracle };
        asked.check(&world, tally);
    }
    for probe in &case.external_probes {
        let ExternalProbe { pod, direction, remote, traffic } = probe;
        let Some((from, to)) = ends(&answers, pod, *direction, *remote) else { continue };
        if [&from, &to].iter().all(|party| matches!(party, Party::Pod(..))) {
            continue;
        }
        let oracle =
            |world: &World| world.judge(pod, *direction, *remote, *traffic).map(|judged| judged.verdict);
        let way = if *direction == Direction::Ingress { "from" } else { "to" };
        let flow = format!("seed {seed}: {pod} {way} {remote} {traffic}");
        let (sent, traffic) = (*traffic, traffic_of(*traffic));
        let (manifests, cluster, answers) = (&case.manifests, &cluster, &answers);
        let asked = Asked { manifests, cluster, answers, from, to, traffic, sent, flow, oracle: &oracle };
        asked.check(&world, tally);
    }
}

fn action_of(verdict: Verdict) -> Action {
    match verdict {
        Verdict::Allow => Action::Allow,
        Verdict::Deny => Action::Deny,
    }
}

/// Tables for the pods of one flow.
fn compile_for(cluster: &Cluster, parties: [&Party; 2]) -> Desired {
    let pods = parties.into_iter().filter_map(|party| match party {
        Party::Pod(key, _) => Some(key),
        Party::HostPod(..) | Party::OwnNode(_) | Party::Address(_) => None,
    });
    let (desired, problems) = Compiler::new(0).compile(cluster, pods).expect("tables have room");
    assert!(problems.is_empty(), "{problems:?}");
    desired
}

impl Asked<'_> {
    fn check(&self, world: &World, tally: &mut Tally) {
        let Self { answers, from, to, traffic, flow, .. } = self;
        let Some(theirs) = (self.oracle)(world).map(action_of) else { return };
        let answer = answers.answer(from, to, *traffic);
        assert_eq!(answer.action(), theirs, "{flow}");
        tally.questions += 1;
        let sides = [(Way::Egress, &answer.egress, from, to), (Way::Ingress, &answer.ingress, to, from)];
        for (direction, judged, subject, remote) in sides {
            let (Some(judged), Party::Pod(subject, _)) = (judged, subject) else { continue };
            self.rules(direction, judged, subject, remote.address(), tally);
        }
        self.turns(theirs, tally);
    }

    /// What is said of each rule is so: the first that matches decided, and each by itself decides as said.
    fn rules(
        &self,
        direction: Way,
        judged: &DirectionAnswer,
        subject: &ObjectKey,
        remote: IpAddr,
        tally: &mut Tally,
    ) {
        let (flow, traffic) = (&self.flow, self.traffic);
        let directory = self.answers.directory();
        let sight = Sight { cluster: self.cluster, directory, subject, direction, remote, traffic };
        let first = |findings: &[Finding]| {
            let matching = findings.iter().find(|finding| finding.why.is_none());
            matching.map(|finding| RuleSource::rule(&finding.policy, finding.rule))
        };
        let findings = sight.findings();
        let isolated = matches!(judged.reason, Reason::Isolated | Reason::InvalidClosed);
        if judged.reason == Reason::Rule {
            let source = judged.decided_by.as_ref().map(|name| name.source.clone());
            assert_eq!(first(&findings), source, "{flow} {direction:?}: {findings:#?}");
        } else if isolated {
            assert_eq!(first(&findings), None, "{flow} {direction:?}: {findings:#?}");
        } else {
            let open = judged.reason == Reason::NotIsolated;
            assert!(!open || findings.is_empty(), "{flow} {direction:?}: {findings:#?}");
            return;
        }
        tally.rules += findings.len() as u64;
        if !tally.questions.is_multiple_of(ALONE) || findings.len() < 2 {
            return;
        }
        for finding in &findings {
            self.alone(direction, finding, &findings, tally);
        }
    }

    /// With this rule and no other the direction says what is said of the rule.
    fn alone(&self, direction: Way, kept: &Finding, all: &[Finding], tally: &mut Tally) {
        let mut cluster = self.cluster.clone();
        let mut edits: Vec<Edit> = Vec::new();
        for finding in all.iter().rev().filter(|finding| *finding != kept) {
            let policy = finding.policy.clone();
            edits.push(Edit::RemoveRule { policy: policy.clone(), direction, rule: finding.rule });
            let defaulted = matches!(
                cluster.policies[policy.network().expect("a NetworkPolicy")].ingress,
                DirectionSpec::Isolated { cause: IsolationCause::Written, .. }
            );
            if defaulted && direction == Way::Egress && policy != kept.policy {
                edits.push(Edit::WriteTypes(policy));
            }
        }
        // Rules of unreadable policies are counted in the model and match nothing.
        let readable = |edit: &Edit| {
            let Edit::RemoveRule { policy, .. } = edit else { return true };
            let policy = &self.cluster.policies[policy.network().expect("a NetworkPolicy")];
            let side = if direction == Way::Ingress { &policy.ingress } else { &policy.egress };
            matches!(side, DirectionSpec::Isolated { cause: IsolationCause::Written, .. })
        };
        edits.retain(readable);
        apply_edits(&mut cluster, &edits);
        let expected = if kept.why.is_none() { Action::Allow } else { Action::Deny };
        let desired = compile_for(&cluster, [&self.from, &self.to]);
        let answer = Answers::new(&cluster, &desired).answer(&self.from, &self.to, self.traffic);
        let judged = if direction == Way::Ingress { answer.ingress } else { answer.egress };
        let judged = judged.expect("the subject is still there").action;
        assert_eq!(judged, expected, "{} {direction:?} with {kept:#?} alone", self.flow);
        tally.alone += 1;
        let world = World::new(&edited(self.manifests, &edits));
        let (subject, remote, way) = match direction {
            Way::Ingress => (&self.to, &self.from, Direction::Ingress),
            Way::Egress => (&self.from, &self.to, Direction::Egress),
        };
        let Party::Pod(subject, _) = subject else { unreachable!("the subject is a pod") };
        let theirs = world.judge(&subject.to_string(), way, remote.address(), self.sent);
        let theirs = theirs.map(|judged| action_of(judged.verdict));
        assert_eq!(theirs, Some(expected), "{} {direction:?}: oracle, {kept:#?} alone", self.flow);
    }

    fn turns(&self, before: Action, tally: &mut Tally) {
        let Self { answers, from, to, traffic, flow, .. } = self;
        let change = turn::change(answers, from, to, *traffic, &[]);
        let Change { becomes, edits, text } = &change;
        assert_ne!(*becomes, before, "{flow}");
        if edits.is_empty() {
            assert!(text.is_some(), "{flow}: no edit and no reason");
            let answer = answers.answer(from, to, *traffic);
            let reasons: Vec<Reason> =
                [answer.egress, answer.ingress].into_iter().flatten().map(|side| side.reason).collect();
            let hopeless =
                |reason: &Reason| matches!(reason, Reason::SelfTraffic | Reason::ServiceNotResolved);
            let to_service = answers.directory().virtual_addresses.contains(&to.address());
            assert!(
                to_service || reasons.iter().any(hopeless),
                "{flow}: nothing is proposed against {reasons:?}"
            );
            tally.unturned += 1;
            return;
        }
        let after = apply(self.cluster, &change);
        let desired = compile_for(&after, [from, to]);
        let ours = Answers::new(&after, &desired).answer(from, to, *traffic).action();
        assert_eq!(ours, *becomes, "{flow}: {change:#?}");
        let manifests = edited(self.manifests, edits);
        let theirs = (self.oracle)(&World::new(&manifests)).map(action_of);
        assert_eq!(theirs, Some(*becomes), "{flow}: oracle after {change:#?}");
        // The manifests say what the model says.
        let read = cluster_of(&manifests);
        let desired = compile_for(&read, [from, to]);
        let read = Answers::new(&read, &desired).answer(from, to, *traffic).action();
        assert_eq!(read, *becomes, "{flow}: manifests after {change:#?}");
        for edit in edits {
            *tally.ops.entry(edit.op().to_owned()).or_default() += 1;
        }
        tally.turned += 1;
    }
}

fn edited(manifests: &[Value], all: &[Edit]) -> Vec<Value> {
    let mut manifests = manifests.to_vec();
    for edit in all {
        edits::edit(&mut manifests, &Written::from(edit));
    }
    manifests
}
