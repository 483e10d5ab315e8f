//! Services.

use serde_json::{Value, json};

use super::{assert_error, assert_fine};
use crate::convert::{Report, service};
use crate::model::{Families, Problem, Protocol, Service, ServiceKind, ServicePort, TargetPort};

fn read(object: &Value) -> (Service, Vec<Problem>) {
    let mut report = Report::new("Service ns/s", None);
    let service = service(object, &mut report);
    (service, report.into_problems())
}

#[test]
fn a_service_has_every_virtual_address() {
    let (service, problems) =
        read(&json!({"spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
            "externalIPs": ["192.0.2.1", "x", 5], "loadBalancerIP": "192.0.2.9"},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.2"}, {"hostname": "h"}, "x"]}}}));
    let addresses: Vec<String> = service.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.96.0.1", "192.0.2.1", "192.0.2.2", "fd00::1"]);
    assert_eq!(service.kind, ServiceKind::Virtual);
    assert_error(&problems, "spec.externalIPs[1]", "no address");
    assert_error(&problems, "spec.externalIPs[2]", "must be a string");
    assert_error(&problems, "status.loadBalancer.ingress[2]", "must be a mapping");
    assert_eq!(problems.len(), 3);
}

#[test]
fn a_service_without_address_is_kept_with_its_kind() {
    for (object, kind) in [
        (json!({}), ServiceKind::Virtual),
        (json!("x"), ServiceKind::Virtual),
        (json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}}), ServiceKind::Headless),
        (json!({"spec": {"clusterIP": "", "type": "ExternalName"}}), ServiceKind::ExternalName),
    ] {
        let (service, problems) = read(&object);
        assert!(service.addresses.is_empty());
        assert_eq!((service.kind, service.selector), (kind, None), "{object}");
        assert_fine(&problems);
    }
}

#[test]
fn the_backends_are_of_the_families_that_the_service_has() {
    for (spec, families) in [
        (json!({}), Families::Both),
        (json!({"clusterIP": "None"}), Families::Both),
        (json!({"clusterIP": "10.96.0.1", "externalIPs": ["fd00::9"]}), Families::Ipv4),
        (json!({"clusterIPs": ["fd00::1"]}), Families::Ipv6),
        (json!({"clusterIPs": ["fd00::1", "10.96.0.1"]}), Families::Both),
        (json!({"clusterIP": "None", "ipFamilies": ["IPv6"]}), Families::Ipv6),
        (json!({"ipFamilies": ["IPv4", "IPv6"]}), Families::Both),
    ] {
        let (service, problems) = read(&json!({"spec": spec}));
        assert_fine(&problems);
        assert_eq!(service.families, families, "{spec}");
    }
}

#[test]
fn ports_are_kept_as_written() {
    let (service, problems) = read(&json!({"spec": {"ports": [
        {"port": 80}, {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": "dns-udp", "nodePort": 30053},
        {"name": "s", "port": 1, "targetPort": 8443, "nodePort": 0}, {"port": 2, "targetPort": ""},
        {"port": 3, "targetPort": 0}]}}));
    assert_fine(&problems);
    let port = |name: &str, protocol, port, target, node_port| ServicePort {
        name: name.into(),
        protocol,
        port,
        target,
        node_port,
    };
    assert_eq!(
        *service.ports,
        [
            port("", Protocol::Tcp, 80, TargetPort::Number(80), None),
            port("dns", Protocol::Udp, 53, TargetPort::Name("dns-udp".into()), Some(30053)),
            port("s", Protocol::Tcp, 1, TargetPort::Number(8443), None),
            port("", Protocol::Tcp, 2, TargetPort::Number(2), None),
            port("", Protocol::Tcp, 3, TargetPort::Number(3), None),
        ]
    );
}

#[test]
fn ports_that_cannot_be_read_are_left_out_and_reported() {
    let (service, problems) =
        read(&json!({"spec": {"ports": ["x", {}, {"port": "80"}, {"port": 80, "protocol": "tcp"},
        {"port": 80, "targetPort": -1}, {"port": 80, "targetPort": []}, {"port": 81, "nodePort": 70000}]}}));
    let kept: Vec<_> = service.ports.iter().map(|port| (port.port, port.node_port)).collect();
    assert_eq!(kept, [(81, None)]);
    for (index, field) in
        ["", ".port", ".port", ".protocol", ".targetPort", ".targetPort", ".nodePort"].iter().enumerate()
    {
        assert_error(&problems, &format!("spec.ports[{index}]{field}"), "");
    }
    assert_eq!(problems.len(), 7);
    let (service, problems) = read(&json!({"spec": {"ports": {"port": 80}}}));
    assert!(service.ports.is_empty());
    assert_error(&problems, "spec.ports", "must be a list");
}

#[test]
fn a_selector_is_its_labels_and_an_empty_one_selects_no_pod() {
    let (service, problems) = read(&json!({"spec": {"selector": {"app": "web", "tier": ""}}}));
    assert_fine(&problems);
    let labels = service.selector.expect("it has one");
    assert_eq!((labels["app"].as_str(), labels["tier"].as_str(), labels.len()), ("web", "", 2));
    for selector in [json!({}), json!(null)] {
        let (service, problems) = read(&json!({"spec": {"selector": selector}}));
        assert_eq!(service.selector, None);
        assert_fine(&problems);
    }
    for (selector, field) in [(json!("app"), "spec.selector"), (json!({"a": "b", "n": 1}), "spec.selector.n")]
    {
        let (service, problems) = read(&json!({"spec": {"selector": selector}}));
        assert_eq!(service.selector, None);
        assert_error(&problems, field, "selecting no pod");
    }
}
