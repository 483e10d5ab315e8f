//! Audit: what only policies in audit mode deny passes, is told and counted under its name, and all else stays as
//! it is. The verdict stays the one of the policies as if all were enforced.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use portcullis_agent::bpf::Pins;
use portcullis_agent::bpf::counters::Hits;
use portcullis_agent::bpf::probe::Private;
use portcullis_agent::world::{AskKernel as _, World as OurWorld};
use portcullis_common::event::{Direction as Way, Outcome as Came};
use portcullis_lab::{Hook, Outcome, ProbeOptions};
use portcullis_oracle::{Verdict, World, generate};
use portcullis_policy::answer::Answers;
use portcullis_policy::desired::{CounterName, RuleSource};
use portcullis_policy::model::{ObjectKey, Protocol};
use portcullis_tests::compare::{cluster_of, compile, parties, traffic_of};
use portcullis_tests::lifecycle::{Life, agent, to_server};
use portcullis_tests::privilege::{is_root, number};
use serde_json::{Value, json};

/// Clusters with policies and namespaces in audit mode; `PORTCULLIS_AUDIT_CLUSTERS` asks for others.
const CLUSTERS: u64 = 300;
const SEED: u64 = 2_000_000;
/// The annotation, as users write it.
const ANNOTATION: &str = "portcullis.dev/mode";
const PING: Duration = Duration::from_secs(5);

