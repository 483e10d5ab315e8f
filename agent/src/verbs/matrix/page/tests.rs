//! Given manifests, hostile ones among them, when the page is made, then its data holds the explanation of each
//! cell and nothing of a cluster's text stands outside of the data.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use serde_json::Value;

use super::*;
use crate::output::Colour;
use crate::scratch::Scratch;
use crate::verbs::ask::{ExplainRequest, Judge, TrafficText};
use crate::verbs::explain;
use crate::verbs::offline::offline;

const HOSTILE: &str = "</script><script>alert(1)</script>";

fn world(extra: &str) -> World {
    let dir = Scratch::new();
    dir.write(
        "all.yaml",
        &format!(
            r"
apiVersion: v1
kind: List
items:
- {{apiVersion: v1, kind: Namespace, metadata: {{name: a}}}}
- {{apiVersion: v1, kind: Pod, metadata: {{name: db, namespace: a, labels: {{app: db}}}}, status: {{podIP: 10.0.0.1}}}}
- {{apiVersion: v1, kind: Pod, metadata: {{name: web-0, namespace: a, labels: {{app: web}}}}, status: {{podIP: 10.0.0.2}}}}
- {{apiVersion: v1, kind: Pod, metadata: {{name: web-1, namespace: a, labels: {{app: web}}}}, status: {{podIP: 10.0.0.3}}}}
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {{name: np, namespace: a}}
  spec:
    podSelector: {{matchLabels: {{app: db}}}}
    ingress:
    - from: [{{podSelector: {{matchLabels: {{app: web}}}}}}]
      ports: [{{port: 80}}]
{extra}
"
        ),
    );
    offline(dir.path(), None, &[]).unwrap()
}

fn request(ports: &[&str]) -> MatrixRequest {
    MatrixRequest {
        ports: ports.iter().map(|port| TrafficText(port.parse().unwrap())).collect(),
        family: None,
        judge: Judge::Userspace,
        namespaces: Vec::new(),
        services: Vec::new(),
        hosts: crate::verbs::ask::Hosts::Out,
    }
}

