//! What Prometheus reads. Names and labels are documented in docs/metrics.md. No label holds a pod or an address,
//! and policies are named only where the administrator asked for it: whoever scrapes may read less than they say.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use portcullis_common::event::Outcome;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::bpf::figures::{Counted, Wanting};

/// Media type of what [`Metrics::encode`] writes.
pub const MEDIA: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds from a change to its enforcement: from below the time that a directory has to be quiet to what nobody
/// should wait.
const PROGRAMMING: [f64; 13] = [0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Seconds that a new interface was seen and not enforced: from below what attaching takes to what a plugin waits.
const GAP: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Whether rules are counted under their policy's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyLabels {
    /// Names of policies stay here.
    #[default]
    Off,
    /// `--metrics-policy-labels`.
    On,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabels {
    direction: &'static str,
    verdict: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MapLabels {
    map: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RuleLabels {
    direction: &'static str,
    namespace: String,
    policy: String,
    rule: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
    kernel: String,
    hook: String,
}

/// A rule's packets; the isolation's without an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulePackets {
    /// `ingress` or `egress`.
    pub direction: &'static str,
    /// The policy's namespace.
    pub namespace: String,
    /// Its name.
    pub policy: String,
    /// The rule's index.
    pub rule: Option<u32>,
    /// How many it decided.
    pub packets: u64,
}

/// A table's fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Its name.
    pub map: &'static str,
    /// What is in it.
    pub entries: u64,
    /// What would fit.
    pub capacity: u64,
}

/// Of the host firewall.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostReadings {
    /// True while it is on.
    pub enabled: bool,
    /// HostPolicies that are in force here.
    pub in_force: u64,
    /// Those of which not all is enforced here yet.
    pub pending: u64,
    /// Those that are rolled back.
    pub rolled_back: u64,
    /// Times that policies were rolled back on this node.
    pub rollbacks: u64,
}

/// What is read anew at each scrape. What is `None` could not be read, and stays as it was.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    /// By kind of verdict.
    pub verdicts: Option<Vec<Counted>>,
    /// What was not done.
    pub wanting: Option<Wanting>,
    /// By rule, where rules are named.
    pub rules: Option<Vec<RulePackets>>,
    /// Tables.
    pub fills: Vec<Fill>,
    /// In all tables.
    pub flows: Option<u64>,
    /// For how many all tables have room now.
    pub flows_capacity: Option<u64>,
    /// Flows that were taken from connection tracking.
    pub flows_adopted: u64,
    /// Pods that are enforced.
    pub endpoints: u64,
    /// Pods of this node that are not.
    pub endpoints_missing: u64,
    /// NetworkPolicies that are known.
    pub policies: u64,
    /// Of the host firewall.
    pub host: HostReadings,
    /// True if nothing is missing.
    pub ready: bool,
    /// Since the source was last read.
    pub staleness: Duration,
    /// By kind, since its watch of the API server last heard anything.
    pub watches: Vec<(&'static str, Duration)>,
    /// Reconciliations that failed.
    pub reconcile_errors: u64,
}

/// Keeps the metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    programming: Histogram,
    gap: Histogram,
    packets: Family<VerdictLabels, Counter>,
    bytes: Family<VerdictLabels, Counter>,
    rules: Family<RuleLabels, Counter>,
    entries: Family<MapLabels, Gauge>,
    capacity: Family<MapLabels, Gauge>,
    flows: Gauge,
    flows_capacity: Gauge,
    endpoints: Gauge,
    endpoints_missing: Gauge,
    policies: Gauge,
    host_policies: Family<StateLabels, Gauge>,
    host_rollbacks: Counter,
    host_enabled: Gauge,
    ready: Gauge,
    events_lost: Counter,
    flows_refused: Counter,
    flows_adopted: Counter,
    reconcile_errors: Counter,
    staleness: Gauge<f64, AtomicU64>,
    silence: Family<KindLabels, Gauge<f64, AtomicU64>>,
}

