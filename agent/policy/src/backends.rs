//! Whom a Service leads to: the address and port of each backend, as EndpointSlices or selectors and pods tell. Owns
//! which of them count; says nothing of what policies make of them.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::answer::{Family, owned_addresses};
use crate::model::{
    Cluster, EndpointSlice, ObjectKey, Pod, Protocol, Readiness, Service, ServicePort, SliceMaker, TargetPort,
};
use crate::select::Directory;

/// One backend of a Service's port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// Its address.
    pub address: IpAddr,
    /// Where it takes connections: the target port.
    pub port: u16,
    /// The pod that it is, if any: for one that shares its node's network `address` is the node's.
    pub pod: Option<ObjectKey>,
}

/// A Service's port as somebody calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortName<'a> {
    /// Its number.
    Number(u16),
    /// Its name.
    Name(&'a str),
}

impl<'a> PortName<'a> {
    /// Reads a number from 1 to 65535, or a name.
    #[must_use]
    pub fn read(text: &'a str) -> Self {
        text.parse().ok().filter(|number| *number != 0).map_or(Self::Name(text), Self::Number)
    }

    fn means(self, port: &ServicePort) -> bool {
        match self {
            Self::Number(number) => port.port == number,
            Self::Name(name) => !name.is_empty() && *port.name == *name,
        }
    }
}

/// Why a Service's port is not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPort {
    /// None is called so.
    Unknown,
    /// Several are, of different protocols.
    Ambiguous,
}

/// The port of a Service that is called so, of this protocol where one is named.
pub fn find_port<'s>(
    service: &'s Service,
    name: PortName<'_>,
    protocol: Option<Protocol>,
) -> Result<&'s ServicePort, NoPort> {
    let of = |port: &&ServicePort| protocol.is_none_or(|protocol| port.protocol == protocol);
    let mut found = service.ports.iter().filter(|port| name.means(port)).filter(of);
    let first = found.next().ok_or(NoPort::Unknown)?;
    if found.any(|port| port.protocol != first.protocol) { Err(NoPort::Ambiguous) } else { Ok(first) }
}

/// The Services that have an address, by namespace, then name.
pub fn services_at(cluster: &Cluster, address: IpAddr) -> impl Iterator<Item = (&ObjectKey, &Service)> {
    cluster.services.iter().filter(move |(_, service)| service.addresses.contains(&address))
}

/// Backends that count so far, and whether each is ready.
type Found = BTreeMap<(IpAddr, u16), (Readiness, Option<ObjectKey>)>;

/// The backends of a Service's port, by address and port. What the endpointslice controller made counts in place of
/// selector and pods, for it knows which pods are ready; of those without its slices nobody does, so they all count.
/// Slices of others count beside either. Who ends counts where nobody is ready, as for kube-proxy.
#[must_use]
pub fn backends(
    cluster: &Cluster,
    directory: &Directory<'_>,
    key: &ObjectKey,
    service: &Service,
    port: &ServicePort,
) -> Vec<Backend> {
    let mut found = Found::new();
    let slices = slices_of(cluster, key);
    if slices.iter().all(|slice| slice.maker != SliceMaker::Controller) {
        from_pods(cluster, directory, key, service, port, &mut found);
    }
    for slice in slices {
        from_slice(cluster, directory, slice, port, &mut found);
    }
    let is_any_ready = found.values().any(|(readiness, _)| *readiness == Readiness::Ready);
    let wanted = if is_any_ready { Readiness::Ready } else { Readiness::Terminating };
    let used = found.into_iter().filter(|(_, (readiness, _))| *readiness == wanted);
    used.map(|((address, port), (_, pod))| Backend { address, port, pod }).collect()
}

/// True if it is known which backends of a Service are ready.
#[must_use]
pub fn readiness_is_known(cluster: &Cluster, key: &ObjectKey, service: &Service) -> bool {
    service.selector.is_none()
        || slices_of(cluster, key).iter().any(|slice| slice.maker == SliceMaker::Controller)
}

