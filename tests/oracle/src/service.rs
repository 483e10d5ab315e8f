//! Whom a Service leads to, read from the manifests each time that it is asked. It knows no policy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;

use crate::read::{field, items, labels, port_number, text};
use crate::verdict::{Family, Protocol};
use crate::workload::{addresses, named_port, node_addresses};
use crate::world::World;

/// The controller that makes slices from selectors.
const CONTROLLER: &str = "endpointslice-controller.k8s.io";

/// By kind, namespace and name: the later over the earlier.
type Objects<'a> = BTreeMap<(&'a str, String, String), &'a Value>;

/// The addresses and ports behind a port of the Service `namespace/name`; none if there is no such Service or port.
///
/// Slices of the controller stand for the pods that the selector matches; where there are none of them, each such pod
/// counts. Slices of others count in any case. Who is ready counts, and if nobody is, who ends and still serves.
#[must_use]
pub fn backends(
    manifests: &[Value],
    world: &World,
    service: &str,
    port: u16,
    protocol: Protocol,
) -> Option<BTreeSet<(IpAddr, u16)>> {
    let objects = objects(manifests);
    let (namespace, name) = service.split_once('/')?;
    let spec = field(objects.get(&("Service", namespace.to_owned(), name.to_owned()))?, "spec")?;
    let port = items(spec, "ports").find(|entry| {
        field(entry, "port").and_then(port_number) == Some(port) && protocol_of(entry) == Some(protocol)
    })?;
    let port_name = text(port, "name").unwrap_or_default();

    let here = |kind: &'static str| {
        objects
            .iter()
            .filter(move |((its, of, _), _)| *its == kind && of == namespace)
            .map(|(key, object)| (&key.2, *object))
    };
    let slices: Vec<&Value> = here("EndpointSlice")
        .map(|(_, slice)| slice)
        .filter(|slice| label(slice, "kubernetes.io/service-name") == Some(name))
        .collect();
    let from_selector =
        |slice: &&&Value| label(slice, "endpointslice.kubernetes.io/managed-by") == Some(CONTROLLER);
    let (mut ready, mut ending) = (BTreeSet::new(), BTreeSet::new());
    if !slices.iter().any(|slice| from_selector(&slice)) {
        let selector = labels(spec, "selector");
        for (pod_name, pod) in here("Pod") {
            let key = format!("{namespace}/{pod_name}");
            if selector.is_empty() || !is_live(pod) || !has_labels(pod, &selector) {
                continue;
            }
            let Some(number) = target(port, pod, protocol) else { continue };
            let all = addresses_of(&objects, world, &key, pod);
            for family in families(spec) {
                let first = all.iter().find(|address| Family::of(**address) == family);
                ready.extend(first.map(|address| (*address, number)));
            }
        }
    }
    for slice in slices {
        for entry in items(slice, "ports") {
            let is_this =
                text(entry, "name").unwrap_or_default() == port_name && protocol_of(entry) == Some(protocol);
            let Some(number) = field(entry, "port").and_then(port_number).filter(|_| is_this) else {
                continue;
            };
            for endpoint in items(slice, "endpoints") {
                let Some(address) = items(endpoint, "addresses").next().and_then(Value::as_str) else {
                    continue;
                };
                let Ok(address) = address.parse::<IpAddr>() else { continue };
                let is = |name, otherwise| {
                    let said = field(endpoint, "conditions").and_then(|conditions| field(conditions, name));
                    said.and_then(Value::as_bool).unwrap_or(otherwise)
                };
                let is_ready = is("ready", true);
                if is_ready {
                    ready.insert((address, number));
                } else if is("serving", is_ready) && is("terminating", false) {
                    ending.insert((address, number));
                }
            }
        }
    }
    Some(if ready.is_empty() { ending } else { ready })
}

fn objects(manifests: &[Value]) -> Objects<'_> {
    let mut objects = BTreeMap::new();
    for manifest in manifests {
        collect(manifest, &mut objects);
    }
    objects
}

fn collect<'a>(manifest: &'a Value, objects: &mut Objects<'a>) {
    let Some(kind) = text(manifest, "kind") else { return };
    if kind == "List" {
        items(manifest, "items").for_each(|item| collect(item, objects));
        return;
    }
    if !["Pod", "Node", "Service", "EndpointSlice"].contains(&kind) {
        return;
    }
    let of = |name| field(manifest, "metadata").and_then(|metadata| text(metadata, name)).unwrap_or_default();
    let namespace = match (kind, of("namespace")) {
        ("Node", _) => "",
        (_, "") => "default",
        (_, namespace) => namespace,
    };
    objects.insert((kind, namespace.to_owned(), of("name").to_owned()), manifest);
}

fn label<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    text(field(field(object, "metadata")?, "labels")?, name)
}

fn protocol_of(entry: &Value) -> Option<Protocol> {
    match field(entry, "protocol") {
        None => Some(Protocol::Tcp),
        Some(protocol) => Protocol::parse(protocol.as_str()?),
    }
}

/// S32.
fn is_live(pod: &Value) -> bool {
    let phase = field(pod, "status").and_then(|status| text(status, "phase"));
    !matches!(phase, Some("Succeeded" | "Failed"))
}

fn has_labels(pod: &Value, selector: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| label(pod, key) == Some(value))
}

/// The number of the target port on this pod.
fn target(port: &Value, pod: &Value, protocol: Protocol) -> Option<u16> {
    match field(port, "targetPort") {
        None => field(port, "port").and_then(port_number),
        Some(Value::String(name)) => named_port(field(pod, "spec")?, name, protocol),
        Some(number) => port_number(number),
    }
}

/// A pod with a network of its own is where it owns an address; another where it says, or where its node is.
fn addresses_of(objects: &Objects<'_>, world: &World, key: &str, pod: &Value) -> Vec<IpAddr> {
    let nothing = Value::Null;
    let spec = field(pod, "spec").unwrap_or(&nothing);
    if field(spec, "hostNetwork").and_then(Value::as_bool) != Some(true) {
        return world.addresses(key);
    }
    let shown = addresses(field(pod, "status").unwrap_or(&nothing));
    if !shown.is_empty() {
        return shown;
    }
    let node = text(spec, "nodeName").and_then(|name| objects.get(&("Node", String::new(), name.to_owned())));
    node.map(|node| node_addresses(node)).unwrap_or_default()
}

/// What `ipFamilies` says, else the families of the cluster addresses, else both.
fn families(spec: &Value) -> BTreeSet<Family> {
    let said: BTreeSet<Family> = items(spec, "ipFamilies")
        .filter_map(|family| match family.as_str()? {
            "IPv4" => Some(Family::Ipv4),
            "IPv6" => Some(Family::Ipv6),
            _ => None,
        })
        .collect();
    let cluster = items(spec, "clusterIPs").chain(field(spec, "clusterIP"));
    let by_address = cluster.filter_map(|ip| ip.as_str()?.parse().ok()).map(Family::of);
    let found = if said.is_empty() { by_address.collect() } else { said };
    if found.is_empty() { [Family::Ipv4, Family::Ipv6].into() } else { found }
}
