//! Which workloads need no stand-in pods, because the directory holds what they made.

use std::collections::BTreeSet;

use serde_json::Value;

use super::collect::{Kind, Objects, Workload};
use crate::model::ObjectKey;

/// The label by which a `ReplicaSet` of a Deployment marks its pods.
const TEMPLATE_HASH: &str = "pod-template-hash";

/// A workload of the directory.
pub(super) type WorkloadKey = (Workload, ObjectKey);

/// The workloads that are made already: those that own a Pod of the directory, directly or through what
/// they own, and those that a workload of the directory owns (that one stands for their pods).
pub(super) fn made(objects: &Objects<'_>) -> BTreeSet<WorkloadKey> {
    let mut made = BTreeSet::new();
    for ((kind, key), found) in objects {
        match kind {
            Kind::Pod => {
                for owner in owners(found.value, &key.namespace) {
                    made.extend(second_owners(&owner, found.value, objects));
                    made.insert(owner);
                }
            }
            Kind::Workload(workload) => {
                let is_owned = owners(found.value, &key.namespace)
                    .any(|(kind, owner)| objects.contains_key(&(Kind::Workload(kind), owner)));
                if is_owned {
                    made.insert((*workload, key.clone()));
                }
            }
            Kind::Namespace
            | Kind::Node
            | Kind::Service
            | Kind::EndpointSlice
            | Kind::NetworkPolicy
            | Kind::HostPolicy => {}
        }
    }
    made
}

/// The workloads in `metadata.ownerReferences`; owners live in the namespace of what they own.
fn owners(value: &Value, namespace: &str) -> impl Iterator<Item = WorkloadKey> {
    let references = value.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    references.into_iter().flatten().filter_map(move |reference| {
        let kind = Workload::from_name(reference.get("kind")?.as_str()?)?;
        Some((kind, ObjectKey::new(namespace, reference.get("name")?.as_str()?)))
    })
}

/// Who owns a pod's owner: what the directory says of it, else what its name tells.
fn second_owners(owner: &WorkloadKey, pod: &Value, objects: &Objects<'_>) -> Vec<WorkloadKey> {
    let (kind, key) = owner;
    if let Some(found) = objects.get(&(Kind::Workload(*kind), key.clone())) {
        return owners(found.value, &key.namespace).collect();
    }
    let second = match kind {
        Workload::ReplicaSet => Workload::Deployment,
        Workload::Job => Workload::CronJob,
        Workload::Deployment | Workload::StatefulSet | Workload::DaemonSet | Workload::CronJob => {
            return Vec::new();
        }
    };
    let hash = pod.pointer("/metadata/labels").and_then(|labels| labels.get(TEMPLATE_HASH));
    let name = match hash.and_then(Value::as_str) {
        Some(hash) if *kind == Workload::ReplicaSet => {
            key.name.strip_suffix(hash).and_then(|name| name.strip_suffix('-'))
        }
        Some(_) | None => key.name.rsplit_once('-').map(|(name, _)| name),
    };
    name.map(|name| (second, ObjectKey::new(&*key.namespace, name))).into_iter().collect()
}
