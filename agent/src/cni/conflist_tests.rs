#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::*;

pub(crate) fn settings() -> Settings {
    Settings {
        run_dir: "/run/portcullis".into(),
        timeout: Duration::from_secs(10),
        when_unavailable: WhenUnavailable::Deny,
    }
}

fn list(text: &str) -> Result<Option<String>, Unusable> {
    chained(text, Shape::List, &settings())
}

const FLANNEL: &str = r#"{
  "name": "cbr0", "cniVersion": "0.3.1", "disableCheck": true, "x-later": {"b": 1.0, "a": 2},
  "plugins": [
    {"type": "flannel", "delegate": {"hairpinMode": true, "mtu": 1e3}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}"#;

#[test]
fn our_plugin_comes_last_and_everything_else_stays_as_written() {
    let ours = list(FLANNEL).unwrap().unwrap();
    for kept in [
        r#""x-later": {"b": 1.0, "a": 2}"#,
        r#"{"type": "flannel", "delegate": {"hairpinMode": true, "mtu": 1e3}}"#,
        r#"{"type": "portmap", "capabilities": {"portMappings": true}}"#,
    ] {
        assert!(ours.contains(kept), "{kept} is not in {ours}");
    }
    let read: Value = serde_json::from_str(&ours).unwrap();
    assert_eq!((&read["name"], &read["cniVersion"]), (&json!("cbr0"), &json!("0.3.1")));
    assert_eq!(read["disableCheck"], json!(true));
    let types: Vec<&str> =
        read["plugins"].as_array().unwrap().iter().map(|one| one["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["flannel", "portmap", "portcullis-cni"]);
    assert_eq!(
        read["plugins"][2],
        json!({"type": "portcullis-cni", "runDir": "/run/portcullis", "timeoutSeconds": 10,
               "whenUnavailable": "deny"})
    );
    assert_eq!(list(FLANNEL).unwrap().unwrap(), ours, "the same again");
}

#[test]
fn a_single_plugin_becomes_a_list_of_two() {
    let single = r#"{"cniVersion": "0.4.0", "name": "pods", "type": "bridge", "mtu": 1500}
"#;
    let ours = chained(single, Shape::Single, &settings()).unwrap().unwrap();
    let read: Value = serde_json::from_str(&ours).unwrap();
    assert_eq!((&read["name"], &read["cniVersion"]), (&json!("pods"), &json!("0.4.0")));
    assert_eq!(read["plugins"][0], serde_json::from_str::<Value>(single).unwrap());
    assert_eq!(read["plugins"][1]["type"], json!("portcullis-cni"));
}

#[test]
fn what_the_runtime_chooses_among_versions_has_to_be_spoken() {
    let with = |versions: &str| list(&format!(r#"{{{versions},"name":"n","plugins":[{{"type":"ptp"}}]}}"#));
    for good in [r#""cniVersion":"1.1.0""#, r#""cniVersion":"0.3.0","cniVersions":["0.3.0","1.0.0"]"#] {
        assert!(with(good).unwrap().is_some(), "{good}");
    }
    for (bad, version) in [
        (r#""cniVersion":"0.2.0""#, "0.2.0"),
        (r#""cniVersion":"9.0.0""#, "9.0.0"),
        (r#""cniVersion":1"#, ""),
    ] {
        assert_eq!(with(bad).unwrap_err(), Unusable::Version(version.to_owned()), "{bad}");
    }
}

#[test]
fn what_chains_us_already_needs_no_other() {
    let by_hand = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"},{"type":"portcullis-cni"}]}"#;
    assert_eq!(list(by_hand), Ok(None));
}

#[test]
fn what_is_broken_is_not_followed() {
    for (text, why) in [
        (r#"{"cniVersion":"1.0.0","plugins":[{"type":"ptp"}]}"#, "name"),
        (r#"{"cniVersion":"1.0.0","name":"","plugins":[{"type":"ptp"}]}"#, "name"),
        (r#"{"cniVersion":"1.0.0","name":"n"}"#, "plugins"),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, "plugins"),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":{}}"#, "plugins"),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":[1]}"#, "plugins"),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{}]}"#, "type of a plugin"),
    ] {
        assert_eq!(list(text).unwrap_err(), Unusable::Key(why), "{text}");
    }
    for text in ["", "{", "[]", r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"}]"#] {
        assert!(matches!(list(text).unwrap_err(), Unusable::NoObject(_)), "{text}");
    }
    let no_type = r#"{"cniVersion":"1.0.0","name":"n"}"#;
    assert_eq!(chained(no_type, Shape::Single, &settings()).unwrap_err(), Unusable::Key("type of a plugin"));
}
