//! What `deploy/` and `docs/operations.md` say against what the agent is: names of metrics, and flags.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use portcullis_agent::bpf::figures::{Counted, Wanting};
use portcullis_agent::metrics::{Fill, Metrics, PolicyLabels, Readings, RulePackets};
use portcullis_common::event::{Direction, Outcome, Reason};
use portcullis_common::wire::Stats;
use portcullis_policy::convert::{Report, host_policy};
use portcullis_policy::manifest::{SourceFile, parse_file};
use portcullis_policy::model::{Problem, Severity};
use serde_json::{Value, json};

const PREFIX: &str = "portcullis_";

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).unwrap()
}

/// Everything counted once, so that every metric has a sample.
fn samples() -> String {
    let metrics = Metrics::new("6.18".to_owned(), "tcx".to_owned(), PolicyLabels::On);
    metrics.programmed(Duration::from_millis(1));
    let readings = Readings {
        verdicts: Some(vec![Counted {
            direction: Direction::Egress,
            outcome: Outcome::Deny,
            reason: Reason::Isolated,
            stats: Stats { packets: 1, bytes: 1 },
        }]),
        wanting: Some(Wanting { events_lost: 1, flows_refused: 1 }),
        rules: Some(vec![RulePackets {
            direction: "egress",
            namespace: "a".to_owned(),
            policy: "b".to_owned(),
            rule: None,
            packets: 1,
        }]),
        fills: vec![Fill { map: "rules", entries: 1, capacity: 1 }],
        flows: Some(1),
        flows_capacity: Some(1),
        watches: vec![("Pod", Duration::from_secs(1))],
        ..Readings::default()
    };
    metrics.encode(&readings).unwrap()
}

/// The names that a scrape gives.
fn served() -> BTreeSet<String> {
    let samples = samples();
    let names = samples.lines().filter(|line| !line.starts_with('#'));
    names.map(|line| line.split(['{', ' ']).next().unwrap().to_owned()).collect()
}

/// Words of a text that begin as our metrics do.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with(PREFIX) && word.len() > PREFIX.len()).map(str::to_owned).collect()
}

/// Strings below the keys, anywhere.
fn below(value: &Value, keys: &[&str], found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                if let Value::String(text) = value
                    && keys.contains(&key.as_str())
                {
                    found.push(text.clone());
                } else {
                    below(value, keys, found);
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|value| below(value, keys, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn the_dashboard_asks_for_metrics_that_are_served() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/portcullis.json")).unwrap();
    let mut asked = Vec::new();
    below(&dashboard, &["expr", "query"], &mut asked);
    let asked = named(&asked.join("\n"));
    assert!(asked.len() > 10, "{asked:?}");
    let served = served();
    let unknown: Vec<_> = asked.difference(&served).collect();
    assert!(unknown.is_empty(), "no metric of ours: {unknown:?}");
}

#[test]
fn operations_tell_of_every_metric_and_of_no_other() {
    // A histogram is told by its base name.
    let base = |name: &str| {
        let parts = ["_bucket", "_count", "_sum"];
        parts.iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name).to_owned()
    };
    let served: BTreeSet<String> = served().iter().map(|name| base(name)).collect();
    for document in ["docs/operations.md", "docs/metrics.md"] {
        let told: BTreeSet<String> =
            named(&read(document)).into_iter().filter(|name| !name.starts_with("portcullis_agent")).collect();
        assert_eq!(told, served, "{document}");
    }
}

/// `--word` wherever it begins one.
fn flags(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '-'));
    let flag = |word: &&str| word.starts_with("--") && word.len() > 2;
    words.filter(flag).map(|word| word.trim_end_matches('-').to_owned()).collect()
}

fn portcullis(words: &[&str]) -> (bool, String) {
    let ran = Command::new(env!("CARGO_BIN_EXE_portcullis")).args(words).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    (ran.status.success(), said)
}

/// The flags of `portcullis agent`, by its own help: a line of it begins with the flag.
fn flags_of_the_agent() -> BTreeSet<String> {
    let (_, help) = portcullis(&["agent", "--help"]);
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let mut found: BTreeSet<String> = lines.filter_map(|line| flags(line).into_iter().next()).collect();
    found.retain(|flag| !matches!(flag.as_str(), "--help" | "--version" | "--no-color"));
    found
}

