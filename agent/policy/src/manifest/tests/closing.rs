//! What could not be read, as packets meet it.

use portcullis_common::event::{Action, Reason};

use super::load_yaml;
use crate::answer::{Answers, Party};
use crate::compile::Compiler;
use crate::model::ObjectKey;

const OBJECTS: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: x}}
---
{apiVersion: v1, kind: Pod, metadata: {name: odd, namespace: x, labels: [app]}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: x, labels: {app: web}}, status: {podIP: 10.0.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: other, namespace: x}, status: {podIP: 10.0.0.3}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: x}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}}]
";

#[test]
fn a_pod_without_readable_labels_is_closed_and_nobodys_peer() {
    let loaded = load_yaml(OBJECTS);
    let cluster = &loaded.cluster;
    let (desired, _) = Compiler::new(0).compile(cluster, cluster.pods.keys()).expect("it fits");
    let answers = Answers::new(cluster, &desired);
    let pod = |name: &str| {
        let key = ObjectKey::new("x", name);
        let address = cluster.pods[&key].addresses[0];
        Party::Pod(key, address)
    };
    let tcp = "TCP/80".parse().expect("a port");
    let ask = |from: &str, to: &str| answers.answer(&pod(from), &pod(to), tcp);

    let to_odd = ask("other", "odd");
    let ingress = to_odd.ingress.expect("odd is a pod");
    assert_eq!((ingress.action, ingress.reason), (Action::Deny, Reason::InvalidClosed));
    assert!(ingress.policies.is_empty() && ingress.decided_by.is_none());

    let from_odd = ask("odd", "web");
    let egress = from_odd.egress.expect("odd is a pod");
    assert_eq!((egress.action, egress.reason), (Action::Deny, Reason::InvalidClosed));
    let ingress = from_odd.ingress.expect("web is a pod");
    assert_eq!((ingress.action, ingress.reason), (Action::Deny, Reason::Isolated), "no selector matches odd");

    let allowed = ask("other", "web").ingress.expect("web is a pod");
    assert_eq!(allowed.action, Action::Allow, "which lacks the label, as the rule asks");
}
