#![allow(clippy::unwrap_used, reason = "a test's own input")]

use super::*;

fn agent(node: &str) -> Agent {
    Agent { node: node.to_owned(), pod: format!("portcullis-{node}") }
}

#[test]
fn agents_are_the_pods_that_stay_by_node() {
    let list = br#"{"items": [
        {"metadata": {"name": "portcullis-n2"}, "spec": {"nodeName": "n2"}},
        {"metadata": {"name": "portcullis-n1"}, "spec": {"nodeName": "n1"}},
        {"metadata": {"name": "old", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"nodeName": "n1"}},
        {"metadata": {"name": "nowhere"}, "spec": {}}]}"#;
    assert_eq!(listed_agents(list).unwrap(), [agent("n1"), agent("n2")]);
    assert_eq!(listed_agents(b"{}").unwrap(), []);
    assert!(matches!(listed_agents(b"Error"), Err(PluginError::Garbled(_))));
}

#[test]
fn nodes_are_those_that_were_named() {
    let all = || vec![agent("n1"), agent("n2")];
    assert_eq!(chosen(all(), &[]).unwrap(), all());
    assert_eq!(chosen(all(), &["n2".to_owned()]).unwrap(), [agent("n2")]);
    let error = chosen(all(), &["n3".to_owned()]).unwrap_err();
    assert_eq!(error.to_string(), "no agent runs on node n3: name one of n1, n2 with --node");
    assert_eq!(error.exit(), Exit::Usage);
}

#[test]
fn lines_bear_their_node() {
    assert_eq!(with_node("12:00 DENY a/x", "n1"), "n1  12:00 DENY a/x\n");
    assert_eq!(with_node(r#"{"verdict":"deny"}"#, "n1"), "{\"node\":\"n1\",\"verdict\":\"deny\"}\n");
}

#[test]
fn words_of_the_verb_are_its_own() {
    let read = |words: &str| Plugin::try_parse_from(words.split(' ')).map(|plugin| plugin.verb.split());
    let (verb, words) = read("kubectl-portcullis --node n1 explain a/x a/y TCP/80 -o json").unwrap();
    assert_eq!(
        (verb, words.as_slice()),
        ("explain", ["a/x", "a/y", "TCP/80", "-o", "json"].map(str::to_owned).as_slice())
    );
    assert!(is_json(&words));
    let (_, words) = read("kubectl-portcullis status -ojson").unwrap();
    assert!(is_json(&words));
    assert!(!is_json(&["-o".to_owned(), "table".to_owned()]));
    assert!(read("kubectl-portcullis cleanup").is_err());
}

#[test]
fn it_is_the_plugin_by_its_name() {
    assert!(is_called(&"/usr/local/bin/kubectl-portcullis".into()));
    assert!(!is_called(&"/usr/local/bin/portcullis".into()));
}
