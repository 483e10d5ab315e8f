//! `explain` of a Service by a running agent: over its socket, by the attached program, and as connections go.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use portcullis_agent::api::{Request, client};
use portcullis_agent::output::Verdict;
use portcullis_agent::verbs::ask::{ExplainRequest, Judge, MatrixRequest, Reply, TrafficText};
use portcullis_agent::verbs::explain::{Agreement, ExplainedService, Explanation, ServiceVerdict};
use portcullis_agent::verbs::matrix::Matrix;
use portcullis_lab::{
    AgentSpec, Ask, Client, Family, Hook, Lab, LabOptions, Outcome, Probe, ProbeOptions, Target,
};
use portcullis_policy::model::{ObjectKey, Protocol};
use portcullis_tests::lifecycle::{PATIENCE, agent};
use portcullis_tests::privilege::is_root;

const MANIFESTS: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: life}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: life}
status: {podIPs: [{ip: 10.74.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: one, namespace: life, labels: {app: web}}
spec: {containers: [{name: c, ports: [{name: web, containerPort: 5000}]}]}
status: {podIPs: [{ip: 10.74.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: two, namespace: life, labels: {app: web}}
spec: {containers: [{name: c, ports: [{name: web, containerPort: 5001}]}]}
status: {podIPs: [{ip: 10.74.0.3}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: life}
spec: {clusterIP: 10.96.74.1, selector: {app: web}, ports: [{port: 80, targetPort: web}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: first, namespace: life}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 5000}]}]}
";

/// The answer of the agent, once it knows what was written.
fn explained(lab: &Lab, to: &str, sent: Option<&str>) -> ExplainedService {
    let request = Request::Explain(ExplainRequest {
        from: "life/client".to_owned(),
        to: to.to_owned(),
        sent: sent.map(|sent| sent.parse().unwrap()),
        family: None,
        namespace: None,
    });
    let answer = client::ask(lab.run_dir(), &request).and_then(client::Asked::answer);
    let Reply { result, .. }: Reply<Explanation> = answer.unwrap();
    assert_eq!(result.agreement(), Agreement::Agrees, "{result:?}");
    match result {
        Explanation::Service(service) => *service,
        Explanation::Flow(flow) => panic!("{flow:?}"),
    }
}

fn column(lab: &Lab, judge: Judge) -> Vec<String> {
    let request = Request::Matrix(MatrixRequest {
        ports: vec![TrafficText("TCP/5000".parse().unwrap())],
        family: None,
        judge,
        namespaces: Vec::new(),
        services: vec!["svc/life/web:80".to_owned()],
        hosts: portcullis_agent::verbs::ask::Hosts::Out,
    });
    let answer = client::ask(lab.run_dir(), &request).and_then(client::Asked::answer);
    let Reply { result, .. }: Reply<Vec<Matrix>> = answer.unwrap();
    result.into_iter().flat_map(|matrix| matrix.service_rows).collect()
}

#[test]
fn each_backend_is_explained_as_the_program_and_connections_have_it() {
    if !is_root("an agent in a network namespace") {
        return;
    }
    let dir = std::env::temp_dir().join(format!("portcullis-backends-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("all.yaml"), MANIFESTS).unwrap();
    let cluster = portcullis_lab::source::read(&dir, &[]).unwrap().cluster;
    let ports = BTreeSet::from([(Protocol::Tcp, 5000), (Protocol::Tcp, 5001)]);
    let mut lab = Lab::up(&cluster, LabOptions { ports, ..LabOptions::default() }).unwrap();
    let spec = AgentSpec { binary: agent(), source: dir.clone(), hook: Hook::Auto, arguments: Vec::new() };
    lab.start_agent(&spec).unwrap();
    lab.wait_applied(1, PATIENCE).unwrap();

    let found = explained(&lab, "svc/life/web:80", None);
    assert_eq!(found.verdict, ServiceVerdict::Mixed);
    assert_eq!(explained(&lab, "10.96.74.1", Some("TCP/80")), found, "by the virtual address");
    let told: Vec<(&str, Option<u16>, Verdict)> = found
        .backends
        .iter()
        .map(|one| (one.address.as_str(), one.explained.port, one.explained.verdict))
        .collect();
    let expected = [("10.74.0.2", Some(5000), Verdict::Allow), ("10.74.0.3", Some(5001), Verdict::Deny)];
    assert_eq!(told, expected);
    for backend in &found.backends {
        assert_eq!(backend.explained.kernel, Some(backend.explained.verdict), "{backend:?}");
    }
    let pod = |name| Target::Pod(ObjectKey::new("life", name), Family::Ipv4);
    let from = Client::Pod(ObjectKey::new("life", "client"));
    let probes = [("one", 5000), ("two", 5001)].map(|(name, port)| Probe {
        from: from.clone(),
        to: pod(name),
        ask: Ask::Port(Protocol::Tcp, port),
    });
    let outcomes = lab.probe(&probes, &ProbeOptions::default()).unwrap();
    let answered: Vec<bool> = outcomes.iter().map(|one| matches!(one, Outcome::Answered(_))).collect();
    assert_eq!(answered, [true, false]);
    assert_eq!(column(&lab, Judge::Kernel), ["/", "/", "."], "client, one, two: a pod reaches itself");
    assert_eq!(column(&lab, Judge::Userspace), column(&lab, Judge::Kernel));

    // Nobody is behind it any more.
    fs::write(dir.join("all.yaml"), MANIFESTS.replace("selector: {app: web}", "selector: {app: gone}"))
        .unwrap();
    let begun = Instant::now();
    while !explained(&lab, "svc/life/web:80", None).backends.is_empty() {
        assert!(begun.elapsed() < PATIENCE, "a change of a Service's selector is known");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(column(&lab, Judge::Kernel), ["X", "X", "X"]);
    lab.kill(Signal::SIGTERM).unwrap();
    // Temporary; a leftover does no harm.
    drop(fs::remove_dir_all(&dir));
}
