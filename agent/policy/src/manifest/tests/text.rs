//! Reading text: YAML, JSON, and what is hostile (T22).

use proptest::prelude::*;
use serde_json::json;

use super::{assert_problem, load_files};
use crate::manifest::{MAX_FILE_BYTES, Options, SourceFile, load_sources, parse_file};
use crate::model::Severity;

fn yaml(text: &str) -> Vec<(u64, serde_json::Value)> {
    objects("f.yml", text)
}

fn objects(path: &str, text: &str) -> Vec<(u64, serde_json::Value)> {
    let parsed = parse_file(&SourceFile { path, content: text.as_bytes() });
    let parsed = parsed.unwrap_or_else(|problem| panic!("{problem}"));
    parsed.objects.into_iter().map(|o| (o.line, o.value)).collect()
}

fn error(path: &str, text: &str) -> String {
    let result = parse_file(&SourceFile { path, content: text.as_bytes() });
    result.expect_err("the text must be refused").to_string()
}

#[test]
fn documents_come_with_their_lines_and_empty_ones_are_left_out() {
    let text = "# comment\n---\na: 1\n---\n---\n# nothing\n---\n~\n---\nb: [x]\n...\n";
    assert_eq!(yaml(text), [(3, json!({"a": 1})), (10, json!({"b": ["x"]}))]);
    assert!(yaml("").is_empty());
    assert!(yaml("\u{feff}# only a comment\n").is_empty());
}

#[test]
fn plain_scalars_keep_the_text_that_their_writer_sees() {
    let [(_, value)] = &yaml(
        "{a: on, b: yes, c: no, d: true, e: 0755, f: 1_000, g: 80, h: 80.0, i: ~, j: '80', k: 0x50, l: .inf, 5: n, m: 12e3, n: !!binary aGk=, o: 2024-01-01T00:00:00Z}",
    )[..] else {
        panic!("one document")
    };
    assert_eq!(
        *value,
        json!({"a": "on", "b": "yes", "c": "no", "d": true, "e": "0755", "f": "1_000", "g": 80, "h": 80.0,
            "i": null, "j": "80", "k": 80, "l": ".inf", "5": "n", "m": 12e3, "n": "aGk=", "o": "2024-01-01T00:00:00Z"})
    );
}

#[test]
fn anchors_and_merges_work() {
    let text = "base: &b {x: 1, y: 2}\nother: {<<: *b, y: 3}\nsame: *b\n";
    let expected = json!({"base": {"x": 1, "y": 2}, "other": {"x": 1, "y": 3}, "same": {"x": 1, "y": 2}});
    assert_eq!(yaml(text), [(1, expected)]);
}

#[test]
fn json_values_may_follow_each_other() {
    let text = "\u{feff}\n{\"a\": 1}\n\n{\"b\":\n 2} null\n";
    assert_eq!(objects("f.JSON", text), [(2, json!({"a": 1})), (4, json!({"b": 2}))]);
    assert!(objects("f.json", " ").is_empty());
}

#[test]
fn a_key_that_stands_twice_is_an_error_with_its_line() {
    assert!(error("f.yaml", "a: 1\nb:\n  c: 1\n  c: 2\n").starts_with("f.yaml:4: "));
    let json = error("f.json", "{\"a\": 1,\n\"a\": 2}");
    assert!(json.starts_with("f.json:2: ") && json.contains("twice"), "{json}");
}

#[test]
fn what_is_no_yaml_or_json_is_an_error_and_the_rest_is_used() {
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
    let loaded = load_files(&[
        ("a.yaml", "a: b: c\n"),
        ("b.yaml", namespace),
        ("c.json", "{\n]"),
        ("d.yaml", "{{ tpl }}"),
    ]);
    assert!(loaded.cluster.namespaces.contains_key("a"));
    assert_eq!(loaded.unreadable_files, ["a.yaml", "c.json", "d.yaml"]);
    assert_problem(&loaded, Severity::Error, "a.yaml", "a.yaml:1");
    assert_problem(&loaded, Severity::Error, "c.json", "c.json:2");
    let mut loaded = load_sources(&[SourceFile { path: "x.yaml", content: b"a\n\xff" }], &Options::default());
    assert!(loaded.problems.remove(0).to_string().starts_with("x.yaml:2: x.yaml: is not UTF-8"));
}

#[test]
fn t22_bombs_and_depths_are_refused() {
    let mut bomb = vec!["a0: &a0 [x, x, x, x, x, x, x, x, x, x]".to_owned()];
    for i in 1..20 {
        let before = format!("*a{}", i - 1);
        bomb.push(format!("a{i}: &a{i} [{}]", [before.as_str(); 10].join(", ")));
    }
    assert!(error("f.yaml", &bomb.join("\n")).contains("mend it"));
    let many = format!("a: &a [{}]\nb: [{}]\n", "x, ".repeat(1_000), "*a, ".repeat(5_000));
    assert!(error("f.yaml", &many).contains("mend it"));
    let itself = "a: &a [*a]\n";
    assert!(error("f.yaml", itself).contains("mend it"));
    for deep in ["[".repeat(100_000), "{a: ".repeat(100_000), "- ".repeat(100_000), "? ".repeat(100_000)] {
        assert!(error("f.yaml", &deep).starts_with("f.yaml"));
        assert!(error("f.json", &deep).starts_with("f.json"));
    }
    let long = vec![b' '; MAX_FILE_BYTES + 1];
    let refused = parse_file(&SourceFile { path: "f.yaml", content: &long }).expect_err("too large");
    assert!(refused.message.contains("larger"));
}

#[test]
fn t22_an_error_message_is_safe_and_short() {
    let text = format!("{}: a: b: \u{202e}", "\u{202e}x".repeat(10_000));
    let message = error("f\u{202e}.yaml", &text);
    assert!(!message.contains('\u{202e}') && message.len() < 5_000, "{message}");
}

/// Words that steer random text towards the fields that are read.
fn word() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "kind: NetworkPolicy",
        "kind: Pod",
        "kind: Deployment",
        "kind: List",
        "items:",
        "apiVersion: v1",
        "metadata:",
        "name: a",
        "namespace: b",
        "labels:",
        "spec:",
        "podSelector:",
        "matchLabels:",
        "matchExpressions:",
        "operator: In",
        "values:",
        "ingress:",
        "egress:",
        "from:",
        "ports:",
        "port: 80",
        "endPort: -1",
        "ipBlock:",
        "cidr: 10.0.0.0/8",
        "except:",
        "status:",
        "podIPs:",
        "ip: 10.0.0.1",
        "replicas: 3",
        "template:",
        "- ",
        "---",
        "null",
        "{}",
        "[]",
        "\"x\"",
        "&a",
        "*a",
        "<<: *a",
        "policyTypes:",
        "\u{1b}",
        "é",
        "99999999999999999999",
        "1e999",
        "ownerReferences:",
        "hostNetwork: yes",
    ])
    .prop_map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn t22_no_bytes_panic(content in prop::collection::vec(any::<u8>(), 0..200)) {
        for path in ["f.yaml", "f.json"] {
            let _ = load_sources(&[SourceFile { path, content: &content }], &Options::default());
        }
    }

    #[test]
    fn t22_no_manifest_panics(lines in prop::collection::vec((0_usize..5, word()), 0..40)) {
        let lines = lines.iter().map(|(indent, word)| "  ".repeat(*indent) + word + "\n");
        let text = lines.collect::<String>();
        let _ = load_sources(&[SourceFile { path: "f.yaml", content: text.as_bytes() }], &Options::default());
    }
}
