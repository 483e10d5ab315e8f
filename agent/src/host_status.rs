//! What became of each HostPolicy on this node, for its status and for metrics. Reads what was reconciled; decides nothing.

use std::collections::BTreeSet;

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

/// For the status of each HostPolicy that the API server told of.
#[must_use]
pub fn states(
    said: &Said,
    problems: &[Problem],
    firewall: &Firewall,
    after: Reconciled<'_>,
) -> Vec<HostPolicyState> {
    let node = firewall.node();
    let pods = &said.cluster.pods;
    // Without a policy nobody looks.
    let is_empty = said.cluster.host_policies.is_empty();
    let hosts: Vec<(&ObjectKey, PodFacts<'_>)> = pods
        .iter()
        .filter(|(_, pod)| !is_empty && pod.is_live() && !pod.has_own_network() && is_local(pod, node))
        .map(|(key, pod)| {
            let namespace_labels = said.cluster.namespaces.get(&key.namespace).map(|one| &one.labels);
            (key, PodFacts { namespace: &key.namespace, namespace_labels, pod })
        })
        .collect();
    let state = |(name, policy): (&String, &HostPolicy)| {
        let object = format!("HostPolicy {name}");
        let of_node = selects_host(&said.cluster, policy, &Subject::Node(node));
        let selected: Vec<&ObjectKey> = hosts
            .iter()
            .filter(|(_, facts)| selects_host(&said.cluster, policy, &Subject::HostPod(*facts)))
            .map(|(key, _)| *key)
            .collect();
        let is_held = (of_node && after.held.contains(&ObjectKey::of_node(node)))
            || selected.iter().any(|key| after.held.contains(*key));
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
            selects: Selects { node: of_node, pods: selected.len() },
            standing,
            rolled_back: rolled_back.map(|one| one.lost.clone()),
        }
    };
    said.cluster.host_policies.iter().map(state).collect()
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
