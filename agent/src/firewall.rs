//! The host firewall as the agent was told to run it: its flags, whether somebody on the node turned it off, and which
//! HostPolicies are left out because they cut the node off.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use portcullis_policy::model::{
    Cluster, Failsafe, Host, HostNetworkPods, Mode, ObjectKey, PortSpan, Problem, Protocol, Readiness,
    Severity,
};
use thiserror::Error;

use crate::host_side::UnknownPod;
use crate::host_status::{self, Reconciled};
use crate::rollback::{Rollback, Targets};

/// File in the run directory that says that somebody turned the host firewall off.
const OFF: &str = "host-firewall.off";
/// Namespace and name of the one EndpointSlice that API servers write themselves, of the Service of that name
/// (`kubernetesServiceName` of Kubernetes). Others of the Service anybody may make who may make EndpointSlices there.
const API_SERVER: (&str, &str) = ("default", "kubernetes");
/// Ranges that one flag of failsafe ports may name.
const MOST_SPANS: usize = 64;
/// Addresses that are believed to be the API server's because its EndpointSlice says so.
const MOST_BEHIND_SERVICE: usize = 16;

/// The flags of the host firewall.
#[derive(Debug, Args)]
pub struct HostArgs {
    /// Judge hostNetwork pods, each by itself, and the node by HostPolicies
    #[allow(clippy::doc_markdown)] // the text of --help
    #[arg(long, env = "PORTCULLIS_HOST_FIREWALL")]
    host_firewall: bool,
    /// Whether plain NetworkPolicies select hostNetwork pods, too
    #[allow(clippy::doc_markdown)] // the text of --help
    #[arg(long, value_enum, env = "PORTCULLIS_HOST_NETWORK_PODS", default_value = "ignore")]
    host_network_pods: HostNetworkPodsArg,
    /// What happens to a hostNetwork pod of which nothing is known yet: failsafe ports alone, or all
    #[allow(clippy::doc_markdown)] // the text of --help
    #[arg(long, value_enum, env = "PORTCULLIS_UNKNOWN_POD", default_value = "deny")]
    unknown_pod: UnknownPodArg,
    /// Ports of the node that always get through (tcp/22,udp/68,tcp/2379-2380); none: no port
    #[arg(long, value_name = "PORTS", env = "PORTCULLIS_FAILSAFE_IN")]
    failsafe_in: Option<Spans>,
    /// Ports that the node always reaches
    #[arg(long, value_name = "PORTS", env = "PORTCULLIS_FAILSAFE_OUT")]
    failsafe_out: Option<Spans>,
    /// Where the node reaches the API server, beside what the agent finds out by itself; repeatable or with commas
    #[arg(
        long = "api-server",
        value_name = "HOST:PORT",
        env = "PORTCULLIS_API_SERVER",
        value_delimiter = ','
    )]
    api_servers: Vec<String>,
    /// Seconds for which the API server, or most of the other nodes, must be out of reach after a HostPolicy came or changed
    /// for it to be rolled back; 0: never
    #[allow(clippy::doc_markdown)] // the text of --help
    #[arg(long, value_name = "SECONDS", env = "PORTCULLIS_ROLLBACK_AFTER", default_value_t = 60)]
    rollback_after: u32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum HostNetworkPodsArg {
    /// `HostPolicies` alone do
    Ignore,
    /// Those of their namespaces, as of other pods
    NetworkPolicy,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum UnknownPodArg {
    /// Failsafe ports pass
    Deny,
    /// Everything passes
    Allow,
}

/// Why flags of the host firewall cannot be used.
#[derive(Debug, Error)]
pub enum HostError {
    /// Nobody knows which node this is.
    #[error("--host-firewall needs --node-name: the name of this node's object")]
    Nameless,
    /// An API server's address.
    #[error("--api-server {text}: {cause}: write ADDRESS:PORT, or a name that this node can resolve")]
    Server {
        /// As given.
        text: String,
        /// Why it is none.
        cause: io::Error,
    },
}

/// Ports as a flag names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spans(Vec<PortSpan>);

impl std::str::FromStr for Spans {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(Vec::new()));
        }
        let spans: Vec<PortSpan> = text.split(',').map(span).collect::<Result<_, _>>()?;
        if spans.len() > MOST_SPANS {
            return Err(format!("at most {MOST_SPANS} ports or ranges"));
        }
        Ok(Self(spans))
    }
}

