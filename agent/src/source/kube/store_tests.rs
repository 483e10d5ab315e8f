use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use portcullis_policy::model::ObjectKey;
use serde_json::{Value, json};

use super::super::object::{Kind, Raw};
use super::{Change, Store};

const GRACE: Duration = Duration::from_millis(250);

/// A store that is told things, one after another, at a time that only moves when it is moved.
struct Told {
    store: Store,
    now: Instant,
}

fn raw(value: &Value) -> Raw {
    serde_json::from_value(value.clone()).unwrap()
}

fn object(kind: Kind, name: &str, version: u64) -> Value {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    json!({
        "kind": kind.name(),
        "metadata": {"namespace": namespace, "name": name, "uid": name, "resourceVersion": version.to_string()},
        "spec": if kind == Kind::NetworkPolicy { json!({"podSelector": {}}) } else { json!({}) },
    })
}

impl Told {
    /// Each kind was listed, and these objects were there.
    fn listed(objects: &[(Kind, &str)]) -> Self {
        let mut told = Self { store: Store::new(GRACE, Kind::ALL.to_vec()), now: Instant::now() };
        for kind in Kind::ALL {
            let names: Vec<&str> = objects.iter().filter(|(of, _)| *of == kind).map(|(_, n)| *n).collect();
            told.list(kind, &names);
        }
        told
    }

    fn list(&mut self, kind: Kind, names: &[&str]) {
        self.store.apply(kind, Change::Begin, self.now);
        for name in names {
            self.change(kind, &object(kind, name, 1), Change::Listed);
        }
        self.store.apply(kind, Change::Complete, self.now);
    }

    fn change(&mut self, kind: Kind, value: &Value, change: impl Fn(Box<super::Seen>) -> Change) -> bool {
        let seen = Box::new(raw(value).read(kind, &BTreeSet::new()));
        self.store.apply(kind, change(seen), self.now)
    }

    fn put(&mut self, kind: Kind, name: &str, version: u64) -> bool {
        self.change(kind, &object(kind, name, version), Change::Put)
    }

    fn delete(&mut self, kind: Kind, name: &str, version: u64) {
        let raw = raw(&object(kind, name, version));
        self.store.apply(kind, Change::Gone(raw.key(kind), raw.version()), self.now);
    }

    fn terminate(&mut self, name: &str, version: u64) {
        let mut value = object(Kind::Namespace, name, version);
        value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        self.change(Kind::Namespace, &value, Change::Put);
    }

    fn after(&mut self, time: Duration) {
        self.now += time;
        self.store.settle(self.now);
    }

    fn policies(&self) -> Vec<String> {
        self.store.said().unwrap().cluster.policies.keys().map(ToString::to_string).collect()
    }

    fn pods(&self) -> Vec<String> {
        self.store.said().unwrap().cluster.pods.keys().map(ToString::to_string).collect()
    }
}

const SHOP: [(Kind, &str); 3] =
    [(Kind::Namespace, "shop"), (Kind::Pod, "shop/a"), (Kind::NetworkPolicy, "shop/deny")];

#[test]
fn nothing_is_said_before_each_kind_was_listed_whole() {
    let mut told = Told { store: Store::new(GRACE, Kind::ALL.to_vec()), now: Instant::now() };
    for kind in Kind::ALL {
        assert!(told.store.said().is_none(), "{kind:?}");
        told.store.apply(kind, Change::Begin, told.now);
        assert!(told.store.missing().contains(&kind));
        told.store.apply(kind, Change::Complete, told.now);
    }
    assert!(told.store.said().is_some());
}

/// A store of which everything was listed but EndpointSlices.
fn without_slices(kinds: Vec<Kind>) -> Told {
    let mut told = Told { store: Store::new(GRACE, kinds.clone()), now: Instant::now() };
    for kind in kinds.into_iter().filter(|kind| *kind != Kind::EndpointSlice) {
        told.list(kind, &[]);
    }
    assert_eq!(told.store.missing(), [Kind::EndpointSlice]);
    told
}