impl Metrics {
    /// Nothing counted yet, on this kernel and hook.
    #[must_use]
    pub fn new(kernel: String, hook: String, policy_labels: PolicyLabels) -> Self {
        let mut registry = Registry::with_prefix("portcullis");
        let metrics = Self {
            registry: Registry::default(),
            programming: Histogram::new(PROGRAMMING),
            gap: Histogram::new(GAP),
            packets: Family::default(),
            bytes: Family::default(),
            rules: Family::default(),
            entries: Family::default(),
            capacity: Family::default(),
            flows: Gauge::default(),
            flows_capacity: Gauge::default(),
            endpoints: Gauge::default(),
            endpoints_missing: Gauge::default(),
            policies: Gauge::default(),
            host_policies: Family::default(),
            host_rollbacks: Counter::default(),
            host_enabled: Gauge::default(),
            ready: Gauge::default(),
            events_lost: Counter::default(),
            flows_refused: Counter::default(),
            flows_adopted: Counter::default(),
            reconcile_errors: Counter::default(),
            staleness: Gauge::default(),
            silence: Family::default(),
        };
        let build = BuildLabels { version: env!("CARGO_PKG_VERSION"), kernel, hook };
        registry.register("build", "Version of the agent, kernel, and kind of hook", Info::new(build));
        registry.register("packets", "Packets judged, since the pins were made", metrics.packets.clone());
        registry.register(
            "bytes",
            "Bytes judged, from the IP header on, since the pins were made",
            metrics.bytes.clone(),
        );
        registry.register(
            "policy_programming_duration_seconds",
            "From the moment at which a change was noticed until it was in force",
            metrics.programming.clone(),
        );
        registry.register(
            "interface_gap_seconds",
            "From the moment at which a pod's new interface was seen until the pod was enforced; the CNI plugin keeps \
             it closed meanwhile",
            metrics.gap.clone(),
        );
        registry.register("endpoints", "Pods that are enforced here", metrics.endpoints.clone());
        registry.register(
            "endpoints_missing",
            "Pods of this node to which no interface leads that can be enforced",
            metrics.endpoints_missing.clone(),
        );
        registry.register("policies", "NetworkPolicies that are known", metrics.policies.clone());
        registry.register("bpf_map_entries", "Entries in use", metrics.entries.clone());
        registry.register("bpf_map_capacity", "Entries that fit", metrics.capacity.clone());
        registry.register(
            "flows",
            "Flows in the tables of all endpoints, silent ones that are not yet removed included",
            metrics.flows.clone(),
        );
        registry.register(
            "flows_capacity",
            "Flows for which the tables of all endpoints have room now; they grow with use",
            metrics.flows_capacity.clone(),
        );
        registry.register(
            "flows_refused",
            "Flows not made because the endpoint's table was full: no flow that is alive is ever evicted, so this \
             stands where other connection trackers count evictions",
            metrics.flows_refused.clone(),
        );
        registry.register(
            "flows_adopted",
            "Flows older than their endpoint, taken from connection tracking",
            metrics.flows_adopted.clone(),
        );
        registry.register(
            "events_lost",
            "Verdicts not sent to userspace, over budget or with the ring full; counters have them",
            metrics.events_lost.clone(),
        );
        registry.register(
            "reconcile_errors",
            "Reconciliations that failed",
            metrics.reconcile_errors.clone(),
        );
        registry.register("ready", "1 while /readyz says so", metrics.ready.clone());
        metrics.register_source(&mut registry);
        metrics.register_host(&mut registry);
        match policy_labels {
            PolicyLabels::Off => {}
            PolicyLabels::On => registry.register(
                "rule_packets",
                "Packets that a rule decided, or the isolation where rule is empty",
                metrics.rules.clone(),
            ),
        }
        Self { registry, ..metrics }
    }

    fn register_source(&self, registry: &mut Registry) {
        registry.register(
            "source_staleness_seconds",
            "Since what the source says was last known",
            self.staleness.clone(),
        );
        registry.register(
            "watch_silence_seconds",
            "Since the watch of this kind last heard anything from the API server, bookmarks included",
            self.silence.clone(),
        );
    }

