//! From objects to enforcement: compiles, writes beside, flips, attaches, and settles behind. One thread at a
//! time; every step that fails leaves what was in force.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use aya::Ebpf;
use nix::time::{ClockId, clock_gettime};
use portcullis_common::addr::Addr;
use portcullis_common::event::Direction;
use portcullis_common::wire::{
    CGROUP_ELSEWHERE, ENDPOINT_HOST, ENDPOINT_MAC, ENDPOINT_QUARANTINED, ENDPOINT_USED, EndpointConfig,
    EndpointWord, HOST_ON, HostState, LINK_ETHERNET, LINK_IP, MARK_SLOT, MAX_ENDPOINT_ADDRS, RULESET_OPEN,
    SERVICES_CLOSED, SERVICES_DELIVERED,
};
use portcullis_policy::answer::{binding_flags, endpoint_config, owned_addresses};
use portcullis_policy::compile::{Held, NO_ROOM};
use portcullis_policy::desired::{CounterName, EndpointRulesets, ip_addr};
use portcullis_policy::model::{Cluster, Mode, ObjectKey, Pod, Problem, Severity};
use portcullis_policy::select::Directory;
use portcullis_policy::sizes::{Sizes, Table};

use crate::attach::{
    AttachOp, Attacher, Bridges, Claim, HeldPort, Hook, Interface, Network, Role, State, cgroup, plan,
};
use crate::bpf::counters::CounterNames;
use crate::bpf::flows::Growth;
use crate::bpf::load;
use crate::bpf::{Kernel, Pins};
use crate::host_side::HostSide;
use crate::mark::MarkMask;
use crate::metrics::Fill;
use crate::node_ports::NodePorts;
use crate::older::{Fresh, Older, OlderFlows};
use crate::tables::Tables;
use crate::told::Ports;

/// Rounds of settling after a change: contents, what they point at, and their numbers go one after another.
const SETTLE_ROUNDS: u32 = 6;
/// `ARPHRD_ETHER` of `include/uapi/linux/if_arp.h`.
const ARPHRD_ETHER: u16 = 1;

/// An endpoint that is enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enforced {
    /// Its slot.
    pub slot: u32,
    /// What it is.
    pub config: EndpointConfig,
    /// Its rulesets and generation.
    pub word: EndpointWord,
}

impl Enforced {
    const fn fresh(&self) -> Fresh {
        Fresh { slot: self.slot, config: self.config, generation: self.word.generation }
    }
}

/// What a reconciliation came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The pods that are enforced here, by slot.
    pub local: BTreeMap<ObjectKey, u32>,
    /// What is in force at each.
    pub endpoints: BTreeMap<ObjectKey, Enforced>,
    /// How full the tables are.
    pub fills: Vec<Fill>,
    /// What the counters count.
    pub counters: BTreeMap<u32, CounterName>,
    /// Flows older than their endpoints.
    pub older: OlderFlows,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// Whose policies have no room in the tables, and what is in force there instead.
    pub held: Vec<Held>,
    /// The veth devices that are here.
    pub veths: BTreeSet<u32>,
    /// Interfaces that were told of and are not here any more.
    pub gone: BTreeSet<u32>,
    /// True if everything else that was wanted is in force.
    pub complete: bool,
}

/// Keeps the node's enforcement.
#[derive(Debug)]
pub struct Reconciler {
    tables: Tables,
    ebpf: Ebpf,
    attacher: Attacher,
    bridges: Bridges,
    /// What the CNI plugin told.
    told: Ports,
    endpoints: BTreeMap<ObjectKey, Enforced>,
    free: BTreeSet<u32>,
    retired: Vec<u32>,
    /// Slots of interfaces that may be anybody's, by interface.
    quarantined: BTreeMap<u32, u32>,
    /// Endpoints that were made and are not yet attached to.
    fresh: Vec<Fresh>,
    older: Older,
    flows: u32,
    mode: Mode,
    slots: u32,
    sizes: Sizes,
    started: bool,
    /// Where what ends at the node's own sockets is judged; none: virtual addresses are denied.
    services: Option<cgroup::Root>,
    /// How the node's own sockets are judged; none: by nobody.
    host: Option<HostSide>,
    /// The only node whose pods are looked for here; `None`: any pod to whose address an interface leads.
    node: Option<String>,
}

