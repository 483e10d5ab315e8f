//! Made-up addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{addresses_of, assert_fine, assert_problem, load_yaml};
use crate::manifest::{Loaded, Options, SourceFile, load_sources};
use crate::model::{ObjectKey, Severity};

fn pods(names: &[&str]) -> String {
    let mut documents = vec!["{apiVersion: v1, kind: Namespace, metadata: {name: ns}}".to_owned()];
    for name in names {
        documents.push(format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: ns}}}}"));
    }
    documents.join("\n---\n") + "\n"
}

fn load_in(text: &str, ranges: &[&str]) -> Loaded {
    let pod_cidrs = ranges.iter().map(|range| range.parse().expect("a CIDR")).collect();
    load_sources(&[SourceFile { path: "f.yaml", content: text.as_bytes() }], &Options { pod_cidrs })
}

fn of(loaded: &Loaded, name: &str) -> Vec<String> {
    addresses_of(&loaded.cluster.pods[&ObjectKey::new("ns", name)])
}

#[test]
fn a_pod_gets_the_same_address_of_each_family_whoever_else_is_there() {
    let alone = load_yaml(&pods(&["web"]));
    assert_fine(&alone);
    // Users write these down: a change of the scheme must not go unnoticed.
    assert_eq!(of(&alone, "web"), ["10.244.47.15", "fd00:10:244:0:7fc8:fd0a:9822:6ef"]);
    let together = load_yaml(&pods(&["a", "b", "web", "z"]));
    assert_eq!(of(&together, "web"), of(&alone, "web"));
}

#[test]
fn only_the_families_of_the_ranges_are_given() {
    let text = pods(&["web"]);
    assert_eq!(of(&load_in(&text, &["10.0.0.0/8"]), "web").len(), 1);
    assert_eq!(of(&load_in(&text, &["fd00::/8"]), "web").len(), 1);
    assert_eq!(of(&load_in(&text, &["10.0.0.0/8", "10.0.0.0/8", "::/0"]), "web").len(), 2);
}

#[test]
fn every_address_of_a_range_but_network_first_and_last_is_given_once() {
    let names: Vec<String> = (0..20).map(|i| format!("p{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let loaded = load_in(&pods(&names), &["10.0.0.0/28", "fd00::/124"]);
    let given: BTreeSet<IpAddr> =
        loaded.cluster.pods.values().flat_map(|pod| pod.addresses.clone()).collect();
    let v4 = (2..15).map(|i| format!("10.0.0.{i}"));
    let v6 = (2..15).map(|i| format!("fd00::{i:x}"));
    let expected: BTreeSet<IpAddr> = v4.chain(v6).map(|a| a.parse().expect("an address")).collect();
    assert_eq!(given, expected);
    assert_problem(&loaded, Severity::Error, "--pod-cidr", "no room for 7 pods");
}

#[test]
fn a_full_range_gives_way_to_the_next() {
    let loaded = load_in(&pods(&["a", "b"]), &["10.0.0.0/30", "10.0.1.0/24"]);
    assert_eq!(of(&loaded, "a"), ["10.0.0.2"]);
    assert!(of(&loaded, "b")[0].starts_with("10.0.1."));
    assert_fine(&loaded);
}

#[test]
fn an_address_that_another_manifest_uses_is_never_given() {
    let used = "
---
{apiVersion: v1, kind: Pod, metadata: {name: old, namespace: ns}, status: {podIP: 10.0.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: done, namespace: ns}, status: {phase: Failed, podIP: 10.0.0.3}}
---
{apiVersion: v1, kind: Node, metadata: {name: n}, status: {addresses: [{address: 10.0.0.4}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: s, namespace: ns}, spec: {clusterIP: 10.0.0.5}}
";
    let loaded = load_in(&(pods(&["a"]) + used), &["10.0.0.0/29"]);
    assert_eq!(of(&loaded, "a"), ["10.0.0.6"]);
    assert_eq!(of(&loaded, "old"), ["10.0.0.2"], "an address in the manifest stays, and stays alone");
    assert_fine(&loaded);
}

#[test]
fn finished_and_host_network_pods_get_none() {
    let text = pods(&[])
        + "---\n{apiVersion: v1, kind: Pod, metadata: {name: done, namespace: ns}, status: {phase: Succeeded}}\n"
        + "---\n{apiVersion: v1, kind: Pod, metadata: {name: host, namespace: ns}, spec: {hostNetwork: true}}\n";
    let loaded = load_yaml(&text);
    assert!(of(&loaded, "done").is_empty() && of(&loaded, "host").is_empty());
    assert_fine(&loaded);
}

#[test]
fn without_a_range_pods_stay_without_address_and_it_is_said() {
    for ranges in [&[][..], &["10.0.0.0/31", "10.0.0.1/32", "fd00::/127"]] {
        let loaded = load_in(&pods(&["a"]), ranges);
        assert!(of(&loaded, "a").is_empty());
        assert_problem(&loaded, Severity::Error, "--pod-cidr", "1 pods stay without address");
    }
}
