//! From the word `svc/NAMESPACE/NAME:PORT`, or a Service's virtual address, to a Service's port and its backends.

use std::net::IpAddr;

use portcullis_policy::answer::Family;
use portcullis_policy::backends::{
    Backend, NoPort, PortName, backends, find_port, readiness_is_known, services_at,
};
use portcullis_policy::frame::Traffic;
use portcullis_policy::model::{Cluster, ObjectKey, Protocol, Service, ServiceKind, ServicePort, TargetPort};
use portcullis_policy::select::Directory;

use super::ask::{AskError, Sent};
use super::ends::nearest;

/// What a Service's word begins with.
const PREFIX: &str = "svc/";

/// A Service's port, found.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The Service.
    pub key: &'a ObjectKey,
    /// The same.
    pub service: &'a Service,
    /// Its port.
    pub port: &'a ServicePort,
}

/// What a word says of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Word<'a> {
    key: ObjectKey,
    port: Option<PortName<'a>>,
    protocol: Option<Protocol>,
}

/// The Service's port that TO means; `None` where it is none. A Service that has one port need not be told which.
pub fn target<'a>(
    cluster: &'a Cluster,
    text: &str,
    sent: Option<Sent>,
    namespace: Option<&str>,
) -> Result<Option<Target<'a>>, AskError> {
    let Some(word) = word(cluster, text, namespace)? else { return Ok(None) };
    let Some((key, service)) = cluster.services.get_key_value(&word.key) else {
        let known = nearest(&cluster.services.keys().collect::<Vec<_>>(), &word.key);
        return Err(AskError::UnknownService { service: word.key, known });
    };
    match service.kind {
        ServiceKind::ExternalName => return Err(AskError::ExternalName(word.key)),
        ServiceKind::Virtual | ServiceKind::Headless => {}
    }
    let differ = |sent: Sent| AskError::TwoPorts { text: text.to_owned(), sent: sent.into() };
    let (port, protocol) = match sent {
        None => (word.port, word.protocol),
        Some(Sent::Traffic(Traffic::Echo)) => return Err(AskError::ServiceEcho(text.to_owned())),
        Some(sent @ (Sent::Protocol(protocol) | Sent::Traffic(Traffic::To(protocol, _))))
            if word.protocol.is_some_and(|said| said != protocol) =>
        {
            return Err(differ(sent));
        }
        Some(Sent::Protocol(protocol)) => (word.port, Some(protocol)),
        Some(sent @ Sent::Traffic(Traffic::To(protocol, number))) => {
            let port = PortName::Number(number);
            if let Some(said) = word.port {
                let said = find_port(service, said, Some(protocol))
                    .map_err(|why| no_port(key, service, &shown(Some(said), Some(protocol)), why))?;
                if said.port != number {
                    return Err(differ(sent));
                }
            }
            (Some(port), Some(protocol))
        }
    };
    let found = match port {
        Some(port) => find_port(service, port, protocol)
            .map_err(|why| no_port(key, service, &shown(Some(port), protocol), why))?,
        None => only_port(key, service, protocol)?,
    };
    Ok(Some(Target { key, service, port: found }))
}

/// True where a word begins as a Service's.
#[must_use]
pub fn may_be_named(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// True where the word is a Service's, whether there is one or not.
#[must_use]
pub fn is_named(cluster: &Cluster, text: &str, namespace: Option<&str>) -> bool {
    word(cluster, text, namespace).map_or(true, |word| word.is_some())
}

/// The Services that have a virtual address, of which the first that has the port is meant.
#[derive(Debug)]
pub enum AtAddress<'a> {
    /// This port of one, and who else has the same address and port.
    Port(Target<'a>, Vec<&'a ObjectKey>),
    /// None has it: the Services with their ports, in words.
    NoPort(String),
    /// It is no Service's.
    None,
}

/// Whose virtual address and port this is.
#[must_use]
pub fn at_address<'a>(
    cluster: &'a Cluster,
    directory: &Directory<'_>,
    address: IpAddr,
    traffic: Traffic,
) -> AtAddress<'a> {
    let Traffic::To(protocol, number) = traffic else { return AtAddress::None };
    if !directory.virtual_addresses.contains(&address) {
        return AtAddress::None;
    }
    let all: Vec<(&ObjectKey, &Service)> = services_at(cluster, address).collect();
    let port = |service| find_port(service, PortName::Number(number), Some(protocol)).ok();
    let mut having =
        all.iter().filter_map(|(key, service)| Some(Target { key, service, port: port(service)? }));
    if let Some(first) = having.next() {
        return AtAddress::Port(first, having.map(|target| target.key).collect());
    }
    let words = all.iter().map(|(key, service)| match known_ports(service, None) {
        ports if ports.is_empty() => format!("Service {key} has no ports"),
        ports => format!("Service {key} has {}", ports.join(", ")),
    });
    AtAddress::NoPort(words.collect::<Vec<_>>().join("; "))
}

