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
        let waits = firewall.rollback().is_some_and(|rollback| rollback.is_held(name));
        let rolled_back = firewall.rollback().and_then(|all| all.rolled_back().get(name));
        HostPolicyState {
            name: name.clone(),
            version: said.host_versions.get(name).cloned().unwrap_or_default(),
            problems: problems.iter().filter(|problem| problem.object == object).cloned().collect(),
            standing: standing(&selected, waits, after),
            selects: Selects { node: of_node, pods: selected.len() - usize::from(of_node) },
            rolled_back: rolled_back.map(|one| one.lost.clone()),
        }
    };
    selected(&said.cluster, firewall.node()).into_iter().map(state).collect()
}

/// What became of a policy that selects these, and may wait for its trial.
fn standing(selected: &[ObjectKey], waits: bool, after: Reconciled<'_>) -> Standing {
    let is_held = waits || selected.iter().any(|key| after.held.contains(key));
    if after.cluster.host.is_none() {
        Standing::TurnedOff
    } else if is_held || !after.complete {
        Standing::Pending
    } else {
        Standing::InForce
    }
}

/// For a scrape.
#[must_use]
pub fn readings(firewall: Option<&Firewall>, after: Reconciled<'_>) -> HostReadings {
    let rollback = firewall.and_then(Firewall::rollback);
    let cluster = after.cluster;
    let (mut in_force, mut pending) = (0, 0);
    if let Some(host) = &cluster.host {
        for (name, selected) in selected(cluster, &host.node) {
            let waits = rollback.is_some_and(|rollback| rollback.is_held(name));
            match standing(&selected, waits, after) {
                Standing::InForce => in_force += 1,
                Standing::Pending => pending += 1,
                Standing::TurnedOff => {}
            }
        }
    }
    HostReadings {
        enabled: cluster.host.is_some(),
        in_force,
        pending,
        rolled_back: rollback.map_or(0, |rollback| rollback.rolled_back().len() as u64),
        rollbacks: rollback.map_or(0, crate::rollback::Rollback::total),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use portcullis_policy::convert::{Report, host_policy};
    use portcullis_policy::model::Host;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_policy_that_is_not_enforced_yet_is_no_policy_in_force() {
        let policy = |subject| {
            let object = json!({"metadata": {"name": "p"}, "spec": {"subject": subject}});
            host_policy(&object, &mut Report::new("HostPolicy p", None))
        };
        let mut cluster = Cluster { host: Some(Host::new("n1")), ..Cluster::default() };
        for (name, subject) in [("nodes", json!({"nodes": {}})), ("pods", json!({"pods": {}}))] {
            cluster.host_policies.insert(name.to_owned(), policy(subject));
        }
        let count = |cluster: &Cluster, complete, held: &[ObjectKey]| {
            let held = held.iter().cloned().collect();
            let found = readings(None, Reconciled { cluster, complete, held: &held });
            (found.enabled, found.in_force, found.pending)
        };
        assert_eq!(count(&cluster, true, &[]), (true, 2, 0));
        assert_eq!(count(&cluster, false, &[]), (true, 0, 2));
        // The node's policies have no room; the other one selects nobody here.
        assert_eq!(count(&cluster, true, &[ObjectKey::of_node("n1")]), (true, 1, 1));
        cluster.host = None;
        assert_eq!(count(&cluster, true, &[]), (false, 0, 0));
    }
}
