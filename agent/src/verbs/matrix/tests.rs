//! Given pods of three namespaces, when a matrix is asked for some of them, then only what touches these is told.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use portcullis_policy::model::HostNetworkPods;

use super::*;
use crate::scratch::Scratch;
use crate::verbs::ask::TrafficText;
use crate::verbs::offline::{offline, offline_on};

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
        services: Vec::new(),
        hosts: Hosts::Out,
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

/// `a/x` is closed but for 8080, `b/x` and `c/x` are open; `b/x` is told apart by its label alone.
fn services() -> World {
    let dir = Scratch::new();
    dir.write(
        "all.yaml",
        r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: a}}
- {apiVersion: v1, kind: Namespace, metadata: {name: b}}
- {apiVersion: v1, kind: Pod, metadata: {name: x, namespace: a, labels: {app: web}}, status: {podIP: 10.0.0.1}}
- {apiVersion: v1, kind: Pod, metadata: {name: y, namespace: a, labels: {app: web, open: "y"}}, status: {podIP: 10.0.0.2}}
- {apiVersion: v1, kind: Pod, metadata: {name: z, namespace: b}, status: {podIP: 10.0.0.3}}
- {apiVersion: v1, kind: Service, metadata: {name: web, namespace: a}, spec: {clusterIP: 10.96.0.1, selector: {app: web},
   ports: [{name: http, port: 80, targetPort: 8080}, {name: dns, port: 53}, {name: udp, port: 53, protocol: UDP}]}}
- {apiVersion: v1, kind: Service, metadata: {name: open, namespace: a}, spec: {selector: {open: "y"}, ports: [{port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: none, namespace: b}, spec: {selector: {app: x}, ports: [{port: 80}]}}
- {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: np, namespace: a}, spec: {podSelector: {
   matchExpressions: [{key: open, operator: DoesNotExist}]}, ingress: [{ports: [{port: 53}]}]}}
"#,
    );
    offline(dir.path(), None, &[]).unwrap()
}

fn columns(services: &[&str], namespaces: &[&str]) -> Result<Vec<Matrix>, AskError> {
    let owned = |all: &[&str]| all.iter().map(|&one| one.to_owned()).collect();
    let request = MatrixRequest {
        ports: vec![TrafficText("TCP/80".parse().unwrap()), TrafficText("TCP/53".parse().unwrap())],
        family: None,
        judge: Judge::Userspace,
        namespaces: owned(namespaces),
        services: owned(services),
        hosts: Hosts::Out,
    };
    matrix(&self::services(), None, &request).map(|reply| reply.result)
}

#[test]
fn services_are_columns_of_their_own_port_and_change_no_other_key() {
    let asked = ["svc/a/web:http", "svc/a/web:53/TCP", "svc/a/open:80", "svc/b/none:80", "svc/a/web:53/UDP"];
    let found = serde_json::to_value(columns(&asked, &[]).unwrap()).unwrap();
    let names = ["svc/a/web:80", "svc/a/web:53/TCP", "svc/a/open:80", "svc/b/none:80", "svc/a/web:53/UDP"];
    // Of `web` the sender `x` is a backend itself: it reaches itself, and the other is open.
    let service_rows = ["...X.", "/..X/", "/..X/"];
    let with = |port: u16, rows: [&str; 3]| {
        serde_json::json!({"protocol": "TCP", "port": port, "family": "ipv4", "order": ["a/x", "a/y", "b/z"],
            "rows": rows, "services": names, "service_rows": service_rows})
    };
    let expected = serde_json::json!([with(80, ["-..", "X-.", "X.-"]), with(53, ["-..", ".-.", "..-"])]);
    assert_eq!(found, expected);
    assert!(columns(&["a/x"], &[]).unwrap_err().to_string().contains("svc/NAMESPACE/NAME:PORT"));
    assert!(columns(&["svc/a/web:53"], &[]).unwrap_err().to_string().contains("53/TCP (dns), 53/UDP (udp)"));
}

#[test]
fn a_service_is_of_its_namespace() {
    let found = columns(&["svc/a/web:80", "svc/b/none:80"], &["b"]).unwrap();
    assert_eq!(found[0].service_rows, [" X", " X", "/X"]);
}

#[test]
fn people_see_services_after_the_pods() {
    let found = columns(&["svc/a/web:80"], &[]).unwrap();
    let text = table(&found[..1], Colour::Plain);
    assert_eq!(
        text,
        "TCP/80 ipv4\n  from \\ to    1 2 3 4\n1 a/x          - . . .\n2 a/y          X - . /\n3 b/z          X . - /\n\
         4 svc/a/web:80\n\n. allowed  X denied  - itself  / some backends allowed\n"
    );
}

#[test]
fn hosts_are_rows_and_columns_where_they_are_asked_for() {
    let dir = Scratch::new();
    dir.write(
        "all.yaml",
        "{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n---\n\
         {apiVersion: v1, kind: Node, metadata: {name: n}, status: {addresses: [{address: 172.18.0.2}]}}\n---\n\
         {apiVersion: v1, kind: Pod, metadata: {name: x, namespace: a}, spec: {nodeName: n}, \
         status: {podIP: 10.0.0.1}}\n---\n\
         {apiVersion: v1, kind: Pod, metadata: {name: h, namespace: a}, spec: {nodeName: n, hostNetwork: true}}\n---\n\
         {apiVersion: portcullis.dev/v1alpha1, kind: HostPolicy, metadata: {name: p}, spec: {subject: {pods: {}}}}\n",
    );
    let told = |hosts, firewall| {
        let world = offline_on(dir.path(), Some("n"), &[], firewall).unwrap();
        let request = MatrixRequest {
            ports: vec![TrafficText("TCP/80".parse().unwrap())],
            family: None,
            judge: Judge::Userspace,
            namespaces: Vec::new(),
            services: Vec::new(),
            hosts,
        };
        let Reply { result, notes } = matrix(&world, None, &request).unwrap();
        (result[0].order.join(" "), result[0].rows.join(" "), notes.len())
    };
    let told_of = |order: &str, rows: &str, notes| (order.to_owned(), rows.to_owned(), notes);
    let on = Some(HostNetworkPods::Ignore);
    assert_eq!(told(Hosts::Out, on), told_of("a/x", "-", 0));
    assert_eq!(told(Hosts::In, None), told_of("a/x", "-", 1));
    assert_eq!(told(Hosts::In, on), told_of("a/x node a/h", "-.X .-. ..-", 0));
}
