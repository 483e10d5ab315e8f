//! The maps of the attached load: the writes of a plan, endpoints, and what a starting agent finds. Every
//! write is one call of bpf(2); order and meaning are the caller's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::AsFd as _;

use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, ArrayOfMaps, HashMap, LpmTrie, Map, MapData, PerCpuArray, PerCpuValues};
use portcullis_common::wire::{
    BANKS, CGROUP_ELSEWHERE, CpuState, ENDPOINT_HOST, ENDPOINT_USED, EndpointConfig, EndpointWord, HostState,
    IFACE_CELLS, IfaceWord, LINK_IP, MODE_AUDIT, MODE_ENFORCE, NodeState, PeerRowKey, PeerRowWord, PeerWord,
    PortRange, RULESET_CLOSED, RULESET_OPEN, Row, Rule, Ruleset, Stats,
};
use portcullis_policy::desired::WirePrefix;
use portcullis_policy::diff::MapOp;
use portcullis_policy::model::{Mode, Protocol};
use portcullis_policy::sizes::{Sizes, Table};

use super::flows::FlowTables;
use super::host::Host;
use super::inner::InnerPins;
use super::load::{self, BpfError, Pins, Purpose};
use super::node_ports::NodePorts;
use super::sys;
use super::wire::Wire;
use crate::mark::MarkMask;

type PeersMap = HashMap<MapData, [u8; 16], Wire<PeerWord>>;
type PrefixesMap = LpmTrie<MapData, [u8; 16], Wire<PeerWord>>;

/// The maps of a load.
pub struct Kernel {
    ifaces: HashMap<MapData, u32, Wire<IfaceWord>>,
    devices: HashMap<MapData, u32, u32>,
    node_ports: NodePorts,
    host: Host,
    iface_index: Array<MapData, Wire<IfaceWord>>,
    endpoints: Array<MapData, Wire<EndpointWord>>,
    configs: Array<MapData, Wire<EndpointConfig>>,
    rulesets: Array<MapData, Wire<Ruleset>>,
    rules: Array<MapData, Wire<Rule>>,
    rows: Array<MapData, Wire<Row>>,
    port_ranges: Array<MapData, Wire<PortRange>>,
    peer_rows: HashMap<MapData, Wire<PeerRowKey>, Wire<PeerRowWord>>,
    epochs: Array<MapData, u32>,
    node_state: Array<MapData, Wire<NodeState>>,
    peers: MapData,
    prefixes: MapData,
    /// The flow tables of endpoints.
    pub flow_tables: FlowTables,
    rule_stats: PerCpuArray<MapData, Wire<Stats>>,
    cpu_state: PerCpuArray<MapData, Wire<CpuState>>,
    prefixes_inner: MapData,
    sizes: Sizes,
    /// The bank that this agent writes, and its peers.
    bank: u32,
    bank_peers: PeersMap,
    /// What is to fail, in tests.
    #[cfg(test)]
    pub(crate) fault: Option<Fault>,
}

/// A call of bpf(2) that fails, in tests.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// With which map.
    pub(crate) map: &'static str,
    /// How.
    pub(crate) errno: i32,
    /// After so many that do not.
    pub(crate) after: u32,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("bank", &self.bank).finish_non_exhaustive()
    }
}

/// An endpoint as a starting agent finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundEndpoint {
    /// What it is.
    pub config: EndpointConfig,
    /// Its rulesets and generation.
    pub word: EndpointWord,
}

impl Kernel {
    /// Loads the programs, opens or makes the pinned maps, and takes a bank that no endpoint uses. Where there
    /// is none (two starts in a row were killed among their flips) the endpoints on the one that is taken,
    /// which the fewest use, are closed.
    pub fn open(pins: &Pins, sizes: &Sizes) -> Result<(Self, Ebpf), BpfError> {
        let mut ebpf = load::load(Purpose::Attach, Some(pins), sizes)?;
        let mut kernel = Self::of(&mut ebpf, 0, sizes, InnerPins::below(&pins.tables()))?;
        kernel.flow_tables.sweep()?;
        kernel.bank = kernel.least_used_bank()?;
        kernel.clear_bank()?;
        Ok((kernel, ebpf))
    }

    /// A load with maps of its own on no path: to be asked, or for tests and the benchmark to be attached.
    pub fn private(purpose: Purpose, bank: u32) -> Result<(Self, Ebpf), BpfError> {
        let sizes = Sizes::default();
        let mut ebpf = load::load(purpose, None, &sizes)?;
        let mut kernel = Self::of(&mut ebpf, bank, &sizes, InnerPins::default())?;
        kernel.clear_bank()?;
        Ok((kernel, ebpf))
    }

