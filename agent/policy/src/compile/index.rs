//! Which pod selectors can match a pod at all, found by the pod's labels instead of by asking every selector: a
//! pod event does not visit every policy.

use std::collections::BTreeMap;

use crate::model::{NamespaceScope, Operator, Selector};
use crate::select::{Base, PeerSelector, PodFacts};

/// A label that a selector cannot match without: its key, and one of its values where only some will do.
type Needed = (String, Option<String>);

/// What a selector is filed under. It is the narrowest thing that every pod it matches must have, so that looking under
/// what a pod has finds the selector once, or not at all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Anchor {
    /// A namespace by name, and a label of the pod.
    Namespace(String, Option<Needed>),
    /// A label of the pod, in whatever namespace.
    Pod(Needed),
    /// A label of the namespace.
    Labelled(Needed),
    /// Nothing that could be looked up.
    Any,
}

/// Pod selectors by what they need.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    filed: BTreeMap<Anchor, Vec<(u32, PeerSelector)>>,
}

impl Index {
    /// Files a numbered selector. One of a block has nothing to do with labels and is not filed.
    pub(super) fn insert(&mut self, number: u32, selector: &PeerSelector) {
        for anchor in anchors(&selector.base) {
            self.filed.entry(anchor).or_default().push((number, selector.clone()));
        }
    }

    /// The numbers of those that match a pod, sorted.
    pub(super) fn matching(&self, facts: &PodFacts<'_>) -> Vec<u32> {
        let mut numbers = Vec::new();
        let mut look = |anchor: &Anchor| {
            let filed = self.filed.get(anchor).into_iter().flatten();
            numbers.extend(filed.filter(|(_, s)| s.matches_pod(facts)).map(|(number, _)| *number));
        };
        look(&Anchor::Any);
        look(&Anchor::Namespace(facts.namespace.to_owned(), None));
        for (key, value) in &facts.pod.labels {
            for needed in [(key.clone(), Some(value.clone())), (key.clone(), None)] {
                look(&Anchor::Namespace(facts.namespace.to_owned(), Some(needed.clone())));
                look(&Anchor::Pod(needed));
            }
        }
        for (key, value) in facts.namespace_labels.into_iter().flatten() {
            look(&Anchor::Labelled((key.clone(), Some(value.clone()))));
            look(&Anchor::Labelled((key.clone(), None)));
        }
        numbers.sort_unstable();
        numbers
    }
}

/// Several where a label may have one of several values, of which a pod has one.
fn anchors(base: &Base) -> Vec<Anchor> {
    let (scope, pods) = match base {
        Base::Block(_) | Base::Blocks(_) => return Vec::new(),
        Base::AnyPod => return vec![Anchor::Any],
        Base::Pods(scope, pods) => (scope, pods),
    };
    let of_pod = needed(pods);
    match (scope, of_pod) {
        (NamespaceScope::Named(name), None) => vec![Anchor::Namespace(name.clone(), None)],
        (NamespaceScope::Named(name), Some(all)) => {
            all.into_iter().map(|one| Anchor::Namespace(name.clone(), Some(one))).collect()
        }
        (NamespaceScope::Matching(_), Some(all)) => all.into_iter().map(Anchor::Pod).collect(),
        (NamespaceScope::Matching(namespaces), None) => match needed(namespaces) {
            Some(all) => all.into_iter().map(Anchor::Labelled).collect(),
            None => vec![Anchor::Any],
        },
    }
}

/// The narrowest requirement that names a key which must be there; `None` where none does.
fn needed(selector: &Selector) -> Option<Vec<Needed>> {
    let width = |operator: &Operator| match operator {
        Operator::In(values) => Some(values.len()),
        Operator::Exists => Some(usize::MAX),
        Operator::NotIn(_) | Operator::DoesNotExist => None,
    };
    let narrowest = selector
        .requirements
        .iter()
        .filter_map(|one| width(&one.operator).map(|width| (width, one)))
        .min_by_key(|(width, _)| *width)?
        .1;
    Some(match &narrowest.operator {
        Operator::In(values) => {
            values.iter().map(|value| (narrowest.key.clone(), Some(value.clone()))).collect()
        }
        Operator::Exists | Operator::NotIn(_) | Operator::DoesNotExist => {
            vec![(narrowest.key.clone(), None)]
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::convert::Report;
    use crate::convert::pod;
    use crate::model::{Labels, ObjectKey, Pod, Requirement};

    fn labels() -> impl Strategy<Value = Labels> {
        prop::collection::btree_map("[abc]", "[xyz]", 0..3)
    }

    fn selector() -> impl Strategy<Value = Selector> {
        let values = || prop::collection::btree_set("[xyz]", 1..3);
        let operator = prop_oneof![
            values().prop_map(Operator::In),
            values().prop_map(Operator::NotIn),
            Just(Operator::Exists),
            Just(Operator::DoesNotExist),
        ];
        let requirement = ("[abc]", operator).prop_map(|(key, operator)| Requirement { key, operator });
        prop::collection::btree_set(requirement, 0..3).prop_map(|requirements| Selector { requirements })
    }

    fn base() -> impl Strategy<Value = Base> {
        let scope = prop_oneof![
            "[nm]".prop_map(NamespaceScope::Named),
            selector().prop_map(NamespaceScope::Matching),
        ];
        prop_oneof![
            1 => Just(Base::AnyPod),
            9 => (scope, selector()).prop_map(|(scope, pods)| Base::Pods(scope, pods)),
        ]
    }

    fn a_pod(labels: Labels) -> Pod {
        let manifest = serde_json::json!({"metadata": {"name": "p"}});
        let read = pod(&manifest, &ObjectKey::new("n", "p"), &mut Report::new("Pod n/p", None));
        Pod { labels, ..read }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]
        #[test]
        fn s10_the_index_finds_what_asking_every_selector_finds(
            bases in prop::collection::vec(base(), 0..12),
            (namespace, declared, of_namespace, of_pod) in ("[nm]", any::<bool>(), labels(), labels()),
        ) {
            let selectors: Vec<PeerSelector> =
                bases.into_iter().map(|base| PeerSelector { base, named: None }).collect();
            let mut index = Index::default();
            for (number, selector) in (0u32..).zip(&selectors) {
                index.insert(number, selector);
            }
            let pod = a_pod(of_pod);
            let facts = PodFacts {
                namespace: &namespace,
                namespace_labels: declared.then_some(&of_namespace),
                pod: &pod,
            };
            let naive: Vec<u32> = (0u32..)
                .zip(&selectors)
                .filter(|(_, selector)| selector.matches_pod(&facts))
                .map(|(number, _)| number)
                .collect();
            let found = index.matching(&facts);
            prop_assert_eq!(&found, &naive);
            prop_assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), found.len());
        }
    }
}
