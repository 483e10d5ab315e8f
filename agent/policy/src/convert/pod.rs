//! Pods, and the part of a workload's template that makes pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::cidr::address;
use super::labels::labels;
use super::ports::{port_number, protocol};
use super::report::{Path, Report, quoted};
use super::value::{Object, Read, entry, field, list, object, text, what_is, wrong_type};
use crate::model::{
    AddressesFrom, HostPort, Labels, LabelsRead, ObjectKey, Phase, Pod, PodNetwork, Protocol,
};

/// On the mirror of a static pod: the UID that its node gave it (`ConfigHashAnnotationKey` of the kubelet), once more as the
/// sign that it is a mirror (`ConfigMirrorAnnotationKey`), and the node that made it.
const STATIC_UID: &str = "/metadata/annotations/kubernetes.io~1config.hash";
const MIRRORED: &str = "/metadata/annotations/kubernetes.io~1config.mirror";
const MAKERS: &str = "/metadata/ownerReferences";
const NO_PORT: &str = "the port is left out";
const NO_HOST_PORT: &str = "the host port is left out";
/// What follows from labels that cannot be read.
const CLOSED: &str = "the pod is isolated both ways and no selector matches it";

/// Reads a Pod. It has the addresses that its status shows, if any.
#[must_use]
pub fn pod(value: &Value, key: &ObjectKey, report: &mut Report) -> Pod {
    let no_fields = Object::new();
    let fields = value.as_object().unwrap_or(&no_fields);
    let status =
        object(fields, "status", Path::ROOT, report, "it counts as empty").is().unwrap_or(&no_fields);
    let mut pod = from_template(fields, key, Path::ROOT, report);
    if let Some(uid) = value.pointer("/metadata/uid").and_then(Value::as_str).filter(|uid| !uid.is_empty()) {
        uid.clone_into(&mut pod.uid);
    }
    pod.static_uid = static_uid(value, pod.node.as_deref());
    pod.addresses = addresses(status, Path::ROOT.field("status"), report);
    pod.phase = read_phase(fields);
    pod.start_time = start_time(status, Path::ROOT.field("status"), report);
    pod
}

/// The UID that a node knows its static pod by, where this is the mirror of one. Whoever may make pods can write all of it, so
/// it says something of pods of that node only, and less than a UID that the API server gave.
fn static_uid(pod: &Value, node: Option<&str>) -> Option<String> {
    let text = |pointer| pod.pointer(pointer).and_then(Value::as_str);
    let uid = text(STATIC_UID).filter(|uid| text(MIRRORED) == Some(*uid))?;
    let is_node = |maker: &Value| {
        maker["apiVersion"] == "v1" && maker["kind"] == "Node" && maker["name"].as_str() == node
    };
    let makers = pod.pointer(MAKERS).and_then(Value::as_array)?;
    (node.is_some() && makers.iter().any(is_node)).then(|| uid.to_owned())
}

/// Reads what `metadata` and `spec` of a Pod or of a workload's template say: a live pod without addresses.
pub(crate) fn from_template(template: &Object, key: &ObjectKey, path: Path<'_>, report: &mut Report) -> Pod {
    let no_fields = Object::new();
    let means = "it counts as empty";
    let (labels, labels_read) = match object(template, "metadata", path, report, CLOSED) {
        Read::Is(metadata) => labels(metadata, path.field("metadata"), report, CLOSED),
        Read::Absent => (Labels::new(), LabelsRead::Whole),
        Read::WrongType => (Labels::new(), LabelsRead::Unreadable),
    };
    let spec = object(template, "spec", path, report, means).is().unwrap_or(&no_fields);
    let spec_path = path.field("spec");
    let mut pod = Pod {
        uid: format!("manifest:{key}"),
        labels,
        labels_read,
        addresses: Vec::new(),
        addresses_from: AddressesFrom::Status,
        static_uid: None,
        node: text(spec, "nodeName", spec_path, report, "the pod counts as unscheduled")
            .is()
            .map(str::to_owned),
        network: network(spec, spec_path, report),
        phase: Phase::Live,
        start_time: None,
        named_ports: BTreeMap::new(),
        container_ports: BTreeSet::new(),
        host_ports: Box::default(),
    };
    let mut host_ports = BTreeSet::new();
    container_ports(spec, spec_path, &mut pod, &mut host_ports, report);
    if pod.has_own_network() {
        pod.host_ports = host_ports.into_iter().collect();
    }
    pod
}

/// The phase of a Pod: only the exact words of Kubernetes finish it (S32).
fn read_phase(pod: &Object) -> Phase {
    let phase = field(pod, "status").and_then(|status| status.get("phase")).and_then(Value::as_str);
    match phase {
        Some("Succeeded" | "Failed") => Phase::Finished,
        Some(_) | None => Phase::Live,
    }
}

/// `hostNetwork`. A host's pod is not policed, so only what plainly says so counts. `yes` and `on` are
/// booleans in the YAML that kubectl reads.
fn network(spec: &Object, path: Path<'_>, report: &mut Report) -> PodNetwork {
    let path = path.field("hostNetwork");
    match field(spec, "hostNetwork") {
        None | Some(Value::Bool(false)) => PodNetwork::Own,
        Some(Value::Bool(true)) => PodNetwork::Host,
        Some(Value::String(word)) if is_word(word, &["yes", "on"]) => {
            report.warning(path, format_args!("is {} and counts as true; write true", quoted(word)));
            PodNetwork::Host
        }
        Some(Value::String(word)) if is_word(word, &["no", "off"]) => PodNetwork::Own,
        Some(other) => {
            wrong_type(other, "true or false", path, report, "the pod counts as having a network of its own");
            PodNetwork::Own
        }
    }
}

