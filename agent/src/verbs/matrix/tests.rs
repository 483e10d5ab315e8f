//! Given pods of three namespaces, when a matrix is asked for some of them, then only what touches these is told.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use super::*;
use crate::scratch::Scratch;
use crate::verbs::ask::TrafficText;
use crate::verbs::offline::offline;

fn world() -> World {
    let dir = Scratch::new();
    let objects: Vec<String> = ["a", "b", "c"]
        .iter()
        .zip(1..)
        .map(|(name, number)| {
            format!(
                "---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}\n---\n{{apiVersion: v1, kind: Pod, \
                 metadata: {{name: x, namespace: {name}}}, status: {{podIP: 10.0.0.{number}}}}}\n"
            )
        })
        .collect();
    dir.write("all.yaml", &objects.concat());
    offline(dir.path(), None, &[]).unwrap()
}

fn asked(namespaces: &[&str]) -> Result<Reply<Vec<Matrix>>, AskError> {
    let request = MatrixRequest {
        ports: vec![TrafficText("TCP/80".parse().unwrap())],
        family: None,
        judge: Judge::Userspace,
        namespaces: namespaces.iter().map(|&name| name.to_owned()).collect(),
    };
    matrix(&world(), None, &request)
}

#[test]
fn without_a_namespace_the_shape_is_five_keys_and_no_blank() {
    let result = asked(&[]).unwrap().result;
    assert_eq!(
        serde_json::to_value(&result).unwrap(),
        serde_json::json!([{"protocol": "TCP", "port": 80, "family": "ipv4", "order": ["a/x", "b/x", "c/x"],
            "rows": ["-..", ".-.", "..-"]}])
    );
}

#[test]
fn cells_that_touch_no_wanted_namespace_are_blank() {
    let result = asked(&["a"]).unwrap().result;
    assert_eq!(result[0].rows, ["-..", ".  ", ".  "]);
    assert!(table(&result, Colour::Plain).ends_with("- itself  blank: neither is in a namespace of -n\n"));
    assert_eq!(asked(&["a", "b"]).unwrap().result[0].rows, ["-..", ".-.", ".. "]);
}

#[test]
fn a_namespace_without_pods_is_refused_with_those_that_have_some() {
    let error = asked(&["a", "d"]).unwrap_err();
    assert_eq!(error.exit(), crate::output::Exit::Usage);
    assert_eq!(error.to_string(), "no live pod is in namespace d; there is a, b, c");
}
