//! Workloads that stand for pods, and those that need not.

use super::{assert_fine, assert_problem, load_files, load_yaml, pod_names};
use crate::manifest::{Loaded, MAX_REPLICAS, MAX_STAND_INS};
use crate::model::{ObjectKey, PodNetwork, Protocol, Severity};

const NS: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: ns}}";

/// Loads these objects, each written as one line of flow YAML, beside the namespace `ns`.
fn load_objects(objects: &[&str]) -> Loaded {
    let mut text = NS.to_owned();
    for object in objects {
        text += "\n---\n";
        text += object;
    }
    load_yaml(&text)
}

fn workload(kind: &str, name: &str, spec: &str) -> String {
    let group = if kind.ends_with("Job") { "batch/v1" } else { "apps/v1" };
    format!("{{apiVersion: {group}, kind: {kind}, metadata: {{name: {name}, namespace: ns}}, spec: {spec}}}")
}

fn pod(name: &str, owner: &str, more: &str) -> String {
    format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: ns, {owner} {more}}}}}")
}

fn owned_by(kind: &str, name: &str) -> String {
    format!("ownerReferences: [{{apiVersion: apps/v1, kind: {kind}, name: {name}, uid: u}}],")
}

#[test]
fn every_kind_stands_for_its_pods() {
    let cases = [
        ("Deployment", "{replicas: 2, template: {}}", 2),
        ("Deployment", "{template: {}}", 1),
        ("Deployment", "{replicas: null, template: {}}", 1),
        ("Deployment", "{replicas: 0, template: {}}", 0),
        ("StatefulSet", "{replicas: 3, template: {}}", 3),
        ("ReplicaSet", "{replicas: 2, template: {}}", 2),
        ("DaemonSet", "{replicas: 9, template: {}}", 1),
        ("Job", "{parallelism: 2, completions: 9, template: {}}", 2),
        ("Job", "{template: {}}", 1),
        ("CronJob", "{jobTemplate: {spec: {parallelism: 2, template: {}}}}", 2),
        ("CronJob", "{jobTemplate: {spec: {template: {}}}}", 1),
    ];
    for (kind, spec, count) in cases {
        let loaded = load_objects(&[&workload(kind, "w", spec)]);
        let expected: Vec<_> = (0..count).map(|i| format!("ns/w-{i}")).collect();
        assert_eq!(pod_names(&loaded), expected, "{kind} {spec}");
        assert_fine(&loaded);
    }
}

#[test]
fn a_stand_in_is_what_the_template_says_in_the_workloads_namespace() {
    let loaded = load_objects(&[&workload(
        "Deployment",
        "w",
        "{template: {metadata: {name: x, namespace: other, labels: {a: b}}, spec: {nodeName: n, containers: \
         [{ports: [{name: web, containerPort: 80}]}]}}}",
    )]);
    let pod = &loaded.cluster.pods[&ObjectKey::new("ns", "w-0")];
    assert_eq!(pod.labels["a"], "b");
    assert_eq!(pod.named_ports[&("web".to_owned(), Protocol::Tcp)], 80);
    assert_eq!(pod.node.as_deref(), Some("n"));
    assert_eq!(pod.uid, "manifest:ns/w-0");
    assert_eq!(pod.addresses.len(), 2, "one of each family");
    assert_fine(&loaded);
}

#[test]
fn a_stand_in_on_the_hosts_network_has_no_address() {
    let loaded = load_objects(&[&workload("DaemonSet", "w", "{template: {spec: {hostNetwork: true}}}")]);
    let pod = &loaded.cluster.pods[&ObjectKey::new("ns", "w-0")];
    assert_eq!(pod.network, PodNetwork::Host);
    assert!(pod.addresses.is_empty());
}

#[test]
fn a_workload_that_owns_a_pod_stands_for_none() {
    for kind in ["StatefulSet", "DaemonSet", "ReplicaSet", "Job"] {
        let owned = pod("p", &owned_by(kind, "w"), "");
        let loaded = load_objects(&[&workload(kind, "w", "{template: {}}"), &owned]);
        assert_eq!(pod_names(&loaded), ["ns/p"], "{kind}");
        let other = pod("p", &owned_by(kind, "v"), "");
        let loaded = load_objects(&[&workload(kind, "w", "{template: {}}"), &other]);
        assert_eq!(pod_names(&loaded), ["ns/p", "ns/w-0"], "{kind}");
    }
}

#[test]
fn a_deployment_owns_the_pods_of_its_replica_sets() {
    let deployment = workload("Deployment", "web", "{template: {}}");
    let cases = [
        (pod("p", &owned_by("ReplicaSet", "web-5d4f"), ""), true),
        (pod("p", &owned_by("ReplicaSet", "web-5d4f"), "labels: {pod-template-hash: 5d4f}"), true),
        (pod("p", &owned_by("ReplicaSet", "web-app-5d4f"), ""), false),
        (pod("p", &owned_by("ReplicaSet", "web-app"), "labels: {pod-template-hash: other}"), false),
        (pod("p", &owned_by("ReplicaSet", "web"), ""), false),
        (pod("p", &owned_by("StatefulSet", "web-5d4f"), ""), false),
        (pod("p", "", ""), false),
    ];
    for (pod, made) in cases {
        let loaded = load_objects(&[&deployment, &pod]);
        assert_eq!(pod_names(&loaded).len(), if made { 1 } else { 2 }, "{pod}");
    }
    let cron = workload("CronJob", "tick", "{jobTemplate: {spec: {template: {}}}}");
    let loaded = load_objects(&[&cron, &pod("p", &owned_by("Job", "tick-28000"), "")]);
    assert_eq!(pod_names(&loaded), ["ns/p"]);
}