fn is_word(text: &str, words: &[&str]) -> bool {
    words.iter().any(|word| text.eq_ignore_ascii_case(word))
}

/// `status.podIPs`, or `podIP` where that says nothing (S32).
fn addresses(status: &Object, path: Path<'_>, report: &mut Report) -> Vec<IpAddr> {
    let means = "the address is left out";
    let mut addresses = Vec::new();
    let entries = list(status, "podIPs", path, report, means).is().unwrap_or_default();
    let ips_path = path.field("podIPs");
    for (index, value) in entries.iter().enumerate() {
        let path = ips_path.index(index);
        if let Some(fields) = entry(value, path, report, means) {
            addresses.extend(address_field(fields, "ip", path, report));
        }
    }
    if addresses.is_empty() {
        addresses.extend(address_field(status, "podIP", path, report));
    }
    let mut seen = BTreeSet::new();
    addresses.retain(|address| seen.insert(*address));
    addresses
}

fn address_field(fields: &Object, name: &str, path: Path<'_>, report: &mut Report) -> Option<IpAddr> {
    let text =
        text(fields, name, path, report, "the address is left out").is().filter(|ip| !ip.is_empty())?;
    let read = address(text);
    if read.is_none() {
        report
            .error(path.field(name), format_args!("{} is no address and is left out; mend it", quoted(text)));
    }
    read
}

/// `status.startTime`, in seconds since the Unix epoch (S50).
fn start_time(status: &Object, path: Path<'_>, report: &mut Report) -> Option<i64> {
    let text = match text(status, "startTime", path, report, "the pod counts as the oldest") {
        Read::Absent | Read::WrongType => return None,
        Read::Is(text) => text,
    };
    let time = text.parse::<Timestamp>().ok().map(Timestamp::as_second);
    if time.is_none() {
        report.warning(
            path.field("startTime"),
            format_args!("{} is no time: the pod counts as the oldest; write it as RFC 3339", quoted(text)),
        );
    }
    time
}

/// The ports of containers, then of restartable init containers, for of duplicates the first counts (S25).
fn container_ports(
    spec: &Object,
    path: Path<'_>,
    pod: &mut Pod,
    host_ports: &mut BTreeSet<HostPort>,
    report: &mut Report,
) {
    for (name, which) in [("containers", Which::Every), ("initContainers", Which::Restartable)] {
        let containers = list(spec, name, path, report, "its ports are left out").is().unwrap_or_default();
        let path = path.field(name);
        for (index, value) in containers.iter().enumerate() {
            let path = path.index(index);
            let Some(container) = entry(value, path, report, "its ports are left out") else {
                continue;
            };
            if which.takes(container) {
                ports_of(container, path, pod, host_ports, report);
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Which {
    Every,
    Restartable,
}

impl Which {
    fn takes(self, container: &Object) -> bool {
        match self {
            Self::Every => true,
            Self::Restartable => field(container, "restartPolicy").and_then(Value::as_str) == Some("Always"),
        }
    }
}

fn ports_of(
    container: &Object,
    path: Path<'_>,
    pod: &mut Pod,
    host_ports: &mut BTreeSet<HostPort>,
    report: &mut Report,
) {
    let ports = list(container, "ports", path, report, "its ports are left out").is().unwrap_or_default();
    let path = path.field("ports");
    for (index, value) in ports.iter().enumerate() {
        let path = path.index(index);
        let Some(fields) = entry(value, path, report, NO_PORT) else { continue };
        let Some(protocol) = protocol(fields, path, report) else { continue };
        let Some(number) = field(fields, "containerPort").and_then(port_number) else {
            let found = field(fields, "containerPort").map_or("missing", what_is);
            report.warning(
                path.field("containerPort"),
                format_args!("is {found}: {NO_PORT}; write a whole number from 1 to 65535"),
            );
            continue;
        };
        pod.container_ports.insert((protocol, number));
        host_ports.extend(host_port(fields, (protocol, number), path, report));
        if let Some(name) = text(fields, "name", path, report, "the port has no name").is()
            && !name.is_empty()
        {
            pod.named_ports.entry((name.to_owned(), protocol)).or_insert(number);
        }
    }
}

/// The node's port that leads to this one, if any does.
fn host_port(
    fields: &Object,
    (protocol, container_port): (Protocol, u16),
    path: Path<'_>,
    report: &mut Report,
) -> Option<HostPort> {
    let value = field(fields, "hostPort").filter(|value| value.as_u64() != Some(0))?;
    let Some(host_port) = port_number(value) else {
        report.warning(
            path.field("hostPort"),
            format_args!("{value} is no port: {NO_HOST_PORT}; write a whole number from 1 to 65535"),
        );
        return None;
    };
    let text = match text(fields, "hostIP", path, report, NO_HOST_PORT) {
        Read::Absent | Read::Is("") => {
            return Some(HostPort { protocol, host_port, host_ip: None, container_port });
        }
        Read::WrongType => return None,
        Read::Is(text) => text,
    };
    let host_ip = address(text);
    if host_ip.is_none() {
        report.error(
            path.field("hostIP"),
            format_args!("{} is no address: {NO_HOST_PORT}; mend it", quoted(text)),
        );
    }
    Some(HostPort { protocol, host_port, host_ip: Some(host_ip?), container_port })
}