    fn register_host(&self, registry: &mut Registry) {
        registry.register(
            "host_firewall_enabled",
            "1 while the host firewall is on",
            self.host_enabled.clone(),
        );
        registry.register(
            "host_policies",
            "HostPolicies that are known, in force, pending or rolled back on this node",
            self.host_policies.clone(),
        );
        registry.register(
            "host_policy_rollbacks",
            "Times that HostPolicies were rolled back on this node",
            self.host_rollbacks.clone(),
        );
    }

    /// A change is in force, this long after it was noticed.
    pub fn programmed(&self, after: Duration) {
        self.programming.observe(after.as_secs_f64());
    }

    /// A new interface is enforced, this long after it was seen.
    pub fn enforced_after(&self, gap: Duration) {
        self.gap.observe(gap.as_secs_f64());
    }

    /// Everything, in the text format of `OpenMetrics`.
    pub fn encode(&self, readings: &Readings) -> Result<String, std::fmt::Error> {
        self.set(readings);
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }

    fn set(&self, readings: &Readings) {
        for counted in readings.verdicts.iter().flatten() {
            let labels = VerdictLabels {
                direction: counted.direction.name(),
                verdict: match counted.outcome {
                    Outcome::Allow => "allow",
                    Outcome::Deny => "deny",
                    Outcome::Audit => "audit",
                },
                reason: counted.reason.name(),
            };
            store(&self.packets.get_or_create(&labels), counted.stats.packets);
            store(&self.bytes.get_or_create(&labels), counted.stats.bytes);
        }
        if let Some(rules) = &readings.rules {
            // Rules that are gone go from here too.
            self.rules.clear();
            for rule in rules {
                let labels = RuleLabels {
                    direction: rule.direction,
                    namespace: rule.namespace.clone(),
                    policy: rule.policy.clone(),
                    rule: rule.rule.map(|rule| rule.to_string()).unwrap_or_default(),
                };
                store(&self.rules.get_or_create(&labels), rule.packets);
            }
        }
        for fill in &readings.fills {
            let labels = MapLabels { map: fill.map };
            self.entries.get_or_create(&labels).set(gauge(fill.entries));
            self.capacity.get_or_create(&labels).set(gauge(fill.capacity));
        }
        if let Some(flows) = readings.flows {
            self.flows.set(gauge(flows));
        }
        if let Some(capacity) = readings.flows_capacity {
            self.flows_capacity.set(gauge(capacity));
        }
        if let Some(wanting) = readings.wanting {
            store(&self.events_lost, wanting.events_lost);
            store(&self.flows_refused, wanting.flows_refused);
        }
        store(&self.flows_adopted, readings.flows_adopted);
        self.endpoints.set(gauge(readings.endpoints));
        self.endpoints_missing.set(gauge(readings.endpoints_missing));
        self.policies.set(gauge(readings.policies));
        let host = readings.host;
        let states =
            [("in-force", host.in_force), ("pending", host.pending), ("rolled-back", host.rolled_back)];
        for (state, count) in states {
            self.host_policies.get_or_create(&StateLabels { state }).set(gauge(count));
        }
        store(&self.host_rollbacks, host.rollbacks);
        self.host_enabled.set(i64::from(host.enabled));
        self.ready.set(i64::from(readings.ready));
        self.staleness.set(readings.staleness.as_secs_f64());
        for (kind, silence) in &readings.watches {
            self.silence.get_or_create(&KindLabels { kind }).set(silence.as_secs_f64());
        }
        store(&self.reconcile_errors, readings.reconcile_errors);
    }
}

