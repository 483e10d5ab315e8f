//! Pods and Services as the evaluator needs them. It knows no policy.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use crate::read::{field, items, labels, port_number, text};
use crate::verdict::Protocol;

/// A live pod with a network of its own.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// The addresses that its status shows; whether they are its own, [`Pod::newer`] decides.
    pub(crate) shown: Vec<IpAddr>,
    /// `spec.nodeName`.
    pub(crate) node: Option<String>,
    ports: Vec<(String, Protocol, u16)>,
    started: Option<i64>,
    uid: String,
}

impl Pod {
    /// Reads a Pod; none if policies neither select it nor know it as a peer.
    pub(crate) fn read(namespace: &str, name: &str, pod: &Value) -> Option<Pod> {
        // hostNetwork pods are, by address, their node.
        if is_host_network(pod) { None } else { Self::read_live(namespace, name, pod) }
    }

    /// Reads a Pod in its node's network; none of another, and of a finished one.
    pub(crate) fn read_host(namespace: &str, name: &str, pod: &Value) -> Option<Pod> {
        if is_host_network(pod) { Self::read_live(namespace, name, pod) } else { None }
    }

    fn read_live(namespace: &str, name: &str, pod: &Value) -> Option<Pod> {
        let nothing = Value::Null;
        let metadata = field(pod, "metadata").unwrap_or(&nothing);
        let spec = field(pod, "spec").unwrap_or(&nothing);
        let status = field(pod, "status").unwrap_or(&nothing);

        // S32: finished pods are out of every table, whatever address they still show.
        // S33: a deletionTimestamp changes nothing: terminating pods stay enforced and stay peers.
        if matches!(text(status, "phase"), Some("Succeeded" | "Failed")) {
            return None;
        }
        Some(Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: labels(metadata, "labels"),
            shown: addresses(status),
            node: text(spec, "nodeName").map(str::to_owned),
            ports: named_ports(spec),
            started: text(status, "startTime").and_then(seconds),
            uid: text(metadata, "uid").unwrap_or_default().to_owned(),
        })
    }

    /// `namespace/name`.
    pub(crate) fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// S25: the number behind a port's name and protocol; the first declaration wins.
    pub(crate) fn named_port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        first_named(&self.ports, name, protocol)
    }

    /// S50: greater is the rightful owner of an address that both show: the later startTime (absent is oldest),
    /// then the greater UID. Where these are equal, the later by namespace and name, to be deterministic.
    pub(crate) fn newer(&self, other: &Pod) -> Ordering {
        (self.started, &self.uid, &self.namespace, &self.name).cmp(&(
            other.started,
            &other.uid,
            &other.namespace,
            &other.name,
        ))
    }
}

fn is_host_network(pod: &Value) -> bool {
    let spec = field(pod, "spec");
    spec.and_then(|spec| field(spec, "hostNetwork")).and_then(Value::as_bool) == Some(true)
}

/// The same of a pod's spec, whatever else the pod is.
pub(crate) fn named_port(spec: &Value, name: &str, protocol: Protocol) -> Option<u16> {
    first_named(&named_ports(spec), name, protocol)
}

fn first_named(ports: &[(String, Protocol, u16)], name: &str, protocol: Protocol) -> Option<u16> {
    let (_, _, number) = ports.iter().find(|(mine, its, _)| mine == name && *its == protocol)?;
    Some(*number)
}

/// S32: all of status.podIPs count; podIP does where there are none.
pub(crate) fn addresses(status: &Value) -> Vec<IpAddr> {
    let mut texts: Vec<&str> = Vec::new();
    if items(status, "podIPs").next().is_some() {
        texts.extend(items(status, "podIPs").filter_map(|entry| text(entry, "ip")));
    } else {
        texts.extend(text(status, "podIP"));
    }
    texts.into_iter().filter_map(|text| text.parse().ok()).collect()
}

/// S25: containers in their order, then restartable init containers (sidecars); absent protocol is TCP.
/// A declaration that is itself invalid declares nothing.
fn named_ports(spec: &Value) -> Vec<(String, Protocol, u16)> {
    let sidecars =
        items(spec, "initContainers").filter(|container| text(container, "restartPolicy") == Some("Always"));
    items(spec, "containers")
        .chain(sidecars)
        .flat_map(|container| items(container, "ports"))
        .filter_map(|port| {
            let protocol = match field(port, "protocol") {
                None => Protocol::Tcp,
                Some(protocol) => Protocol::parse(protocol.as_str()?)?,
            };
            let number = port_number(field(port, "containerPort")?)?;
            Some((text(port, "name")?.to_owned(), protocol, number))
        })
        .collect()
}

/// The virtual addresses of a Service.
pub(crate) fn virtual_addresses(service: &Value) -> Vec<IpAddr> {
    let nothing = Value::Null;
    let spec = field(service, "spec").unwrap_or(&nothing);
    let balancer = field(service, "status").and_then(|status| field(status, "loadBalancer"));
    let mut texts: Vec<&str> = Vec::new();
    texts.extend(text(spec, "clusterIP"));
    texts.extend(items(spec, "clusterIPs").filter_map(Value::as_str));
    texts.extend(items(spec, "externalIPs").filter_map(Value::as_str));
    // What a proxy gets is not translated here.
    let entries =
        items(balancer.unwrap_or(&nothing), "ingress").filter(|entry| text(entry, "ipMode") != Some("Proxy"));
    texts.extend(entries.filter_map(|entry| text(entry, "ip")));
    // "None" and "" are no addresses.
    texts.into_iter().filter_map(|text| text.parse().ok()).collect()
}

/// The addresses of a Node.
pub(crate) fn node_addresses(node: &Value) -> Vec<IpAddr> {
    let nothing = Value::Null;
    let status = field(node, "status").unwrap_or(&nothing);
    items(status, "addresses").filter_map(|entry| text(entry, "address")?.parse().ok()).collect()
}

/// An RFC 3339 time in seconds since 1970, UTC; fractions are left off, as Kubernetes does.
fn seconds(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let mark = |at: usize| text.as_bytes().get(at).copied();
    if (mark(4), mark(7), mark(13), mark(16)) != (Some(b'-'), Some(b'-'), Some(b':'), Some(b':')) {
        return None;
    }
    if !matches!(mark(10), Some(b'T' | b't' | b' ')) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);

    let zone = text.get(19..)?;
    let zone = match zone.strip_prefix('.') {
        None => zone,
        Some(fraction) => fraction.trim_start_matches(|digit: char| digit.is_ascii_digit()),
    };
    let offset = match zone {
        "Z" | "z" => 0,
        zone => {
            let (hours, minutes) = zone.get(1..)?.split_once(':')?;
            let seconds = hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60;
            match zone.get(..1)? {
                "+" => seconds,
                "-" => -seconds,
                _ => return None,
            }
        }
    };
    // Days since 1970 in the proleptic Gregorian calendar, the year starting in March.
    let (shifted_year, shifted_month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = shifted_year / 4 - shifted_year / 100 + shifted_year / 400;
    let days = shifted_year * 365 + leap_days + (shifted_month * 153 + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second - offset)
}