fn slices_of<'a>(cluster: &'a Cluster, service: &ObjectKey) -> Vec<&'a EndpointSlice> {
    let from = ObjectKey::new(service.namespace.as_str(), "");
    let here = cluster.slices.range(from..).take_while(|(key, _)| key.namespace == service.namespace);
    here.map(|(_, slice)| slice).filter(|slice| *slice.service == *service.name).collect()
}

/// The pods of the Service's namespace that have its labels.
fn from_pods(
    cluster: &Cluster,
    directory: &Directory<'_>,
    key: &ObjectKey,
    service: &Service,
    port: &ServicePort,
    found: &mut Found,
) {
    let Some(selector) = &service.selector else { return };
    let from = ObjectKey::new(key.namespace.as_str(), "");
    let here = cluster.pods.range(from..).take_while(|(pod, _)| pod.namespace == key.namespace);
    for (name, pod) in here.filter(|(_, pod)| pod.is_live() && pod.has_known_labels()) {
        if !selector.iter().all(|(label, value)| pod.labels.get(label) == Some(value)) {
            continue;
        }
        let Some(number) = target(pod, port) else { continue };
        for address in addresses(cluster, directory, name, pod) {
            if service.families.hold(address) {
                // One of the host may show what a pod owns: what is sent there goes to that one.
                let owner = directory.owners.get(&address).copied().unwrap_or(name);
                found.insert((address, number), (Readiness::Ready, Some(owner.clone())));
            }
        }
    }
}

/// The number of the target port on this pod, `None` where it declares none of that name and protocol.
fn target(pod: &Pod, port: &ServicePort) -> Option<u16> {
    match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => pod.named_ports.get(&(name.to_string(), port.protocol)).copied(),
    }
}

/// The first address of each family: of a pod that shares its node's network the node's.
fn addresses(cluster: &Cluster, directory: &Directory<'_>, key: &ObjectKey, pod: &Pod) -> Vec<IpAddr> {
    let all = if pod.has_own_network() {
        owned_addresses(directory, key)
    } else if pod.addresses.is_empty() {
        let node = pod.node.as_ref().and_then(|name| cluster.nodes.get(name));
        node.map(|node| node.addresses.clone()).unwrap_or_default()
    } else {
        pod.addresses.clone()
    };
    let first = |family| all.iter().copied().find(|address| Family::of(*address) == family);
    [Family::Ipv4, Family::Ipv6].into_iter().filter_map(first).collect()
}

/// A slice's ports are the Service's by name and protocol, as for kube-proxy.
fn from_slice(
    cluster: &Cluster,
    directory: &Directory<'_>,
    slice: &EndpointSlice,
    port: &ServicePort,
    found: &mut Found,
) {
    let is_meant = |name: &str, protocol| *port.name == *name && port.protocol == protocol;
    for number in slice.ports.iter().filter(|p| is_meant(&p.name, p.protocol)).map(|p| p.port) {
        for endpoint in &slice.endpoints {
            // Who it says it is may be gone, and another have the address.
            let owner = directory.owners.get(&endpoint.address).map(|owner| (*owner).clone());
            let on_the_node = |pod: &&ObjectKey| {
                cluster.pods.get(*pod).is_some_and(|pod| pod.is_live() && !pod.has_own_network())
            };
            let pod = owner.or_else(|| endpoint.pod.as_ref().filter(on_the_node).cloned());
            let place = found.entry((endpoint.address, number)).or_insert((endpoint.readiness, pod));
            place.0 = better(place.0, endpoint.readiness);
        }
    }
}

/// Of one backend in two slices the better counts.
fn better(one: Readiness, other: Readiness) -> Readiness {
    match (one, other) {
        (Readiness::Ready, _) | (_, Readiness::Ready) => Readiness::Ready,
        (Readiness::Terminating, _) | (_, Readiness::Terminating) => Readiness::Terminating,
        (Readiness::NotReady, Readiness::NotReady) => Readiness::NotReady,
    }
}