impl Target<'_> {
    /// The packet that opens a flow to one of its backends.
    #[must_use]
    pub fn traffic(&self, backend: &Backend) -> Traffic {
        Traffic::To(self.port.protocol, backend.port)
    }

    /// Its backends, of one family where one is wanted, and what there is to know of how they were found.
    #[must_use]
    pub fn backends(
        &self,
        cluster: &Cluster,
        directory: &Directory<'_>,
        family: Option<Family>,
    ) -> (Vec<Backend>, Vec<String>) {
        let mut all = backends(cluster, directory, self.key, self.service, self.port);
        let mut notes = self.notes(cluster, &all);
        let some = !all.is_empty();
        if let Some(family) = family {
            all.retain(|backend| Family::of(backend.address) == family);
            if some && all.is_empty() {
                notes.push(format!("no backend of Service {} has an {} address", self.key, family.name()));
            }
        }
        (all, notes)
    }

    /// `svc/NAMESPACE/NAME:PORT`, with the protocol where the number alone does not tell.
    #[must_use]
    pub fn name(&self) -> String {
        let Self { key, service, port } = self;
        match find_port(service, PortName::Number(port.port), None) {
            Ok(_) => format!("{PREFIX}{key}:{}", port.port),
            Err(NoPort::Ambiguous | NoPort::Unknown) => {
                format!("{PREFIX}{key}:{}/{}", port.port, port.protocol)
            }
        }
    }

    fn notes(&self, cluster: &Cluster, found: &[Backend]) -> Vec<String> {
        let Self { key, service, .. } = self;
        let mut notes = Vec::new();
        if service.kind == ServiceKind::Headless {
            notes.push(format!(
                "Service {key} is headless: nobody translates, so clients send to the target port of an address that \
                 DNS tells"
            ));
        }
        if !readiness_is_known(cluster, key, service) && !found.is_empty() {
            notes.push(format!(
                "pods that the selector of Service {key} matches count whether they are ready or not: no EndpointSlice \
                 of the controller is known"
            ));
        }
        if found.is_empty() {
            notes.push(format!("Service {key} has no backend: {}", why_none(cluster, self)));
        }
        notes
    }
}

fn why_none(cluster: &Cluster, target: &Target<'_>) -> String {
    let Target { key, service, port } = target;
    if readiness_is_known(cluster, key, service) {
        return "no EndpointSlice has an address that is ready at this port".to_owned();
    }
    let labels = "no live pod of its namespace has the labels of spec.selector";
    match &port.target {
        TargetPort::Number(_) => labels.to_owned(),
        TargetPort::Name(name) => {
            format!("{labels} and declares the containerPort {name} of {}", port.protocol)
        }
    }
}

/// Reads the word; `None` where it is no Service's. A namespace may be called `svc` too.
fn word<'t>(cluster: &Cluster, text: &'t str, namespace: Option<&str>) -> Result<Option<Word<'t>>, AskError> {
    let Some(rest) = text.strip_prefix(PREFIX) else { return Ok(None) };
    let bad = || AskError::BadService(text.to_owned());
    let (name, port) = match rest.split_once(':') {
        None => (rest, None),
        Some((name, port)) => (name, Some(port)),
    };
    let key = match (name.split_once('/'), namespace) {
        (Some((namespace, name)), _) => ObjectKey::new(namespace, name),
        (None, _) if port.is_none() && cluster.pods.contains_key(&ObjectKey::new("svc", name)) => {
            return Ok(None);
        }
        (None, Some(namespace)) => ObjectKey::new(namespace, name),
        (None, None) => return Err(bad()),
    };
    if key.namespace.is_empty() || key.name.is_empty() || key.name.contains('/') {
        return Err(bad());
    }
    let (port, protocol) = match port.map(|port| port.split_once('/').unwrap_or((port, ""))) {
        None => (None, None),
        Some(("", _)) => return Err(bad()),
        Some((port, "")) => (Some(port), None),
        Some((port, protocol)) => {
            let protocol = Protocol::from_name(&protocol.to_ascii_uppercase()).ok_or_else(bad)?;
            (Some(port), Some(protocol))
        }
    };
    Ok(Some(Word { key, port: port.map(PortName::read), protocol }))
}

fn shown(port: Option<PortName<'_>>, protocol: Option<Protocol>) -> String {
    let port = match port {
        None => String::new(),
        Some(PortName::Number(number)) => number.to_string(),
        Some(PortName::Name(name)) => name.to_owned(),
    };
    protocol.map_or_else(|| port.clone(), |protocol| format!("{port}/{protocol}"))
}

fn no_port(key: &ObjectKey, service: &Service, asked: &str, why: NoPort) -> AskError {
    let service_key = key.clone();
    match why {
        NoPort::Unknown => AskError::UnknownPort {
            service: service_key,
            asked: asked.to_owned(),
            known: known_ports(service, None),
        },
        NoPort::Ambiguous => {
            let known = known_ports(service, Some(asked));
            AskError::WhichPort { service: service_key, known }
        }
    }
}

fn only_port<'s>(
    key: &ObjectKey,
    service: &'s Service,
    protocol: Option<Protocol>,
) -> Result<&'s ServicePort, AskError> {
    let mut of =
        service.ports.iter().filter(|port| protocol.is_none_or(|protocol| port.protocol == protocol));
    match (of.next(), of.next()) {
        (Some(port), None) => Ok(port),
        (Some(_), Some(_)) => {
            Err(AskError::WhichPort { service: key.clone(), known: known_ports(service, None) })
        }
        (None, _) => {
            let asked = protocol.map_or("", Protocol::name);
            Err(no_port(key, service, asked, NoPort::Unknown))
        }
    }
}

/// A Service's ports as they can be asked for, `80/TCP (http)`; those of one name or number where one is asked for.
fn known_ports(service: &Service, asked: Option<&str>) -> Vec<String> {
    let is_meant = |port: &&ServicePort| {
        asked.is_none_or(|asked| port.port.to_string() == asked || *port.name == *asked)
    };
    let name = |port: &ServicePort| match &*port.name {
        "" => String::new(),
        name => format!(" ({name})"),
    };
    let ports = service.ports.iter().filter(is_meant);
    ports.map(|port| format!("{}/{}{}", port.port, port.protocol, name(port))).collect()
}
