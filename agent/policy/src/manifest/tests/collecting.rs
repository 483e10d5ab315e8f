//! Kinds, lists, duplicates, names and namespaces.

use super::{assert_fine, assert_problem, load_files, load_yaml, pod_names};
use crate::model::{DirectionSpec, ObjectKey, Severity, Subject};

const NS: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n---\n";

fn with_ns(text: &str) -> String {
    format!("{NS}{text}")
}

#[test]
fn lists_are_opened_typed_and_nested_ones_too() {
    let loaded = load_yaml(
        "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: default}}
- apiVersion: v1
  kind: PodList
  items:
  - metadata: {name: a}
  - {apiVersion: v1, kind: Pod, metadata: {name: b}}
- {apiVersion: v1, kind: List, items: null}
- {apiVersion: v1, kind: List}
- {apiVersion: apps/v1, kind: DeploymentList, items: []}
",
    );
    assert_eq!(pod_names(&loaded), ["default/a", "default/b"]);
    assert_fine(&loaded);
}

#[test]
fn items_of_a_wrong_type_are_reported() {
    let loaded = load_yaml("kind: List\napiVersion: v1\nitems: {a: b}\n");
    assert_problem(&loaded, Severity::Error, "List", "items");
}

#[test]
fn a_missing_namespace_is_default() {
    let loaded = load_yaml(&with_ns("apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: ''}\n"));
    assert_eq!(pod_names(&loaded), ["default/a"]);
    assert_fine(&loaded);
}

#[test]
fn of_two_alike_the_later_wins_and_is_reported() {
    let pod =
        |label: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a, labels: {{l: {label}}}}}\n");
    let loaded = load_files(&[("a.yaml", &with_ns(&pod("one"))), ("b.yaml", &pod("two"))]);
    assert_eq!(loaded.cluster.pods[&ObjectKey::new("default", "a")].labels["l"], "two");
    let problem = assert_problem(&loaded, Severity::Warning, "Pod default/a", "a.yaml:5");
    assert_eq!(problem.location.as_deref(), Some("b.yaml:1"));
    assert_eq!(loaded.problems.len(), 1);
    let other_kind = load_yaml(&with_ns(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\n",
    ));
    assert_fine(&other_kind);
}

#[test]
fn unknown_kinds_are_noted_once_a_file() {
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\n---\n".repeat(3);
    let loaded = load_files(&[("a.yaml", &secret), ("b.yaml", &secret)]);
    assert_eq!(loaded.problems.len(), 2);
    assert_problem(&loaded, Severity::Note, "Secret of v1", "a.yaml:1");
    assert_problem(&loaded, Severity::Note, "Secret of v1", "b.yaml:1");
}

#[test]
fn kinds_of_other_groups_are_not_ours() {
    let kinds = [
        ("serving.knative.dev/v1", "Service"),
        ("example.com/v1", "Deployment"),
        ("example.com/v1", "Pod"),
        ("example.com/v1", "Namespace"),
        ("example.com/v1", "Node"),
        ("example.com/v1", "CronJob"),
        ("projectcalico.org/v3", "NetworkPolicy"),
        ("crd.antrea.io/v1beta1", "ClusterNetworkPolicy"),
        ("example.com/v1", "AllowList"),
    ];
    for (version, kind) in kinds {
        let loaded = load_yaml(&format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n"));
        assert_eq!(loaded.cluster, crate::model::Cluster::default(), "{kind}");
        assert!(loaded.cluster_policies.is_empty());
        assert_problem(&loaded, Severity::Note, &format!("{kind} of {version}"), "skipped");
    }
}

#[test]
fn endpoints_pass_silently_and_our_own_later_kinds_are_named() {
    let loaded = load_yaml(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\n---\n\
         apiVersion: v1\nkind: Endpoints\nmetadata: {name: a}\n---\n\
         apiVersion: portcullis.dev/v1alpha1\nkind: Gate\nmetadata: {name: a}\n",
    );
    assert_eq!(loaded.problems.len(), 1);
    let object = "Gate of portcullis.dev/v1alpha1";
    assert_problem(&loaded, Severity::Warning, object, "not supported by this version");
}

#[test]
fn cluster_policies_are_listed_for_the_binary_to_refuse() {
    let loaded = load_yaml(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: a}\n---\n\
         apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: b}\n---\n\
         apiVersion: policy.networking.k8s.io/v9\nkind: BaselineAdminNetworkPolicy\nmetadata: {name: c}\n---\n\
         kind: ClusterNetworkPolicy\n",
    );
    assert_eq!(
        loaded.cluster_policies,
        ["a (f.yaml:1)", "b (f.yaml:5)", "c (f.yaml:9)", "(no name) (f.yaml:13)"]
    );
}