fn span(text: &str) -> Result<PortSpan, String> {
    let wrong = || format!("`{text}` is no port: write tcp/22, udp/60000-61000, or none");
    let (protocol, ports) = text.split_once('/').ok_or_else(wrong)?;
    let protocol = Protocol::from_name(&protocol.to_ascii_uppercase()).ok_or_else(wrong)?;
    let (from, to) = ports.split_once('-').unwrap_or((ports, ports));
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
    let (from, to) = (port(from)?, port(to)?);
    if from > to { Err(wrong()) } else { Ok((protocol, from, to)) }
}

/// How the host firewall runs.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// What all hosts' rulesets are made with.
    pub host: Host,
    /// What happens to pods of which nothing is known.
    pub unknown: UnknownPod,
    /// For how long the node may be cut off; `None`: nothing is rolled back.
    pub rollback_after: Option<Duration>,
}

impl HostArgs {
    /// The options; `None` where the host firewall is off.
    pub fn options(self, node: Option<&str>) -> Result<Option<HostOptions>, HostError> {
        if !self.host_firewall {
            return Ok(None);
        }
        let mut host = Host::new(node.ok_or(HostError::Nameless)?);
        host.selects = match self.host_network_pods {
            HostNetworkPodsArg::Ignore => HostNetworkPods::Ignore,
            HostNetworkPodsArg::NetworkPolicy => HostNetworkPods::NetworkPolicy,
        };
        let usual = Failsafe::default();
        host.failsafe = Failsafe {
            ingress: self.failsafe_in.map_or(usual.ingress, |spans| spans.0),
            egress: self.failsafe_out.map_or(usual.egress, |spans| spans.0),
        };
        for text in self.api_servers {
            let found =
                text.to_socket_addrs().map_err(|cause| HostError::Server { text: text.clone(), cause })?;
            host.api_servers.extend(found.map(|at| (at.ip(), at.port())));
        }
        let unknown = match self.unknown_pod {
            UnknownPodArg::Deny => UnknownPod::Deny,
            UnknownPodArg::Allow => UnknownPod::Allow,
        };
        let rollback_after =
            (self.rollback_after > 0).then(|| Duration::from_secs(self.rollback_after.into()));
        Ok(Some(HostOptions { host, unknown, rollback_after }))
    }
}

/// The file that says that the host firewall is turned off.
#[must_use]
pub fn off_file(run_dir: &Path) -> PathBuf {
    run_dir.join(OFF)
}

/// True if somebody turned it off.
#[must_use]
pub fn is_off(run_dir: &Path) -> bool {
    fs::symlink_metadata(off_file(run_dir)).is_ok()
}

/// The host firewall of a running agent.
#[derive(Debug)]
pub struct Firewall {
    host: Host,
    off: PathBuf,
    rollback: Option<Rollback>,
    /// Whether somebody turned it off, as it was last looked at.
    is_off: bool,
}

impl Firewall {
    /// As these options say, on a node in this mode; what was rolled back is read from the run directory.
    pub fn open(options: HostOptions, mode: Mode, run_dir: &Path) -> anyhow::Result<Self> {
        let HostOptions { host, unknown: _, rollback_after } = options;
        let rollback = rollback_after.map(|after| Rollback::open(after, mode, run_dir)).transpose()?;
        Ok(Self { host, off: off_file(run_dir), rollback, is_off: false })
    }

    /// What the host firewall is told besides the objects, and which HostPolicies do not count; nothing where it is off.
    pub fn look(&mut self, said: &Cluster, servers: &[SocketAddr]) -> (Option<Host>, BTreeSet<String>) {
        self.is_off = fs::symlink_metadata(&self.off).is_ok();
        if self.is_off {
            if let Some(rollback) = &mut self.rollback {
                rollback.turned_off();
            }
            return (None, BTreeSet::new());
        }
        let mut host = self.host.clone();
        host.api_servers.extend(servers.iter().map(|at| (at.ip(), at.port())));
        host.api_servers.extend(behind_service(said));
        let left_out = match &mut self.rollback {
            None => BTreeSet::new(),
            Some(rollback) => {
                let selected = host_status::selected(said, &host.node);
                let selecting = selected.into_iter().filter(|(_, whom)| !whom.is_empty());
                let selecting = selecting.map(|(name, _)| name.clone()).collect();
                rollback.look(&said.host_policies, &selecting, &Targets::of(said, &host))
            }
        };
        (Some(host), left_out)
    }

