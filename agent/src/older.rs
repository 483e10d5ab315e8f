//! Flows that are older than their endpoint: taken from the connections that the kernel tracks when a pod's interface
//! gets its endpoint, and written as flows that no policy has judged yet. Opens nothing: each is judged with its next
//! packet, in its opener's direction.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::time::Instant;

use portcullis_common::flow::{STATE_ANSWERED, STATE_CLOSING, STATE_ESTABLISHED, STATE_OPENING};
use portcullis_common::packet::{SCTP, TCP};
use portcullis_common::wire::{
    COUNTER_NONE, ENDPOINT_HOST, EndpointConfig, FLOW_DELIVERED, FLOW_OPENED_INGRESS, FLOW_OWN_NODE,
    FlowEntry, FlowKey,
};
use portcullis_policy::desired::{ip_addr, wire_addr};
use portcullis_policy::model::{Problem, Severity};
use serde::{Deserialize, Serialize};

use crate::attach::AttachError;
use crate::attach::conntrack::{ConntrackError, Listed, Stage, Tracked, Tuple, tracked};
use crate::attach::foreign::addresses;
use crate::attach::sockets::{Connected, connected};
use crate::bpf::BpfError;
use crate::bpf::flows::{FlowTables, Growth, Written};
use crate::clock::monotonic_seconds;

/// Flows of an endpoint and direction that wait to be written together.
const MOST_WAITING: usize = 4_096;

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
    /// What the early look found, by slot: the late one, moments after it, finds little else.
    known: HashSet<(u32, FlowKey)>,
    /// What the early look found no room for.
    without_room: u64,
}

impl Older {
    /// Takes flows of these endpoints before packets are judged there, as many as their tables may hold. What goes wrong
    /// is told by [`Older::take_late`].
    pub(crate) fn take_early(&mut self, tables: &mut FlowTables, largest: u32, fresh: &[Fresh]) {
        if fresh.is_empty() {
            return;
        }
        if let Ok(took) = self.look(tables, largest, fresh) {
            self.adopted += took.adopted;
            self.without_room = took.no_room;
            if took.failure.is_some() {
                // To be tried again, and told if it fails again.
                self.known.clear();
            }
        }
    }

    /// Takes those that were opened since. What goes wrong costs flows, and is told.
    pub(crate) fn take_late(
        &mut self,
        tables: &mut FlowTables,
        largest: u32,
        fresh: &[Fresh],
    ) -> Vec<Problem> {
        if fresh.is_empty() {
            return Vec::new();
        }
        let looked = self.look(tables, largest, fresh);
        self.known = HashSet::new();
        let took = match looked {
            Ok(took) => took,
            Err((severity, why)) => return self.lost(fresh, &why, severity),
        };
        let mut problems = Vec::new();
        match &took.pods_unknown {
            Some((severity, why)) => problems = self.lost(fresh, why, *severity),
            None => fresh.iter().for_each(|one| drop(self.unknown.remove(&one.slot))),
        }
        self.adopted += took.adopted;
        let without_room = self.without_room + took.no_room;
        self.without_room = 0;
        self.no_room += without_room;
        let unreadable = (took.listed.unreadable > 0).then(|| {
            format!("{} tracked connections cannot be read: their flows are lost", took.listed.unreadable)
        });
        let no_room = (without_room > 0).then(|| {
            format!(
                "{without_room} flows older than their endpoint found its table full: start the agent with a larger \
                 --flows-per-endpoint"
            )
        });
        let failure = took.failure.map(|error| format!("taking flows older than their endpoint: {error}"));
        let all = [unreadable, no_room, failure].into_iter().flatten();
        problems.extend(all.map(|message| Problem::of_node(Severity::Warning, message)));
        problems
    }

