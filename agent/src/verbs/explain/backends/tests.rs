//! Given a directory, when a Service is explained, then each backend has the answer of its address.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use serde_json::{Value, json};

use super::*;
use crate::scratch::Scratch;
use crate::verbs::ask::{ExplainRequest, Reply};
use crate::verbs::explain::explain;
use crate::verbs::offline::offline;
use crate::world::World;

const MANIFESTS: &str = r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: a}}
- {apiVersion: v1, kind: Node, metadata: {name: n}, status: {addresses: [{address: 192.168.1.1}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: one, namespace: a, labels: {app: db}}, status: {podIP: 10.0.0.1},
   spec: {containers: [{ports: [{name: pg, containerPort: 5432}]}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: two, namespace: a, labels: {app: db, closed: "y"}},
   status: {podIPs: [{ip: 10.0.0.3}, {ip: "fd00::3"}]}, spec: {containers: [{ports: [{name: pg, containerPort: 5433}]}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: web, namespace: a, labels: {app: web}}, status: {podIP: 10.0.0.2}}
- {apiVersion: v1, kind: Pod, metadata: {name: host, namespace: a, labels: {app: host}},
   spec: {hostNetwork: true, nodeName: n}}
- {apiVersion: v1, kind: Service, metadata: {name: db, namespace: a}, spec: {clusterIP: 10.96.0.1,
   selector: {app: db}, ports: [{name: pg, port: 80, targetPort: pg}, {name: d, port: 53},
   {name: du, protocol: UDP, port: 53}]}}
- {apiVersion: v1, kind: Service, metadata: {name: headless, namespace: a}, spec: {clusterIP: None,
   selector: {app: db}, ports: [{port: 80, targetPort: pg}]}}
- {apiVersion: v1, kind: Service, metadata: {name: one, namespace: a}, spec: {clusterIP: 10.96.0.2,
   ports: [{port: 80}], externalIPs: [10.96.0.1]}}
- {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s, namespace: a,
   labels: {kubernetes.io/service-name: one}}, addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}], ports: [{port: 7}]}
- {apiVersion: v1, kind: Service, metadata: {name: host, namespace: a}, spec: {selector: {app: host}, ports: [{port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: none, namespace: a}, spec: {selector: {app: x}, ports: [{port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: ext, namespace: a}, spec: {type: ExternalName, externalName: e.org}}
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: np, namespace: a}
  spec:
    podSelector: {matchLabels: {closed: "y"}}
    ingress: [{ports: [{port: 5432}]}]
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: eg, namespace: a}
  spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}
"#;

fn world() -> World {
    let dir = Scratch::new();
    dir.write("all.yaml", MANIFESTS);
    offline(dir.path(), Some("n"), &[]).unwrap()
}

/// The words of a command line: FROM TO and perhaps what is sent.
fn ask(world: &World, words: &str) -> Result<Reply<Explanation>, AskError> {
    let mut words = words.split(' ').map(str::to_owned);
    let (from, to) = (words.next().unwrap(), words.next().unwrap());
    let sent = words.next().map(|text| text.parse().unwrap());
    explain(world, None, &ExplainRequest { from, to, sent, family: None, namespace: None })
}

fn told(words: &str) -> (Value, Exit, String, Vec<String>) {
    let Reply { result, notes } = ask(&world(), words).unwrap();
    let from = words.split(' ').next().unwrap();
    (serde_json::to_value(&result).unwrap(), result.exit(), result.table(from, Colour::Plain), notes)
}

fn error(words: &str) -> String {
    let error = ask(&world(), words).unwrap_err();
    assert_eq!(error.exit(), Exit::Usage, "{words}");
    error.to_string()
}

#[test]
fn each_backend_has_the_keys_and_the_answer_of_its_address() {
    let world = world();
    let (told, exit, table, notes) = told("a/web svc/a/db:80");
    assert_eq!((told["verdict"].as_str(), exit), (Some("mixed"), Exit::Negative));
    let service =
        json!({"namespace": "a", "name": "db", "port": 80, "protocol": "TCP", "addresses": ["10.96.0.1"]});
    assert_eq!(told["service"], service);
    let backends = told["backends"].as_array().unwrap();
    let expected = [("10.0.0.1", 5432, "a/one", "allow"), ("10.0.0.3", 5433, "a/two", "deny")];
    assert_eq!(backends.len(), expected.len());
    for (backend, (address, port, pod, verdict)) in backends.iter().zip(expected) {
        let alone = ask(&world, &format!("a/web {address} TCP/{port}")).unwrap().result;
        let mut wanted = serde_json::to_value(&alone).unwrap();
        wanted["address"] = json!(address);
        wanted["pod"] = json!(pod);
        assert_eq!(*backend, wanted);
        assert_eq!((backend["port"].as_u64(), backend["verdict"].as_str()), (Some(port), Some(verdict)));
    }
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0], "MIXED a/web -> svc/a/db (10.96.0.1) TCP/80: 1 of 2 backends allowed");
    assert_eq!((lines[1], lines[2]), ("", "ALLOW a/web (10.0.0.2) -> a/one (10.0.0.1) TCP/5432"));
    assert!(lines.contains(&"DENY a/web (10.0.0.2) -> a/two (10.0.0.3) TCP/5433"));
    assert!(notes.iter().any(|note| note.contains("ready or not")), "{notes:?}");
}

