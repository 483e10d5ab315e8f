//! Services: their addresses, ports and pods' labels.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use super::cidr::address;
use super::ports::{port_number, protocol};
use super::report::{Path, Report, quoted};
use super::value::{Object, entry, field, list, object, text, wrong_type};
use crate::model::{Families, Labels, Service, ServiceKind, ServicePort, TargetPort};

const LEFT_OUT: &str = "the address is left out";
const NO_PORT: &str = "the port is left out";
const NO_PODS: &str = "the Service counts as selecting no pod";
const NO_NODE_PORT: &str = "the node port is left out";

/// Reads a Service.
#[must_use]
pub fn service(value: &Value, report: &mut Report) -> Service {
    let empty = Object::new();
    let fields = value.as_object().unwrap_or(&empty);
    let spec = object(fields, "spec", Path::ROOT, report, "it counts as empty").is().unwrap_or(&empty);
    let path = Path::ROOT.field("spec");
    let mut addresses = cluster_addresses(spec, path, report);
    let families = families(spec, &addresses);
    addresses.extend(external_addresses(spec, path, report));
    addresses.extend(balancer_addresses(fields, report));
    let kind = kind(spec, &addresses);
    let (selector, ports) = (selector(spec, path, report), ports(spec, path, report));
    Service { addresses, kind, families, selector, ports }
}

fn cluster_addresses(spec: &Object, path: Path<'_>, report: &mut Report) -> BTreeSet<IpAddr> {
    let mut addresses = address_list(spec, "clusterIPs", path, report);
    if let Some(value) = field(spec, "clusterIP") {
        addresses.extend(service_address(value, path.field("clusterIP"), report));
    }
    addresses
}

fn external_addresses(spec: &Object, path: Path<'_>, report: &mut Report) -> BTreeSet<IpAddr> {
    address_list(spec, "externalIPs", path, report)
}

fn address_list(spec: &Object, name: &str, path: Path<'_>, report: &mut Report) -> BTreeSet<IpAddr> {
    let entries = list(spec, name, path, report, "they are left out").is().unwrap_or_default();
    let path = path.field(name);
    let read = |(index, value)| service_address(value, path.index(index), report);
    entries.iter().enumerate().filter_map(read).collect()
}

/// `ipFamilies`, which the API server fills in; else those of the cluster's own addresses.
fn families(spec: &Object, cluster: &BTreeSet<IpAddr>) -> Families {
    let said = field(spec, "ipFamilies").and_then(Value::as_array);
    let says = |word| said.is_some_and(|said| said.iter().any(|family| family.as_str() == Some(word)));
    let has = |is: fn(&IpAddr) -> bool| cluster.iter().any(is);
    let both = match (says("IPv4"), says("IPv6")) {
        (false, false) => (has(IpAddr::is_ipv4), has(IpAddr::is_ipv6)),
        said => said,
    };
    match both {
        (true, false) => Families::Ipv4,
        (false, true) => Families::Ipv6,
        (true, true) | (false, false) => Families::Both,
    }
}

fn balancer_addresses(fields: &Object, report: &mut Report) -> BTreeSet<IpAddr> {
    let empty = Object::new();
    let mut addresses = BTreeSet::new();
    let status = object(fields, "status", Path::ROOT, report, "it counts as empty").is().unwrap_or(&empty);
    let path = Path::ROOT.field("status");
    let balancer = object(status, "loadBalancer", path, report, LEFT_OUT).is().unwrap_or(&empty);
    let path = path.field("loadBalancer");
    let entries = list(balancer, "ingress", path, report, LEFT_OUT).is().unwrap_or_default();
    let path = path.field("ingress");
    for (index, value) in entries.iter().enumerate() {
        let path = path.index(index);
        let Some(fields) = entry(value, path, report, LEFT_OUT) else { continue };
        // kube-proxy leaves it alone: the packet goes to that address.
        if field(fields, "ipMode").and_then(Value::as_str) == Some("Proxy") {
            continue;
        }
        if let Some(value) = field(fields, "ip") {
            addresses.extend(service_address(value, path.field("ip"), report));
        }
    }
    addresses
}