#[test]
fn endpointslices_are_waited_for_where_they_name_api_servers_and_an_agent_may_see_them() {
    // Policies for hosts may deny what is not known to be an API server.
    let mut told = without_slices(Kind::ALL.to_vec());
    assert!(told.store.needs(Kind::EndpointSlice) && told.store.said().is_none());
    assert!(told.store.forbid(Kind::EndpointSlice));
    assert!(!told.store.forbid(Kind::EndpointSlice), "it is told once");
    assert!(!told.store.needs(Kind::EndpointSlice) && told.store.said().is_some());
    // Given the right, it counts as every kind does.
    told.list(Kind::EndpointSlice, &[]);
    assert!(told.store.needs(Kind::EndpointSlice) && told.store.said().is_some());
    // No right to another kind lets nothing be told without it.
    let mut told = Told { store: Store::new(GRACE, Kind::ALL.to_vec()), now: Instant::now() };
    for kind in Kind::ALL {
        told.store.forbid(kind);
    }
    assert!(told.store.said().is_none() && told.store.needs(Kind::HostPolicy));
    // Without the host firewall nothing depends on them.
    let told = without_slices(Kind::ALL.into_iter().filter(|kind| *kind != Kind::HostPolicy).collect());
    assert!(!told.store.needs(Kind::EndpointSlice) && told.store.said().is_some());
}

#[test]
fn a_list_counts_when_it_is_whole() {
    let mut told = Told::listed(&SHOP);
    told.store.apply(Kind::Pod, Change::Begin, told.now);
    told.change(Kind::Pod, &object(Kind::Pod, "shop/b", 5), Change::Listed);
    assert_eq!(told.pods(), ["shop/a"], "what exists stays, what comes waits");
    told.store.apply(Kind::Pod, Change::Begin, told.now);
    told.change(Kind::Pod, &object(Kind::Pod, "shop/c", 6), Change::Listed);
    told.store.apply(Kind::Pod, Change::Complete, told.now);
    assert_eq!(told.pods(), ["shop/c"], "a list that broke off leaves nothing behind");
}

#[test]
fn repeats_and_news_of_the_past_change_nothing() {
    let mut told = Told::listed(&SHOP);
    assert!(told.put(Kind::Pod, "shop/b", 7));
    assert!(!told.put(Kind::Pod, "shop/b", 7));
    told.delete(Kind::Pod, "shop/b", 8);
    assert!(!told.put(Kind::Pod, "shop/b", 7), "it is gone and does not come back");
    assert_eq!(told.pods(), ["shop/a"]);
    // A server that was set back counts from a lower number: a list settles it.
    told.list(Kind::Pod, &["shop/a"]);
    assert!(told.put(Kind::Pod, "shop/b", 3));
    assert_eq!(told.pods(), ["shop/a", "shop/b"]);
}

#[test]
fn s32_a_pod_that_is_gone_has_no_address_from_then_on() {
    let mut told = Told::listed(&SHOP);
    told.delete(Kind::Pod, "shop/a", 9);
    assert!(told.pods().is_empty());
}

#[test]
fn a_policy_goes_after_its_grace() {
    let mut told = Told::listed(&SHOP);
    told.delete(Kind::NetworkPolicy, "shop/deny", 9);
    told.after(GRACE / 2);
    assert_eq!(told.policies(), ["shop/deny"]);
    told.after(GRACE);
    assert!(told.policies().is_empty());
}

#[test]
fn a_policy_that_comes_again_within_its_grace_stays() {
    let mut told = Told::listed(&SHOP);
    told.delete(Kind::NetworkPolicy, "shop/deny", 9);
    told.put(Kind::NetworkPolicy, "shop/deny", 10);
    told.after(GRACE * 2);
    assert_eq!(told.policies(), ["shop/deny"]);
}

#[test]
fn s33_a_terminating_namespace_keeps_its_policies_until_its_pods_are_gone() {
    // The two watches have no common order: the policy may be heard to go first.
    for policy_first in [false, true] {
        for listed_anew in [false, true] {
            let mut told = Told::listed(&SHOP);
            if !policy_first {
                told.terminate("shop", 20);
            }
            if listed_anew {
                told.list(Kind::NetworkPolicy, &[]);
            } else {
                told.delete(Kind::NetworkPolicy, "shop/deny", 9);
            }
            if policy_first {
                told.after(GRACE / 2);
                told.terminate("shop", 20);
            }
            told.after(GRACE * 10);
            assert_eq!(told.policies(), ["shop/deny"], "{policy_first} {listed_anew}");
            let problems = told.store.said().unwrap().problems;
            assert!(problems.iter().any(|p| p.object == "NetworkPolicy shop/deny"), "{problems:?}");
            // Even if the Namespace is heard to go before its last pod.
            told.delete(Kind::Namespace, "shop", 21);
            told.after(GRACE * 10);
            assert_eq!(told.policies(), ["shop/deny"]);
            told.delete(Kind::Pod, "shop/a", 10);
            told.after(Duration::ZERO);
            assert!(told.policies().is_empty());
        }
    }
}

