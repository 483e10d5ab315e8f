//! What differs between two clusters, by object: what an event touched.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Cluster, ObjectKey};

/// The objects that came, went or changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Pods.
    pub pods: BTreeSet<ObjectKey>,
    /// Namespaces.
    pub namespaces: BTreeSet<String>,
    /// NetworkPolicies.
    pub policies: BTreeSet<ObjectKey>,
    /// True if Services differ.
    pub services: bool,
    /// True if the addresses of the own node differ.
    pub own_node: bool,
}

impl Delta {
    /// Between two clusters; nodes decide no verdict.
    #[must_use]
    pub fn between(old: &Cluster, new: &Cluster) -> Self {
        Self {
            pods: differing(&old.pods, &new.pods),
            namespaces: differing(&old.namespaces, &new.namespaces),
            policies: differing(&old.policies, &new.policies),
            services: old.services != new.services,
            own_node: old.own_node != new.own_node,
        }
    }
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
}