#[test]
fn operations_tell_of_every_flag_of_the_agent_and_of_no_other() {
    let text = read("docs/operations.md");
    let section = text.split("## Flags of the agent").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `--"));
    let told: BTreeSet<String> = rows.filter_map(|line| flags(line).into_iter().next()).collect();
    assert_eq!(told, flags_of_the_agent());
}

/// The arguments of a container, as the manifest lists them.
fn arguments(manifest: &str, container: &str) -> Vec<String> {
    let text = read(manifest);
    let name = format!("- name: {container}");
    let inside = text.lines().skip_while(|line| line.trim() != name);
    let after = inside.skip_while(|line| line.trim() != "args:").skip(1);
    let items = after.map_while(|line| line.trim().strip_prefix("- "));
    items.map(|item| item.trim_matches('"').to_owned()).collect()
}

#[test]
fn the_manifests_start_the_agent_with_flags_that_it_takes() {
    let arguments = arguments("deploy/manifests/portcullis.yaml", "agent");
    assert_eq!(arguments.first().map(String::as_str), Some("agent"), "{arguments:?}");
    assert!(arguments.contains(&"--source=kube".to_owned()), "{arguments:?}");
    let words: Vec<&str> = arguments.iter().map(String::as_str).chain(["--print-config"]).collect();
    let (fine, said) = portcullis(&words);
    assert!(fine, "{said}");
    for line in ["mode: enforce", "healthListen: \"127.0.0.1:9869\""] {
        assert!(said.lines().any(|found| found.starts_with(line)), "{line} is not in {said}");
    }
}

#[test]
fn the_manifests_install_the_plugin_as_the_agent_keeps_it_and_the_cleanup_takes_it() {
    let agent = arguments("deploy/manifests/portcullis.yaml", "agent");
    let install = arguments("deploy/manifests/portcullis.yaml", "cni");
    // The agent writes the configuration anew: what it says has to be the same.
    let settings = |words: &[String]| -> BTreeSet<String> {
        let of_plugin = |word: &&String| word.starts_with("--cni-timeout") || word.starts_with("--cni-when");
        words.iter().filter(of_plugin).cloned().collect()
    };
    assert_eq!(settings(&install).len(), 2, "{install:?}");
    assert_eq!(settings(&install), settings(&agent));
    let conf = |words: &[String], flag: &str| {
        words.iter().find_map(|word| word.strip_prefix(flag).map(str::to_owned)).unwrap()
    };
    assert_eq!(conf(&agent, "--cni-conf-dir="), conf(&install, "--conf-dir="));
    // What the containers do, in directories of ours.
    let dir = std::env::temp_dir().join(format!("portcullis-deploy-{}", std::process::id()));
    for part in ["host/cni/bin", "host/cni/net.d", "run/portcullis"] {
        fs::create_dir_all(dir.join(part)).unwrap();
    }
    let primary = r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"ptp"}]}"#;
    fs::write(dir.join("host/cni/net.d/10-a.conflist"), primary).unwrap();
    let here = |words: &[String]| -> Vec<String> {
        words.iter().map(|word| word.replace("=/", &format!("={}/", dir.display()))).collect()
    };
    let run = |words: &[String], more: &[&str]| {
        let words = here(words);
        portcullis(&words.iter().map(String::as_str).chain(more.iter().copied()).collect::<Vec<_>>())
    };
    let (fine, said) = run(&install, &["--plugin", env!("CARGO_BIN_EXE_portcullis-cni")]);
    let installed = fs::read_to_string(dir.join("host/cni/net.d/00-portcullis.conflist"));
    let (taken, told) = run(&arguments("deploy/cleanup.yaml", "cni"), &[]);
    let left: Vec<_> = fs::read_dir(dir.join("host/cni/bin")).unwrap().collect();
    let conf_left = fs::read_dir(dir.join("host/cni/net.d")).unwrap().count();
    fs::remove_dir_all(&dir).unwrap();
    assert!(fine, "{said}");
    let run_dir = format!("\"runDir\":\"{}/run/portcullis\"", dir.display());
    assert!(installed.unwrap().contains(&run_dir), "{said}");
    assert!(taken, "{told}");
    assert!(left.is_empty() && conf_left == 1, "{told}");
}

/// An object that has every field of a schema.
fn everything(name: &str, schema: &Value) -> Value {
    if let Some(fields) = schema["properties"].as_object() {
        return fields.iter().map(|(name, schema)| (name.clone(), everything(name, schema))).collect();
    }
    if let Some(first) = schema["enum"].as_array().and_then(|all| all.first()) {
        return first.clone();
    }
    match (schema["type"].as_str(), name) {
        (Some("array"), "except") => json!([]),
        (Some("array"), _) => json!([everything(name, &schema["items"])]),
        (Some("integer"), _) => json!(65_535),
        (Some("object"), _) => json!({"a": everything("", &schema["additionalProperties"])}),
        (None, _) => json!(80),
        (Some(_), "cidr") => json!("10.0.0.0/8"),
        (Some(_), _) => json!("a"),
    }
}

/// The schema of HostPolicy as the chart defines it, and an object that has every field of it.
fn definition_and_example() -> (Value, Value) {
    let content = read("deploy/chart/portcullis/crds/hostpolicies.portcullis.dev.yaml");
    let parsed = parse_file(&SourceFile { path: "crd.yaml", content: content.as_bytes() }).unwrap();
    let definition = &parsed.objects[0].value;
    let version = &definition["spec"]["versions"][0];
    let api_version =
        [&definition["spec"]["group"], &version["name"]].map(|text| text.as_str().unwrap()).join("/");
    assert_eq!(api_version, "portcullis.dev/v1alpha1");
    let schema = &version["schema"]["openAPIV3Schema"];
    let mut object = everything("", schema);
    assert_eq!(object["spec"]["ingress"][0]["ports"][0]["endPort"], 65_535, "{object}");
    // What only other objects may have beside it.
    object["metadata"] = json!({"name": "all"});
    object["spec"]["policyTypes"] = json!(["Ingress", "Egress"]);
    object["spec"]["subject"].as_object_mut().unwrap().remove("pods");
    for peers in ["/spec/ingress/0/from", "/spec/egress/0/to"] {
        let peers = object.pointer_mut(peers).unwrap().as_array_mut().unwrap();
        let all = peers.remove(0);
        let kinds = [&["podSelector", "namespaceSelector"][..], &["ipBlock"], &["nodes"]];
        peers.extend(
            kinds.map(|kind| kind.iter().map(|name| ((*name).to_owned(), all[*name].clone())).collect()),
        );
        assert!(
            peers.iter().all(|peer: &Value| peer.as_object().unwrap().values().all(|one| !one.is_null()))
        );
    }
    (schema.clone(), object)
}

/// What the agent says about it.
fn problems(object: &Value) -> Vec<Problem> {
    let mut report = Report::new("HostPolicy all", None);
    drop(host_policy(object, &mut report));
    report.into_problems()
}

#[test]
fn the_agent_knows_every_field_that_the_definition_of_host_policies_has() {
    let (_, object) = definition_and_example();
    assert_eq!(problems(&object), [], "{object}");
}

/// Every mapping with fields of its own in `object`: where it is, and what its schema is.
fn mappings<'a>(at: &str, object: &Value, schema: &'a Value, found: &mut Vec<(String, &'a Value)>) {
    if let Some(entries) = object.as_array() {
        for (index, entry) in entries.iter().enumerate() {
            mappings(&format!("{at}/{index}"), entry, &schema["items"], found);
        }
    }
    let (Some(fields), Some(known)) = (object.as_object(), schema["properties"].as_object()) else { return };
    found.push((at.to_owned(), schema));
    for (name, value) in fields {
        mappings(&format!("{at}/{name}"), value, &known[name], found);
    }
}

#[test]
fn the_server_keeps_an_unknown_field_wherever_the_agent_closes_on_it() {
    let (schema, mut object) = definition_and_example();
    let mut places = Vec::new();
    mappings("/spec", &object["spec"], &schema["properties"]["spec"], &mut places);
    // The subject's other kind.
    let pods = &schema["properties"]["spec"]["properties"]["subject"]["properties"]["pods"];
    let (with_nodes, subject) = (object.clone(), json!({"pods": everything("", pods)}));
    object["spec"]["subject"] = subject.clone();
    let mut of_pods = Vec::new();
    mappings("/spec/subject/pods", &subject["pods"], pods, &mut of_pods);
    assert!(places.len() > 20 && of_pods.len() == 5, "{places:?} {of_pods:?}");
    let all =
        places.iter().map(|place| (&with_nodes, place)).chain(of_pods.iter().map(|place| (&object, place)));
    for (example, (place, schema)) in all {
        // What the server drops the agent never sees: `form` for `from` would let everybody in.
        assert_eq!(schema["x-kubernetes-preserve-unknown-fields"], true, "{place}");
        let mut odd = example.clone();
        odd.pointer_mut(place).unwrap()["form"] = json!([]);
        let said = problems(&odd);
        let [problem] = said.as_slice() else { panic!("{place}: {said:?}") };
        assert!(
            problem.severity == Severity::Error && problem.field.rsplit('.').next() == Some("form"),
            "{place}: {problem:?}"
        );
    }
}

#[test]
fn the_server_asks_for_the_values_that_the_agent_asks_for() {
    let (schema, mut object) = definition_and_example();
    let mut places = Vec::new();
    mappings("/spec", &object["spec"], &schema["properties"]["spec"], &mut places);
    let requirements: Vec<&Value> = places
        .iter()
        .filter(|(place, _)| place.contains("/matchExpressions/"))
        .map(|(_, schema)| *schema)
        .collect();
    assert_eq!(requirements.len(), 7);
    let selector = "/spec/subject/nodes/nodeSelector/matchExpressions/0";
    for schema in requirements {
        let branches = schema["anyOf"].as_array().unwrap();
        let mut operators = Vec::new();
        for branch in branches {
            let values = &branch["properties"]["values"];
            let is_needed = values["minItems"] == 1 && branch["required"] == json!(["values"]);
            assert!(is_needed || values["maxItems"] == 0, "{branch}");
            for operator in branch["properties"]["operator"]["enum"].as_array().unwrap() {
                operators.push(operator.clone());
                for (values, is_fine) in [(json!([]), !is_needed), (json!(["a"]), is_needed)] {
                    let requirement = json!({"key": "a", "operator": operator, "values": values});
                    *object.pointer_mut(selector).unwrap() = requirement.clone();
                    assert_eq!(problems(&object).is_empty(), is_fine, "{requirement}");
                }
            }
        }
        assert_eq!(&operators, schema["properties"]["operator"]["enum"].as_array().unwrap());
    }
}
