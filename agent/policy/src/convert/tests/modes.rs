//! Annotations: the one that puts a policy, or the policies of a namespace, into audit mode, and the one that unbinds a
//! namespace's pods.

use serde_json::{Value, json};

use super::super::{Report, namespace, network_policy};
use crate::model::{Cluster, Mode, ObjectKey, SourceBinding};
use crate::select::Directory;

fn annotated(annotations: &Value) -> Value {
    json!({"metadata": {"name": "x", "annotations": annotations}, "spec": {"podSelector": {}}})
}

fn mode_of(annotations: &Value) -> (Option<Mode>, usize) {
    let mut report = Report::new("NetworkPolicy a/x", None);
    let policy = network_policy(&annotated(annotations), "a", &mut report);
    (policy.mode, report.into_problems().len())
}

#[test]
fn a_mode_is_read_and_anything_else_enforces() {
    assert_eq!(mode_of(&json!({"portcullis.dev/mode": "audit"})), (Some(Mode::Audit), 0));
    assert_eq!(mode_of(&json!({"portcullis.dev/mode": "enforce"})), (Some(Mode::Enforce), 0));
    assert_eq!(mode_of(&json!({"other": "audit"})), (None, 0));
    assert_eq!(mode_of(&Value::Null), (None, 0));
    for wrong in [json!("Audit"), json!("audit "), json!(""), json!(true), json!(["audit"]), Value::Null] {
        assert_eq!(mode_of(&json!({"portcullis.dev/mode": wrong})), (Some(Mode::Enforce), 1), "{wrong}");
    }
    assert_eq!(mode_of(&json!(["portcullis.dev/mode"])), (Some(Mode::Enforce), 1));
}

#[test]
fn a_policys_own_mode_goes_before_its_namespaces() {
    let mut report = Report::new("x", None);
    let mut cluster = Cluster::default();
    let audit = annotated(&json!({"portcullis.dev/mode": "audit"}));
    cluster.namespaces.insert("a".to_owned(), namespace(&audit, "a", &mut report).unwrap());
    let mode = |key: &str, annotations: Value| {
        let policy = network_policy(&annotated(&annotations), key, &mut Report::new("x", None));
        cluster.mode(&ObjectKey::new(key, "x"), &policy)
    };
    assert_eq!(mode("a", json!({})), Mode::Audit);
    assert_eq!(mode("a", json!({"portcullis.dev/mode": "enforce"})), Mode::Enforce);
    assert_eq!(mode("a", json!({"portcullis.dev/mode": "adit"})), Mode::Enforce);
    assert_eq!(mode("b", json!({})), Mode::Enforce);
}

#[test]
fn a_namespace_is_unbound_by_exactly_one_word() {
    let binding = |annotations: &Value| {
        let mut report = Report::new("Namespace a", None);
        let read = namespace(&annotated(annotations), "a", &mut report).unwrap();
        let mut cluster = Cluster::default();
        let said = read.source_binding;
        cluster.namespaces.insert("a".to_owned(), read);
        let used = Directory::new(&cluster).source_binding(&ObjectKey::new("a", "x"));
        (said, used, report.into_problems().len())
    };
    let (on, off) = (SourceBinding::On, SourceBinding::Off);
    assert_eq!(binding(&json!({"portcullis.dev/source-binding": "off"})), (Some(off), off, 0));
    assert_eq!(binding(&json!({"portcullis.dev/source-binding": "on"})), (Some(on), on, 0));
    assert_eq!(binding(&json!({})), (None, on, 0));
    for wrong in [json!("Off"), json!("off "), json!("false"), json!(false), json!(["off"]), Value::Null] {
        assert_eq!(binding(&json!({"portcullis.dev/source-binding": wrong})), (Some(on), on, 1), "{wrong}");
    }
    // What cannot be read is reported for the mode and for the binding, and binds.
    assert_eq!(binding(&json!(["portcullis.dev/source-binding"])), (Some(on), on, 2));
}
