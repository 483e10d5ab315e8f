//! Flows that are older than their endpoint: taken from the connections that the kernel tracks when a pod's interface
//! gets its endpoint, and written as flows that no policy has judged yet. Opens nothing: each is judged with its next
//! packet, in its opener's direction.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::time::Instant;

use portcullis_common::flow::{STATE_ANSWERED, STATE_CLOSING, STATE_ESTABLISHED, STATE_OPENING};
use portcullis_common::packet::{SCTP, TCP};
use portcullis_common::wire::{
    COUNTER_NONE, EndpointConfig, FLOW_OPENED_INGRESS, FLOW_OWN_NODE, FlowEntry, FlowKey,
};
use portcullis_policy::desired::{ip_addr, wire_addr};
use portcullis_policy::model::{Problem, Severity};
use serde::{Deserialize, Serialize};

use crate::attach::conntrack::{ConntrackError, Listed, Stage, Tracked, Tuple, tracked};
use crate::attach::foreign::addresses;
use crate::bpf::Kernel;
use crate::bpf::flows::{FlowTable, Written};

/// An endpoint that has no flows yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fresh {
    /// Its slot.
    pub(crate) slot: u32,
    /// What it is.
    pub(crate) config: EndpointConfig,
    /// The generation that it began with.
    pub(crate) generation: u32,
}

/// What became of flows older than their endpoints, since the agent started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OlderFlows {
    /// Taken.
    pub adopted: u64,
    /// Not taken: the endpoint's table was full.
    pub no_room: u64,
    /// Endpoints of which it is not known what they had.
    pub unknown: u64,
    /// Why not; `None` if it is known of all.
    pub why: Option<String>,
}

/// Keeps count.
#[derive(Debug, Default)]
pub(crate) struct Older {
    adopted: u64,
    no_room: u64,
    /// By slot.
    unknown: BTreeMap<u32, String>,
    /// What the early look wrote, by slot: the late one, moments after it, finds little else.
    early: HashSet<(u32, FlowKey)>,
}

impl Older {
    /// Takes flows of these endpoints before packets are judged there, as many as their tables hold. What goes wrong is
    /// told by [`Older::take_late`].
    pub(crate) fn take_early(&mut self, kernel: &Kernel, fresh: &[Fresh]) {
        if fresh.is_empty() {
            return;
        }
        if let Ok((taking, _)) = self.look(kernel, fresh) {
            self.adopted += taking.adopted;
            self.early = taking.early;
        }
    }

    /// Takes those that were opened since. What goes wrong costs flows, and is told.
    pub(crate) fn take_late(&mut self, kernel: &Kernel, fresh: &[Fresh]) -> Vec<Problem> {
        if fresh.is_empty() {
            return Vec::new();
        }
        let (taking, listed) = match self.look(kernel, fresh) {
            Ok(looked) => looked,
            Err((severity, why)) => return self.lost(fresh, &why, severity),
        };
        for one in fresh {
            self.unknown.remove(&one.slot);
        }
        self.adopted += taking.adopted;
        self.no_room += taking.no_room;
        let unreadable = (listed.unreadable > 0).then(|| {
            format!("{} tracked connections cannot be read: their flows are lost", listed.unreadable)
        });
        let no_room = (taking.no_room > 0).then(|| {
            format!(
                "{} flows older than their endpoint found its table full: start the agent with a larger \
                 --flows-per-endpoint",
                taking.no_room
            )
        });
        let failure = taking.failure.map(|error| format!("taking flows older than their endpoint: {error}"));
        let all = [unreadable, no_room, failure].into_iter().flatten();
        all.map(|message| problem(Severity::Warning, message)).collect()
    }

    /// Writes what is tracked of these endpoints.
    fn look(&mut self, kernel: &Kernel, fresh: &[Fresh]) -> Result<(Taking, Listed), (Severity, String)> {
        let begun = Instant::now();
        let early = std::mem::take(&mut self.early);
        let mut taking =
            Taking::new(kernel, fresh, early).map_err(|error| (Severity::Warning, format!("{error:#}")))?;
        let listed = tracked(|connection| taking.one(connection)).map_err(|error| {
            let severity = match &error {
                ConntrackError::Absent => Severity::Note,
                ConntrackError::List(_) => Severity::Warning,
            };
            (severity, error.to_string())
        })?;
        tracing::debug!(
            "{} connections are tracked, {} flows taken for {} endpoints, in {:?}",
            listed.entries,
            taking.adopted,
            fresh.len(),
            begun.elapsed()
        );
        Ok((taking, listed))
    }

    /// An endpoint is gone.
    pub(crate) fn forget(&mut self, slot: u32) {
        self.unknown.remove(&slot);
    }