#[test]
fn another_version_of_network_policy_is_read_with_an_error() {
    for version in [
        "apiVersion: extensions/v1beta1",
        "apiVersion: networking.k8s.io/v2",
        "apiVersion: v1",
        "apiVersion: network.k8s.io/v1",
        "apiVersion: 1",
        "apiVersion: null",
        "x-version: v1",
    ] {
        let loaded = load_yaml(&format!(
            "{version}\nkind: NetworkPolicy\nmetadata: {{name: a}}\nspec: {{ingress: [{{}}]}}"
        ));
        let policy = &loaded.cluster.policies[&ObjectKey::new("default", "a")];
        assert!(
            matches!(&policy.ingress, DirectionSpec::Isolated { rules, .. } if rules.len() == 1),
            "{version}"
        );
        assert_problem(&loaded, Severity::Error, "NetworkPolicy default/a", "apiVersion");
    }
}

#[test]
fn a_missing_version_of_another_kind_is_a_warning() {
    let loaded = load_yaml("kind: Namespace\nmetadata: {name: a}");
    assert!(loaded.cluster.namespaces.contains_key("a"));
    assert_problem(&loaded, Severity::Warning, "Namespace a", "apiVersion");
}

#[test]
fn an_object_without_name_counts_where_it_means_something() {
    let loaded = load_yaml(&with_ns(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\nspec: {}\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: ''}\nspec: {}\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: [x]}\nspec: {}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {generateName: web-}\n---\n\
         apiVersion: v1\nkind: Node\nmetadata: {}\n",
    ));
    let policies: Vec<_> = loaded.cluster.policies.keys().map(ToString::to_string).collect();
    assert_eq!(policies, ["default/unnamed-0", "default/unnamed-1", "default/unnamed-2"]);
    assert_eq!(pod_names(&loaded), ["default/web-0"]);
    assert!(loaded.cluster.nodes.is_empty());
    assert_problem(&loaded, Severity::Error, "Node", "metadata.name");
    assert_problem(&loaded, Severity::Error, "NetworkPolicy", "unnamed-0");
}

#[test]
fn names_of_a_wrong_type_count_as_their_text() {
    let loaded = load_yaml("apiVersion: v1\nkind: Pod\nmetadata: {name: 5, namespace: true}");
    assert_eq!(pod_names(&loaded), ["true/5"]);
    assert_problem(&loaded, Severity::Warning, "Pod", "metadata.namespace");
}

#[test]
fn an_object_without_a_readable_namespace_is_nowhere() {
    for (metadata, field) in [
        ("{name: a, namespace: [x]}", "metadata.namespace"),
        ("{name: a, namespace: {x: y}}", "metadata.namespace"),
        ("[x]", "metadata"),
        ("x", "metadata"),
    ] {
        for (version, kind) in
            [("v1", "Pod"), ("networking.k8s.io/v1", "NetworkPolicy"), ("apps/v1", "Deployment")]
        {
            let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {metadata}\nspec: {{}}\n");
            let loaded = load_yaml(&text);
            assert_eq!(loaded.cluster, crate::model::Cluster::default(), "{kind} {metadata}");
            let problem = assert_problem(&loaded, Severity::Error, kind, "left out");
            assert_eq!((problem.field.as_str(), problem.location.as_deref()), (field, Some("f.yaml:1")));
            assert_eq!(loaded.incomplete_files, ["f.yaml"]);
        }
    }
}

#[test]
fn a_misspelt_kind_is_an_error_with_the_kind_that_is_meant() {
    let cases = [
        ("networking.k8s.io/v1", "NetworkPolcy", "NetworkPolicy"),
        ("networking.k8s.io/v1", "networkpolicy", "NetworkPolicy"),
        ("networking.k8s.io/v1", "NetworkPolicies", "NetworkPolicy"),
        ("extensions/v1beta1", "Networkpolicy", "NetworkPolicy"),
        ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolcy", "ClusterNetworkPolicy"),
        ("v1", "pod", "Pod"),
        ("v1", "Namespaces", "Namespace"),
        ("v1", "Namespcae", "Namespace"),
        ("apps/v1", "Deploymnet", "Deployment"),
        ("batch/v1", "Cronjob", "CronJob"),
    ];
    for (version, kind, meant) in cases {
        let loaded = load_yaml(&format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n"));
        let object = format!("{kind} of {version}");
        assert_problem(&loaded, Severity::Error, &object, &format!("write {meant} if"));
        assert_eq!(!loaded.incomplete_files.is_empty(), meant.ends_with("Policy"), "{kind}");
    }
}

#[test]
fn real_kinds_beside_ours_are_no_misspellings() {
    let cases = [
        ("v1", "Secret"),
        ("v1", "ServiceAccount"),
        ("v1", "PodTemplate"),
        ("v1", "Binding"),
        ("networking.k8s.io/v1", "Ingress"),
        ("apps/v1", "ControllerRevision"),
        ("cilium.io/v2", "CiliumNetworkPolicy"),
        ("projectcalico.org/v3", "GlobalNetworkPolicy"),
        ("projectcalico.org/v3", "networkpolicy"),
        ("example.com/v1", "Deploymnet"),
        ("karpenter.sh/v1", "NodePool"),
    ];
    for (version, kind) in cases {
        let loaded = load_yaml(&format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n"));
        assert_problem(&loaded, Severity::Note, &format!("{kind} of {version}"), "skipped");
        assert!(loaded.incomplete_files.is_empty(), "{kind}");
    }
}

#[test]
fn s34_a_namespace_with_unreadable_labels_is_undeclared_and_reported_once() {
    let loaded = load_yaml(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: x, labels: [a]}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: x}\n",
    );
    assert!(loaded.cluster.namespaces.is_empty());
    assert_problem(&loaded, Severity::Error, "Namespace x", "counts as undeclared");
    assert_eq!(loaded.problems.len(), 1);
}