/// Three modes by name, in no order that the generator knows.
fn mode_by(name: &str, seed: u64) -> Option<&'static str> {
    let mix = name.bytes().fold(seed.wrapping_mul(0x9e37_79b9), |mix, byte| {
        (mix ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    [None, Some("audit"), Some("audit"), Some("enforce")][(mix >> 17) as usize % 4]
}

fn name_of(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str();
    format!("{}/{}", text("namespace").unwrap_or("default"), text("name").unwrap_or_default())
}

/// Annotates namespaces and policies, in lists too.
fn annotate(object: &mut Value, seed: u64) {
    match object["kind"].as_str() {
        Some("Namespace" | "NetworkPolicy") if object["metadata"].is_object() => {
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            if let Some(mode) = mode_by(&format!("{kind} {}", name_of(object)), seed) {
                object["metadata"]["annotations"] = json!({ANNOTATION: mode});
            }
        }
        Some(_) | None => {
            for item in object["items"].as_array_mut().into_iter().flatten() {
                annotate(item, seed);
            }
        }
    }
}

/// The manifests without the policies that are in audit mode.
fn enforced_only(object: &Value, namespaces: &BTreeMap<String, Option<&'static str>>, seed: u64) -> Value {
    let mut object = object.clone();
    if let Some(items) = object["items"].as_array() {
        let kept = items.iter().filter(|item| !is_audited(item, namespaces, seed));
        let kept = kept.map(|item| enforced_only(item, namespaces, seed)).collect();
        object["items"] = Value::Array(kept);
    }
    object
}

fn is_audited(object: &Value, namespaces: &BTreeMap<String, Option<&'static str>>, seed: u64) -> bool {
    if object["kind"] != "NetworkPolicy" {
        return false;
    }
    let own = mode_by(&format!("NetworkPolicy {}", name_of(object)), seed);
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
    own.or(namespaces.get(namespace).copied().flatten()) == Some("audit")
}

/// The modes of the declared namespaces.
fn namespaces(objects: &[Value], seed: u64, found: &mut BTreeMap<String, Option<&'static str>>) {
    for object in objects {
        if object["kind"] == "Namespace" {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            found.insert(name.to_owned(), mode_by(&format!("Namespace {}", name_of(object)), seed));
        }
        namespaces(object["items"].as_array().map_or(&[], Vec::as_slice), seed, found);
    }
}

#[test]
fn random_clusters_let_pass_what_only_audited_policies_deny() {
    if !is_root("loading programs") {
        return;
    }
    let (clusters, first) = (number("PORTCULLIS_AUDIT_CLUSTERS", CLUSTERS), number("PORTCULLIS_SEED", SEED));
    let (mut asked, mut audited, mut wrong) = (0u64, 0u64, Vec::new());
    let mut private: Option<Private> = None;
    for seed in first..first + clusters {
        let case = generate::cluster(seed);
        let mut modes = BTreeMap::new();
        namespaces(&case.manifests, seed, &mut modes);
        let mut manifests = case.manifests.clone();
        for object in &mut manifests {
            annotate(object, seed);
        }
        let without: Vec<Value> = case
            .manifests
            .iter()
            .filter(|object| !is_audited(object, &modes, seed))
            .map(|object| enforced_only(object, &modes, seed))
            .collect();
        let (full, rest) = (World::new(&case.manifests), World::new(&without));
        let cluster = cluster_of(&manifests);
        let desired = compile(&cluster);
        let world = OurWorld { cluster: cluster.clone(), desired: desired.clone(), ..OurWorld::default() };
        match &mut private {
            Some(private) => private.write(&world).unwrap(),
            none => *none = Some(Private::load(&world).unwrap()),
        }
        let kernel = private.as_ref().unwrap();
        let answers = Answers::new(&cluster, &desired);
        for probe in &case.probes {
            let Some((from, to)) = parties(&answers, probe) else { continue };
            let theirs = full.pod_to_pod(&probe.from, &probe.to, probe.traffic, probe.family).unwrap();
            let enforced = rest.pod_to_pod(&probe.from, &probe.to, probe.traffic, probe.family).unwrap();
            let (egress, ingress) = answers.questions(&from, &to, traffic_of(probe.traffic));
            let directions =
                [(egress, theirs.egress, enforced.egress), (ingress, theirs.ingress, enforced.ingress)];
            for (question, full, enforced) in directions {
                let question = question.unwrap();
                let expected = match (full.verdict, enforced.verdict) {
                    (Verdict::Allow, _) => Came::Allow,
                    (Verdict::Deny, Verdict::Deny) => Came::Deny,
                    (Verdict::Deny, Verdict::Allow) => Came::Audit,
                };
                let ours = answers.verdict(&question);
                let asked_kernel = kernel.ask(&question).unwrap().unwrap();
                let same = (asked_kernel.action, asked_kernel.audited, asked_kernel.reason)
                    == (ours.action, ours.audited, ours.reason);
                asked += 1;
                audited += u64::from(expected == Came::Audit);
                if ours.outcome() != expected || !same {
                    wrong.push(format!(
                        "seed {seed}: {probe:?} {:?}: {ours:?}, kernel {asked_kernel:?}, expected {expected:?}: \
                         {full:?}",
                        question.direction
                    ));
                }
            }
        }
    }
    println!(
        "{clusters} clusters from seed {first}, {asked} answers, {audited} audited, {} wrong",
        wrong.len()
    );
    assert!(audited > clusters, "too few are audited to tell anything");
    assert!(wrong.is_empty(), "{}", wrong[..wrong.len().min(10)].join("\n"));
}

/// Only the friend reaches the server; annotations as given.
fn policy(annotations: &str) -> String {
    format!(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: friends-only, namespace: life, annotations: {annotations}}}
spec:
  podSelector: {{matchLabels: {{app: server}}}}
  ingress: [{{from: [{{podSelector: {{matchLabels: {{app: friend}}}}}}]}}]
"
    )
}

fn reaches(life: &Life, from: &str) -> bool {
    let options = ProbeOptions { timeout: Duration::from_millis(500), ..ProbeOptions::default() };
    match life.lab.probe(&[to_server(from, Protocol::Tcp)], &options).unwrap().as_slice() {
        [Outcome::Answered(_)] => true,
        [Outcome::Silent] => false,
        other => panic!("{from}: {other:?}"),
    }
}

/// What `explain` says of the stranger's way to the server, and how it ended.
fn explained(life: &Life) -> (Value, Option<i32>) {
    let mut command = Command::new(agent());
    command.args(["explain", "life/stranger", "life/server", "TCP/5000", "-o", "json", "--run-dir"]);
    let output = life.lab.node().run(|| command.arg(life.lab.run_dir()).output()).unwrap().unwrap();
    (serde_json::from_slice(&output.stdout).unwrap(), output.status.code())
}

fn isolations(life: &Life) -> u64 {
    let name = CounterName {
        source: RuleSource::Isolation(ObjectKey::new("life", "friends-only")),
        direction: Way::Ingress,
    };
    let hits = Hits::open(&Pins::new(life.lab.bpffs())).unwrap().all().unwrap();
    hits.get(&name).map_or(0, |stats| stats.packets)
}

fn liveness(held: &mut portcullis_lab::traffic::Held) -> Vec<String> {
    held.ping(PING).unwrap().iter().map(|one| format!("{one:?}")).collect()
}

