//! What `explain` and `matrix` ask, as it stands on the command line and on the socket, and what can be wrong
//! with it.

use std::str::FromStr;

use clap::ValueEnum;
use portcullis_policy::answer::{Family as IpFamily, Question};
use portcullis_policy::frame::{BadTraffic, Traffic};
use portcullis_policy::model::{ObjectKey, Protocol};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::output::Exit;
use crate::world::{AskKernel, KernelAnswer};

/// `--family`, and a family in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// The word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }
}

impl From<Family> for IpFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::Ipv4 => Self::Ipv4,
            Family::Ipv6 => Self::Ipv6,
        }
    }
}

impl From<IpFamily> for Family {
    fn from(family: IpFamily) -> Self {
        match family {
            IpFamily::Ipv4 => Self::Ipv4,
            IpFamily::Ipv6 => Self::Ipv6,
        }
    }
}

/// `PROTO/PORT` or `ICMP` on the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrafficText(pub Traffic);

impl TryFrom<String> for TrafficText {
    type Error = BadTraffic;

    fn try_from(text: String) -> Result<Self, BadTraffic> {
        text.parse().map(Self)
    }
}

impl From<TrafficText> for String {
    fn from(text: TrafficText) -> Self {
        text.0.to_string()
    }
}

/// The third argument of `explain`: `PROTO/PORT`, `ICMP`, or for a Service that says its port itself a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Sent {
    /// A packet.
    Traffic(Traffic),
    /// Of this protocol.
    Protocol(Protocol),
}

impl FromStr for Sent {
    type Err = BadTraffic;

    fn from_str(text: &str) -> Result<Self, BadTraffic> {
        match Protocol::from_name(&text.to_ascii_uppercase()) {
            Some(protocol) => Ok(Self::Protocol(protocol)),
            None => text.parse().map(Self::Traffic),
        }
    }
}

impl TryFrom<String> for Sent {
    type Error = BadTraffic;

    fn try_from(text: String) -> Result<Self, BadTraffic> {
        text.parse()
    }
}

impl From<Sent> for String {
    fn from(sent: Sent) -> Self {
        match sent {
            Sent::Traffic(traffic) => traffic.to_string(),
            Sent::Protocol(protocol) => protocol.to_string(),
        }
    }
}

/// What `explain` asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainRequest {
    /// Who sends.
    pub from: String,
    /// To whom.
    pub to: String,
    /// What; a Service may say it itself.
    pub sent: Option<Sent>,
    /// By which family; `None`: IPv4 where both ends have it.
    pub family: Option<Family>,
    /// Where a pod without a namespace is looked for.
    pub namespace: Option<String>,
}

/// What `matrix` asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MatrixRequest {
    /// In the order wanted; none: every declared containerPort.
    pub ports: Vec<TrafficText>,
    /// By which family; `None`: IPv4 where any pod has it.
    pub family: Option<Family>,
    /// Who answers.
    pub judge: Judge,
    /// Cells between two pods outside of these are left blank; none: no cell is.
    pub namespaces: Vec<String>,
    /// Services that are columns too, each by `svc/NAMESPACE/NAME:PORT`.
    #[serde(default)]
    pub services: Vec<String>,
    /// Whether the node and the pods in its network are rows and columns too.
    #[serde(default)]
    pub hosts: Hosts,
}

/// Whether hosts are asked about where pods are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hosts {
    /// Pods with a network of their own only.
    #[default]
    Out,
    /// Behind them the agent's node and the live pods in its network, where the host firewall is on.
    In,
}

/// Who fills a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Judge {
    /// The classifier in userspace.
    Userspace,
    /// The loaded program.
    Kernel,
}

