//! What differs between two clusters, by object: what an event touched.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::{Cluster, ObjectKey, Protocol, Service};

/// The objects that came, went or changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Pods.
    pub pods: BTreeSet<ObjectKey>,
    /// Namespaces.
    pub namespaces: BTreeSet<String>,
    /// NetworkPolicies.
    pub policies: BTreeSet<ObjectKey>,
    /// True if what tables are made of differs in Services, or the nodes, whose addresses are not virtual.
    pub services: bool,
    /// True if the addresses of the own node differ.
    pub own_node: bool,
    /// True if HostPolicies differ, or what the host firewall was told, of which HostPolicies mean nothing without it.
    pub host: bool,
}

impl Delta {
    /// Between two clusters.
    #[must_use]
    pub fn between(old: &Cluster, new: &Cluster) -> Self {
        Self {
            pods: differing(&old.pods, &new.pods),
            namespaces: differing(&old.namespaces, &new.namespaces),
            policies: differing(&old.policies, &new.policies),
            services: translated(old).ne(translated(new)) || old.nodes != new.nodes,
            own_node: old.own_node != new.own_node,
            host: old.host != new.host || (new.host.is_some() && old.host_policies != new.host_policies),
        }
    }
}

/// Of each Service the addresses and node ports: who its backends are is no table's.
fn translated(
    cluster: &Cluster,
) -> impl Iterator<Item = (&ObjectKey, &BTreeSet<IpAddr>, Vec<(Protocol, u16)>)> {
    let node_ports = |service: &Service| -> Vec<(Protocol, u16)> {
        service.ports.iter().filter_map(|port| Some((port.protocol, port.node_port?))).collect()
    };
    let services = cluster.services.iter();
    let all = services.map(move |(key, service)| (key, &service.addresses, node_ports(service)));
    all.filter(|(_, addresses, node_ports)| !addresses.is_empty() || !node_ports.is_empty())
}

/// The keys that one of two maps lacks, or that have different values; one walk through both.
fn differing<K: Ord + Clone, V: PartialEq>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> BTreeSet<K> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    let mut keys = BTreeSet::new();
    loop {
        let key = match (old.peek(), new.peek()) {
            (None, None) => return keys,
            (Some((a, _)), None) => *a,
            (None, Some((b, _))) => *b,
            (Some((a, _)), Some((b, _))) => (*a).min(*b),
        };
        let a = old.next_if(|(k, _)| *k == key).map(|(_, value)| value);
        let b = new.next_if(|(k, _)| *k == key).map(|(_, value)| value);
        if a != b {
            keys.insert(key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_walk_finds_what_asking_every_key_finds(
            old in prop::collection::btree_map(0u8..20, 0u8..3, 0..12),
            new in prop::collection::btree_map(0u8..20, 0u8..3, 0..12),
        ) {
            let naive: BTreeSet<u8> = (0..20).filter(|key| old.get(key) != new.get(key)).collect();
            prop_assert_eq!(differing(&old, &new), naive);
        }
    }

    #[test]
    fn a_service_differs_by_what_is_translated() {
        let service = |spec: serde_json::Value| {
            let value = serde_json::json!({"spec": spec});
            let service =
                crate::convert::service(&value, &mut crate::convert::Report::new("Service a/s", None));
            Cluster { services: [(ObjectKey::new("a", "s"), service)].into(), ..Cluster::default() }
        };
        let one = service(
            serde_json::json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080}]}),
        );
        let differs = |spec| Delta::between(&one, &service(spec)).services;
        let same = serde_json::json!({"clusterIP": "10.96.0.1", "selector": {"a": "b"},
            "ports": [{"port": 81, "nodePort": 30080}]});
        assert!(!differs(same));
        let moved = serde_json::json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30081}]});
        assert!(differs(moved));
        assert!(differs(
            serde_json::json!({"clusterIP": "10.96.0.2", "ports": [{"port": 80, "nodePort": 30080}]})
        ));
        assert!(differs(serde_json::json!({"clusterIP": "None"})));
        let (none, headless) = (Cluster::default(), service(serde_json::json!({"clusterIP": "None"})));
        assert!(!Delta::between(&none, &headless).services);
    }
}