impl Reconciler {
    /// Opens the pins and takes over what is there.
    pub fn open(pins: &Pins, hook: Hook, flows: u32, mode: Mode, sizes: &Sizes) -> anyhow::Result<Self> {
        let (mut kernel, mut ebpf) = Kernel::open(pins, sizes)?;
        // To enforce does not wait for new tables: those of the last agent are whole. Audit waits for them.
        if let Mode::Enforce = mode {
            kernel.set_mode(mode)?;
        }
        let slots = sizes.of(Table::Endpoints);
        let names = CounterNames::open(&mut ebpf)?;
        Ok(Self {
            tables: Tables::new(kernel, names, sizes),
            ebpf,
            attacher: Attacher::new(hook, pins.links()),
            bridges: Bridges::default(),
            told: Ports::default(),
            endpoints: BTreeMap::new(),
            free: (0..slots).collect(),
            retired: Vec::new(),
            quarantined: BTreeMap::new(),
            fresh: Vec::new(),
            older: Older::default(),
            flows,
            mode,
            slots,
            sizes: sizes.clone(),
            started: false,
            services: None,
            host: None,
            node: None,
        })
    }

    /// From here on only pods that say that they are on this node are looked for.
    pub fn keep_to_node(&mut self, node: Option<String>) {
        self.node = node;
    }

    /// From the next reconciliation on what pods send to virtual addresses is judged where it is delivered: by the node's
    /// other devices, and by the sockets below this cgroup. Their packets bear these bits of the mark from now on.
    pub fn follow_services(&mut self, root: Option<cgroup::Root>, mark: MarkMask) -> anyhow::Result<()> {
        self.tables.kernel.set_mark(mark)?;
        self.services = root;
        Ok(())
    }

    /// From now on nobody judges the node's own sockets, whatever an earlier agent left.
    pub fn release_host(&mut self, root: Option<&cgroup::Root>) -> anyhow::Result<()> {
        self.tables.kernel.set_host_state(HostState::default())?;
        if let Some(root) = root {
            root.remove(Direction::Egress)?;
        }
        Ok(())
    }

    /// From the next reconciliation on the node's own sockets are judged, where the cluster says how.
    pub fn guard_host(&mut self, host: Option<HostSide>) {
        self.host = host;
    }

    /// Where pods' cgroups appear, where they are looked at.
    #[must_use]
    pub fn cgroup_directories(&self) -> &[PathBuf] {
        self.host.as_ref().map_or(&[], HostSide::directories)
    }

    /// The object, for its rings.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// From the next reconciliation on these interfaces are whose the CNI plugin says.
    pub fn tell(&mut self, told: Ports) {
        self.told = told;
    }

    /// Closes an interface that was made for a pod, before anything else is known of it: it is attached to and leads
    /// nowhere. One that leads to that pod already stays as it is.
    pub fn close(&mut self, interface: u32, pod: &ObjectKey) -> anyhow::Result<()> {
        let of_another =
            |(key, enforced): (&ObjectKey, &Enforced)| enforced.config.ifindex == interface && key != pod;
        // Its index was another interface's, of a pod that is gone.
        if self.endpoints.iter().any(of_another) {
            self.tables.kernel.forget_iface(interface)?;
        }
        let mut observed = self.attacher.observed()?;
        observed.retain(|one| one.slot.interface == interface);
        let mut programs = load::programs(&mut self.ebpf)?;
        let wanted = BTreeMap::from([(interface, Role::Pod)]);
        let ops = plan(self.attacher.hook(), &wanted, &observed, programs.ids()?);
        let report = self.attacher.apply(&ops, &mut programs);
        anyhow::ensure!(report.vanished.is_empty(), "interface {interface} is gone");
        match report.failed.into_iter().next() {
            None => Ok(()),
            Some((op, error)) => Err(anyhow::Error::new(error).context(op.to_string())),
        }
    }