    fn of(ebpf: &mut Ebpf, bank: u32, sizes: &Sizes, pins: InnerPins) -> Result<Self, BpfError> {
        let peers_inner = data(ebpf, "peers_inner")?;
        let bank_peers = inner(&peers_inner, "peers", sizes.of(Table::Peers))?;
        Ok(Self {
            ifaces: take(ebpf, "ifaces")?,
            devices: take(ebpf, "devices")?,
            node_ports: NodePorts::of(ebpf)?,
            host: Host::of(ebpf)?,
            iface_index: take(ebpf, "iface_index")?,
            endpoints: take(ebpf, "endpoints")?,
            configs: take(ebpf, "endpoint_cfg")?,
            rulesets: take(ebpf, "rulesets")?,
            rules: take(ebpf, "rules")?,
            rows: take(ebpf, "rows")?,
            port_ranges: take(ebpf, "port_ranges")?,
            peer_rows: take(ebpf, "peer_rows")?,
            epochs: take(ebpf, "epochs")?,
            node_state: take(ebpf, "node_state")?,
            peers: data(ebpf, "peers")?,
            prefixes: data(ebpf, "prefixes")?,
            flow_tables: FlowTables::of(ebpf, pins)?,
            rule_stats: take(ebpf, "rule_stats")?,
            cpu_state: take(ebpf, "cpu_state")?,
            prefixes_inner: data(ebpf, "prefixes_inner")?,
            sizes: sizes.clone(),
            bank,
            bank_peers,
            #[cfg(test)]
            fault: None,
        })
    }

    /// The bank that this agent writes.
    #[must_use]
    pub fn bank(&self) -> u32 {
        self.bank
    }

    /// One write of a plan.
    pub fn apply(&mut self, op: &MapOp) -> Result<(), BpfError> {
        #[cfg(test)]
        self.fail(map_of(op))?;
        match op {
            MapOp::PutRow(id, row) => put(&mut self.rows, "rows", *id, *row),
            MapOp::PutRule(index, rule) => put(&mut self.rules, "rules", *index, *rule),
            MapOp::PutPortRange(index, range) => put(&mut self.port_ranges, "port_ranges", *index, *range),
            MapOp::PutRuleset(id, ruleset) => put(&mut self.rulesets, "rulesets", *id, *ruleset),
            MapOp::PutPeerRow(key, word) => self
                .peer_rows
                .insert(Wire(*key), Wire(*word), 0)
                .map_err(|e| BpfError::map("write", "peer_rows", e)),
            MapOp::DeletePeerRow(key) => gone(self.peer_rows.remove(&Wire(*key)), "peer_rows"),
            MapOp::PutPeer(addr, word) => self
                .bank_peers
                .insert(addr.bytes, Wire(*word), 0)
                .map_err(|e| BpfError::map("write", "peers", e)),
            MapOp::DeletePeer(addr) => gone(self.bank_peers.remove(&addr.bytes), "peers"),
            MapOp::SwapPrefixes(prefixes) => self.swap_prefixes(prefixes),
            MapOp::BumpEpoch(cell) => {
                let epoch = self.epochs.get(cell, 0).map_err(|e| BpfError::map("read", "epochs", e))?;
                self.epochs
                    .set(*cell, epoch.wrapping_add(1), 0)
                    .map_err(|e| BpfError::map("write", "epochs", e))
            }
            MapOp::BumpPrefixEpoch => {
                self.change_node_state(|state| state.prefix_epoch = state.prefix_epoch.wrapping_add(1))
            }
        }
    }

    /// Frees the tables of the banks that earlier agents used. To be called when no endpoint uses them any more.
    pub fn clear_other_banks(&mut self) -> Result<(), BpfError> {
        let stale: Vec<PeerRowKey> = self
            .peer_rows
            .keys()
            .filter_map(Result::ok)
            .map(|key| key.0)
            .filter(|key| self.sizes.bank_of(key.ruleset) != self.bank)
            .collect();
        for key in stale {
            gone(self.peer_rows.remove(&Wire(key)), "peer_rows")?;
        }
        for other in (0..BANKS).filter(|bank| *bank != self.bank) {
            sys::delete_slot(fd(&self.peers), other).map_err(|e| BpfError::map("empty", "peers", e))?;
            sys::delete_slot(fd(&self.prefixes), other).map_err(|e| BpfError::map("empty", "prefixes", e))?;
        }
        Ok(())
    }

