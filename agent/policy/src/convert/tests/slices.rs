//! EndpointSlices.

use serde_json::{Value, json};

use super::{assert_error, assert_fine};
use crate::convert::{Report, endpoint_slice};
use crate::model::{EndpointSlice, ObjectKey, Problem, Protocol, Readiness, SliceMaker};

fn read(object: &Value) -> (Option<EndpointSlice>, Vec<Problem>) {
    let mut report = Report::new("EndpointSlice ns/s", None);
    let slice = endpoint_slice(object, "ns", &mut report);
    (slice, report.into_problems())
}

/// A slice of the Service `web` with these fields.
fn of_web(mut fields: Value) -> Value {
    fields["metadata"] = json!({"labels": {"kubernetes.io/service-name": "web"}});
    fields
}

#[test]
fn a_whole_slice_is_read() {
    let (slice, problems) = read(&json!({
        "metadata": {"labels": {"kubernetes.io/service-name": "web",
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
        "addressType": "IPv6",
        "endpoints": [
            {"addresses": ["fd00::1", "fd00::2"], "targetRef": {"kind": "Pod", "namespace": "ns", "name": "a"}},
            {"addresses": ["fd00::3"], "targetRef": {"kind": "Node", "name": "n"}, "conditions": {"ready": null}},
            {"addresses": []}],
        "ports": [{"name": "http", "port": 8080}, {"protocol": "UDP", "port": 53}, {"name": "all"}],
    }));
    assert_fine(&problems);
    let slice = slice.expect("it is a Service's");
    assert_eq!((&*slice.service, slice.maker), ("web", SliceMaker::Controller));
    let endpoints: Vec<_> =
        slice.endpoints.iter().map(|one| (one.address.to_string(), one.pod.clone(), one.readiness)).collect();
    assert_eq!(
        endpoints,
        [
            ("fd00::1".to_owned(), Some(ObjectKey::new("ns", "a")), Readiness::Ready),
            ("fd00::3".to_owned(), None, Readiness::Ready),
        ]
    );
    let ports: Vec<_> = slice.ports.iter().map(|port| (&*port.name, port.protocol, port.port)).collect();
    assert_eq!(ports, [("http", Protocol::Tcp, 8080), ("", Protocol::Udp, 53)]);
}

#[test]
fn who_neither_is_ready_nor_ends_in_order_is_not_ready() {
    for (conditions, expected) in [
        (json!({}), Readiness::Ready),
        (json!({"ready": true, "serving": false}), Readiness::Ready),
        (json!({"ready": false}), Readiness::NotReady),
        (json!({"ready": false, "serving": true}), Readiness::NotReady),
        (json!({"ready": false, "terminating": true}), Readiness::NotReady),
        (json!({"ready": false, "serving": true, "terminating": true}), Readiness::Terminating),
        (json!({"serving": true, "terminating": true}), Readiness::Ready),
    ] {
        let object = of_web(json!({"addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": conditions}]}));
        let (slice, problems) = read(&object);
        assert_fine(&problems);
        assert_eq!(slice.expect("it is a Service's").endpoints[0].readiness, expected, "{object}");
    }
}

#[test]
fn what_is_no_services_or_has_no_addresses_is_left_out() {
    for object in [
        json!({"addressType": "IPv4"}),
        json!({"addressType": "IPv4", "metadata": {"labels": {"kubernetes.io/service-name": ""}}}),
        json!("x"),
        of_web(json!({"addressType": "FQDN", "endpoints": [{"addresses": ["example.org"]}]})),
    ] {
        let (slice, problems) = read(&object);
        assert_eq!(slice, None, "{object}");
        assert_fine(&problems);
    }
}

#[test]
fn what_cannot_be_read_is_left_out_and_reported() {
    for (fields, field) in [
        (json!({"addressType": "IPv5"}), "addressType"),
        (json!({"addressType": "IPv4", "endpoints": {}}), "endpoints"),
        (json!({"addressType": "IPv4", "endpoints": ["x"]}), "endpoints[0]"),
        (json!({"addressType": "IPv4", "endpoints": [{"addresses": [5]}]}), "endpoints[0].addresses[0]"),
        (json!({"addressType": "IPv4", "endpoints": [{"addresses": ["x"]}]}), "endpoints[0].addresses[0]"),
        (
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["fd00::1"]}]}),
            "endpoints[0].addresses[0]",
        ),
        (json!({"addressType": "IPv4", "ports": [{"port": 0}]}), "ports[0].port"),
        (json!({"addressType": "IPv4", "ports": [{"port": 1, "protocol": "tcp"}]}), "ports[0].protocol"),
    ] {
        let (slice, problems) = read(&of_web(fields));
        assert!(slice.is_none_or(|slice| slice.endpoints.is_empty() && slice.ports.is_empty()));
        assert_error(&problems, field, "");
        assert_eq!(problems.len(), 1);
    }
}
