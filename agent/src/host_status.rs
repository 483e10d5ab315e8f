//! What became of each HostPolicy on this node, for its status and for metrics. Reads what was reconciled; decides nothing.

use std::collections::{BTreeMap, BTreeSet};

use portcullis_policy::compile::ruleset::selects_host;
use portcullis_policy::model::{Cluster, HostPolicy, ObjectKey, Problem};
use portcullis_policy::select::{PodFacts, Subject, is_local};

use crate::firewall::Firewall;
use crate::metrics::HostReadings;
use crate::source::kube::status::{Selects, Standing};
use crate::source::kube::{HostPolicyState, Said};

/// A reconciliation that came to an end.
#[derive(Clone, Copy, Debug)]
pub struct Reconciled<'a> {
    /// What is in force.
    pub cluster: &'a Cluster,
    /// True if all that was wanted is.
    pub complete: bool,
    /// Whose policies have no room.
    pub held: &'a BTreeSet<ObjectKey>,
}

/// Whom each HostPolicy selects on this node: the node itself, and hostNetwork pods.
#[must_use]
pub fn selected<'a>(cluster: &'a Cluster, node: &str) -> BTreeMap<&'a String, Vec<ObjectKey>> {
    // Without a policy nobody looks.
    let is_empty = cluster.host_policies.is_empty();
    let hosts: Vec<(&ObjectKey, PodFacts<'_>)> = cluster
        .pods
        .iter()
        .filter(|(_, pod)| !is_empty && pod.is_live() && !pod.has_own_network() && is_local(pod, node))
        .map(|(key, pod)| {
            let namespace_labels = cluster.namespaces.get(&key.namespace).map(|one| &one.labels);
            (key, PodFacts { namespace: &key.namespace, namespace_labels, pod })
        })
        .collect();
    let of = |policy: &HostPolicy| {
        let of_node = selects_host(cluster, policy, &Subject::Node(node));
        let pods = hosts.iter().filter(|(_, facts)| selects_host(cluster, policy, &Subject::HostPod(*facts)));
        of_node
            .then(|| ObjectKey::of_node(node))
            .into_iter()
            .chain(pods.map(|(key, _)| (*key).clone()))
            .collect()
    };
    cluster.host_policies.iter().map(|(name, policy)| (name, of(policy))).collect()
}

/// For the status of each HostPolicy that the API server told of.
#[must_use]
pub fn states(
    said: &Said,
    problems: &[Problem],
    firewall: &Firewall,
    after: Reconciled<'_>,
) -> Vec<HostPolicyState> {
    let state = |(name, selected): (&String, Vec<ObjectKey>)| {
        let object = format!("HostPolicy {name}");
        let of_node = selected.iter().any(ObjectKey::is_node);
        let is_held = selected.iter().any(|key| after.held.contains(key))
            || firewall.rollback().is_some_and(|rollback| rollback.is_held(name));
        let standing = if after.cluster.host.is_none() {
            Standing::TurnedOff
        } else if is_held || !after.complete {
            Standing::Pending
        } else {
            Standing::InForce
        };
        let rolled_back = firewall.rollback().and_then(|all| all.rolled_back().get(name));
        HostPolicyState {
            name: name.clone(),
            version: said.host_versions.get(name).cloned().unwrap_or_default(),
            problems: problems.iter().filter(|problem| problem.object == object).cloned().collect(),
            selects: Selects { node: of_node, pods: selected.len() - usize::from(of_node) },
            standing,
            rolled_back: rolled_back.map(|one| one.lost.clone()),
        }
    };
    selected(&said.cluster, firewall.node()).into_iter().map(state).collect()
}

/// For a scrape.
#[must_use]
pub fn readings(firewall: Option<&Firewall>, cluster: &Cluster) -> HostReadings {
    let rollback = firewall.and_then(Firewall::rollback);
    let enabled = cluster.host.is_some();
    HostReadings {
        enabled,
        in_force: if enabled { cluster.host_policies.len() as u64 } else { 0 },
        rolled_back: rollback.map_or(0, |rollback| rollback.rolled_back().len() as u64),
        rollbacks: rollback.map_or(0, crate::rollback::Rollback::total),
    }
}