/// A result with what has to be said beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply<T> {
    /// The result.
    pub result: T,
    /// For stderr.
    pub notes: Vec<String>,
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AskError {
    /// No such pod.
    #[error("no pod {pod}{}", suggestion(.known))]
    UnknownPod {
        /// As asked.
        pod: ObjectKey,
        /// Pods that may be meant.
        known: Vec<String>,
    },
    /// Neither a pod nor an address nor one of the words.
    #[error("`{text}` is neither NAMESPACE/POD, an address, `node`, `node/NAME`, `world` nor, as TO, svc/NAMESPACE/NAME:PORT: write one of these{}", suggestion(.known))]
    BadEnd {
        /// As asked.
        text: String,
        /// Pods that may be meant.
        known: Vec<String>,
    },
    /// More than one answer can hold.
    #[error(
        "{pods} pods at {ports} ports are more than {most} cells: name fewer ports, as in `matrix TCP/80 UDP/53`"
    )]
    TooManyCells {
        /// Pods.
        pods: usize,
        /// Ports.
        ports: usize,
        /// The bound.
        most: usize,
    },
    /// The pod has no network to be judged by.
    #[error("pod {0} is Succeeded or Failed: it owns no address any more; name a live pod or an address")]
    Finished(ObjectKey),
    /// It shares its node's network, and the node's address is not known.
    #[error(
        "pod {0} has hostNetwork, so by address it is its node, whose address is not known: set spec.nodeName and \
         give the Node's status.addresses, or name an address"
    )]
    HostNetwork(ObjectKey),
    /// It has no address of its own.
    #[error(
        "pod {0} owns no address: its status.podIPs are empty or a later pod has them; give it one, or a \
         --pod-cidr with room"
    )]
    NoAddress(ObjectKey),
    /// No such Service.
    #[error("no Service {service}{}", suggestion(.known))]
    UnknownService {
        /// As asked.
        service: ObjectKey,
        /// Services that may be meant.
        known: Vec<String>,
    },
    /// It has no such port.
    #[error("Service {service} has no port {asked}: {}", ports(.known))]
    UnknownPort {
        /// Whose.
        service: ObjectKey,
        /// As asked.
        asked: String,
        /// Those that it has.
        known: Vec<String>,
    },
    /// Nobody said which port.
    #[error("Service {service} has several ports: {}", ports(.known))]
    WhichPort {
        /// Whose.
        service: ObjectKey,
        /// Those that may be meant.
        known: Vec<String>,
    },
    /// Its port is said twice, and differently.
    #[error("`{text}` names one port and `{sent}` another: leave one of them out")]
    TwoPorts {
        /// The Service, as asked.
        text: String,
        /// The other argument.
        sent: String,
    },
    /// Nobody leads there.
    #[error(
        "Service {0} is of type ExternalName: it is another name for something outside, and has no backends here; ask \
         about the address of that"
    )]
    ExternalName(ObjectKey),
    /// Who is echoed is an address.
    #[error(
        "`{0}` is a Service, which leads to ports and answers no echo: name one of its ports, or ask about a backend's address"
    )]
    ServiceEcho(String),
    /// Services only receive.
    #[error(
        "`{0}` is a Service, from which nothing is sent: as FROM name a pod, an address, `node`, `node/NAME` or `world`"
    )]
    ServiceSends(String),
    /// It is a Service's word and is not whole.
    #[error("`{0}` names no Service's port: write svc/NAMESPACE/NAME:PORT, with the port's number or name")]
    BadService(String),
    /// Nobody said what is sent.
    #[error(
        "what is sent to `{0}` is missing: write PROTO/PORT as the third argument: TCP/80, UDP/53, SCTP/9999 or ICMP"
    )]
    NoTraffic(String),
    /// No such node.
    #[error("no Node {name}{}", suggestion(.known))]
    UnknownNode {
        /// As asked.
        name: String,
        /// All of them.
        known: Vec<String>,
    },
    /// The own node cannot be sent to.
    #[error(
        "the own node's address is not known: say which Node it is with --node-name, and give its status.addresses, \
         or name an address"
    )]
    OwnNodeAddress,
    /// The node cannot be sent to.
    #[error("Node {0} has no address in status.addresses: give it one, or name an address")]
    NodeAddress(String),
    /// There is no family that both ends have.
    #[error(
        "{from} ({from_has}) and {to} ({to_has}) have no address of {wanted}: choose another --family or other ends"
    )]
    Families {
        /// Who sends.
        from: String,
        /// Which families it has.
        from_has: String,
        /// To whom.
        to: String,
        /// Which families it has.
        to_has: String,
        /// What was looked for.
        wanted: &'static str,
    },
    /// No pod is there.
    #[error("no live pod is in namespace {name}{}", suggestion(.known))]
    UnknownNamespace {
        /// As asked.
        name: String,
        /// Namespaces that have some.
        known: Vec<String>,
    },
    /// Nothing to show.
    #[error("there is no pod: name a source with Pods, or workloads that stand for pods")]
    NoPods,
    /// The loaded program was to be asked and could not be.
    #[error("ask the kernel: {0}: do without --kernel, or run as root on a node with a running agent")]
    Kernel(String),
}

impl AskError {
    /// How the program ends.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Kernel(_) => Exit::Unfit,
            Self::UnknownPod { .. }
            | Self::BadEnd { .. }
            | Self::Finished(_)
            | Self::HostNetwork(_)
            | Self::NoAddress(_)
            | Self::UnknownNode { .. }
            | Self::OwnNodeAddress
            | Self::NodeAddress(_)
            | Self::Families { .. }
            | Self::UnknownNamespace { .. }
            | Self::UnknownService { .. }
            | Self::UnknownPort { .. }
            | Self::WhichPort { .. }
            | Self::TwoPorts { .. }
            | Self::ExternalName(_)
            | Self::ServiceEcho(_)
            | Self::ServiceSends(_)
            | Self::BadService(_)
            | Self::NoTraffic(_)
            | Self::TooManyCells { .. }
            | Self::NoPods => Exit::Usage,
        }
    }
}

fn suggestion(known: &[String]) -> String {
    if known.is_empty() { String::new() } else { format!("; there is {}", known.join(", ")) }
}

fn ports(known: &[String]) -> String {
    if known.is_empty() {
        "it has none; give it one in spec.ports, or ask about a pod".to_owned()
    } else {
        format!("name one of {}", known.join(", "))
    }
}

/// What the loaded program says to the questions of one flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The sender's.
    pub egress: Option<KernelAnswer>,
    /// The receiver's.
    pub ingress: Option<KernelAnswer>,
}

/// Puts both questions of a flow to the loaded program.
pub fn hear(
    kernel: &dyn AskKernel,
    (egress, ingress): (Option<&Question>, Option<&Question>),
) -> Result<Heard, AskError> {
    let ask = |question: Option<&Question>| match question {
        None => Ok(None),
        Some(question) => kernel.ask(question).map_err(|error| AskError::Kernel(format!("{error:#}"))),
    };
    Ok(Heard { egress: ask(egress)?, ingress: ask(ingress)? })
}
