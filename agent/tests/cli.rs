//! Every verb's way to fail: its exit status, its remedy on stderr, and nothing but a result on stdout.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::process::Output;

use common::{Sandbox, stderr, stdout};

const PODS: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, status: {podIP: 10.0.0.2}}
";

const DENY: &str = "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny, namespace: shop}, spec: {podSelector: {}}}
";

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("good/pods.yaml", PODS);
    sandbox.write("good/deny.yaml", DENY);
    sandbox
}

/// It failed with this status, said these words on stderr, and nothing on stdout.
fn assert_fails(output: &Output, status: i32, words: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(status), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is missing in: {said}");
    }
    assert!(said.contains("error: "), "{said}");
    assert_eq!(stdout(output), "", "a failure has no result");
}

/// The verbs that ask an agent, each with what it asks.
const ASKING: [&[&str]; 9] = [
    &["explain", "shop/web", "shop/db", "TCP/80"],
    &["matrix", "TCP/80"],
    &["matrix", "TCP/80", "-o", "json"],
    &["observe"],
    &["status"],
    &["status", "-o", "json"],
    &["endpoints"],
    &["policies"],
    &["wait", "policy", "shop/db"],
];

#[test]
fn without_an_agent_the_verbs_say_how_to_get_one() {
    let sandbox = sandbox();
    let stale = sandbox.path().join("stale");
    fs::create_dir(&stale).unwrap();
    drop(UnixListener::bind(stale.join("agent.sock")).unwrap());
    for run_dir in ["missing", "stale", "good/pods.yaml"] {
        for words in ASKING {
            let output = sandbox.run(&[words, &["--run-dir", run_dir]].concat());
            assert_fails(&output, 3, &["no agent answers on", "portcullis agent", "--source DIR"]);
        }
    }
}

#[test]
fn without_rights_the_verbs_say_that_root_is_needed() {
    let sandbox = sandbox();
    let shut = sandbox.path().join("shut");
    fs::create_dir(&shut).unwrap();
    let _listener = UnixListener::bind(shut.join("agent.sock")).unwrap();
    fs::set_permissions(&shut, fs::Permissions::from_mode(0o000)).unwrap();
    for words in ASKING {
        let output = sandbox.run_as_nobody(&[words, &["--run-dir", "shut"]].concat());
        assert_fails(&output, 3, &["no permission", "run as root"]);
    }
    fs::set_permissions(&shut, fs::Permissions::from_mode(0o700)).unwrap();

    assert_fails(&sandbox.run_as_nobody(&["cleanup"]), 3, &["needs root", "run as root"]);
    let kernel = sandbox.run_as_nobody(&["matrix", "TCP/80", "--kernel", "--source", "good"]);
    assert_fails(&kernel, 3, &["do without --kernel", "run as root"]);
    let agent =
        sandbox.run_as_nobody(&["agent", "--source", "good", "--run-dir", "/run/portcullis-cli-test"]);
    let said = stderr(&agent);
    assert_eq!(agent.status.code(), Some(3), "{said}");
    assert!(
        said.contains("run as root") && !std::path::Path::new("/run/portcullis-cli-test").exists(),
        "{said}"
    );

    let preflight = sandbox.run_as_nobody(&["preflight", "-o", "json"]);
    assert_eq!(preflight.status.code(), Some(3));
    let result: serde_json::Value = serde_json::from_slice(&preflight.stdout).unwrap();
    assert_eq!(result["fit"], false);
    let checks = result["checks"].as_array().unwrap();
    let capabilities = checks.iter().find(|check| check["name"] == "capabilities").unwrap();
    assert_eq!(capabilities["state"], "failed");
    assert!(capabilities["remedy"].as_str().unwrap().contains("run as root"));
}

