//! Services, and the EndpointSlices that name their backends.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Labels, ObjectKey, Protocol};

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Virtual addresses: clusterIPs, externalIPs, load-balancer addresses. In no order that matters; a headless one
    /// may have none.
    pub addresses: BTreeSet<IpAddr>,
    /// How clients come to its backends.
    pub kind: ServiceKind,
    /// Of which its backends are.
    pub families: Families,
    /// The labels that its pods have, all of them; `None` where it selects no pod: others say who its backends are.
    pub selector: Option<Box<Labels>>,
    /// Its ports, as written.
    pub ports: Box<[ServicePort]>,
}

/// How clients come to a Service's backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// By an address that somebody translates.
    Virtual,
    /// By the backends' own addresses (`clusterIP: None`): nobody translates, and clients send to the target port.
    Headless,
    /// By another name (`type: ExternalName`): it has no backends here.
    ExternalName,
}

/// The address families of a Service's backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// Either, where nothing is said.
    Both,
    /// IPv4 alone.
    Ipv4,
    /// IPv6 alone.
    Ipv6,
}

impl Families {
    /// True if an address is of one of them.
    #[must_use]
    pub const fn hold(self, address: IpAddr) -> bool {
        match self {
            Self::Both => true,
            Self::Ipv4 => address.is_ipv4(),
            Self::Ipv6 => address.is_ipv6(),
        }
    }
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, empty where it has none.
    pub name: Box<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Where clients send to.
    pub port: u16,
    /// Where it leads on the backends.
    pub target: TargetPort,
    /// Where every node takes it too.
    pub node_port: Option<u16>,
}

/// A port on the backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// The same on each.
    Number(u16),
    /// A containerPort's name: each pod's own (S25).
    Name(Box<str>),
}

/// An EndpointSlice: some of the backends of a Service of its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The Service's name.
    pub service: Box<str>,
    /// Who made it.
    pub maker: SliceMaker,
    /// Its backends.
    pub endpoints: Box<[SliceEndpoint]>,
    /// The ports of each of them.
    pub ports: Box<[SlicePort]>,
}

/// Who made an EndpointSlice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SliceMaker {
    /// The controller that follows the Service's selector.
    Controller,
    /// Anybody else.
    Other,
}

/// A backend of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address: of several the first, as kube-proxy takes it.
    pub address: IpAddr,
    /// The Pod that it says it is.
    pub pod: Option<ObjectKey>,
    /// Whether it takes connections.
    pub readiness: Readiness,
}

/// Whether a backend takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It does.
    Ready,
    /// It ends, and still answers: it is used where no other is ready.
    Terminating,
    /// It does not.
    NotReady,
}

/// A port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service's port, empty where that has none.
    pub name: Box<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// On the backends.
    pub port: u16,
}