fn service_address(value: &Value, path: Path<'_>, report: &mut Report) -> Option<IpAddr> {
    let Value::String(text) = value else {
        wrong_type(value, "a string", path, report, LEFT_OUT);
        return None;
    };
    if text.is_empty() || text == "None" {
        return None;
    }
    let read = address(text);
    if read.is_none() {
        report.error(path, format_args!("{} is no address and is left out; mend it", quoted(text)));
    }
    read
}

/// A Service of a file may show no address yet; one that says `None` will never have one.
fn kind(spec: &Object, addresses: &BTreeSet<IpAddr>) -> ServiceKind {
    let says = |name, word| field(spec, name).and_then(Value::as_str) == Some(word);
    if says("type", "ExternalName") {
        ServiceKind::ExternalName
    } else if says("clusterIP", "None") && addresses.is_empty() {
        ServiceKind::Headless
    } else {
        ServiceKind::Virtual
    }
}

/// `spec.selector`. An empty one selects no pod, as an absent one does.
fn selector(spec: &Object, path: Path<'_>, report: &mut Report) -> Option<Box<Labels>> {
    let entries = object(spec, "selector", path, report, NO_PODS).is()?;
    let path = path.field("selector");
    let mut labels = Labels::new();
    for (key, value) in entries {
        let Value::String(value) = value else {
            wrong_type(value, "a string", path.field(key), report, NO_PODS);
            return None;
        };
        labels.insert(key.clone(), value.clone());
    }
    (!labels.is_empty()).then(|| Box::new(labels))
}

fn ports(spec: &Object, path: Path<'_>, report: &mut Report) -> Box<[ServicePort]> {
    let entries = list(spec, "ports", path, report, "they are left out").is().unwrap_or_default();
    let path = path.field("ports");
    let read = |(index, value)| port(value, path.index(index), report);
    entries.iter().enumerate().filter_map(read).collect()
}

fn port(value: &Value, path: Path<'_>, report: &mut Report) -> Option<ServicePort> {
    let fields = entry(value, path, report, NO_PORT)?;
    let protocol = protocol(fields, path, report)?;
    let Some(port) = field(fields, "port").and_then(port_number) else {
        let found =
            field(fields, "port").map_or_else(|| "is missing".to_owned(), |v| format!("{v} is no port"));
        report.error(
            path.field("port"),
            format_args!("{found}: {NO_PORT}; write a whole number from 1 to 65535"),
        );
        return None;
    };
    let name = text(fields, "name", path, report, "the port has no name").is().unwrap_or_default().into();
    let target = target(fields, port, path, report)?;
    let node_port = node_port(fields, path, report);
    Some(ServicePort { name, protocol, port, target, node_port })
}

/// `targetPort`, where it says nothing the port itself. What is written as text is a name, digits too.
fn target(fields: &Object, port: u16, path: Path<'_>, report: &mut Report) -> Option<TargetPort> {
    match field(fields, "targetPort") {
        None => Some(TargetPort::Number(port)),
        Some(Value::String(name)) if name.is_empty() => Some(TargetPort::Number(port)),
        Some(Value::String(name)) => Some(TargetPort::Name(name.as_str().into())),
        Some(Value::Number(number)) if number.as_u64() == Some(0) => Some(TargetPort::Number(port)),
        Some(other) => {
            let number = port_number(other);
            if number.is_none() {
                report.error(
                    path.field("targetPort"),
                    format_args!(
                        "{} is no port: {NO_PORT}; write a whole number from 1 to 65535, or a containerPort's name",
                        quoted(&other.to_string())
                    ),
                );
            }
            number.map(TargetPort::Number)
        }
    }
}

/// `nodePort`; 0 is none yet.
fn node_port(fields: &Object, path: Path<'_>, report: &mut Report) -> Option<u16> {
    let value = field(fields, "nodePort").filter(|value| value.as_u64() != Some(0))?;
    let number = port_number(value);
    if number.is_none() {
        report.error(
            path.field("nodePort"),
            format_args!(
                "{} is no port: {NO_NODE_PORT}; write a whole number from 1 to 65535",
                quoted(&value.to_string())
            ),
        );
    }
    number
}