    /// The bank that the fewest endpoints use; of several, the first.
    fn least_used_bank(&self) -> Result<u32, BpfError> {
        let found = self.found_endpoints()?;
        let users = |bank| found.values().filter(|one| self.uses_bank(one.word, bank)).count();
        Ok((0..BANKS).min_by_key(|bank| users(*bank)).unwrap_or(0))
    }

    /// What the last agent left, by slot.
    pub fn found_endpoints(&self) -> Result<BTreeMap<u32, FoundEndpoint>, BpfError> {
        let mut found = BTreeMap::new();
        for slot in 0..self.configs.len() {
            let config = self.configs.get(&slot, 0).map_err(|e| BpfError::map("read", "endpoint_cfg", e))?.0;
            if config.flags & ENDPOINT_USED != 0 {
                let word = self.endpoints.get(&slot, 0).map_err(|e| BpfError::map("read", "endpoints", e))?.0;
                found.insert(slot, FoundEndpoint { config, word });
            }
        }
        Ok(found)
    }

    /// Interfaces that lead to an endpoint.
    pub fn found_ifaces(&self) -> BTreeMap<u32, u32> {
        self.ifaces.iter().filter_map(Result::ok).map(|(ifindex, word)| (ifindex, word.0.slot)).collect()
    }

    /// Makes an endpoint that no packet reaches yet: flows (as many as `largest` in time), configuration, word.
    /// [`Kernel::lead_to`] comes last.
    pub fn add_endpoint(
        &mut self,
        slot: u32,
        config: EndpointConfig,
        word: EndpointWord,
        largest: u32,
    ) -> Result<(), BpfError> {
        #[cfg(test)]
        self.fail("flows")?;
        self.flow_tables.make(slot, largest)?;
        #[cfg(test)]
        self.fail("endpoint_cfg")?;
        put(&mut self.configs, "endpoint_cfg", slot, config)?;
        self.flip(slot, word)
    }

    /// Packets of an interface belong to an endpoint from here on.
    pub fn lead_to(&mut self, ifindex: u32, slot: u32) -> Result<(), BpfError> {
        #[cfg(test)]
        self.fail("ifaces")?;
        let found = IfaceWord { slot, ifindex };
        self.ifaces.insert(ifindex, Wire(found), 0).map_err(|e| BpfError::map("write", "ifaces", e))?;
        // A second interface of this cell takes it; the first is found in the hash then.
        put(&mut self.iface_index, "iface_index", ifindex % IFACE_CELLS, found)
    }

    /// An endpoint of a load that is only asked: it has no interface and no flows.
    pub fn set_endpoint(
        &mut self,
        slot: u32,
        config: EndpointConfig,
        word: EndpointWord,
    ) -> Result<(), BpfError> {
        put(&mut self.configs, "endpoint_cfg", slot, config)?;
        self.flip(slot, word)
    }

    /// New rulesets and generation, in one store.
    pub fn flip(&mut self, slot: u32, word: EndpointWord) -> Result<(), BpfError> {
        put(&mut self.endpoints, "endpoints", slot, word)
    }

    /// The interface leads to no endpoint: its packets are dropped.
    pub fn forget_iface(&mut self, ifindex: u32) -> Result<(), BpfError> {
        let cell = ifindex % IFACE_CELLS;
        let held = self.iface_index.get(&cell, 0).map_err(|e| BpfError::map("read", "iface_index", e))?.0;
        if held.ifindex == ifindex {
            put(&mut self.iface_index, "iface_index", cell, IfaceWord::default())?;
        }
        gone(self.ifaces.remove(&ifindex), "ifaces")
    }

    /// Frees a slot. To be called a grace period after its interface was forgotten.
    pub fn free_slot(&mut self, slot: u32) -> Result<(), BpfError> {
        put(&mut self.configs, "endpoint_cfg", slot, EndpointConfig::default())?;
        self.flow_tables.free(slot)
    }

    /// A counter starts anew.
    pub fn zero_counter(&mut self, counter: u32) -> Result<(), BpfError> {
        let cpus = aya::util::nr_cpus().map_err(|(what, e)| BpfError::map("count", what, e))?;
        let zeros = PerCpuValues::try_from(vec![Wire(Stats::default()); cpus])
            .map_err(|e| BpfError::map("zero", "rule_stats", e))?;
        self.rule_stats.set(counter, zeros, 0).map_err(|e| BpfError::map("write", "rule_stats", e))
    }