    /// Brings enforcement to what these objects say. An error leaves what was in force before; pods that are
    /// new meanwhile are closed.
    pub fn reconcile(&mut self, cluster: &Arc<Cluster>) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome { complete: true, ..Outcome::default() };
        let directory = Directory::new(cluster);
        let Found { interfaces, quarantined, told, closed, devices } =
            self.interfaces(&directory, &mut outcome)?;
        let node = self.node.as_deref();
        let mut wanted = wanted(&directory, node, &interfaces, &told, &closed, &mut outcome.problems);
        if let Some(host) = &mut self.host {
            if let Err(error) = host.look() {
                let message =
                    format!("looking for the cgroups of pods: {error}; those that were seen last count");
                outcome.problems.push(Problem::of_node(Severity::Error, message));
            }
            wanted.extend(host.endpoints(&directory, cluster, &mut outcome.problems));
        }
        let mut adopted = BTreeMap::new();
        if !self.started {
            adopted = self.adopt(&wanted)?;
        }
        let enforced = self.enforce(cluster, &directory, &wanted, &quarantined, &adopted, &mut outcome);
        // Whatever failed: an interface that is attached to and leads to no endpoint drops everything.
        if self.attach(cluster, &wanted, &quarantined, &closed, &devices, &mut outcome)? {
            self.take_late(&mut outcome.problems);
        }
        enforced?;
        if !self.started {
            self.tables.kernel.set_mode(self.mode)?;
            self.tables.kernel.grace_period()?;
            self.tables.kernel.clear_other_banks()?;
            self.started = true;
        }
        if self.services.is_some() {
            outcome.problems.extend(self.endpoints.iter().filter_map(|(key, e)| without_mark(key, e)));
        }
        outcome.local = self.endpoints.iter().map(|(key, e)| (key.clone(), e.slot)).collect();
        outcome.counters.clone_from(&self.tables.written().counters);
        outcome.endpoints.clone_from(&self.endpoints);
        outcome.fills = self.fills();
        outcome.older = self.older.told();
        Ok(outcome)
    }

    /// Brings tables and endpoints to what is wanted. What has no room leaves the pods that are there as they are, and
    /// new ones closed.
    fn enforce(
        &mut self,
        cluster: &Arc<Cluster>,
        directory: &Directory<'_>,
        wanted: &BTreeMap<ObjectKey, EndpointConfig>,
        quarantined: &BTreeMap<u32, Interface>,
        adopted: &BTreeMap<ObjectKey, Enforced>,
        outcome: &mut Outcome,
    ) -> anyhow::Result<()> {
        self.drop_unwanted(wanted)?;
        // An interface can go from a pod to nobody in particular, and from there to a pod.
        self.quarantine(quarantined)?;
        let in_force = self.in_force();
        let compiled = self.tables.bring(cluster, wanted.keys().cloned().collect(), &in_force);
        let (rulesets, released) = if compiled.is_ok() {
            (self.tables.written().endpoints.clone(), Ok(()))
        } else {
            let owned = |addr: &Addr| directory.owners.contains_key(&ip_addr(addr));
            (BTreeMap::new(), self.tables.release(owned))
        };
        self.place(wanted, &rulesets, adopted, outcome)?;
        released?;
        compiled.map_err(|error| {
            error.context("the last complete policies stay in force, new pods are closed")
        })?;
        let (problems, held) = self.tables.problems();
        outcome.problems.extend_from_slice(problems);
        outcome.held = held.to_vec();
        Ok(())
    }

    /// The rulesets of the endpoints that are there.
    fn in_force(&self) -> BTreeMap<ObjectKey, EndpointRulesets> {
        let of = |word: &EndpointWord| EndpointRulesets { ingress: word.ingress, egress: word.egress };
        self.endpoints.iter().map(|(key, enforced)| (key.clone(), of(&enforced.word))).collect()
    }

    /// Frees what the last change left behind. To be called when it is in force; takes some grace periods.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        for _ in 0..SETTLE_ROUNDS {
            if self.retired.is_empty() && !self.tables.is_unsettled() {
                self.tables.settled();
                return Ok(());
            }
            self.tables.kernel.grace_period()?;
            for slot in std::mem::take(&mut self.retired) {
                self.tables.kernel.free_slot(slot)?;
                self.free.insert(slot);
            }
            let in_force = self.in_force();
            self.tables.free(&in_force)?;
            let rulesets = self.tables.written().endpoints.clone();
            self.flip_changed(&rulesets)?;
        }
        Ok(())
    }

    /// Grows the tables of flows that are half full: that of one slot, or all where the programs' word was lost.
    pub fn grow_flows(&mut self, only: Option<u32>) -> anyhow::Result<()> {
        for enforced in self.endpoints.values().filter(|one| only.is_none_or(|slot| slot == one.slot)) {
            // Half full again by the time that it has grown.
            while let Some(Growth::Done) = self.tables.kernel.flow_tables.tend(enforced.slot, self.flows)? {}
        }
        Ok(())
    }

    /// Removes flows that have been silent for too long. Returns how many.
    pub fn expire_flows(&mut self) -> anyhow::Result<u64> {
        let now = u32::try_from(clock_gettime(ClockId::CLOCK_MONOTONIC)?.tv_sec()).unwrap_or(0);
        let mut removed = 0;
        for enforced in self.endpoints.values() {
            removed += self.tables.kernel.flow_tables.expire(enforced.slot, now)?;
        }
        Ok(removed)
    }

    /// How full the tables are that this agent writes: its bank's, by what was compiled last.
    fn fills(&self) -> Vec<Fill> {
        let needed = self.tables.goal();
        [
            ("endpoints", self.endpoints.len(), Table::Endpoints),
            ("rulesets", needed.rulesets.len(), Table::Rulesets),
            ("rules", needed.rules.len(), Table::Rules),
            ("rows", needed.rows.len(), Table::Rows),
            ("port_ranges", needed.port_ranges.len(), Table::PortRanges),
            ("peer_rows", needed.peer_rows.len(), Table::PeerRows),
            ("peers", needed.peers.len(), Table::Peers),
            ("prefixes", needed.prefixes.len(), Table::Prefixes),
            ("counter_names", self.tables.named_counters(), Table::Counters),
        ]
        .map(|(map, entries, table)| Fill {
            map,
            entries: entries as u64,
            capacity: u64::from(self.sizes.of_bank(table)),
        })
        .to_vec()
    }

    /// Events that were not sent, ever.
    pub fn lost_events(&self) -> anyhow::Result<u64> {
        Ok(self.tables.kernel.lost_events()?)
    }

    /// Flows that were not made, ever, because their pod's table was full.
    pub fn flows_refused(&self) -> anyhow::Result<u64> {
        Ok(self.tables.kernel.flows_refused()?)
    }

    /// Which interface leads to which address, by routes to one address and by ports of bridges; which are whose by the
    /// CNI plugin's word; and which lead nobody knows where.
    fn interfaces(&mut self, directory: &Directory<'_>, outcome: &mut Outcome) -> anyhow::Result<Found> {
        let network = Network::look()?;
        outcome.veths = network.veths().map(|link| link.index).collect();
        let is_here = |(index, name): &(u32, &str)| {
            network.link(*index).is_some_and(|link| link.is_veth() && link.name == *name)
        };
        outcome.gone = self.told.all().filter(|one| !is_here(one)).map(|(index, _)| index).collect();
        let mut interfaces = network.straight().clone();
        let mut keys = Vec::new();
        let mut claims = Vec::new();
        if network.has_bridges() {
            let held = self.held()?;
            if !self.started {
                let found = self.tables.kernel.found_endpoints()?;
                let quarantined = found.values().filter(|f| f.config.flags & ENDPOINT_QUARANTINED != 0);
                self.bridges.restore(quarantined.map(|found| found.config.ifindex));
            }
            let node = self.node.as_deref();
            for (key, facts) in directory.pods.iter().filter(|(_, facts)| is_on(node, facts.pod)) {
                let addresses = owned_addresses(directory, key);
                let same = |config: &&EndpointConfig| has_one_of(config, &addresses);
                let held = held.get(&identity(&facts.pod.uid, key)).filter(same).map(held_by);
                let told = self.told.of.get(*key).filter(|port| !outcome.gone.contains(&port.interface));
                let told = told.map(|port| HeldPort { port: port.interface, station: port.station });
                // What it has learned since it was told is newer.
                let held = held.filter(|held| told.is_none_or(|told| told.port == held.port)).or(told);
                claims.push(Claim { addresses, held });
                keys.push(*key);
            }
        }
        let placement = self.bridges.place(&network, &claims)?;
        interfaces.extend(placement.interfaces);
        let name = |number: usize| keys.get(number).map_or_else(String::new, ToString::to_string);
        for (number, trouble) in &placement.troubles {
            outcome.problems.push(pod_problem(&name(*number), trouble.tell(name)));
        }
        let mut told = BTreeMap::new();
        for (key, port) in &self.told.of {
            let Some(link) = network.link(port.interface).filter(|l| !outcome.gone.contains(&l.index)) else {
                continue;
            };
            let addresses = owned_addresses(directory, key);
            let mut found = addresses.iter().filter_map(|address| interfaces.get(address));
            let interface = match (found.find(|one| one.index == link.index), link.master) {
                (Some(found), _) => found.clone(),
                // A bridge that no route of the node ends at.
                (None, Some(_)) => link.behind_bridge(port.station),
                (None, None) => link.clone(),
            };
            told.insert(key.clone(), interface);
        }
        let is_gone = |index: &u32| outcome.gone.contains(index);
        let closed: BTreeSet<u32> = self.told.closed.keys().copied().filter(|one| !is_gone(one)).collect();
        // Whose these are is known.
        let mut quarantined = placement.quarantined;
        quarantined
            .retain(|index, _| !closed.contains(index) && !told.values().any(|one| one.index == *index));
        let devices = network.devices().map(|link| (link.index, link_of(link))).collect();
        Ok(Found { interfaces, quarantined, told, closed, devices })
    }

    /// What each pod has, by the pod's identity: at first what the last agent left.
    fn held(&self) -> anyhow::Result<BTreeMap<u64, EndpointConfig>> {
        if self.started {
            return Ok(self.endpoints.values().map(|e| (e.config.pod, e.config)).collect());
        }
        let ifaces = self.tables.kernel.found_ifaces();
        let found = self.tables.kernel.found_endpoints()?;
        let held = found.iter().filter(|(slot, found)| ifaces.get(&found.config.ifindex) == Some(slot));
        Ok(held.map(|(_, found)| (found.config.pod, found.config)).collect())
    }

    /// Matches what the last agent left with what is wanted, so that flows live on.
    fn adopt(
        &mut self,
        wanted: &BTreeMap<ObjectKey, EndpointConfig>,
    ) -> anyhow::Result<BTreeMap<ObjectKey, Enforced>> {
        let found = self.tables.kernel.found_endpoints()?;
        let ifaces = self.tables.kernel.found_ifaces();
        let cgroups = self.tables.kernel.found_cgroups();
        let host = self.tables.kernel.host_state()?;
        let mut adopted = BTreeMap::new();
        for (key, config) in wanted {
            let slot = match (config.flags & ENDPOINT_HOST, config.cgroup) {
                (0, _) => ifaces.get(&config.ifindex).copied(),
                (_, 0) if host.flags & HOST_ON == 0 => None,
                (_, 0) if key.is_unknown() => Some(host.unknown),
                (_, 0) => Some(host.node),
                (_, cgroup) => cgroups.get(&cgroup).copied(),
            };
            if let Some((slot, found)) = slot.and_then(|slot| found.get(&slot).map(|f| (slot, f)))
                && found.config == *config
            {
                adopted.insert(key.clone(), Enforced { slot, config: *config, word: found.word });
            }
        }
        let kept: BTreeSet<u32> = adopted.values().map(|e| e.slot).collect();
        for slot in &kept {
            self.tables.kernel.flow_tables.take_over(*slot)?;
        }
        for (ifindex, slot) in ifaces.iter().filter(|(_, slot)| !kept.contains(slot)) {
            self.tables.kernel.forget_iface(*ifindex)?;
            tracing::debug!("interface {ifindex} had endpoint {slot} of a pod that is gone");
        }
        for (cgroup, _) in
            cgroups.iter().filter(|(_, slot)| !kept.contains(slot) && **slot != CGROUP_ELSEWHERE)
        {
            self.tables.kernel.forget_cgroup(*cgroup)?;
        }
        // Nobody would be let in or out by an endpoint that is gone; until there is another the node is not judged.
        if !kept.contains(&host.node) || (host.unknown != CGROUP_ELSEWHERE && !kept.contains(&host.unknown)) {
            self.tables.kernel.set_host_state(HostState::default())?;
        }
        for slot in found.keys() {
            self.free.remove(slot);
            if !kept.contains(slot) {
                self.retired.push(*slot);
            }
        }
        Ok(adopted)
    }

    /// Pods that are gone, or are another pod now: their interface leads nowhere from here on.
    fn drop_unwanted(&mut self, wanted: &BTreeMap<ObjectKey, EndpointConfig>) -> anyhow::Result<()> {
        let gone: Vec<(ObjectKey, Enforced)> = self
            .endpoints
            .iter()
            .filter(|(key, enforced)| wanted.get(*key) != Some(&enforced.config))
            .map(|(key, enforced)| (key.clone(), *enforced))
            .collect();
        for (key, enforced) in gone {
            self.tables.kernel.unlead(&enforced.config)?;
            self.retired.push(enforced.slot);
            self.older.forget(enforced.slot);
            self.endpoints.remove(&key);
        }
        Ok(())
    }

    /// Lets interfaces that may be anybody's tell whose they are, and do nothing else.
    fn quarantine(&mut self, interfaces: &BTreeMap<u32, Interface>) -> anyhow::Result<()> {
        let over: Vec<(u32, u32)> = self
            .quarantined
            .iter()
            .filter(|(index, _)| !interfaces.contains_key(index))
            .map(|(index, slot)| (*index, *slot))
            .collect();
        for (index, slot) in over {
            self.tables.kernel.forget_iface(index)?;
            self.retired.push(slot);
            self.quarantined.remove(&index);
        }
        for interface in interfaces.values() {
            if self.quarantined.contains_key(&interface.index) {
                continue;
            }
            // Without an endpoint it cannot tell whose it is, and is closed all the same.
            let Some(slot) = self.free.pop_first() else { return Ok(()) };
            let flags = ENDPOINT_USED | ENDPOINT_QUARANTINED;
            let config = EndpointConfig { flags, ..config_of(interface, &[]) };
            let closed = EndpointRulesets::CLOSED;
            let word = EndpointWord { ingress: closed.ingress, egress: closed.egress, generation: 1 };
            let kernel = &mut self.tables.kernel;
            let added = kernel.add_endpoint(slot, config, word, self.flows);
            if let Err(error) = added.and_then(|()| kernel.lead_to(interface.index, slot)) {
                self.free.insert(slot);
                return Err(error.into());
            }
            self.quarantined.insert(interface.index, slot);
        }
        Ok(())
    }

    /// Flips the endpoints that are there, and adds those that are new.
    fn place(
        &mut self,
        wanted: &BTreeMap<ObjectKey, EndpointConfig>,
        rulesets: &BTreeMap<ObjectKey, EndpointRulesets>,
        adopted: &BTreeMap<ObjectKey, Enforced>,
        outcome: &mut Outcome,
    ) -> anyhow::Result<()> {
        for (key, enforced) in adopted {
            self.endpoints.insert(key.clone(), *enforced);
        }
        if !rulesets.is_empty() {
            self.flip_changed(rulesets)?;
        }
        let mut closed = |key: &ObjectKey, message: String| {
            outcome.complete = false;
            outcome.problems.push(Problem {
                severity: Severity::Error,
                object: format!("Pod {key}"),
                field: String::new(),
                message: format!("{message}; its interface is closed"),
                location: None,
            });
        };
        let mut added = Vec::new();
        for (key, config) in wanted {
            if self.endpoints.contains_key(key) {
                continue;
            }
            let Some(slot) = self.free.pop_first() else {
                let message = format!(
                    "{NO_ROOM} {table}: all {} are in use: start the agent with a larger --map-size {table}=N",
                    self.slots,
                    table = Table::Endpoints,
                );
                closed(key, message);
                continue;
            };
            let of = match rulesets.get(key) {
                Some(of) => *of,
                // What always passes to and from the node would not.
                None if config.flags & ENDPOINT_HOST != 0 => {
                    self.free.insert(slot);
                    continue;
                }
                None => EndpointRulesets::CLOSED,
            };
            let word = EndpointWord { ingress: of.ingress, egress: of.egress, generation: 1 };
            if let Err(error) = self.tables.kernel.add_endpoint(slot, *config, word, self.flows) {
                self.free.insert(slot);
                closed(key, format!("{error}: it will be tried again"));
                continue;
            }
            added.push((key, Enforced { slot, config: *config, word }));
        }
        // Before the first packet that is judged.
        let fresh: Vec<Fresh> = added.iter().map(|(_, enforced)| enforced.fresh()).collect();
        self.older.take_early(&mut self.tables.kernel.flow_tables, self.flows, &fresh);
        for ((key, enforced), fresh) in added.into_iter().zip(fresh) {
            if let Err(error) = self.tables.kernel.lead(&enforced.config, enforced.slot) {
                self.older.forget(enforced.slot);
                self.free.insert(enforced.slot);
                closed(key, format!("{error}: it will be tried again"));
                continue;
            }
            self.endpoints.insert(key.clone(), enforced);
            self.fresh.push(fresh);
        }
        Ok(())
    }

    /// Takes flows that were opened while endpoints were made, once what was attached judges them.
    fn take_late(&mut self, problems: &mut Vec<Problem>) {
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.retain(|one| self.endpoints.values().any(|enforced| enforced.slot == one.slot));
        problems.extend(self.older.take_late(&mut self.tables.kernel.flow_tables, self.flows, &fresh));
    }

    fn flip_changed(&mut self, rulesets: &BTreeMap<ObjectKey, EndpointRulesets>) -> anyhow::Result<()> {
        for (key, enforced) in &mut self.endpoints {
            let Some(of) = rulesets.get(key) else {
                continue;
            };
            if (of.ingress, of.egress) != (enforced.word.ingress, enforced.word.egress) {
                let generation = enforced.word.generation.wrapping_add(1);
                let word = EndpointWord { ingress: of.ingress, egress: of.egress, generation };
                self.tables.kernel.flip(enforced.slot, word)?;
                enforced.word = word;
            }
        }
        Ok(())
    }

    /// Tells the programs how the node's own sockets are judged. Without an endpoint for the node they are not told anew.
    fn guard(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        let (Some(side), Some(host)) = (&self.host, &cluster.host) else {
            return Ok(());
        };
        let slot = |key: ObjectKey| self.endpoints.get(&key).map(|enforced| enforced.slot);
        let Some(node) = slot(ObjectKey::of_node(&host.node)) else {
            anyhow::bail!("the node has no endpoint");
        };
        let unknown = slot(ObjectKey::of_unknown());
        anyhow::ensure!(unknown.is_some() || side.opens_unknown(), "unknown pods have no endpoint");
        let state = side.state(node, unknown)?;
        let of_pods = self.endpoints.values().map(|enforced| (enforced.config.cgroup, enforced.slot));
        let of_pods = of_pods.filter(|(cgroup, _)| *cgroup != 0).collect();
        self.tables
            .kernel
            .set_nodes(&cluster.nodes.values().flat_map(|node| node.addresses.iter().copied()).collect())?;
        self.tables.kernel.set_elsewhere(&side.elsewhere(cluster), &of_pods)?;
        Ok(self.tables.kernel.set_host_state(state)?)
    }

    /// Attaches what is wanted, replaces what another load attached, keeps what stays on an interface whose
    /// pod is gone: there it drops everything. Returns whether all of it could be done.
    fn attach(
        &mut self,
        cluster: &Cluster,
        wanted: &BTreeMap<ObjectKey, EndpointConfig>,
        quarantined: &BTreeMap<u32, Interface>,
        closed: &BTreeSet<u32>,
        devices: &BTreeMap<u32, u32>,
        outcome: &mut Outcome,
    ) -> anyhow::Result<bool> {
        let observed = self.attacher.observed()?;
        let mut interfaces = BTreeMap::new();
        if self.services.is_some() || self.host.is_some() {
            interfaces.extend(devices.keys().map(|device| (*device, Role::Device)));
        }
        let behind_interfaces = wanted.values().filter(|config| config.flags & ENDPOINT_HOST == 0);
        let pods = behind_interfaces.map(|config| config.ifindex).chain(quarantined.keys().copied());
        interfaces.extend(pods.chain(closed.iter().copied()).map(|interface| (interface, Role::Pod)));
        // Only a pod's has a program for what comes from it.
        interfaces.extend(observed.iter().filter_map(|one| match (one.state, one.slot.direction) {
            (State::Live { .. }, Direction::Egress) => Some((one.slot.interface, Role::Pod)),
            (State::Live { .. }, Direction::Ingress) | (State::Dead, _) => None,
        }));
        let without_ethernet =
            devices.iter().filter(|(_, link)| **link == LINK_IP).map(|(device, _)| *device).collect();
        self.tables.kernel.set_devices(&without_ethernet)?;
        if self.services.is_none() {
            self.tables.kernel.set_services(SERVICES_CLOSED)?;
        }
        let mut programs = load::programs(&mut self.ebpf)?;
        let ops = plan(self.attacher.hook(), &interfaces, &observed, programs.ids()?);
        let report = self.attacher.apply(&ops, &mut programs);
        let mut delivers = self.services.is_some();
        let mut trouble = |message| {
            outcome.complete = false;
            outcome.problems.push(Problem::of_node(Severity::Error, message));
        };
        // Which of them are known closes or opens nothing: what is not is judged as the node's address, too.
        if self.services.is_some()
            && let Err(error) = NodePorts::find(cluster, self.node.as_deref())
                .and_then(|found| Ok(self.tables.kernel.set_node_ports(&found.addresses, &found.ports)?))
        {
            trouble(format!("{error}: what pods send to new node ports is judged as the node's"));
        }
        for (op, error) in &report.failed {
            // A way to deliver that nobody watches: of a pod's interface it is the one towards the pod.
            let is_unwatched =
                matches!(op, AttachOp::Attach { slot, .. } if slot.direction == Direction::Ingress);
            delivers &= !is_unwatched && op.role() != Some(Role::Device);
            trouble(format!("{op}: {error}"));
        }
        let mut guards = self.host.is_some() && cluster.host.is_some();
        // Both or neither: with one of them what it does not see would count as of nobody's socket.
        if guards && let Err(error) = load_host(&mut self.ebpf) {
            trouble(format!("{error:#}: the host firewall is off on this node"));
            guards = false;
        }
        if !guards {
            self.tables.kernel.set_host_state(HostState::default())?;
        }
        let what_gets = if guards { load::HOST_IN } else { load::DELIVER_HERE };
        let root = self.host.as_ref().map(|host| &host.root).or(self.services.as_ref());
        if let Some(root) = root
            && let Err(error) = bring(&mut self.ebpf, root, Direction::Ingress, what_gets)
        {
            delivers = false;
            guards = false;
            trouble(format!("{error:#}: virtual addresses of Services are denied"));
        }
        if let Some(root) = root {
            let done = if guards {
                bring(&mut self.ebpf, root, Direction::Egress, load::HOST_OUT)
            } else {
                root.remove(Direction::Egress).map(|_| ()).map_err(Into::into)
            };
            if let Err(error) = done {
                guards = false;
                trouble(format!("{error:#}: the node's own sockets are judged as before"));
            }
        }
        // Last, for the same reason.
        if guards && let Err(error) = self.guard(cluster) {
            trouble(format!("{error:#}: the node's own sockets are judged as before"));
        }
        self.tables.kernel.set_services(if delivers { SERVICES_DELIVERED } else { SERVICES_CLOSED })?;
        Ok(report.failed.is_empty())
    }
}