#[test]
fn a_directory_that_cannot_be_read_is_named() {
    let sandbox = sandbox();
    sandbox.write("shut/pods.yaml", PODS);
    fs::set_permissions(sandbox.path().join("shut"), fs::Permissions::from_mode(0o000)).unwrap();
    for (dir, words) in
        [("missing", "cannot be read"), ("good/pods.yaml", "is not a directory"), ("shut", "cannot be read")]
    {
        for verb in [
            &["explain", "shop/web", "shop/db", "TCP/80", "--source", dir][..],
            &["matrix", "TCP/80", "--source", dir],
            &["matrix", "TCP/80", "-o", "json", "--source", dir],
            &["policies", "lint", dir],
            &["policies", "lint", "-o", "json", dir],
            &["agent", "--run-dir", "run", "--source", dir],
        ] {
            assert_fails(&sandbox.run_as_nobody(verb), 3, &[dir, words, "name"]);
        }
    }
    fs::set_permissions(sandbox.path().join("shut"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn an_empty_directory_has_no_pods_and_nothing_wrong() {
    let sandbox = sandbox();
    fs::create_dir(sandbox.path().join("empty")).unwrap();
    assert_fails(
        &sandbox.run(&["matrix", "TCP/80", "--source", "empty"]),
        2,
        &["there is no pod", "name a source"],
    );
    let explain = sandbox.run(&["explain", "shop/web", "shop/db", "TCP/80", "--source", "empty"]);
    assert_fails(&explain, 2, &["no pod shop/web"]);
    let lint = sandbox.run(&["policies", "lint", "empty"]);
    assert_eq!((lint.status.code(), &*stdout(&lint)), (Some(0), "nothing found\n"));
}

#[test]
fn a_broken_file_is_told_with_its_line_and_the_rest_is_used() {
    let sandbox = sandbox();
    sandbox.write("good/broken.yaml", "a: 1\nb: [\n");
    let matrix = sandbox.run(&["matrix", "TCP/80", "--source", "good", "-o", "json"]);
    assert_eq!(matrix.status.code(), Some(0));
    assert!(stderr(&matrix).contains("error: broken.yaml:"), "{}", stderr(&matrix));
    let tables: serde_json::Value = serde_json::from_slice(&matrix.stdout).unwrap();
    assert_eq!(tables[0]["rows"], serde_json::json!(["-X", "X-"]));

    let lint = sandbox.run(&["policies", "lint", "good", "-o", "json"]);
    assert_eq!((lint.status.code(), &*stderr(&lint)), (Some(1), ""));
    let found: serde_json::Value = serde_json::from_slice(&lint.stdout).unwrap();
    assert_eq!((&found["errors"], &found["findings"][0]["file"]), (&1.into(), &"good/broken.yaml".into()));
    assert!(found["findings"][0]["line"].as_u64().is_some_and(|line| line > 1), "{found}");
    assert!(found["findings"][0]["remedy"].is_string());
}

#[test]
fn unknown_ends_are_usage_errors_with_suggestions() {
    let sandbox = sandbox();
    let explain = |from, to| sandbox.run(&["explain", from, to, "TCP/80", "--source", "good"]);
    assert_fails(&explain("shop/wbe", "shop/db"), 2, &["no pod shop/wbe", "there is shop/db, shop/web"]);
    assert_fails(&explain("shop/web", "nonsense"), 2, &["`nonsense`", "NAMESPACE/POD", "write one of these"]);
    assert_fails(&explain("shop/web", "node/other"), 2, &["no Node other"]);
    assert_fails(&explain("shop/web", "node"), 2, &["--node-name"]);
    assert_fails(&explain("shop/web", "fd00::1"), 2, &["--family"]);
}

#[test]
fn ports_are_checked_and_lower_case_is_read() {
    let sandbox = sandbox();
    for bad in ["TCP/0", "TCP/99999", "FOO/1", "TCP", "80", "TCP/http", "ICMP/1", "TCP/80/1", ""] {
        for verb in [&["matrix", bad, "--source", "good"][..], &["explain", "shop/web", "shop/db", bad]] {
            assert_fails(&sandbox.run(verb), 2, &["PROTO/PORT", "TCP/80"]);
        }
    }
    let lower = sandbox.run(&["matrix", "tcp/80", "--source", "good"]);
    let upper = sandbox.run(&["matrix", "TCP/80", "--source", "good"]);
    assert_eq!((lower.status.code(), stdout(&lower)), (Some(0), stdout(&upper)));
}

const VERBS: [&[&str]; 13] = [
    &["agent"],
    &["preflight"],
    &["explain"],
    &["matrix"],
    &["observe"],
    &["status"],
    &["endpoints"],
    &["policies"],
    &["policies", "lint"],
    &["cleanup"],
    &["wait", "policy"],
    &["completions"],
    &["man"],
];

#[test]
fn a_flag_or_word_that_is_not_known_is_a_usage_error() {
    let sandbox = sandbox();
    for verb in VERBS {
        let output = sandbox.run(&[verb, &["--nonsense"]].concat());
        assert_fails(&output, 2, &["--nonsense", "Usage: portcullis"]);
    }
    for words in [
        &["explain", "shop/web", "shop/db", "TCP/80", "-o", "xml"][..],
        &["matrix", "-o", "xml"],
        &["observe", "-o", "yaml"],
        &["policies", "lint", "good", "-o", "xml"],
        &["preflight", "-o", "xml"],
        &["preflight", "--hook", "xdp"],
        &["matrix", "--family", "ipx"],
        &["agent", "--source", "good", "--hook", "xdp"],
        &["agent", "--source", "good", "--mode", "dry-run"],
        &["completions", "tcsh"],
    ] {
        assert_fails(&sandbox.run(words), 2, &["possible values"]);
    }
    assert_fails(&sandbox.run(&["nonsense"]), 2, &["nonsense", "Usage: portcullis"]);
    assert_fails(&sandbox.run(&["policies", "nonsense"]), 2, &["nonsense"]);
    assert_fails(&sandbox.run(&["agent"]), 2, &["--source"]);
    assert_fails(&sandbox.run(&["policies", "lint"]), 2, &["DIR"]);
    assert_fails(&sandbox.run(&["wait", "policy", "db"]), 2, &["NAMESPACE/NAME"]);
    assert_fails(&sandbox.run(&["wait", "policy", "shop/db", "--timeout", "1h"]), 2, &["up to 60m"]);
    assert_fails(
        &sandbox.run(&["agent", "--source", "good", "--flows-per-endpoint", "1"]),
        2,
        &["16..=16777216"],
    );
    assert_fails(&sandbox.run(&["matrix", "--pod-cidr", "x", "--source", "good"]), 2, &["--pod-cidr"]);
}

#[test]
fn what_this_version_does_not_have_is_said() {
    let sandbox = sandbox();
    assert_fails(&sandbox.run(&["agent", "--source", "kube"]), 2, &["--node-name", "PORTCULLIS_NODE_NAME"]);
    for verb in [&["matrix", "TCP/80"][..], &["explain", "shop/web", "shop/db", "TCP/80"]] {
        let kube = sandbox.run(&[verb, &["--source", "kube"]].concat());
        assert_fails(&kube, 2, &["ask the agent", "name a directory"]);
    }
    sandbox.write(
        "cluster/deny.yaml",
        "{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: deny}}",
    );
    for verb in [&["agent"][..], &["matrix", "TCP/80"]] {
        let cluster = sandbox.run(&[verb, &["--source", "cluster"]].concat());
        assert_fails(&cluster, 3, &["ClusterNetworkPolicy", "take out", "deny (deny.yaml:1)"]);
    }
    let lint = sandbox.run(&["policies", "lint", "cluster"]);
    assert_eq!(lint.status.code(), Some(1));
    assert!(
        stdout(&lint).starts_with("cluster/deny.yaml:1: error: ClusterNetworkPolicy deny"),
        "{}",
        stdout(&lint)
    );
}

#[test]
fn a_configuration_is_weaker_than_the_environment_and_that_than_a_flag() {
    let sandbox = sandbox();
    sandbox.write("agent.yaml", "source: from-file\nrunDir: from-file\nhook: clsact\nnodeName: from-file\n");
    let shown = |more: &[&str]| {
        let words = [&["agent", "--print-config"], more].concat();
        let output = sandbox
            .command("portcullis")
            .args(words)
            .env("PORTCULLIS_CONFIG", sandbox.at("agent.yaml"))
            .env("PORTCULLIS_RUN_DIR", "from-environment")
            .env("PORTCULLIS_NODE_NAME", "from-environment")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let lines: Vec<String> = stdout(&output)
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        lines
    };
    let lines = shown(&["--node-name", "from-flag"]);
    for line in [
        "bpffs: /sys/fs/bpf # default",
        "hook: clsact # file",
        "nodeName: from-flag # flag",
        "# podCidr: # not set",
        "runDir: from-environment # environment",
        "source: from-file # file",
    ] {
        assert!(lines.iter().any(|found| found == line), "{line:?} is missing in {lines:#?}");
    }
}

#[test]
fn a_bad_configuration_is_told_with_file_line_and_key() {
    let sandbox = sandbox();
    for (file, words) in [
        ("source: good\nhok: tcx\n", &["agent.yaml:2: hok is unknown", "mend its spelling"][..]),
        ("source: good\nhook: true\n", &["agent.yaml:2: hook is a boolean", "write a string"]),
        ("flowsPerEndpoint: 3\n", &["agent.yaml:1: flowsPerEndpoint", "16..=16777216"]),
        ("a: [\n", &["agent.yaml", "is no configuration"]),
    ] {
        sandbox.write("agent.yaml", file);
        assert_fails(&sandbox.run(&["agent", "--config", "agent.yaml"]), 2, words);
    }
    sandbox.write("agent.yaml", "hook: tcx\n");
    assert_fails(&sandbox.run(&["agent", "--config", "agent.yaml"]), 2, &["--source"]);
    assert_fails(
        &sandbox.run(&["agent", "--config", "missing.yaml"]),
        3,
        &["missing.yaml", "cannot be read"],
    );
}

#[test]
fn completions_and_pages_are_made() {
    let sandbox = sandbox();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = sandbox.run(&["completions", shell]);
        assert_eq!((script.status.code(), &*stderr(&script)), (Some(0), ""));
        assert!(stdout(&script).contains("preflight"), "{shell}");
    }
    let page = sandbox.run(&["man", "explain"]);
    assert!(stdout(&page).contains(".TH portcullis-explain 1"), "{}", stdout(&page));
    assert_fails(&sandbox.run(&["man", "nonsense"]), 2, &["nonsense", "explain"]);
    assert_eq!(sandbox.run(&["man", "--out", "pages"]).status.code(), Some(0));
    for verb in VERBS {
        let page = sandbox.path().join(format!("pages/portcullis-{}.1", verb.join("-")));
        assert!(fs::read_to_string(&page).unwrap().contains(".SH OPTIONS"), "{}", page.display());
    }
    assert_fails(&sandbox.run(&["man", "--out", "good/pods.yaml"]), 3, &["good/pods.yaml", "--out"]);
}

#[test]
fn every_verb_has_help_with_examples() {
    let sandbox = sandbox();
    for verb in VERBS {
        for flag in ["-h", "--help"] {
            let help = sandbox.run(&[verb, &[flag]].concat());
            assert_eq!((help.status.code(), &*stderr(&help)), (Some(0), ""), "{verb:?}");
            let text = stdout(&help);
            let example = format!("\n  portcullis {}", verb.join(" "));
            assert!(text.contains("Examples:") && text.contains(&example), "{verb:?} {flag}: {text}");
        }
    }
}

#[test]
fn the_cni_plugin_is_put_beside_the_primary_s_and_errors_name_the_place() {
    let sandbox = sandbox();
    let plugin = env!("CARGO_BIN_EXE_portcullis-cni");
    let install = |bin: &str, conf: &str| {
        sandbox.run(&["cni", "install", "--plugin", plugin, "--bin-dir", bin, "--conf-dir", conf])
    };
    assert_fails(&install("nowhere", "nowhere"), 3, &["nowhere/portcullis-cni", "--bin-dir"]);
    sandbox.write("bin/other", "");
    let output = install("bin", "nowhere");
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("--conf-dir"), "{}", stderr(&output));
    // A broken primary is told, and no reason not to start the agent that will follow it once it is mended.
    sandbox.write("conf/10-a.conflist", "{");
    let output = install("bin", "conf");
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("10-a.conflist: is no JSON object"), "{}", stderr(&output));
    sandbox.write("conf/10-a.conflist", r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"ptp"}]}"#);
    assert!(stdout(&install("bin", "conf")).contains("conf/00-portcullis.conflist follows 10-a.conflist"));
    let remove =
        || sandbox.run(&["cni", "remove", "--bin-dir", "bin", "--conf-dir", "conf", "--run-dir", "run"]);
    // A running agent would write ours again.
    sandbox.write("run/other", "");
    let agent = UnixListener::bind(sandbox.path().join("run/agent.sock")).unwrap();
    assert_fails(&remove(), 3, &["run/agent.sock", "stop it first"]);
    assert!(sandbox.path().join("conf/00-portcullis.conflist").exists());
    drop(agent);
    assert_eq!(stdout(&remove()), "took conf/00-portcullis.conflist\ntook bin/portcullis-cni\n");
    assert_eq!(stdout(&remove()), "nothing of ours found\n");
}