#[test]
fn a_port_may_be_named_in_every_way_and_an_address_does_for_the_service() {
    let (expected, ..) = told("a/web svc/a/db:80");
    for words in [
        "svc/a/db:pg",
        "svc/a/db:80 TCP",
        "svc/a/db:80/tcp",
        "svc/a/db TCP/80",
        "svc/a/db:pg TCP/80",
        "svc/a/db:80 tcp/80",
        "10.96.0.1 TCP/80",
        "::ffff:10.96.0.1 TCP/80",
    ] {
        assert_eq!(told(&format!("a/web {words}")).0, expected, "{words}");
    }
    let (_, _, _, notes) = told("a/web 10.96.0.1 TCP/80");
    assert!(notes.iter().any(|note| note.contains("Service a/one has 10.96.0.1 TCP/80 too")), "{notes:?}");
    let (udp, ..) = told("a/web svc/a/db:53 UDP");
    assert_eq!(
        (udp["service"]["protocol"].as_str(), udp["backends"][0]["port"].as_u64()),
        (Some("UDP"), Some(53))
    );
    assert_eq!(told("a/web svc/a/db:53/UDP").0, udp);
    assert_eq!(told("a/web svc/a/one").0, told("a/web svc/a/one:80").0, "it has one port");
}

#[test]
fn what_comes_of_the_backends() {
    for (words, verdict, exit, backends) in [
        ("a/web svc/a/one:80", "allow", Exit::Fine, 1),
        ("a/two svc/a/db:80", "allow", Exit::Fine, 2),
        ("a/web svc/a/host:80", "deny", Exit::Negative, 1),
        ("a/web svc/a/none:80", "deny", Exit::Negative, 0),
        ("a/web svc/a/headless:80", "mixed", Exit::Negative, 2),
        ("world svc/a/headless:80", "mixed", Exit::Negative, 3),
    ] {
        let (told, ended, ..) = told(words);
        let count = told["backends"].as_array().unwrap().len();
        assert_eq!(
            (told["verdict"].as_str(), ended, count),
            (Some(verdict), exit, backends),
            "{words}: {told:#}"
        );
    }
}

#[test]
fn a_pod_that_is_its_own_backend_reaches_itself() {
    let (told, ..) = told("a/two svc/a/db:80");
    let own = &told["backends"][1];
    assert_eq!((own["pod"].as_str(), own["egress"]["reason"].as_str()), (Some("a/two"), Some("self")));
}