    /// Writes what is tracked of these endpoints, and was not found by the last look.
    fn look(
        &mut self,
        tables: &mut FlowTables,
        largest: u32,
        fresh: &[Fresh],
    ) -> Result<Took, (Severity, String)> {
        let begun = Instant::now();
        let known = std::mem::take(&mut self.known);
        let mut taking = Taking::new(tables, largest, fresh, known)
            .map_err(|error| (Severity::Warning, error.to_string()))?;
        let (hosts, pods): (Vec<&Fresh>, Vec<&Fresh>) =
            fresh.iter().partition(|one| one.config.flags & ENDPOINT_HOST != 0);
        if !hosts.is_empty() {
            let sockets =
                connected().map_err(|error| (Severity::Warning, format!("listing sockets: {error}")))?;
            for socket in &sockets {
                taking.of_host(socket);
            }
        }
        let mut listed = Listed::default();
        let mut pods_unknown = None;
        if !pods.is_empty() {
            match tracked(|connection| taking.one(connection)) {
                Ok(all) => listed = all,
                Err(error) => {
                    let severity = match &error {
                        ConntrackError::Absent => Severity::Note,
                        ConntrackError::List(_) => Severity::Warning,
                    };
                    pods_unknown = Some((severity, error.to_string()));
                }
            }
        }
        let (mut took, known) = taking.finish(listed);
        took.pods_unknown = pods_unknown;
        self.known = known;
        tracing::debug!(
            "{} connections are tracked, {} flows taken for {} endpoints, in {:?}",
            listed.entries,
            took.adopted,
            fresh.len(),
            begun.elapsed()
        );
        Ok(took)
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
        let pods = fresh.iter().filter(|one| one.config.flags & ENDPOINT_HOST == 0);
        self.unknown.extend(pods.map(|one| (one.slot, why.to_owned())));
        vec![Problem::of_node(
            severity,
            format!(
                "flows older than their endpoint are unknown: {why}; their packets are judged one by one, without state"
            ),
        )]
    }
}

/// Flows of one endpoint that wait to be written, by the direction that opened them.
#[derive(Debug)]
struct Waiting {
    fresh: Fresh,
    keys: [Vec<FlowKey>; 2],
    entries: [Vec<FlowEntry>; 2],
}

/// Tables that are being filled.
struct Taking<'a> {
    tables: &'a mut FlowTables,
    largest: u32,
    endpoints: Vec<Waiting>,
    /// Position in `endpoints`, and which of its addresses.
    by_address: BTreeMap<IpAddr, (usize, u8)>,
    /// The node's own.
    node: BTreeSet<IpAddr>,
    now: u32,
    known: HashSet<(u32, FlowKey)>,
    took: Took,
}

/// What came of a look.
#[derive(Debug, Default)]
struct Took {
    listed: Listed,
    adopted: u64,
    no_room: u64,
    failure: Option<String>,
    /// Why nothing is known of what pods had.
    pods_unknown: Option<(Severity, String)>,
}

impl<'a> Taking<'a> {
    fn new(
        tables: &'a mut FlowTables,
        largest: u32,
        fresh: &[Fresh],
        known: HashSet<(u32, FlowKey)>,
    ) -> Result<Self, AttachError> {
        let mut by_address = BTreeMap::new();
        for (index, one) in fresh.iter().enumerate() {
            for (local, address) in (0u8..).zip(one.config.addrs.iter()) {
                if u32::from(local) < one.config.addr_count {
                    by_address.insert(ip_addr(address), (index, local));
                }
            }
        }
        let waiting = |fresh: &Fresh| Waiting {
            fresh: *fresh,
            keys: <[Vec<FlowKey>; 2]>::default(),
            entries: <[Vec<FlowEntry>; 2]>::default(),
        };
        Ok(Self {
            tables,
            largest,
            endpoints: fresh.iter().map(waiting).collect(),
            by_address,
            node: addresses()?,
            now: monotonic_seconds(),
            known,
            took: Took::default(),
        })
    }

    /// A connection whose ends are pods here is a flow of each.
    fn one(&mut self, connection: &Tracked) {
        let is_node = self.node.contains(&connection.original.source);
        for opener in [Opener::Pod, Opener::Other { is_node }] {
            let Some((index, local)) = self.by_address.get(&opener.pods_way(connection).source) else {
                continue;
            };
            let Some(waiting) = self.endpoints.get_mut(*index) else { continue };
            let (key, entry) = flow(connection, opener, *local, waiting.fresh.generation, self.now);
            if !self.known.insert((waiting.fresh.slot, key)) {
                continue;
            }
            let [of_pod, of_others] = &mut waiting.keys;
            let [entries_of_pod, entries_of_others] = &mut waiting.entries;
            let (keys, entries) = match opener {
                Opener::Pod => (of_pod, entries_of_pod),
                Opener::Other { .. } => (of_others, entries_of_others),
            };
            keys.push(key);
            entries.push(entry);
            if keys.len() >= MOST_WAITING {
                self.write(*index);
            }
        }
    }