#[test]
fn what_a_workload_of_the_directory_owns_is_not_expanded_twice() {
    let deployment = workload("Deployment", "web", "{template: {}}");
    let set = |owner: &str| {
        format!(
            "{{apiVersion: apps/v1, kind: ReplicaSet, metadata: {{name: web-abc, namespace: ns, {owner}}}, spec: \
             {{template: {{}}}}}}"
        )
    };
    let owned = set(&owned_by("Deployment", "web"));
    assert_eq!(pod_names(&load_objects(&[&deployment, &owned])), ["ns/web-0"]);
    assert_eq!(pod_names(&load_objects(&[&owned])), ["ns/web-abc-0"], "its owner is elsewhere");
    let made = pod("p", &owned_by("ReplicaSet", "web-abc"), "");
    assert_eq!(pod_names(&load_objects(&[&deployment, &owned, &made])), ["ns/p"]);
    assert_eq!(
        pod_names(&load_objects(&[&deployment, &set(""), &made])),
        ["ns/p", "ns/web-0"],
        "a ReplicaSet of its own is not the Deployment's, whatever its name"
    );
}

#[test]
fn owners_are_looked_for_in_the_same_namespace() {
    let elsewhere = "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: default, ownerReferences: \
                     [{kind: DaemonSet, name: w}, {kind: 5}, x]}}";
    let loaded = load_objects(&[&workload("DaemonSet", "w", "{template: {}}"), elsewhere]);
    assert_eq!(pod_names(&loaded), ["default/p", "ns/w-0"]);
}

#[test]
fn a_name_that_a_pod_has_is_passed_over() {
    let loaded = load_objects(&[
        &workload("Deployment", "w", "{replicas: 2, template: {}}"),
        &pod("w-0", "", "labels: {a: b}"),
    ]);
    assert_eq!(pod_names(&loaded), ["ns/w-0", "ns/w-1", "ns/w-2"]);
    assert_eq!(loaded.cluster.pods[&ObjectKey::new("ns", "w-0")].labels["a"], "b");
    assert_problem(&loaded, Severity::Warning, "Deployment ns/w", "ns/w-0 exists");
    let twins = load_objects(&[
        &workload("Deployment", "w", "{template: {}}"),
        &workload("DaemonSet", "w", "{template: {}}"),
    ]);
    assert_eq!(pod_names(&twins), ["ns/w-0", "ns/w-1"]);
}

#[test]
fn counts_that_cannot_be_read_are_one_and_large_ones_are_bounded() {
    for count in ["-1", "x", "1.5", "[]", "99999999999999999999"] {
        let loaded =
            load_objects(&[&workload("Deployment", "w", &format!("{{replicas: {count}, template: {{}}}}"))]);
        assert_eq!(pod_names(&loaded), ["ns/w-0"], "{count}");
        assert_problem(&loaded, Severity::Error, "Deployment ns/w", "spec.replicas");
    }
    let loaded = load_objects(&[&workload("Deployment", "w", "{replicas: 1001, template: {}}")]);
    assert_eq!(loaded.cluster.pods.len(), usize::try_from(MAX_REPLICAS).expect("small"));
    assert_problem(&loaded, Severity::Error, "Deployment ns/w", "1001 counts as 1000");
}

#[test]
fn t22_all_workloads_together_are_bounded() {
    let many: String = (0..=MAX_STAND_INS / 1_000)
        .map(|i| {
            workload(
                "Deployment",
                &format!("w{i:03}"),
                "{replicas: 1000, template: {spec: {hostNetwork: true}}}",
            )
        })
        .collect::<Vec<_>>()
        .join("\n---\n");
    let loaded = load_files(&[("a.yaml", &many), ("b.yaml", NS)]);
    assert_eq!(loaded.cluster.pods.len(), MAX_STAND_INS);
    assert_problem(&loaded, Severity::Error, "Deployment ns/w100", "100000 pods in all");
}

#[test]
fn a_workload_without_template_stands_for_none() {
    let cases = [
        ("Deployment", "null", "spec: is missing"),
        ("Deployment", "x", "spec: is a string"),
        ("Deployment", "{}", "spec.template: is missing"),
        ("Deployment", "{template: x}", "spec.template: is a string"),
        ("CronJob", "{}", "spec.jobTemplate: is missing"),
        ("CronJob", "{jobTemplate: {}}", "spec.jobTemplate.spec: is missing"),
        ("CronJob", "{jobTemplate: {spec: {}}}", "spec.jobTemplate.spec.template: is missing"),
    ];
    for (kind, spec, words) in cases {
        let loaded = load_objects(&[&workload(kind, "w", spec)]);
        assert!(pod_names(&loaded).is_empty());
        assert_problem(&loaded, Severity::Error, &format!("{kind} ns/w"), words);
    }
}