    /// What it was told last has been reconciled, these being enforced here. Policies that are in force completely begin to
    /// prove harmless, or go on.
    pub fn reconciled(&mut self, after: Reconciled<'_>, local: &BTreeMap<ObjectKey, u32>) {
        let Some(rollback) = self.rollback.as_mut().filter(|_| after.complete && !self.is_off) else {
            return;
        };
        let is_here = |key: &ObjectKey| local.contains_key(key);
        let selected = host_status::selected(after.cluster, &self.host.node);
        let in_force = selected
            .into_iter()
            .filter(|(_, whom)| whom.iter().any(is_here) && !whom.iter().any(|key| after.held.contains(key)));
        rollback.reconciled(&in_force.map(|(name, _)| name.clone()).collect());
    }

    /// The node that it guards.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.host.node
    }

    /// What is odd about it.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.is_off {
            problems.push(Problem::of_node(
                Severity::Warning,
                format!(
                    "the host firewall was turned off on this node ({}): `portcullis host-firewall on` turns it on again",
                    self.off.display()
                ),
            ));
        }
        problems.extend(self.rollback.iter().flat_map(Rollback::problems));
        problems
    }

    /// What came of rolling back, for metrics and for the policies' status.
    #[must_use]
    pub const fn rollback(&self) -> Option<&Rollback> {
        self.rollback.as_ref()
    }
}

/// The addresses of the API server behind its Service: what is sent to the Service is seen after translation.
fn behind_service(said: &Cluster) -> BTreeSet<(IpAddr, u16)> {
    let (namespace, name) = API_SERVER;
    let is_it = |key: &ObjectKey| key.namespace == namespace && key.name == name;
    let slices = said.slices.iter().filter(|(key, slice)| is_it(key) && *slice.service == *name);
    let all: BTreeSet<(IpAddr, u16)> = slices
        .flat_map(|(_, slice)| {
            let ready = slice.endpoints.iter().filter(|endpoint| endpoint.readiness == Readiness::Ready);
            let ports = slice.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
            ports.flat_map(move |port| ready.clone().map(move |endpoint| (endpoint.address, port.port)))
        })
        .collect();
    all.into_iter().take(MOST_BEHIND_SERVICE).collect()
}

#[cfg(test)]
mod tests {
    use portcullis_policy::model::{EndpointSlice, SliceEndpoint, SliceMaker, SlicePort};

    use super::*;

    #[test]
    fn failsafe_ports_are_read_or_refused() {
        let read = |text: &str| text.parse::<Spans>();
        assert_eq!(read("none").unwrap(), Spans(Vec::new()));
        let spans = vec![(Protocol::Tcp, 22, 22), (Protocol::Udp, 60_000, 61_000)];
        assert_eq!(read("tcp/22,UDP/60000-61000").unwrap(), Spans(spans));
        for wrong in ["", "22", "tcp/0", "tcp/9-8", "tcp/65536", "icmp/1", "tcp/22,", "tcp/a"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_api_server_is_what_it_says_itself() {
        let slice = |addresses: u8, readiness, protocol| EndpointSlice {
            service: "kubernetes".into(),
            maker: SliceMaker::Other,
            endpoints: (0..addresses)
                .map(|n| SliceEndpoint { address: [192, 0, 2, n].into(), pod: None, readiness })
                .collect(),
            ports: [SlicePort { name: "https".into(), protocol, port: 6443 }].into(),
        };
        let said = |name: &str, slice| {
            let key = ObjectKey::new("default", name);
            behind_service(&Cluster { slices: [(key, slice)].into(), ..Cluster::default() })
        };
        let one = said("kubernetes", slice(1, Readiness::Ready, Protocol::Tcp));
        assert_eq!(one, BTreeSet::from([([192, 0, 2, 0].into(), 6443)]));
        assert!(said("mine", slice(1, Readiness::Ready, Protocol::Tcp)).is_empty(), "anybody's");
        assert!(said("kubernetes", slice(1, Readiness::Ready, Protocol::Udp)).is_empty(), "no TCP");
        assert!(said("kubernetes", slice(1, Readiness::NotReady, Protocol::Tcp)).is_empty(), "not ready");
        let many = said("kubernetes", slice(200, Readiness::Ready, Protocol::Tcp));
        assert_eq!(many.len(), MOST_BEHIND_SERVICE);
    }
}
