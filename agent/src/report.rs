//! What the running agent says of itself: `status`, `endpoints`, `policies` and the metrics' readings, from what is
//! in force and what the programs counted. Decides nothing; a counter that cannot be read is absent, not zero.

use std::collections::BTreeMap;
use std::time::Duration;

use portcullis_common::event::Direction;
use portcullis_common::wire::{ENDPOINT_UNBOUND, RULESET_CLOSED, RULESET_OPEN};
use portcullis_policy::answer::owned_addresses;
use portcullis_policy::compile::ruleset::{isolating, selects_host};
use portcullis_policy::desired::{CounterName, EndpointRulesets, RuleSource};
use portcullis_policy::findings::{FindingKind, policy_object, selected};
use portcullis_policy::model::{DirectionSpec, Mode, ObjectKey, PolicyRef, Severity, SourceBinding};
use portcullis_policy::select::{Directory, PodFacts, Subject};

use crate::api::observed::rfc3339;
use crate::api::{PodName, Refusal};
use crate::bpf::figures::Figures;
use crate::clock::{monotonic, wall_time};
use crate::daemon::Snapshot;
use crate::health::Health;
use crate::metrics::{PolicyLabels, Readings, RulePackets};
use crate::observe::Recorder;
use crate::output::Exit;
use crate::reconcile::Enforced;
use crate::verbs::endpoints::{Endpoint, Flows, Scope, Side};
use crate::verbs::policies::{
    DirectionReport, Hits, PoliciesRequest, PolicyReport, ProblemReport, RuleReport,
};
use crate::verbs::status::{
    EndpointCounts, FlowCounts, LastReconciliation, MapFill, PolicyCounts, Status, WatchReport,
};

/// Warnings that `status` shows; `policies` has all of those about policies.
const MAX_WARNINGS: usize = 50;

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The agent's node.
    pub node: Option<String>,
    /// Whether what is denied is dropped.
    pub mode: Mode,
    /// `tcx` or `clsact`.
    pub hook: String,
    /// The kernel's release.
    pub kernel: String,
    /// Where objects come from.
    pub source: String,
    /// How large an endpoint's table of flows may grow.
    pub flows_per_endpoint: u32,
}

/// Where answers come from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reporter<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) figures: &'a Figures,
    pub(crate) health: &'a Health,
    pub(crate) recorder: &'a Recorder,
    pub(crate) facts: &'a Facts,
}