#[test]
fn documents_that_are_no_objects_are_reported() {
    let loaded = load_yaml("just text\n---\n- a list\n---\nkind: 5\n---\nmetadata: {name: a}\n");
    assert_problem(&loaded, Severity::Error, "f.yaml", "a string");
    assert_problem(&loaded, Severity::Error, "f.yaml", "a list");
    assert_eq!(loaded.problems.iter().filter(|p| p.message.contains("names no kind")).count(), 2);
    assert!(loaded.unreadable_files.is_empty());
}

#[test]
fn s34_pods_of_an_undeclared_namespace_stay_listed_and_are_reported() {
    let pods: Vec<String> = (0..7)
        .map(|i| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p{i}, namespace: x}}\n---\n"))
        .collect();
    let done = "apiVersion: v1\nkind: Pod\nmetadata: {name: done, namespace: y}\nstatus: {phase: Failed}\n";
    let loaded = load_yaml(&(pods.concat() + done));
    assert_eq!(loaded.cluster.pods.len(), 8);
    assert!(loaded.cluster.namespaces.is_empty());
    let problem =
        assert_problem(&loaded, Severity::Error, "Namespace x", "x/p0, x/p1, x/p2, x/p3, x/p4, and 2 more");
    assert!(problem.message.contains("isolated both ways"));
    assert_eq!(loaded.problems.len(), 1);
}

#[test]
fn t13_the_namespace_comes_from_metadata() {
    let loaded = load_yaml(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, namespace: z, labels: {kubernetes.io/metadata.name: b}}",
    );
    assert_eq!(loaded.cluster.namespaces["a"].labels["kubernetes.io/metadata.name"], "a");
    assert_problem(&loaded, Severity::Warning, "Namespace a", "metadata.name");
}

#[test]
fn a_policy_that_cannot_be_read_closes_and_is_placed() {
    let loaded = load_yaml(
        "\n\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: x\n",
    );
    assert_eq!(loaded.cluster.policies[&ObjectKey::new("default", "a")].subject, Subject::Unreadable);
    let problem = assert_problem(&loaded, Severity::Error, "NetworkPolicy default/a", "spec");
    assert_eq!(problem.location.as_deref(), Some("f.yaml:3"));
}

#[test]
fn hostpolicies_are_collected_as_networkpolicies_are() {
    let loaded = load_yaml(
        "apiVersion: portcullis.dev/v1alpha1\nkind: HostPolicy\nmetadata: {name: a, namespace: ignored}\n\
         spec: {subject: {nodes: {}}}\n---\n\
         apiVersion: portcullis.dev/v1alpha1\nkind: HostPolicyList\nitems:\n\
         - {metadata: {name: a}, spec: {subject: {pods: {}}}}\n\
         - {metadata: {name: b}, spec: {subject: {nodes: {}}}}\n---\n\
         apiVersion: portcullis.dev/v2\nkind: HostPolicy\nmetadata: {name: c}\n\
         spec: {subject: {nodes: {}}}\n---\n\
         apiVersion: portcullis.dev/v1alpha1\nkind: HostPolicy\nspec: {}\n",
    );
    let names: Vec<&str> = loaded.cluster.host_policies.keys().map(String::as_str).collect();
    assert_eq!(names, ["a", "b", "c", "unnamed-0"]);
    let later = &loaded.cluster.host_policies["a"].subject;
    assert!(matches!(later, crate::model::HostSubject::Pods { .. }), "{later:?}");
    assert_problem(&loaded, Severity::Warning, "HostPolicy a", "this later one counts");
    assert_problem(&loaded, Severity::Error, "HostPolicy c", "read as portcullis.dev/v1alpha1");
    assert_problem(&loaded, Severity::Error, "HostPolicy", "counts as unnamed-0");
    assert_problem(&loaded, Severity::Error, "HostPolicy unnamed-0", "selects every node");
    // A misspelt one is no object of somebody else's.
    let misspelt = load_yaml("apiVersion: portcullis.dev/v1alpha1\nkind: HostPolices\nmetadata: {name: a}\n");
    assert_eq!(misspelt.incomplete_files, ["f.yaml"]);
}