    /// For people.
    pub(crate) fn told(&self) -> OlderFlows {
        OlderFlows {
            adopted: self.adopted,
            no_room: self.no_room,
            unknown: self.unknown.len() as u64,
            why: self.unknown.values().next_back().cloned(),
        }
    }

    fn lost(&mut self, fresh: &[Fresh], why: &str, severity: Severity) -> Vec<Problem> {
        self.unknown.extend(fresh.iter().map(|one| (one.slot, why.to_owned())));
        vec![problem(
            severity,
            format!(
                "flows older than their endpoint are unknown: {why}; their packets are judged one by one, without state"
            ),
        )]
    }
}

/// Tables that are being filled.
struct Taking {
    endpoints: Vec<(Fresh, FlowTable)>,
    /// Position in `endpoints`, and which of its addresses.
    by_address: BTreeMap<IpAddr, (usize, u8)>,
    /// The node's own.
    node: BTreeSet<IpAddr>,
    now: u32,
    early: HashSet<(u32, FlowKey)>,
    adopted: u64,
    no_room: u64,
    failure: Option<String>,
}

impl Taking {
    fn new(kernel: &Kernel, fresh: &[Fresh], early: HashSet<(u32, FlowKey)>) -> anyhow::Result<Self> {
        let mut endpoints = Vec::new();
        let mut by_address = BTreeMap::new();
        for one in fresh {
            for (local, address) in (0u8..).zip(one.config.addrs.iter()) {
                if u32::from(local) < one.config.addr_count {
                    by_address.insert(ip_addr(address), (endpoints.len(), local));
                }
            }
            endpoints.push((*one, kernel.flow_table(one.slot)?));
        }
        Ok(Self {
            endpoints,
            by_address,
            node: addresses()?,
            now: crate::clock::monotonic_seconds(),
            early,
            adopted: 0,
            no_room: 0,
            failure: None,
        })
    }

    /// A connection whose ends are pods here is a flow of each.
    fn one(&mut self, connection: &Tracked) {
        let is_node = self.node.contains(&connection.original.source);
        for opener in [Opener::Pod, Opener::Other { is_node }] {
            let Some((index, local)) = self.by_address.get(&opener.pods_way(connection).source) else {
                continue;
            };
            let Some((fresh, table)) = self.endpoints.get_mut(*index) else { continue };
            let (key, entry) = flow(connection, opener, *local, fresh.generation, self.now);
            if self.early.contains(&(fresh.slot, key)) {
                continue;
            }
            match table.write_new(key, entry) {
                Ok(Written::Made) => {
                    self.adopted += 1;
                    self.early.insert((fresh.slot, key));
                }
                Ok(Written::WasThere) => {}
                Ok(Written::NoRoom) => self.no_room += 1,
                Err(error) => self.failure = Some(error.to_string()),
            }
        }
    }
}

/// Who opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opener {
    /// The endpoint's pod.
    Pod,
    /// Somebody else, or the node itself.
    Other { is_node: bool },
}

impl Opener {
    /// The way that the pod's own packets go.
    const fn pods_way(self, connection: &Tracked) -> &Tuple {
        match self {
            Self::Pod => &connection.original,
            Self::Other { .. } => &connection.reply,
        }
    }
}

/// A tracked connection as its pod's endpoint sees it: before translation what the pod sends, after it what reaches the pod.
fn flow(connection: &Tracked, opener: Opener, local: u8, generation: u32, now: u32) -> (FlowKey, FlowEntry) {
    let way = opener.pods_way(connection);
    let key = FlowKey {
        remote: wire_addr(way.destination),
        local_port: way.source_port,
        remote_port: way.destination_port,
        protocol: connection.protocol,
        local,
        ..FlowKey::default()
    };
    let flags = match opener {
        Opener::Pod => 0,
        // Of the protocols in which only an opening packet opens: a pod can have forged a packet of the node's, but no
        // connection that the node takes part in.
        Opener::Other { is_node: true } if matches!(connection.protocol, TCP | SCTP) => {
            FLOW_OPENED_INGRESS | FLOW_OWN_NODE
        }
        Opener::Other { .. } => FLOW_OPENED_INGRESS,
    };
    let state = match connection.stage {
        Stage::Opening => STATE_OPENING,
        Stage::Answered => STATE_ANSWERED,
        Stage::Established => STATE_ESTABLISHED,
        Stage::Closing => STATE_CLOSING,
    };
    let entry = FlowEntry {
        // Generation and epochs only grow, so their sum never is this: the programs judge the flow with its next packet.
        stamp: generation.wrapping_sub(1),
        tag: key.tag() | flags,
        seen: now,
        state,
        counter: COUNTER_NONE,
        opened: now,
    };
    (key, entry)
}

fn problem(severity: Severity, message: String) -> Problem {
    Problem { severity, object: "Node".to_owned(), field: String::new(), message, location: None }
}

#[cfg(test)]
#[path = "older_tests.rs"]
mod tests;
