//! How long a change takes from the objects to the tables in the kernel: one pod, policy or namespace among many.
//! What comes before, reading files or an API server's events, is not in it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use portcullis_agent::tables::Tables;
use portcullis_oracle::rng::SplitMix64;
use portcullis_policy::model::{Cluster, ObjectKey};
use portcullis_tests::compare::cluster_of;
use serde_json::{Value, json};

/// Pods that live on the node: kubelet's `maxPods` by default.
const LOCAL: u32 = 110;
/// Pods of one namespace.
const IN_NAMESPACE: u32 = 10;
/// Values of the label that policies select by.
const APPS: u32 = 20;
/// Teams among which namespaces are dealt out.
const TEAMS: u32 = 5;
/// Policies name CIDRs of `100.64.0.0/10`.
const BLOCKS: u32 = 0x6440_0000;
/// Pods are in `10.0.0.0/8`.
const PODS: u32 = 0x0a00_0001;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    Relabelled,
    Came,
    Went,
    LocalRelabelled,
    Policy,
    Namespace,
}

impl Event {
    pub(crate) const ALL: [Self; 6] =
        [Self::Relabelled, Self::Came, Self::Went, Self::LocalRelabelled, Self::Policy, Self::Namespace];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Relabelled => "pod relabelled",
            Self::Came => "pod came",
            Self::Went => "pod went",
            Self::LocalRelabelled => "local relabelled",
            Self::Policy => "policy changed",
            Self::Namespace => "namespace relab.",
        }
    }
}

/// The times of one kind of event at one size.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) pods: u32,
    pub(crate) policies: u32,
    pub(crate) event: Event,
    pub(crate) times: Vec<Duration>,
    /// Writes of the one with the most.
    pub(crate) writes: usize,
}

impl Row {
    /// The time that this share of them did not exceed.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.times.clone();
        sorted.sort_unstable();
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let place = (share * (sorted.len().saturating_sub(1)) as f64).ceil() as usize;
        sorted.get(place).copied().unwrap_or_default()
    }
}

fn name(pod: u32) -> ObjectKey {
    ObjectKey::new(format!("ns-{}", pod / IN_NAMESPACE), format!("pod-{pod}"))
}

fn pod(number: u32) -> Value {
    let key = name(number);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": key.namespace, "name": key.name, "uid": format!("uid-{number}"),
                     "labels": {"app": format!("app-{}", number % APPS), "tier": format!("t{}", number % 3)}},
        "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": std::net::Ipv4Addr::from(PODS + number).to_string()}]},
    })
}

/// Of the namespaces whose pods are local, in turn: what the node has to know.
fn policy(number: u32, namespaces: u32) -> Value {
    let namespace = number % namespaces.min(LOCAL / IN_NAMESPACE);
    let block = std::net::Ipv4Addr::from(BLOCKS + number * 256);
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": format!("ns-{namespace}"), "name": format!("policy-{number}")},
        "spec": {
            "podSelector": {"matchLabels": {"app": format!("app-{}", number % APPS)}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"app": format!("app-{}", (number + 1) % APPS)}},
                           "namespaceSelector": {"matchLabels": {"team": format!("team-{}", number % TEAMS)}}}],
                 "ports": [{"port": 80}, {"port": 443}]},
                {"from": [{"ipBlock": {"cidr": format!("{block}/24")}}]},
            ],
            "egress": [
                {"to": [{"podSelector": {"matchLabels": {"tier": format!("t{}", number % 3)}}}], "ports": [{"port": 53, "protocol": "UDP"}]},
                {"to": [{"namespaceSelector": {"matchLabels": {"team": format!("team-{}", (number + 1) % TEAMS)}}}]},
            ],
        },
    })
}

/// A cluster of so many pods and policies; the first pods are the node's.
fn cluster(pods: u32, policies: u32) -> Cluster {
    let namespaces = pods.div_ceil(IN_NAMESPACE);
    let mut manifests: Vec<Value> = (0..namespaces)
        .map(|number| {
            json!({"apiVersion": "v1", "kind": "Namespace",
                   "metadata": {"name": format!("ns-{number}"), "labels": {"team": format!("team-{}", number % TEAMS)}}})
        })
        .collect();
    manifests.extend((0..pods).map(pod));
    manifests.extend((0..policies).map(|number| policy(number, namespaces)));
    cluster_of(&manifests)
}

fn bring(tables: &mut Tables, cluster: &Arc<Cluster>, local: &BTreeSet<ObjectKey>) -> Result<()> {
    let in_force = tables.written().endpoints.clone();
    tables.bring(cluster, local.clone(), &in_force)?;
    let (problems, _) = tables.problems();
    ensure!(problems.is_empty(), "the compiler has problems: {problems:?}");
    Ok(())
}

/// Frees what a change left, as the agent does when it is in force.
fn settle(tables: &mut Tables) -> Result<()> {
    while tables.is_unsettled() {
        let in_force = tables.written().endpoints.clone();
        tables.free(&in_force)?;
    }
    tables.settled();
    Ok(())
}

