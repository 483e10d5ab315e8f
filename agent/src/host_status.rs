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
    let hosts = Hosts::of(&said.cluster, firewall.node());
    let state = |(name, policy): (&String, &HostPolicy)| {
        let object = format!("HostPolicy {name}");
        let selected = hosts.selected_by(policy);
        let rolled_back = firewall.rollback().and_then(|all| all.rolled_back().get(name));
        HostPolicyState {
            name: name.clone(),
            version: said.host_versions.get(name).cloned().unwrap_or_default(),
            problems: problems.iter().filter(|problem| problem.object == object).cloned().collect(),
            standing: hosts.standing(&selected, after),
            selects: Selects { node: selected.node, pods: selected.pods.len() },
            rolled_back: rolled_back.map(|one| one.lost.clone()),
        }
    };
    said.cluster.host_policies.iter().map(state).collect()
}

/// The node and its hostNetwork pods, as policies see them.
struct Hosts<'a> {
    cluster: &'a Cluster,
    node: &'a str,
    pods: Vec<(&'a ObjectKey, PodFacts<'a>)>,
}

/// Whom a policy selects of them.
struct Selected<'a> {
    node: bool,
    pods: Vec<&'a ObjectKey>,
}

impl<'a> Hosts<'a> {
    fn of(cluster: &'a Cluster, node: &'a str) -> Self {
        // Without a policy nobody looks.
        let is_empty = cluster.host_policies.is_empty();
        let pods = cluster
            .pods
            .iter()
            .filter(|(_, pod)| !is_empty && pod.is_live() && !pod.has_own_network() && is_local(pod, node))
            .map(|(key, pod)| {
                let namespace_labels = cluster.namespaces.get(&key.namespace).map(|one| &one.labels);
                (key, PodFacts { namespace: &key.namespace, namespace_labels, pod })
            })
            .collect();
        Self { cluster, node, pods }
    }

    fn selected_by(&self, policy: &HostPolicy) -> Selected<'a> {
        let selects = |subject: &Subject<'_>| selects_host(self.cluster, policy, subject);
        Selected {
            node: selects(&Subject::Node(self.node)),
            pods: self
                .pods
                .iter()
                .filter(|(_, facts)| selects(&Subject::HostPod(*facts)))
                .map(|(key, _)| *key)
                .collect(),
        }
    }

    fn standing(&self, selected: &Selected<'_>, after: Reconciled<'_>) -> Standing {
        let is_held = (selected.node && after.held.contains(&ObjectKey::of_node(self.node)))
            || selected.pods.iter().any(|key| after.held.contains(*key));
        if after.cluster.host.is_none() {
            Standing::TurnedOff
        } else if is_held || !after.complete {
            Standing::Pending
        } else {
            Standing::InForce
        }
    }
}

/// For a scrape.
#[must_use]
pub fn readings(firewall: Option<&Firewall>, after: Reconciled<'_>) -> HostReadings {
    let rollback = firewall.and_then(Firewall::rollback);
    let cluster = after.cluster;
    let (mut in_force, mut pending) = (0, 0);
    if let Some(host) = &cluster.host {
        let hosts = Hosts::of(cluster, &host.node);
        for policy in cluster.host_policies.values() {
            match hosts.standing(&hosts.selected_by(policy), after) {
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