#[test]
fn what_cannot_be_seen_is_said() {
    let (_, _, table, notes) = told("a/web svc/a/headless:80");
    assert!(table.starts_with("MIXED a/web -> svc/a/headless TCP/80: "), "{table}");
    assert!(notes.iter().any(|note| note.contains("is headless")), "{notes:?}");
    assert!(notes.iter().any(|note| note.contains("a/web has no ipv6 address")), "{notes:?}");
    let (_, _, table, notes) = told("a/web svc/a/none:80");
    assert_eq!(table, "DENY a/web -> svc/a/none TCP/80: no backend\n");
    assert!(notes.iter().any(|note| note.contains("no live pod")), "{notes:?}");
    let (_, _, table, _) = told("a/web svc/a/host:80");
    assert!(table.contains("192.168.1.1 TCP/80\n  backend  a/host shares its node's network\n"), "{table}");
    let (told, _, _, notes) = told("a/web 10.96.0.1 TCP/81");
    assert_eq!(told["egress"]["reason"], "service-not-resolved");
    assert!(notes.iter().any(|note| note.contains("80/TCP (pg), 53/TCP (d), 53/UDP (du)")), "{notes:?}");
}

#[test]
fn errors_name_what_there_is() {
    for (words, text) in [
        ("a/web svc/a/dbb:80", "no Service a/dbb; there is a/db"),
        ("a/web svc/a/db:99", "no port 99: name one of 80/TCP (pg), 53/TCP (d), 53/UDP (du)"),
        ("a/web svc/a/db:80 UDP", "no port 80/UDP"),
        ("a/web svc/a/db:53", "several ports: name one of 53/TCP (d), 53/UDP (du)"),
        ("a/web svc/a/db", "several ports: name one of 80/TCP (pg)"),
        ("a/web svc/a/db:80 TCP/53", "leave one of them out"),
        ("a/web svc/a/db:80/UDP TCP", "leave one of them out"),
        ("a/web svc/a/db:80 ICMP", "answers no echo"),
        ("a/web svc/a/ext:80", "no backends here"),
        ("a/web svc/db:80", "write svc/NAMESPACE/NAME:PORT"),
        ("a/web svc/a/db:", "write svc/NAMESPACE/NAME:PORT"),
        ("a/web svc/a/db:80/ICMP", "write svc/NAMESPACE/NAME:PORT"),
        ("svc/a/db:80 a/web TCP/80", "from which nothing is sent"),
        ("a/wen svc/a/none:80", "no pod a/wen"),
        ("a/wen svc/a/db:80", "no pod a/wen"),
        ("a/web a/one", "as the third argument"),
        ("a/web a/one TCP", "as the third argument"),
    ] {
        let error = error(words);
        assert!(error.contains(text), "{words}: {error}");
    }
}

#[test]
fn a_namespace_may_be_called_as_services_are() {
    let dir = Scratch::new();
    dir.write(
        "all.yaml",
        "{kind: List, apiVersion: v1, items: [{apiVersion: v1, kind: Namespace, metadata: {name: svc}}, {apiVersion: v1, \
         kind: Pod, metadata: {name: x, namespace: svc}}, {apiVersion: v1, kind: Pod, metadata: {name: y, namespace: svc}}]}",
    );
    let world = offline(dir.path(), None, &[]).unwrap();
    let result = ask(&world, "svc/x svc/y TCP/80").unwrap().result;
    assert!(matches!(result, Explanation::Flow(_)));
}

#[test]
fn both_answers_survive_the_socket() {
    for words in ["a/web svc/a/db:80", "a/web a/one TCP/80", "a/web svc/a/none:80"] {
        let result = ask(&world(), words).unwrap().result;
        let text = serde_json::to_string(&result).unwrap();
        assert_eq!(serde_json::from_str::<Explanation>(&text).unwrap(), result, "{words}");
    }
}