/// The kernel counts; we show.
fn store(counter: &Counter, value: u64) {
    counter.inner().store(value, Ordering::Relaxed);
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use portcullis_common::event::{Direction, Reason};
    use portcullis_common::wire::Stats;

    use super::*;

    fn readings() -> Readings {
        Readings {
            verdicts: Some(vec![Counted {
                direction: Direction::Egress,
                outcome: Outcome::Deny,
                reason: Reason::Isolated,
                stats: Stats { packets: 3, bytes: 180 },
            }]),
            wanting: Some(Wanting { events_lost: 4, flows_refused: 5 }),
            rules: Some(vec![RulePackets {
                direction: "egress",
                namespace: "a".to_owned(),
                policy: "np".to_owned(),
                rule: None,
                packets: 3,
            }]),
            fills: vec![Fill { map: "rules", entries: 6, capacity: 7 }],
            flows: Some(8),
            flows_capacity: Some(11),
            flows_adopted: 10,
            host: HostReadings { enabled: true, in_force: 12, pending: 2, rolled_back: 1, rollbacks: 13 },
            ready: true,
            reconcile_errors: 9,
            ..Readings::default()
        }
    }

    fn metrics(labels: PolicyLabels) -> Metrics {
        Metrics::new("6.18".to_owned(), "tcx".to_owned(), labels)
    }

    #[test]
    fn readings_come_out_under_their_names() {
        let metrics = metrics(PolicyLabels::Off);
        metrics.programmed(Duration::from_millis(160));
        metrics.enforced_after(Duration::from_millis(30));
        let text = metrics.encode(&readings()).unwrap();
        for line in [
            "portcullis_packets_total{direction=\"egress\",verdict=\"deny\",reason=\"isolated\"} 3",
            "portcullis_bytes_total{direction=\"egress\",verdict=\"deny\",reason=\"isolated\"} 180",
            "portcullis_events_lost_total 4",
            "portcullis_flows_refused_total 5",
            "portcullis_flows_adopted_total 10",
            "portcullis_bpf_map_entries{map=\"rules\"} 6",
            "portcullis_bpf_map_capacity{map=\"rules\"} 7",
            "portcullis_flows 8",
            "portcullis_flows_capacity 11",
            "portcullis_host_firewall_enabled 1",
            "portcullis_host_policies{state=\"in-force\"} 12",
            "portcullis_host_policies{state=\"pending\"} 2",
            "portcullis_host_policies{state=\"rolled-back\"} 1",
            "portcullis_host_policy_rollbacks_total 13",
            "portcullis_ready 1",
            "portcullis_reconcile_errors_total 9",
            "portcullis_policy_programming_duration_seconds_bucket{le=\"0.1\"} 0",
            "portcullis_policy_programming_duration_seconds_bucket{le=\"0.2\"} 1",
            "portcullis_policy_programming_duration_seconds_count 1",
            "portcullis_interface_gap_seconds_bucket{le=\"0.025\"} 0",
            "portcullis_interface_gap_seconds_bucket{le=\"0.05\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        let build = format!(
            "portcullis_build_info{{version=\"{}\",kernel=\"6.18\",hook=\"tcx\"}} 1",
            env!("CARGO_PKG_VERSION")
        );
        assert!(text.contains(&build) && text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn policies_are_named_only_where_that_was_asked_for() {
        let line =
            "portcullis_rule_packets_total{direction=\"egress\",namespace=\"a\",policy=\"np\",rule=\"\"} 3";
        assert!(!metrics(PolicyLabels::Off).encode(&readings()).unwrap().contains("np"));
        let named = metrics(PolicyLabels::On);
        assert!(named.encode(&readings()).unwrap().contains(line));
        let gone = Readings { rules: Some(Vec::new()), ..readings() };
        assert!(!named.encode(&gone).unwrap().contains(line), "a rule that is gone goes");
    }

    #[test]
    fn what_could_not_be_read_stays_as_it_was() {
        let metrics = metrics(PolicyLabels::Off);
        metrics.encode(&readings()).unwrap();
        let unread = Readings { verdicts: None, wanting: None, flows: None, ..readings() };
        let text = metrics.encode(&unread).unwrap();
        assert!(text.contains("portcullis_flows 8\n") && text.contains("_events_lost_total 4\n"), "{text}");
    }
}