    /// Events that were not sent, ever.
    pub fn lost_events(&self) -> Result<u64, BpfError> {
        let values = self.cpu_state.get(&0, 0).map_err(|e| BpfError::map("read", "cpu_state", e))?;
        Ok(values.iter().map(|one| one.0.lost).sum())
    }

    /// Flows that were not made, ever, because their endpoint's table was full.
    pub fn flows_refused(&self) -> Result<u64, BpfError> {
        let values = self.cpu_state.get(&0, 0).map_err(|e| BpfError::map("read", "cpu_state", e))?;
        Ok(values.iter().map(|one| one.0.flows_refused).sum())
    }

    /// Returns once no program reads what was replaced before the call.
    pub fn grace_period(&mut self) -> Result<(), BpfError> {
        if sys::grace_period().is_ok() {
            return Ok(());
        }
        // Where membarrier(2) is not to be had (nohz_full), an update of an array of maps waits as long.
        outer(&self.peers, "peers")?
            .set(self.bank, &self.bank_peers, 0)
            .map_err(|e| BpfError::map("write", "peers", e))
    }

    /// Drops what is denied, or lets it pass; every flow is judged again. One store for the node.
    pub fn set_mode(&mut self, mode: Mode) -> Result<(), BpfError> {
        let mode = match mode {
            Mode::Enforce => MODE_ENFORCE,
            Mode::Audit => MODE_AUDIT,
        };
        self.change_node_state(|state| {
            if state.mode != mode {
                *state = NodeState { prefix_epoch: state.prefix_epoch.wrapping_add(1), mode, ..*state };
            }
        })
    }

    /// Whether all places where packets are delivered have programs: else virtual addresses are denied. One store for the
    /// node; every flow is judged again.
    pub fn set_services(&mut self, services: u32) -> Result<(), BpfError> {
        self.change_node_state(|state| {
            if state.services != services {
                let prefix_epoch = state.prefix_epoch.wrapping_add(1);
                *state = NodeState { prefix_epoch, services, ..*state };
            }
        })
    }

    /// Where our bits of a packet's mark are, for all programs at once. Packets that bear ours elsewhere bear none.
    pub fn set_mark(&mut self, mask: MarkMask) -> Result<(), BpfError> {
        self.change_node_state(|state| state.mark_shift = mask.shift())
    }

    /// Which ports of which addresses this node's rules translate: where that changes, every flow is judged again.
    pub fn set_node_ports(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
        ports: &BTreeSet<(Protocol, u16)>,
    ) -> Result<(), BpfError> {
        if self.node_ports.set(addresses, ports)? {
            self.apply(&MapOp::BumpPrefixEpoch)?;
        }
        Ok(())
    }

    /// Lets what leads to an endpoint lead there: its interface, or its cgroup. The node's own is named by `host_state`.
    pub fn lead(&mut self, config: &EndpointConfig, slot: u32) -> Result<(), BpfError> {
        match (config.flags & ENDPOINT_HOST, config.cgroup) {
            (0, _) => self.lead_to(config.ifindex, slot),
            (_, 0) => Ok(()),
            (_, cgroup) => self.host.lead(cgroup, slot),
        }
    }

    /// Lets nothing lead there any more.
    pub fn unlead(&mut self, config: &EndpointConfig) -> Result<(), BpfError> {
        match (config.flags & ENDPOINT_HOST, config.cgroup) {
            (0, _) => self.forget_iface(config.ifindex),
            (_, 0) => Ok(()),
            (_, cgroup) => self.host.forget(cgroup),
        }
    }

    /// Of what is below this cgroup nothing is known from here on.
    pub fn forget_cgroup(&mut self, cgroup: u64) -> Result<(), BpfError> {
        self.host.forget(cgroup)
    }

    /// The slots that cgroups lead to.
    #[must_use]
    pub fn found_cgroups(&self) -> BTreeMap<u64, u32> {
        self.host.found()
    }

    /// Leaves exactly these cgroups beside those of endpoints, as of pods with networks of their own; what leads to an endpoint leads
    /// there, whatever else is said of it.
    pub fn set_elsewhere(
        &mut self,
        cgroups: &BTreeSet<u64>,
        endpoints: &BTreeMap<u64, u32>,
    ) -> Result<(), BpfError> {
        let found = self.host.found();
        let mut wanted: BTreeMap<u64, u32> =
            cgroups.iter().map(|cgroup| (*cgroup, CGROUP_ELSEWHERE)).collect();
        wanted.extend(endpoints);
        for cgroup in found.keys().filter(|one| !wanted.contains_key(one)) {
            self.host.forget(*cgroup)?;
        }
        for (cgroup, slot) in wanted.iter().filter(|(one, slot)| found.get(one) != Some(slot)) {
            self.host.lead(*cgroup, *slot)?;
        }
        Ok(())
    }