fn data_of(html: &str) -> Value {
    let (_, rest) = html.split_once("<script type=\"application/json\" id=\"data\">").unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

/// The lines of one direction of a cell, as the page's script finds them.
fn note(data: &Value, side: &str, port: usize, subject: usize, peer: usize) -> Vec<String> {
    let explanations = &data["explanations"];
    let side = &explanations[side];
    let place = |list: &Value, index: usize| usize::try_from(list[index].as_u64().unwrap()).unwrap();
    let groups = (place(&side["subjects"], subject), place(&side["peers"], peer));
    let note = &explanations["notes"][place(&side["notes"][port][groups.0], groups.1)];
    let text = |line: usize| -> String {
        let pieces = &explanations["lines"][line];
        let piece = |half: usize| explanations["texts"][place(pieces, half)].as_str().unwrap();
        format!("{}{}", piece(0), piece(1))
    };
    let rules = &explanations["lists"][place(note, 1)];
    let rules = (0..rules.as_array().unwrap().len()).map(|rule| place(rules, rule));
    std::iter::once(place(note, 0)).chain(rules).map(text).collect()
}

#[test]
fn every_cell_says_what_explain_says() {
    let world = world("");
    let ports = ["TCP/80", "TCP/81", "ICMP"];
    let page = page(&world, None, &request(&ports)).unwrap().result;
    let data = data_of(&html(&page).unwrap());
    let order: Vec<&str> =
        data["order"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    for (port, traffic) in ports.iter().enumerate() {
        for (row, from) in order.iter().enumerate() {
            for (column, to) in order.iter().enumerate().filter(|(column, _)| *column != row) {
                let asked = ExplainRequest {
                    from: (*from).to_owned(),
                    to: (*to).to_owned(),
                    sent: Some(traffic.parse().unwrap()),
                    family: None,
                    namespace: None,
                };
                let told = explain::explain(&world, None, &asked).unwrap().result.table(from, Colour::Plain);
                for (side, subject, peer) in [("egress", row, column), ("ingress", column, row)] {
                    for line in note(&data, side, port, subject, peer) {
                        assert!(told.contains(&line), "{from} -> {to} {traffic}: {line:?} is not in\n{told}");
                    }
                }
            }
        }
    }
    // Replicas share theirs: three pods, two groups.
    assert_eq!(data["explanations"]["ingress"]["peers"], serde_json::json!([0, 1, 1]));
}

#[test]
fn text_of_the_cluster_cannot_leave_the_data() {
    let hostile = HOSTILE.replace('/', "\\u002f");
    let world = world(&format!(
        r#"- {{apiVersion: v1, kind: Pod, metadata: {{name: "<img src=x onerror=alert(2)>", namespace: a, labels: {{app: "{hostile}"}}}}, status: {{podIP: 10.0.0.9}}}}
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {{name: "{hostile}", namespace: a}}
  spec: {{podSelector: {{}}, ingress: [{{from: [{{podSelector: {{matchLabels: {{app: "{hostile}"}}}}}}]}}]}}
"#
    ));
    let page = page(&world, None, &request(&["TCP/80"])).unwrap().result;
    assert!(page.matrices[0].order.iter().any(|name| name.contains("<img")), "{:?}", page.matrices[0].order);
    let html = html(&page).unwrap();
    assert_eq!(html.matches("</script>").count(), TEMPLATE.matches("</script>").count());
    assert!(!html.contains("<img") && !html.contains("alert(1)</"), "text of the cluster is markup");
    let texts = data_of(&html)["explanations"]["texts"].to_string();
    assert!(texts.contains("alert(1)"), "the hostile text has to be in the data to be shown");
}

#[test]
fn the_page_needs_nothing_from_elsewhere_and_never_writes_markup() {
    for forbidden in
        ["http:", "https:", "innerHTML", "insertAdjacentHTML", "document.write", "eval(", "src=\"", "href="]
    {
        assert!(!TEMPLATE.contains(forbidden), "the page has {forbidden}");
    }
    assert_eq!(TEMPLATE.matches(PLACE).count(), 1);
    assert!(TEMPLATE.contains("default-src 'none'"));
}

#[test]
fn what_does_not_fit_is_left_out_by_port_and_said() {
    let world = world("");
    let (filler, ports, _) = prepare(&world, None, &request(&["TCP/80", "TCP/81"])).unwrap();
    let all = explained(&filler, &ports, &[], MAX_EXPLAINED);
    assert!(all.left_out.is_empty());
    let cells: usize = [&all.egress, &all.ingress]
        .iter()
        .map(|side| side.notes[0].iter().map(Vec::len).sum::<usize>())
        .sum();
    let one = explained(&filler, &ports, &[], cells);
    assert_eq!(one.left_out, ["TCP/81"]);
    assert!(!one.egress.notes[0].is_empty() && one.egress.notes[1].is_empty());
}

#[test]
fn fewer_namespaces_need_fewer_explanations() {
    let other = "- {apiVersion: v1, kind: Namespace, metadata: {name: b}}\n\
                 - {apiVersion: v1, kind: Pod, metadata: {name: x, namespace: b, labels: {app: x}}, status: {podIP: 10.0.1.1}}\n\
                 - {apiVersion: v1, kind: Pod, metadata: {name: y, namespace: b, labels: {app: y}}, status: {podIP: 10.0.1.2}}";
    let world = world(other);
    let asked = MatrixRequest { namespaces: vec!["a".to_owned()], ..request(&["TCP/80"]) };
    let (filler, ports, _) = prepare(&world, None, &asked).unwrap();
    // By policies a has one group of senders and two of receivers, b one; by labels both have two. Of 8 and 12
    // pairs, those within b are not asked for.
    let enough = (8 - 2) + (12 - 2);
    assert!(explained(&filler, &ports, &[], enough).left_out.is_empty());
    assert_eq!(explained(&filler, &ports, &[], enough - 1).left_out, ["TCP/80"]);
}

#[test]
fn a_page_has_the_services_that_were_asked_for() {
    let world = world(
        "- {apiVersion: v1, kind: Service, metadata: {name: db, namespace: a}, spec: {selector: {app: db}, ports: [{port: 81}]}}",
    );
    let asked = MatrixRequest { services: vec!["svc/a/db:81".to_owned()], ..request(&["TCP/80"]) };
    let page = page(&world, None, &asked).unwrap().result;
    let data = data_of(&html(&page).unwrap());
    assert_eq!(data["services"], serde_json::json!(["svc/a/db:81"]));
    let rows: Vec<&str> =
        data["service_rows"].as_array().unwrap().iter().map(|row| row.as_str().unwrap()).collect();
    assert_eq!(rows, page.matrices[0].service_rows);
    assert!(rows.contains(&"X"), "nobody but itself is let in at 81: {rows:?}");
}
