//! Whom the agent looks for, and who answered. Knows no policies.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use portcullis_policy::model::{Cluster, Host};
use serde::{Deserialize, Serialize};

use super::hash;

/// The kubelet's port (`KubeletPort` of Kubernetes): to be refused there is to be reached.
const KUBELET: u16 = 10250;
/// How long one connection is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Other nodes that one node asks: of thousands each asks a few.
const MOST_NODES: usize = 16;
/// API servers that are asked, each by a thread of its own.
const MOST_SERVERS: usize = 64;

/// Whom the agent looks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    servers: BTreeSet<SocketAddr>,
    pub(super) nodes: BTreeMap<String, Vec<IpAddr>>,
}

impl Targets {
    /// The API servers in use, and some other nodes.
    #[must_use]
    pub fn of(said: &Cluster, host: &Host) -> Self {
        let others =
            said.nodes.iter().filter(|(name, node)| **name != host.node && !node.addresses.is_empty());
        // Others for each node, the same each time.
        let mut order: Vec<(u64, &String, &Vec<IpAddr>)> = others
            .map(|(name, node)| (hash(&format!("{} {name}", host.node)), name, &node.addresses))
            .collect();
        order.sort();
        let nodes = order.into_iter().take(MOST_NODES).map(|(_, name, all)| (name.clone(), all.clone()));
        let servers = host.api_servers.iter().take(MOST_SERVERS);
        Self {
            servers: servers.map(|(address, port)| SocketAddr::new(*address, *port)).collect(),
            nodes: nodes.collect(),
        }
    }

    /// Asks each, all at once. It began at this second of the monotonic clock.
    pub(super) fn ask(&self, began: u64) -> Look {
        thread::scope(|scope| {
            // Without room for another thread nothing is known of whom it would have asked.
            let ask = |at: SocketAddr| {
                let asked = thread::Builder::new().spawn_scoped(scope, move || answer(&connect(at)));
                move || asked.ok().and_then(|asked| asked.join().ok()).unwrap_or(Answer::Unknown)
            };
            let servers: Vec<_> = self.servers.iter().map(|at| ask(*at)).collect();
            let nodes: Vec<_> = self
                .nodes
                .iter()
                .filter_map(|(name, all)| {
                    let first = all.iter().copied().find(IpAddr::is_ipv4).or_else(|| all.first().copied())?;
                    Some((name.clone(), ask(SocketAddr::new(first, KUBELET))))
                })
                .collect();
            let servers = servers.into_iter().map(|answer| answer());
            Look {
                began,
                server: servers.min().unwrap_or(Answer::Reached),
                nodes: nodes.into_iter().map(|(name, answer)| (name, answer())).collect(),
            }
        })
    }
}

fn connect(at: SocketAddr) -> io::Result<()> {
    TcpStream::connect_timeout(&at, PATIENCE).map(drop)
}

/// What came of asking. Of several the least counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Answer {
    /// There was one.
    Reached,
    /// It was not asked: whoever takes all local ports, or all descriptors, does not make it look cut off.
    Unknown,
    /// Nobody answered.
    Lost,
}

/// To be refused is an answer.
pub(super) fn answer(result: &io::Result<()>) -> Answer {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, PermissionDenied, TimedOut};
    let lost = [TimedOut, PermissionDenied, HostUnreachable, NetworkUnreachable];
    match result {
        Ok(()) => Answer::Reached,
        Err(error) if error.kind() == ConnectionRefused => Answer::Reached,
        Err(error) if lost.contains(&error.kind()) => Answer::Lost,
        Err(_) => Answer::Unknown,
    }
}

/// What was seen at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// Seconds of the monotonic clock.
    pub(super) began: u64,
    /// The API server, or the best of several; reached where none is known.
    pub(super) server: Answer,
    pub(super) nodes: BTreeMap<String, Answer>,
}

impl Look {
    /// Who was reached; `None` where too little is known: nothing of the API server, or of most nodes.
    pub(super) fn measure(&self) -> Option<Reached> {
        let count = |wanted| self.nodes.values().filter(|answer| **answer == wanted).count();
        let is_known = self.server != Answer::Unknown && count(Answer::Unknown) * 2 <= self.nodes.len();
        let reached = self.nodes.iter().filter(|(_, answer)| **answer == Answer::Reached);
        is_known.then(|| Reached {
            server: self.server == Answer::Reached,
            nodes: reached.map(|(name, _)| name.clone()).collect(),
        })
    }
}

/// How a look compares with what was reached before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The node is not cut off.
    Fine,
    /// Nobody knows.
    Unknown,
    /// It is, from this.
    Lost(&'static str),
}

/// Who answered before: the measure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reached {
    /// The API server, or one of several; true where none is known.
    pub(super) server: bool,
    /// Other nodes.
    pub(super) nodes: BTreeSet<String>,
}

impl Reached {
    /// Nobody was: nobody can be lost.
    pub(super) fn is_nobody(&self) -> bool {
        !self.server && self.nodes.is_empty()
    }

    /// Whether the node is cut off by now.
    pub(super) fn find(&self, now: &Look) -> Found {
        let count = |wanted| self.nodes.iter().filter(|name| now.nodes.get(*name) == Some(&wanted)).count();
        let (still, perhaps) = (count(Answer::Reached), count(Answer::Unknown));
        let is_most = |some: usize| some * 2 >= self.nodes.len();
        if self.server && now.server == Answer::Lost {
            Found::Lost("the API server")
        } else if !is_most(still + perhaps) {
            Found::Lost("most of the nodes that it reached before")
        } else if (self.server && now.server == Answer::Unknown) || !is_most(still) {
            Found::Unknown
        } else {
            Found::Fine
        }
    }
}