    /// A connection of the node's own sockets is a flow of each host endpoint: whose of them the socket is nobody says, and
    /// of a tuple that is not its own an endpoint sees no packet.
    fn of_host(&mut self, socket: &Connected) {
        let key = FlowKey {
            remote: wire_addr(socket.remote.ip()),
            local_port: socket.local.port(),
            remote_port: socket.remote.port(),
            protocol: socket.protocol,
            ..FlowKey::default()
        };
        // What it sends may be translated: that its next packet tells.
        let flags = if socket.is_accepted { FLOW_OPENED_INGRESS } else { FLOW_DELIVERED };
        for index in 0..self.endpoints.len() {
            let Some(waiting) = self.endpoints.get_mut(index) else { continue };
            let Fresh { slot, config, generation } = waiting.fresh;
            if config.flags & ENDPOINT_HOST == 0 || !self.known.insert((slot, key)) {
                continue;
            }
            let entry = unjudged(&key, flags, socket.stage, generation, self.now);
            let direction = usize::from(socket.is_accepted);
            let (keys, entries) = (&mut waiting.keys, &mut waiting.entries);
            if let (Some(keys), Some(entries)) = (keys.get_mut(direction), entries.get_mut(direction)) {
                keys.push(key);
                entries.push(entry);
                if keys.len() >= MOST_WAITING {
                    self.write(index);
                }
            }
        }
    }

    /// Writes what waits of an endpoint.
    fn write(&mut self, index: usize) {
        let Some(waiting) = self.endpoints.get_mut(index) else { return };
        for (keys, entries) in waiting.keys.iter_mut().zip(&mut waiting.entries) {
            match write(self.tables, self.largest, waiting.fresh.slot, keys, entries) {
                Ok(Written { made, no_room, .. }) => {
                    self.took.adopted += made;
                    self.took.no_room += no_room;
                }
                Err(error) => self.took.failure = Some(error.to_string()),
            }
            keys.clear();
            entries.clear();
        }
    }

    fn finish(mut self, listed: Listed) -> (Took, HashSet<(u32, FlowKey)>) {
        (0..self.endpoints.len()).for_each(|index| self.write(index));
        self.took.listed = listed;
        (self.took, self.known)
    }
}

/// Writes flows of one direction, into a larger table where they have no room.
fn write(
    tables: &mut FlowTables,
    largest: u32,
    slot: u32,
    keys: &[FlowKey],
    entries: &[FlowEntry],
) -> Result<Written, BpfError> {
    let mut all = Written::default();
    loop {
        let written = tables.table(slot)?.write_new(keys, entries)?;
        all = Written { made: all.made + written.made, ..written };
        if written.no_room == 0 || tables.grow(slot, largest)? != Growth::Done {
            break;
        }
    }
    let is_ingress = entries.first().is_some_and(|entry| entry.tag & FLOW_OPENED_INGRESS != 0);
    let (ingress, egress) = if is_ingress { (all.made, 0) } else { (0, all.made) };
    tables.count(slot, ingress, egress)?;
    Ok(all)
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
    (key, unjudged(&key, flags, connection.stage, generation, now))
}

/// An entry that the programs judge with its next packet.
fn unjudged(key: &FlowKey, flags: u32, stage: Stage, generation: u32, now: u32) -> FlowEntry {
    let how_far = match stage {
        Stage::Opening => STATE_OPENING,
        Stage::Answered => STATE_ANSWERED,
        Stage::Established => STATE_ESTABLISHED,
        Stage::Closing => STATE_CLOSING,
    };
    FlowEntry {
        // Generation and epochs only grow, so their sum never is this.
        stamp: generation.wrapping_sub(1),
        tag: key.tag() | flags,
        seen: now,
        state: how_far,
        counter: COUNTER_NONE,
        opened: now,
    }
}

#[cfg(test)]
#[path = "older_tests.rs"]
mod tests;
