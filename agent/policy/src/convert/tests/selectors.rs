//! Label selectors: S13, S14.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{assert_error, assert_fine, label, requirement};
use crate::convert::selector::{Unreadable, selector};
use crate::convert::{Path, Report};
use crate::model::{Labels, Operator, Problem, Selector};

fn read(value: &Value) -> (Result<Selector, Unreadable>, Vec<Problem>) {
    let mut report = Report::new("o", None);
    let read = selector(value, Path::ROOT.field("s"), &mut report);
    (read, report.into_problems())
}

fn set(values: &[&str]) -> BTreeSet<String> {
    values.iter().map(|v| (*v).to_owned()).collect()
}

#[test]
fn every_operator_is_read() {
    let (read, problems) = read(&json!({"matchLabels": {"a": "b", "e": ""}, "matchExpressions": [
        {"key": "c", "operator": "In", "values": ["y", "x", "y"]},
        {"key": "d", "operator": "NotIn", "values": ["x"]},
        {"key": "f", "operator": "Exists", "values": []},
        {"key": "g", "operator": "DoesNotExist", "values": null}]}));
    let expected = [
        requirement("a", Operator::In(set(&["b"]))),
        requirement("e", Operator::In(set(&[""]))),
        requirement("c", Operator::In(set(&["x", "y"]))),
        requirement("d", Operator::NotIn(set(&["x"]))),
        requirement("f", Operator::Exists),
        requirement("g", Operator::DoesNotExist),
    ];
    assert_eq!(read, Ok(Selector { requirements: expected.into() }));
    assert_fine(&problems);
}

#[test]
fn s14_a_match_label_with_an_empty_value_needs_the_key() {
    let (read, _) = read(&json!({"matchLabels": {"k": ""}}));
    let selector = read.expect("readable");
    assert!(!selector.matches(&Labels::new()));
    assert!(selector.matches(&Labels::from([("k".to_owned(), String::new())])));
}

#[test]
fn absent_and_null_parts_require_nothing() {
    for value in
        [json!({}), json!({"matchLabels": null, "matchExpressions": null}), json!({"matchExpressions": []})]
    {
        assert_eq!(read(&value).0, Ok(Selector::default()));
    }
}

#[test]
fn s13_values_that_validation_refuses_compare_as_strings() {
    let odd = "not a label value!";
    assert_eq!(read(&json!({"matchLabels": {"a b": odd}})).0, Ok(label("a b", odd)));
}

#[test]
fn s13_requirements_without_a_meaning_are_unreadable() {
    let expressions = [
        (json!({"key": "a", "operator": "in", "values": ["x"]}), "operator", "unknown"),
        (json!({"key": "a"}), "operator", "unknown"),
        (json!({"key": "a", "operator": "In"}), "values", "at least one value"),
        (json!({"key": "a", "operator": "NotIn", "values": []}), "values", "at least one value"),
        (json!({"key": "a", "operator": "Exists", "values": ["x"]}), "values", "must be empty"),
        (json!({"key": "a", "operator": "DoesNotExist", "values": ["x"]}), "values", "must be empty"),
        (json!({"key": "", "operator": "Exists"}), "key", "is empty"),
        (json!({"operator": "Exists"}), "key", "is empty"),
    ];
    for (expression, field, words) in expressions {
        let (read, problems) = read(&json!({"matchExpressions": [expression]}));
        assert_eq!(read, Err(Unreadable::Requirement), "{expression}");
        assert_error(&problems, &format!("s.matchExpressions[0].{field}"), words);
    }
    let (read, problems) = read(&json!({"matchLabels": {"": "x"}}));
    assert_eq!(read, Err(Unreadable::Requirement));
    assert_error(&problems, "s.matchLabels.", "empty key");
}

#[test]
fn wrong_types_are_unreadable_and_graver() {
    let selectors = [
        (json!("x"), "s"),
        (json!(null), "s"),
        (json!({"matchLabels": "x"}), "s.matchLabels"),
        (json!({"matchLabels": {"a": true}}), "s.matchLabels.a"),
        (json!({"matchLabels": {"a": null}}), "s.matchLabels.a"),
        (json!({"matchExpressions": {}}), "s.matchExpressions"),
        (json!({"matchExpressions": [null]}), "s.matchExpressions[0]"),
        (json!({"matchExpressions": [{"key": 1, "operator": "Exists"}]}), "s.matchExpressions[0].key"),
        (json!({"matchExpressions": [{"key": "a", "operator": 1}]}), "s.matchExpressions[0].operator"),
        (
            json!({"matchExpressions": [{"key": "a", "operator": "In", "values": "x"}]}),
            "s.matchExpressions[0].values",
        ),
        (
            json!({"matchLabels": {"": "x"}, "matchExpressions": [{"key": "a", "operator": "In", "values": [1]}]}),
            "s.matchExpressions[0].values[0]",
        ),
    ];
    for (value, field) in selectors {
        let (read, problems) = read(&value);
        assert_eq!(read, Err(Unreadable::Type), "{value}");
        assert_error(&problems, field, "must be");
    }
}