/// The stranger's packet passes, under the policy's name.
fn assert_audited(life: &Life, what: &str) {
    let before = isolations(life);
    assert!(reaches(life, "stranger"), "{what}");
    assert!(reaches(life, "friend"), "{what}");
    assert_eq!(isolations(life), before + 1, "{what}: one connection, counted once, under the policy's name");
    let (said, exit) = explained(life);
    assert_eq!((&said["verdict"], exit), (&json!("deny"), Some(1)), "{what}: {said}");
    assert_eq!((&said["enforced"], &said["ingress"]["enforced"]), (&json!(false), &json!(false)), "{what}");
    assert_eq!(
        (&said["kernel"], &said["ingress"]["policy"]["name"]),
        (&json!("deny"), &json!("friends-only"))
    );
}

fn assert_enforced(life: &Life, what: &str) {
    assert!(!reaches(life, "stranger"), "{what}");
    assert!(reaches(life, "friend"), "{what}");
    let (said, exit) = explained(life);
    assert_eq!((&said["verdict"], exit), (&json!("deny"), Some(1)), "{what}: {said}");
    assert_eq!(said.get("enforced"), None, "{what}: {said}");
}

/// A policy, then a namespace, switched there and back while connections are held.
fn annotated(hook: Hook) {
    if !is_root("an agent in a network namespace") {
        return;
    }
    let mut life = Life::new(hook);
    life.write("policy.yaml", &policy("{portcullis.dev/mode: audit}"));
    life.start_and_wait();
    assert_audited(&life, "the policy in audit mode");
    let mut held =
        life.lab.hold(&[to_server("friend", Protocol::Tcp), to_server("stranger", Protocol::Tcp)]).unwrap();
    assert_eq!(liveness(&mut held), ["Alive", "Alive"]);

    life.apply("policy.yaml", &policy("{}"));
    assert_enforced(&life, "the annotation taken away");
    assert_eq!(liveness(&mut held), ["Alive", "Silent"], "what audit let pass is cut");

    life.apply(
        "z-namespace.yaml",
        "{apiVersion: v1, kind: Namespace, metadata: {name: life, annotations: {portcullis.dev/mode: audit}}}",
    );
    assert_audited(&life, "the namespace in audit mode");
    life.apply("policy.yaml", &policy("{portcullis.dev/mode: enforce}"));
    assert_enforced(&life, "the policy's own annotation goes first");
    life.apply("policy.yaml", &policy("{portcullis.dev/mode: Audit}"));
    assert_enforced(&life, "a mode that does not exist enforces");
    life.apply("policy.yaml", &policy("{}"));
    assert_audited(&life, "the namespace's again");

    // Another policy that isolates the server stays enforced.
    let other = policy("{portcullis.dev/mode: enforce}").replace("friends-only", "other");
    life.apply("other.yaml", &other);
    assert_enforced(&life, "another policy is enforced");
}

#[test]
fn policies_and_namespaces_switch_on_tcx() {
    annotated(Hook::Tcx);
}

#[test]
fn policies_and_namespaces_switch_on_clsact() {
    annotated(Hook::Clsact);
}

/// A node in audit mode drops nothing; to enforce from there cuts what is denied, and nothing else.
#[test]
fn a_node_switches_by_a_restart() {
    if !is_root("an agent in a network namespace") {
        return;
    }
    let mut life = Life::new(Hook::Auto);
    life.write_policy();
    life.arguments = vec!["--mode".into(), "audit".into()];
    life.start_and_wait();
    assert_audited(&life, "the node in audit mode");
    let mut held =
        life.lab.hold(&[to_server("friend", Protocol::Tcp), to_server("stranger", Protocol::Tcp)]).unwrap();

    life.lab.kill(Signal::SIGTERM).unwrap();
    life.arguments.clear();
    life.start_and_wait();
    assert_enforced(&life, "the node enforces");
    assert_eq!(liveness(&mut held), ["Alive", "Silent"]);

    life.lab.kill(Signal::SIGKILL).unwrap();
    life.arguments = vec!["--mode".into(), "audit".into()];
    life.start_and_wait();
    assert_audited(&life, "in audit mode again");
    let said = explained(&life).0;
    assert_eq!(said["egress"]["verdict"], json!("allow"), "{said}");
}
