//! Namespaces (S15, T13) and Nodes.

use serde_json::json;

use super::{assert_error, assert_fine, assert_problem};
use crate::convert::{METADATA_NAME, Report, namespace, node};
use crate::model::Severity;

#[test]
fn s15_a_namespace_always_carries_its_name() {
    for object in
        [json!({}), json!({"metadata": {"labels": {(METADATA_NAME): "real"}}}), json!({"metadata": 5})]
    {
        let mut report = Report::new("Namespace real", None);
        let namespace = namespace(&object, "real", &mut report).expect("its labels can be read");
        assert_eq!(namespace.labels[METADATA_NAME], "real");
        assert_fine(&report.into_problems());
    }
}

#[test]
fn t13_a_namespace_cannot_claim_another_name() {
    let mut report = Report::new("Namespace real", None);
    let object = json!({"metadata": {"labels": {(METADATA_NAME): "kube-system", "a": "b"}}});
    let namespace = namespace(&object, "real", &mut report).expect("its labels can be read");
    assert_eq!(namespace.labels[METADATA_NAME], "real");
    assert_eq!(namespace.labels["a"], "b");
    let field = format!("metadata.labels.{METADATA_NAME}");
    assert_problem(&report.into_problems(), Severity::Warning, &field, "not the namespace's name");
}

#[test]
fn s34_a_namespace_whose_labels_cannot_be_read_is_none() {
    for labels in [json!("x"), json!([]), json!({"team": ["a"]})] {
        let mut report = Report::new("Namespace n", None);
        assert_eq!(namespace(&json!({"metadata": {"labels": labels}}), "n", &mut report), None);
        let problems = report.into_problems();
        assert!(problems.iter().any(|p| p.message.contains("undeclared")), "{problems:#?}");
    }
}

#[test]
fn a_node_has_the_addresses_that_are_addresses() {
    let mut report = Report::new("Node n", None);
    let node = node(
        &json!({"metadata": {"labels": {"a": "b"}}, "status": {"addresses": [
            {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "n"},
            {"type": "ExternalIP", "address": "10.0.0.1"}, {"type": "InternalIP", "address": "fd00::1"}, {}, "x"]}}),
        &mut report,
    );
    assert_eq!(node.labels["a"], "b");
    let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1", "fd00::1"]);
    let problems = report.into_problems();
    assert_error(&problems, "status.addresses[5]", "must be a mapping");
    assert_eq!(problems.len(), 1);
}