/// Another label value, as a person would change it.
fn turn(labels: &mut portcullis_policy::model::Labels, key: &str, to: String) {
    labels.insert(key.to_owned(), to);
}

/// Measures every kind of event, `rounds` times each.
pub(crate) fn measure(pods: u32, policies: u32, rounds: u32, rng: &mut SplitMix64) -> Result<Vec<Row>> {
    let mut cluster = cluster(pods, policies);
    let of_node = LOCAL.min(pods / 2);
    let local: BTreeSet<ObjectKey> = (0..of_node).map(name).collect();
    let mut tables = Tables::private()?;
    bring(&mut tables, &Arc::new(cluster.clone()), &local)?;
    let mut rows = Vec::new();
    let remote = |rng: &mut SplitMix64| name(pick(rng, of_node, pods));
    for event in Event::ALL {
        let mut row = Row { pods, policies, event, times: Vec::new(), writes: 0 };
        let mut away: Option<(ObjectKey, portcullis_policy::model::Pod)> = None;
        for _ in 0..rounds {
            match event {
                Event::Relabelled | Event::LocalRelabelled => {
                    let key =
                        if event == Event::Relabelled { remote(rng) } else { name(pick(rng, 0, of_node)) };
                    let found = cluster.pods.get_mut(&key).context("a pod")?;
                    turn(&mut found.labels, "app", format!("app-{}", pick(rng, 0, APPS)));
                }
                Event::Went | Event::Came => {
                    let key = remote(rng);
                    let found = cluster.pods.remove(&key).context("a pod")?;
                    away = Some((key, found));
                }
                Event::Policy => {
                    let number = pick(rng, 0, policies);
                    let namespaces = pods.div_ceil(IN_NAMESPACE);
                    let other =
                        cluster_of(&[policy(number, namespaces), policy(number + policies, namespaces)]);
                    let (key, held) = cluster.policies.iter_mut().nth(number as usize).context("a policy")?;
                    let new = other.policies.values().nth(rng.below(2)).context("a policy")?;
                    held.clone_from(new);
                    ensure!(!key.name.is_empty(), "a policy has a name");
                }
                Event::Namespace => {
                    let number = pick(rng, 0, pods.div_ceil(IN_NAMESPACE));
                    let found = cluster.namespaces.get_mut(&format!("ns-{number}")).context("a namespace")?;
                    turn(&mut found.labels, "team", format!("team-{}", pick(rng, 0, TEAMS)));
                }
            }
            if event == Event::Came {
                // Not measured: first it goes.
                bring(&mut tables, &Arc::new(cluster.clone()), &local)?;
            }
            if event == Event::Came
                && let Some((key, pod)) = away.take()
            {
                cluster.pods.insert(key, pod);
            }
            let next = Arc::new(cluster.clone());
            let begin = Instant::now();
            bring(&mut tables, &next, &local)?;
            row.times.push(begin.elapsed());
            row.writes = row.writes.max(tables.writes());
            settle(&mut tables)?;
            if event == Event::Went
                && let Some((key, pod)) = away.take()
            {
                cluster.pods.insert(key, pod);
                bring(&mut tables, &Arc::new(cluster.clone()), &local)?;
                settle(&mut tables)?;
            }
        }
        rows.push(row);
    }
    Ok(rows)
}

fn pick(rng: &mut SplitMix64, from: u32, to: u32) -> u32 {
    from + u32::try_from(rng.below(to.saturating_sub(from).max(1) as usize)).unwrap_or(0)
}

/// For programs.
pub(crate) fn json(rows: &[Row]) -> Value {
    let of = |row: &Row| {
        json!({
            "pods": row.pods, "policies": row.policies, "event": row.event.name(), "changes": row.times.len(),
            "median_seconds": row.quantile(0.5).as_secs_f64(), "p99_seconds": row.quantile(0.99).as_secs_f64(),
            "most_writes": row.writes,
        })
    };
    rows.iter().map(of).collect()
}

/// For people.
pub(crate) fn text(rows: &[Row]) -> String {
    use std::fmt::Write as _;

    let mut out = String::from(
        "\nFrom a change of objects to the kernel's tables, milliseconds: median, 99 of 100; and writes, at most\n",
    );
    let _ = write!(out, "\n{:>7} {:>8}", "pods", "policies");
    for event in Event::ALL {
        let _ = write!(out, "  {:>22}", event.name());
    }
    out.push('\n');
    for of_size in rows.chunks(Event::ALL.len()) {
        let Some(first) = of_size.first() else { continue };
        let _ = write!(out, "{:>7} {:>8}", first.pods, first.policies);
        for row in of_size {
            let ms = |share| row.quantile(share).as_secs_f64() * 1e3;
            let cell = format!("{:.2} {:.2} {:>5}", ms(0.5), ms(0.99), row.writes);
            let _ = write!(out, "  {cell:>22}");
        }
        out.push('\n');
    }
    out
}