impl Reporter<'_> {
    pub(crate) fn status(&self) -> Status {
        let progress = self.health.progress();
        let not_ready = self.health.not_ready();
        let wanting = self.figures.wanting().ok();
        // Without hits: only how many there are is told.
        let reports = self.all_policies(&PoliciesRequest::default(), &BTreeMap::new());
        let is_problem =
            |problem: &ProblemReport| problem.severity != ProblemReport::severity(Severity::Note);
        let enforced = self.snapshot.endpoints.len() as u64;
        let flows = self.flows();
        Status {
            node: self.facts.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: self.facts.mode.name().to_owned(),
            ready: not_ready.is_empty(),
            not_ready,
            since: rfc3339(wall_time(self.health.started())),
            hook: self.facts.hook.clone(),
            kernel: self.facts.kernel.clone(),
            source: self.facts.source.clone(),
            source_age_seconds: self.health.staleness().as_secs(),
            watches: progress
                .watches
                .iter()
                .map(|watch| WatchReport {
                    kind: watch.kind.name().to_owned(),
                    listed: watch.listed,
                    heard_seconds_ago: watch
                        .heard
                        .map(|at| Duration::from_nanos(monotonic().saturating_sub(at)).as_secs()),
                    trouble: watch.trouble.clone(),
                })
                .collect(),
            endpoints: EndpointCounts { enforced, known: enforced + progress.wanting.missing.len() as u64 },
            policies: PolicyCounts {
                total: reports.len() as u64,
                selecting_here: reports.iter().filter(|one| !one.selects_here.is_empty()).count() as u64,
                with_problems: reports.iter().filter(|one| one.problems.iter().any(is_problem)).count()
                    as u64,
            },
            maps: self
                .snapshot
                .fills
                .iter()
                .map(|fill| MapFill {
                    map: fill.map.to_owned(),
                    entries: fill.entries,
                    capacity: fill.capacity,
                })
                .collect(),
            flows: FlowCounts {
                entries: flows.map(|(entries, _)| entries),
                capacity: flows.map(|(_, capacity)| capacity),
                refused: wanting.map(|wanting| wanting.flows_refused),
            },
            older_flows: self.snapshot.older.clone(),
            events_lost: wanting.map(|wanting| wanting.events_lost),
            reconciliation: progress.last.map(|last| LastReconciliation {
                time: rfc3339(wall_time(last.ended)),
                microseconds: u64::try_from(last.took.as_micros()).unwrap_or(u64::MAX),
                error: progress.failure.clone(),
            }),
            reconcile_errors: progress.errors,
            warnings: self.warnings(),
        }
    }

    /// Problems first: they closed something.
    fn warnings(&self) -> Vec<String> {
        let problems = self.snapshot.problems.iter().filter(|problem| problem.severity != Severity::Note);
        let findings = self.snapshot.findings().iter().filter(|finding| finding.severity != Severity::Note);
        let mut all: Vec<String> =
            problems.map(ToString::to_string).chain(findings.map(ToString::to_string)).collect();
        if all.len() > MAX_WARNINGS {
            let more = all.len() - MAX_WARNINGS;
            all.truncate(MAX_WARNINGS);
            all.push(format!("{more} more are not shown: `portcullis policies` shows those about policies"));
        }
        all
    }

    /// In all tables, and for how many there is room; `None` if that cannot be read.
    fn flows(&self) -> Option<(u64, u64)> {
        let one = |one: &Enforced| self.figures.flows(one.slot).ok();
        self.snapshot.endpoints.values().map(one).try_fold((0, 0), |(entries, capacity), one| {
            let (more, room) = one?;
            Some((entries + more, capacity + room))
        })
    }

    pub(crate) fn endpoints(&self, scope: &Scope) -> Vec<Endpoint> {
        let directory = Directory::new(&self.snapshot.cluster);
        let wanted = |key: &ObjectKey| scope.namespace.as_ref().is_none_or(|only| *only == key.namespace);
        let endpoint = |(key, enforced): (&ObjectKey, &Enforced)| {
            let rulesets = EndpointRulesets { ingress: enforced.word.ingress, egress: enforced.word.egress };
            let side = |direction| {
                let ruleset = u32::from(rulesets.of(direction));
                // No policy is why a direction is closed whose pod's labels or namespace are not known, or that
                // could not be programmed.
                let is_known =
                    |facts: &PodFacts<'_>| facts.pod.has_known_labels() && facts.namespace_labels.is_some();
                let known = directory
                    .subject(key)
                    .filter(|subject| subject.facts().is_none_or(is_known))
                    .filter(|_| ruleset != RULESET_CLOSED);
                let policies = known.map_or_else(Vec::new, |subject| {
                    isolating(&self.snapshot.cluster, key, &subject, direction)
                });
                // A pod whose policies have no room has other rulesets than they say.
                let as_written = !self.snapshot.held.contains(key);
                Side {
                    ruleset,
                    isolated: ruleset != RULESET_OPEN,
                    audited: ruleset != RULESET_OPEN
                        && (self.facts.mode == Mode::Audit
                            || (as_written
                                && !policies.is_empty()
                                && policies.iter().all(|one| one.mode == Mode::Audit))),
                    policies: policies.iter().map(|one| (&one.policy).into()).collect(),
                }
            };
            let flows = self.figures.flows(enforced.slot).ok();
            Endpoint {
                pod: key.into(),
                slot: enforced.slot,
                interface: interface_name(enforced.config.ifindex),
                ifindex: enforced.config.ifindex,
                addresses: owned_addresses(&directory, key),
                source_binding: if enforced.config.flags & ENDPOINT_UNBOUND == 0 {
                    SourceBinding::On.name()
                } else {
                    SourceBinding::Off.name()
                }
                .to_owned(),
                ingress: side(Direction::Ingress),
                egress: side(Direction::Egress),
                flows: Flows {
                    entries: flows.map(|(entries, _)| entries),
                    capacity: flows.map(|(_, capacity)| capacity),
                    largest: u64::from(self.facts.flows_per_endpoint),
                },
            }
        };
        self.snapshot.endpoints.iter().filter(|(key, _)| wanted(key)).map(endpoint).collect()
    }

    pub(crate) fn policies(&self, request: &PoliciesRequest) -> Result<Vec<PolicyReport>, Refusal> {
        let counters = self.snapshot.counters.iter().map(|(counter, name)| (name, *counter)).collect();
        let reports = self.all_policies(request, &counters);
        match &request.policy {
            Some(name) if reports.is_empty() => Err(Refusal {
                error: format!("no policy {name}: `portcullis policies` lists those that there are"),
                exit: Exit::Usage.code(),
            }),
            Some(_) | None => Ok(reports),
        }
    }

    /// Each policy, with the hits of these counters.
    fn all_policies(
        &self,
        request: &PoliciesRequest,
        counters: &BTreeMap<&CounterName, u32>,
    ) -> Vec<PolicyReport> {
        let directory = Directory::new(&self.snapshot.cluster);
        let mut problems = self.problems();
        let wanted = |key: &ObjectKey| {
            request.namespace.as_ref().is_none_or(|only| *only == key.namespace)
                && request.policy.as_ref().is_none_or(|only| only.0 == PodName::from(key))
        };
        let mut reports = self.host_policies(request, counters, &mut problems);
        for (key, policy) in self.snapshot.cluster.policies.iter().filter(|(key, _)| wanted(key)) {
            let pods = selected(&directory, key, policy);
            let here: Vec<PodName> = pods
                .iter()
                .filter(|pod| self.snapshot.endpoints.contains_key(**pod))
                .map(|pod| (*pod).into())
                .collect();
            let mut of_this = problems.remove(&policy_object(key)).unwrap_or_default();
            if here.is_empty() && !pods.is_empty() {
                of_this.push(ProblemReport {
                    severity: ProblemReport::severity(Severity::Note).to_owned(),
                    kind: "selects-nothing-here".to_owned(),
                    field: "spec.podSelector".to_owned(),
                    message:
                        "none of the pods that it selects is enforced here; ask the agents of other nodes"
                            .to_owned(),
                });
            }
            let directions = self.directions(
                counters,
                &PolicyRef::Network(key.clone()),
                [&policy.ingress, &policy.egress],
            );
            reports.push(PolicyReport {
                kind: "NetworkPolicy".to_owned(),
                name: key.into(),
                mode: self.snapshot.cluster.mode(key, policy).name().to_owned(),
                since: self.snapshot.since.get(key).map(|since| rfc3339(wall_time(*since))),
                selects: pods.len() as u64,
                selects_here: here,
                directions,
                problems: of_this,
            });
        }
        reports
    }

    /// HostPolicies, before all others. Of a cluster each node's agent counts its own hosts only.
    fn host_policies(
        &self,
        request: &PoliciesRequest,
        counters: &BTreeMap<&CounterName, u32>,
        problems: &mut BTreeMap<String, Vec<ProblemReport>>,
    ) -> Vec<PolicyReport> {
        let cluster = &self.snapshot.cluster;
        let directory = Directory::new(cluster);
        let asked = request.policy.as_ref().map(|name| &name.0);
        let wanted = |policy: &PolicyRef| {
            request.namespace.is_none()
                && asked.is_none_or(|only| (&*only.namespace, &*only.name) == (policy.kind(), policy.name()))
        };
        let subjects: Vec<(ObjectKey, Subject<'_>)> = directory
            .hosts
            .iter()
            .map(|(key, facts)| ((*key).clone(), Subject::HostPod(*facts)))
            .chain(directory.node.map(|node| (ObjectKey::of_node(node), Subject::Node(node))))
            .collect();
        let mut reports = Vec::new();
        for (name, policy) in &cluster.host_policies {
            let of = PolicyRef::Host(name.clone());
            if !wanted(&of) {
                continue;
            }
            let selected: Vec<&ObjectKey> = subjects
                .iter()
                .filter(|(_, subject)| selects_host(cluster, policy, subject))
                .map(|(key, _)| key)
                .collect();
            reports.push(PolicyReport {
                kind: of.kind().to_owned(),
                name: (&of).into(),
                mode: policy.mode.name().to_owned(),
                since: None,
                selects: selected.len() as u64,
                selects_here: selected.into_iter().map(Into::into).collect(),
                directions: self.directions(counters, &of, [&policy.ingress, &policy.egress]),
                problems: problems.remove(&of.object()).unwrap_or_default(),
            });
        }
        reports
    }

    /// The directions that a policy isolates, with what was counted.
    fn directions(
        &self,
        counters: &BTreeMap<&CounterName, u32>,
        policy: &PolicyRef,
        [ingress, egress]: [&DirectionSpec; 2],
    ) -> Vec<DirectionReport> {
        let report = |(direction, spec): (Direction, &DirectionSpec)| match spec {
            DirectionSpec::Ignored => None,
            DirectionSpec::Isolated { rules, .. } => {
                let hits = |source| self.hits(counters, &CounterName { source, direction });
                let rule = |(rule, _)| RuleReport { rule, hits: hits(RuleSource::rule(policy, rule)) };
                Some(DirectionReport {
                    direction: direction.name().to_owned(),
                    rules: (0u32..).zip(rules).map(rule).collect(),
                    isolation: hits(RuleSource::isolation(policy)),
                })
            }
        };
        [(Direction::Ingress, ingress), (Direction::Egress, egress)].into_iter().filter_map(report).collect()
    }

    /// By object: what the conversion and the compiler said, then what is odd.
    fn problems(&self) -> BTreeMap<String, Vec<ProblemReport>> {
        let mut all: BTreeMap<String, Vec<ProblemReport>> = BTreeMap::new();
        for problem in &self.snapshot.problems {
            all.entry(problem.object.clone()).or_default().push(ProblemReport {
                severity: ProblemReport::severity(problem.severity).to_owned(),
                kind: "invalid".to_owned(),
                field: problem.field.clone(),
                message: problem.message.clone(),
            });
        }
        for finding in self.snapshot.findings() {
            all.entry(finding.object.clone()).or_default().push(ProblemReport {
                severity: ProblemReport::severity(finding.severity).to_owned(),
                kind: FindingKind::name(finding.kind).to_owned(),
                field: finding.field.clone(),
                message: finding.message.clone(),
            });
        }
        all
    }

    fn hits(&self, counters: &BTreeMap<&CounterName, u32>, name: &CounterName) -> Hits {
        let Some(counter) = counters.get(name) else {
            return Hits::default();
        };
        let stats = self.figures.rule(*counter).ok();
        Hits {
            packets: stats.map(|stats| stats.packets),
            bytes: stats.map(|stats| stats.bytes),
            last_hit: self.recorder.last_hit(*counter).map(|time| rfc3339(wall_time(time))),
        }
    }

    /// For a scrape.
    pub(crate) fn readings(&self, labels: PolicyLabels) -> Readings {
        let flows = self.flows();
        let progress = self.health.progress();
        Readings {
            verdicts: self.figures.verdicts().ok(),
            wanting: self.figures.wanting().ok(),
            rules: match labels {
                PolicyLabels::Off => None,
                PolicyLabels::On => Some(self.rule_packets()),
            },
            fills: self.snapshot.fills.clone(),
            flows: flows.map(|(entries, _)| entries),
            flows_capacity: flows.map(|(_, capacity)| capacity),
            flows_adopted: self.snapshot.older.adopted,
            endpoints: self.snapshot.endpoints.len() as u64,
            endpoints_missing: progress.wanting.missing.len() as u64,
            policies: self.snapshot.cluster.policies.len() as u64,
            host: self.snapshot.host,
            ready: self.health.not_ready().is_empty(),
            staleness: self.health.staleness(),
            watches: progress
                .watches
                .iter()
                .filter(|watch| watch.needed)
                .map(|watch| (watch.kind.name(), self.health.since(watch.heard)))
                .collect(),
            reconcile_errors: progress.errors,
        }
    }

    fn rule_packets(&self) -> Vec<RulePackets> {
        let packets = |(counter, name): (&u32, &CounterName)| {
            let (policy, rule) = name.source.policy()?;
            Some(RulePackets {
                direction: name.direction.name(),
                namespace: policy.namespace().unwrap_or_default().to_owned(),
                policy: policy.name().to_owned(),
                rule,
                packets: self.figures.rule(*counter).ok()?.packets,
            })
        };
        self.snapshot.counters.iter().filter_map(packets).collect()
    }
}

/// In the agent's network namespace, now.
fn interface_name(index: u32) -> Option<String> {
    nix::net::if_::if_indextoname(index).ok()?.into_string().ok()
}