#[test]
fn s33_the_next_namespace_of_the_name_has_none_of_the_last_one_s_policies() {
    let mut told = Told::listed(&SHOP);
    told.terminate("shop", 20);
    told.delete(Kind::NetworkPolicy, "shop/deny", 9);
    told.after(GRACE * 2);
    told.delete(Kind::Namespace, "shop", 21);
    // Between these two nobody looks.
    told.delete(Kind::Pod, "shop/a", 10);
    told.put(Kind::Pod, "shop/a", 11);
    told.put(Kind::Namespace, "shop", 22);
    told.after(Duration::ZERO);
    assert!(told.policies().is_empty());
}

#[test]
fn s34_a_pod_that_is_seen_before_its_namespace_waits() {
    let mut told = Told::listed(&[(Kind::Pod, "shop/a")]);
    let said = told.store.said().unwrap();
    assert!(!said.cluster.namespaces.contains_key("shop"), "not judged with empty labels");
    assert!(said.problems.iter().any(|p| p.object == "Namespace shop"), "{:?}", said.problems);
    told.put(Kind::Namespace, "shop", 5);
    assert!(told.store.said().unwrap().problems.is_empty());
}

#[test]
fn a_policy_that_cannot_be_read_is_told_and_closes() {
    let mut told = Told::listed(&SHOP);
    let mut broken = object(Kind::NetworkPolicy, "shop/deny", 9);
    broken["spec"]["ingress"] = json!([{"form": []}]);
    told.change(Kind::NetworkPolicy, &broken, Change::Put);
    let said = told.store.said().unwrap();
    assert!(said.problems.iter().any(|p| p.object == "NetworkPolicy shop/deny"), "{:?}", said.problems);
    assert!(said.cluster.policies.contains_key(&ObjectKey::new("shop", "deny")));
    told.put(Kind::NetworkPolicy, "shop/deny", 10);
    assert!(told.store.said().unwrap().problems.is_empty(), "mended");
}

#[test]
fn what_was_said_does_not_change_afterwards() {
    let mut told = Told::listed(&SHOP);
    let before = told.store.said().unwrap();
    told.delete(Kind::Pod, "shop/a", 9);
    assert_eq!(before.cluster.pods.len(), 1);
}

#[test]
fn what_agents_write_to_the_status_of_a_host_policy_changes_nothing() {
    let mut told = Told::listed(&[(Kind::HostPolicy, "web")]);
    let object = |version: u64, generation: u64, mode: &str| {
        let mut value = object(Kind::HostPolicy, "web", version);
        value["metadata"]["generation"] = json!(generation);
        value["spec"] = json!({"subject": {"nodes": {}}, "mode": mode});
        value["status"]["nodes"]["n1"] = json!({"observedGeneration": version});
        value
    };
    assert!(told.change(Kind::HostPolicy, &object(2, 1, "Enforce"), Change::Put));
    let before = told.store.said().unwrap();
    assert!(!told.change(Kind::HostPolicy, &object(3, 1, "Enforce"), Change::Put));
    let after = told.store.said().unwrap();
    assert!(std::sync::Arc::ptr_eq(&before.cluster, &after.cluster));
    assert!(told.change(Kind::HostPolicy, &object(4, 2, "Audit"), Change::Put));
    assert_eq!(told.store.said().unwrap().host_versions["web"].generation, 2);
}

#[test]
fn a_kind_that_the_server_does_not_know_has_no_objects_and_is_told_once() {
    let mut told = Told::listed(&[(Kind::HostPolicy, "web")]);
    assert!(told.store.absent(Kind::HostPolicy, told.now));
    assert!(told.store.said().unwrap().cluster.host_policies.is_empty());
    assert!(!told.store.absent(Kind::HostPolicy, told.now));
    // Of others it is a mistake of the server's.
    assert!(!told.store.absent(Kind::NetworkPolicy, told.now));
}