    /// How the node's own sockets are judged.
    pub fn host_state(&self) -> Result<HostState, BpfError> {
        self.host.state()
    }

    /// Changes that.
    pub fn set_host_state(&mut self, state: HostState) -> Result<(), BpfError> {
        self.host.set_state(state)
    }

    /// Which addresses are nodes'.
    pub fn set_nodes(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), BpfError> {
        self.host.set_nodes(addresses)
    }

    /// How packets of these devices start, where it is not with an Ethernet header; of all others it is.
    pub fn set_devices(&mut self, without_ethernet: &BTreeSet<u32>) -> Result<(), BpfError> {
        let failed = |operation| move |e| BpfError::map(operation, "devices", e);
        let found: BTreeSet<u32> = self.devices.keys().collect::<Result<_, _>>().map_err(failed("read"))?;
        for device in without_ethernet.difference(&found) {
            self.devices.insert(device, LINK_IP, 0).map_err(failed("write"))?;
        }
        for device in found.difference(without_ethernet) {
            gone(self.devices.remove(device), "devices")?;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn prefix_epoch(&self) -> Result<u32, BpfError> {
        let state = self.node_state.get(&0, 0).map_err(|e| BpfError::map("read", "node_state", e))?.0;
        Ok(state.prefix_epoch)
    }

    fn change_node_state(&mut self, change: impl FnOnce(&mut NodeState)) -> Result<(), BpfError> {
        let mut state = self.node_state.get(&0, 0).map_err(|e| BpfError::map("read", "node_state", e))?.0;
        change(&mut state);
        put(&mut self.node_state, "node_state", 0, state)
    }

    /// Empties this agent's bank: whatever a killed start left there is not read by anyone.
    fn clear_bank(&mut self) -> Result<(), BpfError> {
        for (slot, found) in self.found_endpoints()? {
            if self.uses_bank(found.word, self.bank) {
                // Closed it would be cut off from what always passes.
                if found.config.flags & ENDPOINT_HOST != 0 {
                    self.host.set_state(HostState::default())?;
                }
                let closed = portcullis_policy::desired::EndpointRulesets::CLOSED;
                let word = EndpointWord {
                    ingress: closed.ingress,
                    egress: closed.egress,
                    generation: found.word.generation.wrapping_add(1),
                };
                self.flip(slot, word)?;
            }
        }
        self.grace_period()?;
        let bank = self.bank;
        let stale: Vec<PeerRowKey> = self
            .peer_rows
            .keys()
            .filter_map(Result::ok)
            .map(|key| key.0)
            .filter(|key| self.sizes.bank_of(key.ruleset) == bank)
            .collect();
        for key in stale {
            gone(self.peer_rows.remove(&Wire(key)), "peer_rows")?;
        }
        outer(&self.peers, "peers")?
            .set(bank, &self.bank_peers, 0)
            .map_err(|e| BpfError::map("write", "peers", e))?;
        self.swap_prefixes(&BTreeMap::new())
    }

    #[cfg(test)]
    fn fail(&mut self, map: &'static str) -> Result<(), BpfError> {
        match &mut self.fault {
            Some(fault) if fault.map == map && fault.after == 0 => {
                Err(BpfError::map("write", map, std::io::Error::from_raw_os_error(fault.errno)))
            }
            Some(fault) if fault.map == map => {
                fault.after -= 1;
                Ok(())
            }
            Some(_) | None => Ok(()),
        }
    }

    /// True for an endpoint one of whose rulesets lies in the bank.
    fn uses_bank(&self, word: EndpointWord, bank: u32) -> bool {
        let fixed = [RULESET_OPEN, RULESET_CLOSED];
        [word.ingress, word.egress]
            .map(u32::from)
            .into_iter()
            .any(|id| !fixed.contains(&id) && self.sizes.bank_of(id) == bank)
    }

    fn swap_prefixes(&mut self, prefixes: &BTreeMap<WirePrefix, PeerWord>) -> Result<(), BpfError> {
        let mut trie: PrefixesMap = inner(&self.prefixes_inner, "prefixes", self.sizes.of(Table::Prefixes))?;
        for (prefix, word) in prefixes {
            trie.insert(&Key::new(prefix.bits, prefix.addr.bytes), Wire(*word), 0)
                .map_err(|e| BpfError::map("write", "prefixes", e))?;
        }
        outer(&self.prefixes, "prefixes")?
            .set(self.bank, &trie, 0)
            .map_err(|e| BpfError::map("swap", "prefixes", e))
    }
}

/// The map that a write is for.
#[cfg(test)]
fn map_of(op: &MapOp) -> &'static str {
    match op {
        MapOp::PutRow(..) => "rows",
        MapOp::PutRule(..) => "rules",
        MapOp::PutPortRange(..) => "port_ranges",
        MapOp::PutRuleset(..) => "rulesets",
        MapOp::PutPeerRow(..) | MapOp::DeletePeerRow(_) => "peer_rows",
        MapOp::PutPeer(..) | MapOp::DeletePeer(_) => "peers",
        MapOp::SwapPrefixes(_) => "prefixes",
        MapOp::BumpEpoch(_) => "epochs",
        MapOp::BumpPrefixEpoch => "node_state",
    }
}

/// A map of the object by its type.
pub(crate) fn take<T>(ebpf: &mut Ebpf, name: &str) -> Result<T, BpfError>
where
    T: TryFrom<Map>,
    T::Error: std::error::Error + Send + Sync + 'static,
{
    let map = ebpf.take_map(name).ok_or_else(|| BpfError::Missing(format!("map {name}")))?;
    T::try_from(map).map_err(|e| BpfError::map("open", name, e))
}

/// A map of the object as bare data.
pub(super) fn data(ebpf: &mut Ebpf, name: &str) -> Result<MapData, BpfError> {
    let map = ebpf.take_map(name).ok_or_else(|| BpfError::Missing(format!("map {name}")))?;
    // Aya's kinds of maps grow with the kernel's; ours are these.
    #[allow(clippy::wildcard_enum_match_arm)]
    match map {
        Map::ArrayOfMaps(data) | Map::HashMap(data) | Map::LpmTrie(data) => Ok(data),
        _ => Err(BpfError::Missing(format!("map {name} of the expected type"))),
    }
}

/// An array of maps, opened again: Aya's type holds what its inner maps are, this module holds the map.
fn outer<V>(map: &MapData, name: &'static str) -> Result<ArrayOfMaps<MapData, V>, BpfError>
where
    ArrayOfMaps<MapData, V>: TryFrom<Map, Error = aya::maps::MapError>,
{
    let again = fd(map).try_clone_to_owned().map_err(|e| BpfError::map("open", name, e))?;
    let data = MapData::from_fd(again).map_err(|e| BpfError::map("open", name, e))?;
    ArrayOfMaps::try_from(Map::ArrayOfMaps(data)).map_err(|e| BpfError::map("open", name, e))
}

/// A new inner map after a pattern.
fn inner<T>(pattern: &MapData, name: &'static str, entries: u32) -> Result<T, BpfError>
where
    T: TryFrom<Map>,
    T::Error: std::error::Error + Send + Sync + 'static,
{
    let fail = |e: std::io::Error| BpfError::map("make inner map of", name, e);
    let info = sys::map_info(fd(pattern)).map_err(fail)?;
    let made = sys::create_like(&info, &format!("{name}_in"), entries).map_err(fail)?;
    let data = MapData::from_fd(made).map_err(|e| BpfError::map("open inner map of", name, e))?;
    let map = Map::from_map_data(data).map_err(|e| BpfError::map("open inner map of", name, e))?;
    T::try_from(map).map_err(|e| BpfError::map("open inner map of", name, e))
}

fn fd(map: &MapData) -> std::os::fd::BorrowedFd<'_> {
    map.fd().as_fd()
}

pub(super) fn put<T>(
    map: &mut Array<MapData, Wire<T>>,
    name: &'static str,
    index: u32,
    value: T,
) -> Result<(), BpfError>
where
    Wire<T>: aya::Pod,
{
    map.set(index, Wire(value), 0).map_err(|e| BpfError::map("write", name, e))
}

/// A deletion of what is not there has happened.
pub(super) fn gone(result: Result<(), aya::maps::MapError>, name: &'static str) -> Result<(), BpfError> {
    match result {
        Ok(()) | Err(aya::maps::MapError::KeyNotFound) => Ok(()),
        Err(aya::maps::MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => {
            Ok(())
        }
        Err(e) => Err(BpfError::map("delete from", name, e)),
    }
}