/// Has the programs of the host firewall verified, before one of them is attached.
fn load_host(ebpf: &mut Ebpf) -> anyhow::Result<()> {
    load::loaded(ebpf, load::HOST_IN)?;
    load::loaded(ebpf, load::HOST_OUT)?;
    Ok(())
}

fn bring(
    ebpf: &mut Ebpf,
    root: &cgroup::Root,
    direction: Direction,
    name: &'static str,
) -> anyhow::Result<()> {
    Ok(root.bring(direction, load::loaded(ebpf, name)?)?)
}

/// What was found out about the interfaces of this network namespace.
#[derive(Debug)]
struct Found {
    /// By address.
    interfaces: BTreeMap<IpAddr, Interface>,
    /// That may be anybody's.
    quarantined: BTreeMap<u32, Interface>,
    /// Of pods that are known, by the CNI plugin's word.
    told: BTreeMap<ObjectKey, Interface>,
    /// Of pods that are not: closed.
    closed: BTreeSet<u32>,
    /// All devices but the loopback, with how their packets start.
    devices: BTreeMap<u32, u32>,
}

/// The endpoints that should be here: live pods to one of whose addresses an interface of this network
/// namespace leads, or that have one by the CNI plugin's word.
fn wanted(
    directory: &Directory<'_>,
    node: Option<&str>,
    interfaces: &BTreeMap<IpAddr, Interface>,
    told: &BTreeMap<ObjectKey, Interface>,
    closed: &BTreeSet<u32>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<ObjectKey, EndpointConfig> {
    let mut wanted = BTreeMap::new();
    let mut taken: BTreeMap<u32, ObjectKey> = BTreeMap::new();
    let of_somebody: BTreeSet<u32> =
        told.values().map(|one| one.index).chain(closed.iter().copied()).collect();
    for (key, facts) in directory.pods.iter().filter(|(_, facts)| is_on(node, facts.pod)) {
        let addresses = owned_addresses(directory, key);
        let mut led = addresses.iter().filter_map(|address| interfaces.get(address));
        // A route to one address can also lead into a tunnel, which is no pod's. What was told of is whose it is told
        // to be: an address can be another pod's by now.
        let is_free = |one: &&Interface| one.is_veth() && !of_somebody.contains(&one.index);
        let Some(interface) = told.get(*key).or_else(|| led.find(is_free)) else {
            continue;
        };
        let mut trouble = |message| problems.push(pod_problem(&key.to_string(), message));
        if let Some(other) = taken.insert(interface.index, (*key).clone()) {
            trouble(format!("{} leads to Pod {other} too: it is enforced as this pod", interface.name));
            wanted.remove(&other);
        }
        if addresses.len() > MAX_ENDPOINT_ADDRS {
            trouble(format!(
                "only the first {MAX_ENDPOINT_ADDRS} addresses count; the pod cannot use the others"
            ));
        }
        let pod = identity(&facts.pod.uid, key);
        let mut config = EndpointConfig { pod, ..config_of(interface, &addresses) };
        config.flags |= binding_flags(directory.source_binding(key));
        wanted.insert((*key).clone(), config);
    }
    wanted
}

/// True if the pod says that it is on this node; of any where none is asked for.
fn is_on(node: Option<&str>, pod: &Pod) -> bool {
    node.is_none_or(|node| pod.node.as_deref() == Some(node))
}

/// An endpoint of nobody in particular behind an interface.
fn config_of(interface: &Interface, addresses: &[IpAddr]) -> EndpointConfig {
    let mut config = endpoint_config(addresses);
    config.ifindex = interface.index;
    config.link = link_of(interface);
    if let (Some(station), Some(place)) = (interface.station, config.mac.first_chunk_mut()) {
        *place = station;
        config.flags |= ENDPOINT_MAC;
    }
    config
}

fn link_of(interface: &Interface) -> u32 {
    if interface.arphrd == ARPHRD_ETHER { LINK_ETHERNET } else { LINK_IP }
}

/// A pod that has none of its addresses any more is in another network namespace by now.
fn has_one_of(config: &EndpointConfig, addresses: &[IpAddr]) -> bool {
    let count = usize::try_from(config.addr_count).unwrap_or(0);
    config.addrs.iter().take(count).any(|own| addresses.contains(&ip_addr(own)))
}

fn held_by(config: &EndpointConfig) -> HeldPort {
    let station = config.mac.first_chunk().copied().filter(|_| config.flags & ENDPOINT_MAC != 0);
    HeldPort { port: config.ifindex, station }
}

/// Says of an isolated pod for whose slot the packet mark has no room.
fn without_mark(key: &ObjectKey, enforced: &Enforced) -> Option<Problem> {
    let is_open = u32::from(enforced.word.egress) == RULESET_OPEN;
    (enforced.slot > MARK_SLOT && !is_open).then(|| {
        let message = format!(
            "more than {} pods are on this node, and the packet mark has no room for this one: what it sends to Services and \
             outside of the cluster is denied; run fewer pods here, or isolate fewer",
            MARK_SLOT + 1
        );
        Problem { field: String::new(), ..pod_problem(&key.to_string(), message) }
    })
}

fn pod_problem(pod: &str, message: String) -> Problem {
    Problem {
        severity: Severity::Error,
        object: format!("Pod {pod}"),
        field: "status.podIPs".to_owned(),
        message,
        location: None,
    }
}

/// FNV-1a over UID and name.
pub(crate) fn identity(uid: &str, key: &ObjectKey) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in uid.bytes().chain([0]).chain(key.to_string().bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
